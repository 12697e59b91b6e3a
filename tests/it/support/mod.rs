//! Starts agents as processes and asks them. Whatever a test starts ends with it.
#![allow(clippy::print_stderr, reason = "a failing test shows what its agents logged")]

use std::fs::{self, File};
use std::future::Future;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use tempfile::TempDir;

pub mod consul;
pub mod links;
pub mod resolver;

/// How long anything may take that happens by itself. Far more than it takes; a test that fails
/// says what it waited for.
pub const WITHIN: Duration = Duration::from_secs(40);

/// How long between two looks while waiting.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The program under test.
pub const TRIBUNE: &str = env!("CARGO_BIN_EXE_tribune");

/// Waits until `probe` finds something, and returns it.
pub async fn wait_for<T, Looking>(what: &str, probe: impl Fn() -> Looking) -> T
where
    Looking: Future<Output = Option<T>>,
{
    wait_for_or(probe, || what.to_owned()).await
}

/// Waits like [`wait_for`], and asks what is missing once it has waited in vain.
async fn wait_for_or<T, Looking>(probe: impl Fn() -> Looking, missing: impl Fn() -> String) -> T
where
    Looking: Future<Output = Option<T>>,
{
    let begun = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(begun.elapsed() < WITHIN, "waited {WITHIN:?} in vain: {}", missing());
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Where an agent is.
pub struct Place {
    /// Of HTTP and DNS.
    pub ip: Ipv4Addr,
    pub gossip: Ipv4Addr,
    /// Whom it joins by.
    pub join: Vec<Ipv4Addr>,
    /// What it is called, where that is not its number.
    pub node: Option<&'static str>,
}

/// A cluster of agents in a network of its own.
pub struct Cluster {
    network: u8,
    home: TempDir,
    /// What the agents log.
    pub log: &'static str,
}

impl Cluster {
    /// Makes the network 127.`network`.0.0/16 with a CA; no agent runs yet. Every test takes a
    /// number of its own.
    pub fn new(network: u8) -> Self {
        let home = TempDir::new().expect("a temporary directory");
        let cluster = Self { network, home, log: "info,tribune=debug" };
        cluster.tls(&["ca"]);
        cluster
    }

    /// Returns the address of node `k`.
    pub fn address(&self, k: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.network, 0, k)
    }

    /// Returns the directory that the test may use.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Starts node `k`, which joins node 1, and waits until it answers.
    pub async fn start(&self, k: u8) -> Agent {
        self.start_with(k, &[]).await
    }

    /// Starts node `k` with further arguments, and waits until it answers.
    pub async fn start_with(&self, k: u8, further: &[&str]) -> Agent {
        let agent = self.spawn(k, further);
        wait_for(&format!("n{k} answers HTTP\n{}", agent.log_path.display()), async || {
            assert!(agent.is_running(), "n{k} ended:\n{}", agent.log());
            agent.try_get("/v1/agent/self").await
        })
        .await;
        agent
    }

    /// Starts node `k` without waiting.
    pub fn spawn(&self, k: u8, further: &[&str]) -> Agent {
        self.start_process(k, Command::new(TRIBUNE), further)
    }

    /// Starts node `k` with its data directory on a file system of so many KiB, in memory, that only
    /// it sees; [`Agent::data_dir`] reaches into it.
    pub async fn start_on_small_disk(&self, k: u8, kib: usize) -> Agent {
        let probe = Command::new("unshare").args(["-rm", "true"]).status();
        assert!(
            probe.is_ok_and(|status| status.success()),
            "a file system of its own for a node needs `unshare -rm`: allow user namespaces, or run as root"
        );
        let mut command = Command::new("unshare");
        let script = format!(
            "mkdir -p n{k}.data && mount -t tmpfs -o size={kib}k none n{k}.data && exec \"$0\" \"$@\""
        );
        command.args(["-rm", "sh", "-c", &script, TRIBUNE]);
        let agent = self.start_process(k, command, &[]);
        wait_for(&format!("n{k} answers HTTP"), async || {
            assert!(agent.is_running(), "n{k} ended:\n{}", agent.log());
            agent.try_get("/v1/agent/self").await
        })
        .await;
        agent
    }

    fn start_process(&self, k: u8, command: Command, further: &[&str]) -> Agent {
        let ip = self.address(k);
        let join = if k == 1 { Vec::new() } else { vec![self.address(1)] };
        self.start_at(k, command, &Place { ip, gossip: ip, join, node: None }, further)
    }

    /// Starts node `k` somewhere else than on the loopback address that is its own, without waiting.
    pub fn start_at(&self, k: u8, mut command: Command, place: &Place, further: &[&str]) -> Agent {
        let name = format!("n{k}");
        if !self.home().join(format!("{name}.pem")).exists() {
            self.tls(&["node", &name]);
        }
        let Place { ip, gossip, join, node } = place;
        let log_path = self.home().join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&log_path).expect("a log file");
        command
            .current_dir(self.home())
            .env_remove("TRIBUNE_LOG")
            .args(["agent", "--node", node.unwrap_or(&name)])
            .args(["--data-dir", &format!("{name}.data")])
            .args(["--http", &format!("{ip}:8500"), "--dns", &format!("{ip}:8600")])
            .args(["--gossip", &format!("{gossip}:7401"), "--log", self.log])
            .args(["--ca", "ca.pem", "--cert", &format!("{name}.pem"), "--key"])
            .arg(format!("{name}-key.pem"))
            .args(further)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        for target in join {
            command.args(["--join", &target.to_string()]);
        }
        let process = command.spawn().expect("tribune starts");
        Agent { name, ip: *ip, process: std::sync::Mutex::new(process), log_path, http: client() }
    }

    /// Waits until a node answers.
    pub async fn wait_up(&self, agent: &Agent) {
        wait_for(&format!("{} answers HTTP", agent.name), async || {
            assert!(agent.is_running(), "{} ended:\n{}", agent.name, agent.log());
            agent.try_get("/v1/agent/self").await
        })
        .await;
    }

    /// Waits until every one of these agents counts all of them as members.
    pub async fn wait_joined(&self, agents: &[&Agent]) {
        for agent in agents {
            wait_for(&format!("{} sees {} members", agent.name, agents.len()), async || {
                let members = agent.try_get("/v1/agent/members").await?;
                let alive = members.as_array()?.iter().filter(|m| m["Status"] == 1).count();
                (alive == agents.len()).then_some(())
            })
            .await;
        }
    }

    /// Waits until the clock shows another second.
    pub async fn wait_second(&self) {
        let second = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.expect("a clock after 1970").as_secs()
        };
        let then = second();
        wait_for("the next second", async || (second() > then).then_some(())).await;
    }

    /// Runs `tribune tls` in the directory of the test.
    pub fn tls(&self, args: &[&str]) {
        let output = Command::new(TRIBUNE)
            .arg("tls")
            .args(args)
            .current_dir(self.home())
            .output()
            .expect("tribune runs");
        assert!(output.status.success(), "tribune tls {args:?}: {output:?}");
    }
}

