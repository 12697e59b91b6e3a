//! Each table's part of the fingerprint, kept up to date with every commit. What changed is written
//! once a group; until then a mark leads back to what was before.

use std::collections::BTreeMap;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension};

use super::changes::Reader;
use super::clocks;
use super::origins::Origins;
use super::tables::{Entry, TableId, Tables};
use crate::crdt::change::death_of;
use crate::crdt::fingerprint::clock_hash;
use crate::crdt::storage::LENGTH_DROPPED_MAX;
use crate::crdt::{ColumnId, Key, RowClock};
use crate::types::Value;

const SELECT: &str = "SELECT -1 - id, value FROM __tribune_heads
    WHERE id < 0 AND id > -9223372036854775808";
const SELECT_LONGEST: &str = "SELECT value FROM __tribune_heads WHERE id = -9223372036854775808";
const UPSERT_LONGEST: &str =
    "REPLACE INTO __tribune_heads (id, value) VALUES (-9223372036854775808, ?1)";
const SELECT_CLOCKS: &str = "SELECT key, clock FROM __tribune_rows WHERE tbl = ?1";
const UPDATE: &str = "UPDATE __tribune_heads SET value = ?2 WHERE id = -1 - ?1";
const INSERT: &str = "INSERT INTO __tribune_heads (id, value) VALUES (-1 - ?1, ?2)";

/// How many rows of a table are dead, the sum of the others' lives, then those of its columns' cells
/// by number.
type Parts = Vec<u64>;

/// The bound of lives is raised by so much: it is written less often than it is reached.
const LONGEST_STEP: u64 = 16;

/// The places of a table's parts.
const DEAD: usize = 0;
const LIVES: usize = 1;
const CELLS: usize = 2;

/// The sums of all tables.
#[derive(Debug, Default)]
pub struct Sums {
    held: BTreeMap<TableId, Parts>,
    /// What was added since the last [`Sums::settle`].
    added: Vec<Delta>,
    /// No row died in a longer life (see [`Floor::longest`](crate::crdt::Floor::longest)), and what
    /// the database says of it. What is rolled back leaves it as it is: it is a bound.
    longest: u64,
    saved_longest: u64,
}

/// What a caller's writes add to the sums.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Delta {
    tables: BTreeMap<TableId, Parts>,
    /// The longest life in which a row may have died.
    longest: u64,
}

impl Sums {
    pub fn read(conn: &Connection) -> rusqlite::Result<Self> {
        let mut statement = conn.prepare(SELECT)?;
        let mut rows = statement.query([])?;
        let mut sums = Self::default();
        while let Some(row) = rows.next()? {
            let (words, rest) = row.get_ref(1)?.as_blob()?.as_chunks::<8>();
            if !rest.is_empty() {
                let damage = "the sum of a table cannot be read";
                return Err(rusqlite::Error::FromSqlConversionFailure(
                    1,
                    Type::Blob,
                    damage.into(),
                ));
            }
            let parts = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
            sums.held.insert(row.get(0)?, parts);
        }
        let longest: Option<i64> =
            conn.query_row(SELECT_LONGEST, [], |row| row.get(0)).optional()?;
        sums.saved_longest = longest.unwrap_or(0).cast_unsigned();
        sums.longest = sums.saved_longest;
        Ok(sums)
    }

    /// Returns a table's part of the fingerprint. What was dropped does not count.
    pub fn of(&self, id: TableId, table: &Entry) -> u64 {
        let Some(parts) = self.held.get(&id).filter(|_| !table.is_dropped) else { return 0 };
        let is_dropped = |place: usize| {
            let column = place.checked_sub(CELLS).and_then(|column| u16::try_from(column).ok());
            column.is_some_and(|column| table.dropped.contains(&ColumnId(column)))
        };
        let kept = parts.iter().enumerate().skip(LIVES).filter(|(place, _)| !is_dropped(*place));
        kept.fold(0, |sum, (_, part)| sum.wrapping_add(*part))
    }

