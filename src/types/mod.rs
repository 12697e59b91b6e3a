//! The words that every other room speaks: identities, versions, time and SQLite's values.
//! Nothing here knows how a change travels, merges or is stored.

mod cause;
pub mod duration;
pub mod id;
pub mod time;
pub mod token;
pub mod value;
pub mod version;

pub use cause::root_cause;
pub use id::{ClusterId, NodeId, Origin, ParseIdError, Scope};
pub use time::{Hlc, Time, Wall};
pub use token::{ParseTokenError, Token};
pub use value::Value;
pub use version::{Epoch, Seq, Version};
