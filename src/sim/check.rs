//! What must be true: one function a truth. Those of the first part hold at every commit of every
//! node, those of the second when the trouble is over.

use std::collections::{BTreeMap, BTreeSet};

use super::node::VirtualNode;
use super::trace::Fnv;
use super::workload;
use crate::crdt::{Commit, Piece, Storage};
use crate::replica::Config;
use crate::types::{NodeId, Origin, Time, Value, Version};
use crate::wire::{Cut, Message, encode};

/// What all nodes together have seen.
#[derive(Debug, Default)]
pub(super) struct Truths {
    /// The content of each name, as it was committed.
    names: BTreeMap<(Origin, Version), u64>,
    /// The content of whoever held so many versions, which were all there were.
    contents: BTreeMap<u64, u64>,
    /// The rows of each owner after each of its versions, as long as it had one origin only.
    histories: BTreeMap<(Origin, Version), u64>,
    /// How far each origin's commits were acknowledged to a client.
    acknowledged: BTreeMap<Origin, Version>,
    /// Owners of more than one origin: which of their versions is newer is not plain any more.
    split_owners: BTreeSet<NodeId>,
    /// Rows that are born once only, and in which version.
    born: BTreeMap<Value, (Origin, Version)>,
    /// The versions in which such rows were deleted.
    died: BTreeMap<Value, Vec<(Origin, Version)>>,
    /// Versions of origins that have yet to settle, which told of themselves up to here: what they
    /// wrote once more since is missing.
    cut: BTreeSet<(Origin, Version)>,
    /// Versions of which somebody was sent a part.
    parted: BTreeSet<(Origin, Version)>,
    /// When each version was committed, for the report.
    committed_at: BTreeMap<(Origin, Version), Time>,
}

/// A truth that was found not to be one, in words.
pub(super) type Checked = Result<(), String>;

impl Truths {
    /// A node committed a transaction of its own.
    pub(super) fn on_own_commit(
        &mut self,
        now: Time,
        node: &VirtualNode,
        commit: &Commit,
    ) -> Checked {
        let Some(changeset) = &commit.changeset else {
            return Err(format!("{} committed something without a changeset", node.index));
        };
        let name = (changeset.stamp.origin, changeset.stamp.version);
        let bytes = encode(&Message::Push { hops: 0, piece: Piece::of(changeset.clone()) });
        self.name_has_one_content(name, &bytes)?;
        self.committed_at.insert(name, now);
        if name.0.epoch.0 > 1 {
            self.split_owners.insert(node.id);
        }
        self.histories.insert(name, owned_rows(node, node.id));
        for (key, existed, exists) in unique_rows(commit) {
            match (existed, exists) {
                (false, true) => drop(self.born.insert(key.clone(), name)),
                (true, false) => self.died.entry(key.clone()).or_default().push(name),
                (true, true) | (false, false) => {}
            }
        }
        Ok(())
    }

    /// A node answers a pull.
    pub(super) fn on_answer(
        &mut self,
        node: &VirtualNode,
        piece: &Piece,
        (head, cut): (Version, Cut),
    ) {
        if cut.to > 0 {
            self.parted.insert((piece.origin, piece.through.next()));
        }
        if piece.origin.node == node.id && head < node.head(piece.origin) {
            self.cut.insert((piece.origin, head));
        }
    }

    /// Returns how many deletes there were of rows that are born once only.
    pub(super) fn deaths(&self) -> usize {
        self.died.values().map(Vec::len).sum()
    }

    /// What was deleted is gone everywhere, and what nobody deleted is there.
    pub(super) fn only_the_deleted_is_gone(&self, nodes: &[VirtualNode]) -> Checked {
        let is_held = |(origin, version): &(Origin, Version)| nodes[0].head(*origin) >= *version;
        for (key, born) in &self.born {
            let died = self.died.get(key);
            for node in nodes {
                let held = node.storage.inspect("kv", std::slice::from_ref(key)).ok().flatten();
                let is_shown = held.is_some_and(|inspected| inspected.row.is_some());
                let was_deleted = died.is_some_and(|died| died.iter().any(is_held));
                if is_shown && was_deleted && !self.is_reborn(node, key) {
                    return Err(format!("{} shows {key}, which was deleted", node.index));
                }
                if !is_shown && died.is_none() && is_held(born) {
                    return Err(format!("{} lacks {key}, which nobody deleted", node.index));
                }
            }
        }
        Ok(())
    }

