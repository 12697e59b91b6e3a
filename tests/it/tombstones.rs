//! Deleted rows: how they are forgotten by all, and what becomes of a node that was away meanwhile.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value as Json, json};

use crate::support::{Agent, Cluster, tribune, wait_for};

/// A cluster whose members ask each other every second, and wait for whoever is away.
fn files(cluster: &Cluster) -> [String; 2] {
    let path = |name: &str| -> PathBuf { cluster.home().join(name) };
    let schema = "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, v TEXT NOT NULL DEFAULT '');";
    fs::write(path("t.sql"), schema).expect("a file");
    fs::write(path("tribune.toml"), "[tombstones]\nevery = '1s'\nforget_after = '1h'\n")
        .expect("a file");
    [path("t.sql"), path("tribune.toml")].map(|path| path.to_str().expect("text").to_owned())
}

async fn write(agent: &Agent, sql: &str) {
    let (status, body) = agent.send("POST", "/v1/transactions", &json!([sql]).to_string()).await;
    assert_eq!(status, 200, "{sql}: {body}");
}

async fn rows(agent: &Agent) -> String {
    let sql = json!("SELECT id, v FROM t ORDER BY id").to_string();
    let (status, body) = agent.send("POST", "/v1/queries", &sql).await;
    assert_eq!(status, 200, "{body}");
    let rows = body.lines().map(|line| serde_json::from_str::<Json>(line).expect("JSON"));
    let rows = rows.filter_map(|line| Some(line.get("row")?[1].to_string()));
    rows.collect::<Vec<_>>().join(" ")
}

async fn wait_rows(agents: &[&Agent], wanted: &str) {
    for agent in agents {
        let what = format!("{} has {wanted}", agent.name);
        wait_for(&what, async || (rows(agent).await == wanted).then_some(())).await;
    }
}

/// Waits until nobody remembers a deleted row.
async fn wait_forgotten(agents: &[&Agent]) {
    for agent in agents {
        let what = format!("{} remembers no deleted row", agent.name);
        wait_for(&what, async || {
            let said = agent.try_get("/v1/tombstones").await?;
            (said["held"] == 0 && said["collected_versions"] != 0).then_some(())
        })
        .await;
    }
}

fn forget(at: &Agent, node: &str) -> std::process::Output {
    tribune(&["forget", node, "--http-addr", &at.url("")])
}

/// Looks at the database of a node that does not run. Returns its fingerprint.
fn examined(cluster: &Cluster, k: u8) -> String {
    let data = cluster.home().join(format!("n{k}.data"));
    let output = tribune(&["doctor", "--json", "--data-dir", data.to_str().expect("text")]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "n{k}: {said} {output:?}");
    let said: Json = serde_json::from_str(&said).expect("JSON");
    said["fingerprint"].to_string()
}

