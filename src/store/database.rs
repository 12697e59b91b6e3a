//! The store: the one connection that writes, and what it knows of its database.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::backup::Backup;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension};
use tracing::warn;
use uuid::Uuid;

use super::apply::Merge;
use super::capture::Capture;
use super::clocks::{self, Hot};
use super::gate::Gate;
use super::group::Group;
use super::life::{Beside, Doubt, LIFE_FILE, Mark};
use super::limits::TRANSACTION_CELLS_MAX;
use super::log::Sweeper;
use super::maintain::WalMeter;
use super::open::{
    DATABASE_FILE, DirectoryLock, OpenConfig, OpenError, has_log, lock_directory, open_memory,
    open_writer,
};
use super::origins::Origins;
use super::schema::{
    self, Mode, Schema, SchemaChange, SchemaError, SchemaRequest, Source, fixed_sources,
    read_sources,
};
use super::staged::Told;
use super::sums::{Delta, Sums};
use super::tables::{Table, TableId, Tables, read_local, replicated};
use super::waiting::Waiting;
use super::{guard, migrate, parked, staged, tombstones};
use crate::crdt::storage::StorageError;
use crate::crdt::{ColumnId, Commit, Key, RowClock, TableEvents, pack};
use crate::telemetry::pulse::Echo;
use crate::types::{ClusterId, Epoch, Hlc, NodeId, Origin, Scope, Seq, Value, Version, Wall};

/// The table of this node's check definitions: row operations may name it, nothing of it travels.
pub const CHECKS_TABLE: &str = "__tribune_checks";

const SELECT_NODE: &str = "SELECT id, name, cluster, scope, epoch FROM __tribune_node";
const SELECT_ORIGINS: &str = "SELECT origin FROM __tribune_origins";
const SELECT_FILE: &str = "SELECT file, life, boot FROM __tribune_node";
const UPSERT_NODE: &str = "INSERT OR REPLACE INTO __tribune_node
    (one, id, name, cluster, scope, epoch, file, life, boot)
    VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
const UPDATE_LIFE: &str = "UPDATE __tribune_node SET life = ?1";
pub(super) const UPDATE_EPOCH: &str = "UPDATE __tribune_node SET epoch = ?1";

/// How many rows are shown at a time.
const ROWS_AT_ONCE: i64 = 1_000;

const SELECT_ROWS_AFTER: &str =
    "SELECT key FROM __tribune_rows WHERE tbl = ?1 AND key > ?2 ORDER BY key LIMIT ?3";
const SELECT_PARKED_AFTER: &str =
    "SELECT DISTINCT key FROM __tribune_parked WHERE tbl = ?1 AND key > ?2 ORDER BY key LIMIT ?3";

/// Something that is kept aside: kind, table, name, reason.
pub(super) type AsideRow = (String, String, String, String);

/// What was known of names and shapes at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NamesMark {
    names: usize,
    shape: u64,
}

/// What was known of heads and sums at a moment; by default, when the last commit was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct HeadsMark {
    origins: usize,
    sums: usize,
}

/// Who a database belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    pub node: NodeId,
    pub name: String,
    pub cluster: Option<ClusterId>,
    pub scope: Scope,
    pub epoch: Epoch,
}

/// What was left out of what other nodes wrote, since the store was opened.
#[derive(Clone, Debug, Default)]
pub struct LeftOut {
    /// Rows of foreign owners, and such as cannot be rows.
    pub refused: Arc<AtomicU64>,
    /// Rows that SQLite refused: they are kept aside.
    pub aside: Arc<AtomicU64>,
}

/// SQLite as this node's storage. One thread owns it; nobody else writes to the file.
#[derive(Debug)]
pub struct Store {
    pub(super) conn: Connection,
    pub(super) capture: Capture,
    pub(super) gate: Gate,
    pub(super) tables: Tables,
    /// See [`CHECKS_TABLE`].
    pub(super) local: Arc<Table>,
    pub(super) origins: Origins,
    pub(super) hot: Hot,
    pub(super) sums: Sums,
    pub(super) sweeper: Sweeper,
    /// Tables that may have parked values.
    pub(super) has_parked: BTreeSet<TableId>,
    pub(super) now: Moment,
    /// From how many changed cells on a transaction is large: what the limit says, but in tests.
    pub(super) cells_max: usize,
    /// SQL texts that passed the authorizer, and so may be prepared from the cache.
    pub(super) vetted: BTreeSet<String>,
    /// Why nothing can be written any more, once the disk failed.
    pub(super) broken: Option<String>,
    pub(super) wal: WalMeter,
    /// Counts the changes of the tables' shapes.
    shape: u64,
    asides: Arc<AtomicU64>,
    tombstones: Arc<AtomicU64>,
    left_out: LeftOut,
    /// What the log says is kept aside.
    pub(super) told_asides: BTreeSet<AsideRow>,
    /// The dropped tables of which no clock is left.
    swept: BTreeSet<TableId>,
    /// What SQLite counts up when another connection commits; `None` before the first look.
    data_version: Option<i64>,
    /// How often another program wrote to the database since it was opened.
    foreign_commits: u64,
    identity: Identity,
    path: Option<PathBuf>,
    /// `None`: in memory.
    life: Option<Beside>,
    _lock: Option<DirectoryLock>,
}

