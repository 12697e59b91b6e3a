//! What becomes of commits on other nodes: applied, loaded, parked, refused.

use super::*;
use crate::crdt::{Bookmark, Table};

fn open<T: Bench>(bench: &mut T, node: NodeId) -> T::Disk {
    bench.open(node, &all_tables())
}

/// Life and cells of `t`'s row 1 as commit `version` of `node` inserts it.
fn insert_by(node: NodeId, version: u64, v: &str) -> TableChanges {
    let life = Life { length: 1, stamp: stamp(node, version) };
    row("t", &[1.into()], life, &[("v", 1, v.into())])
}

pub fn a_changeset_stands_alone<T: Bench>(bench: &mut T) {
    let (mut from, mut to) = (open(bench, A), open(bench, B));
    for ops in [
        vec![put(1, "a"), put(2, "b"), put_service(&A.to_string(), "web", "web", 80)],
        vec![set(1, "w", "x"), delete(2)],
        vec![put(2, "c"), set(1, "id", 3)],
    ] {
        let commit = write(&mut from, &ops);
        let heard = apply(&mut to, news(&commit));
        // Within a changeset, tables and rows may stand in any order.
        let sorted = |commit| {
            let mut events = show_events(commit);
            events.sort();
            events
        };
        assert_eq!(sorted(&heard), sorted(&commit));
        assert_eq!(heard.heads, commit.heads);
        assert_eq!(heard.changeset, None);
        assert_eq!(to.fingerprint().unwrap(), from.fingerprint().unwrap());
    }
}

pub fn a_piece_applied_twice_changes_nothing<T: Bench>(bench: &mut T) {
    let (mut from, mut to) = (open(bench, A), open(bench, B));
    let commit = write(&mut from, &[put(1, "a")]);
    let first = apply(&mut to, news(&commit));
    let before = to.fingerprint().unwrap();
    let second = apply(&mut to, news(&commit));
    assert_eq!(second.tables, []);
    assert_eq!(second.heads, [(origin(A), Version(1))]);
    assert_eq!(second.seq.0, first.seq.0 + 1);
    assert_eq!(to.fingerprint().unwrap(), before);
}

pub fn a_piece_that_does_not_join_is_skipped<T: Bench>(bench: &mut T) {
    let (mut from, mut to) = (open(bench, A), open(bench, B));
    let first = write(&mut from, &[put(1, "a")]);
    let second = write(&mut from, &[put(2, "b")]);
    let skipped = apply(&mut to, news(&second));
    assert_eq!((skipped.tables, skipped.heads), (vec![], vec![(origin(A), Version(0))]));
    assert_eq!(show(&to, 2), "nothing");
    apply(&mut to, news(&first));
    apply(&mut to, news(&second));
    assert_eq!(to.fingerprint().unwrap(), from.fingerprint().unwrap());
    assert_eq!(to.refusals(), 0);
}

pub fn a_piece_that_is_held_in_part_is_applied<T: Bench>(bench: &mut T) {
    let (mut from, mut to) = (open(bench, A), open(bench, B));
    let first = write(&mut from, &[put(1, "a")]);
    apply(&mut to, news(&first));
    write(&mut from, &[put(2, "b")]);
    let both = from.load(origin(A), Version(0), usize::MAX).unwrap().piece;
    let commit = apply(&mut to, both);
    assert_eq!(show_events(&commit), ["+t 2 'b' 'dw'"]);
    assert_eq!(commit.heads, [(origin(A), Version(2))]);
    // Versions of which nothing is left are held all the same.
    let nothing =
        Piece { origin: origin(A), after: Version(1), through: Version(7), changesets: vec![] };
    assert_eq!(apply(&mut to, nothing).heads, [(origin(A), Version(7))]);
    assert_eq!(head(&to, origin(A)), 7);
}

pub fn a_piece_of_the_present_origin_is_skipped<T: Bench>(bench: &mut T) {
    let mut disk = open(bench, A);
    write(&mut disk, &[put(2, "b")]);
    // A peer knows more of this node than the node itself: its disk was set back.
    let lost = piece(stamp(A, 3), 1, vec![insert_by(A, 3, "lost")]);
    let skipped = apply(&mut disk, lost.clone());
    assert_eq!((skipped.tables, skipped.heads), (vec![], vec![(origin(A), Version(1))]));
    let mut disk = bench.reopen(disk);
    disk.begin_epoch(NOW, Epoch(1)).unwrap();
    assert_eq!(show_events(&apply(&mut disk, lost)), ["+t 1 'lost' 'dw'"]);
    assert_eq!(head(&disk, origin(A)), 3);
}

