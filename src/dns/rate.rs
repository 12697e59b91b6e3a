//! How much strangers get: whoever forges their address would have us send it to them.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Networks of clients that are told apart. Those that share a place share a rate, which is seen only
/// while one of them is flooded.
const PLACES: usize = 16_384;

/// Of the replies that are too many one in so many is sent all the same, cut: who really asks comes
/// back over TCP, where nobody can pretend.
const SLIP: u64 = 2;

/// How fast each network of clients is answered.
#[derive(Debug)]
pub struct Rates {
    /// Between two replies; zero: there is no limit.
    interval: Duration,
    begun: Instant,
    hasher: RandomState,
    /// Until when, in nanoseconds since `begun`, a network's replies so far would last at its rate.
    places: Box<[AtomicU64]>,
    excess: AtomicU64,
}

/// What a client gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Whole,
    Cut,
    Nothing,
}

impl Rates {
    /// Makes them for so many replies a second and network; 0: no limit.
    pub fn new(per_second: u32) -> Self {
        Self {
            interval: Duration::from_secs(1).checked_div(per_second).unwrap_or_default(),
            begun: Instant::now(),
            hasher: RandomState::new(),
            places: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
            excess: AtomicU64::new(0),
        }
    }

    /// Counts a reply to a client, and says what becomes of it. Replies of one second may come at once.
    pub fn take(&self, client: IpAddr, now: Instant) -> Verdict {
        if self.interval.is_zero() {
            return Verdict::Whole;
        }
        let [now, interval, second] =
            [now.saturating_duration_since(self.begun), self.interval, Duration::from_secs(1)]
                .map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        let hash = self.hasher.hash_one(network(client));
        let place = &self.places[usize::try_from(hash % PLACES as u64).expect("few places")];
        // The generic cell rate algorithm (ITU-T I.371), which needs one number a network.
        let next = |until: u64| {
            let next = until.max(now) + interval;
            (next <= now + second).then_some(next)
        };
        if place.try_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok() {
            return Verdict::Whole;
        }
        match self.excess.fetch_add(1, Ordering::Relaxed) % SLIP {
            0 => Verdict::Cut,
            _ => Verdict::Nothing,
        }
    }
}

/// Returns what one owner usually has: 256 addresses, or a site's prefix.
fn network(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(v4) => u64::from(v4.to_bits() >> 8),
        // Never one of those above.
        IpAddr::V6(v6) => (v6.to_bits() >> 72) as u64 | 1 << 63,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rates: &Rates, client: &str, now: Instant, questions: usize) -> [usize; 3] {
        let client = client.parse().unwrap();
        let verdicts: Vec<Verdict> = (0..questions).map(|_| rates.take(client, now)).collect();
        [Verdict::Whole, Verdict::Cut, Verdict::Nothing]
            .map(|verdict| verdicts.iter().filter(|other| **other == verdict).count())
    }

    #[test]
    fn a_network_gets_its_rate_and_beyond_it_half_of_the_replies_cut() {
        let rates = Rates::new(10);
        let now = rates.begun;
        assert_eq!(count(&rates, "192.0.2.1", now, 30), [10, 10, 10]);
        assert_eq!(count(&rates, "192.0.2.200", now, 2), [0, 1, 1]);
        assert_eq!(count(&rates, "198.51.100.1", now, 5), [5, 0, 0]);
        assert_eq!(count(&rates, "192.0.2.1", now + Duration::from_millis(500), 9), [5, 2, 2]);
        assert_eq!(count(&rates, "192.0.2.1", now + Duration::from_secs(9), 11), [10, 1, 0]);
        assert_eq!(count(&rates, "2001:db8:0:1::1", now, 11), [10, 0, 1]);
        assert_eq!(count(&rates, "2001:db8:0:2::1", now, 1), [0, 1, 0]);
    }

    #[test]
    fn without_a_rate_everybody_gets_everything() {
        let rates = Rates::new(0);
        assert_eq!(count(&rates, "192.0.2.1", rates.begun, 999), [999, 0, 0]);
    }
}
