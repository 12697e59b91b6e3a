//! Whether this node may speak. A node that cannot know what was deleted while it was away, or
//! before it came, must not tell others of rows that are gone.
//!
//! An origin that is new on its disk (a fresh disk, a restored one) has yet to settle: nothing that
//! others wrote is served from here. It asks peers until one that has settled counts it as a member
//! and tells its heads; holding as much, it settles. Where a peer has dropped tombstones beyond what
//! this node holds, it takes all of that peer's rows, and says so with each want, under one more
//! epoch: what that peer does not have was deleted, unless this node itself made it. A fresh disk has
//! nothing to give up and keeps its epoch.
//!
//! Of what it writes itself it tells before it has settled what is harmless ([`is_harmless`]), from
//! the first moment on:
//!
//! * Rows of owned tables are written by their owner alone, and its latest write is the row, by epoch
//!   and version. A tombstone, held or dropped, is an earlier write of the same owner, and loses.
//!   So services, checks and nodes are told at once, whatever the disk went through.
//! * Of the schema's rows no tombstone is ever dropped.
//! * Any other row may have been deleted, here unheard of: a restored disk may change what is gone, a
//!   fresh one insert it in a life of which some members still hold the tombstone and others do
//!   not. The first version that writes such a row, and those after it, wait: what is told has no
//!   holes. A restored disk tells them when it has settled.
//! * A fresh disk holds nothing that could come back. All that it has to know is how long deleted
//!   rows lived, which the first peer says that lets it in, of what it has dropped and of what it
//!   holds: nobody has dropped anything else, or it would have been asked. Shared rows of this
//!   node begin above that, those that it has already anew, and from then on all is told that it
//!   writes ([`Clearance`]), however long it takes to catch up.
//!
//! A node that knows of no other is its own master and drops its tombstones, but does not settle: it
//! is not known what those will hold that it meets. Where all members are new (a first start, or
//! disks that were all restored), nobody has settled, so after a moment each settles alone. Where
//! some of them are missing, most must be there, and the moment is longer: a cluster that lost a
//! member with its data goes on.
//!
//! [`is_harmless`]: crate::crdt::change::is_harmless

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::io::CollectOutcome;
use super::retirement::{Departure, is_departure};
use super::rounds::{Action, Noted};
use super::{Effect, Lane, Replica, serve};
use crate::crdt::change::is_harmless;
use crate::crdt::storage::{Past, Tidied};
use crate::crdt::{Changeset, Floor, Piece};
use crate::ledger::Round;
use crate::ledger::round::{Heads, Nodes, reaches};
use crate::types::{Epoch, NodeId, Origin, Time, Version};
use crate::wire::{Message, RequestId};

/// How many peers are asked at a time.
const ASKED_MAX: usize = 4;

/// How long after peers were asked another one that is met is asked: many are met at once.
const ASK_PAUSE: Duration = Duration::from_millis(50);

/// How many times as long as otherwise the host is left alone that this node catches up with.
const ASK_AGAIN_AFTER: u32 = 5;

/// How often a peer is asked how old its disk may be that has not said so.
const ERA_ASKED_EVERY: Duration = Duration::from_secs(1);

/// How long nothing moves until another host is looked for: this one may have lost what it told of.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// What a peer says that lets this node in.
#[derive(Debug)]
pub(super) struct Welcome {
    pub(super) heads: Vec<(Origin, Version)>,
    pub(super) past: Past,
    pub(super) forgotten: Nodes,
}

/// Whether this node may speak, and whom it has let in.
#[derive(Debug, Default)]
pub(super) struct Standing {
    state: State,
    ask_at: Time,
    /// What the host has forgotten, and this node takes over when it settles.
    past: Past,
    /// The same, of whom this node took it over to be cleared.
    clearing: Past,
    /// The latest epoch of this node that others take for gone.
    above: Epoch,
    /// Since when peers have let it in that do not know of that.
    unknown_since: Option<Time>,
    /// Whether there is nothing on the disk that others could have deleted.
    is_blank: bool,
    /// When the heads moved last, or came nearer to moving.
    moved_at: Time,
    /// When a peer first said that it may not let anybody in either.
    alone_since: Option<Time>,
    /// When a peer was met last, and when peers were asked last.
    met_at: Time,
    asked_at: Time,
    /// Of the present origin, the version up to which all is harmless.
    harmless: Version,
    /// Peers that asked to be let in while this node could not let anybody in.
    askers: BTreeSet<NodeId>,
    /// Whether a peer that has yet to settle, too, comes before this node in doing so.
    is_second: bool,
    clearance: Clearance,
    /// Whether the storage is taking over a peer's rows: until it has them all, those that it holds
    /// are not known to be.
    has_left: bool,
    /// Peers that have said how old their disks may be, and those to whom this node has.
    introduced: BTreeSet<NodeId>,
    greeted: BTreeSet<NodeId>,
    /// When others were asked last.
    era_asked: BTreeMap<NodeId, Time>,
    /// Peers that were refused what tombstones were dropped of.
    refused: BTreeSet<NodeId>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Settled,
    /// It asks peers to be let in; `host`: this one first.
    Seeking { is_whole: bool, host: Option<NodeId> },
    /// It was let in, and catches up with these heads in the usual way.
    CatchingUp { host: NodeId, goal: Heads },
    /// The storage was asked to begin a new epoch and to take all rows.
    Leaving { host: NodeId },
    /// The host has to count the new epoch before anything is taken from it.
    Announcing { host: NodeId },
    /// It takes the host's rows, and nothing else.
    Rejoining { host: NodeId, goal: Heads },
    /// The storage was asked to note that it may speak.
    Settling { before: Box<State> },
}

