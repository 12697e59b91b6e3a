//! One replica, told what happens, and what it says to do.

use std::time::Duration;

use super::*;
use crate::crdt::storage::Extract;
use crate::crdt::{Batch, Key, Staging, Stamp};
use crate::ledger::tests::origin;
use crate::types::Wall;
use crate::wire::{Cut, Neighbour, RequestId};

const ME: u8 = 1;

fn node(number: u8) -> NodeId {
    origin(number).node
}

fn changeset(of: u8, version: u64) -> Arc<Changeset> {
    let stamp = Stamp { origin: origin(of), version: Version(version) };
    Arc::new(Changeset { stamp, at: Wall(0), tables: Vec::new() })
}

fn push(of: u8, version: u64) -> Message {
    Message::Push { hops: 0, piece: Piece::of(changeset(of, version)) }
}

/// A push that has come from afar, as the node that it came to would pass it on.
fn far_push(of: u8, version: u64, hops: u8) -> Message {
    Message::Push { hops: hops | HOPS_FAR, piece: Piece::of(changeset(of, version)) }
}

fn offer(of: u8, version: u64) -> Offer {
    Offer { origin: origin(of), version: Version(version), bytes: 100 }
}

fn piece(of: u8, after: u64, through: u64) -> Piece {
    let changesets = (after + 1..=through).map(|version| changeset(of, version)).collect();
    Piece { origin: origin(of), after: Version(after), through: Version(through), changesets }
}

fn pulled(request: RequestId, piece: Piece, head: u64) -> Message {
    Message::Pulled { request, piece, head: Version(head), cut: Cut::default() }
}

fn heads(of: u8, version: u64) -> Message {
    Message::Heads(vec![(origin(of), Version(version))])
}

#[path = "collection_tests.rs"]
mod collection;

/// A replica and its clock, in a little language.
struct One {
    replica: Replica,
    now: Time,
}

impl One {
    fn new() -> Self {
        Self { replica: Replica::new(origin(ME), [], Config::default(), 1), now: Time(0) }
    }

    /// One whose neighbours are these.
    fn with_neighbours(neighbours: &[u8]) -> Self {
        let mut one = Self::new();
        for neighbour in neighbours {
            let node = node(*neighbour);
            one.tell(Input::PeerUp { node, round_trip: None });
            one.hear(*neighbour, Message::Neighbour(Neighbour::Accepted));
        }
        assert_eq!(one.replica.neighbours().count(), neighbours.len());
        one
    }

    /// One in a cluster that is too large for everybody to know everybody, with these neighbours and
    /// their round trips in milliseconds.
    fn in_large_cluster(neighbours: &[(u8, u64)]) -> Self {
        let config = Config { direct_max: 0, ..Config::default() };
        let replica = Replica::new(origin(ME), [], config, 1);
        let mut one = Self { replica, now: Time(0) };
        for (neighbour, millis) in neighbours {
            let round_trip = Some(Duration::from_millis(*millis));
            one.tell(Input::PeerUp { node: node(*neighbour), round_trip });
        }
        one.wait(60);
        for (neighbour, _) in neighbours {
            one.hear(*neighbour, Message::Neighbour(Neighbour::Accepted));
        }
        assert_eq!(one.replica.neighbours().count(), neighbours.len());
        one
    }

    fn tell(&mut self, input: Input) -> Vec<Effect> {
        self.replica.handle(self.now, input);
        let mut effects = Vec::new();
        while let Some(effect) = self.replica.next_effect() {
            match effect {
                Effect::Meet { .. } => {
                    self.replica.handle(self.now, Input::Met { is_done: true });
                }
                effect => effects.push(effect),
            }
        }
        effects
    }

    fn hear(&mut self, from: u8, message: Message) -> Vec<Effect> {
        self.tell(Input::Received { from: node(from), message })
    }

    fn wait(&mut self, millis: u64) -> Vec<Effect> {
        let end = self.now + Duration::from_millis(millis);
        let mut effects = Vec::new();
        while let Some((at, _)) = self.replica.deadline().filter(|(at, _)| *at <= end) {
            assert!(at >= self.now, "a deadline in the past was not dealt with");
            self.now = at;
            effects.extend(self.tell(Input::Tick));
        }
        self.now = end;
        effects
    }

    fn done(&mut self, id: BatchId, batch: &Batch) -> Vec<Effect> {
        let heads = batch.pieces.iter().map(|piece| (piece.origin, piece.through)).collect();
        self.tell(Input::Applied { id, outcome: ApplyOutcome::Done { heads } })
    }

    fn held(&self, of: u8) -> u64 {
        self.replica.ledger().head(origin(of)).0
    }
}

fn sent(effects: &[Effect]) -> Vec<(Vec<NodeId>, &Message)> {
    let sent = effects.iter().filter_map(|effect| match effect {
        Effect::Send { to, message, .. } => Some((to.clone(), message)),
        Effect::Apply { .. }
        | Effect::ApplyStaged { .. }
        | Effect::Stage { .. }
        | Effect::Unstage(_)
        | Effect::Load { .. }
        | Effect::BeginEpoch { .. }
        | Effect::Withdraw
        | Effect::Meet { .. }
        | Effect::Collect { .. }
        | Effect::Rejoin { .. }
        | Effect::Settle(_)
        | Effect::Depart { .. }
        | Effect::Tidy(_)
        | Effect::Look { .. }
        | Effect::Mend(_)
        | Effect::Recount => None,
    });
    sent.collect()
}

