//! Things to rows.
//!
//! JSON in columns is written in one way only, compact and with sorted keys, so that equal things
//! are equal texts and writing them again changes nothing.

use std::collections::BTreeMap;

use serde::Serialize;

use super::AddressJson;
use crate::catalog::events::Event;
use crate::catalog::model::{Check, Node, Service};
use crate::catalog::queries::PreparedQuery;
use crate::types::Value;

/// Columns with their values, in the order of the table.
pub type Row = Vec<(&'static str, Value)>;

/// Returns the row of `nodes` that says so, whole.
pub fn node_row(key: &str, node: &Node) -> Row {
    vec![
        ("id", key.into()),
        ("name", node.name.as_str().into()),
        ("address", node.address.as_str().into()),
        ("datacenter", node.datacenter.as_str().into()),
        ("tagged_addresses", json(&node.tagged_addresses)),
        ("meta", json(&node.meta)),
        ("gossip", node.gossip.as_str().into()),
        ("version", node.version.as_str().into()),
    ]
}

/// Returns the row of `external_nodes` that says so, whole.
pub fn external_node_row(id: &str, node: &Node) -> Row {
    let common = node_row(id, node).into_iter();
    let mut row: Row = common.filter(|(name, _)| !matches!(*name, "gossip" | "version")).collect();
    row.push(("external_id", node.external_id.as_str().into()));
    row
}

/// Returns the row of `external_checks` that says so, whole.
pub fn external_check_row(node: &str, check: &Check) -> Row {
    let mut row = check_row(node, check);
    let definition = if check.definition.is_empty() { "{}" } else { &check.definition };
    row.push(("definition", definition.into()));
    row
}

/// Returns the row of `tag_overrides` that gives an instance these tags.
pub fn tags_row(node: &str, service_id: &str, tags: &[String]) -> Row {
    vec![("node_id", node.into()), ("service_id", service_id.into()), ("tags", json(&tags))]
}

/// Returns the row of `kv` that holds a value under a key, whole.
pub fn key_row(key: &str, value: &[u8], flags: u64) -> Row {
    let value = Value::Blob(value.into());
    vec![("key", key.into()), ("value", value), ("flags", flags.cast_signed().into())]
}

/// Returns the row of `events` that says so, whole. `place` is where it stands in its node's ring.
pub fn event_row(place: &str, event: &Event) -> Row {
    vec![
        ("place", place.into()),
        ("id", event.id.as_str().into()),
        ("name", event.name.as_str().into()),
        ("payload", Value::Blob(event.payload.clone())),
        ("node_filter", event.node_filter.as_str().into()),
        ("service_filter", event.service_filter.as_str().into()),
        ("tag_filter", event.tag_filter.as_str().into()),
        ("fired_at", event.fired_at.cast_signed().into()),
    ]
}

/// Returns the row of `prepared_queries` that says so, whole.
pub fn query_row(id: &str, query: &PreparedQuery) -> Row {
    let name = query.name.as_str();
    vec![("id", id.into()), ("name", name.into()), ("definition", json(query))]
}

/// Returns the row of `services` that says so, whole.
pub fn service_row(node: &str, service: &Service) -> Row {
    let addresses: BTreeMap<&str, AddressJson> = service
        .tagged_addresses
        .iter()
        .map(|(kind, at)| {
            (kind.as_str(), AddressJson { address: at.address.clone(), port: at.port })
        })
        .collect();
    vec![
        ("node_id", node.into()),
        ("id", service.id.as_str().into()),
        ("name", service.name.as_str().into()),
        ("tags", json(&service.tags)),
        ("address", service.address.as_str().into()),
        ("port", service.port.into()),
        ("meta", json(&service.meta)),
        ("tagged_addresses", json(&addresses)),
        ("weight_passing", service.weights.passing.into()),
        ("weight_warning", service.weights.warning.into()),
        ("enable_tag_override", service.enable_tag_override.into()),
        ("kind", service.kind.as_str().into()),
        ("source", service.source.as_str().into()),
    ]
}

/// Returns the row of `checks` that says so, whole.
pub fn check_row(node: &str, check: &Check) -> Row {
    vec![
        ("node_id", node.into()),
        ("id", check.id.as_str().into()),
        ("name", check.name.as_str().into()),
        ("status", check.status.as_str().into()),
        ("notes", check.notes.as_str().into()),
        ("output", check.output.as_str().into()),
        ("service_id", check.service_id.as_str().into()),
        ("type", check.kind.as_str().into()),
        ("source", check.source.as_str().into()),
    ]
}

pub(super) fn json(value: &impl Serialize) -> Value {
    let text = serde_json::to_string(value);
    text.expect("maps of texts to texts and numbers always have a JSON form").into()
}
