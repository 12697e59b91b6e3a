//! What this node does not serve is passed on, unchanged, to a Consul agent that does.
//!
//! Keys, sessions and transactions of keys go there as a whole: a lock is worth nothing if the value
//! under it is somewhere else.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, VIA,
};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use reqwest::redirect::Policy;
use serde_json::{Map, Value};

use super::txn;
use crate::http::Face;
use crate::http::body::{BODY_BYTES_MAX, read};
use crate::http::error::Fault;
use crate::types::root_cause;

/// How long a connection to the agent may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// What tells a request that has come through a node (RFC 9110, section 7.6.3).
const BY_US: &str = "1.1 tribune";

/// Headers that are about one connection alone (RFC 9110, section 7.6.1).
const OF_THE_CONNECTION: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Where what is passed on goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The agent, such as `http://127.0.0.1:8500`, without a slash at its end.
    pub url: String,
    /// Every path that this node does not serve; else keys and sessions alone.
    pub is_for_all: bool,
}

/// The way to the agent.
#[derive(Clone, Debug)]
pub struct Upstream {
    client: reqwest::Client,
    config: Config,
}

impl Upstream {
    /// Makes a client; nothing is sent yet, and the agent may be down.
    ///
    /// # Errors
    /// Says why TLS cannot be set up.
    pub fn new(config: Config) -> Result<Self, String> {
        // An error says that one has been installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_MAX);
        if config.url.starts_with("http://") {
            // A system without root certificates is no hindrance then.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|error| root_cause(&error))?;
        Ok(Self { client, config })
    }

    /// Tells whether every path that this node does not serve is passed on.
    pub fn is_for_all(&self) -> bool {
        self.config.is_for_all
    }

    fn takes(&self, path: &str) -> bool {
        let is_in = |place: &str| {
            path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.config.is_for_all || is_in("/v1/kv") || is_in("/v1/session")
    }

    /// Has the agent answer. Both bodies flow through, however long they are or take: the agent's
    /// limits are what counts, and a client that goes ends the agent's request too.
    async fn pass(&self, request: Request) -> Result<Response, Fault> {
        let (parts, body) = request.into_parts();
        let url = &self.config.url;
        if parts.headers.get_all(VIA).iter().any(|via| contains(via, BY_US)) {
            return Err(Fault::new(
                StatusCode::LOOP_DETECTED,
                format!(
                    "Requests are passed on to {url}, which is a Tribune node that passes them \
                         on as well; name a Consul agent in its place"
                ),
            ));
        }
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let mut headers = parts.headers;
        // None is sent as none, and not as chunks that some handlers take for one.
        let has_body = !body.is_end_stream();
        strip(&mut headers);
        headers.remove(HOST);
        headers.append(VIA, HeaderValue::from_static(BY_US));
        let mut onward =
            self.client.request(parts.method, format!("{url}{target}")).headers(headers);
        if has_body {
            onward = onward.body(reqwest::Body::wrap_stream(body.into_data_stream()));
        }
        let answer = onward.send().await.map_err(|error| {
            let reason = root_cause(&error);
            let text =
                format!("{url}, which answers {target} for this node, cannot be reached: {reason}");
            Fault::new(StatusCode::BAD_GATEWAY, text)
        })?;
        let status = answer.status();
        let mut headers = answer.headers().clone();
        strip(&mut headers);
        let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// What no page takes.
pub async fn rest(State(face): State<Arc<Face>>, request: Request) -> Result<Response, Fault> {
    match face.upstream.as_ref().filter(|upstream| upstream.takes(request.uri().path())) {
        Some(upstream) => upstream.pass(request).await,
        None => Err(Fault::not_found("")),
    }
}

/// `PUT /v1/txn` where keys are upstream: a transaction is for one place.
pub async fn run(State(face): State<Arc<Face>>, request: Request) -> Result<Response, Fault> {
    let (parts, body) = request.into_parts();
    let bytes = read(body, BODY_BYTES_MAX).await?;
    let (of_keys, others) = counts(&bytes);
    let again = Body::from(bytes);
    match face.upstream.as_ref().filter(|_| of_keys > 0) {
        None => txn::run(State(face), parts.uri, again).await,
        Some(_) if others > 0 => Err(Fault::not_here(
            "A transaction of keys and of other things cannot be one here: the keys are in Consul, \
             and nodes, services and checks are not. Send two",
        )),
        Some(upstream) => upstream.pass(Request::from_parts(parts, again)).await,
    }
}

/// Returns how many operations are about keys and sessions, and how many about other things. What
/// makes no sense is nobody's, so that it is told why.
fn counts(body: &[u8]) -> (usize, usize) {
    let ops: Vec<Map<String, Value>> = serde_json::from_slice(body).unwrap_or_default();
    let is_of_keys = |op: &&Map<String, Value>| {
        let named =
            |key: &String| ["KV", "Session"].iter().any(|name| name.eq_ignore_ascii_case(key));
        op.iter().any(|(key, value)| named(key) && !value.is_null())
    };
    let of_keys = ops.iter().filter(is_of_keys).count();
    (of_keys, ops.len() - of_keys)
}

/// Removes what is about one connection, and what `Connection` says to be so.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&OF_THE_CONNECTION) {
        headers.remove(name);
    }
}

fn contains(header: &HeaderValue, text: &str) -> bool {
    header.to_str().is_ok_and(|header| header.split(',').any(|part| part.trim() == text))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::Router;
    use axum::http::Uri;
    use tokio::net::TcpListener;

    use super::*;
    use crate::http::support::{Bench, me, one_service};

    /// Starts an agent that answers what it was asked, with a status of its own.
    async fn agent() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let echo = async |headers: HeaderMap, uri: Uri, request: Request| {
            let named =
                |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            let shown = [
                named("x-consul-token"),
                named("x-secret"),
                named("via"),
                named("host"),
                named("content-length"),
            ];
            let method = request.method().clone();
            let body = read(request.into_body(), BODY_BYTES_MAX).await.unwrap();
            let body = String::from_utf8(body.to_vec()).unwrap();
            let text = format!("{method} {uri} {shown:?} {body}");
            (StatusCode::IM_A_TEAPOT, [("x-consul-index", "7"), ("connection", "close")], text)
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(echo)).await });
        address
    }

    fn bench(url: String, is_for_all: bool) -> Bench {
        let upstream = Upstream::new(Config { url, is_for_all }).unwrap();
        Bench::with_upstream(me(), "n1", one_service(), Some(upstream))
    }

    #[tokio::test]
    async fn what_is_not_served_is_passed_on_unchanged() {
        let address = agent().await;
        let bench = bench(format!("http://{address}"), true);
        for (method, path, body) in [
            ("PUT", "/v1/kv/a%2Fb?cas=1&flags=2", "value"),
            ("GET", "/v1/kv/?recurse", ""),
            ("PUT", "/v1/session/create", "{}"),
            ("GET", "/v1/acl/tokens", ""),
            ("HEAD", "/v1/operator/raft/configuration", ""),
            ("DELETE", "/v1/config/service-defaults/web", ""),
            ("GET", "/ui/", ""),
        ] {
            let reply = bench.ask(method, path, body).await;
            assert_eq!(reply.status, 418, "{method} {path}: {}", reply.text);
            assert_eq!(reply.header("x-consul-index"), "7", "{path}");
            assert!(!reply.headers.contains_key("connection"), "{path}");
            if method != "HEAD" {
                assert!(reply.text.starts_with(&format!("{method} {path} ")), "{}", reply.text);
                assert!(reply.text.ends_with(&format!(" {body}")), "{}", reply.text);
                assert!(reply.text.contains(BY_US), "{}", reply.text);
                assert!(reply.text.contains(&address.to_string()), "{}", reply.text);
            }
        }
        let reply = bench.get("/v1/catalog/services").await;
        assert_eq!((reply.status.as_u16(), reply.text.as_str()), (200, "{\"web\":[]}"));
        assert_eq!(bench.ask("PUT", "/v1/catalog/services", "").await.status, 405);
    }

    #[tokio::test]
    async fn headers_of_the_connection_stay_behind_and_tokens_go_along() {
        let upstream =
            Upstream::new(Config { url: format!("http://{}", agent().await), is_for_all: true });
        let request = Request::builder()
            .uri("/v1/kv/a")
            .header("x-consul-token", "s3cr3t")
            .header("connection", "keep-alive, X-Secret")
            .header("x-secret", "hop")
            .body(Body::empty());
        let response = upstream.unwrap().pass(request.unwrap()).await.unwrap();
        let body = read(response.into_body(), BODY_BYTES_MAX).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.starts_with("GET /v1/kv/a [Some(\"s3cr3t\"), None, "), "{text}");
    }

    #[tokio::test]
    async fn keys_alone_may_be_upstream() {
        let bench = bench(format!("http://{}", agent().await), false);
        for path in ["/v1/kv/a", "/v1/session/list", "/v1/session/info/1"] {
            assert_eq!(bench.get(path).await.status, 418, "{path}");
        }
        for (path, status) in
            [("/v1/acl/tokens", 401), ("/v1/operator/raft", 501), ("/v1/kvx", 404)]
        {
            assert_eq!(bench.get(path).await.status, status, "{path}");
        }
    }

    #[tokio::test]
    async fn a_transaction_is_for_one_place() {
        let bench = bench(format!("http://{}", agent().await), false);
        let key = r#"{"KV":{"Verb":"cas","Key":"a","Index":1}}"#;
        let node = r#"{"KV":null,"Node":{"Verb":"get","Node":{"Node":"n1"}}}"#;
        for (ops, status) in [
            (format!("[{key}]"), 418),
            (format!("[{key},{key}]"), 418),
            (format!("[{key},{node}]"), 501),
            (format!("[{node}]"), 200),
            ("[".to_owned(), 400),
        ] {
            let reply = bench.put("/v1/txn", &ops).await;
            assert_eq!(reply.status, status, "{ops}: {}", reply.text);
            assert!(status != 418 || reply.text.ends_with(&ops), "{}", reply.text);
        }
    }

    #[tokio::test]
    async fn an_agent_that_is_down_and_a_circle_are_told() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let url = format!("http://{closed}");
        let reply = bench(url.clone(), true).get("/v1/acl/tokens").await;
        assert_eq!(reply.status, 502);
        assert!(reply.text.starts_with(&url) && reply.text.contains("refused"), "{}", reply.text);

        let upstream = Upstream::new(Config { url, is_for_all: true }).unwrap();
        let request = Request::builder().header("via", "1.0 fred, 1.1 tribune").body(Body::empty());
        let fault = upstream.pass(request.unwrap()).await.unwrap_err();
        assert_eq!(fault.status, 508);
    }
}
