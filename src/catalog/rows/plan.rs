//! Commands to row operations.

use super::write::{
    Row, check_row, event_row, external_check_row, external_node_row, json, key_row, node_row,
    query_row, service_row, tags_row,
};
use super::{
    CHECKS, DEFINITIONS, EVENTS, EXTERNAL_CHECKS, EXTERNAL_NODES, EXTERNAL_SERVICES, KEYS, NODES,
    QUERIES, SERVICES, TAG_OVERRIDES,
};
use crate::catalog::command::{
    CatalogEdit, CheckDefinition, CheckKind, CheckRegistration, Command, MirrorChange,
};
use crate::catalog::events::Event;
use crate::catalog::model::{
    Check, NODE_MAINTENANCE, NodeKey, SERVERS, SERVICE_MAINTENANCE, Service, Source, Status,
};
use crate::crdt::{Refusal, RowOp};
use crate::types::{NodeId, Value};

/// What stays of a check's row when the check is registered again: only its results change it.
const RESULTS: &[&str] = &["status", "output"];
/// Everything but the key: whoever was first stays.
const ALL: &[&str] = &["name", "status", "notes", "output", "service_id", "type", "source"];

/// Columns and the values that a row must have in them.
type Matching = Vec<(&'static str, Value)>;

/// Returns what a command of the node with this key does to the tables, as one transaction.
pub fn plan(node: &NodeKey, command: &Command) -> Vec<RowOp> {
    match command {
        Command::Announce(row) => vec![put(NODES, node_row(node, row))],
        Command::Serve { port } => serve(node, *port),
        Command::Register { service, checks, replace_checks } => {
            register(node, service, checks, *replace_checks)
        }
        Command::Deregister { service_id } => deregister(node, service_id),
        Command::RegisterCheck(registration) => register_check(node, registration),
        Command::DeregisterCheck { check_id } => vec![
            delete(CHECKS, row_of(node, check_id)),
            delete(DEFINITIONS, vec![("id", text(check_id))]),
        ],
        Command::SetStatus { check_id, status, output } => {
            let refusal = format!("CheckID \"{check_id}\" does not exist");
            let set = vec![("status", text(status.as_str())), ("output", text(output))];
            let matching = row_of(node, check_id);
            vec![
                require(CHECKS, matching.clone(), refusal),
                RowOp::Set { table: CHECKS, matching, set },
            ]
        }
        Command::Maintenance { service_id: Some(id), enable, reason } => {
            service_maintenance(node, id, *enable, reason)
        }
        Command::Maintenance { service_id: None, enable: true, reason } => {
            vec![enter(node, NODE_MAINTENANCE.to_owned(), "", reason)]
        }
        Command::Maintenance { service_id: None, enable: false, reason: _ } => {
            vec![delete(CHECKS, row_of(node, NODE_MAINTENANCE))]
        }
        Command::Edit(edits) => edits.iter().flat_map(|one| edit(node, one)).collect(),
        Command::Mirror { source, changes } => {
            changes.iter().flat_map(|change| mirror(node, *source, change)).collect()
        }
    }
}

fn serve(node: &NodeKey, port: Option<u16>) -> Vec<RowOp> {
    let Some(port) = port else {
        let mut own = row_of(node, SERVERS);
        own.push(("source", text(Source::Agent.as_str())));
        return vec![delete(SERVICES, own)];
    };
    let service = Service {
        id: SERVERS.to_owned(),
        name: SERVERS.to_owned(),
        port: port.into(),
        source: Source::Agent,
        ..Service::default()
    };
    vec![put(SERVICES, service_row(node, &service))]
}

fn register(
    node: &NodeKey,
    service: &Service,
    checks: &[CheckRegistration],
    replace_checks: bool,
) -> Vec<RowOp> {
    if service.id.is_empty() {
        // Checks that name no instance speak for the node: none of them may get lost here.
        return refuse("an instance needs an id");
    }
    // Maintenance that was entered before this node's disk was lost stays with the instance.
    let maintenance = row_of(node, &maintenance_of(&service.id));
    let claim = RowOp::Set { table: CHECKS, matching: maintenance, set: Vec::new() };
    let mut ops = vec![put(SERVICES, service_row(node, service)), claim];
    if replace_checks {
        let mut kept: Vec<Value> = checks.iter().map(|one| text(&one.check.id)).collect();
        kept.push(maintenance_of(&service.id).into());
        for (table, matching) in checks_of(node, &service.id) {
            ops.push(RowOp::Delete { table, matching, except: Some(("id", kept.clone())) });
        }
    }
    for registration in checks {
        let check = Check { service_id: service.id.clone(), ..registration.check.clone() };
        ops.extend(put_check(node, &check, &registration.definition));
    }
    ops
}

fn deregister(node: &NodeKey, service_id: &str) -> Vec<RowOp> {
    if service_id.is_empty() {
        // No instance has this id, but the checks of the node have it in `service_id`.
        return Vec::new();
    }
    let mut ops = vec![delete(SERVICES, row_of(node, service_id))];
    // Whoever registers it again finds its own tags.
    let edited = vec![("node_id", text(node)), ("service_id", text(service_id))];
    ops.push(delete(TAG_OVERRIDES, edited));
    // The check that stands for its maintenance names it as well.
    ops.extend(checks_of(node, service_id).map(|(table, matching)| delete(table, matching)));
    ops
}

fn register_check(node: &NodeKey, registration: &CheckRegistration) -> Vec<RowOp> {
    let CheckRegistration { check, definition } = registration;
    let mut ops = Vec::new();
    if !check.service_id.is_empty() {
        let refusal = format!("ServiceID \"{}\" does not exist", check.service_id);
        ops.push(require(SERVICES, row_of(node, &check.service_id), refusal));
    }
    ops.extend(put_check(node, check, definition));
    ops
}

fn put_check(node: &NodeKey, check: &Check, definition: &CheckDefinition) -> [RowOp; 2] {
    let row = RowOp::Put { table: CHECKS, row: check_row(node, check), keep: RESULTS };
    let definition = match definition.kind {
        CheckKind::Passive => delete(DEFINITIONS, vec![("id", text(&check.id))]),
        CheckKind::Ttl { .. }
        | CheckKind::Http { .. }
        | CheckKind::Tcp { .. }
        | CheckKind::Script { .. } => put(
            DEFINITIONS,
            vec![
                ("id", text(&check.id)),
                ("service_id", text(&check.service_id)),
                ("definition", json(definition)),
            ],
        ),
    };
    [row, definition]
}

fn service_maintenance(node: &NodeKey, id: &str, enable: bool, reason: &str) -> Vec<RowOp> {
    let refusal = format!("No service registered with ID \"{id}\"");
    let change = match enable {
        true => enter(node, maintenance_of(id), id, reason),
        false => delete(CHECKS, row_of(node, &maintenance_of(id))),
    };
    vec![require(SERVICES, row_of(node, id), refusal), change]
}

/// Enters maintenance, of an instance or (without an id) of the node. The names and the sentences
/// are Consul's, since its clients look for them.
fn enter(node: &NodeKey, check_id: String, service_id: &str, reason: &str) -> RowOp {
    let (name, what) = match service_id {
        "" => ("Node Maintenance Mode", "node"),
        _ => ("Service Maintenance Mode", "service"),
    };
    let notes = match reason {
        "" => format!(
            "Maintenance mode is enabled for this {what}, but no reason was provided. \
             This is a default message."
        ),
        reason => reason.to_owned(),
    };
    let check = Check {
        id: check_id,
        name: name.to_owned(),
        status: Status::Critical,
        notes,
        output: String::new(),
        service_id: service_id.to_owned(),
        kind: "maintenance".to_owned(),
        source: Source::Api,
        definition: String::new(),
    };
    RowOp::Put { table: CHECKS, row: check_row(node, &check), keep: ALL }
}

/// A node's ring of events has so many places.
const EVENT_PLACES: u128 = 128;

/// Returns where an event stands in its node's ring: by its id, which is random, so that no count has
/// to be kept over restarts.
fn place_of(node: &NodeKey, event: &Event) -> String {
    let id: NodeId = event.id.parse().unwrap_or_default();
    format!("{node}/{}", u128::from_be_bytes(id.0) % EVENT_PLACES)
}

fn edit(own: &NodeKey, edit: &CatalogEdit) -> Vec<RowOp> {
    let here = |node: &str| {
        let matching = vec![("id", text(node))];
        require(EXTERNAL_NODES, matching, format!("Missing node registration of \"{node}\""))
    };
    match edit {
        CatalogEdit::PutNode { row, node } => {
            vec![put(EXTERNAL_NODES, external_node_row(row, node))]
        }
        CatalogEdit::PutService { node, service } => {
            vec![here(node), put(EXTERNAL_SERVICES, service_row(node, service))]
        }
        CatalogEdit::PutCheck { node, check } => {
            let mut ops = vec![here(node)];
            if !check.service_id.is_empty() {
                let refusal = format!(
                    "failed inserting check: Missing service registration on node {node:?}"
                );
                ops.push(require(EXTERNAL_SERVICES, row_of(node, &check.service_id), refusal));
            }
            ops.push(put(EXTERNAL_CHECKS, external_check_row(node, check)));
            ops
        }
        CatalogEdit::RemoveNode { node } => vec![
            delete(EXTERNAL_CHECKS, vec![("node_id", text(node))]),
            delete(EXTERNAL_SERVICES, vec![("node_id", text(node))]),
            delete(EXTERNAL_NODES, vec![("id", text(node))]),
        ],
        CatalogEdit::RemoveService { service_id, .. } if service_id.is_empty() => Vec::new(),
        CatalogEdit::RemoveService { node, service_id } => vec![
            delete(EXTERNAL_CHECKS, spoken_for(node, service_id)),
            delete(EXTERNAL_SERVICES, row_of(node, service_id)),
        ],
        CatalogEdit::RemoveCheck { node, check_id } => {
            vec![delete(EXTERNAL_CHECKS, row_of(node, check_id))]
        }
        CatalogEdit::PutTags { node, service_id, tags } => {
            vec![put(TAG_OVERRIDES, tags_row(node, service_id, tags))]
        }
        CatalogEdit::PutKey { key, value, flags } => vec![put(KEYS, key_row(key, value, *flags))],
        CatalogEdit::PutQuery { id, query } => vec![put(QUERIES, query_row(id, query))],
        CatalogEdit::Fire(event) => vec![put(EVENTS, event_row(&place_of(own, event), event))],
        CatalogEdit::RemoveQuery { id } => vec![delete(QUERIES, vec![("id", text(id))])],
        CatalogEdit::RemoveKey { key } => vec![delete(KEYS, vec![("key", text(key))])],
    }
}

/// What is removed must still be the mirror's own: an application that registered here meanwhile
/// has taken its row over.
fn mirror(node: &NodeKey, source: Source, change: &MirrorChange) -> Vec<RowOp> {
    let of_source = |mut matching: Matching| {
        matching.push(("source", text(source.as_str())));
        matching
    };
    match change {
        MirrorChange::PutService(service) => {
            let service = Service { source, ..service.clone() };
            vec![put(SERVICES, service_row(node, &service))]
        }
        MirrorChange::RemoveService { service_id } if service_id.is_empty() => Vec::new(),
        MirrorChange::RemoveService { service_id } => vec![
            delete(SERVICES, of_source(row_of(node, service_id))),
            delete(CHECKS, of_source(spoken_for(node, service_id))),
        ],
        MirrorChange::PutCheck(check) => {
            let check = Check { source, ..check.clone() };
            vec![put(CHECKS, check_row(node, &check))]
        }
        MirrorChange::RemoveCheck { check_id } => {
            vec![delete(CHECKS, of_source(row_of(node, check_id)))]
        }
    }
}

fn maintenance_of(service_id: &str) -> String {
    format!("{SERVICE_MAINTENANCE}{service_id}")
}

/// Names one row of `services` or `checks`.
fn row_of(node: &str, id: &str) -> Matching {
    vec![("node_id", text(node)), ("id", text(id))]
}

/// Names the rows of `checks` that speak for an instance.
fn spoken_for(node: &str, service_id: &str) -> Matching {
    vec![("node_id", text(node)), ("service_id", text(service_id))]
}

/// Names all rows that belong to an instance's checks, by table.
fn checks_of(node: &NodeKey, service_id: &str) -> [(&'static str, Matching); 2] {
    [(CHECKS, spoken_for(node, service_id)), (DEFINITIONS, vec![("service_id", text(service_id))])]
}

fn put(table: &'static str, row: Row) -> RowOp {
    RowOp::Put { table, row, keep: &[] }
}

fn delete(table: &'static str, matching: Matching) -> RowOp {
    RowOp::Delete { table, matching, except: None }
}

fn require(table: &'static str, matching: Matching, refusal: String) -> RowOp {
    RowOp::Require { table, matching, otherwise: Refusal(refusal) }
}

/// Gives up the transaction: no row has NULL for its id.
fn refuse(why: &str) -> Vec<RowOp> {
    vec![require(SERVICES, vec![("id", Value::Null)], why.to_owned())]
}

fn text(text: &str) -> Value {
    text.into()
}
