//! Real DNS resolvers in front of a node, set up by the snippets of `contrib/resolvers`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::wait_for;

/// Where the system keeps daemons, which may not be in a user's path.
const DAEMONS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/lib/systemd", "/lib/systemd"];

/// A resolver that runs as a process; it is killed at the end.
pub struct Resolver {
    pub at: SocketAddrV4,
    process: Child,
    log: PathBuf,
}

impl Resolver {
    /// Starts the process and waits until it answers this question with records.
    pub async fn start(
        mut command: Command,
        at: SocketAddrV4,
        home: &Path,
        question: &str,
    ) -> Self {
        let log = home.join("resolver.log");
        let file = File::create(&log).expect("a log file");
        command.current_dir(home).stdin(Stdio::null());
        command.stdout(file.try_clone().expect("a handle")).stderr(file);
        let process = command.spawn().expect("the resolver starts");
        let resolver = std::sync::Mutex::new(Self { at, process, log });
        wait_for(&format!("{command:?} answers {question}"), async || {
            let mut resolver = resolver.lock().expect("no panic");
            let end = resolver.process.try_wait().expect("a child");
            assert!(end.is_none(), "{command:?} ended:\n{}", resolver.log());
            (!ask(at, question).records.is_empty()).then_some(())
        })
        .await;
        resolver.into_inner().expect("no panic")
    }

    /// Asks it with `dig`.
    pub fn ask(&self, question: &str) -> Answer {
        ask(self.at, question)
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the resolver logged last:\n{}\n---", self.log());
        }
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a server answers: how it went, and the records of the answer with their TTLs, in no order.
#[derive(PartialEq, Debug)]
pub struct Answer {
    pub status: String,
    pub is_truncated: bool,
    pub records: BTreeSet<String>,
}

/// Asks a server with `dig`. Without an answer everything is empty.
pub fn ask(server: SocketAddrV4, question: &str) -> Answer {
    let output = Command::new("dig")
        .args([&format!("@{}", server.ip()), "-p", &server.port().to_string()])
        .args(["+time=5", "+tries=1", "+noall", "+comments", "+answer"])
        .args(question.split_whitespace())
        .output()
        .expect("dig is installed (contrib/check installs it)");
    let text = String::from_utf8(output.stdout).expect("text");
    let after = |mark: &str, end: char| {
        let rest = text.split_once(mark).map(|(_, rest)| rest)?;
        rest.split_once(end).map(|(found, _)| found.to_owned())
    };
    let record = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with(';'));
    Answer {
        status: after("status: ", ',').unwrap_or_default(),
        is_truncated: after(";; flags: ", ';').is_some_and(|flags| flags.contains("tc")),
        records: lines.map(record).collect(),
    }
}

/// Finds a program of the system, or one that `contrib/daemons` has unpacked.
pub fn program(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = std::env::var_os("TRIBUNE_TEST_RESOLVERS").map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(DAEMONS.map(PathBuf::from))
        .chain(unpacked)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!(
                "this test runs the program '{name}' (on Debian: package {package}): install it, or \
                 run contrib/check, which does, and sets TRIBUNE_TEST_RESOLVERS"
            )
        })
}

/// Reads a snippet of `contrib/resolvers` with its optional settings turned on, the node's address in
/// place of the default one. A setting follows the mark of a comment at once, text after a space.
pub fn snippet(file: &str, comment: &str, node: Ipv4Addr) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/resolvers").join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let turn_on = |line: &str| {
        let (before, after) = line.split_once(comment)?;
        let is_setting = before.trim().is_empty() && after.starts_with(|c: char| c != ' ');
        is_setting.then(|| format!("{before}{after}"))
    };
    let lines: Vec<_> =
        text.lines().map(|line| turn_on(line).unwrap_or_else(|| line.to_owned())).collect();
    let mut text = lines.join("\n") + "\n";
    for between in ["@", "#", ":", " port "] {
        text = text.replace(&format!("127.0.0.1{between}8600"), &format!("{node}{between}8600"));
    }
    assert!(text.contains(&node.to_string()), "{file} names no node:\n{text}");
    text
}