fn offered_to(effects: &[Effect]) -> Vec<NodeId> {
    let is_offer = |message: &Message| matches!(message, Message::Offer(_));
    let offers = sent(effects).into_iter().filter(|(_, message)| is_offer(message));
    offers.flat_map(|(to, _)| to).collect()
}

fn batch(effects: &[Effect]) -> Option<(BatchId, Batch)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Apply { id, batch } => Some((*id, batch.clone())),
        Effect::Send { .. }
        | Effect::ApplyStaged { .. }
        | Effect::Stage { .. }
        | Effect::Unstage(_)
        | Effect::Load { .. }
        | Effect::BeginEpoch { .. }
        | Effect::Withdraw
        | Effect::Meet { .. }
        | Effect::Collect { .. }
        | Effect::Rejoin { .. }
        | Effect::Settle(_)
        | Effect::Depart { .. }
        | Effect::Tidy(_)
        | Effect::Look { .. }
        | Effect::Mend(_)
        | Effect::Recount => None,
    })
}

fn wants(effects: &[Effect]) -> Vec<(NodeId, RequestId, Origin, u64)> {
    let wants = sent(effects).into_iter().filter_map(|(to, message)| match message {
        Message::Want { request, origin, after, .. } => Some((to[0], *request, *origin, after.0)),
        _ => None,
    });
    wants.collect()
}

#[test]
fn an_own_commit_goes_once_to_every_neighbour() {
    let mut one = One::with_neighbours(&[2, 3, 4]);
    let effects = one.tell(Input::Committed(changeset(ME, 1)));
    let to = vec![node(2), node(3), node(4)];
    let message = far_push(ME, 1, 0);
    assert_eq!(
        effects,
        [Effect::Send { to, message, lane: Lane::Own }],
        "the commit, and nothing else"
    );
    assert_eq!(one.held(ME), 1);
}

#[test]
fn in_a_small_cluster_nobody_passes_on_what_its_writer_sent_to_all() {
    let mut one = One::with_neighbours(&[2, 3, 4]);
    let effects = one.hear(3, push(3, 1));
    assert_eq!(sent(&effects), []);
    let offers = one.hear(3, push(9, 1));
    assert_eq!(sent(&offers), []);
    let offered = one.wait(30);
    let to: Vec<_> = offered_to(&offered);
    assert_eq!(to, [node(2), node(4)], "what came another way is offered to the others");
}

#[test]
fn close_neighbours_are_offered_what_distant_ones_are_sent() {
    let mut one = One::in_large_cluster(&[(2, 1), (3, 1), (4, 80), (5, 90)]);
    let effects = one.hear(2, push(9, 1));
    let onward = far_push(9, 1, 1);
    assert_eq!(sent(&effects)[0], (vec![node(4), node(5)], &onward), "the nearest first");
    assert_eq!(sent(&effects).len(), 2);
    assert_eq!(offered_to(&effects), [node(3)]);
    let name = (origin(9), Version(1));
    let taken = one.hear(3, Message::Take(vec![name]));
    let near = Message::Push { hops: 1, piece: Piece::of(changeset(9, 1)) };
    assert_eq!(sent(&taken), [(vec![node(3)], &near)]);
    assert_eq!(sent(&one.hear(3, Message::Take(vec![(origin(9), Version(2))]))), []);
}

#[test]
fn what_has_come_from_afar_is_offered_to_distant_neighbours_when_they_probably_have_it() {
    let mut one = One::in_large_cluster(&[(2, 80), (3, 1), (4, 80), (5, 90)]);
    let effects = one.hear(2, far_push(9, 1, 3));
    assert_eq!(sent(&effects).len(), 1, "it is sent to nobody");
    assert_eq!(offered_to(&effects), [node(3)]);
    one.hear(4, Message::Offer(vec![offer(9, 1)]));
    assert_eq!(offered_to(&one.wait(30)), [node(5)], "4 has it: it said so");
}

#[test]
fn what_is_offered_is_taken_from_the_first_and_from_the_next_when_it_does_not_come() {
    let mut one = One::in_large_cluster(&[(2, 1), (3, 1), (4, 80), (5, 90)]);
    let takes = |effects: &[Effect]| {
        let is_take = |message: &Message| matches!(message, Message::Take(_));
        let takes = sent(effects).into_iter().filter(|(_, message)| is_take(message));
        takes.flat_map(|(to, _)| to).collect::<Vec<_>>()
    };
    let offers = || Message::Offer(vec![offer(9, 1)]);
    assert_eq!(takes(&one.hear(2, offers())), [node(2)]);
    assert_eq!(takes(&one.hear(3, offers())), []);
    assert_eq!(takes(&one.hear(4, offers())), []);
    assert_eq!(takes(&one.wait(17)), [node(3)], "2 did not answer");
    one.hear(3, push(9, 1));
    assert_eq!(takes(&one.wait(400)), []);
    assert_eq!(takes(&one.hear(5, offers())), [], "it is here");
}

#[test]
fn what_is_offered_from_afar_is_asked_of_a_close_neighbour_first() {
    let mut one = One::in_large_cluster(&[(2, 1), (4, 80), (5, 80), (6, 80)]);
    let asked = |effects: &[Effect]| {
        let takes = sent(effects).into_iter();
        let takes = takes.filter(|(_, message)| matches!(message, Message::Take(_)));
        takes.flat_map(|(to, _)| to).collect::<Vec<_>>()
    };
    assert_eq!(asked(&one.hear(4, Message::Offer(vec![offer(9, 1)]))), [node(2)]);
    assert_eq!(asked(&one.wait(17)), [node(4)]);
}

