//! Rows of this node that come back from others: what it wrote in a life that its disk does not
//! remember. Whoever runs here has some time to register them again; then they are withdrawn.

use std::time::Duration;

use crate::types::Time;

/// How many times the time it has anyway what comes back in small parts may take.
const LATEST: u32 = 5;

/// Knows when to withdraw what came back.
#[derive(Debug)]
pub(super) struct Returned {
    after: Duration,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Nothing has come back that was not dealt with.
    Quiet,
    /// The process has just begun, and does not know what came back before it.
    Unknown,
    /// At `at`; what comes back until then moves it, at most to `latest`.
    Due { at: Time, latest: Time },
    /// The storage was asked. `again`: more has come back since.
    Asked { again: bool },
}

impl Returned {
    pub(super) fn new(after: Duration) -> Self {
        Self { after, state: State::Unknown }
    }

    /// Rows of an earlier epoch of this node are about to be applied.
    pub(super) fn on_returned(&mut self, now: Time) {
        self.state = match self.state {
            State::Quiet | State::Unknown => self.due(now),
            State::Due { at, latest } => {
                State::Due { at: at.max(now + self.after).min(latest), latest }
            }
            State::Asked { .. } => State::Asked { again: true },
        };
    }

    /// The storage has answered: all is withdrawn, or it failed.
    pub(super) fn on_withdrawn(&mut self, now: Time, is_done: bool) {
        self.state = match self.state {
            State::Asked { again: false } if is_done => State::Quiet,
            State::Asked { .. } => self.due(now),
            other => other,
        };
    }

    fn due(&self, now: Time) -> State {
        State::Due { at: now + self.after, latest: now + self.after * LATEST }
    }

    pub(super) fn is_pending(&self) -> bool {
        self.state != State::Quiet
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        match self.state {
            State::Due { at, .. } => Some(at),
            State::Quiet | State::Unknown | State::Asked { .. } => None,
        }
    }

    /// Tells whether to withdraw now: once each time it is due.
    pub(super) fn run(&mut self, now: Time) -> bool {
        match self.state {
            State::Unknown => self.state = self.due(now),
            State::Due { at, .. } if at <= now => {
                self.state = State::Asked { again: false };
                return true;
            }
            State::Due { .. } | State::Quiet | State::Asked { .. } => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000)
    }

    #[test]
    fn what_came_back_is_withdrawn_once_after_its_time() {
        let mut returned = Returned::new(AFTER);
        assert!(!returned.run(at(0)));
        assert_eq!(returned.deadline(), Some(at(60)));
        assert!(!returned.run(at(59)));
        assert!(returned.run(at(60)));
        assert!(!returned.run(at(61)));
        returned.on_withdrawn(at(61), true);
        assert_eq!(returned.deadline(), None);
        returned.on_returned(at(100));
        returned.on_returned(at(110));
        assert_eq!(returned.deadline(), Some(at(170)), "the last of it has its minute too");
        for second in 111..500 {
            returned.on_returned(at(second));
        }
        assert_eq!(returned.deadline(), Some(at(400)), "but not for ever");
    }

    #[test]
    fn what_comes_back_meanwhile_and_what_failed_get_their_time_again() {
        let mut returned = Returned::new(AFTER);
        returned.on_returned(at(0));
        assert!(returned.run(at(60)));
        returned.on_returned(at(60));
        returned.on_withdrawn(at(61), true);
        assert_eq!(returned.deadline(), Some(at(121)));
        assert!(returned.run(at(121)));
        returned.on_withdrawn(at(122), false);
        assert_eq!(returned.deadline(), Some(at(182)));
    }
}
