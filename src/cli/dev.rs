//! `tribune dev`: a whole throw-away cluster in one terminal, with a sample service to play with.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::agent::{END_WITHIN, Stop, runtime};
use super::{Failure, complain, say};
use crate::app::{App, Options};
use crate::catalog::{Check, Status};
use crate::catalog::{CheckDefinition, CheckKind, CheckRegistration, Command, Service};
use crate::config::agent::{Agent, DNS_PORT, Flags, HTTP_PORT};
use crate::net::certificates::{Ca, NODE_DAYS, NodeRequest};
use crate::net::tls::Identity;
use crate::node::{GOSSIP_PORT, Handle, MemberState, MemberStatus};
use crate::types::NodeId;

/// More nodes than this on one machine show nothing that these do not.
const NODES_MAX: u8 = 20;

/// How long the nodes may take to see each other and the sample to pass its checks.
const READY_WITHIN: Duration = Duration::from_secs(15);

/// How often the sample service is checked.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(super) struct Args {
    /// How many nodes; node k has the address 127.0.0.k and the name dev-k
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(NODES_MAX)))]
    nodes: u8,
    /// HTTP port of every node
    #[arg(long, default_value_t = HTTP_PORT)]
    http_port: u16,
    /// DNS port of every node
    #[arg(long, default_value_t = DNS_PORT)]
    dns_port: u16,
    /// Gossip port of every node
    #[arg(long, default_value_t = GOSSIP_PORT)]
    gossip_port: u16,
    /// File, or directory of *.sql files, with further tables; may be repeated
    #[arg(long, value_name = "PATH")]
    schema: Vec<PathBuf>,
    /// Consul agent that the first node takes services and checks over from
    #[arg(long, value_name = "URL")]
    consul: Option<String>,
    /// Do without the sample service
    #[arg(long)]
    no_app: bool,
    /// Log level or filter
    #[arg(long, value_name = "LEVEL", env = "TRIBUNE_LOG", default_value = "warn")]
    log: String,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    super::agent::start_log(&args.log, false)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let mut stop = Stop::catch()?;
        let home = Home::make()?;
        let mut cluster = Cluster::default();
        let outcome = tokio::select! {
            outcome = cluster.work(&args, &home) => outcome,
            () = stop.asked() => Ok(()),
        };
        stop_unless_asked_again(cluster.stop(), &mut stop).await;
        outcome
    });
    runtime.shutdown_timeout(END_WITHIN);
    outcome
}

/// Stops the nodes unless asked again meanwhile.
async fn stop_unless_asked_again(stopping: impl Future<Output = ()>, stop: &mut Stop) {
    tokio::select! {
        () = stopping => {}
        () = stop.asked() => complain("asked a second time: stopping at once"),
    }
}

/// The nodes and the sample's listeners.
#[derive(Default)]
struct Cluster {
    apps: Vec<App>,
    samples: JoinSet<()>,
}

impl Cluster {
    /// Starts everything, says what to try, and runs until a node fails.
    async fn work(&mut self, args: &Args, home: &Home) -> Result<(), Failure> {
        let authority = Ca::new(SystemTime::now())?;
        for k in 1..=args.nodes {
            let mut app = start_node(args, home, &authority, k).await?;
            // Ctrl-C ends all of them at once.
            drop(app.take_demands());
            if !args.no_app {
                self.add_sample(app.handle(), k).await?;
            }
            self.apps.push(app);
        }
        self.wait_until_ready(args).await?;
        say(&welcome(args))?;
        let ended =
            futures_util::future::select_all(self.apps.iter_mut().map(|app| Box::pin(app.fatal())));
        let (task, index, _) = ended.await;
        Err(Failure::Failed(format!(
            "dev-{} stopped because a part of it ended by itself ({task:?})",
            index + 1
        )))
    }

