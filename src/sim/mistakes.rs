//! Mistakes made on purpose, to see that the checkers notice them. They are made around the replica
//! and the storage: nothing in production knows how to do wrong.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::medium::AnyMedium;
use super::node::{Image, VirtualNode};
use super::workload;
use crate::crdt::change::{Class, Life, RowChange, TableChanges, owns};
use crate::crdt::{Batch, Changeset, Key, Name, Piece, Table, pack};
use crate::replica::Config;
use crate::types::{NodeId, Value, Wall};
use crate::wire::Message;

/// A mistake that a replica or a storage could make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// A commit is told before it is synced: a crash takes back what others have heard of.
    SendBeforeSync,
    /// A node whose disk was set back goes on under its old origin.
    VersionReused,
    /// Of two concurrent writes of a cell each node keeps the one that it had first.
    TieKeepsLocal,
    /// What came early is applied at once, and the head moves past what is missing.
    AppliedOutOfOrder,
    /// The heads are on disk a moment before the rows.
    HeadBeforeData,
    /// A node drops the tombstones of all that it holds itself, whatever others hold.
    TombstonesGoEarly,
    /// A node that was away keeps the rows that the others do not have.
    TheDeletedStay,
    /// A row that was deleted and inserted again keeps cells of its earlier life.
    CellsNotReset,
    /// A row is taken from whoever writes it, whomever it belongs to.
    ForeignOwnerAccepted,
    /// What waits has no limit.
    UnlimitedBuffer,
    /// What did not arrive is sent again at once, until it does.
    RetryWithoutBudget,
}

/// How soon a sender without a budget tries again.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(20);

/// How much later than it should a disk is synced.
pub(super) const SYNC_LATE: Duration = Duration::from_millis(300);

/// Cells of rows of `kv` as they once were: by column the count and the value.
pub(super) type OldCells = BTreeMap<Key, BTreeMap<Name, (u64, Value)>>;

/// Returns the settings of a process. What is checked are those of the scenario.
pub(super) fn settings(mutation: Option<Mutation>, config: &Config) -> Config {
    let config = config.clone();
    match mutation {
        Some(Mutation::UnlimitedBuffer) => Config {
            early_origin_bytes_max: usize::MAX / 4,
            early_bytes_max: usize::MAX / 4,
            ready_bytes_max: usize::MAX / 4,
            ..config
        },
        _ => config,
    }
}

/// Makes of what a batch says what is applied in its place.
pub(super) fn misread(mutation: Option<Mutation>, node: &mut VirtualNode, batch: Batch) -> Batch {
    let misread: fn(&mut VirtualNode, &Name, &[Name], &mut RowChange) = match mutation {
        Some(Mutation::TieKeepsLocal) => keep_local,
        Some(Mutation::CellsNotReset) => keep_old_cells,
        _ => return batch,
    };
    let mut batch = batch;
    for changeset in batch.pieces.iter_mut().flat_map(|piece| &mut piece.changesets) {
        let mut changed = Changeset::clone(changeset);
        for TableChanges { table, columns, rows } in &mut changed.tables {
            if Class::of(table) == Class::Shared {
                rows.iter_mut().for_each(|row| misread(node, table, columns, row));
            }
        }
        *changeset = Arc::new(changed);
    }
    batch
}

/// Leaves out the cells that were written as often here.
fn keep_local(node: &mut VirtualNode, table: &Name, columns: &[Name], change: &mut RowChange) {
    let Some(held) = held(node, table, &change.key) else { return };
    if held.life.length != change.life.length {
        return;
    }
    change.life = held.life;
    change.cells.retain(|cell| {
        let held = held.cells.get(&columns[usize::from(cell.column)]);
        held.is_none_or(|clock| clock.count != cell.count)
    });
}

/// Puts the cells of an earlier life in the place of those that were written less often since.
fn keep_old_cells(node: &mut VirtualNode, table: &Name, columns: &[Name], change: &mut RowChange) {
    if &**table != "kv" {
        return;
    }
    let held = held(node, table, &change.key);
    if let Some(held) = held.filter(|held| held.life.length < change.life.length)
        && let Some(row) = held.row
    {
        let cells = held.cells.into_iter().filter_map(|(column, clock)| {
            let place = workload::KV_COLUMNS.iter().position(|name| **name == *column)?;
            Some((column, (clock.count, row[place].clone())))
        });
        node.old_cells.insert(Arc::clone(&change.key), cells.collect());
    }
    let Some(old) = node.old_cells.get(&change.key).filter(|_| change.life.is_alive()) else {
        return;
    };
    for cell in &mut change.cells {
        match old.get(&columns[usize::from(cell.column)]) {
            Some((count, value)) if *count >= cell.count => {
                (cell.count, cell.value) = (*count, value.clone());
            }
            Some(_) | None => {}
        }
    }
}