    pub(super) fn on_acknowledged(&mut self, origin: Origin, version: Version) {
        self.acknowledged.insert(origin, version);
    }

    /// A disk was lost: what no other disk holds need not come back.
    pub(super) fn excuse(&mut self, survived: impl Fn(Origin) -> Version) {
        for (origin, version) in &mut self.acknowledged {
            *version = survived(*origin).min(*version);
        }
    }

    pub(super) fn committed_at(&self, name: (Origin, Version)) -> Option<Time> {
        self.committed_at.get(&name).copied()
    }

    pub(super) fn versions(&self) -> usize {
        self.committed_at.len()
    }

    /// Tells whether a row holds something of a version that may have come in parts.
    fn came_in_parts(&self, node: &VirtualNode, table: &str, key: &[Value]) -> bool {
        let Some(held) = node.storage.inspect(table, key).ok().flatten() else { return false };
        let cells = held.cells.values().map(|cell| cell.stamp);
        let mut stamps = cells.chain([held.life.stamp]);
        stamps.any(|stamp| self.parted.contains(&(stamp.origin, stamp.version)))
    }

    /// No name denotes two contents, ever.
    fn name_has_one_content(&mut self, name: (Origin, Version), bytes: &[u8]) -> Checked {
        let content = Fnv::of(bytes);
        match self.names.insert(name, content) {
            Some(before) if before != content => {
                Err(format!("{} version {} was committed twice, with two contents", name.0, name.1))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Nodes that hold everything there is have equal rows and clocks, also while others do not.
    ///
    /// Of nodes that hold less this is not true: a piece that was pulled lacks the cells that were
    /// overwritten where it came from, perhaps by an origin that its receiver has yet to hear of.
    pub(super) fn whoever_holds_all_holds_the_same(&mut self, node: &VirtualNode) -> Checked {
        let held = node.heads.values().map(|head| head.0).sum::<u64>();
        if node.is_rejoining() || held != self.committed_at.len() as u64 {
            return Ok(());
        }
        let content = node.storage.fingerprint().map_err(|error| error.to_string())?;
        match self.contents.insert(held, content) {
            Some(before) if before != content => {
                Err(format!("{} holds all, but not the same as somebody else", node.index))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The rows that a node owns are, on every node, those it had after some version.
    pub(super) fn owned_rows_are_a_prefix(
        &self,
        node: &VirtualNode,
        heads: &[(Origin, Version)],
    ) -> Checked {
        for (origin, head) in heads {
            let owner = origin.node;
            let Some(history) = self.histories.get(&(*origin, *head)) else { continue };
            if node.is_rejoining() || self.cut.contains(&(*origin, *head)) {
                continue;
            }
            if !self.split_owners.contains(&owner) && owned_rows(node, owner) != *history {
                return Err(format!(
                    "{} shows rows of {owner} that it did not have after version {head}",
                    node.index
                ));
            }
        }
        Ok(())
    }

    /// What was acknowledged is on every node.
    pub(super) fn nothing_acknowledged_is_lost(&self, nodes: &[VirtualNode]) -> Checked {
        for node in nodes {
            for (origin, version) in &self.acknowledged {
                let head = node.head(*origin);
                if head < *version {
                    return Err(format!(
                        "{} holds {origin} up to {head}, but {version} was acknowledged",
                        node.index
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Rows that are born once only.
impl Truths {
    /// A row that is born once only and that a disk has seen die does not show there again, unless
    /// who gave it life did not know of its death and begins it again.
    pub(super) fn the_dead_stay_dead(&self, node: &mut VirtualNode, commit: &Commit) -> Checked {
        for (key, _, exists) in unique_rows(commit) {
            let is_dead = node.life_of(key).is_some_and(|life| !life.is_alive());
            if is_dead {
                // A row that goes without a tombstone may only be missing for a while.
                node.buried.insert(key.clone());
            }
            if exists && node.buried.contains(key) && !self.is_reborn(node, key) {
                return Err(format!("{} shows {key} again, which was deleted", node.index));
            }
        }
        Ok(())
    }

    fn is_reborn(&self, node: &VirtualNode, key: &Value) -> bool {
        let Some(life) = node.life_of(key) else { return false };
        let begun_by = self.born.get(key).map(|(origin, _)| origin.node);
        life.length > 1 && begun_by == Some(life.stamp.origin.node)
    }
}

/// Rows that are written together are never seen apart.
///
/// An exception: what another origin overwrites, a later epoch of the same owner too, between two
/// parts of a version is missing in the second. It comes with the other origin.
pub(super) fn twins_change_together(
    truths: &Truths,
    node: &mut VirtualNode,
    commit: &Commit,
) -> Checked {
    for table in &commit.tables {
        let name = &*table.table.name;
        for event in table.rows.each() {
            let Some(twin_key) = workload::twin_of(name, &event.key) else { continue };
            let twin = table.rows.each().iter().find(|other| other.key == twin_key);
            let is_alike = twin.is_some_and(|twin| {
                workload::shared_part(twin) == workload::shared_part(event)
                    && twin.existed == event.existed
            });
            if is_alike {
                node.apart.remove(&event.key);
                continue;
            }
            let in_parts = |key: &[Value]| truths.came_in_parts(node, name, key);
            let came_in_parts = in_parts(&event.key) || in_parts(&twin_key);
            // Who takes all rows anew is told of the tombstones that are left. What else was deleted
            // goes when it settles.
            let is_leftover = node.is_rejoining() && event.row.is_none();
            let may_part = commit.changeset.is_none() && (came_in_parts || is_leftover);
            if !may_part && !node.apart.contains(&event.key) {
                let heads = &commit.heads;
                return Err(format!(
                    "{} sees half a transaction: {name} {event:?} and {twin:?}, with {heads:?}",
                    node.index
                ));
            }
            node.apart.extend([event.key.clone(), twin_key]);
        }
    }
    Ok(())
}

/// Lists the rows of a commit that are born once only: whether they existed, and do.
fn unique_rows(commit: &Commit) -> impl Iterator<Item = (&Value, bool, bool)> {
    let rows = commit.tables.iter().flat_map(|t| t.rows.each().iter().map(move |row| (t, row)));
    rows.filter_map(|(table, row)| {
        let key = workload::unique_key(&table.table.name, &row.key)?;
        Some((key, row.existed, row.row.is_some()))
    })
}

/// While a process lives, no head goes down.
pub(super) fn heads_only_rise(node: &VirtualNode, heads: &[(Origin, Version)]) -> Checked {
    for (origin, head) in heads {
        let before = node.head(*origin);
        if *head < before {
            return Err(format!(
                "{}: the head of {origin} fell from {before} to {head}",
                node.index
            ));
        }
    }
    Ok(())
}

/// Only a node whose disk went back has a reason to begin an epoch.
pub(super) fn epoch_is_needed(node: &VirtualNode) -> Checked {
    match node.image {
        Some(_) => Ok(()),
        None => Err(format!("{} begins an epoch, though its disk lost nothing", node.index)),
    }
}

/// Only a node that was forgotten or never settled, or whose disk went back, takes all rows anew: for
/// all others their peers keep the tombstones that they need.
pub(super) fn rejoin_is_needed(node: &VirtualNode, nodes: &[VirtualNode]) -> Checked {
    let origin = node.storage.origin();
    let has_settled = node.storage.floor().is_ok_and(|floor| floor.settled == Some(origin));
    let has_forgotten = |other: &VirtualNode| {
        let running = other.replica.as_ref().map(|replica| replica.collection(Time(0)).forgotten);
        let on_disk = other.storage.floor().map(|floor| floor.forgotten).unwrap_or_default();
        running.is_some_and(|forgotten| forgotten.contains(&node.id))
            || on_disk.iter().any(|(forgotten, _)| *forgotten == node.id)
    };
    // Whoever said so may have crashed before that was on its disk.
    let is_gone = node.is_told_gone || nodes.iter().any(has_forgotten);
    if has_settled && node.image.is_none() && !is_gone {
        return Err(format!("{} takes all rows anew, though all waited for it", node.index));
    }
    Ok(())
}

/// What a node withdraws are rows that it did not write in this life.
pub(super) fn only_strangers_are_withdrawn(node: &VirtualNode) -> Checked {
    for key in node.own.keys() {
        let held = node.storage.inspect("services", key).ok().flatten();
        if held.is_none_or(|inspected| inspected.row.is_none()) {
            return Err(format!("{} has withdrawn {key:?}, which it had claimed", node.index));
        }
    }
    Ok(())
}

/// Every node shows of every owner the rows that the owner last wrote, and no others.
pub(super) fn owners_have_the_last_word(nodes: &[VirtualNode]) -> Checked {
    for (node, owner) in nodes.iter().flat_map(|node| nodes.iter().map(move |o| (node, o))) {
        for key in workload::owned_keys(owner.id) {
            let held = node.storage.inspect("services", &key).ok().flatten();
            let shown = held.and_then(|inspected| inspected.row);
            let written = owner.own.get(&key[..]);
            if shown.as_ref() != written {
                return Err(format!(
                    "{} shows {shown:?} where {} last wrote {written:?}",
                    node.index, owner.index
                ));
            }
        }
    }
    Ok(())
}

/// The replica's ledger holds nothing that is not on disk; at rest, all that is.
pub(super) fn ledger_is_honest(node: &VirtualNode, is_at_rest: bool) -> Checked {
    let Some(replica) = &node.replica else { return Ok(()) };
    if !is_at_rest && node.is_rejoining() {
        // It hears in a moment that its heads have fallen.
        return Ok(());
    }
    for (origin, head) in replica.ledger().heads() {
        // Of an own origin that was set back it hears in a moment.
        if head > node.head(origin) && (is_at_rest || origin.node != node.id) {
            return Err(format!("{} believes it holds {origin} up to {head}", node.index));
        }
    }
    let is_whole = replica.ledger().heads().eq(node.heads.iter().map(|(origin, v)| (*origin, *v)));
    if is_at_rest && !is_whole {
        return Err(format!("{}: ledger and storage differ at rest", node.index));
    }
    Ok(())
}

/// What is kept in memory of pulls that are not whole yet has its limit, however large they are.
pub(super) fn staged_memory_is_bounded(node: &VirtualNode, config: &Config) -> Checked {
    let Some(replica) = &node.replica else { return Ok(()) };
    // On the wire a small row is estimated at some times its weight in the storage.
    let piece = 4 * config.piece_bytes_max + 2_000;
    let limit = config.staged_origin_bytes_max.max(config.stage_bytes_max) + piece;
    let (all, most) = replica.staged_bytes();
    if most > limit || all > config.staged_bytes_max + piece {
        return Err(format!("{} keeps {most} bytes of a pull in memory, {all} in all", node.index));
    }
    Ok(())
}

/// Nodes with equal heads that miss nothing have equal rows and clocks.
pub(super) fn equal_heads_have_equal_contents(nodes: &[VirtualNode]) -> Checked {
    let content = |node: &VirtualNode| node.storage.fingerprint().ok();
    match nodes.iter().find(|node| content(node) != content(&nodes[0])) {
        Some(node) => Err(format!(
            "{} has other rows than n0, with the same heads: {}",
            node.index,
            node.storage.first_difference(&nodes[0].storage).unwrap_or_default()
        )),
        None => Ok(()),
    }
}

/// All nodes are up, hold the same, and know it.
pub(super) fn has_converged(nodes: &[VirtualNode]) -> bool {
    let first = nodes[0].heads_hash();
    nodes.iter().all(|node| {
        let is_told = node.replica.as_ref().is_some_and(|replica| {
            // What follows a version that a restored disk lost may wait for it in vain.
            replica.behind().versions == 0
                && replica.waiting_bytes().0 == 0
                && !replica.awaits_withdrawal()
                && replica.collection(Time(0)).is_settled
        });
        is_told && node.disk.is_at_rest() && node.heads_hash() == first
    })
}

fn owned_rows(node: &VirtualNode, owner: NodeId) -> u64 {
    let mut hash = Fnv::default();
    for key in workload::owned_keys(owner) {
        let row = node.storage.inspect("services", &key).ok().flatten();
        match row.and_then(|inspected| inspected.row) {
            Some(row) => row.iter().for_each(|value| hash.add(value.to_string().as_bytes())),
            None => hash.add(b"-"),
        }
    }
    hash.value()
}
