//! Answers HTTP: Consul's API, the SQL API and metrics, in HTTP/1 and cleartext HTTP/2 on one
//! port. What an answer says is read from a view; nothing here caches, and nothing here decides
//! what is true.

mod bind;
mod body;
pub mod consul;
mod error;
mod freshness;
mod guard;
mod host;
pub mod own;
mod routes;
mod seats;
mod serve;
pub mod sql;
mod stats;
#[cfg(test)]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use bind::BindError;
pub use consul::upstream::{Config as UpstreamConfig, Upstream};
pub use error::Fault;
pub use host::{Demand, Host, Reports};
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
    /// Whether registrations may bring script checks. Off by default: whoever reaches the port
    /// could run any program. (`checks.enable_script_checks`.)
    pub script_checks: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], 8500))],
            hosts: Vec::new(),
            limits: Limits::default(),
            script_checks: false,
        }
    }
}

/// The HTTP face, listening and not yet answering.
pub struct Http {
    listeners: Vec<TcpListener>,
    hosts: Arc<[String]>,
    limits: Limits,
    script_checks: bool,
    upstream: Option<Upstream>,
    stats: Arc<Stats>,
}

/// All that a handler may use.
pub struct Face {
    pub host: Arc<dyn Host>,
    pub reports: Arc<dyn Reports>,
    pub metrics: Arc<Metrics>,
    pub stats: Arc<Stats>,
    /// Whoever runs the process; closed where nobody takes demands.
    pub demands: mpsc::Sender<Demand>,
    /// Cancelled when the node goes down: who waits or streams ends then.
    pub stopping: CancellationToken,
    /// See [`Config::script_checks`].
    pub script_checks: bool,
    /// Who answers what this node does not serve.
    pub upstream: Option<Upstream>,
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
            script_checks: config.script_checks,
            upstream: None,
            stats: Arc::default(),
        })
    }

    /// Passes on what this face does not serve.
    #[must_use]
    pub fn with_upstream(self, upstream: Option<Upstream>) -> Self {
        Self { upstream, ..self }
    }

    /// Returns the addresses that it listens on: with port 0 configured, the ports that it got.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Returns what this face counts, to be registered with [`Metrics`].
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Answers until `stopping`. `further` are routes beside Consul's. Then it accepts nobody, lets the answers that are on their way
    /// end, and after two seconds cuts off the rest.
    pub async fn run(
        self,
        host: Arc<dyn Host>,
        reports: Arc<dyn Reports>,
        metrics: Arc<Metrics>,
        further: Router,
        demands: mpsc::Sender<Demand>,
        stopping: CancellationToken,
    ) {
        let face = Arc::new(Face {
            host,
            reports,
            metrics,
            stats: Arc::clone(&self.stats),
            stopping: stopping.clone(),
            script_checks: self.script_checks,
            upstream: self.upstream,
            demands,
        });
        let guard = guard::Guard { stats: Arc::clone(&self.stats), hosts: self.hosts };
        let fresh = freshness::Freshness {
            host: Arc::clone(&face.host),
            stats: Arc::clone(&self.stats),
            stopping: stopping.clone(),
        };
        let router = routes::router(face, further, (guard, fresh));
        serve::serve(self.listeners, router, self.limits, self.stats, stopping).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::support::{Bench, me, one_service};

    #[tokio::test]
    async fn a_bound_face_answers_until_it_is_stopped() {
        let bench = Bench::new(me(), "n1", one_service());
        let config = Config {
            addresses: vec!["127.0.0.1:0".parse().unwrap(), "127.0.0.2:0".parse().unwrap()],
            ..Config::default()
        };
        let http = Http::bind(&config).unwrap();
        let addresses = http.local_addrs();
        let stopping = CancellationToken::new();
        let (host, reports) = (Arc::clone(&bench.face.host), Arc::clone(&bench.face.reports));
        let running = tokio::spawn(http.run(
            host,
            reports,
            Arc::default(),
            Router::new(),
            mpsc::channel(1).0,
            stopping.clone(),
        ));
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::new();
        for address in addresses {
            let url = format!("http://{address}/v1/catalog/services");
            let reply = client.get(&url).send().await.unwrap();
            assert_eq!(reply.headers()["x-content-type-options"], "nosniff");
            assert_eq!(reply.text().await.unwrap(), "{\"web\":[]}");
            let evil = client.get(&url).header("host", "evil.example.com").send().await.unwrap();
            assert_eq!(evil.status(), 403);
        }
        stopping.cancel();
        running.await.unwrap();
    }
}
