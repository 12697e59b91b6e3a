//! What was acknowledged stays, whatever happens to the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

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

/// Fills a file until there is no room any more.
fn fill(path: &std::path::Path) {
    let mut file = std::fs::File::create(path).expect("a file");
    for bytes in [64 << 10, 4 << 10, 512, 1] {
        while std::io::Write::write_all(&mut file, &vec![0; bytes]).is_ok() {}
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_in_a_sentence_and_room_is_all_it_takes() {
    let cluster = Cluster::new(74);
    let n1 = cluster.start_on_small_disk(1, 8 << 10).await;
    n1.register("web", "web", 1).await;
    let filler = n1.data_dir(&cluster).join("filler");
    fill(&filler);
    let put = |key: usize| {
        json!([format!("INSERT INTO kv (key, value) VALUES ('k{key}', randomblob(60000))")])
            .to_string()
    };
    // The log's file may have room left from before.
    let mut written = 0;
    let refusal = loop {
        let (status, body) = n1.send("POST", "/v1/transactions", &put(written)).await;
        if status != 200 {
            break body;
        }
        written += 1;
        assert!(written < 1_000, "the disk is never full");
    };
    assert!(refusal.contains("the disk is full; make room"), "{refusal}");
    let register = registration("api", "api", 2).to_string();
    let (status, text) = n1.send("PUT", "/v1/agent/service/register", &register).await;
    assert!(status == 500 && text.contains("the disk is full"), "{status} {text}");

    // Reads go on, and show what was acknowledged.
    let count = json!("SELECT count(*) FROM kv").to_string();
    let (_, rows) = n1.send("POST", "/v1/queries", &count).await;
    assert!(rows.contains(&format!("{{\"row\":[1,[{written}]]}}")), "{written}: {rows}");
    assert_eq!(n1.dig("web.internal"), [n1.ip.to_string()]);
    assert!(n1.dig("api.internal").is_empty());

    std::fs::remove_file(&filler).expect("the filler");
    let (status, body) = n1.send("POST", "/v1/transactions", &put(written)).await;
    assert_eq!(status, 200, "{body}");
    n1.register("api", "api", 2).await;
    n1.wait_dig("api.internal", &[&n1.ip.to_string()]).await;
}

#[tokio::test]
async fn a_shell_cannot_write_into_the_database_and_a_kill_does_not_look_as_if() {
    let cluster = Cluster::new(75);
    let n1 = cluster.start(1).await;
    n1.register("web", "web", 1).await;
    let database = cluster.home().join("n1.data/tribune.db");
    let shell = || {
        let output = std::process::Command::new("sqlite3")
            .arg(&database)
            .arg("DELETE FROM services")
            .output();
        let output = output.expect("sqlite3 is installed");
        assert!(!output.status.success());
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("only tribune writes here, use tribune exec"), "{told}");
    };
    shell();
    n1.kill();
    shell();
    let n1 = cluster.start(1).await;
    n1.wait_dig("web.internal", &[&n1.ip.to_string()]).await;
    let log = n1.whole_log();
    assert!(!log.contains("Somebody removed") && !log.contains("another program wrote"), "{log}");
    n1.register("api", "api", 2).await;
}
