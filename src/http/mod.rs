//! Answers HTTP: Consul's API, the SQL API and metrics, in HTTP/1 and cleartext HTTP/2 on one
//! port. What an answer says is read from a view; nothing here caches, and nothing here decides
//! what is true.

mod bind;
mod body;
pub mod consul;
mod error;
mod guard;
mod host;
mod routes;
mod seats;
mod serve;
mod stats;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use bind::BindError;
pub use error::Fault;
pub use host::{Host, ReportError, Reports};
pub use seats::Limits;
pub use serve::Ends;
pub use stats::Stats;

use crate::telemetry::Metrics;

/// Where to listen, and for how many.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// `--http ADDR`, repeatable. Default: `127.0.0.1:8500`.
    pub addresses: Vec<SocketAddr>,
    /// Host names, besides addresses, names without a dot and those of private zones, that
    /// requests to a loopback address may carry. Default: none. (`http.hosts`.)
    pub hosts: Vec<String>,
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], 8500))],
            hosts: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// The HTTP face, listening and not yet answering.
pub struct Http {
    listeners: Vec<TcpListener>,
    hosts: Arc<[String]>,
    limits: Limits,
    stats: Arc<Stats>,
}

/// All that a handler may use.
pub struct Face {
    pub host: Arc<dyn Host>,
    pub reports: Arc<dyn Reports>,
    pub metrics: Arc<Metrics>,
    pub stats: Arc<Stats>,
    /// Cancelled when the node goes down: who waits or streams ends then.
    pub stopping: CancellationToken,
}

impl Http {
    /// Listens on all addresses, or on none. Needs a tokio runtime around it.
    pub fn bind(config: &Config) -> Result<Self, BindError> {
        let listeners = config
            .addresses
            .iter()
            .map(|address| bind::listen(*address))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            listeners,
            hosts: config.hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            limits: config.limits,
            stats: Arc::default(),
        })
    }

    /// Returns the addresses that it listens on: with port 0 configured, the ports that it got.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Returns what this face counts, to be registered with [`Metrics`].
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Answers until `stopping`. Then it accepts nobody, lets the answers that are on their way
    /// end, and after two seconds cuts off the rest.
    pub async fn run(
        self,
        host: Arc<dyn Host>,
        reports: Arc<dyn Reports>,
        metrics: Arc<Metrics>,
        stopping: CancellationToken,
    ) {
        let face = Arc::new(Face {
            host,
            reports,
            metrics,
            stats: Arc::clone(&self.stats),
            stopping: stopping.clone(),
        });
        let guard = guard::Guard { stats: Arc::clone(&self.stats), hosts: self.hosts };
        let router = routes::router(face, guard);
        serve::serve(self.listeners, router, self.limits, self.stats, stopping).await;
    }
}
