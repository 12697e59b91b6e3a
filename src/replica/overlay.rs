//! Who pushes to whom, and who gets digests: a random graph of fixed degree over the members, most of
//! whose links are short ones.
//!
//! A neighbour link is held by both sides or by none; the handshake makes it, and any push over a
//! link that only one side believes in is answered with "ended". Few links suffice: five random
//! ones a node hold a graph of any size together.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;

use super::Config;
use crate::ledger::Cursor;
use crate::types::{NodeId, Time};
use crate::wire::Neighbour;

/// How long an ask waits for its answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a node in a large cluster waits at least between two looks for neighbours.
const REFILL_PAUSE: Duration = Duration::from_millis(50);

/// How long a peer that refused, or ended a link, is left alone.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// A member is distant again beyond so many times the round trip of a close one.
const DISTANT_FACTOR: u32 = 2;

/// How many close neighbours, and how many distant ones, a node wants at least, where there are such
/// members: a region must hold together, and must not be cut off. With four close ones it takes four
/// lost messages until a node in a region hears of a commit late.
const CLOSE_MIN: usize = 4;
const DISTANT_MIN: usize = 1;

/// Where nobody is close, how many of the nearest are neighbours, and stay so.
const NEAREST: usize = 2;

/// After so many offers on a link it is looked how many were taken. Where it was half of them or
/// more, the next so many commits are pushed.
const OFFERS_JUDGED: u32 = 16;
const PUSHES_GRANTED: u32 = 240;

/// How long a node waits between two partings, so that it sees what the last one changed.
const PART_EVERY: Duration = Duration::from_secs(1);

/// The members that are up, and this node's links to them.
///
/// Law: `eager`, `asked` and `lazy` name only members that are up.
#[derive(Debug)]
pub(super) struct Overlay {
    me: NodeId,
    peers: BTreeMap<NodeId, Peer>,
    /// How many of them are close.
    close: usize,
    /// Neighbours: fresh commits go to all of them.
    eager: BTreeMap<NodeId, Eager>,
    /// Asked to be neighbours; when the answer is no longer waited for.
    asked: BTreeMap<NodeId, Time>,
    /// Get digests; what they were told already.
    lazy: BTreeMap<NodeId, Cursor>,
    /// Whether the members have changed since the last look at who gets digests in a small cluster.
    is_ring_stale: bool,
    events: Vec<Event>,
    /// When to look for neighbours again, while there are too few.
    refill_at: Time,
    refilled_at: Time,
    shuffle_at: Option<Time>,
    part_at: Time,
    config: Config,
}

/// What the overlay wants to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    Say(NodeId, Neighbour),
    /// A link began: compare ledgers with the peer. Only the side that chose the link does it.
    LinkUp(NodeId),
    LinkMade,
    LinkEnded,
}

#[derive(Debug, Default)]
struct Peer {
    round_trip: Option<Duration>,
    is_close: bool,
    ask_after: Time,
}

#[derive(Debug, Default)]
struct Eager {
    /// Pushes in a row that brought nothing new.
    duplicates: u32,
    /// Of the latest offers how many were made, and taken.
    offered: u32,
    taken: u32,
    /// How many more commits are pushed that would be offered otherwise.
    pushes: u32,
}

impl Overlay {
    pub(super) fn new(me: NodeId, config: Config) -> Self {
        Self {
            me,
            peers: BTreeMap::new(),
            close: 0,
            eager: BTreeMap::new(),
            asked: BTreeMap::new(),
            lazy: BTreeMap::new(),
            is_ring_stale: true,
            events: Vec::new(),
            refill_at: Time(0),
            refilled_at: Time(0),
            shuffle_at: None,
            part_at: Time(0),
            config,
        }
    }

    /// Returns the neighbours.
    pub(super) fn eager(&self) -> impl Iterator<Item = NodeId> {
        self.eager.keys().copied()
    }

    /// Returns the neighbours, the nearest first.
    pub(super) fn nearest_first(&self) -> Vec<NodeId> {
        let mut neighbours: Vec<_> =
            self.eager().map(|node| (self.round_trip(node), node)).collect();
        neighbours.sort_unstable();
        neighbours.into_iter().map(|(_, node)| node).collect()
    }

