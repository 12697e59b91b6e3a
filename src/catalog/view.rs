//! The view: all nodes, services and checks as every face reads them, immutable and complete.
//!
//! A commit folds into a new view that shares all it did not touch. Every answer reads one view,
//! so it reflects one moment; nothing is cached beside it and nothing has to be invalidated.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::model::{Check, Node, NodeKey, Service, Status};
use crate::crdt::Commit;
use crate::types::{Hlc, NodeId, Seq};

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

/// All of the catalog at one moment.
#[derive(Clone, Debug)]
pub struct View {
    // Private: the maps below must agree with each other. See `check_consistency` in the tests.
    me: NodeId,
    seq: Seq,
    nodes: OrdMap<NodeKey, Arc<NodeEntry>>,
    /// Node names in lower case to keys.
    names: OrdMap<Arc<str>, NodeKey>,
    /// Service names in lower case.
    services: OrdMap<Arc<str>, Arc<ServiceEntry>>,
    indexes: OrdMap<Topic, u64>,
    up: OrdSet<NodeId>,
    settled: bool,
}

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
    pub checks: Arc<[Arc<CheckEntry>]>,
    /// In the order of their ids.
    pub instances: Vec<Arc<Instance>>,
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
    /// The instance's own checks, in the order of their ids.
    pub checks: Arc<[Arc<CheckEntry>]>,
    /// The checks of its node: [`NodeEntry::checks`].
    pub node_checks: Arc<[Arc<CheckEntry>]>,
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
}

/// A service: everything that is registered under one name, compared without case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceEntry {
    /// As the first instance spells it.
    pub name: Arc<str>,
    /// Never empty; in the order of (node name in lower case, instance id).
    pub instances: Vec<Arc<Instance>>,
}

impl View {
    /// Makes an empty view, as a node with an empty database has it.
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            seq: Seq::default(),
            nodes: OrdMap::new(),
            names: OrdMap::new(),
            services: OrdMap::new(),
            indexes: OrdMap::new(),
            up: OrdSet::new(),
            settled: false,
        }
    }

    /// Returns the view after a commit, and the topics whose answers changed.
    pub fn fold(&self, _commit: &Commit) -> (View, BTreeSet<Topic>) {
        unimplemented!()
    }

    /// Returns the view after a change of membership, and the topics whose answers changed.
    /// `at` is above every index that the view holds.
    pub fn fold_liveness(&self, _at: Hlc, _change: Liveness) -> (View, BTreeSet<Topic>) {
        unimplemented!()
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
    pub fn service(&self, _name: &str) -> Option<&Arc<ServiceEntry>> {
        unimplemented!()
    }

    /// Lists all services in the order of their names in lower case.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.services.values()
    }

    /// Finds a node by name (compared without case) or by its key, which is its id.
    pub fn node(&self, _name_or_id: &str) -> Option<&Arc<NodeEntry>> {
        unimplemented!()
    }

    /// Finds a node by its key.
    pub fn node_by_key(&self, key: &str) -> Option<&Arc<NodeEntry>> {
        self.nodes.get(key)
    }

    /// Returns this node's own entry, once it has announced itself.
    pub fn own(&self) -> Option<&Arc<NodeEntry>> {
        unimplemented!()
    }

    /// Lists all nodes in the order of their names in lower case.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<NodeEntry>> {
        self.names.values().filter_map(|key| self.nodes.get(key))
    }

    /// Finds the nodes whose own address this is, and the instances that registered it as theirs.
    pub fn at_address(&self, _ip: IpAddr) -> (Vec<Arc<NodeEntry>>, Vec<Arc<Instance>>) {
        unimplemented!()
    }

    /// Returns when a topic's answer last changed, in [`Hlc`] milliseconds; at least 1.
    ///
    /// A service that is gone, or never was, has the index of the last time any service went.
    pub fn index(&self, _topic: &Topic) -> u64 {
        unimplemented!()
    }

    /// Returns the greatest index of all: what a new commit must be above.
    pub fn index_max(&self) -> u64 {
        unimplemented!()
    }
}
