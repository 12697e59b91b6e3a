//! What the fuzz targets in `fuzz/` check, held against their seeds and against random bytes: the
//! ordinary tests need no nightly and no fuzzer.
//!
//! `UPDATE=1 cargo test --test fuzz` writes the seeds that are made here anew. A file that a fuzzer
//! found goes beside them, under a name that says what it showed.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "all of this is test code")]

#[path = "../fuzz/src/lib.rs"]
mod checks;

use std::fs;
use std::path::{Path, PathBuf};

use hickory_proto::rr::RecordType;
use proptest::prelude::*;
use tribune::crdt::suite::{A, B, NOW, origin, pairs, services, t};
use tribune::crdt::{Batch, ColumnId, Piece, RowClock, RowOp, Stamp, Storage, Table, pack};
use tribune::types::{Epoch, Origin, Value, Version};
use tribune::wire::{Message, Neighbour, RequestId, encode, encode_frame};

type Seeds = Vec<(&'static str, Vec<u8>)>;

#[test]
fn messages_hold_what_they_promise() {
    hold("decode_message", messages(), checks::decode_message);
}

#[test]
fn merges_hold_what_they_promise() {
    hold("merge_changes", merges(), checks::merge_changes);
}

#[test]
fn keys_hold_what_they_promise() {
    hold("packed_key", keys(), checks::packed_key);
}

#[test]
fn clocks_hold_what_they_promise() {
    hold("row_clock", clocks(), checks::row_clock);
}

#[test]
fn packets_hold_what_they_promise() {
    hold("dns_packet", packets(), checks::dns_packet);
}

/// Questions of all forms, over each transport.
fn packets() -> Seeds {
    let question = |name: &str, kind: &str, edns: &[u8]| {
        let mut packet = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!edns.is_empty())];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            packet.push(u8::try_from(label.len()).unwrap());
            packet.extend_from_slice(label.as_bytes());
        }
        packet.push(0);
        let kind: u16 = kind.parse::<RecordType>().unwrap().into();
        packet.extend_from_slice(&kind.to_be_bytes());
        packet.extend_from_slice(&[0, 1]);
        packet.extend_from_slice(edns);
        packet
    };
    let plain = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    let cookie = [&plain[..9], &[0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]].concat();
    let padded = [&plain[..9], &[0, 12, 0, 3, 0, 0, 0, 12, 0, 4, 0, 0, 0, 0]].concat();
    let via = |how: u8, packet: Vec<u8>| [&[how], &packet[..]].concat();
    vec![
        ("service_a", via(0, question("app.internal", "A", &[]))),
        ("service_srv", via(0, question("app.service.consul", "SRV", &plain))),
        ("service_tcp", via(1, question("APP.internal", "ANY", &plain))),
        ("tags", via(0, question("blue.t1.app.internal", "A", &cookie))),
        ("endpoint", via(0, question("_db._tcp.service.dc1.internal", "SRV", &plain))),
        ("node", via(0, question("n1.node.consul", "TXT", &[]))),
        ("address", via(1, question("0a000001.addr.internal", "A", &[]))),
        ("reverse", via(0, question("1.0.0.10.in-addr.arpa", "PTR", &[]))),
        ("https", via(2, question("app.internal", "HTTPS", &padded))),
        ("alias", via(0, question("out.internal", "CNAME", &plain))),
        ("zone", via(0, question("internal", "SOA", &plain))),
        ("elsewhere", via(0, question("www.example.com", "A", &plain))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn drawn_packets_are_answered_whole(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        checks::dns_packet(&bytes);
    }

    #[test]
    fn drawn_changes_merge_in_any_order(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        checks::merge_changes(&[&[0], &bytes[..]].concat());
    }
}

/// Checks all seeds of a target, those that are made here and those that were found.
fn hold(target: &str, made: Seeds, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in &made {
            fs::write(folder.join(name), bytes).unwrap();
        }
    }
    for (name, bytes) in &made {
        let kept = fs::read(folder.join(name)).unwrap_or_default();
        assert!(kept == *bytes, "{target}/{name} is not what is made here: UPDATE=1 writes it");
    }
    let mut seeds: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    seeds.sort();
    assert!(seeds.len() >= made.len());
    for seed in seeds {
        println!("{}", seed.display());
        check(&fs::read(seed).unwrap());
    }
}

