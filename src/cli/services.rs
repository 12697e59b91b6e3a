//! `tribune services`: all services with counts by health, or the instances of one.

use serde_json::Value as Json;

use super::client::{list, text};
use super::{Client, Failure, Remote, say, table};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Show this service's instances
    name: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = Client::new(&args.remote)?;
    if let Some(name) = &args.name {
        let entries = client.get(&entries_path(name)).await?;
        if args.remote.json {
            return say(&format!("{entries:#}"));
        }
        if list(&entries).is_empty() {
            return Err(Failure::Failed(format!("there is no service '{name}'")));
        }
        return say(&instances(&entries));
    }
    let services = client.get("/v1/services").await?;
    if args.remote.json {
        return say(&format!("{services:#}"));
    }
    let rows: Vec<Vec<String>> = list(&services)
        .iter()
        .map(|service| {
            let count = |key: &str| {
                service.get(key).and_then(Json::as_u64).map_or_else(String::new, |n| n.to_string())
            };
            vec![
                text(service, "/name").to_owned(),
                count("passing"),
                count("warning"),
                count("critical"),
                words(service.get("tags")),
            ]
        })
        .collect();
    say(&table::layout(&["SERVICE", "PASSING", "WARNING", "CRITICAL", "TAGS"], &rows))
}

/// Returns where a service's instances with their checks are read.
pub(super) fn entries_path(name: &str) -> String {
    format!("/v1/health/service/{}", Client::segment(name))
}

/// Lays a service's instances out as a table.
pub(super) fn instances(entries: &Json) -> String {
    let rows: Vec<Vec<String>> = list(entries)
        .iter()
        .map(|entry| {
            let address = match text(entry, "/Service/Address") {
                "" => text(entry, "/Node/Address"),
                own => own,
            };
            let port = entry.pointer("/Service/Port").and_then(Json::as_i64).unwrap_or_default();
            let (status, why) = health(entry);
            vec![
                text(entry, "/Service/ID").to_owned(),
                text(entry, "/Node/Node").to_owned(),
                format!("{address}:{port}"),
                status.to_owned(),
                words(entry.pointer("/Service/Tags")),
                why,
            ]
        })
        .collect();
    table::layout(&["INSTANCE", "NODE", "ADDRESS", "STATUS", "TAGS", "WHY"], &rows)
}

/// Returns the worst status among an instance's checks, and what that check said.
fn health(entry: &Json) -> (&'static str, String) {
    let checks = entry.get("Checks").map_or(&[][..], list);
    for status in ["critical", "warning"] {
        if let Some(check) = checks.iter().find(|check| text(check, "/Status") == status) {
            let output = text(check, "/Output").lines().next().unwrap_or_default();
            let why: String =
                format!("{}: {output}", text(check, "/Name")).chars().take(70).collect();
            return (status, why);
        }
    }
    ("passing", String::new())
}

fn words(array: Option<&Json>) -> String {
    let words: Vec<&str> = array.map_or(&[][..], list).iter().filter_map(Json::as_str).collect();
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_shows_its_worst_check_and_the_address_clients_use() {
        let entries = serde_json::json!([{
            "Node": { "Node": "n1", "Address": "10.0.0.1" },
            "Service": { "ID": "web-1", "Address": "", "Port": 80, "Tags": ["v1", "blue"] },
            "Checks": [
                { "Status": "passing", "Name": "Serf Health Status", "Output": "" },
                { "Status": "critical", "Name": "http", "Output": "refused\nmore" },
            ],
        }]);
        let table = instances(&entries);
        assert!(
            table.contains("web-1     n1    10.0.0.1:80  critical  v1,blue  http: refused"),
            "{table}"
        );
    }
}
