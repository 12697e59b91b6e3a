//! Upkeep: the write-ahead log is moved into the database by the writer and nobody else, and how
//! large both have grown.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::hooks::Wal;
use tracing::warn;

use super::database::{Store, failed};
use super::open::wal_path;
use super::parked;
use super::waiting::Waiting;
use crate::crdt::storage::StorageError;

/// From here on a checkpoint is worth its while: [`Store::maintain`] makes one. At 4 KiB a page,
/// about a thousand pages; moving them takes a few milliseconds.
pub const WAL_BYTES_WORTH: u64 = 4 << 20;

/// Beyond this the log is emptied: users' queries that hold an old snapshot are ended, and the
/// writer waits for other readers, for as long as the busy time-out. It can only come to this while
/// there is always a reader; they may take turns.
pub const WAL_BYTES_MAX: u64 = 256 << 20;

const _: () = assert!(WAL_BYTES_WORTH < WAL_BYTES_MAX);

/// How long a sweep of the log of versions holds the write lock, and how long it goes on in all.
const SLICE: Duration = Duration::from_millis(50);
const SWEEP_TIME: Duration = Duration::from_secs(2);

/// The size of a database page: SQLite's default, which no setting of ours changes.
const PAGE_BYTES: u64 = 4_096;

/// How much of the write-ahead log waits to be moved. The file's size does not tell: it stays
/// when the log begins anew.
#[derive(Clone, Debug)]
pub(super) struct WalMeter {
    pages: Arc<AtomicU64>,
    next_bytes: u64,
    /// How large the log was when it was last moved as far as readers let it.
    moved_bytes: u64,
    /// See [`WAL_BYTES_MAX`]; more for a while after it could not be emptied.
    forced_bytes: u64,
    limit_bytes: u64,
    /// Tells users' queries that the log has to be emptied.
    emptying: Arc<Waiting>,
}

impl WalMeter {
    /// Counts from now on what a connection commits.
    pub fn watch(conn: &mut Connection) -> rusqlite::Result<Self> {
        let meter = Self {
            pages: Arc::default(),
            next_bytes: WAL_BYTES_WORTH,
            moved_bytes: 0,
            forced_bytes: WAL_BYTES_MAX,
            limit_bytes: WAL_BYTES_MAX,
            emptying: Arc::default(),
        };
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

    /// Returns from which size on a checkpoint is worth its while.
    fn next_bytes(&self) -> u64 {
        // The log began anew since the last one.
        if self.bytes() < self.moved_bytes { WAL_BYTES_WORTH } else { self.next_bytes }
    }

    /// Waits until the log has grown by what is worth a checkpoint. As long as there are readers it
    /// cannot begin anew: what is moved stays in it, and is no reason for another one.
    fn wait_for_more(&mut self, bytes: u64) {
        self.moved_bytes = bytes;
        self.next_bytes = bytes + WAL_BYTES_WORTH;
    }

    fn wait_for(&mut self, bytes: u64) {
        self.pages.store(0, Ordering::Relaxed);
        self.moved_bytes = 0;
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
    /// Whether a reader kept the log from being emptied, where that was asked for.
    pub is_held_up: bool,
}

impl Store {
    /// Keeps the write-ahead log small: call it between groups, after their callers were answered.
    /// Returns what it did, if there was anything to do.
    pub fn maintain(&mut self) -> Result<Option<Checkpoint>, StorageError> {
        // After the disk failed nothing is written, neither pages nor what was dropped.
        if self.broken.is_some() {
            return Ok(None);
        }
        self.tombstones_held();
        self.left_out();
        let checkpoint = self.keep_log_small();
        // A disk that failed is left alone; and what fails here is the disk.
        if self.broken.is_none()
            && let Err(error) = self.sweep_dropped().and_then(|()| self.sweep_log())
        {
            return Err(StorageError::Failed(self.note_fault(&error)));
        }
        checkpoint
    }

    /// Sweeps the log of versions for as long as there is much to do and nobody waits. Each commit
    /// sweeps as much as it leaves idle, so this is what many of them that were too small have left.
    fn sweep_log(&mut self) -> rusqlite::Result<()> {
        let begun = Instant::now();
        while self.sweeper.is_due() && !self.gate.is_waited_for() && begun.elapsed() < SWEEP_TIME {
            let transaction = self.conn.unchecked_transaction()?;
            let slice = Instant::now();
            while self.sweeper.is_due() && !self.gate.is_waited_for() && slice.elapsed() < SLICE {
                self.sweeper.run(&self.conn, &self.origins)?;
            }
            transaction.commit()?;
        }
        Ok(())
    }

    fn keep_log_small(&mut self) -> Result<Option<Checkpoint>, StorageError> {
        let bytes = self.wal.bytes();
        if bytes >= self.wal.forced_bytes {
            return self.empty_log(bytes).map(Some);
        }
        if bytes < self.wal.next_bytes() {
            return Ok(None);
        }
        // Readers keep what they read; the log begins anew once they are through.
        let checkpoint = self.run_checkpoint("PASSIVE")?;
        self.wal.wait_for_more(bytes);
        Ok(Some(checkpoint))
    }

    /// Moves the whole log into the database and empties it, waiting for readers as long as the
    /// busy time-out. Call it before the node stops, and before a file copy is made.
    pub fn checkpoint(&mut self) -> Result<Checkpoint, StorageError> {
        if let Some(fault) = &self.broken {
            return Err(StorageError::Failed(fault.clone()));
        }
        let checkpoint = self.run_checkpoint("TRUNCATE")?;
        self.wal.wait_for(WAL_BYTES_WORTH);
        Ok(checkpoint)
    }

    /// Returns since when the log has to be emptied, for whoever may hold that up by reading.
    pub fn log_waits(&self) -> Arc<Waiting> {
        Arc::clone(&self.wal.emptying)
    }

    fn empty_log(&mut self, bytes: u64) -> Result<Checkpoint, StorageError> {
        self.wal.emptying.begin();
        let emptied = self.checkpoint();
        self.wal.emptying.renew(false);
        let is_empty = emptied.as_ref().is_ok_and(|checkpoint| !checkpoint.is_held_up);
        // A reader that nobody can end must not make every group wait for the time-out.
        let more = if is_empty { 0 } else { bytes + self.wal.limit_bytes / 4 };
        self.wal.forced_bytes = self.wal.limit_bytes.max(more);
        if !is_empty {
            warn!(bytes, "The write-ahead log is large, and a reader keeps it from being emptied");
        }
        emptied
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
                let is_held_up = row.get(0)?;
                Ok(Checkpoint { pages: read(row, 1)?, moved: read(row, 2)?, is_held_up })
            })
            .map_err(failed)
    }
}

