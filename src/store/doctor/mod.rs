//! Looks for what is wrong with a database and says what to do: the file, the rows and their
//! clocks, and what another node has otherwise. It reads only, from one snapshot, and repairs
//! nothing.

mod compare;
mod finding;
mod hold;
mod walk;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode};

pub use self::compare::{Comparison, HeadDifference, KeyRange, TableDifference};
pub use self::finding::{Finding, Kind, Weight};
pub use self::walk::TableSum;
pub(super) use self::walk::hash as row_hash;

use self::hold::{Hold, Look};
use self::walk::Walk;
use super::copy::{self, Doing, Log, Strain, Watch, bytes_of, directory_of, free_bytes};
use super::database::{Identity, file_of, identity_of, past_of};
use super::image::{ImageError, open_image};
use super::life::{Beside, Doubt, Mark};
use super::maintain::WAL_BYTES_MAX;
use super::open::{DATABASE_FILE, LOCK_FILE, OpenError, has_log, open_reader, wal_path};
use super::{guard, migrate, schema};
use crate::types::{ClusterId, Origin, Version};

/// How many of one kind are shown.
const EXAMPLES_MAX: usize = 5;

/// What must be free on the node's disk: what its log may grow to.
const FREE_BYTES_WANTED: u64 = WAL_BYTES_MAX;

const QUICK_CHECK: &str = "PRAGMA quick_check(20)";
const INTEGRITY_CHECK: &str = "PRAGMA integrity_check(20)";

/// What to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    pub subject: Subject,
    /// Hold the indexes against the tables, too.
    pub full: bool,
    /// A backup of another node to compare with.
    pub compare: Option<PathBuf>,
}

/// The database to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Subject {
    /// That of a node, which may run.
    DataDir(PathBuf),
    /// A backup.
    File(PathBuf),
}

/// What a look has shown.
#[derive(Clone, PartialEq, Debug)]
pub struct Diagnosis {
    pub database: PathBuf,
    /// `None`: the file is too damaged to tell.
    pub identity: Option<Identity>,
    pub sqlite: &'static str,
    /// The version of the tables.
    pub version: Option<i32>,
    pub database_bytes: u64,
    pub wal_bytes: u64,
    /// On the disk of a node's database.
    pub free_bytes: Option<u64>,
    /// The origins that are held, and how far.
    pub heads: Vec<(Origin, Version)>,
    /// Empty: the rows could not be read.
    pub tables: Vec<TableSum>,
    /// The worst first.
    pub findings: Vec<Finding>,
    pub comparison: Option<Comparison>,
}

impl Diagnosis {
    /// Tells whether nothing was found that somebody should do something about.
    pub fn is_healthy(&self) -> bool {
        self.findings.iter().all(|finding| finding.kind.weight() == Weight::Note)
    }

    /// Returns the node's fingerprint: equal to another's when both hold the same writes.
    pub fn fingerprint(&self) -> u64 {
        self.tables.iter().fold(0, |sum, table| sum.wrapping_add(table.fingerprint))
    }
}

/// Why nothing could be looked at.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    #[error(
        "there is no database in {data_dir}; name the node's data directory with --data-dir, its configuration with --config, or a backup with --file"
    )]
    NoDatabase { data_dir: String },
    #[error("{path} belongs to no node yet: it was never started")]
    Nobodys { path: String },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(
        "{path} is from cluster {theirs}, this database from {ours}; only nodes of one cluster can be compared"
    )]
    OtherCluster { path: String, theirs: ClusterId, ours: ClusterId },
    #[error("cannot read {path}: {detail}")]
    Unreadable { path: String, detail: String },
    #[error("interrupted")]
    Interrupted,
}

impl DoctorError {
    fn of(path: &str, error: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => Self::Interrupted,
            _ => Self::Unreadable { path, detail: error.to_string() },
        }
    }
}

/// What is enough for a node.
#[derive(Clone, Copy, Debug)]
struct Limits {
    held: copy::Limits,
    /// See [`FREE_BYTES_WANTED`].
    free_bytes_wanted: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { held: copy::Limits::default(), free_bytes_wanted: FREE_BYTES_WANTED }
    }
}

/// Looks at a database. A node beside it comes first: before its log or its disk fills up the look
/// ends, and says so among what it found.
pub fn examine(request: &Request, watch: &mut Watch<'_>) -> Result<Diagnosis, DoctorError> {
    examine_within(request, watch, Limits::default())
}

