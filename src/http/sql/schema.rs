//! `/v1/schema`: what tables there are, and changes of them for the whole cluster. `POST
//! /v1/migrations` is the same for those who speak as Corrosion's clients once did.

use std::time::Instant;

use axum::Json as JsonBody;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value as Json, json};

use super::transactions::actor;
use super::{SqlState, admit, read_json, refuse, unprocessable};
use crate::http::serve::Ends;
use crate::node::SubmitError;
use crate::store::readers::QueryError;
use crate::store::schema::{Mode, SchemaChange, SchemaRequest, Shown, Source};

pub(super) async fn get(State(state): State<SqlState>) -> Response {
    let place = match admit(&state.reads) {
        Ok(place) => place,
        Err(refusal) => return refusal,
    };
    let readers = std::sync::Arc::clone(state.handle.own_readers());
    let shown = tokio::task::spawn_blocking(move || readers.schema()).await;
    drop(place);
    match shown {
        Ok(Ok(shown)) => JsonBody(shown_json(&shown)).into_response(),
        Ok(Err(error @ QueryError::TimedOut)) => refuse(StatusCode::SERVICE_UNAVAILABLE, error),
        Ok(Err(error)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

pub(super) async fn post(
    State(state): State<SqlState>,
    ends: Option<Extension<Ends>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match work(&state, ends, &headers, &body).await {
        Ok(change) => JsonBody(change_json(&change)).into_response(),
        Err(refusal) => refusal,
    }
}

pub(super) async fn migrate(
    State(state): State<SqlState>,
    ends: Option<Extension<Ends>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let begun = Instant::now();
    match work(&state, ends, &headers, &body).await {
        Ok(_) => {
            let time = begun.elapsed().as_secs_f64();
            let results = [json!({ "rows_affected": 0, "time": time })];
            let actor = actor(state.handle.local().id);
            let body = json!({
                "results": results, "time": time, "version": null, "actor_id": actor,
            });
            JsonBody(body).into_response()
        }
        Err(refusal) => refusal,
    }
}

/// Tells whether whoever asks is on this host. A change of the schema is one for all nodes, and
/// may drop their tables.
fn is_local(ends: &Ends) -> bool {
    ends.peer.ip().to_canonical().is_loopback()
}

async fn work(
    state: &SqlState,
    ends: Option<Extension<Ends>>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<SchemaChange, Response> {
    if !ends.is_some_and(|Extension(ends)| is_local(&ends)) {
        let reason = "the schema is changed from the node's own host only, as long as there are no access tokens: run `tribune schema apply` there, against a loopback address";
        return Err(refuse(StatusCode::FORBIDDEN, reason));
    }
    let _place = admit(&state.transactions)?;
    let request = request_of(&read_json(headers, body)?).map_err(|error| unprocessable(&error))?;
    state.handle.change_schema(request).await.map_err(|error| {
        let status = match &error {
            SubmitError::Refused(_) => StatusCode::BAD_REQUEST,
            SubmitError::Busy | SubmitError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            SubmitError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        refuse(status, error)
    })
}

/// Reads a request: an array of SQL texts, or an object with `sources`, `allow_drop`, `dry_run`.
fn request_of(json: &Json) -> Result<SchemaRequest, String> {
    let flag = |name: &str| match json.get(name) {
        None | Some(Json::Null) => Ok(false),
        Some(Json::Bool(flag)) => Ok(*flag),
        Some(_) => Err(format!("{name} is true or false")),
    };
    if let Json::Object(fields) = json {
        let known = ["sources", "allow_drop", "dry_run"];
        if let Some(field) = fields.keys().find(|field| !known.contains(&field.as_str())) {
            return Err(format!("unknown field {field}; known are {}", known.join(", ")));
        }
    }
    let sources = match json {
        Json::Array(texts) => texts,
        Json::Object(fields) => fields
            .get("sources")
            .and_then(Json::as_array)
            .ok_or("sources is an array of {\"file\": name, \"sql\": text}")?,
        _ => return Err("write an array of SQL texts, or {\"sources\": [...]}".to_owned()),
    };
    let source_of = |(nth, source): (usize, &Json)| {
        let unnamed = || format!("statement {}", nth + 1);
        match source {
            Json::String(sql) => Ok(Source { file: unnamed(), sql: sql.clone() }),
            Json::Object(fields) => {
                let sql = fields.get("sql").and_then(Json::as_str);
                let sql = sql.ok_or("a source has its text as \"sql\"")?.to_owned();
                let file = fields.get("file").and_then(Json::as_str);
                Ok(Source { file: file.map_or_else(unnamed, str::to_owned), sql })
            }
            _ => Err("a source is a text, or {\"file\": name, \"sql\": text}".to_owned()),
        }
    };
    let sources: Vec<Source> =
        sources.iter().enumerate().map(source_of).collect::<Result<_, String>>()?;
    if sources.is_empty() {
        return Err("at least one source is required".to_owned());
    }
    let (allow_drop, dry_run) = (flag("allow_drop")?, flag("dry_run")?);
    Ok(SchemaRequest { sources, mode: Mode::Apply { allow_drop }, dry_run })
}

fn change_json(change: &SchemaChange) -> Json {
    let columns = |columns: &[(String, String)]| -> Json {
        let of = |(table, column): &(String, String)| json!({ "table": table, "column": column });
        columns.iter().map(of).collect()
    };
    json!({
        "tables_added": change.tables_added,
        "columns_added": columns(&change.columns_added),
        "indexes_added": change.indexes_added,
        "tables_dropped": change.tables_dropped,
        "columns_dropped": columns(&change.columns_dropped),
        "indexes_dropped": change.indexes_dropped,
    })
}

fn shown_json(shown: &Shown) -> Json {
    let tables = shown.tables.iter().map(|table| {
        let columns: Json = table
            .columns
            .iter()
            .map(|(name, definition)| json!({ "name": name, "definition": definition }))
            .collect();
        let indexes: Json =
            table.indexes.iter().map(|(name, sql)| json!({ "name": name, "sql": sql })).collect();
        json!({
            "name": table.name, "fixed": table.is_fixed, "sql": table.sql, "key": table.key,
            "columns": columns, "indexes": indexes,
        })
    });
    let asides = shown.asides.iter().map(|aside| {
        json!({
            "kind": aside.kind, "table": aside.table, "name": aside.name, "reason": aside.reason,
        })
    });
    json!({ "tables": tables.collect::<Json>(), "aside": asides.collect::<Json>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hosts_own_programs_change_the_schema() {
        let local = "192.0.2.1:8500".parse().unwrap();
        for (peer, expected) in [
            ("127.0.0.1:1", true),
            ("127.8.9.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("192.0.2.1:1", false),
            ("[::ffff:192.0.2.7]:1", false),
            ("[fe80::1]:1", false),
        ] {
            assert_eq!(is_local(&Ends { peer: peer.parse().unwrap(), local }), expected, "{peer}");
        }
    }

    #[test]
    fn a_request_is_texts_or_an_object() {
        let request = request_of(&json!(["a", "b"])).unwrap();
        assert_eq!(request.sources[1], Source { file: "statement 2".into(), sql: "b".into() });
        assert_eq!(request.mode, Mode::Apply { allow_drop: false });
        let request = request_of(&json!({
            "sources": [{ "file": "f.sql", "sql": "a" }], "allow_drop": true, "dry_run": true,
        }));
        let request = request.unwrap();
        assert_eq!(request.sources, [Source { file: "f.sql".into(), sql: "a".into() }]);
        assert_eq!((request.mode, request.dry_run), (Mode::Apply { allow_drop: true }, true));
        for wrong in [
            json!([]),
            json!({}),
            json!("a"),
            json!([1]),
            json!({ "sources": [{}] }),
            json!({ "sources": ["a"], "allow_drop": 1 }),
            json!({ "sources": ["a"], "alow_drop": true }),
        ] {
            request_of(&wrong).unwrap_err();
        }
    }
}