/// What a transaction moves, and takes back when it fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Moment {
    /// The origin of this node's own writes.
    pub origin: Origin,
    /// How far that was held when the database was opened.
    pub trusted: Version,
    pub seq: Seq,
    pub at: Hlc,
    pub refusals: u64,
    pub quarantined: u64,
    /// No row whose tombstone was dropped had a longer life.
    pub length: u64,
    /// Whether all rows of another node are being taken over.
    pub is_rejoining: bool,
}

/// Opening, and what one may ask.
impl Store {
    /// Opens the database of a data directory, and makes one where there is none.
    pub fn open(config: &OpenConfig) -> Result<Self, OpenError> {
        Self::open_with(config, &fixed_sources())
    }

    /// As [`Store::open`], with other tables in the place of those that every node has.
    pub(super) fn open_with(config: &OpenConfig, fixed: &[Source]) -> Result<Self, OpenError> {
        // The schema is read first: a mistake in a file is told before anything is made.
        let sources = read_sources(&config.schema)?;
        Schema::parse(&sources)?;
        let fixed = Schema::parse(fixed)?;
        let lock = lock_directory(&config.data_dir)?;
        let path = config.data_dir.join(DATABASE_FILE);
        let has_log = has_log(&path);
        let conn = open_writer(&path)?;
        let place = Some((path, has_log));
        let mut store = Self::over(conn, place, Some(lock), config, (&fixed, &sources))?;
        let request = SchemaRequest { sources, mode: Mode::Start, dry_run: false };
        for note in store.change_schema(&request)?.notes {
            warn!(note, "A schema file is older than the schema");
        }
        Ok(store)
    }

    /// Opens an empty database in memory, with the tables of `sources` and no others, of which no
    /// row of the schema tells: for tests and small simulations. Nothing else can read it.
    pub fn in_memory(config: &OpenConfig, sources: &[Source]) -> Result<Self, OpenError> {
        let schema = Schema::parse(sources)?;
        Self::over(open_memory()?, None, None, config, (&schema, &[]))
    }

    /// Opens a copy in memory of a database in memory, as the next process would.
    pub fn copy_in_memory(&self, config: &OpenConfig) -> Result<Self, OpenError> {
        let mut conn = open_memory()?;
        let failed = |error| OpenError::of(":memory:", error);
        Backup::new(&self.conn, &mut conn).and_then(|copy| copy.step(-1)).map_err(failed)?;
        Self::over(conn, None, None, config, (&Schema::parse(&[])?, &[]))
    }

    /// Opens a database in memory that somebody filled.
    #[cfg(test)]
    pub(super) fn over_copy(conn: Connection, config: &OpenConfig) -> Result<Self, OpenError> {
        Self::over(conn, None, None, config, (&Schema::parse(&[])?, &[]))
    }

    fn over(
        mut conn: Connection,
        path: Option<(PathBuf, bool)>,
        lock: Option<DirectoryLock>,
        config: &OpenConfig,
        (schema, sources): (&Schema, &[Source]),
    ) -> Result<Self, OpenError> {
        let (path, has_log) = path.map_or((None, false), |(path, has_log)| (Some(path), has_log));
        let shown = path.as_deref().map_or(":memory:".into(), |path| path.display().to_string());
        let failed = |error| OpenError::of(&shown, error);
        migrate::migrate(&mut conn, &shown)?;
        let unusable = |source| OpenError::Directory { path: shown.clone(), source };
        if path.is_some() {
            Beside::touch(&config.data_dir).map_err(unusable)?;
        }
        let file = path.as_deref().map(file_of).transpose().map_err(unusable)?;
        let mark = file.map_or_else(Mark::default, |_| Mark::new());
        let place = Place { file, mark };
        let Identified { identity, ended, is_whole } =
            identify(&conn, config, &shown, (&place, has_log))?;
        let gate = Gate::set_up(&mut conn, true).map_err(failed)?;
        let capture = Capture::watch(&conn).map_err(failed)?;
        if path.is_some() {
            capture.spill_to(&config.data_dir);
        }
        let local = read_local(&conn, CHECKS_TABLE).map_err(failed)?;
        let origin = identity.origin();
        let origins = Origins::read(&conn).map_err(failed)?;
        let trusted = origins.head(origin);
        let (length, is_rejoining) = tombstones::read_length(&conn).map_err(failed)?;
        let mut store = Self {
            tables: Tables::read(&conn).map_err(failed)?,
            has_parked: parked::tables(&conn).map_err(failed)?.into_iter().collect(),
            local: Arc::new(local.expect("the migrations made it")),
            sweeper: Sweeper::new(&origins),
            origins,
            hot: Hot::default(),
            sums: Sums::read(&conn).map_err(failed)?,
            now: Moment {
                origin,
                trusted,
                seq: Seq::default(),
                at: Hlc::default(),
                refusals: 0,
                quarantined: 0,
                length,
                is_rejoining,
            },
            cells_max: TRANSACTION_CELLS_MAX,
            vetted: BTreeSet::new(),
            broken: None,
            data_version: None,
            foreign_commits: 0,
            wal: WalMeter::watch(&mut conn).map_err(failed)?,
            shape: 0,
            asides: Arc::default(),
            tombstones: Arc::default(),
            left_out: LeftOut::default(),
            told_asides: BTreeSet::new(),
            swept: BTreeSet::new(),
            conn,
            capture,
            gate,
            identity,
            path,
            life: None,
            _lock: lock,
        };
        store.grow(schema, Wall(0))?;
        // What the node's files want is tried before it begins a life, and done once it has.
        let sources = sources.to_vec();
        store.change_schema(&SchemaRequest { sources, mode: Mode::Start, dry_run: true })?;
        // Last, so that a start that fails before leaves no trace that a life began.
        match ended {
            None => write_identity(&store.conn, &store.identity, &place).map_err(failed)?,
            Some(ended) => store.resume((ended, is_whole), &place).map_err(|error| {
                let (path, detail) = (shown.clone(), error.to_string());
                OpenError::Epoch { path, detail }
            })?,
        }
        staged::clear(&store.conn).map_err(failed)?;
        store.count_asides().map_err(failed)?;
        store.log_asides().map_err(failed)?;
        store.life = Beside::begin(&config.data_dir, &place.mark).map_err(unusable)?;
        Ok(store)
    }