fn examine_within(
    request: &Request,
    watch: &mut Watch<'_>,
    limits: Limits,
) -> Result<Diagnosis, DoctorError> {
    let path = match &request.subject {
        Subject::DataDir(data_dir) => data_dir.join(DATABASE_FILE),
        Subject::File(file) => file.clone(),
    };
    let mut diagnosis = Diagnosis {
        sqlite: rusqlite::version(),
        database_bytes: bytes_of(&path),
        wal_bytes: bytes_of(&wal_path(&path)),
        database: path,
        identity: None,
        version: None,
        free_bytes: None,
        heads: Vec::new(),
        tables: Vec::new(),
        findings: Vec::new(),
        comparison: None,
    };
    let opened = match &request.subject {
        Subject::DataDir(data_dir) => open_own(data_dir),
        Subject::File(file) => open_file(file),
    };
    if let Subject::DataDir(_) = request.subject {
        diagnosis.look_at_disk(limits.free_bytes_wanted);
    }
    let mut conn = match opened {
        Ok(conn) => conn,
        Err(DoctorError::Open(OpenError::Damaged { detail, .. }))
        | Err(DoctorError::Image(ImageError::Damaged { detail, .. })) => {
            diagnosis.findings.push(Finding::of(Kind::Damaged).shows(detail));
            return Ok(diagnosis);
        }
        Err(error) => return Err(error),
    };
    let log = Log::of(&diagnosis.database, limits.held);
    let hold = Hold::begin(log, &watch.is_cancelled);
    let mut look = Look { progress: &mut *watch.progress, hold: Arc::clone(&hold) };
    match diagnosis.look(&mut conn, request, &mut look) {
        Err(DoctorError::Interrupted) => {
            let strain = hold.strain().ok_or(DoctorError::Interrupted)?;
            diagnosis.findings.push(Finding::of(Kind::GivenUp).shows(told(strain)));
        }
        looked => looked?,
    }
    diagnosis.findings.sort_by_key(|finding| (finding.kind, finding.table.clone()));
    Ok(diagnosis)
}

fn told(strain: Strain) -> String {
    match strain {
        Strain::Log { grown } => format!(
            "the node wrote {} MiB meanwhile, all of which its log has to keep until the end",
            grown >> 20
        ),
        Strain::Disk { free } => {
            format!("only {} MiB are free on the disk, and the node's log grows", free >> 20)
        }
    }
}

/// Tells whether a node uses a data directory. That takes the lock for an instant, which would
/// refuse a node that starts in it: ask only where the answer matters.
fn is_in_use(data_dir: &Path) -> bool {
    // The node has it locked alone; two who ask share it.
    let lock = File::open(data_dir.join(LOCK_FILE)).map(|file| file.try_lock_shared());
    matches!(lock, Ok(Err(TryLockError::WouldBlock)))
}

fn open_own(data_dir: &Path) -> Result<Connection, DoctorError> {
    let database = data_dir.join(DATABASE_FILE);
    let path = database.display().to_string();
    if matches!(database.try_exists(), Ok(false)) {
        return Err(DoctorError::NoDatabase { data_dir: data_dir.display().to_string() });
    }
    let conn = open_reader(&database).map_err(|error| OpenError::of(&path, error))?;
    if migrate::check(&conn, &path)? == 0 {
        return Err(DoctorError::Nobodys { path });
    }
    Ok(conn)
}

fn open_file(file: &Path) -> Result<Connection, DoctorError> {
    Ok(open_image(file)?.conn)
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Runs SQLite's own check, and keeps what it said until it was ended.
fn check(conn: &Connection, is_full: bool, lines: &mut Vec<String>) -> rusqlite::Result<()> {
    let sql = if is_full { INTEGRITY_CHECK } else { QUICK_CHECK };
    let mut statement = conn.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        lines.push(row.get(0)?);
    }
    Ok(())
}

impl Diagnosis {
    /// Looks at everything that is in the database.
    fn look(
        &mut self,
        conn: &mut Connection,
        request: &Request,
        look: &mut Look<'_>,
    ) -> Result<(), DoctorError> {
        let name = self.database.display().to_string();
        let failed = |error| DoctorError::of(&name, error);
        look.hold.watch(conn).map_err(failed)?;
        // One snapshot: a row and its clock are of the same moment.
        let snapshot = conn.unchecked_transaction().map_err(failed)?;
        let is_whole = match self.look_at_file(&snapshot, request, look) {
            Err(error) if is_damage(&error) => {
                self.findings.push(Finding::of(Kind::Damaged).shows(error.to_string()));
                false
            }
            is_whole => is_whole.map_err(failed)?,
        };
        if is_whole {
            self.look_at_rows(&snapshot, request, look)?;
        }
        Ok(())
    }

