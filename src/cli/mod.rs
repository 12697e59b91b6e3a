//! The command line: one file a subcommand, and how answers are shown. `agent` and `dev` run
//! nodes, `tls`, `backup`, `restore` and `doctor` work on files, `sim` plays clusters in virtual time, `snapshot` visits a node as another
//! node would; every other command is a plain client of a node's HTTP port and knows nothing of its
//! inside.

mod agent;
mod backup;
mod client;
mod dev;
mod doctor;
mod forget;
mod members;
mod progress;
mod register;
mod schema;
mod services;
mod sim;
mod snapshot;
mod sql;
mod table;
mod tls;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::client::Client;

/// A service discovery node: DNS, Consul's HTTP API and SQL over a gossip-replicated SQLite
#[derive(Parser)]
#[command(name = "tribune", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run this host's node
    Agent(Box<crate::config::Flags>),
    /// Run a throw-away cluster in this terminal, with a sample service
    Dev(dev::Args),
    /// List the members of the cluster
    Members(members::Args),
    /// Say that a node which is down will not return
    ///
    /// Deleted rows are remembered until every member is known to hold the delete, so a member that
    /// is down holds that up, for three days unless the configuration says otherwise. Now nobody
    /// waits for this one any more, and its services, checks and node are deleted everywhere, at the
    /// end of the next round. Should it return all the same, it says them again, and takes over all
    /// other rows of another node: what was deleted meanwhile goes, what it inserted unheard stays.
    Forget(forget::Args),
    /// List services and their health, or one service's instances
    Services(services::Args),
    /// Show a service's instances and redraw as their health changes
    Watch(watch::Args),
    /// Register a service instance on this host's node
    Register(register::RegisterArgs),
    /// Remove a service instance from this host's node
    Deregister(register::DeregisterArgs),
    /// Run one SQL query and print its rows
    Query(sql::QueryArgs),
    /// Run SQL statements as one transaction
    Exec(sql::ExecArgs),
    /// Copy the node's database into one file, while it runs or not
    ///
    /// The file holds what the database held at one moment: registrations, check definitions
    /// (which may contain secrets), your tables. Only its owner may read it. The node goes on
    /// meanwhile; its log grows by what it writes until the copy is done.
    Backup(backup::BackupArgs),
    /// Make a backup the database of a node that does not run
    ///
    /// The file is checked first, and the node that it is from. The database that is there is put
    /// aside. When the node is started, it goes on under a new epoch, takes its own services and
    /// checks along as the backup has them, and gets what was written since from the other nodes;
    /// of its own rows, what they bring back is withdrawn after a minute unless it is registered
    /// again.
    Restore(backup::RestoreArgs),
    /// Get the database of a running node of the cluster, over the network, into one file
    ///
    /// The file is what a node that joins without a database begins with: all that the cluster
    /// replicates, and no check definitions. `tribune restore FILE --new-node` makes it the database
    /// of a node that does not run. For a backup of a node, use `tribune backup` on its host.
    Snapshot(snapshot::Args),
    /// Look for what is wrong with a node's database, and say what to do
    ///
    /// Reads only, beside a running node or without one. Exit codes: 0 healthy, 1 something was
    /// found, 2 it could not be looked at.
    Doctor(doctor::Args),
    /// Change or show the tables of the cluster
    #[command(subcommand)]
    Schema(schema::Command),
    /// Make the certificates of a cluster
    #[command(subcommand)]
    Tls(tls::Command),
    /// Play clusters in virtual time, with trouble, and check that nothing is lost
    #[command(subcommand)]
    Sim(sim::Command),
    /// Print a completion script for a shell
    Completions {
        /// The shell to complete for
        shell: clap_complete::Shell,
    },
}

/// Where a client command finds its node, and how it answers.
#[derive(clap::Args, Clone)]
struct Remote {
    /// The node's HTTP address
    #[arg(
        long,
        value_name = "URL",
        env = "TRIBUNE_HTTP_ADDR",
        default_value = "http://127.0.0.1:8500"
    )]
    http_addr: String,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Why a command ends without having done its work.
#[derive(Debug)]
enum Failure {
    /// Wrong usage or configuration: exit code 2.
    Usage(String),
    /// It was right to ask, but it did not work: exit code 1.
    Failed(String),
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Runs the command that the arguments name: 0 done, 1 failed, 2 wrong usage or configuration.
pub fn run() -> ExitCode {
    keep_to_small_pages();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; both outputs may be closed by now.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let (code, text) = match failure {
                Failure::Usage(text) => (2, text),
                Failure::Failed(text) => (1, text),
            };
            complain(&text);
            ExitCode::from(code)
        }
    }
}

/// The allocator asks the kernel for pages of 2 MiB, of which an idle node uses a tenth: it would
/// take 39 MB in place of 21. Where the kernel does not know the call, nothing is lost but memory.
fn keep_to_small_pages() {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Agent(flags) => agent::run(*flags),
        Command::Dev(args) => dev::run(args),
        Command::Members(args) => as_client(members::run(args)),
        Command::Forget(args) => as_client(forget::run(args)),
        Command::Services(args) => as_client(services::run(args)),
        Command::Watch(args) => as_client(watch::run(args)),
        Command::Register(args) => as_client(register::register(args)),
        Command::Deregister(args) => as_client(register::deregister(args)),
        Command::Query(args) => as_client(sql::query(args)),
        Command::Exec(args) => as_client(sql::exec(args)),
        Command::Backup(args) => backup::run_backup(args),
        Command::Restore(args) => backup::run_restore(args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Doctor(args) => as_client(doctor::run(args)),
        Command::Schema(command) => as_client(schema::run(command)),
        Command::Tls(command) => tls::run(command),
        Command::Sim(command) => sim::run(command),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "tribune", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// Runs a client command on a small runtime of its own.
fn as_client<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start: {error}")))?
        .block_on(work)
}

/// Prints text and a line end to the standard output. A reader who has gone away (`| head`) ends
/// the command quietly.
fn say(text: &str) -> Result<(), Failure> {
    use std::io::Write;

    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            std::process::exit(0);
        }
        Err(error) => Err(Failure::Failed(format!("cannot write the answer: {error}"))),
    }
}

fn complain(text: &str) {
    use std::io::Write;

    // Nobody is left to tell when the error output is closed, too.
    let _ = writeln!(std::io::stderr(), "tribune: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
