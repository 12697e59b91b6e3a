//! Everything that can happen to a replica, and everything it can ask for.

use std::sync::Arc;
use std::time::Duration;

use super::audit::LookId;
use crate::crdt::content::{Look, Mend, Sight};
use crate::crdt::storage::{Bookmark, Collected, Extract, Past, Tidied, Tidy};
use crate::crdt::{Batch, Changeset, Key, Part, Piece, Staging};
use crate::types::{Epoch, NodeId, Origin, Version};
use crate::wire::Message;

/// Something happened. Inputs that stem from the storage ([`Input::Committed`],
/// [`Input::Applied`], [`Input::EpochBegun`]) come in the order in which they became true there.
#[derive(Clone, Debug)]
pub enum Input {
    /// This node committed a local transaction, and it is on disk.
    Committed(Arc<Changeset>),
    /// This node committed a local transaction that is too large to be told whole, and it is on disk:
    /// its own origin is now held up to `head`.
    /// `longest`: no row of it died in a longer life (see [`crate::crdt::Floor::longest`]).
    CommittedLarge { origin: Origin, head: Version, longest: u64 },
    /// A peer said something. The bytes were decoded by [`crate::wire::decode`], and the sender
    /// is known for certain.
    Received { from: NodeId, message: Message },
    /// A member is alive and can be reached. Said again, it updates the round trip.
    PeerUp { node: NodeId, round_trip: Option<Duration> },
    /// A member is down, left, or cannot be reached.
    PeerDown(NodeId),
    /// Messages to this peer were dropped, because its queue was full or its connection broke.
    Overrun(NodeId),
    /// The answer to [`Effect::Apply`] or [`Effect::ApplyStaged`].
    Applied { id: BatchId, outcome: ApplyOutcome },
    /// The answer to [`Effect::Stage`]: they are kept, or nothing was written.
    Staged { staging: Staging, is_done: bool },
    /// The answer to [`Effect::Load`]; `None` when the storage failed.
    Loaded { id: LoadId, extract: Option<Extract> },
    /// The answer to [`Effect::BeginEpoch`]: what is written from now on is of `origin`, and the one
    /// that ended is held as far as that says.
    EpochBegun { origin: Origin, ended: (Origin, Version) },
    /// The answer to [`Effect::Withdraw`]: it is done, or nothing was written.
    Withdrawn { is_done: bool },
    /// The operator says that a node will not return. It is no member any more until it begins
    /// another epoch; all members come to know.
    Forget(NodeId),
    /// The answer to [`Effect::Meet`]: they are noted, or nothing was written.
    Met { is_done: bool },
    /// The answer to [`Effect::Collect`].
    Collected { outcome: Option<CollectOutcome> },
    /// The answer to [`Effect::Depart`]: the head of the origin that deleted rows, 0 where there were
    /// none; `None`: the storage failed.
    Departed { head: Option<Version> },
    /// The answer to [`Effect::Tidy`]; `None`: nothing was written.
    Tidied { tidied: Option<Tidied> },
    /// The answer to [`Effect::Rejoin`]: the new origin; `None`: nothing was written. What was
    /// written under it is told by [`Input::Committed`] after this.
    Rejoined { begun: Option<Origin> },
    /// The answer to [`Effect::Settle`]: it is done, or nothing was written.
    Settled { is_done: bool },
    /// The answer to [`Effect::Look`]; `None` when the storage failed.
    Sighted { id: LookId, sight: Option<Sight> },
    /// The answer to [`Effect::Mend`]: the rows that are others now, each with the origin that gave
    /// it life; `None`: nothing was written.
    Mended { rows: Option<Vec<(Key, Origin)>> },
    /// The answer to [`Effect::Recount`]: it is done, or failed.
    Recounted,
    /// The deadline has come. Every other input does this one's work too.
    Tick,
}

/// How a batch fared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ApplyOutcome {
    /// It is on disk. The heads are those that it moved: [`crate::crdt::Commit::heads`].
    Done { heads: Vec<(Origin, Version)> },
    /// Nothing was written. The replica sends the same pieces again a little later.
    Failed,
}

/// Tombstones were dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CollectOutcome {
    /// How many, and whether any are left that may go.
    pub collected: Collected,
    /// [`crate::crdt::Floor::length`] as it is now.
    pub length: u64,
}

