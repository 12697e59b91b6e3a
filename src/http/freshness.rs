//! How fresh an answer is: what a write answers with, what a read may wait for, and how far behind
//! the node says it is. It is a layer around all routes, so any of them may carry a version.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::HeaderName;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Host;
use super::consul::query::Query;
use super::stats::{Gauged, Stats};
use crate::live::versions::WaitError;
use crate::types::Token;
use crate::types::duration;

/// What a write has come to: a version that covers it.
pub const VERSION: HeaderName = HeaderName::from_static("x-tribune-version");
/// What a read is to wait for, in place of `?wait_for=`.
pub const WAIT_FOR: HeaderName = HeaderName::from_static("x-tribune-wait-for");
/// For how many milliseconds the oldest change that this node misses has been known to exist.
pub const LAG: HeaderName = HeaderName::from_static("x-tribune-lag");

const LAST_CONTACT: HeaderName = HeaderName::from_static("x-consul-lastcontact");
const KNOWN_LEADER: HeaderName = HeaderName::from_static("x-consul-knownleader");

/// How long a request waits for its version that does not say, and at most.
const WAIT_DEFAULT: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What the layer needs.
#[derive(Clone)]
pub struct Freshness {
    pub host: Arc<dyn Host>,
    pub stats: Arc<Stats>,
    pub stopping: CancellationToken,
}

/// The layer.
pub async fn fresh(State(fresh): State<Freshness>, request: Request, next: Next) -> Response {
    let is_write = is_write(request.method(), request.uri().path());
    let is_read = request.uri().path().starts_with("/v1/") && !is_write;
    if let Err(refusal) = wait_as_asked(&fresh, request.uri(), request.headers()).await {
        return refusal;
    }
    if is_read && let Some(refusal) = too_stale(&fresh, request.uri()) {
        return refusal;
    }
    let mut response = next.run(request).await;
    if is_write && response.status().is_success() {
        tell_version(&fresh, response.headers_mut());
    }
    if is_read {
        tell_lag(&fresh, response.headers_mut());
    }
    response
}

/// Tells whether a request may write. Queries and subscriptions are posted, and write nothing.
fn is_write(method: &Method, path: &str) -> bool {
    let is_asked = path.starts_with("/v1/queries") || path.starts_with("/v1/subscriptions");
    path.starts_with("/v1/")
        && !is_asked
        && matches!(*method, Method::PUT | Method::POST | Method::DELETE)
}

/// Waits until this node holds the version that the request carries, if it carries one.
async fn wait_as_asked(fresh: &Freshness, uri: &Uri, headers: &HeaderMap) -> Result<(), Response> {
    let query = uri.query().unwrap_or_default();
    let header = headers.get(WAIT_FOR);
    // Nearly every request carries none.
    if header.is_none() && !query.contains("wait_for") {
        return Ok(());
    }
    let query = Query::of(uri);
    let text = match (query.first("wait_for"), header) {
        (Some(text), _) => text,
        (None, Some(header)) => header.to_str().unwrap_or("?"),
        (None, None) => return Ok(()),
    };
    let token: Token = text.parse().map_err(|error| {
        refuse(StatusCode::BAD_REQUEST, &json!({ "error": format!("wait_for: {error}") }))
    })?;
    let limit = limit(&query)?;
    let _waiting = Gauged::new(&fresh.stats.waiting);
    let waited = tokio::select! {
        waited = fresh.host.feed().versions().wait(token, Instant::now() + limit) => waited,
        () = fresh.stopping.cancelled() => {
            let error = "this node is shutting down";
            return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": error })));
        }
    };
    waited.map_err(|error| in_vain(token, limit, error))
}

fn limit(query: &Query) -> Result<Duration, Response> {
    let Some(text) = query.first("wait_timeout").filter(|text| !text.is_empty()) else {
        return Ok(WAIT_DEFAULT);
    };
    let seconds = text.parse::<u64>().ok().map(Duration::from_secs);
    let nanos = || duration::parse(text).ok().filter(|nanos| *nanos >= 0);
    let limit = seconds.or_else(|| nanos().map(duration::from_nanos));
    limit.map(|limit| limit.min(WAIT_MAX)).ok_or_else(|| {
        let error = format!("wait_timeout is a duration, like 5s, not '{text}'");
        refuse(StatusCode::BAD_REQUEST, &json!({ "error": error }))
    })
}

