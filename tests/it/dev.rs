//! `tribune dev`, as the README has it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::support::{TRIBUNE, wait_for};

/// The running cluster; interrupted at the end.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_first_command_gives_a_cluster_that_answers_everywhere() {
    // Ports of its own: the usual ones at 127.0.0.1 may belong to somebody.
    let args = ["dev", "--http-port", "18500", "--dns-port", "18600", "--gossip-port", "17401"];
    let mut dev = Dev(Command::new(TRIBUNE)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("tribune starts"));
    let mut lines = BufReader::new(dev.0.stdout.take().expect("piped")).lines();
    let first = lines.next().expect("a first line").expect("text");
    assert!(first.contains("3 nodes are up"), "{first}");

    for k in 1..=3 {
        let output = Command::new("dig")
            .args([&format!("@127.0.0.{k}"), "-p", "18600", "+short", "app.internal"])
            .output()
            .expect("dig is installed (contrib/check installs it)");
        let text = String::from_utf8(output.stdout).expect("text");
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["127.0.0.1", "127.0.0.2", "127.0.0.3"], "dev-{k}");
    }
    let members = Command::new(TRIBUNE)
        .args(["members", "--http-addr", "http://127.0.0.2:18500"])
        .output()
        .expect("tribune runs");
    let members = String::from_utf8(members.stdout).expect("text");
    for name in ["dev-1", "dev-2", "dev-3"] {
        assert!(members.contains(name), "{members}");
    }

    let home = std::env::temp_dir().join(format!("tribune-dev-{}", dev.0.id()));
    assert!(home.exists());
    let status = Command::new("kill").args(["-INT", &dev.0.id().to_string()]).status();
    assert!(status.expect("kill runs").success());
    let dev = std::sync::Mutex::new(dev);
    let ended = wait_for("tribune dev ends after an interrupt", async || {
        dev.lock().expect("no panic").0.try_wait().expect("a child")
    })
    .await;
    assert_eq!(ended.code(), Some(0));
    assert!(!home.exists(), "its files are gone");
}
