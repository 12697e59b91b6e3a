//! Nodes without a database, which begin with that of a member.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::support::{Agent, Cluster, TRIBUNE, wait_for};

const BEGINS: &str = "This node begins with a snapshot of a member";
const EMPTY: &str = "This node starts empty";

/// Writes rows of 64 KiB, so many MiB of them.
async fn fill(node: &Agent, mib: usize) {
    for nth in 0..mib.div_ceil(4) {
        let sql = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 64)
             INSERT INTO kv (key, value) SELECT '{nth}/' || i, randomblob(65000) FROM n"
        );
        let (status, text) = node.send("POST", "/v1/transactions", &json!([sql]).to_string()).await;
        assert_eq!(status, 200, "{text}");
    }
}

async fn count(node: &Agent) -> Option<u64> {
    let query = json!("SELECT count(*) FROM kv").to_string();
    let (_, text) = node.send("POST", "/v1/queries", &query).await;
    text.lines().find_map(|line| {
        let line: Json = serde_json::from_str(line).ok()?;
        line["row"][1][0].as_u64()
    })
}

async fn wait_count(node: &Agent, wanted: u64) {
    let what = format!("{} has {wanted} rows", node.name);
    wait_for(&what, async || (count(node).await? == wanted).then_some(())).await;
}

/// What the doctor says of the heads and of the fingerprint.
fn whole(cluster: &Cluster, node: &Agent) -> (Json, Json) {
    let data = node.data_dir(cluster);
    let output = Command::new(TRIBUNE)
        .args(["doctor", "--json", "--data-dir"])
        .arg(data)
        .output()
        .expect("tribune runs");
    let json: Json = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["healthy"], true, "{json}");
    (json["heads"].clone(), json["fingerprint"].clone())
}

async fn wait_equal(cluster: &Cluster, nodes: &[&Agent]) {
    wait_for("all nodes hold the same", async || {
        let all: Vec<_> = nodes.iter().map(|node| whole(cluster, node)).collect();
        all.iter().all(|other| *other == all[0]).then_some(())
    })
    .await;
}

