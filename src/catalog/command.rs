//! What sources ask of the catalog. From here on an application's registration, a checker's
//! verdict and a mirrored Consul agent are one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::events::Event;
use super::model::{Check, Node, NodeKey, Service, Source, Status};
use super::queries::PreparedQuery;

/// A change of this node's part of the catalog. Each is one transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Says who this node is: at start, and when its address or meta change.
    Announce(Node),
    /// Lists this node under a port among the servers, in the service `consul`, or no longer: at
    /// start. An instance that an application registered under that id stays.
    Serve { port: Option<u16> },
    /// Registers or replaces an instance, with its checks.
    ///
    /// Checks that the instance has from before and that are not named here stay, unless
    /// `replace_checks`. A check that exists keeps its status and output.
    Register { service: Service, checks: Vec<CheckRegistration>, replace_checks: bool },
    /// Removes an instance with its checks. Unknown ids are no error.
    Deregister { service_id: String },
    /// Registers or replaces a check; refused when it names an instance that is not here.
    RegisterCheck(CheckRegistration),
    /// Removes a check. Unknown ids are no error.
    DeregisterCheck { check_id: String },
    /// Sets what a check last said; refused when there is no such check.
    SetStatus { check_id: String, status: Status, output: String },
    /// Puts an instance (or, with `None`, the node) into maintenance, or takes it out. Entering
    /// twice keeps the first reason; refused when the instance is not here.
    Maintenance { service_id: Option<String>, enable: bool, reason: String },
    /// Edits what belongs to no node: external nodes, tags in the place of registered ones, keys
    /// and prepared queries.
    Edit(Vec<CatalogEdit>),
    /// Brings what was mirrored from one source in line: only differences are in the list.
    Mirror { source: Source, changes: Vec<MirrorChange> },
}

/// One edit of what any node may write. Nodes are named by [`external_nodes.id`]: as a rule their
/// name in lower case.
///
/// [`external_nodes.id`]: crate::catalog::model::external_id
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CatalogEdit {
    /// Registers or replaces an external node.
    PutNode {
        row: String,
        node: Node,
    },
    /// Registers or replaces an instance on one; refused when the node is not here.
    PutService {
        node: String,
        service: Service,
    },
    /// Registers or replaces a check; refused when the node, or the instance that it names, is not
    /// here.
    PutCheck {
        node: String,
        check: Check,
    },
    /// Removes a node with all that is on it. Unknown names and ids are no error, here and below.
    RemoveNode {
        node: String,
    },
    RemoveService {
        node: String,
        service_id: String,
    },
    RemoveCheck {
        node: String,
        check_id: String,
    },
    /// Puts tags in the place of those that an instance of a member was registered with.
    PutTags {
        node: NodeKey,
        service_id: String,
        tags: Vec<String>,
    },
    /// Puts a value under a key.
    PutKey {
        key: String,
        value: Vec<u8>,
        flags: u64,
    },
    RemoveKey {
        key: String,
    },
    /// Stores or replaces a prepared query.
    PutQuery {
        id: String,
        query: PreparedQuery,
    },
    RemoveQuery {
        id: String,
    },
    /// Tells all nodes of an event.
    Fire(Box<Event>),
}

/// One difference between a mirrored agent and what this node holds of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MirrorChange {
    PutService(Service),
    RemoveService {
        service_id: String,
    },
    /// Status and output are taken over as they are.
    PutCheck(Check),
    RemoveCheck {
        check_id: String,
    },
}

/// A check as it is registered: its row, and what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckRegistration {
    pub check: Check,
    pub definition: CheckDefinition,
}

/// What a check does. It stays on the node that runs it, since it may hold secrets.
///
/// It is stored as JSON: a field that an older version did not write takes its default.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct CheckDefinition {
    pub kind: CheckKind,
    /// How long an instance may stay critical before it is removed.
    pub deregister_after: Option<Duration>,
    /// How many results in a row it takes to become passing, or critical. At least 1.
    pub success_before_passing: u32,
    pub failures_before_critical: u32,
    /// Longest output kept, in bytes.
    pub output_bytes_max: usize,
}

impl Default for CheckDefinition {
    fn default() -> Self {
        Self {
            kind: CheckKind::Passive,
            deregister_after: None,
            success_before_passing: 1,
            failures_before_critical: 1,
            output_bytes_max: 4096,
        }
    }
}

/// The kinds of checks, with what each needs.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub enum CheckKind {
    /// Nobody here runs it: mirrored, or written as it is.
    Passive,
    /// The application reports; silence for longer than `ttl` is critical.
    Ttl {
        ttl: Duration,
    },
    Http {
        url: String,
        method: String,
        /// Several values a name; `Host` sets the request's host.
        headers: BTreeMap<String, Vec<String>>,
        body: String,
        tls_skip_verify: bool,
        interval: Duration,
        timeout: Duration,
    },
    Tcp {
        address: String,
        interval: Duration,
        timeout: Duration,
    },
    Script {
        args: Vec<String>,
        interval: Duration,
        timeout: Duration,
    },
}

impl CheckKind {
    /// Returns the word for `checks.type`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Passive => "",
            Self::Ttl { .. } => "ttl",
            Self::Http { .. } => "http",
            Self::Tcp { .. } => "tcp",
            Self::Script { .. } => "script",
        }
    }
}
