//! Remote changes: merged in memory row by row, then written. Whatever a change says, the batch
//! goes on: rows of foreign owners are left out, and what has no place is parked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, ffi};

use super::clocks::{Hot, Notes};
use super::database::Store;
use super::local::push_event;
use super::log::{Sweeper, Times};
use super::origins::Origins;
use super::parked;
use super::rejoin;
use super::sums::Sums;
use super::tables::{Table, TableId, Tables};
use super::values::{check, excerpt};
use crate::crdt::change::owns;
use crate::crdt::content::{RowState, Trust, is_covered};
use crate::crdt::merge::CellClock;
use crate::crdt::{
    Batch, CellChange, Class, ColumnId, Fate, Incoming, Key, Name, Part, Piece, RowChange,
    RowClock, RowEvent, Stamp, TableChanges, TableEvents, pack,
};
use crate::types::{Origin, Value, Version};

/// Versions are stored as signed numbers. No writer comes near it.
const VERSION_MAX: Version = Version(i64::MAX.unsigned_abs());

/// What rows are merged with: the parts of the store that a merge reads and changes.
pub struct Merge<'a> {
    conn: &'a Connection,
    tables: &'a mut Tables,
    origins: &'a mut Origins,
    has_parked: &'a mut BTreeSet<TableId>,
    hot: &'a mut Hot,
    sums: &'a mut Sums,
    sweeper: &'a mut Sweeper,
    me: Origin,
    /// Whether each row that is told of is noted.
    is_rejoining: bool,
    /// Rows that were left out.
    pub refusals: u64,
    /// Rows that SQLite refused, and that were parked.
    pub quarantined: u64,
    /// The tables of which a clock changed.
    pub changed: BTreeSet<TableId>,
    times: Times,
    notes: Notes,
    rows: Vec<Row>,
    places: BTreeMap<(TableId, Key), usize>,
}

/// A row while changes are merged into it.
struct Row {
    table: TableId,
    key: Key,
    /// The table, and the key as its columns' values; `None`: the table has no place for the row.
    home: Option<(Arc<Table>, Vec<Value>)>,
    held: Option<RowClock>,
    clock: Option<RowClock>,
    /// The row as SQLite has it.
    before: Option<Vec<Value>>,
    /// The row as the merge sees it.
    row: Option<Vec<Value>>,
    /// Cells without a place in `row`.
    parked: parked::Values,
    /// Those that SQLite has.
    parked_before: parked::Values,
}

impl<'a> Merge<'a> {
    pub fn new(store: &'a mut Store) -> Self {
        let Store { conn, tables, origins, has_parked, hot, sums, sweeper, now, .. } = store;
        Self {
            conn,
            tables,
            origins,
            has_parked,
            hot,
            sums,
            sweeper,
            me: now.origin,
            is_rejoining: now.is_rejoining,
            refusals: 0,
            quarantined: 0,
            changed: BTreeSet::new(),
            times: Times::new(),
            notes: Notes::default(),
            rows: Vec::new(),
            places: BTreeMap::new(),
        }
    }

    /// Merges a batch. Returns the head of every origin that it names.
    pub fn batch(&mut self, batch: &Batch) -> rusqlite::Result<Vec<(Origin, Version)>> {
        let mut named = BTreeSet::new();
        for piece in &batch.pieces {
            named.insert(piece.origin);
            if self.takes(piece) {
                self.piece(piece, piece.through)?;
                self.origins.advance(piece.origin, piece.through);
            }
        }
        Ok(named.into_iter().map(|origin| (origin, self.origins.head(origin))).collect())
    }

    /// Tells whether a piece joins what is held of its origin, and may be taken.
    pub fn takes(&self, piece: &Piece) -> bool {
        let head = self.origins.head(piece.origin);
        let is_retired = self.origins.is_retired(piece.origin);
        let joins = piece.after <= head && head < piece.through && !is_retired;
        joins && piece.origin != self.me && piece.through <= VERSION_MAX
    }

    /// Merges a part of a pull, whose head is moved with the last of them.
    pub fn part(&mut self, part: &Part) -> rusqlite::Result<()> {
        let through = part.piece.through;
        self.piece(&part.piece, if part.is_cut { through.next() } else { through })
    }

