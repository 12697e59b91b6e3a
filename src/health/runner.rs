//! The task behind the rounds: it runs what is due, writes what changed, and takes reports.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::http::Prober;
use super::rounds::{Effect, Outcome, Reporter, Rounds, Ticket};
use super::work::{UnderWay, deregister, run, write};
use super::{Config, ReportError, SetupError};
use crate::catalog::{Check, CheckDefinition, CheckKind, Command, Status};
use crate::node::{Handle, SubmitError};
use crate::types::Time;

/// How many reports of applications may wait for the rounds; who comes then waits as well.
const REPORTS_MAX: usize = 1024;
/// How long a report waits to be taken and written, while the runner is being started again or
/// the disk is slow, before its sender is told to report again.
const REPORT_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long to wait before definitions that could not be read are read again.
const DEFINITIONS_RETRY: Duration = Duration::from_secs(1);

/// The checks of this node, as the faces hold them. Cloning is cheap; all clones are one.
#[derive(Clone, Debug)]
pub struct Health {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub config: Config,
    pub prober: Prober,
    pub counts: Counts,
    /// Outputs that are newer than those in the catalog, by check.
    held_back: std::sync::Mutex<BTreeMap<Arc<str>, String>>,
    inbox: mpsc::Sender<Word>,
    /// Held by [`Health::run`] while it runs: there is one at a time, and the next one after a
    /// failure finds what was reported meanwhile.
    outbox: Mutex<mpsc::Receiver<Word>>,
}

impl Shared {
    fn hold_back(&self, check_id: &Arc<str>, output: Option<String>) {
        let mut held_back = self.held_back.lock().unwrap_or_else(PoisonError::into_inner);
        match output {
            Some(output) => drop(held_back.insert(Arc::clone(check_id), output)),
            None => drop(held_back.remove(check_id)),
        }
    }
}

/// What the faces say.
#[derive(Debug)]
enum Word {
    Report { check_id: String, outcome: Outcome, reporter: Reporter },
    RegisteredAgain { check_ids: Vec<String> },
}

/// What has happened since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Checks that are run here or wait for reports.
    pub checks: u64,
    /// Runs that ended.
    pub runs: u64,
    /// Runs that are under way or wait for their turn.
    pub runs_now: u64,
    /// Reports of applications that were taken.
    pub reports: u64,
    /// Rows written.
    pub writes: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Instances removed because they stayed critical.
    pub deregistered: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    checks: AtomicU64,
    runs: AtomicU64,
    pub runs_now: AtomicU64,
    reports: AtomicU64,
    writes: AtomicU64,
    write_errors: AtomicU64,
    pub deregistered: AtomicU64,
}

/// What the runner needs of a node: a [`Handle`], or a stand-in in tests.
pub(super) trait Checked: Clone + Send + Sync + 'static {
    fn definitions(
        &self,
    ) -> impl Future<Output = Result<Vec<(String, CheckDefinition)>, SubmitError>> + Send;
    fn definitions_changed(&self) -> watch::Receiver<u64>;
    /// Returns a check of this node as it stands in the catalog.
    fn check(&self, check_id: &str) -> Option<Check>;
    fn submit(&self, command: Command) -> impl Future<Output = Result<(), SubmitError>> + Send;
}

impl Checked for Handle {
    async fn definitions(&self) -> Result<Vec<(String, CheckDefinition)>, SubmitError> {
        self.check_definitions().await
    }

    fn definitions_changed(&self) -> watch::Receiver<u64> {
        Handle::definitions_changed(self)
    }

    fn check(&self, check_id: &str) -> Option<Check> {
        self.view().own_check(check_id).map(|entry| entry.check.clone())
    }

    async fn submit(&self, command: Command) -> Result<(), SubmitError> {
        Handle::submit(self, command).await
    }
}

