//! The store: the one connection that writes, and what it knows of its database.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

use super::apply::Merge;
use super::capture::Capture;
use super::gate::Gate;
use super::group::Group;
use super::maintain::WalMeter;
use super::open::{
    DATABASE_FILE, DirectoryLock, OpenConfig, OpenError, lock_directory, open_memory, open_writer,
};
use super::origins::Origins;
use super::schema::{Schema, SchemaChange, SchemaError, Source, read_sources};
use super::tables::{Table, TableId, Tables, read_local};
use super::{clocks, migrate, parked};
use crate::crdt::storage::StorageError;
use crate::crdt::{Commit, Key, pack};
use crate::types::{ClusterId, Epoch, Hlc, NodeId, Origin, Scope, Seq, Wall};

/// The table of this node's check definitions: row operations may name it, nothing of it travels.
pub const CHECKS_TABLE: &str = "__tribune_checks";

const SELECT_NODE: &str = "SELECT id, name, cluster, scope, epoch FROM __tribune_node";
const UPSERT_NODE: &str = "INSERT OR REPLACE INTO __tribune_node
    (one, id, name, cluster, scope, epoch) VALUES (1, ?1, ?2, ?3, ?4, ?5)";
pub(super) const UPDATE_EPOCH: &str = "UPDATE __tribune_node SET epoch = ?1";

/// Who a database belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    pub node: NodeId,
    pub name: String,
    pub cluster: Option<ClusterId>,
    pub scope: Scope,
    pub epoch: Epoch,
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
    /// Tables that may have parked values.
    pub(super) has_parked: BTreeSet<TableId>,
    pub(super) now: Moment,
    /// SQL texts that passed the authorizer, and so may be prepared from the cache.
    pub(super) vetted: BTreeSet<String>,
    /// Why nothing can be written any more, once the disk failed.
    pub(super) broken: Option<String>,
    pub(super) wal: WalMeter,
    identity: Identity,
    path: Option<PathBuf>,
    _lock: Option<DirectoryLock>,
}

/// What a transaction moves, and takes back when it fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Moment {
    /// The origin of this node's own writes.
    pub origin: Origin,
    pub seq: Seq,
    pub at: Hlc,
    pub refusals: u64,
    pub quarantined: u64,
}

/// Opening, and what one may ask.
impl Store {
    /// Opens the database of a data directory, and makes one where there is none.
    pub fn open(config: &OpenConfig) -> Result<Self, OpenError> {
        // The schema is read first: a mistake in a file is told before anything is made.
        let sources = read_sources(&config.schema)?;
        let schema = Schema::parse(&sources)?;
        let lock = lock_directory(&config.data_dir)?;
        let path = config.data_dir.join(DATABASE_FILE);
        let conn = open_writer(&path)?;
        Self::over(conn, Some(path), Some(lock), config, &schema)
    }

    /// Opens an empty database in memory: for tests and small simulations.
    pub fn in_memory(config: &OpenConfig) -> Result<Self, OpenError> {
        let schema = Schema::parse(&read_sources(&config.schema)?)?;
        Self::over(open_memory()?, None, None, config, &schema)
    }

    fn over(
        mut conn: Connection,
        path: Option<PathBuf>,
        lock: Option<DirectoryLock>,
        config: &OpenConfig,
        schema: &Schema,
    ) -> Result<Self, OpenError> {
        let shown = path.as_deref().map_or(":memory:".into(), |path| path.display().to_string());
        let failed = |error| OpenError::of(&shown, error);
        migrate::migrate(&mut conn, &shown)?;
        let identity = identify(&conn, config, &shown)?;
        let gate = Gate::set_up(&mut conn, true).map_err(failed)?;
        let capture = Capture::watch(&conn).map_err(failed)?;
        let local = read_local(&conn, CHECKS_TABLE).map_err(failed)?;
        let origin = identity.origin();
        let mut store = Self {
            tables: Tables::read(&conn).map_err(failed)?,
            origins: Origins::read(&conn).map_err(failed)?,
            has_parked: parked::tables(&conn).map_err(failed)?.into_iter().collect(),
            local: Arc::new(local.expect("the migrations made it")),
            now: Moment {
                origin,
                seq: Seq::default(),
                at: Hlc::default(),
                refusals: 0,
                quarantined: 0,
            },
            vetted: BTreeSet::new(),
            broken: None,
            wal: WalMeter::watch(&mut conn).map_err(failed)?,
            conn,
            capture,
            gate,
            identity,
            path,
            _lock: lock,
        };
        store.grow(schema, Wall(0))?;
        Ok(store)
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

    /// Begins a group: callers who share one sync of the disk.
    pub fn group(&mut self, now: Wall) -> Group<'_> {
        Group::new(self, now)
    }

