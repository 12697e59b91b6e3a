//! What happens around every request: its path and host are checked, a panic becomes an answer,
//! the answer gets the headers that all have, and is counted.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{Request, State};
use axum::http::header::{HOST, HeaderName, LOCATION, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tracing::error;

use super::error::Fault;
use super::serve::Ends;
use super::stats::Stats;

const NO_SNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

/// Host names that no public name server can point at this host.
const PRIVATE_ZONES: [&str; 5] = ["localhost", "internal", "consul", "local", "home.arpa"];

/// What the guard needs.
#[derive(Clone, Debug)]
pub struct Guard {
    pub stats: Arc<Stats>,
    /// Further host names, in lower case, that requests on loopback may carry.
    pub hosts: Arc<[String]>,
}

/// The layer around all routes.
pub async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let mut response = match admit(&guard, &request) {
        Ok(()) => match AssertUnwindSafe(next.run(request)).catch_unwind().await {
            Ok(response) => response,
            Err(_) => {
                guard.stats.panics.fetch_add(1, Ordering::Relaxed);
                error!(%path, "A handler panicked; the request was answered with 500");
                Fault::internal("internal error: see the node's log").into_response()
            }
        },
        Err(refusal) => refusal.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.insert(NO_SNIFF, HeaderValue::from_static("nosniff"));
    guard.stats.answered(response.status().as_u16());
    response
}

fn admit(guard: &Guard, request: &Request) -> Result<(), Fault> {
    check_host(guard, request)?;
    check_path(request.uri())
}

/// A page on the web can have its own name resolve to 127.0.0.1 and then read this node through
/// the visitor's browser; its name still stands in the request.
fn check_host(guard: &Guard, request: &Request) -> Result<(), Fault> {
    let is_local =
        request.extensions().get::<Ends>().is_some_and(|ends| ends.local.ip().is_loopback());
    if !is_local {
        return Ok(());
    }
    let Some(host) = host_of(request.uri(), request.headers()) else { return Ok(()) };
    if is_private(&host) || guard.hosts.contains(&host) {
        return Ok(());
    }
    Err(Fault::new(
        StatusCode::FORBIDDEN,
        format!("This node is not '{}'; add the name to http.hosts to use it", sanitized(&host)),
    ))
}

/// Returns the host that a request names, in lower case and without its port.
fn host_of(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let named = match uri.host() {
        Some(host) => host,
        None => {
            let host = headers.get(HOST)?.to_str().ok()?;
            match host.rsplit_once(':') {
                Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
                _ => host,
            }
        }
    };
    let bare = named.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    Some(bare.to_ascii_lowercase())
}

/// An address, a name without a dot, or a name in a zone that is never public.
fn is_private(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok()
        || !host.contains('.')
        || PRIVATE_ZONES.iter().any(|zone| {
            host.strip_suffix(zone).is_some_and(|name| name.is_empty() || name.ends_with('.'))
        })
}

/// Keeps what a client sent from breaking a line or a terminal.
fn sanitized(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic()).take(256).collect()
}

/// Refuses paths that two readers could read differently, and sends doubled slashes to the path
/// without them, as Go's router does.
fn check_path(uri: &Uri) -> Result<(), Fault> {
    let path = uri.path();
    let Some(decoded) = percent_decoded(path) else {
        return Err(Fault::bad_request("The path is not UTF-8, or holds a NUL"));
    };
    if decoded.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(Fault::bad_request("The path holds . or .. as a segment"));
    }
    if !path.contains("//") {
        return Ok(());
    }
    let mut clean = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !clean.ends_with('/') {
            clean.push(c);
        }
    }
    Err(moved_to(&clean, uri.query()))
}

/// Sends a client to another path of this face, with the same query.
pub fn moved_to(path: &str, query: Option<&str>) -> Fault {
    let target = match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let location = HeaderValue::from_str(&target).expect("it comes from a URI, which is ASCII");
    Fault::new(StatusCode::MOVED_PERMANENTLY, "").header(LOCATION, location)
}

/// Decodes `%xx`; `None` for what is not UTF-8, holds a NUL, or has a `%` without two digits.
fn percent_decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Result<(), (u16, String)> {
        check_path(&text.parse().unwrap()).map_err(|fault| {
            let status = fault.status.as_u16();
            let headers = fault.into_response().headers().clone();
            let location = headers.get(LOCATION).map(|value| value.to_str().unwrap().to_owned());
            (status, location.unwrap_or_default())
        })
    }

    #[test]
    fn a_path_has_one_reading() {
        for fine in
            ["/", "/v1/health/service/", "/v1/agent/service/jr%2F1", "/a%2F%2Fb", "/v1/x?a//b"]
        {
            assert_eq!(path(fine), Ok(()), "{fine}");
        }
        for bad in ["/v1/../x", "/v1/%2e%2E/x", "/v1/.", "/a%00b", "/a%ff", "/a%2", "/a%zz"] {
            assert_eq!(path(bad), Err((400, String::new())), "{bad}");
        }
        assert_eq!(path("//v1///x//?a=//b"), Err((301, "/v1/x/?a=//b".to_owned())));
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_an_answer() {
        async fn broken() -> String {
            panic!("on purpose")
        }

        use tower::ServiceExt;
        let stats = Arc::<Stats>::default();
        let shared = Guard { stats: Arc::clone(&stats), hosts: Arc::new([]) };
        let router = axum::Router::new()
            .route("/", axum::routing::get(broken))
            .layer(axum::middleware::from_fn_with_state(shared, guard));
        let request = Request::get("/").body(axum::body::Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), 500);
        assert_eq!(stats.panics.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn only_a_public_name_is_suspect_on_loopback() {
        for fine in ["127.0.0.1", "::1", "localhost", "consul", "web.service.consul", "db.internal"]
        {
            assert!(is_private(fine), "{fine}");
        }
        for suspect in ["evil.example.com", "notinternal.com", "xconsul.evil", "1.2.3.4.nip.io"] {
            assert!(!is_private(suspect), "{suspect}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("Evil.example:8500"));
        assert_eq!(host_of(&"/".parse().unwrap(), &headers).as_deref(), Some("evil.example"));
        headers.insert(HOST, HeaderValue::from_static("[::1]:8500"));
        assert_eq!(host_of(&"/".parse().unwrap(), &headers).as_deref(), Some("::1"));
    }
}