pub fn a_batch_is_one_commit<T: Bench>(bench: &mut T) {
    let mut a = open(bench, A);
    let mut b = open(bench, B);
    for v in ["a", "b", "c"] {
        write(&mut a, &[put(1, v)]);
        write(&mut b, &[put(2, v)]);
    }
    write(&mut a, &[put(3, "x")]);
    write(&mut a, &[put(3, "x"), put(4, "y")]);
    write(&mut a, &[delete(3)]);
    let mut to = open(bench, C);
    let load = |disk: &T::Disk| disk.load(disk.origin(), Version(0), usize::MAX).unwrap().piece;
    let batch = Batch { pieces: vec![load(&b), load(&a)] };
    let commit = to.apply(NOW, &batch).unwrap();
    // Each row once, as it stands in the end; what came and went again is no event.
    assert_eq!(show_events(&commit), ["+t 2 'c' 'dw'", "+t 1 'c' 'dw'", "+t 4 'y' 'dw'"]);
    assert_eq!(commit.heads, [(origin(A), Version(6)), (origin(B), Version(3))]);
    assert_eq!(show(&to, 3), "gone | 2@6/A | ");
}

pub fn only_what_is_left_of_a_version_is_loaded<T: Bench>(bench: &mut T) {
    let mut disk = open(bench, A);
    write(&mut disk, &[put(1, "a"), put(2, "a")]);
    write(&mut disk, &[put(1, "b")]);
    write(&mut disk, &[put(1, "c"), delete(2)]);
    write(&mut disk, &[set(1, "w", "x")]);
    let extract = disk.load(origin(A), Version(0), usize::MAX).unwrap();
    assert_eq!((extract.head, extract.piece.through), (Version(4), Version(4)));
    let versions: Vec<u64> =
        extract.piece.changesets.iter().map(|changeset| changeset.stamp.version.0).collect();
    // Of the first version the life of row 1 is left, and no cell.
    assert_eq!(versions, [1, 3, 4]);
    let third = &extract.piece.changesets[1].tables[0];
    assert_eq!(third.rows.len(), 2);
    assert_eq!(third.rows.iter().map(|row| row.cells.len()).sum::<usize>(), 1);
    // Life travels with each row.
    assert!(third.rows.iter().any(|row| row.life == Life { length: 1, stamp: stamp(A, 1) }));
    let mut to = open(bench, B);
    apply(&mut to, extract.piece);
    assert_eq!(to.fingerprint().unwrap(), disk.fingerprint().unwrap());

    let later = disk.load(origin(A), Version(3), usize::MAX).unwrap().piece;
    assert_eq!((later.after, later.changesets.len()), (Version(3), 1));
    let nothing = disk.load(origin(A), Version(4), usize::MAX).unwrap().piece;
    assert_eq!((nothing.through, nothing.changesets), (Version(4), vec![]));
    let unknown = disk.load(origin(C), Version(0), usize::MAX).unwrap();
    assert_eq!((unknown.head, unknown.piece.changesets), (Version(0), vec![]));
    let beyond = disk.load(origin(A), Version(u64::MAX), usize::MAX).unwrap();
    assert_eq!((beyond.head, beyond.piece.changesets), (Version(4), vec![]));
}

pub fn a_life_is_loaded_where_no_cell_brings_it<T: Bench>(bench: &mut T) {
    let (mut a, mut b) = (open(bench, A), open(bench, B));
    write(&mut a, &[put(1, "a")]);
    pull(&mut b, &a, usize::MAX);
    write(&mut b, &[put(1, "b"), set(1, "w", "x")]);
    pull(&mut a, &b, usize::MAX);
    assert_eq!(show(&a, 1), "1 'b' 'x' | 1@1/A | v:2@1/B w:2@1/B");
    // Nothing but the row's beginning is left of A.
    let left = a.load(origin(A), Version(0), usize::MAX).unwrap().piece;
    assert_eq!(left.changesets.len(), 1);
    let row = &left.changesets[0].tables[0].rows[0];
    assert_eq!((row.life, &row.cells[..]), (Life { length: 1, stamp: stamp(A, 1) }, &[][..]));
    let mut c = open(bench, C);
    apply(&mut c, left);
    assert_eq!(show(&c, 1), "1 NULL 'dw' | 1@1/A | ");
    pull(&mut c, &a, usize::MAX);
    assert_eq!(c.fingerprint().unwrap(), a.fingerprint().unwrap());
}