/// Something to do. Effects are carried out in their order, or at least each kind is.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Send the message to each of these peers: encode it once. It may be dropped where a queue is
    /// full; then the replica is told by [`Input::Overrun`].
    Send { to: Vec<NodeId>, message: Message, lane: Lane },
    /// Merge the batch into the storage in one transaction, and answer [`Input::Applied`], whatever
    /// happens. There is never more than one outstanding.
    Apply { id: BatchId, batch: Batch },
    /// Call [`crate::crdt::storage::Storage::apply_staged`], and answer [`Input::Applied`], whatever
    /// happens. It takes the place of an [`Effect::Apply`].
    ApplyStaged { id: BatchId, staging: Staging, last: Piece },
    /// Call [`crate::crdt::storage::Storage::stage`], and answer [`Input::Staged`], whatever happens.
    /// There is never more than one outstanding for one number.
    Stage { staging: Staging, parts: Vec<Part> },
    /// Call [`crate::crdt::storage::Storage::unstage`], after what was asked for before. Where it fails
    /// the next start does its work.
    Unstage(Staging),
    /// Call [`crate::crdt::storage::Storage::load`], and answer [`Input::Loaded`], whatever
    /// happens. At most [`crate::replica::Config::loads_max`] are outstanding.
    Load { id: LoadId, origin: Origin, from: Bookmark, bytes_max: usize },
    /// A peer holds versions of this node's own stream that this node does not: the tail was lost,
    /// or the disk is an old copy. Call [`crate::crdt::storage::Storage::begin_epoch`] before the
    /// next local commit and answer [`Input::EpochBegun`]. Where that fails, repeat it: the replica
    /// asks only once.
    BeginEpoch { above: Epoch },
    /// Call [`crate::crdt::storage::Storage::withdraw`], and answer [`Input::Withdrawn`], whatever
    /// happens: rows of this node's own have come back from other nodes, and had their time.
    Withdraw,
    /// Call [`crate::crdt::storage::Storage::meet`], and answer [`Input::Met`], whatever happens. There
    /// is never more than one outstanding.
    Meet { members: Vec<(NodeId, Epoch)>, forgotten: Vec<(NodeId, Epoch)> },
    /// Call [`crate::crdt::storage::Storage::collect`], and answer [`Input::Collected`], whatever
    /// happens. There is never more than one outstanding.
    Collect { heads: Vec<(Origin, Version)>, forgotten: Vec<(NodeId, Epoch)>, rows_max: usize },
    /// Call [`crate::crdt::storage::Storage::depart`], and answer [`Input::Departed`], whatever happens.
    /// There is never more than one outstanding.
    Depart { under: Origin, held: Vec<(Origin, Version)> },
    /// Call [`crate::crdt::storage::Storage::tidy`], and answer [`Input::Tidied`], whatever happens.
    /// There is never more than one outstanding.
    Tidy(Tidy),
    /// This node was away for too long, or its disk was set back: call
    /// [`crate::crdt::storage::Storage::rejoin`], and answer [`Input::Rejoined`], whatever happens.
    Rejoin { held: Vec<(Origin, Version)>, length: u64 },
    /// Call [`crate::crdt::storage::Storage::settle`], and answer [`Input::Settled`], whatever
    /// happens, after an [`Input::Committed`] for each of its commits that has a changeset.
    Settle(Past),
    /// Call [`crate::crdt::storage::Storage::look`], and answer [`Input::Sighted`], whatever happens.
    /// There are never more than three outstanding.
    Look { id: LookId, look: Look },
    /// Rows of this node are not what others have: call [`crate::crdt::storage::Storage::mend`], and
    /// answer [`Input::Mended`], whatever happens. There is never more than one outstanding.
    Mend(Mend),
    /// Call [`crate::crdt::storage::Storage::recount`], and answer [`Input::Recounted`], whatever
    /// happens.
    Recount,
}

/// Which of a connection's queues a message waits in, most urgent first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lane {
    /// Small, and others wait for it: handshakes, digests, wants.
    Control,
    /// This node's own fresh commits: never dropped while the connection lives.
    Own,
    /// Other nodes' fresh commits: the oldest is dropped first.
    Relay,
    /// Answers to wants: never starved, never in the way.
    Repair,
}

/// Names a batch among those of this replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct BatchId(pub u64);

/// Names a load among those of this replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct LoadId(pub u64);
