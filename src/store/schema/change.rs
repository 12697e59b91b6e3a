//! From schema files to changes of the schema's rows: what a node is asked for, held against what
//! the schema says already.

use std::collections::BTreeSet;

use rusqlite::Connection;

use super::rows::{Kind, RowKey, RowWrite, SchemaRow, SchemaRows, frame_json, frame_of, members};
use super::shape::{Shape, indexes_of, shape_of};
use super::text::{DropStatement, same};
use super::{FIXED_TABLES, Object, Schema, SchemaChange, SchemaError};
use crate::store::names::generation_of;
use crate::store::tables::{Tables, all_columns_of, replicated};

/// What files may do to the schema.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The files of a node that starts. They may be older than the schema of its cluster: what
    /// they lack stays, and what was dropped stays dropped.
    Start,
    /// Somebody asks for the change.
    Apply { allow_drop: bool },
}

/// What is to be written, and what comes of it.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub writes: Vec<RowWrite>,
    pub change: SchemaChange,
}

/// Compares files with the schema.
pub(super) fn plan(
    declared: &Schema,
    (conn, tables, mut rows): (&Connection, &Tables, SchemaRows),
    mode: Mode,
) -> Result<Plan, SchemaError> {
    let mut plan = Plan::default();
    adopt(declared, conn, tables, (&mut rows, &mut plan.writes))?;
    let mut planner = Planner { declared, conn, rows, mode, plan };
    for (file, drop) in &declared.drops {
        planner.drop(file, drop)?;
    }
    for object in declared.tables.iter().filter(|object| !object.is_fixed) {
        planner.table(object)?;
    }
    for object in declared.indexes.iter().filter(|object| !object.is_fixed) {
        planner.index(object)?;
    }
    let plan = planner.plan;
    let deleted: BTreeSet<&RowKey> = plan
        .writes
        .iter()
        .filter_map(|write| match write {
            RowWrite::Delete { key } => Some(key),
            RowWrite::Insert { .. } | RowWrite::Update { .. } => None,
        })
        .collect();
    let again = plan.writes.iter().find_map(|write| match write {
        RowWrite::Insert { key, .. } if deleted.contains(key) => Some(key),
        _ => None,
    });
    match again {
        None => Ok(plan),
        Some(key) => Err(SchemaError::Destructive {
            file: declared.drops.first().map(|(file, _)| file.clone()).unwrap_or_default(),
            table: key.table.clone(),
            column: None,
            reason: "it is dropped and made again by one change; make two of it".to_owned(),
        }),
    }
}

/// Gives rows to tables of the files that SQLite has already and the schema does not know.
fn adopt(
    declared: &Schema,
    conn: &Connection,
    tables: &Tables,
    (rows, writes): (&mut SchemaRows, &mut Vec<RowWrite>),
) -> Result<(), SchemaError> {
    for name in replicated(conn)? {
        let is_declared =
            declared.tables.iter().any(|object| object.name == name && !object.is_fixed);
        if !is_declared || tables.get(&name).is_none() || rows.contains_key(&RowKey::table(&name)) {
            continue;
        }
        insert_table(rows, writes, &shape_of(conn, &name)?);
        for index in indexes_of(conn, Some(&name))? {
            insert(rows, writes, RowKey::index(&name, 1, &index.name), index.definition, 0);
        }
    }
    Ok(())
}

/// Begins the next life of a table, and with it that of its columns.
fn insert_table(rows: &mut SchemaRows, writes: &mut Vec<RowWrite>, shape: &Shape) {
    let key = RowKey::table(&shape.name);
    insert(rows, writes, key.clone(), frame_json(shape), 0);
    let generation = generation_of(rows[&key].length);
    for (place, column) in (0..).zip(&shape.columns) {
        let key = RowKey::column(&shape.name, generation, &column.name);
        insert(rows, writes, key, column.definition.clone(), place);
    }
}

