//! The store as the core knows it: [`Storage`], with a group for each call.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::changes::{Reader, load};
use super::clocks;
use super::store::{Store, failed};
use crate::crdt::fingerprint::row_hash;
use crate::crdt::storage::{Extract, Inspected, Storage, StorageError};
use crate::crdt::{Batch, ColumnId, Commit, Key, Refusal, RowOp, pack};
use crate::types::{Epoch, Origin, Value, Version, Wall};

impl Storage for Store {
    fn origin(&self) -> Origin {
        self.now.origin
    }

    fn commit(&mut self, now: Wall, ops: &[RowOp]) -> Result<Option<Commit>, StorageError> {
        let mut group = self.group(now);
        group.ops(ops)?;
        Ok(group.commit()?.pop().map(Arc::unwrap_or_clone))
    }

    fn apply(&mut self, now: Wall, batch: &Batch) -> Result<Commit, StorageError> {
        let mut group = self.group(now);
        group.apply(batch)?;
        let commit = group.commit()?.pop().expect("each batch makes a commit");
        Ok(Arc::unwrap_or_clone(commit))
    }

    fn load(
        &self,
        origin: Origin,
        after: Version,
        bytes_max: usize,
    ) -> Result<Extract, StorageError> {
        // No transaction is needed: this connection is the only one that writes.
        load(&self.conn, &self.tables, origin, after, bytes_max).map_err(failed)
    }

    fn heads(&self) -> Result<Vec<(Origin, Version)>, StorageError> {
        Ok(self.origins.heads())
    }

    fn begin_epoch(&mut self, above: Epoch) -> Result<Origin, StorageError> {
        // The times of commits do not matter: an epoch makes none.
        let mut group = self.group(Wall(0));
        let origin = group.begin_epoch(above)?;
        group.commit()?;
        Ok(origin)
    }

    fn fingerprint(&self) -> Result<u64, StorageError> {
        self.sum_of_rows().map_err(failed)
    }

    fn inspect(&self, table: &str, key: &[Value]) -> Result<Option<Inspected>, StorageError> {
        let packed = pack::pack(key).map_err(|error| Refusal(error.to_string()))?;
        self.inspect_row(table, key, &packed).map_err(failed)
    }

    fn refusals(&self) -> u64 {
        self.now.refusals
    }
}

impl Store {
    /// Returns how many merged rows SQLite refused since the store was opened. They are kept
    /// aside, passed on, and tried again with each change of theirs.
    pub fn quarantined(&self) -> u64 {
        self.now.quarantined
    }

    fn sum_of_rows(&self) -> rusqlite::Result<u64> {
        let sql = "SELECT tbl, key, clock FROM __tribune_rows";
        let mut statement = self.conn.prepare_cached(sql)?;
        let mut rows = statement.query([])?;
        let mut reader =
            Reader { conn: &self.conn, tables: &self.tables, has_parked: BTreeMap::new() };
        let mut sum = 0_u64;
        while let Some(row) = rows.next()? {
            let table = row.get(0)?;
            let key: Key = row.get_ref(1)?.as_blob()?.into();
            let clock = clocks::decode(row.get_ref(2)?.as_blob()?)?;
            let ids: Vec<ColumnId> = clock.cells().map(|(id, _)| id).collect();
            let values =
                if ids.is_empty() { Vec::new() } else { reader.values(table, &key, ids)? };
            let entry = self.tables.entry(table);
            let cells = clock.cells().zip(&values).map(|((id, clock), value)| {
                (&*entry.columns[usize::from(id.0)], clock, value)
            });
            sum = sum.wrapping_add(row_hash(&entry.name, &key, clock.life(), cells));
        }
        Ok(sum)
    }

    fn inspect_row(
        &self,
        table: &str,
        key: &[Value],
        packed: &Key,
    ) -> rusqlite::Result<Option<Inspected>> {
        let Some(table) = self.tables.get(table) else { return Ok(None) };
        let Some(clock) = clocks::read(&self.conn, table.id, packed)? else { return Ok(None) };
        let columns = &self.tables.entry(table.id).columns;
        let cells = clock.cells();
        Ok(Some(Inspected {
            row: table.read_row(&self.conn, key)?,
            life: clock.life(),
            cells: cells
                .map(|(id, cell)| (Arc::clone(&columns[usize::from(id.0)]), cell))
                .collect(),
        }))
    }
}