pub fn a_long_extract_is_cut_between_versions<T: Bench>(bench: &mut T) {
    let mut from = open(bench, A);
    for id in 1..=9 {
        write(&mut from, &[put(id, "x".repeat(100)), put(id + 100, "y".repeat(100))]);
    }
    let first = from.load(origin(A), Version(0), 1).unwrap();
    assert_eq!(first.piece.changesets.len(), 1);
    assert!(first.end() > Version(0).into(), "a version, or a part of one");
    assert!(first.piece.through <= Version(1) && first.head == Version(9));
    let some = from.load(origin(A), Version(2), 1_000).unwrap();
    assert_eq!(some.piece.after, Version(2));
    assert!((2..7).contains(&some.piece.changesets.len()), "{}", some.piece.changesets.len());
    assert!(some.piece.through < some.head);
    let mut to = open(bench, B);
    assert!(pull(&mut to, &from, 1_000) > 2);
    assert_eq!(head(&to, origin(A)), 9);
    assert_eq!(to.fingerprint().unwrap(), from.fingerprint().unwrap());
}

/// A commit of 40 rows, and what came before and after it.
fn write_large(disk: &mut impl Storage) {
    write(disk, &[put(1, "before")]);
    let large: Vec<RowOp> = (0..40).map(|id| put(id, "large".repeat(9))).collect();
    write(disk, &large);
    write(disk, &[put(3, "after"), delete(5)]);
}

pub fn a_large_version_is_cut_and_becomes_visible_whole<T: Bench>(bench: &mut T) {
    let (mut from, mut to) = (open(bench, A), open(bench, B));
    write_large(&mut from);
    for bytes_max in [1, 300, 1_000] {
        let mut mark = Bookmark::from(Version(1));
        let (mut keys, mut parts) = (Vec::new(), 0);
        // The storage may have few parts of many rows.
        loop {
            let extract = from.load(origin(A), mark, bytes_max).unwrap();
            assert!(extract.end() > mark && extract.head == Version(3));
            assert_eq!(extract.piece.after, Version(1));
            let of_large = extract.piece.changesets.iter();
            let of_large = of_large.filter(|changeset| changeset.stamp.version == Version(2));
            let rows = of_large.flat_map(|changeset| &changeset.tables).flat_map(|t| &t.rows);
            keys.extend(rows.map(|row| Arc::clone(&row.key)));
            parts += 1;
            if extract.part == 0 {
                break;
            }
            assert_eq!(extract.piece.through, Version(1));
            mark = extract.end();
        }
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 39, "all but what was deleted, in {parts} parts");
    }
    pull(&mut to, &from, 100);
    assert_eq!(head(&to, origin(A)), 3);
    assert_eq!(to.fingerprint().unwrap(), from.fingerprint().unwrap());
    let mut third = open(bench, C);
    pull(&mut third, &to, 100);
    assert_eq!(third.fingerprint().unwrap(), from.fingerprint().unwrap());
}

/// Cuts a piece of one changeset into two parts that end in the middle of it, and its end.
fn halves(piece: &Piece) -> (Vec<Part>, Piece) {
    let (changeset, at) = (&piece.changesets[0], piece.changesets[0].tables[0].rows.len() / 2);
    let half = |rows: &[RowChange]| {
        let table = &changeset.tables[0];
        let tables = vec![TableChanges { rows: rows.to_vec(), ..table.clone() }];
        vec![Arc::new(Changeset { tables, ..Changeset::clone(changeset) })]
    };
    let (first, rest) = changeset.tables[0].rows.split_at(at);
    let through = piece.after;
    let part =
        |rows| Part { piece: Piece { through, changesets: half(rows), ..*piece }, is_cut: true };
    (vec![part(first), part(&first[at / 2..])], Piece { changesets: half(rest), ..*piece })
}

