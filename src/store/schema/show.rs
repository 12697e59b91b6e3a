//! The schema for people and programs: every table with the statements that would make it.

use rusqlite::Connection;

use super::carry::asides;
use super::shape::{IndexText, indexes_of, shape_of};
use super::{FIXED_TABLES, SCHEMA_TABLE};
use crate::store::tables::replicated;

/// The replicated tables as they are here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Shown {
    pub tables: Vec<ShownTable>,
    pub asides: Vec<ShownAside>,
}

/// A table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShownTable {
    pub name: String,
    /// Every node has it, and no change of the schema may name it.
    pub is_fixed: bool,
    pub sql: String,
    pub key: Vec<String>,
    /// Each column, and what defines it.
    pub columns: Vec<(String, String)>,
    /// Each index, and the statement that makes it.
    pub indexes: Vec<(String, String)>,
}

/// What the schema describes and this node cannot carry out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShownAside {
    pub kind: String,
    pub table: String,
    pub name: String,
    pub reason: String,
}

/// Reads the schema.
pub fn show(conn: &Connection) -> rusqlite::Result<Shown> {
    let snapshot = conn.unchecked_transaction()?;
    let mut shown = Shown::default();
    for name in replicated(&snapshot)? {
        // How the schema itself is kept is nobody's schema.
        if name == SCHEMA_TABLE {
            continue;
        }
        let shape = shape_of(&snapshot, &name)?;
        let indexes = indexes_of(&snapshot, Some(&name))?;
        let columns = shape.columns.iter();
        shown.tables.push(ShownTable {
            is_fixed: FIXED_TABLES.contains(&&*name),
            sql: shape.create(&name),
            key: shape.key.clone(),
            columns: columns
                .map(|column| (column.name.clone(), column.definition.clone()))
                .collect(),
            indexes: indexes
                .iter()
                .map(|index| (index.name.clone(), IndexText::create(index)))
                .collect(),
            name,
        });
    }
    let rows = asides(&snapshot)?.into_iter();
    shown.asides =
        rows.map(|(kind, table, name, reason)| ShownAside { kind, table, name, reason }).collect();
    Ok(shown)
}
