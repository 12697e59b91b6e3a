//! Fresh commits that are offered before they are sent, so that a payload travels to each node once:
//! what can be passed on, whom it has yet to be offered to, and what was asked for and is not here.
//!
//! Nothing in here has to arrive. An offer that is lost is made up for by those of other neighbours,
//! and in the end by a digest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::Config;
use crate::crdt::Piece;
use crate::types::{NodeId, Origin, Time, Version};
use crate::wire::{Offer, piece_bytes};

/// A commit's name.
pub(super) type Name = (Origin, Version);

/// How long a commit can be asked for. Whoever asks later pulls it.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// How many commits may be asked for and not be here. Beyond it they are left to digests.
const OPEN_MAX: usize = 4_096;

/// How many peers are remembered who offer the same.
const HOLDERS_MAX: usize = 6;

/// How often a commit is asked for, of all peers together.
pub(super) const TRIES_MAX: u32 = 8;

/// How long a peer is waited for at most, beside what the way takes.
const PATIENCE_MAX: Duration = Duration::from_secs(1);

/// How many bytes a second a link is taken to carry at least, when the wait for a payload is set.
const LINK_BYTES_PER_SECOND: u64 = 1024 * 1024;

/// See the module.
///
/// Laws: `order` names what is `kept`, the oldest first; `timeouts` holds each entry of `open`.
#[derive(Debug)]
pub(super) struct Offers {
    kept: BTreeMap<Name, Kept>,
    order: VecDeque<(Time, Name)>,
    kept_bytes: usize,
    /// What each neighbour is to be offered, and when.
    due: BTreeMap<NodeId, Due>,
    open: BTreeMap<Name, Open>,
    timeouts: BTreeSet<(Time, Name)>,
    /// How long a peer may take to answer, beside what the way takes.
    patience: Duration,
    config: Config,
}

#[derive(Debug)]
struct Kept {
    piece: Piece,
    hops: u8,
    bytes: usize,
}

#[derive(Debug)]
struct Due {
    at: Time,
    offers: Vec<Offer>,
}

/// Asked for, and not here yet.
#[derive(Debug)]
struct Open {
    until: Time,
    bytes: u64,
    tries: u32,
    /// Who offered it; the one that was asked stands first.
    holders: VecDeque<NodeId>,
    /// Who did not answer in time, of late.
    missed: Option<NodeId>,
}

/// What is to be done now.
#[derive(Debug, Default)]
pub(super) struct Todo {
    pub offers: Vec<(NodeId, Vec<Offer>)>,
    pub takes: Vec<(NodeId, Vec<Name>)>,
    /// Commits that nobody sent, and one who offered it.
    pub given_up: Vec<(NodeId, Name)>,
}

impl Offers {
    pub(super) fn new(config: Config) -> Self {
        Self {
            kept: BTreeMap::new(),
            order: VecDeque::new(),
            kept_bytes: 0,
            due: BTreeMap::new(),
            open: BTreeMap::new(),
            timeouts: BTreeSet::new(),
            patience: config.take_timeout,
            config,
        }
    }

    /// Keeps a fresh commit at hand for a while, for those who ask for it, and returns what to
    /// offer.
    pub(super) fn keep(&mut self, now: Time, hops: u8, piece: &Piece) -> Offer {
        let name = (piece.origin, piece.through);
        let bytes = piece_bytes(piece);
        let kept = Kept { piece: piece.clone(), hops, bytes };
        if self.kept.insert(name, kept).is_none() {
            self.order.push_back((now, name));
            self.kept_bytes += bytes;
        }
        self.drop_old(now);
        Offer { origin: piece.origin, version: piece.through, bytes: bytes as u64 }
    }

    /// Drops what was at hand for long enough, or is too much.
    pub(super) fn drop_old(&mut self, now: Time) {
        while let Some((since, name)) = self.order.front().copied() {
            let is_old = now.since(since) >= KEPT_FOR;
            // The latest stays, however large it is.
            let is_much = self.kept_bytes > self.config.kept_bytes_max && self.order.len() > 1;
            if !is_old && !is_much {
                return;
            }
            self.order.pop_front();
            self.kept_bytes -= self.kept.remove(&name).map_or(0, |kept| kept.bytes);
        }
    }

    /// Has something offered to a neighbour, at `at` at the latest.
    pub(super) fn offer(&mut self, to: NodeId, offer: Offer, at: Time) {
        let due = self.due.entry(to).or_insert(Due { at, offers: Vec::new() });
        due.at = due.at.min(at);
        due.offers.push(offer);
    }

