//! Rows to things.
//!
//! Reading never fails: whatever a row holds, somebody wrote it and every node holds the same. A
//! column that is missing or makes no sense falls back to what its table declares, so all nodes
//! see the same thing in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::AddressJson;
use crate::catalog::command::CheckDefinition;
use crate::catalog::events::Event;
use crate::catalog::model::{Check, Node, NodeKey, Service, ServiceAddress, Source, Status};
use crate::catalog::queries::PreparedQuery;
use crate::crdt::{Name, RowEvent};
use crate::types::Value;

/// Reads the key of a row that has one, or the first of several; `None` when it is no text.
pub fn text_key(event: &RowEvent) -> Option<Arc<str>> {
    event.key.first()?.as_text().map(Arc::from)
}

/// Reads the key of a row of `services` or `checks`: the node's key and the id.
pub fn owned_key(event: &RowEvent) -> Option<(NodeKey, Arc<str>)> {
    let [node, id] = event.key.as_slice() else { return None };
    Some((node.as_text()?.into(), id.as_text()?.into()))
}

/// Reads a row of `nodes`. `columns` names the values.
pub fn node_from_row(columns: &[Name], row: &[Value]) -> Node {
    let mut node = Node::default();
    for (column, value) in columns.iter().zip(row) {
        match &**column {
            "name" => node.name = text(value),
            "address" => node.address = text(value),
            "datacenter" => node.datacenter = text(value),
            "tagged_addresses" => node.tagged_addresses = texts_from_json(value),
            "meta" => node.meta = texts_from_json(value),
            "gossip" => node.gossip = text(value),
            "version" => node.version = text(value),
            "external_id" => node.external_id = text(value),
            // The key, and columns that users added.
            _ => {}
        }
    }
    node
}

/// Reads a row of `services`. `columns` names the values.
pub fn service_from_row(columns: &[Name], row: &[Value]) -> Service {
    let mut service = Service::default();
    for (column, value) in columns.iter().zip(row) {
        match &**column {
            "id" => service.id = text(value),
            "name" => service.name = text(value),
            "tags" => service.tags = tags_from_json(value),
            "address" => service.address = text(value),
            "port" => service.port = value.as_integer().unwrap_or(0),
            "meta" => service.meta = texts_from_json(value),
            "tagged_addresses" => service.tagged_addresses = addresses_from_json(value),
            "weight_passing" => service.weights.passing = value.as_integer().unwrap_or(1),
            "weight_warning" => service.weights.warning = value.as_integer().unwrap_or(1),
            "enable_tag_override" => {
                service.enable_tag_override = value.as_integer().is_some_and(|number| number != 0);
            }
            "kind" => service.kind = text(value),
            "source" => service.source = Source::parse(value.as_text().unwrap_or_default()),
            // The node's key, and columns that users added.
            _ => {}
        }
    }
    service
}

/// Reads a row of `checks`. `columns` names the values. A status that is none of the three counts
/// as critical.
pub fn check_from_row(columns: &[Name], row: &[Value]) -> Check {
    let mut check = Check::default();
    for (column, value) in columns.iter().zip(row) {
        match &**column {
            "id" => check.id = text(value),
            "name" => check.name = text(value),
            "status" => {
                let word = value.as_text().unwrap_or_default();
                check.status = Status::parse(word).unwrap_or(Status::Critical);
            }
            "notes" => check.notes = text(value),
            "output" => check.output = text(value),
            "service_id" => check.service_id = text(value),
            "type" => check.kind = text(value),
            "definition" if value.as_text() != Some("{}") => check.definition = text(value),
            "source" => check.source = Source::parse(value.as_text().unwrap_or_default()),
            // The node's key, and columns that users added.
            _ => {}
        }
    }
    check
}

/// Reads a row of `tag_overrides`: the tags.
pub fn tags_from_row(columns: &[Name], row: &[Value]) -> Vec<String> {
    let mut named = columns.iter().zip(row);
    named.find(|(column, _)| &***column == "tags").map_or_else(Vec::new, |(_, v)| tags_from_json(v))
}

