//! Whole clusters in virtual time: no sockets, one thread, the same each time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use foca::Codec as _;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::codec::Codec;
use super::{Config, Effect, Identity, Input, State, Swim};
use crate::types::{NodeId, Time};

const START: u64 = 1_700_000_000_000;

fn id(index: usize) -> NodeId {
    let mut bytes = [0; 16];
    bytes[14..].copy_from_slice(&u16::try_from(index + 1).unwrap().to_be_bytes());
    NodeId(bytes)
}

fn index(node: NodeId) -> usize {
    usize::from(u16::from_be_bytes([node.0[14], node.0[15]])) - 1
}

fn address(index: usize) -> SocketAddr {
    let [high, low] = u16::try_from(index + 1).unwrap().to_be_bytes();
    ([10, 0, high, low], 7401).into()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A network of nodes that may lose datagrams, be cut, stop, crash and start anew.
struct Cluster {
    now: Time,
    rng: SmallRng,
    nodes: Vec<Option<Swim>>,
    /// Nodes that do not run until then; what comes for them waits.
    frozen_until: Vec<Time>,
    in_flight: BTreeMap<(Time, u64), (NodeId, NodeId, Bytes)>,
    sent: u64,
    /// Lost datagrams per thousand.
    loss: u32,
    /// Nodes on the one side of a cut; empty: no cut.
    island: BTreeSet<usize>,
    /// Nodes that reach nobody.
    cut_off: BTreeSet<usize>,
    config: Config,
    /// Another process with a node's id is said to be there. What is meant for it comes to the node
    /// itself all the same: connections are with a node, not with an address.
    elsewhere: Option<SocketAddr>,
    /// Who thought what, and when.
    log: Vec<(Time, usize, Effect)>,
}

impl Cluster {
    fn new(size: usize, seed: u64) -> Self {
        Self::with(Config::default(), size, seed)
    }

    fn with(config: Config, size: usize, seed: u64) -> Self {
        let mut cluster = Self {
            now: Time(1),
            rng: SmallRng::seed_from_u64(seed),
            nodes: Vec::new(),
            frozen_until: vec![Time(0); size],
            in_flight: BTreeMap::new(),
            sent: 0,
            loss: 0,
            island: BTreeSet::new(),
            cut_off: BTreeSet::new(),
            config,
            elsewhere: None,
            log: Vec::new(),
        };
        (0..size).for_each(|_| cluster.nodes.push(None));
        (0..size).for_each(|index| cluster.start(index, START));
        cluster
    }

    /// All joined through the first, and it shows.
    fn joined(size: usize, seed: u64) -> Self {
        Self::joined_with(Config::default(), size, seed)
    }

    fn joined_with(config: Config, size: usize, seed: u64) -> Self {
        let mut cluster = Self::with(config, size, seed);
        (1..size).for_each(|index| cluster.find(index, 0));
        cluster.run_until("all have joined", secs(60), |cluster| cluster.agrees_on(0..size));
        cluster
    }

    fn start(&mut self, index: usize, generation: u64) {
        let me = Identity::new(id(index), address(index), generation);
        let swim = Swim::new(me, self.config.clone(), self.rng.random());
        self.nodes[index] = Some(swim);
        self.input(index, Input::Tick);
    }

    fn find(&mut self, index: usize, target: usize) {
        self.input(index, Input::Found { node: id(target), address: address(target) });
    }

    fn crash(&mut self, index: usize) {
        self.nodes[index] = None;
    }

    fn swim(&self, index: usize) -> &Swim {
        self.nodes[index].as_ref().unwrap()
    }

    fn input(&mut self, index: usize, input: Input) {
        let Some(swim) = &mut self.nodes[index] else { return };
        swim.handle(self.now, input);
        let effects: Vec<Effect> = std::iter::from_fn(|| swim.next_effect()).collect();
        for effect in effects {
            match effect {
                Effect::Send { to, address: at, bytes } => {
                    let is_at_home = at == address(super::tests::index(to));
                    assert!(is_at_home || Some(at) == self.elsewhere, "{at}");
                    self.transmit(index, to, bytes);
                }
                effect => self.log.push((self.now, index, effect)),
            }
        }
    }

    fn transmit(&mut self, from: usize, to: NodeId, bytes: Bytes) {
        assert!(bytes.len() <= super::DATAGRAM_BYTES_MAX);
        let is_cut = self.island.contains(&from) != self.island.contains(&index(to));
        let is_cut = is_cut || [from, index(to)].iter().any(|node| self.cut_off.contains(node));
        if is_cut || self.rng.random_range(0..1_000) < self.loss {
            return;
        }
        self.sent += 1;
        let delay = Duration::from_micros(self.rng.random_range(500..3_000));
        self.in_flight.insert((self.now + delay, self.sent), (id(from), to, bytes));
    }

    /// Lets the next thing happen, at `end` at the latest.
    fn step(&mut self, end: Time) {
        let deadline = (0..self.nodes.len())
            .filter_map(|index| {
                let (due, _) = self.nodes[index].as_ref()?.deadline()?;
                Some((due.max(self.frozen_until[index]), index))
            })
            .min();
        let arrival = self.in_flight.first_key_value().map(|((at, _), _)| *at);
        match (arrival, deadline) {
            (Some(at), due) if at <= end && due.is_none_or(|(due, _)| at <= due) => {
                let (_, (from, to, bytes)) = self.in_flight.pop_first().unwrap();
                self.now = self.now.max(at);
                let thaw = self.frozen_until[index(to)];
                if thaw > at {
                    self.sent += 1;
                    self.in_flight.insert((thaw, self.sent), (from, to, bytes));
                } else {
                    self.input(index(to), Input::Datagram { from, bytes });
                }
            }
            (_, Some((due, index))) if due <= end => {
                self.now = self.now.max(due);
                self.input(index, Input::Tick);
            }
            _ => self.now = end,
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.step(end);
        }
    }

    /// Runs until `is_reached`, and returns how long it took.
    #[track_caller]
    fn run_until(
        &mut self,
        what: &str,
        limit: Duration,
        is_reached: impl Fn(&Self) -> bool,
    ) -> Duration {
        let start = self.now;
        while !is_reached(self) {
            assert!(self.now < start + limit, "after {limit:?} not yet: {what}");
            self.run(Duration::from_millis(50));
        }
        self.now.since(start)
    }

    fn alive_in(&self, index: usize) -> BTreeSet<usize> {
        let swim = self.swim(index);
        let others = swim.members().filter(|member| member.state.is_active());
        others.map(|member| super::tests::index(member.identity.node)).chain([index]).collect()
    }

    /// Returns whether all of `nodes` take exactly each other for alive.
    fn agrees_on(&self, nodes: impl IntoIterator<Item = usize> + Clone) -> bool {
        let expected: BTreeSet<usize> = nodes.clone().into_iter().collect();
        nodes.into_iter().all(|index| self.alive_in(index) == expected)
    }

    fn downs(&self) -> Vec<(usize, usize, bool)> {
        self.log
            .iter()
            .filter_map(|(_, by, effect)| match effect {
                Effect::Down { node, left } => Some((*by, index(*node), *left)),
                _ => None,
            })
            .collect()
    }
}

#[test]
fn five_nodes_find_each_other_within_seconds() {
    let mut cluster = Cluster::new(5, 1);
    (1..5).for_each(|index| cluster.find(index, 0));
    let took = cluster.run_until("all have joined", secs(5), |c| c.agrees_on(0..5));
    assert!(took <= secs(2), "{took:?}");
    assert!(cluster.downs().is_empty());
}

#[test]
fn fifty_nodes_join_in_spite_of_loss() {
    for seed in 0..3 {
        let mut cluster = Cluster::new(50, seed);
        cluster.loss = 100;
        (1..50).for_each(|index| cluster.find(index, 0));
        cluster.run_until("all have joined", secs(60), |c| c.agrees_on(0..50));
        assert!(cluster.downs().is_empty(), "seed {seed}: {:?}", cluster.downs());
    }
}

#[test]
fn sixty_that_start_at_once_know_each_other_within_seconds() {
    let mut cluster = Cluster::new(60, 1);
    (3..60).for_each(|index| cluster.find(index, index % 3));
    cluster.find(1, 0);
    cluster.find(2, 0);
    cluster.run_until("all know all", secs(20), |c| c.agrees_on(0..60));
    assert!(cluster.downs().is_empty(), "{:?}", cluster.downs());
    let differences =
        |c: &Cluster| (0..60).map(|index| c.swim(index).counters().differences).sum::<u64>();
    let before = differences(&cluster);
    cluster.run(secs(30));
    assert_eq!(differences(&cluster), before, "then there is nothing to tell");
}

#[test]
fn a_cut_that_is_shorter_than_a_suspicion_leaves_no_trace() {
    for seed in 0..12 {
        let mut cluster = Cluster::joined(40, seed);
        cluster.run(secs(5));
        cluster.island = (0..6).collect();
        cluster.run(secs(4));
        cluster.island.clear();
        cluster.run(secs(30));
        assert!(cluster.downs().is_empty(), "seed {seed}: {:?}", cluster.downs());
        let lives = (0..40).map(|index| cluster.swim(index).counters().rejoins).sum::<u64>();
        assert_eq!(lives, 0, "seed {seed}");
    }
}

#[test]
fn whoever_misses_one_hears_of_it_without_news() {
    let mut cluster = Cluster::joined(12, 3);
    cluster.run(secs(10));
    // Another life of one, of which one other alone has heard: nobody passes that on.
    let anew = Identity::new(id(5), address(5), START + 7);
    let swim = cluster.nodes[2].as_mut().unwrap();
    swim.take_over(cluster.now, std::iter::once(foca::Member::alive(anew)));
    let elsewhere = cluster.now + secs(60);
    cluster.frozen_until[5] = elsewhere;
    cluster.run_until("all have heard", secs(60), |c| {
        let knows = |by: usize| c.swim(by).member(id(5)).unwrap().identity == anew;
        (0..12).filter(|by| *by != 5).all(knows)
    });
}

#[test]
fn a_lost_greeting_is_repeated_until_joined() {
    let mut cluster = Cluster::new(2, 7);
    cluster.loss = 1_000;
    cluster.find(1, 0);
    cluster.run(secs(20));
    assert_eq!(cluster.swim(1).active_count(), 0);
    cluster.loss = 0;
    cluster.run_until("both have joined", secs(40), |c| c.agrees_on(0..2));
}

#[test]
fn in_a_cluster_of_three_a_crash_is_seen_by_all_within_eight_seconds() {
    for seed in 0..20 {
        let mut cluster = Cluster::joined(3, seed);
        cluster.run(secs(5));
        cluster.crash(2);
        let took = cluster.run_until("the crash is seen", secs(8), |c| c.agrees_on(0..2));
        assert!(took >= secs(4), "seed {seed}: no time for a defence, {took:?}");
        let mut downs = cluster.downs();
        downs.sort();
        assert_eq!(downs, [(0, 2, false), (1, 2, false)], "seed {seed}");
    }
}

#[test]
fn in_a_cluster_of_fifty_a_crash_is_seen_by_all_within_fifteen_seconds() {
    let mut cluster = Cluster::joined(50, 3);
    cluster.loss = 50;
    cluster.run(secs(5));
    cluster.crash(20);
    let others = (0..50).filter(|index| *index != 20);
    cluster.run_until("the crash is seen", secs(15), |c| c.agrees_on(others.clone()));
    assert!(cluster.downs().iter().all(|(_, node, left)| (*node, *left) == (20, false)));
}

#[test]
fn a_goodbye_is_heard_within_one_round_trip() {
    let mut cluster = Cluster::joined(50, 4);
    cluster.input(7, Input::Leave);
    assert_eq!(cluster.swim(7).deadline(), None);
    cluster.run(Duration::from_millis(3));
    let downs: BTreeSet<_> = cluster.downs().into_iter().collect();
    let expected: BTreeSet<_> =
        (0..50).filter(|index| *index != 7).map(|index| (index, 7, true)).collect();
    assert_eq!(downs, expected);
    assert_eq!(cluster.swim(0).member(id(7)).unwrap().state, State::Left);
}

#[test]
fn a_goodbye_that_few_have_heard_is_passed_on_as_such() {
    let mut cluster = Cluster::joined(20, 5);
    cluster.loss = 700;
    cluster.input(7, Input::Leave);
    cluster.loss = 0;
    cluster.run(secs(3));
    let downs: BTreeSet<_> = cluster.downs().into_iter().collect();
    assert_eq!(downs.len(), 19);
    assert!(downs.iter().all(|(_, node, left)| (*node, *left) == (7, true)), "{downs:?}");
}

#[test]
fn ten_percent_loss_for_ten_minutes_raises_no_false_alarm() {
    let mut cluster = Cluster::joined(10, 6);
    cluster.loss = 100;
    cluster.run(secs(600));
    assert!(cluster.downs().is_empty(), "{:?}", cluster.downs());
    let repeated: u64 = (0..10).map(|index| cluster.swim(index).counters().pings_repeated).sum();
    assert!(repeated > 100, "pings are repeated: {repeated}");
}

#[test]
fn a_cut_through_the_middle_heals() {
    for seed in 0..5 {
        let mut cluster = Cluster::joined(6, seed);
        cluster.island = (0..3).collect();
        cluster.run_until("both sides know", secs(30), |c| c.agrees_on(0..3) && c.agrees_on(3..6));
        cluster.island.clear();
        cluster.run_until("all are one again", secs(40), |c| c.agrees_on(0..6));
        cluster.run(secs(30));
        assert!(cluster.agrees_on(0..6), "seed {seed}: and it stays so");
    }
}

#[test]
fn a_node_cut_off_from_all_comes_back_without_a_restart() {
    for seed in 0..5 {
        let mut cluster = Cluster::joined(5, seed);
        cluster.island = BTreeSet::from([4]);
        cluster.run_until("it is alone", secs(60), |c| {
            c.agrees_on(0..4) && c.alive_in(4) == BTreeSet::from([4])
        });
        cluster.run(secs(300));
        cluster.island.clear();
        cluster.run_until("it is back", secs(45), |c| c.agrees_on(0..5));
        assert!(cluster.swim(4).me().generation > START, "seed {seed}: in a new life");
        assert_eq!(cluster.swim(0).me().generation, START, "seed {seed}: not so the many");
    }
}

#[test]
fn halves_whose_nodes_had_all_been_alone_before_heal() {
    for seed in 0..5 {
        let mut cluster = Cluster::joined(4, seed);
        // Each is cut off from all others until it is alone, and forgets its verdicts when the
        // other of its half speaks to it.
        cluster.cut_off = (0..4).collect();
        let is_alone = |cluster: &Cluster, index| cluster.alive_in(index).len() == 1;
        cluster.run_until("each is alone", secs(60), |c| (0..4).all(|i| is_alone(c, i)));
        cluster.cut_off.clear();
        cluster.island = (0..2).collect();
        cluster.run_until("two halves", secs(60), |c| c.agrees_on(0..2) && c.agrees_on(2..4));
        cluster.run(secs(60));
        cluster.island.clear();
        cluster.run_until("all are one again", secs(60), |c| c.agrees_on(0..4));
    }
}

#[test]
fn a_cut_that_outlasts_all_memory_heals_once_one_finds_one_of_the_others() {
    let config = Config { forget_after: secs(60), ..Config::default() };
    for seed in 0..3 {
        let mut cluster = Cluster::joined_with(config.clone(), 6, seed);
        cluster.island = (0..3).collect();
        cluster.run_until("both sides know", secs(30), |c| c.agrees_on(0..3) && c.agrees_on(3..6));
        cluster.run(secs(120));
        assert_eq!(cluster.swim(0).members().count(), 2, "the others are forgotten");
        cluster.island.clear();
        cluster.run(secs(120));
        assert!(cluster.agrees_on(0..3), "nothing is left to heal by");
        // The engine looks around among those that the configuration and the catalog name.
        cluster.find(1, 4);
        cluster.run_until("all are one again", secs(20), |c| c.agrees_on(0..6));
    }
}

#[test]
fn a_node_cut_off_from_a_large_cluster_takes_nobody_out_of_answers() {
    for seed in 0..3 {
        let mut cluster = Cluster::joined(20, seed);
        cluster.island = BTreeSet::from([4]);
        cluster.run(secs(120));
        let by_it = |cluster: &Cluster| cluster.downs().iter().filter(|down| down.0 == 4).count();
        assert_eq!(by_it(&cluster), 0, "seed {seed}");
        assert!(cluster.downs().iter().all(|(_, node, left)| (*node, *left) == (4, false)));
        cluster.island.clear();
        cluster.run_until("it is back", secs(45), |c| c.agrees_on(0..20));
        assert_eq!((by_it(&cluster), cluster.swim(4).held_back()), (0, 0), "seed {seed}");
    }
}

#[test]
fn a_restart_before_anyone_noticed_is_told_as_a_new_life() {
    let mut cluster = Cluster::joined(5, 8);
    cluster.crash(2);
    cluster.run(Duration::from_millis(300));
    cluster.start(2, START + 1_000);
    cluster.find(2, 0);
    let took = cluster.run_until("the new life is known", secs(3), |c| {
        c.agrees_on(0..5)
            && [0, 1, 3, 4]
                .iter()
                .all(|by| c.swim(*by).member(id(2)).unwrap().identity.generation == START + 1_000)
    });
    assert!(took <= secs(2), "{took:?}");
    assert!(cluster.downs().is_empty());
    let renewed = cluster.log.iter().filter(|(_, _, effect)| matches!(effect, Effect::Renewed(_)));
    assert_eq!(renewed.count(), 4);
}

#[test]
fn a_node_whose_clock_was_set_back_gets_in_again() {
    for before in [1_000, 86_400_000, 365 * 86_400_000] {
        let mut cluster = Cluster::joined(4, 9);
        cluster.crash(2);
        cluster.run(secs(20));
        cluster.start(2, START - before);
        cluster.find(2, 0);
        cluster.run_until("it is in", secs(240), |c| c.agrees_on(0..4));
    }
}

#[test]
fn who_was_stopped_for_a_minute_declares_nobody_dead() {
    for seed in 0..5 {
        let mut cluster = Cluster::joined(8, seed);
        cluster.run(Duration::from_millis(730));
        cluster.frozen_until[3] = cluster.now + secs(60);
        cluster.run(secs(120));
        assert!(cluster.downs().iter().all(|(_, node, _)| *node == 3), "{:?}", cluster.downs());
        assert!(cluster.agrees_on(0..8), "seed {seed}: and it is back");
        assert_eq!(cluster.swim(3).counters().stalls, 1);
    }
}

#[test]
fn a_short_stop_is_survived_by_defence() {
    let mut cluster = Cluster::joined(5, 2);
    for _ in 0..10 {
        cluster.frozen_until[1] = cluster.now + secs(3);
        cluster.run(secs(30));
    }
    assert!(cluster.downs().is_empty(), "{:?}", cluster.downs());
    assert!(cluster.swim(1).counters().suspected > 0, "it was suspected and objected");
    assert_eq!(cluster.swim(1).counters().rejoins, 0);
    assert_eq!(cluster.swim(1).me().generation, START);
}

#[test]
fn when_a_third_fails_at_once_verdicts_are_held_back() {
    let mut cluster = Cluster::joined(30, 11);
    (20..30).for_each(|index| cluster.crash(index));
    cluster.run(secs(60));
    assert!((0..20).all(|index| cluster.swim(index).held_back() > 0));
    let guards = cluster.log.iter().filter(|(_, _, e)| *e == Effect::Guard { on: true }).count();
    assert_eq!(guards, 20);
    cluster.run(secs(700));
    let told: BTreeSet<_> = cluster.downs().into_iter().collect();
    assert_eq!(told.len(), 20 * 10, "in the end each tells of each, once");
    assert_eq!(cluster.downs().len(), 20 * 10);
    assert!((0..20).all(|index| cluster.swim(index).held_back() == 0));
}

#[test]
fn two_processes_with_one_identity_are_reported_once_in_ten_seconds() {
    let mut cluster = Cluster::joined(3, 12);
    let elsewhere: SocketAddr = "10.9.9.9:7401".parse().unwrap();
    let clone = Identity::new(id(1), elsewhere, START + 5);
    for _ in 0..3 {
        let bytes = gossip(&cluster, 0, 1, foca::Member::alive(clone));
        cluster.input(1, Input::Datagram { from: id(0), bytes });
    }
    let told = cluster
        .log
        .iter()
        .filter(|(_, by, effect)| *by == 1 && *effect == Effect::Conflict { address: elsewhere });
    assert_eq!(told.count(), 1);
}

#[test]
fn who_prevails_over_a_rival_is_known_to_all_at_its_own_address_and_never_was_down() {
    let mut cluster = Cluster::joined(5, 12);
    let elsewhere: SocketAddr = "10.9.9.9:7401".parse().unwrap();
    cluster.elsewhere = Some(elsewhere);
    let rival = Identity::new(id(1), elsewhere, START + 60_000);
    let bytes = gossip(&cluster, 2, 0, foca::Member::alive(rival));
    cluster.input(0, Input::Datagram { from: id(2), bytes });
    let conflict = (1, Effect::Conflict { address: elsewhere });
    cluster.run_until("it hears of the rival", secs(5), |c| {
        c.log.iter().any(|(_, by, effect)| (*by, effect) == (conflict.0, &conflict.1))
    });
    cluster.input(1, Input::Prevail);
    assert!(cluster.swim(1).me().generation > START + 60_000);
    cluster.run_until("all see it where it is", secs(5), |c| {
        let sees = |by: usize| c.swim(by).member(id(1)).unwrap().identity.address == address(1);
        c.agrees_on(0..5) && [0, 2, 3, 4].into_iter().all(sees)
    });
    cluster.run(secs(30));
    assert!(cluster.agrees_on(0..5));
    assert!(cluster.downs().is_empty(), "{:?}", cluster.downs());
}

#[test]
fn a_former_life_with_a_clock_ahead_is_overtaken_at_once() {
    let mut cluster = Cluster::joined(3, 12);
    let former = Identity::new(id(1), address(1), START + 99_000_000);
    let bytes = gossip(&cluster, 0, 1, foca::Member::alive(former));
    cluster.input(1, Input::Datagram { from: id(0), bytes });
    assert_eq!(cluster.swim(1).me().generation, START + 99_000_001);
    assert!(!cluster.log.iter().any(|(_, _, effect)| matches!(effect, Effect::Conflict { .. })));
}

/// A datagram of gossip as `from` would send it to `to`.
fn gossip(cluster: &Cluster, from: usize, to: usize, update: foca::Member<Identity>) -> Bytes {
    let header = foca::Header {
        src: cluster.swim(from).me(),
        src_incarnation: 0,
        dst: cluster.swim(to).me(),
        message: foca::Message::Gossip,
    };
    let mut packet = Vec::new();
    Codec.encode_header(&header, &mut packet).unwrap();
    packet.extend_from_slice(&1u16.to_be_bytes());
    Codec.encode_member(&update, &mut packet).unwrap();
    super::codec::seal(&packet)
}

#[test]
fn whoever_tells_a_node_of_suspicion_is_told_at_once_that_it_is_there() {
    let mut cluster = Cluster::joined(3, 12);
    let accused = cluster.swim(1).me();
    let mut objects_to = |incarnation| {
        let suspect = foca::Member::new(accused, incarnation, foca::State::Suspect);
        let bytes = super::codec::members(&[suspect]).remove(0);
        let sent = cluster.sent;
        cluster.input(1, Input::Datagram { from: id(2), bytes });
        let of_now = cluster.in_flight.iter().filter(|((_, number), _)| *number > sent);
        let to_accuser = of_now.filter(|(_, (from, to, _))| (*from, *to) == (id(1), id(2)));
        let objections = to_accuser.filter_map(|(_, (_, _, bytes))| {
            let (super::codec::Datagram::Members(members), _) = super::codec::open(bytes).unwrap()
            else {
                return None;
            };
            (members.len() == 1 && members[0].state() == foca::State::Alive)
                .then(|| members[0].incarnation())
        });
        objections.collect::<Vec<u16>>()
    };
    assert_eq!(objects_to(0), [1]);
    assert_eq!(objects_to(0), [1], "it has objected before, and somebody has not heard of it");
    assert_eq!(objects_to(1), [2]);
    let bytes = super::codec::members(&[foca::Member::new(accused, 2, foca::State::Suspect)]);
    cluster.input(0, Input::Datagram { from: id(2), bytes: bytes[0].clone() });
    cluster.run(secs(30));
    assert!(cluster.downs().is_empty(), "{:?}", cluster.downs());
}

#[test]
fn who_claims_to_be_another_than_the_certificate_says_is_not_heard() {
    let mut cluster = Cluster::joined(2, 13);
    let bytes = super::codec::leaving(&cluster.swim(1).me());
    cluster.input(0, Input::Datagram { from: id(5), bytes });
    assert_eq!(cluster.swim(0).active_count(), 1);
    assert_eq!(cluster.swim(0).counters().forged, 1);
    cluster.input(0, Input::Datagram { from: id(1), bytes: Bytes::from_static(&[1, 0, 7]) });
    assert_eq!(cluster.swim(0).counters().malformed, 1);
}

#[test]
fn the_same_seed_gives_the_same_story() {
    let story = |seed| {
        let mut cluster = Cluster::joined(12, seed);
        cluster.loss = 200;
        cluster.run(secs(30));
        cluster.crash(3);
        cluster.run(secs(30));
        (cluster.sent, cluster.log)
    };
    assert_eq!(story(21), story(21));
    assert_ne!(story(21).0, story(22).0);
}
