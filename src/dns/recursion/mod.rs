//! Names that are not ours: asked of other servers, each question once at a time, and remembered for as
//! long as they say.
//!
//! Nothing here walks the tree of names from its root: the servers are resolvers themselves. What they
//! say is passed on as it came, but for its id, its TTLs and its OPT record.

pub mod cache;
pub mod config;
pub mod key;
pub mod known;
pub mod reply;
pub mod servers;
pub mod upstream;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hickory_proto::rr::RecordType;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error};

use self::cache::{Cache, Held};
pub use self::config::Config;
use self::key::Key;
use self::reply::Reply;
use self::servers::Servers;
use super::counters::{Counters, add_one};

/// A server that has not answered for so long no longer keeps the next one from being asked.
const STAGGER: Duration = Duration::from_millis(400);

/// How often all servers are asked before a question is given up.
const ROUNDS: usize = 2;

/// How long it is remembered that no server had an answer (RFC 9520, section 3.2).
const FAILURE_LASTS: Duration = Duration::from_secs(1);

/// How long what is too old is given before the servers are asked again.
const STALE_RETRY: Duration = Duration::from_secs(5);

/// How often servers are asked the same, all together, before it is given up.
const ATTEMPTS_MAX: usize = 6;

/// Asks other servers.
pub struct Recursor {
    config: Config,
    /// Those of the most specific domain first; last those of all other names.
    groups: Vec<Group>,
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<Key, Arc<OnceCell<Answer>>>>,
    counters: Arc<Counters>,
}

struct Group {
    /// In lower case, without the final dot; empty: all names.
    suffix: String,
    servers: Mutex<Servers>,
    /// Questions that only this process asks: where one comes in, a server sends it back.
    probes: Vec<(String, SocketAddr)>,
}

/// What came of a question.
#[derive(Clone, Debug)]
pub enum Answer {
    Reply {
        reply: Arc<Reply>,
        /// In whole seconds.
        age: u32,
        /// It should have been asked for anew, and no server answered.
        is_stale: bool,
    },
    /// No server had one.
    Failed,
    /// Nobody is asked.
    Refused,
}

