//! Rows held against another node's, and mended: see [`crate::crdt::content`].

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::Connection;

use super::apply::Merge;
use super::changes::{Loader, Reader};
use super::clocks;
use super::database::failed;
use super::doctor::row_hash;
use super::group::{Done, Group};
use super::origins::Origins;
use super::schema::SCHEMA_TABLE;
use super::sums::Sums;
use super::tables::{TableId, Tables};
use crate::crdt::content::{self, Content, Look, Mark, Mend, RowState, Sight};
use crate::crdt::fingerprint::heads_hash;
use crate::crdt::storage::StorageError;
use crate::crdt::{ColumnId, Commit, Key, Name, RowClock};
use crate::types::{Origin, Seq, Version};

const SELECT: &str = "SELECT key, clock FROM __tribune_rows
    WHERE tbl = ?1 AND key > ?2 ORDER BY key";

/// What a row comes to that cannot be read: it differs from every other.
const UNREADABLE: u64 = 1;

/// The rows of one snapshot.
pub(super) struct Rows<'a> {
    pub conn: &'a Connection,
    pub tables: &'a Tables,
    pub origins: &'a Origins,
}

impl Content for Rows<'_> {
    fn mark(&self) -> Result<Mark, StorageError> {
        let heads = Origins::read(self.conn).map_err(failed)?.heads();
        let sums = Sums::read(self.conn).map_err(failed)?;
        let tables = (0..).zip(self.tables.entries());
        let fingerprint =
            tables.fold(0, |sum: u64, (id, table)| sum.wrapping_add(sums.of(id, table)));
        Ok(Mark { heads: heads_hash(heads), fingerprint })
    }

    fn table_names(&self) -> Result<Vec<Name>, StorageError> {
        let entries = self.tables.entries().iter().filter(|entry| !entry.is_dropped);
        let mut names: Vec<Name> = entries.map(|entry| Arc::clone(&entry.name)).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn row_hashes(
        &self,
        table: &str,
        after: &[u8],
        rows_max: usize,
    ) -> Result<Vec<(Key, u64)>, StorageError> {
        let mut hashes = Vec::new();
        let Some(id) = self.id_of(table) else { return Ok(hashes) };
        let entry = self.tables.entry(id);
        let mut reader = self.reader();
        self.each(id, after, |key, clock| {
            let hash = match clock {
                Some(clock) if !clock.is_alive() => return Ok(true),
                Some(clock) => reader.find(id, &key).ok().map(|found| {
                    row_hash(entry, &key, &clock, found, |id| !entry.dropped.contains(&id))
                }),
                None => None,
            };
            hashes.push((key, hash.unwrap_or(UNREADABLE)));
            Ok(hashes.len() < rows_max)
        })?;
        Ok(hashes)
    }

    fn row_states(
        &self,
        table: &str,
        after: &[u8],
        to: Option<&[u8]>,
        rows_max: usize,
    ) -> Result<Vec<RowState>, StorageError> {
        let mut states = Vec::new();
        let Some(id) = self.id_of(table) else { return Ok(states) };
        let entry = self.tables.entry(id);
        let mut reader = self.reader();
        self.each(id, after, |key, clock| {
            if to.is_some_and(|to| &*key > to) {
                return Ok(false);
            }
            let Some(clock) = clock else { return Ok(true) };
            let kept = clock.cells().filter(|(column, _)| !entry.dropped.contains(column));
            let kept: Vec<_> = kept.collect();
            let Ok(values) = reader.values(id, &key, kept.iter().map(|(column, _)| *column)) else {
                return Ok(true);
            };
            let name = |column: ColumnId| entry.columns.get(usize::from(column.0)).cloned();
            let cells = kept.into_iter().zip(values);
            let cells = cells.filter_map(|((id, clock), value)| Some((name(id)?, clock, value)));
            let mut cells: Vec<_> = cells.collect();
            cells.sort_unstable_by(|a, b| a.0.cmp(&b.0));
            states.push(RowState { key, life: clock.life(), cells });
            Ok(states.len() < rows_max)
        })?;
        Ok(states)
    }
}

