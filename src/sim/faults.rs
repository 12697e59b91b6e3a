//! What goes wrong, and when: drawn from the seed. Each seed first draws which kinds of trouble
//! there are at all, so that rare combinations come up.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::NodeIndex;
use crate::types::Time;

/// One piece of trouble, or its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The process ends at once. What its disk had not confirmed is lost.
    Crash(NodeIndex),
    /// The process starts again on what is on disk.
    Restart(NodeIndex),
    /// An image of the disk is put away, for a later [`Fault::Restore`].
    Image(NodeIndex),
    /// The process, which crashed, starts again on the image, with a new epoch.
    Restore(NodeIndex),
    /// The process, which crashed, starts again on an empty disk, with a new epoch.
    Wipe(NodeIndex),
    /// The process, which crashed, starts again on the image, and nobody notices: a virtual
    /// machine was rolled back. It confirms its head with its peers before it writes.
    RollBack(NodeIndex),
    /// The operator tells a node that another will not return.
    Forget(NodeIndex, NodeIndex),
    /// Only nodes of the same side reach each other.
    Partition(Vec<u8>),
    /// Nodes of side 0 do not hear those of side 1, who hear them. Nobody is told: others vouch for
    /// both.
    Deafen(Vec<u8>),
    /// Everybody reaches everybody again. Clogged links stay clogged.
    Heal,
    /// What the first sends to the second is held.
    Clog(NodeIndex, NodeIndex),
    /// What was held comes at once.
    Unclog(NodeIndex, NodeIndex),
    /// What was held is lost, as by a connection that is given up.
    Cut(NodeIndex, NodeIndex),
    /// The disk fails everything it is asked.
    DiskFails(NodeIndex),
    /// The disk is full: it refuses every write, and can be read.
    DiskFills(NodeIndex),
    /// The disk takes so many times its time.
    DiskSlows(NodeIndex, u32),
    /// The disk works again, and is as fast as it was.
    DiskWorks(NodeIndex),
    /// A row changes on the disk past all that writes: one value of it, or it is gone. `is_kept`: the
    /// fingerprint that is kept follows, as if a merge had gone wrong.
    Damage { node: NodeIndex, nth: usize, loses_row: bool, is_kept: bool },
    /// The process is stopped: nothing happens to it, and all that would have waits.
    Freeze(NodeIndex),
    /// The process goes on, and all that waited happens at once.
    Thaw(NodeIndex),
    /// The wall clock jumps by so many seconds.
    ClockJumps(NodeIndex, i64),
    /// The node gets the tables and columns that others have had before.
    SchemaGrows(NodeIndex),
}

/// The kinds of trouble of a large cluster. Each seed has some of them, and seldom all: trouble of
/// one kind hides what another does.
#[derive(Clone, Copy, Debug)]
struct Kinds {
    crashes: bool,
    lost_disks: bool,
    roll_backs: bool,
    partition: bool,
    flapping: bool,
    deafness: bool,
    clogs: bool,
    bad_disks: bool,
    full_disks: bool,
    slow_disks: bool,
    freezes: bool,
    clocks: bool,
}

impl Kinds {
    fn draw(rng: &mut SmallRng) -> Self {
        let likely = [0.25, 0.5][rng.random_range(0..2)];
        let mut is_there = || rng.random_bool(likely);
        let kinds = Self {
            crashes: is_there(),
            lost_disks: is_there(),
            roll_backs: is_there(),
            partition: is_there(),
            flapping: is_there(),
            deafness: is_there(),
            clogs: is_there(),
            bad_disks: is_there(),
            full_disks: is_there(),
            slow_disks: is_there(),
            freezes: is_there(),
            clocks: is_there(),
        };
        // A machine that was rolled back asks two peers. Where these are cut off from those that
        // know better it takes a name twice: see "What survives what" in ARCHITECTURE.md.
        let is_divided = kinds.partition || kinds.flapping || kinds.deafness || kinds.clogs;
        Self { roll_backs: kinds.roll_backs && !is_divided, ..kinds }
    }
}

