//! Clusters in virtual time: fixed seeds in seconds, more on request.
//!
//! `SIM_SEED=7 cargo test --test sim` plays one seed of the drawn scenarios, with `SIM_SEEDS=5000`
//! so many from there on; `SIM_NODES=1000` plays the large one with so many nodes. `mixed` plays the
//! mixture of all trouble, `mutants` has mistakes made and noticed, `members` and `disks` have SWIM and
//! SQLite in the places of an oracle and a model.

use std::time::Duration;

mod disks;
mod members;
mod mixed;
mod mutants;

use tribune::sim::{Fault, NodeIndex, Report, Scenario, run};
use tribune::types::Time;

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not '{text}'")))
}

/// The seeds to play: so many unless the environment says otherwise.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let first = from_environment("SIM_SEED");
    let count = from_environment("SIM_SEEDS").unwrap_or(if first.is_some() { 1 } else { count });
    let first = first.unwrap_or(0);
    first..first + count
}

fn must(scenario: Scenario) -> Report {
    run(scenario).unwrap_or_else(|failure| panic!("{failure}"))
}

#[test]
fn small_clusters_survive_whatever_is_drawn_for_them() {
    let is_asked = from_environment("SIM_SEED").is_some();
    for seed in seeds(200) {
        let report = must(Scenario::drawn(seed));
        if is_asked {
            println!("{:?}\n{report}", Scenario::drawn(seed));
        }
    }
}

#[test]
fn what_was_deleted_stays_deleted_though_its_tombstones_go() {
    let is_asked = from_environment("SIM_SEED").is_some();
    let seeds = seeds(60);
    let count = seeds.end - seeds.start;
    let (mut rejoins, mut dropped) = (0, 0);
    for seed in seeds {
        let mut scenario = Scenario::churn(seed);
        if let Some(within) = from_environment("SIM_WITHIN") {
            scenario.converge_within = Duration::from_millis(within);
        }
        let report = must(scenario);
        if is_asked && count == 1 {
            println!("{:?}\n{report}", Scenario::churn(seed));
        }
        rejoins += report.rejoins;
        dropped += report.tombstones_dropped;
    }
    println!("{count} seeds: {dropped} tombstones dropped, {rejoins} rejoined");
}

#[test]
fn what_went_wrong_once_does_not_go_wrong_again() {
    // Guests before they were any, own versions in parts that were not told whole, nodes that waited
    // for each other, cells that were deleted with their row and came back without it.
    for seed in [554, 600, 946, 1360, 2128, 2169, 2602, 2609, 4570, 4622, 4967, 1200, 1552, 2439] {
        must(Scenario::churn(seed));
    }
}

#[test]
fn a_pull_that_is_too_much_to_wait_for_comes_in_several() {
    let mut staged = 0;
    for seed in 0..30 {
        let mut scenario = Scenario::drawn(seed);
        scenario.replica.piece_bytes_max = 200;
        scenario.replica.staged_origin_bytes_max = 300;
        scenario.replica.stage_bytes_max = 1;
        scenario.replica.stored_origin_bytes_max = 1_000;
        scenario.converge_within = Duration::from_secs(1_200);
        // What has come by then is no prefix of what its owner wrote.
        scenario.is_thorough = false;
        staged += must(scenario).staged;
    }
    assert!(staged > 100, "{staged}");
}

#[test]
fn churn_leaves_no_more_tombstones_than_a_moment_makes() {
    let writes = from_environment("SIM_WRITES").unwrap_or(4_000) as usize;
    let mut scenario = Scenario::calm_churn(1, 4, writes);
    // Two hundred writes a second, however many there are.
    scenario.writes_until = Time(3_000_000 + writes as u64 * 5_000);
    let report = must(scenario);
    println!("{report}");
    assert!(report.deletes > writes / 10, "{report}");
    assert!(report.tombstones_max < 200, "{report}");
    assert_eq!(report.rejoins, 0);
}

