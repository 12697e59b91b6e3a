//! Copies a database into one file, from one snapshot, under a name of its own until it is whole
//! and synced. Backup and restore are two uses of this.

use std::ffi::{OsStr, OsString, c_int};
use std::fs::{File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, Seek};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::maintain::WAL_BYTES_MAX;
use super::open::{HEADER_JOURNAL, has_log, settle, wal_path};

/// How many pages are copied between two looks at the log, the disk and whoever wants it to end:
/// 4 MiB, which take a few milliseconds.
const STEP_PAGES: c_int = 1_024;

/// The copy is synced every so often. A node beside it syncs the disk with each group of commits,
/// and must not wait behind gigabytes of ours that the system has put off. Of 500 commits a second
/// beside a copy of 244 MiB the slowest took 40 to 65 ms with this, 200 to 280 ms without.
const SYNC_EVERY_BYTES: u64 = 16 << 20;

/// How large the write-ahead log may become while a snapshot of ours is held; beyond it the work is
/// given up. A little more, and the node would begin to wait for its readers. Only a disk much
/// slower than the node's own, or a flood of writes, lets it come to this.
const LOG_BYTES_MAX: u64 = WAL_BYTES_MAX / 8 * 7;

/// How often a name is tried that others write to, too.
const CLAIMS_MAX: u32 = 16;

/// What must stay free on the disk of a node beside which a copy is made; below it the copy fails.
pub const FREE_BYTES_MIN: u64 = 64 << 20;

/// Every how many steps of SQLite's virtual machine a check of the copy looks whether it should
/// end.
const CANCEL_STEPS: c_int = 100_000;

/// Who watches a long piece of work, and may end it.
pub struct Watch<'a> {
    pub progress: &'a mut dyn FnMut(Progress),
    pub is_cancelled: Arc<AtomicBool>,
}

/// How far a piece of work is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    pub doing: Doing,
    pub done: u64,
    /// 0: not known.
    pub total: u64,
}

/// What is going on. The comments say what is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doing {
    /// Bytes.
    Copying,
    /// Bytes.
    Receiving,
    /// Nothing is counted.
    Checking,
    /// Rows.
    Reading,
    /// Rows, of a number that is not known.
    Comparing,
}

/// What was copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copied {
    pub bytes: u64,
    /// How long the snapshot was held.
    pub held: Duration,
    /// How far the source's write-ahead log grew meanwhile, in bytes.
    pub wal_growth: u64,
}

/// Why there is no copy. Nothing is left of what was begun, unless it says otherwise, and the source
/// is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("{path} exists; --force replaces it")]
    Exists { path: String },
    #[error("{path} is not a file that could be replaced; name another")]
    NotAFile { path: String },
    #[error("{path} is a file of the node's database; name one outside of the data directory")]
    IsTheDatabase { path: String },
    #[error("another copy to {path} is under way; wait for its end, or name another file")]
    UnderWay { path: String },
    #[error("cannot write {path}: {source}")]
    Unwritable { path: String, source: io::Error },
    #[error(
        "there is not enough room in {directory}: the copy needs {} MiB, {} MiB are free",
        needed.div_ceil(1 << 20), free >> 20
    )]
    NoRoom { directory: String, needed: u64, free: u64 },
    #[error("the disk of {path} is full; nothing is left of the copy")]
    Full { path: String },
    #[error("writing {path} failed: {detail}; nothing is left of the copy")]
    WriteFailed { path: String, detail: String },
    #[error(
        "another program took {path} away from the copy; look who else writes to its directory"
    )]
    TakenAway { path: String },
    /// It is there all the same.
    #[error(
        "{path} is written and whole, but its directory cannot be synced ({detail}): a loss of power may still take it away"
    )]
    Unsynced { path: String, detail: String },
    #[error(
        "given up: the node wrote {} MiB meanwhile, all of which its log has to keep until the end; copy to a faster disk, or while less is written",
        grown >> 20
    )]
    TooSlow { grown: u64 },
    #[error(
        "given up: only {} MiB are free on the disk of {path}, and the node needs them",
        free >> 20
    )]
    NodeNeedsRoom { path: String, free: u64 },
    #[error("{path} is damaged ({detail})")]
    Damaged { path: String, detail: String },
    #[error("cannot read {path}: {detail}")]
    Unreadable { path: String, detail: String },
    #[error("interrupted; nothing is left of the copy")]
    Cancelled,
}