    /// Goes on under the epoch that opening chose, with this node's rows of the one that ended:
    /// both in one transaction, since rows that are not taken along are withdrawn later.
    fn resume(
        &mut self,
        (ended, is_whole): (Origin, bool),
        place: &Place,
    ) -> Result<(), StorageError> {
        let identity = self.identity.clone();
        let mut group = self.group(wall_now());
        group.resume(ended, |conn| {
            if is_whole {
                tombstones::carry_settled(conn, ended, identity.origin())?;
            }
            write_identity(conn, &identity, place)
        })?;
        group.commit()?;
        Ok(())
    }

    /// Returns how many parts of the schema this node cannot carry out; it changes by itself.
    pub fn schema_asides(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.asides)
    }

    /// Returns how many deleted rows are remembered; [`Store::maintain`] renews it.
    pub fn tombstones_held(&self) -> Arc<AtomicU64> {
        self.tombstones.store(self.count_tombstones(), Ordering::Relaxed);
        Arc::clone(&self.tombstones)
    }

    /// Returns what was left out of what other nodes wrote; [`Store::maintain`] renews it.
    pub fn left_out(&self) -> LeftOut {
        self.left_out.refused.store(self.now.refusals, Ordering::Relaxed);
        self.left_out.aside.store(self.now.quarantined, Ordering::Relaxed);
        self.left_out.clone()
    }

    /// Changes the schema, by a commit of its own.
    fn change_schema(&mut self, request: &SchemaRequest) -> Result<SchemaChange, SchemaError> {
        let mut group = self.group(wall_now());
        let change = group.schema(request)?;
        group.commit().map_err(|error| SchemaError::Failed(error.to_string()))?;
        Ok(change)
    }

    fn count_asides(&self) -> rusqlite::Result<()> {
        let count = schema::asides(&self.conn)?.len();
        self.asides.store(count as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Writes to the log what is kept aside, once it has become true that it is.
    pub(super) fn tell_asides(&mut self, before: NamesMark) {
        if self.shape != before.shape
            && let Err(error) = self.log_asides()
        {
            warn!(%error, "What the schema keeps aside could not be read");
        }
    }

    fn log_asides(&mut self) -> rusqlite::Result<()> {
        let asides: BTreeSet<AsideRow> = schema::asides(&self.conn)?.into_iter().collect();
        for (kind, table, name, reason) in asides.difference(&self.told_asides) {
            tracing::error!(%kind, %table, %name, %reason, "The schema describes what this node cannot carry out; it is kept aside");
        }
        self.told_asides = asides;
        Ok(())
    }

    /// Returns who the database belongs to. The epoch is the one of now.
    pub fn identity(&self) -> Identity {
        Identity { epoch: self.now.origin.epoch, ..self.identity.clone() }
    }

    /// Returns the database's file; `None`: it is in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Returns why nothing can be written any more; `None`: all is well. A disk that failed to
    /// write or to sync may have lost pages without saying so again: only a restart, which looks
    /// at the file, makes it usable.
    pub fn fault(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// From now on users' transactions are ended when somebody has waited for this store for
    /// [`YIELD_GRACE`](super::limits::YIELD_GRACE). Said once.
    pub fn yield_to(&self, waiting: Arc<Waiting>) {
        self.gate.yield_to(waiting);
    }

    /// From now on long steps of the store's own tell the watchdog that they get on. Said once.
    pub fn echo_to(&self, echo: Echo) {
        self.gate.echo_to(echo);
    }

    #[cfg(test)]
    pub(super) fn foreign_commits(&self) -> u64 {
        self.foreign_commits
    }

    /// Looks whether somebody else committed since the last look. The caller is in a transaction,
    /// so nobody does meanwhile. Such writes have no clocks: they reach no other node, and a merge may
    /// undo them.
    pub(super) fn look_for_foreign_commits(&mut self) -> rusqlite::Result<()> {
        let version: i64 =
            self.conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if self.data_version.replace(version).is_some_and(|before| before != version) {
            self.foreign_commits += 1;
            tracing::error!(
                path = ?self.path, times = self.foreign_commits,
                "another program wrote to the database; other nodes do not hear of what it wrote"
            );
        }
        Ok(())
    }

    /// Returns a mark to come back to.
    pub(super) fn mark(&self) -> HeadsMark {
        HeadsMark { origins: self.origins.mark(), sums: self.sums.mark() }
    }

    /// Takes back what heads and sums have become since the mark.
    pub(super) fn undo_to(&mut self, mark: HeadsMark) {
        self.hot.forget();
        self.origins.undo_to(mark.origins);
        self.sums.undo_to(mark.sums);
    }

    /// Writes what a transaction that is about to be committed has moved.
    pub(super) fn save(&mut self) -> rusqlite::Result<()> {
        if self.conn.is_autocommit() {
            // SQLite has rolled back by itself: heads without their rows must not be written.
            return Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT),
                Some("SQLite rolled the transaction back".to_owned()),
            ));
        }
        self.sweeper.run(&self.conn, &self.origins)?;
        self.origins.save(&self.conn)?;
        self.sums.save(&self.conn)
    }

    /// Notes that what [`Store::save`] wrote is committed.
    pub(super) fn settle(&mut self) {
        self.origins.settle();
        self.sums.settle();
    }

    /// Returns a mark to come back to.
    pub(super) fn mark_names(&self) -> NamesMark {
        NamesMark { names: self.tables.name_count(), shape: self.shape }
    }

    /// Forgets the names and the shapes that came within what was rolled back.
    pub(super) fn forget_names_after(&mut self, mark: NamesMark) -> rusqlite::Result<()> {
        if self.shape != mark.shape {
            self.shape = mark.shape;
            self.tables = Tables::read(&self.conn)?;
            // What was parked while the tables were others is not any more, or is again.
            self.has_parked = parked::tables(&self.conn)?.into_iter().collect();
            self.count_asides()?;
            self.take_shapes();
        } else if self.tables.name_count() != mark.names {
            self.tables = Tables::read(&self.conn)?;
        }
        Ok(())
    }

    /// Tells all who hold something of the tables' shapes that they are others.
    fn take_shapes(&mut self) {
        self.capture.set_tables(self.now.origin.node, &self.tables);
        // Statements of users were vetted, and prepared, against the tables as they were.
        self.vetted.clear();
        self.conn.flush_prepared_statement_cache();
    }

    /// Brings the tables in line with the rows of the schema, which the transaction has changed.
    /// Returns what became visible by it.
    pub(super) fn bring_in_line(&mut self) -> rusqlite::Result<Vec<TableEvents>> {
        self.shape += 1;
        let carried = schema::carry_out(&self.conn, &self.tables, &self.origins)?;
        // A table that was built anew has lost its guard.
        guard::set_up(&self.conn, &replicated(&self.conn)?)?;
        self.tables.number_all(&self.conn)?;
        let forgotten = parked::forget_dropped(&self.conn, &self.tables)?;
        self.has_parked = parked::tables(&self.conn)?.into_iter().collect();
        self.asides.store(carried.asides.len() as u64, Ordering::Relaxed);
        self.take_shapes();
        let id_of = |name: &String| self.tables.get(name).map(|table| table.id);
        let whole: BTreeSet<TableId> = carried.whole.iter().filter_map(id_of).collect();
        let mut told = Told::default();
        self.show_parked(&whole, &mut told)?;
        for (id, keys) in forgotten {
            if whole.contains(&id) || self.tables.entry(id).table.is_none() {
                continue;
            }
            let keys: Vec<Key> = keys.into_iter().collect();
            for keys in keys.chunks(ROWS_AT_ONCE.unsigned_abs() as usize) {
                told.add(self.show(id, keys.to_vec())?);
            }
        }
        told.tables.retain(|events| !carried.rebuilt.contains(&*events.table.name));
        self.has_parked = parked::tables(&self.conn)?.into_iter().collect();
        Ok(told.tables)
    }

    /// Begins a group: callers who share one sync of the disk.
    pub fn group(&mut self, now: Wall) -> Group<'_> {
        Group::new(self, now)
    }

    /// Adds tables, columns and indexes of which no row of the schema tells, and shows what was
    /// parked for them. Nothing that exists is changed or dropped.
    ///
    /// The commit tells what became visible; nothing of it travels.
    pub(super) fn apply_schema(
        &mut self,
        now: Wall,
        sources: &[Source],
    ) -> Result<(SchemaChange, Option<Commit>), SchemaError> {
        let schema = Schema::parse(sources)?;
        self.grow(&schema, now)
    }

    fn grow(
        &mut self,
        schema: &Schema,
        now: Wall,
    ) -> Result<(SchemaChange, Option<Commit>), SchemaError> {
        self.conn.execute_batch("BEGIN IMMEDIATE")?;
        let mark = self.mark();
        let result = self.grow_within(schema).and_then(|grown| {
            self.save()?;
            self.conn.execute_batch("COMMIT")?;
            Ok(grown)
        });
        let (change, tables) = match result {
            Ok(grown) => grown,
            Err(error) => {
                if !self.conn.is_autocommit() {
                    // Whatever this says, the transaction is not committed.
                    let _ = self.conn.execute_batch("ROLLBACK");
                }
                self.undo_to(mark);
                self.tables = Tables::read(&self.conn)?;
                return Err(error);
            }
        };
        self.settle();
        self.take_shapes();
        self.has_parked = parked::tables(&self.conn)?.into_iter().collect();
        if tables.is_empty() {
            return Ok((change, None));
        }
        self.now.seq = Seq(self.now.seq.0 + 1);
        self.now.at = self.now.at.tick(now);
        let (seq, at) = (self.now.seq, self.now.at);
        Ok((change, Some(Commit { seq, at, tables, changeset: None, heads: Vec::new() })))
    }

    fn grow_within(
        &mut self,
        schema: &Schema,
    ) -> Result<(SchemaChange, Vec<TableEvents>), SchemaError> {
        let change = schema.apply(&self.conn)?;
        for table in guard::set_up(&self.conn, &change.tables_added)? {
            tracing::error!(
                table,
                "Somebody removed what keeps other programs from writing to this table. What they \
                 wrote reaches no other node, and a merge may undo it: write it again, with \
                 `tribune exec`"
            );
            // What they changed is seen from here on, if nowhere else.
            if let Some(id) = self.tables.get(&table).map(|table| table.id) {
                let parts = (&self.tables, &self.origins);
                self.sums.recount(&self.conn, parts, id)?;
            }
        }
        let is_numbered = self.tables.is_complete(&self.conn)?;
        if change.is_empty() && is_numbered {
            return Ok((change, Vec::new()));
        }
        let unknown: BTreeSet<TableId> = self.tables.without_shape().collect();
        self.tables.number_all(&self.conn)?;
        let mut told = Told::default();
        self.show_parked(&unknown, &mut told)?;
        Ok((change, told.tables))
    }

    /// Removes some of the clocks of tables that were dropped. They count for nothing any more;
    /// removing them with their table would hold the writer for as long as there are rows.
    pub(super) fn sweep_dropped(&mut self) -> rusqlite::Result<()> {
        let ids = (0..).zip(self.tables.entries());
        let mut dropped = ids.filter(|(id, entry)| entry.is_dropped && !self.swept.contains(id));
        let Some((id, _)) = dropped.next() else { return Ok(()) };
        let keys = self.keys_after(SELECT_ROWS_AFTER, id, &Key::from([]))?;
        if keys.is_empty() {
            self.swept.insert(id);
            return Ok(());
        }
        let transaction = self.conn.unchecked_transaction()?;
        self.hot.forget();
        for key in &keys {
            clocks::remove(&transaction, (id, key))?;
        }
        transaction.commit()?;
        self.sweeper.owe(keys.len() as u64);
        Ok(())
    }

    fn keys_after(&self, sql: &str, id: TableId, from: &Key) -> rusqlite::Result<Vec<Key>> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let keys = statement.query_map((id, &**from, ROWS_AT_ONCE), |row| {
            Ok(Key::from(row.get_ref(0)?.as_blob()?))
        })?;
        keys.collect()
    }

    /// Gives rows and values a place that were waiting for one: all rows of the tables in `whole`,
    /// of others those that have something parked.
    fn show_parked(&mut self, whole: &BTreeSet<TableId>, told: &mut Told) -> rusqlite::Result<()> {
        for id in 0..self.tables.entries().len() {
            let id = TableId::try_from(id).expect("table ids are numbers of this type");
            if self.tables.entry(id).table.is_none() {
                continue;
            }
            let sql = if whole.contains(&id) { SELECT_ROWS_AFTER } else { SELECT_PARKED_AFTER };
            let mut from = Key::from([]);
            loop {
                let keys = self.keys_after(sql, id, &from)?;
                let Some(last) = keys.last() else { break };
                from = Arc::clone(last);
                told.add(self.show(id, keys)?);
                self.gate.beat();
            }
        }
        Ok(())
    }

    fn show(&mut self, id: TableId, keys: Vec<Key>) -> rusqlite::Result<Vec<TableEvents>> {
        let count = keys.len();
        let mut rows = Vec::with_capacity(count);
        for key in keys {
            if self.is_row(id, &key)? {
                rows.push(key);
            }
        }
        let keys = rows;
        self.now.refusals += (count - keys.len()) as u64;
        let mut merge = Merge::new(self);
        for key in &keys {
            merge.touch(id, key)?;
        }
        let events = merge.write_shown()?;
        let quarantined = merge.quarantined;
        self.now.quarantined += quarantined;
        Ok(events)
    }

    /// Removes a row whose key has the wrong number of columns, which nobody could know before
    /// the table came; tells whether it is one.
    fn is_row(&mut self, id: TableId, key: &Key) -> rusqlite::Result<bool> {
        let entry = self.tables.entry(id);
        let table = entry.table.as_ref().filter(|_| !entry.is_managed);
        let columns = pack::unpack(key).map_or(0, |columns| columns.len());
        if table.is_none_or(|table| columns == table.info.key.len()) {
            return Ok(true);
        }
        let held = clocks::read(&self.conn, &self.origins, id, key)?;
        let Some(held) = held else { return Ok(false) };
        let values = parked::read(&self.conn, id, key)?;
        self.hot.forget();
        clocks::remove(&self.conn, (id, key))?;
        parked::write(&self.conn, (id, key), [])?;
        let value = |column| values.get(&column).unwrap_or(&Value::Null);
        let gone = None::<(&RowClock, fn(ColumnId) -> &'static Value)>;
        let mut delta = Delta::default();
        delta.turn((id, self.tables.entry(id)), key, Some((&held, value)), gone);
        self.sums.add(delta);
        self.sweeper.owe(1);
        Ok(false)
    }
}

