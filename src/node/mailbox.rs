//! The writer's mailbox: jobs from faces, which may be refused, and jobs from the engine, which
//! may not. The engine never has more than one batch and one new epoch under way, so its part
//! needs no limit of its own.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use super::engine::Happened;
use crate::crdt::{Batch, RowOp};
use crate::node::{SubmitError, TransactError};
use crate::replica::BatchId;
use crate::store::{Statement, Transacted};
use crate::types::Epoch;

/// How many jobs of faces may wait. Beyond it they are refused at once: at the slowest disk in
/// sight (20 ms a sync, 128 jobs a group) a thousand are done in a sixth of a second.
const WAITING_JOBS_MAX: usize = 1_000;

/// How many jobs share one sync at most: enough to make the sync's price a detail, few enough
/// that the first of them does not wait for long.
const GROUP_JOBS_MAX: usize = 128;

/// One thing for the writer to do.
pub(super) enum Job {
    /// A typed command, as row operations.
    Ops { ops: Vec<RowOp>, reply: oneshot::Sender<Result<(), SubmitError>> },
    /// A user's transaction.
    Sql {
        statements: Vec<Statement>,
        deadline: Option<Instant>,
        reply: oneshot::Sender<Result<Transacted, TransactError>>,
    },
    /// Changes from other nodes.
    Apply { id: BatchId, batch: Batch },
    /// The replica found that this node's tail was lost: a peer knows more of it than it does.
    BeginEpoch { above: Epoch },
    /// Delete this node's rows that came back from others and that nobody has written again.
    Withdraw,
}

/// What waits for the writer.
#[derive(Default)]
pub(super) struct Mailbox {
    queues: Mutex<Queues>,
    arrived: Condvar,
}

#[derive(Default)]
struct Queues {
    faces: VecDeque<Job>,
    engine: VecDeque<Job>,
    is_closed: bool,
}

impl Mailbox {
    /// Puts a face's job in; refused when too many wait or the node is going down.
    pub(super) fn submit(&self, job: Job) -> Result<(), SubmitError> {
        let mut queues = self.lock();
        if queues.is_closed {
            return Err(SubmitError::Stopping);
        }
        if queues.faces.len() >= WAITING_JOBS_MAX {
            return Err(SubmitError::Busy);
        }
        queues.faces.push_back(job);
        drop(queues);
        self.arrived.notify_one();
        Ok(())
    }

    /// Puts the engine's job in.
    pub(super) fn push(&self, job: Job) {
        self.lock().engine.push_back(job);
        self.arrived.notify_one();
    }

    /// Takes what one group may hold, the engine's jobs first; waits for the first. `None` once
    /// the mailbox is closed and empty.
    pub(super) fn take(&self) -> Option<Vec<Job>> {
        let mut queues = self.lock();
        while queues.faces.is_empty() && queues.engine.is_empty() {
            if queues.is_closed {
                return None;
            }
            queues = self.arrived.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
        let mut jobs: Vec<Job> = queues.engine.drain(..).collect();
        let room = GROUP_JOBS_MAX.saturating_sub(jobs.len()).min(queues.faces.len());
        jobs.extend(queues.faces.drain(..room));
        Some(jobs)
    }

    /// Lets no further job of a face in. What waits is still done.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_all();
    }

    /// Closes the mailbox and drops what waits: nobody is there to do it. Whoever waits for an
    /// answer learns that there will be none.
    pub(super) fn abandon(&self) {
        let mut queues = self.lock();
        queues.is_closed = true;
        let dropped = (std::mem::take(&mut queues.faces), std::mem::take(&mut queues.engine));
        drop(queues);
        drop(dropped);
    }

    /// Returns how many jobs of faces wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().faces.len()
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the writer reports to: the engine, which must learn of every commit.
pub(super) type Reports = tokio::sync::mpsc::Sender<Happened>;

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> (Job, oneshot::Receiver<Result<(), SubmitError>>) {
        let (reply, answer) = oneshot::channel();
        (Job::Ops { ops: Vec::new(), reply }, answer)
    }

    #[test]
    fn the_engine_goes_first_and_a_group_is_bounded() {
        let mailbox = Mailbox::default();
        for _ in 0..200 {
            mailbox.submit(job().0).unwrap();
        }
        mailbox.push(Job::BeginEpoch { above: Epoch(1) });
        let group = mailbox.take().unwrap();
        assert_eq!(group.len(), GROUP_JOBS_MAX);
        assert!(matches!(group[0], Job::BeginEpoch { .. }));
        assert_eq!(mailbox.waiting(), 200 - (GROUP_JOBS_MAX - 1));
    }

    #[test]
    fn a_full_mailbox_refuses_and_a_closed_one_is_emptied_first() {
        let mailbox = Mailbox::default();
        for _ in 0..WAITING_JOBS_MAX {
            mailbox.submit(job().0).unwrap();
        }
        assert_eq!(mailbox.submit(job().0), Err(SubmitError::Busy));
        mailbox.close();
        assert_eq!(mailbox.submit(job().0), Err(SubmitError::Stopping));
        let mut done = 0;
        while let Some(group) = mailbox.take() {
            done += group.len();
        }
        assert_eq!(done, WAITING_JOBS_MAX);
    }
}
