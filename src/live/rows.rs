//! The rows of a live query and what changes between two looks at them. Pure.
//!
//! A row is known again by its key: the values of those result columns that together are a primary
//! key, where the result has them, else all of its values. Rows with equal keys are told apart by
//! their order among each other. Each row gets a number that no later row of the query gets again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::types::Value;

/// A row as the query returns it, shared by all who are told of it.
pub type Row = Arc<[Value]>;

/// What happened to one row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Insert,
    Update,
    Delete,
}

/// One difference, with its place in the query's history.
#[derive(Clone, PartialEq, Debug)]
pub struct Change {
    /// Contiguous: one more than the change before, or than the number the rows began with.
    pub id: u64,
    pub kind: Kind,
    /// The row's number.
    pub row: u64,
    /// The whole row; of a deleted one, as it last was.
    pub cells: Row,
}

/// What a row is known by: its key, and its place among the rows with that key.
type Identity = (Vec<Value>, usize);

/// The rows of a query as last looked at.
#[derive(Debug, Default)]
pub struct Rows {
    /// Indexes of the result columns that make the key; empty: all of them.
    key: Vec<usize>,
    rows: BTreeMap<Identity, (u64, Row)>,
    /// What the values of all rows come to.
    bytes: usize,
    last_row: u64,
    last_change: u64,
}

impl Rows {
    /// Starts with no rows. `key` are indexes into the result's columns.
    pub fn new(key: Vec<usize>) -> Self {
        Self { key, ..Self::default() }
    }

    /// Takes over what the query now returns, and returns how that differs from before: what is
    /// gone first, then what changed or came.
    pub fn replace(&mut self, now: Vec<Row>) -> Vec<Change> {
        let now = self.identify(now);
        let gone =
            self.rows.keys().filter(|identity| !now.contains_key(*identity)).cloned().collect();
        self.become_so(gone, now)
    }

    fn become_so(
        &mut self,
        gone: Vec<Identity>,
        now: impl IntoIterator<Item = (Identity, Row)>,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for identity in gone {
            if let Some((row, cells)) = self.rows.remove(&identity) {
                self.bytes -= bytes_of(&cells);
                changes.push(self.change(Kind::Delete, row, cells));
            }
        }
        for (identity, cells) in now {
            let kind = match self.rows.get_mut(&identity) {
                Some((_, held)) if *held == cells => continue,
                Some((row, held)) => {
                    self.bytes -= bytes_of(held);
                    *held = cells.clone();
                    (Kind::Update, *row)
                }
                None => {
                    self.last_row += 1;
                    self.rows.insert(identity, (self.last_row, cells.clone()));
                    (Kind::Insert, self.last_row)
                }
            };
            self.bytes += bytes_of(&cells);
            changes.push(self.change(kind.0, kind.1, cells));
        }
        changes
    }

    /// Takes over what the query now returns of the rows with these keys alone, and returns how that
    /// differs from before. `None`: it returned another row, or two with one key, and nothing
    /// was done.
    pub fn patch(&mut self, keys: &BTreeSet<Vec<Value>>, now: Vec<Row>) -> Option<Vec<Change>> {
        let mut held = BTreeMap::new();
        for row in now {
            let key = self.key_of(&row);
            if !keys.contains(&key) || held.insert(key, row).is_some() {
                return None;
            }
        }
        let is_gone = |key: &&Vec<Value>| !held.contains_key(*key);
        let gone: Vec<Identity> = keys.iter().filter(is_gone).map(|key| (key.clone(), 0)).collect();
        let held = held.into_iter().map(|(key, row)| ((key, 0), row));
        Some(self.become_so(gone, held))
    }

    /// Takes over the first look, which is told as rows and not as changes. The first change after
    /// it is `base` + 1.
    pub fn begin(&mut self, first: Vec<Row>, base: u64) {
        self.replace(first);
        self.last_change = base;
    }

    /// Lists the rows in the order of their numbers.
    pub fn all(&self) -> Vec<(u64, Row)> {
        let mut rows: Vec<(u64, Row)> = self.rows.values().cloned().collect();
        rows.sort_by_key(|(row, _)| *row);
        rows
    }

    /// Returns how many rows there are, and how many bytes of values.
    pub fn size(&self) -> (usize, usize) {
        (self.rows.len(), self.bytes)
    }

    /// Returns the id of the newest change; the base before the first.
    pub fn last_change(&self) -> u64 {
        self.last_change
    }

    fn identify(&self, rows: Vec<Row>) -> BTreeMap<Identity, Row> {
        let mut grouped: BTreeMap<Vec<Value>, Vec<Row>> = BTreeMap::new();
        for row in rows {
            grouped.entry(self.key_of(&row)).or_default().push(row);
        }
        let mut identified = BTreeMap::new();
        for (key, mut alike) in grouped {
            // The order among rows of one key must not depend on the query's plan.
            alike.sort();
            for (place, row) in alike.into_iter().enumerate() {
                identified.insert((key.clone(), place), row);
            }
        }
        identified
    }

