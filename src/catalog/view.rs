//! The view: all nodes, services and checks as every face reads them, immutable and complete.
//!
//! A commit folds into a new view that shares all it did not touch. Every answer reads one view,
//! so it reflects one moment; nothing is cached beside it and nothing has to be invalidated.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::events::Events;
use super::fold::Fold;
use super::keys::Keys;
use super::memo::Memo;
use super::model::{Check, Node, NodeKey, Service, Status, external_key, key_of, lower};
use super::queries::Queries;
use crate::crdt::Commit;
use crate::types::{Hlc, NodeId, Seq};

/// The least index there is: clients take 0 for "never wait".
const INDEX_MIN: u64 = 1;

/// What a blocking query may watch. A commit touches the topics whose answers it changed.
///
/// Names of services are in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Topic {
    /// The list of services with their tags; also ports and addresses, as in Consul.
    Services,
    /// The list of nodes.
    Nodes,
    /// Any check of anything.
    Checks,
    /// A service's instances and the checks that speak for them.
    Health(Arc<str>),
    /// A service's instances, whatever their health.
    Instances(Arc<str>),
    /// A service's own checks.
    ServiceChecks(Arc<str>),
    /// A node and its services.
    Node(NodeKey),
    /// All checks of a node.
    NodeChecks(NodeKey),
    /// One key of the key-value store.
    Key(Arc<str>),
    /// All keys that begin so. No commit touches it by name: it is touched with each such key.
    KeysUnder(Arc<str>),
    /// The events of a name that this node was told; without a name all of them.
    Events(Arc<str>),
    /// Any prepared query; not what it finds.
    Queries,
}

/// Topics of services by a name as people spell it.
impl Topic {
    pub fn health(service: &str) -> Self {
        Self::Health(lower(service).into())
    }

    pub fn instances(service: &str) -> Self {
        Self::Instances(lower(service).into())
    }

    pub fn service_checks(service: &str) -> Self {
        Self::ServiceChecks(lower(service).into())
    }
}

/// A change of what membership knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Liveness {
    Up(NodeId),
    Down(NodeId),
    /// From now on a member that was never reported up counts as down. Until then (a node that
    /// has just started and knows only its database) it counts as up.
    Settled,
}

/// Names a row of `services` or `checks`: the node's key, then the id.
pub(super) type RowKey = (NodeKey, Arc<str>);

/// Checks in the order of their ids, shared by all for whom they speak.
pub type Checks = Arc<[Arc<CheckEntry>]>;

/// All of the catalog at one moment.
///
/// The first three maps are the tables, row by row; the others follow from them and from what
/// membership says. `fold` alone changes any of them, and its tests hold them together.
#[derive(Clone, Debug)]
pub struct View {
    pub(super) me: NodeId,
    pub(super) seq: Seq,
    /// The nodes whose row is here.
    pub(super) nodes: OrdMap<NodeKey, Arc<NodeEntry>>,
    /// Every row of `services`. Those of a node whose own row is not here yet wait, and no entry
    /// below shows them.
    pub(super) instances: OrdMap<RowKey, Arc<Instance>>,
    /// Every row of `checks`, also those that wait for their instance or their node.
    pub(super) checks: OrdMap<RowKey, Arc<CheckEntry>>,
    /// Tags in the place of those that instances were registered with.
    pub(super) tag_overrides: OrdMap<RowKey, Arc<[String]>>,
    /// The same checks by what they speak for: an instance's id, or nothing for the whole node.
    pub(super) spoken_for: OrdMap<RowKey, Checks>,
    /// Node names in lower case to keys in ascending order. There is more than one where two nodes
    /// were given one name; the lowest key has it.
    pub(super) names: OrdMap<Arc<str>, Arc<[NodeKey]>>,
    /// Service names in lower case.
    pub(super) services: OrdMap<Arc<str>, Arc<ServiceEntry>>,
    pub(super) addresses: OrdSet<Holder>,
    pub(super) keys: Keys,
    pub(super) queries: Queries,
    pub(super) events: Events,
    /// For what is worked out of all nodes, and of all services; as old as they are.
    pub(super) nodes_memo: Arc<Memo>,
    pub(super) services_memo: Arc<Memo>,
    /// Topics of what exists; of what is gone the two numbers below tell.
    pub(super) indexes: OrdMap<Topic, u64>,
    /// When a service, and when a node, last went.
    pub(super) service_gone_at: u64,
    pub(super) node_gone_at: u64,
    /// The greatest index that was ever given.
    pub(super) index_max: u64,
    /// Membership's last word on a member. Once settled, silence means down.
    pub(super) heard: OrdMap<NodeId, bool>,
    pub(super) settled: bool,
}