fn file_bytes_of_wal(database: &Path) -> u64 {
    fs::metadata(wal_path(database)).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::atomic::AtomicBool;

    use super::*;

    use crate::store::readers::{QueryError, QueryEvent, Readers};
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

    /// Writes for `TRIBUNE_TEST_SECONDS` (3) while there is always a reader, two of them in turns,
    /// and prints the log's size each second. With the variable set the limits are the real ones.
    #[test]
    #[allow(clippy::print_stderr, reason = "whoever sets the variable wants to see the figures")]
    fn the_log_stays_bounded_under_load_although_there_is_always_a_reader() {
        let given = std::env::var("TRIBUNE_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
        let mut trial = Trial::new(T);
        if given.is_none() {
            (trial.store.wal.limit_bytes, trial.store.wal.forced_bytes) = (16 << 20, 16 << 20);
        }
        let limit = trial.store.wal.limit_bytes;
        trial.write(&[FILL]);
        let readers = Readers::open(trial.store.path().unwrap(), 2).unwrap();
        readers.yield_to(&trial.store.log_waits());
        let is_over = AtomicBool::new(false);
        let (mut largest, mut ended) = (0, 0);
        std::thread::scope(|scope| {
            let reading: Vec<_> =
                (0..2).map(|_| scope.spawn(|| read_on(&readers, &is_over))).collect();
            let begun = Instant::now();
            let (mut second, mut rows) = (0, 0_u64);
            while begun.elapsed() < Duration::from_secs(given.unwrap_or(3)) {
                trial.write(&[FILL]);
                trial.store.maintain().unwrap();
                rows += 6;
                let bytes = trial.store.stats().unwrap().wal_bytes;
                largest = largest.max(bytes);
                if given.is_some() && begun.elapsed().as_secs() > second {
                    second = begun.elapsed().as_secs();
                    eprintln!("{second:4} s: {:4} MiB in the log, {rows} MB written", bytes >> 20);
                }
            }
            is_over.store(true, Ordering::Relaxed);
            ended = reading.into_iter().map(|thread| thread.join().unwrap()).sum();
        });
        eprintln!("at most {} MiB; {ended} queries were ended", largest >> 20);
        assert!(ended > 0, "the readers were in the way");
        assert!(largest < limit + (32 << 20), "{largest} bytes");
    }

    /// Reads without end, again and again. Returns how often it was ended.
    fn read_on(readers: &Readers, is_over: &AtomicBool) -> usize {
        const ENDLESS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
            SELECT count(*) FROM n, t";
        let mut ended = 0;
        while !is_over.load(Ordering::Relaxed) {
            let soon = Some(Instant::now() + Duration::from_secs(20));
            let soon = soon.filter(|_| std::env::var("TRIBUNE_TEST_SECONDS").is_ok());
            let soon = soon.or(Some(Instant::now() + Duration::from_secs(2)));
            let result = readers.query(&plain(ENDLESS), soon, &mut |_| ControlFlow::Continue(()));
            ended += usize::from(result == Err(QueryError::Yielded));
        }
        ended
    }

    #[test]
    fn readers_that_take_turns_do_not_make_every_commit_a_checkpoint() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id) VALUES (50)"]);
        let path = trial.store.path().unwrap().to_owned();
        let open = || {
            let conn = crate::store::open::open_reader(&path).unwrap();
            conn.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
            conn
        };
        let mut reader = open();
        trial.write(&[FILL]);
        let mut checkpoints = 0;
        for id in 100..120 {
            // The next begins before the last has ended, and all is moved but for the newest.
            drop(std::mem::replace(&mut reader, open()));
            checkpoints += usize::from(trial.store.maintain().unwrap().is_some());
            trial.write(&[&format!("INSERT INTO t (id) VALUES ({id})")]);
        }
        assert_eq!(checkpoints, 1);
    }

    #[test]
    fn after_the_disk_failed_nothing_is_moved_and_the_end_is_not_in_order() {
        let mut trial = Trial::new(T);
        trial.write(&[FILL]);
        let database = trial.store.path().unwrap().to_owned();
        trial.store.broken = Some("on purpose".to_owned());
        assert_eq!(trial.store.maintain().unwrap(), None);
        assert!(trial.store.checkpoint().unwrap_err().to_string().contains("on purpose"));
        let before = std::fs::read(&database).unwrap();
        let Trial { store, dir, .. } = trial;
        drop(store);
        assert!(std::fs::read(&database).unwrap() == before, "the database was written");
        assert!(super::file_bytes_of_wal(&database) > 4 << 20, "the log is left as it is");
        let life = std::fs::read_to_string(database.with_file_name("tribune.life")).unwrap();
        assert!(life.ends_with("open\n"), "{life}");
        drop(dir);
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
