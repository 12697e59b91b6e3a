//! What a user's table costs beside plain SQLite with the same schema, rows, disk and durability
//! (WAL, `synchronous=FULL`): local transactions of one row and of a thousand, changes applied from
//! another node, bytes on disk, and the time until a large database answers.
//!
//! Rounds of all contestants alternate; the median round counts. `cargo bench --bench merge`
//! measures (`-- --rounds 9`, `-- --rows 200000`, `-- --dir PATH`). On a directory in memory, such as
//! `--dir /dev/shm`, a sync costs nothing: that is the comparison at `synchronous=NORMAL`.
//! `-- --open 1000000` also fills and opens a database of so many rows.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark that fails may stop")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use rusqlite::Connection;
use tribune::crdt::{Batch, Piece, Storage};
use tribune::store::{OpenConfig, Params, Statement, Store};
use tribune::types::{NodeId, Value, Wall};

const NOW: Wall = Wall(1_700_000_000_000_000);
const HERE: NodeId = NodeId([0x11; 16]);
const THERE: NodeId = NodeId([0x22; 16]);

/// How many rows a large transaction writes.
const LARGE: usize = 1_000;

const SCHEMA: &str = "CREATE TABLE item (
    id    INTEGER NOT NULL PRIMARY KEY,
    name  TEXT    NOT NULL DEFAULT '',
    value BLOB,
    price REAL    NOT NULL DEFAULT 0,
    stock INTEGER NOT NULL DEFAULT 0
);";
const INSERT: &str = "INSERT INTO item (id, name, value, price, stock) VALUES (?1, ?2, ?3, ?4, ?5)";
const UPDATE: &str = "UPDATE item SET stock = ?2, price = ?3 WHERE id = ?1";

/// Does its work in a directory; returns how many rows a second it wrote.
type Contestant = fn(&Path, usize) -> f64;

/// Name, work, and which row of the table it is compared with.
const CONTESTANTS: [(&str, Contestant, usize); 8] = [
    ("plain, inserts of 1 row", plain_inserts, 0),
    ("store, inserts of 1 row", store_inserts, 0),
    ("plain, updates of 1 row", plain_updates, 2),
    ("store, updates of 1 row", store_updates, 2),
    ("plain, inserts of 1,000 rows", plain_large, 4),
    ("store, inserts of 1,000 rows", store_large, 4),
    ("store, applied, 1,000 rows each", store_applied, 4),
    ("store, applied, 1 row each", store_applied_small, 4),
];

fn main() {
    let options = Options::read();
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); CONTESTANTS.len()];
    for round in 0..options.rounds {
        for (place, (name, run, _)) in CONTESTANTS.iter().enumerate() {
            if options.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
                rates[place].push(f64::MIN_POSITIVE);
                continue;
            }
            let dir = options.dir.join(format!("{round}-{place}"));
            std::fs::create_dir_all(&dir).expect("the directory can be written");
            // One-row transactions are slow: fewer of them say as much.
            let rows = if name.ends_with("1 row") { options.rows / 10 } else { options.rows };
            rates[place].push(run(&dir, rows));
            std::fs::remove_dir_all(&dir).expect("it was made above");
        }
    }
    let medians: Vec<f64> = rates.into_iter().map(median).collect();
    println!("{:<34} {:>12} {:>8}", "rows a second", "median", "ratio");
    for ((name, _, base), rate) in CONTESTANTS.iter().zip(&medians) {
        println!("{name:<34} {rate:>12.0} {:>8.2}", rate / medians[*base]);
    }
    if options.only.is_none() {
        sizes(&options);
    }
    if let Some(rows) = options.open {
        open_large(&options, rows);
    }
    assert!(medians.iter().all(|rate| *rate > 0.0), "every contestant wrote something");
}

struct Options {
    dir: PathBuf,
    rows: usize,
    rounds: usize,
    open: Option<usize>,
    only: Option<String>,
}

