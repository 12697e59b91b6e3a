//! The golden vectors of the merge order: one local state, one change, one outcome each. They were
//! observed on cr-sqlite 0.17; where ours differs, the case says why.
//!
//! One difference runs through all of them: a life always has a stamp here, also the first one,
//! which cr-sqlite leaves unsaid. So a change of the same life by a greater origin restamps it.

use super::*;

fn life(length: u64, node: NodeId, version: u64) -> Life {
    Life { length, stamp: stamp(node, version) }
}

fn open<T: Bench>(bench: &mut T) -> T::Disk {
    let disk = bench.open(A, &[t()]);
    assert_eq!(disk.origin(), origin(A));
    disk
}

/// Opens a storage in which row 1 was inserted with this `v`.
fn open_with<T: Bench>(bench: &mut T, v: impl Into<Value>) -> T::Disk {
    let mut disk = open(bench);
    write(&mut disk, &[put(1, v)]);
    disk
}

/// Opens a storage in which row 1 lived and died.
fn open_dead<T: Bench>(bench: &mut T) -> T::Disk {
    let mut disk = open_with(bench, "a");
    write(&mut disk, &[delete(1)]);
    assert_eq!(show(&disk, 1), "gone | 2@2/A | ");
    disk
}

/// Delivers a change of row 1 by `node`'s commit `version`, in its `length`th life, which began
/// with that very commit.
fn hear(
    disk: &mut impl Storage,
    node: NodeId,
    version: u64,
    length: u64,
    cells: &[(&str, u64, Value)],
) -> Commit {
    let change = row("t", &[1.into()], life(length, node, version), cells);
    let after = head(disk, origin(node));
    apply(disk, piece(stamp(node, version), after, vec![change]))
}

fn hear_v(disk: &mut impl Storage, v: impl Into<Value>, count: u64) {
    hear(disk, B, 5, 1, &[("v", count, v.into())]);
}

pub fn v01_a_local_insert_writes_every_cell<T: Bench>(bench: &mut T) {
    let disk = open_with(bench, "a");
    assert_eq!(show(&disk, 1), "1 'a' 'dw' | 1@1/A | v:1@1/A w:1@1/A");
}

pub fn v02_a_change_of_an_unknown_row_makes_it_with_defaults<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    hear_v(&mut disk, "b", 1);
    assert_eq!(show(&disk, 1), "1 'b' 'dw' | 1@5/B | v:1@5/B");
}

pub fn v03_a_greater_count_wins<T: Bench>(bench: &mut T) {
    let mut disk = open_with(bench, "z");
    hear_v(&mut disk, "b", 2);
    assert_eq!(show(&disk, 1), "1 'b' 'dw' | 1@5/B | v:2@5/B w:1@1/A");
}

pub fn v04_at_equal_counts_the_greater_value_wins<T: Bench>(bench: &mut T) {
    let mut disk = open_with(bench, "a");
    hear_v(&mut disk, "b", 1);
    assert_eq!(show(&disk, 1), "1 'b' 'dw' | 1@5/B | v:1@5/B w:1@1/A");
}

pub fn v05_at_equal_counts_the_lesser_value_loses<T: Bench>(bench: &mut T) {
    let mut disk = open_with(bench, "z");
    hear_v(&mut disk, "b", 1);
    assert_eq!(show(&disk, 1), "1 'z' 'dw' | 1@5/B | v:1@1/A w:1@1/A");
}

pub fn v06_at_equal_values_the_greater_origin_takes_the_clock<T: Bench>(bench: &mut T) {
    let mut disk = open_with(bench, "b");
    let commit = hear(&mut disk, B, 5, 1, &[("v", 1, "b".into())]);
    assert_eq!(show(&disk, 1), "1 'b' 'dw' | 1@5/B | v:1@5/B w:1@1/A");
    assert_eq!(show_events(&commit), [""; 0]);
}

