//! The loop that drives membership and replication: what happened goes in, what they ask for is
//! done. It decides nothing itself.
//!
//! All that is ready is taken at once and worked off as one batch; then the effects are carried
//! out. The engine never waits for the disk, a peer or a caller: everything it asks for is answered
//! by a later input.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::join::{Join, Known};
use super::loader::{Loads, Looks};
use super::mailbox::{Job, Mailbox};
use super::relations::{Relation, Relations, Verdict};
use super::writer::wall_now;
use super::{Heard, MemberState, MemberStatus, Standing};
use crate::catalog::View;
use crate::catalog::model::key_of;
use crate::catalog::view::Liveness;
use crate::crdt::content::Sight;
use crate::crdt::storage::{Extract, Settled, StorageError, Tidied};
use crate::crdt::{Changeset, Key, Name, Staging, pack};
use crate::live::Feed;
use crate::net::{self, DialError, Net, Parcel, SendError, Why};
use crate::replica::{self, ApplyOutcome, BatchId, CollectOutcome, LoadId, LookId, Replica};
use crate::swim::{self, Identity, Swim};
use crate::telemetry::Pulse;
use crate::types::{Epoch, NodeId, Origin, Time, Version, Wall};
use crate::wire::{self, DecodeError};

/// How many reports of the writer and the loader may wait. The engine empties the queue whenever
/// it runs; a full one slows the writer down.
pub(super) const REPORTS_MAX: usize = 4_096;

/// How many inputs are worked off before the effects are carried out.
const INPUTS_PER_TURN: usize = 256;

/// How long after the first member was seen all others have had time to be seen: from then on
/// who was not heard of counts as down.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// How often members and round trips are looked at again.
const SURVEY_EVERY: Duration = Duration::from_secs(1);

/// How long a new epoch that could not be begun is left alone before it is tried again.
const EPOCH_RETRY: Duration = Duration::from_secs(1);

/// How long too few neighbours must not have been heard, beyond the silence that each is allowed,
/// before this node says that it is cut off.
const CUT_OFF_FOR: Duration = Duration::from_secs(2);

/// How long changes of other nodes cannot be written before this node says so: a write that fails is
/// tried again soon.
const FAILING_FOR: Duration = Duration::from_secs(3);

/// How long the goodbyes and the last changes may take to leave the host.
const FAREWELL: Duration = Duration::from_millis(300);

/// What the writer and the loader tell the engine.
#[derive(Debug)]
pub(super) enum Happened {
    /// What one group's commits changed, in their order.
    Committed(Vec<Written>),
    Staged {
        staging: Staging,
        result: Result<(), StorageError>,
    },
    Applied {
        id: BatchId,
        result: Result<Vec<(Origin, Version)>, StorageError>,
    },
    /// The new origin, and the one that ended with how far it is held now.
    EpochBegun(Result<(Origin, (Origin, Version)), StorageError>),
    /// This node's rows that came back were withdrawn, in so many commits.
    Withdrawn(Result<usize, StorageError>),
    Loaded {
        id: LoadId,
        extract: Option<Extract>,
    },
    /// Members were noted.
    Met(Result<(), StorageError>),
    /// Tombstones were dropped.
    Collected(Result<CollectOutcome, StorageError>),
    /// All rows of a peer are taken over from now on, under this origin.
    Rejoined(Result<Origin, StorageError>),
    /// It is noted that this node may speak.
    Settled(Result<Settled, StorageError>),
    /// The rows of a forgotten node were deleted, by so many versions.
    Departed(NodeId, Result<Version, StorageError>),
    /// Origins were retired, and erased.
    Tidied(Result<Tidied, StorageError>),
    /// Rows were looked at.
    Sighted {
        id: LookId,
        sight: Option<Sight>,
    },
    /// Rows of a table were mended.
    Mended(Name, Result<Vec<(Key, Origin)>, StorageError>),
    /// The fingerprint was added up anew.
    Recounted(Result<(), StorageError>),
    /// The operator says that a node will not return.
    Forget(NodeId),
    /// The operator names nodes to join by.
    Join(Vec<SocketAddr>),
    /// Somebody asks how far each origin is held.
    Describe(oneshot::Sender<Replication>),
    /// The writer's thread has ended: nothing becomes true any more.
    WriterEnded,
}

/// How far each origin is held, and how this node stands to the others.
#[derive(Clone, Debug, Default)]
pub struct Replication {
    pub origins: Vec<HeldOrigin>,
    pub standing: Standing,
    pub findings: replica::Findings,
    /// When that was, as the times in the findings count.
    pub now: Time,
}

