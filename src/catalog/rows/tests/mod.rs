//! Commands, carried out on the reference storage, against what the view shows then; and the
//! columns against the schema.

mod edits;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::catalog::command::{
    CheckDefinition, CheckKind, CheckRegistration, Command, MirrorChange,
};
use crate::catalog::model::{
    Check, Node, NodeKey, Service, ServiceAddress, Source, Status, Weights, key_of,
};
use crate::catalog::view::{Instance, View};
use crate::crdt::definition::Definition;
use crate::crdt::storage::{Storage, StorageError};
use crate::crdt::table::Table;
use crate::crdt::{Name, RowEvent};
use crate::types::{Epoch, NodeId, Origin, Scope, Value, Wall};

const ME: NodeId = NodeId([7; 16]);

/// A node's storage and its view, and the local table of definitions as its commits showed it.
struct Desk {
    table: Table,
    view: View,
    key: NodeKey,
    definitions: BTreeMap<String, String>,
    now: u64,
}

impl Desk {
    fn new() -> Self {
        let origin = Origin { scope: Scope(0), node: ME, epoch: Epoch(1) };
        let text = |name| (name, Value::from(""));
        let of = |row: Row| row.into_iter().map(|(name, _)| text(name)).collect::<Vec<_>>();
        let owned = ["node_id", "id"];
        let definitions = [
            Definition::new(NODES, &of(node_row("", &Node::default())), &["id"]),
            Definition::new(SERVICES, &of(service_row("", &Service::default())), &owned),
            Definition::new(CHECKS, &of(check_row("", &Check::default())), &owned),
            Definition::new(EXTERNAL_NODES, &of(external_node_row("", &Node::default())), &["id"]),
            Definition::new(EXTERNAL_SERVICES, &of(service_row("", &Service::default())), &owned),
            Definition::new(
                EXTERNAL_CHECKS,
                &of(external_check_row("", &Check::default())),
                &owned,
            ),
            Definition::new(TAG_OVERRIDES, &of(tags_row("", "", &[])), &["node_id", "service_id"]),
            Definition::new(DEFINITIONS, &["id", "service_id", "definition"].map(text), &["id"]),
        ];
        let mut desk = Self {
            table: Table::new(origin, &definitions.map(Result::unwrap)).unwrap(),
            view: View::new(ME),
            key: key_of(ME),
            definitions: BTreeMap::new(),
            now: 0,
        };
        desk.submit(Command::Announce(Node { name: "n".into(), ..Node::default() })).unwrap();
        desk
    }

    /// Carries a command out and tells whether it changed anything.
    fn submit(&mut self, command: Command) -> Result<bool, String> {
        self.now += 1_000;
        let commit = match self.table.commit(Wall(self.now), &plan(&self.key, &command)) {
            Ok(Some(commit)) => commit,
            Ok(None) => return Ok(false),
            Err(StorageError::Refused(refusal)) => return Err(refusal.to_string()),
            Err(error) => panic!("{error}"),
        };
        self.view = self.view.fold(&commit).0;
        for events in commit.tables.iter().filter(|events| &*events.table.name == DEFINITIONS) {
            for RowEvent { key, row, .. } in events.rows.each() {
                let id = key[0].as_text().unwrap().to_owned();
                match row {
                    Some(row) => {
                        drop(self.definitions.insert(id, row[2].as_text().unwrap().to_owned()));
                    }
                    None => drop(self.definitions.remove(&id)),
                }
            }
        }
        Ok(true)
    }

    fn register(&mut self, id: &str, checks: &[&str], replace_checks: bool) -> bool {
        let checks = checks.iter().map(|check| ttl(check, "")).collect();
        self.submit(Command::Register { service: service(id), checks, replace_checks }).unwrap()
    }

    fn maintain(&mut self, id: Option<&str>, enable: bool, reason: &str) -> Result<bool, String> {
        let service_id = id.map(str::to_owned);
        self.submit(Command::Maintenance { service_id, enable, reason: reason.to_owned() })
    }

