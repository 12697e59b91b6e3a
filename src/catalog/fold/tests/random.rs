//! Random writes and news, step by step against the model.

use std::fmt::Debug;

use proptest::prelude::*;

use super::model::{Pair, Step, Write};
use crate::catalog::model::{
    Check, Node, SERF_HEALTH, Service, Source, Status, external_id, external_key, key_of,
};
use crate::catalog::queries::{PreparedQuery, Template};
use crate::catalog::view::Liveness;
use crate::types::NodeId;

fn pick<T: Clone + Debug + 'static>(from: &[T]) -> impl Strategy<Value = T> + use<T> {
    proptest::sample::select(from.to_vec())
}

fn texts(from: &[&str]) -> impl Strategy<Value = String> + use<> {
    pick(&from.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
}

fn node_keys() -> impl Strategy<Value = String> {
    let members = [1, 2, 3].map(|byte| key_of(NodeId([byte; 16])).to_string());
    let external = format!("{}/printer", members[1]);
    pick(&[members.as_slice(), &[external, external_key("cam").to_string()]].concat())
}

fn writes() -> impl Strategy<Value = Write> {
    let addresses = ["", "10.0.0.1", "10.0.0.2", "db.example"];
    let node = (texts(&["a", "A", "b", "c"]), texts(&addresses), texts(&["", "1.0"]))
        .prop_map(|(name, address, version)| Node { name, address, version, ..Node::default() });
    let tags = || proptest::collection::vec(texts(&["v1", "v2"]), 0..2);
    let sources = || pick(&[Source::Api, Source::Consul]);
    let service = (
        texts(&["web", "Web", "db"]),
        texts(&addresses),
        pick(&[80, 81]),
        tags(),
        sources(),
        any::<bool>(),
    )
        .prop_map(|(name, address, port, tags, source, enable_tag_override)| Service {
            name,
            address,
            port,
            tags,
            enable_tag_override,
            source,
            ..Service::default()
        });
    let check = (
        pick(&[Status::Passing, Status::Warning, Status::Critical]),
        texts(&["", "ok", "refused"]),
        texts(&["", "", "x", "y"]),
        sources(),
    )
        .prop_map(|(status, output, service_id, source)| Check {
            status,
            output,
            service_id,
            source,
            ..Check::default()
        });
    let some = |weight| proptest::bool::weighted(weight);
    prop_oneof![
        2 => (node_keys(), node, some(0.7))
            .prop_map(|(key, mut node, is)| {
                if external_id(&key).is_some() {
                    // Its table has no such column.
                    node.version.clear();
                }
                Write::Node(key, is.then_some(node))
            }),
        4 => (node_keys(), texts(&["x", "y", ""]), service, some(0.7)).prop_map(
            |(key, id, service, is)| {
                let service = is.then(|| Service { id: id.clone(), ..service });
                Write::Service(key, id, service)
            }
        ),
        1 => (node_keys(), texts(&["x", "y"]), tags(), some(0.7))
            .prop_map(|(key, id, tags, is)| Write::Tags(key, id, is.then_some(tags))),
        1 => (texts(&["k", "k/1"]), pick(&[(vec![], 0), (vec![1], 0), (vec![1], u64::MAX)]), some(0.7))
            .prop_map(|(key, value, is)| Write::Key(key, is.then_some(value))),
        1 => (texts(&["1", "2"]), texts(&["q", "Q", "r", ""]), any::<bool>(), some(0.7)).prop_map(
            |(id, name, is_template, is)| {
                let kind = if is_template { "name_prefix_match" } else { "" }.to_owned();
                let template = Template { kind, ..Template::default() };
                let query = PreparedQuery { name, template, ..PreparedQuery::default() };
                Write::Query(id, is.then_some(query))
            }
        ),
        4 => (node_keys(), texts(&["c1", "c2", "t", SERF_HEALTH]), check, some(0.7)).prop_map(
            |(key, id, check, is)| {
                let check = is.then(|| Check { id: id.clone(), ..check });
                Write::Check(key, id, check)
            }
        ),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let member = pick(&[1, 2, 3, 9]).prop_map(|byte| NodeId([byte; 16]));
    prop_oneof![
        8 => proptest::collection::vec(writes(), 1..5).prop_map(Step::Commit),
        3 => (member, any::<bool>()).prop_map(|(member, is_up)| {
            Step::Liveness(if is_up { Liveness::Up(member) } else { Liveness::Down(member) })
        }),
        1 => Just(Step::Liveness(Liveness::Settled)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_view_is_what_the_rows_say_and_touches_exactly_what_changed(
        steps in proptest::collection::vec(steps(), 1..30)
    ) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.step(step);
        }
    }
}
