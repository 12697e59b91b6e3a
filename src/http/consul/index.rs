//! Blocking queries and consistency: `?index`, `?wait`, `?stale` and the headers that answer them.

use std::sync::Arc;
use std::time::Duration;

use axum::http::header::HeaderName;
use axum::http::{HeaderMap, HeaderValue};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::query::Query;
use crate::catalog::{Topic, View};
use crate::http::error::Fault;
use crate::live::Feed;
use crate::types::duration;

/// How long a blocking query waits that does not say.
pub const WAIT_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// The longest wait. Longer ones are cut down to it.
pub const WAIT_MAX: Duration = Duration::from_secs(10 * 60);
/// A random part of the wait, up to one in so many, is added to it, so that the clients of one
/// second do not come back in one second. Clients allow for exactly this much.
const JITTER_PART: u32 = 16;

const INDEX: HeaderName = HeaderName::from_static("x-consul-index");
const KNOWN_LEADER: HeaderName = HeaderName::from_static("x-consul-knownleader");
const LAST_CONTACT: HeaderName = HeaderName::from_static("x-consul-lastcontact");
const CONSISTENCY: HeaderName = HeaderName::from_static("x-consul-effective-consistency");
const CACHE: HeaderName = HeaderName::from_static("x-cache");

/// How fresh an answer a client asked for. All three read the same view: there is no leader who
/// could know more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consistency {
    Default,
    Stale,
    Consistent,
}

impl Consistency {
    /// Returns the word of Consul's headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "leader",
            Self::Stale => "stale",
            Self::Consistent => "consistent",
        }
    }
}

/// What every catalog and health read may ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Hold the answer until the index passes this one; 0 does not wait.
    pub index: u64,
    pub wait: Duration,
    pub consistency: Consistency,
    pub is_cached: bool,
}

impl Options {
    /// Reads them, in Consul's order of complaints.
    pub fn of(query: &Query) -> Result<Self, Fault> {
        let wait = match query.first("wait") {
            None | Some("") => WAIT_DEFAULT,
            Some(text) => match duration::parse(text) {
                Ok(nanos) if nanos > 0 => duration::from_nanos(nanos).min(WAIT_MAX),
                Ok(_) => WAIT_DEFAULT,
                Err(_) => return Err(Fault::bad_request("Invalid wait time")),
            },
        };
        let index = match query.first("index") {
            None | Some("") => 0,
            Some(text) => index(text).ok_or_else(|| Fault::bad_request("Invalid index"))?,
        };
        let is_cached = query.has("cached");
        Ok(Self { index, wait, consistency: consistency(query, is_cached)?, is_cached })
    }
}

