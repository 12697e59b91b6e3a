//! Real QUIC on loopback: whole networks of a few nodes in one process.

use std::time::SystemTime;

use super::certificates::{Ca, NodeRequest};
use super::*;
use crate::wire::Versions;

const LANES: [Lane; 4] = [Lane::Control, Lane::Own, Lane::Relay, Lane::Repair];

/// One end with its certificate, and what it has been told but was not asked about.
pub(super) struct End {
    pub(super) net: Net,
    events: Events,
    pub(super) identity: Arc<Identity>,
}

fn id(byte: u8) -> NodeId {
    NodeId([byte; 16])
}

pub(super) fn issue(ca: &Ca, root: &Ca, byte: u8) -> Arc<Identity> {
    let now = SystemTime::now();
    let request = NodeRequest { node: id(byte), name: format!("n{byte}"), days: 1 };
    let pems = ca.issue(&request, now).unwrap();
    Arc::new(Identity::from_pem(root.certificate(), &pems.certificate, &pems.key, now).unwrap())
}

pub(super) fn config() -> Config {
    Config::new(([127, 0, 0, 1], 0).into())
}

fn start(identity: &Arc<Identity>) -> End {
    start_with(identity, config())
}

pub(super) fn start_with(identity: &Arc<Identity>, config: Config) -> End {
    let (net, events) = Net::bind(config, identity).unwrap();
    End { net, events, identity: identity.clone() }
}

pub(super) fn cluster<const N: usize>() -> [End; N] {
    let ca = Ca::new(SystemTime::now()).unwrap();
    std::array::from_fn(|index| start(&issue(&ca, &ca, u8::try_from(index).unwrap() + 1)))
}

impl End {
    pub(super) fn node(&self) -> NodeId {
        self.identity.node()
    }

    pub(super) fn send(&self, to: &End, lane: Lane, body: &[u8]) -> Result<(), SendError> {
        self.net.send(to.node(), to.net.address(), lane, framed(&Bytes::copy_from_slice(body)))
    }

    fn datagram(&self, to: &End, body: &[u8]) {
        self.net.datagram(to.node(), to.net.address(), Bytes::copy_from_slice(body));
    }

    /// Waits for an event that fits, and forgets those before it.
    #[track_caller]
    fn wait<T>(
        &mut self,
        what: &str,
        fits: impl FnMut(Event) -> Option<T>,
    ) -> impl Future<Output = T> {
        self.wait_for(what, Duration::from_secs(20), fits)
    }

    #[track_caller]
    fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut fits: impl FnMut(Event) -> Option<T>,
    ) -> impl Future<Output = T> {
        let place = std::panic::Location::caller();
        async move {
            let mut seen = Vec::new();
            let found = timeout(limit, async {
                loop {
                    let event = self.events.recv().await.expect("the network lives");
                    seen.push(format!("{event:.100?}"));
                    if let Some(found) = fits(event) {
                        return found;
                    }
                }
            });
            let found = found.await;
            found.unwrap_or_else(|_| panic!("{place}: no {what}; but {seen:#?}"))
        }
    }

    pub(super) async fn frame(&mut self) -> (NodeId, Lane, Bytes) {
        self.wait("frame", |event| match event {
            Event::Frame { from, lane, bytes } => Some((from, lane, bytes)),
            _ => None,
        })
        .await
    }

    pub(super) async fn connected(&mut self) -> NodeId {
        self.wait("connection", |event| match event {
            Event::Connected { node, .. } => Some(node),
            _ => None,
        })
        .await
    }

    async fn disconnected(&mut self) -> (NodeId, Why) {
        self.wait_for("disconnection", Duration::from_secs(40), |event| match event {
            Event::Disconnected { node, why } => Some((node, why)),
            _ => None,
        })
        .await
    }

    async fn dial_failed(&mut self) -> DialError {
        self.wait("failed dial", |event| match event {
            Event::DialFailed { error, .. } => Some(error),
            Event::Connected { .. } => panic!("connected"),
            _ => None,
        })
        .await
    }
}

