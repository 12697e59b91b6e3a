//! The things themselves, as their tables hold them, and the little arithmetic they need.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::types::NodeId;

/// `nodes.id`: the node's UUID, or `<registrar's UUID>/<name>` for an external node. For one that
/// the whole cluster owns [`external_key`] of its name.
pub type NodeKey = Arc<str>;

/// What the keys of external nodes that the whole cluster owns begin with. It sorts behind every
/// UUID, so that a member has a name before them.
const EXTERNAL: &str = "~/";

/// The service of those who stand for Consul's servers, and the id of each of them.
pub const SERVERS: &str = "consul";
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
    /// The UUID that was registered with an external node; often empty.
    pub external_id: String,
}

impl Node {
    /// Tells whether those who look for services see no difference: the version that runs there
    /// and its gossip address may differ, so that an upgrade of the fleet wakes nobody.
    pub fn serves_like(&self, other: &Self) -> bool {
        let Self {
            name,
            address,
            datacenter,
            tagged_addresses,
            meta,
            gossip: _,
            version: _,
            external_id,
        } = self;
        *name == other.name
            && *address == other.address
            && *datacenter == other.datacenter
            && *tagged_addresses == other.tagged_addresses
            && *meta == other.meta
            && *external_id == other.external_id
    }
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

impl Service {
    /// Tells whether no client sees a difference: who brought it in may differ, so that an
    /// application which moves from Consul's agent to this node wakes nobody.
    pub fn serves_like(&self, other: &Self) -> bool {
        let Self {
            id,
            name,
            tags,
            address,
            port,
            meta,
            tagged_addresses,
            weights,
            enable_tag_override,
            kind,
            source: _,
        } = self;
        *id == other.id
            && *name == other.name
            && *tags == other.tags
            && *address == other.address
            && *port == other.port
            && *meta == other.meta
            && *tagged_addresses == other.tagged_addresses
            && *weights == other.weights
            && *enable_tag_override == other.enable_tag_override
            && *kind == other.kind
    }
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
    /// A JSON object that says what the check of an external node does; empty for all others, whose
    /// definitions may hold secrets.
    pub definition: String,
}

impl Check {
    /// Tells whether it says the same: its output may differ, which is for people, and so may who
    /// brought it in.
    pub fn speaks_like(&self, other: &Self) -> bool {
        let Self { id, name, status, notes, output: _, service_id, kind, source: _, definition } =
            self;
        *id == other.id
            && *name == other.name
            && *status == other.status
            && *notes == other.notes
            && *service_id == other.service_id
            && *kind == other.kind
            && *definition == other.definition
    }

    /// Tells whether it stands for a maintenance mode, of the node or of an instance.
    pub fn is_maintenance(&self) -> bool {
        self.id == NODE_MAINTENANCE || self.id.starts_with(SERVICE_MAINTENANCE)
    }
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
    /// This program itself: a server of the service `consul`.
    Agent,
}

impl Source {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Consul => "consul",
            Self::File => "file",
            Self::Agent => "agent",
        }
    }

    /// Reads the word; anything unknown counts as the API.
    pub fn parse(word: &str) -> Self {
        match word {
            "consul" => Self::Consul,
            "file" => Self::File,
            "agent" => Self::Agent,
            _ => Self::Api,
        }
    }
}

/// Returns the key under which a member of the cluster stands in `nodes`.
pub fn key_of(node: NodeId) -> NodeKey {
    node.to_string().into()
}

/// Returns the member that a key names; `None` for an external node. Only the spelling that
/// [`key_of`] uses counts, so that no member has two keys.
pub fn member_of(key: &str) -> Option<NodeId> {
    let id = key.parse::<NodeId>().ok()?;
    (id.to_string() == key).then_some(id)
}

/// Returns the key of an external node that the whole cluster owns, from `external_nodes.id`.
pub fn external_key(id: &str) -> NodeKey {
    format!("{EXTERNAL}{id}").into()
}

/// Returns the `external_nodes.id` that a key holds; `None` for every other node.
pub fn external_id(key: &str) -> Option<&str> {
    key.strip_prefix(EXTERNAL)
}

/// Returns a name as it is compared: in lower case.
pub fn lower(name: &str) -> Cow<'_, str> {
    let is_lower = name.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase());
    if is_lower { Cow::Borrowed(name) } else { Cow::Owned(name.to_lowercase()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_one_key() {
        let id = NodeId([0xab; 16]);
        assert_eq!(member_of(&key_of(id)), Some(id));
        assert_eq!(member_of(&key_of(id).to_uppercase()), None);
        assert_eq!(member_of(&format!("{id}/printer")), None);
        assert_eq!(member_of(""), None);
        let external = external_key("printer");
        assert_eq!((member_of(&external), external_id(&external)), (None, Some("printer")));
        assert_eq!(external_id(&key_of(NodeId([0xff; 16]))), None);
        assert!(external > key_of(NodeId([0xff; 16])));
    }

    #[test]
    fn names_are_compared_without_case() {
        assert!(matches!(lower("web-1"), Cow::Borrowed("web-1")));
        assert_eq!(lower("Web"), "web");
        assert_eq!(lower("ÄPFEL"), "äpfel");
    }
}
