//! Changes of any content, merged in several orders: off the wire as bytes that the fuzzer bends,
//! and drawn from small alphabets, in which names, keys and clocks meet.

use std::collections::BTreeMap;
use std::sync::Arc;

use tribune::crdt::row::COUNT_MAX;
use tribune::crdt::storage::Bookmark;
use tribune::crdt::suite::{NOW, pairs, services, t};
use tribune::crdt::{
    Batch, CellChange, Changeset, Definition, Key, Life, Name, Part, Piece, RowChange, RowOp,
    Staging, Stamp, Storage, StorageError, Table, TableChanges, pack,
};
use tribune::types::{Epoch, NodeId, Origin, Scope, Value, Version, Wall};
use tribune::wire::{Cut, FrameReader, Message, decode, encode};

/// Nodes that only read.
const HERE: u8 = 250;
const COPY: u8 = 251;
const WHOLE: u8 = 252;
const PARTS: u8 = 253;

/// How many steps one input may have: more only make it slow.
const STEPS_MAX: usize = 48;

/// The bytes are messages in frames if the first one is odd, else they are drawn from.
pub fn merge_changes(bytes: &[u8]) {
    let mut steps = match bytes.split_first() {
        Some((first, frames)) if first % 2 == 1 => steps_in(frames),
        Some((_, rest)) => Draw(rest).steps(),
        None => return,
    };
    // What a node is told of its own origin it skips, so nobody writes as those who are compared.
    let readers = [HERE, COPY, WHOLE, PARTS].map(|node| NodeId([node; 16]));
    steps.retain(|step| !matches!(step, Step::Hear(piece) if readers.contains(&piece.origin.node)));
    let mut disk = reader(0, 0);
    steps.iter().for_each(|step| step.take(&mut disk));
    travels(&disk);
    let pieces: Vec<Piece> = steps.into_iter().filter_map(Step::into_piece).collect();
    the_order_of_origins_does_not_matter(&pieces);
}

/// Something that happens to a node.
#[derive(Clone, Debug)]
enum Step {
    Hear(Piece),
    Write(Vec<RowOp>),
    BeginEpoch,
    Withdraw,
    Define(Definition),
}

impl Step {
    fn take(&self, disk: &mut Table) {
        let done = match self {
            Self::Hear(piece) => {
                let commit = disk.apply(NOW, &Batch { pieces: vec![piece.clone()] });
                commit.map(drop)
            }
            Self::Write(ops) => disk.commit(NOW, ops).map(drop),
            Self::BeginEpoch => disk.begin_epoch(NOW, Epoch(0)).map(drop),
            Self::Withdraw => disk.withdraw(NOW).map(drop),
            Self::Define(definition) => {
                disk.define(NOW, definition).map(drop).map_err(StorageError::from)
            }
        };
        match (self, done) {
            // A refused write is an answer; a refused merge is a fault.
            (_, Ok(())) | (Self::Write(_) | Self::Define(_), Err(StorageError::Refused(_))) => {}
            (_, Err(error)) => panic!("{self:?}: {error}"),
        }
    }

    fn into_piece(self) -> Option<Piece> {
        match self {
            Self::Hear(piece) => Some(piece),
            Self::Write(_) | Self::BeginEpoch | Self::Withdraw | Self::Define(_) => None,
        }
    }
}

/// A node that knows the first so many tables.
fn reader(node: u8, tables: usize) -> Table {
    let definitions: Vec<Definition> =
        [t(), pairs(), services()].into_iter().take(tables).collect();
    Table::new(origin(node, 1), &definitions).expect("the tables are well-formed")
}

fn origin(node: u8, epoch: u64) -> Origin {
    Origin { scope: Scope(0), node: NodeId([node; 16]), epoch: Epoch(epoch) }
}

