//! What a large transaction changed, on disk: for each row that it touched what the row was before.
//! What the row is now is read from its table, once the statements are through.
//!
//! The pre-update hook may not use the connection that it is called by, so this is a database of its
//! own, without journal or sync, in a file that has no name any more. It ends with the transaction.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;
use rusqlite::types::Type;

use super::capture::{Event, Net, keyed};
use super::clocks;
use super::origins::Origins;
use super::tables::{Table, TableId};
use crate::crdt::record::{put_number, take_number};
use crate::crdt::{Key, RowClock, pack};
use crate::types::Value;

/// The file, as long as it has a name.
const SPILL_FILE: &str = "tribune.spill";

/// How much of the spill is kept in memory: pages that were written last.
const CACHE_KIB: i64 = 4 << 10;

/// How many rows are worked on at a time, and how many bytes of them, unless one has more. A chunk is
/// a part of the version's log at least, so no answer to a peer has to carry more than a chunk.
const CHUNK_ROWS: usize = 4_096;
const CHUNK_BYTES: usize = 1 << 20;

const SCHEMA: &str = "CREATE TABLE rows (
    tbl   INTEGER NOT NULL,
    key   BLOB    NOT NULL,
    -- What the row was when the transaction began; NULL: it was not there.
    image BLOB,
    -- The key under which the row that is here now began the transaction, where that is another.
    moved BLOB,
    -- The clock that was there then.
    clock BLOB,
    PRIMARY KEY (tbl, key)
) WITHOUT ROWID";
const INSERT_TOUCHED: &str = "INSERT OR IGNORE INTO rows (tbl, key, image) VALUES (?1, ?2, ?3)";
const UPSERT_INSERTED: &str = "INSERT INTO rows (tbl, key) VALUES (?1, ?2)
    ON CONFLICT DO UPDATE SET moved = NULL WHERE moved IS NOT NULL";
const UPSERT_MOVED: &str = "INSERT INTO rows (tbl, key, moved) VALUES (?1, ?2, ?3)
    ON CONFLICT DO UPDATE SET moved = excluded.moved";
const SELECT_BEGAN: &str =
    "SELECT coalesce(moved, iif(image IS NULL, NULL, key)) FROM rows WHERE tbl = ?1 AND key = ?2";
const SELECT_AFTER: &str = "SELECT tbl, key, image, moved, clock FROM rows
    WHERE (tbl, key) > (?1, ?2) ORDER BY tbl, key";
const SELECT_MOVED_AFTER: &str = "SELECT tbl, key, moved FROM rows
    WHERE moved IS NOT NULL AND (tbl, key) > (?1, ?2) ORDER BY tbl, key LIMIT ?3";
const UPDATE_CLOCK: &str = "UPDATE rows SET clock = ?3 WHERE tbl = ?1 AND key = ?2";

/// Rows that a transaction touched, by table and key.
#[derive(Debug)]
pub struct Spill {
    conn: Connection,
    tables: BTreeMap<TableId, Arc<Table>>,
}

/// A place in the order of rows.
pub type Cursor = (TableId, Vec<u8>);

impl Spill {
    /// Makes an empty one, in a directory, or where SQLite keeps its temporary files.
    pub fn open(directory: Option<&Path>) -> rusqlite::Result<Self> {
        let path = directory.map_or_else(PathBuf::new, |directory| directory.join(SPILL_FILE));
        if directory.is_some() {
            // What a killed process left. Whatever is wrong, SQLite says it in a moment.
            let _ = std::fs::remove_file(&path);
        }
        let conn = Connection::open(&path)?;
        conn.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        conn.pragma_update(None, "journal_mode", "OFF")?;
        conn.pragma_update(None, "synchronous", "OFF")?;
        conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
        conn.execute_batch(SCHEMA)?;
        if directory.is_some() {
            let _ = std::fs::remove_file(&path);
        }
        conn.execute_batch("BEGIN")?;
        Ok(Self { conn, tables: BTreeMap::new() })
    }

    /// Adds what happened next.
    pub fn add(&mut self, event: Event) -> Result<(), String> {
        let Event { table, old, new } = event;
        let old = old.map(|row| keyed(&table, row)).transpose()?;
        let new = new.map(|row| keyed(&table, row)).transpose()?;
        self.write(&table, old, new).map_err(|error| super::database::fault_text(&error))?;
        self.tables.entry(table.id).or_insert(table);
        Ok(())
    }

    /// See [`super::capture`], which does the same in memory.
    fn write(
        &self,
        table: &Table,
        old: Option<(Key, Vec<Value>)>,
        new: Option<(Key, Vec<Value>)>,
    ) -> rusqlite::Result<()> {
        let id = table.id;
        if let Some((key, row)) = &old {
            self.conn.prepare_cached(INSERT_TOUCHED)?.execute((id, &**key, image_of(row)))?;
        }
        let Some((key, _)) = new else { return Ok(()) };
        match old {
            Some((old, _)) if old == key => {}
            Some((old, _)) => {
                let began: Option<Vec<u8>> = self
                    .conn
                    .prepare_cached(SELECT_BEGAN)?
                    .query_row((id, &*old), |row| row.get(0))?;
                self.conn.prepare_cached(UPSERT_MOVED)?.execute((id, &*key, began))?;
            }
            None => drop(self.conn.prepare_cached(UPSERT_INSERTED)?.execute((id, &*key))?),
        }
        Ok(())
    }