/// Whether an origin on a disk that was empty may tell all that it writes, though it has yet to catch
/// up: it holds nothing that was deleted, and once it knows how long deleted rows lived its own live
/// longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Clearance {
    #[default]
    None,
    /// The storage was asked to note how long they lived.
    Asked,
    Done,
}

impl Standing {
    /// Tells whether this node takes all rows of a peer. It says so with each want, so that nobody
    /// has to know since when, and under which epoch, it does.
    pub(super) fn is_guest_of(&self, peer: NodeId) -> bool {
        let state = match &self.state {
            State::Settling { before } => before,
            state => state,
        };
        matches!(
            state,
            State::Announcing { host } | State::Rejoining { host, .. } if *host == peer
        )
    }

    fn host(&self) -> Option<NodeId> {
        match &self.state {
            State::Leaving { host }
            | State::Announcing { host }
            | State::Rejoining { host, .. } => Some(*host),
            State::Settled
            | State::Seeking { .. }
            | State::CatchingUp { .. }
            | State::Settling { .. } => None,
        }
    }
}

/// What others may ask of this node, and it of them.
impl Replica {
    /// Tells whether all that this node holds may leave it.
    pub(super) fn speaks(&self) -> bool {
        self.standing.state == State::Settled
    }

    /// Returns how far this node's own stream may leave it.
    pub(super) fn said(&self) -> Version {
        let head = self.ledger.head(self.me);
        if self.is_heard_whole() { head } else { head.min(self.standing.harmless) }
    }

    /// Tells whether all that this node writes may leave it at once.
    pub(super) fn is_heard_whole(&self) -> bool {
        self.speaks() || self.standing.clearance == Clearance::Done
    }

    pub(super) fn note_lives(&mut self, piece: &Piece) {
        piece.changesets.iter().for_each(|changeset| self.rounds.note_lives(changeset));
    }

    /// Tells whether a peer's want may be looked at.
    pub(super) fn serves(&self, origin: Origin, after: Version) -> bool {
        // Below a floor that it has of its own it serves nothing yet: whoever asked would have to
        // take over rows that are not settled.
        let is_own = origin == self.me && after < self.said() && after >= self.rounds.floor(origin);
        self.speaks() || is_own
    }

    /// Leaves out of heads what may not be told.
    pub(super) fn without_unsaid(&self, heads: &mut Vec<(Origin, Version)>) {
        if self.is_heard_whole() {
            return;
        }
        let said = self.said();
        heads.iter_mut().filter(|(origin, _)| *origin == self.me).for_each(|(_, head)| {
            *head = said.min(*head);
        });
        heads.retain(|(_, head)| *head > Version(0));
    }

    /// This node wrote something.
    pub(super) fn note_own(&mut self, changeset: &Changeset) {
        let is_next = self.standing.harmless.next() == changeset.stamp.version;
        let mut tables = changeset.tables.iter();
        if is_next && tables.all(|table| is_harmless(&table.table)) {
            self.standing.harmless = changeset.stamp.version;
        }
    }

    /// Tells whether this node drops tombstones by its own word and others'.
    fn has_a_say(&self, now: Time) -> bool {
        let is_lone = self.rounds.is_lone_for(now, self.config.alone_after);
        // Who gives up its rows for another's has others, though it may not know whom.
        self.speaks() || (is_lone && !self.standing.has_left && !self.is_rejoining())
    }

