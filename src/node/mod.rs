//! Where the core meets the world: the engine that drives membership and replication, the thread
//! that writes, and the handle through which every face and source works. It decides neither what
//! wins nor what travels, and knows no protocol of a face.

mod engine;
pub mod handle;
mod join;
mod loader;
mod mailbox;
mod relations;
pub mod standing;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::warn;

pub use engine::{HeldOrigin, Replication};
pub use handle::{Handle, Local, MemberState, MemberStatus, SubmitError, TransactError};
pub use join::look_up;
pub use relations::Relation;
pub use standing::Standing;

use self::engine::Engine;
use self::handle::Counts;
use self::join::Join;
use self::mailbox::Mailbox;
use self::relations::Relations;
use self::writer::Listeners;
use crate::catalog::{Command, Node as NodeRow, View, rows};
use crate::crdt::storage::{Storage, StorageError};
use crate::crdt::{Commit, RowEvent, RowEvents, TableEvents};
use crate::live::Feed;
use crate::net::{Events, Net};
use crate::replica::{self, Replica};
use crate::store::readers::{QueryError, READERS_DEFAULT};
use crate::store::{Loader, Readers, Store};
use crate::swim::{self, Identity, Swim};
use crate::telemetry::Pulses;
use crate::types::{Hlc, Seq};

/// The port for gossip, unless said otherwise.
pub const GOSSIP_PORT: u16 = 7401;

/// How many connections serve live queries and the node itself: no user's query can occupy them.
const OWN_READERS: usize = 3;

/// How long the writer may take to finish what waits and fold the log into the database.
const WRITER_DRAIN: Duration = Duration::from_secs(10);

/// What a node needs to know of itself beyond its store and its network.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub local: Local,
    pub meta: BTreeMap<String, String>,
    pub tagged_addresses: BTreeMap<String, String>,
    /// See [`Command::Serve`].
    pub server_port: Option<u16>,
    /// Whom to join by: `host`, `host:port`; one that answers is enough.
    pub join: Vec<String>,
    pub swim: swim::Config,
    pub replica: replica::Config,
    /// Makes the choices of membership and overlay differ from node to node.
    pub seed: u64,
}

/// What the engine counts, for metrics.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub replica: replica::Stats,
    /// Whether tombstones go, and who is waited for.
    pub collection: replica::Collection,
    pub swim: swim::Counters,
    /// What is known to exist and is not held.
    pub behind: replica::Behind,
    /// How this node stands to the others.
    pub standing: Standing,
    /// What came of holding rows against others'.
    pub findings: replica::Findings,
    /// When the engine looked last; `None`: it has not.
    pub at: Option<Instant>,
    /// Bytes that wait to be applied: those in order, and those that came too early.
    pub waiting_bytes: (usize, usize),
    /// Members that can be spoken to, this node among them.
    pub members: usize,
    /// Peers that this node pushes to.
    pub neighbours: usize,
    /// How much this node distrusts itself: 0 not at all, 8 the most.
    pub health: u8,
    /// How many members are held for up although they do not answer, since too many do not.
    pub held_back: usize,
    /// Nodes that are up and share their name with another.
    pub name_conflicts: usize,
    /// 1 where another process runs under this node's id.
    pub id_conflicts: usize,
    /// Whether this process stands aside for it.
    pub is_aside: bool,
    pub heard: Heard,
}

/// What this node heard and could not use, or not all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Heard {
    /// Messages of a kind that this release does not have.
    pub unknown_kind: u64,
    /// Messages of a version of the protocol that this release does not speak.
    pub unknown_version: u64,
    /// Messages that cannot be read.
    pub unreadable: u64,
    /// Messages of which the last fields were passed over.
    pub extended: u64,
}

/// A node that runs.
pub struct Node {
    handle: Handle,
    stats: Arc<ArcSwap<Stats>>,
    mailbox: Arc<Mailbox>,
    leave: mpsc::Sender<oneshot::Sender<()>>,
    writer: Option<thread::JoinHandle<Store>>,
}

