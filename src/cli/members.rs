//! `tribune members`: who is in the cluster, as this node sees it.

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
            let round_trip = member.pointer("/round_trip_ms").and_then(serde_json::Value::as_f64);
            let behind = member.pointer("/versions_behind").and_then(serde_json::Value::as_u64);
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
    say(&table::layout(&["NAME", "ADDRESS", "STATE", "RTT", "BEHIND", "VERSION", "ID"], &rows))
}
