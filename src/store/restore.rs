//! A restore: a backup becomes the database of a node that does not run. What was there is put
//! aside, and the node's next start goes on under an epoch that was never used.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OpenFlags};

use super::backup::{forget_life, is_same_file, shm_path};
use super::copy::{
    self, Copied, CopyError, Doing, Partial, Progress, Watch, quick_check, sync_directory,
};
use super::database::{Identity, identity_of};
use super::image::{Image, ImageError, open_image, open_still};
use super::open::{DATABASE_FILE, LOCK_FILE, OpenError, has_log, lock_directory, wal_path};
use crate::types::{ClusterId, NodeId, Origin};

/// What makes the data another node's: it takes a name of its own at its next start.
pub(super) const FORGET_NODE: &str = "DELETE FROM __tribune_node";
/// What another node's checks do is its own business, and may be secret.
pub(super) const FORGET_CHECKS: &str = "DELETE FROM __tribune_checks";
const FORGET_CLUSTER: &str = "UPDATE __tribune_node SET cluster = NULL";
const SELECT_ORIGINS: &str = "SELECT origin FROM __tribune_origins";
/// An origin that is heard of, and of which nothing is held.
const REMEMBER_ORIGIN: &str = "INSERT INTO __tribune_origins (ordinal, origin)
    VALUES ((SELECT coalesce(max(ordinal), 0) + 1 FROM __tribune_origins), ?1)
    ON CONFLICT (origin) DO NOTHING";

/// What to restore, and where to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restore {
    pub file: PathBuf,
    pub data_dir: PathBuf,
    /// The node that the certificate or the configuration names. `None`: the one whose database
    /// is there; where none is, any.
    pub node: Option<NodeId>,
    /// The cluster that the certificate names. `None`: as above.
    pub cluster: Option<ClusterId>,
    /// The backup is another node's, and this node takes its data over.
    pub new_node: bool,
    /// The backup is from another cluster, and goes into this node's.
    pub new_cluster: bool,
    /// Remove the database that is there, in place of putting it aside.
    pub discard: bool,
}

/// A backup that was restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    pub database: PathBuf,
    /// Where the database is that was there before.
    pub aside: Option<PathBuf>,
    /// Who the backup was made of.
    pub identity: Identity,
    pub copied: Copied,
}

/// Why nothing was restored. The data directory's database is as it was, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("{path} is the database of this data directory; name a backup of it")]
    IsTheDatabase { path: String },
    #[error("a node runs on {data_dir} (process {process}); stop it, restore, and start it again")]
    Running { data_dir: String, process: String },
    #[error(transparent)]
    Open(OpenError),
    #[error(
        "{path} is a backup of node {held} ({name}), and this is node {wanted}; use a backup of its own, or take that node's data over with --new-node"
    )]
    OtherNode { path: String, name: String, held: NodeId, wanted: NodeId },
    #[error("{path} is a backup of this very node ({name}); leave --new-node out")]
    SameNode { path: String, name: String },
    #[error(
        "{path} is a backup from cluster {held}, and this node belongs to cluster {wanted}; use a backup of its own, or bring that data into this cluster with --new-cluster"
    )]
    OtherCluster { path: String, held: ClusterId, wanted: ClusterId },
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("cannot put {path} in place: {detail}; {kept}")]
    Swap { path: String, detail: String, kept: String },
    /// It is restored all the same.
    #[error(
        "{path} is restored and whole, but its directory cannot be synced ({detail}): a loss of power may still undo that; {kept}"
    )]
    Unsynced { path: String, detail: String, kept: String },
}

impl RestoreError {
    /// Tells whether the one who asked has to ask otherwise.
    pub fn is_wrong_usage(&self) -> bool {
        match self {
            Self::Image(_)
            | Self::IsTheDatabase { .. }
            | Self::Running { .. }
            | Self::Open(_)
            | Self::OtherNode { .. }
            | Self::SameNode { .. }
            | Self::OtherCluster { .. } => true,
            Self::Copy(error) => error.is_wrong_usage(),
            Self::Swap { .. } | Self::Unsynced { .. } => false,
        }
    }
}

