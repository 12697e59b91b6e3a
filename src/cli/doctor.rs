//! `tribune doctor`: what is wrong with a node's database, and what to do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value as Json, json};

use super::progress::{Line, bytes};
use super::{Failure, say, table};
use crate::app::own_certificate;
use crate::config::{Place, PlaceFlags};
use crate::net::tls::validity_in;
use crate::store::copy::Watch;
use crate::store::doctor::{
    Comparison, Diagnosis, DoctorError, Finding, Request, Subject, Weight, examine,
};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: PlaceFlags,
    /// Look at a backup instead of a node's database
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Hold SQLite's indexes against their tables, too; it takes longer
    #[arg(long)]
    full: bool,
    /// Compare with a backup of another node of the cluster: what each of the two lacks, and which
    /// rows differ although both hold all that was written to them
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

impl From<DoctorError> for Failure {
    fn from(error: DoctorError) -> Self {
        Self::Usage(error.to_string())
    }
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let (subject, certificate) = match args.file {
        Some(file) => (Subject::File(file), None),
        None => {
            let Place { data_dir, cert, .. } = Place::from_flags(args.place)?;
            let own = Some(own_certificate(&data_dir)).filter(|own| own.exists());
            (Subject::DataDir(data_dir), cert.or(own))
        }
    };
    let certificate = certificate.map(|file| Certificate::look(file, SystemTime::now()));
    let request = Request { subject, full: args.full, compare: args.compare };
    let diagnosis = {
        let mut line = Line::new();
        let progress = &mut |progress| line.draw(progress);
        // It only reads, so a signal may end it anywhere.
        examine(&request, &mut Watch { progress, is_cancelled: Arc::default() })?
    };
    say(&if args.json {
        let mut told = told(&diagnosis);
        told["certificate"] = certificate.as_ref().map_or(Json::Null, Certificate::told);
        format!("{told:#}")
    } else {
        let certificate = certificate.as_ref().and_then(Certificate::shown);
        [Some(shown(&diagnosis)), certificate]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("\n\n")
    })?;
    let count = diagnosis.findings.iter().filter(|finding| is_problem(finding)).count()
        + usize::from(certificate.is_some_and(|certificate| certificate.is_problem));
    match count {
        0 => Ok(()),
        1 => Err(Failure::Failed("1 thing is wrong".to_owned())),
        _ => Err(Failure::Failed(format!("{count} things are wrong"))),
    }
}

/// This node's certificate, as far as it concerns how long it counts.
struct Certificate {
    file: PathBuf,
    left: Option<Duration>,
    /// What to do something about.
    note: Option<String>,
    is_problem: bool,
}

impl Certificate {
    fn look(file: PathBuf, now: SystemTime) -> Self {
        match validity_in(&file) {
            Ok(validity) => {
                let (left, note) = (validity.left(now), validity.note(now));
                // A week is time enough to be told as a note.
                let is_problem = validity.urgency(now) > 1;
                let note = note.map(|note| format!("{}: {note}", file.display()));
                Self { file, left, note, is_problem }
            }
            Err(error) => {
                Self { file, left: None, note: Some(error.to_string()), is_problem: true }
            }
        }
    }

    fn shown(&self) -> Option<String> {
        let sign = if self.is_problem { "PROBLEM" } else { "note" };
        self.note.as_ref().map(|note| {
            format!(
                "{sign}: {note}.\n  Make a new one with `tribune tls node NAME --id ID`, put it in \
                 its place and send the agent a SIGHUP."
            )
        })
    }

    fn told(&self) -> Json {
        json!({
            "file": self.file,
            "seconds_left": self.left.map(|left| left.as_secs()),
            "severity": match (&self.note, self.is_problem) {
                (None, _) => Json::Null,
                (Some(_), true) => "problem".into(),
                (Some(_), false) => "note".into(),
            },
            "what": self.note,
        })
    }
}

fn is_problem(finding: &Finding) -> bool {
    finding.kind.weight() == Weight::Problem
}

fn shown(diagnosis: &Diagnosis) -> String {
    let mut parts = vec![summary(diagnosis)];
    if !diagnosis.tables.is_empty() {
        let rows: Vec<Vec<String>> = diagnosis
            .tables
            .iter()
            .map(|table| {
                let fingerprint = format!("{:016x}", table.fingerprint);
                vec![
                    shown_name(&table.name),
                    table.live.to_string(),
                    table.dead.to_string(),
                    fingerprint,
                ]
            })
            .collect();
        parts.push(table::layout(&["TABLE", "ROWS", "DELETED", "FINGERPRINT"], &rows));
    }
    if let Some(comparison) = &diagnosis.comparison {
        parts.push(compared(comparison));
    }
    for finding in &diagnosis.findings {
        parts.push(explained(finding));
    }
    if diagnosis.is_healthy() {
        parts.push("Healthy.".to_owned());
    }
    parts.join("\n\n")
}

/// Shows a table's name: one that was used again after a drop travels with its number after a NUL.
fn shown_name(table: &str) -> String {
    table.replace('\0', "#")
}

