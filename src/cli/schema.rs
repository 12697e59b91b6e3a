//! `tribune schema`: the tables of the whole cluster, changed and shown through one node.

use std::path::PathBuf;

use serde_json::{Value as Json, json};

use super::client::{list, parsed, text};
use super::{Client, Failure, Remote, say};
use crate::store::schema::read_sources;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Make the tables, columns and indexes of SQL files on every node
    Apply(ApplyArgs),
    /// Tell what `apply --allow-drop` would do
    Diff(DiffArgs),
    /// Print the tables, or one of them, as SQL
    Show(ShowArgs),
}

#[derive(clap::Args)]
pub(super) struct ApplyArgs {
    /// SQL files, and directories of *.sql files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Drop the columns that the files' tables lack, and what DROP TABLE names, with their values
    #[arg(long)]
    allow_drop: bool,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    remote: Remote,
}

#[derive(clap::Args)]
pub(super) struct DiffArgs {
    /// SQL files, and directories of *.sql files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(clap::Args)]
pub(super) struct ShowArgs {
    /// The table [default: all]
    table: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Apply(args) => {
            change(&args.paths, args.allow_drop, args.dry_run, &args.remote).await
        }
        Command::Diff(args) => change(&args.paths, true, true, &args.remote).await,
        Command::Show(args) => show(args).await,
    }
}

async fn change(
    paths: &[PathBuf],
    allow_drop: bool,
    dry_run: bool,
    remote: &Remote,
) -> Result<(), Failure> {
    let sources = read_sources(paths).map_err(|error| Failure::Usage(error.to_string()))?;
    if sources.is_empty() {
        return Err(Failure::Usage("there is no .sql file in these directories".to_owned()));
    }
    let sources: Vec<Json> =
        sources.iter().map(|source| json!({ "file": source.file, "sql": source.sql })).collect();
    let body = json!({ "sources": sources, "allow_drop": allow_drop, "dry_run": dry_run });
    let client = Client::new(remote)?;
    let response = client.post("/v1/schema", &body).await?;
    let is_done = response.status().is_success();
    let body = client.body(response).await?;
    let answer = parsed(&body, &body)?;
    if !is_done {
        return Err(Failure::Failed(text(&answer, "/error").to_owned()));
    }
    if remote.json {
        return say(&format!("{answer:#}"));
    }
    let lines = lines_of(&answer);
    if lines.is_empty() {
        return say("nothing to change");
    }
    lines.iter().try_for_each(|line| say(line))
}

/// Lists what was done, a line each.
fn lines_of(change: &Json) -> Vec<String> {
    let mut lines = Vec::new();
    for (sign, field, what) in [
        ("+", "tables_added", "table"),
        ("+", "columns_added", "column"),
        ("+", "indexes_added", "index"),
        ("-", "tables_dropped", "table"),
        ("-", "columns_dropped", "column"),
        ("-", "indexes_dropped", "index"),
    ] {
        for one in change.get(field).map_or(&[][..], list) {
            let name = match one.as_str() {
                Some(name) => name.to_owned(),
                None => format!("{}.{}", text(one, "/table"), text(one, "/column")),
            };
            lines.push(format!("{sign} {what} {name}"));
        }
    }
    lines
}

async fn show(args: ShowArgs) -> Result<(), Failure> {
    let answer = Client::new(&args.remote)?.get("/v1/schema").await?;
    let mut tables: Vec<&Json> = answer.get("tables").map_or(&[][..], list).iter().collect();
    if let Some(name) = &args.table {
        tables.retain(|table| text(table, "/name") == name);
        if tables.is_empty() {
            return Err(Failure::Failed(format!("there is no table {name}")));
        }
    }
    let asides = answer.get("aside").map_or(&[][..], list);
    if args.remote.json {
        return say(&format!("{:#}", json!({ "tables": tables, "aside": asides })));
    }
    for table in tables {
        let note = if table["fixed"] == true { " -- every node has it" } else { "" };
        say(&format!("{};{note}", text(table, "/sql")))?;
        for index in table.get("indexes").map_or(&[][..], list) {
            say(&format!("{};", text(index, "/sql")))?;
        }
    }
    for aside in asides {
        let [kind, table, name, reason] =
            ["/kind", "/table", "/name", "/reason"].map(|pointer| text(aside, pointer));
        say(&format!("-- not carried out here: {kind} {table} {name}: {reason}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_line_by_line() {
        let change = json!({
            "tables_added": ["t"], "columns_added": [{ "table": "u", "column": "v" }],
            "indexes_added": [], "tables_dropped": [], "columns_dropped": [],
            "indexes_dropped": ["i"],
        });
        assert_eq!(lines_of(&change), ["+ table t", "+ column u.v", "- index i"]);
    }
}
