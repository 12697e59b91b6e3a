//! What the rows of the schema come to: a pure function of them, so that nodes that hold the same
//! rows make the same tables, whatever came first.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::limits::{
    DEFINITION_BYTES_MAX, INDEXES_MAX, ROUNDS_MAX, SCHEMA_BYTES_MAX, TABLE_BYTES_MAX, TABLES_MAX,
};
use super::rows::{Kind, RowKey, SchemaRow, SchemaRows, frame_of, members};
use super::rules::{check_name, is_own};
use super::shape::{ColumnText, IndexText, Shape, indexes_of, shape_of};
use super::{Schema, Source};
use crate::store::limits::COLUMNS_MAX;
use crate::store::names::generation_of;

/// Something that the schema describes and this node cannot carry out.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Aside {
    pub kind: Kind,
    pub table: String,
    /// The column or index; empty for a table.
    pub name: String,
    pub reason: String,
}

/// A table that is to be here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct WantedTable {
    pub generation: u64,
    pub shape: Shape,
    /// The generation of each column.
    pub generations: Vec<u64>,
    pub indexes: Vec<IndexText>,
}

/// Reads the tables that are to be here out of the rows. Names that differ in case only are one to
/// SQLite: the first of them stays.
pub(super) fn wanted(rows: &SchemaRows) -> (Vec<WantedTable>, Vec<Aside>) {
    let (mut tables, mut asides) = (Vec::new(), Vec::new());
    let mut taken: BTreeSet<String> = BTreeSet::new();
    for (key, row) in rows.iter().filter(|(key, row)| key.kind == Kind::Table && row.is_alive()) {
        let name = &key.table;
        let lower = name.to_ascii_lowercase();
        let frame = if let Err(reason) = readable(row).and_then(|()| check_name(name)) {
            Err(reason)
        } else if is_own(name) {
            Err("its name is one of this program's own".to_owned())
        } else if !taken.insert(lower) {
            Err("another table has the name but for its case".to_owned())
        } else {
            frame_of(name, &row.definition)
        };
        match frame {
            Ok(_) if tables.len() == TABLES_MAX => {
                let reason = format!("there may be {TABLES_MAX} tables at most");
                asides.push(aside_of(key, reason));
            }
            Ok(frame) => tables.push(table_of(rows, frame, generation_of(row.length), &mut asides)),
            Err(reason) => asides.push(aside_of(key, reason)),
        }
    }
    // Tables and indexes share their names, too.
    for table in &mut tables {
        let generation = table.generation;
        table.indexes.retain(|index| {
            let is_free = taken.insert(index.name.to_ascii_lowercase());
            if !is_free {
                let key = RowKey::index(&index.table, generation, &index.name);
                let reason = "another table or index has the name but for its case";
                asides.push(aside_of(&key, reason.to_owned()));
            }
            is_free
        });
    }
    let mut bytes = 0;
    tables.retain_mut(|table| {
        bytes += table.shape.bytes();
        if bytes > SCHEMA_BYTES_MAX {
            let reason = format!("the schema takes more than {SCHEMA_BYTES_MAX} bytes");
            asides.push(aside_of(&RowKey::table(&table.shape.name), reason));
            return false;
        }
        let generation = table.generation;
        table.indexes.retain(|index| {
            bytes += index.definition.len();
            if bytes > SCHEMA_BYTES_MAX {
                let reason = format!("the schema takes more than {SCHEMA_BYTES_MAX} bytes");
                let key = RowKey::index(&index.table, generation, &index.name);
                asides.push(aside_of(&key, reason));
            }
            bytes <= SCHEMA_BYTES_MAX
        });
        true
    });
    (tables, asides)
}

fn readable(row: &SchemaRow) -> Result<(), String> {
    let reason = "its row in tribune_schema cannot be read";
    if row.is_readable { Ok(()) } else { Err(reason.to_owned()) }
}

/// Says what is wrong with a row of a column or an index, whatever else there is.
fn check_row(key: &RowKey, row: &SchemaRow) -> Result<(), String> {
    readable(row)?;
    check_name(&key.name)?;
    if row.definition.len() > DEFINITION_BYTES_MAX {
        return Err(format!("its definition is longer than {DEFINITION_BYTES_MAX} bytes"));
    }
    Ok(())
}

fn table_of(
    rows: &SchemaRows,
    frame: Shape,
    generation: u64,
    asides: &mut Vec<Aside>,
) -> WantedTable {
    let alive =
        |kind| members(rows, kind, &frame.name, generation).filter(|(_, row)| row.is_alive());
    let mut columns: Vec<(&RowKey, &SchemaRow)> = alive(Kind::Column).collect();
    columns.sort_by_key(|(key, row)| (row.place, &key.name));
    let mut taken = BTreeSet::new();
    let (mut count, mut bytes) = (0, 0);
    let mut is_wanted = |key: &RowKey, row: &SchemaRow| {
        check_row(key, row)?;
        if !taken.insert(key.name.to_ascii_lowercase()) {
            return Err("another column has the name but for its case".to_owned());
        }
        count += 1;
        bytes += key.name.len() + row.definition.len();
        if count > COLUMNS_MAX {
            return Err(format!("its table has more than {COLUMNS_MAX} columns"));
        }
        if bytes > TABLE_BYTES_MAX {
            return Err(format!("its table takes more than {TABLE_BYTES_MAX} bytes to define"));
        }
        Ok(())
    };
    columns.retain(|(key, row)| {
        let wanted = is_wanted(key, row);
        wanted.map_err(|reason| asides.push(aside_of(key, reason))).is_ok()
    });
    let mut indexes = Vec::new();
    for (key, row) in alive(Kind::Index) {
        let wanted = check_row(key, row).and_then(|()| {
            let is_full = indexes.len() == INDEXES_MAX;
            let reason = || format!("its table has more than {INDEXES_MAX} indexes");
            if is_full { Err(reason()) } else { Ok(()) }
        });
        if let Err(reason) = wanted {
            asides.push(aside_of(key, reason));
            continue;
        }
        let (name, table) = (key.name.clone(), key.table.clone());
        indexes.push(IndexText { name, table, definition: row.definition.clone() });
    }
    let texts = columns.iter().map(|(key, row)| {
        let (name, definition) = (key.name.clone(), row.definition.clone());
        ColumnText { name, definition }
    });
    WantedTable {
        generation,
        generations: columns.iter().map(|(_, row)| generation_of(row.length)).collect(),
        indexes,
        shape: frame.with(texts.collect()),
    }
}

