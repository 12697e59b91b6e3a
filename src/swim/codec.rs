//! Membership datagrams as bytes: an envelope of two bytes, then foca's header and updates in our
//! own dialect. Integers are big-endian.
//!
//! ```text
//! datagram  version u8 = 1 | kind u8 | body
//! kind 0    gossip:  identity src | u16 incarnation | identity dst | message | [u16 n | n members]
//! kind 1    leaving: identity
//! identity  node [16] | family u8 (4 or 6) | ip [4] or [16] | port u16 | generation u64
//! member    identity | incarnation u16 | state u8
//! message   tag u8 | [probe number u8] | [identity]
//! ```

use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use foca::{Header, Member, Message, State};

use super::identity::Identity;
use crate::types::NodeId;

/// The version of the dialect. Another version is another protocol and is not read.
const VERSION: u8 = 1;
const KIND_GOSSIP: u8 = 0;
const KIND_LEAVING: u8 = 1;

/// What the envelope adds to a packet of foca's.
pub(super) const ENVELOPE_BYTES: usize = 2;

/// The bytes are not a membership datagram. Which part was wrong, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed membership datagram: {0}")]
pub(super) struct Malformed(&'static str);

/// A datagram that was read to its end.
#[derive(Debug, PartialEq)]
pub(super) enum Datagram<'a> {
    /// A packet for foca: `body` is what foca reads, the rest what we look at before it does.
    Gossip { header: Header<Identity>, members: Vec<Member<Identity>>, body: &'a [u8] },
    /// This life of the sender says goodbye.
    Leaving(Identity),
}

/// Reads a datagram whole, so that nothing half-read reaches the state machine.
pub(super) fn open(bytes: &[u8]) -> Result<Datagram<'_>, Malformed> {
    let mut rest = bytes;
    if u8_of(&mut rest)? != VERSION {
        return Err(Malformed("unknown version"));
    }
    let kind = u8_of(&mut rest)?;
    let body = rest;
    match kind {
        KIND_GOSSIP => {
            let header = header_of(&mut rest)?;
            let members = members_of(&mut rest)?;
            whole(rest, Datagram::Gossip { header, members, body })
        }
        KIND_LEAVING => {
            let identity = identity_of(&mut rest)?;
            whole(rest, Datagram::Leaving(identity))
        }
        _ => Err(Malformed("unknown kind")),
    }
}

/// Puts a packet of foca's into its envelope.
pub(super) fn seal(packet: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(ENVELOPE_BYTES + packet.len());
    bytes.put_slice(&[VERSION, KIND_GOSSIP]);
    bytes.put_slice(packet);
    bytes.freeze()
}

/// Writes a goodbye.
pub(super) fn leaving(identity: &Identity) -> Bytes {
    let mut bytes = BytesMut::with_capacity(64);
    bytes.put_slice(&[VERSION, KIND_LEAVING]);
    put_identity(identity, &mut bytes).expect("BytesMut grows as needed");
    bytes.freeze()
}

/// foca's view of the dialect: without the envelope.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codec;

impl foca::Codec<Identity> for Codec {
    type Error = Malformed;

