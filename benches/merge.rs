//! What a user's table costs beside plain SQLite with the same schema, rows, disk and durability
//! (WAL, `synchronous=FULL`): local transactions of one row and of a thousand, changes applied from
//! another node, bytes on disk, and the time until a large database answers.
//!
//! Rounds of all contestants alternate; the median round counts. Two tables are measured, one with an
//! integer as its key, and one as services have it, with texts and an index. `cargo bench --bench merge`
//! measures (`-- --table service`, `-- --rounds 9`, `-- --rows 200000`, `-- --dir PATH`). On a directory in memory, such as
//! `--dir /dev/shm`, a sync costs nothing: that is the comparison at `synchronous=NORMAL`.
//! `-- --open 1000000` also fills and opens a database of so many rows.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark that fails may stop")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use rusqlite::Connection;
use tribune::crdt::{Batch, Piece, Storage};
use tribune::store::{OpenConfig, Params, Statement, Store};
use tribune::types::{NodeId, Value, Version, Wall};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: Wall = Wall(1_700_000_000_000_000);
const HERE: NodeId = NodeId([0x11; 16]);
const THERE: NodeId = NodeId([0x22; 16]);

/// How many rows a large transaction writes.
const LARGE: usize = 1_000;

/// A table, and what is written to it.
struct Shape {
    name: &'static str,
    schema: &'static str,
    insert: &'static str,
    update: &'static str,
    row: fn(usize) -> Vec<Value>,
    /// Values of one of the thousand first rows that it did not have.
    change: fn(usize) -> Vec<Value>,
    /// The n-th row's key.
    key: fn(usize) -> Vec<Value>,
}

const SHAPES: [Shape; 2] = [
    Shape {
        name: "service",
        schema: "CREATE TABLE service (
            node    TEXT    NOT NULL,
            id      TEXT    NOT NULL,
            name    TEXT    NOT NULL DEFAULT '',
            tags    TEXT    NOT NULL DEFAULT '[]',
            port    INTEGER NOT NULL DEFAULT 0,
            address TEXT    NOT NULL DEFAULT '',
            changed INTEGER NOT NULL DEFAULT 0,
            PRIMARY KEY (node, id)
        );
        CREATE INDEX service_by_name ON service (name);",
        insert: "INSERT INTO service (node, id, name, tags, port, address, changed)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        update: "UPDATE service SET port = ?3, changed = ?4 WHERE node = ?1 AND id = ?2",
        row: service,
        change: |n| {
            let mut values = service_key(n * 7 % LARGE);
            values.extend([Value::Integer((n % 999) as i64 + 70_000), Value::Integer(n as i64)]);
            values
        },
        key: service_key,
    },
    Shape {
        name: "item",
        schema: "CREATE TABLE item (
            id    INTEGER NOT NULL PRIMARY KEY,
            name  TEXT    NOT NULL DEFAULT '',
            value BLOB,
            price REAL    NOT NULL DEFAULT 0,
            stock INTEGER NOT NULL DEFAULT 0
        );",
        insert: "INSERT INTO item (id, name, value, price, stock) VALUES (?1, ?2, ?3, ?4, ?5)",
        update: "UPDATE item SET stock = ?2, price = ?3 WHERE id = ?1",
        row: |n| {
            vec![
                Value::Integer(n as i64),
                format!("item number {n}").into(),
                Value::Blob(n.to_le_bytes().repeat(4)),
                Value::Real(n as f64 / 8.0),
                Value::Integer((n % 97) as i64),
            ]
        },
        change: |n| {
            let stock = Value::Integer((n % 89) as i64 + 100);
            vec![Value::Integer((n * 7 % LARGE) as i64), stock, Value::Real(n as f64)]
        },
        key: |n| vec![Value::Integer(n as i64)],
    },
];

fn service_key(n: usize) -> Vec<Value> {
    // Which node it is does not follow the order in which rows come.
    let node = n.wrapping_mul(7_919) % 1_000;
    vec![format!("node-{node:04}").into(), format!("service-{n:07}").into()]
}

fn service(n: usize) -> Vec<Value> {
    let mut values = service_key(n);
    values.extend([
        format!("app-{}", n % 300).into(),
        "[\"v1\",\"primary\"]".into(),
        Value::Integer((n % 60_000) as i64),
        format!("10.0.{}.{}", n / 250 % 250, n % 250).into(),
        Value::Integer(n as i64),
    ]);
    values
}

/// Does its work in a directory; returns how many rows a second it wrote.
type Contestant = fn(&Path, &Shape, usize) -> f64;

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
    for shape in &SHAPES {
        if options.table.as_ref().is_none_or(|table| table == shape.name) {
            compare(&options, shape);
        }
    }
}

