//! Opens the database: the directory and its lock, the writer's connection and its settings, and
//! whether the file is ours, whole and of our version.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tracing::warn;

use super::database::may_be_torn;
use super::schema::SchemaError;
use super::{functions, guard, limits, migrate, vfs};
use crate::types::{ClusterId, Epoch, NodeId, Scope};

/// The database's file in the data directory.
pub const DATABASE_FILE: &str = "tribune.db";
/// The file that is locked for as long as a node uses the data directory. It holds the process id.
pub const LOCK_FILE: &str = "tribune.lock";

/// The oldest SQLite we run on: before it a checkpoint could lose committed pages.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// How long the writer waits for a lock that another program holds on the file (a backup tool,
/// an sqlite3 shell) before the operation fails.
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// How many prepared statements a connection keeps.
const STATEMENTS_KEPT: usize = 256;

/// What opens a store.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OpenConfig {
    /// Where the database lives. Made with mode 0700 when it is missing.
    pub data_dir: PathBuf,
    /// The id that the node's certificate names. `None`: the one the database holds, or a new one.
    pub node: Option<NodeId>,
    /// What the node is called.
    pub name: String,
    /// The cluster that the node's certificate names. `None`: whichever the database holds.
    pub cluster: Option<ClusterId>,
    /// The epoch that a new database begins with; `None`: by the machine's clock. Simulated nodes
    /// have no clock but their own.
    pub first_epoch: Option<Epoch>,
    /// The region. When it changes, a new epoch begins.
    pub scope: Scope,
    /// Files, and directories of `*.sql` files, with the user's tables.
    pub schema: Vec<PathBuf>,
}

/// Why a store was not opened. Nothing that was there before has been changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "cannot use the data directory {path}: {source}; choose another with --data-dir, or let this user write there"
    )]
    Directory { path: String, source: io::Error },
    #[error(
        "another tribune (process {process}) uses the data directory {path}; stop it, or give this one its own with --data-dir"
    )]
    InUse { path: String, process: String },
    #[error(
        "{path} is not an SQLite database; move it away, and the node starts over from its peers"
    )]
    NotADatabase { path: String },
    #[error(
        "{path} belongs to another program (application_id {application_id}); choose another --data-dir"
    )]
    Foreign { path: String, application_id: i32 },
    #[error(
        "{path} was written by a newer tribune (its tables have version {found}, this program knows {known}); start that one, or restore a backup from before the upgrade"
    )]
    Newer { path: String, found: i32, known: i32 },
    #[error(
        "{path} was written by a build from before the first release (its tables have version {found}); move it away, and the node starts over from its peers"
    )]
    Unreleased { path: String, found: i32 },
    #[error("{path} is damaged ({detail}); move it away, and the node starts over from its peers")]
    Damaged { path: String, detail: String },
    #[error(
        "{path} is locked by another program; close whatever has it open (an sqlite3 shell, a backup)"
    )]
    Locked { path: String },
    #[error(
        "cannot read and write {path}: {detail}; check its owner, its mode and whether the disk is mounted read-only"
    )]
    NotWritable { path: String, detail: String },
    #[error(
        "{path} belongs to node {held}, but the certificate or configuration names node {wanted}; use that node's own data directory, or its own certificate"
    )]
    OtherNode { path: String, held: NodeId, wanted: NodeId },
    #[error(
        "{path} belongs to cluster {held}, but the certificate names cluster {wanted}; use another --data-dir to join that cluster"
    )]
    OtherCluster { path: String, held: ClusterId, wanted: ClusterId },
    #[error(
        "SQLite {found} is too old: before 3.51.3 a checkpoint can damage the database; build with the bundled one"
    )]
    TooOld { found: &'static str },
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error(
        "cannot write this node's rows in {path} under a new epoch: {detail}; nothing was changed"
    )]
    Epoch { path: String, detail: String },
    #[error("cannot open {path}: {source}")]
    Sqlite { path: String, source: rusqlite::Error },
}

impl OpenError {
    /// Sorts what SQLite said while the database at `path` was opened.
    pub(super) fn of(path: &str, error: rusqlite::Error) -> Self {
        let path = path.to_owned();
        let detail = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::NotADatabase { path },
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged { path, detail },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked { path },
            Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
                Self::NotWritable { path, detail }
            }
            _ => Self::Sqlite { path, source: error },
        }
    }
}

/// The lock on a data directory. It ends with the process, however that ends.
#[derive(Debug)]
pub struct DirectoryLock {
    // Held open: closing the file gives the lock back.
    _file: File,
}

