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
use super::filter::Shape;
use super::query::Query;
use super::reading::{Tail, done, json, passes, text_of};
use crate::catalog::model::SERF_HEALTH;
use crate::catalog::{Command, Status};
use crate::http::Face;
use crate::http::body::{BODY_BYTES_MAX, REGISTER_BYTES_MAX, read};
use crate::http::error::Fault;

/// `GET /v1/agent/checks`: all but `serfHealth`, which is not the agent's own, with the latest
/// outputs.
pub async fn list(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let query = Query::of(&uri);
    query.refuse_tenancy()?;
    let filter = query.filter(&Shape::CHECK)?;
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
        .filter(|(_, check)| passes(filter.as_ref(), check))
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
    let registration = {
        let body = read(body, REGISTER_BYTES_MAX).await?;
        register::check(&body, face.script_checks)?
    };
    let id = &registration.check.service_id;
    if !id.is_empty() && !own(&face.host.feed().view()).any(|one| one.service.id == *id) {
        return Err(Fault::internal(format!("ServiceID {id:?} does not exist")));
    }
    let check_id = registration.check.id.clone();
    face.host.submit(Command::RegisterCheck(registration)).await?;
    face.reports.registered(vec![check_id]).await;
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
    face.reports.report(check_id, status, output).await?;
    Ok(done())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::support::{Bench, me, one_service};

    #[tokio::test]
    async fn reports_reach_the_room_that_runs_the_checks() {
        let bench = Bench::new(me(), "n1", one_service());
        for (path, body) in [
            ("pass/web-1-ttl?note=all%20good", ""),
            ("warn/web-1-ttl", ""),
            ("fail/web-1-ttl?note=", ""),
            ("update/web-1-ttl", r#"{"Status":"warning","Output":"p99 420ms"}"#),
        ] {
            let reply = bench.put(&format!("/v1/agent/check/{path}"), body).await;
            assert_eq!((reply.status.as_u16(), reply.text.as_str()), (200, ""), "{path}");
        }
        let reports: Vec<_> = bench
            .host
            .reports
            .lock()
            .unwrap()
            .iter()
            .map(|(_, status, output)| (*status, output.clone()))
            .collect();
        let expected = [
            (Status::Passing, "all good"),
            (Status::Warning, ""),
            (Status::Critical, ""),
            (Status::Warning, "p99 420ms"),
        ];
        assert_eq!(reports, expected.map(|(status, output)| (status, output.to_owned())));
    }

    #[tokio::test]
    async fn only_ttl_checks_take_reports() {
        let bench = Bench::new(me(), "n1", one_service());
        let reply = bench.put("/v1/agent/check/pass/nosuch", "").await;
        let text = "CheckID \"nosuch\" does not have associated TTL";
        assert_eq!((reply.status.as_u16(), reply.text.as_str()), (500, text));
        let reply = bench.put("/v1/agent/check/update/web-1-ttl", r#"{"Status":"bogus"}"#).await;
        assert_eq!(
            (reply.status.as_u16(), reply.text.as_str()),
            (400, "Invalid check status: 'bogus'")
        );
    }

    #[tokio::test]
    async fn a_check_needs_the_instance_that_it_names() {
        let bench = Bench::new(me(), "n1", one_service());
        let body = r#"{"Name":"m","TTL":"1s","ServiceID":"nosuch"}"#;
        let reply = bench.put("/v1/agent/check/register", body).await;
        let text = "ServiceID \"nosuch\" does not exist";
        assert_eq!((reply.status.as_u16(), reply.text.as_str()), (500, text));
        let body = r#"{"Name":"m","TTL":"1s","service_id":"web-1"}"#;
        assert_eq!(bench.put("/v1/agent/check/register", body).await.status, 200);
        let Some(Command::RegisterCheck(registration)) = bench.last_command() else {
            panic!("{:?}", bench.last_command());
        };
        assert_eq!(registration.check.service_id, "web-1");
    }

    #[tokio::test]
    async fn the_agent_shows_the_latest_output_and_not_serf_health() {
        let bench = Bench::new(me(), "n1", one_service());
        let checks = bench.get("/v1/agent/checks").await.json();
        let checks = checks.as_object().unwrap();
        assert_eq!(checks.keys().collect::<Vec<_>>(), ["web-1-ttl"]);
        assert_eq!(checks["web-1-ttl"]["Output"], "all good");
        assert_eq!(checks["web-1-ttl"]["ModifyIndex"], 0);
    }
}