#[test]
fn a_push_is_passed_on_before_it_is_on_disk_and_never_back() {
    let mut one = One::in_large_cluster(&[(2, 80), (3, 80), (4, 80), (5, 80)]);
    let effects = one.hear(3, push(9, 1));
    let onward = far_push(9, 1, 1);
    assert_eq!(sent(&effects), [(vec![node(2), node(4), node(5)], &onward)]);
    let (id, batch) = batch(&effects).expect("it is applied at once");
    assert_eq!(one.held(9), 0);
    assert_eq!(sent(&one.hear(2, push(9, 1))), [], "the second copy stops here");
    one.done(id, &batch);
    assert_eq!(one.held(9), 1);
}

#[test]
fn what_comes_early_waits_for_what_it_follows() {
    let mut one = One::in_large_cluster(&[(2, 80), (3, 80), (4, 80), (5, 80)]);
    let early = one.hear(2, push(9, 2));
    assert_eq!(batch(&early), None);
    assert_eq!(sent(&early).len(), 1, "it is passed on all the same");
    let effects = one.hear(2, push(9, 1));
    let (_, batch) = batch(&effects).unwrap();
    assert_eq!(batch.pieces, [piece(9, 0, 2)]);
}

#[test]
fn pieces_gather_while_a_batch_is_being_written() {
    let mut one = One::with_neighbours(&[2]);
    let (id, first) = batch(&one.hear(2, push(8, 1))).unwrap();
    assert_eq!(batch(&one.hear(2, push(8, 2))), None);
    assert_eq!(batch(&one.hear(2, push(9, 1))), None);
    assert_eq!(batch(&one.done(id, &first)), None, "what comes soon after is written together");
    let (_, second) = batch(&one.wait(8)).unwrap();
    assert_eq!(second.pieces, [piece(8, 1, 2), piece(9, 0, 1)]);
}

#[test]
fn few_changes_soon_after_a_batch_share_the_next() {
    let mut one = One::with_neighbours(&[2]);
    let (id, first) = batch(&one.hear(2, push(8, 1))).expect("what comes alone does not wait");
    assert_eq!(batch(&one.done(id, &first)), None);
    one.wait(5);
    assert_eq!(batch(&one.hear(2, push(8, 2))), None);
    assert_eq!(batch(&one.wait(2)), None);
    assert_eq!(batch(&one.hear(2, push(9, 1))), None);
    let (id, second) = batch(&one.wait(1)).expect("8 ms after the first began");
    assert_eq!(second.pieces, [piece(8, 1, 2), piece(9, 0, 1)]);
    one.done(id, &second);
    one.wait(8);
    let (id, third) = batch(&one.hear(2, push(8, 3))).expect("the time is over");
    assert_eq!(batch(&one.done(id, &third)), None);
    one.replica.intake.apply_now_bytes(1);
    assert!(batch(&one.hear(2, push(8, 4))).is_some(), "much does not wait");
}

#[test]
fn what_stays_missing_is_pulled_from_one_who_holds_it() {
    let mut one = One::with_neighbours(&[2, 3]);
    assert_eq!(wants(&one.hear(3, heads(9, 4))), []);
    assert_eq!(one.replica.behind().versions, 4);
    assert_eq!(one.replica.behind_of(), BTreeMap::from([(node(3), 4)]));
    let asked = wants(&one.wait(300));
    let [(peer, request, wanted, 0)] = asked[..] else { panic!("{asked:?}") };
    assert_eq!((peer, wanted), (node(3), origin(9)));
    let message = pulled(request, piece(9, 0, 4), 4);
    let effects = one.hear(3, message);
    let (id, batch) = batch(&effects).unwrap();
    assert_eq!(sent(&effects), [], "what was pulled is not pushed");
    one.done(id, &batch);
    assert_eq!(one.held(9), 4);
    assert_eq!(one.replica.behind(), Behind::default());
}

#[test]
fn what_comes_by_itself_is_not_pulled() {
    let mut one = One::with_neighbours(&[2, 3]);
    one.hear(3, heads(9, 1));
    one.wait(100);
    one.hear(2, push(9, 1));
    assert_eq!(wants(&one.wait(1_000)), []);
}

#[test]
fn an_answer_that_does_not_come_is_asked_for_elsewhere() {
    let mut one = One::with_neighbours(&[2, 3]);
    one.hear(2, heads(9, 1));
    one.hear(3, heads(9, 1));
    let first = wants(&one.wait(300));
    let second = wants(&one.wait(1_000));
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_ne!(first[0].0, second[0].0);
    assert_eq!(one.replica.stats().pulls_timed_out, 1);
}

#[test]
fn a_busy_peer_is_left_alone_for_as_long_as_it_asks() {
    let mut one = One::with_neighbours(&[2]);
    one.hear(2, heads(9, 1));
    let (_, request, ..) = wants(&one.wait(300))[0];
    one.hear(2, Message::Busy { request, retry_after: Duration::from_secs(2) });
    assert_eq!(wants(&one.wait(1_990)), []);
    assert_eq!(wants(&one.wait(1_500)).len(), 1);
}

