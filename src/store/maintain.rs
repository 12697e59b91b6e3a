//! Upkeep: the write-ahead log is moved into the database by the writer and nobody else, and how
//! large both have grown.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::Connection;
use rusqlite::hooks::Wal;

use super::database::{Store, failed};
use super::open::wal_path;
use super::parked;
use crate::crdt::storage::StorageError;

/// From here on a checkpoint is worth its while: [`Store::maintain`] makes one. At 4 KiB a page,
/// about a thousand pages; moving them takes a few milliseconds.
pub const WAL_BYTES_WORTH: u64 = 4 << 20;

/// Beyond this the log is emptied even if that makes the writer wait for readers, for as long as
/// the busy time-out. It can only come to this while a reader holds an old snapshot.
pub const WAL_BYTES_MAX: u64 = 256 << 20;

const _: () = assert!(WAL_BYTES_WORTH < WAL_BYTES_MAX);

/// The size of a database page: SQLite's default, which no setting of ours changes.
const PAGE_BYTES: u64 = 4_096;

/// How much of the write-ahead log waits to be moved. The file's size does not tell: it stays
/// when the log begins anew.
#[derive(Clone, Debug)]
pub(super) struct WalMeter {
    pages: Arc<AtomicU64>,
    next_bytes: u64,
}

impl WalMeter {
    /// Counts from now on what a connection commits.
    pub fn watch(conn: &mut Connection) -> rusqlite::Result<Self> {
        let meter = Self { pages: Arc::default(), next_bytes: WAL_BYTES_WORTH };
        let pages = Arc::clone(&meter.pages);
        conn.wal_hook(Some(move |_: &mut Wal, count: std::ffi::c_int| {
            pages.store(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        }))?;
        Ok(meter)
    }

    fn bytes(&self) -> u64 {
        self.pages.load(Ordering::Relaxed) * PAGE_BYTES
    }

    fn next_bytes(&self) -> u64 {
        self.next_bytes
    }

    fn wait_for(&mut self, bytes: u64) {
        self.pages.store(0, Ordering::Relaxed);
        self.next_bytes = bytes;
    }
}

/// How large a database is, and what it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreStats {
    pub database_bytes: u64,
    pub wal_bytes: u64,
    /// Pages that are free for reuse.
    pub free_bytes: u64,
    /// Rows with values that the schema does not know, and of these, rows that SQLite refuses.
    pub parked_rows: u64,
    pub quarantined_rows: u64,
}

/// What a checkpoint did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Checkpoint {
    /// Pages that were in the log.
    pub pages: u64,
    /// Pages of these that are in the database now. Fewer than `pages`: a reader still uses them.
    pub moved: u64,
}

impl Store {
    /// Keeps the write-ahead log small: call it between groups, after their callers were answered.
    /// Returns what it did, if there was anything to do.
    pub fn maintain(&mut self) -> Result<Option<Checkpoint>, StorageError> {
        let bytes = self.wal.bytes();
        if bytes >= WAL_BYTES_MAX {
            return self.checkpoint().map(Some);
        }
        if bytes < self.wal.next_bytes() {
            return Ok(None);
        }
        // Readers keep what they read; the log begins anew once they are through.
        let checkpoint = self.run_checkpoint("PASSIVE")?;
        // What a reader holds back is not tried again for every group.
        let held_back = checkpoint.pages - checkpoint.moved.min(checkpoint.pages);
        self.wal.wait_for(held_back * PAGE_BYTES + WAL_BYTES_WORTH);
        Ok(Some(checkpoint))
    }

    /// Moves the whole log into the database and empties it, waiting for readers as long as the
    /// busy time-out. Call it before the node stops, and before a file copy is made.
    pub fn checkpoint(&mut self) -> Result<Checkpoint, StorageError> {
        let checkpoint = self.run_checkpoint("TRUNCATE")?;
        self.wal.wait_for(WAL_BYTES_WORTH);
        Ok(checkpoint)
    }

    /// Returns sizes and counts; it reads the database, so ask every few seconds at most.
    pub fn stats(&self) -> Result<StoreStats, StorageError> {
        let pragma = |name: &str| -> Result<u64, StorageError> {
            let read = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
            let value = self.conn.pragma_query_value(None, name, read).map_err(failed)?;
            Ok(value.cast_unsigned())
        };
        let page_bytes = pragma("page_size")?;
        let (parked_rows, quarantined_rows) = parked::count(&self.conn).map_err(failed)?;
        Ok(StoreStats {
            database_bytes: pragma("page_count")? * page_bytes,
            wal_bytes: self.path().map_or(0, file_bytes_of_wal),
            free_bytes: pragma("freelist_count")? * page_bytes,
            parked_rows,
            quarantined_rows,
        })
    }

    fn run_checkpoint(&mut self, mode: &str) -> Result<Checkpoint, StorageError> {
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        // No log (a database in memory) is told as -1 pages.
        let read = |row: &rusqlite::Row<'_>, at| {
            row.get::<_, i64>(at).map(|pages| u64::try_from(pages).unwrap_or(0))
        };
        self.conn
            .query_row(&sql, [], |row| {
                Ok(Checkpoint { pages: read(row, 1)?, moved: read(row, 2)? })
            })
            .map_err(failed)
    }
}

fn file_bytes_of_wal(database: &Path) -> u64 {
    fs::metadata(wal_path(database)).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use crate::store::readers::{QueryEvent, Readers};
    use crate::store::trial::{T, Trial, plain};

    const FILL: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 6)
        REPLACE INTO t SELECT i, randomblob(1000000), 'x' FROM n";

    #[test]
    fn the_log_is_moved_when_it_is_worth_it() {
        let mut trial = Trial::new(T);
        assert_eq!(trial.store.maintain().unwrap(), None);
        trial.write(&[FILL]);
        let checkpoint = trial.store.maintain().unwrap().unwrap();
        assert!(checkpoint.pages > 1_000 && checkpoint.moved == checkpoint.pages, "{checkpoint:?}");
        trial.write(&["INSERT INTO t (id) VALUES (50)"]);
        assert_eq!(trial.store.maintain().unwrap(), None, "the log began anew");
        let stats = trial.store.stats().unwrap();
        assert!(stats.database_bytes > 6_000_000 && stats.wal_bytes > 4_000_000, "{stats:?}");
        trial.store.checkpoint().unwrap();
        assert_eq!(trial.store.stats().unwrap().wal_bytes, 0);
    }

    #[test]
    fn a_reader_that_holds_a_snapshot_is_not_waited_for_at_once() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id) VALUES (50)"]);
        let readers = Readers::open(trial.store.path().unwrap(), 1).unwrap();
        readers
            .query(&plain("SELECT id FROM t"), None, &mut |event| {
                // The snapshot begins with the first row.
                if !matches!(event, QueryEvent::Row(_)) {
                    return std::ops::ControlFlow::Continue(());
                }
                trial.write(&[FILL]);
                let checkpoint = trial.store.maintain().unwrap().unwrap();
                assert!(checkpoint.moved < checkpoint.pages, "{checkpoint:?}");
                trial.write(&["INSERT INTO t (id) VALUES (51)"]);
                assert_eq!(trial.store.maintain().unwrap(), None, "not again for every group");
                std::ops::ControlFlow::Break(())
            })
            .unwrap();
    }
}
