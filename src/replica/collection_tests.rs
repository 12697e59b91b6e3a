//! When tombstones go, who may speak, and who has to take all rows anew.

use super::*;
use crate::crdt::storage::{Collected, Era, Extract, Past, Tidied, Tidy};
use crate::crdt::{Key, Life, RowChange, TableChanges};
use crate::ledger::Round;
use crate::ledger::round::{Heads, Nodes, Told};

fn hasty() -> Config {
    Config {
        collect: true,
        round_every: Duration::from_secs(10),
        tell_every: Duration::from_secs(1),
        tell_after: Duration::from_secs(1),
        forget_after: Duration::from_secs(1_000),
        alone_after: Duration::from_secs(20),
        retired_for: Duration::from_secs(15),
        settle_alone_after: Duration::from_secs(5),
        ..Config::default()
    }
}

fn at(of: u8, version: u64) -> (Origin, Version) {
    (origin(of), Version(version))
}

/// A node that has settled, holds these heads, and has these neighbours.
fn settled(held: &[(Origin, Version)], neighbours: &[u8]) -> One {
    let floor = Floor { settled: Some(origin(ME)), ..Floor::default() };
    on(&floor, held, neighbours)
}

fn on(floor: &Floor, held: &[(Origin, Version)], neighbours: &[u8]) -> One {
    let replica = Replica::new(origin(ME), held.iter().copied(), hasty(), 1).on(floor);
    let mut one = One { replica, now: Time(0) };
    for neighbour in neighbours {
        one.tell(Input::PeerUp { node: node(*neighbour), round_trip: None });
        one.hear(*neighbour, Message::Neighbour(Neighbour::Accepted));
    }
    one
}

/// What a member adds to a round.
fn told(number: u64, of: u8, held: &[(Origin, Version)], known: &[u8]) -> Message {
    let known: Nodes = known.iter().map(|of| (node(*of), Epoch(1))).collect();
    let mut round = Round::new(number);
    let what = Told { heads: held.iter().copied().collect(), ..Told::default() };
    round.tell(origin(of), what, &known, &Nodes::new());
    Message::Round(Box::new(round))
}

fn collected(effects: &[Effect]) -> Option<Vec<(Origin, Version)>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Collect { heads, .. } => Some(heads.clone()),
        _ => None,
    })
}

fn said(effects: &[Effect]) -> Vec<(NodeId, Message)> {
    sent(effects).into_iter().map(|(to, message)| (to[0], message.clone())).collect()
}

fn alone() -> Effect {
    Effect::Settle(Past::default())
}

/// Tells whether there are wants, and all say that all rows are taken.
fn takes_all(effects: &[Effect]) -> bool {
    let wants = said(effects).into_iter().filter_map(|(_, message)| match message {
        Message::Want { is_whole, .. } => Some(is_whole),
        _ => None,
    });
    let wants: Vec<bool> = wants.collect();
    !wants.is_empty() && wants.into_iter().all(|is_whole| is_whole)
}

/// Who is asked to let this node in.
fn joins(effects: &[Effect]) -> Vec<NodeId> {
    let joins = said(effects).into_iter();
    joins.filter(|(_, message)| matches!(message, Message::Join { .. })).map(|(to, _)| to).collect()
}

/// Plays the first round, of which nothing goes yet.
fn first_round(one: &mut One, held: &[(Origin, Version)], known: &[u8]) {
    one.wait(2_000);
    assert_eq!(collected(&one.hear(2, told(1, 2, held, known))), None);
    let effects = one.wait(12_500);
    assert_eq!((collected(&effects), one.replica.collection(Time(0)).round), (None, 2));
}

#[test]
fn what_all_held_in_a_round_goes_when_the_next_is_whole() {
    let mut one = settled(&[at(ME, 4), at(2, 3)], &[2]);
    first_round(&mut one, &[at(ME, 2), at(2, 5)], &[2]);
    one.tell(Input::Committed(changeset(ME, 5)));
    // The other one holds a version by now that may have overwritten what it served.
    let effects = one.hear(2, told(2, 2, &[at(ME, 4), at(2, 6)], &[2]));
    assert_eq!(collected(&effects), None, "somebody holds more than this node");
    let (id, batch) = batch(&one.hear(2, push(2, 4))).unwrap();
    one.done(id, &batch);
    for version in [5, 6] {
        one.wait(8);
        let (id, batch) = super::batch(&one.hear(2, push(2, version))).unwrap();
        let effects = one.done(id, &batch);
        let low = (version == 6).then(|| vec![at(ME, 2), at(2, 3)]);
        assert_eq!(collected(&effects), low);
    }
    let outcome = CollectOutcome { collected: Collected { dropped: 7, is_done: false }, length: 6 };
    let effects = one.tell(Input::Collected { outcome: Some(outcome) });
    assert!(collected(&effects).is_some(), "there are more");
    let collected_all = Collected { dropped: 1, is_done: true };
    let outcome = CollectOutcome { collected: collected_all, length: 6 };
    assert_eq!(collected(&one.tell(Input::Collected { outcome: Some(outcome) })), None);
    assert_eq!(one.replica.stats().tombstones_dropped, 8);
    assert_eq!(collected(&one.wait(30_000)), None, "nobody has told in the third round");
}

