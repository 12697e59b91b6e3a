//! Rows held against another storage's, and mended.

use super::*;
use crate::crdt::content::{Look, Mend, Place, Range, RowState, Seen, Sight, Stretch, Trust};
use crate::crdt::{Key, Name};

/// Looks at all tables in stretches of `rows_max` rows.
fn survey(disk: &impl Storage, rows_max: usize) -> Vec<Stretch> {
    let mut from = Some(Place { table: Name::from(""), key: Key::default() });
    let mut stretches = Vec::new();
    while let Some(place) = from {
        let Sight::Own { stretch, next, .. } =
            disk.look(&Look::Survey { from: place, rows_max }).unwrap()
        else {
            panic!("a survey is of own rows")
        };
        stretches.push(stretch);
        from = next;
    }
    stretches
}

fn against(disk: &impl Storage, stretch: Stretch, wants_rows: bool) -> Seen {
    match disk.look(&Look::Against { stretch, wants_rows }).unwrap() {
        Sight::Against(seen) => seen,
        Sight::Own { .. } => panic!("it was asked for a comparison"),
    }
}

/// Returns all rows of `t`, dead ones too.
fn rows_of(disk: &impl Storage) -> Vec<RowState> {
    let ranges = vec![Range { to: None, hash: 1 }];
    let stretch = Stretch { table: Name::from("t"), after: Key::default(), ranges };
    against(disk, stretch, true).rows
}

fn hold_without_rows(disk: &mut impl Storage, origin: Origin, through: Version) {
    let piece = Piece { origin, after: Version(0), through, changesets: Vec::new() };
    disk.apply(NOW, &Batch { pieces: vec![piece] }).unwrap();
}

fn mend(trust: Trust, rows: Vec<RowState>) -> Mend {
    let rows = rows.into_iter().map(|row| (trust, row)).collect();
    Mend { table: Name::from("t"), rows, gone: Vec::new() }
}

/// Two storages whose rows went different ways see the same: the sums of all ranges come to the
/// fingerprint, however long the stretches are.
pub fn a_look_is_the_same_everywhere<B: Bench>(bench: &mut B) {
    let mut a = bench.open(super::A, &all_tables());
    for id in 0..20 {
        a.commit(NOW, &[put(id, format!("v{id}"))]).unwrap();
    }
    let gone = RowOp::Delete { table: "t", matching: vec![("id", 7.into())], except: None };
    a.commit(NOW, &[gone]).unwrap();
    let mut b = bench.open(super::B, &all_tables());
    let piece = a.load(a.origin(), Version(0), usize::MAX).unwrap().piece;
    b.apply(NOW, &Batch { pieces: vec![piece] }).unwrap();
    for rows_max in [1, 3, 19, 100] {
        let stretches = survey(&a, rows_max);
        let ranges = stretches.iter().flat_map(|stretch| &stretch.ranges);
        let sum = ranges.fold(0_u64, |sum, range| sum.wrapping_add(range.hash));
        assert_eq!(sum, a.fingerprint().unwrap(), "{rows_max} at a time");
        for stretch in stretches {
            let count = stretch.ranges.len();
            let seen = against(&b, stretch, true);
            assert_eq!((seen.looked, &seen.differing[..]), (count, &[][..]));
            assert!(seen.rows.is_empty());
        }
    }
    // A row that only one of them has is found in its range.
    b.commit(NOW, &[put(50, "mine")]).unwrap();
    let table = survey(&a, 5).into_iter().filter(|stretch| &*stretch.table == "t");
    let differing: usize = table.map(|stretch| against(&b, stretch, false).differing.len()).sum();
    assert_eq!(differing, 1);
}

