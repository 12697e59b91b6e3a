//! What Consul's API has no page for: members with what this node knows of them, and services in
//! one look. The command line reads these.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json as JsonBody, Router};
use serde_json::{Value as Json, json};

use crate::catalog::model::key_of;
use crate::catalog::{ServiceEntry, Status};
use crate::crdt::pack;
use crate::node::{Handle, MemberState, Standing};
use crate::types::{NodeId, Time};

/// Returns the routes of these pages. `lag_max` is how far behind a node may be that is ready.
pub fn routes(handle: Handle, lag_max: Duration) -> Router {
    let ready = move |State(handle): State<Handle>| async move { ready(&handle, lag_max) };
    Router::new()
        .route("/v1/members", get(members))
        .route("/v1/services", get(services))
        .route("/v1/tombstones", get(tombstones))
        .route("/v1/replication", get(replication))
        .route("/v1/status/ready", get(ready))
        .with_state(handle)
}

/// Says whether this node should be asked, and if not, why.
fn ready(handle: &Handle, lag_max: Duration) -> Response {
    let standing = handle.standing();
    let reasons = standing.reasons(lag_max);
    let status = match reasons.is_empty() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let reasons = reasons.iter().map(|one| json!({ "code": one.code, "text": one.text }));
    let mut body = shown(&standing);
    body["ready"] = json!(status == StatusCode::OK);
    body["reasons"] = reasons.collect();
    body["lag_max_seconds"] = json!(lag_max.as_secs_f64());
    (status, JsonBody(body)).into_response()
}

fn shown(standing: &Standing) -> Json {
    json!({
        "lag_seconds": standing.lag.as_secs_f64(),
        "versions_behind": standing.versions_behind,
        "origins_behind": standing.origins_behind,
        "links_heard": standing.links_heard,
        "links_wanted": standing.links_wanted,
        "cut_off": standing.is_cut_off,
        "rejoining": standing.is_rejoining,
        "diverged_members": standing.unequal,
        "mended_rows": standing.mended,
        "apply_error": standing.apply_error,
        "origins_set_aside": standing.set_aside,
    })
}

/// Describes how far each origin is held, and what came of holding rows against other members'.
async fn replication(State(handle): State<Handle>) -> Response {
    let Ok(replication) = handle.replication().await else {
        return (StatusCode::SERVICE_UNAVAILABLE, "this node is shutting down\n").into_response();
    };
    let view = handle.view();
    let name = |id: NodeId| {
        let entry = view.node_by_key(&key_of(id));
        entry.map_or_else(String::new, |entry| entry.info.node.name.clone())
    };
    let origins = replication.origins.iter().map(|one| {
        json!({
            "origin": one.origin.to_string(),
            "node": name(one.origin.node),
            "held": one.held.0,
            "heard": one.heard.0,
            "versions_behind": one.heard.0.saturating_sub(one.held.0),
            "behind_seconds": one.behind_for.map(|time| time.as_secs_f64()),
            "sources": one.sources.iter().map(|id| name(*id)).collect::<Vec<_>>(),
            "lost": one.is_lost,
            "last_change_unix_ms": one.made_at.map(|at| at.millis()),
            "set_aside_seconds": one.set_aside_for.map(|time| time.as_secs_f64()),
        })
    });
    let findings = &replication.findings;
    let ago = |at: Time| replication.now.since(at).as_secs_f64();
    let mut body = shown(&replication.standing);
    body["origins"] = origins.collect();
    let (refused, aside) = handle.left_out();
    body["rows_refused"] = json!(refused);
    body["rows_kept_aside"] = json!(aside);
    body["comparison"] = json!({
        "looks": findings.looks,
        "passes": findings.passes,
        "last_pass_seconds_ago": findings.passed_at.map(ago),
        "diverged": findings.unequal.iter().map(|(id, since)| json!({
            "id": id.to_string(), "name": name(*id), "for_seconds": ago(*since),
        })).collect::<Vec<_>>(),
        "mended": findings.mended,
        "not_mended": findings.unmended,
        "differing_elsewhere": findings.odd_elsewhere,
        "last_mended": findings.last.iter().map(|found| json!({
            "table": found.table.replace('\0', "#"), "key": key(&found.key),
            "origin": found.origin.to_string(), "seconds_ago": ago(found.at),
        })).collect::<Vec<_>>(),
    });
    JsonBody(body).into_response()
}

/// Shows a packed key as the values of its columns.
fn key(packed: &[u8]) -> Json {
    let values = pack::unpack(packed).unwrap_or_default();
    values.iter().map(|value| Json::from(value.to_string())).collect()
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
            "diverged": member.is_unequal,
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
        "retired_origins": collection.retired,
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