    /// Takes a table's sum anew from its rows, clock by clock: somebody may have changed rows past
    /// the node. It takes about as long as reading the table does.
    pub fn recount(
        &mut self,
        conn: &Connection,
        (tables, origins): (&Tables, &Origins),
        id: TableId,
    ) -> rusqlite::Result<()> {
        let mut reader = Reader { conn, tables, has_parked: BTreeMap::new() };
        let mut statement = conn.prepare(SELECT_CLOCKS)?;
        let mut rows = statement.query([id])?;
        let mut counted = Delta::default();
        while let Some(row) = rows.next()? {
            let key: Key = row.get_ref(0)?.as_blob()?.into();
            let clock = clocks::decode(origins, row.get_ref(1)?.as_blob()?)?;
            let columns: Vec<ColumnId> = clock.cells().map(|(column, _)| column).collect();
            let values = reader.find(id, &key)?.values(columns.iter().copied());
            let values: BTreeMap<ColumnId, Value> = columns.into_iter().zip(values).collect();
            let nobody = None::<(&RowClock, fn(ColumnId) -> &'static Value)>;
            let value_of = |column: ColumnId| &values[&column];
            counted.turn((id, tables.entry(id)), &key, nobody, Some((&clock, value_of)));
        }
        let mut parts = counted.tables.remove(&id).unwrap_or_default();
        let held = self.held.get(&id).map(Vec::as_slice).unwrap_or_default();
        parts.resize(parts.len().max(held.len()), 0);
        parts.iter_mut().zip(held).for_each(|(part, held)| *part = part.wrapping_sub(*held));
        counted.tables.insert(id, parts);
        self.add(counted);
        Ok(())
    }

    /// Returns how many rows of a table are dead. What was dropped does not count.
    pub fn dead_of(&self, id: TableId, table: &Entry) -> u64 {
        let parts = self.held.get(&id).filter(|_| !table.is_dropped);
        parts.and_then(|parts| parts.get(DEAD)).copied().unwrap_or(0)
    }

    /// See [`Floor::longest`](crate::crdt::Floor::longest).
    pub fn longest(&self) -> u64 {
        self.longest
    }

    pub fn add(&mut self, delta: Delta) {
        if delta.longest > self.longest {
            self.longest = delta.longest.next_multiple_of(LONGEST_STEP);
        }
        if !delta.tables.is_empty() {
            self.turn(&delta, u64::wrapping_add);
            self.added.push(delta);
        }
    }

    /// Returns a mark to come back to.
    pub fn mark(&self) -> usize {
        self.added.len()
    }

    /// Takes back what was added since the mark.
    pub fn undo_to(&mut self, mark: usize) {
        for delta in self.added.split_off(mark) {
            self.turn(&delta, u64::wrapping_sub);
        }
    }

    /// Writes what was changed since the last [`Sums::settle`].
    pub fn save(&self, conn: &Connection) -> rusqlite::Result<()> {
        let mut changed: Vec<TableId> =
            self.added.iter().flat_map(|delta| delta.tables.keys().copied()).collect();
        changed.sort_unstable();
        changed.dedup();
        for table in changed {
            let bytes: Vec<u8> =
                self.held[&table].iter().flat_map(|part| part.to_le_bytes()).collect();
            if conn.prepare_cached(UPDATE)?.execute((table, &bytes))? == 0 {
                conn.prepare_cached(INSERT)?.execute((table, &bytes))?;
            }
        }
        if self.longest > self.saved_longest {
            conn.prepare_cached(UPSERT_LONGEST)?.execute([self.longest.cast_signed()])?;
        }
        Ok(())
    }

    /// Notes that what [`Sums::save`] wrote is committed.
    pub fn settle(&mut self) {
        self.added.clear();
        self.saved_longest = self.longest;
    }

    fn turn(&mut self, delta: &Delta, step: impl Fn(u64, u64) -> u64) {
        for (table, parts) in &delta.tables {
            let held = self.held.entry(*table).or_default();
            held.resize(held.len().max(parts.len()), 0);
            held.iter_mut().zip(parts).for_each(|(sum, part)| *sum = step(*sum, *part));
        }
    }
}

impl Delta {
    /// Notes that a row has become another: its clock, and what its cells hold, before and after.
    /// `None`: nobody had written it; it is asked only for cells that the clock has.
    pub fn turn<'v>(
        &mut self,
        (id, table): (TableId, &Entry),
        key: &[u8],
        before: Option<(&RowClock, impl Fn(ColumnId) -> &'v Value)>,
        after: Option<(&RowClock, impl Fn(ColumnId) -> &'v Value)>,
    ) {
        if let Some((clock, _)) = &after
            && clock.life().length > self.longest
        {
            let death = death_of(&table.name, clock.life());
            self.longest =
                self.longest.max(Some(death).filter(|d| *d <= LENGTH_DROPPED_MAX).unwrap_or(0));
        }
        let is_dead = |clock: Option<&RowClock>| clock.is_some_and(|clock| !clock.is_alive());
        let was_dead = is_dead(before.as_ref().map(|(clock, _)| *clock));
        let is_dead = is_dead(after.as_ref().map(|(clock, _)| *clock));
        let before = before.filter(|(clock, _)| clock.is_alive());
        let after = after.filter(|(clock, _)| clock.is_alive());
        if before.is_none() && after.is_none() && was_dead == is_dead {
            return;
        }
        let place = table.hash.row(key);
        let parts = self.tables.entry(id).or_default();
        let width = table.columns.len();
        parts.resize(parts.len().max(width + CELLS), 0);
        let dead = parts[DEAD].wrapping_add(u64::from(is_dead));
        parts[DEAD] = dead.wrapping_sub(u64::from(was_dead));
        let mut last = None;
        let mut hash = |column: ColumnId, clock, value| {
            let known = last.filter(|(held, _)| *held == clock).map(|(_, hash)| hash);
            let clock_hash = known.unwrap_or_else(|| clock_hash(clock));
            last = Some((clock, clock_hash));
            let at = usize::from(column.0);
            // A column without a name is damage, which the doctor tells of.
            let name = table.hashes.get(at).copied().unwrap_or_default();
            ((at + CELLS).min(width + CELLS - 1), place.cell(name, clock_hash, value))
        };
        // By column: a clock finds one of its cells by going through them.
        let spread = |clock: &RowClock| {
            let mut cells = vec![None; width];
            for (column, cell) in clock.cells() {
                cells.get_mut(usize::from(column.0)).into_iter().for_each(|at| *at = Some(cell));
            }
            cells
        };
        let both = match (&before, &after) {
            (Some((old, old_value)), Some((new, new_value))) => {
                Some((spread(old), spread(new), old_value, new_value))
            }
            _ => None,
        };
        let is_same = |column: ColumnId, clock| {
            both.as_ref().is_some_and(|(old, new, old_value, new_value)| {
                let at = usize::from(column.0);
                let is_held = |cells: &[Option<_>]| cells.get(at) == Some(&Some(clock));
                is_held(old) && is_held(new) && old_value(column) == new_value(column)
            })
        };
        if let Some((clock, value)) = &before {
            parts[LIVES] = parts[LIVES].wrapping_sub(place.life(clock.life()));
            for (column, cell) in clock.cells().filter(|(column, cell)| !is_same(*column, *cell)) {
                let (at, hash) = hash(column, cell, value(column));
                parts[at] = parts[at].wrapping_sub(hash);
            }
        }
        if let Some((clock, value)) = &after {
            parts[LIVES] = parts[LIVES].wrapping_add(place.life(clock.life()));
            for (column, cell) in clock.cells().filter(|(column, cell)| !is_same(*column, *cell)) {
                let (at, hash) = hash(column, cell, value(column));
                parts[at] = parts[at].wrapping_add(hash);
            }
        }
    }
}
