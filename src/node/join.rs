//! Whom to dial so as to meet the cluster: resolves the configured targets, and says when to dial
//! them again. A node without members dials all of them, and some whom it knew once; one that has
//! members looks around now and then for those that it should know and does not, since two parts of
//! a cluster that were cut for long enough have forgotten each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;
use tokio::time::Instant;
use tracing::{info, warn};

use super::GOSSIP_PORT;

/// The waits between two rounds of dials while nobody has answered: from, to.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LAST_WAIT: Duration = Duration::from_secs(30);

/// How often a node that has members looks around.
const LOOK_AROUND: Duration = Duration::from_secs(30);

/// How many addresses one name may stand for.
const ADDRESSES_PER_NAME_MAX: usize = 16;

/// How many targets there may be with those that are added while the node runs.
const TARGETS_MAX: usize = 256;

/// How many addresses are dialled in one round. The next round goes on with the others.
const ROUND_MAX: usize = 16;

/// How many of those whom the node knew once are dialled in a round beside the targets.
const KNOWN_PER_ROUND: usize = 3;

/// The join targets and when they are due.
pub(super) struct Join {
    targets: Vec<String>,
    resolved: Arc<Mutex<Resolved>>,
    /// Where this node itself listens.
    me: BTreeSet<SocketAddr>,
    due_at: Instant,
    wait: Duration,
    /// With which of the addresses the next round begins.
    next: usize,
    rng: SmallRng,
    /// Addresses whose failure was logged, so that each is told once until it changes.
    failures: BTreeMap<SocketAddr, String>,
}

/// What the names stood for when they were last looked up.
#[derive(Debug, Default)]
struct Resolved {
    addresses: Vec<SocketAddr>,
    /// Names without an address, so that each is told once until it has one.
    unknown: BTreeSet<String>,
}

/// Whom a node knows, as far as it concerns joining.
pub(super) struct Known<'a> {
    /// Whether there is no member that can be spoken to.
    pub(super) is_alone: bool,
    /// Where members are that can be spoken to.
    pub(super) members: &'a dyn Fn() -> BTreeSet<SocketAddr>,
    /// Where the catalog says that nodes are, whether they can be spoken to or not.
    pub(super) catalog: &'a dyn Fn() -> Vec<SocketAddr>,
}

impl Join {
    /// `me` are the addresses under which this node is reached: they are never dialled.
    pub(super) fn new(
        targets: Vec<String>,
        me: impl IntoIterator<Item = SocketAddr>,
        rng: SmallRng,
    ) -> Self {
        let join = Self {
            targets,
            resolved: Arc::default(),
            me: me.into_iter().collect(),
            due_at: Instant::now(),
            wait: FIRST_WAIT,
            next: 0,
            rng,
            failures: BTreeMap::new(),
        };
        join.resolve();
        join
    }

    /// Returns the addresses to dial now.
    pub(super) fn due(&mut self, now: Instant, known: &Known<'_>) -> Vec<SocketAddr> {
        if known.is_alone { self.due_alone(now, known) } else { self.due_in_company(now, known) }
    }

    /// All targets, and some others, ever more rarely.
    fn due_alone(&mut self, now: Instant, known: &Known<'_>) -> Vec<SocketAddr> {
        if self.wait > LAST_WAIT {
            // It had members until now.
            (self.wait, self.due_at) = (FIRST_WAIT, now);
        }
        if now < self.due_at {
            return Vec::new();
        }
        let mut addresses = self.targets();
        let mut others = (known.catalog)();
        others.retain(|address| !self.me.contains(address) && !addresses.contains(address));
        if addresses.is_empty() && others.is_empty() && now < self.due_at + FIRST_WAIT {
            // The names are being looked up.
            return Vec::new();
        }
        self.next = if addresses.is_empty() { 0 } else { self.next % addresses.len() };
        addresses.rotate_left(self.next);
        addresses.truncate(ROUND_MAX);
        self.next += addresses.len();
        addresses.extend(others.into_iter().sample(&mut self.rng, KNOWN_PER_ROUND));
        self.due_at = now + self.wait.mul_f64(self.rng.random_range(0.75..1.25));
        self.wait = (self.wait * 2).min(LAST_WAIT);
        // For the next round: names may move.
        self.resolve();
        addresses
    }

