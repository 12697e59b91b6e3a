//! Nobody can hold up the others: what a client may take of a node's time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::Cluster;

/// Inserts one row, after all rows of a table that has no end.
const ENDLESS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
    INSERT INTO kv (key) SELECT max(i) FROM n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_transaction_hardly_delays_a_registration() {
    let cluster = Cluster::new(61);
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
