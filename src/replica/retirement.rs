//! What becomes of those who are gone, so that nothing is kept of them for ever.
//!
//! * **Their rows.** What a forgotten node owns nobody can delete but itself, and it will not. Once a
//!   round says that all members hold its origins up to the same heads, each deletes its rows by itself,
//!   under an epoch of that node that is far beyond any of its own ([`EPOCH_LEAP`]): the same versions
//!   everywhere, since they follow from what all hold. Nothing is sent. Who missed the round pulls them
//!   like any others. Should the node return, it hears of that epoch, begins a later one and says its
//!   rows again.
//! * **Origins.** One is *superseded* when its node writes under a later epoch or is forgotten, and
//!   *spent* when nothing of it is left: no row, no tombstone. When a round says that it is spent
//!   with all members, each *retires* it, up to where any of them held it: it is no head any more,
//!   and what comes of it is not taken. Who is let in takes over what its host has retired. When a
//!   round says that all have retired it, and that was so for long enough for any message to be lost,
//!   it is *erased*.
//! * **The floor and the members.** With an origin goes the note that tombstones of it were dropped.
//!   Who has a disk from before could not be refused any more, so disks have an *era*
//!   ([`crate::crdt::storage::Tidy`]): whose era is earlier than what was erased is told that it was
//!   forgotten, and takes all rows anew. Therefore members can be forgotten for good, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::crdt::Floor;
use crate::crdt::storage::{Era, Tidied, Tidy};
use crate::ledger::Round;
use crate::ledger::round::{Heads, Nodes, Told};
use crate::types::{Epoch, NodeId, Origin, Time, Version};

/// How far the epoch under which a forgotten node's rows are deleted is beyond its last at least: it
/// may have begun some since, unheard.
const EPOCH_LEAP: u64 = 1 << 26;

/// How such an epoch ends, in bits. It is seldom that another one does, and no harm.
const EPOCH_END: u64 = EPOCH_LEAP - 1;

/// Tells whether an epoch is one under which the rows of a forgotten node are deleted.
pub(super) fn is_departure(epoch: Epoch) -> bool {
    epoch.0 & EPOCH_END == EPOCH_END
}

/// How many superseded origins the storage is asked for at a time.
const ASKED_MAX: usize = 500;

/// The rows of a forgotten node that are to be deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Departure {
    /// The origin that deletes them.
    pub(super) under: Origin,
    /// How far all of the node's origins are held by everybody.
    pub(super) held: Vec<(Origin, Version)>,
}

/// Origins on their way out.
#[derive(Debug, Default)]
pub(super) struct Retirement {
    retired: Heads,
    /// Since when this process knows that they are, or that nobody else has heard of them.
    since: BTreeMap<Origin, Time>,
    /// Origins of which nothing was left, held up to there, when the storage was asked.
    spent: Heads,
    /// Up to where it was asked last.
    asked: Option<Origin>,
    era: u64,
    erased: u64,
    todo: Option<Tidy>,
    /// What the storage is at.
    doing: Option<Tidy>,
    departures: VecDeque<Departure>,
    departing: Option<Departure>,
    /// Nodes whose rows were seen to, and what was held of them then.
    departed: BTreeMap<NodeId, Vec<(Origin, Version)>>,
    /// Forgotten nodes of which there is no origin, and since when.
    empty: BTreeMap<NodeId, Time>,
    /// Nodes that were forgotten for good, up to which epoch, and when: others may speak of them for a
    /// while.
    gone: BTreeMap<NodeId, (Epoch, Time)>,
}

/// What a whole round is looked at with.
pub(super) struct Whole<'a> {
    pub(super) round: &'a Round,
    /// This node's heads.
    pub(super) held: &'a Heads,
    pub(super) forgotten: &'a Nodes,
    pub(super) is_superseded: &'a dyn Fn(Origin) -> bool,
    pub(super) is_up: &'a dyn Fn(NodeId) -> bool,
    /// Up to where tombstones may be missing here.
    pub(super) floor: &'a Heads,
    /// See [`super::Config::retired_for`].
    pub(super) retired_for: Duration,
}

impl Retirement {
    pub(super) fn stand_on(&mut self, floor: &Floor) {
        self.retired = floor.retired.iter().copied().collect();
        (self.era, self.erased) = (floor.era, floor.erased);
    }

    /// Returns how far a retired origin was held.
    pub(super) fn head(&self, origin: Origin) -> Option<Version> {
        self.retired.get(&origin).copied()
    }

    /// Lists the retired origins of a node, and how far they were held.
    pub(super) fn of_node(&self, node: NodeId) -> Vec<(Origin, Version)> {
        let of_node = self.retired.iter().filter(|(origin, _)| origin.node == node);
        of_node.map(|(origin, head)| (*origin, *head)).collect()
    }

    pub(super) fn retired(&self) -> usize {
        self.retired.len()
    }

    pub(super) fn era(&self) -> Era {
        Era { held: self.era, erased: self.erased }
    }

