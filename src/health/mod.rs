//! Is it well? Runs the checks of this node and takes the reports of applications, and writes
//! what changed. What a check's state means for an answer is not decided here but in the catalog,
//! and checks of other nodes are never run here.
//!
//! `schedule`, `verdict` and `rounds` are pure: they are told the time and what happened.
//! `runner` is the task that gives them both, and carries out what they ask for.

mod http;
mod output;
mod rounds;
mod runner;
mod schedule;
mod script;
mod tcp;
mod verdict;
mod work;

use std::time::Duration;

use crate::node::SubmitError;

pub use runner::{Counters, Health};
pub use schedule::INTERVAL_MIN;
pub use verdict::DEREGISTER_AFTER_MIN;

/// How this node's checks are run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Whether script checks run, wherever they were registered. Off by default: who may register
    /// a check over HTTP could otherwise run any program as this process's user.
    pub enable_script_checks: bool,
    /// Whether script checks from definition files run. Such files are the administrator's own.
    pub enable_local_script_checks: bool,
    /// Ceiling of what is kept of a check's output, in bytes; a check may ask for less.
    pub output_bytes_max: usize,
    /// A check whose output changes while its status stays is written at most this often.
    pub update_interval: Duration,
    /// How many HTTP and TCP checks run at once. What is due above that waits its turn.
    pub probes_max: usize,
    /// How many script checks run at once: each is a process at least.
    pub scripts_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enable_script_checks: false,
            enable_local_script_checks: false,
            output_bytes_max: 4096,
            update_interval: Duration::from_secs(300),
            // A hanging target holds its place for its time-out (10 s by default): with 512
            // places, fifty targets may hang every second before anybody waits.
            probes_max: 512,
            scripts_max: 32,
        }
    }
}

/// No checks can be run: no HTTP client could be made for them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the client for HTTP checks cannot be made: {0}")]
pub struct SetupError(String);

/// Why an application's report was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// There is no such check here. The text is Consul's, for both cases.
    #[error("CheckID {0:?} does not have associated TTL")]
    UnknownCheck(String),
    /// The check is there, but it is not the application that speaks for it.
    #[error("CheckID {0:?} does not have associated TTL")]
    NotTtl(String),
    /// The report counts as heard (the time to live starts anew), but is not written yet: this
    /// node goes on trying.
    #[error("the report was heard, but could not be written yet: {0}")]
    NotWritten(SubmitError),
    /// No checks are run at the moment: the node is starting or shutting down.
    #[error("this node is not running checks at the moment; report again")]
    NotRunning,
}
