//! Five real processes on real links: cut, slow, lossy; killed over and over; asleep. Each node lives
//! in a network namespace of its own (see `support/links.rs`).
//!
//! At the end every node holds every write that any of them has acknowledged, and takes every other
//! one for alive.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the times are a result of the test")]

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::support::links::{Links, Weather, namespace};
use crate::support::{Agent, Cluster, wait_for};

const NODES: u8 = 5;

/// Set by whoever has no network namespaces and knows it: the test is left out.
const LEAVE_OUT: &str = "TRIBUNE_TEST_NO_NETNS";

/// Says to the process inside of the namespace that it is there.
const INSIDE: &str = "TRIBUNE_TEST_INSIDE_NETNS";

#[test]
fn five_nodes_survive_what_networks_do() {
    if std::env::var_os(LEAVE_OUT).is_some() {
        eprintln!("LEFT OUT: real networks were not tested, since {LEAVE_OUT} is set");
        return;
    }
    let way = namespace().unwrap_or_else(|why| {
        panic!("real networks cannot be tested here: {why}; or set {LEAVE_OUT}=1 to leave it out")
    });
    // This process has many threads, which cannot change their namespace together: another one.
    let status = Command::new("unshare")
        .args(way)
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", "networks::inside", "--ignored", "--nocapture"])
        .env(INSIDE, "1")
        .status();
    assert!(status.expect("unshare runs").success(), "see above");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the second half of the test above, in a network of its own"]
async fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        println!("nothing to do outside of a network namespace");
        return;
    }
    let begun = Instant::now();
    let mut field = Field::new().await;
    field.joining().await;
    field.cut().await;
    field.slow().await;
    field.lossy().await;
    field.kills().await;
    field.sleep().await;
    field.end().await;
    if let Some((carried, lost)) = field.links.carried() {
        println!("packets carried {carried}, lost {lost}");
    }
    println!("in all {:.1?}", begun.elapsed());
}

/// The cluster, and what it has acknowledged.
struct Field {
    cluster: Cluster,
    links: Links,
    agents: Vec<Agent>,
    acknowledged: Mutex<BTreeSet<i64>>,
    next: Mutex<i64>,
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

impl Field {
    async fn new() -> Self {
        let cluster = Cluster::new(0);
        let schema =
            "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, v TEXT NOT NULL DEFAULT '');";
        std::fs::write(cluster.home().join("t.sql"), schema).expect("a file");
        let links = Links::new(NODES).await;
        let (acknowledged, next) = (Mutex::default(), Mutex::new(1));
        Self { cluster, links, agents: Vec::new(), acknowledged, next }
    }

    fn agent(&self, k: u8) -> &Agent {
        &self.agents[usize::from(k) - 1]
    }

    fn spawn(&self, k: u8) -> Agent {
        self.links.spawn(&self.cluster, k, &["--schema", "t.sql"])
    }

    /// Writes a row on a node. Returns whether it was acknowledged.
    async fn write(&self, k: u8) -> bool {
        let id = {
            let mut next = self.next.lock().expect("no panic");
            *next += 1;
            *next
        };
        let agent = self.agent(k);
        let sql = json!([format!("INSERT INTO t VALUES ({id}, 'of node {k}')")]);
        let request = agent.http.post(agent.url("/v1/transactions")).json(&sql);
        let answer = request.timeout(Duration::from_secs(5)).send().await;
        let is_acknowledged = answer.is_ok_and(|answer| answer.status() == 200);
        if is_acknowledged {
            self.acknowledged.lock().expect("no panic").insert(id);
        }
        is_acknowledged
    }

    async fn write_many(&self, nodes: &[u8], count: usize, pause: Duration) {
        for turn in 0..count {
            if turn > 0 {
                tokio::time::sleep(pause).await;
            }
            let k = nodes[turn % nodes.len()];
            assert!(self.write(k).await, "n{k} takes writes");
        }
    }

    async fn rows(&self, k: u8) -> Option<BTreeSet<i64>> {
        let agent = self.agent(k);
        let request = agent.http.post(agent.url("/v1/queries")).json(&"SELECT id FROM t");
        let answer = request.timeout(Duration::from_secs(5)).send().await.ok()?;
        let lines = answer.text().await.ok()?;
        let lines = lines.lines().map(|line| serde_json::from_str::<Json>(line).ok());
        let rows = lines.flatten().filter_map(|line| line.get("row")?[1][0].as_i64());
        Some(rows.collect())
    }

    /// Waits until so many nodes hold every acknowledged row. Returns how long it took.
    async fn all_hold_all(&self) -> Duration {
        let begun = Instant::now();
        for k in 1..=NODES {
            wait_for(&format!("n{k} holds every acknowledged row"), async || {
                let rows = self.rows(k).await?;
                let acknowledged = self.acknowledged.lock().expect("no panic");
                acknowledged.is_subset(&rows).then_some(())
            })
            .await;
        }
        begun.elapsed()
    }

    /// Returns whom a node takes for alive, suspects included: they are in every answer.
    async fn alive(&self, k: u8) -> Option<BTreeSet<String>> {
        let members = self.agent(k).try_get("/v1/members").await?;
        let alive = members
            .as_array()?
            .iter()
            .filter(|member| member["state"] == "alive" || member["state"] == "suspect");
        Some(alive.filter_map(|member| member["name"].as_str().map(str::to_owned)).collect())
    }

