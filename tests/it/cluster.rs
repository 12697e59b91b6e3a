//! Several nodes: what one learns the others answer, and who dies leaves every answer.

use serde_json::json;

use crate::support::{Cluster, wait_for};

#[tokio::test]
async fn what_one_node_learns_every_node_answers() {
    let cluster = Cluster::new(11);
    let (n1, n2, n3) = (cluster.start(1).await, cluster.start(2).await, cluster.start(3).await);
    cluster.wait_joined(&[&n1, &n2, &n3]).await;

    n1.register("web", "web-1", 8080).await;
    n2.put(
        "/v1/agent/service/register",
        json!({
            "ID": "web-2", "Name": "web", "Port": 8081, "Address": "10.9.8.7", "Tags": ["blue"],
            "Check": { "TTL": "24h", "Status": "passing" },
        }),
    )
    .await;
    for node in [&n1, &n2, &n3] {
        node.wait_dig("web.internal", &["10.9.8.7", &n1.ip.to_string()]).await;
        node.wait_dig("web.service.consul", &["10.9.8.7", &n1.ip.to_string()]).await;
        node.wait_dig("blue.web.internal", &["10.9.8.7"]).await;
        node.wait_dig("web-1.web.internal", &[&n1.ip.to_string()]).await;
        node.wait_dig("n1.node.internal", &[&n1.ip.to_string()]).await;
        node.wait_dig("-x 10.9.8.7", &["web.service.dc1.consul."]).await;
        let srv = node.dig("_web._tcp.internal SRV");
        assert_eq!(srv, ["1 1 8080 n1.node.dc1.internal.", "1 1 8081 0a090807.addr.dc1.internal."]);
        assert!(node.dig_raw("nothing.internal").contains("status: NXDOMAIN"));
        assert!(node.dig_raw("web.internal AAAA").contains("status: NOERROR"));
        assert!(node.dig_raw("example.com").contains("status: REFUSED"));
        assert_eq!(node.dig("+tcp web.internal").len(), 2);
        let services = node.get("/v1/catalog/services").await;
        assert_eq!(services["web"], json!(["blue"]));
    }

    // Health decides who is in an answer; a warning stays in, a failure does not.
    n2.put("/v1/agent/check/warn/service:web-2", json!({})).await;
    n3.wait_passing("web", 1).await;
    assert_eq!(n3.dig("web.internal").len(), 2);
    n2.put("/v1/agent/check/fail/service:web-2", json!({})).await;
    n3.wait_dig("web.internal", &[&n1.ip.to_string()]).await;
    n1.put("/v1/agent/service/maintenance/web-1?enable=true&reason=oil", json!({})).await;
    n3.wait_dig("web.internal", &[]).await;
    assert!(n3.dig_raw("web.internal").contains("status: NXDOMAIN"));
    n1.put("/v1/agent/service/maintenance/web-1?enable=false", json!({})).await;
    n2.put("/v1/agent/check/pass/service:web-2", json!({})).await;
    n3.wait_passing("web", 2).await;

    n1.put("/v1/agent/service/deregister/web-1", json!({})).await;
    n3.wait_dig("web.internal", &["10.9.8.7"]).await;
}

#[tokio::test]
async fn a_blocking_query_on_one_node_wakes_for_a_change_on_another() {
    let cluster = Cluster::new(12);
    let (n1, n2) = (cluster.start(1).await, cluster.start(2).await);
    cluster.wait_joined(&[&n1, &n2]).await;
    n1.register("web", "web-1", 80).await;
    n2.wait_passing("web", 1).await;

    let ask = |index: &str| {
        let url = n2.url(&format!("/v1/health/service/web?index={index}&wait=30s"));
        n2.http.get(url).send()
    };
    let index = |response: &reqwest::Response| {
        response.headers()["x-consul-index"].to_str().expect("text").to_owned()
    };
    let first = index(&ask("0").await.expect("an answer"));
    let asked = std::time::Instant::now();
    let (second, ()) = tokio::join!(ask(&first), async {
        n1.put("/v1/agent/check/fail/service:web-1", json!({})).await;
    });
    let second = second.expect("an answer");
    assert!(asked.elapsed().as_secs() < 20, "woken by the change, not by the end of the wait");
    let second_index = index(&second);
    assert!(second_index.parse::<u64>().unwrap() > first.parse::<u64>().unwrap());
    let body: serde_json::Value = second.json().await.expect("JSON");
    let statuses: Vec<_> =
        body[0]["Checks"].as_array().unwrap().iter().map(|c| &c["Status"]).collect();
    assert!(statuses.contains(&&json!("critical")), "{body}");
}

