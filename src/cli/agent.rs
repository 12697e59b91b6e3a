//! `tribune agent`: this host's node, until it is told to stop.

use std::pin::pin;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::Failure;
use crate::app::{App, Options};
use crate::config::{Agent, Flags};
use crate::http::Demand;
use crate::telemetry;

/// How long work that was left may take once all is said and done.
pub(super) const END_WITHIN: Duration = Duration::from_millis(500);

pub(super) fn run(flags: Flags) -> Result<(), Failure> {
    let agent = Agent::from_flags(flags)?;
    start_log(&agent.log_level, agent.log_json)?;
    raise_files_max();
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        // Signals are caught before anything is started, so that none ends the node half-way.
        let mut stop = Stop::catch()?;
        let renewal = signal(SignalKind::hangup()).map_err(not_caught)?;
        let Some(app) = start(agent, &mut stop).await? else { return Ok(()) };
        serve(app, stop, renewal).await
    });
    // A query that still computes must not keep the process: it only reads.
    runtime.shutdown_timeout(END_WITHIN);
    outcome
}

/// Starts a node. `None`: it was asked to stop before it had.
async fn start(agent: Agent, stop: &mut Stop) -> Result<Option<App>, Failure> {
    let options = Options::default();
    let asked = options.stop.clone();
    let mut starting = pin!(App::start(agent, options));
    let started = loop {
        tokio::select! {
            started = &mut starting => break started,
            // What gets a snapshot breaks off; what opens the database goes on to its end.
            () = stop.asked() => asked.cancel(),
        }
    };
    match started {
        Ok(app) if asked.is_cancelled() => app.stop().await,
        Ok(app) => return Ok(Some(app)),
        Err(_) if asked.is_cancelled() => {}
        Err(error) => return Err(Failure::Usage(error.to_string())),
    }
    info!("Stopped before the start had come to its end");
    Ok(None)
}

/// Lets the process open as many files as the system permits: each connection is one, and most
/// systems begin with 1,024.
fn raise_files_max() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn!(%error, "The limit of open files stays as it is: {:?}", limit.current);
    }
}

/// Sends the log to the standard error output.
pub(super) fn start_log(filter: &str, is_json: bool) -> Result<(), Failure> {
    let format = if is_json { telemetry::Format::Json } else { telemetry::Format::Plain };
    telemetry::start(&telemetry::Config { filter: filter.to_owned(), format })
        .map_err(|error| Failure::Usage(error.to_string()))
}

/// Makes the runtime that a node lives on.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("tribune")
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start the runtime: {error}")))
}

async fn serve(mut app: App, mut stop: Stop, mut renewal: Signal) -> Result<(), Failure> {
    let mut demands = app.take_demands();
    let ended = loop {
        tokio::select! {
            () = stop.asked() => break None,
            Some(demand) = next(&mut demands) => match demand {
                Demand::Leave => {
                    info!("Asked over HTTP to leave");
                    break None;
                }
                Demand::Reload(reply) => {
                    let renewed = app.renew_certificates().map_err(|error| error.to_string());
                    // Whoever asked may have gone away.
                    let _ = reply.send(renewed);
                }
            },
            task = app.fatal() => break Some(task),
            _ = renewal.recv() => {
                if let Err(error) = app.renew_certificates() {
                    error!(%error, "The certificates were not taken over; the old ones stay in use");
                }
            }
        }
    };
    info!("Stopping: leaving the cluster and finishing what was begun");
    let stopped = tokio::select! {
        () = app.stop() => true,
        () = stop.asked() => false,
    };
    if !stopped {
        warn!("Asked a second time: stopping at once");
    }
    match ended {
        None if stopped => {
            info!("Stopped");
            Ok(())
        }
        None => Err(Failure::Failed("stopped at once, as asked a second time".to_owned())),
        Some(task) => Err(Failure::Failed(format!(
            "the node stopped because a part of it ended by itself ({task:?}); the log says why"
        ))),
    }
}

async fn next(demands: &mut Option<mpsc::Receiver<Demand>>) -> Option<Demand> {
    demands.as_mut()?.recv().await
}

/// SIGINT and SIGTERM.
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

fn not_caught(error: std::io::Error) -> Failure {
    Failure::Failed(format!("cannot catch signals: {error}"))
}

impl Stop {
    pub(super) fn catch() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(not_caught)?,
            terminate: signal(SignalKind::terminate()).map_err(not_caught)?,
        })
    }

    /// Waits for the next request to stop.
    pub(super) async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