    fn piece(&mut self, piece: &Piece, through: Version) -> rusqlite::Result<()> {
        let head = self.origins.head(piece.origin);
        for changeset in &piece.changesets {
            let Stamp { origin, version } = changeset.stamp;
            if origin != piece.origin || version > through {
                let rows: usize = changeset.tables.iter().map(|table| table.rows.len()).sum();
                self.refusals += rows as u64;
                continue;
            }
            if version <= head {
                continue;
            }
            self.times.insert(changeset.stamp, changeset.at);
            for changes in &changeset.tables {
                self.table(changeset.stamp, changes)?;
            }
        }
        Ok(())
    }

    fn table(&mut self, stamp: Stamp, changes: &TableChanges) -> rusqlite::Result<()> {
        // What was dropped does not come back, whoever still writes it.
        if self.tables.names().is_table_dropped(&changes.table) {
            return Ok(());
        }
        let table = self.tables.number_table(self.conn, &changes.table)?;
        let mut columns = Vec::with_capacity(changes.columns.len());
        for column in &changes.columns {
            if self.tables.names().is_column_dropped(&changes.table, column) {
                columns.push(None);
                continue;
            }
            columns.push(self.tables.number_column(self.conn, table, column)?);
        }
        for change in &changes.rows {
            if self.may_write(stamp.origin, table, change) {
                self.row(stamp, table, &columns, change)?;
            } else {
                self.refusals += 1;
            }
        }
        Ok(())
    }

    /// Tells whether a change by `origin` may make a row of this key. But for the number of key
    /// columns, which a parked table learns later, all nodes decide alike.
    fn may_write(&self, origin: Origin, table: TableId, change: &RowChange) -> bool {
        let Ok(key) = pack::unpack(&change.key) else { return false };
        let entry = self.tables.entry(table);
        // A table that schema changes make may have another key by and by.
        let is_key = entry.is_managed
            || entry.table.as_ref().is_none_or(|table| table.info.key.len() == key.len());
        let is_owner = match Class::of(&entry.name) {
            Class::Owned => owns(origin.node, &key[0]),
            Class::Shared => true,
        };
        is_key && is_owner && !key.contains(&Value::Null)
    }

    fn row(
        &mut self,
        stamp: Stamp,
        table: TableId,
        columns: &[Option<ColumnId>],
        change: &RowChange,
    ) -> rusqlite::Result<()> {
        let column_of =
            |cell: &CellChange| columns.get(usize::from(cell.column)).copied().flatten();
        let cells = change.cells.iter();
        let cells = cells.filter_map(|cell| Some((column_of(cell)?, cell.count, &cell.value)));
        let class = Class::of(&self.tables.entry(table).name);
        let incoming = Incoming { class, stamp, life: change.life, cells: cells.collect() };
        let place = self.touch(table, &change.key)?;
        let row = &mut self.rows[place];
        row.merge(&incoming);
        if self.is_rejoining {
            let told = rejoin::confirm(self.conn, (table, &change.key), &incoming)?;
            let origins = &*self.origins;
            row.yield_to(&incoming, told, |stamp| stamp.version > origins.head(stamp.origin));
        }
        Ok(())
    }

    /// Brings a row into memory, once.
    pub fn touch(&mut self, table: TableId, key: &Key) -> rusqlite::Result<usize> {
        if let Some(place) = self.places.get(&(table, Arc::clone(key))) {
            return Ok(*place);
        }
        let row = self.read(table, Arc::clone(key))?;
        self.rows.push(row);
        self.places.insert((table, Arc::clone(key)), self.rows.len() - 1);
        Ok(self.rows.len() - 1)
    }

    fn read(&self, table: TableId, key: Key) -> rusqlite::Result<Row> {
        let held = self.hot.read(self.conn, self.origins, (table, &key))?;
        let values = pack::unpack(&key).unwrap_or_default();
        let home = self.tables.entry(table).table.clone();
        let home = home.filter(|home| home.check_key(&values).is_ok()).map(|home| (home, values));
        // Of a row that nobody ever wrote there is nothing to read.
        let before = match home.as_ref().filter(|_| held.is_some()) {
            Some((home, key)) => home.read_row(self.conn, key)?,
            None => None,
        };
        let parked = if self.has_parked.contains(&table) {
            parked::read(self.conn, table, &key)?
        } else {
            parked::Values::new()
        };
        let (clock, row, parked_before) = (held.clone(), before.clone(), parked.clone());
        let mut row = Row { table, key, home, held, clock, row, before, parked, parked_before };
        row.place_parked();
        Ok(row)
    }