fn compare(options: &Options, shape: &Shape) {
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); CONTESTANTS.len()];
    for round in 0..options.rounds {
        for (place, (name, run, _)) in CONTESTANTS.iter().enumerate() {
            if options.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
                continue;
            }
            let dir = options.dir.join(format!("{}-{round}-{place}", shape.name));
            std::fs::create_dir_all(&dir).expect("the directory can be written");
            // One-row transactions are slow: fewer of them say as much.
            let rows = if name.ends_with("1 row") { options.rows / 10 } else { options.rows };
            rates[place].push(run(&dir, shape, rows));
            std::fs::remove_dir_all(&dir).expect("it was made above");
        }
    }
    let medians: Vec<Option<f64>> = rates.into_iter().map(median).collect();
    println!("\n{}: {:<26} {:>12} {:>8}", shape.name, "rows a second", "median", "ratio");
    for ((name, _, base), rate) in CONTESTANTS.iter().zip(&medians) {
        let Some(rate) = rate else { continue };
        let ratio = medians[*base].map_or("-".to_owned(), |base| format!("{:.2}", rate / base));
        println!("{name:<34} {rate:>12.0} {ratio:>8}");
    }
    if options.only.is_none() {
        sizes(options, shape);
    }
    if let Some(rows) = options.open {
        open_large(options, shape, rows);
    }
}

struct Options {
    dir: PathBuf,
    rows: usize,
    rounds: usize,
    open: Option<usize>,
    only: Option<String>,
    table: Option<String>,
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
            table: after("--table").cloned(),
        }
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // It may be there no more.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn median(mut rates: Vec<f64>) -> Option<f64> {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied()
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

fn open_plain(dir: &Path, shape: &Shape) -> Connection {
    let conn = Connection::open(dir.join("plain.db")).unwrap();
    conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL").unwrap();
    conn.execute_batch(shape.schema).unwrap();
    conn
}

