//! What every [`Storage`] must do, as tests that know nothing of how it does it. A storage becomes
//! a [`Bench`] and passes `storage_suite!`; random histories are drawn by its own tests.

#![expect(clippy::unwrap_used, reason = "this is test code, though other crates' tests may use it")]

pub mod content;
pub mod graves;
pub mod histories;
pub mod laws;
pub mod owners;
pub mod travel;
pub mod vectors;

use std::sync::Arc;

use super::change::{
    Batch, CellChange, Changeset, Commit, Life, Name, Piece, RowChange, RowOp, Stamp, TableChanges,
};
use super::definition::Definition;
use super::pack;
use super::storage::{Begun, Part, Staging, Storage, StorageError};
use crate::types::{Epoch, NodeId, Origin, Scope, Value, Version, Wall};

/// Makes the storages that are to be tested.
pub trait Bench {
    type Disk: Storage;

    /// Opens an empty storage in the first epoch of `node`.
    fn open(&mut self, node: NodeId, definitions: &[Definition]) -> Self::Disk;

    /// Opens a disk again, as the next process does.
    fn reopen(&mut self, disk: Self::Disk) -> Self::Disk;

    /// Returns a copy of the disk as it now is; `None`: this bench cannot make one.
    fn image(&mut self, _disk: &Self::Disk) -> Option<Self::Disk> {
        None
    }

    /// Adds a table or columns, as a change of the schema does.
    fn define(&mut self, disk: &mut Self::Disk, definition: &Definition);
}

