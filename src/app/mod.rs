//! Puts the parts together in order, supervises them, and takes them apart again. What the parts
//! do is none of its business.

mod identity;
mod metrics;
mod settings;
mod snapshot;
pub mod tasks;
pub mod watchdog;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use identity::own_certificate;
pub use tasks::Task;

use self::tasks::Tasks;
use self::watchdog::Watchdog;
use crate::config::Agent;
use crate::dns::Dns;
use crate::health::Health;
use crate::http::{Demand, Http, own, sql};
use crate::ingest::Ingest;
use crate::live::Queries;
use crate::net::tls::Identity;
use crate::net::{self, Net};
use crate::node::{self, Handle, Local, Node};
use crate::store::{OpenConfig, Store};
use crate::swim;
use crate::telemetry::{Metrics, Pulses};
use crate::types::ClusterId;

/// How long the faces may take to finish what they are answering.
const DRAIN_WITHIN: Duration = Duration::from_secs(3);

/// Why a node did not start: one sentence that names the part, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

impl StartError {
    fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// What a starter may have in place of files and defaults.
#[derive(Default)]
pub struct Options {
    /// The certificates, where they are not in files.
    pub identity: Option<Identity>,
    pub swim: swim::Config,
    /// Cancelled when the node is asked to stop: a start that takes long is given up.
    pub stop: CancellationToken,
}

/// How many demands may wait; further ones wait to be made.
const DEMANDS_MAX: usize = 4;

/// A node with its faces, running.
pub struct App {
    node: Node,
    agent: Agent,
    net: Net,
    cluster: ClusterId,
    /// Whether its certificates are in files.
    is_renewable: bool,
    queries: Arc<Queries>,
    faces: Tasks,
    engine: Tasks,
    token: CancellationToken,
    engine_token: CancellationToken,
    /// What is asked of the whole process, until somebody takes it.
    demands: Option<mpsc::Receiver<Demand>>,
    _watchdog: Option<Watchdog>,
}

impl App {
    /// Starts a node. Ports are bound first, so that one that is taken stops the start before
    /// anything is written.
    pub async fn start(agent: Agent, options: Options) -> Result<Self, StartError> {
        let http = Http::bind(&settings::http(&agent)).map_err(StartError::of)?;
        let http = http.with_upstream(settings::upstream(&agent)?);
        let dns = Dns::bind(settings::dns(&agent)?).map_err(StartError::of)?;
        let is_renewable = options.identity.is_none();
        let identity = identity::find(&agent, options.identity)?;
        let is_own = identity.is_own;
        let identity = identity.identity;
        identity.warnings().iter().for_each(|warning| warn!("{warning}"));
        let cluster = identity.cluster();
        let name = agent.node.clone().unwrap_or_else(|| identity.name().to_owned());
        let open = OpenConfig {
            data_dir: agent.data_dir.clone(),
            node: Some(identity.node()),
            name: name.clone(),
            cluster: Some(identity.cluster()),
            scope: agent.gossip.scope,
            schema: agent.schema.clone(),
            first_epoch: None,
        };
        if !is_own {
            snapshot::fetch(&agent, &identity, &open, &options.stop).await?;
        }
        let store = tokio::task::spawn_blocking(move || Store::open(&open))
            .await
            .map_err(StartError::of)?
            .map_err(StartError::of)?;
        let local = Local {
            id: identity.node(),
            name,
            datacenter: agent.datacenter.clone(),
            address: agent.address.clone(),
            gossip: agent.gossip.advertise,
        };
        let gossip = net::Config {
            send_bytes_per_second: agent.gossip.send_bytes_per_second,
            ..net::Config::new(agent.gossip.listen)
        };
        let (net, events) = Net::bind(gossip, &identity).map_err(StartError::of)?;
        net.give_snapshots(snapshot::maker(agent.data_dir.clone()));
        let (net_face, kept_net) = (net.clone(), net.clone());
        let config = node::Config {
            tagged_addresses: tagged_addresses(&local.address),
            server_port: agent.server_port,
            meta: agent.node_meta.clone(),
            join: agent.gossip.join.clone(),
            swim: options.swim,
            replica: settings::replica(&agent.tombstones),
            seed: net_seed(),
            local,
        };
        let pulses = Pulses::default();
        let (node, engine) =
            Node::start(config, store, net, events, &pulses).await.map_err(StartError::of)?;
        let token = CancellationToken::new();
        let engine_token = CancellationToken::new();
        let handle = node.handle().clone();
        let queries = Queries::new(
            Arc::clone(handle.own_readers()),
            Arc::clone(handle.feed()),
            token.child_token(),
        );
        let health = Health::new(settings::health(&agent.checks)).map_err(StartError::of)?;
        let metrics = Arc::new(Metrics::default());
        let mut faces = Tasks::new(token.clone());
        let mut engine_task = Tasks::new(engine_token.clone());
        engine_task.spawn_once(Task::Engine, engine);
        spawn_health(&mut faces, &health, &handle, &token);
        let ingest = spawn_ingest(&mut faces, &agent, &handle, &token)?;
        metrics::register(
            &metrics,
            metrics::Sources {
                handle: handle.clone(),
                stats: node.stats(),
                net: net_face,
                dns: dns.counters(),
                http: http.stats(),
                health: health.clone(),
                queries: Arc::clone(&queries),
                ingest,
                pulses: pulses.clone(),
            },
        );
        log_start(&agent, &handle, &http, &dns, is_own);
        spawn_dns(&mut faces, dns, &handle, &pulses, &token);
        let further = own::routes(handle.clone(), agent.gossip.ready_lag_max)
            .merge(sql::routes(handle.clone(), Arc::clone(&queries)));
        let (asking, demands) = mpsc::channel(DEMANDS_MAX);
        let (handle, health) = (Arc::new(handle), Arc::new(health));
        let serving = http.run(handle, health, metrics, further, asking, token.clone());
        faces.spawn_once(Task::Http, serving);
        let watchdog = Watchdog::start(pulses, agent.watchdog_limit).map_err(StartError::of)?;
        Ok(Self {
            node,
            agent,
            net: kept_net,
            cluster,
            is_renewable,
            queries,
            faces,
            engine: engine_task,
            token,
            engine_token,
            demands: Some(demands),
            _watchdog: watchdog,
        })
    }

