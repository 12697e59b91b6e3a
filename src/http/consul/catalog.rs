//! `/v1/catalog/…`: nodes and services, whatever their health.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use tokio::time::Instant;

use super::dto::answers::{CatalogService, Node, NodeService, NodeServiceList, NodeServices};
use super::dto::external;
use super::index;
use super::query::{Datacenter, Query};
use super::reading::{Asked, Reading, Tail, json, text_of};
use crate::catalog::{NodeKey, Topic, View};
use crate::http::Face;
use crate::http::body::{BODY_BYTES_MAX, read};
use crate::http::error::Fault;

/// The index of what is not there.
const NOWHERE: u64 = 1;

/// `GET /v1/catalog/datacenters`: this node's own first.
pub async fn datacenters(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let view = face.host.feed().view();
    Ok(json(&Query::of(&uri), &datacenters_in(&view, &face.host.local().datacenter)))
}

fn datacenters_in<'a>(view: &'a View, own: &'a str) -> Vec<&'a str> {
    let all: BTreeSet<_> = view.nodes().map(|entry| entry.info.node.datacenter.as_str()).collect();
    let others = all.into_iter().filter(|name| !name.is_empty() && *name != own);
    std::iter::once(own).chain(others).collect()
}

/// `GET /v1/catalog/nodes`.
pub async fn nodes(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let reading = Reading::begin(&face, &uri, |_| Topic::Nodes).await?;
    let nodes: Vec<_> = reading.nodes().into_iter().map(|entry| Node::of(&entry.info)).collect();
    Ok(reading.answer(&nodes))
}

/// `GET /v1/catalog/services`: names with all tags that any instance has, sorted: clients must
/// compare them as sets, and those that do not are spared a reload.
pub async fn services(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let reading = Reading::begin(&face, &uri, |_| Topic::Services).await?;
    Ok(reading.answer(&services_in(&reading)))
}

fn services_in(reading: &Reading) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut services = BTreeMap::new();
    for entry in reading.view.services() {
        let mut wanted =
            entry.instances.iter().filter(|instance| reading.wants(&instance.node)).peekable();
        if wanted.peek().is_some() {
            let tags = wanted.flat_map(|instance| instance.service.tags.iter().map(String::as_str));
            services.insert(&*entry.name, tags.collect());
        }
    }
    services
}

/// `GET /v1/catalog/service/:service`.
pub async fn service(
    State(face): State<Arc<Face>>,
    uri: Uri,
    tail: Tail,
) -> Result<Response, Fault> {
    let asked = Asked::of(&uri)?;
    let name = named(tail, "Missing service name")?;
    let topic = Topic::Instances(name.to_lowercase().into());
    let reading = asked.read(&face, |_| topic.clone()).await?;
    let instances: Vec<_> =
        reading.instances(&name).into_iter().map(|instance| CatalogService::of(instance)).collect();
    Ok(reading.answer(&instances))
}

/// `GET /v1/catalog/connect/:service` and its like: there is no mesh, so nothing is capable of it.
pub async fn connect(
    State(face): State<Arc<Face>>,
    uri: Uri,
    tail: Tail,
) -> Result<Response, Fault> {
    let asked = Asked::of(&uri)?;
    named(tail, "Missing service name")?;
    let reading = asked.read(&face, |_| Topic::Services).await?;
    Ok(reading.answer(&[(); 0]))
}

/// `GET /v1/catalog/node/:node`, by name or id.
pub async fn node(State(face): State<Arc<Face>>, uri: Uri, tail: Tail) -> Result<Response, Fault> {
    let (reading, name) = begin_node(&face, &uri, tail).await?;
    let found = reading.node(&name).map(|entry| NodeServices {
        node: Node::of(&entry.info),
        services: entry
            .instances
            .iter()
            .map(|instance| (instance.service.id.as_str(), NodeService::of(instance)))
            .collect(),
    });
    Ok(reading.answer(&found))
}

/// `GET /v1/catalog/node-services/:node`, by name or id.
pub async fn node_services(
    State(face): State<Arc<Face>>,
    uri: Uri,
    tail: Tail,
) -> Result<Response, Fault> {
    let (reading, name) = begin_node(&face, &uri, tail).await?;
    let found = reading.node(&name);
    Ok(reading.answer(&NodeServiceList {
        node: found.map(|entry| Node::of(&entry.info)),
        services: found.map(|entry| {
            entry.instances.iter().map(|instance| NodeService::of(instance)).collect()
        }),
    }))
}

/// A node that is not there has the index 1; whoever sends that back waits for it to come.
async fn begin_node(face: &Face, uri: &Uri, tail: Tail) -> Result<(Reading, String), Fault> {
    let asked = Asked::of(uri)?;
    let name = named(tail, "Missing node name")?;
    let view = face.host.feed().view();
    Datacenter::of(&asked.query, face.host.local(), &view)?;
    let view = if asked.options.index == NOWHERE {
        wait_for_node(face, &asked, &name).await
    } else if let Some(entry) = view.node(&name) {
        let topic = Topic::Node(NodeKey::clone(&entry.info.key));
        index::wait(face.host.feed(), &face.stopping, &asked.options, |_| topic.clone()).await
    } else {
        view
    };
    let index = match view.node(&name) {
        Some(entry) => view.index(&Topic::Node(NodeKey::clone(&entry.info.key))),
        None => NOWHERE,
    };
    Ok((Reading::of(asked, face.host.as_ref(), view, index)?, name))
}

/// Waits until a node of this name is there, or the client's time is over.
async fn wait_for_node(face: &Face, asked: &Asked, name: &str) -> Arc<View> {
    let feed = face.host.feed();
    let deadline = Instant::now() + asked.options.wait + index::jitter(asked.options.wait);
    loop {
        let view = feed.view();
        let is_over = Instant::now() >= deadline || face.stopping.is_cancelled();
        if view.node(name).is_some() || is_over {
            return view;
        }
        let seen = view.index(&Topic::Nodes);
        tokio::select! {
            _ = feed.wait(&Topic::Nodes, seen, deadline) => {}
            () = face.stopping.cancelled() => {}
        }
    }
}

/// `PUT /v1/catalog/register`.
pub async fn register(State(face): State<Arc<Face>>, body: Body) -> Result<Response, Fault> {
    let bytes = read(body, BODY_BYTES_MAX).await?;
    external::check_registration(&bytes, &face.host.local().datacenter)?;
    Err(Fault::not_here(
        "Nodes without an agent cannot be registered yet; register services with the agent of \
         the host that runs them (/v1/agent/service/register)",
    ))
}

/// `PUT /v1/catalog/deregister`.
pub async fn deregister(State(face): State<Arc<Face>>, body: Body) -> Result<Response, Fault> {
    let bytes = read(body, BODY_BYTES_MAX).await?;
    external::check_deregistration(&bytes, &face.host.local().datacenter)?;
    Err(Fault::not_here(
        "Nodes without an agent cannot be registered yet, and what an agent registered only it \
         can remove (/v1/agent/service/deregister/:id)",
    ))
}

/// Returns the name at the end of a path, or the complaint that there is none.
pub fn named(tail: Tail, complaint: &'static str) -> Result<String, Fault> {
    let name = text_of(tail);
    if name.is_empty() { Err(Fault::bad_request(complaint)) } else { Ok(name) }
}