    /// Writes all rows that a merge changed. Returns what their watchers see.
    pub fn write(&mut self) -> rusqlite::Result<Vec<TableEvents>> {
        let mut events = Vec::new();
        self.places.clear();
        for row in std::mem::take(&mut self.rows) {
            if row.clock != row.held || !row.parked_before.is_empty() {
                self.write_row(row, &mut events)?;
            }
        }
        self.close()?;
        Ok(events)
    }

    /// Writes a row even if its clock did not change: its table has become able to show it.
    pub fn write_shown(&mut self) -> rusqlite::Result<Vec<TableEvents>> {
        let mut events = Vec::new();
        self.places.clear();
        for row in std::mem::take(&mut self.rows) {
            self.write_row(row, &mut events)?;
        }
        self.close()?;
        Ok(events)
    }

    /// Merges a row as another node has it, with all of its clocks. Returns whether it is another
    /// one now. What names versions that are not held here is left alone.
    pub fn state(
        &mut self,
        table: &Name,
        trust: Trust,
        theirs: &RowState,
    ) -> rusqlite::Result<bool> {
        let is_dropped = self.tables.names().is_table_dropped(table);
        if is_dropped || !is_covered(theirs, |origin| self.origins.head(origin)) {
            return Ok(false);
        }
        let id = self.tables.number_table(self.conn, table)?;
        let mut cells = Vec::with_capacity(theirs.cells.len());
        for (column, clock, value) in &theirs.cells {
            if self.tables.names().is_column_dropped(table, column) {
                continue;
            }
            let column = self.tables.number_column(self.conn, id, column)?;
            cells.extend(column.map(|column| (column, *clock, value)));
        }
        let change = RowChange { key: theirs.key.clone(), life: theirs.life, cells: Vec::new() };
        if !theirs.stamps().iter().all(|stamp| self.may_write(stamp.origin, id, &change)) {
            return Ok(false);
        }
        let place = self.touch(id, &theirs.key)?;
        let class = Class::of(table);
        let row = &mut self.rows[place];
        let mut disputed = Vec::new();
        cells.retain(|(column, clock, value)| {
            let is_same = row.clock.as_ref().and_then(|held| held.cell(*column)) == Some(*clock);
            let held = row.value()(*column);
            if is_same && held != *value && trust.replaces(self.me.node, clock.stamp, held, value) {
                disputed.push((*column, *clock, *value));
            }
            !is_same
        });
        for stamp in theirs.stamps() {
            let of_stamp = cells.iter().filter(|(_, clock, _)| clock.stamp == stamp);
            let cells = of_stamp.map(|(column, clock, value)| (*column, clock.count, *value));
            let cells = cells.collect();
            row.merge(&Incoming { class, stamp, life: theirs.life, cells });
        }
        for (column, clock, value) in disputed {
            row.settle(column, clock, value);
        }
        Ok(row.clock != row.held || row.row != row.before || row.parked != row.parked_before)
    }

    /// Puts cells back to their columns' defaults: `clock` is the row's without them.
    pub fn leave_out(
        &mut self,
        (table, key): (TableId, &Key),
        clock: &RowClock,
        columns: &[ColumnId],
    ) -> rusqlite::Result<()> {
        let place = self.touch(table, key)?;
        self.rows[place].leave_out(clock, columns);
        Ok(())
    }

    fn close(&mut self) -> rusqlite::Result<()> {
        let notes = std::mem::take(&mut self.notes);
        notes.close(self.conn, self.origins, (self.sums, self.sweeper), &self.times)
    }