/// A storage that lacks rows of versions that it holds gets them whole, and no others.
pub fn what_is_missing_is_merged_whole<B: Bench>(bench: &mut B) {
    let mut a = bench.open(super::A, &[t()]);
    a.commit(NOW, &[put(1, "a"), put(2, "b")]).unwrap();
    a.commit(NOW, &[put(3, "c")]).unwrap();
    let states = rows_of(&a);
    assert_eq!(states.len(), 3);
    let mut b = bench.open(super::B, &[t()]);
    let mended = b.mend(NOW, &mend(Trust::Two, states.clone())).unwrap();
    assert!(mended.rows.is_empty(), "nothing of these versions is held");
    hold_without_rows(&mut b, a.origin(), Version(1));
    let mended = b.mend(NOW, &mend(Trust::One(super::A), states.clone())).unwrap();
    assert_eq!(mended.rows.len(), 2, "the third is of a version that is not held");
    assert_eq!(mended.commit.tables[0].rows.each().len(), 2);
    assert_eq!(mended.commit.heads, []);
    let again = b.mend(NOW, &mend(Trust::Two, states[..2].to_vec())).unwrap();
    assert!(again.rows.is_empty() && again.commit.tables.is_empty());
    // They are told like all others.
    let left = b.load(a.origin(), Version(0), usize::MAX).unwrap().piece;
    assert_eq!(left.changesets[0].tables[0].rows.len(), 2);
    assert_eq!(rows_of(&b), states[..2]);
}

/// What one write was is not for its clock to say.
pub fn of_two_values_under_one_clock_two_of_three_are_right<B: Bench>(bench: &mut B) {
    let mut a = bench.open(super::A, &[t()]);
    a.commit(NOW, &[put(1, "right")]).unwrap();
    let right = rows_of(&a);
    let with = |value: &str| {
        let mut rows = right.clone();
        let cell = rows[0].cells.iter_mut().find(|cell| &*cell.0 == "v").unwrap();
        cell.2 = value.into();
        rows
    };
    let mut b = bench.open(super::B, &[t()]);
    hold_without_rows(&mut b, a.origin(), Version(1));
    b.mend(NOW, &mend(Trust::Two, with("lesser"))).unwrap();
    // Nobody's word against nobody's: the greater stays.
    b.mend(NOW, &mend(Trust::One(super::C), with("even lesser"))).unwrap();
    assert_eq!(rows_of(&b), with("lesser"));
    // Whoever wrote it knows.
    let mended = b.mend(NOW, &mend(Trust::One(super::A), with("a"))).unwrap();
    assert_eq!((mended.rows.len(), rows_of(&b)), (1, with("a")));
    let shown = b.inspect("t", &[1.into()]).unwrap().unwrap().row.unwrap();
    assert_eq!(shown[1], Value::from("a"));
    // This node wrote the row itself, and believes two others alone.
    let mended = a.mend(NOW, &mend(Trust::One(super::B), with("z"))).unwrap();
    assert!(mended.rows.is_empty());
    let mended = a.mend(NOW, &mend(Trust::Two, with("z"))).unwrap();
    assert_eq!((mended.rows.len(), rows_of(&a)), (1, with("z")));
    a.recount().unwrap();
    let ranges = survey(&a, 100);
    let sum = ranges.iter().flat_map(|stretch| &stretch.ranges).map(|range| range.hash);
    assert_eq!(a.fingerprint().unwrap(), sum.fold(0, u64::wrapping_add));
}

/// A row that nobody else has goes only where every member once held it.
pub fn a_row_that_others_lack_goes_below_the_floor_alone<B: Bench>(bench: &mut B) {
    let mut a = bench.open(super::A, &[t()]);
    a.commit(NOW, &[put(1, "a")]).unwrap();
    let key = rows_of(&a)[0].key.clone();
    let gone = Mend { table: Name::from("t"), rows: Vec::new(), gone: vec![key] };
    assert!(a.mend(NOW, &gone).unwrap().rows.is_empty());
    a.collect(&[(a.origin(), Version(1))], &[], 10).unwrap();
    let mended = a.mend(NOW, &gone).unwrap();
    assert_eq!((mended.rows.len(), rows_of(&a).len()), (1, 0));
    assert_eq!(a.inspect("t", &[1.into()]).unwrap(), None);
}
