//! `tribune members`: who is in the cluster, as this node sees it.

use super::client::{list, text};
use super::{Client, Failure, Remote, say, table};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = Client::new(&args.remote)?;
    let members = client.get("/v1/members").await?;
    if args.remote.json {
        return say(&format!("{members:#}"));
    }
    let rows: Vec<Vec<String>> = list(&members)
        .iter()
        .map(|member| {
            let round_trip = member.pointer("/round_trip_ms").and_then(serde_json::Value::as_f64);
            let behind = member.pointer("/versions_behind").and_then(serde_json::Value::as_u64);
            vec![
                text(member, "/name").to_owned(),
                text(member, "/address").to_owned(),
                text(member, "/state").to_owned(),
                round_trip.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms")),
                behind.map_or_else(|| "-".to_owned(), |count| count.to_string()),
                rows_of(member).to_owned(),
                text(member, "/version").to_owned(),
                text(member, "/id").to_owned(),
            ]
        })
        .collect();
    let heads = ["NAME", "ADDRESS", "STATE", "RTT", "BEHIND", "ROWS", "VERSION", "ID"];
    say(&table::layout(&heads, &rows))?;
    let standing = client.get_whatever("/v1/status/ready").await?;
    let reasons = standing.get("reasons").map_or(&[][..], list);
    reasons.iter().try_for_each(|reason| say(&format!("NOT READY: {}", text(reason, "/text"))))
}

/// Says whether a member that holds the same has the same rows.
fn rows_of(member: &serde_json::Value) -> &'static str {
    match member.pointer("/diverged").and_then(serde_json::Value::as_bool) {
        Some(true) => "DIFFER",
        Some(false) => "ok",
        None => "-",
    }
}
