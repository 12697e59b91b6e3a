//! The storage in memory, held against another one and mended.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::change::{Class, Key, Name};
use super::content::{Content, Mark, Mend, Mended, RowState, Trust, is_covered};
use super::fingerprint::heads_hash;
use super::row::{Fate, Incoming, RowClock};
use super::sheet::{Row, Sheet};
use super::storage::{Storage, StorageError};
use super::table::{Table, Touched, may_write};
use crate::types::{Version, Wall};

impl Content for Table {
    fn mark(&self) -> Result<Mark, StorageError> {
        let heads = self.heads.iter().map(|(origin, head)| (*origin, *head));
        Ok(Mark { heads: heads_hash(heads), fingerprint: self.fingerprint()? })
    }

    fn table_names(&self) -> Result<Vec<Name>, StorageError> {
        Ok(self.sheets.keys().cloned().collect())
    }

    fn row_hashes(
        &self,
        table: &str,
        after: &[u8],
        rows_max: usize,
    ) -> Result<Vec<(Key, u64)>, StorageError> {
        let Some((_, sheet)) = self.sheet(table) else { return Ok(Vec::new()) };
        let alive = behind(sheet, after).filter(|(_, row)| row.clock.is_alive());
        let hash = |(key, row): (&Key, &Arc<Row>)| (Arc::clone(key), sheet.hash(table, key, row));
        Ok(alive.take(rows_max).map(hash).collect())
    }

    fn row_states(
        &self,
        table: &str,
        after: &[u8],
        to: Option<&[u8]>,
        rows_max: usize,
    ) -> Result<Vec<RowState>, StorageError> {
        let Some((_, sheet)) = self.sheet(table) else { return Ok(Vec::new()) };
        let within = |(key, _): &(&Key, &Arc<Row>)| to.is_none_or(|to| &***key <= to);
        let rows = behind(sheet, after).take_while(within).take(rows_max);
        Ok(rows.map(|(key, row)| state(sheet, key, row)).collect())
    }
}

fn behind<'a>(sheet: &'a Sheet, after: &[u8]) -> impl Iterator<Item = (&'a Key, &'a Arc<Row>)> {
    let after = Key::from(after);
    sheet.rows.range(Arc::clone(&after)..).skip_while(move |(key, _)| **key == after)
}

fn state(sheet: &Sheet, key: &Key, row: &Row) -> RowState {
    let mut cells: Vec<_> = row
        .clock
        .cells()
        .map(|(id, clock)| (Arc::clone(sheet.name(id)), clock, row.values[&id].clone()))
        .collect();
    cells.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    RowState { key: Arc::clone(key), life: row.clock.life(), cells }
}

impl Table {
    pub(super) fn mend_rows(&mut self, now: Wall, mend: &Mend) -> Mended {
        let mut touched = Touched::default();
        let mut rows = Vec::new();
        for (trust, theirs) in &mend.rows {
            touched.note(&mend.table, &theirs.key, || self.image(&mend.table, &theirs.key));
            if self.mend_row(&mend.table, *trust, theirs) {
                rows.push((Arc::clone(&theirs.key), theirs.life.stamp.origin));
            }
        }
        for key in &mend.gone {
            let held = self.sheet(&mend.table).and_then(|(_, sheet)| sheet.rows.get(key)).cloned();
            let Some(held) = held else { continue };
            let floor = |origin| self.floor.get(&origin).copied().unwrap_or_default();
            let stamps = held.clock.stamps();
            if stamps.into_iter().all(|stamp| stamp.version <= floor(stamp.origin)) {
                touched.note(&mend.table, key, || self.image(&mend.table, key));
                self.remove_row(&mend.table, key);
                rows.push((Arc::clone(key), held.clock.life().stamp.origin));
            }
        }
        let events = self.events(touched);
        Mended { commit: self.conclude(now, events, None, vec![]), rows }
    }