#[test]
fn outstanding_pulls_are_limited_by_peer_and_in_all() {
    let mut one = One::with_neighbours(&[2, 3, 4, 5, 6, 7]);
    for of in 100..150 {
        one.hear(2, heads(of, 1));
    }
    assert_eq!(wants(&one.wait(301)).len(), 4);
    for peer in 3..8 {
        for of in 100..150 {
            one.hear(peer, heads(of, 1));
        }
    }
    assert_eq!(wants(&one.wait(500)).len(), 12);
}

#[test]
fn a_catch_up_that_was_cut_is_applied_when_it_is_whole() {
    let mut one = One::with_neighbours(&[2]);
    one.hear(2, heads(9, 6));
    let (_, request, ..) = wants(&one.wait(300))[0];
    let first = pulled(request, piece(9, 0, 4), 6);
    let effects = one.hear(2, first);
    assert_eq!(batch(&effects), None);
    let (_, request, _, after) = wants(&effects)[0];
    assert_eq!(after, 4);
    let rest = pulled(request, piece(9, 4, 6), 6);
    let (_, batch) = batch(&one.hear(2, rest)).unwrap();
    assert_eq!(batch.pieces, [piece(9, 0, 6)]);
}

#[test]
fn a_batch_that_failed_is_tried_again_and_does_not_count_as_held() {
    let mut one = One::with_neighbours(&[2]);
    let (id, failed) = batch(&one.hear(2, push(9, 1))).unwrap();
    one.tell(Input::Applied { id, outcome: ApplyOutcome::Failed });
    assert_eq!(one.held(9), 0);
    let (id, again) = batch(&one.wait(200)).unwrap();
    assert_eq!(again, failed);
    one.done(id, &again);
    assert_eq!(one.held(9), 1);
}

#[test]
fn an_origin_that_cannot_be_written_is_set_aside_and_stops_nobody_else() {
    let mut one = One::with_neighbours(&[2]);
    let mut effects = one.hear(2, push(8, 1));
    for of in [7, 9, 10] {
        effects.extend(one.hear(2, push(of, 1)));
    }
    for _ in 0..40 {
        if let Some((id, batch)) = batch(&effects) {
            let is_poisoned = batch.pieces.iter().any(|piece| piece.origin == origin(9));
            effects = if is_poisoned {
                one.tell(Input::Applied { id, outcome: ApplyOutcome::Failed })
            } else {
                one.done(id, &batch)
            };
        } else {
            effects = one.wait(100);
        }
    }
    assert_eq!([7, 8, 9, 10].map(|of| one.held(of)), [1, 1, 0, 1]);
    assert!(one.replica.stats().set_aside >= 1);
    assert_eq!(one.replica.behind().origins, 1, "what is set aside is not forgotten");
}

#[test]
fn a_want_is_answered_from_what_the_storage_loads() {
    let mut one = One::with_neighbours(&[2]);
    one.tell(Input::Committed(changeset(ME, 1)));
    let request = RequestId(7);
    let want = |after| Message::Want {
        request,
        origin: origin(ME),
        after: Version(after),
        part: 0,
        is_whole: false,
    };
    let effects = one.hear(2, want(0));
    let [Effect::Load { id, .. }] = effects[..] else { panic!("{effects:?}") };
    let extract = Some(Extract { piece: piece(ME, 0, 1), head: Version(1), part: 0 });
    let answer = one.tell(Input::Loaded { id, extract });
    let whole = pulled(request, piece(ME, 0, 1), 1);
    assert_eq!(sent(&answer), [(vec![node(2)], &whole)]);
    let nothing = pulled(request, piece(ME, 1, 1), 1);
    assert_eq!(sent(&one.hear(2, want(1))), [(vec![node(2)], &nothing)]);
}

#[test]
fn wants_beyond_the_places_are_told_to_come_back() {
    let mut one = One::with_neighbours(&[2, 3]);
    one.tell(Input::Committed(changeset(ME, 1)));
    let want = |request| Message::Want {
        request: RequestId(request),
        origin: origin(ME),
        after: Version(0),
        part: 0,
        is_whole: false,
    };
    for request in 0..8 {
        let peer = 2 + u8::from(request >= 4);
        assert!(matches!(one.hear(peer, want(request))[..], [Effect::Load { .. }]));
    }
    let effects = one.hear(2, want(8));
    assert!(matches!(sent(&effects)[..], [(_, Message::Busy { .. })]), "{effects:?}");
}

#[test]
fn own_commits_that_the_replica_was_not_told_of_are_not_given_away() {
    let mut one = One::with_neighbours(&[2]);
    one.tell(Input::Committed(changeset(ME, 1)));
    let request = RequestId(1);
    let want =
        Message::Want { request, origin: origin(ME), after: Version(0), part: 0, is_whole: false };
    let effects = one.hear(2, want);
    let [Effect::Load { id, .. }] = effects[..] else { panic!("{effects:?}") };
    let extract = Some(Extract { piece: piece(ME, 0, 3), head: Version(3), part: 0 });
    let effects = one.tell(Input::Loaded { id, extract });
    let cut = pulled(request, piece(ME, 0, 1), 3);
    assert_eq!(sent(&effects), [(vec![node(2)], &cut)]);
}

