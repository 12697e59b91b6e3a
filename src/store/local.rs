//! What a local transaction becomes: new clocks, a version, and the changeset that tells of it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use rusqlite::{CachedStatement, Connection};

use super::capture::Net;
use super::clocks::{self, Hot, Notes};
use super::database::Store;
use super::gate::Ended;
use super::limits::{TOUCHED_BYTES_MAX, TRANSACTION_BYTES_MAX, TRANSACTION_CELLS_MAX};
use super::log::Times;
use super::origins::Origins;
use super::parked;
use super::tables::{Table, TableId, Tables};
use crate::crdt::change::is_harmless;
use crate::crdt::{
    CellChange, Changeset, Class, ColumnId, Key, Life, Name, RowChange, RowClock, RowEvent,
    RowEvents, Stamp, TableChanges, TableEvents,
};
use crate::types::{Value, Wall};
use crate::wire::frame::CHANGESET_BYTES_MAX;

/// Why a transaction cannot be recorded. It must be rolled back.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(
        "the transaction changes {0} cells; the most allowed are {TRANSACTION_CELLS_MAX}: write in smaller transactions"
    )]
    Cells(usize),
    #[error(
        "the transaction changes {0} bytes; the most allowed are {TRANSACTION_BYTES_MAX}: write in smaller transactions"
    )]
    Bytes(usize),
    #[error(
        "the transaction touches rows of {0} bytes in all; the most allowed are {TOUCHED_BYTES_MAX}: write in smaller transactions"
    )]
    Touched(usize),
    #[error(
        "the transaction changes {0} bytes of one row; the most allowed are {TRANSACTION_BYTES_MAX}: write its columns one after the other"
    )]
    Row(usize),
    #[error("it took too long")]
    Ended(Ended),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

/// A change of one row, before it is put into the shape in which it travels.
struct Change<'a> {
    key: &'a Key,
    life: Life,
    /// Rising.
    cells: Rc<[(ColumnId, u64)]>,
    row: Option<&'a [Value]>,
}

/// Leaves out rows that a transaction touched and left as they were, but for those of an earlier
/// epoch: they are claimed.
pub fn without_unclaimed(store: &Store, mut nets: Vec<Net>) -> rusqlite::Result<Vec<Net>> {
    let present = store.now.origin.epoch;
    let mut fault = None;
    nets.retain(|net| {
        if net.before != net.after {
            return true;
        }
        let clock = store.hot.read(&store.conn, &store.origins, (net.table.id, &net.key));
        let clock = clock.unwrap_or_else(|error| {
            fault = Some(error);
            None
        });
        let clock = clock.filter(RowClock::is_alive);
        clock.is_some_and(|clock| clock.life().stamp.origin.epoch < present)
    });
    fault.map_or(Ok(nets), Err)
}

