//! An HTTP check: a request is sent, and the code of its answer is the verdict.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use reqwest::header::{
    ACCEPT, CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, LOCATION,
    TRANSFER_ENCODING, USER_AGENT,
};
use reqwest::redirect::{Action, Attempt, Policy};
use reqwest::{Client, Method, Response, StatusCode, Url};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::output;
use super::rounds::Outcome;
use crate::catalog::Status;

/// How long a check may take where it does not say.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// How many redirects are followed, all of them on the host that was asked first.
const REDIRECTS_MAX: usize = 10;
/// How much of a body is read although it is not kept, so that a chatty application is not left
/// with a broken connection at each check.
const DRAIN_BYTES_MAX: usize = 64 * 1024;

/// What an HTTP check asks for.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    pub url: &'a str,
    /// Empty: GET.
    pub method: &'a str,
    pub headers: &'a BTreeMap<String, Vec<String>>,
    pub body: &'a str,
    pub tls_skip_verify: bool,
    /// For all of it, from resolving the name to the end of the body.
    pub timeout: Duration,
    pub output_bytes_max: usize,
}

/// Runs HTTP checks. Each opens a connection of its own, as the next client would have to, and
/// none goes through a proxy.
#[derive(Clone, Debug)]
pub struct Prober {
    verifying: Client,
    trusting: Client,
}

impl Prober {
    /// Makes the two clients, one that verifies certificates against the system's roots and one
    /// that does not.
    pub fn new() -> Result<Self, reqwest::Error> {
        // An error says that one has been installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let trusting = client().tls_danger_accept_invalid_certs(true).build()?;
        let verifying = client().build().or_else(|error| {
            warn!(%error, "The system has no root certificates: HTTPS checks that verify fail");
            client().tls_certs_only([]).build()
        })?;
        Ok(Self { verifying, trusting })
    }

    /// Runs a check: a code of 200 to 299 is passing, 429 is warning, all else critical.
    pub async fn check(&self, probe: Probe<'_>) -> Outcome {
        match self.try_check(probe).await {
            Ok(outcome) => outcome,
            Err(output) => Outcome { status: Status::Critical, output },
        }
    }

    async fn try_check(&self, probe: Probe<'_>) -> Result<Outcome, String> {
        let url = Url::parse(probe.url).map_err(|error| format!("the check's URL: {error}"))?;
        let method = match probe.method {
            "" => Method::GET,
            other => Method::from_bytes(other.as_bytes())
                .map_err(|_| format!("{other:?} is no HTTP method"))?,
        };
        let subject = format!("HTTP {method} {}", without_secrets(&url));
        let client = if probe.tls_skip_verify { &self.trusting } else { &self.verifying };
        let request = client.request(method, url).headers(headers(probe.headers)?);
        let request =
            if probe.body.is_empty() { request } else { request.body(probe.body.to_owned()) };
        let deadline = Instant::now() + probe.timeout;
        let response = timeout_at(deadline, request.send())
            .await
            .map_err(|_| format!("{subject}: no answer within {:?}", probe.timeout))?
            .map_err(|error| format!("{subject}: {}", reason(&error)))?;
        let code = response.status();
        let answer = answer_line(&response);
        let body = read_head(response, deadline, probe.output_bytes_max).await;
        let output = format!("{subject}: {answer} Output: {body}");
        Ok(Outcome { status: verdict(code), output })
    }
}

fn client() -> reqwest::ClientBuilder {
    Client::builder()
        .no_proxy()
        .http1_only()
        .pool_max_idle_per_host(0)
        .redirect(Policy::custom(follow_on_same_host))
}

/// A redirect to another host would let whoever answers a check choose what this node asks next,
/// for instance a cloud's metadata service.
fn follow_on_same_host(attempt: Attempt<'_>) -> Action {
    let first = attempt.previous().first().and_then(Url::host_str);
    if attempt.url().host_str() != first {
        return attempt.stop();
    }
    if attempt.previous().len() > REDIRECTS_MAX {
        return attempt.error(format!("more than {REDIRECTS_MAX} redirects"));
    }
    attempt.follow()
}

