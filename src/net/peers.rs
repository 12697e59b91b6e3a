//! The peers this node deals with: which connection to each counts, and when to try again. Plain
//! data behind one lock; the connections themselves are served in `link.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use quinn::Connection;
use tokio_util::sync::CancellationToken;

use super::outbox::Outbox;
use super::subject::Validity;
use super::why::{Close, Why, back_off};
use crate::types::NodeId;

/// How many peers without a connection are remembered, for their back-off.
const PEERS_MAX: usize = 16_384;

/// How long a peer that nobody asks for is remembered.
const MEMORY: Duration = Duration::from_secs(600);

/// How many connections are begun at the same time. Others wait for their turn.
const DIALS_MAX: usize = 64;

/// A second connection within this time means that both sides began one at once. Later it means
/// that the other side has lost the first.
const SETTLED: Duration = Duration::from_secs(5);

/// A connection that ends sooner was none: who accepts connections only to end them is not dialled
/// at once again.
const SHORT_LIVED: Duration = Duration::from_secs(10);

/// How many join targets are remembered as tried.
const TARGETS_MAX: usize = 256;

/// A connection to a peer.
#[derive(Debug)]
pub(super) struct Link {
    pub id: u64,
    pub node: NodeId,
    pub name: String,
    pub connection: Connection,
    pub claim: Claim,
    /// Of the protocol, as the two greetings have it.
    pub version: u8,
    /// From when until when the other side's certificate counts.
    pub validity: Option<Validity>,
    /// Cancelled when another connection took its place: nothing more is sent on this one.
    pub retired: CancellationToken,
    /// Why this node closed it, if it did.
    pub closed_for: OnceLock<Why>,
}

impl Link {
    /// Closes the connection; the first reason given is the one that is told.
    pub fn close(&self, close: Close, why: Why) {
        let reason = self.closed_for.get_or_init(|| why).to_string();
        self.connection.close(close.code(), reason.as_bytes());
    }

    /// Closes the connection for a newer one, and says from where that came: should it not be the
    /// other side's own, there is another process with its id.
    pub fn displace(&self, by: SocketAddr) {
        self.closed_for.get_or_init(|| Why::Replaced);
        self.connection.close(Close::Replaced.code(), by.to_string().as_bytes());
    }

    pub fn closed_for(&self) -> Option<Why> {
        self.closed_for.get().cloned()
    }
}

/// What decides between two connections to one peer. Both sides see the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Claim {
    /// Who began it.
    pub dialer: NodeId,
    /// How many connections that node had begun before.
    pub attempt: u64,
    /// The other side's process.
    pub instance: u64,
    pub since: Instant,
}

/// What a new connection to a peer means for the one there is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Verdict {
    /// The old one stays.
    Keep,
    /// The new one takes its place, as if nothing had been.
    Swap,
    /// The old one had ended, and we did not know.
    Anew(Why),
}

impl Claim {
    fn against(&self, old: &Self) -> Verdict {
        if self.instance != old.instance {
            return Verdict::Anew(Why::Restarted);
        }
        if self.since.saturating_duration_since(old.since) >= SETTLED {
            return Verdict::Anew(Why::Replaced);
        }
        // The smaller node's connection wins; of two by the same node the later.
        let wins = if self.dialer == old.dialer {
            self.attempt > old.attempt
        } else {
            self.dialer < old.dialer
        };
        if wins { Verdict::Swap } else { Verdict::Keep }
    }
}

/// What became of a new connection.
#[derive(Debug)]
pub(super) struct Installed {
    pub outbox: Arc<Outbox>,
    /// The connection that counted until now ended for this reason.
    pub ended: Option<Why>,
    /// There is a connection where there was none.
    pub is_new: bool,
    /// Connections to close now.
    pub closed: Vec<Arc<Link>>,
}

/// The way to a peer.
pub(super) struct Way {
    pub outbox: Arc<Outbox>,
    pub link: Option<Arc<Link>>,
    /// The caller must begin a connection to there.
    pub dial: Option<SocketAddr>,
}

/// The peer did not answer of late, and it is too early to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreachable;

