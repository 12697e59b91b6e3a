//! The loop: ask the agent, compare, write the differences, wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Config;
use super::agent::{AgentSelf, Items};
use super::backoff::Backoff;
use super::client::{Client, ClientError};
use super::diff::{Held, Mirror, Note, Seen, Step};
use super::watch::watch;
use crate::catalog::Command;
use crate::catalog::command::MirrorChange;
use crate::catalog::model::Source;
use crate::node::{Handle, SubmitError};
use crate::types::{Time, Wall};

/// How many changes one transaction takes at most: it travels as one.
const CHANGES_MAX: usize = 256;
/// How often the services are read again because they changed while the checks were read.
const READS_MAX: usize = 4;
/// How long to wait before an agent that would not say who it is is asked again.
const SELF_RETRY: Duration = Duration::from_secs(60);

/// The mirror of the host's Consul agent. Cloning is cheap; all clones are one.
#[derive(Clone, Debug)]
pub struct Ingest {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    client: Client,
    status: watch::Sender<Status>,
}

/// How the mirror is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// Where the agent is.
    pub url: String,
    /// What the agent calls its node, and its datacenter and version, once it has said so.
    pub agent_node: Option<String>,
    pub agent_datacenter: Option<String>,
    pub agent_version: Option<String>,
    /// When the agent last answered in full.
    pub answered_at: Option<Wall>,
    /// Why the last attempt came to nothing; `None` when all is well.
    pub error: Option<String>,
    /// What is being waited for before something is withdrawn.
    pub waiting: Option<String>,
    /// How many services and checks the agent named in its last answer.
    pub services: usize,
    pub checks: usize,
    /// How many of them could not be read.
    pub unreadable: usize,
    /// How many changes this node refused to take over, as they now stand.
    pub refused: usize,
    /// Whether Consul's blocking queries tell of changes; if not, only polling does.
    pub is_watching: bool,
    /// How often the agent was asked, and how often in vain.
    pub polls: u64,
    pub failures: u64,
    /// How many changes were written.
    pub changes: u64,
}

/// What the mirror needs of a node: a [`Handle`], or a stand-in in tests.
pub(super) trait Mirrored: Send + Sync {
    fn name(&self) -> String;
    fn held(&self) -> Held;
    fn submit(&self, command: Command) -> impl Future<Output = Result<(), SubmitError>> + Send;
}

impl Mirrored for Handle {
    fn name(&self) -> String {
        self.local().name.clone()
    }

    fn held(&self) -> Held {
        self.view().own().map(|entry| Held::of(entry)).unwrap_or_default()
    }

    async fn submit(&self, command: Command) -> Result<(), SubmitError> {
        Handle::submit(self, command).await
    }
}

