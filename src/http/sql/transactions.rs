//! `POST /v1/transactions`: statements in one transaction, all or none.

use std::time::{Duration, Instant};

use axum::Json as JsonBody;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value as Json, json};

use super::{SqlState, admit, json, parameter, read_json, timeout_of, unprocessable};
use crate::node::{SubmitError, TransactError};
use crate::store::{Outcome, Transacted};
use crate::types::NodeId;

pub(super) async fn post(
    State(state): State<SqlState>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    work(&state, query.as_deref(), &headers, &body).await.unwrap_or_else(|refusal| refusal)
}

async fn work(
    state: &SqlState,
    query: Option<&str>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, Response> {
    let _place = admit(&state.transactions)?;
    let timeout = timeout_of(query)?;
    let statements = json::statements(read_json(headers, body)?).map_err(|e| unprocessable(&e))?;
    let me = state.handle.local().id;
    if statements.is_empty() {
        let text = "at least 1 statement is required";
        return Err(failed(StatusCode::BAD_REQUEST, text, me));
    }
    let begun = Instant::now();
    let deadline = timeout.map(|seconds| begun + Duration::from_secs(seconds));
    let done = if is_long(query)? {
        state.handle.transact_long(statements, deadline).await
    } else {
        state.handle.transact(statements, deadline).await
    };
    match done {
        Ok(done) => {
            let mut answer = answer(&done, begun.elapsed(), me);
            // An extension: what a read on any node can wait for.
            let newest = state.handle.feed().versions().newest_of(me);
            answer["token"] = json!(newest.map(|token| token.to_string()));
            Ok(JsonBody(answer).into_response())
        }
        Err(error) => Err(failed(status_of(&error), &error.to_string(), me)),
    }
}

/// Tells whether the client wants others to wait for its transaction.
fn is_long(query: Option<&str>) -> Result<bool, Response> {
    match parameter(query, "long") {
        None | Some("false") => Ok(false),
        Some("" | "true") => Ok(true),
        Some(other) => {
            let text = format!(
                "Failed to deserialize query string: long is true or false, not '{other}'\n"
            );
            Err((StatusCode::BAD_REQUEST, text).into_response())
        }
    }
}

fn answer(done: &Transacted, took: Duration, me: NodeId) -> Json {
    let results: Vec<Json> = done.outcomes.iter().map(result).collect();
    json!({
        "results": results,
        "time": took.as_secs_f64(),
        "version": done.version.map(|version| version.0),
        "actor_id": actor(me),
    })
}

/// Returns one statement's result; the rows of a `RETURNING` are an extension.
fn result(outcome: &Outcome) -> Json {
    let mut result = json!({
        "rows_affected": outcome.rows_affected,
        "time": outcome.took.as_secs_f64(),
    });
    if let Some((columns, rows)) = &outcome.returned {
        result["columns"] = json!(columns);
        result["rows"] = Json::Array(rows.iter().map(|row| json::values(row)).collect());
    }
    result
}

/// Answers an error: always one result, whichever statement was at fault.
fn failed(status: StatusCode, error: &str, me: NodeId) -> Response {
    let body = json!({
        "results": [{ "error": error }],
        "time": 0.0,
        "version": null,
        "actor_id": actor(me),
    });
    (status, JsonBody(body)).into_response()
}

fn status_of(error: &TransactError) -> StatusCode {
    match error {
        TransactError::Yielded | TransactError::Node(SubmitError::Busy | SubmitError::Stopping) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        TransactError::Statement { .. }
        | TransactError::TimedOut
        | TransactError::Node(SubmitError::Refused(_) | SubmitError::Failed(_)) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// Returns a node's id as Corrosion's clients know it: 32 hex digits.
pub(super) fn actor(id: NodeId) -> String {
    id.to_string().replace('-', "")
}
