//! What a commit costs beside plain SQLite: one-row transactions a second, with one writer and
//! with sixteen callers, on the same table, the same rows, the same disk and the same durability
//! (WAL, `synchronous=FULL`).
//!
//! Rounds of all contestants alternate, so that what the machine does beside hits all alike; the
//! median round counts. `cargo bench --bench commit` measures (`-- --seconds 2 --rounds 9`,
//! `-- --dir PATH`, `-- --only PART-OF-A-NAME` for a profiler); `cargo test --bench commit` runs a few rows of each.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark that fails may stop")]

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tribune::crdt::RowOp;
use tribune::store::{OpenConfig, Params, Statement, Store};
use tribune::types::{NodeId, Value, Wall};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CALLERS: usize = 16;
const NOW: Wall = Wall(1_700_000_000_000_000);
const NODE: NodeId = NodeId([0x11; 16]);
/// How many services a node registers over and over; the table stays this large.
const SERVICES: usize = 1_000;

const INSERT: &str = "INSERT INTO services
    (node_id, id, name, tags, address, port, meta, tagged_addresses, weight_passing,
     weight_warning, enable_tag_override, kind, source)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
    ON CONFLICT (node_id, id) DO UPDATE SET
     name = excluded.name, tags = excluded.tags, address = excluded.address,
     port = excluded.port, meta = excluded.meta, tagged_addresses = excluded.tagged_addresses,
     weight_passing = excluded.weight_passing, weight_warning = excluded.weight_warning,
     enable_tag_override = excluded.enable_tag_override, kind = excluded.kind,
     source = excluded.source";

/// Writes into a directory for some time; returns how many transactions a second it made.
type Contestant = fn(&Path, Duration) -> f64;

fn main() {
    let options = Options::read();
    if let Some(only) = &options.only {
        println!("{only} alone, for a profiler");
    }
    let contestants: [(&str, Contestant); 7] = [
        ("plain, 1 writer", plain_alone),
        ("store, 1 writer, operations", store_alone),
        ("store, 1 writer, SQL", store_alone_sql),
        ("plain, 16 threads, a mutex", plain_threads),
        ("plain, 16 rows a commit", plain_grouped),
        ("store, 16 callers, grouped", store_grouped),
        ("store, 16 callers, no threads", store_grouped_alone),
    ];
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); contestants.len()];
    for round in 0..options.rounds {
        for (place, (name, run)) in contestants.iter().enumerate() {
            if options.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
                rates[place].push(f64::MIN_POSITIVE);
                continue;
            }
            let dir = options.dir.join(format!("{round}-{place}"));
            std::fs::create_dir_all(&dir).expect("the directory can be written");
            rates[place].push(run(&dir, options.time));
            std::fs::remove_dir_all(&dir).expect("it was made above");
        }
    }
    let medians: Vec<f64> = rates.into_iter().map(median).collect();
    println!("{:<30} {:>12} {:>10}", "transactions a second", "median", "ratio");
    for (place, (name, _)) in contestants.iter().enumerate() {
        let base = if place < 3 { 0 } else { 3 };
        println!("{name:<30} {:>12.0} {:>10.2}", medians[place], medians[place] / medians[base]);
    }
    for (place, name) in [(5, "grouped / 16 rows a commit"), (6, "the same without threads")] {
        println!("{name:<30} {:>12} {:>10.2}", "", medians[place] / medians[4]);
    }
    assert!(medians.iter().all(|rate| *rate > 0.0), "every contestant wrote something");
}

struct Options {
    dir: PathBuf,
    time: Duration,
    rounds: usize,
    /// Part of the name of the only contestant to run.
    only: Option<String>,
}

