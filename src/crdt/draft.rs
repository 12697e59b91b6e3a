//! A local transaction on a [`Table`] while it is being made: rows as they would be, over rows as
//! they are. What counts is the difference at the end; how it came about does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::change::{Class, Key, Name, Refusal, RowOp, owns};
use super::definition::Definition;
use super::pack;
use super::row::RowClock;
use super::sheet::Sheet;
use super::storage::Storage;
use super::table::Table;
use crate::types::{NodeId, Value};

/// Rows that a transaction touched, over the tables it started from.
pub(super) struct Draft<'a> {
    table: &'a Table,
    images: BTreeMap<(Name, Key), Image>,
    /// In the order in which they were touched first.
    order: Vec<(Name, Key)>,
}

/// One row, before the transaction and now.
struct Image {
    before: Option<Vec<Value>>,
    now: Option<Vec<Value>>,
    /// The key under which the transaction found the row, where it gave it another one.
    came_from: Option<Key>,
}

/// What a transaction does to one row, all in all. The sides differ, unless it is claimed.
pub(super) struct Write {
    pub(super) table: Name,
    pub(super) key: Key,
    pub(super) before: Option<Vec<Value>>,
    pub(super) now: Option<Vec<Value>>,
    /// The clock of the row that came here by a change of key.
    pub(super) from: Option<RowClock>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(table: &'a Table) -> Self {
        Self { table, images: BTreeMap::new(), order: Vec::new() }
    }

    pub(super) fn carry_out(&mut self, op: &RowOp) -> Result<(), Refusal> {
        match op {
            RowOp::Put { table, row, keep } => self.put(table, row, keep),
            RowOp::Set { table, matching, set } => self.set(table, matching, set),
            RowOp::Delete { table, matching, except } => {
                self.delete(table, matching, except.as_ref())
            }
            RowOp::Require { table, matching, otherwise } => {
                let Some((key, row)) = self.find(table, matching)?.pop_first() else {
                    return Err(otherwise.clone());
                };
                let (name, _, _) = self.known(table)?;
                if Class::of(table) == Class::Owned && is_owner(&key, self.table.origin().node) {
                    self.note(name, key, Some(row), None);
                }
                Ok(())
            }
        }
    }

    /// Returns the difference, or refuses it where it writes what `me` does not own.
    pub(super) fn net(mut self, me: NodeId) -> Result<Vec<Write>, Refusal> {
        let mut writes = Vec::new();
        for place in std::mem::take(&mut self.order) {
            let image = &self.images[&place];
            let (table, key) = &place;
            let is_claimed = image.now.is_some() && self.is_of_earlier_epoch(table, key);
            if image.before == image.now && !is_claimed {
                continue;
            }
            if Class::of(table) == Class::Owned {
                check_owner(table, key, me)?;
            }
            writes.push(Write {
                from: image.came_from.as_ref().and_then(|from| self.clock_before(table, from)),
                before: image.before.clone(),
                now: image.now.clone(),
                table: Arc::clone(table),
                key: Arc::clone(key),
            });
        }
        Ok(writes)
    }

