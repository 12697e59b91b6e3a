//! Binding the listeners and running them: threads for UDP, tasks for TCP.

use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{io, net};

use hickory_proto::op::ResponseCode;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::answer::{Answered, Client, Outcome, Request, Transport, answer_and_learn};
use super::choose::Random;
use super::clients::Networks;
use super::config::{Config, Secure};
use super::cookie::{Asked, Cookies};
use super::counters::{Counters, add_one};
use super::errand::{self, Errand, Told};
use super::fast::Fast;
use super::rate::{Rates, Verdict};
use super::recursion::Recursor;
use super::recursion::known::Known;
use super::secure::{Certificate, FilesError};
use super::{tcp, udp, wire};
use crate::live::Feed;
use crate::telemetry::Pulses;

/// How often a free port is looked for when any will do: UDP and TCP must both have it.
const PORT_ATTEMPTS: usize = 16;
/// Connections that wait to be accepted.
const TCP_BACKLOG: i32 = 256;
/// How often old views are let go of.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// Questions that wait for other servers. Who comes when all seats are taken is told that it failed.
const ERRANDS_MAX: usize = 1_024;

/// The DNS listeners, bound and not yet running.
pub struct Dns {
    shared: Arc<Shared>,
    listeners: Vec<Listener>,
    secure: Vec<(net::TcpListener, tcp::Over)>,
    certificate: Option<Arc<Certificate>>,
}

/// What all workers share.
pub struct Shared {
    pub config: Config,
    pub counters: Arc<Counters>,
    pub cookies: Cookies,
    /// `None`: nobody else is asked.
    pub recursor: Option<Recursor>,
    pub seats: Arc<Semaphore>,
    /// Who is no stranger.
    friends: Networks,
    /// Whether everybody is answered who is no stranger.
    answers_all: bool,
    rates: Rates,
}

impl Shared {
    /// Tells whether a client gets whatever it asks for, and as often as it asks.
    fn is_answered_whole(&self, client: IpAddr) -> bool {
        self.answers_all && self.friends.contains(client)
    }

    /// Cuts a reply over UDP to a stranger that is too much; false: nothing is to be sent.
    pub fn restrain(
        &self,
        outcome: &mut Outcome,
        (client, now_unix): (IpAddr, u32),
        asked_bytes: usize,
        reply: &mut Vec<u8>,
    ) -> bool {
        let is_proof = |cookie: Asked| self.cookies.is_proof(cookie, client, now_unix);
        if self.friends.contains(client) || outcome.cookie.is_some_and(is_proof) {
            return true;
        }
        let factor = self.config.stranger_factor;
        let is_much = factor > 0 && reply.len() > asked_bytes.saturating_mul(factor);
        let verdict = match self.rates.take(client, Instant::now()) {
            Verdict::Whole if is_much => Verdict::Cut,
            verdict => verdict,
        };
        match verdict {
            Verdict::Whole => return true,
            Verdict::Cut => {
                wire::cut(reply);
                if outcome.has_edns {
                    // RFC 6891, section 7: a reply that was cut has it, too.
                    reply[11] = 1;
                    reply.extend_from_slice(&wire::plain_opt(&self.config));
                }
                outcome.is_truncated = true;
            }
            Verdict::Nothing => {}
        }
        add_one(&self.counters.restrained);
        verdict == Verdict::Cut
    }
}

struct Listener {
    address: SocketAddr,
    udp: Vec<Arc<udp::Endpoint>>,
    tcp: net::TcpListener,
}

/// A listener could not be had. Nothing is bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("DNS cannot listen on {address}: {reason}{hint}; choose another address with {option}")]
    Taken { address: SocketAddr, hint: &'static str, option: &'static str, reason: io::Error },
    #[error(transparent)]
    Certificate(#[from] FilesError),
}

