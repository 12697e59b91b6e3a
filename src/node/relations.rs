//! What is amiss between this node and others: who cannot be reached and why, whose certificate ends
//! soon, who has a name that another has, and who else runs under this node's own id. The engine
//! says what happened; here it is remembered, told once, and shown.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::catalog::View;
use crate::net::{DialError, Process, Validity};
use crate::types::NodeId;

/// How often a process that stands aside looks whether the other one is still there.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How often it must not have been there, in a row, before this process takes its place.
const MISSED_MAX: u32 = 2;

/// How often the same conflict over this node's id is told.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How long such a conflict is shown after it was last noticed.
const CONFLICT_MEMORY: Duration = Duration::from_secs(150);

/// How often it is said that a certificate ends soon, beside each time that it becomes urgent.
const REMIND_EVERY: Duration = Duration::from_secs(24 * 3_600);

/// What is to be known of a member beside its state.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Relation {
    /// How near it is: 0 for round trips up to 6 ms, up to 5 beyond 200 ms.
    pub ring: Option<u8>,
    /// The version of the protocol that the two speak, once they have spoken.
    pub protocol: Option<u8>,
    /// What somebody should do something about, one sentence each.
    pub notes: Vec<String>,
}

/// See the module.
pub(super) struct Relations {
    me: NodeId,
    rng: SmallRng,
    /// Why members could not be reached when it was last tried.
    troubles: BTreeMap<NodeId, String>,
    links: BTreeMap<NodeId, (u8, Option<Validity>)>,
    /// Who shares its name with whom, of those that are up.
    namesakes: BTreeMap<NodeId, NodeId>,
    conflict: Option<(SocketAddr, Instant)>,
    /// The other process that was last told of in the log, and when.
    twin_told: Option<(SocketAddr, Instant)>,
    aside: Option<Aside>,
    certificate: Urgency,
}

/// Another process has this node's certificate, and it is the one that counts.
#[derive(Debug)]
struct Aside {
    rival: SocketAddr,
    look_at: Instant,
    missed: u32,
}

/// What follows from meeting another process with this node's certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// This process speaks to nobody from now on.
    GiveWay,
    /// The other one does; this one is to be believed.
    Prevail,
    /// Nothing new.
    AsBefore,
}

/// How urgent it is to renew a certificate, as far as it was told.
#[derive(Debug, Default)]
struct Urgency {
    level: usize,
    told: Option<Instant>,
}

impl Relations {
    pub(super) fn new(me: NodeId, rng: SmallRng) -> Self {
        Self {
            me,
            rng,
            troubles: BTreeMap::new(),
            links: BTreeMap::new(),
            namesakes: BTreeMap::new(),
            conflict: None,
            twin_told: None,
            aside: None,
            certificate: Urgency::default(),
        }
    }

    pub(super) fn connected(&mut self, node: NodeId, version: u8, certificate: Option<Validity>) {
        self.troubles.remove(&node);
        self.links.insert(node, (version, certificate));
    }

    /// A member could not be reached, or this node would not speak to it.
    pub(super) fn failed(&mut self, node: NodeId, error: &DialError) {
        let news = self.troubles.insert(node, error.to_string());
        // What a person has to mend is told once, the rest is seen in the list of members.
        if let DialError::Versions { .. } = error
            && news.is_none_or(|before| before != error.to_string())
        {
            error!(%node, %error, "A node of this cluster cannot be spoken to");
        }
    }

    /// Forgets whom membership has forgotten, and a conflict that seems to be over.
    pub(super) fn forget(&mut self, now: Instant, is_member: impl Fn(NodeId) -> bool) {
        let is_fresh = |at: Instant| now.saturating_duration_since(at) < CONFLICT_MEMORY;
        self.conflict = self.conflict.filter(|(_, at)| is_fresh(*at));
        self.troubles.retain(|node, _| is_member(*node));
        self.links.retain(|node, _| is_member(*node));
    }

    /// Tells whether this process speaks to nobody, since another one does under its id.
    pub(super) fn is_aside(&self) -> bool {
        self.aside.is_some()
    }

    /// Returns how many conflicts there are: over names, and over this node's id.
    pub(super) fn conflicts(&self) -> (usize, usize) {
        let over_id = usize::from(self.aside.is_some() || self.conflict.is_some());
        (self.namesakes.len(), over_id)
    }

    /// Others say that this node lives at another address: ask there.
    pub(super) fn rumour(&mut self, now: Instant, address: SocketAddr) {
        let before = self.conflict.replace((address, now));
        if before.is_none_or(|(of, _)| of != address) {
            warn!(
                %address,
                "Others hear of a node with this node's id at another address; asking there \
                 whether a copy of its data directory or certificate runs"
            );
        }
    }

