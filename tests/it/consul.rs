//! A real Consul agent beside a node: the other nodes follow it, step by step.

use serde_json::json;

use crate::support::consul::Consul;
use crate::support::{Agent, Cluster, wait_for};

/// The node-local checks and DNS of another node follow each step.
async fn follows(node: &Agent, status: &str, addresses: &[&str]) {
    wait_for(&format!("{} shows the check as {status}", node.name), async || {
        let checks = node.try_get("/v1/health/checks/shop").await?;
        let found = checks.as_array()?.first()?["Status"] == status;
        found.then_some(())
    })
    .await;
    node.wait_dig("shop.internal", addresses).await;
    node.wait_dig("shop.service.consul", addresses).await;
}

#[tokio::test]
async fn other_nodes_follow_a_real_consul_agent() {
    let cluster = Cluster::new(21);
    let mut consul = Consul::start(cluster.address(1), cluster.home()).await;
    let n1 = cluster.start_with(1, &["--consul", &consul.url()]).await;
    let n2 = cluster.start(2).await;
    cluster.wait_joined(&[&n1, &n2]).await;
    let mut changes =
        n2.subscribe("SELECT node_id, status, id FROM checks WHERE id = 'service:shop-1'").await;

    consul
        .put(
            "/v1/agent/service/register",
            Some(json!({
                "ID": "shop-1", "Name": "shop", "Port": 7000, "Address": "10.1.2.3",
                "Tags": ["v1", "eu"], "Meta": { "team": "a" },
                "Weights": { "Passing": 7, "Warning": 2 },
                "Check": { "TTL": "24h", "Status": "passing" },
            })),
        )
        .await;
    follows(&n2, "passing", &["10.1.2.3"]).await;
    changes.expect("insert", "passing").await;
    assert_eq!(n2.dig("shop.internal SRV"), ["1 7 7000 0a010203.addr.dc1.internal."]);
    let entries = n2.get("/v1/health/service/shop").await;
    let service = &entries[0]["Service"];
    assert_eq!(service["Tags"], json!(["v1", "eu"]));
    assert_eq!(service["Meta"], json!({ "team": "a" }));
    assert_eq!(service["Weights"], json!({ "Passing": 7, "Warning": 2 }));

    consul.put("/v1/agent/check/warn/service:shop-1?note=slow", None).await;
    follows(&n2, "warning", &["10.1.2.3"]).await;
    changes.expect("update", "warning").await;
    assert_eq!(n2.dig("shop.internal SRV"), ["1 2 7000 0a010203.addr.dc1.internal."]);

    consul.put("/v1/agent/check/fail/service:shop-1?note=broken", None).await;
    follows(&n2, "critical", &[]).await;
    changes.expect("update", "critical").await;

    consul.put("/v1/agent/check/pass/service:shop-1", None).await;
    follows(&n2, "passing", &["10.1.2.3"]).await;
    changes.expect("update", "passing").await;

    consul.put("/v1/agent/service/maintenance/shop-1?enable=true&reason=oil", None).await;
    n2.wait_dig("shop.internal", &[]).await;
    consul.put("/v1/agent/service/maintenance/shop-1?enable=false", None).await;
    n2.wait_dig("shop.internal", &["10.1.2.3"]).await;

    // An agent that vanishes withdraws nothing, and says what it waits for.
    consul.kill();
    wait_for("n1 says that it waits for Consul", async || {
        n1.whole_log().to_lowercase().contains("consul").then_some(())
    })
    .await;
    assert_eq!(n2.dig("shop.internal"), ["10.1.2.3"]);
    consul.restart().await;
    consul.put("/v1/agent/check/fail/service:shop-1", None).await;
    follows(&n2, "critical", &[]).await;
    consul.put("/v1/agent/check/pass/service:shop-1", None).await;
    follows(&n2, "passing", &["10.1.2.3"]).await;

    consul.put("/v1/agent/service/deregister/shop-1", None).await;
    n2.wait_dig("shop.internal", &[]).await;
    changes.expect_until("delete").await;
}
