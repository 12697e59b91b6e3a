//! SQLite: the one writer, capture of local statements, merge of remote changes, read-only
//! connections. Plain blocking calls; nothing here knows services, sockets or tokio.

pub mod sql;

pub use sql::{Outcome, Params, Statement, Transacted};
