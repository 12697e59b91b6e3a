//! How changes travel between nodes, without I/O: told what happened, it says what to do.
//! It never touches a socket, a disk or a clock; the engine and the simulator do that for it.
//!
//! A fresh commit is flooded over the neighbour links (`overlay`), each node passing it on once; most
//! of the way it is offered first and sent to whom lacks it (`offers`). What arrives is put in order (`intake`) and applied in batches. Whoever missed something learns
//! of it by digests of heads (`compare`) and pulls it (`pull`) from one who holds it (`serve`).
//! Nothing depends on a message's arriving: flooding makes it fast, digests make it certain.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::crdt::storage::{Bookmark, Past};
use crate::crdt::{Changeset, Floor, Key, Piece};
use crate::ledger::Ledger;
use crate::types::{Epoch, NodeId, Origin, Time, Version, Wall};
use crate::wire::{HOPS_FAR, Message, Offer};

pub mod audit;
mod compare;
pub mod config;
mod intake;
pub mod io;
mod offers;
mod overlay;
mod pull;
mod retirement;
mod returned;
mod rounds;
mod serve;
mod standing;
pub mod stats;

pub use audit::{Findings, LookId};
pub use config::Config;
pub use io::{ApplyOutcome, BatchId, CollectOutcome, Effect, Input, Lane, LoadId};
pub use stats::{Behind, Collection, OriginLag, Queues, Stats};

use audit::Audit;
use compare::Digests;
use intake::{Intake, Lost, Outgoing, Taken};
use offers::{Name, Offers};
use overlay::{Event, Overlay};
use pull::{Answer, Asked, Pulled, Pulls};
use returned::Returned;
use rounds::Rounds;
use serve::Serve;
use standing::{Standing, Welcome};

/// To whom a fresh commit goes, and how.
#[derive(Default)]
struct Ways {
    close: Vec<NodeId>,
    distant: Vec<NodeId>,
    offered: Vec<(NodeId, Time)>,
}

/// A fresh commit that was passed on so often is not passed on any more. Heads stop duplicates;
/// this stops what no head could.
const HOPS_MAX: u8 = 64;

/// The round trip to a peer is not taken to be longer than this, nor where it is not known.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(1);

/// A node begins few epochs in its life. Who claims to know one this far ahead is not believed, so
/// that nobody can use up the numbers.
const EPOCH_LEAP_MAX: u64 = 1 << 40;

/// How often a node begins an epoch in the long run. Two processes with one identity would each
/// see the other's versions as their own lost ones, and would outbid each other without end.
const EPOCH_EVERY: Duration = Duration::from_secs(60);

/// How many it may begin at once: when the other process stands aside, this one is not to wait until
/// it may say its rows again.
const EPOCHS_AT_ONCE: u32 = 3;

/// How changes travel between nodes: the state of one node.
///
/// Call [`Replica::handle`] for all that happens, then drain [`Replica::next_effect`], and call
/// again with [`Input::Tick`] at [`Replica::deadline`] at the latest. The same inputs at the same
/// times with the same seed give the same effects.
///
/// Law: the ledger holds what is on disk, nothing else; all other state may be lost.
#[derive(Debug)]
pub struct Replica {
    me: Origin,
    ledger: Ledger,
    overlay: Overlay,
    intake: Intake,
    offers: Offers,
    pulls: Pulls,
    serve: Serve,
    digests: Digests,
    audit: Audit,
    /// When the peers that said anything of late said it.
    heard_at: BTreeMap<NodeId, Time>,
    greet_at: Option<Time>,
    /// When the latest change of each origin that came here was made, by its origin's clock.
    made_at: BTreeMap<Origin, Wall>,
    /// The epoch that the storage was asked to go beyond.
    epoch_asked: Option<Epoch>,
    /// When the epochs begun so far would be due, one each [`EPOCH_EVERY`].
    epochs_due: Time,
    /// Peers that know no more of this node's stream than it does itself.
    confirmed: BTreeSet<NodeId>,
    returned: Returned,
    rounds: Rounds,
    standing: Standing,
    config: Config,
    effects: VecDeque<Effect>,
    rng: SmallRng,
    stats: Stats,
}

impl Replica {
    /// Makes a replica that writes as `me` and whose storage holds `heads`.
    pub fn new(
        me: Origin,
        heads: impl IntoIterator<Item = (Origin, Version)>,
        config: Config,
        seed: u64,
    ) -> Self {
        Self {
            me,
            ledger: heads.into_iter().collect(),
            overlay: Overlay::new(me.node, config.clone()),
            intake: Intake::new(config.clone()),
            offers: Offers::new(config.clone()),
            pulls: Pulls::new(config.clone()),
            serve: Serve::new(config.clone()),
            returned: Returned::new(config.withdraw_after),
            rounds: Rounds::new(me, config.clone()),
            standing: Standing::default(),
            digests: Digests::new(config.clone()),
            audit: Audit::new(config.audit_every),
            heard_at: BTreeMap::new(),
            greet_at: None,
            made_at: BTreeMap::new(),
            config,
            epoch_asked: None,
            epochs_due: Time(0),
            confirmed: BTreeSet::new(),
            effects: VecDeque::new(),
            rng: SmallRng::seed_from_u64(seed),
            stats: Stats::default(),
        }
    }

