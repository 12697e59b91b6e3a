//! Values without a place: their table or column is unknown here, or SQLite refuses their row.
//! Only the values are here; their clocks are with all others, so they merge and travel like all
//! others.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;

use super::tables::{TableId, Tables, read_at};
use super::values::Bound;
use crate::crdt::{ColumnId, Key};
use crate::types::Value;

const SELECT: &str = "SELECT col, value FROM __tribune_parked WHERE tbl = ?1 AND key = ?2";
const INSERT: &str = "INSERT INTO __tribune_parked (tbl, key, col, value, reason)
    VALUES (?1, ?2, ?3, ?4, ?5)";
const DELETE: &str = "DELETE FROM __tribune_parked WHERE tbl = ?1 AND key = ?2";
const DELETE_TABLE: &str = "DELETE FROM __tribune_parked WHERE tbl = ?1";
const DELETE_COLUMN: &str =
    "DELETE FROM __tribune_parked WHERE tbl = ?1 AND col = ?2 RETURNING key";
const SELECT_TABLES: &str = "SELECT DISTINCT tbl FROM __tribune_parked";
const COUNT: &str = "SELECT count(*), count(reason) FROM
    (SELECT min(reason) AS reason FROM __tribune_parked GROUP BY tbl, key)";

/// The parked values of one row.
pub type Values = BTreeMap<ColumnId, Value>;

/// Rows by table.
pub type Forgotten = BTreeMap<TableId, BTreeSet<Key>>;

/// Lists the tables that have parked values.
pub fn tables(conn: &Connection) -> rusqlite::Result<Vec<TableId>> {
    conn.prepare_cached(SELECT_TABLES)?.query_map([], |row| row.get(0))?.collect()
}

/// Returns how many rows have parked values, and how many of these SQLite refused.
pub fn count(conn: &Connection) -> rusqlite::Result<(u64, u64)> {
    let read = |row: &rusqlite::Row<'_>, at| row.get::<_, i64>(at).map(i64::cast_unsigned);
    conn.query_row(COUNT, [], |row| Ok((read(row, 0)?, read(row, 1)?)))
}

/// Reads a row's parked values.
pub fn read(conn: &Connection, table: TableId, key: &[u8]) -> rusqlite::Result<Values> {
    let mut statement = conn.prepare_cached(SELECT)?;
    let mut rows = statement.query((table, key))?;
    let mut values = Values::new();
    while let Some(row) = rows.next()? {
        values.insert(ColumnId(row.get(0)?), read_at(row, 1)?);
    }
    Ok(values)
}

/// Forgets the values of tables and columns that were dropped. Returns the rows of which a column
/// was forgotten: that may have been what kept them from being shown.
pub fn forget_dropped(conn: &Connection, all: &Tables) -> rusqlite::Result<Forgotten> {
    let mut forgotten = Forgotten::new();
    for id in tables(conn)? {
        let entry = all.entry(id);
        if entry.is_dropped {
            conn.prepare_cached(DELETE_TABLE)?.execute([id])?;
            continue;
        }
        for column in &entry.dropped {
            let mut statement = conn.prepare_cached(DELETE_COLUMN)?;
            let keys = statement
                .query_map((id, column.0), |row| Ok(Key::from(row.get_ref(0)?.as_blob()?)))?;
            let keys = keys.collect::<rusqlite::Result<Vec<Key>>>()?;
            if !keys.is_empty() {
                forgotten.entry(id).or_default().extend(keys);
            }
        }
    }
    Ok(forgotten)
}

/// Puts values in place of those that the row had parked. `reason` says why SQLite refused the
/// row; `None`: the schema does not know the place.
pub fn write<'a>(
    conn: &Connection,
    (table, key): (TableId, &[u8]),
    values: impl IntoIterator<Item = (ColumnId, &'a Value, Option<&'a str>)>,
) -> rusqlite::Result<()> {
    conn.prepare_cached(DELETE)?.execute((table, key))?;
    let mut statement = conn.prepare_cached(INSERT)?;
    for (column, value, reason) in values {
        statement.execute((table, key, column.0, Bound(value), reason))?;
    }
    Ok(())
}
