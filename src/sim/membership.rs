//! How nodes learn that others went down or came up: from an oracle that is right after a while, or
//! by SWIM as in production, whose datagrams go through the simulated network like all else.
//!
//! The replica cannot tell the difference: either way it hears of peers that are up and down.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::{IteratorRandom, SliceRandom};

use super::check::Checked;
use super::network::Network;
use super::node::{VirtualNode, index_of};
use super::traffic::{self, Kind};
use super::{Cluster, Event, NodeIndex};
use crate::replica::Input;
use crate::swim::{self, Effect, Identity, Swim};
use crate::types::Time;

/// How long a connection that is not used is kept, as in `net::Config`.
const CONNECTION_IDLE: Duration = Duration::from_secs(30 * 60);

/// The waits between two rounds of dials while nobody has answered, as in `node::join`: from, to.
const DIAL_WAITS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// How often a node that has members looks around for those that it should know, as in `node::join`.
const LOOK_AROUND: Duration = Duration::from_secs(30);

/// So long after a start, or after the network was healed, others may still be wrong about a node.
const BENEFIT_OF_DOUBT: Duration = Duration::from_secs(60);

/// News of more nodes than this comes in so many lots.
const LOTS: usize = 16;

/// How nodes learn of each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Membership {
    /// Somebody who knows tells them, within [`super::Scenario::detection`].
    Oracle(Oracle),
    /// SWIM, as in production.
    Foca(Box<Joining>),
}

/// An oracle that tells each node of so many others, and never of the rest. An overlay of fixed degree
/// is drawn from them as from all; that each knows each is the square of a large cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Oracle {
    /// The others that a node is told of: about so many, or all.
    pub acquaintances: usize,
}

/// How nodes find each other by SWIM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Joining {
    pub swim: swim::Config,
    /// The first so many nodes are those that all are told to join by.
    pub seeds: usize,
    /// All others start within so long, by lot.
    pub within: Duration,
}

impl Default for Membership {
    fn default() -> Self {
        Self::Oracle(Oracle { acquaintances: usize::MAX })
    }
}

impl Membership {
    /// SWIM with the settings of production, for a cluster whose nodes start within so long.
    pub fn foca(within: Duration) -> Self {
        let swim = swim::Config::default();
        Self::Foca(Box::new(Joining { swim, seeds: 3, within }))
    }

    /// Returns how nodes join, where they do.
    pub fn joining(&self) -> Option<&Joining> {
        match self {
            Self::Oracle(_) => None,
            Self::Foca(joining) => Some(joining),
        }
    }
}

/// What was said of members, for the report.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Verdicts {
    /// How long after a process ended each of the others took it for down, in microseconds.
    pub(super) detected_us: Vec<u64>,
    /// Times a node was taken for down that was up and could be reached.
    pub(super) wrong: u64,
    pub(super) wrong_first: Option<String>,
    /// Times a node that had been taken for down had to begin another life.
    pub(super) rejoins: u64,
    /// Times somebody held verdicts back because there were so many.
    pub(super) guards: u64,
    /// When all nodes knew all for the first time.
    pub(super) whole_at: Option<Time>,
}

/// What the cluster keeps of membership, beside what each node does.
#[derive(Debug)]
pub(super) struct Society {
    /// `None`: everybody knows everybody.
    acquaintances: Option<Vec<Vec<NodeIndex>>>,
    connections: Connections,
    /// Who started or crashed since news was spread last.
    pub(super) changed: Vec<NodeIndex>,
    /// Whether who reaches whom has changed since.
    pub(super) is_redivided: bool,
    /// When it did last.
    redivided_at: Time,
}