impl Rows<'_> {
    fn id_of(&self, table: &str) -> Option<TableId> {
        self.tables.id_of(table).filter(|id| !self.tables.entry(*id).is_dropped)
    }

    fn reader(&self) -> Reader<'_> {
        Reader { conn: self.conn, tables: self.tables, has_parked: BTreeMap::new() }
    }

    /// Visits a table's clocks behind a key, for as long as `each` says; `None`: one that cannot be
    /// read, or that names columns which have no name.
    fn each(
        &self,
        id: TableId,
        after: &[u8],
        mut each: impl FnMut(Key, Option<RowClock>) -> rusqlite::Result<bool>,
    ) -> Result<(), StorageError> {
        let width = self.tables.entry(id).columns.len();
        let mut visit = || {
            let mut statement = self.conn.prepare_cached(SELECT)?;
            let mut rows = statement.query((id, after))?;
            while let Some(row) = rows.next()? {
                let key: Key = row.get_ref(0)?.as_blob()?.into();
                let clock = clocks::decode(self.origins, row.get_ref(1)?.as_blob()?).ok();
                let is_known =
                    |clock: &RowClock| clock.cells().all(|(id, _)| usize::from(id.0) < width);
                if !each(key, clock.filter(is_known))? {
                    break;
                }
            }
            Ok(())
        };
        visit().map_err(failed)
    }
}

impl Loader {
    /// Looks at rows as one is asked to: see [`Storage::look`](crate::crdt::storage::Storage::look).
    /// All of it is from one snapshot.
    pub fn look(&mut self, look: &Look) -> Result<Sight, StorageError> {
        // Which origin's head is read does not matter: the mark reads them all.
        self.within_snapshot(Origin::default(), |conn, tables, origins| {
            content::look(&Rows { conn, tables, origins }, look)
        })
    }
}

