//! Messages as bytes: the protocol's version, the kind, and what the kind needs.

use std::collections::BTreeSet;
use std::time::Duration;

use super::change::{read_piece, write_piece};
use super::codec::{DecodeError, Reader, Writer};
use super::content::{read_mark, read_seen, read_stretch, write_mark, write_seen, write_stretch};
use super::{BucketSet, Cut, Message, Neighbour, Offer, PROTOCOL_VERSION, RequestId, Versions};
use crate::crdt::Part;
use crate::crdt::storage::Era;
use crate::ledger::round::Nodes;
use crate::ledger::{BUCKETS, Round};
use crate::types::{Epoch, NodeId, Origin, Version};

/// An origin and the shortest varint.
const HEAD_BYTES_MIN: usize = Origin::BYTES + 1;

/// A node's id and the shortest varint.
const NODE_BYTES_MIN: usize = 16 + 1;

mod kind {
    pub const HELLO: u8 = 1;
    pub const KNOWN: u8 = 2;
    pub const NEIGHBOUR: u8 = 3;
    pub const PUSH: u8 = 4;
    pub const HEADS: u8 = 5;
    pub const BUCKETS: u8 = 6;
    pub const BUCKET_HEADS: u8 = 7;
    pub const WANT: u8 = 8;
    pub const PULLED: u8 = 9;
    pub const BUSY: u8 = 10;
    pub const GONE: u8 = 11;
    pub const JOIN: u8 = 12;
    pub const WELCOME: u8 = 13;
    pub const ROUND: u8 = 14;
    pub const FORGOTTEN: u8 = 15;
    pub const OFFER: u8 = 16;
    pub const TAKE: u8 = 17;
    pub const LOOK: u8 = 18;
    pub const SEEN: u8 = 19;
}

mod neighbour {
    pub const ASK: u8 = 0;
    pub const ASK_URGENTLY: u8 = 1;
    pub const ACCEPTED: u8 = 2;
    pub const REFUSED: u8 = 3;
    pub const PART: u8 = 4;
    pub const ENDED: u8 = 5;
}

/// Writes a message, without a frame around it.
///
/// It fits into a frame as long as its piece does: see [`super::piece_bytes`].
pub fn encode(message: &Message) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.byte(PROTOCOL_VERSION);
    match message {
        Message::Hello { origin, head, era, asks } => {
            write_head(&mut writer, kind::HELLO, *origin, *head);
            writer.varint(*era);
            writer.byte(u8::from(*asks));
        }
        Message::Known { origin, head } => write_head(&mut writer, kind::KNOWN, *origin, *head),
        Message::Neighbour(word) => {
            writer.byte(kind::NEIGHBOUR);
            writer.byte(neighbour_byte(*word));
        }
        Message::Push { hops, piece } => {
            writer.byte(kind::PUSH);
            writer.byte(*hops);
            write_piece(&mut writer, piece);
        }
        Message::Offer(offers) => {
            writer.byte(kind::OFFER);
            writer.count(offers.len());
            for Offer { origin, version, bytes } in offers {
                writer.origin(*origin);
                writer.varint(version.0);
                writer.varint(*bytes);
            }
        }
        Message::Take(versions) => {
            writer.byte(kind::TAKE);
            write_heads(&mut writer, versions);
        }
        Message::Heads(heads) => {
            writer.byte(kind::HEADS);
            write_heads(&mut writer, heads);
        }
        Message::Buckets(hashes) => {
            writer.byte(kind::BUCKETS);
            write_buckets(&mut writer, hashes);
        }
        Message::BucketHeads { buckets, heads } => {
            writer.byte(kind::BUCKET_HEADS);
            writer.raw(&buckets.0);
            write_heads(&mut writer, heads);
        }
        Message::Want { request, origin, after, part, is_whole } => {
            writer.byte(kind::WANT);
            writer.varint(request.0);
            writer.origin(*origin);
            writer.varint(after.0);
            writer.varint(*part);
            writer.byte(u8::from(*is_whole));
        }
        Message::Pulled { request, piece, head, cut } => {
            writer.byte(kind::PULLED);
            writer.varint(request.0);
            writer.varint(head.0);
            writer.varint(cut.from);
            writer.varint(cut.to);
            write_piece(&mut writer, piece);
        }
        Message::Busy { request, retry_after } => {
            writer.byte(kind::BUSY);
            writer.varint(request.0);
            writer.varint(u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX));
        }
        Message::Gone { request, floor } => {
            writer.byte(kind::GONE);
            writer.varint(request.0);
            writer.varint(floor.0);
        }
        Message::Join { origin, era } => {
            writer.byte(kind::JOIN);
            writer.origin(*origin);
            writer.varint(*era);
        }
        Message::Welcome { is_settled, length, heads, floor, era, retired, forgotten } => {
            writer.byte(kind::WELCOME);
            writer.byte(u8::from(*is_settled));
            writer.varint(*length);
            write_heads(&mut writer, heads);
            write_heads(&mut writer, floor);
            writer.varint(era.held);
            writer.varint(era.erased);
            write_heads(&mut writer, retired);
            write_nodes(&mut writer, forgotten);
        }
        Message::Round(round) => {
            writer.byte(kind::ROUND);
            write_round(&mut writer, round);
        }
        Message::Forgotten { origin, last } => {
            writer.byte(kind::FORGOTTEN);
            writer.origin(*origin);
            writer.varint(last.0);
        }
        Message::Look { request, mark, stretch, wants_rows } => {
            writer.byte(kind::LOOK);
            writer.varint(request.0);
            write_mark(&mut writer, *mark);
            writer.byte(u8::from(*wants_rows));
            write_stretch(&mut writer, stretch);
        }
        Message::Seen { request, seen } => {
            writer.byte(kind::SEEN);
            writer.varint(request.0);
            write_seen(&mut writer, seen);
        }
    }
    writer.into_bytes()
}

