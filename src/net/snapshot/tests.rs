//! Visits on loopback, with files of nothing in particular.

use std::io::{Seek, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Instant;

use quinn::{Connection, RecvStream, SendStream};
use tokio::time::{sleep, timeout};

use super::super::tests::{End, cluster, config, issue, start_with};
use super::super::why::Close;
use super::super::{Config, Net};
use super::*;
use crate::net::certificates::Ca;
use crate::net::endpoint;
use crate::net::tls::Identity;

const HOME: std::net::IpAddr = std::net::IpAddr::V4(Ipv4Addr::LOCALHOST);
const SOON: Duration = Duration::from_secs(5);
const ANY: Request = Request { format_max: 9, bytes_min: 0 };
/// What a test takes for no progress.
const MOMENT: Duration = Duration::from_millis(300);

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at / 7 % 251) as u8).collect()
}

fn file_of(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    file
}

/// Makes the same file for everybody, and claims a length for it.
fn maker(content: Vec<u8>, bytes: u64) -> Maker {
    Arc::new(move |request, _| match bytes < request.bytes_min {
        true => Err(Denial::NotWorthIt { bytes }),
        false => Ok(Made { file: file_of(&content), bytes, format: 7 }),
    })
}

fn honest(content: &[u8]) -> Maker {
    maker(content.to_vec(), content.len() as u64)
}

fn visitor(end: &End) -> Visitor {
    Visitor::new(HOME, &end.identity).unwrap()
}

async fn visit(from: &Visitor, to: SocketAddr) -> Visit {
    from.visit(to, SOON).await.unwrap()
}

/// Asks for whatever there is, and takes it.
async fn fetch(from: &Visitor, to: &Net) -> Result<Vec<u8>, FetchError> {
    let visit = visit(from, to.address()).await;
    let offer = visit.ask(ANY, &mut |_, _| {}).await?;
    take(offer).await
}

async fn take(offer: Offer) -> Result<Vec<u8>, FetchError> {
    let file = tempfile::tempfile().unwrap();
    offer.take(file.try_clone().unwrap(), &mut |_| {}).await?;
    let mut read = Vec::new();
    (&file).rewind().unwrap();
    std::io::Read::read_to_end(&mut &file, &mut read).unwrap();
    Ok(read)
}

/// Somebody with a good certificate and bad manners.
async fn rude(identity: &Identity, to: SocketAddr) -> (quinn::Endpoint, Connection) {
    let (endpoint, config) = endpoint::visitor(HOME, identity).unwrap();
    let connecting = endpoint.connect_with(config, to, "tribune").unwrap();
    let connection = connecting.await.unwrap();
    (endpoint, connection)
}

