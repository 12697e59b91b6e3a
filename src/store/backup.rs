//! A backup: one file that holds what a node's database held at one moment, made while the node
//! runs or while it does not.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::copy::{self, Copied, CopyError, Partial, Watch, directory_of};
use super::database::{Identity, identity_of};
use super::migrate;
use super::open::{DATABASE_FILE, LOCK_FILE, OpenError, open_reader, wal_path};

const FORGET_FILE: &str = "UPDATE __tribune_node SET file = NULL";
const FORGET_LIFE: &str = "UPDATE __tribune_node SET file = NULL, life = NULL, boot = NULL";

/// Since this version of the tables they have a mark of the life that writes them.
const LIVES_SINCE: i32 = 5;

/// What to copy, and where to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backup {
    pub data_dir: PathBuf,
    pub target: PathBuf,
    /// Replace the target where it exists.
    pub force: bool,
}

/// A backup that was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackedUp {
    pub target: PathBuf,
    pub identity: Identity,
    pub copied: Copied,
}

/// Why there is no backup. Whatever had its name is as it was.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(
        "there is no database in {data_dir}; name the node's data directory with --data-dir, or its configuration with --config"
    )]
    NoDatabase { data_dir: String },
    #[error("{path} belongs to no node yet; it was never started, and there is nothing to back up")]
    Nobodys { path: String },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Copy(#[from] CopyError),
}

impl BackupError {
    /// Tells whether the one who asked has to ask otherwise.
    pub fn is_wrong_usage(&self) -> bool {
        match self {
            Self::NoDatabase { .. } | Self::Nobodys { .. } | Self::Open(_) => true,
            Self::Copy(error) => error.is_wrong_usage(),
        }
    }
}

/// Makes a backup. The node may run: neither its writer nor its readers wait.
pub fn backup(request: &Backup, watch: &mut Watch<'_>) -> Result<BackedUp, BackupError> {
    let Backup { data_dir, target, force } = request;
    let database = data_dir.join(DATABASE_FILE);
    let (conn, identity) = open_own(data_dir)?;
    check_target(target, &database, *force)?;
    let partial = Partial::create(target, &database)?;
    let copied = copy::copy(&conn, &partial, watch, forget_life)?;
    copy::check_copy(&partial, watch)?;
    let target = partial.publish(*force)?;
    Ok(BackedUp { target, identity, copied })
}

/// Makes a copy forget which file it was written in, and in which life of the node. So it cannot
/// pass for the life that goes on beside it, not even when somebody writes it over the very file
/// that it was made from: whoever opens it as a database begins a new epoch.
pub(super) fn forget_life(copy: &Connection) -> rusqlite::Result<()> {
    let version: i32 = copy.pragma_query_value(None, "user_version", |row| row.get(0))?;
    copy.execute_batch(if version < LIVES_SINCE { FORGET_FILE } else { FORGET_LIFE })
}

/// Opens a data directory's database to read it, and says whose it is.
pub(super) fn open_own(data_dir: &Path) -> Result<(Connection, Identity), BackupError> {
    let database = data_dir.join(DATABASE_FILE);
    let path = database.display().to_string();
    if matches!(database.try_exists(), Ok(false)) {
        return Err(BackupError::NoDatabase { data_dir: data_dir.display().to_string() });
    }
    let failed = |error| OpenError::of(&path, error);
    let conn = open_reader(&database).map_err(failed)?;
    if migrate::check(&conn, &path)? == 0 {
        return Err(BackupError::Nobodys { path });
    }
    match identity_of(&conn).map_err(failed)? {
        Some(identity) => Ok((conn, identity)),
        None => Err(BackupError::Nobodys { path }),
    }
}