    /// One that is no member, target or not.
    fn due_in_company(&mut self, now: Instant, known: &Known<'_>) -> Vec<SocketAddr> {
        if self.wait <= LAST_WAIT {
            // It was alone until now.
            self.failures.clear();
            self.wait = LAST_WAIT + LOOK_AROUND;
            self.due_at = now + LOOK_AROUND.mul_f64(self.rng.random_range(0.75..1.25));
        }
        if now < self.due_at {
            return Vec::new();
        }
        self.due_at = now + LOOK_AROUND.mul_f64(self.rng.random_range(0.75..1.25));
        self.resolve();
        let members = (known.members)();
        let strange =
            |address: &SocketAddr| !self.me.contains(address) && !members.contains(address);
        let mut strangers: BTreeSet<SocketAddr> = self.targets().into_iter().collect();
        strangers.extend((known.catalog)());
        strangers.into_iter().filter(strange).choose(&mut self.rng).into_iter().collect()
    }

    /// Adds targets to those of the configuration, up to the greatest number, and returns those that are
    /// to be dialled at once.
    pub(super) fn add(&mut self, targets: Vec<SocketAddr>) -> Vec<SocketAddr> {
        for target in &targets {
            let text = target.to_string();
            if self.targets.len() < TARGETS_MAX && !self.targets.contains(&text) {
                self.targets.push(text);
            }
        }
        self.resolve();
        let me = &self.me;
        targets.into_iter().filter(|target| !me.contains(target)).collect()
    }

    /// Takes note of a failure, and logs it unless it is the same as before.
    pub(super) fn failed(&mut self, address: SocketAddr, error: &str) {
        if self.failures.get(&address).is_none_or(|told| told != error) {
            info!(%address, error, "No answer yet from a node to join by; trying again");
            self.failures.insert(address, error.to_owned());
        }
    }

    /// Notes that an address turned out to be this node itself.
    pub(super) fn is_me(&mut self, address: SocketAddr) {
        self.me.insert(address);
    }

    fn targets(&self) -> Vec<SocketAddr> {
        let resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        let others = resolved.addresses.iter().filter(|address| !self.me.contains(address));
        others.copied().collect()
    }

    /// Looks the names up beside the engine's loop, which must not wait for a resolver.
    fn resolve(&self) {
        if self.targets.is_empty() {
            return;
        }
        let (targets, resolved) = (self.targets.clone(), Arc::clone(&self.resolved));
        tokio::spawn(async move {
            let mut found = Vec::new();
            let mut unknown = BTreeMap::new();
            for target in targets {
                match look_up(&target).await {
                    Ok(addresses) => found.extend(addresses),
                    Err(error) => drop(unknown.insert(target, error.to_string())),
                }
            }
            let mut resolved = resolved.lock().unwrap_or_else(PoisonError::into_inner);
            let news = unknown.iter().filter(|(target, _)| !resolved.unknown.contains(*target));
            for (target, error) in news {
                warn!(target, error, "A node to join by has no address; looking it up again");
            }
            // A resolver that fails for a while takes no address away.
            if !found.is_empty() || unknown.is_empty() {
                found.sort_unstable();
                found.dedup();
                resolved.addresses = found;
            }
            resolved.unknown = unknown.into_keys().collect();
        });
    }
}