impl CopyError {
    /// Tells whether the one who asked has to ask otherwise.
    pub fn is_wrong_usage(&self) -> bool {
        match self {
            Self::Exists { .. }
            | Self::NotAFile { .. }
            | Self::IsTheDatabase { .. }
            | Self::Unwritable { .. } => true,
            Self::UnderWay { .. }
            | Self::NoRoom { .. }
            | Self::Full { .. }
            | Self::WriteFailed { .. }
            | Self::TakenAway { .. }
            | Self::Unsynced { .. }
            | Self::TooSlow { .. }
            | Self::NodeNeedsRoom { .. }
            | Self::Damaged { .. }
            | Self::Unreadable { .. }
            | Self::Cancelled => false,
        }
    }

    fn unwritable(path: &Path, source: io::Error) -> Self {
        let path = path.display().to_string();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            _ => Self::Unwritable { path, source },
        }
    }

    fn write_failed(path: &Path, source: &io::Error) -> Self {
        let path = path.display().to_string();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            _ => Self::WriteFailed { path, detail: source.to_string() },
        }
    }
}

/// A file on its way to a name. Until then it has another, and goes away when it is dropped.
#[derive(Debug)]
pub struct Partial {
    target: PathBuf,
    path: PathBuf,
    /// What is copied, for messages: when the copy is damaged, that was.
    of: String,
    /// Locked, so that two copies to one name do not write into each other. Held open until SQLite
    /// has closed the file: closing it would give up SQLite's own locks.
    file: File,
    is_published: bool,
}

impl Partial {
    /// Makes an empty file beside the target that only this user may read.
    pub fn create(target: &Path, of: &Path) -> Result<Self, CopyError> {
        let unwritable = |source| CopyError::unwritable(target, source);
        let Some(name) = target.file_name() else {
            return Err(CopyError::NotAFile { path: target.display().to_string() });
        };
        let directory = directory_of(target).canonicalize().map_err(unwritable)?;
        let target = directory.join(name);
        let path = directory.join(hidden(name));
        let unwritable = |source| CopyError::unwritable(&target, source);
        let under_way = || CopyError::UnderWay { path: target.display().to_string() };
        let file = claim(&path).map_err(unwritable)?.ok_or_else(under_way)?;
        let of = of.display().to_string();
        let partial = Self { target, path, of, file, is_published: false };
        // What a copy that was killed has left.
        let emptied = partial.file.set_len(0);
        emptied
            .and_then(|()| partial.file.set_permissions(Permissions::from_mode(0o600)))
            .map_err(|source| CopyError::unwritable(&partial.target, source))?;
        Ok(partial)
    }

    /// Returns where the file is until it is published.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file, to be written from its beginning.
    pub(super) fn writable(&self) -> Result<File, CopyError> {
        self.file.try_clone().map_err(|source| CopyError::unwritable(&self.target, source))
    }

    /// Gives the name up, and returns the file to be read from its beginning: its room is free again
    /// when that is closed, however the process ends.
    pub(super) fn into_nameless(self) -> Result<File, CopyError> {
        let file = self.writable()?;
        let failed = |source| CopyError::write_failed(&self.target, &source);
        (&file).rewind().map_err(failed)?;
        std::fs::remove_file(&self.path).map_err(failed)?;
        Ok(file)
    }

    /// Makes the content durable.
    pub fn sync(&self) -> Result<(), CopyError> {
        self.file.sync_all().map_err(|source| CopyError::write_failed(&self.target, &source))
    }

    /// Gives the file its name, durably. What has that name is replaced, or stops it.
    pub fn publish(self, replace: bool) -> Result<PathBuf, CopyError> {
        self.publish_by(replace, sync_directory)
    }

