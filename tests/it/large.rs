//! Transactions of more rows than fit into memory or into one message.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::support::{Agent, Cluster, TRIBUNE};

/// How long any step may take, in a debug build on a busy machine.
const WITHIN: Duration = Duration::from_secs(600);

/// How many rows the transactions have: `TRIBUNE_LARGE_ROWS`, or fewer for an ordinary run.
fn row_count() -> u64 {
    std::env::var("TRIBUNE_LARGE_ROWS").map_or(200_000, |text| text.parse().expect("a number"))
}

async fn one_row(node: &Agent, sql: &str) -> Json {
    let (status, body) = node.send("POST", "/v1/queries", &json!(sql).to_string()).await;
    assert_eq!(status, 200, "{body}");
    let lines = body.lines().map(|line| serde_json::from_str::<Json>(line).expect("JSON"));
    lines.filter_map(|line| line.pointer("/row/1").cloned()).next().expect("a row")
}

/// Runs a long transaction, and returns how long it took.
async fn transact(node: &Agent, sql: &str) -> Duration {
    let begun = Instant::now();
    let (status, body) =
        node.send("POST", "/v1/transactions?long=true", &json!([sql]).to_string()).await;
    assert_eq!(status, 200, "{body}");
    begun.elapsed()
}

/// The most memory that a process has had, in MiB.
fn peak_mib(node: &Agent) -> u64 {
    node.memory_mib("VmHWM:")
}

/// Asks again and again until the answer is the wanted one; before that it must be the former.
async fn wait_whole(node: &Agent, sql: &str, before: &Json, after: &Json) -> Duration {
    let begun = Instant::now();
    loop {
        let seen = one_row(node, sql).await;
        if seen == *after {
            return begun.elapsed();
        }
        assert_eq!(seen, *before, "neither as it was nor as it is to be");
        assert!(begun.elapsed() < WITHIN, "waited in vain for {after}");
        // A look at a million rows takes a tenth of a second of what is measured.
        let pause = if row_count() > 500_000 { 500 } else { 5 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// Writes small things until told to stop. Returns how long the slowest took.
fn keep_writing(node: &Arc<Agent>, is_over: &Arc<AtomicBool>) -> tokio::task::JoinHandle<Duration> {
    let (node, is_over) = (Arc::clone(node), Arc::clone(is_over));
    tokio::spawn(async move {
        let mut slowest = Duration::ZERO;
        while !is_over.load(Ordering::SeqCst) {
            let begun = Instant::now();
            node.register("web", "web-1", 80).await;
            slowest = slowest.max(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        slowest
    })
}

fn doctor(cluster: &Cluster, k: u8) -> Json {
    let output = Command::new(TRIBUNE)
        .current_dir(cluster.home())
        .args(["doctor", "--json", "--data-dir", &format!("n{k}.data")])
        .output()
        .expect("tribune runs");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stderr, reason = "whoever sets the variable wants to see the figures")]
async fn a_large_transaction_is_seen_whole_or_not_at_all() {
    let rows = row_count();
    let cluster = Cluster::new(91);
    let schema = cluster.home().join("big.sql");
    let sql = "CREATE TABLE big (id INTEGER NOT NULL PRIMARY KEY, a INTEGER, b TEXT);";
    fs::write(&schema, sql).expect("a file");
    let schema = schema.to_str().expect("text");
    let n1 = Arc::new(cluster.start_with(1, &["--schema", schema]).await);
    let n2 = Arc::new(cluster.start_with(2, &["--schema", schema]).await);
    cluster.wait_joined(&[&n1, &n2]).await;
    eprintln!("before: n1 {} MiB, n2 {} MiB at most", peak_mib(&n1), peak_mib(&n2));
    let mut changes = n2.subscribe("SELECT count(*), sum(a) FROM big").await;

    let fill = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {rows})
         INSERT INTO big SELECT i, 0, 'row ' || i FROM n"
    );
    // Of an ordinary run just as many as make a large transaction.
    let some = if std::env::var_os("TRIBUNE_LARGE_ROWS").is_some() { rows } else { 60_000 };
    let update = format!("UPDATE big SET a = 1 WHERE id <= {some}");
    let delete = format!("DELETE FROM big WHERE id > {}", rows - some);
    let left = some.min(rows - some);
    let steps = [
        ("insert", fill.as_str(), json!([0, null]), json!([rows, 0])),
        ("update", update.as_str(), json!([rows, 0]), json!([rows, some])),
        ("delete", delete.as_str(), json!([rows, some]), json!([rows - some, left])),
    ];
    for (what, sql, before, mut after) in steps {
        if after[0] == 0 {
            after[1] = Json::Null;
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let writing = keep_writing(&n2, &is_over);
        let took = transact(&n1, sql).await;
        let look = "SELECT count(*), sum(a) FROM big";
        assert_eq!(one_row(&n1, look).await, after);
        let seen = wait_whole(&n2, look, &before, &after).await;
        is_over.store(true, Ordering::SeqCst);
        let slowest = writing.await.expect("it writes on");
        eprintln!(
            "{what} of {rows}: {took:.1?} here, {seen:.1?} more until there; a write there waited \
             {slowest:.1?}; at most {} MiB here, {} MiB there",
            peak_mib(&n1),
            peak_mib(&n2)
        );
        // Who follows a query hears of it.
        changes.expect_until(if what == "insert" { "insert" } else { "delete" }).await;
    }
    n1.terminate().await;
    n2.terminate().await;
    let (first, second) = (doctor(&cluster, 1), doctor(&cluster, 2));
    assert_eq!(first["fingerprint"], second["fingerprint"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_while_it_pulls_begins_again() {
    let cluster = Cluster::new(92);
    let schema = cluster.home().join("big.sql");
    fs::write(&schema, "CREATE TABLE big (id INTEGER NOT NULL PRIMARY KEY, a TEXT);")
        .expect("a file");
    let schema = schema.to_str().expect("text");
    let n1 = cluster.start_with(1, &["--schema", schema]).await;
    let n2 = cluster.start_with(2, &["--schema", schema]).await;
    cluster.wait_joined(&[&n1, &n2]).await;
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000)
        INSERT INTO big SELECT i, hex(randomblob(60)) FROM n";
    transact(&n1, fill).await;
    let database = cluster.home().join("n2.data/tribune.db-wal");
    let begun = Instant::now();
    // Its log grows by what it stages.
    while fs::metadata(&database).map_or(0, |file| file.len()) < 2 << 20 {
        assert!(begun.elapsed() < WITHIN, "nothing is staged");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    n2.kill();
    drop(n2);
    let n2 = cluster.start_with(2, &["--schema", schema]).await;
    let look = "SELECT count(*) FROM big";
    wait_whole(&n2, look, &json!([0]), &json!([100_000])).await;
    n1.terminate().await;
    n2.terminate().await;
    assert_eq!(doctor(&cluster, 1)["fingerprint"], doctor(&cluster, 2)["fingerprint"]);
}
