//! Carrying out what goes wrong with links, disks, clocks and processes that stand still; and what
//! goes wrong on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::check::{Checked, Shown};
use super::links::Links;
use super::mistakes::{self, Mutation};
use super::workload::{self, Schema};
use super::{Cluster, Event, Fault, Job, NodeIndex};
use crate::crdt::{Batch, Piece};
use crate::replica::BatchId;
use crate::types::NodeId;
use crate::wire::{self, DecodeError, Message};

/// What is wrong at present, beside what nodes and the network know of themselves.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    links: Links<Event>,
    /// What waits for processes that stand still.
    frozen: BTreeMap<NodeIndex, Vec<Event>>,
}

impl Event {
    /// Returns the node whose process it happens to.
    fn process(&self) -> Option<NodeIndex> {
        match self {
            Self::Wake { node, .. }
            | Self::Deliver { to: node, .. }
            | Self::Tell { node, .. }
            | Self::DiskDone { node, .. }
            | Self::DiskRead { node, .. }
            | Self::DiskLook { node, .. }
            | Self::Learn { node, .. }
            | Self::Repeat { node, .. }
            | Self::SwimWake { node, .. }
            | Self::TellSwim { node, .. }
            | Self::Datagram { to: node, .. }
            | Self::Write { node, .. } => Some(*node),
            Self::Synced { .. } | Self::Look | Self::Trouble(_) => None,
        }
    }
}

/// Trouble of single nodes and links.
impl Cluster<'_> {
    /// Carries out what befalls links, clocks, disks and processes. Returns what is none of it.
    pub(super) fn trouble_of_one(&mut self, fault: Fault) -> Option<Fault> {
        match fault {
            Fault::Deafen(sides) => {
                self.note(NodeIndex(0), "and others: some do not hear others", None, 0);
                self.troubles.links.deafen(&sides);
            }
            Fault::Clog(from, to) => {
                self.note(from, "cannot get through to", Some(to), 0);
                self.troubles.links.clog(from, to);
            }
            Fault::Unclog(from, to) => {
                self.note(from, "gets through again to", Some(to), 0);
                for held in self.troubles.links.free(from, to) {
                    self.agenda.enter(self.now, held);
                }
            }
            Fault::Cut(from, to) => {
                let held = self.troubles.links.free(from, to);
                self.note(from, "lost what it sent to", Some(to), held.len() as u64);
                if !held.is_empty() && self.network.loss_is_noticed() {
                    let peer = self.nodes[to.0].id;
                    self.overruns(from, peer);
                }
            }
            Fault::DiskFills(node) => {
                self.note(node, "its disk is full", None, 0);
                self.nodes[node.0].disk.is_full = true;
            }
            Fault::DiskSlows(node, factor) => {
                self.note(node, "its disk is slow", None, u64::from(factor));
                self.nodes[node.0].disk.slowness = factor;
            }
            Fault::Freeze(node) => {
                if self.nodes[node.0].replica.is_some() {
                    self.note(node, "stands still", None, 0);
                    self.nodes[node.0].is_frozen = true;
                }
            }
            Fault::Thaw(node) => self.thaw(node),
            Fault::ClockJumps(node, seconds) => {
                self.note(node, "its clock jumps", None, seconds.unsigned_abs());
                let ahead = &mut self.nodes[node.0].clock_ahead;
                *ahead = ahead.saturating_add_signed(seconds * 1_000_000);
            }
            Fault::SchemaGrows(node) => self.grow_schema(node),
            other => return Some(other),
        }
        None
    }

    /// Everybody hears everybody again.
    pub(super) fn heal_links(&mut self) {
        self.troubles.links.heal();
    }

    /// Puts an event aside whose process stands still.
    pub(super) fn unless_frozen(&mut self, event: Event) -> Option<Event> {
        match event.process().filter(|node| self.nodes[node.0].is_frozen) {
            Some(node) => {
                self.troubles.frozen.entry(node).or_default().push(event);
                None
            }
            None => Some(event),
        }
    }

    fn thaw(&mut self, node: NodeIndex) {
        if !std::mem::take(&mut self.nodes[node.0].is_frozen) {
            return;
        }
        self.note(node, "goes on", None, 0);
        for event in self.troubles.frozen.remove(&node).unwrap_or_default() {
            match event {
                Event::Wake { .. } => self.nodes[node.0].wake_at = Some(self.now),
                Event::SwimWake { .. } => self.nodes[node.0].swim_wake_at = Some(self.now),
                _ => {}
            }
            self.agenda.enter(self.now, event);
        }
    }

    /// A process that stood still has ended: what waited for it is nobody's.
    pub(super) fn bury_frozen(&mut self, node: NodeIndex) {
        self.nodes[node.0].is_frozen = false;
        for event in self.troubles.frozen.remove(&node).unwrap_or_default() {
            // Clients come back, and so does the disk.
            if let Event::Write { .. } = event {
                self.agenda.enter(self.now, event);
            }
        }
    }

    /// Sends an event over a link, as far as the link carries it. Returns it when it does.
    pub(super) fn over_link(
        &mut self,
        from: NodeIndex,
        to: NodeIndex,
        event: Event,
    ) -> Option<Event> {
        if !self.troubles.links.carries(from, to) {
            if self.network.loss_is_noticed() {
                let peer = self.nodes[to.0].id;
                self.overruns(from, peer);
            }
            return None;
        }
        if self.troubles.links.is_clogged(from, to) {
            self.troubles.links.hold(from, to, event);
            return None;
        }
        Some(event)
    }
}