#[test]
fn a_member_that_is_away_holds_all_tombstones_until_it_is_forgotten() {
    let held = [at(ME, 1), at(2, 1), at(3, 1)];
    let mut one = settled(&held, &[2]);
    one.wait(2_000);
    one.hear(2, told(1, 2, &held, &[2]));
    assert_eq!(collected(&one.wait(100_000)), None);
    assert_eq!(one.replica.collection(Time(0)).awaited, [node(3)], "its versions are here");
    let effects = one.tell(Input::Forget(node(3)));
    let held = vec![at(3, 1)];
    let under = Origin { epoch: Epoch(0x7ff_ffff), ..origin(3) };
    assert!(effects.contains(&Effect::Depart { under, held }), "{effects:?}");
    let is_round = |effect: &Effect| matches!(effect, Effect::Send { message: Message::Round(round), .. } if round.number > 1);
    assert!(
        !one.wait(15_000).iter().any(is_round),
        "it tells of heads that are about to be others"
    );
    one.tell(Input::Departed { head: Some(Version(0)) });
    let held = [at(ME, 1), at(2, 1), at(3, 1)];
    one.wait(15_000);
    assert_eq!(one.replica.collection(Time(0)).round, 2);
    let effects = one.hear(2, told(2, 2, &held, &[2, 3]));
    assert_eq!(collected(&effects), Some(held.to_vec()));
    let forgets = effects.iter().any(|effect| {
        matches!(effect, Effect::Collect { forgotten, .. } if *forgotten == [(node(3), Epoch(1))])
    });
    assert!(forgets, "{effects:?}");
}

#[test]
fn who_is_away_for_long_is_forgotten_only_where_most_are() {
    for (up, is_forgotten) in [(&[2][..], false), (&[2, 3][..], true)] {
        let held = [at(2, 1), at(3, 1), at(4, 1)];
        let mut one = settled(&held, up);
        one.wait(999_000);
        assert_eq!(one.replica.collection(Time(0)).forgotten, []);
        one.wait(200_000);
        assert_eq!(one.replica.collection(Time(0)).forgotten.len(), usize::from(is_forgotten));
    }
}

#[test]
fn who_comes_before_tombstones_go_is_asked_first() {
    let held = [at(ME, 1), at(2, 1)];
    let mut one = settled(&held, &[2]);
    first_round(&mut one, &held, &[2]);
    // The third round's first word comes with a newcomer that nobody asked.
    one.hear(5, Message::Join { origin: origin(5), era: 0 });
    assert_eq!(collected(&one.hear(2, told(2, 2, &held, &[2]))), None);
    assert_eq!(one.replica.collection(Time(0)).awaited, [node(5)]);
}

#[test]
fn what_tombstones_are_missing_of_is_served_only_to_those_who_take_all_rows() {
    let floor =
        Floor { heads: vec![at(2, 5)], settled: Some(origin(ME)), length: 4, ..Floor::default() };
    let mut one = on(&floor, &[at(2, 9)], &[2, 3]);
    let request = RequestId(1);
    let want = |after, is_whole| Message::Want {
        request,
        origin: origin(2),
        after: Version(after),
        part: 0,
        is_whole,
    };
    let gone = Message::Gone { request, floor: Version(5) };
    assert_eq!(said(&one.hear(3, want(4, false))), [(node(3), gone.clone())]);
    assert!(said(&one.hear(3, want(5, false))).is_empty(), "the storage is asked");
    let effects = one.hear(3, Message::Join { origin: origin(3), era: 0 });
    let heads = vec![at(2, 9)];
    let welcome = Message::Welcome {
        is_settled: true,
        length: 4,
        heads,
        floor: vec![at(2, 5)],
        era: Era::default(),
        retired: vec![],
        forgotten: Nodes::new(),
    };
    assert_eq!(said(&effects), [(node(3), welcome)]);
    let effects = one.hear(3, want(0, true));
    let [Effect::Load { id, .. }] = effects[..] else { panic!("{effects:?}") };
    let extract = || Some(Extract { piece: piece(2, 0, 9), head: Version(9), part: 0 });
    assert_eq!(
        said(&one.tell(Input::Loaded { id, extract: extract() })),
        [(node(3), pulled(request, piece(2, 0, 9), 9))]
    );
    // Its disk is another one now, which has something to lose; nobody here has heard of that.
    assert_eq!(said(&one.hear(3, want(0, false))), [(node(3), gone)]);
}

/// What this node writes to a table.
fn written(version: u64, table: &str) -> Input {
    let stamp = Stamp { origin: origin(ME), version: Version(version) };
    let life = Life { length: 1, stamp };
    let rows = vec![RowChange { key: Key::from([]), life, cells: vec![] }];
    let tables = vec![TableChanges { table: table.into(), columns: vec![], rows }];
    Input::Committed(Arc::new(Changeset { stamp, at: Wall(0), tables }))
}

fn unsettled() -> Message {
    Message::Welcome {
        is_settled: false,
        length: 0,
        heads: vec![],
        floor: vec![],
        era: Era::default(),
        retired: vec![],
        forgotten: Nodes::new(),
    }
}