    /// Tells whether the storage is turning over: nothing is applied meanwhile.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.standing.state, State::Leaving { .. })
    }

    /// Tells whether an origin is retired with the host, and will be here.
    pub(super) fn is_about_to_retire(&self, origin: Origin) -> bool {
        let retired = &self.standing.past.retired;
        !self.speaks()
            && self.ledger.head(origin) == Version(0)
            && retired.binary_search_by_key(&origin, |(retired, _)| *retired).is_ok()
    }

    pub(super) fn is_rejoining(&self) -> bool {
        match &self.standing.state {
            State::Settling { before } => matches!(**before, State::Rejoining { .. }),
            State::Seeking { is_whole, .. } => *is_whole,
            _ => self.standing.host().is_some(),
        }
    }

    /// Tells whether anything that a peer says is listened to. A forgotten one is told so.
    pub(super) fn hears(&mut self, now: Time, from: NodeId, message: &Message) -> bool {
        if !self.config.collect {
            return true;
        }
        self.rounds.on_word(from);
        if !self.knows_era_of(now, from, message) {
            return false;
        }
        if let Some(host) = self.standing.host()
            && host != from
        {
            // Rows come from one place alone.
            return !matches!(message, Message::Push { .. } | Message::Pulled { .. });
        }
        match message {
            Message::Hello { origin, .. } | Message::Join { origin, .. } if origin.node == from => {
                self.meet(*origin);
            }
            _ => {}
        }
        if let Message::Hello { origin, era, .. } | Message::Join { origin, era, .. } = message
            && origin.node == from
            && origin.epoch >= self.rounds.epoch_of(from)
            && self.speaks()
            && self.rounds.retirement.is_stale(*era)
        {
            // It was gone for so long that nobody knows any more what it has missed.
            self.rounds.forget(from);
            self.say_forgotten(*origin);
            return false;
        }
        if !self.rounds.is_forgotten(from) {
            return true;
        }
        match message {
            Message::Join { .. } | Message::Neighbour(_) | Message::Forgotten { .. } => true,
            // Whom it let in has to look for somebody else.
            Message::Welcome { is_settled, .. } => !is_settled,
            // Who has yet to settle itself tells nobody to: the two would wait for each other.
            _ if !self.speaks() => false,
            Message::Hello { origin, .. } => {
                self.say_forgotten(*origin);
                false
            }
            Message::Push { .. } | Message::Heads(_) | Message::Round(_) | Message::Buckets(_) => {
                let epoch = self.rounds.epoch_of(from);
                self.say_forgotten(Origin { node: from, epoch, ..self.me });
                false
            }
            _ => false,
        }
    }

    /// What is not on disk this node may not know for long.
    fn say_forgotten(&mut self, origin: Origin) {
        if !self.rounds.has_noted_forgotten(origin.node) {
            return;
        }
        let last = self.rounds.forgotten_up_to(origin.node);
        self.send(vec![origin.node], Message::Forgotten { origin, last }, Lane::Control);
    }

    /// Tells whether it is known how old a peer's disk may be, where that matters: nothing that it says
    /// before is listened to, and it is asked.
    fn knows_era_of(&mut self, now: Time, from: NodeId, message: &Message) -> bool {
        match message {
            Message::Hello { .. } => {
                self.standing.introduced.insert(from);
                return true;
            }
            Message::Join { .. }
            | Message::Known { .. }
            | Message::Welcome { .. }
            | Message::Forgotten { .. }
            | Message::Neighbour(_) => return true,
            _ => {}
        }
        if self.rounds.retirement.era().erased == 0 || self.standing.introduced.contains(&from) {
            return true;
        }
        let asked = self.standing.era_asked.get(&from);
        if asked.is_none_or(|at| now.since(*at) >= ERA_ASKED_EVERY) {
            self.standing.era_asked.insert(from, now);
            let hello = self.hello(true);
            self.send(vec![from], hello, Lane::Control);
        }
        false
    }

    /// Says how old this node's disk may be to whom it has not said so, before it says anything else.
    pub(super) fn introduce(&mut self, to: &[NodeId], message: &Message) {
        if !self.config.collect {
            return;
        }
        if matches!(message, Message::Hello { .. }) {
            self.standing.greeted.extend(to);
        } else if self.rounds.retirement.era().erased > 0 {
            let is_new = |node: &NodeId| !self.standing.greeted.contains(node);
            self.say_hello(to.iter().copied().filter(is_new).collect());
        }
    }

    /// A peer has said how old its disk may be, and hears the same of this one's.
    pub(super) fn greet_back(&mut self, from: NodeId, asks: bool) {
        if self.config.collect && (asks || !self.standing.greeted.contains(&from)) {
            self.say_hello(vec![from]);
        }
    }

    /// A peer is gone, and may be another one when it returns.
    pub(super) fn forget_era_of(&mut self, node: NodeId) {
        self.standing.introduced.remove(&node);
        self.standing.greeted.remove(&node);
        self.standing.era_asked.remove(&node);
    }

    /// Tells whether versions may be pulled from a peer.
    pub(super) fn takes_from(&self, peer: NodeId) -> bool {
        self.standing.host().is_none_or(|host| host == peer)
    }

    /// Tells whether a want goes below what tombstones were dropped of.
    pub(super) fn is_below(&self, origin: Origin, after: Version) -> bool {
        self.ledger.head(origin) > after && after < self.rounds.floor(origin)
    }

    /// Something was applied, or came to be applied.
    pub(super) fn note_progress(&mut self, now: Time) {
        self.standing.moved_at = now;
    }

    /// An origin was heard of.
    pub(super) fn meet(&mut self, origin: Origin) {
        if self.rounds.know(origin) && self.config.collect {
            self.intake.drop_before(origin);
            self.pulls.drop_before(origin);
        }
    }

    /// Tells whether an answer to a want may stem from a process that wrote as this origin, and is no
    /// more: it may not have known what was deleted.
    pub(super) fn is_outdated(&self, from: NodeId, request: RequestId, origin: Origin) -> bool {
        let is_past = origin.node == from && !self.rounds.is_current(origin);
        self.config.collect && is_past && !self.pulls.is_awaited(from, request)
    }

    pub(super) fn on_join(&mut self, now: Time, from: NodeId, origin: Origin) {
        if origin.node != from {
            self.stats.rejected += 1;
            return;
        }
        // While tombstones go it is not known how long their rows lived: he asks again.
        let Some(length) = self.rounds.length() else { return };
        let is_settled = self.speaks();
        if !is_settled {
            self.standing.askers.insert(from);
            if self.rounds.is_forgotten(from) {
                // Nor may it let this node in, whatever it says.
                self.standing.alone_since.get_or_insert(now);
            }
        }
        let welcome = self.welcome(length, is_settled);
        self.send(vec![from], welcome, Lane::Control);
    }

    fn welcome(&self, length: u64, is_settled: bool) -> Message {
        let retirement = &self.rounds.retirement;
        let era = retirement.era();
        let (mut heads, mut floor, mut retired) = (Vec::new(), Vec::new(), Vec::new());
        let mut forgotten = Nodes::new();
        if is_settled {
            heads = self.ledger.heads().collect();
            floor = self.rounds.floors();
            retired = retirement.all();
            forgotten = self.rounds.noted_forgotten().clone();
        }
        Message::Welcome { is_settled, length, heads, floor, era, retired, forgotten }
    }

    /// A peer wants what tombstones were dropped of.
    pub(super) fn refuse(&mut self, from: NodeId, request: RequestId, origin: Origin) {
        self.stats.refused_below_floor += 1;
        self.standing.refused.insert(from);
        self.effects.push_back(serve::gone(from, request, self.rounds.floor(origin)));
    }
}

