//! Hundreds of nodes in one thread, the same each time: the production replica over the reference
//! storage, in a world drawn from a seed. Nothing here knows sockets, SQLite or real time.
//!
//! [`run`] plays a [`Scenario`] and holds the truths of `check` against every commit of every
//! node. A failure carries the seed and the last hundred events.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::crdt::change::death_of;
use crate::crdt::content::Look;
use crate::crdt::storage::{Bookmark, LENGTH_DROPPED_MAX};
use crate::crdt::{Begun, Commit, RowOp, Stamp};
use crate::replica::{ApplyOutcome, CollectOutcome, Effect, Input, LoadId, LookId, Replica};
use crate::swim;
use crate::types::{Epoch, NodeId, Origin, Time, Version};
use crate::wire::{Message, changeset_bytes, decode, encode};

mod agenda;
mod budget;
mod check;
mod disk;
mod faults;
pub mod library;
mod links;
pub mod medium;
mod membership;
mod mistakes;
mod network;
mod node;
mod passage;
pub mod report;
mod scenario;
mod trace;
mod traffic;
mod travel;
mod trouble;
mod twins;
mod workload;

pub use disk::DiskConfig;
pub use faults::Fault;
pub use medium::{InMemory, Media, Medium};
pub use membership::{Joining, Membership, Oracle};
pub use mistakes::Mutation;
pub use network::NetworkConfig;
pub use report::{Failure, Members, Report};
pub use scenario::Scenario;
pub use traffic::Traffic;
pub use travel::{Passage, Travel};
pub use twins::SideBySide;

use agenda::Agenda;
use budget::Budget;
use check::{Checked, Truths};
use disk::Job;
use membership::{Society, Verdicts};
use network::Network;
use node::{Image, OwnRows, VirtualNode, first_origin, index_of};
use trace::{Note, Trace};
use trouble::Troubles;

/// How often it is looked whether all nodes hold the same.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// In large clusters ledgers are read whole after so many events; that takes longer than the rest.
const LEDGER_EVERY: u64 = 64;

/// What an origin's rows never come to in a simulation: with so much room no pull is split.
const ROOM_BYTES: usize = 1 << 20;

/// How long after all hold the same: looks at what differed until then have come to an end.
const LISTEN_AFTER: Duration = Duration::from_secs(10);

/// How long a cluster that has converged is listened to: it must be silent.
const LISTEN_FOR: Duration = Duration::from_secs(10);

/// How long a row may be another one than the others have.
const MENDED_WITHIN: Duration = Duration::from_secs(600);

/// A node's number, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NodeIndex(pub usize);

impl fmt::Display for NodeIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// Plays a scenario to its end: until all nodes hold the same and are silent. Rows are kept in memory.
pub fn run(scenario: Scenario) -> Result<Report, Box<Failure>> {
    run_on(scenario, &mut InMemory, &mut |_| ControlFlow::Continue(()))
}

/// Plays a scenario on disks of any kind. `watch` is told how far it is, every simulated second, and
/// may end it.
pub fn run_on(
    scenario: Scenario,
    media: &mut dyn Media,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Report, Box<Failure>> {
    let seed = scenario.seed;
    let failure =
        |at, what, trace_hash, trail| Box::new(Failure { seed, at, what, trace_hash, trail });
    let mut cluster = Cluster::new(scenario, media, watch)
        .map_err(|what| failure(Time(0), what, 0, Vec::new()))?;
    cluster
        .play()
        .map_err(|what| failure(cluster.now, what, cluster.trace.hash(), cluster.trace.words()))
}

/// How far a run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    pub now: Time,
    /// When trouble and writes end; the cluster then has some time to come to rest.
    pub quiet_from: Time,
    pub events: u64,
}

/// Something that happens to a node. `life` names the process it is meant for.
#[derive(Debug)]
enum Event {
    Wake { node: NodeIndex, life: u32 },
    Deliver { to: NodeIndex, life: u32, from: NodeIndex, message: Arc<Message> },
    Tell { node: NodeIndex, life: u32, input: Input },
    DiskDone { node: NodeIndex, life: u32 },
    DiskRead { node: NodeIndex, life: u32, id: LoadId, asked: (Origin, Bookmark, usize) },
    DiskLook { node: NodeIndex, life: u32, id: LookId, look: Look },
    Learn { node: NodeIndex, life: u32, others: Vec<NodeIndex> },
    SwimWake { node: NodeIndex, life: u32 },
    TellSwim { node: NodeIndex, life: u32, input: swim::Input },
    Datagram { to: NodeIndex, life: u32, from: NodeIndex, bytes: Bytes },
    Look,
    Write { node: NodeIndex, serial: i64 },
    Repeat { node: NodeIndex, life: u32, to: NodeId, message: Arc<Message> },
    Synced { node: NodeIndex, life: u32 },
    Trouble(Fault),
}

struct Cluster<'a> {
    scenario: Scenario,
    media: &'a mut dyn Media,
    watch: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
    watch_at: Time,
    now: Time,
    agenda: Agenda<Event>,
    nodes: Vec<VirtualNode>,
    network: Network,
    society: Society,
    truths: Truths,
    budget: Budget,
    troubles: Troubles,
    trace: Trace,
    rng: SmallRng,
    tally: Tally,
}

/// What is counted for the report.
#[derive(Default)]
struct Tally {
    verdicts: Verdicts,
    traffic: Traffic,
    measured: Measured,
    latencies_us: Vec<u64>,
    /// When each version came to the last node so far.
    last_at: BTreeMap<(Origin, Version), Time>,
    pushes: u64,
    pulled: u64,
    wants: u64,
    push_bytes: u64,
    other_bytes: u64,
    restores: u32,
    large: u64,
    staged: u64,
    tombstones_max: u64,
    tombstones_dropped: u64,
    departures: u64,
    origins_retired: u64,
    origins_erased: u64,
    collected_after: Duration,
    rejoins: u64,
    mended: u64,
    damaged: u64,
    mended_after: Duration,
    /// Whether a node that knew of no other dropped tombstones: those that it meets have not heard
    /// of what it deleted.
    is_grown_apart: bool,
}

/// What was sent between two moments.
#[derive(Default)]
struct Measured {
    from: Time,
    until: Time,
    before: Traffic,
    sent: Traffic,
    /// By each node.
    by_node: Vec<u64>,
}

