//! When the tombstone of a deleted row may go: once nothing can come any more that would bring the
//! row back.
//!
//! Members ask each other in rounds ([`Round`]): each adds its heads, and whom it knows. A round is
//! whole when all have told whom anybody who told knows, the dead and the silent too. Then
//!
//! 1. every member holds `low`. What a round's `low` covers may go when the *next* round is whole:
//!    whoever was served one of these versions by a peer that had overwritten it already knows by
//!    then what overwrote it, and so does, by 2., whoever drops.
//! 2. No member had more than `high` before it merged what `low` covers. Who holds `high` itself is
//!    not told any of it again, however late a message is; what is newer was written by
//!    somebody who knew of the delete.
//!
//! A member that is away holds this up until it is forgotten: by the operator, or, where most of the
//! members are up, after a long time. What a forgotten node wrote is taken only from peers that
//! merged it, never as it was sent; the node itself takes all rows anew (`standing`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::Config;
use super::retirement::{Retirement, Whole};
use crate::crdt::change::death_of;
use crate::crdt::storage::{LENGTH_DROPPED_MAX, Tidied, Tidy};
use crate::crdt::{Changeset, Floor};
use crate::ledger::Round;
use crate::ledger::round::{Heads, Nodes, raise, reaches};
use crate::types::{Epoch, NodeId, Origin, Time, Version};

/// How often the pause between two tellings doubles while nothing new is heard.
const PAUSE_DOUBLINGS_MAX: u32 = 6;

/// How soon a collection that failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Who is a member, what all of them hold, and how far tombstones were dropped.
///
/// Law: `floor` is at least what the storage's is, also while the storage is at work.
#[derive(Debug)]
pub(super) struct Rounds {
    me: NodeId,
    round: Round,
    /// The members and the latest epoch of theirs that was met; 0: none yet.
    known: Nodes,
    /// Who is no member any more, up to which epoch.
    forgotten: Nodes,
    /// What of both is on disk, and what is being written.
    noted: Noted,
    noting: Option<Noted>,
    /// Who was forgotten when tombstones went last: all others count where a majority is needed, or
    /// two halves could forget each other.
    in_force: Nodes,
    /// Who is forgotten, as it was last looked at.
    gone: BTreeSet<NodeId>,
    up: BTreeSet<NodeId>,
    /// Since when members are missed, and under which epoch: who begins another was somewhere.
    away: BTreeMap<NodeId, (Epoch, Time)>,
    /// The last whole round: its number, and what all held.
    last: Option<(u64, Heads)>,
    plan: Option<Plan>,
    is_collecting: bool,
    /// When a collection that failed is tried again.
    retry_at: Option<Time>,
    floor: Heads,
    length: u64,
    /// See [`Floor::longest`].
    longest: u64,
    began_at: Option<Time>,
    /// When the present round was first heard of.
    round_at: Option<Time>,
    /// When the next round begins, while the present one is whole.
    next_at: Option<Time>,
    tell_at: Option<Time>,
    /// How often the round was told since it changed.
    repeats: u32,
    /// When peers were last told by way of an answer: two that answer each other without a pause
    /// have more to say each time.
    answered: BTreeMap<NodeId, Time>,
    pub(super) retirement: Retirement,
    config: Config,
}

/// Who is a member, and who is none any more.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Noted {
    pub(super) known: Nodes,
    pub(super) forgotten: Nodes,
}

/// Tombstones that may go.
#[derive(Debug)]
struct Plan {
    low: Heads,
    /// What this node must hold before.
    high: Heads,
    /// On whose word.
    told: Nodes,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    /// Tell a peer of the round, whichever.
    Tell,
    Collect {
        heads: Vec<(Origin, Version)>,
        forgotten: Vec<(NodeId, Epoch)>,
    },
}

impl Rounds {
    pub(super) fn new(me: Origin, config: Config) -> Self {
        Self {
            me: me.node,
            round: Round::default(),
            known: Nodes::from([(me.node, me.epoch)]),
            forgotten: Nodes::new(),
            noted: Noted::default(),
            noting: None,
            in_force: Nodes::new(),
            gone: BTreeSet::new(),
            up: BTreeSet::new(),
            away: BTreeMap::new(),
            last: None,
            plan: None,
            is_collecting: false,
            retry_at: None,
            floor: Heads::new(),
            length: 0,
            longest: 0,
            began_at: None,
            round_at: None,
            next_at: None,
            tell_at: None,
            repeats: 0,
            answered: BTreeMap::new(),
            retirement: Retirement::default(),
            config,
        }
    }

