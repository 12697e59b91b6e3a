//! Scenarios by name, for whoever runs them from outside.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::membership::{Membership, Oracle};
use super::{Fault, NodeIndex, Scenario};
use crate::types::Time;

/// A scenario that has a name.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    pub name: &'static str,
    /// What befalls the nodes, in a line.
    pub what: &'static str,
    /// How many there are unless somebody says otherwise; `None`: the seed says it.
    pub nodes: Option<usize>,
    make: fn(&Wanted, usize) -> Scenario,
}

/// What somebody wants of a scenario.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Wanted {
    pub seed: u64,
    pub nodes: Option<usize>,
    /// How many transactions there are to be.
    pub writes: Option<usize>,
    /// The share of messages and datagrams that are to be lost.
    pub loss: Option<f64>,
    /// For how long the cluster is to be watched, where the scenario has no end of its own.
    pub lasting: Option<Duration>,
    pub membership: Option<Kind>,
    /// The others that an oracle tells a node of, at most.
    pub acquaintances: Option<usize>,
}

/// Who tells nodes of each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Oracle,
    Foca,
}

impl Named {
    /// Makes the scenario as it is wanted.
    pub fn make(&self, wanted: &Wanted) -> Scenario {
        let mut scenario = (self.make)(wanted, wanted.nodes.or(self.nodes).unwrap_or(0));
        if let Some(loss) = wanted.loss {
            scenario.network.loss = loss;
        }
        match wanted.membership {
            None => {}
            Some(Kind::Foca) if scenario.membership.joining().is_some() => {}
            Some(Kind::Foca) => scenario = scenario.with(Membership::foca(Duration::ZERO)),
            Some(Kind::Oracle) => scenario.membership = Membership::default(),
        }
        if let (Some(acquaintances), None) = (wanted.acquaintances, scenario.membership.joining()) {
            scenario.membership = Membership::Oracle(Oracle { acquaintances });
        }
        scenario
    }
}

/// Finds a scenario by its name.
pub fn find(name: &str) -> Option<&'static Named> {
    LIBRARY.iter().find(|named| named.name == name)
}

/// All scenarios that have names.
pub const LIBRARY: &[Named] = &[
    Named {
        name: "calm",
        what: "a good network, and nothing goes wrong",
        nodes: Some(20),
        make: |wanted, nodes| {
            let writes = wanted.writes.unwrap_or(3 * nodes);
            Scenario { is_thorough: nodes <= 100, ..Scenario::calm(wanted.seed, nodes, writes) }
        },
    },
    Named {
        name: "drawn",
        what: "3 to 12 nodes, and trouble of all kinds drawn from the seed",
        nodes: None,
        make: |wanted, _| Scenario::drawn(wanted.seed),
    },
    Named {
        name: "churn",
        what: "3 to 6 nodes that are away for long, while rows come and go and tombstones are dropped",
        nodes: None,
        make: |wanted, _| Scenario::churn(wanted.seed),
    },
    Named {
        name: "large",
        what: "all nodes write, 5 % loss, a partition that heals, restarts",
        nodes: Some(100),
        make: |wanted, nodes| {
            let writes = wanted.writes.unwrap_or(nodes.min(2_000));
            Scenario { writes, ..Scenario::large(wanted.seed, nodes) }
        },
    },
    Named {
        name: "mixed",
        what: "many write while trouble of all kinds, drawn from the seed, befalls up to a tenth of all",
        nodes: Some(100),
        make: |wanted, nodes| {
            let scenario = Scenario::mixed(wanted.seed, nodes);
            Scenario { writes: wanted.writes.unwrap_or(scenario.writes), ..scenario }
        },
    },
    Named {
        name: "join",
        what: "all nodes start within five seconds and find each other through three of them (SWIM)",
        nodes: Some(100),
        make: |wanted, nodes| join(wanted.seed, nodes),
    },
    Named {
        name: "crash",
        what: "one node after the other crashes, and returns after a minute (SWIM)",
        nodes: Some(100),
        make: |wanted, nodes| crash(wanted.seed, nodes),
    },
    Named {
        name: "lossy",
        what: "5 % loss for an hour: nobody may be taken for down (SWIM)",
        nodes: Some(100),
        make: |wanted, nodes| {
            lossy(wanted.seed, nodes, wanted.lasting.unwrap_or(Duration::from_secs(3_600)))
        },
    },
    Named {
        name: "frozen",
        what: "1 % of the nodes stand still for 0.5 to 4 s at a time: nobody may be taken for down (SWIM)",
        nodes: Some(100),
        make: |wanted, nodes| {
            frozen(wanted.seed, nodes, wanted.lasting.unwrap_or(Duration::from_secs(600)))
        },
    },
    Named {
        name: "idle",
        what: "nobody writes for 25 minutes: what membership, digests and rounds send (SWIM)",
        nodes: Some(100),
        make: |wanted, nodes| {
            idle(wanted.seed, nodes, wanted.lasting.unwrap_or(Duration::from_secs(1_500)))
        },
    },
];

