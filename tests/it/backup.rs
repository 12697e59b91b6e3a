//! Backup, restore and doctor, as whoever is on call uses them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Cluster, TRIBUNE, tribune, wait_for};

/// Runs `tribune` on the files of node `k`.
fn on_files(cluster: &Cluster, k: u8, args: &[&str]) -> Output {
    Command::new(TRIBUNE)
        .current_dir(cluster.home())
        .args(args)
        .args(["--data-dir", &format!("n{k}.data")])
        .env_remove("TRIBUNE_LOG")
        .output()
        .expect("tribune runs")
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// Expects exit code 2 and one sentence with this part.
fn refused(output: &Output, part: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.starts_with("tribune: ") && error.contains(part), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_goes_on_from_a_backup_and_everybody_hears_of_it() {
    let cluster = Cluster::new(81);
    let (n1, n2) = (Arc::new(cluster.start(1).await), cluster.start(2).await);
    cluster.wait_joined(&[&n1, &n2]).await;
    let insert = |key: &str| format!("[\"INSERT INTO kv (key) VALUES ('{key}')\"]");
    n1.send("POST", "/v1/transactions", &insert("before")).await;

    // Registrations go on while the backup is made; those answered before it began are in it.
    let (is_over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let registering = tokio::spawn({
        let (n1, is_over, count) = (Arc::clone(&n1), Arc::clone(&is_over), Arc::clone(&count));
        async move {
            for i in 0.. {
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
                n1.register("early", &format!("early-{i}"), 1).await;
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    wait_for("some registrations", async || (count.load(Ordering::SeqCst) >= 50).then_some(()))
        .await;
    let surely = count.load(Ordering::SeqCst);
    let said = done(&on_files(&cluster, 1, &["backup", "n1.backup"]));
    assert!(said.contains("n1.backup") && said.contains("of node n1"), "{said}");
    is_over.store(true, Ordering::SeqCst);
    registering.await.expect("it ends");
    let file = cluster.home().join("n1.backup");
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);

    // What is written after it: the shared row comes back from the other node, the registration
    // does only until it is withdrawn.
    n1.send("POST", "/v1/transactions", &insert("after")).await;
    n1.register("late", "late", 2).await;
    wait_for("n2 has all of it", async || {
        let (_, rows) = n2.send("POST", "/v1/queries", "\"SELECT key FROM kv\"").await;
        let has_late = n2.try_get("/v1/health/service/late").await?.as_array()?.len() == 1;
        (rows.contains("after") && has_late).then_some(())
    })
    .await;
    refused(&on_files(&cluster, 1, &["restore", "n1.backup"]), "stop it");
    assert_eq!(n1.terminate().await, Some(0), "{}", n1.log());

    let said = done(&on_files(&cluster, 1, &["restore", "n1.backup", "--cert", "n1.pem"]));
    assert!(said.contains("before-restore-"), "{said}");
    let n1 = cluster.start(1).await;
    let held = n1.get("/v1/agent/services").await;
    for i in 0..surely {
        assert!(held.get(format!("early-{i}")).is_some(), "early-{i} was registered before");
    }
    n1.register("new", "new", 3).await;
    n1.send("POST", "/v1/transactions", &insert("new")).await;
    n2.wait_passing("new", 1).await;
    for node in [&n1, &n2] {
        wait_for(&format!("{} has all keys", node.name), async || {
            let (_, rows) = node.send("POST", "/v1/queries", "\"SELECT key FROM kv\"").await;
            ["before", "after", "new"].iter().all(|key| rows.contains(key)).then_some(())
        })
        .await;
        wait_for(&format!("{} has the early registrations", node.name), async || {
            let early = node.try_get("/v1/health/service/early?passing").await?;
            (early.as_array()?.len() >= surely).then_some(())
        })
        .await;
    }

    // Both are in order, and equal wherever they hold the same.
    done(&on_files(&cluster, 2, &["backup", "n2.backup"]));
    let said = done(&on_files(&cluster, 1, &["doctor", "--compare", "n2.backup", "--full"]));
    assert!(said.contains("Healthy.") && said.contains("node n2"), "{said}");
    let said = done(&on_files(&cluster, 2, &["doctor", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((&json["healthy"], &json["node"]), (&true.into(), &"n2".into()));
}

#[tokio::test]
async fn a_restore_that_cannot_work_changes_nothing() {
    let cluster = Cluster::new(82);
    let (n1, n2) = (cluster.start(1).await, cluster.start(2).await);
    n1.register("web", "web", 80).await;
    let home = cluster.home();
    done(&on_files(&cluster, 1, &["backup", "good"]));
    done(&on_files(&cluster, 2, &["backup", "other"]));
    let bytes = fs::read(home.join("good")).expect("a backup");
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2 / 4096 * 4096;
    damaged[middle..middle + 8_192].fill(0x55);
    fs::write(home.join("damaged"), damaged).expect("a file");
    fs::write(home.join("letter"), "dear aunt, this is no database at all. ".repeat(99))
        .expect("a file");
    let foreign = rusqlite::Connection::open(home.join("foreign")).expect("a database");
    foreign.execute_batch("CREATE TABLE t (a)").expect("a table");
    drop(foreign);
    fs::write(home.join("newer"), &bytes).expect("a file");
    let newer = rusqlite::Connection::open(home.join("newer")).expect("a database");
    newer.pragma_update(None, "user_version", 9_999).expect("a pragma");
    drop(newer);

    refused(&on_files(&cluster, 1, &["restore", "good"]), "a node runs on n1.data");
    assert_eq!(n1.terminate().await, Some(0), "{}", n1.log());
    let data = home.join("n1.data");
    let listed = |directory: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(directory).expect("it").map(|entry| entry.expect("it").path()).collect();
        names.sort();
        names
    };
    let before = (listed(&data), fs::read(data.join("tribune.db")).expect("a database"));
    for (file, part) in [
        ("damaged", "is damaged"),
        ("letter", "not an SQLite database"),
        ("foreign", "another program"),
        ("newer", "newer tribune"),
        ("none", "there is no file none"),
        ("n1.data/tribune.db", "is the database of this data directory"),
        ("other", "--new-node"),
    ] {
        refused(&on_files(&cluster, 1, &["restore", file]), part);
        let after = (listed(&data), fs::read(data.join("tribune.db")).expect("a database"));
        assert!(before == after, "{file}: something was changed");
    }
    // The certificate decides where there is no database yet.
    fs::rename(&data, home.join("gone")).expect("a directory");
    refused(&on_files(&cluster, 1, &["restore", "other", "--cert", "n1.pem"]), "--new-node");
    assert!(!data.exists(), "nothing was made");

    // Another node takes the data over: it knows of everything, and owns nothing of it.
    let args = ["restore", "other", "--cert", "n1.pem", "--new-node"];
    assert!(done(&on_files(&cluster, 1, &args)).contains("stay the other node's"));
    let n1 = cluster.start(1).await;
    cluster.wait_joined(&[&n1, &n2]).await;
    n1.register("web", "web", 81).await;
    n2.wait_dig("web.internal SRV", &["1 1 81 n1.node.dc1.internal."]).await;
}

#[tokio::test]
async fn a_backup_is_whole_or_not_there() {
    let cluster = Cluster::new(83);
    let n1 = cluster.start(1).await;
    n1.register("web", "web", 80).await;
    let home = cluster.home();
    let listed = || fs::read_dir(home).expect("it").count();
    done(&on_files(&cluster, 1, &["backup", "copy"]));
    let before = listed();
    refused(&on_files(&cluster, 1, &["backup", "copy"]), "--force");
    let json = done(&on_files(&cluster, 1, &["backup", "copy", "--force", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["node"], "n1");
    refused(
        &on_files(&cluster, 1, &["backup", "n1.data/tribune.db", "--force"]),
        "the node's database",
    );
    refused(&on_files(&cluster, 1, &["backup", "nowhere/copy"]), "nowhere/copy");
    refused(&on_files(&cluster, 9, &["backup", "other"]), "there is no database in n9.data");
    // Files of at most 64 KiB: writing fails in the middle.
    let script = "ulimit -f 64; trap '' XFSZ; exec \"$0\" backup other --data-dir n1.data";
    let output = Command::new("bash")
        .current_dir(home)
        .args(["-c", script, TRIBUNE])
        .output()
        .expect("bash runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("other") && error.contains("nothing is left"), "{error}");
    assert_eq!(listed(), before, "no file is left");

    // A stopped node can be backed up, and looked at, like a running one.
    let whole = |args: &[&str]| {
        let json = done(&on_files(&cluster, 1, args));
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        (json["fingerprint"].clone(), json["heads"].clone())
    };
    assert_eq!(n1.terminate().await, Some(0), "{}", n1.log());
    let held = whole(&["doctor", "--json"]);
    done(&on_files(&cluster, 1, &["backup", "stopped"]));
    let file = home.join("stopped").to_str().expect("text").to_owned();
    let json = done(&tribune(&["doctor", "--file", &file, "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((json["fingerprint"].clone(), json["heads"].clone()), held);
    // A look is no life: the node goes on where it was, also when it was killed.
    let n1 = cluster.start(1).await;
    n1.register("web", "web", 81).await;
    n1.kill();
    done(&on_files(&cluster, 1, &["doctor"]));
    done(&on_files(&cluster, 1, &["backup", "killed"]));
    let n1 = cluster.start(1).await;
    assert!(!n1.whole_log().contains("new epoch"), "{}", n1.log());
}

#[tokio::test]
async fn a_doctor_finds_what_another_program_did() {
    let cluster = Cluster::new(84);
    let n1 = cluster.start(1).await;
    n1.send("POST", "/v1/transactions", "[\"INSERT INTO kv (key) VALUES ('mine')\"]").await;
    done(&on_files(&cluster, 1, &["doctor"]));
    let shell = rusqlite::Connection::open(cluster.home().join("n1.data/tribune.db")).expect("it");
    shell
        .execute_batch(
            "DROP TRIGGER __tribune_guard_insert_kv; INSERT INTO kv (key) VALUES ('theirs')",
        )
        .expect("a foreign write");
    let output = on_files(&cluster, 1, &["doctor"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("1 row of kv was written by another program"), "{said}");
    assert!(said.contains("'theirs'") && !said.contains("'mine'"), "{said}");
    assert!(said.contains("tribune exec"), "{said}");
    refused(&on_files(&cluster, 7, &["doctor"]), "there is no database in n7.data");
    let file = cluster.home().join("none");
    refused(&tribune(&["doctor", "--file", file.to_str().expect("text")]), "there is no file");
}

/// A process that ends with the test, as `kill -9` ends it.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_node_that_keeps_to_itself_comes_back_from_one_file() {
    let cluster = Cluster::new(85);
    let ip = cluster.address(1);
    let start = || {
        let log = fs::File::options().create(true).append(true).open(cluster.home().join("log"));
        Command::new(TRIBUNE)
            .current_dir(cluster.home())
            .args(["agent", "--data-dir", "n1.data", "--node", "alone"])
            .args(["--http", &format!("{ip}:8500"), "--dns", &format!("{ip}:8600")])
            .args(["--gossip", &format!("{ip}:7401")])
            .stderr(log.expect("a log"))
            .spawn()
            .map(Killed)
            .expect("tribune starts")
    };
    let http = crate::support::client();
    let url = format!("http://{ip}:8500/v1/agent/service/register");
    let names = format!("http://{ip}:8500/v1/agent/services");
    let process = start();
    wait_for("a registration", async || {
        let body = r#"{"ID":"web","Name":"web","Port":80}"#;
        http.put(&url).body(body).send().await.ok()?.status().is_success().then_some(())
    })
    .await;
    done(&on_files(&cluster, 1, &["backup", "copy"]));
    drop(process);
    fs::remove_dir_all(cluster.home().join("n1.data")).expect("its disk");
    done(&on_files(&cluster, 1, &["restore", "copy"]));
    let process = start();
    let held = wait_for("the node answers", async || {
        http.get(&names).send().await.ok()?.text().await.ok()
    })
    .await;
    drop(process);
    assert!(held.contains("web"), "{held}");
}

/// How many rows the figures are for, and how many commits a second go on beside the backup.
const ROWS: usize = 1_000_000;
const COMMITS_A_SECOND: u64 = 500;

/// Prints what a backup beside steady writes takes, and what the writes feel of it:
/// `cargo test --test it -- --ignored --nocapture a_backup_of_a_million_rows`.
#[test]
#[ignore = "makes a million rows and measures"]
#[allow(clippy::print_stderr, reason = "whoever runs it wants to see the figures")]
fn a_backup_of_a_million_rows_beside_steady_writes() {
    use tribune::store::backup::{Backup, backup};
    use tribune::store::copy::Watch;
    use tribune::store::doctor::{Request, Subject, examine};
    use tribune::store::{OpenConfig, Params, Statement, Store};
    use tribune::types::Wall;

    let home = tempfile::tempdir().expect("a directory");
    let data_dir = home.path().join("data");
    let config = OpenConfig { data_dir: data_dir.clone(), ..OpenConfig::default() };
    let mut store = Store::open(&config).expect("a store");
    let run = |store: &mut Store, sql: String| {
        let statement = Statement { sql, params: Params::None };
        let mut group = store.group(Wall(1_700_000_000_000_000));
        group.sql(&[statement], None).expect("it works");
        group.commit().expect("it is written");
        store.maintain().expect("a checkpoint");
    };
    for first in (0..ROWS).step_by(10_000) {
        run(
            &mut store,
            format!(
                "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n LIMIT 10000)
                 INSERT INTO kv (key, value) SELECT 'service/' || i, randomblob(100) FROM n"
            ),
        );
    }
    store.checkpoint().expect("a checkpoint");

    let is_over = Arc::new(AtomicBool::new(false));
    let phase = Arc::new(AtomicUsize::new(0));
    let writing = std::thread::spawn({
        let (is_over, phase) = (Arc::clone(&is_over), Arc::clone(&phase));
        move || {
            let mut took: [Vec<Duration>; 3] = Default::default();
            let begun = Instant::now();
            for nth in 0_u64.. {
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
                let due = Duration::from_millis(1_000 * nth / COMMITS_A_SECOND);
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
                let at = Instant::now();
                let key = nth * 7_919 % ROWS as u64;
                let sql = format!("UPDATE kv SET flags = {nth} WHERE key = 'service/{key}'");
                run(&mut store, sql);
                took[phase.load(Ordering::SeqCst)].push(at.elapsed());
            }
            (store, took)
        }
    });
    std::thread::sleep(Duration::from_secs(4));
    phase.store(1, Ordering::SeqCst);
    let target = home.path().join("copy");
    let request = Backup { data_dir: data_dir.clone(), target: target.clone(), force: false };
    let watch = &mut Watch { progress: &mut |_| {}, is_cancelled: Arc::default() };
    let begun = Instant::now();
    let made = backup(&request, watch).expect("a backup");
    let whole = begun.elapsed();
    phase.store(2, Ordering::SeqCst);
    let request = |subject| Request { subject, full: false, compare: None };
    let begun = Instant::now();
    // A slow build may be told that this much cannot be looked at beside that many writes.
    let live = examine(&request(Subject::DataDir(data_dir)), watch);
    let looked = begun.elapsed();
    is_over.store(true, Ordering::SeqCst);
    let (_store, mut took) = writing.join().expect("it ends");
    match live {
        Ok(live) => assert!(live.is_healthy(), "{:?}", live.findings),
        Err(error) => eprintln!("{error}"),
    }
    let watch = &mut Watch { progress: &mut |_| {}, is_cancelled: Arc::default() };
    let begun = Instant::now();
    let copy = examine(&request(Subject::File(target)), watch).expect("a look");
    assert!(copy.is_healthy() && copy.tables.iter().any(|table| table.live == ROWS as u64));
    eprintln!(
        "{ROWS} rows, {} MiB: snapshot held {:?}, with check and sync {whole:?}, the log grew by {} \
         KiB; doctor beside the node {looked:?}, of the copy {:?}",
        made.copied.bytes >> 20,
        made.copied.held,
        made.copied.wal_growth >> 10,
        begun.elapsed(),
    );
    for (what, took) in ["alone", "beside the backup", "beside the doctor"].iter().zip(&mut took) {
        took.sort();
        let at = |share: usize| took[(took.len() - 1) * share / 1_000];
        eprintln!(
            "{} commits {what}: p50 {:?}, p99 {:?}, longest {:?}",
            took.len(),
            at(500),
            at(990),
            at(1_000)
        );
    }
}