impl BindError {
    fn of(address: SocketAddr, option: &'static str, reason: io::Error) -> Self {
        Self::Taken { address, hint: hint(address, &reason), option, reason }
    }
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
    ///
    /// # Errors
    /// A listener cannot be had, or the certificate cannot be used. Nothing is bound.
    pub fn bind(config: Config) -> Result<Self, BindError> {
        let mut secured = Vec::new();
        let mut certificate = None;
        if let Some(Secure { files, tls, https }) = &config.secure {
            let loaded = Certificate::load(files.clone())?;
            let over_tls = tcp::Over::Tls(loaded.acceptor(&[b"dot"]));
            let over_https = tcp::Over::Https(loaded.acceptor(&[b"h2", b"http/1.1"]));
            let all = tls.iter().map(|address| (address, &over_tls));
            for (address, over) in all.chain(https.iter().map(|address| (address, &over_https))) {
                let option = "tls_listen or https_listen of [dns]";
                let listener =
                    listen(*address).map_err(|reason| BindError::of(*address, option, reason))?;
                secured.push((listener, over.clone()));
            }
            certificate = Some(loaded);
        }
        let mut listeners = Vec::new();
        for (address, is_optional) in &config.listen {
            match Listener::bind(*address, config.udp_workers.max(1)) {
                Ok(listener) => listeners.push(listener),
                Err(error) if *is_optional => info!(%address, "No DNS there: {error}"),
                Err(error) => return Err(error),
            }
        }
        let counters = Arc::<Counters>::default();
        let recursion = &config.recursion;
        let recursor =
            recursion.is_on().then(|| Recursor::new(recursion.clone(), Arc::clone(&counters)));
        let cookies = Cookies::default();
        let seats = Arc::new(Semaphore::new(ERRANDS_MAX));
        let rates = Rates::new(config.stranger_rate);
        let friends = Networks::private();
        let answers_all = config.allow_query == Networks::any();
        let shared =
            Shared { config, counters, cookies, recursor, seats, friends, answers_all, rates };
        let shared = Arc::new(shared);
        Ok(Self { shared, listeners, secure: secured, certificate })
    }

    /// Returns the addresses that are bound, in the order of the configuration.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listener| listener.address).collect()
    }

    /// Returns the addresses of TLS, then those of HTTPS.
    pub fn secure_addrs(&self) -> Vec<SocketAddr> {
        self.secure.iter().filter_map(|(listener, _)| listener.local_addr().ok()).collect()
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
                let fast = Replies::Own(Box::new(Fast::new(feed.view(), &self.shared.config)));
                let worker = Worker::new(Arc::clone(&self.shared), Arc::clone(&feed), fast);
                let (endpoint, token, ended) = (Arc::clone(endpoint), token.clone(), ended.clone());
                let pulse = pulses.add("dns-udp");
                let errands = Errands { runtime: Handle::current(), token: token.clone() };
                let run = move || {
                    let result =
                        udp::run(&endpoint, worker, &errands, &token, &pulse).map_err(failed);
                    // Nobody listens any more when the run is over.
                    let _ = ended.send(result);
                };
                let thread = std::thread::Builder::new().name("dns-udp".to_owned());
                thread.spawn(run).map_err(failed)?;
            }
        }
        let fast = Arc::new(Mutex::new(Fast::new(feed.view(), &self.shared.config)));
        tasks.spawn(renew(Arc::clone(&fast), Arc::clone(&feed), token.clone()));
        let of = Arc::clone(&self.shared);
        let make = move || {
            Worker::new(Arc::clone(&of), Arc::clone(&feed), Replies::Common(Arc::clone(&fast)))
        };
        let plain = self.listeners.iter().map(|listener| (&listener.tcp, tcp::Over::Plain));
        let secure = self.secure.iter().map(|(listener, over)| (listener, over.clone()));
        for (listener, over) in plain.chain(secure) {
            let failed = |reason| RunError { listener: "TCP".to_owned(), reason };
            let listener = listener.try_clone().map_err(failed)?;
            let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
            let pulse = pulses.add("dns-tcp");
            let (shared, make, token) = (Arc::clone(&self.shared), make.clone(), token.clone());
            tasks.spawn(tcp::run(listener, over, shared, make, token, pulse));
        }
        if let Some(certificate) = &self.certificate {
            let (certificate, token) = (Arc::clone(certificate), token.clone());
            tasks.spawn(async move { certificate.renew(token).await });
        }
        drop(ended);
        let (shared, ending) = (Arc::clone(&self.shared), token.clone());
        tasks.spawn(async move {
            if let Some(recursor) = &shared.recursor {
                ending.run_until_cancelled(recursor.look_for_circles()).await;
            }
            ending.cancelled().await;
        });
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

