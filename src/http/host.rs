//! What this face needs of the rest of the process, as traits: in life a node's handle and the
//! room that runs its checks, in tests stand-ins.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::catalog::{Command, Status};
use crate::health::{Health, ReportError};
use crate::live::Feed;
use crate::node::handle::MemberStatus;
use crate::node::{Handle, Local, Standing, SubmitError};
use crate::types::NodeId;

/// The node behind this face.
pub trait Host: Send + Sync {
    /// Returns who it is.
    fn local(&self) -> &Local;

    /// Returns its feed of views.
    fn feed(&self) -> &Arc<Feed>;

    /// Lists the members it knows, itself first.
    fn members(&self) -> Vec<MemberStatus>;

    /// Returns how it stands to the others; see [`Handle::standing`].
    fn standing(&self) -> Standing;

    /// Carries out a command; see [`Handle::submit`].
    fn submit(&self, command: Command) -> BoxFuture<'_, Result<(), SubmitError>>;

    /// Declares that a node will not return; see [`Handle::forget`].
    fn forget(&self, node: NodeId) -> BoxFuture<'_, Result<(), SubmitError>>;

    /// Dials nodes to join by; see [`Handle::join`].
    fn join(&self, targets: Vec<SocketAddr>) -> BoxFuture<'_, Result<(), SubmitError>>;
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

    fn standing(&self) -> Standing {
        Handle::standing(self)
    }

    fn submit(&self, command: Command) -> BoxFuture<'_, Result<(), SubmitError>> {
        Box::pin(Handle::submit(self, command))
    }

    fn forget(&self, node: NodeId) -> BoxFuture<'_, Result<(), SubmitError>> {
        Box::pin(Handle::forget(self, node))
    }

    fn join(&self, targets: Vec<SocketAddr>) -> BoxFuture<'_, Result<(), SubmitError>> {
        Box::pin(Handle::join(self, targets))
    }
}

/// What is asked of the whole process.
#[derive(Debug)]
pub enum Demand {
    /// Stop, with a goodbye to the cluster.
    Leave,
    /// Read files again, and say how that went.
    Reload(oneshot::Sender<Result<(), String>>),
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

    /// Hears that an application registered these checks, perhaps not for the first time: that is
    /// a sign of life.
    fn registered(&self, check_ids: Vec<String>) -> BoxFuture<'_, ()>;

    /// Returns what a check of this node said last, where that is newer than the catalog: output
    /// is replicated only when the status changes, or after minutes.
    fn output(&self, check_id: &str) -> Option<String>;
}

impl Reports for Health {
    fn report(
        &self,
        check_id: String,
        status: Status,
        output: String,
    ) -> BoxFuture<'_, Result<(), ReportError>> {
        Box::pin(async move { Health::report(self, &check_id, status, &output).await })
    }

    fn registered(&self, check_ids: Vec<String>) -> BoxFuture<'_, ()> {
        Box::pin(Health::registered(self, check_ids))
    }

    fn output(&self, check_id: &str) -> Option<String> {
        Health::output(self, check_id)
    }
}
