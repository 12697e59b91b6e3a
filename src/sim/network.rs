//! The network between the nodes: delay, loss, duplication, overtaking, partitions.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::NodeIndex;

/// How the network behaves.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Nodes are dealt to so many regions in turn.
    pub regions: usize,
    /// One way within a region.
    pub near: Duration,
    /// One way between regions.
    pub far: Duration,
    /// The round trip between each two regions, in the order of regions; empty: twice `far`.
    pub round_trips: Vec<Vec<Duration>>,
    /// Up to how much later than that a message may come, by lot: messages overtake each other.
    pub jitter: Duration,
    /// The share of messages that are lost. A real link repeats what is lost as long as it lives,
    /// so this stands for full queues and broken connections.
    pub loss: f64,
    /// The share of packets that are lost and sent again by the transport, which notices after a round
    /// trip and a little more: what loss on a real link comes to as long as it lives.
    pub loss_repaired: f64,
    /// Whether a sender learns of what was lost.
    pub loss_is_noticed: bool,
    /// The share of messages that come twice.
    pub duplication: f64,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            regions: 3,
            near: Duration::from_micros(500),
            far: Duration::from_millis(30),
            round_trips: Vec::new(),
            jitter: Duration::from_millis(2),
            loss: 0.0,
            loss_repaired: 0.0,
            loss_is_noticed: false,
            duplication: 0.0,
        }
    }
}

impl NetworkConfig {
    /// Five regions between 1 and 250 ms apart: two in one city, one in the next country, one across
    /// an ocean, one on the other side of the earth. Within a region a message takes a third of a
    /// millisecond.
    pub fn five_regions() -> Self {
        let millis = [
            [0, 1, 30, 90, 230],
            [1, 0, 31, 91, 231],
            [30, 31, 0, 75, 250],
            [90, 91, 75, 0, 160],
            [230, 231, 250, 160, 0],
        ];
        Self {
            regions: 5,
            near: Duration::from_micros(300),
            round_trips: millis.map(|row| row.map(Duration::from_millis).to_vec()).to_vec(),
            jitter: Duration::from_micros(500),
            ..Self::default()
        }
    }
}

/// How much longer than a round trip it takes until a transport sends a lost packet again: the time
/// that an acknowledgement may be held back.
const REPAIR_AFTER: Duration = Duration::from_millis(25);

/// The links between nodes, as they are now.
#[derive(Debug)]
pub(super) struct Network {
    config: NetworkConfig,
    /// The side of the partition that each node is on.
    sides: Vec<u8>,
}

/// When a message comes: not at all, once, or twice.
pub(super) type Fate = [Option<Duration>; 2];

impl Network {
    pub(super) fn new(config: NetworkConfig, nodes: usize) -> Self {
        Self { config, sides: vec![0; nodes] }
    }

    pub(super) fn divide(&mut self, sides: &[u8]) {
        self.sides.clear();
        self.sides.extend_from_slice(sides);
    }

    pub(super) fn heal(&mut self) {
        self.sides.fill(0);
    }

    pub(super) fn connects(&self, a: NodeIndex, b: NodeIndex) -> bool {
        self.sides[a.0] == self.sides[b.0]
    }

    pub(super) fn round_trip(&self, a: NodeIndex, b: NodeIndex) -> Duration {
        // Pairs differ a little, so that there is a nearest.
        let spread = Duration::from_micros(((a.0 * 31) ^ (b.0 * 31)) as u64 % 400);
        self.delay(a, b) * 2 + spread
    }

    pub(super) fn loss_is_noticed(&self) -> bool {
        self.config.loss_is_noticed
    }

    pub(super) fn send(&self, rng: &mut SmallRng, from: NodeIndex, to: NodeIndex) -> Fate {
        let is_lost = rng.random_bool(self.config.loss);
        let is_doubled = rng.random_bool(self.config.duplication);
        let jitter = self.config.jitter;
        let mut delay = || self.delay(from, to) + jitter.mul_f64(rng.random_range(0.0..1.0));
        if is_lost || !self.connects(from, to) {
            return [None, None];
        }
        let fate = [Some(delay()), is_doubled.then(delay)];
        let repair = self.repair(rng, from, to);
        fate.map(|delay| delay.map(|delay| delay + repair))
    }

    /// Draws how much later a message comes because packets are lost and sent again.
    fn repair(&self, rng: &mut SmallRng, a: NodeIndex, b: NodeIndex) -> Duration {
        let mut wait = self.delay(a, b) * 2 + REPAIR_AFTER;
        let mut repair = Duration::ZERO;
        while self.config.loss_repaired > 0.0 && rng.random_bool(self.config.loss_repaired) {
            repair += wait;
            wait *= 2;
        }
        repair
    }

    fn delay(&self, a: NodeIndex, b: NodeIndex) -> Duration {
        let region = |node: NodeIndex| node.0 % self.config.regions;
        let (a, b) = (region(a), region(b));
        if a == b {
            return self.config.near;
        }
        let round_trip = self.config.round_trips.get(a).and_then(|row| row.get(b));
        round_trip.map_or(self.config.far, |round_trip| *round_trip / 2)
    }
}
