//! The rows' clocks, and the index that finds what is left of an origin's versions.

use std::collections::BTreeMap;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension};

use super::origins::{Ordinal, Origins};
use super::tables::TableId;
use crate::crdt::{RowClock, Stamp};
use crate::types::Wall;

const SELECT: &str = "SELECT clock FROM __tribune_rows WHERE tbl = ?1 AND key = ?2";
const INSERT: &str = "INSERT INTO __tribune_rows (tbl, key, origin, version, at, clock)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const UPDATE: &str = "UPDATE __tribune_rows SET origin = ?3, version = ?4, at = ?5, clock = ?6
    WHERE tbl = ?1 AND key = ?2";
const DELETE: &str = "DELETE FROM __tribune_rows WHERE tbl = ?1 AND key = ?2";
const INSERT_STAMP: &str = "INSERT OR IGNORE INTO __tribune_stamps (origin, version, tbl, key, at)
    VALUES (?1, ?2, ?3, ?4, ?5)";
const DELETE_STAMP: &str = "DELETE FROM __tribune_stamps
    WHERE origin = ?1 AND version = ?2 AND tbl = ?3 AND key = ?4";
const SELECT_TIME: &str = "SELECT at FROM __tribune_rows
        WHERE tbl = ?3 AND key = ?4 AND origin = ?1 AND version = ?2
    UNION ALL
    SELECT at FROM __tribune_stamps
        WHERE tbl = ?3 AND key = ?4 AND origin = ?1 AND version = ?2";

/// A row's place: its table, and its packed key.
pub type Place<'a> = (TableId, &'a [u8]);

/// When the commits of stamps were made that are new in a transaction.
pub type Times = BTreeMap<Stamp, Wall>;

/// Reads a row's clock; `None`: nobody ever wrote the row.
pub fn read(conn: &Connection, table: TableId, key: &[u8]) -> rusqlite::Result<Option<RowClock>> {
    conn.prepare_cached(SELECT)?
        .query_row((table, key), |row| decode(row.get_ref(0)?.as_blob()?))
        .optional()
}

/// Reads a clock's record.
pub fn decode(record: &[u8]) -> rusqlite::Result<RowClock> {
    RowClock::from_bytes(record)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, Box::new(error)))
}

/// Writes a row's clock in place of the one that it had. `times` has the stamps that the row did
/// not have before.
pub fn write(
    conn: &Connection,
    origins: &mut Origins,
    place: Place<'_>,
    (before, after): (Option<&RowClock>, &RowClock),
    times: &Times,
) -> rusqlite::Result<()> {
    let stamps = in_order(after);
    let held = before.map(in_order).unwrap_or_default();
    // The record itself carries the first stamp, which is all of them in most rows.
    let (first, further) = stamps.split_first().expect("a clock has the stamp of its life");
    let held_further = held.get(1..).unwrap_or_default();
    // Times are looked up before anything is written over.
    let mut timed = Vec::with_capacity(further.len());
    for stamp in further.iter().filter(|stamp| !held_further.contains(stamp)) {
        timed.push((*stamp, time_of(conn, origins, place, *stamp, times)?));
    }
    let at = time_of(conn, origins, place, *first, times)?;
    let sql = if before.is_some() { UPDATE } else { INSERT };
    let (table, key) = place;
    let (ordinal, version) = number(origins, *first);
    let record = after.to_bytes();
    conn.prepare_cached(sql)?.execute((table, key, ordinal, version, at, record))?;
    for stamp in held_further.iter().filter(|stamp| !further.contains(stamp)) {
        forget(conn, origins, place, *stamp)?;
    }
    for (stamp, at) in timed {
        let (ordinal, version) = number(origins, stamp);
        conn.prepare_cached(INSERT_STAMP)?.execute((ordinal, version, table, key, at))?;
    }
    Ok(())
}

/// Removes a row's clock, as if nobody had ever written the row.
pub fn remove(
    conn: &Connection,
    origins: &mut Origins,
    place: Place<'_>,
    held: &RowClock,
) -> rusqlite::Result<()> {
    conn.prepare_cached(DELETE)?.execute(place)?;
    for stamp in in_order(held).into_iter().skip(1) {
        forget(conn, origins, place, stamp)?;
    }
    Ok(())
}

/// Lists a clock's stamps, the newest first: a row that is written again and again changes that
/// one, and the others stay where they are.
pub(super) fn in_order(clock: &RowClock) -> Vec<Stamp> {
    let mut stamps: Vec<Stamp> = clock.stamps().into_iter().collect();
    stamps.sort_unstable_by_key(|stamp| std::cmp::Reverse((stamp.version, stamp.origin)));
    stamps
}

fn forget(
    conn: &Connection,
    origins: &mut Origins,
    (table, key): Place<'_>,
    stamp: Stamp,
) -> rusqlite::Result<()> {
    let (ordinal, version) = number(origins, stamp);
    conn.prepare_cached(DELETE_STAMP)?.execute((ordinal, version, table, key))?;
    Ok(())
}

fn time_of(
    conn: &Connection,
    origins: &mut Origins,
    (table, key): Place<'_>,
    stamp: Stamp,
    times: &Times,
) -> rusqlite::Result<i64> {
    if let Some(at) = times.get(&stamp) {
        return Ok(at.0.cast_signed());
    }
    let (ordinal, version) = number(origins, stamp);
    let time = conn
        .prepare_cached(SELECT_TIME)?
        .query_row((ordinal, version, table, key), |row| row.get(0))
        .optional()?;
    Ok(time.unwrap_or(0))
}

fn number(origins: &mut Origins, stamp: Stamp) -> (Ordinal, i64) {
    (origins.ordinal(stamp.origin), stamp.version.0.cast_signed())
}