/// Waits until something has been counted.
async fn counted(what: &str, is_so: impl Fn() -> bool) {
    let found = timeout(Duration::from_secs(20), async {
        while !is_so() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

#[test]
fn golden_words_are_read_and_written_as_they_were() {
    let request = Request { format_max: 11, bytes_min: 8 << 20 };
    let read = |bytes: &[u8]| Request::decode(bytes.try_into().unwrap()).unwrap();
    let write = |request: &Request| request.encode().to_vec();
    crate::wire::golden::hold("snapshot-request", &[("request", request)], write, read);
    let answers = [
        ("making", Answer::Making { done: 5, total: 9 }),
        ("snapshot", Answer::Snapshot { bytes: 1 << 40, format: 11 }),
        ("not-worth-it", Answer::NotWorthIt { bytes: 3 }),
        ("busy", Answer::Busy { retry_after: Duration::from_secs(2) }),
        ("refused", Answer::Refused { why: "the disk is full".to_owned() }),
    ];
    let read = |bytes: &[u8]| {
        let (kind, length) = Answer::decode_head(bytes[..4].try_into().unwrap()).unwrap();
        assert_eq!(length, bytes.len() - 4);
        Answer::decode(kind, &bytes[4..]).unwrap()
    };
    crate::wire::golden::hold("snapshot-answer", &answers, Answer::encode, read);
    let kinds = (0..=u8::MAX).filter(|kind| Answer::decode(*kind, &[0; 32]).is_some());
    assert_eq!(kinds.count(), answers.len(), "each kind of answer has a golden one");
}

#[test]
fn words_are_read_as_they_were_written_and_nothing_else_is() {
    let request = Request { format_max: 11, bytes_min: 8 << 20 };
    let bytes = request.encode();
    assert_eq!(bytes, [0x20, 1, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0x80, 0, 0]);
    assert_eq!(Request::decode(&bytes), Some(request));
    let mut other = bytes;
    other[1] = 2;
    assert_eq!(Request::decode(&other), None);

    let long = "ä".repeat(TEXT_BYTES_MAX);
    let answers = [
        Answer::Making { done: 5, total: 9 },
        Answer::Snapshot { bytes: 1 << 40, format: 11 },
        Answer::NotWorthIt { bytes: 3 },
        Answer::Busy { retry_after: Duration::from_secs(2) },
        Answer::Refused { why: long[..TEXT_BYTES_MAX].to_owned() },
    ];
    for answer in answers {
        let bytes = answer.encode();
        let (kind, length) = Answer::decode_head(bytes[..4].try_into().unwrap()).unwrap();
        assert_eq!(length, bytes.len() - 4);
        assert_eq!(Answer::decode(kind, &bytes[4..]), Some(answer));
        assert_eq!(Answer::decode(kind.wrapping_sub(1), &bytes[4..]).filter(|_| kind < 4), None);
    }
    assert_eq!(
        Answer::Snapshot { bytes: 0x1234, format: 11 }.encode(),
        [0x21, 1, 0, 12, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0, 0, 0, 11]
    );
    assert_eq!(Answer::decode_head([0x21, 4, 0xff, 0xff]), None, "longer than any text may be");
    assert_eq!(Answer::decode_head([0x22, 0, 0, 0]), None);
}

#[tokio::test]
async fn a_visitor_gets_the_file_and_is_nobodys_link() {
    let [mut a, mut b] = cluster();
    let content = content(3_000_001);
    b.net.give_snapshots(honest(&content));
    // The visitor has the certificate of a node that runs, and has a link to the other.
    a.net.dial(b.net.address());
    assert_eq!((a.connected().await, b.connected().await), (b.node(), a.node()));
    let from = visitor(&a);
    let visit = visit(&from, b.net.address()).await;
    assert_eq!((visit.node, visit.name.as_str()), (b.node(), "n2"));
    let offer = visit.ask(ANY, &mut |_, _| {}).await.unwrap();
    assert_eq!((offer.bytes, offer.format), (3_000_001, 7));
    let file = tempfile::tempfile().unwrap();
    let mut seen = Vec::new();
    offer.take(file, &mut |received| seen.push(received)).await.unwrap();
    assert!(seen.is_sorted() && seen.last() == Some(&3_000_001));
    assert_eq!(fetch(&from, &b.net).await.unwrap(), content);
    counted("two visits", || b.net.counts().snapshots_sent == 2).await;
    let counts = b.net.counts();
    assert_eq!((counts.accepted, counts.links, counts.snapshots_failed), (1, 1, 0));
    assert_eq!(counts.snapshot_bytes_sent, 2 * (3_000_001 + CHECKSUM_BYTES as u64));
    a.send(&b, crate::replica::Lane::Own, b"still here").unwrap();
    assert_eq!(b.frame().await.2, "still here");
    from.close().await;
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let [a, b] = cluster();
    b.net.give_snapshots(honest(&[]));
    assert_eq!(fetch(&visitor(&a), &b.net).await.unwrap(), b"");
}

#[tokio::test]
async fn a_no_has_its_reason() {
    let [a, b, c] = cluster();
    let from = visitor(&a);
    let error = fetch(&from, &b.net).await.unwrap_err();
    assert!(matches!(&error, FetchError::Refused(why) if why.contains("begun to start")));
    b.net.give_snapshots(Arc::new(|_, _| Err(Denial::Refused("there is\nno room".to_owned()))));
    let error = fetch(&from, &b.net).await.unwrap_err();
    assert_eq!(error.to_string(), "it gives none: there is no room");
    c.net.give_snapshots(honest(&content(1_000)));
    let visit = visit(&from, c.net.address()).await;
    let wanted = Request { bytes_min: 1_001, ..ANY };
    let error = visit.ask(wanted, &mut |_, _| {}).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, FetchError::NotWorthIt { bytes: 1_000 }), "{error}");
    counted("all are told", || b.net.counts().snapshots_declined == 2).await;
    assert_eq!(b.net.counts().snapshots_failed, 0);
}

#[tokio::test]
async fn a_maker_that_breaks_off_ends_the_visit_and_not_the_node() {
    let [a, b] = cluster();
    b.net.give_snapshots(Arc::new(|request, _| {
        assert!(request.format_max == 8, "on purpose");
        Err(Denial::NotWorthIt { bytes: 1 })
    }));
    let stall = Duration::from_secs(2);
    let from = visitor(&a).with_stall(stall);
    assert!(fetch(&from, &b.net).await.is_err());
    let visit = visit(&from, b.net.address()).await;
    let error = visit.ask(Request { format_max: 8, ..ANY }, &mut |_, _| {}).await;
    assert!(matches!(error.map(|_| ()), Err(FetchError::NotWorthIt { .. })), "the turn is free");
}

#[tokio::test]
async fn a_second_visitor_is_told_to_come_back_and_may_when_the_first_is_done() {
    let [a, b, c] = cluster();
    let content = content(100_000);
    let (begin, begun) = std::sync::mpsc::channel::<()>();
    let (is_asked, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let begun = std::sync::Mutex::new(begun);
    let made = content.clone();
    b.net.give_snapshots(Arc::new(move |_, making| {
        is_asked.send(()).unwrap();
        (making.progress)(1, 2);
        begun.lock().unwrap().recv().unwrap();
        Ok(Made { file: file_of(&made), bytes: made.len() as u64, format: 7 })
    }));
    let (first, second) = (visitor(&a), visitor(&c));
    let address = b.net.address();
    let early = tokio::spawn(async move {
        let visit = visit(&first, address).await;
        let mut told = Vec::new();
        let offer = visit.ask(ANY, &mut |done, total| told.push((done, total))).await.unwrap();
        (take(offer).await.unwrap(), told)
    });
    asked.recv().await.unwrap();
    for _ in 0..3 {
        let error = fetch(&second, &b.net).await.unwrap_err();
        assert!(matches!(error, FetchError::Busy { retry_after } if retry_after < SOON), "{error}");
    }
    // The first is told that it goes on.
    sleep(Duration::from_millis(1_100)).await;
    begin.send(()).unwrap();
    let (received, told) = early.await.unwrap();
    assert!(received == content && told.contains(&(1, 2)), "{told:?}");
    begin.send(()).unwrap();
    assert_eq!(fetch(&second, &b.net).await.unwrap(), content);
}

#[tokio::test]
async fn a_file_that_ends_early_or_arrives_spoilt_is_told_from_a_whole_one() {
    let [a, b, c] = cluster();
    let from = visitor(&a);
    // The disk has less than was said.
    b.net.give_snapshots(maker(content(500_000), 600_000));
    let error = fetch(&from, &b.net).await.unwrap_err();
    assert!(matches!(error, FetchError::Lost(_) | FetchError::Cut { .. }), "{error}");
    counted("it is told", || b.net.counts().snapshots_failed == 1).await;

    // A node that sends what it likes.
    for (lie, is_sum_sent) in [(0, true), (0, false), (1, true), (100, true)] {
        let (server, address) = impostor(&c);
        let serving = tokio::spawn(async move {
            let connection = server.accept().await.unwrap().await.unwrap();
            connection.set_max_concurrent_bi_streams(1_u8.into());
            let (mut out, _request): (SendStream, RecvStream) =
                connection.accept_bi().await.unwrap();
            let file = content(50_000);
            let answer = Answer::Snapshot { bytes: 50_000 + lie, format: 7 };
            out.write_all(&answer.encode()).await.unwrap();
            out.write_all(&file).await.unwrap();
            if is_sum_sent {
                let mut sum = checksum();
                sum.update(if lie == 0 { &file[1..] } else { &file });
                out.write_all(sum.finish().as_ref()).await.unwrap();
            }
            out.finish().unwrap();
            connection.closed().await
        });
        let visit = visit(&from, address).await;
        let offer = visit.ask(ANY, &mut |_, _| {}).await.unwrap();
        let error = take(offer).await.unwrap_err();
        match (lie, is_sum_sent) {
            (0, true) => assert!(matches!(error, FetchError::Spoilt), "{error}"),
            _ => assert!(matches!(error, FetchError::Cut { .. }), "{error}"),
        }
        drop(visit);
        serving.await.unwrap();
    }
}

/// A server with the certificate of a node, that is none.
fn impostor(end: &End) -> (quinn::Endpoint, SocketAddr) {
    let server = endpoint::bind(&config(), &end.identity, Arc::default()).unwrap();
    let address = server.local_addr().unwrap();
    (server, address)
}

#[tokio::test]
async fn a_node_that_does_not_go_on_is_given_up() {
    let [a, b] = cluster();
    let (server, address) = impostor(&b);
    let serving = tokio::spawn(async move {
        let mut kept = Vec::new();
        for answer in [None, Some(Answer::Snapshot { bytes: 1 << 50, format: 7 })] {
            let connection = server.accept().await.unwrap().await.unwrap();
            connection.set_max_concurrent_bi_streams(1_u8.into());
            let mut streams = connection.accept_bi().await.unwrap();
            if let Some(answer) = answer {
                streams.0.write_all(&answer.encode()).await.unwrap();
                streams.0.write_all(b"and then nothing").await.unwrap();
            }
            kept.push((connection, streams));
        }
        std::future::pending::<()>().await;
        drop(kept);
    });
    let from = visitor(&a).with_stall(MOMENT);
    for _ in 0..2 {
        let visit = visit(&from, address).await;
        let begun = Instant::now();
        let taken = match visit.ask(ANY, &mut |_, _| {}).await {
            Ok(offer) => take(offer).await.map(|_| ()),
            Err(error) => Err(error),
        };
        assert!(matches!(taken, Err(FetchError::Stalled)), "{taken:?}");
        assert!(begun.elapsed() >= MOMENT);
    }
    serving.abort();
}

#[tokio::test]
async fn a_node_that_makes_one_for_ever_is_given_up() {
    let [a, b] = cluster();
    let (server, address) = impostor(&b);
    let serving = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        connection.set_max_concurrent_bi_streams(1_u8.into());
        let (mut out, _request) = connection.accept_bi().await.unwrap();
        let answer = Answer::Making { done: 7, total: 9 }.encode();
        while out.write_all(&answer).await.is_ok() {
            sleep(MOMENT / 3).await;
        }
    });
    let visit = visit(&visitor(&a).with_stall(MOMENT), address).await;
    let error = visit.ask(ANY, &mut |_, _| {}).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, FetchError::Stalled), "{error}");
    drop(visit);
    serving.await.unwrap();
}