    /// Tells whether a member is so near that to ask it costs no time.
    pub(super) fn is_close(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.is_close)
    }

    /// Returns a close neighbour by lot.
    pub(super) fn close_neighbour(&self, rng: &mut SmallRng) -> Option<NodeId> {
        self.eager().filter(|node| self.is_close(*node)).choose(rng)
    }

    /// Tells whether a neighbour takes most of what it is offered, so that it is rather sent at once.
    /// An offer is counted where it is not.
    pub(super) fn takes_most(&mut self, node: NodeId) -> bool {
        let Some(link) = self.eager.get_mut(&node) else { return false };
        if link.offered >= OFFERS_JUDGED {
            link.pushes = if link.taken * 2 >= link.offered { PUSHES_GRANTED } else { 0 };
            (link.offered, link.taken) = (0, 0);
        }
        let is_granted = link.pushes > 0;
        link.pushes = link.pushes.saturating_sub(1);
        link.offered += u32::from(!is_granted);
        is_granted
    }

    /// A neighbour took what it was offered.
    pub(super) fn on_taken(&mut self, node: NodeId) {
        if let Some(link) = self.eager.get_mut(&node) {
            link.taken += 1;
        }
    }

    /// Tells whether there are so few members that everybody is everybody's neighbour.
    pub(super) fn is_small(&self) -> bool {
        self.peers.len() <= self.config.direct_max
    }

    /// Returns the neighbours that get no digests.
    pub(super) fn eager_only(&self) -> impl Iterator<Item = NodeId> {
        self.eager().filter(|node| !self.lazy.contains_key(node))
    }

    /// Returns the peers that get digests, with what they were told.
    pub(super) fn lazy(&mut self) -> impl Iterator<Item = (NodeId, &mut Cursor)> {
        self.lazy.iter_mut().map(|(node, told)| (*node, told))
    }

    /// Returns the peer's round trip; an hour where it is not known, which sorts last.
    pub(super) fn round_trip(&self, node: NodeId) -> Duration {
        const UNKNOWN: Duration = Duration::from_secs(3_600);
        self.peers.get(&node).and_then(|peer| peer.round_trip).unwrap_or(UNKNOWN)
    }

    /// Takes what is to be done, in order.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        let refill = self.lacks_neighbours().then_some(self.refill_at);
        let asked = self.asked.values().min().copied();
        let shed = (self.eager.len() > self.eager_max()).then_some(self.part_at);
        [refill, asked, shed, self.shuffle_at].into_iter().flatten().min()
    }

    pub(super) fn on_peer_up(
        &mut self,
        now: Time,
        rng: &mut SmallRng,
        node: NodeId,
        round_trip: Option<Duration>,
    ) {
        if self.peers.contains_key(&node) {
            round_trip.into_iter().for_each(|round_trip| self.measured(node, round_trip));
            return;
        }
        self.peers.insert(node, Peer { round_trip: None, is_close: false, ask_after: now });
        round_trip.into_iter().for_each(|round_trip| self.measured(node, round_trip));
        self.refill_soon(now);
        // The digests go to a fair sample of the members, also after a partition healed and half
        // of them came back: each newcomer takes a place with its share of probability.
        let share = self.config.lazy_target as f64 / self.peers.len() as f64;
        self.is_ring_stale = true;
        let has_place = self.lazy.len() < self.config.lazy_target;
        if !self.is_small() && (has_place || rng.random_bool(share.min(1.0))) {
            self.make_lazy(rng, node);
        }
        let share = 2.0 / self.peers.len() as f64;
        let has_room = !self.is_small() && self.eager.len() < self.config.eager_target;
        if has_room && !self.lacks_neighbours() && rng.random_bool(share.min(1.0)) {
            self.ask(now, node);
        }
    }

    pub(super) fn on_peer_down(&mut self, now: Time, node: NodeId) {
        if self.peers.remove(&node).is_some_and(|peer| peer.is_close) {
            self.close -= 1;
        }
        self.is_ring_stale = true;
        self.asked.remove(&node);
        self.lazy.remove(&node);
        self.end(now, node);
        self.refill_soon(now);
    }

    pub(super) fn on_word(&mut self, now: Time, rng: &mut SmallRng, from: NodeId, word: Neighbour) {
        match word {
            Neighbour::Ask { urgent } => self.on_ask(now, rng, from, urgent),
            Neighbour::Accepted => self.on_accepted(rng, from),
            Neighbour::Refused => {
                self.asked.remove(&from);
                self.leave_alone(now, from);
            }
            Neighbour::Part => {
                if self.eager.contains_key(&from) && self.eager.len() <= self.config.eager_floor {
                    return;
                }
                self.end(now, from);
                self.say(from, Neighbour::Ended);
            }
            Neighbour::Ended => {
                self.asked.remove(&from);
                self.end(now, from);
            }
        }
    }

    /// A peer pushed something, which was new here or was not.
    pub(super) fn on_push(&mut self, now: Time, from: NodeId, is_new: bool) {
        let may_part = !self.is_small()
            && self.eager.len() > self.config.eager_floor
            && now >= self.part_at
            && !self.is_kept(from);
        let Some(link) = self.eager.get_mut(&from) else {
            // An answer to our ask may have been overtaken by the first push.
            if !self.asked.contains_key(&from) {
                self.say(from, Neighbour::Ended);
            }
            return;
        };
        link.duplicates = if is_new { 0 } else { link.duplicates + 1 };
        if link.duplicates >= self.config.duplicates_max && may_part {
            link.duplicates = 0;
            self.part_at = now + PART_EVERY;
            self.say(from, Neighbour::Part);
        }
    }

    /// A peer made offers, as only neighbours do.
    pub(super) fn on_offers(&mut self, from: NodeId) {
        if !self.eager.contains_key(&from) && !self.asked.contains_key(&from) {
            self.say(from, Neighbour::Ended);
        }
    }

    /// Does what time has brought about.
    pub(super) fn run(&mut self, now: Time, rng: &mut SmallRng) {
        if self.asked.values().any(|until| *until <= now) {
            self.asked.retain(|_, until| *until > now);
            self.refill_soon(now);
        }
        if self.lacks_neighbours() && self.refill_at <= now {
            self.refill(now, rng);
        }
        self.refill_lazy(rng);
        self.shed(now, rng);
        let shuffle_at = *self.shuffle_at.get_or_insert_with(|| {
            now + self.config.shuffle_every.mul_f64(rng.random_range(0.0..1.0))
        });
        if shuffle_at <= now {
            self.shuffle_at =
                Some(now + self.config.shuffle_every.mul_f64(rng.random_range(0.8..1.2)));
            self.shuffle(now, rng);
        }
    }

    /// Tells whether a member is up.
    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.peers.contains_key(&node)
    }

    /// Returns members that are up, by lot.
    pub(super) fn some_peers(&self, rng: &mut SmallRng, count: usize) -> Vec<NodeId> {
        self.peers.keys().copied().sample(rng, count)
    }

    /// Returns a member by lot, which from now on gets digests.
    pub(super) fn exchange_lazy(&mut self, rng: &mut SmallRng) -> Option<NodeId> {
        let node = self.peers.keys().copied().choose(rng)?;
        let is_new = !self.lazy.contains_key(&node) && !self.eager.contains_key(&node);
        if is_new && !self.is_small() {
            self.drop_lazy(rng);
            self.lazy.insert(node, Cursor::default());
        }
        Some(node)
    }

    /// Notes that a peer has been, or is just being, told everything.
    pub(super) fn told(&mut self, node: NodeId, cursor: Cursor) {
        if let Some(told) = self.lazy.get_mut(&node) {
            *told = cursor;
        }
    }

    /// Takes a measurement of a round trip: a shorter one at once, longer ones little by little, since
    /// they are often a queue's.
    fn measured(&mut self, node: NodeId, round_trip: Duration) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let known = peer.round_trip.unwrap_or(round_trip);
        let smooth = known + round_trip.saturating_sub(known) / 8;
        peer.round_trip = Some(smooth.min(round_trip));
        let factor = if peer.is_close { DISTANT_FACTOR } else { 1 };
        let is_close = smooth.min(round_trip) <= self.config.close_max * factor;
        if std::mem::replace(&mut peer.is_close, is_close) != is_close {
            self.close = if is_close { self.close + 1 } else { self.close - 1 };
        }
    }

    fn on_ask(&mut self, now: Time, rng: &mut SmallRng, from: NodeId, urgent: bool) {
        let is_known = self.peers.contains_key(&from);
        let is_full = self.eager.len() >= self.eager_max() && !self.eager.contains_key(&from);
        if !is_known || (is_full && !urgent) {
            return self.say(from, Neighbour::Refused);
        }
        if is_full {
            self.end_one(now, rng);
        }
        self.asked.remove(&from);
        self.make_eager(rng, from);
        self.say(from, Neighbour::Accepted);
    }

    fn on_accepted(&mut self, rng: &mut SmallRng, from: NodeId) {
        if self.eager.contains_key(&from) {
            return;
        }
        // The answer came too late, or there is no room any more.
        if self.asked.remove(&from).is_none() || self.eager.len() >= self.eager_max() {
            return self.say(from, Neighbour::Ended);
        }
        self.make_eager(rng, from);
        self.events.push(Event::LinkUp(from));
    }

    /// Returns how many neighbours a node has at most, but for an urgent one.
    fn eager_max(&self) -> usize {
        if self.is_small() { self.config.direct_max } else { self.config.eager_max }
    }

    fn lacks_neighbours(&self) -> bool {
        let enough = if self.is_small() { self.peers.len() } else { self.config.eager_floor };
        self.eager.len() < enough || self.lacks_kind().is_some()
    }

    /// Returns how many close and how many distant neighbours a node looks for.
    fn goals(&self) -> [usize; 2] {
        let target = self.config.eager_target;
        let distant = self.peers.len() - self.close;
        let near = self.config.eager_near.min(target.saturating_sub(DISTANT_MIN));
        let close = if distant > 0 { near } else { target }.min(self.close);
        [close, (target - close).min(distant)]
    }

    /// Counts the close and the distant ones among some members.
    fn kinds(&self, nodes: impl Iterator<Item = NodeId>) -> [usize; 2] {
        let mut kinds = [0; 2];
        nodes.for_each(|node| kinds[usize::from(!self.is_close(node))] += 1);
        kinds
    }

    /// Returns which kind of neighbours is missing: close ones (`true`) or distant ones.
    fn lacks_kind(&self) -> Option<bool> {
        if self.is_small() {
            return None;
        }
        let [close, distant] = self.kinds(self.eager());
        let goals = self.goals();
        match () {
            () if close < goals[0].min(CLOSE_MIN) => Some(true),
            () if distant < goals[1].min(DISTANT_MIN) => Some(false),
            () => None,
        }
    }

    /// Looks for neighbours before long. With many members that come or go at once, not for each.
    fn refill_soon(&mut self, now: Time) {
        let at = if self.is_small() { now } else { now.max(self.refilled_at + REFILL_PAUSE) };
        self.refill_at = self.refill_at.min(at);
    }

    fn refill(&mut self, now: Time, rng: &mut SmallRng) {
        self.refilled_at = now;
        while self.eager.len() + self.asked.len() < self.eager_max() {
            let Some(node) = self.candidate(now, rng) else { break };
            self.ask(now, node);
        }
        if let Some(is_close) = self.lacks_kind()
            && !self.asked.keys().any(|node| self.is_close(*node) == is_close)
            && let Some(node) = self.stranger(now, rng, is_close)
        {
            // There is no room for it.
            self.end_one(now, rng);
            self.ask(now, node);
        }
        let next = self.strangers().map(|(_, peer)| peer.ask_after).min();
        self.refill_at = next.map_or(now + ASK_TIMEOUT, |next| next.max(now + ASK_TIMEOUT));
    }

    /// Returns whom to ask next: in a small cluster anybody, else a stranger of a kind that is missing,
    /// by lot. Where nobody is close the first few are the nearest.
    fn candidate(&self, now: Time, rng: &mut SmallRng) -> Option<NodeId> {
        if self.is_small() {
            let may_ask = self.strangers().filter(|(_, peer)| peer.ask_after <= now);
            return may_ask.map(|(node, _)| node).choose(rng);
        }
        let [close, distant] = self.kinds(self.eager().chain(self.asked.keys().copied()));
        let goals = self.goals();
        if goals[0] == 0 && distant < NEAREST.min(goals[1]) {
            let round_trip = |(node, peer): (NodeId, &Peer)| Some((peer.round_trip?, node));
            let may_ask = self.strangers().filter(|(_, peer)| peer.ask_after <= now);
            if let Some((_, nearest)) = may_ask.filter_map(round_trip).min() {
                return Some(nearest);
            }
        }
        let close = (close < goals[0]).then(|| self.stranger(now, rng, true)).flatten();
        close.or_else(|| (distant < goals[1]).then(|| self.stranger(now, rng, false)).flatten())
    }

    /// Returns a stranger who may be asked, by lot, close or distant.
    fn stranger(&self, now: Time, rng: &mut SmallRng, is_close: bool) -> Option<NodeId> {
        self.strangers()
            .filter(|(_, peer)| peer.ask_after <= now && peer.is_close == is_close)
            .map(|(node, _)| node)
            .choose(rng)
    }

    fn strangers(&self) -> impl Iterator<Item = (NodeId, &Peer)> {
        self.peers
            .iter()
            .map(|(node, peer)| (*node, peer))
            .filter(|(node, _)| !self.eager.contains_key(node) && !self.asked.contains_key(node))
    }

    fn ask(&mut self, now: Time, node: NodeId) {
        self.asked.insert(node, now + ASK_TIMEOUT);
        self.say(node, Neighbour::Ask { urgent: self.eager.is_empty() });
    }

    fn make_eager(&mut self, rng: &mut SmallRng, node: NodeId) {
        if self.eager.insert(node, Eager::default()).is_some() {
            return;
        }
        self.events.push(Event::LinkMade);
        let has_others = !self.is_small() && self.has_others_for_digests();
        if self.lazy.contains_key(&node) && has_others {
            self.lazy.remove(&node);
            self.refill_lazy(rng);
        }
    }

    /// Ends a link, if there is one, without a word.
    fn end(&mut self, now: Time, node: NodeId) {
        if self.eager.remove(&node).is_none() {
            return;
        }
        self.events.push(Event::LinkEnded);
        self.leave_alone(now, node);
        self.refill_soon(now);
    }

    /// Ends a link by lot, but none of the nearest.
    fn end_one(&mut self, now: Time, rng: &mut SmallRng) {
        let Some(node) = self.eager().filter(|node| !self.is_kept(*node)).choose(rng) else {
            return;
        };
        self.end(now, node);
        self.say(node, Neighbour::Ended);
    }

    fn leave_alone(&mut self, now: Time, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.ask_after = now + ASK_AGAIN_AFTER;
        }
    }

    /// Tells whether a neighbour is kept, since it is one of few of its kind, or where nobody is close
    /// one of the nearest.
    fn is_kept(&self, node: NodeId) -> bool {
        let is_close = self.is_close(node);
        if self.close > 0 {
            let alike = self.kinds(self.eager())[usize::from(!is_close)];
            return alike <= if is_close { CLOSE_MIN } else { DISTANT_MIN };
        }
        let nearest = self.nearest_first().into_iter().take(NEAREST);
        self.peers.get(&node).is_some_and(|peer| peer.round_trip.is_some())
            && nearest.into_iter().any(|other| other == node)
    }

    /// Exchanges a neighbour by lot for another member of its kind, so that the graph stays random
    /// however it came about: asks the other, and offers this one to part while there are enough.
    fn shuffle(&mut self, now: Time, rng: &mut SmallRng) {
        if self.is_small() {
            return;
        }
        let Some(old) = self.eager().filter(|node| !self.is_kept(*node)).choose(rng) else {
            return;
        };
        if self.eager.len() < self.eager_max()
            && let Some(node) = self.stranger(now, rng, self.is_close(old))
        {
            self.ask(now, node);
        }
        if self.eager.len() > self.config.eager_target {
            self.say(old, Neighbour::Part);
        }
    }

    /// Offers a neighbour to part while there are too many: the cluster was small a while ago.
    fn shed(&mut self, now: Time, rng: &mut SmallRng) {
        if self.eager.len() <= self.eager_max() || now < self.part_at {
            return;
        }
        self.part_at = now + PART_EVERY;
        let [counts, goals] = [self.kinds(self.eager()), self.goals()];
        let is_surplus = |node: &NodeId| {
            let kind = usize::from(!self.is_close(*node));
            counts[kind] > goals[kind] && !self.is_kept(*node)
        };
        if let Some(node) = self.eager().filter(is_surplus).choose(rng) {
            self.say(node, Neighbour::Part);
        }
    }

    fn has_others_for_digests(&self) -> bool {
        self.peers.len() >= self.eager.len() + self.config.lazy_target
    }

    fn refill_lazy(&mut self, rng: &mut SmallRng) {
        if self.is_small() {
            return self.refill_ring();
        }
        while self.lazy.len() < self.config.lazy_target.min(self.peers.len()) {
            let free: BTreeSet<_> =
                self.peers.keys().filter(|node| !self.lazy.contains_key(node)).copied().collect();
            let other = free.iter().filter(|node| !self.eager.contains_key(node)).choose(rng);
            let Some(node) = other.or_else(|| free.iter().choose(rng)) else { return };
            self.make_lazy(rng, *node);
        }
    }

    /// In a small cluster digests go to those who come next in the order of ids: so each gets as many,
    /// and none is passed over.
    fn refill_ring(&mut self) {
        if !std::mem::take(&mut self.is_ring_stale) {
            return;
        }
        let behind = self.peers.range((Bound::Excluded(self.me), Bound::Unbounded));
        let ring = behind.chain(self.peers.range(..self.me)).map(|(node, _)| *node);
        let next: Vec<NodeId> = ring.take(self.config.lazy_target.div_ceil(3)).collect();
        self.lazy.retain(|node, _| next.contains(node));
        for node in next {
            if let Entry::Vacant(place) = self.lazy.entry(node) {
                place.insert(Cursor::default());
                self.events.push(Event::LinkUp(node));
            }
        }
    }

    fn make_lazy(&mut self, rng: &mut SmallRng, node: NodeId) {
        if self.lazy.len() >= self.config.lazy_target {
            self.drop_lazy(rng);
        }
        self.lazy.insert(node, Cursor::default());
        self.events.push(Event::LinkUp(node));
    }

    fn drop_lazy(&mut self, rng: &mut SmallRng) {
        if let Some(node) = self.lazy.keys().copied().choose(rng) {
            self.lazy.remove(&node);
        }
    }

    fn say(&mut self, node: NodeId, word: Neighbour) {
        self.events.push(Event::Say(node, word));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use rand::SeedableRng;

    use super::*;

    /// Overlays of `count` nodes that all know each other, talking without delay until they are
    /// silent.
    struct Party {
        overlays: BTreeMap<NodeId, Overlay>,
        rng: SmallRng,
        now: Time,
    }

    fn node(number: u16) -> NodeId {
        let mut id = NodeId::default();
        id.0[..2].copy_from_slice(&number.to_be_bytes());
        id
    }

    impl Party {
        fn new(count: u16) -> Self {
            let mut rng = SmallRng::seed_from_u64(7);
            let now = Time(1);
            let mut overlays = BTreeMap::new();
            for own in 0..count {
                let mut overlay = Overlay::new(node(own), Config::default());
                for other in (0..count).filter(|other| *other != own) {
                    overlay.on_peer_up(now, &mut rng, node(other), None);
                }
                overlays.insert(node(own), overlay);
            }
            let mut party = Self { overlays, rng, now };
            party.settle();
            party
        }

        fn settle(&mut self) {
            for _ in 0..40 {
                self.now = self.now + Duration::from_secs(1);
                let mut words = VecDeque::new();
                for (own, overlay) in &mut self.overlays {
                    overlay.run(self.now, &mut self.rng);
                    words.extend(said(*own, overlay));
                }
                while let Some((from, to, word)) = words.pop_front() {
                    let Some(overlay) = self.overlays.get_mut(&to) else { continue };
                    overlay.on_word(self.now, &mut self.rng, from, word);
                    words.extend(said(to, overlay));
                }
            }
        }

        fn check_symmetry(&self) {
            for (own, overlay) in &self.overlays {
                for other in overlay.eager() {
                    assert!(self.overlays[&other].eager.contains_key(own), "{own} and {other}");
                }
            }
        }
    }

    fn said(own: NodeId, overlay: &mut Overlay) -> Vec<(NodeId, NodeId, Neighbour)> {
        let said = overlay.take_events().into_iter().filter_map(|event| match event {
            Event::Say(to, word) => Some((own, to, word)),
            Event::LinkUp(_) | Event::LinkMade | Event::LinkEnded => None,
        });
        said.collect()
    }

    #[test]
    fn few_nodes_are_all_neighbours() {
        let party = Party::new(6);
        party.check_symmetry();
        assert!(party.overlays.values().all(|overlay| overlay.eager.len() == 5));
        for overlay in party.overlays.values() {
            assert_eq!(overlay.lazy.len(), 2);
            let told = |other: &&Overlay| other.lazy.contains_key(&overlay.me);
            assert_eq!(party.overlays.values().filter(told).count(), 2);
        }
    }

    #[test]
    fn many_nodes_have_between_floor_and_cap_and_hold_together() {
        let party = Party::new(60);
        party.check_symmetry();
        for overlay in party.overlays.values() {
            assert!((5..=9).contains(&overlay.eager.len()), "{:?}", overlay.eager);
            assert_eq!(overlay.lazy.len(), 6);
        }
        let mut reached = BTreeSet::from([node(0)]);
        let mut next = vec![node(0)];
        while let Some(own) = next.pop() {
            next.extend(party.overlays[&own].eager().filter(|other| reached.insert(*other)));
        }
        assert_eq!(reached.len(), 60);
    }

    #[test]
    fn a_neighbour_that_goes_down_is_replaced() {
        let mut party = Party::new(20);
        let gone = node(3);
        party.overlays.remove(&gone);
        for overlay in party.overlays.values_mut() {
            overlay.on_peer_down(party.now, gone);
        }
        party.settle();
        party.check_symmetry();
        assert!(party.overlays.values().all(|overlay| overlay.eager.len() >= 4));
    }

    #[test]
    fn a_push_over_a_link_that_only_one_side_holds_ends_it() {
        let mut party = Party::new(6);
        party.overlays.get_mut(&node(1)).unwrap().eager.remove(&node(2));
        let overlay = party.overlays.get_mut(&node(1)).unwrap();
        overlay.on_push(party.now, node(2), true);
        assert_eq!(overlay.take_events(), [Event::Say(node(2), Neighbour::Ended)]);
    }

    #[test]
    fn a_link_that_brings_only_duplicates_is_given_up_but_never_below_the_floor() {
        let mut party = Party::new(30);
        let ends = |party: &Party| {
            party.overlays.values().map(|overlay| overlay.eager.len()).sum::<usize>()
        };
        let before = ends(&party);
        for _ in 0..20 {
            party.now = party.now + PART_EVERY;
            let links: Vec<_> = party
                .overlays
                .iter()
                .flat_map(|(own, overlay)| overlay.eager().map(|other| (*own, other)))
                .collect();
            let mut words = VecDeque::new();
            for (own, other) in links {
                let overlay = party.overlays.get_mut(&own).unwrap();
                for _ in 0..16 {
                    overlay.on_push(party.now, other, false);
                }
                words.extend(said(own, overlay));
            }
            while let Some((from, to, word)) = words.pop_front() {
                let overlay = party.overlays.get_mut(&to).unwrap();
                overlay.on_word(party.now, &mut party.rng, from, word);
                words.extend(said(to, overlay));
            }
        }
        party.check_symmetry();
        let after = ends(&party);
        assert!(after + 20 < before, "{before} ends of links, then {after}");
        // Two partings may cross and bring a node below the floor, until it looks around again.
        party.settle();
        assert!(party.overlays.values().all(|overlay| overlay.eager.len() >= 4));
    }
}
