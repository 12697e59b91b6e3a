//! What the rows of the schema come to: a pure function of them, so that nodes that hold the same
//! rows make the same tables, whatever came first.

use std::collections::BTreeSet;

use super::rows::{Kind, RowKey, SchemaRow, SchemaRows, frame_of};
use super::rules::is_own;
use super::shape::{ColumnText, IndexText, Shape, indexes_of, shape_of};
use super::{Schema, Source};
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
        let frame = if is_own(name) {
            Err("its name is one of this program's own".to_owned())
        } else if !taken.insert(lower) {
            Err("another table has the name but for its case".to_owned())
        } else {
            frame_of(name, &row.definition)
        };
        match frame {
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
    (tables, asides)
}

fn table_of(
    rows: &SchemaRows,
    frame: Shape,
    generation: u64,
    asides: &mut Vec<Aside>,
) -> WantedTable {
    let of_table = |kind| {
        let first = RowKey { kind, ..RowKey::column(&frame.name, generation, "") };
        let (table, from) = (frame.name.clone(), first.clone());
        rows.range(from..).take_while(move |(key, _)| {
            key.kind == first.kind && key.table == table && key.generation == generation
        })
    };
    let mut columns: Vec<(&RowKey, &SchemaRow)> =
        of_table(Kind::Column).filter(|(_, row)| row.is_alive()).collect();
    columns.sort_by_key(|(key, row)| (row.place, &key.name));
    let mut taken = BTreeSet::new();
    columns.retain(|(key, _)| {
        let is_free = taken.insert(key.name.to_ascii_lowercase());
        if !is_free {
            let reason = "another column has the name but for its case";
            asides.push(aside_of(key, reason.to_owned()));
        }
        is_free
    });
    let indexes = of_table(Kind::Index).filter(|(_, row)| row.is_alive()).map(|(key, row)| {
        let (name, table) = (key.name.clone(), key.table.clone());
        IndexText { name, table, definition: row.definition.clone() }
    });
    let texts = columns.iter().map(|(key, row)| {
        let (name, definition) = (key.name.clone(), row.definition.clone());
        ColumnText { name, definition }
    });
    WantedTable {
        generation,
        generations: columns.iter().map(|(_, row)| generation_of(row.length)).collect(),
        indexes: indexes.collect(),
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
        loop {
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

/// Makes the table in a database of its own, and holds it to the rules.
fn check(shape: &Shape, indexes: &[IndexText]) -> Result<(), String> {
    let mut sql = shape.create(&shape.name);
    for index in indexes {
        sql.push_str(";\n");
        sql.push_str(&index.create());
    }
    let source = Source { file: "tribune_schema".to_owned(), sql };
    let schema = Schema::parse(&[source]).map_err(|error| error.reason())?;
    // A definition may hold anything. It counts only where it says what it seems to say.
    let read = || -> rusqlite::Result<bool> {
        let is_alone = schema.tables.len() == 1 && schema.drops.is_empty();
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
