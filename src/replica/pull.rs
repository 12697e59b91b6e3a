//! What is missing, who holds it, and whom to ask next. A version that stays missing for a while
//! is pulled; until then it probably comes by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::Config;
use super::io::Effect;
use super::overlay::Overlay;
use super::stats::{Behind, OriginLag, Stats};
use crate::crdt::storage::Bookmark;
use crate::crdt::{Part, Piece, Staging};
use crate::types::{NodeId, Origin, Time, Version};
use crate::wire::{Cut, RequestId, piece_bytes};

/// How many origins may be known to be behind: more than any cluster has. Above that an origin is
/// not remembered, and the next digest tells of it again.
const WANTS_MAX: usize = 65_536;

/// How many peers are remembered as holding more of one origin.
pub(super) const SOURCES_MAX: usize = 4;

/// How often a peer may disappoint before it is no longer a source.
const MISSES_MAX: u32 = 3;

/// How often it may that sent a part of a version: with any other source that version begins again.
pub(super) const MISSES_BEGUN_MAX: u32 = 8;

/// How long a source that disappointed is left alone: the first time, doubling a few times.
const MISS_DELAY: Duration = Duration::from_millis(250);
const MISS_DOUBLINGS_MAX: u32 = 4;

/// The range of pauses that a busy peer may ask for.
const BUSY_MIN: Duration = Duration::from_millis(50);
const BUSY_MAX: Duration = Duration::from_secs(30);

/// How soon a want is looked at again when all its sources are occupied.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// When a want whose parts are being stored is looked at again, at the latest.
const STORING_MAX: Duration = Duration::from_secs(10);

/// How long parts are kept that nobody is known to have the rest of. A peer that was too slow a few
/// times tells again what it holds within the time between two comparisons.
const ORPHANED_MAX: Duration = Duration::from_secs(60);

/// How long a want is left alone whose parts could not be stored: the first time, doubling a few
/// times. All of them travel again.
const STORE_AGAIN: Duration = Duration::from_secs(2);
const STORE_DOUBLINGS_MAX: u32 = 6;

/// What a peer is to be asked for.
pub(super) struct Asked {
    pub(super) peer: NodeId,
    pub(super) request: RequestId,
    pub(super) origin: Origin,
    pub(super) from: Bookmark,
}

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
    /// What is staged in memory of all wants.
    staged_bytes: usize,
    request: RequestId,
    staging: Staging,
    /// What the disk is to keep, and to forget.
    stores: Vec<Effect>,
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
    /// Since when there has been no source for the rest of what is staged.
    orphaned: Option<Time>,
    /// How often in a row parts could not be stored.
    failures: u32,
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
    pub cut: Cut,
}

/// A pull that is whole.
#[derive(Debug)]
pub(super) struct Pulled {
    pub from: NodeId,
    pub piece: Piece,
    /// Where on disk the parts are that come before the piece.
    pub staging: Option<Staging>,
}

/// Parts of a catch-up, kept until they reach the head that the first of them was cut from: only
/// then do they show the origin's rows as they once were.
#[derive(Debug)]
struct Staged {
    /// Where the first of them begins.
    after: Version,
    /// Where the last of them ends.
    end: Bookmark,
    /// Who sent the last of them.
    source: NodeId,
    /// Whether `end` counts parts as the source still does.
    is_counted: bool,
    /// Those in memory: all, or those that follow what is on disk.
    parts: Vec<Part>,
    bytes: usize,
    stored: Option<Stored>,
    whole_at: Version,
}

/// Parts on disk.
#[derive(Debug)]
struct Stored {
    staging: Staging,
    bytes: usize,
    /// How many bytes are on their way there; 0: none.
    storing: usize,
}

impl Staged {
    /// Returns how much memory it takes.
    fn held_bytes(&self) -> usize {
        self.bytes + self.stored.as_ref().map_or(0, |stored| stored.storing)
    }

