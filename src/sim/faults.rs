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
    /// Everybody reaches everybody again.
    Heal,
    /// The disk fails everything it is asked.
    DiskFails(NodeIndex),
    /// The disk works again.
    DiskWorks(NodeIndex),
    /// A row changes on the disk past all that writes: one value of it, or it is gone. `is_kept`: the
    /// fingerprint that is kept follows, as if a merge had gone wrong.
    Damage { node: NodeIndex, nth: usize, loses_row: bool, is_kept: bool },
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