impl Options {
    fn read() -> Self {
        let words: Vec<String> = std::env::args().collect();
        let after = |name: &str| {
            let place = words.iter().position(|word| word == name)?;
            words.get(place + 1)
        };
        let number = |name: &str| after(name).map(|word| word.parse().expect("a number"));
        // `cargo bench` says `--bench`, `cargo test` does not.
        let is_test = !words.iter().any(|word| word == "--bench");
        let dir = after("--dir").map_or_else(std::env::temp_dir, PathBuf::from);
        Self {
            dir: dir.join(format!("tribune-bench-{}", std::process::id())),
            rows: if is_test { 2 * LARGE } else { number("--rows").unwrap_or(100_000) },
            rounds: if is_test { 1 } else { number("--rounds").unwrap_or(5) },
            open: number("--open"),
            only: after("--only").cloned(),
        }
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // It may be there no more.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// The n-th row.
fn row(n: usize) -> Vec<Value> {
    vec![
        Value::Integer(n as i64),
        format!("item number {n}").into(),
        Value::Blob(n.to_le_bytes().repeat(4)),
        Value::Real(n as f64 / 8.0),
        Value::Integer((n % 97) as i64),
    ]
}

fn change(n: usize) -> Vec<Value> {
    vec![Value::Integer(n as i64), Value::Integer((n % 89) as i64 + 100), Value::Real(n as f64)]
}

fn plain_value(value: Value) -> rusqlite::types::Value {
    match value {
        Value::Null => rusqlite::types::Value::Null,
        Value::Text(text) => rusqlite::types::Value::Text(text),
        Value::Integer(number) => rusqlite::types::Value::Integer(number),
        Value::Real(number) => rusqlite::types::Value::Real(number),
        Value::Blob(bytes) => rusqlite::types::Value::Blob(bytes.to_vec()),
    }
}

fn execute(conn: &Connection, sql: &str, values: Vec<Value>) {
    let mut statement = conn.prepare_cached(sql).unwrap();
    let values = values.into_iter().map(plain_value);
    statement.execute(rusqlite::params_from_iter(values)).unwrap();
}

fn statement(sql: &str, values: Vec<Value>) -> Statement {
    Statement { sql: sql.to_owned(), params: Params::Positional(values) }
}

fn open_plain(dir: &Path) -> Connection {
    let conn = Connection::open(dir.join("plain.db")).unwrap();
    conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL").unwrap();
    conn.execute_batch(SCHEMA).unwrap();
    conn
}

fn open_store(dir: &Path, node: NodeId) -> Store {
    let schema = dir.join("schema.sql");
    std::fs::write(&schema, SCHEMA).unwrap();
    let config = OpenConfig {
        data_dir: dir.join("data"),
        node: Some(node),
        name: "bench".to_owned(),
        schema: vec![schema],
        ..OpenConfig::default()
    };
    Store::open(&config).unwrap()
}

/// Calls `write` with the numbers of each transaction's rows; returns rows a second.
fn measure(rows: usize, each: usize, mut write: impl FnMut(std::ops::Range<usize>)) -> f64 {
    // Statements are prepared and pages are read once before the clock starts.
    write(0..each);
    let start = Instant::now();
    for first in (each..rows).step_by(each) {
        write(first..first + each);
    }
    (rows - each) as f64 / start.elapsed().as_secs_f64()
}

fn plain(conn: &Connection, sql: &str, values: impl Iterator<Item = Vec<Value>>) {
    conn.prepare_cached("BEGIN IMMEDIATE").unwrap().execute([]).unwrap();
    values.for_each(|values| execute(conn, sql, values));
    conn.prepare_cached("COMMIT").unwrap().execute([]).unwrap();
}

fn store(store: &mut Store, sql: &str, values: impl Iterator<Item = Vec<Value>>) {
    let statements: Vec<Statement> = values.map(|values| statement(sql, values)).collect();
    let mut group = store.group(NOW);
    group.sql(&statements, None).unwrap();
    assert_eq!(group.commit().unwrap().len(), 1);
    store.maintain().unwrap();
}

fn plain_inserts(dir: &Path, rows: usize) -> f64 {
    let conn = open_plain(dir);
    measure(rows, 1, |range| plain(&conn, INSERT, range.map(row)))
}

fn store_inserts(dir: &Path, rows: usize) -> f64 {
    let mut opened = open_store(dir, HERE);
    measure(rows, 1, |range| store(&mut opened, INSERT, range.map(row)))
}

fn plain_updates(dir: &Path, rows: usize) -> f64 {
    let conn = open_plain(dir);
    plain(&conn, INSERT, (0..LARGE).map(row));
    measure(rows, 1, |range| plain(&conn, UPDATE, range.map(updated)))
}

fn store_updates(dir: &Path, rows: usize) -> f64 {
    let mut opened = open_store(dir, HERE);
    store(&mut opened, INSERT, (0..LARGE).map(row));
    measure(rows, 1, |range| store(&mut opened, UPDATE, range.map(updated)))
}

/// One of the rows that are there, with values it did not have.
fn updated(n: usize) -> Vec<Value> {
    let mut values = change(n);
    values[0] = Value::Integer((n * 7 % LARGE) as i64);
    values
}

fn plain_large(dir: &Path, rows: usize) -> f64 {
    let conn = open_plain(dir);
    measure(rows, LARGE, |range| plain(&conn, INSERT, range.map(row)))
}

fn store_large(dir: &Path, rows: usize) -> f64 {
    let mut opened = open_store(dir, HERE);
    measure(rows, LARGE, |range| store(&mut opened, INSERT, range.map(row)))
}

fn store_applied(dir: &Path, rows: usize) -> f64 {
    applied(dir, rows, LARGE)
}

/// Many small commits of another node that come in one batch, as after a pause.
fn store_applied_small(dir: &Path, rows: usize) -> f64 {
    applied(dir, rows, 1)
}

fn applied(dir: &Path, rows: usize, each: usize) -> f64 {
    let there = dir.join("there");
    std::fs::create_dir_all(&there).unwrap();
    let mut from = open_store(&there, THERE);
    let mut pieces = Vec::new();
    for first in (0..rows).step_by(each) {
        let statements = (first..first + each).map(|n| statement(INSERT, row(n)));
        let mut group = from.group(NOW);
        group.sql(&statements.collect::<Vec<_>>(), None).unwrap();
        let commits = group.commit().unwrap();
        pieces.push(Piece::of(commits[0].changeset.clone().unwrap()));
        from.maintain().unwrap();
    }
    drop(from);
    // As the replica does it: what follows is applied as one piece.
    let per_batch = LARGE / each;
    let batches = pieces.chunks(per_batch).map(|chunk| {
        let mut whole = chunk[0].clone();
        whole.through = chunk[chunk.len() - 1].through;
        whole.changesets = chunk.iter().flat_map(|piece| piece.changesets.clone()).collect();
        Batch { pieces: vec![whole] }
    });
    let batches: Vec<Batch> = batches.collect();
    let mut opened = open_store(dir, HERE);
    let mut batches = batches.iter();
    measure(rows, LARGE, |_| {
        let batch = batches.next().expect("there is one for each thousand rows");
        opened.apply(NOW, batch).unwrap();
        opened.maintain().unwrap();
    })
}

/// Compares the files of a writer and a receiver with plain SQLite's.
fn sizes(options: &Options) {
    let dir = options.dir.join("sizes");
    std::fs::create_dir_all(&dir).unwrap();
    let conn = open_plain(&dir);
    let mut writer = open_store(&dir, HERE);
    let there = dir.join("there");
    std::fs::create_dir_all(&there).unwrap();
    let mut receiver = open_store(&there, THERE);
    for first in (0..options.rows).step_by(LARGE) {
        let range = first..first + LARGE;
        plain(&conn, INSERT, range.clone().map(row));
        let statements: Vec<Statement> = range.map(|n| statement(INSERT, row(n))).collect();
        let mut group = writer.group(NOW);
        group.sql(&statements, None).unwrap();
        let commits = group.commit().unwrap();
        let piece = Piece::of(commits[0].changeset.clone().unwrap());
        receiver.apply(NOW, &Batch { pieces: vec![piece] }).unwrap();
        writer.maintain().unwrap();
        receiver.maintain().unwrap();
    }
    conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    writer.checkpoint().unwrap();
    receiver.checkpoint().unwrap();
    let size = |path: PathBuf| std::fs::metadata(path).unwrap().len() as f64 / options.rows as f64;
    let plain = size(dir.join("plain.db"));
    println!("\n{:<34} {:>12} {:>8}", "bytes a row", "", "ratio");
    for (name, path) in [
        ("plain", dir.join("plain.db")),
        ("store, the writer", dir.join("data/tribune.db")),
        ("store, a receiver", there.join("data/tribune.db")),
    ] {
        println!("{name:<34} {:>12.1} {:>8.2}", size(path.clone()), size(path) / plain);
    }
}

/// Fills a database, and measures how long it takes to open it and to read a row.
fn open_large(options: &Options, rows: usize) {
    let dir = options.dir.join("large");
    std::fs::create_dir_all(&dir).unwrap();
    let mut opened = open_store(&dir, HERE);
    for first in (0..rows).step_by(LARGE) {
        store(&mut opened, INSERT, (first..first + LARGE).map(row));
    }
    opened.checkpoint().unwrap();
    drop(opened);
    let start = Instant::now();
    let opened = open_store(&dir, HERE);
    let row = opened.inspect("item", &[Value::Integer(rows as i64 / 2)]).unwrap();
    assert!(row.is_some_and(|row| row.row.is_some()));
    println!("\nopen {rows} rows, first answer: {:.1?}", start.elapsed());
}