#[test]
fn a_peer_that_knows_more_of_this_node_than_itself_makes_it_begin_an_epoch() {
    let mut one = One::with_neighbours(&[2]);
    one.tell(Input::Committed(changeset(ME, 1)));
    assert_eq!(one.hear(2, heads(ME, 1)), []);
    let effects = one.hear(2, heads(ME, 5));
    assert_eq!(effects, [Effect::BeginEpoch { above: Epoch(1) }]);
    assert_eq!(one.hear(2, push(ME, 6)), [], "once is enough");
    let second = Origin { epoch: Epoch(2), ..origin(ME) };
    one.tell(Input::EpochBegun { origin: second, ended: (origin(ME), Version(1)) });
    one.hear(2, heads(ME, 5));
    assert_eq!(wants(&one.wait(300)).len(), 1, "the lost tail comes back as another's");
    let mut outbid = |epoch, after| {
        let later = Origin { epoch: Epoch(epoch), ..origin(ME) };
        one.wait(after);
        one.hear(2, Message::Known { origin: later, head: Version(1) })
    };
    for epoch in [7, 9] {
        assert_eq!(outbid(epoch, 10), [Effect::BeginEpoch { above: Epoch(epoch) }]);
    }
    for after in [10, 50_000] {
        assert_eq!(outbid(11, after), [], "not one after the other");
    }
    assert_eq!(outbid(11, 10_000), [Effect::BeginEpoch { above: Epoch(11) }]);
    assert_eq!(outbid(13, 10), []);
}

#[test]
fn what_came_back_of_this_node_is_withdrawn_a_minute_later() {
    let mut one = One::with_neighbours(&[2]);
    let withdraws = |effects: &[Effect]| effects.iter().filter(|e| **e == Effect::Withdraw).count();
    let minute = Config::default().withdraw_after.as_millis() as u64;
    assert_eq!(withdraws(&one.wait(minute + 1_000)), 1, "what an earlier process left");
    one.tell(Input::Withdrawn { is_done: true });
    assert_eq!(withdraws(&one.wait(2 * minute)), 0);

    let second = Origin { epoch: Epoch(2), ..origin(ME) };
    one.tell(Input::EpochBegun { origin: second, ended: (origin(ME), Version(0)) });
    let effects = one.hear(2, push(ME, 1));
    let (id, batch) = batch(&effects).expect("it is of an earlier epoch: another's");
    assert_eq!(withdraws(&one.done(id, &batch)), 0);
    assert_eq!(withdraws(&one.wait(minute - 1_000)), 0);
    assert_eq!(withdraws(&one.wait(2_000)), 1);
    one.tell(Input::Withdrawn { is_done: false });
    assert_eq!(withdraws(&one.wait(minute + 1_000)), 1, "it is tried again");
    one.tell(Input::Withdrawn { is_done: true });

    let key = Key::default();
    one.tell(Input::Mended { rows: Some(vec![(key.clone(), second), (key.clone(), origin(9))]) });
    assert_eq!(withdraws(&one.wait(2 * minute)), 0, "rows of this life and of others");
    one.tell(Input::Mended { rows: Some(vec![(key, origin(ME))]) });
    assert_eq!(withdraws(&one.wait(minute + 1_000)), 1, "what mending brought back");
}

#[test]
fn a_peer_that_knows_no_more_of_this_node_confirms_it() {
    let mut one = One::with_neighbours(&[2]);
    one.hear(2, Message::Known { origin: origin(ME), head: Version(0) });
    assert_eq!(one.replica.confirmations(), 1);
    one.hear(2, Message::Known { origin: origin(9), head: Version(0) });
    assert_eq!(one.replica.stats().rejected, 1);
}

#[test]
fn heads_that_moved_are_told_once_and_an_idle_node_is_silent() {
    let mut one = One::with_neighbours(&[2, 3]);
    one.wait(1_000);
    one.tell(Input::Committed(changeset(ME, 1)));
    let effects = one.wait(500);
    let digest = heads(ME, 1);
    assert_eq!(sent(&effects), [(vec![node(2)], &digest), (vec![node(3)], &digest)]);
    let digests = one.replica.stats().digests;
    let mut later = one.wait(200_000);
    assert_eq!(one.replica.stats().digests, digests);
    let is_greeting =
        |effect: &Effect| matches!(effect, Effect::Send { message: Message::Hello { .. }, .. });
    let greetings = later.extract_if(.., |effect| is_greeting(effect)).count();
    assert!((40..65).contains(&greetings), "one every four seconds: {greetings}");
    assert!(later.len() < 10, "one comparison each half minute: {later:?}");
}

#[test]
fn neighbours_are_told_of_what_came_by_pulling() {
    let mut one = One::new();
    for number in 2..20 {
        one.tell(Input::PeerUp { node: node(number), round_trip: None });
        one.hear(number, Message::Neighbour(Neighbour::Ask { urgent: false }));
    }
    one.wait(1_000);
    let expected: BTreeSet<NodeId> = one.replica.neighbours().collect();
    one.hear(2, heads(9, 3));
    let (_, request, ..) = wants(&one.wait(300))[0];
    let message = pulled(request, piece(9, 0, 3), 3);
    let (id, batch) = batch(&one.hear(2, message)).unwrap();
    one.done(id, &batch);
    let effects = one.wait(500);
    let digest = heads(9, 3);
    let told = sent(&effects).into_iter().filter(|(_, message)| **message == digest);
    let told: BTreeSet<NodeId> = told.flat_map(|(to, _)| to).collect();
    assert!(told.is_superset(&expected), "{told:?} are told, {expected:?} are neighbours");
}

