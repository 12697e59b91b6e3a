//! A row's clock: which life the row is in, and who last wrote each of its cells.
//!
//! This is all that a storage keeps of a row besides its values. It changes in two ways only: by
//! the local writes below (`inserted`, `moved`, `updated`, `replaced`, `deleted`) and by
//! [`RowClock::merge`]. Columns are small numbers that the storage chose; they never leave it.

use std::collections::BTreeSet;

use super::change::{Life, Stamp};
use super::merge::{CellClock, CellVerdict, LifeVerdict, judge_cell, judge_life};
use crate::types::Value;

/// A column within one table of one storage. Other storages number the same columns differently.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ColumnId(pub u16);

/// The greatest length of a life and the greatest count of a cell that a change may bring. Far
/// above what anybody can reach by writing, so that counting on from it never overflows. What lies
/// above counts for nothing, on all nodes alike.
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
    /// The stamp of every cell below.
    pub stamp: Stamp,
    pub life: Life,
    /// Column, count and value of each cell.
    pub cells: Vec<(ColumnId, u64, &'a Value)>,
}

/// What a merge asks the storage to do with the row's values: first `fate`, then `take`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merged<'a> {
    pub fate: Fate,
    /// Cells that take a new value, each column once. Empty when the row is dead.
    pub take: Vec<(ColumnId, &'a Value)>,
    /// Whether the clock differs from before. Values never change without it.
    pub is_clock_changed: bool,
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

    /// Returns the stamps under which this row must be found when somebody asks what is left of a
    /// range of versions.
    ///
    /// Those are the stamps of its cells, and the life's own where no cell of the same origin with
    /// an equal or later version brings the life along anyway.
    pub fn stamps(&self) -> BTreeSet<Stamp> {
        let mut stamps: BTreeSet<Stamp> =
            self.groups.iter().map(|group| group.clock.stamp).collect();
        let life = self.life.stamp;
        if !stamps.iter().any(|cell| cell.origin == life.origin && cell.version >= life.version) {
            stamps.insert(life);
        }
        stamps
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
    /// owner: all of `columns` share one clock, above every one before.
    pub fn replaced(&mut self, stamp: Stamp, columns: impl IntoIterator<Item = ColumnId>) {
        assert!(self.is_alive(), "a dead row is inserted, not replaced");
        let before = self.groups.iter().map(|group| group.clock.count).max().unwrap_or(0);
        let clock = CellClock { count: before.saturating_add(1), stamp };
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
    /// nothing, and so do cells of a dead row.
    pub fn merge<'a, 'v>(
        held: &mut Option<Self>,
        change: &Incoming<'a>,
        mut value: impl FnMut(ColumnId) -> &'v Value,
    ) -> Merged<'a> {
        let mut merged = Merged { fate: Fate::Stay, take: Vec::new(), is_clock_changed: false };
        if !(1..=COUNT_MAX).contains(&change.life.length) {
            return merged;
        }
        let was_alive = held.as_ref().is_some_and(Self::is_alive);
        let verdict = judge_life(held.as_ref().map(Self::life), change.life);
        let clock = held.get_or_insert_with(|| Self { life: change.life, groups: Vec::new() });
        match verdict {
            LifeVerdict::Past => return merged,
            LifeVerdict::Same => {}
            LifeVerdict::Restamped => {
                clock.life = change.life;
                merged.is_clock_changed = true;
            }
            LifeVerdict::Later => {
                clock.life = change.life;
                clock.groups.clear();
                merged.is_clock_changed = true;
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
        merged.is_clock_changed = true;
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

    fn put(&mut self, column: ColumnId, clock: CellClock) {
        if self.cell(column) == Some(clock) {
            return;
        }
        for group in &mut self.groups {
            if let Ok(place) = group.columns.binary_search(&column) {
                group.columns.remove(place);
            }
        }
        self.groups.retain(|group| !group.columns.is_empty());
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
    let before = held.map_or(0, |clock| clock.life.length);
    assert!(before % 2 == 0, "a live row is updated, not inserted");
    Life { length: before.saturating_add(1), stamp }
}
