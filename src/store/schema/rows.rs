//! The schema as rows of a replicated table: how they are read, with the lives they are in.

use std::collections::BTreeMap;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};
use serde_json::json;

use super::shape::Shape;
use crate::crdt::pack;
use crate::store::clocks;
use crate::store::origins::Origins;
use crate::store::tables::Tables;
use crate::types::Value;

/// The table that holds the schema.
pub use crate::crdt::change::SCHEMA_TABLE;

const SELECT: &str = "SELECT kind, tbl, generation, name, definition, place FROM tribune_schema";
const SELECT_LIVES: &str = "SELECT key, clock FROM __tribune_rows WHERE tbl = ?1";
const INSERT: &str = "INSERT INTO tribune_schema (kind, tbl, generation, name, definition, place)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const UPDATE: &str = "UPDATE tribune_schema SET definition = ?5
    WHERE kind = ?1 AND tbl = ?2 AND generation = ?3 AND name = ?4";
const DELETE: &str = "DELETE FROM tribune_schema
    WHERE kind = ?1 AND tbl = ?2 AND generation = ?3 AND name = ?4";

/// What a row is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Table,
    Column,
    Index,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Column => "column",
            Self::Index => "index",
        }
    }

    fn of(text: &str) -> Option<Self> {
        [Self::Table, Self::Column, Self::Index].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// A row's key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RowKey {
    pub kind: Kind,
    pub table: String,
    /// Which of the tables of that name a column or an index belongs to; 0 for tables.
    pub generation: u64,
    /// Empty for tables.
    pub name: String,
}

/// A row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SchemaRow {
    /// The life that it is in: odd, it is there.
    pub length: u64,
    pub definition: String,
    pub place: i64,
    /// Whether the table shows the row, with values of the right types. What another node wrote
    /// may be neither.
    pub is_readable: bool,
}

impl SchemaRow {
    pub fn is_alive(&self) -> bool {
        self.length % 2 == 1
    }
}

/// All rows, the dead ones too.
pub type SchemaRows = BTreeMap<RowKey, SchemaRow>;

/// Lists the columns or indexes of one table, the dropped ones too, by name.
pub(super) fn members<'r>(
    rows: &'r SchemaRows,
    kind: Kind,
    table: &str,
    generation: u64,
) -> impl Iterator<Item = (&'r RowKey, &'r SchemaRow)> + use<'r> {
    let first = RowKey { kind, ..RowKey::column(table, generation, "") };
    rows.range(first.clone()..).take_while(move |(key, _)| {
        key.kind == first.kind && key.table == first.table && key.generation == first.generation
    })
}

/// A change of one row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RowWrite {
    Insert { key: RowKey, definition: String, place: i64 },
    Update { key: RowKey, definition: String },
    Delete { key: RowKey },
}

impl RowKey {
    pub fn table(table: &str) -> Self {
        Self { kind: Kind::Table, table: table.to_owned(), generation: 0, name: String::new() }
    }

    pub fn column(table: &str, generation: u64, name: &str) -> Self {
        let (table, name) = (table.to_owned(), name.to_owned());
        Self { kind: Kind::Column, table, generation, name }
    }

    pub fn index(table: &str, generation: u64, name: &str) -> Self {
        Self { kind: Kind::Index, ..Self::column(table, generation, name) }
    }

    fn read(values: &[Value]) -> Option<Self> {
        let [kind, table, generation, name] = values else { return None };
        let Value::Integer(generation) = generation else { return None };
        Some(Self {
            kind: Kind::of(kind.as_text()?)?,
            table: table.as_text()?.to_owned(),
            generation: generation.cast_unsigned(),
            name: name.as_text()?.to_owned(),
        })
    }
}

