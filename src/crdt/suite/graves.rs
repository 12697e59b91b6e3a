//! Tombstones that are dropped, and replicas that were away meanwhile.

use super::*;
use crate::crdt::storage::{Era, LENGTH_DROPPED_MAX, Past, Tidied, Tidy};

/// Returns what a node takes over that is let in by this one.
pub(super) fn past_of(host: &impl Storage) -> Past {
    let crate::crdt::Floor { heads, length, retired, era, erased, .. } = host.floor().unwrap();
    Past { floor: heads, length, era: Era { held: era, erased }, retired }
}

/// Drops all tombstones that a storage's own heads cover.
fn collect_all(disk: &mut impl Storage) -> usize {
    let heads = disk.heads().unwrap();
    disk.collect(&heads, &[], usize::MAX - 1).unwrap().dropped
}

pub fn dead_rows_count_for_no_fingerprint<T: Bench>(bench: &mut T) {
    let mut a = bench.open(A, &all_tables());
    let empty = a.fingerprint().unwrap();
    write(&mut a, &[put(1, "a")]);
    let one = a.fingerprint().unwrap();
    write(&mut a, &[put(2, "b")]);
    assert_ne!(a.fingerprint().unwrap(), one);
    write(&mut a, &[delete(2)]);
    assert_eq!(a.fingerprint().unwrap(), one);
    write(&mut a, &[delete(1)]);
    assert_eq!((a.fingerprint().unwrap(), a.tombstones().unwrap()), (empty, 2));
}

pub fn tombstones_go_as_far_as_the_floor_covers_them<T: Bench>(bench: &mut T) {
    let mut a = bench.open(A, &all_tables());
    write(&mut a, &[put(1, "a"), put(2, "b"), put(3, "c")]);
    write(&mut a, &[delete(1), delete(2)]);
    write(&mut a, &[delete(3), put(4, "d")]);
    let before = a.fingerprint().unwrap();
    let (low, forgotten) = ([(origin(A), Version(2))], [(C, Epoch(7))]);
    let first = a.collect(&low, &forgotten, 1).unwrap();
    assert_eq!((first.dropped, first.is_done), (1, false));
    let second = a.collect(&low, &[], 1).unwrap();
    assert_eq!((second.dropped, second.is_done), (1, true));
    assert_eq!(a.collect(&low, &[], 1).unwrap().dropped, 0);
    assert_eq!((a.tombstones().unwrap(), a.fingerprint().unwrap()), (1, before));
    assert_eq!((show(&a, 1), show(&a, 3)), ("nothing".to_owned(), "gone | 2@3/A | ".to_owned()));
    let left = a.load(origin(A), Version(0), usize::MAX).unwrap().piece;
    assert_eq!(left.changesets.len(), 1, "nothing is left of the versions that are gone");

    let a = bench.reopen(a);
    let floor = a.floor().unwrap();
    assert_eq!((&floor.heads[..], &floor.forgotten[..]), (&low[..], &forgotten[..]));
    assert_eq!((floor.length, floor.settled, floor.is_rejoining), (2, None, false));
}

pub fn a_tombstone_of_an_impossible_life_stays<T: Bench>(bench: &mut T) {
    let mut b = bench.open(B, &all_tables());
    let life = Life { length: LENGTH_DROPPED_MAX + 2, stamp: stamp(A, 1) };
    apply(&mut b, piece(stamp(A, 1), 0, vec![row("t", &[1.into()], life, &[])]));
    assert_eq!((collect_all(&mut b), b.tombstones().unwrap()), (0, 1));
}

pub fn an_origin_settles_and_another_one_has_to_again<T: Bench>(bench: &mut T) {
    let mut a = bench.open(A, &all_tables());
    assert_eq!(a.floor().unwrap().settled, None);
    assert_eq!(a.settle(NOW, &Past::default()).unwrap().commits, []);
    let mut a = bench.reopen(a);
    assert_eq!(a.floor().unwrap().settled, Some(origin(A)));
    let begun = a.begin_epoch(NOW, Epoch(1)).unwrap();
    assert_ne!(a.floor().unwrap().settled, Some(begun.origin));
}

