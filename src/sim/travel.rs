//! How fast changes travel, and at what price: many nodes, each the production replica, over the
//! same network as [`super::run`]'s. Disks remember names only, since nothing is held true here but
//! counted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};

use super::agenda::Agenda;
use super::disk::DiskConfig;
use super::network::{Network, NetworkConfig};
use super::node::{first_origin, index_of, node_id};
use super::{NodeIndex, passage};
use crate::crdt::storage::{Bookmark, Extract};
use crate::crdt::{CellChange, Changeset, Life, Piece, RowChange, Stamp, TableChanges};
use crate::replica::{ApplyOutcome, BatchId, Config, Effect, Input, Replica};
use crate::types::{Origin, Time, Value, Version, Wall};
use crate::wire::{Message, encode, piece_bytes};

pub use passage::Passage;
use passage::Tally;

/// How long the nodes have to find each other before anything is written.
const SETTLE: Duration = Duration::from_secs(20);

/// How long is waited for the last changes.
const DRAIN: Duration = Duration::from_secs(30);

/// Nodes and the changes that travel between them. Everything else follows from the seed.
#[derive(Clone, Debug)]
pub struct Travel {
    pub seed: u64,
    pub nodes: usize,
    pub network: NetworkConfig,
    pub disk: DiskConfig,
    pub replica: Config,
    /// How many other members a node knows at most: for clusters in which all together would take
    /// too much memory.
    pub known_max: usize,
    /// How many nodes write.
    pub writers: usize,
    /// How many changes count. A tenth as many come before them.
    pub changes: usize,
    /// How many changes there are a second, at times by lot; where it is 0 one every half second.
    pub per_second: f64,
    /// How many bytes of values a change has.
    pub value_bytes: usize,
    /// The share of nodes, none of them writers, that die while changes travel. It takes
    /// `detection` until the others know.
    pub deaths: f64,
    pub detection: Duration,
}

impl Travel {
    /// [`Travel::calm`] with the load of a large cluster: 200 changes a second, 1 % of all messages
    /// lost.
    pub fn busy(seed: u64, nodes: usize) -> Self {
        let mut travel = Self::calm(seed, nodes);
        (travel.per_second, travel.changes) = (200.0, 2_000);
        travel.network.loss = 0.01;
        travel
    }

    /// A quiet cluster in five regions, with changes of about 300 bytes.
    pub fn calm(seed: u64, nodes: usize) -> Self {
        Self {
            seed,
            nodes,
            network: NetworkConfig::five_regions(),
            disk: DiskConfig::default(),
            // There are no rows here that could be held against others'.
            replica: Config { audit_every: Duration::from_secs(1 << 20), ..Config::default() },
            known_max: usize::MAX,
            writers: nodes,
            changes: 200,
            per_second: 0.0,
            value_bytes: 210,
            deaths: 0.0,
            detection: Duration::from_secs(15),
        }
    }

    /// Plays it, and says what was counted.
    pub fn measure(&self) -> Passage {
        let mut world = World::new(self.clone());
        world.found();
        let begin = Time(0) + SETTLE;
        let span = world.schedule(begin);
        world.play_until(begin + span.0);
        world.tally.begin(world.now);
        world.play_until(begin + span.1);
        world.tally.end_of_writes(world.now);
        world.play_until(begin + span.1 + DRAIN);
        let alive = world.nodes.iter().map(|node| node.replica.is_some()).collect::<Vec<_>>();
        let stats = world.nodes.iter().filter_map(|node| node.replica.as_ref());
        world.tally.passage(self, &alive, stats.map(|replica| *replica.stats()))
    }
}

#[derive(Debug)]
enum Event {
    Wake(NodeIndex),
    Deliver { to: NodeIndex, from: NodeIndex, message: Arc<Message>, bytes: usize },
    Tell(NodeIndex, Input),
    DiskDone(NodeIndex),
    Write { node: NodeIndex, is_counted: bool },
    Die(NodeIndex),
}

enum Job {
    Commit { is_counted: bool },
    Apply { id: BatchId, heads: Vec<(Origin, Version, Version)> },
    Answer(Input),
}

struct Traveller {
    replica: Option<Box<Replica>>,
    heads: BTreeMap<Origin, Version>,
    jobs: VecDeque<Job>,
    wake_at: Option<Time>,
}