#[test]
fn a_new_origin_is_silent_until_it_has_caught_up_with_one_that_speaks() {
    let mut one = on(&Floor::default(), &[at(8, 1)], &[2, 3]);
    assert!(!joins(&one.wait(1_000)).is_empty());
    let effects = one.tell(written(1, "kv"));
    assert_eq!(said(&effects), [], "it keeps its commits to itself");
    // Meanwhile digests go out that leave it out.
    one.wait(1_500);
    let request = RequestId(1);
    let want =
        Message::Want { request, origin: origin(ME), after: Version(0), part: 0, is_whole: false };
    assert!(matches!(said(&one.hear(2, want.clone()))[..], [(_, Message::Busy { .. })]));
    one.hear(
        2,
        Message::Welcome {
            is_settled: true,
            length: 0,
            heads: vec![at(8, 1), at(9, 1)],
            floor: vec![],
            era: Era::default(),
            retired: vec![],
            forgotten: Nodes::new(),
        },
    );
    let (id, batch) = batch(&one.hear(2, push(9, 1))).unwrap();
    assert!(one.done(id, &batch).contains(&alone()));
    assert!(!one.replica.collection(Time(0)).is_settled);
    let effects = one.tell(Input::Settled { is_done: true });
    assert!(one.replica.collection(Time(0)).is_settled);
    let tells =
        |message: &Message| matches!(message, Message::Heads(heads) if heads.contains(&at(ME, 1)));
    let told = said(&effects).into_iter().filter(|(_, message)| tells(message)).count();
    assert_eq!(told, 2, "neighbours, whom it pushed nothing: {effects:?}");
    let effects = one.hear(2, want);
    assert!(matches!(effects[..], [Effect::Load { .. }]), "{effects:?}");
}

#[test]
fn what_is_harmless_is_told_from_the_first_moment_on() {
    let floor = Floor { harmless: Version(1), ..Floor::default() };
    let mut one = on(&floor, &[at(ME, 1)], &[2]);
    let is_pushed = |effects: &[Effect]| {
        said(effects).iter().any(|(_, message)| matches!(message, Message::Push { .. }))
    };
    assert!(is_pushed(&one.tell(written(2, "services"))));
    assert!(is_pushed(&one.tell(written(3, "tribune_schema"))));
    assert!(!is_pushed(&one.tell(written(4, "kv"))));
    assert!(!is_pushed(&one.tell(written(5, "services"))), "there are no holes");
    let want = |after| {
        let request = RequestId(1);
        Message::Want {
            request,
            origin: origin(ME),
            after: Version(after),
            part: 0,
            is_whole: false,
        }
    };
    let effects = one.hear(2, want(1));
    let [Effect::Load { id, .. }] = effects[..] else { panic!("{effects:?}") };
    let extract = Some(Extract { piece: piece(ME, 1, 5), head: Version(5), part: 0 });
    let answer = said(&one.tell(Input::Loaded { id, extract }));
    let [(_, Message::Pulled { piece, head, .. })] = &answer[..] else { panic!("{answer:?}") };
    assert_eq!(piece.through, Version(3), "and nothing beyond is given away");
    assert_eq!(*head, Version(3), "nor waited for");
    assert!(matches!(said(&one.hear(2, want(3)))[..], [(_, Message::Busy { .. })]));
    // Nor does anybody hear that there is more.
    let told = one.wait(60_000).into_iter().filter_map(|effect| match effect {
        Effect::Send { message: Message::Heads(heads), .. } => Some(heads),
        Effect::Send { message: Message::BucketHeads { heads, .. }, .. } => Some(heads),
        _ => None,
    });
    assert!(told.flatten().all(|head| head <= at(ME, 3)));
}

#[test]
fn where_nobody_may_let_anybody_in_a_new_cluster_begins() {
    let mut one = on(&Floor::default(), &[], &[2]);
    one.hear(2, unsettled());
    assert!(!one.wait(4_900).contains(&alone()));
    assert!(one.wait(2_000).contains(&alone()));
}

#[test]
fn where_members_are_missing_who_could_let_others_in_most_must_be_there() {
    // One whose disk knows of a third waits for it, but not for ever.
    let mut one = on(&Floor::default(), &[at(3, 1)], &[2]);
    one.hear(2, unsettled());
    assert!(!one.wait(29_000).contains(&alone()));
    assert!(one.wait(2_000).contains(&alone()));
    let mut one = on(&Floor::default(), &[at(3, 1), at(4, 1)], &[2]);
    one.hear(2, unsettled());
    assert!(!one.wait(600_000).contains(&alone()), "two of four could be either half");
}

#[test]
fn who_knows_of_nobody_drops_what_it_deletes_and_does_not_settle() {
    let mut one = on(&Floor::default(), &[at(ME, 4)], &[]);
    assert_eq!(collected(&one.wait(20_000)), None, "others may just be out of reach");
    let effects = one.wait(30_000);
    assert_eq!(collected(&effects), Some(vec![at(ME, 4)]));
    assert!(!effects.contains(&alone()));
}

