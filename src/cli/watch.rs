//! `tribune watch NAME`: a table that redraws as a service's health changes.

use std::io::IsTerminal;
use std::time::Duration;

use super::services::{entries_path, instances};
use super::{Client, Failure, Remote, complain, say};

/// How long one blocking query is held; then it is asked again.
const HELD_FOR: Duration = Duration::from_secs(60);

/// How long to wait before a node that went away is asked again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(super) struct Args {
    /// The service to watch
    name: String,
    #[command(flatten)]
    remote: Remote,
}

/// Watches until interrupted. On a terminal the table is redrawn in place; elsewhere each state
/// follows the one before it, and `--json` makes each one line.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = Client::new(&args.remote)?;
    let path = entries_path(&args.name);
    let in_place = std::io::stdout().is_terminal() && !args.remote.json;
    let mut index = 0;
    let mut shown = None;
    loop {
        let answer = tokio::select! {
            answer = client.get_after(&path, index, HELD_FOR) => answer,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let entries = match answer {
            Ok((entries, now)) => {
                index = now;
                entries
            }
            // The first question fails: wrong address. A later one: the node restarts.
            Err(failure) if index == 0 => return Err(failure),
            Err(_) => {
                complain("the node went away; asking again");
                index = 0;
                tokio::select! {
                    () = wait_for_node(&client, &path) => continue,
                    _ = tokio::signal::ctrl_c() => return Ok(()),
                }
            }
        };
        let text = if args.remote.json {
            entries.to_string()
        } else if entries.as_array().is_some_and(Vec::is_empty) {
            format!("{}: no instances", args.name)
        } else {
            instances(&entries)
        };
        if shown.as_ref() != Some(&text) {
            // Home and clear to the end: a shorter table leaves no rest of the longer one.
            let head = if in_place { "\u{1b}[H\u{1b}[2J" } else { "" };
            say(&format!("{head}{text}"))?;
            shown = Some(text);
        }
    }
}

async fn wait_for_node(client: &Client, path: &str) {
    loop {
        tokio::time::sleep(RETRY_AFTER).await;
        if client.get(path).await.is_ok() {
            return;
        }
    }
}
