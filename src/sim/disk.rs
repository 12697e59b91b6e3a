//! A disk that takes its time, fails, and loses what it had not confirmed.

use std::collections::VecDeque;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::medium::Work;
use crate::crdt::content::Mend;
use crate::crdt::storage::{Past, Tidy};
use crate::crdt::{Batch, Part, Piece, RowOp, Staging};
use crate::replica::BatchId;
use crate::types::{Epoch, NodeId, Origin, Version};

/// How disks behave.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// What a transaction takes at least.
    pub write_min: Duration,
    /// What it takes at most.
    pub write_max: Duration,
    /// What a read takes at most.
    pub read_max: Duration,
    /// How long after that, at most, the process takes note of what became of a write.
    pub attention_max: Duration,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            write_min: Duration::from_micros(150),
            write_max: Duration::from_millis(2),
            read_max: Duration::from_millis(1),
            attention_max: Duration::from_micros(200),
        }
    }
}

/// One transaction that waits for the writer.
#[derive(Clone, Debug)]
pub(super) enum Job {
    Commit(Vec<RowOp>),
    Apply { id: BatchId, batch: Batch },
    Stage { staging: Staging, parts: Vec<Part> },
    ApplyStaged { id: BatchId, staging: Staging, last: Piece },
    Unstage(Staging),
    BeginEpoch { above: Epoch },
    Withdraw,
    Meet { members: Vec<(NodeId, Epoch)>, forgotten: Vec<(NodeId, Epoch)> },
    Collect { heads: Vec<(Origin, Version)>, forgotten: Vec<(NodeId, Epoch)>, rows_max: usize },
    Rejoin { held: Vec<(Origin, Version)>, length: u64 },
    Settle(Past),
    Depart { under: Origin, held: Vec<(Origin, Version)> },
    Tidy(Tidy),
    Mend(Mend),
    Recount,
}

/// The one writer of a node and what waits for it. A job becomes true, whole and durable, at the
/// moment it ends; before that a crash leaves no trace of it. What ended is there after any crash,
/// whether the process was told or not: a commit that nobody has heard of may well be true.
#[derive(Debug, Default)]
pub(super) struct Disk {
    jobs: VecDeque<Job>,
    /// It fails everything.
    pub(super) is_failing: bool,
    /// It refuses what is to be written, and can be read.
    pub(super) is_full: bool,
    /// How many times as long as usual it takes; 0 counts as 1.
    pub(super) slowness: u32,
}

impl Disk {
    /// Adds a job. Returns whether the writer was idle and has to be set to work.
    pub(super) fn add(&mut self, job: Job) -> bool {
        self.jobs.push_back(job);
        self.jobs.len() == 1
    }

    /// Ends the first job. The caller carries it out, and sets the writer to the next, if any.
    pub(super) fn take_done(&mut self) -> Option<Job> {
        self.jobs.pop_front()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Tells whether nothing waits that anybody could see.
    pub(super) fn is_at_rest(&self) -> bool {
        let is_unseen =
            |job: &Job| matches!(job, Job::Collect { .. } | Job::Meet { .. } | Job::Tidy(_));
        self.jobs.iter().all(is_unseen)
    }

    pub(super) fn refuses_writes(&self) -> bool {
        self.is_failing || self.is_full
    }

    /// It is as good as new.
    pub(super) fn mend(&mut self) {
        (self.is_failing, self.is_full, self.slowness) = (false, false, 1);
    }

    /// Forgets all jobs. Returns what the writer was in the midst of.
    pub(super) fn crash(&mut self) -> Option<Work> {
        let first = self.jobs.pop_front();
        self.jobs.clear();
        match first? {
            Job::Commit(ops) => Some(Work::Commit(ops)),
            Job::Apply { batch, .. } => Some(Work::Apply(batch)),
            Job::Stage { .. }
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
            | Job::Recount => None,
        }
    }
}

impl DiskConfig {
    pub(super) fn draw_write(&self, rng: &mut SmallRng) -> Duration {
        rng.random_range(self.write_min..=self.write_max)
    }

    pub(super) fn draw_attention(&self, rng: &mut SmallRng) -> Duration {
        rng.random_range(Duration::ZERO..=self.attention_max)
    }

    pub(super) fn draw_read(&self, rng: &mut SmallRng) -> Duration {
        rng.random_range(Duration::ZERO..=self.read_max)
    }
}