#[test]
fn a_transfer_may_take_as_long_as_a_slow_path_does_and_no_longer() {
    let minutes = |bytes| transfer_time(bytes).as_secs() / 60;
    assert_eq!([0, 200 << 20, 20 << 30].map(minutes), [1, 14, 1_366]);
}

#[tokio::test]
async fn a_visitor_that_asks_for_nothing_or_for_something_else_is_sent_away() {
    let ca = Ca::new(std::time::SystemTime::now()).unwrap();
    let quick = Config { snapshot_stall: MOMENT, ..config() };
    let b = start_with(&issue(&ca, &ca, 2), quick);
    b.net.give_snapshots(honest(&content(10)));
    let identity = issue(&ca, &ca, 1);
    let (_kept, silent) = rude(&identity, b.net.address()).await;
    let (_kept_too, other) = rude(&identity, b.net.address()).await;
    let (mut out, _in) = other.open_bi().await.unwrap();
    out.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let closed = timeout(Duration::from_secs(20), other.closed()).await.unwrap();
    assert!(closed.to_string().contains("not a request for a snapshot"), "{closed}");
    // It gets one stream, and no more.
    let second = timeout(MOMENT, silent.open_uni()).await;
    assert!(second.is_ok(), "of the lanes' streams there are as many as ever, unread");
    let first = silent.open_bi().await.unwrap();
    let second = timeout(MOMENT, silent.open_bi()).await;
    assert!(!matches!(second, Ok(Ok(_))));
    drop(first);
    let gone = || b.net.shared.snapshots.visitors.available_permits() == VISITORS_MAX;
    counted("both are gone", gone).await;
    assert_eq!((b.net.counts().refused, b.net.counts().snapshots_failed), (1, 0));
}