#[test]
fn a_version_that_only_a_lost_disk_held_is_given_up() {
    let mut one = One::with_neighbours(&[2, 3]);
    one.hear(2, heads(9, 5));
    one.hear(3, heads(9, 1));
    let asked = wants(&one.wait(300));
    assert_eq!(asked.len(), 1);
    one.tell(Input::PeerDown(node(2)));
    let request = wants(&one.wait(5_000))[0].1;
    let message = pulled(request, piece(9, 0, 1), 1);
    let (id, batch) = batch(&one.hear(3, message)).unwrap();
    one.done(id, &batch);
    one.wait(1_000);
    assert_eq!((one.held(9), one.replica.behind()), (1, Behind::default()));
}

#[test]
fn an_overrun_peer_is_told_everything_again_but_not_at_once() {
    let mut one = One::with_neighbours(&[2]);
    one.wait(29_000);
    for _ in 0..9 {
        one.tell(Input::Overrun(node(2)));
    }
    let effects = one.wait(600);
    let hashes = sent(&effects);
    assert!(matches!(hashes[..], [(_, Message::Buckets(_))]), "{effects:?}");
}

#[test]
fn a_push_that_is_no_fresh_commit_is_counted_and_dropped() {
    let mut one = One::with_neighbours(&[2]);
    let message = Message::Push { hops: 0, piece: piece(9, 0, 2) };
    assert_eq!(one.hear(2, message), []);
    assert_eq!(one.replica.stats().rejected, 1);
}

/// One that hears that peers hold version 1 of origin 9, and has asked one of them.
fn pulling(config: Config, peers: &[u8]) -> (One, (NodeId, RequestId)) {
    let mut one = One::new();
    one.replica = Replica::new(origin(ME), [], config, 1);
    for peer in peers {
        one.hear(*peer, heads(9, 1));
    }
    let asked = one.wait(400);
    let wants = wants(&asked);
    assert_eq!(wants.len(), 1, "{asked:?}");
    (one, (wants[0].0, wants[0].1))
}

/// The rows of version 1 of origin 9 from part `from` to before part `to`.
fn part(request: RequestId, from: u64, to: u64) -> Message {
    let through = Version(u64::from(to == 0));
    let piece =
        Piece { origin: origin(9), after: Version(0), through, changesets: vec![changeset(9, 1)] };
    Message::Pulled { request, piece, head: Version(1), cut: Cut { from, to } }
}

fn wanted_parts(effects: &[Effect]) -> Vec<(NodeId, RequestId, u64)> {
    let wants = sent(effects).into_iter().filter_map(|(to, message)| match message {
        Message::Want { request, after, part, .. } => {
            assert_eq!(*after, Version(0));
            Some((to[0], *request, *part))
        }
        _ => None,
    });
    wants.collect()
}

/// What the disk is to do.
fn disk(effects: &[Effect]) -> Vec<String> {
    let word = |effect: &Effect| match effect {
        Effect::Stage { staging, parts } => Some(format!("stage {} {}", staging.0, parts.len())),
        Effect::ApplyStaged { staging, last, .. } => {
            Some(format!("apply {} {}..{}", staging.0, last.after, last.through))
        }
        Effect::Unstage(staging) => Some(format!("unstage {}", staging.0)),
        Effect::Apply { batch, .. } => Some(format!("apply {}", batch.pieces[0].changesets.len())),
        _ => None,
    };
    effects.iter().filter_map(word).collect()
}

/// Puts everything on disk that is pulled in parts.
fn on_disk() -> Config {
    Config { staged_origin_bytes_max: 0, stage_bytes_max: 0, ..Config::default() }
}

#[test]
fn a_version_in_parts_is_applied_once_the_last_is_here() {
    let (mut one, (peer, request)) = pulling(Config::default(), &[2]);
    let mut next = request;
    for (from, to) in [(0, 3), (3, 7)] {
        let effects = one.tell(Input::Received { from: peer, message: part(next, from, to) });
        assert_eq!(disk(&effects), Vec::<String>::new());
        let wanted = wanted_parts(&effects);
        assert_eq!((wanted.len(), wanted[0].2), (1, to));
        next = wanted[0].1;
    }
    let effects = one.tell(Input::Received { from: peer, message: part(next, 7, 0) });
    assert_eq!(disk(&effects), ["apply 3"]);
    assert_eq!(wanted_parts(&effects), []);
}

#[test]
fn parts_that_are_much_wait_on_the_disk_and_the_next_is_asked_for_when_they_do() {
    let (mut one, (peer, request)) = pulling(on_disk(), &[2]);
    let effects = one.tell(Input::Received { from: peer, message: part(request, 0, 3) });
    assert_eq!((disk(&effects), wanted_parts(&effects)), (vec!["stage 1 1".to_owned()], vec![]));
    let effects = one.tell(Input::Staged { staging: Staging(1), is_done: true });
    let wanted = wanted_parts(&effects);
    assert_eq!((wanted.len(), wanted[0].2), (1, 3));
    let effects = one.tell(Input::Received { from: peer, message: part(wanted[0].1, 3, 0) });
    assert_eq!(disk(&effects), ["apply 1 0..1"]);
    let Some(Effect::ApplyStaged { id, .. }) = effects.first() else { panic!("{effects:?}") };
    // What fails is tried again, and what is on the disk stays there.
    let (id, failed) = (*id, ApplyOutcome::Failed);
    one.tell(Input::Applied { id, outcome: failed.clone() });
    let again = one.wait(1_000);
    assert_eq!(disk(&again), ["apply 1 0..1"]);
    let Some(Effect::ApplyStaged { id, .. }) =
        again.iter().find(|effect| matches!(effect, Effect::ApplyStaged { .. }))
    else {
        panic!("{again:?}")
    };
    let heads = vec![(origin(9), Version(1))];
    let done = one.tell(Input::Applied { id: *id, outcome: ApplyOutcome::Done { heads } });
    assert_eq!(disk(&done), Vec::<String>::new());
    assert_eq!((one.held(9), one.replica.behind().versions), (1, 0));
}

