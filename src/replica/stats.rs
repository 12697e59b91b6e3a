//! What a replica counts. Whoever shows the numbers reads them from outside.

use std::time::Duration;

/// Counts since the replica was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Own commits sent to the neighbours.
    pub own_pushed: u64,
    /// Pushes that brought the next version of their origin.
    pub pushes_next: u64,
    /// Pushes that came before what they follow.
    pub pushes_early: u64,
    /// Pushes of what was there already.
    pub pushes_known: u64,
    /// Pushes dropped for want of room, or because their origin is set aside.
    pub pushes_dropped: u64,
    /// Pushes passed on, counted once for each neighbour they went to.
    pub relayed: u64,
    /// Commits offered to neighbours.
    pub offered: u64,
    /// Commits asked for that neighbours offered.
    pub takes: u64,
    /// Of these, those asked for again, since the one who was asked did not send them.
    pub takes_again: u64,
    /// Commits sent to neighbours that asked for them.
    pub taken: u64,
    /// Wants sent.
    pub pulls: u64,
    /// Wants answered with something new.
    pub pulls_useful: u64,
    /// Wants answered with nothing new.
    pub pulls_empty: u64,
    /// Wants that were told to come back later.
    pub pulls_busy: u64,
    /// Wants that were not answered in time.
    pub pulls_timed_out: u64,
    /// Catch-ups that had to be applied in parts.
    pub pulls_split: u64,
    /// Runs of parts that went to the disk until the rest came.
    pub stagings: u64,
    /// Of these, those that could not be written.
    pub stagings_failed: u64,
    /// Wants of others answered with a piece.
    pub served: u64,
    /// Wants of others that were told to come back later.
    pub refused_busy: u64,
    /// Pieces that could not be sent because they are longer than a frame. The writer's limit
    /// should make this impossible.
    pub oversized: u64,
    /// Digests of moved heads sent.
    pub digests: u64,
    /// Comparisons of whole ledgers begun.
    pub compares: u64,
    /// Batches written.
    pub batches: u64,
    /// Batches that the storage failed to write.
    pub batches_failed: u64,
    /// Times an origin was set aside because its changes could not be written.
    pub set_aside: u64,
    /// Pieces that the storage did not take although it should have.
    pub unjoined: u64,
    /// Things that peers said and that cannot be, or that there was no room to remember.
    pub rejected: u64,
    /// Epochs asked for because a peer knew more of this node's stream than it did itself.
    pub epochs_lost: u64,
    /// Peers named epochs of this node that are too far ahead to be believed.
    pub epochs_refused: u64,
    /// Links made with neighbours.
    pub links_made: u64,
    /// Links ended, by either side or by a peer's going down.
    pub links_ended: u64,
    /// Times a peer's queue overran.
    pub overruns: u64,
    /// Tombstones dropped.
    pub tombstones_dropped: u64,
    /// Wants that a peer could not answer because it has dropped tombstones beyond what this node
    /// holds. Where this rises and `rejoins` does not, this node does not catch up.
    pub below_floor: u64,
    /// Wants of others that were refused for the same reason.
    pub refused_below_floor: u64,
    /// Times this node began to take all rows anew.
    pub rejoins: u64,
    /// Forgotten nodes whose rows this node deleted by itself, as all members do.
    pub departures: u64,
    /// Origins of which nothing is remembered any more.
    pub origins_erased: u64,
    /// Things that forgotten nodes said, and commits that came as they were sent by nodes that have
    /// to be heard of through others.
    pub unheard: u64,
}

/// What waits in a replica at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Queues {
    /// Bytes that wait to be applied, but for those that are being written.
    pub ready_bytes: usize,
    /// Bytes that came before what they follow.
    pub early_bytes: usize,
    /// Those of the origin with the most.
    pub early_origin_bytes: usize,
    /// Bytes of pulls that are not whole yet, in memory.
    pub staged_bytes: usize,
    /// Those of the origin with the most.
    pub staged_origin_bytes: usize,
    /// Wants that were sent and not answered.
    pub pulls: usize,
    /// Wants of others that are being answered.
    pub loads: usize,
}

/// How the collection of tombstones stands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Collection {
    /// The round of asking all members that is under way.
    pub round: u64,
    /// How long it has been.
    pub round_age: Duration,
    /// How many versions, of all origins, tombstones were dropped of.
    pub collected: u64,
    /// Who has not told its heads in it: while somebody is missing, no tombstone goes.
    pub awaited: Vec<crate::types::NodeId>,
    /// Who was forgotten, and may have returned under another epoch since.
    pub forgotten: Vec<crate::types::NodeId>,
    /// How many origins are retired: nothing of them is left, and that is remembered for a while.
    pub retired: usize,
    /// Whether this node may speak. If not, it has to catch up with one that may, and what it writes
    /// stays with it until then.
    pub is_settled: bool,
    /// Whether it is taking all rows anew, and its own are a mixture.
    pub is_rejoining: bool,
}

/// How far a node is behind one origin, of which it knows that there is more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OriginLag {
    pub origin: crate::types::Origin,
    /// The version up to which this node holds it.
    pub held: crate::types::Version,
    /// The latest version that a peer is known to hold.
    pub heard: crate::types::Version,
    /// Since when the next one that is waited for is missing; `None`: more has only just been heard
    /// of.
    pub since: Option<crate::types::Time>,
    /// Whom it can be had from.
    pub sources: Vec<crate::types::NodeId>,
    /// Nobody is known to have it any more.
    pub is_lost: bool,
}

/// How far a node is behind what it has heard of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Behind {
    /// Origins of which something is missing.
    pub origins: usize,
    /// Versions that some peer holds and this node does not.
    pub versions: u64,
    /// Since when the longest missing one is known to be missing.
    pub since: Option<crate::types::Time>,
}
