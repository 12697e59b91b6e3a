//! Nodes, services and checks as Consul sends them, borrowed from a view.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::catalog::model;
use crate::catalog::view::{CheckEntry, Instance, NodeInfo};

/// A node: `catalog/nodes`, and inside `health/service` and `catalog/node`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Node<'a> {
    #[serde(rename = "ID")]
    pub id: &'a str,
    pub node: &'a str,
    pub address: &'a str,
    pub datacenter: &'a str,
    /// `null` when there is none.
    pub tagged_addresses: Option<&'a BTreeMap<String, String>>,
    /// `null` when there is none.
    pub meta: Option<&'a BTreeMap<String, String>>,
    pub create_index: u64,
    pub modify_index: u64,
}

impl<'a> Node<'a> {
    pub fn of(info: &'a NodeInfo) -> Self {
        Self {
            id: node_id(info),
            node: &info.node.name,
            address: &info.node.address,
            datacenter: &info.node.datacenter,
            tagged_addresses: some_map(&info.node.tagged_addresses),
            meta: some_map(&info.node.meta),
            create_index: info.create_index,
            modify_index: info.modify_index,
        }
    }
}

/// An instance inside `health/service` and `catalog/node`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeService<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    pub kind: &'a str,
    #[serde(rename = "ID")]
    pub id: &'a str,
    pub service: &'a str,
    /// `[]` when there is none, but for what a query finds, where it is `null`.
    pub tags: Option<&'a [String]>,
    /// Empty when the instance has none: clients then take the node's.
    pub address: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tagged_addresses: Option<BTreeMap<&'a str, Address<'a>>>,
    /// `null` when there is none.
    pub meta: Option<&'a BTreeMap<String, String>>,
    pub port: i64,
    pub weights: Weights,
    pub enable_tag_override: bool,
    pub proxy: Proxy,
    pub connect: Empty,
    pub create_index: u64,
    pub modify_index: u64,
}

impl<'a> NodeService<'a> {
    pub fn of(instance: &'a Instance) -> Self {
        let service = &instance.service;
        Self {
            kind: &service.kind,
            id: &service.id,
            service: &service.name,
            tags: Some(&service.tags),
            address: &service.address,
            tagged_addresses: tagged(service),
            meta: some_map(&service.meta),
            port: service.port,
            weights: Weights::of(service),
            enable_tag_override: service.enable_tag_override,
            proxy: Proxy::default(),
            connect: Empty {},
            create_index: instance.create_index,
            modify_index: instance.modify_index,
        }
    }
}

/// Tags as queries and transactions show them.
fn some_tags(tags: Option<&[String]>) -> Option<&[String]> {
    tags.filter(|tags| !tags.is_empty())
}

impl NodeService<'_> {
    /// Returns the same with `null` in the place of an empty list of tags.
    pub fn with_null_tags(self) -> Self {
        Self { tags: some_tags(self.tags), ..self }
    }
}

impl HealthCheck<'_> {
    /// Returns the same with `null` in the place of an empty list of tags.
    pub fn with_null_tags(self) -> Self {
        Self { service_tags: some_tags(self.service_tags), ..self }
    }
}

/// An instance in `catalog/service`: node and service in one flat object.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CatalogService<'a> {
    #[serde(rename = "ID")]
    pub id: &'a str,
    pub node: &'a str,
    pub address: &'a str,
    pub datacenter: &'a str,
    pub tagged_addresses: Option<&'a BTreeMap<String, String>>,
    pub node_meta: Option<&'a BTreeMap<String, String>>,
    pub service_kind: &'a str,
    #[serde(rename = "ServiceID")]
    pub service_id: &'a str,
    pub service_name: &'a str,
    pub service_tags: &'a [String],
    pub service_address: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_tagged_addresses: Option<BTreeMap<&'a str, Address<'a>>>,
    pub service_weights: Weights,
    /// `{}` when there is none, other than in [`NodeService`].
    pub service_meta: &'a BTreeMap<String, String>,
    pub service_port: i64,
    pub service_enable_tag_override: bool,
    pub service_proxy: Proxy,
    pub service_connect: Empty,
    pub create_index: u64,
    pub modify_index: u64,
}

