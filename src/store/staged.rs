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
struct Told {
    tables: Vec<TableEvents>,
    rows: usize,
    bytes: usize,
    /// Whether the schema changed, and the tables are not in line with it yet.
    is_schema: bool,
}

impl Told {
    fn add(&mut self, more: Vec<TableEvents>) {
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
