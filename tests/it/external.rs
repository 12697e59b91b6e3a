//! Nodes without an agent: the whole cluster owns them.

use serde_json::{Value, json};

use crate::support::{Cluster, wait_for};

const REGISTER: &str = "/v1/catalog/register";
const DEREGISTER: &str = "/v1/catalog/deregister";

#[tokio::test(flavor = "multi_thread")]
async fn any_node_takes_an_external_node_and_any_other_takes_it_out() {
    let cluster = Cluster::new(76);
    let n1 = cluster.start(1).await;
    let n2 = cluster.start(2).await;
    cluster.wait_joined(&[&n1, &n2]).await;
    let printer = json!({
        "Node": "Printer", "Address": "10.9.0.1", "NodeMeta": { "external-node": "true" },
        "Service": { "ID": "ipp-1", "Service": "ipp", "Port": 631 },
        "Checks": [{ "CheckID": "up", "Status": "passing", "ServiceID": "ipp-1" }],
    });
    n1.put(REGISTER, printer.clone()).await;
    n2.wait_passing("ipp", 1).await;
    n2.wait_dig("ipp.internal", &["10.9.0.1"]).await;
    n2.wait_dig("printer.node.consul", &["10.9.0.1"]).await;

    // What watches it from outside may speak to another node from now on.
    n2.put(
        REGISTER,
        json!({
            "Node": "printer", "SkipNodeUpdate": true,
            "Check": { "CheckID": "up", "Status": "critical", "ServiceID": "ipp-1" },
        }),
    )
    .await;
    n1.wait_passing("ipp", 0).await;
    n1.wait_dig("ipp.internal", &[]).await;

    // It outlives the node that registered it.
    n1.kill();
    wait_for("the printer to stay, whoever goes", || async {
        let nodes = n2.get("/v1/catalog/node/printer").await;
        nodes["Services"]["ipp-1"]["Port"].as_u64().filter(|port| *port == 631)
    })
    .await;
    n2.put(DEREGISTER, json!({ "Node": "PRINTER" })).await;
    assert_eq!(n2.get("/v1/catalog/node/printer").await, Value::Null);
    let n1 = cluster.start(1).await;
    wait_for("the node that was down to hear of it", || async {
        let node = n1.get("/v1/catalog/node/printer").await;
        node.is_null().then_some(())
    })
    .await;
    assert_eq!(n1.get("/v1/health/service/ipp").await, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_edited_from_another_node_where_the_registration_says_so() {
    let cluster = Cluster::new(77);
    let n1 = cluster.start(1).await;
    let n2 = cluster.start(2).await;
    cluster.wait_joined(&[&n1, &n2]).await;
    let registration = json!({
        "ID": "api-1", "Name": "api", "Port": 443, "Tags": ["v4"], "EnableTagOverride": true,
    });
    n1.put("/v1/agent/service/register", registration.clone()).await;
    n2.wait_passing("api", 1).await;
    let name = n1.get("/v1/agent/self").await["Config"]["NodeName"].clone();
    let edit = json!({
        "Node": name, "SkipNodeUpdate": true,
        "Service": { "ID": "api-1", "Service": "api", "Port": 443, "Tags": ["drained"] },
    });
    n2.put(REGISTER, edit).await;
    let address = n1.ip.to_string();
    n1.wait_dig("drained.api.service.consul", &[address.as_str()]).await;
    n1.put("/v1/agent/service/register", registration).await;
    assert_eq!(n1.get("/v1/agent/services").await["api-1"]["Tags"], json!(["drained"]));

    let taken = json!({ "Node": name, "SkipNodeUpdate": true, "Service": { "Service": "new" } });
    let (status, text) = n2.send("PUT", REGISTER, &taken.to_string()).await;
    assert_eq!(status, 500);
    assert!(text.contains("runs its own agent"), "{text}");
}
