//! Replies of other servers that may be given again.

use std::sync::Arc;
use std::time::Duration;

use hashlink::LruCache;
use tokio::time::Instant;

use super::key::Key;
use super::reply::Reply;

/// How many bytes all replies together may take: some 50,000 of the usual length.
const WEIGHT_MAX: usize = 32 << 20;

/// How long past its time a reply is kept, for when no server answers (RFC 8767).
const STALE_MAX: Duration = Duration::from_secs(3_600);

/// What was replied to a question.
#[derive(Clone, Debug)]
pub struct Held {
    pub reply: Arc<Reply>,
    pub at: Instant,
    /// How long it is to be given.
    pub lasts: Duration,
    /// Nobody answered when it was asked for anew: it is given on, and not asked for before.
    pub retry_at: Option<Instant>,
}

impl Held {
    /// Tells whether it is as good as new.
    pub fn is_fresh(&self, now: Instant) -> bool {
        now < self.at + self.lasts
    }

    /// Tells whether nobody is to be asked yet, though it is too old.
    pub fn is_resting(&self, now: Instant) -> bool {
        self.retry_at.is_some_and(|retry_at| now < retry_at)
    }

    /// Tells whether it may still be given when nobody answers.
    pub fn is_better_than_nothing(&self, now: Instant) -> bool {
        self.reply.is_settled() && now < self.at + self.lasts + STALE_MAX
    }

    /// Returns its age in whole seconds.
    pub fn age(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.at).as_secs()).unwrap_or(u32::MAX)
    }
}

/// Replies by question, as many as there is room for. Those that nobody asked for go first.
#[derive(Debug)]
pub struct Cache {
    held: LruCache<Key, Held>,
    entries_max: usize,
    weight: usize,
}

impl Cache {
    /// Makes an empty one for so many replies; 0: it stays empty.
    pub fn new(entries_max: usize) -> Self {
        Self { held: LruCache::new_unbounded(), entries_max, weight: 0 }
    }

    pub fn get(&mut self, key: &Key) -> Option<Held> {
        self.held.get(key).cloned()
    }

    pub fn insert(&mut self, key: Key, held: Held) {
        if self.entries_max == 0 {
            return;
        }
        self.weight += weigh(&key, &held);
        let replaced = self.held.insert(key.clone(), held);
        self.weight -= replaced.map_or(0, |replaced| weigh(&key, &replaced));
        while self.held.len() > self.entries_max || self.weight > WEIGHT_MAX {
            let Some((key, held)) = self.held.remove_lru() else { return };
            self.weight -= weigh(&key, &held);
        }
    }
}

fn weigh(key: &Key, held: &Held) -> usize {
    // The name is held twice by the map's own links at most; a few words each besides.
    128 + key.name().len() + held.reply.weight()
}
