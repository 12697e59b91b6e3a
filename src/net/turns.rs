//! Whose turn it is to write: among the lanes of one connection by weight, among all connections by
//! how much a node may send of other nodes' changes.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::outbox::Track;
use crate::replica::Lane;

/// How much a lane may be ahead of its share: enough that turns are no burden.
const AHEAD_BYTES: u64 = 64 * 1024;

/// A lane that has been writing for so long waits for its peer to read on, and keeps no other from
/// writing.
const HELD_UP: Duration = Duration::from_millis(200);

/// How many seconds' worth of the budget may be sent at once.
const BURST_SECONDS: f64 = 4.0;

/// The share of the budget that answers to pulls have in any case.
const REPAIR_SHARE: f64 = 0.25;

/// Shares out one connection among its lanes, 8 : 4 : 2 for own commits, relays and answers to pulls
/// while all three have something to send. Control goes before them all.
#[derive(Debug, Default)]
pub(super) struct Turns {
    lanes: Mutex<[Turn; 3]>,
    passed: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    /// How much it was given, in bytes times eight by weight.
    given: u64,
    waits: bool,
    writes_since: Option<Instant>,
}

impl Turns {
    fn place(track: Track) -> Option<(usize, u64)> {
        match track {
            Track::Lane(Lane::Own) => Some((0, 8)),
            Track::Lane(Lane::Relay) => Some((1, 4)),
            Track::Lane(Lane::Repair) => Some((2, 2)),
            Track::Lane(Lane::Control) | Track::Datagrams => None,
        }
    }

    /// Waits until a lane may write so many bytes. [`Turns::passed`] ends its turn.
    pub async fn wait(&self, track: Track, bytes: usize) {
        let Some((place, weight)) = Self::place(track) else { return };
        loop {
            let passed = self.passed.notified();
            if take(&mut self.lock(), place, bytes as u64 * 8 / weight, Instant::now()) {
                return;
            }
            // Who is held up by then does not count any more.
            let _ = timeout(HELD_UP, passed).await;
        }
    }

    /// A lane has written what it had its turn for.
    pub fn passed(&self, track: Track) {
        let Some((place, _)) = Self::place(track) else { return };
        self.lock()[place].writes_since = None;
        self.passed.notify_waiters();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, [Turn; 3]> {
        self.lanes.lock().expect("no code under this lock can panic")
    }
}

/// Gives a lane its turn, unless it is ahead of another that has something to send.
fn take(lanes: &mut [Turn; 3], place: usize, cost: u64, now: Instant) -> bool {
    let rivals = lanes.iter().enumerate().filter(|(other, lane)| {
        let writes = |since: Instant| now.saturating_duration_since(since) < HELD_UP;
        *other != place && (lane.waits || lane.writes_since.is_some_and(writes))
    });
    let least = rivals.map(|(_, lane)| lane.given).min();
    let own = &mut lanes[place];
    if !own.waits {
        // What it did not use while it had nothing to send is forfeit.
        own.given = own.given.max(least.unwrap_or(0));
    }
    let may = least.is_none_or(|least| own.given <= least.saturating_add(AHEAD_BYTES * 8));
    own.waits = !may;
    if may {
        own.given += cost;
        own.writes_since = Some(now);
    }
    may
}

/// How much a node may send of other nodes' changes a second, over all connections: relays and
/// answers to pulls. Its own changes and control do not wait for it.
#[derive(Debug)]
pub(super) struct Budget {
    purses: Mutex<[Purse; 2]>,
}

#[derive(Debug)]
struct Purse {
    bytes: f64,
    per_second: f64,
    filled: Instant,
}

impl Budget {
    pub fn new(bytes_per_second: u64, now: Instant) -> Self {
        let purse = |per_second: f64| Purse {
            bytes: per_second * BURST_SECONDS,
            per_second: per_second.max(1.0),
            filled: now,
        };
        let all = bytes_per_second as f64;
        Self { purses: Mutex::new([purse(all), purse(all * REPAIR_SHARE)]) }
    }

    /// Waits until a lane may send something.
    pub async fn wait(&self, track: Track) {
        loop {
            let wait = self.debt(track, Instant::now());
            if wait.is_zero() {
                return;
            }
            sleep(wait).await;
        }
    }