#[test]
fn an_empty_disk_becomes_the_guest_of_who_dropped_tombstones_and_keeps_its_epoch() {
    let mut one = on(&Floor::default(), &[at(ME, 1)], &[2, 3]);
    assert_eq!(said(&one.tell(written(2, "kv"))), []);
    let (held, floor) = (vec![at(9, 5)], vec![at(9, 4)]);
    let welcome = Message::Welcome {
        is_settled: true,
        length: 8,
        heads: held,
        floor: floor.clone(),
        era: Era::default(),
        retired: vec![],
        forgotten: Nodes::new(),
    };
    let effects = one.hear(2, welcome.clone());
    assert_eq!(joins(&effects), [node(2)]);
    let settle = Effect::Settle(Past { floor, length: 8, ..Past::default() });
    assert!(effects.contains(&settle), "its rows must live longer: {effects:?}");
    one.tell(written(3, "kv"));
    let effects = one.tell(Input::Settled { is_done: true });
    let tells =
        |message: &Message| matches!(message, Message::Heads(heads) if heads.contains(&at(ME, 3)));
    assert!(said(&effects).iter().any(|(_, message)| tells(message)), "{effects:?}");
    assert!(!said(&one.tell(written(4, "kv"))).is_empty(), "it need not catch up first");
    assert!(!one.replica.collection(Time(0)).is_settled);
    one.hear(2, welcome);
    assert!(one.hear(3, push(9, 1)).is_empty(), "rows come from one place alone");
    let effects = one.wait(1_000);
    assert!(takes_all(&effects));
    let asked = wants(&effects);
    let [(from, request, _, 0)] = asked[..] else { panic!("{asked:?}") };
    assert_eq!(from, node(2));
    let pulled =
        Message::Pulled { request, piece: piece(9, 0, 5), head: Version(5), cut: Cut::default() };
    let (id, batch) = batch(&one.hear(2, pulled)).unwrap();
    let effects = one.done(id, &batch);
    assert!(effects.contains(&settle), "{effects:?}");
    assert_eq!((one.replica.me(), one.replica.stats().rejoins), (origin(ME), 0));
}

#[test]
fn who_lets_others_in_says_how_long_rows_lived_that_it_holds_or_dropped() {
    let floor = Floor { settled: Some(origin(ME)), length: 4, longest: 6, ..Floor::default() };
    let mut one = on(&floor, &[], &[2]);
    let welcomed = |one: &mut One| {
        let effects = one.hear(2, Message::Join { origin: origin(2), era: 0 });
        match &said(&effects)[..] {
            [(_, Message::Welcome { length, .. })] => *length,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(welcomed(&mut one), 6);
    let stamp = Stamp { origin: origin(ME), version: Version(1) };
    let row =
        |length| RowChange { key: Key::from([]), life: Life { length, stamp }, cells: vec![] };
    let tables = |name: &str, length| TableChanges {
        table: name.into(),
        columns: vec![],
        rows: vec![row(length)],
    };
    let tables = vec![tables("kv", 9), tables("services", 99)];
    one.tell(Input::Committed(Arc::new(Changeset { stamp, at: Wall(0), tables })));
    assert_eq!(welcomed(&mut one), 8, "a row in its ninth life died in its eighth");
}

#[test]
fn who_is_below_the_floor_takes_all_rows_of_one_peer() {
    let mut one = settled(&[at(ME, 3), at(9, 1)], &[2, 3]);
    let effects = [one.hear(2, heads(9, 5)), one.wait(1_000)].concat();
    assert!(!takes_all(&effects), "it has rows that may have been deleted");
    let (_, request, _, _) = wants(&effects)[0];
    let effects = one.hear(2, Message::Gone { request, floor: Version(4) });
    assert_eq!(joins(&effects), [node(2)]);
    let told = vec![at(ME, 2), at(9, 5)];
    let floor = vec![at(9, 4)];
    let welcome = Message::Welcome {
        is_settled: true,
        length: 8,
        heads: told.clone(),
        floor: floor.clone(),
        era: Era::default(),
        retired: vec![],
        forgotten: Nodes::new(),
    };
    let effects = one.hear(2, welcome.clone());
    assert_eq!(effects, [Effect::Rejoin { held: told, length: 8 }]);
    let me = Origin { epoch: Epoch(2), ..origin(ME) };
    let effects = one.tell(Input::Rejoined { begun: Some(me) });
    assert_eq!(joins(&effects), [node(2)]);
    assert_eq!(one.replica.ledger().heads().collect::<Vec<_>>(), []);
    one.hear(2, welcome);
    one.hear(3, heads(7, 1));
    assert!(one.hear(3, push(9, 1)).is_empty(), "rows come from one place alone");
    let effects = one.wait(1_000);
    assert!(takes_all(&effects));
    let asked = wants(&effects);
    assert!(asked.iter().all(|(to, ..)| *to == node(2)), "{asked:?}");
    assert_eq!(asked.len(), 2, "{asked:?}");
    let mut last = Vec::new();
    for (_, request, of, _) in asked {
        let version = if of == origin(9) { 5 } else { 2 };
        let number = if of == origin(9) { 9 } else { ME };
        let piece = piece(number, 0, version);
        let pulled =
            Message::Pulled { request, piece, head: Version(version), cut: Cut::default() };
        let mut effects = one.hear(2, pulled);
        effects.extend(one.wait(8));
        let (id, batch) = batch(&effects).unwrap();
        last = one.done(id, &batch);
    }
    assert!(
        last.contains(&Effect::Settle(Past { floor, length: 8, ..Past::default() })),
        "{last:?}"
    );
    one.tell(Input::Settled { is_done: true });
    assert!(one.replica.collection(Time(0)).is_settled);
    assert_eq!(one.replica.stats().rejoins, 1);
}

#[test]
fn a_forgotten_node_is_told_so_and_its_commits_are_taken_only_as_others_merged_them() {
    let mut one = settled(&[at(3, 4)], &[2, 3]);
    one.tell(Input::Forget(node(3)));
    let effects =
        one.hear(3, Message::Hello { origin: origin(3), head: Version(5), era: 0, asks: false });
    assert_eq!(
        said(&effects),
        [(node(3), Message::Forgotten { origin: origin(3), last: Epoch(1) })]
    );
    let effects = one.hear(2, push(3, 5));
    assert_eq!(batch(&effects), None);
    let asked = wants(&one.wait(1_000));
    assert!(matches!(asked[..], [(from, _, _, 4)] if from == node(2)), "{asked:?}");
    // Under another epoch it is a member like any other.
    let later = Origin { epoch: Epoch(2), ..origin(3) };
    let effects =
        one.hear(3, Message::Hello { origin: later, head: Version(0), era: 0, asks: false });
    assert!(matches!(said(&effects)[..], [(_, Message::Known { .. }), ..]), "{effects:?}");

    let mut other = settled(&[at(ME, 4)], &[2]);
    let effects = other.hear(2, Message::Forgotten { origin: origin(ME), last: Epoch(1) });
    assert_eq!(joins(&effects), [node(2)]);
}

#[test]
fn a_guest_whose_rows_take_long_to_come_does_not_begin_anew() {
    let mut one = on(&Floor::default(), &[], &[2, 3]);
    let (held, floor) = (vec![at(9, 80)], vec![at(9, 4)]);
    let welcome = Message::Welcome {
        is_settled: true,
        length: 8,
        heads: held,
        floor,
        era: Era::default(),
        retired: vec![],
        forgotten: Nodes::new(),
    };
    one.hear(2, welcome.clone());
    one.tell(Input::Settled { is_done: true });
    let mut effects = one.hear(2, welcome.clone());
    effects.extend(one.wait(350));
    // Each piece takes its time, and only with the last of them a head moves.
    for version in 0..80 {
        let asked = wants(&effects);
        let [(from, request, _, after)] = asked[..] else { panic!("{version}: {asked:?}") };
        assert_eq!((from, after), (node(2), version));
        effects = one.wait(600);
        let message = pulled(request, piece(9, version, version + 1), 80);
        effects.extend(one.hear(2, message));
        for to in joins(&effects) {
            assert_eq!(to, node(2), "whom it lives with");
            effects.extend(one.hear(2, welcome.clone()));
        }
        effects.extend(one.wait(200));
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Rejoin { .. })));
    }
    let (id, whole) = batch(&effects).expect("it is whole");
    // Nor while the disk takes its time.
    let effects = one.wait(100_000);
    assert!(joins(&effects).iter().all(|to| *to == node(2)), "{effects:?}");
    assert!(one.done(id, &whole).iter().any(|effect| matches!(effect, Effect::Settle(_))));
}

