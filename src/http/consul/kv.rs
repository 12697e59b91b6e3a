//! `/v1/kv/…` and what of `/v1/session/…` has an answer: keys and values, written by any node.
//!
//! Concurrent writes of one key merge, and the last one stays. What only one of several writers may
//! win (`cas`, `acquire`, `release`, sessions) needs a consensus that is not here: it is refused,
//! rather than granted to two.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::query::{Datacenter, Query};
use super::reading::{Asked, Reading, Tail, json, text_of};
use crate::catalog::keys::KeyEntry;
use crate::catalog::{CatalogEdit, Command, Topic};
use crate::http::Face;
use crate::http::body::read;
use crate::http::error::Fault;

/// The longest value: Consul's `kv_max_value_size`.
pub const VALUE_BYTES_MAX: usize = 512 * 1024;

/// So many keys are removed in one transaction: while it runs, nothing else is written.
const KEYS_AT_ONCE: usize = 10_000;

/// Why a write that only one of several writers may win is refused.
pub const NO_CONSENSUS: &str = "need a consensus that Tribune does not have: two nodes could both grant \
                            it. Keep locks and compare-and-set in a store with one, such as the \
                            Consul servers that you have";

/// A key as the API shows it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Pair<'a> {
    /// Nobody ever holds a lock here.
    lock_index: u64,
    key: &'a str,
    flags: u64,
    /// In base64; `null` where it is empty.
    value: Option<String>,
    create_index: u64,
    modify_index: u64,
}

impl<'a> Pair<'a> {
    pub fn of(key: &'a str, entry: &KeyEntry) -> Self {
        Self {
            lock_index: 0,
            key,
            flags: entry.flags,
            value: Some(&entry.value).filter(|value| !value.is_empty()).map(|v| STANDARD.encode(v)),
            create_index: entry.create_index,
            modify_index: entry.modify_index,
        }
    }

    /// Returns a key that is not there.
    pub fn missing(key: &'a str) -> Self {
        Self { lock_index: 0, key, flags: 0, value: None, create_index: 0, modify_index: 0 }
    }

    /// Returns the same without its value.
    pub fn without_value(self) -> Self {
        Self { value: None, ..self }
    }
}

/// `GET /v1/kv/:key`, of one key or with `?recurse` and `?keys` of all that begin so.
pub async fn get(State(face): State<Arc<Face>>, uri: Uri, tail: Tail) -> Result<Response, Fault> {
    let key = text_of(tail);
    let asked = Asked::unfiltered(&uri)?;
    let (keys_only, recurses) = (asked.query.has("keys"), asked.query.has("recurse"));
    if keys_only || recurses {
        let reading = asked.read(&face, |_| Topic::KeysUnder(key.as_str().into())).await?;
        return Ok(if keys_only { names(&reading, &key) } else { pairs(&reading, &key) });
    }
    let key = named(key)?;
    let reading = asked.read(&face, |_| Topic::Key(key.as_str().into())).await?;
    let Some(entry) = reading.view.keys().get(&key) else { return Ok(reading.miss()) };
    if reading.query.has("raw") {
        return Ok(raw(&reading, entry));
    }
    Ok(reading.answer(&[Pair::of(&key, entry)]))
}

fn pairs(reading: &Reading, prefix: &str) -> Response {
    let under = reading.view.keys().under(prefix);
    let pairs: Vec<Pair> = under.map(|(key, entry)| Pair::of(key, entry)).collect();
    if pairs.is_empty() { reading.miss() } else { reading.answer(&pairs) }
}