    /// Starts the sample's listener at the node's address and registers it there.
    async fn add_sample(&mut self, handle: &Handle, k: u8) -> Result<(), Failure> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Failure::Failed(format!("the sample service on dev-{k} {what}: {error}"))
        };
        let listener = TcpListener::bind((address_of(k), 0))
            .await
            .map_err(|error| failed("cannot listen", &error))?;
        let address = listener.local_addr().map_err(|error| failed("has no address", &error))?;
        let hello = format!("hello from dev-{k}\n");
        let routes = Router::new().route("/", get(move || std::future::ready(hello.clone())));
        self.samples.spawn(async move {
            // Ends with the cluster; an error of one connection is not ours to report.
            let _ = axum::serve(listener, routes).await;
        });
        handle.submit(sample(address)).await.map_err(|error| failed("cannot be registered", &error))
    }

    /// Waits until every node answers for all of them.
    async fn wait_until_ready(&self, args: &Args) -> Result<(), Failure> {
        let wanted = usize::from(args.nodes);
        let is_ready = || {
            self.apps.iter().all(|app| {
                let view = app.handle().view();
                let passing = view.service("app").map_or(0, |service| {
                    service.instances.iter().filter(|i| i.status == Status::Passing).count()
                });
                let alive = |member: &MemberStatus| member.state == MemberState::Alive;
                app.handle().members().iter().filter(|member| alive(member)).count() == wanted
                    && view.nodes().filter(|node| node.info.is_up).count() == wanted
                    && (args.no_app || passing == wanted)
            })
        };
        let begun = tokio::time::Instant::now();
        while !is_ready() {
            if begun.elapsed() > READY_WITHIN {
                return Err(Failure::Failed(
                    "the nodes did not find each other in time; run with --log info to see why"
                        .to_owned(),
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn stop(&mut self) {
        self.samples.shutdown().await;
        let mut stopping = JoinSet::new();
        for app in self.apps.drain(..) {
            stopping.spawn(app.stop());
        }
        while stopping.join_next().await.is_some() {}
    }
}

async fn start_node(args: &Args, home: &Home, authority: &Ca, k: u8) -> Result<App, Failure> {
    let ip = address_of(k);
    let name = format!("dev-{k}");
    let flags = Flags {
        data_dir: Some(home.0.join(&name)),
        node: Some(name.clone()),
        http: vec![format!("{ip}:{}", args.http_port)],
        dns: vec![format!("{ip}:{}", args.dns_port)],
        gossip: Some(format!("{ip}:{}", args.gossip_port)),
        join: if k == 1 { vec![] } else { vec![format!("{}:{}", address_of(1), args.gossip_port)] },
        schema: args.schema.clone(),
        consul: args.consul.clone().filter(|_| k == 1),
        ..Flags::default()
    };
    let agent = Agent::from_flags(flags)?;
    let identity = identity(authority, &name)?;
    let swim = crate::swim::Config::local();
    let options = Options { identity: Some(identity), swim, ..Options::default() };
    App::start(agent, options).await.map_err(|error| Failure::Usage(error.to_string()))
}

/// Makes a node's throw-away certificate. Its files are never written.
fn identity(authority: &Ca, name: &str) -> Result<Identity, Failure> {
    let node = NodeId(uuid::Uuid::new_v4().into_bytes());
    let now = SystemTime::now();
    let request = NodeRequest { node, name: name.to_owned(), days: NODE_DAYS };
    let pems = authority.issue(&request, now)?;
    Identity::from_pem(authority.certificate(), &pems.certificate, &pems.key, now)
        .map_err(|error| Failure::Failed(error.to_string()))
}

fn address_of(k: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, k))
}

fn sample(address: SocketAddr) -> Command {
    let check = Check {
        id: "service:app".to_owned(),
        name: "app answers".to_owned(),
        service_id: "app".to_owned(),
        kind: "http".to_owned(),
        ..Check::default()
    };
    let kind = CheckKind::Http {
        url: format!("http://{address}/"),
        method: "GET".to_owned(),
        headers: std::collections::BTreeMap::new(),
        body: String::new(),
        tls_skip_verify: false,
        interval: SAMPLE_INTERVAL,
        timeout: SAMPLE_INTERVAL,
    };
    Command::Register {
        service: Service {
            id: "app".to_owned(),
            name: "app".to_owned(),
            tags: vec!["sample".to_owned()],
            port: i64::from(address.port()),
            ..Service::default()
        },
        checks: vec![CheckRegistration {
            check,
            definition: CheckDefinition { kind, ..CheckDefinition::default() },
        }],
        replace_checks: true,
    }
}

fn welcome(args: &Args) -> String {
    let (http, dns, last) = (args.http_port, args.dns_port, address_of(args.nodes));
    let mut text = format!(
        "{} nodes are up: dev-1 to dev-{} at 127.0.0.1 to {last}. Ctrl-C stops and removes them.\n",
        args.nodes, args.nodes
    );
    if !args.no_app {
        text.push_str(&format!(
            "\n  dig app.internal @127.0.0.1 -p {dns} +short\n  dig app.internal @{last} -p {dns} SRV\n"
        ));
    }
    let remote = if http == HTTP_PORT {
        String::new()
    } else {
        format!(" --http-addr http://127.0.0.1:{http}")
    };
    text.push_str(&format!(
        "  curl http://{last}:{http}/v1/catalog/services\n  tribune members{remote}\n  tribune watch app{remote}\n  \
         tribune register web --port 8080{remote}\n  \
         tribune query 'SELECT name, address FROM nodes'{remote}\n"
    ));
    text
}

/// The cluster's files, removed at the end.
struct Home(PathBuf);

impl Home {
    fn make() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("tribune-dev-{}", std::process::id()));
        std::fs::create_dir(&path)
            .map_err(|error| Failure::Failed(format!("cannot make {}: {error}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            complain(&format!("cannot remove {}: {error}", self.0.display()));
        }
    }
}