impl Society {
    pub(super) fn new(membership: &Membership, nodes: usize, rng: &mut SmallRng) -> Self {
        let acquaintances = match membership {
            Membership::Oracle(Oracle { acquaintances }) if *acquaintances < nodes - 1 => {
                Some(draw_acquaintances(rng, nodes, *acquaintances))
            }
            Membership::Oracle(_) | Membership::Foca(_) => None,
        };
        let connected = if membership.joining().is_some() { nodes } else { 0 };
        Self {
            acquaintances,
            connections: Connections::new(connected),
            changed: Vec::new(),
            is_redivided: false,
            redivided_at: Time(0),
        }
    }

    fn others(&self, node: NodeIndex, nodes: usize) -> Vec<NodeIndex> {
        match &self.acquaintances {
            Some(of) => of[node.0].clone(),
            None => (0..nodes).map(NodeIndex).filter(|other| *other != node).collect(),
        }
    }
}

/// Draws who knows whom: both or neither, and every one about as many.
fn draw_acquaintances(rng: &mut SmallRng, nodes: usize, count: usize) -> Vec<Vec<NodeIndex>> {
    let mut of = vec![Vec::with_capacity(count + 2); nodes];
    let mut circle: Vec<usize> = (0..nodes).collect();
    // Each circle gives each node two more.
    for _ in 0..count.div_ceil(2) {
        circle.shuffle(rng);
        for (place, node) in circle.iter().enumerate() {
            let next = circle[(place + 1) % nodes];
            of[*node].push(NodeIndex(next));
            of[next].push(NodeIndex(*node));
        }
    }
    for known in &mut of {
        known.sort_unstable();
        known.dedup();
    }
    of
}

/// Which nodes have a connection, and when it was used last.
#[derive(Debug)]
struct Connections {
    nodes: usize,
    /// In seconds, one more than they are; 0: there is none.
    used: Vec<u32>,
}

impl Connections {
    fn new(nodes: usize) -> Self {
        Self { nodes, used: vec![0; nodes * nodes.saturating_sub(1) / 2] }
    }

    fn place(&self, a: NodeIndex, b: NodeIndex) -> usize {
        let (low, high) = (a.0.min(b.0), a.0.max(b.0));
        high * (high - 1) / 2 + low
    }

    /// Uses the connection of two nodes. Returns whether it had to be made.
    fn touch(&mut self, now: Time, a: NodeIndex, b: NodeIndex) -> bool {
        let seconds = u32::try_from(now.0 / 1_000_000).unwrap_or(u32::MAX - 1) + 1;
        let place = self.place(a, b);
        let before = std::mem::replace(&mut self.used[place], seconds);
        before == 0 || u64::from(seconds - before) > CONNECTION_IDLE.as_secs()
    }

    fn forget(&mut self, node: NodeIndex) {
        for other in (0..self.nodes).map(NodeIndex).filter(|other| *other != node) {
            let place = self.place(node, other);
            self.used[place] = 0;
        }
    }
}

/// Tells whether `other` answers to `node` at present.
pub(super) fn reaches(
    nodes: &[VirtualNode],
    network: &Network,
    node: NodeIndex,
    other: NodeIndex,
) -> bool {
    let answers = nodes[other.0].replica.is_some() && !nodes[other.0].is_frozen;
    answers && network.connects(node, other)
}

/// Brings a node's view of another up to date. `None`: it changed back meanwhile.
pub(super) fn learn(
    nodes: &mut [VirtualNode],
    network: &Network,
    node: NodeIndex,
    other: NodeIndex,
) -> Option<Input> {
    let is_up = reaches(nodes, network, node, other);
    let peer = nodes[other.0].id;
    let up = &mut nodes[node.0].up;
    if is_up && up.insert(other) {
        let round_trip = Some(network.round_trip(node, other));
        return Some(Input::PeerUp { node: peer, round_trip });
    }
    (!is_up && up.remove(&other)).then_some(Input::PeerDown(peer))
}