    fn write_row(&mut self, row: Row, events: &mut Vec<TableEvents>) -> rusqlite::Result<()> {
        let Some(clock) = &row.clock else { return Ok(()) };
        let refusal = self.write_values(&row)?;
        let place = (row.table, &*row.key);
        if row.clock != row.held {
            self.changed.insert(row.table);
            let (held, place) = (row.held.as_ref(), (row.table, &row.key));
            self.notes.log.weigh(row.bytes());
            self.notes.write_clock(self.conn, self.origins, self.hot, place, (held, clock))?;
            let table = (row.table, self.tables.entry(row.table));
            let before = held.map(|held| (held, row.value_before()));
            self.notes.sums.turn(table, &row.key, before, Some((clock, row.value())));
        }
        if let Some(reason) = &refusal {
            self.quarantined += 1;
            let table = &self.tables.entry(row.table).name;
            tracing::warn!(%table, %reason, "a merged row does not fit its table; it is kept aside");
            // Which older state of the row was the last to fit is another one on each node, so none
            // of them is shown.
            if let (Some((table, key)), Some(_)) = (&row.home, &row.before) {
                table.delete_row(self.conn, key)?;
            }
        }
        let aside = row.values_aside(refusal.as_deref());
        if !row.parked_before.is_empty() || !aside.is_empty() {
            parked::write(
                self.conn,
                place,
                aside.iter().map(|(id, value, why)| (*id, *value, *why)),
            )?;
        }
        if !aside.is_empty() {
            self.has_parked.insert(row.table);
        }
        let Some((table, key)) = row.home else { return Ok(()) };
        let after = row.row.filter(|_| refusal.is_none());
        if after != row.before {
            let existed = row.before.is_some();
            push_event(events, &table, RowEvent { key, existed, row: after });
        }
        Ok(())
    }

    /// Writes the row itself. Returns why SQLite, or the column's type, refuses it.
    fn write_values(&self, row: &Row) -> rusqlite::Result<Option<String>> {
        let Some((table, key)) = &row.home else { return Ok(None) };
        if row.row == row.before {
            // What another program put where nobody had written is not read, and goes all the same.
            if row.held.is_none() && row.row.is_none() {
                table.delete_row(self.conn, key)?;
            }
            return Ok(None);
        }
        if let Some(reason) = row.row.as_ref().and_then(|values| unstorable(table, values)) {
            return Ok(Some(reason));
        }
        let result = match (&row.before, &row.row) {
            (_, None) => table.delete_row(self.conn, key),
            (None, Some(values)) => insert(self.conn, table, key, values),
            (Some(before), Some(values)) => table.update_row(self.conn, before, values),
        };
        match result {
            Ok(()) => Ok(None),
            Err(error) if is_of_content(&error) => Ok(Some(error.to_string())),
            Err(error) => Err(error),
        }
    }
}

/// Inserts a row. What another program put in its place, which has no clock, makes way.
fn insert(
    conn: &Connection,
    table: &Table,
    key: &[Value],
    values: &[Value],
) -> rusqlite::Result<()> {
    let inserted = table.insert_row(conn, values);
    let Err(error) = &inserted else { return Ok(()) };
    let is_taken = error.sqlite_error().is_some_and(|error| {
        matches!(
            error.extended_code,
            ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID
        )
    });
    if !is_taken {
        return inserted;
    }
    table.delete_row(conn, key)?;
    table.insert_row(conn, values)
}

/// Says which value its column would store as another one, or not at all.
fn unstorable(table: &Table, row: &[Value]) -> Option<String> {
    table.columns.iter().zip(&table.info.columns).zip(row).find_map(|((column, name), value)| {
        if let Err(bad) = check(value) {
            return Some(format!("column {name}: {bad}"));
        }
        let is_kept = column.affinity.keeps(value);
        (!is_kept).then(|| {
            let shown = value.to_string();
            format!("column {name} would store {} as another value", excerpt(&shown))
        })
    })
}

/// Tells a row that SQLite refuses from a database that does not work.
fn is_of_content(error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        Some(
            ErrorCode::ConstraintViolation
            | ErrorCode::TypeMismatch
            | ErrorCode::TooBig
            // An expression in a CHECK, an index or a generated column fails on this row.
            | ErrorCode::Unknown,
        ) => true,
        Some(_) | None => false,
    }
}