    /// Looks at the file, its surroundings and who it belongs to. Tells whether the rows can be
    /// looked at.
    fn look_at_file(
        &mut self,
        conn: &Connection,
        request: &Request,
        look: &mut Look<'_>,
    ) -> rusqlite::Result<bool> {
        // The snapshot begins with the first statement.
        let version: i32 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
        look.at(Doing::Checking, 0, 0)?;
        let mut lines = Vec::new();
        let checked = check(conn, request.full, &mut lines);
        let is_whole = lines == ["ok"];
        if !is_whole && !lines.is_empty() {
            let finding = Finding::of(Kind::Damaged);
            let lines = lines.iter().flat_map(|line| line.lines());
            self.findings.push(lines.fold(finding, |finding, line| finding.shows(line.to_owned())));
        }
        checked?;
        self.version = Some(version);
        // What is still in the log counts, too.
        let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let bytes = pragma("page_count")? * pragma("page_size")?;
        self.database_bytes = bytes.cast_unsigned();
        self.identity = identity_of(conn)?;
        if version < migrate::VERSION {
            let text = format!("version {version}, this program's is {}", migrate::VERSION);
            self.findings.push(Finding::of(Kind::Older).shows(text));
        }
        if self.identity.is_none() {
            self.findings.push(Finding::of(Kind::Nobodys));
        }
        if let Subject::DataDir(_) = request.subject {
            self.look_at_past(conn)?;
        }
        Ok(is_whole && version == migrate::VERSION)
    }

    /// Looks whether the node can go on counting where its database ends.
    fn look_at_past(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        let file = file_of(&self.database).ok();
        if let Some((written_in, mark)) = past_of(conn)? {
            let beside = Beside::read(directory_of(&self.database));
            let doubt = mark.doubt(beside.as_deref(), has_log(&self.database), &Mark::new());
            let doubt = if written_in == file { doubt } else { Some(Doubt::Copied) };
            // A life that goes on has not ended; whether it has a log tells nothing, since the node
            // empties it now and then.
            let is_going_on =
                doubt == Some(Doubt::TailLost) && is_in_use(directory_of(&self.database));
            self.findings.extend(doubt.filter(|_| !is_going_on).map(|doubt| match doubt {
                Doubt::Copied | Doubt::Exchanged => Finding::of(Kind::Copied),
                Doubt::TailLost => Finding::of(Kind::TailLost),
            }));
        }
        Ok(())
    }

    /// Looks whether the node has the room that it needs.
    fn look_at_disk(&mut self, free_bytes_wanted: u64) {
        if self.wal_bytes > WAL_BYTES_MAX {
            let text = format!("{} MiB", self.wal_bytes >> 20);
            self.findings.push(Finding::of(Kind::LogLarge).shows(text));
        }
        self.free_bytes = free_bytes(directory_of(&self.database)).ok();
        let Some(free) = self.free_bytes else { return };
        let text = format!("{} MiB are free", free >> 20);
        if free < free_bytes_wanted {
            self.findings.push(Finding::of(Kind::DiskFull).shows(text));
        } else if free < self.database_bytes {
            self.findings.push(Finding::of(Kind::DiskTight).shows(text));
        }
    }