/// Restores a backup. The node must not run, and cannot be started until this returns.
pub fn restore(request: &Restore, watch: &mut Watch<'_>) -> Result<Restored, RestoreError> {
    let target = request.data_dir.join(DATABASE_FILE);
    if is_same_file(&request.file, &target) {
        let path = request.file.display().to_string();
        return Err(RestoreError::IsTheDatabase { path });
    }
    let mut image = open_image(&request.file)?;
    check_identity(request, &image.identity, request.node, request.cluster)?;
    check_whole(request, &mut image, watch)?;

    // From here on something may be made; what was there is read, and stays until the swap.
    let lock = lock_directory(&request.data_dir).map_err(|error| match error {
        OpenError::InUse { path, process } => RestoreError::Running { data_dir: path, process },
        other => RestoreError::Open(other),
    })?;
    let present = Present::read(&target);
    let node = request.node.or(present.node);
    check_identity(request, &image.identity, node, request.cluster.or(present.cluster))?;
    let partial = Partial::create(&target, &request.file)?;
    let copied = copy::copy(&image.conn, &partial, watch, |copy| seal(copy, request, &present))?;
    partial.sync()?;
    let owner = Owner::of(&request.data_dir, &target);
    owner.give(partial.path());
    owner.give(&request.data_dir.join(LOCK_FILE));
    let aside = put_in_place(partial, &target, request.discard, |whole| whole.publish(true))?;
    drop(lock);
    Ok(Restored { database: target, aside, identity: image.identity, copied })
}

fn check_identity(
    request: &Restore,
    held: &Identity,
    node: Option<NodeId>,
    cluster: Option<ClusterId>,
) -> Result<(), RestoreError> {
    let path = || request.file.display().to_string();
    let name = || held.name.clone();
    match node {
        Some(wanted) if wanted != held.node && !request.new_node => {
            let held = held.node;
            return Err(RestoreError::OtherNode { path: path(), name: name(), held, wanted });
        }
        Some(wanted) if wanted == held.node && request.new_node => {
            return Err(RestoreError::SameNode { path: path(), name: name() });
        }
        Some(_) | None => {}
    }
    match (held.cluster, cluster) {
        (Some(held), Some(wanted)) if held != wanted && !request.new_cluster => {
            Err(RestoreError::OtherCluster { path: path(), held, wanted })
        }
        _ => Ok(()),
    }
}

fn check_whole(
    request: &Restore,
    image: &mut Image,
    watch: &mut Watch<'_>,
) -> Result<(), RestoreError> {
    (watch.progress)(Progress { doing: Doing::Checking, done: 0, total: 0 });
    let path = || request.file.display().to_string();
    match quick_check(&mut image.conn, &watch.is_cancelled) {
        Ok(None) => Ok(()),
        Ok(Some(detail)) => Err(ImageError::Damaged { path: path(), detail }.into()),
        Err(_) if watch.is_cancelled.load(Ordering::Relaxed) => Err(CopyError::Cancelled.into()),
        Err(error) => Err(ImageError::of(&request.file, &error).into()),
    }
}

/// Makes a copy into what this node goes on with.
fn seal(copy: &Connection, request: &Restore, present: &Present) -> rusqlite::Result<()> {
    forget_life(copy)?;
    if request.new_node {
        copy.execute_batch(FORGET_CHECKS)?;
        copy.execute_batch(FORGET_NODE)?;
    }
    if request.new_cluster {
        copy.execute_batch(FORGET_CLUSTER)?;
    }
    // The epochs that this node has used since, so that the next one is none of them, whatever the
    // clock says.
    for origin in &present.origins {
        copy.execute(REMEMBER_ORIGIN, [origin.to_bytes()])?;
    }
    Ok(())
}

/// What can be learnt of the database that is replaced. It may be damaged: that is what restores
/// are for.
#[derive(Default)]
struct Present {
    node: Option<NodeId>,
    cluster: Option<ClusterId>,
    /// Under which its node has written.
    origins: Vec<Origin>,
}

impl Present {
    fn read(database: &Path) -> Self {
        Self::try_read(database).unwrap_or_default()
    }