#[test]
fn who_takes_all_rows_anew_gives_nothing_away_that_it_read_back_meanwhile() {
    let mut one = settled(&[at(8, 3), at(9, 1)], &[2, 3]);
    let request = RequestId(1);
    let want =
        Message::Want { request, origin: origin(8), after: Version(0), part: 0, is_whole: false };
    let effects = one.hear(3, want);
    let [Effect::Load { id, .. }] = effects[..] else { panic!("{effects:?}") };
    let effects = [one.hear(2, heads(9, 5)), one.wait(1_000)].concat();
    assert!(!takes_all(&effects), "it has rows that may have been deleted");
    let (_, request, _, _) = wants(&effects)[0];
    one.hear(2, Message::Gone { request, floor: Version(4) });
    let welcome = Message::Welcome {
        is_settled: true,
        length: 8,
        heads: vec![at(8, 3), at(9, 5)],
        floor: vec![at(9, 4)],
        era: Era::default(),
        retired: vec![],
        forgotten: Nodes::new(),
    };
    let effects = one.hear(2, welcome);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Rejoin { .. })), "{effects:?}");
    let extract = Some(Extract { piece: piece(8, 0, 3), head: Version(3), part: 0 });
    assert_eq!(said(&one.tell(Input::Loaded { id, extract })), []);
}

#[test]
fn what_a_process_answered_that_is_no_more_is_not_taken() {
    let mut one = settled(&[at(3, 4)], &[2, 3]);
    one.hear(3, heads(3, 6));
    let (_, request, ..) = wants(&one.wait(1_000))[0];
    let half = pulled(request, piece(3, 4, 5), 6);
    let (_, late, _, 5) = wants(&one.hear(3, half))[0] else { panic!("it is asked for the rest") };
    // It begins another epoch, and what it had may have gone with its disk.
    let later = Origin { epoch: Epoch(2), ..origin(3) };
    let effects =
        one.hear(3, Message::Hello { origin: later, head: Version(0), era: 0, asks: false });
    let again = wants(&effects);
    let [(_, request, _, 4)] = again[..] else { panic!("{again:?}") };
    for whole in [pulled(late, piece(3, 5, 6), 6), pulled(late, piece(3, 4, 6), 6)] {
        assert_eq!(batch(&one.hear(3, whole)), None);
    }
    let (_, batch) = batch(&one.hear(3, pulled(request, piece(3, 4, 5), 5))).unwrap();
    assert_eq!(batch.pieces, [piece(3, 4, 5)]);
}

/// An earlier epoch of node 2.
fn former(version: u64) -> (Origin, Version) {
    (Origin { epoch: Epoch(0), ..origin(2) }, Version(version))
}