fn held(node: &VirtualNode, table: &Name, key: &Key) -> Option<crate::crdt::storage::Inspected> {
    let key = pack::unpack(key).ok()?;
    node.storage.inspect(table, &key).ok().flatten()
}

/// Applies what storages refuse: rows of a batch that do not belong to who wrote them.
pub(super) fn take_foreign_rows(storage: &mut AnyMedium, batch: &Batch) {
    // Storages of production have no way to make this mistake.
    let Some(storage) = storage.as_any_mut().downcast_mut::<Table>() else { return };
    for changeset in batch.pieces.iter().flat_map(|piece| &piece.changesets) {
        for changes in &changeset.tables {
            let foreign = changes.rows.iter().filter(|row| {
                let first = pack::unpack(&row.key).ok().and_then(|key| key.into_iter().next());
                let is_own = first.is_some_and(|key| owns(changeset.stamp.origin.node, &key));
                Class::of(&changes.table) == Class::Owned && !is_own
            });
            let rows: Vec<RowChange> = foreign.cloned().collect();
            if !rows.is_empty() {
                storage.force(changeset.stamp, &TableChanges { rows, ..changes.clone() });
            }
        }
    }
}

/// Adds to a commit that is about to be told a row that belongs to somebody else.
pub(super) fn forge(message: &mut Message, victim: NodeId) {
    let Message::Push { hops: 0, piece } = message else { return };
    let Some(changeset) = piece.changesets.first_mut() else { return };
    let mut forged = Changeset::clone(changeset);
    let key = [Value::from(victim.to_string()), Value::from("a0")];
    let key = pack::pack(&key).expect("two texts are a key");
    let row = RowChange {
        key,
        life: Life { length: 1, stamp: forged.stamp },
        cells: vec![crate::crdt::change::CellChange {
            column: 0,
            count: 1,
            value: Value::from("forged"),
        }],
    };
    let columns = vec![Name::from("name")];
    forged.tables.push(TableChanges { table: Name::from("services"), columns, rows: vec![row] });
    *changeset = Arc::new(forged);
}

/// Makes of a push that came early a batch that claims to follow what is held.
pub(super) fn out_of_order(node: &VirtualNode, message: &Message) -> Option<Batch> {
    let Message::Push { piece, .. } = message else { return None };
    let head = node.head(piece.origin);
    let is_early = piece.after > head && piece.origin.node != node.id;
    is_early.then(|| Batch { pieces: vec![Piece { after: head, ..piece.clone() }] })
}

/// Notes what is left of the disk should the process crash before all is there: where a sync is put
/// off, before [`SYNC_LATE`] has passed, which is to be seen to (true); where heads come before rows,
/// before the next transaction.
pub(super) fn put_off_sync(
    mutation: Option<Mutation>,
    node: &mut VirtualNode,
    now: Wall,
    batch: Option<&Batch>,
) -> bool {
    let is_late = mutation == Some(Mutation::SendBeforeSync);
    if mutation == Some(Mutation::HeadBeforeData) {
        node.unsynced = None;
    }
    if node.unsynced.is_some() {
        return false;
    }
    let Some(mutation) = mutation else { return false };
    let Ok(mut storage) = node.storage.try_copy() else { return false };
    match (mutation, batch) {
        (Mutation::SendBeforeSync, None) => {}
        (Mutation::HeadBeforeData, Some(batch)) => {
            let bare = |piece: &Piece| Piece { changesets: Vec::new(), ..piece.clone() };
            let heads = Batch { pieces: batch.pieces.iter().map(bare).collect() };
            drop(storage.apply(now, &heads));
        }
        _ => return false,
    }
    let (own, buried) = (node.own.clone(), node.buried.clone());
    node.unsynced = Some(Box::new(Image { storage, own, buried }));
    is_late
}
