//! Service discovery as data: nodes, services, checks, and the view that every face reads.
//! Nothing here knows SQL or sockets, nor how the HTTP API spells these things.

pub mod command;
pub mod events;
mod fold;
pub mod keys;
mod memo;
pub mod model;
pub mod queries;
pub mod rows;
pub mod view;

pub use command::{CatalogEdit, CheckDefinition, CheckKind, CheckRegistration, Command};
pub use keys::{KeyEntry, Keys};
pub use memo::Memo;
pub use model::{Check, Node, NodeKey, Service, ServiceAddress, Status, Weights};
pub use view::{Instance, NodeEntry, ServiceEntry, Topic, View};
