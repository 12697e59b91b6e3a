//! `tribune members`: who is in the cluster, as this node sees it.

use serde_json::Value as Json;

use super::client::{list, text};
use super::{Client, Failure, Remote, say, table};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let members = Client::new(&args.remote)?.get("/v1/members").await?;
    if args.remote.json {
        return say(&format!("{members:#}"));
    }
    let rows: Vec<Vec<String>> = list(&members)
        .iter()
        .map(|member| {
            let round_trip = member.pointer("/round_trip_ms").and_then(Json::as_f64);
            let behind = member.pointer("/versions_behind").and_then(Json::as_u64);
            vec![
                text(member, "/name").to_owned(),
                text(member, "/address").to_owned(),
                text(member, "/state").to_owned(),
                round_trip.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms")),
                behind.map_or_else(|| "-".to_owned(), |count| count.to_string()),
                text(member, "/version").to_owned(),
                text(member, "/id").to_owned(),
            ]
        })
        .collect();
    let heads = ["NAME", "ADDRESS", "STATE", "RTT", "BEHIND", "VERSION", "ID"];
    let mut text = table::layout(&heads, &rows);
    let notes: Vec<String> = list(&members).iter().flat_map(notes_of).collect();
    if !notes.is_empty() {
        text.push_str(&format!("\n\n{}", notes.join("\n")));
    }
    say(&text)
}

/// Says what somebody should do something about, a line each.
fn notes_of(member: &Json) -> Vec<String> {
    let notes = member.pointer("/notes").map_or(&[][..], list);
    let name = match text(member, "/name") {
        "" => text(member, "/id"),
        name => name,
    };
    let shown = |note: &str| {
        // Another node's name or release may be in it.
        let note: String = note.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        format!("{name}: {note}")
    };
    notes.iter().filter_map(Json::as_str).map(shown).collect()
}