    /// A peer has this, as it says itself or by sending it: it need not be offered.
    pub(super) fn on_held(&mut self, peer: NodeId, (origin, version): Name) {
        let Some(due) = self.due.get_mut(&peer) else { return };
        due.offers.retain(|offer| (offer.origin, offer.version) != (origin, version));
        if due.offers.is_empty() {
            self.due.remove(&peer);
        }
    }

    /// A peer offers something that is missing here. Returns whether it is to be asked for it now:
    /// the first who offers it is, and whoever is so much nearer that it answers sooner; the others
    /// only should it not come.
    pub(super) fn on_offer(
        &mut self,
        now: Time,
        from: NodeId,
        offer: Offer,
        round_trip: Duration,
    ) -> bool {
        let name = (offer.origin, offer.version);
        let until = now + self.wait(round_trip) + transfer(offer.bytes);
        if let Some(open) = self.open.get_mut(&name) {
            let is_known = open.holders.contains(&from);
            if is_known || open.holders.len() >= HOLDERS_MAX || open.tries >= TRIES_MAX {
                return false;
            }
            if until >= open.until {
                open.holders.push_back(from);
                return false;
            }
            self.timeouts.remove(&(open.until, name));
            self.timeouts.insert((until, name));
            open.until = until;
            open.tries += 1;
            open.holders.push_front(from);
            return true;
        }
        if self.open.len() >= OPEN_MAX {
            return false;
        }
        let holders = VecDeque::from([from]);
        self.open.insert(name, Open { until, bytes: offer.bytes, tries: 1, holders, missed: None });
        self.timeouts.insert((until, name));
        true
    }

    /// Something came that may have been asked for. Where it comes from somebody who was given up
    /// already, the patience was too short: peers that have much to do must not be asked for more.
    pub(super) fn on_arrival(&mut self, from: NodeId, name: Name) {
        let Some(open) = self.open.remove(&name) else { return };
        self.timeouts.remove(&(open.until, name));
        let is_late = open.missed == Some(from) && open.holders.front() != Some(&from);
        self.patience = match is_late {
            true => (self.patience * 2).min(PATIENCE_MAX),
            false => (self.patience - self.patience / 64).max(self.config.take_timeout),
        };
    }

    /// Returns how long a peer may take to answer, besides the time that the payload takes.
    fn wait(&self, round_trip: Duration) -> Duration {
        self.patience + round_trip * 3 / 2
    }

    /// Returns what a peer asks for, with its hops; `None`: it is not at hand any more.
    pub(super) fn kept(&self, name: Name) -> Option<(u8, Piece)> {
        self.kept.get(&name).map(|kept| (kept.hops, kept.piece.clone()))
    }

