//! What was counted while changes travelled.

use std::collections::BTreeMap;
use std::time::Duration;

use super::NodeIndex;
use super::travel::Travel;
use crate::replica::Stats;
use crate::types::{Time, Version};
use crate::wire::Message;

/// What a packet costs beside its payload: the headers of IP and UDP, of QUIC (flags, the peer's id, a
/// number, the seal) and of the piece of a stream in it.
const PACKET_BYTES: usize = 28 + (1 + 8 + 2 + 16) + 6;

/// How much of a stream fits into a packet.
const PACKET_ROOM: usize = 1_200 - 33;

/// What a packet costs that only acknowledges others.
const ACK_BYTES: usize = 28 + (1 + 8 + 2 + 16) + 6;

/// How long a receiver waits for something to send along with an acknowledgement of a single packet.
/// Two are acknowledged at once.
const ACK_WAIT: Duration = Duration::from_millis(25);

/// What it cost, and how long it took.
#[derive(Clone, Debug, Default)]
pub struct Passage {
    pub nodes: usize,
    pub changes: usize,
    /// Payloads that arrived, pushed or pulled, for each change and each node that did not write it.
    pub copies: f64,
    /// Bytes of frames sent, for each change and each such node: payloads, and everything else.
    pub payload_bytes: f64,
    pub control_bytes: f64,
    /// The same with the headers of packets, and with acknowledgements.
    pub wire_bytes: f64,
    /// Bytes of frames that a node sent a second while changes were written: the mean, and of the
    /// node that sent most.
    pub sent_per_second: [f64; 2],
    /// Until a change was on the disk of every node that lived to the end: median, 99th of a
    /// hundred, longest.
    pub to_all: [Duration; 3],
    /// The same for each node by itself.
    pub to_each: [Duration; 3],
    /// Pairs of a change and a node that it did not reach.
    pub unreached: usize,
    /// What all replicas that lived to the end counted, over the whole run.
    pub takes_again: u64,
    pub pulls: u64,
}

/// The counts as they rise.
pub(super) struct Tally {
    nodes: usize,
    is_counting: bool,
    begun: Time,
    wrote_for: Duration,
    arrived: u64,
    payload_bytes: u64,
    control_bytes: u64,
    wire_bytes: u64,
    sent: Vec<u64>,
    /// The counted changes, by writer and version: when, and when each node held it.
    changes: BTreeMap<(NodeIndex, Version), usize>,
    committed: Vec<Time>,
    held: Vec<Vec<Option<u32>>>,
    /// Packets that a node has yet to acknowledge to another, and since when.
    owed: BTreeMap<(NodeIndex, NodeIndex), (u32, Time)>,
}

