//! What came in and is not on disk yet: in order, waiting for its turn, or too early.
//!
//! Nothing in here counts as held. All of it may be lost at any time and is then pulled again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::Config;
use super::io::BatchId;
use super::pull::join;
use crate::crdt::{Batch, Piece, Staging};
use crate::ledger::Ledger;
use crate::ledger::reorder::{Kept, Reorder};
use crate::types::{NodeId, Origin, Time, Version};
use crate::wire::piece_bytes;

/// How long an early piece waits before it is given up.
const EARLY_WAIT_MAX: Duration = Duration::from_secs(60);

/// How far ahead of what is held a fresh commit may be for which a neighbour is asked.
const EARLY_VERSIONS_MAX: u64 = 256;

/// The pause after a batch failed: the first time, doubling up to the greatest.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// After so many failures in a row the pieces of a batch are tried one by one.
const FAILURES_TOGETHER_MAX: u32 = 2;

/// How long an origin is set aside whose changes could not be written, when they were tried alone.
const ASIDE_MIN: Duration = Duration::from_secs(1);
const ASIDE_MAX: Duration = Duration::from_secs(600);

/// Pieces on their way to the disk.
///
/// Law: the pieces of an origin in `outstanding` and then in `ready` follow each other without a
/// gap, from the ledger's head to `reached`.
#[derive(Debug)]
pub(super) struct Intake {
    /// How far each origin is taken in, where that is beyond the ledger.
    reached: BTreeMap<Origin, Version>,
    ready: VecDeque<Ready>,
    ready_bytes: usize,
    early: Reorder,
    outstanding: Option<Outstanding>,
    /// When a failed batch may be tried again.
    retry_at: Option<Time>,
    /// When the next batch may go, unless much waits.
    apply_at: Time,
    failures: u32,
    /// How many pieces are still to be tried one by one.
    singly: usize,
    aside: BTreeMap<Origin, Aside>,
    batch: BatchId,
    /// What is on disk of pieces that were dropped.
    unstaged: Vec<Staging>,
    config: Config,
}

#[derive(Debug)]
struct Ready {
    piece: Piece,
    bytes: usize,
    from: NodeId,
    /// Where on disk the parts wait that come before the piece. It then has a batch of its own.
    staging: Option<Staging>,
}

/// What is to be written.
#[derive(Debug)]
pub(super) enum Outgoing {
    Batch(Batch),
    Staged(Staging, Piece),
}

#[derive(Debug)]
struct Outstanding {
    id: BatchId,
    pieces: Vec<Ready>,
}

#[derive(Debug)]
struct Aside {
    until: Time,
    failures: u32,
}

/// What became of a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// It is next, and waits to be applied.
    Next,
    /// It waits for what comes before it.
    Early,
    /// All of it is here already.
    Known,
    /// There is no room for it, or its origin is set aside.
    Dropped,
}

/// An origin whose pieces were dropped, so that they have to be pulled again: from whom, up to
/// what, and not before when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Lost {
    pub origin: Origin,
    pub from: NodeId,
    pub through: Version,
    pub not_before: Time,
}

impl Intake {
    pub(super) fn new(config: Config) -> Self {
        Self {
            reached: BTreeMap::new(),
            ready: VecDeque::new(),
            ready_bytes: 0,
            early: Reorder::new(config.early_origin_bytes_max, config.early_bytes_max),
            outstanding: None,
            retry_at: None,
            apply_at: Time(0),
            failures: 0,
            singly: 0,
            aside: BTreeMap::new(),
            batch: BatchId(0),
            unstaged: Vec::new(),
            config,
        }
    }

    /// Returns how far an origin is taken in: on disk, or on its way there.
    pub(super) fn reached(&self, ledger: &Ledger, origin: Origin) -> Version {
        let held = ledger.head(origin);
        self.reached.get(&origin).map_or(held, |reached| held.max(*reached))
    }

    /// Tells whether a fresh commit would be taken in, and is not here. One that is far beyond what is
    /// held is left to a pull: what waits for so many others may have to be dropped.
    pub(super) fn lacks(&self, now: Time, ledger: &Ledger, name: (Origin, Version)) -> bool {
        let (origin, version) = name;
        let reached = self.reached(ledger, origin);
        version > reached
            && version.0 - reached.0 <= EARLY_VERSIONS_MAX
            && self.ready_bytes < self.config.ready_bytes_max
            && !self.early.holds(origin, version)
            && self.aside.get(&origin).is_none_or(|aside| aside.until <= now)
    }

    /// Takes in a piece, and what waited for it.
    pub(super) fn take(&mut self, now: Time, ledger: &Ledger, from: NodeId, piece: Piece) -> Taken {
        let origin = piece.origin;
        let reached = self.reached(ledger, origin);
        if piece.through <= reached {
            return Taken::Known;
        }
        if self.aside.get(&origin).is_some_and(|aside| aside.until > now) {
            return Taken::Dropped;
        }
        let bytes = piece_bytes(&piece);
        if piece.after > reached {
            return match self.early.keep(now, piece, bytes) {
                Kept::Waiting => Taken::Early,
                Kept::Known => Taken::Known,
                Kept::Full => Taken::Dropped,
            };
        }
        if self.ready_bytes + bytes > self.config.ready_bytes_max && !self.ready.is_empty() {
            return Taken::Dropped;
        }
        self.line_up(from, piece, bytes, reached);
        self.line_up_early(ledger, from, origin);
        Taken::Next
    }

