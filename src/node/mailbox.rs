//! The writer's mailbox: jobs and users' transactions from faces, which may be refused, and jobs
//! from the engine, which may not. The engine never has more than one batch and one new epoch
//! under way, so its part needs no limit of its own.
//!
//! A job is known to be short; of a user's transaction nobody knows. So the two never share a
//! group: jobs would wait for the slowest transaction before they reach the disk. Where both wait,
//! they take turns.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::engine::Happened;
use crate::crdt::content::Mend;
use crate::crdt::storage::{Past, Tidy};
use crate::crdt::{Batch, Part, Piece, RowOp, Staging};
use crate::node::{SubmitError, TransactError};
use crate::replica::BatchId;
use crate::store::schema::{SchemaChange, SchemaRequest};
use crate::store::{Statement, Transacted, Waiting};
use crate::telemetry::Pulse;
use crate::types::{Epoch, NodeId, Origin, Version};

/// How many jobs of faces may wait, and how many transactions of users. Beyond it they are refused
/// at once: at the slowest disk in sight (20 ms a sync, 128 jobs a group) a thousand are done in a
/// sixth of a second.
const WAITING_JOBS_MAX: usize = 1_000;

/// How many jobs share one sync at most: enough to make the sync's price a detail, few enough
/// that the first of them does not wait for long.
pub(super) const GROUP_JOBS_MAX: usize = 128;

/// How long the writer waits before it says that it still does.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// One thing for the writer to do, and quickly done.
pub(super) enum Job {
    /// A typed command, as row operations.
    Ops {
        ops: Vec<RowOp>,
        reply: oneshot::Sender<Result<(), SubmitError>>,
    },
    /// A change of the schema.
    Schema {
        request: SchemaRequest,
        reply: oneshot::Sender<Result<SchemaChange, SubmitError>>,
    },
    /// Changes from other nodes.
    Apply {
        id: BatchId,
        batch: Batch,
    },
    /// Parts of a pull, to be kept until the rest has come.
    Stage {
        staging: Staging,
        parts: Vec<Part>,
    },
    /// A pull whose first parts are kept. It may take long, and so has a group of its own.
    ApplyStaged {
        id: BatchId,
        staging: Staging,
        last: Piece,
    },
    Unstage(Staging),
    /// The replica found that this node's tail was lost: a peer knows more of it than it does.
    BeginEpoch {
        above: Epoch,
    },
    /// Delete this node's rows that came back from others and that nobody has written again.
    Withdraw,
    /// Members that were met, to be known by the next process, too.
    Meet {
        members: Vec<(NodeId, Epoch)>,
        forgotten: Vec<(NodeId, Epoch)>,
    },
    /// Drop tombstones that nobody needs any more, at most so many.
    Collect {
        heads: Vec<(Origin, Version)>,
        forgotten: Vec<(NodeId, Epoch)>,
        rows_max: usize,
    },
    /// This node was away for too long: begin to take over all rows of a peer.
    Rejoin {
        held: Vec<(Origin, Version)>,
        length: u64,
    },
    /// This node has caught up with one that may speak.
    Settle(Past),
    /// Delete the rows of a node that is forgotten.
    Depart {
        under: Origin,
        held: Vec<(Origin, Version)>,
    },
    /// Retire and erase origins.
    Tidy(Tidy),
    /// Rows are not what others have.
    Mend(Mend),
    /// Add the fingerprint up anew.
    Recount,
}

/// A user's transaction: it may take as long as it is let.
pub(super) struct Transaction {
    pub(super) statements: Vec<Statement>,
    pub(super) deadline: Option<Instant>,
    /// Whether others have to wait until it is through.
    pub(super) is_long: bool,
    pub(super) reply: oneshot::Sender<Result<Transacted, TransactError>>,
}

/// What the writer does next.
pub(super) enum Turn {
    /// Jobs that may share a group, the engine's first.
    Jobs(Vec<Job>),
    /// A transaction; more may be had from [`Mailbox::next_transaction`].
    Transactions(Transaction),
}

/// What waits for the writer.
#[derive(Default)]
pub(super) struct Mailbox {
    queues: Mutex<Queues>,
    arrived: Condvar,
    /// Kept in step with the queues, under their lock.
    waiting: Arc<Waiting>,
}

#[derive(Default)]
struct Queues {
    faces: VecDeque<Job>,
    engine: VecDeque<Job>,
    transactions: VecDeque<Transaction>,
    /// Whose turn it is where both wait.
    is_turn_of_transactions: bool,
    /// Whether the writer sleeps. To wake somebody who is awake would be a call to the kernel, too.
    is_asleep: bool,
    /// Whether others went before the long job that is next.
    is_turn_of_long: bool,
    is_closed: bool,
}