#[tokio::test]
async fn a_node_that_dies_leaves_every_answer_and_comes_back() {
    let cluster = Cluster::new(13);
    let (n1, n2, n3) = (cluster.start(1).await, cluster.start(2).await, cluster.start(3).await);
    cluster.wait_joined(&[&n1, &n2, &n3]).await;
    for node in [&n1, &n2, &n3] {
        node.register("web", "web", 80).await;
    }
    let all = [n1.ip.to_string(), n2.ip.to_string(), n3.ip.to_string()];
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    for node in [&n1, &n2, &n3] {
        node.wait_dig("web.internal", &all).await;
    }

    n3.kill();
    n1.wait_dig("web.internal", &all[..2]).await;
    n2.wait_dig("web.internal", &all[..2]).await;
    let checks = n1.get("/v1/health/node/n3").await;
    assert_eq!(checks[0]["CheckID"], "serfHealth");
    assert_eq!(checks[0]["Status"], "critical");
    // Liveness is derived, never written: the rows of the dead node are as they were.
    let (status, rows) = n1
        .send("POST", "/v1/queries", r#""SELECT status FROM checks WHERE status <> 'passing'""#)
        .await;
    assert_eq!(status, 200);
    assert!(!rows.contains("\"row\""), "{rows}");

    let n3 = cluster.start(3).await;
    for node in [&n1, &n2, &n3] {
        node.wait_dig("web.internal", &all).await;
    }
    assert_eq!(n3.terminate().await, Some(0), "{}", n3.log());
    n1.wait_dig("web.internal", &all[..2]).await;
}

#[tokio::test]
async fn a_node_that_was_away_gets_what_it_missed() {
    let cluster = Cluster::new(14);
    let (n1, n2) = (cluster.start(1).await, cluster.start(2).await);
    cluster.wait_joined(&[&n1, &n2]).await;
    n1.register("before", "before", 1).await;
    n2.wait_passing("before", 1).await;
    n2.kill();
    n1.register("meanwhile", "meanwhile", 2).await;
    n1.put("/v1/agent/service/deregister/before", json!({})).await;
    let n2 = cluster.start(2).await;
    n2.wait_passing("meanwhile", 1).await;
    n2.wait_passing("before", 0).await;
    n2.register("back", "back", 3).await;
    n1.wait_passing("back", 1).await;
}

#[tokio::test]
async fn a_stranger_is_not_heard() {
    let cluster = Cluster::new(15);
    let n1 = cluster.start(1).await;
    // The same network and names, but a CA of its own.
    let strangers = Cluster::new(15);
    let n2 = strangers.start(2).await;
    n2.register("evil", "evil", 1).await;
    wait_for("the stranger is refused", async || {
        n2.log().contains("No answer yet from a node to join by").then_some(())
    })
    .await;
    n1.wait_joined_alone().await;
    assert!(n1.dig("evil.internal").is_empty());
}

#[tokio::test]
async fn a_node_whose_disk_was_wiped_or_restored_is_heard_again() {
    let cluster = Cluster::new(16);
    let (n1, n2) = (cluster.start(1).await, cluster.start(2).await);
    cluster.wait_joined(&[&n1, &n2]).await;
    // Ports fall from life to life: what decides must be who wrote last, not what is greater.
    for port in [9091, 9092, 9090] {
        n2.register("web", "web", port).await;
    }
    n2.register("lost", "lost", 1).await;
    n1.wait_dig("web.internal SRV", &["1 1 9090 n2.node.dc1.internal."]).await;
    n1.wait_dig("lost.internal SRV", &["1 1 1 n2.node.dc1.internal."]).await;
    let (data, image) = (cluster.home().join("n2.data"), cluster.home().join("n2.image"));

    // A new database is told from an old one by the second in which it was made.
    n2.kill();
    cluster.wait_second().await;
    std::fs::rename(&data, &image).expect("its data");
    let n2 = cluster.start(2).await;
    n2.register("web", "web", 8080).await;
    n1.wait_dig("web.internal SRV", &["1 1 8080 n2.node.dc1.internal."]).await;
    n2.wait_dig("lost.internal SRV", &["1 1 1 n2.node.dc1.internal."]).await;

    // An old copy comes back, and writes before it has heard of anybody.
    n2.kill();
    cluster.wait_second().await;
    std::fs::remove_dir_all(&data).expect("its data");
    std::fs::create_dir(&data).expect("a directory");
    for file in std::fs::read_dir(&image).expect("the old data") {
        let file = file.expect("a file").path();
        if file.is_file() {
            std::fs::copy(&file, data.join(file.file_name().expect("a name"))).expect("a copy");
        }
    }
    let n2 = cluster.start(2).await;
    n2.register("web", "web", 80).await;
    n1.wait_dig("web.internal SRV", &["1 1 80 n2.node.dc1.internal."]).await;
    n2.wait_dig("web.internal SRV", &["1 1 80 n2.node.dc1.internal."]).await;
}