    pub(super) fn on_peer_down(&mut self, node: NodeId) {
        self.due.remove(&node);
        for open in self.open.values_mut() {
            open.holders.retain(|holder| *holder != node);
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        let due = self.due.values().map(|due| due.at).min();
        let timeout = self.timeouts.first().map(|(at, _)| *at);
        [due, timeout].into_iter().flatten().min()
    }

    /// Returns what to do at this time.
    pub(super) fn run(&mut self, now: Time, round_trip: impl Fn(NodeId) -> Duration) -> Todo {
        let mut todo = Todo::default();
        if self.due.values().any(|due| due.at <= now) {
            self.due.retain(|node, due| {
                let is_due = due.at <= now;
                if is_due {
                    todo.offers.push((*node, std::mem::take(&mut due.offers)));
                }
                !is_due
            });
        }
        let mut takes: BTreeMap<NodeId, Vec<Name>> = BTreeMap::new();
        while let Some((at, name)) = self.timeouts.first().copied().filter(|(at, _)| *at <= now) {
            self.timeouts.remove(&(at, name));
            let Some(open) = self.open.get_mut(&name) else { continue };
            // Who did not answer stands behind the others, and may have its turn again.
            open.missed = open.holders.front().copied();
            open.holders.rotate_left(usize::from(!open.holders.is_empty()));
            let Some(next) = open.holders.front().copied() else {
                self.open.remove(&name);
                continue;
            };
            if open.tries >= TRIES_MAX {
                self.open.remove(&name);
                todo.given_up.push((next, name));
                continue;
            }
            open.tries += 1;
            open.until = now + self.patience + round_trip(next) * 3 / 2 + transfer(open.bytes);
            self.timeouts.insert((open.until, name));
            takes.entry(next).or_default().push(name);
        }
        todo.takes = takes.into_iter().collect();
        todo
    }
}

fn transfer(bytes: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / LINK_BYTES_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::crdt::{Changeset, Stamp};
    use crate::ledger::tests::origin;
    use crate::types::Wall;

    const ROUND_TRIP: Duration = Duration::ZERO;

    fn name(version: u64) -> Name {
        (origin(9), Version(version))
    }

    fn node(number: u8) -> NodeId {
        origin(number).node
    }

    fn offer(version: u64) -> Offer {
        Offer { origin: origin(9), version: Version(version), bytes: 0 }
    }

    fn piece(version: u64) -> Piece {
        let stamp = Stamp { origin: origin(9), version: Version(version) };
        Piece::of(Arc::new(Changeset { stamp, at: Wall(0), tables: Vec::new() }))
    }

    fn at(millis: u64) -> Time {
        Time(millis * 1_000)
    }

    #[test]
    fn the_first_who_offers_is_asked_and_the_next_when_nothing_comes() {
        let mut offers = Offers::new(Config::default());
        assert!(offers.on_offer(at(0), node(1), offer(1), ROUND_TRIP));
        assert!(!offers.on_offer(at(1), node(2), offer(1), ROUND_TRIP));
        assert_eq!(offers.deadline(), Some(at(15)));
        assert_eq!(offers.run(at(15), |_| ROUND_TRIP).takes, [(node(2), vec![name(1)])]);
        assert_eq!(offers.run(at(30), |_| ROUND_TRIP).takes, [(node(1), vec![name(1)])]);
        offers.on_arrival(node(1), name(1));
        assert_eq!(offers.deadline(), None);
        assert_eq!(offers.patience, Duration::from_millis(15));
    }

    #[test]
    fn who_answers_late_is_given_more_time_from_then_on() {
        let mut offers = Offers::new(Config::default());
        offers.on_offer(at(0), node(1), offer(1), ROUND_TRIP);
        offers.on_offer(at(0), node(2), offer(1), ROUND_TRIP);
        offers.run(at(15), |_| ROUND_TRIP);
        offers.on_arrival(node(1), name(1));
        assert_eq!(offers.patience, Duration::from_millis(30));
        for version in 2..100 {
            offers.on_offer(at(20), node(1), offer(version), ROUND_TRIP);
            offers.on_arrival(node(1), name(version));
        }
        assert_eq!(offers.patience, Duration::from_millis(15));
    }

    #[test]
    fn who_answers_sooner_than_the_one_who_was_asked_is_asked_too() {
        let mut offers = Offers::new(Config::default());
        assert!(offers.on_offer(at(0), node(1), offer(1), Duration::from_millis(250)));
        assert!(offers.on_offer(at(10), node(2), offer(1), ROUND_TRIP));
        assert!(!offers.on_offer(at(11), node(3), offer(1), ROUND_TRIP));
        assert_eq!(offers.deadline(), Some(at(25)));
    }

    #[test]
    fn what_nobody_sends_is_given_up_after_a_few_tries() {
        let mut offers = Offers::new(Config::default());
        assert!(offers.on_offer(at(0), node(1), offer(1), ROUND_TRIP));
        let mut takes = 0;
        loop {
            let now = offers.deadline().expect("it is waited for");
            let todo = offers.run(now, |_| ROUND_TRIP);
            takes += todo.takes.len();
            if !todo.given_up.is_empty() {
                assert_eq!(todo.given_up, [(node(1), name(1))]);
                break;
            }
        }
        assert_eq!(takes, TRIES_MAX as usize - 1);
        assert_eq!(offers.deadline(), None);
    }

    #[test]
    fn who_has_it_is_offered_nothing_and_others_get_their_offers_together() {
        let mut offers = Offers::new(Config::default());
        for version in [1, 2] {
            let offer = offers.keep(at(0), 1, &piece(version));
            offers.offer(node(1), offer, at(25));
            offers.offer(node(2), offer, at(25));
        }
        offers.on_held(node(1), name(1));
        offers.on_held(node(2), name(1));
        offers.on_held(node(2), name(2));
        let sent = offers.run(at(25), |_| ROUND_TRIP).offers;
        assert_eq!(sent.len(), 1);
        assert_eq!((sent[0].0, sent[0].1[0].version), (node(1), Version(2)));
        assert_eq!(offers.kept(name(2)), Some((1, piece(2))));
        offers.drop_old(at(10_000));
        assert_eq!(offers.kept(name(2)), None);
    }

    #[test]
    fn what_is_at_hand_has_a_limit_in_bytes() {
        let config = Config { kept_bytes_max: 300, ..Config::default() };
        let mut offers = Offers::new(config);
        for version in 1..=10 {
            offers.keep(at(0), 1, &piece(version));
        }
        assert!(offers.kept_bytes <= 300 && offers.kept(name(10)).is_some());
        assert_eq!(offers.kept(name(1)), None);
        assert_eq!(offers.kept.len(), offers.order.len());
    }
}