#[tokio::test]
async fn a_visitor_that_does_not_read_on_holds_neither_the_turn_nor_the_file() {
    let ca = Ca::new(std::time::SystemTime::now()).unwrap();
    let quick = Config { snapshot_stall: MOMENT, ..config() };
    let b = start_with(&issue(&ca, &ca, 2), quick);
    let content = content(24_000_000);
    b.net.give_snapshots(honest(&content));
    let a = start_with(&issue(&ca, &ca, 1), config());
    let (_kept, lazy) = rude(&a.identity, b.net.address()).await;
    let (mut out, kept) = lazy.open_bi().await.unwrap();
    out.write_all(&ANY.encode()).await.unwrap();
    let from = visitor(&a);
    let fetched = timeout(Duration::from_secs(20), async {
        loop {
            match fetch(&from, &b.net).await {
                Err(FetchError::Busy { .. }) => sleep(Duration::from_millis(20)).await,
                fetched => return fetched,
            }
        }
    });
    assert!(fetched.await.unwrap().unwrap() == content);
    drop(kept);
    lazy.close(Close::Unwanted.code(), b"");
    counted("it is told", || b.net.counts().snapshots_failed == 1).await;
}

#[tokio::test]
async fn who_goes_away_ends_the_making_too() {
    let [a, b] = cluster();
    let (is_asked, mut asked) = tokio::sync::mpsc::unbounded_channel();
    b.net.give_snapshots(Arc::new(move |_, making| {
        is_asked.send(()).unwrap();
        while !making.is_cancelled.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(Denial::Refused("cancelled".to_owned()))
    }));
    for _ in 0..2 {
        let from = visitor(&a);
        let visit = visit(&from, b.net.address()).await;
        let ignored = &mut |_, _| {};
        let asking = visit.ask(ANY, ignored);
        tokio::select! {
            _ = asking => panic!("nobody answers"),
            _ = asked.recv() => {}
        }
        drop(visit);
        from.close().await;
        counted("the turn is free", || b.net.shared.snapshots.turn.available_permits() == 1).await;
    }
}