pub fn a_row_is_born_above_the_tombstones_of_others<T: Bench>(bench: &mut T) {
    let (mut a, mut b) = (bench.open(A, &all_tables()), bench.open(B, &all_tables()));
    for _ in 0..3 {
        write(&mut a, &[put(1, "a")]);
        write(&mut a, &[delete(1)]);
    }
    pull(&mut b, &a, usize::MAX);
    assert_eq!(collect_all(&mut a), 1);
    let mut a = bench.reopen(a);
    // The one has forgotten the row, the other one has not.
    let again = write(&mut a, &[put(1, "again"), put(2, "new")]);
    apply(&mut b, news(&again));
    for disk in [&a, &b] {
        assert_eq!(show(disk, 1), "1 'again' 'dw' | 7@7/A | v:1@7/A w:1@7/A");
        assert_eq!(show(disk, 2), "2 'new' 'dw' | 7@7/A | v:1@7/A w:1@7/A");
    }
    // A row that moves is born too.
    let moved = write(&mut a, &[set(2, "id", 3)]);
    apply(&mut b, news(&moved));
    assert!(show(&b, 3).starts_with("3 'new' 'dw' | 7@8/A"), "{}", show(&b, 3));
    assert_eq!(a.fingerprint().unwrap(), b.fingerprint().unwrap());
}

/// `away` holds rows 1 to 4 and a service of A as A once had them, and wrote to some unheard. A has
/// deleted 1 and 2 meanwhile and dropped the tombstones.
fn parted<T: Bench>(bench: &mut T) -> (T::Disk, T::Disk) {
    let (mut host, mut away) = (bench.open(A, &all_tables()), bench.open(B, &all_tables()));
    let service = put_service(&A.to_string(), "web", "web", 80);
    write(&mut host, &[put(1, "a"), put(2, "b"), put(3, "c"), put(4, "d"), service]);
    pull(&mut away, &host, usize::MAX);
    write(&mut away, &[set(2, "w", "unheard"), set(3, "w", "unheard")]);
    write(&mut away, &[put(9, "own"), delete(4), put_service(&B.to_string(), "db", "db", 1)]);
    write(&mut host, &[delete(1), delete(2), put(5, "e")]);
    assert_eq!(collect_all(&mut host), 2);
    (host, away)
}

pub fn who_was_away_takes_the_rows_of_a_peer<T: Bench>(bench: &mut T) {
    let (mut host, mut away) = parted(bench);
    let length = host.floor().unwrap().length;
    let begun = away.rejoin(NOW, &host.heads().unwrap(), length).unwrap();
    assert_eq!((begun.origin.epoch, begun.ended), (Epoch(2), (origin(B), Version(0))));
    assert!(begun.commits.iter().all(|commit| commit.tables.is_empty()), "nothing vanishes yet");
    assert!(show(&away, 1).starts_with("1 'a'"));
    let floor = away.floor().unwrap();
    assert_eq!((floor.settled, floor.is_rejoining), (None, true));

    let mut away = bench.reopen(away);
    assert!(away.floor().unwrap().is_rejoining, "it is not forgotten in between");
    pull(&mut away, &host, 40);
    let settled = away.settle(NOW, &past_of(&host)).unwrap();
    assert_eq!((settled.dropped, settled.lost, settled.renewed), (2, 1, 1));
    assert_eq!(show_events(&settled.commits[0]), ["-t 1", "-t 2"]);
    let floor = away.floor().unwrap();
    assert_eq!((floor.settled, floor.is_rejoining), (Some(begun.origin), false));
    assert_eq!(floor.heads, host.floor().unwrap().heads, "what is missing there is missing here");

    pull(&mut host, &away, usize::MAX);
    for disk in [&host, &away] {
        assert_eq!(["nothing", "nothing"], [&show(disk, 1)[..], &show(disk, 2)[..]]);
        assert!(show(disk, 3).starts_with("3 'c' 'unheard' | 1@1/A"), "{}", show(disk, 3));
        assert!(show(disk, 4).starts_with("gone | 2@"), "{}", show(disk, 4));
        assert!(show(disk, 5).starts_with("5 'e'"));
        assert!(show(disk, 9).starts_with("9 'own' 'dw' | 3@"), "{}", show(disk, 9));
    }
    assert_eq!(host.fingerprint().unwrap(), away.fingerprint().unwrap());
}

