//! Nodes as processes on one machine: how soon a change is everywhere, how soon a node that was away is
//! back, what an idle node costs, and how much slower others write while a node catches up.
//!
//! `cargo bench --bench cluster` measures all; `cargo bench --bench cluster -- events back killed` only
//! what is named: `events` (ten nodes), `back` (three, then an empty fourth), `killed` (three).
//! `ROWS=1000000` has a node miss so many. Without `--bench` all of it happens once, in small. The
//! nodes, the writer and those who watch share the machine's cores.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

#[path = "../tests/it/support/mod.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod support;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use support::{Agent, Cluster};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A registration, and an index that is looked into when it changes.
const SCHEMA: &str = "
    CREATE TABLE instances (
        node TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL DEFAULT '',
        tags TEXT NOT NULL DEFAULT '[]', meta TEXT NOT NULL DEFAULT '{}',
        port INTEGER NOT NULL DEFAULT 0, address TEXT NOT NULL DEFAULT '',
        updated_at INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (node, id)
    );
    CREATE INDEX instances_name ON instances (name);";
const WRITE: &str = "INSERT INTO instances VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (node, id) DO UPDATE SET port = excluded.port, updated_at = excluded.updated_at";

/// How many rows a transaction has that fills the table.
const ROWS_AT_ONCE: u64 = 1_000;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(600);

struct Plan {
    nodes: u8,
    idle: Duration,
    /// Writes a second, and for how long.
    rates: Vec<(u64, Duration)>,
    missed: u64,
    kills: usize,
}

fn main() {
    let is_full = std::env::args().any(|arg| arg == "--bench");
    let rows = std::env::var("ROWS").ok().map(|rows| rows.parse().expect("ROWS is a number"));
    let secs = Duration::from_secs;
    let plan = match is_full {
        true => Plan {
            nodes: 10,
            idle: secs(30),
            rates: vec![(10, secs(30)), (100, secs(20))],
            missed: rows.unwrap_or(100_000),
            kills: 8,
        },
        false => Plan {
            nodes: 3,
            idle: secs(1),
            rates: vec![(20, secs(1))],
            missed: rows.unwrap_or(2_000),
            kills: 1,
        },
    };
    let named: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wants = |part: &str| named.is_empty() || named.iter().any(|name| name == part);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if wants("events") {
        runtime.block_on(events(&plan));
    }
    if wants("back") {
        runtime.block_on(back(&plan));
    }
    if wants("killed") {
        runtime.block_on(killed(&plan));
    }
}

/// A cluster whose nodes have the table.
struct Fleet {
    cluster: Cluster,
    schema: String,
}

impl Fleet {
    fn new(network: u8) -> Self {
        let mut cluster = Cluster::new(network);
        // The tests have it say more.
        cluster.log = "warn";
        let path = cluster.home().join("instances.sql");
        fs::write(&path, SCHEMA).expect("a file");
        Self { schema: path.to_str().expect("text").to_owned(), cluster }
    }

    /// Starts a node without waiting.
    fn spawn(&self, k: u8) -> Agent {
        self.cluster.spawn(k, &["--schema", &self.schema])
    }

    async fn start(&self, count: u8) -> Vec<Agent> {
        let mut agents = Vec::new();
        for k in 1..=count {
            let agent = self.spawn(k);
            self.cluster.wait_up(&agent).await;
            agents.push(agent);
        }
        self.cluster.wait_joined(&agents.iter().collect::<Vec<_>>()).await;
        agents
    }
}

/// Parameters of a row: some 190 bytes.
fn row(serial: u64, at: u64) -> Json {
    json!([
        format!("host-{:03}", serial % 200),
        format!("instance-{serial:07}"),
        format!("service-{:03}", serial % 300),
        r#"["http","v2","canary","eu-west"]"#,
        r#"{"version":"1.24.3","commit":"4f1c2a9d","owner":"platform-team","tier":"backend"}"#,
        20_000 + at % 10_000,
        format!("10.{}.{}.7", serial / 256 % 256, serial % 256),
        at,
    ])
}

/// Writes rows in one transaction; `false`: the node does not answer.
async fn write(node: &Agent, rows: impl Iterator<Item = Json>) -> bool {
    let statements: Vec<Json> = rows.map(|row| json!([WRITE, row])).collect();
    let request = node.http.post(node.url("/v1/transactions")).json(&statements);
    let Ok(response) = request.send().await else { return false };
    let is_done = response.status().is_success();
    // Read to its end, so that the connection is used again.
    let body = response.text().await;
    assert!(is_done || body.is_err(), "{body:?}");
    is_done && body.is_ok()
}