/// Makes an HTTP client.
pub fn client() -> reqwest::Client {
    tribune::net::tls::install_provider();
    reqwest::Client::builder().no_proxy().build().expect("an HTTP client")
}

/// An agent that runs as a process; it is killed at the end.
pub struct Agent {
    pub name: String,
    pub ip: Ipv4Addr,
    process: std::sync::Mutex<Child>,
    log_path: PathBuf,
    pub http: reqwest::Client,
}

impl Agent {
    /// Returns the URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}:8500{path}", self.ip)
    }

    /// Gets JSON; `None` when the node does not answer with it.
    pub async fn try_get(&self, path: &str) -> Option<Json> {
        let response = self.http.get(self.url(path)).send().await.ok()?;
        if !response.status().is_success() {
            return None;
        }
        response.json().await.ok()
    }

    /// Gets JSON.
    pub async fn get(&self, path: &str) -> Json {
        let response = self.http.get(self.url(path)).send().await.expect("an answer");
        let status = response.status();
        let text = response.text().await.expect("a body");
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {status} {text}"))
    }

    /// Puts a body and expects success.
    pub async fn put(&self, path: &str, body: Json) {
        let (status, text) = self.send("PUT", path, &body.to_string()).await;
        assert_eq!(status, 200, "PUT {path}: {text}");
    }

    /// Sends a request and returns status and body.
    pub async fn send(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let method = method.parse().expect("a method");
        let request = self.http.request(method, self.url(path));
        let request = request.header("content-type", "application/json").body(body.to_owned());
        let response = request.send().await.expect("an answer");
        (response.status().as_u16(), response.text().await.expect("a body"))
    }

    /// Registers an instance with a TTL check that passes.
    pub async fn register(&self, service: &str, id: &str, port: u16) {
        self.put("/v1/agent/service/register", registration(service, id, port)).await;
    }

    /// Asks with `dig +short` and returns the lines, sorted.
    pub fn dig(&self, question: &str) -> Vec<String> {
        let output = self.dig_raw(&format!("+short {question}"));
        let mut lines: Vec<String> = output.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// Asks with `dig` and returns what it printed.
    pub fn dig_raw(&self, question: &str) -> String {
        let output = Command::new("dig")
            .args([&format!("@{}", self.ip), "-p", "8600", "+time=2", "+tries=2"])
            .args(question.split_whitespace())
            .output()
            .expect("dig is installed (contrib/check installs it)");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Waits until `dig +short` prints exactly these lines.
    pub async fn wait_dig(&self, question: &str, wanted: &[&str]) {
        let mut wanted: Vec<String> = wanted.iter().map(|line| (*line).to_owned()).collect();
        wanted.sort();
        let what = format!("{}: dig {question} prints {wanted:?}", self.name);
        let last = std::cell::RefCell::new(Vec::new());
        wait_for_or(
            async || {
                *last.borrow_mut() = self.dig(question);
                (*last.borrow() == wanted).then_some(())
            },
            || format!("{what}, and not {:?}", last.borrow()),
        )
        .await;
    }

    /// Waits until the service has this many instances that pass, by the health endpoint.
    pub async fn wait_passing(&self, service: &str, count: usize) {
        let what = format!("{} has {count} passing instances of {service}", self.name);
        wait_for(&what, async || {
            let entries = self.try_get(&format!("/v1/health/service/{service}?passing")).await?;
            (entries.as_array()?.len() == count).then_some(())
        })
        .await;
    }

    /// Tells whether the process still runs.
    pub fn is_running(&self) -> bool {
        self.process.lock().expect("no panic").try_wait().expect("a child").is_none()
    }

    /// Ends the process as `kill -9` does.
    pub fn kill(&self) {
        let mut process = self.process.lock().expect("no panic");
        process.kill().expect("a child");
        process.wait().expect("a child");
    }

    /// Sends a signal, such as `STOP`.
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Returns the data directory as the node sees it, mounts of its own included.
    pub fn data_dir(&self, cluster: &Cluster) -> PathBuf {
        let path = cluster.home().join(format!("{}.data", self.name));
        let below = path.strip_prefix("/").expect("an absolute path");
        Path::new("/proc").join(self.pid().to_string()).join("root").join(below)
    }

    /// Returns the process's id.
    pub fn pid(&self) -> u32 {
        self.process.lock().expect("no panic").id()
    }

    /// Returns a figure of the process's memory (`VmRSS:`, `VmHWM:`: see proc_pid_status(5)), in MiB.
    pub fn memory_mib(&self, line: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find(|other| other.starts_with(line)).expect("a line");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") >> 10
    }

    /// Sends SIGTERM, waits for the end, and returns the exit code.
    pub async fn terminate(&self) -> Option<i32> {
        self.signal("TERM");
        wait_for(&format!("{} ends after SIGTERM", self.name), async || {
            self.process.lock().expect("no panic").try_wait().expect("a child")
        })
        .await
        .code()
    }

    /// Returns the last lines of what it logged.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(&self.log_path).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} logged last:\n{}\n---", self.name, self.log());
        }
        let mut process = self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // It may have ended by itself.
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// A registration with a TTL check that passes.
pub fn registration(service: &str, id: &str, port: u16) -> Json {
    serde_json::json!({
        "ID": id, "Name": service, "Port": port,
        "Check": { "TTL": "24h", "Status": "passing" },
    })
}

/// Runs `tribune` with arguments, to its end.
pub fn tribune(args: &[&str]) -> Output {
    Command::new(TRIBUNE)
        .args(args)
        .env_remove("TRIBUNE_LOG")
        .stdin(Stdio::null())
        .output()
        .expect("tribune runs")
}

impl Agent {
    /// Expects that the node knows nobody but itself.
    pub async fn wait_joined_alone(&self) {
        let members = self.get("/v1/agent/members").await;
        assert_eq!(members.as_array().map(Vec::len), Some(1), "{members}");
    }
}

impl Agent {
    /// Returns everything that it logged.
    pub fn whole_log(&self) -> String {
        fs::read_to_string(&self.log_path).unwrap_or_default()
    }

    /// Subscribes to a query and reads its first rows to their end.
    pub async fn subscribe(&self, sql: &str) -> Changes {
        let response = self
            .http
            .post(self.url("/v1/subscriptions"))
            .json(&sql)
            .send()
            .await
            .expect("an answer");
        assert_eq!(response.status(), 200);
        let id = response.headers()["corro-query-id"].to_str().expect("text").to_owned();
        let mut changes = Changes { id, response, buffer: Vec::new(), last_id: 0 };
        loop {
            let line = changes.line().await;
            if let Some(end) = line.get("eoq") {
                changes.last_id = end["change_id"].as_u64().expect("a change id");
                return changes;
            }
        }
    }
}

/// The lines of a subscription.
pub struct Changes {
    pub id: String,
    response: reqwest::Response,
    buffer: Vec<u8>,
    pub last_id: u64,
}

impl Changes {
    /// Waits for the next line.
    pub async fn line(&mut self) -> Json {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).expect("a line of JSON");
            }
            let chunk = tokio::time::timeout(WITHIN, self.response.chunk());
            let chunk = chunk.await.expect("a change in time").expect("an unbroken stream");
            self.buffer.extend_from_slice(&chunk.expect("the stream goes on"));
        }
    }

    /// Waits for the next change and returns its kind and cells. Ids are contiguous.
    pub async fn change(&mut self) -> (String, Json) {
        let line = self.line().await;
        let change = line.get("change").unwrap_or_else(|| panic!("no change: {line}"));
        let id = change[3].as_u64().expect("an id");
        assert_eq!(id, self.last_id + 1, "ids are contiguous");
        self.last_id = id;
        (change[0].as_str().expect("a kind").to_owned(), change[2].clone())
    }

    /// Expects the next change to be of this kind with this text as its second cell.
    pub async fn expect(&mut self, kind: &str, second: &str) {
        let (found, cells) = self.change().await;
        assert_eq!((found.as_str(), cells[1].as_str()), (kind, Some(second)), "{cells}");
    }

    /// Reads changes until one of this kind comes.
    pub async fn expect_until(&mut self, kind: &str) {
        while self.change().await.0 != kind {}
    }
}