pub fn what_is_staged_is_nowhere_until_it_is_applied<T: Bench>(bench: &mut T) {
    let (mut from, mut to) = (open(bench, A), open(bench, B));
    write(&mut from, &(0..9).map(|id| put(id, "x")).collect::<Vec<_>>());
    let whole = from.load(origin(A), Version(0), usize::MAX).unwrap().piece;
    let (parts, last) = halves(&whole);
    let before = to.fingerprint().unwrap();
    for staging in [Staging(1), Staging(2)] {
        to.stage(staging, &parts[..1]).unwrap();
        to.stage(staging, &parts[1..]).unwrap();
    }
    assert_eq!(to.fingerprint().unwrap(), before);
    assert_eq!((head(&to, origin(A)), show(&to, 1)), (0, "nothing".to_owned()));
    to.unstage(Staging(1)).unwrap();
    let commit = to.apply_staged(NOW, Staging(2), &last).unwrap();
    assert_eq!(show_events(&commit).len(), 9);
    assert_eq!(commit.heads, [(origin(A), Version(1))]);
    assert_eq!(to.fingerprint().unwrap(), from.fingerprint().unwrap());
    // What was forgotten, by whatever way, does not come back.
    for forget in [0, 1, 2] {
        let mut late = open(bench, C);
        late.stage(Staging(3), &parts).unwrap();
        match forget {
            0 => late.unstage(Staging(3)).unwrap(),
            1 => late = bench.reopen(late),
            _ => {
                // It does not join: nothing happens, and the parts are gone.
                let late_one = Piece { after: Version(5), through: Version(6), ..last.clone() };
                let skipped = late.apply_staged(NOW, Staging(3), &late_one).unwrap();
                assert_eq!(
                    (skipped.tables, skipped.heads),
                    (vec![], vec![(origin(A), Version(0))])
                );
            }
        }
        let mut empty = last.clone();
        empty.changesets.clear();
        let commit = late.apply_staged(NOW, Staging(3), &empty).unwrap();
        assert_eq!((commit.tables, head(&late, origin(A))), (vec![], 1), "{forget}");
    }
}

pub fn a_version_that_was_cut_elsewhere_is_begun_again<T: Bench>(bench: &mut T) {
    let (mut from, mut to) = (open(bench, A), open(bench, B));
    write(&mut from, &(0..9).map(|id| put(id, "x")).collect::<Vec<_>>());
    let whole = from.load(origin(A), Version(0), usize::MAX).unwrap().piece;
    to.stage(Staging(1), &halves(&whole).0).unwrap();
    // A part of a version that is held, and of one that comes again, is no news.
    let commit = to.apply_staged(NOW, Staging(1), &whole).unwrap();
    assert_eq!(show_events(&commit).len(), 9);
    let fingerprint = to.fingerprint().unwrap();
    assert_eq!(fingerprint, from.fingerprint().unwrap());
    to.stage(Staging(1), &halves(&whole).0).unwrap();
    let commit = to.apply_staged(NOW, Staging(1), &whole).unwrap();
    assert_eq!((commit.tables, commit.heads), (vec![], vec![(origin(A), Version(1))]));
    assert_eq!(to.fingerprint().unwrap(), fingerprint);
}

pub fn nothing_is_told_of_versions_beyond_the_head<T: Bench>(bench: &mut T) {
    let mut disk = open(bench, C);
    // A writes into a life that B began; nothing of B itself has arrived.
    let life = Life { length: 3, stamp: stamp(B, 9) };
    let change = row("t", &[1.into()], life, &[("v", 1, "a".into())]);
    apply(&mut disk, piece(stamp(A, 1), 0, vec![change]));
    assert_eq!(disk.heads().unwrap(), [(origin(A), Version(1))]);
    let extract = disk.load(origin(B), Version(0), usize::MAX).unwrap();
    assert_eq!((extract.head, extract.piece.through), (Version(0), Version(0)));
    assert_eq!(extract.piece.changesets, []);
}

