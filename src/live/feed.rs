//! The feed: commits go in, in order; the view, the waiters and the subscribers learn of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

use crate::catalog::view::Liveness;
use crate::catalog::{Topic, View};
use crate::crdt::Commit;
use crate::types::{Hlc, NodeId, Wall};

/// How many commits a follower may fall behind before it is told so and has to start over: at a
/// thousand commits a second, eight seconds.
const FOLLOWER_COMMITS_MAX: usize = 8_192;

/// The one place from which everybody on this node learns what became true.
///
/// A commit is folded into the view first; then waiters wake, then followers get the commit.
/// Whoever is told of a commit can already see it.
pub struct Feed {
    view: ArcSwap<View>,
    /// Serialises folds; the view itself is read without it.
    fold: Mutex<()>,
    waiters: Mutex<BTreeMap<Topic, Arc<Notify>>>,
    commits: broadcast::Sender<Arc<Commit>>,
}

impl Feed {
    /// Makes a feed that starts from what the database held.
    pub fn new(view: View) -> Self {
        Self {
            view: ArcSwap::from_pointee(view),
            fold: Mutex::new(()),
            waiters: Mutex::default(),
            commits: broadcast::Sender::new(FOLLOWER_COMMITS_MAX),
        }
    }

    /// Returns the view as it is now. It never changes; ask again for a newer one.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Follows every commit from now on. A follower that falls behind by more than
    /// 8,192 commits gets [`broadcast::error::RecvError::Lagged`].
    pub fn follow(&self) -> broadcast::Receiver<Arc<Commit>> {
        self.commits.subscribe()
    }

    /// Publishes a commit that is on disk. Only the writer calls this, in commit order.
    pub fn publish(&self, commit: &Arc<Commit>) {
        self.fold(|view| view.fold(commit));
        // An error says that nobody follows.
        let _ = self.commits.send(Arc::clone(commit));
    }

    /// Publishes what membership found out. Nothing of it is ever written to the database.
    pub fn publish_liveness(&self, now: Wall, change: Liveness) {
        self.fold(|view| view.fold_liveness(Hlc(view.index_max()).tick(now), change));
    }

    /// Waits until the topic's index passes `index`, or until `deadline`, and returns the view
    /// that is true then.
    ///
    /// Returns at once when the index has passed already, or when `index` lies ahead of this
    /// node: its client comes from another node, or from the Consul before us.
    pub async fn wait(&self, topic: &Topic, index: u64, deadline: Instant) -> Arc<View> {
        loop {
            let notify = self.notify_of(topic);
            let notified = notify.notified();
            tokio::pin!(notified);
            // Registered before the view is read, so that a fold in between is not missed.
            notified.as_mut().enable();
            let view = self.view();
            if view.index(topic) != index {
                return view;
            }
            if tokio::time::timeout_at(deadline, notified).await.is_err() {
                return self.view();
            }
        }
    }

    fn fold(&self, step: impl FnOnce(&View) -> (View, BTreeSet<Topic>)) {
        let guard = lock(&self.fold);
        let (view, touched) = step(&self.view.load());
        self.view.store(Arc::new(view));
        drop(guard);
        self.wake(&touched);
    }

    fn wake(&self, touched: &BTreeSet<Topic>) {
        let mut waiters = lock(&self.waiters);
        // Nobody holds the entry but the map itself: its waiters went away.
        waiters.retain(|_, notify| Arc::strong_count(notify) > 1);
        for topic in touched {
            if let Some(notify) = waiters.get(topic) {
                notify.notify_waiters();
            }
        }
    }

    fn notify_of(&self, topic: &Topic) -> Arc<Notify> {
        let mut waiters = lock(&self.waiters);
        Arc::clone(waiters.entry(topic.clone()).or_default())
    }
}

/// The node that a feed belongs to.
impl Feed {
    pub fn me(&self) -> NodeId {
        self.view().me()
    }
}

/// No code panics while it holds one of these locks, and a half-made state cannot be seen: a
/// poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
