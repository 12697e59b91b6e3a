//! Request bodies: counted while they are read, whatever their `Content-Length` claims.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::error::Fault;

/// The longest registration. A service with its checks takes a few hundred bytes; Consul allows
/// 512 bytes for each of 64 meta values.
pub const REGISTER_BYTES_MAX: usize = 256 * 1024;
/// The longest body of anything else.
pub const BODY_BYTES_MAX: usize = 2 * 1024 * 1024;
/// How long a client may take to send its body.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);
/// How much of a body that is too long is read all the same, so that its sender gets to read why.
const SKIPPED_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long that may take.
const SKIPPING_TIME_MAX: Duration = Duration::from_secs(2);

/// Reads a body whole: 413 past `bytes_max`, 408 when it takes longer than 30 s, 400 when it ends
/// too early.
pub async fn read(body: Body, bytes_max: usize) -> Result<Bytes, Fault> {
    read_within(BODY_TIME_MAX, body, bytes_max).await
}

async fn read_within(time_max: Duration, mut body: Body, bytes_max: usize) -> Result<Bytes, Fault> {
    let whole = Limited::new(&mut body, bytes_max).collect();
    match tokio::time::timeout(time_max, whole).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            // Who still sends when the connection closes may never read the answer.
            let rest = skip(&mut body, SKIPPED_BYTES_MAX);
            let _ = tokio::time::timeout(SKIPPING_TIME_MAX, rest).await;
            Err(Fault::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("Request body too large, max allowed is {bytes_max} bytes"),
            ))
        }
        Ok(Err(error)) => Err(Fault::bad_request(format!("Request body broke off: {error}"))),
        Err(_) => Err(Fault::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("Request body took longer than {} s", time_max.as_secs()),
        )),
    }
}

/// Reads on and keeps nothing, until the body ends, breaks off, or has had enough.
async fn skip(body: &mut Body, bytes_max: usize) {
    let mut left = bytes_max;
    while let Some(Ok(frame)) = body.frame().await {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(bytes) else { return };
        left = rest;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    #[tokio::test]
    async fn a_body_is_counted_while_it_is_read() {
        let chunks =
            || stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(b"12345")));
        let endless = Body::from_stream(chunks());
        let fault = read(endless, 12).await.unwrap_err();
        assert_eq!(fault.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(fault.text, "Request body too large, max allowed is 12 bytes");
        assert_eq!(read(Body::from("123"), 3).await.unwrap(), "123");
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_given_up() {
        let silent = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(
            read_within(Duration::from_millis(1), silent, 9).await.unwrap_err().status,
            StatusCode::REQUEST_TIMEOUT
        );
    }
}
