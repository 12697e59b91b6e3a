//! The members this node knows of: their state, and how near they are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::identity::Identity;
use crate::types::{NodeId, Time};

/// What is held of a member.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    Alive,
    /// A probe got no answer, neither directly nor through others. It may still defend itself.
    Suspect,
    Down,
    /// It said goodbye.
    Left,
}

impl State {
    /// Returns whether the member counts as one that can be spoken to.
    pub fn is_active(self) -> bool {
        match self {
            Self::Alive | Self::Suspect => true,
            Self::Down | Self::Left => false,
        }
    }
}

/// A member as the roster shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    pub identity: Identity,
    pub state: State,
    /// When `state` became what it is.
    pub since: Time,
    /// The smallest of the last twenty round trips; `None` before the first.
    pub round_trip: Option<Duration>,
    /// How near: 0 for a round trip up to 6 ms, then up to 15, 50, 100, 200 ms, and 5 beyond.
    pub ring: Option<u8>,
}

/// All members but this node, in the order of their ids.
#[derive(Debug, Default)]
pub(super) struct Roster {
    entries: BTreeMap<NodeId, Entry>,
    /// Who was under suspicion when that was looked at last.
    suspects: BTreeSet<NodeId>,
}

#[derive(Debug)]
struct Entry {
    member: Member,
    samples: VecDeque<Duration>,
}

impl Roster {
    pub fn get(&self, node: NodeId) -> Option<Member> {
        self.entries.get(&node).map(|entry| entry.member)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.entries.values().map(|entry| &entry.member)
    }

    pub fn active(&self) -> impl Iterator<Item = &Member> {
        self.iter().filter(|member| member.state.is_active())
    }

    /// Records who a member is and in which state. Round trips outlive a new life, but not a new
    /// address.
    pub fn set(&mut self, now: Time, identity: Identity, state: State) -> Member {
        let fresh = Member { identity, state, since: now, round_trip: None, ring: None };
        let entry = self
            .entries
            .entry(identity.node)
            .or_insert_with(|| Entry { member: fresh, samples: VecDeque::new() });
        if entry.member.identity.address != identity.address {
            *entry = Entry { member: fresh, samples: VecDeque::new() };
        }
        if entry.member.state != state {
            entry.member.state = state;
            entry.member.since = now;
        }
        entry.member.identity = identity;
        entry.member
    }

    /// Records which active members are under suspicion, and that all others are not.
    pub fn suspect(&mut self, now: Time, suspects: Vec<Identity>) {
        let before = std::mem::take(&mut self.suspects);
        for identity in &suspects {
            self.set_suspect(now, identity.node, Some(identity));
        }
        self.suspects = suspects.into_iter().map(|identity| identity.node).collect();
        for node in
            before.into_iter().filter(|node| !self.suspects.contains(node)).collect::<Vec<_>>()
        {
            self.set_suspect(now, node, None);
        }
    }

    fn set_suspect(&mut self, now: Time, node: NodeId, as_whom: Option<&Identity>) {
        let Some(entry) = self.entries.get_mut(&node) else { return };
        let member = &mut entry.member;
        let state = if as_whom.is_some() { State::Suspect } else { State::Alive };
        let is_meant = as_whom.is_none_or(|identity| member.identity == *identity);
        if is_meant && member.state.is_active() && member.state != state {
            member.state = state;
            member.since = now;
        }
    }

    /// Takes a measurement in, limited to what a network can mean: 0.1 ms to 10 s.
    pub fn measured(&mut self, node: NodeId, round_trip: Duration) {
        let Some(entry) = self.entries.get_mut(&node) else { return };
        if entry.samples.len() == SAMPLES {
            entry.samples.pop_front();
        }
        entry.samples.push_back(round_trip.clamp(ROUND_TRIP_MIN, ROUND_TRIP_MAX));
        let smallest = entry.samples.iter().min().copied();
        entry.member.round_trip = smallest;
        entry.member.ring = smallest.map(|smallest| ring(smallest, entry.member.ring));
    }

