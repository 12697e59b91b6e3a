//! Real servers on loopback: the one under test, and a stand-in for somebody else's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use hickory_proto::rr::Record;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::record;
use crate::catalog::View;
use crate::dns::config::Config;
use crate::dns::counters::Counters;
use crate::dns::server::{Dns, RunError};
use crate::live::Feed;
use crate::telemetry::Pulses;

/// A wait that only a failing test comes to the end of.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The server under test.
pub struct Running {
    pub address: SocketAddr,
    /// Those over TLS, then those over HTTPS.
    pub secure: Vec<SocketAddr>,
    pub counters: Arc<Counters>,
    token: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), RunError>>,
}

impl Running {
    pub fn start(config: Config, view: View) -> Self {
        let dns = Dns::bind(config).unwrap();
        let (address, secure, counters) =
            (dns.local_addrs()[0], dns.secure_addrs(), dns.counters());
        let (feed, token) = (Arc::new(Feed::new(view)), CancellationToken::new());
        let ending = token.clone();
        let task = tokio::spawn(async move { dns.run(feed, &Pulses::default(), ending).await });
        Self { address, secure, counters, token, task }
    }

    pub async fn stop(self) {
        self.token.cancel();
        timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }

    pub async fn ask(&self, packet: &[u8]) -> Message {
        Message::from_vec(&self.ask_bytes(packet).await).unwrap()
    }

    /// Asks over UDP.
    pub async fn ask_bytes(&self, packet: &[u8]) -> Vec<u8> {
        ask_udp(self.address, packet).await
    }
}

pub async fn ask_udp(to: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind((to.ip(), 0)).await.unwrap();
    socket.connect(to).await.unwrap();
    socket.send(packet).await.unwrap();
    let mut reply = [0; 4_096];
    let length = timeout(PATIENCE, socket.recv(&mut reply)).await.unwrap().unwrap();
    reply[..length].to_vec()
}

pub async fn read_tcp(stream: &mut TcpStream) -> Message {
    let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut reply).await.unwrap();
    Message::from_vec(&reply).unwrap()
}

pub fn framed(packet: &[u8]) -> Vec<u8> {
    [&u16::try_from(packet.len()).unwrap().to_be_bytes()[..], packet].concat()
}

/// What somebody else's server does with a question.
type Behaviour = dyn Fn(&Message, bool) -> Option<Message> + Send + Sync;

/// Somebody else's server, over UDP and TCP. It says that names exist not that it does not know.
pub struct Stub {
    pub address: SocketAddr,
    asked: Arc<AtomicUsize>,
    behaviour: Arc<Mutex<Arc<Behaviour>>>,
    _tasks: JoinSet<()>,
}

impl Stub {
    /// Starts one that knows `name type` and the records, with commas between them.
    pub async fn start(zone: &[(&str, &str)]) -> Self {
        Self::with(from_zone(zone)).await
    }

    /// Starts one that is told each question, and whether it came over TCP.
    pub async fn with(
        behaviour: impl Fn(&Message, bool) -> Option<Message> + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let behaviour: Arc<Mutex<Arc<Behaviour>>> = Arc::new(Mutex::new(Arc::new(behaviour)));
        let answer = {
            let (asked, behaviour) = (Arc::clone(&asked), Arc::clone(&behaviour));
            move |bytes: &[u8], is_tcp: bool| {
                asked.fetch_add(1, Ordering::Relaxed);
                let behaviour = Arc::clone(&behaviour.lock().unwrap());
                let reply = behaviour(&Message::from_vec(bytes).unwrap(), is_tcp);
                reply.map(|reply| reply.to_vec().unwrap())
            }
        };
        let mut tasks = JoinSet::new();
        let over_udp = answer.clone();
        tasks.spawn(async move {
            let mut buffer = [0; 4_096];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
                if let Some(reply) = over_udp(&buffer[..length], false) {
                    udp.send_to(&reply, from).await.unwrap();
                }
            }
        });
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut bytes).await.unwrap();
                if let Some(reply) = answer(&bytes, true) {
                    stream.write_all(&framed(&reply)).await.unwrap();
                }
            }
        });
        Self { address, asked, behaviour, _tasks: tasks }
    }

    /// Returns how many questions came, those that look for circles among them.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Behaves otherwise from now on.
    pub fn behave(
        &self,
        behaviour: impl Fn(&Message, bool) -> Option<Message> + Send + Sync + 'static,
    ) {
        *self.behaviour.lock().unwrap() = Arc::new(behaviour);
    }
}

/// Begins a reply.
pub fn reply_to(question: &Message, code: ResponseCode) -> Message {
    let mut reply =
        Message::new(question.metadata.id, MessageType::Response, question.metadata.op_code);
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.add_queries(question.queries.iter().cloned());
    reply
}

/// Says that it speaks EDNS.
pub fn with_edns(mut reply: Message) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(1_400);
    reply.set_edns(edns);
    reply
}

pub fn from_zone(
    zone: &[(&str, &str)],
) -> impl Fn(&Message, bool) -> Option<Message> + Send + Sync + use<> {
    let lines = |text: &str| -> Vec<Record> {
        text.split(", ").filter(|line| !line.is_empty()).map(record).collect()
    };
    let of = |(question, text): &(&str, &str)| ((*question).to_owned(), lines(text));
    let zone: BTreeMap<String, Vec<Record>> = zone.iter().map(of).collect();
    move |question, _| {
        let asked = &question.queries[0];
        let name = asked.name().to_ascii().to_lowercase();
        let known = zone.get(&format!("{name} {}", asked.query_type()));
        let is_name = zone.keys().any(|key| key.split(' ').next() == Some(&name));
        let code = if is_name { ResponseCode::NoError } else { ResponseCode::NXDomain };
        let mut reply = reply_to(question, code);
        for record in known.into_iter().flatten() {
            match record.record_type() {
                hickory_proto::rr::RecordType::SOA => reply.add_authority(record.clone()),
                _ => reply.add_answer(record.clone()),
            };
        }
        Some(reply)
    }
}
