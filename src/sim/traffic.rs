//! What the nodes send, in bytes as they would be on the wire: with the headers of IP, UDP and QUIC,
//! acknowledgements and handshakes. Where real packets would share a header these count two.

use std::time::Duration;

use crate::wire::Message;

/// The headers of IPv4 and UDP.
const UDP_BYTES: usize = 28;

/// What QUIC adds to a packet: flags, an id of eight bytes, a short number, the seal.
const PACKET_BYTES: usize = 1 + 8 + 2 + 16;

/// Frame type and length of a datagram.
const DATAGRAM_FRAME_BYTES: usize = 3;

/// Type, id, offset and length of a stream's frame, and the length of ours.
const STREAM_FRAME_BYTES: usize = 8 + 4;

/// What of a stream goes into a packet: the smallest path that QUIC allows.
const STREAM_PACKET_BYTES: usize = 1_200 - PACKET_BYTES - STREAM_FRAME_BYTES;

/// A packet that acknowledges and says nothing else.
pub(super) const ACK_BYTES: usize = UDP_BYTES + PACKET_BYTES + 5;

/// A handshake with certificates on both sides: six packets, measured.
pub(super) const HANDSHAKE_BYTES: usize = 6_562 + 6 * UDP_BYTES;

/// A first packet to somebody who does not answer, and one repetition.
pub(super) const KNOCK_BYTES: usize = 2 * (1_200 + UDP_BYTES);

/// How often a link to a neighbour shows that it lives, and what that takes a side.
pub(super) const KEEP_ALIVE: (Duration, usize) =
    (Duration::from_secs(10), UDP_BYTES + PACKET_BYTES + 1 + ACK_BYTES);

/// What bytes are sent for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// SWIM's datagrams.
    Membership,
    /// Digests, comparisons, rounds, wants, and what neighbours say of their link.
    Control,
    /// Fresh commits.
    Pushes,
    /// Answers to wants.
    Repair,
    Handshakes,
}

/// Bytes by what they were sent for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// SWIM's datagrams.
    pub membership: u64,
    /// Digests, comparisons, rounds, wants, and what neighbours say of their link.
    pub control: u64,
    /// Fresh commits.
    pub pushes: u64,
    /// Answers to wants.
    pub repair: u64,
    /// Connections that were made.
    pub handshakes: u64,
    /// Links that were kept alive.
    pub keep_alive: u64,
}

impl Traffic {
    /// Returns all of it.
    pub fn sum(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Lists the parts with their names.
    pub fn parts(&self) -> [(&'static str, u64); 6] {
        let Self { membership, control, pushes, repair, handshakes, keep_alive } = *self;
        [
            ("membership", membership),
            ("control", control),
            ("pushes", pushes),
            ("repair", repair),
            ("handshakes", handshakes),
            ("keep-alive", keep_alive),
        ]
    }

    pub(super) fn add(&mut self, kind: Kind, bytes: usize) {
        *match kind {
            Kind::Membership => &mut self.membership,
            Kind::Control => &mut self.control,
            Kind::Pushes => &mut self.pushes,
            Kind::Repair => &mut self.repair,
            Kind::Handshakes => &mut self.handshakes,
        } += bytes as u64;
    }

    /// Returns what was added since.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            membership: self.membership - before.membership,
            control: self.control - before.control,
            pushes: self.pushes - before.pushes,
            repair: self.repair - before.repair,
            handshakes: self.handshakes - before.handshakes,
            keep_alive: self.keep_alive - before.keep_alive,
        }
    }
}

/// What a datagram takes on the wire.
pub(super) fn datagram_bytes(bytes: usize) -> usize {
    UDP_BYTES + PACKET_BYTES + DATAGRAM_FRAME_BYTES + bytes
}

/// What a message takes on the wire, and its acknowledgement on the way back.
pub(super) fn message_bytes(bytes: usize) -> (usize, usize) {
    let packets = bytes.div_ceil(STREAM_PACKET_BYTES).max(1);
    let sent = bytes + packets * (UDP_BYTES + PACKET_BYTES + STREAM_FRAME_BYTES);
    // Every other packet is acknowledged, and the last.
    (sent, packets.div_ceil(2) * ACK_BYTES)
}

pub(super) fn kind_of(message: &Message) -> Kind {
    match message {
        Message::Push { .. } => Kind::Pushes,
        Message::Pulled { .. } => Kind::Repair,
        _ => Kind::Control,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_message_is_one_packet_and_a_large_one_many() {
        let (small, ack) = message_bytes(100);
        assert_eq!((small, ack), (167, 60));
        let (large, acks) = message_bytes(256 * 1024);
        assert!(large > 256 * 1024 + 220 * 60 && large < 256 * 1024 * 107 / 100, "{large}");
        assert!(acks > 100 * ACK_BYTES && acks < 130 * ACK_BYTES, "{acks}");
    }
}
