//! When each check is due. Pure: time is an argument, and so is chance.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::types::Time;

/// The shortest interval between two runs; shorter ones are raised to it, as Consul does.
pub const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Returns the interval that a check really has.
pub fn interval_of(asked: Duration) -> Duration {
    asked.max(INTERVAL_MIN)
}

/// Returns when a check runs for the first time: after a delay in `[0, interval)`, so that
/// checks which were registered together do not run together for ever.
///
/// The delay follows from `seed` and the check's id: a node that has one seed per start spreads
/// its checks anew at each start.
pub fn first_run(now: Time, interval: Duration, seed: u64, check_id: &str) -> Time {
    let micros = u64::try_from(interval_of(interval).as_micros()).unwrap_or(u64::MAX);
    let fraction = hash(seed, check_id);
    // The high half of the product is a number in [0, micros), without the bias of `%`.
    let delay = (u128::from(fraction) * u128::from(micros)) >> 64;
    now + Duration::from_micros(u64::try_from(delay).unwrap_or(u64::MAX))
}

/// Returns when a check runs again that has just finished: a fixed delay, so that a slow check
/// is never run twice at once and never has to catch up.
pub fn next_run(finished: Time, interval: Duration) -> Time {
    finished + interval_of(interval)
}

/// FNV-1a over the id, seeded, with SplitMix64's finish to spread it over all 64 bits.
fn hash(seed: u64, text: &str) -> u64 {
    let mut state = seed ^ 0xcbf2_9ce4_8422_2325;
    for byte in text.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// What is to be done with a check when its time comes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Errand {
    /// Run it.
    Run,
    /// Nobody has reported for its whole time to live.
    Expire,
    /// Write again what could not be written.
    Rewrite,
}

/// All errands in the order of their times.
#[derive(Default, Debug)]
pub struct Agenda {
    entries: BTreeSet<(Time, Arc<str>, Errand)>,
}

impl Agenda {
    /// Puts an errand in; it is there once, however often it is put in for one time.
    pub fn add(&mut self, at: Time, check_id: &Arc<str>, errand: Errand) {
        self.entries.insert((at, Arc::clone(check_id), errand));
    }

    /// Takes an errand out again.
    pub fn remove(&mut self, at: Time, check_id: &Arc<str>, errand: Errand) {
        self.entries.remove(&(at, Arc::clone(check_id), errand));
    }

    /// Returns when the next errand is due.
    pub fn deadline(&self) -> Option<Time> {
        self.entries.first().map(|entry| entry.0)
    }

    /// Takes out the errand that is due for the longest time.
    pub fn pop_due(&mut self, now: Time) -> Option<(Arc<str>, Errand)> {
        if self.deadline()? > now {
            return None;
        }
        self.entries.pop_first().map(|(_, check_id, errand)| (check_id, errand))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    proptest! {
        #[test]
        fn a_first_run_lies_within_one_interval(
            seed: u64, id in ".{0,12}", now in 0..u64::MAX / 4, millis in 0..100_000_000u64
        ) {
            let interval = Duration::from_millis(millis);
            let at = first_run(Time(now), interval, seed, &id);
            prop_assert!(at >= Time(now));
            prop_assert!(at < Time(now) + interval_of(interval));
        }
    }

    #[test]
    fn checks_that_were_registered_together_are_spread_over_the_interval() {
        let interval = 10 * S;
        let mut per_second = [0; 10];
        for n in 0..1000 {
            let at = first_run(Time(0), interval, 7, &format!("service:web-{n}"));
            per_second[usize::try_from(at.0 / 1_000_000).unwrap()] += 1;
        }
        assert!(per_second.iter().all(|count| (60..140).contains(count)), "{per_second:?}");
    }

    #[test]
    fn another_start_spreads_checks_differently() {
        let of = |seed| first_run(Time(0), 60 * S, seed, "service:web");
        assert_ne!(of(1), of(2));
        assert_eq!(of(1), of(1));
    }

    #[test]
    fn an_interval_below_a_second_is_raised_to_one() {
        assert_eq!(interval_of(Duration::ZERO), S);
        assert_eq!(interval_of(Duration::from_millis(999)), S);
        assert_eq!(interval_of(3 * S), 3 * S);
        assert_eq!(next_run(Time(5_000_000), Duration::from_millis(1)), Time(6_000_000));
    }

    #[test]
    fn errands_come_out_in_the_order_of_their_times_and_only_when_due() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut agenda = Agenda::default();
        agenda.add(Time(30), &a, Errand::Run);
        agenda.add(Time(10), &b, Errand::Expire);
        agenda.add(Time(20), &a, Errand::Rewrite);
        agenda.add(Time(20), &a, Errand::Rewrite);
        assert_eq!(agenda.deadline(), Some(Time(10)));
        assert_eq!(agenda.pop_due(Time(9)), None);
        assert_eq!(agenda.pop_due(Time(20)), Some((b, Errand::Expire)));
        assert_eq!(agenda.pop_due(Time(20)), Some((Arc::clone(&a), Errand::Rewrite)));
        assert_eq!(agenda.pop_due(Time(20)), None);
        agenda.remove(Time(30), &a, Errand::Run);
        assert_eq!(agenda.deadline(), None);
    }
}
