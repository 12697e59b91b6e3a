//! Whether this node's rows are those of the others, and what becomes of a row that is not.
//!
//! Each few seconds a stretch of rows, one after the other through all tables, is held against those
//! of a member by lot: sums of ranges, then single rows. A row that differs is looked at again a few
//! seconds later, with a third member, since what is on its way explains itself. If it is still what
//! it was, it is mended here: whole rows are merged with all of their clocks, which always
//! converges. Where two rows have one clock they are one write, and what two of three say of it, it
//! was. Each node mends its own rows alone.
//!
//! With each look goes a mark of all that is held. Where two nodes hold the same heads and have other
//! fingerprints, something is wrong for certain: then looks follow each other faster.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::io::{Effect, Lane};
use super::overlay::Overlay;
use crate::crdt::content::{Look, Mark, Mend, Place, RowState, Seen, Sight, Stretch, Trust};
use crate::crdt::{Key, Name};
use crate::types::{NodeId, Origin, Time};
use crate::wire::{Message, RequestId};

/// How soon looks follow each other that come of a difference. What they carry is bounded (see
/// [`crate::crdt::content`]), so this bounds what a difference costs: some 80 kB/s at most.
const HURRIED: Duration = Duration::from_secs(1);

/// How long a member may take to answer a look.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How long a row that differs may explain itself.
const CONFIRM_AFTER: Duration = Duration::from_secs(5);

/// How long this node may know of something that it misses and still look at rows.
pub(super) const BEHIND_MAX: Duration = Duration::from_secs(5);

/// How many rows one look at a stretch covers: few at first, then as many as all rows need for one
/// way through in [`PASS_LOOKS`] looks.
const ROWS_MIN: usize = 256;
const ROWS_MAX: usize = 16_384;
const PASS_LOOKS: usize = 45;

/// How many parts of tables wait to be looked at row by row, and to be looked at again. What has no
/// room is found the next time round.
const NARROW_MAX: usize = 64;
const SUSPECTS_MAX: usize = 16;

/// How many looks of others are answered at a time. Above that they get no answer, and ask another.
const SERVED_MAX: usize = 2;

/// How soon a member gets another answer: one in a hurry asks once a second.
const LOOKS_APART: Duration = Duration::from_millis(250);

/// How soon the fingerprint is added up anew once more, and how soon all is looked at in a hurry.
const RECOUNT_EVERY: Duration = Duration::from_secs(600);

/// How many of the rows that were mended last are remembered by name.
const FOUND_MAX: usize = 16;

/// Names a look among those of this replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct LookId(pub u64);

/// What was found, for those who ask.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    /// Members that hold the same heads and have another fingerprint, since when.
    pub unequal: BTreeMap<NodeId, Time>,
    /// Rows of this node that were not what they should be, and were mended.
    pub mended: u64,
    /// Rows that differ from another member's, where a third one has what this node has.
    pub odd_elsewhere: u64,
    /// Rows that differ, and that mending did not change.
    pub unmended: u64,
    /// Looks at stretches that were answered.
    pub looks: u64,
    /// Ways through all rows that were completed, and when the last of them was.
    pub passes: u64,
    pub passed_at: Option<Time>,
    /// The last rows that were mended: the latest last.
    pub last: VecDeque<Found>,
}

/// A row that was mended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    pub at: Time,
    pub table: Name,
    pub key: Key,
    /// Who gave it life.
    pub origin: Origin,
}

/// Looks at rows: the state of one node.
#[derive(Debug)]
pub(super) struct Audit {
    cursor: Place,
    next_at: Option<Time>,
    stage: Stage,
    look: LookId,
    request: RequestId,
    narrow: VecDeque<Part>,
    suspects: VecDeque<Suspect>,
    rows_max: usize,
    pass: Pass,
    recount_at: Option<Time>,
    served: BTreeMap<LookId, (NodeId, RequestId)>,
    /// When members last had a look answered.
    looked_at: BTreeMap<NodeId, Time>,
    effects: Vec<Effect>,
    findings: Findings,
    every: Duration,
}

/// The present way through all rows.
#[derive(Debug, Default)]
struct Pass {
    rows: usize,
    has_mended: bool,
    has_differences: bool,
    /// Whether it began because a fingerprint differed.
    is_hurried: bool,
}