/// Makes the data directory if it is missing, and takes its lock.
pub fn lock_directory(data_dir: &Path) -> Result<DirectoryLock, OpenError> {
    let path = data_dir.display().to_string();
    let failed = |source| OpenError::Directory { path: path.clone(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(failed)?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(data_dir.join(LOCK_FILE))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut process = String::new();
            // A lock without a readable number in it is a lock all the same.
            let _ = file.read_to_string(&mut process);
            let process = process.trim();
            let process = if process.is_empty() { "unknown" } else { process };
            return Err(OpenError::InUse { path, process: process.to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0).map_err(failed)?;
    file.rewind().map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(DirectoryLock { _file: file })
}

/// Where a database says, twice, whether its commits go to a log first: 2, or into itself: 1.
pub(super) const HEADER_JOURNAL: u64 = 18;

/// Opens the writer's connection on a database file, and looks whether the file is whole where the
/// machine may have gone down under it.
pub fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    check_sqlite(rusqlite::version_number(), rusqlite::version())?;
    let shown = path.display().to_string();
    set_foreign_log_aside(path)
        .map_err(|source| OpenError::Directory { path: shown.clone(), source })?;
    let was_left_open = has_log(path);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let resolved =
        resolve(path).map_err(|source| OpenError::Directory { path: shown.clone(), source })?;
    let conn = vfs::register()
        .and_then(|vfs| Connection::open_with_flags_and_vfs(resolved, flags, vfs))
        .map_err(|error| OpenError::of(&shown, error))?;
    conn.busy_timeout(BUSY_WAIT).map_err(|error| OpenError::of(&shown, error))?;
    // Before the first setting that would change the file.
    migrate::check(&conn, &shown)?;
    set_up_writer(&conn, &shown)?;
    if was_left_open && may_be_torn(&conn, path) {
        check_whole(&conn, &shown)?;
    }
    Ok(conn)
}

/// Opens a database in memory with the writer's settings: for tests and simulations.
pub fn open_memory() -> Result<Connection, OpenError> {
    check_sqlite(rusqlite::version_number(), rusqlite::version())?;
    let conn = Connection::open_in_memory().map_err(|error| OpenError::of(":memory:", error))?;
    settle(&conn).map_err(|error| OpenError::of(":memory:", error))?;
    Ok(conn)
}

/// Opens a connection that can only read.
pub fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY_WAIT)?;
    conn.pragma_update(None, "query_only", true)?;
    settle(&conn)?;
    Ok(conn)
}

/// Returns where SQLite keeps the write-ahead log of a database.
pub fn wal_path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    path.into()
}

/// Tells whether a database has a write-ahead log beside it: whether it was not closed in order.
pub fn has_log(database: &Path) -> bool {
    std::fs::metadata(wal_path(database)).is_ok_and(|wal| wal.len() > 0)
}

/// Moves a log away that cannot be the database's own: its header says that it has none. Somebody
/// copied a backup over the database of a node that was killed, and SQLite would write the pages
/// of the old one over those of the backup. A copy that SQLite's `.backup` made says that it has a
/// log, and cannot be told from the database that was there: `tribune restore` removes the old log.
fn set_foreign_log_aside(path: &Path) -> io::Result<()> {
    let mut journal = [0; 2];
    let is_read =
        File::open(path).and_then(|file| file.read_exact_at(&mut journal, HEADER_JOURNAL));
    if is_read.is_err() || journal != [1, 1] || !has_log(path) {
        return Ok(());
    }
    let log = wal_path(path);
    let aside = (0..)
        .map(|count| log.with_extension(format!("db-wal.not-its-own-{count}")))
        .find(|aside| !aside.exists())
        .expect("the numbers do not end");
    std::fs::rename(&log, &aside)?;
    warn!(
        log = %log.display(), aside = %aside.display(),
        "The write-ahead log belongs to a database that was there before: it is moved aside, and what stands in it alone is lost; to put a backup in place, use tribune restore"
    );
    Ok(())
}

/// The directory may be reached through links; the file itself may not be one, so that nobody can
/// point us at a file of theirs.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        (None, _) | (_, None) => Err(io::Error::from(io::ErrorKind::InvalidInput)),
    }
}

fn check_sqlite(number: i32, found: &'static str) -> Result<(), OpenError> {
    if number < SQLITE_VERSION_MIN { Err(OpenError::TooOld { found }) } else { Ok(()) }
}

fn set_up_writer(conn: &Connection, path: &str) -> Result<(), OpenError> {
    let failed = |error| OpenError::of(path, error);
    let mode: String = conn
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(failed)?;
    if !mode.eq_ignore_ascii_case("wal") {
        let detail = format!("its journal mode stays '{mode}'");
        return Err(OpenError::NotWritable { path: path.to_owned(), detail });
    }
    // A commit is answered, and told to peers, only once it would survive the loss of power.
    conn.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    // The writer decides when to checkpoint: see `maintain.rs`.
    conn.pragma_update(None, "wal_autocheckpoint", 0).map_err(failed)?;
    // After a checkpoint the log's file shrinks to this; it is written again from its start.
    conn.pragma_update(None, "journal_size_limit", 16 << 20).map_err(failed)?;
    conn.pragma_update(None, "cache_size", -16_384).map_err(failed)?;
    settle(conn).map_err(failed)?;
    // What a statement on a million rows would need to be taken back alone, or to be sorted, goes to
    // a file from some size on; below it this costs nothing.
    conn.pragma_update(None, "temp_store", "FILE").map_err(failed)
}

