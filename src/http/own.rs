//! What Consul's API has no page for: members with what this node knows of them, and services in
//! one look. The command line reads these.

use axum::extract::State;
use axum::routing::get;
use axum::{Json as JsonBody, Router};
use serde_json::{Value as Json, json};

use crate::catalog::model::key_of;
use crate::catalog::{ServiceEntry, Status};
use crate::node::{Handle, MemberState};
use crate::types::NodeId;

/// Returns the routes of these pages.
pub fn routes(handle: Handle) -> Router {
    Router::new()
        .route("/v1/members", get(members))
        .route("/v1/services", get(services))
        .route("/v1/tombstones", get(tombstones))
        .with_state(handle)
}

/// Lists the members of the cluster, this node first.
async fn members(State(handle): State<Handle>) -> JsonBody<Json> {
    let view = handle.view();
    let list = handle.members().into_iter().map(|member| {
        let entry = view.node_by_key(&key_of(member.id));
        json!({
            "id": member.id.to_string(),
            "name": entry.map_or("", |entry| &entry.info.node.name),
            "address": member.gossip.to_string(),
            "state": state(member.state),
            "round_trip_ms": member.round_trip.map(|time| time.as_secs_f64() * 1_000.0),
            "ring": member.relation.ring,
            "versions_behind": member.versions_behind,
            "protocol": member.relation.protocol,
            "notes": member.relation.notes,
            "version": entry.map_or("", |entry| &entry.info.node.version),
        })
    });
    JsonBody(list.collect())
}

/// Says how it stands with forgetting deleted rows, as of a second ago at most.
async fn tombstones(State(handle): State<Handle>) -> JsonBody<Json> {
    let view = handle.view();
    let named = |nodes: Vec<NodeId>| -> Vec<Json> {
        let name = |id| {
            let entry = view.node_by_key(&key_of(id));
            let name = entry.map_or("", |entry| &entry.info.node.name);
            json!({ "id": id.to_string(), "name": name })
        };
        nodes.into_iter().map(name).collect()
    };
    let collection = handle.collection();
    JsonBody(json!({
        "held": handle.tombstones(),
        "round": collection.round,
        "round_age_seconds": collection.round_age.as_secs_f64(),
        "collected_versions": collection.collected,
        "awaited": named(collection.awaited),
        "forgotten": named(collection.forgotten),
        "settled": collection.is_settled,
        "rejoining": collection.is_rejoining,
    }))
}

fn state(state: MemberState) -> &'static str {
    match state {
        MemberState::Alive => "alive",
        MemberState::Suspect => "suspect",
        MemberState::Down => "down",
        MemberState::Left => "left",
    }
}

/// Lists the services with the number of their instances in each state.
async fn services(State(handle): State<Handle>) -> JsonBody<Json> {
    JsonBody(handle.view().services().map(|service| summary(service)).collect())
}

fn summary(service: &ServiceEntry) -> Json {
    let count = |status: Status| service.instances.iter().filter(|i| i.status == status).count();
    let mut tags: Vec<&str> =
        service.instances.iter().flat_map(|i| &i.service.tags).map(String::as_str).collect();
    tags.sort_unstable();
    tags.dedup();
    json!({
        "name": &*service.name,
        "passing": count(Status::Passing),
        "warning": count(Status::Warning),
        "critical": count(Status::Critical),
        "tags": tags,
    })
}