/// How far an origin is held.
#[derive(Clone, Debug)]
pub struct HeldOrigin {
    pub origin: Origin,
    pub held: Version,
    /// The latest version that somebody is known to hold.
    pub heard: Version,
    /// For how long the next one has been missing.
    pub behind_for: Option<Duration>,
    /// Whom it can be had from.
    pub sources: Vec<NodeId>,
    /// Nobody is known to have it any more.
    pub is_lost: bool,
    /// When its latest change that came here was made, by its own clock.
    pub made_at: Option<Wall>,
    /// For how long it is left alone, since what it wrote cannot be written here.
    pub set_aside_for: Option<Duration>,
}

/// What a commit of this node's own changed.
#[derive(Debug)]
pub(super) enum Written {
    Whole(Arc<Changeset>),
    /// It is too large to be told whole.
    Large {
        origin: Origin,
        head: Version,
        /// No row of it died in a longer life.
        longest: u64,
    },
}

fn tell_of_settled(result: &Result<Settled, StorageError>) {
    match result {
        Ok(Settled { dropped: 0, renewed: 0, .. }) => debug!("This node may speak for the cluster"),
        Ok(Settled { dropped, lost, renewed, .. }) => info!(
            dropped,
            lost,
            renewed,
            "This node has caught up. Rows that were deleted while it was away are gone; what it \
             inserted itself meanwhile is told"
        ),
        Err(error) => {
            warn!(%error, "It could not be noted that this node has caught up; trying again")
        }
    }
}

fn tell_of_mended(table: &str, result: &Result<Vec<(Key, Origin)>, StorageError>) {
    match result {
        Ok(rows) => {
            for (key, origin) in rows {
                error!(
                    table = table.replace('\0', "#"), key = shown_key(key), %origin,
                    "A row of this node was not what the others have, though it held all that was \
                     written to it. It was mended; see `tribune doctor`"
                );
            }
        }
        Err(error) => warn!(%error, "Rows that differ from the others' could not be mended"),
    }
}

/// Shows a packed key as the values of its columns.
pub(super) fn shown_key(key: &[u8]) -> String {
    let values = pack::unpack(key).unwrap_or_default();
    let values: Vec<String> = values.iter().map(ToString::to_string).collect();
    let shown: String = values.join(", ").chars().take(KEY_CHARS_MAX).collect();
    shown.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// How much of a key is shown.
const KEY_CHARS_MAX: usize = 200;

/// Commits of one origin reach a peer in their order.
fn series_of(message: &wire::Message) -> u64 {
    let wire::Message::Push { piece, .. } = message else { return 0 };
    let Origin { node, epoch, .. } = piece.origin;
    let folded = u128::from_be_bytes(node.0);
    (folded as u64 ^ (folded >> 64) as u64).wrapping_add(epoch.0).max(1)
}

impl Heard {
    /// Reads a message; what cannot be read is counted and dropped, never an error: what it should
    /// have brought comes another way.
    fn read(&mut self, from: NodeId, bytes: &[u8]) -> Option<wire::Message> {
        let count = match wire::read(bytes) {
            Ok((message, left)) => {
                self.extended += u64::from(left > 0);
                return Some(message);
            }
            Err(error) => {
                debug!(%from, %error, "A message that cannot be read was dropped");
                match error {
                    DecodeError::UnknownKind(_) => &mut self.unknown_kind,
                    DecodeError::UnknownVersion(_) => &mut self.unknown_version,
                    _ => &mut self.unreadable,
                }
            }
        };
        *count += 1;
        None
    }
}

/// Lists where the catalog says that members are, but for those who have left.
fn addresses_in(view: &View, swim: &Swim) -> Vec<SocketAddr> {
    let is_there =
        |node: NodeId| swim.member(node).is_none_or(|member| member.state != swim::State::Left);
    view.nodes()
        .filter(|entry| entry.info.member.is_some_and(is_there))
        .filter_map(|entry| entry.info.node.gossip.parse().ok())
        .collect()
}

/// Everything the loop needs.
pub(super) struct Engine {
    pub(super) me: NodeId,
    pub(super) swim: Swim,
    pub(super) replica: Replica,
    pub(super) net: Net,
    pub(super) events: net::Events,
    pub(super) reports: mpsc::Receiver<Happened>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) loads: Loads,
    pub(super) looks: Looks,
    pub(super) feed: Arc<Feed>,
    pub(super) members: Arc<ArcSwap<Vec<MemberStatus>>>,
    pub(super) join: Join,
    pub(super) relations: Relations,
    pub(super) stats: Arc<ArcSwap<super::Stats>>,
    pub(super) leave: mpsc::Receiver<oneshot::Sender<()>>,
    pub(super) pulse: Pulse,
    /// Where time begins.
    pub(super) start: Instant,
}