    fn put(
        &mut self,
        table: &'static str,
        row: &[(&'static str, Value)],
        keep: &[&'static str],
    ) -> Result<(), Refusal> {
        let (name, _, definition) = self.known(table)?;
        let mut new = definition.defaults().to_vec();
        for (column, value) in row {
            new[place_of(definition, column)?] = value.clone();
        }
        let key = key_of(definition, &new)?;
        let existing = self.current(&name, &key);
        if let Some(existing) = &existing {
            for column in keep {
                let place = place_of(definition, column)?;
                new[place] = existing[place].clone();
            }
        }
        self.note(name, key, Some(new), None);
        Ok(())
    }

    /// Tells whether a row is an owned one that stands under an epoch before this node's present
    /// one.
    fn is_of_earlier_epoch(&self, table: &Name, key: &Key) -> bool {
        let epoch = self.clock_before(table, key).map(|clock| clock.life().stamp.origin.epoch);
        Class::of(table) == Class::Owned
            && epoch.is_some_and(|epoch| epoch < self.table.origin().epoch)
    }

    fn set(
        &mut self,
        table: &'static str,
        matching: &[(&'static str, Value)],
        set: &[(&'static str, Value)],
    ) -> Result<(), Refusal> {
        let (name, _, definition) = self.known(table)?;
        for (key, mut row) in self.find(table, matching)? {
            for (column, value) in set {
                row[place_of(definition, column)?] = value.clone();
            }
            let new_key = key_of(definition, &row)?;
            if new_key == key {
                self.note(Arc::clone(&name), key, Some(row), None);
                continue;
            }
            if self.current(&name, &new_key).is_some() {
                return Err(Refusal(format!("table {table}: there is a row with the new key")));
            }
            self.note(Arc::clone(&name), Arc::clone(&key), None, None);
            self.note(Arc::clone(&name), new_key, Some(row), Some(key));
        }
        Ok(())
    }

    fn delete(
        &mut self,
        table: &'static str,
        matching: &[(&'static str, Value)],
        except: Option<&(&'static str, Vec<Value>)>,
    ) -> Result<(), Refusal> {
        let (name, _, definition) = self.known(table)?;
        let except = match except {
            Some((column, values)) => Some((place_of(definition, column)?, values)),
            None => None,
        };
        for (key, row) in self.find(table, matching)? {
            let is_excepted = except.is_some_and(|(place, values)| values.contains(&row[place]));
            if !is_excepted {
                self.note(Arc::clone(&name), key, None, None);
            }
        }
        Ok(())
    }

    /// Lists the rows whose columns equal `matching` (NULL equals NULL), in the order of keys.
    fn find(
        &self,
        table: &'static str,
        matching: &[(&'static str, Value)],
    ) -> Result<BTreeMap<Key, Vec<Value>>, Refusal> {
        let (name, sheet, definition) = self.known(table)?;
        let mut wanted = Vec::new();
        for (column, value) in matching {
            wanted.push((place_of(definition, column)?, value));
        }
        let matches = |row: &[Value]| wanted.iter().all(|(place, value)| row[*place] == **value);
        let prefix = key_prefix(definition, &wanted);
        let mut found = BTreeMap::new();
        for (key, row) in sheet.rows_from(&prefix) {
            let place = (Arc::clone(&name), Arc::clone(key));
            if let Some(image) = sheet.image(key, row)
                && matches(&image)
                && !self.images.contains_key(&place)
            {
                found.insert(place.1, image);
            }
        }
        let from = (Arc::clone(&name), Arc::clone(&prefix));
        let is_near = |place: &(Name, Key)| place.0 == name && place.1.starts_with(&prefix);
        for ((_, key), image) in self.images.range(from..).take_while(|(place, _)| is_near(place)) {
            if let Some(row) = image.now.as_ref().filter(|row| matches(row)) {
                found.insert(Arc::clone(key), row.clone());
            }
        }
        Ok(found)
    }

    fn known(&self, table: &'static str) -> Result<(Name, &'a Sheet, &'a Definition), Refusal> {
        self.table
            .sheet(table)
            .and_then(|(name, sheet)| Some((Arc::clone(name), sheet, sheet.definition()?)))
            .ok_or_else(|| Refusal(format!("there is no table {table}")))
    }

    fn current(&self, table: &Name, key: &Key) -> Option<Vec<Value>> {
        match self.images.get(&(Arc::clone(table), Arc::clone(key))) {
            Some(image) => image.now.clone(),
            None => self.table.image(table, key),
        }
    }

    fn note(&mut self, table: Name, key: Key, now: Option<Vec<Value>>, moved: Option<Key>) {
        let root_of = |from: Key| {
            let place = (Arc::clone(&table), from);
            let earlier = self.images.get(&place).and_then(|image| image.came_from.clone());
            earlier.unwrap_or(place.1)
        };
        let moved = moved.map(root_of);
        let place = (table, key);
        let before = || self.table.image(&place.0, &place.1);
        let order = &mut self.order;
        let image = self.images.entry(place.clone()).or_insert_with(|| {
            let before = before();
            order.push(place.clone());
            Image { now: before.clone(), before, came_from: None }
        });
        // A row that stays where it came to is still the one that came; a new one is not.
        if image.now.is_none() {
            image.came_from = moved;
        }
        image.now = now;
    }

    /// Returns the clock that a row had when the transaction began, if it was alive.
    fn clock_before(&self, table: &Name, key: &Key) -> Option<RowClock> {
        let (_, sheet) = self.table.sheet(table)?;
        let clock = sheet.clock(key)?;
        clock.is_alive().then(|| clock.clone())
    }
}

fn is_owner(key: &Key, me: NodeId) -> bool {
    pack::unpack(key).is_ok_and(|columns| owns(me, &columns[0]))
}

fn check_owner(table: &str, key: &Key, me: NodeId) -> Result<(), Refusal> {
    let columns = pack::unpack(key).expect("this transaction packed it, or found it in a table");
    if owns(me, &columns[0]) {
        return Ok(());
    }
    Err(Refusal(format!("table {table}: the row of {} belongs to another node", columns[0])))
}

fn place_of(definition: &Definition, column: &str) -> Result<usize, Refusal> {
    definition
        .place(column)
        .ok_or_else(|| Refusal(format!("table {} has no column {column}", definition.info().name)))
}

fn key_of(definition: &Definition, row: &[Value]) -> Result<Key, Refusal> {
    let key = definition.key_of(row);
    if key.contains(&Value::Null) {
        let name = &definition.info().name;
        return Err(Refusal(format!("table {name}: a key column must not be NULL")));
    }
    pack::pack(&key).map_err(|error| Refusal(error.to_string()))
}

/// Packs as many leading key columns as `wanted` fixes: where the rows begin that can match.
fn key_prefix(definition: &Definition, wanted: &[(usize, &Value)]) -> Key {
    let fixed = |key: &usize| wanted.iter().find(|(place, _)| place == key).map(|(_, v)| *v);
    let columns: Vec<Value> = definition.info().key.iter().map_while(fixed).cloned().collect();
    // An impossible key narrows nothing down; then no row passes the comparison either.
    pack::pack(&columns).unwrap_or_default()
}