/// Has connections' replies follow the view when nobody asks: an old one would stay in memory.
async fn renew(fast: Arc<Mutex<Fast>>, feed: Arc<Feed>, token: CancellationToken) {
    let rest = || tokio::time::sleep(RENEW_EVERY);
    while token.run_until_cancelled(rest()).await.is_some() {
        // Who holds it does the same.
        if let Ok(mut fast) = fast.try_lock() {
            fast.look(&feed);
        }
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
        result.map_err(|reason| BindError::of(address, "--dns", reason))
    }

    /// Takes TCP first: sockets that share a port by `SO_REUSEPORT` would share it with another
    /// process of the same user as well, and only one process can listen over TCP.
    fn try_bind(address: SocketAddr, workers: usize) -> io::Result<Self> {
        let tcp = listen(address)?;
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

fn listen(address: SocketAddr) -> io::Result<net::TcpListener> {
    let socket = socket(address, Type::STREAM)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(TCP_BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
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
    fast: Replies,
}

/// Replies that were worked out before.
pub enum Replies {
    /// A thread's.
    Own(Box<Fast>),
    /// Those of all connections, each of which may last for one question only.
    Common(Arc<Mutex<Fast>>),
}

impl Worker {
    pub fn new(shared: Arc<Shared>, feed: Arc<Feed>, fast: Replies) -> Self {
        let (random, reply) = (Random(rand::random()), Vec::with_capacity(4_096));
        Self { shared, feed, random, reply, fast }
    }

    /// Lets go of what is no longer true, so that it is not kept in memory for those who sleep.
    pub fn rest(&mut self) {
        if let Replies::Own(fast) = &mut self.fast {
            fast.look(&self.feed);
        }
    }

    /// Answers a packet into `self.reply`, unless others are to be asked. Counts what happened.
    pub fn answer(&mut self, packet: &[u8], client: IpAddr, transport: Transport) -> Told {
        self.answer_with(None, packet, client, transport)
    }

    /// Answers with another configuration than the shared one.
    pub fn answer_with(
        &mut self,
        config: Option<&Config>,
        packet: &[u8],
        ip: IpAddr,
        transport: Transport,
    ) -> Told {
        let Self { shared, feed, random, reply, fast } = self;
        let config = config.unwrap_or(&shared.config);
        let may_ask = shared.recursor.is_some() && config.recursion.clients.contains(ip);
        let mut common = None;
        let mut fast = match fast {
            Replies::Own(fast) => Some(&mut **fast),
            // Who finds it taken works it out.
            Replies::Common(fast) => {
                common = fast.try_lock().ok();
                common.as_deref_mut()
            }
        };
        if let Some(fast) = &mut fast {
            fast.look(feed);
            reply.clear();
            if shared.is_answered_whole(ip)
                && let Some(outcome) =
                    fast.answer(packet, (transport, may_ask), config, random, reply)
            {
                shared.counters.count(&outcome);
                return Told::Ready;
            }
        }
        let view = fast.as_ref().map_or_else(|| feed.view(), |fast| Arc::clone(fast.view()));
        let (seed, now_unix) = (random.next_number(), now_unix());
        let client = Some(Client { ip, cookies: &shared.cookies });
        let known = may_ask.then_some(Known::NOTHING);
        let measured = feed.distances();
        let distances = Some(&*measured);
        let request = Request { packet, transport, seed, now_unix, client, known, distances };
        // The buffer is cleared by whoever writes into it next: no half-made state is seen.
        let answered =
            AssertUnwindSafe(|| answer_and_learn(&view, config, request, fast.take(), reply));
        let answered = catch_unwind(answered).unwrap_or_else(|_| apologise(shared, packet, reply));
        drop(common);
        let (told, outcome) = match answered {
            Answered::Silence => (Told::Silence, None),
            Answered::Reply(outcome) => (Told::Ready, Some(outcome)),
            Answered::Incomplete(..) | Answered::Elsewhere(_) => {
                errand::begin(shared, request, answered, reply)
            }
        };
        let Some(mut outcome) = outcome else {
            if matches!(told, Told::Silence) {
                add_one(&shared.counters.dropped);
            }
            return told;
        };
        let is_sent = transport != Transport::Udp
            || shared.restrain(&mut outcome, (ip, now_unix), packet.len(), reply);
        shared.counters.count(&outcome);
        if is_sent { told } else { Told::Silence }
    }

    /// Does what others are needed for.
    pub fn run(&self, errand: Errand) -> impl Future<Output = Option<Vec<u8>>> + Send + use<> {
        let (shared, feed) = (Arc::clone(&self.shared), Arc::clone(&self.feed));
        async move { errand.run(&shared, &feed).await }
    }
}

/// A bug in answering one packet must not take the others' answers away.
fn apologise(shared: &Shared, packet: &[u8], reply: &mut Vec<u8>) -> Answered {
    error!(packet = ?packet, "Answering a packet panicked");
    add_one(&shared.counters.panics);
    let code = ResponseCode::ServFail;
    let Some(header) = packet.get(..wire::HEADER_BYTES) else { return Answered::Silence };
    wire::write_header(reply, header, code);
    Answered::Reply(Outcome::unread(code))
}

/// Where a thread has errands run that wait for others.
pub struct Errands {
    pub runtime: Handle,
    pub token: CancellationToken,
}

impl Errands {
    /// Runs one; it ends with the listener.
    pub fn spawn(&self, errand: impl Future<Output = ()> + Send + 'static) {
        let token = self.token.clone();
        self.runtime.spawn(async move { token.run_until_cancelled(errand).await });
    }
}

/// Returns the seconds since 1970.
pub fn now_unix() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Serial numbers are counted modulo 2^32 (RFC 1982).
    (since.as_secs() & u64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use hickory_proto::op::Message;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UdpSocket};
    use tokio::time::timeout;

    use super::*;
    use crate::dns::testing::running::{self, PATIENCE, Running, framed, read_tcp};
    use crate::dns::testing::{Catalog, question};

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
        Running::start(config(address), catalog.view)
    }

    /// Stops it, and looks whether the port is free again.
    async fn stop(running: Running) {
        let address = running.address;
        running.stop().await;
        Dns::bind(config(&address.to_string())).unwrap();
    }

    async fn ask_udp(to: SocketAddr, packet: &[u8]) -> Message {
        Message::from_vec(&running::ask_udp(to, packet).await).unwrap()
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
        stop(running).await;
    }

    /// Answers a question of somebody over UDP, sixty instances if they get all of them.
    fn answer_to(worker: &mut Worker, client: &str, packet: &[u8]) -> Option<Message> {
        match worker.answer(packet, client.parse().unwrap(), Transport::Udp) {
            Told::Ready => Some(Message::from_vec(&worker.reply).unwrap()),
            Told::Silence => None,
            Told::Later(_) => panic!("nobody else is to be asked"),
        }
    }

    fn worker(config: Config) -> Worker {
        let catalog = (0..60).fold(Catalog::new(), |catalog, n| {
            catalog.instance(&format!("app a{n} 10.0.0.{n}:80"))
        });
        let dns = Dns::bind(config).unwrap();
        let feed = Arc::new(Feed::new(catalog.view));
        let fast = Replies::Own(Box::new(Fast::new(feed.view(), &dns.shared.config)));
        Worker::new(Arc::clone(&dns.shared), feed, fast)
    }

    #[tokio::test]
    async fn a_stranger_gets_no_long_replies_unless_it_shows_where_it_is() {
        let mut worker = worker(config("127.0.0.1:0"));
        let mut packet = question("app.internal. A", 1_232);
        let whole = answer_to(&mut worker, "10.9.9.9", &packet).unwrap();
        assert_eq!((whole.answers.len(), whole.metadata.truncation), (60, false));
        let cut = answer_to(&mut worker, "198.51.100.1", &packet).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.queries.len() == 1);
        assert!(cut.edns.is_some());
        // A short one is no use to whoever forges its sender.
        let short = question("a1.app.internal. A", 1_232);
        assert_eq!(answer_to(&mut worker, "198.51.100.1", &short).unwrap().answers.len(), 1);
        // It comes again with the cookie that it was given.
        let asked = Asked::read(&[7; 8]).unwrap();
        let given =
            worker.shared.cookies.answer(asked, "198.51.100.1".parse().unwrap(), now_unix());
        let end = packet.len();
        packet[end - 1] = 28;
        packet.extend_from_slice(&[0, 10, 0, 24]);
        packet.extend_from_slice(&given);
        let whole = answer_to(&mut worker, "198.51.100.1", &packet).unwrap();
        assert_eq!((whole.answers.len(), whole.metadata.truncation), (60, false));
        assert!(answer_to(&mut worker, "198.51.100.2", &packet).unwrap().metadata.truncation);
        assert_eq!(worker.shared.counters.restrained.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn strangers_are_answered_only_so_fast() {
        let config = Config { stranger_rate: 5, ..config("127.0.0.1:0") };
        let mut worker = worker(config);
        let packet = question("a1.app.internal. A", 0);
        let mut replies = |client: &str| {
            let replies: Vec<_> =
                (0..1_000).map(|_| answer_to(&mut worker, client, &packet)).collect();
            let is_cut = |reply: &&Message| reply.metadata.truncation;
            let sent = replies.iter().flatten();
            (
                sent.clone().count() - sent.clone().filter(is_cut).count(),
                sent.filter(is_cut).count(),
            )
        };
        assert_eq!(replies("192.168.1.1"), (1_000, 0));
        // Some more as the time goes by.
        let (whole, cut) = replies("203.0.113.1");
        assert!((5..300).contains(&whole) && (350..500).contains(&cut), "{whole} and {cut}");
    }

    #[tokio::test]
    async fn who_is_not_allowed_to_ask_is_refused() {
        let allow_query = Networks::parse(&["10.0.0.0/8"]).unwrap();
        let mut worker = worker(Config { allow_query, ..config("127.0.0.1:0") });
        let packet = question("a1.app.internal. A", 0);
        let mut code =
            |client| answer_to(&mut worker, client, &packet).unwrap().metadata.response_code;
        assert_eq!(code("10.1.2.3"), ResponseCode::NoError);
        assert_eq!(code("127.0.0.1"), ResponseCode::Refused);
    }

    #[tokio::test]
    async fn an_ipv6_listener_answers_and_leaves_ipv4_alone() {
        let Ok(probe) = net::UdpSocket::bind("[::1]:0") else { return };
        drop(probe);
        let running = start("[::]:0");
        let to = SocketAddr::new("::1".parse().unwrap(), running.address.port());
        assert_eq!(ask_udp(to, &question("a1.app.internal. A", 0)).await.answers.len(), 1);
        net::TcpListener::bind(("127.0.0.1", running.address.port())).unwrap();
        stop(running).await;
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
        stop(running).await;
    }

    #[tokio::test]
    async fn thousands_of_idle_connections_take_nothing_from_those_who_ask() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
        // Each has two ends in this process.
        let room = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(500) / 2;
        let count = usize::try_from(room.min(10_000)).unwrap();
        let running = start("127.0.0.1:0");
        let (mut held, mut used) = (Vec::new(), TcpStream::connect(running.address).await.unwrap());
        for n in 1..count {
            held.push(TcpStream::connect(running.address).await.unwrap());
            if n % 500 == 0 {
                let reply = ask_udp(running.address, &question("a1.app.internal. A", 0)).await;
                assert_eq!(reply.answers.len(), 1);
                // So is who was let in.
                used.write_all(&framed(&question("app.internal. A", 0))).await.unwrap();
                let whole = timeout(PATIENCE, read_tcp(&mut used)).await.unwrap();
                assert_eq!(whole.answers.len(), 60);
            }
        }
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let seen = || load(&running.counters.tcp_accepted) + load(&running.counters.tcp_refused);
        while seen() < count as u64 {
            tokio::task::yield_now().await;
        }
        assert!(load(&running.counters.tcp_accepted) < 1_000, "the rest is closed");
        let reply = ask_udp(running.address, &question("a1.app.internal. A", 0)).await;
        assert_eq!(reply.answers.len(), 1);
        drop((held, used));
        stop(running).await;
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
        stop(running).await;
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
        stop(running).await;
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
