//! What belongs to the whole cluster: keys, prepared queries, transactions.

use serde_json::{Value, json};

use crate::support::{Cluster, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_written_anywhere_watched_anywhere_and_outlive_a_kill() {
    let cluster = Cluster::new(126);
    let n1 = cluster.start(1).await;
    let n2 = cluster.start(2).await;
    cluster.wait_joined(&[&n1, &n2]).await;
    let long = "x".repeat(512 * 1024);
    for (path, value) in [("cfg/web/port?flags=42", "8080"), ("cfg/db", ""), ("cfg/long", &long)] {
        assert_eq!(n1.send("PUT", &format!("/v1/kv/{path}"), value).await, (200, "true".into()));
    }
    wait_for("all keys to be on the other node", || async {
        let keys = n2.try_get("/v1/kv/?keys").await?;
        (keys == json!(["cfg/db", "cfg/long", "cfg/web/port"])).then_some(())
    })
    .await;
    assert_eq!(n2.send("GET", "/v1/kv/cfg/web/port?raw", "").await.1, "8080");
    assert_eq!(n2.get("/v1/kv/cfg/web/port").await[0]["Flags"], 42);
    assert_eq!(n2.send("GET", "/v1/kv/cfg/long?raw", "").await.1, long);

    // Who waits at one node is woken by a write at the other.
    let index = n2.get("/v1/kv/cfg/web/port").await[0]["ModifyIndex"].clone();
    let path = format!("/v1/kv/cfg/web/?recurse&wait=60s&index={index}");
    let (woken, written) =
        tokio::join!(n2.get(&path), n1.send("PUT", "/v1/kv/cfg/web/port", "9090"));
    assert_eq!((&woken[0]["Value"], written.0), (&json!("OTA5MA=="), 200));

    n1.kill();
    assert_eq!(n2.send("DELETE", "/v1/kv/cfg/web/?recurse", "").await.1, "true");
    let n1 = cluster.start(1).await;
    wait_for("the killed node to hear what was deleted", || async {
        let keys = n1.try_get("/v1/kv/?keys").await?;
        (keys == json!(["cfg/db", "cfg/long"])).then_some(())
    })
    .await;
    let refused =
        n1.send("PUT", "/v1/kv/lock?acquire=11111111-1111-1111-1111-111111111111", "").await;
    assert_eq!(refused.0, 501, "{}", refused.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_query_is_stored_at_one_node_and_answers_at_all() {
    let cluster = Cluster::new(128);
    let n1 = cluster.start(1).await;
    let n2 = cluster.start(2).await;
    cluster.wait_joined(&[&n1, &n2]).await;
    n1.register("web", "web-1", 8080).await;
    let query = json!({
        "Name": "web-q", "Service": { "Service": "web", "OnlyPassing": true },
        "DNS": { "TTL": "12s" },
    });
    let (status, text) = n1.send("POST", "/v1/query", &query.to_string()).await;
    assert_eq!(status, 200, "{text}");
    let id = serde_json::from_str::<Value>(&text).unwrap()["ID"].as_str().unwrap().to_owned();
    let template = json!({
        "Name": "q-", "Service": { "Service": "${name.suffix}" },
        "Template": { "Type": "name_prefix_match" },
    });
    assert_eq!(n2.send("POST", "/v1/query", &template.to_string()).await.0, 200);
    let at = n1.ip.to_string();
    for node in [&n1, &n2] {
        node.wait_dig("web-q.query.consul", &[&at]).await;
        node.wait_dig("q-web.query.internal", &[&at]).await;
        let found = node.get("/v1/query/WEB-Q/execute").await;
        assert_eq!(found["Nodes"][0]["Service"]["ID"], "web-1");
    }
    // Taken out by a transaction's neighbour: any node may.
    assert_eq!(n2.send("DELETE", &format!("/v1/query/{id}"), "").await.0, 200);
    n1.wait_dig("web-q.query.consul", &[]).await;
    n1.wait_dig("q-web.query.consul", &[&at]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_seen_whole_or_not_at_all() {
    let cluster = Cluster::new(129);
    let n1 = cluster.start(1).await;
    let n2 = cluster.start(2).await;
    cluster.wait_joined(&[&n1, &n2]).await;
    let ops = json!([
        { "KV": { "Verb": "set", "Key": "a", "Value": "MQ==" } },
        { "Node": { "Verb": "set", "Node": { "Node": "cam", "Address": "10.9.0.7" } } },
        { "Service": { "Verb": "set", "Node": "cam",
            "Service": { "ID": "rtsp", "Service": "rtsp", "Port": 554 } } },
        { "Check": { "Verb": "set",
            "Check": { "Node": "cam", "CheckID": "up", "Status": "passing", "ServiceID": "rtsp" } } },
    ]);
    let (status, text) = n1.send("PUT", "/v1/txn", &ops.to_string()).await;
    assert_eq!(status, 200, "{text}");
    let results: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(results["Results"][3]["Check"]["ServiceName"], "rtsp");
    // The last row of it is there only with all others.
    n2.wait_passing("rtsp", 1).await;
    assert_eq!(n2.get("/v1/health/checks/rtsp").await[0]["CheckID"], "up");
    assert_eq!(n2.get("/v1/kv/a").await[0]["Value"], "MQ==");

    let index = &results["Results"][3]["Check"]["ModifyIndex"];
    let check = |index: &Value| {
        json!([
            { "Check": { "Verb": "cas", "Check": { "Node": "cam", "CheckID": "up",
                "Status": "critical", "ServiceID": "rtsp", "ModifyIndex": index } } },
            { "KV": { "Verb": "delete", "Key": "a" } },
        ])
    };
    let (status, text) = n1.send("PUT", "/v1/txn", &check(&json!(7)).to_string()).await;
    assert_eq!(status, 409, "{text}");
    assert!(n1.get("/v1/kv/a").await.is_array());
    assert_eq!(n1.send("PUT", "/v1/txn", &check(index).to_string()).await.0, 200);
    n2.wait_passing("rtsp", 0).await;
    assert_eq!(n2.send("GET", "/v1/kv/a", "").await.0, 404);
}