    /// Returns the node's handle.
    pub fn handle(&self) -> &Handle {
        self.node.handle()
    }

    /// Reads the certificates again, and takes them into use for connections to come; those that
    /// there are live on. When this fails, everything stays as it was.
    ///
    /// # Errors
    /// The files cannot be used, or are another node's.
    pub fn renew_certificates(&self) -> Result<(), StartError> {
        if !self.is_renewable {
            return Ok(());
        }
        let identity = identity::find(&self.agent, None)?.identity;
        if (identity.node(), identity.cluster()) != (self.handle().local().id, self.cluster) {
            return Err(StartError(format!(
                "the certificate is now that of node {} of cluster {}: this process stays node {} \
                 of cluster {}",
                identity.node(),
                identity.cluster(),
                self.handle().local().id,
                self.cluster
            )));
        }
        identity.warnings().iter().for_each(|warning| warn!("{warning}"));
        self.net.renew(&identity).map_err(StartError::of)?;
        let left = identity.validity().left(SystemTime::now()).unwrap_or_default();
        info!(left = %net::tls::words(left), "The certificates were read again, and are in use");
        Ok(())
    }

    /// Returns where demands come in that are made of the whole process, the first time it is asked. Once
    /// that is dropped, demands are refused.
    pub fn take_demands(&mut self) -> Option<mpsc::Receiver<Demand>> {
        self.demands.take()
    }

    /// Waits until a part ends without which the node cannot go on, and names it.
    pub async fn fatal(&mut self) -> Task {
        tokio::select! {
            task = self.faces.fatal() => task,
            task = self.engine.fatal() => task,
        }
    }