impl<'a> Cluster<'a> {
    fn new(
        scenario: Scenario,
        media: &'a mut dyn Media,
        watch: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Self, String> {
        let mut rng = SmallRng::seed_from_u64(scenario.seed);
        let definitions = workload::definitions(workload::Schema::Old);
        let nodes = (0..scenario.nodes).map(|index| {
            let index = NodeIndex(index);
            let storage = media.create(first_origin(index), &definitions)?;
            // Clocks are up to an hour apart: they are for people, not for merging.
            let day = 24 * 3_600_000_000;
            let ahead = day + rng.random_range(0..3_600_000_000);
            Ok(VirtualNode::new(index, storage.into(), ahead))
        });
        let nodes = nodes.collect::<Result<_, String>>()?;
        let society = Society::new(&scenario.membership, scenario.nodes, &mut rng);
        Ok(Self {
            media,
            watch,
            watch_at: Time(0),
            now: Time(0),
            agenda: Agenda::new(),
            nodes,
            network: Network::new(scenario.network.clone(), scenario.nodes),
            society,
            truths: Truths::default(),
            budget: Budget::default(),
            troubles: Troubles::default(),
            trace: Trace::default(),
            rng,
            tally: Tally::default(),
            scenario,
        })
    }

    fn play(&mut self) -> Result<Report, String> {
        for index in (0..self.scenario.nodes).map(NodeIndex) {
            self.nodes[index.0].schema = self.first_schema(index);
        }
        self.begin()?;
        let span = self.scenario.writes_from.0..self.scenario.writes_until.0;
        let count = self.scenario.writes as u64;
        for serial in 0..self.scenario.writes {
            let at = match self.scenario.is_churn {
                // What one writes another soon deletes.
                true => span.start + (span.end - span.start) * serial as u64 / count,
                false => self.rng.random_range(span.clone()),
            };
            let at = Time(at);
            let node = NodeIndex(self.rng.random_range(0..self.scenario.nodes));
            self.agenda.enter(at, Event::Write { node, serial: serial as i64 + 1 });
        }
        for (at, fault) in self.scenario.faults.clone() {
            self.agenda.enter(at, Event::Trouble(fault));
        }
        let quiet_from = self.scenario.quiet_from();
        self.play_until(self.scenario.measure_from.min(quiet_from))?;
        self.begin_to_measure();
        self.play_until(quiet_from)?;
        self.end_measuring();
        let converged_after = self.converge(quiet_from)?;
        if self.tally.damaged > 0 {
            self.await_mending()?;
        } else if self.truths.has_lost_versions() {
            self.await_agreement()?;
        }
        check::equal_heads_have_equal_contents(&self.nodes)?;
        self.listen()?;
        if self.scenario.is_churn {
            self.await_collection()?;
            check::equal_heads_have_equal_contents(&self.nodes)?;
        }
        self.truths.nothing_acknowledged_is_lost(&self.nodes)?;
        check::owners_have_the_last_word(&self.nodes, self.scenario.is_thorough)?;
        self.truths.only_the_deleted_is_gone(&self.nodes)?;
        check::all_show_what_was_parked(&self.nodes)?;
        for node in &self.nodes {
            check::ledger_is_honest(&self.truths, node, true)?;
        }
        Ok(self.report(converged_after))
    }

    fn converge(&mut self, quiet_from: Time) -> Result<Duration, String> {
        let deadline = quiet_from + self.scenario.converge_within;
        while !(self.is_whole() && check::has_converged(&self.truths, &self.nodes)) {
            if self.now >= deadline {
                return Err(self.who_differs() + &self.who_is_missed());
            }
            self.play_until(self.now + LOOK_EVERY)?;
        }
        Ok(self.now.since(quiet_from))
    }

    /// Once all hold the same, and the last digests are out, nobody has anything to say of
    /// versions.
    fn listen(&mut self) -> Checked {
        self.play_until(self.now + LISTEN_AFTER)?;
        let before = (self.tally.pushes, self.tally.wants);
        let sent = self.budget.sent();
        self.play_until(self.now + LISTEN_FOR)?;
        let replica = &self.scenario.replica;
        if !(replica.collect && replica.round_every < Duration::from_secs(60)) {
            // Where all are asked every second what they hold, that is not silence.
            self.budget.idle_is_cheap(&sent, LISTEN_FOR)?;
        }
        let after = (self.tally.pushes, self.tally.wants);
        if before != after {
            return Err("P9: something is still sent, though all hold the same".to_owned());
        }
        if !check::has_converged(&self.truths, &self.nodes) {
            return Err(format!("P5: the nodes held the same; then {}", self.who_differs()));
        }
        Ok(())
    }

    /// A row that is not what the others have is found, named and mended.
    fn await_mending(&mut self) -> Checked {
        self.await_equal_rows("a damaged row was not mended")?;
        let found = self.nodes.iter().filter_map(|node| node.replica.as_ref());
        let found: usize = found.map(|replica| replica.findings().last.len()).sum();
        if found == 0 { Err("nobody names the row that was damaged".to_owned()) } else { Ok(()) }
    }

    /// Of what a lost version has overwritten some may have heard, and others not: nobody tells of it
    /// any more. Comparing rows finds it.
    fn await_agreement(&mut self) -> Checked {
        self.await_equal_rows("P5: what a lost version overwrote was not mended")?;
        // What was mended may have to be withdrawn.
        self.converge(self.now).map(drop)
    }

    fn await_equal_rows(&mut self, failure: &str) -> Checked {
        let from = self.now;
        while let Some(what) = check::first_difference(&self.nodes) {
            if self.now >= from + MENDED_WITHIN {
                return Err(format!("{failure}: {what}"));
            }
            self.play_until(self.now + Duration::from_secs(1))?;
        }
        self.tally.mended_after = self.now.since(from);
        Ok(())
    }

    /// Once all hold the same, every tombstone goes.
    fn await_collection(&mut self) -> Checked {
        let (from, within) = (self.now, self.scenario.converge_within);
        let left = |node: &VirtualNode| node.storage.tombstones().unwrap_or_default();
        while let Some(node) = self.nodes.iter().find(|node| left(node) > 0) {
            if self.now >= from + within {
                let collection = node.replica.as_ref().map(|replica| replica.collection(Time(0)));
                let (index, left) = (node.index, left(node));
                return Err(format!("P25: {index} holds {left} tombstones still: {collection:?}"));
            }
            self.play_until(self.now + LOOK_EVERY)?;
        }
        self.tally.collected_after = self.now.since(from);
        Ok(())
    }

    fn play_until(&mut self, end: Time) -> Checked {
        while self.agenda.next_at().is_some_and(|at| at <= end) {
            let Some((at, event)) = self.agenda.take_next() else { break };
            self.now = at;
            self.step(event)?;
            if self.now >= self.watch_at {
                self.watch_at = self.now + Duration::from_secs(1);
                let (quiet_from, events) = (self.scenario.quiet_from(), self.trace.count());
                if (self.watch)(Progress { now: self.now, quiet_from, events }).is_break() {
                    return Err("it was stopped".to_owned());
                }
            }
        }
        self.now = end;
        Ok(())
    }

    fn step(&mut self, event: Event) -> Checked {
        let Some(event) = self.unless_frozen(event) else { return Ok(()) };
        match event {
            Event::Wake { node, life } => {
                if self.lives(node, life) && self.nodes[node.0].wake_at == Some(self.now) {
                    self.nodes[node.0].wake_at = None;
                    self.note(node, "woke", None, 0);
                    return self.tell(node, Input::Tick);
                }
                Ok(())
            }
            Event::Deliver { to, life, from, message } if self.lives(to, life) => {
                self.deliver(from, to, message)
            }
            Event::Tell { node, life, input } if self.lives(node, life) => {
                if let Input::Committed(changeset) = &input {
                    let stamp = changeset.stamp;
                    // A node that rejoins says what it wrote again, under another name.
                    if self.nodes[node.0].head(stamp.origin) >= stamp.version {
                        self.truths.on_acknowledged(stamp.origin, stamp.version);
                    }
                }
                if let Input::CommittedLarge { origin, head, .. } = &input
                    && self.nodes[node.0].head(*origin) >= *head
                {
                    self.truths.on_acknowledged(*origin, *head);
                }
                self.tell(node, input)
            }
            Event::DiskDone { node, life } if self.lives(node, life) => self.disk_done(node),
            Event::DiskRead { node, life, id, asked: (origin, from, bytes_max) }
                if self.lives(node, life) =>
            {
                let disk_works = !self.nodes[node.0].disk.is_failing;
                let load = || self.nodes[node.0].storage.load_from(origin, from, bytes_max).ok();
                let extract = disk_works.then(load).flatten();
                self.tell(node, Input::Loaded { id, extract })
            }
            Event::DiskLook { node, life, id, look } if self.lives(node, life) => {
                let this = &self.nodes[node.0];
                let works = !this.disk.is_failing;
                let sight = works.then(|| this.storage.look(&look).ok()).flatten();
                self.tell(node, Input::Sighted { id, sight })
            }
            Event::Learn { node, life, others } if self.lives(node, life) => {
                self.learn(node, &others)
            }
            Event::SwimWake { node, life } if self.lives(node, life) => self.swim_wakes(node),
            Event::TellSwim { node, life, input } if self.lives(node, life) => {
                self.tell_swim(node, input)
            }
            Event::Datagram { to, life, from, bytes } if self.lives(to, life) => {
                self.datagram_comes(from, to, bytes)
            }
            Event::Look => {
                self.look_round();
                Ok(())
            }
            Event::Write { node, serial } => {
                self.write(node, serial);
                Ok(())
            }
            Event::Trouble(fault) => self.trouble(fault),
            Event::Repeat { node, life, to, message } if self.lives(node, life) => {
                self.send(node, &[to], Arc::unwrap_or_clone(message))
            }
            Event::Synced { node, life } => {
                if self.nodes[node.0].life == life {
                    self.nodes[node.0].unsynced = None;
                }
                Ok(())
            }
            Event::Deliver { .. }
            | Event::Repeat { .. }
            | Event::Tell { .. }
            | Event::DiskDone { .. }
            | Event::DiskRead { .. }
            | Event::DiskLook { .. }
            | Event::Learn { .. }
            | Event::SwimWake { .. }
            | Event::TellSwim { .. }
            | Event::Datagram { .. } => Ok(()),
        }
    }

    /// Hands an input to a node's replica, and carries out what it asks for.
    fn tell(&mut self, node: NodeIndex, input: Input) -> Checked {
        let Some(mut replica) = self.nodes[node.0].replica.take() else { return Ok(()) };
        replica.handle(self.now, input);
        self.nodes[node.0].set_aside = replica.stats().set_aside;
        while let Some(effect) = replica.next_effect() {
            self.perform(node, effect)?;
        }
        let deadline = replica.deadline();
        let this = &mut self.nodes[node.0];
        this.replica = Some(replica);
        check::queues_are_bounded(this, &self.scenario.replica)?;
        let Some((at, why)) = deadline else { return Ok(()) };
        if at < self.now {
            return Err(format!("P9: {node} has a deadline in the past: {why}"));
        }
        if this.wake_at.is_none_or(|wake_at| at < wake_at) {
            this.wake_at = Some(at);
            let life = this.life;
            self.agenda.enter(at, Event::Wake { node, life });
        }
        Ok(())
    }

    fn perform(&mut self, node: NodeIndex, effect: Effect) -> Checked {
        match effect {
            Effect::Send { to, message, lane: _ } => self.send(node, &to, message),
            Effect::Apply { id, batch } => {
                self.add_job(node, Job::Apply { id, batch });
                Ok(())
            }
            Effect::Load { id, origin, from, bytes_max } => {
                let slowness = self.nodes[node.0].disk.slowness.max(1);
                let at = self.now + self.scenario.disk.draw_read(&mut self.rng) * slowness;
                let life = self.nodes[node.0].life;
                let asked = (origin, from, bytes_max);
                self.agenda.enter(at, Event::DiskRead { node, life, id, asked });
                Ok(())
            }
            Effect::Stage { staging, parts } => {
                self.add_job(node, Job::Stage { staging, parts });
                Ok(())
            }
            Effect::ApplyStaged { id, staging, last } => {
                self.add_job(node, Job::ApplyStaged { id, staging, last });
                Ok(())
            }
            Effect::Unstage(staging) => {
                self.add_job(node, Job::Unstage(staging));
                Ok(())
            }
            Effect::Withdraw => {
                self.add_job(node, Job::Withdraw);
                Ok(())
            }
            Effect::Meet { members, forgotten } => {
                self.add_job(node, Job::Meet { members, forgotten });
                Ok(())
            }
            Effect::Collect { heads, forgotten, rows_max } => {
                self.note(node, "drops tombstones", None, heads.len() as u64);
                let storage = &self.nodes[node.0].storage;
                let settled = storage.floor().map_err(|error| error.to_string())?.settled;
                self.tally.is_grown_apart |= settled != Some(storage.origin());
                let heads = match self.scenario.mutation {
                    Some(Mutation::TombstonesGoEarly) => storage.heads().unwrap_or_default(),
                    _ => heads,
                };
                self.add_job(node, Job::Collect { heads, forgotten, rows_max });
                Ok(())
            }
            Effect::Rejoin { held, length } => {
                self.note(node, "takes all rows anew", None, length);
                self.tally.rejoins += 1;
                if !self.tally.is_grown_apart {
                    check::rejoin_is_needed(&self.truths, &self.nodes[node.0], &self.nodes)?;
                }
                self.add_job(node, Job::Rejoin { held, length });
                Ok(())
            }
            Effect::Settle(past) => {
                self.add_job(node, Job::Settle(past));
                Ok(())
            }
            Effect::Depart { under, held } => {
                self.note(node, "sees off", Some(index_of(under.node)), held.len() as u64);
                self.add_job(node, Job::Depart { under, held });
                Ok(())
            }
            Effect::Tidy(tidy) => {
                self.add_job(node, Job::Tidy(tidy));
                Ok(())
            }
            Effect::Look { id, look } => {
                let at = self.now + self.scenario.disk.draw_read(&mut self.rng);
                let life = self.nodes[node.0].life;
                self.agenda.enter(at, Event::DiskLook { node, life, id, look });
                Ok(())
            }
            Effect::Mend(mend) => {
                self.note(node, "mends rows", None, mend.rows.len() as u64);
                self.add_job(node, Job::Mend(mend));
                Ok(())
            }
            Effect::Recount => {
                self.add_job(node, Job::Recount);
                Ok(())
            }
            Effect::BeginEpoch { .. }
                if self.scenario.mutation == Some(Mutation::VersionReused) =>
            {
                Ok(())
            }
            Effect::BeginEpoch { above } => {
                self.note(node, "must begin an epoch", None, above.0);
                check::epoch_is_needed(&self.truths, &self.nodes[node.0])?;
                self.add_job(node, Job::BeginEpoch { above });
                Ok(())
            }
        }
    }

    fn send(&mut self, from: NodeIndex, to: &[NodeId], mut message: Message) -> Checked {
        if self.scenario.forger.is_none() {
            self.what_is_told_is_true(from, &message)?;
        }
        self.forge(from, &mut message);
        let mut bytes = encode(&message);
        if self.is_of_a_later_release(from) {
            message = self.add_what_is_not_known_here(&mut bytes)?;
        }
        if self.scenario.is_thorough && decode(&bytes).as_ref() != Ok(&message) {
            return Err(format!("{from} sends what does not survive its bytes: {message:?}"));
        }
        self.is_within_budget(from, &message, bytes.len(), to.len())?;
        let sent = (bytes.len() * to.len()) as u64;
        let (kind, (on_wire, ack)) =
            (traffic::kind_of(&message), traffic::message_bytes(bytes.len()));
        self.count(from, kind, on_wire * to.len());
        if matches!(message, Message::Push { .. }) {
            self.tally.push_bytes += sent;
        } else {
            self.tally.other_bytes += sent;
        }
        if let Message::Pulled { piece, head, cut, .. } = &message {
            self.truths.on_answer(&self.nodes[from.0], piece, (*head, *cut));
        }
        let message = Arc::new(message);
        for peer in to {
            let to = index_of(*peer);
            self.count(to, kind, ack);
            let life = self.nodes[to.0].life;
            let fate = self.network.send(&mut self.rng, from, to);
            if fate[0].is_none() && self.network.loss_is_noticed() {
                self.overruns(from, *peer);
            }
            if fate[0].is_none() {
                self.repeat_without_budget(from, *peer, &message);
            }
            for delay in fate.into_iter().flatten() {
                let message = Arc::clone(&message);
                let event = Event::Deliver { to, life, from, message };
                if let Some(event) = self.over_link(from, to, event) {
                    self.agenda.enter(self.now + delay, event);
                }
            }
        }
        Ok(())
    }

    /// A sender learns, a moment later, that something was lost.
    fn overruns(&mut self, from: NodeIndex, peer: NodeId) {
        let at = self.now + Duration::from_millis(10);
        let life = self.nodes[from.0].life;
        self.agenda.enter(at, Event::Tell { node: from, life, input: Input::Overrun(peer) });
    }

    fn deliver(&mut self, from: NodeIndex, to: NodeIndex, message: Arc<Message>) -> Checked {
        let (what, number) = describe(&message);
        self.note(to, what, Some(from), number);
        match &*message {
            Message::Push { .. } => self.tally.pushes += 1,
            Message::Want { .. } => self.tally.wants += 1,
            Message::Pulled { piece, .. } => {
                self.tally.pulled += piece.changesets.len() as u64;
                self.note_answer(to, piece);
            }
            Message::Hello { .. }
            | Message::Known { .. }
            | Message::Neighbour(_)
            | Message::Offer(_)
            | Message::Take(_)
            | Message::Heads(_)
            | Message::Buckets(_)
            | Message::BucketHeads { .. }
            | Message::Busy { .. }
            | Message::Gone { .. }
            | Message::Join { .. }
            | Message::Welcome { .. }
            | Message::Round(_)
            | Message::Look { .. }
            | Message::Seen { .. } => {}
            Message::Forgotten { .. } => self.nodes[to.0].is_told_gone = true,
        }
        self.apply_out_of_order(to, &message);
        let from = self.nodes[from.0].id;
        self.tell(to, Input::Received { from, message: Arc::unwrap_or_clone(message) })
    }

    fn write(&mut self, node: NodeIndex, serial: i64) {
        let this = &self.nodes[node.0];
        if this.replica.is_none() {
            return;
        }
        if !this.may_write() {
            let at = self.now + Duration::from_millis(100);
            self.agenda.enter(at, Event::Write { node, serial });
            return;
        }
        let draw = if self.scenario.is_churn { workload::draw_churn } else { workload::draw };
        let note = match self.scenario.is_skewed {
            true => workload::draw_note(&mut self.rng, this.schema, serial),
            false => None,
        };
        let ops: Vec<RowOp> = note.unwrap_or_else(|| draw(&mut self.rng, this.id, serial));
        self.add_job(node, Job::Commit(ops));
    }

    fn add_job(&mut self, node: NodeIndex, job: Job) {
        if self.nodes[node.0].disk.add(job) {
            self.set_to_work(node);
        }
    }

    fn set_to_work(&mut self, node: NodeIndex) {
        let slowness = self.nodes[node.0].disk.slowness.max(1);
        let at = self.now + self.scenario.disk.draw_write(&mut self.rng) * slowness;
        let life = self.nodes[node.0].life;
        self.agenda.enter(at, Event::DiskDone { node, life });
    }

    /// The first job of a node's disk becomes true, or fails.
    fn disk_done(&mut self, node: NodeIndex) -> Checked {
        let this = &mut self.nodes[node.0];
        let Some(job) = this.disk.take_done() else { return Ok(()) };
        let is_failing = this.disk.refuses_writes();
        let now = this.wall(self.now);
        let input = match job {
            Job::Commit(_) if is_failing => None,
            Job::Commit(ops) => {
                self.put_off_sync(node, None);
                let this = &mut self.nodes[node.0];
                let commit = this.storage.commit(now, &ops).map_err(|error| error.to_string())?;
                let Some(commit) = commit else { return self.next_job(node) };
                self.on_own_commit(node, &commit)?;
                self.news_of(commit)
            }
            Job::Apply { id, .. } | Job::ApplyStaged { id, .. } if is_failing => {
                Some(Input::Applied { id, outcome: ApplyOutcome::Failed })
            }
            Job::Stage { staging, .. } if is_failing => {
                Some(Input::Staged { staging, is_done: false })
            }
            Job::Stage { staging, parts } => {
                this.storage.stage(staging, &parts).map_err(|error| error.to_string())?;
                self.tally.staged += 1;
                Some(Input::Staged { staging, is_done: true })
            }
            // Where the disk fails it stays, and is in nobody's way.
            Job::Unstage(staging) => {
                this.storage.unstage(staging).map_err(|error| error.to_string())?;
                None
            }
            Job::ApplyStaged { id, staging, last } => {
                let commit = this.storage.apply_staged(now, staging, &last);
                let commit = commit.map_err(|error| error.to_string())?;
                self.became_true(node, &commit)?;
                Some(Input::Applied { id, outcome: ApplyOutcome::Done { heads: commit.heads } })
            }
            Job::Apply { id, batch } => {
                self.put_off_sync(node, Some(&batch));
                let this = &mut self.nodes[node.0];
                let batch = mistakes::misread(self.scenario.mutation, this, batch);
                let commit = this.storage.apply(now, &batch).map_err(|error| error.to_string())?;
                if self.scenario.mutation == Some(Mutation::ForeignOwnerAccepted) {
                    mistakes::take_foreign_rows(&mut this.storage, &batch);
                }
                self.became_true(node, &commit)?;
                Some(Input::Applied { id, outcome: ApplyOutcome::Done { heads: commit.heads } })
            }
            Job::BeginEpoch { above } if is_failing => {
                this.disk.add(Job::BeginEpoch { above });
                None
            }
            Job::BeginEpoch { above } => {
                let begun = this.storage.begin_epoch(now, above);
                let Begun { origin, ended, commits } = begun.map_err(|error| error.to_string())?;
                this.read_heads();
                // Under a name that is new it need not ask what it wrote before.
                this.confirmations_needed = 0;
                // Its commits follow.
                this.heads.remove(&origin);
                self.truths.excuse_ended(ended.0, check::survived(&self.nodes, ended.0));
                self.tell_soon(node, Input::EpochBegun { origin, ended });
                self.committed(node, commits)?;
                None
            }
            // Whoever is not sure of its head does not write yet.
            Job::Withdraw if is_failing || !this.may_write() => {
                Some(Input::Withdrawn { is_done: false })
            }
            Job::Withdraw => {
                let commits = this.storage.withdraw(now).map_err(|error| error.to_string())?;
                check::only_strangers_are_withdrawn(this)?;
                self.committed(node, commits)?;
                Some(Input::Withdrawn { is_done: true })
            }
            Job::Meet { .. } if is_failing => Some(Input::Met { is_done: false }),
            Job::Meet { members, forgotten } => {
                let met = this.storage.meet(&members, &forgotten);
                met.map_err(|error| error.to_string())?;
                Some(Input::Met { is_done: true })
            }
            Job::Collect { .. } if is_failing => Some(Input::Collected { outcome: None }),
            Job::Collect { heads, forgotten, rows_max } => {
                let collected = this.storage.collect(&heads, &forgotten, rows_max);
                let collected = collected.map_err(|error| error.to_string())?;
                let length = this.storage.floor().map_err(|error| error.to_string())?.length;
                self.tally.tombstones_dropped += collected.dropped as u64;
                Some(Input::Collected { outcome: Some(CollectOutcome { collected, length }) })
            }
            Job::Rejoin { .. } if is_failing => Some(Input::Rejoined { begun: None }),
            Job::Rejoin { held, length } => {
                let begun = match self.scenario.mutation {
                    // The disk keeps its heads along with the rows.
                    Some(Mutation::TheDeletedStay) => this.storage.begin_epoch(now, Epoch(0)),
                    _ => {
                        this.heads.clear();
                        this.retired.clear();
                        this.storage.rejoin(now, &held, length)
                    }
                };
                let Begun { origin, commits, .. } = begun.map_err(|error| error.to_string())?;
                self.tell_soon(node, Input::Rejoined { begun: Some(origin) });
                self.committed(node, commits)?;
                self.excuse();
                None
            }
            Job::Mend(_) if is_failing => Some(Input::Mended { rows: None }),
            Job::Mend(mend) => {
                let mended = this.storage.mend(now, &mend).map_err(|error| error.to_string())?;
                self.truths.on_mended(this, &mended.commit);
                let rows = mended.rows;
                self.tally.mended += rows.len() as u64;
                Some(Input::Mended { rows: Some(rows) })
            }
            Job::Recount if is_failing => Some(Input::Recounted),
            Job::Recount => {
                this.storage.recount().map_err(|error| error.to_string())?;
                Some(Input::Recounted)
            }
            Job::Settle(_) if is_failing => Some(Input::Settled { is_done: false }),
            Job::Settle(past) => {
                let settled = this.storage.settle(now, &past);
                this.read_retired();
                self.committed(node, settled.map_err(|error| error.to_string())?.commits)?;
                Some(Input::Settled { is_done: true })
            }
            Job::Depart { .. } if is_failing => Some(Input::Departed { head: None }),
            Job::Depart { under, held } => {
                let commits = this.storage.depart(now, under, &held);
                let commits = commits.map_err(|error| error.to_string())?;
                let all = this.storage.load_from(under, Bookmark::default(), usize::MAX);
                let all = all.map_err(|error| error.to_string())?.piece;
                self.truths.on_departure(self.now, &all)?;
                self.tally.departures += u64::from(!commits.is_empty());
                for commit in &commits {
                    self.became_true(node, commit)?;
                }
                Some(Input::Departed { head: Some(self.nodes[node.0].head(under)) })
            }
            Job::Tidy(_) if is_failing => Some(Input::Tidied { tidied: None }),
            Job::Tidy(tidy) => {
                let tidied = this.storage.tidy(&tidy).map_err(|error| error.to_string())?;
                for (origin, _) in &tidied.retired {
                    this.heads.remove(origin);
                    this.retired.insert(*origin);
                }
                for origin in &tidied.erased {
                    this.retired.remove(origin);
                }
                self.truths.on_erased(&tidied.erased);
                self.truths.on_retired(&self.nodes, (&tidied.retired, node))?;
                self.truths.on_gone(&tidy.gone);
                self.tally.origins_retired += tidied.retired.len() as u64;
                self.tally.origins_erased += tidied.erased.len() as u64;
                Some(Input::Tidied { tidied: Some(tidied) })
            }
        };
        if let Some(input) = input {
            self.tell_soon(node, input);
        }
        self.next_job(node)
    }

    /// Returns what the replica is told of an own commit: of a large one not what it says.
    fn news_of(&mut self, commit: Commit) -> Option<Input> {
        let changeset = commit.changeset?;
        let Stamp { origin, version: head } = changeset.stamp;
        if changeset_bytes(&changeset) < self.scenario.large_bytes {
            return Some(Input::Committed(changeset));
        }
        self.tally.large += 1;
        let tables = changeset.tables.iter();
        let deaths =
            tables.flat_map(|table| table.rows.iter().map(|row| death_of(&table.table, row.life)));
        let longest = deaths.filter(|length| *length <= LENGTH_DROPPED_MAX).max().unwrap_or(0);
        Some(Input::CommittedLarge { origin, head, longest })
    }

    /// A node wrote on its own account.
    fn on_own_commit(&mut self, node: NodeIndex, commit: &Commit) -> Checked {
        self.nodes[node.0].note_own(commit);
        self.nodes[node.0].shown.note(commit);
        self.truths.on_own_commit(self.now, &self.nodes[node.0], commit)?;
        self.became_true(node, commit)
    }

    fn committed(&mut self, node: NodeIndex, commits: Vec<Commit>) -> Checked {
        for commit in commits {
            match commit.changeset {
                Some(_) => self.on_own_commit(node, &commit)?,
                None => self.became_true(node, &commit)?,
            }
            if let Some(changeset) = commit.changeset {
                self.tell_soon(node, Input::Committed(changeset));
            }
        }
        Ok(())
    }

    fn next_job(&mut self, node: NodeIndex) -> Checked {
        if !self.nodes[node.0].disk.is_idle() {
            self.set_to_work(node);
        }
        Ok(())
    }

    /// The disk's answers reach the process a little later, in their order.
    fn tell_soon(&mut self, node: NodeIndex, input: Input) {
        let attention = self.scenario.disk.draw_attention(&mut self.rng);
        let this = &mut self.nodes[node.0];
        this.told_at = this.told_at.max(self.now + attention);
        let life = this.life;
        self.agenda.enter(this.told_at, Event::Tell { node, life, input });
    }

    /// A commit, own or not, is on a node's disk: everything about it must be right.
    fn became_true(&mut self, node: NodeIndex, commit: &Commit) -> Checked {
        self.nodes[node.0].shown.note(commit);
        check::twins_change_together(&self.truths, &mut self.nodes[node.0], commit)?;
        self.truths.the_dead_stay_dead(&mut self.nodes[node.0], commit)?;
        let tombstones = self.nodes[node.0].storage.tombstones().unwrap_or_default();
        self.tally.tombstones_max = self.tally.tombstones_max.max(tombstones);
        check::heads_only_rise(&self.nodes[node.0], &commit.heads)?;
        for (origin, head) in &commit.heads {
            let before = self.nodes[node.0].head(*origin);
            let is_own = *origin == self.nodes[node.0].storage.origin();
            for version in (before.0 + 1..=head.0).filter(|_| !is_own) {
                let committed = self.truths.committed_at((*origin, Version(version)));
                let latency = committed.map(|at| self.now.since(at).as_micros() as u64);
                self.tally.latencies_us.extend(latency);
                self.tally.last_at.insert((*origin, Version(version)), self.now);
            }
            if head.0 > 0 && !self.nodes[node.0].retired.contains(origin) {
                self.nodes[node.0].heads.insert(*origin, *head);
            }
            let index = index_of(origin.node);
            self.note(node, "holds a version of", Some(index), head.0);
        }
        let this = &self.nodes[node.0];
        if let Some(fault) = this.storage.fault() {
            return Err(format!("{node}: {fault}"));
        }
        self.truths.whoever_holds_all_holds_the_same(this)?;
        if self.scenario.is_thorough || self.trace.count().is_multiple_of(LEDGER_EVERY) {
            check::ledger_is_honest(&self.truths, this, false)?;
        }
        // A pull that is split because there is no room for it shows what is no prefix for a while.
        let may_split = self.scenario.replica.stored_origin_bytes_max < ROOM_BYTES;
        if commit.changeset.is_none() && !may_split {
            let is_thorough = self.scenario.is_thorough;
            self.truths.owned_rows_are_a_prefix(this, &commit.heads, is_thorough)?;
        }
        Ok(())
    }

    /// Returns an epoch that no life of any node had, as the milliseconds since 1970 are one.
    fn epoch_by_the_clock(&mut self) -> Epoch {
        self.tally.restores += 1;
        Epoch(u64::from(self.tally.restores) * 1_000)
    }

    /// Tells whether something would be lost for good with a disk: what overwrote a shared cell may be
    /// gone then, while others hold the versions that it took the cell from (see ARCHITECTURE.md).
    fn is_only_copy(&self, node: NodeIndex) -> bool {
        let others = || self.nodes.iter().filter(|other| other.index != node);
        let is_elsewhere = |(origin, head): (&Origin, &Version)| {
            others().any(|o| self.truths.head(o, *origin) >= *head)
        };
        !self.nodes[node.0].heads.iter().all(is_elsewhere)
    }

    /// Tells whether whomever a node asks holds all that it wrote. A machine that was rolled back asks
    /// two peers, and where these do not know takes a name twice (see ARCHITECTURE.md).
    fn is_known_by_all(&self, node: NodeIndex) -> bool {
        let this = &self.nodes[node.0];
        let mut own = this.heads.iter().filter(|(origin, _)| origin.node == this.id);
        own.all(|(origin, head)| self.nodes.iter().all(|o| self.truths.head(o, *origin) >= *head))
    }

    fn trouble(&mut self, fault: Fault) -> Checked {
        let fault = match fault {
            Fault::Restore(node) | Fault::Wipe(node)
                if self.scenario.keeps_only_copies && self.is_only_copy(node) =>
            {
                Fault::Restart(node)
            }
            Fault::RollBack(node)
                if self.scenario.keeps_only_copies && !self.is_known_by_all(node) =>
            {
                Fault::Restart(node)
            }
            fault => fault,
        };
        let Some(fault) = self.trouble_of_one(fault) else {
            self.spread_news();
            return Ok(());
        };
        match fault {
            Fault::Crash(node) => self.crash(node),
            Fault::Restart(node) => self.start(node)?,
            Fault::Image(node) => {
                let this = &mut self.nodes[node.0];
                let storage = this.storage.try_copy()?;
                let (own, buried) = (this.own.clone(), this.buried.clone());
                this.image = Some(Image { storage, own, buried });
            }
            Fault::Restore(node) if self.nodes[node.0].replica.is_none() => {
                let above = self.epoch_by_the_clock();
                self.roll_back(node)?;
                if self.scenario.mutation == Some(Mutation::VersionReused) {
                    return self.start(node);
                }
                let now = self.nodes[node.0].wall(self.now);
                let begun = self.nodes[node.0].storage.begin_epoch(now, above);
                let begun = begun.map_err(|error| error.to_string())?;
                for commit in &begun.commits {
                    self.on_own_commit(node, commit)?;
                }
                self.start(node)?;
            }
            Fault::Wipe(node) if self.nodes[node.0].replica.is_none() => {
                let epoch = self.epoch_by_the_clock();
                let origin = Origin { epoch, ..first_origin(node) };
                let empty =
                    self.media.create(origin, &workload::definitions(workload::Schema::Old))?;
                let copy = empty.copy()?;
                drop(empty);
                let empty = copy.into();
                let (own, buried) = (OwnRows::new(), BTreeSet::new());
                self.nodes[node.0].image = Some(Image { storage: empty, own, buried });
                self.roll_back(node)?;
                self.start(node)?;
            }
            Fault::RollBack(node) if self.nodes[node.0].replica.is_none() => {
                self.roll_back(node)?;
                self.nodes[node.0].confirmations_needed = 2.min(self.scenario.nodes - 1);
                self.start(node)?;
            }
            Fault::Restore(_) | Fault::Wipe(_) | Fault::RollBack(_) => {}
            Fault::Forget(by, whom) if by != whom && self.nodes[by.0].replica.is_some() => {
                self.note(by, "is told to forget", Some(whom), 0);
                let whom = self.nodes[whom.0].id;
                self.tell(by, Input::Forget(whom))?;
            }
            Fault::Forget(..) => {}
            Fault::Partition(sides) => {
                self.note(NodeIndex(0), "and others: the network is divided", None, 0);
                self.society.is_redivided = true;
                self.network.divide(&sides);
            }
            Fault::Heal => {
                self.note(NodeIndex(0), "and others: the network is whole", None, 0);
                self.society.is_redivided = true;
                self.network.heal();
                self.heal_links();
            }
            Fault::DiskFails(node) => {
                self.note(node, "its disk fails", None, 0);
                self.nodes[node.0].disk.is_failing = true;
            }
            Fault::Damage { node, nth, loses_row, is_kept } => {
                let damaged = self.nodes[node.0].storage.damage(nth, loses_row, is_kept);
                self.tally.damaged += u64::from(damaged.is_some());
                self.note(node, "a row is damaged", None, nth as u64);
            }
            Fault::DiskWorks(node) => {
                self.note(node, "its disk works", None, 0);
                self.nodes[node.0].disk.mend();
            }
            // Carried out already.
            _ => {}
        }
        self.spread_news();
        Ok(())
    }

    fn start(&mut self, node: NodeIndex) -> Checked {
        if self.nodes[node.0].replica.is_some() {
            return Ok(());
        }
        self.define(node);
        let seed = self.rng.random();
        self.society.changed.push(node);
        let this = &mut self.nodes[node.0];
        this.life += 1;
        let torn = this.torn.take();
        let opened = this.storage.restart(torn.as_ref());
        opened.map_err(|fault| format!("{node} does not start again: {fault}"))?;
        this.read_heads();
        self.truths.what_was_acknowledged_is_on_disk(this)?;
        let heads: Vec<_> = this.heads.iter().map(|(origin, v)| (*origin, *v)).collect();
        let mut config = mistakes::settings(self.scenario.mutation, &self.scenario.replica);
        // Long enough for some writes to come first.
        config.withdraw_after = Duration::from_secs(2);
        let floor = this.storage.floor().expect("the storage in memory does not fail");
        let replica = Replica::new(this.storage.origin(), heads, config, seed).on(&floor);
        this.replica = Some(Box::new(replica));
        let life = this.life;
        this.wake_at = Some(self.now);
        self.agenda.enter(self.now, Event::Wake { node, life });
        self.note(node, "starts", None, u64::from(life));
        self.read_shown(node);
        self.start_swim(node);
        Ok(())
    }

    fn crash(&mut self, node: NodeIndex) {
        if self.nodes[node.0].replica.is_none() {
            return;
        }
        self.society.changed.push(node);
        self.end_swim(node);
        let left = trace::Fnv::of(&self.now.0.to_be_bytes()) as u16;
        self.bury_frozen(node);
        let this = &mut self.nodes[node.0];
        if let Some(left) = this.unsynced.take() {
            (this.storage, this.own, this.buried) = (left.storage, left.own, left.buried);
        }
        this.replica = None;
        this.torn = this.disk.crash().map(|work| medium::Torn { work, left });
        this.up.clear();
        this.is_told_gone = false;
        this.wake_at = None;
        this.told_at = Time(0);
        this.confirmations_needed = 0;
        self.note(node, "crashes", None, 0);
    }

    /// Puts the image in the place of the disk. What only this disk held is gone.
    fn roll_back(&mut self, node: NodeIndex) -> Checked {
        let this = &mut self.nodes[node.0];
        let Some(image) = &this.image else { return Ok(()) };
        let (own, buried) = (image.own.clone(), image.buried.clone());
        let opened = image.storage.try_copy().and_then(|storage| {
            // Before the copy takes its place: what it was made of is closed, then nobody is there.
            this.storage = storage;
            this.storage.restart(None)
        });
        opened.map_err(|fault| format!("{node}'s image cannot be opened: {fault}"))?;
        (this.own, this.buried, this.torn) = (own, buried, None);
        this.read_heads();
        self.truths.on_lost(&self.nodes);
        self.excuse();
        self.note(node, "is rolled back", None, 0);
        Ok(())
    }

    /// What was acknowledged and is on no disk any more need not come back under its name.
    fn excuse(&mut self) {
        self.truths.excuse(&self.nodes);
    }

    /// Counts what a node sends.
    fn count(&mut self, node: NodeIndex, kind: traffic::Kind, bytes: usize) {
        self.tally.traffic.add(kind, bytes);
        self.nodes[node.0].sent += bytes as u64;
    }

    fn begin_to_measure(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.sent = 0);
        let measured = &mut self.tally.measured;
        (measured.from, measured.before) = (self.now, self.tally.traffic);
    }

