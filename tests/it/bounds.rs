//! Nobody can hold up the others: what a client may take of a node's time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Cluster, wait_for};

/// Inserts one row, after all rows of a table that has no end.
const ENDLESS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
    INSERT INTO kv (key) SELECT max(i) FROM n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_transaction_hardly_delays_a_registration() {
    let cluster = Cluster::new(71);
    let n1 = Arc::new(cluster.start(1).await);
    let mut endless = Vec::new();
    for _ in 0..4 {
        let n1 = Arc::clone(&n1);
        let body = json!([ENDLESS]).to_string();
        endless.push(tokio::spawn(async move { n1.send("POST", "/v1/transactions", &body).await }));
    }
    // As long as one of them is under way, somebody registers.
    let mut longest = Duration::ZERO;
    for i in 0.. {
        let begun = Instant::now();
        n1.register("web", &format!("web-{i}"), 1).await;
        longest = longest.max(begun.elapsed());
        if endless.iter().all(tokio::task::JoinHandle::is_finished) {
            break;
        }
    }
    for run in endless {
        let (status, body) = run.await.expect("it ends");
        assert_eq!(status, 503, "{body}");
        assert!(body.contains("other writes had waited") && body.contains("smaller"), "{body}");
    }
    // The grace is a quarter of a second; without it this would be three.
    assert!(longest < Duration::from_secs(2), "a registration took {longest:?}");
    let (status, body) = n1
        .send("POST", "/v1/transactions", &json!(["INSERT INTO kv (key) VALUES ('a')"]).to_string())
        .await;
    assert_eq!(status, 200, "{body}");
}

#[tokio::test]
async fn a_process_that_was_suspended_goes_on_and_is_not_ended_by_its_watchdog() {
    let cluster = Cluster::new(72);
    let config = cluster.home().join("watchdog.toml");
    std::fs::write(&config, "[watchdog]\nlimit = '2s'\n").expect("a file");
    let n1 = cluster.start_with(1, &["--config", config.to_str().expect("text")]).await;
    // A part is watched from its first beat on.
    wait_for("all parts are watched", async || {
        let heartbeats = n1.send("GET", "/metrics", "").await.1;
        let is_watched = |part: &&str| {
            heartbeats
                .contains(&format!("tribune_watchdog_heartbeat_age_seconds{{part=\"{part}\"}}"))
        };
        ["engine", "writer", "dns-udp", "dns-tcp"].iter().all(is_watched).then_some(())
    })
    .await;
    n1.signal("STOP");
    let suspended = Instant::now();
    wait_for("twice the limit", async || {
        (suspended.elapsed() > Duration::from_secs(4)).then_some(())
    })
    .await;
    n1.signal("CONT");
    wait_for("it notices", async || n1.whole_log().contains("stood still").then_some(())).await;
    n1.register("web", "web", 1).await;
    // Every part has had the time to be found dead.
    let woken = Instant::now();
    wait_for("another limit", async || (woken.elapsed() > Duration::from_secs(3)).then_some(()))
        .await;
    assert!(n1.is_running(), "{}", n1.log());
    n1.wait_dig("web.internal", &[&n1.ip.to_string()]).await;
}
