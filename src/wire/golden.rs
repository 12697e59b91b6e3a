//! What this release says, byte by byte, kept under `tests/golden/wire/<version>`: the next release
//! proves with these files that it still reads it.
//!
//! A file has what it says as a comment, in the words of `Debug`, and then the bytes in hexadecimal.
//! The files of a released version are never written again. For what is new since, add a sample and run
//!
//! ```sh
//! TRIBUNE_GOLDEN=write cargo test --lib golden
//! ```

#[cfg(test)]
use std::{collections::BTreeSet, env, fmt::Debug, fs, path::PathBuf};

/// Holds samples against the files of `room`, in both directions; a file without a sample, or a
/// sample without a file, is a failure.
#[cfg(test)]
pub(crate) fn hold<T: Debug + PartialEq>(
    room: &str,
    samples: &[(&str, T)],
    encode: impl Fn(&T) -> Vec<u8>,
    decode: impl Fn(&[u8]) -> T,
) {
    let version = super::PROTOCOL_VERSION.to_string();
    let folder = [env!("CARGO_MANIFEST_DIR"), "tests/golden/wire", &version, room];
    let folder: PathBuf = folder.iter().collect();
    if env::var("TRIBUNE_GOLDEN").is_ok_and(|value| value == "write") {
        fs::create_dir_all(&folder).unwrap();
        for (name, value) in samples {
            fs::write(folder.join(format!("{name}.hex")), written(value, &encode(value))).unwrap();
        }
    }
    let mut names = BTreeSet::new();
    for (name, value) in samples {
        let path = folder.join(format!("{name}.hex"));
        let text = fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}; see wire/golden.rs", path.display()));
        let bytes = bytes_of(&text);
        assert_eq!(decode(&bytes), *value, "{name} is not read as what it was");
        assert_eq!(encode(value), bytes, "{name} is not written as it was");
        assert_eq!(text, written(value, &bytes), "{name} says something else");
        assert!(names.insert(format!("{name}.hex")), "two samples are called {name}");
    }
    let kept = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
    let kept: BTreeSet<String> = kept.map(|name| name.into_string().unwrap()).collect();
    assert_eq!(kept, names, "files in {} and the samples", folder.display());
}

#[cfg(test)]
fn written(value: &impl Debug, bytes: &[u8]) -> String {
    let says: String = format!("{value:#?}").lines().map(|line| format!("# {line}\n")).collect();
    let lines = bytes.chunks(32).map(|line| {
        let hex: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
        hex + "\n"
    });
    says + &lines.collect::<String>()
}

