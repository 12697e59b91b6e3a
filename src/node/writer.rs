//! The thread that owns the store: the one place where a change becomes true.
//!
//! It takes what waits, runs each job in its own savepoint of one transaction, commits once, and
//! only then publishes and answers. Nobody hears of a change that is not on disk.
//!
//! A user's transaction runs freely while nobody waits. Once somebody does it has
//! [`YIELD_GRACE`](crate::store::limits::YIELD_GRACE) left, and is undone then.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tracing::{error, warn};

use super::engine::{Happened, Written};
use super::mailbox::{GROUP_JOBS_MAX, Job, Mailbox, Reports, Transaction, Turn};
use super::{SubmitError, TransactError};
use crate::catalog::rows;
use crate::crdt::storage::{Settled, StorageError, Tidied};
use crate::crdt::{Commit, Key, Name, Refusal, RowOp, Staging};
use crate::live::Feed;
use crate::replica::{BatchId, CollectOutcome};
use crate::store::schema::{SchemaChange, SchemaError};
use crate::store::{Group, SqlError, Store, Transacted};
use crate::telemetry::Pulse;
use crate::types::{Origin, Version, Wall};

/// The longest that one user's transaction may run, even if nobody waits. The largest that is
/// allowed takes about a second.
pub(super) const RUN_MAX: Duration = Duration::from_secs(3);

/// The longest that one may run that its user declared long.
pub(super) const LONG_RUN_MAX: Duration = Duration::from_secs(600);

/// How long users' transactions may go on sharing one sync, before it is the turn of other jobs:
/// about what a sync costs on a slow disk. One that begins within it may run longer.
const TRANSACTIONS_TURN: Duration = Duration::from_millis(10);

/// What a job has earned, to be told once the group is on disk.
enum Outcome {
    Ops(oneshot::Sender<Result<(), SubmitError>>, Result<(), StorageError>),
    Sql(oneshot::Sender<Result<Transacted, TransactError>>, Result<Transacted, SqlError>),
    Schema(oneshot::Sender<Result<SchemaChange, SubmitError>>, Result<SchemaChange, SchemaError>),
    Applied(BatchId, Result<Vec<(Origin, Version)>, StorageError>),
    Staged(Staging, Result<(), StorageError>),
    Unstaged(Result<(), StorageError>),
    Epoch(Result<(Origin, (Origin, Version)), StorageError>),
    Withdrawn(Result<usize, StorageError>),
    Met(Result<(), StorageError>),
    Collected(Result<CollectOutcome, StorageError>),
    Rejoined(Result<Origin, StorageError>),
    Settled(Result<Settled, StorageError>),
    Departed(Origin, Result<Version, StorageError>),
    Tidied(Result<Tidied, StorageError>),
    Mended(Name, Result<Vec<(Key, Origin)>, StorageError>),
    Recounted(Result<(), StorageError>),
}

/// Whom the writer tells of what became true.
pub(super) struct Listeners {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) feed: Arc<Feed>,
    pub(super) reports: Reports,
    /// Changes when the definitions of this node's checks may have.
    pub(super) definitions: Arc<watch::Sender<u64>>,
    pub(super) pulse: Pulse,
    /// Where the callers' tasks run.
    pub(super) runtime: Handle,
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
    store.yield_to(listeners.mailbox.who_waits());
    store.echo_to(listeners.pulse.echo());
    while let Some(turn) = listeners.mailbox.take(&listeners.pulse) {
        match turn {
            Turn::Jobs(jobs) => write_jobs(&mut store, jobs, listeners),
            Turn::Transactions(first) => write_transactions(&mut store, first, listeners),
        }
        listeners.pulse.beat_long("moving the log into the database");
        if let Err(error) = store.maintain() {
            warn!(%error, "The write-ahead log could not be folded into the database; trying again after the next commit");
        }
    }
    store
}