fn open_store(dir: &Path, shape: &Shape, node: NodeId) -> Store {
    let schema = dir.join("schema.sql");
    std::fs::write(&schema, shape.schema).unwrap();
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

fn plain_inserts(dir: &Path, shape: &Shape, rows: usize) -> f64 {
    let conn = open_plain(dir, shape);
    measure(rows, 1, |range| plain(&conn, shape.insert, range.map(shape.row)))
}

fn store_inserts(dir: &Path, shape: &Shape, rows: usize) -> f64 {
    let mut opened = open_store(dir, shape, HERE);
    measure(rows, 1, |range| store(&mut opened, shape.insert, range.map(shape.row)))
}

fn plain_updates(dir: &Path, shape: &Shape, rows: usize) -> f64 {
    let conn = open_plain(dir, shape);
    plain(&conn, shape.insert, (0..LARGE).map(shape.row));
    measure(rows, 1, |range| plain(&conn, shape.update, range.map(shape.change)))
}

fn store_updates(dir: &Path, shape: &Shape, rows: usize) -> f64 {
    let mut opened = open_store(dir, shape, HERE);
    store(&mut opened, shape.insert, (0..LARGE).map(shape.row));
    measure(rows, 1, |range| store(&mut opened, shape.update, range.map(shape.change)))
}

fn plain_large(dir: &Path, shape: &Shape, rows: usize) -> f64 {
    let conn = open_plain(dir, shape);
    measure(rows, LARGE, |range| plain(&conn, shape.insert, range.map(shape.row)))
}

fn store_large(dir: &Path, shape: &Shape, rows: usize) -> f64 {
    let mut opened = open_store(dir, shape, HERE);
    measure(rows, LARGE, |range| store(&mut opened, shape.insert, range.map(shape.row)))
}

fn store_applied(dir: &Path, shape: &Shape, rows: usize) -> f64 {
    applied(dir, shape, rows, LARGE)
}

/// Many small commits of another node that come in one batch, as after a pause.
fn store_applied_small(dir: &Path, shape: &Shape, rows: usize) -> f64 {
    applied(dir, shape, rows, 1)
}

fn applied(dir: &Path, shape: &Shape, rows: usize, each: usize) -> f64 {
    let (mut from, mut opened) = pair(dir, shape);
    let mut pieces = Vec::new();
    for first in (0..rows).step_by(each) {
        pieces.push(written(&mut from, shape, first..first + each));
    }
    // As the replica does it: what follows is applied as one piece.
    let batches = pieces.chunks(LARGE / each).map(|chunk| {
        let mut whole = chunk[0].clone();
        whole.through = chunk[chunk.len() - 1].through;
        whole.changesets = chunk.iter().flat_map(|piece| piece.changesets.clone()).collect();
        Batch { pieces: vec![whole] }
    });
    let batches: Vec<Batch> = batches.collect();
    let mut left = batches.iter();
    let rate = measure(rows, LARGE, |_| {
        let batch = left.next().expect("there is one for each thousand rows");
        opened.apply(NOW, batch).unwrap();
        opened.maintain().unwrap();
    });
    check(&opened, &from, shape, rows - 1);
    rate
}

/// Opens a writer, and a receiver that holds what the writer has done so far.
fn pair(dir: &Path, shape: &Shape) -> (Store, Store) {
    let there = dir.join("there");
    std::fs::create_dir_all(&there).unwrap();
    let writer = open_store(dir, shape, HERE);
    let mut receiver = open_store(&there, shape, THERE);
    let piece = writer.load(writer.origin(), Version(0), usize::MAX).unwrap().piece;
    receiver.apply(NOW, &Batch { pieces: vec![piece] }).unwrap();
    (writer, receiver)
}

/// Holds a receiver to hold what the writer has written up to this row.
fn check(receiver: &Store, writer: &Store, shape: &Shape, last: usize) {
    let head = |store: &Store| {
        let heads = store.heads().unwrap();
        heads.into_iter().find(|(origin, _)| *origin == writer.origin())
    };
    assert_eq!(head(receiver), head(writer), "all of it was applied");
    let last = (shape.key)(last);
    let row = receiver.inspect(shape.name, &last).unwrap();
    assert!(row.is_some() && row == writer.inspect(shape.name, &last).unwrap());
}

/// Writes some rows in one transaction, and returns what others are told of it.
fn written(writer: &mut Store, shape: &Shape, rows: std::ops::Range<usize>) -> Piece {
    let statements: Vec<Statement> =
        rows.map(|n| statement(shape.insert, (shape.row)(n))).collect();
    let mut group = writer.group(NOW);
    group.sql(&statements, None).unwrap();
    let commits = group.commit().unwrap();
    writer.maintain().unwrap();
    Piece::of(commits[0].changeset.clone().unwrap())
}

/// Compares the files of a writer and a receiver with plain SQLite's.
fn sizes(options: &Options, shape: &Shape) {
    let dir = options.dir.join(format!("{}-sizes", shape.name));
    std::fs::create_dir_all(&dir).unwrap();
    let conn = open_plain(&dir, shape);
    let (mut writer, mut receiver) = pair(&dir, shape);
    for first in (0..options.rows).step_by(LARGE) {
        let range = first..first + LARGE;
        plain(&conn, shape.insert, range.clone().map(shape.row));
        let piece = written(&mut writer, shape, range);
        receiver.apply(NOW, &Batch { pieces: vec![piece] }).unwrap();
        receiver.maintain().unwrap();
    }
    check(&receiver, &writer, shape, options.rows - 1);
    conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    writer.checkpoint().unwrap();
    receiver.checkpoint().unwrap();
    let size = |path: PathBuf| std::fs::metadata(path).unwrap().len() as f64 / options.rows as f64;
    let plain = size(dir.join("plain.db"));
    println!("\n{}: {:<26} {:>12} {:>8}", shape.name, "bytes a row", "", "ratio");
    for (name, path) in [
        ("plain", dir.join("plain.db")),
        ("store, the writer", dir.join("data/tribune.db")),
        ("store, a receiver", dir.join("there/data/tribune.db")),
    ] {
        println!("{name:<34} {:>12.1} {:>8.2}", size(path.clone()), size(path) / plain);
    }
}

/// Fills a database, and measures how long it takes to open it and to read a row.
fn open_large(options: &Options, shape: &Shape, rows: usize) {
    let dir = options.dir.join(format!("{}-large", shape.name));
    std::fs::create_dir_all(&dir).unwrap();
    let mut opened = open_store(&dir, shape, HERE);
    for first in (0..rows).step_by(LARGE) {
        store(&mut opened, shape.insert, (first..first + LARGE).map(shape.row));
    }
    opened.checkpoint().unwrap();
    drop(opened);
    let start = Instant::now();
    let opened = open_store(&dir, shape, HERE);
    let row = opened.inspect(shape.name, &(shape.key)(rows / 2)).unwrap();
    assert!(row.is_some_and(|row| row.row.is_some()));
    println!("\nopen {rows} rows, first answer: {:.1?}", start.elapsed());
}