    /// Notes that something is sent.
    pub fn spend(&self, track: Track, bytes: usize) {
        let (is_relay, is_repair) = kind(track);
        if !is_relay && !is_repair {
            return;
        }
        let mut purses = self.lock();
        purses[0].bytes -= bytes as f64;
        if is_repair {
            purses[1].bytes -= bytes as f64;
        }
    }

    /// Returns how long it takes until a lane may send something.
    fn debt(&self, track: Track, now: Instant) -> Duration {
        let (is_relay, is_repair) = kind(track);
        let [all, repair] = &mut *self.lock();
        let (all, repair) = (all.debt(now), repair.debt(now));
        match (is_relay, is_repair) {
            (true, _) => all,
            (_, true) => all.min(repair),
            (false, false) => Duration::ZERO,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, [Purse; 2]> {
        self.purses.lock().expect("no code under this lock can panic")
    }
}

fn kind(track: Track) -> (bool, bool) {
    (track == Track::Lane(Lane::Relay), track == Track::Lane(Lane::Repair))
}

impl Purse {
    fn debt(&mut self, now: Instant) -> Duration {
        let seconds = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        let full = self.per_second * BURST_SECONDS;
        self.bytes = (self.bytes + seconds * self.per_second).min(full);
        Duration::from_secs_f64((-self.bytes / self.per_second).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELAY: Track = Track::Lane(Lane::Relay);
    const REPAIR: Track = Track::Lane(Lane::Repair);

    #[test]
    fn while_all_have_something_to_send_they_share_by_weight() {
        let mut lanes = [Turn::default(); 3];
        let mut sent = [0_u64; 3];
        let now = Instant::now();
        for lane in &mut lanes {
            lane.waits = true;
        }
        for round in 0..3_000 {
            let place = round % 3;
            let cost = 10_000 * 8 / [8, 4, 2][place];
            if take(&mut lanes, place, cost, now) {
                sent[place] += 10_000;
                lanes[place] = Turn { waits: true, writes_since: None, ..lanes[place] };
            }
        }
        let share = |place: usize| sent[place] as f64 / sent.iter().sum::<u64>() as f64;
        for (place, weight) in [8.0, 4.0, 2.0].into_iter().enumerate() {
            assert!((share(place) - weight / 14.0).abs() < 0.03, "{sent:?}");
        }
    }

    #[test]
    fn a_lane_alone_is_never_kept_waiting_and_saves_nothing_up() {
        let mut lanes = [Turn::default(); 3];
        let now = Instant::now();
        for _ in 0..100 {
            assert!(take(&mut lanes, 2, 1_000_000, now));
            lanes[2].writes_since = None;
        }
        lanes[2].waits = true;
        assert!(take(&mut lanes, 0, 8, now));
        assert!(lanes[0].given >= 100_000_000, "it begins where the other is");
    }

    #[test]
    fn a_lane_whose_peer_does_not_read_on_keeps_no_other_from_writing() {
        let mut lanes = [Turn::default(); 3];
        let now = Instant::now();
        assert!(take(&mut lanes, 2, 0, now));
        assert!(take(&mut lanes, 0, 10_000_000, now));
        assert!(!take(&mut lanes, 0, 1, now));
        assert!(take(&mut lanes, 0, 1, now + HELD_UP));
    }

    #[test]
    fn relays_and_repair_keep_to_a_budget_and_repair_has_a_part_of_its_own() {
        let start = Instant::now();
        let budget = Budget::new(1_000, start);
        assert_eq!(budget.debt(RELAY, start), Duration::ZERO);
        budget.spend(RELAY, 6_000);
        assert_eq!(budget.debt(RELAY, start), Duration::from_secs(2));
        assert_eq!(budget.debt(REPAIR, start), Duration::ZERO);
        budget.spend(REPAIR, 1_250);
        assert_eq!(budget.debt(REPAIR, start), Duration::from_secs(1));
        assert_eq!(budget.debt(Track::Lane(Lane::Own), start), Duration::ZERO);
        let later = start + Duration::from_secs(60);
        assert_eq!(budget.debt(RELAY, later), Duration::ZERO);
    }
}
