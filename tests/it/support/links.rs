//! Networks of namespaces: each node has a network of its own, and all their links meet in one
//! place, where they are delayed, lossy, or cut.
//!
//! ```text
//!  namespace of node k                      namespace of the test, the hub
//!  lo    10.77.0.k   gossip
//!  eth0  10.78.k.2   HTTP, DNS   ── veth ──  vk  10.78.k.1
//! ```
//!
//! Where the kernel has `netem`, the hub routes between the links, `tc` spoils them, and routing
//! rules cut them. Where it has none, the test itself carries the packets of gossip from link to
//! link, and loses and delays them: the hub has the gossip addresses of all nodes, and for each two
//! nodes a socket that is bound to the address of the one on the link of the other.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::RngExt;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::{Agent, Cluster, Place, wait_for};

/// The port of gossip.
const GOSSIP: u16 = 7401;

/// How long the namespaces stay should the test be killed.
const ANCHOR_SECONDS: &str = "300";

/// What the links between the nodes do to packets, each direction for itself.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Weather {
    /// How long a packet takes.
    pub delay: Duration,
    /// The share of packets that are lost, in percent.
    pub loss_percent: f64,
    /// The side of a cut that each node is on; nodes that are not named are on side 0.
    pub sides: Vec<u8>,
}

impl Weather {
    fn is_cut(&self, a: u8, b: u8) -> bool {
        let side = |k: u8| self.sides.get(usize::from(k) - 1).copied().unwrap_or_default();
        side(a) != side(b)
    }
}

/// Who carries packets from link to link.
enum Carrier {
    /// The kernel, with `tc netem`.
    Kernel,
    /// This process.
    Relay(Relay),
}

/// Five or so nodes, each in a namespace of its own. Everything is gone when it is dropped.
pub struct Links {
    nodes: u8,
    anchors: Vec<Child>,
    weather: Arc<Mutex<Weather>>,
    carrier: Carrier,
}

fn gossip(k: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, k)
}

fn face(k: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, k, 2)
}

fn link(k: u8) -> String {
    format!("v{k}")
}

