//! Resolvers that forward our zones to a node, as `contrib/resolvers` tells people to set them up.
//!
//! Each one validates with the root's key, and where it can keeps private addresses out of answers,
//! so that the exceptions in the snippets are needed. There is no test of CoreDNS.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::process::Command;

use serde_json::json;

use crate::support::resolver::{Answer, Resolver, ask, program, snippet};
use crate::support::{Agent, Cluster, registration, wait_for};

/// The key of the root, without which a resolver does not validate.
const ROOT_KEY: &str = "20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D";

/// Enough instances that their answer does not fit into UDP.
const MANY: u8 = 90;

/// What is asked over UDP and over TCP. Whatever the case of the letters, it returns with them.
const QUESTIONS: [&str; 13] = [
    "app.internal A",
    "app.service.consul A",
    "app.internal SRV",
    "app.service.consul SRV",
    "_app._tcp.internal SRV",
    "blue.app.internal A",
    "App.InTerNal A",
    "n1.node.consul A",
    "0a010001.addr.dc1.internal A",
    "app.internal AAAA",
    "app.service.consul AAAA",
    "nobody.internal A",
    "nobody.service.consul SRV",
];

/// Runs a node with a few services.
async fn node(cluster: &Cluster) -> Agent {
    let node = cluster.start(1).await;
    for k in 1..=3 {
        let mut app = registration("app", &format!("app-{k}"), 8000 + k);
        app["Address"] = json!(format!("10.1.0.{k}"));
        app["Tags"] = json!(["blue"]);
        node.put("/v1/agent/service/register", app).await;
    }
    node.put("/v1/agent/check/fail/service:app-3", json!({})).await;
    for k in 1..=MANY {
        let many = json!({
            "ID": format!("many-{k}"), "Name": "many", "Port": 9000, "Address": format!("10.2.0.{k}"),
        });
        node.put("/v1/agent/service/register", many).await;
    }
    node.wait_dig("app.internal", &["10.1.0.1", "10.1.0.2"]).await;
    node.wait_passing("many", usize::from(MANY)).await;
    node
}

/// Everything that must hold of a resolver in front of a node.
async fn answers_as_the_node_does(resolver: &Resolver, node: &Agent, knows_absence: bool) {
    let asked = SocketAddrV4::new(node.ip, 8600);
    let both = |question: &str| {
        let answer = resolver.ask(question);
        assert_eq!(answer, ask(asked, question), "{question}");
        answer
    };
    for question in QUESTIONS {
        let answers = ["+notcp", "+tcp"].map(|by| both(&format!("{by} {question}")));
        assert_eq!(answers[0], answers[1], "{question}");
        let expected = if question.starts_with("nobody") { "NXDOMAIN" } else { "NOERROR" };
        assert_eq!(answers[0].status, expected, "{question}");
        assert_eq!(answers[0].records.is_empty(), !has_records(question), "{question}");
    }
    assert_eq!(both("-x 10.1.0.1").records.len(), 1);

    // What is too large for UDP says so, and comes over TCP.
    for question in ["many.internal A", "many.service.consul SRV"] {
        assert!(resolver.ask(&format!("+ignore {question}")).is_truncated, "{question}");
        assert_eq!(both(question).records.len(), usize::from(MANY), "{question}");
        assert_eq!(
            both(&format!("+tcp {question}")).records.len(),
            usize::from(MANY),
            "{question}"
        );
    }
    follows_at_once(resolver, node, knows_absence).await;
}

fn has_records(question: &str) -> bool {
    !question.starts_with("nobody") && !question.ends_with("AAAA")
}