    /// This node holds what another one holds, and has retired what that one has.
    pub(super) fn take_over(&mut self, era: Era, retired: Vec<(Origin, Version)>) {
        self.era = self.era.max(era.held);
        self.erased = self.erased.max(era.erased);
        for (origin, head) in retired {
            self.retired.entry(origin).or_insert(head);
        }
    }

    /// This node gives up what it held.
    pub(super) fn restart(&mut self) {
        self.retired.clear();
        self.spent.clear();
    }

    pub(super) fn all(&self) -> Vec<(Origin, Version)> {
        self.retired.iter().map(|(origin, head)| (*origin, *head)).collect()
    }

    /// Tells whether a node with that era may hold rows that were deleted by what is erased.
    pub(super) fn is_stale(&self, era: u64) -> bool {
        era != 0 && era < self.erased
    }

    /// Tells whether this node is to keep its heads to itself: they are about to change in a way that
    /// those who conclude from them must know.
    pub(super) fn is_departing(&self) -> bool {
        self.departing.is_some() || !self.departures.is_empty()
    }

    /// Returns what this node adds to a round.
    pub(super) fn told(&self, held: Heads, is_superseded: &dyn Fn(Origin) -> bool) -> Told {
        let is_spent = |(origin, head): &(&Origin, &Version)| {
            self.spent.get(origin) == Some(head) && is_superseded(**origin)
        };
        let mut spent: BTreeSet<Origin> =
            held.iter().filter(is_spent).map(|(origin, _)| *origin).collect();
        let retired: BTreeSet<Origin> = self.retired.keys().copied().collect();
        spent.extend(&retired);
        let mut heads = held;
        heads.extend(&self.retired);
        Told { heads, spent, retired, era: self.era }
    }

    /// Leaves out nodes that were forgotten for good: whoever speaks of them has not heard of it.
    pub(super) fn without_gone(&mut self, now: Time, nodes: &Nodes, for_long: Duration) -> Nodes {
        // Others begin to count later.
        self.gone.retain(|_, (_, at)| now.since(*at) < for_long * 2);
        let is_gone = |node: &NodeId, epoch: Epoch| {
            self.gone.get(node).is_some_and(|(last, _)| epoch <= *last)
        };
        let nodes = nodes.iter().filter(|(node, epoch)| !is_gone(node, **epoch));
        nodes.map(|(node, epoch)| (*node, *epoch)).collect()
    }

    /// A round is whole: finds out what may go.
    pub(super) fn on_whole(&mut self, now: Time, whole: &Whole<'_>) {
        self.see_off(whole);
        let Whole { round, held, is_superseded, .. } = whole;
        let may_erase = round.era >= round.number;
        // Nothing is left of it with anybody. Who holds less, on a disk that was set back, learns of the
        // rest by what came after it.
        let is_for_all = |origin: &Origin| {
            round.spent.contains(origin) && round.low.contains_key(origin) && is_superseded(*origin)
        };
        let retire: Vec<(Origin, Version)> = held
            .iter()
            .filter(|(origin, _)| is_for_all(origin))
            .filter_map(|(origin, head)| {
                let most = round.high.get(origin).filter(|most| *most >= head);
                most.map(|most| (*origin, *most))
            })
            .collect();
        let is_old = |since: Option<&Time>| {
            since.is_some_and(|since| now.since(*since) >= whole.retired_for)
        };
        // A floor that came from a peer may be of what others have erased.
        let is_stray = |origin: &&Origin| {
            let is_here = held.contains_key(origin) || self.retired.contains_key(origin);
            !is_here && !round.high.contains_key(origin) && is_superseded(**origin)
        };
        let stray: BTreeSet<Origin> = whole.floor.keys().filter(is_stray).copied().collect();
        self.since.retain(|origin, _| self.retired.contains_key(origin) || stray.contains(origin));
        for origin in self.retired.keys().chain(&stray) {
            self.since.entry(*origin).or_insert(now);
        }
        let may_go = |origin: &&Origin| {
            let is_for_all = round.retired.contains(origin) || stray.contains(origin);
            may_erase && is_for_all && is_old(self.since.get(origin))
        };
        let erase: Vec<Origin> =
            self.retired.keys().chain(&stray).filter(may_go).copied().collect();
        let of_node = |node: NodeId| round.high.keys().any(|origin| origin.node == node);
        let empty: BTreeSet<NodeId> = whole
            .forgotten
            .keys()
            .filter(|node| !(whole.is_up)(**node) && !of_node(**node))
            .copied()
            .collect();
        self.empty.retain(|node, _| empty.contains(node));
        empty.iter().for_each(|node| {
            self.empty.entry(*node).or_insert(now);
        });
        let is_gone = |node: &&NodeId| may_erase && is_old(self.empty.get(node));
        let gone: Vec<NodeId> = empty.iter().filter(is_gone).copied().collect();
        // All who were there say the same of their era, or nobody could ever erase anything.
        let is_leaving = |(node, last): (&NodeId, &Epoch)| {
            let has_returned = round.known.get(node).is_some_and(|known| known > last);
            !has_returned && !of_node(*node)
        };
        let is_at_it = !retire.is_empty()
            || !self.since.is_empty()
            || !empty.is_empty()
            || !round.retired.is_empty()
            || round.forgotten.iter().any(is_leaving);
        let era = if is_at_it { round.number.saturating_add(1) } else { 0 };
        let is_erasing = !erase.is_empty() || !gone.is_empty();
        let erased = if is_erasing { round.number } else { 0 };
        let ask = self.ask(held, *is_superseded);
        let tidy = Tidy { retire, ask, erase, gone, era, erased };
        self.todo = (tidy != Tidy::default()).then_some(tidy);
    }