/// The oracle.
impl Cluster<'_> {
    /// Sees to it that nodes learn what has changed.
    pub(super) fn spread_news(&mut self) {
        let changed = std::mem::take(&mut self.society.changed);
        let is_redivided = std::mem::take(&mut self.society.is_redivided);
        if is_redivided {
            self.society.redivided_at = self.now;
        }
        for node in &changed {
            self.nodes[node.0].since = self.now;
        }
        if self.scenario.membership.joining().is_some() {
            return;
        }
        // Where most have changed everybody hears of most.
        if is_redivided || changed.len() > self.scenario.nodes / 4 {
            (0..self.scenario.nodes).for_each(|node| self.give_news(NodeIndex(node)));
            return;
        }
        for node in changed {
            self.give_news(node);
            for other in self.society.others(node, self.scenario.nodes) {
                self.give_news_of(other, vec![node]);
            }
        }
    }

    /// Tells a node of all others of which it has not heard the latest.
    fn give_news(&mut self, node: NodeIndex) {
        let mut others = self.society.others(node, self.scenario.nodes);
        let mut lots = vec![Vec::new(); if others.len() > 2 * LOTS { LOTS } else { others.len() }];
        if let Some(last) = lots.len().checked_sub(1) {
            others.drain(..).for_each(|other| lots[self.rng.random_range(0..=last)].push(other));
        }
        lots.into_iter().for_each(|lot| self.give_news_of(node, lot));
    }

    fn give_news_of(&mut self, node: NodeIndex, mut others: Vec<NodeIndex>) {
        let this = &self.nodes[node.0];
        if this.replica.is_none() {
            return;
        }
        let (nodes, network) = (&self.nodes, &self.network);
        others.retain(|other| reaches(nodes, network, node, *other) != this.up.contains(other));
        if others.is_empty() {
            return;
        }
        let after = self.scenario.detection.mul_f64(self.rng.random_range(0.3..1.0));
        let life = this.life;
        self.agenda.enter(self.now + after, Event::Learn { node, life, others });
    }

    pub(super) fn learn(&mut self, node: NodeIndex, others: &[NodeIndex]) -> Checked {
        for other in others {
            let Some(input) = learn(&mut self.nodes, &self.network, node, *other) else {
                continue;
            };
            match &input {
                Input::PeerDown(_) => self.on_verdict(node, *other)?,
                _ => self.note(node, "learns of", Some(*other), 0),
            }
            self.tell(node, input)?;
        }
        Ok(())
    }

    /// A node takes another for down: after how long, or wrongly.
    fn on_verdict(&mut self, node: NodeIndex, of: NodeIndex) -> Checked {
        self.note(node, "takes for down", Some(of), 0);
        let other = &self.nodes[of.0];
        let for_long = |since: Time| self.now.since(since) > BENEFIT_OF_DOUBT;
        if other.replica.is_none() {
            let after = self.now.since(other.since);
            self.tally.verdicts.detected_us.push(after.as_micros() as u64);
        } else if self.network.connects(node, of)
            && self.network.connects(of, node)
            && for_long(other.since)
            && for_long(self.society.redivided_at)
            && (!other.is_frozen || self.scenario.verdicts_are_right)
        {
            let words = format!("{node} takes {of} for down, which is up and can be reached");
            self.tally.verdicts.wrong += 1;
            self.tally.verdicts.wrong_first.get_or_insert_with(|| words.clone());
            if self.scenario.verdicts_are_right {
                return Err(words);
            }
        }
        Ok(())
    }
}

/// A node's SWIM.
pub(super) struct Swimmer(Swim);

impl fmt::Debug for Swimmer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {} members", self.0.me(), self.0.active_count())
    }
}

impl Deref for Swimmer {
    type Target = Swim;

    fn deref(&self) -> &Swim {
        &self.0
    }
}

impl DerefMut for Swimmer {
    fn deref_mut(&mut self) -> &mut Swim {
        &mut self.0
    }
}

/// When a node dials others: those that it is to join by while it is alone, and now and then one that
/// it does not know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialler {
    due_at: Time,
    wait: Duration,
}

impl Default for Dialler {
    fn default() -> Self {
        Self { due_at: Time(0), wait: DIAL_WAITS.0 }
    }
}

