//! A snapshot: a copy of a running node's database that another node goes on with as its own, and
//! how it becomes the database of a directory that has none. How it gets from one to the other is
//! not known here.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rusqlite::Connection;

use super::backup::{BackupError, check_target, forget_life, open_own};
use super::copy::{
    self, CopyError, Doing, FREE_BYTES_MIN, Partial, Progress, Watch, check_room, directory_of,
    quick_check,
};
use super::database::Identity;
use super::image::{Image, ImageError, open_image};
use super::migrate;
use super::open::{DATABASE_FILE, DirectoryLock, OpenConfig, OpenError, has_log, lock_directory};
use super::restore::{FORGET_CHECKS, FORGET_NODE, RestoreError, put_in_place};
use super::schema::{Schema, read_sources};
use crate::types::{ClusterId, NodeId};

/// What a copy is called in the data directory while it is made; then it has no name.
const COPY_FILE: &str = "tribune.snapshot";

/// The newest version of the tables that this program reads.
pub const FORMAT: u32 = migrate::VERSION.cast_unsigned();

/// What to make.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    pub data_dir: PathBuf,
    /// The newest version of the tables that is of use.
    pub format_max: u32,
    /// From how many bytes on a snapshot is worth it.
    pub bytes_min: u64,
}

/// A snapshot that was made. The room it takes is free once the file is closed.
#[derive(Debug)]
pub struct Made {
    pub file: File,
    pub bytes: u64,
    pub format: u32,
}

/// Why none was made. Nothing is left of what was begun.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    #[error("the database has only {bytes} bytes")]
    Small { bytes: u64 },
    #[error(
        "its tables have version {held}, and the node that asks reads {known} at most; update that one"
    )]
    Newer { held: u32, known: u32 },
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// Copies the database of a running node. Neither its writer nor its readers wait.
pub fn make(request: &Request, watch: &mut Watch<'_>) -> Result<Made, MakeError> {
    let Request { data_dir, format_max, bytes_min } = request;
    let database = data_dir.join(DATABASE_FILE);
    let (conn, _) = open_own(data_dir)?;
    let failed = |error| BackupError::Open(OpenError::of(&database.display().to_string(), error));
    let pragma =
        |name| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(failed);
    let bytes = pragma("page_count")?.cast_unsigned() * pragma("page_size")?.cast_unsigned();
    let format = u32::try_from(pragma("user_version")?).unwrap_or(0);
    if format > *format_max {
        return Err(MakeError::Newer { held: format, known: *format_max });
    }
    if bytes < *bytes_min {
        return Err(MakeError::Small { bytes });
    }
    // What the node itself needs must be left.
    check_room(data_dir, bytes + FREE_BYTES_MIN)?;
    let partial = Partial::create(&data_dir.join(COPY_FILE), &database)?;
    copy::copy(&conn, &partial, watch, seal)?;
    let file = partial.into_nameless()?;
    let unreadable = |error: std::io::Error| CopyError::Unreadable {
        path: data_dir.join(COPY_FILE).display().to_string(),
        detail: error.to_string(),
    };
    let bytes = file.metadata().map_err(unreadable)?.len();
    Ok(Made { file, bytes, format })
}

/// Makes a copy forget what is this node's alone. Its checks may hold secrets: they are overwritten.
fn seal(copy: &Connection) -> rusqlite::Result<()> {
    forget_life(copy)?;
    copy.pragma_update(None, "secure_delete", true)?;
    copy.execute_batch(FORGET_CHECKS)
}

/// Why what was received did not become a database. The directory is as it was, unless it says
/// otherwise.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error("what was received cannot be used: {0}")]
    Unusable(String),
    #[error("what was received is from cluster {held}, and this node belongs to cluster {wanted}")]
    OtherCluster { held: ClusterId, wanted: ClusterId },
    #[error("what was received is this very node's")]
    SameNode,
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error(transparent)]
    Swap(#[from] RestoreError),
}

impl TakeError {
    /// Tells whether the one who asked has to ask otherwise.
    pub fn is_wrong_usage(&self) -> bool {
        match self {
            Self::Copy(error) => error.is_wrong_usage(),
            Self::Unusable(_) | Self::OtherCluster { .. } | Self::SameNode | Self::Swap(_) => false,
        }
    }

