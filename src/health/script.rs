//! A script check: a program runs, and its exit code is the verdict.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout, timeout_at};

use super::output::Tail;
use super::rounds::Outcome;
use crate::catalog::Status;

/// How long a script may run where the check does not say.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// How long a killed process may take to be gone. One that waits for a dead disk never is: the
/// runtime takes it off our hands then.
const REAP_MAX: Duration = Duration::from_secs(5);

/// Runs the program and arguments in `args`, without a shell, in a process group of its own.
/// Exit code 0 is passing, 1 is warning, anything else critical.
///
/// The run ends when the program has exited and nobody holds its output open. When `timeout` is
/// up, or when the returned future is dropped, the whole group is killed.
pub async fn check(args: &[String], timeout: Duration, output_bytes_max: usize) -> Outcome {
    let mut tail = Tail::new(output_bytes_max);
    let (mut child, mut reader) = match spawn(args) {
        Ok(spawned) => spawned,
        Err(reason) => return critical(reason),
    };
    // Declared after the child, so that it is dropped before: see `Group`.
    let mut group = Group::of(&child);
    let deadline = Instant::now() + timeout;
    let run = async {
        read_to_end(&mut reader, &mut tail).await;
        child.wait().await
    };
    match timeout_at(deadline, run).await {
        Ok(exit) => {
            group.is_reaped();
            verdict(exit, tail)
        }
        Err(_) => {
            group.kill();
            group.reap(&mut child).await;
            let rest = tail.into_text();
            critical(format!("Timed out ({timeout:?}) running check\n\n{rest}"))
        }
    }
}

fn verdict(exit: io::Result<std::process::ExitStatus>, tail: Tail) -> Outcome {
    let output = tail.into_text();
    let status = match exit.as_ref().map(std::process::ExitStatus::code) {
        Ok(Some(0)) => Status::Passing,
        Ok(Some(1)) => Status::Warning,
        // None: a signal ended it.
        Ok(Some(_) | None) => Status::Critical,
        Err(error) => return critical(format!("cannot learn how the script ended: {error}")),
    };
    Outcome { status, output }
}

