//! One replicated table in memory: every cell that was ever written to it, and what it shows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;

use super::change::{CellChange, Key, Name, RowChange, RowEvent, Stamp, TableChanges};
use super::definition::Definition;
use super::fingerprint::row_hash;
use super::pack;
use super::row::{ColumnId, RowClock};
use super::storage::Inspected;
use crate::types::Value;

/// One table: all that was ever written to it, whether it is defined here or not.
#[derive(Clone, Debug, Default)]
pub(super) struct Sheet {
    pub(super) shape: Option<Shape>,
    /// Every column that anybody wrote, by id.
    columns: Vec<Name>,
    pub(super) rows: OrdMap<Key, Arc<Row>>,
}

#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) definition: Definition,
    /// The id of each column, in the order of the table; key columns have one too, for nothing.
    pub(super) ids: Vec<ColumnId>,
}

#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) clock: RowClock,
    /// One value for each cell that has a clock.
    pub(super) values: BTreeMap<ColumnId, Value>,
}

impl Shape {
    /// Lists the non-key columns of a row with their values.
    pub(super) fn cells<'a>(
        &'a self,
        row: &'a [Value],
    ) -> impl Iterator<Item = (ColumnId, &'a Value)> {
        let key = &self.definition.info().key;
        let cells = self.ids.iter().copied().zip(row).enumerate();
        cells.filter(|(place, _)| !key.contains(place)).map(|(_, cell)| cell)
    }
}

impl Sheet {
    pub(super) fn definition(&self) -> Option<&Definition> {
        self.shape.as_ref().map(|shape| &shape.definition)
    }

    pub(super) fn clock(&self, key: &Key) -> Option<&RowClock> {
        self.rows.get(key).map(|row| &row.clock)
    }

    /// Lists the rows whose keys begin with `prefix`.
    pub(super) fn rows_from<'a>(
        &'a self,
        prefix: &'a Key,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Row>)> {
        self.rows.range(Arc::clone(prefix)..).take_while(|(key, _)| key.starts_with(prefix))
    }

    /// Returns a row as the table shows it; `None`: it is dead, or the table is not defined.
    pub(super) fn image(&self, key: &Key, row: &Row) -> Option<Vec<Value>> {
        let shape = self.shape.as_ref().filter(|_| row.clock.is_alive())?;
        let mut image = shape.definition.defaults().to_vec();
        for (place, id) in shape.ids.iter().enumerate() {
            if let Some(value) = row.values.get(id) {
                image[place] = value.clone();
            }
        }
        // The key comes last: no cell, however named, may show in its place.
        let columns = pack::unpack(key).ok()?;
        for (place, value) in shape.definition.info().key.iter().zip(columns) {
            image[*place] = value;
        }
        Some(image)
    }

    pub(super) fn inspect(&self, key: &Key) -> Option<Inspected> {
        let row = self.rows.get(key).filter(|_| self.shape.is_some())?;
        let name = |(id, clock): (ColumnId, _)| (Arc::clone(self.name(id)), clock);
        Some(Inspected {
            row: self.image(key, row),
            life: row.clock.life(),
            cells: row.clock.cells().map(name).collect(),
        })
    }

    pub(super) fn extract(&self, stamp: Stamp, table: &Name, keys: &[&Key]) -> TableChanges {
        let mut used = BTreeSet::new();
        let mut rows = Vec::new();
        for key in keys {
            let row = &self.rows[*key];
            let mut cells: Vec<(ColumnId, u64)> = row.clock.cells_of(stamp).collect();
            cells.sort_unstable();
            used.extend(cells.iter().map(|(id, _)| *id));
            rows.push((*key, row, cells));
        }
        let used: Vec<ColumnId> = used.into_iter().collect();
        let place = |id: &ColumnId| used.partition_point(|other| other < id) as u16;
        let rows = rows.into_iter().map(|(key, row, cells)| RowChange {
            key: Arc::clone(key),
            life: row.clock.life(),
            cells: cells
                .iter()
                .map(|(id, count)| CellChange {
                    column: place(id),
                    count: *count,
                    value: row.values[id].clone(),
                })
                .collect(),
        });
        TableChanges {
            table: Arc::clone(table),
            rows: rows.collect(),
            columns: used.iter().map(|id| Arc::clone(self.name(*id))).collect(),
        }
    }

    /// Returns events for all live rows, or for those that show a cell of the `new` columns.
    pub(super) fn rows_shown_by(&self, all: bool, new: &[ColumnId]) -> Vec<RowEvent> {
        let shows = |row: &Row| all || new.iter().any(|id| row.values.contains_key(id));
        let event = |(key, row): (&Key, &Arc<Row>)| {
            let image = self.image(key, row).filter(|_| shows(row))?;
            let key = pack::unpack(key).ok()?;
            Some(RowEvent { key, existed: !all, row: Some(image) })
        };
        self.rows.iter().filter_map(event).collect()
    }

    /// Returns a row's part of the fingerprint: dead rows have none, for they may be dropped.
    pub(super) fn hash(&self, table: &str, key: &Key, row: &Row) -> u64 {
        if !row.clock.is_alive() {
            return 0;
        }
        let cell = |(id, clock): (ColumnId, _)| (&**self.name(id), clock, &row.values[&id]);
        row_hash(table, key, row.clock.life(), row.clock.cells().map(cell))
    }

    pub(super) fn name(&self, id: ColumnId) -> &Name {
        &self.columns[usize::from(id.0)]
    }

    /// Returns a column's id, a new one if need be; `None` when all numbers are taken.
    pub(super) fn column_or_new(&mut self, column: &Name) -> Option<ColumnId> {
        let known = self.columns.iter().position(|name| name == column);
        let id = u16::try_from(known.unwrap_or(self.columns.len())).ok()?;
        if known.is_none() {
            self.columns.push(Arc::clone(column));
        }
        Some(ColumnId(id))
    }
}
