//! Tombstones that are dropped, and replicas that were away meanwhile.

use super::*;
use crate::crdt::storage::LENGTH_DROPPED_MAX;

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
    assert_eq!(a.settle(NOW, &[], 0, 0).unwrap().commits, []);
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
    let settled = away.settle(NOW, &host.floor().unwrap().heads, length, 0).unwrap();
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

pub fn an_empty_disk_that_rejoins_is_as_the_peer_is<T: Bench>(bench: &mut T) {
    let (host, _) = parted(bench);
    let mut fresh = bench.open(C, &all_tables());
    write(&mut fresh, &[put(1, "too soon")]);
    let length = host.floor().unwrap().length;
    fresh.rejoin(NOW, &host.heads().unwrap(), length).unwrap();
    pull(&mut fresh, &host, 40);
    let settled = fresh.settle(NOW, &host.floor().unwrap().heads, length, 0).unwrap();
    assert_eq!((settled.dropped, settled.renewed), (0, 1));
    assert!(show(&fresh, 1).starts_with("1 'too soon' 'dw' | 3@"), "above what was deleted");
    write(&mut fresh, &[delete(1)]);
    assert_eq!(host.fingerprint().unwrap(), fresh.fingerprint().unwrap());
}