    fn end_measuring(&mut self) {
        let (every, bytes) = traffic::KEEP_ALIVE;
        let span = self.now.since(self.tally.measured.from);
        let beats = span.as_secs_f64() / every.as_secs_f64() * bytes as f64;
        let kept = |node: &VirtualNode| {
            let links = node.replica.as_ref().map_or(0, |replica| replica.neighbours().count());
            (links as f64 * beats) as u64
        };
        let measured = &mut self.tally.measured;
        measured.until = self.now;
        measured.sent = self.tally.traffic.since(&measured.before);
        measured.sent.keep_alive = self.nodes.iter().map(kept).sum();
        measured.by_node = self.nodes.iter().map(|node| node.sent + kept(node)).collect();
    }

    fn lives(&self, node: NodeIndex, life: u32) -> bool {
        let this = &self.nodes[node.0];
        this.life == life && this.replica.is_some()
    }

    fn note(&mut self, node: NodeIndex, what: &'static str, other: Option<NodeIndex>, number: u64) {
        let other = other.map(|other| other.0);
        self.trace.note(Note { at: self.now, node: node.0, what, other, number });
    }

    /// Says which heads differ, for a failure.
    fn who_differs(&self) -> String {
        let mut words = "P5: the nodes did not come to hold the same in time:".to_owned();
        for node in self.nodes.iter().take(20) {
            let heads: Vec<String> = node
                .heads
                .iter()
                .map(|(origin, v)| format!("{}/{}:{v}", index_of(origin.node), origin.epoch.0))
                .collect();
            let behind = node.replica.as_ref().map(|replica| {
                let lags = replica.lags().into_iter().filter(|lag| lag.held < lag.heard);
                lags.map(|lag| format!("{}:{}<{}", lag.origin, lag.held, lag.heard))
                    .collect::<Vec<_>>()
            });
            let standing = node.replica.as_ref().map(|replica| replica.collection(Time(0)));
            words += &format!(
                "\n  {} behind {behind:?}, {:?} wait, disk idle {}, withdraws {:?}, holds {}, {standing:?}",
                node.index,
                node.replica.as_ref().map(|replica| replica.waiting_bytes()),
                node.disk.is_idle(),
                node.replica.as_ref().map(|replica| replica.awaits_withdrawal()),
                heads.join(" ")
            );
        }
        words
    }