/// Writes the clocks of all rows, and returns the changeset.
pub fn record(
    store: &mut Store,
    (stamp, at): (Stamp, Wall),
    nets: &[Net],
) -> Result<Changeset, RecordError> {
    check_size(nets, store.cells_max)?;
    let Store { conn, origins, tables, has_parked, hot, sums, sweeper, now, .. } = store;
    let moved = clocks_of_moved(conn, origins, nets)?;
    let mut recorder = Recorder {
        conn,
        origins,
        names: tables,
        has_parked,
        hot,
        stamp,
        length: now.length,
        insert: conn.prepare_cached(clocks::INSERT_NEW)?,
        notes: Notes::default(),
        fresh: BTreeMap::new(),
    };
    let mut changed: BTreeMap<&Name, (&Table, Vec<Change<'_>>)> = BTreeMap::new();
    for (nth, net) in nets.iter().enumerate() {
        let Some(change) = recorder.record(net, moved.get(&nth))? else { continue };
        let table = changed.entry(&net.table.wire).or_insert_with(|| (&net.table, Vec::new()));
        table.1.push(change);
    }
    let Recorder { notes, origins, .. } = recorder;
    notes.close(conn, origins, (sums, sweeper), &Times::from([(stamp, at)]))?;
    let tables = changed.into_values().map(|(table, changes)| travelling(table, changes)).collect();
    Ok(Changeset { stamp, at, tables })
}

/// Writes the clocks of some rows of a large transaction, each with the clock that it brought along
/// from another key, and names them in the log.
pub fn record_chunk(
    store: &mut Store,
    (stamp, at): (Stamp, Wall),
    rows: &[(Net, Option<RowClock>)],
) -> rusqlite::Result<()> {
    let Store { conn, origins, tables, has_parked, hot, sums, sweeper, now, .. } = store;
    let mut recorder = Recorder {
        conn,
        origins,
        names: tables,
        has_parked,
        hot,
        stamp,
        length: now.length,
        insert: conn.prepare_cached(clocks::INSERT_NEW)?,
        notes: Notes::default(),
        fresh: BTreeMap::new(),
    };
    for (net, from) in rows {
        recorder.record(net, from.as_ref())?;
    }
    let Recorder { notes, origins, .. } = recorder;
    notes.close(conn, origins, (sums, sweeper), &Times::from([(stamp, at)]))
}

/// Reads the old clocks of the rows that moved, before any clock is written: another row may have
/// come to their places.
fn clocks_of_moved(
    conn: &Connection,
    origins: &Origins,
    nets: &[Net],
) -> rusqlite::Result<BTreeMap<usize, RowClock>> {
    let mut moved = BTreeMap::new();
    for (nth, net) in nets.iter().enumerate() {
        let Some(from) = &net.moved_from else { continue };
        let clock = clocks::read(conn, origins, net.table.id, from)?;
        moved.extend(clock.filter(RowClock::is_alive).map(|clock| (nth, clock)));
    }
    Ok(moved)
}

/// A transaction while its rows' clocks are written.
struct Recorder<'a> {
    conn: &'a Connection,
    origins: &'a mut Origins,
    names: &'a Tables,
    has_parked: &'a BTreeSet<TableId>,
    hot: &'a mut Hot,
    stamp: Stamp,
    /// How long rows lived whose tombstones were dropped.
    length: u64,
    insert: CachedStatement<'a>,
    notes: Notes,
    /// By table.
    fresh: BTreeMap<TableId, Rc<Fresh>>,
}

/// What every row has that comes into being where none ever was.
struct Fresh {
    clock: RowClock,
    record: Vec<u8>,
    cells: Rc<[(ColumnId, u64)]>,
}

impl Recorder<'_> {
    /// Writes a row's new clock. `None`: nothing that travels has changed.
    fn record<'n>(
        &mut self,
        net: &'n Net,
        from: Option<&RowClock>,
    ) -> rusqlite::Result<Option<Change<'n>>> {
        let table = net.table.id;
        if net.before.is_none() && from.is_none() {
            let fresh = self.fresh(&net.table);
            let Fresh { clock, record, cells } = &*fresh;
            if self.insert.execute((table, &*net.key, record))? > 0 {
                self.notes.log.add(self.stamp, table, &net.key);
                self.sum(net, None, clock, &parked::Values::new());
                return Ok(Some(change(net, clock, Rc::clone(cells))));
            }
        }
        let held = self.hot.read(self.conn, self.origins, (table, &net.key))?;
        let dropped = self.dropped(&net.table);
        let last = RowClock::last(held.as_ref(), dropped.as_ref());
        let Some(clock) = next_clock(net, last, from, self.stamp) else { return Ok(None) };
        let clocks = (held.as_ref(), &clock);
        let place = (table, &net.key);
        self.notes.write_clock(self.conn, self.origins, self.hot, place, clocks)?;
        let aside = if self.has_parked.contains(&table) {
            parked::read(self.conn, table, &net.key)?
        } else {
            parked::Values::new()
        };
        self.sum(net, held.as_ref(), &clock, &aside);
        self.forget_parked(net, &clock, aside)?;
        Ok(Some(change(net, &clock, cells_of(&clock, self.stamp))))
    }

    /// Returns the clock of a row that is not held, as far as it may have had one.
    fn dropped(&self, table: &Table) -> Option<RowClock> {
        // Where nothing is forgotten no life is above what is held.
        RowClock::dropped(if is_harmless(&table.wire) { 0 } else { self.length })
    }

    fn fresh(&mut self, table: &Table) -> Rc<Fresh> {
        let dropped = self.dropped(table);
        let fresh = self.fresh.entry(table.id).or_insert_with(|| {
            let clock = RowClock::inserted(dropped.as_ref(), self.stamp, table.cell_ids());
            let record = clocks::encode(self.origins, &clock);
            let cells = cells_of(&clock, self.stamp);
            Rc::new(Fresh { clock, record, cells })
        });
        Rc::clone(fresh)
    }

    fn sum(
        &mut self,
        net: &Net,
        held: Option<&RowClock>,
        clock: &RowClock,
        aside: &parked::Values,
    ) {
        let table = (net.table.id, self.names.entry(net.table.id));
        let before = net.before.as_deref();
        let before = held.map(|held| (held, held_in(&net.table, before, aside)));
        let after = Some((clock, held_in(&net.table, net.after.as_deref(), aside)));
        self.notes.sums.turn(table, &net.key, before, after);
    }

    /// Parked values go with the cells they belong to.
    fn forget_parked(
        &self,
        net: &Net,
        clock: &RowClock,
        mut values: parked::Values,
    ) -> rusqlite::Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        let stamp = self.stamp;
        values.retain(|column, _| clock.cell(*column).is_some_and(|cell| cell.stamp != stamp));
        let left = values.iter().map(|(column, value)| (*column, value, None));
        parked::write(self.conn, (net.table.id, &net.key), left)
    }
}