    fn set(&mut self, check_id: &str, status: Status, output: &str) -> Result<bool, String> {
        let (check_id, output) = (check_id.to_owned(), output.to_owned());
        self.submit(Command::SetStatus { check_id, status, output })
    }

    fn mirror(&mut self, changes: Vec<MirrorChange>) -> Result<bool, String> {
        self.submit(Command::Mirror { source: Source::Consul, changes })
    }

    fn instance(&self, id: &str) -> &Instance {
        self.view.own().unwrap().instance(id).unwrap()
    }

    fn check(&self, id: &str) -> &Check {
        &self.view.own().unwrap().check(id).unwrap().check
    }

    /// `instance[check check] ... | check` of the node, then the ids of the stored definitions.
    fn shown(&self) -> String {
        let own = self.view.own().unwrap();
        let ids = |list: &[Arc<crate::catalog::view::CheckEntry>]| {
            list.iter().map(|one| one.check.id.as_str()).collect::<Vec<_>>().join(" ")
        };
        let mut text = String::new();
        for instance in own.instances() {
            text += &format!("{}[{}] ", instance.service.id, ids(&instance.checks));
        }
        let definitions = self.definitions.keys().cloned().collect::<Vec<_>>().join(" ");
        format!("{text}| {} | {definitions}", ids(&own.checks))
    }
}

fn service(id: &str) -> Service {
    Service { id: id.to_owned(), name: "web".to_owned(), port: 80, ..Service::default() }
}

fn ttl(id: &str, service_id: &str) -> CheckRegistration {
    let kind = CheckKind::Ttl { ttl: Duration::from_secs(10) };
    CheckRegistration {
        check: Check {
            id: id.to_owned(),
            name: id.to_owned(),
            service_id: service_id.to_owned(),
            kind: kind.as_str().to_owned(),
            ..Check::default()
        },
        definition: CheckDefinition { kind, ..CheckDefinition::default() },
    }
}

#[test]
fn an_instance_comes_and_goes_with_its_checks() {
    let mut desk = Desk::new();
    assert!(desk.register("w1", &["a", "b"], false));
    assert!(desk.register("w2", &["c"], false));
    desk.submit(Command::RegisterCheck(ttl("n", ""))).unwrap();
    desk.maintain(Some("w1"), true, "").unwrap();
    assert_eq!(desk.shown(), "w1[_service_maintenance:w1 a b] w2[c] | n serfHealth | a b c n");
    let deregister = |id: &str| Command::Deregister { service_id: id.to_owned() };
    assert_eq!(desk.submit(deregister("w1")), Ok(true));
    assert_eq!(desk.shown(), "w2[c] | n serfHealth | c n");
    assert_eq!(desk.submit(deregister("w1")), Ok(false));
    assert_eq!(desk.submit(deregister("")), Ok(false));
    assert_eq!(desk.shown(), "w2[c] | n serfHealth | c n");
}

#[test]
fn registering_again_changes_nothing_and_keeps_what_checks_said() {
    let mut desk = Desk::new();
    desk.register("w", &["a"], false);
    desk.set("a", Status::Passing, "fine").unwrap();
    assert!(!desk.register("w", &["a"], false));
    assert!(!desk.register("w", &["a"], true));
    assert_eq!(desk.submit(Command::RegisterCheck(ttl("a", "w"))), Ok(false));
    assert_eq!(
        (desk.check("a").status, desk.check("a").output.as_str()),
        (Status::Passing, "fine")
    );
    assert!(desk.register("w", &["b"], false));
    assert_eq!(desk.shown(), "w[a b] | serfHealth | a b");
}

#[test]
fn replacing_checks_removes_those_that_are_not_named_but_not_the_maintenance() {
    let mut desk = Desk::new();
    desk.register("w", &["a", "b"], false);
    desk.register("other", &["c"], false);
    desk.set("a", Status::Passing, "").unwrap();
    desk.maintain(Some("w"), true, "new disks").unwrap();
    desk.register("w", &["a"], true);
    assert_eq!(desk.shown(), "other[c] w[_service_maintenance:w a] | serfHealth | a c");
    assert_eq!(desk.check("a").status, Status::Passing);
}

