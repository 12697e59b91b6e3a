//! Errors as this face says them: a status and a sentence, never HTML.

use axum::http::header::{ALLOW, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::consul::filter::FilterError;
use crate::health::ReportError;
use crate::node::SubmitError;

/// The content type of every error.
pub const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A request that was not carried out, as the client is told: Consul's clients show the sentence
/// to people, so it must be one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    pub status: StatusCode,
    pub text: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Fault {
    /// Makes a fault of a status and a sentence; an empty one sends an empty body.
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), headers: Vec::new() }
    }

    /// The request is at fault.
    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// No such thing.
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    /// What Consul answers to nearly everything that is wrong.
    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }

    /// Tribune does not do this, on purpose or not yet; the sentence says which.
    pub fn not_here(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, text)
    }

    /// Not now, but perhaps in a second.
    pub fn come_again(text: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, text)
            .header(RETRY_AFTER, HeaderValue::from_static("1"))
    }

    /// The path exists, but not with this method; `allow` is Consul's list of those that are.
    pub fn method_not_allowed(method: &str, allow: &'static str) -> Self {
        let text = format!("method {method} not allowed");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, text)
            .header(ALLOW, HeaderValue::from_static(allow))
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}

impl From<FilterError> for Fault {
    fn from(error: FilterError) -> Self {
        Self::internal(error.to_string())
    }
}

impl From<ReportError> for Fault {
    fn from(error: ReportError) -> Self {
        let text = error.to_string();
        match error {
            ReportError::UnknownCheck(_) | ReportError::NotTtl(_) | ReportError::NotWritten(_) => {
                Self::internal(text)
            }
            ReportError::NotRunning => Self::come_again(text),
        }
    }
}

impl From<SubmitError> for Fault {
    fn from(error: SubmitError) -> Self {
        let text = error.to_string();
        match error {
            SubmitError::Refused(_) | SubmitError::Failed(_) => Self::internal(text),
            SubmitError::Busy | SubmitError::Stopping => Self::come_again(text),
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.text.clone()).into_response();
        let headers = response.headers_mut();
        if self.text.is_empty() {
            headers.remove(CONTENT_TYPE);
        } else {
            headers.insert(CONTENT_TYPE, PLAIN);
        }
        headers.extend(self.headers);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_writer_asks_the_client_to_come_again() {
        let response = Fault::from(SubmitError::Busy).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
    }

    #[test]
    fn an_empty_sentence_has_no_content_type() {
        let response = Fault::not_found("").into_response();
        assert!(!response.headers().contains_key(CONTENT_TYPE));
    }
}
