//! QUIC between nodes: certificates, connections to peers, lanes of frames and datagrams, and
//! what becomes of them when peers do not answer. What the bytes mean is not known here.
//!
//! Each pair of nodes shares one connection, begun by either. Over it run a stream for each lane,
//! from each side, and datagrams for membership. A connection counts once both sides have
//! verified the other's certificate and greeted; not a byte of a frame is read before. Who only
//! comes for a snapshot has a connection of another protocol, which is nobody's link.

pub mod certificates;
pub mod snapshot;
pub mod subject;
pub mod tls;

mod config;
mod counters;
mod dial;
mod endpoint;
mod event;
mod link;
mod outbox;
mod peers;
mod turns;
mod why;

#[cfg(test)]
mod membership_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{ClientConfig, Endpoint};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use self::config::Config;
pub use self::counters::Counts;
pub use self::endpoint::BindError;
pub use self::event::{Event, Events};
pub use self::outbox::Parcel;
pub use self::why::{DialError, Why};

use self::counters::Counters;
use self::endpoint::DATAGRAM_BUFFER_BYTES;
use self::event::EventSender;
use self::outbox::{Overrun, Track};
use self::peers::{Peers, Way};
use self::snapshot::{Maker, Office};
use self::tls::Identity;
use self::turns::Budget;
use self::why::Close;
use crate::replica::Lane;
use crate::types::NodeId;
use crate::wire::frame::FRAME_BYTES_MAX;

/// How many long frames may be on their way in at the same time, over all connections.
const LONG_FRAMES_MAX: usize = 8;

/// How often pinned peers without a connection are looked after.
const TENDING: Duration = Duration::from_secs(1);

/// How often the same refusal of the same host is told.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// How many different refusals are remembered. Beyond it new ones are not told for a while.
const TOLD_MAX: usize = 256;

/// What goes out last is given this long to be on its way before the connections are closed.
const LINGER: Duration = Duration::from_millis(50);

/// Why a frame was not taken, or at whose expense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Nothing was queued.
    #[error("the node does not answer, and it is too early to try again")]
    Unreachable,
    /// This frame, or older ones of the same lane, were dropped. What the peer misses, it must
    /// learn another way.
    #[error("the queue to the node is full")]
    Overrun,
    /// Nothing was queued, and trying again is of no use.
    #[error("a frame may have at most {FRAME_BYTES_MAX} bytes")]
    TooLong,
}