pub fn an_owner_says_again_which_of_its_rows_died_under_an_earlier_epoch<T: Bench>(bench: &mut T) {
    let mut lost = bench.open(A, &all_tables());
    let [mut late, mut other, host] = [B, C, NodeId([7; 16])].map(|n| bench.open(n, &all_tables()));
    let web = || put_service(&A.to_string(), "web", "web", 80);
    write(&mut lost, &[web()]);
    pull(&mut late, &lost, usize::MAX);
    let matching = vec![("node_id", Value::from(A.to_string())), ("id", "web".into())];
    write(&mut lost, &[RowOp::Delete { table: "services", matching, except: None }]);
    pull(&mut other, &lost, usize::MAX);

    let mut owner = bench.open(A, &all_tables());
    owner.begin_epoch(NOW, Epoch(9)).unwrap();
    pull(&mut owner, &other, usize::MAX);
    owner.rejoin(NOW, &host.heads().unwrap(), 0).unwrap();
    owner.settle(NOW, &Past::default()).unwrap();
    assert_eq!(owner.tombstones().unwrap(), 1);
    pull(&mut late, &owner, usize::MAX);
    let key = [Value::from(A.to_string()), "web".into()];
    let row = late.inspect("services", &key).unwrap().unwrap();
    assert_eq!((row.row, row.life.stamp.origin), (None, owner.origin()));
}

pub fn what_is_said_again_gives_way_to_what_was_heard<T: Bench>(bench: &mut T) {
    let [mut away, mut host, mut lost] = [A, B, C].map(|node| bench.open(node, &all_tables()));
    write(&mut host, &[put(1, "v")]);
    pull(&mut lost, &host, usize::MAX);
    write(&mut host, &[set(1, "w", "same")]);
    write(&mut lost, &[set(1, "w", "same")]);
    pull(&mut away, &host, usize::MAX);
    pull(&mut away, &lost, usize::MAX);
    assert!(show(&away, 1).ends_with("2@1/C"), "{}", show(&away, 1));

    away.rejoin(NOW, &host.heads().unwrap(), 0).unwrap();
    pull(&mut away, &host, usize::MAX);
    let settled = away.settle(NOW, &Past::default()).unwrap();
    assert!(settled.commits.is_empty(), "nothing is left that the host does not have");
    assert_eq!(show(&away, 1), show(&host, 1));
    assert_eq!(away.fingerprint().unwrap(), host.fingerprint().unwrap());
}

/// B and C insert row 1 each, D hears of both and writes to it; C's disk is lost. Returns B's host, that
/// heard of B and D alone, what it told of B before it heard of D, and who is away.
fn cited<T: Bench>(bench: &mut T) -> (T::Disk, Piece, T::Disk) {
    let [mut host, mut d] = [7, 8].map(|node| bench.open(NodeId([node; 16]), &all_tables()));
    let [away, mut b, mut lost] = [A, B, C].map(|node| bench.open(node, &all_tables()));
    write(&mut b, &[put(1, "v")]);
    write(&mut lost, &[put(1, "v")]);
    pull(&mut d, &b, usize::MAX);
    pull(&mut d, &lost, usize::MAX);
    let said = write(&mut d, &[set(1, "w", "d")]);
    pull(&mut host, &b, usize::MAX);
    let early = host.load(b.origin(), Version(0), usize::MAX).unwrap().piece;
    apply(&mut host, news(&said));
    assert!(show(&host, 1).contains("1@1/C"), "{}", show(&host, 1));
    (host, early, away)
}

fn end_alike(mut away: impl Storage, mut host: impl Storage) {
    let settled = away.settle(NOW, &Past::default()).unwrap();
    assert!(settled.commits.is_empty(), "nothing is left that the host does not have");
    pull(&mut host, &away, usize::MAX);
    pull(&mut away, &host, usize::MAX);
    assert_eq!(show(&away, 1), show(&host, 1));
    assert_eq!(host.heads().unwrap(), away.heads().unwrap());
    assert_eq!(host.fingerprint().unwrap(), away.fingerprint().unwrap());
}

pub fn a_life_that_others_tell_of_is_nobody_elses_to_say_again<T: Bench>(bench: &mut T) {
    let (host, _, mut away) = cited(bench);
    away.rejoin(NOW, &host.heads().unwrap(), 0).unwrap();
    pull(&mut away, &host, usize::MAX);
    let mut away = bench.reopen(away);
    pull(&mut away, &host, usize::MAX);
    end_alike(away, host);
}

pub fn of_the_lives_that_were_told_of_the_greatest_stays<T: Bench>(bench: &mut T) {
    let (host, early, mut away) = cited(bench);
    away.rejoin(NOW, &host.heads().unwrap(), 0).unwrap();
    let d = Origin { node: NodeId([8; 16]), ..origin(A) };
    catch_up(&mut away, &host, d, usize::MAX).unwrap();
    apply(&mut away, early);
    end_alike(away, host);
}