/// Lists the cells that a stamp wrote, with their counts.
fn cells_of(clock: &RowClock, stamp: Stamp) -> Rc<[(ColumnId, u64)]> {
    let mut cells: Vec<(ColumnId, u64)> = clock.cells_of(stamp).collect();
    cells.sort_unstable();
    cells.into()
}

fn change<'n>(net: &'n Net, clock: &RowClock, cells: Rc<[(ColumnId, u64)]>) -> Change<'n> {
    Change { key: &net.key, life: clock.life(), cells, row: net.after.as_deref() }
}

/// Finds what a row's cells hold: in the row, or else aside.
fn held_in<'a>(
    table: &'a Table,
    row: Option<&'a [Value]>,
    aside: &'a parked::Values,
) -> impl Fn(ColumnId) -> &'a Value {
    move |id| match (table.place(id), row) {
        (Some(place), Some(row)) => &row[place],
        _ => aside.get(&id).unwrap_or(&Value::Null),
    }
}

/// Returns the row's new clock; `None`: nothing that travels has changed.
fn next_clock(
    net: &Net,
    held: Option<&RowClock>,
    from: Option<&RowClock>,
    stamp: Stamp,
) -> Option<RowClock> {
    let table = &net.table;
    let is_owned = table.class == Class::Owned;
    match (&net.after, held.filter(|held| held.is_alive())) {
        (None, Some(held)) => {
            let mut clock = held.clone();
            clock.deleted(stamp);
            Some(clock)
        }
        // A row that no write of ours made: a foreign program put it there.
        (None, None) => None,
        (Some(_), Some(held)) if is_owned => {
            let mut clock = held.clone();
            clock.replaced(stamp, table.cell_ids());
            Some(clock)
        }
        (Some(after), Some(held)) => {
            let mut clock = held.clone();
            clock.updated(stamp, changed(table, net.before.as_deref(), after));
            Some(clock)
        }
        (Some(_), None) => Some(match from {
            Some(from) if !is_owned => RowClock::moved(held, from, stamp, table.cell_ids()),
            Some(_) | None => RowClock::inserted(held, stamp, table.cell_ids()),
        }),
    }
}

/// Lists the columns that differ: all, where there was no row to compare with.
fn changed<'a>(
    table: &'a Table,
    before: Option<&'a [Value]>,
    after: &'a [Value],
) -> impl Iterator<Item = ColumnId> + 'a {
    table
        .columns
        .iter()
        .enumerate()
        .filter(move |(place, column)| {
            !column.is_key && before.is_none_or(|before| before[*place] != after[*place])
        })
        .map(|(_, column)| column.id)
}

fn check_size(nets: &[Net], cells_max: usize) -> Result<(), RecordError> {
    let mut size = Size::default();
    nets.iter().for_each(|net| size.add(net));
    size.check(cells_max)
}

/// What a transaction changes, as far as limits count it.
#[derive(Debug, Default)]
pub struct Size {
    rows: usize,
    cells: usize,
    bytes: usize,
}

