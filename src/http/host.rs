//! What this face needs of the rest of the process, as traits: in life a node's handle and the
//! room that runs its checks, in tests stand-ins.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::catalog::{Command, Status};
use crate::live::Feed;
use crate::node::handle::MemberStatus;
use crate::node::{Handle, Local, SubmitError};

/// The node behind this face.
pub trait Host: Send + Sync {
    /// Returns who it is.
    fn local(&self) -> &Local;

    /// Returns its feed of views.
    fn feed(&self) -> &Arc<Feed>;

    /// Lists the members it knows, itself first.
    fn members(&self) -> Vec<MemberStatus>;

    /// Carries out a command; see [`Handle::submit`].
    fn submit(&self, command: Command) -> BoxFuture<'_, Result<(), SubmitError>>;
}

impl Host for Handle {
    fn local(&self) -> &Local {
        Handle::local(self)
    }

    fn feed(&self) -> &Arc<Feed> {
        Handle::feed(self)
    }

    fn members(&self) -> Vec<MemberStatus> {
        Handle::members(self)
    }

    fn submit(&self, command: Command) -> BoxFuture<'_, Result<(), SubmitError>> {
        Box::pin(Handle::submit(self, command))
    }
}

/// Why an application's report on a check was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// There is no such check, or it is not one that applications report on.
    #[error("CheckID {0:?} does not have associated TTL")]
    NotTtl(String),
    /// The report was not written.
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

/// The room that runs this node's checks.
pub trait Reports: Send + Sync {
    /// Takes what an application says of a TTL check.
    fn report(
        &self,
        check_id: String,
        status: Status,
        output: String,
    ) -> BoxFuture<'_, Result<(), ReportError>>;

    /// Returns what a check of this node said last, where that is newer than the catalog: output
    /// is replicated only when the status changes.
    fn output(&self, check_id: &str) -> Option<String>;
}
