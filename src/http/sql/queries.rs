//! `POST /v1/queries`: one SELECT, streamed row by row.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::json;
use tokio::sync::mpsc;

use super::{CHUNK_BYTES, SqlState, admit, json, read_json, refuse, timeout_of, unprocessable};
use crate::store::readers::{QueryError, QueryEvent};
use crate::store::{Readers, Statement};

/// How many chunks may wait for a slow client. Then the query waits, and runs out of time.
const CHUNKS_AHEAD: usize = 4;

/// How long a client may leave a full chunk unread. A query holds one of few connections, which
/// must not wait for somebody who does not read.
const STALL_MAX: Duration = Duration::from_secs(2);

/// How long rows are gathered before they are sent.
const GATHER_FOR: Duration = Duration::from_millis(10);

/// What the thread that runs the query tells the one that answers.
enum Told {
    Lines(Bytes),
    /// The last rows, and that they are the last.
    End(Bytes),
    Failed(QueryError),
}

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
    let _place = admit(&state.reads)?;
    let timeout = timeout_of(query)?;
    let statement = json::statement(read_json(headers, body)?).map_err(|e| unprocessable(&e))?;
    let deadline = timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let readers = Arc::clone(state.handle.readers());
    let (tell, mut told) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || run(&readers, &statement, deadline, &tell));
    match told.recv().await {
        Some(Told::Lines(first)) => Ok(Body::from_stream(lines(first, told)).into_response()),
        Some(Told::End(all)) => Ok(Body::from(all).into_response()),
        Some(Told::Failed(error)) => Err(refuse(status_of(&error), error)),
        None => Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "the query was interrupted")),
    }
}

/// Runs the query and tells its rows in chunks, the columns at once. A client who went away ends it.
fn run(
    readers: &Readers,
    statement: &Statement,
    deadline: Option<Instant>,
    tell: &mpsc::Sender<Told>,
) {
    let begun = Instant::now();
    let mut lines = Vec::new();
    let mut row_number: u64 = 0;
    let mut sent_at = begun;
    let result = readers.query(statement, deadline, &mut |event| {
        let is_head = match event {
            QueryEvent::Columns(names) => {
                json::push_line(&mut lines, &json!({ "columns": names }));
                true
            }
            QueryEvent::Row(row) => {
                row_number += 1;
                json::push_line(&mut lines, &json!({ "row": [row_number, json::values(&row)] }));
                false
            }
        };
        if !is_head && lines.len() < CHUNK_BYTES && sent_at.elapsed() < GATHER_FOR {
            return ControlFlow::Continue(());
        }
        sent_at = Instant::now();
        let chunk = Bytes::from(std::mem::take(&mut lines));
        if send(tell, Told::Lines(chunk)) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    let last = match result {
        // The client went away or was too slow; nobody reads an end.
        Ok(end) if end.is_stopped => return,
        Ok(_) => {
            let time = begun.elapsed().as_secs_f64();
            json::push_line(&mut lines, &json!({ "eoq": { "time": time } }));
            Told::End(Bytes::from(lines))
        }
        Err(error) => {
            if !lines.is_empty() {
                send(tell, Told::Lines(Bytes::from(lines)));
            }
            Told::Failed(error)
        }
    };
    send(tell, last);
}

/// Waits until the client has room for this, but not for long. Tells whether it was taken.
fn send(tell: &mpsc::Sender<Told>, told: Told) -> bool {
    let sending = tokio::time::timeout(STALL_MAX, tell.send(told));
    tokio::runtime::Handle::current().block_on(sending).is_ok_and(|sent| sent.is_ok())
}

/// Where a stream is.
enum Place {
    First(Bytes),
    Middle,
    End,
}

/// Goes on after the first chunk; an error now is the last line, since the status is out. Where
/// the query was given up because the client did not read, the stream breaks off: what was told
/// must not pass for all there is.
fn lines(
    first: Bytes,
    told: mpsc::Receiver<Told>,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> {
    stream::unfold((Place::First(first), told), |(place, mut told)| async move {
        let (chunk, next) = match place {
            Place::First(first) => (Ok(first), Place::Middle),
            Place::Middle => match told.recv().await {
                Some(Told::Lines(lines)) => (Ok(lines), Place::Middle),
                Some(Told::End(lines)) => (Ok(lines), Place::End),
                Some(Told::Failed(error)) => {
                    (Ok(Bytes::from(json::error_line(&error.to_string()))), Place::End)
                }
                None => (Err(std::io::Error::other("the client read too slowly")), Place::End),
            },
            Place::End => return None,
        };
        Some((chunk, (next, told)))
    })
}

fn status_of(error: &QueryError) -> StatusCode {
    match error {
        QueryError::Prepare(_) | QueryError::Forbidden(_) => StatusCode::BAD_REQUEST,
        QueryError::Bind(_)
        | QueryError::Run(_)
        | QueryError::TimedOut
        | QueryError::Yielded
        | QueryError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
