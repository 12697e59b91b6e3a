//! What follows from a result: whether a check takes it over, whether that is worth a write, and
//! when an instance has been critical for too long. Pure.

use std::time::Duration;

use crate::catalog::{CheckDefinition, Status};
use crate::types::Time;

/// The shortest time that an instance must be critical before it is removed for it; shorter
/// wishes are raised to it, as Consul does.
pub const DEREGISTER_AFTER_MIN: Duration = Duration::from_secs(60);

/// How often in a row a check went well, or did not, up to where it counts.
///
/// Both counters start full: the first result after a registration or a start is taken over at
/// once. A warning counts as a success. A contrary result begins its own count and ends the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Streak {
    successes: u32,
    failures: u32,
}

impl Streak {
    /// Makes the counters of a check that has not run yet.
    pub fn full(definition: &CheckDefinition) -> Self {
        Self {
            successes: definition.success_before_passing,
            failures: definition.failures_before_critical,
        }
    }

    /// Counts a result, and tells whether the check takes it over as its status.
    pub fn takes_over(&mut self, definition: &CheckDefinition, result: Status) -> bool {
        match result {
            Status::Passing | Status::Warning => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                self.successes >= definition.success_before_passing
            }
            Status::Critical => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                self.failures >= definition.failures_before_critical
            }
        }
    }
}

/// What was last written of a check, and when this node last wrote it.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    pub status: Status,
    pub output: &'a str,
    pub at: Time,
}

/// Tells whether what a check says now is worth a write, which every node will receive.
///
/// A change of status always is. A change of the output alone waits until `update_interval` has
/// passed since the last write. The same again never is.
pub fn is_worth_a_write(
    written: Written<'_>,
    status: Status,
    output: &str,
    now: Time,
    update_interval: Duration,
) -> bool {
    if status != written.status {
        return true;
    }
    output != written.output && now.since(written.at) >= update_interval
}

/// Tells whether an instance has been critical for so long that it is to be removed.
pub fn is_overdue(critical_since: Time, deregister_after: Duration, now: Time) -> bool {
    now.since(critical_since) > deregister_after.max(DEREGISTER_AFTER_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds results (`p`, `w`, `c`) to a check that begins critical, and returns its status
    /// after each of them.
    fn trace(successes: u32, failures: u32, results: &str) -> String {
        let definition = CheckDefinition {
            success_before_passing: successes,
            failures_before_critical: failures,
            ..CheckDefinition::default()
        };
        let mut streak = Streak::full(&definition);
        let mut status = 'c';
        let step = |result| {
            let parsed = match result {
                'p' => Status::Passing,
                'w' => Status::Warning,
                _ => Status::Critical,
            };
            if streak.takes_over(&definition, parsed) {
                status = result;
            }
            status
        };
        results.chars().map(step).collect()
    }

    #[test]
    fn without_thresholds_every_result_counts_at_once() {
        assert_eq!(trace(1, 1, "pcwpcc"), "pcwpcc");
    }

    #[test]
    fn the_first_result_counts_at_once_whatever_the_thresholds() {
        assert_eq!(trace(3, 2, "p"), "p");
        assert_eq!(trace(3, 3, "c"), "c");
    }

    #[test]
    fn a_status_is_taken_over_at_the_nth_result_in_a_row() {
        assert_eq!(trace(3, 2, "pccwwwp"), "ppcccwp");
    }

    #[test]
    fn a_contrary_result_begins_the_count_anew() {
        assert_eq!(trace(1, 3, "pccpccpccc"), "pppppppppc");
        assert_eq!(trace(3, 1, "pcppcpppc"), "pccccccpc");
    }

    #[test]
    fn a_warning_counts_as_a_success() {
        assert_eq!(trace(2, 2, "pcc"), "ppc");
        assert_eq!(trace(2, 2, "pccwp"), "ppccp");
    }

    #[test]
    fn counters_do_not_overflow() {
        let definition = CheckDefinition::default();
        let mut streak = Streak { successes: u32::MAX, failures: u32::MAX };
        assert!(streak.takes_over(&definition, Status::Passing));
        assert!(streak.takes_over(&definition, Status::Critical));
    }

    const FIVE_MINUTES: Duration = Duration::from_secs(300);

    fn worth(status: Status, output: &str, after_s: u64) -> bool {
        let written = Written { status: Status::Passing, output: "fine", at: Time(1_000_000) };
        let now = written.at + Duration::from_secs(after_s);
        is_worth_a_write(written, status, output, now, FIVE_MINUTES)
    }

    #[test]
    fn a_change_of_status_is_written_at_once() {
        assert!(worth(Status::Critical, "fine", 0));
        assert!(worth(Status::Warning, "odd", 1));
    }

    #[test]
    fn a_new_output_waits_for_its_interval() {
        assert!(!worth(Status::Passing, "fine still", 299));
        assert!(worth(Status::Passing, "fine still", 300));
    }

    #[test]
    fn the_same_again_is_never_written() {
        assert!(!worth(Status::Passing, "fine", 1));
        assert!(!worth(Status::Passing, "fine", 100_000));
    }

    #[test]
    fn removal_takes_a_minute_at_least() {
        let wish = Duration::from_secs(10);
        let since = Time(0);
        assert!(!is_overdue(since, wish, since + Duration::from_secs(60)));
        assert!(is_overdue(since, wish, since + Duration::from_secs(61)));
        assert!(!is_overdue(since, Duration::from_secs(600), since + Duration::from_secs(599)));
    }
}