    fn look_at_rows(
        &mut self,
        conn: &Connection,
        request: &Request,
        look: &mut Look<'_>,
    ) -> Result<(), DoctorError> {
        let path = self.database.display().to_string();
        let failed = |error| DoctorError::of(&path, error);
        for table in guard::unguarded(conn).map_err(failed)? {
            let finding = Finding::of(Kind::Unguarded).shows(table.clone());
            self.findings.push(Finding { table: Some(table), ..finding });
        }
        let mut asides = Finding { count: 0, ..Finding::of(Kind::SchemaAside) };
        for (kind, table, name, reason) in schema::asides(conn).map_err(failed)? {
            asides.add(|| format!("{kind} {table} {name}: {reason}"));
        }
        self.findings.extend(Some(asides).filter(|asides| asides.count > 0));
        let own = self.identity.as_ref().map(Identity::origin);
        let walked = match Walk::through(conn, own, look).map_err(failed)? {
            Ok(walked) => walked,
            Err(finding) => {
                self.findings.push(finding);
                return Ok(());
            }
        };
        self.heads = walked.origins.heads();
        self.tables.clone_from(&walked.sums);
        self.findings.extend(walked.findings.iter().cloned());
        if walked.is_cut {
            return Err(DoctorError::Interrupted);
        }
        if let Some(other) = &request.compare {
            self.compare(conn, &walked, request, other, look)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crdt::storage::Storage;
    use crate::crdt::{Batch, Commit, Piece, RowOp};
    use crate::store::backup::{Backup, backup};
    use crate::store::schema::{Mode, SchemaRequest};
    use crate::store::trial::{ME, NOW, T, Trial, in_memory, run, source};
    use crate::store::{OpenConfig, Store};
    use crate::types::NodeId;

    const YOU: NodeId = NodeId([0x22; 16]);

    fn look(request: &Request) -> Diagnosis {
        let progress = &mut |_| {};
        examine(request, &mut Watch { progress, is_cancelled: Arc::default() }).unwrap()
    }

    fn look_at(trial: &Trial) -> Diagnosis {
        let subject = Subject::DataDir(trial.config.data_dir.clone());
        look(&Request { subject, full: true, compare: None })
    }

    /// Lists what was found: kind, table, count.
    fn found(diagnosis: &Diagnosis) -> Vec<String> {
        let line = |finding: &Finding| {
            let table = finding.table.as_deref().unwrap_or("-");
            format!("{} {table} {}", finding.kind.code(), finding.count)
        };
        diagnosis.findings.iter().map(line).collect()
    }

    fn backed_up(trial: &Trial, name: &str) -> PathBuf {
        let target = trial.dir.path().join(name);
        let data_dir = trial.config.data_dir.clone();
        let request = Backup { data_dir, target: target.clone(), force: false };
        let progress = &mut |_| {};
        backup(&request, &mut Watch { progress, is_cancelled: Arc::default() }).unwrap();
        target
    }

    /// A store with live, dead, merged and parked rows, all of them as they should be.
    fn healthy() -> Trial {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id, v) VALUES (1, 'a'), (2, 'b'), (3, 'c')"]);
        trial.write(&["DELETE FROM t WHERE id = 2"]);
        let row = vec![("node_id", ME.to_string().into()), ("id", "web".into())];
        trial.store.commit(NOW, &[RowOp::Put { table: "services", row, keep: &[] }]).unwrap();
        // Another node writes one cell of a row, and a table that nobody here knows.
        let theirs = format!("{T} CREATE TABLE u (a TEXT NOT NULL PRIMARY KEY, b);");
        let mut other = in_memory(YOU, &theirs);
        let me = trial.store.origin();
        let all = trial.store.load(me, Version(0), usize::MAX).unwrap().piece;
        other.apply(NOW, &Batch { pieces: vec![all] }).unwrap();
        for sql in ["UPDATE t SET w = 'theirs' WHERE id = 3", "INSERT INTO u VALUES ('x', 'y')"] {
            let commit = run(&mut other, &[sql]).unwrap().1.unwrap();
            let piece = Piece::of(commit.changeset.unwrap());
            trial.store.apply(NOW, &Batch { pieces: vec![piece] }).unwrap();
        }
        trial
    }

    /// Writes to the database as another program would.
    fn meddle(trial: &Trial, sql: &str) {
        let conn = Connection::open(trial.store.path().unwrap()).unwrap();
        // As if the guard had been removed, and put back.
        guard::admit(&conn).unwrap();
        conn.execute_batch(sql).unwrap();
    }

    #[test]
    fn a_healthy_database_is_told_so_beside_the_writer_and_its_sums_are_the_stores() {
        let trial = healthy();
        let diagnosis = look_at(&trial);
        assert_eq!(found(&diagnosis), ["parked u 1"]);
        assert!(diagnosis.is_healthy());
        assert_eq!(diagnosis.fingerprint(), trial.store.fingerprint().unwrap());
        assert_eq!(diagnosis.heads, trial.store.heads().unwrap());
        let t = diagnosis.tables.iter().find(|table| table.name == "t").unwrap();
        assert_eq!((t.live, t.dead), (2, 1));
        let file = backed_up(&trial, "copy.db");
        let request = Request { subject: Subject::File(file), full: false, compare: None };
        let copy = look(&request);
        assert_eq!((copy.fingerprint(), copy.heads), (diagnosis.fingerprint(), diagnosis.heads));
        assert!(copy.findings.iter().all(|finding| finding.kind == Kind::Parked));
    }

    #[test]
    fn what_another_program_did_is_found_with_table_and_key() {
        for (sql, wanted, example) in [
            ("INSERT INTO t (id) VALUES (9)", "row-unknown t 1", "9"),
            ("DELETE FROM t WHERE id = 1", "row-gone t 1", "1"),
            ("INSERT INTO t (id) VALUES (2)", "row-undead t 1", "2"),
            ("UPDATE t SET v = CAST(x'ff' AS TEXT) WHERE id = 1", "value-unreadable t 1", "1"),
            ("UPDATE __tribune_log SET version = 77 WHERE version = 1", "index-wrong t 2", "1"),
            ("DROP TRIGGER __tribune_guard_update_t", "unguarded t 1", "t"),
            ("DELETE FROM __tribune_log WHERE origin = 2", "index-wrong t 1", "3"),
            ("UPDATE __tribune_log SET rows = x'ff' WHERE origin = 2", "log-unreadable - 2", ""),
            ("UPDATE t SET v = 'x' WHERE id = 1", "sum-wrong t 1", "is kept"),
            ("UPDATE __tribune_heads SET value = 2 WHERE id = 1", "beyond-head services 1", "web"),
            (
                "UPDATE __tribune_rows SET clock = x'00' WHERE tbl =
                    (SELECT id FROM __tribune_tables WHERE name = 't')",
                "clock-unreadable t 3",
                "",
            ),
            ("UPDATE __tribune_tables SET id = 99 WHERE name = 't'", "names-wrong - 1", ""),
        ] {
            let trial = healthy();
            meddle(&trial, sql);
            let diagnosis = look_at(&trial);
            assert!(!diagnosis.is_healthy(), "{sql}");
            let lines = found(&diagnosis);
            assert!(lines.contains(&wanted.to_owned()), "{sql}: {lines:?}");
            let shown = &diagnosis.findings[lines.iter().position(|line| line == wanted).unwrap()];
            let is_named = shown.examples.iter().any(|key| key.contains(example));
            assert!(is_named || example.is_empty(), "{shown:?}");
            assert!(!shown.what().is_empty() && !shown.kind.advice().is_empty());
        }
    }

    fn hear(to: &mut Trial, commit: Commit) {
        let piece = Piece::of(commit.changeset.unwrap());
        to.store.apply(NOW, &Batch { pieces: vec![piece] }).unwrap();
    }

    fn other_trial(of: &Trial, node: NodeId) -> Trial {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        let config = OpenConfig { data_dir, node: Some(node), ..of.config.clone() };
        Trial { store: Store::open(&config).unwrap(), dir, config }
    }

    /// Changes the schema of the whole cluster.
    fn reshape(trial: &mut Trial, sql: &str) -> Commit {
        let mode = Mode::Apply { allow_drop: true };
        let request = SchemaRequest { sources: vec![source(sql)], mode, dry_run: false };
        let mut group = trial.store.group(NOW);
        group.schema(&request).unwrap();
        (*group.commit().unwrap().pop().unwrap()).clone()
    }

    #[test]
    fn what_a_drop_leaves_behind_counts_for_nothing_here_and_in_a_comparison() {
        let wide = "CREATE TABLE a (id INTEGER NOT NULL PRIMARY KEY, v, w);";
        let gone = "CREATE TABLE b (id INTEGER NOT NULL PRIMARY KEY, v);";
        let mut trial = Trial::new("");
        let mut other = other_trial(&trial, YOU);
        for commit in [
            reshape(&mut trial, &format!("{wide} {gone}")),
            trial.write(&["INSERT INTO a VALUES (1, 'v', 'w')", "INSERT INTO b VALUES (1, 'x')"]),
        ] {
            hear(&mut other, commit);
        }
        let early = backed_up(&other, "early.db");
        // One node clears away rows that it holds, and another gets some that it never shows.
        let narrow = reshape(&mut trial, &wide.replace(", w)", ")"));
        let dropped = reshape(&mut trial, "DROP TABLE b");
        let late = ["UPDATE a SET w = 'late'", "INSERT INTO b VALUES (2, 'late')"];
        let late = late.map(|sql| other.write(&[sql]));
        for commit in late {
            hear(&mut trial, commit);
        }
        let compare = |file: &Path| {
            let subject = Subject::DataDir(trial.config.data_dir.clone());
            look(&Request { subject, full: true, compare: Some(file.to_owned()) })
        };
        // The other has not dropped anything yet, and in the early backup it has not written.
        for file in [early, backed_up(&other, "late.db")] {
            let diagnosis = compare(&file);
            assert_eq!(found(&diagnosis), Vec::<String>::new());
            assert_eq!(diagnosis.fingerprint(), trial.store.fingerprint().unwrap());
            assert!(diagnosis.tables.iter().all(|table| table.name != "b"));
        }
        hear(&mut other, narrow);
        hear(&mut other, dropped);
        let diagnosis = compare(&backed_up(&other, "dropped.db"));
        assert_eq!(found(&diagnosis), Vec::<String>::new());
        assert_eq!(diagnosis.comparison.unwrap().tables, []);
        let diagnosis = look_at(&other);
        assert_eq!(found(&diagnosis), Vec::<String>::new());
        assert_eq!(diagnosis.fingerprint(), other.store.fingerprint().unwrap());
        assert_eq!(diagnosis.fingerprint(), trial.store.fingerprint().unwrap());
    }

    #[test]
    fn a_node_that_catches_up_is_not_told_that_it_is_wrong() {
        let mut first = Trial::new(T);
        let mut second = other_trial(&first, YOU);
        let mut third = other_trial(&first, NodeId([0x33; 16]));
        for trial in [&mut second, &mut third] {
            trial.store.apply_schema(NOW, &[source(T)]).unwrap();
        }
        hear(&mut second, first.write(&["INSERT INTO t (id, v) VALUES (1, 'first')"]));
        let update = second.write(&["UPDATE t SET v = 'second', w = 'second' WHERE id = 1"]);
        // The update brings the row's life along, whose writer is not heard of yet.
        hear(&mut third, update);
        let diagnosis = look_at(&third);
        assert_eq!(found(&diagnosis), Vec::<String>::new());
        // A cell beyond its writer's head comes again: a note.
        meddle(&third, "UPDATE __tribune_heads SET value = 0 WHERE id > 0");
        let diagnosis = look_at(&third);
        assert_eq!(found(&diagnosis), ["head-behind t 1"]);
        assert!(diagnosis.is_healthy());
    }

    #[test]
    fn a_look_ends_before_the_node_beside_it_is_in_trouble_and_tells_what_it_has_found() {
        use crate::store::copy::Progress;
        let all = Limits::default();
        let log = Limits { held: copy::Limits { log_bytes_max: 0, ..all.held }, ..all };
        let held = copy::Limits { free_bytes_min: u64::MAX, ..all.held };
        let disk = Limits { held, free_bytes_wanted: u64::MAX };
        // The check, the walk, and the comparison; each of them while the node writes.
        for (limits, at, full, codes) in [
            (log, Doing::Checking, false, &["given-up"][..]),
            (log, Doing::Checking, true, &["given-up"]),
            (disk, Doing::Checking, false, &["given-up", "disk-full"]),
            (log, Doing::Reading, false, &["given-up", "row-undead"]),
            (
                log,
                Doing::Comparing,
                false,
                &["given-up", "diverged", "row-undead", "sum-wrong", "parked"],
            ),
            (all, Doing::Copying, false, &["diverged", "row-undead", "sum-wrong", "parked"]),
        ] {
            let mut trial = healthy();
            trial.write(&[
                "WITH RECURSIVE n(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n LIMIT 5000)
                INSERT INTO t (id, v) SELECT i, 'some' FROM n",
            ]);
            trial.write(&["INSERT INTO kv (key) VALUES ('k')"]);
            let file = backed_up(&trial, "copy.db");
            meddle(&trial, "INSERT INTO t (id) VALUES (2); UPDATE kv SET value = 'other'");
            meddle(&trial, "UPDATE t SET v = 'other' WHERE id = 20");
            let data_dir = trial.config.data_dir.clone();
            let subject = Subject::DataDir(data_dir);
            let request = Request { subject, full, compare: Some(file) };
            let mut nth = 0;
            let progress = &mut |progress: Progress| {
                // The second table to be compared: the first has been told.
                nth += u32::from(progress.doing == at);
                if progress.doing == at && (at != Doing::Comparing || nth == 2) {
                    trial.write(&["REPLACE INTO t VALUES (7, randomblob(500000), 'x')"]);
                }
            };
            let mut watch = Watch { progress, is_cancelled: Arc::default() };
            let diagnosis = examine_within(&request, &mut watch, limits).unwrap();
            let found: Vec<&str> = diagnosis.findings.iter().map(|f| f.kind.code()).collect();
            let given_up = diagnosis.findings.iter().find(|f| f.kind == Kind::GivenUp);
            // One table differs or two, as far as it came.
            let mut found = found;
            found.dedup();
            assert_eq!(found, codes, "{at:?} {limits:?}");
            assert!(!diagnosis.is_healthy());
            if let Some(given_up) = given_up {
                let wanted =
                    if limits.free_bytes_wanted == u64::MAX { "are free" } else { "wrote" };
                assert!(given_up.examples[0].contains(wanted), "{given_up:?}");
            }
        }
    }

    #[test]
    fn a_check_is_ended_in_its_middle() {
        let mut trial = healthy();
        trial
            .write(&["WITH RECURSIVE n(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n LIMIT 5000)
            INSERT INTO t (id, v) SELECT i, 'some' FROM n"]);
        let mut conn = open_own(&trial.config.data_dir).unwrap();
        let limits = copy::Limits { log_bytes_max: 0, ..copy::Limits::default() };
        for is_full in [false, true] {
            let log = Log::of(trial.store.path().unwrap(), limits);
            let hold = Hold::begin(log, &Arc::default());
            hold.watch(&mut conn).unwrap();
            let mut lines = Vec::new();
            check(&conn, is_full, &mut lines).unwrap();
            assert_eq!(lines, ["ok"]);
            hold.watch(&mut conn).unwrap();
            trial.write(&["REPLACE INTO t VALUES (7, randomblob(500000), 'x')"]);
            let error = check(&conn, is_full, &mut Vec::new()).unwrap_err();
            assert!(hold::is_interrupted(&error), "{error}");
            assert!(matches!(hold.strain(), Some(Strain::Log { grown }) if grown > 500_000));
        }
    }

    #[test]
    fn who_asks_for_the_end_of_a_look_is_not_told_of_the_log() {
        let trial = healthy();
        let subject = Subject::DataDir(trial.config.data_dir.clone());
        let request = Request { subject, full: false, compare: None };
        let is_cancelled = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let error = examine(&request, &mut Watch { progress: &mut |_| {}, is_cancelled });
        assert!(matches!(error, Err(DoctorError::Interrupted)), "{error:?}");
    }

    #[test]
    fn a_node_that_runs_has_lost_nothing_when_its_log_is_empty() {
        let trial = healthy();
        let empty = "PRAGMA wal_checkpoint(TRUNCATE)";
        trial.store.conn.query_row(empty, [], |_| Ok(())).unwrap();
        assert!(!has_log(&trial.config.data_dir.join(DATABASE_FILE)));
        assert_eq!(found(&look_at(&trial)), ["parked u 1"]);
        // The same files once nobody runs on them: the machine has gone down.
        let Trial { mut store, dir, config } = trial;
        store.broken = Some("the machine goes down".to_owned());
        drop(store);
        let subject = Subject::DataDir(config.data_dir.clone());
        let diagnosis = look(&Request { subject, full: false, compare: None });
        assert_eq!(found(&diagnosis), ["parked u 1", "tail-lost - 1"]);
        drop(dir);
    }

    #[test]
    fn damage_is_found_and_the_rows_are_left_alone() {
        let mut trial = healthy();
        trial
            .write(&["WITH RECURSIVE n(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n LIMIT 3000)
            INSERT INTO t (id, v) SELECT i, 'some text to fill pages' FROM n"]);
        let Trial { store, dir, config } = trial;
        drop(store);
        let path = config.data_dir.join(DATABASE_FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2 / 4096 * 4096;
        bytes[middle..middle + 4096].fill(0x55);
        std::fs::write(&path, bytes).unwrap();
        let subject = Subject::DataDir(config.data_dir.clone());
        let diagnosis = look(&Request { subject, full: false, compare: None });
        assert_eq!(diagnosis.findings[0].kind, Kind::Damaged);
        assert!(!diagnosis.findings[0].examples.is_empty() && diagnosis.tables.is_empty());
        drop(dir);
    }

    #[test]
    fn what_was_dropped_counts_no_more() {
        let mut trial = Trial::new("");
        let change = |trial: &mut Trial, sql: &str| {
            let (sources, mode) = (vec![source(sql)], Mode::Apply { allow_drop: true });
            let mut group = trial.store.group(NOW);
            group.schema(&SchemaRequest { sources, mode, dry_run: false }).unwrap();
            group.commit().unwrap();
        };
        let u = "CREATE TABLE u (a TEXT NOT NULL PRIMARY KEY, b, c);";
        change(&mut trial, &format!("{T} {u}"));
        trial.write(&["INSERT INTO u VALUES ('x', 1, 2)", "INSERT INTO t (id) VALUES (1)"]);
        change(&mut trial, &u.replace(", c", ""));
        trial.write(&["UPDATE u SET b = 3"]);
        change(&mut trial, "DROP TABLE t;");
        change(&mut trial, T);
        trial.write(&["INSERT INTO t (id) VALUES (7)"]);
        let diagnosis = look_at(&trial);
        assert_eq!(found(&diagnosis), Vec::<String>::new());
        assert_eq!(diagnosis.fingerprint(), trial.store.fingerprint().unwrap());
        let names: Vec<&str> = diagnosis.tables.iter().map(|table| &*table.name).collect();
        assert_eq!(names, ["t\x002", "tribune_schema", "u"]);
    }

    #[test]
    fn what_keeps_a_row_aside_is_told() {
        let check = "CREATE TABLE c (id INTEGER NOT NULL PRIMARY KEY, n INT CHECK (n < 9));";
        let mut trial = Trial::new(check);
        let mut other = in_memory(YOU, &check.replace("CHECK (n < 9)", ""));
        let commit = run(&mut other, &["INSERT INTO c VALUES (1, 50)"]).unwrap().1.unwrap();
        let piece = Piece::of(commit.changeset.unwrap());
        trial.store.apply(NOW, &Batch { pieces: vec![piece] }).unwrap();
        let diagnosis = look_at(&trial);
        assert_eq!(found(&diagnosis), ["quarantined c 1"]);
        assert!(diagnosis.findings[0].examples[0].contains("CHECK"), "{diagnosis:?}");
    }

    #[test]
    fn two_nodes_are_compared_row_by_row_where_both_hold_the_same() {
        let mut trial = healthy();
        let (me, data_dir) = (trial.store.origin(), trial.dir.path().join("other"));
        let config = OpenConfig { data_dir, node: Some(YOU), ..trial.config.clone() };
        let mut other = Store::open(&config).unwrap();
        other.apply_schema(NOW, &[source(T)]).unwrap();
        let all = trial.store.load(me, Version(0), usize::MAX).unwrap().piece;
        other.apply(NOW, &Batch { pieces: vec![all] }).unwrap();
        let mut other = Trial { store: other, dir: tempfile::tempdir().unwrap(), config };
        let file = backed_up(&other, "early.db");
        let compare = |trial: &Trial, file: &Path| {
            let subject = Subject::DataDir(trial.config.data_dir.clone());
            look(&Request { subject, full: false, compare: Some(file.to_owned()) })
        };
        // The other lacks a node's two writes. That is no fault.
        let diagnosis = compare(&trial, &file);
        assert!(diagnosis.is_healthy(), "{:?}", diagnosis.findings);
        let comparison = diagnosis.comparison.unwrap();
        assert_eq!(comparison.heads.len(), 1);
        assert_eq!((comparison.heads[0].here, comparison.heads[0].there), (Version(2), Version(0)));
        let behind: Vec<_> = comparison.tables.iter().map(|t| (&*t.table, t.behind)).collect();
        assert_eq!(behind, [("t", 1), ("u", 1)]);

        // A row that differs although both hold all that was written to it.
        meddle(&other, "UPDATE t SET v = 'meddled' WHERE id = 1");
        let file = backed_up(&other, "late.db");
        let diagnosis = compare(&trial, &file);
        assert_eq!(found(&diagnosis), ["diverged t 1", "parked u 1"]);
        let comparison = diagnosis.comparison.unwrap();
        let t = comparison.tables.iter().find(|t| t.table == "t").unwrap();
        assert_eq!((t.differing, t.behind), (1, 1));
        assert_eq!((&*t.ranges[0].first, &*t.ranges[0].last, t.ranges[0].rows), ("1", "1", 1));

        // Who knows more of this node than it does itself was there before it was set back.
        trial.write(&["INSERT INTO t (id) VALUES (50)"]);
        let later = trial.store.load(me, Version(0), usize::MAX).unwrap().piece;
        other.store.apply(NOW, &Batch { pieces: vec![later] }).unwrap();
        let file = backed_up(&other, "last.db");
        meddle(&trial, "UPDATE __tribune_heads SET value = 3 WHERE id > 0 AND value = 4");
        assert!(found(&compare(&trial, &file)).contains(&"set-back - 1".to_owned()));
    }
}
