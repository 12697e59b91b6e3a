//! What to simulate: how many nodes, how bad a network, which trouble.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::NodeIndex;
use super::disk::DiskConfig;
use super::faults::{self, Fault};
use super::membership::Membership;
use super::mistakes::Mutation;
use super::network::NetworkConfig;
use crate::replica::Config;
use crate::types::Time;

/// What the large transactions of the workload have, and no others.
const LARGE_BYTES: usize = 2_500;

/// A cluster and what befalls it. Everything else follows from the seed.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub nodes: usize,
    /// How many transactions all nodes together begin.
    pub writes: usize,
    /// From when on they do. It takes [`Scenario::detection`] until the nodes know each other.
    pub writes_from: Time,
    /// Until when they do.
    pub writes_until: Time,
    pub network: NetworkConfig,
    pub disk: DiskConfig,
    pub replica: Config,
    /// From how many bytes on a transaction is not pushed: the others hear of it, and pull it.
    pub large_bytes: usize,
    /// How nodes learn of each other.
    pub membership: Membership,
    /// How long it takes an oracle, at most, until a node learns that another went down or came up. A
    /// third of it passes at least.
    pub detection: Duration,
    /// In the order of time.
    pub faults: Vec<(Time, Fault)>,
    /// How long after the last trouble and the last write all nodes must hold the same.
    pub converge_within: Duration,
    /// Whether rows are inserted and deleted over and over, and every tombstone must be gone in the
    /// end.
    pub is_churn: bool,
    /// Whether it is a failure that a node is taken for down that is up and can be reached.
    pub verdicts_are_right: bool,
    /// From when on it is measured what the nodes send, until all is quiet.
    pub measure_from: Time,
    /// What is done wrongly, to see that it is noticed.
    pub mutation: Option<Mutation>,
    /// A node that adds rows of others to what it tells: everybody leaves them out.
    pub forger: Option<NodeIndex>,
    /// Whether some nodes begin without a table, or without one of its columns, that others write.
    /// They get it by [`Fault::SchemaGrows`].
    pub is_skewed: bool,
    /// Whether every other node is of a later release, whose messages say more than this one reads,
    /// and which sends some of kinds that this one does not know.
    pub is_upgrading: bool,
    /// Whether a disk is lost or set back only while others hold all that it holds. What overwrote
    /// a shared cell may be gone for good otherwise, while some hold the version that it took the
    /// cell from: see "Decisions" in ARCHITECTURE.md.
    pub keeps_only_copies: bool,
    /// Whether messages go through their bytes, and owned rows are compared with their history:
    /// truths that cost too much for large clusters.
    pub is_thorough: bool,
}

impl Scenario {
    /// A quiet cluster on a good network.
    pub fn calm(seed: u64, nodes: usize, writes: usize) -> Self {
        Self {
            seed,
            nodes,
            writes,
            writes_from: Time(3_000_000),
            writes_until: Time(8_000_000),
            network: NetworkConfig::default(),
            disk: DiskConfig::default(),
            replica: Config::default(),
            large_bytes: usize::MAX,
            membership: Membership::default(),
            detection: Duration::from_secs(2),
            faults: Vec::new(),
            converge_within: Duration::from_secs(10),
            is_churn: false,
            verdicts_are_right: false,
            measure_from: Time(3_000_000),
            mutation: None,
            forger: None,
            is_skewed: false,
            is_upgrading: false,
            keeps_only_copies: false,
            is_thorough: true,
        }
    }

