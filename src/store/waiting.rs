//! Whether anybody waits for the writer while it runs a user's transaction.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Stands for "nobody waits".
const NOBODY: u64 = u64::MAX;

/// Since when somebody waits. Whoever queues work says so; the connection that runs a user's
/// transaction looks at it every few microseconds, hence no lock.
#[derive(Debug)]
pub struct Waiting {
    start: Instant,
    /// Microseconds after `start`.
    since: AtomicU64,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { start: Instant::now(), since: AtomicU64::new(NOBODY) }
    }
}

impl Waiting {
    /// Somebody waits. Whoever waited before has the longer claim.
    pub fn begin(&self) {
        // The writer clears it under the queue's lock, as callers of this hold it: no claim of a
        // job that still waits is lost.
        let _ =
            self.since.compare_exchange(NOBODY, self.now(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The writer takes work: whoever waits does so from now on, as far as that work can help it.
    pub fn renew(&self, is_anybody_left: bool) {
        let since = if is_anybody_left { self.now() } else { NOBODY };
        self.since.store(since, Ordering::Relaxed);
    }

    /// Tells whether somebody has waited for at least so long.
    pub fn is_over(&self, grace: Duration) -> bool {
        let since = self.since.load(Ordering::Relaxed);
        since != NOBODY && self.now().saturating_sub(since) >= micros(grace)
    }

    fn now(&self) -> u64 {
        micros(self.start.elapsed())
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(NOBODY - 1)
}
