//! What one task of the runner does, from its beginning to its end: a run, a write, a removal.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::http::{self, Probe};
use super::rounds::{Outcome, Reporter, Ticket};
use super::runner::{Checked, Counts, Done, Shared};
use super::{ReportError, script, tcp};
use crate::catalog::{CheckDefinition, CheckKind, Command};
use crate::node::SubmitError;

/// Counts a run as long as it lives, however it ends.
pub struct UnderWay<'a>(&'a Counts);

impl<'a> UnderWay<'a> {
    pub fn new(shared: &'a Shared) -> Self {
        shared.counts.runs_now.fetch_add(1, Ordering::Relaxed);
        Self(&shared.counts)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.runs_now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs a check once. Never longer than its time-out by more than a killed script takes to go.
pub async fn run(shared: &Shared, definition: &CheckDefinition) -> Outcome {
    let output_bytes_max = definition.output_bytes_max.min(shared.config.output_bytes_max);
    match &definition.kind {
        CheckKind::Http { url, method, headers, body, tls_skip_verify, timeout, .. } => {
            let probe = Probe {
                url,
                method,
                headers,
                body,
                tls_skip_verify: *tls_skip_verify,
                timeout: or_default(*timeout, http::TIMEOUT_DEFAULT),
                output_bytes_max,
            };
            shared.prober.check(probe).await
        }
        CheckKind::Tcp { address, timeout, .. } => {
            tcp::check(address, or_default(*timeout, tcp::TIMEOUT_DEFAULT)).await
        }
        CheckKind::Script { args, timeout, .. } => {
            let timeout = or_default(*timeout, script::TIMEOUT_DEFAULT);
            script::check(args, timeout, output_bytes_max).await
        }
        CheckKind::Ttl { .. } | CheckKind::Passive => {
            unreachable!("the rounds run only what has an interval")
        }
    }
}

fn or_default(timeout: Duration, default: Duration) -> Duration {
    if timeout.is_zero() { default } else { timeout }
}

/// Writes what a check said, and tells those who reported it.
pub async fn write<N: Checked>(
    node: N,
    ticket: Ticket,
    outcome: Outcome,
    reporters: Vec<Reporter>,
) -> Done {
    let check_id = &ticket.check_id;
    let command = Command::SetStatus {
        check_id: check_id.to_string(),
        status: outcome.status,
        output: outcome.output.clone(),
    };
    let result = node.submit(command).await;
    match &result {
        Ok(()) => debug!(check_id = &**check_id, status = outcome.status.as_str(), "Check written"),
        // It was removed a moment ago.
        Err(SubmitError::Refused(_)) => {}
        Err(error) => warn!(check_id = &**check_id, %error, "Cannot write what a check said"),
    }
    for reporter in reporters {
        // Whoever no longer waits need not hear it.
        let _ = reporter.send(match &result {
            Ok(()) => Ok(()),
            Err(SubmitError::Refused(_)) => Err(ReportError::UnknownCheck(check_id.to_string())),
            Err(error) => Err(ReportError::NotWritten(error.clone())),
        });
    }
    Done::Wrote { ticket, outcome, result }
}

/// Removes an instance that has been critical for too long.
pub async fn deregister<N: Checked>(
    node: N,
    shared: Arc<Shared>,
    service_id: String,
    check_id: Arc<str>,
) -> Done {
    match node.submit(Command::Deregister { service_id: service_id.clone() }).await {
        Ok(()) => {
            shared.counts.deregistered.fetch_add(1, Ordering::Relaxed);
            info!(
                service_id,
                check_id = &*check_id,
                "Instance removed: it has been critical for longer than its check allows"
            );
        }
        Err(error) => {
            warn!(service_id, %error, "Cannot remove an instance that stays critical; trying again in 30 s");
        }
    }
    Done::Deregistered
}