    /// Takes in the last piece of a pull whose other parts are on disk. It is taken although there is
    /// no room: the parts took more than that to come.
    pub(super) fn take_staged(
        &mut self,
        now: Time,
        ledger: &Ledger,
        from: NodeId,
        (staging, last): (Staging, Piece),
    ) -> Taken {
        let origin = last.origin;
        let reached = self.reached(ledger, origin);
        let is_aside = self.aside.get(&origin).is_some_and(|aside| aside.until > now);
        if last.through <= reached || last.after > reached || is_aside {
            self.unstaged.push(staging);
            return if last.through <= reached { Taken::Known } else { Taken::Dropped };
        }
        let bytes = piece_bytes(&last);
        self.line_up(from, last, bytes, reached);
        let ready = self.ready.back_mut().expect("it was lined up just now");
        ready.staging = Some(staging);
        self.line_up_early(ledger, from, origin);
        Taken::Next
    }

    /// Returns what may go from the disk.
    pub(super) fn take_unstaged(&mut self) -> Vec<Staging> {
        std::mem::take(&mut self.unstaged)
    }

    /// Returns the next batch, if one may go: there is one at a time.
    pub(super) fn next_batch(&mut self, now: Time) -> Option<(BatchId, Outgoing)> {
        if self.deadline().is_none_or(|at| at > now) {
            return None;
        }
        self.retry_at = None;
        self.apply_at = now + self.config.apply_every;
        let pieces = if self.singly > 0 { self.pick_singly() } else { self.pick() };
        let mut joined: BTreeMap<Origin, Piece> = BTreeMap::new();
        for ready in &pieces {
            self.ready_bytes -= ready.bytes;
            match joined.get_mut(&ready.piece.origin) {
                Some(piece) => join(piece, ready.piece.clone()),
                None => drop(joined.insert(ready.piece.origin, ready.piece.clone())),
            }
        }
        self.batch = BatchId(self.batch.0 + 1);
        let staging = pieces.first().and_then(|ready| ready.staging);
        self.outstanding = Some(Outstanding { id: self.batch, pieces });
        let batch = Batch { pieces: joined.into_values().collect() };
        let outgoing = match (staging, batch.pieces.first()) {
            (Some(staging), Some(last)) => Outgoing::Staged(staging, last.clone()),
            _ => Outgoing::Batch(batch),
        };
        Some((self.batch, outgoing))
    }

    /// The batch is on disk; the ledger was moved by its heads already. Returns what the storage
    /// should have taken but did not, or `None` when the batch is not the outstanding one.
    pub(super) fn on_done(&mut self, now: Time, ledger: &Ledger, id: BatchId) -> Option<Vec<Lost>> {
        let done = self.outstanding.take_if(|outstanding| outstanding.id == id)?;
        self.failures = 0;
        self.singly = self.singly.saturating_sub(1);
        let mut lost = BTreeMap::new();
        for Ready { piece, from, .. } in &done.pieces {
            let origin = piece.origin;
            let head = ledger.head(origin);
            self.aside.remove(&origin);
            if self.reached.get(&origin).is_some_and(|reached| *reached <= head) {
                self.reached.remove(&origin);
            }
            if piece.through > head {
                let through = self.drop_origin(origin).max(piece.through);
                lost.insert(origin, Lost { origin, from: *from, through, not_before: now });
            }
        }
        Some(lost.into_values().collect())
    }

    /// Nothing of the batch was written: puts it back. Returns the origin that was set aside,
    /// when it was tried alone; `None` in the outer option when the batch is not the outstanding
    /// one.
    pub(super) fn on_failed(
        &mut self,
        now: Time,
        rng: &mut SmallRng,
        id: BatchId,
    ) -> Option<Option<Lost>> {
        let failed = self.outstanding.take_if(|outstanding| outstanding.id == id)?;
        let pause = doubled(RETRY_MIN, self.failures, RETRY_MAX);
        self.retry_at = Some(now + pause.mul_f64(rng.random_range(0.8..1.2)));
        self.failures += 1;
        let last = failed.pieces.last().map(|ready| (ready.piece.origin, ready.from));
        let pieces = failed.pieces.len();
        for ready in failed.pieces.into_iter().rev() {
            self.ready_bytes += ready.bytes;
            self.ready.push_front(ready);
        }
        let (origin, from) = last?;
        if self.singly > 0 {
            self.singly -= 1;
            return Some(Some(self.set_aside(now, origin, from)));
        }
        if self.failures >= FAILURES_TOGETHER_MAX {
            self.singly = pieces;
        }
        Some(None)
    }

