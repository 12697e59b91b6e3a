//! Consul's JSON: every name that its API sends or takes stands in this folder and nowhere else.
//! Nothing here knows HTTP methods, paths or indexes to wait for.
//!
//! Field order, and what is `null`, `{}` or left out when there is nothing, are those of
//! Consul 1.8.7: some clients compare bytes, others choke on `null`.

pub mod answers;
mod check;
pub mod external;
pub mod fields;
pub mod host;
pub mod prepared;
pub mod register;
pub mod txn;
