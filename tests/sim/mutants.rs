//! Tests of the tests: each mistake is noticed by the checker of the promise that it breaks, and the
//! same seeds pass without it.

use tribune::sim::{Mutation, NodeIndex, Scenario, run};

/// Looks for a seed in which the mistake is noticed by a checker of one of these promises, and says
/// what was noticed.
fn noticed(
    mistake: Mutation,
    promises: &[&str],
    scenario: fn(u64) -> Scenario,
    seeds: u64,
) -> String {
    let mut words = String::new();
    for seed in 0..seeds {
        let wrong = Scenario { mutation: Some(mistake), ..scenario(seed) };
        let noticed = run(wrong).err();
        if let Err(failure) = run(scenario(seed)) {
            panic!("seed {seed} fails without the mistake: {failure}");
        }
        let Some(failure) = noticed else { continue };
        let what = failure.what.lines().next().unwrap_or_default().to_owned();
        if promises.iter().any(|promise| what.starts_with(&format!("{promise}: "))) {
            return format!("{words}{mistake:?}: seed {seed}: {what}");
        }
        words += &format!("{mistake:?}: seed {seed} by another one: {what}\n");
    }
    panic!("{words}{mistake:?} was not noticed by {promises:?} in {seeds} seeds");
}

/// A small cluster in which something is always under way.
fn busy(seed: u64) -> Scenario {
    Scenario { writes: 200, ..Scenario::drawn(seed) }
}

#[test]
fn a_commit_that_is_told_before_it_is_synced() {
    println!("{}", noticed(Mutation::SendBeforeSync, &["P1"], busy, 20));
}

#[test]
fn a_version_that_is_used_again_after_a_restore() {
    println!("{}", noticed(Mutation::VersionReused, &["P2"], Scenario::drawn, 40));
}

#[test]
fn a_tie_that_each_node_decides_for_itself() {
    println!("{}", noticed(Mutation::TieKeepsLocal, &["P5"], Scenario::drawn, 20));
}

#[test]
fn versions_that_are_applied_out_of_order() {
    println!("{}", noticed(Mutation::AppliedOutOfOrder, &["P4", "P5"], Scenario::drawn, 20));
}

#[test]
fn heads_that_are_on_disk_before_the_rows() {
    println!("{}", noticed(Mutation::HeadBeforeData, &["P4", "P5"], busy, 60));
}

#[test]
fn tombstones_that_go_too_early() {
    println!("{}", noticed(Mutation::TombstonesGoEarly, &["P25", "P5"], Scenario::churn, 20));
}

#[test]
fn deleted_rows_that_stay_with_a_node_that_was_away() {
    println!("{}", noticed(Mutation::TheDeletedStay, &["P25", "P5"], Scenario::churn, 20));
}

#[test]
fn cells_that_outlive_their_row() {
    println!("{}", noticed(Mutation::CellsNotReset, &["P5"], busy, 20));
}

#[test]
fn rows_that_are_taken_from_a_foreign_owner() {
    let forged = |seed| Scenario { forger: Some(NodeIndex(1)), ..Scenario::drawn(seed) };
    println!("{}", noticed(Mutation::ForeignOwnerAccepted, &["P3", "P4", "P5"], forged, 20));
}

#[test]
fn a_buffer_without_a_limit() {
    println!("{}", noticed(Mutation::UnlimitedBuffer, &["P10"], Scenario::drawn, 100));
}

#[test]
fn retries_without_a_budget() {
    println!("{}", noticed(Mutation::RetryWithoutBudget, &["P9"], Scenario::drawn, 20));
}