    fn is_storing(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.storing > 0)
    }

    /// Makes one piece of the parts in memory.
    fn into_pulled_of(self, origin: Origin) -> Pulled {
        let Self { after, end, source, parts, stored, .. } = self;
        let changesets = parts.into_iter().flat_map(|part| part.piece.changesets).collect();
        let piece = Piece { origin, after, through: end.after, changesets };
        Pulled { from: source, piece, staging: stored.map(|stored| stored.staging) }
    }
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
            staging: Staging(0),
            stores: Vec::new(),
            config,
        }
    }

    /// Notes that `peer` holds `head` of an origin of which this node has `reached` less, and that it is
    /// pulled from `due` on. Returns false when there was no room to remember it.
    pub(super) fn learn(
        &mut self,
        now: Time,
        peer: NodeId,
        (origin, head): (Origin, Version),
        due: Time,
    ) -> bool {
        if !self.wants.contains_key(&origin) {
            if self.wants.len() >= WANTS_MAX {
                return false;
            }
            self.queue.insert((due, origin));
            let sources = BTreeMap::new();
            let want = Want {
                goal: head,
                target: head,
                since: now,
                due,
                sources,
                staged: None,
                orphaned: None,
                failures: 0,
            };
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
    ) -> Option<Asked> {
        while self.open.len() < self.config.pulls_max {
            let (due, origin) = self.queue.first().copied().filter(|(due, _)| *due <= now)?;
            self.queue.remove(&(due, origin));
            if let Some(asked) = self.ask(now, rng, overlay, origin, reached(origin)) {
                return Some(asked);
            }
        }
        None
    }

    /// Takes an answer. Returns what to apply, when there is something whole.
    pub(super) fn on_pulled(
        &mut self,
        now: Time,
        stats: &mut Stats,
        answer: Answer,
        reached: Version,
    ) -> Option<Pulled> {
        let Answer { from, request, piece, head, cut } = answer;
        let origin = piece.origin;
        let was_open = self.is_open(from, request, origin);
        if was_open {
            self.open.remove(&request);
        }
        let end = Bookmark { after: piece.through, part: cut.to };
        let position = self.position(origin, Some(from), reached);
        let goes_on = cut.from > 0 && position == Bookmark { after: piece.after, part: cut.from };
        let is_wanted = self.wants.contains_key(&origin) && (was_open || goes_on);
        if !is_wanted {
            // It comes after its time; if it is whole it is as good as any other.
            let is_whole = cut == Cut::default() && piece.through == head;
            let is_news = is_whole && piece.through > reached;
            return is_news.then_some(Pulled { from, piece, staging: None });
        }
        let is_storing = self.staged_of(origin).is_some_and(Staged::is_storing);
        let joins = cut.from == 0 || goes_on;
        if end <= position || !joins || is_storing {
            // What was asked for twice comes twice, and is nobody's fault.
            if joins && !is_storing && was_open {
                stats.pulls_empty += 1;
                self.miss(now, from, origin);
            } else if was_open {
                self.requeue(now, origin);
            }
            return None;
        }
        stats.pulls_useful += 1;
        let want = self.wants.get_mut(&origin)?;
        if let Some(source) = want.sources.get_mut(&from) {
            source.misses = 0;
            source.head = source.head.max(head);
        }
        want.goal = want.goal.max(head);
        if was_open {
            self.requeue(now, origin);
        }
        self.stage(now, stats, (from, Part { piece, is_cut: cut.to > 0 }), (end, head), reached)
    }

    /// The disk keeps parts, or does not. Returns what to apply, when it is whole now.
    pub(super) fn on_staged(
        &mut self,
        now: Time,
        stats: &mut Stats,
        (staging, is_done): (Staging, bool),
        reached: impl Fn(Origin) -> Version,
    ) -> Option<Pulled> {
        let of_staging = |want: &Want| {
            let stored = want.staged.as_ref().and_then(|staged| staged.stored.as_ref());
            stored.is_some_and(|stored| stored.staging == staging)
        };
        let origin = *self.wants.iter().find(|(_, want)| of_staging(want))?.0;
        if !is_done {
            stats.stagings_failed += 1;
            self.unstage(origin);
            let want = self.wants.get_mut(&origin)?;
            let pause = STORE_AGAIN * 2_u32.pow(want.failures.min(STORE_DOUBLINGS_MAX));
            want.failures += 1;
            if !self.has_open(origin) {
                self.requeue(now + pause, origin);
            }
            return None;
        }
        let want = self.wants.get_mut(&origin)?;
        want.failures = 0;
        let staged = want.staged.as_mut()?;
        let stored = staged.stored.as_mut()?;
        self.staged_bytes -= stored.storing;
        stored.bytes += stored.storing;
        stored.storing = 0;
        if !self.has_open(origin) {
            self.requeue(now, origin);
        }
        self.conclude(stats, origin, reached(origin))
    }

    /// Tells whether the disk is at work on parts.
    pub(super) fn is_storing(&self) -> bool {
        self.wants.values().any(|want| want.staged.as_ref().is_some_and(Staged::is_storing))
    }

    /// Returns what the disk is to keep and to forget.
    pub(super) fn take_stores(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.stores)
    }

    /// Forgets all that was wanted.
    pub(super) fn restart(&mut self) {
        let wanted: Vec<Origin> = self.wants.keys().copied().collect();
        wanted.into_iter().for_each(|origin| self.remove(origin));
        let (request, staging) = (self.request, self.staging);
        let stores = std::mem::take(&mut self.stores);
        *self = Self { request, staging, stores, ..Self::new(self.config.clone()) };
    }

    /// A node begins to write as `later`: what it answered before, of its epochs before that, may have
    /// been on no disk but the one that it lost. It is asked again, and says what it has now.
    pub(super) fn drop_before(&mut self, later: Origin) {
        let is_before = |origin: &Origin| origin.node == later.node && origin.epoch < later.epoch;
        let origins = self.wants.keys().copied().filter(is_before);
        let origins: Vec<Origin> = origins.collect();
        for origin in origins {
            self.unstage(origin);
            let is_its_own = |open: &Open| open.origin == origin && open.peer == later.node;
            let asked = self.open.extract_if(.., |_, open| is_its_own(open)).count();
            let since = self.wants.get(&origin).map(|want| want.since);
            if let Some(since) = since.filter(|_| asked > 0) {
                self.requeue(since, origin);
            }
        }
    }

    /// Tells whether a peer has yet to answer a want.
    pub(super) fn is_awaited(&self, from: NodeId, request: RequestId) -> bool {
        self.open.get(&request).is_some_and(|open| open.peer == from)
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
            // Should it come back with another disk, it may count parts otherwise.
            if let Some(staged) = want.staged.as_mut().filter(|staged| staged.source == node) {
                staged.is_counted = false;
            }
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

    /// Returns how many requests are on their way.
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// Returns what is staged in memory: in all, and of the origin with the most.
    pub(super) fn staged_bytes(&self) -> (usize, usize) {
        let staged = self.wants.values().filter_map(|want| want.staged.as_ref());
        (self.staged_bytes, staged.map(Staged::held_bytes).max().unwrap_or(0))
    }

    /// Sums up what is missing, held against the heads on disk.
    pub(super) fn behind(&self, held: impl Fn(Origin) -> Version) -> Behind {
        let mut behind = Behind::default();
        // What nobody is known to hold is not missing.
        for (origin, want) in self.wants.iter().filter(|(_, want)| want.orphaned.is_none()) {
            behind.origins += 1;
            behind.versions += want.goal.0.saturating_sub(held(*origin).0);
            behind.since = Some(behind.since.map_or(want.since, |since| since.min(want.since)));
        }
        behind
    }

    /// Lists what is missing, origin by origin.
    pub(super) fn lags(&self, held: impl Fn(Origin) -> Version) -> Vec<OriginLag> {
        let lag = |(origin, want): (&Origin, &Want)| {
            let held = held(*origin);
            let since = (want.target > held).then_some(want.since);
            let sources = want.sources.keys().copied().collect();
            let is_lost = want.orphaned.is_some();
            OriginLag { origin: *origin, held, heard: want.goal, since, sources, is_lost }
        };
        self.wants.iter().map(lag).collect()
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
    ) -> Option<Asked> {
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
        if self.staged_of(origin).is_some_and(Staged::is_storing) {
            self.requeue(now + STORING_MAX, origin);
            return None;
        }
        self.drop_stale_sources(now, origin, reached)?;
        let Some(peer) = self.source(now, rng, overlay, origin, reached) else {
            let again = now + LOOK_AGAIN.mul_f64(rng.random_range(1.0..2.0));
            self.requeue(self.next_chance(origin).max(again), origin);
            return None;
        };
        let from = self.position(origin, Some(peer), reached);
        self.request = RequestId(self.request.0 + 1);
        let deadline = now + self.config.pull_timeout;
        self.open.insert(self.request, Open { peer, origin, deadline });
        Some(Asked { peer, request: self.request, origin, from })
    }

    /// Forgets sources that hold nothing new, and the want itself when none is left (`None`): whoever
    /// holds more will say so.
    ///
    /// A goal may have been lost with the only disk that held it, and with it the rest of what is
    /// staged.
    fn drop_stale_sources(&mut self, now: Time, origin: Origin, reached: Version) -> Option<()> {
        let want = self.wants.get_mut(&origin)?;
        want.sources.retain(|_, source| source.head > reached);
        let Some(offered) = want.sources.values().map(|source| source.head).max() else {
            let since = *want.orphaned.get_or_insert(now);
            if want.staged.is_some() && now.since(since) < ORPHANED_MAX {
                self.requeue(now + self.config.pull_timeout, origin);
            } else {
                self.remove(origin);
            }
            return None;
        };
        want.orphaned = None;
        want.goal = offered;
        want.target = want.target.min(offered);
        if want.staged.as_ref().is_some_and(|staged| staged.end.after >= offered) {
            self.unstage(origin);
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
        let after = self.position(origin, None, reached).after;
        let want = self.wants.get(&origin)?;
        // Whoever began a version goes on with it: with another one it begins again.
        let begun = want.staged.as_ref();
        let begun = begun.filter(|staged| staged.end.part > 0 && staged.is_counted);
        let begun_by = begun.map(|staged| staged.source);
        let begun_by = begun_by.filter(|peer| want.sources.contains_key(peer));
        want.sources
            .iter()
            .filter(|(peer, _)| begun_by.is_none_or(|by| by == **peer))
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

    /// From where on parts are missing, as `peer` counts them.
    fn position(&self, origin: Origin, peer: Option<NodeId>, reached: Version) -> Bookmark {
        match self.staged_of(origin).filter(|staged| staged.end.after >= reached) {
            Some(staged) if staged.is_counted && peer == Some(staged.source) => staged.end,
            Some(staged) => staged.end.after.into(),
            None => reached.into(),
        }
    }

    fn staged_of(&self, origin: Origin) -> Option<&Staged> {
        self.wants.get(&origin).and_then(|want| want.staged.as_ref())
    }

    /// Adds a part to those that are staged, up to `end`. Returns what to apply, when it is whole.
    fn stage(
        &mut self,
        now: Time,
        stats: &mut Stats,
        (source, mut part): (NodeId, Part),
        (end, head): (Bookmark, Version),
        reached: Version,
    ) -> Option<Pulled> {
        let origin = part.piece.origin;
        // What was staged was overtaken, or there is a gap behind it: begin again.
        let is_gap = |staged: &Staged| staged.end.after < part.piece.after.max(reached);
        if self.staged_of(origin).is_some_and(is_gap) {
            self.unstage(origin);
        }
        let want = self.wants.get_mut(&origin)?;
        let staged = want.staged.get_or_insert_with(|| Staged {
            after: part.piece.after,
            end: part.piece.after.into(),
            source,
            is_counted: true,
            parts: Vec::new(),
            bytes: 0,
            stored: None,
            whole_at: head,
        });
        let held = staged.end.after;
        part.piece.changesets.retain(|changeset| changeset.stamp.version > held);
        let bytes = piece_bytes(&part.piece);
        staged.parts.push(part);
        staged.bytes += bytes;
        (staged.end, staged.source, staged.is_counted) = (end, source, true);
        staged.whole_at = staged.whole_at.max(head);
        self.staged_bytes += bytes;
        if staged.after > reached {
            self.unstage(origin);
            return None;
        }
        let whole = self.conclude(stats, origin, reached);
        if whole.is_none() {
            self.store_what_is_much(now, origin);
        }
        whole
    }

    /// Returns what is staged, if nothing is missing of it, or if it is too much to wait for more.
    fn conclude(&mut self, stats: &mut Stats, origin: Origin, reached: Version) -> Option<Pulled> {
        let want = self.wants.get_mut(&origin)?;
        let staged = want.staged.as_ref()?;
        let stored_bytes = staged.stored.as_ref().map_or(0, |stored| stored.bytes);
        let is_whole = staged.end.after >= staged.whole_at;
        let is_much = stored_bytes + staged.bytes > self.config.stored_origin_bytes_max;
        let is_over = (is_whole || is_much) && staged.end.part == 0 && staged.end.after > reached;
        if !is_over || staged.is_storing() {
            return None;
        }
        stats.pulls_split += u64::from(!is_whole);
        let staged = want.staged.take()?;
        self.staged_bytes -= staged.held_bytes();
        Some(staged.into_pulled_of(origin))
    }

    /// Has the disk keep what is staged in memory, where that is much.
    fn store_what_is_much(&mut self, now: Time, origin: Origin) {
        let Some(want) = self.wants.get_mut(&origin) else { return };
        let Some(staged) = want.staged.as_mut().filter(|staged| !staged.is_storing()) else {
            return;
        };
        let bytes_max = match staged.stored {
            Some(_) => self.config.stage_bytes_max,
            None => self.config.staged_origin_bytes_max,
        };
        if staged.bytes <= bytes_max && self.staged_bytes <= self.config.staged_bytes_max {
            return;
        }
        let next = &mut self.staging;
        let stored = staged.stored.get_or_insert_with(|| {
            next.0 += 1;
            Stored { staging: *next, bytes: 0, storing: 0 }
        });
        stored.storing = std::mem::take(&mut staged.bytes);
        let parts = std::mem::take(&mut staged.parts);
        self.stores.push(Effect::Stage { staging: stored.staging, parts });
        if !self.has_open(origin) {
            self.requeue(now + STORING_MAX, origin);
        }
    }

    /// Forgets what is staged of an origin.
    fn unstage(&mut self, origin: Origin) {
        let staged = self.wants.get_mut(&origin).and_then(|want| want.staged.take());
        self.forget(staged);
    }

    fn forget(&mut self, staged: Option<Staged>) {
        let Some(staged) = staged else { return };
        self.staged_bytes -= staged.held_bytes();
        self.stores.extend(staged.stored.map(|stored| Effect::Unstage(stored.staging)));
    }

    fn miss(&mut self, now: Time, peer: NodeId, origin: Origin) {
        if let Some(want) = self.wants.get_mut(&origin)
            && let Some(source) = want.sources.get_mut(&peer)
        {
            let begun = want.staged.as_ref().filter(|staged| staged.end.part > 0);
            let has_begun = begun.is_some_and(|staged| staged.is_counted && staged.source == peer);
            let misses_max = if has_begun { MISSES_BEGUN_MAX } else { MISSES_MAX };
            source.misses += 1;
            source.not_before = now + MISS_DELAY * 2_u32.pow(source.misses.min(MISS_DOUBLINGS_MAX));
            if source.misses >= misses_max {
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
        self.forget(want.staged);
    }

    fn is_open(&self, from: NodeId, request: RequestId, origin: Origin) -> bool {
        self.open.get(&request).is_some_and(|open| open.peer == from && open.origin == origin)
    }

    fn has_open(&self, origin: Origin) -> bool {
        self.open.values().any(|open| open.origin == origin)
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