/// What node 2 adds to a round: `stage` 1: of its former epoch nothing is left, 2: it is retired, 3:
/// it is erased.
fn told_of_former(number: u64, stage: u8, era: u64) -> Message {
    let own = [at(ME, 1), at(2, 1)];
    let heads: Heads = own.into_iter().chain((stage < 3).then(|| former(3))).collect();
    let of = |is: bool| is.then(|| former(3).0).into_iter().collect();
    let (spent, retired) = (of(stage == 1 || stage == 2), of(stage == 2));
    let mut round = Round::new(number);
    let known = Nodes::from([(node(ME), Epoch(1)), (node(2), Epoch(1))]);
    round.tell(origin(2), Told { heads, spent, retired, era }, &known, &Nodes::new());
    Message::Round(Box::new(round))
}

fn tidy(effects: &[Effect]) -> Option<Tidy> {
    effects.iter().find_map(|effect| match effect {
        Effect::Tidy(tidy) => Some(tidy.clone()),
        _ => None,
    })
}

/// Plays a round: this node tells first, then node 2. Answers what there is to tidy up, and returns
/// it, and what this node told.
fn tidied(one: &mut One, number: u64, theirs: Message, tidied: Tidied) -> (Option<Tidy>, Round) {
    let effects = one.wait(12_500);
    let told = said(&effects).into_iter().find_map(|(_, message)| match message {
        Message::Round(round) if round.number == number => Some(*round),
        _ => None,
    });
    let tidy = tidy(&one.hear(2, theirs));
    if let Some(tidy) = &tidy {
        let (looked_at, erased) = (tidy.ask.len(), tidy.erase.clone());
        one.tell(Input::Tidied { tidied: Some(Tidied { looked_at, erased, ..tidied }) });
    }
    (tidy, told.expect("it tells of the round"))
}

#[test]
fn an_origin_of_which_nothing_is_left_anywhere_is_retired_and_forgotten_in_the_end() {
    let floor = Floor { settled: Some(origin(ME)), era: 1, ..Floor::default() };
    let mut one = on(&floor, &[at(ME, 1), at(2, 1), former(3)], &[2, 4]);
    one.tell(Input::PeerDown(node(4)));
    one.tell(Input::Forget(node(4)));
    let (old, _) = former(3);
    let spent = Tidied { spent: vec![former(3)], ..Tidied::default() };
    let retired = Tidied { retired: vec![former(3)], ..Tidied::default() };

    let (first, told) = tidied(&mut one, 1, told_of_former(1, 0, 1), spent.clone());
    assert_eq!(first, Some(Tidy { ask: vec![old], era: 2, ..Tidy::default() }), "node 4 is empty");
    assert!(told.spent.is_empty() && told.high.contains_key(&old));
    let (second, told) = tidied(&mut one, 2, told_of_former(2, 0, 2), spent.clone());
    assert_eq!(second.map(|tidy| tidy.retire), Some(vec![]), "something is left with the other");
    assert!(told.spent.contains(&old) && told.retired.is_empty());
    let (third, _) = tidied(&mut one, 3, told_of_former(3, 1, 3), retired);
    let third = third.unwrap();
    assert_eq!((third.retire, third.era), (vec![former(3)], 4));
    assert_eq!((third.gone, third.erased), (vec![node(4)], 3), "there never was anything of it");

    // Who has not said how old its disk may be is asked, and not listened to.
    let asked = said(&one.hear(2, heads(2, 9)));
    assert!(matches!(asked[..], [(_, Message::Hello { .. })]), "{asked:?}");
    assert_eq!(said(&one.hear(2, heads(2, 9))), [], "once a second");
    one.hear(2, Message::Hello { origin: origin(2), head: Version(1), era: 4, asks: false });

    // It is no head any more, and nothing of it is asked for or taken.
    assert_eq!(one.replica.ledger().head(old), Version(0));
    one.hear(2, Message::Heads(vec![(old, Version(9))]));
    assert_eq!(wants(&one.wait(2_000)), []);
    let piece = Piece { origin: old, after: Version(3), through: Version(4), changesets: vec![] };
    assert_eq!(batch(&one.hear(2, Message::Push { hops: 0, piece })), None);
    let want = Message::Want {
        request: RequestId(1),
        origin: old,
        after: Version(0),
        part: 0,
        is_whole: false,
    };
    assert!(matches!(one.hear(2, want)[..], [Effect::Load { .. }]), "it says that nothing is left");

    let (fourth, told) = tidied(&mut one, 4, told_of_former(4, 2, 4), Tidied::default());
    assert!(told.retired.contains(&old) && told.high.contains_key(&old) && told.era == 4);
    assert_eq!(fourth.map(|tidy| (tidy.erase, tidy.gone)), Some((vec![], vec![])), "too soon");
    let (fifth, _) = tidied(&mut one, 5, told_of_former(5, 2, 4), Tidied::default());
    let nothing = (vec![], vec![]);
    assert_eq!(fifth.map(|tidy| (tidy.erase, tidy.gone)), Some(nothing), "that disk may be old");
    let (sixth, _) = tidied(&mut one, 6, told_of_former(6, 2, 6), Tidied::default());
    let sixth = sixth.unwrap();
    assert_eq!((sixth.erase, sixth.gone, sixth.erased), (vec![old], vec![], 6));
    let (_, told) = tidied(&mut one, 7, told_of_former(7, 3, 7), Tidied::default());
    assert!(!told.high.contains_key(&old) && !told.known.contains_key(&node(4)));

    // Who comes from before cannot be told any more what was deleted.
    let hello = |era| Message::Hello { origin: origin(5), head: Version(1), era, asks: false };
    one.tell(Input::PeerUp { node: node(5), round_trip: None });
    for era in [0, 6, 7] {
        assert!(!said(&one.hear(5, hello(era))).iter().any(is_forgotten), "{era}");
    }
    one.hear(5, hello(5));
    assert!(said(&one.hear(5, hello(5))).iter().any(is_forgotten), "once that is on disk");
    assert!(one.replica.has_forgotten(node(5)));
}