/// What the loop remembers between turns.
struct Memory {
    is_net_lost: bool,
    is_writer_gone: bool,
    /// Peers whose connections are kept alive: those that this node pushes to.
    pinned: BTreeSet<NodeId>,
    addresses: BTreeMap<NodeId, SocketAddr>,
    settles_at: Option<Instant>,
    is_settled: bool,
    survey_at: Instant,
    epoch_retry: Option<(Instant, Epoch)>,
    epoch_above: Epoch,
    /// How many were refused when it was last told.
    epochs_refused: u64,
    /// Since when no change of another node could be written, and why.
    apply_error: Option<(Instant, String)>,
    /// Since when too few neighbours are heard.
    cut_off_since: Option<Instant>,
    /// Members that hold the same and have other rows, as they were told of.
    unequal: BTreeSet<NodeId>,
    heard: Heard,
}

impl From<swim::State> for MemberState {
    fn from(state: swim::State) -> Self {
        match state {
            swim::State::Alive => Self::Alive,
            swim::State::Suspect => Self::Suspect,
            swim::State::Down => Self::Down,
            swim::State::Left => Self::Left,
        }
    }
}

impl Engine {
    /// Runs until told to leave, or until the writer is gone.
    pub(super) async fn run(mut self) {
        let mut memory = Memory {
            is_net_lost: false,
            is_writer_gone: false,
            pinned: BTreeSet::new(),
            addresses: BTreeMap::new(),
            settles_at: None,
            is_settled: false,
            survey_at: Instant::now(),
            epoch_retry: None,
            epoch_above: Epoch::default(),
            epochs_refused: 0,
            apply_error: None,
            cut_off_since: None,
            unequal: BTreeSet::new(),
            heard: Heard::default(),
        };
        loop {
            let wake = self.wake_at(&memory);
            // It wakes for the survey at the latest.
            self.pulse.beat("waiting for something to happen");
            let is_on = tokio::select! {
                farewell = self.leave.recv() => {
                    self.say_goodbye(&mut memory, farewell).await;
                    false
                }
                happened = self.reports.recv() => match happened {
                    Some(happened) => { self.happened(&mut memory, happened); !memory.is_writer_gone }
                    None => false,
                },
                event = self.events.recv() => match event {
                    Some(event) => { self.heard(&mut memory, event); !memory.is_net_lost }
                    None => { error!("The network is gone"); false }
                },
                () = tokio::time::sleep_until(wake) => true,
            };
            if !is_on {
                return;
            }
            self.pulse.beat("taking in what happened");
            self.gather(&mut memory);
            if memory.is_writer_gone || memory.is_net_lost {
                return;
            }
            self.tick(&mut memory);
            self.pulse.beat("doing what was asked for");
            self.perform(&mut memory);
        }
    }

    /// Takes what else is ready.
    fn gather(&mut self, memory: &mut Memory) {
        for _ in 0..INPUTS_PER_TURN {
            // In turns, so that neither a busy writer nor a busy network keeps the other waiting.
            let happened = self.reports.try_recv().ok();
            let event = self.events.try_recv();
            if happened.is_none() && event.is_none() {
                return;
            }
            if let Some(happened) = happened {
                self.happened(memory, happened);
            }
            if let Some(event) = event {
                self.heard(memory, event);
            }
        }
    }

