//! `tribune sim`: clusters in virtual time. A run is a name and a seed; whoever has both has the run.

mod growth;
mod shown;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::progress::{Line, interruptible};
use super::{Failure, say, table};
use crate::sim::library::{self, Kind, LIBRARY, Named, Wanted};
use crate::sim::{InMemory, Media, Progress, SideBySide, run_on};
use crate::store::disks::{SqliteInFiles, SqliteInMemory};

/// Where files are quick to write and to sync, if there is such a place.
const QUICK_FILES: &str = "/dev/shm";

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the scenarios
    List {
        /// Print JSON for programs
        #[arg(long)]
        json: bool,
    },
    /// Play a scenario
    ///
    /// All nodes run in one thread and in virtual time: the production core, a network that loses,
    /// delays and cuts, disks that fail. After each step it is checked that nothing acknowledged is
    /// lost, that no transaction is seen in part, that equal heads mean equal rows, and more. A run
    /// that fails prints its last hundred events and the command that brings it back, to the byte.
    ///
    /// Exit codes: 0 all went well, 1 a run failed, 2 wrong usage.
    Run(Box<RunArgs>),
}

#[derive(Args, Clone)]
pub(super) struct RunArgs {
    /// The scenario: see `tribune sim list`
    name: String,
    /// The number that everything else follows from
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Play so many seeds, from the first on
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    seeds: u64,
    /// How many nodes there are. Several, with commas, show how each figure grows with them
    #[arg(long, value_name = "COUNT", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(2..=100_000))]
    nodes: Vec<u32>,
    /// How nodes learn of each other: SWIM as in production, or an oracle that costs nothing
    #[arg(long, value_enum)]
    membership: Option<Membership>,
    /// The others that the oracle tells a node of, at most. Where each of 10,000 knows each, that takes
    /// more memory than the rest
    #[arg(long, value_name = "COUNT")]
    acquaintances: Option<usize>,
    /// What nodes keep their rows on
    #[arg(long, value_enum, default_value_t = Storage::Memory)]
    storage: Storage,
    /// The share of messages and datagrams that are lost: 0.05 or 5%
    #[arg(long, value_name = "SHARE", value_parser = share)]
    loss: Option<f64>,
    /// How many transactions there are
    #[arg(long, value_name = "COUNT")]
    writes: Option<usize>,
    /// For how many simulated minutes the cluster is watched, in scenarios without an end of their own
    #[arg(long, value_name = "COUNT")]
    minutes: Option<u64>,
    /// Fail unless the run's trace is this one: it is another run otherwise
    #[arg(long, value_name = "HASH", value_parser = hash)]
    trace: Option<u64>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Membership {
    /// SWIM, through the simulated network
    Foca,
    /// Nodes are told of changes within two seconds
    Oracle,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Storage {
    /// The model in memory
    Memory,
    /// SQLite in memory, read back at each start
    Sqlite,
    /// SQLite in files: processes are killed in the midst of a write
    Files,
    /// The model and SQLite, told the same: they must answer the same
    Both,
}

fn share(text: &str) -> Result<f64, String> {
    let wrong = || format!("'{text}' is no share; write 0.05 or 5%");
    let (number, unit) = match text.strip_suffix('%') {
        Some(percent) => (percent, 100.0),
        None => (text, 1.0),
    };
    let share = number.trim().parse::<f64>().map_err(|_| wrong())? / unit;
    if (0.0..1.0).contains(&share) { Ok(share) } else { Err(wrong()) }
}

fn hash(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16)
        .map_err(|_| "a trace is a number of up to 16 hexadecimal digits".to_owned())
}

/// A run and what it came to.
struct Run {
    nodes: Option<u32>,
    seed: u64,
    /// How long it took, in real time.
    took: Duration,
    /// The most memory that the process had, in bytes.
    memory: u64,
    outcome: Result<crate::sim::Report, Box<crate::sim::Failure>>,
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::List { json } => list(json),
        Command::Run(args) => play(*args),
    }
}

fn list(as_json: bool) -> Result<(), Failure> {
    if as_json {
        let named = LIBRARY
            .iter()
            .map(|named| json!({ "name": named.name, "what": named.what, "nodes": named.nodes }));
        return say(&format!("{:#}", serde_json::Value::from_iter(named)));
    }
    let rows: Vec<Vec<String>> = LIBRARY
        .iter()
        .map(|named| {
            let nodes = named.nodes.map_or_else(|| "by lot".to_owned(), |nodes| nodes.to_string());
            vec![named.name.to_owned(), nodes, named.what.to_owned()]
        })
        .collect();
    say(&table::layout(&["NAME", "NODES", "WHAT HAPPENS"], &rows))
}