#[tokio::test]
async fn two_nodes_exchange_frames_on_all_lanes_and_datagrams() {
    let [mut a, mut b] = cluster();
    a.net.dial(b.net.address());
    let answered = a.wait("answer", |event| match event {
        Event::Answered { node, address } => Some((node, address)),
        _ => None,
    });
    assert_eq!(answered.await, (b.node(), b.net.address()));
    let told = b.wait("connection", |event| match event {
        Event::Connected { node, name, address, .. } => Some((node, name, address)),
        _ => None,
    });
    assert_eq!(told.await, (a.node(), "n1".to_owned(), a.net.address()));
    for lane in LANES {
        a.send(&b, lane, b"there").unwrap();
        assert_eq!(b.frame().await, (a.node(), lane, Bytes::from_static(b"there")));
        b.send(&a, lane, b"and back").unwrap();
        assert_eq!(a.frame().await, (b.node(), lane, Bytes::from_static(b"and back")));
    }
    // A short one goes as a datagram, one that is too long for any path as a stream.
    for length in [20, 1_150, 9_000] {
        a.datagram(&b, &vec![7; length]);
        let received = b.wait("datagram", |event| match event {
            Event::Datagram { from, bytes } => Some((from, bytes.len())),
            _ => None,
        });
        assert_eq!(received.await, (a.node(), length));
    }
    assert_eq!(a.net.counts().datagrams_streamed, 1);
    assert_eq!((a.net.counts().links, b.net.counts().accepted), (1, 1));
}

#[tokio::test]
async fn three_nodes_speak_to_each_other_without_being_asked_to_dial() {
    let mut ends: [End; 3] = cluster();
    for from in 0..3 {
        for to in (0..3).filter(|to| *to != from) {
            let body = [u8::try_from(from).unwrap()];
            ends[from].send(&ends[to], Lane::Own, &body).unwrap();
        }
    }
    for (to, end) in ends.iter_mut().enumerate() {
        let mut heard = Vec::new();
        for _ in 0..2 {
            let (node, _, bytes) = end.frame().await;
            assert_eq!(node, id(bytes[0] + 1));
            heard.push(usize::from(bytes[0]));
        }
        heard.sort();
        let others: Vec<usize> = (0..3).filter(|other| *other != to).collect();
        assert_eq!(heard, others);
    }
}

#[tokio::test]
async fn dials_from_both_sides_at_once_end_in_one_way_to_each() {
    for _ in 0..10 {
        let [mut a, mut b] = cluster();
        a.net.dial(b.net.address());
        b.net.dial(a.net.address());
        a.send(&b, Lane::Own, b"1").unwrap();
        b.send(&a, Lane::Own, b"2").unwrap();
        assert_eq!(a.frame().await.2, "2");
        assert_eq!(b.frame().await.2, "1");
        for round in 0..50u8 {
            a.send(&b, Lane::Relay, &[round]).unwrap();
            assert_eq!(b.frame().await.2, [round][..]);
            b.send(&a, Lane::Relay, &[round]).unwrap();
            assert_eq!(a.frame().await.2, [round][..]);
        }
        assert_eq!((a.net.counts().links, b.net.counts().links), (1, 1));
    }
}

#[tokio::test]
async fn a_frame_of_six_mebibytes_passes() {
    let [a, mut b] = cluster();
    let body: Vec<u8> = (0..6 * 1024 * 1024u32).map(|index| (index % 251) as u8).collect();
    a.send(&b, Lane::Repair, &body).unwrap();
    assert_eq!(a.send(&b, Lane::Repair, &body), Err(SendError::Overrun));
    a.send(&b, Lane::Control, b"overtakes").unwrap();
    let mut lanes = Vec::new();
    for _ in 0..2 {
        let (_, lane, bytes) = b.frame().await;
        lanes.push(lane);
        assert!(lane == Lane::Control || bytes == body);
    }
    lanes.sort();
    assert_eq!(lanes, [Lane::Control, Lane::Repair]);
}

