//! A row's clock: which life the row is in, and who last wrote each of its cells.
//!
//! This is all that a storage keeps of a row besides its values. It changes by the local writes
//! below (`inserted`, `moved`, `updated`, `replaced`, `deleted`), by [`RowClock::merge`], and where a
//! node says again what it cannot know others to have. Columns are small numbers that the storage
//! chose; they never leave it.

use std::collections::BTreeSet;

use super::change::{Class, Life, Stamp};
use super::merge::{CellClock, CellVerdict, LifeVerdict, judge_cell, judge_life, judge_owned_life};
use crate::types::Value;

/// A column within one table of one storage. Other storages number the same columns differently.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ColumnId(pub u16);

/// The greatest version, length of a life and count of a cell that a change may bring. Far above
/// what anybody can reach by writing, so that counting on from it never overflows, not even
/// SQLite's integers. What lies above counts for nothing, on all nodes alike.
pub const COUNT_MAX: u64 = 1 << 62;

/// The life of a row and the clocks of its cells.
///
/// A column without a clock was never written in this life: its cell is the column's default. A
/// dead row has no cells. Key columns have none either: they never change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowClock {
    life: Life,
    // Cells with equal clocks share a group, so that a row written in one piece has a single one.
    // Groups are never empty, have different clocks, share no column and stand in the order of
    // their first columns: equal clocks are equal in memory and as bytes.
    groups: Vec<Group>,
}

/// The columns, rising, whose cells were last written by the same write and equally often.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Group {
    pub(super) clock: CellClock,
    pub(super) columns: Vec<ColumnId>,
}

/// A change of one row, with the columns as this storage numbers them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Incoming<'a> {
    /// The class of the row's table.
    pub class: Class,
    /// The stamp of every cell below.
    pub stamp: Stamp,
    pub life: Life,
    /// Column, count and value of each cell.
    pub cells: Vec<(ColumnId, u64, &'a Value)>,
}

impl Incoming<'_> {
    /// Returns the length of the life that the change tells of; 0: an impossible one.
    pub fn told_length(&self) -> u64 {
        let Life { length, stamp } = self.life;
        if length <= COUNT_MAX && stamp.version.0 <= COUNT_MAX { length } else { 0 }
    }
}

/// What a peer has told of a row to a node that takes all rows anew.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RowTold {
    /// The longest life.
    pub length: u64,
    /// The columns of its cells in that life.
    pub columns: BTreeSet<ColumnId>,
}

impl RowTold {
    /// Adds a change. Returns whether it told of anything new.
    pub fn add(&mut self, change: &Incoming<'_>) -> bool {
        let length = change.told_length();
        if length < self.length {
            return false;
        }
        let is_longer = length > self.length;
        if is_longer {
            *self = Self { length, columns: BTreeSet::new() };
        }
        let before = self.columns.len();
        self.columns.extend(change.cells.iter().map(|(column, ..)| *column));
        is_longer || self.columns.len() > before
    }
}

/// What a merge asks the storage to do with the row's values: first `fate`, then `take`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merged<'a> {
    pub fate: Fate,
    /// Cells that take a new value, each column once. Empty when the row is dead.
    pub take: Vec<(ColumnId, &'a Value)>,
    /// Whether there is anything to write: the clock, or a value. Almost always both or neither.
    pub is_changed: bool,
}

/// What becomes of the row as a whole. Whatever is not `Stay` also forgets all cells that the
/// storage keeps apart for columns it does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It stays as it is: present or absent.
    Stay,
    /// It was absent and comes into being, every non-key cell at its column's default.
    Appear,
    /// It was present and falls back: every non-key cell takes its column's default.
    StartOver,
    /// It was present and goes.
    Vanish,
}

/// What one may ask.
impl RowClock {
    pub fn life(&self) -> Life {
        self.life
    }

    /// Tells whether the row exists.
    pub fn is_alive(&self) -> bool {
        self.life.is_alive()
    }

