//! What the network counts, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Numbers that only rise, written by the network's tasks.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub $name: AtomicU64,)+
        }

        /// The numbers as they are at one moment.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)+
            /// Connections there are now.
            pub links: u64,
        }

        impl Counters {
            pub fn read(&self, links: u64) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)+ links }
            }
        }
    };
}

counters! {
    /// Connections that were begun by this node.
    dials,
    /// Of these, those that failed.
    dials_failed,
    /// Sends that were refused because the peer did not answer of late.
    unreachable,
    /// Connections that were begun by others and taken.
    accepted,
    /// Connections of others that were refused: wrong certificate, wrong cluster, bad manners.
    refused,
    /// Handshakes that had to prove their address first, because many were pending.
    retries,
    /// Connections, begun by either side, of nodes without a common version of the protocol.
    versions_apart,
    /// Packets of UDP given to the kernel.
    packets_sent,
    /// Bytes of these, without the headers of UDP and IP.
    packet_bytes_sent,
    /// Packets of UDP taken from the kernel.
    packets_received,
    /// Bytes of these.
    packet_bytes_received,
    /// Streams of a kind that this release does not know.
    streams_unknown,
    /// Connections closed to make room for others.
    evicted,
    /// Frames written to a stream.
    frames_sent,
    /// Bytes of these.
    frame_bytes_sent,
    /// Frames read from a stream.
    frames_received,
    /// Bytes of these.
    frame_bytes_received,
    /// Frames dropped because a peer's queue was full or its connection ended.
    frames_dropped,
    /// Datagrams given to QUIC.
    datagrams_sent,
    /// Datagrams that went over a stream, because they were early or too long for the path.
    datagrams_streamed,
    /// Datagrams read.
    datagrams_received,
    /// Datagrams dropped on the way out or in, because nobody answers or the engine is behind.
    datagrams_dropped,
    /// Snapshots that were sent whole.
    snapshots_sent,
    /// Requests for a snapshot that were answered with a no.
    snapshots_declined,
    /// Snapshots that were begun and not sent whole: whoever asked went away, or did not read on.
    snapshots_failed,
    /// Bytes of snapshots given to QUIC.
    snapshot_bytes_sent,
}

impl Counters {
    pub fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub fn one(counter: &AtomicU64) {
        Self::add(counter, 1);
    }
}