    fn try_read(database: &Path) -> Option<Self> {
        if !database.exists() {
            return None;
        }
        let conn = open_still(database).ok()?;
        let identity = identity_of(&conn).ok()??;
        let mut origins = vec![identity.origin()];
        // As far as they can be read.
        if let Ok(mut statement) = conn.prepare(SELECT_ORIGINS) {
            let read = |row: &rusqlite::Row<'_>| row.get::<_, Vec<u8>>(0);
            let held = statement.query_map([], read).into_iter().flatten();
            let held = held.filter_map(|bytes| Origin::from_bytes(&bytes.ok()?));
            origins.extend(held.filter(|origin| origin.node == identity.node));
        }
        Some(Self { node: Some(identity.node), cluster: identity.cluster, origins })
    }
}

/// Whose the files are. A restore by root must leave files that the node's user can open.
struct Owner(Option<(u32, u32)>);

impl Owner {
    fn of(data_dir: &Path, database: &Path) -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self(None);
        }
        let found = std::fs::metadata(database).or_else(|_| std::fs::metadata(data_dir));
        Self(found.ok().map(|found| (found.uid(), found.gid())))
    }

    fn give(&self, path: &Path) {
        if let Some((user, group)) = self.0 {
            // Where it does not work, the node's start says that it cannot read the file.
            let _ = std::os::unix::fs::chown(path, Some(user), Some(group));
        }
    }
}

