//! What is missing, who holds it, and whom to ask next. A version that stays missing for a while
//! is pulled; until then it probably comes by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::Config;
use super::overlay::Overlay;
use super::stats::{Behind, Stats};
use crate::crdt::Piece;
use crate::types::{NodeId, Origin, Time, Version};
use crate::wire::{Message, RequestId, piece_bytes};

/// How many origins may be known to be behind: more than any cluster has. Above that an origin is
/// not remembered, and the next digest tells of it again.
const WANTS_MAX: usize = 65_536;

/// How many peers are remembered as holding more of one origin.
const SOURCES_MAX: usize = 4;

/// How often a peer may disappoint before it is no longer a source.
const MISSES_MAX: u32 = 3;

/// How long a source that disappointed is left alone: the first time, doubling.
const MISS_DELAY: Duration = Duration::from_millis(250);

/// The range of pauses that a busy peer may ask for.
const BUSY_MIN: Duration = Duration::from_millis(50);
const BUSY_MAX: Duration = Duration::from_secs(30);

/// How soon a want is looked at again when all its sources are occupied.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The wants of this node, and its requests on the way.
///
/// Laws: a want stands in `queue` exactly when it has no open request; every open request belongs
/// to a want or to one that was fulfilled meanwhile.
#[derive(Debug)]
pub(super) struct Pulls {
    wants: BTreeMap<Origin, Want>,
    queue: BTreeSet<(Time, Origin)>,
    open: BTreeMap<RequestId, Open>,
    /// Peers that said they are busy, until when.
    busy: BTreeMap<NodeId, Time>,
    staged_bytes: usize,
    request: RequestId,
    config: Config,
}

#[derive(Debug)]
struct Want {
    /// The highest version that somebody is known to hold.
    goal: Version,
    /// The version that must be there by `due`, or it is pulled.
    target: Version,
    /// Since when the target is missing.
    since: Time,
    due: Time,
    sources: BTreeMap<NodeId, Source>,
    staged: Option<Staged>,
}

#[derive(Debug)]
struct Source {
    head: Version,
    not_before: Time,
    misses: u32,
}

#[derive(Debug)]
struct Open {
    peer: NodeId,
    origin: Origin,
    deadline: Time,
}

/// What a peer answered to a want.
#[derive(Debug)]
pub(super) struct Answer {
    pub from: NodeId,
    pub request: RequestId,
    pub piece: Piece,
    /// The head of the snapshot that the piece was cut from.
    pub head: Version,
}

/// Parts of a catch-up, kept until they reach the head that the first of them was cut from: only
/// then do they show the origin's rows as they once were.
#[derive(Debug)]
struct Staged {
    piece: Piece,
    bytes: usize,
    whole_at: Version,
}

impl Pulls {
    pub(super) fn new(config: Config) -> Self {
        Self {
            wants: BTreeMap::new(),
            queue: BTreeSet::new(),
            open: BTreeMap::new(),
            busy: BTreeMap::new(),
            staged_bytes: 0,
            request: RequestId(0),
            config,
        }
    }

    /// Notes that `peer` holds `head` of an origin of which this node has `reached` less. Returns
    /// false when there was no room to remember it.
    pub(super) fn learn(
        &mut self,
        now: Time,
        peer: NodeId,
        (origin, head): (Origin, Version),
        not_before: Time,
    ) -> bool {
        if !self.wants.contains_key(&origin) {
            if self.wants.len() >= WANTS_MAX {
                return false;
            }
            let due = (now + self.config.pull_after).max(not_before);
            self.queue.insert((due, origin));
            let sources = BTreeMap::new();
            let want = Want { goal: head, target: head, since: now, due, sources, staged: None };
            self.wants.insert(origin, want);
        }
        let Some(want) = self.wants.get_mut(&origin) else { return false };
        want.goal = want.goal.max(head);
        if want.sources.len() < SOURCES_MAX || want.sources.contains_key(&peer) {
            let source =
                want.sources.entry(peer).or_insert(Source { head, not_before: now, misses: 0 });
            source.head = source.head.max(head);
        }
        true
    }