#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    outbox: Arc<Outbox>,
    link: Option<Arc<Link>>,
    is_dialling: bool,
    is_pinned: bool,
    failures: u32,
    retry_at: Instant,
    used: Instant,
    /// When its address last changed.
    moved: Option<Instant>,
}

impl Peer {
    fn failed(&mut self, chance: f64, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now + back_off(self.failures, chance);
    }

    /// The connection has ended after so long.
    fn ended(&mut self, lived: Duration, why: &Why, chance: f64, now: Instant) {
        let is_expected = matches!(why, Why::Restarted | Why::Unwanted);
        if lived >= SHORT_LIVED || is_expected {
            self.failures = 0;
        } else {
            self.failed(chance, now);
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Peers {
    peers: BTreeMap<NodeId, Peer>,
    /// Join targets that were dialled, and when last.
    targets: BTreeMap<SocketAddr, Instant>,
    /// Peers whose turn to be dialled has not come.
    waiting: BTreeSet<NodeId>,
    dials: usize,
    budget: RetryBudget,
    links_max: usize,
}

impl Peers {
    pub fn new(links_max: usize, now: Instant) -> Self {
        Self {
            peers: BTreeMap::new(),
            targets: BTreeMap::new(),
            waiting: BTreeSet::new(),
            dials: 0,
            budget: RetryBudget::new(now),
            links_max,
        }
    }

    /// Finds the way to a peer, which may begin with a connection to be made.
    pub fn reach(
        &mut self,
        node: NodeId,
        address: SocketAddr,
        now: Instant,
    ) -> Result<Way, Unreachable> {
        let peer = self.peer(node, address, now);
        peer.used = now;
        if peer.link.is_none() {
            // A member that moved is dialled where it is now, and at once; but not one that is said
            // to be here and there.
            if peer.address != address {
                let moved = peer.moved.replace(now);
                let moves_often =
                    moved.is_some_and(|at| now.saturating_duration_since(at) < SHORT_LIVED);
                peer.address = address;
                peer.failures = if moves_often { peer.failures } else { 0 };
            }
        }
        let (outbox, link) = (peer.outbox.clone(), peer.link.clone());
        let is_settled = peer.link.is_some() || peer.is_dialling || self.waiting.contains(&node);
        let dial = if is_settled { None } else { self.try_dial(node, now)? };
        Ok(Way { outbox, link, dial })
    }

    /// Decides whether a peer may be dialled now; `None`: its turn will come.
    fn try_dial(&mut self, node: NodeId, now: Instant) -> Result<Option<SocketAddr>, Unreachable> {
        let Some(peer) = self.peers.get_mut(&node) else { return Err(Unreachable) };
        if peer.failures > 0 && (now < peer.retry_at || !self.budget.take(now)) {
            return Err(Unreachable);
        }
        if self.dials >= DIALS_MAX {
            self.waiting.insert(node);
            return Ok(None);
        }
        self.dials += 1;
        peer.is_dialling = true;
        Ok(Some(peer.address))
    }

    /// Decides whether a join target may be dialled now. The first time it may; then it shares the
    /// budget of all that did not answer.
    pub fn try_target(&mut self, address: SocketAddr, now: Instant) -> bool {
        self.targets.retain(|_, tried| now.saturating_duration_since(*tried) < MEMORY);
        let is_known = self.targets.contains_key(&address);
        if (is_known || self.targets.len() >= TARGETS_MAX) && !self.budget.take(now) {
            return false;
        }
        self.targets.insert(address, now);
        true
    }

    /// A dial to `node` has ended, well or not. Returns whom to dial in its place.
    pub fn dialled(
        &mut self,
        node: NodeId,
        is_success: bool,
        chance: f64,
        now: Instant,
    ) -> Option<(NodeId, SocketAddr)> {
        self.dials -= 1;
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.is_dialling = false;
            if !is_success && peer.link.is_none() {
                peer.failed(chance, now);
                peer.outbox.clear();
            }
        }
        while self.dials < DIALS_MAX {
            let next = self.waiting.pop_first()?;
            let is_linked = self.peers.get(&next).is_none_or(|peer| peer.link.is_some());
            if is_linked {
                continue;
            }
            if let Ok(Some(address)) = self.try_dial(next, now) {
                return Some((next, address));
            }
        }
        None
    }

    /// Puts a new connection in its place.
    pub fn install(&mut self, link: Arc<Link>, now: Instant) -> Installed {
        let node = link.node;
        let address = link.connection.remote_address();
        let peer = self.peer(node, address, now);
        peer.used = now;
        let outbox = peer.outbox.clone();
        let verdict = peer.link.as_ref().map(|old| link.claim.against(&old.claim));
        let mut installed = Installed { outbox, ended: None, is_new: false, closed: Vec::new() };
        match verdict {
            None => installed.is_new = true,
            Some(Verdict::Keep) => {
                link.retired.cancel();
                return installed;
            }
            Some(Verdict::Swap) => {
                let old = peer.link.replace(link);
                old.into_iter().for_each(|old| old.retired.cancel());
                return installed;
            }
            Some(Verdict::Anew(why)) => {
                installed.ended = Some(why);
                installed.is_new = true;
                installed.closed.extend(peer.link.take());
            }
        }
        peer.link = Some(link);
        self.waiting.remove(&node);
        installed.closed.extend(self.evicted(node));
        installed
    }

    /// A connection has ended. Returns whether it was the one that counted.
    pub fn remove(&mut self, link: &Link, why: &Why, chance: f64, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&link.node) else { return false };
        let counts = peer.link.as_ref().is_some_and(|current| current.id == link.id);
        if counts {
            peer.link = None;
            peer.outbox.clear();
            peer.ended(now.saturating_duration_since(link.claim.since), why, chance, now);
        }
        counts
    }

    /// Notes that a peer is in use.
    pub fn touch(&mut self, node: NodeId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.used = now;
        }
    }

