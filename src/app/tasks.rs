//! The long-lived tasks of a node, and what happens when one of them ends by itself.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, warn};

/// Every task that lives as long as the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// Membership and replication: `node/engine.rs`. The writer ends with it.
    Engine,
    /// `http`.
    Http,
    /// `dns`.
    Dns,
    /// `health/runner.rs`.
    Health,
    /// `ingest/run.rs`.
    Ingest,
}

/// What to do when a task ends although nobody told it to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// The node is no use without it: stop, so that a supervisor starts it afresh.
    StopNode,
    /// The rest of the node works on without it: start it again after a while.
    Restart,
}

impl Task {
    /// Returns the policy for the task's end.
    pub fn policy(self) -> Policy {
        match self {
            Self::Engine | Self::Http => Policy::StopNode,
            Self::Dns | Self::Health | Self::Ingest => Policy::Restart,
        }
    }
}

/// How long a task waits before it starts again: first, and at most.
const RESTART_FIRST: Duration = Duration::from_millis(200);
const RESTART_LAST: Duration = Duration::from_secs(10);

/// The tasks of one node.
pub struct Tasks {
    set: JoinSet<Task>,
    token: CancellationToken,
}

impl Tasks {
    /// Makes an empty table. Cancelling the token tells every task to end.
    pub fn new(token: CancellationToken) -> Self {
        Self { set: JoinSet::new(), token }
    }

    /// Runs a task by its policy. `start` is called again for each restart.
    pub fn spawn<F, Work>(&mut self, task: Task, mut start: F)
    where
        F: FnMut() -> Work + Send + 'static,
        Work: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        self.set.spawn(async move {
            let mut pause = RESTART_FIRST;
            loop {
                // A task of its own, so that a panic in it is an end like any other.
                let ended = AbortOnDropHandle::new(tokio::spawn(start())).await;
                if token.is_cancelled() {
                    return task;
                }
                let reason =
                    ended.err().map_or_else(|| "it returned".to_owned(), |e| e.to_string());
                match task.policy() {
                    Policy::StopNode => {
                        error!(?task, reason, "A part that the node cannot do without has ended");
                        return task;
                    }
                    Policy::Restart => {
                        warn!(
                            ?task,
                            reason,
                            ?pause,
                            "A part of the node has ended; starting it again"
                        );
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(RESTART_LAST),
                    () = token.cancelled() => return task,
                }
            }
        });
    }

    /// Runs a task that is never started again: its policy is [`Policy::StopNode`].
    pub fn spawn_once<Work>(&mut self, task: Task, work: Work)
    where
        Work: Future<Output = ()> + Send + 'static,
    {
        assert_eq!(task.policy(), Policy::StopNode, "a task that restarts needs to be made anew");
        let mut work = Some(work);
        self.spawn(task, move || {
            let work = work.take();
            async move {
                if let Some(work) = work {
                    work.await;
                }
            }
        });
    }

    /// Waits for a task whose end ends the node, and names it. Pends while there is none.
    pub async fn fatal(&mut self) -> Task {
        loop {
            match self.set.join_next().await {
                Some(Ok(task)) => return task,
                Some(Err(error)) => error!(%error, "A supervisor has ended"),
                None => std::future::pending().await,
            }
        }
    }

    /// Waits until every task has ended, or `grace` is over; then the rest are aborted.
    pub async fn drain(mut self, grace: Duration) -> bool {
        let all = async { while self.set.join_next().await.is_some() {} };
        tokio::time::timeout(grace, all).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_that_panics_starts_again() {
        let token = CancellationToken::new();
        let mut tasks = Tasks::new(token.clone());
        let starts = Arc::new(AtomicU32::new(0));
        let (counted, third) = (Arc::clone(&starts), Arc::new(tokio::sync::Notify::new()));
        let reached = Arc::clone(&third);
        tasks.spawn(Task::Dns, move || {
            let nth = counted.fetch_add(1, Ordering::SeqCst);
            let (third, token) = (Arc::clone(&third), token.clone());
            async move {
                assert!(nth >= 2, "an early end, on purpose");
                third.notify_one();
                token.cancelled().await;
            }
        });
        reached.notified().await;
        assert_eq!(starts.load(Ordering::SeqCst), 3);
        tasks.token.cancel();
        assert!(tasks.drain(Duration::from_secs(1)).await);
    }

    #[tokio::test]
    async fn a_part_that_must_not_end_is_named() {
        let mut tasks = Tasks::new(CancellationToken::new());
        tasks.spawn(Task::Engine, || async {});
        assert_eq!(tasks.fatal().await, Task::Engine);
    }
}
