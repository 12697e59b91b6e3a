//! The store as the core knows it: [`Storage`], with a group for each call.

use std::sync::Arc;

use super::changes::load;
use super::clocks;
use super::content::Rows;
use super::database::{Store, failed};
use crate::crdt::content::{self, Look, Mend, Mended, Sight};
use crate::crdt::storage::{
    Begun, Bookmark, Collected, Extract, Floor, Inspected, Past, Settled, Storage, StorageError,
    Tidied, Tidy,
};
use crate::crdt::{Batch, Commit, Key, Part, Piece, Refusal, RowOp, Staging, pack};
use crate::types::{Epoch, NodeId, Origin, Value, Version, Wall};

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

    fn stage(&mut self, staging: Staging, parts: &[Part]) -> Result<(), StorageError> {
        let mut group = self.group(Wall(0));
        group.stage(staging, parts)?;
        group.commit().map(drop)
    }

    fn apply_staged(
        &mut self,
        now: Wall,
        staging: Staging,
        last: &Piece,
    ) -> Result<Commit, StorageError> {
        let mut group = self.group(now);
        group.apply_staged(staging, last)?;
        let commit = group.commit()?.pop().expect("each pull makes a commit");
        Ok(Arc::unwrap_or_clone(commit))
    }

    fn unstage(&mut self, staging: Staging) -> Result<(), StorageError> {
        let mut group = self.group(Wall(0));
        group.unstage(staging)?;
        group.commit().map(drop)
    }

    fn load(
        &self,
        origin: Origin,
        from: impl Into<Bookmark>,
        bytes_max: usize,
    ) -> Result<Extract, StorageError> {
        // No transaction is needed: this connection is the only one that writes.
        let parts = (&self.conn, &self.tables, &self.origins);
        load(parts, origin, from.into(), bytes_max).map_err(failed)
    }

    fn heads(&self) -> Result<Vec<(Origin, Version)>, StorageError> {
        Ok(self.origins.heads())
    }

    fn begin_epoch(&mut self, now: Wall, above: Epoch) -> Result<Begun, StorageError> {
        let mut group = self.group(now);
        let (origin, ended) = group.begin_epoch(above)?;
        let commits = group.commit()?.into_iter().map(Arc::unwrap_or_clone).collect();
        Ok(Begun { origin, ended, commits })
    }

    fn withdraw(&mut self, now: Wall) -> Result<Vec<Commit>, StorageError> {
        let mut group = self.group(now);
        group.withdraw()?;
        Ok(group.commit()?.into_iter().map(Arc::unwrap_or_clone).collect())
    }

    fn fingerprint(&self) -> Result<u64, StorageError> {
        let tables = (0..).zip(self.tables.entries());
        Ok(tables.fold(0, |sum, (id, table)| sum.wrapping_add(self.sums.of(id, table))))
    }

    fn floor(&self) -> Result<Floor, StorageError> {
        self.read_floor().map_err(failed)
    }

    fn tombstones(&self) -> Result<u64, StorageError> {
        Ok(self.count_tombstones())
    }

    fn meet(
        &mut self,
        members: &[(NodeId, Epoch)],
        forgotten: &[(NodeId, Epoch)],
    ) -> Result<(), StorageError> {
        let mut group = self.group(Wall(0));
        group.meet(members, forgotten)?;
        group.commit().map(drop)
    }

    fn collect(
        &mut self,
        heads: &[(Origin, Version)],
        forgotten: &[(NodeId, Epoch)],
        rows_max: usize,
    ) -> Result<Collected, StorageError> {
        let mut group = self.group(Wall(0));
        let (collected, _) = group.collect(heads, forgotten, rows_max)?;
        group.commit()?;
        Ok(collected)
    }

    fn rejoin(
        &mut self,
        now: Wall,
        held: &[(Origin, Version)],
        length: u64,
    ) -> Result<Begun, StorageError> {
        let mut group = self.group(now);
        let (origin, ended) = group.rejoin(held, length)?;
        let commits = group.commit()?.into_iter().map(Arc::unwrap_or_clone).collect();
        Ok(Begun { origin, ended: (ended, Version(0)), commits })
    }

    fn settle(&mut self, now: Wall, past: &Past) -> Result<Settled, StorageError> {
        let mut group = self.group(now);
        let settled = group.settle(past)?;
        let commits = group.commit()?.into_iter().map(Arc::unwrap_or_clone).collect();
        Ok(Settled { commits, ..settled })
    }

    fn depart(
        &mut self,
        now: Wall,
        under: Origin,
        held: &[(Origin, Version)],
    ) -> Result<Vec<Commit>, StorageError> {
        let mut group = self.group(now);
        group.depart(under, held)?;
        Ok(group.commit()?.into_iter().map(Arc::unwrap_or_clone).collect())
    }

    fn tidy(&mut self, tidy: &Tidy) -> Result<Tidied, StorageError> {
        let mut group = self.group(Wall(0));
        let tidied = group.tidy(tidy)?;
        group.commit()?;
        Ok(tidied)
    }

    fn inspect(&self, table: &str, key: &[Value]) -> Result<Option<Inspected>, StorageError> {
        let packed = pack::pack(key).map_err(|error| Refusal(error.to_string()))?;
        self.inspect_row(table, key, &packed).map_err(failed)
    }

    fn refusals(&self) -> u64 {
        self.now.refusals
    }

    fn look(&self, look: &Look) -> Result<Sight, StorageError> {
        // No transaction is needed: this connection is the only one that writes.
        content::look(
            &Rows { conn: &self.conn, tables: &self.tables, origins: &self.origins },
            look,
        )
    }

    fn mend(&mut self, now: Wall, mend: &Mend) -> Result<Mended, StorageError> {
        let mut group = self.group(now);
        let rows = group.mend(mend)?;
        let commit = group.commit()?.pop().expect("each mending makes a commit");
        Ok(Mended { commit: Arc::unwrap_or_clone(commit), rows })
    }

    fn recount(&mut self) -> Result<(), StorageError> {
        let mut group = self.group(Wall(0));
        group.recount()?;
        group.commit().map(drop)
    }
}

