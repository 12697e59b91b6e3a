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
    /// Up to how much later than that a message may come, by lot: messages overtake each other.
    pub jitter: Duration,
    /// The share of messages that are lost. A real link repeats what is lost as long as it lives,
    /// so this stands for full queues and broken connections.
    pub loss: f64,
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
            jitter: Duration::from_millis(2),
            loss: 0.0,
            loss_is_noticed: false,
            duplication: 0.0,
        }
    }
}

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
        [Some(delay()), is_doubled.then(delay)]
    }

    fn delay(&self, a: NodeIndex, b: NodeIndex) -> Duration {
        let region = |node: NodeIndex| node.0 % self.config.regions;
        if region(a) == region(b) { self.config.near } else { self.config.far }
    }
}
