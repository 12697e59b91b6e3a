//! SQLite: the one writer, capture of local statements, merge of remote changes, read-only
//! connections. Plain blocking calls; nothing here knows services, sockets or tokio.

mod affinity;
mod capture;
mod hook;
pub mod limits;
mod migrate;
pub mod open;
pub mod schema;
pub mod sql;
mod tables;
mod values;

pub use open::{OpenConfig, OpenError};
pub use schema::SchemaError;
pub use sql::{Outcome, Params, Statement, Transacted};