#[test]
fn who_holds_less_of_what_is_spent_everywhere_retires_as_much_as_the_others() {
    let floor = Floor { settled: Some(origin(ME)), era: 1, ..Floor::default() };
    let mut one = on(&floor, &[at(ME, 1), at(2, 1), former(2)], &[2]);
    let spent = Tidied { spent: vec![former(2)], ..Tidied::default() };
    tidied(&mut one, 1, told_of_former(1, 1, 1), spent);
    let (second, _) = tidied(&mut one, 2, told_of_former(2, 2, 1), Tidied::default());
    assert_eq!(second.map(|tidy| tidy.retire), Some(vec![former(3)]));
    // What it has heard of since is more than that anybody said that nothing was left of it.
    let mut one = on(&floor, &[at(ME, 1), at(2, 1), former(4)], &[2]);
    let spent = Tidied { spent: vec![former(4)], ..Tidied::default() };
    tidied(&mut one, 1, told_of_former(1, 1, 1), spent);
    let (second, told) = tidied(&mut one, 2, told_of_former(2, 2, 1), Tidied::default());
    assert!(told.spent.contains(&former(4).0));
    assert_eq!(second.map(|tidy| tidy.retire), Some(vec![former(4)]));
}

#[test]
fn a_floor_of_an_origin_that_nobody_has_heard_of_goes_too() {
    let floor = Floor {
        settled: Some(origin(ME)),
        heads: vec![former(3), at(2, 1)],
        era: 1,
        ..Floor::default()
    };
    let mut one = on(&floor, &[at(ME, 1), at(2, 1)], &[2]);
    let erased = |(tidy, _): (Option<Tidy>, Round)| tidy.map(|tidy| tidy.erase);
    let theirs = |number| told_of_former(number, 3, number);
    assert_eq!(erased(tidied(&mut one, 1, theirs(1), Tidied::default())), Some(vec![]));
    assert_eq!(erased(tidied(&mut one, 2, theirs(2), Tidied::default())), Some(vec![]));
    let third = erased(tidied(&mut one, 3, theirs(3), Tidied::default()));
    assert_eq!(third, Some(vec![former(3).0]));
    // It is nothing to hold against a peer that never heard of it.
    let (_, told) = tidied(&mut one, 4, theirs(4), Tidied::default());
    assert!(!told.high.contains_key(&former(3).0));
}

#[test]
fn all_raise_their_era_while_anybody_has_something_that_is_retired() {
    let floor = Floor { settled: Some(origin(ME)), era: 1, ..Floor::default() };
    let mut one = on(&floor, &[at(ME, 1), at(2, 1)], &[2]);
    let (first, _) = tidied(&mut one, 1, told_of_former(1, 2, 1), Tidied::default());
    assert_eq!(first, Some(Tidy { era: 2, ..Tidy::default() }), "it never held it");
    let (second, told) = tidied(&mut one, 2, told_of_former(2, 3, 2), Tidied::default());
    assert_eq!((second, told.era), (None, 2));
}

#[test]
fn who_is_no_member_is_noted_before_heads_are_told() {
    let mut one = settled(&[at(ME, 1), at(2, 1), at(3, 1)], &[2]);
    one.replica.handle(one.now, Input::Forget(node(3)));
    let effects: Vec<Effect> = std::iter::from_fn(|| one.replica.next_effect()).collect();
    let forgotten = vec![(node(3), Epoch(1))];
    assert!(
        effects.iter().any(|effect| {
            matches!(effect, Effect::Meet { forgotten: noted, .. } if *noted == forgotten)
        }),
        "{effects:?}"
    );
    let is_round =
        |effect: &Effect| matches!(effect, Effect::Send { message: Message::Round(_), .. });
    assert!(!one.wait(30_000).iter().any(is_round));
    one.tell(Input::Met { is_done: true });
    assert!(one.wait(3_000).iter().any(is_round));
}

#[test]
fn a_node_hears_of_its_latest_epoch_though_nothing_of_it_is_left() {
    let earlier = Origin { epoch: Epoch(0), ..origin(2) };
    let mut one = settled(&[at(ME, 1), (earlier, Version(9))], &[2]);
    let hello = |origin| Message::Hello { origin, head: Version(0), era: 0, asks: false };
    one.hear(2, hello(Origin { epoch: Epoch(7), ..origin(2) }));
    // Its disk went back to before.
    let effects = one.hear(2, hello(origin(2)));
    let known =
        Message::Known { origin: Origin { epoch: Epoch(7), ..origin(2) }, head: Version(0) };
    assert!(said(&effects).contains(&(node(2), known)), "{effects:?}");

    let later = Origin { epoch: Epoch(7), ..origin(ME) };
    let effects = one.hear(2, Message::Known { origin: later, head: Version(0) });
    assert!(effects.contains(&Effect::BeginEpoch { above: Epoch(7) }), "{effects:?}");
}

fn is_forgotten((_, message): &(NodeId, Message)) -> bool {
    matches!(message, Message::Forgotten { .. })
}