    fn key_of(&self, row: &Row) -> Vec<Value> {
        if self.key.is_empty() {
            return row.to_vec();
        }
        self.key.iter().filter_map(|index| row.get(*index).cloned()).collect()
    }

    fn change(&mut self, kind: Kind, row: u64, cells: Row) -> Change {
        self.last_change += 1;
        Change { id: self.last_change, kind, row, cells }
    }
}

/// Returns what the values of a row come to.
pub(super) fn bytes_of(row: &[Value]) -> usize {
    row.iter().map(Value::bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[i64]) -> Row {
        values.iter().map(|value| Value::Integer(*value)).collect()
    }

    fn told(changes: &[Change]) -> Vec<(u64, Kind, u64)> {
        changes.iter().map(|change| (change.id, change.kind, change.row)).collect()
    }

    #[test]
    fn a_row_with_a_key_is_updated_and_keeps_its_number() {
        let mut rows = Rows::new(vec![0]);
        rows.begin(vec![row(&[1, 10]), row(&[2, 20])], 0);
        let changes = rows.replace(vec![row(&[2, 21]), row(&[3, 30])]);
        assert_eq!(
            told(&changes),
            [(1, Kind::Delete, 1), (2, Kind::Update, 2), (3, Kind::Insert, 3)]
        );
        assert_eq!(changes[0].cells, row(&[1, 10]));
        assert_eq!(rows.all(), [(2, row(&[2, 21])), (3, row(&[3, 30]))]);
    }

    #[test]
    fn without_a_key_equal_rows_are_counted() {
        let mut rows = Rows::new(vec![]);
        rows.begin(vec![row(&[7]), row(&[7])], 0);
        let changes = rows.replace(vec![row(&[7]), row(&[7]), row(&[7])]);
        assert_eq!(told(&changes), [(1, Kind::Insert, 3)]);
        let changes = rows.replace(vec![row(&[7])]);
        assert_eq!(told(&changes), [(2, Kind::Delete, 2), (3, Kind::Delete, 3)]);
    }

    #[test]
    fn the_same_rows_in_another_order_are_no_change() {
        let mut rows = Rows::new(vec![0]);
        rows.begin(vec![row(&[1, 5]), row(&[1, 4])], 9);
        assert!(rows.replace(vec![row(&[1, 4]), row(&[1, 5])]).is_empty());
        assert_eq!(rows.last_change(), 9);
    }

    #[test]
    fn a_few_rows_are_patched_as_if_all_had_been_looked_at() {
        let key = |number: i64| vec![Value::Integer(number)];
        let mut patched = Rows::new(vec![0]);
        let mut replaced = Rows::new(vec![0]);
        for rows in [&mut patched, &mut replaced] {
            rows.begin(vec![row(&[1, 10]), row(&[2, 20]), row(&[3, 30])], 7);
        }
        let keys = BTreeSet::from([key(1), key(2), key(4), key(5)]);
        let changes = patched.patch(&keys, vec![row(&[4, 40]), row(&[2, 21])]).unwrap();
        let all = vec![row(&[2, 21]), row(&[3, 30]), row(&[4, 40])];
        assert_eq!(changes, replaced.replace(all));
        assert_eq!(
            told(&changes),
            [(8, Kind::Delete, 1), (9, Kind::Update, 2), (10, Kind::Insert, 4)]
        );
        assert_eq!((patched.all(), patched.size()), (replaced.all(), replaced.size()));
        assert_eq!(patched.patch(&keys, vec![row(&[3, 31])]), None, "nobody asked for it");
        assert_eq!(patched.patch(&keys, vec![row(&[2, 1]), row(&[2, 2])]), None);
        assert_eq!(patched.all(), replaced.all());
    }

    #[test]
    fn replaying_the_changes_gives_the_rows() {
        let mut rows = Rows::new(vec![0]);
        rows.begin(vec![], 0);
        let mut replayed: BTreeMap<u64, Row> = BTreeMap::new();
        let looks =
            [vec![row(&[1, 1])], vec![row(&[1, 2]), row(&[2, 2])], vec![], vec![row(&[2, 9])]];
        for look in looks {
            for change in rows.replace(look) {
                match change.kind {
                    Kind::Insert | Kind::Update => replayed.insert(change.row, change.cells),
                    Kind::Delete => replayed.remove(&change.row),
                };
            }
            assert_eq!(rows.all(), replayed.clone().into_iter().collect::<Vec<_>>());
        }
    }
}