impl Dialler {
    /// Returns whether to dial now, as `node::join` does.
    fn is_due(&mut self, now: Time, is_alone: bool) -> bool {
        if is_alone && self.wait > DIAL_WAITS.1 {
            *self = Self { due_at: now, ..Self::default() };
        } else if !is_alone && self.wait <= DIAL_WAITS.1 {
            *self = Self { due_at: now + LOOK_AROUND, wait: DIAL_WAITS.1 + LOOK_AROUND };
        }
        if now < self.due_at {
            return false;
        }
        if is_alone {
            self.due_at = now + self.wait;
            self.wait = (self.wait * 2).min(DIAL_WAITS.1);
        } else {
            self.due_at = now + LOOK_AROUND;
        }
        true
    }
}

/// Where a node listens for gossip.
fn address(node: NodeIndex) -> SocketAddr {
    let [_, a, b, c] = u32::try_from(node.0).unwrap_or(u32::MAX).to_be_bytes();
    ([10, a, b, c], 7401).into()
}

/// SWIM.
impl Cluster<'_> {
    /// Lets all nodes start, or the seeds first and the others in their time.
    pub(super) fn begin(&mut self) -> Checked {
        let joining = self.scenario.membership.joining().map(|j| (j.seeds.max(1), j.within));
        let (seeds, within) = joining.unwrap_or((usize::MAX, Duration::ZERO));
        for node in (0..self.scenario.nodes).map(NodeIndex) {
            if node.0 < seeds || within.is_zero() {
                self.start(node)?;
            } else {
                let at = self.now + within.mul_f64(self.rng.random_range(0.0..1.0));
                self.agenda.enter(at, Event::Trouble(super::Fault::Restart(node)));
            }
        }
        self.spread_news();
        if joining.is_some() {
            self.agenda.enter(self.now, Event::Look);
        }
        Ok(())
    }

    /// A process has begun.
    pub(super) fn start_swim(&mut self, node: NodeIndex) {
        let Membership::Foca(joining) = &self.scenario.membership else { return };
        let seed = self.rng.random();
        let this = &mut self.nodes[node.0];
        let generation = this.wall(self.now).millis();
        let me = Identity::new(this.id, address(node), generation);
        this.swim = Some(Box::new(Swimmer(Swim::new(me, joining.swim.clone(), seed))));
        this.dialler = Dialler { due_at: self.now, ..Dialler::default() };
        this.swim_wake_at = Some(self.now);
        let life = this.life;
        self.agenda.enter(self.now, Event::SwimWake { node, life });
    }

    /// A process has ended.
    pub(super) fn end_swim(&mut self, node: NodeIndex) {
        let this = &mut self.nodes[node.0];
        this.swim_wake_at = None;
        if this.swim.take().is_some() {
            self.society.connections.forget(node);
        }
    }

    pub(super) fn swim_wakes(&mut self, node: NodeIndex) -> Checked {
        if self.nodes[node.0].swim_wake_at != Some(self.now) {
            return Ok(());
        }
        self.nodes[node.0].swim_wake_at = None;
        self.tell_swim(node, swim::Input::Tick)
    }

    /// Hands an input to a node's SWIM, and carries out what it asks for.
    pub(super) fn tell_swim(&mut self, node: NodeIndex, input: swim::Input) -> Checked {
        let Some(mut swim) = self.nodes[node.0].swim.take() else { return Ok(()) };
        let measured = match &input {
            swim::Input::RoundTrip { node, .. } => Some((*node, swim.round_trip(*node))),
            _ => None,
        };
        swim.handle(self.now, input);
        // The replica hears of a round trip when it is another than before.
        let measured = measured.filter(|(node, before)| swim.round_trip(*node) != *before);
        let measured = measured.map(|(node, _)| (node, swim.round_trip(node)));
        let effects: Vec<Effect> = std::iter::from_fn(|| swim.next_effect()).collect();
        let deadline = swim.deadline();
        let this = &mut self.nodes[node.0];
        this.swim = Some(swim);
        for effect in effects {
            self.perform_swim(node, effect)?;
        }
        if let Some((peer, round_trip)) = measured
            && self.nodes[node.0].up.contains(&index_of(peer))
        {
            self.tell(node, Input::PeerUp { node: peer, round_trip })?;
        }
        let this = &mut self.nodes[node.0];
        let is_alone = this.up.is_empty();
        if this.dialler.is_due(self.now, is_alone) {
            self.dial(node, is_alone);
        }
        let Some((at, why)) = deadline else { return Ok(()) };
        if at < self.now {
            return Err(format!("{node} has a deadline in the past: {why}"));
        }
        let this = &mut self.nodes[node.0];
        if this.swim_wake_at.is_none_or(|wake_at| at < wake_at) {
            this.swim_wake_at = Some(at);
            let life = this.life;
            self.agenda.enter(at, Event::SwimWake { node, life });
        }
        Ok(())
    }

    /// What `node::engine` does with the same effects.
    fn perform_swim(&mut self, node: NodeIndex, effect: Effect) -> Checked {
        match effect {
            Effect::Send { to, bytes, .. } => {
                self.send_datagram(node, index_of(to), bytes);
                Ok(())
            }
            Effect::Up(member) => {
                let other = index_of(member.identity.node);
                self.note(node, "takes for up", Some(other), 0);
                self.nodes[node.0].up.insert(other);
                let round_trip = member.round_trip;
                self.tell(node, Input::PeerUp { node: member.identity.node, round_trip })
            }
            Effect::Renewed(member) => {
                let peer = member.identity.node;
                self.note(node, "learns of a new life of", Some(index_of(peer)), 0);
                self.nodes[node.0].up.insert(index_of(peer));
                self.tell(node, Input::PeerDown(peer))?;
                self.tell(node, Input::PeerUp { node: peer, round_trip: member.round_trip })
            }
            Effect::Down { node: peer, left } => {
                let other = index_of(peer);
                self.nodes[node.0].up.remove(&other);
                if left {
                    self.note(node, "hears goodbye from", Some(other), 0);
                } else {
                    self.on_verdict(node, other)?;
                }
                self.tell(node, Input::PeerDown(peer))
            }
            Effect::Guard { on } => {
                self.tally.verdicts.guards += u64::from(on);
                self.note(node, "holds verdicts back", None, u64::from(on));
                Ok(())
            }
            Effect::Rejoined(identity) => {
                self.tally.verdicts.rejoins += 1;
                self.note(node, "was taken for down", None, identity.generation);
                Ok(())
            }
            Effect::Conflict { address } => {
                Err(format!("{node} believes that another has its id, at {address}"))
            }
        }
    }

    /// A node that is alone knocks at those that it is to join by, another at one of them or of those that
    /// wrote something, whom it does not know as a member.
    fn dial(&mut self, node: NodeIndex, is_alone: bool) {
        let seeds = self.scenario.membership.joining().map_or(0, |joining| joining.seeds.max(1));
        let mut dialled: BTreeSet<NodeIndex> =
            (0..seeds.min(self.scenario.nodes)).map(NodeIndex).collect();
        if !is_alone {
            let this = &self.nodes[node.0];
            dialled.extend(this.heads.keys().map(|origin| index_of(origin.node)));
            dialled.retain(|other| *other != node && !this.up.contains(other));
            dialled = dialled.into_iter().choose(&mut self.rng).into_iter().collect();
        }
        for other in dialled {
            if other == node || !reaches(&self.nodes, &self.network, node, other) {
                continue;
            }
            let after = self.connect(node, other);
            let input =
                swim::Input::Found { node: self.nodes[other.0].id, address: address(other) };
            let life = self.nodes[node.0].life;
            self.agenda.enter(self.now + after, Event::TellSwim { node, life, input });
        }
    }

    fn send_datagram(&mut self, from: NodeIndex, to: NodeIndex, bytes: Bytes) {
        if self.nodes[to.0].replica.is_none() || !self.network.connects(from, to) {
            // It would have to prove that it is there before anything is sent to it.
            return self.count(from, Kind::Handshakes, traffic::KNOCK_BYTES);
        }
        let first = self.connect(from, to);
        self.count(from, Kind::Membership, traffic::datagram_bytes(bytes.len()));
        self.count(to, Kind::Membership, traffic::ACK_BYTES);
        let life = self.nodes[to.0].life;
        for delay in self.network.send(&mut self.rng, from, to).into_iter().flatten() {
            let at = self.now + first + delay;
            let bytes = bytes.clone();
            let event = Event::Datagram { to, life, from, bytes };
            if let Some(event) = self.over_link(from, to, event) {
                self.agenda.enter(at, event);
            }
        }
    }

    /// Sees to it that two nodes have a connection. Returns how long that takes.
    fn connect(&mut self, from: NodeIndex, to: NodeIndex) -> Duration {
        if !self.society.connections.touch(self.now, from, to) {
            return Duration::ZERO;
        }
        self.count(from, Kind::Handshakes, traffic::HANDSHAKE_BYTES / 2);
        self.count(to, Kind::Handshakes, traffic::HANDSHAKE_BYTES / 2);
        let round_trip = self.network.round_trip(from, to);
        // A connection tells its round trip when it is there, and every few seconds.
        let pulse = Duration::from_secs(5);
        for (node, other) in [(from, to), (to, from)] {
            let (life, peer) = (self.nodes[node.0].life, self.nodes[other.0].id);
            for after in [round_trip, round_trip + pulse] {
                let input = swim::Input::RoundTrip { node: peer, round_trip };
                self.agenda.enter(self.now + after, Event::TellSwim { node, life, input });
            }
        }
        round_trip
    }

    pub(super) fn datagram_comes(
        &mut self,
        from: NodeIndex,
        to: NodeIndex,
        bytes: Bytes,
    ) -> Checked {
        let from = self.nodes[from.0].id;
        self.tell_swim(to, swim::Input::Datagram { from, bytes })
    }

    /// Tells whether every node that runs takes all of those for up that run, and no others.
    pub(super) fn is_whole(&self) -> bool {
        if self.scenario.membership.joining().is_none() {
            return true;
        }
        let runs = |node: &&VirtualNode| node.replica.is_some();
        let running = self.nodes.iter().filter(runs).count();
        let knows_all = |node: &VirtualNode| node.up.len() + 1 == running;
        let is_running = |other: &NodeIndex| self.nodes[other.0].replica.is_some();
        self.nodes.iter().filter(runs).all(knows_all)
            && self.nodes.iter().filter(runs).all(|node| node.up.iter().all(is_running))
    }

    /// Looks whether all nodes know all, until they do for the first time.
    pub(super) fn look_round(&mut self) {
        let have_all_begun = self.nodes.iter().all(|node| node.life > 0);
        if have_all_begun && self.is_whole() {
            self.tally.verdicts.whole_at = Some(self.now);
        } else {
            self.agenda.enter(self.now + Duration::from_millis(100), Event::Look);
        }
    }

    /// Says who does not know whom, for a failure.
    pub(super) fn who_is_missed(&self) -> String {
        let running: Vec<NodeIndex> = self
            .nodes
            .iter()
            .filter(|node| node.replica.is_some())
            .map(|node| node.index)
            .collect();
        let mut words = String::new();
        for node in running.iter().map(|node| &self.nodes[node.0]) {
            let missed = running.iter().filter(|o| **o != node.index && !node.up.contains(o));
            let missed: Vec<String> = missed.map(ToString::to_string).collect();
            if !missed.is_empty() && words.len() < 2_000 {
                words += &format!("\n  {} does not know {}", node.index, missed.join(" "));
            }
        }
        words
    }
}
