//! Takes over what the host's Consul agent knows: its services and checks become this node's own,
//! marked as mirrored, and stay as fresh as Consul is. No check is run here, and nothing is ever
//! written to Consul.
//!
//! `agent` reads the agent's JSON, `client` fetches it, `diff` and `guard` are pure and decide
//! what follows, `run` is the loop around them. What makes mirroring dangerous is taking silence
//! for absence: see `guard`.

mod agent;
mod backoff;
mod client;
mod diff;
mod guard;
#[cfg(test)]
mod real_consul;
mod run;
mod watch;

use std::fmt;
use std::time::Duration;

pub use client::ClientError;
pub use guard::GuardConfig;
pub use run::{Ingest, Status};

/// Where the agent is, and how it is mirrored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Like `http://127.0.0.1:8500`. Without a scheme it is HTTP.
    pub url: String,
    /// Sent as `X-Consul-Token`. It needs `service:read` and `node:read` for this node; with less,
    /// Consul leaves things out of its answers without saying so.
    pub token: Option<Token>,
    /// Certificates, as PEM, that sign the agent's HTTPS certificate, besides the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// A certificate and its key, as PEM, that the agent asks of its clients.
    pub identity_pem: Option<Vec<u8>>,
    /// How often the agent is asked. 1 s by default: both questions together cost it about a
    /// millisecond.
    pub interval: Duration,
    /// Whether blocking queries tell of changes before the next question is due. They cost
    /// Consul's servers two waiting requests a host.
    pub watch: bool,
    /// A check whose output changes while its status stays is written at most this often.
    pub update_interval: Duration,
    /// When a sudden disappearance is believed.
    pub guard: GuardConfig,
    /// How long an agent may fail to answer until all that came from it is withdrawn. `None`, the
    /// default: for ever, since a host whose Consul agent is down still serves.
    pub withdraw_after: Option<Duration>,
}

impl Config {
    /// Returns the defaults for an agent.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            token: None,
            ca_pem: None,
            identity_pem: None,
            interval: Duration::from_secs(1),
            watch: true,
            update_interval: Duration::from_secs(300),
            guard: GuardConfig::default(),
            withdraw_after: None,
        }
    }
}

/// A Consul token, which is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}
