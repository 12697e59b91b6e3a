//! What SWIM needs to know of a node: who, where, and in which of its lives.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::types::NodeId;

/// One life of a node, as the membership protocol tells nodes and lives apart.
///
/// Of two identities with the same `node`, the one with the higher `generation` is the newer and
/// replaces the other at once, whatever was believed about that one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The node. Its certificate says so; a datagram that claims another is dropped.
    pub node: NodeId,
    /// Where others reach its gossip listener. Without IPv6 scope or flow: those mean nothing to
    /// another host (see [`Identity::new`]).
    pub address: SocketAddr,
    /// Rises with every life: the wall clock in milliseconds when the node started, and one more
    /// each time the node learns that it was declared dead. At most [`Identity::GENERATION_MAX`].
    pub generation: u64,
}

impl Identity {
    /// The highest generation that is accepted from the wire: far beyond any clock, and far
    /// enough from overflow that a node can always renew itself.
    pub const GENERATION_MAX: u64 = 1 << 53;

    /// Makes an identity whose address reads the same on every host.
    pub fn new(node: NodeId, address: SocketAddr, generation: u64) -> Self {
        let generation = generation.min(Self::GENERATION_MAX);
        Self { node, address: canonical(address), generation }
    }

    /// Returns the same node in a life that is newer by `steps`.
    pub(super) fn later_by(self, steps: u64) -> Self {
        let generation = self.generation.saturating_add(steps).min(Self::GENERATION_MAX);
        Self { generation, ..self }
    }
}

/// Strips what only the host itself understands: scope and flow of IPv6, the mapping of IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
    };
    SocketAddr::new(ip, address.port())
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        let next = self.later_by(1);
        (next != *self).then_some(next)
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.generation, self.address) > (adversary.generation, adversary.address)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}#{}", self.node, self.address, self.generation)
    }
}

#[cfg(test)]
mod tests {
    use foca::Identity as _;

    use super::*;

    fn at(address: &str, generation: u64) -> Identity {
        Identity::new(NodeId([1; 16]), address.parse().unwrap(), generation)
    }

    #[test]
    fn a_renewed_identity_wins_against_the_old_one() {
        let old = at("10.0.0.1:7401", 5);
        let new = old.renew().unwrap();
        assert!(new.win_addr_conflict(&old));
        assert!(!old.win_addr_conflict(&new));
    }

    #[test]
    fn an_address_reads_the_same_on_every_host() {
        assert_eq!(at("[fe80::1%3]:7401", 1), at("[fe80::1]:7401", 1));
        assert_eq!(at("[::ffff:10.0.0.1]:7401", 1), at("10.0.0.1:7401", 1));
    }

    #[test]
    fn of_two_lives_of_the_same_age_exactly_one_wins() {
        let (a, b) = (at("10.0.0.1:7401", 5), at("10.0.0.2:7401", 5));
        assert_ne!(a.win_addr_conflict(&b), b.win_addr_conflict(&a));
    }
}