/// Reads a message. Whatever the bytes are, it does not panic, and it allocates no more than
/// [`super::codec::DECODED_BYTES_MAX`].
pub fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
    read(bytes).map(|(message, _)| message)
}

/// As [`decode`], and tells how many bytes were left behind the message: fields that a later release
/// has added. They are passed over.
pub fn read(bytes: &[u8]) -> Result<(Message, usize), DecodeError> {
    let mut reader = Reader::new(bytes);
    let version = reader.byte()?;
    if !Versions::SPOKEN.contains(version) {
        return Err(DecodeError::UnknownVersion(version));
    }
    let message = read_body(&mut reader)?;
    Ok((message, reader.left()))
}

fn read_body(reader: &mut Reader<'_>) -> Result<Message, DecodeError> {
    Ok(match reader.byte()? {
        kind::HELLO => Message::Hello {
            origin: reader.origin()?,
            head: reader.version()?,
            era: reader.number()?,
            asks: read_bool(reader)?,
        },
        kind::KNOWN => Message::Known { origin: reader.origin()?, head: reader.version()? },
        kind::NEIGHBOUR => Message::Neighbour(read_neighbour(reader)?),
        kind::PUSH => Message::Push { hops: reader.byte()?, piece: read_piece(reader, false)? },
        kind::OFFER => Message::Offer(reader.list(HEAD_BYTES_MIN + 1, read_offer)?),
        kind::TAKE => Message::Take(read_heads(reader)?),
        kind::HEADS => Message::Heads(read_heads(reader)?),
        kind::BUCKETS => Message::Buckets(read_buckets(reader)?),
        kind::BUCKET_HEADS => {
            let buckets = BucketSet(reader.array()?);
            Message::BucketHeads { buckets, heads: read_heads(reader)? }
        }
        kind::WANT => Message::Want {
            request: RequestId(reader.number()?),
            origin: reader.origin()?,
            after: reader.version()?,
            part: reader.number()?,
            is_whole: read_bool(reader)?,
        },
        kind::PULLED => read_pulled(reader)?,
        kind::BUSY => Message::Busy {
            request: RequestId(reader.number()?),
            retry_after: Duration::from_millis(reader.number()?),
        },
        kind::GONE => {
            Message::Gone { request: RequestId(reader.number()?), floor: reader.version()? }
        }
        kind::JOIN => Message::Join { origin: reader.origin()?, era: reader.number()? },
        kind::WELCOME => Message::Welcome {
            is_settled: read_bool(reader)?,
            length: reader.number()?,
            heads: read_heads(reader)?,
            floor: read_heads(reader)?,
            era: Era { held: reader.number()?, erased: reader.number()? },
            retired: read_heads(reader)?,
            forgotten: read_nodes(reader)?,
        },
        kind::ROUND => Message::Round(Box::new(read_round(reader)?)),
        kind::FORGOTTEN => {
            Message::Forgotten { origin: reader.origin()?, last: read_epoch(reader)? }
        }
        kind::LOOK => Message::Look {
            request: RequestId(reader.number()?),
            mark: read_mark(reader)?,
            wants_rows: read_bool(reader)?,
            stretch: read_stretch(reader)?,
        },
        kind::SEEN => {
            let request = RequestId(reader.number()?);
            Message::Seen { request, seen: Box::new(read_seen(reader)?) }
        }
        unknown => return Err(DecodeError::UnknownKind(unknown)),
    })
}