    /// Another process at `address` has this node's certificate. The one that started first counts.
    pub(super) fn meet_twin(
        &mut self,
        now: Instant,
        address: SocketAddr,
        twin: Process,
        mine: Process,
    ) -> Verdict {
        let is_told = self.twin_told.is_some_and(|(of, at)| {
            of == address && now.saturating_duration_since(at) < TELL_EVERY
        });
        if twin > mine {
            self.conflict = Some((address, now));
            if !is_told {
                self.twin_told = Some((address, now));
                error!(
                    %address,
                    "Another process runs under this node's id: a copied data directory or \
                     certificate. It started later and stands aside. Stop it, and give it a \
                     certificate of its own (`tribune tls node NAME`) and an empty data directory"
                );
            }
            self.aside = None;
            return Verdict::Prevail;
        }
        let look_at = now + LOOK_EVERY.mul_f64(self.rng.random_range(0.75..1.25));
        let before = self.aside.replace(Aside { rival: address, look_at, missed: 0 });
        if before.is_some() {
            return Verdict::AsBefore;
        }
        error!(
            %address,
            "Another process runs under this node's id and started first: a copied data directory \
             or certificate. This process stands aside: it speaks to no other node, and answers \
             from what it holds. Stop it, and give it a certificate of its own (`tribune tls node \
             NAME`) and an empty data directory"
        );
        Verdict::GiveWay
    }

    /// Returns where to look for the other process, when it is time.
    pub(super) fn look_for(&mut self, now: Instant) -> Option<SocketAddr> {
        let aside = self.aside.as_mut().filter(|aside| aside.look_at <= now)?;
        aside.look_at = now + LOOK_EVERY.mul_f64(self.rng.random_range(0.75..1.25));
        Some(aside.rival)
    }

    /// Nobody with this node's certificate was found at an address. Returns whether the other
    /// process is taken for gone.
    pub(super) fn is_gone(&mut self, address: SocketAddr) -> bool {
        if self.aside.is_none() && self.conflict.is_some_and(|(of, _)| of == address) {
            self.conflict = None;
            return true;
        }
        let Some(aside) = self.aside.as_mut().filter(|aside| aside.rival == address) else {
            return false;
        };
        aside.missed += 1;
        let is_gone = aside.missed >= MISSED_MAX;
        if is_gone {
            self.aside = None;
            self.conflict = None;
            info!(%address, "The other process under this node's id is gone; this one is back");
        }
        is_gone
    }

    /// Looks at the names of the nodes that are up.
    pub(super) fn look_at_names(&mut self, view: &View) {
        let mut namesakes = BTreeMap::new();
        for nodes in view.namesakes() {
            let up = nodes.iter().filter(|node| node.info.is_up);
            let up: Vec<NodeId> = up.filter_map(|node| node.info.member).collect();
            if let [first, second, ..] = up[..] {
                let other = |node| if node == first { second } else { first };
                namesakes.extend(up.iter().map(|node| (*node, other(*node))));
            }
        }
        let known: BTreeSet<NodeId> = self.namesakes.keys().copied().collect();
        for (node, other) in &namesakes {
            if !known.contains(node) {
                tell_of_namesake(view, *node, *other, self.me);
            }
        }
        self.namesakes = namesakes;
    }

    /// Says in the log when it becomes more urgent to renew this node's certificate.
    pub(super) fn look_at_certificate(&mut self, now: Instant, wall: SystemTime, of: Validity) {
        let (level, left) = (of.urgency(wall), of.left(wall));
        let Urgency { level: told_level, told } = &mut self.certificate;
        let is_due = told.is_none_or(|at| now.saturating_duration_since(at) >= REMIND_EVERY);
        let is_told = level <= *told_level && !(level > 0 && is_due);
        *told_level = level;
        if is_told {
            return;
        }
        *told = Some(now);
        const REMEDY: &str = "make a new one with `tribune tls node NAME --id ID`, put it in the \
                              place of the old one and send this process a SIGHUP";
        match left {
            Some(left) => warn!(
                left = %crate::net::tls::words(left),
                "This node's certificate, or its CA's, expires soon: {REMEDY}"
            ),
            None => error!(
                "This node's certificate, or its CA's, has expired: connections that there are live \
                 on, new ones are refused; {REMEDY}"
            ),
        }
    }

    /// Returns what is to be known of a member; of this node itself with its own certificate.
    pub(super) fn of(
        &self,
        node: NodeId,
        ring: Option<u8>,
        wall: SystemTime,
        view: &View,
        own: Validity,
    ) -> Relation {
        let mut notes = Vec::new();
        let link = self.links.get(&node);
        let certificate = match node == self.me {
            true => Some(own),
            false => link.and_then(|(_, certificate)| *certificate),
        };
        notes.extend(certificate.and_then(|validity| validity.note(wall)));
        if let Some(other) = self.namesakes.get(&node) {
            notes.push(namesake_note(view, *other));
        }
        if let Some(aside) = self.aside.as_ref().filter(|_| node == self.me) {
            notes.push(format!(
                "another process at {} runs under its id; this one stands aside",
                aside.rival
            ));
        } else if let Some((address, _)) = self.conflict.filter(|_| node == self.me) {
            notes.push(format!("another process at {address} runs under its id"));
        }
        notes.extend(self.troubles.get(&node).cloned());
        Relation { ring, protocol: link.map(|(version, _)| *version), notes }
    }
}