    /// A small cluster whose rows come and go, with trouble drawn from the seed: nodes that are away
    /// for longer and shorter than others wait for them, and disks that are lost and set back.
    pub fn churn(seed: u64) -> Self {
        let mut scenario = Self::drawn(seed);
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x00c0_11ec);
        scenario.is_churn = true;
        scenario.keeps_only_copies = true;
        scenario.nodes = rng.random_range(3..7);
        scenario.writes = rng.random_range(100..300);
        scenario.writes_until = Time(20_000_000);
        scenario.faults = faults::draw_absences(&mut rng, scenario.nodes, scenario.writes_until);
        scenario.replica = Self::hasty(scenario.replica);
        if rng.random_bool(0.6) {
            // Rounds that are faster than changes travel.
            scenario.replica.round_every = Duration::from_millis(50);
            scenario.replica.tell_every = Duration::from_millis(40);
        }
        if scenario.replica.piece_bytes_max < LARGE_BYTES {
            // Who takes all rows anew gets every large version in small pieces, one after the other.
            scenario.converge_within *= 4;
        }
        scenario
    }

    /// A quiet cluster whose rows come and go.
    pub fn calm_churn(seed: u64, nodes: usize, writes: usize) -> Self {
        let mut scenario = Self::calm(seed, nodes, writes);
        scenario.is_churn = true;
        scenario.writes_until = Time(23_000_000);
        scenario.replica = Self::hasty(scenario.replica);
        scenario
    }

    /// What takes minutes and days takes seconds.
    fn hasty(replica: Config) -> Config {
        Config {
            collect: true,
            round_every: Duration::from_secs(1),
            tell_every: Duration::from_millis(200),
            tell_after: Duration::from_secs(1),
            forget_after: Duration::from_secs(4),
            alone_after: Duration::from_secs(4),
            collect_rows_max: 3,
            retired_for: Duration::from_secs(2),
            join_every: Duration::from_millis(200),
            settle_alone_after: Duration::from_secs(1),
            settle_without_after: Duration::from_secs(3),
            ..replica
        }
    }

    /// A small cluster with trouble drawn from the seed: 3 to 12 nodes.
    pub fn drawn(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let nodes =
            if rng.random_bool(0.7) { rng.random_range(3..7) } else { rng.random_range(7..13) };
        let until = Time(6_000_000);
        let mut scenario = Self::calm(seed, nodes, rng.random_range(8..30));
        scenario.writes_from = Time(0);
        scenario.writes_until = until;
        scenario.network.loss = [0.0, 0.0, 0.01, 0.05, 0.2][rng.random_range(0..5)];
        scenario.network.loss_is_noticed = rng.random_bool(0.5);
        scenario.network.duplication = [0.0, 0.02][rng.random_range(0..2)];
        scenario.network.jitter = Duration::from_millis([1, 5, 200][rng.random_range(0..3)]);
        scenario.disk.write_max = Duration::from_millis([1, 5, 100][rng.random_range(0..3)]);
        scenario.disk.attention_max =
            Duration::from_micros([200, 1_000_000][rng.random_range(0..2)]);
        scenario.is_upgrading = is_upgrading(seed);
        scenario.faults = faults::draw(&mut rng, nodes, until);
        scenario.replica = draw_caps(&mut rng);
        scenario.large_bytes = LARGE_BYTES;
        // Of 20 % loss everything is left to luck and to the next half minute.
        let is_lossy = scenario.network.loss > 0.1;
        let loss = Duration::from_secs(if is_lossy { 120 } else { 40 });
        // A large version in small pieces comes one after the other, each through the disk perhaps,
        // and with such loss at its third try.
        let is_slow = scenario.replica.piece_bytes_max < LARGE_BYTES;
        scenario.converge_within += if is_slow { loss * 5 } else { loss };
        scenario
    }

    /// The scenario that every change of the protocol is held against: many nodes that all write,
    /// 5 % of all messages lost, a partition that heals, and restarts.
    pub fn large(seed: u64, nodes: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut scenario = Self::calm(seed, nodes, nodes);
        scenario.network.loss = 0.05;
        scenario.converge_within = Duration::from_secs(60);
        scenario.is_thorough = false;
        let at = |millis: u64| Time(millis * 1_000);
        let sides = (0..nodes).map(|node| u8::from(node % 3 == 0)).collect();
        scenario.faults.push((at(4_000), Fault::Partition(sides)));
        for _ in 0..nodes / 20 {
            let node = NodeIndex(rng.random_range(0..nodes));
            let down = rng.random_range(3_000..6_000);
            scenario.faults.push((at(down), Fault::Crash(node)));
            scenario.faults.push((at(down + rng.random_range(10..2_500)), Fault::Restart(node)));
        }
        scenario.faults.push((at(8_000), Fault::Heal));
        scenario.faults.sort_by_key(|(at, _)| *at);
        scenario
    }

    /// Lets the nodes find each other by SWIM, and all that befalls them come later by so much as that
    /// takes. A verdict takes longer than an oracle's, and so does all that waits for one.
    #[must_use]
    pub fn with(mut self, membership: Membership) -> Self {
        let was_told = self.membership.joining().is_none();
        if let Some(joining) = membership.joining().filter(|_| was_told) {
            let size = Duration::from_secs(30).mul_f64((self.nodes as f64 / 100.0).clamp(0.2, 4.0));
            let later = joining.within + size;
            self.writes_from = self.writes_from + later;
            self.writes_until = self.writes_until + later;
            self.measure_from = self.measure_from + later;
            self.faults.iter_mut().for_each(|(at, _)| *at = *at + later);
            self.converge_within += Duration::from_secs(180);
        }
        self.membership = membership;
        self
    }

    /// A cluster of any size that many write to, with trouble of all kinds: each seed draws which
    /// kinds there are at all, then how much of each. It is what every change is held against.
    pub fn mixed(seed: u64, nodes: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x5eed_3142);
        let mut scenario = Self::calm(seed, nodes, [60, 100, 200][rng.random_range(0..3)]);
        let until = Time(10_000_000);
        scenario.writes_from = Time(1_000_000);
        scenario.writes_until = until;
        scenario.is_thorough = false;
        scenario.keeps_only_copies = true;
        let network = &mut scenario.network;
        network.loss = [0.0, 0.0, 0.01, 0.05, 0.2][rng.random_range(0..5)];
        network.loss_is_noticed = rng.random_bool(0.5);
        network.duplication = [0.0, 0.02][rng.random_range(0..2)];
        network.jitter = Duration::from_millis([1, 5, 50, 200][rng.random_range(0..4)]);
        network.regions = [1, 3, 5][rng.random_range(0..3)];
        scenario.disk.write_max = Duration::from_millis([1, 5, 30][rng.random_range(0..3)]);
        scenario.disk.attention_max = Duration::from_millis([1, 1, 300][rng.random_range(0..3)]);
        scenario.faults = faults::draw_mixed(&mut rng, nodes, (Time(500_000), Time(12_000_000)));
        if rng.random_bool(0.3) {
            scenario.is_skewed = true;
            let ends = (0..nodes).map(|node| {
                let at = Time(rng.random_range(2_000_000..12_000_000));
                (at, Fault::SchemaGrows(NodeIndex(node)))
            });
            scenario.faults.extend(ends);
            scenario.faults.sort_by_key(|(at, _)| *at);
        }
        scenario.is_upgrading = is_upgrading(seed);
        scenario.forger = rng.random_bool(0.2).then(|| NodeIndex(rng.random_range(0..nodes)));
        if rng.random_bool(0.5) {
            scenario.replica = draw_caps(&mut rng);
        }
        scenario.large_bytes = if rng.random_bool(0.5) { LARGE_BYTES } else { usize::MAX };
        let is_lossy = scenario.network.loss > 0.1;
        let is_slow = scenario.replica.piece_bytes_max < LARGE_BYTES;
        let lasts = Duration::from_secs(if is_lossy { 120 } else { 60 });
        scenario.converge_within = if is_slow { lasts * 5 } else { lasts };
        scenario
    }

    /// Returns when nothing new goes wrong any more and nobody writes any more.
    pub fn quiet_from(&self) -> Time {
        let last = self.faults.last().map_or(Time(0), |(at, _)| *at);
        last.max(self.writes_until)
    }
}

