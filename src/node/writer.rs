//! The thread that owns the store: the one place where a change becomes true.
//!
//! It takes what waits, runs each job in its own savepoint of one transaction, commits once, and
//! only then publishes and answers. Nobody hears of a change that is not on disk.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{oneshot, watch};
use tracing::{error, warn};

use super::engine::Happened;
use super::mailbox::{Job, Mailbox, Reports};
use super::{SubmitError, TransactError};
use crate::catalog::rows;
use crate::crdt::RowOp;
use crate::crdt::storage::StorageError;
use crate::live::Feed;
use crate::replica::BatchId;
use crate::store::{SqlError, Store, Transacted};
use crate::types::{Origin, Version, Wall};

/// The longest that one user's transaction may run: all other writes, remote changes and verdicts
/// of checks among them, wait for it. The largest that is allowed takes about a second.
pub(super) const RUN_MAX: Duration = Duration::from_secs(3);

/// What a job has earned, to be told once the group is on disk.
enum Outcome {
    Ops(oneshot::Sender<Result<(), SubmitError>>, Result<(), StorageError>),
    Sql(oneshot::Sender<Result<Transacted, TransactError>>, Result<Transacted, SqlError>),
    Applied(BatchId, Result<Vec<(Origin, Version)>, StorageError>),
    Epoch(Result<Origin, StorageError>),
    Withdrawn(Result<usize, StorageError>),
}

/// Whom the writer tells of what became true.
pub(super) struct Listeners {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) feed: Arc<Feed>,
    pub(super) reports: Reports,
    /// Changes when the definitions of this node's checks may have.
    pub(super) definitions: Arc<watch::Sender<u64>>,
}

/// However the thread ends, a panic included: nobody waits for it any more, and the engine knows.
impl Drop for Listeners {
    fn drop(&mut self) {
        self.mailbox.abandon();
        // An engine that has ended already needs no word.
        let _ = self.reports.blocking_send(Happened::WriterEnded);
    }
}

/// Writes until the mailbox is closed and empty. Returns the store, for a last checkpoint.
pub(super) fn run(mut store: Store, listeners: &Listeners) -> Store {
    while let Some(jobs) = listeners.mailbox.take() {
        write_group(&mut store, jobs, listeners);
        if let Err(error) = store.maintain() {
            warn!(%error, "The write-ahead log could not be folded into the database; trying again after the next commit");
        }
    }
    store
}

fn write_group(store: &mut Store, jobs: Vec<Job>, listeners: &Listeners) {
    let Listeners { feed, reports, definitions, .. } = listeners;
    let may_define = jobs.iter().any(may_define);
    let mut group = store.group(wall_now());
    let mut outcomes = Vec::with_capacity(jobs.len());
    for job in jobs {
        outcomes.push(match job {
            Job::Ops { ops, reply } => Outcome::Ops(reply, group.ops(&ops).map(drop)),
            Job::Sql { statements, deadline, reply } => {
                let latest = Instant::now() + RUN_MAX;
                let deadline = deadline.map_or(latest, |deadline| deadline.min(latest));
                Outcome::Sql(reply, group.sql(&statements, Some(deadline)))
            }
            Job::Apply { id, batch } => Outcome::Applied(id, group.apply(&batch)),
            Job::BeginEpoch { above } => Outcome::Epoch(group.begin_epoch(above)),
            Job::Withdraw => Outcome::Withdrawn(group.withdraw()),
        });
    }
    match group.commit() {
        Ok(commits) => {
            // A new epoch is heard of before what is written under it.
            let is_epoch = |outcome: &mut Outcome| matches!(outcome, Outcome::Epoch(_));
            answer(outcomes.extract_if(.., is_epoch).collect(), None, reports);
            for commit in &commits {
                feed.publish(commit);
                if let Some(changeset) = &commit.changeset {
                    report(reports, Happened::Committed(Arc::clone(changeset)));
                }
            }
            // Before the callers hear: a report on a check that was just registered finds it.
            if may_define {
                definitions.send_modify(|count| *count += 1);
            }
            answer(outcomes, None, reports);
        }
        Err(failure) => {
            error!(error = %failure, "A group of writes did not reach the disk; none of them happened");
            answer(outcomes, Some(&failure), reports);
        }
    }
}

/// Tells whether a job may add, change or remove the definition of a check, or its row.
fn may_define(job: &Job) -> bool {
    let names = |table: &str| table == rows::DEFINITIONS;
    match job {
        Job::Ops { ops, .. } => ops.iter().any(|op| match op {
            RowOp::Put { table, .. } | RowOp::Set { table, .. } | RowOp::Delete { table, .. } => {
                names(table)
            }
            RowOp::Require { .. } | RowOp::Renew { .. } | RowOp::Withdraw => false,
        }),
        // A user's statement may have deleted a check.
        Job::Sql { .. } => true,
        Job::Apply { .. } | Job::BeginEpoch { .. } | Job::Withdraw => false,
    }
}

/// Tells every caller how it went. Where the whole group failed, nothing in it happened.
fn answer(outcomes: Vec<Outcome>, group: Option<&StorageError>, reports: &Reports) {
    // A caller who has gone away does not need the answer: its job is done all the same.
    for outcome in outcomes {
        match outcome {
            Outcome::Ops(reply, result) => {
                let result = all(result, group).map_err(SubmitError::from);
                let _ = reply.send(result);
            }
            Outcome::Sql(reply, result) => {
                let result = match group {
                    Some(failure) => Err(TransactError::Node(failure.clone().into())),
                    None => result.map_err(TransactError::from),
                };
                let _ = reply.send(result);
            }
            Outcome::Applied(id, result) => {
                report(reports, Happened::Applied { id, result: all(result, group) });
            }
            Outcome::Epoch(result) => report(reports, Happened::EpochBegun(all(result, group))),
            Outcome::Withdrawn(result) => {
                report(reports, Happened::Withdrawn(all(result, group)));
            }
        }
    }
}

fn all<T>(own: Result<T, StorageError>, group: Option<&StorageError>) -> Result<T, StorageError> {
    match group {
        Some(failure) => Err(failure.clone()),
        None => own,
    }
}

/// Tells the engine, which reads until the writer is gone. Its queue is bounded: a slow engine
/// slows the writer down rather than miss a commit.
fn report(reports: &Reports, happened: Happened) {
    if reports.blocking_send(happened).is_err() {
        warn!("The engine stopped before the writer; peers will pull what it did not hear");
    }
}

impl From<StorageError> for SubmitError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Refused(refusal) => Self::Refused(refusal),
            StorageError::Failed(text) => Self::Failed(text),
        }
    }
}

impl From<SqlError> for TransactError {
    fn from(error: SqlError) -> Self {
        match error {
            SqlError::Statement { index, message } => Self::Statement { index, message },
            SqlError::TimedOut => Self::TimedOut,
            SqlError::Failed(text) => Self::Node(SubmitError::Failed(text)),
        }
    }
}

/// Returns the machine's clock.
pub(super) fn wall_now() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Wall(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