/// How this node comes to speak.
impl Replica {
    pub(super) fn begin_standing(&mut self, floor: &Floor) {
        self.standing.harmless = floor.harmless;
        self.standing.has_left = floor.is_rejoining;
        self.standing.is_blank = floor.settled != Some(self.me) && self.is_empty();
        if self.config.collect && (floor.settled != Some(self.me) || floor.is_rejoining) {
            self.standing.state = State::Seeking { is_whole: floor.is_rejoining, host: None };
        }
    }

    /// Tells the neighbours of this node's origin, and has them say what they know of it.
    fn say_hello_to_all(&mut self) {
        let neighbours = self.overlay.eager().collect();
        self.say_hello(neighbours);
    }

    /// Tells some peers of this node's origin, and has them say what they know of it.
    pub(super) fn say_hello(&mut self, to: Vec<NodeId>) {
        if to.is_empty() {
            return;
        }
        let hello = self.hello(false);
        self.send(to, hello, Lane::Control);
    }

    /// A peer has come up: whoever has yet to be let in asks it before long.
    pub(super) fn on_met(&mut self, now: Time, node: NodeId) {
        self.standing.met_at = now;
        if let State::Seeking { host, .. } = &mut self.standing.state {
            host.get_or_insert(node);
            let soon = now.max(self.standing.asked_at + ASK_PAUSE);
            self.standing.ask_at = self.standing.ask_at.min(soon);
        }
    }

    /// Looks for somebody to let this node in.
    fn seek(&mut self, now: Time, is_whole: bool, host: Option<NodeId>) {
        self.standing.state = State::Seeking { is_whole, host };
        self.standing.ask_at = now;
        self.standing.alone_since = None;
        self.standing.past = Past::default();
        self.standing.unknown_since = None;
        self.standing.is_second = false;
    }

    /// Tells whether nothing of others is on this node's disk, nor about to be.
    fn is_empty(&self) -> bool {
        self.intake.is_idle() && self.ledger.heads().all(|(origin, _)| origin == self.me)
    }

    /// From now on rows come from one peer alone, which lets this node in.
    fn become_guest(&mut self) {
        self.intake.restart();
        self.pulls.restart();
    }

