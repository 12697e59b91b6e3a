//! Which certificates a node runs with: those it was given, or, for a node that keeps to itself,
//! its own in the data directory.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::StartError;
use crate::config::{Agent, Tls};
use crate::net::certificates::{self, Ca, NodeRequest};
use crate::net::tls::{Files, Identity};
use crate::store::image;
use crate::types::NodeId;

/// Where a node that keeps to itself has its certificates, below the data directory.
const OWN_DIRECTORY: &str = "tls";
const OWN_CERTIFICATE: &str = "node.pem";

/// A certificate that nobody else sees need not be renewed: as long as it can be.
const OWN_DAYS: u32 = certificates::CA_DAYS;

/// A node's certificates, and whether they are only its own.
pub(super) struct Found {
    pub(super) identity: Identity,
    pub(super) is_own: bool,
}

/// Finds the certificates, and makes them where the node keeps to itself and starts for the first
/// time. Checks them against the configuration.
pub(super) fn find(agent: &Agent, given: Option<Identity>) -> Result<Found, StartError> {
    let found = match (given, &agent.gossip.tls) {
        (Some(identity), _) => Found { identity, is_own: false },
        (None, Some(tls)) => Found { identity: load(tls)?, is_own: false },
        (None, None) => Found { identity: own(agent)?, is_own: true },
    };
    if let Some(wanted) = agent.node_id
        && wanted != found.identity.node()
    {
        return Err(StartError(format!(
            "the configuration says that this is node {wanted}, its certificate says {}; make one \
             with `tribune tls node NAME --id {wanted}`, or leave node_id out",
            found.identity.node()
        )));
    }
    Ok(found)
}

/// Returns where a node that keeps to itself has its certificate.
pub fn own_certificate(data_dir: &Path) -> PathBuf {
    data_dir.join(OWN_DIRECTORY).join(OWN_CERTIFICATE)
}

fn load(tls: &Tls) -> Result<Identity, StartError> {
    let files = Files { ca: tls.ca.clone(), cert: tls.cert.clone(), key: tls.key.clone() };
    Identity::load(&files, SystemTime::now()).map_err(StartError::of)
}

fn own(agent: &Agent) -> Result<Identity, StartError> {
    let directory = agent.data_dir.join(OWN_DIRECTORY);
    let name = agent.node.clone().unwrap_or_else(host_name);
    let node_file = own_certificate(&agent.data_dir);
    if !node_file.exists() {
        make_own(&directory, agent, &name)?;
    }
    let files = Files {
        ca: directory.join("ca.pem"),
        cert: node_file,
        key: directory.join("node-key.pem"),
    };
    Identity::load(&files, SystemTime::now()).map_err(StartError::of)
}

fn make_own(directory: &Path, agent: &Agent, name: &str) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt;

    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| {
        StartError(format!(
            "cannot use the data directory {}: {error}; choose another with --data-dir, or let \
             this user write there",
            directory.parent().unwrap_or(directory).display()
        ))
    })?;
    let now = SystemTime::now();
    // A first start that was cut short may have left a CA whose node never was: make both anew.
    // A database that was restored to a new disk knows who this was.
    let held = image::owner_in(&agent.data_dir);
    let ca = match held.as_ref().and_then(|held| held.cluster) {
        Some(cluster) => Ca::for_cluster(cluster, now),
        None => Ca::new(now),
    };
    let ca = ca.map_err(StartError::of)?;
    certificates::make_ca_of(directory, &ca, true).map_err(StartError::of)?;
    let id = agent.node_id.or(held.map(|held| held.node));
    let node = id.unwrap_or_else(|| NodeId(uuid::Uuid::new_v4().into_bytes()));
    let request = NodeRequest { node, name: name.to_owned(), days: OWN_DAYS };
    let written =
        certificates::make_node(&ca, &request, directory, true, now).map_err(StartError::of)?;
    // Under names that do not depend on the node's. The certificate last: where it is, all is.
    std::fs::rename(written.key, directory.join("node-key.pem"))
        .and_then(|()| std::fs::rename(written.certificate, directory.join(OWN_CERTIFICATE)))
        .map_err(|error| StartError(format!("cannot write to {}: {error}", directory.display())))
}

/// Returns the host's name, up to its first dot.
pub(super) fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    let short = name.split('.').next().unwrap_or_default();
    if short.is_empty() { "localhost".to_owned() } else { short.to_owned() }
}