impl Mailbox {
    /// Puts a face's job in; refused when too many wait or the node is going down.
    pub(super) fn submit(&self, job: Job) -> Result<(), SubmitError> {
        self.put(|queues| &mut queues.faces, job)
    }

    /// Puts a user's transaction in; refused when too many wait or the node is going down.
    pub(super) fn submit_transaction(&self, transaction: Transaction) -> Result<(), SubmitError> {
        self.put(|queues| &mut queues.transactions, transaction)
    }

    fn put<T>(
        &self,
        queue: impl FnOnce(&mut Queues) -> &mut VecDeque<T>,
        item: T,
    ) -> Result<(), SubmitError> {
        let mut queues = self.lock();
        if queues.is_closed {
            return Err(SubmitError::Stopping);
        }
        let queue = queue(&mut queues);
        if queue.len() >= WAITING_JOBS_MAX {
            return Err(SubmitError::Busy);
        }
        queue.push_back(item);
        self.wake(queues);
        Ok(())
    }

    /// Something was put in.
    fn wake(&self, mut queues: MutexGuard<'_, Queues>) {
        self.waiting.begin();
        let is_asleep = std::mem::take(&mut queues.is_asleep);
        drop(queues);
        if is_asleep {
            self.arrived.notify_one();
        }
    }

    /// Puts the engine's job in.
    pub(super) fn push(&self, job: Job) {
        let mut queues = self.lock();
        queues.engine.push_back(job);
        self.wake(queues);
    }

    /// Takes what comes next; waits until there is something. `None` once the mailbox is closed
    /// and empty.
    pub(super) fn take(&self, pulse: &Pulse) -> Option<Turn> {
        let mut queues = self.lock();
        pulse.beat("waiting for work");
        while queues.is_empty() {
            if queues.is_closed {
                return None;
            }
            queues.is_asleep = true;
            let waited = self.arrived.wait_timeout(queues, WAIT_MAX);
            queues = waited.unwrap_or_else(PoisonError::into_inner).0;
            queues.is_asleep = false;
            pulse.beat("waiting for work");
        }
        let turn = queues.take();
        self.waiting.renew(!queues.is_empty());
        Some(turn)
    }

    /// Takes a further transaction into a group of them, if one waits.
    pub(super) fn next_transaction(&self) -> Option<Transaction> {
        let mut queues = self.lock();
        let next = queues.transactions.pop_front()?;
        self.waiting.renew(!queues.is_empty());
        Some(next)
    }

    /// Returns since when somebody waits, for who may hold the writer up.
    pub(super) fn who_waits(&self) -> Arc<Waiting> {
        Arc::clone(&self.waiting)
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
        let dropped =
            std::mem::replace(&mut *queues, Queues { is_closed: true, ..Queues::default() });
        drop(queues);
        drop(dropped);
    }

