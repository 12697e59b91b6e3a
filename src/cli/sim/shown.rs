//! What a run came to, for people and for programs.

use serde_json::{Map, Value as Json, json};

use super::{Membership, Run, RunArgs, Storage};
use crate::cli::progress::bytes;
use crate::sim::Progress;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) fn progress(place: &str, progress: Progress, memory: u64) -> String {
    let seconds = progress.now.0 / 1_000_000;
    let until = progress.quiet_from.0 / 1_000_000;
    let what = match seconds < until {
        true => format!("{seconds} of {until} s"),
        false => format!("{seconds} s, coming to rest"),
    };
    format!("{place}: {what}, {} events, {}", progress.events, bytes(memory))
}

pub(super) fn shown(args: &RunArgs, run: &Run) -> String {
    let took =
        format!("  took              {:>8.1} s, {}", run.took.as_secs_f64(), bytes(run.memory));
    match &run.outcome {
        Ok(report) => format!("{report}\n{took}"),
        Err(failure) => {
            let mut text = failure.trail.join("\n");
            let at = failure.at.0 as f64 / 1e6;
            text += &format!("\n\nAfter {at:.6} s: {}\n", failure.what);
            text += &format!(
                "\nseed {}, tribune {VERSION}, trace {:016x}",
                run.seed, failure.trace_hash
            );
            text + &format!("\nTo see it again: {}", replay(args, run))
        }
    }
}

/// Returns the command that plays the run once more.
fn replay(args: &RunArgs, run: &Run) -> String {
    let mut words = vec![format!("tribune sim run {} --seed {}", args.name, run.seed)];
    words.extend(run.nodes.map(|nodes| format!("--nodes {nodes}")));
    words.extend(args.membership.map(|membership| match membership {
        Membership::Foca => "--membership foca".to_owned(),
        Membership::Oracle => "--membership oracle".to_owned(),
    }));
    words.extend(args.acquaintances.map(|count| format!("--acquaintances {count}")));
    words.extend(match args.storage {
        Storage::Memory => None,
        Storage::Sqlite => Some("--storage sqlite".to_owned()),
        Storage::Files => Some("--storage files".to_owned()),
        Storage::Both => Some("--storage both".to_owned()),
    });
    words.extend(args.loss.map(|loss| format!("--loss {loss}")));
    words.extend(args.writes.map(|writes| format!("--writes {writes}")));
    words.extend(args.minutes.map(|minutes| format!("--minutes {minutes}")));
    words.join(" ")
}

pub(super) fn told(args: &RunArgs, run: &Run) -> Json {
    let mut told = json!({
        "scenario": args.name,
        "seed": run.seed,
        "version": VERSION,
        "took_s": run.took.as_secs_f64(),
        "memory_bytes": run.memory,
        "replay": replay(args, run),
    });
    let more = match &run.outcome {
        Ok(report) => {
            let figures = report.figures().into_iter().map(|figure| {
                let name = match figure.unit {
                    "" => figure.name.to_owned(),
                    unit => format!("{} ({unit})", figure.name),
                };
                (name, json!(figure.value))
            });
            json!({
                "ok": true,
                "nodes": report.nodes,
                "trace": format!("{:016x}", report.trace_hash),
                "figures": figures.collect::<Map<_, _>>(),
            })
        }
        Err(failure) => json!({
            "ok": false,
            "nodes": run.nodes,
            "trace": format!("{:016x}", failure.trace_hash),
            "after_s": failure.at.0 as f64 / 1e6,
            "what": failure.what,
            "events": failure.trail,
        }),
    };
    if let (Some(told), Json::Object(more)) = (told.as_object_mut(), more) {
        told.extend(more);
    }
    told
}