impl Recursor {
    /// Makes it; nothing is asked yet.
    pub fn new(config: Config, counters: Arc<Counters>) -> Self {
        let group = |suffix: &str, addresses: &[SocketAddr]| Group {
            suffix: suffix.to_owned(),
            servers: Mutex::new(Servers::new(addresses, config.strategy)),
            probes: addresses.iter().map(|address| (probe(suffix), *address)).collect(),
        };
        let domains = config.domains.iter();
        let mut groups: Vec<Group> =
            domains.map(|(zone, servers)| group(zone.as_str(), servers)).collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.suffix.len()));
        if !config.servers.is_empty() {
            groups.push(group("", &config.servers));
        }
        let cache = Mutex::new(Cache::new(config.cache_entries));
        Self { groups, cache, flights: Mutex::default(), counters, config }
    }

    /// Returns what is remembered.
    pub fn recall(&self, key: &Key) -> Option<Answer> {
        let now = Instant::now();
        let held = self.held(key)?;
        let is_fresh = held.is_fresh(now);
        if !is_fresh && !held.is_resting(now) {
            return None;
        }
        let counters = &self.counters.recursion;
        add_one(if is_fresh { &counters.cached } else { &counters.stale });
        Some(Answer::Reply { age: held.age(now), reply: held.reply, is_stale: !is_fresh })
    }

    /// Asks, unless it is remembered. Who asks the same at the same time gets the same answer.
    pub async fn ask(&self, name: &str, key: &Key) -> Answer {
        if let Some(answer) = self.recall(key) {
            return answer;
        }
        let Some(group) = self.group(name) else { return Answer::Failed };
        let cell = Arc::clone(self.flights().entry(key.clone()).or_default());
        let flight = Flight { recursor: self, key, cell };
        // Where whoever began it gives up, another one who waits goes on.
        let answer = flight.cell.get_or_init(|| self.fetch(group, key)).await.clone();
        // Who comes from now on asks anew.
        flight.end();
        answer
    }

    async fn fetch(&self, group: &Group, key: &Key) -> Answer {
        add_one(&self.counters.recursion.asked);
        let fetched = self.ask_servers(group, key).await;
        let now = Instant::now();
        if let Some(reply) = fetched.as_ref().filter(|reply| reply.is_settled()) {
            if let Some(ttl) = reply.ttl {
                let Config { ttl_max, negative_ttl_max, .. } = self.config;
                let max = if reply.is_negative() { negative_ttl_max } else { ttl_max };
                let lasts = Duration::from_secs(ttl.into()).min(max);
                self.remember(
                    key,
                    Held { reply: Arc::clone(reply), at: now, lasts, retry_at: None },
                );
            }
            return Answer::Reply { reply: Arc::clone(reply), age: 0, is_stale: false };
        }
        add_one(&self.counters.recursion.failed);
        if let Some(held) = self.held(key).filter(|held| held.is_better_than_nothing(now)) {
            add_one(&self.counters.recursion.stale);
            self.remember(key, Held { retry_at: Some(now + STALE_RETRY), ..held.clone() });
            return Answer::Reply { age: held.age(now), reply: held.reply, is_stale: true };
        }
        let Some(reply) = fetched else { return Answer::Failed };
        let (at, lasts) = (now, FAILURE_LASTS);
        self.remember(key, Held { reply: Arc::clone(&reply), at, lasts, retry_at: None });
        Answer::Reply { reply, age: 0, is_stale: false }
    }

    /// Asks one server after the other, each a moment after the last one where that one does not answer,
    /// until one knows. `None`: nobody answered.
    async fn ask_servers(&self, group: &Group, key: &Key) -> Option<Arc<Reply>> {
        let order = group.servers().order(Instant::now(), rand::random());
        let mut waiting = order.repeat(ROUNDS).into_iter().take(ATTEMPTS_MAX).peekable();
        let mut asked = FuturesUnordered::new();
        let mut refusal = None;
        loop {
            if let Some(address) = waiting.next() {
                let exchange = upstream::exchange(address, key);
                asked.push(async move { (address, timeout(self.config.timeout, exchange).await) });
            }
            let is_last = waiting.peek().is_none();
            // Those that were asked may still answer while the next one is asked.
            let (address, result) = tokio::select! {
                result = asked.next() => match result {
                    Some(result) => result,
                    None => return refusal,
                },
                () = sleep(STAGGER), if !is_last => continue,
            };
            let reply = match result {
                Ok(Ok(reply)) => Some(Arc::new(reply)),
                Ok(Err(error)) => {
                    debug!(%address, %error, "Another DNS server could not be asked");
                    None
                }
                Err(_) => None,
            };
            // A server that refuses one name is not for that unwell.
            group.servers().note(Instant::now(), address, reply.is_some());
            match reply {
                Some(reply) if reply.is_settled() => return Some(reply),
                Some(reply) => refusal = Some(reply),
                None => {}
            }
        }
    }

    /// Asks each server what only this process can know, so that it hears of it when one sends questions
    /// back: they would go round until they are given up.
    pub async fn look_for_circles(&self) {
        let probes = self.groups.iter().flat_map(|group| &group.probes);
        let mut asked: FuturesUnordered<_> = probes
            .filter_map(|(name, address)| Some((Key::own(name, RecordType::HINFO)?, *address)))
            .map(|(key, address)| async move {
                timeout(self.config.timeout, upstream::exchange(address, &key)).await.is_ok()
            })
            .collect();
        while asked.next().await.is_some() {}
    }

    /// Looks whether a question is one that was asked here, and leaves out the server that sends it back.
    pub fn is_circle(&self, name: &str) -> bool {
        for group in &self.groups {
            let Some((_, address)) = group.probes.iter().find(|(probe, _)| probe == name) else {
                continue;
            };
            if group.servers().leave_out(*address) {
                add_one(&self.counters.recursion.circles);
                error!(
                    recursor = %address,
                    "The recursor sends questions back to this node, and is not asked any more; \
                     change recursors, or what that server forwards to"
                );
            }
            return true;
        }
        false
    }

    fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| config::is_below(name, &group.suffix))
    }

    fn held(&self, key: &Key) -> Option<Held> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(key)
    }

    fn remember(&self, key: &Key, held: Held) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), held);
    }

    fn flights(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<OnceCell<Answer>>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question under way, for one of those who wait for it.
struct Flight<'r> {
    recursor: &'r Recursor,
    key: &'r Key,
    cell: Arc<OnceCell<Answer>>,
}

impl Flight<'_> {
    fn end(&self) {
        let mut flights = self.recursor.flights();
        if flights.get(self.key).is_some_and(|other| Arc::ptr_eq(other, &self.cell)) {
            flights.remove(self.key);
        }
    }
}

impl Drop for Flight<'_> {
    /// Whoever is the last to give up takes the question away.
    fn drop(&mut self) {
        // The map's and this one. Nobody gets another one meanwhile but by the map.
        let mut flights = self.recursor.flights();
        let is_last = Arc::strong_count(&self.cell) == 2;
        if is_last && flights.get(self.key).is_some_and(|other| Arc::ptr_eq(other, &self.cell)) {
            flights.remove(self.key);
        }
    }
}

impl Group {
    fn servers(&self) -> std::sync::MutexGuard<'_, Servers> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes up a name that nobody else asks for.
fn probe(suffix: &str) -> String {
    let [first, second] = [rand::random::<u64>(), rand::random::<u64>()];
    let name = format!("{first:016x}.{second:016x}");
    if suffix.is_empty() { name } else { format!("{name}.{suffix}") }
}