    fn unusable(error: ImageError) -> Self {
        Self::Unusable(match error {
            ImageError::NotADatabase { .. } => "it is not an SQLite database".to_owned(),
            ImageError::Foreign { application_id, .. } => {
                format!("it is the database of another program (application_id {application_id})")
            }
            ImageError::Newer { found, known, .. } => {
                format!("its tables have version {found}, this program knows {known}")
            }
            ImageError::Damaged { detail, .. } => format!("it is damaged ({detail})"),
            ImageError::Nobodys { .. } => "it belongs to no node".to_owned(),
            ImageError::Missing { path } => format!("{path} is gone"),
            ImageError::Unreadable { detail, .. } => detail,
        })
    }
}

/// A data directory without a database, held for a node that is about to have one.
#[derive(Debug)]
pub struct Vacancy {
    database: PathBuf,
    _lock: DirectoryLock,
}

impl Vacancy {
    /// Takes a data directory's lock, makes it where it is missing, and clears away what an earlier
    /// process that was killed has left of snapshots. `None`: there is a database. As in opening one,
    /// a mistake in the schema's files is told before anything is made.
    pub fn take(config: &OpenConfig) -> Result<Option<Self>, OpenError> {
        Schema::parse(&read_sources(&config.schema)?)?;
        let lock = lock_directory(&config.data_dir)?;
        let database = config.data_dir.join(DATABASE_FILE);
        for left in [&database, &config.data_dir.join(COPY_FILE)] {
            copy::remove_left(left).map_err(|source| OpenError::Directory {
                path: config.data_dir.display().to_string(),
                source,
            })?;
        }
        // A start that was cut short may have left a file without a page.
        let is_vacant = match std::fs::symlink_metadata(&database) {
            Ok(found) => found.is_file() && found.len() == 0 && !has_log(&database),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        Ok(is_vacant.then_some(Self { database, _lock: lock }))
    }

    /// Begins to receive a snapshot of so many bytes.
    pub fn begin(&self, bytes: u64) -> Result<Landing, CopyError> {
        Landing::begin(&self.database, bytes)
    }

    /// Makes what was received the database of this directory: that of a node which happens to know
    /// everything, and has written nothing of it.
    pub fn fill(
        &self,
        landing: Landing,
        (node, cluster): (NodeId, ClusterId),
        watch: &mut Watch<'_>,
    ) -> Result<Identity, TakeError> {
        let partial = landing.partial;
        let held = check(&partial, watch)?;
        if held.node == node {
            return Err(TakeError::SameNode);
        }
        if let Some(held) = held.cluster.filter(|held| *held != cluster) {
            return Err(TakeError::OtherCluster { held, wanted: cluster });
        }
        let failed = |error| partial.failed(&error);
        let conn = partial.open().map_err(failed)?;
        forget_life(&conn).map_err(failed)?;
        conn.execute_batch(FORGET_CHECKS).map_err(failed)?;
        conn.execute_batch(FORGET_NODE).map_err(failed)?;
        conn.close().map_err(|(_, error)| partial.failed(&error))?;
        partial.sync()?;
        put_in_place(partial, &self.database, true, |whole| whole.publish(true))?;
        Ok(held)
    }
}

/// A snapshot that is being received, under a name of its own. It goes away when it is dropped.
#[derive(Debug)]
pub struct Landing {
    partial: Partial,
}

impl Landing {
    fn begin(target: &Path, bytes: u64) -> Result<Self, CopyError> {
        check_room(directory_of(target), bytes.saturating_add(FREE_BYTES_MIN))?;
        Ok(Self { partial: Partial::create(target, Path::new("the snapshot"))? })
    }

    /// Begins to receive a snapshot that is to be a file.
    pub fn to_file(target: &Path, bytes: u64) -> Result<Self, CopyError> {
        Self::begin(target, bytes)
    }

    /// Returns the file to write to. It is closed before the snapshot is used.
    pub fn file(&self) -> Result<File, CopyError> {
        self.partial.writable()
    }

