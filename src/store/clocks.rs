//! The rows' clocks, and what writing them adds to the log of versions and to the tables' sums.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension};

use super::log::{Entries, Sweeper, Times};
use super::origins::Origins;
use super::sums::{Delta, Sums};
use super::tables::TableId;
use crate::crdt::{Key, RowClock, Stamp};

const SELECT: &str = "SELECT clock FROM __tribune_rows WHERE tbl = ?1 AND key = ?2";
const INSERT: &str = "INSERT INTO __tribune_rows (tbl, key, clock) VALUES (?1, ?2, ?3)";
/// Writes the record of a row that nobody is known to have written: table, key, record. Changes
/// nothing where somebody has.
pub const INSERT_NEW: &str =
    "INSERT OR IGNORE INTO __tribune_rows (tbl, key, clock) VALUES (?1, ?2, ?3)";
const UPDATE: &str = "UPDATE __tribune_rows SET clock = ?3 WHERE tbl = ?1 AND key = ?2";
const DELETE: &str = "DELETE FROM __tribune_rows WHERE tbl = ?1 AND key = ?2";

/// How many bytes of clocks are kept in memory, about.
const HOT_BYTES_MAX: usize = 4 << 20;

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

/// Removes a row's clock, as if nobody had ever written the row. The log's names of it are idle.
pub fn remove(conn: &Connection, place: Place<'_>) -> rusqlite::Result<()> {
    conn.prepare_cached(DELETE)?.execute(place)?;
    Ok(())
}

/// The clocks that were written last: a row that is written is mostly written again. They are those
/// of the transaction under way, so a rollback forgets them all.
#[derive(Debug, Default)]
pub struct Hot {
    clocks: HashMap<(TableId, Key), RowClock>,
    bytes: usize,
}

impl Hot {
    /// Reads a row's clock: see [`read`].
    pub fn read(
        &self,
        conn: &Connection,
        origins: &Origins,
        (table, key): (TableId, &Key),
    ) -> rusqlite::Result<Option<RowClock>> {
        match self.clocks.get(&(table, Arc::clone(key))) {
            Some(clock) => Ok(Some(clock.clone())),
            None => read(conn, origins, table, key),
        }
    }

    /// Forgets one row, which is to be removed.
    pub fn forget_row(&mut self, (table, key): (TableId, &Key)) {
        self.clocks.remove(&(table, Arc::clone(key)));
    }

    pub fn forget(&mut self) {
        self.clocks.clear();
        self.bytes = 0;
    }

    fn put(&mut self, table: TableId, key: &Key, clock: &RowClock) {
        // A write of what is here already counts again: nothing worse than an earlier end.
        self.bytes += key.len() + 128 + 32 * clock.cells().count();
        if self.bytes > HOT_BYTES_MAX {
            self.forget();
        }
        self.clocks.insert((table, Arc::clone(key)), clock.clone());
    }
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
        hot: &mut Hot,
        (table, key): (TableId, &Key),
        (before, after): (Option<&RowClock>, &RowClock),
    ) -> rusqlite::Result<()> {
        hot.put(table, key, after);
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
