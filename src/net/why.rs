//! Why connections are not made, or end, in words for the log.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::{ConnectError, ConnectionError, TransportErrorCode, VarInt};

use super::link::Process;
use super::subject::shortened;
use crate::types::NodeId;
use crate::wire::Versions;

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error("the other node stops")]
    Stopping,
    #[error("the other node started anew")]
    Restarted,
    #[error("a newer connection took its place")]
    Replaced,
    #[error("it was not used for long, and there were too many")]
    Evicted,
    #[error("the other node has a newer connection with this node's id, from {0}")]
    Displaced(SocketAddr),
    #[error("the other node does not answer any more")]
    Silent,
    #[error("the other node does not read what it is sent")]
    Stuck,
    #[error("it was not used for long")]
    Idle,
    #[error("it is not wanted any more")]
    Unwanted,
    #[error("the other node does not keep to the protocol: {0}")]
    Fault(String),
    #[error("{0}")]
    Lost(String),
}

/// Why a connection could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    #[error("nobody answers at {0}")]
    NoAnswer(SocketAddr),
    #[error("{0} is this node itself")]
    Itself(SocketAddr),
    #[error(
        "another process at {address} uses this node's certificate: each node needs its own, made \
         by `tribune tls node NAME`"
    )]
    Twin { address: SocketAddr, process: Process },
    #[error(
        "the node '{name}' at {address} (release {release}) speaks {theirs} of the protocol, this \
         node (release {own}) {ours}: upgrade the older one of the two, one release at a time",
        own = env!("CARGO_PKG_VERSION")
    )]
    Versions {
        address: SocketAddr,
        node: NodeId,
        name: String,
        theirs: Versions,
        release: String,
        ours: Versions,
    },
    #[error("no connection with {0}: one of the two stands aside for another process with its id")]
    Aside(SocketAddr),
    #[error("the node at {address} is {found} ('{name}'), not {wanted}")]
    WrongNode { address: SocketAddr, wanted: NodeId, found: NodeId, name: String },
    #[error("the node at {address} is not of this cluster: {why}")]
    Stranger { address: SocketAddr, why: String },
    #[error("the node at {address} refuses this node: {why}")]
    Refused { address: SocketAddr, why: String },
    #[error("cannot connect to {address}: {why}")]
    Failed { address: SocketAddr, why: String },
}

impl DialError {
    /// Returns a word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoAnswer(_) => "no_answer",
            Self::Itself(_) => "itself",
            Self::Twin { .. } => "twin",
            Self::Versions { .. } => "versions",
            Self::Aside(_) => "aside",
            Self::WrongNode { .. } => "wrong_node",
            Self::Stranger { .. } => "stranger",
            Self::Refused { .. } => "refused",
            Self::Failed { .. } => "failed",
        }
    }
}

/// What is said to the other side at the end of a connection. Zero is what QUIC says for a
/// process that just vanished.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Close {
    Stopping = 1,
    Replaced = 2,
    Evicted = 3,
    Silent = 4,
    Stuck = 5,
    Fault = 6,
    Unwanted = 7,
    WrongNode = 8,
    Itself = 9,
    Twin = 10,
    /// Whoever came for a snapshot has all that it came for.
    Done = 11,
    /// Too many ask for a snapshot at the same time.
    Crowded = 12,
    /// The two have no version of the protocol in common.
    Versions = 13,
    /// Another process runs with this node's certificate, and is the one that counts.
    Aside = 14,
}

impl Close {
    const ALL: [Self; 14] = [
        Self::Stopping,
        Self::Replaced,
        Self::Evicted,
        Self::Silent,
        Self::Stuck,
        Self::Fault,
        Self::Unwanted,
        Self::WrongNode,
        Self::Itself,
        Self::Twin,
        Self::Done,
        Self::Crowded,
        Self::Versions,
        Self::Aside,
    ];

    pub fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    pub fn from_code(code: VarInt) -> Option<Self> {
        Self::ALL.into_iter().find(|close| close.code() == code)
    }
}

/// Says why an established connection ended.
pub(super) fn why(error: &ConnectionError) -> Why {
    match error {
        ConnectionError::ApplicationClosed(close) => match Close::from_code(close.error_code) {
            Some(Close::Stopping) => Why::Stopping,
            Some(Close::Replaced) => match std::str::from_utf8(&close.reason).map(str::parse) {
                Ok(Ok(by)) => Why::Displaced(by),
                Ok(Err(_)) | Err(_) => Why::Replaced,
            },
            Some(Close::Evicted) => Why::Evicted,
            Some(Close::Unwanted) => Why::Unwanted,
            Some(
                Close::Silent
                | Close::Stuck
                | Close::Itself
                | Close::Twin
                | Close::Done
                | Close::Crowded
                | Close::Versions
                | Close::Aside,
            )
            | None => {
                Why::Lost(format!("the other node closed it: {}", shortened(&close.to_string())))
            }
            Some(Close::Fault | Close::WrongNode) => Why::Fault(shortened(&close.to_string())),
        },
        ConnectionError::Reset => Why::Restarted,
        ConnectionError::TimedOut => Why::Idle,
        ConnectionError::VersionMismatch
        | ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => Why::Lost(shortened(&error.to_string())),
    }
}

