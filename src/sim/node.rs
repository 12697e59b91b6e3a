//! One simulated node: the production replica over the reference storage.

use std::collections::{BTreeMap, BTreeSet};

use super::NodeIndex;
use super::disk::Disk;
use super::trace::Fnv;
use crate::crdt::{Commit, Life, Storage, Table, pack};
use crate::replica::Replica;
use crate::types::{Epoch, NodeId, Origin, Scope, Time, Value, Version, Wall};

/// Rows of `services` by key, as their owner last wrote them.
pub(super) type OwnRows = BTreeMap<Vec<Value>, Vec<Value>>;

/// A disk as it once was, and what was known of it.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) storage: Table,
    pub(super) own: OwnRows,
    pub(super) buried: BTreeSet<Value>,
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
    pub(super) storage: Table,
    /// The storage's heads, counted here too.
    pub(super) heads: BTreeMap<Origin, Version>,
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
    /// When it is to be woken.
    pub(super) wake_at: Option<Time>,
    /// When the process was last told something by its disk: the next comes no earlier.
    pub(super) told_at: Time,
    /// It writes nothing before that many peers confirmed its head.
    pub(super) confirmations_needed: usize,
    /// How far its wall clock is ahead, in microseconds.
    pub(super) clock_ahead: u64,
}

impl VirtualNode {
    pub(super) fn new(index: NodeIndex, storage: Table, clock_ahead: u64) -> Self {
        Self {
            index,
            id: storage.origin().node,
            life: 0,
            replica: None,
            storage,
            heads: BTreeMap::new(),
            image: None,
            apart: BTreeSet::new(),
            buried: BTreeSet::new(),
            own: OwnRows::new(),
            disk: Disk::default(),
            is_told_gone: false,
            up: BTreeSet::new(),
            wake_at: None,
            told_at: Time(0),
            confirmations_needed: 0,
            clock_ahead,
        }
    }

    /// Reads the heads from the storage, as a process does when it starts.
    pub(super) fn read_heads(&mut self) {
        let heads = self.storage.heads().expect("the storage in memory does not fail");
        self.heads = heads.into_iter().collect();
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

    /// Returns a number that is the same for equal heads.
    pub(super) fn heads_hash(&self) -> u64 {
        let mut hash = Fnv::default();
        for (origin, head) in &self.heads {
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