/// Answers that the version has not come: which one, how far this node is, and what that may mean.
fn in_vain(token: Token, limit: Duration, error: WaitError) -> Response {
    let (held, later) = match error {
        WaitError::Full => {
            let error = "too many requests wait for a version; try again in a second";
            return refuse(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": error }));
        }
        WaitError::TimedOut { held, later } => (held, later),
    };
    let (origin, version) = (token.origin, token.version.0);
    let text = match (held.0, later) {
        (held, Some(later)) => format!(
            "this node holds {origin} up to {held}, not yet {version}; its node goes on as {later}, so \
             what it lost with its disk comes only from a node that has it"
        ),
        (0, None) => format!("this node has heard nothing of {origin} yet"),
        (held, None) => format!("this node holds {origin} up to {held}, not yet {version}"),
    };
    let body = json!({
        "error": text,
        "origin": origin.to_string(),
        "version": version,
        "held": held.0,
        "missing": version.saturating_sub(held.0),
        "superseded_by": later.map(|later| later.to_string()),
        "waited_ms": u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
    });
    refuse(StatusCode::GATEWAY_TIMEOUT, &body)
}

/// Refuses a read that would be older than its client accepts.
fn too_stale(fresh: &Freshness, uri: &Uri) -> Option<Response> {
    if !uri.query()?.contains("max_stale") {
        return None;
    }
    let query = Query::of(uri);
    let nanos = duration::parse(query.first("max_stale").filter(|text| !text.is_empty())?).ok()?;
    let max = duration::from_nanos(nanos.max(0));
    let lag = fresh.host.standing().lag;
    (lag > max).then(|| {
        let text = format!(
            "this node is {:.1} s behind, and max_stale allows {:.1} s",
            lag.as_secs_f64(),
            max.as_secs_f64()
        );
        let mut response = (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
        tell_lag(fresh, response.headers_mut());
        response
    })
}

fn tell_version(fresh: &Freshness, headers: &mut HeaderMap) {
    let newest = fresh.host.feed().versions().newest_of(fresh.host.local().id);
    let text = newest.and_then(|token| HeaderValue::from_str(&token.to_string()).ok());
    if let Some(text) = text {
        headers.insert(VERSION, text);
    }
}

fn tell_lag(fresh: &Freshness, headers: &mut HeaderMap) {
    let standing = fresh.host.standing();
    let millis = u64::try_from(standing.lag.as_millis()).unwrap_or(u64::MAX);
    headers.insert(LAG, HeaderValue::from(millis));
    // As a server of Consul's says that it has not heard of its leader.
    if millis > 0 && headers.contains_key(LAST_CONTACT) {
        headers.insert(LAST_CONTACT, HeaderValue::from(millis));
    }
    if standing.is_cut_off && headers.contains_key(KNOWN_LEADER) {
        headers.insert(KNOWN_LEADER, HeaderValue::from_static("false"));
    }
}

fn refuse(status: StatusCode, body: &serde_json::Value) -> Response {
    let mut line = body.to_string();
    line.push('\n');
    (status, [("content-type", "application/json")], line).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::support::{Bench, me, one_service};
    use crate::types::{Epoch, Origin, Scope, Version};

    fn bench() -> Bench {
        let bench = Bench::new(me(), "n1", one_service());
        bench.host.feed.versions().restart([(origin(), Version(5))]);
        bench
    }

    fn origin() -> Origin {
        Origin { scope: Scope(0), node: me(), epoch: Epoch(3) }
    }

    fn read(version: u64) -> String {
        format!("/v1/catalog/services?wait_for={}@{version}&wait_timeout=20ms", origin())
    }

    #[tokio::test]
    async fn a_write_answers_with_a_version_and_a_read_that_carries_it_is_answered() {
        let bench = bench();
        let written = bench.put("/v1/agent/service/deregister/web-1", "").await;
        let token = written.header("x-tribune-version").to_owned();
        assert_eq!(token, format!("{}@5", origin()));
        assert_eq!(bench.get(&read(5)).await.status, 200);
        assert_eq!(bench.get("/v1/catalog/services").await.header("x-tribune-lag"), "0");
    }

    #[tokio::test]
    async fn a_version_that_does_not_come_is_named_with_how_far_the_node_is() {
        let bench = bench();
        let reply = bench.get(&read(8)).await;
        assert_eq!(reply.status, 504);
        let json = reply.json();
        assert_eq!((&json["held"], &json["missing"]), (&5.into(), &3.into()));
        assert_eq!(json["origin"], origin().to_string());
        assert!(json["superseded_by"].is_null());
        let later = Origin { epoch: Epoch(4), ..origin() };
        bench.host.feed.versions().reach(&[(later, Version(1))]);
        assert_eq!(bench.get(&read(8)).await.json()["superseded_by"], later.to_string());
        for wrong in ["wait_for=7", "wait_for=&x", "wait_for=%00"] {
            let reply = bench.get(&format!("/v1/catalog/services?{wrong}")).await;
            assert_eq!(reply.status, 400, "{wrong}");
        }
        let reply = bench.get(&format!("{}x", read(8))).await;
        assert_eq!(reply.status, 400, "{}", reply.text);
    }

    #[tokio::test]
    async fn a_read_waits_until_its_version_is_there() {
        let bench = Arc::new(bench());
        let reader = Arc::clone(&bench);
        let reading = tokio::spawn(async move {
            let path = format!("/v1/catalog/services?wait_for={}@6", origin());
            reader.get(&path).await.status.as_u16()
        });
        while bench.host.feed.versions().waiting() == 0 {
            tokio::task::yield_now().await;
        }
        bench.host.feed.versions().reach(&[(origin(), Version(6))]);
        assert_eq!(reading.await.unwrap(), 200);
    }

    #[tokio::test]
    async fn a_node_that_is_behind_says_so_and_refuses_who_wants_it_fresher() {
        let bench = bench();
        bench.host.standing.lock().unwrap().lag = Duration::from_millis(2_500);
        bench.host.standing.lock().unwrap().is_cut_off = true;
        let reply = bench.get("/v1/catalog/services").await;
        assert_eq!(reply.header("x-tribune-lag"), "2500");
        assert_eq!(reply.header("x-consul-lastcontact"), "2500");
        assert_eq!(reply.header("x-consul-knownleader"), "false");
        assert_eq!(bench.get("/v1/catalog/services?stale&max_stale=3s").await.status, 200);
        let reply = bench.get("/v1/catalog/services?stale&max_stale=2s").await;
        assert_eq!(reply.status, 503);
        assert_eq!(reply.text, "this node is 2.5 s behind, and max_stale allows 2.0 s");
    }
}