/// Declares a test for each case of the suite; the argument makes a [`Bench`].
#[doc(hidden)]
#[macro_export]
macro_rules! storage_suite {
    ($bench:expr) => {
        $crate::storage_suite! { @tests $bench,
            vectors::v01_a_local_insert_writes_every_cell,
            vectors::v02_a_change_of_an_unknown_row_makes_it_with_defaults,
            vectors::v03_a_greater_count_wins,
            vectors::v04_at_equal_counts_the_greater_value_wins,
            vectors::v05_at_equal_counts_the_lesser_value_loses,
            vectors::v06_at_equal_values_the_greater_origin_takes_the_clock,
            vectors::v07_at_equal_values_the_lesser_origin_leaves_the_clock,
            vectors::v08_a_delete_ends_the_life,
            vectors::v09_a_write_of_an_ended_life_is_ignored,
            vectors::v10_a_later_life_revives_the_row,
            vectors::v11_a_later_life_resets_cells_and_clocks,
            vectors::v12_a_later_life_without_cells_is_all_defaults,
            vectors::v13_a_delete_of_an_unknown_row_leaves_a_tombstone,
            vectors::v14_a_tombstone_keeps_an_older_insert_out,
            vectors::v15_an_integer_beats_a_text,
            vectors::v16_an_integer_beats_a_greater_real,
            vectors::v17_a_text_beats_a_blob,
            vectors::v18_a_blob_beats_null,
            vectors::v19_a_change_of_key_carries_the_counts_on,
            vectors::v20_a_local_insert_after_death_begins_a_new_life,
            vectors::v21_of_two_deletes_the_greater_stamp_stays,
            vectors::v22_a_later_death_takes_over,
            vectors::v23_a_delete_of_an_earlier_life_is_ignored,
            vectors::v24_an_unknown_column_is_parked,
            vectors::v25_a_change_heard_twice_counts_once,
            vectors::v26_an_older_change_of_the_same_origin_is_ignored,
            laws::a_commit_tells_what_became_true,
            laws::a_commit_that_changes_nothing_makes_no_version,
            laws::a_refused_transaction_writes_nothing,
            laws::a_requirement_sees_the_transaction_it_is_in,
            laws::put_replaces_a_row_but_for_what_it_keeps,
            laws::set_and_delete_reach_every_row_that_matches,
            laws::an_insert_that_is_deleted_at_once_is_nothing,
            laws::a_delete_that_is_inserted_again_is_an_update,
            laws::a_key_may_not_move_onto_another_row,
            laws::a_row_that_moves_there_and_back_is_not_touched,
            laws::a_null_in_the_key_is_refused,
            laws::an_owned_row_is_stamped_whole,
            laws::a_foreign_row_cannot_be_written_here,
            laws::a_row_without_other_columns_lives_and_dies,
            laws::an_epoch_rises_above_all_that_are_known,
            laws::values_come_back_as_they_went_in,
            owners::a_lost_disk_does_not_lose_its_owners_word,
            owners::an_epoch_takes_the_owners_rows_along,
            owners::a_row_that_came_back_is_claimed_by_writing_it_again,
            owners::many_rows_are_renewed_in_pieces,
            owners::great_rows_are_renewed_and_withdrawn_in_pieces,
            owners::whatever_touches_a_row_claims_it,
            owners::what_was_written_under_names_that_were_given_away_is_said_again,
            owners::a_claimed_row_says_what_it_holds_and_nothing_else,
            travel::a_changeset_stands_alone,
            travel::a_piece_applied_twice_changes_nothing,
            travel::a_piece_that_does_not_join_is_skipped,
            travel::a_piece_that_is_held_in_part_is_applied,
            travel::a_piece_of_the_present_origin_is_skipped,
            travel::a_batch_is_one_commit,
            travel::only_what_is_left_of_a_version_is_loaded,
            travel::a_life_is_loaded_where_no_cell_brings_it,
            travel::a_long_extract_is_cut_between_versions,
            travel::a_large_version_is_cut_and_becomes_visible_whole,
            travel::what_is_staged_is_nowhere_until_it_is_applied,
            travel::a_version_that_was_cut_elsewhere_is_begun_again,
            travel::nothing_is_told_of_versions_beyond_the_head,
            travel::a_commit_keeps_its_time_on_the_way,
            travel::two_replicas_agree_whatever_comes_first,
            travel::three_replicas_agree_through_each_other,
            travel::a_tombstone_travels,
            travel::an_unknown_table_is_parked_and_passed_on,
            travel::an_unknown_column_is_shown_when_it_comes,
            travel::a_later_life_forgets_parked_cells,
            travel::a_parked_row_with_another_kind_of_key_is_left_out,
            travel::a_row_of_a_foreign_owner_is_left_out,
            travel::an_external_node_belongs_to_its_registrar,
            travel::what_cannot_be_a_row_is_left_out,
            travel::a_table_is_known_by_its_exact_name,
            travel::impossible_counts_count_for_nothing,
            travel::all_storages_have_the_same_fingerprint,
            graves::dead_rows_count_for_no_fingerprint,
            graves::tombstones_go_as_far_as_the_floor_covers_them,
            graves::a_tombstone_of_an_impossible_life_stays,
            graves::an_origin_settles_and_another_one_has_to_again,
            content::a_look_is_the_same_everywhere,
            content::what_is_missing_is_merged_whole,
            content::of_two_values_under_one_clock_two_of_three_are_right,
            content::a_row_that_others_lack_goes_below_the_floor_alone,
        }
    };
    (@tests $bench:expr, $($room:ident :: $case:ident,)+) => {
        $(
            #[test]
            fn $case() {
                $crate::crdt::suite::$room::$case(&mut $bench);
            }
        )+
    };
}

/// Declares a test for each case that a storage must pass before its node may set
/// [`collect`](crate::replica::Config::collect), beside those of `storage_suite!`.
#[doc(hidden)]
#[macro_export]
macro_rules! collecting_suite {
    ($bench:expr) => {
        $crate::storage_suite! { @tests $bench,
            graves::a_row_is_born_above_the_tombstones_of_others,
            graves::who_was_away_takes_the_rows_of_a_peer,
            graves::an_owner_says_again_which_of_its_rows_died_under_an_earlier_epoch,
            graves::what_is_said_again_gives_way_to_what_was_heard,
            graves::a_life_that_others_tell_of_is_nobody_elses_to_say_again,
            graves::of_the_lives_that_were_told_of_the_greatest_stays,
            graves::an_empty_disk_that_rejoins_is_as_the_peer_is,
            graves::each_deletes_the_rows_of_a_gone_node_alike,
            graves::a_spent_origin_is_retired_and_then_erased,
            graves::what_a_peer_has_retired_is_taken_over_and_given_up_with_its_rows,
            graves::a_tombstone_of_what_a_peer_has_retired_goes_when_its_rows_are_taken,
            graves::a_row_is_born_above_what_was_dropped_though_it_died_before,
            graves::a_cell_that_the_peer_has_no_more_goes_though_its_row_is_there,
            graves::who_is_no_member_is_noted_and_in_force_once_tombstones_went,
        }
    };
}