fn insert(
    rows: &mut SchemaRows,
    writes: &mut Vec<RowWrite>,
    key: RowKey,
    definition: String,
    place: i64,
) {
    let length = rows.get(&key).map_or(1, |row| row.length.saturating_add(1));
    let row = SchemaRow { length, definition: definition.clone(), place, is_readable: true };
    rows.insert(key.clone(), row);
    writes.push(RowWrite::Insert { key, definition, place });
}

struct Planner<'a> {
    declared: &'a Schema,
    conn: &'a Connection,
    rows: SchemaRows,
    mode: Mode,
    plan: Plan,
}

impl Planner<'_> {
    fn table(&mut self, object: &Object) -> Result<(), SchemaError> {
        let key = RowKey::table(&object.name);
        let is_other = |row: &&RowKey| {
            row.kind == Kind::Table
                && row.table != object.name
                && row.table.eq_ignore_ascii_case(&object.name)
        };
        let alive = self.rows.iter().filter(|(_, row)| row.is_alive()).map(|(key, _)| key);
        if let Some(other) = alive.clone().find(is_other) {
            let reason = format!(
                "the database spells it {}; a name's letters cannot be changed",
                other.table
            );
            return self.differs(object.destructive(None, reason));
        }
        let wanted = shape_of(&self.declared.conn, &object.name)?;
        match self.rows.get(&key) {
            Some(row) if row.is_alive() => self.alter(object, &wanted),
            Some(_) if self.mode == Mode::Start => {
                let note = format!(
                    "table {} was dropped and is not made again; take it out of {}, or make it again with `tribune schema apply`",
                    object.name, object.file
                );
                self.plan.change.notes.push(note);
                Ok(())
            }
            Some(_) | None => {
                insert_table(&mut self.rows, &mut self.plan.writes, &wanted);
                self.plan.change.tables_added.push(object.name.clone());
                Ok(())
            }
        }
    }

    fn insert(&mut self, key: RowKey, definition: String, place: i64) {
        insert(&mut self.rows, &mut self.plan.writes, key, definition, place);
    }

    fn alter(&mut self, object: &Object, wanted: &Shape) -> Result<(), SchemaError> {
        let name = &object.name;
        let row = &self.rows[&RowKey::table(name)];
        let generation = generation_of(row.length);
        let frame = match frame_of(name, &row.definition) {
            Ok(frame) => frame,
            Err(reason) => return self.differs(object.destructive(None, reason)),
        };
        if (frame.is_strict, frame.is_without_rowid) != (wanted.is_strict, wanted.is_without_rowid)
        {
            let reason = "STRICT and WITHOUT ROWID cannot be changed";
            return self.differs(object.destructive(None, reason.into()));
        }
        if frame.key != wanted.key {
            let reason = "its primary key cannot be changed";
            return self.differs(object.destructive(None, reason.into()));
        }
        let held: Vec<(String, SchemaRow)> = members(&self.rows, Kind::Column, name, generation)
            .map(|(key, row)| (key.name.clone(), row.clone()))
            .collect();
        for (column, row) in held.iter().filter(|(_, row)| row.is_alive()) {
            match wanted.columns.iter().find(|new| new.name == *column) {
                Some(new) => {
                    let definitions = (row.definition.as_str(), new.definition.as_str());
                    if let Err(error) = self.check_same(object, column, definitions) {
                        self.differs(error)?;
                    }
                }
                None => self.leave(object, column, generation)?,
            }
        }
        let mut place = held.iter().map(|(_, row)| row.place).max().unwrap_or(0);
        for column in &wanted.columns {
            let known = held.iter().find(|(name, _)| *name == column.name);
            match known {
                Some((_, row)) if row.is_alive() => continue,
                _ if self.is_of_the_past(known.is_some(), (Kind::Column, name), &column.name) => {
                    self.note_dropped(&object.file, (Kind::Column, name), &column.name);
                    continue;
                }
                Some(_) | None => {}
            }
            place = place.saturating_add(1);
            let key = RowKey::column(name, generation, &column.name);
            self.insert(key, column.definition.clone(), place);
            self.plan.change.columns_added.push((name.clone(), column.name.clone()));
        }
        Ok(())
    }

    /// A column that the file does not have any more.
    fn leave(&mut self, object: &Object, column: &str, generation: u64) -> Result<(), SchemaError> {
        match self.mode {
            Mode::Start => {
                let note = format!(
                    "table {}, column {column}: it is not in {} and stays as it is",
                    object.name, object.file
                );
                self.plan.change.notes.push(note);
                Ok(())
            }
            Mode::Apply { allow_drop: false } => {
                let reason = "it is in the database but not in the file; put it back, or drop it with its values on every node: --allow-drop";
                Err(object.destructive(Some(column), reason.to_owned()))
            }
            Mode::Apply { allow_drop: true } => {
                let key = RowKey::column(&object.name, generation, column);
                self.delete(key);
                self.plan.change.columns_dropped.push((object.name.clone(), column.to_owned()));
                Ok(())
            }
        }
    }

    /// A file of a node that starts may be older than the schema: that is said, and stops nothing.
    fn differs(&mut self, error: SchemaError) -> Result<(), SchemaError> {
        match self.mode {
            Mode::Start => {
                self.plan.change.notes.push(format!("{error}; it stays as it is"));
                Ok(())
            }
            Mode::Apply { .. } => Err(error),
        }
    }

    /// Tells whether a node's file names what was dropped: now, or with an earlier table of the
    /// name. Only somebody who asks for it makes it again.
    fn is_of_the_past(&self, is_known: bool, (kind, table): (Kind, &str), name: &str) -> bool {
        let was_before = || {
            let mut keys = self.rows.keys();
            keys.any(|key| key.kind == kind && key.table == table && key.name == name)
        };
        self.mode == Mode::Start && (is_known || was_before())
    }

    fn note_dropped(&mut self, file: &str, (kind, table): (Kind, &str), name: &str) {
        let kind = kind.as_str();
        self.plan.change.notes.push(format!(
            "table {table}, {kind} {name}: it was dropped and is not made again; take it out of {file}, or make it again with `tribune schema apply`"
        ));
    }

    fn delete(&mut self, key: RowKey) {
        if let Some(row) = self.rows.get_mut(&key) {
            row.length = row.length.saturating_add(1);
        }
        self.plan.writes.push(RowWrite::Delete { key });
    }

    /// Refuses to make a column another one. What only looks different is the same.
    fn check_same(
        &self,
        object: &Object,
        column: &str,
        (held, wanted): (&str, &str),
    ) -> Result<(), SchemaError> {
        if same(held, wanted) {
            return Ok(());
        }
        let shape = |conn: &Connection| -> Result<_, SchemaError> {
            let columns = all_columns_of(conn, &object.name)?;
            Ok(columns.into_iter().find(|shape| shape.name == column))
        };
        if let (Some(held), Some(wanted)) = (shape(self.conn)?, shape(&self.declared.conn)?) {
            self.declared.check_same(self.conn, object, &held, &wanted)?;
        }
        let reason =
            format!("it cannot be changed from {held} to {wanted}; drop it, or add another");
        Err(object.destructive(Some(column), reason))
    }

    fn index(&mut self, object: &Object) -> Result<(), SchemaError> {
        let Some(row) = self.rows.get(&RowKey::table(&object.table)).filter(|row| row.is_alive())
        else {
            return Ok(());
        };
        let generation = generation_of(row.length);
        let definition = super::text::index_text(&object.sql);
        let elsewhere = self.rows.iter().find(|(key, row)| {
            let is_other = key.table != object.table && self.is_present(key);
            key.kind == Kind::Index && key.name == object.name && row.is_alive() && is_other
        });
        if let Some((key, _)) = elsewhere {
            let reason =
                format!("the index {} belongs to table {} already", object.name, key.table);
            return self.differs(object.destructive(None, reason));
        }
        let key = RowKey::index(&object.table, generation, &object.name);
        let is_new = self.plan.change.tables_added.contains(&object.table);
        match self.rows.get(&key) {
            Some(row) if row.is_alive() && same(&row.definition, &definition) => return Ok(()),
            Some(row) if row.is_alive() => {
                if self.mode == Mode::Start {
                    let reason = format!(
                        "the index {} is {} and not {definition}",
                        object.name, row.definition
                    );
                    return self.differs(object.destructive(None, reason));
                }
                self.plan.writes.push(RowWrite::Update { key, definition });
            }
            known
                if !is_new
                    && self.is_of_the_past(
                        known.is_some(),
                        (Kind::Index, &object.table),
                        &object.name,
                    ) =>
            {
                self.note_dropped(&object.file, (Kind::Index, &object.table), &object.name);
                return Ok(());
            }
            Some(_) | None => self.insert(key, definition, 0),
        }
        self.plan.change.indexes_added.push(object.name.clone());
        Ok(())
    }

    /// Tells whether the table that a row belongs to is the one of now.
    fn is_present(&self, key: &RowKey) -> bool {
        let table = self.rows.get(&RowKey::table(&key.table));
        table.is_some_and(|row| row.is_alive() && generation_of(row.length) == key.generation)
    }

    fn drop(&mut self, file: &str, drop: &DropStatement) -> Result<(), SchemaError> {
        if self.mode == Mode::Start {
            let what = if drop.is_table { "TABLE" } else { "INDEX" };
            let note = format!(
                "DROP {what} {} in {file} does nothing when a node starts; `tribune schema apply --allow-drop` drops",
                drop.name
            );
            self.plan.change.notes.push(note);
            return Ok(());
        }
        let name = &self.spelled(drop);
        let refuse = |reason: &str| SchemaError::Destructive {
            file: file.to_owned(),
            table: name.clone(),
            column: None,
            reason: reason.to_owned(),
        };
        if !drop.is_table {
            let found = self.rows.iter().find(|(key, row)| {
                key.kind == Kind::Index
                    && key.name == *name
                    && row.is_alive()
                    && self.is_present(key)
            });
            return match found.map(|(key, _)| key.clone()) {
                Some(key) => {
                    self.delete(key);
                    self.plan.change.indexes_dropped.push(name.clone());
                    Ok(())
                }
                None if drop.if_exists => Ok(()),
                None => Err(refuse("there is no index of this name to drop")),
            };
        }
        if FIXED_TABLES.contains(&&*name.to_ascii_lowercase()) {
            return Err(refuse("every node has it; it cannot be dropped"));
        }
        let key = RowKey::table(name);
        let Some(row) = self.rows.get(&key).filter(|row| row.is_alive()) else {
            let missing = refuse("there is no table of this name to drop");
            return if drop.if_exists { Ok(()) } else { Err(missing) };
        };
        if self.mode != (Mode::Apply { allow_drop: true }) {
            return Err(refuse("DROP TABLE takes its rows away on every node: --allow-drop"));
        }
        let generation = generation_of(row.length);
        let members: Vec<RowKey> = [Kind::Column, Kind::Index]
            .into_iter()
            .flat_map(|kind| members(&self.rows, kind, name, generation))
            .filter(|(_, row)| row.is_alive())
            .map(|(key, _)| key.clone())
            .collect();
        members.into_iter().chain([key]).for_each(|key| self.delete(key));
        self.plan.change.tables_dropped.push(name.clone());
        Ok(())
    }

    /// Returns how the schema spells a name that is to be dropped: to SQLite its case is no matter.
    fn spelled(&self, drop: &DropStatement) -> String {
        let kind = if drop.is_table { Kind::Table } else { Kind::Index };
        let name_of = |key: &RowKey| {
            let name = if drop.is_table { &key.table } else { &key.name };
            name.clone()
        };
        let alive = self.rows.iter().filter(|(key, row)| {
            key.kind == kind && row.is_alive() && (drop.is_table || self.is_present(key))
        });
        let mut names = alive.map(|(key, _)| name_of(key));
        let alike = |name: &String| name.eq_ignore_ascii_case(&drop.name);
        if names.clone().any(|name| name == drop.name) {
            return drop.name.clone();
        }
        names.find(alike).unwrap_or_else(|| drop.name.clone())
    }
}