    /// Returns a cell's clock; `None`: it was never written in this life.
    pub fn cell(&self, column: ColumnId) -> Option<CellClock> {
        self.groups
            .iter()
            .find(|group| group.columns.binary_search(&column).is_ok())
            .map(|group| group.clock)
    }

    /// Lists all cells, in no particular order.
    pub fn cells(&self) -> impl Iterator<Item = (ColumnId, CellClock)> + '_ {
        self.groups
            .iter()
            .flat_map(|group| group.columns.iter().map(|column| (*column, group.clock)))
    }

    /// Lists the cells that `stamp` wrote, with their counts: what a changeset of this stamp says
    /// of the row, beside its life.
    pub fn cells_of(&self, stamp: Stamp) -> impl Iterator<Item = (ColumnId, u64)> + '_ {
        self.cells()
            .filter(move |(_, clock)| clock.stamp == stamp)
            .map(|(column, clock)| (column, clock.count))
    }

    /// Tells whether anything of the row is under this stamp: one of [`RowClock::stamps`].
    pub fn has_stamp(&self, stamp: Stamp) -> bool {
        self.life.stamp == stamp || self.groups.iter().any(|group| group.clock.stamp == stamp)
    }

    /// Returns the stamps under which this row must be found when somebody asks what is left of a
    /// range of versions.
    ///
    /// Those are the stamps of its cells, and the life's own, even where a later cell of the same
    /// origin brings the life along: should that cell be overwritten by another origin, the life
    /// would come back under a version that somebody who catches up in parts has gone past.
    pub fn stamps(&self) -> BTreeSet<Stamp> {
        let cells = self.groups.iter().map(|group| group.clock.stamp);
        cells.chain([self.life.stamp]).collect()
    }
}

/// What local writes do. `columns` are non-key columns. Every write of a transaction has the same
/// stamp, and a row is written at most once by it: storages net a transaction out first.
impl RowClock {
    /// Returns the clock of a row that a local insert brought into being, where it never was or
    /// was dead (`held`). `columns` are all that the table has: even a default was written.
    pub fn inserted(
        held: Option<&Self>,
        stamp: Stamp,
        columns: impl IntoIterator<Item = ColumnId>,
    ) -> Self {
        let columns: BTreeSet<ColumnId> = columns.into_iter().collect();
        let mut groups = Vec::new();
        if !columns.is_empty() {
            let clock = CellClock { count: 1, stamp };
            groups.push(Group { clock, columns: columns.into_iter().collect() });
        }
        Self { life: next_life(held, stamp), groups }
    }

    /// Returns the clock of a row whose tombstone was dropped, as far as anybody knows: it died, in a
    /// life of `length` (even) at the latest. `None` where none was dropped. A row that is not held
    /// is inserted after this one, so that its life is above those that other nodes still hold.
    pub fn dropped(length: u64) -> Option<Self> {
        let life = Life { length, stamp: Stamp::default() };
        (length > 0).then(|| Self { life, groups: Vec::new() })
    }

    /// Returns the clock after which a row is inserted: its own, or that of rows whose tombstones were
    /// dropped ([`RowClock::dropped`]), where it is not held, or died in an earlier life than they.
    /// Another node may have dropped a later tombstone of it, and a third one hold that still.
    pub fn last<'a>(held: Option<&'a Self>, dropped: Option<&'a Self>) -> Option<&'a Self> {
        let is_later = |held: &&Self| {
            held.is_alive() || dropped.is_none_or(|dropped| held.life.length >= dropped.life.length)
        };
        held.filter(is_later).or(dropped)
    }

    /// Notes that this node says the row again, as a birth of its own above all lives up to
    /// `length`: cells keep their counts.
    pub fn begun_again(&mut self, length: u64, stamp: Stamp) {
        assert!(self.is_alive(), "a dead row is not said again");
        self.life = Life { length: self.life.length.max((length + 1) | 1), stamp };
        for (column, clock) in self.clone().cells() {
            self.put(column, CellClock { stamp, ..clock });
        }
    }

