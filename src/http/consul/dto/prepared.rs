//! Prepared queries as Consul takes and shows them.

use serde::Serialize;
use serde_json::Value;

use super::answers::ServiceEntry;
use super::fields::{Fields, decode};
use crate::catalog::queries::{
    Compiled, Dns, Failover, PreparedQuery, QueryEntry, Template, Wanted,
};
use crate::http::error::Fault;
use crate::types::duration;

/// A query as it was sent, with the id that stood in it.
pub struct Sent {
    pub id: String,
    pub query: PreparedQuery,
}

impl Sent {
    /// Reads and checks a body, in Consul's order of complaints and with its words.
    ///
    /// A token is taken and dropped: it would be replicated to every node, and there is nobody here
    /// who could honour it.
    pub fn read(body: &[u8]) -> Result<Self, Fault> {
        let body: Value = decode(body)?;
        let fields = Fields::of_body(&body)?;
        let query = PreparedQuery {
            name: fields.text("Name")?,
            template: fields.object("Template")?.map(template).transpose()?.unwrap_or_default(),
            service: fields.object("Service")?.map(wanted).transpose()?.unwrap_or_default(),
            dns: fields.object("DNS")?.map(dns).transpose()?.unwrap_or_default(),
        };
        if !fields.text("Session")?.is_empty() {
            return Err(Fault::not_here(
                "Queries that are bound to a session are not here: sessions need a consensus that \
                 Tribune does not have",
            ));
        }
        check(&query)?;
        Ok(Self { id: fields.text("ID")?, query })
    }
}

fn template(fields: Fields<'_>) -> Result<Template, Fault> {
    Ok(Template {
        kind: fields.text("Type")?,
        regexp: fields.text("Regexp")?,
        remove_empty_tags: fields.boolean("RemoveEmptyTags")?,
    })
}

fn wanted(fields: Fields<'_>) -> Result<Wanted, Fault> {
    let texts =
        |fields: &Fields<'_>, name: &str| fields.has(name).then(|| fields.texts(name)).transpose();
    let map = |name: &str| fields.has(name).then(|| fields.text_map(name)).transpose();
    let failover = |fields: Fields<'_>| {
        Ok::<_, Fault>(Failover {
            nearest_n: fields.integer("NearestN")?,
            datacenters: texts(&fields, "Datacenters")?,
        })
    };
    Ok(Wanted {
        service: fields.text("Service")?,
        failover: fields.object("Failover")?.map(failover).transpose()?.unwrap_or_default(),
        only_passing: fields.boolean("OnlyPassing")?,
        ignore_check_ids: texts(&fields, "IgnoreCheckIDs")?,
        near: fields.text("Near")?,
        tags: texts(&fields, "Tags")?,
        node_meta: map("NodeMeta")?,
        service_meta: map("ServiceMeta")?,
        connect: fields.boolean("Connect")?,
    })
}

fn dns(fields: Fields<'_>) -> Result<Dns, Fault> {
    Ok(Dns { ttl: fields.text("TTL")? })
}

fn check(query: &PreparedQuery) -> Result<(), Fault> {
    let invalid = |why: String| Err(Fault::internal(format!("Invalid prepared query: {why}")));
    if query.name.is_empty() && !query.is_template() {
        return invalid("Must be bound to a session".to_owned());
    }
    if query.service.service.is_empty() {
        return invalid("Must provide a Service name to query".to_owned());
    }
    let nearest = query.service.failover.nearest_n;
    if nearest < 0 {
        return invalid(format!("Bad NearestN '{nearest}', must be >= 0"));
    }
    let ttl = &query.dns.ttl;
    match duration::parse(ttl) {
        Ok(nanos) if nanos < 0 => return invalid(format!("DNS TTL '{nanos}', must be >=0")),
        Err(error) if !ttl.is_empty() => return invalid(format!("Bad DNS TTL '{ttl}': {error}")),
        Ok(_) | Err(_) => {}
    }
    if query.is_template() {
        Compiled::new(query).map_err(|error| Fault::internal(error.to_string()))?;
    }
    Ok(())
}

/// A stored query. A template that was resolved shows what came of it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Shown<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    name: &'a str,
    session: &'static str,
    token: &'static str,
    template: &'a Template,
    service: &'a Wanted,
    #[serde(rename = "DNS")]
    dns: &'a Dns,
    create_index: u64,
    modify_index: u64,
}

impl<'a> Shown<'a> {
    pub fn of(entry: &'a QueryEntry, service: &'a Wanted) -> Self {
        Self {
            id: &entry.id,
            name: &entry.query.name,
            session: "",
            token: "",
            template: &entry.query.template,
            service,
            dns: &entry.query.dns,
            create_index: entry.create_index,
            modify_index: entry.modify_index,
        }
    }
}

/// What a new query is called.
#[derive(Serialize)]
pub struct Created {
    #[serde(rename = "ID")]
    pub id: String,
}

/// How fresh an answer is, inside of it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Freshness {
    index: u64,
    last_contact: u64,
    known_leader: bool,
    consistency_level: &'static str,
}

impl Freshness {
    pub fn of(consistency_level: &'static str) -> Self {
        Self { index: 0, last_contact: 0, known_leader: true, consistency_level }
    }
}

/// `/v1/query/:name/execute`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Executed<'a> {
    pub service: &'a str,
    pub nodes: Vec<ServiceEntry<'a>>,
    #[serde(rename = "DNS")]
    pub dns: &'a Dns,
    pub datacenter: String,
    pub failovers: usize,
    #[serde(flatten)]
    pub freshness: Freshness,
}

/// `/v1/query/:name/explain`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Explained<'a> {
    pub query: Shown<'a>,
    #[serde(flatten)]
    pub freshness: Freshness,
}
