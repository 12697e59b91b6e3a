//! A database as a file that nobody writes to: a backup, or what a restore has put aside.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::backup::shm_path;
use super::database::{Identity, identity_of};
use super::migrate;
use super::open::{DATABASE_FILE, OpenError, has_log, open_reader, settle};

/// Why a file is no backup that can be used. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("there is no file {path}; name one that `tribune backup` made")]
    Missing { path: String },
    #[error("cannot read {path}: {detail}")]
    Unreadable { path: String, detail: String },
    #[error("{path} is not an SQLite database; name a file that `tribune backup` made")]
    NotADatabase { path: String },
    #[error(
        "{path} is the database of another program (application_id {application_id}); name a file that `tribune backup` made"
    )]
    Foreign { path: String, application_id: i32 },
    #[error(
        "{path} was written by a newer tribune (its tables have version {found}, this program knows {known}); use that one"
    )]
    Newer { path: String, found: i32, known: i32 },
    #[error("{path} is damaged ({detail}); use another backup")]
    Damaged { path: String, detail: String },
    #[error("{path} belongs to no node; name a file that `tribune backup` made")]
    Nobodys { path: String },
}

impl ImageError {
    /// Sorts what SQLite said while it read the file at `path`.
    pub(super) fn of(path: &Path, error: &rusqlite::Error) -> Self {
        let (path, detail) = (path.display().to_string(), error.to_string());
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::NotADatabase { path },
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged { path, detail },
            _ => Self::Unreadable { path, detail },
        }
    }
}

/// Reads who the database of a data directory belongs to; `None`: nobody, or it cannot be read.
pub fn owner_in(data_dir: &Path) -> Option<Identity> {
    let database = data_dir.join(DATABASE_FILE);
    if !database.exists() {
        return None;
    }
    identity_of(&open_still(&database).ok()?).ok()?
}

/// A backup that is open to be read, and whose it is.
#[derive(Debug)]
pub(super) struct Image {
    pub conn: Connection,
    pub identity: Identity,
    /// How many migrations it has seen.
    pub version: i32,
}

/// Opens a file that a backup or a restore has left. Nothing is written beside it, unless a
/// program that did not close it in order has left its log there.
pub(super) fn open_image(path: &Path) -> Result<Image, ImageError> {
    let shown = || path.display().to_string();
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(ImageError::NotADatabase { path: shown() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(ImageError::Missing { path: shown() });
        }
        Err(error) => {
            return Err(ImageError::Unreadable { path: shown(), detail: error.to_string() });
        }
    }
    let failed = |error: rusqlite::Error| ImageError::of(path, &error);
    let conn = open_still(path).map_err(failed)?;
    let version = migrate::check(&conn, &shown()).map_err(|error| match error {
        OpenError::Foreign { path, application_id } => ImageError::Foreign { path, application_id },
        OpenError::Newer { path, found, known } => ImageError::Newer { path, found, known },
        OpenError::NotADatabase { path } => ImageError::NotADatabase { path },
        OpenError::Damaged { path, detail } => ImageError::Damaged { path, detail },
        other => ImageError::Unreadable { path: shown(), detail: other.to_string() },
    })?;
    if version == 0 {
        return Err(ImageError::Nobodys { path: shown() });
    }
    let identity = identity_of(&conn).map_err(failed)?;
    let identity = identity.ok_or_else(|| ImageError::Nobodys { path: shown() })?;
    Ok(Image { conn, identity, version })
}

/// Opens a database that no node uses; a log that one has left is read, too.
pub(super) fn open_still(path: &Path) -> rusqlite::Result<Connection> {
    let is_in_use = shm_path(path).exists() || has_log(path);
    if is_in_use { open_reader(path) } else { open_unchanging(path) }
}

/// Opens a file that nobody has open. SQLite would make a log beside one that was written ahead,
/// which may be on a disk that cannot be written to; told that nothing changes, it does not.
fn open_unchanging(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let conn = Connection::open_with_flags(uri(path), flags)?;
    conn.pragma_update(None, "query_only", true)?;
    settle(&conn)?;
    Ok(conn)
}

fn uri(path: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;

    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                uri.push(char::from(*byte));
            }
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    uri.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::trial::{T, Trial};

    #[test]
    fn a_file_is_read_without_a_trace_whatever_its_name() {
        let trial = Trial::new(T);
        let Trial { store, dir, config } = trial;
        drop(store);
        let place = dir.path().join("a b?c#d%41");
        std::fs::create_dir(&place).unwrap();
        let path = place.join("ü.db");
        std::fs::copy(config.data_dir.join(DATABASE_FILE), &path).unwrap();
        let image = open_image(&path).unwrap();
        assert_eq!(Some(image.identity.node), config.node);
        drop(image);
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_backup_is_told_by_its_kind() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |name: &str| open_image(&dir.path().join(name)).unwrap_err().to_string();
        assert!(refused("none").contains("there is no file"));
        assert!(refused(".").contains("not an SQLite database"));
        std::fs::write(dir.path().join("empty"), "").unwrap();
        assert!(refused("empty").contains("belongs to no node"));
        std::fs::write(dir.path().join("letter"), "dear aunt, ".repeat(100)).unwrap();
        assert!(refused("letter").contains("not an SQLite database"));
        let other = Connection::open(dir.path().join("other")).unwrap();
        other.execute_batch("PRAGMA application_id = 7; CREATE TABLE t (a)").unwrap();
        assert!(refused("other").contains("another program (application_id 7)"));
    }
}