    fn encode_header(
        &mut self,
        header: &Header<Identity>,
        mut buf: impl BufMut,
    ) -> Result<(), Malformed> {
        put_identity(&header.src, &mut buf)?;
        put(&mut buf, &header.src_incarnation.to_be_bytes())?;
        put_identity(&header.dst, &mut buf)?;
        put_message(&header.message, &mut buf)
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Identity>, Malformed> {
        header_of(&mut buf)
    }

    fn encode_member(
        &mut self,
        member: &Member<Identity>,
        mut buf: impl BufMut,
    ) -> Result<(), Malformed> {
        if buf.remaining_mut() < member_bytes(member.id()) {
            return Err(Malformed("no room for a member"));
        }
        put_identity(member.id(), &mut buf)?;
        put(&mut buf, &member.incarnation().to_be_bytes())?;
        let state = match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        };
        put(&mut buf, &[state])
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Identity>, Malformed> {
        member_of(&mut buf)
    }
}

fn whole<T>(rest: &[u8], value: T) -> Result<T, Malformed> {
    if rest.is_empty() { Ok(value) } else { Err(Malformed("trailing bytes")) }
}

fn header_of(buf: &mut impl Buf) -> Result<Header<Identity>, Malformed> {
    Ok(Header {
        src: identity_of(buf)?,
        src_incarnation: u16_of(buf)?,
        dst: identity_of(buf)?,
        message: message_of(buf)?,
    })
}

/// The list of updates; a message that carries none may omit even their count.
fn members_of(buf: &mut impl Buf) -> Result<Vec<Member<Identity>>, Malformed> {
    if !buf.has_remaining() {
        return Ok(Vec::new());
    }
    let count = usize::from(u16_of(buf)?);
    // No reservation from a number that a peer wrote: each member read proves itself.
    let mut members = Vec::new();
    for _ in 0..count {
        members.push(member_of(buf)?);
    }
    Ok(members)
}

fn member_of(buf: &mut impl Buf) -> Result<Member<Identity>, Malformed> {
    let identity = identity_of(buf)?;
    let incarnation = u16_of(buf)?;
    let state = match u8_of(buf)? {
        0 => State::Alive,
        1 => State::Suspect,
        2 => State::Down,
        _ => return Err(Malformed("unknown state")),
    };
    Ok(Member::new(identity, incarnation, state))
}

fn message_of(buf: &mut impl Buf) -> Result<Message<Identity>, Malformed> {
    Ok(match u8_of(buf)? {
        1 => Message::Ping(u8_of(buf)?),
        2 => Message::Ack(u8_of(buf)?),
        3 => Message::PingReq { probe_number: u8_of(buf)?, target: identity_of(buf)? },
        4 => Message::IndirectPing { probe_number: u8_of(buf)?, origin: identity_of(buf)? },
        5 => Message::IndirectAck { probe_number: u8_of(buf)?, target: identity_of(buf)? },
        6 => Message::ForwardedAck { probe_number: u8_of(buf)?, origin: identity_of(buf)? },
        7 => Message::Announce,
        8 => Message::Feed,
        9 => Message::Gossip,
        10 => Message::TurnUndead,
        _ => return Err(Malformed("unknown message")),
    })
}

fn put_message(message: &Message<Identity>, buf: &mut impl BufMut) -> Result<(), Malformed> {
    match message {
        Message::Ping(number) => put(buf, &[1, *number]),
        Message::Ack(number) => put(buf, &[2, *number]),
        Message::PingReq { target, probe_number } => put_relay(3, *probe_number, target, buf),
        Message::IndirectPing { origin, probe_number } => put_relay(4, *probe_number, origin, buf),
        Message::IndirectAck { target, probe_number } => put_relay(5, *probe_number, target, buf),
        Message::ForwardedAck { origin, probe_number } => put_relay(6, *probe_number, origin, buf),
        Message::Announce => put(buf, &[7]),
        Message::Feed => put(buf, &[8]),
        Message::Gossip => put(buf, &[9]),
        Message::TurnUndead => put(buf, &[10]),
        // We carry no data over membership, so foca never asks for it.
        Message::Broadcast => Err(Malformed("broadcasts are not part of the dialect")),
    }
}

fn put_relay(
    tag: u8,
    number: u8,
    identity: &Identity,
    buf: &mut impl BufMut,
) -> Result<(), Malformed> {
    put(buf, &[tag, number])?;
    put_identity(identity, buf)
}

fn identity_of(buf: &mut impl Buf) -> Result<Identity, Malformed> {
    let node = NodeId(array_of(buf)?);
    let ip = match u8_of(buf)? {
        4 => IpAddr::from(array_of::<4>(buf)?),
        6 => IpAddr::from(array_of::<16>(buf)?),
        _ => return Err(Malformed("unknown address family")),
    };
    let port = u16_of(buf)?;
    let generation = u64::from_be_bytes(array_of(buf)?);
    if generation > Identity::GENERATION_MAX {
        return Err(Malformed("generation out of range"));
    }
    Ok(Identity::new(node, SocketAddr::new(ip, port), generation))
}

fn identity_bytes(identity: &Identity) -> usize {
    let ip = if identity.address.is_ipv4() { 4 } else { 16 };
    16 + 1 + ip + 2 + 8
}

fn member_bytes(identity: &Identity) -> usize {
    identity_bytes(identity) + 2 + 1
}

fn put_identity(identity: &Identity, buf: &mut impl BufMut) -> Result<(), Malformed> {
    if buf.remaining_mut() < identity_bytes(identity) {
        return Err(Malformed("no room for an identity"));
    }
    buf.put_slice(&identity.node.0);
    match identity.address.ip() {
        IpAddr::V4(ip) => {
            buf.put_u8(4);
            buf.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            buf.put_u8(6);
            buf.put_slice(&ip.octets());
        }
    }
    buf.put_u16(identity.address.port());
    buf.put_u64(identity.generation);
    Ok(())
}

fn put(buf: &mut impl BufMut, bytes: &[u8]) -> Result<(), Malformed> {
    if buf.remaining_mut() < bytes.len() {
        return Err(Malformed("no room"));
    }
    buf.put_slice(bytes);
    Ok(())
}

fn array_of<const N: usize>(buf: &mut impl Buf) -> Result<[u8; N], Malformed> {
    let mut bytes = [0; N];
    buf.try_copy_to_slice(&mut bytes).map_err(|_| Malformed("cut short"))?;
    Ok(bytes)
}

fn u8_of(buf: &mut impl Buf) -> Result<u8, Malformed> {
    array_of::<1>(buf).map(|[byte]| byte)
}

fn u16_of(buf: &mut impl Buf) -> Result<u16, Malformed> {
    array_of(buf).map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use foca::Codec as _;
    use proptest::prelude::*;

    use super::*;

    fn any_identity() -> impl Strategy<Value = Identity> {
        let generation = 0..=Identity::GENERATION_MAX;
        (any::<[u8; 16]>(), any::<IpAddr>(), any::<u16>(), generation).prop_map(
            |(node, ip, port, generation)| {
                Identity::new(NodeId(node), SocketAddr::new(ip, port), generation)
            },
        )
    }

    fn any_message() -> impl Strategy<Value = Message<Identity>> {
        (1..=10u8, any::<u8>(), any_identity()).prop_map(|(tag, number, identity)| match tag {
            1 => Message::Ping(number),
            2 => Message::Ack(number),
            3 => Message::PingReq { target: identity, probe_number: number },
            4 => Message::IndirectPing { origin: identity, probe_number: number },
            5 => Message::IndirectAck { target: identity, probe_number: number },
            6 => Message::ForwardedAck { origin: identity, probe_number: number },
            7 => Message::Announce,
            8 => Message::Feed,
            9 => Message::Gossip,
            _ => Message::TurnUndead,
        })
    }

    fn any_member() -> impl Strategy<Value = Member<Identity>> {
        let state = prop_oneof![Just(State::Alive), Just(State::Suspect), Just(State::Down)];
        (any_identity(), any::<u16>(), state)
            .prop_map(|(identity, incarnation, state)| Member::new(identity, incarnation, state))
    }

    fn write(header: &Header<Identity>, members: &[Member<Identity>]) -> Bytes {
        let mut packet = Vec::new();
        Codec.encode_header(header, &mut packet).unwrap();
        packet.put_u16(u16::try_from(members.len()).unwrap());
        members.iter().for_each(|member| Codec.encode_member(member, &mut packet).unwrap());
        seal(&packet)
    }

    proptest! {
        #[test]
        fn a_datagram_is_read_as_it_was_written(
            src in any_identity(), dst in any_identity(), src_incarnation: u16,
            message in any_message(), members in prop::collection::vec(any_member(), 0..20),
        ) {
            let header = Header { src, src_incarnation, dst, message };
            let bytes = write(&header, &members);
            let body = &bytes[ENVELOPE_BYTES..];
            prop_assert_eq!(open(&bytes), Ok(Datagram::Gossip { header, members, body }));
        }

        #[test]
        fn no_cut_and_no_noise_makes_the_reader_panic_or_accept(
            src in any_identity(), message in any_message(), member in any_member(),
            cut in 0usize..200, noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let header = Header { src, src_incarnation: 1, dst: src, message };
            let bytes = write(&header, &[member]);
            let cut = cut.min(bytes.len() - 1);
            // Everything before the count of updates is optional to none; a cut right there is
            // the one shorter datagram that is whole.
            if let Ok(Datagram::Gossip { members, .. }) = open(&bytes[..cut]) {
                prop_assert!(members.is_empty());
            }
            let _ = open(&noise);
            let mut longer = bytes.to_vec();
            longer.extend_from_slice(&noise);
            prop_assert_eq!(open(&longer).is_ok(), noise.is_empty());
        }
    }

    #[test]
    fn the_bytes_of_a_ping_stay_what_they_are() {
        let identity = |byte, address: &str| {
            Identity::new(NodeId([byte; 16]), address.parse().unwrap(), 0x0102)
        };
        let header = Header {
            src: identity(0xaa, "10.0.0.1:7401"),
            src_incarnation: 3,
            dst: identity(0xbb, "[2001:db8::1]:7401"),
            message: Message::Ping(7),
        };
        let hex: String = write(&header, &[]).iter().map(|byte| format!("{byte:02x}")).collect();
        let a = "aa".repeat(16);
        let b = "bb".repeat(16);
        assert_eq!(
            hex,
            format!(
                "0100{a}040a0000011ce90000000000000102\
                 0003{b}0620010db80000000000000000000000011ce90000000000000102\
                 01070000"
            )
        );
    }

    #[test]
    fn another_version_and_an_absurd_generation_are_refused() {
        let identity = Identity::new(NodeId([1; 16]), "10.0.0.1:1".parse().unwrap(), 9);
        let bytes = leaving(&identity);
        assert_eq!(open(&bytes), Ok(Datagram::Leaving(identity)));
        let mut newer = bytes.to_vec();
        newer[0] = 2;
        assert_eq!(open(&newer), Err(Malformed("unknown version")));
        let mut absurd = bytes.to_vec();
        let end = absurd.len();
        absurd[end - 8] = 0xff;
        assert_eq!(open(&absurd), Err(Malformed("generation out of range")));
    }
}