/// Releases.
impl Cluster<'_> {
    pub(super) fn is_of_a_later_release(&self, node: NodeIndex) -> bool {
        self.scenario.is_upgrading && node.0 % 2 == 1
    }

    /// Adds to a message what a later release may: fields behind those that there are, and messages of
    /// other kinds beside it. Returns what is read of it here.
    ///
    /// # Errors
    /// This release does not pass over it.
    pub(super) fn add_what_is_not_known_here(
        &self,
        bytes: &mut Vec<u8>,
    ) -> Result<Message, String> {
        let known = bytes.len();
        // By a lot of its own: all else happens as it would without.
        let mut rng = SmallRng::seed_from_u64(self.now.0 ^ known as u64);
        bytes.extend((0..rng.random_range(1..40)).map(|_| rng.random::<u8>()));
        let kind = rng.random_range(200..=u8::MAX);
        let other = [&[bytes[0], kind], &bytes[2..]].concat();
        if wire::read(&other) != Err(DecodeError::UnknownKind(kind)) {
            return Err(format!("a message of kind {kind} is not passed over"));
        }
        match wire::read(bytes) {
            Ok((message, left)) if left == bytes.len() - known => Ok(message),
            read => Err(format!("what a later release adds is not passed over: {read:?}")),
        }
    }
}

/// Schemas.
impl Cluster<'_> {
    /// Deals out the schemas that nodes begin with.
    pub(super) fn first_schema(&self, node: NodeIndex) -> Schema {
        match node.0 % 4 {
            _ if !self.scenario.is_skewed => Schema::Whole,
            1 => Schema::Old,
            2 => Schema::Half,
            _ => Schema::Whole,
        }
    }

    fn grow_schema(&mut self, node: NodeIndex) {
        self.note(node, "gets the tables that others have", None, 0);
        self.nodes[node.0].schema = Schema::Whole;
        self.define(node);
    }

    /// Brings the tables on a disk to what the node's program knows.
    pub(super) fn define(&mut self, node: NodeIndex) {
        let this = &mut self.nodes[node.0];
        let now = this.wall(self.now);
        for definition in workload::definitions(this.schema) {
            // A disk that has more already is that of a later program.
            drop(this.storage.define(now, &definition));
        }
    }
}

/// What is done wrongly.
impl Cluster<'_> {
    /// A node adds to its own commits a row of somebody else.
    pub(super) fn forge(&self, from: NodeIndex, message: &mut Message) {
        if self.scenario.forger == Some(from) {
            let victim = NodeIndex((from.0 + 1) % self.scenario.nodes);
            mistakes::forge(message, self.nodes[victim.0].id);
        }
    }

    /// Something did not arrive: a sender without a budget does not leave it at that.
    pub(super) fn repeat_without_budget(
        &mut self,
        from: NodeIndex,
        to: NodeId,
        message: &Arc<Message>,
    ) {
        if self.scenario.mutation == Some(Mutation::RetryWithoutBudget) {
            let (at, life) = (self.now + mistakes::RETRY_AFTER, self.nodes[from.0].life);
            let message = Arc::clone(message);
            self.agenda.enter(at, Event::Repeat { node: from, life, to, message });
        }
    }

    /// Applies at once what came early.
    pub(super) fn apply_out_of_order(&mut self, to: NodeIndex, message: &Message) {
        if self.scenario.mutation == Some(Mutation::AppliedOutOfOrder)
            && let Some(batch) = mistakes::out_of_order(&self.nodes[to.0], message)
        {
            self.add_job(to, Job::Apply { id: BatchId(u64::MAX), batch });
        }
    }

    /// Begins to write without a sync.
    pub(super) fn put_off_sync(&mut self, node: NodeIndex, batch: Option<&Batch>) {
        let this = &mut self.nodes[node.0];
        let now = this.wall(self.now);
        if mistakes::put_off_sync(self.scenario.mutation, this, now, batch) {
            let (at, life) = (self.now + mistakes::SYNC_LATE, this.life);
            self.agenda.enter(at, Event::Synced { node, life });
        }
    }

    /// Reads from its disk what a node shows of owned rows.
    pub(super) fn read_shown(&mut self, node: NodeIndex) {
        let this = &self.nodes[node.0];
        // Of all others it holds nothing, unless it has given up its heads and kept the rows.
        let owners: BTreeSet<NodeId> = match this.is_rejoining() {
            true => self.nodes.iter().map(|node| node.id).collect(),
            false => this.heads.keys().map(|origin| origin.node).collect(),
        };
        let shown = Shown::read_all(this, owners.into_iter());
        self.nodes[node.0].shown = shown;
    }
}

/// What is checked of all that is sent.
impl Cluster<'_> {
    pub(super) fn what_is_told_is_true(&self, from: NodeIndex, message: &Message) -> Checked {
        match message {
            Message::Push { piece, .. } => {
                self.truths.what_travels_was_committed(from, piece, true)
            }
            Message::Pulled { piece, .. } => {
                self.truths.what_travels_was_committed(from, piece, false)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn is_within_budget(
        &mut self,
        from: NodeIndex,
        message: &Message,
        bytes: usize,
        receivers: usize,
    ) -> Checked {
        let this = &self.nodes[from.0];
        let (process, config) = ((from, this.life), &self.scenario.replica);
        let said = (message, bytes, receivers);
        self.budget.on_sent(self.now, process, said, (config, this.set_aside))
    }

    /// A node got an answer to a want: what is new to it gives it the right to ask again.
    pub(super) fn note_answer(&mut self, to: NodeIndex, piece: &Piece) {
        let this = &self.nodes[to.0];
        if piece.through > this.head(piece.origin) || !piece.changesets.is_empty() {
            self.budget.on_answered((to, this.life), piece.origin);
        }
    }
}