/// Runs a program to its end. An error says what it was and what it said.
fn run(program: &str, arguments: &str) -> Result<(), String> {
    let output = Command::new(program).args(arguments.split_whitespace()).output();
    let output = output.map_err(|error| format!("'{program}' cannot be run: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    output.status.success().then_some(()).ok_or(format!("'{program} {arguments}' failed: {said}"))
}

fn must(program: &str, arguments: &str) {
    run(program, arguments).unwrap_or_else(|error| panic!("{error}"));
}

/// Returns how a program is run in a network namespace of its own, or why it cannot be.
pub fn namespace() -> Result<&'static [&'static str], String> {
    run("ip", "-V").map_err(|error| format!("{error} (on Debian: package iproute2)"))?;
    let ways: [&[&str]; 2] = [&["-n"], &["-rn"]];
    let works = |way: &&&[&str]| run("unshare", &format!("{} true", way.join(" "))).is_ok();
    ways.iter().find(works).copied().ok_or_else(|| {
        "the system permits no network namespaces: run the tests as root, or allow users to have \
         namespaces (sysctl kernel.unprivileged_userns_clone=1, or \
         kernel.apparmor_restrict_unprivileged_userns=0)"
            .to_owned()
    })
}

impl Links {
    /// Makes the namespaces and the links of so many nodes, in a namespace that is this process's
    /// own already.
    pub async fn new(nodes: u8) -> Self {
        must("ip", "link set lo up");
        let mut links =
            Self { nodes, anchors: Vec::new(), weather: Arc::default(), carrier: Carrier::Kernel };
        for k in 1..=nodes {
            links.add(k).await;
        }
        if let Err(why) = run("tc", "qdisc add dev lo root netem delay 1ms") {
            println!("links: carried by the test itself, since there is no netem here ({why})");
            links.carrier = Carrier::Relay(Relay::start(nodes, Arc::clone(&links.weather)));
        } else {
            println!("links: tc netem");
            must("tc", "qdisc del dev lo root");
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("the hub may route");
        }
        links
    }

    async fn add(&mut self, k: u8) {
        let mut anchor = Command::new("unshare");
        anchor.args(["-n", "sleep", ANCHOR_SECONDS]).stdin(Stdio::null());
        let anchor = anchor.spawn().expect("unshare runs");
        let pid = anchor.id();
        self.anchors.push(anchor);
        let own = fs::read_link("/proc/self/ns/net").expect("a namespace");
        wait_for("a namespace", async || {
            let of = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
            (of != own).then_some(())
        })
        .await;
        let (link, gossip, face) = (link(k), gossip(k), face(k));
        must("ip", &format!("link add {link} type veth peer name eth0 netns {pid}"));
        must("ip", &format!("addr add 10.78.{k}.1/24 dev {link}"));
        must("ip", &format!("link set {link} up"));
        let inside = |arguments: &str| must("nsenter", &format!("-t {pid} -n ip {arguments}"));
        inside("link set lo up");
        inside(&format!("addr add {gossip}/32 dev lo"));
        inside(&format!("addr add {face}/24 dev eth0"));
        inside("link set eth0 up");
        inside(&format!("route add default via 10.78.{k}.1"));
        must("ip", &format!("route add {gossip}/32 via {face} dev {link}"));
    }

    /// Changes what the links do to packets.
    pub fn set(&self, weather: Weather) {
        let before = std::mem::replace(&mut *self.weather.lock().expect("no panic"), weather);
        let now = self.weather.lock().expect("no panic").clone();
        if let Carrier::Relay(_) = self.carrier {
            return;
        }
        if (before.delay, before.loss_percent) != (now.delay, now.loss_percent) {
            for k in 1..=self.nodes {
                let (delay, loss) = (now.delay.as_millis(), now.loss_percent);
                let what = format!("dev {} root netem delay {delay}ms loss {loss}%", link(k));
                must("tc", &format!("qdisc replace {what}"));
            }
        }
        let pairs = (1..=self.nodes).flat_map(|a| (1..=self.nodes).map(move |b| (a, b)));
        for (a, b) in pairs {
            let rule = format!("iif {} to {}/32 blackhole", link(a), gossip(b));
            match (before.is_cut(a, b), now.is_cut(a, b)) {
                (false, true) => must("ip", &format!("rule add {rule}")),
                (true, false) => must("ip", &format!("rule del {rule}")),
                (false, false) | (true, true) => {}
            }
        }
    }

    /// Starts the agent of node `k`, which joins by two others, without waiting.
    pub fn spawn(&self, cluster: &Cluster, k: u8, further: &[&str]) -> Agent {
        let mut command = Command::new("nsenter");
        let pid = self.anchors[usize::from(k) - 1].id().to_string();
        command.args(["-t", &pid, "-n", super::TRIBUNE]);
        let next = |by: u8| gossip((k - 1 + by) % self.nodes + 1);
        let place =
            Place { ip: face(k), gossip: gossip(k), join: vec![next(1), next(2)], node: None };
        cluster.start_at(k, command, &place, further)
    }

    /// Tells how many packets the test carried and lost, if it does.
    pub fn carried(&self) -> Option<(u64, u64)> {
        match &self.carrier {
            Carrier::Kernel => None,
            Carrier::Relay(relay) => {
                let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
                Some((read(&relay.counts.carried), read(&relay.counts.lost)))
            }
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for anchor in &mut self.anchors {
            // It may have ended by itself.
            let _ = anchor.kill();
            let _ = anchor.wait();
        }
    }
}

/// Carries packets of gossip between the links.
struct Relay {
    counts: Arc<Counts>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    carried: AtomicU64,
    lost: AtomicU64,
}

impl Relay {
    fn start(nodes: u8, weather: Arc<Mutex<Weather>>) -> Self {
        for k in 1..=nodes {
            must("ip", &format!("addr add {}/32 dev lo", gossip(k)));
            // Packets from addresses that the hub has as well are no forgeries here.
            let switch = format!("/proc/sys/net/ipv4/conf/{}/accept_local", link(k));
            fs::write(&switch, "1").unwrap_or_else(|error| panic!("{switch}: {error}"));
        }
        let counts = Arc::new(Counts::default());
        let all = || 1..=nodes;
        // On the link of the first, as the second.
        let sockets: Vec<Vec<Option<Arc<UdpSocket>>>> = all()
            .map(|on| all().map(|of| (on != of).then(|| Arc::new(socket(on, of)))).collect())
            .collect();
        let at = |on: u8, of: u8| sockets[usize::from(on) - 1][usize::from(of) - 1].clone();
        let mut tasks = Vec::new();
        for (from, to) in all().flat_map(|from| all().map(move |to| (from, to))) {
            let (Some(source), Some(sink)) = (at(from, to), at(to, from)) else { continue };
            let (weather, counts) = (Arc::clone(&weather), Arc::clone(&counts));
            tasks.push(tokio::spawn(carry((from, to), source, sink, weather, counts)));
        }
        Self { counts, tasks }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

fn socket(on: u8, of: u8) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).expect("a socket");
    socket.bind_device(Some(link(on).as_bytes())).expect("a socket on a link");
    socket.set_recv_buffer_size(1 << 20).expect("a buffer");
    socket.set_nonblocking(true).expect("a socket");
    let address = SocketAddr::from((gossip(of), GOSSIP));
    socket.bind(&address.into()).unwrap_or_else(|error| panic!("{address}: {error}"));
    UdpSocket::from_std(socket.into()).expect("a runtime")
}

async fn carry(
    (from, to): (u8, u8),
    source: Arc<UdpSocket>,
    sink: Arc<UdpSocket>,
    weather: Arc<Mutex<Weather>>,
    counts: Arc<Counts>,
) {
    let mut buffer = vec![0; 65_536];
    let target = SocketAddr::from((gossip(to), GOSSIP));
    loop {
        // An error tells of an earlier packet to a node that does not run.
        let Ok(length) = source.recv(&mut buffer).await else { continue };
        let (delay, is_lost) = {
            let weather = weather.lock().expect("no panic");
            let is_lost = rand::rng().random_bool(weather.loss_percent / 100.0);
            (weather.delay, is_lost || weather.is_cut(from, to))
        };
        let count = if is_lost { &counts.lost } else { &counts.carried };
        count.fetch_add(1, Ordering::Relaxed);
        if is_lost {
            continue;
        }
        let (packet, sink) = (buffer[..length].to_vec(), Arc::clone(&sink));
        if delay.is_zero() {
            let _ = sink.send_to(&packet, target).await;
        } else {
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let _ = sink.send_to(&packet, target).await;
            });
        }
    }
}
