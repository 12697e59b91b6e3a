//! `/v1/health/…`: instances with the checks that speak for them, and checks alone.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;

use super::catalog::named;
use super::dto::answers::{HealthCheck, ServiceEntry};
use super::filter::Shape;
use super::reading::{Asked, Tail};
use super::ready::OfService;
use crate::catalog::model::lower;
use crate::catalog::{NodeEntry, NodeKey, Status, Topic};
use crate::http::Face;
use crate::http::error::Fault;

/// `GET /v1/health/service/:service`. `?passing` keeps an instance only if every check that
/// speaks for it passes.
pub async fn service(
    State(face): State<Arc<Face>>,
    uri: Uri,
    headers: HeaderMap,
    tail: Tail,
) -> Result<Response, Fault> {
    let asked = Asked::of(&uri, &Shape::SERVICE_ENTRY)?;
    let name = named(tail, "Missing service name")?;
    let Some(only_passing) = asked.query.boolean("passing") else {
        return Err(Fault::bad_request("Invalid value for ?passing"));
    };
    let topic = Topic::Health(lower(&name).into());
    let reading = asked.read(&face, |_| topic.clone()).await?;
    let entries = || -> Vec<_> {
        let instances = reading.instances(&name).into_iter();
        instances
            .filter(|instance| !only_passing || instance.status == Status::Passing)
            .map(|instance| ServiceEntry::of(instance))
            .filter(|entry| reading.keeps(entry))
            .collect()
    };
    match reading.view.service(&name).filter(|_| reading.is_common()) {
        Some(entry) => {
            let kept: Arc<OfService> = entry.memo.get_or_default();
            let slot = if only_passing { &kept.health_passing } else { &kept.health };
            Ok(reading.answer_kept(&slot.get(entries), &headers))
        }
        None => Ok(reading.answer(&entries())),
    }
}

/// `GET /v1/health/node/:node`: a node's own checks and those of its instances.
pub async fn node(State(face): State<Arc<Face>>, uri: Uri, tail: Tail) -> Result<Response, Fault> {
    let asked = Asked::of(&uri, &Shape::CHECK)?;
    let name = named(tail, "Missing node name")?;
    let reading = asked
        .read(&face, |view| match view.node(&name) {
            Some(entry) => Topic::NodeChecks(NodeKey::clone(&entry.info.key)),
            None => Topic::Nodes,
        })
        .await?;
    let mut checks = reading.node(&name).map_or_else(Vec::new, |entry| checks_of(entry));
    checks.retain(|check| reading.keeps(check));
    Ok(reading.answer(&checks))
}

/// `GET /v1/health/checks/:service`: the checks of a service's instances, not of their nodes.
pub async fn checks(
    State(face): State<Arc<Face>>,
    uri: Uri,
    tail: Tail,
) -> Result<Response, Fault> {
    let asked = Asked::of(&uri, &Shape::CHECK)?;
    let name = named(tail, "Missing service name")?;
    let topic = Topic::ServiceChecks(lower(&name).into());
    let reading = asked.read(&face, |_| topic.clone()).await?;
    let mut checks = Vec::new();
    let instances = reading.instances(&name);
    // Instances of one node stand together; its checks are sorted among themselves.
    for of_node in instances.chunk_by(|one, next| one.node.key == next.node.key) {
        let mut some: Vec<_> = of_node
            .iter()
            .flat_map(|instance| {
                let node = instance.node.node.name.as_str();
                instance
                    .checks
                    .iter()
                    .map(move |entry| HealthCheck::of(node, entry, Some(&instance.service)))
            })
            .collect();
        sort(&mut some);
        some.retain(|check| reading.keeps(check));
        checks.append(&mut some);
    }
    Ok(reading.answer(&checks))
}

/// `GET /v1/health/state/:state`: `any`, or the checks in one state. A state that is none has no
/// checks.
pub async fn state(State(face): State<Arc<Face>>, uri: Uri, tail: Tail) -> Result<Response, Fault> {
    let asked = Asked::of(&uri, &Shape::CHECK)?;
    let state = named(tail, "Missing check state")?;
    let reading = asked.read(&face, |_| Topic::Checks).await?;
    let wants =
        |check: &HealthCheck<'_>| (state == "any" || check.status == state) && reading.keeps(check);
    let mut checks = Vec::new();
    for entry in reading.nodes() {
        checks.extend(checks_of(entry).into_iter().filter(wants));
    }
    Ok(reading.answer(&checks))
}