#[test]
fn an_instance_without_an_id_is_refused() {
    let mut desk = Desk::new();
    desk.submit(Command::RegisterCheck(ttl("n", ""))).unwrap();
    let service = Service::default();
    let command = Command::Register { service, checks: vec![], replace_checks: true };
    assert_eq!(desk.submit(command), Err("an instance needs an id".to_owned()));
    assert_eq!(desk.shown(), "| n serfHealth | n");
}

#[test]
fn what_names_a_thing_that_is_not_here_is_refused_and_writes_nothing() {
    let mut desk = Desk::new();
    let refused = |result: Result<bool, String>| result.unwrap_err();
    let check = Command::RegisterCheck(ttl("c", "x"));
    assert_eq!(refused(desk.submit(check)), "ServiceID \"x\" does not exist");
    assert_eq!(refused(desk.set("c", Status::Passing, "")), "CheckID \"c\" does not exist");
    for enable in [true, false] {
        let result = desk.maintain(Some("x"), enable, "");
        assert_eq!(refused(result), "No service registered with ID \"x\"");
    }
    assert_eq!(desk.shown(), "| serfHealth | ");
}

#[test]
fn maintenance_is_critical_and_keeps_the_first_reason() {
    let mut desk = Desk::new();
    desk.register("w", &[], false);
    assert_eq!(desk.instance("w").status, Status::Passing);
    assert_eq!(desk.maintain(Some("w"), true, "new disks"), Ok(true));
    assert_eq!(desk.maintain(Some("w"), true, "another"), Ok(false));
    let check = desk.check("_service_maintenance:w");
    assert_eq!(
        (check.name.as_str(), check.kind.as_str()),
        ("Service Maintenance Mode", "maintenance")
    );
    assert_eq!(check.notes, "new disks");
    assert_eq!(desk.instance("w").status, Status::Critical);
    assert!(desk.instance("w").is_in_maintenance());
    assert_eq!(desk.maintain(Some("w"), false, ""), Ok(true));
    assert!(!desk.instance("w").is_in_maintenance());

    assert_eq!(desk.maintain(None, true, ""), Ok(true));
    assert_eq!(
        desk.check("_node_maintenance").notes,
        "Maintenance mode is enabled for this node, but no reason was provided. \
         This is a default message."
    );
    assert!(desk.instance("w").is_in_maintenance());
    assert_eq!(desk.maintain(None, false, ""), Ok(true));
    assert_eq!(desk.maintain(None, false, ""), Ok(false));
    assert_eq!(desk.shown(), "w[] | serfHealth | ");
}

#[test]
fn removing_a_check_removes_its_definition() {
    let mut desk = Desk::new();
    desk.register("w", &["a", "b"], false);
    let command = Command::DeregisterCheck { check_id: "a".to_owned() };
    assert_eq!(desk.submit(command.clone()), Ok(true));
    assert_eq!(desk.submit(command), Ok(false));
    assert_eq!(desk.shown(), "w[b] | serfHealth | b");
    // A check that nobody runs any more has none either.
    let passive = CheckRegistration { definition: CheckDefinition::default(), ..ttl("b", "w") };
    desk.submit(Command::RegisterCheck(passive)).unwrap();
    assert_eq!(desk.shown(), "w[b] | serfHealth | ");
}

#[test]
fn a_mirror_takes_results_over_and_removes_only_its_own() {
    let mut desk = Desk::new();
    let check = Check { status: Status::Warning, ..ttl("m", "w").check };
    let put = [MirrorChange::PutService(service("w")), MirrorChange::PutCheck(check.clone())];
    assert_eq!(desk.mirror(put.to_vec()), Ok(true));
    assert_eq!(desk.mirror(put.to_vec()), Ok(false));
    let passing = Check { status: Status::Passing, output: "ok".to_owned(), ..check };
    desk.mirror(vec![MirrorChange::PutCheck(passing)]).unwrap();
    assert_eq!(desk.instance("w").status, Status::Passing);
    assert_eq!((desk.check("m").source, desk.check("m").output.as_str()), (Source::Consul, "ok"));

    let before = desk.instance("w").modify_index;
    assert!(desk.register("w", &["a"], false));
    assert_eq!(desk.instance("w").service.source, Source::Api);
    assert_eq!(desk.instance("w").modify_index, before, "for clients it is the same instance");
    let remove =
        |service_id: &str| vec![MirrorChange::RemoveService { service_id: service_id.to_owned() }];
    assert_eq!(desk.mirror(remove("w")), Ok(true));
    assert_eq!(desk.shown(), "w[a] | serfHealth | a");
    assert_eq!(desk.mirror(remove("")), Ok(false));
    let remove_check = MirrorChange::RemoveCheck { check_id: "a".to_owned() };
    assert_eq!(desk.mirror(vec![remove_check]), Ok(false));
}

