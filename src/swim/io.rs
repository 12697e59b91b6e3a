//! Everything that can happen to membership, and everything it can ask for.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::identity::Identity;
use super::roster::Member;
use crate::types::NodeId;

/// Something happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A membership datagram came. `from` is whom the connection's certificate names.
    Datagram { from: NodeId, bytes: Bytes },
    /// A join target answered. It is greeted until it is a member, or given up after a while.
    Found { node: NodeId, address: SocketAddr },
    /// This node goes for good: say goodbye to all. Every later input is ignored.
    Leave,
    /// The time of [`crate::swim::Swim::deadline`] has come, or may have.
    Tick,
    /// The other process that claims this node's id (see [`Effect::Conflict`]) gives way: this node
    /// goes on under an identity that replaces the other's everywhere.
    Prevail,
    /// The connection to `node` measured its round trip.
    RoundTrip { node: NodeId, round_trip: Duration },
}

/// What to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Send a datagram. It may be lost; nothing here depends on a single one.
    Send { to: NodeId, address: SocketAddr, bytes: Bytes },
    /// A node has become a member, or one that was down is back.
    Up(Member),
    /// A member started anew or moved, before anybody thought it down: what was known of its
    /// connection and of its progress is void.
    Renewed(Member),
    /// A member is gone: it said goodbye (`left`) or it is taken for dead.
    Down { node: NodeId, left: bool },
    /// Too many members seem to have failed at once: more likely it is us. From now (`on`) until
    /// it clears, [`Effect::Down`] is held back for all who do not say goodbye themselves.
    Guard { on: bool },
    /// The cluster had declared this node dead; it goes on under this identity.
    Rejoined(Identity),
    /// Another process claims this node's id and lives at `address`: a copied data directory or
    /// certificate. Repeated at most every ten seconds while it lasts.
    Conflict { address: SocketAddr },
}