pub fn v07_at_equal_values_the_lesser_origin_leaves_the_clock<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    hear(&mut disk, C, 5, 1, &[("v", 1, "b".into())]);
    hear(&mut disk, B, 9, 1, &[("v", 1, "b".into())]);
    assert_eq!(show(&disk, 1), "1 'b' 'dw' | 1@5/C | v:1@5/C");
}

pub fn v08_a_delete_ends_the_life<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    for v in ["a", "b", "c", "d"] {
        write(&mut disk, &[put(1, v)]);
    }
    assert_eq!(show(&disk, 1), "1 'd' 'dw' | 1@1/A | v:4@4/A w:1@1/A");
    let commit = hear(&mut disk, B, 5, 2, &[]);
    assert_eq!(show(&disk, 1), "gone | 2@5/B | ");
    assert_eq!(show_events(&commit), ["-t 1"]);
}

pub fn v09_a_write_of_an_ended_life_is_ignored<T: Bench>(bench: &mut T) {
    let mut disk = open_dead(bench);
    hear_v(&mut disk, "zzz", 99);
    assert_eq!(show(&disk, 1), "gone | 2@2/A | ");
}

pub fn v10_a_later_life_revives_the_row<T: Bench>(bench: &mut T) {
    let mut disk = open_dead(bench);
    let commit = hear(&mut disk, B, 5, 3, &[("v", 1, "q".into())]);
    assert_eq!(show(&disk, 1), "1 'q' 'dw' | 3@5/B | v:1@5/B");
    assert_eq!(show_events(&commit), ["+t 1 'q' 'dw'"]);
}

/// There, `w` keeps its old value and a clock of count 0, so that a node that heard of the death
/// in between ends up with another row. A new life starts from the defaults here.
pub fn v11_a_later_life_resets_cells_and_clocks<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    write(&mut disk, &[put(1, "a"), set(1, "w", "custom")]);
    for v in ["b", "c", "d"] {
        write(&mut disk, &[put(1, v)]);
    }
    assert_eq!(show(&disk, 1), "1 'd' 'custom' | 1@1/A | v:4@4/A w:1@1/A");
    let commit = hear(&mut disk, B, 5, 3, &[("v", 1, "A".into())]);
    assert_eq!(show(&disk, 1), "1 'A' 'dw' | 3@5/B | v:1@5/B");
    assert_eq!(show_events(&commit), ["=t 1 'A' 'dw'"]);
}

/// There, both cells stay as they are, with counts of 0; see the case before.
pub fn v12_a_later_life_without_cells_is_all_defaults<T: Bench>(bench: &mut T) {
    let mut disk = open_with(bench, "a");
    hear(&mut disk, B, 5, 3, &[]);
    assert_eq!(show(&disk, 1), "1 NULL 'dw' | 3@5/B | ");
}

pub fn v13_a_delete_of_an_unknown_row_leaves_a_tombstone<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    let commit = hear(&mut disk, B, 5, 2, &[]);
    assert_eq!(show(&disk, 1), "gone | 2@5/B | ");
    assert_eq!(show_events(&commit), [""; 0]);
}

pub fn v14_a_tombstone_keeps_an_older_insert_out<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    hear(&mut disk, B, 5, 2, &[]);
    hear(&mut disk, C, 4, 1, &[("v", 1, "x".into())]);
    assert_eq!(show(&disk, 1), "gone | 2@5/B | ");
    assert_eq!(head(&disk, origin(C)), 4);
}

pub fn v15_an_integer_beats_a_text<T: Bench>(bench: &mut T) {
    let mut disk = open_with(bench, "zzz");
    hear_v(&mut disk, 1, 1);
    assert_eq!(show(&disk, 1), "1 1 'dw' | 1@5/B | v:1@5/B w:1@1/A");
}

pub fn v16_an_integer_beats_a_greater_real<T: Bench>(bench: &mut T) {
    let mut disk = open_with(bench, 1);
    hear_v(&mut disk, Value::Real(9.5), 1);
    assert_eq!(show(&disk, 1), "1 1 'dw' | 1@5/B | v:1@1/A w:1@1/A");
}