impl Group<'_> {
    /// Merges whole rows as others have them: see
    /// [`Storage::mend`](crate::crdt::storage::Storage::mend). Returns those that are others now.
    pub fn mend(&mut self, mend: &Mend) -> Result<Vec<(Key, Origin)>, StorageError> {
        self.caller(StorageError::Failed, |group| {
            let rows = group.mend_rows(mend).map_err(failed)?;
            group.done.push(Done::Mended(mend.clone()));
            Ok(rows)
        })
    }

    pub(super) fn mend_rows(&mut self, mend: &Mend) -> rusqlite::Result<Vec<(Key, Origin)>> {
        let store = &mut *self.store;
        let mut mended = Vec::new();
        let mut merge = Merge::new(store);
        for (trust, theirs) in &mend.rows {
            if merge.state(&mend.table, *trust, theirs)? {
                mended.push((Arc::clone(&theirs.key), theirs.life.stamp.origin));
            }
        }
        let mut tables = merge.write_shown()?;
        let changed = std::mem::take(&mut merge.changed);
        if store.tables.id_of(SCHEMA_TABLE).is_some_and(|id| changed.contains(&id)) {
            tables.extend(store.bring_in_line()?);
        }
        let floor: BTreeMap<Origin, Version> = store.read_floor()?.heads.into_iter().collect();
        for key in &mend.gone {
            let Some(id) = store.tables.id_of(&mend.table) else { continue };
            let Some(clock) = clocks::read(&store.conn, &store.origins, id, key)? else { continue };
            let is_old = |origin| floor.get(&origin).copied().unwrap_or_default();
            if clock.stamps().into_iter().all(|stamp| stamp.version <= is_old(stamp.origin)) {
                store.remove_row((id, key), &clock, &mut tables)?;
                mended.push((Arc::clone(key), clock.life().stamp.origin));
            }
        }
        let (seq, at) = (Seq::default(), store.now.at);
        self.conclude(Commit { seq, at, tables, changeset: None, heads: Vec::new() });
        Ok(mended)
    }

    /// Adds the fingerprint up anew: see
    /// [`Storage::recount`](crate::crdt::storage::Storage::recount). It takes about as long as reading
    /// all rows does.
    pub fn recount(&mut self) -> Result<(), StorageError> {
        self.caller(StorageError::Failed, |group| {
            group.recount_all().map_err(failed)?;
            group.done.push(Done::Recounted);
            Ok(())
        })
    }

    pub(super) fn recount_all(&mut self) -> rusqlite::Result<()> {
        let store = &mut *self.store;
        for (id, entry) in (0..).zip(store.tables.entries()) {
            if !entry.is_dropped {
                store.sums.recount(&store.conn, (&store.tables, &store.origins), id)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crdt::content::{Place, Range, Seen, Stretch, Trust};
    use crate::crdt::storage::Storage;
    use crate::store::Store;
    use crate::store::trial::{NOW, T, Trial};

    fn everything() -> Stretch {
        let ranges = vec![Range { to: None, hash: 1 }];
        Stretch { table: Name::from("t"), after: Key::default(), ranges }
    }

    fn seen(store: &Store) -> Seen {
        let look = Look::Against { stretch: everything(), wants_rows: true };
        match store.look(&look).unwrap() {
            Sight::Against(seen) => seen,
            Sight::Own { .. } => panic!("it was asked for a comparison"),
        }
    }

    /// Changes the database behind the store's back, and has it mended from what it was before.
    fn damage(sql: &[&str]) -> (usize, u64, u64) {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id, v) VALUES (1, 'a'), (2, 'b'), (3, 'c')"]);
        let before = seen(&trial.store);
        let fingerprint = trial.store.fingerprint().unwrap();
        for sql in sql {
            trial.store.conn.execute_batch(sql).unwrap();
        }
        assert_ne!(seen(&trial.store).rows, before.rows);
        let rows = before.rows.iter().map(|row| (Trust::Two, row.clone())).collect();
        let mend = Mend { table: Name::from("t"), rows, gone: Vec::new() };
        let mended = trial.store.mend(NOW, &mend).unwrap();
        assert_eq!(seen(&trial.store).rows, before.rows);
        trial.store.recount().unwrap();
        (mended.rows.len(), trial.store.fingerprint().unwrap(), fingerprint)
    }

    #[test]
    fn a_value_that_the_disk_changed_is_mended() {
        let (mended, after, before) = damage(&["UPDATE t SET v = 'zz' WHERE id = 2"]);
        assert_eq!((mended, after), (1, before));
    }

    #[test]
    fn a_row_that_the_disk_lost_is_mended_whatever_is_left_of_it() {
        let clock = "DELETE FROM __tribune_rows WHERE tbl = (SELECT id FROM __tribune_tables \
                     WHERE name = 't')";
        let row = "DELETE FROM t WHERE id = 3";
        assert_eq!(damage(&[row]).0, 1);
        assert_eq!(damage(&[clock]).0, 3);
        let (mended, after, before) = damage(&[row, clock]);
        assert_eq!((mended, after), (3, before));
    }

    #[test]
    fn a_loader_sees_what_the_writer_does() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id, v) VALUES (1, 'a'), (2, 'b')"]);
        let mut loader = Loader::open(trial.store.path().unwrap()).unwrap();
        let from = Place { table: Name::from(""), key: Key::default() };
        for look in [
            Look::Survey { from, rows_max: 1 },
            Look::Rows { table: Name::from("t"), after: Key::default(), to: None },
            Look::Against { stretch: everything(), wants_rows: true },
        ] {
            assert_eq!(loader.look(&look).unwrap(), trial.store.look(&look).unwrap());
        }
    }
}
