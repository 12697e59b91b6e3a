//! Parts of pulls on disk: a pull that is too large for memory waits here until the last of it has
//! come, and is then merged part by part in one transaction.

use std::sync::Arc;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension};

use super::apply::Merge;
use super::database::{Store, failed};
use super::group::{Done, Group};
use super::limits::{EVENT_BYTES_MAX, EVENT_ROWS_MAX};
use super::schema::SCHEMA_TABLE;
use crate::crdt::storage::StorageError;
use crate::crdt::{Class, Commit, Part, Piece, RowEvents, Staging, TableEvents};
use crate::types::{Origin, Seq, Value, Version};
use crate::wire::{decode_part, encode_part};

const SELECT_LAST: &str = "SELECT coalesce(max(n), 0) FROM __tribune_staged WHERE staging = ?1";
const INSERT: &str = "INSERT INTO __tribune_staged (staging, n, part) VALUES (?1, ?2, ?3)";
const SELECT_FIRST: &str =
    "SELECT n, part FROM __tribune_staged WHERE staging = ?1 ORDER BY n LIMIT 1";
const DELETE: &str = "DELETE FROM __tribune_staged WHERE staging = ?1 AND n = ?2";
const DELETE_ALL_OF: &str = "DELETE FROM __tribune_staged WHERE staging = ?1";
const SELECT_ANY: &str = "SELECT EXISTS (SELECT 1 FROM __tribune_staged)";
const DELETE_ALL: &str = "DELETE FROM __tribune_staged";

/// Forgets what an earlier process left.
pub fn clear(conn: &Connection) -> rusqlite::Result<()> {
    let is_any: bool = conn.query_row(SELECT_ANY, [], |row| row.get(0))?;
    if is_any {
        conn.execute(DELETE_ALL, [])?;
    }
    Ok(())
}

fn number(staging: Staging) -> i64 {
    staging.0.cast_signed()
}

fn add(conn: &Connection, staging: Staging, parts: &[Part]) -> rusqlite::Result<()> {
    let last: i64 =
        conn.prepare_cached(SELECT_LAST)?.query_row([number(staging)], |row| row.get(0))?;
    let mut insert = conn.prepare_cached(INSERT)?;
    for (n, part) in (last + 1..).zip(parts) {
        insert.execute((number(staging), n, encode_part(part)))?;
    }
    Ok(())
}

/// Takes the first part off the disk.
fn take(conn: &Connection, staging: Staging) -> rusqlite::Result<Option<Part>> {
    let read = |row: &rusqlite::Row<'_>| {
        let part = decode_part(row.get_ref(1)?.as_blob()?).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(1, Type::Blob, Box::new(error))
        })?;
        Ok((row.get::<_, i64>(0)?, part))
    };
    let first = conn.prepare_cached(SELECT_FIRST)?.query_row([number(staging)], read).optional()?;
    let Some((n, part)) = first else { return Ok(None) };
    conn.prepare_cached(DELETE)?.execute((number(staging), n))?;
    Ok(Some(part))
}

fn forget(conn: &Connection, staging: Staging) -> rusqlite::Result<()> {
    conn.prepare_cached(DELETE_ALL_OF)?.execute([number(staging)])?;
    Ok(())
}

impl Group<'_> {
    /// Keeps parts of a pull: see [`Storage::stage`](crate::crdt::storage::Storage::stage).
    pub fn stage(&mut self, staging: Staging, parts: &[Part]) -> Result<(), StorageError> {
        self.caller(StorageError::Failed, |group| {
            add(&group.store.conn, staging, parts).map_err(failed)?;
            group.done.push(Done::Staged(staging, parts.to_vec()));
            Ok(())
        })
    }

    /// Forgets parts of a pull.
    pub fn unstage(&mut self, staging: Staging) -> Result<(), StorageError> {
        self.caller(StorageError::Failed, |group| {
            forget(&group.store.conn, staging).map_err(failed)?;
            group.done.push(Done::Unstaged(staging));
            Ok(())
        })
    }

    /// Merges a pull whose first parts are on disk: see
    /// [`Storage::apply_staged`](crate::crdt::storage::Storage::apply_staged).
    pub fn apply_staged(
        &mut self,
        staging: Staging,
        last: &Piece,
    ) -> Result<Vec<(Origin, Version)>, StorageError> {
        self.caller(StorageError::Failed, |group| {
            let heads = group.merge_staged(staging, last).map_err(failed)?;
            group.done.push(Done::AppliedStaged(staging, last.clone()));
            Ok(heads)
        })
    }

    /// Does again what [`Group::stage`] or [`Group::unstage`] did.
    pub(super) fn stage_again(
        &self,
        staging: Staging,
        parts: Option<&[Part]>,
    ) -> rusqlite::Result<()> {
        match parts {
            Some(parts) => add(&self.store.conn, staging, parts),
            None => forget(&self.store.conn, staging),
        }
    }

    pub(super) fn merge_staged(
        &mut self,
        staging: Staging,
        last: &Piece,
    ) -> rusqlite::Result<Vec<(Origin, Version)>> {
        let store = &mut *self.store;
        let mut told = Told::default();
        if Merge::new(store).takes(last) {
            while let Some(part) = take(&store.conn, staging)? {
                merge_part(store, &part, &mut told)?;
                store.gate.beat();
            }
            merge_part(store, &Part { piece: last.clone(), is_cut: false }, &mut told)?;
            store.origins.advance(last.origin, last.through);
            store.sweeper.put_off();
        } else {
            forget(&store.conn, staging)?;
        }
        let heads = vec![(last.origin, store.origins.head(last.origin))];
        let (seq, at, tables) = (Seq::default(), store.now.at, told.tables);
        self.conclude(Commit { seq, at, tables, changeset: None, heads: heads.clone() });
        Ok(heads)
    }
}