fn spawn(args: &[String]) -> Result<(Child, pipe::Receiver), String> {
    let (program, rest) = args.split_first().ok_or("the check names no program")?;
    // One pipe for both, so that lines of errors stand where they belong.
    let (reader, writer) = io::pipe().map_err(|error| format!("no pipe: {error}"))?;
    let stderr = writer.try_clone().map_err(|error| format!("no pipe: {error}"))?;
    let mut command = Command::new(program);
    command.args(rest).stdin(Stdio::null()).stdout(writer).stderr(stderr).process_group(0);
    for (name, _) in std::env::vars_os() {
        if is_secret(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    let child = command.spawn().map_err(|error| format!("cannot run {program}: {error}"))?;
    // `command` holds the writing ends; while it lives, the pipe does not end.
    drop(command);
    let reader = pipe::Receiver::from_owned_fd(reader.into())
        .map_err(|error| format!("cannot read the script's output: {error}"))?;
    Ok((child, reader))
}

/// Tokens and keys of this process's own environment are nothing for a script.
fn is_secret(name: &str) -> bool {
    name.starts_with("TRIBUNE_") && (name.contains("TOKEN") || name.contains("KEY"))
}

async fn read_to_end(reader: &mut pipe::Receiver, tail: &mut Tail) {
    let mut buffer = [0; 8192];
    // An error ends the reading as the end does; the exit code is the verdict.
    while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        tail.push(&buffer[..count]);
    }
}

fn critical(output: String) -> Outcome {
    Outcome { status: Status::Critical, output }
}

/// A script's process group, killed when this is dropped before its leader was waited for.
///
/// Until then the leader, dead or alive, holds its process id, so no stranger can have the
/// group's number. This is why the leader is waited for last of all.
struct Group {
    leader: Option<Pid>,
}

impl Group {
    fn of(child: &Child) -> Self {
        let leader = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Self { leader }
    }

    fn kill(&self) {
        if let Some(leader) = self.leader {
            // An error says that there is nobody left.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }

    async fn reap(&mut self, child: &mut Child) {
        if timeout(REAP_MAX, child.wait()).await.is_ok() {
            self.is_reaped();
        }
    }

    fn is_reaped(&mut self) {
        self.leader = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    async fn sh(script: &str, timeout: Duration, output_bytes_max: usize) -> Outcome {
        let args = ["/bin/sh", "-c", script].map(str::to_owned);
        check(&args, timeout, output_bytes_max).await
    }

    #[tokio::test]
    async fn the_exit_code_is_the_verdict() {
        for (script, status) in [
            ("exit 0", Status::Passing),
            ("exit 1", Status::Warning),
            ("exit 2", Status::Critical),
            ("exit 255", Status::Critical),
            ("kill -9 $$", Status::Critical),
        ] {
            assert_eq!(sh(script, 10 * S, 100).await.status, status, "{script}");
        }
    }

    #[tokio::test]
    async fn both_outputs_are_kept_in_their_order() {
        let outcome = sh("echo one; echo two >&2; echo three", 10 * S, 100).await;
        assert_eq!(outcome.output, "one\ntwo\nthree\n");
    }

    #[tokio::test]
    async fn a_long_output_keeps_its_end() {
        let outcome = sh("seq 1 100000", 10 * S, 12).await;
        assert_eq!(outcome.output, "Captured 12 of 588895 bytes\n...\n9999\n100000\n");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_critical_and_named() {
        let outcome = check(&["/no/such/program".to_owned()], S, 100).await;
        assert_eq!(outcome.status, Status::Critical);
        assert!(outcome.output.starts_with("cannot run /no/such/program: "), "{}", outcome.output);
        assert_eq!(check(&[], S, 100).await.status, Status::Critical);
    }

    #[tokio::test]
    async fn a_script_reads_an_empty_input() {
        assert_eq!(sh("cat", 10 * S, 100).await.status, Status::Passing);
    }

    /// Starts a child of a child that sleeps, and prints its process id first.
    const GRANDCHILD: &str = "sh -c 'echo $$ >\"$0\"; exec sleep 600' \"$FILE\" & \
        while ! [ -s \"$FILE\" ]; do sleep 0.01; done; echo started; wait";

    fn grandchild(file: &Path) -> String {
        GRANDCHILD.replace("$FILE", file.to_str().unwrap())
    }

    async fn is_gone(file: &Path) -> bool {
        let pid = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let pid = Pid::from_raw(pid).unwrap();
        // A killed process that its new parent has not buried yet is a zombie: gone for us.
        let is_alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
            stat.is_ok_and(|stat| !stat.rsplit(") ").next().unwrap().starts_with('Z'))
        };
        for _ in 0..500 {
            if !is_alive() {
                return true;
            }
            tokio::time::sleep(S / 100).await;
        }
        false
    }

    #[tokio::test]
    async fn when_its_time_is_up_a_script_is_killed_with_all_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let outcome = sh(&grandchild(&file), 2 * S, 100).await;
        assert_eq!(outcome.status, Status::Critical);
        assert_eq!(outcome.output, "Timed out (2s) running check\n\nstarted\n");
        assert!(is_gone(&file).await);
    }

    #[tokio::test]
    async fn a_child_that_outlives_its_script_is_killed_when_time_is_up() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = grandchild(&file).replace("; wait", "");
        let outcome = sh(&script, 2 * S, 100).await;
        assert!(outcome.output.starts_with("Timed out (2s)"), "{}", outcome.output);
        assert!(is_gone(&file).await);
    }

    #[tokio::test]
    async fn a_run_that_is_given_up_is_killed_with_all_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = grandchild(&file);
        let run = tokio::spawn(async move { sh(&script, 600 * S, 100).await });
        while std::fs::read_to_string(&file).unwrap_or_default().trim().is_empty() {
            tokio::time::sleep(S / 100).await;
        }
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        assert!(is_gone(&file).await);
    }

    #[test]
    fn tokens_of_this_process_are_not_handed_on() {
        assert!(is_secret("TRIBUNE_CONSUL_TOKEN"));
        assert!(!is_secret("TRIBUNE_HTTP"));
        assert!(!is_secret("API_TOKEN"));
    }
}
