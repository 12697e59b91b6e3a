//! The writer's file system: SQLite's own, but for the write-ahead log, whose frames it gathers.
//!
//! SQLite appends a frame to the log with two calls, one of 24 bytes and one of a page, and a commit
//! is some frames. Here they become one call to the kernel when the commit is synced. Nothing else
//! changes: what is gathered is written before anything is read from the log, before its size is
//! asked for, before any sync, and before a commit's last frame is called written; so whoever reads
//! the log through another connection, or after a crash, finds what it would have found. A write
//! that fails later than SQLite asked for it fails the commit that it belongs to, all the same.
#![expect(unsafe_code, reason = "SQLite calls back with pointers; see each SAFETY below")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::slice;
use std::sync::OnceLock;

use rusqlite::ffi;

/// Calls a function that every file has.
macro_rules! call {
    ($file:expr, $name:ident $(, $argument:expr)*) => {{
        let (inner, methods) = inner($file);
        match methods.$name {
            Some(function) => function(inner $(, $argument)*),
            None => ffi::SQLITE_IOERR,
        }
    }};
}

#[cfg(test)]
pub mod disk;

/// What the file system is called when a connection is opened.
const NAME: &CStr = c"tribune";

/// From this size on frames do not wait for the sync.
const GATHERED_BYTES_MAX: usize = 48 * 1024;

/// SQLite's own file system takes a write that is longer for a full disk.
const WRITE_BYTES_MAX: usize = 0x1_ffff;

/// How large the pages of a database are at most.
const PAGE_BYTES_MAX: usize = 64 * 1024;

const _: () = assert!(GATHERED_BYTES_MAX + FRAME_HEADER_BYTES + PAGE_BYTES_MAX < WRITE_BYTES_MAX);

/// How long the header of a frame is, and where it says that the frame ends a commit: the number of
/// the database's pages after it, 0 in all other frames (<https://www.sqlite.org/fileformat2.html#walformat>).
const FRAME_HEADER_BYTES: usize = 24;
const FRAME_COMMIT: std::ops::Range<usize> = 4..8;

/// A file of ours, in memory that SQLite owns. The file of SQLite's own file system lies behind it.
#[repr(C)]
struct LogFile {
    methods: *const ffi::sqlite3_io_methods,
    gathered: *mut Gathered,
}

/// Writes that are one behind the other.
#[derive(Debug, Default)]
struct Gathered {
    start: i64,
    bytes: Vec<u8>,
    /// The header was written of a frame that ends a commit, and its page was not.
    ends_commit: bool,
    /// The log was read since the last write: what comes may be a header that is written again.
    was_read: bool,
}

/// What to do with a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Gather,
    /// Gather it, and write all of it.
    Finish,
    /// Write it by itself, now.
    Write,
}

impl Gathered {
    fn end(&self) -> i64 {
        self.start + self.bytes.len().cast_signed() as i64
    }

    /// Tells whether a write goes on where the last one ended.
    fn continues(&self, offset: i64) -> bool {
        !self.bytes.is_empty() && offset == self.end()
    }

    /// Says what to do with a write that goes on where the last one ended, or begins anew.
    fn step(&mut self, bytes: &[u8]) -> Step {
        let was_read = std::mem::take(&mut self.was_read);
        let ended_commit = std::mem::take(&mut self.ends_commit);
        if bytes.len() == FRAME_HEADER_BYTES {
            self.ends_commit = bytes[FRAME_COMMIT] != [0; 4];
            // A header that is read and written again, after its frame, has no page behind it.
            let is_again = self.bytes.is_empty() && was_read;
            return if is_again { Step::Write } else { Step::Gather };
        }
        let is_full = self.bytes.len() + bytes.len() >= GATHERED_BYTES_MAX;
        if ended_commit || is_full { Step::Finish } else { Step::Gather }
    }
}

/// A file system of ours, and the one that it stands on. SQLite sees the first part.
#[repr(C)]
struct LogSystem {
    ours: ffi::sqlite3_vfs,
    base: *mut ffi::sqlite3_vfs,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    // A log has no locks and no shared memory of its own, and is not mapped.
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// Makes the file system known to SQLite, and returns the name by which a connection asks for it.
pub fn register() -> rusqlite::Result<&'static CStr> {
    #[cfg(test)]
    if disk::is_recording() {
        return disk::register();
    }
    static REGISTERED: OnceLock<c_int> = OnceLock::new();
    let code = *REGISTERED.get_or_init(|| {
        // SAFETY: null asks for SQLite's default file system, which is never unregistered.
        unsafe { stand_on(ffi::sqlite3_vfs_find(ptr::null()), NAME) }
    });
    checked(code, NAME)
}