#[tokio::test]
async fn deleted_rows_are_forgotten_by_all_and_do_not_come_back_with_who_was_away() {
    let cluster = Cluster::new(61);
    let [schema, config] = files(&cluster);
    let start = async |k| cluster.start_with(k, &["--schema", &schema, "--config", &config]).await;
    let (n1, n2, n3) = (start(1).await, start(2).await, start(3).await);
    cluster.wait_joined(&[&n1, &n2, &n3]).await;

    write(&n1, "INSERT INTO t VALUES (1, 'a'), (2, 'a'), (3, 'a'), (4, 'a'), (5, 'a')").await;
    write(&n1, "DELETE FROM t WHERE id = 5").await;
    wait_rows(&[&n1, &n2, &n3], r#"[1,"a"] [2,"a"] [3,"a"] [4,"a"]"#).await;
    wait_forgotten(&[&n1, &n2, &n3]).await;

    n3.register("cache", "cache-1", 6379).await;
    n1.wait_dig("cache.internal", &[&n3.ip.to_string()]).await;

    // While a member is away deletes are remembered for it, until somebody says that it is gone.
    n3.terminate().await;
    write(&n2, "DELETE FROM t WHERE id <= 2").await;
    wait_for("n1 waits for n3", async || {
        let said = n1.try_get("/v1/tombstones").await?;
        let awaits = said["awaited"].as_array()?.iter().any(|node| node["name"] == "n3");
        (awaits && said["held"] == 2).then_some(())
    })
    .await;
    let refused = forget(&n1, "n2");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the node is up"), "{refused:?}");
    assert_eq!(forget(&n1, "nobody").status.code(), Some(1));
    wait_for("n3 may be forgotten", async || forget(&n1, "n3").status.success().then_some(()))
        .await;
    wait_forgotten(&[&n1, &n2]).await;
    for agent in [&n1, &n2] {
        wait_for("its service and its node are gone", async || {
            let sql = "SELECT (SELECT count(*) FROM services WHERE id = 'cache-1')
                + (SELECT count(*) FROM nodes WHERE name = 'n3')";
            let (_, body) = agent.send("POST", "/v1/queries", &json!(sql).to_string()).await;
            body.contains(r#""row":[1,[0]]"#).then_some(())
        })
        .await;
    }

    // Meanwhile it wrote, alone, to what is deleted, to what is there, and a row of its own.
    n1.terminate().await;
    n2.terminate().await;
    let n3 = start(3).await;
    write(&n3, "UPDATE t SET v = 'unheard' WHERE id IN (1, 3)").await;
    write(&n3, "INSERT INTO t VALUES (9, 'own')").await;
    n3.register("db", "db-1", 5432).await;
    n3.terminate().await;
    let (n1, n2, n3) = (start(1).await, start(2).await, start(3).await);
    n1.wait_dig("db.internal", &[&n3.ip.to_string()]).await;
    n2.wait_dig("cache.internal", &[&n3.ip.to_string()]).await;
    wait_rows(&[&n1, &n2, &n3], r#"[3,"unheard"] [4,"a"] [9,"own"]"#).await;
    wait_for("n3 has settled", async || {
        let said = n3.try_get("/v1/tombstones").await?;
        (said["settled"] == true && said["rejoining"] == false).then_some(())
    })
    .await;

    // Afterwards it is a member like any other.
    write(&n3, "DELETE FROM t WHERE id = 9").await;
    wait_rows(&[&n1, &n2, &n3], r#"[3,"unheard"] [4,"a"]"#).await;
    wait_forgotten(&[&n1, &n2, &n3]).await;
    write(&n1, "INSERT INTO t VALUES (1, 'again')").await;
    wait_rows(&[&n1, &n2, &n3], r#"[1,"again"] [3,"unheard"] [4,"a"]"#).await;
    for agent in [&n1, &n2, &n3] {
        agent.terminate().await;
    }
    let fingerprints = [1, 2, 3].map(|k| examined(&cluster, k));
    assert!(fingerprints.iter().all(|print| *print == fingerprints[0]), "{fingerprints:?}");
}

#[tokio::test]
async fn a_new_node_is_heard_at_once_though_others_have_forgotten_deletes() {
    let cluster = Cluster::new(62);
    let [schema, config] = files(&cluster);
    let start = async |k| cluster.start_with(k, &["--schema", &schema, "--config", &config]).await;
    let (n1, n2) = (start(1).await, start(2).await);
    cluster.wait_joined(&[&n1, &n2]).await;
    write(&n1, "INSERT INTO t VALUES (1, 'a'), (2, 'a')").await;
    write(&n2, "INSERT INTO t VALUES (3, 'a')").await;
    wait_rows(&[&n1, &n2], r#"[1,"a"] [2,"a"] [3,"a"]"#).await;
    write(&n2, "DELETE FROM t WHERE id > 1").await;
    wait_forgotten(&[&n1, &n2]).await;

    let n3 = start(3).await;
    n3.register("web", "web-1", 80).await;
    write(&n3, "INSERT INTO t VALUES (2, 'new')").await;
    cluster.wait_joined(&[&n1, &n2, &n3]).await;
    let begun = Instant::now();
    n1.wait_dig("web.internal", &[&n3.ip.to_string()]).await;
    println!("the service of a new node was heard of {:?} after it had joined", begun.elapsed());
    wait_rows(&[&n1, &n2, &n3], r#"[1,"a"] [2,"new"]"#).await;
    println!("its row {:?} after it had joined", begun.elapsed());
}