/// Merges one part, and writes it.
fn merge_part(store: &mut Store, part: &Part, told: &mut Told) -> rusqlite::Result<()> {
    let mut merge = Merge::new(store);
    merge.part(part)?;
    let tables = merge.write()?;
    let (refusals, quarantined) = (merge.refusals, merge.quarantined);
    let changed = std::mem::take(&mut merge.changed);
    store.now.refusals += refusals;
    store.now.quarantined += quarantined;
    told.add(tables);
    told.is_schema |= store.tables.id_of(SCHEMA_TABLE).is_some_and(|id| changed.contains(&id));
    // Before the rows that were written under it: they need not be kept aside. Half a change of it
    // is none.
    if told.is_schema && !part.is_cut {
        told.is_schema = false;
        told.add(store.bring_in_line()?);
    }
    Ok(())
}

/// What a commit of many parts tells: as many rows as are listed, and beyond that which tables.
#[derive(Default)]
pub(super) struct Told {
    pub tables: Vec<TableEvents>,
    rows: usize,
    bytes: usize,
    /// Whether the schema changed, and the tables are not in line with it yet.
    is_schema: bool,
}

impl Told {
    pub fn add(&mut self, more: Vec<TableEvents>) {
        for events in more {
            self.rows += events.rows.each().len();
            let rows = events.rows.each().iter().filter_map(|event| event.row.as_ref());
            self.bytes += rows.flatten().map(Value::bytes).sum::<usize>();
            self.add_table(events);
        }
        if self.rows > EVENT_ROWS_MAX || self.bytes > EVENT_BYTES_MAX {
            let shared = self.tables.iter_mut();
            let shared = shared.filter(|events| Class::of(&events.table.name) == Class::Shared);
            shared.for_each(|events| events.rows = RowEvents::Many);
            (self.rows, self.bytes) = (0, 0);
        }
    }