fn write_jobs(store: &mut Store, jobs: Vec<Job>, listeners: &Listeners) {
    let may_define = jobs.iter().any(may_define);
    let mut group = store.group(wall_now());
    let mut outcomes = Vec::with_capacity(jobs.len());
    for job in jobs {
        outcomes.push(match job {
            Job::Ops { ops, reply } => {
                listeners.pulse.beat_long("carrying out a command");
                Outcome::Ops(reply, group.ops(&ops).map(drop))
            }
            Job::Apply { id, batch } => {
                listeners.pulse.beat_long("merging changes of other nodes");
                Outcome::Applied(id, group.apply(&batch))
            }
            Job::Stage { staging, parts } => {
                listeners.pulse.beat_long("keeping changes of other nodes until they are whole");
                Outcome::Staged(staging, group.stage(staging, &parts))
            }
            Job::ApplyStaged { id, staging, last } => {
                listeners.pulse.beat_long("merging many changes of another node");
                Outcome::Applied(id, group.apply_staged(staging, &last))
            }
            Job::Unstage(staging) => {
                listeners.pulse.beat_long("forgetting changes that did not become whole");
                Outcome::Unstaged(group.unstage(staging))
            }
            Job::BeginEpoch { above } => {
                listeners.pulse.beat_long("writing this node's rows under a new epoch");
                Outcome::Epoch(group.begin_epoch(above))
            }
            Job::Withdraw => {
                listeners.pulse.beat_long("withdrawing rows of earlier epochs");
                Outcome::Withdrawn(group.withdraw())
            }
            Job::Meet { members, forgotten } => {
                listeners.pulse.beat_long("noting members");
                Outcome::Met(group.meet(&members, &forgotten))
            }
            Job::Collect { heads, forgotten, rows_max } => {
                listeners.pulse.beat_long("dropping tombstones");
                let collected = group.collect(&heads, &forgotten, rows_max);
                Outcome::Collected(
                    collected.map(|(collected, length)| CollectOutcome { collected, length }),
                )
            }
            Job::Rejoin { held, length } => {
                listeners.pulse.beat_long("beginning to take over the rows of another node");
                Outcome::Rejoined(group.rejoin(&held, length).map(|(origin, _)| origin))
            }
            Job::Settle(past) => {
                listeners.pulse.beat_long("dropping rows that were deleted elsewhere");
                Outcome::Settled(group.settle(&past))
            }
            Job::Depart { under, held } => {
                listeners.pulse.beat_long("deleting the rows of a node that will not return");
                Outcome::Departed(under, group.depart(under, &held))
            }
            Job::Tidy(tidy) => {
                listeners.pulse.beat_long("forgetting origins of which nothing is left");
                Outcome::Tidied(group.tidy(&tidy))
            }
            Job::Mend(mend) => {
                listeners.pulse.beat_long("mending rows");
                let mended = group.mend(&mend);
                Outcome::Mended(mend.table, mended)
            }
            Job::Recount => {
                listeners.pulse.beat_long("adding the fingerprint up anew");
                Outcome::Recounted(group.recount())
            }
            Job::Schema { request, reply } => {
                listeners.pulse.beat_long("changing the schema");
                Outcome::Schema(reply, group.schema(&request))
            }
        });
    }
    conclude(group, outcomes, may_define, listeners);
}

fn write_transactions(store: &mut Store, first: Transaction, listeners: &Listeners) {
    let begun = Instant::now();
    let mut group = store.group(wall_now());
    let mut outcomes = Vec::new();
    let mut next = Some(first);
    while let Some(Transaction { statements, deadline, is_long, reply }) = next {
        listeners.pulse.beat_long("running a user's transaction");
        let latest = Instant::now() + if is_long { LONG_RUN_MAX } else { RUN_MAX };
        let deadline = Some(deadline.map_or(latest, |deadline| deadline.min(latest)));
        let result = if is_long {
            group.sql_long(&statements, deadline)
        } else {
            group.sql(&statements, deadline)
        };
        outcomes.push(Outcome::Sql(reply, result));
        let has_room = outcomes.len() < GROUP_JOBS_MAX
            && begun.elapsed() < TRANSACTIONS_TURN
            && !group.is_large();
        next = if has_room { listeners.mailbox.next_transaction() } else { None };
    }
    // A user's statement may have deleted a check.
    conclude(group, outcomes, true, listeners);
}