    /// This node writes under a new origin.
    pub(super) fn on_new_origin(&mut self) {
        self.standing.harmless = Version(0);
        self.standing.clearance = Clearance::None;
        if !self.config.collect {
            return;
        }
        self.say_hello_to_all();
        self.standing.ask_at = Time(0);
        self.standing.state = match std::mem::take(&mut self.standing.state) {
            State::Settled | State::CatchingUp { .. } => {
                State::Seeking { is_whole: false, host: None }
            }
            State::Announcing { host } | State::Rejoining { host, .. } => {
                State::Announcing { host }
            }
            State::Settling { before } => match *before {
                State::Rejoining { .. } => State::Seeking { is_whole: true, host: None },
                _ => State::Seeking { is_whole: false, host: None },
            },
            state @ (State::Seeking { .. } | State::Leaving { .. }) => state,
        };
    }

    /// A peer takes this node for gone. Of two that think so of each other, the greater gives way.
    pub(super) fn on_forgotten(
        &mut self,
        now: Time,
        from: NodeId,
        (origin, last): (Origin, Epoch),
    ) {
        let gives_way = !self.rounds.is_forgotten(from) || from < self.me.node;
        if self.config.collect && origin == self.me && gives_way {
            self.standing.above = self.standing.above.max(last);
            self.seek_whole(now, from);
        }
    }

    /// A peer has dropped tombstones beyond what this node holds.
    pub(super) fn on_gone(&mut self, now: Time, request: (NodeId, RequestId), floor: Version) {
        let Some(origin) = self.pulls.on_gone(now, request) else { return };
        if self.is_retired(origin) || self.intake.reached(&self.ledger, origin) >= floor {
            return;
        }
        self.stats.below_floor += 1;
        if matches!(self.standing.state, State::Seeking { .. }) && self.is_empty() {
            // It has nothing to give up, and is about to be let in.
            return;
        }
        // Of two that grew up apart and met, the greater gives way.
        let gives_way = !self.standing.refused.contains(&request.0) || request.0 < self.me.node;
        if self.config.collect && gives_way {
            self.seek_whole(now, request.0);
        }
    }

    /// This node has to take all rows anew.
    fn seek_whole(&mut self, now: Time, host: NodeId) {
        match &self.standing.state {
            State::Seeking { is_whole: true, .. } | State::Leaving { .. } => return,
            State::Settled
            | State::Seeking { .. }
            | State::CatchingUp { .. }
            | State::Announcing { .. }
            | State::Rejoining { .. }
            | State::Settling { .. } => {}
        }
        self.seek(now, true, Some(host));
    }

    /// A peer has let this node in (`None`: it may not speak itself).
    pub(super) fn on_welcome(&mut self, now: Time, from: NodeId, welcome: Option<Welcome>) {
        let Some(Welcome { heads, mut past, forgotten }) = welcome else {
            self.standing.alone_since.get_or_insert(now);
            self.standing.is_second |= from < self.me.node;
            self.leave_host(now, from);
            return;
        };
        // Of two parts of a cluster that have lost each other the one that forgot this node goes on.
        let of_me = |(origin, _): &&(Origin, Version)| origin.node == self.me.node;
        let departed = heads.iter().chain(&past.retired).filter(of_me);
        let departed = departed.map(|(origin, _)| origin.epoch).filter(|e| is_departure(*e));
        let knows = departed.chain(forgotten.get(&self.me.node).copied()).max().unwrap_or_default();
        let above = self.standing.above.max(self.rounds.forgotten_up_to(self.me.node));
        if above >= self.me.epoch && knows < above && !self.is_forgotten_for_nothing(now) {
            return;
        }
        past.retired.sort_unstable();
        self.rounds.hear_forgotten(now, &forgotten);
        self.unlearn_forgotten(now);
        let goal: Heads = heads.iter().copied().filter(|(origin, _)| *origin != self.me).collect();
        let theirs: Heads = heads.iter().copied().collect();
        let holds = |origin: Origin| theirs.get(&origin).copied().unwrap_or_default();
        // Alone it dropped tombstones of what its peer has never heard of.
        let mut floors = self.rounds.floors().into_iter();
        let is_ahead = floors.any(|(origin, floor)| {
            // Of what is retired here a peer that has seen that too may have forgotten that it ever was.
            let is_erased = self.is_retired(origin)
                && holds(origin) == Version(0)
                && past.era.held >= self.rounds.retirement.era().held;
            holds(origin) < floor && !is_erased
        })
            // Of what is retired there it would never ask, nor hear what that deleted.
            || past.floor.iter().any(|(origin, floor)| {
                !theirs.contains_key(origin)
                    && self.held(*origin) < *floor
                    && !self.is_empty()
            })
            // What was written unheard, while its node was taken for gone, nobody would take.
            || past.retired.iter().any(|(origin, head)| self.ledger.head(*origin) > *head);
        let is_new = matches!(self.standing.state, State::Seeking { is_whole: false, .. });
        if is_new && !is_ahead && self.is_empty() && self.standing.clearance == Clearance::None {
            self.standing.clearance = Clearance::Asked;
            self.rounds.raise_floor(&past.floor, past.length);
            self.standing.clearing = past.clone();
            self.effects.push_back(Effect::Settle(past.clone()));
        }
        match &self.standing.state {
            State::Seeking { .. } if is_ahead => self.leave(from, heads, past),
            State::Seeking { is_whole: false, .. } if !past.floor.is_empty() && self.is_empty() => {
                // It would be refused what lies below the floor.
                self.become_guest();
                self.standing.state = State::Announcing { host: from };
                self.standing.ask_at = now;
            }
            State::Seeking { is_whole: false, .. } => {
                self.standing.state = State::CatchingUp { host: from, goal };
                self.standing.past = past;
                self.standing.moved_at = now;
                self.standing.ask_at = now + self.config.join_every * ASK_AGAIN_AFTER;
                self.learn(now, from, &heads);
            }
            State::Seeking { is_whole: true, .. } => self.leave(from, heads, past),
            State::Announcing { host } if *host == from => {
                self.live_with(now, from, goal, past);
                self.learn(now, from, &heads);
            }
            // It was asked again, lest something was lost on the way.
            State::CatchingUp { host, goal: first } | State::Rejoining { host, goal: first }
                if *host == from =>
            {
                let head = |origin| goal.get(&origin).copied().unwrap_or_default();
                if reaches(head, first) {
                    self.standing.past.era = past.era;
                    self.learn(now, from, &heads);
                } else {
                    self.leave_host(now, from);
                }
            }
            State::Settled
            | State::CatchingUp { .. }
            | State::Leaving { .. }
            | State::Announcing { .. }
            | State::Rejoining { .. }
            | State::Settling { .. } => {}
        }
    }