#[tokio::test]
async fn a_frame_above_the_limit_is_refused_on_both_sides() {
    let [mut a, mut b] = cluster();
    let too_long = vec![0; FRAME_BYTES_MAX + 1];
    assert_eq!(a.send(&b, Lane::Own, &too_long), Err(SendError::TooLong));
    // A node that does not keep to it: it claims a length that is never to come.
    a.net.dial(b.net.address());
    b.connected().await;
    a.connected().await;
    let lie = Bytes::copy_from_slice(&u32::MAX.to_be_bytes());
    a.net.send(b.node(), b.net.address(), Lane::Own, lie).unwrap();
    let (node, why) = b.disconnected().await;
    assert_eq!(node, a.node());
    assert!(matches!(&why, Why::Fault(text) if text.contains("above the limit")), "{why}");
    assert!(matches!(a.disconnected().await.1, Why::Fault(_)));
    // And it may come back, after a moment.
    assert_eq!(a.send(&b, Lane::Own, b"at once"), Err(SendError::Unreachable));
    while a.send(&b, Lane::Own, b"sorry").is_err() {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(b.frame().await.2, "sorry");
}

#[tokio::test]
async fn strangers_are_refused_and_told_why() {
    let now = SystemTime::now();
    let (ours, theirs) = (Ca::new(now).unwrap(), Ca::new(now).unwrap());
    let twin = Ca::for_cluster(ours.cluster(), now).unwrap();
    let mut home = start(&issue(&ours, &ours, 1));
    for (mut stranger, expected) in [
        (start(&issue(&theirs, &theirs, 2)), "was not signed by this cluster's CA"),
        (start(&issue(&twin, &twin, 3)), "was not signed by this cluster's CA"),
    ] {
        stranger.net.dial(home.net.address());
        let error = stranger.dial_failed().await.to_string();
        assert!(error.contains(expected), "{error}");
        home.net.dial(stranger.net.address());
        let error = home.dial_failed().await.to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(home.net.counts().accepted, 0);
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused_even_when_signed_by_a_known_ca() {
    let now = SystemTime::now();
    let ours = Ca::new(now).unwrap();
    // Somebody merged two clusters' CAs into one file, but for the check of the cluster's id.
    let other = Ca::new(now).unwrap();
    let home = issue(&ours, &ours, 1).trusting(&other);
    let guest = issue(&other, &other, 2).trusting(&ours);
    let (mut home, mut guest) = (start(&Arc::new(home)), start(&Arc::new(guest)));
    guest.net.dial(home.net.address());
    let error = guest.dial_failed().await.to_string();
    assert!(error.contains("is for cluster"), "{error}");
    home.net.dial(guest.net.address());
    let error = home.dial_failed().await.to_string();
    assert!(error.contains("is for cluster"), "{error}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let ca = Ca::new(SystemTime::now() - Duration::from_secs(40 * 86_400)).unwrap();
    let past = SystemTime::now() - Duration::from_secs(30 * 86_400);
    let request = NodeRequest { node: id(2), name: "n2".to_owned(), days: 10 };
    let pems = ca.issue(&request, past).unwrap();
    let expired = Identity::from_pem(ca.certificate(), &pems.certificate, &pems.key, past).unwrap();
    let (mut late, mut home) = (start(&Arc::new(expired)), start(&issue(&ca, &ca, 1)));
    late.net.dial(home.net.address());
    let error = late.dial_failed().await.to_string();
    assert!(error.contains("this node's certificate has expired"), "{error}");
    home.net.dial(late.net.address());
    let error = home.dial_failed().await.to_string();
    assert!(error.contains("its certificate has expired"), "{error}");
    // With a new one it is let in, without a restart.
    late.net.renew(&issue(&ca, &ca, 2)).unwrap();
    late.net.dial(home.net.address());
    assert_eq!(late.connected().await, home.node());
}

#[tokio::test]
async fn a_client_without_a_certificate_gets_nowhere() {
    let [home] = cluster();
    let mut tls = home.identity.client_config().unwrap();
    tls.client_auth_cert_resolver = Arc::new(NoCertificate);
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let config = ClientConfig::new(Arc::new(crypto));
    let connecting = endpoint.connect_with(config, home.net.address(), "tribune").unwrap();
    // TLS 1.3 lets a client finish before the server has seen that something is missing.
    let connection = connecting.await.unwrap();
    let error = timeout(Duration::from_secs(10), connection.closed()).await.unwrap();
    let error = why::dial_error(home.net.address(), &error).to_string();
    assert!(error.contains("it wants a certificate"), "{error}");
    assert_eq!(home.net.counts().accepted, 0);
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_node_that_stops_says_so_and_what_was_queued_arrives() {
    let [a, mut b] = cluster();
    a.send(&b, Lane::Own, b"first").unwrap();
    assert_eq!(b.frame().await.2, "first");
    a.send(&b, Lane::Own, b"last").unwrap();
    a.datagram(&b, b"goodbye");
    a.net.close(Duration::from_secs(2)).await;
    let mut seen = Vec::new();
    let end = b.wait("end", |event| match event {
        Event::Frame { bytes, .. } | Event::Datagram { bytes, .. } => {
            seen.push(bytes);
            None
        }
        Event::Disconnected { why, .. } => Some(why),
        _ => None,
    });
    assert_eq!(end.await, Why::Stopping);
    seen.sort();
    assert_eq!(seen, ["goodbye", "last"]);
}

#[tokio::test]
async fn a_peer_that_vanishes_is_noticed() {
    let [a, mut b] = cluster();
    a.send(&b, Lane::Own, b"here").unwrap();
    assert_eq!(b.connected().await, a.node());
    let node = a.node();
    drop(a);
    assert_eq!(b.disconnected().await.0, node);
}

/// Takes a second of real silence: nothing else shows that a peer which is gone without a word is
/// given up.
#[tokio::test]
async fn a_peer_that_answers_nothing_any_more_is_given_up() {
    let ca = Ca::new(SystemTime::now()).unwrap();
    let identity = issue(&ca, &ca, 2);
    let (tell_address, address) = tokio::sync::oneshot::channel();
    let (silence, is_silenced) = tokio::sync::oneshot::channel::<()>();
    let (test_lives, test_ends) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let end = runtime.block_on(async {
            let end = start(&identity);
            tell_address.send(end.net.address()).unwrap();
            let _ = is_silenced.await;
            end
        });
        // From here on nothing of it runs, but its socket stays open.
        let _ = test_ends.recv();
        drop(end);
    });
    let address = address.await.unwrap();
    let moment = Duration::from_millis(300);
    let quick = Config { silence: Duration::from_secs(1), keep_alive: moment, ..config() };
    let mut a = start_with(&issue(&ca, &ca, 1), quick);
    a.net.pin(id(2), address, true);
    assert_eq!(a.connected().await, id(2));
    silence.send(()).unwrap();
    assert_eq!(a.disconnected().await, (id(2), Why::Silent));
    drop(test_lives);
}

#[tokio::test]
async fn a_restarted_peer_is_noticed_by_the_first_packet_it_cannot_read() {
    let ca = Ca::new(SystemTime::now()).unwrap();
    let mut a = start(&issue(&ca, &ca, 1));
    let identity = issue(&ca, &ca, 2);
    // Killed: its runtime stops, and not a packet leaves it.
    let killed =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let guard = killed.enter();
    let b = start(&identity);
    drop(guard);
    let address = b.net.address();
    a.send(&b, Lane::Own, b"1").unwrap();
    a.connected().await;
    killed.shutdown_background();
    drop(b);
    let again = timeout(Duration::from_secs(10), async {
        loop {
            match Net::bind(Config::new(address), &identity) {
                Ok((net, events)) => break End { net, events, identity: identity.clone() },
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    });
    let again = again.await.expect("the port is free again");
    a.datagram(&again, &[1; 200]);
    let (node, why) = a.disconnected().await;
    assert_eq!((node, why), (id(2), Why::Restarted));
}

#[tokio::test]
async fn a_node_that_dials_itself_or_its_twin_is_told() {
    let [mut a] = cluster();
    a.net.dial(a.net.address());
    assert_eq!(a.dial_failed().await, DialError::Itself(a.net.address()));
    let mut twin = start(&a.identity);
    twin.net.dial(a.net.address());
    let (address, process) = (a.net.address(), a.net.process());
    assert_eq!(twin.dial_failed().await, DialError::Twin { address, process });
    let told = a.wait("word of the twin", |event| match event {
        Event::Twin { address, process } => Some((address, process)),
        _ => None,
    });
    assert_eq!(told.await, (twin.net.address(), twin.net.process()));
    assert!(a.net.process() < twin.net.process(), "who started first is known to both");
}

#[tokio::test]
async fn who_stands_aside_speaks_to_nobody_but_finds_out_whether_its_twin_is_there() {
    let [mut a, mut b] = cluster();
    a.send(&b, Lane::Own, b"x").unwrap();
    assert_eq!((b.connected().await, a.connected().await), (a.node(), b.node()));
    let twin = start(&a.identity);
    a.net.stand_aside(true);
    assert_eq!(b.disconnected().await.0, a.node());
    assert_eq!(a.send(&b, Lane::Own, b"x"), Err(SendError::Unreachable));
    b.net.dial(a.net.address());
    assert_eq!(b.dial_failed().await, DialError::Aside(a.net.address()));
    assert!(a.net.dial(twin.net.address()));
    let (address, process) = (twin.net.address(), twin.net.process());
    let found = a.wait("the twin", |event| match event {
        Event::DialFailed { error, .. } => Some(error),
        _ => None,
    });
    assert_eq!(found.await, DialError::Twin { address, process });
    a.net.stand_aside(false);
    while a.send(&b, Lane::Own, b"back").is_err() {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(b.frame().await.2, "back");
}

fn speaking(min: u8, max: u8) -> Config {
    Config { versions: Versions { min, max }, ..config() }
}

#[tokio::test]
async fn two_releases_speak_the_newest_version_that_both_know() {
    let ca = Ca::new(SystemTime::now()).unwrap();
    let mut old = start_with(&issue(&ca, &ca, 1), speaking(1, 2));
    let mut new = start_with(&issue(&ca, &ca, 2), speaking(2, 3));
    old.send(&new, Lane::Own, b"hello").unwrap();
    for end in [&mut old, &mut new] {
        let version = end.wait("connection", |event| match event {
            Event::Connected { version, certificate, .. } => Some((version, certificate.is_some())),
            _ => None,
        });
        assert_eq!(version.await, (2, true));
    }
    assert_eq!(new.frame().await.2, "hello");
}

#[tokio::test]
async fn two_releases_without_a_common_version_both_say_so_and_what_to_do() {
    let ca = Ca::new(SystemTime::now()).unwrap();
    let mut old = start_with(&issue(&ca, &ca, 1), speaking(1, 1));
    let mut new = start_with(&issue(&ca, &ca, 2), speaking(2, 3));
    old.send(&new, Lane::Own, b"hello").unwrap();
    let said = [
        (&mut old, "speaks versions 2 to 3 of the protocol", ") version 1: upgrade the older"),
        (&mut new, "speaks version 1 of the protocol", ") versions 2 to 3: upgrade the older"),
    ];
    for (end, theirs, ours) in said {
        let (node, error) = end
            .wait("refusal", |event| match event {
                Event::DialFailed { node, error, .. } => Some((node, error.to_string())),
                Event::Connected { .. } => panic!("connected"),
                _ => None,
            })
            .await;
        assert!(node.is_some() && error.contains(theirs) && error.contains(ours), "{error}");
        assert_eq!(end.net.counts().versions_apart, 1);
        assert_eq!(end.net.counts().links, 0);
    }
}

#[tokio::test]
async fn a_stream_of_a_later_release_is_passed_over_and_the_rest_goes_on() {
    let [a, mut b] = cluster();
    a.send(&b, Lane::Own, b"before").unwrap();
    assert_eq!(b.frame().await.2, "before");
    let link = a.net.shared.peers().link(b.node()).unwrap();
    let mut stream = link.connection.open_uni().await.unwrap();
    stream.write_all(&[99, 1, 2, 3]).await.unwrap();
    let stopped = timeout(Duration::from_secs(10), stream.stopped()).await.unwrap();
    assert_eq!(stopped.unwrap(), Some(quinn::VarInt::from_u32(0)), "nobody reads it");
    a.send(&b, Lane::Own, b"after").unwrap();
    assert_eq!(b.frame().await.2, "after");
    assert_eq!(b.net.counts().streams_unknown, 1);
}

#[tokio::test]
async fn another_node_at_the_address_is_not_taken_for_the_one_that_was_meant() {
    let [mut a, b] = cluster();
    let frame = framed(&Bytes::from_static(b"secret"));
    a.net.send(id(9), b.net.address(), Lane::Own, frame).unwrap();
    let error = a.dial_failed().await;
    let (address, wanted, found) = (b.net.address(), id(9), b.node());
    assert_eq!(error, DialError::WrongNode { address, wanted, found, name: "n2".to_owned() });
    assert_eq!(b.net.counts().frames_received, 0);
}

#[tokio::test]
async fn where_nobody_listens_sends_are_refused_after_the_first() {
    let [mut a] = cluster();
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    let frame = framed(&Bytes::from_static(b"x"));
    a.net.send(id(9), address, Lane::Own, frame.clone()).unwrap();
    assert_eq!(a.dial_failed().await, DialError::NoAnswer(address));
    let again = a.net.send(id(9), address, Lane::Own, frame);
    assert_eq!(again, Err(SendError::Unreachable));
}

#[tokio::test]
async fn beyond_the_cap_the_connection_unused_for_longest_is_closed_pinned_ones_last() {
    let ca = Ca::new(SystemTime::now()).unwrap();
    let few = Config { links_max: 2, ..config() };
    let mut a = start_with(&issue(&ca, &ca, 1), few);
    let mut others: Vec<End> = (2..5).map(|byte| start(&issue(&ca, &ca, byte))).collect();
    a.net.pin(others[0].node(), others[0].net.address(), true);
    for other in &mut others {
        a.send(other, Lane::Own, b"x").unwrap();
        other.connected().await;
    }
    assert_eq!(a.disconnected().await, (others[1].node(), Why::Evicted));
    assert_eq!(others[1].disconnected().await, (a.node(), Why::Evicted));
    assert_eq!(a.net.counts().evicted, 1);
}

#[tokio::test]
async fn what_a_peer_that_does_not_read_is_sent_stays_within_the_caps() {
    let [a, mut b] = cluster();
    a.send(&b, Lane::Own, b"x").unwrap();
    b.connected().await;
    // The engine of `b` reads no events: its stream windows fill, then the queue of `a`.
    let body = vec![0; 1024 * 1024];
    let mut taken = 0;
    let refused = timeout(Duration::from_secs(30), async {
        loop {
            match a.send(&b, Lane::Own, &body) {
                Ok(()) => taken += 1,
                Err(error) => return error,
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(refused.await.unwrap(), SendError::Overrun);
    assert!(taken <= 40, "32 MiB wait for the engine, 2 in the windows, 1 in the queue: {taken}");
}
