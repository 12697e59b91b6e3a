//! `/v1/agent/service…` and `/v1/agent/health/service/…`: the instances of this node.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE, HeaderName};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use super::agent::{enable, reason};
use super::dto::answers::{AgentService, Definition, HealthCheck, ServiceHealth, checks_of};
use super::dto::register;
use super::filter::Shape;
use super::index::{Options, jitter};
use super::query::Query;
use super::reading::{Tail, done, json, passes, text_of};
use crate::catalog::model::{NODE_MAINTENANCE, SERF_HEALTH, SERVICE_MAINTENANCE, Source};
use crate::catalog::{Command, Instance, NodeEntry, Status, Topic, View};
use crate::http::body::{REGISTER_BYTES_MAX, read};
use crate::http::error::Fault;
use crate::http::stats::Gauged;
use crate::http::{Face, Reports};

const CONTENT_HASH: HeaderName = HeaderName::from_static("x-consul-contenthash");
const REASON: HeaderName = HeaderName::from_static("x-consul-reason");

/// `GET /v1/agent/services`.
pub async fn list(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let query = Query::of(&uri);
    query.refuse_tenancy()?;
    let filter = query.filter(&Shape::AGENT_SERVICE)?;
    let view = face.host.feed().view();
    let services: BTreeMap<_, _> = own(&view)
        .map(|instance| (instance.service.id.as_str(), AgentService::of(&instance.service)))
        .filter(|(_, service)| passes(filter.as_ref(), service))
        .collect();
    Ok(json(&query, &services))
}

/// `GET /v1/agent/service/:id`: with `?hash=` it waits until the instance differs from it.
pub async fn one(State(face): State<Arc<Face>>, uri: Uri, tail: Tail) -> Result<Response, Fault> {
    let id = text_of(tail);
    let query = Query::of(&uri);
    query.refuse_tenancy()?;
    let options = Options::of(&query)?;
    let deadline = Instant::now() + options.wait + jitter(options.wait);
    loop {
        let view = face.host.feed().view();
        let Some(instance) = own(&view).find(|instance| instance.service.id == id) else {
            return Err(Fault::not_found(format!("unknown service ID: {id}")));
        };
        let mut service = AgentService::of(&instance.service);
        service.content_hash = content_hash(&service);
        let is_over = Instant::now() >= deadline || face.stopping.is_cancelled();
        if query.first("hash") != Some(service.content_hash.as_str()) || is_over {
            let hash = HeaderValue::from_str(&service.content_hash).expect("it is hexadecimal");
            let mut response = json(&query, &service);
            response.headers_mut().insert(CONTENT_HASH, hash);
            return Ok(response);
        }
        let topic = Topic::Node(instance.node.key.clone());
        let _waiting = Gauged::new(&face.stats.waiting);
        tokio::select! {
            _ = face.host.feed().wait(&topic, view.index(&topic), deadline) => {}
            () = face.stopping.cancelled() => {}
        }
    }
}

/// Hashes what a client sees of an instance, so that equal hashes mean equal answers on any node
/// and after a restart (FNV-1a: nothing here has to resist an attacker).
fn content_hash(service: &AgentService<'_>) -> String {
    let text = serde_json::to_vec(service).expect("its keys are texts");
    let hash = text.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:x}")
}

/// `PUT /v1/agent/service/register`.
pub async fn register(
    State(face): State<Arc<Face>>,
    uri: Uri,
    body: Body,
) -> Result<Response, Fault> {
    let query = Query::of(&uri);
    query.refuse_tenancy()?;
    let (service, checks) = {
        let body = read(body, REGISTER_BYTES_MAX).await?;
        register::service(&body, face.script_checks)?
    };
    let replace_checks = matches!(query.first("replace-existing-checks"), Some("" | "true"));
    let check_ids = checks.iter().map(|one| one.check.id.clone()).collect();
    face.host.submit(Command::Register { service, checks, replace_checks }).await?;
    face.reports.registered(check_ids).await;
    Ok(done())
}

/// `PUT /v1/agent/service/deregister/:id`. An unknown id is no error, as in Consul 1.8.
pub async fn deregister(State(face): State<Arc<Face>>, tail: Tail) -> Result<Response, Fault> {
    let service_id = text_of(tail);
    if service_id.is_empty() {
        return Err(Fault::internal("ServiceID missing"));
    }
    face.host.submit(Command::Deregister { service_id }).await?;
    Ok(done())
}