async fn metric(node: &Agent, name: &str) -> f64 {
    let text = node.http.get(node.url("/metrics")).send().await.expect("an answer");
    let text = text.text().await.expect("a body");
    let line = text.lines().find(|line| line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().expect("a number").parse().expect("a number")
}

fn partial(cluster: &Cluster, k: u8) -> PathBuf {
    cluster.home().join(format!("n{k}.data/.tribune.db.partial"))
}

/// Waits until a node has received a part of a snapshot, and not all of it.
async fn wait_middle(cluster: &Cluster, k: u8, bytes: u64) {
    let path = partial(cluster, k);
    let begun = Instant::now();
    loop {
        let length = fs::metadata(&path).map_or(0, |found| found.len());
        if length > bytes {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(40), "no snapshot is received");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_database_begins_with_that_of_a_member() {
    let cluster = Cluster::new(91);
    let (n1, n2) = (cluster.start(1).await, cluster.start(2).await);
    cluster.wait_joined(&[&n1, &n2]).await;
    assert!(n2.whole_log().contains("its database is small"), "{}", n2.log());
    n1.register("web", "web-1", 80).await;
    n2.register("web", "web-2", 80).await;
    fill(&n1, 12).await;
    wait_count(&n2, 192).await;

    let n3 = cluster.start(3).await;
    assert!(n3.whole_log().contains(BEGINS), "{}", n3.log());
    assert_eq!(count(&n3).await, Some(192), "they were there before it answered");
    assert_eq!(metric(&n1, "tribune_net_snapshots_total{outcome=\"sent\"}").await, 1.0);
    assert!(metric(&n1, "tribune_net_snapshots_sent_bytes_total").await > 12e6);
    cluster.wait_joined(&[&n1, &n2, &n3]).await;
    wait_equal(&cluster, &[&n1, &n2, &n3]).await;

    // What it writes reaches all, the one that the snapshot is from too; and theirs reaches it.
    n3.register("web", "web-3", 80).await;
    for (node, key) in [(&n1, "from n1"), (&n3, "from n3")] {
        let sql = format!("INSERT INTO kv (key) VALUES ('{key}')");
        node.send("POST", "/v1/transactions", &json!([sql]).to_string()).await;
    }
    for node in [&n1, &n2, &n3] {
        wait_count(node, 194).await;
        node.wait_passing("web", 3).await;
    }
    wait_equal(&cluster, &[&n1, &n2, &n3]).await;

    // A restart is a restart; and whoever does not want one gets the rows one by one.
    let begun = n3.whole_log().matches(BEGINS).count();
    assert_eq!(n3.terminate().await, Some(0), "{}", n3.log());
    let n3 = cluster.start(3).await;
    assert_eq!(n3.whole_log().matches(BEGINS).count(), begun);
    let n4 = cluster.start_with(4, &["--snapshot", "false"]).await;
    wait_count(&n4, 194).await;
    assert!(!n4.whole_log().contains("snapshot"), "{}", n4.log());
    wait_equal(&cluster, &[&n1, &n2, &n3, &n4]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_dies_in_the_middle_of_it_is_not_the_last_one() {
    let cluster = Cluster::new(92);
    let (n1, n2) = (cluster.start(1).await, cluster.start(2).await);
    cluster.wait_joined(&[&n1, &n2]).await;
    fill(&n1, 96).await;
    wait_count(&n2, 1_536).await;

    // The node that receives is killed, and starts again.
    let n3 = cluster.spawn(3, &[]);
    wait_middle(&cluster, 3, 1 << 20).await;
    n3.kill();
    assert!(!cluster.home().join("n3.data/tribune.db").exists(), "it was to be the middle");
    assert!(partial(&cluster, 3).exists());
    drop(n3);

    // The node that sends is killed; another one, which was slower to answer, is there.
    n2.signal("STOP");
    let n2_address = n2.ip.to_string();
    let n3 = cluster.spawn(3, &["--join", &n2_address]);
    wait_for("what was left is gone", async || (!partial(&cluster, 3).exists()).then_some(()))
        .await;
    wait_middle(&cluster, 3, 1 << 20).await;
    n1.kill();
    n2.signal("CONT");
    assert!(!cluster.home().join("n3.data/tribune.db").exists(), "it was to be the middle");
    wait_for("n3 answers", async || n3.try_get("/v1/agent/self").await).await;
    let log = n3.whole_log();
    assert!(log.contains("it does not go on") && log.contains(BEGINS), "{log}");
    assert!(!partial(&cluster, 3).exists());
    assert_eq!(count(&n3).await, Some(1_536));
    n3.register("web", "web", 80).await;
    n2.wait_passing("web", 1).await;
    wait_equal(&cluster, &[&n2, &n3]).await;
}

#[tokio::test]
async fn the_first_node_of_a_cluster_starts_although_nobody_is_there() {
    let cluster = Cluster::new(93);
    let begun = Instant::now();
    // Nobody listens at 127.93.0.1, nor at the other; the third is the node itself.
    let others = ["--join", "127.93.0.7", "--join", "127.93.0.2", "--join", "nobody.invalid"];
    let n2 = cluster.start_with(2, &others).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let log = n2.whole_log();
    assert!(log.contains("nobody answers at 127.93.0.7") && log.contains(EMPTY), "{log}");
    assert!(log.contains("nobody answers at 127.93.0.1"), "{log}");
    assert!(!log.contains("nobody answers at 127.93.0.2"), "{log}");
    n2.register("web", "web", 80).await;
    n2.wait_passing("web", 1).await;

    // Asked to stop while it looks for a snapshot, a node stops.
    let n3 = cluster.spawn(3, &["--join", "127.93.0.8"]);
    wait_for("it has begun", async || cluster.home().join("n3.data").exists().then_some(())).await;
    assert_eq!(n3.terminate().await, Some(0), "{}", n3.log());
}

#[tokio::test]
async fn a_snapshot_is_got_as_a_file_by_whoever_has_a_certificate() {
    let cluster = Cluster::new(94);
    let (n1, n2) = (cluster.start(1).await, cluster.start(2).await);
    cluster.wait_joined(&[&n1, &n2]).await;
    n1.register("web", "web", 80).await;
    n2.wait_passing("web", 1).await;
    let run = |args: &[&str]| -> Output {
        Command::new(TRIBUNE)
            .current_dir(cluster.home())
            .args(args)
            .env_remove("TRIBUNE_LOG")
            .output()
            .expect("tribune runs")
    };
    let from = n1.ip.to_string();
    let as_n2 = ["--ca", "ca.pem", "--cert", "n2.pem", "--key", "n2-key.pem"];
    let got = |file: &str, further: &[&str]| {
        run(&[&["snapshot", file, "--from", &from][..], &as_n2, further].concat())
    };
    // Under the certificate of a node that runs, which does not notice.
    let output = got("copy", &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("of node n1"), "{output:?}");
    assert!(said.contains("--new-node"), "{said}");
    let output = got("copy", &["--force", "--json"]);
    let json: Json = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&json["node"], &json["from"]), (&"n1".into(), &format!("{from}:7401").into()));
    cluster.wait_joined(&[&n1, &n2]).await;
    assert!(!n1.whole_log().contains("uses this node's certificate"), "{}", n1.log());
    assert!(!n2.whole_log().contains("started anew"), "{}", n2.log());

    let strangers = Cluster::new(94);
    let stranger = strangers.spawn(7, &[]);
    drop(stranger);
    let theirs = |name: &str| strangers.home().join(name).to_str().expect("text").to_owned();
    for (output, code, part) in [
        (got("copy", &[]), 2, "--force"),
        (got("n1.data/tribune.db", &["--force"]), 2, "a file of the node's database"),
        (got("nowhere/copy", &[]), 2, "nowhere/copy"),
        (run(&["snapshot", "x", "--from", &from]), 2, "--config"),
        (run(&["snapshot", "x", "--from", &from, "--ca", "ca.pem"]), 2, "missing: cert, key"),
        (
            run(&[&["snapshot", "x", "--from", "127.94.0.9"][..], &as_n2].concat()),
            1,
            "nobody answers",
        ),
        (
            run(&[
                "snapshot",
                "x",
                "--from",
                &from,
                "--ca",
                &theirs("ca.pem"),
                "--cert",
                &theirs("n7.pem"),
                "--key",
                &theirs("n7-key.pem"),
            ]),
            1,
            "not signed by",
        ),
    ] {
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.starts_with("tribune: ") && error.contains(part), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert!(!cluster.home().join("x").exists());

    // A node that is stopped begins anew with it.
    assert_eq!(n2.terminate().await, Some(0), "{}", n2.log());
    fs::remove_dir_all(cluster.home().join("n2.data")).expect("its disk");
    let restore = ["restore", "copy", "--new-node", "--data-dir", "n2.data", "--cert", "n2.pem"];
    let output = run(&restore);
    assert!(output.status.success(), "{output:?}");
    cluster.wait_second().await;
    let n2 = cluster.start(2).await;
    n2.register("web", "web-2", 81).await;
    n1.wait_passing("web", 2).await;
    wait_equal(&cluster, &[&n1, &n2]).await;
}

/// How many rows the figures are for.
const ROWS: usize = 1_000_000;

/// Prints how long a node without a database takes to hold a million rows, with a snapshot and
/// without: `cargo test --release --test it -- --ignored --nocapture a_join_of_a_million_rows`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "makes a million rows and measures"]
#[allow(clippy::print_stderr, reason = "whoever runs it wants to see the figures")]
async fn a_join_of_a_million_rows_with_a_snapshot_and_without() {
    use tribune::store::{OpenConfig, Params, Statement, Store};
    use tribune::types::Wall;

    let cluster = Cluster::new(95);
    assert_eq!(cluster.start(1).await.terminate().await, Some(0));
    let data_dir = cluster.home().join("n1.data");
    let config = OpenConfig { data_dir, name: "n1".to_owned(), ..OpenConfig::default() };
    let mut store = Store::open(&config).expect("a store");
    for first in (0..ROWS).step_by(10_000) {
        let sql = format!(
            "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n LIMIT 10000)
             INSERT INTO kv (key, value) SELECT 'service/' || i, randomblob(60) FROM n"
        );
        let mut group = store.group(Wall(1_700_000_000_000_000));
        group.sql(&[Statement { sql, params: Params::None }], None).expect("it works");
        group.commit().expect("it is written");
        store.maintain().expect("a checkpoint");
    }
    store.checkpoint().expect("a checkpoint");
    drop(store);
    let n1 = cluster.start(1).await;
    let mut held = vec![n1];
    for (k, snapshot) in [(2, "true"), (3, "false"), (4, "true")] {
        let begun = Instant::now();
        let node = cluster.spawn(k, &["--snapshot", snapshot]);
        let all = Some(ROWS as u64);
        let mut answers = None;
        loop {
            if node.try_get("/v1/agent/self").await.is_some() {
                answers = answers.or_else(|| Some(begun.elapsed()));
                if count(&node).await == all {
                    break;
                }
            }
            assert!(begun.elapsed() < Duration::from_secs(600), "{}", node.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let took = begun.elapsed();
        let log = node.whole_log();
        let told = log.lines().find(|line| line.contains(BEGINS)).unwrap_or("");
        eprintln!("snapshot {snapshot}: answers after {answers:?}, has all after {took:?}\n{told}");
        held.push(node);
    }
    let bytes = fs::metadata(cluster.home().join("n1.data/tribune.db")).expect("a file").len();
    eprintln!("{ROWS} rows, {} MiB; the node that sends: {}", bytes >> 20, held[0].log());
    wait_equal(&cluster, &held.iter().collect::<Vec<_>>()).await;
}