fn tell_of_namesake(view: &View, node: NodeId, other: NodeId, me: NodeId) {
    let entry = |node| view.node_by_key(&crate::catalog::model::key_of(node));
    let name = entry(node).map_or("", |entry| &entry.info.node.name);
    let address = entry(other).map_or("", |entry| &entry.info.node.gossip);
    let holder = view.node(name).map_or("", |entry| &entry.info.key);
    if node == me {
        error!(
            name, %other, address, holder,
            "Another node has this node's name: give one of them another (`tribune tls node NAME`, \
             or --node). Until then the name is the holder's in DNS"
        );
    } else {
        warn!(name, %node, %other, holder, "Two nodes have one name");
    }
}

fn namesake_note(view: &View, other: NodeId) -> String {
    let entry = view.node_by_key(&crate::catalog::model::key_of(other));
    let (name, address) = entry
        .map(|entry| (entry.info.node.name.as_str(), entry.info.node.gossip.as_str()))
        .unwrap_or_default();
    let holder = view.node(name).map_or("", |entry| &entry.info.key);
    format!("node {other} at {address} has its name; in DNS '{name}' is node {holder}")
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const ME: NodeId = NodeId([1; 16]);

    fn relations() -> Relations {
        Relations::new(ME, SmallRng::seed_from_u64(1))
    }

    fn process(started: u64) -> Process {
        Process { started, instance: 7 }
    }

    fn rival() -> SocketAddr {
        ([127, 0, 0, 9], 7401).into()
    }

    #[test]
    fn of_two_processes_with_one_id_exactly_one_gives_way() {
        let now = Instant::now();
        let (first, second) = (process(1_000), process(2_000));
        let (mut elder, mut younger) = (relations(), relations());
        assert_eq!(elder.meet_twin(now, rival(), second, first), Verdict::Prevail);
        assert_eq!(younger.meet_twin(now, rival(), first, second), Verdict::GiveWay);
        assert_eq!((elder.is_aside(), younger.is_aside()), (false, true));
        assert_eq!(younger.meet_twin(now, rival(), first, second), Verdict::AsBefore);
        assert_eq!((elder.conflicts(), younger.conflicts()), ((0, 1), (0, 1)));
    }

    #[test]
    fn who_stands_aside_looks_for_the_other_and_is_back_once_it_is_gone() {
        let start = Instant::now();
        let mut younger = relations();
        younger.meet_twin(start, rival(), process(1), process(2));
        assert_eq!(younger.look_for(start + Duration::from_secs(3)), None);
        let mut looks = 0;
        for second in 0..120 {
            let now = start + Duration::from_secs(second);
            if let Some(address) = younger.look_for(now) {
                looks += 1;
                // It answers twice, then it is silent.
                match looks {
                    1 | 2 => assert_eq!(
                        younger.meet_twin(now, address, process(1), process(2)),
                        Verdict::AsBefore
                    ),
                    _ => assert_eq!(younger.is_gone(address), looks == 4),
                }
            }
        }
        assert_eq!((looks, younger.is_aside(), younger.conflicts()), (4, false, (0, 0)));
    }

    #[test]
    fn a_rumour_of_a_rival_ends_when_nobody_is_there() {
        let mut relations = relations();
        relations.rumour(Instant::now(), rival());
        assert_eq!(relations.conflicts(), (0, 1));
        assert!(!relations.is_gone(([127, 0, 0, 8], 7401).into()));
        assert!(relations.is_gone(rival()));
        assert_eq!(relations.conflicts(), (0, 0));
    }

    #[test]
    fn a_conflict_is_shown_until_nothing_is_heard_of_it_for_a_while() {
        let (start, mut elder) = (Instant::now(), relations());
        elder.meet_twin(start, rival(), process(2), process(1));
        elder.forget(start + CONFLICT_MEMORY / 2, |_| true);
        assert_eq!(elder.conflicts(), (0, 1));
        elder.forget(start + CONFLICT_MEMORY, |_| true);
        assert_eq!(elder.conflicts(), (0, 0));
    }

    #[test]
    fn why_a_member_cannot_be_reached_is_shown_until_it_can() {
        let (mut relations, other) = (relations(), NodeId([2; 16]));
        let (wall, view) = (SystemTime::now(), View::new(ME));
        let own = Validity { not_before: wall, not_after: wall + Duration::from_secs(9_000_000) };
        let notes = |relations: &Relations| relations.of(other, None, wall, &view, own).notes;
        relations.failed(other, &DialError::NoAnswer(rival()));
        assert_eq!(notes(&relations), ["nobody answers at 127.0.0.9:7401"]);
        relations.connected(other, 1, Some(own));
        assert_eq!(notes(&relations), [""; 0]);
        let soon = Validity { not_after: wall + Duration::from_secs(6 * 86_400 + 60), ..own };
        let soon = Validity { not_before: wall - Duration::from_secs(80 * 86_400), ..soon };
        relations.connected(other, 1, Some(soon));
        assert_eq!(notes(&relations), ["its certificate expires in 6 days"]);
    }
}