/// Makes a group's work true, and tells everybody.
fn conclude(group: Group<'_>, mut outcomes: Vec<Outcome>, may_define: bool, listeners: &Listeners) {
    let Listeners { feed, reports, definitions, pulse, .. } = listeners;
    pulse.beat_long("writing a group to the disk");
    let (me, longest) = (group.origin(), group.longest());
    match group.commit() {
        Ok(commits) => {
            pulse.beat("telling of what was written");
            commits.iter().for_each(|commit| feed.publish(commit));
            for outcome in &outcomes {
                match outcome {
                    Outcome::Epoch(Ok((_, (ended, head)))) => {
                        feed.versions().set_back(*ended, *head);
                    }
                    // It takes all versions anew, but for those that it gave away itself since.
                    Outcome::Rejoined(Ok(origin)) => {
                        let heads = commits.iter().flat_map(|commit| commit.heads.iter().copied());
                        feed.versions().restart(heads.filter(|(of, _)| of == origin));
                    }
                    _ => {}
                }
            }
            // A new epoch is heard of before what is written under it, and after what was done before
            // it: the heads that a batch has moved fall with it.
            let is_epoch =
                |outcome: &Outcome| matches!(outcome, Outcome::Epoch(_) | Outcome::Rejoined(_));
            let until_epoch = outcomes.iter().rposition(is_epoch).map_or(0, |last| last + 1);
            answer(outcomes.drain(..until_epoch).collect(), None, listeners);
            let written: Vec<Written> =
                commits.iter().filter_map(|commit| written(commit, me, longest)).collect();
            if !written.is_empty() {
                report(reports, Happened::Committed(written));
            }
            // Before the callers hear: a report on a check that was just registered finds it.
            if may_define {
                definitions.send_modify(|count| *count += 1);
            }
            answer(outcomes, None, listeners);
        }
        Err(failure) => {
            error!(error = %failure, "A group of writes did not reach the disk; none of them happened");
            answer(outcomes, Some(&failure), listeners);
        }
    }
}

/// Says what to tell others of a commit of this node's own.
fn written(commit: &Commit, me: Origin, longest: u64) -> Option<Written> {
    let whole = commit.changeset.clone().map(Written::Whole);
    whole.or_else(|| commit.large(me).map(|head| Written::Large { origin: me, head, longest }))
}

/// Tells whether a job may add, change or remove the definition of a check, or its row.
fn may_define(job: &Job) -> bool {
    let names = |table: &str| table == rows::DEFINITIONS;
    match job {
        Job::Ops { ops, .. } => ops.iter().any(|op| match op {
            RowOp::Put { table, .. } | RowOp::Set { table, .. } | RowOp::Delete { table, .. } => {
                names(table)
            }
            RowOp::Require { .. } => false,
        }),
        Job::Schema { .. }
        | Job::Apply { .. }
        | Job::Stage { .. }
        | Job::ApplyStaged { .. }
        | Job::Unstage(_)
        | Job::BeginEpoch { .. }
        | Job::Withdraw
        | Job::Meet { .. }
        | Job::Collect { .. }
        | Job::Rejoin { .. }
        | Job::Settle(_)
        | Job::Depart { .. }
        | Job::Tidy(_)
        | Job::Mend(_)
        | Job::Recount => false,
    }
}

/// An answer on its way to who waits for it.
enum Reply {
    Ops(oneshot::Sender<Result<(), SubmitError>>, Result<(), SubmitError>),
    Sql(oneshot::Sender<Result<Transacted, TransactError>>, Result<Transacted, TransactError>),
    Schema(oneshot::Sender<Result<SchemaChange, SubmitError>>, Result<SchemaChange, SubmitError>),
}

impl Reply {
    fn send(self) {
        // A caller who has gone away does not need the answer: its job is done all the same.
        match self {
            Self::Ops(reply, result) => drop(reply.send(result)),
            Self::Sql(reply, result) => drop(reply.send(result)),
            Self::Schema(reply, result) => drop(reply.send(result)),
        }
    }
}