/// Puts the new database in the old one's place, which never has a log beside it that is not its
/// own: SQLite would play it into the database.
pub(super) fn put_in_place(
    partial: Partial,
    target: &Path,
    discard: bool,
    publish: impl FnOnce(Partial) -> Result<PathBuf, CopyError>,
) -> Result<Option<PathBuf>, RestoreError> {
    let is_there = target.symlink_metadata().is_ok();
    let aside = (is_there && !discard).then(|| free_name(target));
    let failed = |error: std::io::Error| RestoreError::Swap {
        path: target.display().to_string(),
        detail: error.to_string(),
        kept: match &aside {
            Some(aside) if aside.exists() => {
                format!("the database that was there is {}", aside.display())
            }
            Some(_) | None => "the database that was there still is".to_owned(),
        },
    };
    let is_alone = is_there && empty_log(target);
    match &aside {
        // A second name, so that the old database has its own until the new one takes it.
        Some(aside) if is_alone && std::fs::hard_link(target, aside).is_ok() => {
            remove(&wal_path(target)).map_err(failed)?;
        }
        // The database before its log: a crash in between leaves no database, and the node starts
        // over from its peers, rather than one that has lost its last commits.
        Some(aside) => {
            std::fs::rename(target, aside).map_err(failed)?;
            match std::fs::rename(wal_path(target), wal_path(aside)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        None => {
            if !is_alone {
                remove(target).map_err(failed)?;
            }
            remove(&wal_path(target)).map_err(failed)?;
        }
    }
    remove(&shm_path(target)).map_err(failed)?;
    sync_directory(copy::directory_of(target)).map_err(failed)?;
    match publish(partial) {
        Ok(_) => Ok(aside),
        Err(CopyError::Unsynced { path, detail }) => {
            let kept = match &aside {
                Some(aside) => format!("the database that was there is {}", aside.display()),
                None if is_there => "nothing is left of the database that was there".to_owned(),
                None => "there was none before".to_owned(),
            };
            Err(RestoreError::Unsynced { path, detail, kept })
        }
        Err(error) => Err(failed(std::io::Error::other(error.to_string()))),
    }
}

/// Moves a database's log into it. Tells whether that has worked; of a damaged one it need not.
fn empty_log(database: &Path) -> bool {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let moved = Connection::open_with_flags(database, flags).and_then(|conn| {
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))
    });
    moved.is_ok_and(|is_busy| is_busy == 0) && !has_log(database)
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Returns a name beside the database that says what it is, and that nothing has.
fn free_name(database: &Path) -> PathBuf {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = |further: &str| {
        let mut name = database.as_os_str().to_owned();
        name.push(format!(".before-restore-{}{further}", utc(since)));
        PathBuf::from(name)
    };
    let mut free = name("");
    let mut nth = 2;
    while free.symlink_metadata().is_ok() {
        free = name(&format!("-{nth}"));
        nth += 1;
    }
    free
}

/// Writes a time since 1970 as `20240229T235958Z`.
fn utc(since: Duration) -> String {
    let (seconds, mut days) = (since.as_secs() % 86_400, since.as_secs() / 86_400);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year}{:02}{:02}T{hour:02}{minute:02}{second:02}Z", month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::crdt::RowOp;
    use crate::crdt::storage::Storage;
    use crate::store::backup::{Backup, backup};
    use crate::store::trial::{ME, NOW, T, Trial};
    use crate::store::{OpenConfig, Store};
    use crate::types::Version;

    const YOU: NodeId = NodeId([0x22; 16]);

    fn watch(progress: &mut dyn FnMut(Progress)) -> Watch<'_> {
        Watch { progress, is_cancelled: Arc::default() }
    }

    #[test]
    fn a_restore_whose_directory_cannot_be_synced_is_said_to_be_done() {
        for (discard, kept) in [(false, "the database that was there is "), (true, "nothing is")] {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join(DATABASE_FILE);
            std::fs::write(&target, "old").unwrap();
            let partial = Partial::create(&target, Path::new("backup.db")).unwrap();
            let error = put_in_place(partial, &target, discard, |whole| {
                whole.publish_by(true, |_| Err(std::io::Error::other("no such luck")))
            });
            let error = error.unwrap_err();
            assert!(matches!(error, RestoreError::Unsynced { .. }), "{error}");
            let said = error.to_string();
            assert!(said.contains("is restored and whole") && said.contains(kept), "{said}");
            // It was empty in this test; the one that was there is not.
            assert_eq!(std::fs::read(&target).unwrap(), b"");
        }
    }

    /// A store with a registration, a check and a row of `t`, and a backup of it.
    fn backed_up() -> (Trial, PathBuf) {
        let mut trial = Trial::new(T);
        register(&mut trial.store, "a");
        let check = vec![("id", "c".into()), ("definition", "{}".into())];
        let check = RowOp::Put { table: "__tribune_checks", row: check, keep: &[] };
        trial.store.commit(NOW, &[check]).unwrap();
        trial.write(&["INSERT INTO t (id, v) VALUES (1, 'backup')"]);
        let target = trial.dir.path().join("copy.db");
        let data_dir = trial.config.data_dir.clone();
        let request = Backup { data_dir, target: target.clone(), force: false };
        backup(&request, &mut watch(&mut |_| {})).unwrap();
        (trial, target)
    }

    fn register(store: &mut Store, id: &str) {
        let row = vec![("node_id", ME.to_string().into()), ("id", id.into()), ("port", 80.into())];
        store.commit(NOW, &[RowOp::Put { table: "services", row, keep: &[] }]).unwrap();
    }

    fn request(config: &OpenConfig, file: &Path) -> Restore {
        Restore {
            file: file.to_owned(),
            data_dir: config.data_dir.clone(),
            node: config.node,
            cluster: config.cluster,
            new_node: false,
            new_cluster: false,
            discard: false,
        }
    }

    fn run(request: &Restore) -> Result<Restored, RestoreError> {
        restore(request, &mut watch(&mut |_| {}))
    }

    fn files(config: &OpenConfig) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&config.data_dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_restore_goes_on_where_the_backup_was_under_an_epoch_never_used() {
        let (mut trial, file) = backed_up();
        trial.write(&["UPDATE t SET v = 'lost'"]);
        register(&mut trial.store, "b");
        let first = trial.store.origin();
        let Trial { store, dir, config } = trial;
        drop(store);
        let restored = run(&request(&config, &file)).unwrap();
        let aside = restored.aside.unwrap();
        assert_eq!(restored.identity.node, ME);
        let store = Store::open(&config).unwrap();
        let mut trial = Trial { store, dir, config };
        let origin = trial.store.origin();
        assert!(origin.epoch > first.epoch);
        assert_eq!(trial.rows("SELECT v FROM t"), ["'backup'"]);
        assert_eq!(trial.rows("SELECT id FROM services"), ["'a'"]);
        assert_eq!(trial.rows("SELECT id FROM __tribune_checks"), ["'c'"]);
        let heads = trial.store.heads().unwrap();
        assert_eq!(heads, [(first, Version(2)), (origin, Version(1))]);
        trial.write(&["UPDATE t SET v = 'after'"]);

        // What was put aside is whole, and can be restored in its turn. The clock need not go on
        // for its epoch to be a new one.
        let Trial { store, dir, config } = trial;
        drop(store);
        run(&Restore { discard: true, ..request(&config, &aside) }).unwrap();
        let trial = Trial { store: Store::open(&config).unwrap(), dir, config };
        assert!(trial.store.origin().epoch > origin.epoch);
        assert_eq!(trial.rows("SELECT v FROM t"), ["'lost'"]);
        assert_eq!(trial.rows("SELECT id FROM services ORDER BY id"), ["'a'", "'b'"]);
        let kept = aside.file_name().unwrap().to_string_lossy().into_owned();
        let names = files(&trial.config);
        let known = |name: &&String| {
            ["tribune.db", "tribune.db-shm", "tribune.db-wal", "tribune.life", "tribune.lock"]
                .contains(&name.as_str())
        };
        assert_eq!(names.iter().filter(|name| !known(name)).collect::<Vec<_>>(), [&kept]);
    }

    #[test]
    fn the_log_of_a_database_that_crashed_goes_aside_with_it() {
        for is_read in [false, true] {
            let (mut trial, file) = backed_up();
            trial.write(&["UPDATE t SET v = 'in the log'"]);
            let (data, crashed) = (trial.config.data_dir.clone(), trial.dir.path().join("crashed"));
            std::fs::create_dir(&crashed).unwrap();
            for name in ["tribune.db", "tribune.db-wal", "tribune.life"] {
                std::fs::copy(data.join(name), crashed.join(name)).unwrap();
            }
            let Trial { store, dir, config } = trial;
            drop(store);
            let config = OpenConfig { data_dir: crashed, ..config };
            // A shell that looks at the database, and so keeps its log from being emptied.
            let shell = Connection::open(config.data_dir.join(DATABASE_FILE)).unwrap();
            let sql = if is_read { "BEGIN; SELECT v FROM t" } else { "BEGIN" };
            shell.execute_batch(sql).unwrap();
            let aside = run(&request(&config, &file)).unwrap().aside.unwrap();
            assert_eq!(wal_path(&aside).exists(), is_read);
            drop(shell);
            let trial = Trial { store: Store::open(&config).unwrap(), dir, config };
            assert_eq!(trial.rows("SELECT v FROM t"), ["'backup'"]);
            let old = Connection::open(&aside).unwrap();
            let read = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
            assert_eq!(old.query_row("SELECT v FROM t", [], read).unwrap(), "in the log");
        }
    }

    #[test]
    fn a_database_that_is_none_any_more_is_replaced() {
        let (trial, file) = backed_up();
        let Trial { store, dir, config } = trial;
        drop(store);
        let path = config.data_dir.join(DATABASE_FILE);
        std::fs::write(&path, "no database at all ".repeat(600)).unwrap();
        // Nothing there says who this is.
        let wanted = Restore { node: None, ..request(&config, &file) };
        let aside = run(&wanted).unwrap().aside.unwrap();
        assert!(std::fs::read(&aside).unwrap().starts_with(b"no database"));
        let trial = Trial { store: Store::open(&config).unwrap(), dir, config };
        assert_eq!(trial.rows("SELECT v FROM t"), ["'backup'"]);
    }

    #[test]
    fn a_refused_restore_changes_nothing() {
        let (trial, file) = backed_up();
        let good = request(&trial.config, &file);
        let error = run(&good).unwrap_err();
        assert!(error.to_string().contains("a node runs on"), "{error}");
        let error = run(&request(&trial.config, trial.store.path().unwrap())).unwrap_err();
        assert!(matches!(error, RestoreError::IsTheDatabase { .. }), "{error}");
        let Trial { store, dir, config } = trial;
        drop(store);
        let database = config.data_dir.join(DATABASE_FILE);
        let (before, names) = (std::fs::read(&database).unwrap(), files(&config));
        let damaged = dir.path().join("damaged.db");
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2 / 4096 * 4096;
        bytes[middle..middle + 8_192].fill(0x55);
        std::fs::write(&damaged, &bytes[..]).unwrap();
        let cut = dir.path().join("cut.db");
        std::fs::write(&cut, &std::fs::read(&file).unwrap()[..20_000]).unwrap();
        let newer = dir.path().join("newer.db");
        std::fs::copy(&file, &newer).unwrap();
        Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
        for (request, part) in [
            (Restore { file: damaged, ..good.clone() }, "is damaged ("),
            (Restore { file: cut, ..good.clone() }, "damaged"),
            (Restore { file: newer, ..good.clone() }, "newer tribune"),
            (Restore { node: Some(YOU), ..good.clone() }, "--new-node"),
            (Restore { new_node: true, ..good.clone() }, "this very node"),
            // The database that is there says who this is, where nothing else does.
            (Restore { node: None, new_node: true, ..good.clone() }, "this very node"),
        ] {
            let error = run(&request).unwrap_err();
            assert!(error.to_string().contains(part) && error.is_wrong_usage(), "{error}");
            assert!(std::fs::read(&database).unwrap() == before, "the database was changed");
            assert_eq!(files(&config), names);
        }
        let is_cancelled = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let error = restore(&good, &mut Watch { progress: &mut |_| {}, is_cancelled }).unwrap_err();
        assert!(matches!(error, RestoreError::Copy(CopyError::Cancelled)), "{error}");
        assert_eq!(files(&config), names);
    }

    #[test]
    fn another_node_takes_the_data_over_and_leaves_the_old_nodes_rows_to_it() {
        let (trial, file) = backed_up();
        let old = trial.store.origin();
        let data_dir = trial.dir.path().join("other");
        let config = OpenConfig { data_dir, node: Some(YOU), ..trial.config.clone() };
        let cluster = Some(ClusterId([2; 16]));
        run(&Restore { new_node: true, ..request(&config, &file) }).unwrap();
        let store = Store::open(&OpenConfig { cluster, ..config.clone() }).unwrap();
        let trial = Trial { store, dir: trial.dir, config };
        assert_eq!((trial.store.origin().node, trial.store.origin().scope), (YOU, old.scope));
        assert_eq!(trial.rows("SELECT v FROM t"), ["'backup'"]);
        assert_eq!(trial.rows("SELECT node_id FROM services"), [format!("'{ME}'")]);
        assert_eq!(trial.rows("SELECT id FROM __tribune_checks"), Vec::<String>::new());
        assert_eq!(trial.store.heads().unwrap(), [(old, Version(2))], "nothing is written anew");
    }

    #[test]
    fn data_goes_into_another_cluster_only_when_that_is_asked_for() {
        let (trial, file) = backed_up();
        let Trial { store, dir, config } = trial;
        drop(store);
        let held = OpenConfig { cluster: Some(ClusterId([1; 16])), ..config };
        drop(Store::open(&held).unwrap());
        let target = dir.path().join("copy2.db");
        let request_of = Backup { data_dir: held.data_dir.clone(), target, force: true };
        backup(&request_of, &mut watch(&mut |_| {})).unwrap();
        let config = OpenConfig { cluster: Some(ClusterId([2; 16])), ..held };
        let wanted = Restore { discard: true, ..request(&config, &request_of.target) };
        let error = run(&wanted).unwrap_err();
        assert!(matches!(error, RestoreError::OtherCluster { .. }), "{error}");
        run(&Restore { new_cluster: true, ..wanted }).unwrap();
        assert_eq!(Store::open(&config).unwrap().identity().cluster, config.cluster);
        assert!(file.exists());
    }

    #[test]
    fn a_time_is_written_as_people_read_it() {
        let at = |seconds| utc(Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101T000000Z");
        assert_eq!(at(1_709_251_198), "20240229T235958Z");
        assert_eq!(at(1_735_689_600), "20250101T000000Z");
    }
}
