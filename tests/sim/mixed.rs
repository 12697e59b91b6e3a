//! Many nodes and trouble of all kinds at once.
//!
//! `SIM_SEED=7 SIM_SEEDS=5000 cargo test --test sim mixed` plays so many seeds from there on, with
//! `SIM_NODES` nodes. All are played; those that fail are named in the end.

use std::time::{Duration, Instant};

use tribune::sim::{Scenario, run};

use crate::from_environment;

#[test]
fn many_nodes_survive_the_mixture_of_all_trouble() {
    let first = from_environment("SIM_SEED").unwrap_or(0);
    let seeds = from_environment("SIM_SEEDS").unwrap_or(20);
    let nodes = from_environment("SIM_NODES").unwrap_or(100) as usize;
    let began = Instant::now();
    let (mut events, mut slowest, mut failed) = (0, (Duration::ZERO, 0), Vec::new());
    for seed in first..first + seeds {
        match run(Scenario::mixed(seed, nodes)) {
            Ok(report) => {
                if seeds == 1 {
                    println!("{:?}\n{report}", Scenario::mixed(seed, nodes));
                }
                events += report.events;
                slowest = slowest.max((report.converged_after, seed));
            }
            Err(failure) => {
                println!("{failure}");
                failed.push(seed);
            }
        }
        if (seed + 1 - first) % 100 == 0 {
            let (done, spent) = (seed + 1 - first, began.elapsed());
            println!("{done} seeds in {spent:.0?}, {} failed: {failed:?}", failed.len());
        }
    }
    let spent = began.elapsed();
    println!("{seeds} seeds of {nodes} nodes, {events} events in {spent:.1?}, slowest {slowest:?}");
    assert!(failed.is_empty(), "seeds that failed: {failed:?}");
}