pub fn an_empty_disk_that_rejoins_is_as_the_peer_is<T: Bench>(bench: &mut T) {
    let (host, _) = parted(bench);
    let mut fresh = bench.open(C, &all_tables());
    write(&mut fresh, &[put(1, "too soon")]);
    let length = host.floor().unwrap().length;
    fresh.rejoin(NOW, &host.heads().unwrap(), length).unwrap();
    pull(&mut fresh, &host, 40);
    let settled = fresh.settle(NOW, &past_of(&host)).unwrap();
    assert_eq!((settled.dropped, settled.renewed), (0, 1));
    assert!(show(&fresh, 1).starts_with("1 'too soon' 'dw' | 3@"), "above what was deleted");
    write(&mut fresh, &[delete(1)]);
    assert_eq!(host.fingerprint().unwrap(), fresh.fingerprint().unwrap());
}

/// Three nodes: what A owns and wrote is at B and C, and nothing else is.
fn left_behind<T: Bench>(bench: &mut T) -> (T::Disk, [T::Disk; 2]) {
    let mut gone = bench.open(A, &all_tables());
    let service = |id, port| put_service(&A.to_string(), id, id, port);
    write(&mut gone, &[service("web", 80), service("db", 1), put(1, "shared")]);
    write(&mut gone, &[service("web", 81)]);
    let mut others = [bench.open(B, &all_tables()), bench.open(C, &all_tables())];
    for other in &mut others {
        pull(other, &gone, usize::MAX);
    }
    (gone, others)
}

const DEPARTED: Origin = Origin { scope: Scope(0), node: A, epoch: Epoch(0x7ff_ffff) };

pub fn each_deletes_the_rows_of_a_gone_node_alike<T: Bench>(bench: &mut T) {
    let (mut gone, [mut b, mut c]) = left_behind(bench);
    let held = b.heads().unwrap();
    let other = [(origin(A), Version(1))];
    assert_eq!(b.depart(NOW, DEPARTED, &other).unwrap(), [], "not all hold what it holds");
    for disk in [&mut b, &mut c] {
        let commits = disk.depart(NOW, DEPARTED, &held).unwrap();
        assert_eq!(commits.len(), 1);
        assert_eq!(
            (&commits[0].changeset, &commits[0].heads[..]),
            (&None, &[(DEPARTED, Version(1))][..])
        );
        assert_eq!(
            show_events(&commits[0]),
            [format!("-services '{A}' 'db'"), format!("-services '{A}' 'web'")]
        );
        assert!(show(disk, 1).starts_with("1 'shared'"), "what is shared stays");
        assert_eq!(disk.floor().unwrap().forgotten, [(A, DEPARTED.epoch)]);
        assert_eq!(disk.depart(NOW, DEPARTED, &held).unwrap(), [], "it is done");
    }
    assert_eq!(b.fingerprint().unwrap(), c.fingerprint().unwrap());
    let piece = |disk: &T::Disk| disk.load(DEPARTED, Version(0), usize::MAX).unwrap().piece;
    assert_eq!(piece(&b), piece(&c), "one name, one content");

    // It was alive, and says its rows again.
    let begun = gone.begin_epoch(NOW, DEPARTED.epoch).unwrap();
    assert!(begun.origin.epoch > DEPARTED.epoch);
    pull(&mut gone, &b, usize::MAX);
    pull(&mut b, &gone, usize::MAX);
    let shown = show_row(&b, "services", &[A.to_string().into(), "web".into()]);
    assert!(shown.contains("'web' 81"), "{shown}");
    assert_eq!(b.fingerprint().unwrap(), gone.fingerprint().unwrap());
}

