//! The QUIC endpoint: its socket, and limits on what a peer can make it keep.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout,
    Runtime, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};

use super::config::Config;
use super::counters::Counters;
use super::socket::Counted;
use super::tls::Identity;

/// Why the node cannot listen for gossip.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "cannot listen for gossip on {0}: UDP port {port} is in use already, perhaps by another \
         Tribune agent; choose another with --gossip ADDRESS:PORT",
        port = .0.port()
    )]
    InUse(SocketAddr),
    #[error(
        "cannot listen for gossip on {0}: this user may not use UDP port {port}; choose one above \
         1023 with --gossip ADDRESS:PORT",
        port = .0.port()
    )]
    NotPermitted(SocketAddr),
    #[error(
        "cannot listen for gossip on {0}: this host has no such address; give one of its own with \
         --gossip ADDRESS:PORT"
    )]
    NoSuchAddress(SocketAddr),
    #[error("cannot listen for gossip on {address} (--gossip): {error}")]
    Failed { address: SocketAddr, error: io::Error },
    #[error("cannot use this node's certificate for gossip: {0}")]
    Tls(String),
}

/// How much the kernel keeps for us while we do something else. A smaller limit of the system's
/// is taken as it is.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// How many bytes one connection may have on its way to us. quinn's default has no limit.
const RECEIVE_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// The same for one stream.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;

/// One for the greeting, five for the lanes, and as many again while they change over.
pub(super) const STREAMS_MAX: u32 = 16;

/// How many bytes of membership datagrams wait on either side of a connection: some sixty.
pub(super) const DATAGRAM_BUFFER_BYTES: usize = 64 * 1024;

/// How many connections may wait for their handshake. quinn's default is 65,536.
pub(super) const HANDSHAKES_MAX: usize = 256;

/// The smallest path that QUIC runs on: from here its size is found out upwards, so that tunnels
/// work as well.
const MTU_FIRST: u16 = 1_200;

/// How many bytes of a snapshot may be on their way to this node. It is nobody's member yet, and has
/// nothing else to keep memory for; over a path of 100 ms it makes 80 MB a second.
const SNAPSHOT_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// After how long without a packet the connection of a visitor is gone.
const SNAPSHOT_IDLE: Duration = Duration::from_secs(15);

/// Opens the socket and makes an endpoint that listens and dials.
pub(super) fn bind(
    config: &Config,
    identity: &Identity,
    counters: Arc<Counters>,
) -> Result<Endpoint, BindError> {
    let failed = |error| bind_error(config.address, error);
    let socket = socket(config.address).map_err(failed)?;
    let server = server_config(config, identity).map_err(BindError::Tls)?;
    let runtime = Arc::new(TokioRuntime);
    let socket = runtime.wrap_udp_socket(socket).map_err(failed)?;
    let socket = Arc::new(Counted::new(socket, counters));
    Endpoint::new_with_abstract_socket(endpoint_config(identity), Some(server), socket, runtime)
        .map_err(failed)
}

/// Makes an endpoint that only dials, for somebody who comes for a snapshot, and its settings.
pub(super) fn visitor(
    local: IpAddr,
    identity: &Identity,
) -> Result<(Endpoint, ClientConfig), BindError> {
    let address = SocketAddr::new(local, 0);
    let failed = |error| bind_error(address, error);
    let socket = socket(address).map_err(failed)?;
    let runtime = Arc::new(TokioRuntime);
    let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime);
    let tls = identity.visitor_config().map_err(|error| BindError::Tls(error.to_string()))?;
    let crypto =
        QuicClientConfig::try_from(tls).map_err(|error| BindError::Tls(error.to_string()))?;
    let mut client = ClientConfig::new(Arc::new(crypto));
    let mut transport = transport(&Config { idle: SNAPSHOT_IDLE, ..Config::new(address) });
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(SNAPSHOT_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(SNAPSHOT_WINDOW_BYTES));
    client.transport_config(Arc::new(transport));
    Ok((endpoint.map_err(failed)?, client))
}

fn socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // `[::]` is for both families.
        socket.set_only_v6(false)?;
    }
    // A host that grants less still works, with more losses under load.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn bind_error(address: SocketAddr, error: io::Error) -> BindError {
    match error.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse(address),
        io::ErrorKind::PermissionDenied => BindError::NotPermitted(address),
        io::ErrorKind::AddrNotAvailable => BindError::NoSuchAddress(address),
        _ => BindError::Failed { address, error },
    }
}

/// The key of stateless resets is derived from the node's private key: a peer that still holds a
/// connection to our former process is told so by our first answer, instead of sending into the
/// void until it finds us silent. An answer is shorter than what it answers, and there are at most
/// fifty a second.
fn endpoint_config(identity: &Identity) -> EndpointConfig {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, identity.secret());
    let seed = hmac::sign(&secret, b"tribune stateless reset 1");
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, seed.as_ref());
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.cid_generator(|| Box::new(RandomIds));
    config
}

/// Connection ids without a mark of the process that gave them out: QUIC's usual ones have one,
/// and what a former process gave out would not be answered.
struct RandomIds;

impl RandomIds {
    const BYTES: usize = 8;
}

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; Self::BYTES]>())
    }

    fn cid_len(&self) -> usize {
        Self::BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Returns the settings for connections that others begin.
pub(super) fn server_config(config: &Config, identity: &Identity) -> Result<ServerConfig, String> {
    let tls = identity.server_config().map_err(|error| error.to_string())?;
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| error.to_string())?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(Arc::new(transport(config)));
    server.migration(false);
    server.max_incoming(HANDSHAKES_MAX);
    server.incoming_buffer_size(64 * 1024);
    server.incoming_buffer_size_total(8 * 1024 * 1024);
    Ok(server)
}

/// Returns the settings for connections that this node begins.
pub(super) fn client_config(config: &Config, identity: &Identity) -> Result<ClientConfig, String> {
    let tls = identity.client_config().map_err(|error| error.to_string())?;
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?;
    let mut client = ClientConfig::new(Arc::new(crypto));
    client.transport_config(Arc::new(transport(config)));
    Ok(client)
}

fn transport(config: &Config) -> TransportConfig {
    let idle = config.idle.min(Duration::from_secs(24 * 3_600));
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(idle).expect("a day is far below 2^62 ms")))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX))
        // One is allowed to who comes for a snapshot, once that is known: see `snapshot/serve.rs`.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .send_window(u64::from(RECEIVE_WINDOW_BYTES))
        .crypto_buffer_size(16 * 1024)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        .initial_mtu(MTU_FIRST)
        .keep_alive_interval(None);
    transport
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_a_sentence_that_names_the_flag() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind_error(address, socket(address).unwrap_err()).to_string();
        let port = address.port();
        assert!(error.contains(&format!("on {address}: UDP port {port} is in use")), "{error}");
        assert!(error.contains("--gossip"), "{error}");
    }

    #[test]
    fn an_address_of_another_host_is_named_as_such() {
        let address = "192.0.2.1:7401".parse().unwrap();
        let error = bind_error(address, socket(address).unwrap_err());
        assert!(matches!(error, BindError::NoSuchAddress(_)), "{error}");
    }
}