fn play(args: RunArgs) -> Result<(), Failure> {
    let Some(named) = library::find(&args.name) else {
        return Err(Failure::Usage(format!(
            "there is no scenario '{}'; `tribune sim list` shows those that there are",
            args.name
        )));
    };
    if named.nodes.is_none() && !args.nodes.is_empty() {
        return Err(Failure::Usage(format!(
            "how many nodes '{}' has is drawn from the seed; leave --nodes out",
            named.name
        )));
    }
    let given = args.clone();
    let runs = interruptible(move |watch| play_all(named, &given, &watch.is_cancelled))??;
    if args.json {
        let told = runs.iter().map(|run| shown::told(&args, run));
        say(&format!("{:#}", serde_json::Value::from_iter(told)))?;
    } else {
        for run in &runs {
            say(&shown::shown(&args, run))?;
        }
        if args.nodes.len() > 1 {
            say(&growth::shown(&runs))?;
        }
    }
    verdict(&args, &runs)
}

fn verdict(args: &RunArgs, runs: &[Run]) -> Result<(), Failure> {
    let failed = runs.iter().filter(|run| run.outcome.is_err()).count();
    if failed > 0 {
        return Err(Failure::Failed(format!("{failed} of {} runs failed", runs.len())));
    }
    let Some(wanted) = args.trace else { return Ok(()) };
    match runs.iter().find_map(|run| run.outcome.as_ref().ok().filter(|r| r.trace_hash != wanted)) {
        Some(other) => Err(Failure::Failed(format!(
            "the trace is {:016x}: another program, or other arguments",
            other.trace_hash
        ))),
        None => Ok(()),
    }
}

fn play_all(
    named: &'static Named,
    args: &RunArgs,
    is_cancelled: &Arc<AtomicBool>,
) -> Result<Vec<Run>, Failure> {
    let mut line = Line::new();
    let mut runs = Vec::new();
    let sizes: Vec<Option<u32>> = match args.nodes.is_empty() {
        true => vec![None],
        false => args.nodes.iter().copied().map(Some).collect(),
    };
    let all = sizes.len() as u64 * args.seeds;
    for nodes in sizes {
        for seed in args.seed..args.seed.saturating_add(args.seeds) {
            let place = format!("run {} of {all}", runs.len() + 1);
            let run = play_one(named, args, (nodes, seed), &mut |progress, memory| {
                line.show(|| shown::progress(&place, progress, memory));
                match is_cancelled.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })?;
            let is_over = run.outcome.is_err();
            runs.push(run);
            if is_over {
                return Ok(runs);
            }
        }
    }
    Ok(runs)
}

fn play_one(
    named: &Named,
    args: &RunArgs,
    (nodes, seed): (Option<u32>, u64),
    watch: &mut dyn FnMut(Progress, u64) -> ControlFlow<()>,
) -> Result<Run, Failure> {
    let scenario = named.make(&wanted(args, nodes, seed));
    let (mut media, _directory) = media(args.storage)?;
    let begun = Instant::now();
    let mut memory = resident();
    let outcome = run_on(scenario, &mut *media, &mut |progress| {
        memory = memory.max(resident());
        watch(progress, memory)
    });
    Ok(Run { nodes, seed, took: begun.elapsed(), memory, outcome })
}

fn wanted(args: &RunArgs, nodes: Option<u32>, seed: u64) -> Wanted {
    Wanted {
        seed,
        nodes: nodes.map(|nodes| nodes as usize),
        writes: args.writes,
        loss: args.loss,
        lasting: args.minutes.map(|minutes| Duration::from_secs(60 * minutes)),
        membership: args.membership.map(|membership| match membership {
            Membership::Foca => Kind::Foca,
            Membership::Oracle => Kind::Oracle,
        }),
        acquaintances: args.acquaintances,
    }
}

/// A directory that goes with its end.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn media(storage: Storage) -> Result<(Box<dyn Media>, Option<Directory>), Failure> {
    Ok(match storage {
        Storage::Memory => (Box::new(InMemory), None),
        Storage::Sqlite => (Box::new(SqliteInMemory), None),
        Storage::Both => (Box::new(SideBySide(InMemory, SqliteInMemory)), None),
        Storage::Files => {
            let quick = PathBuf::from(QUICK_FILES);
            let place = if quick.is_dir() { quick } else { std::env::temp_dir() };
            let path = place.join(format!("tribune-sim-{}", uuid::Uuid::new_v4()));
            std::fs::create_dir(&path)
                .map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))?;
            let directory = Directory(path);
            (Box::new(SqliteInFiles::within(&directory.0)), Some(directory))
        }
    })
}

/// Returns how much memory the process has at present, in bytes; 0: the system does not say.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_number_or_a_percentage() {
        assert_eq!(share("0.05"), Ok(0.05));
        assert_eq!(share("5%"), Ok(0.05));
        assert_eq!(share("0"), Ok(0.0));
        for wrong in ["5", "100%", "-1%", "x", ""] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_scenario_can_be_made_with_either_membership() {
        for named in LIBRARY {
            for membership in [None, Some(Kind::Foca), Some(Kind::Oracle)] {
                let wanted = Wanted { membership, ..Wanted::default() };
                let scenario = named.make(&wanted);
                assert!(scenario.nodes > 2, "{}", named.name);
                assert!(scenario.writes_from <= scenario.writes_until, "{}", named.name);
                let is_by_swim = scenario.membership.joining().is_some();
                assert!(membership.is_none() || is_by_swim == (membership == Some(Kind::Foca)));
            }
        }
    }
}
