//! Tables as plain maps, from which every answer is worked out anew, slowly and obviously.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;

use crate::catalog::model::{
    Check, Node, SERF_HEALTH, Service, Source, Status, external_id, lower, member_of,
};
use crate::catalog::queries::PreparedQuery;
use crate::catalog::rows;
use crate::catalog::view::{CheckEntry, Instance, Liveness, Topic, View};
use crate::crdt::{Commit, RowEvent, RowEvents, TableEvents, TableInfo};
use crate::types::{Hlc, NodeId, Seq, Value};

pub const ME: NodeId = NodeId([1; 16]);

/// A row of one of the tables, with its new content; `None`: it goes.
#[derive(Clone, Debug)]
pub enum Write {
    Node(String, Option<Node>),
    Service(String, String, Option<Service>),
    Check(String, String, Option<Check>),
    Tags(String, String, Option<Vec<String>>),
    /// A value and its flags.
    Key(String, Option<(Vec<u8>, u64)>),
    Query(String, Option<PreparedQuery>),
}

#[derive(Clone, Debug)]
pub enum Step {
    Commit(Vec<Write>),
    Liveness(Liveness),
}

/// A row with the indexes that it must show.
#[derive(Clone, Debug)]
struct Stamped<T> {
    thing: T,
    create: u64,
    modify: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    nodes: BTreeMap<String, Stamped<Node>>,
    /// As they were registered.
    registered: BTreeMap<(String, String), Service>,
    tags: BTreeMap<(String, String), Vec<String>>,
    /// As everybody sees them.
    services: BTreeMap<(String, String), Stamped<Service>>,
    checks: BTreeMap<(String, String), Stamped<Check>>,
    keys: BTreeMap<String, Stamped<(Vec<u8>, u64)>>,
    queries: BTreeMap<String, Stamped<PreparedQuery>>,
    heard: BTreeMap<NodeId, bool>,
    settled: bool,
}

fn put<K: Ord, T: PartialEq>(
    table: &mut BTreeMap<K, Stamped<T>>,
    key: K,
    new: Option<T>,
    at: u64,
    is_quiet: impl Fn(&T, &T) -> bool,
) -> bool {
    let old = table.remove(&key);
    let differs = old.as_ref().map(|old| &old.thing) != new.as_ref();
    if let Some(thing) = new {
        let create = old.as_ref().map_or(at, |old| old.create);
        let quiet = old.filter(|old| is_quiet(&old.thing, &thing));
        table.insert(key, Stamped { thing, create, modify: quiet.map_or(at, |old| old.modify) });
    }
    differs
}

/// Puts a value in its place, or takes it away, and tells whether it differs from before.
fn set<T: PartialEq>(
    table: &mut BTreeMap<(String, String), T>,
    row: (String, String),
    new: Option<T>,
) -> bool {
    let differs = table.get(&row) != new.as_ref();
    match new {
        Some(new) => drop(table.insert(row, new)),
        None => drop(table.remove(&row)),
    }
    differs
}

impl Model {
    /// Writes a row and tells whether it differs from before.
    fn write(&mut self, at: u64, write: &Write) -> bool {
        match write.clone() {
            Write::Node(key, node) => put(&mut self.nodes, key, node, at, |a, b| a == b),
            Write::Service(key, id, service) => {
                let differs = set(&mut self.registered, (key.clone(), id.clone()), service);
                self.dress(at, (key, id));
                differs
            }
            Write::Tags(key, id, tags) => {
                let differs = set(&mut self.tags, (key.clone(), id.clone()), tags);
                self.dress(at, (key, id));
                differs
            }
            Write::Query(id, query) => put(&mut self.queries, id, query, at, |a, b| a == b),
            Write::Key(key, value) => put(&mut self.keys, key, value, at, |a, b| a == b),
            Write::Check(key, id, check) => put(&mut self.checks, (key, id), check, at, |a, b| {
                Check { source: b.source, output: b.output.clone(), ..a.clone() } == *b
            }),
        }
    }

    /// Puts the tags on an instance that everybody sees.
    fn dress(&mut self, at: u64, row: (String, String)) {
        let mut service = self.registered.get(&row).cloned();
        if let (Some(service), Some(tags)) = (&mut service, self.tags.get(&row))
            && service.enable_tag_override
            && service.source != Source::Consul
        {
            service.tags.clone_from(tags);
        }
        put(&mut self.services, row, service, at, |a, b| {
            Service { source: b.source, ..a.clone() } == *b
        });
    }

