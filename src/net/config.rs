//! The knobs of the network.

use std::net::SocketAddr;
use std::time::Duration;

use super::snapshot;

/// The settings of [`crate::net::Net`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Where to listen for gossip (`--gossip`). Connections to others begin here too, so that
    /// they see the address they can be reached at.
    pub address: SocketAddr,
    /// How many connections are kept, some 30 KiB each. Beyond it the one that was not used for
    /// longest is closed, pinned ones last. Sensible: the size of the cluster, to 4,096.
    pub links_max: usize,
    /// How long an unused connection is kept. It costs no packets, a new handshake costs six.
    pub idle: Duration,
    /// How often a pinned connection that is idle is made to show that it lives.
    pub keep_alive: Duration,
    /// How long a peer may owe any answer to what was sent before its connection is given up.
    /// Looked at three times in that time. Not zero.
    pub silence: Duration,
    /// How many bytes a second are sent of other nodes' changes, to all peers together: relays and
    /// answers to pulls, of which four seconds' worth may go at once. Not zero.
    pub send_bytes_per_second: u64,
    /// How long a snapshot that is sent or received may make no progress before it is given up.
    pub snapshot_stall: Duration,
}

impl Config {
    /// Returns the default settings for a listener.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            links_max: 2_048,
            idle: Duration::from_secs(30 * 60),
            keep_alive: Duration::from_secs(10),
            silence: Duration::from_secs(15),
            send_bytes_per_second: 8 * 1024 * 1024,
            snapshot_stall: snapshot::STALL,
        }
    }

    /// Returns how often a connection is looked at: its round trip, its silence.
    pub(super) fn pulse(&self) -> Duration {
        (self.silence / 3).max(Duration::from_millis(1))
    }
}
