//! What must be true: one function a truth, each with the number of the promise that it holds. Those
//! of the first part hold at every commit of every node, those of the second when the trouble is
//! over.
//!
//! P1 what was acknowledged is on disk and stays · P2 a name denotes one content, for ever, and what
//! begins an epoch has a reason · P3 a transaction is seen whole · P4 owned rows are as their owner
//! had them after some version, which only rises, and its last word stays · P5 equal heads are
//! equal rows, and all come to hold the same · P9 nothing becomes a storm (`budget`) · P10 every queue
//! has its limit · P20 a replica believes to hold what its disk holds · P22 what is not known yet
//! is parked and shown later · P25 what was deleted stays deleted, though its tombstone goes.

use std::collections::{BTreeMap, BTreeSet};

use super::node::VirtualNode;
use super::trace::Fnv;
use super::twins::net_rows;
use super::{NodeIndex, workload};
use crate::crdt::fingerprint::{NameHash, clock_hash};
use crate::crdt::merge::CellClock;
use crate::crdt::storage::Bookmark;
use crate::crdt::{Changeset, Commit, Piece, TableChanges, pack};
use crate::replica::Config;
use crate::types::{NodeId, Origin, Time, Value, Version};
use crate::wire::Cut;

/// What all nodes together have seen.
#[derive(Debug, Default)]
pub(super) struct Truths {
    /// The content of each name, as it was committed.
    names: BTreeMap<(Origin, Version), Content>,
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
    /// How long such rows live that began again, by who gave them life and did not know of their death.
    reborn: BTreeSet<(Value, u64)>,
    /// The versions in which such rows were deleted.
    died: BTreeMap<Value, Vec<(Origin, Version)>>,
    /// Versions of origins that have yet to settle, which told of themselves up to here or less: what
    /// they wrote once more since is missing until that comes.
    cut: BTreeSet<(Origin, Version)>,
    /// Versions of which somebody was sent a part.
    parted: BTreeSet<(Origin, Version)>,
    /// Forgotten nodes whose rows somebody deleted, or of which somebody remembers nothing any more.
    gone: BTreeSet<NodeId>,
    /// Origins that somebody has retired, and how far they were held.
    retired: BTreeMap<Origin, Version>,
    /// Those of them that somebody has erased.
    erased: BTreeSet<Origin>,
    /// Whether a disk was lost that alone held some versions.
    has_lost_versions: bool,
    /// Rows that somebody mended, and what was written with them.
    mended: BTreeSet<Vec<Value>>,
    /// When each version was committed, for the report.
    committed_at: BTreeMap<(Origin, Version), Time>,
}

/// What a version says, as hashes: the whole of it, and each cell.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Content {
    whole: u64,
    cells: BTreeSet<u64>,
}

impl Content {
    fn of(changeset: &Changeset) -> Self {
        let mut content = Self::default();
        for TableChanges { table, columns, rows } in &changeset.tables {
            let (table, columns) = (NameHash::of(table), columns.iter().map(|c| NameHash::of(c)));
            let columns: Vec<NameHash> = columns.collect();
            for row in rows {
                let place = table.row(&row.key);
                content.whole = content.whole.wrapping_add(place.life(row.life));
                for cell in &row.cells {
                    let clock = CellClock { count: cell.count, stamp: changeset.stamp };
                    let column = columns[usize::from(cell.column)];
                    let hash = place.cell(column, clock_hash(clock), &cell.value);
                    content.whole = content.whole.wrapping_add(hash);
                    content.cells.insert(hash);
                }
            }
        }
        content
    }
}