/// A change of health is in the very next answer: nobody keeps what has a TTL of 0. One who
/// `knows_absence` keeps until the next second that a name is missing.
async fn follows_at_once(resolver: &Resolver, node: &Agent, knows_absence: bool) {
    let lone = || async {
        node.register("lone", "lone", 80).await;
        node.wait_dig("lone.internal", &[&node.ip.to_string()]).await;
    };
    for _ in 0..3 {
        node.put("/v1/agent/check/fail/service:app-2", json!({})).await;
        node.wait_dig("app.internal", &["10.1.0.1"]).await;
        assert_eq!(addresses(&resolver.ask("app.internal A")), ["10.1.0.1"]);
        node.put("/v1/agent/check/pass/service:app-2", json!({})).await;
        node.wait_dig("app.internal", &["10.1.0.1", "10.1.0.2"]).await;
        assert_eq!(addresses(&resolver.ask("app.internal A")), ["10.1.0.1", "10.1.0.2"]);

        lone().await;
        let own = [node.ip.to_string()];
        let is_back = || addresses(&resolver.ask("lone.internal A")) == own;
        if knows_absence {
            wait_for("a service that is new", async || is_back().then_some(())).await;
        }
        assert!(is_back());
        node.put("/v1/agent/service/deregister/lone", json!({})).await;
        node.wait_dig("lone.internal", &[]).await;
        assert_eq!(resolver.ask("lone.internal A").status, "NXDOMAIN");
    }
}

/// The last words of the records: their addresses.
fn addresses(answer: &Answer) -> Vec<&str> {
    answer.records.iter().filter_map(|record| record.rsplit(' ').next()).collect()
}

/// Where the resolver of a test listens: an address of its network, next to the node's.
fn beside(node: &Agent) -> SocketAddrV4 {
    let [.., last] = node.ip.octets();
    let ip = Ipv4Addr::from(u32::from(node.ip) - u32::from(last) + 53);
    SocketAddrV4::new(ip, 5300)
}

#[tokio::test]
async fn dnsmasq_forwards_to_a_node() {
    let dnsmasq = program("dnsmasq", "dnsmasq-base");
    let cluster = Cluster::new(121);
    let node = node(&cluster).await;
    let at = beside(&node);
    let config = format!(
        "{}port={}\nlisten-address={}\nbind-interfaces\nmin-port=32768\nno-resolv\nno-hosts\nstop-dns-rebind\n\
         dnssec\ntrust-anchor=.,{}\n",
        snippet("dnsmasq.conf", "#", node.ip),
        at.port(),
        at.ip(),
        ROOT_KEY.replace(' ', ","),
    );
    fs::write(cluster.home().join("dnsmasq.conf"), config).expect("a file");
    let mut command = Command::new(dnsmasq);
    command.args(["--no-daemon", "--conf-file=dnsmasq.conf"]);
    let resolver = Resolver::start(command, at, cluster.home(), "app.internal").await;
    answers_as_the_node_does(&resolver, &node, false).await;
}

#[tokio::test]
async fn unbound_forwards_to_a_node() {
    let unbound = program("unbound", "unbound");
    let cluster = Cluster::new(122);
    let node = node(&cluster).await;
    let at = beside(&node);
    // It asks in random letters, and would serve what it has for as long as it can.
    let config = format!(
        "{}server:\n    interface: {at_ip}@{port}\n    port: {port}\n    access-control: 127.0.0.0/8 allow\n    \
         chroot: \"\"\n    username: \"\"\n    pidfile: \"\"\n    directory: \"{home}\"\n    \
         use-syslog: no\n    do-daemonize: no\n    private-address: 10.0.0.0/8\n    \
         private-address: 127.0.0.0/8\n    trust-anchor: \". DS {ROOT_KEY}\"\n    \
         use-caps-for-id: yes\n    serve-expired: yes\n    outgoing-port-avoid: 0-32767\n\
         remote-control:\n    control-enable: no\n",
        snippet("unbound.conf", "#", node.ip),
        at_ip = at.ip(),
        port = at.port(),
        home = cluster.home().display(),
    );
    fs::write(cluster.home().join("unbound.conf"), config).expect("a file");
    let mut command = Command::new(unbound);
    command.args(["-d", "-c", "unbound.conf"]);
    let resolver = Resolver::start(command, at, cluster.home(), "app.internal").await;
    answers_as_the_node_does(&resolver, &node, false).await;
}