impl<'a> CatalogService<'a> {
    pub fn of(instance: &'a Instance) -> Self {
        let (info, service) = (&*instance.node, &instance.service);
        Self {
            id: node_id(info),
            node: &info.node.name,
            address: &info.node.address,
            datacenter: &info.node.datacenter,
            tagged_addresses: some_map(&info.node.tagged_addresses),
            node_meta: some_map(&info.node.meta),
            service_kind: &service.kind,
            service_id: &service.id,
            service_name: &service.name,
            service_tags: &service.tags,
            service_address: &service.address,
            service_tagged_addresses: tagged(service),
            service_weights: Weights::of(service),
            service_meta: &service.meta,
            service_port: service.port,
            service_enable_tag_override: service.enable_tag_override,
            service_proxy: Proxy::default(),
            service_connect: Empty {},
            create_index: instance.create_index,
            modify_index: instance.modify_index,
        }
    }
}

/// A check: `health/*`, and with both indexes 0 `agent/checks`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthCheck<'a> {
    pub node: &'a str,
    #[serde(rename = "CheckID")]
    pub check_id: &'a str,
    pub name: &'a str,
    pub status: &'static str,
    pub notes: &'a str,
    /// Borrowed from the catalog, or newer than it.
    pub output: Cow<'a, str>,
    #[serde(rename = "ServiceID")]
    pub service_id: &'a str,
    pub service_name: &'a str,
    /// `[]` when there is none, but for `agent/health` and queries, where it is `null`.
    pub service_tags: Option<&'a [String]>,
    #[serde(rename = "Type")]
    pub kind: &'a str,
    pub definition: Definition,
    pub create_index: u64,
    pub modify_index: u64,
}

impl<'a> HealthCheck<'a> {
    /// `service` is the instance that the check belongs to, or `None` for the whole node.
    pub fn of(node: &'a str, entry: &'a CheckEntry, service: Option<&'a model::Service>) -> Self {
        let check = &entry.check;
        Self {
            node,
            check_id: &check.id,
            name: &check.name,
            status: check.status.as_str(),
            notes: &check.notes,
            output: Cow::Borrowed(&check.output),
            service_id: &check.service_id,
            service_name: service.map_or("", |service| &service.name),
            service_tags: Some(service.map_or(&[], |service| &service.tags)),
            kind: &check.kind,
            definition: Definition::of(check),
            create_index: entry.create_index,
            modify_index: entry.modify_index,
        }
    }
}

/// What `health/service` lists: an instance with all checks that speak for it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceEntry<'a> {
    pub node: Node<'a>,
    pub service: NodeService<'a>,
    /// The node's checks first, then the instance's own.
    pub checks: Vec<HealthCheck<'a>>,
}

impl<'a> ServiceEntry<'a> {
    /// Returns it as a prepared query finds it: lists of tags that are empty are `null`.
    pub fn with_nulls(instance: &'a Instance) -> Self {
        let mut entry = Self::of(instance);
        entry.service = entry.service.with_null_tags();
        entry.checks = entry.checks.into_iter().map(HealthCheck::with_null_tags).collect();
        entry
    }

    pub fn of(instance: &'a Instance) -> Self {
        Self {
            node: Node::of(&instance.node),
            service: NodeService::of(instance),
            checks: checks_of(instance).collect(),
        }
    }
}

/// Lists the checks that speak for an instance: its node's, then its own.
pub fn checks_of(instance: &Instance) -> impl Iterator<Item = HealthCheck<'_>> {
    let node = instance.node.node.name.as_str();
    let of_node = instance.node_checks.iter().map(move |entry| HealthCheck::of(node, entry, None));
    let own = instance
        .checks
        .iter()
        .map(move |entry| HealthCheck::of(node, entry, Some(&instance.service)));
    of_node.chain(own)
}

/// `catalog/node`: a node with its instances by id.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeServices<'a> {
    pub node: Node<'a>,
    pub services: BTreeMap<&'a str, NodeService<'a>>,
}

/// `catalog/node-services`: a node with its instances in a list; both `null` when it is unknown.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeServiceList<'a> {
    pub node: Option<Node<'a>>,
    pub services: Option<Vec<NodeService<'a>>>,
}

