//! From a change at a real Consul agent, or a registration, to another node's DNS.
//!
//! `cargo bench --bench visible` starts three agents on loopback, one of them beside a real Consul
//! (`TRIBUNE_TEST_CONSUL` names it; see contrib/consul), makes 200 changes at each source and asks
//! another node by DNS until the answer follows. Without `--bench` it makes a few.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

#[path = "../tests/it/support/mod.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod support;

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::json;
use support::consul::Consul;
use support::{Agent, Cluster};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let is_full = std::env::args().any(|arg| arg == "--bench");
    let changes = if is_full { 200 } else { 6 };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure(changes));
}

async fn measure(changes: usize) {
    let cluster = Cluster::new(91);
    let consul = Consul::start(cluster.address(1), cluster.home()).await;
    let n1 = cluster.start_with(1, &["--consul", &consul.url()]).await;
    let (n2, n3) = (cluster.start(2).await, cluster.start(3).await);
    cluster.wait_joined(&[&n1, &n2, &n3]).await;

    let body = json!({
        "ID": "shop", "Name": "shop", "Port": 7000,
        "Check": { "TTL": "24h", "Status": "passing" },
    });
    consul.put("/v1/agent/service/register", Some(body.clone())).await;
    n2.wait_passing("shop", 1).await;
    let mut probe = Probe::new(n2.ip, "shop");
    let mut times = Vec::new();
    for i in 0..changes {
        let verb = if i % 2 == 0 { "fail" } else { "pass" };
        let begun = Instant::now();
        consul.put(&format!("/v1/agent/check/{verb}/service:shop"), None).await;
        probe.wait(u16::from(verb == "pass"));
        times.push(begun.elapsed());
    }
    report("a check at a real Consul agent on n1 -> DNS of n2", times);

    let body = json!({
        "ID": "own", "Name": "own", "Port": 7000,
        "Check": { "TTL": "24h", "Status": "passing" },
    });
    n1.put("/v1/agent/service/register", body).await;
    n2.wait_passing("own", 1).await;
    let mut probe = Probe::new(n2.ip, "own");
    let mut times = Vec::new();
    for i in 0..changes {
        let verb = if i % 2 == 0 { "fail" } else { "pass" };
        let begun = Instant::now();
        report_check(&n1, verb).await;
        probe.wait(u16::from(verb == "pass"));
        times.push(begun.elapsed());
    }
    report("a TTL report to n1 itself            -> DNS of n2", times);

    let mut probe = Probe::new(n1.ip, "own");
    let mut times = Vec::new();
    for i in 0..changes {
        let verb = if i % 2 == 0 { "fail" } else { "pass" };
        report_check(&n1, verb).await;
        let begun = Instant::now();
        probe.wait(u16::from(verb == "pass"));
        times.push(begun.elapsed());
    }
    report("the answer to such a report          -> DNS of n1", times);
}

async fn report_check(node: &Agent, verb: &str) {
    node.put(&format!("/v1/agent/check/{verb}/service:own"), json!({})).await;
}

/// Asks one node for one service's addresses, over and over.
struct Probe {
    socket: UdpSocket,
    question: Vec<u8>,
}

impl Probe {
    fn new(ip: Ipv4Addr, service: &str) -> Self {
        let socket = UdpSocket::bind((ip, 0)).expect("a socket");
        socket.connect((ip, 8600)).expect("a peer");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a limit");
        let mut question = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        question.push(u8::try_from(service.len()).expect("a short name"));
        question.extend(service.as_bytes());
        question.extend(b"\x08internal\0\0\x01\0\x01");
        Self { socket, question }
    }

    /// Waits until the answer has so many records.
    fn wait(&mut self, records: u16) {
        let begun = Instant::now();
        loop {
            self.socket.send(&self.question).expect("sent");
            let mut answer = [0; 512];
            let length = self.socket.recv(&mut answer).expect("an answer");
            if length >= 12 && u16::from_be_bytes([answer[6], answer[7]]) == records {
                return;
            }
            assert!(begun.elapsed() < support::WITHIN, "DNS never followed");
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{what}: {} changes, p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}