#[test]
fn who_hears_that_its_rows_were_deleted_takes_all_rows_anew_under_a_later_epoch() {
    let mut one = settled(&[at(ME, 1), at(2, 1)], &[2]);
    let departed = Origin { epoch: Epoch(0x7ff_ffff), ..origin(ME) };
    let effects = one.hear(2, Message::Heads(vec![(departed, Version(1))]));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::BeginEpoch { .. })));
    assert_eq!(joins(&effects), [node(2)]);
    let heads = vec![at(2, 1), (departed, Version(1))];
    let welcome = Message::Welcome {
        is_settled: true,
        length: 0,
        heads: heads.clone(),
        floor: vec![],
        era: Era { held: 5, erased: 0 },
        retired: vec![],
        forgotten: Nodes::new(),
    };
    let effects = one.hear(2, welcome);
    let Some(Effect::Rejoin { held, .. }) = effects.first() else { panic!("{effects:?}") };
    assert!(heads.iter().all(|head| held.contains(head)), "{held:?}");
}

#[test]
fn who_was_forgotten_takes_the_rows_of_a_peer_that_knows_of_it() {
    let welcome = |forgotten: &[u8]| Message::Welcome {
        is_settled: true,
        length: 0,
        heads: vec![at(2, 1), at(3, 1)],
        floor: vec![],
        era: Era { held: 5, erased: 0 },
        retired: vec![],
        forgotten: forgotten.iter().map(|of| (node(*of), Epoch(1))).collect(),
    };
    let rejoins =
        |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Rejoin { .. }));
    let forgotten = Message::Forgotten { origin: origin(ME), last: Epoch(1) };
    // One that does not know may be gone itself, as far as the others are concerned.
    let mut one = settled(&[at(ME, 1), at(2, 1), at(3, 1)], &[2, 3]);
    one.hear(2, forgotten.clone());
    assert!(!rejoins(&one.hear(3, welcome(&[]))));
    assert!(rejoins(&one.hear(2, welcome(&[ME]))));
    // Where nobody knows of it, though most are here, it is no matter.
    let mut one = settled(&[at(ME, 1), at(2, 1), at(3, 1)], &[2, 3]);
    one.hear(2, forgotten.clone());
    assert!(!rejoins(&one.hear(3, welcome(&[]))));
    one.wait(31_000);
    assert!(rejoins(&one.hear(3, welcome(&[]))));
    // The same from a part that is the smaller one goes on waiting.
    let mut one = settled(&[at(ME, 1), at(2, 1), at(3, 1), at(4, 1)], &[2]);
    one.hear(2, forgotten);
    assert!(!rejoins(&one.hear(2, welcome(&[]))));
    one.wait(31_000);
    assert!(!rejoins(&one.hear(2, welcome(&[]))));
}

#[test]
fn who_takes_the_rows_of_another_is_not_alone() {
    let floor = Floor { is_rejoining: true, ..Floor::default() };
    let mut one = on(&floor, &[at(ME, 4)], &[]);
    assert_eq!(collected(&one.wait(100_000)), None, "though it knows of nobody yet");
}

#[test]
fn what_a_host_has_retired_is_neither_asked_for_nor_taken_from_others() {
    let mut one = on(&Floor::default(), &[at(3, 1)], &[2, 3]);
    one.wait(100);
    let retired = vec![former(3)];
    let welcome = Message::Welcome {
        is_settled: true,
        length: 0,
        heads: vec![at(3, 1), at(9, 1)],
        floor: vec![],
        era: Era { held: 5, erased: 0 },
        retired: retired.clone(),
        forgotten: Nodes::new(),
    };
    one.hear(2, welcome);
    // A disk that was set back holds it still.
    one.hear(3, Message::Heads(vec![former(3)]));
    assert!(wants(&one.wait(2_000)).iter().all(|(_, _, origin, _)| *origin != former(3).0));
    let (id, batch) = batch(&one.hear(2, push(9, 1))).unwrap();
    let effects = one.done(id, &batch);
    let settle = effects.iter().find_map(|effect| match effect {
        Effect::Settle(past) => Some(past.retired.clone()),
        _ => None,
    });
    assert_eq!(settle, Some(retired));
    one.tell(Input::Settled { is_done: true });
    assert_eq!(one.replica.collection(Time(0)).retired, 1);
    let welcomed = said(&one.hear(2, Message::Join { origin: origin(2), era: 5 }));
    assert!(
        matches!(&welcomed[..], [(_, Message::Welcome { retired, .. })] if *retired == [former(3)]),
        "{welcomed:?}"
    );
}

#[test]
fn what_was_written_unheard_under_a_retired_origin_is_said_again() {
    let earlier = Origin { epoch: Epoch(0), ..origin(ME) };
    let mut one = on(&Floor::default(), &[(earlier, Version(5)), at(2, 1)], &[2]);
    let welcome = |head| Message::Welcome {
        is_settled: true,
        length: 0,
        heads: vec![at(2, 1)],
        floor: vec![],
        era: Era { held: 5, erased: 0 },
        retired: vec![(earlier, Version(head))],
        forgotten: Nodes::new(),
    };
    one.wait(100);
    let effects = one.hear(2, welcome(4));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Rejoin { .. })), "{effects:?}");
    let mut one = on(&Floor::default(), &[(earlier, Version(5)), at(2, 1)], &[2]);
    one.wait(100);
    let effects = one.hear(2, welcome(5));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Rejoin { .. })), "{effects:?}");
}