/// A part of a table that differs from a member's.
#[derive(Clone, Debug)]
struct Part {
    peer: NodeId,
    table: Name,
    after: Key,
    to: Option<Key>,
}

/// Rows that differ from a member's.
#[derive(Debug)]
struct Suspect {
    part: Part,
    due: Time,
    /// The hash of the row here, and the row there: 0 and `None` where there is none.
    rows: BTreeMap<Key, (u64, Option<RowState>)>,
}

#[derive(Debug)]
enum Task {
    Survey,
    Narrow(Part),
    Confirm(Suspect),
}

#[derive(Debug)]
enum Stage {
    Idle,
    /// The storage was asked for its own rows.
    Looking {
        look: LookId,
        task: Task,
    },
    /// A member was asked.
    Asked {
        request: RequestId,
        peer: NodeId,
        deadline: Time,
        task: Task,
        own: Own,
    },
    /// The storage was asked to mend rows.
    Mending {
        table: Name,
    },
    /// The storage was asked to add the fingerprint up anew.
    Recounting,
}

/// This node's own rows of a stretch.
#[derive(Debug)]
struct Own {
    mark: Mark,
    stretch: Stretch,
    rows: usize,
    next: Option<Place>,
}

impl Audit {
    pub(super) fn new(every: Duration) -> Self {
        Self {
            cursor: beginning(),
            next_at: None,
            stage: Stage::Idle,
            look: LookId(0),
            request: RequestId(0),
            narrow: VecDeque::new(),
            suspects: VecDeque::new(),
            rows_max: ROWS_MIN,
            pass: Pass::default(),
            recount_at: None,
            served: BTreeMap::new(),
            looked_at: BTreeMap::new(),
            effects: Vec::new(),
            findings: Findings::default(),
            every,
        }
    }

    pub(super) fn findings(&self) -> &Findings {
        &self.findings
    }

    pub(super) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    pub(super) fn on_peer_down(&mut self, node: NodeId) {
        self.findings.unequal.remove(&node);
        self.served.retain(|_, (peer, _)| *peer != node);
        self.looked_at.remove(&node);
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        match &self.stage {
            Stage::Idle => self.next_at,
            Stage::Asked { deadline, .. } => Some(*deadline),
            Stage::Looking { .. } | Stage::Mending { .. } | Stage::Recounting => None,
        }
    }

    /// Begins what is due. `may`: this node may compare itself with others.
    pub(super) fn run(&mut self, now: Time, rng: &mut SmallRng, may: bool) {
        if let Stage::Asked { deadline, .. } = &self.stage
            && *deadline <= now
        {
            self.give_up(now, rng);
        }
        let every = self.every;
        let next_at =
            *self.next_at.get_or_insert_with(|| now + every.mul_f64(rng.random_range(0.0..1.0)));
        if !matches!(self.stage, Stage::Idle) || next_at > now {
            return;
        }
        self.plan_next(now, rng);
        if !may {
            // What differs while something is missing says nothing.
            self.narrow.clear();
            self.suspects.clear();
            return;
        }
        let (task, look) = self.next_task(now);
        self.look = LookId(self.look.0 + 1);
        self.stage = Stage::Looking { look: self.look, task };
        self.effects.push(Effect::Look { id: self.look, look });
    }

    fn plan_next(&mut self, now: Time, rng: &mut SmallRng) {
        let is_hurried =
            !self.narrow.is_empty() || !self.suspects.is_empty() || self.pass.is_hurried;
        let pause = if is_hurried { HURRIED.min(self.every) } else { self.every };
        self.next_at = Some(now + pause.mul_f64(rng.random_range(0.8..1.2)));
    }

    fn next_task(&mut self, now: Time) -> (Task, Look) {
        if let Some(suspect) = self.suspects.pop_front_if(|suspect| suspect.due <= now) {
            let Part { table, after, to, .. } = suspect.part.clone();
            return (Task::Confirm(suspect), Look::Rows { table, after, to });
        }
        if let Some(part) = self.narrow.pop_front() {
            let Part { table, after, to, .. } = part.clone();
            return (Task::Narrow(part), Look::Rows { table, after, to });
        }
        (Task::Survey, Look::Survey { from: self.cursor.clone(), rows_max: self.rows_max })
    }