pub fn a_commit_keeps_its_time_on_the_way<T: Bench>(bench: &mut T) {
    let (mut a, mut b, mut c) = (open(bench, A), open(bench, B), open(bench, C));
    a.commit(Wall(5_000_000), &[put(1, "a"), put(2, "a")]).unwrap();
    a.commit(Wall(6_000_000), &[put(1, "b")]).unwrap();
    for _ in 0..2 {
        pull(&mut b, &a, usize::MAX);
        pull(&mut c, &b, usize::MAX);
    }
    let piece = c.load(origin(A), Version(0), usize::MAX).unwrap().piece;
    let times: Vec<Wall> = piece.changesets.iter().map(|changeset| changeset.at).collect();
    assert_eq!(times, [Wall(5_000_000), Wall(6_000_000)]);
}

pub fn two_replicas_agree_whatever_comes_first<T: Bench>(bench: &mut T) {
    let conflicts: [(&[RowOp], &[RowOp]); 6] = [
        (&[put(1, "a")], &[put(1, "b")]),
        (&[put(1, "same")], &[put(1, "same")]),
        (&[put(1, "a"), set(1, "w", "x")], &[delete(1)]),
        (&[delete(1)], &[delete(1)]),
        (&[set(1, "id", 2)], &[set(1, "id", 3)]),
        (&[set(1, "id", 2)], &[set(1, "v", "b"), put(2, "x")]),
    ];
    for (by_a, by_b) in conflicts {
        let (mut a, mut b) = (open(bench, A), open(bench, B));
        write(&mut a, &[put(1, "old")]);
        pull(&mut b, &a, usize::MAX);
        write(&mut a, by_a);
        write(&mut b, by_b);
        pull(&mut a, &b, usize::MAX);
        pull(&mut b, &a, usize::MAX);
        for id in 1..=3 {
            assert_eq!(show(&a, id), show(&b, id), "{by_a:?} against {by_b:?}");
        }
        assert_eq!(a.fingerprint().unwrap(), b.fingerprint().unwrap());
    }
}

pub fn three_replicas_agree_through_each_other<T: Bench>(bench: &mut T) {
    let (mut a, mut b, mut c) = (open(bench, A), open(bench, B), open(bench, C));
    write(&mut a, &[put(1, "a"), put(2, "a")]);
    write(&mut b, &[put(1, "b"), put(2, "b")]);
    write(&mut b, &[delete(1)]);
    write(&mut c, &[put(1, "c"), set(1, "w", "x")]);
    // A never meets C; the ring goes round by B, in both directions.
    for _ in 0..2 {
        pull(&mut b, &a, usize::MAX);
        pull(&mut c, &b, usize::MAX);
        pull(&mut b, &c, usize::MAX);
        pull(&mut a, &b, usize::MAX);
    }
    assert_eq!(show(&a, 1), "gone | 2@2/B | ");
    assert_eq!(show(&a, 2), "2 'b' 'dw' | 1@1/B | v:1@1/B w:1@1/B");
    for id in 1..=2 {
        assert_eq!((show(&b, id), show(&c, id)), (show(&a, id), show(&a, id)));
    }
    let fingerprints = [&a, &b, &c].map(|disk| disk.fingerprint().unwrap());
    assert_eq!(fingerprints, [fingerprints[0]; 3]);
}

pub fn a_tombstone_travels<T: Bench>(bench: &mut T) {
    let (mut a, mut b, mut c) = (open(bench, A), open(bench, B), open(bench, C));
    write(&mut a, &[put(1, "a")]);
    pull(&mut b, &a, usize::MAX);
    write(&mut b, &[delete(1)]);
    let tombstone = write(&mut a, &[put(1, "late")]);
    pull(&mut c, &b, usize::MAX);
    assert_eq!(show(&c, 1), "gone | 2@1/B | ");
    pull(&mut c, &a, usize::MAX);
    assert_eq!(show(&c, 1), "gone | 2@1/B | ");
    assert_eq!(tombstone.heads, [(origin(A), Version(2))]);
    pull(&mut a, &c, usize::MAX);
    pull(&mut b, &c, usize::MAX);
    let fingerprints = [&a, &b, &c].map(|disk| disk.fingerprint().unwrap());
    assert_eq!(fingerprints, [fingerprints[0]; 3]);
}