impl Node {
    /// Starts the writer and the loader, and returns the node with its engine, which the caller
    /// runs: it ends when the node leaves, or when it cannot go on.
    ///
    /// The node's own row is written before this returns.
    pub async fn start(
        config: Config,
        store: Store,
        net: Net,
        events: Events,
        pulses: &Pulses,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static), StorageError> {
        let database = store.path().ok_or_else(in_memory)?.to_owned();
        let readers = Readers::open(&database, READERS_DEFAULT).map_err(reader_failed)?;
        readers.yield_to(&store.log_waits());
        let readers = Arc::new(readers);
        let own_readers = Readers::open(&database, OWN_READERS).map_err(reader_failed)?;
        let own_readers = Arc::new(own_readers);
        let feed = Arc::new(Feed::new(first_view(&config.local, &readers)?));
        feed.versions().restart(store.heads()?);
        let mailbox = Arc::new(Mailbox::default());
        let (reports, reported) = mpsc::channel(engine::REPORTS_MAX);
        let (leave, leaving) = mpsc::channel(1);
        let definitions = Arc::new(watch::Sender::new(0));
        let members = Arc::new(ArcSwap::default());
        let stats = Arc::new(ArcSwap::<Stats>::default());
        let start = Instant::now();
        let (listens_at, mut rng) = (net.address(), SmallRng::seed_from_u64(config.seed));
        let me = Identity::new(config.local.id, config.local.gossip, writer::wall_now().millis());
        let engine = Engine {
            me: config.local.id,
            swim: Swim::new(me, config.swim.clone(), config.seed),
            replica: Replica::new(
                store.identity().origin(),
                store.heads()?,
                config.replica.clone(),
                config.seed,
            )
            .on(&store.floor()?),
            net,
            events,
            reports: reported,
            mailbox: Arc::clone(&mailbox),
            loads: loader::Loads::start(Loader::open(&database)?, reports.clone())
                .map_err(thread_failed)?,
            looks: loader::Looks::start(Loader::open(&database)?, reports.clone())
                .map_err(thread_failed)?,
            feed: Arc::clone(&feed),
            members: Arc::clone(&members),
            join: Join::new(
                config.join.clone(),
                [config.local.gossip, listens_at],
                SmallRng::seed_from_u64(rng.random()),
            ),
            relations: Relations::new(config.local.id, SmallRng::seed_from_u64(rng.random())),
            stats: Arc::clone(&stats),
            leave: leaving,
            pulse: pulses.add("engine"),
            start,
        };
        let handle = Handle::new(
            config.local.clone(),
            Arc::clone(&feed),
            (readers, own_readers),
            (Arc::clone(&mailbox), reports.clone()),
            Arc::clone(&definitions),
            members,
            Counts {
                schema_asides: store.schema_asides(),
                tombstones: store.tombstones_held(),
                left_out: store.left_out(),
                stats: Arc::clone(&stats),
            },
        );
        let pulse = pulses.add("writer");
        let listeners = Listeners {
            mailbox: Arc::clone(&mailbox),
            feed,
            reports,
            definitions,
            pulse,
            runtime: tokio::runtime::Handle::current(),
        };
        let writer = spawn_writer(store, listeners)?;
        let node = Self { handle, stats, mailbox, leave, writer: Some(writer) };
        node.announce(&config).await?;
        Ok((node, engine.run()))
    }

    /// Returns the handle for faces and sources.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Returns the engine's counters, renewed about once a second.
    pub fn stats(&self) -> Arc<ArcSwap<Stats>> {
        Arc::clone(&self.stats)
    }

    /// Says goodbye to the cluster. Returns once that was sent, or at once when the engine is gone.
    pub async fn leave(&self) {
        let (done, farewell) = oneshot::channel();
        if self.leave.send(done).await.is_ok() {
            let _ = farewell.await;
        }
    }

    /// Lets the writer finish what waits, and folds the log into the database. Every handle's
    /// commands are refused from now on.
    pub async fn close(mut self) {
        self.mailbox.close();
        let Some(writer) = self.writer.take() else { return };
        let finished =
            tokio::task::spawn_blocking(move || writer.join().map(|mut store| store.checkpoint()));
        match tokio::time::timeout(WRITER_DRAIN, finished).await {
            Ok(Ok(Ok(Ok(_)))) => {}
            Ok(Ok(Ok(Err(error)))) => {
                warn!(%error, "The database was not closed in order; nothing is lost")
            }
            Ok(Ok(Err(_)) | Err(_)) => warn!("The writer had failed"),
            Err(_) => warn!("The writer did not finish in time; nothing acknowledged is lost"),
        }
    }

    async fn announce(&self, config: &Config) -> Result<(), StorageError> {
        let row = NodeRow {
            name: config.local.name.clone(),
            address: config.local.address.clone(),
            datacenter: config.local.datacenter.clone(),
            tagged_addresses: config.tagged_addresses.clone(),
            meta: config.meta.clone(),
            gossip: config.local.gossip.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            external_id: String::new(),
        };
        let serve = Command::Serve { port: config.server_port };
        for command in [Command::Announce(row), serve] {
            let submitted = self.handle.submit(command).await;
            submitted.map_err(|error| StorageError::Failed(error.to_string()))?;
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

/// Folds what the database holds into a first view.
fn first_view(local: &Local, readers: &Readers) -> Result<View, StorageError> {
    let mut tables = Vec::new();
    for name in rows::TABLES {
        let Some((table, rows)) = readers.rows_of(name).map_err(reader_failed)? else { continue };
        let rows = rows.into_iter().map(|row| RowEvent {
            key: table.key.iter().map(|index| row[*index].clone()).collect(),
            existed: false,
            row: Some(row),
        });
        tables.push(TableEvents { rows: RowEvents::Each(rows.collect()), table });
    }
    let at = Hlc::default().tick(writer::wall_now());
    let commit = Commit { seq: Seq::default(), at, tables, changeset: None, heads: Vec::new() };
    Ok(View::new(local.id).fold(&commit).0)
}

fn spawn_writer(
    store: Store,
    listeners: Listeners,
) -> Result<thread::JoinHandle<Store>, StorageError> {
    thread::Builder::new()
        .name("tribune-writer".to_owned())
        .spawn(move || writer::run(store, &listeners))
        .map_err(thread_failed)
}

fn in_memory() -> StorageError {
    StorageError::Failed("a node needs a database on disk".to_owned())
}

fn reader_failed(error: QueryError) -> StorageError {
    StorageError::Failed(error.to_string())
}

fn thread_failed(error: std::io::Error) -> StorageError {
    StorageError::Failed(format!("a thread cannot be started: {error}"))
}