fn read_pulled(reader: &mut Reader<'_>) -> Result<Message, DecodeError> {
    let request = RequestId(reader.number()?);
    let head = reader.version()?;
    let cut = Cut { from: reader.number()?, to: reader.number()? };
    let piece = read_piece(reader, cut.to > 0)?;
    if piece.through > head || (cut.to > 0 && piece.through == head) {
        return Err(DecodeError::Impossible("a piece goes beyond the head it was cut from"));
    }
    Ok(Message::Pulled { request, piece, head, cut })
}

/// Writes a part of a pull, for a storage that keeps it until the rest has come.
pub fn encode_part(part: &Part) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.byte(PROTOCOL_VERSION);
    writer.byte(u8::from(part.is_cut));
    write_piece(&mut writer, &part.piece);
    writer.into_bytes()
}

/// Reads what [`encode_part`] wrote.
pub fn decode_part(bytes: &[u8]) -> Result<Part, DecodeError> {
    let mut reader = Reader::new(bytes);
    let version = reader.byte()?;
    if version != PROTOCOL_VERSION {
        return Err(DecodeError::UnknownVersion(version));
    }
    let is_cut = reader.byte()? != 0;
    let piece = read_piece(&mut reader, is_cut)?;
    reader.end()?;
    Ok(Part { piece, is_cut })
}

fn write_head(writer: &mut Writer, kind: u8, origin: Origin, head: Version) {
    writer.byte(kind);
    writer.origin(origin);
    writer.varint(head.0);
}

fn write_heads(writer: &mut Writer, heads: &[(Origin, Version)]) {
    writer.count(heads.len());
    for (origin, head) in heads {
        writer.origin(*origin);
        writer.varint(head.0);
    }
}

fn read_heads(reader: &mut Reader<'_>) -> Result<Vec<(Origin, Version)>, DecodeError> {
    reader.list(HEAD_BYTES_MIN, |reader| Ok((reader.origin()?, reader.version()?)))
}

fn read_offer(reader: &mut Reader<'_>) -> Result<Offer, DecodeError> {
    Ok(Offer { origin: reader.origin()?, version: reader.version()?, bytes: reader.number()? })
}

fn read_bool(reader: &mut Reader<'_>) -> Result<bool, DecodeError> {
    match reader.byte()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Impossible("a claim is neither true nor false")),
    }
}

fn write_round(writer: &mut Writer, round: &Round) {
    writer.varint(round.number);
    for nodes in [&round.told, &round.known, &round.forgotten] {
        write_nodes(writer, nodes);
    }
    for heads in [&round.low, &round.high] {
        let heads: Vec<(Origin, Version)> = heads.iter().map(|(o, v)| (*o, *v)).collect();
        write_heads(writer, &heads);
    }
    for origins in [&round.spent, &round.retired] {
        writer.count(origins.len());
        origins.iter().for_each(|origin| writer.origin(*origin));
    }
    writer.varint(round.era);
}

