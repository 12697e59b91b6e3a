//! Many nodes and trouble of all kinds at once.
//!
//! `SIM_SEED=7 SIM_SEEDS=5000 cargo test --release --test sim mixed -- --nocapture` plays so many
//! seeds from there on, with `SIM_NODES` nodes in `SIM_THREADS` threads. All are played; those that
//! fail are named in the end.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tribune::sim::{Scenario, run};

use crate::{from_environment, seeds};

/// What became of all seeds together.
#[derive(Default)]
struct Outcome {
    played: u64,
    events: u64,
    /// The longest that a cluster took to hold the same, and in which seed.
    slowest: (Duration, u64),
    failed: BTreeSet<u64>,
}

#[test]
fn many_nodes_survive_the_mixture_of_all_trouble() {
    let seeds = seeds(20);
    let count = seeds.end - seeds.start;
    let nodes = from_environment("SIM_NODES").unwrap_or(100) as usize;
    let threads = from_environment("SIM_THREADS").unwrap_or(2);
    let began = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let outcome = Mutex::new(Outcome::default());
    let play = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= seeds.end {
            return;
        }
        let played = run(Scenario::mixed(seed, nodes));
        let mut outcome = outcome.lock().expect("nobody panics with it");
        outcome.played += 1;
        match played {
            Ok(report) => {
                if count == 1 {
                    println!("{:?}\n{report}", Scenario::mixed(seed, nodes));
                }
                outcome.events += report.events;
                outcome.slowest = outcome.slowest.max((report.converged_after, seed));
            }
            Err(failure) => {
                println!("{failure}");
                outcome.failed.insert(seed);
            }
        }
        if outcome.played % 100 == 0 {
            let (played, failed) = (outcome.played, &outcome.failed);
            println!("{played} seeds in {:.0?}, failed: {failed:?}", began.elapsed());
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(play);
        }
    });
    let Outcome { events, slowest, failed, .. } = outcome.into_inner().expect("nobody panicked");
    let spent = began.elapsed();
    println!("{count} seeds of {nodes} nodes, {events} events in {spent:.1?}, slowest {slowest:?}");
    assert!(failed.is_empty(), "seeds that failed: {failed:?}");
}

#[test]
fn the_mixture_has_trouble_of_every_kind_and_seldom_all_at_once() {
    let kinds = |seed| {
        let faults = Scenario::mixed(seed, 20).faults;
        let name = |fault: String| fault.split('(').next().unwrap_or_default().to_owned();
        faults.iter().map(|(_, fault)| name(format!("{fault:?}"))).collect::<BTreeSet<String>>()
    };
    let all: BTreeSet<String> = (0..100).flat_map(kinds).collect();
    let drawn = [
        "Clog",
        "ClockJumps",
        "Crash",
        "Cut",
        "Deafen",
        "DiskFails",
        "DiskFills",
        "DiskSlows",
        "DiskWorks",
        "Freeze",
        "Heal",
        "Image",
        "Partition",
        "Restart",
        "Restore",
        "RollBack",
        "SchemaGrows",
        "Thaw",
        "Unclog",
        "Wipe",
    ];
    assert_eq!(all, drawn.iter().map(|name| (*name).to_owned()).collect());
    let with_most = (0..100).filter(|seed| kinds(*seed).len() > all.len() * 3 / 4).count();
    assert!(with_most < 20, "{with_most} of 100 seeds have nearly all kinds");
    assert!((0..100).filter(|seed| kinds(*seed).contains("Crash")).count() < 90);
}
