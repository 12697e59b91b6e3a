//! The real `consul` program, pointed at a node: what operators type must go on working.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use crate::support::{Agent, Cluster, wait_for};

fn command(agent: &Agent) -> Command {
    let program = std::env::var("TRIBUNE_TEST_CONSUL").expect(
        "TRIBUNE_TEST_CONSUL must name a real Consul 1.8.7: `contrib/check` sets it, \
         `contrib/consul DIR` fetches one",
    );
    let mut command = Command::new(program);
    command.env("CONSUL_HTTP_ADDR", agent.url(""));
    command
}

/// Runs `consul` against a node and returns whether it succeeded and all that it printed.
fn try_consul(agent: &Agent, args: &[&str]) -> (bool, String) {
    let output = command(agent).args(args).output().expect("the program runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).expect("text"))
}

/// Runs `consul`, which must succeed, and returns what it printed.
fn consul(agent: &Agent, args: &[&str]) -> String {
    let (is_done, text) = try_consul(agent, args);
    assert!(is_done, "consul {args:?}: {text}");
    text
}

/// Starts `consul monitor` and returns it with the lines that it prints.
fn monitor(agent: &Agent) -> (Child, mpsc::Receiver<String>) {
    let mut child = command(agent)
        .args(["monitor", "-log-level=debug"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let output = child.stdout.take().expect("it is piped");
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    (child, lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_commands_work_against_a_node() {
    let cluster = Cluster::new(130);
    let n1 = cluster.start(1).await;
    let n2 = cluster.start(2).await;
    cluster.wait_joined(&[&n1, &n2]).await;
    let own = n1.get("/v1/agent/self").await["Config"]["NodeName"].as_str().unwrap().to_owned();

    let members = consul(&n1, &["members"]);
    assert_eq!(members.matches("alive").count(), 2, "{members}");
    assert!(consul(&n1, &["info"]).contains("agent:"));
    assert!(consul(&n1, &["catalog", "nodes"]).contains(&own));
    assert_eq!(consul(&n1, &["catalog", "datacenters"]).trim(), "dc1");
    assert!(consul(&n1, &["reload"]).contains("Configuration reload triggered"));
    assert!(consul(&n1, &["rtt", &own]).contains("rtt"));

    let args = ["services", "register", "-name=web", "-id=web-1", "-port=8080", "-tag=v1"];
    assert!(consul(&n1, &args).contains("Registered service: web"));
    assert_eq!(
        consul(&n1, &["catalog", "services", "-tags"]).split_whitespace().last(),
        Some("v1")
    );
    n2.wait_passing("web", 1).await;
    assert!(consul(&n2, &["catalog", "nodes", "-service=web"]).contains(&own));
    let watched = consul(&n1, &["watch", "-type=service", "-service=web"]);
    assert!(watched.contains("\"Port\": 8080"), "{watched}");
    assert!(consul(&n1, &["watch", "-type=nodes"]).contains(&own));
    assert!(consul(&n1, &["watch", "-type=checks"]).contains("serfHealth"));

    consul(&n1, &["maint", "-enable", "-service=web-1", "-reason=disk"]);
    n2.wait_passing("web", 0).await;
    let maintained = consul(&n1, &["maint"]);
    assert!(maintained.contains("web-1") && maintained.contains("disk"), "{maintained}");
    consul(&n1, &["maint", "-disable", "-service=web-1"]);
    n2.wait_passing("web", 1).await;
    consul(&n1, &["services", "deregister", "-id=web-1"]);
    n2.wait_passing("web", 0).await;

    assert!(consul(&n1, &["kv", "put", "-flags=7", "cfg/a", "hello"]).contains("Success!"));
    wait_for("the key to be on the other node", || async {
        let (is_there, text) = try_consul(&n2, &["kv", "get", "cfg/a"]);
        (is_there && text.trim() == "hello").then_some(())
    })
    .await;
    assert!(consul(&n2, &["kv", "get", "-detailed", "cfg/a"]).contains("Flags            7"));
    assert_eq!(consul(&n2, &["kv", "get", "-keys"]).trim(), "cfg/");
    assert!(consul(&n2, &["kv", "export", "cfg/"]).contains("aGVsbG8="));
    let (is_done, text) = try_consul(&n1, &["kv", "put", "-cas", "-modify-index=1", "cfg/a", "x"]);
    assert!(!is_done && text.contains("need a consensus"), "{text}");
    assert!(consul(&n1, &["kv", "delete", "-recurse", "cfg/"]).contains("Success!"));
    assert!(!try_consul(&n1, &["kv", "get", "cfg/a"]).0);
    let (is_done, text) = try_consul(&n1, &["lock", "-timeout=1s", "cfg/lock", "true"]);
    assert!(!is_done && text.contains("need a consensus"), "{text}");

    let (mut monitor, lines) = monitor(&n1);
    wait_for("the log to be streamed", || async {
        consul(&n1, &["reload"]);
        lines.try_iter().find(|line| line.contains("The certificates were read again"))
    })
    .await;
    monitor.kill().expect("it still streams");
    monitor.wait().expect("it ends");

    let fired = consul(&n1, &["event", "-name=deploy", "-node=2$", "hello"]);
    assert!(fired.contains("Event ID"), "{fired}");
    wait_for("the event to be at the node that it is for", || async {
        let watched = consul(&n2, &["watch", "-type=event", "-name=deploy"]);
        watched.contains("aGVsbG8=").then_some(())
    })
    .await;
    assert_eq!(n1.get("/v1/event/list").await, serde_json::json!([]));

    let joined = consul(&n1, &["join", &format!("{}:7401", n2.ip)]);
    assert!(joined.contains("Successfully joined"), "{joined}");
    assert!(consul(&n2, &["leave"]).contains("Graceful leave complete"));
    wait_for("the node that left to end", || async { (!n2.is_running()).then_some(()) }).await;
    wait_for("the other to see that it left", || async {
        consul(&n1, &["members"]).contains("left").then_some(())
    })
    .await;
}