    /// Takes over what the storage says.
    pub(super) fn stand_on(&mut self, floor: &Floor) {
        raise(&mut self.floor, &floor.heads.iter().copied().collect());
        raise(&mut self.forgotten, &floor.forgotten.iter().copied().collect());
        self.length = self.length.max(floor.length);
        self.longest = floor.longest;
        self.in_force = floor.in_force.iter().copied().collect();
        self.retirement.stand_on(floor);
        // Rounds after a restart of all members are later ones than those before.
        self.round = Round::new(floor.era.saturating_sub(1));
        let known = floor.members.iter().copied().collect();
        self.noted = Noted { known, forgotten: self.forgotten.clone() };
        raise(&mut self.known, &self.noted.known);
    }

    /// Returns members that have to be noted before this node asks or tells anything, and who is none
    /// any more.
    pub(super) fn meet(&mut self, now: Time) -> Option<Noted> {
        self.retry_at = self.retry_at.filter(|at| now < *at);
        // What is being erased would come back.
        let is_busy = self.noting.is_some() || self.retirement.is_tidying();
        if is_busy || self.retry_at.is_some() || self.has_noted_all() {
            return None;
        }
        let Noted { known, forgotten } = &self.noted;
        let new = Noted {
            known: beyond(&self.known, known),
            forgotten: beyond(&self.forgotten, forgotten),
        };
        self.noting = Some(Noted { known: self.known.clone(), forgotten: self.forgotten.clone() });
        Some(new)
    }

    /// Returns what the storage is to tidy up, if it is not at it.
    pub(super) fn next_tidy(&mut self) -> Option<Tidy> {
        if self.noting.is_some() { None } else { self.retirement.next_tidy() }
    }

    pub(super) fn on_met(&mut self, now: Time, is_done: bool) {
        match self.noting.take() {
            Some(noted) if is_done => self.noted = noted,
            Some(_) => self.retry_at = Some(now + RETRY_AFTER),
            None => {}
        }
    }

    /// Tells whether the next process will know whom this one knows, and who is none any more.
    pub(super) fn has_noted_all(&self) -> bool {
        self.noted.known == self.known && self.noted.forgotten == self.forgotten
    }

    /// An origin was met. Returns whether its node is known to have left earlier ones behind.
    pub(super) fn know(&mut self, origin: Origin) -> bool {
        let known = self.known.entry(origin.node).or_insert(origin.epoch);
        let is_later = origin.epoch > *known;
        *known = (*known).max(origin.epoch);
        is_later
    }

    /// A node said something: it is not away, whatever membership has it.
    pub(super) fn on_word(&mut self, node: NodeId) {
        self.away.remove(&node);
    }

    pub(super) fn on_up(&mut self, node: NodeId) {
        self.known.entry(node).or_default();
        self.up.insert(node);
        self.away.remove(&node);
    }

    pub(super) fn on_down(&mut self, now: Time, node: NodeId) {
        self.answered.remove(&node);
        if self.up.remove(&node) {
            self.away.insert(node, (self.epoch_of(node), now));
        }
    }

    /// A node is no member any more, until it begins another epoch.
    pub(super) fn forget(&mut self, node: NodeId) {
        let last = self.known.get(&node).copied().unwrap_or_default();
        raise(&mut self.forgotten, &Nodes::from([(node, last)]));
    }

    /// This node takes all rows of another. Whom it knew may have been forgotten for good meanwhile: what
    /// the host and those say that are here is enough.
    pub(super) fn restart(&mut self, host: NodeId) {
        let is_here = |node: &NodeId| *node == self.me || *node == host || self.up.contains(node);
        self.known.retain(|node, _| is_here(node));
        self.known.entry(host).or_default();
        self.noted.known.clear();
        self.noting = None;
        self.last = None;
        self.plan = None;
        self.retirement.restart();
    }

    /// A node's rows were deleted under this origin: it is forgotten up to there.
    pub(super) fn depart(&mut self, under: Origin) {
        let last = Nodes::from([(under.node, under.epoch)]);
        raise(&mut self.known, &last);
        raise(&mut self.forgotten, &last);
    }