/// This node's end of all connections. Cloning is cheap; all clones are the same end. When the
/// last is dropped, every connection is dropped with it, without a word to the peers: see
/// [`Net::close`].
#[derive(Clone)]
pub struct Net {
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

/// What the network's tasks share.
struct Shared {
    me: NodeId,
    /// Drawn at random: which process this is, among those with the same certificate.
    instance: u64,
    config: Config,
    endpoint: Endpoint,
    client: Mutex<ClientConfig>,
    peers: Mutex<Peers>,
    events: EventSender,
    long_frames: Arc<Semaphore>,
    counters: Counters,
    budget: Budget,
    told: Mutex<BTreeMap<(IpAddr, String), Instant>>,
    numbers: AtomicU64,
    handshakes: Arc<Semaphore>,
    snapshots: Office,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Cancelled first: no new connections of others, while what is queued still gets out.
    closing: CancellationToken,
}

impl Net {
    /// Listens, and starts the network's tasks on the current tokio runtime.
    pub fn bind(config: Config, identity: &Identity) -> Result<(Self, Events), BindError> {
        let endpoint = endpoint::bind(&config, identity)?;
        let client = endpoint::client_config(&config, identity).map_err(BindError::Tls)?;
        let (sender, events) = event::channel();
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            me: identity.node(),
            instance: rand::random(),
            peers: Mutex::new(Peers::new(config.links_max, Instant::now())),
            endpoint,
            client: Mutex::new(client),
            events: sender,
            long_frames: Arc::new(Semaphore::new(LONG_FRAMES_MAX)),
            counters: Counters::default(),
            budget: Budget::new(config.send_bytes_per_second, Instant::now()),
            config,
            told: Mutex::default(),
            numbers: AtomicU64::new(1),
            handshakes: Arc::new(Semaphore::new(endpoint::HANDSHAKES_MAX)),
            snapshots: Office::default(),
            tasks: TaskTracker::new(),
            closing: stop.child_token(),
            stop: stop.clone(),
        });
        shared.spawn(dial::accept(shared.clone()));
        shared.spawn(tend(shared.clone()));
        Ok((Self { shared, _stop: Arc::new(stop.drop_guard()) }, events))
    }

    /// Returns the address that was bound, with its true port.
    pub fn address(&self) -> SocketAddr {
        self.shared.endpoint.local_addr().unwrap_or(self.shared.config.address)
    }

    /// Queues a frame for a node: what [`crate::wire::encode_frame`] makes, length included. If
    /// there is no connection, one is made to `address`.
    pub fn send(
        &self,
        to: NodeId,
        address: SocketAddr,
        lane: Lane,
        parcel: impl Into<Parcel>,
    ) -> Result<(), SendError> {
        let parcel = parcel.into();
        if parcel.bytes() > FRAME_BYTES_MAX + 4 {
            return Err(SendError::TooLong);
        }
        let way = self.way(to, address)?;
        let pushed = way.outbox.push(Track::Lane(lane), parcel);
        self.dial_for(to, way.dial);
        pushed.map_err(|overrun| {
            Counters::one(&self.shared.counters.frames_dropped);
            if let (Overrun::Stuck, Some(link)) = (overrun, way.link) {
                link.close(Close::Stuck, Why::Stuck);
            }
            SendError::Overrun
        })
    }

    /// Sends a datagram of membership, which may be lost. One that comes before the connection,
    /// or is too long for its path, goes over a stream.
    pub fn datagram(&self, to: NodeId, address: SocketAddr, bytes: Bytes) {
        let counters = &self.shared.counters;
        let Ok(way) = self.way(to, address) else {
            return Counters::one(&counters.datagrams_dropped);
        };
        if let Some(link) = &way.link
            && link.connection.max_datagram_size().is_some_and(|max| bytes.len() <= max)
        {
            // Fails only where the connection has just ended.
            let _ = link.connection.send_datagram(bytes);
            return Counters::one(&counters.datagrams_sent);
        }
        let is_taken = way.outbox.push(Track::Datagrams, framed(&bytes)).is_ok();
        self.dial_for(to, way.dial);
        let counter =
            if is_taken { &counters.datagrams_streamed } else { &counters.datagrams_dropped };
        Counters::one(counter);
    }

    /// Finds out which node is at an address: a join target. Answered by [`Event::Answered`] or
    /// [`Event::DialFailed`]. It is tried once; trying again is the caller's business.
    pub fn dial(&self, address: SocketAddr) {
        let linked = self.shared.peers().link_to(address);
        if let Some(link) = linked {
            return self.shared.events.tell(Event::Answered { node: link.node, address });
        }
        self.shared.spawn(dial::dial_target(self.shared.clone(), address));
    }

    /// Keeps the connection to a node alive, and makes it again when it breaks; or, not
    /// `pinned`, lets it go like any other.
    pub fn pin(&self, node: NodeId, address: SocketAddr, is_pinned: bool) {
        self.shared.peers().pin(node, address, is_pinned, Instant::now());
    }

    /// Closes the connection to a node, if there is one: it is gone, or not wanted.
    pub fn disconnect(&self, node: NodeId) {
        let link = self.shared.peers().link(node);
        if let Some(link) = link {
            link.close(Close::Unwanted, Why::Unwanted);
        }
    }

    /// Takes a new certificate into use for connections to come. Those there are live on.
    pub fn renew(&self, identity: &Identity) -> Result<(), BindError> {
        let config = &self.shared.config;
        let server = endpoint::server_config(config, identity).map_err(BindError::Tls)?;
        let client = endpoint::client_config(config, identity).map_err(BindError::Tls)?;
        self.shared.endpoint.set_server_config(Some(server));
        *self.shared.client.lock().expect("no code under this lock can panic") = client;
        Ok(())
    }

    /// From now on nodes that ask for a snapshot get what `maker` makes. Said once; before it they
    /// are refused.
    pub fn give_snapshots(&self, maker: Maker) {
        self.shared.snapshots.open(maker);
    }

    /// Returns what was counted so far.
    pub fn counts(&self) -> Counts {
        let links = self.shared.peers().links().count() as u64;
        self.shared.counters.read(links)
    }

    /// Sends what is queued, says goodbye on each connection and ends all tasks. It takes at most
    /// about `grace`.
    pub async fn close(self, grace: Duration) {
        let shared = &self.shared;
        shared.closing.cancel();
        // What does not get out in time is lost, as it would be a moment later.
        let _ = timeout(grace, drained(shared)).await;
        shared.endpoint.close(Close::Stopping.code(), b"the node stops");
        let _ = timeout(grace, shared.endpoint.wait_idle()).await;
        shared.stop.cancel();
        shared.tasks.close();
        shared.tasks.wait().await;
    }

    fn way(&self, to: NodeId, address: SocketAddr) -> Result<Way, SendError> {
        let way = self.shared.peers().reach(to, address, Instant::now());
        way.map_err(|_| {
            Counters::one(&self.shared.counters.unreachable);
            SendError::Unreachable
        })
    }

    fn dial_for(&self, node: NodeId, address: Option<SocketAddr>) {
        if let Some(address) = address {
            self.shared.spawn(dial::dial_peers(self.shared.clone(), node, address));
        }
    }
}

