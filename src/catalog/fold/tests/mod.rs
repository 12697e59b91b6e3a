//! Who is woken by what, one sentence after the other. Each step of a [`Pair`] also holds the
//! whole view against the model.

mod model;
mod random;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::model::{ME, Pair, Step, Write};
use crate::catalog::model::{
    Check, Node, NodeKey, SERF_HEALTH, Service, Source, Status, key_of, lower,
};
use crate::catalog::view::{CheckEntry, Liveness, Topic};
use crate::types::NodeId;

const A: NodeId = NodeId([2; 16]);
const B: NodeId = NodeId([3; 16]);

fn node(id: NodeId, name: &str, change: impl FnOnce(&mut Node)) -> Write {
    let mut node = Node { name: name.to_owned(), ..Node::default() };
    change(&mut node);
    Write::Node(key_of(id).to_string(), Some(node))
}

/// An instance whose id is its service's name.
fn service(id: NodeId, name: &str, change: impl FnOnce(&mut Service)) -> Write {
    let named = name.to_owned();
    let mut service = Service { id: named.clone(), name: named, port: 80, ..Service::default() };
    change(&mut service);
    Write::Service(key_of(id).to_string(), service.id.clone(), Some(service))
}

fn no_service(id: NodeId, service_id: &str) -> Write {
    Write::Service(key_of(id).to_string(), service_id.to_owned(), None)
}

fn check(id: NodeId, check_id: &str, service_id: &str, status: Status, output: &str) -> Write {
    let check = Check {
        id: check_id.to_owned(),
        status,
        output: output.to_owned(),
        service_id: service_id.to_owned(),
        ..Check::default()
    };
    Write::Check(key_of(id).to_string(), check_id.to_owned(), Some(check))
}

/// Two nodes; `web` on both, `db` on A alone, each `web` with a check.
fn fleet() -> Pair {
    let mut pair = Pair::new();
    pair.commit([
        node(A, "a", |_| {}),
        node(B, "b", |_| {}),
        service(A, "web", |_| {}),
        service(A, "db", |_| {}),
        service(B, "web", |_| {}),
        check(A, "c", "web", Status::Passing, ""),
        check(B, "c", "web", Status::Passing, ""),
    ]);
    pair
}

/// Takes a step and holds what it touched against a list like `Checks Health(web) Node(a)`.
fn touches(pair: &mut Pair, step: Step, expected: &str) {
    let names: BTreeMap<NodeKey, &str> = [(key_of(A), "a"), (key_of(B), "b")].into();
    let shown = |topic: &Topic| match topic {
        Topic::Services => "Services".to_owned(),
        Topic::Nodes => "Nodes".to_owned(),
        Topic::Checks => "Checks".to_owned(),
        Topic::Queries => "Queries".to_owned(),
        Topic::Health(name) => format!("Health({name})"),
        Topic::Instances(name) => format!("Instances({name})"),
        Topic::ServiceChecks(name) => format!("ServiceChecks({name})"),
        Topic::Node(key) => format!("Node({})", names[key]),
        Topic::NodeChecks(key) => format!("NodeChecks({})", names[key]),
        Topic::Key(key) | Topic::KeysUnder(key) | Topic::Events(key) => format!("Key({key})"),
    };
    let mut touched: Vec<String> = pair.step(&step).iter().map(shown).collect();
    touched.sort();
    let mut expected: Vec<&str> = expected.split_whitespace().collect();
    expected.sort_unstable();
    assert_eq!(touched, expected, "after {step:?}");
}

fn writes(pair: &mut Pair, write: Write, expected: &str) {
    touches(pair, Step::Commit(vec![write]), expected);
}

#[test]
fn an_instances_check_wakes_who_asks_for_its_health_and_for_checks() {
    let mut pair = fleet();
    let expected = "Health(web) Checks ServiceChecks(web) NodeChecks(a)";
    writes(&mut pair, check(A, "c", "web", Status::Critical, "refused"), expected);
    writes(&mut pair, check(A, "second", "web", Status::Passing, ""), expected);
}

#[test]
fn a_nodes_check_wakes_every_service_on_the_node() {
    let mut pair = fleet();
    let expected = "Health(web) Health(db) Checks NodeChecks(a)";
    writes(&mut pair, check(A, "disk", "", Status::Passing, ""), expected);
    writes(&mut pair, check(A, "disk", "", Status::Critical, "full"), expected);
    assert!(pair.view.service("db").unwrap().instances[0].status == Status::Critical);
    let expected = "Health(web) Checks NodeChecks(b)";
    writes(&mut pair, check(B, "disk", "", Status::Critical, "full"), expected);
}

#[test]
fn an_output_alone_wakes_nobody_and_is_shown() {
    let mut pair = fleet();
    let index = pair.view.index_max();
    writes(&mut pair, check(A, "c", "web", Status::Passing, "200 OK"), "");
    let entry = pair.view.node("a").unwrap().check("c").unwrap().clone();
    assert_eq!((entry.check.output.as_str(), entry.modify_index), ("200 OK", index));
    assert_eq!(pair.view.index_max(), index);
}