    /// Forgets who has been gone for longer than `age`.
    pub fn forget_older_than(&mut self, now: Time, age: Duration) {
        self.entries.retain(|_, entry| {
            entry.member.state.is_active() || now.since(entry.member.since) < age
        });
    }
}

/// How many round trips are kept: the smallest of twenty hardly moves with load, while the last
/// one or a smoothed one makes members flap between rings.
const SAMPLES: usize = 20;
const ROUND_TRIP_MIN: Duration = Duration::from_micros(100);
const ROUND_TRIP_MAX: Duration = Duration::from_secs(10);

/// The upper bounds of rings 0 to 4.
const RING_BOUNDS: [Duration; 5] = [
    Duration::from_millis(6),
    Duration::from_millis(15),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
];

/// How far beyond a bound a round trip must lie before the member changes its ring.
const HYSTERESIS: Duration = Duration::from_millis(2);

/// Returns the ring for a round trip: from none straight to its place, later one step at a time.
fn ring(round_trip: Duration, before: Option<u8>) -> u8 {
    let place = |round_trip: Duration| {
        let inner = RING_BOUNDS.iter().filter(|bound| **bound < round_trip).count();
        u8::try_from(inner).expect("there are five bounds")
    };
    match before {
        None => place(round_trip),
        Some(ring) if place(round_trip.saturating_sub(HYSTERESIS)) > ring => ring + 1,
        Some(ring) if place(round_trip + HYSTERESIS) < ring => ring - 1,
        Some(ring) => ring,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn identity(byte: u8, port: u16) -> Identity {
        Identity::new(NodeId([byte; 16]), ([10, 0, 0, byte], port).into(), 1)
    }

    #[test]
    fn a_member_changes_its_ring_one_step_at_a_time_and_not_for_a_trifle() {
        assert_eq!(ring(ms(7), None), 1);
        assert_eq!(ring(ms(7), Some(0)), 0);
        assert_eq!(ring(ms(9), Some(0)), 1);
        assert_eq!(ring(ms(5), Some(1)), 1);
        assert_eq!(ring(ms(3), Some(1)), 0);
        assert_eq!(ring(ms(500), Some(1)), 2);
        assert_eq!(ring(ms(500), None), 5);
    }

    #[test]
    fn the_smallest_of_the_last_twenty_round_trips_counts() {
        let mut roster = Roster::default();
        let node = roster.set(Time(0), identity(1, 1), State::Alive).identity.node;
        roster.measured(node, ms(5));
        (0..19).for_each(|_| roster.measured(node, ms(80)));
        assert_eq!(roster.get(node).unwrap().round_trip, Some(ms(5)));
        roster.measured(node, ms(70));
        assert_eq!(roster.get(node).unwrap().round_trip, Some(ms(70)));
        roster.measured(node, Duration::ZERO);
        assert_eq!(roster.get(node).unwrap().round_trip, Some(ROUND_TRIP_MIN));
    }

    #[test]
    fn round_trips_do_not_outlive_a_move() {
        let mut roster = Roster::default();
        let node = roster.set(Time(0), identity(1, 1), State::Alive).identity.node;
        roster.measured(node, ms(5));
        assert!(roster.set(Time(1), identity(1, 1), State::Down).round_trip.is_some());
        assert!(roster.set(Time(2), identity(1, 2), State::Alive).round_trip.is_none());
    }

    #[test]
    fn only_the_dead_are_forgotten() {
        let mut roster = Roster::default();
        roster.set(Time(0), identity(1, 1), State::Alive);
        roster.set(Time(0), identity(2, 1), State::Down);
        roster.forget_older_than(Time(0) + ms(10), ms(11));
        assert_eq!(roster.iter().count(), 2);
        roster.forget_older_than(Time(0) + ms(10), ms(10));
        assert_eq!(
            roster.iter().map(|member| member.identity.node).collect::<Vec<_>>(),
            [NodeId([1; 16])]
        );
    }
}