/// Says why a connection that this node began did not come about.
pub(super) fn dial_error(address: SocketAddr, error: &ConnectionError) -> DialError {
    match error {
        ConnectionError::TimedOut => DialError::NoAnswer(address),
        ConnectionError::TransportError(fault) => {
            DialError::Stranger { address, why: handshake_fault(&fault.reason) }
        }
        ConnectionError::ConnectionClosed(close) => {
            let said = String::from_utf8_lossy(&close.reason);
            let why = alert(u64::from(close.error_code)).map_or_else(
                || shortened(&close.to_string()),
                |alert| format!("{alert} ({})", shortened(&said)),
            );
            DialError::Refused { address, why }
        }
        ConnectionError::ApplicationClosed(close) => match Close::from_code(close.error_code) {
            // Both sides find this out, and either may be first to say so.
            Some(Close::Itself) => DialError::Itself(address),
            Some(Close::Aside) => DialError::Aside(address),
            Some(_) | None => DialError::Refused { address, why: shortened(&close.to_string()) },
        },
        ConnectionError::VersionMismatch
        | ConnectionError::Reset
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => {
            DialError::Failed { address, why: shortened(&error.to_string()) }
        }
    }
}

/// Says why a connection was not even tried.
pub(super) fn connect_error(address: SocketAddr, error: &ConnectError) -> DialError {
    DialError::Failed { address, why: error.to_string() }
}

/// Says why a connection that another began was refused; `None` for what is nobody's fault.
pub(super) fn refusal(error: &ConnectionError) -> Option<String> {
    match error {
        ConnectionError::TransportError(fault) => Some(handshake_fault(&fault.reason)),
        // It gave up before the handshake was over, perhaps since another node answered sooner: what it
        // would have said is not sent then (RFC 9000, section 10.2.3).
        ConnectionError::ConnectionClosed(close)
            if close.error_code == TransportErrorCode::APPLICATION_ERROR =>
        {
            None
        }
        ConnectionError::ConnectionClosed(close) => {
            let said = shortened(&String::from_utf8_lossy(&close.reason));
            Some(format!("the other side refused this node: {said}"))
        }
        ConnectionError::VersionMismatch
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => None,
    }
}

/// Turns the TLS library's words about a peer's certificate into ours.
fn handshake_fault(reason: &str) -> String {
    let known = [
        ("UnknownIssuer", "its certificate was not signed by this cluster's CA"),
        ("BadSignature", "its certificate was not signed by this cluster's CA"),
        ("certificate expired", "its certificate has expired"),
        ("Expired", "its certificate has expired"),
        ("not valid yet", "its certificate is not valid yet: compare the clocks"),
        ("NotValidYet", "its certificate is not valid yet: compare the clocks"),
        ("sent no certificates", "it shows no certificate"),
        ("NoApplicationProtocol", "it does not speak Tribune's protocol"),
    ];
    let words = known.into_iter().find(|(sign, _)| reason.contains(sign)).map(|(_, words)| words);
    words.map_or_else(|| shortened(reason), str::to_owned)
}

/// What the other side meant by a TLS alert (RFC 8446, 6.2).
fn alert(code: u64) -> Option<&'static str> {
    const CRYPTO_ERROR: u64 = 0x100;
    Some(match code.checked_sub(CRYPTO_ERROR)? {
        42 => "it finds this node's certificate wrong",
        45 => "this node's certificate has expired",
        46 => "it does not accept this node's certificate",
        48 => "this node's certificate is not signed by its CA",
        116 => "it wants a certificate",
        120 => "it does not speak Tribune's protocol",
        _ => "the handshake failed",
    })
}

/// How long to wait after so many failures in a row: from one second doubling to one minute, a
/// quarter more or less by chance (`chance` from 0 to 1).
pub(super) fn back_off(failures: u32, chance: f64) -> Duration {
    let base = Duration::from_secs(1 << failures.saturating_sub(1).min(6)).min(BACK_OFF_MAX);
    base.mul_f64(0.75 + chance.clamp(0.0, 1.0) / 2.0)
}

const BACK_OFF_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute() {
        let seconds = |failures| back_off(failures, 0.5).as_secs();
        assert_eq!([1, 2, 3, 6, 7, 40].map(seconds), [1, 2, 4, 32, 60, 60]);
        assert_eq!(back_off(1, 0.0), Duration::from_millis(750));
        assert_eq!(back_off(1, 1.0), Duration::from_millis(1_250));
    }

    #[test]
    fn each_code_is_read_as_it_was_written() {
        for close in Close::ALL {
            assert_eq!(Close::from_code(close.code()), Some(close));
        }
        assert_eq!(Close::from_code(VarInt::from_u32(0)), None);
    }

    #[test]
    fn who_gives_up_during_the_handshake_has_refused_nobody() {
        let closed = |error_code, reason: &'static [u8]| {
            let (frame_type, reason) = (None, reason.into());
            let close = quinn::ConnectionClose { error_code, frame_type, reason };
            refusal(&ConnectionError::ConnectionClosed(close))
        };
        assert_eq!(closed(TransportErrorCode::APPLICATION_ERROR, b""), None);
        let refused = closed(TransportErrorCode::crypto(42), b"bad certificate").unwrap();
        assert_eq!(refused, "the other side refused this node: bad certificate");
    }
}