/// What is heard of one origin comes in its order; between origins any order will do, and so will
/// any time at which the tables come.
fn the_order_of_origins_does_not_matter(pieces: &[Piece]) {
    let mut by_origin: Vec<&Piece> = pieces.iter().collect();
    by_origin.sort_by_key(|piece| std::cmp::Reverse(piece.origin));
    let (mut here, mut there, mut late) = (reader(HERE, 3), reader(HERE, 3), reader(HERE, 0));
    for (piece, other) in pieces.iter().zip(&by_origin) {
        hear(&mut here, piece.clone());
        hear(&mut there, (*other).clone());
        hear(&mut late, piece.clone());
    }
    for definition in [services(), t(), pairs()] {
        late.define(NOW, &definition).expect("nothing defined it before");
    }
    let heads = here.heads().expect("a table in memory");
    for other in [&there, &late] {
        assert_eq!(other.heads().expect("a table in memory"), heads);
        assert_eq!(other.fingerprint(), here.fingerprint());
    }
    travels(&here);
    // Whoever pulls everything holds the same; but a life that is stamped with a commit that
    // nobody heard of travels only with cells.
    let is_held = |stamp: Stamp| {
        let head = heads.iter().find(|(origin, _)| *origin == stamp.origin);
        stamp.version > Version(0) && head.is_some_and(|(_, head)| stamp.version <= *head)
    };
    let changesets = pieces.iter().flat_map(|piece| &piece.changesets);
    let mut tables = changesets.flat_map(|changeset| &changeset.tables);
    if tables.all(|table| table.rows.iter().all(|row| is_held(row.life.stamp))) {
        let mut copy = reader(COPY, 3);
        pull(&mut copy, &here, 100);
        assert_eq!(copy.heads(), here.heads());
        assert_eq!(copy.fingerprint(), here.fingerprint());
    }
}

fn hear(disk: &mut Table, piece: Piece) {
    Step::Hear(piece).take(disk);
}

/// What a node holds goes over the wire as it is, and is the same wherever it is cut.
fn travels(disk: &Table) {
    let [mut whole, mut parts] = [reader(WHOLE, 3), reader(PARTS, 3)];
    pull(&mut whole, disk, usize::MAX);
    pull(&mut parts, disk, 1);
    assert_eq!(whole.heads(), parts.heads());
    assert_eq!(whole.fingerprint(), parts.fingerprint());
}

/// Brings what `from` holds to `to`, over the wire, in parts of about so many bytes.
fn pull(to: &mut Table, from: &Table, bytes_max: usize) {
    for (origin, head) in from.heads().expect("a table in memory") {
        let (mut mark, mut begun) = (Bookmark::default(), Version(0));
        while mark.after < head {
            let extract = from.load(origin, mark, bytes_max).expect("a table in memory");
            let end = extract.end();
            assert!(end > mark, "a part brings one on");
            let cut = Cut { from: mark.part, to: end.part };
            let (request, head) = (Default::default(), extract.head);
            let message = Message::Pulled { request, piece: extract.piece, head, cut };
            let Ok(Message::Pulled { piece, .. }) = decode(&encode(&message)) else {
                panic!("what was loaded cannot be read: {message:?}");
            };
            // A version that was cut is heard of once it is whole.
            if end.part > 0 {
                let part = Part { piece, is_cut: true };
                to.stage(Staging(1), &[part]).expect("a table in memory");
            } else if mark.part > 0 {
                let last = Piece { after: begun, ..piece };
                to.apply_staged(NOW, Staging(1), &last).expect("a table in memory");
            } else {
                hear(to, piece);
            }
            if end.part == 0 {
                begun = end.after;
            }
            mark = end;
        }
    }
}

/// The pieces in a stream of frames, up to the first that is none.
fn steps_in(bytes: &[u8]) -> Vec<Step> {
    let mut reader = FrameReader::default();
    reader.buffer_mut().extend_from_slice(bytes);
    let mut steps = Vec::new();
    while let Ok(Some(frame)) = reader.next_frame() {
        if let Ok(Message::Push { piece, .. } | Message::Pulled { piece, .. }) = decode(&frame)
            && steps.len() < STEPS_MAX
        {
            steps.push(Step::Hear(piece));
        }
    }
    steps
}

/// Bytes that choices are made by; after the last one every choice is the first.
struct Draw<'a>(&'a [u8]);

