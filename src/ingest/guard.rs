//! When an absence is believed. Pure.
//!
//! An agent that was restarted with an empty disk, or whose token lost its rights, answers
//! "nothing" with the same 200 as one whose services were all deregistered. Withdrawing them all
//! would take the host out of every answer in the fleet. So one or a few absences are believed at
//! once, a mass of them only when the agent insists.

use std::time::Duration;

use crate::types::Time;

/// When a sudden disappearance is believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuardConfig {
    /// In how many answers in a row.
    pub polls: u32,
    /// And for how long.
    pub period: Duration,
    /// Which share of what is held may vanish at once without a doubt, in percent. All of it
    /// never may.
    pub share_max_percent: u8,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self { polls: 3, period: Duration::from_secs(30), share_max_percent: 50 }
    }
}

/// Watches over the withdrawal of one kind of thing.
#[derive(Debug)]
pub struct Guard {
    config: GuardConfig,
    /// From how many absences on there may be a doubt.
    gone_min: usize,
    doubt: Option<Doubt>,
    /// Whether the agent failed to answer since its last answer that lacked nothing.
    was_unreachable: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Doubt {
    since: Time,
    polls: u32,
}

/// What to do about what is absent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Believe it.
    Withdraw,
    /// Keep it, until that many more answers said so, and that time has come.
    Wait { polls_left: u32, until: Time },
}

impl Guard {
    pub fn new(config: GuardConfig, gone_min: usize) -> Self {
        Self { config, gone_min, doubt: None, was_unreachable: false }
    }

    /// The agent did not answer: what it says next is heard with more doubt.
    pub fn on_error(&mut self) {
        self.was_unreachable = true;
        self.doubt = None;
    }

    /// The agent has answered, and of `held` things `gone` are absent.
    pub fn on_answer(&mut self, now: Time, held: usize, gone: usize) -> Verdict {
        if gone == 0 {
            self.doubt = None;
            self.was_unreachable = false;
            return Verdict::Withdraw;
        }
        // A doubt stays until nothing is absent any more: an agent whose applications come back
        // one after the other passes through every share.
        if self.doubt.is_none() && !self.is_doubtful(held, gone) {
            return Verdict::Withdraw;
        }
        let doubt = self.doubt.get_or_insert(Doubt { since: now, polls: 0 });
        doubt.polls = doubt.polls.saturating_add(1);
        let until = doubt.since + self.config.period;
        let polls_left = self.config.polls.saturating_sub(doubt.polls);
        if polls_left > 0 || now < until {
            return Verdict::Wait { polls_left, until };
        }
        self.doubt = None;
        self.was_unreachable = false;
        Verdict::Withdraw
    }

    fn is_doubtful(&self, held: usize, gone: usize) -> bool {
        if self.was_unreachable {
            return true;
        }
        let is_many = gone * 100 > held * usize::from(self.config.share_max_percent);
        gone >= self.gone_min && (gone == held || is_many)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// Polls once a second with these numbers of absent things of ten, and returns in which
    /// second they were withdrawn.
    fn withdrawn(gone: &[usize]) -> Vec<usize> {
        let mut guard = Guard::new(GuardConfig::default(), 1);
        (0..gone.len())
            .filter(|second| {
                let now = Time(0) + S * u32::try_from(*second).unwrap();
                gone[*second] > 0 && guard.on_answer(now, 10, gone[*second]) == Verdict::Withdraw
                    || gone[*second] == 0 && {
                        guard.on_answer(now, 10, 0);
                        false
                    }
            })
            .collect()
    }

    #[test]
    fn a_few_absences_are_believed_at_once() {
        assert_eq!(withdrawn(&[1]), [0]);
        assert_eq!(withdrawn(&[5, 5]), [0, 1]);
    }

    #[test]
    fn most_or_all_are_believed_after_thirty_seconds() {
        assert_eq!(withdrawn(&[6; 31]), [30]);
        assert_eq!(withdrawn(&[10; 31]), [30]);
        assert_eq!(withdrawn(&[10; 30]), [0; 0]);
    }

    #[test]
    fn the_last_one_of_all_counts_as_all() {
        let mut guard = Guard::new(GuardConfig::default(), 1);
        let expected = Verdict::Wait { polls_left: 2, until: Time(0) + 30 * S };
        assert_eq!(guard.on_answer(Time(0), 1, 1), expected);
    }

    #[test]
    fn time_alone_is_not_enough() {
        let mut guard = Guard::new(GuardConfig::default(), 1);
        assert!(matches!(guard.on_answer(Time(0), 10, 10), Verdict::Wait { polls_left: 2, .. }));
        let later = Time(0) + 100 * S;
        assert!(matches!(guard.on_answer(later, 10, 10), Verdict::Wait { polls_left: 1, .. }));
        assert_eq!(guard.on_answer(later + S, 10, 10), Verdict::Withdraw);
    }

    #[test]
    fn one_full_answer_ends_the_doubt() {
        let mut polls = vec![10; 25];
        polls.push(0);
        polls.extend([10; 30]);
        assert_eq!(withdrawn(&polls), [0; 0]);
        polls.push(10);
        assert_eq!(withdrawn(&polls), [56]);
    }

    #[test]
    fn applications_that_come_back_one_by_one_are_waited_for() {
        assert_eq!(withdrawn(&[10, 8, 6, 4, 2, 1, 1, 0]), [0; 0]);
    }

    #[test]
    fn after_a_failure_even_one_absence_is_doubted() {
        let mut guard = Guard::new(GuardConfig::default(), 1);
        guard.on_error();
        assert!(matches!(guard.on_answer(Time(0), 10, 1), Verdict::Wait { .. }));
        assert_eq!(guard.on_answer(Time(1), 10, 0), Verdict::Withdraw);
        assert_eq!(guard.on_answer(Time(2), 10, 1), Verdict::Withdraw, "trust is restored");
    }

    #[test]
    fn a_failure_in_between_begins_the_count_anew() {
        let mut guard = Guard::new(GuardConfig::default(), 1);
        for second in 0..29 {
            guard.on_answer(Time(0) + S * second, 10, 10);
        }
        guard.on_error();
        let at = Time(0) + 31 * S;
        assert_eq!(
            guard.on_answer(at, 10, 10),
            Verdict::Wait { polls_left: 2, until: at + 30 * S }
        );
    }
}