fn checked(code: c_int, name: &'static CStr) -> rusqlite::Result<&'static CStr> {
    match code {
        ffi::SQLITE_OK => Ok(name),
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

/// Makes a file system known that stands on another one. Returns SQLite's code.
///
/// # Safety
/// `base` is null or stays registered, and of its functions only `xOpen` looks at more of the table
/// that it is called with than `pAppData`.
unsafe fn stand_on(base: *mut ffi::sqlite3_vfs, name: &'static CStr) -> c_int {
    if base.is_null() {
        return ffi::SQLITE_ERROR;
    }
    // SAFETY: `base` points to a valid table.
    let mut ours = unsafe { *base };
    ours.zName = name.as_ptr();
    ours.szOsFile += size_of::<LogFile>() as c_int;
    ours.pNext = ptr::null_mut();
    ours.xOpen = Some(open);
    let system = Box::into_raw(Box::new(LogSystem { ours, base }));
    // SAFETY: the table is leaked, so SQLite may keep it.
    unsafe { ffi::sqlite3_vfs_register(&raw mut (*system).ours, 0) }
}

/// Opens a file: the log as one of ours, all others as SQLite does.
///
/// # Safety
/// Only SQLite calls it, with the table that [`stand_on`] registered, and with `file` pointing to
/// `szOsFile` bytes.
unsafe extern "C" fn open(
    system: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: the table is the first part of a `LogSystem`, whose base is registered.
    let (base, open) = unsafe {
        let base = (*system.cast::<LogSystem>()).base;
        (base, (*base).xOpen)
    };
    let Some(open) = open else { return ffi::SQLITE_CANTOPEN };
    if flags & ffi::SQLITE_OPEN_WAL == 0 {
        // SAFETY: `file` has more room than the base asks for; the rest is passed on.
        return unsafe { open(base, name, file, flags, out_flags) };
    }
    let ours = file.cast::<LogFile>();
    // SAFETY: `file` points to `szOsFile` bytes, so there is room for the base's file behind ours.
    let inner = unsafe { ours.add(1).cast::<ffi::sqlite3_file>() };
    // SAFETY: as above. A file whose open fails must not seem to be open.
    let code = unsafe {
        (*ours).methods = ptr::null();
        (*inner).pMethods = ptr::null();
        open(base, name, inner, flags, out_flags)
    };
    if code == ffi::SQLITE_OK {
        // SAFETY: `ours` is valid memory that nobody else knows yet.
        unsafe {
            (*ours).gathered = Box::into_raw(Box::default());
            (*ours).methods = &raw const METHODS;
        }
    }
    code
}

/// Returns the file of SQLite's own behind ours, with its functions.
///
/// # Safety
/// `file` was opened by [`open`] as a log, and is not closed.
unsafe fn inner(
    file: *mut ffi::sqlite3_file,
) -> (*mut ffi::sqlite3_file, &'static ffi::sqlite3_io_methods) {
    // SAFETY: it lies behind ours, is open, and its functions are a static table of SQLite's.
    unsafe {
        let inner = file.cast::<LogFile>().add(1).cast::<ffi::sqlite3_file>();
        (inner, &*(*inner).pMethods)
    }
}

/// Returns what is gathered of a file.
///
/// # Safety
/// As for [`inner`]; and the caller holds no other reference to it: SQLite calls one function of a
/// file at a time.
unsafe fn gathered<'a>(file: *mut ffi::sqlite3_file) -> &'a mut Gathered {
    // SAFETY: `open` put a box there, which `close` takes away.
    unsafe { &mut *(*file.cast::<LogFile>()).gathered }
}

/// Writes what is gathered. Whether or not that works, nothing is gathered after it: what failed is
/// no part of the log, and SQLite, which is told, writes it again when it tries again.
///
/// # Safety
/// As for [`inner`].
unsafe fn flush(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: the caller's promise.
    let gathered = unsafe { gathered(file) };
    if gathered.bytes.is_empty() {
        return ffi::SQLITE_OK;
    }
    let length = c_int::try_from(gathered.bytes.len()).unwrap_or(c_int::MAX);
    let bytes = gathered.bytes.as_ptr().cast::<c_void>();
    // SAFETY: the bytes stay where they are until they are cleared.
    let code = unsafe { call!(file, xWrite, bytes, length, gathered.start) };
    gathered.bytes.clear();
    code
}

/// Flushes, and goes on only if that worked.
macro_rules! flushed {
    ($file:expr) => {
        match flush($file) {
            ffi::SQLITE_OK => {}
            code => return code,
        }
    };
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe {
        let flushed = flush(file);
        let closed = call!(file, xClose);
        drop(Box::from_raw((*file.cast::<LogFile>()).gathered));
        (*file).pMethods = ptr::null();
        if flushed == ffi::SQLITE_OK { closed } else { flushed }
    }
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    to: *mut c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe {
        flushed!(file);
        gathered(file).was_read = true;
        call!(file, xRead, to, length, offset)
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    from: *const c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe {
        if !gathered(file).continues(offset) {
            flushed!(file);
        }
        let bytes = slice::from_raw_parts(from.cast::<u8>(), usize::try_from(length).unwrap_or(0));
        let gathered = gathered(file);
        let step = gathered.step(bytes);
        if step == Step::Write {
            return call!(file, xWrite, from, length, offset);
        }
        if gathered.bytes.is_empty() {
            gathered.start = offset;
        }
        gathered.bytes.extend_from_slice(bytes);
        if step == Step::Finish { flush(file) } else { ffi::SQLITE_OK }
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe {
        flushed!(file);
        call!(file, xTruncate, size)
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe {
        flushed!(file);
        call!(file, xSync, flags)
    }
}

unsafe extern "C" fn file_size(
    file: *mut ffi::sqlite3_file,
    size: *mut ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe {
        flushed!(file);
        call!(file, xFileSize, size)
    }
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xLock, level) }
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xUnlock, level) }
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, to: *mut c_int) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xCheckReservedLock, to) }
}

