//! Who is alive: SWIM membership (foca) without I/O, behind `handle`, `next_effect`, `deadline`,
//! and what foca leaves to others: greeting until joined, goodbyes, doubt in oneself.
//! No connection and no clock lives here, and nothing but membership travels in its datagrams.

mod agenda;
mod announcer;
mod codec;
mod compare;
mod config;
mod guard;
mod identity;
mod io;
mod roster;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use foca::{AccumulatingRuntime, Foca, Message, NoCustomBroadcast, OwnedNotification, Timer};
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};

use self::agenda::Agenda;
use self::announcer::Announcer;
use self::codec::{Codec, Datagram, Unread};
use self::compare::{Comparer, Sums};
pub use self::config::{Config, DATAGRAM_BYTES_MAX};
use self::guard::Guard;
pub use self::identity::Identity;
pub use self::io::{Effect, Input};
use self::roster::Roster;
pub use self::roster::{Member, State};
use crate::types::{NodeId, Time};

/// How late `handle` may come before it is taken for a stall of this very node (a stopped
/// process, a starved machine): then time counts as if it had stood still, so that nobody is
/// declared dead by timers that piled up while their answers waited unread.
const STALL: Duration = Duration::from_secs(1);

/// How often this node looks after what has no timer of its own.
const UPKEEP: Duration = Duration::from_secs(1);

/// How often within [`Config::forget_after`] members are looked for that were gone for so long: each
/// time at all there are.
const FORGET_LOOKS: u32 = 16;

/// How long this node must have had no trouble to become healthier by one.
const RECOVERY: Duration = Duration::from_secs(10);

/// To how many members a goodbye is sent directly; the others hear of it by gossip. More would
/// need fresh handshakes, for which a node that is going has no time.
const GOODBYES_MAX: usize = 512;

/// How many members tell a suspect each second that it is one, beside who found it silent.
const ACCUSERS: f64 = 8.0;

/// How many members that seem dead are greeted in one round: see [`Config::greet_dead_period`].
const GREETINGS: usize = 2;

/// How many are when this node is alone.
const GREETINGS_ALONE: usize = 5;

/// The incarnation that says "left by its own will" in the update that says "down". foca passes
/// it on as it is, and no living member reaches it: foca takes a new identity before.
const LEFT: u16 = u16::MAX;

/// How often a conflict is reported while it lasts: whoever hears of it asks the other process.
const CONFLICT_PERIOD: Duration = Duration::from_secs(10);

/// How many rejoins in a row are taken as they come; beyond it each waits a little.
const REJOINS_FREE: u32 = 8;

/// See [`REJOINS_FREE`]: for so long nothing is heard after one more.
const REJOIN_PAUSE: Duration = Duration::from_secs(5);

/// After so long without a rejoin the count begins anew.
const REJOIN_MEMORY: Duration = Duration::from_secs(600);

/// What has happened since the start, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    pub datagrams_received: u64,
    pub datagrams_sent: u64,
    /// Datagrams that could not be read or that foca refused.
    pub malformed: u64,
    /// Datagrams of a version or kind that this release does not know.
    pub unknown: u64,
    /// Datagrams of which this release did not know the last fields.
    pub extended: u64,
    /// Datagrams whose sender claimed to be another node than its certificate says.
    pub forged: u64,
    /// Pings repeated because no answer had come yet.
    pub pings_repeated: u64,
    /// Times this node and another did not know the same members.
    pub differences: u64,
    /// Times this node had to defend itself against a suspicion.
    pub suspected: u64,
    /// Times this node took a new identity because it had been declared dead.
    pub rejoins: u64,
    /// Times `handle` came more than a second late.
    pub stalls: u64,
}

/// Membership without I/O: told what happened, it says what to do.
pub struct Swim {
    foca: Foca<Identity, Codec, SmallRng, NoCustomBroadcast>,
    /// What foca asked for in the call that is under way; empty between two calls.
    requests: AccumulatingRuntime<Identity>,
    config: Config,
    rng: SmallRng,
    agenda: Agenda,
    upkeep_at: Time,
    greet_dead_at: Time,
    /// When to look for members that were gone for long enough.
    forget_at: Time,
    roster: Roster,
    announcer: Announcer,
    comparer: Comparer,
    guard: Guard,
    repeat: Option<Repeat>,
    health: Health,
    /// The last accusation this node has heard of itself: its generation and incarnation then.
    accused: Option<(u64, u16)>,
    /// Whom this node itself found silent, not by hearsay, and suspects since.
    silent: BTreeSet<NodeId>,
    rejoins: Rejoins,
    /// The size and health for which foca is configured.
    configured: (usize, u8),
    conflict_told: Option<Time>,
    /// The last life of this node that was heard of at another address.
    rival: Option<Identity>,
    has_left: bool,
    effects: VecDeque<Effect>,
    counters: Counters,
}