/// Asks for the one row of a query; `None`: the node does not answer.
async fn ask(node: &Agent, sql: &str) -> Option<Json> {
    let response = node.http.post(node.url("/v1/queries")).json(&sql).send().await.ok()?;
    let body = response.text().await.ok()?;
    let mut lines = body.lines().map_while(|line| serde_json::from_str::<Json>(line).ok());
    lines.find_map(|line| line.pointer("/row/1").cloned())
}

/// Waits until all have the same number of rows, and returns how long that took.
async fn wait_equal(nodes: &[&Agent], count: u64, since: Instant) -> Duration {
    for node in nodes {
        while ask(node, "SELECT count(*) FROM instances").await != Some(json!([count])) {
            assert!(since.elapsed() < PATIENCE, "{} never held {count} rows", node.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    since.elapsed()
}

/// Processor time that a process has used.
fn processor(node: &Agent) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", node.pid())).expect("it runs");
    let fields = stat.rsplit(')').next().expect("a name in brackets").split_whitespace();
    let ticks: Vec<u64> = fields.skip(11).take(2).map(|field| field.parse().unwrap_or(0)).collect();
    // Linux shows hundredths of a second to everybody.
    Duration::from_millis(ticks.iter().sum::<u64>() * 10)
}

/// Bytes that the loopback device has carried.
fn loopback() -> u64 {
    let devices = fs::read_to_string("/proc/net/dev").expect("Linux");
    let line = devices.lines().find_map(|line| line.trim().strip_prefix("lo:")).expect("a device");
    line.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).expect("bytes")
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
    println!("{what}: p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms, of {}", times.len());
}

/// Idle nodes, then writes at one and subscriptions at all others.
async fn events(plan: &Plan) {
    let fleet = Fleet::new(92);
    let agents = fleet.start(plan.nodes).await;
    // What joining left to do.
    tokio::time::sleep(plan.idle / 3).await;
    let used = || agents.iter().map(processor).sum::<Duration>();
    let (before, bytes) = (used(), loopback());
    tokio::time::sleep(plan.idle).await;
    let share = (used() - before).as_secs_f64() / plan.idle.as_secs_f64() / agents.len() as f64;
    let rate = (loopback() - bytes) as f64 / plan.idle.as_secs_f64() / agents.len() as f64;
    let memory = agents.iter().map(|agent| agent.memory_mib("VmRSS:")).max().expect("nodes");
    println!(
        "an idle node of {}: {:.2} % of a core, {memory} MiB at most, {rate:.0} bytes/s",
        agents.len(),
        share * 100.0
    );

    let begun = Instant::now();
    let since = move || u64::try_from(begun.elapsed().as_micros()).expect("not so long");
    for (rate, lasts) in &plan.rates {
        let times = Arc::new(Mutex::new(Vec::new()));
        let writes = rate * lasts.as_secs();
        let mut watching = Vec::new();
        let mut subscriptions = Vec::new();
        for agent in &agents[1..] {
            subscriptions.push(agent.subscribe("SELECT * FROM instances").await);
        }
        for mut changes in subscriptions {
            let times = Arc::clone(&times);
            watching.push(tokio::spawn(async move {
                for _ in 0..writes {
                    let (_, cells) = changes.change().await;
                    let at = cells[7].as_u64().expect("when it was written");
                    let late = since() - at;
                    times.lock().expect("nobody panics").push(Duration::from_micros(late));
                }
            }));
        }
        let bytes = loopback();
        let mut pace = tokio::time::interval(Duration::from_secs(1) / *rate as u32);
        for serial in 0..writes {
            pace.tick().await;
            let (node, row) = (&agents[0], row(serial, since()));
            assert!(write(node, std::iter::once(row)).await, "{} answers", node.name);
        }
        for watch in watching {
            watch.await.expect("it heard all of them");
        }
        let others = agents.len() as u64 - 1;
        // What the writer and those who watch carry over loopback is among it.
        let each = (loopback() - bytes) as f64 / (writes * others) as f64;
        let times = std::mem::take(&mut *times.lock().expect("nobody panics"));
        assert_eq!(times.len() as u64, writes * others);
        show(&format!("event on {others} others, {rate} writes/s"), times);
        println!("  loopback bytes for a write and receiver, the events themselves too: {each:.0}");
    }
}

/// Writes rows of their own at a node until told to stop; returns how many a second.
async fn write_on(node: &Agent, first: u64, stop: Arc<AtomicBool>) -> (u64, f64) {
    let begun = Instant::now();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        assert!(write(node, std::iter::once(row(first + count, count))).await);
        count += 1;
    }
    (count, count as f64 / begun.elapsed().as_secs_f64())
}

