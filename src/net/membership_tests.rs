//! Membership over real connections: what the simulator cannot show.

use std::collections::BTreeMap;
use std::time::SystemTime;

use tokio::sync::{mpsc, watch};

use super::certificates::{Ca, NodeRequest};
use super::*;
use crate::swim::{Config as SwimConfig, Effect, Identity as Life, Input, State, Swim};
use crate::types::Time;

/// A node that does nothing but belong: the engine's loop in small.
struct Node {
    id: NodeId,
    address: SocketAddr,
    orders: mpsc::UnboundedSender<Order>,
    members: watch::Receiver<BTreeMap<NodeId, State>>,
}

enum Order {
    Join(SocketAddr),
    Leave,
    Vanish,
}

fn start(ca: &Ca, byte: u8) -> Node {
    let now = SystemTime::now();
    let id = NodeId([byte; 16]);
    let request = NodeRequest { node: id, name: format!("n{byte}"), days: 1 };
    let pems = ca.issue(&request, now).unwrap();
    let identity = Identity::from_pem(ca.certificate(), &pems.certificate, &pems.key, now).unwrap();
    let (net, events) = Net::bind(Config::new(([127, 0, 0, 1], 0).into()), &identity).unwrap();
    let address = net.address();
    let swim = Swim::new(Life::new(id, address, 1), SwimConfig::local(), u64::from(byte));
    let (orders, received) = mpsc::unbounded_channel();
    let (tell, members) = watch::channel(BTreeMap::new());
    tokio::spawn(run(net, events, swim, received, tell));
    Node { id, address, orders, members }
}

async fn run(
    net: Net,
    mut events: Events,
    mut swim: Swim,
    mut orders: mpsc::UnboundedReceiver<Order>,
    tell: watch::Sender<BTreeMap<NodeId, State>>,
) {
    let start = Instant::now();
    let mut leaves = false;
    loop {
        let due = swim.deadline().map_or(Duration::ZERO, |(due, _)| Duration::from_micros(due.0));
        let input = tokio::select! {
            event = events.recv() => match event {
                Some(Event::Datagram { from, bytes }) => Input::Datagram { from, bytes },
                Some(Event::Answered { node, address }) => Input::Found { node, address },
                Some(Event::RoundTrip { node, round_trip }) => Input::RoundTrip { node, round_trip },
                Some(_) | None => continue,
            },
            order = orders.recv() => match order {
                Some(Order::Join(address)) => {
                    net.dial(address);
                    continue;
                }
                Some(Order::Leave) => {
                    leaves = true;
                    Input::Leave
                }
                Some(Order::Vanish) | None => return,
            },
            () = tokio::time::sleep_until((start + due).into()) => Input::Tick,
        };
        let now = Time(u64::try_from(start.elapsed().as_micros()).unwrap());
        swim.handle(now, input);
        while let Some(effect) = swim.next_effect() {
            if let Effect::Send { to, address, bytes } = effect {
                net.datagram(to, address, bytes);
            }
        }
        tell.send_replace(
            swim.members().map(|member| (member.identity.node, member.state)).collect(),
        );
        if leaves {
            return net.close(Duration::from_secs(1)).await;
        }
    }
}

impl Node {
    /// Waits until this node believes so of another, and returns how long it took.
    async fn sees(&mut self, node: NodeId, state: State) -> Duration {
        let start = Instant::now();
        let seen = self.members.wait_for(|members| members.get(&node) == Some(&state));
        let seen = timeout(Duration::from_secs(20), seen).await;
        assert!(seen.is_ok(), "{} does not see {node} as {state:?}", self.id);
        start.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_join_one_leaves_another_is_killed_and_all_is_seen_in_time() {
    let ca = Ca::new(SystemTime::now()).unwrap();
    let [mut a, mut b, mut c, d] = [1, 2, 3, 4].map(|byte| start(&ca, byte));
    for node in [&b, &c, &d] {
        node.orders.send(Order::Join(a.address)).ok().unwrap();
    }
    let mut joined = Duration::ZERO;
    for node in [&mut a, &mut b, &mut c] {
        joined += node.sees(d.id, State::Alive).await;
    }
    let others = [(&mut a, NodeId([2; 16])), (&mut b, NodeId([3; 16])), (&mut c, NodeId([2; 16]))];
    for (node, other) in others {
        joined += node.sees(other, State::Alive).await;
    }
    d.orders.send(Order::Leave).ok().unwrap();
    let mut left = Duration::ZERO;
    for node in [&mut a, &mut b, &mut c] {
        left += node.sees(d.id, State::Left).await;
    }
    c.orders.send(Order::Vanish).ok().unwrap();
    let mut killed = Duration::ZERO;
    for node in [&mut a, &mut b] {
        killed += node.sees(c.id, State::Down).await;
    }
    println!("joined after {joined:?}, a goodbye seen after {left:?}, a crash after {killed:?}");
    assert!(joined < Duration::from_secs(5), "{joined:?}");
    assert!(left < Duration::from_secs(1), "{left:?}");
    assert!(killed < Duration::from_secs(12), "{killed:?}");
}
