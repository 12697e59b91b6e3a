//! The SQL API: transactions, queries and subscriptions, in the formats that Corrosion's clients
//! speak. What a statement means is the business of `store/` and `live/`.

mod json;
mod queries;
mod schema;
mod subscriptions;
mod transactions;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::live::Queries;
use crate::node::Handle;

/// How many requests one route works on at a time. Beyond it they are refused at once. A stream
/// counts only until its head is answered.
const REQUESTS_PER_ROUTE_MAX: usize = 128;

/// How much of a stream is gathered before it is sent, unless there is nothing more to say now.
const CHUNK_BYTES: usize = 64 * 1024;

/// What the routes need.
#[derive(Clone)]
pub struct SqlState {
    handle: Handle,
    queries: Arc<Queries>,
    transactions: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    subscriptions: Arc<Semaphore>,
}

/// Returns the routes of the SQL API.
pub fn routes(handle: Handle, queries: Arc<Queries>) -> Router {
    let permits = || Arc::new(Semaphore::new(REQUESTS_PER_ROUTE_MAX));
    let state = SqlState {
        handle,
        queries,
        transactions: permits(),
        reads: permits(),
        subscriptions: permits(),
    };
    Router::new()
        .route("/v1/transactions", post(transactions::post))
        .route("/v1/queries", post(queries::post))
        .route("/v1/subscriptions", post(subscriptions::post))
        .route("/v1/subscriptions/{id}", get(subscriptions::get))
        .route("/v1/schema", get(schema::get).post(schema::post))
        .route("/v1/migrations", post(schema::migrate))
        .with_state(state)
}

/// Takes a place among a route's requests, or answers that there is none.
fn admit(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Response> {
    Arc::clone(places).try_acquire_owned().map_err(|_| {
        (StatusCode::SERVICE_UNAVAILABLE, "max concurrency limit reached\n").into_response()
    })
}

/// Answers an error as one line of JSON. The line end matters: Corrosion's client drops the last
/// byte of an unterminated one.
fn refuse(status: StatusCode, error: impl std::fmt::Display) -> Response {
    let line = json::error_line(&error.to_string());
    (status, [("content-type", "application/json")], Bytes::from(line)).into_response()
}

/// The longest time limit that means anything, in seconds: node and readers have lower ones.
const TIMEOUT_SECONDS_MAX: u64 = 3_600;

/// Returns the seconds of a `timeout` parameter, `None` where there is none or it is 0: as long as
/// the node allows. An answer where it is not a number.
fn timeout_of(query: Option<&str>) -> Result<Option<u64>, Response> {
    let Some(text) = parameter(query, "timeout") else { return Ok(None) };
    let seconds = text.parse::<u64>();
    let seconds = seconds.map(|seconds| Some(seconds.min(TIMEOUT_SECONDS_MAX)).filter(|s| *s > 0));
    seconds.map_err(|_| {
        let text = format!("Failed to deserialize query string: timeout '{text}' is no number\n");
        (StatusCode::BAD_REQUEST, text).into_response()
    })
}

/// Finds a parameter in a query string. The values that these routes take need no decoding.
fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    query?.split('&').find_map(|pair| match pair.split_once('=') {
        Some((key, value)) => (key == name).then_some(value),
        None => (pair == name).then_some(""),
    })
}

/// Reads a body as JSON: 415 for another content type, 400 for what is not JSON.
fn read_json(headers: &axum::http::HeaderMap, body: &[u8]) -> Result<serde_json::Value, Response> {
    let kind = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = kind.split(';').next().unwrap_or("").trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let text = "Expected request with `Content-Type: application/json`\n";
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, text).into_response());
    }
    serde_json::from_slice(body).map_err(|error| {
        let text = format!("Failed to parse the request body as JSON: {error}\n");
        (StatusCode::BAD_REQUEST, text).into_response()
    })
}

/// Answers JSON that does not say what it should.
fn unprocessable(error: &str) -> Response {
    let text = format!("Failed to deserialize the JSON body into the target type: {error}\n");
    (StatusCode::UNPROCESSABLE_ENTITY, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_by_their_whole_name() {
        let query = Some("skip_rows=true&from=7&flag");
        assert_eq!(parameter(query, "from"), Some("7"));
        assert_eq!(parameter(query, "flag"), Some(""));
        assert_eq!(parameter(query, "rows"), None);
        assert_eq!(parameter(None, "from"), None);
    }

    #[test]
    fn a_timeout_that_is_no_number_is_a_bad_request() {
        assert_eq!(timeout_of(Some("timeout=5")).unwrap(), Some(5));
        assert_eq!(timeout_of(Some("timeout=0")).unwrap(), None);
        let longest = format!("timeout={}", u64::MAX);
        assert_eq!(timeout_of(Some(&longest)).unwrap(), Some(TIMEOUT_SECONDS_MAX));
        assert_eq!(timeout_of(Some("timeout=abc")).unwrap_err().status(), StatusCode::BAD_REQUEST);
    }
}
