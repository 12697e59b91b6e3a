//! The one place that knows the columns of `schema/`: commands to rows, and rows to things.
//! Nothing here carries a write out; that is the storage's part.

mod plan;
mod read;
#[cfg(test)]
mod tests;
mod write;

use serde::{Deserialize, Serialize};

pub use plan::plan;
pub use read::{
    DefinitionError, check_from_row, definition_from_json, event_from_row, node_from_row,
    owned_key, query_from_row, service_from_row, tags_from_row, text_key, value_from_row,
};
pub use write::{
    Row, check_row, event_row, external_check_row, external_node_row, key_row, node_row, query_row,
    service_row, tags_row,
};

/// The replicated tables that the catalog reads and writes.
pub const NODES: &str = "nodes";
pub const SERVICES: &str = "services";
pub const CHECKS: &str = "checks";
/// The same for nodes without an agent, which any node writes.
pub const EXTERNAL_NODES: &str = "external_nodes";
pub const EXTERNAL_SERVICES: &str = "external_services";
pub const EXTERNAL_CHECKS: &str = "external_checks";
pub const TAG_OVERRIDES: &str = "tag_overrides";
/// Keys and values.
pub const KEYS: &str = "kv";
pub const QUERIES: &str = "prepared_queries";
/// What was fired of late. It is no part of a view that is begun from what a database holds.
pub const EVENTS: &str = "events";
/// All of them: what a view is folded from.
pub const TABLES: [&str; 9] = [
    NODES,
    SERVICES,
    CHECKS,
    EXTERNAL_NODES,
    EXTERNAL_SERVICES,
    EXTERNAL_CHECKS,
    TAG_OVERRIDES,
    KEYS,
    QUERIES,
];
/// This node's own table of what its checks do; never replicated, since it may hold secrets.
pub const DEFINITIONS: &str = "__tribune_checks";

/// An address as `services.tagged_addresses` spells it; also the order of its keys.
#[derive(Serialize, Deserialize)]
struct AddressJson {
    #[serde(rename = "Address", default)]
    address: String,
    #[serde(rename = "Port", default)]
    port: i64,
}
