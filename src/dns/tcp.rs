//! TCP: messages with two bytes of length before them (RFC 1035, section 4.2.2), any number on
//! one connection, answered in order.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::answer::Transport;
use super::counters::add_one;
use super::errand::Told;
use super::packet::QUERY_BYTES_MAX;
use super::server::{Shared, Worker};
use crate::live::Feed;
use crate::telemetry::Pulse;

/// Connections of one listener at a time; one more is closed at once. TCP is for the few answers
/// that do not fit UDP, and each connection costs a descriptor and a few KiB.
const CONNECTIONS_MAX: usize = 256;
/// Connections of one client, not counted for this host itself: all its programs share one
/// address.
const CONNECTIONS_PER_CLIENT_MAX: usize = 8;
/// How long a connection may say nothing between two messages.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How long the rest of a message may take once it has begun, and how long a reply may.
const MESSAGE_MAX: Duration = Duration::from_secs(2);
/// How long accepting rests when the system is out of descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// How long accepting waits before it says that it still does.
const ACCEPT_WAIT_MAX: Duration = Duration::from_secs(1);

/// Accepts connections until the token is cancelled. Those that are open then are closed.
pub async fn run(
    listener: TcpListener,
    shared: Arc<Shared>,
    feed: Arc<Feed>,
    token: CancellationToken,
    pulse: Pulse,
) {
    let clients = Arc::new(Clients::default());
    let mut connections = JoinSet::new();
    loop {
        pulse.beat("waiting for a connection");
        let accepted = tokio::select! {
            () = token.cancelled() => return,
            () = tokio::time::sleep(ACCEPT_WAIT_MAX) => continue,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "A DNS connection could not be accepted");
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        let Some(seat) = clients.admit(peer.ip()) else {
            add_one(&shared.counters.tcp_refused);
            continue;
        };
        add_one(&shared.counters.tcp_accepted);
        let worker = Worker::new(Arc::clone(&shared), Arc::clone(&feed));
        connections.spawn(async move {
            if let Err(error) = serve(stream, peer.ip(), worker).await {
                debug!(%peer, %error, "A DNS connection broke");
            }
            drop(seat);
        });
    }
}

/// Questions of one connection that wait for other servers. Then it is not read on.
const ERRANDS_MAX: usize = 64;

/// Answers message after message until the client is done, or slow, or wrong. What others have to be
/// asked about is answered when it is there, after what came later (RFC 7766, section 6.2.1.1).
async fn serve(stream: TcpStream, peer: IpAddr, mut worker: Worker) -> io::Result<()> {
    // Replies are written whole; waiting for more would only delay them.
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    let write = Arc::new(tokio::sync::Mutex::new(write));
    let mut errands = JoinSet::new();
    let mut read = BufReader::with_capacity(QUERY_BYTES_MAX, read);
    let mut message = Vec::new();
    loop {
        let Ok(Ok(first)) = timeout(IDLE_MAX, read.read_u8()).await else { break };
        timeout(MESSAGE_MAX, read_rest(first, &mut read, &mut message)).await??;
        if message.is_empty() {
            break;
        }
        match worker.answer(&message, peer, Transport::Tcp) {
            Told::Silence => break,
            Told::Ready => send(&write, &worker.reply).await?,
            Told::Later(errand) => {
                while errands.try_join_next().is_some() {}
                if errands.len() >= ERRANDS_MAX {
                    errands.join_next().await;
                }
                let (answer, write) = (worker.run(errand), Arc::clone(&write));
                errands.spawn(async move {
                    let Some(reply) = answer.await else { return Ok(()) };
                    send(&write, &reply).await
                });
            }
        }
    }
    while errands.join_next().await.is_some() {}
    Ok(())
}

/// Sends a message whole, behind its length.
async fn send(write: &tokio::sync::Mutex<OwnedWriteHalf>, reply: &[u8]) -> io::Result<()> {
    let length = u16::try_from(reply.len()).expect("replies are cut to 65,535 bytes");
    let framed = [&length.to_be_bytes()[..], reply].concat();
    timeout(MESSAGE_MAX, write.lock().await.write_all(&framed)).await?
}

/// Reads what follows the first byte of a message's length. The message is empty when its length
/// is none that a question can have.
async fn read_rest(
    first: u8,
    read: &mut (impl AsyncReadExt + Unpin),
    message: &mut Vec<u8>,
) -> io::Result<()> {
    message.clear();
    let second = read.read_u8().await?;
    let length = usize::from(u16::from_be_bytes([first, second]));
    if length > QUERY_BYTES_MAX {
        return Ok(());
    }
    message.resize(length, 0);
    read.read_exact(message).await?;
    Ok(())
}

/// Who is connected, and how often.
#[derive(Default)]
struct Clients {
    counts: Mutex<BTreeMap<IpAddr, usize>>,
}

/// A connection's place; dropping it frees the place.
struct Seat {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Clients {
    fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Seat> {
        let client = client_of(peer);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.get(&client).copied().unwrap_or(0);
        let is_full = counts.values().sum::<usize>() >= CONNECTIONS_MAX;
        if is_full || (own >= CONNECTIONS_PER_CLIENT_MAX && !peer.is_loopback()) {
            return None;
        }
        counts.insert(client, own + 1);
        Some(Seat { clients: Arc::clone(self), client })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.clients.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

/// Returns what counts as one client: an IPv4 address, or an IPv6 network of 64 bits, which one
/// host may have whole.
fn client_of(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_has_eight_connections_and_this_host_any_number() {
        let clients = Arc::new(Clients::default());
        let [far, near] = ["192.0.2.1", "127.0.0.1"].map(|text| text.parse::<IpAddr>().unwrap());
        let seats: Vec<Seat> = (0..8).map(|_| clients.admit(far).unwrap()).collect();
        assert!(clients.admit(far).is_none());
        let own: Vec<Seat> = (0..100).map(|_| clients.admit(near).unwrap()).collect();
        drop(seats);
        assert!(clients.admit(far).is_some());
        drop(own);
        assert!(clients.counts.lock().unwrap().is_empty());
    }

    #[test]
    fn all_clients_together_have_a_limit() {
        let clients = Arc::new(Clients::default());
        let seats: Vec<Option<Seat>> =
            (0..300u32).map(|client| clients.admit(IpAddr::V4(client.into()))).collect();
        assert_eq!(seats.iter().flatten().count(), CONNECTIONS_MAX);
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        let [one, two, other] = ["2001:db8::1", "2001:db8::2:0:0:1", "2001:db8:0:1::1"]
            .map(|text| client_of(text.parse().unwrap()));
        assert_eq!(one, two);
        assert_ne!(one, other);
    }
}