#[test]
fn what_cannot_be_applied_at_all_is_forgotten_and_pulled_again() {
    let (mut one, (peer, request)) = pulling(on_disk(), &[2]);
    one.tell(Input::Received { from: peer, message: part(request, 0, 3) });
    let effects = one.tell(Input::Staged { staging: Staging(1), is_done: true });
    let next = wanted_parts(&effects)[0].1;
    let mut effects = one.tell(Input::Received { from: peer, message: part(next, 3, 0) });
    for _ in 0..3 {
        let id = effects.iter().find_map(|effect| match effect {
            Effect::ApplyStaged { id, .. } => Some(*id),
            _ => None,
        });
        let id = id.expect("it is tried again");
        let said = one.tell(Input::Applied { id, outcome: ApplyOutcome::Failed });
        effects = said.into_iter().chain(one.wait(1_500)).collect();
    }
    assert!(disk(&effects).contains(&"unstage 1".to_owned()), "{effects:?}");
    let wanted = wanted_parts(&effects).into_iter().chain(wanted_parts(&one.wait(3_000)));
    assert_eq!(wanted.map(|(_, _, part)| part).next(), Some(0));
}

#[test]
fn whoever_goes_on_with_another_source_begins_the_version_again() {
    let (mut one, (peer, request)) = pulling(on_disk(), &[2, 3]);
    one.tell(Input::Received { from: peer, message: part(request, 0, 3) });
    let effects = one.tell(Input::Staged { staging: Staging(1), is_done: true });
    assert_eq!(wanted_parts(&effects)[0].0, peer, "it goes on with whom it began");
    let effects = one.tell(Input::PeerDown(peer));
    let wanted: Vec<_> = wanted_parts(&effects);
    assert_eq!((wanted.len(), wanted[0].2), (1, 0));
    assert_ne!(wanted[0].0, peer);
    // An answer of the first that is late does not join: its parts are counted otherwise.
    let late = one.tell(Input::Received { from: peer, message: part(RequestId(2), 3, 0) });
    assert_eq!(disk(&late), Vec::<String>::new());
    let other = wanted[0].0;
    let effects = one.tell(Input::Received { from: other, message: part(wanted[0].1, 0, 0) });
    assert_eq!(disk(&effects), ["apply 1 0..1"], "what is there already does no harm");
}

#[test]
fn parts_that_cannot_be_stored_are_pulled_again_a_little_later() {
    let (mut one, (peer, request)) = pulling(on_disk(), &[2]);
    one.tell(Input::Received { from: peer, message: part(request, 0, 3) });
    let effects = one.tell(Input::Staged { staging: Staging(1), is_done: false });
    assert_eq!((disk(&effects), wanted_parts(&effects)), (vec!["unstage 1".to_owned()], vec![]));
    let wanted = wanted_parts(&one.wait(3_000));
    assert_eq!(wanted[0].2, 0);
    assert_eq!(one.replica.stats().stagings_failed, 1);
}

#[test]
fn while_the_disk_is_full_parts_travel_less_and_less_often() {
    let (mut one, (peer, mut request)) = pulling(on_disk(), &[2]);
    let mut asked_at = vec![one.now];
    for staging in 1..9 {
        one.tell(Input::Received { from: peer, message: part(request, 0, 3) });
        one.tell(Input::Staged { staging: Staging(staging), is_done: false });
        request = loop {
            match wanted_parts(&one.wait(100))[..] {
                [(_, request, 0)] => break request,
                _ => assert!(one.now.since(asked_at[0]) < Duration::from_secs(3_600)),
            }
        };
        asked_at.push(one.now);
    }
    let pauses = asked_at.windows(2).map(|pair| pair[1].since(pair[0]).as_secs());
    assert_eq!(pauses.collect::<Vec<_>>(), [2, 4, 8, 16, 32, 64, 128, 128]);
}

