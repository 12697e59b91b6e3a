//! Changes of the schema: told to one node, carried out by all.

use std::fs;

use serde_json::{Value as Json, json};

use crate::support::{Agent, Cluster, tribune, wait_for};

/// Runs `tribune schema` against a node and returns what it printed, and whether it was done.
fn schema(node: &Agent, args: &[&str]) -> (String, bool) {
    let http = node.url("");
    let output = tribune(&[&["schema"], args, &["--http-addr", &http]].concat());
    let said = if output.status.success() { output.stdout } else { output.stderr };
    (String::from_utf8(said).expect("text"), output.status.success())
}

async fn exec(node: &Agent, sql: &str) {
    let (status, body) = node.send("POST", "/v1/transactions", &json!([sql]).to_string()).await;
    assert_eq!(status, 200, "{sql}: {body}");
}

/// Runs a query and returns its columns and rows; `None`: the node refuses it.
async fn rows(node: &Agent, sql: &str) -> Option<(Json, Vec<Json>)> {
    let (status, body) = node.send("POST", "/v1/queries", &json!(sql).to_string()).await;
    if status != 200 {
        return None;
    }
    let lines: Vec<Json> =
        body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let columns = lines[0]["columns"].clone();
    Some((columns, lines.iter().filter_map(|line| line.pointer("/row/1").cloned()).collect()))
}

async fn wait_rows(node: &Agent, sql: &str, columns: Json, wanted: &[Json]) {
    let what = format!("{} answers {sql} with {wanted:?}", node.name);
    wait_for(&what, async || {
        let found = rows(node, sql).await?;
        (found == (columns.clone(), wanted.to_vec())).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_schema_that_one_node_is_told_reaches_all() {
    let cluster = Cluster::new(47);
    let file = cluster.home().join("jobs.sql");
    let path = file.to_str().expect("text").to_owned();
    let write = |sql: &str| fs::write(&file, sql).expect("a file");
    let n1 = cluster.start(1).await;
    let n2 = cluster.start(2).await;
    cluster.wait_joined(&[&n1, &n2]).await;

    write(
        "CREATE TABLE jobs (id TEXT NOT NULL PRIMARY KEY, state TEXT NOT NULL DEFAULT 'new');\nCREATE INDEX jobs_by_state ON jobs (state);",
    );
    let (said, _) = schema(&n1, &["diff", &path]);
    assert_eq!(said, "+ table jobs\n+ index jobs_by_state\n");
    assert!(rows(&n1, "SELECT * FROM jobs").await.is_none(), "a diff makes nothing");
    assert_eq!(schema(&n1, &["apply", &path]), (said, true));
    assert_eq!(schema(&n1, &["apply", &path]), ("nothing to change\n".to_owned(), true));
    exec(&n1, "INSERT INTO jobs (id) VALUES ('a')").await;
    let all = "SELECT * FROM jobs ORDER BY id";
    let narrow = json!(["id", "state"]);
    wait_rows(&n2, all, narrow, &[json!(["a", "new"])]).await;
    exec(&n2, "INSERT INTO jobs VALUES ('b', 'done')").await;

    // A query that is live goes on where its columns stay, and ends where they change.
    let mut changes = n2.subscribe("SELECT id, state FROM jobs").await;
    let mut star = n2.subscribe(all).await;
    write(
        "CREATE TABLE jobs (id TEXT NOT NULL PRIMARY KEY, state TEXT NOT NULL DEFAULT 'new', weight INT NOT NULL DEFAULT 1);",
    );
    assert_eq!(schema(&n2, &["apply", &path]), ("+ column jobs.weight\n".to_owned(), true));
    let wide = json!(["id", "state", "weight"]);
    for node in [&n1, &n2] {
        wait_rows(node, all, wide.clone(), &[json!(["a", "new", 1]), json!(["b", "done", 1])])
            .await;
    }
    let end = star.line().await;
    assert!(end["error"].as_str().is_some_and(|text| text.contains("subscribe again")), "{end}");
    exec(&n1, "UPDATE jobs SET weight = 5, state = 'run' WHERE id = 'a'").await;
    changes.expect("update", "run").await;

    // Another node comes later, and has it all.
    let n3 = cluster.start(3).await;
    wait_rows(&n3, all, wide, &[json!(["a", "run", 5]), json!(["b", "done", 1])]).await;
    let (shown, _) = schema(&n3, &["show", "jobs"]);
    assert_eq!(
        shown,
        "CREATE TABLE \"jobs\" (\"id\" TEXT NOT NULL, \"state\" TEXT NOT NULL DEFAULT 'new', \"weight\" INT NOT NULL DEFAULT 1, PRIMARY KEY (\"id\"));\nCREATE INDEX \"jobs_by_state\" ON \"jobs\" ( state );\n"
    );

    // Dropping has to be asked for, and reaches all.
    write("CREATE TABLE jobs (id TEXT NOT NULL PRIMARY KEY, state TEXT NOT NULL DEFAULT 'new')");
    let (refused, is_done) = schema(&n3, &["apply", &path]);
    assert!(
        !is_done
            && refused.contains("table jobs, column weight")
            && refused.contains("--allow-drop"),
        "{refused}"
    );
    assert_eq!(
        schema(&n3, &["apply", &path, "--allow-drop"]),
        ("- column jobs.weight\n".to_owned(), true)
    );
    let narrow = json!(["id", "state"]);
    for node in [&n1, &n2, &n3] {
        let rows = [json!(["a", "run"]), json!(["b", "done"])];
        wait_rows(node, all, narrow.clone(), &rows).await;
    }
    write("DROP TABLE jobs");
    assert_eq!(schema(&n1, &["apply", &path, "--allow-drop"]), ("- table jobs\n".to_owned(), true));
    for node in [&n1, &n2, &n3] {
        let what = format!("{} has no jobs any more", node.name);
        wait_for(&what, async || rows(node, all).await.is_none().then_some(())).await;
        let left = node.get("/v1/schema").await;
        assert!(
            left["tables"].as_array().expect("tables").iter().all(|table| table["fixed"] == true)
        );
        assert_eq!(left["aside"], json!([]));
    }
}

#[tokio::test]
async fn a_schema_that_breaks_a_rule_is_refused_with_its_place() {
    let cluster = Cluster::new(48);
    let n1 = cluster.start(1).await;
    let body = json!(["CREATE TABLE t (a INT NOT NULL PRIMARY KEY, lo, hi, CHECK (lo < hi))"]);
    let (status, said) = n1.send("POST", "/v1/schema", &body.to_string()).await;
    assert_eq!(status, 400);
    assert!(
        said.contains("statement 1: table t: the CHECK lo < hi reads several columns"),
        "{said}"
    );
    let (status, said) = n1.send("POST", "/v1/schema", "{\"source\": []}").await;
    assert_eq!(status, 422, "{said}");
    let body = json!(["CREATE TABLE t (a INT NOT NULL PRIMARY KEY)"]);
    let (status, said) = n1.send("POST", "/v1/migrations", &body.to_string()).await;
    assert_eq!(status, 200, "{said}");
    exec(&n1, "INSERT INTO t VALUES (1)").await;
    let (status, said) = n1
        .send("POST", "/v1/transactions", &json!(["DELETE FROM tribune_schema"]).to_string())
        .await;
    assert!(status == 500 && said.contains("tribune schema apply"), "{status} {said}");
}
