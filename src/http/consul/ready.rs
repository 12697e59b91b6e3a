//! Answers that many ask for: written once, compressed once, and sent until what they show changes.
//!
//! They are kept with the very things that they show, and end with them, so there is nothing to
//! invalidate. No lock is held while one is written; who comes second meanwhile writes it as well.

use std::io::Write;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use crate::http::routes::GZIP_BYTES_MIN;

/// The bodies about one service.
#[derive(Default)]
pub struct OfService {
    pub health: Slot,
    pub health_passing: Slot,
    pub catalog: Slot,
}

/// A place for one body.
#[derive(Default)]
pub struct Slot(OnceLock<Arc<Ready>>);

impl Slot {
    /// Returns the body, which is written if nobody has asked for it yet.
    pub fn get<T: Serialize>(&self, body: impl FnOnce() -> T) -> Arc<Ready> {
        if let Some(ready) = self.0.get() {
            return Arc::clone(ready);
        }
        let ready = Arc::new(Ready::of(&body()));
        Arc::clone(self.0.get_or_init(|| ready))
    }
}

/// A body, ready to be sent.
pub struct Ready {
    plain: Bytes,
    gzip: OnceLock<Bytes>,
}

impl Ready {
    fn of(body: &impl Serialize) -> Self {
        let plain = serde_json::to_vec(body).expect("its maps have texts for keys");
        Self { plain: plain.into(), gzip: OnceLock::new() }
    }

    /// Makes an answer of it, as `asked` accepts it.
    pub fn answer(&self, asked: &HeaderMap) -> Response {
        let is_long = self.plain.len() as u64 > u64::from(GZIP_BYTES_MIN);
        let gzip = if is_long && accepts_gzip(asked) { self.gzip() } else { None };
        let mut response = Response::new(Body::from(gzip.as_ref().unwrap_or(&self.plain).clone()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if gzip.is_some() {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }

    fn gzip(&self) -> Option<Bytes> {
        if let Some(gzip) = self.gzip.get() {
            return Some(gzip.clone());
        }
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&self.plain).ok()?;
        let bytes = Bytes::from(encoder.finish().ok()?);
        Some(self.gzip.get_or_init(|| bytes).clone())
    }
}

/// Tells whether a client takes gzip (RFC 9110, section 12.5.3).
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut codings = values.flat_map(|value| value.split(','));
    codings.any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").map(str::parse::<f32>);
        name.trim().eq_ignore_ascii_case("gzip") && !matches!(weight, Some(Ok(0.0) | Err(_)))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::catalog::Status;
    use crate::catalog::model::key_of;
    use crate::http::support::{Bench, me, one_service, service, ttl_check};

    #[test]
    fn gzip_is_sent_to_those_who_name_it() {
        for (value, accepts) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5", true),
            ("br, gzip ; q=1", true),
            ("gzip;q=0", false),
            ("gzip;q=0.000", false),
            ("gzip;q=x", false),
            ("deflate", false),
            ("", false),
        ] {
            let headers = [(ACCEPT_ENCODING, HeaderValue::from_str(value).unwrap())];
            assert_eq!(accepts_gzip(&headers.into_iter().collect()), accepts, "{value}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    /// Of each page: what is asked with a parameter that makes the answer a special one, which is
    /// written anew each time, and says the same.
    #[tokio::test]
    async fn a_kept_answer_is_what_would_be_written_anew() {
        let bench = Bench::new(me(), "n1", one_service());
        let pages = [
            "/v1/health/service/web",
            "/v1/health/service/web?passing",
            "/v1/catalog/service/web",
            "/v1/catalog/services",
            "/v1/catalog/nodes",
            "/v1/health/service/none",
        ];
        let key = key_of(me());
        for round in 0..6 {
            for page in pages {
                let kept = [bench.get(page).await, bench.get(page).await];
                let sign = if page.contains('?') { '&' } else { '?' };
                let anew = bench.get(&format!("{page}{sign}filter=")).await;
                let anew = if round % 2 == 0 {
                    anew
                } else {
                    bench.get(&format!("{page}{sign}dc=dc1")).await
                };
                for reply in kept {
                    assert_eq!(reply.text, anew.text, "{page} in round {round}");
                    assert_eq!(reply.index(), anew.index(), "{page} in round {round}");
                }
            }
            bench.change(|rows| match round {
                0 => rows.check(&key, &ttl_check("web-1-ttl", "web-1", Status::Critical)),
                1 => rows.service(&key, &service("web-2", "web")),
                2 => rows.service(&key, &service("db", "db")),
                3 => rows.node(&key, &crate::http::support::node("renamed", "127.0.0.1")),
                _ => rows.check(&key, &ttl_check("n", "", Status::Warning)),
            });
        }
        assert_eq!(bench.get("/v1/health/service/web?passing").await.text, "[]");
    }

    #[tokio::test]
    async fn a_long_kept_answer_is_compressed_once() {
        let bench = Bench::new(me(), "n1", one_service());
        bench.change(|rows| {
            for count in 0..200 {
                rows.service(&key_of(me()), &service(&format!("s{count}"), &format!("s{count}")));
            }
        });
        let ask = async || {
            let request = Request::get("/v1/catalog/services").header("accept-encoding", "gzip");
            let response = bench.router.clone().oneshot(request.body(Body::empty()).unwrap()).await;
            let (head, body) = response.unwrap().into_parts();
            assert_eq!(head.headers["content-encoding"], "gzip");
            assert_eq!(head.headers.get_all("vary").iter().count(), 1);
            body.collect().await.unwrap().to_bytes()
        };
        let (one, two) = (ask().await, ask().await);
        assert_eq!(one.as_ptr(), two.as_ptr());
        let mut text = String::new();
        flate2::read::GzDecoder::new(&*one).read_to_string(&mut text).unwrap();
        assert_eq!(text, bench.get("/v1/catalog/services").await.text);
    }
}
