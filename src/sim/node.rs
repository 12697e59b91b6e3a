//! One simulated node: the production replica, and SWIM where the scenario has it, over a storage of
//! any kind.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use super::NodeIndex;
use super::check::Shown;
use super::disk::Disk;
use super::medium::{AnyMedium, Torn};
use super::membership::{Dialler, Swimmer};
use super::mistakes::OldCells;
use super::trace::Fnv;
use super::workload::Schema;
use crate::crdt::{Commit, Life, pack};
use crate::replica::Replica;
use crate::types::{Epoch, NodeId, Origin, Scope, Time, Value, Version, Wall};

/// Rows of `services` by key, as their owner last wrote them.
pub(super) type OwnRows = BTreeMap<Vec<Value>, Vec<Value>>;

/// A disk as it once was, and what was known of it.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) storage: AnyMedium,
    pub(super) own: OwnRows,
    pub(super) buried: BTreeSet<Value>,
}

/// How far a disk holds each origin, and how many versions that makes.
#[derive(Clone, Debug, Default)]
pub(super) struct Heads {
    by_origin: BTreeMap<Origin, Version>,
    sum: u64,
}

impl Heads {
    pub(super) fn insert(&mut self, origin: Origin, head: Version) {
        let before = self.by_origin.insert(origin, head).unwrap_or_default();
        self.sum = self.sum - before.0 + head.0;
    }

    pub(super) fn remove(&mut self, origin: &Origin) {
        self.sum -= self.by_origin.remove(origin).unwrap_or_default().0;
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns how many versions are held.
    pub(super) fn sum(&self) -> u64 {
        self.sum
    }
}

impl Deref for Heads {
    type Target = BTreeMap<Origin, Version>;

    fn deref(&self) -> &Self::Target {
        &self.by_origin
    }
}

/// A node's process, disk and clock.
#[derive(Debug)]
pub(super) struct VirtualNode {
    pub(super) index: NodeIndex,
    pub(super) id: NodeId,
    /// Counts its processes: what was meant for an earlier one does not reach the present one.
    pub(super) life: u32,
    /// The process; `None` while it is down.
    pub(super) replica: Option<Box<Replica>>,
    pub(super) storage: AnyMedium,
    /// What the disk was in the midst of when the process ended.
    pub(super) torn: Option<Torn>,
    /// The storage's heads, counted here too.
    pub(super) heads: Heads,
    /// Origins that its disk knew to be retired at some time.
    pub(super) retired: BTreeSet<Origin>,
    pub(super) image: Option<Image>,
    /// Rows that are written with others, and for good reason are not as they are: see
    /// [`twins_change_together`](super::check::twins_change_together).
    pub(super) apart: BTreeSet<Vec<Value>>,
    /// Rows that are born once only and that this disk has seen die.
    pub(super) buried: BTreeSet<Value>,
    /// The rows that it owns as its last commits left them, by key: what all nodes must show.
    pub(super) own: OwnRows,
    pub(super) disk: Disk,
    /// Whether somebody told its process that it was forgotten.
    pub(super) is_told_gone: bool,
    /// Whom its process believes to be up.
    pub(super) up: BTreeSet<NodeIndex>,
    /// Its membership, where it is told of others by them and not by an oracle.
    pub(super) swim: Option<Box<Swimmer>>,
    pub(super) swim_wake_at: Option<Time>,
    pub(super) dialler: Dialler,
    /// When the process started, or ended.
    pub(super) since: Time,
    /// Bytes that it has sent since they are counted.
    pub(super) sent: u64,
    /// When it is to be woken.
    pub(super) wake_at: Option<Time>,
    /// When the process was last told something by its disk: the next comes no earlier.
    pub(super) told_at: Time,
    /// It writes nothing before that many peers confirmed its head.
    pub(super) confirmations_needed: usize,
    /// How far its wall clock is ahead, in microseconds.
    pub(super) clock_ahead: u64,
    /// What its commits told of owned rows.
    pub(super) shown: Shown,
    /// Which tables it has.
    pub(super) schema: Schema,
    /// Its process is stopped.
    pub(super) is_frozen: bool,
    /// What a crash leaves of the disk; `None`: all of it.
    pub(super) unsynced: Option<Box<Image>>,
    /// How often its process has set an origin aside.
    pub(super) set_aside: u64,
    /// For a mistake: cells that should be forgotten.
    pub(super) old_cells: OldCells,
}

impl VirtualNode {
    pub(super) fn new(index: NodeIndex, storage: AnyMedium, clock_ahead: u64) -> Self {
        Self {
            index,
            id: storage.origin().node,
            life: 0,
            replica: None,
            storage,
            torn: None,
            heads: Heads::default(),
            retired: BTreeSet::new(),
            image: None,
            apart: BTreeSet::new(),
            buried: BTreeSet::new(),
            own: OwnRows::new(),
            disk: Disk::default(),
            is_told_gone: false,
            up: BTreeSet::new(),
            swim: None,
            swim_wake_at: None,
            dialler: Dialler::default(),
            since: Time(0),
            sent: 0,
            wake_at: None,
            told_at: Time(0),
            confirmations_needed: 0,
            clock_ahead,
            shown: Shown::default(),
            schema: Schema::Whole,
            is_frozen: false,
            unsynced: None,
            set_aside: 0,
            old_cells: OldCells::new(),
        }
    }