impl Row {
    fn merge(&mut self, change: &Incoming<'_>) {
        let Self { home, clock, row, parked, .. } = self;
        let place_of = |id| home.as_ref().and_then(|(table, _)| table.place(id));
        let held = |id: ColumnId| match (place_of(id), row.as_ref()) {
            (Some(place), Some(row)) => &row[place],
            _ => parked.get(&id).unwrap_or(&Value::Null),
        };
        let merged = RowClock::merge(clock, change, held);
        match merged.fate {
            Fate::Stay => {}
            Fate::Appear | Fate::StartOver => {
                parked.clear();
                *row = home.as_ref().map(|(table, key)| table.blank(key));
            }
            Fate::Vanish => {
                parked.clear();
                *row = None;
            }
        }
        for (id, value) in merged.take {
            match (place_of(id), row.as_mut()) {
                (Some(place), Some(row)) => row[place] = value.clone(),
                _ => drop(parked.insert(id, value.clone())),
            }
        }
    }

    fn yield_to(&mut self, change: &Incoming<'_>, told: u64, is_unheard: impl Fn(Stamp) -> bool) {
        let Some(mut clock) = self.clock.take() else { return };
        clock.yield_to(change, told, self.value(), is_unheard);
        self.clock = Some(clock);
    }

    fn leave_out(&mut self, clock: &RowClock, columns: &[ColumnId]) {
        let Self { home, row, parked, .. } = self;
        if let (Some((table, key)), Some(row)) = (home, row) {
            let blank = table.blank(key);
            for place in columns.iter().filter_map(|id| table.place(*id)) {
                row[place] = blank[place].clone();
            }
        }
        parked.retain(|id, _| !columns.contains(id));
        self.clock = Some(clock.clone());
    }

    /// Puts a value in the place of another one under the same clock.
    fn settle(&mut self, column: ColumnId, clock: CellClock, value: &Value) {
        if self.clock.as_ref().and_then(|held| held.cell(column)) != Some(clock) {
            return;
        }
        match (self.place(column), self.row.as_mut()) {
            (Some(place), Some(row)) => row[place] = value.clone(),
            _ => drop(self.parked.insert(column, value.clone())),
        }
    }

    fn bytes(&self) -> usize {
        let values = self.row.iter().flatten().chain(self.parked.values());
        self.key.len() + values.map(Value::bytes).sum::<usize>()
    }

    /// Finds what a cell holds that has a clock.
    fn value<'r>(&'r self) -> impl Fn(ColumnId) -> &'r Value {
        |id| match (self.place(id), &self.row) {
            (Some(place), Some(row)) => &row[place],
            _ => self.parked.get(&id).unwrap_or(&Value::Null),
        }
    }

    /// Finds what a cell held, as SQLite has it.
    fn value_before<'r>(&'r self) -> impl Fn(ColumnId) -> &'r Value {
        |id| match (self.parked_before.get(&id), self.place(id), &self.before) {
            (Some(value), _, _) => value,
            (None, Some(place), Some(row)) => &row[place],
            _ => &Value::Null,
        }
    }

    fn place(&self, id: ColumnId) -> Option<usize> {
        self.home.as_ref().and_then(|(table, _)| table.place(id))
    }

    /// Puts parked values into the row where it has become possible.
    fn place_parked(&mut self) {
        let Some((table, key)) = &self.home else { return };
        if !self.clock.as_ref().is_some_and(RowClock::is_alive) {
            self.row = None;
            return;
        }
        let row = self.row.get_or_insert_with(|| table.blank(key));
        self.parked.retain(|id, value| match table.place(*id) {
            Some(place) => {
                row[place] = std::mem::take(value);
                false
            }
            None => true,
        });
    }

    /// Lists the values to park: those without a place and, of a row that was refused, all others.
    fn values_aside<'r>(
        &'r self,
        refusal: Option<&'r str>,
    ) -> Vec<(ColumnId, &'r Value, Option<&'r str>)> {
        let mut aside: Vec<_> = self.parked.iter().map(|(id, value)| (*id, value, None)).collect();
        if let (Some(reason), Some((table, _)), Some(row)) = (refusal, &self.home, &self.row) {
            // A default that nobody wrote is no value of the row's.
            let is_written = |id| self.clock.as_ref().is_some_and(|clock| clock.cell(id).is_some());
            let cells = table.columns.iter().zip(row);
            let cells = cells.filter(|(column, _)| !column.is_key && is_written(column.id));
            aside.extend(cells.map(|(column, value)| (column.id, value, Some(reason))));
        }
        aside
    }
}