struct World {
    travel: Travel,
    now: Time,
    agenda: Agenda<Event>,
    nodes: Vec<Traveller>,
    network: Network,
    rng: SmallRng,
    /// All changes of each node, in the order of versions.
    written: Vec<Vec<Arc<Changeset>>>,
    tally: Tally,
}

impl World {
    fn new(travel: Travel) -> Self {
        let mut rng = SmallRng::seed_from_u64(travel.seed);
        let nodes = (0..travel.nodes).map(NodeIndex).map(|index| {
            let origin = first_origin(index);
            let replica = Replica::new(origin, [], travel.replica.clone(), rng.random());
            Traveller {
                replica: Some(Box::new(replica)),
                heads: BTreeMap::new(),
                jobs: VecDeque::new(),
                wake_at: None,
            }
        });
        let nodes = nodes.collect();
        Self {
            now: Time(0),
            agenda: Agenda::new(),
            nodes,
            network: Network::new(travel.network.clone(), travel.nodes),
            rng,
            written: vec![Vec::new(); travel.nodes],
            tally: Tally::new(travel.nodes),
            travel,
        }
    }

    /// The nodes learn of each other within two seconds.
    fn found(&mut self) {
        let count = self.travel.nodes;
        let all = || (0..count).map(NodeIndex);
        let mut known = vec![BTreeSet::new(); count];
        for node in all() {
            let others = all().filter(|other| *other != node);
            if count - 1 <= self.travel.known_max {
                known[node.0].extend(others);
                continue;
            }
            for other in others.sample(&mut self.rng, self.travel.known_max / 2) {
                known[node.0].insert(other);
                known[other.0].insert(node);
            }
        }
        for node in all() {
            for other in &known[node.0] {
                let at = Time(self.rng.random_range(0..2_000_000));
                let round_trip = Some(self.network.round_trip(node, *other));
                let up = Input::PeerUp { node: node_id(*other), round_trip };
                self.agenda.enter(at, Event::Tell(node, up));
            }
        }
    }

    /// Enters all changes. Returns when those that count begin, and when they are written.
    fn schedule(&mut self, begin: Time) -> (Duration, Duration) {
        let (counted, before) = (self.travel.changes, self.travel.changes / 10);
        let per_second = if self.travel.per_second > 0.0 { self.travel.per_second } else { 2.0 };
        let span = |changes: usize| Duration::from_secs_f64(changes as f64 / per_second);
        let deaths = (self.travel.nodes as f64 * self.travel.deaths) as usize;
        let writers = self.travel.writers.min(self.travel.nodes - deaths);
        for serial in 0..before + counted {
            let at = match self.travel.per_second > 0.0 {
                true if serial < before => span(before).mul_f64(self.rng.random_range(0.0..1.0)),
                true => span(before) + span(counted).mul_f64(self.rng.random_range(0.0..1.0)),
                false => span(serial),
            };
            let node = NodeIndex(self.rng.random_range(0..writers));
            self.agenda.enter(begin + at, Event::Write { node, is_counted: serial >= before });
        }
        for dead in 0..deaths {
            let at = span(before) + span(counted).mul_f64(self.rng.random_range(0.0..1.0));
            self.agenda.enter(begin + at, Event::Die(NodeIndex(self.travel.nodes - 1 - dead)));
        }
        (span(before), span(before + counted))
    }

