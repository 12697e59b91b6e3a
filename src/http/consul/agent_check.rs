//! `/v1/agent/check…`: the checks of this node.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;

use super::agent_service::own;
use super::dto::answers::HealthCheck;
use super::dto::register;
use super::query::Query;
use super::reading::{Tail, done, json, text_of};
use crate::catalog::model::SERF_HEALTH;
use crate::catalog::{Command, Status};
use crate::http::Face;
use crate::http::body::{BODY_BYTES_MAX, REGISTER_BYTES_MAX, read};
use crate::http::error::Fault;
use crate::http::host::ReportError;

/// `GET /v1/agent/checks`: all but `serfHealth`, which is not the agent's own, with the latest
/// outputs.
pub async fn list(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let query = Query::of(&uri);
    query.refuse_tenancy()?;
    query.refuse_filter(Fault::internal)?;
    let view = face.host.feed().view();
    let Some(entry) = view.own() else {
        return Ok(json(&query, &BTreeMap::<String, ()>::new()));
    };
    let node = entry.info.node.name.as_str();
    let of_node = entry
        .checks
        .iter()
        .filter(|check| check.check.id != SERF_HEALTH)
        .map(|check| HealthCheck::of(node, check, None));
    let of_instances = own(&view).flat_map(|instance| {
        let service = Some(&instance.service);
        instance.checks.iter().map(move |check| HealthCheck::of(node, check, service))
    });
    let checks: BTreeMap<_, _> = of_node
        .chain(of_instances)
        .map(|check| {
            let output = face.reports.output(check.check_id);
            let check = HealthCheck {
                output: output.map_or(check.output, Cow::Owned),
                create_index: 0,
                modify_index: 0,
                ..check
            };
            (check.check_id, check)
        })
        .collect();
    Ok(json(&query, &checks))
}

/// `PUT /v1/agent/check/register`.
pub async fn register(
    State(face): State<Arc<Face>>,
    uri: Uri,
    body: Body,
) -> Result<Response, Fault> {
    Query::of(&uri).refuse_tenancy()?;
    let registration = register::check(&read(body, REGISTER_BYTES_MAX).await?)?;
    let id = &registration.check.service_id;
    if !id.is_empty() && !own(&face.host.feed().view()).any(|one| one.service.id == *id) {
        return Err(Fault::internal(format!("ServiceID {id:?} does not exist")));
    }
    face.host.submit(Command::RegisterCheck(registration)).await?;
    Ok(done())
}

/// `PUT /v1/agent/check/deregister/:id`. An unknown id is no error, as in Consul 1.8.
pub async fn deregister(State(face): State<Arc<Face>>, tail: Tail) -> Result<Response, Fault> {
    let check_id = text_of(tail);
    if check_id.is_empty() {
        return Err(Fault::internal("CheckID missing"));
    }
    face.host.submit(Command::DeregisterCheck { check_id }).await?;
    Ok(done())
}

/// `PUT /v1/agent/check/pass/:id?note=`.
pub async fn pass(face: State<Arc<Face>>, uri: Uri, tail: Tail) -> Result<Response, Fault> {
    note(face, &uri, tail, Status::Passing).await
}

/// `PUT /v1/agent/check/warn/:id?note=`.
pub async fn warn(face: State<Arc<Face>>, uri: Uri, tail: Tail) -> Result<Response, Fault> {
    note(face, &uri, tail, Status::Warning).await
}

/// `PUT /v1/agent/check/fail/:id?note=`.
pub async fn fail(face: State<Arc<Face>>, uri: Uri, tail: Tail) -> Result<Response, Fault> {
    note(face, &uri, tail, Status::Critical).await
}

/// `PUT /v1/agent/check/update/:id` with status and output in the body.
pub async fn update(
    State(face): State<Arc<Face>>,
    tail: Tail,
    body: Body,
) -> Result<Response, Fault> {
    let (status, output) = register::update(&read(body, BODY_BYTES_MAX).await?)?;
    report(&face, text_of(tail), status, output).await
}

async fn note(
    State(face): State<Arc<Face>>,
    uri: &Uri,
    tail: Tail,
    status: Status,
) -> Result<Response, Fault> {
    let note = Query::of(uri).first("note").unwrap_or_default().to_owned();
    report(&face, text_of(tail), status, note).await
}

async fn report(
    face: &Face,
    check_id: String,
    status: Status,
    output: String,
) -> Result<Response, Fault> {
    match face.reports.report(check_id, status, output).await {
        Ok(()) => Ok(done()),
        Err(error @ ReportError::NotTtl(_)) => Err(Fault::internal(error.to_string())),
        Err(ReportError::Submit(error)) => Err(error.into()),
    }
}