/// `PUT /v1/agent/service/maintenance/:id?enable=`.
pub async fn maintenance(
    State(face): State<Arc<Face>>,
    uri: Uri,
    tail: Tail,
) -> Result<Response, Fault> {
    let id = text_of(tail);
    if id.is_empty() {
        return Err(Fault::bad_request("Missing service ID"));
    }
    let query = Query::of(&uri);
    let enable = enable(&query)?;
    let reason = reason(&query);
    if !own(&face.host.feed().view()).any(|instance| instance.service.id == id) {
        return Err(Fault::not_found(format!("No service registered with ID {id:?}")));
    }
    face.host.submit(Command::Maintenance { service_id: Some(id), enable, reason }).await?;
    Ok(done())
}

/// `GET /v1/agent/health/service/id/:id`: the status is also the status of the answer.
pub async fn health_by_id(
    State(face): State<Arc<Face>>,
    uri: Uri,
    headers: HeaderMap,
    tail: Tail,
) -> Result<Response, Fault> {
    let id = text_of(tail);
    let query = Query::of(&uri);
    query.refuse_tenancy()?;
    if id.is_empty() {
        return Err(Fault::internal("Bad request: Missing serviceID"));
    }
    let view = face.host.feed().view();
    let Some(instance) = own(&view).find(|instance| instance.service.id == id) else {
        let reason = format!("ServiceId {id} not found");
        // Consul's text form of this one answer is a JSON string.
        let body = if wants_text(&query, &headers) {
            json(&query, &reason)
        } else {
            json(
                &query,
                &ServiceHealth { aggregated_status: "critical", service: None, checks: None },
            )
        };
        return Ok(standing(StatusCode::NOT_FOUND, &reason, body));
    };
    let health = health_of(instance, face.reports.as_ref());
    let word = health.aggregated_status;
    let body = if wants_text(&query, &headers) { plain(word) } else { json(&query, &health) };
    Ok(standing(code_of(word), word, body))
}

/// `GET /v1/agent/health/service/name/:name`: all instances; the worst gives the status.
pub async fn health_by_name(
    State(face): State<Arc<Face>>,
    uri: Uri,
    headers: HeaderMap,
    tail: Tail,
) -> Result<Response, Fault> {
    let name = text_of(tail);
    let query = Query::of(&uri);
    query.refuse_tenancy()?;
    if name.is_empty() {
        return Err(Fault::internal("Bad request: Missing service Name"));
    }
    let view = face.host.feed().view();
    let healths: Vec<_> = own(&view)
        .filter(|instance| instance.service.name == name)
        .map(|instance| health_of(instance, face.reports.as_ref()))
        .collect();
    let worst =
        healths.iter().map(|health| health.aggregated_status).max_by_key(|word| badness(word));
    let (status, reason) = match worst {
        Some(word) => (code_of(word), word.to_owned()),
        None => (StatusCode::NOT_FOUND, format!("ServiceName {name} Not Found")),
    };
    let body = if wants_text(&query, &headers) { plain(&reason) } else { json(&query, &healths) };
    Ok(standing(status, &reason, body))
}

/// The local view of an instance: its checks and its node's, but for `serfHealth`, which others
/// decide.
fn health_of<'a>(instance: &'a Instance, reports: &dyn Reports) -> ServiceHealth<'a> {
    let mut checks: Vec<_> = checks_of(instance)
        .filter(|check| check.check_id != SERF_HEALTH)
        .map(|check| bare(check, reports))
        .collect();
    checks.sort_by_key(|check| check.check_id);
    let worst = checks.iter().map(word_of).max_by_key(|word| badness(word));
    ServiceHealth {
        aggregated_status: worst.unwrap_or("passing"),
        service: Some(AgentService::of(&instance.service)),
        checks: Some(checks),
    }
}

/// Consul fills less into these checks than into any others, but for the latest output.
fn bare<'a>(check: HealthCheck<'a>, reports: &dyn Reports) -> HealthCheck<'a> {
    HealthCheck {
        output: reports.output(check.check_id).map_or(check.output, Cow::Owned),
        service_tags: check.service_tags.filter(|tags| !tags.is_empty()),
        kind: "",
        definition: Definition::Zero,
        create_index: 0,
        modify_index: 0,
        ..check
    }
}