pub fn an_unknown_table_is_parked_and_passed_on<T: Bench>(bench: &mut T) {
    let mut from = open(bench, A);
    let mut between = bench.open(B, &[pairs()]);
    let mut to = open(bench, C);
    write(&mut from, &[put(1, "a"), put(2, "b"), put_service(&A.to_string(), "web", "web", 80)]);
    write(&mut from, &[put(1, "c"), delete(2)]);
    pull(&mut between, &from, usize::MAX);
    assert_eq!(between.fingerprint().unwrap(), from.fingerprint().unwrap());
    assert_eq!(between.inspect("t", &[1.into()]).unwrap(), None);
    pull(&mut to, &between, usize::MAX);
    assert_eq!(to.fingerprint().unwrap(), from.fingerprint().unwrap());
    assert_eq!(show(&to, 1), show(&from, 1));

    bench.define(&mut between, &t());
    for id in 1..=2 {
        assert_eq!(show(&between, id), show(&from, id));
    }
    assert_eq!(between.fingerprint().unwrap(), from.fingerprint().unwrap());
    let update = write(&mut between, &[put(1, "d")]);
    assert_eq!(show_events(&update), ["=t 1 'd' 'dw'"]);
    pull(&mut from, &between, usize::MAX);
    assert_eq!(show(&from, 1), "1 'd' 'dw' | 1@1/A | v:3@1/B w:1@1/A");
    assert_eq!(between.fingerprint().unwrap(), from.fingerprint().unwrap());
}

/// The table `t` before it had a column `w`.
fn old_t() -> Definition {
    Definition::new("t", &[("id", Value::Null), ("v", Value::Null)], &["id"]).unwrap()
}

pub fn an_unknown_column_is_shown_when_it_comes<T: Bench>(bench: &mut T) {
    let (mut new, mut old) = (open(bench, A), bench.open(B, &[old_t()]));
    write(&mut new, &[put(1, "a"), set(1, "w", "x"), put(2, "b"), set(2, "w", "y")]);
    pull(&mut old, &new, usize::MAX);
    assert_eq!(show(&old, 1), "1 'a' | 1@1/A | v:1@1/A w:1@1/A");
    // A parked cell takes part in every merge.
    write(&mut new, &[set(1, "w", "z")]);
    pull(&mut old, &new, usize::MAX);
    write(
        &mut old,
        &[RowOp::Set {
            table: "t",
            matching: vec![("id", 1.into())],
            set: vec![("v", "b".into())],
        }],
    );
    let fresh = RowOp::Put { table: "t", row: vec![("id", 3.into())], keep: &[] };
    write(&mut old, &[fresh]);
    assert_eq!(show(&old, 1), "1 'b' | 1@1/A | v:2@1/B w:2@2/A");
    pull(&mut new, &old, usize::MAX);
    assert_eq!(old.fingerprint().unwrap(), new.fingerprint().unwrap());

    bench.define(&mut old, &t());
    assert_eq!(show(&old, 1), "1 'b' 'z' | 1@1/A | v:2@1/B w:2@2/A");
    for id in 1..=3 {
        assert_eq!(show(&old, id), show(&new, id));
    }
    assert_eq!(old.fingerprint().unwrap(), new.fingerprint().unwrap());
    // A column that comes by is nobody's write.
    assert_eq!(head(&old, origin(B)), 2);
}

pub fn a_later_life_forgets_parked_cells<T: Bench>(bench: &mut T) {
    let (mut new, mut old) = (open(bench, A), bench.open(B, &[old_t()]));
    write(&mut new, &[put(1, "a"), set(1, "w", "x"), put(2, "a"), set(2, "w", "x")]);
    pull(&mut old, &new, usize::MAX);
    let local = |op: &str| match op {
        "delete" => RowOp::Delete { table: "t", matching: vec![("id", 1.into())], except: None },
        _ => RowOp::Put { table: "t", row: vec![("id", 1.into()), ("v", "b".into())], keep: &[] },
    };
    write(&mut old, &[local("delete")]);
    write(&mut old, &[local("put")]);
    let life = Life { length: 3, stamp: stamp(C, 1) };
    apply(&mut old, piece(stamp(C, 1), 0, vec![row("t", &[2.into()], life, &[])]));
    assert_eq!(show(&old, 1), "1 'b' | 3@2/B | v:1@2/B");
    assert_eq!(show(&old, 2), "2 NULL | 3@1/C | ");
    bench.define(&mut old, &t());
    assert_eq!(show(&old, 1), "1 'b' 'dw' | 3@2/B | v:1@2/B");
    assert_eq!(show(&old, 2), "2 NULL 'dw' | 3@1/C | ");
    pull(&mut new, &old, usize::MAX);
    assert_eq!(show(&new, 1), show(&old, 1));
    assert_eq!(old.fingerprint().unwrap(), new.fingerprint().unwrap());
}

