//! Who learns when that a node went down or came up. An oracle that is right after a while stands
//! in for SWIM: the replica cannot tell the difference, and clusters of any size stay cheap.
//!
//! A simulation with the real SWIM replaces this file's two functions by its packets and timers;
//! everything else meets membership only as the notices that arise here.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::NodeIndex;
use super::network::Network;
use super::node::VirtualNode;
use crate::replica::Input;

/// Tells whether `other` answers to `node` at present.
pub(super) fn reaches(
    nodes: &[VirtualNode],
    network: &Network,
    node: NodeIndex,
    other: NodeIndex,
) -> bool {
    let answers = nodes[other.0].replica.is_some() && !nodes[other.0].is_frozen;
    answers && network.connects(node, other)
}

/// Lists the pairs in which the first has to learn something of the second, and after how long.
pub(super) fn notices(
    nodes: &[VirtualNode],
    network: &Network,
    rng: &mut SmallRng,
    detection: Duration,
) -> Vec<(NodeIndex, NodeIndex, Duration)> {
    let mut notices = Vec::new();
    for node in nodes.iter().filter(|node| node.replica.is_some()) {
        for other in nodes.iter().filter(|other| other.index != node.index) {
            let is_up = reaches(nodes, network, node.index, other.index);
            if is_up != node.up.contains(&other.index) {
                let after = detection.mul_f64(rng.random_range(0.3..1.0));
                notices.push((node.index, other.index, after));
            }
        }
    }
    notices
}

/// Brings a node's view of another up to date. `None`: it changed back meanwhile.
pub(super) fn learn(
    nodes: &mut [VirtualNode],
    network: &Network,
    node: NodeIndex,
    other: NodeIndex,
) -> Option<Input> {
    let is_up = reaches(nodes, network, node, other);
    let peer = nodes[other.0].id;
    let up = &mut nodes[node.0].up;
    if is_up && up.insert(other) {
        let round_trip = Some(network.round_trip(node, other));
        return Some(Input::PeerUp { node: peer, round_trip });
    }
    (!is_up && up.remove(&other)).then_some(Input::PeerDown(peer))
}
