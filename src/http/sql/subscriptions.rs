//! `/v1/subscriptions`: a SELECT's rows, then every change of them.

use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::stream;
use uuid::Uuid;

use super::{CHUNK_BYTES, SqlState, admit, json, parameter, read_json, refuse, unprocessable};
use crate::live::Subscription;
use crate::live::query::SubscribeError;

const QUERY_ID: HeaderName = HeaderName::from_static("corro-query-id");
const QUERY_HASH: HeaderName = HeaderName::from_static("corro-query-hash");

/// Begins or joins the live query of a statement.
pub(super) async fn post(
    State(state): State<SqlState>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let begun = async {
        let _place = admit(&state.subscriptions)?;
        let (from, skip_rows) = options(query.as_deref())?;
        let json = read_json(&headers, &body)?;
        let statement = json::statement(json).map_err(|error| unprocessable(&error))?;
        let subscribed = state.queries.subscribe(statement, from, skip_rows).await;
        subscribed.map_err(|error| refuse(status_of(&error), error))
    };
    begun.await.map_or_else(|refusal| refusal, stream_of)
}

/// Joins a live query by its id.
pub(super) async fn get(
    State(state): State<SqlState>,
    RawQuery(query): RawQuery,
    Path(id): Path<String>,
) -> Response {
    let Ok(id) = Uuid::try_parse(&id) else {
        let text = format!("Invalid URL: '{id}' is not a subscription id (a UUID)\n");
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let resumed = options(query.as_deref()).and_then(|(from, skip_rows)| {
        let resumed = state.queries.resume(id, from, skip_rows);
        resumed.map_err(|error| refuse(status_of(&error), error))
    });
    resumed.map_or_else(|refusal| refusal, stream_of)
}

/// Reads `from` and `skip_rows`.
fn options(query: Option<&str>) -> Result<(Option<u64>, bool), Response> {
    let wrong = |name: &str, text: &str| {
        let text = format!("Failed to deserialize query string: {name} '{text}'\n");
        (StatusCode::BAD_REQUEST, text).into_response()
    };
    let from = match parameter(query, "from") {
        Some(text) => Some(text.parse().map_err(|_| wrong("from", text))?),
        None => None,
    };
    let skip_rows = match parameter(query, "skip_rows") {
        None | Some("false") => false,
        Some("true" | "") => true,
        Some(other) => return Err(wrong("skip_rows", other)),
    };
    Ok((from, skip_rows))
}

/// Answers with the stream: what can be told at once in one chunk, then each thing as it happens.
fn stream_of(subscription: Subscription) -> Response {
    let id = subscription.id();
    let chunks =
        stream::unfold((subscription, false), |(mut subscription, is_broken)| async move {
            if is_broken {
                return Some((
                    Err(std::io::Error::other("this node is shutting down")),
                    (subscription, false),
                ));
            }
            let (lines, is_broken) = gather(&mut subscription).await?;
            Some((Ok(Bytes::from(lines)), (subscription, is_broken)))
        });
    let mut response = Body::from_stream(chunks).into_response();
    let headers = response.headers_mut();
    let mut put = |name: HeaderName, text: String| {
        let value = HeaderValue::from_str(&text).expect("hex digits and hyphens");
        headers.insert(name, value);
    };
    put(QUERY_ID, id.as_hyphenated().to_string());
    put(QUERY_HASH, format!("{:016x}", id.as_u64_pair().0));
    response
}

/// Waits for the next event and takes along what else can be told at once. The second part is true
/// where the stream is to be broken off after these lines, rather than ended: then the client comes
/// back and resumes.
async fn gather(subscription: &mut Subscription) -> Option<(Vec<u8>, bool)> {
    let mut lines = Vec::new();
    let mut event = Some(subscription.next().await?);
    while let Some(now) = event {
        let Some(json) = json::event(&now) else { return Some((lines, true)) };
        json::push_line(&mut lines, &json);
        if lines.len() >= CHUNK_BYTES {
            break;
        }
        event = subscription.next().now_or_never().flatten();
    }
    Some((lines, false))
}

fn status_of(error: &SubscribeError) -> StatusCode {
    match error {
        SubscribeError::Refused(_) | SubscribeError::NothingToResume => StatusCode::BAD_REQUEST,
        SubscribeError::Unknown(_) => StatusCode::NOT_FOUND,
        SubscribeError::TooMany => StatusCode::SERVICE_UNAVAILABLE,
        SubscribeError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