    fn report(&mut self, converged_after: Duration) -> Report {
        let tally = &mut self.tally;
        let versions = self.truths.versions();
        let deliveries = (versions * (self.scenario.nodes - 1)).max(1);
        let last_at = tally.last_at.iter();
        let everywhere = last_at.filter_map(|(name, at)| {
            Some(at.since(self.truths.committed_at(*name)?).as_micros() as u64)
        });
        let everywhere = spread(everywhere.collect());
        let origins_held = self.nodes.iter().map(|node| node.heads.iter().count());
        let origins_held = origins_held.max().unwrap_or_default();
        let verdicts = std::mem::take(&mut tally.verdicts);
        let measured = &tally.measured;
        let span = measured.until.since(measured.from);
        let per_second = |bytes: u64| bytes as f64 / span.as_secs_f64().max(1e-6);
        Report {
            seed: self.scenario.seed,
            nodes: self.scenario.nodes,
            versions,
            events: self.trace.count(),
            trace_hash: self.trace.hash(),
            converged_after,
            latency: spread(std::mem::take(&mut tally.latencies_us)),
            everywhere,
            pushes: tally.pushes,
            pulled: tally.pulled,
            wants: tally.wants,
            copies: (tally.pushes + tally.pulled) as f64 / deliveries as f64,
            push_bytes: tally.push_bytes,
            other_bytes: tally.other_bytes,
            measured_for: span,
            traffic: measured.sent,
            sends: [
                per_second(measured.sent.sum()) / self.scenario.nodes as f64,
                per_second(measured.by_node.iter().copied().max().unwrap_or(0)),
            ],
            members: Members {
                downs: verdicts.detected_us.len(),
                detected: spread(verdicts.detected_us),
                wrong: verdicts.wrong,
                wrong_first: verdicts.wrong_first,
                rejoins: verdicts.rejoins,
                guards: verdicts.guards,
                whole_after: verdicts.whole_at.map(|at| at.since(Time(0))),
            },
            large: tally.large,
            staged: tally.staged,
            deletes: self.truths.deaths(),
            tombstones_max: tally.tombstones_max,
            tombstones_dropped: tally.tombstones_dropped,
            departures: tally.departures,
            origins_retired: tally.origins_retired,
            origins_erased: tally.origins_erased,
            origins_held,
            collected_after: tally.collected_after,
            rejoins: tally.rejoins,
            mended: tally.mended,
            mended_after: tally.mended_after,
            lasted: self.now.since(Time(0)),
        }
    }
}