    /// Tells whether nobody has known for a while that this node was forgotten, though most are here: it
    /// is no matter then.
    fn is_forgotten_for_nothing(&mut self, now: Time) -> bool {
        let since = *self.standing.unknown_since.get_or_insert(now);
        now.since(since) >= self.config.settle_without_after && self.rounds.are_most_up()
    }

    fn leave(&mut self, host: NodeId, mut held: Vec<(Origin, Version)>, past: Past) {
        held.extend(&past.retired);
        let above = self.standing.above.max(self.rounds.forgotten_up_to(self.me.node));
        let leap = above.0.saturating_sub(self.me.epoch.0);
        if (1..=super::EPOCH_LEAP_MAX).contains(&leap) {
            // The new epoch is to be later than any of which this node is said to be gone.
            held.push((Origin { epoch: above, ..self.me }, Version(0)));
        }
        self.standing.state = State::Leaving { host };
        self.stats.rejoins += 1;
        // What is read back from now on may have been deleted.
        self.serve.forget_all();
        self.effects.push_back(Effect::Rejoin { held, length: past.length });
    }

    fn live_with(&mut self, now: Time, host: NodeId, goal: Heads, past: Past) {
        self.standing.state = State::Rejoining { host, goal };
        // From now on the host drops nothing that this node has not got.
        self.standing.past = past;
        self.standing.moved_at = now;
        self.standing.ask_at = now + self.config.join_every * ASK_AGAIN_AFTER;
    }

    pub(super) fn on_rejoined(&mut self, now: Time, begun: Option<Origin>) {
        let State::Leaving { host } = self.standing.state else { return };
        self.standing.ask_at = now;
        let Some(origin) = begun else {
            self.seek(now, true, Some(host));
            self.standing.ask_at = now + self.config.join_every;
            return;
        };
        self.me = origin;
        self.standing.harmless = Version(0);
        self.standing.clearance = Clearance::None;
        self.standing.has_left = true;
        self.rounds.know(origin);
        self.rounds.restart(host);
        self.ledger.restart([]);
        self.become_guest();
        self.epoch_asked = None;
        // Of its own rows it kept some that it may not have written in this life.
        self.returned.on_returned(now);
        self.say_hello_to_all();
        if self.overlay.is_up(host) {
            self.standing.state = State::Announcing { host };
        } else {
            self.seek(now, true, None);
        }
    }

    pub(super) fn on_settled(&mut self, now: Time, is_done: bool) {
        let State::Settling { before } = &mut self.standing.state else {
            return self.on_cleared(now, is_done);
        };
        let before = std::mem::take(before);
        self.standing.state = State::Settled;
        if !is_done {
            self.standing.state = *before;
            return;
        }
        self.standing.has_left = false;
        let past = std::mem::take(&mut self.standing.past);
        self.takes_over(past);
        for node in std::mem::take(&mut self.standing.askers) {
            if let Some(length) = self.rounds.length().filter(|_| self.overlay.is_up(node)) {
                let welcome = self.welcome(length, true);
                self.send(vec![node], welcome, Lane::Control);
            }
        }
        self.tell_own(now);
    }

    fn on_cleared(&mut self, now: Time, is_done: bool) {
        if self.standing.clearance != Clearance::Asked {
            return;
        }
        self.standing.clearance = if is_done { Clearance::Done } else { Clearance::None };
        let past = std::mem::take(&mut self.standing.clearing);
        if is_done {
            self.takes_over(past);
            self.tell_own(now);
        }
    }

