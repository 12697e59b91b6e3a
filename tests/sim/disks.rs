//! The same scenarios on SQLite: in memory, in files whose processes are killed in the midst of a
//! write, and beside the model in memory, which must answer the same.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tribune::sim::{InMemory, Media, Membership, Report, Scenario, SideBySide, run_on};
use tribune::store::disks::{SqliteInFiles, SqliteInMemory};

use crate::{from_environment, seeds};

fn must_on(media: &mut dyn Media, scenario: Scenario) -> Report {
    run_on(scenario, media, &mut |_| ControlFlow::Continue(()))
        .unwrap_or_else(|failure| panic!("{failure}"))
}

/// A directory where files are quick to sync, if there is such a place.
fn directory() -> TempDir {
    let quick = Path::new("/dev/shm");
    let made = if quick.is_dir() { tempfile::tempdir_in(quick) } else { tempfile::tempdir() };
    made.expect("a directory for files")
}

#[test]
fn sqlite_and_the_model_do_the_same_whatever_is_drawn() {
    for seed in seeds(25) {
        let mut both = SideBySide(InMemory, SqliteInMemory);
        must_on(&mut both, Scenario::drawn(seed));
    }
}

#[test]
fn sqlite_and_the_model_do_the_same_while_rows_come_and_go() {
    for seed in seeds(10) {
        let mut both = SideBySide(InMemory, SqliteInMemory);
        must_on(&mut both, Scenario::churn(seed));
    }
}

#[test]
fn processes_that_are_killed_in_the_midst_of_a_write_lose_nothing() {
    for seed in seeds(25) {
        let directory = directory();
        must_on(&mut SqliteInFiles::within(directory.path()), Scenario::drawn(seed));
    }
}

#[test]
fn two_hundred_nodes_with_membership_and_databases_of_their_own_come_to_hold_the_same() {
    let nodes = from_environment("SIM_NODES").unwrap_or(200) as usize;
    let mut scenario = Scenario::large(7, nodes).with(Membership::foca(Duration::from_secs(5)));
    scenario.writes = from_environment("SIM_WRITES").unwrap_or(40) as usize;
    let report = must_on(&mut SqliteInMemory, scenario);
    println!("{report}");
    assert_eq!(report.members.wrong, 0, "{report}");
}

#[test]
fn a_run_is_the_same_to_the_byte_wherever_rows_are_kept() {
    let scenario = || Scenario::drawn(11).with(Membership::foca(Duration::ZERO));
    let play = || {
        let directory = directory();
        must_on(&mut SqliteInFiles::within(directory.path()), scenario())
    };
    let in_files = play();
    assert_eq!(in_files, play());
    assert_eq!(must_on(&mut SqliteInMemory, scenario()), must_on(&mut SqliteInMemory, scenario()));
}