    /// Returns the clock at the new key of a row whose key changed: as after an insert, but the
    /// counts go on from those the row had under its old key (`from`, before its death there).
    pub fn moved(
        held: Option<&Self>,
        from: &Self,
        stamp: Stamp,
        columns: impl IntoIterator<Item = ColumnId>,
    ) -> Self {
        let mut clock = Self { life: next_life(held, stamp), groups: Vec::new() };
        for column in columns {
            clock.put(column, CellClock { count: from.count_after(column), stamp });
        }
        clock
    }

    /// Notes that a local update changed the values of `columns`.
    pub fn updated(&mut self, stamp: Stamp, columns: impl IntoIterator<Item = ColumnId>) {
        assert!(self.is_alive(), "a dead row is inserted, not updated");
        for column in columns {
            let count = self.count_after(column);
            self.put(column, CellClock { count, stamp });
        }
    }

    /// Notes that a local write replaced the row whole, as it does in tables whose rows have an
    /// owner: all of `columns` share one clock, above every one before, and the life takes over
    /// the stamp, so that nothing of the row is left under an earlier one.
    pub fn replaced(&mut self, stamp: Stamp, columns: impl IntoIterator<Item = ColumnId>) {
        assert!(self.is_alive(), "a dead row is inserted, not replaced");
        let before = self.groups.iter().map(|group| group.clock.count).max().unwrap_or(0);
        let clock = CellClock { count: before.saturating_add(1), stamp };
        self.life.stamp = stamp;
        // Of a column that this node does not know nothing is left either: others take the row
        // as this write says it.
        self.groups.clear();
        for column in columns {
            self.put(column, clock);
        }
    }

    /// Notes that a local delete ended the row's life.
    pub fn deleted(&mut self, stamp: Stamp) {
        assert!(self.is_alive(), "a dead row cannot die");
        self.life = Life { length: self.life.length.saturating_add(1), stamp };
        self.groups.clear();
    }

    /// Puts `stamp` in the place of those that `is_ended` names, everything else as it was: the
    /// same write under a new name. Returns whether there were any.
    pub fn restamp(&mut self, stamp: Stamp, is_ended: impl Fn(Stamp) -> bool) -> bool {
        let before = self.clone();
        if is_ended(self.life.stamp) {
            self.life.stamp = stamp;
        }
        for (column, clock) in before.cells().filter(|(_, clock)| is_ended(clock.stamp)) {
            self.put(column, CellClock { stamp, ..clock });
        }
        *self != before
    }

    /// Says again, as one write, what is under stamps that nobody else may have heard of. A life that
    /// others told of keeps its stamp, whoever began it.
    pub fn say_again(
        &mut self,
        stamp: Stamp,
        is_life_told: bool,
        is_unheard: impl Fn(Stamp) -> bool,
    ) {
        let life = self.life;
        self.restamp(stamp, is_unheard);
        if is_life_told {
            self.life = life;
        }
    }

    fn count_after(&self, column: ColumnId) -> u64 {
        self.cell(column).map_or(1, |clock| clock.count.saturating_add(1))
    }
}