    /// Brings the tables in line with schema files: adds tables, columns and indexes, and shows
    /// what was parked for them. Nothing that exists is changed or dropped.
    ///
    /// The commit tells what became visible; nothing of it travels.
    pub fn apply_schema(
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
        let mark = self.origins.mark();
        let result = self.grow_within(schema).and_then(|grown| {
            self.origins.save(&self.conn)?;
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
                self.origins.undo_to(mark);
                self.tables = Tables::read(&self.conn)?;
                return Err(error);
            }
        };
        self.origins.settle();
        self.capture.set_tables(self.now.origin.node, &self.tables);
        // Statements of users were vetted against the tables as they were.
        self.vetted.clear();
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
    ) -> Result<(SchemaChange, Vec<crate::crdt::TableEvents>), SchemaError> {
        let change = schema.apply(&self.conn)?;
        let is_numbered = self.tables.is_complete(&self.conn)?;
        if change.is_empty() && is_numbered {
            return Ok((change, Vec::new()));
        }
        let unknown: BTreeSet<TableId> = self.tables.without_shape().collect();
        self.tables.number_all(&self.conn)?;
        let tables = self.show_parked(&unknown)?;
        Ok((change, tables))
    }

    /// Gives rows and values a place that were waiting for one.
    fn show_parked(
        &mut self,
        unknown: &BTreeSet<TableId>,
    ) -> rusqlite::Result<Vec<crate::crdt::TableEvents>> {
        let mut rows: BTreeSet<(TableId, Key)> = BTreeSet::new();
        for id in 0..self.tables.entries().len() {
            let id = TableId::try_from(id).expect("table ids are numbers of this type");
            if self.tables.entry(id).table.is_none() {
                continue;
            }
            // All rows of a table that was unknown; of others, those that have something parked.
            let sql = if unknown.contains(&id) {
                "SELECT key FROM __tribune_rows WHERE tbl = ?1"
            } else {
                "SELECT DISTINCT key FROM __tribune_parked WHERE tbl = ?1"
            };
            let mut statement = self.conn.prepare(sql)?;
            let mut keys = statement.query([id])?;
            while let Some(row) = keys.next()? {
                rows.insert((id, row.get_ref(0)?.as_blob()?.into()));
            }
        }
        let mut removed = 0;
        rows.retain(|(id, key)| {
            let is_row = self.is_row(*id, key);
            removed += u64::from(!is_row);
            is_row
        });
        let mut merge = Merge::new(
            &self.conn,
            &mut self.tables,
            &mut self.origins,
            &mut self.has_parked,
            self.now.origin,
        );
        for (id, key) in &rows {
            merge.touch(*id, key)?;
        }
        let events = merge.write_shown()?;
        self.now.quarantined += merge.quarantined;
        self.now.refusals += removed;
        Ok(events)
    }

    /// Removes a row whose key has the wrong number of columns, which nobody could know before
    /// the table came; tells whether it is one.
    fn is_row(&mut self, id: TableId, key: &Key) -> bool {
        let Some(table) = self.tables.entry(id).table.clone() else { return true };
        let columns = pack::unpack(key).map_or(0, |columns| columns.len());
        if columns == table.info.key.len() {
            return true;
        }
        let remove = |store: &mut Self| -> rusqlite::Result<()> {
            if let Some(held) = clocks::read(&store.conn, id, key)? {
                clocks::remove(&store.conn, &mut store.origins, (id, key), &held)?;
            }
            parked::write(&store.conn, (id, key), [])
        };
        // A failure leaves it where it was, parked.
        let _ = remove(self);
        false
    }
}

impl Identity {
    /// Returns the origin of the node's own writes.
    pub fn origin(&self) -> Origin {
        Origin { scope: self.scope, node: self.node, epoch: self.epoch }
    }
}

/// Reads who the database belongs to, holds it against the configuration, and writes what is new.
fn identify(conn: &Connection, config: &OpenConfig, path: &str) -> Result<Identity, OpenError> {
    let failed = |error| OpenError::of(path, error);
    let held = conn.query_row(SELECT_NODE, [], read_identity).optional().map_err(failed)?;
    let identity = match held.clone() {
        None => Identity {
            node: config.node.unwrap_or_else(|| NodeId(Uuid::new_v4().into_bytes())),
            name: config.name.clone(),
            cluster: config.cluster,
            scope: config.scope,
            epoch: Epoch(1),
        },
        Some(held) => reconcile(held, config, path)?,
    };
    if held.as_ref() != Some(&identity) {
        let cluster = identity.cluster.map(|cluster| cluster.0);
        let (node, name) = (identity.node.0, &identity.name);
        conn.execute(UPSERT_NODE, (node, name, cluster, identity.scope.0, identity.epoch.0))
            .map_err(failed)?;
    }
    Ok(identity)
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
        epoch: if is_moved { Epoch(held.epoch.0.saturating_add(1)) } else { held.epoch },
    })
}

fn read_identity(row: &rusqlite::Row<'_>) -> rusqlite::Result<Identity> {
    let cluster: Option<[u8; 16]> = row.get(2)?;
    Ok(Identity {
        node: NodeId(row.get(0)?),
        name: row.get(1)?,
        cluster: cluster.map(ClusterId),
        scope: Scope(row.get(3)?),
        epoch: Epoch(row.get(4)?),
    })
}

/// Says what failed in the words of [`StorageError`].
pub(super) fn failed(error: rusqlite::Error) -> StorageError {
    StorageError::Failed(error.to_string())
}
