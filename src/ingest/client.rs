//! The client of the host's Consul agent. It only ever reads.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::tls::Certificate;
use reqwest::{Identity, Url};

use super::agent::{AgentSelf, Items, read_checks, read_self, read_services};
use super::{Config, Token};
use crate::catalog::{Check, Service};
use crate::types::root_cause;

/// How long a connection to the agent, which is on this host, may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How long an answer may take that the agent has at hand.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long a blocking query asks the agent to wait.
const WATCH_WAIT: Duration = Duration::from_secs(60);
/// How long it may take in all: Consul adds up to a sixteenth to the wait.
const WATCH_MAX: Duration = Duration::from_secs(75);
/// The longest answer that is read. An agent with ten thousand services answers about 5 MiB.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How much of an error's text is kept.
const REASON_BYTES_MAX: usize = 300;

/// Why there is no answer. Nothing is known then about what the agent holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The configuration is at fault.
    #[error("consul.url {url:?}: {reason}")]
    Url { url: String, reason: String },
    /// The configuration is at fault.
    #[error("the client of the Consul agent cannot be made: {0}")]
    Setup(String),
    #[error("{url} cannot be reached: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("{url} did not answer {path} within {limit:?}")]
    TimedOut { url: String, path: String, limit: Duration },
    #[error("{path} was answered {code}: {reason}{}", hint(*.code))]
    Status { path: String, code: u16, reason: String },
    #[error("the answer to {path} is longer than {BODY_BYTES_MAX} bytes")]
    TooLong { path: String },
    #[error("the answer to {path} makes no sense: {reason}")]
    Malformed { path: String, reason: String },
}

fn hint(code: u16) -> &'static str {
    match code {
        401 | 403 => " (consul.token needs service:read and node:read for this node)",
        _ => "",
    }
}

/// A client of one agent.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    /// Without a slash at its end.
    base: String,
}

impl Client {
    pub fn new(config: &Config) -> Result<Self, ClientError> {
        let setup = |error: reqwest::Error| ClientError::Setup(root_cause(&error));
        // An error says that one has been installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let base = base_of(&config.url)?;
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_MAX)
            .default_headers(headers(config.token.as_ref())?);
        if let Some(pem) = &config.ca_pem {
            let certificates = Certificate::from_pem_bundle(pem).map_err(setup)?;
            builder = builder.tls_certs_merge(certificates);
        } else if base.starts_with("http://") {
            // A system without root certificates is no hindrance then.
            builder = builder.tls_certs_only([]);
        }
        if let Some(pem) = &config.identity_pem {
            builder = builder.identity(Identity::from_pem(pem).map_err(setup)?);
        }
        Ok(Self { http: builder.build().map_err(setup)?, base })
    }

    /// Returns where the agent is, without a user's name and password.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// Asks who the agent is.
    pub async fn agent_self(&self) -> Result<AgentSelf, ClientError> {
        self.read("/v1/agent/self", read_self).await
    }

    /// Asks for the agent's services.
    pub async fn services(&self) -> Result<Items<Service>, ClientError> {
        self.read("/v1/agent/services", read_services).await
    }

    /// Asks for the agent's checks.
    pub async fn checks(&self) -> Result<Items<Check>, ClientError> {
        self.read("/v1/agent/checks", read_checks).await
    }

    /// Waits until something changed about a node, as Consul's servers know it: `index` is what
    /// this returned before, 0 at first. May return without a change.
    ///
    /// `list` is `health` or `catalog`. Any server may answer: this is a hint, not the data.
    pub async fn watch(&self, list: &str, node: &str, index: u64) -> Result<u64, ClientError> {
        let path = format!("/v1/{list}/node");
        let mut url = self.url_of(&path)?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push(node);
        }
        let wait = format!("{}s", WATCH_WAIT.as_secs());
        url.query_pairs_mut()
            .append_pair("index", &index.to_string())
            .append_pair("wait", &wait)
            .append_pair("stale", "");
        let (headers, _) = self.get(url, &path, WATCH_MAX).await?;
        let index = headers.get("X-Consul-Index").and_then(|value| value.to_str().ok());
        index.and_then(|text| text.parse().ok()).ok_or_else(|| ClientError::Malformed {
            path,
            reason: "it has no X-Consul-Index".to_owned(),
        })
    }

    async fn read<T>(
        &self,
        path: &str,
        read: fn(&[u8]) -> Result<T, String>,
    ) -> Result<T, ClientError> {
        let (_, body) = self.get(self.url_of(path)?, path, ANSWER_MAX).await?;
        read(&body).map_err(|reason| ClientError::Malformed { path: path.to_owned(), reason })
    }

    fn url_of(&self, path: &str) -> Result<Url, ClientError> {
        let url = format!("{}{path}", self.base);
        Url::parse(&url).map_err(|error| ClientError::Url { url, reason: error.to_string() })
    }

    async fn get(
        &self,
        url: Url,
        path: &str,
        limit: Duration,
    ) -> Result<(HeaderMap, Vec<u8>), ClientError> {
        let failure = |error: reqwest::Error| self.failure(path, limit, &error);
        let mut response = self.http.get(url).timeout(limit).send().await.map_err(failure)?;
        let code = response.status();
        let headers = response.headers().clone();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failure)? {
            if body.len() + chunk.len() > BODY_BYTES_MAX {
                return Err(ClientError::TooLong { path: path.to_owned() });
            }
            body.extend_from_slice(&chunk);
        }
        if code.is_success() {
            return Ok((headers, body));
        }
        let text = String::from_utf8_lossy(&body);
        let text = text.trim();
        let reason = text[..text.floor_char_boundary(REASON_BYTES_MAX)].to_owned();
        Err(ClientError::Status { path: path.to_owned(), code: code.as_u16(), reason })
    }

    fn failure(&self, path: &str, limit: Duration, error: &reqwest::Error) -> ClientError {
        let (url, path) = (self.base.clone(), path.to_owned());
        if error.is_connect() {
            ClientError::Unreachable { url, reason: root_cause(error) }
        } else if error.is_timeout() {
            ClientError::TimedOut { url, path, limit }
        } else if error.is_request() {
            ClientError::Unreachable { url, reason: root_cause(error) }
        } else {
            ClientError::Malformed { path, reason: root_cause(error) }
        }
    }
}

