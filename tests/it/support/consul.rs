//! A real Consul agent.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value as Json, json};

use super::{client, wait_for};

/// A Consul agent (a server of its own) on one address, with Consul's ports moved out of the way.
pub struct Consul {
    pub ip: Ipv4Addr,
    home: PathBuf,
    process: Option<Child>,
    http: reqwest::Client,
}

/// Consul's HTTP port here: 8500 is Tribune's.
const HTTP_PORT: u16 = 9500;

impl Consul {
    /// Starts an agent, which keeps its data below `home`, and waits until it leads itself.
    pub async fn start(ip: Ipv4Addr, home: &Path) -> Self {
        let home = home.join("consul");
        fs::create_dir_all(&home).expect("a directory");
        let config = json!({
            "node_name": "consul-host", "server": true, "bootstrap_expect": 1,
            "bind_addr": ip.to_string(), "client_addr": ip.to_string(),
            "data_dir": home.join("data"), "leave_on_terminate": false,
            "disable_update_check": true, "disable_anonymous_signature": true,
            "ports": { "http": HTTP_PORT, "dns": 9600, "grpc": -1 },
            "performance": { "raft_multiplier": 1 },
        });
        fs::write(home.join("config.json"), config.to_string()).expect("a file");
        let mut consul = Self { ip, home, process: None, http: client() };
        consul.restart().await;
        consul
    }

    /// Returns the URL that `--consul` takes.
    pub fn url(&self) -> String {
        format!("http://{}:{HTTP_PORT}", self.ip)
    }

    /// Starts the process (again) and waits until it answers.
    pub async fn restart(&mut self) {
        let program = std::env::var("TRIBUNE_TEST_CONSUL").expect(
            "TRIBUNE_TEST_CONSUL must name a real Consul 1.8.7: `contrib/check` sets it, \
             `contrib/consul DIR` fetches one",
        );
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.home.join("log"))
            .expect("a log file");
        let process = Command::new(&program)
            .arg("agent")
            .arg(format!("-config-file={}", self.home.join("config.json").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        self.process = Some(process);
        wait_for("Consul leads itself and knows its node", async || {
            let nodes = self.try_get("/v1/catalog/nodes").await?;
            (!nodes.as_array()?.is_empty()).then_some(())
        })
        .await;
    }

    /// Ends the process as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub async fn put(&self, path: &str, body: Option<Json>) {
        let mut request = self.http.put(format!("{}{path}", self.url()));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("Consul answers");
        let status = response.status();
        assert!(status.is_success(), "PUT {path}: {status} {:?}", response.text().await);
    }

    pub async fn try_get(&self, path: &str) -> Option<Json> {
        self.http.get(format!("{}{path}", self.url())).send().await.ok()?.json().await.ok()
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        self.kill();
    }
}
