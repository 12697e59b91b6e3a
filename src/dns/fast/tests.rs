use std::collections::BTreeMap;
use std::sync::Arc;

use hickory_proto::op::Message;
use proptest::prelude::*;

use super::Fast;
use super::plain::Plain;
use crate::catalog::Status;
use crate::catalog::model::{Check, Node, Service, Source};
use crate::dns::Config;
use crate::dns::answer::{Answered, Request, Transport, answer_and_learn};
use crate::dns::choose::Random;
use crate::dns::testing::{Catalog, ME, data_of, question};
use crate::live::Feed;

const N2: &str = "22222222-2222-2222-2222-222222222222";

/// Shows a reply: all but the order of its records.
fn show(bytes: &[u8]) -> (String, [Vec<String>; 3]) {
    let message = Message::from_vec(bytes).expect("a reply that can be read");
    let line = |record: &hickory_proto::rr::Record| {
        format!("{} {} {} {}", record.name, record.ttl, record.record_type(), data_of(record))
    };
    let sections = [&message.answers, &message.authorities, &message.additionals];
    let sections = sections.map(|records| {
        let mut lines: Vec<String> = records.iter().map(line).collect();
        lines.sort();
        lines
    });
    // Questions are compared in their own case.
    let edns = message
        .edns
        .as_ref()
        .map(|edns| (edns.max_payload(), edns.version(), edns.flags().dnssec_ok));
    let names: Vec<String> = message.queries.iter().map(|query| query.name().to_ascii()).collect();
    (format!("{:?} {names:?} {edns:?}", message.metadata), sections)
}

struct Pair {
    catalog: Catalog,
    config: Config,
    fast: Fast,
    /// How many replies came the short way.
    hits: usize,
}

impl Pair {
    fn new(config: Config) -> Self {
        let catalog = Catalog::new().node(N2, "n2", "10.0.0.2", &[("rack", "r2")]);
        let fast = Fast::new(Arc::new(catalog.view.clone()), &config);
        Self { catalog, config, fast, hits: 0 }
    }