    /// As above; `sync_directory` makes the names in a directory durable.
    pub(super) fn publish_by(
        mut self,
        replace: bool,
        sync_directory: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<PathBuf, CopyError> {
        self.sync()?;
        self.check_held()?;
        let named = if replace {
            std::fs::rename(&self.path, &self.target)
        } else {
            rename_to_new(&self.path, &self.target)
        };
        named.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => {
                CopyError::Exists { path: self.target.display().to_string() }
            }
            _ => CopyError::write_failed(&self.target, &source),
        })?;
        self.is_published = true;
        sync_directory(directory_of(&self.target)).map_err(|error| CopyError::Unsynced {
            path: self.target.display().to_string(),
            detail: error.to_string(),
        })?;
        Ok(self.target.clone())
    }

    /// Checks that the name still is the file's, so that nothing else is read or given a name.
    fn check_held(&self) -> Result<(), CopyError> {
        match standing(&self.file, &self.path) {
            // A restore has given it to the node's user, perhaps.
            Ok(Standing::Own | Standing::Foreign) => Ok(()),
            Ok(Standing::Gone) => {
                Err(CopyError::TakenAway { path: self.path.display().to_string() })
            }
            Err(source) => Err(CopyError::write_failed(&self.target, &source)),
        }
    }

    pub(super) fn open(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let conn = Connection::open_with_flags(&self.path, flags)?;
        // Should anything fail, the file is thrown away; we sync it ourselves.
        let _: String =
            conn.pragma_update_and_check(None, "journal_mode", "OFF", |row| row.get(0))?;
        conn.pragma_update(None, "synchronous", "OFF")?;
        settle(&conn)?;
        Ok(conn)
    }

    /// Sorts what SQLite said while it wrote the file.
    pub(super) fn failed(&self, error: &rusqlite::Error) -> CopyError {
        let path = self.target.display().to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => CopyError::Full { path },
            Some(ErrorCode::OperationInterrupted) => CopyError::Cancelled,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                CopyError::Damaged { path: self.of.clone(), detail: error.to_string() }
            }
            _ => CopyError::WriteFailed { path, detail: error.to_string() },
        }
    }
}

/// How a file that is open stands to the name that it was opened by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// It has that name and no other, and it is this user's.
    Own,
    /// The name is another file's by now, or nobody's.
    Gone,
    /// It is no file that only this user could have made.
    Foreign,
}

fn standing(file: &File, path: &Path) -> io::Result<Standing> {
    let held = file.metadata()?;
    let named = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Standing::Gone),
        named => named?,
    };
    let number = |metadata: &Metadata| (metadata.dev(), metadata.ino());
    if number(&held) != number(&named) {
        return Ok(Standing::Gone);
    }
    let user = rustix::process::geteuid().as_raw();
    let is_own = held.is_file() && held.uid() == user && held.nlink() == 1;
    Ok(if is_own { Standing::Own } else { Standing::Foreign })
}

/// Opens the file that a copy is written to, locked, as this user's alone; what a killed copy has
/// left is taken over. `None`: another copy has it.
///
/// The directory may be one that others can write to. What they have put under the name goes away
/// unread: it could lead elsewhere, or be a file that they have open.
fn claim(path: &Path) -> io::Result<Option<File>> {
    for _ in 0..CLAIMS_MAX {
        let Some(file) = open_or_create(path)? else { continue };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        match standing(&file, path)? {
            Standing::Own => return Ok(Some(file)),
            // Whoever had it has given it its name in the meantime: it must not be touched.
            Standing::Gone => {}
            Standing::Foreign => std::fs::remove_file(path)?,
        }
    }
    Err(io::Error::other("others keep writing to that name"))
}

/// `None`: what was there is out of the way, or went by itself.
fn open_or_create(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    // Not blocking: the name may be a pipe's.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    options.read(true).write(true).mode(0o600).custom_flags(flags.bits().cast_signed());
    match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made.map(Some),
    }
    let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match std::fs::symlink_metadata(path) {
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return std::fs::remove_file(path).map(|()| None),
    }
    match options.open(path) {
        Err(error) if is_gone(&error) => Ok(None),
        // Another user's: where the directory lets us, it goes.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            std::fs::remove_file(path).map(|()| None)
        }
        opened => opened.map(Some),
    }
}

