//! Membership datagrams as bytes: an envelope of two bytes, then foca's header and updates in our
//! own dialect. Integers are big-endian.
//!
//! ```text
//! datagram  version u8 = 1 | kind u8 | body
//! kind 0    gossip:  identity src | u16 incarnation | identity dst | message | [u16 n | n members]
//! kind 1    leaving: identity
//! kind 2    compare: member src | u8 is it an answer | 32 sums u64
//! kind 3    members: u16 n | n members
//! identity  node [16] | family u8 (4 or 6) | ip [4] or [16] | port u16 | generation u64
//! member    identity | incarnation u16 | state u8
//! message   tag u8 | [probe number u8] | [identity]
//! ```

use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use foca::{Header, Member, Message, State};

use super::compare::{BUCKETS, Sums};
use super::config::DATAGRAM_BYTES_MAX;
use super::identity::Identity;
use crate::types::NodeId;

/// The version of the dialect. Another version is another protocol and is not read.
const VERSION: u8 = 1;
const KIND_GOSSIP: u8 = 0;
const KIND_LEAVING: u8 = 1;
const KIND_COMPARE: u8 = 2;
const KIND_MEMBERS: u8 = 3;

/// What the envelope adds to a packet of foca's.
pub(super) const ENVELOPE_BYTES: usize = 2;

/// The bytes are not a membership datagram. Which part was wrong, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed membership datagram: {0}")]
pub(super) struct Malformed(&'static str);

/// Why a datagram is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    Malformed(Malformed),
    /// A version, a kind or a message that a later release has: passed over.
    Unknown,
}