    /// This node's disk is as its host's was.
    fn takes_over(&mut self, past: Past) {
        self.standing.is_blank = false;
        let held = |origin| self.ledger.head(origin) > Version(0) || origin == self.me;
        let retired = past.retired.into_iter().filter(|(origin, _)| !held(*origin));
        let retired: Vec<_> = retired.collect();
        for (origin, _) in &retired {
            // Whatever was heard of it, nobody has more.
            self.pulls.on_reached(*origin, Version(u64::MAX));
        }
        self.rounds.retirement.take_over(past.era, retired);
    }

    /// Returns how this node greets others.
    pub(super) fn hello(&self, asks: bool) -> Message {
        let era = self.era_said(self.standing.is_blank || self.standing.has_left);
        Message::Hello { origin: self.me, head: self.said(), era, asks }
    }

    /// Returns how this node asks to be let in: who is about to give up what it holds need not be told
    /// to.
    fn join(&self) -> Message {
        let era = self.era_said(self.standing.is_blank || self.is_rejoining());
        Message::Join { origin: self.me, era }
    }

    /// Returns the era of what this node holds; 0: it holds nothing, or gives it up.
    fn era_said(&self, has_none: bool) -> u64 {
        if has_none { 0 } else { self.rounds.retirement.era().held }
    }

    /// Tells everybody of what this node kept to itself, which nobody was pushed.
    fn tell_own(&mut self, now: Time) {
        self.ledger.renew(self.me);
        self.digests.on_pulled(self.me);
        self.digests.at_once(now);
    }

    /// Whom this node lives with is gone, or lost what it told of: another one is looked for.
    pub(super) fn leave_host(&mut self, now: Time, node: NodeId) {
        let is_whole = match &self.standing.state {
            State::Announcing { host } | State::Rejoining { host, .. } if *host == node => true,
            State::CatchingUp { host, .. } if *host == node => false,
            _ => return,
        };
        self.seek(now, is_whole, None);
    }

    pub(super) fn run_standing(&mut self, now: Time) {
        let is_there = match &self.standing.state {
            State::CatchingUp { goal, .. } | State::Rejoining { goal, .. } => {
                reaches(|origin| self.held(origin), goal)
            }
            State::Seeking { is_whole, .. } => self.may_settle_alone(now, *is_whole),
            _ => false,
        };
        if is_there && self.standing.clearance != Clearance::Asked {
            let before = Box::new(std::mem::take(&mut self.standing.state));
            self.standing.state = State::Settling { before };
            let past = self.standing.past.clone();
            self.rounds.raise_floor(&past.floor, past.length);
            self.effects.push_back(Effect::Settle(past));
            return;
        }
        if self.standing.ask_at > now {
            return;
        }
        // What is on its way to the disk moves, however long that takes.
        let is_at_work = !self.intake.is_idle() || self.pulls.is_storing();
        let is_stuck = !is_at_work && now.since(self.standing.moved_at) >= STUCK_AFTER;
        let mut pause = self.config.join_every;
        let to = match &self.standing.state {
            State::CatchingUp { .. } if is_stuck => {
                self.seek(now, false, None);
                return self.run_standing(now);
            }
            State::Rejoining { .. } if is_stuck => {
                self.seek(now, true, None);
                return self.run_standing(now);
            }
            State::CatchingUp { host, .. } | State::Rejoining { host, .. } => {
                pause *= ASK_AGAIN_AFTER;
                vec![*host]
            }
            State::Seeking { host, .. } => {
                let host = host.filter(|host| self.overlay.is_up(*host));
                let others = || self.overlay.some_peers(&mut self.rng, ASKED_MAX);
                host.map_or_else(others, |host| vec![host])
            }
            State::Announcing { host } => vec![*host],
            _ => return,
        };
        if let State::Seeking { host, .. } = &mut self.standing.state {
            // Should it not answer, others are asked.
            *host = None;
        }
        self.standing.ask_at = now + pause;
        if !to.is_empty() {
            self.standing.asked_at = now;
        }
        let join = self.join();
        self.send(to, join, Lane::Control);
    }

    /// Where nobody may let anybody in, and nobody is missing who could, the cluster is new. Where
    /// most are there and nobody may, nobody may be left who could.
    fn may_settle_alone(&self, now: Time, is_whole: bool) -> bool {
        let Some(since) = self.standing.alone_since else { return false };
        let quiet = now.since(since.max(self.standing.met_at));
        // One after the other: who comes second is let in by the first.
        let turn = if self.standing.is_second { 3 } else { 1 };
        let is_new = !is_whole && self.rounds.are_all_up();
        (quiet >= self.config.settle_alone_after * turn && is_new)
            || (!self.standing.has_left
                && quiet >= self.config.settle_without_after
                && self.rounds.are_most_up())
    }