    /// Something went wrong or was not answered: what it was about is found again.
    fn give_up(&mut self, now: Time, rng: &mut SmallRng) {
        self.stage = Stage::Idle;
        self.plan_next(now, rng);
    }

    /// The storage has looked.
    pub(super) fn on_sight(
        &mut self,
        now: Time,
        rng: &mut SmallRng,
        overlay: &Overlay,
        (id, sight): (LookId, Option<Sight>),
    ) {
        if let Some((peer, request)) = self.served.remove(&id) {
            if let Some(Sight::Against(seen)) = sight {
                let seen = Message::Seen { request, seen: Box::new(seen) };
                self.send(peer, seen);
            }
            return;
        }
        let Stage::Looking { look, .. } = &self.stage else { return };
        if *look != id {
            return;
        }
        let Stage::Looking { task, .. } = std::mem::replace(&mut self.stage, Stage::Idle) else {
            return;
        };
        let Some(Sight::Own { mark, stretch, rows, next }) = sight else { return };
        let own = Own { mark, stretch, rows, next };
        let Some(peer) = self.choose(rng, overlay, &task) else { return };
        if own.stretch.ranges.is_empty() {
            return self.move_on(now, None, 0);
        }
        self.request = RequestId(self.request.0 + 1);
        let wants_rows = !matches!(task, Task::Survey);
        let (request, stretch) = (self.request, own.stretch.clone());
        self.send(peer, Message::Look { request, mark, stretch, wants_rows });
        let deadline = now + ANSWER_WITHIN;
        self.stage = Stage::Asked { request, peer, deadline, task, own };
    }

    /// Chooses whom to ask. A row that differs is held against a third member's: of a shared row
    /// against who wrote it, if that one is up.
    fn choose(&self, rng: &mut SmallRng, overlay: &Overlay, task: &Task) -> Option<NodeId> {
        match task {
            Task::Narrow(part) if overlay.is_up(part.peer) => Some(part.peer),
            Task::Narrow(_) => None,
            Task::Survey => {
                let unequal = self.findings.unequal.keys().copied();
                let mut unequal =
                    unequal.filter(|node| self.pass.is_hurried && overlay.is_up(*node));
                unequal.next_back().or_else(|| overlay.some_peers(rng, 1).pop())
            }
            Task::Confirm(suspect) => {
                let first = suspect.part.peer;
                let theirs = suspect.rows.values().find_map(|(_, theirs)| theirs.as_ref());
                let writer = theirs.map(|row| row.life.stamp.origin.node);
                let writer = writer.filter(|node| *node != first && overlay.is_up(*node));
                let others = || overlay.some_peers(rng, 2).into_iter().find(|node| *node != first);
                writer.or_else(others).or_else(|| overlay.is_up(first).then_some(first))
            }
        }
    }

    /// A member wants its rows held against this node's.
    pub(super) fn on_look(
        &mut self,
        now: Time,
        (from, request): (NodeId, RequestId),
        (stretch, wants_rows): (Stretch, bool),
    ) {
        let last = self.looked_at.get(&from);
        let is_early = last.is_some_and(|last| now.since(*last) < LOOKS_APART);
        if self.served.len() >= SERVED_MAX || is_early {
            return;
        }
        self.looked_at.insert(from, now);
        self.look = LookId(self.look.0 + 1);
        self.served.insert(self.look, (from, request));
        let look = Look::Against { stretch, wants_rows };
        self.effects.push(Effect::Look { id: self.look, look });
    }

    /// A member has answered.
    pub(super) fn on_seen(&mut self, now: Time, from: NodeId, request: RequestId, seen: Seen) {
        let is_asked = matches!(&self.stage, Stage::Asked { request: asked, peer, .. }
            if *asked == request && *peer == from);
        if !is_asked {
            return;
        }
        let Stage::Asked { task, own, .. } = std::mem::replace(&mut self.stage, Stage::Idle) else {
            return;
        };
        self.findings.looks += 1;
        let has_begun_anew = self.compare_marks(now, from, own.mark, seen.mark);
        match task {
            Task::Survey => self.on_survey(now, from, (&own, &seen), has_begun_anew),
            Task::Narrow(part) => self.on_narrow(now, part, own, seen),
            Task::Confirm(suspect) => self.on_confirm(from, &suspect, &own, seen),
        }
        if self.pass.is_hurried || !self.narrow.is_empty() {
            let soon = now + HURRIED.min(self.every);
            self.next_at = self.next_at.map(|at| at.min(soon));
        }
    }