#[test]
fn a_member_that_is_away_keeps_the_tombstones_until_it_returns_or_is_forgotten() {
    let (away, other) = (NodeIndex(2), NodeIndex(0));
    let at = |millis: u64| Time(millis * 1_000);
    // What is deleted while it is away, about one write in ten.
    let run = |faults: &[(Time, Fault)]| {
        let mut scenario = Scenario::calm_churn(2, 4, 2_000);
        scenario.replica.forget_after = Duration::from_secs(3_600);
        scenario.faults = faults.to_vec();
        must(scenario)
    };
    let stays = run(&[(at(5_000), Fault::Crash(away)), (at(22_000), Fault::Restart(away))]);
    assert!(stays.tombstones_max > 100, "{stays}");
    assert_eq!(stays.rejoins, 0, "{stays}");
    let forgotten = run(&[
        (at(5_000), Fault::Crash(away)),
        (at(6_000), Fault::Forget(other, away)),
        (at(22_000), Fault::Restart(away)),
    ]);
    assert!(forgotten.tombstones_max < stays.tombstones_max / 2, "{forgotten}");
    assert!(forgotten.rejoins > 0, "{forgotten}");
}

#[test]
fn a_hundred_nodes_come_to_hold_the_same() {
    let nodes = from_environment("SIM_NODES").unwrap_or(100) as usize;
    let seed = from_environment("SIM_SEED").unwrap_or(1);
    println!("{}", must(Scenario::large(seed, nodes)));
}

#[test]
fn the_same_seed_is_the_same_run() {
    let [first, second] = [must(Scenario::drawn(11)), must(Scenario::drawn(11))];
    assert_eq!(first, second);
    assert_ne!(first.trace_hash, must(Scenario::drawn(12)).trace_hash);
}

#[test]
fn on_a_good_network_a_commit_is_everywhere_within_a_blink_and_nothing_is_pulled() {
    let report = must(Scenario::calm(3, 20, 60));
    println!("{report}");
    assert_eq!(report.pulled, 0);
    assert!(report.latency[2] < Duration::from_millis(500), "{report}");
    assert!(report.copies < 6.0, "{report}");
}

#[test]
fn a_node_whose_disk_was_rolled_back_begins_a_new_epoch_before_it_writes() {
    let mut scenario = Scenario::calm(5, 5, 60);
    let node = NodeIndex(2);
    let at = |millis: u64| Time(millis * 1_000);
    scenario.faults = vec![
        (at(4_000), Fault::Image(node)),
        (at(6_000), Fault::Crash(node)),
        (at(6_200), Fault::RollBack(node)),
    ];
    must(scenario);
}

#[test]
fn a_damaged_row_is_found_named_and_mended() {
    for seed in seeds(6) {
        for (loses_row, is_kept) in [(false, false), (false, true), (true, false), (true, true)] {
            let nodes = 3 + seed as usize % 4;
            let mut scenario = Scenario::calm(seed, nodes, 60);
            let node = NodeIndex(seed as usize % nodes);
            let nth = seed as usize * 7;
            let damage = Fault::Damage { node, nth, loses_row, is_kept };
            scenario.faults = vec![(Time(12_000_000), damage)];
            let report = must(scenario);
            println!(
                "seed {seed}, row lost {loses_row}, fingerprint follows {is_kept}: mended {} in {:?}",
                report.mended, report.mended_after
            );
            assert!(report.mended >= 1, "{report}");
        }
    }
}

#[test]
fn nothing_is_kept_for_ever_of_lives_that_disks_have_lost() {
    let at = |millis: u64| Time(millis * 1_000);
    let (nodes, lives) = (5, from_environment("SIM_LIVES").unwrap_or(12));
    let mut scenario = Scenario::calm_churn(3, nodes, 100 * lives as usize);
    scenario.writes_until = at(20_000 + lives * 5_000);
    // The same rows over and over: nothing is left of what a former life wrote.
    scenario.is_churn = false;
    for life in 0..lives {
        let node = NodeIndex(life as usize % nodes);
        let begins_at = 4_000 + life * 5_000;
        scenario.faults.push((at(begins_at), Fault::Crash(node)));
        scenario.faults.push((at(begins_at + 200), Fault::Wipe(node)));
    }
    let report = must(scenario);
    println!("{report}");
    assert!(report.origins_erased >= lives, "{report}");
    // Those of the last few seconds are still on their way out.
    assert!(report.origins_held < nodes + 15, "{report}");
}