/// A node that missed many rows, and an empty one that joins.
async fn back(plan: &Plan) {
    let fleet = Fleet::new(93);
    let agents = fleet.start(3).await;
    let (n1, n2, n3) = (&agents[0], &agents[1], &agents[2]);
    n3.kill();
    for first in (0..plan.missed).step_by(ROWS_AT_ONCE as usize) {
        let rows = (first..plan.missed.min(first + ROWS_AT_ONCE)).map(|serial| row(serial, serial));
        assert!(write(n1, rows).await);
    }
    wait_equal(&[n1, n2], plan.missed, Instant::now()).await;
    let rows = plan.missed as f64;
    let begun = Instant::now();
    let n3 = fleet.spawn(3);
    fleet.cluster.wait_up(&n3).await;
    let took = wait_equal(&[&n3], plan.missed, begun).await.as_secs_f64();
    let peak = n3.memory_mib("VmHWM:");
    println!(
        "back after missing {rows} rows: {took:.2} s, {:.0} rows/s, peak {peak} MiB",
        rows / took
    );

    let begun = Instant::now();
    let n4 = fleet.spawn(4);
    fleet.cluster.wait_up(&n4).await;
    let took = wait_equal(&[&n4], plan.missed, begun).await.as_secs_f64();
    println!("an empty node joins: {took:.2} s, peak {} MiB", n4.memory_mib("VmHWM:"));

    // How fast one writes alone, and while a node comes back.
    let mut n4 = n4;
    let mut next = plan.missed;
    let mut ratios = Vec::new();
    for _ in 0..3 {
        n4.kill();
        let first = next;
        for first in (first..first + plan.missed).step_by(ROWS_AT_ONCE as usize) {
            assert!(write(n2, (first..first + ROWS_AT_ONCE).map(|serial| row(serial, 1))).await);
        }
        next += plan.missed.div_ceil(ROWS_AT_ONCE) * ROWS_AT_ONCE;
        wait_equal(&[n1, n2, &n3], next, Instant::now()).await;
        let stop = Arc::new(AtomicBool::new(false));
        let alone = write_on(n1, next, Arc::clone(&stop));
        let (alone, ()) = tokio::join!(alone, async {
            tokio::time::sleep(plan.idle / 10).await;
            stop.store(true, Ordering::Relaxed);
        });
        next += alone.0;
        n4 = fleet.spawn(4);
        fleet.cluster.wait_up(&n4).await;
        let stop = Arc::new(AtomicBool::new(false));
        let missed = format!("SELECT count(*) FROM instances WHERE id < 'instance-{next:07}'");
        let (beside, ()) = tokio::join!(write_on(n1, next, Arc::clone(&stop)), async {
            while ask(&n4, &missed).await != Some(json!([next])) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            stop.store(true, Ordering::Relaxed);
        });
        next += beside.0;
        ratios.push(beside.1 / alone.1);
        println!(
            "one client's writes at another node: {:.0}/s alone, {:.0}/s while a node catches up with {} rows",
            alone.1, beside.1, plan.missed
        );
    }
    ratios.sort_by(f64::total_cmp);
    println!("  ratio, of three: {:.2}", ratios[1]);
}

/// A writing node that is killed and started again.
async fn killed(plan: &Plan) {
    let fleet = Fleet::new(94);
    let mut agents = fleet.start(3).await;
    let mut next = 0;
    let mut times = Vec::new();
    for _ in 0..plan.kills {
        let victim = agents.remove(0);
        // It is killed in the midst of a write, acknowledged or not.
        let wrote = async {
            let mut acknowledged = Vec::new();
            while write(&victim, std::iter::once(row(next, 0))).await {
                acknowledged.push(next);
                next += 1;
            }
            next += 1;
            acknowledged
        };
        let kill = async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            victim.kill();
        };
        let (acknowledged, ()) = tokio::join!(wrote, kill);
        let k = victim.name[1..].parse().expect("a number");
        let begun = Instant::now();
        let again = fleet.spawn(k);
        agents.push(again);
        let first = acknowledged.first().copied().unwrap_or(next);
        let all =
            format!("SELECT count(*), max(id) FROM instances WHERE id >= 'instance-{first:07}'");
        let took = loop {
            let mut answers = Vec::new();
            for agent in &agents {
                answers.push(ask(agent, &all).await);
            }
            let is_whole = |answer: &Option<Json>| {
                let count = answer.as_ref().and_then(|answer| answer[0].as_u64());
                count.is_some_and(|count| count >= acknowledged.len() as u64)
            };
            if answers.iter().all(|answer| is_whole(answer) && *answer == answers[0]) {
                break begun.elapsed();
            }
            assert!(begun.elapsed() < PATIENCE, "{answers:?} of {}", acknowledged.len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        times.push(took);
    }
    show("kill -9 of a writing node of three, from its start to all equal", times);
}
