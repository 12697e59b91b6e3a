//! `tribune register` and `tribune deregister`: an instance on this host's node.

use serde_json::{Value as Json, json};

use super::{Client, Failure, Remote, say};

#[derive(clap::Args)]
pub(super) struct RegisterArgs {
    /// The service's name
    name: String,
    /// The instance's id [default: the service's name]
    #[arg(long)]
    id: Option<String>,
    /// The port it listens on
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The address it listens on [default: the node's]
    #[arg(long)]
    address: Option<String>,
    /// A tag, may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// A fact about it, may be repeated
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = pair)]
    meta: Vec<(String, String)>,
    /// Check that a GET of this URL answers 2xx
    #[arg(long, value_name = "URL", group = "check")]
    check_http: Option<String>,
    /// Check that this address accepts a connection
    #[arg(long, value_name = "HOST:PORT", group = "check")]
    check_tcp: Option<String>,
    /// Expect a report at least this often, such as 30s
    #[arg(long, value_name = "SPAN", group = "check")]
    check_ttl: Option<String>,
    /// Run this program (the node must allow script checks); 0 is passing, 1 warning
    #[arg(long, value_name = "COMMAND", group = "check")]
    check_script: Option<String>,
    /// How often the check runs
    #[arg(long, value_name = "SPAN", default_value = "10s")]
    interval: String,
    #[command(flatten)]
    remote: Remote,
}

#[derive(clap::Args)]
pub(super) struct DeregisterArgs {
    /// The instance's id
    id: String,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn register(args: RegisterArgs) -> Result<(), Failure> {
    let body = body(&args);
    Client::new(&args.remote)?.put("/v1/agent/service/register", Some(&body)).await?;
    let id = args.id.as_deref().unwrap_or(&args.name);
    done(&args.remote, id, &format!("registered {id}"))
}

pub(super) async fn deregister(args: DeregisterArgs) -> Result<(), Failure> {
    let path = format!("/v1/agent/service/deregister/{}", Client::segment(&args.id));
    Client::new(&args.remote)?.put(&path, None).await?;
    done(&args.remote, &args.id, &format!("deregistered {}", args.id))
}

fn done(remote: &Remote, id: &str, text: &str) -> Result<(), Failure> {
    if remote.json { say(&json!({ "id": id }).to_string()) } else { say(text) }
}

fn body(args: &RegisterArgs) -> Json {
    let interval = &args.interval;
    let check = if let Some(url) = &args.check_http {
        Some(json!({ "HTTP": url, "Interval": interval }))
    } else if let Some(address) = &args.check_tcp {
        Some(json!({ "TCP": address, "Interval": interval }))
    } else if let Some(ttl) = &args.check_ttl {
        Some(json!({ "TTL": ttl }))
    } else {
        args.check_script
            .as_ref()
            .map(|command| json!({ "Args": ["/bin/sh", "-c", command], "Interval": interval }))
    };
    let mut body = json!({
        "Name": args.name,
        "Port": args.port,
        "Tags": args.tags,
        "Meta": args.meta.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
    });
    let optional = [
        ("ID", args.id.as_ref().map(|id| json!(id))),
        ("Address", args.address.as_ref().map(|address| json!(address))),
        ("Check", check),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            body[key] = value;
        }
    }
    body
}

fn pair(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("'{text}' is not KEY=VALUE"))
}