unsafe extern "C" fn file_control(
    file: *mut ffi::sqlite3_file,
    what: c_int,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe {
        flushed!(file);
        call!(file, xFileControl, what, argument)
    }
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xSectorSize) }
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xDeviceCharacteristics) }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};
    use rusqlite::{Connection, OpenFlags};

    use super::disk::Action;
    use super::*;

    fn open_at(path: &std::path::Path) -> Connection {
        let vfs = register().unwrap();
        let conn = Connection::open_with_flags_and_vfs(path, OpenFlags::default(), vfs).unwrap();
        conn.pragma_update(None, "journal_mode", "WAL").unwrap();
        conn.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)").unwrap();
        conn
    }

    #[test]
    fn a_commit_is_one_write_and_a_sync_and_none_is_too_long() {
        let dir = tempfile::tempdir().unwrap();
        disk::begin();
        let conn = open_at(&dir.path().join("db"));
        conn.execute_batch("CREATE INDEX i ON t (v); INSERT INTO t VALUES (1, 'a')").unwrap();
        let before = disk::count();
        conn.execute_batch("INSERT INTO t VALUES (2, 'b')").unwrap();
        let after = disk::count();
        let large = 3 * WRITE_BYTES_MAX;
        conn.execute("INSERT INTO t VALUES (3, zeroblob(?1))", [large.cast_signed()]).unwrap();
        let actions = disk::end().actions;
        let [(_, Action::Write { bytes, .. }), (_, Action::Sync)] = &actions[before..after] else {
            panic!("{:?}", &actions[before..after]);
        };
        assert!(bytes.len() >= 2 * (FRAME_HEADER_BYTES + 4_096), "{} bytes", bytes.len());
        let lengths = actions[after..].iter().filter_map(|(_, action)| match action {
            Action::Write { bytes, .. } => Some(bytes.len()),
            Action::Truncate { .. } | Action::Sync => None,
        });
        let lengths: Vec<usize> = lengths.collect();
        assert!(lengths.iter().all(|length| *length <= WRITE_BYTES_MAX), "{lengths:?}");
        assert!(lengths.iter().sum::<usize>() > large);
    }

    #[test]
    fn other_connections_see_each_commit_at_once_and_whole_also_without_syncs() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let conn = open_at(&path);
        conn.pragma_update(None, "synchronous", "OFF").unwrap();
        // So small that transactions spill, and write frames again with new checksums.
        conn.pragma_update(None, "cache_size", 5).unwrap();
        let other = Connection::open(&path).unwrap();
        let sum = "SELECT count(*), coalesce(sum(length(v)), 0) FROM t";
        let sum_of = |conn: &Connection| {
            conn.query_row(sum, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
        };
        for round in 0..60 {
            conn.execute_batch("BEGIN").unwrap();
            for _ in 0..rng.random_range(1..30) {
                let (id, length) = (rng.random_range(0..400_i64), rng.random_range(0..3_000_i64));
                conn.execute("REPLACE INTO t VALUES (?1, randomblob(?2))", (id, length)).unwrap();
                match rng.random_range(0..12) {
                    0 => conn.execute_batch("SAVEPOINT s; DELETE FROM t; ROLLBACK TO s").unwrap(),
                    1 => drop(sum_of(&conn).unwrap()),
                    _ => {}
                }
            }
            let end = if rng.random_bool(0.2) { "ROLLBACK" } else { "COMMIT" };
            conn.execute_batch(end).unwrap();
            // What a killed process would leave. The writer itself must not look first.
            let left = dir.path().join("left");
            std::fs::copy(&path, &left).unwrap();
            std::fs::copy(dir.path().join("db-wal"), dir.path().join("left-wal")).unwrap();
            let (seen, left) = (sum_of(&other).unwrap(), Connection::open(&left).unwrap());
            assert_eq!(sum_of(&left).unwrap(), seen, "seed {seed}");
            assert_eq!(sum_of(&conn).unwrap(), seen, "seed {seed}");
            drop(left);
            if round % 10 == 9 {
                conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
            }
            let check: String =
                other.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(check, "ok", "seed {seed}");
        }
    }
}