    fn hear(&mut self, change: Liveness) {
        let _ = match change {
            Liveness::Up(member) => self.heard.insert(member, true),
            Liveness::Down(member) => self.heard.insert(member, false),
            Liveness::Settled => {
                self.settled = true;
                None
            }
        };
    }

    fn is_up(&self, key: &str) -> bool {
        match member_of(key) {
            None | Some(ME) => true,
            Some(member) => self.heard.get(&member).copied().unwrap_or(!self.settled),
        }
    }

    /// The checks of a node (`""`) or an instance, as anybody may see them.
    fn checks_of(&self, key: &str, service_id: Option<&str>) -> Vec<Check> {
        if service_id == Some("") {
            // What names no instance speaks for the node, never for an instance without an id.
            return Vec::new();
        }
        let wanted = service_id.unwrap_or("");
        let is_member = member_of(key).is_some();
        let mut checks: Vec<Check> = self
            .checks
            .iter()
            .filter(|((node, id), _)| node == key && !(is_member && id == SERF_HEALTH))
            .map(|(_, check)| check.thing.clone())
            .filter(|check| check.service_id == wanted)
            .collect();
        if service_id.is_none() && is_member {
            let is_up = self.is_up(key);
            let words = ["Agent not live or unreachable", "Agent alive and reachable"];
            checks.push(Check {
                id: SERF_HEALTH.to_owned(),
                name: "Serf Health Status".to_owned(),
                status: if is_up { Status::Passing } else { Status::Critical },
                output: words[usize::from(is_up)].to_owned(),
                ..Check::default()
            });
        }
        checks.sort_by(|a, b| a.id.cmp(&b.id));
        checks
    }

    fn visible(&self) -> impl Iterator<Item = (&str, &Node, &Service)> {
        self.services.iter().filter_map(|((key, _), service)| {
            Some((key.as_str(), &self.nodes.get(key)?.thing, &service.thing))
        })
    }

    /// What each topic's answer says to a client that was to be woken by it.
    fn answers(&self) -> BTreeMap<Topic, Vec<String>> {
        let mut answers: BTreeMap<Topic, Vec<String>> = BTreeMap::new();
        let mut say = |topic: Topic, what: &dyn Debug| {
            answers.entry(topic).or_default().push(format!("{what:?}"));
        };
        let hush = |check: Check| Check { output: String::new(), source: Source::Api, ..check };
        for (key, Stamped { thing: node, .. }) in &self.nodes {
            let node_key: Arc<str> = key.as_str().into();
            say(Topic::Nodes, &(key, node));
            say(Topic::Node(node_key.clone()), node);
            for check in self.checks_of(key, None).into_iter().map(hush) {
                say(Topic::Checks, &(key, &node.name, &check));
                say(Topic::NodeChecks(node_key.clone()), &(&node.name, &check));
            }
        }
        for (key, Stamped { thing, .. }) in &self.keys {
            say(Topic::Key(key.as_str().into()), thing);
        }
        for (id, query) in &self.queries {
            say(Topic::Queries, &(id, &query.thing));
        }
        for (key, node, service) in self.visible() {
            let node_key: Arc<str> = key.into();
            let name: Arc<str> = lower(&service.name).into();
            let service = Service { source: Source::Api, ..service.clone() };
            let node = Node { gossip: String::new(), version: String::new(), ..node.clone() };
            say(Topic::Services, &(key, &service));
            say(Topic::Node(node_key.clone()), &service);
            say(Topic::Instances(name.clone()), &(key, &node, &service));
            let own: Vec<Check> =
                self.checks_of(key, Some(&service.id)).into_iter().map(hush).collect();
            let of_node: Vec<Check> = self.checks_of(key, None).into_iter().map(hush).collect();
            say(Topic::Health(name.clone()), &(key, &node, &service, &own, &of_node));
            for check in own {
                let shown = (&node.name, &service.name, &service.tags, check);
                say(Topic::Checks, &(key, &shown));
                say(Topic::NodeChecks(node_key.clone()), &shown);
                say(Topic::ServiceChecks(name.clone()), &(key, &shown));
            }
        }
        answers
    }