/// Reads a row of `kv`: the value's bytes and the flags. What SQL wrote there as text or as a number
/// is that text, or the number's digits.
pub fn value_from_row(columns: &[Name], row: &[Value]) -> (Vec<u8>, u64) {
    let (mut held, mut flags) = (Vec::new(), 0);
    for (column, value) in columns.iter().zip(row) {
        match &**column {
            "value" => held = bytes(value),
            // All 64 bits are used; SQLite counts them with a sign.
            "flags" => flags = value.as_integer().unwrap_or(0).cast_unsigned(),
            // The key, and columns that users added.
            _ => {}
        }
    }
    (held, flags)
}

fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::Blob(blob) => blob.clone(),
        Value::Text(text) => text.as_bytes().to_vec(),
        Value::Integer(number) => number.to_string().into_bytes(),
        Value::Real(number) => number.to_string().into_bytes(),
        Value::Null => Vec::new(),
    }
}

/// Reads a row of `events`.
pub fn event_from_row(columns: &[Name], row: &[Value]) -> Event {
    let mut event = Event::default();
    for (column, value) in columns.iter().zip(row) {
        match &**column {
            "id" => event.id = text(value),
            "name" => event.name = text(value),
            "payload" => event.payload = bytes(value),
            "node_filter" => event.node_filter = text(value),
            "service_filter" => event.service_filter = text(value),
            "tag_filter" => event.tag_filter = text(value),
            "fired_at" => event.fired_at = value.as_integer().unwrap_or(0).cast_unsigned(),
            // The key, and columns that users added.
            _ => {}
        }
    }
    event
}

/// Reads a row of `prepared_queries`.
pub fn query_from_row(columns: &[Name], row: &[Value]) -> PreparedQuery {
    let (mut query, mut name) = (PreparedQuery::default(), String::new());
    for (column, value) in columns.iter().zip(row) {
        match &**column {
            "name" => name = text(value),
            "definition" => query = from_json(value),
            // The key, and columns that users added.
            _ => {}
        }
    }
    PreparedQuery { name, ..query }
}

/// A stored definition that this version cannot read: it was written by a newer one, or edited.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the definition of check '{check_id}' cannot be read: {why}")]
pub struct DefinitionError {
    pub check_id: String,
    pub why: String,
}

/// Reads what a row of `__tribune_checks` says that a check does. An error is about this check
/// alone; the others can still be run.
pub fn definition_from_json(
    check_id: &str,
    json: &str,
) -> Result<CheckDefinition, DefinitionError> {
    serde_json::from_str(json)
        .map_err(|error| DefinitionError { check_id: check_id.to_owned(), why: error.to_string() })
}

fn text(value: &Value) -> String {
    value.as_text().unwrap_or_default().to_owned()
}

fn tags_from_json(value: &Value) -> Vec<String> {
    let tags: Vec<serde_json::Value> = from_json(value);
    tags.into_iter().map(text_from_json).collect()
}

fn texts_from_json(value: &Value) -> BTreeMap<String, String> {
    let texts: BTreeMap<String, serde_json::Value> = from_json(value);
    texts.into_iter().map(|(key, value)| (key, text_from_json(value))).collect()
}

fn addresses_from_json(value: &Value) -> BTreeMap<String, ServiceAddress> {
    let addresses: BTreeMap<String, AddressJson> = from_json(value);
    let model = |AddressJson { address, port }| ServiceAddress { address, port };
    addresses.into_iter().map(|(key, address)| (key, model(address))).collect()
}

/// Whoever writes with SQL's `json_object` easily writes a number where a text is meant.
fn text_from_json(value: serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    }
}

fn from_json<T: serde::de::DeserializeOwned + Default>(value: &Value) -> T {
    let text = value.as_text().unwrap_or_default();
    // Most columns are empty; they need no parser.
    if matches!(text, "" | "{}" | "[]") {
        return T::default();
    }
    serde_json::from_str(text).unwrap_or_default()
}