/// Who has an address: a node, or with an id one of its instances.
pub(super) type Holder = (IpAddr, NodeKey, Option<Arc<str>>);

/// What an instance or a check needs to know of its node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeInfo {
    pub key: NodeKey,
    /// The member behind it; `None` for an external node.
    pub member: Option<NodeId>,
    pub node: Node,
    /// What membership says. Always true for external nodes and for this node itself.
    pub is_up: bool,
    pub create_index: u64,
    pub modify_index: u64,
}

/// A node with all that runs on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeEntry {
    pub info: Arc<NodeInfo>,
    /// The node-level checks in the order of their ids, the derived `serfHealth` of a member
    /// among them.
    pub checks: Checks,
    /// By id, which every instance holds too. A host may run thousands, and each change of one
    /// makes the host anew, so what did not change is shared.
    pub(super) instances: OrdMap<Arc<str>, Arc<Instance>>,
}

impl NodeEntry {
    /// Lists the instances on this node in the order of their ids.
    pub fn instances(&self) -> impl ExactSizeIterator<Item = &Arc<Instance>> {
        self.instances.values()
    }

    /// Finds an instance on this node by its id; ids are compared with case.
    pub fn instance(&self, id: &str) -> Option<&Arc<Instance>> {
        self.instances.get(id)
    }

    /// Finds a check of this node or of one of its instances by its id.
    pub fn check(&self, id: &str) -> Option<&Arc<CheckEntry>> {
        self.all_checks().find(|entry| entry.check.id == id)
    }

    /// Lists the checks of the node, then those of its instances.
    pub fn all_checks(&self) -> impl Iterator<Item = &Arc<CheckEntry>> {
        self.checks.iter().chain(self.instances().flat_map(|instance| instance.checks.iter()))
    }
}

/// A check with the indexes that Consul's API shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckEntry {
    pub check: Check,
    pub create_index: u64,
    pub modify_index: u64,
}

/// One instance of a service, with all that decides whether it is well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Instance {
    pub node: Arc<NodeInfo>,
    pub service: Service,
    /// The tags that it was registered with, where others were put in their place.
    pub registered_tags: Option<Vec<String>>,
    /// The instance's own checks, in the order of their ids.
    pub checks: Checks,
    /// The checks of its node: [`NodeEntry::checks`].
    pub node_checks: Checks,
    /// The worst of all these checks; passing when there is none.
    pub status: Status,
    pub create_index: u64,
    pub modify_index: u64,
}

impl Instance {
    /// Returns the address that clients should use: the instance's own, or its node's.
    /// It is an IP address or a host name, and may be empty.
    pub fn address(&self) -> &str {
        if self.service.address.is_empty() {
            &self.node.node.address
        } else {
            &self.service.address
        }
    }

    /// Returns [`Instance::address`] where it is an IP address.
    pub fn ip(&self) -> Option<IpAddr> {
        self.address().parse().ok()
    }

    /// Returns the service as it was registered.
    pub fn registered(&self) -> Service {
        let mut service = self.service.clone();
        if let Some(tags) = &self.registered_tags {
            service.tags.clone_from(tags);
        }
        service
    }

