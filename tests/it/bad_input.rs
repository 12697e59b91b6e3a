//! What a hostile or broken client sends: a clear answer for it, and a node that works on.

use std::net::UdpSocket;
use std::time::Duration;

use serde_json::json;

use crate::support::{Agent, Cluster};

/// Sends one datagram and returns the answer's code, if there is an answer.
fn ask(node: &Agent, packet: &[u8]) -> Option<u8> {
    let socket = UdpSocket::bind((node.ip, 0)).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a limit");
    socket.send_to(packet, (node.ip, 8600)).expect("sent");
    let mut answer = [0; 4096];
    let length = socket.recv(&mut answer).ok()?;
    assert!(length >= 12 && answer[..2] == packet[..2], "the id is echoed");
    Some(answer[3] & 0xf)
}

/// A question for `web.internal A`.
fn question(flags: u16, count: u16) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34];
    packet.extend(flags.to_be_bytes());
    packet.extend(count.to_be_bytes());
    packet.extend([0; 6]);
    for _ in 0..count {
        packet.extend(b"\x03web\x08internal\0\0\x01\0\x01");
    }
    packet
}

#[tokio::test]
async fn malformed_dns_packets_get_what_the_standards_say() {
    let cluster = Cluster::new(51);
    let n1 = cluster.start(1).await;
    n1.register("web", "web", 1).await;
    n1.wait_dig("web.internal", &[&n1.ip.to_string()]).await;
    assert_eq!(ask(&n1, &question(0x0100, 1)), Some(0));
    assert_eq!(ask(&n1, &question(0x8100, 1)), None, "a reply is not answered");
    assert_eq!(ask(&n1, b"\x12\x34\x01"), None, "less than a header is not answered");
    assert_eq!(ask(&n1, &question(0x0100, 2)), Some(1), "two questions: FORMERR");
    assert_eq!(ask(&n1, &question(0x2800, 1)), Some(5).or(Some(4)), "an update is refused");
    let mut cut = question(0x0100, 1);
    cut.truncate(20);
    assert_eq!(ask(&n1, &cut), Some(1), "a question that breaks off: FORMERR");
    let mut looping = question(0x0100, 1);
    looping.splice(12.., [0xc0, 12, 0, 1, 0, 1]);
    assert_eq!(ask(&n1, &looping), Some(1), "a name that points at itself: FORMERR");
    let noise: Vec<u8> = (0..512u16).map(|i| (i * 31 % 251) as u8).collect();
    ask(&n1, &noise);
    assert_eq!(n1.dig("web.internal"), [n1.ip.to_string()], "the node works on");
}

#[tokio::test]
async fn malformed_requests_get_a_sentence() {
    let cluster = Cluster::new(52);
    let n1 = cluster.start(1).await;
    let register = "/v1/agent/service/register";
    for (method, path, body, status, part) in [
        ("PUT", register, "{", 400, "Request decode failed"),
        ("PUT", register, "{}", 400, "Missing service name"),
        ("PUT", register, r#"{"Name":"a","Port":"80"}"#, 400, "Port"),
        (
            "PUT",
            register,
            r#"{"Name":"a","Check":{"HTTP":"http://x"}}"#,
            400,
            "Interval must be > 0",
        ),
        (
            "PUT",
            register,
            r#"{"Name":"a","Check":{"Args":["x"],"Interval":"1s"}}"#,
            500,
            "Scripts are disabled",
        ),
        ("POST", register, "{}", 405, "method POST not allowed"),
        ("PUT", "/v1/agent/check/pass/nothing", "", 500, "does not have associated TTL"),
        (
            "PUT",
            "/v1/agent/service/maintenance/nothing?enable=true",
            "",
            404,
            "No service registered",
        ),
        ("GET", "/v1/health/service/a?index=abc", "", 400, "Invalid index"),
        ("GET", "/v1/health/service/a?index=1&wait=5", "", 400, "Invalid wait time"),
        ("GET", "/v1/health/service/a?dc=mars", "", 500, "No path to datacenter"),
        ("GET", "/v1/nothing", "", 404, ""),
    ] {
        let (found, text) = n1.send(method, path, body).await;
        assert_eq!(found, status, "{method} {path} {body}: {text}");
        assert!(text.contains(part), "{method} {path} {body}: {text}");
    }
    let large = json!({ "Name": "a", "Meta": { "k": "x".repeat(400_000) } }).to_string();
    let (status, _) = n1.send("PUT", register, &large).await;
    assert_eq!(status, 413);
    n1.register("web", "web", 1).await;
    assert_eq!(n1.dig("web.internal"), [n1.ip.to_string()], "the node works on");
}