pub fn a_parked_row_with_another_kind_of_key_is_left_out<T: Bench>(bench: &mut T) {
    let (mut early, mut late) = (open(bench, A), bench.open(B, &[]));
    let life = Life { length: 1, stamp: stamp(C, 1) };
    let odd = row("t", &[1.into(), 2.into()], life, &[("v", 1, "a".into())]);
    let good = row("t", &[1.into()], life, &[("v", 1, "a".into())]);
    for disk in [&mut early, &mut late] {
        apply(disk, piece(stamp(C, 1), 0, vec![odd.clone(), good.clone()]));
    }
    bench.define(&mut late, &t());
    assert_eq!((early.refusals(), late.refusals()), (1, 1));
    assert_eq!(late.fingerprint().unwrap(), early.fingerprint().unwrap());
    assert_eq!(show(&late, 1), "1 'a' 'dw' | 1@1/C | v:1@1/C");
    let left = late.load(origin(C), Version(0), usize::MAX).unwrap().piece;
    assert_eq!(left, early.load(origin(C), Version(0), usize::MAX).unwrap().piece);
}

pub fn a_row_of_a_foreign_owner_is_left_out<T: Bench>(bench: &mut T) {
    let (mut disk, mut unaware) = (open(bench, A), bench.open(C, &[]));
    let life = Life { length: 1, stamp: stamp(B, 1) };
    let service = |owner: NodeId, id: &str| {
        let key = [owner.to_string().into(), id.into()];
        row("services", &key, life, &[("port", 1, 80.into())])
    };
    let mine = write(&mut disk, &[put_service(&A.to_string(), "web", "web", 443)]);
    apply(&mut unaware, news(&mine));
    let forged = vec![
        service(A, "web"),
        service(B, "web"),
        service(C, "web"),
        row("services", &[7.into(), "web".into()], life, &[]),
        insert_by(B, 1, "b"),
    ];
    let commit = apply(&mut disk, piece(stamp(B, 1), 0, forged.clone()));
    let theirs = format!("+services '{B}' 'web' '' 80");
    assert_eq!(show_events(&commit), [theirs.as_str(), "+t 1 'b' 'dw'"]);
    assert_eq!(disk.refusals(), 3);
    assert_eq!(head(&disk, origin(B)), 1);
    // Who does not know the table refuses alike.
    apply(&mut unaware, piece(stamp(B, 1), 0, forged));
    assert_eq!(unaware.refusals(), 3);
    assert_eq!(unaware.fingerprint().unwrap(), disk.fingerprint().unwrap());
    // The forged row is nowhere: the owner's own write stands.
    let key = [A.to_string().into(), "web".into()];
    let shown = format!("'{A}' 'web' 'web' 443 | 1@1/A | name:1@1/A port:1@1/A");
    assert_eq!(show_row(&disk, "services", &key), shown);
}

pub fn an_external_node_belongs_to_its_registrar<T: Bench>(bench: &mut T) {
    let (mut a, mut b) = (open(bench, A), open(bench, B));
    let commit = write(&mut a, &[put_service(&format!("{A}/printer"), "ipp", "ipp", 631)]);
    assert_eq!(apply(&mut b, news(&commit)).tables[0].rows.each().len(), 1);
    refuse(&mut b, &[put_service(&format!("{A}/printer"), "ipp", "ipp", 1)]);
    assert_eq!(b.refusals(), 0);
}