    /// Forgets what was wanted, as far as it was reached.
    pub(super) fn on_reached(&mut self, origin: Origin, reached: Version) {
        if self.wants.get(&origin).is_some_and(|want| want.goal <= reached) {
            self.remove(origin);
        }
    }

    /// Returns the next request to send, if one is due.
    pub(super) fn next_want(
        &mut self,
        now: Time,
        rng: &mut SmallRng,
        overlay: &Overlay,
        reached: impl Fn(Origin) -> Version,
    ) -> Option<(NodeId, Message)> {
        while self.open.len() < self.config.pulls_max {
            let (due, origin) = self.queue.first().copied().filter(|(due, _)| *due <= now)?;
            self.queue.remove(&(due, origin));
            if let Some(asked) = self.ask(now, rng, overlay, origin, reached(origin)) {
                return Some(asked);
            }
        }
        None
    }

    /// Takes an answer. Returns a piece to apply, when there is a whole one.
    pub(super) fn on_pulled(
        &mut self,
        now: Time,
        stats: &mut Stats,
        answer: Answer,
        reached: Version,
    ) -> Option<Piece> {
        let Answer { from, request, piece, head } = answer;
        let origin = piece.origin;
        let was_open = self.is_open(from, request, origin);
        if was_open {
            self.open.remove(&request);
        }
        let Some(want) = self.wants.get_mut(&origin).filter(|_| was_open) else {
            // It comes after its time; if it is whole it is as good as any other.
            return (piece.through == head && piece.through > reached).then_some(piece);
        };
        let staged_to = want.staged.as_ref().map_or(Version(0), |staged| staged.piece.through);
        if piece.through <= reached.max(staged_to) {
            stats.pulls_empty += 1;
            self.miss(now, from, origin);
            return None;
        }
        stats.pulls_useful += 1;
        if let Some(source) = want.sources.get_mut(&from) {
            source.misses = 0;
            source.head = source.head.max(head);
        }
        want.goal = want.goal.max(head);
        self.requeue(now, origin);
        self.stage(stats, piece, head, reached)
    }

    /// Forgets all that was wanted.
    pub(super) fn restart(&mut self) {
        let request = self.request;
        *self = Self { request, ..Self::new(self.config.clone()) };
    }

    /// A peer cannot answer a want. Returns the origin, if it was waited for: that peer is not asked
    /// for it any more.
    pub(super) fn on_gone(
        &mut self,
        now: Time,
        (from, request): (NodeId, RequestId),
    ) -> Option<Origin> {
        let open = self.open.get(&request).filter(|open| open.peer == from)?;
        let origin = open.origin;
        self.open.remove(&request);
        if let Some(want) = self.wants.get_mut(&origin) {
            want.sources.remove(&from);
        }
        self.requeue(now, origin);
        Some(origin)
    }

    pub(super) fn on_busy(
        &mut self,
        now: Time,
        rng: &mut SmallRng,
        (from, request): (NodeId, RequestId),
        retry_after: Duration,
    ) {
        let Some(open) = self.open.get(&request).filter(|open| open.peer == from) else { return };
        let origin = open.origin;
        self.open.remove(&request);
        let pause = retry_after.clamp(BUSY_MIN, BUSY_MAX).mul_f64(rng.random_range(1.0..1.5));
        self.busy.insert(from, now + pause);
        self.requeue(now, origin);
    }

    /// Gives up on requests that were not answered in time.
    pub(super) fn run(&mut self, now: Time, stats: &mut Stats) {
        self.busy.retain(|_, until| *until > now);
        let late: Vec<_> = self
            .open
            .iter()
            .filter(|(_, open)| open.deadline <= now)
            .map(|(request, open)| (*request, open.peer, open.origin))
            .collect();
        for (request, peer, origin) in late {
            stats.pulls_timed_out += 1;
            self.open.remove(&request);
            self.miss(now, peer, origin);
        }
    }

