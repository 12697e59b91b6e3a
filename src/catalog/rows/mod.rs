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
    DefinitionError, check_from_row, definition_from_json, node_from_row, node_key, owned_key,
    service_from_row,
};
pub use write::{Row, check_row, node_row, service_row};

/// The replicated tables that the catalog reads and writes.
pub const NODES: &str = "nodes";
pub const SERVICES: &str = "services";
pub const CHECKS: &str = "checks";
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
