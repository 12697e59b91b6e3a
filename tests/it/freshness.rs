//! How fresh a node is: it says so itself, and a read may wait for a write of another node.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::support::{Agent, Cluster, tribune, wait_for};

/// Writes one row and returns the token that the node answered with.
async fn write(node: &Agent, value: u32) -> String {
    let sql = "INSERT INTO kv (key, value) VALUES ('fresh', ?) \
               ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    let body = json!([[sql, [value.to_string()]]]);
    let request = node.http.post(node.url("/v1/transactions")).json(&body);
    let response = request.send().await.expect("an answer");
    let header = response.headers()["x-tribune-version"].to_str().expect("text").to_owned();
    let answer: Json = response.json().await.expect("JSON");
    assert!(answer["results"][0]["error"].is_null(), "{answer}");
    assert_eq!(answer["token"], header, "one writer alone: nothing came in between");
    header
}

async fn read(node: &Agent, token: &str) -> String {
    let path = format!("/v1/queries?wait_for={token}");
    let (status, lines) = node.send("POST", &path, r#""SELECT value FROM kv""#).await;
    assert_eq!(status, 200, "{lines}");
    let row = lines.lines().nth(1).expect("a row");
    let row: Json = serde_json::from_str(row).expect("JSON");
    row["row"][1][0].as_str().unwrap_or_else(|| panic!("{lines}")).to_owned()
}

#[tokio::test]
async fn whoever_carries_a_version_reads_its_own_writes_on_any_node() {
    let cluster = Cluster::new(101);
    let (n1, n2, n3) = (cluster.start(1).await, cluster.start(2).await, cluster.start(3).await);
    let nodes = [&n1, &n2, &n3];
    cluster.wait_joined(&nodes).await;

    for value in 0..60_u32 {
        let token = write(nodes[value as usize % 3], value).await;
        let reader = nodes[(value as usize + 1) % 3];
        assert_eq!(read(reader, &token).await, value.to_string());
    }

    // Consul's API, a subscription and the command line alike.
    let body = json!({ "ID": "web-1", "Name": "web", "Port": 80 });
    let request = n1.http.put(n1.url("/v1/agent/service/register")).json(&body);
    let response = request.send().await.expect("an answer");
    let token = response.headers()["x-tribune-version"].to_str().expect("text").to_owned();
    let request = n3.http.get(n3.url("/v1/catalog/service/web"));
    let response = request.header("x-tribune-wait-for", &token).send().await.expect("an answer");
    // Of what it was asked for it misses nothing; of something else it may for a moment.
    let lag = response.headers()["x-tribune-lag"].to_str().expect("text").parse::<u64>();
    assert!(lag.expect("a number") < 5_000);
    assert_eq!(response.json::<Json>().await.expect("JSON")[0]["ServiceID"], "web-1");

    let token = write(&n2, 1_000).await;
    let path = format!("/v1/subscriptions?wait_for={token}");
    let request = n1.http.post(n1.url(&path)).json(&"SELECT value FROM kv");
    let mut response = request.send().await.expect("an answer");
    let mut lines = String::new();
    while !lines.contains("eoq") {
        let chunk = response.chunk().await.expect("a stream").expect("more of it");
        lines.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(lines.contains(r#""1000""#), "{lines}");

    let sql = "UPDATE kv SET value = '2000'";
    let output = tribune(&["exec", "--json", "--http-addr", &n3.url(""), sql]);
    let told: Json = serde_json::from_slice(&output.stdout).expect("JSON");
    let token = told["token"].as_str().expect("a token");
    let args = ["query", "--wait-for", token, "--http-addr", &n2.url(""), "SELECT value FROM kv"];
    let output = tribune(&args);
    assert!(String::from_utf8_lossy(&output.stdout).contains("2000"), "{output:?}");
}

#[tokio::test]
async fn a_version_that_does_not_come_is_named() {
    let cluster = Cluster::new(102);
    let n1 = cluster.start(1).await;
    let token = write(&n1, 1).await;
    let (origin, version) = token.split_once('@').expect("a token");
    let version: u64 = version.parse().expect("a number");
    let begun = Instant::now();
    let later =
        format!("/v1/catalog/services?wait_for={origin}@{}&wait_timeout=200ms", version + 5);
    let (status, text) = n1.send("GET", &later, "").await;
    let answer: Json = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, &answer["missing"], &answer["held"]), (504, &json!(5), &json!(version)));
    assert!(begun.elapsed() >= Duration::from_millis(200));
    let stranger = "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa/1@1";
    let path = format!("/v1/queries?wait_for={stranger}&wait_timeout=0s");
    let (status, text) = n1.send("POST", &path, r#""SELECT 1""#).await;
    assert_eq!(status, 504, "{text}");
    assert!(text.contains("has heard nothing of"), "{text}");
    let (status, text) = n1.send("GET", "/v1/catalog/nodes?wait_for=yesterday", "").await;
    assert_eq!(status, 400, "{text}");
}

#[tokio::test]
async fn a_node_that_is_cut_off_says_so_until_it_is_heard_again() {
    let cluster = Cluster::new(103);
    let (n1, n2) = (cluster.start(1).await, cluster.start(2).await);
    cluster.wait_joined(&[&n1, &n2]).await;
    let ready = async |node: &Agent| {
        let (status, text) = node.send("GET", "/v1/status/ready", "").await;
        (status, serde_json::from_str::<Json>(&text).expect("JSON"))
    };
    wait_for("both are ready", async || {
        let (status, told) = ready(&n2).await;
        (status == 200 && told["links_heard"] == 1).then_some(())
    })
    .await;

    n1.signal("STOP");
    let told = wait_for("n2 hears nobody", async || {
        let (status, told) = ready(&n2).await;
        (status == 503).then_some(told)
    })
    .await;
    assert_eq!(told["reasons"][0]["code"], "cut_off", "{told}");
    let leader = n2.http.get(n2.url("/v1/catalog/services")).send().await.expect("an answer");
    assert_eq!(leader.headers()["x-consul-knownleader"], "false");
    let output = tribune(&["members", "--http-addr", &n2.url("")]);
    let members = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(members.contains("NOT READY: only 0 of 1 neighbours are heard"), "{members}");
    // It goes on answering and taking writes.
    write(&n2, 7).await;

    n1.signal("CONT");
    wait_for("n2 is ready again", async || (ready(&n2).await.0 == 200).then_some(())).await;
    let replication = n2.get("/v1/replication").await;
    let origins = replication["origins"].as_array().expect("a list");
    assert!(origins.iter().any(|one| one["node"] == "n1"), "{replication}");
    let token = write(&n1, 8).await;
    assert_eq!(read(&n2, &token).await, "8");
}