#[cfg(test)]
mod tests {
    use crate::crdt::storage::Storage;
    use crate::crdt::{Batch, Commit, Piece};
    use crate::store::Store;
    use crate::store::trial::{ME, NOW, T, events, in_memory, run};
    use crate::types::{NodeId, Version};

    const YOU: NodeId = NodeId([0x22; 16]);

    fn hear(store: &mut Store, commit: &Commit) -> Vec<String> {
        let piece = Piece::of(commit.changeset.clone().unwrap());
        events(&store.apply(NOW, &Batch { pieces: vec![piece] }).unwrap())
    }

    fn say(store: &mut Store, sql: &str) -> Commit {
        run(store, &[sql]).unwrap().1.unwrap()
    }

    /// Brings two stores to the same heads.
    fn exchange(a: &mut Store, b: &mut Store) {
        for _ in 0..2 {
            for (origin, _) in a.heads().unwrap() {
                let held = b.heads().unwrap();
                let after = held
                    .iter()
                    .find(|(held, _)| *held == origin)
                    .map_or(Version(0), |(_, head)| *head);
                let extract = a.load(origin, after, usize::MAX).unwrap();
                b.apply(NOW, &Batch { pieces: vec![extract.piece] }).unwrap();
            }
            std::mem::swap(a, b);
        }
    }

    #[test]
    fn applied_rows_are_not_captured_as_local_writes() {
        let (mut a, mut b) = (in_memory(ME, T), in_memory(YOU, T));
        let commit = say(&mut a, "INSERT INTO t (id) VALUES (1)");
        assert_eq!(hear(&mut b, &commit), ["+t 1 NULL 'dw'"]);
        let heads = b.heads().unwrap();
        assert_eq!(heads, [(a.origin(), Version(1))]);
        let next = say(&mut b, "INSERT INTO t (id) VALUES (2)");
        assert_eq!(next.changeset.unwrap().tables[0].rows.len(), 1);
    }

    #[test]
    fn a_merge_that_sqlite_refuses_is_kept_aside_until_it_fits() {
        let tables =
            "CREATE TABLE c (id INTEGER NOT NULL PRIMARY KEY, lo INT DEFAULT 1, hi INT DEFAULT 5);
            CREATE TABLE o (id INTEGER NOT NULL PRIMARY KEY);";
        let open = |node| {
            let store = in_memory(node, tables);
            // No schema may say this; a database from before that rule can hold it.
            let check = "ALTER TABLE c ADD COLUMN x AS (0) CHECK (lo <= hi)";
            store.conn.execute_batch(check).unwrap();
            store
        };
        let (mut a, mut b) = (open(ME), open(YOU));
        let first = say(&mut a, "INSERT INTO c VALUES (1, 1, 5)");
        hear(&mut b, &first);
        let raised = say(&mut a, "UPDATE c SET lo = 4");
        let lowered = say(&mut b, "UPDATE c SET hi = 2");
        let beside = say(&mut a, "INSERT INTO o VALUES (7)");
        // Neither side can show 4 <= 2; the rest of the batch arrives.
        let pieces = [raised, beside].map(|commit| commit.changeset.unwrap());
        let piece = Piece {
            origin: a.origin(),
            after: Version(1),
            through: Version(3),
            changesets: pieces.to_vec(),
        };
        let heard = b.apply(NOW, &Batch { pieces: vec![piece] }).unwrap();
        assert_eq!(events(&heard), ["-c 1", "+o 7"]);
        assert_eq!(heard.heads, [(a.origin(), Version(3))]);
        assert_eq!(hear(&mut a, &lowered), ["-c 1"]);
        assert_eq!((a.quarantined(), b.quarantined()), (1, 1));
        assert_eq!(b.stats().unwrap().quarantined_rows, 1);
        assert_eq!(a.fingerprint().unwrap(), b.fingerprint().unwrap());

        // A third node that hears of it all at once is in the same place.
        let mut c = open(NodeId([0x33; 16]));
        exchange(&mut a, &mut c);
        exchange(&mut b, &mut c);
        assert_eq!(c.fingerprint().unwrap(), a.fingerprint().unwrap());

        // One more write makes the row possible, and then it is the same everywhere.
        let healed = say(&mut a, "INSERT INTO c VALUES (1, 4, 9)");
        assert_eq!(hear(&mut b, &healed), ["+c 1 4 9"]);
        assert_eq!(hear(&mut c, &healed), ["+c 1 4 9"]);
        assert_eq!(b.stats().unwrap().parked_rows, 0);
        let rows = [&a, &b, &c].map(|store| store.inspect("c", &[1.into()]).unwrap().unwrap());
        assert_eq!(rows[0], rows[1]);
        assert_eq!(rows[1], rows[2]);
    }

