//! Binding the listeners and running them: threads for UDP, tasks for TCP.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{io, net};

use hickory_proto::op::ResponseCode;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::answer::{Outcome, Request, Transport, answer_into};
use super::choose::Random;
use super::config::Config;
use super::counters::{Counters, add_one};
use super::{tcp, udp, wire};
use crate::live::Feed;

/// How often a free port is looked for when any will do: UDP and TCP must both have it.
const PORT_ATTEMPTS: usize = 16;
/// Connections that wait to be accepted.
const TCP_BACKLOG: i32 = 256;

/// The DNS listeners, bound and not yet running.
pub struct Dns {
    shared: Arc<Shared>,
    listeners: Vec<Listener>,
}

/// What all workers share.
pub struct Shared {
    pub config: Config,
    pub counters: Arc<Counters>,
}

struct Listener {
    address: SocketAddr,
    udp: Vec<Arc<udp::Endpoint>>,
    tcp: net::TcpListener,
}

/// A listener could not be had. Nothing is bound.
#[derive(Debug, thiserror::Error)]
#[error("DNS cannot listen on {address}: {reason}{hint}; choose another address with --dns")]
pub struct BindError {
    pub address: SocketAddr,
    hint: &'static str,
    reason: io::Error,
}

/// A listener ended by itself. The sockets are still bound: `run` may be called again.
#[derive(Debug, thiserror::Error)]
#[error("the DNS listener on {address} ended: {reason}")]
pub struct RunError {
    pub address: SocketAddr,
    reason: io::Error,
}

impl Dns {
    /// Binds every listener, over UDP and TCP. Of an optional one that fails a line is logged.
    pub fn bind(config: Config) -> Result<Self, BindError> {
        let mut listeners = Vec::new();
        for (address, is_optional) in &config.listen {
            match Listener::bind(*address, config.udp_workers.max(1)) {
                Ok(listener) => listeners.push(listener),
                Err(error) if *is_optional => info!(%address, "No DNS there: {error}"),
                Err(error) => return Err(error),
            }
        }
        let shared = Arc::new(Shared { config, counters: Arc::default() });
        Ok(Self { shared, listeners })
    }

    /// Returns the addresses that are bound, in the order of the configuration.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listener| listener.address).collect()
    }

    /// Returns the counters of all listeners.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.shared.counters)
    }

    /// Answers until the token is cancelled, or until a listener ends by itself.
    pub async fn run(&self, feed: Arc<Feed>, token: CancellationToken) -> Result<(), RunError> {
        // Whatever ends this run ends all of its workers.
        let token = token.child_token();
        let _guard = token.clone().drop_guard();
        let (ended, mut endings) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        for listener in &self.listeners {
            let address = listener.address;
            let failed = move |reason| RunError { address, reason };
            for endpoint in &listener.udp {
                let worker = Worker::new(Arc::clone(&self.shared), Arc::clone(&feed));
                let (endpoint, token, ended) = (Arc::clone(endpoint), token.clone(), ended.clone());
                let run = move || {
                    let result = udp::run(&endpoint, worker, &token).map_err(failed);
                    // Nobody listens any more when the run is over.
                    let _ = ended.send(result);
                };
                let thread = std::thread::Builder::new().name("dns-udp".to_owned());
                thread.spawn(run).map_err(failed)?;
            }
            let acceptor = listener.tcp.try_clone().map_err(failed)?;
            let acceptor = tokio::net::TcpListener::from_std(acceptor).map_err(failed)?;
            let (shared, feed, token) =
                (Arc::clone(&self.shared), Arc::clone(&feed), token.clone());
            tasks.spawn(async move { tcp::run(acceptor, shared, feed, token).await });
        }
        drop(ended);
        tokio::select! {
            () = token.cancelled() => {}
            Some(result) = endings.recv() => result?,
        }
        token.cancel();
        while tasks.join_next().await.is_some() {}
        // The channel closes when the last thread has ended.
        while endings.recv().await.is_some() {}
        Ok(())
    }
}