    /// Drops all that waits, and believes that nothing is taken in.
    pub(super) fn restart(&mut self) {
        let batch = self.batch;
        let mut unstaged = std::mem::take(&mut self.unstaged);
        let written = self.outstanding.iter().flat_map(|outstanding| &outstanding.pieces);
        unstaged.extend(self.ready.iter().chain(written).filter_map(|ready| ready.staging));
        *self = Self { batch, unstaged, ..Self::new(self.config.clone()) };
    }

    /// Drops what waits of a node's epochs before this one: nobody writes under them any more, and
    /// what nobody has on disk is not waited for.
    pub(super) fn drop_before(&mut self, later: Origin) {
        let is_before = |origin: &Origin| origin.node == later.node && origin.epoch < later.epoch;
        let ready = self.ready.iter().map(|ready| ready.piece.origin).filter(is_before);
        let waiting: BTreeSet<Origin> =
            ready.chain(self.early.origins().filter(is_before)).collect();
        for origin in waiting {
            self.drop_origin(origin);
        }
    }

    /// Tells whether nothing in order waits, nor is being written.
    pub(super) fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.outstanding.is_none()
    }

    /// Gives up early pieces that nothing came before for long.
    pub(super) fn drop_stale(&mut self, now: Time) {
        self.early.drop_older(now - EARLY_WAIT_MAX);
        self.aside.retain(|_, aside| now.since(aside.until) < ASIDE_MAX);
    }

    /// Returns when the next batch may go.
    pub(super) fn deadline(&self) -> Option<Time> {
        if self.outstanding.is_some() || self.ready.is_empty() {
            return None;
        }
        let is_much = self.ready_bytes >= self.config.apply_now_bytes;
        let apply_at = if is_much { Time(0) } else { self.apply_at };
        Some(self.retry_at.unwrap_or(apply_at))
    }

    /// Lists the origins that are set aside, and until when.
    pub(super) fn set_aside_now(&self, now: Time) -> Vec<(Origin, Time)> {
        let aside = self.aside.iter().filter(|(_, aside)| aside.until > now);
        aside.map(|(origin, aside)| (*origin, aside.until)).collect()
    }

    /// Tells whether there is room for what is pulled, with some left for what is pushed.
    pub(super) fn has_room(&self) -> bool {
        self.ready_bytes <= self.config.ready_bytes_max / 2
    }

    #[cfg(test)]
    pub(super) fn apply_now_bytes(&mut self, bytes: usize) {
        self.config.apply_now_bytes = bytes;
    }

    /// Returns how many bytes wait, in order and too early.
    pub(super) fn waiting_bytes(&self) -> (usize, usize) {
        (self.ready_bytes, self.early.bytes())
    }

    /// Returns how many bytes of the origin with the most wait too early.
    pub(super) fn early_origin_bytes(&self) -> usize {
        self.early.origin_bytes()
    }

    fn line_up(&mut self, from: NodeId, mut piece: Piece, bytes: usize, reached: Version) {
        if piece.after < reached {
            piece.after = reached;
            piece.changesets.retain(|changeset| changeset.stamp.version > reached);
        }
        self.reached.insert(piece.origin, piece.through);
        self.ready_bytes += bytes;
        self.ready.push_back(Ready { piece, bytes, from, staging: None });
    }

    fn line_up_early(&mut self, ledger: &Ledger, from: NodeId, origin: Origin) {
        loop {
            let reached = self.reached(ledger, origin);
            let Some(piece) = self.early.take(origin, reached) else { return };
            let bytes = piece_bytes(&piece);
            self.line_up(from, piece, bytes, reached);
        }
    }

    /// Takes pieces in the order in which they came, up to the size of a batch.
    fn pick(&mut self) -> Vec<Ready> {
        let mut bytes = 0;
        let mut pieces = Vec::new();
        while let Some(ready) = self.ready.front() {
            let is_alone = ready.staging.is_some();
            let is_full = is_alone || bytes + ready.bytes > self.config.batch_bytes_max;
            if !pieces.is_empty() && is_full {
                break;
            }
            bytes += ready.bytes;
            pieces.extend(self.ready.pop_front());
            if is_alone {
                break;
            }
        }
        pieces
    }

    /// Takes the first piece alone.
    fn pick_singly(&mut self) -> Vec<Ready> {
        self.ready.pop_front().into_iter().collect()
    }

    fn set_aside(&mut self, now: Time, origin: Origin, from: NodeId) -> Lost {
        let through = self.drop_origin(origin);
        let aside = self.aside.entry(origin).or_insert(Aside { until: now, failures: 0 });
        aside.until = now + doubled(ASIDE_MIN, aside.failures, ASIDE_MAX);
        aside.failures += 1;
        Lost { origin, from, through, not_before: aside.until }
    }

    /// Drops all that waits of an origin, and returns how far it went.
    fn drop_origin(&mut self, origin: Origin) -> Version {
        self.early.drop_origin(origin);
        self.ready.retain(|ready| {
            let stays = ready.piece.origin != origin;
            if !stays {
                self.ready_bytes -= ready.bytes;
                self.unstaged.extend(ready.staging);
            }
            stays
        });
        self.reached.remove(&origin).unwrap_or_default()
    }
}

fn doubled(first: Duration, times: u32, max: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(max)
}
