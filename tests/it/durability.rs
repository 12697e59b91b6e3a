//! What was acknowledged stays, whatever happens to the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Cluster, registration, wait_for};

/// How often the node is killed. `TRIBUNE_TEST_KILLS` asks for more.
fn kills() -> usize {
    std::env::var("TRIBUNE_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// How many registrations are sent before and while the node is killed.
const REGISTRATIONS: usize = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_registration_outlives_kill_9_and_reaches_all() {
    let cluster = Cluster::new(31);
    let (n2, n3) = (cluster.start(2).await, cluster.start(3).await);
    let mut acknowledged: Vec<String> = Vec::new();
    for round in 0..kills() {
        let n1 = Arc::new(cluster.start(1).await);
        cluster.wait_joined(&[&*n1, &n2, &n3]).await;
        let is_over = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for writer in 0..8 {
            let (n1, is_over) = (Arc::clone(&n1), Arc::clone(&is_over));
            writers.push(tokio::spawn(async move {
                let mut done = Vec::new();
                for i in (writer..REGISTRATIONS).step_by(8) {
                    let id = format!("r{round}-{i}");
                    let body = registration("load", &id, 1).to_string();
                    let request = n1.http.put(n1.url("/v1/agent/service/register")).body(body);
                    match request.send().await {
                        Ok(response) if response.status().is_success() => done.push(id),
                        _ if is_over.load(Ordering::SeqCst) => break,
                        other => panic!("a registration failed before the kill: {other:?}"),
                    }
                }
                done
            }));
        }
        // Somewhere in the middle of it, elsewhere each time.
        let enough = 150 + 97 * (round % 8);
        wait_for("some registrations are in", async || {
            let services = n1.try_get("/v1/agent/services").await?;
            let count = services
                .as_object()?
                .keys()
                .filter(|id| id.starts_with(&format!("r{round}-")))
                .count();
            (count >= enough).then_some(())
        })
        .await;
        is_over.store(true, Ordering::SeqCst);
        n1.kill();
        for writer in writers {
            acknowledged.extend(writer.await.expect("the writer ends"));
        }
    }
    let n1 = cluster.start(1).await;
    for node in [&n1, &n2, &n3] {
        wait_for(
            &format!("{} has all {} registrations", node.name, acknowledged.len()),
            async || {
                let entries = node.try_get("/v1/catalog/service/load").await?;
                let held: std::collections::BTreeSet<&str> = entries
                    .as_array()?
                    .iter()
                    .filter_map(|entry| entry["ServiceID"].as_str())
                    .collect();
                acknowledged.iter().all(|id| held.contains(id.as_str())).then_some(())
            },
        )
        .await;
    }
    assert!(acknowledged.len() >= kills() * 150);
}