/// A ping that is sent once more if no answer came until `due`: one lost datagram is no evidence.
struct Repeat {
    due: Time,
    to: Identity,
    bytes: Bytes,
}

/// Doubt in oneself: 0 is none, [`config::HEALTH_WORST`] the most.
#[derive(Default)]
struct Health {
    score: u8,
    changed: Time,
}

/// How often this node was declared dead of late.
#[derive(Default)]
struct Rejoins {
    streak: u32,
    last: Time,
    deaf_until: Time,
}

impl Swim {
    /// Makes a node that knows nobody. `seed` decides all that is left to chance.
    pub fn new(me: Identity, config: Config, seed: u64) -> Self {
        let me = Identity::new(me.node, me.address, me.generation);
        let mut rng = SmallRng::seed_from_u64(seed);
        let foca_rng = SmallRng::seed_from_u64(rng.random());
        Self {
            foca: Foca::new(me, config.for_size(1, 0), foca_rng, Codec),
            requests: AccumulatingRuntime::new(),
            rng,
            agenda: Agenda::default(),
            upkeep_at: Time(0),
            greet_dead_at: Time(0),
            forget_at: Time(0),
            roster: Roster::default(),
            announcer: Announcer::new(config.announce_wait),
            comparer: Comparer::default(),
            guard: Guard::default(),
            repeat: None,
            health: Health::default(),
            accused: None,
            silent: BTreeSet::new(),
            rejoins: Rejoins::default(),
            configured: (1, 0),
            conflict_told: None,
            rival: None,
            has_left: false,
            effects: VecDeque::new(),
            counters: Counters::default(),
            config,
        }
    }

    /// Something happened. `now` never goes back between two calls.
    pub fn handle(&mut self, now: Time, input: Input) {
        if self.has_left {
            return;
        }
        self.absorb_stall(now);
        // What came is heard before timers run: an answer that waited in a queue still counts.
        match input {
            Input::Datagram { from, bytes } => self.on_datagram(now, from, &bytes),
            Input::Found { node, address } => self.on_found(now, node, address),
            Input::Leave => self.on_leave(),
            Input::Prevail => self.on_prevail(now),
            Input::Tick => {}
            Input::RoundTrip { node, round_trip } => self.roster.measured(node, round_trip),
        }
        self.run_timers(now);
    }

    /// What to do about it. Drain until `None` after every [`Swim::handle`].
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call `handle` with [`Input::Tick`] at the latest, and why; `None` once this node
    /// has left. The first call is due at once.
    pub fn deadline(&self) -> Option<(Time, &'static str)> {
        if self.has_left {
            return None;
        }
        let upkeep = Some((self.upkeep_at, "membership upkeep"));
        let timer = self.agenda.first().map(|due| (due, "membership timer"));
        let repeat = self.repeat.as_ref().map(|repeat| (repeat.due, "repeat a ping"));
        [upkeep, timer, repeat].into_iter().flatten().min()
    }

    /// Returns who this node is at present.
    pub fn me(&self) -> Identity {
        *self.foca.identity()
    }

    /// Returns what is known of a member.
    pub fn member(&self, node: NodeId) -> Option<Member> {
        self.roster.get(node)
    }

    /// Returns the smallest of a member's last round trips, if any was measured.
    pub fn round_trip(&self, node: NodeId) -> Option<Duration> {
        self.member(node).and_then(|member| member.round_trip)
    }