/// Closes in order. A process that is killed does not come here, and that is how the next life
/// can tell.
impl Drop for Store {
    fn drop(&mut self) {
        let Some(life) = self.life.take() else { return };
        // What the disk did after it failed nobody knows. SQLite would fold the log into the
        // database now; the next start looks at both as they are.
        if self.broken.is_some() {
            // An old SQLite may not know it; there is nothing else to do about it.
            let _ = self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
            return;
        }
        let end = Uuid::new_v4().into_bytes();
        let marked = self.conn.execute(UPDATE_LIFE, [end]).map_err(|error| error.to_string());
        let closed = marked.and_then(|_| life.close(end).map_err(|error| error.to_string()));
        if let Err(error) = closed {
            warn!(%error, "It could not be noted that the database was closed in order: the next start begins a new epoch");
        }
    }
}

impl Identity {
    /// Returns the origin of the node's own writes.
    pub fn origin(&self) -> Origin {
        Origin { scope: self.scope, node: self.node, epoch: self.epoch }
    }
}

/// Returns the machine's clock.
fn wall_now() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Wall(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// Names a database on this host as long as it exists: its inode, and that of the file beside it.
/// The device is left out: btrfs, LVM and NFS number theirs anew at each boot or mount.
pub(super) type FileName = [u8; 16];

pub(super) fn file_of(path: &Path) -> std::io::Result<FileName> {
    let metadata = std::fs::metadata(path)?;
    let mut name = [0; 16];
    let beside = std::fs::metadata(path.with_file_name(LIFE_FILE));
    let beside = beside.map_or(0, |metadata| metadata.ino());
    name[..8].copy_from_slice(&beside.to_be_bytes());
    name[8..].copy_from_slice(&metadata.ino().to_be_bytes());
    Ok(name)
}

/// Where and when a life of a database begins.
struct Place {
    /// `None`: in memory.
    file: Option<FileName>,
    mark: Mark,
}

/// Returns an epoch that no earlier life of the node had, as far as a clock can say: the
/// milliseconds since 1970, in none of which a process starts twice, or the next after `held`, the
/// newest that is known, where the clock is behind. A database that is new or a copy does not know
/// which versions its peers hold of it already; a number never used before is the only one under
/// which it may write.
fn fresh_epoch(held: Epoch) -> Epoch {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let now = u64::try_from(now).unwrap_or(0);
    #[cfg(test)]
    let now = super::life::MILLISECONDS.get().unwrap_or(now);
    held.next().max(Epoch(now.max(EPOCH_FLOOR)))
}

/// No epoch by the clock is below: a moment before this program was written. Without it a host that
/// starts in 1970, until its clock is set, would be too far behind itself for its peers to tell it.
const EPOCH_FLOOR: u64 = 1_795_000_000_000;

/// Who a database belongs to from now on.
struct Identified {
    identity: Identity,
    /// The origin that the database was last written under, where it is not the identity's.
    ended: Option<Origin>,
    /// Whether that is this very disk, which lost its tail at most: what it held minutes ago, and
    /// told its peers, it holds.
    is_whole: bool,
}

/// Reads who the database belongs to, and holds it against the configuration and the file it is
/// in. Writes nothing.
fn identify(
    conn: &Connection,
    config: &OpenConfig,
    path: &str,
    (place, has_log): (&Place, bool),
) -> Result<Identified, OpenError> {
    let failed = |error| OpenError::of(path, error);
    let past = past_of(conn).map_err(failed)?;
    let doubt = doubt(past.unwrap_or_default(), &config.data_dir, place, has_log);
    let held = identity_of(conn).map_err(failed)?;
    let identity = match held.clone() {
        None => {
            let node = config.node.unwrap_or_else(|| NodeId(Uuid::new_v4().into_bytes()));
            let newest = newest_epoch(conn, node).map_err(failed)?;
            Identity {
                node,
                name: config.name.clone(),
                cluster: config.cluster,
                scope: config.scope,
                epoch: match (config.first_epoch, place.file) {
                    (Some(first), _) => first.max(newest.next()),
                    (None, Some(_)) => fresh_epoch(newest),
                    (None, None) => Epoch(1),
                },
            }
        }
        Some(held) => match doubt {
            None => reconcile(held, config, path)?,
            Some(doubt) => {
                let why = match doubt {
                    Doubt::Copied | Doubt::Exchanged => "it was copied or restored",
                    Doubt::TailLost => {
                        "the machine went down under it, and its last writes may be lost"
                    }
                };
                warn!(path, why, "The database goes on under a new epoch");
                let identity = reconcile(held, config, path)?;
                let newest = newest_epoch(conn, identity.node).map_err(failed)?;
                Identity { epoch: fresh_epoch(newest.max(identity.epoch)), ..identity }
            }
        },
    };
    let ended = held.map(|held| held.origin()).filter(|origin| *origin != identity.origin());
    let is_whole = !matches!(doubt, Some(Doubt::Copied | Doubt::Exchanged));
    Ok(Identified { identity, ended, is_whole })
}

/// Says whether the end of a database's last life may be missing.
fn doubt(
    (written_in, last): (Option<FileName>, Mark),
    data_dir: &Path,
    place: &Place,
    has_log: bool,
) -> Option<Doubt> {
    if written_in != place.file {
        return Some(Doubt::Copied);
    }
    last.doubt(Beside::read(data_dir).as_deref(), has_log, &place.mark)
}

/// Tells whether more than a process went down since a database with a log was written: its disk
/// may hold one sector and lack another. Yes, too, where the database does not tell.
pub(super) fn may_be_torn(conn: &Connection, path: &Path) -> bool {
    let Some(data_dir) = path.parent() else { return true };
    let (Ok(Some(past)), Ok(file)) = (past_of(conn), file_of(path)) else { return true };
    let place = Place { file: Some(file), mark: Mark::new() };
    doubt(past, data_dir, &place, true).is_some()
}

/// Reads who a database belongs to; `None`: nobody yet.
pub(super) fn identity_of(conn: &Connection) -> rusqlite::Result<Option<Identity>> {
    conn.query_row(SELECT_NODE, [], read_identity).optional()
}

/// Reads in which file a database was last written, and the mark of that life; `None`: it has had
/// none. No file: in memory, or in one that is left for good, as in a backup.
pub(super) fn past_of(conn: &Connection) -> rusqlite::Result<Option<(Option<FileName>, Mark)>> {
    let read =
        |row: &rusqlite::Row<'_>| Ok((row.get(0)?, Mark { life: row.get(1)?, boot: row.get(2)? }));
    conn.query_row(SELECT_FILE, [], read).optional()
}

/// Returns the newest epoch of a node that the database has heard of; 0: none.
fn newest_epoch(conn: &Connection, node: NodeId) -> rusqlite::Result<Epoch> {
    let mut statement = conn.prepare(SELECT_ORIGINS)?;
    let mut rows = statement.query([])?;
    let mut newest = Epoch(0);
    while let Some(row) = rows.next()? {
        let origin = Origin::from_bytes(row.get_ref(0)?.as_blob()?);
        if let Some(origin) = origin.filter(|origin| origin.node == node) {
            newest = newest.max(origin.epoch);
        }
    }
    Ok(newest)
}

fn write_identity(conn: &Connection, identity: &Identity, place: &Place) -> rusqlite::Result<()> {
    let Identity { node, name, cluster, scope, epoch } = identity;
    let Place { file, mark: Mark { life, boot } } = place;
    let cluster = cluster.map(|cluster| cluster.0);
    conn.execute(
        UPSERT_NODE,
        (node.0, name, cluster, scope.0, epoch.0.cast_signed(), file, life, boot),
    )?;
    Ok(())
}

fn reconcile(held: Identity, config: &OpenConfig, path: &str) -> Result<Identity, OpenError> {
    if let Some(wanted) = config.node.filter(|wanted| *wanted != held.node) {
        return Err(OpenError::OtherNode { path: path.to_owned(), held: held.node, wanted });
    }
    if let (Some(held), Some(wanted)) = (held.cluster, config.cluster)
        && held != wanted
    {
        return Err(OpenError::OtherCluster { path: path.to_owned(), held, wanted });
    }
    // Another scope is another stream of versions: it must not begin with old numbers.
    let is_moved = config.scope != held.scope;
    Ok(Identity {
        node: held.node,
        name: config.name.clone(),
        cluster: held.cluster.or(config.cluster),
        scope: config.scope,
        epoch: if is_moved { held.epoch.next() } else { held.epoch },
    })
}

fn read_identity(row: &rusqlite::Row<'_>) -> rusqlite::Result<Identity> {
    let cluster: Option<[u8; 16]> = row.get(2)?;
    Ok(Identity {
        node: NodeId(row.get(0)?),
        name: row.get(1)?,
        cluster: cluster.map(ClusterId),
        scope: Scope(row.get(3)?),
        epoch: Epoch(row.get::<_, i64>(4)?.cast_unsigned()),
    })
}

/// Says what failed in the words of [`StorageError`].
pub(super) fn failed(error: rusqlite::Error) -> StorageError {
    StorageError::Failed(fault_text(&error))
}

/// Says what the database failed of, and what helps where something does.
pub(super) fn fault_text(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => {
            "the disk is full; make room where the data directory is".to_owned()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(dir: &Path) -> Origin {
        let config = OpenConfig { data_dir: dir.to_owned(), ..OpenConfig::default() };
        Store::open(&config).unwrap().identity().origin()
    }

    #[test]
    fn a_restart_keeps_the_epoch_and_a_copy_or_a_new_database_never_has_an_old_one() {
        let home = tempfile::tempdir().unwrap();
        let (first, copy) = (home.path().join("first"), home.path().join("copy"));
        let origin = opened(&first);
        assert_eq!(opened(&first), origin, "a restart is the same life");
        assert!(
            origin.epoch.0 > 1_700_000_000_000,
            "a new database cannot know what came before it"
        );

        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(first.join(DATABASE_FILE), copy.join(DATABASE_FILE)).unwrap();
        let copied = opened(&copy);
        assert_eq!(copied.node, origin.node);
        assert!(copied.epoch > origin.epoch, "{copied} after {origin}");
        assert_eq!(opened(&copy), copied, "the copy's next start is a restart");
    }

    #[test]
    fn a_node_whose_disk_is_lost_at_once_has_an_epoch_of_its_own() {
        let home = tempfile::tempdir().unwrap();
        let epochs = [1_800_000_000_123, 1_800_000_000_124].map(|now| {
            crate::store::life::MILLISECONDS.set(Some(now));
            let data_dir = home.path().join(now.to_string());
            let config = OpenConfig { data_dir, node: Some(ME), ..OpenConfig::default() };
            Store::open(&config).unwrap().identity().epoch
        });
        assert!(epochs[0] < epochs[1], "{epochs:?}");
    }

    use crate::crdt::RowOp;
    use crate::crdt::storage::Storage;
    use crate::store::trial::{ME, NOW, T, Trial};

    #[test]
    fn a_foreign_commit_is_noticed() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id) VALUES (1)"]);
        trial.write(&["INSERT INTO t (id) VALUES (2)"]);
        assert_eq!(trial.store.foreign_commits(), 0);
        let other = Connection::open(trial.store.path().unwrap()).unwrap();
        other.execute_batch("DROP TRIGGER __tribune_guard_insert_t").unwrap();
        other.execute("INSERT INTO t (id) VALUES (9)", []).unwrap();
        trial.write(&["INSERT INTO t (id) VALUES (3)"]);
        assert_eq!(trial.store.foreign_commits(), 1);
        // What it wrote is written over, deleted and told like any other row from then on.
        let commit =
            trial.write(&["UPDATE t SET v = 1 WHERE id = 9", "DELETE FROM t WHERE id = 1"]);
        let told = crate::store::trial::changes(&commit);
        assert_eq!(told, ["t[1]@2 ", "t[9]@1 v:1=1 w:1='dw'"]);
    }

    #[test]
    fn a_second_node_on_the_same_directory_is_refused() {
        let trial = Trial::new(T);
        let error = Store::open(&trial.config).unwrap_err();
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
        trial.reopen();
    }

    #[test]
    fn the_node_keeps_its_id_and_another_one_is_refused() {
        let trial = Trial::new(T);
        let Trial { store, dir, config } = trial;
        drop(store);
        let fresh = OpenConfig { data_dir: dir.path().join("other"), node: None, ..config.clone() };
        let made = Store::open(&fresh).unwrap().identity().node;
        assert_eq!(Store::open(&fresh).unwrap().identity().node, made);
        let foreign = OpenConfig { node: Some(made), ..config.clone() };
        let error = Store::open(&foreign).unwrap_err();
        assert!(matches!(error, OpenError::OtherNode { .. }), "{error}");
        assert!(error.to_string().contains(&made.to_string()), "{error}");

        let first = OpenConfig { cluster: Some(ClusterId([1; 16])), ..config.clone() };
        assert_eq!(Store::open(&first).unwrap().identity().cluster, Some(ClusterId([1; 16])));
        let second = OpenConfig { cluster: Some(ClusterId([2; 16])), ..config.clone() };
        let error = Store::open(&second).unwrap_err();
        assert!(matches!(error, OpenError::OtherCluster { .. }), "{error}");
        assert_eq!(Store::open(&config).unwrap().identity().cluster, Some(ClusterId([1; 16])));
    }

    #[test]
    fn a_restored_database_takes_its_own_rows_along_in_the_transaction_that_changes_the_epoch() {
        let mut trial = Trial::new("");
        let row = |id: &str| {
            vec![("node_id", ME.to_string().into()), ("id", id.into()), ("port", 80.into())]
        };
        let ops = ["a", "b"].map(|id| RowOp::Put { table: "services", row: row(id), keep: &[] });
        trial.store.commit(NOW, &ops).unwrap();
        let first = trial.store.origin();
        let Trial { store, dir, config } = trial;
        drop(store);
        // The same bytes in another file: what a restore from a backup leaves.
        let path = config.data_dir.join(DATABASE_FILE);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::rename(&path, config.data_dir.join("old.db")).unwrap();
        std::fs::write(&path, bytes).unwrap();
        for _ in 0..2 {
            let store = Store::open(&config).unwrap();
            let origin = store.origin();
            assert!(origin.epoch > first.epoch);
            let heads = store.heads().unwrap();
            assert_eq!(heads, [(first, Version(1)), (origin, Version(1))]);
            for id in ["a", "b"] {
                let key = [ME.to_string().into(), id.into()];
                let inspected = store.inspect("services", &key).unwrap().unwrap();
                assert_eq!(inspected.life.stamp.origin, origin);
            }
        }
        drop(dir);
    }

    #[test]
    fn another_scope_is_another_epoch() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id) VALUES (1)"]);
        let first = trial.store.origin().epoch;
        trial.config.scope = Scope(3);
        let mut trial = trial.reopen();
        let origin = trial.store.origin();
        assert_eq!((origin.scope, origin.epoch), (Scope(3), Epoch(first.0 + 1)));
        assert_eq!(
            trial.write(&["UPDATE t SET v = 1"]).heads,
            [(origin, crate::types::Version(1))]
        );
    }

    #[test]
    fn an_acknowledged_write_is_there_although_nothing_was_closed() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id, v) VALUES (1, 'a')"]);
        // What a crashed process leaves: the database, and the log beside it.
        let crashed = trial.dir.path().join("crashed");
        std::fs::create_dir(&crashed).unwrap();
        for file in ["tribune.db", "tribune.db-wal"] {
            std::fs::copy(trial.config.data_dir.join(file), crashed.join(file)).unwrap();
        }
        let config = OpenConfig { data_dir: crashed, ..trial.config.clone() };
        let store = Store::open(&config).unwrap();
        assert_eq!(store.fingerprint().unwrap(), trial.store.fingerprint().unwrap());
        assert_eq!(store.heads().unwrap(), trial.store.heads().unwrap());
    }

    #[test]
    fn a_schema_that_is_wrong_is_told_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bad.sql");
        std::fs::write(&file, "CREATE TABLE a (x)").unwrap();
        let data_dir = dir.path().join("data");
        let config =
            OpenConfig { data_dir: data_dir.clone(), schema: vec![file], ..OpenConfig::default() };
        let error = Store::open(&config).unwrap_err();
        assert!(error.to_string().contains("bad.sql: table a: it has no primary key"), "{error}");
        assert!(!data_dir.exists());
    }

    #[test]
    fn a_database_of_another_program_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DATABASE_FILE);
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE mine (a); INSERT INTO mine VALUES (1)").unwrap();
        drop(other);
        let before = std::fs::read(&path).unwrap();
        let config = OpenConfig { data_dir: dir.path().to_owned(), ..OpenConfig::default() };
        let error = Store::open(&config).unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
        assert!(std::fs::read(&path).unwrap() == before, "the file was changed");
    }
}