#[test]
fn a_port_or_a_tag_wakes_the_lists_and_the_service_but_no_other() {
    let mut pair = fleet();
    let expected = "Services Node(a) Health(db) Instances(db)";
    writes(&mut pair, service(A, "db", |db| db.port = 81), expected);
    writes(&mut pair, service(A, "db", |db| db.tags = vec!["v1".to_owned()]), expected);
}

#[test]
fn a_tag_wakes_who_asks_for_the_checks_that_show_it() {
    let mut pair = fleet();
    let expected = "Services Node(a) Health(web) Instances(web)";
    writes(&mut pair, service(A, "web", |web| web.port = 81), expected);
    let change = service(A, "web", |web| (web.port, web.tags) = (81, vec!["v1".to_owned()]));
    let and_checks = format!("{expected} Checks ServiceChecks(web) NodeChecks(a)");
    writes(&mut pair, change, &and_checks);
}

#[test]
fn what_only_moved_from_consuls_agent_to_us_wakes_nobody() {
    let mut pair = fleet();
    writes(&mut pair, service(A, "db", |db| db.source = Source::Consul), "");
    assert_eq!(pair.view.service("db").unwrap().instances[0].service.source, Source::Consul);
}

#[test]
fn an_instance_that_comes_or_goes_wakes_the_lists_its_node_and_its_service() {
    let mut pair = fleet();
    let expected = "Services Node(b) Health(db) Instances(db)";
    writes(&mut pair, service(B, "db", |_| {}), expected);
    writes(&mut pair, no_service(B, "db"), expected);
    let expected = "Services Node(b) Health(web) Instances(web) \
                    Checks ServiceChecks(web) NodeChecks(b)";
    writes(&mut pair, no_service(B, "web"), expected);
}

#[test]
fn liveness_is_a_check_of_the_node() {
    let mut pair = fleet();
    let expected = "Health(web) Health(db) Checks NodeChecks(a)";
    touches(&mut pair, Step::Liveness(Liveness::Down(A)), expected);
    let entry = pair.view.node("a").unwrap();
    let serf: &CheckEntry = &entry.checks[0];
    assert_eq!((serf.check.id.as_str(), serf.check.status), (SERF_HEALTH, Status::Critical));
    assert!(serf.modify_index > serf.create_index && serf.modify_index == pair.at);
    assert!(!entry.info.is_up && entry.instances().all(|one| one.status == Status::Critical));
    touches(&mut pair, Step::Liveness(Liveness::Down(A)), "");
    touches(&mut pair, Step::Liveness(Liveness::Up(A)), expected);
}

#[test]
fn who_was_never_heard_of_is_up_until_membership_has_settled() {
    let mut pair = fleet();
    touches(&mut pair, Step::Liveness(Liveness::Up(B)), "");
    touches(&mut pair, Step::Liveness(Liveness::Down(ME)), "");
    let expected = "Health(web) Health(db) Checks NodeChecks(a)";
    touches(&mut pair, Step::Liveness(Liveness::Settled), expected);
    touches(&mut pair, Step::Liveness(Liveness::Settled), "");
    pair.commit([node(ME, "me", |_| {}), node(NodeId([9; 16]), "late", |_| {})]);
    assert!(pair.view.own().unwrap().info.is_up);
    assert!(!pair.view.node("late").unwrap().info.is_up);
}

#[test]
fn an_external_node_has_no_agent_that_could_fail() {
    let mut pair = fleet();
    let key = format!("{A}/printer");
    let printer = Node { name: "printer".to_owned(), ..Node::default() };
    pair.commit([Write::Node(key.clone(), Some(printer))]);
    pair.step(&Step::Liveness(Liveness::Settled));
    pair.step(&Step::Liveness(Liveness::Down(A)));
    let entry = pair.view.node_by_key(&key).unwrap();
    assert!(entry.info.is_up && entry.info.member.is_none() && entry.checks.is_empty());
}

#[test]
fn a_nodes_address_wakes_the_services_on_it_and_its_version_does_not() {
    let mut pair = fleet();
    let expected = "Nodes Node(b) Health(web) Instances(web)";
    writes(&mut pair, node(B, "b", |b| b.address = "10.0.0.9".to_owned()), expected);
    let upgrade = node(B, "b", |b| {
        b.address = "10.0.0.9".to_owned();
        b.version = "2".to_owned();
    });
    writes(&mut pair, upgrade, "Nodes Node(b)");
    assert_eq!(pair.view.service("web").unwrap().instances[1].node.node.version, "2");
}