/// A sign before the digits is no index.
fn index(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn consistency(query: &Query, is_cached: bool) -> Result<Consistency, Fault> {
    let conflict = |with: &str| {
        Err(Fault::bad_request(format!(
            "Cannot specify ?{with} with ?consistent, conflicting semantics."
        )))
    };
    match query.first("max_stale") {
        None | Some("") => {}
        // The view is never older than what this node was told, so any age will do.
        Some(text) if duration::parse(text).is_ok() => {}
        Some(text) => {
            return Err(Fault::bad_request(format!("Invalid max_stale value \"{text}\"")));
        }
    }
    match (query.has("stale"), query.has("consistent")) {
        (true, true) => conflict("stale"),
        (false, true) if is_cached => conflict("cached"),
        (false, true) => Ok(Consistency::Consistent),
        (true, false) => Ok(Consistency::Stale),
        (false, false) => Ok(Consistency::Default),
    }
}

/// Waits as the client asked and returns the view to answer from.
///
/// `topic_of` says what the answer depends on: it is asked again of each view, since a name may
/// come to mean another node meanwhile. When the node goes down nobody is kept waiting.
pub async fn wait(
    feed: &Feed,
    stopping: &CancellationToken,
    options: &Options,
    topic_of: impl Fn(&View) -> Topic,
) -> Arc<View> {
    let view = feed.view();
    if options.index == 0 || stopping.is_cancelled() {
        return view;
    }
    let deadline = Instant::now() + options.wait + jitter(options.wait);
    let topic = topic_of(&view);
    tokio::select! {
        view = feed.wait(&topic, options.index, deadline) => view,
        () = stopping.cancelled() => feed.view(),
    }
}

/// Returns a random part of a wait.
pub fn jitter(wait: Duration) -> Duration {
    let max = wait / JITTER_PART;
    if max.is_zero() { max } else { rand::random_range(Duration::ZERO..=max) }
}

/// Adds the headers of an answer with this index.
pub fn head(headers: &mut HeaderMap, options: &Options, index: u64) {
    head_plainly(headers, index);
    let effective = options.consistency.as_str();
    headers.insert(CONSISTENCY, HeaderValue::from_static(effective));
    if options.is_cached {
        headers.insert(CACHE, HeaderValue::from_static("HIT"));
        headers.insert(axum::http::header::AGE, HeaderValue::from_static("0"));
    }
}

/// Adds the headers that answers have which say nothing of consistency.
pub fn head_plainly(headers: &mut HeaderMap, index: u64) {
    // 0 would make clients ask again at once, for ever.
    headers.insert(INDEX, HeaderValue::from(index.max(1)));
    headers.insert(KNOWN_LEADER, HeaderValue::from_static("true"));
    headers.insert(LAST_CONTACT, HeaderValue::from_static("0"));
}

/// A read that Consul's servers would have refused: the headers say so as well.
pub fn leaderless(text: impl Into<String>) -> Fault {
    Fault::internal(text)
        .header(INDEX, HeaderValue::from_static("1"))
        .header(KNOWN_LEADER, HeaderValue::from_static("false"))
        .header(LAST_CONTACT, HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Result<Options, String> {
        let query = Query::of(&format!("/v1/x?{text}").parse().unwrap());
        Options::of(&query).map_err(|fault| {
            assert_eq!(fault.status, 400);
            fault.text
        })
    }

    #[test]
    fn waits_have_a_default_and_an_end() {
        let wait = |text| options(text).unwrap().wait;
        assert_eq!(wait("index=1"), WAIT_DEFAULT);
        assert_eq!(wait("wait=0s"), WAIT_DEFAULT);
        assert_eq!(wait("wait=120000ms"), Duration::from_secs(120));
        assert_eq!(wait("wait=10h"), WAIT_MAX);
    }

    #[test]
    fn an_index_is_decimal_digits() {
        assert_eq!(options("index=42").unwrap().index, 42);
        assert_eq!(options("").unwrap().index, 0);
        for text in ["index=zz", "index=-1", "index=%2B1", "index=99999999999999999999"] {
            assert_eq!(options(text).unwrap_err(), "Invalid index");
        }
        assert_eq!(options("wait=5&index=x").unwrap_err(), "Invalid wait time");
    }

    #[test]
    fn consistent_goes_with_nothing_weaker() {
        assert_eq!(options("stale").unwrap().consistency, Consistency::Stale);
        assert_eq!(options("consistent=").unwrap().consistency, Consistency::Consistent);
        assert_eq!(
            options("stale&consistent").unwrap_err(),
            "Cannot specify ?stale with ?consistent, conflicting semantics."
        );
        assert_eq!(
            options("cached&consistent").unwrap_err(),
            "Cannot specify ?cached with ?consistent, conflicting semantics."
        );
        assert!(options("stale&max_stale=10").unwrap_err().starts_with("Invalid max_stale"));
    }

    #[test]
    fn the_jitter_is_at_most_a_sixteenth() {
        for _ in 0..1_000 {
            assert!(jitter(Duration::from_secs(16)) <= Duration::from_secs(1));
        }
        assert_eq!(jitter(Duration::from_nanos(3)), Duration::ZERO);
    }

    #[test]
    fn an_index_is_never_sent_as_zero() {
        let mut headers = HeaderMap::new();
        head(&mut headers, &options("stale").unwrap(), 0);
        assert_eq!(headers[INDEX], "1");
        assert_eq!(headers[CONSISTENCY], "stale");
        assert!(!headers.contains_key(CACHE));
    }
}