pub fn a_spent_origin_is_retired_and_then_erased<T: Bench>(bench: &mut T) {
    let (gone, [mut b, _]) = left_behind(bench);
    let ask = vec![origin(A), DEPARTED, origin(C)];
    let held = (origin(A), Version(2));
    let tidied = b.tidy(&Tidy { ask: ask.clone(), retire: vec![held], ..Tidy::default() }).unwrap();
    assert_eq!(tidied, Tidied { looked_at: 3, ..Tidied::default() }, "its rows are there");
    b.depart(NOW, DEPARTED, &[held]).unwrap();
    write(&mut b, &[put(1, "mine now"), set(1, "w", "too")]);
    assert_eq!(b.tidy(&Tidy { ask: ask.clone(), ..Tidy::default() }).unwrap().spent, [], "a life");
    write(&mut b, &[delete(1)]);
    let tidied = b.tidy(&Tidy { ask: ask.clone(), ..Tidy::default() }).unwrap();
    assert_eq!(tidied.spent, [held], "the tombstones are those of the departure");

    let less = vec![(origin(A), Version(1))];
    assert_eq!(b.tidy(&Tidy { retire: less, ..Tidy::default() }).unwrap().retired, []);
    // Another member holds one more, and nothing is left of that, either.
    let held = (origin(A), Version(3));
    let retire =
        Tidy { retire: vec![held], erase: vec![DEPARTED, origin(C)], era: 7, ..Tidy::default() };
    let tidied = b.tidy(&retire).unwrap();
    assert_eq!((&tidied.retired[..], &tidied.erased[..]), (&[held][..], &[origin(C)][..]));
    assert_eq!(b.tidy(&retire).unwrap().retired, [], "it is already");
    let mut b = bench.reopen(b);
    assert_eq!(b.heads().unwrap(), [(DEPARTED, Version(1)), (origin(B), Version(2))]);
    let floor = b.floor().unwrap();
    assert_eq!((&floor.retired[..], floor.era, floor.erased), (&[held][..], 7, 0));
    let (commits, late) =
        (b.fingerprint().unwrap(), gone.load(origin(A), Version(0), 999).unwrap());
    apply(&mut b, late.piece);
    let beyond = piece(
        stamp(A, 3),
        2,
        vec![row("t", &[5.into()], Life { length: 1, stamp: stamp(A, 3) }, &[])],
    );
    apply(&mut b, beyond);
    assert_eq!((b.fingerprint().unwrap(), show(&b, 5)), (commits, "nothing".to_owned()));
    let asked = b.load(origin(A), Version(0), usize::MAX).unwrap();
    assert_eq!(
        (asked.head, asked.piece.through, asked.piece.changesets.len()),
        (held.1, held.1, 0)
    );

    assert_eq!(collect_all(&mut b), 3);
    let (gone, erase) = (vec![A], vec![origin(A), origin(C)]);
    let tidy = Tidy { ask, erase, gone, era: 9, erased: 8, ..Tidy::default() };
    let tidied = b.tidy(&tidy).unwrap();
    assert_eq!(tidied.spent, [(DEPARTED, Version(1))]);
    assert_eq!(tidied.erased, [origin(A), origin(C)]);
    let b = bench.reopen(b);
    let floor = b.floor().unwrap();
    assert_eq!(
        (&floor.retired[..], &floor.forgotten[..], floor.era, floor.erased),
        (&[][..], &[][..], 9, 8)
    );
    assert!(floor.heads.iter().all(|(floor, _)| *floor != origin(A)), "{floor:?}");
}

pub fn what_a_peer_has_retired_is_taken_over_and_given_up_with_its_rows<T: Bench>(bench: &mut T) {
    let mut a = bench.open(A, &all_tables());
    write(&mut a, &[put(1, "a")]);
    let held = (origin(B), Version(1));
    let change = vec![row("t", &[5.into()], Life { length: 1, stamp: stamp(B, 1) }, &[])];
    apply(&mut a, piece(stamp(B, 1), 0, change));
    let retired = vec![(origin(A), Version(7)), (origin(B), Version(7)), (origin(C), Version(7))];
    a.settle(NOW, &Past { retired, ..Past::default() }).unwrap();
    let mut a = bench.reopen(a);
    let of_c = (origin(C), Version(7));
    assert_eq!(a.floor().unwrap().retired, [of_c], "what it holds it goes on holding");
    assert_eq!(a.heads().unwrap(), [(origin(A), Version(1)), held]);
    let late = vec![row("t", &[6.into()], Life { length: 1, stamp: stamp(C, 8) }, &[])];
    apply(&mut a, piece(stamp(C, 8), 7, late.clone()));
    assert_eq!(show(&a, 6), "nothing");

    // A peer of which it takes all rows may have forgotten that it ever was, and members, too.
    a.meet(&[(B, Epoch(1)), (C, Epoch(1))], &[]).unwrap();
    a.rejoin(NOW, &[held, of_c], 0).unwrap();
    let mut a = bench.reopen(a);
    let floor = a.floor().unwrap();
    assert_eq!((&floor.retired[..], &floor.members[..]), (&[][..], &[][..]));
    apply(&mut a, piece(stamp(C, 8), 0, late));
    assert!(show(&a, 6).starts_with('6'), "{}", show(&a, 6));
}