impl Draw<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()].clone()
    }

    fn list<T>(&mut self, max: u8, mut element: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.byte() % (max + 1);
        (0..count).map(|_| element(self)).collect()
    }

    fn steps(mut self) -> Vec<Step> {
        // How far each origin came, so that most of what is drawn joins.
        let mut heads = BTreeMap::new();
        let mut steps = Vec::new();
        while !self.0.is_empty() && steps.len() < STEPS_MAX {
            steps.extend(self.step(&mut heads));
        }
        steps
    }

    fn step(&mut self, heads: &mut BTreeMap<Origin, u64>) -> Option<Step> {
        Some(match self.byte() % 16 {
            0..10 => {
                let piece = self.piece(heads);
                // What cannot be read does not come this far.
                let Message::Push { piece, .. } =
                    decode(&encode(&Message::Push { hops: 0, piece })).ok()?
                else {
                    panic!("a push became something else");
                };
                Step::Hear(piece)
            }
            10..13 => Step::Write(self.list(3, Self::op)),
            13 => Step::BeginEpoch,
            14 => Step::Withdraw,
            _ => Step::Define(self.pick(&[t(), pairs(), services()])),
        })
    }

    fn number(&mut self) -> u64 {
        self.pick(&[1, 2, 3, 1, 2, 3, 4, 5, 0, COUNT_MAX - 1, COUNT_MAX, COUNT_MAX + 1])
    }

    fn origin(&mut self) -> Origin {
        let (node, epoch) = (self.pick(&[1, 2, 3, 1, 2, 3, 0]), self.pick(&[1, 1, 1, 2]));
        origin(node, epoch)
    }

    fn piece(&mut self, heads: &mut BTreeMap<Origin, u64>) -> Piece {
        let origin = self.origin();
        let head = heads.entry(origin).or_default();
        let after = match self.byte() % 8 {
            0..5 => *head,
            5 | 6 => head.saturating_sub(1),
            _ => *head + 1,
        };
        let mut version = after;
        let changesets = self.list(3, |draw| {
            version += draw.pick(&[1, 1, 1, 2]);
            Arc::new(draw.changeset(Stamp { origin, version: Version(version) }))
        });
        let through = version + self.pick(&[0, 0, 1, COUNT_MAX]);
        if after <= *head && through <= COUNT_MAX {
            *head = through.max(*head);
        }
        Piece { origin, after: Version(after), through: Version(through), changesets }
    }

    fn changeset(&mut self, stamp: Stamp) -> Changeset {
        let at = Wall(u64::from(self.byte()));
        let tables = self.list(2, |draw| {
            let table: Name = draw.pick(&["t", "pairs", "services", "T", "new"]).into();
            let columns = draw.list(4, |draw| {
                Name::from(draw.pick(&["v", "w", "id", "name", "port", "x", "node_id"]))
            });
            let count = columns.len();
            TableChanges { rows: draw.list(3, |d| d.row(stamp, &table, count)), table, columns }
        });
        Changeset { stamp, at, tables }
    }

    fn row(&mut self, stamp: Stamp, table: &str, columns: usize) -> RowChange {
        let begun = match self.byte() % 4 {
            0 | 1 => stamp,
            2 => Stamp { version: Version(self.number()), ..stamp },
            _ => Stamp { origin: self.origin(), version: Version(self.number()) },
        };
        let life = Life { length: self.number(), stamp: begun };
        let max = if life.is_alive() && columns > 0 { 4 } else { 0 };
        let cells = self.list(max, |draw| CellChange {
            column: u16::from(draw.byte()) % columns as u16,
            count: draw.number(),
            value: draw.value(),
        });
        RowChange { key: self.key(stamp.origin.node, table), life, cells }
    }

    fn key(&mut self, writer: NodeId, table: &str) -> Key {
        let owner = Value::from(writer.to_string());
        let id = Value::from(i64::from(self.byte() % 3));
        let key = match (self.byte() % 8, table) {
            (0, _) => vec![self.value(), self.value()],
            (1, _) => vec![self.value()],
            (2, _) => return self.list(6, Self::byte).into(),
            (_, "pairs") => vec![id.clone(), id],
            (_, "services") => vec![owner, "web".into()],
            (_, _) => vec![id],
        };
        pack::pack(&key).expect("it is short")
    }

    fn value(&mut self) -> Value {
        let byte = self.byte();
        match byte % 6 {
            0 => Value::Null,
            1 => Value::Blob(vec![byte; usize::from(byte % 4)]),
            2 => Value::from(["a", "b", "\0", ""][usize::from(byte % 4)]),
            3 => Value::real(f64::from(byte) - 100.5),
            _ => Value::Integer(i64::from(byte % 5) - 2),
        }
    }

    /// An operation on a table that may not be there, and on rows that others bent before.
    fn op(&mut self) -> RowOp {
        let id = || vec![("id", Value::from(1))];
        let me = Value::from(NodeId([0; 16]).to_string());
        let value = self.value();
        match self.byte() % 8 {
            0 => RowOp::Put { table: "t", row: vec![("id", 1.into()), ("v", value)], keep: &["w"] },
            1 => RowOp::Set { table: "t", matching: id(), set: vec![("w", value)] },
            2 => RowOp::Set { table: "t", matching: id(), set: vec![("id", 2.into())] },
            3 => RowOp::Delete { table: "t", matching: id(), except: None },
            4 => RowOp::Put { table: "pairs", row: vec![("a", 1.into()), ("b", value)], keep: &[] },
            5 => RowOp::Delete { table: "pairs", matching: vec![], except: None },
            6 => RowOp::Put {
                table: "services",
                row: vec![("node_id", me), ("id", "web".into()), ("name", value)],
                keep: &[],
            },
            _ => RowOp::Delete { table: "services", matching: vec![("node_id", me)], except: None },
        }
    }
}
