//! The feed: commits go in, in order; the view, the waiters and the subscribers learn of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

use super::{Versions, lock};
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
    waiters: Mutex<BTreeMap<Topic, Waiters>>,
    commits: broadcast::Sender<Arc<Commit>>,
    versions: Versions,
    distances: ArcSwap<Distances>,
}

/// How far away the other members are: the round trips that were measured of late.
pub type Distances = BTreeMap<NodeId, Duration>;

impl Feed {
    /// Makes a feed that starts from what the database held.
    pub fn new(view: View) -> Self {
        Self {
            view: ArcSwap::from_pointee(view),
            fold: Mutex::new(()),
            waiters: Mutex::default(),
            commits: broadcast::Sender::new(FOLLOWER_COMMITS_MAX),
            versions: Versions::default(),
            distances: ArcSwap::default(),
        }
    }

    /// Returns the view as it is now. It never changes; ask again for a newer one.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Takes over the view as it is now; false: it is the same still. It costs less than to ask for it.
    pub fn renew(&self, held: &mut Arc<View>) -> bool {
        let now = self.view.load();
        let is_new = !Arc::ptr_eq(&now, held);
        if is_new {
            *held = Arc::clone(&now);
        }
        is_new
    }

    /// Returns the node that it belongs to.
    pub fn me(&self) -> NodeId {
        self.view.load().me()
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
        self.versions.reach(&commit.heads);
    }

    /// Returns how far each origin is held, for those who wait for a version.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// Publishes what membership found out. Nothing of it is ever written to the database.
    pub fn publish_liveness(&self, now: Wall, change: Liveness) {
        self.fold(|view| view.fold_liveness(Hlc(view.index_max()).tick(now), change));
    }

    /// Publishes how far away the other members are.
    pub fn publish_distances(&self, distances: Distances) {
        self.distances.store(Arc::new(distances));
    }

    /// Returns how far away the other members are, as it was found out last.
    pub fn distances(&self) -> Arc<Distances> {
        self.distances.load_full()
    }