    /// Asks both ways, twice, and compares. The first time the short way has nothing to say.
    fn ask(&mut self, packet: &[u8], transport: Transport) -> Result<(), TestCaseError> {
        let feed = Feed::new(self.catalog.view.clone());
        self.fast.look(&feed);
        for seed in 0..2 {
            let mut slow = Vec::new();
            let request = Request {
                packet,
                transport,
                seed,
                now_unix: 1,
                client: None,
                known: None,
                distances: None,
            };
            let mut short = Vec::new();
            let circumstances = (transport, false);
            let random = &mut Random(seed);
            let outcome = self.fast.answer(packet, circumstances, &self.config, random, &mut short);
            let (view, fast) = (Arc::clone(self.fast.view()), &mut self.fast);
            let answered = answer_and_learn(&view, &self.config, request, Some(fast), &mut slow);
            if let Some(outcome) = outcome {
                self.hits += 1;
                prop_assert_eq!(show(&short), show(&slow));
                let Answered::Reply(expected) = answered else { panic!("a reply") };
                prop_assert_eq!(outcome, expected);
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Change {
    Node { key: &'static str, address: String, meta: bool },
    Service { key: &'static str, id: u8, name: &'static str, address: String, port: u16, tags: u8 },
    Check { key: &'static str, id: u8, status: Status },
}

fn address() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (0..4_u8).prop_map(|last| format!("10.0.0.{last}")),
        2 => Just(String::new()),
        1 => Just("2001:db8::1".to_owned()),
        1 => Just("db.example.com".to_owned()),
        1 => Just("app.internal".to_owned()),
        1 => Just("n2.node.consul".to_owned()),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let key = || prop_oneof![Just(ME), Just(N2)];
    let status = prop_oneof![Just(Status::Passing), Just(Status::Warning), Just(Status::Critical)];
    let name = prop_oneof![Just("app"), Just("App"), Just("dc1"), Just("web")];
    prop_oneof![
        1 => (key(), address(), any::<bool>())
            .prop_map(|(key, address, meta)| Change::Node { key, address, meta }),
        4 => (key(), 0..6_u8, name, address(), 0..3_u16, 0..8_u8).prop_map(
            |(key, id, name, address, port, tags)| Change::Service { key, id, name, address, port, tags }
        ),
        2 => (key(), 0..6_u8, status).prop_map(|(key, id, status)| Change::Check { key, id, status }),
    ]
}

fn make(catalog: &mut Catalog, change: &Change) {
    match change {
        Change::Node { key, address, meta } => {
            let meta: BTreeMap<String, String> =
                meta.then(|| ("rack".to_owned(), "r1".to_owned())).into_iter().collect();
            let (name, datacenter) = (if *key == ME { "n1" } else { "n2" }, "dc1");
            let (name, datacenter) = (name.to_owned(), datacenter.to_owned());
            let node = Node { name, address: address.clone(), datacenter, meta, ..Node::default() };
            catalog.put_node(key, &node);
        }
        Change::Service { key, id, name, address, port, tags } => {
            let chosen = ["blue", "v1.2", "http"].into_iter().enumerate();
            let chosen = chosen.filter(|(bit, _)| *tags >> bit & 1 == 1);
            catalog.put_service(
                key,
                &Service {
                    id: format!("i{id}"),
                    name: (*name).to_owned(),
                    address: address.clone(),
                    port: i64::from(*port) * 40_000,
                    tags: chosen.map(|(_, tag)| tag.to_owned()).collect(),
                    ..Service::default()
                },
            );
        }
        Change::Check { key, id, status } => catalog.put_check(
            key,
            &Check {
                id: format!("c{id}"),
                service_id: format!("i{id}"),
                status: *status,
                source: Source::Api,
                ..Check::default()
            },
        ),
    }
}

proptest! {
    // Each asks some hundreds of questions.
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_short_way_says_what_the_long_way_says(
        changes in proptest::collection::vec((change(), 0..12_usize), 1..40),
        is_plain in any::<bool>(),
        targets_in in prop_oneof![Just(None), Just(Some(1))],
        udp_answer_limit in prop_oneof![3 => Just(0), 1 => Just(2_usize)],
        only_passing in any::<bool>(),
    ) {
        let mut pair = Pair::new(Config { targets_in, udp_answer_limit, only_passing, ..Config::default() });
        for (change, which) in &changes {
            make(&mut pair.catalog, change);
            let name = [
                "app.internal.", "APP.service.consul.", "_app._tcp.internal.", "_web._tcp.dc1.consul.",
                "blue.app.internal.", "v1.2.app.internal.", "i1.app.consul.", "_http._tcp.app.internal.",
                "app.service.dc1.internal.", "n1.node.internal.", "web.internal.", "dc1.internal.",
            ][*which];
            for kind in ["A", "SRV", "AAAA", "ANY", "TXT"] {
                let edns = if is_plain { 0 } else { 1_232 };
                let packet = question(&format!("{name} {kind}"), edns);
                pair.ask(&packet, Transport::Udp)?;
                pair.ask(&packet, Transport::Tcp)?;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_comes_is_of_the_common_form_or_not(
        packet in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        if let Some(plain) = Plain::read(&packet) {
            prop_assert!(plain.question.len() >= 5 && Message::from_vec(&packet).is_ok());
        }
    }

    #[test]
    fn damage_to_a_common_question_is_no_common_question_or_another_one(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        edns in prop_oneof![Just(0_u16), Just(1_232)],
    ) {
        let mut pair = Pair::new(Config::default());
        pair.catalog = pair.catalog.instance("app a1 10.0.0.1:80").instance("app a2 10.0.0.2:81");
        let mut packet = question("app.internal. SRV", edns);
        pair.ask(&packet, Transport::Udp)?;
        prop_assert_eq!(pair.hits, 1);
        for (place, value) in damage {
            let place = place.index(packet.len());
            packet[place] = value;
        }
        pair.ask(&packet, Transport::Udp)?;
    }
}

#[test]
fn the_common_questions_go_the_short_way_until_their_service_changes() {
    let mut pair = Pair::new(Config::default());
    pair.catalog = pair.catalog.instance("app a1 10.0.0.1:80").instance("web w1 :81");
    let mut hits = |catalog: fn(Catalog) -> Catalog| {
        let grown = catalog(std::mem::replace(&mut pair.catalog, Catalog::empty()));
        pair.catalog = grown;
        let before = pair.hits;
        for kind in ["A", "SRV"] {
            pair.ask(&question(&format!("app.internal. {kind}"), 0), Transport::Udp).unwrap();
        }
        pair.hits - before
    };
    assert_eq!(hits(|catalog| catalog), 2, "the second time");
    assert_eq!(hits(|catalog| catalog), 4);
    assert_eq!(hits(|catalog| catalog.instance("web w2 10.0.0.9:1")), 4, "another service");
    assert_eq!(hits(|catalog| catalog.instance("app a2 10.0.0.3:80")), 2);
    assert_eq!(hits(|catalog| catalog.check("a1", Status::Critical)), 2);
}

#[test]
fn every_order_comes_up_the_short_way_and_each_target_has_its_address() {
    let mut pair = Pair::new(Config::default());
    for n in 1..4 {
        pair.catalog = pair.catalog.instance(&format!("app a{n} 10.0.0.{n}:{n}"));
    }
    let packet = question("app.internal. SRV", 0);
    pair.ask(&packet, Transport::Udp).unwrap();
    let mut orders: BTreeMap<String, usize> = BTreeMap::new();
    let mut random = Random(7);
    for _ in 0..600 {
        let mut reply = Vec::new();
        let circumstances = (Transport::Udp, false);
        pair.fast.answer(&packet, circumstances, &pair.config, &mut random, &mut reply).unwrap();
        let message = Message::from_vec(&reply).unwrap();
        let order: Vec<String> = message.answers.iter().map(data_of).collect();
        *orders.entry(order.join(" ")).or_default() += 1;
        for (answer, beside) in message.answers.iter().zip(&message.additionals) {
            assert!(data_of(answer).ends_with(&beside.name.to_ascii()), "in the same order");
        }
    }
    assert_eq!(orders.len(), 6);
    assert!(orders.values().all(|count| (60..140).contains(count)), "{orders:?}");
}
