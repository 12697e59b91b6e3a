//! The rows' clocks, and the index that finds what is left of an origin's versions.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension};

use super::origins::{Ordinal, Origins};
use super::tables::TableId;
use crate::crdt::{RowClock, Stamp};

const SELECT: &str = "SELECT clock FROM __tribune_rows WHERE tbl = ?1 AND key = ?2";
const INSERT: &str = "INSERT INTO __tribune_rows (tbl, key, origin, version, clock)
    VALUES (?1, ?2, ?3, ?4, ?5)";
const UPDATE: &str = "UPDATE __tribune_rows SET origin = ?3, version = ?4, clock = ?5
    WHERE tbl = ?1 AND key = ?2";
const DELETE: &str = "DELETE FROM __tribune_rows WHERE tbl = ?1 AND key = ?2";
const INSERT_STAMP: &str = "INSERT OR IGNORE INTO __tribune_stamps (origin, version, tbl, key)
    VALUES (?1, ?2, ?3, ?4)";
const DELETE_STAMP: &str = "DELETE FROM __tribune_stamps
    WHERE origin = ?1 AND version = ?2 AND tbl = ?3 AND key = ?4";

/// Reads a row's clock; `None`: nobody ever wrote the row.
pub fn read(conn: &Connection, table: TableId, key: &[u8]) -> rusqlite::Result<Option<RowClock>> {
    conn.prepare_cached(SELECT)?
        .query_row((table, key), |row| decode(row.get_ref(0)?.as_blob()?))
        .optional()
}

/// Reads a clock's record.
pub fn decode(record: &[u8]) -> rusqlite::Result<RowClock> {
    RowClock::from_bytes(record).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, Box::new(error))
    })
}

/// Writes a row's clock in place of the one that it had.
pub fn write(
    conn: &Connection,
    origins: &mut Origins,
    (table, key): (TableId, &[u8]),
    before: Option<&RowClock>,
    after: &RowClock,
) -> rusqlite::Result<()> {
    let stamps = after.stamps();
    let mut stamps = stamps.iter();
    // The record itself carries one stamp, which is all of them in most rows.
    let first = stamps.next().expect("a clock has at least the stamp of its life");
    let sql = if before.is_some() { UPDATE } else { INSERT };
    let (ordinal, version) = number(origins, first);
    conn.prepare_cached(sql)?.execute((table, key, ordinal, version, after.to_bytes()))?;
    let further: Vec<Stamp> = stamps.copied().collect();
    let held = before.map(further_of).unwrap_or_default();
    change_stamps(conn, origins, (table, key), &held, &further)
}

/// Removes a row's clock, as if nobody had ever written the row.
pub fn remove(
    conn: &Connection,
    origins: &mut Origins,
    (table, key): (TableId, &[u8]),
    held: &RowClock,
) -> rusqlite::Result<()> {
    conn.prepare_cached(DELETE)?.execute((table, key))?;
    change_stamps(conn, origins, (table, key), &further_of(held), &[])
}

fn further_of(clock: &RowClock) -> Vec<Stamp> {
    clock.stamps().into_iter().skip(1).collect()
}

fn change_stamps(
    conn: &Connection,
    origins: &mut Origins,
    (table, key): (TableId, &[u8]),
    held: &[Stamp],
    wanted: &[Stamp],
) -> rusqlite::Result<()> {
    for stamp in held.iter().filter(|stamp| !wanted.contains(stamp)) {
        let (ordinal, version) = number(origins, stamp);
        conn.prepare_cached(DELETE_STAMP)?.execute((ordinal, version, table, key))?;
    }
    for stamp in wanted.iter().filter(|stamp| !held.contains(stamp)) {
        let (ordinal, version) = number(origins, stamp);
        conn.prepare_cached(INSERT_STAMP)?.execute((ordinal, version, table, key))?;
    }
    Ok(())
}

fn number(origins: &mut Origins, stamp: &Stamp) -> (Ordinal, i64) {
    (origins.ordinal(stamp.origin), stamp.version.0.cast_signed())
}