    fn mend_row(&mut self, table: &Name, trust: Trust, theirs: &RowState) -> bool {
        let head = |origin| self.heads.get(&origin).copied().unwrap_or(Version(0));
        if !is_covered(theirs, head) {
            return false;
        }
        let me = self.origin.node;
        let sheet = self.sheets.entry(Arc::clone(table)).or_default();
        let key_columns = sheet.definition().map(|definition| definition.info().key.len());
        let mut stamps = theirs.stamps().into_iter();
        if !stamps.all(|stamp| may_write(stamp.origin, table, &theirs.key, key_columns)) {
            return false;
        }
        let held = sheet.rows.get(&theirs.key).cloned();
        let mut row = held.as_deref().cloned();
        let mut disputed = Vec::new();
        let mut cells = Vec::new();
        for (column, clock, value) in &theirs.cells {
            let Some(id) = sheet.column_or_new(column) else { continue };
            let same = row.as_ref().filter(|row| row.clock.cell(id) == Some(*clock));
            match same.map(|row| &row.values[&id]) {
                Some(held) if held == value => {}
                Some(held) if trust.replaces(me, clock.stamp, held, value) => {
                    disputed.push((id, *clock, value));
                }
                Some(_) => {}
                None => cells.push((id, *clock, value)),
            }
        }
        let mut is_changed = false;
        for stamp in theirs.stamps() {
            let of_stamp = cells.iter().filter(|(_, clock, _)| clock.stamp == stamp);
            let of_stamp = of_stamp.map(|(id, clock, value)| (*id, clock.count, *value)).collect();
            let class = Class::of(table);
            let incoming = Incoming { class, stamp, life: theirs.life, cells: of_stamp };
            let before = row.clone();
            let mut clock = before.as_ref().map(|row| row.clock.clone());
            let held_value =
                |id| &before.as_ref().expect("it has a clock, so it is held").values[&id];
            let merged = RowClock::merge(&mut clock, &incoming, held_value);
            let Some(clock) = clock.filter(|_| merged.is_changed) else { continue };
            let mut values = match (merged.fate, &before) {
                (Fate::Stay, Some(before)) => before.values.clone(),
                (Fate::Stay | Fate::Appear | Fate::StartOver | Fate::Vanish, _) => BTreeMap::new(),
            };
            values.extend(merged.take.into_iter().map(|(id, value)| (id, value.clone())));
            row = Some(Row { clock, values });
            is_changed = true;
        }
        if let Some(row) = &mut row {
            for (id, clock, value) in disputed {
                if row.clock.cell(id) == Some(clock) {
                    row.values.insert(id, value.clone());
                    is_changed = true;
                }
            }
        }
        let Some(row) = row.filter(|_| is_changed) else { return false };
        self.put_row(table, &theirs.key, row);
        true
    }

    pub(super) fn recount_rows(&mut self) {
        let hash = |name: &Name, sheet: &Sheet| {
            let hashes = sheet.rows.iter().map(|(key, row)| sheet.hash(name, key, row));
            hashes.fold(0, u64::wrapping_add)
        };
        let sums = self.sheets.iter().map(|(name, sheet)| hash(name, sheet));
        self.fingerprint = sums.fold(0, u64::wrapping_add);
    }

    /// Changes a row past the merge, as a fault of the disk would: a value of it, or all of it. Tests
    /// do this. `is_kept`: what is kept of rows follows. Returns which row it was.
    #[doc(hidden)]
    pub fn damage(&mut self, nth: usize, loses_row: bool, is_kept: bool) -> Option<String> {
        let alive = |sheet: &Sheet| -> Vec<Key> {
            let rows = sheet.rows.iter().filter(|(_, row)| !row.values.is_empty());
            rows.map(|(key, _)| Arc::clone(key)).collect()
        };
        let places: Vec<(Name, Key)> = self
            .sheets
            .iter()
            .flat_map(|(name, sheet)| alive(sheet).into_iter().map(|key| (Arc::clone(name), key)))
            .collect();
        let (table, key) = places.get(nth.checked_rem(places.len())?)?.clone();
        let kept = self.fingerprint;
        if loses_row {
            self.remove_row(&table, &key);
        } else {
            let sheet = self.sheets.get(&table)?;
            let mut row = Row::clone(sheet.rows.get(&key)?);
            let (id, value) = row.values.iter().next_back()?;
            let other = format!("{value}~");
            row.values.insert(*id, other.as_str().into());
            self.put_row(&table, &key, row);
        }
        if !is_kept {
            self.fingerprint = kept;
        }
        Some(format!("{table} {key:?}"))
    }
}
