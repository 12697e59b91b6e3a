//! How long to wait after a failure. Pure: chance is an argument.

use std::time::Duration;

/// The first wait, and the floor of all of them.
const WAIT_MIN: Duration = Duration::from_secs(1);
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Waits that double from failure to failure.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts a failure and returns how long to wait: between half of the step and the whole of
    /// it, by `chance`, so that a thousand nodes do not come back at once.
    pub fn next(&mut self, chance: u32) -> Duration {
        let step = WAIT_MIN.saturating_mul(2u32.saturating_pow(self.failures)).min(WAIT_MAX);
        self.failures = self.failures.saturating_add(1);
        let half = step / 2;
        (half + half.mul_f64(f64::from(chance) / f64::from(u32::MAX))).max(WAIT_MIN)
    }

    /// Forgets the failures.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.next(u32::MAX).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX).as_secs(), 1);
    }

    #[test]
    fn chance_halves_a_wait_at_most_and_never_below_a_second() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..40).map(|_| backoff.next(0).as_secs()).collect();
        assert_eq!(waits[..7], [1, 1, 2, 4, 8, 15, 15]);
        assert_eq!(waits[39], 15);
    }
}