/// Settings of every connection.
pub(super) fn settle(conn: &Connection) -> rusqlite::Result<()> {
    // A stray write through a mapping would damage the file; a page read once stays as it was.
    conn.pragma_update(None, "mmap_size", 0)?;
    conn.pragma_update(None, "cell_size_check", true)?;
    // Merges write rows in any order; what refers to what is the user's business.
    conn.pragma_update(None, "foreign_keys", false)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    // A default in double quotes is a mistyped name. Statements may go on quoting texts so: there
    // are clients that do.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    guard::admit(conn)?;
    functions::bound(conn)?;
    limits::limit(conn)
}

/// Reads the whole file: half a second for a million rows. So it is done after a loss of power or
/// in a copy, and not after a kill, since the kernel holds what a killed process wrote.
fn check_whole(conn: &Connection, path: &str) -> Result<(), OpenError> {
    let detail: String = conn
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| OpenError::of(path, error))?;
    if detail == "ok" {
        return Ok(());
    }
    Err(OpenError::Damaged { path: path.to_owned(), detail })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_directory_is_made_for_this_user_alone_and_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        let lock = lock_directory(&data).unwrap();
        assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
        let error = lock_directory(&data).unwrap_err();
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(lock);
        lock_directory(&data).unwrap();
    }

    #[test]
    fn a_directory_that_is_a_file_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = lock_directory(file.path()).unwrap_err();
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
        assert!(error.to_string().contains("--data-dir"), "{error}");
    }

    #[test]
    fn the_writer_is_durable_and_maps_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let conn = open_writer(&dir.path().join(DATABASE_FILE)).unwrap();
        let read = |pragma: &str| -> String {
            conn.query_row(&format!("PRAGMA {pragma}"), [], |row| {
                row.get_ref(0).map(|value| match value {
                    rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
                    other => other.as_i64().unwrap().to_string(),
                })
            })
            .unwrap()
        };
        let settings = ["journal_mode", "synchronous", "cell_size_check", "trusted_schema"];
        assert_eq!(settings.map(read), ["wal", "2", "1", "0"]);
        assert_eq!(["foreign_keys", "wal_autocheckpoint"].map(read), ["0", "0"]);
    }

    #[test]
    fn a_file_that_is_no_database_is_named_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DATABASE_FILE);
        std::fs::write(&path, "this is a letter to my aunt, and not a database".repeat(100))
            .unwrap();
        let error = open_writer(&path).unwrap_err();
        assert!(matches!(error, OpenError::NotADatabase { .. }), "{error}");
        assert!(error.to_string().contains("tribune.db"), "{error}");
    }

    #[test]
    fn damage_is_found_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DATABASE_FILE);
        let mut conn = open_writer(&path).unwrap();
        super::super::migrate::migrate(&mut conn, "x").unwrap();
        conn.execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5000)
             INSERT INTO __tribune_checks SELECT 'check' || i, '', '{}' FROM n;
             PRAGMA wal_checkpoint(TRUNCATE)",
        )
        .unwrap();
        // The log of a crashed process: one more commit that was never checkpointed.
        conn.execute("DELETE FROM __tribune_checks WHERE id = 'check1'", []).unwrap();
        let wal = std::fs::read(wal_path(&path)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        drop(conn);
        for page in 14..20 {
            bytes[page * 4096..page * 4096 + 200].fill(0x55);
        }
        std::fs::write(&path, &bytes).unwrap();
        std::fs::write(wal_path(&path), &wal).unwrap();
        let error = open_writer(&path).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    }

    #[test]
    fn a_file_that_another_program_holds_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DATABASE_FILE);
        let other = Connection::open(&path).unwrap();
        other.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
        let conn = Connection::open(&path).unwrap();
        conn.busy_timeout(Duration::ZERO).unwrap();
        let error = conn.execute_batch("BEGIN IMMEDIATE").unwrap_err();
        assert!(matches!(OpenError::of("x", error), OpenError::Locked { .. }));
    }

    #[test]
    fn an_old_sqlite_is_refused() {
        assert!(check_sqlite(3_051_002, "3.51.2").is_err());
        assert!(check_sqlite(rusqlite::version_number(), rusqlite::version()).is_ok());
    }
}