    fn now(&self) -> Time {
        let micros = self.start.elapsed().as_micros();
        Time(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// Returns when the loop has to run again at the latest.
    fn wake_at(&self, memory: &Memory) -> Instant {
        // Membership stands still while this process stands aside.
        let swim = self.swim.deadline().filter(|_| !self.relations.is_aside());
        let deadlines = [swim, self.replica.deadline()];
        let machines = deadlines
            .into_iter()
            .flatten()
            .map(|(time, _why)| self.start + Duration::from_micros(time.0));
        let own = [memory.settles_at, memory.epoch_retry.map(|(at, _)| at), Some(memory.survey_at)];
        machines.chain(own.into_iter().flatten()).min().unwrap_or(memory.survey_at)
    }

    fn happened(&mut self, memory: &mut Memory, happened: Happened) {
        let input = match happened {
            Happened::WriterEnded => {
                error!("The writer has ended by itself: nothing can be written any more");
                memory.is_writer_gone = true;
                return;
            }
            Happened::Committed(commits) => {
                for written in commits {
                    let input = match written {
                        Written::Whole(changeset) => replica::Input::Committed(changeset),
                        Written::Large { origin, head, longest } => {
                            replica::Input::CommittedLarge { origin, head, longest }
                        }
                    };
                    self.replica.handle(self.now(), input);
                }
                return;
            }
            Happened::Staged { staging, result } => {
                if let Err(error) = &result {
                    warn!(%error, "Changes from other nodes could not be kept until they are whole; pulling them again");
                }
                replica::Input::Staged { staging, is_done: result.is_ok() }
            }
            Happened::Loaded { id, extract } => replica::Input::Loaded { id, extract },
            Happened::Applied { id, result } => {
                let outcome = match result {
                    Ok(heads) => {
                        memory.apply_error = None;
                        ApplyOutcome::Done { heads }
                    }
                    Err(error) => {
                        let text = error.to_string();
                        let since = memory.apply_error.take().map(|(since, _)| since);
                        memory.apply_error = Some((since.unwrap_or_else(Instant::now), text));
                        warn!(%error, "Changes from other nodes could not be written; trying again");
                        ApplyOutcome::Failed
                    }
                };
                replica::Input::Applied { id, outcome }
            }
            Happened::Withdrawn(result) => {
                match &result {
                    Ok(0) => {}
                    Ok(_) => warn!(
                        "Instances and checks that this node once had, and that nobody has \
                         registered again since its disk was lost or restored, were withdrawn"
                    ),
                    Err(error) => warn!(
                        %error,
                        "Rows of this node that came back from others could not be withdrawn; \
                         trying again later"
                    ),
                }
                replica::Input::Withdrawn { is_done: result.is_ok() }
            }
            Happened::EpochBegun(Ok((origin, ended))) => {
                info!(%origin, "This node goes on under a new epoch");
                memory.epoch_retry = None;
                replica::Input::EpochBegun { origin, ended }
            }
            Happened::Met(result) => {
                if let Err(error) = &result {
                    warn!(%error, "Members could not be noted; trying again");
                }
                replica::Input::Met { is_done: result.is_ok() }
            }
            Happened::Collected(result) => {
                if let Err(error) = &result {
                    warn!(%error, "Tombstones could not be dropped; trying again");
                }
                replica::Input::Collected { outcome: result.ok() }
            }
            Happened::Rejoined(result) => {
                match &result {
                    Ok(origin) => info!(%origin, "This node goes on under a new epoch"),
                    Err(error) => warn!(
                        %error,
                        "This node could not begin to take over the rows of another; trying again"
                    ),
                }
                replica::Input::Rejoined { begun: result.ok() }
            }
            Happened::Settled(result) => {
                tell_of_settled(&result);
                replica::Input::Settled { is_done: result.is_ok() }
            }
            Happened::Departed(node, result) => {
                let name = self.name_of(node);
                match &result {
                    Ok(Version(0)) => {}
                    Ok(_) => {
                        info!(%node, name, "The rows of a member that was forgotten are deleted")
                    }
                    Err(error) => warn!(
                        %node, name, %error,
                        "The rows of a member that was forgotten could not be deleted; trying again"
                    ),
                }
                replica::Input::Departed { head: result.ok() }
            }
            Happened::Tidied(result) => {
                if let Err(error) = &result {
                    warn!(%error, "What is left of members that are gone could not be dropped; trying again");
                }
                replica::Input::Tidied { tidied: result.ok() }
            }
            Happened::Sighted { id, sight } => replica::Input::Sighted { id, sight },
            Happened::Mended(table, result) => {
                tell_of_mended(&table, &result);
                replica::Input::Mended { rows: result.ok() }
            }
            Happened::Recounted(result) => {
                match result {
                    Ok(()) => info!("The fingerprint was added up anew from the rows"),
                    Err(error) => warn!(%error, "The fingerprint could not be added up anew"),
                }
                replica::Input::Recounted
            }
            Happened::Describe(reply) => {
                // Whoever asked may have gone away.
                let _ = reply.send(self.describe(memory));
                return;
            }
            Happened::Join(targets) => {
                for address in self.join.add(targets) {
                    self.net.dial(address);
                }
                return;
            }
            Happened::Forget(node) => {
                warn!(
                    %node, name = self.name_of(node),
                    "An operator says that this member will not return: nobody waits for it any more"
                );
                replica::Input::Forget(node)
            }
            Happened::EpochBegun(Err(error)) => {
                warn!(%error, "A new epoch could not be begun; trying again");
                memory.epoch_retry = Some((Instant::now() + EPOCH_RETRY, memory.epoch_above));
                return;
            }
        };
        self.replica.handle(self.now(), input);
    }

    fn heard(&mut self, memory: &mut Memory, event: net::Event) {
        let now = self.now();
        match event {
            net::Event::Datagram { from, bytes } => {
                self.swim.handle(now, swim::Input::Datagram { from, bytes });
            }
            net::Event::Frame { from, lane: _, bytes } => {
                if let Some(message) = memory.heard.read(from, &bytes) {
                    self.replica.handle(now, replica::Input::Received { from, message });
                }
            }
            net::Event::Connected { node, name, address, round_trip, version, certificate } => {
                debug!(%node, name, %address, ?round_trip, version, "Connected");
                self.relations.connected(node, version, certificate);
                self.measured(memory, node, round_trip);
            }
            net::Event::Answered { node, address } => {
                self.swim.handle(now, swim::Input::Found { node, address });
            }
            net::Event::RoundTrip { node, round_trip } => self.measured(memory, node, round_trip),
            net::Event::Disconnected { node, why } => {
                debug!(%node, ?why, "Disconnected");
                if let Why::Displaced(by) = why
                    && ![self.swim.me().address, self.net.address()].contains(&by)
                {
                    self.ask_for_twin(by);
                }
                self.replica.handle(now, replica::Input::Overrun(node));
            }
            net::Event::DialFailed { address, error: DialError::Twin { process, .. }, .. }
            | net::Event::Twin { address, process } => self.meet_twin(address, process),
            net::Event::DialFailed { address, node: None, error } => {
                if let DialError::Itself(_) = error {
                    self.join.is_me(address);
                }
                if self.relations.is_gone(address) {
                    self.net.stand_aside(false);
                    self.swim.handle(now, swim::Input::Prevail);
                }
                if !self.relations.is_aside() {
                    self.join.failed(address, &error.to_string());
                }
            }
            net::Event::DialFailed { address, node: Some(node), error } => {
                debug!(%node, %address, %error, "A member could not be reached");
                self.relations.failed(node, &error);
            }
            net::Event::EndpointLost => memory.is_net_lost = true,
        }
    }

    /// A connection measured its round trip. The replica, which likes near neighbours, hears of it when
    /// the member's is another than before: most are members before they have a connection.
    fn measured(&mut self, memory: &Memory, node: NodeId, round_trip: Duration) {
        let before = self.swim.round_trip(node);
        self.swim.handle(self.now(), swim::Input::RoundTrip { node, round_trip });
        let round_trip = self.swim.round_trip(node);
        if round_trip != before && memory.addresses.contains_key(&node) {
            self.replica.handle(self.now(), replica::Input::PeerUp { node, round_trip });
        }
    }

    fn tick(&mut self, memory: &mut Memory) {
        let now = self.now();
        if !self.relations.is_aside() {
            self.swim.handle(now, swim::Input::Tick);
        }
        self.replica.handle(now, replica::Input::Tick);
        if memory.settles_at.is_some_and(|at| at <= Instant::now()) {
            memory.settles_at = None;
            memory.is_settled = true;
            self.feed.publish_liveness(wall_now(), Liveness::Settled);
        }
        if let Some((at, above)) = memory.epoch_retry
            && at <= Instant::now()
        {
            memory.epoch_retry = None;
            self.mailbox.push(Job::BeginEpoch { above });
        }
        self.look_around(memory);
        if memory.survey_at <= Instant::now() {
            memory.survey_at = Instant::now() + SURVEY_EVERY;
            self.pin_neighbours(memory);
            self.tell_of_refused_epochs(memory);
            self.tell_of_unequal(memory);
            self.look_at_relations();
            self.survey(memory);
        }
    }

    /// Dials those to join by, and the other process under this node's id, when it is time.
    fn look_around(&mut self, memory: &Memory) {
        let now = Instant::now();
        if self.relations.is_aside() {
            if let Some(rival) = self.relations.look_for(now) {
                self.net.dial(rival);
            }
            return;
        }
        let (feed, swim) = (&self.feed, &self.swim);
        let known = Known {
            is_alone: memory.addresses.is_empty(),
            members: &|| memory.addresses.values().copied().collect(),
            catalog: &|| addresses_in(&feed.view(), swim),
        };
        for address in self.join.due(now, &known) {
            self.net.dial(address);
        }
    }

    /// Another process with this node's id seems to be at an address.
    fn ask_for_twin(&mut self, address: SocketAddr) {
        self.relations.rumour(Instant::now(), address);
        self.net.dial(address);
    }

    /// Another process at an address runs with this node's certificate.
    fn meet_twin(&mut self, address: SocketAddr, twin: net::Process) {
        let mine = self.net.process();
        match self.relations.meet_twin(Instant::now(), address, twin, mine) {
            Verdict::GiveWay => self.net.stand_aside(true),
            Verdict::Prevail => {
                self.net.stand_aside(false);
                self.swim.handle(self.now(), swim::Input::Prevail);
            }
            Verdict::AsBefore => {}
        }
    }

    fn look_at_relations(&mut self) {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let swim = &self.swim;
        self.relations.forget(now, |node| swim.member(node).is_some());
        self.relations.look_at_names(&self.feed.view());
        self.relations.look_at_certificate(now, wall, self.net.validity());
    }

    /// Carries out all that the two machines ask for.
    fn perform(&mut self, memory: &mut Memory) {
        while let Some(effect) = self.swim.next_effect() {
            self.perform_swim(memory, effect);
        }
        while let Some(effect) = self.replica.next_effect() {
            self.perform_replica(memory, effect);
        }
    }

    fn perform_swim(&mut self, memory: &mut Memory, effect: swim::Effect) {
        match effect {
            swim::Effect::Send { to, address, bytes } => self.net.datagram(to, address, bytes),
            swim::Effect::Up(member) => {
                let identity = member.identity;
                info!(node = %identity.node, name = self.name_of(identity.node), address = %identity.address, "A member is up");
                self.is_up(memory, &member);
                self.survey(memory);
            }
            swim::Effect::Renewed(member) => {
                let gone = replica::Input::PeerDown(member.identity.node);
                self.replica.handle(self.now(), gone);
                self.is_up(memory, &member);
            }
            swim::Effect::Down { node, left } => {
                let what = if left { "A member has left" } else { "A member is down" };
                info!(%node, name = self.name_of(node), "{what}");
                memory.addresses.remove(&node);
                memory.pinned.remove(&node);
                self.net.disconnect(node);
                self.feed.publish_liveness(wall_now(), Liveness::Down(node));
                self.replica.handle(self.now(), replica::Input::PeerDown(node));
                self.survey(memory);
            }
            swim::Effect::Guard { on: true } => warn!(
                "Many members seem to have failed at once; more likely this node is cut off. None \
                 is taken out of answers until that is clear"
            ),
            swim::Effect::Guard { on: false } => info!("Members are taken at their word again"),
            swim::Effect::Rejoined(identity) => {
                info!(?identity, "The cluster had taken this node for dead; it has joined again");
            }
            swim::Effect::Conflict { address } => self.ask_for_twin(address),
        }
    }

    fn send(&mut self, memory: &Memory, peer: NodeId, lane: replica::Lane, parcel: Parcel) {
        // A peer that has just gone down has no address any more.
        let Some(address) = memory.addresses.get(&peer) else { return };
        match self.net.send(peer, *address, lane, parcel) {
            Ok(()) => {}
            Err(SendError::Overrun | SendError::Unreachable) => {
                self.replica.handle(self.now(), replica::Input::Overrun(peer));
            }
            // The replica cuts what it sends to the frame's limit; this is a bug of ours.
            Err(error @ SendError::TooLong) => error!(%peer, %error, "A message was not sent"),
        }
    }

    fn is_up(&mut self, memory: &mut Memory, member: &swim::Member) {
        let Identity { node, address, .. } = member.identity;
        memory.addresses.insert(node, address);
        if !memory.is_settled && memory.settles_at.is_none() {
            memory.settles_at = Some(Instant::now() + SETTLED_AFTER);
        }
        self.feed.publish_liveness(wall_now(), Liveness::Up(node));
        let up = replica::Input::PeerUp { node, round_trip: member.round_trip };
        self.replica.handle(self.now(), up);
    }

    fn perform_replica(&mut self, memory: &mut Memory, effect: replica::Effect) {
        match effect {
            replica::Effect::Send { to, message, lane } => {
                let frame = wire::frame::encode_frame(&message);
                let parcel = Parcel::new(frame, series_of(&message));
                for peer in to {
                    self.send(memory, peer, lane, parcel.clone());
                }
            }
            replica::Effect::Apply { id, batch } => self.mailbox.push(Job::Apply { id, batch }),
            replica::Effect::Stage { staging, parts } => {
                self.mailbox.push(Job::Stage { staging, parts });
            }
            replica::Effect::ApplyStaged { id, staging, last } => {
                self.mailbox.push(Job::ApplyStaged { id, staging, last });
            }
            replica::Effect::Unstage(staging) => self.mailbox.push(Job::Unstage(staging)),
            replica::Effect::Load { id, origin, from, bytes_max } => {
                self.loads.ask(id, origin, from, bytes_max);
            }
            replica::Effect::BeginEpoch { above } => {
                warn!(
                    "Other nodes hold newer versions of this node than it does itself: its disk was \
                     restored or lost its tail"
                );
                memory.epoch_above = above;
                self.mailbox.push(Job::BeginEpoch { above });
            }
            replica::Effect::Withdraw => self.mailbox.push(Job::Withdraw),
            replica::Effect::Meet { members, forgotten } => {
                self.mailbox.push(Job::Meet { members, forgotten });
            }
            replica::Effect::Collect { heads, forgotten, rows_max } => {
                debug!(origins = heads.len(), "Dropping tombstones");
                self.mailbox.push(Job::Collect { heads, forgotten, rows_max });
            }
            replica::Effect::Rejoin { held, length } => {
                warn!(
                    "Others have forgotten deletes that this node has not heard of: it was away for \
                     long, or its disk was set back. It takes over all rows of one of them"
                );
                self.mailbox.push(Job::Rejoin { held, length });
            }
            replica::Effect::Settle(past) => self.mailbox.push(Job::Settle(past)),
            replica::Effect::Depart { under, held } => {
                self.mailbox.push(Job::Depart { under, held });
            }
            replica::Effect::Tidy(tidy) => self.mailbox.push(Job::Tidy(tidy)),
            replica::Effect::Look { id, look } => self.looks.ask(id, look),
            replica::Effect::Mend(mend) => self.mailbox.push(Job::Mend(mend)),
            replica::Effect::Recount => self.mailbox.push(Job::Recount),
        }
    }

    /// Keeps the connections to neighbours alive, and lets those go that are none any more.
    fn pin_neighbours(&self, memory: &mut Memory) {
        let now: BTreeSet<NodeId> = self.replica.neighbours().collect();
        for node in memory.pinned.symmetric_difference(&now) {
            if let Some(address) = memory.addresses.get(node) {
                self.net.pin(*node, *address, now.contains(node));
            }
        }
        memory.pinned = now;
    }

    fn tell_of_refused_epochs(&self, memory: &mut Memory) {
        let refused = self.replica.stats().epochs_refused;
        if refused > memory.epochs_refused {
            memory.epochs_refused = refused;
            error!(
                "Other nodes hold versions of this node from a time that its clock says is decades \
                 ahead: what it writes does not count with them. Set the clock of this host right \
                 and start again"
            );
        }
    }

    /// Tells once of each member that holds the same and has other rows, and once that it is over.
    fn tell_of_unequal(&self, memory: &mut Memory) {
        let now: BTreeSet<NodeId> = self.replica.findings().unequal.keys().copied().collect();
        for node in now.difference(&memory.unequal) {
            error!(
                %node, name = self.name_of(*node),
                "This node and another one hold the same versions and have other rows; looking \
                 which ones"
            );
        }
        for node in memory.unequal.difference(&now) {
            info!(%node, name = self.name_of(*node), "This node and another one have the same rows again");
        }
        memory.unequal = now;
    }

    /// Sums up how this node stands to the others.
    fn standing(&self, memory: &mut Memory) -> Standing {
        let now = self.now();
        let collection = self.replica.collection(now);
        let others = self.swim.members().filter(|member| {
            let is_gone = matches!(member.state, swim::State::Left);
            !is_gone && !collection.forgotten.contains(&member.identity.node)
        });
        let links_wanted = self.replica.links_wanted(others.count());
        let links_heard = self.replica.links_heard(now);
        if Standing::are_few(links_heard, links_wanted) {
            memory.cut_off_since.get_or_insert_with(Instant::now);
        } else {
            memory.cut_off_since = None;
        }
        let is_long = |since: Option<Instant>, long| since.is_some_and(|at| at.elapsed() >= long);
        let behind = self.replica.behind();
        let failing = memory.apply_error.as_ref().filter(|(at, _)| at.elapsed() >= FAILING_FOR);
        Standing {
            lag: self.replica.lag(now),
            versions_behind: behind.versions,
            origins_behind: behind.origins,
            links_heard,
            links_wanted,
            is_cut_off: is_long(memory.cut_off_since, CUT_OFF_FOR),
            is_rejoining: collection.is_rejoining,
            unequal: self.replica.findings().unequal.len(),
            mended: self.replica.findings().mended,
            apply_error: failing.map(|(_, text)| text.clone()),
            set_aside: self.replica.set_aside(now).len(),
        }
    }

    /// Describes how far each origin is held, for who asks.
    fn describe(&self, memory: &mut Memory) -> Replication {
        let now = self.now();
        let mut lags: BTreeMap<Origin, replica::OriginLag> =
            self.replica.lags().into_iter().map(|lag| (lag.origin, lag)).collect();
        let heads: BTreeMap<Origin, Version> = self.replica.ledger().heads().collect();
        let all: BTreeSet<Origin> = heads.keys().chain(lags.keys()).copied().collect();
        let aside: BTreeMap<Origin, Time> = self.replica.set_aside(now).into_iter().collect();
        let origins = all.into_iter().map(|origin| {
            let held = heads.get(&origin).copied().unwrap_or_default();
            let lag = lags.remove(&origin);
            HeldOrigin {
                origin,
                held,
                heard: lag.as_ref().map_or(held, |lag| lag.heard.max(held)),
                behind_for: lag.as_ref().and_then(|lag| lag.since).map(|since| now.since(since)),
                sources: lag.as_ref().map(|lag| lag.sources.clone()).unwrap_or_default(),
                is_lost: lag.is_some_and(|lag| lag.is_lost),
                made_at: self.replica.made_at(origin),
                set_aside_for: aside.get(&origin).map(|until| until.since(now)),
            }
        });
        Replication {
            origins: origins.collect(),
            standing: self.standing(memory),
            findings: self.replica.findings().clone(),
            now,
        }
    }

    /// Renews what `members` and metrics show.
    fn survey(&self, memory: &mut Memory) {
        let (view, wall, own) = (self.feed.view(), SystemTime::now(), self.net.validity());
        let relation = |node, ring| self.relations.of(node, ring, wall, &view, own);
        let mut list = vec![MemberStatus {
            id: self.me,
            gossip: self.swim.me().address,
            state: MemberState::Alive,
            round_trip: None,
            versions_behind: 0,
            is_unequal: false,
            relation: relation(self.me, None),
        }];
        let unequal = &self.replica.findings().unequal;
        let behind = self.replica.behind_of();
        for member in self.swim.members() {
            let Identity { node, address, .. } = member.identity;
            list.push(MemberStatus {
                id: node,
                gossip: address,
                state: member.state.into(),
                round_trip: member.round_trip,
                versions_behind: behind.get(&node).copied().unwrap_or(0),
                is_unequal: unequal.contains_key(&node),
                relation: match member.state.is_active() {
                    true => relation(node, member.ring),
                    // That it does not answer is its state.
                    false => Relation::default(),
                },
            });
        }
        let (name_conflicts, id_conflicts) = self.relations.conflicts();
        let measured = list.iter().filter_map(|member| Some((member.id, member.round_trip?)));
        self.feed.publish_distances(measured.collect());
        self.members.store(Arc::new(list));
        self.stats.store(Arc::new(super::Stats {
            replica: *self.replica.stats(),
            collection: self.replica.collection(self.now()),
            swim: self.swim.counters(),
            behind: self.replica.behind(),
            standing: self.standing(memory),
            findings: self.replica.findings().clone(),
            at: Some(Instant::now()),
            waiting_bytes: self.replica.waiting_bytes(),
            members: self.swim.active_count() + 1,
            neighbours: self.replica.neighbours().count(),
            health: self.swim.health(),
            held_back: self.swim.held_back(),
            name_conflicts,
            id_conflicts,
            is_aside: self.relations.is_aside(),
            heard: memory.heard,
        }));
    }

    /// Sends what is still to be sent, says goodbye, and gives both a moment to leave the host.
    async fn say_goodbye(&mut self, memory: &mut Memory, farewell: Option<oneshot::Sender<()>>) {
        self.gather(memory);
        self.perform(memory);
        self.swim.handle(self.now(), swim::Input::Leave);
        self.perform(memory);
        self.net.clone().close(FAREWELL).await;
        if let Some(farewell) = farewell {
            // Whoever waited may have given up.
            let _ = farewell.send(());
        }
    }

    fn name_of(&self, node: NodeId) -> String {
        let view = self.feed.view();
        view.node_by_key(&key_of(node))
            .map(|entry| entry.info.node.name.clone())
            .unwrap_or_default()
    }
}
