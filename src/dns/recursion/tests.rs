use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use proptest::prelude::*;
use tokio::net::TcpStream;

use super::key::Key;
use super::reply::{Foreign, ForeignData, Reply, Shown};
use super::{Answer, Config, Recursor};
use crate::dns;
use crate::dns::clients::Networks;
use crate::dns::config::Zone;
use crate::dns::counters::Counters;
use crate::dns::testing::running::{
    PATIENCE, Running, Stub, ask_udp, framed, from_zone, read_tcp, reply_to, with_edns,
};
use crate::dns::testing::{Catalog, data_of, question, record};

const WWW: (&str, &str) = ("www.example.com. A", "www.example.com. 60 A 192.0.2.80");

fn recursor(config: Config) -> (Arc<Recursor>, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    (Arc::new(Recursor::new(config, Arc::clone(&counters))), counters)
}

fn of_servers(servers: &[SocketAddr]) -> Config {
    Config { servers: servers.to_vec(), timeout: Duration::from_secs(5), ..Config::default() }
}

async fn ask(recursor: &Recursor, host: &str) -> Answer {
    recursor.ask(host, &Key::own(host, RecordType::A).unwrap()).await
}

/// Shows what was answered: the code unless it is NOERROR, then the addresses.
async fn show(recursor: &Recursor, host: &str) -> String {
    match ask(recursor, host).await {
        Answer::Reply { reply, is_stale, .. } => {
            let code = match reply.code {
                ResponseCode::NoError => String::new(),
                code => format!("{code:?}"),
            };
            let said = reply.foreign().unwrap();
            let said = said.iter().filter_map(|foreign| match foreign.data {
                ForeignData::A(octets) => Some(std::net::Ipv4Addr::from(octets).to_string()),
                _ => None,
            });
            let words = [code].into_iter().chain(said).chain(is_stale.then(|| "stale".to_owned()));
            words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
        }
        Answer::Failed => "failed".to_owned(),
        Answer::Refused => "refused".to_owned(),
    }
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[tokio::test]
async fn a_question_is_asked_once_for_as_long_as_its_reply_lasts() {
    let soa = "example.com. 60 SOA ns.example.com. root.example.com. 1 2 3 4 60";
    let server = Stub::start(&[
        WWW,
        ("www.example.com. AAAA", soa),
        ("now.example.com. A", "now.example.com. 0 A 192.0.2.81"),
    ])
    .await;
    let (recursor, counters) = recursor(of_servers(&[server.address]));
    for _ in 0..3 {
        assert_eq!(show(&recursor, "www.example.com").await, "192.0.2.80");
    }
    assert_eq!((server.asked(), count(&counters.recursion.cached)), (1, 2));
    // Another type is another question; that there is none lasts as long as the SOA says.
    let aaaa = Key::own("WWW.example.com", RecordType::AAAA).unwrap();
    for _ in 0..2 {
        let Answer::Reply { reply, .. } = recursor.ask("www.example.com", &aaaa).await else {
            panic!("no reply");
        };
        assert!(reply.is_negative() && reply.ttl == Some(60));
    }
    assert_eq!(server.asked(), 2);
    // A TTL of 0, and nothing without an SOA, are not kept.
    for _ in 0..2 {
        assert_eq!(show(&recursor, "now.example.com").await, "192.0.2.81");
        assert_eq!(show(&recursor, "none.example.com").await, "NXDomain");
    }
    assert_eq!(server.asked(), 6);
}

#[tokio::test]
async fn who_asks_the_same_at_the_same_time_gets_the_same_reply() {
    let server = Stub::start(&[WWW]).await;
    let config = Config { cache_entries: 0, ..of_servers(&[server.address]) };
    let (recursor, _) = recursor(config);
    let asks = (0..50).map(|_| show(&recursor, "www.example.com"));
    let replies = futures_util::future::join_all(asks).await;
    assert!(replies.iter().all(|reply| reply == "192.0.2.80"));
    assert_eq!(server.asked(), 1);
    // Nothing is remembered where there is no room for it.
    show(&recursor, "www.example.com").await;
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn a_question_that_everybody_gave_up_is_forgotten() {
    let server = Stub::with(|_, _| None).await;
    let (recursor, _) = recursor(of_servers(&[server.address]));
    {
        let (mut one, mut other) =
            (Box::pin(ask(&recursor, "a.example")), Box::pin(ask(&recursor, "a.example")));
        assert!(futures_util::poll!(&mut one).is_pending());
        assert!(futures_util::poll!(&mut other).is_pending());
        assert_eq!(recursor.flights().len(), 1);
        drop(one);
        assert_eq!(recursor.flights().len(), 1, "somebody still waits");
    }
    assert_eq!(recursor.flights().len(), 0);
}

#[tokio::test]
async fn where_one_server_is_silent_or_refuses_the_next_is_asked() {
    let silent = Stub::with(|_, _| None).await;
    let good = Stub::start(&[WWW]).await;
    let (recursor_of_silent, _) = recursor(of_servers(&[silent.address, good.address]));
    assert_eq!(show(&recursor_of_silent, "www.example.com").await, "192.0.2.80");
    for code in [ResponseCode::ServFail, ResponseCode::Refused] {
        let refusing = Stub::with(move |question, _| Some(reply_to(question, code))).await;
        let (both, _) = recursor(of_servers(&[refusing.address, good.address]));
        assert_eq!(show(&both, "www.example.com").await, "192.0.2.80");
        // Where there is no other, its word is passed on, and remembered for a moment.
        let (one, counters) = recursor(of_servers(&[refusing.address]));
        let asked = refusing.asked();
        for _ in 0..3 {
            assert_eq!(show(&one, "www.example.com").await, format!("{code:?}"));
        }
        assert_eq!((refusing.asked() - asked, count(&counters.recursion.failed)), (2, 1));
    }
}

#[tokio::test]
async fn a_server_without_edns_is_asked_without() {
    let server = Stub::with(|question, _| {
        if question.edns.is_some() {
            return Some(reply_to(question, ResponseCode::FormErr));
        }
        from_zone(&[WWW])(question, false)
    })
    .await;
    let (recursor, _) = recursor(of_servers(&[server.address]));
    assert_eq!(show(&recursor, "www.example.com").await, "192.0.2.80");
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn what_was_cut_is_asked_for_over_tcp() {
    let server = Stub::with(|question, is_tcp| {
        let mut reply = from_zone(&[WWW])(question, is_tcp)?;
        if !is_tcp {
            reply.answers.clear();
            reply.metadata.truncation = true;
        }
        Some(reply)
    })
    .await;
    let (recursor, _) = recursor(of_servers(&[server.address]));
    assert_eq!(show(&recursor, "www.example.com").await, "192.0.2.80");
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn what_is_too_old_is_better_than_nothing() {
    let server = Stub::start(&[("www.example.com. A", "www.example.com. 0 A 192.0.2.80")]).await;
    let (recursor, counters) = recursor(of_servers(&[server.address]));
    assert_eq!(show(&recursor, "www.example.com").await, "192.0.2.80");
    server.behave(|question, _| Some(reply_to(question, ResponseCode::ServFail)));
    assert_eq!(show(&recursor, "www.example.com").await, "192.0.2.80 stale");
    let asked = server.asked();
    assert_eq!(show(&recursor, "www.example.com").await, "192.0.2.80 stale");
    assert_eq!((server.asked(), count(&counters.recursion.stale)), (asked, 2));
    assert_eq!(show(&recursor, "other.example.com").await, "ServFail");
}

#[tokio::test]
async fn a_domain_is_asked_of_its_own_servers() {
    let [all, corp, lab] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|address| {
        Stub::with(move |question, _| {
            let name = question.queries[0].name().to_ascii();
            let mut reply = reply_to(question, ResponseCode::NoError);
            reply.add_answer(record(&format!("{name} 60 A {address}")));
            Some(reply)
        })
    });
    let (all, corp, lab) = (all.await, corp.await, lab.await);
    let domain = |name: &str, server: &Stub| (Zone::parse(name).unwrap(), vec![server.address]);
    let domains = vec![domain("corp.example", &corp), domain("lab.corp.example", &lab)];
    let config = Config { domains: domains.clone(), ..of_servers(&[all.address]) };
    let (recursor_of_all, _) = recursor(config);
    for (host, server) in [
        ("corp.example", "192.0.2.2"),
        ("a.corp.example", "192.0.2.2"),
        ("a.lab.corp.example", "192.0.2.3"),
        ("acorp.example", "192.0.2.1"),
        ("example", "192.0.2.1"),
    ] {
        assert_eq!(show(&recursor_of_all, host).await, server, "{host}");
    }
    let config = Config { domains, ..Config::default() };
    assert!(config.is_for("a.corp.example") && !config.is_for("example.com") && config.is_on());
    let (of_domains, _) = recursor(config);
    assert_eq!(show(&of_domains, "example.com").await, "failed");
}

fn config(servers: &[SocketAddr]) -> dns::Config {
    dns::Config {
        listen: vec![(SocketAddr::from(([127, 0, 0, 1], 0)), false)],
        recursion: of_servers(servers),
        ..dns::Config::default()
    }
}

#[tokio::test]
async fn a_client_sees_its_own_question_with_what_another_server_said() {
    let server = Stub::with(|question, is_tcp| {
        from_zone(&[WWW])(question, is_tcp).map(with_edns).map(|mut reply| {
            reply.metadata.authoritative = true;
            reply
        })
    })
    .await;
    let running = Running::start(config(&[server.address]), Catalog::new().view);
    for (text, edns) in [("wWw.eXample.com. A", 1_232), ("www.example.COM. A", 0)] {
        let packet = question(text, edns);
        let (asked, reply) = (Message::from_vec(&packet).unwrap(), running.ask(&packet).await);
        assert_eq!((reply.metadata.id, &reply.queries), (asked.metadata.id, &asked.queries));
        assert!(reply.queries[0].name().eq_case(asked.queries[0].name()));
        assert!(reply.answers[0].name.eq_case(asked.queries[0].name()), "by compression");
        assert_eq!(data_of(&reply.answers[0]), "192.0.2.80");
        let flags = &reply.metadata;
        assert!(flags.recursion_available && flags.recursion_desired && !flags.authoritative);
        // It is our OPT record and not the other server's.
        assert_eq!(reply.edns.map(|edns| edns.max_payload()), (edns > 0).then_some(1_232));
    }
    // Without RD nobody is asked, nor is told what others asked.
    let mut packet = question("www.example.com. A", 0);
    packet[2] &= !1;
    assert_eq!(running.ask(&packet).await.metadata.response_code, ResponseCode::Refused);
    running.stop().await;
}

#[tokio::test]
async fn strangers_are_refused_and_told_nothing_of_others() {
    let server = Stub::start(&[WWW]).await;
    let base = config(&[server.address]);
    let clients = Networks::parse(&["192.0.2.0/24"]).unwrap();
    let recursion = Config { clients, ..base.recursion.clone() };
    let catalog = Catalog::new().instance("app a1 10.0.0.1:80");
    let running = Running::start(dns::Config { recursion, ..base }, catalog.view);
    let reply = running.ask(&question("www.example.com. A", 0)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    let reply = running.ask(&question("app.internal. A", 0)).await;
    assert!(reply.answers.len() == 1 && !reply.metadata.recursion_available);
    running.stop().await;
}

#[tokio::test]
async fn a_server_that_sends_questions_back_is_asked_no_more() {
    let to = Arc::new(std::sync::OnceLock::new());
    let (told, runtime) = (Arc::clone(&to), tokio::runtime::Handle::current());
    // It sends whatever it is asked to who asks here, and does not wait for what becomes of it.
    let stub = Stub::with(move |question, _| {
        let (told, packet) = (Arc::clone(&told), question.to_vec().unwrap());
        runtime.spawn(async move {
            let to = loop {
                match told.get() {
                    Some(to) => break *to,
                    None => tokio::task::yield_now().await,
                }
            };
            ask_udp(to, &packet).await
        });
        None
    })
    .await;
    let running = Running::start(config(&[stub.address]), Catalog::new().view);
    to.set(running.address).unwrap();
    let circles = &running.counters.recursion.circles;
    while count(circles) == 0 {
        tokio::task::yield_now().await;
    }
    let asked = stub.asked();
    let reply = running.ask(&question("www.example.com. A", 0)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!((stub.asked(), count(circles)), (asked, 1));
    running.stop().await;
}

#[tokio::test]
async fn over_tcp_a_slow_answer_holds_up_none_behind_it() {
    let server = Stub::with(|_, _| None).await;
    let catalog = Catalog::new().instance("app a1 10.0.0.1:80");
    let running = Running::start(config(&[server.address]), catalog.view);
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let slow = framed(&question("www.example.com. A", 0));
    let mut own = question("app.internal. A", 0);
    own[..2].copy_from_slice(&7_u16.to_be_bytes());
    let both = [slow, framed(&own)].concat();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &both).await.unwrap();
    let first = tokio::time::timeout(PATIENCE, read_tcp(&mut stream)).await.unwrap();
    assert_eq!((first.metadata.id, first.answers.len()), (7, 1));
    // Now that the other server speaks, what it was asked before is answered, too.
    server.behave(from_zone(&[WWW]));
    let second = tokio::time::timeout(PATIENCE, read_tcp(&mut stream)).await.unwrap();
    assert_eq!(data_of(&second.answers[0]), "192.0.2.80");
    running.stop().await;
}

#[tokio::test]
async fn hosts_that_answers_lead_to_are_looked_up() {
    let server = Stub::start(&[
        (
            "db.example.com. A",
            "db.example.com. 60 CNAME b.example.com., b.example.com. 60 A 192.0.2.9",
        ),
        (
            "db.example.com. AAAA",
            "db.example.com. 60 CNAME b.example.com., b.example.com. 60 AAAA 2001:db8::9",
        ),
    ])
    .await;
    let catalog =
        Catalog::new().instance("db d1 db.example.com:5432").external("out", "db.example.com");
    let running = Running::start(config(&[server.address]), catalog.view);
    let show = async |text: &str| {
        let reply = running.ask(&question(text, 1_232)).await;
        let line = |record: &hickory_proto::rr::Record| {
            format!("{} {} {} {}", record.name, record.ttl, record.record_type(), data_of(record))
        };
        assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
        [&reply.answers, &reply.additionals].map(|records| {
            records
                .iter()
                .map(line)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
                .join(", ")
        })
    };
    let alias = "b.example.com. 0 A 192.0.2.9, db.example.com. 0 CNAME b.example.com., \
                 db.internal. 0 CNAME db.example.com.";
    assert_eq!(show("db.internal. A").await[0], alias);
    let beside = "b.example.com. 0 A 192.0.2.9, b.example.com. 0 AAAA 2001:db8::9, db.example.com. 0 CNAME b.example.com.";
    assert_eq!(
        show("db.internal. SRV").await,
        ["db.internal. 0 SRV 1 10 5432 db.example.com.", beside]
    );
    // The records of a node keep their own TTLs.
    let node = show("out.node.internal. AAAA").await;
    assert!(node[0].contains("b.example.com. 60 AAAA 2001:db8::9"), "{node:?}");
    running.stop().await;
}

fn reply_bytes(key: &Key, records: &[&str], cut: impl Fn(&mut Message)) -> Vec<u8> {
    let question = Message::from_vec(&key.message(7, true)).unwrap();
    let mut reply = reply_to(&question, ResponseCode::NoError);
    reply.add_answers(records.iter().map(|text| record(text)));
    cut(&mut reply);
    reply.to_vec().unwrap()
}

fn shown<'q>(name: &'q [u8], opt: &'q [u8], bytes_max: usize, age: u32) -> Shown<'q> {
    Shown {
        id: 9,
        name,
        is_recursion_desired: true,
        is_checking_disabled: false,
        wants_authentic: false,
        bytes_max,
        opt,
        age,
        ttl_max: 1_000,
        ttl_min: 0,
    }
}

#[test]
fn ttls_count_down_and_what_is_too_long_is_cut() {
    let key = Key::own("a.example", RecordType::A).unwrap();
    let records = ["a.example. 60 A 192.0.2.1", "a.example. 9000 A 192.0.2.2"];
    let bytes = reply_bytes(&key, &records, |_| ());
    let reply = Reply::read(&bytes, 7, &key).unwrap();
    assert_eq!((reply.ttl, reply.is_settled()), (Some(60), true));
    let mut out = Vec::new();
    assert!(!reply.write(&mut out, &shown(key.name(), &[], 512, 40)));
    let message = Message::from_vec(&out).unwrap();
    let ttls: Vec<u32> = message.answers.iter().map(|record| record.ttl).collect();
    assert_eq!((message.metadata.id, ttls), (9, vec![20, 1_000]));
    assert!(reply.write(&mut out, &shown(key.name(), &[], bytes.len() - 1, 0)));
    let message = Message::from_vec(&out).unwrap();
    assert!(message.metadata.truncation && message.answers.is_empty());
    assert_eq!(message.queries.len(), 1);
}

#[test]
fn a_reply_to_another_question_is_none() {
    let key = Key::own("a.example", RecordType::A).unwrap();
    let bytes = reply_bytes(&key, &["a.example. 60 A 192.0.2.1"], |_| ());
    assert!(Reply::read(&bytes, 8, &key).is_none());
    for other in [("b.example", RecordType::A), ("a.example", RecordType::AAAA)] {
        assert!(Reply::read(&bytes, 7, &Key::own(other.0, other.1).unwrap()).is_none());
    }
    let mut question = bytes.clone();
    question[2] &= 0x7f;
    assert!(Reply::read(&question, 7, &key).is_none());
    (0..bytes.len())
        .for_each(|end| assert!(Reply::read(&bytes[..end], 7, &key).is_none(), "{end}"));
}

#[test]
fn names_that_point_forward_or_in_a_circle_are_not_followed() {
    let key = Key::own("a.example", RecordType::CNAME).unwrap();
    let bytes = reply_bytes(&key, &["a.example. 60 CNAME b.example."], |_| ());
    let read = |bytes: &[u8]| Reply::read(bytes, 7, &key).unwrap().foreign();
    let data = ForeignData::Cname("b.example".to_owned());
    let expected = Foreign { owner: "a.example".to_owned(), ttl: 60, data };
    assert_eq!(read(&bytes), Some(vec![expected]));
    // The alias is `b` and a pointer: let it point to itself.
    let mut circle = bytes.clone();
    let end = circle.len();
    let at = u16::try_from(end - 4).unwrap();
    circle[end - 2..].copy_from_slice(&(0xc000 | at).to_be_bytes());
    assert_eq!(read(&circle), None);
}

proptest! {
    #[test]
    fn whatever_a_server_sends_is_read_or_left(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        length in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let key = Key::own("a.example", RecordType::A).unwrap();
        let records = ["a.example. 60 CNAME b.example.", "b.example. 5 A 192.0.2.2"];
        let mut bytes = reply_bytes(&key, &records, |reply| *reply = with_edns(reply.clone()));
        for (place, value) in damage {
            // The id and the question stay, or it would be none at once.
            let place = 2 + place.index(bytes.len() - 2);
            bytes[place] = value;
        }
        if is_cut {
            bytes.truncate(length.index(bytes.len()));
        }
        if let Some(reply) = Reply::read(&bytes, 7, &key) {
            let _ = reply.foreign();
            let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
            for (opt, bytes_max) in [(&opt[..], 512), (&[][..], 30)] {
                let mut out = Vec::new();
                let is_cut = reply.write(&mut out, &shown(key.name(), opt, bytes_max, 3));
                prop_assert!(is_cut || out.len() <= bytes_max);
                prop_assert!(out[..2] == [0, 9] && out[2] & 0x80 != 0);
            }
        }
    }
}
