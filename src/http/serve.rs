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

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use futures_util::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;

    struct Server {
        address: SocketAddr,
        stats: Arc<Stats>,
        stopping: CancellationToken,
        task: JoinHandle<()>,
    }

    /// Serves a page that answers, one that never does, and a stream that never ends.
    async fn server(limits: Limits) -> Server {
        let router = Router::new()
            .route("/", get(|| async { ([("x-consul-index", "7")], "hello") }))
            .route("/never", get(std::future::pending::<()>))
            .route(
                "/stream",
                get(|| async {
                    let first = futures_util::stream::once(async { Ok::<_, io::Error>("first\n") });
                    Body::from_stream(first.chain(futures_util::stream::pending()))
                }),
            );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stats, stopping) = (Arc::<Stats>::default(), CancellationToken::new());
        let serving = serve(vec![listener], router, limits, Arc::clone(&stats), stopping.clone());
        Server { address, stats, stopping, task: tokio::spawn(serving) }
    }

    async fn raw(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    fn http2() -> reqwest::Client {
        // Another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::builder().http2_prior_knowledge().build().unwrap()
    }

    #[tokio::test]
    async fn one_port_speaks_http_1_0_and_1_1_and_cleartext_http_2() {
        let server = server(Limits::default()).await;
        let old = raw(server.address, "GET / HTTP/1.0\r\n\r\n").await;
        assert!(old.starts_with("HTTP/1.0 200 OK\r\n") && old.ends_with("\r\n\r\nhello"), "{old}");
        let usual = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let usual = raw(server.address, usual).await;
        assert!(usual.starts_with("HTTP/1.1 200 OK\r\n"), "{usual}");
        assert!(usual.contains("\r\nX-Consul-Index: 7\r\n"), "{usual}");
        let modern = http2().get(format!("http://{}/", server.address)).send().await.unwrap();
        assert_eq!(modern.version(), axum::http::Version::HTTP_2);
        assert_eq!(modern.text().await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_is_refused() {
        let server = server(Limits::default()).await;
        let long = "x".repeat(HEAD_BYTES_MAX);
        let request = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {long}\r\n\r\n");
        let reply = raw(server.address, &request).await;
        assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
    }

    #[tokio::test]
    async fn past_the_limit_a_connection_is_closed_at_once() {
        let limits = Limits { per_loopback: 1, ..Limits::default() };
        let server = server(limits).await;
        let mut held = TcpStream::connect(server.address).await.unwrap();
        held.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut first = [0; 1];
        held.read_exact(&mut first).await.unwrap();
        let mut refused = TcpStream::connect(server.address).await.unwrap();
        assert_eq!(refused.read(&mut first).await.unwrap_or(0), 0);
        assert_eq!(server.stats.turned_away.load(Ordering::Relaxed), 1);
        drop(held);
        while server.stats.connections.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        let reply = raw(server.address, "GET / HTTP/1.0\r\n\r\n").await;
        assert!(reply.ends_with("hello"));
    }

    #[tokio::test]
    async fn a_client_that_goes_away_frees_its_handler() {
        let server = server(Limits::default()).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        while server.stats.connections.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        drop(stream);
        while server.stats.connections.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn on_the_way_down_answers_end_and_streams_are_cut_off() {
        let server = server(Limits::default()).await;
        let url = format!("http://{}/stream", server.address);
        let mut modern = http2().get(&url).send().await.unwrap();
        assert_eq!(modern.chunk().await.unwrap().unwrap(), "first\n");
        let mut plain = TcpStream::connect(server.address).await.unwrap();
        plain.write_all(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut first = [0; 1];
        plain.read_exact(&mut first).await.unwrap();

        server.stopping.cancel();
        assert!(modern.chunk().await.is_err(), "an end would look like the end of the stream");
        let mut rest = Vec::new();
        let _ = plain.read_to_end(&mut rest).await;
        assert!(
            !rest.ends_with(b"0\r\n\r\n"),
            "a last chunk would look like the end of the stream"
        );
        server.task.await.unwrap();
        assert!(TcpStream::connect(server.address).await.is_err());
    }
}