pub fn a_tombstone_of_what_a_peer_has_retired_goes_when_its_rows_are_taken<T: Bench>(
    bench: &mut T,
) {
    let mut a = bench.open(A, &all_tables());
    let dead = vec![row("t", &[5.into()], Life { length: 2, stamp: stamp(C, 1) }, &[])];
    apply(&mut a, piece(stamp(C, 1), 0, dead));
    assert_eq!(a.tombstones().unwrap(), 1);
    let held = (origin(C), Version(1));
    a.rejoin(NOW, &[held], 2).unwrap();
    a.settle(NOW, &Past { length: 2, retired: vec![held], ..Past::default() }).unwrap();
    assert_eq!(a.tombstones().unwrap(), 0, "the peer has none of it");
    let erased = a.tidy(&Tidy { erase: vec![origin(C)], ..Tidy::default() }).unwrap().erased;
    assert_eq!(erased, [origin(C)]);
}

pub fn a_row_is_born_above_what_was_dropped_though_it_died_before<T: Bench>(bench: &mut T) {
    let mut a = bench.open(A, &all_tables());
    write(&mut a, &[put(1, "a"), put(2, "b")]);
    write(&mut a, &[delete(1)]);
    // The peer that let it in may have dropped a later tombstone, and others hold that one still.
    let past = Past { length: 8, ..Past::default() };
    a.settle(NOW, &past).unwrap();
    write(&mut a, &[delete(2), put(1, "again")]);
    write(&mut a, &[put(2, "again")]);
    // The second one was begun again when it settled, and has died since.
    for (id, life) in [(1, "| 9@"), (2, "| 11@")] {
        assert!(show(&a, id).contains(life), "{}", show(&a, id));
    }
}

pub fn a_cell_that_the_peer_has_no_more_goes_though_its_row_is_there<T: Bench>(bench: &mut T) {
    let life = Life { length: 1, stamp: stamp(C, 1) };
    let rows = |cells: &[(&str, u64, Value)]| {
        [5, 6].map(|id| row("t", &[id.into()], life, cells)).to_vec()
    };
    let born = rows(&[("v", 1, "x".into()), ("w", 1, "y".into())]);
    let changed = rows(&[("w", 2, "z".into())]);
    let mut a = bench.open(A, &all_tables());
    apply(&mut a, piece(stamp(C, 1), 0, born));
    write(&mut a, &[set(6, "v", "unheard")]);
    // There the rows were deleted and their tombstones dropped; then somebody who held them still
    // changed one cell of each.
    a.rejoin(NOW, &[(origin(C), Version(2))], 0).unwrap();
    let mut a = bench.reopen(a);
    apply(&mut a, piece(stamp(C, 2), 0, changed.clone()));
    let settled = a.settle(NOW, &Past::default()).unwrap();
    let watched: Vec<String> = settled.commits.iter().flat_map(show_events).collect();
    assert_eq!(watched, ["=t 5 NULL 'z'"]);
    let a = bench.reopen(a);
    let mut b = bench.open(B, &all_tables());
    apply(&mut b, piece(stamp(C, 2), 0, changed));
    pull(&mut b, &a, usize::MAX);
    assert!(show(&b, 6).starts_with("6 'unheard' 'z'"), "{}", show(&b, 6));
    assert_eq!([5, 6].map(|id| show(&a, id)), [5, 6].map(|id| show(&b, id)));
    assert_eq!(a.fingerprint().unwrap(), b.fingerprint().unwrap());
}

pub fn who_is_no_member_is_noted_and_in_force_once_tombstones_went<T: Bench>(bench: &mut T) {
    let mut one = bench.open(A, &all_tables());
    one.meet(&[(B, Epoch(3)), (C, Epoch(1))], &[(B, Epoch(3))]).unwrap();
    let mut one = bench.reopen(one);
    let of = |one: &T::Disk| {
        let floor = one.floor().unwrap();
        (floor.members, floor.forgotten, floor.in_force)
    };
    let members = vec![(B, Epoch(3)), (C, Epoch(1))];
    assert_eq!(of(&one), (members.clone(), vec![(B, Epoch(3))], vec![]));
    one.collect(&[], &[(B, Epoch(3))], 9).unwrap();
    one.meet(&[], &[(B, Epoch(2)), (C, Epoch(1))]).unwrap();
    let one = bench.reopen(one);
    let forgotten = members.clone();
    assert_eq!(of(&one), (members, forgotten, vec![(B, Epoch(3))]));
}