    /// The storage has tidied up (`None`: it failed). Returns how many origins it erased, and which it
    /// retired.
    pub(super) fn on_tidied(
        &mut self,
        now: Time,
        tidied: Option<Tidied>,
    ) -> Option<(usize, Vec<(Origin, Version)>)> {
        let known = &self.known;
        let epoch_of = |node| known.get(&node).copied().unwrap_or_default();
        let (tidy, tidied) = self.retirement.on_tidied(now, tidied, epoch_of)?;
        for origin in &tidied.erased {
            self.floor.remove(origin);
        }
        let Noted { known, forgotten } = &mut self.noted;
        let all = [&mut self.known, known, &mut self.forgotten, forgotten, &mut self.in_force];
        for nodes in all {
            nodes.retain(|node, _| !tidy.gone.contains(node));
        }
        for node in &tidy.gone {
            self.away.remove(node);
            self.gone.remove(node);
        }
        Some((tidied.erased.len(), tidied.retired))
    }

    /// Returns the last epoch up to which a node was forgotten, if that is its latest.
    pub(super) fn is_forgotten(&self, node: NodeId) -> bool {
        let known = self.known.get(&node).copied().unwrap_or_default();
        self.forgotten.get(&node).is_some_and(|last| *last >= known)
    }

    /// Returns up to which epoch a node was forgotten; 0: it was not.
    pub(super) fn forgotten_up_to(&self, node: NodeId) -> Epoch {
        self.forgotten.get(&node).copied().unwrap_or_default()
    }

    /// Returns each node once that is forgotten from now on.
    pub(super) fn take_newly_forgotten(&mut self) -> Vec<NodeId> {
        let all: Vec<NodeId> = self.forgotten.keys().copied().collect();
        let of_now: BTreeSet<NodeId> =
            all.into_iter().filter(|node| self.is_forgotten(*node)).collect();
        let new = of_now.difference(&self.gone).copied().collect();
        self.gone = of_now;
        new
    }

    pub(super) fn epoch_of(&self, node: NodeId) -> Epoch {
        self.known.get(&node).copied().unwrap_or_default()
    }

    /// Tells whether a node writes as this origin as far as anybody here knows: then what it sends
    /// was written by somebody who is asked in rounds.
    pub(super) fn is_current(&self, origin: Origin) -> bool {
        origin.epoch >= self.epoch_of(origin.node)
            && self.forgotten.get(&origin.node).is_none_or(|last| origin.epoch > *last)
    }

    /// Tells whether no member is away.
    pub(super) fn are_all_up(&self) -> bool {
        self.members().all(|node| node == self.me || self.up.contains(&node))
    }

    /// Tells whether most members are up, those too that nobody counts any more by a word that is
    /// not on disk.
    pub(super) fn are_most_up(&self) -> bool {
        let here = self.members().filter(|node| self.up.contains(node)).count() + 1;
        let counts = |(node, epoch): &(&NodeId, &Epoch)| {
            self.in_force.get(node).is_none_or(|last| *epoch > last)
        };
        here * 2 > self.known.iter().filter(counts).count()
    }

    /// Tells whether there is no other member, and has not been for so long.
    pub(super) fn is_lone_for(&self, now: Time, long: Duration) -> bool {
        let is_long = self.began_at.is_some_and(|at| now.since(at) >= long);
        is_long && self.members().all(|node| node == self.me)
    }

    /// Returns how far tombstones of an origin may be missing here.
    pub(super) fn floor(&self, origin: Origin) -> Version {
        self.floor.get(&origin).copied().unwrap_or_default()
    }

    /// Returns how far tombstones may be missing here.
    pub(super) fn floors(&self) -> Vec<(Origin, Version)> {
        self.floor.iter().map(|(origin, head)| (*origin, *head)).collect()
    }

    /// What is missing at a peer whose rows this node has taken is missing here.
    pub(super) fn raise_floor(&mut self, heads: &[(Origin, Version)], length: u64) {
        raise(&mut self.floor, &heads.iter().copied().collect());
        self.length = self.length.max(length);
    }

    /// Notes the lives of rows that were written here or came.
    pub(super) fn note_lives(&mut self, changeset: &Changeset) {
        for table in &changeset.tables {
            let deaths = table.rows.iter().map(|row| death_of(&table.table, row.life));
            let longest = deaths.filter(|length| *length <= LENGTH_DROPPED_MAX).max();
            self.longest = self.longest.max(longest.unwrap_or(0));
        }
    }

    /// Notes that no row of a commit died in a longer life.
    pub(super) fn note_longest(&mut self, longest: u64) {
        self.longest = self.longest.max(longest);
    }

    /// Returns the longest life in which a row died whose tombstone was dropped, or may be dropped
    /// by anybody, as far as this node holds what was deleted; `None` while some are being dropped.
    pub(super) fn length(&self) -> Option<u64> {
        (!self.is_collecting).then_some(self.length.max(self.longest))
    }

