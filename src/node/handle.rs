//! All that faces and sources may do to a node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{oneshot, watch};
use tracing::warn;

use super::engine::{Happened, Replication};
use super::mailbox::{Job, Mailbox, Reports, Transaction};
use super::relations::Relation;
use super::standing::Standing;
use super::writer::LONG_RUN_MAX;
use crate::catalog::model::key_of;
use crate::catalog::{CheckDefinition, Command, NodeKey, View, rows};
use crate::crdt::Refusal;
use crate::live::Feed;
use crate::replica::Collection;
use crate::store::limits::YIELD_GRACE;
use crate::store::schema::{SchemaChange, SchemaRequest};
use crate::store::{LeftOut, Readers, Statement, Transacted};
use crate::types::NodeId;

/// The longest that a user's transaction may wait and run. Of this it may run for
/// [`super::writer::RUN_MAX`].
const TRANSACTION_MAX: Duration = Duration::from_secs(10);

/// How old the engine's last look around may be.
const SURVEY_LATE: Duration = Duration::from_secs(5);

/// A node, as its faces and sources hold it. Cloning is cheap; all clones are the same node.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    local: Local,
    key: NodeKey,
    feed: Arc<Feed>,
    readers: Arc<Readers>,
    own_readers: Arc<Readers>,
    mailbox: Arc<Mailbox>,
    definitions: Arc<watch::Sender<u64>>,
    members: Arc<ArcSwap<Vec<MemberStatus>>>,
    counts: Counts,
    engine: Reports,
}

/// What is counted elsewhere.
pub(super) struct Counts {
    pub(super) schema_asides: Arc<AtomicU64>,
    pub(super) tombstones: Arc<AtomicU64>,
    pub(super) left_out: LeftOut,
    pub(super) stats: Arc<ArcSwap<super::Stats>>,
}

/// Who this node is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Local {
    pub id: NodeId,
    pub name: String,
    pub datacenter: String,
    /// The address that other hosts reach this one under: IP or host name.
    pub address: String,
    /// Where it listens for gossip, as others reach it.
    pub gossip: SocketAddr,
}

/// Why a command was not carried out. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The command itself is at fault.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk or the database is at fault; the command may be sent again.
    #[error("the database failed: {0}")]
    Failed(String),
    /// Too many writes are waiting; send it again a little later.
    #[error("too many writes are waiting; try again in a second")]
    Busy,
    /// The node is going down.
    #[error("this node is shutting down")]
    Stopping,
}

/// Why an SQL transaction was not carried out. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransactError {
    /// A statement failed, or may not be run here: its place in the list, and why.
    #[error("{message}")]
    Statement { index: usize, message: String },
    /// The deadline passed.
    #[error("interrupted: the transaction took longer than its time limit")]
    TimedOut,
    /// It had run for a while, and others waited for the writer.
    #[error(
        "interrupted: other writes had waited for {} ms; nothing was written: try again, or write in smaller transactions",
        YIELD_GRACE.as_millis()
    )]
    Yielded,
    /// See [`SubmitError`].
    #[error(transparent)]
    Node(#[from] SubmitError),
}

impl Handle {
    pub(super) fn new(
        local: Local,
        feed: Arc<Feed>,
        (readers, own_readers): (Arc<Readers>, Arc<Readers>),
        (mailbox, engine): (Arc<Mailbox>, Reports),
        definitions: Arc<watch::Sender<u64>>,
        members: Arc<ArcSwap<Vec<MemberStatus>>>,
        counts: Counts,
    ) -> Self {
        let key = key_of(local.id);
        Self {
            shared: Arc::new(Shared {
                local,
                key,
                feed,
                readers,
                own_readers,
                mailbox,
                definitions,
                members,
                counts,
                engine,
            }),
        }
    }

    /// Returns who this node is.
    pub fn local(&self) -> &Local {
        &self.shared.local
    }

