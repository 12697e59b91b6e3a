//! Listening, or one clear sentence why not.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;
/// The port that Consul's agents listen on.
const CONSUL_PORT: u16 = 8500;

/// Why an address cannot be listened on. Nothing is bound.
#[derive(Debug)]
pub struct BindError {
    pub address: SocketAddr,
    pub source: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ip, port) = (self.address.ip(), self.address.port());
        match self.source.kind() {
            io::ErrorKind::AddrInUse if port == CONSUL_PORT => write!(
                f,
                "HTTP port {port} of {ip} is taken, probably by a Consul agent: stop it, or choose \
                 another port with --http (like --http {})",
                SocketAddr::new(ip, 9500)
            ),
            io::ErrorKind::AddrInUse => write!(
                f,
                "HTTP port {port} of {ip} is taken by another process: choose another one with --http"
            ),
            io::ErrorKind::PermissionDenied => write!(
                f,
                "HTTP port {port} of {ip} is not permitted to this user: choose one above 1023 with \
                 --http"
            ),
            io::ErrorKind::AddrNotAvailable => write!(
                f,
                "no interface of this host has the address {ip}: choose another one for HTTP with \
                 --http"
            ),
            _ => write!(f, "cannot listen for HTTP on {} (--http): {}", self.address, self.source),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Listens on an address. Needs a tokio runtime around it.
pub fn listen(address: SocketAddr) -> Result<TcpListener, BindError> {
    try_listen(address).map_err(|source| BindError { address, source })
}

fn try_listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted agent takes over while connections to the old one still fade away.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_one_sentence_with_the_port_and_the_flag() {
        let held = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = held.local_addr().unwrap();
        let error = listen(address).unwrap_err().to_string();
        let port = address.port().to_string();
        assert!(error.contains(&port) && error.contains("--http"), "{error}");
    }

    #[test]
    fn on_consuls_port_the_likely_owner_is_named() {
        let error = BindError {
            address: "127.0.0.1:8500".parse().unwrap(),
            source: io::ErrorKind::AddrInUse.into(),
        };
        let text = error.to_string();
        assert!(text.contains("8500") && text.contains("Consul agent") && text.contains("--http"));
    }
}