    pub(super) fn round(&self) -> &Round {
        &self.round
    }

    /// Returns for how long the present round has been under way.
    pub(super) fn age(&self, now: Time) -> Duration {
        self.round_at.map_or(Duration::ZERO, |at| now.since(at))
    }

    /// Others take these for no members any more.
    pub(super) fn hear_forgotten(&mut self, now: Time, forgotten: &Nodes) {
        let for_long = self.config.retired_for;
        let forgotten = self.retirement.without_gone(now, forgotten, for_long);
        raise(&mut self.forgotten, &forgotten);
    }

    /// Returns who is no member any more, as far as that is on disk.
    pub(super) fn noted_forgotten(&self) -> &Nodes {
        &self.noted.forgotten
    }

    pub(super) fn has_noted_forgotten(&self, node: NodeId) -> bool {
        self.noted.forgotten.get(&node) == self.forgotten.get(&node)
    }

    pub(super) fn forgotten(&self) -> impl Iterator<Item = NodeId> {
        self.forgotten.keys().copied()
    }

    /// Returns whom a round knows, but for those that are forgotten for good.
    pub(super) fn known_in(&mut self, now: Time, round: &Round) -> Nodes {
        self.retirement.without_gone(now, &round.known, self.config.retired_for)
    }

    /// A peer told of a round, of which [`Rounds::known_in`] said this. Returns whether it is to hear of
    /// this node's.
    pub(super) fn on_round(&mut self, now: Time, heard: &Round, known: &Nodes) -> bool {
        self.hear_forgotten(now, &heard.forgotten);
        raise(&mut self.known, known);
        if heard.number < self.round.number {
            return true;
        }
        if heard.number > self.round.number {
            self.round = Round::new(heard.number);
            self.round_at = Some(now);
            self.next_at = None;
            self.repeats = 0;
        }
        let before = self.round.clone();
        self.round.merge(heard);
        if self.round != before {
            self.repeats = 0;
            let soon = now + self.config.tell_every;
            self.tell_at = Some(self.tell_at.map_or(soon, |at| at.min(soon)));
        }
        self.round != *heard
    }

    /// Tells whether it is time to answer a peer, and notes that it is answered.
    pub(super) fn may_answer(&mut self, now: Time, node: NodeId) -> bool {
        let last = self.answered.get(&node);
        let may = last.is_none_or(|last| now.since(*last) >= self.config.tell_every);
        if may {
            self.answered.insert(node, now);
        }
        may
    }

    /// Does what time or the last input has brought about. `me` and `heads` are given where this
    /// node may add its own to a round.
    pub(super) fn run(
        &mut self,
        now: Time,
        rng: &mut SmallRng,
        me: Option<(Origin, &dyn Fn() -> Heads)>,
    ) -> Option<Action> {
        let began_at = *self.began_at.get_or_insert(now);
        if let Some((me, heads)) = me.filter(|_| now.since(began_at) >= self.config.tell_after) {
            self.take_part(now, rng, me, heads);
        } else if self.next_at.is_some_and(|at| at <= now) {
            self.next_at = Some(now + self.config.tell_every);
        }
        let every = self.config.tell_every;
        let tell_at = *self.tell_at.get_or_insert(now + every.mul_f64(rng.random_range(0.5..1.0)));
        if tell_at > now {
            return None;
        }
        self.miss(now);
        let pause = every * 2_u32.pow(self.repeats.min(PAUSE_DOUBLINGS_MAX));
        self.tell_at = Some(now + pause.mul_f64(rng.random_range(0.8..1.2)));
        self.repeats += 1;
        (!self.round.told.is_empty()).then_some(Action::Tell)
    }

    fn take_part(&mut self, now: Time, rng: &mut SmallRng, me: Origin, heads: &dyn Fn() -> Heads) {
        let is_due = self.next_at.is_some_and(|at| at <= now);
        if is_due || self.round.number == 0 {
            self.round = Round::new(self.round.number.saturating_add(1));
            self.round_at = Some(now);
            self.next_at = None;
        }
        if !self.round.is_told_by(me.node, me.epoch) {
            let told = self.retirement.told(heads(), &|origin| !self.is_current(origin));
            self.round.tell(me, told, &self.known, &self.forgotten);
            (self.repeats, self.tell_at) = (0, Some(now));
        }
        self.round.note(&self.known, &self.forgotten);
        let forgotten = self.round.forgotten.clone();
        self.hear_forgotten(now, &forgotten);
        if self.next_at.is_none() && self.round.is_whole() {
            self.next_at = Some(now + self.config.round_every.mul_f64(rng.random_range(0.8..1.2)));
            self.on_whole();
            self.retire(now, me, &heads());
        }
    }

