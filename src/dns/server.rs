//! Binding the listeners and running them: threads for UDP, tasks for TCP.

use std::net::{IpAddr, SocketAddr};
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
use super::cookie::Cookies;
use super::counters::{Counters, add_one};
use super::{tcp, udp, wire};
use crate::live::Feed;
use crate::telemetry::Pulses;

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
    cookies: Cookies,
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
#[error("the DNS listener on {listener} ended: {reason}")]
pub struct RunError {
    listener: String,
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
        let shared =
            Arc::new(Shared { config, counters: Arc::default(), cookies: Cookies::default() });
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
    pub async fn run(
        &self,
        feed: Arc<Feed>,
        pulses: &Pulses,
        token: CancellationToken,
    ) -> Result<(), RunError> {
        // Whatever ends this run ends all of its workers.
        let token = token.child_token();
        let _guard = token.clone().drop_guard();
        let (ended, mut endings) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        for listener in &self.listeners {
            let address = listener.address;
            let failed = move |reason| RunError { listener: format!("UDP {address}"), reason };
            for endpoint in &listener.udp {
                let worker = Worker::new(Arc::clone(&self.shared), Arc::clone(&feed));
                let (endpoint, token, ended) = (Arc::clone(endpoint), token.clone(), ended.clone());
                let pulse = pulses.add("dns-udp");
                let run = move || {
                    let result = udp::run(&endpoint, worker, &token, &pulse).map_err(failed);
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
            let pulse = pulses.add("dns-tcp");
            tasks.spawn(async move { tcp::run(acceptor, shared, feed, token, pulse).await });
        }
        drop(ended);
        tokio::select! {
            () = token.cancelled() => {}
            Some(result) = endings.recv() => result?,
            // It ends by the token, else by a panic.
            Some(Err(panic)) = tasks.join_next() => {
                let reason = io::Error::other(panic);
                return Err(RunError { listener: "TCP".to_owned(), reason });
            }
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
    pub fn answer(&mut self, packet: &[u8], client: IpAddr, transport: Transport) -> bool {
        let shared = Arc::clone(&self.shared);
        self.answer_with(&shared.config, packet, client, transport)
    }

    /// Answers with another configuration than the shared one.
    pub fn answer_with(
        &mut self,
        config: &Config,
        packet: &[u8],
        client: IpAddr,
        transport: Transport,
    ) -> bool {
        let (seed, now_unix) = (self.random.next_number(), now_unix());
        let client = Some((client, &self.shared.cookies));
        let request = Request { packet, transport, seed, now_unix, client };
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use hickory_proto::op::Message;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UdpSocket};
    use tokio::time::timeout;

    use super::*;
    use crate::dns::testing::{Catalog, question};

    /// A wait that only a failing test comes to the end of.
    const PATIENCE: Duration = Duration::from_secs(20);

    struct Running {
        address: SocketAddr,
        counters: Arc<Counters>,
        token: CancellationToken,
        task: tokio::task::JoinHandle<Result<(), RunError>>,
    }

    fn config(address: &str) -> Config {
        Config {
            listen: vec![(address.parse().unwrap(), false)],
            udp_workers: 2,
            ..Config::default()
        }
    }

    fn start(address: &str) -> Running {
        let catalog = (0..60).fold(Catalog::new(), |catalog, n| {
            catalog.instance(&format!("app a{n} 10.0.0.{n}:80"))
        });
        let dns = Dns::bind(config(address)).unwrap();
        let (address, counters) = (dns.local_addrs()[0], dns.counters());
        let (feed, token) = (Arc::new(Feed::new(catalog.view)), CancellationToken::new());
        let ending = token.clone();
        let task = tokio::spawn(async move { dns.run(feed, &Pulses::default(), ending).await });
        Running { address, counters, token, task }
    }

    impl Running {
        async fn stop(self) {
            self.token.cancel();
            timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
            // The port is free again.
            Dns::bind(config(&self.address.to_string())).unwrap();
        }
    }

    async fn ask_udp(to: SocketAddr, packet: &[u8]) -> Message {
        let socket = UdpSocket::bind((to.ip(), 0)).await.unwrap();
        socket.connect(to).await.unwrap();
        socket.send(packet).await.unwrap();
        let mut reply = [0; 4_096];
        let length = timeout(PATIENCE, socket.recv(&mut reply)).await.unwrap().unwrap();
        Message::from_vec(&reply[..length]).unwrap()
    }

    async fn read_tcp(stream: &mut TcpStream) -> Message {
        let length = usize::from(stream.read_u16().await.unwrap());
        let mut reply = vec![0; length];
        stream.read_exact(&mut reply).await.unwrap();
        Message::from_vec(&reply).unwrap()
    }

    fn framed(packet: &[u8]) -> Vec<u8> {
        [&u16::try_from(packet.len()).unwrap().to_be_bytes()[..], packet].concat()
    }

    #[tokio::test]
    async fn udp_cuts_and_tcp_gives_the_whole() {
        let running = start("127.0.0.1:0");
        let packet = question("app.internal. A", 0);
        let cut = ask_udp(running.address, &packet).await;
        assert!(cut.metadata.truncation && cut.answers.len() < 60);
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(&framed(&packet)).await.unwrap();
        let whole = timeout(PATIENCE, read_tcp(&mut stream)).await.unwrap();
        assert_eq!((whole.answers.len(), whole.metadata.truncation), (60, false));
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &running.counters;
        assert_eq!([count(&counters.kinds.a), count(&counters.truncated)], [2, 1]);
        running.stop().await;
    }

    #[tokio::test]
    async fn an_ipv6_listener_answers_and_leaves_ipv4_alone() {
        let Ok(probe) = net::UdpSocket::bind("[::1]:0") else { return };
        drop(probe);
        let running = start("[::]:0");
        let to = SocketAddr::new("::1".parse().unwrap(), running.address.port());
        assert_eq!(ask_udp(to, &question("a1.app.internal. A", 0)).await.answers.len(), 1);
        net::TcpListener::bind(("127.0.0.1", running.address.port())).unwrap();
        running.stop().await;
    }

    #[tokio::test]
    async fn a_socket_for_all_addresses_replies_from_the_one_that_was_asked() {
        let running = start("0.0.0.0:0");
        let to = SocketAddr::new("127.0.0.53".parse().unwrap(), running.address.port());
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&question("a1.app.internal. A", 0), to).await.unwrap();
        let mut reply = [0; 512];
        let (_, from) = timeout(PATIENCE, socket.recv_from(&mut reply)).await.unwrap().unwrap();
        assert_eq!(from, to);
        running.stop().await;
    }

    #[tokio::test]
    async fn questions_on_one_connection_are_answered_in_order() {
        let running = start("127.0.0.1:0");
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        let mut all = Vec::new();
        for id in 0..200u16 {
            let mut packet = question("a1.app.internal. A", 0);
            packet[..2].copy_from_slice(&id.to_be_bytes());
            all.extend(framed(&packet));
        }
        stream.write_all(&all).await.unwrap();
        for id in 0..200 {
            let reply = timeout(PATIENCE, read_tcp(&mut stream)).await.unwrap();
            assert_eq!(reply.metadata.id, id);
        }
        running.stop().await;
    }

    #[tokio::test]
    async fn a_connection_that_sends_no_question_is_closed() {
        let running = start("127.0.0.1:0");
        let reply_to_a_reply = framed(&[0, 1, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for wrong in [&[0, 0][..], &[0xff, 0xff], &[0, 3, 1, 2, 3], &reply_to_a_reply] {
            let mut stream = TcpStream::connect(running.address).await.unwrap();
            stream.write_all(wrong).await.unwrap();
            let mut rest = Vec::new();
            timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
            assert!(rest.is_empty());
        }
        running.stop().await;
    }

    #[test]
    fn a_taken_port_is_said_in_one_sentence_unless_it_is_optional() {
        let taken = Dns::bind(config("127.0.0.1:0")).unwrap();
        let address = taken.local_addrs()[0];
        let sentence = Dns::bind(config(&address.to_string())).err().unwrap().to_string();
        assert!(sentence.starts_with(&format!("DNS cannot listen on {address}: ")), "{sentence}");
        assert!(sentence.ends_with("; choose another address with --dns"), "{sentence}");
        let optional = Config { listen: vec![(address, true)], ..Config::default() };
        assert_eq!(Dns::bind(optional).unwrap().local_addrs(), []);
    }

    #[test]
    fn a_port_that_another_has_over_udp_alone_is_taken_too() {
        let other = net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(Dns::bind(config(&other.local_addr().unwrap().to_string())).is_err());
    }

    #[test]
    fn the_likely_owner_of_a_port_is_named() {
        let hint =
            |address: &str, kind: io::ErrorKind| hint(address.parse().unwrap(), &kind.into());
        assert!(hint("127.0.0.1:8600", io::ErrorKind::AddrInUse).contains("Consul agent"));
        assert!(hint("127.0.0.1:53", io::ErrorKind::AddrInUse).contains("dnsmasq"));
        assert!(hint("127.0.0.1:53", io::ErrorKind::PermissionDenied).contains("CAP_NET_BIND"));
        assert_eq!(hint("127.0.0.1:8600", io::ErrorKind::NotFound), "");
    }
}
