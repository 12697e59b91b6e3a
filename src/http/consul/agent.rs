//! `/v1/agent/…`: this node itself. Its services and checks are in the files beside this one.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::Uri;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::dto::host::{self as dto, Member};
use super::filter::Shape;
use super::query::{Query, boolean};
use super::reading::{Tail, done, json, passes, text_of};
use crate::catalog::Command;
use crate::http::Face;
use crate::http::error::{Fault, PLAIN};
use crate::telemetry::metrics::CONTENT_TYPE as OPEN_METRICS;
use crate::types::NodeId;

/// `GET /`: what probes of a load balancer ask.
pub async fn root() -> Response {
    ([(CONTENT_TYPE, PLAIN)], "Tribune Agent").into_response()
}

/// `GET /v1/agent/self`.
pub async fn own(State(face): State<Arc<Face>>, uri: Uri) -> Response {
    let host = &face.host;
    json(&Query::of(&uri), &dto::own(host.local(), &host.members(), &host.feed().view()))
}

/// `GET /v1/agent/members`. There are no segments, so `_all` is all.
pub async fn members(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let query = Query::of(&uri);
    let filter = query.filter(&Shape::MEMBER)?;
    match query.first("segment") {
        None | Some("" | "_all") => {}
        Some(name) => {
            return Err(Fault::internal(format!("There is no network segment \"{name}\"")));
        }
    }
    let view = face.host.feed().view();
    let members = face.host.members();
    let members = members.iter().map(|member| Member::of(member, &view));
    let members: Vec<_> = members.filter(|member| passes(filter.as_ref(), member)).collect();
    Ok(json(&query, &members))
}

/// `PUT /v1/agent/force-leave/:node`: a dead member is found out by all; this says that it will not
/// return, by its name or its id. Nobody waits for it any more.
pub async fn force_leave(State(face): State<Arc<Face>>, tail: Tail) -> Result<Response, Fault> {
    let name = text_of(tail);
    let view = face.host.feed().view();
    let mut named = view.nodes().filter(|entry| entry.info.node.name == name);
    let node = match (name.parse::<NodeId>(), named.next(), named.next()) {
        (Ok(node), ..) => Some(node),
        (Err(_), Some(entry), None) => entry.info.member,
        (Err(_), Some(_), Some(_)) => {
            let text = format!("agent: There are several nodes with name '{name}': give its id");
            return Err(Fault::internal(text));
        }
        (Err(_), None, _) => None,
    };
    let unknown = || Fault::internal(format!("agent: No node found with name '{name}'"));
    face.host.forget(node.ok_or_else(unknown)?).await?;
    Ok(done())
}

/// `GET /v1/agent/metrics`, in Consul's JSON, or with `?format=prometheus` as `/metrics`.
pub async fn metrics(State(face): State<Arc<Face>>, uri: Uri) -> Response {
    let query = Query::of(&uri);
    if query.first("format") == Some("prometheus") {
        return ([(CONTENT_TYPE, OPEN_METRICS)], face.metrics.render()).into_response();
    }
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    json(&query, &dto::metrics(&time_stamp(since_1970.as_secs()), &face.metrics.gather()))
}

/// `GET /v1/agent/version`: the API that is spoken, as newer Consuls tell it.
pub async fn version(uri: Uri) -> Response {
    json(&Query::of(&uri), &dto::version())
}

/// `GET /v1/agent/host`.
pub async fn host(uri: Uri) -> Response {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    json(&Query::of(&uri), &dto::machine(now.as_nanos()))
}

/// `PUT /v1/agent/maintenance?enable=`.
pub async fn maintenance(State(face): State<Arc<Face>>, uri: Uri) -> Result<Response, Fault> {
    let query = Query::of(&uri);
    let enable = enable(&query)?;
    let reason = reason(&query);
    face.host.submit(Command::Maintenance { service_id: None, enable, reason }).await?;
    Ok(done())
}

/// Reads `?enable=`, which must be there.
pub fn enable(query: &Query) -> Result<bool, Fault> {
    match query.first("enable") {
        None | Some("") => Err(Fault::bad_request("Missing value for enable")),
        Some(word) => boolean(word)
            .ok_or_else(|| Fault::bad_request(format!("Invalid value for enable: {word:?}"))),
    }
}

/// Reads `?reason=`, which may be left out.
pub fn reason(query: &Query) -> String {
    query.first("reason").unwrap_or_default().to_owned()
}

/// Writes a moment as Go prints it: `2026-11-22 14:07:00 +0000 UTC`.
fn time_stamp(seconds: u64) -> String {
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} +0000 UTC")
}

/// Returns the date so many days after 1 January 1970.
fn date(days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut left) = (1970, days);
    loop {
        let of_year = if is_leap(year) { 366 } else { 365 };
        if left < of_year {
            break;
        }
        left -= of_year;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while left >= months[month] {
        left -= months[month];
        month += 1;
    }
    (year, month as u64 + 1, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_go_prints_them() {
        assert_eq!(time_stamp(0), "1970-01-01 00:00:00 +0000 UTC");
        assert_eq!(time_stamp(951_782_399), "2000-02-28 23:59:59 +0000 UTC");
        assert_eq!(time_stamp(951_782_400), "2000-02-29 00:00:00 +0000 UTC");
        assert_eq!(time_stamp(1_795_356_420), "2026-11-22 14:07:00 +0000 UTC");
    }

    #[test]
    fn maintenance_must_say_on_or_off() {
        let ask = |text: &str| enable(&Query::of(&format!("/?{text}").parse().unwrap()));
        assert!(ask("enable=true").unwrap());
        assert!(!ask("enable=0").unwrap());
        assert_eq!(ask("").unwrap_err().text, "Missing value for enable");
        assert_eq!(ask("enable=bogus").unwrap_err().text, "Invalid value for enable: \"bogus\"");
    }
}