/// Removes what copies to a target that were killed have left. The caller knows that none is under
/// way.
pub(super) fn remove_left(target: &Path) -> io::Result<()> {
    let Some(name) = target.file_name() else { return Ok(()) };
    match std::fs::remove_file(target.with_file_name(hidden(name))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn hidden(name: &OsStr) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".partial");
    hidden
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_published && self.check_held().is_ok() {
            // Where it cannot be removed, the next copy to this name begins it anew.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Copies what a connection sees into a partial file, and changes the copy with `seal`.
///
/// The pages are copied as they are, and one snapshot is held for as long as that takes. Copying in
/// parts without a snapshot would begin anew with each commit of the node, for ever;
/// `VACUUM INTO` holds a snapshot too, for several times as long, since it builds every tree anew.
/// Nobody waits for the snapshot: readers and the writer go on, only the write-ahead log cannot
/// begin anew, so it grows by what the node writes meanwhile.
pub fn copy(
    source: &Connection,
    partial: &Partial,
    watch: &mut Watch<'_>,
    seal: impl FnOnce(&Connection) -> rusqlite::Result<()>,
) -> Result<Copied, CopyError> {
    let copied = copy_pages(source, partial, watch)?;
    // A copy is one file and stays one when somebody only looks at it.
    let header = partial.file.write_all_at(&[1, 1], HEADER_JOURNAL);
    header.map_err(|source| CopyError::write_failed(&partial.target, &source))?;
    let conn = partial.open().map_err(|error| partial.failed(&error))?;
    partial.check_held()?;
    seal(&conn).map_err(|error| partial.failed(&error))?;
    conn.close().map_err(|(_, error)| partial.failed(&error))?;
    Ok(copied)
}

fn copy_pages(
    source: &Connection,
    partial: &Partial,
    watch: &mut Watch<'_>,
) -> Result<Copied, CopyError> {
    let path = source.path().unwrap_or_default().to_owned();
    let unreadable = |error: rusqlite::Error| unreadable(&path, &error);
    let log = Log::of(Path::new(&path), Limits::default());
    let snapshot = source.unchecked_transaction().map_err(unreadable)?;
    let begun = Instant::now();
    let pages: i64 =
        snapshot.pragma_query_value(None, "page_count", |row| row.get(0)).map_err(unreadable)?;
    let page_bytes: i64 =
        snapshot.pragma_query_value(None, "page_size", |row| row.get(0)).map_err(unreadable)?;
    let (pages, page_bytes) = (pages.cast_unsigned(), page_bytes.cast_unsigned());
    let total = pages * page_bytes;
    check_room(directory_of(&partial.target), total + (1 << 20))?;

    let mut copy = partial.open().map_err(|error| partial.failed(&error))?;
    partial.check_held()?;
    // A page cache as large as a step: pages go to the file in runs.
    copy.pragma_update(None, "cache_size", -8_192).map_err(|error| partial.failed(&error))?;
    let backup = Backup::new(&snapshot, &mut copy).map_err(|error| partial.failed(&error))?;
    let mut unsynced = 0;
    loop {
        if watch.is_cancelled.load(Ordering::Relaxed) {
            return Err(CopyError::Cancelled);
        }
        let step = backup.step(STEP_PAGES).map_err(|error| partial.failed(&error))?;
        let left = u64::try_from(backup.progress().remaining).unwrap_or(0);
        let done = pages.saturating_sub(left) * page_bytes;
        (watch.progress)(Progress { doing: Doing::Copying, done, total });
        match step {
            StepResult::Done => break,
            StepResult::More => {}
            // The snapshot needs no lock that could be taken; somebody else has opened the copy.
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
        log.check()?;
        if done - unsynced >= SYNC_EVERY_BYTES {
            unsynced = done;
            let synced = partial.file.sync_data();
            synced.map_err(|source| CopyError::write_failed(&partial.target, &source))?;
        }
    }
    drop(backup);
    copy.close().map_err(|(_, error)| partial.failed(&error))?;
    let wal_growth = log.growth();
    snapshot.finish().map_err(unreadable)?;
    Ok(Copied { bytes: total, held: begun.elapsed(), wal_growth })
}

/// Checks that a copy is whole.
pub fn check_copy(partial: &Partial, watch: &mut Watch<'_>) -> Result<(), CopyError> {
    (watch.progress)(Progress { doing: Doing::Checking, done: 0, total: 0 });
    let mut conn = partial.open().map_err(|error| partial.failed(&error))?;
    let found =
        quick_check(&mut conn, &watch.is_cancelled).map_err(|error| partial.failed(&error))?;
    match found {
        None if watch.is_cancelled.load(Ordering::Relaxed) => Err(CopyError::Cancelled),
        None => Ok(()),
        Some(detail) => Err(CopyError::Damaged { path: partial.of.clone(), detail }),
    }
}

/// Looks whether a database is whole. `None`: it is; else the first thing that is wrong.
pub fn quick_check(
    conn: &mut Connection,
    is_cancelled: &Arc<AtomicBool>,
) -> rusqlite::Result<Option<String>> {
    let flag = Arc::clone(is_cancelled);
    conn.progress_handler(CANCEL_STEPS, Some(move || flag.load(Ordering::Relaxed)))?;
    let detail: String = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    conn.progress_handler(0, None::<fn() -> bool>)?;
    Ok(if detail == "ok" { None } else { Some(detail.trim().replace('\n', "; ")) })
}

/// What a node's log and disk bear while a snapshot of its database is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limits {
    /// See [`LOG_BYTES_MAX`].
    pub log_bytes_max: u64,
    /// See [`FREE_BYTES_MIN`].
    pub free_bytes_min: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { log_bytes_max: LOG_BYTES_MAX, free_bytes_min: FREE_BYTES_MIN }
    }
}

/// Why a snapshot may not be held any longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Strain {
    /// The log has grown too large, by so many bytes since the snapshot was taken.
    Log { grown: u64 },
    /// The node needs what is free on its disk: so many bytes.
    Disk { free: u64 },
}

