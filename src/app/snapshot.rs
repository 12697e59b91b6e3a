//! A node that has no database gets one from a member before it starts; and a node that has one
//! gives it to others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::StartError;
use crate::config::Agent;
use crate::net::DialError;
use crate::net::snapshot::{Denial, FetchError, Made, Maker, Making, Request, Visit, Visitor};
use crate::net::tls::Identity;
use crate::node::look_up;
use crate::store::OpenConfig;
use crate::store::copy::{Progress, Watch};
use crate::store::snapshot::{self as file, FORMAT, MakeError, Vacancy};
use crate::types::{ClusterId, NodeId};

/// How long the members may take to say that they are there. The first node of a cluster waits for
/// this in vain.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);

/// How many members are dialled at the same time; the others are not asked.
const TARGETS_MAX: usize = 16;

/// How long a node waits for members that give their snapshots to others at the moment. Then it
/// starts without: by rows it would be as far.
const BUSY_MAX: Duration = Duration::from_secs(30);

/// How long it takes at least until who did not give a snapshot is asked again.
const RETRY_MIN: Duration = Duration::from_millis(500);

/// How often the snapshot of one member may break off.
const BROKEN_MAX: u32 = 2;

/// How often a long transfer is told of in the log.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Returns how this node makes snapshots for others.
pub(super) fn maker(data_dir: PathBuf) -> Maker {
    Arc::new(move |request: &Request, making: &mut Making<'_>| {
        let Request { format_max, bytes_min } = *request;
        let request = file::Request { data_dir: data_dir.clone(), format_max, bytes_min };
        let is_cancelled = Arc::clone(&making.is_cancelled);
        let progress = &mut |Progress { done, total, .. }| (making.progress)(done, total);
        match file::make(&request, &mut Watch { progress, is_cancelled }) {
            Ok(file::Made { file, bytes, format }) => Ok(Made { file, bytes, format }),
            Err(MakeError::Small { bytes }) => Err(Denial::NotWorthIt { bytes }),
            Err(error) => Err(Denial::Refused(error.to_string())),
        }
    })
}

/// Fills an empty data directory with the snapshot of a member that has one to give. Without any,
/// the node starts empty and gets its rows from the others one by one: that is no error.
pub(super) async fn fetch(
    agent: &Agent,
    identity: &Identity,
    open: &OpenConfig,
    stop: &CancellationToken,
) -> Result<(), StartError> {
    let config = open.clone();
    let vacancy = tokio::task::spawn_blocking(move || Vacancy::take(&config))
        .await
        .map_err(StartError::of)?
        .map_err(StartError::of)?;
    let Some(vacancy) = vacancy else { return Ok(()) };
    let Some(bytes_min) = agent.gossip.snapshot_bytes_min else { return Ok(()) };
    if agent.gossip.join.is_empty() {
        return Ok(());
    }
    let visitor = match Visitor::new(agent.gossip.listen.ip(), identity) {
        Ok(visitor) => visitor,
        Err(error) => {
            warn!(%error, "No snapshot can be asked for; this node starts empty");
            return Ok(());
        }
    };
    let search = Search {
        visitor,
        vacancy: Arc::new(vacancy),
        me: identity.node(),
        cluster: identity.cluster(),
        request: Request { format_max: FORMAT, bytes_min },
    };
    let found = tokio::select! {
        found = search.run(agent) => found,
        () = stop.cancelled() => return Err(StartError("asked to stop".to_owned())),
    };
    // The directory is free from here on; nobody waits for the goodbyes.
    let Search { visitor, vacancy, .. } = search;
    drop(vacancy);
    tokio::spawn(visitor.close());
    if !found {
        info!("This node starts empty, and gets its rows from the others one by one");
    }
    Ok(())
}

/// Why a member's snapshot did not become this node's database.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("it has this node's own certificate")]
    Twin,
    #[error("{0}")]
    Here(String),
}

impl Failure {
    fn here(error: impl std::fmt::Display) -> Self {
        Self::Here(error.to_string())
    }
}

/// A node without a database, looking for one.
struct Search {
    visitor: Visitor,
    vacancy: Arc<Vacancy>,
    me: NodeId,
    cluster: ClusterId,
    request: Request,
}

impl Search {
    /// Asks one member after the other, in the order in which they answer, and those who may yet
    /// give one again. Returns whether there is a database now.
    async fn run(&self, agent: &Agent) -> bool {
        let mut targets: BTreeMap<SocketAddr, u32> =
            targets(agent).await.into_iter().map(|address| (address, 0)).collect();
        let mut waited = Duration::ZERO;
        loop {
            let Some(after) = self.round(&mut targets).await else { return true };
            // Members that do not answer are asked again for as long as others let it wait.
            let Some(wait) = after.iter().min().copied() else { return false };
            waited += wait;
            if waited > BUSY_MAX {
                return false;
            }
            sleep(wait).await;
        }
    }