    /// Returns how many jobs and transactions of faces wait.
    pub(super) fn waiting(&self) -> usize {
        let queues = self.lock();
        queues.faces.len() + queues.transactions.len()
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queues {
    fn has_jobs(&self) -> bool {
        !self.faces.is_empty() || !self.engine.is_empty()
    }

    fn is_empty(&self) -> bool {
        !self.has_jobs() && self.transactions.is_empty()
    }

    /// Takes one turn. Something waits.
    fn take(&mut self) -> Turn {
        let may_be_transactions = self.is_turn_of_transactions || !self.has_jobs();
        self.is_turn_of_transactions = false;
        if may_be_transactions && let Some(first) = self.transactions.pop_front() {
            return Turn::Transactions(first);
        }
        self.is_turn_of_transactions = true;
        let is_long = |job: &Job| matches!(job, Job::ApplyStaged { .. });
        let until_long = self.engine.iter().position(is_long).unwrap_or(self.engine.len());
        let is_long_next = until_long == 0 && !self.engine.is_empty();
        // Who waits already need not wait for a long job, but goes before it once only.
        if is_long_next && (self.is_turn_of_long || self.faces.is_empty()) {
            self.is_turn_of_long = false;
            return Turn::Jobs(self.engine.drain(..1).collect());
        }
        self.is_turn_of_long = is_long_next;
        let mut jobs: Vec<Job> = self.engine.drain(..until_long).collect();
        let room = GROUP_JOBS_MAX.saturating_sub(jobs.len()).min(self.faces.len());
        jobs.extend(self.faces.drain(..room));
        Turn::Jobs(jobs)
    }
}

/// Where the writer reports to: the engine, which must learn of every commit.
pub(super) type Reports = tokio::sync::mpsc::Sender<Happened>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Pulses;

    fn job() -> (Job, oneshot::Receiver<Result<(), SubmitError>>) {
        let (reply, answer) = oneshot::channel();
        (Job::Ops { ops: Vec::new(), reply }, answer)
    }

    fn transaction() -> (Transaction, oneshot::Receiver<Result<Transacted, TransactError>>) {
        let (reply, answer) = oneshot::channel();
        (Transaction { statements: Vec::new(), deadline: None, is_long: false, reply }, answer)
    }

    fn take(mailbox: &Mailbox) -> Option<Turn> {
        mailbox.take(&Pulses::default().add("test"))
    }

    fn take_jobs(mailbox: &Mailbox) -> Vec<Job> {
        match take(mailbox) {
            Some(Turn::Jobs(jobs)) => jobs,
            Some(Turn::Transactions(_)) | None => panic!("no jobs"),
        }
    }

    #[test]
    fn the_engine_goes_first_and_a_group_is_bounded() {
        let mailbox = Mailbox::default();
        for _ in 0..200 {
            mailbox.submit(job().0).unwrap();
        }
        mailbox.push(Job::BeginEpoch { above: Epoch(1) });
        let group = take_jobs(&mailbox);
        assert_eq!(group.len(), GROUP_JOBS_MAX);
        assert!(matches!(group[0], Job::BeginEpoch { .. }));
        assert_eq!(mailbox.waiting(), 200 - (GROUP_JOBS_MAX - 1));
    }

    #[test]
    fn jobs_and_transactions_take_turns_and_never_share_one() {
        let mailbox = Mailbox::default();
        for _ in 0..3 {
            mailbox.submit_transaction(transaction().0).unwrap();
        }
        for _ in 0..2 * GROUP_JOBS_MAX {
            mailbox.submit(job().0).unwrap();
        }
        let mut turns = String::new();
        while mailbox.waiting() > 0 {
            match take(&mailbox).unwrap() {
                Turn::Jobs(_) => turns.push('j'),
                Turn::Transactions(_) => turns.push('t'),
            }
        }
        assert_eq!(turns, "jtjtt");
        assert!(mailbox.next_transaction().is_none());
    }

    #[test]
    fn a_long_job_has_a_group_of_its_own_and_is_not_put_off_for_ever() {
        let mailbox = Mailbox::default();
        let staging = Staging(1);
        let last = Piece {
            origin: crate::types::Origin::default(),
            after: crate::types::Version(0),
            through: crate::types::Version(1),
            changesets: Vec::new(),
        };
        mailbox.push(Job::Stage { staging, parts: Vec::new() });
        mailbox.push(Job::ApplyStaged { id: BatchId(1), staging, last });
        mailbox.push(Job::Withdraw);
        let mut turns = Vec::new();
        for _ in 0..4 {
            mailbox.submit(job().0).unwrap();
            let jobs = take_jobs(&mailbox);
            let said = jobs.iter().map(|job| match job {
                Job::Stage { .. } => 's',
                Job::ApplyStaged { .. } => 'L',
                Job::Withdraw => 'w',
                _ => 'f',
            });
            turns.push(said.collect::<String>());
        }
        assert_eq!(turns, ["sf", "f", "L", "wff"]);
    }

    #[test]
    fn who_waits_is_known_until_nobody_does() {
        let mailbox = Mailbox::default();
        let (waiting, at_all) = (mailbox.who_waits(), Duration::ZERO);
        assert!(!waiting.is_over(at_all));
        mailbox.submit_transaction(transaction().0).unwrap();
        mailbox.submit(job().0).unwrap();
        assert!(waiting.is_over(at_all));
        take_jobs(&mailbox);
        assert!(waiting.is_over(at_all), "the transaction waits");
        assert!(mailbox.next_transaction().is_some());
        assert!(!waiting.is_over(at_all));
        mailbox.push(Job::BeginEpoch { above: Epoch(1) });
        assert!(waiting.is_over(at_all));
    }

    #[test]
    fn a_full_mailbox_refuses_and_a_closed_one_is_emptied_first() {
        let mailbox = Mailbox::default();
        for _ in 0..WAITING_JOBS_MAX {
            mailbox.submit(job().0).unwrap();
        }
        assert_eq!(mailbox.submit(job().0), Err(SubmitError::Busy));
        mailbox
            .submit_transaction(transaction().0)
            .expect("transactions have a queue of their own");
        mailbox.close();
        assert_eq!(mailbox.submit(job().0), Err(SubmitError::Stopping));
        let mut done = 0;
        while let Some(turn) = take(&mailbox) {
            done += match turn {
                Turn::Jobs(group) => group.len(),
                Turn::Transactions(_) => 1,
            };
        }
        assert_eq!(done, WAITING_JOBS_MAX + 1);
    }
}