    /// Keeps the connection to a peer alive, and makes it again when it breaks.
    pub fn pin(&mut self, node: NodeId, address: SocketAddr, is_pinned: bool, now: Instant) {
        let peer = self.peer(node, address, now);
        peer.is_pinned = is_pinned;
        if peer.link.is_none() {
            peer.address = address;
        }
    }

    pub fn is_pinned(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.is_pinned)
    }

    /// Returns the connection that counts.
    pub fn link(&self, node: NodeId) -> Option<Arc<Link>> {
        self.peers.get(&node)?.link.clone()
    }

    /// Returns the connection to an address, if there is one.
    pub fn link_to(&self, address: SocketAddr) -> Option<Arc<Link>> {
        self.links().find(|link| link.connection.remote_address() == address).cloned()
    }

    pub fn links(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.peers.values().filter_map(|peer| peer.link.as_ref())
    }

    /// Returns what waits for those who can be reached, or may soon be.
    pub fn outboxes(&self) -> impl Iterator<Item = &Arc<Outbox>> {
        let is_open = |peer: &&Peer| peer.link.is_some() || peer.is_dialling;
        self.peers.values().filter(is_open).map(|peer| &peer.outbox)
    }

    /// Returns the pinned peers to dial now, and forgets those that nobody has asked for.
    pub fn tend(&mut self, now: Instant) -> Vec<(NodeId, SocketAddr)> {
        self.peers.retain(|_, peer| {
            peer.link.is_some()
                || peer.is_dialling
                || peer.is_pinned
                || now.saturating_duration_since(peer.used) < MEMORY
        });
        let lost: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(node, peer)| {
                let is_lost = peer.is_pinned && peer.link.is_none() && !peer.is_dialling;
                is_lost && !self.waiting.contains(node)
            })
            .map(|(node, _)| *node)
            .collect();
        let dial = |node| Some((node, self.try_dial(node, now).ok()??));
        lost.into_iter().filter_map(dial).collect()
    }

    fn peer(&mut self, node: NodeId, address: SocketAddr, now: Instant) -> &mut Peer {
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&node) {
            self.forget_one();
        }
        self.peers.entry(node).or_insert_with(|| Peer {
            address,
            outbox: Arc::default(),
            link: None,
            is_dialling: false,
            is_pinned: false,
            failures: 0,
            retry_at: now,
            used: now,
            moved: None,
        })
    }

    fn forget_one(&mut self) {
        let idle = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.link.is_none() && !peer.is_dialling && !peer.is_pinned)
            .min_by_key(|(_, peer)| peer.used)
            .map(|(node, _)| *node);
        if let Some(node) = idle {
            self.peers.remove(&node);
            self.waiting.remove(&node);
        }
    }

    /// Returns the connection to give up for a new one to `but`, if there are too many. It stays
    /// in its place until its task has ended.
    fn evicted(&self, but: NodeId) -> Option<Arc<Link>> {
        let linked = self.peers.iter().filter(|(_, peer)| peer.link.is_some());
        if linked.clone().count() <= self.links_max {
            return None;
        }
        linked
            .filter(|(node, _)| **node != but)
            .min_by_key(|(_, peer)| (peer.is_pinned, peer.used))
            .and_then(|(_, peer)| peer.link.clone())
    }
}