    /// Waits until each of `nodes` takes exactly `others` for alive. Returns how long it took.
    async fn see(&self, nodes: &[u8], others: &[u8]) -> Duration {
        let begun = Instant::now();
        let wanted: BTreeSet<String> = others.iter().map(|k| format!("n{k}")).collect();
        for k in nodes {
            wait_for(&format!("n{k} takes exactly {wanted:?} for alive"), async || {
                (self.alive(*k).await? == wanted).then_some(())
            })
            .await;
        }
        begun.elapsed()
    }

    async fn see_all(&self) -> Duration {
        self.see(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]).await
    }

    async fn joining(&mut self) {
        let begun = Instant::now();
        self.agents = (1..=NODES).map(|k| self.spawn(k)).collect();
        for agent in &self.agents {
            self.cluster.wait_up(agent).await;
        }
        self.see_all().await;
        println!("five nodes start and find each other: {:.1?}", begun.elapsed());
        self.write_many(&[1, 2, 3, 4, 5], 10, millis(10)).await;
        println!(
            "clean links: on all nodes {:.0?} after the last of 10",
            self.all_hold_all().await
        );
    }

    async fn cut(&self) {
        self.links.set(Weather { sides: vec![0, 0, 1, 1, 1], ..Weather::default() });
        let begun = Instant::now();
        self.write_many(&[1, 3, 2, 4, 5], 50, millis(20)).await;
        self.see(&[1, 2], &[1, 2]).await;
        self.see(&[3, 4, 5], &[3, 4, 5]).await;
        println!("a cut between two and three: seen by all after {:.1?}", begun.elapsed());
        self.write_many(&[1, 3, 2, 4, 5], 50, millis(2)).await;
        self.links.set(Weather::default());
        let healed = Instant::now();
        self.see_all().await;
        let seen = healed.elapsed();
        self.all_hold_all().await;
        println!(
            "healed: all are members after {seen:.1?}, hold all after {:.1?}",
            healed.elapsed()
        );
    }

    async fn slow(&self) {
        self.links.set(Weather { delay: millis(100), ..Weather::default() });
        self.write_many(&[1, 2, 3, 4, 5], 20, millis(100)).await;
        let took = self.all_hold_all().await;
        println!("200 ms links: on all nodes {took:.0?} after the last of 20");
        assert!(took < Duration::from_secs(5), "{took:?}");
    }

    async fn lossy(&self) {
        let weather = Weather { delay: millis(10), loss_percent: 5.0, ..Weather::default() };
        self.links.set(weather);
        self.write_many(&[1, 2, 3, 4, 5], 60, millis(100)).await;
        let took = self.all_hold_all().await;
        println!("5 % loss, 20 ms links: on all nodes {took:.0?} after the last of 60");
        assert!(took < Duration::from_secs(10), "{took:?}");
        // So long it goes on, and nobody may be down at the end.
        self.see_all().await;
    }

    /// One node is killed over and over, while it and the others write.
    async fn kills(&mut self) {
        self.links.set(Weather { delay: millis(1), ..Weather::default() });
        let mut returns = Vec::new();
        for _ in 0..6 {
            let writing = async { self.write_many(&[1, 2, 3, 4], 40, millis(10)).await };
            let killed = async {
                // It is killed while it writes: what it acknowledged must be there.
                let begun = Instant::now();
                while begun.elapsed() < millis(300) {
                    self.write(5).await;
                }
                self.agent(5).kill();
            };
            tokio::join!(writing, killed);
            self.agents.pop();
            let agent = self.spawn(5);
            let begun = Instant::now();
            self.cluster.wait_up(&agent).await;
            self.agents.push(agent);
            self.all_hold_all().await;
            returns.push(begun.elapsed());
        }
        println!("killed with -9 six times: from each start until all hold all {returns:.1?}");
        let took = self.see_all().await;
        println!("  then all are members after {took:.1?}");
    }

    /// One node is stopped for longer than it takes to be taken for dead, and goes on.
    async fn sleep(&self) {
        let before = self.agent(4).whole_log();
        let stopped = Instant::now();
        self.agent(4).signal("STOP");
        self.see(&[1, 2, 3, 5], &[1, 2, 3, 5]).await;
        println!("a node that is stopped is down on all others after {:.1?}", stopped.elapsed());
        self.write_many(&[1, 2, 3, 5], 40, millis(5)).await;
        tokio::time::sleep_until((stopped + Duration::from_secs(15)).into()).await;
        self.agent(4).signal("CONT");
        let woken = Instant::now();
        self.see_all().await;
        let seen = woken.elapsed();
        self.all_hold_all().await;
        println!(
            "it goes on after {:.0?}: all are members after {seen:.1?}, hold all after {:.1?}",
            woken - stopped,
            woken.elapsed()
        );
        let log = self.agent(4).whole_log();
        let since = log.strip_prefix(&before).expect("the log goes on");
        assert!(!since.contains("A member is down"), "it declares nobody dead:\n{since}");
    }

    async fn end(&self) {
        self.see_all().await;
        self.all_hold_all().await;
        let count = self.acknowledged.lock().expect("no panic").len();
        let prints: BTreeSet<Option<BTreeSet<i64>>> = {
            let mut all = BTreeSet::new();
            for k in 1..=NODES {
                all.insert(self.rows(k).await);
            }
            all
        };
        assert_eq!(prints.len(), 1, "all nodes hold the same rows");
        println!("{count} acknowledged writes, each on all nodes; nobody is down");
    }
}