/// What remote changes do.
impl RowClock {
    /// Merges a change into the clock of its row (`None`: never heard of), and says what to do
    /// with the row's values.
    ///
    /// `value` returns what the row holds in a column that has a clock; it is asked only where the
    /// counts are equal. A change with an impossible life or count (see [`COUNT_MAX`]) counts for
    /// nothing, nor does one of an owned row whose life has another stamp than its cells, and so
    /// do cells of a dead row.
    pub fn merge<'a, 'v>(
        held: &mut Option<Self>,
        change: &Incoming<'a>,
        mut value: impl FnMut(ColumnId) -> &'v Value,
    ) -> Merged<'a> {
        let mut merged = Merged { fate: Fate::Stay, take: Vec::new(), is_changed: false };
        if change.told_length() == 0 {
            return merged;
        }
        let was_alive = held.as_ref().is_some_and(Self::is_alive);
        let held_life = held.as_ref().map(Self::life);
        let verdict = match change.class {
            Class::Owned if change.life.stamp != change.stamp => return merged,
            Class::Owned => judge_owned_life(held_life, change.life),
            Class::Shared => judge_life(held_life, change.life),
        };
        let clock = held.get_or_insert_with(|| Self { life: change.life, groups: Vec::new() });
        match verdict {
            LifeVerdict::Past => return merged,
            LifeVerdict::Same => {}
            LifeVerdict::Restamped => {
                clock.life = change.life;
                merged.is_changed = true;
            }
            LifeVerdict::Later => {
                clock.life = change.life;
                clock.groups.clear();
                merged.is_changed = true;
                merged.fate = match (was_alive, change.life.is_alive()) {
                    (false, false) => Fate::Stay,
                    (false, true) => Fate::Appear,
                    (true, false) => Fate::Vanish,
                    (true, true) => Fate::StartOver,
                };
            }
        }
        if clock.is_alive() {
            for (column, count, incoming) in &change.cells {
                let cell = CellClock { count: *count, stamp: change.stamp };
                clock.merge_cell(*column, cell, incoming, &mut value, &mut merged);
            }
        }
        merged
    }

    /// While a node takes all rows anew: lets go of stamps that it has not heard of since it began,
    /// where a change that was just merged says the same of a shared row under stamps of its own.
    ///
    /// They would be said again under another name, which may be a lesser one than the change's:
    /// whoever hears of both keeps the change's, and so must who has heard of it. `told` is the longest
    /// life of the row that was told of since; of that life itself the greatest stamp that was told
    /// stays. A life is told by every change in it, also by those who only heard of its stamp; a
    /// cell by the one who wrote it alone.
    pub fn yield_to<'v>(
        &mut self,
        change: &Incoming<'_>,
        told: u64,
        value: impl Fn(ColumnId) -> &'v Value,
        is_unheard: impl Fn(Stamp) -> bool,
    ) {
        let length = change.told_length();
        if change.class != Class::Shared || self.life.length != length {
            return;
        }
        if told < length && is_unheard(self.life.stamp) {
            self.life.stamp = change.life.stamp;
        }
        for (column, count, incoming) in &change.cells {
            let held = self.cell(*column).filter(|held| held.count == *count);
            if held.is_some_and(|held| is_unheard(held.stamp)) && value(*column) == *incoming {
                self.put(*column, CellClock { count: *count, stamp: change.stamp });
            }
        }
    }

    /// When a node has taken all rows anew: lets go of the cells that its peer has not told of, though it
    /// had heard of them (`is_heard`) and told of the row in this life. It does not have them: there the
    /// row was deleted and its tombstone dropped, and a later change of another cell brought it back.
    /// Returns their columns.
    pub fn leave_out(&mut self, told: &RowTold, is_heard: impl Fn(Stamp) -> bool) -> Vec<ColumnId> {
        if !self.is_alive() || told.length != self.life.length {
            return Vec::new();
        }
        let is_left_out = |column: &ColumnId, clock: &CellClock| {
            !told.columns.contains(column) && is_heard(clock.stamp)
        };
        let left_out = self.cells().filter(|(column, clock)| is_left_out(column, clock));
        let left_out: Vec<ColumnId> = left_out.map(|(column, _)| column).collect();
        left_out.iter().for_each(|column| self.remove(*column));
        self.groups.sort_unstable_by_key(|group| group.columns[0]);
        left_out
    }

    fn merge_cell<'a, 'v>(
        &mut self,
        column: ColumnId,
        incoming: CellClock,
        incoming_value: &'a Value,
        value: &mut impl FnMut(ColumnId) -> &'v Value,
        merged: &mut Merged<'a>,
    ) {
        if !(1..=COUNT_MAX).contains(&incoming.count) {
            return;
        }
        // A column that the change names twice: what it said first is what the row holds by now.
        let taken = merged.take.iter().position(|(taken, _)| *taken == column);
        let verdict = match taken {
            Some(taken) => {
                let held = merged.take[taken].1;
                judge_cell(self.cell(column), || held, incoming, incoming_value)
            }
            None => judge_cell(self.cell(column), || value(column), incoming, incoming_value),
        };
        match verdict {
            CellVerdict::Keep => return,
            CellVerdict::Restamp => {}
            CellVerdict::Take => match taken {
                Some(taken) => merged.take[taken].1 = incoming_value,
                None => merged.take.push((column, incoming_value)),
            },
        }
        self.put(column, incoming);
        merged.is_changed = true;
    }
}

