//! The mirror against a real Consul 1.8.7. Runs when `TRIBUNE_TEST_CONSUL` names the binary
//! (`contrib/consul DIR` fetches it), and fails when that does not work.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Config;
use super::diff::Held;
use super::run::Ingest;
use super::run::tests::StubNode;
use crate::catalog::model::Status;

const S: Duration = Duration::from_secs(1);

/// A server on loopback, killed at the end.
struct Consul {
    url: String,
    http: reqwest::Client,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Consul {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Consul {
    async fn start(binary: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Freed before Consul takes them: it cannot be told to choose its own.
        let ports: Vec<u16> = (0..5)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect::<Vec<_>>()
            .iter()
            .map(|listener| listener.local_addr().unwrap().port())
            .collect();
        let config = json!({
            "server": true, "bootstrap_expect": 1, "node_name": "n1", "datacenter": "dc1",
            "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "data_dir": dir.path(),
            "disable_update_check": true, "disable_anonymous_signature": true,
            "log_level": "warn",
            "performance": {"raft_multiplier": 1},
            "ports": {"http": ports[0], "dns": ports[1], "server": ports[2],
                "serf_lan": ports[3], "serf_wan": ports[4], "grpc": -1},
        });
        let file = dir.path().join("config.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let child = Command::new(binary)
            .args(["agent", "-config-file"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", binary.display()));
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        let url = format!("http://127.0.0.1:{}", ports[0]);
        let consul = Self { url, http, child, _dir: dir };
        consul.until_led().await;
        consul
    }

    async fn until_led(&self) {
        for _ in 0..600 {
            let url = format!("{}/v1/status/leader", self.url);
            if let Ok(response) = self.http.get(url).send().await
                && response.text().await.is_ok_and(|text| text.len() > 2)
            {
                return;
            }
            tokio::time::sleep(S / 10).await;
        }
        panic!("Consul has no leader after a minute");
    }

    async fn put(&self, path: &str, body: Value) {
        let request = self.http.put(format!("{}{path}", self.url)).body(body.to_string());
        let response = request.send().await.unwrap();
        let (code, text) = (response.status(), response.text().await.unwrap());
        assert!(code.is_success(), "{path}: {code} {text}");
    }
}

async fn until(node: &StubNode, what: &str, is_so: impl Fn(&Held) -> bool) {
    for _ in 0..1000 {
        if is_so(&node.held.lock().unwrap()) {
            return;
        }
        tokio::time::sleep(S / 50).await;
    }
    panic!("not within 20 s: {what}; {:?}", node.held.lock().unwrap());
}

#[tokio::test]
async fn a_real_consul_is_mirrored_and_its_changes_follow_at_once() {
    let Some(binary) = std::env::var_os("TRIBUNE_TEST_CONSUL") else {
        eprintln!("skipped: TRIBUNE_TEST_CONSUL is not set (see contrib/consul)");
        return;
    };
    let consul = Consul::start(Path::new(&binary)).await;
    // Polls are far apart: what follows at once was told by Consul's blocking queries.
    let config = Config { interval: 15 * S, ..Config::new(&consul.url) };
    let ingest = Ingest::new(config).unwrap();
    let (node, stop) = (StubNode::default(), CancellationToken::new());
    let task = {
        let (ingest, node, stop) = (ingest.clone(), node.clone(), stop.clone());
        tokio::spawn(async move { ingest.run_for(node, stop).await })
    };
    register(&consul).await;
    until(&node, "the service is there", |held| held.services.contains_key("web-1")).await;
    check_fields(&node);
    assert_eq!(ingest.status().agent_version.as_deref(), Some("1.8.7"));

    consul.put("/v1/agent/check/warn/service:web-1?note=careful", json!(null)).await;
    until(&node, "the check warns", |held| {
        let check = &held.checks["service:web-1"];
        check.status == Status::Warning && check.output == "careful"
    })
    .await;

    consul.put("/v1/agent/service/maintenance/web-1?enable=true&reason=why", json!(null)).await;
    until(&node, "maintenance is on", |held| {
        (held.checks.get("_service_maintenance:web-1"))
            .is_some_and(|check| check.notes == "why" && check.status == Status::Critical)
    })
    .await;
    consul.put("/v1/agent/service/maintenance/web-1?enable=false", json!(null)).await;
    until(&node, "maintenance is off", |held| held.checks.len() == 1).await;

    consul.put("/v1/agent/service/deregister/web-2", json!(null)).await;
    until(&node, "one of two is gone", |held| held.services.len() == 1).await;

    measure(&consul, &node).await;
    stop.cancel();
    task.await.unwrap();
}

async fn register(consul: &Consul) {
    let web = json!({
        "ID": "web-1", "Name": "web", "Tags": ["v2", "a"], "Port": 8080, "Address": "10.0.0.7",
        "Meta": {"version": "2"}, "Weights": {"Passing": 10, "Warning": 2},
        "TaggedAddresses": {"wan": {"Address": "203.0.113.9", "Port": 443}},
        "EnableTagOverride": true,
        "Check": {"TTL": "600s", "Status": "passing", "Notes": "beats"},
    });
    // The second first, so that both are there when the first one is.
    consul.put("/v1/agent/service/register", json!({"ID": "web-2", "Name": "web"})).await;
    consul.put("/v1/agent/service/register", web).await;
}

fn check_fields(node: &StubNode) {
    let held = node.held.lock().unwrap();
    let web = &held.services["web-1"];
    assert_eq!(web.tags, ["v2", "a"]);
    assert_eq!((&*web.address, web.port), ("10.0.0.7", 8080));
    assert_eq!(web.tagged_addresses.keys().collect::<Vec<_>>(), ["wan"]);
    assert_eq!((web.weights.passing, web.weights.warning), (10, 2));
    assert!(web.enable_tag_override);
    assert_eq!(web.meta["version"], "2");
    let check = &held.checks["service:web-1"];
    assert_eq!((&*check.kind, &*check.service_id, &*check.notes), ("ttl", "web-1", "beats"));
    assert_eq!(check.status, Status::Passing);
    assert!(held.services["web-2"].tagged_addresses.is_empty());
}

/// Prints how long a change of status takes from Consul's answer to here.
async fn measure(consul: &Consul, node: &StubNode) {
    let mut times = Vec::new();
    for n in 0..20 {
        let (word, status) =
            if n % 2 == 0 { ("fail", Status::Critical) } else { ("pass", Status::Passing) };
        consul.put(&format!("/v1/agent/check/{word}/service:web-1"), json!(null)).await;
        let start = std::time::Instant::now();
        while node.held.lock().unwrap().checks["service:web-1"].status != status {
            assert!(start.elapsed() < 20 * S, "{word} is not here after 20 s");
            tokio::time::sleep(S / 1000).await;
        }
        times.push(start.elapsed());
    }
    times.sort();
    eprintln!("status edges from Consul to here: median {:?}, worst {:?}", times[10], times[19]);
}
