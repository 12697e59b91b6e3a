//! A client of a node's HTTP port, for all commands that ask one.

use std::time::Duration;

use serde_json::Value as Json;

use super::{Failure, Remote};

/// How long a node may take to accept a connection, and to answer what is answered from memory.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Talks to one node.
pub(super) struct Client {
    base: String,
    http: reqwest::Client,
}

impl Client {
    pub(super) fn new(remote: &Remote) -> Result<Self, Failure> {
        let base = match remote.http_addr.trim_end_matches('/') {
            url if url.starts_with("http://") => url.to_owned(),
            bare if !bare.contains("://") => format!("http://{bare}"),
            other => {
                return Err(Failure::Usage(format!(
                    "'{other}' is not the address of a node; write it like http://127.0.0.1:8500"
                )));
            }
        };
        crate::net::tls::install_provider();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_WITHIN)
            .no_proxy()
            .build()
            .map_err(|error| Failure::Failed(format!("cannot set up HTTP: {error}")))?;
        Ok(Self { base, http })
    }

    /// Gets JSON that is answered at once.
    pub(super) async fn get(&self, path: &str) -> Result<Json, Failure> {
        let response = self.send(self.http.get(self.url(path)).timeout(ANSWER_WITHIN)).await?;
        self.json(response).await
    }

    /// Gets JSON that is answered at once, whatever the status.
    pub(super) async fn get_whatever(&self, path: &str) -> Result<Json, Failure> {
        let request = self.http.get(self.url(path)).timeout(ANSWER_WITHIN);
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        self.json(response).await
    }

    /// Gets JSON, and the index to watch from, waiting up to `wait` for the index to pass.
    pub(super) async fn get_after(
        &self,
        path: &str,
        index: u64,
        wait: Duration,
    ) -> Result<(Json, u64), Failure> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let url = format!("{}{separator}index={index}&wait={}s", self.url(path), wait.as_secs());
        let response = self.send(self.http.get(url).timeout(wait * 2 + ANSWER_WITHIN)).await?;
        let index = response
            .headers()
            .get("x-consul-index")
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Failure::Failed("the answer has no X-Consul-Index".to_owned()))?;
        Ok((self.json(response).await?, index))
    }

    /// Puts JSON; the answer's body is ignored.
    pub(super) async fn put(&self, path: &str, body: Option<&Json>) -> Result<(), Failure> {
        let mut request = self.http.put(self.url(path)).timeout(ANSWER_WITHIN);
        if let Some(body) = body {
            request = request.json(body);
        }
        self.send(request).await.map(drop)
    }

    /// Posts JSON and returns the answer whatever its status, to be read as it comes. There is no
    /// limit on the time: the statement has its own.
    pub(super) async fn post(&self, path: &str, body: &Json) -> Result<reqwest::Response, Failure> {
        self.http
            .post(self.url(path))
            .json(body)
            .send()
            .await
            .map_err(|error| self.unreachable(&error))
    }

    /// Reads the whole of an answer, whatever its status.
    pub(super) async fn body(&self, response: reqwest::Response) -> Result<String, Failure> {
        response.text().await.map_err(|error| self.unreachable(&error))
    }

    /// Percent-encodes a name for a path.
    pub(super) fn segment(name: &str) -> String {
        let mut encoded = String::with_capacity(name.len());
        for byte in name.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    encoded.push(byte as char);
                }
                other => encoded.push_str(&format!("%{other:02X}")),
            }
        }
        encoded
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            reason = inner.to_string();
            source = inner.source();
        }
        Failure::Failed(format!(
            "no node answers at {}: {reason}. Is `tribune agent` running there? Name another node \
             with --http-addr",
            self.base
        ))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        let text = text.trim();
        Err(Failure::Failed(if text.is_empty() {
            format!("the node answered {status}")
        } else {
            text.to_owned()
        }))
    }

    async fn json(&self, response: reqwest::Response) -> Result<Json, Failure> {
        response
            .json()
            .await
            .map_err(|error| Failure::Failed(format!("the answer cannot be read: {error}")))
    }
}

/// Reads JSON that is a part of `body`, or all of it.
pub(super) fn parsed(json: &str, body: &str) -> Result<Json, Failure> {
    serde_json::from_str(json)
        .map_err(|_| Failure::Failed(format!("the node answered: {}", body.trim())))
}

/// Returns a text inside JSON, or nothing where there is none.
pub(super) fn text<'a>(json: &'a Json, pointer: &str) -> &'a str {
    json.pointer(pointer).and_then(Json::as_str).unwrap_or_default()
}

/// Returns the elements of a JSON array, or none.
pub(super) fn list(json: &Json) -> &[Json] {
    json.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_paths() {
        assert_eq!(Client::segment("a b/c?ü"), "a%20b%2Fc%3F%C3%BC");
    }
}