    /// Chooses superseded origins to ask for, others each time.
    fn ask(&mut self, held: &Heads, is_superseded: &dyn Fn(Origin) -> bool) -> Vec<Origin> {
        let after = self.asked;
        let is_next = |origin: &Origin| after.is_none_or(|after| *origin > after);
        let all: Vec<Origin> =
            held.keys().copied().filter(|origin| is_superseded(*origin)).collect();
        let (next, first): (Vec<Origin>, Vec<Origin>) = all.into_iter().partition(is_next);
        let ask: Vec<Origin> = next.into_iter().chain(first).take(ASKED_MAX).collect();
        // What was said before of those that are not asked now holds still.
        self.spent.retain(|origin, head| held.get(origin) == Some(head));
        ask
    }

    /// Finds forgotten nodes whose rows may be deleted.
    fn see_off(&mut self, whole: &Whole<'_>) {
        let Whole { round, held, .. } = whole;
        self.departed.retain(|node, _| whole.forgotten.contains_key(node));
        for (node, last) in whole.forgotten {
            let of_node = |origin: &&Origin| origin.node == *node;
            let origins: Vec<Origin> = round.high.keys().filter(of_node).copied().collect();
            let is_held_by_all = |origin: &Origin| {
                let head = held.get(origin).or_else(|| self.retired.get(origin));
                head.is_some()
                    && round.low.get(origin) == head
                    && round.high.get(origin) == head
                    && (whole.is_superseded)(*origin)
            };
            let is_left = |origin: &Origin| !round.spent.contains(origin);
            let Some(newest) = origins.iter().max_by_key(|origin| origin.epoch) else { continue };
            if (whole.is_up)(*node)
                || !origins.iter().all(is_held_by_all)
                || !origins.iter().any(is_left)
            {
                continue;
            }
            let held = held.iter().filter(|(origin, _)| origin.node == *node);
            let held: Vec<(Origin, Version)> =
                held.map(|(origin, head)| (*origin, *head)).collect();
            let epoch = newest.epoch.max(*last).later_by(EPOCH_LEAP);
            let epoch = epoch.map(|epoch| Epoch(epoch.0 | EPOCH_END));
            let Some(epoch) = epoch.filter(|_| self.departed.get(node) != Some(&held)) else {
                continue;
            };
            self.departed.insert(*node, held.clone());
            let under = Origin { epoch, ..*newest };
            self.departures.push_back(Departure { under, held });
        }
    }

    /// Returns the next departure, if the last one is through.
    pub(super) fn next_departure(&mut self) -> Option<Departure> {
        if self.departing.is_some() {
            return None;
        }
        self.departing = self.departures.pop_front();
        self.departing.clone()
    }

    /// The rows are deleted (`false`: they are not; the next round sees to it). Returns the origin
    /// that deleted them.
    pub(super) fn on_departed(&mut self, is_done: bool) -> Option<Origin> {
        let Departure { under, .. } = self.departing.take()?;
        if !is_done {
            self.departed.remove(&under.node);
        }
        Some(under)
    }

    pub(super) fn is_tidying(&self) -> bool {
        self.doing.is_some()
    }

    /// Returns what the storage is to tidy up, if it is not at it.
    pub(super) fn next_tidy(&mut self) -> Option<Tidy> {
        if self.doing.is_some() {
            return None;
        }
        self.doing = self.todo.take();
        self.doing.clone()
    }

    /// The storage has tidied up (`None`: it failed, and the next round sees to it). Returns what was
    /// tidied up.
    pub(super) fn on_tidied(
        &mut self,
        now: Time,
        tidied: Option<Tidied>,
        epoch_of: impl Fn(NodeId) -> Epoch,
    ) -> Option<(Tidy, Tidied)> {
        let tidy = self.doing.take()?;
        let tidied = tidied?;
        self.era = self.era.max(tidy.era);
        self.erased = self.erased.max(tidy.erased);
        for origin in &tidied.erased {
            self.retired.remove(origin);
            self.since.remove(origin);
        }
        for node in &tidy.gone {
            self.gone.insert(*node, (epoch_of(*node), now));
            self.empty.remove(node);
            self.departed.remove(node);
        }
        for origin in tidy.ask.iter().take(tidied.looked_at) {
            self.spent.remove(origin);
            self.asked = Some(*origin);
        }
        self.spent.extend(tidied.spent.iter().copied());
        for (origin, head) in &tidied.retired {
            self.retired.insert(*origin, *head);
            self.spent.remove(origin);
        }
        Some((tidy, tidied))
    }
}