#[test]
fn a_pull_that_is_much_is_applied_at_the_end_of_a_version_and_goes_on() {
    let mut config = on_disk();
    config.stored_origin_bytes_max = 40;
    let (mut one, (peer, request)) = pulling(config, &[2]);
    one.hear(2, heads(9, 4));
    let cut = |request, after: u64, through: u64, (from, to)| {
        let last = if to > 0 { through + 1 } else { through };
        let changesets = (after + 1..=last).map(|version| changeset(9, version)).collect();
        let (origin, after, through) = (origin(9), Version(after), Version(through));
        let piece = Piece { origin, after, through, changesets };
        Message::Pulled { request, piece, head: Version(4), cut: Cut { from, to } }
    };
    let wanted = |effects: &[Effect]| {
        let wants = sent(effects).into_iter().filter_map(|(_, message)| match message {
            Message::Want { request, after, part, .. } => Some((*request, after.0, *part)),
            _ => None,
        });
        wants.collect::<Vec<_>>()
    };
    let mut next = request;
    // The second version is not split, however much it is.
    for (staging, after, through, cut_at) in
        [(1, 0, 1, (0, 5)), (1, 1, 1, (5, 9)), (1, 1, 1, (9, 12))]
    {
        let message = cut(next, after, through, cut_at);
        let effects = one.tell(Input::Received { from: peer, message });
        assert!(disk(&effects).iter().all(|word| word.starts_with("stage")), "{effects:?}");
        let effects = one.tell(Input::Staged { staging: Staging(staging), is_done: true });
        let [(request, _, part)] = wanted(&effects)[..] else { panic!("{effects:?}") };
        assert_eq!(part, cut_at.1);
        next = request;
    }
    let effects = one.tell(Input::Received { from: peer, message: cut(next, 1, 2, (12, 0)) });
    assert_eq!(disk(&effects), ["apply 1 0..2"]);
    assert_eq!(one.replica.stats().pulls_split, 1);
    // What follows is another pull, which begins where that one ends, also if it failed meanwhile.
    let rest = [wanted(&effects), wanted(&one.wait(400))].concat();
    assert_eq!((rest[0].1, rest[0].2), (2, 0));
    let Some(Effect::ApplyStaged { id, .. }) = effects.first() else { panic!("{effects:?}") };
    let heads = vec![(origin(9), Version(2))];
    one.tell(Input::Applied { id: *id, outcome: ApplyOutcome::Done { heads } });
    let effects = one.tell(Input::Received { from: peer, message: cut(rest[0].0, 2, 4, (0, 0)) });
    let (id, batch) = batch(&effects).expect("what is left is little");
    assert_eq!((batch.pieces[0].after, batch.pieces[0].through), (Version(2), Version(4)));
    one.done(id, &batch);
    assert_eq!((one.held(9), one.replica.behind().versions), (4, 0));
    assert_eq!(one.replica.staged_bytes(), (0, 0));
}

#[test]
fn parts_whose_rest_nobody_offers_any_more_are_forgotten_in_the_end() {
    let (mut one, (peer, request)) = pulling(on_disk(), &[2]);
    one.tell(Input::Received { from: peer, message: part(request, 0, 3) });
    one.tell(Input::PeerDown(peer));
    one.tell(Input::Staged { staging: Staging(1), is_done: true });
    assert_eq!(one.replica.behind().versions, 0, "what nobody has is not missing");
    assert_eq!(disk(&one.wait(50_000)), Vec::<String>::new());
    assert_eq!(disk(&one.wait(20_000)), ["unstage 1"]);
    assert_eq!(one.replica.staged_bytes(), (0, 0));
}

#[test]
fn a_large_commit_is_told_to_the_neighbours_by_its_head() {
    let mut one = One::with_neighbours(&[2, 3]);
    let (origin, head) = (origin(ME), Version(1));
    let effects = one.tell(Input::CommittedLarge { origin, head, longest: 1 });
    let to = vec![node(2), node(3)];
    let message = Message::Heads(vec![(origin, head)]);
    assert_eq!(effects, [Effect::Send { to, message, lane: Lane::Own }]);
    assert_eq!(one.held(ME), 1);
}

#[test]
fn a_node_knows_for_how_long_it_has_been_behind_and_of_whom() {
    let mut one = One::with_neighbours(&[2, 3]);
    one.wait(2_000);
    assert_eq!(one.replica.lag(one.now), Duration::ZERO);
    one.hear(2, heads(4, 7));
    // Nobody answers its wants.
    one.wait(3_000);
    assert_eq!(one.replica.lag(one.now), Duration::from_secs(3));
    let lag = &one.replica.lags()[0];
    assert_eq!((lag.origin, lag.held, lag.heard), (origin(4), Version(0), Version(7)));
    assert_eq!((&lag.sources[..], lag.is_lost), (&[node(2)][..], false));
    let wants = wants(&one.wait(2_000));
    assert!(!wants.is_empty(), "it still asks");
    let effects = one.hear(2, pulled(wants[0].1, piece(4, 0, 7), 7));
    let (id, batch) = batch(&effects).expect("what was pulled is applied");
    one.done(id, &batch);
    assert_eq!((one.replica.lag(one.now), one.replica.lags().len()), (Duration::ZERO, 0));
}

#[test]
fn a_neighbour_that_is_silent_is_not_heard_any_more() {
    let mut one = One::with_neighbours(&[2, 3]);
    assert_eq!(one.replica.links_heard(one.now), 2);
    for _ in 0..6 {
        one.wait(2_000);
        one.hear(2, Message::Known { origin: origin(ME), head: Version(0) });
    }
    assert_eq!(one.replica.links_heard(one.now), 1);
    one.wait(11_000);
    assert_eq!(one.replica.links_heard(one.now), 0);
    let wanted = Config::default().eager_target;
    assert_eq!((one.replica.links_wanted(0), one.replica.links_wanted(900)), (0, wanted));
}

#[test]
fn one_peer_does_not_take_all_places_of_those_who_pull() {
    let mut one = One::with_neighbours(&[2, 3]);
    one.tell(Input::Committed(changeset(ME, 1)));
    let want = |request| Message::Want {
        request: RequestId(request),
        origin: origin(ME),
        after: Version(0),
        part: 0,
        is_whole: false,
    };
    let loads = |effects: &[Effect]| {
        effects.iter().filter(|effect| matches!(effect, Effect::Load { .. })).count()
    };
    let of_one: usize = (0..20).map(|request| loads(&one.hear(2, want(request)))).sum();
    assert_eq!(of_one, Config::default().pulls_per_peer_max);
    assert_eq!(loads(&one.hear(3, want(1))), 1);
}