/// What keeps the groups in their form.
impl RowClock {
    pub(super) fn from_groups(life: Life, groups: Vec<Group>) -> Self {
        Self { life, groups }
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Leaves the order of the groups to the caller.
    fn remove(&mut self, column: ColumnId) {
        for group in &mut self.groups {
            if let Ok(place) = group.columns.binary_search(&column) {
                group.columns.remove(place);
            }
        }
        self.groups.retain(|group| !group.columns.is_empty());
    }

    fn put(&mut self, column: ColumnId, clock: CellClock) {
        if self.cell(column) == Some(clock) {
            return;
        }
        self.remove(column);
        match self.groups.iter_mut().find(|group| group.clock == clock) {
            Some(group) => {
                let place = group.columns.partition_point(|other| *other < column);
                group.columns.insert(place, column);
            }
            None => self.groups.push(Group { clock, columns: vec![column] }),
        }
        self.groups.sort_unstable_by_key(|group| group.columns[0]);
    }
}

/// The life that a local insert begins.
fn next_life(held: Option<&RowClock>, stamp: Stamp) -> Life {
    let before = held.map(RowClock::life).unwrap_or_default();
    assert!(!before.is_alive(), "a live row is updated, not inserted");
    Life { length: before.length.saturating_add(1), stamp }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::types::{Epoch, NodeId, Origin, Scope, Version};

    const V: ColumnId = ColumnId(0);
    const W: ColumnId = ColumnId(1);

    fn stamp(node: u8, version: u64) -> Stamp {
        let origin = Origin { scope: Scope(0), node: NodeId([node; 16]), epoch: Epoch(1) };
        Stamp { origin, version: Version(version) }
    }

    fn count(clock: &RowClock, column: ColumnId) -> Option<(u64, Stamp)> {
        clock.cell(column).map(|cell| (cell.count, cell.stamp))
    }

    #[test]
    fn a_row_written_in_one_piece_has_one_group() {
        let mut clock = RowClock::inserted(None, stamp(1, 1), [W, V]);
        assert_eq!(clock.groups().len(), 1);
        clock.updated(stamp(1, 2), [W]);
        assert_eq!(clock.groups().len(), 2);
        assert_eq!(count(&clock, V), Some((1, stamp(1, 1))));
        assert_eq!(count(&clock, W), Some((2, stamp(1, 2))));
        clock.replaced(stamp(1, 3), [V, W]);
        assert_eq!(clock.groups().len(), 1);
        assert_eq!(count(&clock, V), Some((3, stamp(1, 3))));
    }

    #[test]
    fn lives_begin_and_end() {
        let mut clock = RowClock::inserted(None, stamp(1, 1), [V]);
        assert_eq!(clock.life(), Life { length: 1, stamp: stamp(1, 1) });
        clock.updated(stamp(1, 2), [V]);
        clock.deleted(stamp(1, 3));
        assert_eq!(clock.life(), Life { length: 2, stamp: stamp(1, 3) });
        assert_eq!(clock.cells().count(), 0);
        let again = RowClock::inserted(Some(&clock), stamp(1, 4), [V]);
        assert_eq!(again.life(), Life { length: 3, stamp: stamp(1, 4) });
        assert_eq!(count(&again, V), Some((1, stamp(1, 4))));
    }

    #[test]
    fn a_row_is_renamed_as_it_is() {
        let mut clock = RowClock::inserted(None, stamp(1, 1), [V, W]);
        clock.updated(stamp(2, 1), [W]);
        clock.updated(stamp(1, 2), [V]);
        let ours = |old: Stamp| old.origin == stamp(1, 1).origin;
        assert!(clock.restamp(stamp(3, 9), ours));
        assert_eq!(clock.life(), Life { length: 1, stamp: stamp(3, 9) });
        assert_eq!(count(&clock, V), Some((2, stamp(3, 9))));
        assert_eq!(count(&clock, W), Some((2, stamp(2, 1))));
        assert!(!clock.restamp(stamp(3, 10), ours));
        clock.deleted(stamp(1, 3));
        assert!(clock.restamp(stamp(3, 11), ours));
        assert_eq!(clock.life(), Life { length: 2, stamp: stamp(3, 11) });
    }

    #[test]
    fn a_moved_row_counts_on_under_its_new_key() {
        let mut from = RowClock::inserted(None, stamp(1, 1), [V]);
        from.updated(stamp(1, 2), [V]);
        let mut held = RowClock::inserted(None, stamp(2, 1), [V, W]);
        held.deleted(stamp(2, 2));
        let moved = RowClock::moved(Some(&held), &from, stamp(1, 3), [V, W]);
        assert_eq!(moved.life(), Life { length: 3, stamp: stamp(1, 3) });
        assert_eq!(count(&moved, V), Some((3, stamp(1, 3))));
        assert_eq!(count(&moved, W), Some((1, stamp(1, 3))));
    }

    #[test]
    fn a_row_is_born_above_the_lives_that_were_dropped() {
        assert_eq!(RowClock::dropped(0), None);
        let clock = RowClock::inserted(RowClock::dropped(6).as_ref(), stamp(1, 1), [V]);
        assert_eq!(clock.life(), Life { length: 7, stamp: stamp(1, 1) });
        let mut dead = clock.clone();
        dead.deleted(stamp(1, 2));
        for (dropped, length) in [(0, 8), (8, 8), (10, 10)] {
            let dropped = RowClock::dropped(dropped);
            let last = RowClock::last(Some(&dead), dropped.as_ref()).unwrap();
            assert_eq!(last.life().length, length);
            assert_eq!(RowClock::last(Some(&clock), dropped.as_ref()), Some(&clock));
            assert_eq!(RowClock::last(None, dropped.as_ref()), dropped.as_ref());
        }
        for (dropped, length) in [(0, 7), (6, 7), (8, 9)] {
            let mut again = clock.clone();
            again.begun_again(dropped, stamp(1, 2));
            assert_eq!(again.life(), Life { length, stamp: stamp(1, 2) });
            assert_eq!(count(&again, V), Some((1, stamp(1, 2))));
        }
    }

    #[test]
    fn a_row_is_found_under_its_cells_and_always_under_its_life() {
        let mut clock = RowClock::inserted(None, stamp(1, 5), [V, W]);
        assert_eq!(clock.stamps(), [stamp(1, 5)].into());
        clock.updated(stamp(2, 1), [V]);
        assert_eq!(clock.stamps(), [stamp(1, 5), stamp(2, 1)].into());
        // All cells are another's, or the same origin's but others: the life speaks for itself.
        clock.updated(stamp(2, 2), [W]);
        assert_eq!(clock.stamps(), [stamp(1, 5), stamp(2, 1), stamp(2, 2)].into());
        clock.updated(stamp(1, 6), [W]);
        assert_eq!(clock.stamps(), [stamp(1, 5), stamp(1, 6), stamp(2, 1)].into());
        // A row that is replaced whole leaves nothing behind.
        clock.replaced(stamp(1, 7), [V, W]);
        assert_eq!(clock.stamps(), [stamp(1, 7)].into());
        clock.deleted(stamp(3, 1));
        assert_eq!(clock.stamps(), [stamp(3, 1)].into());
    }

    #[test]
    fn two_values_under_one_clock_still_have_a_winner() {
        // Nobody honest writes this; replicas agree on it all the same.
        let life = Life { length: 1, stamp: stamp(1, 1) };
        let mut clock = Some(RowClock::inserted(None, stamp(1, 1), [V]));
        let (held, greater) = (Value::from("a"), Value::from("b"));
        let cells = vec![(V, 1, &greater)];
        let change = Incoming { class: Class::Shared, stamp: stamp(1, 1), life, cells };
        let merged = RowClock::merge(&mut clock, &change, |_| &held);
        assert_eq!((merged.take, merged.is_changed), (vec![(V, &greater)], true));
        let merged = RowClock::merge(&mut clock, &change, |_| &greater);
        assert_eq!((merged.take, merged.is_changed), (vec![], false));
    }

    /// A row as a storage keeps it: the clock, and what [`Merged`] made of its values.
    #[derive(Clone, PartialEq, Eq, Debug)]
    pub(crate) struct State {
        class: Class,
        pub(crate) clock: Option<RowClock>,
        values: BTreeMap<ColumnId, Value>,
    }

    /// Changes as they may come from anywhere, even such as no honest writer would make: equal
    /// counts and stamps with different values. The order of the merge is total all the same.
    pub(crate) type Heard = (Stamp, Life, Vec<(ColumnId, u64, Value)>);

    impl State {
        pub(crate) fn of(class: Class, changes: &[Heard]) -> Self {
            let mut state = Self { class, clock: None, values: BTreeMap::new() };
            changes.iter().for_each(|change| state.hear(change));
            state
        }

        fn hear(&mut self, (stamp, life, cells): &Heard) {
            let cells = cells.iter().map(|(column, count, value)| (*column, *count, value));
            let (class, cells) = (self.class, cells.collect());
            let incoming = Incoming { class, stamp: *stamp, life: *life, cells };
            let before = self.clone();
            let merged =
                RowClock::merge(&mut self.clock, &incoming, |column| &before.values[&column]);
            let existed = before.clock.as_ref().is_some_and(RowClock::is_alive);
            let exists = self.clock.as_ref().is_some_and(RowClock::is_alive);
            let should = match merged.fate {
                Fate::Stay => (existed, existed),
                Fate::Appear => (false, true),
                Fate::StartOver => (true, true),
                Fate::Vanish => (true, false),
            };
            assert_eq!((existed, exists), should);
            if merged.fate != Fate::Stay {
                self.values.clear();
            }
            self.values
                .extend(merged.take.iter().map(|(column, value)| (*column, (*value).clone())));
            assert_eq!(merged.is_changed, *self != before);
            let cells = self.clock.iter().flat_map(RowClock::cells).count();
            assert_eq!(cells, self.values.len(), "each cell has a clock and a value");
        }

        /// Joins two states as replicas do: by what is left of each of the other's stamps.
        fn join(&self, other: &Self) -> Self {
            let mut joined = self.clone();
            let Some(clock) = &other.clock else { return joined };
            for stamp in clock.stamps() {
                let cell = |(column, count)| (column, count, other.values[&column].clone());
                joined.hear(&(stamp, clock.life(), clock.cells_of(stamp).map(cell).collect()));
            }
            joined
        }
    }

    pub(crate) fn changes() -> impl Strategy<Value = Vec<Heard>> {
        let stamps = || (1..4_u8, 1..4_u64).prop_map(|(node, version)| stamp(node, version));
        let value = prop::sample::select(vec![Value::Null, "a".into(), "b".into(), 1.into()]);
        let cell = (0..3_u16, 0..4_u64, value);
        let cells = prop::collection::vec(
            cell.prop_map(|(column, count, value)| (ColumnId(column), count, value)),
            0..4,
        );
        let life = (0..5_u64, stamps()).prop_map(|(length, stamp)| Life { length, stamp });
        prop::collection::vec((stamps(), life, cells), 0..6)
    }

    /// Changes to a row of a table of either class; some of an owned row are none that count.
    fn heard() -> impl Strategy<Value = (Class, [Vec<Heard>; 3])> {
        let drawn = (any::<bool>(), 0..8_u8, [changes(), changes(), changes()]);
        drawn.prop_map(|(is_owned, keep, mut drawn)| {
            if !is_owned {
                return (Class::Shared, drawn);
            }
            for (nth, (stamp, life, _)) in (0..).zip(drawn.iter_mut().flatten()) {
                if nth != keep {
                    life.stamp = *stamp;
                }
            }
            (Class::Owned, drawn)
        })
    }

    #[test]
    fn the_latest_write_of_an_owned_row_is_the_row() {
        let at = |epoch: u64, version: u64| {
            let mut stamp = stamp(1, version);
            stamp.origin.epoch = Epoch(epoch);
            stamp
        };
        let write = |stamp: Stamp, length: u64, count: u64, value: &str| {
            let cells = if length % 2 == 1 { vec![(V, count, value.into())] } else { vec![] };
            (stamp, Life { length, stamp }, cells)
        };
        // A long history, a great value, and then a lost disk: the owner begins to count anew.
        let before = [write(at(1, 8), 5, 9, "z"), write(at(1, 9), 6, 0, "")];
        let after = write(at(2, 1), 1, 1, "a");
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]] {
            let all = [before[0].clone(), before[1].clone(), after.clone()];
            let state = State::of(Class::Owned, &order.map(|nth| all[nth].clone()));
            assert_eq!(state.values, [(V, "a".into())].into(), "{order:?}");
            assert!(state.clock.unwrap().is_alive());
        }
        // In a shared table the longer life stays.
        let state = State::of(Class::Shared, &[before[1].clone(), after]);
        assert!(!state.clock.unwrap().is_alive());
    }

    #[test]
    fn an_owned_row_whose_life_and_cells_are_of_two_writes_counts_for_nothing() {
        let life = Life { length: 1, stamp: stamp(1, 2) };
        let heard = (stamp(1, 3), life, vec![(V, 1, "a".into())]);
        assert_eq!(State::of(Class::Owned, &[heard]).clock, None);
    }

    proptest! {
        #[test]
        fn the_join_is_commutative_associative_and_idempotent((class, drawn) in heard()) {
            let [a, b, c] = drawn.map(|changes| State::of(class, &changes));
            prop_assert_eq!(a.join(&a), a.clone());
            prop_assert_eq!(a.join(&b), b.join(&a));
            prop_assert_eq!(a.join(&b).join(&c), a.join(&b.join(&c)));
            prop_assert_eq!(a.join(&b).join(&b), a.join(&b));
        }

        #[test]
        fn the_order_of_arrival_and_repetitions_do_not_matter(
            (class, [changes, ..]) in heard(),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..9),
        ) {
            let mut shuffled: Vec<Heard> = changes.clone();
            shuffled.reverse();
            if !changes.is_empty() {
                let repeated = order.iter().map(|index| changes[index.index(changes.len())].clone());
                shuffled.splice(0..0, repeated);
            }
            prop_assert_eq!(State::of(class, &shuffled), State::of(class, &changes));
        }

        #[test]
        fn what_a_state_is_joined_from_is_in_it((class, [a, b, _]) in heard()) {
            // A join with a part changes nothing: nothing that was heard is ever taken back.
            let [a, b] = [a, b].map(|changes| State::of(class, &changes));
            let joined = a.join(&b);
            prop_assert_eq!(joined.join(&a), joined.clone());
            prop_assert_eq!(joined.join(&b), joined);
        }
    }
}