    fn play_until(&mut self, end: Time) {
        while self.agenda.next_at().is_some_and(|at| at <= end) {
            let Some((at, event)) = self.agenda.take_next() else { break };
            self.now = at;
            self.step(event);
        }
        self.now = end;
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Wake(node) if self.nodes[node.0].wake_at == Some(self.now) => {
                self.nodes[node.0].wake_at = None;
                self.tell(node, Input::Tick);
            }
            Event::Wake(_) => {}
            Event::Deliver { to, from, message, bytes } => {
                if self.nodes[to.0].replica.is_none() {
                    return;
                }
                self.tally.on_received((from, to), self.now, &message, bytes);
                let message = Arc::unwrap_or_clone(message);
                self.tell(to, Input::Received { from: node_id(from), message });
            }
            Event::Tell(node, input) => self.tell(node, input),
            Event::DiskDone(node) => self.disk_done(node),
            Event::Write { node, is_counted } => self.add_job(node, Job::Commit { is_counted }),
            Event::Die(node) => {
                self.nodes[node.0].replica = None;
                self.nodes[node.0].jobs.clear();
                let detection = self.travel.detection;
                for other in (0..self.travel.nodes).map(NodeIndex) {
                    let at = self.now + detection.mul_f64(self.rng.random_range(0.8..1.0));
                    self.agenda.enter(at, Event::Tell(other, Input::PeerDown(node_id(node))));
                }
            }
        }
    }

    fn tell(&mut self, node: NodeIndex, input: Input) {
        let Some(mut replica) = self.nodes[node.0].replica.take() else { return };
        replica.handle(self.now, input);
        let mut packets = BTreeSet::new();
        while let Some(effect) = replica.next_effect() {
            self.perform(node, effect, &mut packets);
        }
        let deadline = replica.deadline();
        let this = &mut self.nodes[node.0];
        this.replica = Some(replica);
        if let Some((at, _)) = deadline
            && this.wake_at.is_none_or(|wake_at| at < wake_at)
        {
            let at = at.max(self.now);
            this.wake_at = Some(at);
            self.agenda.enter(at, Event::Wake(node));
        }
    }

    fn perform(&mut self, node: NodeIndex, effect: Effect, packets: &mut BTreeSet<NodeIndex>) {
        match effect {
            Effect::Send { to, message, lane: _ } => {
                let bytes = encode(&message).len() + 4;
                let message = Arc::new(message);
                for to in to.into_iter().map(index_of) {
                    let is_first = packets.insert(to);
                    self.tally.on_sent((node, to), self.now, &message, bytes, is_first);
                    for delay in self.network.send(&mut self.rng, node, to).into_iter().flatten() {
                        let message = Arc::clone(&message);
                        let deliver = Event::Deliver { to, from: node, message, bytes };
                        self.agenda.enter(self.now + delay, deliver);
                    }
                }
            }
            Effect::Apply { id, batch } => {
                let heads = batch.pieces.iter();
                let heads = heads.map(|piece| (piece.origin, piece.after, piece.through));
                self.add_job(node, Job::Apply { id, heads: heads.collect() });
            }
            Effect::ApplyStaged { id, staging: _, last } => {
                let heads = vec![(last.origin, Version(0), last.through)];
                self.add_job(node, Job::Apply { id, heads });
            }
            Effect::Stage { staging, .. } => {
                self.add_job(node, Job::Answer(Input::Staged { staging, is_done: true }));
            }
            Effect::Load { id, origin, from, bytes_max } => {
                let extract = Some(self.extract(node, origin, from, bytes_max));
                let at = self.now + self.travel.disk.draw_read(&mut self.rng);
                self.agenda.enter(at, Event::Tell(node, Input::Loaded { id, extract }));
            }
            Effect::Meet { .. } => self.add_job(node, Job::Answer(Input::Met { is_done: true })),
            Effect::Withdraw => {
                self.add_job(node, Job::Answer(Input::Withdrawn { is_done: true }));
            }
            // There are no rows to be held against others'.
            Effect::Look { id, .. } => {
                self.add_job(node, Job::Answer(Input::Sighted { id, sight: None }));
            }
            // Nobody forgets anything here, nor loses a disk.
            Effect::Unstage(_)
            | Effect::Mend(_)
            | Effect::Recount
            | Effect::BeginEpoch { .. }
            | Effect::Collect { .. }
            | Effect::Rejoin { .. }
            | Effect::Depart { .. }
            | Effect::Tidy(_)
            | Effect::Settle(_) => {}
        }
    }

    fn extract(
        &self,
        node: NodeIndex,
        origin: Origin,
        from: Bookmark,
        bytes_max: usize,
    ) -> Extract {
        let head = self.nodes[node.0].heads.get(&origin).copied().unwrap_or_default();
        let all = &self.written[index_of(origin.node).0];
        let mut piece =
            Piece { origin, after: from.after, through: from.after, changesets: Vec::new() };
        for changeset in all.iter().take(head.0 as usize).skip(from.after.0 as usize) {
            if !piece.changesets.is_empty() && piece_bytes(&piece) >= bytes_max {
                break;
            }
            piece.changesets.push(Arc::clone(changeset));
            piece.through = changeset.stamp.version;
        }
        Extract { head: head.max(piece.through), piece, part: 0 }
    }

    fn add_job(&mut self, node: NodeIndex, job: Job) {
        self.nodes[node.0].jobs.push_back(job);
        if self.nodes[node.0].jobs.len() == 1 {
            self.set_to_work(node);
        }
    }

    fn set_to_work(&mut self, node: NodeIndex) {
        let at = self.now + self.travel.disk.draw_write(&mut self.rng);
        self.agenda.enter(at, Event::DiskDone(node));
    }

    fn disk_done(&mut self, node: NodeIndex) {
        let Some(job) = self.nodes[node.0].jobs.pop_front() else { return };
        let input = match job {
            Job::Commit { is_counted } => self.commit(node, is_counted),
            Job::Apply { id, heads } => {
                for (origin, after, through) in &heads {
                    let held = self.nodes[node.0].heads.entry(*origin).or_default();
                    assert!(*after <= *held, "{node} applies {through} after {held}");
                    let versions = held.0 + 1..=through.0;
                    *held = *through;
                    for version in versions {
                        let writer = index_of(origin.node);
                        self.tally.on_held(self.now, node, writer, Version(version));
                    }
                }
                let heads = heads.into_iter().map(|(origin, _, through)| (origin, through));
                Input::Applied { id, outcome: ApplyOutcome::Done { heads: heads.collect() } }
            }
            Job::Answer(input) => input,
        };
        let at = self.now + self.travel.disk.draw_attention(&mut self.rng);
        self.agenda.enter(at, Event::Tell(node, input));
        if !self.nodes[node.0].jobs.is_empty() {
            self.set_to_work(node);
        }
    }

    fn commit(&mut self, node: NodeIndex, is_counted: bool) -> Input {
        let origin = first_origin(node);
        let version = Version(self.written[node.0].len() as u64 + 1);
        let changeset = Arc::new(self.change(Stamp { origin, version }));
        self.written[node.0].push(Arc::clone(&changeset));
        self.nodes[node.0].heads.insert(origin, version);
        self.tally.on_committed(self.now, node, version, is_counted);
        Input::Committed(changeset)
    }

    /// One row of a table with two columns beside its key.
    fn change(&self, stamp: Stamp) -> Changeset {
        let key = format!("{:016x}", stamp.version.0);
        let value = "v".repeat(self.travel.value_bytes.saturating_sub(key.len() + 2));
        let cell = |column, value| CellChange { column, count: 1, value };
        let row = RowChange {
            key: Arc::from(key.as_bytes()),
            life: Life { length: 1, stamp },
            cells: vec![cell(0, Value::from(value)), cell(1, Value::Integer(300))],
        };
        let table = TableChanges {
            table: Arc::from("services"),
            columns: vec![Arc::from("definition"), Arc::from("modified")],
            rows: vec![row],
        };
        Changeset { stamp, at: Wall(1_700_000_000_000_000 + self.now.0), tables: vec![table] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(seed: u64) -> Travel {
        Travel { changes: 40, ..Travel::calm(seed, 60) }
    }

    #[test]
    fn a_change_is_everywhere_in_little_more_than_the_longest_way_and_comes_less_than_twice() {
        let passage = small(1).measure();
        assert_eq!((passage.unreached, passage.changes), (0, 40));
        assert!(passage.copies < 2.2, "{passage:?}");
        assert!(passage.to_all[1] < Duration::from_millis(200), "{passage:?}");
        assert_eq!(passage.pulls, 0, "{passage:?}");
    }

    #[test]
    fn a_change_reaches_everybody_though_messages_are_lost_and_nodes_die() {
        for (loss, repaired, deaths) in [(0.05, 0.0, 0.0), (0.0, 0.05, 0.0), (0.0, 0.0, 0.1)] {
            let mut travel = Travel { deaths, ..small(2) };
            (travel.network.loss, travel.network.loss_repaired) = (loss, repaired);
            let passage = travel.measure();
            assert_eq!(passage.unreached, 0, "{passage:?}");
            assert!(passage.copies < 2.6, "{passage:?}");
            assert!(passage.to_each[1] < Duration::from_millis(200), "{passage:?}");
        }
    }

    #[test]
    fn where_everybody_is_sent_a_change_by_its_writer_it_comes_once() {
        let network = NetworkConfig { regions: 1, ..NetworkConfig::five_regions() };
        let travel = Travel { network, per_second: 10.0, value_bytes: 190, ..small(3) };
        let passage = Travel { nodes: 10, writers: 10, ..travel }.measure();
        assert!((passage.copies - 1.0).abs() < 0.01, "{passage:?}");
        assert!(passage.wire_bytes < 800.0, "{passage:?}");
    }
}