    /// Lists all members but this node, the gone ones too, in the order of their ids. Suspicion
    /// is up to a second old.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.roster.iter()
    }

    /// Returns how many members can be spoken to, this node not counted.
    pub fn active_count(&self) -> usize {
        self.foca.num_members()
    }

    /// Returns how much this node distrusts itself: 0 not at all, 8 the most.
    pub fn health(&self) -> u8 {
        self.health.score
    }

    /// Returns how many verdicts are held back because too many came at once.
    pub fn held_back(&self) -> usize {
        self.guard.held()
    }

    /// Returns what has happened since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn absorb_stall(&mut self, now: Time) {
        let Some((due, _)) = self.deadline() else { return };
        // At the very first call the deadline is the beginning of time.
        let late = if self.upkeep_at == Time(0) { Duration::ZERO } else { now.since(due) };
        if late <= STALL {
            return;
        }
        self.counters.stalls += 1;
        self.agenda.postpone(late);
        self.upkeep_at = self.upkeep_at + late;
        if let Some(repeat) = &mut self.repeat {
            repeat.due = repeat.due + late;
        }
        self.health.worsen(now, 2);
    }

    fn on_datagram(&mut self, now: Time, from: NodeId, bytes: &Bytes) {
        self.counters.datagrams_received += 1;
        if now < self.rejoins.deaf_until {
            return;
        }
        let opened = codec::open(bytes);
        self.counters.extended += u64::from(matches!(opened, Ok((_, left)) if left > 0));
        match opened.map(|(datagram, _)| datagram) {
            Ok(Datagram::Gossip { header, members, body }) => {
                if header.src.node != from || from == self.me().node {
                    self.counters.forged += 1;
                    return;
                }
                self.forget_verdicts_if_alone();
                self.note_answer(&header);
                self.note_addressee(now, header.dst);
                members.iter().for_each(|member| self.note_claim(now, member));
                self.feed(now, body, header.src);
            }
            Ok(Datagram::Leaving(identity)) => {
                if identity.node != from || from == self.me().node {
                    self.counters.forged += 1;
                    return;
                }
                self.on_goodbye(now, identity);
            }
            Ok(Datagram::Compare { src, is_answer, sums }) => {
                if src.id().node != from || from == self.me().node {
                    self.counters.forged += 1;
                    return;
                }
                self.forget_verdicts_if_alone();
                self.on_compared(now, src, is_answer, &sums);
            }
            Ok(Datagram::Members(members)) => {
                members.iter().for_each(|member| self.note_claim(now, member));
                let me = self.me();
                let is_accusing = members.iter().any(|m| *m.id() == me && is_suspect(m));
                let active = members.into_iter().filter(is_active);
                self.take_over(now, active);
                if is_accusing {
                    self.object(from);
                }
            }
            Err(Unread::Unknown) => self.counters.unknown += 1,
            Err(Unread::Malformed(_)) => self.counters.malformed += 1,
        }
    }

    /// Somebody speaks to a node that took all others for dead: so it was this node that was cut
    /// off, and what it believes of the others is void. Told of its verdicts, each of them would
    /// have to take a new identity, a whole cluster because of one node.
    fn forget_verdicts_if_alone(&mut self) {
        let is_wrong = |member: &foca::Member<Identity>| member.incarnation() != LEFT;
        let is_alone = self.foca.num_members() == 0;
        if !is_alone || !self.foca.iter_membership_state().any(is_wrong) {
            return;
        }
        let left: Vec<_> =
            self.foca.iter_membership_state().filter(|member| !is_wrong(member)).cloned().collect();
        let rng = SmallRng::seed_from_u64(self.rng.random());
        let settings = self.config.for_size(1, self.health.score);
        self.configured = (1, self.health.score);
        self.foca = Foca::new(self.me(), settings, rng, Codec);
        // Timers of the old one mean nothing to the new one, and could be taken for its own.
        self.agenda = Agenda::default();
        self.repeat = None;
        let applied = self.foca.apply_many(left.into_iter(), false, &mut self.requests);
        debug_assert!(applied.is_ok(), "members that were known can be encoded: {applied:?}");
    }

    /// What came here may be meant for another life of this node, and foca drops it: connections
    /// are with a node, whoever else goes under its id.
    fn note_addressee(&mut self, now: Time, addressee: Identity) {
        let me = self.me();
        if addressee.node == me.node && addressee != me {
            self.on_rival(now, addressee);
        }
    }

    fn note_answer(&mut self, header: &foca::Header<Identity>) {
        let is_ack = matches!(header.message, Message::Ack(_));
        if is_ack && self.repeat.as_ref().is_some_and(|repeat| repeat.to.node == header.src.node) {
            self.repeat = None;
        }
    }

    /// Looks at what others say of this node before foca does.
    fn note_claim(&mut self, now: Time, claim: &foca::Member<Identity>) {
        let me = self.me();
        let of = *claim.id();
        if of.node != me.node {
            return;
        }
        match claim.state() {
            foca::State::Suspect if of == me => self.on_suspected(now, claim.incarnation()),
            foca::State::Alive | foca::State::Suspect if of != me => self.on_rival(now, of),
            foca::State::Alive | foca::State::Suspect | foca::State::Down => {}
        }
    }

    /// Somebody got no answer from this node; foca will object. The rumour comes many times, but
    /// each accusation counts once.
    fn on_suspected(&mut self, now: Time, incarnation: u16) {
        let accusation = (self.me().generation, incarnation);
        if self.accused < Some(accusation) {
            self.accused = Some(accusation);
            self.counters.suspected += 1;
            self.health.worsen(now, 1);
        }
    }

    /// Tells somebody who suspects this node that it is there. foca objects to some by lot, and lets the
    /// rest hear of it from them: of a thousand nodes one now and then does not, and would take this
    /// node for down in the end.
    fn object(&mut self, accuser: NodeId) {
        let me = self.me();
        let Some(accuser) = self.roster.get(accuser) else { return };
        // foca's own: one above the latest of the accusations, to each of which it has objected.
        let heard = self.accused.filter(|(generation, _)| *generation == me.generation);
        let incarnation = heard.map_or(0, |(_, incarnation)| incarnation.saturating_add(1));
        let alive = foca::Member::new(me, incarnation, foca::State::Alive);
        codec::members(&[alive]).into_iter().for_each(|bytes| self.send(accuser.identity, bytes));
    }

    /// The cluster believes in another life of this node.
    fn on_rival(&mut self, now: Time, rival: Identity) {
        let me = self.me();
        if rival.generation < me.generation {
            // An earlier life of ours, which foca declares dead.
            return;
        }
        if rival.address == me.address {
            // An earlier life again, but its clock ran ahead of ours.
            self.take_generation(now, rival.generation);
            return;
        }
        if self.rival.is_none_or(|known| known.generation < rival.generation) {
            self.rival = Some(rival);
        }
        if self.conflict_told.is_none_or(|told| now.since(told) >= CONFLICT_PERIOD) {
            self.conflict_told = Some(now);
            self.effects.push_back(Effect::Conflict { address: rival.address });
        }
    }

    fn on_prevail(&mut self, now: Time) {
        if let Some(rival) = self.rival.take()
            && rival.generation >= self.me().generation
        {
            self.take_generation(now, rival.generation);
        }
        // Should there be another one, it is told of at once.
        self.conflict_told = None;
    }

    /// Goes on under an identity that is newer than `generation`.
    fn take_generation(&mut self, now: Time, generation: u64) {
        let me = self.me();
        let identity = Identity { generation, ..me }.later_by(1);
        if identity != me {
            let changed = self.foca.change_identity(identity, &mut self.requests);
            debug_assert!(changed.is_ok(), "a different identity can be encoded: {changed:?}");
            self.settle(now, None);
        }
    }

    fn feed(&mut self, now: Time, body: &[u8], sender: Identity) {
        if self.foca.handle_data(body, &mut self.requests).is_err() {
            self.counters.malformed += 1;
        }
        self.settle(now, Some(sender));
    }

    fn on_goodbye(&mut self, now: Time, identity: Identity) {
        let update = foca::Member::new(identity, LEFT, foca::State::Down);
        self.update(now, std::iter::once(update));
    }

    /// Compares what this node knows of members with one of them by lot.
    fn compare(&mut self) {
        let Some(other) = self.roster.active().choose(&mut self.rng) else { return };
        let to = other.identity;
        let bytes = codec::compare(&foca::Member::alive(self.me()), false, &self.sums());
        self.send(to, bytes);
    }

    fn sums(&self) -> Sums {
        let others = self.foca.iter_members().map(|member| *member.id());
        compare::sums_of(others.chain([self.me()]))
    }

    /// Another says what it knows of members. Where that is not what this node knows, both tell what
    /// they have.
    fn on_compared(
        &mut self,
        now: Time,
        src: foca::Member<Identity>,
        is_answer: bool,
        theirs: &Sums,
    ) {
        let to = *src.id();
        self.take_over(now, std::iter::once(foca::Member::alive(to)));
        let ours = self.sums();
        if ours == *theirs {
            return;
        }
        self.counters.differences += 1;
        self.comparer.differed(now);
        let differs = |node: NodeId| {
            let bucket = compare::bucket_of(node);
            node != to.node && ours[bucket] != theirs[bucket]
        };
        let members = self.foca.iter_members().filter(|member| differs(member.id().node));
        let members = self.comparer.telling(now, &mut self.rng, members.cloned().collect());
        codec::members(&members).into_iter().for_each(|bytes| self.send(to, bytes));
        if !is_answer {
            let me = foca::Member::alive(self.me());
            self.send(to, codec::compare(&me, true, &ours));
        }
    }

    /// Takes over what another knows. It is not passed on: others compare, too.
    fn take_over(&mut self, now: Time, members: impl Iterator<Item = foca::Member<Identity>>) {
        let applied = self.foca.apply_many(members, false, &mut self.requests);
        debug_assert!(applied.is_ok(), "a decoded member can be encoded: {applied:?}");
        self.settle(now, None);
    }

    fn update(&mut self, now: Time, updates: impl Iterator<Item = foca::Member<Identity>>) {
        let applied = self.foca.apply_many(updates, true, &mut self.requests);
        debug_assert!(applied.is_ok(), "a decoded member can be encoded: {applied:?}");
        self.settle(now, None);
    }

    fn on_found(&mut self, now: Time, node: NodeId, address: SocketAddr) {
        let is_member = self.roster.get(node).is_some_and(|member| member.state.is_active());
        if node == self.me().node || is_member {
            return;
        }
        self.announcer.found(now, node, address);
        self.announce_to_targets(now);
    }

    fn on_leave(&mut self) {
        let bytes = codec::leaving(&self.me());
        let told: Vec<Identity> =
            self.roster.active().map(|member| member.identity).sample(&mut self.rng, GOODBYES_MAX);
        told.into_iter().for_each(|to| self.send(to, bytes.clone()));
        self.has_left = true;
    }

    fn send(&mut self, to: Identity, bytes: Bytes) {
        // A former life of this very node is nobody to speak to.
        if to.node == self.me().node {
            return;
        }
        self.counters.datagrams_sent += 1;
        self.effects.push_back(Effect::Send { to: to.node, address: to.address, bytes });
    }

    fn run_timers(&mut self, now: Time) {
        while let Some(timer) = self.agenda.take_due(now) {
            if self.is_refuted(&timer) {
                continue;
            }
            // foca's errors here tell of timers that outlived their reason: nothing to be done.
            let _ = self.foca.handle_timer(timer, &mut self.requests);
            self.settle_timer(now);
        }
        if let Some(repeat) = self.repeat.take_if(|repeat| repeat.due <= now) {
            self.counters.pings_repeated += 1;
            self.send(repeat.to, repeat.bytes);
        }
        if self.upkeep_at <= now {
            self.upkeep_at = now + UPKEEP;
            self.upkeep(now);
        }
    }

    /// Returns whether a timer is the end of a suspicion that its member has refuted. foca 2.0
    /// declares nobody dead then, but still tells the member that it had been, and the member
    /// would take a new identity for nothing.
    fn is_refuted(&self, timer: &Timer<Identity>) -> bool {
        let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = timer else {
            return false;
        };
        !self.foca.iter_members().any(|member| {
            member.id() == member_id && member.incarnation() == *incarnation && is_suspect(member)
        })
    }

    /// Carries out what foca asked for at a timer. A suspicion that begins so is this node's own.
    fn settle_timer(&mut self, now: Time) {
        while let Some((after, timer)) = self.requests.to_schedule() {
            if let Timer::ChangeSuspectToDown { member_id, .. } = &timer {
                self.silent.insert(member_id.node);
            }
            self.agenda.add(now + after, timer);
        }
        self.settle(now, None);
    }

    /// Carries out what foca asked for. `sender` is whose datagram made it ask, if one did.
    fn settle(&mut self, now: Time, sender: Option<Identity>) {
        while let Some((to, packet)) = self.requests.to_send() {
            self.on_packet(now, to, &packet);
        }
        while let Some((after, timer)) = self.requests.to_schedule() {
            self.agenda.add(now + after, timer);
        }
        while let Some(notification) = self.requests.to_notify() {
            self.on_notification(now, notification, sender);
        }
    }

    fn on_packet(&mut self, now: Time, to: Identity, packet: &[u8]) {
        let bytes = codec::seal(packet);
        let is_ping = matches!(
            codec::open(&bytes),
            Ok((
                Datagram::Gossip { header: foca::Header { message: Message::Ping(_), .. }, .. },
                _
            ))
        );
        if is_ping {
            let due = now + self.config.probe_timeout / 2;
            self.repeat = Some(Repeat { due, to, bytes: bytes.clone() });
        }
        self.send(to, bytes);
    }

    fn on_notification(
        &mut self,
        now: Time,
        notification: OwnedNotification<Identity>,
        sender: Option<Identity>,
    ) {
        match notification {
            OwnedNotification::MemberUp(identity) => self.on_up(now, identity),
            OwnedNotification::MemberDown(identity) => self.on_down(now, identity),
            OwnedNotification::Rename(_, identity) => self.on_renewed(now, identity),
            OwnedNotification::Rejoin(identity) => self.on_rejoin(now, identity, sender),
            OwnedNotification::Active => self.announcer.alone(now, false),
            OwnedNotification::Idle => self.announcer.alone(now, true),
            // Only a generation at its limit comes to this: see `Identity::renew`.
            OwnedNotification::Defunct => {}
        }
    }

    fn on_up(&mut self, now: Time, identity: Identity) {
        self.announcer.joined(identity.node);
        let was_told = self.guard.forgive(identity.node);
        let member = self.roster.set(now, identity, State::Alive);
        // Whose end was held back never ceased to be a member for the others in the house, but
        // it may well have started anew.
        let effect = if was_told { Effect::Up(member) } else { Effect::Renewed(member) };
        self.effects.push_back(effect);
    }

    fn on_down(&mut self, now: Time, identity: Identity) {
        let left = self.foca.iter_membership_state().any(|member| {
            *member.id() == identity && member.incarnation() == LEFT && !is_active(member)
        });
        let node = identity.node;
        self.roster.set(now, identity, if left { State::Left } else { State::Down });
        if left || self.guard.lets_pass(now, node) {
            self.effects.push_back(Effect::Down { node, left });
        }
    }

    fn on_renewed(&mut self, now: Time, identity: Identity) {
        let Some(before) = self.roster.get(identity.node) else { return };
        let member = self.roster.set(now, identity, before.state);
        // Of one that was down the news follows: it is up.
        if before.state.is_active() {
            self.effects.push_back(Effect::Renewed(member));
        }
    }

    fn on_rejoin(&mut self, now: Time, identity: Identity, sender: Option<Identity>) {
        self.counters.rejoins += 1;
        self.effects.push_back(Effect::Rejoined(identity));
        if let Some(steps) = self.rejoins.count(now) {
            let generation = identity.later_by(steps).generation;
            self.take_generation(now, generation);
        }
        self.announcer.hurry(now);
        if let Some(sender) = sender {
            self.announce(now, sender);
        }
    }

    fn announce(&mut self, now: Time, to: Identity) {
        let announced = self.foca.announce(to, &mut self.requests);
        debug_assert!(announced.is_ok(), "two identities fit into a datagram: {announced:?}");
        self.settle(now, None);
    }

    fn announce_to_targets(&mut self, now: Time) {
        for (node, address) in self.announcer.due_targets(now, &mut self.rng) {
            // Its generation is unknown yet: a greeting finds any life of a node.
            self.announce(now, Identity::new(node, address, 0));
        }
    }

    /// Greets some who seem dead: those of the roster, of whom foca may have forgotten its verdict,
    /// and those whom foca was told of as dead, and nobody here ever met.
    fn announce_to_members_of_old(&mut self, now: Time, count: usize) {
        let is_down =
            |member: &&foca::Member<Identity>| !is_active(member) && member.incarnation() != LEFT;
        let told = self.foca.iter_membership_state().filter(is_down).map(|member| *member.id());
        let mut down: BTreeMap<NodeId, Identity> = told.map(|id| (id.node, id)).collect();
        down.retain(|node, _| self.roster.get(*node).is_none());
        let dead = self.roster.iter().filter(|member| member.state == State::Down);
        down.extend(dead.map(|member| (member.identity.node, member.identity)));
        let chosen: Vec<Identity> = down.into_values().sample(&mut self.rng, count);
        chosen.into_iter().for_each(|to| self.announce(now, to));
    }

    fn upkeep(&mut self, now: Time) {
        // After a change of identity foca resumes probing only with the next update; an empty
        // one will do.
        self.update(now, std::iter::empty());
        // Three ask for them, and thousands are looked at.
        let suspects = self.foca.iter_members().filter(|member| is_suspect(member));
        let suspects: Vec<_> = suspects.cloned().collect();
        self.roster.suspect(now, suspects.iter().map(|member| *member.id()).collect());
        self.review_guard(now, suspects.len());
        self.tell_suspects(suspects);
        self.announce_to_targets(now);
        if self.foca.num_members() > 0 && self.comparer.is_due(now, &mut self.rng) {
            self.compare();
        }
        self.announcer.alone(now, self.foca.num_members() == 0);
        if self.announcer.is_due_alone(now, &mut self.rng) {
            self.announce_to_members_of_old(now, GREETINGS_ALONE);
        } else if self.greet_dead_at <= now {
            self.greet_dead_at = now + self.config.greet_dead_period;
            self.announce_to_members_of_old(now, GREETINGS);
        }
        if self.forget_at <= now {
            self.forget_at = now + self.config.forget_after / FORGET_LOOKS;
            self.roster.forget_older_than(now, self.config.forget_after);
        }
        self.health.recover(now);
        self.configure();
    }

    /// Tells those that are under suspicion, so that they can object. The rumour runs for seconds only:
    /// who was cut off just then would hear of it when it is too late. Whoever raised the suspicion
    /// does, who may be the only one that knows of it, and a few of the others.
    fn tell_suspects(&mut self, suspects: Vec<foca::Member<Identity>>) {
        let mut silent = std::mem::take(&mut self.silent);
        silent.retain(|node| suspects.iter().any(|suspect| suspect.id().node == *node));
        let share = (ACCUSERS / self.foca.num_members().max(1) as f64).min(1.0);
        for suspect in suspects {
            let to = *suspect.id();
            if silent.contains(&to.node) || self.rng.random_bool(share) {
                codec::members(&[suspect]).into_iter().for_each(|bytes| self.send(to, bytes));
            }
        }
        self.silent = silent;
    }

    fn review_guard(&mut self, now: Time, suspects: usize) {
        let (told, change) = self.guard.review(now, self.foca.num_members(), suspects);
        self.effects.extend(told.into_iter().map(|node| Effect::Down { node, left: false }));
        self.effects.extend(change.map(|on| Effect::Guard { on }));
    }

    fn configure(&mut self) {
        let wanted = (self.foca.num_members() + 1, self.health.score);
        if wanted != self.configured {
            self.configured = wanted;
            let set = self.foca.set_config(self.config.for_size(wanted.0, wanted.1));
            debug_assert!(set.is_ok(), "only what foca lets change depends on the size");
        }
    }
}