fn verdict(code: StatusCode) -> Status {
    match code.as_u16() {
        200..=299 => Status::Passing,
        429 => Status::Warning,
        _ => Status::Critical,
    }
}

/// Returns the headers of a request: those of a health check, and over them the check's own.
fn headers(own: &BTreeMap<String, Vec<String>>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static("Tribune Health Check"));
    headers.insert(ACCEPT, HeaderValue::from_static("text/plain, text/*, */*"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    for (name, values) in own {
        let header = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("{name:?} is no name of an HTTP header"))?;
        // These follow from the body.
        if header == CONTENT_LENGTH || header == TRANSFER_ENCODING {
            continue;
        }
        headers.remove(&header);
        for value in values {
            // The value may be a secret: only its name is told.
            let value = HeaderValue::from_str(value)
                .map_err(|_| format!("the value of the HTTP header {name:?} cannot be sent"))?;
            headers.append(&header, value);
        }
    }
    Ok(headers)
}

/// Returns a URL as it may be shown on every node: without a user's name and password.
fn without_secrets(url: &Url) -> Url {
    let mut url = url.clone();
    // Errors say that this URL cannot have them.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url
}

fn answer_line(response: &Response) -> String {
    let code = response.status();
    let line = match code.canonical_reason() {
        Some(reason) => format!("{} {reason}", code.as_u16()),
        None => code.as_u16().to_string(),
    };
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    match location {
        Some(location) if code.is_redirection() => {
            let location = output::head(location, 256);
            format!("{line} (not followed to another host: {location})")
        }
        _ => line,
    }
}

/// Returns the beginning of the body. That the rest does not come, or not in time, changes
/// nothing about the verdict.
async fn read_head(mut response: Response, deadline: Instant, bytes_max: usize) -> String {
    let mut kept = Vec::new();
    let mut bytes_total = 0;
    while let Ok(Ok(Some(chunk))) = timeout_at(deadline, response.chunk()).await {
        let room = bytes_max - kept.len();
        kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
        bytes_total += chunk.len();
        if bytes_total >= bytes_max + DRAIN_BYTES_MAX {
            break;
        }
    }
    let mut text = output::clean(&kept);
    text.truncate(output::head(&text, bytes_max).len());
    text
}