/// Lists all checks of a node and its instances, by id.
fn checks_of(entry: &NodeEntry) -> Vec<HealthCheck<'_>> {
    let node = entry.info.node.name.as_str();
    let own = entry.checks.iter().map(|check| HealthCheck::of(node, check, None));
    let of_instances = entry.instances().flat_map(|instance| {
        let service = Some(&instance.service);
        instance.checks.iter().map(move |check| HealthCheck::of(node, check, service))
    });
    let mut checks: Vec<_> = own.chain(of_instances).collect();
    sort(&mut checks);
    checks
}

fn sort(checks: &mut [HealthCheck<'_>]) {
    checks.sort_by(|one, other| folded_id(one).cmp(folded_id(other)));
}

fn folded_id<'a>(check: &HealthCheck<'a>) -> impl Iterator<Item = u8> + use<'a> {
    check.check_id.bytes().map(|byte| byte.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::model::key_of;
    use crate::http::support::{Bench, me, one_service, ttl_check};

    #[tokio::test]
    async fn passing_asks_every_check_that_speaks_for_an_instance() {
        let bench = Bench::new(me(), "n1", one_service());
        let count = async |query: &str| {
            let reply = bench.get(&format!("/v1/health/service/web?{query}")).await;
            reply.json().as_array().unwrap().len()
        };
        assert_eq!((count("").await, count("passing").await), (1, 1));
        bench.change(|rows| rows.check(&key_of(me()), &ttl_check("mem", "", Status::Warning)));
        assert_eq!(
            (count("").await, count("passing=true").await, count("passing=0").await),
            (1, 0, 1)
        );
        let reply = bench.get("/v1/health/service/web?passing=maybe").await;
        assert_eq!(
            (reply.status.as_u16(), reply.text.as_str()),
            (400, "Invalid value for ?passing")
        );
    }

    #[tokio::test]
    async fn a_check_that_changes_wakes_who_watches_its_service() {
        let bench = Bench::new(me(), "n1", one_service());
        let index = bench.get("/v1/health/service/web").await.index();
        let waiting = {
            let bench = bench.clone();
            let path = format!("/v1/health/service/Web?index={index}&wait=60s&passing");
            tokio::spawn(async move { bench.get(&path).await })
        };
        bench.until_somebody_waits().await;
        let critical = ttl_check("web-1-ttl", "web-1", Status::Critical);
        bench.change(|rows| rows.check(&key_of(me()), &critical));
        assert_eq!(waiting.await.unwrap().text, "[]");
    }

    #[tokio::test]
    async fn checks_are_listed_by_node_service_and_state() {
        let bench = Bench::new(me(), "n1", one_service());
        bench.change(|rows| rows.check(&key_of(me()), &ttl_check("a-mem", "", Status::Critical)));
        let ids = async |path: &str| {
            let reply = bench.get(path).await;
            assert!(reply.index() >= 1);
            let all = reply.json();
            let ids = all.as_array().unwrap().iter().map(|check| check["CheckID"].to_string());
            ids.collect::<Vec<_>>().join(" ")
        };
        let all = r#""a-mem" "serfHealth" "web-1-ttl""#;
        assert_eq!(ids("/v1/health/node/N1").await, all);
        assert_eq!(ids("/v1/health/state/any").await, all);
        assert_eq!(ids("/v1/health/state/critical").await, r#""a-mem""#);
        assert_eq!(ids("/v1/health/state/nonsense").await, "");
        assert_eq!(ids("/v1/health/checks/web").await, r#""web-1-ttl""#);
        assert_eq!(ids("/v1/health/node/nosuch").await, "");
        assert_eq!(ids("/v1/health/connect/web").await, "");
        assert_eq!(bench.get("/v1/health/state/").await.text, "Missing check state");
    }
}