/// The write-ahead log of a source, which grows while its snapshot is held. Begin before the
/// snapshot does: what is written in between counts, too.
pub(super) struct Log {
    database: PathBuf,
    path: PathBuf,
    bytes_before: u64,
    limits: Limits,
}

impl Log {
    pub fn of(database: &Path, limits: Limits) -> Self {
        let path = wal_path(database);
        Self { database: database.to_owned(), bytes_before: bytes_of(&path), path, limits }
    }

    fn growth(&self) -> u64 {
        bytes_of(&self.path).saturating_sub(self.bytes_before)
    }

    /// Tells whether a copy may go on, which may fill the node's disk itself.
    fn check(&self) -> Result<(), CopyError> {
        // A source without a log is nobody's: a backup that is restored.
        match self.strain(has_log(&self.database)) {
            None => Ok(()),
            Some(Strain::Log { grown }) => Err(CopyError::TooSlow { grown }),
            Some(Strain::Disk { free }) => {
                Err(CopyError::NodeNeedsRoom { path: self.database.display().to_string(), free })
            }
        }
    }

    /// Returns why somebody who only reads may not go on: nothing fills up but by the log.
    pub fn strain_of_reading(&self) -> Option<Strain> {
        self.strain(self.growth() > 0)
    }

    fn strain(&self, is_filling: bool) -> Option<Strain> {
        let Limits { log_bytes_max, free_bytes_min } = self.limits;
        let grown = self.growth();
        if grown > 0 && self.bytes_before + grown > log_bytes_max {
            return Some(Strain::Log { grown });
        }
        let free = free_bytes(directory_of(&self.database)).ok()?;
        (is_filling && free < free_bytes_min).then_some(Strain::Disk { free })
    }
}

/// Returns how long a file is; 0: it is not there.
pub(super) fn bytes_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

pub(super) fn check_room(directory: &Path, needed: u64) -> Result<(), CopyError> {
    // Where the system does not say, writing will.
    let Ok(free) = free_bytes(directory) else { return Ok(()) };
    if free < needed {
        let directory = directory.display().to_string();
        return Err(CopyError::NoRoom { directory, needed, free });
    }
    Ok(())
}

/// Returns how many bytes this user may still write to the disk of a directory.
pub fn free_bytes(directory: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Returns the directory that a file is in; without one it is the working directory.
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

/// Makes the names in a directory durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // Not every file system can do this at once.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if !to.exists() => {
            std::fs::rename(from, to)
        }
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            Err(io::ErrorKind::AlreadyExists.into())
        }
        Err(error) => Err(error.into()),
    }
}