fn aside_of(key: &RowKey, reason: String) -> Aside {
    Aside { kind: key.kind, table: key.table.clone(), name: key.name.clone(), reason }
}

impl WantedTable {
    /// Leaves out what SQLite or the rules refuse: columns that two nodes added may not go
    /// together. `None`: not even the key can be made.
    pub(super) fn accepted(&self, asides: &mut Vec<Aside>) -> Option<Self> {
        if check(&self.shape, &self.indexes).is_ok() {
            return Some(self.clone());
        }
        let is_key = |column: &ColumnText| self.shape.key.contains(&column.name);
        let mut is_in: Vec<bool> = self.shape.columns.iter().map(is_key).collect();
        if let Err(reason) = check(&self.part(&is_in), &[]) {
            let key = RowKey::table(&self.shape.name);
            asides.push(aside_of(&key, reason));
            return None;
        }
        // A generated column may need one that stands after it.
        let mut reasons = vec![String::new(); is_in.len()];
        for _ in 0..ROUNDS_MAX {
            let before = is_in.clone();
            for at in 0..is_in.len() {
                if is_in[at] {
                    continue;
                }
                is_in[at] = true;
                if let Err(reason) = check(&self.part(&is_in), &[]) {
                    is_in[at] = false;
                    reasons[at] = reason;
                }
            }
            if is_in == before {
                break;
            }
        }
        let shape = self.part(&is_in);
        for (at, column) in self.shape.columns.iter().enumerate().filter(|(at, _)| !is_in[*at]) {
            let key = RowKey::column(&self.shape.name, self.generation, &column.name);
            asides.push(aside_of(&key, std::mem::take(&mut reasons[at])));
        }
        let mut indexes = Vec::new();
        for index in &self.indexes {
            match check(&shape, std::slice::from_ref(index)) {
                Ok(()) => indexes.push(index.clone()),
                Err(reason) => {
                    let key = RowKey::index(&index.table, self.generation, &index.name);
                    asides.push(aside_of(&key, reason));
                }
            }
        }
        let generations = self.generations.iter().zip(&is_in).filter(|(_, is_in)| **is_in);
        let generations = generations.map(|(generation, _)| *generation).collect();
        Some(Self { generation: self.generation, shape, generations, indexes })
    }

    fn part(&self, is_in: &[bool]) -> Shape {
        let columns = self.shape.columns.iter().zip(is_in).filter(|(_, is_in)| **is_in);
        self.shape.with(columns.map(|(column, _)| column.clone()).collect())
    }
}

/// Makes the table in a database of its own, and holds it to the rules. Whatever a definition says,
/// the writer goes on.
fn check(shape: &Shape, indexes: &[IndexText]) -> Result<(), String> {
    let checked = catch_unwind(AssertUnwindSafe(|| check_caught(shape, indexes)));
    checked.unwrap_or_else(|_| {
        Err("its definition brought this program to a fault of its own; please report it"
            .to_owned())
    })
}

fn check_caught(shape: &Shape, indexes: &[IndexText]) -> Result<(), String> {
    let mut sql = shape.create(&shape.name);
    for index in indexes {
        sql.push_str(";\n");
        sql.push_str(&index.create());
    }
    let source = Source { file: "tribune_schema".to_owned(), sql };
    let schema = Schema::parse_made(&[(source, false)]).map_err(|error| error.reason())?;
    // A definition may hold anything. It counts only where it says what it seems to say.
    let read = || -> rusqlite::Result<bool> {
        let is_alone = schema.tables.len() == 1;
        let mut found = indexes_of(&schema.conn, None)?;
        found.retain(|index| !indexes.contains(index));
        Ok(is_alone && found.is_empty() && shape_of(&schema.conn, &shape.name)? == *shape)
    };
    if read().unwrap_or(false) {
        Ok(())
    } else {
        Err("its definition is not in the form that this program writes".to_owned())
    }
}

/// Holds a text against the rules wherever another node's rows may have it.
#[cfg(test)]
pub(super) fn check_never_panics(text: &str) {
    let column = |name: &str, definition: &str| ColumnText {
        name: name.to_owned(),
        definition: definition.to_owned(),
    };
    let shape = Shape {
        name: "t".to_owned(),
        key: vec!["id".to_owned()],
        is_strict: false,
        is_without_rowid: false,
        columns: vec![column("id", "INT NOT NULL")],
    };
    let columns = vec![column("id", "INT NOT NULL"), column("w", text)];
    let _ = check_caught(&shape.with(columns), &[]);
    let _ = check_caught(&Shape { name: text.to_owned(), ..shape.clone() }, &[]);
    for (name, definition) in [("i", text), (text, "( id )")] {
        let (name, table) = (name.to_owned(), "t".to_owned());
        let index = IndexText { name, table, definition: definition.to_owned() };
        let _ = check_caught(&shape, &[index]);
    }
}
