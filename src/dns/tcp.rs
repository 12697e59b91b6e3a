//! TCP: messages with two bytes of length before them (RFC 1035, section 4.2.2), any number on
//! one connection, answered in order.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::answer::Transport;
use super::counters::add_one;
use super::errand::Told;
use super::https;
use super::packet::QUERY_BYTES_MAX;
use super::server::{Shared, Worker};
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
/// How long TLS may take to agree.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How long accepting rests when the system is out of descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// How long accepting waits before it says that it still does.
const ACCEPT_WAIT_MAX: Duration = Duration::from_secs(1);

/// How connections are spoken over.
#[derive(Clone)]
pub enum Over {
    Plain,
    /// DNS over TLS (RFC 7858).
    Tls(TlsAcceptor),
    /// DNS over HTTPS.
    Https(TlsAcceptor),
}

/// Accepts connections until the token is cancelled. Those that are open then are closed.
pub async fn run(
    listener: TcpListener,
    over: Over,
    shared: Arc<Shared>,
    make: impl Fn() -> Worker + Clone + Send + Sync + 'static,
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
        let (over, make) = (over.clone(), make.clone());
        connections.spawn(async move {
            if let Err(error) = converse(stream, over, peer, make).await {
                debug!(%peer, %error, "A DNS connection broke");
            }
            drop(seat);
        });
    }
}

/// Speaks with a client until one of both has enough.
async fn converse(
    stream: TcpStream,
    over: Over,
    peer: SocketAddr,
    make: impl Fn() -> Worker,
) -> io::Result<()> {
    // Replies are written whole; waiting for more would only delay them.
    stream.set_nodelay(true)?;
    match over {
        Over::Plain => {
            let (read, write) = stream.into_split();
            serve((read, write), peer.ip(), make(), Transport::Tcp).await
        }
        Over::Tls(acceptor) => {
            let stream = timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await??;
            serve(tokio::io::split(stream), peer.ip(), make(), Transport::Tls).await
        }
        Over::Https(acceptor) => {
            let stream = timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await??;
            https::serve(stream, peer, make).await;
            Ok(())
        }
    }
}

/// How much is read at once, in bytes: many questions of who asks many.
const READ_BYTES: usize = 4_096;
/// Replies that are ready are sent together, until there are so many bytes.
const REPLIES_BYTES: usize = 16_384;
/// Questions of one connection that wait for other servers. Then it is not read on.
const ERRANDS_MAX: usize = 64;

/// Answers message after message until the client is done, or slow, or wrong. What others have to be
/// asked about is answered when it is there, after what came later (RFC 7766, section 6.2.1.1).
async fn serve(
    (mut read, write): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin + Send + 'static),
    peer: IpAddr,
    mut worker: Worker,
    transport: Transport,
) -> io::Result<()> {
    let write = Arc::new(tokio::sync::Mutex::new(write));
    let mut errands = JoinSet::new();
    let (mut input, mut replies) = (Vec::new(), Vec::new());
    while read_on(&mut read, &mut input).await? {
        let mut rest = &input[..];
        let mut is_over = false;
        while let Some(message) = next_message(&mut rest) {
            // No question has such a length.
            is_over = message.is_empty() || message.len() > QUERY_BYTES_MAX;
            if is_over {
                break;
            }
            match worker.answer(message, peer, transport) {
                Told::Silence => is_over = true,
                Told::Ready => push_framed(&mut replies, &worker.reply),
                Told::Later(errand) => {
                    while errands.try_join_next().is_some() {}
                    if errands.len() >= ERRANDS_MAX {
                        send(&write, &mut replies).await?;
                        errands.join_next().await;
                    }
                    let (answer, write) = (worker.run(errand), Arc::clone(&write));
                    errands.spawn(async move {
                        let Some(reply) = answer.await else { return Ok(()) };
                        let mut framed = Vec::new();
                        push_framed(&mut framed, &reply);
                        send(&write, &mut framed).await
                    });
                }
            }
            if is_over {
                break;
            }
            if replies.len() >= REPLIES_BYTES {
                send(&write, &mut replies).await?;
            }
        }
        let left = rest.len();
        input.drain(..input.len() - left);
        send(&write, &mut replies).await?;
        if is_over {
            break;
        }
    }
    while errands.join_next().await.is_some() {}
    Ok(())
}

/// Reads until there is a whole message; false: there is no other one.
async fn read_on(read: &mut (impl AsyncRead + Unpin), input: &mut Vec<u8>) -> io::Result<bool> {
    let mut deadline = Instant::now() + IDLE_MAX;
    let mut is_begun = false;
    loop {
        if !input.is_empty() && !is_begun {
            (is_begun, deadline) = (true, Instant::now() + MESSAGE_MAX);
        }
        if next_message(&mut &input[..]).is_some() {
            return Ok(true);
        }
        input.reserve(READ_BYTES);
        match timeout_at(deadline, read.read_buf(input)).await {
            Ok(Ok(0)) => return Ok(false),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) if input.is_empty() => return Ok(false),
            Err(late) => return Err(late.into()),
        }
    }
}

/// Splits off the first message, if it is whole, or too long to be read.
fn next_message<'i>(rest: &mut &'i [u8]) -> Option<&'i [u8]> {
    let (length, behind) = rest.split_first_chunk()?;
    let length = usize::from(u16::from_be_bytes(*length));
    if length > QUERY_BYTES_MAX && behind.len() > QUERY_BYTES_MAX {
        return Some(behind);
    }
    let (message, behind) = behind.split_at_checked(length)?;
    *rest = behind;
    Some(message)
}

/// Adds a message behind its length.
fn push_framed(framed: &mut Vec<u8>, message: &[u8]) {
    let length = u16::try_from(message.len()).expect("replies are cut to 65,535 bytes");
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
}

/// Sends messages, and forgets them.
async fn send(
    write: &tokio::sync::Mutex<impl AsyncWrite + Unpin>,
    framed: &mut Vec<u8>,
) -> io::Result<()> {
    if !framed.is_empty() {
        let mut write = write.lock().await;
        timeout(MESSAGE_MAX, async {
            write.write_all(framed).await?;
            // TLS keeps what is less than a record.
            write.flush().await
        })
        .await??;
        framed.clear();
        framed.shrink_to(REPLIES_BYTES);
    }
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