fn unreadable(path: &str, error: &rusqlite::Error) -> CopyError {
    let (path, detail) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            CopyError::Damaged { path, detail }
        }
        _ => CopyError::Unreadable { path, detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_published_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("copy.db");
        let partial = Partial::create(&target, Path::new("tribune.db")).unwrap();
        let error = Partial::create(&target, Path::new("tribune.db")).unwrap_err();
        assert!(matches!(error, CopyError::UnderWay { .. }), "{error}");
        drop(partial);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_published_file_replaces_another_only_when_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("copy.db");
        std::fs::write(&target, "mine").unwrap();
        let error =
            Partial::create(&target, Path::new("tribune.db")).unwrap().publish(false).unwrap_err();
        assert!(matches!(error, CopyError::Exists { .. }), "{error}");
        assert_eq!(std::fs::read(&target).unwrap(), b"mine");
        Partial::create(&target, Path::new("tribune.db")).unwrap().publish(true).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"");
        assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_somebody_has_put_in_the_way_is_neither_written_to_nor_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("copy.db");
        let path = dir.path().join(".copy.db.partial");
        let theirs = dir.path().join("theirs");
        let link = || std::fs::hard_link(&theirs, &path);
        let symlink = || std::os::unix::fs::symlink(&theirs, &path);
        let give = || {
            std::fs::write(&path, "mine")?;
            std::fs::set_permissions(&path, Permissions::from_mode(0o666))?;
            std::os::unix::fs::chown(&path, Some(65_534), None)
        };
        let pipe = || {
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            Ok(rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, mode, 0)?)
        };
        let mut ways: Vec<&dyn Fn() -> io::Result<()>> = vec![&link, &symlink, &pipe];
        // Only root can make a file another user's.
        if rustix::process::geteuid().is_root() {
            ways.push(&give);
        }
        for way in ways {
            std::fs::write(&theirs, "theirs").unwrap();
            way().unwrap();
            // They read what is written, should it be written there.
            let open = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let partial = Partial::create(&target, Path::new("tribune.db")).unwrap();
            let (held, theirs_open) = (partial.file.metadata().unwrap(), open.metadata().unwrap());
            assert_ne!(held.ino(), theirs_open.ino());
            assert_eq!((held.nlink(), held.mode() & 0o7777), (1, 0o600));
            assert_eq!(held.uid(), rustix::process::geteuid().as_raw());
            assert_eq!(std::fs::read(&theirs).unwrap(), b"theirs");
            drop(partial);
            assert!(path.symlink_metadata().is_err());
        }
        std::fs::create_dir(&path).unwrap();
        let error = Partial::create(&target, Path::new("tribune.db")).unwrap_err();
        assert!(matches!(error, CopyError::Unwritable { .. }), "{error}");
    }

    #[test]
    fn who_waited_for_the_lock_of_a_file_that_was_published_leaves_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("copy.db");
        let first = Partial::create(&target, Path::new("tribune.db")).unwrap();
        first.file.write_all_at(b"whole", 0).unwrap();
        let path = first.path().to_owned();
        // Another opens the file just before it takes its name, and gets the lock right after.
        let second = open_or_create(&path).unwrap().unwrap();
        first.publish(false).unwrap();
        second.try_lock().unwrap();
        assert_eq!(standing(&second, &path).unwrap(), Standing::Gone);
        // Also where a third has begun meanwhile.
        let third = Partial::create(&target, Path::new("tribune.db")).unwrap();
        assert_eq!(standing(&second, &path).unwrap(), Standing::Gone);
        assert_eq!(standing(&third.file, &path).unwrap(), Standing::Own);
        assert_eq!(std::fs::read(&target).unwrap(), b"whole");
    }

    #[test]
    fn two_who_copy_to_one_name_at_once_never_empty_what_the_other_published() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("copy.db");
        let copy = || {
            let mut published = 0;
            while published < 100 {
                let partial = match Partial::create(&target, Path::new("tribune.db")) {
                    Ok(partial) => partial,
                    Err(CopyError::UnderWay { .. }) => continue,
                    Err(error) => panic!("{error}"),
                };
                partial.file.write_all_at(b"whole", 0).unwrap();
                partial.publish(true).unwrap();
                assert_eq!(std::fs::read(&target).unwrap(), b"whole");
                published += 1;
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(copy);
            scope.spawn(copy);
        });
    }

    #[test]
    fn a_file_that_another_took_the_name_of_is_not_published_and_the_other_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("copy.db");
        let partial = Partial::create(&target, Path::new("tribune.db")).unwrap();
        let path = partial.path().to_owned();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "theirs").unwrap();
        let error = partial.publish(false).unwrap_err();
        assert!(matches!(error, CopyError::TakenAway { .. }), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        assert!(!target.exists());
    }

    #[test]
    fn a_copy_whose_directory_cannot_be_synced_is_said_to_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("copy.db");
        let partial = Partial::create(&target, Path::new("tribune.db")).unwrap();
        let failing = |_: &Path| Err(io::Error::other("no such luck"));
        let error = partial.publish_by(false, failing).unwrap_err();
        assert!(matches!(error, CopyError::Unsynced { .. }) && !error.is_wrong_usage(), "{error}");
        let said = error.to_string();
        assert!(said.contains("is written and whole") && said.contains("no such luck"), "{said}");
        assert!(target.exists());
    }

    #[test]
    fn what_does_not_fit_is_told_before_it_is_begun() {
        let error = check_room(Path::new("/"), u64::MAX).unwrap_err();
        assert!(error.to_string().contains("not enough room in /"), "{error}");
        check_room(Path::new("/"), 1).unwrap();
    }
}
