//! How connections come about: those that this node begins, and those that others do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{Connection, Incoming};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::Shared;
use super::counters::Counters;
use super::endpoint::HANDSHAKES_MAX;
use super::event::Event;
use super::link::{self, Dialled};
use super::outbox::Outbox;
use super::peers::Link;
use super::snapshot;
use super::why::{Close, DialError, Why, connect_error, dial_error, refusal};
use crate::types::NodeId;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// From how many handshakes under way a newcomer must first prove that it receives what is sent
/// to its address.
const RETRY_ABOVE: usize = 64;

/// The name that TLS wants for the other side. Whom a certificate is for stands elsewhere in it.
pub(super) const SERVER_NAME: &str = "tribune";

/// Takes connections that others begin, until the node stops.
pub(super) async fn accept(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        if shared.closing.is_cancelled() {
            incoming.refuse();
            continue;
        }
        let Ok(handshake) = shared.handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let pending = HANDSHAKES_MAX - shared.handshakes.available_permits();
        if pending > RETRY_ABOVE && incoming.may_retry() {
            Counters::one(&shared.counters.retries);
            // It can only fail for one that has proved its address, which `may_retry` excludes.
            let _ = incoming.retry();
            continue;
        }
        shared.spawn(accept_one(shared.clone(), incoming, handshake));
    }
    if !shared.closing.is_cancelled() {
        shared.events.tell(Event::EndpointLost);
    }
}

async fn accept_one(shared: Arc<Shared>, incoming: Incoming, handshake: OwnedSemaphorePermit) {
    let address = incoming.remote_address();
    let link = match shake_hands(incoming).await {
        Ok(connection) if snapshot::is_visit(&connection) => {
            drop(handshake);
            return snapshot::serve(&shared, connection).await;
        }
        Ok(connection) => link::establish(&shared, connection, None).await,
        Err(Some(why)) => Err(DialError::Stranger { address, why }),
        Err(None) => return,
    };
    drop(handshake);
    match link {
        Ok(link) => {
            Counters::one(&shared.counters.accepted);
            run(&shared, link, None).await;
        }
        Err(error) => on_refused(&shared, address, &error),
    }
}

/// Answers a handshake; an error without words is nobody's fault.
async fn shake_hands(incoming: Incoming) -> Result<Connection, Option<String>> {
    let connecting = incoming.accept().map_err(|error| refusal(&error))?;
    match timeout(HANDSHAKE, connecting).await {
        Ok(connection) => connection.map_err(|error| refusal(&error)),
        Err(_) => Err(None),
    }
}

fn on_refused(shared: &Shared, address: SocketAddr, error: &DialError) {
    shared.note_failure(error);
    match error {
        DialError::Itself(_) => {}
        DialError::Twin { process, .. } => {
            if shared.is_news(address.ip(), "twin") {
                shared.events.tell(Event::Twin { address, process: *process });
            }
        }
        DialError::Versions { node, .. } => {
            let node = Some(*node);
            Counters::one(&shared.counters.versions_apart);
            shared.events.tell(Event::DialFailed { address, node, error: error.clone() });
        }
        // Nobody is to speak to this process at present.
        DialError::Aside(_) => {}
        DialError::NoAnswer(_)
        | DialError::WrongNode { .. }
        | DialError::Stranger { .. }
        | DialError::Refused { .. }
        | DialError::Failed { .. } => {
            Counters::one(&shared.counters.refused);
            let why = error.to_string();
            // The port changes with each try; the host is who it is.
            if shared.is_news(address.ip(), &why.replace(&address.to_string(), "")) {
                tracing::warn!(%address, why, "Refused a connection");
            }
        }
    }
}

/// Dials a join target once.
pub(super) async fn dial_target(shared: Arc<Shared>, address: SocketAddr) {
    match dial(&shared, None, address).await {
        Ok(link) => run(&shared, link, Some(address)).await,
        Err(error) => on_failed(&shared, None, address, error),
    }
}