/// Finds the addresses that a join target stands for: `host`, `host:port`, `[v6]:port`.
pub async fn look_up(target: &str) -> std::io::Result<Vec<SocketAddr>> {
    let bare = target.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, GOSSIP_PORT)]);
    }
    let has_port = target.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let name = if has_port { target.to_owned() } else { format!("{target}:{GOSSIP_PORT}") };
    let addresses = tokio::net::lookup_host(name).await?;
    Ok(addresses.take(ADDRESSES_PER_NAME_MAX).collect())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    async fn join(targets: &[&str]) -> Join {
        let targets: Vec<String> = targets.iter().map(|target| (*target).to_owned()).collect();
        let is_empty = targets.is_empty();
        let join = Join::new(targets, [at("127.0.0.1:7401")], SmallRng::seed_from_u64(1));
        while !is_empty && join.targets().is_empty() {
            tokio::task::yield_now().await;
        }
        join
    }

    /// Asks every tenth of a second for so long. Returns what was dialled, and when.
    fn dialled(
        join: &mut Join,
        start: Instant,
        seconds: u64,
        members: &[SocketAddr],
        catalog: &[SocketAddr],
    ) -> Vec<(Duration, SocketAddr)> {
        let known = Known {
            is_alone: members.is_empty(),
            members: &|| members.iter().copied().collect(),
            catalog: &|| catalog.to_vec(),
        };
        let mut dialled = Vec::new();
        for tenth in 0..seconds * 10 {
            let after = Duration::from_millis(tenth * 100);
            dialled.extend(join.due(start + after, &known).into_iter().map(|at| (after, at)));
        }
        dialled
    }

    #[tokio::test]
    async fn a_target_is_an_address_a_name_or_either_with_a_port() {
        assert_eq!(look_up("127.0.0.2").await.unwrap(), [at("127.0.0.2:7401")]);
        assert_eq!(look_up("127.0.0.2:99").await.unwrap(), [at("127.0.0.2:99")]);
        let local = look_up("localhost:7").await.unwrap();
        assert!(local.iter().all(|address| address.ip().is_loopback() && address.port() == 7));
    }

    #[tokio::test]
    async fn a_node_alone_dials_every_target_but_itself_ever_less_often() {
        let mut join = join(&["127.0.0.2:99", "127.0.0.1", "127.0.0.3"]).await;
        let start = Instant::now() + Duration::from_secs(1);
        let dialled = dialled(&mut join, start, 600, &[], &[]);
        let mut rounds: Vec<Duration> = dialled.iter().map(|(after, _)| *after).collect();
        rounds.dedup();
        assert_eq!(dialled.len(), rounds.len() * 2, "both others, each time");
        assert!(dialled.iter().all(|(_, address)| *address != at("127.0.0.1:7401")));
        assert!((18..=32).contains(&rounds.len()), "{rounds:?}");
        let waits = rounds.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(waits.clone().all(|wait| wait <= LAST_WAIT.mul_f64(1.26)), "{rounds:?}");
        let late: BTreeSet<Duration> = waits.skip(8).collect();
        assert!(late.len() > 3, "they are spread by chance: {late:?}");
    }

    #[tokio::test]
    async fn of_many_targets_each_has_its_turn() {
        let targets: Vec<String> = (2..60).map(|k| format!("127.0.0.{k}")).collect();
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        let mut join = join(&targets).await;
        let start = Instant::now() + Duration::from_secs(1);
        let dialled = dialled(&mut join, start, 120, &[], &[]);
        let all: BTreeSet<SocketAddr> = dialled.iter().map(|(_, address)| *address).collect();
        assert_eq!(all.len(), 58);
        let at_once = dialled.iter().filter(|(after, _)| after.is_zero()).count();
        assert_eq!(at_once, ROUND_MAX);
    }

    #[tokio::test]
    async fn a_node_alone_without_targets_dials_those_whom_it_knew_once() {
        let mut join = join(&[]).await;
        let once: Vec<SocketAddr> = (1..9).map(|k| at(&format!("127.0.0.{k}:7401"))).collect();
        let start = Instant::now();
        let dialled = dialled(&mut join, start, 300, &[], &once);
        let met: BTreeSet<SocketAddr> = dialled.iter().map(|(_, address)| *address).collect();
        assert_eq!(met.len(), 7, "all but itself: {met:?}");
        assert!(dialled.len() < 60, "{}", dialled.len());
    }

    #[tokio::test]
    async fn a_node_with_members_looks_around_for_one_that_is_none_twice_a_minute() {
        let mut join = join(&["127.0.0.2", "127.0.0.3"]).await;
        let (member, lost) = (at("127.0.0.2:7401"), at("127.0.0.9:7401"));
        let start = Instant::now() + Duration::from_secs(1);
        let dialled = dialled(&mut join, start, 600, &[member], &[lost, member]);
        assert!((16..=27).contains(&dialled.len()), "{dialled:?}");
        let met: BTreeSet<SocketAddr> = dialled.iter().map(|(_, address)| *address).collect();
        assert_eq!(met, BTreeSet::from([at("127.0.0.3:7401"), lost]));
    }

    #[tokio::test]
    async fn who_has_lost_all_members_dials_at_once() {
        let mut join = join(&["127.0.0.2"]).await;
        let start = Instant::now() + Duration::from_secs(1);
        let member = at("127.0.0.2:7401");
        assert!(dialled(&mut join, start, 20, &[member], &[]).is_empty());
        let later = dialled(&mut join, start + Duration::from_secs(20), 2, &[], &[]);
        assert_eq!(later.first(), Some(&(Duration::ZERO, member)));
    }
}