    /// Finds out whose traces may go.
    fn retire(&mut self, now: Time, me: Origin, held: &Heads) {
        let mut retirement = std::mem::take(&mut self.retirement);
        let here = &*self;
        let forgotten: Nodes = here
            .forgotten
            .iter()
            .filter(|(node, _)| here.is_forgotten(**node) && **node != me.node)
            .map(|(node, epoch)| (*node, *epoch))
            .collect();
        let whole = Whole {
            round: &here.round,
            held,
            forgotten: &forgotten,
            is_superseded: &|origin| origin != me && !here.is_current(origin),
            is_up: &|node| here.up.contains(&node),
            floor: &here.floor,
            retired_for: here.config.retired_for,
        };
        retirement.on_whole(now, &whole);
        self.retirement = retirement;
    }

    fn on_whole(&mut self) {
        let number = self.round.number;
        match self.last.take() {
            Some((last, mut low)) if last + 1 == number => {
                // Somebody may have come in between who holds less.
                low.retain(|origin, version| match self.round.low.get(origin) {
                    Some(now) => {
                        *version = (*version).min(*now);
                        true
                    }
                    None => false,
                });
                let (mut high, told) = (self.round.high.clone(), self.round.told.clone());
                // Of these there is nothing, and soon nobody will know how much there was.
                low.retain(|origin, _| !self.round.retired.contains(origin));
                high.retain(|origin, _| !self.round.retired.contains(origin));
                self.plan = Some(Plan { low, high, told });
            }
            // It missed the end of the one before.
            Some(_) | None => {}
        }
        self.last = Some((number, self.round.low.clone()));
    }

    /// Returns what may go, if something may. Answer by [`Rounds::on_collected`].
    pub(super) fn collect(&mut self, head: impl Fn(Origin) -> Version) -> Option<Action> {
        if self.is_collecting || !self.has_noted_all() || self.retry_at.is_some() {
            return None;
        }
        let plan = self.plan.as_ref()?;
        let all_told = self
            .members()
            .all(|node| plan.told.get(&node).is_some_and(|told| *told >= self.epoch_of(node)));
        if !all_told {
            // Somebody came who was not asked.
            self.plan = None;
            return None;
        }
        let retired = &self.retirement;
        if !reaches(|origin| retired.head(origin).unwrap_or_else(|| head(origin)), &plan.high) {
            return None;
        }
        raise(&mut self.floor, &plan.low);
        self.in_force = self.forgotten.clone();
        self.is_collecting = true;
        Some(Action::Collect {
            heads: plan.low.iter().map(|(origin, head)| (*origin, *head)).collect(),
            forgotten: self.forgotten.iter().map(|(node, epoch)| (*node, *epoch)).collect(),
        })
    }

    /// The storage has dropped some (`None`: it failed), and its floor's length is now this.
    pub(super) fn on_collected(&mut self, now: Time, done: Option<(bool, u64)>) {
        self.is_collecting = false;
        match done {
            Some((is_done, length)) => {
                self.length = self.length.max(length);
                if is_done {
                    self.plan = None;
                }
            }
            None => self.retry_at = Some(now + RETRY_AFTER),
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        [self.tell_at, self.next_at, self.retry_at].into_iter().flatten().min()
    }

    fn members(&self) -> impl Iterator<Item = NodeId> {
        self.known.keys().copied().filter(|node| !self.is_forgotten(*node))
    }

    /// Looks who is away, and forgets who was for too long, where most are here.
    fn miss(&mut self, now: Time) {
        let members: Vec<NodeId> = self.members().collect();
        if !self.are_most_up() {
            // Whoever is cut off forgets nobody: its time begins anew when most are back.
            self.away.clear();
            return;
        }
        for node in &members {
            if self.up.contains(node) || *node == self.me {
                continue;
            }
            let epoch = self.epoch_of(*node);
            let away = self.away.entry(*node).or_insert((epoch, now));
            if away.0 != epoch {
                *away = (epoch, now);
            }
            let is_long = now.since(away.1) >= self.config.forget_after;
            if is_long {
                self.forget(*node);
            }
        }
    }
}

/// Returns the nodes whose epoch is not the one that was noted.
fn beyond(nodes: &Nodes, noted: &Nodes) -> Nodes {
    let new = nodes.iter().filter(|(node, epoch)| noted.get(node) != Some(epoch));
    new.map(|(node, epoch)| (*node, *epoch)).collect()
}
