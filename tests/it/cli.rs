//! The command line: what a start that cannot work says, and what commands print.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use crate::support::{Cluster, tribune};

/// Expects exit code 2 and one sentence that contains these parts.
fn refused(output: &Output, parts: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    let said: Vec<&str> = error.lines().filter(|line| line.starts_with("tribune: ")).collect();
    assert_eq!(said.len(), 1, "one sentence: {error}");
    for part in parts {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
}

#[test]
fn a_start_that_cannot_work_says_why_and_exits_with_2() {
    let cluster = Cluster::new(61);
    let home = cluster.home().to_str().expect("text");
    let at = |name: &str| format!("{home}/{name}");
    let ip = cluster.address(1).to_string();
    let (http, dns, gossip) = (format!("{ip}:8500"), format!("{ip}:8600"), format!("{ip}:7401"));
    let data = at("data");
    let base = [
        "agent",
        "--node",
        "n1",
        "--data-dir",
        &data,
        "--http",
        &http,
        "--dns",
        &dns,
        "--gossip",
        &gossip,
    ];
    let with = |further: &[&str]| tribune(&[&base[..], further].concat());

    let config = at("config.toml");
    fs::write(&config, "[dns]\nlisten_on = []\n").expect("a file");
    refused(&with(&["--config", &config]), &["config.toml", "line 2", "listen_on"]);
    refused(&with(&["--config", &at("none.toml")]), &["none.toml"]);
    refused(&tribune(&["agent", "--http", "nowhere"]), &["'nowhere' is not an address"]);
    refused(&tribune(&["agent", "--gossip", "0.0.0.0:7401"]), &["needs certificates"]);
    refused(
        &with(&["--ca", &at("none.pem"), "--cert", &at("n.pem"), "--key", &at("n-key.pem")]),
        &["none.pem"],
    );

    let held = TcpListener::bind(&http).expect("a listener");
    refused(&with(&[]), &["HTTP port 8500", &ip, "--http"]);
    drop(held);
    let held = TcpListener::bind(&dns).expect("a listener");
    refused(&with(&[]), &["8600", &ip, "--dns"]);
    drop(held);

    // A certificate of another cluster's CA.
    let strangers = Cluster::new(61);
    let foreign = strangers.home().to_str().expect("text");
    let made = std::process::Command::new(crate::support::TRIBUNE)
        .args(["tls", "node", "n1"])
        .current_dir(foreign)
        .output()
        .expect("tribune runs");
    assert!(made.status.success(), "{made:?}");
    let (cert, key) = (format!("{foreign}/n1.pem"), format!("{foreign}/n1-key.pem"));
    refused(&with(&["--ca", &at("ca.pem"), "--cert", &cert, "--key", &key]), &["n1.pem", "ca.pem"]);

    fs::create_dir_all(&data).expect("a directory");
    let database = format!("{data}/tribune.db");
    fs::write(
        &database,
        "this is no database, but it is longer than a header of one is, by far....",
    )
    .expect("a file");
    refused(&with(&[]), &["tribune.db", "not an SQLite database"]);
    fs::remove_file(&database).expect("a file");
    let newer = rusqlite::Connection::open(&database).expect("a database");
    newer.pragma_update(None, "application_id", 0x5472_6962).expect("a pragma");
    newer.pragma_update(None, "user_version", 9_999).expect("a pragma");
    drop(newer);
    refused(&with(&[]), &["tribune.db", "newer"]);

    let file = at("file");
    fs::write(&file, "").expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("a mode");
    let args = [
        "agent",
        "--node",
        "n1",
        "--data-dir",
        &file,
        "--http",
        &http,
        "--dns",
        &dns,
        "--gossip",
        &gossip,
    ];
    refused(&tribune(&args), &["data directory", "file"]);

    let schema = at("bad.sql");
    fs::write(&schema, "CREATE TABLE t (a TEXT);").expect("a file");
    fs::remove_dir_all(&data).expect("a directory");
    refused(&with(&["--schema", &schema]), &["bad.sql", "primary key"]);
}

#[test]
fn wrong_usage_exits_with_2_and_an_absent_node_with_1() {
    assert_eq!(tribune(&["nonsense"]).status.code(), Some(2));
    assert_eq!(tribune(&["--version"]).status.code(), Some(0));
    let output = tribune(&["members", "--http-addr", "http://127.62.0.1:8500"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("127.62.0.1:8500") && error.contains("--http-addr"), "{error}");
    let completions = tribune(&["completions", "bash"]);
    assert!(String::from_utf8_lossy(&completions.stdout).contains("tribune"));
}

#[tokio::test]
async fn commands_register_list_query_and_deregister() {
    let cluster = Cluster::new(63);
    let n1 = cluster.start(1).await;
    let url = n1.url("");
    let run = |args: &[&str]| {
        let output = tribune(&[args, &["--http-addr", &url]].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    run(&[
        "register",
        "web",
        "--id",
        "web-1",
        "--port",
        "80",
        "--tag",
        "blue",
        "--check-ttl",
        "24h",
    ]);
    assert!(run(&["services"]).contains("web"));
    assert!(run(&["services", "web"]).contains("web-1"));
    assert!(run(&["members"]).contains("n1"));
    assert!(run(&["query", "SELECT id, port FROM services"]).contains("web-1  80"));
    assert!(
        run(&["exec", "INSERT INTO kv (key) VALUES (?)", "--param", "a"])
            .contains("1 row affected")
    );
    let json: serde_json::Value =
        serde_json::from_str(&run(&["services", "--json"])).expect("JSON");
    assert_eq!(json[0]["name"], "web");
    run(&["deregister", "web-1"]);
    assert!(!run(&["services"]).contains("web"));
}
