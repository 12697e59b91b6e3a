//! The SQL API across nodes: users' tables, queries, subscriptions.

use std::collections::BTreeMap;
use std::fs;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value as Json, json};

use crate::support::{Agent, Cluster, wait_for};

/// Runs a query and returns its rows.
async fn rows(node: &Agent, sql: &str) -> Vec<Json> {
    let (status, body) = node.send("POST", "/v1/queries", &json!(sql).to_string()).await;
    assert_eq!(status, 200, "{body}");
    let lines: Vec<Json> =
        body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(lines.last().expect("lines").get("eoq").is_some(), "{body}");
    lines.iter().filter_map(|line| line.pointer("/row/1").cloned()).collect()
}

#[tokio::test]
async fn a_users_table_is_written_on_one_node_and_followed_on_another() {
    let cluster = Cluster::new(41);
    let schema = cluster.home().join("deploys.sql");
    fs::write(
        &schema,
        "CREATE TABLE deploys (app TEXT NOT NULL PRIMARY KEY, version TEXT NOT NULL DEFAULT '', \
         weight REAL, raw BLOB);",
    )
    .expect("a file");
    let schema = schema.to_str().expect("text");
    let n1 = cluster.start_with(1, &["--schema", schema]).await;
    let n2 = cluster.start_with(2, &["--schema", schema]).await;
    cluster.wait_joined(&[&n1, &n2]).await;
    let mut changes = n2.subscribe("SELECT app, version FROM deploys").await;

    let statements = json!([
        ["INSERT INTO deploys (app, version, weight, raw) VALUES (?, ?, ?, ?)", ["shop", "1", 1.0, [0, 255]]],
        ["INSERT INTO deploys (app, version) VALUES (:app, :version)", { ":app": "web", ":version": "7" }],
    ]);
    let (status, body) = n1.send("POST", "/v1/transactions", &statements.to_string()).await;
    assert_eq!(status, 200, "{body}");
    let answer: Json = serde_json::from_str(&body).expect("JSON");
    assert_eq!(answer["results"][0]["rows_affected"], 1);
    let first = answer["version"].as_u64().expect("a version");
    changes.expect("insert", "1").await;
    changes.expect("insert", "7").await;

    let update = json!(["UPDATE deploys SET version = '2' WHERE app = 'shop'"]);
    let (_, body) = n1.send("POST", "/v1/transactions", &update.to_string()).await;
    let answer: Json = serde_json::from_str(&body).expect("JSON");
    assert_eq!(answer["version"].as_u64(), Some(first + 1));
    changes.expect("update", "2").await;
    // What changes nothing makes no version.
    let (_, body) = n1.send("POST", "/v1/transactions", &update.to_string()).await;
    assert_eq!(serde_json::from_str::<Json>(&body).expect("JSON")["version"], Json::Null);

    n2.send("POST", "/v1/transactions", &json!(["DELETE FROM deploys"]).to_string()).await;
    changes.expect_until("delete").await;
    changes.expect_until("delete").await;
    wait_for("n1 has no rows left", async || {
        rows(&n1, "SELECT * FROM deploys").await.is_empty().then_some(())
    })
    .await;

    // Concurrent writes of different columns of one row both stay.
    n1.send(
        "POST",
        "/v1/transactions",
        &json!(["INSERT INTO deploys (app) VALUES ('both')"]).to_string(),
    )
    .await;
    wait_for("the row is on n2", async || {
        (rows(&n2, "SELECT app FROM deploys").await == [json!(["both"])]).then_some(())
    })
    .await;
    let set_version = json!(["UPDATE deploys SET version = '9' WHERE app = 'both'"]).to_string();
    let set_weight = json!(["UPDATE deploys SET weight = 2.5 WHERE app = 'both'"]).to_string();
    tokio::join!(
        n1.send("POST", "/v1/transactions", &set_version),
        n2.send("POST", "/v1/transactions", &set_weight),
    );
    for node in [&n1, &n2] {
        wait_for("both writes are there", async || {
            let found = rows(node, "SELECT version, weight FROM deploys").await;
            (found == [json!(["9", 2.5])]).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn what_subscribers_are_told_adds_up_to_what_the_query_returns() {
    let cluster = Cluster::new(44);
    let schema = cluster.home().join("pairs.sql");
    let table = "CREATE TABLE pairs (s TEXT NOT NULL, n INTEGER NOT NULL, x, PRIMARY KEY (s, n));";
    fs::write(&schema, table).expect("a file");
    let schema = schema.to_str().expect("text");
    let n1 = cluster.start_with(1, &["--schema", schema]).await;
    let n2 = cluster.start_with(2, &["--schema", schema]).await;
    cluster.wait_joined(&[&n1, &n2]).await;
    // The first two are asked of the rows alone that changed, the key's columns in another order.
    let queries = [
        "SELECT n, x, s FROM pairs WHERE x IS NOT 'hidden'",
        "SELECT s, n, upper(x) FROM pairs WHERE n > 2 ORDER BY x",
        "SELECT s, count(*), max(x) FROM pairs GROUP BY s",
    ];
    let mut subscribed = Vec::new();
    for sql in queries {
        subscribed.push((sql, n2.subscribe(sql).await, BTreeMap::<u64, Json>::new()));
    }

    let mut rng = SmallRng::seed_from_u64(44);
    for _ in 0..150 {
        let s = ["a", "b", "it's"][rng.random_range(0..3)].replace('\'', "''");
        let (n, m) = (rng.random_range(0..8), rng.random_range(0..8));
        let x = ["'up'", "'hidden'", "NULL", "x'00ff'", "2.5"][rng.random_range(0..5)];
        let sql = match rng.random_range(0..20) {
            0 => "DELETE FROM pairs".to_owned(),
            // More than a look at single rows takes.
            1 => format!(
                "WITH RECURSIVE c(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM c WHERE i < 400) \
                 INSERT OR REPLACE INTO pairs SELECT '{s}', i, {x} FROM c"
            ),
            2 => "DELETE FROM pairs WHERE n >= 100".to_owned(),
            3..=6 => format!("UPDATE pairs SET x = {x} WHERE n = {n}"),
            7 | 8 => format!("UPDATE OR REPLACE pairs SET n = {m} WHERE s = '{s}' AND n = {n}"),
            9 | 10 => format!("DELETE FROM pairs WHERE s = '{s}' AND n < {n}"),
            _ => format!("INSERT OR REPLACE INTO pairs VALUES ('{s}', {n}, {x})"),
        };
        let node = if rng.random_bool(0.5) { &n1 } else { &n2 };
        let (status, body) = node.send("POST", "/v1/transactions", &json!([sql]).to_string()).await;
        assert_eq!(status, 200, "{sql}: {body}");
    }
    let all = "SELECT s, n, typeof(x), quote(x) FROM pairs ORDER BY s, n";
    wait_for("both nodes hold the same", async || {
        (rows(&n1, all).await == rows(&n2, all).await).then_some(())
    })
    .await;
    for (sql, changes, held) in &mut subscribed {
        let sorted = |rows: Vec<Json>| {
            let mut rows: Vec<String> = rows.iter().map(Json::to_string).collect();
            rows.sort();
            rows
        };
        let returned = sorted(rows(&n2, sql).await);
        while sorted(held.values().cloned().collect()) != returned {
            let line = changes.line().await;
            let change = line.get("change").unwrap_or_else(|| panic!("{sql}: {line}"));
            let row = change[1].as_u64().expect("a row");
            let before = match change[0].as_str() {
                Some("delete") => held.remove(&row),
                _ => held.insert(row, change[2].clone()),
            };
            assert_eq!(before.is_some(), change[0] != "insert", "{sql}: {line}");
        }
    }
}

#[tokio::test]
async fn a_subscription_resumes_where_it_was() {
    let cluster = Cluster::new(42);
    let n1 = cluster.start(1).await;
    n1.register("web", "web-1", 1).await;
    let mut changes = n1.subscribe("SELECT id, name FROM services").await;
    n1.register("web", "web-2", 2).await;
    let (kind, cells) = changes.change().await;
    assert_eq!((kind.as_str(), &cells), ("insert", &json!(["web-2", "web"])));
    let (id, told_to) = (changes.id.clone(), changes.last_id);
    drop(changes);
    n1.register("web", "web-3", 3).await;

    let url = n1.url(&format!("/v1/subscriptions/{id}?from={told_to}"));
    let response = n1.http.get(url).send().await.expect("an answer");
    assert_eq!(response.headers()["corro-query-id"].to_str().unwrap(), id);
    let mut response = response;
    let chunk = response.chunk().await.expect("a stream").expect("a change");
    let line: Json = serde_json::from_slice(chunk.split(|b| *b == b'\n').next().unwrap()).unwrap();
    assert_eq!(line["change"], json!(["insert", 3, ["web-3", "web"], told_to + 1]));

    // Ids of another life of the query are not passed over in silence.
    for foreign in [1, told_to + 100] {
        let url = n1.url(&format!("/v1/subscriptions/{id}?from={foreign}"));
        let answer = n1.http.get(url).send().await.expect("an answer").text().await.expect("text");
        assert!(answer.starts_with("{\"error\"") && answer.ends_with("}\n"), "{answer}");
    }

    let (status, body) =
        n1.send("GET", "/v1/subscriptions/00000000-0000-0000-0000-000000000000", "").await;
    assert_eq!(status, 404);
    assert!(body.ends_with("}\n"), "an error is a whole line: {body:?}");
}

#[tokio::test]
async fn the_query_endpoint_only_reads_and_the_write_endpoint_only_writes_rows() {
    let cluster = Cluster::new(43);
    let n1 = cluster.start(1).await;
    for sql in [
        "INSERT INTO kv (key) VALUES ('a')",
        "DELETE FROM services",
        "BEGIN",
        "SAVEPOINT a",
        "PRAGMA user_version = 7",
        "ATTACH ':memory:' AS z",
        "CREATE TABLE t (a)",
        "SELECT * FROM __tribune_rows",
        "SELECT 1; SELECT 2",
        "selec 1",
    ] {
        let (status, body) = n1.send("POST", "/v1/queries", &json!(sql).to_string()).await;
        assert_eq!(status, 400, "{sql}: {body}");
        assert!(body.starts_with("{\"error\":") && body.ends_with("}\n"), "{sql}: {body}");
    }
    for sql in [
        "DROP TABLE services",
        "CREATE TABLE t (a)",
        "PRAGMA user_version = 7",
        "ATTACH ':memory:' AS z",
        "COMMIT",
        "DELETE FROM __tribune_rows",
        "INSERT INTO services (node_id, id) VALUES ('somebody else', 'x')",
        "INSERT INTO kv (key) VALUES (CAST(x'ff' AS TEXT))",
        "INSERT INTO kv (key) VALUES ('a'); DELETE FROM kv",
    ] {
        let (status, body) = n1.send("POST", "/v1/transactions", &json!([sql]).to_string()).await;
        assert_eq!(status, 500, "{sql}: {body}");
        assert!(body.contains("\"error\""), "{sql}: {body}");
    }
    let (status, _) = n1.send("POST", "/v1/transactions", "[]").await;
    assert_eq!(status, 400);
    let (status, _) = n1.send("POST", "/v1/transactions", "{").await;
    assert_eq!(status, 400);
    let (status, _) = n1.send("POST", "/v1/transactions", "[7]").await;
    assert_eq!(status, 422);
    // All or nothing, and the node works on.
    let half = json!(["INSERT INTO kv (key) VALUES ('half')", "INSERT INTO nowhere VALUES (1)"]);
    let (status, _) = n1.send("POST", "/v1/transactions", &half.to_string()).await;
    assert_eq!(status, 500);
    assert!(rows(&n1, "SELECT * FROM kv").await.is_empty());
    let (status, body) = n1
        .send(
            "POST",
            "/v1/transactions",
            &json!(["INSERT INTO kv (key) VALUES ('whole')"]).to_string(),
        )
        .await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(rows(&n1, "SELECT key FROM kv").await, [json!(["whole"])]);
}