/// Tells every caller how it went. Where the whole group failed, nothing in it happened.
fn answer(outcomes: Vec<Outcome>, group: Option<&StorageError>, listeners: &Listeners) {
    let reports = &listeners.reports;
    let mut replies = Vec::with_capacity(outcomes.len());
    for outcome in outcomes {
        match outcome {
            Outcome::Ops(reply, result) => {
                replies.push(Reply::Ops(reply, all(result, group).map_err(SubmitError::from)));
            }
            Outcome::Sql(reply, result) => {
                let result = match group {
                    Some(failure) => Err(TransactError::Node(failure.clone().into())),
                    None => result.map_err(TransactError::from),
                };
                replies.push(Reply::Sql(reply, result));
            }
            Outcome::Schema(reply, result) => {
                let result = match group {
                    Some(failure) => Err(failure.clone().into()),
                    None => result.map_err(SubmitError::from),
                };
                replies.push(Reply::Schema(reply, result));
            }
            Outcome::Applied(id, result) => {
                report(reports, Happened::Applied { id, result: all(result, group) });
            }
            Outcome::Staged(staging, result) => {
                report(reports, Happened::Staged { staging, result: all(result, group) });
            }
            Outcome::Unstaged(result) => {
                if let Err(error) = all(result, group) {
                    warn!(%error, "Changes that did not become whole are still on the disk; the next start forgets them");
                }
            }
            Outcome::Epoch(result) => report(reports, Happened::EpochBegun(all(result, group))),
            Outcome::Withdrawn(result) => {
                report(reports, Happened::Withdrawn(all(result, group)));
            }
            Outcome::Met(result) => report(reports, Happened::Met(all(result, group))),
            Outcome::Collected(result) => {
                report(reports, Happened::Collected(all(result, group)));
            }
            Outcome::Rejoined(result) => report(reports, Happened::Rejoined(all(result, group))),
            Outcome::Settled(result) => report(reports, Happened::Settled(all(result, group))),
            Outcome::Departed(under, result) => {
                report(reports, Happened::Departed(under.node, all(result, group)));
            }
            Outcome::Tidied(result) => report(reports, Happened::Tidied(all(result, group))),
            Outcome::Mended(table, result) => {
                report(reports, Happened::Mended(table, all(result, group)));
            }
            Outcome::Recounted(result) => {
                report(reports, Happened::Recounted(all(result, group)));
            }
        }
    }
    send(replies, &listeners.runtime);
}

/// To wake a task from this thread costs two calls to the kernel, to wake another from a task none:
/// many callers are woken by a task.
fn send(replies: Vec<Reply>, runtime: &Handle) {
    if replies.len() > 2 {
        runtime.spawn(async move { replies.into_iter().for_each(Reply::send) });
    } else {
        replies.into_iter().for_each(Reply::send);
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

impl From<SchemaError> for SubmitError {
    fn from(error: SchemaError) -> Self {
        match error {
            SchemaError::Failed(text) => Self::Failed(text),
            refused => Self::Refused(Refusal(refused.to_string())),
        }
    }
}

impl From<SqlError> for TransactError {
    fn from(error: SqlError) -> Self {
        match error {
            SqlError::Statement { index, message } => Self::Statement { index, message },
            SqlError::TimedOut => Self::TimedOut,
            SqlError::Yielded => Self::Yielded,
            SqlError::Failed(text) => Self::Node(SubmitError::Failed(text)),
        }
    }
}

/// Returns the machine's clock.
pub(super) fn wall_now() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Wall(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::catalog::View;
    use crate::crdt::{Batch, Piece};
    use crate::store::OpenConfig;
    use crate::telemetry::Pulses;
    use crate::types::{Epoch, NodeId, Scope};

    const ME: NodeId = NodeId([0x11; 16]);

    #[test]
    fn what_was_applied_before_all_heads_fell_is_told_before_it() {
        let config = OpenConfig { node: Some(ME), ..OpenConfig::default() };
        let store = Store::in_memory(&config, &[]).expect("a store in memory");
        let other = Origin { scope: Scope(0), node: NodeId([0x22; 16]), epoch: Epoch(1) };
        let (reports, mut told) = mpsc::channel(100);
        let listeners = Listeners {
            mailbox: Arc::default(),
            feed: Arc::new(Feed::new(View::new(ME))),
            reports,
            definitions: Arc::new(watch::Sender::new(0)),
            pulse: Pulses::default().add("test"),
            runtime: tokio::runtime::Runtime::new().expect("a runtime").handle().clone(),
        };
        let piece =
            Piece { origin: other, after: Version(0), through: Version(7), changesets: Vec::new() };
        listeners.mailbox.push(Job::Apply { id: BatchId(1), batch: Batch { pieces: vec![piece] } });
        listeners.mailbox.push(Job::Rejoin { held: vec![(other, Version(7))], length: 0 });
        listeners.mailbox.close();
        drop(run(store, &listeners));
        let first = told.blocking_recv().expect("the batch was applied");
        assert!(matches!(first, Happened::Applied { result: Ok(_), .. }), "{first:?}");
        let second = told.blocking_recv().expect("it rejoins");
        assert!(matches!(second, Happened::Rejoined(Ok(_))), "{second:?}");
    }
}