impl Store {
    /// Returns how many merged rows SQLite refused since the store was opened. They are kept
    /// aside, passed on, and tried again with each change of theirs.
    pub fn quarantined(&self) -> u64 {
        self.now.quarantined
    }

    fn inspect_row(
        &self,
        table: &str,
        key: &[Value],
        packed: &Key,
    ) -> rusqlite::Result<Option<Inspected>> {
        let Some(table) = self.tables.get(table) else { return Ok(None) };
        let clock = clocks::read(&self.conn, &self.origins, table.id, packed)?;
        let Some(clock) = clock else { return Ok(None) };
        let entry = self.tables.entry(table.id);
        let columns = &entry.columns;
        let cells = clock.cells().filter(|(id, _)| !entry.dropped.contains(id));
        Ok(Some(Inspected {
            row: table.read_row(&self.conn, key)?,
            life: clock.life(),
            cells: cells
                .map(|(id, cell)| (Arc::clone(&columns[usize::from(id.0)]), cell))
                .collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crdt::definition::Definition;
    use crate::crdt::suite::{self, Bench, histories};
    use crate::crdt::table::Table;
    use crate::store::OpenConfig;
    use crate::store::schema::{Source, literal};
    use crate::store::values::quote;
    use crate::types::NodeId;

    /// Stores in memory, whose tables are written as SQL.
    struct Sqlite;

    impl Bench for Sqlite {
        type Disk = Store;

        fn open(&mut self, node: NodeId, definitions: &[Definition]) -> Store {
            let config = OpenConfig { node: Some(node), ..OpenConfig::default() };
            let sources: Vec<Source> = definitions.iter().map(source).collect();
            Store::in_memory(&config, &sources).unwrap()
        }

        fn reopen(&mut self, mut disk: Store) -> Store {
            disk.now.trusted = disk.origins.head(disk.now.origin);
            crate::store::staged::clear(&disk.conn).unwrap();
            disk
        }

        fn define(&mut self, disk: &mut Store, definition: &Definition) {
            disk.apply_schema(suite::NOW, &[source(definition)]).unwrap();
        }
    }

    fn source(definition: &Definition) -> Source {
        let info = definition.info();
        let columns = info.columns.iter().enumerate().zip(definition.defaults());
        let mut parts: Vec<String> = columns
            .map(|((place, name), default)| {
                let rule = if info.key.contains(&place) {
                    "NOT NULL".to_owned()
                } else {
                    format!("DEFAULT {}", literal(default))
                };
                format!("{} {rule}", quote(name))
            })
            .collect();
        let key: Vec<String> = info.key.iter().map(|place| quote(&info.columns[*place])).collect();
        parts.push(format!("PRIMARY KEY ({})", key.join(", ")));
        let sql = format!("CREATE TABLE {} ({})", quote(&info.name), parts.join(", "));
        Source { file: "test.sql".to_owned(), sql }
    }

    crate::storage_suite!(Sqlite);
    crate::collecting_suite!(Sqlite);

    /// The reference.
    struct Memory;

    impl Bench for Memory {
        type Disk = Table;

        fn open(&mut self, node: NodeId, definitions: &[Definition]) -> Table {
            Table::new(suite::origin(node), definitions).unwrap()
        }

        fn reopen(&mut self, mut disk: Table) -> Table {
            disk.restart();
            disk
        }

        fn define(&mut self, disk: &mut Table, definition: &Definition) {
            disk.define(suite::NOW, definition).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_history_ends_alike_in_sqlite_and_in_memory(
            replica_count in 2..5_usize,
            words in prop::collection::vec(any::<u32>(), 0..80),
        ) {
            let here = histories::play(&mut Sqlite, replica_count, &words);
            let there = histories::play(&mut Memory, replica_count, &words);
            prop_assert_eq!(here, there);
        }

        #[test]
        fn a_history_with_collections_ends_alike_in_sqlite_and_in_memory(
            replica_count in 2..5_usize,
            words in prop::collection::vec(any::<u32>(), 0..100),
        ) {
            let here = histories::play_collecting(&mut Sqlite, replica_count, &words);
            let there = histories::play_collecting(&mut Memory, replica_count, &words);
            prop_assert_eq!(here, there);
        }
    }
}