impl Options {
    fn read() -> Self {
        let words: Vec<String> = std::env::args().collect();
        let after = |name: &str| {
            let place = words.iter().position(|word| word == name)?;
            words.get(place + 1)
        };
        let number = |name: &str, default: f64| {
            after(name).map_or(default, |word| word.parse().expect("a number"))
        };
        // `cargo bench` says `--bench`, `cargo test` does not.
        let has = |flag: &str| words.iter().any(|word| word == flag);
        let is_test = has("--test") || !has("--bench");
        let default = std::env::temp_dir();
        let dir = after("--dir").map_or(default, PathBuf::from);
        Self {
            dir: dir.join(format!("tribune-bench-{}", std::process::id())),
            time: Duration::from_secs_f64(number("--seconds", if is_test { 0.02 } else { 1.0 })),
            only: after("--only").cloned(),
            rounds: if is_test { 1 } else { number("--rounds", 7.0) as usize },
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

/// The columns of `services`, for the n-th write.
fn row(n: usize) -> Vec<(&'static str, Value)> {
    vec![
        ("node_id", NODE.to_string().into()),
        ("id", format!("web-{}", n % SERVICES).into()),
        ("name", format!("web-{}", n % 50).into()),
        ("tags", r#"["primary","v2","eu-west"]"#.into()),
        ("address", format!("10.0.{}.{}", n / 250 % 250, n % 250).into()),
        ("port", Value::Integer(8_000 + n as i64)),
        ("meta", r#"{"version":"1.42.0","team":"payments","commit":"9f2c3c1e7d3b"}"#.into()),
        ("tagged_addresses", "{}".into()),
        ("weight_passing", 1.into()),
        ("weight_warning", 1.into()),
        ("enable_tag_override", 0.into()),
        ("kind", "".into()),
        ("source", "api".into()),
    ]
}

fn put(n: usize) -> [RowOp; 1] {
    [RowOp::Put { table: "services", row: row(n), keep: &[] }]
}

fn insert(conn: &Connection, n: usize) {
    let values = row(n).into_iter().map(|(_, value)| match value {
        Value::Text(text) => rusqlite::types::Value::Text(text),
        Value::Integer(number) => rusqlite::types::Value::Integer(number),
        Value::Null | Value::Blob(_) | Value::Real(_) => unreachable!("the row has none"),
    });
    let mut statement = conn.prepare_cached(INSERT).unwrap();
    statement.execute(rusqlite::params_from_iter(values)).unwrap();
}

fn open_plain(dir: &Path) -> Connection {
    let conn = Connection::open(dir.join("plain.db")).unwrap();
    conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL").unwrap();
    conn.pragma_update(None, "wal_autocheckpoint", 1_000).unwrap();
    conn.execute_batch(include_str!("../schema/services.sql")).unwrap();
    conn
}

fn open_store(dir: &Path) -> Store {
    let config = OpenConfig {
        data_dir: dir.join("data"),
        node: Some(NODE),
        name: "bench".to_owned(),
        ..OpenConfig::default()
    };
    Store::open(&config).unwrap()
}

/// Calls `write` until the time is over; returns how often a second, `each` for one call.
fn measure(time: Duration, each: usize, mut write: impl FnMut(usize)) -> f64 {
    // Statements are prepared and pages are read once before the clock starts.
    (0..3).for_each(&mut write);
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < time {
        write(3 + count);
        count += 1;
    }
    (count * each) as f64 / start.elapsed().as_secs_f64()
}

fn plain_alone(dir: &Path, time: Duration) -> f64 {
    let conn = open_plain(dir);
    measure(time, 1, |n| insert(&conn, n))
}

fn plain_grouped(dir: &Path, time: Duration) -> f64 {
    let conn = open_plain(dir);
    measure(time, CALLERS, |n| {
        conn.prepare_cached("BEGIN IMMEDIATE").unwrap().execute([]).unwrap();
        (0..CALLERS).for_each(|caller| insert(&conn, n * CALLERS + caller));
        conn.prepare_cached("COMMIT").unwrap().execute([]).unwrap();
    })
}

fn plain_threads(dir: &Path, time: Duration) -> f64 {
    let conn = Arc::new(Mutex::new(open_plain(dir)));
    let barrier = Arc::new(Barrier::new(CALLERS));
    let threads = (0..CALLERS).map(|caller| {
        let (conn, barrier) = (Arc::clone(&conn), Arc::clone(&barrier));
        std::thread::spawn(move || {
            barrier.wait();
            measure(time, 1, |n| insert(&conn.lock().unwrap(), n * CALLERS + caller))
        })
    });
    let threads: Vec<_> = threads.collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).sum()
}

fn store_alone(dir: &Path, time: Duration) -> f64 {
    let mut store = open_store(dir);
    measure(time, 1, |n| {
        let mut group = store.group(NOW);
        group.ops(&put(n)).unwrap();
        assert_eq!(group.commit().unwrap().len(), 1);
        store.maintain().unwrap();
    })
}

fn store_alone_sql(dir: &Path, time: Duration) -> f64 {
    let mut store = open_store(dir);
    measure(time, 1, |n| {
        let params = Params::Positional(row(n).into_iter().map(|(_, value)| value).collect());
        let mut group = store.group(NOW);
        group.sql(&[Statement { sql: INSERT.to_owned(), params }], None).unwrap();
        assert_eq!(group.commit().unwrap().len(), 1);
        store.maintain().unwrap();
    })
}

/// The work of sixteen callers alone, without the cost of waking them.
fn store_grouped_alone(dir: &Path, time: Duration) -> f64 {
    let mut store = open_store(dir);
    measure(time, CALLERS, |n| {
        let mut group = store.group(NOW);
        for caller in 0..CALLERS {
            group.ops(&put(n * CALLERS + caller)).unwrap();
        }
        assert_eq!(group.commit().unwrap().len(), CALLERS);
        store.maintain().unwrap();
    })
}

type Request = (usize, SyncSender<()>);

/// Sixteen threads ask, one thread writes: what waits when it becomes free is one group.
fn store_grouped(dir: &Path, time: Duration) -> f64 {
    let mut store = open_store(dir);
    let (requests, mailbox) = mpsc::sync_channel::<Request>(CALLERS);
    let writer = std::thread::spawn(move || while write_group(&mut store, &mailbox) {});
    let barrier = Arc::new(Barrier::new(CALLERS));
    let threads = (0..CALLERS).map(|caller| {
        let (requests, barrier) = (requests.clone(), Arc::clone(&barrier));
        std::thread::spawn(move || {
            let (done, answer) = mpsc::sync_channel(1);
            barrier.wait();
            measure(time, 1, |n| {
                requests.send((n * CALLERS + caller, done.clone())).unwrap();
                answer.recv().unwrap();
            })
        })
    });
    let threads: Vec<_> = threads.collect();
    let rate = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    drop(requests);
    writer.join().unwrap();
    rate
}

fn write_group(store: &mut Store, mailbox: &Receiver<Request>) -> bool {
    let Ok(first) = mailbox.recv() else { return false };
    let mut group = store.group(NOW);
    let mut waiting = Vec::with_capacity(CALLERS);
    let mut next = Some(first);
    while let Some((n, done)) = next {
        group.ops(&put(n)).unwrap();
        waiting.push(done);
        next = mailbox.try_recv().ok();
    }
    group.commit().unwrap();
    for done in waiting {
        done.send(()).unwrap();
    }
    store.maintain().unwrap();
    true
}
