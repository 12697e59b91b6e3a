//! Two clocks that must not be mixed, and one made of both.

use std::ops::{Add, Sub};
use std::time::Duration;

/// Microseconds since some start, monotonic: the clock of timers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Time(pub u64);

impl Time {
    /// Returns the time that has passed since `earlier`, zero when that lies ahead.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, duration: Duration) -> Time {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Time(self.0.saturating_add(micros))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;

    fn sub(self, duration: Duration) -> Time {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Time(self.0.saturating_sub(micros))
    }
}

/// Microseconds since 1970, from the machine's clock, which may jump: for people and for ages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Wall(pub u64);

impl Wall {
    /// Returns whole milliseconds since 1970.
    pub fn millis(self) -> u64 {
        self.0 / 1_000
    }
}

/// A hybrid logical clock in milliseconds: never behind the wall clock, never standing still.
///
/// Blocking queries count with it: above any Raft index in practice, below 2^53 (which is as far
/// as a JavaScript client counts), and roughly comparable between nodes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Hlc(pub u64);

impl Hlc {
    /// Moves on: to `now` in milliseconds, or by one where the clock stands still or went back.
    #[must_use]
    pub fn tick(self, now: Wall) -> Self {
        Self(now.millis().max(self.0 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hybrid_clock_rises_when_the_wall_clock_goes_back() {
        let first = Hlc::default().tick(Wall(5_000_000));
        let second = first.tick(Wall(4_000_000));
        assert_eq!((first, second), (Hlc(5_000), Hlc(5_001)));
        assert_eq!(second.tick(Wall(9_000_000)), Hlc(9_000));
    }

    #[test]
    fn time_saturates_at_both_ends() {
        assert_eq!(Time(5).since(Time(9)), Duration::ZERO);
        assert_eq!(Time(1) - Duration::from_secs(1), Time(0));
        assert_eq!(Time(u64::MAX) + Duration::from_secs(1), Time(u64::MAX));
    }
}
