//! `tribune backup` and `tribune restore`: a node's database as one file, and back.

use std::path::PathBuf;

use serde_json::json;

use super::progress::{bytes, interruptible};
use super::{Failure, say};
use crate::app::own_certificate;
use crate::config::{Place, PlaceFlags};
use crate::net::tls;
use crate::store::backup::{BackedUp, Backup, BackupError, backup};
use crate::store::restore::{Restore, RestoreError, Restored, restore};

#[derive(clap::Args)]
pub(super) struct BackupArgs {
    /// The file to make; it has its name only once it is whole and on disk
    file: PathBuf,
    #[command(flatten)]
    place: PlaceFlags,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(super) struct RestoreArgs {
    /// A file that `tribune backup` made, or one that a restore has put aside
    file: PathBuf,
    #[command(flatten)]
    place: PlaceFlags,
    /// This node's certificate, which says who it is [default: the configuration's, else the
    /// database's that is there]
    #[arg(long, value_name = "FILE", env = "TRIBUNE_CERT")]
    cert: Option<PathBuf>,
    /// Take over the data of another node, as this node. Its check definitions are left out. Its
    /// services and checks stay its own: this node neither runs nor withdraws them, and nobody
    /// does if that node is gone for good
    #[arg(long)]
    new_node: bool,
    /// Bring the data of another cluster into this node's: all of it will reach every node there
    #[arg(long)]
    new_cluster: bool,
    /// Remove the database that is there, rather than putting it aside as
    /// tribune.db.before-restore-TIME
    #[arg(long)]
    discard: bool,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        let sort = if error.is_wrong_usage() { Self::Usage } else { Self::Failed };
        sort(error.to_string())
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        let sort = if error.is_wrong_usage() { Self::Usage } else { Self::Failed };
        sort(error.to_string())
    }
}

pub(super) fn run_backup(args: BackupArgs) -> Result<(), Failure> {
    let BackupArgs { file, place, force, json } = args;
    let place = Place::from_flags(place)?;
    let request = Backup { data_dir: place.data_dir, target: file, force };
    let made = interruptible(move |watch| backup(&request, watch))??;
    let BackedUp { target, identity, copied } = made;
    if json {
        return say(&json!({
            "file": target, "node": identity.name, "node_id": identity.node.to_string(),
            "bytes": copied.bytes, "copied_ms": copied.held.as_millis(),
            "wal_growth_bytes": copied.wal_growth,
        })
        .to_string());
    }
    say(&format!(
        "{}: {} of node {} ({}), checked and on disk",
        target.display(),
        bytes(copied.bytes),
        identity.name,
        identity.node,
    ))
}

pub(super) fn run_restore(args: RestoreArgs) -> Result<(), Failure> {
    let RestoreArgs { file, place, cert, new_node, new_cluster, discard, json } = args;
    let place = Place::from_flags(place)?;
    let own = own_certificate(&place.data_dir);
    let cert = cert.or(place.cert).or_else(|| own.exists().then_some(own));
    let named = cert.map(|cert| tls::named_in(&cert)).transpose();
    let named = named.map_err(|error| Failure::Usage(error.to_string()))?;
    let request = Restore {
        file,
        data_dir: place.data_dir,
        node: named.map(|(_, node)| node).or(place.node_id),
        cluster: named.map(|(cluster, _)| cluster),
        new_node,
        new_cluster,
        discard,
    };
    let done = interruptible(move |watch| restore(&request, watch))??;
    tell(&done, new_node, json)
}

fn tell(done: &Restored, new_node: bool, json: bool) -> Result<(), Failure> {
    let Restored { database, aside, identity, copied } = done;
    if json {
        return say(&json!({
            "database": database, "put_aside": aside, "node": identity.name,
            "node_id": identity.node.to_string(), "bytes": copied.bytes,
        })
        .to_string());
    }
    let mut text = format!(
        "{}: {} of node {} ({})",
        database.display(),
        bytes(copied.bytes),
        identity.name,
        identity.node
    );
    if let Some(aside) = aside {
        text.push_str(&format!("\nWhat was there before: {}", aside.display()));
    }
    text.push_str(if new_node {
        "\nNext: start the agent. It takes these rows over as a node of its own; the services and \
         checks among them stay the other node's."
    } else {
        "\nNext: start the agent. It goes on under a new epoch, and gets what was written since \
         from the other nodes; what runs here has a minute to register again."
    });
    say(&text)
}