#[tokio::test]
async fn bind_forwards_to_a_node() {
    let named = program("named", "bind9");
    let cluster = Cluster::new(123);
    let node = node(&cluster).await;
    // It listens only on addresses that an interface lists by itself.
    let at = free_port();
    let snippet = snippet("named.conf", "//", node.ip);
    let (options, zones): (Vec<&str>, Vec<&str>) =
        snippet.lines().partition(|line| line.starts_with("validate-except"));
    let config = format!(
        "options {{\n{}\ndirectory \"{home}\"; managed-keys-directory \"{home}\"; pid-file none;\n\
         use-v4-udp-ports {{ range 32768 60999; }};\n\
         session-keyfile none; lock-file none; dnssec-validation auto;\n\
         listen-on port {} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};\n}};\ncontrols {{ }};\n{}\n",
        options.join("\n"),
        at.port(),
        zones.join("\n"),
        home = cluster.home().display(),
    );
    fs::write(cluster.home().join("named.conf"), config).expect("a file");
    let mut command = Command::new(named);
    command.args(["-g", "-n", "1", "-c", "named.conf"]);
    let resolver = Resolver::start(command, at, cluster.home(), "app.internal").await;
    answers_as_the_node_does(&resolver, &node, true).await;
}

/// Finds a port that is free for both protocols at 127.0.0.1.
fn free_port() -> SocketAddrV4 {
    let is_free = |at: &SocketAddrV4| TcpListener::bind(at).is_ok();
    let port = || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, socket.local_addr().expect("an address").port())
    };
    std::iter::repeat_with(port).find(is_free).expect("a port")
}

#[tokio::test]
async fn knot_resolver_forwards_to_a_node() {
    let kresd = program("kresd", "knot-resolver");
    let cluster = Cluster::new(124);
    let node = node(&cluster).await;
    let at = beside(&node);
    let home = cluster.home().display().to_string();
    let config = format!(
        "net.listen('{}', {}, {{ kind = 'dns' }})\nmodules.load('rebinding < iterate')\n\
         cache.storage = 'lmdb://{home}/cache'\ncache.size = 10 * MB\n{}",
        at.ip(),
        at.port(),
        snippet("knot-resolver.conf", "--", node.ip),
    );
    fs::write(cluster.home().join("kresd.conf"), config).expect("a file");
    let mut command = Command::new(kresd);
    command.args(["-n", "-c", &format!("{home}/kresd.conf"), &home]);
    let resolver = Resolver::start(command, at, cluster.home(), "app.internal").await;
    answers_as_the_node_does(&resolver, &node, false).await;
}

/// It reads its configuration from fixed places, and ends when root has no other user to become: so
/// it sees a /run of its own, and runs as a user who may drop what it may do. It needs neither systemd
/// as the first process nor D-Bus, but an interface with an address besides loopback.
#[tokio::test]
async fn systemd_resolved_forwards_to_a_node() {
    let resolved = program("systemd-resolved", "systemd-resolved");
    let cluster = Cluster::new(125);
    let node = node(&cluster).await;
    let at = beside(&node);
    let test = format!(
        "[Resolve]\nDNSStubListener=no\nDNSStubListenerExtra={at}\nLLMNR=no\nMulticastDNS=no\n\
         DNSSEC=yes\n"
    );
    let write = |name: &str, text: &str| fs::write(cluster.home().join(name), text);
    let shipped = snippet("systemd-resolved.conf", "#", node.ip);
    write("tribune.conf", &shipped).expect("a file");
    write("zz-test.conf", &test).expect("a file");
    // What the snippet tells to do where answers are validated.
    write("tribune.negative", "internal\nconsul\n10.in-addr.arpa\n").expect("a file");
    let script = "mount -t tmpfs -o mode=777 none /run \
        && mkdir -p /run/systemd/resolved.conf.d /run/dnssec-trust-anchors.d \
        && mkdir -m 777 /run/systemd/resolve \
        && cp tribune.conf zz-test.conf /run/systemd/resolved.conf.d \
        && cp tribune.negative /run/dnssec-trust-anchors.d \
        && exec unshare -U --map-user=1000 --keep-caps \"$0\"";
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", script]).arg(resolved);
    command.env("SYSTEMD_LOG_TARGET", "console");
    let resolver = Resolver::start(command, at, cluster.home(), "app.internal").await;
    answers_as_the_node_does(&resolver, &node, false).await;
}