/// Reads all rows. What a newer program wrote and this one does not know is left out.
pub fn read_rows(
    conn: &Connection,
    tables: &Tables,
    origins: &Origins,
) -> rusqlite::Result<SchemaRows> {
    let mut rows = SchemaRows::new();
    if tables.get(SCHEMA_TABLE).is_none() {
        return Ok(rows);
    }
    let id = tables.id_of(SCHEMA_TABLE);
    let mut statement = conn.prepare_cached(SELECT_LIVES)?;
    let mut lives = statement.query([id])?;
    while let Some(row) = lives.next()? {
        let key = pack::unpack(row.get_ref(0)?.as_blob()?).unwrap_or_default();
        let length = clocks::decode(origins, row.get_ref(1)?.as_blob()?)?.life().length;
        if let Some(key) = RowKey::read(&key) {
            let (definition, place) = (String::new(), 0);
            rows.insert(key, SchemaRow { length, definition, place, is_readable: false });
        }
    }
    let mut statement = conn.prepare_cached(SELECT)?;
    let mut shown = statement.query([])?;
    while let Some(row) = shown.next()? {
        let Some(held) = key_at(row)?.and_then(|key| rows.get_mut(&key)) else { continue };
        let (Some(definition), Some(place)) = (text_at(row, 4)?, integer_at(row, 5)?) else {
            continue;
        };
        held.definition = definition;
        held.place = place;
        held.is_readable = true;
    }
    Ok(rows)
}

fn key_at(row: &Row<'_>) -> rusqlite::Result<Option<RowKey>> {
    let kind = text_at(row, 0)?.and_then(|kind| Kind::of(&kind));
    let (table, generation, name) = (text_at(row, 1)?, integer_at(row, 2)?, text_at(row, 3)?);
    let parts = (kind, table, generation, name);
    let (Some(kind), Some(table), Some(generation), Some(name)) = parts else { return Ok(None) };
    Ok(Some(RowKey { kind, table, generation: generation.cast_unsigned(), name }))
}

/// Reads a text; `None`: it is something else, as another node may have written it.
fn text_at(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<String>> {
    Ok(match row.get_ref(at)? {
        ValueRef::Text(bytes) => std::str::from_utf8(bytes).ok().map(str::to_owned),
        _ => None,
    })
}

fn integer_at(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<i64>> {
    Ok(match row.get_ref(at)? {
        ValueRef::Integer(number) => Some(number),
        _ => None,
    })
}

/// Writes changes as any client's statement would: what is captured of them travels.
pub fn write_rows(conn: &Connection, writes: &[RowWrite]) -> rusqlite::Result<()> {
    for write in writes {
        let (RowWrite::Insert { key, .. }
        | RowWrite::Update { key, .. }
        | RowWrite::Delete { key }) = write;
        let generation = key.generation.cast_signed();
        let place = (key.kind.as_str(), &key.table, generation, &key.name);
        match write {
            RowWrite::Insert { definition, place: at, .. } => conn
                .prepare_cached(INSERT)?
                .execute((place.0, place.1, place.2, place.3, definition, at))?,
            RowWrite::Update { definition, .. } => conn
                .prepare_cached(UPDATE)?
                .execute((place.0, place.1, place.2, place.3, definition))?,
            RowWrite::Delete { .. } => conn.prepare_cached(DELETE)?.execute(place)?,
        };
    }
    Ok(())
}

/// Writes what a table's row says of it.
pub(super) fn frame_json(shape: &Shape) -> String {
    let Shape { key, is_strict, is_without_rowid, .. } = shape;
    json!({ "key": key, "strict": is_strict, "without_rowid": is_without_rowid }).to_string()
}

/// Reads what a table's row says of it: the table without columns.
pub(super) fn frame_of(name: &str, definition: &str) -> Result<Shape, String> {
    let read = || {
        let json: serde_json::Value = serde_json::from_str(definition).ok()?;
        let key = json["key"].as_array()?.iter().map(|name| name.as_str().map(str::to_owned));
        Some(Shape {
            name: name.to_owned(),
            key: key.collect::<Option<Vec<String>>>()?,
            is_strict: json["strict"].as_bool()?,
            is_without_rowid: json["without_rowid"].as_bool()?,
            columns: Vec::new(),
        })
    };
    read().ok_or_else(|| "its row in tribune_schema cannot be read".to_owned())
}