/// The names alone. With a separator each ends behind the first one that follows the prefix, and
/// those that are the same then are named once.
fn names(reading: &Reading, prefix: &str) -> Response {
    let separator = reading.query.first("separator").filter(|separator| !separator.is_empty());
    let cut = |key: &'_ Arc<str>| -> String {
        let end = separator.and_then(|separator| {
            key[prefix.len()..].find(separator).map(|at| prefix.len() + at + separator.len())
        });
        key[..end.unwrap_or(key.len())].to_owned()
    };
    let names: BTreeSet<String> =
        reading.view.keys().under(prefix).map(|(key, _)| cut(key)).collect();
    if names.is_empty() && !prefix.is_empty() { reading.miss() } else { reading.answer(&names) }
}

/// The value as it is. A browser must not run what somebody stored.
fn raw(reading: &Reading, entry: &KeyEntry) -> Response {
    let mut response = entry.value.clone().into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    reading.head(headers);
    response
}

/// `PUT /v1/kv/:key`, with the value as its body.
pub async fn put(
    State(face): State<Arc<Face>>,
    uri: Uri,
    tail: Tail,
    body: Body,
) -> Result<Response, Fault> {
    let query = accept(&face, &uri, &["cas", "acquire", "release"])?;
    let key = named(text_of(tail))?;
    let flags = match query.first("flags") {
        None | Some("") => 0,
        Some(text) => parse_uint(text)?,
    };
    let value = read(body, VALUE_BYTES_MAX).await?.to_vec();
    let edits = vec![CatalogEdit::PutKey { key, value, flags }];
    face.host.submit(Command::Edit(edits)).await?;
    Ok(json(&query, &true))
}

/// `DELETE /v1/kv/:key`, of one key or with `?recurse` of all that begin so.
pub async fn delete(
    State(face): State<Arc<Face>>,
    uri: Uri,
    tail: Tail,
) -> Result<Response, Fault> {
    let query = accept(&face, &uri, &["cas"])?;
    let key = text_of(tail);
    let keys: Vec<String> = if query.has("recurse") {
        let view = face.host.feed().view();
        view.keys().under(&key).map(|(key, _)| key.to_string()).collect()
    } else {
        vec![named(key)?]
    };
    let edits: Vec<_> = keys.into_iter().map(|key| CatalogEdit::RemoveKey { key }).collect();
    for some in edits.chunks(KEYS_AT_ONCE) {
        face.host.submit(Command::Edit(some.to_vec())).await?;
    }
    Ok(json(&query, &true))
}

/// Reads what a write asks, and refuses what needs a consensus.
fn accept(face: &Face, uri: &Uri, refused: &[&str]) -> Result<Query, Fault> {
    let query = Query::of(uri);
    query.refuse_tenancy()?;
    Datacenter::of(&query, face.host.local(), &face.host.feed().view())
        .map_err(|fault| Fault::internal(fault.text))?;
    match refused.iter().find(|name| query.has(name)) {
        Some(name) => Err(Fault::not_here(format!("Writes with ?{name} {NO_CONSENSUS}"))),
        None => Ok(query),
    }
}

fn named(key: String) -> Result<String, Fault> {
    if key.is_empty() { Err(Fault::bad_request("Missing key name")) } else { Ok(key) }
}

/// Reads a number of 64 bits, with the words of Consul where it is none.
pub fn parse_uint(text: &str) -> Result<u64, Fault> {
    let why = match text.parse::<u64>() {
        Ok(number) if text.bytes().all(|byte| byte.is_ascii_digit()) => return Ok(number),
        Err(error) if *error.kind() == std::num::IntErrorKind::PosOverflow => "value out of range",
        Ok(_) | Err(_) => "invalid syntax",
    };
    Err(Fault::internal(format!("strconv.ParseUint: parsing {text:?}: {why}")))
}

/// `GET /v1/session/list` and `GET /v1/session/node/:node`: nobody holds one.
pub async fn no_sessions(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let asked = Asked::unfiltered(&uri)?;
    // No session ever changes: who waits for one waits until the wait is over.
    let reading = asked.read(&face, |_| Topic::Key("".into())).await?;
    Ok(reading.answer(&[(); 0]))
}