/// By a lot of its own: what else is drawn from a seed stays what it was.
fn is_upgrading(seed: u64) -> bool {
    SmallRng::seed_from_u64(seed ^ 0x00e1_ea5e).random_bool(0.2)
}

/// Tight limits now and then, so that what happens at the brim happens.
fn draw_caps(rng: &mut SmallRng) -> Config {
    let mut config = Config::default();
    if rng.random_bool(0.3) {
        config.piece_bytes_max = 200;
    }
    if rng.random_bool(0.4) {
        config.staged_origin_bytes_max = [300, 3_000][rng.random_range(0..2)];
        config.stage_bytes_max = [1, 1_000][rng.random_range(0..2)];
    }
    if rng.random_bool(0.2) {
        config.early_origin_bytes_max = 600;
        config.early_bytes_max = 1_000;
    }
    if rng.random_bool(0.2) {
        config.ready_bytes_max = 3_000;
        config.batch_bytes_max = 500;
    }
    if rng.random_bool(0.5) {
        // Too many for everybody to send to everybody.
        config.direct_max = 2;
        config.offers = rng.random_bool(0.9);
        config.kept_bytes_max = [1_000, 1_000_000][rng.random_range(0..2)];
    }
    if rng.random_bool(0.2) {
        config.loads_max = 1;
        config.pulls_max = 2;
    }
    if rng.random_bool(0.2) {
        config.eager_target = 3;
        config.eager_floor = 2;
        config.eager_max = 4;
        config.lazy_target = 2;
    }
    config
}