    pub(super) fn on_peer_down(&mut self, now: Time, node: NodeId) {
        self.busy.remove(&node);
        let lost: Vec<_> = self
            .open
            .iter()
            .filter(|(_, open)| open.peer == node)
            .map(|(request, open)| (*request, open.origin))
            .collect();
        for want in self.wants.values_mut() {
            want.sources.remove(&node);
        }
        for (request, origin) in lost {
            self.open.remove(&request);
            self.requeue(now, origin);
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        let timeout = self.open.values().map(|open| open.deadline).min();
        let has_room = self.open.len() < self.config.pulls_max;
        let due = has_room.then(|| self.queue.first().map(|(due, _)| *due)).flatten();
        [timeout, due].into_iter().flatten().min()
    }

    /// Sums up what is missing, held against the heads on disk.
    pub(super) fn behind(&self, held: impl Fn(Origin) -> Version) -> Behind {
        let mut behind = Behind::default();
        for (origin, want) in &self.wants {
            behind.origins += 1;
            behind.versions += want.goal.0.saturating_sub(held(*origin).0);
            behind.since = Some(behind.since.map_or(want.since, |since| since.min(want.since)));
        }
        behind
    }

    /// Returns how many versions each peer is known to hold and this node does not.
    pub(super) fn behind_of(&self, held: impl Fn(Origin) -> Version) -> BTreeMap<NodeId, u64> {
        let mut peers = BTreeMap::new();
        for (origin, want) in &self.wants {
            for (peer, source) in &want.sources {
                *peers.entry(*peer).or_insert(0) += source.head.0.saturating_sub(held(*origin).0);
            }
        }
        peers
    }

    fn ask(
        &mut self,
        now: Time,
        rng: &mut SmallRng,
        overlay: &Overlay,
        origin: Origin,
        reached: Version,
    ) -> Option<(NodeId, Message)> {
        let want = self.wants.get_mut(&origin)?;
        if want.goal <= reached {
            self.remove(origin);
            return None;
        }
        if want.target <= reached {
            // It moves on by itself: look whether the next one stays missing.
            want.target = want.goal;
            want.since = now;
            self.requeue(now + self.config.pull_after, origin);
            return None;
        }
        self.drop_stale_sources(origin, reached)?;
        let Some(peer) = self.source(now, rng, overlay, origin, reached) else {
            let again = now + LOOK_AGAIN.mul_f64(rng.random_range(1.0..2.0));
            self.requeue(self.next_chance(origin).max(again), origin);
            return None;
        };
        let after = self.after(origin, reached);
        self.request = RequestId(self.request.0 + 1);
        let deadline = now + self.config.pull_timeout;
        self.open.insert(self.request, Open { peer, origin, deadline });
        Some((peer, Message::Want { request: self.request, origin, after }))
    }

    /// Forgets sources that hold nothing new, and the want itself when none is left (`None`): whoever
    /// holds more will say so.
    ///
    /// A goal may have been lost with the only disk that held it, and with it the rest of what is
    /// staged.
    fn drop_stale_sources(&mut self, origin: Origin, reached: Version) -> Option<()> {
        let want = self.wants.get_mut(&origin)?;
        want.sources.retain(|_, source| source.head > reached);
        let Some(offered) = want.sources.values().map(|source| source.head).max() else {
            self.remove(origin);
            return None;
        };
        want.goal = offered;
        want.target = want.target.min(offered);
        if let Some(staged) = want.staged.take_if(|staged| staged.piece.through >= offered) {
            self.staged_bytes -= staged.bytes;
        }
        Some(())
    }

    /// Returns when a source will be free that was told to be left alone; now, if none was.
    fn next_chance(&self, origin: Origin) -> Time {
        let Some(want) = self.wants.get(&origin) else { return Time(0) };
        let free_at = want.sources.iter().map(|(peer, source)| {
            let busy_until = self.busy.get(peer).copied().unwrap_or_default();
            source.not_before.max(busy_until)
        });
        free_at.min().unwrap_or_default()
    }

    /// Returns the source with the fewest open requests, then the nearest.
    fn source(
        &self,
        now: Time,
        rng: &mut SmallRng,
        overlay: &Overlay,
        origin: Origin,
        reached: Version,
    ) -> Option<NodeId> {
        let after = self.after(origin, reached);
        let want = self.wants.get(&origin)?;
        want.sources
            .iter()
            .filter(|(peer, source)| {
                source.head > after
                    && source.not_before <= now
                    && self.busy.get(peer).is_none_or(|until| *until <= now)
                    && self.open_with(**peer) < self.config.pulls_per_peer_max
            })
            .map(|(peer, _)| {
                let lot: u32 = rng.random();
                (self.open_with(*peer), overlay.round_trip(*peer), lot, *peer)
            })
            .min()
            .map(|(_, _, _, peer)| peer)
    }

    /// From where on parts are missing.
    fn after(&self, origin: Origin, reached: Version) -> Version {
        let staged = self.wants.get(&origin).and_then(|want| want.staged.as_ref());
        staged.map_or(reached, |staged| staged.piece.through.max(reached))
    }

    fn stage(
        &mut self,
        stats: &mut Stats,
        piece: Piece,
        head: Version,
        reached: Version,
    ) -> Option<Piece> {
        let origin = piece.origin;
        let want = self.wants.get_mut(&origin)?;
        let bytes = piece_bytes(&piece);
        let mut staged = match want.staged.take() {
            Some(mut staged) if staged.piece.through >= piece.after => {
                self.staged_bytes -= staged.bytes;
                join(&mut staged.piece, piece);
                staged.bytes += bytes;
                staged
            }
            // What was staged was overtaken, or there is a gap behind it: begin again.
            Some(Staged { bytes: dropped, .. }) => {
                self.staged_bytes -= dropped;
                Staged { piece, bytes, whole_at: head }
            }
            None => Staged { piece, bytes, whole_at: head },
        };
        if staged.piece.after > reached {
            return None;
        }
        staged.whole_at = staged.whole_at.max(head);
        let is_whole = staged.piece.through >= staged.whole_at;
        let is_full = staged.bytes > self.config.staged_origin_bytes_max
            || self.staged_bytes + staged.bytes > self.config.staged_bytes_max;
        if is_whole || is_full {
            stats.pulls_split += u64::from(!is_whole);
            return Some(staged.piece);
        }
        self.staged_bytes += staged.bytes;
        want.staged = Some(staged);
        None
    }

    fn miss(&mut self, now: Time, peer: NodeId, origin: Origin) {
        if let Some(want) = self.wants.get_mut(&origin)
            && let Some(source) = want.sources.get_mut(&peer)
        {
            source.misses += 1;
            source.not_before = now + MISS_DELAY * 2_u32.pow(source.misses);
            if source.misses >= MISSES_MAX {
                want.sources.remove(&peer);
            }
        }
        self.requeue(now, origin);
    }

    fn requeue(&mut self, due: Time, origin: Origin) {
        let Some(want) = self.wants.get_mut(&origin) else { return };
        self.queue.remove(&(want.due, origin));
        want.due = due;
        self.queue.insert((due, origin));
    }

    fn remove(&mut self, origin: Origin) {
        let Some(want) = self.wants.remove(&origin) else { return };
        self.queue.remove(&(want.due, origin));
        self.staged_bytes -= want.staged.map_or(0, |staged| staged.bytes);
    }

    fn is_open(&self, from: NodeId, request: RequestId, origin: Origin) -> bool {
        self.open.get(&request).is_some_and(|open| open.peer == from && open.origin == origin)
    }

    fn open_with(&self, peer: NodeId) -> usize {
        self.open.values().filter(|open| open.peer == peer).count()
    }
}

/// Appends a piece to one of the same origin that reaches at least to where it begins.
pub(super) fn join(piece: &mut Piece, next: Piece) {
    let through = piece.through;
    let news = next.changesets.into_iter().filter(|changeset| changeset.stamp.version > through);
    piece.changesets.extend(news);
    piece.through = through.max(next.through);
}