/// Draws a schedule of trouble for a cluster of `nodes`, all of it over by `end`.
pub(super) fn draw(rng: &mut SmallRng, nodes: usize, end: Time) -> Vec<(Time, Fault)> {
    let mut faults = Vec::new();
    if rng.random_bool(0.5) {
        for _ in 0..rng.random_range(1..4) {
            draw_crash(rng, nodes, end, &mut faults);
        }
    }
    if rng.random_bool(0.5) {
        let (from, to) = draw_span(rng, end);
        let sides = rng.random_range(2..4);
        let sides = (0..nodes).map(|_| rng.random_range(0..sides)).collect();
        faults.push((from, Fault::Partition(sides)));
        faults.push((to, Fault::Heal));
    }
    if rng.random_bool(0.3) {
        let node = NodeIndex(rng.random_range(0..nodes));
        let (from, to) = draw_span(rng, end);
        faults.push((from, Fault::DiskFails(node)));
        faults.push((to, Fault::DiskWorks(node)));
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}

/// Draws nodes that are away for longer than others wait for them, beside other trouble.
pub(super) fn draw_absences(rng: &mut SmallRng, nodes: usize, end: Time) -> Vec<(Time, Fault)> {
    let mut faults = draw(rng, nodes, end);
    for _ in 0..rng.random_range(0..3) {
        let node = NodeIndex(rng.random_range(0..nodes));
        let from = rng.random_range(end.0 / 10..end.0 / 2);
        let to = from + rng.random_range(end.0 / 10..end.0 / 2);
        faults.push((Time(from), Fault::Crash(node)));
        let image = Time(rng.random_range(from / 2..from));
        match rng.random_range(0..6) {
            0 | 1 => {
                faults.push((image, Fault::Image(node)));
                faults.push((Time(to), Fault::Restore(node)));
            }
            2 => faults.push((Time(to), Fault::Wipe(node))),
            _ => faults.push((Time(to), Fault::Restart(node))),
        }
        if rng.random_bool(0.4) {
            let at = Time(rng.random_range(from..to));
            faults.push((at, Fault::Forget(NodeIndex(rng.random_range(0..nodes)), node)));
        }
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}

/// Draws trouble of all kinds for a cluster of many nodes between `start` and `end`. Of each kind
/// that there is it befalls one node, or up to a tenth of all.
pub(super) fn draw_mixed(
    rng: &mut SmallRng,
    nodes: usize,
    (start, end): (Time, Time),
) -> Vec<(Time, Fault)> {
    let kinds = Kinds::draw(rng);
    let mut draw = Mixed { rng, nodes, start: start.0, end: end.0, faults: Vec::new() };
    type Befalls = fn(&mut Mixed<'_>, NodeIndex);
    let per_node: [(bool, Befalls); 9] = [
        (kinds.crashes, |draw, node| draw.crash(node)),
        (kinds.lost_disks, |draw, node| draw.lose_disk(node)),
        (kinds.roll_backs, |draw, node| draw.roll_back(node)),
        (kinds.clogs, |draw, node| draw.clog_around(node)),
        (kinds.bad_disks, |draw, node| draw.disk(Fault::DiskFails(node), node)),
        (kinds.full_disks, |draw, node| draw.disk(Fault::DiskFills(node), node)),
        (kinds.slow_disks, |draw, node| draw.slow_disk(node)),
        (kinds.freezes, |draw, node| draw.freeze(node)),
        (kinds.clocks, |draw, node| draw.jump(node)),
    ];
    for (_, befall) in per_node.into_iter().filter(|(is_there, _)| *is_there) {
        for node in draw.some_nodes() {
            befall(&mut draw, node);
        }
    }
    if kinds.partition {
        draw.partition();
    }
    if kinds.flapping {
        draw.flap();
    }
    if kinds.deafness {
        draw.deafen();
    }
    let mut faults = draw.faults;
    faults.sort_by_key(|(at, _)| *at);
    faults
}

/// Draws trouble of one kind after the other.
struct Mixed<'a> {
    rng: &'a mut SmallRng,
    nodes: usize,
    start: u64,
    end: u64,
    faults: Vec<(Time, Fault)>,
}

impl Mixed<'_> {
    fn some_nodes(&mut self) -> Vec<NodeIndex> {
        let most = [1, (self.nodes / 10).max(1)][self.rng.random_range(0..2)];
        let count = self.rng.random_range(1..=most);
        (0..count).map(|_| self.any_node()).collect()
    }

    fn any_node(&mut self) -> NodeIndex {
        NodeIndex(self.rng.random_range(0..self.nodes))
    }

    /// Draws a span: short ones are as frequent as long ones.
    fn span(&mut self) -> (u64, u64) {
        let from = self.rng.random_range(self.start..self.end);
        let longest = [300_000, 2_000_000, 8_000_000][self.rng.random_range(0..3)];
        let longest = longest.min(self.end - from);
        (from, from + self.rng.random_range(0..=longest))
    }

    fn enter(&mut self, at: u64, fault: Fault) {
        self.faults.push((Time(at), fault));
    }

    fn crash(&mut self, node: NodeIndex) {
        // Some crash again and again.
        for _ in 0..[1, 1, 4][self.rng.random_range(0..3)] {
            let (from, to) = self.span();
            self.enter(from, Fault::Crash(node));
            self.enter(to, Fault::Restart(node));
        }
    }

    fn lose_disk(&mut self, node: NodeIndex) {
        let (from, to) = self.span();
        self.enter(from, Fault::Crash(node));
        if self.rng.random_bool(0.5) {
            let image = self.rng.random_range(self.start / 2..=from);
            self.enter(image, Fault::Image(node));
            self.enter(to, Fault::Restore(node));
        } else {
            self.enter(to, Fault::Wipe(node));
        }
    }

    fn roll_back(&mut self, node: NodeIndex) {
        let (from, to) = self.span();
        let image = self.rng.random_range(self.start / 2..=from);
        self.enter(image, Fault::Image(node));
        self.enter(from, Fault::Crash(node));
        // What it said before is everywhere by then.
        self.enter(to + 3_000_000, Fault::RollBack(node));
    }

    /// Clogs links of a node one after the other, and frees them in another order.
    fn clog_around(&mut self, node: NodeIndex) {
        let (from, to) = self.span();
        for _ in 0..self.rng.random_range(1..=8) {
            let other = self.any_node();
            let (a, b) = if self.rng.random_bool(0.5) { (node, other) } else { (other, node) };
            let ends = if self.rng.random_bool(0.5) { Fault::Unclog } else { Fault::Cut };
            let at = self.rng.random_range(from..=to);
            self.enter(at, Fault::Clog(a, b));
            let until = self.rng.random_range(at..=to);
            self.enter(until, ends(a, b));
        }
    }

    fn disk(&mut self, fault: Fault, node: NodeIndex) {
        let (from, to) = self.span();
        self.enter(from, fault);
        self.enter(to, Fault::DiskWorks(node));
    }

    fn slow_disk(&mut self, node: NodeIndex) {
        let factor = [10, 100, 1_000][self.rng.random_range(0..3)];
        self.disk(Fault::DiskSlows(node, factor), node);
    }

    fn freeze(&mut self, node: NodeIndex) {
        let (from, to) = self.span();
        self.enter(from, Fault::Freeze(node));
        self.enter(to, Fault::Thaw(node));
    }

    fn jump(&mut self, node: NodeIndex) {
        let (at, _) = self.span();
        let seconds = self.rng.random_range(-18_000..18_000);
        self.enter(at, Fault::ClockJumps(node, seconds));
    }

    fn sides(&mut self) -> Vec<u8> {
        let share = [0.05, 0.3, 0.5][self.rng.random_range(0..3)];
        (0..self.nodes).map(|_| u8::from(self.rng.random_bool(share))).collect()
    }

    fn partition(&mut self) {
        let (from, to) = self.span();
        let sides = self.sides();
        self.enter(from, Fault::Partition(sides));
        self.enter(to, Fault::Heal);
    }

    fn deafen(&mut self) {
        let (from, to) = self.span();
        let sides = self.sides();
        self.enter(from, Fault::Deafen(sides));
        self.enter(to, Fault::Heal);
    }

    /// The same partition comes and goes, faster and slower than anybody notices.
    fn flap(&mut self) {
        let (mut at, to) = self.span();
        let sides = self.sides();
        let pause = [20_000, 200_000, 1_500_000][self.rng.random_range(0..3)];
        for _ in 0..12 {
            self.enter(at, Fault::Partition(sides.clone()));
            at += self.rng.random_range(1..=pause);
            self.enter(at, Fault::Heal);
            at += self.rng.random_range(1..=pause);
            if at >= to {
                break;
            }
        }
    }
}

fn draw_crash(rng: &mut SmallRng, nodes: usize, end: Time, faults: &mut Vec<(Time, Fault)>) {
    let node = NodeIndex(rng.random_range(0..nodes));
    let (from, to) = draw_span(rng, end);
    faults.push((from, Fault::Crash(node)));
    match rng.random_range(0..10) {
        0..3 => {
            faults.push((Time(rng.random_range(0..from.0)), Fault::Image(node)));
            faults.push((to, Fault::Restore(node)));
        }
        3 | 4 => faults.push((to, Fault::Wipe(node))),
        _ => faults.push((to, Fault::Restart(node))),
    }
}

fn draw_span(rng: &mut SmallRng, end: Time) -> (Time, Time) {
    let from = rng.random_range(end.0 / 20..end.0 * 3 / 4);
    // Some trouble is over before anybody notices it.
    let longest = if rng.random_bool(0.3) {
        Duration::from_millis(300).as_micros() as u64
    } else {
        end.0 - from
    };
    (Time(from), Time(from + rng.random_range(1..longest.min(end.0 - from))))
}