fn word_of(check: &HealthCheck<'_>) -> &'static str {
    let is_maintenance =
        check.check_id == NODE_MAINTENANCE || check.check_id.starts_with(SERVICE_MAINTENANCE);
    if is_maintenance { "maintenance" } else { check.status }
}

fn badness(word: &str) -> u8 {
    match word {
        "maintenance" => 3,
        word => Status::parse(word).unwrap_or_default() as u8,
    }
}

fn code_of(word: &str) -> StatusCode {
    match word {
        "passing" => StatusCode::OK,
        "warning" => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Puts a standing into status and headers.
fn standing(status: StatusCode, reason: &str, mut response: Response) -> Response {
    *response.status_mut() = status;
    // A name may hold what a header may not.
    if let Ok(reason) = HeaderValue::from_str(reason) {
        response.headers_mut().insert(REASON, reason);
    }
    response
}

fn plain(text: &str) -> Response {
    ([(CONTENT_TYPE, "text/plain")], text.to_owned()).into_response()
}

fn wants_text(query: &Query, headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.starts_with("text/plain") || query.first("format") == Some("text")
}

/// Lists this node's instances, by id, without what it lists itself as: no agent of Consul's has that.
pub fn own(view: &View) -> impl Iterator<Item = &Arc<Instance>> {
    let all = view.own().into_iter().flat_map(|entry: &Arc<NodeEntry>| entry.instances());
    all.filter(|instance| instance.service.source != Source::Agent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::model::{Check, key_of};
    use crate::crdt::Refusal;
    use crate::http::support::{Bench, me, one_service, service as web, ttl_check};
    use crate::node::SubmitError;

    fn bench() -> Bench {
        Bench::new(me(), "n1", one_service())
    }

    #[tokio::test]
    async fn a_registration_becomes_a_command_and_answers_nothing() {
        let bench = bench();
        let body = r#"{"Name":"db","Port":5432,"Check":{"TTL":"10s"}}"#;
        let path = "/v1/agent/service/register?replace-existing-checks=true";
        let reply = bench.put(path, body).await;
        assert_eq!((reply.status.as_u16(), reply.text.as_str()), (200, ""));
        assert!(!reply.headers.contains_key("content-type"));
        let Some(Command::Register { service, checks, replace_checks }) = bench.last_command()
        else {
            panic!("{:?}", bench.last_command());
        };
        assert_eq!((service.id.as_str(), service.port, replace_checks), ("db", 5432, true));
        assert_eq!(checks[0].check.id, "service:db");
        assert_eq!(*bench.host.registered.lock().unwrap(), ["service:db"]);
    }

    #[tokio::test]
    async fn a_registration_that_is_too_long_is_refused() {
        let tags = "\"x\",".repeat(REGISTER_BYTES_MAX / 4);
        let body = format!(r#"{{"Name":"db","Tags":[{}"y"]}}"#, tags);
        let reply = bench().put("/v1/agent/service/register", &body).await;
        assert_eq!(reply.status, 413);
    }

    #[tokio::test]
    async fn what_the_writer_says_reaches_the_client() {
        let bench = bench();
        let mut answers = Vec::new();
        for refusal in [
            SubmitError::Refused(Refusal("no".to_owned())),
            SubmitError::Failed("disk".to_owned()),
            SubmitError::Busy,
            SubmitError::Stopping,
        ] {
            *bench.host.refusal.lock().unwrap() = Some(refusal);
            let reply = bench.put("/v1/agent/service/deregister/web-1", "").await;
            answers.push((reply.status.as_u16(), reply.header("retry-after").to_owned()));
        }
        let expected = [(500, ""), (500, ""), (503, "1"), (503, "1")];
        assert_eq!(answers, expected.map(|(status, after)| (status, after.to_owned())));
    }

    #[tokio::test]
    async fn ids_may_hold_slashes_in_either_spelling() {
        let bench = bench();
        for path in ["jr/1", "jr%2F1"] {
            bench.put(&format!("/v1/agent/service/deregister/{path}"), "").await;
            let expected = Command::Deregister { service_id: "jr/1".to_owned() };
            assert_eq!(bench.last_command(), Some(expected));
        }
        bench.change(|rows| rows.service(&key_of(me()), &web("jr/1", "job")));
        assert_eq!(bench.get("/v1/agent/service/jr/1").await.json()["Service"], "job");
        assert_eq!(bench.get("/v1/agent/service/jr%2f1").await.json()["Service"], "job");
    }

    #[tokio::test]
    async fn maintenance_needs_an_instance() {
        let bench = bench();
        let reply = bench.put("/v1/agent/service/maintenance/web-1?enable=true", "").await;
        assert_eq!(reply.status, 200);
        let Some(Command::Maintenance { service_id, enable: true, reason }) = bench.last_command()
        else {
            panic!("{:?}", bench.last_command());
        };
        assert_eq!(service_id.as_deref(), Some("web-1"));
        assert_eq!(reason, "", "the catalog has a sentence for this");
        for (path, status, text) in [
            ("/", 400, "Missing service ID"),
            ("/web-1", 400, "Missing value for enable"),
            ("/nosuch?enable=true", 404, "No service registered with ID \"nosuch\""),
        ] {
            let reply = bench.put(&format!("/v1/agent/service/maintenance{path}"), "").await;
            assert_eq!((reply.status.as_u16(), reply.text.as_str()), (status, text));
        }
    }

    #[tokio::test]
    async fn the_status_of_an_instance_is_the_status_of_the_answer() {
        let bench = bench();
        let path = "/v1/agent/health/service/id/web-1";
        let text = async |path: &str| {
            let reply = bench.get(&format!("{path}?format=text")).await;
            assert_eq!(reply.header("content-type"), "text/plain");
            assert_eq!(reply.header("x-consul-reason"), reply.text);
            (reply.status.as_u16(), reply.text)
        };
        assert_eq!(text(path).await, (200, "passing".to_owned()));
        let key = key_of(me());
        bench.change(|rows| rows.check(&key, &ttl_check("mem", "", Status::Warning)));
        assert_eq!(text(path).await, (429, "warning".to_owned()));
        bench.change(|rows| rows.check(&key, &ttl_check("web-1-ttl", "web-1", Status::Critical)));
        assert_eq!(text(path).await, (503, "critical".to_owned()));
        let maintenance = ttl_check(NODE_MAINTENANCE, "", Status::Critical);
        bench.change(|rows| rows.check(&key, &maintenance));
        assert_eq!(text(path).await, (503, "maintenance".to_owned()));
        assert_eq!(text("/v1/agent/health/service/name/web").await.1, "maintenance");
        assert_eq!(
            text("/v1/agent/health/service/name/nosuch").await,
            (404, "ServiceName nosuch Not Found".to_owned())
        );
    }

    #[tokio::test]
    async fn an_unknown_instance_has_no_health() {
        let bench = bench();
        let reply = bench.get("/v1/agent/health/service/id/x").await;
        assert_eq!(reply.status, 404);
        assert_eq!(reply.text, r#"{"AggregatedStatus":"critical","Service":null,"Checks":null}"#);
        assert_eq!(reply.header("x-consul-reason"), "ServiceId x not found");
        assert_eq!(bench.get("/v1/agent/health/service/name/x").await.text, "[]");
        let reply = bench.get("/v1/agent/health/service/id/").await;
        assert_eq!(
            (reply.status.as_u16(), reply.text.as_str()),
            (500, "Bad request: Missing serviceID")
        );
    }

    #[tokio::test]
    async fn who_knows_the_hash_waits_for_the_next_one() {
        let bench = bench();
        let first = bench.get("/v1/agent/service/web-1").await;
        let hash = first.header("x-consul-contenthash").to_owned();
        assert_eq!(first.json()["ContentHash"], *hash);
        let other = bench.get("/v1/agent/service/web-1?hash=deadbeef&wait=60s").await;
        assert_eq!(other.text, first.text);
        let same = bench.get(&format!("/v1/agent/service/web-1?hash={hash}&wait=1ms")).await;
        assert_eq!(same.text, first.text);

        let ask = |hash: &str| {
            let bench = bench.clone();
            let path = format!("/v1/agent/service/web-1?hash={hash}&wait=60s");
            tokio::spawn(async move { bench.get(&path).await })
        };
        let waiting = ask(&hash);
        bench.until_somebody_waits().await;
        let note = Check { notes: "x".to_owned(), ..ttl_check("c", "web-1", Status::Passing) };
        bench.change(|rows| rows.check(&key_of(me()), &note));
        let mut changed = web("web-1", "web");
        changed.meta.insert("v".to_owned(), "2".to_owned());
        bench.change(|rows| rows.service(&key_of(me()), &changed));
        let reply = waiting.await.unwrap();
        assert_eq!(reply.json()["Meta"]["v"], "2");

        let waiting = ask(reply.header("x-consul-contenthash"));
        bench.until_somebody_waits().await;
        bench.change(|rows| *rows = crate::http::support::Rows::default());
        let reply = waiting.await.unwrap();
        assert_eq!(
            (reply.status.as_u16(), reply.text.as_str()),
            (404, "unknown service ID: web-1")
        );
    }
}
