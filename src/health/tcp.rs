//! A TCP check: passing when a connection comes about.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::rounds::Outcome;
use crate::catalog::Status;

/// How long a connection may take where the check does not say.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// How many addresses of one name are tried.
const ADDRESSES_MAX: usize = 16;

/// Connects to `address` (host and port) and hangs up at once. A name may have several
/// addresses, of both families: all are tried together, and one that answers is enough.
pub async fn check(address: &str, timeout: Duration) -> Outcome {
    match timeout_at(Instant::now() + timeout, connect(address)).await {
        Ok(Ok(())) => {
            Outcome { status: Status::Passing, output: format!("TCP connect {address}: Success") }
        }
        Ok(Err(reason)) => critical(format!("TCP connect {address}: {reason}")),
        Err(_) => critical(format!("TCP connect {address}: no answer within {timeout:?}")),
    }
}

async fn connect(address: &str) -> Result<(), String> {
    let resolved = tokio::net::lookup_host(address)
        .await
        .map_err(|error| format!("cannot resolve the name: {error}"))?;
    let mut attempts: FuturesUnordered<_> = resolved.take(ADDRESSES_MAX).map(connect_to).collect();
    let mut reasons = Vec::new();
    while let Some(result) = attempts.next().await {
        match result {
            Ok(()) => return Ok(()),
            Err(reason) => reasons.push(reason),
        }
    }
    reasons.sort();
    match &*reasons {
        [] => Err("the name has no address".to_owned()),
        // The address is already there in what the check was given, as a rule.
        [(_, reason)] => Err(reason.clone()),
        _ => Err(reasons
            .iter()
            .map(|(address, reason)| format!("{address}: {reason}"))
            .collect::<Vec<_>>()
            .join("; ")),
    }
}

async fn connect_to(address: SocketAddr) -> Result<(), (SocketAddr, String)> {
    match TcpStream::connect(address).await {
        Ok(_) => Ok(()),
        Err(error) => Err((address, error.to_string())),
    }
}

fn critical(output: String) -> Outcome {
    Outcome { status: Status::Critical, output }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn a_listener_passes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let outcome = check(&address, 5 * S).await;
        assert_eq!(outcome.status, Status::Passing);
        assert_eq!(outcome.output, format!("TCP connect {address}: Success"));
    }

    #[tokio::test]
    async fn one_address_of_a_name_is_enough() {
        // `localhost` may mean ::1 and 127.0.0.1; only one of them listens.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        let outcome = check(&address, 5 * S).await;
        assert_eq!(outcome.status, Status::Passing, "{}", outcome.output);
    }

    #[tokio::test]
    async fn a_closed_port_is_critical_and_says_why() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let outcome = check(&address, 5 * S).await;
        assert_eq!(outcome.status, Status::Critical);
        assert!(outcome.output.contains("refused"), "{}", outcome.output);
    }

    #[tokio::test]
    async fn a_port_that_does_not_answer_is_critical_when_its_time_is_up() {
        // With a backlog that is full, further connections are not answered.
        let listener = full_soon();
        let address = listener.local_addr().unwrap().to_string();
        let mut held = Vec::new();
        for _ in 0..4 {
            let connect = TcpStream::connect(&address);
            held.push(tokio::time::timeout(S / 10, connect).await);
        }
        let outcome = check(&address, S / 5).await;
        assert_eq!(outcome.status, Status::Critical);
        assert!(outcome.output.contains("no answer within 200ms"), "{}", outcome.output);
    }

    /// A listener with the smallest backlog there is.
    fn full_soon() -> std::net::TcpListener {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        socket.listen(0).unwrap();
        socket.into()
    }

    #[tokio::test]
    async fn nonsense_is_critical_and_not_a_panic() {
        for address in ["", "nonsense", "127.0.0.1", "127.0.0.1:99999", ":::"] {
            assert_eq!(check(address, S).await.status, Status::Critical, "{address}");
        }
    }
}
