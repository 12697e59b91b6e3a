//! Bodies of `catalog/register` and `catalog/deregister`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::fields::{Fields, decode};
use super::register::{check_mesh, check_meta, check_tenancy, check_weights, read_service};
use crate::catalog::model::{Check, Node, Service, Status, Weights};
use crate::http::error::Fault;
use crate::types::NodeId;

/// What somebody wants in the catalog.
pub struct Registration {
    pub node: Node,
    /// The node itself stays as it is, and has to be there.
    pub skips_node: bool,
    pub service: Option<Service>,
    pub checks: Vec<Check>,
}

/// What somebody wants out of the catalog: an instance, or a check, or else the whole node.
pub struct Deregistration {
    pub node: String,
    pub service_id: String,
    pub check_id: String,
}

impl Registration {
    /// Wants an instance or checks on a node that stays as it is.
    pub fn on(name: String, service: Option<Service>, checks: Vec<Check>) -> Self {
        Self { node: Node { name, ..Node::default() }, skips_node: true, service, checks }
    }

    /// Reads a body, or says what Consul would say.
    pub fn read(body: &[u8], datacenter: &str) -> Result<Self, Fault> {
        let value = decode(body)?;
        let fields = Fields::of_body(&value)?;
        let name = node_of(&fields, datacenter)?;
        let address = fields.text("Address")?;
        let skips_node = fields.boolean("SkipNodeUpdate")?;
        if address.is_empty() && !skips_node {
            return Err(Fault::internal("Must provide address if SkipNodeUpdate is not set"));
        }
        check_tenancy(&fields)?;
        let meta = fields.text_map("NodeMeta")?;
        // What agents say of themselves may be copied from another cluster.
        let own = meta.iter().filter(|(key, _)| !key.starts_with("consul-"));
        let own = own.map(|(key, value)| (key.clone(), value.clone())).collect();
        check_meta(&own).map_err(Fault::internal)?;
        let node = Node {
            name,
            address,
            datacenter: datacenter.to_owned(),
            tagged_addresses: fields.text_map("TaggedAddresses")?,
            meta,
            external_id: id_of(&fields)?,
            ..Node::default()
        };
        let service = fields.object("Service")?.filter(|service| !service.is_empty());
        let service = service.map(|service| service_of(&service)).transpose()?;
        let one = fields.object("Check")?.filter(|check| !check.is_empty());
        let checks = one.into_iter().chain(fields.objects("Checks")?);
        let checks = checks.map(|check| check_of(&check)).collect::<Result<_, _>>()?;
        Ok(Self { node, skips_node, service, checks })
    }
}

impl Deregistration {
    /// Reads a body, or says what Consul would say.
    pub fn read(body: &[u8], datacenter: &str) -> Result<Self, Fault> {
        let value = decode(body)?;
        let fields = Fields::of_body(&value)?;
        Ok(Self {
            node: node_of(&fields, datacenter)?,
            service_id: fields.text("ServiceID")?,
            check_id: fields.text("CheckID")?,
        })
    }
}

fn node_of(fields: &Fields<'_>, datacenter: &str) -> Result<String, Fault> {
    let asked = fields.text("Datacenter")?;
    if !asked.is_empty() && asked != datacenter {
        return Err(Fault::internal("No path to datacenter"));
    }
    let name = fields.text("Node")?;
    if name.is_empty() {
        return Err(Fault::internal("Must provide node"));
    }
    Ok(name)
}

/// The id in the one spelling that ids are compared in.
pub fn id_of(fields: &Fields<'_>) -> Result<String, Fault> {
    let id = fields.text("ID")?;
    if id.is_empty() {
        return Ok(id);
    }
    let read: NodeId =
        id.parse().map_err(|_| Fault::internal(format!("Invalid node ID {id:?}: not a UUID")))?;
    Ok(read.to_string())
}

/// Reads a service as the catalog and a transaction have it.
pub fn service_of(fields: &Fields<'_>) -> Result<Service, Fault> {
    let mut service = read_service(fields, "Service")?;
    if service.name.is_empty() {
        return Err(Fault::internal("Must provide service name with ID"));
    }
    if service.weights == (Weights { passing: 0, warning: 0 }) {
        service.weights = Weights::default();
    }
    let invalid = |what: &str, why: &str| Fault::internal(format!("Invalid {what}: {why}"));
    check_weights(service.weights).map_err(|reason| invalid("Weights", reason))?;
    check_meta(&service.meta).map_err(|reason| invalid("Service Meta", &reason))?;
    check_mesh(fields)?;
    Ok(service)
}

/// Reads a check as the catalog and a transaction have it. Without a status it is critical.
pub fn check_of(fields: &Fields<'_>) -> Result<Check, Fault> {
    let name = fields.text("Name")?;
    let id = fields.text("CheckID")?;
    let id = if id.is_empty() { name.clone() } else { id };
    if id.is_empty() {
        return Err(Fault::internal("Must provide check ID or name"));
    }
    let word = fields.text("Status")?;
    let status = match word.as_str() {
        "" => Status::Critical,
        // Consul stores any word, and then counts it as no state at all.
        word => Status::parse(word).ok_or_else(|| {
            Fault::internal(format!(
                "Invalid check status: {word:?}; it must be 'passing', 'warning' or 'critical'"
            ))
        })?,
    };
    let definition: BTreeMap<String, Value> =
        fields.object("Definition")?.map(|given| given.present()).unwrap_or_default();
    let has = |name: &str| definition.get(name).is_some_and(|value| value != "");
    let kind = match fields.text("Type")? {
        kind if !kind.is_empty() => kind,
        _ if has("HTTP") => "http".to_owned(),
        _ if has("TCP") => "tcp".to_owned(),
        _ => String::new(),
    };
    Ok(Check {
        id,
        name,
        status,
        notes: fields.text("Notes")?,
        output: fields.text("Output")?,
        service_id: fields.text("ServiceID")?,
        kind,
        definition: match definition.is_empty() {
            true => String::new(),
            false => serde_json::to_string(&definition).expect("its keys are texts"),
        },
        ..Check::default()
    })
}
