//! Who waits until this node holds a version. Commits say how far each origin is held.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::lock;
use crate::types::{NodeId, Origin, Token, Version};

/// How many may wait at a time. Each takes some two hundred bytes; beyond that they are told so.
const WAITERS_MAX: usize = 16_384;

/// Why a wait was given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitError {
    /// The version has not come in time: so far it is held, and `later` is a later origin of the same
    /// node that this node knows of.
    TimedOut { held: Version, later: Option<Origin> },
    /// Too many wait.
    Full,
}

/// How far each origin is held, as everybody on this node can see it, and who waits for more.
#[derive(Debug, Default)]
pub struct Versions {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    heads: BTreeMap<Origin, Version>,
    waiting: BTreeMap<(Origin, Version, u64), oneshot::Sender<()>>,
    next: u64,
}

impl Versions {
    /// Begins anew with these heads. Whoever waits goes on waiting, if it must.
    pub fn restart(&self, heads: impl IntoIterator<Item = (Origin, Version)>) {
        let heads: Vec<_> = heads.into_iter().collect();
        lock(&self.state).heads.clear();
        self.reach(&heads);
    }

    /// Takes the head of an origin back: a disk lost what came after it.
    pub fn set_back(&self, origin: Origin, head: Version) {
        lock(&self.state).heads.insert(origin, head);
    }

    /// These origins are held so far now. What it costs does not depend on who waits for others.
    pub fn reach(&self, heads: &[(Origin, Version)]) {
        let mut woken = Vec::new();
        {
            let mut state = lock(&self.state);
            for (origin, head) in heads {
                state.heads.insert(*origin, *head);
                let first = (*origin, Version(0), 0);
                while let Some((key, _)) =
                    state.waiting.range(first..=(*origin, *head, u64::MAX)).next()
                {
                    let key = *key;
                    woken.extend(state.waiting.remove(&key));
                }
            }
        }
        // Without the lock. Whoever has gone away need not be told.
        for waiter in woken {
            let _ = waiter.send(());
        }
    }

    /// Returns how far an origin is held.
    pub fn head(&self, origin: Origin) -> Version {
        lock(&self.state).heads.get(&origin).copied().unwrap_or_default()
    }

    /// Returns the latest version of a node's latest origin: it covers all that the node has written.
    pub fn newest_of(&self, node: NodeId) -> Option<Token> {
        let state = lock(&self.state);
        let heads = state.heads.iter().filter(|(origin, _)| origin.node == node);
        let newest = heads.max_by_key(|(origin, _)| origin.epoch);
        newest.map(|(origin, version)| Token { origin: *origin, version: *version })
    }

    /// Returns how many wait.
    pub fn waiting(&self) -> usize {
        lock(&self.state).waiting.len()
    }

    /// Waits until this node holds a version, or until `deadline`. Whoever is told can see it.
    pub async fn wait(&self, token: Token, deadline: Instant) -> Result<(), WaitError> {
        let Some(mut waiter) = self.join(token)? else { return Ok(()) };
        let is_reached = timeout_at(deadline, &mut waiter.told).await.is_ok();
        if is_reached {
            return Ok(());
        }
        let held = self.head(token.origin);
        let newest = self.newest_of(token.origin.node).map(|newest| newest.origin);
        let later = newest.filter(|newest| newest.epoch > token.origin.epoch);
        Err(WaitError::TimedOut { held, later })
    }

    /// Begins to wait; `None`: there is nothing to wait for.
    fn join(&self, token: Token) -> Result<Option<Waiter<'_>>, WaitError> {
        let mut state = lock(&self.state);
        let held = state.heads.get(&token.origin).copied().unwrap_or_default();
        if held >= token.version {
            return Ok(None);
        }
        if state.waiting.len() >= WAITERS_MAX {
            return Err(WaitError::Full);
        }
        let (tell, told) = oneshot::channel();
        state.next += 1;
        let key = (token.origin, token.version, state.next);
        state.waiting.insert(key, tell);
        Ok(Some(Waiter { versions: self, key, told }))
    }
}

/// One who waits, and leaves nothing behind.
struct Waiter<'a> {
    versions: &'a Versions,
    key: (Origin, Version, u64),
    told: oneshot::Receiver<()>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        lock(&self.versions.state).waiting.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::types::{Epoch, Scope};

    fn origin(node: u8, epoch: u64) -> Origin {
        Origin { scope: Scope(0), node: NodeId([node; 16]), epoch: Epoch(epoch) }
    }

    fn token(node: u8, version: u64) -> Token {
        Token { origin: origin(node, 1), version: Version(version) }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(10)
    }

    #[tokio::test]
    async fn what_is_held_is_not_waited_for() {
        let versions = Versions::default();
        versions.restart([(origin(1, 1), Version(5))]);
        assert_eq!(versions.wait(token(1, 5), soon()).await, Ok(()));
        assert_eq!(versions.wait(token(2, 0), soon()).await, Ok(()));
        assert_eq!(versions.waiting(), 0);
    }

    #[tokio::test]
    async fn ten_thousand_wait_and_those_who_may_go_do() {
        let versions = Arc::new(Versions::default());
        let wait = |version: u64| {
            let versions = Arc::clone(&versions);
            let deadline = Instant::now() + Duration::from_secs(60);
            async move { versions.wait(token(1, version), deadline).await }
        };
        let waiters: Vec<_> = (1..=10_000).map(|version| tokio::spawn(wait(version))).collect();
        while versions.waiting() < 10_000 {
            tokio::task::yield_now().await;
        }
        versions.reach(&[(origin(2, 1), Version(10_000)), (origin(1, 1), Version(4_000))]);
        assert_eq!(versions.waiting(), 6_000);
        versions.reach(&[(origin(1, 1), Version(10_000))]);
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), Ok(()));
        }
        assert_eq!(versions.waiting(), 0);
    }

    #[tokio::test]
    async fn who_waits_in_vain_is_told_how_far_it_is_and_leaves_nothing_behind() {
        let versions = Versions::default();
        versions.restart([(origin(1, 1), Version(3))]);
        let held = Version(3);
        let expected = Err(WaitError::TimedOut { held, later: None });
        assert_eq!(versions.wait(token(1, 4), soon()).await, expected);
        // Its node goes on under another epoch: what it lost may never come.
        versions.reach(&[(origin(1, 7), Version(1))]);
        let later = Some(origin(1, 7));
        let expected = Err(WaitError::TimedOut { held, later });
        assert_eq!(versions.wait(token(1, 4), soon()).await, expected);
        let held = Version(0);
        let expected = Err(WaitError::TimedOut { held, later: None });
        assert_eq!(versions.wait(token(9, 1), soon()).await, expected);
        assert_eq!(versions.waiting(), 0);
    }

    #[tokio::test]
    async fn the_newest_version_of_a_node_is_that_of_its_latest_epoch() {
        let versions = Versions::default();
        versions.restart([(origin(1, 1), Version(9)), (origin(1, 2), Version(1))]);
        let newest = Token { origin: origin(1, 2), version: Version(1) };
        assert_eq!(versions.newest_of(origin(1, 1).node), Some(newest));
        versions.set_back(origin(1, 1), Version(4));
        assert_eq!(versions.head(origin(1, 1)), Version(4));
        assert_eq!(versions.newest_of(origin(2, 1).node), None);
    }
}
