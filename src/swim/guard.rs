//! Holds verdicts back when too many members seem to fail at once: then it is more likely that
//! this node, or its network, is what failed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::types::{NodeId, Time};

/// The share of members (in percent) whose trouble within [`WINDOW`] raises the guard.
const PERCENT: usize = 20;

/// See [`PERCENT`]. Longer than a suspicion takes, so that those who are only suspected yet are
/// counted before the first of them falls.
const WINDOW: Duration = Duration::from_secs(30);

/// In a smaller cluster one or two real failures are already more than the share.
const MEMBERS_MIN: usize = 10;

/// How long a verdict is held back at most. A guard without an end would hide a dead rack for
/// ever.
const HOLD_MAX: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Guard {
    since: Option<Time>,
    /// Verdicts of late, held back or not.
    recent: VecDeque<Time>,
    /// Verdicts held back, and since when.
    held: BTreeMap<NodeId, Time>,
}

impl Guard {
    pub fn is_on(&self) -> bool {
        self.since.is_some()
    }

    /// Returns how many verdicts are held back.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// A member was declared dead. Returns whether that may be told.
    pub fn lets_pass(&mut self, now: Time, node: NodeId) -> bool {
        self.recent.push_back(now);
        if self.is_on() {
            self.held.insert(node, now);
        }
        !self.is_on()
    }

    /// A member is back, or said itself that it goes. Returns whether its end had been told.
    pub fn forgive(&mut self, node: NodeId) -> bool {
        self.held.remove(&node).is_none()
    }

    /// Looks at the cluster: `members` active ones, `suspects` of them. Returns the verdicts that
    /// may be told now, and whether the guard went up or down.
    pub fn review(
        &mut self,
        now: Time,
        members: usize,
        suspects: usize,
    ) -> (Vec<NodeId>, Option<bool>) {
        while self.recent.front().is_some_and(|at| now.since(*at) > WINDOW) {
            self.recent.pop_front();
        }
        let troubled = suspects + self.recent.len();
        let all = members + self.recent.len();
        let is_storm = all >= MEMBERS_MIN && troubled * 100 > all * PERCENT;
        let change = match (self.since, is_storm) {
            (None, true) => {
                self.since = Some(now);
                Some(true)
            }
            // Held verdicts keep it up: a storm that has passed leaves nobody behind who is
            // held, or those who are were really lost and fall due one by one.
            (Some(_), false) if self.held.is_empty() => {
                self.since = None;
                Some(false)
            }
            (None, false) | (Some(_), _) => None,
        };
        (self.release(now), change)
    }

    fn release(&mut self, now: Time) -> Vec<NodeId> {
        let due: Vec<NodeId> = self
            .held
            .iter()
            .filter(|(_, since)| now.since(**since) >= HOLD_MAX)
            .map(|(node, _)| *node)
            .collect();
        due.iter().for_each(|node| {
            self.held.remove(node);
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(byte: u8) -> NodeId {
        NodeId([byte; 16])
    }

    fn at(seconds: u64) -> Time {
        Time(0) + Duration::from_secs(seconds)
    }

    #[test]
    fn in_a_small_cluster_every_verdict_passes() {
        let mut guard = Guard::default();
        assert_eq!(guard.review(at(0), 3, 3), (vec![], None));
        assert!(guard.lets_pass(at(1), node(1)));
        assert!(guard.lets_pass(at(1), node(2)));
    }

    #[test]
    fn when_a_fifth_fails_verdicts_wait_until_forgiven_or_ten_minutes_old() {
        let mut guard = Guard::default();
        assert_eq!(guard.review(at(0), 20, 4), (vec![], None));
        assert_eq!(guard.review(at(1), 20, 5), (vec![], Some(true)));
        assert!(!guard.lets_pass(at(2), node(1)));
        assert!(!guard.lets_pass(at(2), node(2)));
        assert!(!guard.forgive(node(1)), "its end was never told");
        assert_eq!(guard.review(at(100), 18, 0), (vec![], None));
        assert_eq!(guard.review(at(602), 18, 0), (vec![node(2)], None));
        assert_eq!(guard.review(at(603), 18, 0), (vec![], Some(false)));
        assert!(guard.lets_pass(at(604), node(3)));
    }
}