/// Reads where the agent is: a URL, or `host:port`.
fn base_of(text: &str) -> Result<String, ClientError> {
    let fail =
        |reason: &str| Err(ClientError::Url { url: text.to_owned(), reason: reason.to_owned() });
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = match Url::parse(&with_scheme) {
        Ok(url) => url,
        Err(error) => return fail(&error.to_string()),
    };
    if !matches!(url.scheme(), "http" | "https") {
        return fail("it must begin with http:// or https://");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return fail("it must end with the port, or with a path");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ClientError::Url {
            url: "(not shown)".to_owned(),
            reason: "it must not hold a name or password; a token is set by consul.token"
                .to_owned(),
        });
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn headers(token: Option<&Token>) -> Result<HeaderMap, ClientError> {
    let mut headers = HeaderMap::new();
    if let Some(Token(token)) = token {
        let mut value = HeaderValue::from_str(token).map_err(|_| {
            ClientError::Setup("consul.token has characters that cannot be sent".to_owned())
        })?;
        value.set_sensitive(true);
        headers.insert("X-Consul-Token", value);
    }
    Ok(headers)
}

/// Returns what is at the bottom of an error: the layers above it only say that a request failed.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_named_by_url_or_by_host_and_port() {
        assert_eq!(base_of("127.0.0.1:8500").unwrap(), "http://127.0.0.1:8500");
        assert_eq!(base_of("https://consul.example/").unwrap(), "https://consul.example");
        assert_eq!(base_of("http://h:1/under/").unwrap(), "http://h:1/under");
        for odd in ["", "unix:///run/consul.sock", "http://", "http://h:1/?x", "ftp://h"] {
            assert!(base_of(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_password_is_refused_without_repeating_it() {
        let error = base_of("http://user:secret@127.0.0.1:8500").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn a_token_is_never_shown() {
        let config = Config { token: Some(Token("s3cret".to_owned())), ..Config::new("h:1") };
        let client = Client::new(&config).unwrap();
        assert!(!format!("{config:?} {client:?}").contains("s3cret"));
        let odd = Config { token: Some(Token("s3\ncret".to_owned())), ..Config::new("h:1") };
        assert!(!Client::new(&odd).unwrap_err().to_string().contains("s3"));
    }
}
