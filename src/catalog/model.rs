//! The things themselves, as their tables hold them, and the little arithmetic they need.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::types::NodeId;

/// `nodes.id`: the node's UUID, or `<registrar's UUID>/<name>` for an external node.
pub type NodeKey = Arc<str>;

/// The check every member of the cluster has: derived from membership, never stored.
pub const SERF_HEALTH: &str = "serfHealth";
/// The check that puts a whole node into maintenance.
pub const NODE_MAINTENANCE: &str = "_node_maintenance";
/// The prefix of the check that puts one instance into maintenance; its id follows.
pub const SERVICE_MAINTENANCE: &str = "_service_maintenance:";

/// A host, or something outside that stands for one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    pub name: String,
    /// An IP address or a host name, without a port.
    pub address: String,
    pub datacenter: String,
    pub tagged_addresses: BTreeMap<String, String>,
    pub meta: BTreeMap<String, String>,
    /// Where it listens for gossip; empty for an external node.
    pub gossip: String,
    /// The version of Tribune that runs there; empty for an external node.
    pub version: String,
}

/// One registered instance of a service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Service {
    /// Unique on its node.
    pub id: String,
    pub name: String,
    /// In the order of registration.
    pub tags: Vec<String>,
    /// An IP address or a host name; empty: the node's.
    pub address: String,
    /// Not limited to 65,535: Consul accepts and echoes larger ones.
    pub port: i64,
    pub meta: BTreeMap<String, String>,
    pub tagged_addresses: BTreeMap<String, ServiceAddress>,
    pub weights: Weights,
    pub enable_tag_override: bool,
    /// Empty for a plain service.
    pub kind: String,
    pub source: Source,
}

/// An address of an instance for one kind of client.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceAddress {
    pub address: String,
    pub port: i64,
}

/// SRV weights by state, 0 to 65,535.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Weights {
    pub passing: i64,
    pub warning: i64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

/// A health check's last word. What it does, and how often, stays on the node that runs it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Check {
    /// Unique on its node.
    pub id: String,
    pub name: String,
    pub status: Status,
    pub notes: String,
    pub output: String,
    /// The instance it belongs to; empty: the whole node.
    pub service_id: String,
    /// `http`, `tcp`, `ttl`, `script`, `maintenance`, or empty.
    pub kind: String,
    pub source: Source,
}

/// How well something is. The order is from best to worst.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Status {
    Passing,
    Warning,
    #[default]
    Critical,
}

impl Status {
    /// Returns the word that tables, Consul's API and people use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// Reads the word; `None` for any other.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "passing" => Some(Self::Passing),
            "warning" => Some(Self::Warning),
            "critical" => Some(Self::Critical),
            _ => None,
        }
    }
}

/// Who brought a service or a check in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Source {
    /// An application, over HTTP, or a person on the command line.
    #[default]
    Api,
    /// The Consul agent on this host.
    Consul,
    /// A definition file.
    File,
}

impl Source {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Consul => "consul",
            Self::File => "file",
        }
    }

    /// Reads the word; anything unknown counts as the API.
    pub fn parse(word: &str) -> Self {
        match word {
            "consul" => Self::Consul,
            "file" => Self::File,
            _ => Self::Api,
        }
    }
}

/// Returns the key under which a member of the cluster stands in `nodes`.
pub fn key_of(node: NodeId) -> NodeKey {
    node.to_string().into()
}

/// Returns the member that a key names; `None` for an external node.
pub fn member_of(key: &str) -> Option<NodeId> {
    key.parse().ok()
}
