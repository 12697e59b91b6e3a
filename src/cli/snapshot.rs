//! `tribune snapshot`: another node's database as one file, over the network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::agent::Stop;
use super::progress::{Line, bytes};
use super::{Failure, say};
use crate::config::{MemberFlags, Tls};
use crate::net::snapshot::{FetchError, Request, Visit, Visitor};
use crate::net::tls::{Files, Identity};
use crate::node::look_up;
use crate::store;
use crate::store::copy::{CopyError, Doing, Progress, Watch};
use crate::store::snapshot::{FORMAT, Landing, TakeError, check_name};

/// How long a node may take to answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(super) struct Args {
    /// The file to make; it has its name only once it is whole, checked and on disk
    file: PathBuf,
    /// The node's gossip address: HOST or HOST:PORT
    #[arg(long, value_name = "ADDR")]
    from: String,
    #[command(flatten)]
    member: MemberFlags,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

impl From<TakeError> for Failure {
    fn from(error: TakeError) -> Self {
        let sort = if error.is_wrong_usage() { Self::Usage } else { Self::Failed };
        sort(error.to_string())
    }
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        TakeError::from(error).into()
    }
}

/// A snapshot that was got.
struct Got {
    address: SocketAddr,
    identity: store::Identity,
    bytes: u64,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let Args { file, from, member, force, json } = args;
    check_name(&file, force)?;
    let Tls { ca, cert, key } = Tls::from_flags(member)?;
    let identity = Identity::load(&Files { ca, cert, key }, SystemTime::now())
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let Got { address, identity, bytes: size } = super::as_client(async {
        let mut stop = Stop::catch()?;
        tokio::select! {
            got = get(&from, &identity, &file, force) => got,
            () = stop.asked() => {
                Err(Failure::Failed("interrupted; nothing is left of the snapshot".to_owned()))
            }
        }
    })?;
    if json {
        return say(&json!({
            "file": file, "from": address.to_string(), "node": identity.name,
            "node_id": identity.node.to_string(), "bytes": size,
        })
        .to_string());
    }
    say(&format!(
        "{}: {} of node {} ({}), checked and on disk\nNext, on a node that is stopped: tribune \
         restore {} --new-node",
        file.display(),
        bytes(size),
        identity.name,
        identity.node,
        file.display(),
    ))
}

async fn get(from: &str, identity: &Identity, file: &Path, force: bool) -> Result<Got, Failure> {
    let visit = visit(from, identity).await?;
    let address = visit.address;
    let failed = |error: FetchError| Failure::Failed(told(&visit, &error));
    let line = Arc::new(Mutex::new(Line::new()));
    let draw = |doing, done, total| {
        let progress = Progress { doing, done, total };
        line.lock().unwrap_or_else(PoisonError::into_inner).draw(progress);
    };
    let request = Request { format_max: FORMAT, bytes_min: 0 };
    let making = &mut |done, total| draw(Doing::Copying, done, total);
    let offer = visit.ask(request, making).await.map_err(failed)?;
    let bytes = offer.bytes;
    let landing = Landing::to_file(file, bytes)?;
    let receiving = &mut |received| draw(Doing::Receiving, received, bytes);
    offer.take(landing.file()?, receiving).await.map_err(failed)?;
    let dropped = Dropped(Arc::default());
    let is_cancelled = Arc::clone(&dropped.0);
    let saved = tokio::task::spawn_blocking(move || {
        let progress = &mut |progress| {
            line.lock().unwrap_or_else(PoisonError::into_inner).draw(progress);
        };
        landing.save(force, &mut Watch { progress, is_cancelled })
    });
    let saved = saved.await.map_err(|error| Failure::Failed(format!("it broke off: {error}")))?;
    Ok(Got { address, identity: saved?, bytes })
}

/// Connects to the first of the node's addresses that answers.
async fn visit(from: &str, identity: &Identity) -> Result<Visit, Failure> {
    let failed = |why: String| Failure::Failed(format!("no snapshot from {from}: {why}"));
    let addresses = look_up(from)
        .await
        .map_err(|error| Failure::Usage(format!("--from {from} has no address: {error}")))?;
    let mut why = "its name has no address".to_owned();
    for address in addresses {
        let local = match address.ip() {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let visitor = Visitor::new(local, identity).map_err(|error| failed(error.to_string()))?;
        match visitor.visit(address, CONNECT_WITHIN).await {
            Ok(visit) => return Ok(visit),
            Err(error) => why = error.to_string(),
        }
    }
    Err(failed(why))
}

fn told(visit: &Visit, error: &FetchError) -> String {
    let what = format!("no snapshot from {} ({}): {error}", visit.name, visit.address);
    match error {
        FetchError::Busy { retry_after } => {
            format!("{what}; try again in {} s", retry_after.as_secs().max(1))
        }
        _ => what,
    }
}

/// Ends work on a thread that nobody waits for any more.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