impl From<Malformed> for Unread {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

/// What says that a message is none that this release knows.
const UNKNOWN_MESSAGE: Malformed = Malformed("unknown message");

/// A datagram that was read to its end.
#[derive(Debug, PartialEq)]
pub(super) enum Datagram<'a> {
    /// A packet for foca: `body` is what foca reads, the rest what we look at before it does.
    Gossip { header: Header<Identity>, members: Vec<Member<Identity>>, body: &'a [u8] },
    /// This life of the sender says goodbye.
    Leaving(Identity),
    /// What the sender knows of members: see `compare`.
    Compare { src: Member<Identity>, is_answer: bool, sums: Sums },
    /// Members that the receiver may not know of.
    Members(Vec<Member<Identity>>),
}

/// Reads a datagram whole, so that nothing half-read reaches the state machine, and tells how many
/// bytes were left behind it: fields that a later release has added.
pub(super) fn open(bytes: &[u8]) -> Result<(Datagram<'_>, usize), Unread> {
    let mut rest = bytes;
    if u8_of(&mut rest)? != VERSION {
        return Err(Unread::Unknown);
    }
    let kind = u8_of(&mut rest)?;
    let body = rest;
    let datagram = match kind {
        KIND_GOSSIP => {
            let header = match header_of(&mut rest) {
                Err(UNKNOWN_MESSAGE) => return Err(Unread::Unknown),
                header => header?,
            };
            // A greeting carries none, and foca takes none that does.
            let members = match header.message {
                Message::Announce => Vec::new(),
                _ => members_of(&mut rest)?,
            };
            // foca would take what is left for something of its own.
            let body = &body[..body.len() - rest.len()];
            Datagram::Gossip { header, members, body }
        }
        KIND_LEAVING => Datagram::Leaving(identity_of(&mut rest)?),
        KIND_COMPARE => Datagram::Compare {
            src: member_of(&mut rest)?,
            is_answer: u8_of(&mut rest)? != 0,
            sums: sums_of(&mut rest)?,
        },
        KIND_MEMBERS => Datagram::Members(members_of(&mut rest)?),
        _ => return Err(Unread::Unknown),
    };
    Ok((datagram, rest.len()))
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

/// Writes a comparison.
pub(super) fn compare(src: &Member<Identity>, is_answer: bool, sums: &Sums) -> Bytes {
    let mut bytes = BytesMut::with_capacity(DATAGRAM_BYTES_MAX);
    bytes.put_slice(&[VERSION, KIND_COMPARE]);
    foca::Codec::encode_member(&mut Codec, src, &mut bytes).expect("BytesMut grows as needed");
    bytes.put_u8(u8::from(is_answer));
    sums.iter().for_each(|sum| bytes.put_u64(*sum));
    bytes.freeze()
}

/// Writes members into as many datagrams as it takes.
pub(super) fn members(members: &[Member<Identity>]) -> Vec<Bytes> {
    let mut datagrams = Vec::new();
    let mut rest = members;
    while !rest.is_empty() {
        let mut room = DATAGRAM_BYTES_MAX - ENVELOPE_BYTES - 2;
        let fits = |member: &&Member<Identity>| {
            let left = room.checked_sub(member_bytes(member.id()));
            room = left.unwrap_or(0);
            left.is_some()
        };
        let (now, later) = rest.split_at(rest.iter().take_while(fits).count());
        let mut bytes = BytesMut::with_capacity(DATAGRAM_BYTES_MAX);
        bytes.put_slice(&[VERSION, KIND_MEMBERS]);
        bytes.put_u16(u16::try_from(now.len()).expect("a datagram has room for few"));
        for member in now {
            foca::Codec::encode_member(&mut Codec, member, &mut bytes)
                .expect("BytesMut grows as needed");
        }
        datagrams.push(bytes.freeze());
        rest = later;
    }
    datagrams
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

fn sums_of(buf: &mut impl Buf) -> Result<Sums, Malformed> {
    let mut sums = [0; BUCKETS];
    for sum in &mut sums {
        *sum = u64::from_be_bytes(array_of(buf)?);
    }
    Ok(sums)
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
        _ => return Err(UNKNOWN_MESSAGE),
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
    use crate::swim::LEFT;

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
        if header.message == Message::Announce {
            return seal(&packet);
        }
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
            let members = if message == Message::Announce { Vec::new() } else { members };
            let header = Header { src, src_incarnation, dst, message };
            let bytes = write(&header, &members);
            let body = &bytes[ENVELOPE_BYTES..];
            prop_assert_eq!(open(&bytes), Ok((Datagram::Gossip { header, members, body }, 0)));
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
            if let Ok((Datagram::Gossip { members, .. }, _)) = open(&bytes[..cut]) {
                prop_assert!(members.is_empty());
            }
            let _ = open(&noise);
            // What a later release adds is passed over, and not given to foca.
            let mut longer = bytes.to_vec();
            longer.extend_from_slice(&noise);
            let (whole, _) = open(&bytes).unwrap();
            prop_assert_eq!(open(&longer), Ok((whole, noise.len())));
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
    fn golden_datagrams_are_read_and_written_as_they_were() {
        let identity = |byte, address: &str| {
            Identity::new(NodeId([byte; 16]), address.parse().unwrap(), 0x0102_0304)
        };
        let (a, b) = (identity(0xaa, "10.0.0.1:7401"), identity(0xbb, "[2001:db8::1]:7401"));
        let members = vec![
            Member::new(a, 1, State::Alive),
            Member::new(b, 2, State::Suspect),
            Member::new(a, LEFT, State::Down),
        ];
        let of = |message| {
            let header = Header { src: a, src_incarnation: 3, dst: b, message };
            let carries_none = matches!(header.message, Message::Announce);
            Said::Gossip(header, if carries_none { Vec::new() } else { members.clone() })
        };
        let known = |is_answer| Said::Compare(members[0].clone(), is_answer, [0x0908; BUCKETS]);
        let samples = [
            ("leaving", Said::Leaving(a)),
            ("compare", known(false)),
            ("compare-answer", known(true)),
            ("members", Said::Members(members.clone())),
            ("ping", of(Message::Ping(7))),
            ("ack", of(Message::Ack(7))),
            ("ping-req", of(Message::PingReq { probe_number: 7, target: b })),
            ("indirect-ping", of(Message::IndirectPing { probe_number: 7, origin: b })),
            ("indirect-ack", of(Message::IndirectAck { probe_number: 7, target: b })),
            ("forwarded-ack", of(Message::ForwardedAck { probe_number: 7, origin: b })),
            ("announce", of(Message::Announce)),
            ("feed", of(Message::Feed)),
            ("gossip", of(Message::Gossip)),
            ("turn-undead", of(Message::TurnUndead)),
        ];
        let encode = |said: &Said| match said {
            Said::Leaving(identity) => leaving(identity).to_vec(),
            Said::Gossip(header, members) => write(header, members).to_vec(),
            Said::Compare(src, is_answer, sums) => compare(src, *is_answer, sums).to_vec(),
            Said::Members(members) => super::members(members)[0].to_vec(),
        };
        let decode = |bytes: &[u8]| match open(bytes).unwrap() {
            (Datagram::Leaving(identity), 0) => Said::Leaving(identity),
            (Datagram::Gossip { header, members, .. }, 0) => Said::Gossip(header, members),
            (Datagram::Compare { src, is_answer, sums }, 0) => Said::Compare(src, is_answer, sums),
            (Datagram::Members(members), 0) => Said::Members(members),
            (_, left) => panic!("{left} bytes are left"),
        };
        crate::wire::golden::hold("swim", &samples, encode, decode);
        // Tag by tag: whatever is known has a sample.
        for tag in 0..=u8::MAX {
            let mut packet = Vec::new();
            let header = Header { src: a, src_incarnation: 3, dst: b, message: Message::Announce };
            Codec.encode_header(&header, &mut packet).unwrap();
            *packet.last_mut().unwrap() = tag;
            let exists = open(&seal(&packet)) != Err(Unread::Unknown);
            assert_eq!(exists, (1..=10).contains(&tag), "message {tag}: add a sample");
        }
    }

    /// A datagram without the bytes that foca is given.
    #[derive(Debug, PartialEq)]
    enum Said {
        Gossip(Header<Identity>, Vec<Member<Identity>>),
        Leaving(Identity),
        Compare(Member<Identity>, bool, Sums),
        Members(Vec<Member<Identity>>),
    }

    #[test]
    fn members_go_into_as_many_datagrams_as_it_takes() {
        let identity = |n: u8, address: &str| {
            Member::alive(Identity::new(NodeId([n; 16]), address.parse().unwrap(), 1))
        };
        for (address, in_one) in [("10.0.0.1:7401", 33), ("[2001:db8::1]:7401", 24)] {
            let all: Vec<_> = (0..100).map(|n| identity(n, address)).collect();
            let datagrams = super::members(&all);
            assert!(datagrams.iter().all(|bytes| bytes.len() <= DATAGRAM_BYTES_MAX));
            let read: Vec<Vec<_>> = datagrams
                .iter()
                .map(|bytes| match open(bytes) {
                    Ok((Datagram::Members(members), 0)) => members,
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(read[0].len(), in_one);
            assert_eq!(read.concat(), all);
        }
        assert!(super::members(&[]).is_empty());
    }

    #[test]
    fn another_version_and_an_absurd_generation_are_refused() {
        let identity = Identity::new(NodeId([1; 16]), "10.0.0.1:1".parse().unwrap(), 9);
        let bytes = leaving(&identity);
        assert_eq!(open(&bytes), Ok((Datagram::Leaving(identity), 0)));
        for at in [0, 1] {
            let mut newer = bytes.to_vec();
            newer[at] = 99;
            assert_eq!(open(&newer), Err(Unread::Unknown), "another version, another kind");
        }
        let mut absurd = bytes.to_vec();
        let end = absurd.len();
        absurd[end - 8] = 0xff;
        let refused = Unread::Malformed(Malformed("generation out of range"));
        assert_eq!(open(&absurd), Err(refused));
    }
}