fn read_round(reader: &mut Reader<'_>) -> Result<Round, DecodeError> {
    Ok(Round {
        number: reader.number()?,
        told: read_nodes(reader)?,
        known: read_nodes(reader)?,
        forgotten: read_nodes(reader)?,
        low: read_heads(reader)?.into_iter().collect(),
        high: read_heads(reader)?.into_iter().collect(),
        spent: read_origins(reader)?,
        retired: read_origins(reader)?,
        era: reader.number()?,
    })
}

fn read_origins(reader: &mut Reader<'_>) -> Result<BTreeSet<Origin>, DecodeError> {
    Ok(reader.list(Origin::BYTES, |reader| reader.origin())?.into_iter().collect())
}

fn write_nodes(writer: &mut Writer, nodes: &Nodes) {
    writer.count(nodes.len());
    for (node, epoch) in nodes {
        writer.raw(&node.0);
        writer.varint(epoch.0);
    }
}

fn read_nodes(reader: &mut Reader<'_>) -> Result<Nodes, DecodeError> {
    let nodes = reader.list(NODE_BYTES_MIN, |reader| {
        let node = NodeId(reader.array()?);
        Ok((node, read_epoch(reader)?))
    })?;
    Ok(nodes.into_iter().collect())
}

fn read_epoch(reader: &mut Reader<'_>) -> Result<Epoch, DecodeError> {
    reader.number().map(Epoch)
}

/// Which buckets are not empty, and the hashes of those: a small cluster fills few.
fn write_buckets(writer: &mut Writer, hashes: &[u64; BUCKETS]) {
    let filled = || (0..=u8::MAX).zip(hashes).filter(|(_, hash)| **hash != 0);
    let mut buckets = BucketSet::default();
    filled().for_each(|(bucket, _)| buckets.insert(bucket));
    writer.raw(&buckets.0);
    filled().for_each(|(_, hash)| writer.raw(&hash.to_be_bytes()));
}

fn read_buckets(reader: &mut Reader<'_>) -> Result<Box<[u64; BUCKETS]>, DecodeError> {
    let buckets = BucketSet(reader.array()?);
    let mut hashes = Box::new([0; BUCKETS]);
    for (bucket, hash) in (0..=u8::MAX).zip(hashes.iter_mut()) {
        if buckets.contains(bucket) {
            *hash = u64::from_be_bytes(reader.array()?);
            if *hash == 0 {
                return Err(DecodeError::Impossible("an empty bucket among those that are not"));
            }
        }
    }
    Ok(hashes)
}

fn neighbour_byte(word: Neighbour) -> u8 {
    match word {
        Neighbour::Ask { urgent: false } => neighbour::ASK,
        Neighbour::Ask { urgent: true } => neighbour::ASK_URGENTLY,
        Neighbour::Accepted => neighbour::ACCEPTED,
        Neighbour::Refused => neighbour::REFUSED,
        Neighbour::Part => neighbour::PART,
        Neighbour::Ended => neighbour::ENDED,
    }
}