/// The three nodes of the suite, `A` < `B` < `C`.
pub const A: NodeId = NodeId([0x11; 16]);
pub const B: NodeId = NodeId([0x22; 16]);
pub const C: NodeId = NodeId([0x33; 16]);

/// Any moment; nothing in a merge depends on it.
pub const NOW: Wall = Wall(1_700_000_000_000_000);

/// The table of the golden vectors.
pub fn t() -> Definition {
    let columns = [("id", Value::Null), ("v", Value::Null), ("w", Value::from("dw"))];
    Definition::new("t", &columns, &["id"]).unwrap()
}

/// A table without any columns but its key.
pub fn pairs() -> Definition {
    Definition::new("pairs", &[("a", Value::Null), ("b", Value::Null)], &["a", "b"]).unwrap()
}

/// A table whose rows have owners, after the one in `schema/`.
pub fn services() -> Definition {
    let columns = [
        ("node_id", Value::Null),
        ("id", Value::Null),
        ("name", Value::from("")),
        ("port", Value::from(0)),
    ];
    Definition::new("services", &columns, &["node_id", "id"]).unwrap()
}

fn all_tables() -> [Definition; 3] {
    [t(), pairs(), services()]
}

/// The first origin of a node.
pub fn origin(node: NodeId) -> Origin {
    Origin { scope: Scope(0), node, epoch: Epoch(1) }
}

/// A stamp of a node's first epoch.
pub fn stamp(node: NodeId, version: u64) -> Stamp {
    Stamp { origin: origin(node), version: Version(version) }
}

/// A row of `t` that is written whole; `w` gets its default.
fn put(id: i64, v: impl Into<Value>) -> RowOp {
    RowOp::Put { table: "t", row: vec![("id", id.into()), ("v", v.into())], keep: &["w"] }
}

fn set(id: i64, column: &'static str, value: impl Into<Value>) -> RowOp {
    let set = vec![(column, value.into())];
    RowOp::Set { table: "t", matching: vec![("id", id.into())], set }
}

fn delete(id: i64) -> RowOp {
    RowOp::Delete { table: "t", matching: vec![("id", id.into())], except: None }
}

fn put_service(owner: &str, id: &str, name: &str, port: i64) -> RowOp {
    let row = vec![
        ("node_id", owner.into()),
        ("id", id.into()),
        ("name", name.into()),
        ("port", port.into()),
    ];
    RowOp::Put { table: "services", row, keep: &[] }
}

/// A change of one row of `table`, with (column, count, value) of its cells.
fn row(table: &str, key: &[Value], life: Life, cells: &[(&str, u64, Value)]) -> TableChanges {
    let cell = |(column, (_, count, value)): (u16, &(&str, u64, Value))| CellChange {
        column,
        count: *count,
        value: value.clone(),
    };
    let change = RowChange {
        key: pack::pack(key).unwrap(),
        life,
        cells: (0..).zip(cells).map(cell).collect(),
    };
    TableChanges {
        table: table.into(),
        columns: cells.iter().map(|(column, _, _)| Name::from(*column)).collect(),
        rows: vec![change],
    }
}

/// A piece with what is left of the versions after `after` up to that of `stamp`: one commit.
fn piece(stamp: Stamp, after: u64, tables: Vec<TableChanges>) -> Piece {
    let changeset = Arc::new(Changeset { stamp, at: NOW, tables });
    let (origin, through) = (stamp.origin, stamp.version);
    Piece { origin, after: Version(after), through, changesets: vec![changeset] }
}

/// Commits what must be accepted and change something.
fn write(disk: &mut impl Storage, ops: &[RowOp]) -> Commit {
    disk.commit(NOW, ops).unwrap().expect("it changes something")
}

/// Commits what must be refused, and returns why.
fn refuse(disk: &mut impl Storage, ops: &[RowOp]) -> String {
    match disk.commit(NOW, ops) {
        Err(StorageError::Refused(refusal)) => refusal.0,
        other => panic!("it should have been refused: {other:?}"),
    }
}

fn apply(disk: &mut impl Storage, piece: Piece) -> Commit {
    disk.apply(NOW, &Batch { pieces: vec![piece] }).unwrap()
}

