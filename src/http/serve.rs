//! Connections: accepted, counted, served in HTTP/1 or cleartext HTTP/2, and ended.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::seats::{Limits, Seat, Seats};
use super::stats::{Gauged, Stats};

/// How long a new connection may take to send the head of its first request.
const FIRST_HEAD_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a connection may then be idle, or take for the head of a further request.
const IDLE_TIME_MAX: Duration = Duration::from_secs(60);
/// The longest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How many requests one HTTP/2 connection may have open: as many as one client may have
/// HTTP/1 connections.
const STREAMS_MAX: u32 = 200;
/// How often a silent HTTP/2 connection is asked whether it is still there. Idle streams may
/// last for hours, and only this tells a dead client from a patient one.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long to pause when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long answers may take to end once the node goes down. Then the rest is cut off: a client
/// of a stream must see an error, not an end, so that it goes on elsewhere.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// The two ends of a request's connection.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub peer: SocketAddr,
    pub local: SocketAddr,
}

/// Serves until `stopping`, then lets answers end for two seconds and cuts off what is left.
pub async fn serve(
    listeners: Vec<TcpListener>,
    router: Router,
    limits: Limits,
    stats: Arc<Stats>,
    stopping: CancellationToken,
) {
    let door = Door {
        router,
        seats: Seats::new(limits),
        stats,
        builder: builder(),
        graceful: GracefulShutdown::new(),
    };
    let accepting = listeners.into_iter().map(|listener| accept(&door, listener, &stopping));
    let connections = futures_util::future::join_all(accepting).await;
    if tokio::time::timeout(DRAIN_TIME_MAX, door.graceful.shutdown()).await.is_err() {
        debug!("Cut off answers that did not end in time");
    }
    for mut connections in connections {
        connections.shutdown().await;
    }
}

struct Door {
    router: Router,
    seats: Arc<Seats>,
    stats: Arc<Stats>,
    builder: Builder<TokioExecutor>,
    graceful: GracefulShutdown,
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        // Consul's spelling on the wire: some clients look for `X-Consul-Index` byte by byte.
        .title_case_headers(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL);
    builder
}

/// Accepts until `stopping` and returns the connections that are open then.
async fn accept(door: &Door, listener: TcpListener, stopping: &CancellationToken) -> JoinSet<()> {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = stopping.cancelled() => return connections,
        };
        match accepted {
            Ok((stream, peer)) => match door.seats.take(peer.ip()) {
                Some(seat) => door.seat(&mut connections, stream, peer, seat),
                None => {
                    door.stats.turned_away.fetch_add(1, Ordering::Relaxed);
                    debug!(%peer, "Turned a connection away, all seats being taken");
                }
            },
            Err(error) => pause_after(&error).await,
        }
    }
}

/// A connection that died while it waited is its own affair; anything else is a lack of
/// something, most likely of file descriptors, and trying again at once would only burn the CPU.
async fn pause_after(error: &io::Error) {
    match error.kind() {
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset => {}
        _ => {
            warn!(%error, "Cannot accept HTTP connections");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

impl Door {
    fn seat(&self, connections: &mut JoinSet<()>, stream: TcpStream, peer: SocketAddr, seat: Seat) {
        let Ok(local) = stream.local_addr() else { return };
        // Answers are small and whole; waiting for more to send only delays them.
        let _ = stream.set_nodelay(true);
        let has_asked = Arc::new(AtomicBool::new(false));
        let service = {
            let (router, has_asked) = (self.router.clone(), Arc::clone(&has_asked));
            hyper::service::service_fn(move |mut request: Request<Incoming>| {
                has_asked.store(true, Ordering::Relaxed);
                request.extensions_mut().insert(Ends { peer, local });
                let router = router.clone();
                async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(never)) }
            })
        };
        let connection = self.builder.serve_connection(TokioIo::new(stream), service).into_owned();
        let served = self.graceful.watch(connection);
        let stats = Arc::clone(&self.stats);
        connections.spawn(async move {
            let _seat = seat;
            let _open = Gauged::new(&stats.connections);
            tokio::pin!(served);
            let result = tokio::select! {
                result = &mut served => result,
                () = silence(&has_asked) => {
                    stats.silent.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            };
            if let Err(error) = result {
                debug!(%peer, %error, "A connection broke");
            }
        });
    }
}

/// Ends when a connection has not asked anything in time; never for one that has.
async fn silence(has_asked: &AtomicBool) {
    tokio::time::sleep(FIRST_HEAD_TIME_MAX).await;
    if has_asked.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

fn never<T>(error: Infallible) -> T {
    match error {}
}
