//! SQLite: the one writer, capture of local statements, merge of remote changes, read-only
//! connections. Plain blocking calls; nothing here knows services, sockets or tokio.

mod affinity;
mod apply;
pub mod backup;
mod bind;
mod capture;
pub mod changes;
mod clocks;
mod content;
pub mod copy;
mod database;
pub mod disks;
pub mod doctor;
mod epochs;
mod functions;
mod gate;
mod group;
mod guard;
#[cfg(test)]
mod histories;
mod hook;
pub mod image;
mod large;
mod life;
pub mod limits;
mod local;
mod log;
pub mod maintain;
mod migrate;
mod names;
pub mod narrow;
pub mod open;
mod ops;
mod origins;
mod parked;
#[cfg(test)]
mod power_loss;
pub mod readers;
mod rejoin;
pub mod restore;
mod retire;
pub mod schema;
pub mod snapshot;
mod spill;
pub mod sql;
mod staged;
mod statements;
mod storage;
mod sums;
mod tables;
mod tombstones;
#[cfg(test)]
mod trial;
mod unfolding;
mod values;
mod vfs;
mod waiting;

pub use changes::Loader;
pub use database::{CHECKS_TABLE, Identity, LeftOut, Store};
pub use group::Group;
pub use open::{OpenConfig, OpenError};
pub use readers::Readers;
pub use schema::SchemaError;
pub use sql::{Outcome, Params, Statement, Transacted};
pub use statements::SqlError;
pub use waiting::Waiting;