#[tokio::test]
async fn a_node_that_stops_says_so_in_the_middle_of_it() {
    let [a, b] = cluster();
    b.net.give_snapshots(honest(&content(64_000_000)));
    let from = visitor(&a);
    let visit = visit(&from, b.net.address()).await;
    let offer = visit.ask(ANY, &mut |_, _| {}).await.unwrap();
    let (some, mut has_some) = tokio::sync::mpsc::unbounded_channel();
    let taking = tokio::spawn(async move {
        let file = tempfile::tempfile().unwrap();
        offer
            .take(file, &mut |_| {
                let _ = some.send(());
            })
            .await
    });
    has_some.recv().await.unwrap();
    let begun = Instant::now();
    b.net.close(Duration::from_secs(1)).await;
    let error = taking.await.unwrap().unwrap_err();
    assert!(matches!(&error, FetchError::Lost(why) if why == "the other node stops"), "{error}");
    assert!(begun.elapsed() < SOON, "nobody waits for the visitor");
}

#[tokio::test]
async fn beyond_so_many_visitors_the_next_is_sent_away_at_once() {
    let [a, b, c] = cluster();
    b.net.give_snapshots(honest(&content(10)));
    let mut kept = Vec::new();
    for _ in 0..VISITORS_MAX {
        kept.push(rude(&c.identity, b.net.address()).await);
    }
    counted("all are in", || b.net.shared.snapshots.visitors.available_permits() == 0).await;
    let error = fetch(&visitor(&a), &b.net).await.unwrap_err();
    assert!(error.to_string().contains("too many"), "{error}");
    drop(kept);
}

#[tokio::test]
async fn strangers_get_no_snapshot_and_give_none() {
    let now = std::time::SystemTime::now();
    let (ours, theirs) = (Ca::new(now).unwrap(), Ca::new(now).unwrap());
    let a = start_with(&issue(&ours, &ours, 1), config());
    let b = start_with(&issue(&theirs, &theirs, 2), config());
    for (from, to) in [(&a, &b), (&b, &a)] {
        let error = visitor(from).visit(to.net.address(), SOON).await.map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("not signed by this cluster's CA"), "{error}");
    }
}