/// The time in which nodes that join by SWIM have found each other, with some to spare.
fn settling(nodes: usize) -> Duration {
    Duration::from_secs(60) + Duration::from_millis(60 * nodes as u64)
}

/// A cluster by SWIM that is watched from when its nodes know each other, for so long.
fn watched(seed: u64, nodes: usize, lasting: Duration) -> Scenario {
    let mut scenario = Scenario::calm(seed, nodes, 0);
    let within = Duration::from_secs(5).max(Duration::from_millis(10 * nodes as u64));
    scenario.membership = Membership::foca(within);
    scenario.measure_from = Time(0) + within + settling(nodes);
    scenario.writes_from = scenario.measure_from;
    scenario.writes_until = scenario.measure_from + lasting;
    scenario.is_thorough = false;
    scenario.converge_within = Duration::from_secs(300);
    scenario
}

/// All nodes of a cluster start within five seconds.
pub fn join(seed: u64, nodes: usize) -> Scenario {
    let mut scenario = watched(seed, nodes, Duration::from_secs(1));
    scenario.membership = Membership::foca(Duration::from_secs(5));
    // What it costs to find each other is measured.
    scenario.measure_from = Time(0);
    scenario
}

/// Nodes crash one after the other, and return after a minute.
pub fn crash(seed: u64, nodes: usize) -> Scenario {
    const CRASHES: usize = 10;
    let every = Duration::from_secs(17);
    let mut scenario = watched(seed, nodes, every * CRASHES as u32 + Duration::from_secs(60));
    let mut at = scenario.measure_from;
    for number in 0..CRASHES {
        // Others than those that all join by, and each another one.
        let node = NodeIndex(3 + (number * 7 + seed as usize) % (nodes - 3));
        scenario.faults.push((at, Fault::Crash(node)));
        scenario.faults.push((at + Duration::from_secs(60), Fault::Restart(node)));
        at = at + every;
    }
    scenario.faults.sort_by_key(|(at, _)| *at);
    scenario
}

/// 5 % of all datagrams are lost, and nobody may be taken for down.
pub fn lossy(seed: u64, nodes: usize, lasting: Duration) -> Scenario {
    let mut scenario = watched(seed, nodes, lasting);
    scenario.network.loss = 0.05;
    scenario.verdicts_are_right = true;
    scenario
}

/// At any time one node of a hundred stands still, for half a second to four, and nobody may be taken
/// for down.
pub fn frozen(seed: u64, nodes: usize, lasting: Duration) -> Scenario {
    let mut scenario = watched(seed, nodes, lasting);
    scenario.verdicts_are_right = true;
    let mut rng = SmallRng::seed_from_u64(seed);
    let places = (nodes / 100).max(1);
    for place in 0..places {
        let mut at = scenario.measure_from;
        while at < scenario.writes_until {
            let node = NodeIndex(place + places * rng.random_range(0..nodes / places));
            let thaws_at = at + Duration::from_millis(rng.random_range(500..4_000));
            scenario.faults.push((at, Fault::Freeze(node)));
            scenario.faults.push((thaws_at, Fault::Thaw(node)));
            at = thaws_at + Duration::from_micros(1);
        }
    }
    scenario.faults.sort_by_key(|(at, _)| *at);
    scenario
}

/// Nobody writes.
pub fn idle(seed: u64, nodes: usize, lasting: Duration) -> Scenario {
    // By then nodes have connected to those that they will probe.
    let before = Duration::from_secs(600).min(Duration::from_secs(nodes as u64));
    let mut scenario = watched(seed, nodes, before + lasting);
    scenario.measure_from = scenario.measure_from + before;
    scenario.replica.collect = true;
    scenario
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_that_of_one_scenario() {
        for named in LIBRARY {
            let found = LIBRARY.iter().filter(|other| other.name == named.name).count();
            assert_eq!(found, 1, "{}", named.name);
        }
    }
}