    /// Takes over what the storage says of tombstones, before anything happens. Without it a node
    /// that collects believes that its disk is fresh.
    #[must_use]
    pub fn on(mut self, floor: &Floor) -> Self {
        self.rounds.stand_on(floor);
        let held: Vec<Origin> = self.ledger.heads().map(|(origin, _)| origin).collect();
        for origin in held {
            self.rounds.know(origin);
        }
        self.begin_standing(floor);
        self
    }

    /// Something happened.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Committed(changeset) => self.on_committed(now, changeset),
            Input::CommittedLarge { origin, head, longest } => {
                self.rounds.note_longest(longest);
                self.on_committed_large(now, origin, head);
            }
            Input::Received { from, message } => self.on_received(now, from, message),
            Input::PeerUp { node, round_trip } if node != self.me.node => {
                if !self.overlay.is_up(node) {
                    self.rounds.on_up(node);
                    self.on_met(now, node);
                }
                self.overlay.on_peer_up(now, &mut self.rng, node, round_trip);
            }
            Input::PeerUp { .. } => {}
            Input::PeerDown(node) => {
                self.overlay.on_peer_down(now, node);
                self.offers.on_peer_down(node);
                self.pulls.on_peer_down(now, node);
                self.digests.on_peer_down(node);
                self.audit.on_peer_down(node);
                self.heard_at.remove(&node);
                self.confirmed.remove(&node);
                self.forget_era_of(node);
                self.rounds.on_down(now, node);
                self.leave_host(now, node);
            }
            Input::Overrun(node) => {
                self.stats.overruns += 1;
                self.digests.on_overrun(now, node);
            }
            Input::Applied { id, outcome } => self.on_applied(now, id, outcome),
            Input::Staged { staging, is_done } => {
                self.note_progress(now);
                let reached = |origin| self.intake.reached(&self.ledger, origin);
                if let Some(whole) =
                    self.pulls.on_staged(now, &mut self.stats, (staging, is_done), reached)
                {
                    self.take_in(now, whole);
                }
            }
            Input::Loaded { id, extract } => {
                let own = (self.me, self.said(), self.is_heard_whole());
                let floor = |origin| self.rounds.floor(origin);
                let answer = self.serve.on_loaded(&mut self.stats, id, extract, own, floor);
                self.effects.extend(answer);
            }
            Input::EpochBegun { origin, ended } => self.on_epoch_begun(origin, ended),
            Input::Withdrawn { is_done } => self.returned.on_withdrawn(now, is_done),
            Input::Forget(node) if node != self.me.node => self.rounds.forget(node),
            Input::Forget(_) => {}
            Input::Met { is_done } => self.rounds.on_met(now, is_done),
            Input::Collected { outcome } => self.on_collected(now, outcome),
            Input::Departed { head } => self.on_departed(now, head),
            Input::Tidied { tidied } => self.on_tidied(now, tidied),
            Input::Rejoined { begun } => self.on_rejoined(now, begun),
            Input::Settled { is_done } => self.on_settled(now, is_done),
            Input::Sighted { id, sight } => {
                self.audit.on_sight(now, &mut self.rng, &self.overlay, (id, sight));
            }
            Input::Mended { rows } => self.on_mended(now, rows),
            Input::Recounted => self.audit.on_recounted(),
            Input::Tick => {}
        }
        self.run(now);
    }

    /// What to do about it. Drain until `None` after every [`Replica::handle`].
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Replica::handle`] with [`Input::Tick`] at the latest, and why.
    pub fn deadline(&self) -> Option<(Time, &'static str)> {
        let may_pull = self.intake.has_room() && !self.is_leaving();
        let pull = if may_pull { self.pulls.deadline() } else { None };
        let all = [
            (self.overlay.deadline(), "look after the neighbours"),
            (self.offers.deadline(), "offer fresh commits, or ask for them elsewhere"),
            (self.digests.deadline(), "tell peers of moved heads"),
            (pull, "pull what is missing"),
            (self.intake.deadline().filter(|_| !self.is_leaving()), "apply what waits"),
            (self.rounds_deadline(), "ask what all members hold"),
            (self.standing_deadline(), "ask to be let in"),
            (self.greet_at, "greet the neighbours"),
            (self.audit.deadline(), "hold rows against others'"),
            (self.returned.deadline(), "withdraw what came back"),
        ];
        all.into_iter().filter_map(|(at, why)| Some((at?, why))).min()
    }

    /// Returns the origin that this node writes as.
    pub fn me(&self) -> Origin {
        self.me
    }

    /// Returns what is on disk.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Returns what was counted.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Returns how much this node knows of and does not hold.
    pub fn behind(&self) -> Behind {
        self.pulls.behind(|origin| self.held(origin))
    }

    /// Returns how many versions each peer is known to hold that this node does not.
    pub fn behind_of(&self) -> BTreeMap<NodeId, u64> {
        self.pulls.behind_of(|origin| self.held(origin))
    }

    /// Lists what this node knows of and does not hold, origin by origin.
    pub fn lags(&self) -> Vec<OriginLag> {
        self.pulls.lags(|origin| self.held(origin))
    }

    /// Returns for how long the oldest version that is missing has been missing.
    pub fn lag(&self, now: Time) -> Duration {
        let lags = self.lags().into_iter().filter(|lag| !lag.is_lost && lag.held < lag.heard);
        let oldest = lags.filter_map(|lag| lag.since).min();
        oldest.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// Returns when the latest change of an origin that came here was made, by its clock.
    pub fn made_at(&self, origin: Origin) -> Option<Wall> {
        self.made_at.get(&origin).copied()
    }

    /// Lists the origins whose changes could not be written, and until when they are left alone.
    pub fn set_aside(&self, now: Time) -> Vec<(Origin, Time)> {
        self.intake.set_aside_now(now)
    }

    /// Returns how many neighbours have said something of late.
    pub fn links_heard(&self, now: Time) -> usize {
        let silence = self.config.link_silence;
        let is_heard =
            |node: &NodeId| self.heard_at.get(node).is_some_and(|at| now.since(*at) <= silence);
        self.overlay.eager().filter(is_heard).count()
    }

    /// Returns how many neighbours this node should have, where there are so many other members.
    pub fn links_wanted(&self, others: usize) -> usize {
        self.config.eager_target.min(others)
    }

    /// Returns how many peers confirmed that they know no more of this node's stream than it does
    /// itself. A node that cannot trust its disk waits for some before its first write.
    pub fn confirmations(&self) -> usize {
        self.confirmed.len()
    }

    /// Tells whether rows of this node that came back from others may have to be withdrawn.
    pub fn awaits_withdrawal(&self) -> bool {
        self.returned.is_pending()
    }

    /// Tells whether this node may speak for itself: see `standing`.
    pub fn is_settled(&self) -> bool {
        self.speaks()
    }

    /// Tells whether a node has to take all rows anew before it is listened to.
    pub fn has_forgotten(&self, node: NodeId) -> bool {
        self.rounds.is_forgotten(node)
    }

    /// Returns how the collection of tombstones stands.
    pub fn collection(&self, now: Time) -> Collection {
        let round = self.rounds.round();
        let floors = self.rounds.floors();
        Collection {
            round: round.number,
            round_age: self.rounds.age(now),
            collected: floors.iter().map(|(_, floor)| floor.0).sum(),
            awaited: round.awaited().collect(),
            forgotten: self.rounds.forgotten().collect(),
            retired: self.rounds.retirement.retired(),
            is_settled: self.speaks(),
            is_rejoining: self.is_rejoining(),
        }
    }

    /// Returns what came of holding this node's rows against others'.
    pub fn findings(&self) -> &Findings {
        self.audit.findings()
    }

    /// Returns the peers that this node pushes to, and they to it.
    pub fn neighbours(&self) -> impl Iterator<Item = NodeId> {
        self.overlay.eager()
    }

    /// Returns how many bytes wait to be applied: those in order, and those that came too early.
    pub fn waiting_bytes(&self) -> (usize, usize) {
        self.intake.waiting_bytes()
    }

    /// Returns how many bytes are kept in memory of pulls that are not whole yet: in all, and of the
    /// origin with the most.
    pub fn staged_bytes(&self) -> (usize, usize) {
        self.pulls.staged_bytes()
    }

    /// Returns what waits at present. Each of it has its limit in [`Config`].
    pub fn queues(&self) -> Queues {
        let (ready_bytes, early_bytes) = self.intake.waiting_bytes();
        let (staged_bytes, staged_origin_bytes) = self.pulls.staged_bytes();
        Queues {
            ready_bytes,
            early_bytes,
            early_origin_bytes: self.intake.early_origin_bytes(),
            staged_bytes,
            staged_origin_bytes,
            pulls: self.pulls.open(),
            loads: self.serve.loads(),
        }
    }

    fn on_committed(&mut self, now: Time, changeset: Arc<Changeset>) {
        if changeset.stamp.origin != self.me {
            // An epoch that ended in the meantime. What it left is said again under the present one.
            return;
        }
        self.note_own(&changeset);
        self.rounds.note_lives(&changeset);
        let piece = Piece::of(changeset);
        let (origin, version) = (piece.origin, piece.through);
        if !self.ledger.advance(origin, version) {
            return;
        }
        self.pulls.on_reached(origin, version);
        if version <= self.said() {
            self.push_own(now, piece);
        }
        self.digests.on_moved(now);
    }

    /// The commit is not told itself: whoever hears of its head pulls it.
    fn on_committed_large(&mut self, now: Time, origin: Origin, head: Version) {
        if !self.ledger.advance(origin, head) {
            return;
        }
        self.pulls.on_reached(origin, head);
        let is_said = head <= self.said();
        let to: Vec<NodeId> = self.overlay.eager().filter(|_| is_said).collect();
        self.stats.digests += to.len() as u64;
        self.send(to, Message::Heads(vec![(origin, head)]), Lane::Own);
        self.digests.on_moved(now);
    }

    fn on_received(&mut self, now: Time, from: NodeId, message: Message) {
        if !self.hears(now, from, &message) {
            self.stats.unheard += 1;
            return;
        }
        self.heard_at.insert(from, now);
        match message {
            Message::Hello { origin, head, asks, .. } => {
                self.on_hello(now, from, origin, head);
                self.greet_back(from, asks);
            }
            Message::Known { origin, head } => self.on_known(now, from, origin, head),
            Message::Neighbour(word) => self.overlay.on_word(now, &mut self.rng, from, word),
            Message::Push { hops, piece } => self.on_push(now, from, hops, piece),
            Message::Offer(offers) => self.on_offers(now, from, &offers),
            Message::Take(names) => self.on_take(from, &names),
            Message::Heads(heads) => self.learn(now, from, &heads),
            Message::Buckets(hashes) => {
                if *hashes != *self.ledger.hashes() {
                    self.digests.on_difference(now, &mut self.rng);
                }
                let answer = compare::answer_hashes(&self.ledger, &hashes);
                self.send(vec![from], answer, Lane::Control);
            }
            Message::BucketHeads { buckets, heads } => {
                self.digests.on_difference(now, &mut self.rng);
                self.learn(now, from, &heads);
                let answer = compare::answer_heads(&self.ledger, &buckets, &heads);
                self.send(vec![from], answer, Lane::Control);
            }
            Message::Want { request, origin, after, .. } if !self.serves(origin, after) => {
                self.stats.refused_busy += 1;
                self.effects.push_back(serve::busy(from, request, serve::RETRY_UNSETTLED));
            }
            Message::Want { request, origin, after, is_whole: false, .. }
                if self.is_below(origin, after) =>
            {
                self.refuse(from, request, origin);
            }
            Message::Want { request, origin, after, part, is_whole } => {
                let may_part = origin != self.me || self.is_heard_whole();
                let held = (self.held(origin), may_part);
                let asked = (origin, Bookmark { after, part });
                let by = (from, request, is_whole);
                let answer = self.serve.on_want(&mut self.stats, by, asked, held);
                self.effects.push_back(answer);
            }
            Message::Pulled { request, piece, head, cut } => {
                self.on_pulled(now, Answer { from, request, piece, head, cut });
            }
            Message::Busy { request, retry_after } => {
                self.stats.pulls_busy += 1;
                self.pulls.on_busy(now, &mut self.rng, (from, request), retry_after);
            }
            Message::Gone { request, floor } => self.on_gone(now, (from, request), floor),
            Message::Join { origin, .. } => self.on_join(now, from, origin),
            Message::Welcome { is_settled, length, heads, floor, era, retired, forgotten } => {
                let past = Past { floor, length, era, retired };
                let welcome = Welcome { heads, past, forgotten };
                self.on_welcome(now, from, is_settled.then_some(welcome));
            }
            Message::Round(round) => self.on_round(now, from, &round),
            Message::Forgotten { origin, last } => self.on_forgotten(now, from, (origin, last)),
            Message::Look { request, stretch, wants_rows, .. } => {
                if self.may_audit(now) {
                    self.audit.on_look(now, (from, request), (stretch, wants_rows));
                }
            }
            Message::Seen { request, seen } => self.audit.on_seen(now, from, request, *seen),
        }
    }

    /// Tells whether this node's rows may be held against others': it knows of nothing that it has
    /// missed for long, and its rows are no mixture.
    fn may_audit(&self, now: Time) -> bool {
        let since = self.behind().since;
        let is_behind = since.is_some_and(|since| now.since(since) > audit::BEHIND_MAX);
        self.speaks() && !is_behind && !self.returned.is_pending()
    }

    fn on_hello(&mut self, now: Time, from: NodeId, origin: Origin, head: Version) {
        if origin.node != from {
            self.stats.rejected += 1;
            return;
        }
        self.meet(origin);
        // Of its latest epoch there may be nothing here, or nothing any more.
        let met = (Origin { epoch: self.rounds.epoch_of(from), ..origin }, Version(0));
        let of_node = self.rounds.retirement.of_node(from).into_iter();
        let (newest, newest_head) = of_node.chain(self.ledger.newest_of(from)).fold(met, Ord::max);
        self.learn(now, from, &[(origin, head)]);
        // While this node takes all rows anew, it knows less than it did.
        if !self.is_rejoining() {
            let known = Message::Known { origin: newest, head: newest_head };
            self.send(vec![from], known, Lane::Control);
        }
    }

    fn on_known(&mut self, now: Time, from: NodeId, origin: Origin, head: Version) {
        if origin.node != self.me.node {
            self.stats.rejected += 1;
            return;
        }
        self.learn(now, from, &[(origin, head)]);
        if self.epoch_asked.is_none() {
            self.confirmed.insert(from);
        }
    }

    fn on_push(&mut self, now: Time, from: NodeId, hops: u8, piece: Piece) {
        let (origin, after, through) = (piece.origin, piece.after, piece.through);
        let is_fresh = piece.changesets.len() == 1
            && through == after.next()
            && piece.changesets[0].stamp.version == through;
        if !is_fresh {
            self.stats.rejected += 1;
            return;
        }
        self.offers.on_arrival(from, (origin, through));
        self.offers.on_held(from, (origin, through));
        if self.is_own(origin) {
            self.stats.pushes_known += 1;
            self.overlay.on_push(now, from, false);
            self.hear_of_own(now, from, (origin, through));
            return;
        }
        self.meet(origin);
        if self.is_retired(origin) {
            self.stats.pushes_known += 1;
            self.overlay.on_push(now, from, false);
            return;
        }
        if self.config.collect && !self.rounds.is_current(origin) {
            // Who wrote this may not have known what was deleted. Peers that merged it do.
            self.stats.unheard += 1;
            self.overlay.on_push(now, from, false);
            self.learn(now, from, &[(origin, through)]);
            return;
        }
        self.note_lives(&piece);
        self.note_made(&piece);
        let taken = self.intake.take(now, &self.ledger, from, piece.clone());
        let is_new = matches!(taken, Taken::Next | Taken::Early);
        self.overlay.on_push(now, from, is_new);
        match taken {
            Taken::Next => {
                self.stats.pushes_next += 1;
                self.relay(now, from, hops, &piece);
                self.reached(origin);
            }
            Taken::Early => {
                self.stats.pushes_early += 1;
                self.relay(now, from, hops, &piece);
                self.learn(now, from, &[(origin, through)]);
            }
            Taken::Known => self.stats.pushes_known += 1,
            Taken::Dropped => {
                self.stats.pushes_dropped += 1;
                self.learn(now, from, &[(origin, through)]);
            }
        }
    }

    fn on_pulled(&mut self, now: Time, answer: Answer) {
        let origin = answer.piece.origin;
        if self.is_outdated(answer.from, answer.request, origin) {
            self.stats.unheard += 1;
            return;
        }
        self.note_lives(&answer.piece);
        self.note_made(&answer.piece);
        let reached = self.intake.reached(&self.ledger, origin);
        let useful = self.stats.pulls_useful;
        if let Some(whole) = self.pulls.on_pulled(now, &mut self.stats, answer, reached) {
            self.take_in(now, whole);
        }
        if self.stats.pulls_useful > useful {
            self.note_progress(now);
        }
    }

    /// Takes in what was pulled, now that it is whole.
    fn take_in(&mut self, now: Time, whole: Pulled) {
        let Pulled { from, piece, staging } = whole;
        let origin = piece.origin;
        let is_own = self.is_own(origin);
        if is_own || self.is_retired(origin) {
            if is_own {
                self.stats.rejected += 1;
            } else {
                // Nobody has more of it.
                self.pulls.on_reached(origin, Version(u64::MAX));
            }
            self.effects.extend(staging.map(Effect::Unstage));
            return;
        }
        let taken = match staging {
            Some(staging) => self.intake.take_staged(now, &self.ledger, from, (staging, piece)),
            None => self.intake.take(now, &self.ledger, from, piece),
        };
        if taken == Taken::Next {
            self.digests.on_pulled(origin);
            self.reached(origin);
        }
    }

    fn on_mended(&mut self, now: Time, rows: Option<Vec<(Key, Origin)>>) {
        let is_earlier = |origin: Origin| origin.node == self.me.node && origin != self.me;
        if rows.iter().flatten().any(|(_, origin)| is_earlier(*origin)) {
            self.returned.on_returned(now);
        }
        self.audit.on_mended(now, rows);
    }

    fn on_applied(&mut self, now: Time, id: BatchId, outcome: ApplyOutcome) {
        match outcome {
            ApplyOutcome::Done { heads } => {
                self.stats.batches += 1;
                self.note_progress(now);
                for (origin, head) in heads {
                    self.rounds.know(origin);
                    if self.rounds.retirement.head(origin).is_none() {
                        self.ledger.advance(origin, head);
                    }
                }
                let lost = self.intake.on_done(now, &self.ledger, id).unwrap_or_default();
                self.stats.unjoined += lost.len() as u64;
                lost.into_iter().for_each(|lost| self.pull_again(now, lost));
                self.digests.on_moved(now);
            }
            ApplyOutcome::Failed => {
                self.stats.batches_failed += 1;
                let aside = self.intake.on_failed(now, &mut self.rng, id).flatten();
                if let Some(lost) = aside {
                    self.stats.set_aside += 1;
                    self.pull_again(now, lost);
                }
            }
        }
    }

    fn on_epoch_begun(&mut self, origin: Origin, (ended, head): (Origin, Version)) {
        self.me = origin;
        self.ledger.set_back(ended, head);
        self.confirmed.clear();
        if self.epoch_asked.is_some_and(|above| origin.epoch > above) {
            self.epoch_asked = None;
        }
        self.rounds.know(origin);
        self.on_new_origin();
    }

    /// Does what time or the last input has brought about.
    fn run(&mut self, now: Time) {
        self.overlay.run(now, &mut self.rng);
        self.on_overlay_events();
        // A batch that leaves makes room for what is pulled.
        let next = if self.is_leaving() { None } else { self.intake.next_batch(now) };
        if let Some((id, outgoing)) = next {
            let is_mine = |piece: &Piece| piece.origin.node == self.me.node;
            let (has_mine, effect) = match outgoing {
                Outgoing::Batch(batch) => {
                    (batch.pieces.iter().any(is_mine), Effect::Apply { id, batch })
                }
                Outgoing::Staged(staging, last) => {
                    (is_mine(&last), Effect::ApplyStaged { id, staging, last })
                }
            };
            if has_mine {
                self.returned.on_returned(now);
            }
            self.effects.push_back(effect);
        }
        if self.returned.run(now) {
            self.effects.push_back(Effect::Withdraw);
        }
        self.run_standing(now);
        self.run_rounds(now);
        self.run_offers(now);
        self.pulls.run(now, &mut self.stats);
        if !self.is_leaving() {
            self.pull(now);
        }
        let stores = self.pulls.take_stores();
        let is_stage = |effect: &&Effect| matches!(effect, Effect::Stage { .. });
        self.stats.stagings += stores.iter().filter(is_stage).count() as u64;
        self.effects.extend(stores);
        self.effects.extend(self.intake.take_unstaged().into_iter().map(Effect::Unstage));
        self.greet(now);
        let may_audit = self.may_audit(now);
        self.audit.run(now, &mut self.rng, may_audit);
        self.effects.extend(self.audit.take_effects());
        self.tell(now);
    }

    fn on_overlay_events(&mut self) {
        for event in self.overlay.take_events() {
            match event {
                Event::Say(node, word) => {
                    self.send(vec![node], Message::Neighbour(word), Lane::Control);
                }
                Event::LinkUp(node) => {
                    let hello = self.hello(false);
                    self.send(vec![node], hello, Lane::Control);
                    self.compare(node);
                }
                Event::LinkMade => self.stats.links_made += 1,
                Event::LinkEnded => self.stats.links_ended += 1,
            }
        }
    }

    fn pull(&mut self, now: Time) {
        while self.intake.has_room() {
            let (intake, ledger) = (&self.intake, &self.ledger);
            let reached = |origin| intake.reached(ledger, origin);
            let asked = self.pulls.next_want(now, &mut self.rng, &self.overlay, reached);
            let Some(Asked { peer, request, origin, from }) = asked else { return };
            let Bookmark { after, part } = from;
            let is_whole = self.standing.is_guest_of(peer);
            self.stats.pulls += 1;
            let want = Message::Want { request, origin, after, part, is_whole };
            self.send(vec![peer], want, Lane::Control);
        }
    }

    /// Sends the digests and comparisons that are due.
    fn tell(&mut self, now: Time) {
        if self.digests.is_digest_due(now) {
            self.send_digests(now);
        }
        if self.digests.is_compare_due(now, &mut self.rng)
            && let Some(node) = self.overlay.exchange_lazy(&mut self.rng)
        {
            self.intake.drop_stale(now);
            self.offers.drop_old(now);
            self.compare(node);
        }
        for node in self.digests.overrun_due(now) {
            self.compare(node);
        }
    }

    fn send_digests(&mut self, now: Time) {
        let mut more = false;
        let mut digests = Vec::new();
        for (node, told) in self.overlay.lazy() {
            let (heads, cursor) = self.ledger.moved_since(*told, compare::DIGEST_HEADS_MAX);
            more |= cursor < self.ledger.cursor();
            *told = cursor;
            digests.push((vec![node], heads));
        }
        let (intake, ledger) = (&self.intake, &self.ledger);
        let is_on_disk = |origin| intake.reached(ledger, origin) == ledger.head(origin);
        let pulled = self.digests.take_pulled(is_on_disk);
        let pulled = pulled.into_iter().map(|origin| (origin, ledger.head(origin)));
        digests.push((self.overlay.eager_only().collect(), pulled.collect()));
        for (to, heads) in digests.into_iter().filter(|(_, heads)| !heads.is_empty()) {
            self.stats.digests += to.len() as u64;
            self.send(to, Message::Heads(heads), Lane::Control);
        }
        self.digests.on_told(now, more);
    }

    /// Says hello to the neighbours now and then: it tells them of this node's head, and each that it
    /// is heard.
    fn greet(&mut self, now: Time) {
        let every = self.config.greet_every;
        let at = *self.greet_at.get_or_insert(now + every);
        if at > now {
            return;
        }
        self.greet_at = Some(now + every.mul_f64(self.rng.random_range(0.8..1.2)));
        self.heard_at.retain(|_, at| now.since(*at) <= 2 * self.config.link_silence);
        // Who was heard just now is there, and its greeting or whatever it sent was heard for both.
        let is_silent = |node: &NodeId| {
            self.heard_at.get(node).is_none_or(|at| now.since(*at) >= every.mul_f64(0.75))
        };
        let silent: Vec<NodeId> = self.overlay.eager().filter(is_silent).collect();
        self.say_hello(silent);
    }

    fn note_made(&mut self, piece: &Piece) {
        if let Some(changeset) = piece.changesets.last() {
            let made_at = self.made_at.entry(piece.origin).or_default();
            *made_at = (*made_at).max(changeset.at);
        }
    }

    /// Begins a comparison of ledgers with a peer, which tells it all that this node holds.
    fn compare(&mut self, node: NodeId) {
        self.stats.compares += 1;
        self.overlay.told(node, self.ledger.cursor());
        let hashes = Message::Buckets(Box::new(*self.ledger.hashes()));
        self.send(vec![node], hashes, Lane::Control);
    }

    /// Sends an own commit to the neighbours. Where that are all members, a large one goes to a few,
    /// who pass it on.
    fn push_own(&mut self, now: Time, piece: Piece) {
        let offer = self.offers.keep(now, 0, &piece);
        let mut to = self.overlay.nearest_first();
        let is_large = offer.bytes >= self.config.large_bytes as u64;
        if is_large && self.config.offers && self.overlay.is_small() {
            for node in to.split_off(to.len().min(self.config.eager_target)) {
                self.offers.offer(node, offer, now + self.config.offer_later);
            }
        }
        self.stats.own_pushed += to.len() as u64;
        let (close, distant) = to.into_iter().partition(|node| self.overlay.is_close(*node));
        self.push(close, 0, piece.clone(), Lane::Own);
        self.push(distant, HOPS_FAR, piece, Lane::Own);
    }

    fn push(&mut self, to: Vec<NodeId>, hops: u8, piece: Piece, lane: Lane) {
        self.send(to, Message::Push { hops, piece }, lane);
    }

    /// Passes on a fresh commit: to some neighbours at once, to others when they ask for it.
    fn relay(&mut self, now: Time, from: NodeId, hops: u8, piece: &Piece) {
        if hops & !HOPS_FAR >= HOPS_MAX {
            return;
        }
        let hops = hops + 1;
        let offer = self.offers.keep(now, hops, piece);
        let Ways { close, distant, offered } = self.ways(now, from, hops, offer);
        self.stats.relayed += (close.len() + distant.len()) as u64;
        self.push(close, hops, piece.clone(), Lane::Relay);
        self.push(distant, hops | HOPS_FAR, piece.clone(), Lane::Relay);
        for (node, at) in offered {
            self.offers.offer(node, offer, at);
        }
    }

    /// Finds out how a commit goes to each neighbour. Close ones are offered it: to be asked costs
    /// nothing, and they get it once. Distant ones are sent it as long as it is in the region it
    /// began in; later they probably have it from there, and are offered it a little later.
    fn ways(&mut self, now: Time, from: NodeId, hops: u8, offer: Offer) -> Ways {
        let mut ways = Ways::default();
        let is_small = self.overlay.is_small();
        let is_large = offer.bytes >= self.config.large_bytes as u64;
        if self.config.offers && is_small && !is_large && from == offer.origin.node {
            // Who wrote it has sent it to everybody.
            return ways;
        }
        let later = now + self.config.offer_later;
        for node in self.overlay.nearest_first().into_iter().filter(|node| *node != from) {
            let is_close = self.overlay.is_close(node);
            match () {
                () if !self.config.offers && is_close => ways.close.push(node),
                () if !self.config.offers => ways.distant.push(node),
                () if is_close || (is_small && is_large) => ways.offered.push((node, now)),
                () if is_small => ways.offered.push((node, later)),
                () if hops & HOPS_FAR == 0 => ways.distant.push(node),
                () if self.overlay.takes_most(node) => ways.distant.push(node),
                () => ways.offered.push((node, later)),
            }
        }
        ways
    }

    /// A peer has fresh commits: asks for those that are missing, unless another was asked already.
    fn on_offers(&mut self, now: Time, from: NodeId, offers: &[Offer]) {
        self.overlay.on_offers(from);
        // What was offered from afar is in this region for a while: a close neighbour answers sooner.
        let closer = match self.overlay.is_close(from) {
            true => None,
            false => self.overlay.close_neighbour(&mut self.rng),
        };
        let mut takes = Vec::new();
        let mut closer_takes = Vec::new();
        for offer in offers.iter().copied() {
            let name = (offer.origin, offer.version);
            self.offers.on_held(from, name);
            let is_late = self.config.collect && !self.rounds.is_current(offer.origin);
            if self.is_own(offer.origin) || is_late || !self.takes_from(from) {
                self.learn(now, from, &[name]);
            } else if self.intake.lacks(now, &self.ledger, name) {
                let round_trip = |peer| self.overlay.round_trip(peer).min(ROUND_TRIP_MAX);
                if let Some(closer) = closer
                    && self.offers.on_offer(now, closer, offer, round_trip(closer))
                {
                    closer_takes.push(name);
                }
                let is_taken = self.offers.on_offer(now, from, offer, round_trip(from));
                takes.extend(is_taken.then_some(name));
            } else if offer.version > self.intake.reached(&self.ledger, offer.origin) {
                self.learn(now, from, &[name]);
            }
        }
        self.take(from, takes);
        closer.into_iter().for_each(|closer| self.take(closer, closer_takes.clone()));
    }

    fn take(&mut self, from: NodeId, names: Vec<Name>) {
        self.stats.takes += names.len() as u64;
        self.send(vec![from], Message::Take(names), Lane::Control);
    }

    /// A peer asks for what it was offered.
    fn on_take(&mut self, from: NodeId, names: &[Name]) {
        let is_close = self.overlay.is_close(from);
        for name in names {
            self.overlay.on_taken(from);
            let Some((hops, piece)) = self.offers.kept(*name) else { continue };
            self.stats.taken += 1;
            let lane = if piece.origin == self.me { Lane::Own } else { Lane::Relay };
            let hops = if is_close { hops } else { hops | HOPS_FAR };
            self.push(vec![from], hops, piece, lane);
        }
    }

    /// Makes the offers that are due, and asks others where nothing came.
    fn run_offers(&mut self, now: Time) {
        if self.offers.deadline().is_none_or(|at| at > now) {
            return;
        }
        let overlay = &self.overlay;
        let todo = self.offers.run(now, |peer| overlay.round_trip(peer).min(ROUND_TRIP_MAX));
        for (node, offers) in todo.offers {
            self.stats.offered += offers.len() as u64;
            self.send(vec![node], Message::Offer(offers), Lane::Control);
        }
        for (node, names) in todo.takes {
            self.stats.takes_again += names.len() as u64;
            self.take(node, names);
        }
        for (holder, name) in todo.given_up {
            self.learn(now, holder, &[name]);
        }
    }

    /// A peer holds these heads.
    fn learn(&mut self, now: Time, from: NodeId, heads: &[(Origin, Version)]) {
        // What a close peer has had time to write is overdue here.
        let is_close = self.overlay.is_close(from);
        let due = now + if is_close { self.config.pull_soon } else { self.config.pull_after };
        for (origin, head) in heads.iter().copied() {
            if self.is_own(origin) {
                self.hear_of_own(now, from, (origin, head));
            } else if self.is_retired(origin) {
                // Who says so has yet to hear of it.
            } else if !self.takes_from(from) {
                self.stats.unheard += 1;
            } else if head > self.intake.reached(&self.ledger, origin)
                && !self.pulls.learn(now, from, (origin, head), due)
            {
                self.stats.rejected += 1;
            }
        }
    }

    fn pull_again(&mut self, now: Time, lost: Lost) {
        let Lost { origin, from, through, not_before } = lost;
        if self.is_retired(origin) {
            return;
        }
        let due = not_before.max(now + self.config.pull_after);
        self.pulls.learn(now, from, (origin, through), due);
    }

    fn reached(&mut self, origin: Origin) {
        self.pulls.on_reached(origin, self.intake.reached(&self.ledger, origin));
    }

    /// Tells whether nothing is left of an origin, and nothing is taken.
    fn is_retired(&self, origin: Origin) -> bool {
        self.rounds.retirement.head(origin).is_some() || self.is_about_to_retire(origin)
    }

    /// Returns how far an origin is held, or was when it was retired.
    fn held(&self, origin: Origin) -> Version {
        let retired = self.rounds.retirement.head(origin);
        retired.unwrap_or_else(|| self.ledger.head(origin))
    }

    /// Tells whether an origin is this node's stream, or one that it has yet to begin.
    fn is_own(&self, origin: Origin) -> bool {
        origin.node == self.me.node && origin.epoch >= self.me.epoch
    }

    /// A peer knows a version of this node's stream, or a later epoch. If the node does not know it
    /// itself, its disk lost it, and its next commit would take a name that is given away: begin a new
    /// epoch.
    fn hear_of_own(&mut self, now: Time, from: NodeId, (origin, version): (Origin, Version)) {
        let is_known = origin.epoch == self.me.epoch && version <= self.ledger.head(origin);
        let is_asked = self.epoch_asked.is_some_and(|above| above >= origin.epoch);
        if is_known || is_asked {
            return;
        }
        if origin.epoch.0 - self.me.epoch.0 > EPOCH_LEAP_MAX {
            self.stats.epochs_refused += 1;
            return;
        }
        let due = self.epochs_due.max(now);
        if due.since(now) > EPOCH_EVERY * (EPOCHS_AT_ONCE - 1) {
            return;
        }
        if self.config.collect && retirement::is_departure(origin.epoch) {
            self.on_forgotten(now, from, (self.me, origin.epoch));
            return;
        }
        self.epochs_due = due + EPOCH_EVERY;
        self.stats.epochs_lost += 1;
        self.confirmed.clear();
        self.epoch_asked = Some(origin.epoch);
        self.effects.push_back(Effect::BeginEpoch { above: origin.epoch });
    }

    /// Sends a message, unless there is nobody to send it to or nothing in it.
    fn send(&mut self, to: Vec<NodeId>, mut message: Message, lane: Lane) {
        if let Message::Heads(heads) | Message::BucketHeads { heads, .. } = &mut message {
            self.without_unsaid(heads);
        }
        let says_nothing = match &message {
            Message::Heads(heads) => heads.is_empty(),
            Message::Offer(offers) => offers.is_empty(),
            Message::Take(names) => names.is_empty(),
            Message::BucketHeads { buckets, .. } => buckets.is_empty(),
            Message::Hello { .. }
            | Message::Known { .. }
            | Message::Neighbour(_)
            | Message::Push { .. }
            | Message::Buckets(_)
            | Message::Want { .. }
            | Message::Pulled { .. }
            | Message::Busy { .. }
            | Message::Gone { .. }
            | Message::Join { .. }
            | Message::Welcome { .. }
            | Message::Round(_)
            | Message::Forgotten { .. }
            | Message::Look { .. }
            | Message::Seen { .. } => false,
        };
        if !to.is_empty() && !says_nothing {
            self.introduce(&to, &message);
            self.effects.push_back(Effect::Send { to, message, lane });
        }
    }
}

#[cfg(test)]
mod tests;
