//! What a table is, said so that two nodes that were told the same say the same: its key, its
//! columns in their order, and for each the text that defines it.

use rusqlite::Connection;

use super::text::{index_text, mentions, table_text};
use crate::store::tables::{all_columns_of, flags_of};
use crate::store::values::quote;

/// A table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    pub name: String,
    pub key: Vec<String>,
    pub is_strict: bool,
    pub is_without_rowid: bool,
    pub columns: Vec<ColumnText>,
}

/// A column, and what follows its name in CREATE TABLE.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ColumnText {
    pub name: String,
    pub definition: String,
}

/// An index, and what follows its table's name in CREATE INDEX.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct IndexText {
    pub name: String,
    pub table: String,
    pub definition: String,
}

/// Reads a table as SQLite has it.
pub(super) fn shape_of(conn: &Connection, table: &str) -> rusqlite::Result<Shape> {
    let sql: String = conn.query_row(
        "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1",
        [table],
        |row| row.get(0),
    )?;
    let text = table_text(&sql);
    let shapes = all_columns_of(conn, table)?;
    let (is_strict, is_without_rowid) = flags_of(conn, table)?;
    let mut key: Vec<_> = shapes.iter().filter(|column| column.key_place > 0).collect();
    key.sort_by_key(|column| column.key_place);
    let key = key.into_iter().map(|column| column.name.clone()).collect();
    let pairs = shapes.iter().zip(text.columns);
    let mut columns: Vec<ColumnText> = pairs
        .map(|(shape, definition)| ColumnText { name: shape.name.clone(), definition })
        .collect();
    // A CHECK goes with the column that it reads, wherever it stood.
    for check in text.checks {
        let reader = columns.iter().rposition(|column| mentions(&check, &column.name));
        if let Some(column) = columns.get_mut(reader.unwrap_or(0)) {
            column.definition = format!("{} {check}", column.definition).trim().to_owned();
        }
    }
    Ok(Shape { name: table.to_owned(), key, is_strict, is_without_rowid, columns })
}

/// Reads the indexes that somebody made, of one table or of all.
pub(super) fn indexes_of(
    conn: &Connection,
    table: Option<&str>,
) -> rusqlite::Result<Vec<IndexText>> {
    conn.prepare(
        "SELECT name, tbl_name, sql FROM sqlite_schema
         WHERE type = 'index' AND sql IS NOT NULL AND (?1 IS NULL OR tbl_name = ?1) ORDER BY name",
    )?
    .query_map([table], |row| {
        let sql: String = row.get(2)?;
        Ok(IndexText { name: row.get(0)?, table: row.get(1)?, definition: index_text(&sql) })
    })?
    .collect()
}

impl Shape {
    /// Writes the statement that makes the table, under a name of the caller's.
    pub(super) fn create(&self, name: &str) -> String {
        let mut parts: Vec<String> = self.columns.iter().map(ColumnText::sql).collect();
        let key: Vec<String> = self.key.iter().map(|name| quote(name)).collect();
        parts.push(format!("PRIMARY KEY ({})", key.join(", ")));
        let options = match (self.is_strict, self.is_without_rowid) {
            (false, false) => "",
            (true, false) => " STRICT",
            (false, true) => " WITHOUT ROWID",
            (true, true) => " STRICT, WITHOUT ROWID",
        };
        format!("CREATE TABLE {} ({}){options}", quote(name), parts.join(", "))
    }

    /// Returns how many bytes its columns take, with their names.
    pub(super) fn bytes(&self) -> usize {
        let columns = self.columns.iter();
        let key: usize = self.key.iter().map(String::len).sum();
        key + columns.map(|column| column.name.len() + column.definition.len()).sum::<usize>()
    }

    /// Returns the same table with only some of its columns.
    pub(super) fn with(&self, columns: Vec<ColumnText>) -> Self {
        Self { columns, ..self.clone() }
    }

    /// Tells whether the two are made of the same parts beside their columns.
    pub(super) fn has_frame_of(&self, other: &Self) -> bool {
        self.key == other.key
            && self.is_strict == other.is_strict
            && self.is_without_rowid == other.is_without_rowid
    }
}

impl ColumnText {
    /// Writes the column as it stands in CREATE TABLE.
    pub(super) fn sql(&self) -> String {
        format!("{} {}", quote(&self.name), self.definition)
    }
}

impl IndexText {
    /// Writes the statement that makes the index.
    pub(super) fn create(&self) -> String {
        format!("CREATE INDEX {} ON {} {}", quote(&self.name), quote(&self.table), self.definition)
    }
}