impl Listener {
    fn bind(address: SocketAddr, workers: usize) -> Result<Self, BindError> {
        let attempts = if address.port() == 0 { PORT_ATTEMPTS } else { 1 };
        let mut result = Self::try_bind(address, workers);
        for _ in 1..attempts {
            if result.is_ok() {
                break;
            }
            result = Self::try_bind(address, workers);
        }
        result.map_err(|reason| BindError { address, hint: hint(address, &reason), reason })
    }

    /// Takes TCP first: sockets that share a port by `SO_REUSEPORT` would share it with another
    /// process of the same user as well, and only one process can listen over TCP.
    fn try_bind(address: SocketAddr, workers: usize) -> io::Result<Self> {
        let tcp = socket(address, Type::STREAM)?;
        tcp.set_reuse_address(true)?;
        tcp.bind(&address.into())?;
        tcp.listen(TCP_BACKLOG)?;
        tcp.set_nonblocking(true)?;
        let tcp = net::TcpListener::from(tcp);
        let address = tcp.local_addr()?;
        // A UDP socket that does not share finds out whether anybody else has the port.
        socket(address, Type::DGRAM)?.bind(&address.into())?;
        let udp = (0..workers).map(|_| {
            let udp = socket(address, Type::DGRAM)?;
            udp.set_reuse_port(true)?;
            udp.bind(&address.into())?;
            Ok(Arc::new(udp::Endpoint::new(udp.into())?))
        });
        Ok(Self { address, udp: udp.collect::<io::Result<_>>()?, tcp })
    }
}

fn socket(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// Guesses why, from what usually has these ports.
fn hint(address: SocketAddr, reason: &io::Error) -> &'static str {
    match (reason.kind(), address.port()) {
        (io::ErrorKind::AddrInUse, 8600) => " (probably by a Consul agent on this host)",
        (io::ErrorKind::AddrInUse, 53) => " (probably by systemd-resolved or dnsmasq)",
        (io::ErrorKind::PermissionDenied, 1..1024) => {
            " (ports below 1024 need root or CAP_NET_BIND_SERVICE)"
        }
        _ => "",
    }
}

/// One thread's or connection's way to answers: its random numbers and its reply buffer.
pub struct Worker {
    pub shared: Arc<Shared>,
    feed: Arc<Feed>,
    random: Random,
    pub reply: Vec<u8>,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, feed: Arc<Feed>) -> Self {
        Self { shared, feed, random: Random(rand::random()), reply: Vec::with_capacity(4_096) }
    }

    /// Answers a packet into `self.reply`; false: nothing is to be sent. Counts what happened.
    pub fn answer(&mut self, packet: &[u8], transport: Transport) -> bool {
        let shared = Arc::clone(&self.shared);
        self.answer_with(&shared.config, packet, transport)
    }

    /// Answers with another configuration than the shared one.
    pub fn answer_with(&mut self, config: &Config, packet: &[u8], transport: Transport) -> bool {
        let request =
            Request { packet, transport, seed: self.random.next_number(), now_unix: now_unix() };
        let (view, reply) = (self.feed.view(), &mut self.reply);
        // The buffer is cleared by whoever writes into it next: no half-made state is seen.
        let answered = AssertUnwindSafe(|| answer_into(&view, config, request, reply));
        let outcome = catch_unwind(answered).unwrap_or_else(|_| self.apologise(packet));
        match outcome {
            Some(outcome) => self.shared.counters.count(&outcome),
            None => add_one(&self.shared.counters.dropped),
        }
        outcome.is_some()
    }

    /// A bug in answering one packet must not take the others' answers away.
    fn apologise(&mut self, packet: &[u8]) -> Option<Outcome> {
        error!(packet = ?packet, "Answering a packet panicked");
        add_one(&self.shared.counters.panics);
        let code = ResponseCode::ServFail;
        wire::write_header(&mut self.reply, packet.get(..wire::HEADER_BYTES)?, code);
        Some(Outcome { kind: None, code, is_truncated: false })
    }
}

fn now_unix() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Serial numbers are counted modulo 2^32 (RFC 1982).
    (since.as_secs() & u64::from(u32::MAX)) as u32
}