pub fn v17_a_text_beats_a_blob<T: Bench>(bench: &mut T) {
    let mut disk = open_with(bench, "a");
    hear_v(&mut disk, Value::Blob(vec![0xff]), 1);
    assert_eq!(show(&disk, 1), "1 'a' 'dw' | 1@5/B | v:1@1/A w:1@1/A");
}

pub fn v18_a_blob_beats_null<T: Bench>(bench: &mut T) {
    let mut disk = open_with(bench, Value::Blob(vec![0]));
    hear_v(&mut disk, Value::Null, 1);
    assert_eq!(show(&disk, 1), "1 x'00' 'dw' | 1@5/B | v:1@1/A w:1@1/A");
}

pub fn v19_a_change_of_key_carries_the_counts_on<T: Bench>(bench: &mut T) {
    let mut disk = open_with(bench, "a");
    let commit = write(&mut disk, &[set(1, "id", 2)]);
    assert_eq!(show(&disk, 1), "gone | 2@2/A | ");
    assert_eq!(show(&disk, 2), "2 'a' 'dw' | 1@2/A | v:2@2/A w:2@2/A");
    assert_eq!(show_events(&commit), ["-t 1", "+t 2 'a' 'dw'"]);
}

pub fn v20_a_local_insert_after_death_begins_a_new_life<T: Bench>(bench: &mut T) {
    let mut disk = open_dead(bench);
    write(&mut disk, &[put(1, "n")]);
    assert_eq!(show(&disk, 1), "1 'n' 'dw' | 3@3/A | v:1@3/A w:1@3/A");
}

pub fn v21_of_two_deletes_the_greater_stamp_stays<T: Bench>(bench: &mut T) {
    let mut disk = open_dead(bench);
    hear(&mut disk, B, 5, 2, &[]);
    assert_eq!(show(&disk, 1), "gone | 2@5/B | ");
}

pub fn v22_a_later_death_takes_over<T: Bench>(bench: &mut T) {
    let mut disk = open_dead(bench);
    hear(&mut disk, B, 5, 4, &[]);
    assert_eq!(show(&disk, 1), "gone | 4@5/B | ");
}

pub fn v23_a_delete_of_an_earlier_life_is_ignored<T: Bench>(bench: &mut T) {
    let mut disk = open_dead(bench);
    write(&mut disk, &[put(1, "n")]);
    hear(&mut disk, B, 5, 2, &[]);
    assert_eq!(show(&disk, 1), "1 'n' 'dw' | 3@3/A | v:1@3/A w:1@3/A");
}

/// There, the statement fails, and with it the version it came in. Here the cell is kept beside
/// the row until the column comes, and the row shows nothing of it.
pub fn v24_an_unknown_column_is_parked<T: Bench>(bench: &mut T) {
    let mut disk = open_with(bench, "a");
    let commit = hear(&mut disk, B, 5, 1, &[("nope", 1, 1.into())]);
    assert_eq!(show(&disk, 1), "1 'a' 'dw' | 1@5/B | nope:1@5/B v:1@1/A w:1@1/A");
    assert_eq!(show_events(&commit), [""; 0]);
    assert_eq!(head(&disk, origin(B)), 5);
}

pub fn v25_a_change_heard_twice_counts_once<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    for _ in 0..2 {
        let change = row("t", &[1.into()], life(1, B, 5), &[("v", 1, "b".into())]);
        apply(&mut disk, piece(stamp(B, 5), 0, vec![change]));
        assert_eq!(show(&disk, 1), "1 'b' 'dw' | 1@5/B | v:1@5/B");
    }
}

/// There, the count decides. Here the version is held already, so nobody looks at the change.
pub fn v26_an_older_change_of_the_same_origin_is_ignored<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    hear(&mut disk, B, 9, 1, &[("v", 3, "b".into())]);
    let change = row("t", &[1.into()], life(1, B, 8), &[("v", 2, "zz".into())]);
    apply(&mut disk, piece(stamp(B, 8), 0, vec![change]));
    assert_eq!(show(&disk, 1), "1 'b' 'dw' | 1@9/B | v:3@9/B");
    assert_eq!(head(&disk, origin(B)), 9);
}