fn summary(diagnosis: &Diagnosis) -> String {
    let mut text = diagnosis.database.display().to_string();
    if let Some(identity) = &diagnosis.identity {
        let (name, origin) = (&identity.name, identity.origin());
        text.push_str(&format!("\n  node {name}, origin {origin}"));
        if let Some(cluster) = identity.cluster {
            text.push_str(&format!(", cluster {cluster}"));
        }
    }
    text.push_str(&format!(
        "\n  {}, log {}",
        bytes(diagnosis.database_bytes),
        bytes(diagnosis.wal_bytes)
    ));
    if let Some(free) = diagnosis.free_bytes {
        text.push_str(&format!(", {} free on the disk", bytes(free)));
    }
    text.push_str(&format!("\n  SQLite {}", diagnosis.sqlite));
    if let Some(version) = diagnosis.version {
        text.push_str(&format!(", tables of version {version}"));
    }
    if !diagnosis.tables.is_empty() {
        let fingerprint = diagnosis.fingerprint();
        text.push_str(&format!(
            "\n  origins of which writes are held: {}; fingerprint {fingerprint:016x}",
            diagnosis.heads.len()
        ));
    }
    text
}

fn explained(finding: &Finding) -> String {
    let sign = if is_problem(finding) { "PROBLEM" } else { "note" };
    let mut text = format!("{sign}: {}.", finding.what());
    for example in &finding.examples {
        // Keys are what anybody wrote.
        let example: String =
            example.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        text.push_str(&format!("\n    {example}"));
    }
    let shown = u64::try_from(finding.examples.len()).unwrap_or(u64::MAX);
    if shown > 1 && finding.table.is_some() && finding.count > shown {
        text.push_str("\n    ...");
    }
    text.push_str(&format!("\n  {}.", finding.kind.advice()));
    text
}

fn compared(comparison: &Comparison) -> String {
    let Comparison { file, identity, heads, tables } = comparison;
    let mut text = format!(
        "Compared with {} (node {}, origin {})",
        file.display(),
        identity.name,
        identity.origin()
    );
    if heads.is_empty() {
        text.push_str("\n  both hold the same writes");
    }
    let mut parts = vec![text];
    if !heads.is_empty() {
        let rows: Vec<Vec<String>> = heads
            .iter()
            .map(|head| {
                vec![head.origin.to_string(), head.here.0.to_string(), head.there.0.to_string()]
            })
            .collect();
        parts.push(table::layout(&["ORIGIN", "HELD HERE", "HELD THERE"], &rows));
    }
    if !tables.is_empty() {
        let rows: Vec<Vec<String>> = tables
            .iter()
            .map(|table| {
                vec![
                    shown_name(&table.table),
                    table.behind.to_string(),
                    table.differing.to_string(),
                    table.only_here.to_string(),
                    table.only_there.to_string(),
                ]
            })
            .collect();
        let heads = ["TABLE", "ONE IS BEHIND", "DIFFERING", "ONLY HERE", "ONLY THERE"];
        parts.push(table::layout(&heads, &rows));
    }
    parts.join("\n")
}

fn told(diagnosis: &Diagnosis) -> Json {
    let identity = diagnosis.identity.as_ref();
    json!({
        "healthy": diagnosis.is_healthy(),
        "database": diagnosis.database,
        "node": identity.map(|identity| &identity.name),
        "node_id": identity.map(|identity| identity.node.to_string()),
        "origin": identity.map(|identity| identity.origin().to_string()),
        "cluster": identity.and_then(|identity| identity.cluster).map(|id| id.to_string()),
        "sqlite": diagnosis.sqlite,
        "version": diagnosis.version,
        "database_bytes": diagnosis.database_bytes,
        "wal_bytes": diagnosis.wal_bytes,
        "free_bytes": diagnosis.free_bytes,
        "fingerprint": format!("{:016x}", diagnosis.fingerprint()),
        "heads": diagnosis.heads.iter().map(|(origin, head)| {
            json!({ "origin": origin.to_string(), "head": head.0 })
        }).collect::<Vec<_>>(),
        "tables": diagnosis.tables.iter().map(|table| json!({
            "name": shown_name(&table.name), "rows": table.live, "deleted": table.dead,
            "fingerprint": format!("{:016x}", table.fingerprint),
        })).collect::<Vec<_>>(),
        "findings": diagnosis.findings.iter().map(|finding| json!({
            "code": finding.kind.code(),
            "severity": if is_problem(finding) { "problem" } else { "note" },
            "table": finding.table.as_deref().map(shown_name), "count": finding.count,
            "what": finding.what(), "advice": finding.kind.advice(), "examples": finding.examples,
        })).collect::<Vec<_>>(),
        "comparison": diagnosis.comparison.as_ref().map(told_comparison),
    })
}

fn told_comparison(comparison: &Comparison) -> Json {
    json!({
        "file": comparison.file,
        "node": comparison.identity.name,
        "node_id": comparison.identity.node.to_string(),
        "heads": comparison.heads.iter().map(|head| json!({
            "origin": head.origin.to_string(), "here": head.here.0, "there": head.there.0,
        })).collect::<Vec<_>>(),
        "tables": comparison.tables.iter().map(|table| json!({
            "name": shown_name(&table.table), "behind": table.behind, "differing": table.differing,
            "only_here": table.only_here, "only_there": table.only_there,
            "fingerprint_here": format!("{:016x}", table.fingerprint_here),
            "fingerprint_there": format!("{:016x}", table.fingerprint_there),
            "ranges": table.ranges.iter().map(|range| json!({
                "first": range.first, "last": range.last, "rows": range.rows,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}