    /// Asks each member once, and leaves those among the targets that may be asked again: with how
    /// often theirs has broken off. `None`: there is a database now. Else the times after which
    /// there may be one.
    async fn round(&self, targets: &mut BTreeMap<SocketAddr, u32>) -> Option<Vec<Duration>> {
        let dial = async |address| (address, self.visitor.visit(address, CONNECT_WITHIN).await);
        let addresses: Vec<SocketAddr> = targets.keys().copied().collect();
        let mut dials: FuturesUnordered<_> = addresses.into_iter().map(dial).collect();
        let mut after = Vec::new();
        while let Some((address, visit)) = dials.next().await {
            let got = match visit {
                Ok(visit) => self.get(visit).await,
                Err(error) => Err(error.into()),
            };
            let Err(error) = got else { return None };
            tell(address, &error);
            match error {
                Failure::Fetch(FetchError::Busy { retry_after }) => {
                    after.push(retry_after.max(RETRY_MIN));
                }
                Failure::Fetch(error) if error.is_broken() => {
                    let broken = targets.entry(address).or_default();
                    *broken += 1;
                    if *broken == BROKEN_MAX {
                        targets.remove(&address);
                    }
                    after.push(RETRY_MIN);
                }
                Failure::Dial(DialError::NoAnswer(_)) => {}
                Failure::Dial(_) | Failure::Fetch(_) | Failure::Twin | Failure::Here(_) => {
                    targets.remove(&address);
                }
            }
        }
        // Otherwise nobody is left to be asked again.
        if targets.is_empty() { Some(Vec::new()) } else { Some(after) }
    }

    /// Gets a member's snapshot and makes it this node's database.
    async fn get(&self, visit: Visit) -> Result<(), Failure> {
        if visit.node == self.me {
            return Err(Failure::Twin);
        }
        let begun = Instant::now();
        // It may have waited for its turn too long.
        let visit = match visit.is_over() {
            true => self.visitor.visit(visit.address, CONNECT_WITHIN).await?,
            false => visit,
        };
        let mut told = Told::default();
        let offer =
            visit.ask(self.request, &mut |done, total| told.tell("made", done, total)).await?;
        let (bytes, mut told) = (offer.bytes, Told::default());
        let landing = self.vacancy.begin(bytes).map_err(Failure::here)?;
        let file = landing.file().map_err(Failure::here)?;
        offer.take(file, &mut |received| told.tell("received", received, bytes)).await?;
        let received = begun.elapsed();
        let (vacancy, who) = (Arc::clone(&self.vacancy), (self.me, self.cluster));
        let dropped = Dropped(Arc::default());
        let is_cancelled = Arc::clone(&dropped.0);
        let filled = tokio::task::spawn_blocking(move || {
            vacancy.fill(landing, who, &mut Watch { progress: &mut |_| {}, is_cancelled })
        });
        filled.await.map_err(Failure::here)?.map_err(Failure::here)?;
        info!(
            from = visit.name, address = %visit.address, bytes, ?received, took = ?begun.elapsed(),
            "This node begins with a snapshot of a member, and gets the rest from all"
        );
        Ok(())
    }
}

fn tell(address: SocketAddr, error: &Failure) {
    match error {
        Failure::Fetch(error @ FetchError::Busy { .. }) => {
            debug!(%address, why = %error, "No snapshot from a member yet");
        }
        Failure::Fetch(error @ FetchError::NotWorthIt { .. }) => {
            info!(%address, why = %error, "No snapshot from a member");
        }
        Failure::Dial(error) => info!(why = %error, "No snapshot from a member"),
        error => warn!(%address, why = %error, "No snapshot from a member"),
    }
}

/// Ends work on a thread that nobody waits for any more.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// When a transfer was last told of.
struct Told(Instant);

impl Default for Told {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Told {
    fn tell(&mut self, what: &str, done: u64, total: u64) {
        if self.0.elapsed() >= TELL_EVERY {
            self.0 = Instant::now();
            let percent = (done * 100).checked_div(total).unwrap_or(0);
            info!(percent, bytes = total, "A snapshot is being {what}");
        }
    }
}

/// Finds whom to ask: the members to join by, but for this node itself.
async fn targets(agent: &Agent) -> Vec<SocketAddr> {
    let own = [agent.gossip.listen, agent.gossip.advertise];
    let look = async |target: &String| match timeout(CONNECT_WITHIN, look_up(target)).await {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(_)) | Err(_) => {
            info!(target, "No snapshot from a member: its name has no address");
            Vec::new()
        }
    };
    let found = futures_util::future::join_all(agent.gossip.join.iter().map(look)).await;
    let mut addresses = Vec::new();
    for address in found.into_iter().flatten() {
        if !own.contains(&address) && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses.truncate(TARGETS_MAX);
    addresses
}
