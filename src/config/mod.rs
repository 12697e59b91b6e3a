//! The configuration: the file as it is written, durations and addresses as people write them,
//! and the checked settings that every room is started with. No other room reads a file or an
//! environment variable to learn what it should do.

pub mod agent;
pub mod file;
pub mod parse;
mod place;

pub use agent::{Agent, Flags, Gossip, Tls};
pub use place::{MemberFlags, Place, PlaceFlags};

/// A setting that cannot be used: which, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl ConfigError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}
