//! Who is a member: nodes that leave, sleep, have one name or one id, or other certificates.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::support::{Agent, Cluster, Place, TRIBUNE, tribune, wait_for};

/// Returns what a node says of another, by the other's name.
async fn member(at: &Agent, name: &str) -> Option<Json> {
    let members = at.try_get("/v1/members").await?;
    members.as_array()?.iter().find(|member| member["name"] == name).cloned()
}

/// Waits until one node says of another that it is in this state. Returns how long it took.
async fn wait_state(at: &Agent, name: &str, state: &str) -> Duration {
    let begun = Instant::now();
    wait_for(&format!("{} says that {name} is {state}", at.name), async || {
        (member(at, name).await?["state"] == state).then_some(())
    })
    .await;
    begun.elapsed()
}

/// Waits until a node notes something about another (or itself). Returns the note.
async fn wait_note(at: &Agent, name: &str, part: &str) -> String {
    wait_for(&format!("{} notes of {name}: {part}", at.name), async || {
        let member = member(at, name).await?;
        let notes = member["notes"].as_array()?;
        notes.iter().filter_map(Json::as_str).find(|note| note.contains(part)).map(str::to_owned)
    })
    .await
}

async fn metric(at: &Agent, name: &str) -> Option<f64> {
    let page = at.http.get(at.url("/metrics")).send().await.ok()?.text().await.ok()?;
    let line = page.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Returns the address at which a node's name is, by DNS on another.
fn dig(at: &Agent, name: &str) -> Vec<String> {
    at.dig(&format!("{name}.node.internal"))
}

#[tokio::test]
async fn a_goodbye_is_seen_at_once_and_a_stopped_node_declares_nobody_dead() {
    let cluster = Cluster::new(90);
    let (n1, n2) = (cluster.start(1).await, cluster.start(2).await);
    let (n3, n4) = (cluster.start(3).await, cluster.start(4).await);
    cluster.wait_joined(&[&n1, &n2, &n3, &n4]).await;

    for node in [&n1, &n2, &n3] {
        wait_state(node, "n4", "alive").await;
    }
    assert_eq!(n4.terminate().await, Some(0), "{}", n4.log());
    for node in [&n1, &n2, &n3] {
        let took = wait_state(node, "n4", "left").await;
        assert!(took < Duration::from_secs(2), "{took:?}");
    }

    let before = n3.whole_log();
    let stopped = Instant::now();
    n3.signal("STOP");
    for node in [&n1, &n2] {
        wait_state(node, "n3", "down").await;
    }
    let is_down = stopped.elapsed();
    n3.signal("CONT");
    let woken = Instant::now();
    for node in [&n1, &n2] {
        wait_state(node, "n3", "alive").await;
        wait_state(&n3, &node.name, "alive").await;
    }
    println!("stopped: down after {is_down:.1?}; woken: alive after {:.1?}", woken.elapsed());
    let log = n3.whole_log();
    let since = log.strip_prefix(&before).expect("the log goes on");
    assert!(!since.contains("A member is down"), "{since}");
    assert_eq!(metric(&n3, "tribune_swim_stalls_total").await, Some(1.0));
    assert!(metric(&n3, "tribune_swim_distrust").await > Some(0.0), "it doubts itself");
}

#[tokio::test]
async fn two_nodes_with_one_name_are_named_on_both_and_dns_does_not_change_its_mind() {
    let cluster = Cluster::new(91);
    let n1 = cluster.start(1).await;
    let called = async |k, name| {
        let (ip, join) = (cluster.address(k), vec![cluster.address(1)]);
        let place = Place { ip, gossip: ip, join, node: Some(name) };
        let agent = cluster.start_at(k, Command::new(TRIBUNE), &place, &[]);
        cluster.wait_up(&agent).await;
        agent
    };
    let (n2, n3) = (called(2, "web").await, called(3, "WEB").await);
    cluster.wait_joined(&[&n1, &n2, &n3]).await;
    for node in [&n1, &n2, &n3] {
        for name in ["web", "WEB"] {
            let note = wait_note(node, name, "has its name").await;
            assert!(note.contains("in DNS 'web' is node") || note.contains("in DNS 'WEB' is node"));
        }
        let conflicts = metric(node, "tribune_swim_conflicts{of=\"name\"}").await;
        assert_eq!(conflicts, Some(2.0), "{}", node.name);
    }
    for node in [&n2, &n3] {
        assert!(node.whole_log().contains("Another node has this node's name"), "{}", node.log());
    }
    let holder = dig(&n1, "web");
    assert_eq!(holder.len(), 1);
    for node in [&n1, &n2, &n3] {
        for _ in 0..20 {
            assert_eq!(dig(node, "web"), holder);
        }
    }
    let shown = tribune(&["members", "--http-addr", &n1.url("")]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("web: node ") && shown.contains("WEB: node "), "{shown}");
}

#[tokio::test]
async fn of_two_processes_with_one_id_the_first_stays_and_the_copy_stands_aside() {
    let cluster = Cluster::new(92);
    let (n1, n2) = (cluster.start(1).await, cluster.start(2).await);
    cluster.wait_joined(&[&n1, &n2]).await;
    n2.register("web", "web", 80).await;
    n1.wait_passing("web", 1).await;
    // The copy answers from what it has: from here on that is n1's row, too.
    n2.wait_dig("n1.node.internal", &[&n1.ip.to_string()]).await;
    let home = cluster.home();
    // Its files must not change between one and the next.
    n2.signal("STOP");
    let copied = Command::new("cp").args(["-a", "n2.data", "n9.data"]).current_dir(home).status();
    n2.signal("CONT");
    assert!(copied.expect("cp runs").success());
    for end in [".pem", "-key.pem"] {
        std::fs::copy(home.join(format!("n2{end}")), home.join(format!("n9{end}")))
            .expect("a copy");
    }
    // A directory that a process has in use cannot be used by another, a copy can.
    let ip = cluster.address(9);
    let place = Place { ip, gossip: ip, join: vec![cluster.address(1)], node: Some("n2") };
    let copy = cluster.start_at(9, Command::new(TRIBUNE), &place, &[]);
    cluster.wait_up(&copy).await;
    let note = wait_note(&copy, "n2", "stands aside").await;
    assert!(note.contains(&format!("{}:7401", n2.ip)), "{note}");
    wait_note(&n2, "n2", &format!("another process at {ip}:7401 runs under its id")).await;
    for (at, name) in [(&copy, "tribune_swim_aside"), (&n2, "tribune_swim_conflicts{of=\"id\"}")] {
        wait_for(name, async || (metric(at, name).await? == 1.0).then_some(())).await;
    }
    wait_for("n1 has n2 where it is", async || {
        let member = member(&n1, "n2").await?;
        let is_there = member["address"] == format!("{}:7401", n2.ip) && member["state"] == "alive";
        is_there.then_some(())
    })
    .await;
    // What n2 writes is heard, and what DNS says of it stays.
    n2.register("late", "late", 80).await;
    n1.wait_passing("late", 1).await;
    n1.wait_dig("n2.node.internal", &[&n2.ip.to_string()]).await;
    n1.wait_dig("web.internal", &[&n2.ip.to_string()]).await;
    for _ in 0..50 {
        assert_eq!(dig(&n1, "n2"), [n2.ip.to_string()]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The copy still answers from what it holds.
    copy.wait_dig("n1.node.internal", &[&n1.ip.to_string()]).await;
    assert!(copy.is_running() && copy.log().contains("stands aside"), "{}", copy.log());
}

#[tokio::test]
async fn new_certificates_are_taken_over_without_losing_a_connection() {
    let cluster = Cluster::new(93);
    let (n1, n2) = (cluster.start(1).await, cluster.start(2).await);
    cluster.wait_joined(&[&n1, &n2]).await;
    let left = async |node: &Agent| metric(node, "tribune_net_certificate_left_seconds").await;
    let before = left(&n1).await.expect("a number");
    let id = member(&n1, "n1").await.expect("itself")["id"].as_str().expect("an id").to_owned();
    let dials = metric(&n2, "tribune_net_dials_total").await;
    let (log1, log2) = (n1.whole_log(), n2.whole_log());
    cluster.tls(&["node", "n1", "--id", &id, "--days", "3", "--force"]);
    n1.signal("HUP");
    wait_for("the new certificate is in use", async || {
        (left(&n1).await? < before / 2.0).then_some(())
    })
    .await;
    n2.register("web", "web", 80).await;
    n1.wait_passing("web", 1).await;
    for (node, log) in [(&n1, log1), (&n2, log2)] {
        let now = node.whole_log();
        let since = now.strip_prefix(&log).expect("the log goes on");
        assert!(!since.contains("Disconnected"), "{since}");
    }
    assert_eq!(metric(&n2, "tribune_net_dials_total").await, dials);
    // A node that comes now meets the new certificate.
    let n3 = cluster.start(3).await;
    cluster.wait_joined(&[&n1, &n2, &n3]).await;

    // One that is another node's is not taken.
    cluster.tls(&["node", "n8"]);
    for end in [".pem", "-key.pem"] {
        let from = cluster.home().join(format!("n8{end}"));
        std::fs::copy(from, cluster.home().join(format!("n1{end}"))).expect("a copy");
    }
    n1.signal("HUP");
    wait_for("it is refused", async || {
        n1.whole_log().contains("The certificates were not taken over").then_some(())
    })
    .await;
    assert!(n1.is_running());
}