    /// Lists the checks that decide about it: the node's, then its own.
    pub fn all_checks(&self) -> impl Iterator<Item = &Arc<CheckEntry>> {
        self.node_checks.iter().chain(self.checks.iter())
    }

    /// Tells whether it, or its whole node, is in maintenance. Its status is critical then.
    pub fn is_in_maintenance(&self) -> bool {
        self.all_checks().any(|entry| entry.check.is_maintenance())
    }
}

/// A service: everything that is registered under one name, compared without case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceEntry {
    /// As the first instance spells it.
    pub name: Arc<str>,
    /// Never empty; in the order of (node name in lower case, instance id), and by the nodes' keys
    /// where two nodes share a name.
    pub instances: Vec<Arc<Instance>>,
    /// For what is worked out of all this.
    pub memo: Memo,
}

impl View {
    /// Makes an empty view, as a node with an empty database has it.
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            seq: Seq::default(),
            nodes: OrdMap::new(),
            instances: OrdMap::new(),
            checks: OrdMap::new(),
            tag_overrides: OrdMap::new(),
            spoken_for: OrdMap::new(),
            names: OrdMap::new(),
            services: OrdMap::new(),
            addresses: OrdSet::new(),
            keys: Keys::default(),
            queries: Queries::default(),
            events: Events::default(),
            nodes_memo: Arc::default(),
            services_memo: Arc::default(),
            indexes: OrdMap::new(),
            service_gone_at: INDEX_MIN,
            node_gone_at: INDEX_MIN,
            index_max: INDEX_MIN,
            heard: OrdMap::new(),
            settled: false,
        }
    }

    /// Returns the view after a commit, and the topics whose answers changed.
    ///
    /// Their index is the commit's clock, or the next free number where membership was ahead of it.
    pub fn fold(&self, commit: &Commit) -> (View, BTreeSet<Topic>) {
        let mut fold = Fold::begin(self, commit.at);
        for events in &commit.tables {
            fold.take_in(events);
        }
        let (mut view, touched) = fold.finish();
        view.seq = commit.seq;
        (view, touched)
    }

    /// Returns the view after a change of membership, and the topics whose answers changed.
    /// `at` is above every index that the view holds.
    pub fn fold_liveness(&self, at: Hlc, change: Liveness) -> (View, BTreeSet<Topic>) {
        let mut fold = Fold::begin(self, at);
        fold.take_in_liveness(change);
        fold.finish()
    }

    /// Returns the id of the node that holds the view.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// Returns the last commit that was folded in.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Finds a service by name, compared without case.
    pub fn service(&self, name: &str) -> Option<&Arc<ServiceEntry>> {
        self.services.get(lower(name).as_ref())
    }

    /// Lists all services in the order of their names in lower case.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.services.values()
    }

    /// Finds a node by name (compared without case) or by its key, which is its id.
    ///
    /// An id goes before a name, so that no node can pose as another by its name. Where several nodes
    /// have one name, the one with the lowest key of those that are up has it, on every node alike.
    pub fn node(&self, name_or_id: &str) -> Option<&Arc<NodeEntry>> {
        self.nodes
            .get(name_or_id)
            .or_else(|| self.node_named(name_or_id))
            .or_else(|| self.external_node(name_or_id.parse().ok()?))
    }

    /// Finds a node by its name alone, compared without case. See [`View::node`].
    pub fn node_named(&self, name: &str) -> Option<&Arc<NodeEntry>> {
        let keys = self.names.get(lower(name).as_ref())?;
        let mut nodes = keys.iter().filter_map(|key| self.nodes.get(key));
        nodes.clone().find(|node| node.info.is_up).or_else(|| nodes.next())
    }

    /// Finds an external node by the UUID that was registered with it.
    pub fn external_node(&self, id: NodeId) -> Option<&Arc<NodeEntry>> {
        let externals = self.nodes.range(external_key("")..).map(|(_, entry)| entry);
        externals.into_iter().find(|entry| entry.info.node.external_id.parse() == Ok(id))
    }

    /// Lists the nodes that share a name with others, those of one name together.
    pub fn namesakes(&self) -> impl Iterator<Item = Vec<&Arc<NodeEntry>>> {
        let shared = self.names.values().filter(|keys| keys.len() > 1);
        shared.map(|keys| keys.iter().filter_map(|key| self.nodes.get(key)).collect())
    }

    /// Finds a node by its key.
    pub fn node_by_key(&self, key: &str) -> Option<&Arc<NodeEntry>> {
        self.nodes.get(key)
    }

    /// Returns the key-value store.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Returns the events that this node was told.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Returns the place for what is worked out of all nodes: another one once any of them changes.
    pub fn nodes_memo(&self) -> &Memo {
        &self.nodes_memo
    }

    /// Returns the place for what is worked out of the list of services and their nodes, not of health.
    pub fn services_memo(&self) -> &Memo {
        &self.services_memo
    }

    /// Returns the prepared queries.
    pub fn queries(&self) -> &Queries {
        &self.queries
    }

    /// Returns this node's own entry, once it has announced itself.
    pub fn own(&self) -> Option<&Arc<NodeEntry>> {
        self.nodes.get(&key_of(self.me))
    }

    /// Finds a check of this node or of one of its instances as it is stored, by its id.
    pub fn own_check(&self, check_id: &str) -> Option<&Arc<CheckEntry>> {
        self.checks.get(&(key_of(self.me), check_id.into()))
    }

    /// Lists all nodes in the order of their names in lower case, then of their keys.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<NodeEntry>> {
        self.names.values().flat_map(|keys| keys.iter()).filter_map(|key| self.nodes.get(key))
    }

    /// Finds the nodes whose own address this is, and the instances that registered it as theirs,
    /// each in the order of their keys. An IPv4 address mapped into IPv6 is the IPv4 address.
    pub fn at_address(&self, ip: IpAddr) -> (Vec<Arc<NodeEntry>>, Vec<Arc<Instance>>) {
        let ip = ip.to_canonical();
        let (mut nodes, mut instances) = (Vec::new(), Vec::new());
        let first: Holder = (ip, NodeKey::default(), None);
        for (_, key, id) in self.addresses.range(first..).take_while(|holder| holder.0 == ip) {
            let Some(node) = self.nodes.get(key) else { continue };
            match id {
                None => nodes.push(Arc::clone(node)),
                Some(id) => instances.extend(node.instance(id).cloned()),
            }
        }
        (nodes, instances)
    }

    /// Returns when a topic's answer last changed, in [`Hlc`] milliseconds; at least 1.
    ///
    /// A service that is gone, or never was, has the index of the last time any service went; a
    /// node likewise. So no topic's index ever falls.
    pub fn index(&self, topic: &Topic) -> u64 {
        if let Some(index) = self.indexes.get(topic) {
            return *index;
        }
        match topic {
            Topic::Services | Topic::Nodes | Topic::Checks | Topic::Queries => INDEX_MIN,
            Topic::Health(_) | Topic::Instances(_) | Topic::ServiceChecks(_) => {
                self.service_gone_at
            }
            Topic::Node(_) | Topic::NodeChecks(_) => self.node_gone_at,
            Topic::Key(key) => self.keys.index(key),
            Topic::KeysUnder(prefix) => self.keys.index_under(prefix),
            Topic::Events(name) => self.events.index(Some(&**name).filter(|name| !name.is_empty())),
        }
    }

    /// Returns the greatest index of all: what a new commit must be above.
    pub fn index_max(&self) -> u64 {
        self.index_max
    }

    /// Tells whether a member counts as up. See [`Liveness::Settled`].
    pub(super) fn is_up(&self, member: NodeId) -> bool {
        member == self.me || self.heard.get(&member).copied().unwrap_or(!self.settled)
    }
}