    /// Returns the feed of commits and views.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.shared.feed
    }

    /// Returns the catalog as it is now.
    pub fn view(&self) -> Arc<View> {
        self.shared.feed.view()
    }

    /// Returns the read-only connections, for users' queries. Their calls block: make them where
    /// blocking is allowed.
    pub fn readers(&self) -> &Arc<Readers> {
        &self.shared.readers
    }

    /// Returns the read-only connections that no user's query can occupy: for live queries and for
    /// what the node itself reads. Their calls block, too.
    pub fn own_readers(&self) -> &Arc<Readers> {
        &self.shared.own_readers
    }

    /// Carries out a command of this node. When it returns, the change is on disk and in
    /// [`Handle::view`].
    pub async fn submit(&self, command: Command) -> Result<(), SubmitError> {
        let ops = rows::plan(&self.shared.key, &command);
        let (reply, answer) = oneshot::channel();
        self.shared.mailbox.submit(Job::Ops { ops, reply })?;
        answer.await.map_err(|_| SubmitError::Stopping)?
    }

    /// Runs statements as one transaction, all or none. When it returns, they are on disk.
    ///
    /// Whatever the deadline, a transaction may wait and run for ten seconds in all, and of these run
    /// for three; once others wait for the writer, only for another quarter of a second.
    pub async fn transact(
        &self,
        statements: Vec<Statement>,
        deadline: Option<Instant>,
    ) -> Result<Transacted, TransactError> {
        self.transact_within(TRANSACTION_MAX, statements, deadline, false).await
    }

    /// As [`Handle::transact`], but for as long as the deadline says, ten minutes at the most, and
    /// whoever waits: until it is through nothing else is written on this node, neither verdicts of
    /// checks nor what other nodes send.
    pub async fn transact_long(
        &self,
        statements: Vec<Statement>,
        deadline: Option<Instant>,
    ) -> Result<Transacted, TransactError> {
        self.transact_within(LONG_RUN_MAX, statements, deadline, true).await
    }

    async fn transact_within(
        &self,
        most: Duration,
        statements: Vec<Statement>,
        deadline: Option<Instant>,
        is_long: bool,
    ) -> Result<Transacted, TransactError> {
        let latest = Instant::now() + most;
        let deadline = Some(deadline.map_or(latest, |deadline| deadline.min(latest)));
        let (reply, answer) = oneshot::channel();
        let transaction = Transaction { statements, deadline, is_long, reply };
        self.shared.mailbox.submit_transaction(transaction)?;
        answer.await.map_err(|_| SubmitError::Stopping)?
    }

    /// Changes the schema of the whole cluster. When it returns, this node has the change on disk;
    /// the others follow. A refused change says what is wrong with it.
    pub async fn change_schema(&self, request: SchemaRequest) -> Result<SchemaChange, SubmitError> {
        let (reply, answer) = oneshot::channel();
        self.shared.mailbox.submit(Job::Schema { request, reply })?;
        answer.await.map_err(|_| SubmitError::Stopping)?
    }

    /// Returns how many parts of the schema this node cannot carry out.
    pub fn schema_asides(&self) -> u64 {
        self.shared.counts.schema_asides.load(Ordering::Relaxed)
    }

    /// Returns how many deleted rows this node remembers.
    pub fn tombstones(&self) -> u64 {
        self.shared.counts.tombstones.load(Ordering::Relaxed)
    }

    /// Returns how many rows of other nodes were left out since this one started, and how many were
    /// kept aside, since SQLite refused them.
    pub fn left_out(&self) -> (u64, u64) {
        let LeftOut { refused, aside } = &self.shared.counts.left_out;
        (refused.load(Ordering::Relaxed), aside.load(Ordering::Relaxed))
    }

    /// Returns how it stands with forgetting them, as of a second ago at most.
    pub fn collection(&self) -> Collection {
        self.shared.counts.stats.load().collection.clone()
    }

    /// Returns how this node stands to the others, as of a second ago at most. Where the engine has
    /// stood still for longer, the lag says so.
    pub fn standing(&self) -> Standing {
        let stats = self.shared.counts.stats.load();
        let mut standing = stats.standing.clone();
        let age = stats.at.map_or(Duration::ZERO, |at| at.elapsed());
        if age > SURVEY_LATE {
            standing.lag = standing.lag.max(age);
        }
        standing
    }

    /// Describes how far each origin is held.
    pub async fn replication(&self) -> Result<Replication, SubmitError> {
        let (reply, answer) = oneshot::channel();
        let asked = self.shared.engine.send(Happened::Describe(reply)).await;
        asked.map_err(|_| SubmitError::Stopping)?;
        answer.await.map_err(|_| SubmitError::Stopping)
    }

    /// Declares that a node will not return. No tombstone is kept for it from now on, on no node;
    /// should it return, it takes over all rows of another one. Returns once the engine has heard
    /// of it.
    ///
    /// # Errors
    /// It is this node, or it is up: then it would not be gone.
    pub async fn forget(&self, node: NodeId) -> Result<(), SubmitError> {
        let is_up = |member: &MemberStatus| match member.state {
            MemberState::Alive | MemberState::Suspect => member.id == node,
            MemberState::Down | MemberState::Left => false,
        };
        if node == self.shared.local.id || self.members().iter().any(is_up) {
            let text = "the node is up: stop it first, and for good";
            return Err(Refusal(text.to_owned()).into());
        }
        self.shared.engine.send(Happened::Forget(node)).await.map_err(|_| SubmitError::Stopping)
    }

    /// Dials nodes to join by, now and whenever this node is alone, as those of its configuration.
    pub async fn join(&self, targets: Vec<SocketAddr>) -> Result<(), SubmitError> {
        self.shared.engine.send(Happened::Join(targets)).await.map_err(|_| SubmitError::Stopping)
    }

    /// Returns the definitions of this node's checks, by check id.
    pub async fn check_definitions(&self) -> Result<Vec<(String, CheckDefinition)>, SubmitError> {
        let readers = Arc::clone(&self.shared.own_readers);
        let read = move || readers.check_definitions();
        let rows = tokio::task::spawn_blocking(read)
            .await
            .map_err(|_| SubmitError::Stopping)?
            .map_err(|error| SubmitError::Failed(error.to_string()))?;
        let read = |(id, _service, json): (String, String, String)| match rows::definition_from_json(
            &id, &json,
        ) {
            Ok(definition) => Some((id, definition)),
            Err(error) => {
                warn!(%error, "A check is not run");
                None
            }
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    /// Changes whenever [`Handle::check_definitions`] may have.
    pub fn definitions_changed(&self) -> watch::Receiver<u64> {
        self.shared.definitions.subscribe()
    }

    /// Lists the members of the cluster that this node knows of, itself first.
    pub fn members(&self) -> Vec<MemberStatus> {
        self.shared.members.load().to_vec()
    }

    /// Returns how many writes wait for the disk.
    pub fn writes_waiting(&self) -> usize {
        self.shared.mailbox.waiting()
    }
}

/// What this node knows of a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberStatus {
    /// Its name is in its row in `nodes`, once that has arrived.
    pub id: NodeId,
    pub gossip: SocketAddr,
    pub state: MemberState,
    /// The smallest round trip of late, once one was measured.
    pub round_trip: Option<Duration>,
    /// How many versions of other nodes this node knows of and does not hold yet.
    pub versions_behind: u64,
    /// It holds the same versions as this node, and has other rows.
    pub is_unequal: bool,
    pub relation: Relation,
}

/// What SWIM holds of a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberState {
    Alive,
    Suspect,
    Down,
    /// It said goodbye.
    Left,
}