impl Tally {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            nodes,
            is_counting: false,
            begun: Time(0),
            wrote_for: Duration::ZERO,
            arrived: 0,
            payload_bytes: 0,
            control_bytes: 0,
            wire_bytes: 0,
            sent: vec![0; nodes],
            changes: BTreeMap::new(),
            committed: Vec::new(),
            held: Vec::new(),
            owed: BTreeMap::new(),
        }
    }

    pub(super) fn begin(&mut self, now: Time) {
        (self.is_counting, self.begun) = (true, now);
    }

    pub(super) fn end_of_writes(&mut self, now: Time) {
        self.wrote_for = now.since(self.begun);
    }

    pub(super) fn on_sent(
        &mut self,
        (from, to): (NodeIndex, NodeIndex),
        now: Time,
        message: &Message,
        bytes: usize,
        is_first: bool,
    ) {
        if !self.is_counting {
            return;
        }
        match is_payload(message) {
            true => self.payload_bytes += bytes as u64,
            false => self.control_bytes += bytes as u64,
        }
        if self.wrote_for.is_zero() {
            self.sent[from.0] += bytes as u64;
        }
        // What is said to one peer in one turn shares a packet.
        let packets = bytes / PACKET_ROOM + usize::from(is_first);
        self.wire_bytes += (bytes + packets * PACKET_BYTES) as u64;
        self.acknowledge((from, to), now, false);
        self.owed.remove(&(from, to));
    }

    pub(super) fn on_received(
        &mut self,
        (from, to): (NodeIndex, NodeIndex),
        now: Time,
        message: &Message,
        _bytes: usize,
    ) {
        if !self.is_counting {
            return;
        }
        self.arrived += match message {
            Message::Push { .. } => 1,
            Message::Pulled { piece, .. } => piece.changesets.len() as u64,
            _ => 0,
        };
        self.acknowledge((to, from), now, false);
        let owed = self.owed.entry((to, from)).or_insert((0, now));
        owed.0 += 1;
        self.acknowledge((to, from), now, true);
    }

    /// Counts an acknowledgement that has left since.
    fn acknowledge(&mut self, pair: (NodeIndex, NodeIndex), now: Time, is_new: bool) {
        let Some((packets, since)) = self.owed.get(&pair).copied() else { return };
        if (is_new && packets >= 2) || now.since(since) >= ACK_WAIT {
            self.owed.remove(&pair);
            self.wire_bytes += ACK_BYTES as u64;
        }
    }

    pub(super) fn on_committed(
        &mut self,
        now: Time,
        node: NodeIndex,
        version: Version,
        is_counted: bool,
    ) {
        if !is_counted {
            return;
        }
        self.changes.insert((node, version), self.committed.len());
        self.committed.push(now);
        let mut held = vec![None; self.nodes];
        held[node.0] = Some(0);
        self.held.push(held);
    }

    pub(super) fn on_held(
        &mut self,
        now: Time,
        node: NodeIndex,
        writer: NodeIndex,
        version: Version,
    ) {
        let Some(change) = self.changes.get(&(writer, version)).copied() else { return };
        let micros = now.since(self.committed[change]).as_micros();
        self.held[change][node.0] = Some(u32::try_from(micros).unwrap_or(u32::MAX));
    }

    pub(super) fn passage(
        mut self,
        travel: &Travel,
        alive: &[bool],
        stats: impl Iterator<Item = Stats>,
    ) -> Passage {
        self.wire_bytes += (self.owed.len() * ACK_BYTES) as u64;
        let changes = self.committed.len();
        let mut passage = Passage { nodes: travel.nodes, changes, ..Passage::default() };
        let (mut to_all, mut to_each) = (Vec::new(), Vec::new());
        for held in &self.held {
            let alive = held.iter().zip(alive).filter(|(_, is_alive)| **is_alive);
            let times: Vec<u32> = alive.clone().filter_map(|(held, _)| *held).collect();
            passage.unreached += alive.count() - times.len();
            to_all.extend(times.iter().max());
            to_each.extend(times.into_iter().filter(|micros| *micros > 0));
        }
        let living = alive.iter().filter(|is_alive| **is_alive).count();
        let deliveries = (changes * (living - 1)).max(1) as f64;
        passage.copies = self.arrived as f64 / deliveries;
        passage.payload_bytes = self.payload_bytes as f64 / deliveries;
        passage.control_bytes = self.control_bytes as f64 / deliveries;
        passage.wire_bytes = self.wire_bytes as f64 / deliveries;
        let seconds = self.wrote_for.as_secs_f64().max(0.001);
        let mean = self.sent.iter().sum::<u64>() as f64 / self.nodes as f64;
        let most = self.sent.iter().max().copied().unwrap_or(0) as f64;
        passage.sent_per_second = [mean / seconds, most / seconds];
        passage.to_all = quantiles(to_all);
        passage.to_each = quantiles(to_each);
        for stats in stats {
            passage.takes_again += stats.takes_again;
            passage.pulls += stats.pulls;
        }
        passage
    }
}

fn is_payload(message: &Message) -> bool {
    matches!(message, Message::Push { .. } | Message::Pulled { .. })
}

fn quantiles(mut micros: Vec<u32>) -> [Duration; 3] {
    micros.sort_unstable();
    [0.5, 0.99, 1.0].map(|share| {
        let place = (micros.len() as f64 * share) as usize;
        let place = place.min(micros.len().saturating_sub(1));
        Duration::from_micros(u64::from(micros.get(place).copied().unwrap_or(0)))
    })
}