impl Health {
    /// Prepares to run checks. The runner itself is started by [`Health::run`].
    pub fn new(config: Config) -> Result<Self, SetupError> {
        let (inbox, outbox) = mpsc::channel(REPORTS_MAX);
        let shared = Shared {
            prober: Prober::new().map_err(|error| SetupError(error.to_string()))?,
            config,
            counts: Counts::default(),
            held_back: std::sync::Mutex::default(),
            inbox,
            outbox: Mutex::new(outbox),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Takes an application's report on its TTL check. The time to live starts anew; a change of
    /// status is on disk when this returns.
    pub async fn report(
        &self,
        check_id: &str,
        status: Status,
        output: &str,
    ) -> Result<(), ReportError> {
        let (reporter, answer) = oneshot::channel();
        let outcome = Outcome { status, output: output.to_owned() };
        let word = Word::Report { check_id: check_id.to_owned(), outcome, reporter };
        let taken = async {
            self.shared.inbox.send(word).await.map_err(|_| ReportError::NotRunning)?;
            answer.await.map_err(|_| ReportError::NotRunning)?
        };
        timeout(REPORT_WAIT_MAX, taken).await.unwrap_or(Err(ReportError::NotRunning))
    }

    /// Says that an application has registered these checks, perhaps unchanged: a registration
    /// counts as a sign of life, as with Consul.
    pub async fn registered(&self, check_ids: Vec<String>) {
        // An error says that no checks run any more.
        let _ = self.shared.inbox.send(Word::RegisteredAgain { check_ids }).await;
    }

    /// Returns what a check said last, where that is newer than its row: outputs are written with a
    /// change of status, or after minutes.
    pub fn output(&self, check_id: &str) -> Option<String> {
        let held_back = self.shared.held_back.lock().unwrap_or_else(PoisonError::into_inner);
        held_back.get(check_id).cloned()
    }

    /// Returns what has happened since the start.
    pub fn counters(&self) -> Counters {
        let counts = &self.shared.counts;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counters {
            checks: read(&counts.checks),
            runs: read(&counts.runs),
            runs_now: read(&counts.runs_now),
            reports: read(&counts.reports),
            writes: read(&counts.writes),
            write_errors: read(&counts.write_errors),
            deregistered: read(&counts.deregistered),
        }
    }

    /// Runs the node's checks until `stop`. May be called again after it has ended.
    pub async fn run(&self, node: Handle, stop: CancellationToken) {
        self.run_for(node, stop).await;
    }

    async fn run_for<N: Checked>(&self, node: N, stop: CancellationToken) {
        let mut outbox = self.shared.outbox.lock().await;
        let runner = Runner::new(Arc::clone(&self.shared), node);
        runner.run(&mut outbox, stop).await;
    }
}

/// One life of the task.
struct Runner<N> {
    shared: Arc<Shared>,
    node: N,
    start: Instant,
    rounds: Rounds,
    tasks: JoinSet<Done>,
    runs: BTreeMap<Arc<str>, AbortHandle>,
    probes: Arc<Semaphore>,
    scripts: Arc<Semaphore>,
    /// When to read definitions again that could not be read.
    retry_at: Option<Instant>,
}

/// What a task of the runner came to.
pub(super) enum Done {
    Ran { ticket: Ticket, outcome: Outcome },
    Wrote { ticket: Ticket, outcome: Outcome, result: Result<(), SubmitError> },
    Deregistered,
}

impl<N: Checked> Runner<N> {
    fn new(shared: Arc<Shared>, node: N) -> Self {
        Self {
            rounds: Rounds::new(Time(0), shared.config.clone(), rand::random()),
            probes: Arc::new(Semaphore::new(shared.config.probes_max.max(1))),
            scripts: Arc::new(Semaphore::new(shared.config.scripts_max.max(1))),
            shared,
            node,
            start: Instant::now(),
            tasks: JoinSet::new(),
            runs: BTreeMap::new(),
            retry_at: None,
        }
    }

    async fn run(mut self, outbox: &mut mpsc::Receiver<Word>, stop: CancellationToken) {
        let mut changed = self.node.definitions_changed();
        changed.mark_changed();
        loop {
            let deadline = self.start + Duration::from_micros(self.rounds.deadline().0);
            let deadline = self.retry_at.map_or(deadline, |at| at.min(deadline));
            tokio::select! {
                () = stop.cancelled() => break,
                // An error says that the node is gone; the token will follow.
                Ok(()) = changed.changed() => self.read_definitions().await,
                Some(word) = outbox.recv() => self.on_word(&mut changed, word).await,
                Some(done) = self.tasks.join_next() => self.on_done(done),
                () = sleep_until(deadline) => self.on_time().await,
            }
            self.carry_out();
        }
        self.shared.counts.checks.store(0, Ordering::Relaxed);
    }

    fn now(&self) -> Time {
        Time(0) + self.start.elapsed()
    }

    async fn read_definitions(&mut self) {
        self.retry_at = None;
        match self.node.definitions().await {
            Ok(definitions) => {
                let now = self.now();
                let node = &self.node;
                self.rounds.on_definitions(now, definitions, &|id| node.check(id));
                let count = self.rounds.count();
                self.shared.counts.checks.store(count as u64, Ordering::Relaxed);
                debug!(checks = count, "Definitions of checks read");
            }
            Err(error) => {
                warn!(%error, "Cannot read the definitions of checks; trying again in a second");
                self.retry_at = Some(Instant::now() + DEFINITIONS_RETRY);
            }
        }
    }

    async fn on_word(&mut self, changed: &mut watch::Receiver<u64>, word: Word) {
        // Whoever reports on a check right after registering it must not hear that there is none.
        if changed.has_changed().unwrap_or(false) {
            changed.mark_unchanged();
            self.read_definitions().await;
            self.carry_out();
        }
        let now = self.now();
        let node = &self.node;
        match word {
            Word::Report { check_id, outcome, reporter } => {
                self.shared.counts.reports.fetch_add(1, Ordering::Relaxed);
                let lookup = |id: &str| node.check(id);
                self.rounds.on_report(now, &check_id, outcome, reporter, &lookup);
            }
            Word::RegisteredAgain { check_ids } => {
                for check_id in check_ids {
                    self.rounds.on_registered_again(now, &check_id);
                }
            }
        }
    }

    fn on_done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let now = self.now();
        let node = &self.node;
        let lookup = |id: &str| node.check(id);
        match done {
            Ok(Done::Ran { ticket, outcome }) => {
                self.shared.counts.runs.fetch_add(1, Ordering::Relaxed);
                self.rounds.on_outcome(now, &ticket, outcome, &lookup);
            }
            Ok(Done::Wrote { ticket, outcome, result }) => {
                let counts = &self.shared.counts;
                let count = if result.is_ok() { &counts.writes } else { &counts.write_errors };
                count.fetch_add(1, Ordering::Relaxed);
                self.rounds.on_written(now, &ticket, outcome, &result, &lookup);
            }
            Ok(Done::Deregistered) => {}
            // Runs that are of no use any more are aborted.
            Err(error) if error.is_cancelled() => {}
            // A write that panics is the node's failure, and this task's end.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn on_time(&mut self) {
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.read_definitions().await;
        }
        let now = self.now();
        let node = &self.node;
        self.rounds.on_time(now, &|id| node.check(id));
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.rounds.next_effect() {
            match effect {
                Effect::Run { ticket, definition } => self.spawn_run(ticket, definition),
                Effect::Abort { check_id } => {
                    self.shared.hold_back(&check_id, None);
                    if let Some(run) = self.runs.remove(&check_id) {
                        run.abort();
                    }
                }
                Effect::HoldBack { check_id, output, reporters } => {
                    self.shared.hold_back(&check_id, output);
                    for reporter in reporters {
                        // Whoever no longer waits need not hear it.
                        let _ = reporter.send(Ok(()));
                    }
                }
                Effect::Write { ticket, outcome, reporters } => {
                    // What it writes is newer.
                    self.shared.hold_back(&ticket.check_id, None);
                    let node = self.node.clone();
                    self.tasks.spawn(write(node, ticket, outcome, reporters));
                }
                Effect::Deregister { service_id, check_id } => {
                    let (node, shared) = (self.node.clone(), Arc::clone(&self.shared));
                    self.tasks.spawn(deregister(node, shared, service_id, check_id));
                }
            }
        }
    }

    fn spawn_run(&mut self, ticket: Ticket, definition: Arc<CheckDefinition>) {
        let places = match definition.kind {
            CheckKind::Script { .. } => &self.scripts,
            CheckKind::Http { .. }
            | CheckKind::Tcp { .. }
            | CheckKind::Ttl { .. }
            | CheckKind::Passive => &self.probes,
        };
        let (places, shared) = (Arc::clone(places), Arc::clone(&self.shared));
        let check_id = Arc::clone(&ticket.check_id);
        let run = self.tasks.spawn(async move {
            let _under_way = UnderWay::new(&shared);
            let _place = places.acquire().await.expect("the semaphore is never closed");
            // A panic in one checker is that check's trouble, not the end of all of them.
            let run = AssertUnwindSafe(run(&shared, &definition)).catch_unwind();
            let outcome = run.await.unwrap_or_else(|_| {
                error!(check_id = &*ticket.check_id, "A checker panicked");
                let output = "the checker itself failed: see this node's log".to_owned();
                Outcome { status: Status::Critical, output }
            });
            Done::Ran { ticket, outcome }
        });
        self.runs.insert(check_id, run);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as StdMutex;

    use tokio::net::TcpListener;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// A node of which only the checks exist.
    #[derive(Clone)]
    struct Stub {
        rows: Arc<StdMutex<BTreeMap<String, (Check, CheckDefinition)>>>,
        changed: watch::Sender<u64>,
        written: watch::Sender<u64>,
    }

    impl Checked for Stub {
        async fn definitions(&self) -> Result<Vec<(String, CheckDefinition)>, SubmitError> {
            let rows = self.rows.lock().unwrap();
            Ok(rows.iter().map(|(id, (_, definition))| (id.clone(), definition.clone())).collect())
        }

        fn definitions_changed(&self) -> watch::Receiver<u64> {
            self.changed.subscribe()
        }

        fn check(&self, check_id: &str) -> Option<Check> {
            self.rows.lock().unwrap().get(check_id).map(|(check, _)| check.clone())
        }

        async fn submit(&self, command: Command) -> Result<(), SubmitError> {
            match command {
                Command::SetStatus { check_id, status, output } => {
                    let mut rows = self.rows.lock().unwrap();
                    let Some((check, _)) = rows.get_mut(&check_id) else {
                        let refusal = crate::crdt::Refusal("no such check".to_owned());
                        return Err(SubmitError::Refused(refusal));
                    };
                    (check.status, check.output) = (status, output);
                }
                other => panic!("the runner has no business with {other:?}"),
            }
            self.written.send_modify(|count| *count += 1);
            Ok(())
        }
    }

    impl Stub {
        fn new() -> Self {
            Self {
                rows: Arc::default(),
                changed: watch::Sender::new(0),
                written: watch::Sender::new(0),
            }
        }

        fn register(&self, id: &str, kind: CheckKind) {
            let check = Check { id: id.to_owned(), ..Check::default() };
            let definition = CheckDefinition { kind, ..CheckDefinition::default() };
            self.rows.lock().unwrap().insert(id.to_owned(), (check, definition));
            self.changed.send_modify(|count| *count += 1);
        }

        fn unregister(&self, id: &str) {
            self.rows.lock().unwrap().remove(id);
            self.changed.send_modify(|count| *count += 1);
        }

        async fn until(&self, id: &str, status: Status) {
            let mut written = self.written.subscribe();
            let is_so = |_: &u64| self.check(id).is_some_and(|check| check.status == status);
            tokio::time::timeout(20 * S, written.wait_for(is_so))
                .await
                .unwrap_or_else(|_| panic!("{id} never became {}", status.as_str()))
                .unwrap();
        }
    }

    /// A runner at work on a stub.
    struct Ward {
        node: Stub,
        health: Health,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    impl Ward {
        fn start(config: Config) -> Self {
            let (node, health) = (Stub::new(), Health::new(config).unwrap());
            Self::start_with(node, health)
        }

        fn start_with(node: Stub, health: Health) -> Self {
            let stop = CancellationToken::new();
            let (health_, node_, stop_) = (health.clone(), node.clone(), stop.clone());
            let task = tokio::spawn(async move { health_.run_for(node_, stop_).await });
            Self { node, health, stop, task }
        }

        async fn end(self) -> (Stub, Health) {
            self.stop.cancel();
            self.task.await.unwrap();
            (self.node, self.health)
        }
    }

    fn tcp_check(address: std::net::SocketAddr) -> CheckKind {
        CheckKind::Tcp { address: address.to_string(), interval: S, timeout: S }
    }

    fn ttl() -> CheckKind {
        CheckKind::Ttl { ttl: 600 * S }
    }

    #[tokio::test]
    async fn a_target_that_goes_down_and_comes_back_is_noticed_each_time() {
        let ward = Ward::start(Config::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        ward.node.register("c", tcp_check(address));
        ward.node.until("c", Status::Passing).await;
        drop(listener);
        ward.node.until("c", Status::Critical).await;
        let _listener = TcpListener::bind(address).await.unwrap();
        ward.node.until("c", Status::Passing).await;
        assert_eq!(ward.health.counters().writes, 3);
        ward.end().await;
    }

    #[tokio::test]
    async fn targets_that_hang_do_not_hold_up_the_others() {
        let ward = Ward::start(Config { probes_max: 64, ..Config::default() });
        // It accepts and never answers.
        let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for n in 0..50 {
            let kind = CheckKind::Http {
                url: format!("http://{}/", hanging.local_addr().unwrap()),
                method: String::new(),
                headers: BTreeMap::new(),
                body: String::new(),
                tls_skip_verify: false,
                interval: S,
                timeout: 600 * S,
            };
            ward.node.register(&format!("hangs-{n}"), kind);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        ward.node.register("fine", tcp_check(listener.local_addr().unwrap()));
        ward.node.until("fine", Status::Passing).await;
        ward.end().await;
    }

    #[tokio::test]
    async fn a_report_is_written_when_its_sender_hears_so() {
        let ward = Ward::start(Config::default());
        // Registered and reported at once: the runner cannot have heard of it yet.
        ward.node.register("c", ttl());
        ward.health.report("c", Status::Passing, "well").await.unwrap();
        let check = ward.node.check("c").unwrap();
        assert_eq!((check.status, &*check.output), (Status::Passing, "well"));
        ward.health.report("c", Status::Passing, "still").await.unwrap();
        assert_eq!(ward.health.counters().writes, 1);
        let error = ward.health.report("nosuch", Status::Passing, "").await.unwrap_err();
        assert_eq!(error, ReportError::UnknownCheck("nosuch".to_owned()));
        ward.node.unregister("c");
        assert!(ward.health.report("c", Status::Passing, "").await.is_err());
        ward.end().await;
    }

    #[tokio::test]
    async fn a_thousand_reports_at_once_are_all_taken() {
        let ward = Ward::start(Config::default());
        for n in 0..1000 {
            ward.node.register(&format!("c{n}"), ttl());
        }
        let reports = (0..2000).map(|n| {
            let health = ward.health.clone();
            let id = format!("c{}", n % 1000);
            async move { health.report(&id, Status::Passing, "").await }
        });
        for result in futures_util::future::join_all(reports).await {
            result.unwrap();
        }
        assert_eq!(ward.health.counters().writes, 1000);
        ward.end().await;
    }

    #[tokio::test]
    async fn the_runner_can_be_started_again() {
        let (node, health) = Ward::start(Config::default()).end().await;
        node.register("c", ttl());
        let report = {
            let health = health.clone();
            tokio::spawn(async move { health.report("c", Status::Passing, "").await })
        };
        let ward = Ward::start_with(node, health);
        report.await.unwrap().unwrap();
        assert_eq!(ward.health.counters().checks, 1);
        ward.end().await;
    }

    #[tokio::test]
    async fn scripts_are_killed_when_the_runner_stops_or_their_check_goes() {
        let dir = tempfile::tempdir().unwrap();
        let ward = Ward::start(Config { enable_script_checks: true, ..Config::default() });
        let mut pids = Vec::new();
        for name in ["goes", "stays"] {
            let file = dir.path().join(name);
            let script = format!("echo $$ >{}; exec sleep 600", file.display());
            let args = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
            ward.node.register(name, CheckKind::Script { args, interval: S, timeout: 600 * S });
            pids.push(pid_in(&file).await);
        }
        ward.node.unregister("goes");
        is_gone(pids[0]).await;
        ward.end().await;
        is_gone(pids[1]).await;
    }

    async fn pid_in(file: &std::path::Path) -> i32 {
        loop {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if let Ok(pid) = text.trim().parse() {
                return pid;
            }
            tokio::time::sleep(S / 100).await;
        }
    }

    async fn is_gone(pid: i32) {
        let stat = format!("/proc/{pid}/stat");
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(S / 100).await;
        }
    }
}