    /// Returns whether all rows are looked at from the beginning now, in a hurry.
    fn compare_marks(&mut self, now: Time, peer: NodeId, ours: Mark, theirs: Mark) -> bool {
        if ours.heads != theirs.heads {
            return false;
        }
        if ours.fingerprint == theirs.fingerprint {
            self.findings.unequal.remove(&peer);
            return false;
        }
        self.findings.unequal.entry(peer).or_insert(now);
        let is_calm = self.recount_at.is_none_or(|at| at <= now);
        let begins = !self.pass.is_hurried && is_calm;
        if begins {
            self.pass = Pass { is_hurried: true, ..Pass::default() };
            self.cursor = beginning();
        }
        begins
    }

    fn on_survey(
        &mut self,
        now: Time,
        peer: NodeId,
        (own, seen): (&Own, &Seen),
        has_begun_anew: bool,
    ) {
        let looked = seen.looked.min(own.stretch.ranges.len());
        for index in &seen.differing {
            let Some((after, to)) = own.stretch.bounds(usize::from(*index)) else { continue };
            self.pass.has_differences = true;
            if self.narrow.len() < NARROW_MAX {
                let table = own.stretch.table.clone();
                self.narrow.push_back(Part { peer, table, after, to });
            }
        }
        if has_begun_anew {
            return;
        }
        let next = match looked.checked_sub(1) {
            Some(last) if looked < own.stretch.ranges.len() => {
                let key = own.stretch.ranges[last].to.clone();
                key.map(|key| Place { table: own.stretch.table.clone(), key })
            }
            Some(_) => own.next.clone(),
            // It looked at nothing: another member may.
            None => return,
        };
        self.move_on(now, next, own.rows);
    }

    /// Goes to the next stretch; `None`: there is none.
    fn move_on(&mut self, now: Time, next: Option<Place>, rows: usize) {
        self.pass.rows += rows;
        let Some(next) = next else { return self.end_pass(now) };
        if next <= self.cursor {
            // A name came in between; it is seen the next time.
            return self.end_pass(now);
        }
        self.cursor = next;
        if rows >= self.rows_max && self.pass.rows > self.rows_max * PASS_LOOKS / 8 {
            self.rows_max = (self.rows_max * 2).min(ROWS_MAX);
        }
    }

    fn end_pass(&mut self, now: Time) {
        let Pass { rows, has_mended, has_differences, is_hurried } = std::mem::take(&mut self.pass);
        self.rows_max = (rows / PASS_LOOKS).clamp(ROWS_MIN, ROWS_MAX);
        self.cursor = beginning();
        self.findings.passes += 1;
        self.findings.passed_at = Some(now);
        // What is kept of rows that were damaged was not theirs any more.
        let is_kept_wrong = has_mended || (is_hurried && !has_differences);
        let is_due = self.recount_at.is_none_or(|at| at <= now);
        if is_hurried || is_kept_wrong {
            self.recount_at = Some(now + RECOUNT_EVERY);
        }
        if is_kept_wrong && (is_due || has_mended) {
            self.stage = Stage::Recounting;
            self.effects.push(Effect::Recount);
        }
    }

    fn on_narrow(&mut self, now: Time, part: Part, own: Own, seen: Seen) {
        let ours = hashes(&own.stretch);
        let theirs = by_key(seen.rows);
        let mut rows = BTreeMap::new();
        for index in &seen.differing {
            let Some((after, to)) = own.stretch.bounds(usize::from(*index)) else { continue };
            let end = [to, seen.cut.clone()].into_iter().flatten().min();
            let within = |key: &&Key| **key > after && end.as_ref().is_none_or(|end| *key <= end);
            let keys = ours.keys().filter(within).chain(theirs.keys().filter(within));
            for key in keys {
                let (our_hash, row) = (ours.get(key).copied().unwrap_or(0), theirs.get(key));
                if our_hash != row.map_or(0, |row| row.hash(&part.table)) {
                    rows.insert(key.clone(), (our_hash, row.cloned()));
                }
            }
        }
        // What did not fit goes on from there.
        let rest = seen.cut.or_else(|| own.next.map(|next| next.key));
        if let Some(after) = rest.filter(|after| part.to.as_ref().is_none_or(|to| after < to)) {
            self.narrow.push_front(Part { after, ..part.clone() });
        }
        let (Some(first), Some(last)) = (rows.keys().next(), rows.keys().next_back()) else {
            return;
        };
        self.pass.has_differences = true;
        if self.suspects.len() < SUSPECTS_MAX {
            let before = ours.range(..first.clone()).next_back().map(|(key, _)| key.clone());
            let after = before.unwrap_or(part.after);
            let part = Part { after, to: Some(last.clone()), ..part };
            self.suspects.push_back(Suspect { part, due: now + CONFIRM_AFTER, rows });
        }
    }