    fn check_instance(&self, instance: &Instance) {
        let row = (instance.node.key.to_string(), instance.service.id.clone());
        let key = row.0.as_str();
        let (node, service) = (&self.nodes[key], &self.services[&row]);
        assert_eq!(instance.service, service.thing);
        assert_eq!(
            (instance.create_index, instance.modify_index),
            (service.create, service.modify)
        );
        assert_eq!(instance.node.node, node.thing);
        assert_eq!(instance.node.is_up, self.is_up(key));
        assert_eq!(instance.node.member, member_of(key));
        let own = self.checks_of(key, Some(&row.1));
        let of_node = self.checks_of(key, None);
        let checks = |list: &[Arc<CheckEntry>]| -> Vec<Check> {
            list.iter().map(|entry| entry.check.clone()).collect()
        };
        assert_eq!(checks(&instance.checks), own);
        assert_eq!(checks(&instance.node_checks), of_node);
        let worst = own.iter().chain(&of_node).map(|check| check.status).max();
        assert_eq!(instance.status, worst.unwrap_or(Status::Passing));
        for entry in instance.all_checks().filter(|entry| entry.check.id != SERF_HEALTH) {
            let check = &self.checks[&(key.to_owned(), entry.check.id.clone())];
            assert_eq!((entry.create_index, entry.modify_index), (check.create, check.modify));
        }
    }

    fn check_services(&self, view: &View) {
        let mut expected: BTreeMap<String, Vec<(String, String, String)>> = BTreeMap::new();
        for (key, node, service) in self.visible() {
            let list = expected.entry(lower(&service.name).into_owned()).or_default();
            list.push((lower(&node.name).into_owned(), key.to_owned(), service.id.clone()));
        }
        expected.values_mut().for_each(|list| list.sort());
        let held: BTreeMap<String, Vec<_>> = view
            .services()
            .map(|entry| {
                let places = entry.instances.iter().map(|instance| {
                    let node = lower(&instance.node.node.name).into_owned();
                    (node, instance.node.key.to_string(), instance.service.id.clone())
                });
                assert_eq!(*entry.name, *entry.instances[0].service.name);
                (lower(&entry.name).into_owned(), places.collect())
            })
            .collect();
        assert_eq!(held, expected);
        for entry in view.services() {
            entry.instances.iter().for_each(|instance| self.check_instance(instance));
        }
    }

    fn check_nodes(&self, view: &View) {
        let mut expected: Vec<(String, &String)> = self
            .nodes
            .iter()
            .map(|(key, node)| (lower(&node.thing.name).into_owned(), key))
            .collect();
        expected.sort();
        let held: Vec<_> = view.nodes().map(|node| node.info.key.to_string()).collect();
        assert_eq!(held, expected.iter().map(|(_, key)| (*key).clone()).collect::<Vec<_>>());
        let mut holders: BTreeMap<&str, &String> = BTreeMap::new();
        for (name, key) in &expected {
            let is_up = |key: &str| view.node_by_key(key).unwrap().info.is_up;
            let holder = holders.entry(name).or_insert(key);
            if is_up(key) && !is_up(holder) {
                *holder = key;
            }
        }
        for (name, key) in holders {
            let entry = view.node_by_key(key).unwrap();
            if !self.nodes.contains_key(&name.to_uppercase()) {
                assert!(Arc::ptr_eq(view.node(&name.to_uppercase()).unwrap(), entry), "{name}");
            }
        }
        for (_, key) in expected {
            let entry = view.node_by_key(key).unwrap();
            let node = &self.nodes[key];
            assert_eq!(
                (&entry.info.node, entry.info.create_index, entry.info.modify_index),
                (&node.thing, node.create, node.modify)
            );
            let checks: Vec<Check> = entry.checks.iter().map(|entry| entry.check.clone()).collect();
            assert_eq!(checks, self.checks_of(key, None));
            let ids: Vec<_> = entry.instances().map(|i| i.service.id.as_str()).collect();
            let of_node = self.services.keys().filter(|(node, _)| node == key);
            assert_eq!(ids, of_node.map(|(_, id)| id.as_str()).collect::<Vec<_>>());
            for instance in entry.instances() {
                let service = view.service(&instance.service.name).unwrap();
                assert!(service.instances.iter().any(|other| Arc::ptr_eq(other, instance)));
                assert!(Arc::ptr_eq(entry.instance(&instance.service.id).unwrap(), instance));
                assert!(Arc::ptr_eq(&instance.node, &entry.info));
                assert!(Arc::ptr_eq(&instance.node_checks, &entry.checks));
            }
        }
    }