/// Two nodes that write and hear of each other, and all pieces of it.
fn history() -> (Vec<Piece>, [Table; 2]) {
    let tables = [t(), pairs(), services()];
    let mut nodes = [A, B].map(|node| Table::new(origin(node), &tables).unwrap());
    let put = |id: i64, v: Value| RowOp::Put {
        table: "t",
        row: vec![("id", id.into()), ("v", v)],
        keep: &["w"],
    };
    let service = |port: i64| RowOp::Put {
        table: "services",
        row: vec![
            ("node_id", A.to_string().into()),
            ("id", "web".into()),
            ("name", "web".into()),
            ("port", port.into()),
        ],
        keep: &[],
    };
    let matching = vec![("id", Value::from(1))];
    let set = RowOp::Set { table: "t", matching: matching.clone(), set: vec![("w", 2.into())] };
    let delete = RowOp::Delete { table: "t", matching, except: None };
    let pair =
        RowOp::Put { table: "pairs", row: vec![("a", 1.into()), ("b", 2.into())], keep: &[] };
    let mut pieces = Vec::new();
    for (writer, ops) in [
        (0, vec![put(1, Value::Null), put(2, Value::Blob(vec![0, 1])), service(80)]),
        (1, vec![put(1, "text".into()), pair]),
        (1, vec![set]),
        (0, vec![delete, service(81)]),
        (1, vec![put(1, Value::Real(1.5)), put(3, Value::Integer(-7))]),
    ] {
        let commit = nodes[writer].commit(NOW, &ops).unwrap().expect("it changes something");
        let piece = Piece::of(commit.changeset.expect("a local commit has one"));
        nodes[1 - writer].apply(NOW, &Batch { pieces: vec![piece.clone()] }).unwrap();
        pieces.push(piece);
    }
    let begun = nodes[0].begin_epoch(NOW, Epoch(1)).unwrap();
    let renewed = begun.commits.into_iter().filter_map(|commit| commit.changeset);
    pieces.extend(renewed.map(Piece::of));
    (pieces, nodes)
}

fn messages() -> Seeds {
    let (pieces, [_, node]) = history();
    let (me, head) = (origin(B), Version(3));
    let request = RequestId(7);
    let mut buckets = tribune::wire::BucketSet::default();
    buckets.insert(9);
    let heads = node.heads().unwrap();
    let pulled = node.load(me, Version(0), usize::MAX).unwrap();
    let said = [
        ("hello", Message::Hello { origin: me, head, era: 2, asks: false }),
        ("known", Message::Known { origin: me, head }),
        ("neighbour", Message::Neighbour(Neighbour::Ask { urgent: true })),
        ("heads", Message::Heads(heads.clone())),
        ("buckets", Message::Buckets(Box::new([0x0102_0304; tribune::ledger::BUCKETS]))),
        ("bucket_heads", Message::BucketHeads { buckets, heads }),
        ("want", Message::Want { request, origin: me, after: head, part: 7, is_whole: true }),
        (
            "pulled",
            Message::Pulled {
                request,
                piece: pulled.piece,
                head: pulled.head,
                cut: Default::default(),
            },
        ),
        ("busy", Message::Busy { request, retry_after: std::time::Duration::from_millis(250) }),
        ("push_inserts", push(&pieces[0])),
        ("push_update", push(&pieces[2])),
        ("push_delete", push(&pieces[3])),
        ("push_another_life", push(&pieces[4])),
    ];
    said.into_iter().map(|(name, message)| (name, encode(&message))).collect()
}

fn push(piece: &Piece) -> Message {
    Message::Push { hops: 1, piece: piece.clone() }
}

fn merges() -> Seeds {
    let (pieces, _) = history();
    let framed = |pieces: &[Piece]| {
        let frames = pieces.iter().flat_map(|piece| encode_frame(&push(piece)));
        [1].into_iter().chain(frames).collect::<Vec<u8>>()
    };
    let reversed: Vec<Piece> = pieces.iter().rev().cloned().collect();
    // Any bytes will do to be drawn from.
    let drawn = |seed: u32| {
        let next = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
        let words = std::iter::successors(Some(seed), next).take(400);
        [0].into_iter().chain(words.map(|word| word.to_be_bytes()[0])).collect::<Vec<u8>>()
    };
    vec![
        ("frames", framed(&pieces)),
        ("frames_backwards", framed(&reversed)),
        ("drawn_1", drawn(1)),
        ("drawn_2", drawn(2)),
        ("drawn_3", drawn(3)),
    ]
}

fn keys() -> Seeds {
    let two = |one: &[Value], other: &[Value]| {
        let [one, other] = [one, other].map(|key| pack::pack(key).unwrap());
        let cut = u8::try_from(one.len()).expect("it is short");
        [&[cut], &*one, &*other].concat()
    };
    vec![
        ("integers", two(&[1.into()], &[(-1).into(), 2.into()])),
        ("texts", two(&["a\0b".into(), "".into()], &["a".into()])),
        ("reals", two(&[Value::Real(-1.5)], &[Value::Real(f64::INFINITY)])),
        ("blobs", two(&[Value::Blob(vec![0, 0, 255]), Value::Null], &[Value::Blob(vec![])])),
    ]
}

fn clocks() -> Seeds {
    let [v, w] = [ColumnId(0), ColumnId(9)];
    let stamp = |epoch: u64, version: u64| Stamp {
        origin: Origin { epoch: Epoch(epoch), ..Origin::default() },
        version: Version(version),
    };
    let inserted = RowClock::inserted(None, stamp(1, 5), [v, w]);
    let mut updated = inserted.clone();
    updated.updated(stamp(300, 300), [w]);
    let mut deleted = updated.clone();
    deleted.deleted(stamp(300, 301));
    let clocks = [("inserted", inserted), ("updated", updated), ("deleted", deleted)];
    clocks.into_iter().map(|(name, clock)| (name, clock.to_bytes(checks::number_of))).collect()
}