    /// Checks what was received, and gives it its name.
    pub fn save(self, force: bool, watch: &mut Watch<'_>) -> Result<Identity, TakeError> {
        let held = check(&self.partial, watch)?;
        self.partial.publish(force)?;
        Ok(held)
    }
}

/// Refuses a name that a snapshot must not have: an existing file's, or one of a database's.
pub fn check_name(target: &Path, force: bool) -> Result<(), CopyError> {
    check_target(target, &directory_of(target).join(DATABASE_FILE), force)
}

/// Looks whether what was received is a whole database of a node, and says of which.
fn check(partial: &Partial, watch: &mut Watch<'_>) -> Result<Identity, TakeError> {
    (watch.progress)(Progress { doing: Doing::Checking, done: 0, total: 0 });
    let image = open_image(partial.path()).map_err(TakeError::unusable)?;
    let Image { mut conn, identity, .. } = image;
    match quick_check(&mut conn, &watch.is_cancelled) {
        Ok(None) => Ok(identity),
        Err(_) | Ok(Some(_)) if watch.is_cancelled.load(Ordering::Relaxed) => {
            Err(CopyError::Cancelled.into())
        }
        Ok(Some(detail)) => Err(TakeError::Unusable(format!("it is damaged ({detail})"))),
        Err(error) => Err(TakeError::unusable(ImageError::of(partial.path(), &error))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;

    use super::*;
    use crate::crdt::storage::Storage;
    use crate::crdt::{Batch, RowOp};
    use crate::store::Store;
    use crate::store::trial::{ME, NOW, T, Trial, rows, run};
    use crate::types::Version;

    const YOU: NodeId = NodeId([0x22; 16]);
    const CLUSTER: ClusterId = ClusterId([3; 16]);

    fn watched<T>(work: impl FnOnce(&mut Watch<'_>) -> T) -> T {
        work(&mut Watch { progress: &mut |_| {}, is_cancelled: Arc::default() })
    }

    fn request(trial: &Trial) -> Request {
        let data_dir = trial.config.data_dir.clone();
        Request { data_dir, format_max: FORMAT, bytes_min: 0 }
    }

    fn bytes_of(trial: &Trial) -> Vec<u8> {
        let mut made = watched(|watch| make(&request(trial), watch)).unwrap();
        let mut bytes = Vec::new();
        made.file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, made.bytes);
        bytes
    }

    fn names(config: &OpenConfig) -> Vec<String> {
        let entries = std::fs::read_dir(&config.data_dir).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn elsewhere(trial: &Trial, node: NodeId) -> OpenConfig {
        let data_dir = trial.dir.path().join(format!("of-{node}"));
        let (node, cluster) = (Some(node), Some(CLUSTER));
        OpenConfig { data_dir, node, cluster, ..trial.config.clone() }
    }

    fn take(config: &OpenConfig, bytes: &[u8]) -> Result<Identity, TakeError> {
        let vacancy = Vacancy::take(config).unwrap().expect("no database yet");
        let landing = vacancy.begin(bytes.len() as u64).unwrap();
        landing.file().unwrap().write_all(bytes).unwrap();
        let who = (config.node.unwrap(), config.cluster.unwrap());
        watched(|watch| vacancy.fill(landing, who, watch))
    }

    fn register(store: &mut Store, node: NodeId, id: &str) {
        let row =
            vec![("node_id", node.to_string().into()), ("id", id.into()), ("port", 80.into())];
        store.commit(NOW, &[RowOp::Put { table: "services", row, keep: &[] }]).unwrap();
    }

    /// Brings what the one holds to the other.
    fn pull(from: &Store, to: &mut Store) {
        for (origin, head) in from.heads().unwrap() {
            let held = to.heads().unwrap();
            let held = held.iter().find(|(other, _)| *other == origin).map_or(Version(0), |h| h.1);
            if held < head {
                let piece = from.load(origin, held, usize::MAX).unwrap().piece;
                to.apply(NOW, &Batch { pieces: vec![piece] }).unwrap();
            }
        }
    }

    /// A store with rows of its own and of others, one of them what `YOU` wrote before it lost its
    /// disk, and a check that is nobody else's business.
    fn cluster() -> Trial {
        let mut trial = Trial::new(T);
        let lost = OpenConfig { node: Some(YOU), ..elsewhere(&trial, NodeId([9; 16])) };
        let mut store = Store::open(&lost).unwrap();
        register(&mut store, YOU, "lost");
        pull(&store, &mut trial.store);
        register(&mut trial.store, ME, "mine");
        let check =
            vec![("id", "c".into()), ("definition", "{\"secret\": \"open sesame\"}".into())];
        let check = RowOp::Put { table: "__tribune_checks", row: check, keep: &[] };
        trial.store.commit(NOW, &[check]).unwrap();
        trial.write(&["INSERT INTO t (id, v) VALUES (1, 'one'), (2, 'two')"]);
        trial.write(&["DELETE FROM t WHERE id = 2"]);
        trial
    }

    #[test]
    fn another_node_goes_on_with_a_snapshot_under_an_origin_of_its_own() {
        let mut trial = cluster();
        let (heads, fingerprint) =
            (trial.store.heads().unwrap(), trial.store.fingerprint().unwrap());
        let bytes = bytes_of(&trial);
        assert_eq!(names(&trial.config).iter().filter(|name| name.contains("snap")).count(), 0);
        let contains = |what: &str| bytes.windows(what.len()).any(|found| found == what.as_bytes());
        assert!(contains("one") && !contains("sesame"), "a check's secrets stay on their node");

        // What is written after the copy was made comes as it always does.
        trial.write(&["INSERT INTO t (id, v) VALUES (3, 'after')"]);
        let config = elsewhere(&trial, YOU);
        assert_eq!(take(&config, &bytes).unwrap().node, ME);
        let mut store = Store::open(&config).unwrap();
        let origin = store.origin();
        assert_eq!((origin.node, store.identity().cluster), (YOU, config.cluster));
        let known = heads.iter().filter(|(other, _)| other.node == YOU).map(|(other, _)| other);
        assert!(known.clone().count() == 1 && known.clone().all(|held| held.epoch < origin.epoch));
        assert_eq!(store.heads().unwrap(), heads, "it has written nothing, and knows all the rest");
        assert_eq!(store.fingerprint().unwrap(), fingerprint);
        assert_eq!(rows(&store, "SELECT id FROM t"), ["1"]);
        assert_eq!(rows(&store, "SELECT id FROM __tribune_checks"), [""; 0]);

        // Its writes reach the node that the snapshot is from, and those reach it.
        let sql = "INSERT INTO t (id, v) VALUES (4, 'mine')";
        run(&mut store, &[sql]).unwrap();
        pull(&store, &mut trial.store);
        pull(&trial.store, &mut store);
        assert_eq!(rows(&store, "SELECT id FROM t ORDER BY id"), ["1", "3", "4"]);
        assert_eq!(store.fingerprint().unwrap(), trial.store.fingerprint().unwrap());
        assert_eq!(store.heads().unwrap(), trial.store.heads().unwrap());

        // What it wrote before it lost its disk is shown, until it is withdrawn.
        let all = "SELECT id FROM services ORDER BY id";
        assert_eq!(rows(&store, all), ["'lost'", "'mine'"]);
        register(&mut store, YOU, "new");
        assert_eq!(store.withdraw(NOW).unwrap().len(), 1);
        assert_eq!(rows(&store, all), ["'mine'", "'new'"]);
        pull(&store, &mut trial.store);
        assert_eq!(rows(&trial.store, all), ["'mine'", "'new'"]);
        assert_eq!(store.fingerprint().unwrap(), trial.store.fingerprint().unwrap());
        // The next start is a restart.
        let heads = store.heads().unwrap();
        drop(store);
        assert!(Vacancy::take(&config).unwrap().is_none(), "there is a database now");
        let store = Store::open(&config).unwrap();
        assert_eq!((store.origin(), store.heads().unwrap()), (origin, heads));
    }

    #[test]
    fn what_is_no_whole_database_of_another_node_leaves_the_directory_empty() {
        let trial = cluster();
        let good = bytes_of(&trial);
        let config = elsewhere(&trial, YOU);
        let mut damaged = good.clone();
        let middle = damaged.len() / 2 / 4096 * 4096;
        damaged[middle..middle + 8_192].fill(0x55);
        let mut foreign = good.clone();
        foreign[68..72].copy_from_slice(&7_u32.to_be_bytes());
        let mut newer = good.clone();
        newer[60..64].copy_from_slice(&99_u32.to_be_bytes());
        let own = OpenConfig { node: Some(ME), ..config.clone() };
        for (config, bytes, part) in [
            (&config, &damaged[..], "damaged ("),
            (&config, &good[..good.len() / 2], "damaged ("),
            (&config, &foreign[..], "application_id 7"),
            (&config, &newer[..], "version 99"),
            (&config, &b"dear aunt, "[..], "not an SQLite database"),
            (&config, &[][..], "belongs to no node"),
            (&own, &good[..], "this very node"),
        ] {
            let error = take(config, bytes).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert_eq!(names(config), ["tribune.lock"], "{part}");
        }
        take(&config, &good).unwrap();
        Store::open(&config).unwrap();
    }

    #[test]
    fn a_snapshot_of_another_cluster_is_refused() {
        let trial = cluster();
        let Trial { store, dir, config } = trial;
        drop(store);
        let config = OpenConfig { cluster: Some(ClusterId([1; 16])), ..config };
        let trial = Trial { store: Store::open(&config).unwrap(), dir, config };
        let error = take(&elsewhere(&trial, YOU), &bytes_of(&trial)).unwrap_err();
        assert!(matches!(error, TakeError::OtherCluster { .. }), "{error}");
    }

    #[test]
    fn a_start_clears_away_what_a_killed_one_has_left_and_takes_the_place_of_an_empty_file() {
        let trial = cluster();
        let config = elsewhere(&trial, YOU);
        std::fs::create_dir(&config.data_dir).unwrap();
        for name in [".tribune.db.partial", ".tribune.snapshot.partial", "tribune.db"] {
            std::fs::write(config.data_dir.join(name), "").unwrap();
        }
        let vacancy = Vacancy::take(&config).unwrap().expect("nothing that counts");
        assert_eq!(names(&config), ["tribune.db", "tribune.lock"]);
        assert!(matches!(Store::open(&config), Err(OpenError::InUse { .. })), "it is held");
        let error = vacancy.begin(1 << 60).unwrap_err();
        assert!(matches!(error, CopyError::NoRoom { .. }), "{error}");
        drop(vacancy);
        take(&config, &bytes_of(&trial)).unwrap();
        assert_eq!(rows(&Store::open(&config).unwrap(), "SELECT id FROM t"), ["1"]);
    }

    #[test]
    fn what_is_too_small_or_too_new_for_who_asks_is_not_made() {
        let trial = cluster();
        let made = |request: Request| watched(|watch| make(&request, watch));
        let small = Request { bytes_min: 8 << 20, ..request(&trial) };
        assert!(matches!(made(small), Err(MakeError::Small { bytes: 4_096.. })));
        let old = Request { format_max: FORMAT - 1, ..request(&trial) };
        let error = made(old).unwrap_err();
        assert!(error.to_string().contains("update that one"), "{error}");
        let is_cancelled = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let error = make(&request(&trial), &mut Watch { progress: &mut |_| {}, is_cancelled });
        assert!(matches!(error, Err(MakeError::Copy(CopyError::Cancelled))));
        assert!(!names(&trial.config).iter().any(|name| name.contains("snapshot")));
    }

    #[test]
    fn a_snapshot_as_a_file_is_what_a_restore_takes() {
        use crate::store::restore::{Restore, restore};

        let trial = cluster();
        let bytes = bytes_of(&trial);
        let target = trial.dir.path().join("snapshot.db");
        let landing = Landing::to_file(&target, bytes.len() as u64).unwrap();
        landing.file().unwrap().write_all(&bytes).unwrap();
        assert_eq!(watched(|watch| landing.save(false, watch)).unwrap().node, ME);
        assert!(matches!(check_name(&target, false), Err(CopyError::Exists { .. })));
        assert!(check_name(&trial.config.data_dir.join(DATABASE_FILE), true).is_err());
        let config = elsewhere(&trial, YOU);
        let request = Restore {
            file: target,
            data_dir: config.data_dir.clone(),
            node: config.node,
            cluster: config.cluster,
            new_node: true,
            new_cluster: false,
            discard: false,
        };
        watched(|watch| restore(&request, watch)).unwrap();
        let store = Store::open(&config).unwrap();
        assert_eq!(store.fingerprint().unwrap(), trial.store.fingerprint().unwrap());
    }
}