/// How often peers that did not answer may be tried again, all of them together: one a second,
/// ten at once. A dead rack must not keep the living busy with handshakes.
#[derive(Debug)]
struct RetryBudget {
    tokens: f64,
    filled: Instant,
}

impl RetryBudget {
    const BURST: f64 = 10.0;
    const PER_SECOND: f64 = 1.0;

    fn new(now: Instant) -> Self {
        Self { tokens: Self::BURST, filled: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.filled).as_secs_f64() * Self::PER_SECOND;
        self.tokens = (self.tokens + earned).min(Self::BURST);
        self.filled = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(byte: u8) -> NodeId {
        NodeId([byte; 16])
    }

    fn address(byte: u8) -> SocketAddr {
        ([10, 0, 0, byte], 7401).into()
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn when_both_dial_at_once_both_sides_keep_the_same_connection() {
        let now = Instant::now();
        let claim = |dialer, attempt, late| Claim {
            dialer: node(dialer),
            attempt,
            instance: 1,
            since: now + Duration::from_millis(late),
        };
        let (a, b) = (claim(1, 5, 0), claim(2, 9, 10));
        assert_eq!(b.against(&a), Verdict::Keep);
        assert_eq!(a.against(&b), Verdict::Swap);
        let (first, second) = (claim(1, 5, 0), claim(1, 6, 10));
        assert_eq!(second.against(&first), Verdict::Swap);
        assert_eq!(first.against(&second), Verdict::Keep);
    }

    #[test]
    fn a_connection_long_after_the_first_or_of_a_new_process_takes_its_place() {
        let since = Instant::now();
        let old = Claim { dialer: node(1), attempt: 5, instance: 1, since };
        let later = Claim { dialer: node(2), attempt: 1, instance: 1, since: since + secs(6) };
        assert_eq!(later.against(&old), Verdict::Anew(Why::Replaced));
        let restarted = Claim { dialer: node(2), attempt: 1, instance: 2, since };
        assert_eq!(restarted.against(&old), Verdict::Anew(Why::Restarted));
    }

    #[test]
    fn who_does_not_answer_is_tried_again_ever_more_rarely() {
        let start = Instant::now();
        let mut peers = Peers::new(10, start);
        let mut tries = Vec::new();
        for second in 0..300 {
            let now = start + secs(second);
            if let Ok(way) = peers.reach(node(1), address(1), now) {
                assert_eq!(way.dial, Some(address(1)));
                assert!(peers.dialled(node(1), false, 0.5, now).is_none());
                tries.push(second);
            }
        }
        assert_eq!(tries, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]);
    }

    #[test]
    fn who_moved_is_tried_at_once() {
        let now = Instant::now();
        let mut peers = Peers::new(10, now);
        assert!(peers.reach(node(1), address(1), now).is_ok());
        peers.dialled(node(1), false, 0.5, now);
        assert!(peers.reach(node(1), address(1), now).is_err());
        assert_eq!(peers.reach(node(1), address(2), now).unwrap().dial, Some(address(2)));
        peers.dialled(node(1), false, 0.5, now);
        assert!(peers.reach(node(1), address(1), now).is_err(), "it does not move all the time");
    }

    #[test]
    fn retries_of_all_peers_together_keep_to_a_budget() {
        let start = Instant::now();
        let mut peers = Peers::new(10, start);
        for byte in 0..100 {
            assert!(peers.reach(node(byte), address(byte), start).is_ok(), "a first try is free");
            peers.dialled(node(byte), false, 0.5, start);
        }
        let later = start + secs(2);
        let retried = (0..100).filter(|byte| {
            let is_tried = peers.reach(node(*byte), address(*byte), later).is_ok();
            if is_tried {
                peers.dialled(node(*byte), false, 0.5, later);
            }
            is_tried
        });
        assert_eq!(retried.count(), 10);
    }

    #[test]
    fn join_targets_keep_to_the_same_budget_after_the_first_try() {
        let start = Instant::now();
        let mut peers = Peers::new(10, start);
        let tried = |peers: &mut Peers, now| {
            (0..100).filter(|byte| peers.try_target(address(*byte), now)).count()
        };
        assert_eq!(tried(&mut peers, start), 100);
        let minute: usize = (1..=60).map(|s| tried(&mut peers, start + secs(s))).sum();
        assert!(minute <= 70, "{minute} tries in a minute");
    }

    #[test]
    fn who_ends_connections_at_once_is_dialled_ever_more_rarely() {
        let start = Instant::now();
        let mut peers = Peers::new(10, start);
        let mut tries = Vec::new();
        for second in 0..200 {
            let now = start + secs(second);
            if peers.reach(node(1), address(1), now).is_ok_and(|way| way.dial.is_some()) {
                tries.push(second);
                peers.dialled(node(1), true, 0.5, now);
                let peer = peers.peers.get_mut(&node(1)).unwrap();
                peer.ended(secs(1), &Why::Idle, 0.5, now);
            }
        }
        assert_eq!(tries, [0, 1, 3, 7, 15, 31, 63, 123, 183]);
        let now = start + secs(300);
        assert!(peers.reach(node(1), address(1), now).unwrap().dial.is_some());
        peers.dialled(node(1), true, 0.5, now);
        peers.peers.get_mut(&node(1)).unwrap().ended(secs(60), &Why::Idle, 0.5, now);
        assert!(peers.reach(node(1), address(1), now).unwrap().dial.is_some(), "it is well again");
    }

    /// The arithmetic of a fleet: 100 peers that all refuse, each asked for by membership and by
    /// the overlay ten times a second, for an hour.
    #[test]
    fn a_hundred_peers_that_refuse_cost_one_attempt_a_second_beyond_the_first_tries() {
        let start = Instant::now();
        let mut peers = Peers::new(1_000, start);
        let mut attempts = [0_u32; 60];
        for tenth in 0..36_000_u64 {
            let now = start + Duration::from_millis(tenth * 100);
            for byte in 0..100 {
                let way = peers.reach(node(byte), address(byte), now);
                let mut turn = way.ok().and_then(|way| way.dial).map(|_| node(byte));
                while let Some(dialled) = turn {
                    attempts[usize::try_from(tenth / 600).unwrap()] += 1;
                    turn = peers.dialled(dialled, false, 0.5, now).map(|(node, _)| node);
                }
            }
        }
        println!("attempts by minute: {attempts:?}");
        assert!(attempts[0] <= 100 + 10 + 60, "{attempts:?}");
        assert!(attempts[1..].iter().all(|minute| *minute <= 60 + 10), "{attempts:?}");
        assert!(attempts.iter().sum::<u32>() <= 100 + 10 + 3_600, "{attempts:?}");
    }

    #[test]
    fn beyond_so_many_dials_peers_wait_for_their_turn() {
        let now = Instant::now();
        let mut peers = Peers::new(10, now);
        let count = u8::try_from(DIALS_MAX).unwrap();
        let started = (0..count + 2)
            .filter(|byte| peers.reach(node(*byte), address(*byte), now).unwrap().dial.is_some());
        assert_eq!(started.count(), DIALS_MAX);
        let next = peers.dialled(node(0), false, 0.5, now);
        assert_eq!(next, Some((node(count), address(count))));
    }
}