#[test]
fn a_definition_is_read_as_it_was_written() {
    let definitions = [
        CheckKind::Ttl { ttl: Duration::from_millis(1_500) },
        CheckKind::Http {
            url: "http://[::1]/ä".to_owned(),
            method: "GET".to_owned(),
            headers: BTreeMap::from([("X".to_owned(), vec!["1".to_owned(), "2".to_owned()])]),
            body: "\"".to_owned(),
            tls_skip_verify: true,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
        },
        CheckKind::Script {
            args: vec!["/bin/true".to_owned()],
            interval: Duration::from_secs(1),
            timeout: Duration::MAX,
        },
    ]
    .map(|kind| CheckDefinition {
        kind,
        deregister_after: Some(Duration::from_secs(90)),
        success_before_passing: 3,
        ..CheckDefinition::default()
    });
    for definition in definitions {
        let mut desk = Desk::new();
        let registration = CheckRegistration { definition: definition.clone(), ..ttl("c", "") };
        desk.submit(Command::RegisterCheck(registration)).unwrap();
        assert_eq!(definition_from_json("c", &desk.definitions["c"]), Ok(definition));
    }
}

#[test]
fn a_definition_of_another_version_is_read_or_named() {
    let old = definition_from_json("c", r#"{"kind":{"Ttl":{"ttl":{"secs":1,"nanos":0}}}}"#);
    let kind = CheckKind::Ttl { ttl: Duration::from_secs(1) };
    assert_eq!(old, Ok(CheckDefinition { kind, ..CheckDefinition::default() }));
    let new = definition_from_json("c", r#"{"kind":{"Grpc":{}}}"#).unwrap_err();
    assert!(new.to_string().starts_with("the definition of check 'c' cannot be read: "), "{new}");
}

/// Splits a row into what the readers take.
fn split(row: Row) -> (Vec<Name>, Vec<Value>) {
    row.into_iter().map(|(column, value)| (Name::from(column), value)).unzip()
}

fn full_service() -> Service {
    let at = ServiceAddress { address: "10.0.0.1".to_owned(), port: 9 };
    Service {
        id: "w".to_owned(),
        name: "Web".to_owned(),
        tags: vec!["b".to_owned(), "a\"\u{1f980}".to_owned()],
        address: "10.0.0.2".to_owned(),
        port: 70_000,
        meta: BTreeMap::from([("z".to_owned(), "1".to_owned()), ("a".to_owned(), String::new())]),
        tagged_addresses: BTreeMap::from([("wan".to_owned(), at)]),
        weights: Weights { passing: 10, warning: 0 },
        enable_tag_override: true,
        kind: "connect-proxy".to_owned(),
        source: Source::File,
    }
}

#[test]
fn rows_are_read_as_they_were_written() {
    let texts = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    let node = Node {
        name: "N".to_owned(),
        address: "host".to_owned(),
        datacenter: "dc1".to_owned(),
        tagged_addresses: texts.clone(),
        meta: texts,
        gossip: "10.0.0.1:7401".to_owned(),
        version: "1".to_owned(),
        ..Node::default()
    };
    let (columns, row) = split(node_row("key", &node));
    assert_eq!(node_from_row(&columns, &row), node);
    let external = Node {
        gossip: String::new(),
        version: String::new(),
        external_id: "11111111-1111-1111-1111-111111111111".to_owned(),
        ..node
    };
    let (columns, row) = split(external_node_row("n", &external));
    assert_eq!(node_from_row(&columns, &row), external);
    let (columns, row) = split(tags_row("n", "web", &["a".to_owned(), "b c".to_owned()]));
    assert_eq!(tags_from_row(&columns, &row), ["a", "b c"]);
    let (columns, row) = split(service_row("key", &full_service()));
    assert_eq!(service_from_row(&columns, &row), full_service());
    let check = Check {
        status: Status::Warning,
        notes: "notes".to_owned(),
        output: "output".to_owned(),
        source: Source::Consul,
        ..ttl("c", "w").check
    };
    let (columns, row) = split(check_row("key", &check));
    assert_eq!(check_from_row(&columns, &row), check);
}

#[test]
fn json_in_columns_is_sorted_and_compact() {
    let row: BTreeMap<_, _> = service_row("key", &full_service()).into_iter().collect();
    assert_eq!(row["tags"], "[\"b\",\"a\\\"\u{1f980}\"]".into());
    assert_eq!(row["meta"], r#"{"a":"","z":"1"}"#.into());
    assert_eq!(row["tagged_addresses"], r#"{"wan":{"Address":"10.0.0.1","Port":9}}"#.into());
    let row: BTreeMap<_, _> = service_row("key", &Service::default()).into_iter().collect();
    assert_eq!((&row["tags"], &row["meta"]), (&"[]".into(), &"{}".into()));
}

#[test]
fn a_row_that_makes_no_sense_falls_back_to_the_tables_defaults() {
    let columns = ["id", "name", "tags", "meta", "tagged_addresses", "port", "weight_passing", "x"]
        .map(Name::from);
    let row = [
        "w".into(),
        Value::Blob(vec![0xff]),
        "[1,\"v\",null".into(),
        "[]".into(),
        r#"{"lan":5}"#.into(),
        "80".into(),
        Value::Null,
        "a user's own column".into(),
    ];
    let expected = Service { id: "w".to_owned(), ..Service::default() };
    assert_eq!(service_from_row(&columns, &row), expected);
    let columns = ["status", "source", "output"].map(Name::from);
    let check = check_from_row(&columns, &["weird".into(), "weird".into(), Value::Null]);
    assert_eq!(check, Check::default());
    assert_eq!(check.status, Status::Critical);
}

#[test]
fn values_that_are_no_texts_are_read_as_their_json() {
    let columns = ["meta", "tags"].map(Name::from);
    let service = service_from_row(&columns, &[r#"{"weight":5}"#.into(), "[\"a\",1]".into()]);
    assert_eq!(service.meta["weight"], "5");
    assert_eq!(service.tags, ["a", "1"]);
}

#[test]
fn the_columns_are_those_of_the_schema() {
    let tables = [
        (include_str!("../../../../schema/nodes.sql"), node_row("", &Node::default())),
        (include_str!("../../../../schema/services.sql"), service_row("", &Service::default())),
        (include_str!("../../../../schema/checks.sql"), check_row("", &Check::default())),
        (
            include_str!("../../../../schema/external_nodes.sql"),
            external_node_row("", &Node::default()),
        ),
        (
            include_str!("../../../../schema/external_services.sql"),
            service_row("", &Service::default()),
        ),
        (
            include_str!("../../../../schema/external_checks.sql"),
            external_check_row("", &Check::default()),
        ),
        (include_str!("../../../../schema/tag_overrides.sql"), tags_row("", "", &[])),
    ];
    for (sql, row) in tables {
        let written: Vec<&str> = row.into_iter().map(|(column, _)| column).collect();
        assert_eq!(written, columns(sql));
    }
    let sql = include_str!("../../../../migrations/0004_checks.sql");
    assert_eq!(["id", "service_id", "definition"].as_slice(), columns(sql));
}

/// Lists the columns of a schema file: each stands at the start of a line of its own.
fn columns(sql: &str) -> Vec<&str> {
    let lines = sql.lines().filter_map(|line| line.strip_prefix("    "));
    let words = lines.filter_map(|line| line.split_whitespace().next());
    words.filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '_')).collect()
}
