//! Answering others' wants: a few at a time, from what is on disk, in pieces of bounded size.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Config;
use super::io::{Effect, Lane, LoadId};
use super::stats::Stats;
use crate::crdt::Piece;
use crate::crdt::storage::{Bookmark, Extract};
use crate::types::{NodeId, Origin, Version};
use crate::wire::change::changeset_bytes;
use crate::wire::frame::CHANGESET_BYTES_MAX;
use crate::wire::{Cut, Message, RequestId};

/// When a peer may come back that found all places taken: a load takes a few milliseconds.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(100);

/// When a peer may come back after the storage failed.
const RETRY_AFTER_FAILURE: Duration = Duration::from_secs(2);

/// When a peer may come back that asked a node which has yet to settle.
pub(super) const RETRY_UNSETTLED: Duration = Duration::from_millis(500);

/// The wants that are being answered.
#[derive(Debug)]
pub(super) struct Serve {
    loads: BTreeMap<LoadId, Load>,
    load: LoadId,
    config: Config,
}

#[derive(Debug)]
struct Load {
    peer: NodeId,
    request: RequestId,
    from: Bookmark,
    /// Whether it takes all rows from here: that tombstones are missing is nothing to it.
    is_whole: bool,
}

impl Serve {
    pub(super) fn new(config: Config) -> Self {
        Self { loads: BTreeMap::new(), load: LoadId(0), config }
    }

    /// Forgets all that is being loaded: who asked for it asks again, perhaps somebody else.
    pub(super) fn forget_all(&mut self) {
        self.loads.clear();
    }

    /// Returns how many wants are being answered.
    pub(super) fn loads(&self) -> usize {
        self.loads.len()
    }

    /// Answers a want at once, or begins to load what was asked for. `held` is the origin's head
    /// on this node's disk. `may_part`: a version may go in parts. Where what follows it is not
    /// told, nothing would make up for what that overwrites between two of them.
    pub(super) fn on_want(
        &mut self,
        stats: &mut Stats,
        (peer, request, is_whole): (NodeId, RequestId, bool),
        (origin, from): (Origin, Bookmark),
        (held, may_part): (Version, bool),
    ) -> Effect {
        if held <= from.after {
            let piece = Piece { origin, after: held, through: held, changesets: Vec::new() };
            let pulled = Message::Pulled { request, piece, head: held, cut: Cut::default() };
            return send(peer, pulled, Lane::Control);
        }
        // One peer may not take the places of all others.
        let of_peer = self.loads.values().filter(|load| load.peer == peer).count();
        let is_full = self.loads.len() >= self.config.loads_max;
        if is_full || of_peer >= self.config.pulls_per_peer_max {
            stats.refused_busy += 1;
            return busy(peer, request, RETRY_AFTER);
        }
        self.load = LoadId(self.load.0 + 1);
        self.loads.insert(self.load, Load { peer, request, from, is_whole });
        let bytes_max = if may_part { self.config.piece_bytes_max } else { CHANGESET_BYTES_MAX };
        Effect::Load { id: self.load, origin, from, bytes_max }
    }

    /// The storage answered. `floor` tells how far tombstones of an origin may be missing;
    /// `own` is this node's stream and its head as far as the replica was
    /// told, and whether there is no more to be told: nothing beyond it is given away, or a peer
    /// would seem to know more of it.
    pub(super) fn on_loaded(
        &mut self,
        stats: &mut Stats,
        id: LoadId,
        extract: Option<Extract>,
        own: (Origin, Version, bool),
        floor: impl Fn(Origin) -> Version,
    ) -> Option<Effect> {
        let Load { peer, request, from, is_whole } = self.loads.remove(&id)?;
        let Some(mut extract) = extract else {
            return Some(busy(peer, request, RETRY_AFTER_FAILURE));
        };
        // The snapshot may be younger than the want: tombstones may have gone in between.
        let floor = floor(extract.piece.origin);
        if !is_whole && floor > extract.piece.after {
            stats.refused_below_floor += 1;
            return Some(gone(peer, request, floor));
        }
        if extract.piece.origin == own.0 {
            cut(&mut extract, own.1);
            if !own.2 {
                // Whoever asked would wait for the rest before it shows any of it.
                extract.head = extract.head.min(own.1);
            }
        }
        if !fit(&mut extract) {
            stats.oversized += 1;
            return Some(busy(peer, request, RETRY_AFTER_FAILURE));
        }
        stats.served += 1;
        let Extract { piece, head, part } = extract;
        let head = head.max(piece.through);
        let cut = Cut { from: from.part, to: part };
        Some(send(peer, Message::Pulled { request, piece, head, cut }, Lane::Repair))
    }
}

/// Cuts a piece off behind a version.
fn cut(extract: &mut Extract, through: Version) {
    let Extract { piece, part, .. } = extract;
    if *part > 0 && piece.through >= through {
        // The version that was begun is beyond it.
        piece.changesets.pop();
        *part = 0;
    }
    if piece.through > through {
        piece.changesets.retain(|changeset| changeset.stamp.version <= through);
        piece.through = through.max(piece.after);
    }
}

/// Cuts a piece to what a frame holds. Returns false when not even its first changeset fits.
fn fit(extract: &mut Extract) -> bool {
    let mut bytes = 0;
    let changesets = &extract.piece.changesets;
    let fitting = changesets.iter().take_while(|changeset| {
        bytes += changeset_bytes(changeset);
        bytes <= CHANGESET_BYTES_MAX
    });
    let fitting = fitting.count();
    if fitting == changesets.len() {
        return true;
    }
    let Some(last) = fitting.checked_sub(1) else { return false };
    let through = changesets[last].stamp.version;
    cut(extract, through);
    true
}

pub(super) fn gone(peer: NodeId, request: RequestId, floor: Version) -> Effect {
    send(peer, Message::Gone { request, floor }, Lane::Control)
}

pub(super) fn busy(peer: NodeId, request: RequestId, retry_after: Duration) -> Effect {
    send(peer, Message::Busy { request, retry_after }, Lane::Control)
}

fn send(to: NodeId, message: Message, lane: Lane) -> Effect {
    Effect::Send { to: vec![to], message, lane }
}