#[cfg(test)]
fn bytes_of(text: &str) -> Vec<u8> {
    let hex: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::crdt::content::{Mark, Range, RowState, Seen, Stretch};
    use crate::crdt::merge::CellClock;
    use crate::crdt::storage::Era;
    use crate::crdt::{
        CellChange, Changeset, Key, Life, Part, Piece, RowChange, Stamp, TableChanges,
    };
    use crate::ledger::round::{Nodes, Told};
    use crate::ledger::{BUCKETS, Round};
    use crate::types::{Epoch, NodeId, Origin, Scope, Value, Version, Wall};
    use crate::wire::{
        BucketSet, Cut, DecodeError, FrameReader, Message, Neighbour, Offer, PROTOCOL_VERSION,
        RequestId, decode, decode_part, encode_frame, encode_part,
    };

    const REQUEST: RequestId = RequestId(9);

    fn origin(node: u8) -> Origin {
        Origin { scope: Scope(2), node: NodeId([node; 16]), epoch: Epoch(0x6543_2100) }
    }

    fn heads() -> Vec<(Origin, Version)> {
        vec![(origin(7), Version(5)), (origin(8), Version(300))]
    }

    /// A commit with every kind of value, of life and of stamp.
    fn changeset(version: u64) -> Arc<Changeset> {
        let stamp = Stamp { origin: origin(7), version: Version(version) };
        let begun = [
            stamp,
            Stamp { version: Version(2), ..stamp },
            Stamp { origin: origin(8), version: Version(77) },
        ];
        let values = [
            Value::Null,
            Value::Blob(vec![0, 255]),
            Value::from("tribune"),
            Value::real(-0.5),
            Value::Integer(i64::MIN),
        ];
        let cell = |(column, value)| CellChange {
            column: u16::try_from(column).unwrap(),
            count: 200,
            value,
        };
        let mut rows: Vec<RowChange> = begun
            .into_iter()
            .map(|stamp| RowChange {
                key: Arc::from(&b"key"[..]),
                life: Life { length: 3, stamp },
                cells: values.clone().into_iter().enumerate().map(cell).collect(),
            })
            .collect();
        let key = Arc::from(&b"deleted"[..]);
        rows.push(RowChange { key, life: Life { length: 4, stamp }, cells: Vec::new() });
        let names = ["n", "b", "t", "r", "i"];
        let columns = names.map(Arc::from).to_vec();
        let table = TableChanges { table: Arc::from("kinds"), columns, rows };
        Arc::new(Changeset { stamp, at: Wall(1_700_000_000_000_000), tables: vec![table] })
    }

    fn piece() -> Piece {
        let changesets = vec![changeset(300), changeset(302)];
        Piece { origin: origin(7), after: Version(299), through: Version(303), changesets }
    }

    fn cut_piece() -> Piece {
        let (after, through) = (Version(299), Version(299));
        Piece { origin: origin(7), after, through, changesets: vec![changeset(300)] }
    }

    fn round() -> Round {
        let mut round = Round::new(3);
        let known = Nodes::from([(NodeId([8; 16]), Epoch(300))]);
        let forgotten = Nodes::from([(NodeId([9; 16]), Epoch(1))]);
        let heads = [(origin(6), Version(4)), (origin(9), Version(1))].into_iter().chain(heads());
        let (spent, retired) = ([origin(6), origin(9)].into(), [origin(6)].into());
        let what = Told { heads: heads.collect(), spent, retired, era: 300 };
        round.tell(origin(7), what, &known, &forgotten);
        round
    }

    const MARK: Mark = Mark { heads: 0x0102, fingerprint: u64::MAX };

    fn key(text: &str) -> Key {
        Arc::from(text.as_bytes())
    }

    fn look() -> Message {
        let ranges = vec![Range { to: Some(key("k")), hash: 3 }, Range { to: None, hash: 4 }];
        let stretch = Stretch { table: Arc::from("kv"), after: key("a"), ranges };
        Message::Look { request: REQUEST, mark: MARK, stretch, wants_rows: true }
    }

    fn seen() -> Seen {
        let stamp = Stamp { origin: origin(7), version: Version(5) };
        let life = Life { length: 1, stamp: Stamp { version: Version(4), ..stamp } };
        let cell = (Arc::from("v"), CellClock { count: 2, stamp }, Value::Integer(-1));
        let rows = vec![RowState { key: key("k"), life, cells: vec![cell] }];
        Seen { mark: MARK, looked: 2, differing: vec![1], rows, cut: Some(key("k")) }
    }

    fn messages() -> Vec<(&'static str, Message)> {
        let (origin, head) = (origin(7), Version(5));
        let mut hashes = Box::new([0; BUCKETS]);
        hashes[1] = 0x0102_0304_0506_0708;
        let mut buckets = BucketSet::default();
        buckets.insert(0);
        buckets.insert(255);
        let want = |is_whole| Message::Want {
            request: REQUEST,
            origin,
            after: Version(130),
            part: 3,
            is_whole,
        };
        vec![
            ("hello", Message::Hello { origin, head, era: 300, asks: false }),
            ("known", Message::Known { origin, head }),
            ("neighbour-ask", Message::Neighbour(Neighbour::Ask { urgent: false })),
            ("neighbour-ask-urgently", Message::Neighbour(Neighbour::Ask { urgent: true })),
            ("neighbour-accepted", Message::Neighbour(Neighbour::Accepted)),
            ("neighbour-refused", Message::Neighbour(Neighbour::Refused)),
            ("neighbour-part", Message::Neighbour(Neighbour::Part)),
            ("neighbour-ended", Message::Neighbour(Neighbour::Ended)),
            ("push", Message::Push { hops: 2, piece: piece() }),
            ("heads", Message::Heads(heads())),
            ("buckets", Message::Buckets(hashes)),
            ("bucket-heads", Message::BucketHeads { buckets, heads: heads() }),
            ("want", want(false)),
            ("want-whole", want(true)),
            (
                "pulled",
                Message::Pulled {
                    request: REQUEST,
                    piece: piece(),
                    head: Version(400),
                    cut: Cut::default(),
                },
            ),
            (
                "pulled-cut",
                Message::Pulled {
                    request: REQUEST,
                    piece: cut_piece(),
                    head: Version(400),
                    cut: Cut { from: 2, to: 300 },
                },
            ),
            ("busy", Message::Busy { request: REQUEST, retry_after: Duration::from_millis(250) }),
            ("gone", Message::Gone { request: REQUEST, floor: Version(128) }),
            ("join", Message::Join { origin, era: 2 }),
            (
                "welcome",
                Message::Welcome {
                    is_settled: true,
                    length: 8,
                    heads: heads(),
                    floor: vec![(origin, Version(3))],
                    era: Era { held: 2, erased: 1 },
                    retired: vec![(origin, Version(9))],
                    forgotten: Nodes::from([(origin.node, Epoch(4))]),
                },
            ),
            ("round", Message::Round(Box::new(round()))),
            ("forgotten", Message::Forgotten { origin, last: Epoch(70_000) }),
            ("offer", Message::Offer(vec![Offer { origin, version: head, bytes: 300 }])),
            ("take", Message::Take(heads())),
            ("look", look()),
            ("seen", Message::Seen { request: REQUEST, seen: Box::new(seen()) }),
        ]
    }

    fn unframed(bytes: &[u8]) -> Vec<u8> {
        let mut reader = FrameReader::default();
        reader.buffer_mut().extend_from_slice(bytes);
        let body = reader.next_frame().unwrap().unwrap();
        assert!(reader.is_between_frames());
        body.to_vec()
    }

    #[test]
    fn golden_messages_are_read_and_written_as_they_were() {
        let encode = |message: &Message| encode_frame(message).to_vec();
        super::hold("message", &messages(), encode, |bytes| decode(&unframed(bytes)).unwrap());
    }

    #[test]
    fn every_kind_of_message_has_a_golden_one() {
        let kept: Vec<u8> = messages().iter().map(|(_, m)| unframed(&encode_frame(m))[1]).collect();
        for kind in 0..=u8::MAX {
            let exists = decode(&[PROTOCOL_VERSION, kind]) != Err(DecodeError::UnknownKind(kind));
            assert_eq!(
                kept.contains(&kind),
                exists,
                "message kind {kind}: add a sample to wire/golden.rs and write its file"
            );
        }
    }

    #[test]
    fn golden_parts_are_read_and_written_as_they_were() {
        // They stand on disks, not on the wire, and only until a pull is whole.
        let parts = [
            ("whole", Part { piece: piece(), is_cut: false }),
            ("cut", Part { piece: cut_piece(), is_cut: true }),
        ];
        super::hold("part", &parts, encode_part, |bytes| decode_part(bytes).unwrap());
    }
}