/// All other paths below `/v1/session`.
pub async fn session() -> Fault {
    Fault::not_here(format!("Sessions {NO_CONSENSUS}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::support::{Bench, me, one_service};

    fn bench() -> Bench {
        let bench = Bench::new(me(), "n1", one_service());
        bench.change(|rows| {
            rows.key("cfg/web/port", b"8080", 42);
            rows.key("cfg/web/name", b"web", 0);
            rows.key("cfg/db", b"", u64::MAX);
            rows.key("a b", &[0xff, 0], 0);
        });
        bench
    }

    #[tokio::test]
    async fn a_key_is_shown_as_consul_shows_it() {
        let bench = bench();
        let reply = bench.get("/v1/kv/cfg/web/port").await;
        assert_eq!(
            reply.text,
            r#"[{"LockIndex":0,"Key":"cfg/web/port","Flags":42,"Value":"ODA4MA==","CreateIndex":1002,"ModifyIndex":1002}]"#
        );
        assert_eq!((reply.index(), reply.header("x-consul-knownleader")), (1002, "true"));
        assert_eq!(reply.header("x-consul-effective-consistency"), "");
        let empty = bench.get("/v1/kv/cfg/db").await.json();
        assert_eq!((&empty[0]["Value"], empty[0]["Flags"].as_u64()), (&().into(), Some(u64::MAX)));
        let reply = bench.get("/v1/kv/cfg/web/port?raw").await;
        assert_eq!((reply.text.as_str(), reply.header("content-type")), ("8080", "text/plain"));
        assert_eq!(reply.header("content-security-policy"), "sandbox");
        assert_eq!(bench.get("/v1/kv/a%20b").await.json()[0]["Value"], "/wA=");
    }

    #[tokio::test]
    async fn a_miss_says_nothing_but_has_an_index() {
        for path in ["nosuch", "nosuch?recurse", "nosuch?keys", "cfg/web/", "CFG/web/port?raw"] {
            let reply = bench().get(&format!("/v1/kv/{path}")).await;
            assert_eq!((reply.status.as_u16(), reply.text.as_str()), (404, ""), "{path}");
            assert_eq!(reply.index(), 1, "{path}");
        }
        assert_eq!(bench().get("/v1/kv/").await.text, "Missing key name");
        let none = Bench::new(me(), "n1", one_service()).get("/v1/kv/?keys").await;
        assert_eq!((none.status.as_u16(), none.text.as_str()), (200, "[]"));
    }

    #[tokio::test]
    async fn many_keys_are_listed_by_their_prefix() {
        let bench = bench();
        for (path, names) in [
            ("?keys", r#"["a b","cfg/db","cfg/web/name","cfg/web/port"]"#),
            ("?keys&separator=/", r#"["a b","cfg/"]"#),
            ("cfg?keys&separator=/", r#"["cfg/"]"#),
            ("cfg/?keys&separator=/", r#"["cfg/db","cfg/web/"]"#),
            ("cfg/w?keys&separator=", r#"["cfg/web/name","cfg/web/port"]"#),
        ] {
            assert_eq!(bench.get(&format!("/v1/kv/{path}")).await.text, names, "{path}");
        }
        for path in ["cfg/?recurse", "cfg?recurse=false", "cfg/?recurse&raw"] {
            let pairs = bench.get(&format!("/v1/kv/{path}")).await.json();
            let keys: Vec<_> = pairs.as_array().unwrap().iter().map(|pair| &pair["Key"]).collect();
            assert_eq!(keys, ["cfg/db", "cfg/web/name", "cfg/web/port"], "{path}");
        }
    }

    #[tokio::test]
    async fn writes_become_edits() {
        let bench = bench();
        let reply = bench.put("/v1/kv/x%20y?flags=18446744073709551615", "v").await;
        assert_eq!((reply.status.as_u16(), reply.text.as_str()), (200, "true"));
        let (key, value) = ("x y".to_owned(), b"v".to_vec());
        let edit = CatalogEdit::PutKey { key, value, flags: u64::MAX };
        assert_eq!(bench.last_command(), Some(Command::Edit(vec![edit])));
        assert_eq!(bench.ask("DELETE", "/v1/kv/cfg/?recurse", "").await.text, "true");
        let removed = ["cfg/db", "cfg/web/name", "cfg/web/port"]
            .map(|key| CatalogEdit::RemoveKey { key: key.to_owned() });
        assert_eq!(bench.last_command(), Some(Command::Edit(removed.to_vec())));
        let commands = bench.host.commands.lock().unwrap().len();
        assert_eq!(bench.ask("DELETE", "/v1/kv/nosuch?recurse", "").await.text, "true");
        assert_eq!(bench.host.commands.lock().unwrap().len(), commands);
    }

    #[tokio::test]
    async fn what_cannot_be_done_is_refused_and_changes_nothing() {
        let bench = bench();
        for (method, path, status, text) in [
            ("PUT", "", 400, "Missing key name"),
            ("DELETE", "", 400, "Missing key name"),
            ("PUT", "x?flags=-1", 500, "strconv.ParseUint: parsing \"-1\": invalid syntax"),
            ("PUT", "x?flags=18446744073709551616", 500, "value out of range"),
            ("PUT", "x?cas=0", 501, "Writes with ?cas need a consensus"),
            ("PUT", "x?acquire=s", 501, "Writes with ?acquire need a consensus"),
            ("PUT", "x?release=s", 501, "Writes with ?release need a consensus"),
            ("DELETE", "x?cas=1", 501, "Writes with ?cas need a consensus"),
            ("PUT", "x?dc=nope", 500, "No path to datacenter"),
            ("PUT", "x?ns=n", 400, "Namespaces"),
            ("POST", "x", 405, "method POST not allowed"),
        ] {
            let reply = bench.ask(method, &format!("/v1/kv/{path}"), "v").await;
            assert_eq!(reply.status, status, "{method} {path}");
            assert!(reply.text.contains(text), "{method} {path}: {}", reply.text);
        }
        let long = "x".repeat(VALUE_BYTES_MAX + 1);
        assert_eq!(bench.put("/v1/kv/x", &long).await.status, 413);
        assert!(bench.last_command().is_none());
        assert_eq!(bench.put("/v1/kv/x", &long[1..]).await.status, 200);
        let allow = bench.ask("OPTIONS", "/v1/kv/x", "").await;
        assert_eq!(allow.header("allow"), "OPTIONS,GET,PUT,DELETE");
    }

    #[tokio::test]
    async fn a_blocking_read_of_a_key_wakes_with_it_alone() {
        let bench = bench();
        let asking = bench.clone();
        let waiting =
            tokio::spawn(
                async move { asking.get("/v1/kv/cfg/web/port?index=1002&wait=60s").await },
            );
        bench.until_somebody_waits().await;
        bench.change(|rows| rows.key("cfg/web/name", b"other", 0));
        bench.change(|rows| rows.key("cfg/web/port", b"9090", 0));
        let reply = waiting.await.unwrap();
        assert_eq!((reply.index(), &reply.json()[0]["Value"]), (1004, &"OTA5MA==".into()));
        assert_eq!(bench.get("/v1/kv/cfg/?recurse").await.index(), 1004);
    }

    #[tokio::test]
    async fn there_are_no_sessions() {
        let bench = bench();
        for path in ["/v1/session/list", "/v1/session/node/n1"] {
            let reply = bench.get(path).await;
            assert_eq!((reply.text.as_str(), reply.index()), ("[]", 1), "{path}");
        }
        for path in ["/v1/session/create", "/v1/session/renew/x", "/v1/session/destroy/x"] {
            let reply = bench.put(path, "{}").await;
            assert_eq!(reply.status, 501);
            assert!(reply.text.starts_with("Sessions need a consensus"));
        }
    }
}