    /// Waits until the topic's index passes `index`, or until `deadline`, and returns the view
    /// that is true then.
    ///
    /// Returns at once when the index has passed already, or when `index` lies ahead of this
    /// node: its client comes from another node, or from the Consul before us.
    pub async fn wait(&self, topic: &Topic, index: u64, deadline: Instant) -> Arc<View> {
        let view = self.view();
        if view.index(topic) != index {
            return view;
        }
        let waiter = Waiter::new(self, topic);
        loop {
            let notified = waiter.notify.notified();
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

    /// Returns how many topics somebody waits for.
    pub fn topics_waited_for(&self) -> usize {
        lock(&self.waiters).len()
    }

    fn fold(&self, step: impl FnOnce(&View) -> (View, BTreeSet<Topic>)) {
        let touched = {
            let _guard = lock(&self.fold);
            let (view, touched) = step(&self.view.load());
            self.view.store(Arc::new(view));
            touched
        };
        self.wake(&touched);
    }

    /// Wakes those who wait for one of the topics; what it costs does not depend on the others.
    fn wake(&self, touched: &BTreeSet<Topic>) {
        let woken: Vec<Arc<Notify>> = {
            let waiters = lock(&self.waiters);
            let prefixes = prefixes_waited_for(&waiters, touched);
            let woken = touched.iter().chain(&prefixes).filter_map(|topic| waiters.get(topic));
            woken.map(|waiters| Arc::clone(&waiters.notify)).collect()
        };
        // Without the lock: thousands may wait for one topic, and others want to begin to.
        for notify in woken {
            notify.notify_waiters();
        }
    }
}

/// Lists the prefixes of touched keys, where anybody waits for prefixes at all.
fn prefixes_waited_for(
    waiters: &BTreeMap<Topic, Waiters>,
    touched: &BTreeSet<Topic>,
) -> BTreeSet<Topic> {
    let first = Topic::KeysUnder("".into());
    let Some((Topic::KeysUnder(_), _)) = waiters.range(first..).next() else {
        return BTreeSet::new();
    };
    let keys = touched.iter().filter_map(|topic| match topic {
        Topic::Key(key) => Some(key),
        _ => None,
    });
    let prefixes = keys.flat_map(|key| {
        let ends = key.char_indices().map(|(at, _)| at).chain([key.len()]);
        ends.map(|end| Topic::KeysUnder(key[..end].into()))
    });
    prefixes.collect()
}

/// Those who wait for one topic.
#[derive(Default)]
struct Waiters {
    notify: Arc<Notify>,
    count: usize,
}

/// One of them. The last to leave, whether served, timed out or dropped, takes the topic off the
/// list.
struct Waiter<'a> {
    feed: &'a Feed,
    topic: &'a Topic,
    notify: Arc<Notify>,
}

impl<'a> Waiter<'a> {
    fn new(feed: &'a Feed, topic: &'a Topic) -> Self {
        let mut waiters = lock(&feed.waiters);
        let waiters = waiters.entry(topic.clone()).or_default();
        waiters.count += 1;
        Self { feed, topic, notify: Arc::clone(&waiters.notify) }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiters = lock(&self.feed.waiters);
        if let Some(left) = waiters.get_mut(self.topic) {
            left.count -= 1;
            if left.count == 0 {
                waiters.remove(self.topic);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::catalog::model::{Check, Node, Service, Status, key_of};
    use crate::catalog::rows::{self, Row};
    use crate::crdt::{Name, RowEvent, RowEvents, TableEvents, TableInfo};
    use crate::types::{Seq, Value};

    const ME: NodeId = NodeId([1; 16]);
    const OTHER: NodeId = NodeId([2; 16]);
    /// Longer than any test takes: who waits for so long was not woken.
    const LONG: Duration = Duration::from_secs(60);

    fn commit(at: u64, tables: &[(&str, Row)]) -> Arc<Commit> {
        let tables = tables.iter().map(|(table, row)| event(table, row)).collect();
        let (seq, at) = (Seq(at), Hlc(at));
        Arc::new(Commit { seq, at, tables, changeset: None, heads: Vec::new() })
    }

    fn event(table: &str, row: &Row) -> TableEvents {
        let key = (0..if matches!(table, rows::NODES | rows::KEYS) { 1 } else { 2 }).collect();
        let columns: Vec<Name> = row.iter().map(|(column, _)| Name::from(*column)).collect();
        let row: Vec<Value> = row.iter().map(|(_, value)| value.clone()).collect();
        let info = TableInfo { name: table.into(), columns, key };
        let key = info.key.iter().map(|place| row[*place].clone()).collect();
        let rows = vec![RowEvent { key, existed: false, row: Some(row) }];
        TableEvents { table: Arc::new(info), rows: RowEvents::Each(rows) }
    }

    /// A feed of one node that runs `web` with one check.
    fn feed() -> Arc<Feed> {
        let feed = Feed::new(View::new(ME));
        let service = Service { id: "web".into(), name: "web".into(), ..Service::default() };
        feed.publish(&commit(
            10,
            &[
                (rows::NODES, rows::node_row(&key_of(ME), &Node::default())),
                (rows::SERVICES, rows::service_row(&key_of(ME), &service)),
                (rows::CHECKS, check(Status::Passing)),
            ],
        ));
        Arc::new(feed)
    }

    fn check(status: Status) -> Row {
        let check = Check { id: "c".into(), service_id: "web".into(), status, ..Check::default() };
        rows::check_row(&key_of(ME), &check)
    }

    fn health() -> Topic {
        Topic::Health("web".into())
    }

    /// Waits in a task of its own, and returns once it does.
    async fn waiting(
        feed: &Arc<Feed>,
        topic: Topic,
        index: u64,
    ) -> tokio::task::JoinHandle<Arc<View>> {
        let (inner, wanted) = (Arc::clone(feed), topic.clone());
        let wait = async move { inner.wait(&wanted, index, Instant::now() + LONG).await };
        let task = tokio::spawn(wait);
        while !lock(&feed.waiters).contains_key(&topic) {
            tokio::task::yield_now().await;
        }
        task
    }

    #[tokio::test]
    async fn a_waiter_wakes_once_it_can_see_what_woke_it() {
        let feed = feed();
        let task = waiting(&feed, health(), 10).await;
        feed.publish(&commit(20, &[(rows::CHECKS, check(Status::Critical))]));
        let view = task.await.unwrap();
        assert_eq!(view.index(&health()), 20);
        assert_eq!(view.service("web").unwrap().instances[0].status, Status::Critical);
        assert_eq!(feed.topics_waited_for(), 0);
    }

    #[tokio::test]
    async fn an_index_behind_or_ahead_is_answered_at_once() {
        let feed = feed();
        for index in [0, 9, 11, u64::MAX] {
            let view = feed.wait(&health(), index, Instant::now() + LONG).await;
            assert_eq!(view.index(&health()), 10);
        }
    }

    #[tokio::test]
    async fn a_wait_ends_at_its_deadline_and_leaves_nothing_behind() {
        let feed = feed();
        let deadline = Instant::now() + Duration::from_millis(20);
        let view = feed.wait(&health(), 10, deadline).await;
        assert!(Instant::now() >= deadline);
        assert_eq!(view.index(&health()), 10);
        assert_eq!(feed.topics_waited_for(), 0);
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_leaves_nothing_behind() {
        let feed = feed();
        let (first, second) =
            (waiting(&feed, health(), 10).await, waiting(&feed, health(), 10).await);
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        feed.publish(&commit(20, &[(rows::CHECKS, check(Status::Warning))]));
        second.await.unwrap();
        assert_eq!(feed.topics_waited_for(), 0);
    }

    #[tokio::test]
    async fn others_changes_wake_nobody() {
        let feed = feed();
        let task = waiting(&feed, Topic::Nodes, 10).await;
        feed.publish(&commit(20, &[(rows::CHECKS, check(Status::Critical))]));
        let node = Node { name: "new".into(), ..Node::default() };
        feed.publish(&commit(30, &[(rows::NODES, rows::node_row(&key_of(OTHER), &node))]));
        assert_eq!(task.await.unwrap().index(&Topic::Nodes), 30);
    }

    #[tokio::test]
    async fn a_key_wakes_those_who_wait_for_it_and_for_each_of_its_prefixes() {
        let feed = feed();
        let put = |at, key: &str| {
            let commit = commit(at, &[(rows::KEYS, rows::key_row(key, b"v", at))]);
            feed.publish(&commit);
        };
        put(20, "a/ä/c");
        for (topic, key) in [
            (Topic::Key("a/ä/c".into()), "a/ä/c"),
            (Topic::KeysUnder("a/ä/c".into()), "a/ä/c"),
            (Topic::KeysUnder("a/ä".into()), "a/ä/c"),
            (Topic::KeysUnder("".into()), "a/ä/c"),
            (Topic::Key("new".into()), "new"),
            (Topic::KeysUnder("fre".into()), "fresh"),
        ] {
            let other = waiting(&feed, Topic::KeysUnder("other".into()), 1).await;
            let view = feed.view();
            let task = waiting(&feed, topic.clone(), view.index(&topic)).await;
            let at = view.index_max() + 1;
            put(at, key);
            assert_eq!(task.await.unwrap().index(&topic), at, "{topic:?}");
            assert!(!other.is_finished());
            other.abort();
            assert!(other.await.unwrap_err().is_cancelled());
        }
        assert_eq!(feed.topics_waited_for(), 0);
    }

    #[tokio::test]
    async fn membership_wakes_as_commits_do_and_never_gives_an_index_twice() {
        let feed = feed();
        let node = Node { name: "other".into(), ..Node::default() };
        feed.publish(&commit(20, &[(rows::NODES, rows::node_row(&key_of(OTHER), &node))]));
        let task = waiting(&feed, Topic::Checks, 20).await;
        // By a clock that is behind the one that the commits were made with.
        feed.publish_liveness(Wall(20_000), Liveness::Down(OTHER));
        assert_eq!(task.await.unwrap().index(&Topic::Checks), 21);
        let task = waiting(&feed, Topic::Checks, 21).await;
        feed.publish(&commit(21, &[(rows::CHECKS, check(Status::Warning))]));
        assert_eq!(task.await.unwrap().index(&Topic::Checks), 22);
    }

    #[tokio::test]
    async fn a_follower_can_see_each_commit_that_it_is_told_of() {
        let feed = feed();
        let mut follower = feed.follow();
        feed.publish(&commit(20, &[(rows::CHECKS, check(Status::Warning))]));
        assert_eq!(follower.recv().await.unwrap().seq, Seq(20));
        assert_eq!(feed.view().seq(), Seq(20));
    }

    /// Each round a writer changes the topic once, from another thread, while the waiter comes
    /// back with the index it saw last: were one change missed, it would wait for ever.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_up_is_lost_between_a_look_and_a_wait() {
        const ROUNDS: u64 = 2_000;
        let feed = feed();
        let writer = {
            let feed = Arc::clone(&feed);
            std::thread::spawn(move || {
                for round in 0..ROUNDS {
                    let status = [Status::Critical, Status::Passing][(round % 2) as usize];
                    feed.publish(&commit(11 + round, &[(rows::CHECKS, check(status))]));
                }
            })
        };
        let mut waiters = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let feed = Arc::clone(&feed);
            waiters.spawn(async move {
                let mut index = 10;
                while index < 10 + ROUNDS {
                    let view = feed.wait(&health(), index, Instant::now() + LONG).await;
                    assert!(view.index(&health()) > index, "timed out at {index}");
                    index = view.index(&health());
                }
            });
        }
        waiters.join_all().await;
        writer.join().unwrap();
        assert_eq!(feed.topics_waited_for(), 0);
    }
}