    #[test]
    fn a_value_that_the_column_would_change_is_kept_aside() {
        let mut a = in_memory(ME, "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, v TEXT);");
        let mut b = in_memory(YOU, "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, v INTEGER);");
        let commit = say(&mut a, "INSERT INTO t VALUES (1, '5')");
        assert_eq!(hear(&mut b, &commit), Vec::<String>::new());
        assert_eq!(b.quarantined(), 1);
        assert_eq!(a.fingerprint().unwrap(), b.fingerprint().unwrap());
        let commit = say(&mut a, "UPDATE t SET v = 'five'");
        assert_eq!(hear(&mut b, &commit), ["+t 1 'five'"]);
    }

    #[test]
    fn a_null_where_none_may_be_stops_nobody_else() {
        let mut a = in_memory(ME, "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, v);");
        let strict =
            "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, v INT NOT NULL DEFAULT 0) STRICT;";
        let mut b = in_memory(YOU, strict);
        let commit = say(&mut a, "INSERT INTO t VALUES (1, NULL), (2, 2), (3, 'x')");
        assert_eq!(hear(&mut b, &commit), ["+t 2 2"]);
        assert_eq!(b.quarantined(), 2);
        let gone = say(&mut a, "DELETE FROM t");
        assert_eq!(hear(&mut b, &gone), ["-t 2"]);
        assert_eq!(b.stats().unwrap().parked_rows, 0);
    }

    #[test]
    fn a_local_write_takes_the_place_of_what_was_kept_aside() {
        let table =
            "CREATE TABLE c (id INTEGER NOT NULL PRIMARY KEY, n INT DEFAULT 1 CHECK (n < 9), m);";
        let mut loose = in_memory(ME, &table.replace("CHECK (n < 9)", ""));
        let mut b = in_memory(YOU, table);
        let commit = say(&mut loose, "INSERT INTO c VALUES (1, 50, 'm')");
        assert_eq!(hear(&mut b, &commit), Vec::<String>::new());
        let written = say(&mut b, "INSERT INTO c VALUES (1, 5, 'n')");
        assert_eq!(crate::store::trial::changes(&written), ["c[1]@1 m:2='n' n:2=5"]);
        assert_eq!(b.stats().unwrap().parked_rows, 0);
        assert_eq!(hear(&mut loose, &written), ["=c 1 5 'n'"]);
        assert_eq!(b.fingerprint().unwrap(), loose.fingerprint().unwrap());
    }

    #[test]
    fn keys_that_the_table_cannot_hold_apart_stay_aside() {
        let mut a = in_memory(ME, "CREATE TABLE t (id REAL NOT NULL PRIMARY KEY);");
        let mut b = in_memory(YOU, "CREATE TABLE t (id NOT NULL PRIMARY KEY);");
        say(&mut b, "INSERT INTO t VALUES (1)");
        let commit = say(&mut a, "INSERT INTO t VALUES (1)");
        assert_eq!(hear(&mut b, &commit), Vec::<String>::new());
        let left = b.load(a.origin(), Version(0), usize::MAX).unwrap().piece;
        assert_eq!(left.changesets, [commit.changeset.unwrap()]);
    }
}