    /// Stops the node: faces and sources first, then a goodbye to the cluster, then the writer.
    pub async fn stop(self) {
        self.token.cancel();
        if tokio::time::timeout(DRAIN_WITHIN, self.queries.close()).await.is_err() {
            warn!("A live query was still looking");
        }
        if !self.faces.drain(DRAIN_WITHIN).await {
            warn!("Some requests were not finished in time");
        }
        self.engine_token.cancel();
        self.node.leave().await;
        self.engine.drain(DRAIN_WITHIN).await;
        self.node.close().await;
    }
}

fn spawn_health(faces: &mut Tasks, health: &Health, handle: &Handle, token: &CancellationToken) {
    let (health, handle, token) = (health.clone(), handle.clone(), token.clone());
    faces.spawn(Task::Health, move || {
        let (health, handle, token) = (health.clone(), handle.clone(), token.clone());
        async move { health.run(handle, token).await }
    });
}

fn spawn_ingest(
    faces: &mut Tasks,
    agent: &Agent,
    handle: &Handle,
    token: &CancellationToken,
) -> Result<Option<Ingest>, StartError> {
    let Some(consul) = &agent.consul else { return Ok(None) };
    let ingest = Ingest::new(settings::ingest(consul)).map_err(StartError::of)?;
    let (run, handle, token) = (ingest.clone(), handle.clone(), token.clone());
    faces.spawn(Task::Ingest, move || {
        let (ingest, handle, token) = (run.clone(), handle.clone(), token.clone());
        async move { ingest.run(handle, token).await }
    });
    Ok(Some(ingest))
}

fn spawn_dns(
    faces: &mut Tasks,
    dns: Dns,
    handle: &Handle,
    pulses: &Pulses,
    token: &CancellationToken,
) {
    let (dns, feed, token) = (Arc::new(dns), Arc::clone(handle.feed()), token.clone());
    let pulses = pulses.clone();
    faces.spawn(Task::Dns, move || {
        let (dns, feed, token) = (Arc::clone(&dns), Arc::clone(&feed), token.clone());
        let pulses = pulses.clone();
        async move {
            if let Err(error) = dns.run(feed, &pulses, token).await {
                warn!(%error, "DNS has stopped answering");
            }
        }
    });
}

/// Says in one line each who this is, where it listens, and what keeps it alone.
fn log_start(agent: &Agent, handle: &Handle, http: &Http, dns: &Dns, is_alone: bool) {
    let local = handle.local();
    info!(
        version = env!("CARGO_PKG_VERSION"),
        node = local.name,
        id = %local.id,
        datacenter = local.datacenter,
        data_dir = %agent.data_dir.display(),
        "Tribune is up"
    );
    info!(http = ?http.local_addrs(), dns = ?dns.local_addrs(), gossip = %agent.gossip.listen, "Listening");
    if !dns.secure_addrs().is_empty() {
        info!(addresses = ?dns.secure_addrs(), "Listening for DNS over TLS and HTTPS");
    }
    if is_alone {
        info!(
            "This node keeps to itself: it has no certificates. To make it part of a cluster, run \
             `tribune tls ca` once and `tribune tls node NAME` for each host, and set --ca, --cert \
             and --key"
        );
    }
}

/// Returns the tagged addresses that Consul gives a node, for an address that is an IP.
fn tagged_addresses(address: &str) -> BTreeMap<String, String> {
    let mut tagged: BTreeMap<String, String> =
        ["lan", "wan"].map(|kind| (kind.to_owned(), address.to_owned())).into();
    let family = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => "ipv4",
        Ok(IpAddr::V6(_)) => "ipv6",
        Err(_) => return tagged,
    };
    for kind in ["lan", "wan"] {
        tagged.insert(format!("{kind}_{family}"), address.to_owned());
    }
    tagged
}

/// Draws a seed: what makes the choices of one node differ from those of another.
fn net_seed() -> u64 {
    rand::random()
}
