//! Membership by SWIM, as in production, through the simulated network.
//!
//! `SIM_NODES=1000` plays these with so many nodes, `SIM_MINUTES=1440` watches for so long: best with
//! `tribune sim run lossy --nodes 1000 --minutes 1440` of a release build.

use std::time::Duration;

use tribune::sim::library;
use tribune::sim::{Membership, Scenario};

use crate::{from_environment, must, seeds};

fn nodes() -> usize {
    from_environment("SIM_NODES").unwrap_or(60) as usize
}

/// For so long unless the environment says otherwise.
fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * from_environment("SIM_MINUTES").unwrap_or(count))
}

#[test]
fn nodes_that_start_at_once_know_each_other_within_half_a_minute() {
    let report = must(library::join(1, nodes()));
    println!("{report}");
    let whole = report.members.whole_after.expect("they found each other by SWIM");
    assert!(whole < Duration::from_secs(30), "{report}");
    assert_eq!(report.members.wrong, 0, "{report}");
}

#[test]
fn a_crash_is_known_everywhere_within_twenty_seconds() {
    let report = must(library::crash(2, nodes()));
    println!("{report}");
    assert!(report.members.downs > 9 * (nodes() - 12), "{report}");
    assert!(report.members.detected[1] < Duration::from_secs(20), "{report}");
    assert_eq!(report.members.wrong, 0, "{report}");
}

#[test]
fn five_of_a_hundred_datagrams_may_be_lost_and_nobody_is_taken_for_down() {
    println!("{}", must(library::lossy(3, nodes(), minutes(10))));
}

#[test]
fn who_stands_still_for_seconds_is_not_taken_for_down() {
    println!("{}", must(library::frozen(4, nodes(), minutes(5))));
}

#[test]
fn an_idle_node_sends_less_than_two_kilobytes_a_second() {
    let report = must(library::idle(5, nodes(), minutes(11)));
    println!("{report}");
    assert!(report.sends[0] < 2_000.0, "{report}");
}

#[test]
fn small_clusters_with_membership_of_their_own_survive_what_is_drawn_for_them() {
    for seed in seeds(40) {
        let foca = || Membership::foca(Duration::ZERO);
        must(Scenario::drawn(seed).with(foca()));
        must(Scenario::churn(seed).with(foca()));
    }
}