/// Dials a peer whose turn has come; when that fails, the next that waits for its turn.
pub(super) async fn dial_peers(shared: Arc<Shared>, node: NodeId, address: SocketAddr) {
    let mut turn = Some((node, address));
    while let Some((node, address)) = turn.take() {
        let dialled = dial(&shared, Some(node), address).await;
        let is_success = dialled.is_ok();
        let (link, outbox) = match dialled {
            Ok(link) => {
                let link = Arc::new(link);
                let outbox = install(&shared, &link, None);
                (Some(link), Some(outbox))
            }
            Err(error) => {
                on_failed(&shared, Some(node), address, error);
                (None, None)
            }
        };
        // Only now that the connection is in its place: otherwise a frame that is queued in
        // between would begin another one.
        let next = shared.peers().dialled(node, is_success, rand::random(), Instant::now());
        match (link, outbox) {
            (Some(link), Some(outbox)) => {
                if let Some((node, address)) = next {
                    shared.spawn(boxed_dial(shared.clone(), node, address));
                }
                serve(&shared, &link, &outbox).await;
            }
            (None, _) | (_, None) => turn = next,
        }
    }
}

/// A dial that another one starts: the type of a future cannot contain itself.
fn boxed_dial(
    shared: Arc<Shared>,
    node: NodeId,
    address: SocketAddr,
) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(dial_peers(shared, node, address))
}

async fn dial(
    shared: &Shared,
    node: Option<NodeId>,
    address: SocketAddr,
) -> Result<Link, DialError> {
    Counters::one(&shared.counters.dials);
    let config = shared.client.lock().expect("no code under this lock can panic").clone();
    let connecting = shared
        .endpoint
        .connect_with(config, address, SERVER_NAME)
        .map_err(|error| connect_error(address, &error))?;
    let connection = match timeout(HANDSHAKE, connecting).await {
        Ok(connection) => connection.map_err(|error| dial_error(address, &error))?,
        Err(_) => return Err(DialError::NoAnswer(address)),
    };
    let dialled = Dialled { node, attempt: shared.next_number() };
    link::establish(shared, connection, Some(dialled)).await
}

fn on_failed(shared: &Shared, node: Option<NodeId>, address: SocketAddr, error: DialError) {
    Counters::one(&shared.counters.dials_failed);
    shared.note_failure(&error);
    if let DialError::Versions { .. } = &error {
        Counters::one(&shared.counters.versions_apart);
    }
    shared.events.tell(Event::DialFailed { address, node, error });
}

async fn run(shared: &Arc<Shared>, link: Link, dialled: Option<SocketAddr>) {
    let link = Arc::new(link);
    let outbox = install(shared, &link, dialled);
    serve(shared, &link, &outbox).await;
}

/// Puts a connection in its place and tells of it: under one lock, so that what is told of a peer
/// is told in the order in which it became true.
fn install(shared: &Shared, link: &Arc<Link>, dialled: Option<SocketAddr>) -> Arc<Outbox> {
    let node = link.node;
    let mut peers = shared.peers();
    let installed = peers.install(link.clone(), Instant::now());
    if let Some(why) = installed.ended {
        shared.events.tell(Event::Disconnected { node, why });
    }
    if installed.is_new {
        let (name, address) = (link.name.clone(), link.connection.remote_address());
        let round_trip = link.connection.rtt();
        let (version, certificate) = (link.version, link.validity);
        shared.events.tell(Event::Connected {
            node,
            name,
            address,
            round_trip,
            version,
            certificate,
        });
    }
    if let Some(address) = dialled {
        shared.events.tell(Event::Answered { node, address });
    }
    drop(peers);
    for old in installed.closed {
        if old.node == node {
            old.displace(link.connection.remote_address());
        } else {
            Counters::one(&shared.counters.evicted);
            old.close(Close::Evicted, Why::Evicted);
        }
    }
    installed.outbox
}

async fn serve(shared: &Arc<Shared>, link: &Link, outbox: &Outbox) {
    let seen = link::serve(shared, link, outbox).await;
    let why = link.closed_for().unwrap_or(seen);
    let mut peers = shared.peers();
    if peers.remove(link, &why, rand::random(), Instant::now()) {
        shared.events.tell(Event::Disconnected { node: link.node, why });
    }
}