/// Returns the median of times in microseconds, the 99th of a hundred, and the longest.
fn spread(mut times: Vec<u64>) -> [Duration; 3] {
    times.sort_unstable();
    [0.5, 0.99, 1.0].map(|share| {
        let place = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
        Duration::from_micros(times.get(place).copied().unwrap_or(0))
    })
}

fn describe(message: &Message) -> (&'static str, u64) {
    match message {
        Message::Hello { head, .. } => ("hears hello from", head.0),
        Message::Known { head, .. } => ("is confirmed by", head.0),
        Message::Neighbour(crate::wire::Neighbour::Ask { .. }) => ("is asked by", 0),
        Message::Neighbour(crate::wire::Neighbour::Accepted) => ("is accepted by", 0),
        Message::Neighbour(crate::wire::Neighbour::Refused) => ("is refused by", 0),
        Message::Neighbour(crate::wire::Neighbour::Part) => ("may part from", 0),
        Message::Neighbour(crate::wire::Neighbour::Ended) => ("is no neighbour of", 0),
        Message::Push { piece, .. } => ("gets a push from", piece.through.0),
        Message::Offer(offers) => ("is offered by", offers.len() as u64),
        Message::Take(names) => ("is asked to send by", names.len() as u64),
        Message::Heads(heads) => ("gets a digest from", heads.len() as u64),
        Message::Buckets(_) => ("compares with", 0),
        Message::BucketHeads { heads, .. } => ("differs in buckets from", heads.len() as u64),
        Message::Want { after, is_whole: false, .. } => ("is asked for versions by", after.0),
        Message::Want { after, .. } => ("is asked for all rows by", after.0),
        Message::Pulled { piece, .. } => ("gets an answer from", piece.through.0),
        Message::Busy { .. } => ("is put off by", 0),
        Message::Gone { floor, .. } => ("is below the floor of", floor.0),
        Message::Join { era, .. } => ("is asked to let in", *era),
        Message::Welcome { is_settled, .. } => ("is let in by", u64::from(*is_settled)),
        Message::Round(round) => ("hears a round from", round.number),
        Message::Forgotten { .. } => ("was forgotten by", 0),
        Message::Look { stretch, .. } => ("is shown rows by", stretch.ranges.len() as u64),
        Message::Seen { seen, .. } => ("was compared by", seen.differing.len() as u64),
    }
}
