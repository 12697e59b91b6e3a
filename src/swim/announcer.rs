//! Whom to greet, and when: join targets until they are members, and whoever was known last when
//! this node is alone. foca greets once and forgets; with 1 % loss that leaves nodes outside.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::types::{NodeId, Time};

/// How many join targets are remembered. Beyond it new ones are ignored until one has joined.
const TARGETS_MAX: usize = 64;

/// How long a target that never becomes a member is greeted. The caller finds it again if it is
/// still configured.
const TARGET_AGE_MAX: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug)]
pub(super) struct Announcer {
    targets: BTreeMap<NodeId, Target>,
    /// When to greet members of old, and how long to wait after that. Only while alone.
    alone: Option<Pause>,
    first_wait: Duration,
    longest_wait: Duration,
}

#[derive(Debug)]
struct Target {
    address: SocketAddr,
    found: Time,
    pause: Pause,
}

/// A wait that doubles.
#[derive(Clone, Copy, Debug)]
struct Pause {
    until: Time,
    wait: Duration,
}

impl Announcer {
    pub fn new((first_wait, longest_wait): (Duration, Duration)) -> Self {
        Self { targets: BTreeMap::new(), alone: None, first_wait, longest_wait }
    }

    /// A join target answered: greet it at once, and again until it has joined.
    pub fn found(&mut self, now: Time, node: NodeId, address: SocketAddr) {
        if self.targets.len() >= TARGETS_MAX && !self.targets.contains_key(&node) {
            return;
        }
        let pause = Pause { until: now, wait: self.first_wait };
        let target = Target { address, found: now, pause };
        self.targets.entry(node).or_insert(target).address = address;
    }

    /// A node is a member now.
    pub fn joined(&mut self, node: NodeId) {
        self.targets.remove(&node);
    }

    /// Notes whether this node has any member to speak to.
    pub fn alone(&mut self, now: Time, is_alone: bool) {
        match (self.alone, is_alone) {
            (None, true) => self.alone = Some(Pause { until: now, wait: self.first_wait }),
            (Some(_), false) => self.alone = None,
            (None, false) | (Some(_), true) => {}
        }
    }

    /// Begins anew with short waits: this node has a new identity that nobody has heard of.
    pub fn hurry(&mut self, now: Time) {
        let pause = Pause { until: now, wait: self.first_wait };
        self.targets.values_mut().for_each(|target| target.pause = pause);
        self.alone = self.alone.map(|_| pause);
    }

    /// Returns the targets to greet now.
    pub fn due_targets(&mut self, now: Time, rng: &mut SmallRng) -> Vec<(NodeId, SocketAddr)> {
        self.targets.retain(|_, target| now.since(target.found) < TARGET_AGE_MAX);
        let longest = self.longest_wait;
        self.targets
            .iter_mut()
            .filter(|(_, target)| target.pause.until <= now)
            .map(|(node, target)| {
                target.pause = target.pause.next(now, longest, rng);
                (*node, target.address)
            })
            .collect()
    }

    /// Returns whether members of old should be greeted now.
    pub fn is_due_alone(&mut self, now: Time, rng: &mut SmallRng) -> bool {
        let Some(pause) = self.alone.filter(|pause| pause.until <= now) else { return false };
        self.alone = Some(pause.next(now, self.longest_wait, rng));
        true
    }
}

impl Pause {
    /// Waits once more, twice as long as before, and up to a quarter more by chance, so that a
    /// cluster that was cut does not greet in step.
    fn next(self, now: Time, longest: Duration, rng: &mut SmallRng) -> Self {
        let jitter = self.wait.mul_f64(rng.random_range(0.0..0.25));
        Self { until: now + self.wait + jitter, wait: (self.wait * 2).min(longest) }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const NODE: NodeId = NodeId([1; 16]);

    fn greetings(announcer: &mut Announcer, seconds: u64) -> Vec<u64> {
        let mut rng = SmallRng::seed_from_u64(1);
        (0..seconds)
            .filter(|second| {
                let now = Time(0) + Duration::from_secs(*second);
                !announcer.due_targets(now, &mut rng).is_empty()
            })
            .collect()
    }

    #[test]
    fn a_target_is_greeted_at_once_then_ever_more_rarely_until_it_has_joined() {
        let mut announcer = Announcer::new((Duration::from_secs(1), Duration::from_secs(30)));
        announcer.found(Time(0), NODE, ([10, 0, 0, 1], 7401).into());
        let seconds = greetings(&mut announcer, 120);
        let waits: Vec<u64> = seconds.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(seconds[0], 0);
        assert!(waits.iter().zip([1, 2, 4, 8, 16, 30]).all(|(wait, at_least)| *wait >= at_least));
        assert!(waits.iter().all(|wait| *wait <= 38), "{waits:?}");
        announcer.joined(NODE);
        assert!(greetings(&mut announcer, 120).is_empty());
    }

    #[test]
    fn a_target_that_never_joins_is_given_up() {
        let mut announcer = Announcer::new((Duration::from_secs(1), Duration::from_secs(30)));
        announcer.found(Time(0), NODE, ([10, 0, 0, 1], 7401).into());
        let seconds = greetings(&mut announcer, 1_000);
        assert!(seconds.iter().all(|second| *second < 600), "{seconds:?}");
    }
}
