//! The rows' clocks, and what writing them adds to the log of versions and to the tables' sums.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension};

use super::log::{Entries, Sweeper, Times};
use super::origins::Origins;
use super::sums::{Delta, Sums};
use super::tables::TableId;
use crate::crdt::{Key, RowClock, Stamp};

const SELECT: &str = "SELECT clock FROM __tribune_rows WHERE tbl = ?1 AND key = ?2";
const INSERT: &str = "INSERT OR IGNORE INTO __tribune_rows (tbl, key, clock) VALUES (?1, ?2, ?3)";
const UPDATE: &str = "UPDATE __tribune_rows SET clock = ?3 WHERE tbl = ?1 AND key = ?2";
const DELETE: &str = "DELETE FROM __tribune_rows WHERE tbl = ?1 AND key = ?2";

/// A row's place: its table, and its packed key.
pub type Place<'a> = (TableId, &'a [u8]);

/// Reads a row's clock; `None`: nobody ever wrote the row.
pub fn read(
    conn: &Connection,
    origins: &Origins,
    table: TableId,
    key: &[u8],
) -> rusqlite::Result<Option<RowClock>> {
    conn.prepare_cached(SELECT)?
        .query_row((table, key), |row| decode(origins, row.get_ref(0)?.as_blob()?))
        .optional()
}

/// Reads a clock's record.
pub fn decode(origins: &Origins, record: &[u8]) -> rusqlite::Result<RowClock> {
    RowClock::from_bytes(record, |number| origins.of_number(number.cast_signed()))
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, Box::new(error)))
}

/// Returns a clock's record.
pub fn encode(origins: &mut Origins, clock: &RowClock) -> Vec<u8> {
    clock.to_bytes(|origin| origins.ordinal(origin).cast_unsigned())
}

/// Writes the record of a row that nobody is known to have written. `false`: somebody has, and
/// nothing was written.
pub fn insert(conn: &Connection, (table, key): Place<'_>, record: &[u8]) -> rusqlite::Result<bool> {
    Ok(conn.prepare_cached(INSERT)?.execute((table, key, record))? > 0)
}

/// Removes a row's clock, as if nobody had ever written the row. The log's names of it are idle.
pub fn remove(conn: &Connection, place: Place<'_>) -> rusqlite::Result<()> {
    conn.prepare_cached(DELETE)?.execute(place)?;
    Ok(())
}

/// What the writes of one caller add to the log of versions and to the tables' sums.
#[derive(Debug, Default)]
pub struct Notes {
    pub log: Entries,
    pub sums: Delta,
}

impl Notes {
    /// Writes a row's clock in place of the one that it had.
    pub fn write_clock(
        &mut self,
        conn: &Connection,
        origins: &mut Origins,
        (table, key): (TableId, &Key),
        (before, after): (Option<&RowClock>, &RowClock),
    ) -> rusqlite::Result<()> {
        let record = encode(origins, after);
        let sql = if before.is_some() { UPDATE } else { INSERT };
        conn.prepare_cached(sql)?.execute((table, &**key, record))?;
        let has = |clock: Option<&RowClock>, stamp: Stamp| {
            clock.is_some_and(|clock| clock.has_stamp(stamp))
        };
        for stamp in after.stamps().into_iter().filter(|stamp| !has(before, *stamp)) {
            self.log.add(stamp, table, key);
        }
        let held = before.map(RowClock::stamps).unwrap_or_default();
        for _ in held.into_iter().filter(|stamp| !after.has_stamp(*stamp)) {
            self.log.overwrite();
        }
        Ok(())
    }

    /// Makes the notes part of the transaction.
    pub fn close(
        self,
        conn: &Connection,
        origins: &mut Origins,
        (sums, sweeper): (&mut Sums, &mut Sweeper),
        times: &Times,
    ) -> rusqlite::Result<()> {
        sweeper.owe(self.log.write(conn, origins, times)?);
        sums.add(self.sums);
        Ok(())
    }
}