    /// Reads the heads from the storage, as a process does when it starts.
    pub(super) fn read_heads(&mut self) {
        let heads = self.storage.heads().expect("the storage in memory does not fail");
        self.heads = Heads::default();
        heads.into_iter().for_each(|(origin, head)| self.heads.insert(origin, head));
        self.read_retired();
    }

    pub(super) fn read_retired(&mut self) {
        let floor = self.storage.floor().expect("the storage in memory does not fail");
        self.retired = floor.retired.into_iter().map(|(origin, _)| origin).collect();
    }

    /// Notes what a commit of its own did to the rows that it owns. A row that was written as it
    /// was before is claimed all the same.
    pub(super) fn note_own(&mut self, commit: &Commit) {
        let changes = commit.changeset.iter().flat_map(|changeset| &changeset.tables);
        for row in changes.filter(|t| &*t.table == "services").flat_map(|table| &table.rows) {
            let key = pack::unpack(&row.key).expect("it packed the key itself");
            let held = self.storage.inspect("services", &key);
            match held.ok().flatten().and_then(|inspected| inspected.row) {
                Some(row) => drop(self.own.insert(key, row)),
                None => drop(self.own.remove(&key)),
            }
        }
    }

    /// Returns the life of a row of `kv`, as long as that is remembered.
    pub(super) fn life_of(&self, key: &Value) -> Option<Life> {
        let held = self.storage.inspect("kv", std::slice::from_ref(key)).ok().flatten();
        held.map(|inspected| inspected.life)
    }

    /// Tells whether its disk is taking over another's rows.
    pub(super) fn is_rejoining(&self) -> bool {
        self.storage.floor().is_ok_and(|floor| floor.is_rejoining)
    }

    pub(super) fn head(&self, origin: Origin) -> Version {
        self.heads.get(&origin).copied().unwrap_or_default()
    }

    /// Returns a number that is the same for equal heads, but for those that do not count.
    pub(super) fn heads_hash(&self, counts: impl Fn(Origin) -> bool) -> u64 {
        let mut hash = Fnv::default();
        for (origin, head) in self.heads.iter().filter(|(origin, _)| counts(**origin)) {
            hash.add(&origin.to_bytes()[14..]);
            hash.add_number(head.0);
        }
        hash.value()
    }

    pub(super) fn wall(&self, now: Time) -> Wall {
        Wall(now.0 + self.clock_ahead)
    }

    pub(super) fn may_write(&self) -> bool {
        let confirmed = self.replica.as_ref().map_or(0, |replica| replica.confirmations());
        confirmed >= self.confirmations_needed
    }
}

/// The id of the node of that number.
pub(super) fn node_id(index: NodeIndex) -> NodeId {
    let mut id = NodeId([0x51; 16]);
    id.0[12..].copy_from_slice(&(index.0 as u32).to_be_bytes());
    id
}

/// The number of the node of that id; `None`: there is none.
pub(super) fn index_of(id: NodeId) -> NodeIndex {
    let tail = id.0.last_chunk().expect("16 bytes end in 4");
    NodeIndex(u32::from_be_bytes(*tail) as usize)
}

pub(super) fn first_origin(index: NodeIndex) -> Origin {
    Origin { scope: Scope(0), node: node_id(index), epoch: Epoch(1) }
}