    fn on_confirm(&mut self, from: NodeId, suspect: &Suspect, own: &Own, seen: Seen) {
        let first = suspect.part.peer;
        let table = suspect.part.table.clone();
        let ours = hashes(&own.stretch);
        let theirs = by_key(seen.rows);
        let end = seen.cut;
        let mut mend = Mend { table: table.clone(), rows: Vec::new(), gone: Vec::new() };
        for (key, (our_hash, before)) in &suspect.rows {
            let range = own.stretch.range_of(key);
            let is_beyond = end.as_ref().is_some_and(|end| key > end) || range >= seen.looked;
            if is_beyond || ours.get(key).copied().unwrap_or(0) != *our_hash {
                continue;
            }
            // Of ranges that are the same no rows are told.
            let is_same = !seen.differing.iter().any(|index| usize::from(*index) == range);
            let after = theirs.get(key);
            let hash = |row: Option<&RowState>| row.map_or(0, |row| row.hash(&table));
            let (then, now) = (hash(before.as_ref()), hash(after));
            if is_same || now == *our_hash {
                self.findings.odd_elsewhere += u64::from(first != from);
            } else if first == from {
                mend.rows.extend(after.map(|row| (Trust::One(from), row.clone())));
            } else if then == now {
                match (before, after) {
                    (_, Some(row)) => mend.rows.push((Trust::Two, row.clone())),
                    (Some(row), None) => mend.rows.push((Trust::One(first), row.clone())),
                    (None, None) => mend.gone.push(key.clone()),
                }
            } else {
                mend.rows.extend(before.as_ref().map(|row| (Trust::One(first), row.clone())));
                mend.rows.extend(after.map(|row| (Trust::One(from), row.clone())));
            }
        }
        if mend.rows.is_empty() && mend.gone.is_empty() {
            return;
        }
        self.stage = Stage::Mending { table };
        self.effects.push(Effect::Mend(mend));
    }

    /// The storage has mended rows (`None`: it failed).
    pub(super) fn on_mended(&mut self, now: Time, rows: Option<Vec<(Key, Origin)>>) {
        let Stage::Mending { table } = std::mem::replace(&mut self.stage, Stage::Idle) else {
            return;
        };
        match rows {
            Some(rows) if rows.is_empty() => self.findings.unmended += 1,
            Some(rows) => {
                self.pass.has_mended = true;
                self.findings.mended += rows.len() as u64;
                for (key, origin) in rows {
                    self.findings.last.push_back(Found {
                        at: now,
                        table: table.clone(),
                        key,
                        origin,
                    });
                }
                let many = self.findings.last.len().saturating_sub(FOUND_MAX);
                self.findings.last.drain(..many);
            }
            None => {}
        }
    }

    pub(super) fn on_recounted(&mut self) {
        if matches!(self.stage, Stage::Recounting) {
            self.stage = Stage::Idle;
        }
    }

    fn send(&mut self, to: NodeId, message: Message) {
        self.effects.push(Effect::Send { to: vec![to], message, lane: Lane::Repair });
    }
}

fn beginning() -> Place {
    Place { table: Name::from(""), key: Key::default() }
}

/// Lists the rows of a stretch whose ranges have one each.
fn hashes(stretch: &Stretch) -> BTreeMap<Key, u64> {
    let rows = stretch.ranges.iter().filter(|range| range.hash != 0);
    rows.filter_map(|range| Some((range.to.clone()?, range.hash))).collect()
}

fn by_key(rows: Vec<RowState>) -> BTreeMap<Key, RowState> {
    rows.into_iter().map(|row| (row.key.clone(), row)).collect()
}