/// Refuses what must not be written over: first of all the database itself.
pub(super) fn check_target(target: &Path, database: &Path, force: bool) -> Result<(), CopyError> {
    let path = target.display().to_string();
    let named = target.file_name().unwrap_or_default();
    let is_beside =
        match (directory_of(target).canonicalize(), directory_of(database).canonicalize()) {
            (Ok(here), Ok(there)) => here == there,
            (Err(_), _) | (_, Err(_)) => false,
        };
    let own = [database.to_owned(), wal_path(database), shm_path(database)];
    let is_own_name = own.iter().any(|own| own.file_name() == Some(named)) || named == LOCK_FILE;
    if (is_beside && is_own_name) || is_same_file(target, database) {
        return Err(CopyError::IsTheDatabase { path });
    }
    match std::fs::symlink_metadata(target) {
        Ok(metadata) if metadata.is_dir() => Err(CopyError::NotAFile { path }),
        Ok(_) if !force => Err(CopyError::Exists { path }),
        Ok(metadata) if !metadata.is_file() && !metadata.is_symlink() => {
            Err(CopyError::NotAFile { path })
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Tells whether two names lead to one file.
pub(super) fn is_same_file(one: &Path, other: &Path) -> bool {
    let name = |path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    name(one).is_some_and(|one| name(other) == Some(one))
}

/// Returns where SQLite keeps what connections share about a database's log.
pub(super) fn shm_path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-shm");
    path.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::crdt::storage::Storage;
    use crate::store::copy::Doing;
    use crate::store::trial::{T, Trial};
    use crate::store::{OpenConfig, Store};

    const FILL: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 6)
        REPLACE INTO t SELECT i, randomblob(1000000), 'x' FROM n";

    fn request(trial: &Trial, force: bool) -> Backup {
        let target = trial.dir.path().join("copy.db");
        Backup { data_dir: trial.config.data_dir.clone(), target, force }
    }

    fn make(request: &Backup) -> Result<BackedUp, BackupError> {
        let progress = &mut |_| {};
        backup(request, &mut Watch { progress, is_cancelled: Arc::default() })
    }

    /// Opens a backup as the database of another directory.
    fn open(trial: &Trial, backup: &Path) -> Store {
        let data_dir = trial.dir.path().join("copied");
        std::fs::create_dir(&data_dir).unwrap();
        std::fs::copy(backup, data_dir.join(DATABASE_FILE)).unwrap();
        Store::open(&OpenConfig { data_dir, ..trial.config.clone() }).unwrap()
    }

    #[test]
    fn a_backup_beside_the_writer_holds_what_was_committed_when_it_began_and_nothing_later() {
        let mut trial = Trial::new(T);
        trial.write(&[FILL]);
        trial.write(&["INSERT INTO t (id, v) VALUES (50, 'before')"]);
        let request = request(&trial, false);
        let mut written = 0;
        let made = {
            let progress = &mut |progress: copy::Progress| {
                // After each step a commit, in the middle of the copy.
                if progress.doing == Doing::Copying {
                    written += 1;
                    trial.write(&[&format!("UPDATE t SET v = 'after {written}' WHERE id >= 5")]);
                }
            };
            backup(&request, &mut Watch { progress, is_cancelled: Arc::default() }).unwrap()
        };
        assert!(written > 1, "there was something to run beside");
        assert!(made.copied.bytes > 6_000_000 && made.copied.wal_growth > 0, "{made:?}");
        assert_eq!(made.identity.node, trial.config.node.unwrap());
        let mode = std::fs::metadata(&made.target).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let header = std::fs::read(&made.target).unwrap();
        assert_eq!(header[18..20], [1, 1], "it is one file, also when somebody looks at it");
        let copy = open(&trial, &made.target);
        let sql = "SELECT id FROM t WHERE v = 'before' OR length(v) = 1000000";
        let held = Trial { store: copy, dir: trial.dir, config: trial.config };
        assert_eq!(held.rows(sql).len(), 7);
    }

    #[test]
    fn a_backup_cannot_pass_for_the_life_that_it_was_made_from() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id) VALUES (1)"]);
        let first = trial.store.origin();
        let made = make(&request(&trial, false)).unwrap();
        let Trial { store, dir, config } = trial;
        drop(store);
        // The worst that one can do with it: write it over the file that it came from.
        let bytes = std::fs::read(&made.target).unwrap();
        std::fs::write(config.data_dir.join(DATABASE_FILE), bytes).unwrap();
        let store = Store::open(&config).unwrap();
        assert!(store.origin().epoch > first.epoch);
        drop(dir);
    }

    #[test]
    fn nothing_is_written_over_unasked_and_never_the_database() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id) VALUES (1)"]);
        let request = request(&trial, false);
        std::fs::write(&request.target, "mine").unwrap();
        let error = make(&request).unwrap_err();
        assert!(error.to_string().ends_with("copy.db exists; --force replaces it"), "{error}");
        assert_eq!(std::fs::read(&request.target).unwrap(), b"mine");
        make(&Backup { force: true, ..request.clone() }).unwrap();

        let data = &trial.config.data_dir;
        std::os::unix::fs::symlink(data, trial.dir.path().join("link")).unwrap();
        for target in ["data/tribune.db", "link/tribune.db-wal", "data/tribune.lock", "data", "/"] {
            let target = trial.dir.path().join(target);
            let error = make(&Backup { target, force: true, ..request.clone() }).unwrap_err();
            assert!(error.is_wrong_usage(), "{error}");
        }
        trial.write(&["INSERT INTO t (id) VALUES (2)"]);
        let empty = trial.dir.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        let error = make(&Backup { data_dir: empty.clone(), ..request }).unwrap_err();
        assert!(error.to_string().starts_with("there is no database in"), "{error}");
        assert_eq!(std::fs::read_dir(empty).unwrap().count(), 0);
    }

    #[test]
    fn a_backup_that_is_interrupted_leaves_nothing() {
        let mut trial = Trial::new(T);
        trial.write(&[FILL]);
        let request = request(&trial, false);
        let before = std::fs::read_dir(trial.dir.path()).unwrap().count();
        for at in [Doing::Copying, Doing::Checking] {
            let is_cancelled = Arc::new(AtomicBool::new(false));
            let flag = Arc::clone(&is_cancelled);
            let progress = &mut move |progress: copy::Progress| {
                flag.store(progress.doing == at, std::sync::atomic::Ordering::Relaxed);
            };
            let error = backup(&request, &mut Watch { progress, is_cancelled }).unwrap_err();
            assert!(matches!(error, BackupError::Copy(CopyError::Cancelled)), "{error}");
            assert_eq!(std::fs::read_dir(trial.dir.path()).unwrap().count(), before);
        }
    }
}