    pub(super) fn standing_deadline(&self) -> Option<Time> {
        match &self.standing.state {
            State::Seeking { .. }
            | State::CatchingUp { .. }
            | State::Announcing { .. }
            | State::Rejoining { .. } => Some(self.standing.ask_at),
            State::Settled | State::Leaving { .. } | State::Settling { .. } => None,
        }
    }
}

/// What all members hold, and the tombstones that go.
impl Replica {
    pub(super) fn on_round(&mut self, now: Time, from: NodeId, round: &Round) {
        if !self.config.collect || self.rounds.is_forgotten(from) {
            return;
        }
        let known = self.rounds.known_in(now, round);
        for (node, epoch) in &known {
            if *node != self.me.node {
                self.meet(Origin { node: *node, epoch: *epoch, ..self.me });
            }
        }
        if self.rounds.on_round(now, round, &known) && self.rounds.may_answer(now, from) {
            let ours = Message::Round(Box::new(self.rounds.round().clone()));
            self.send(vec![from], ours, Lane::Control);
        }
        self.unlearn_forgotten(now);
        let is_me = self.rounds.is_forgotten(self.me.node);
        if is_me {
            self.seek_whole(now, from);
        }
    }

    /// Nothing is asked of forgotten nodes.
    pub(super) fn unlearn_forgotten(&mut self, now: Time) {
        for node in self.rounds.take_newly_forgotten() {
            self.pulls.on_peer_down(now, node);
        }
    }

    pub(super) fn on_collected(&mut self, now: Time, outcome: Option<CollectOutcome>) {
        let dropped = outcome.map_or(0, |outcome| outcome.collected.dropped);
        self.stats.tombstones_dropped += dropped as u64;
        let done = outcome.map(|outcome| (outcome.collected.is_done, outcome.length));
        self.rounds.on_collected(now, done);
    }

    pub(super) fn run_rounds(&mut self, now: Time) {
        if !self.config.collect {
            return;
        }
        if let Some(Noted { known, forgotten }) = self.rounds.meet(now) {
            let (members, forgotten) =
                (known.into_iter().collect(), forgotten.into_iter().collect());
            self.effects.push_back(Effect::Meet { members, forgotten });
        }
        let ledger = &self.ledger;
        let heads = || ledger.heads().collect::<Heads>();
        // What waits here is of no head yet.
        let is_ready = self.intake.is_idle()
            && self.rounds.has_noted_all()
            && !self.rounds.retirement.is_departing();
        let may_tell = self.has_a_say(now) && is_ready;
        let me: Option<(Origin, &dyn Fn() -> Heads)> = may_tell.then_some((self.me, &heads));
        let action = self.rounds.run(now, &mut self.rng, me);
        if let Some(Action::Tell) = action {
            let round = Message::Round(Box::new(self.rounds.round().clone()));
            let to = self.overlay.some_peers(&mut self.rng, 1);
            self.send(to, round, Lane::Control);
        }
        self.unlearn_forgotten(now);
        let may_collect = self.has_a_say(now);
        let ledger = &self.ledger;
        let plan = may_collect.then(|| self.rounds.collect(|origin| ledger.head(origin)));
        if let Some(Action::Collect { heads, forgotten }) = plan.flatten() {
            let rows_max = self.config.collect_rows_max;
            self.effects.push_back(Effect::Collect { heads, forgotten, rows_max });
        }
        if let Some(Departure { under, held }) = self.rounds.retirement.next_departure() {
            self.effects.push_back(Effect::Depart { under, held });
        }
        self.effects.extend(self.rounds.next_tidy().map(Effect::Tidy));
    }

    /// The rows of a forgotten node are deleted.
    pub(super) fn on_departed(&mut self, now: Time, head: Option<Version>) {
        let Some(under) = self.rounds.retirement.on_departed(head.is_some()) else { return };
        if let Some(head) = head.filter(|head| *head > Version(0)) {
            self.stats.departures += 1;
            self.rounds.depart(under);
            if self.ledger.advance(under, head) {
                self.pulls.on_reached(under, head);
                self.digests.on_moved(now);
            }
        }
    }

    /// Origins were retired, and erased.
    pub(super) fn on_tidied(&mut self, now: Time, tidied: Option<Tidied>) {
        let Some((erased, retired)) = self.rounds.on_tidied(now, tidied) else { return };
        self.stats.origins_erased += erased as u64;
        for (origin, _) in retired {
            self.ledger.retire(origin);
            // Whatever was heard of it, nobody has more.
            self.pulls.on_reached(origin, Version(u64::MAX));
            self.made_at.remove(&origin);
        }
    }

    pub(super) fn rounds_deadline(&self) -> Option<Time> {
        self.config.collect.then(|| self.rounds.deadline()).flatten()
    }
}