    fn add_table(&mut self, events: TableEvents) {
        let held = self.tables.iter_mut().find(|held| held.table.name == events.table.name);
        let Some(held) = held else { return self.tables.push(events) };
        match (&mut held.rows, events.rows) {
            // A row that several parts change is told several times, as several commits would.
            (RowEvents::Each(rows), RowEvents::Each(more)) if held.table == events.table => {
                rows.extend(more);
            }
            (rows, _) => *rows = RowEvents::Many,
        }
        held.table = Arc::clone(&events.table);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::crdt::storage::Storage;
    use crate::store::schema::{Mode, SchemaRequest};
    use crate::store::trial::{NOW, T, Trial, in_memory, plain, rows, run, source};
    use crate::types::NodeId;

    const YOU: NodeId = NodeId([0x22; 16]);

    /// Whole versions of another node, each a part, and the last.
    fn parts_of(store: &Store) -> (Vec<Part>, Piece) {
        let whole = store.load(store.origin(), Version(0), usize::MAX).unwrap().piece;
        let parts = whole
            .changesets
            .iter()
            .map(|changeset| Part { piece: Piece::of(Arc::clone(changeset)), is_cut: false });
        (parts.collect(), Piece { changesets: Vec::new(), ..whole })
    }

    fn staged(store: &Store) -> String {
        rows(store, "SELECT count(*) FROM __tribune_staged").remove(0)
    }

    #[test]
    fn what_is_kept_is_kept_though_sqlite_takes_back_the_group() {
        const ENDLESS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
            INSERT INTO t SELECT 1000 + max(i), 1, 1 FROM n";
        let mut from = in_memory(YOU, T);
        for id in 1..4 {
            run(&mut from, &[&format!("INSERT INTO t (id) VALUES ({id})")]).unwrap();
        }
        let (parts, last) = parts_of(&from);
        let mut trial = Trial::new(T);
        let endless = [plain(ENDLESS)];
        let soon = || Some(Instant::now() + Duration::from_millis(30));
        let mut group = trial.store.group(NOW);
        group.stage(Staging(1), &parts).unwrap();
        group.stage(Staging(2), &parts).unwrap();
        group.unstage(Staging(2)).unwrap();
        group.sql(&endless, soon()).unwrap_err();
        group.commit().unwrap();
        assert_eq!(staged(&trial.store), "3");
        let mut group = trial.store.group(NOW);
        group.apply_staged(Staging(1), &last).unwrap();
        group.sql(&endless, soon()).unwrap_err();
        assert_eq!(group.commit().unwrap().len(), 1);
        assert_eq!(staged(&trial.store), "0");
        assert_eq!(trial.rows("SELECT id FROM t"), ["1", "2", "3"]);
        assert_eq!(trial.store.fingerprint().unwrap(), from.fingerprint().unwrap());
    }

    #[test]
    fn what_cannot_be_applied_stays_and_a_restart_forgets_it() {
        let mut from = in_memory(YOU, T);
        run(&mut from, &["INSERT INTO t (id) VALUES (1)"]).unwrap();
        let (parts, last) = parts_of(&from);
        let mut trial = Trial::new(T);
        trial.store.stage(Staging(1), &parts).unwrap();
        trial.store.conn.execute("UPDATE __tribune_staged SET part = x'ff00'", []).unwrap();
        let before = trial.store.fingerprint().unwrap();
        for _ in 0..2 {
            trial.store.apply_staged(NOW, Staging(1), &last).unwrap_err();
            assert_eq!(
                (staged(&trial.store).as_str(), trial.store.fingerprint().unwrap()),
                ("1", before)
            );
        }
        let trial = trial.reopen();
        assert_eq!(staged(&trial.store), "0");
    }

    #[test]
    fn rows_find_the_tables_that_a_part_before_them_has_made() {
        let mut from = Trial::new("");
        let sources = vec![source("CREATE TABLE s (id INTEGER NOT NULL PRIMARY KEY, v);")];
        let mode = Mode::Apply { allow_drop: false };
        let mut group = from.store.group(NOW);
        group.schema(&SchemaRequest { sources, mode, dry_run: false }).unwrap();
        group.commit().unwrap();
        from.write(&["INSERT INTO s VALUES (1, 'a'), (2, 'b')"]);
        let (parts, last) = parts_of(&from.store);
        let config = crate::store::OpenConfig { node: Some(YOU), ..Default::default() };
        let dir = tempfile::tempdir().unwrap();
        let config = crate::store::OpenConfig { data_dir: dir.path().join("d"), ..config };
        let mut to = Store::open(&config).unwrap();
        to.stage(Staging(1), &parts).unwrap();
        let commit = to.apply_staged(NOW, Staging(1), &last).unwrap();
        assert_eq!(rows(&to, "SELECT id, v FROM s"), ["1 'a'", "2 'b'"]);
        assert_eq!(rows(&to, "SELECT count(*) FROM __tribune_parked"), ["0"]);
        assert_eq!(to.fingerprint().unwrap(), from.store.fingerprint().unwrap());
        let of_s = commit.tables.iter().find(|events| &*events.table.name == "s");
        assert_eq!(of_s.unwrap().rows.each().len(), 2);
    }

    #[test]
    fn a_commit_of_many_rows_tells_that_they_are_many() {
        let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 30000)
            INSERT INTO t (id) SELECT i + ";
        let mut from = in_memory(YOU, T);
        for offset in [0, 30_000, 60_000] {
            run(&mut from, &[&format!("{fill} {offset} FROM n")]).unwrap();
        }
        let (parts, last) = parts_of(&from);
        let mut to = in_memory(crate::store::trial::ME, T);
        to.stage(Staging(1), &parts).unwrap();
        let commit = to.apply_staged(NOW, Staging(1), &last).unwrap();
        assert_eq!(commit.tables.len(), 1);
        assert_eq!(commit.tables[0].rows, RowEvents::Many);
        assert_eq!(to.fingerprint().unwrap(), from.fingerprint().unwrap());
    }
}