impl Ingest {
    /// Prepares the mirror. Fails when the configuration is at fault; the agent is not asked yet.
    pub fn new(config: Config) -> Result<Self, ClientError> {
        let client = Client::new(&config)?;
        let status = Status { url: client.url().to_owned(), ..Status::default() };
        let shared = Shared { config, client, status: watch::Sender::new(status) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Returns how the mirror is doing.
    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// Mirrors the agent until `stop`. May be called again after it has ended.
    pub async fn run(&self, node: Handle, stop: CancellationToken) {
        self.run_for(node, stop).await;
    }

    pub(super) async fn run_for<N: Mirrored>(&self, node: N, stop: CancellationToken) {
        let mirroring = Loop::new(Arc::clone(&self.shared), node).run();
        tokio::select! {
            () = stop.cancelled() => {}
            () = mirroring => {}
        }
    }
}

/// One life of the loop.
struct Loop<N> {
    shared: Arc<Shared>,
    node: N,
    start: Instant,
    mirror: Mirror,
    last: Seen,
    /// Changes that the node refused, so that it is not asked for them again and again.
    refused: Vec<Vec<MirrorChange>>,
    backoff: Backoff,
    wake: Arc<Notify>,
    /// The two waiting queries.
    watches: JoinSet<()>,
    works: [Arc<AtomicBool>; 2],
    /// When to ask who the agent is, while that is not known.
    ask_self_at: Option<Instant>,
}

impl<N: Mirrored> Loop<N> {
    fn new(shared: Arc<Shared>, node: N) -> Self {
        let Config { guard, update_interval, withdraw_after, .. } = &shared.config;
        let mirror = Mirror::new(Time(0), guard.clone(), *update_interval, *withdraw_after);
        let start = Instant::now();
        Self {
            shared,
            node,
            start,
            mirror,
            last: Seen::default(),
            refused: Vec::new(),
            backoff: Backoff::default(),
            wake: Arc::default(),
            watches: JoinSet::new(),
            works: [Arc::default(), Arc::default()],
            ask_self_at: Some(start),
        }
    }

    async fn run(mut self) {
        loop {
            let result = read(&self.shared.client, &self.last).await;
            let wait = match result {
                Ok(seen) => self.on_answer(seen).await,
                Err(error) => self.on_error(&error).await,
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// Takes over what the agent said, and returns how long to wait.
    async fn on_answer(&mut self, seen: Seen) -> Duration {
        self.meet_agent().await;
        let now = self.now();
        let step = self.mirror.on_answer(now, &seen, &self.node.held());
        let error = self.carry_out(step).await.err().map(|error| {
            let error = format!("this node cannot write what the Consul agent says: {error}");
            warn!("{error}");
            error
        });
        if error.is_none() {
            self.mirror.on_written();
        }
        let is_watching = self.works.iter().all(|works| works.load(Ordering::Relaxed));
        let (waiting, refused) = (self.mirror.waiting(), self.refused.len());
        self.shared.status.send_modify(|status| {
            status.polls += 1;
            status.failures += u64::from(error.is_some());
            status.answered_at = Some(wall());
            status.error = error.clone();
            status.waiting = waiting;
            status.services = count(&seen.services);
            status.checks = count(&seen.checks);
            status.unreadable = seen.services.unreadable.len() + seen.checks.unreadable.len();
            status.refused = refused;
            status.is_watching = is_watching;
        });
        self.last = seen;
        if error.is_some() {
            return self.backoff.next(rand::random());
        }
        self.backoff.reset();
        self.shared.config.interval
    }

    /// Keeps what there is, and returns how long to wait.
    async fn on_error(&mut self, error: &ClientError) -> Duration {
        let reason = error.to_string();
        let step = self.mirror.on_error(self.now(), &reason, &self.node.held());
        // It may be another one when it comes back.
        self.watches = JoinSet::new();
        self.ask_self_at = Some(Instant::now());
        if let Err(error) = self.carry_out(step).await {
            warn!("this node cannot withdraw what came from the Consul agent: {error}");
        }
        let waiting = self.mirror.waiting();
        self.shared.status.send_modify(|status| {
            status.polls += 1;
            status.failures += 1;
            status.error = Some(reason);
            status.waiting = waiting;
            status.is_watching = false;
        });
        self.backoff.next(rand::random())
    }

    /// Asks who the agent is, where that is not known, and begins to wait for changes of its node.
    async fn meet_agent(&mut self) {
        if self.ask_self_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        match self.shared.client.agent_self().await {
            Ok(agent) => {
                self.ask_self_at = None;
                self.greet(&agent);
                if self.shared.config.watch {
                    self.start_watches(&agent.node);
                }
            }
            Err(error) => {
                debug!(%error, "The Consul agent does not say who it is: only polling finds changes");
                self.ask_self_at = Some(Instant::now() + SELF_RETRY);
            }
        }
    }

    fn greet(&self, agent: &AgentSelf) {
        let AgentSelf { node, datacenter, version } = agent;
        let own = self.node.name();
        if own.eq_ignore_ascii_case(node) {
            info!(node, datacenter, version, "Mirroring the Consul agent");
        } else {
            warn!(node, own, "The Consul agent calls this node by another name than Tribune does");
        }
        self.shared.status.send_modify(|status| {
            status.agent_node = Some(node.clone());
            status.agent_datacenter = Some(datacenter.clone());
            status.agent_version = Some(version.clone());
        });
    }

    fn start_watches(&mut self, node: &str) {
        self.watches = JoinSet::new();
        self.works = [Arc::default(), Arc::default()];
        for (list, works) in ["health", "catalog"].into_iter().zip(&self.works) {
            let (client, wake) = (self.shared.client.clone(), Arc::clone(&self.wake));
            self.watches.spawn(watch(client, list, node.to_owned(), wake, Arc::clone(works)));
        }
    }

    async fn carry_out(&mut self, step: Step) -> Result<(), SubmitError> {
        for note in step.notes {
            match note {
                Note::Info(text) => info!("{text}"),
                Note::Warn(text) => warn!("{text}"),
            }
        }
        self.refused.retain(|refused| step.groups.contains(refused));
        let mut groups = step.groups;
        groups.retain(|group| !self.refused.contains(group));
        for chunk in chunks(groups) {
            self.write(chunk).await?;
        }
        Ok(())
    }

    /// Writes groups as one transaction. Where the node refuses one of them, the others count.
    async fn write(&mut self, chunk: Vec<Vec<MirrorChange>>) -> Result<(), SubmitError> {
        match self.submit(chunk.concat()).await {
            Err(SubmitError::Refused(_)) => {}
            other => return other,
        }
        for group in chunk {
            match self.submit(group.clone()).await {
                Err(SubmitError::Refused(refusal)) if group.len() == 1 => {
                    warn!(change = name_of(&group[0]), %refusal, "Left out what the Consul agent says");
                    self.refused.push(group);
                }
                // What is refused of it is left alone in its group next time, and comes here.
                Err(SubmitError::Refused(_)) => {
                    for change in group {
                        self.submit_one(change).await?;
                    }
                }
                other => other?,
            }
        }
        Ok(())
    }

    async fn submit_one(&self, change: MirrorChange) -> Result<(), SubmitError> {
        match self.submit(vec![change]).await {
            Err(SubmitError::Refused(_)) => Ok(()),
            other => other,
        }
    }

    async fn submit(&self, changes: Vec<MirrorChange>) -> Result<(), SubmitError> {
        let count = changes.len();
        self.node.submit(Command::Mirror { source: Source::Consul, changes }).await?;
        debug!(count, "Changes of the Consul agent written");
        self.shared.status.send_modify(|status| status.changes += count as u64);
        Ok(())
    }

    fn now(&self) -> Time {
        Time(0) + self.start.elapsed()
    }
}

/// Asks for services and checks so that they fit each other.
///
/// They are two questions, and a service may come or go between them. Without its checks it would
/// look well. So when an id appeared or vanished, the services are read once more after the
/// checks, until nothing moved in between.
async fn read(client: &Client, last: &Seen) -> Result<Seen, ClientError> {
    let mut services = client.services().await?;
    let mut checks = client.checks().await?;
    for _ in 0..READS_MAX {
        if has_same_ids(&services, &last.services) && has_same_ids(&checks, &last.checks) {
            break;
        }
        let again = client.services().await?;
        let is_still_so = has_same_ids(&again, &services);
        services = again;
        if is_still_so {
            break;
        }
        checks = client.checks().await?;
    }
    Ok(Seen { services, checks })
}

fn has_same_ids<T>(a: &Items<T>, b: &Items<T>) -> bool {
    a.readable.keys().eq(b.readable.keys()) && a.unreadable.keys().eq(b.unreadable.keys())
}

fn count<T>(items: &Items<T>) -> usize {
    items.readable.len() + items.unreadable.len()
}

/// Packs groups, whole, into transactions of bounded size.
fn chunks(groups: Vec<Vec<MirrorChange>>) -> Vec<Vec<Vec<MirrorChange>>> {
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    let mut size = 0;
    for group in groups {
        if size > 0 && size + group.len() > CHANGES_MAX {
            chunks.push(std::mem::take(&mut chunk));
            size = 0;
        }
        size += group.len();
        chunk.push(group);
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}

fn name_of(change: &MirrorChange) -> String {
    match change {
        MirrorChange::PutService(service) => format!("service {:?}", service.id),
        MirrorChange::RemoveService { service_id } => format!("removal of service {service_id:?}"),
        MirrorChange::PutCheck(check) => format!("check {:?}", check.id),
        MirrorChange::RemoveCheck { check_id } => format!("removal of check {check_id:?}"),
    }
}

fn wall() -> Wall {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Wall(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use axum::Router;
    use axum::extract::{Query, State};
    use axum::http::{HeaderMap, StatusCode};
    use axum::response::{IntoResponse, Response};
    use axum::routing::get;
    use serde_json::{Value, json};
    use tokio::net::TcpListener;

    use super::super::{GuardConfig, Token};
    use super::*;
    use crate::catalog::Status as Health;
    use crate::crdt::Refusal;

    const S: Duration = Duration::from_secs(1);

    /// A node that holds what it was told, and refuses services named `refused`.
    #[derive(Clone, Default)]
    pub struct StubNode {
        pub held: Arc<Mutex<Held>>,
        commands: Arc<Mutex<usize>>,
    }

    impl Mirrored for StubNode {
        fn name(&self) -> String {
            "n1".to_owned()
        }

        fn held(&self) -> Held {
            self.held.lock().unwrap().clone()
        }

        async fn submit(&self, command: Command) -> Result<(), SubmitError> {
            let Command::Mirror { source: Source::Consul, changes } = command else {
                panic!("the mirror has no business with {command:?}");
            };
            *self.commands.lock().unwrap() += 1;
            let is_refused = |change: &MirrorChange| matches!(change, MirrorChange::PutService(service) if service.name == "refused");
            if changes.iter().any(is_refused) {
                return Err(SubmitError::Refused(Refusal("too odd".to_owned())));
            }
            let mut held = self.held.lock().unwrap();
            for change in changes {
                match change {
                    MirrorChange::PutService(service) => {
                        held.services.insert(service.id.clone(), service);
                    }
                    MirrorChange::RemoveService { service_id } => {
                        held.services.remove(&service_id);
                    }
                    MirrorChange::PutCheck(check) => {
                        held.checks.insert(check.id.clone(), check);
                    }
                    MirrorChange::RemoveCheck { check_id } => {
                        held.checks.remove(&check_id);
                    }
                }
            }
            Ok(())
        }
    }

    /// What a stub of an agent answers.
    #[derive(Clone)]
    struct Agent {
        services: Value,
        checks: Value,
        index: u64,
        token: Option<&'static str>,
    }

    struct StubAgent {
        url: String,
        agent: watch::Sender<Agent>,
        server: tokio::task::JoinHandle<()>,
    }

    impl Drop for StubAgent {
        fn drop(&mut self) {
            self.server.abort();
        }
    }

    impl StubAgent {
        async fn start() -> Self {
            Self::start_at("127.0.0.1:0".parse().unwrap()).await
        }

        async fn start_at(address: std::net::SocketAddr) -> Self {
            let services = json!({"web-1": service("web"), "web-2": service("web")});
            let checks = json!({"c1": check("web-1"), "c2": check("web-2")});
            let agent = Agent { services, checks, index: 10, token: None };
            let (agent, receiver) = watch::channel(agent);
            let routes = Router::new()
                .route("/v1/agent/self", get(agent_self))
                .route("/v1/agent/services", get(services_of))
                .route("/v1/agent/checks", get(checks_of))
                .route("/v1/health/node/n1", get(wait_for))
                .route("/v1/catalog/node/n1", get(wait_for))
                .with_state(receiver);
            let listener = TcpListener::bind(address).await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let server = tokio::spawn(async { axum::serve(listener, routes).await.unwrap() });
            Self { url, agent, server }
        }

        fn change(&self, change: impl FnOnce(&mut Agent)) {
            self.agent.send_modify(|agent| {
                change(agent);
                agent.index += 1;
            });
        }
    }

    fn service(name: &str) -> Value {
        json!({"Service": name, "Port": 80, "Tags": ["a"]})
    }

    fn check(service_id: &str) -> Value {
        json!({"Name": "c", "Status": "passing", "ServiceID": service_id, "Type": "ttl"})
    }

    type Live = State<watch::Receiver<Agent>>;

    fn answer(agent: &Agent, headers: &HeaderMap, body: Value) -> Response {
        let token = headers.get("x-consul-token").map(|token| token.to_str().unwrap());
        if agent.token.is_some() && token != agent.token {
            return (StatusCode::FORBIDDEN, "ACL not found").into_response();
        }
        if let Value::String(text) = body {
            return text.into_response();
        }
        ([("X-Consul-Index", agent.index.to_string())], body.to_string()).into_response()
    }

    async fn agent_self(State(live): Live, headers: HeaderMap) -> Response {
        let config = json!({"NodeName": "n1", "Datacenter": "dc1", "Version": "1.8.7"});
        answer(&live.borrow(), &headers, json!({"Config": config}))
    }

    async fn services_of(State(live): Live, headers: HeaderMap) -> Response {
        let body = live.borrow().services.clone();
        answer(&live.borrow(), &headers, body)
    }

    async fn checks_of(State(live): Live, headers: HeaderMap) -> Response {
        let body = live.borrow().checks.clone();
        answer(&live.borrow(), &headers, body)
    }

    async fn wait_for(
        State(mut live): Live,
        Query(query): Query<std::collections::BTreeMap<String, String>>,
        headers: HeaderMap,
    ) -> Response {
        let index: u64 = query["index"].parse().unwrap();
        let _ = tokio::time::timeout(60 * S, live.wait_for(|agent| agent.index > index)).await;
        answer(&live.borrow(), &headers, json!([]))
    }

    /// A mirror at work.
    struct Bench {
        node: StubNode,
        ingest: Ingest,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    impl Bench {
        fn start(config: Config) -> Self {
            let (node, ingest) = (StubNode::default(), Ingest::new(config).unwrap());
            let stop = CancellationToken::new();
            let (node_, ingest_, stop_) = (node.clone(), ingest.clone(), stop.clone());
            let task = tokio::spawn(async move { ingest_.run_for(node_, stop_).await });
            Self { node, ingest, stop, task }
        }

        async fn until(&self, what: &str, is_so: impl Fn(&Status, &Held) -> bool) -> Status {
            let mut status = self.ingest.shared.status.subscribe();
            let held = self.node.held.clone();
            let check = |status: &Status| is_so(status, &held.lock().unwrap());
            let result = tokio::time::timeout(20 * S, status.wait_for(check)).await;
            match result {
                Ok(status) => status.unwrap().clone(),
                Err(_) => panic!("not within 20 s: {what}; {:?}", self.ingest.status()),
            }
        }

        async fn until_polls(&self, more: u64) {
            let polls = self.ingest.status().polls + more;
            self.until("polls go on", |status, _| status.polls >= polls).await;
        }

        async fn end(self) {
            self.stop.cancel();
            self.task.await.unwrap();
        }
    }

    fn config(agent: &StubAgent) -> Config {
        Config { interval: S / 100, watch: false, ..Config::new(&agent.url) }
    }

    #[tokio::test]
    async fn the_mirror_follows_its_agent() {
        let agent = StubAgent::start().await;
        let bench = Bench::start(config(&agent));
        let status = bench.until("both are there", |_, held| held.checks.len() == 2).await;
        assert_eq!(status.agent_node.as_deref(), Some("n1"));
        agent.change(|agent| {
            agent.checks["c1"]["Status"] = "critical".into();
            agent.services["web-3"] = service("web");
            agent.services.as_object_mut().unwrap().remove("web-2");
            agent.checks.as_object_mut().unwrap().remove("c2");
        });
        bench
            .until("the changes are there", |_, held| {
                let ids: Vec<&String> = held.services.keys().collect();
                ids == ["web-1", "web-3"]
                    && held.checks.len() == 1
                    && held.checks["c1"].status == Health::Critical
            })
            .await;
        let changes = bench.ingest.status().changes;
        bench.until_polls(50).await;
        assert_eq!(bench.ingest.status().changes, changes, "nothing changed, nothing is written");
        bench.end().await;
    }

    #[tokio::test]
    async fn an_agent_that_vanishes_takes_nothing_with_it_and_is_followed_when_it_is_back() {
        let agent = StubAgent::start().await;
        let bench = Bench::start(config(&agent));
        bench.until("both are there", |_, held| held.checks.len() == 2).await;
        let address = agent.url.trim_start_matches("http://").parse().unwrap();
        drop(agent);
        let status = bench.until("the error is told", |status, _| status.error.is_some()).await;
        assert!(status.error.unwrap().contains("cannot be reached"));
        assert!(status.waiting.unwrap().contains("the 2 services that came from it stay"));
        bench.until_polls(2).await;
        assert_eq!(bench.node.held().services.len(), 2);
        let agent = StubAgent::start_at(address).await;
        agent.change(|agent| agent.checks["c1"]["Status"] = "warning".into());
        bench
            .until("it is followed", |status, held| {
                status.error.is_none() && held.checks["c1"].status == Health::Warning
            })
            .await;
        bench.end().await;
    }

    #[tokio::test]
    async fn an_empty_answer_is_not_believed_until_it_is_insisted_on() {
        let agent = StubAgent::start().await;
        let guard = GuardConfig { polls: 30, period: S / 5, ..GuardConfig::default() };
        let bench = Bench::start(Config { guard, ..config(&agent) });
        bench.until("both are there", |_, held| held.checks.len() == 2).await;
        agent.change(|agent| (agent.services, agent.checks) = (json!({}), json!({})));
        let status = bench.until("it waits", |status, _| status.waiting.is_some()).await;
        assert_eq!(bench.node.held().services.len(), 2);
        assert!(status.waiting.unwrap().starts_with("2 of 2 services are missing"));
        let polls = status.polls;
        let status = bench.until("it is believed", |_, held| held.services.is_empty()).await;
        assert!(status.polls >= polls + 28, "{} after {polls}", status.polls);
        bench.end().await;
    }

    #[tokio::test]
    async fn odd_items_and_refused_ones_do_not_hold_up_the_others() {
        let agent = StubAgent::start().await;
        agent.change(|agent| {
            agent.services["a-odd"] = json!({"Service": "web", "Port": "eighty"});
            agent.services["b-refused"] = service("refused");
            agent.checks["c-refused"] = check("b-refused");
        });
        let bench = Bench::start(config(&agent));
        let status = bench.until("the others are there", |_, held| held.services.len() == 2).await;
        assert_eq!(status.error, None);
        let status = bench.until("one is refused", |status, _| status.refused == 1).await;
        assert_eq!(status.unreadable, 1);
        bench.until_polls(2).await;
        let commands = *bench.node.commands.lock().unwrap();
        bench.until_polls(20).await;
        assert_eq!(*bench.node.commands.lock().unwrap(), commands, "it is not asked for again");
        agent.change(|agent| agent.services["b-refused"] = service("fine"));
        bench
            .until("it is no longer refused", |status, held| {
                status.refused == 0 && held.services.len() == 3
            })
            .await;
        bench.end().await;
    }

    #[tokio::test]
    async fn a_token_is_sent_and_its_lack_is_explained() {
        let agent = StubAgent::start().await;
        agent.change(|agent| agent.token = Some("s3cret"));
        let bench = Bench::start(config(&agent));
        let status = bench.until("it is refused", |status, _| status.error.is_some()).await;
        let expected = "/v1/agent/services was answered 403: ACL not found (consul.token needs \
             service:read and node:read for this node)";
        assert_eq!(status.error.as_deref(), Some(expected));
        bench.end().await;
        let token = Some(Token("s3cret".to_owned()));
        let bench = Bench::start(Config { token, ..config(&agent) });
        bench.until("both are there", |_, held| held.services.len() == 2).await;
        bench.end().await;
    }

    #[tokio::test]
    async fn a_blocking_query_tells_of_a_change_long_before_the_next_poll() {
        let agent = StubAgent::start().await;
        let config = Config { interval: 600 * S, watch: true, ..config(&agent) };
        let bench = Bench::start(config);
        bench.until("both are there", |_, held| held.checks.len() == 2).await;
        for port in 1..=3 {
            // A change between two questions is told to the second.
            agent.change(|agent| agent.services["web-1"]["Port"] = port.into());
            bench.until("the port is there", |_, held| held.services["web-1"].port == port).await;
        }
        bench.end().await;
    }

    #[tokio::test]
    async fn answers_that_are_no_answers_withdraw_nothing() {
        let agent = StubAgent::start().await;
        let bench = Bench::start(config(&agent));
        bench.until("both are there", |_, held| held.checks.len() == 2).await;
        let too_long = "x".repeat(17 * 1024 * 1024);
        for (body, reason) in [("<html>", "makes no sense"), (&*too_long, "is longer than")] {
            agent.change(|agent| agent.services = body.into());
            let told = |status: &Status, _: &Held| {
                status.error.as_ref().is_some_and(|error| error.contains(reason))
            };
            bench.until(reason, told).await;
            assert_eq!(bench.node.held().services.len(), 2);
        }
        bench.end().await;
    }

    #[test]
    fn transactions_are_bounded_and_keep_groups_whole() {
        let group = |size: usize| {
            let change = MirrorChange::RemoveCheck { check_id: "c".to_owned() };
            vec![change; size]
        };
        let sizes = |groups: Vec<Vec<MirrorChange>>| -> Vec<usize> {
            chunks(groups).iter().map(|chunk| chunk.concat().len()).collect()
        };
        assert_eq!(sizes(vec![group(2); 1000]), [256, 256, 256, 256, 256, 256, 256, 208]);
        assert_eq!(sizes(vec![group(100), group(300), group(1)]), [100, 300, 1]);
        assert_eq!(sizes(Vec::new()), [0; 0]);
    }
}