    /// Holds all maps of the view against the model: nothing missing, nothing left over.
    fn check_consistency(&self, view: &View) {
        self.check_services(view);
        self.check_nodes(view);
        let keys = view.keys().under("").map(|(key, entry)| {
            assert!(Arc::ptr_eq(view.keys().get(key).unwrap(), entry));
            let (create, modify) = (entry.create_index, entry.modify_index);
            (key.to_string(), (entry.value.clone(), entry.flags), create, modify)
        });
        let expected = self.keys.iter();
        let expected = expected.map(|(key, v)| (key.clone(), v.thing.clone(), v.create, v.modify));
        assert_eq!(keys.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        let held = view.queries().all().map(|entry| {
            let (create, modify) = (entry.create_index, entry.modify_index);
            (entry.id.to_string(), entry.query.clone(), create, modify)
        });
        let expected = self.queries.iter();
        let expected = expected.map(|(id, q)| (id.clone(), q.thing.clone(), q.create, q.modify));
        assert_eq!(held.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        for name in ["q", "r"] {
            // Ids are in order: the first one with the name has it.
            let mut queries = self.queries.iter().filter(|(_, query)| !query.thing.is_template());
            let holder = queries.find(|(_, query)| lower(&query.thing.name) == name);
            let found = view.queries().named(&name.to_uppercase(), false);
            assert_eq!(found.map(|entry| &*entry.id), holder.map(|(id, _)| id.as_str()));
        }
        assert_eq!(view.instances.len(), self.services.len());
        assert_eq!(view.checks.len(), self.checks.len());
        let mut addresses = BTreeSet::new();
        for (key, node) in &self.nodes {
            addresses
                .extend(node.thing.address.parse::<IpAddr>().map(|ip| (ip, key.clone(), None)));
        }
        for (key, _, service) in self.visible() {
            let ip = service.address.parse::<IpAddr>();
            addresses.extend(ip.map(|ip| (ip, key.to_owned(), Some(service.id.clone()))));
        }
        assert_eq!(view.addresses.len(), addresses.len());
        for (ip, key, id) in addresses {
            let (nodes, instances) = view.at_address(ip);
            match id {
                None => assert!(nodes.iter().any(|node| *node.info.key == *key)),
                Some(id) => assert!(
                    instances.iter().any(|i| *i.node.key == *key && i.service.id == id),
                    "{id} on {key}"
                ),
            }
        }
        let spoken: usize = view.spoken_for.values().map(|list| list.len()).sum();
        let shadowed =
            self.checks.keys().filter(|(node, id)| id == SERF_HEALTH && member_of(node).is_some());
        assert_eq!(spoken, self.checks.len() - shadowed.count());
        assert!(view.spoken_for.values().all(|list| !list.is_empty()));
        for topic in view.indexes.keys() {
            let is_here = match topic {
                Topic::Services | Topic::Nodes | Topic::Checks | Topic::Queries => true,
                Topic::Health(name) | Topic::Instances(name) | Topic::ServiceChecks(name) => {
                    view.service(name).is_some()
                }
                Topic::Node(key) | Topic::NodeChecks(key) => view.node_by_key(key).is_some(),
                Topic::Key(_) | Topic::KeysUnder(_) | Topic::Events(_) => false,
            };
            assert!(is_here, "{topic:?} outlived its thing");
        }
    }
}

/// Runs a model and a view side by side.
pub struct Pair {
    pub model: Model,
    pub view: View,
    pub at: u64,
}

impl Pair {
    pub fn new() -> Self {
        Self { model: Model::default(), view: View::new(ME), at: 1_000 }
    }

    /// Takes a step, checks everything, and returns what it touched.
    pub fn step(&mut self, step: &Step) -> BTreeSet<Topic> {
        self.at += 10;
        let before = self.model.answers();
        let old = self.view.clone();
        let (view, touched) = match step {
            Step::Commit(writes) => {
                let commit = commit(&mut self.model, self.at, writes);
                old.fold(&commit)
            }
            Step::Liveness(change) => {
                self.model.hear(*change);
                old.fold_liveness(Hlc(self.at), *change)
            }
        };
        self.view = view;
        self.model.check_consistency(&self.view);
        let after = self.model.answers();
        let topics: BTreeSet<&Topic> = before.keys().chain(after.keys()).collect();
        let changed: BTreeSet<Topic> = topics
            .iter()
            .filter(|topic| before.get(**topic) != after.get(**topic))
            .map(|topic| (*topic).clone())
            .collect();
        assert_eq!(touched, changed);
        for topic in topics {
            let (was, is) = (old.index(topic), self.view.index(topic));
            assert!(is >= was, "{topic:?} fell from {was} to {is}");
            if touched.contains(topic) {
                assert_eq!(is, self.at, "{topic:?} was touched");
            } else if after.contains_key(topic) {
                assert_eq!(is, was, "{topic:?} was not touched");
            }
        }
        assert!(self.view.index_max() <= self.at);
        touched
    }

    pub fn commit(&mut self, writes: impl IntoIterator<Item = Write>) -> BTreeSet<Topic> {
        self.step(&Step::Commit(writes.into_iter().collect()))
    }
}

fn commit(model: &mut Model, at: u64, writes: &[Write]) -> Commit {
    let mut last: BTreeMap<String, (Write, bool)> = BTreeMap::new();
    let start = model.clone();
    for write in writes {
        model.write(at, write);
        let name = match write {
            Write::Node(key, _) => format!("n {key}"),
            Write::Service(key, id, _) => format!("s {key} {id}"),
            Write::Check(key, id, _) => format!("c {key} {id}"),
            Write::Tags(key, id, _) => format!("t {key} {id}"),
            Write::Key(key, _) => format!("k {key}"),
            Write::Query(id, _) => format!("q {id}"),
        };
        // An event tells what became of a row by the whole commit.
        last.insert(name, (write.clone(), start.clone().write(at, write)));
    }
    // The model must not know of contents that were never committed.
    *model = start;
    let kept: Vec<Write> = last.into_values().filter(|kept| kept.1).map(|kept| kept.0).collect();
    for write in &kept {
        assert!(model.write(at, write));
    }
    // In the order of the first list, so that tables come in any order.
    let tables = kept.iter().rev().map(event).collect();
    Commit { seq: Seq(at), at: Hlc(at), tables, changeset: None, heads: Vec::new() }
}

fn event(write: &Write) -> TableEvents {
    // Nodes that the whole cluster owns have tables of their own, and shorter keys there.
    let place = |key: &str, owned: &'static str, external: &'static str| match external_id(key) {
        Some(id) => (external, id.to_owned()),
        None => (owned, key.to_owned()),
    };
    let (table, node, id, row) = match write {
        Write::Node(key, node) => {
            let (table, id) = place(key, rows::NODES, rows::EXTERNAL_NODES);
            let row = node.as_ref().map(|node| match table {
                rows::NODES => rows::node_row(&id, node),
                _ => rows::external_node_row(&id, node),
            });
            (table, id, None, row)
        }
        Write::Service(key, id, service) => {
            let (table, node) = place(key, rows::SERVICES, rows::EXTERNAL_SERVICES);
            let row = service.as_ref().map(|service| rows::service_row(&node, service));
            (table, node, Some(id), row)
        }
        Write::Check(key, id, check) => {
            let (table, node) = place(key, rows::CHECKS, rows::EXTERNAL_CHECKS);
            let row = check.as_ref().map(|check| match table {
                rows::CHECKS => rows::check_row(&node, check),
                _ => rows::external_check_row(&node, check),
            });
            (table, node, Some(id), row)
        }
        Write::Tags(key, id, tags) => {
            let row = tags.as_ref().map(|tags| rows::tags_row(key, id, tags));
            (rows::TAG_OVERRIDES, key.clone(), Some(id), row)
        }
        Write::Query(id, query) => {
            let row = query.as_ref().map(|query| rows::query_row(id, query));
            (rows::QUERIES, id.clone(), None, row)
        }
        Write::Key(key, value) => {
            let row = value.as_ref().map(|(value, flags)| rows::key_row(key, value, *flags));
            (rows::KEYS, key.clone(), None, row)
        }
    };
    let key: Vec<Value> =
        [Some(&node), id].into_iter().flatten().map(|text| text.as_str().into()).collect();
    let columns = row.iter().flatten().map(|(column, _)| (*column).into()).collect();
    let info = TableInfo { name: table.into(), columns, key: (0..key.len()).collect() };
    let row = row.map(|row| row.into_iter().map(|(_, value)| value).collect::<Vec<Value>>());
    let event = RowEvent { key, existed: false, row };
    TableEvents { table: Arc::new(info), rows: RowEvents::Each(vec![event]) }
}