#[test]
fn a_service_that_is_gone_has_the_index_of_the_last_that_went() {
    let mut pair = fleet();
    let health = |name: &str| Topic::Health(name.into());
    assert_eq!(pair.view.index(&health("never")), 1);
    pair.commit([no_service(A, "db")]);
    let gone = pair.at;
    assert_eq!(pair.view.index(&health("db")), gone);
    assert_eq!(pair.view.index(&health("never")), gone);
    pair.commit([check(A, "c", "web", Status::Warning, "")]);
    assert_eq!(pair.view.index(&health("db")), gone, "others' changes leave it alone");
    pair.commit([service(A, "db", |_| {})]);
    assert_eq!(pair.view.index(&health("db")), pair.at);
    assert_eq!(pair.view.index(&health("never")), gone);
    assert_eq!(pair.view.index(&Topic::Node(key_of(B))), gone - 10);
    pair.commit([Write::Node(key_of(B).to_string(), None)]);
    assert_eq!(pair.view.index(&Topic::Node(key_of(B))), pair.at);
    assert_eq!(pair.view.index(&Topic::NodeChecks(key_of(NodeId([9; 16])))), pair.at);
}

#[test]
fn rows_wait_for_their_node_and_checks_for_their_instance() {
    let mut pair = Pair::new();
    writes(&mut pair, check(A, "c", "web", Status::Critical, ""), "");
    writes(&mut pair, service(A, "web", |_| {}), "");
    writes(&mut pair, check(A, "n", "", Status::Passing, ""), "");
    writes(&mut pair, check(A, "lost", "nowhere", Status::Passing, ""), "");
    assert!(pair.view.service("web").is_none() && pair.view.node("a").is_none());
    let expected = "Nodes Node(a) NodeChecks(a) Checks Services \
                    Health(web) Instances(web) ServiceChecks(web)";
    writes(&mut pair, node(A, "a", |_| {}), expected);
    assert_eq!(pair.view.service("web").unwrap().instances[0].status, Status::Critical);
    let expected = "Services Node(a) Health(nowhere) Instances(nowhere) \
                    ServiceChecks(nowhere) Checks NodeChecks(a)";
    writes(&mut pair, service(A, "nowhere", |_| {}), expected);
}

#[test]
fn of_two_nodes_with_one_name_the_lowest_key_that_is_up_has_it_until_it_goes() {
    let mut pair = Pair::new();
    pair.commit([node(A, "twin", |_| {}), node(B, "TWIN", |_| {}), node(ME, "me", |_| {})]);
    let named = |pair: &Pair| pair.view.node("Twin").map(|node| node.info.member);
    assert_eq!(named(&pair), Some(Some(A)));
    let names: Vec<Vec<_>> = pair
        .view
        .namesakes()
        .map(|nodes| nodes.iter().map(|node| node.info.member).collect())
        .collect();
    assert_eq!(names, [[Some(A), Some(B)]]);
    pair.step(&Step::Liveness(Liveness::Down(A)));
    assert_eq!(named(&pair), Some(Some(B)), "the name of a dead host goes to its successor");
    pair.step(&Step::Liveness(Liveness::Down(B)));
    assert_eq!(named(&pair), Some(Some(A)));
    pair.step(&Step::Liveness(Liveness::Up(B)));
    pair.step(&Step::Liveness(Liveness::Up(A)));
    assert_eq!(named(&pair), Some(Some(A)));
    assert!(pair.view.node(&key_of(B)).is_some());
    assert_eq!(pair.view.nodes().count(), 3);
    pair.commit([Write::Node(key_of(A).to_string(), None)]);
    assert_eq!(named(&pair), Some(Some(B)));
    pair.commit([node(B, "other", |_| {})]);
    assert_eq!(named(&pair), None);
}

#[test]
fn no_node_can_pose_as_another_by_its_name() {
    let mut pair = Pair::new();
    pair.commit([node(A, &key_of(B), |_| {}), node(B, "b", |_| {})]);
    assert_eq!(pair.view.node(&key_of(B)).unwrap().info.member, Some(B));
}

#[test]
fn two_changes_in_one_millisecond_have_two_indexes() {
    let mut pair = fleet();
    pair.commit([service(A, "db", |db| db.port = 81)]);
    let first = pair.view.index(&Topic::Services);
    // Membership's clock is ahead of the one that commits have.
    pair.at -= 10;
    let old = pair.view.clone();
    let (view, _) = old.fold_liveness(crate::types::Hlc(pair.at), Liveness::Down(A));
    assert_eq!(view.index(&Topic::Checks), first + 1);
    assert_eq!(view.index_max(), first + 1);
}

#[test]
fn instances_stand_in_the_order_of_their_nodes_names() {
    let mut pair = Pair::new();
    pair.commit([node(A, "z", |_| {}), node(B, "Y", |_| {}), service(A, "web", |_| {})]);
    pair.commit([service(B, "web", |web| web.id = "w2".to_owned())]);
    pair.commit([service(B, "WEB", |web| web.id = "w1".to_owned())]);
    let entry = Arc::clone(pair.view.service("wEb").unwrap());
    let ids: Vec<&str> = entry.instances.iter().map(|one| one.service.id.as_str()).collect();
    assert_eq!(ids, ["w1", "w2", "web"]);
    assert_eq!((&*entry.name, lower(&entry.name).as_ref()), ("WEB", "web"));
}