/// A truth that was found not to be one, in words: first which promise it was.
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
            return Err(format!("P3: {} committed something without a changeset", node.index));
        };
        let name = (changeset.stamp.origin, changeset.stamp.version);
        self.name_has_one_content(name, Content::of(changeset))?;
        self.committed_at.insert(name, now);
        if name.0.epoch.0 > 1 {
            self.split_owners.insert(node.id);
        }
        self.histories.insert(name, node.shown.of(node.id));
        if self.erased.remove(&name.0) {
            // Its node was gone for good and is back as a new one, with a disk that holds nothing but what
            // it wrote itself.
            self.retired.remove(&name.0);
        }
        // Before births are noted: a first one is none of those.
        for row in changeset.tables.iter().filter(|t| &*t.table == "kv").flat_map(|t| &t.rows) {
            let key = pack::unpack(&row.key).ok().and_then(|mut key| key.pop());
            let Some(key) = key.filter(|_| row.life.stamp.origin == name.0) else { continue };
            if self.born.get(&key).is_some_and(|(origin, _)| origin.node == name.0.node) {
                self.reborn.insert((key, row.life.length));
            }
        }
        for (key, existed, exists) in unique_rows(commit) {
            match (existed, exists) {
                (false, true) => drop(self.born.insert(key.clone(), name)),
                (true, false) => self.died.entry(key.clone()).or_default().push(name),
                (true, true) | (false, false) => {}
            }
        }
        Ok(())
    }

    /// A node deleted the rows of a forgotten one: those who do it by themselves do the same.
    pub(super) fn on_departure(&mut self, now: Time, piece: &Piece) -> Checked {
        for changeset in &piece.changesets {
            let name = (changeset.stamp.origin, changeset.stamp.version);
            self.name_has_one_content(name, Content::of(changeset))?;
            self.committed_at.entry(name).or_insert(now);
            self.split_owners.insert(name.0.node);
            self.gone.insert(name.0.node);
        }
        Ok(())
    }

    /// A node mended rows one by one: that is no transaction of anybody's, and their owner may withdraw
    /// them so.
    pub(super) fn on_mended(&mut self, node: &mut VirtualNode, commit: &Commit) {
        node.shown.note(commit);
        for (table, key) in net_rows(commit).into_keys() {
            let Some(twin_key) = workload::twin_of(table, key) else { continue };
            self.mended.extend([key.to_vec(), twin_key.clone()]);
            node.apart.extend([key.to_vec(), twin_key]);
        }
    }

    /// A node has forgotten others for good.
    pub(super) fn on_gone(&mut self, nodes: &[NodeId]) {
        self.gone.extend(nodes);
    }

    /// P1, P25: of an origin that is retired no member holds more, and nothing is left with who retires
    /// it. What forgotten nodes hold beyond they say again as their own when they return.
    pub(super) fn on_retired(
        &mut self,
        nodes: &[VirtualNode],
        (retired, by): (&[(Origin, Version)], NodeIndex),
    ) -> Checked {
        for (origin, head) in retired {
            let replica = nodes[by.0].replica.as_ref();
            let is_gone = |node: NodeId| replica.is_some_and(|replica| replica.has_forgotten(node));
            let members = nodes.iter().filter(|node| !is_gone(node.id));
            let most = members.map(|node| node.head(*origin)).max().unwrap_or_default();
            if most > *head {
                return Err(format!("P1: {by} retires {origin} at {head}, but {most} is held"));
            }
            let left = nodes[by.0].storage.load_from(*origin, Bookmark::default(), usize::MAX);
            if left.is_ok_and(|left| !left.piece.changesets.is_empty()) {
                return Err(format!("P25: {by} retires {origin}, of which something is left"));
            }
            // What nobody holds was said again under another name, by who wrote it.
            if let Some(acknowledged) = self.acknowledged.get_mut(origin) {
                *acknowledged = (*head).min(*acknowledged);
            }
            self.retired.insert(*origin, *head);
        }
        Ok(())
    }

    pub(super) fn on_erased(&mut self, origins: &[Origin]) {
        self.erased.extend(origins);
    }

    /// Returns how far a node holds an origin, or held it when it was retired.
    pub(super) fn head(&self, node: &VirtualNode, origin: Origin) -> Version {
        node.head(origin).max(self.retired.get(&origin).copied().unwrap_or_default())
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
        if piece.origin.node == node.id {
            let until = node.head(piece.origin);
            let lacking = (head.0..until.0).map(|version| (piece.origin, Version(version)));
            self.cut.extend(lacking);
        }
    }

    /// Returns how many deletes there were of rows that are born once only.
    pub(super) fn deaths(&self) -> usize {
        self.died.values().map(Vec::len).sum()
    }

    /// P25: what was deleted is gone everywhere, and what nobody deleted is there.
    pub(super) fn only_the_deleted_is_gone(&self, nodes: &[VirtualNode]) -> Checked {
        let is_held =
            |(origin, version): &(Origin, Version)| self.head(&nodes[0], *origin) >= *version;
        for (key, born) in &self.born {
            let died = self.died.get(key);
            for node in nodes {
                let held = node.storage.inspect("kv", std::slice::from_ref(key)).ok().flatten();
                let is_shown = held.is_some_and(|inspected| inspected.row.is_some());
                let was_deleted = died.is_some_and(|died| died.iter().any(is_held));
                if is_shown && was_deleted && !self.is_reborn(node, key) {
                    return Err(format!("P25: {} shows {key}, which was deleted", node.index));
                }
                if !is_shown && died.is_none() && is_held(born) {
                    return Err(format!("P25: {} lacks {key}, which nobody deleted", node.index));
                }
            }
        }
        Ok(())
    }

    pub(super) fn on_acknowledged(&mut self, origin: Origin, version: Version) {
        self.acknowledged.insert(origin, version);
    }

    /// A disk was lost: what no other disk holds need not come back.
    pub(super) fn excuse(&mut self, nodes: &[VirtualNode]) {
        for (origin, version) in &mut self.acknowledged {
            *version = survived(nodes, *origin).min(*version);
        }
    }

    /// A disk went back.
    pub(super) fn on_lost(&mut self, nodes: &[VirtualNode]) {
        let is_lost = |(origin, version): &(Origin, Version)| {
            nodes.iter().all(|node| self.head(node, *origin) < *version)
        };
        let has_lost = self.committed_at.keys().any(is_lost);
        self.has_lost_versions |= has_lost;
    }

    /// Tells whether a disk was lost that alone held some versions.
    pub(super) fn has_lost_versions(&self) -> bool {
        self.has_lost_versions
    }

    /// An epoch ended: what it wrote that nobody else has heard of is said again under another name.
    pub(super) fn excuse_ended(&mut self, ended: Origin, survived: Version) {
        if let Some(acknowledged) = self.acknowledged.get_mut(&ended) {
            *acknowledged = survived.min(*acknowledged);
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

    /// P2: no name denotes two contents, ever.
    fn name_has_one_content(&mut self, name: (Origin, Version), content: Content) -> Checked {
        let (origin, version) = name;
        match self.names.get(&name) {
            Some(before) if *before != content => {
                Err(format!("P2: {origin} version {version} was committed twice, differently"))
            }
            Some(_) => Ok(()),
            None => {
                self.names.insert(name, content);
                Ok(())
            }
        }
    }

    /// P2: what travels under a name is what was committed under it: fresh, all of it; later, what
    /// nobody has overwritten. Nothing is told that was not committed.
    pub(super) fn what_travels_was_committed(
        &self,
        from: NodeIndex,
        piece: &Piece,
        is_fresh: bool,
    ) -> Checked {
        for changeset in &piece.changesets {
            let (origin, version) = (changeset.stamp.origin, changeset.stamp.version);
            let sent = Content::of(changeset);
            let is_said = self.names.get(&(origin, version)).is_some_and(|committed| {
                let is_whole = committed.whole == sent.whole;
                is_whole || (!is_fresh && sent.cells.is_subset(&committed.cells))
            });
            if !is_said {
                return Err(format!(
                    "P2: {from} tells of {origin} version {version} what was not committed there"
                ));
            }
        }
        Ok(())
    }

    /// P1: what a process acknowledged is on its disk when the next one starts there.
    pub(super) fn what_was_acknowledged_is_on_disk(&self, node: &VirtualNode) -> Checked {
        let origin = node.storage.origin();
        let acknowledged = self.acknowledged.get(&origin).copied().unwrap_or_default();
        let head = node.head(origin);
        // A disk that was set back has lost something, and is told by its peers.
        if head < acknowledged && node.image.is_none() {
            return Err(format!(
                "P1: {} starts with version {head}, but acknowledged {acknowledged}",
                node.index
            ));
        }
        Ok(())
    }

    /// P5: nodes that hold everything there is have equal rows and clocks, also while others do not.
    ///
    /// Of nodes that hold less this is not true: a piece that was pulled lacks the cells that were
    /// overwritten where it came from, perhaps by an origin that its receiver has yet to hear of.
    pub(super) fn whoever_holds_all_holds_the_same(&mut self, node: &VirtualNode) -> Checked {
        // Of what is retired with anybody nothing is left.
        let is_gone = |(origin, _): &(&Origin, &Version)| node.head(**origin) == Version(0);
        let gone: u64 = self.retired.iter().filter(is_gone).map(|(_, head)| head.0).sum();
        let held = node.heads.sum() + gone;
        let is_all = held == self.committed_at.len() as u64;
        if node.is_rejoining() || !is_all {
            return Ok(());
        }
        let content = node.storage.fingerprint().map_err(|error| error.to_string())?;
        match self.contents.insert(held, content) {
            Some(before) if before != content => {
                Err(format!("P5: {} holds all, but not the same as somebody else", node.index))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// P4: the rows that a node owns are, on every node, those it had after some version. What is
    /// compared is what commits told, and where `is_thorough` what the storage has, too.
    pub(super) fn owned_rows_are_a_prefix(
        &self,
        node: &VirtualNode,
        heads: &[(Origin, Version)],
        is_thorough: bool,
    ) -> Checked {
        for (origin, head) in heads {
            let owner = origin.node;
            let Some(history) = self.histories.get(&(*origin, *head)) else { continue };
            if node.is_rejoining() || self.cut.contains(&(*origin, *head)) {
                continue;
            }
            if self.split_owners.contains(&owner) {
                continue;
            }
            let is_told = node.shown.of(owner) == *history;
            if !is_told || (is_thorough && Shown::read(node, owner) != *history) {
                return Err(format!(
                    "P4: {} shows rows of {owner} that it did not have after version {head}",
                    node.index
                ));
            }
        }
        Ok(())
    }

    /// P1: what was acknowledged is on every node.
    pub(super) fn nothing_acknowledged_is_lost(&self, nodes: &[VirtualNode]) -> Checked {
        for node in nodes {
            for (origin, version) in &self.acknowledged {
                let head = self.head(node, *origin);
                if head < *version {
                    return Err(format!(
                        "P1: {} holds {origin} up to {head}, but {version} was acknowledged",
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
    /// P25: a row that is born once only and that a disk has seen die does not show there again, unless
    /// who gave it life did not know of its death and begins it again.
    pub(super) fn the_dead_stay_dead(&self, node: &mut VirtualNode, commit: &Commit) -> Checked {
        for (key, _, exists) in unique_rows(commit) {
            let is_dead = node.life_of(key).is_some_and(|life| !life.is_alive());
            if is_dead {
                // A row that goes without a tombstone may only be missing for a while.
                node.buried.insert(key.clone());
            }
            if exists && node.buried.contains(key) && !self.is_reborn(node, key) {
                return Err(format!("P25: {} shows {key} again, which was deleted", node.index));
            }
        }
        Ok(())
    }

    fn is_reborn(&self, node: &VirtualNode, key: &Value) -> bool {
        let Some(life) = node.life_of(key) else { return false };
        // Others may have said it again, under a name of theirs.
        life.length > 1 && self.reborn.contains(&(key.clone(), life.length))
    }
}

/// Returns how far an origin is on some disk.
pub(super) fn survived(nodes: &[VirtualNode], origin: Origin) -> Version {
    nodes.iter().map(|node| node.head(origin)).max().unwrap_or_default()
}

/// P3: rows that are written together are never seen apart.
///
/// An exception: what another origin overwrites, a later epoch of the same owner too, between two
/// parts of a version is missing in the second. It comes with the other origin.
pub(super) fn twins_change_together(
    truths: &Truths,
    node: &mut VirtualNode,
    commit: &Commit,
) -> Checked {
    let rows = net_rows(commit);
    for (&(table, key), &(existed, row)) in &rows {
        let Some(twin_key) = workload::twin_of(table, key) else { continue };
        let twin = rows.get(&(table, &twin_key[..]));
        let is_alike = twin.is_some_and(|(twin_existed, twin)| {
            // All but the keys is the same.
            twin.map(|twin| &twin[key.len()..]) == row.map(|row| &row[key.len()..])
                && *twin_existed == existed
        });
        if is_alike {
            node.apart.remove(key);
            continue;
        }
        let in_parts = |key: &[Value]| truths.came_in_parts(node, table, key);
        let came_in_parts = in_parts(key) || in_parts(&twin_key);
        // Who takes all rows anew is told of the tombstones that are left. What else was deleted
        // goes when it settles.
        let is_leftover = node.is_rejoining() && row.is_none();
        let may_part = commit.changeset.is_none() && (came_in_parts || is_leftover);
        let is_withdrawn = row.is_none() && truths.mended.contains(key);
        if !may_part && !is_withdrawn && !node.apart.contains(key) {
            let heads = &commit.heads;
            return Err(format!(
                "P3: {} sees half a transaction: {table} {key:?} {existed} {row:?} and {twin:?}, \
                 with {heads:?}",
                node.index
            ));
        }
        node.apart.extend([key.to_vec(), twin_key]);
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

/// P4: while a process lives, no head goes down.
pub(super) fn heads_only_rise(node: &VirtualNode, heads: &[(Origin, Version)]) -> Checked {
    for (origin, head) in heads {
        let before = node.head(*origin);
        if *head < before {
            return Err(format!(
                "P4: {}: the head of {origin} fell from {before} to {head}",
                node.index
            ));
        }
    }
    Ok(())
}

/// P2: only a node whose disk went back has a reason to begin an epoch, or one whose rows others
/// deleted under a later one, since they took it for gone.
pub(super) fn epoch_is_needed(truths: &Truths, node: &VirtualNode) -> Checked {
    match node.image.is_some() || truths.gone.contains(&node.id) {
        true => Ok(()),
        false => Err(format!("P2: {} begins an epoch, though its disk lost nothing", node.index)),
    }
}

/// P25: only a node that was forgotten or never settled, or whose disk went back, takes all rows anew: for
/// all others their peers keep the tombstones that they need.
pub(super) fn rejoin_is_needed(
    truths: &Truths,
    node: &VirtualNode,
    nodes: &[VirtualNode],
) -> Checked {
    let origin = node.storage.origin();
    let has_settled = node.storage.floor().is_ok_and(|floor| floor.settled == Some(origin));
    let has_forgotten = |other: &VirtualNode| {
        let running = other.replica.as_ref().map(|replica| replica.collection(Time(0)).forgotten);
        let on_disk = other.storage.floor().map(|floor| floor.forgotten).unwrap_or_default();
        running.is_some_and(|forgotten| forgotten.contains(&node.id))
            || on_disk.iter().any(|(forgotten, _)| *forgotten == node.id)
    };
    // Whoever said so may have crashed before that was on its disk.
    let is_gone =
        node.is_told_gone || truths.gone.contains(&node.id) || nodes.iter().any(has_forgotten);
    if has_settled && node.image.is_none() && !is_gone {
        return Err(format!("P25: {} takes all rows anew, though all waited for it", node.index));
    }
    Ok(())
}

/// P4: what a node withdraws are rows that it did not write in this life.
pub(super) fn only_strangers_are_withdrawn(node: &VirtualNode) -> Checked {
    for key in node.own.keys() {
        let held = node.storage.inspect("services", key).ok().flatten();
        if held.is_none_or(|inspected| inspected.row.is_none()) {
            return Err(format!("P4: {} has withdrawn {key:?}, which it had claimed", node.index));
        }
    }
    Ok(())
}

/// P4: every node shows of every owner the rows that the owner last wrote, and no others. Where all
/// are known to hold the same rows, those of one are looked at.
pub(super) fn owners_have_the_last_word(nodes: &[VirtualNode], is_thorough: bool) -> Checked {
    let looked_at = if is_thorough { nodes } else { &nodes[..1] };
    for (node, owner) in looked_at.iter().flat_map(|node| nodes.iter().map(move |o| (node, o))) {
        for key in workload::owned_keys(owner.id) {
            let held = node.storage.inspect("services", &key).ok().flatten();
            let shown = held.and_then(|inspected| inspected.row);
            let written = owner.own.get(&key[..]);
            if shown.as_ref() != written {
                return Err(format!(
                    "P4: {} shows {shown:?} where {} last wrote {written:?}",
                    node.index, owner.index
                ));
            }
        }
    }
    Ok(())
}

/// P20: the replica's ledger holds nothing that is not on disk; at rest, all that is.
pub(super) fn ledger_is_honest(truths: &Truths, node: &VirtualNode, is_at_rest: bool) -> Checked {
    let Some(replica) = &node.replica else { return Ok(()) };
    if !is_at_rest && node.is_rejoining() {
        // It hears in a moment that its heads have fallen.
        return Ok(());
    }
    // What was retired it hears in a moment.
    let counts = |(origin, _): &(Origin, Version)| !truths.retired.contains_key(origin);
    for (origin, head) in replica.ledger().heads().filter(counts) {
        // Of an own origin that was set back it hears in a moment.
        if head > node.head(origin) && (is_at_rest || origin.node != node.id) {
            return Err(format!("P20: {} believes it holds {origin} up to {head}", node.index));
        }
    }
    let on_disk = node.heads.iter().map(|(origin, v)| (*origin, *v));
    let is_whole = replica.ledger().heads().filter(counts).eq(on_disk.filter(counts));
    if is_at_rest && !is_whole {
        return Err(format!("P20: {}: ledger and storage differ at rest", node.index));
    }
    Ok(())
}

/// P10: all that waits in a replica has its limit, whatever comes and however large it is. What is
/// taken in is measured in bytes on the wire; the limits say at which point nothing more is taken, so
/// a queue may be one thing above its limit.
pub(super) fn queues_are_bounded(node: &VirtualNode, config: &Config) -> Checked {
    let Some(replica) = &node.replica else { return Ok(()) };
    let queues = replica.queues();
    // On the wire a small row is estimated at some times its weight in the storage.
    let piece = 4 * (config.piece_bytes_max + node.storage.part_bytes());
    let staged_max = config.staged_origin_bytes_max.max(config.stage_bytes_max) + piece;
    // A pull that is whole is taken where nothing else waits, however large it is, and another one
    // while it is being written; should that fail, both wait. What waited too early follows what it
    // waited for, and the last parts of pulls that are on disk are always taken.
    let comes_late = config.early_origin_bytes_max + config.batch_bytes_max;
    let ready_max = config.ready_bytes_max + comes_late + 2 * staged_max + piece * config.pulls_max;
    let limits = [
        ("ready bytes", queues.ready_bytes, ready_max),
        ("early bytes", queues.early_bytes, config.early_bytes_max),
        ("early bytes of an origin", queues.early_origin_bytes, config.early_origin_bytes_max),
        ("staged bytes", queues.staged_bytes, config.staged_bytes_max + piece),
        ("staged bytes of an origin", queues.staged_origin_bytes, staged_max),
        ("pulls", queues.pulls, config.pulls_max),
        ("loads", queues.loads, config.loads_max),
    ];
    match limits.into_iter().find(|(_, held, most)| held > most) {
        Some((what, held, most)) => {
            Err(format!("P10: {} has {held} {what}, and may have {most}", node.index))
        }
        None => Ok(()),
    }
}

/// P5: nodes with equal heads that miss nothing have equal rows and clocks.
pub(super) fn equal_heads_have_equal_contents(nodes: &[VirtualNode]) -> Checked {
    let content = |node: &VirtualNode| node.storage.fingerprint().ok();
    match nodes.iter().find(|node| content(node) != content(&nodes[0])) {
        Some(node) => Err(format!(
            "P5: {} has other rows than n0, with the same heads: {}",
            node.index,
            node.storage.first_difference(&nodes[0].storage).unwrap_or_default()
        )),
        None => Ok(()),
    }
}

/// Says in which row two nodes differ, or that what they keep of their rows does.
pub(super) fn first_difference(nodes: &[VirtualNode]) -> Option<String> {
    let differs = |node: &VirtualNode| node.storage.first_difference(&nodes[0].storage);
    let kept = || equal_heads_have_equal_contents(nodes).err();
    nodes.iter().find_map(differs).or_else(kept)
}

/// All nodes are up, hold the same, and know it.
pub(super) fn has_converged(truths: &Truths, nodes: &[VirtualNode]) -> bool {
    let counts = |origin: Origin| !truths.retired.contains_key(&origin);
    let first = nodes[0].heads_hash(counts);
    nodes.iter().all(|node| {
        let is_told = node.replica.as_ref().is_some_and(|replica| {
            // What follows a version that a restored disk lost may wait for it in vain.
            replica.behind().versions == 0
                && replica.waiting_bytes().0 == 0
                && !replica.awaits_withdrawal()
                && replica.is_settled()
                // Who is forgotten takes all rows anew as soon as it hears of it.
                && !nodes.iter().any(|other| replica.has_forgotten(other.id))
        });
        is_told && node.disk.is_at_rest() && node.heads_hash(counts) == first
    })
}

/// P22: once all have the same schema, they show what came before it alike.
pub(super) fn all_show_what_was_parked(nodes: &[VirtualNode]) -> Checked {
    for key in workload::note_keys() {
        let shown = |node: &VirtualNode| {
            let held = node.storage.inspect("notes", std::slice::from_ref(&key)).ok().flatten();
            held.and_then(|inspected| inspected.row)
        };
        let first = shown(&nodes[0]);
        if let Some(node) = nodes.iter().find(|node| shown(node) != first) {
            return Err(format!(
                "P22: {} shows {:?} where n0 shows {first:?}",
                node.index,
                shown(node)
            ));
        }
    }
    Ok(())
}

/// The owned rows that a node's commits told of, as a sum of hashes for each owner.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    /// The hash of each row by that of its key.
    rows: BTreeMap<u64, u64>,
    /// The sum of each owner's, by the hash of its name.
    sums: BTreeMap<u64, u64>,
}

impl Shown {
    /// Returns the sum of an owner's rows.
    pub(super) fn of(&self, owner: NodeId) -> u64 {
        let owner = Fnv::of(owner.to_string().as_bytes());
        self.sums.get(&owner).copied().unwrap_or(0)
    }

    /// Reads the same from a storage.
    pub(super) fn read(node: &VirtualNode, owner: NodeId) -> u64 {
        let mut shown = Self::default();
        for key in workload::owned_keys(owner) {
            let row = node.storage.inspect("services", &key).ok().flatten();
            shown.set(&key, row.and_then(|inspected| inspected.row).as_deref());
        }
        shown.of(owner)
    }

    /// Reads all owners' rows from a storage, as a process does when it starts.
    pub(super) fn read_all(node: &VirtualNode, owners: impl Iterator<Item = NodeId>) -> Self {
        let mut shown = Self::default();
        for key in owners.flat_map(workload::owned_keys) {
            let row = node.storage.inspect("services", &key).ok().flatten();
            if let Some(row) = row.and_then(|inspected| inspected.row) {
                shown.set(&key, Some(&row));
            }
        }
        shown
    }

    /// Takes over what a commit tells. Told twice, it is the same.
    pub(super) fn note(&mut self, commit: &Commit) {
        for table in commit.tables.iter().filter(|table| &*table.table.name == "services") {
            for event in table.rows.each() {
                self.set(&event.key, event.row.as_deref());
            }
        }
    }

    fn set(&mut self, key: &[Value], row: Option<&[Value]>) {
        let hash = |values: &[Value]| {
            let mut hash = Fnv::default();
            for value in values {
                match value.as_text() {
                    Some(text) => hash.add(text.as_bytes()),
                    None => hash.add(value.to_string().as_bytes()),
                }
                hash.add(b"|");
            }
            hash.value()
        };
        let owner = Fnv::of(key[0].as_text().unwrap_or_default().as_bytes());
        let place = hash(key);
        let sum = self.sums.entry(owner).or_default();
        if let Some(old) = self.rows.remove(&place) {
            *sum = sum.wrapping_sub(old);
        }
        if let Some(row) = row {
            let new = hash(row);
            *sum = sum.wrapping_add(new);
            self.rows.insert(place, new);
        }
    }
}