/// Returns what is at the bottom of an error: the layers above it only say that a request failed.
fn reason(error: &reqwest::Error) -> String {
    let mut deepest: &dyn Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    if error.is_connect() { format!("cannot connect: {deepest}") } else { deepest.to_string() }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::extract::Path;
    use axum::http::{HeaderMap, Method, StatusCode};
    use axum::response::Redirect;
    use axum::routing::{any, get};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    struct Target {
        base: String,
        server: JoinHandle<()>,
    }

    impl Drop for Target {
        fn drop(&mut self) {
            self.server.abort();
        }
    }

    async fn target() -> Target {
        let echo = async |method: Method, headers: HeaderMap, body: String| {
            let of = |name| headers.get(name).map_or("-", |value| value.to_str().unwrap());
            let (host, agent) = (of("host"), of("user-agent"));
            format!("{method} host={host} agent={agent} x={} body={body}", of("x-test"))
        };
        let elsewhere = async || Redirect::temporary("http://127.0.0.2:9/secret");
        let routes = Router::new()
            .route(
                "/code/{code}",
                any(async |Path(code): Path<u16>| (StatusCode::from_u16(code).unwrap(), "hello")),
            )
            .route("/echo", any(echo))
            .route("/moved", get(async || Redirect::permanent("/code/200")))
            .route("/elsewhere", get(elsewhere))
            .route("/loop", get(async || Redirect::temporary("/loop")))
            .route("/big", get(async || "ä".repeat(1_000_000)))
            .route("/binary", get(async || vec![b'a', 0xff, 0, b'b']))
            .route("/never", get(std::future::pending::<&'static str>))
            .route(
                "/half",
                get(async || {
                    let first = futures_util::stream::iter([Ok::<_, std::io::Error>("begun")]);
                    let never = futures_util::stream::pending();
                    Body::from_stream(futures_util::StreamExt::chain(first, never))
                }),
            );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async { axum::serve(listener, routes).await.unwrap() });
        Target { base, server }
    }

    async fn get_of(url: &str) -> Outcome {
        get_within(url, 10 * S).await
    }

    async fn get_within(url: &str, timeout: Duration) -> Outcome {
        let headers = BTreeMap::new();
        Prober::new().unwrap().check(probe(url, &headers, timeout)).await
    }

    fn probe<'a>(
        url: &'a str,
        headers: &'a BTreeMap<String, Vec<String>>,
        timeout: Duration,
    ) -> Probe<'a> {
        Probe {
            url,
            method: "",
            headers,
            body: "",
            tls_skip_verify: false,
            timeout,
            output_bytes_max: 4096,
        }
    }

    #[tokio::test]
    async fn the_code_is_the_verdict() {
        let target = target().await;
        for (code, line, status) in [
            (200, "200 OK", Status::Passing),
            (299, "299", Status::Passing),
            (429, "429 Too Many Requests", Status::Warning),
            (304, "304 Not Modified", Status::Critical),
            (399, "399", Status::Critical),
            (500, "500 Internal Server Error", Status::Critical),
        ] {
            let url = format!("{}/code/{code}", target.base);
            let outcome = get_of(&url).await;
            assert_eq!(outcome.status, status, "{code}");
            let expected = format!("HTTP GET {url}: {line} Output: ");
            assert!(outcome.output.starts_with(&expected), "{}", outcome.output);
        }
        let outcome = get_of(&format!("{}/code/200", target.base)).await;
        assert!(outcome.output.ends_with("Output: hello"));
    }

    #[tokio::test]
    async fn method_headers_and_body_are_sent_as_the_check_says() {
        let target = target().await;
        let url = format!("{}/echo", target.base);
        let headers = BTreeMap::from([
            ("Host".to_owned(), vec!["web.example".to_owned()]),
            ("X-Test".to_owned(), vec!["one".to_owned(), "two".to_owned()]),
            ("Content-Length".to_owned(), vec!["999".to_owned()]),
        ]);
        let probe = Probe { method: "POST", body: "ping", ..probe(&url, &headers, 10 * S) };
        let outcome = Prober::new().unwrap().check(probe).await;
        let expected = "POST host=web.example agent=Tribune Health Check x=one body=ping";
        assert!(outcome.output.ends_with(expected), "{}", outcome.output);
        let own = BTreeMap::from([("user-agent".to_owned(), vec!["mine".to_owned()])]);
        let outcome = Prober::new().unwrap().check(Probe { headers: &own, ..probe }).await;
        assert!(outcome.output.contains("agent=mine"), "{}", outcome.output);
    }

    #[tokio::test]
    async fn redirects_are_followed_on_the_same_host_only() {
        let target = target().await;
        assert_eq!(get_of(&format!("{}/moved", target.base)).await.status, Status::Passing);
        let outcome = get_of(&format!("{}/elsewhere", target.base)).await;
        assert_eq!(outcome.status, Status::Critical);
        let expected = "(not followed to another host: http://127.0.0.2:9/secret)";
        assert!(outcome.output.contains(expected), "{}", outcome.output);
        let outcome = get_of(&format!("{}/loop", target.base)).await;
        assert_eq!(outcome.status, Status::Critical);
        assert!(outcome.output.contains("more than 10 redirects"), "{}", outcome.output);
    }

    #[tokio::test]
    async fn a_body_keeps_its_beginning_as_valid_text() {
        let target = target().await;
        let url = format!("{}/big", target.base);
        let outcome = get_of(&url).await;
        let prefix = format!("HTTP GET {url}: 200 OK Output: ");
        assert_eq!(outcome.output, format!("{prefix}{}", "ä".repeat(2048)));
        let outcome = get_of(&format!("{}/binary", target.base)).await;
        assert!(outcome.output.ends_with("a\u{fffd}\u{fffd}b"), "{}", outcome.output);
    }

    #[tokio::test]
    async fn an_answer_that_does_not_come_is_critical_when_its_time_is_up() {
        let target = target().await;
        let url = format!("{}/never", target.base);
        let outcome = get_within(&url, S / 5).await;
        assert_eq!(outcome.status, Status::Critical);
        assert_eq!(outcome.output, format!("HTTP GET {url}: no answer within 200ms"));
    }

    #[tokio::test]
    async fn a_body_that_does_not_end_changes_no_verdict() {
        let target = target().await;
        let outcome = get_within(&format!("{}/half", target.base), S / 5).await;
        assert_eq!(outcome.status, Status::Passing);
        assert!(outcome.output.ends_with("Output: begun"), "{}", outcome.output);
    }

    #[tokio::test]
    async fn a_closed_port_is_critical_and_says_why_without_the_password() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let outcome = get_of(&format!("http://user:secret@{address}/x")).await;
        assert_eq!(outcome.status, Status::Critical);
        let expected = format!("HTTP GET http://{address}/x: cannot connect: ");
        assert!(outcome.output.starts_with(&expected), "{}", outcome.output);
        assert!(outcome.output.contains("refused"));
        assert!(!outcome.output.contains("secret"));
    }

    #[tokio::test]
    async fn a_certificate_nobody_signed_passes_only_where_it_is_not_verified() {
        let target = tls_target().await;
        let headers = BTreeMap::new();
        let prober = Prober::new().unwrap();
        let url = format!("{}/", target.base);
        let outcome = prober.check(probe(&url, &headers, 10 * S)).await;
        assert_eq!(outcome.status, Status::Critical);
        assert!(outcome.output.contains("certificate"), "{}", outcome.output);
        let trusting = Probe { tls_skip_verify: true, ..probe(&url, &headers, 10 * S) };
        let outcome = prober.check(trusting).await;
        assert_eq!(outcome.status, Status::Passing, "{}", outcome.output);
    }

    /// A server with a certificate that it made itself; it answers anything with 204.
    async fn tls_target() -> Target {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let config = std::sync::Arc::new(config);
        let server = tokio::task::spawn_blocking(move || {
            // Two checks come by.
            for _ in 0..2 {
                let (mut socket, _) = listener.accept().unwrap();
                answer_no_content(&mut socket, &config);
            }
        });
        Target { base, server }
    }

    /// Speaks TLS on a thread of its own: a whole server would be another dependency.
    fn answer_no_content(
        socket: &mut std::net::TcpStream,
        config: &std::sync::Arc<rustls::ServerConfig>,
    ) {
        use std::io::{Read, Write};
        let mut session = rustls::ServerConnection::new(std::sync::Arc::clone(config)).unwrap();
        let mut stream = rustls::Stream::new(&mut session, socket);
        // The check that does not trust us hangs up here.
        let Ok(1..) = stream.read(&mut [0; 4096]) else { return };
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        stream.conn.send_close_notify();
        let _ = stream.flush();
    }

    #[tokio::test]
    async fn a_check_that_makes_no_sense_is_critical_and_not_a_panic() {
        for url in ["", "nonsense", "ftp://127.0.0.1/", "http://", "unix:///x", "http://[::/"] {
            assert_eq!(get_within(url, S).await.status, Status::Critical, "{url}");
        }
        for (name, value) in [("bad name", "x"), ("x", "bad\nvalue"), ("", "")] {
            let headers = BTreeMap::from([(name.to_owned(), vec![value.to_owned()])]);
            let outcome =
                Prober::new().unwrap().check(probe("http://127.0.0.1:9/", &headers, S)).await;
            assert!(outcome.output.contains("header"), "{}", outcome.output);
        }
    }
}