/// An instance as its own agent shows it: `agent/services`, `agent/service/:id`.
#[derive(Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentService<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    pub kind: &'a str,
    #[serde(rename = "ID")]
    pub id: &'a str,
    pub service: &'a str,
    pub tags: &'a [String],
    /// `{}` when there is none.
    pub meta: &'a BTreeMap<String, String>,
    pub port: i64,
    pub address: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tagged_addresses: Option<BTreeMap<&'a str, Address<'a>>>,
    pub weights: Weights,
    pub enable_tag_override: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub content_hash: String,
}

impl<'a> AgentService<'a> {
    pub fn of(service: &'a model::Service) -> Self {
        Self {
            kind: &service.kind,
            id: &service.id,
            service: &service.name,
            tags: &service.tags,
            meta: &service.meta,
            port: service.port,
            address: &service.address,
            tagged_addresses: tagged(service),
            weights: Weights::of(service),
            enable_tag_override: service.enable_tag_override,
            content_hash: String::new(),
        }
    }
}

/// `agent/health/service`: an instance of this node with its standing.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceHealth<'a> {
    pub aggregated_status: &'static str,
    pub service: Option<AgentService<'a>>,
    pub checks: Option<Vec<HealthCheck<'a>>>,
}

/// An address of an instance for one kind of client.
#[derive(Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Address<'a> {
    pub address: &'a str,
    pub port: i64,
}

/// SRV weights.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Weights {
    pub passing: i64,
    pub warning: i64,
}

impl Weights {
    fn of(service: &model::Service) -> Self {
        Self { passing: service.weights.passing, warning: service.weights.warning }
    }
}

/// `{}`: there is no mesh, and a mesh-less Consul sends this.
#[derive(Clone, Copy, Default, Serialize)]
pub struct Empty {}

/// `{"MeshGateway":{},"Expose":{}}`: see [`Empty`].
#[derive(Clone, Copy, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Proxy {
    pub mesh_gateway: Empty,
    pub expose: Empty,
}

/// What a check does. A member's checks may hold secrets, so that is never told.
#[derive(Clone)]
pub enum Definition {
    /// `{}`
    Empty,
    /// What was registered with a check of an external node.
    Given(serde_json::Value),
    /// Every field with its zero value, as `agent/health` has it.
    Zero,
}

impl Definition {
    fn of(check: &model::Check) -> Self {
        if check.definition.is_empty() {
            return Self::Empty;
        }
        // Any node may write such a row, and SQL too: what is no object is shown as none.
        match serde_json::from_str(&check.definition) {
            Ok(given @ serde_json::Value::Object(_)) => Self::Given(given),
            _ => Self::Empty,
        }
    }
}

impl Serialize for Definition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Empty => Empty {}.serialize(serializer),
            Self::Given(given) => given.serialize(serializer),
            Self::Zero => ZeroDefinition::default().serialize(serializer),
        }
    }
}

#[derive(Serialize)]
struct ZeroDefinition {
    #[serde(rename = "Interval")]
    interval: &'static str,
    #[serde(rename = "Timeout")]
    timeout: &'static str,
    #[serde(rename = "DeregisterCriticalServiceAfter")]
    deregister_after: &'static str,
    #[serde(rename = "HTTP")]
    http: &'static str,
    #[serde(rename = "Header")]
    header: Option<()>,
    #[serde(rename = "Method")]
    method: &'static str,
    #[serde(rename = "Body")]
    body: &'static str,
    #[serde(rename = "TLSSkipVerify")]
    tls_skip_verify: bool,
    #[serde(rename = "TCP")]
    tcp: &'static str,
}

impl Default for ZeroDefinition {
    fn default() -> Self {
        Self {
            interval: "0s",
            timeout: "0s",
            deregister_after: "0s",
            http: "",
            header: None,
            method: "",
            body: "",
            tls_skip_verify: false,
            tcp: "",
        }
    }
}

/// A member's id; an external node has what was registered with it, often nothing.
fn node_id(info: &NodeInfo) -> &str {
    if info.member.is_some() { &info.key } else { &info.node.external_id }
}

fn some_map(map: &BTreeMap<String, String>) -> Option<&BTreeMap<String, String>> {
    if map.is_empty() { None } else { Some(map) }
}

fn tagged(service: &model::Service) -> Option<BTreeMap<&str, Address<'_>>> {
    if service.tagged_addresses.is_empty() {
        return None;
    }
    Some(
        service
            .tagged_addresses
            .iter()
            .map(|(kind, at)| (kind.as_str(), Address { address: &at.address, port: at.port }))
            .collect(),
    )
}
