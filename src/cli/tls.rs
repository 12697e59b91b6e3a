//! `tribune tls`: a cluster's certificates.

use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::json;

use super::{Failure, say};
use crate::net::certificates::{self, Ca, CertificateError, NODE_DAYS, NodeRequest, Written};
use crate::types::NodeId;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Make a cluster: its certificate authority, once
    Ca(CaArgs),
    /// Make a node's certificate, signed by the cluster's authority
    Node(NodeArgs),
}

#[derive(clap::Args)]
pub(super) struct CaArgs {
    /// Directory for ca.pem and ca-key.pem
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Replace files that exist. The nodes of the old authority are then another cluster
    #[arg(long)]
    force: bool,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(super) struct NodeArgs {
    /// The node's name
    name: String,
    /// The node's id, where it has one already (a UUID) [default: a new one]
    #[arg(long, value_name = "UUID")]
    id: Option<String>,
    /// How many days the certificate is valid
    #[arg(long, default_value_t = NODE_DAYS)]
    days: u32,
    /// The authority's certificate
    #[arg(long, value_name = "FILE", default_value = "ca.pem")]
    ca: PathBuf,
    /// The authority's key
    #[arg(long, value_name = "FILE", default_value = "ca-key.pem")]
    ca_key: PathBuf,
    /// Directory for NAME.pem and NAME-key.pem
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

impl From<CertificateError> for Failure {
    fn from(error: CertificateError) -> Self {
        Self::Failed(error.to_string())
    }
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Ca(args) => make_ca(&args),
        Command::Node(args) => make_node(&args),
    }
}

fn make_ca(args: &CaArgs) -> Result<(), Failure> {
    let (cluster, written) = certificates::make_ca(&args.out, args.force, SystemTime::now())?;
    if args.json {
        return say(&told(&written, "cluster", &cluster.to_string()));
    }
    say(&format!(
        "{} and {}: the authority of cluster {cluster}.\nEvery node needs the first; keep the \
         second where no node is. Next: tribune tls node NAME",
        written.certificate.display(),
        written.key.display(),
    ))
}

fn make_node(args: &NodeArgs) -> Result<(), Failure> {
    let node = match &args.id {
        Some(text) => text.parse().map_err(|error| Failure::Usage(format!("--id: {error}")))?,
        None => NodeId(uuid::Uuid::new_v4().into_bytes()),
    };
    let ca = Ca::load(&args.ca, &args.ca_key)?;
    let request = NodeRequest { node, name: args.name.clone(), days: args.days };
    let written = certificates::make_node(&ca, &request, &args.out, args.force, SystemTime::now())?;
    if args.json {
        return say(&told(&written, "node", &node.to_string()));
    }
    say(&format!(
        "{} and {}: node {node} of cluster {}, for {} days.\nOn that host: tribune agent --ca {} \
         --cert {} --key {} --join ADDRESS",
        written.certificate.display(),
        written.key.display(),
        ca.cluster(),
        args.days,
        args.ca.display(),
        written.certificate.display(),
        written.key.display(),
    ))
}

fn told(written: &Written, what: &str, id: &str) -> String {
    json!({
        what: id,
        "certificate": written.certificate.display().to_string(),
        "key": written.key.display().to_string(),
    })
    .to_string()
}