/// Returns the piece that tells other nodes of a local commit.
fn news(commit: &Commit) -> Piece {
    Piece::of(Arc::clone(commit.changeset.as_ref().expect("a local commit has a changeset")))
}

fn head(disk: &impl Storage, origin: Origin) -> u64 {
    let heads = disk.heads().unwrap();
    heads.iter().find(|(other, _)| *other == origin).map_or(0, |(_, head)| head.0)
}

/// Brings all that `from` holds to `to`, in parts of about `bytes_max`. Returns how many commits
/// that took.
fn pull(to: &mut impl Storage, from: &impl Storage, bytes_max: usize) -> usize {
    let mut commits = 0;
    for (origin, _) in from.heads().unwrap() {
        while catch_up(to, from, origin, bytes_max).is_some() {
            commits += 1;
        }
    }
    commits
}

/// Brings what follows of an origin from one storage to another: about `bytes_max` bytes or, where
/// that cuts a version, the whole of it. Returns the commit; `None`: there is nothing.
pub fn catch_up(
    to: &mut impl Storage,
    from: &impl Storage,
    origin: Origin,
    bytes_max: usize,
) -> Option<Commit> {
    const STAGING: Staging = Staging(7);
    let after = Version(head(to, origin));
    let mut extract = from.load(origin, after, bytes_max).unwrap();
    if extract.end() <= after.into() || origin == to.origin() {
        return None;
    }
    if extract.part == 0 {
        return Some(apply(to, extract.piece));
    }
    let cut = extract.piece.through.next();
    while extract.part > 0 {
        let end = extract.end();
        to.stage(STAGING, &[Part { piece: extract.piece, is_cut: true }]).unwrap();
        extract = from.load(origin, end, bytes_max).unwrap();
        assert!(extract.end() > end, "a part brings one on");
    }
    // How large the last part is, and so whether others have room beside it, is each storage's own
    // business.
    let mut last = Piece { after, through: cut, ..extract.piece };
    last.changesets.retain(|changeset| changeset.stamp.version <= cut);
    let commit = to.apply_staged(NOW, STAGING, &last).unwrap();
    assert_eq!(commit.heads, [(origin, last.through)]);
    Some(commit)
}

/// Shows a row of `t`: its values, its life and its cells, as in
/// `1 'b' 'dw' | 1@5/B | v:2@5/B w:1@1/A`.
fn show(disk: &impl Storage, id: i64) -> String {
    show_row(disk, "t", &[id.into()])
}

fn show_row(disk: &impl Storage, table: &str, key: &[Value]) -> String {
    let Some(inspected) = disk.inspect(table, key).unwrap() else {
        return "nothing".to_owned();
    };
    let row = inspected.row.map_or("gone".to_owned(), |row| {
        row.iter().map(Value::to_string).collect::<Vec<_>>().join(" ")
    });
    let life = inspected.life;
    let cells: Vec<String> = inspected
        .cells
        .iter()
        .map(|(column, clock)| format!("{column}:{}@{}", clock.count, show_stamp(clock.stamp)))
        .collect();
    format!("{row} | {}@{} | {}", life.length, show_stamp(life.stamp), cells.join(" "))
}

/// `5/B` is version 5 of node B's first epoch, `5/B2` of its second.
fn show_stamp(stamp: Stamp) -> String {
    let node = match stamp.origin.node {
        A => "A",
        B => "B",
        C => "C",
        _ => "?",
    };
    let epoch = stamp.origin.epoch.0;
    let epoch = if epoch == 1 { String::new() } else { epoch.to_string() };
    format!("{}/{node}{epoch}", stamp.version)
}

/// Shows a commit's events: table, key, and the row after it, with `+` where it is new.
fn show_events(commit: &Commit) -> Vec<String> {
    let mut shown = Vec::new();
    for events in &commit.tables {
        for event in events.rows.each() {
            let words = |values: &[Value]| {
                values.iter().map(Value::to_string).collect::<Vec<_>>().join(" ")
            };
            let sign = match (event.existed, event.row.is_some()) {
                (false, true) => "+",
                (true, true) => "=",
                (true, false) => "-",
                (false, false) => "?",
            };
            let after = event.row.as_ref().map_or(words(&event.key), |row| words(row));
            shown.push(format!("{sign}{} {after}", events.table.name));
        }
    }
    shown
}
