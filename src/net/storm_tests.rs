//! What refused certificates cost: handshakes, and bytes counted at the socket. The tests take some
//! seconds of real time, since it is the attempts within a time that are bounded; what the bound is
//! worth for a hundred nodes over an hour is shown without sockets, in `peers.rs`.

use std::time::SystemTime;

use super::certificates::{Ca, NodeRequest};
use super::tests::{End, config, issue, start_with};
use super::*;

/// How long everybody wants to speak to everybody.
const SPAN: Duration = Duration::from_secs(5);

/// How often each wants to.
const EVERY: Duration = Duration::from_millis(100);

/// What an attempt may cost, both directions together. A handshake that succeeds takes some 6.6 kB;
/// on a busy machine packets are sent twice.
const ATTEMPT_BYTES_MAX: u64 = 13_000;

/// What one node may try in a time, beyond the first try of each peer: ten at once, one a second.
fn retries_max(span: Duration) -> u64 {
    10 + span.as_secs() + 1
}

fn old_ca() -> Ca {
    Ca::new(SystemTime::now() - Duration::from_secs(40 * 86_400)).unwrap()
}

/// A certificate that expired twenty days ago.
fn expired(ca: &Ca, byte: u8) -> Arc<Identity> {
    let past = SystemTime::now() - Duration::from_secs(30 * 86_400);
    let request = NodeRequest { node: NodeId([byte; 16]), name: format!("n{byte}"), days: 10 };
    let pems = ca.issue(&request, past).unwrap();
    let identity = Identity::from_pem(ca.certificate(), &pems.certificate, &pems.key, past);
    Arc::new(identity.unwrap())
}

/// Has those of each pair send datagrams to each other, as membership and overlay do. Returns how
/// long.
async fn chatter(pairs: &[(&End, &End)]) -> Duration {
    let start = Instant::now();
    let mut ticks = tokio::time::interval(EVERY);
    while start.elapsed() < SPAN {
        ticks.tick().await;
        for (a, b) in pairs.iter().flat_map(|(a, b)| [(a, b), (b, a)]) {
            a.net.datagram(b.node(), b.net.address(), Bytes::from_static(&[7; 100]));
        }
    }
    start.elapsed()
}

fn bytes(counts: &Counts) -> u64 {
    counts.packet_bytes_sent + counts.packet_bytes_received
}

/// Checks what one node that nobody takes costs, and what that comes to among a hundred.
async fn check_one_among(others: u8, bad: Arc<Identity>, ca: &Ca, what: &str) {
    let ends: Vec<End> =
        (1..=others).map(|byte| start_with(&issue(ca, ca, byte), config())).collect();
    let bad = start_with(&bad, config());
    let pairs: Vec<(&End, &End)> = ends.iter().map(|end| (&bad, end)).collect();
    let span = chatter(&pairs).await;
    let counts = bad.net.counts();
    let peers = u64::from(others);
    assert_eq!((counts.accepted, counts.links), (0, 0), "nobody speaks to it");
    assert!(counts.dials <= peers + retries_max(span), "{counts:?} in {span:?}");
    let to_it: u64 = ends.iter().map(|end| end.net.counts().dials_failed).sum();
    // Each of the others has no other peer that refuses: first try, then after 1, 2, 4 s.
    assert!(to_it <= peers * 4, "{to_it} attempts in {span:?}");
    let attempts = counts.dials + to_it;
    let each = bytes(&counts) / attempts;
    assert!(each <= ATTEMPT_BYTES_MAX, "{each} bytes an attempt");
    // Later each of 99 peers tries every 60 s, a quarter more or less; it tries once a second.
    let (by_it, by_others) = (60, 99 * 60 / 45);
    println!(
        "{what}: {} attempts by it, {to_it} by {peers} others, in {span:.1?}; {each} bytes an attempt. \
         Among 100 nodes at most {} attempts and {} kB a minute, all together",
        counts.dials,
        by_it + by_others,
        (by_it + by_others) * each / 1_000
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_expired_certificate_costs_a_bounded_number_of_bytes() {
    let ca = old_ca();
    check_one_among(20, expired(&ca, 200), &ca, "one expired certificate").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_of_another_ca_costs_a_bounded_number_of_bytes() {
    let (ca, other) = (old_ca(), old_ca());
    check_one_among(20, issue(&other, &other, 200), &ca, "one node of another CA").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_whose_certificates_have_all_expired_costs_a_bounded_number_of_bytes() {
    const NODES: u8 = 8;
    let ca = old_ca();
    let ends: Vec<End> =
        (1..=NODES).map(|byte| start_with(&expired(&ca, byte), config())).collect();
    let pairs: Vec<(&End, &End)> = ends
        .iter()
        .enumerate()
        .flat_map(|(at, a)| ends[at + 1..].iter().map(move |b| (a, b)))
        .collect();
    let span = chatter(&pairs).await;
    let mut attempts = 0;
    let mut total = 0;
    for end in &ends {
        let counts = end.net.counts();
        assert_eq!(counts.links, 0);
        assert!(counts.dials <= u64::from(NODES) - 1 + retries_max(span), "{counts:?} in {span:?}");
        attempts += counts.dials;
        total += bytes(&counts);
    }
    // Both ends count each packet.
    let each = total / 2 / attempts;
    assert!(each <= ATTEMPT_BYTES_MAX, "{each} bytes an attempt");
    println!(
        "{NODES} expired certificates: {attempts} attempts in {span:.1?}, {each} bytes each. A node \
         among 100 such makes at most 60 attempts a minute and is asked as often: {} kB a minute",
        2 * 60 * each / 1_000
    );
}