pub fn what_cannot_be_a_row_is_left_out<T: Bench>(bench: &mut T) {
    let mut disk = open(bench, A);
    let life = Life { length: 1, stamp: stamp(B, 2) };
    let of_key = |key: &[u8]| {
        let mut changes = insert_by(B, 2, "x");
        changes.rows[0].key = key.into();
        changes
    };
    let mut odd_column = row("t", &[3.into()], life, &[("v", 1, "a".into())]);
    odd_column.rows[0].cells.push(CellChange { column: 7, count: 1, value: "lost".into() });
    let changes = vec![
        of_key(b""),
        of_key(b"\x09\x09"),
        of_key(&[5; 7]),
        row("t", &[Value::Null], life, &[]),
        row("t", &[1.into(), 2.into()], life, &[]),
        odd_column,
        row("t", &[4.into()], life, &[("v", 1, "a".into()), ("v", 1, "b".into())]),
    ];
    let mut piece = piece(stamp(B, 2), 0, changes);
    // Neither of these belongs into the piece.
    for stray in [stamp(C, 1), stamp(B, 9)] {
        let tables = vec![insert_by(stray.origin.node, stray.version.0, "stray")];
        piece.changesets.push(Arc::new(Changeset { stamp: stray, at: NOW, tables }));
    }
    let commit = apply(&mut disk, piece);
    assert_eq!(show_events(&commit), ["+t 3 'a' 'dw'", "+t 4 'b' 'dw'"]);
    assert_eq!(disk.refusals(), 7);
    assert_eq!(disk.heads().unwrap(), [(origin(B), Version(2))]);
}

pub fn a_table_is_known_by_its_exact_name<T: Bench>(bench: &mut T) {
    let mut disk = open(bench, A);
    let life = Life { length: 1, stamp: stamp(B, 1) };
    // Were this `services`, B could write a row of A's.
    let key = [A.to_string().into(), "web".into()];
    let forged = row("Services", &key, life, &[("port", 1, 80.into())]);
    let shouted = row("t", &[1.into()], life, &[("V", 1, "x".into())]);
    let commit = apply(&mut disk, piece(stamp(B, 1), 0, vec![forged, shouted]));
    assert_eq!(show_events(&commit), ["+t 1 NULL 'dw'"]);
    assert_eq!(show_row(&disk, "services", &key), "nothing");
    assert_eq!(show(&disk, 1), "1 NULL 'dw' | 1@1/B | V:1@1/B");
}

pub fn impossible_counts_count_for_nothing<T: Bench>(bench: &mut T) {
    let mut disk = open(bench, A);
    write(&mut disk, &[put(1, "a")]);
    let life = |length| Life { length, stamp: stamp(B, 1) };
    let cells = [("v", u64::MAX, "max".into()), ("v", 0, "zero".into()), ("w", 1, "x".into())];
    let changes = vec![
        row("t", &[1.into()], life(1), &cells),
        row("t", &[2.into()], life(0), &[]),
        row("t", &[2.into()], Life { length: 1, stamp: stamp(B, 1 << 63) }, &[]),
        row("t", &[3.into()], life(u64::MAX), &[]),
    ];
    apply(&mut disk, piece(stamp(B, 1), 0, changes));
    assert_eq!(show(&disk, 1), "1 'a' 'x' | 1@1/B | v:1@1/A w:1@1/B");
    assert_eq!((show(&disk, 2), show(&disk, 3)), ("nothing".to_owned(), "nothing".to_owned()));
    write(&mut disk, &[put(1, "b"), put(3, "c")]);
    // Nor do impossible versions: the whole piece, and the life alone.
    let commit = apply(&mut disk, piece(stamp(C, 1 << 63), 0, vec![insert_by(C, 1 << 63, "z")]));
    assert_eq!((commit.tables, commit.heads), (vec![], vec![(origin(C), Version(0))]));
    let commit = apply(&mut disk, piece(stamp(C, 1), 0, vec![insert_by(C, 1 << 63, "z")]));
    assert_eq!((commit.tables, commit.heads), (vec![], vec![(origin(C), Version(1))]));
    assert_eq!(show(&disk, 3), "3 'c' 'dw' | 1@2/A | v:1@2/A w:1@2/A");
}

pub fn all_storages_have_the_same_fingerprint<T: Bench>(bench: &mut T) {
    let mut disk = open(bench, A);
    assert_eq!(disk.fingerprint().unwrap(), 0);
    write(
        &mut disk,
        &[put(1, Value::Null), put(2, Value::Real(0.5)), put(3, Value::Blob(vec![7]))],
    );
    write(&mut disk, &[set(1, "id", 4), delete(2), put_service(&A.to_string(), "web", "web", 80)]);
    let mut reference = Table::new(origin(B), &all_tables()).unwrap();
    pull(&mut reference, &disk, usize::MAX);
    assert_eq!(disk.fingerprint().unwrap(), reference.fingerprint().unwrap());
}