fn read_neighbour(reader: &mut Reader<'_>) -> Result<Neighbour, DecodeError> {
    Ok(match reader.byte()? {
        neighbour::ASK => Neighbour::Ask { urgent: false },
        neighbour::ASK_URGENTLY => Neighbour::Ask { urgent: true },
        neighbour::ACCEPTED => Neighbour::Accepted,
        neighbour::REFUSED => Neighbour::Refused,
        neighbour::PART => Neighbour::Part,
        neighbour::ENDED => Neighbour::Ended,
        _ => return Err(DecodeError::Impossible("a neighbour says no known word")),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::crdt::content::{Mark, Range, RowState, Seen, Stretch};
    use crate::crdt::merge::CellClock;
    use crate::crdt::{CellChange, Changeset, Life, Piece, RowChange, Stamp, TableChanges};
    use crate::ledger::round::Told;
    use crate::types::{Epoch, NodeId, Scope, Value, Wall};
    use crate::wire::piece_bytes;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn origin(node: u8) -> Origin {
        Origin { scope: Scope(0), node: NodeId([node; 16]), epoch: Epoch(1) }
    }

    /// The bytes of a released version of the protocol must never change.
    fn check(message: &Message, golden: &str) {
        let bytes = encode(message);
        assert_eq!(hex(&bytes), golden.replace([' ', '\n'], ""));
        assert_eq!(decode(&bytes).as_ref(), Ok(message));
    }

    const ORIGIN_7: &str = "0000 07070707070707070707070707070707 0000000000000001";

    #[test]
    fn a_push_is_written_so() {
        let stamp = Stamp { origin: origin(7), version: Version(300) };
        let life = Life { length: 1, stamp: Stamp { version: Version(2), ..stamp } };
        let row = RowChange {
            key: Arc::from(&b"key"[..]),
            life,
            cells: vec![
                CellChange { column: 0, count: 1, value: Value::from("v") },
                CellChange { column: 1, count: 2, value: Value::Integer(-3) },
            ],
        };
        let table = TableChanges {
            table: Arc::from("kv"),
            columns: vec![Arc::from("value"), Arc::from("flags")],
            rows: vec![row],
        };
        let changeset = Changeset { stamp, at: Wall(1_000), tables: vec![table] };
        let message = Message::Push { hops: 2, piece: Piece::of(Arc::new(changeset)) };
        check(
            &message,
            &format!(
                "01 04 02 {ORIGIN_7} ab02 01 01
                 01 e807 01 02 6b76 02 05 76616c7565 05 666c616773
                 01 03 6b6579 01 01 02
                 02 00 01 02 01 76 01 02 04 05"
            ),
        );
    }

    #[test]
    fn the_short_messages_are_written_so() {
        let (origin, head) = (origin(7), Version(5));
        check(
            &Message::Hello { origin, head, era: 300, asks: true },
            &format!("01 01 {ORIGIN_7} 05 ac02 01"),
        );
        check(&Message::Known { origin, head }, &format!("01 02 {ORIGIN_7} 05"));
        check(&Message::Neighbour(Neighbour::Ask { urgent: true }), "01 03 01");
        check(&Message::Heads(vec![(origin, head)]), &format!("01 05 01 {ORIGIN_7} 05"));
        let offer = Offer { origin, version: head, bytes: 300 };
        check(&Message::Offer(vec![offer]), &format!("01 10 01 {ORIGIN_7} 05 ac02"));
        check(&Message::Take(vec![(origin, head)]), &format!("01 11 01 {ORIGIN_7} 05"));
        let request = RequestId(9);
        check(
            &Message::Want { request, origin, after: Version(130), part: 3, is_whole: true },
            &format!("01 08 09 {ORIGIN_7} 8201 03 01"),
        );
        let piece =
            Piece { origin, after: Version(4), through: Version(5), changesets: Vec::new() };
        check(
            &Message::Pulled { request, piece, head, cut: Cut::default() },
            &format!("01 09 09 05 00 00 {ORIGIN_7} 04 01 00"),
        );
        let stamp = Stamp { origin, version: head };
        let changesets = vec![Arc::new(Changeset { stamp, at: Wall(2), tables: Vec::new() })];
        let piece = Piece { origin, after: Version(4), through: Version(4), changesets };
        let cut = Cut { from: 2, to: 300 };
        check(
            &Message::Pulled { request, piece, head, cut },
            &format!("01 09 09 05 02 ac02 {ORIGIN_7} 04 00 01 01 02 00"),
        );
        let retry_after = Duration::from_millis(250);
        check(&Message::Busy { request, retry_after }, "01 0a 09 fa01");
        check(&Message::Gone { request, floor: head }, "01 0b 09 05");
        check(&Message::Join { origin, era: 2 }, &format!("01 0c {ORIGIN_7} 02"));
        let (heads, floor) = (vec![(origin, head)], vec![(origin, Version(3))]);
        check(
            &Message::Welcome {
                is_settled: true,
                length: 8,
                retired: heads.clone(),
                heads,
                floor,
                era: Era { held: 2, erased: 1 },
                forgotten: Nodes::from([(origin.node, Epoch(4))]),
            },
            &format!(
                "01 0d 01 08 01 {ORIGIN_7} 05 01 {ORIGIN_7} 03 02 01 01 {ORIGIN_7} 05 01 07070707070707070707070707070707 04"
            ),
        );
        check(&Message::Forgotten { origin, last: Epoch(300) }, &format!("01 0f {ORIGIN_7} ac02"));
    }

    #[test]
    fn looks_at_rows_are_written_so() {
        let (request, mark) = (RequestId(9), Mark { heads: 1, fingerprint: 2 });
        let marked = "0000000000000001 0000000000000002";
        let key = |text: &str| Arc::<[u8]>::from(text.as_bytes());
        let ranges = vec![Range { to: Some(key("k")), hash: 3 }, Range { to: None, hash: 4 }];
        let stretch = Stretch { table: Arc::from("kv"), after: key("a"), ranges };
        check(
            &Message::Look { request, mark, stretch, wants_rows: true },
            &format!(
                "01 12 09 {marked} 01 02 6b76 01 61
                 02 01 6b 0000000000000003 00 0000000000000004"
            ),
        );
        let stamp = Stamp { origin: origin(7), version: Version(5) };
        let life = Life { length: 1, stamp: Stamp { version: Version(4), ..stamp } };
        let cell = (Arc::from("v"), CellClock { count: 2, stamp }, Value::Integer(-1));
        let rows = vec![RowState { key: key("k"), life, cells: vec![cell] }];
        let seen = Seen { mark, looked: 2, differing: vec![1], rows, cut: Some(key("k")) };
        check(
            &Message::Seen { request, seen: Box::new(seen) },
            &format!(
                "01 13 09 {marked} 02 01 01 01 6b 01 01 76 02 {ORIGIN_7} 04 {ORIGIN_7} 05
                 01 01 6b 01 00 01 00 02 01 04 01"
            ),
        );
    }

    #[test]
    fn a_round_is_written_so() {
        let mut round = Round::new(3);
        let known = Nodes::from([(NodeId([8; 16]), Epoch(300))]);
        let heads = [(origin(7), Version(5)), (origin(8), Version(6))].into();
        let spent = BTreeSet::from([origin(8)]);
        let what = Told { heads, retired: spent.clone(), spent, era: 2 };
        round.tell(origin(7), what, &known, &Nodes::new());
        let (seven, eight) = ("07".repeat(16), "08".repeat(16));
        let origin_8 = ORIGIN_7.replace("07", "08");
        let heads = format!("02 {ORIGIN_7} 05 {origin_8} 06");
        check(
            &Message::Round(Box::new(round)),
            &format!(
                "01 0e 03 01 {seven} 01 01 {eight} ac02 00 {heads} {heads}
                 01 {origin_8} 01 {origin_8} 02"
            ),
        );
    }

    #[test]
    fn hashes_are_written_so() {
        let mut hashes = Box::new([0; BUCKETS]);
        hashes[1] = 0x0102;
        check(&Message::Buckets(hashes), &format!("01 06 02 {} 0000000000000102", "00".repeat(31)));
        let empty = [&[1, 6, 2][..], &[0; 31 + 8]].concat();
        assert!(matches!(decode(&empty), Err(DecodeError::Impossible(_))));
        let mut buckets = BucketSet::default();
        buckets.insert(0);
        buckets.insert(9);
        check(
            &Message::BucketHeads { buckets, heads: Vec::new() },
            &format!("01 07 0102 {} 00", "00".repeat(30)),
        );
    }

    #[test]
    fn what_this_node_does_not_speak_is_told_apart() {
        assert_eq!(decode(&[2, 1]), Err(DecodeError::UnknownVersion(2)));
        assert_eq!(decode(&[1, 99]), Err(DecodeError::UnknownKind(99)));
        assert_eq!(decode(&[]), Err(DecodeError::Short));
    }

    #[test]
    fn a_field_that_a_later_release_has_added_is_passed_over() {
        let message = Message::Neighbour(Neighbour::Ask { urgent: false });
        assert_eq!(read(&[1, 3, 0]), Ok((message.clone(), 0)));
        assert_eq!(read(&[1, 3, 0, 7, 7]), Ok((message.clone(), 2)));
        assert_eq!(decode(&[1, 3, 0, 7, 7]), Ok(message));
    }

    #[test]
    fn a_cell_of_a_missing_column_is_refused() {
        let stamp = Stamp { origin: origin(7), version: Version(1) };
        let row = RowChange {
            key: Arc::from(&b"k"[..]),
            life: Life { length: 1, stamp },
            cells: vec![CellChange { column: 1, count: 1, value: Value::Null }],
        };
        let columns = vec![Arc::from("value")];
        let tables = vec![TableChanges { table: Arc::from("kv"), columns, rows: vec![row] }];
        let piece = Piece::of(Arc::new(Changeset { stamp, at: Wall(0), tables }));
        let refused = decode(&encode(&Message::Push { hops: 0, piece }));
        assert!(matches!(refused, Err(DecodeError::Impossible(_))), "{refused:?}");
    }

    fn any_origin() -> impl Strategy<Value = Origin> {
        (any::<u16>(), any::<[u8; 16]>(), 0..=i64::MAX.cast_unsigned()).prop_map(
            |(scope, node, epoch)| Origin {
                scope: Scope(scope),
                node: NodeId(node),
                epoch: Epoch(epoch),
            },
        )
    }

    fn any_version() -> impl Strategy<Value = Version> {
        (0..=i64::MAX.cast_unsigned() / 2).prop_map(Version)
    }

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<Vec<u8>>().prop_map(Value::Blob),
            any::<String>().prop_map(Value::Text),
            any::<f64>().prop_map(Value::real),
            any::<i64>().prop_map(Value::Integer),
        ]
    }

    fn any_row(stamp: Stamp, columns: u16) -> impl Strategy<Value = RowChange> {
        let cell = (0..columns, any::<u32>(), any_value()).prop_map(|(column, count, value)| {
            CellChange { column, count: u64::from(count), value }
        });
        let begun = prop_oneof![
            Just(stamp),
            any_version().prop_map(move |version| Stamp { version, ..stamp }),
            (any_origin(), any_version()).prop_map(|(origin, version)| Stamp { origin, version }),
        ];
        let cells = proptest::collection::vec(cell, 0..4);
        (any::<Vec<u8>>(), 1..9_u64, begun, cells).prop_map(|(key, length, stamp, cells)| {
            let life = Life { length, stamp };
            let cells = if life.is_alive() { cells } else { Vec::new() };
            RowChange { key: Arc::from(key), life, cells }
        })
    }

    fn any_changeset(stamp: Stamp) -> impl Strategy<Value = Arc<Changeset>> {
        let name = || "[a-z]{1,9}".prop_map(|name: String| Arc::from(name));
        let table = (name(), proptest::collection::vec(name(), 1..4)).prop_flat_map(
            move |(table, columns)| {
                let row = any_row(stamp, columns.len() as u16);
                proptest::collection::vec(row, 0..3).prop_map(move |rows| TableChanges {
                    table: Arc::clone(&table),
                    columns: columns.clone(),
                    rows,
                })
            },
        );
        let tables = proptest::collection::vec(table, 0..3);
        (0..i64::MAX.cast_unsigned(), tables)
            .prop_map(move |(at, tables)| Arc::new(Changeset { stamp, at: Wall(at), tables }))
    }

    fn any_piece() -> impl Strategy<Value = Piece> {
        let steps = proptest::collection::vec(1..1_000_u64, 0..4);
        (any_origin(), any_version(), steps, 0..9_u64)
            .prop_flat_map(|(origin, after, steps, beyond)| {
                let mut version = after;
                let changesets: Vec<_> = steps
                    .iter()
                    .map(|step| {
                        version = Version(version.0 + step);
                        any_changeset(Stamp { origin, version })
                    })
                    .collect();
                let through = Version(version.0 + beyond);
                changesets.prop_map(move |changesets| Piece { origin, after, through, changesets })
            })
            .boxed()
    }

    fn any_part() -> impl Strategy<Value = Part> {
        (any_piece(), any::<bool>()).prop_map(|(mut piece, is_cut)| {
            let last = piece.changesets.last().map(|changeset| changeset.stamp.version);
            let last = last.filter(|_| is_cut);
            piece.through = last.map_or(piece.through, |last| Version(last.0 - 1));
            Part { piece, is_cut: last.is_some() }
        })
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let heads = || proptest::collection::vec((any_origin(), any_version()), 0..5);
        prop_oneof![
            (any::<u8>(), any_piece()).prop_map(|(hops, piece)| Message::Push { hops, piece }),
            (any::<u32>(), any_part(), any::<u32>(), 1..9_u64).prop_map(
                |(request, Part { piece, is_cut }, from, to)| Message::Pulled {
                    request: RequestId(u64::from(request)),
                    head: if is_cut { piece.through.next() } else { piece.through },
                    cut: Cut { from: u64::from(from), to: if is_cut { to } else { 0 } },
                    piece,
                }
            ),
            heads().prop_map(Message::Heads),
            heads().prop_map(Message::Take),
            heads().prop_map(|heads| {
                let offers = heads.into_iter().map(|(origin, version)| Offer {
                    origin,
                    version,
                    bytes: version.0 / 3,
                });
                Message::Offer(offers.collect())
            }),
            (any::<[u8; 32]>(), heads()).prop_map(|(buckets, heads)| Message::BucketHeads {
                buckets: BucketSet(buckets),
                heads
            }),
            (any::<u32>(), any_origin(), any_version(), any::<u32>(), any::<bool>()).prop_map(
                |(request, origin, after, part, is_whole)| Message::Want {
                    request: RequestId(u64::from(request)),
                    origin,
                    after,
                    part: u64::from(part),
                    is_whole,
                }
            ),
            (any::<bool>(), 0..9_u64, heads(), heads(), 0..9_u64, heads()).prop_map(
                |(is_settled, length, heads, floor, era, retired)| {
                    let era = Era { held: era, erased: era / 2 };
                    let forgotten = floor.iter().map(|(o, _)| (o.node, o.epoch)).collect();
                    Message::Welcome { is_settled, length, heads, floor, era, retired, forgotten }
                }
            ),
            (any_origin(), heads(), heads()).prop_map(|(me, known, heads)| {
                let known = known.into_iter().map(|(o, _)| (o.node, o.epoch)).collect();
                let mut round = Round::new(1);
                let spent: BTreeSet<_> = heads.iter().map(|(o, _)| *o).skip(1).collect();
                let retired = spent.iter().copied().skip(1).collect();
                let heads = heads.into_iter().collect();
                round.tell(me, Told { heads, spent, retired, era: 3 }, &known, &known);
                Message::Round(Box::new(round))
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn a_message_survives_its_bytes(message in any_message()) {
            let bytes = encode(&message);
            prop_assert_eq!(decode(&bytes), Ok(message.clone()));
            if let Message::Push { piece, .. } | Message::Pulled { piece, .. } = &message {
                prop_assert!(bytes.len() <= piece_bytes(piece) + 64);
            }
        }

        #[test]
        fn a_part_survives_its_bytes(part in any_part()) {
            prop_assert_eq!(decode_part(&encode_part(&part)), Ok(part));
        }

        #[test]
        fn bytes_of_any_kind_are_read_or_refused(
            kind in 0..24_u8, bytes in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let bytes = [&[PROTOCOL_VERSION, kind], &bytes[..]].concat();
            if let Ok(message) = decode(&bytes) {
                prop_assert_eq!(decode(&encode(&message)), Ok(message));
            }
        }

        #[test]
        fn a_damaged_message_is_read_or_refused(
            message in any_message(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
            cut in any::<prop::sample::Index>()
        ) {
            let mut bytes = encode(&message);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = decode(&bytes);
            let short = &bytes[..cut.index(bytes.len())];
            prop_assert!(decode(short).is_err() || decode(&bytes).is_err() || short.len() < bytes.len());
        }
    }
}
