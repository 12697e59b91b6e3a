//! DNS over HTTPS (RFC 8484): one question a request, HTTP/1.1 and HTTP/2.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hickory_proto::op::Message;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use super::answer::Transport;
use super::errand::Told;
use super::packet::QUERY_BYTES_MAX;
use super::server::Worker;

/// Where questions are asked (RFC 8484, section 4.1 leaves it to us; clients' default).
const PATH: &str = "/dns-query";
const MEDIA_TYPE: &str = "application/dns-message";
/// How long a request may take to come, and a connection be silent between two.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// Requests that one connection may have under way.
const STREAMS_MAX: u32 = 100;

/// Answers the requests of a connection until the client is done, or slow.
pub async fn serve(stream: TlsStream<TcpStream>, peer: SocketAddr, make: impl Fn() -> Worker) {
    let answer = |request: Request<Incoming>| {
        let worker = make();
        async move { Ok::<_, Infallible>(answer(worker, peer.ip(), request).await) }
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(REQUEST_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(REQUEST_MAX)
        .keep_alive_timeout(REQUEST_MAX);
    let service = hyper::service::service_fn(answer);
    // Whoever breaks off has nobody to be told.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer<B>(mut worker: Worker, client: IpAddr, request: Request<B>) -> Response<Full<Bytes>>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let packet = match read(request).await {
        Ok(packet) => packet,
        Err(refusal) => return refusal,
    };
    let reply = match worker.answer(&packet, client, Transport::Tls) {
        Told::Silence => None,
        Told::Ready => Some(std::mem::take(&mut worker.reply)),
        Told::Later(errand) => worker.run(errand).await,
    };
    let Some(reply) = reply else {
        return refuse(StatusCode::BAD_REQUEST, "the message is no DNS question");
    };
    let age = format!("max-age={}", least_ttl(&reply));
    let response = Response::builder().header(CONTENT_TYPE, MEDIA_TYPE).header(CACHE_CONTROL, age);
    response.body(Full::from(reply)).expect("headers that can be said")
}

/// Reads the question of a request.
async fn read<B>(request: Request<B>) -> Result<Vec<u8>, Response<Full<Bytes>>>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if request.uri().path() != PATH {
        return Err(refuse(StatusCode::NOT_FOUND, "DNS over HTTPS is under /dns-query"));
    }
    if request.method() == Method::GET {
        let pairs = request.uri().query().unwrap_or_default().split('&');
        let text = pairs.filter_map(|pair| pair.strip_prefix("dns=")).next();
        let text = text.filter(|text| text.len() <= QUERY_BYTES_MAX * 4 / 3 + 2);
        let packet = text.and_then(|text| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok());
        let reason = "give the question as ?dns=, in base64url";
        return packet.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, reason));
    }
    if request.method() != Method::POST {
        let mut refusal = refuse(StatusCode::METHOD_NOT_ALLOWED, "ask with GET or POST");
        refusal.headers_mut().insert(ALLOW, "GET, POST".parse().expect("a header"));
        return Err(refusal);
    }
    if request.headers().get(CONTENT_TYPE).is_none_or(|kind| kind != MEDIA_TYPE) {
        let reason = "the question's type is application/dns-message";
        return Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
    }
    let body = Limited::new(request.into_body(), QUERY_BYTES_MAX).collect();
    match timeout(REQUEST_MAX, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
        Ok(Err(_)) => Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, "no question is so long")),
        Err(_) => Err(refuse(StatusCode::REQUEST_TIMEOUT, "the question did not come in time")),
    }
}

fn refuse(status: StatusCode, reason: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{reason}\n")));
    *response.status_mut() = status;
    response
}

/// Returns how long a reply may be remembered (RFC 8484, section 5.1).
fn least_ttl(reply: &[u8]) -> u32 {
    let Ok(message) = Message::from_vec(reply) else { return 0 };
    let records = message.answers.iter().chain(&message.authorities);
    records.map(|record| record.ttl).min().unwrap_or(0)
}