impl Shared {
    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().expect("no code under this lock can panic")
    }

    /// Returns a number that was not returned before.
    fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Starts a task that ends with the network at the latest.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Returns whether a refusal is worth a line in the log: not the same as a moment ago.
    fn is_news(&self, from: IpAddr, what: &str) -> bool {
        let now = Instant::now();
        let mut told = self.told.lock().expect("no code under this lock can panic");
        told.retain(|_, at| now.saturating_duration_since(*at) < TOLD_AGAIN);
        let key = (from, what.to_owned());
        let is_news = told.len() < TOLD_MAX && !told.contains_key(&key);
        if is_news {
            told.insert(key, now);
        }
        is_news
    }
}

/// Makes connections to pinned peers again.
async fn tend(shared: Arc<Shared>) {
    loop {
        sleep(TENDING).await;
        let lost = shared.peers().tend(Instant::now());
        for (node, address) in lost {
            shared.spawn(dial::dial_peers(shared.clone(), node, address));
        }
    }
}

/// Waits until nothing is queued, and a moment longer.
async fn drained(shared: &Shared) {
    const LOOK_AGAIN: Duration = Duration::from_millis(5);
    while !is_drained(&shared.peers()) {
        sleep(LOOK_AGAIN).await;
    }
    sleep(LINGER).await;
}

fn is_drained(peers: &Peers) -> bool {
    let are_sent = peers.outboxes().all(|outbox| outbox.is_empty());
    // The buffer's bookkeeping may keep a few bytes.
    let is_out = |space: usize| space + 1_024 >= DATAGRAM_BUFFER_BYTES;
    are_sent && peers.links().all(|link| is_out(link.connection.datagram_send_buffer_space()))
}

/// Puts a length before a datagram that travels on a stream.
fn framed(bytes: &Bytes) -> Bytes {
    let length = u32::try_from(bytes.len()).expect("a datagram is far shorter than 4 GiB");
    [&length.to_be_bytes()[..], bytes].concat().into()
}