    /// Adds rows of which the net effect is known already.
    pub fn add_nets(&mut self, nets: Vec<Net>) -> rusqlite::Result<()> {
        let mut insert = self
            .conn
            .prepare_cached("INSERT INTO rows (tbl, key, image, moved) VALUES (?1, ?2, ?3, ?4)")?;
        for Net { table, key, before, moved_from, .. } in nets {
            let image = before.as_deref().map(image_of);
            insert.execute((table.id, &*key, image, moved_from.as_deref()))?;
            self.tables.entry(table.id).or_insert(table);
        }
        Ok(())
    }

    /// Lists the tables of which rows were touched.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.tables.values()
    }

    /// Notes the clocks of the rows that moved, before any clock is written: another row may have
    /// come to their places.
    pub fn note_clocks(&self, main: &Connection, origins: &mut Origins) -> rusqlite::Result<()> {
        let mut cursor: Cursor = (0, Vec::new());
        loop {
            let moved: Vec<(TableId, Vec<u8>, Vec<u8>)> = self
                .conn
                .prepare_cached(SELECT_MOVED_AFTER)?
                .query_map((cursor.0, &cursor.1, CHUNK_ROWS as i64), |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })?
                .collect::<rusqlite::Result<_>>()?;
            let Some((table, key, _)) = moved.last() else { return Ok(()) };
            cursor = (*table, key.clone());
            let mut update = self.conn.prepare_cached(UPDATE_CLOCK)?;
            for (table, key, from) in &moved {
                let clock = clocks::read(main, origins, *table, from)?;
                let Some(clock) = clock.filter(RowClock::is_alive) else { continue };
                update.execute((table, key, clocks::encode(origins, &clock)))?;
            }
        }
    }

    /// Returns the rows after a place, as many as make a chunk, with what they are now, and, of those
    /// that moved, the clock that [`Spill::note_clocks`] noted. Empty: there are no more.
    pub fn chunk(
        &self,
        main: &Connection,
        origins: &Origins,
        cursor: &mut Cursor,
    ) -> rusqlite::Result<Vec<(Net, Option<RowClock>)>> {
        let mut select = self.conn.prepare_cached(SELECT_AFTER)?;
        let mut rows = select.query((cursor.0, &cursor.1))?;
        let mut chunk = Vec::new();
        let mut bytes = 0;
        while chunk.len() < CHUNK_ROWS
            && let Some(row) = rows.next()?
        {
            let id: TableId = row.get(0)?;
            let table = Arc::clone(&self.tables[&id]);
            let key = Key::from(row.get_ref(1)?.as_blob()?);
            let before = match row.get_ref(2)?.as_blob_or_null()? {
                Some(image) => Some(row_of(image).ok_or_else(|| damage(2))?),
                None => None,
            };
            let moved_from = row.get_ref(3)?.as_blob_or_null()?.map(Key::from);
            let clock = row.get_ref(4)?.as_blob_or_null()?;
            let clock = clock.map(|record| clocks::decode(origins, record)).transpose()?;
            let values = pack::unpack(&key).map_err(|_| damage(1))?;
            let after = table.read_row(main, &values)?;
            let sides = before.iter().chain(&after).flatten();
            let row_bytes = key.len() + sides.map(|value| value.bytes() + 16).sum::<usize>();
            if bytes > 0 && bytes + row_bytes > CHUNK_BYTES {
                break;
            }
            bytes += row_bytes;
            *cursor = (id, key.to_vec());
            chunk.push((Net { table, key, before, after, moved_from }, clock));
        }
        Ok(chunk)
    }
}

fn damage(column: usize) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, "the spill is damaged".into())
}

const NULL: u8 = 0;
const INTEGER: u8 = 1;
const REAL: u8 = 2;
const TEXT: u8 = 3;
const BLOB: u8 = 4;

/// Writes a row's values, one after the other.
fn image_of(row: &[Value]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(row.iter().map(|value| value.bytes() + 6).sum());
    for value in row {
        match value {
            Value::Null => bytes.push(NULL),
            Value::Integer(number) => {
                bytes.push(INTEGER);
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            Value::Real(number) => {
                bytes.push(REAL);
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            Value::Text(text) => put_bytes(&mut bytes, TEXT, text.as_bytes()),
            Value::Blob(blob) => put_bytes(&mut bytes, BLOB, blob),
        }
    }
    bytes
}

fn put_bytes(bytes: &mut Vec<u8>, kind: u8, value: &[u8]) {
    bytes.push(kind);
    put_number(bytes, value.len() as u64);
    bytes.extend_from_slice(value);
}

fn row_of(mut image: &[u8]) -> Option<Vec<Value>> {
    let mut row = Vec::new();
    while let Some((kind, rest)) = image.split_first() {
        image = rest;
        row.push(match *kind {
            NULL => Value::Null,
            INTEGER => Value::Integer(i64::from_le_bytes(take_word(&mut image)?)),
            REAL => Value::Real(f64::from_le_bytes(take_word(&mut image)?)),
            TEXT => Value::Text(String::from_utf8(take_bytes(&mut image)?).ok()?),
            BLOB => Value::Blob(take_bytes(&mut image)?),
            _ => return None,
        });
    }
    Some(row)
}

fn take_word(image: &mut &[u8]) -> Option<[u8; 8]> {
    let (word, rest) = image.split_first_chunk::<8>()?;
    *image = rest;
    Some(*word)
}

fn take_bytes(image: &mut &[u8]) -> Option<Vec<u8>> {
    let length = usize::try_from(take_number(image)?).ok()?;
    let (bytes, rest) = image.split_at_checked(length)?;
    *image = rest;
    Some(bytes.to_vec())
}