fn is_active(member: &foca::Member<Identity>) -> bool {
    member.state() != foca::State::Down
}

fn is_suspect(member: &foca::Member<Identity>) -> bool {
    member.state() == foca::State::Suspect
}

impl Health {
    fn worsen(&mut self, now: Time, by: u8) {
        self.score = (self.score + by).min(config::HEALTH_WORST);
        self.changed = now;
    }

    fn recover(&mut self, now: Time) {
        if self.score > 0 && now.since(self.changed) >= RECOVERY {
            self.score -= 1;
            self.changed = now;
        }
    }
}

impl Rejoins {
    /// Counts one more. Returns by how much the generation must rise on top, if it must.
    ///
    /// A node whose clock was set back starts with a generation below that of its former life,
    /// and nobody tells it how far below. One step each time would take for ever: each rejoin
    /// after the second doubles the step, from a second up to 48 days.
    fn count(&mut self, now: Time) -> Option<u64> {
        if now.since(self.last) >= REJOIN_MEMORY {
            self.streak = 0;
        }
        self.last = now;
        self.streak = self.streak.saturating_add(1);
        if self.streak > REJOINS_FREE {
            self.deaf_until = now + REJOIN_PAUSE;
        }
        (self.streak > 2).then(|| 1_000 << (self.streak - 3).min(22))
    }
}
