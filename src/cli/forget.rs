//! `tribune forget`: a node will not return, and nobody is to wait for it.

use serde_json::json;

use super::{Client, Failure, Remote, say};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The node's name or id, as `tribune members` shows them
    node: String,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let path = format!("/v1/agent/force-leave/{}", args.node);
    Client::new(&args.remote)?.put(&path, None).await?;
    if args.remote.json {
        return say(&json!({ "forgotten": args.node }).to_string());
    }
    say(&format!(
        "{} is forgotten. Should it return, it takes over all rows of another node",
        args.node
    ))
}