impl Size {
    pub fn add(&mut self, net: &Net) {
        self.rows += 1;
        self.bytes += net.key.len();
        let mut row_cells = 0;
        let after = net.after.as_deref().unwrap_or_default();
        let is_owned = net.table.class == Class::Owned;
        for (place, (column, value)) in net.table.columns.iter().zip(after).enumerate() {
            let is_changed = net.before.as_ref().is_none_or(|before| before[place] != *value);
            if !column.is_key && (is_changed || is_owned) {
                row_cells += 1;
                self.bytes += value.bytes();
            }
        }
        // A row that dies, or has only its key, counts too.
        self.cells += row_cells.max(1);
    }

    /// Tells whether it may travel whole.
    pub fn check(&self, cells_max: usize) -> Result<(), RecordError> {
        if self.cells > cells_max {
            return Err(RecordError::Cells(self.cells));
        }
        if self.bytes > TRANSACTION_BYTES_MAX || self.travelling_bytes() > CHANGESET_BYTES_MAX {
            return Err(RecordError::Bytes(self.bytes));
        }
        Ok(())
    }

    /// Tells whether a single row may.
    pub fn check_row(&self) -> Result<(), RecordError> {
        if self.bytes > TRANSACTION_BYTES_MAX || self.travelling_bytes() > CHANGESET_BYTES_MAX {
            return Err(RecordError::Row(self.bytes));
        }
        Ok(())
    }

    /// What it occupies on its way: see [`changeset_bytes`](crate::wire::changeset_bytes).
    fn travelling_bytes(&self) -> usize {
        const NAMES: usize = 64 << 10;
        self.bytes + 50 * self.rows + 24 * self.cells + NAMES
    }
}

fn travelling(table: &Table, mut changes: Vec<Change<'_>>) -> TableChanges {
    changes.sort_unstable_by_key(|change| change.key);
    // By column id: its number in this change, for those that occur.
    let mut numbers: Vec<Option<u16>> = vec![None; table.places.len()];
    for (id, _) in changes.iter().flat_map(|change| change.cells.iter()) {
        numbers[usize::from(id.0)] = Some(0);
    }
    let used: Vec<ColumnId> =
        (0..).zip(&numbers).filter_map(|(id, number)| number.map(|_| ColumnId(id))).collect();
    for (number, id) in (0..).zip(&used) {
        numbers[usize::from(id.0)] = Some(number);
    }
    let place_of = |id: ColumnId| table.place(id).expect("local writes are to known columns");
    let number_of = |id: ColumnId| numbers[usize::from(id.0)].expect("it was counted above");
    let rows = changes.iter().map(|change| {
        let cells = change.cells.iter().map(|(id, count)| CellChange {
            column: number_of(*id),
            count: *count,
            value: change.row.expect("a dead row has no cells")[place_of(*id)].clone(),
        });
        RowChange { key: Arc::clone(change.key), life: change.life, cells: cells.collect() }
    });
    TableChanges {
        table: Arc::clone(&table.wire),
        columns: used.iter().map(|id| Arc::clone(&table.columns[place_of(*id)].wire)).collect(),
        rows: rows.collect(),
    }
}

/// Tells what the rows' watchers see of a transaction.
pub fn events(nets: &[Net]) -> Vec<TableEvents> {
    let mut tables: Vec<TableEvents> = Vec::new();
    // Who watches a row that was only claimed sees nothing.
    for net in nets.iter().filter(|net| net.before != net.after) {
        let side = net.after.as_ref().or(net.before.as_ref());
        let side = side.expect("the sides of a net change differ");
        let event = RowEvent {
            key: net.table.key_of(side).cloned().collect(),
            existed: net.before.is_some(),
            row: net.after.clone(),
        };
        push_event(&mut tables, &net.table, event);
    }
    tables
}

/// Adds an event to those of its table.
pub fn push_event(tables: &mut Vec<TableEvents>, table: &Table, event: RowEvent) {
    match tables.iter_mut().find(|events| events.table.name == table.info.name) {
        Some(events) => events.rows.push(event),
        None => tables.push(TableEvents {
            table: Arc::clone(&table.info),
            rows: RowEvents::Each(vec![event]),
        }),
    }
}
