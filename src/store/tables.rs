//! The replicated tables: their shapes as SQLite has them, and the numbers that stand for names.
//! Names outlive shapes: what another node's newer schema knows has a number here already.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension};

use super::affinity::Affinity;
use super::names::Names;
use super::values::{BadValue, Bound, check, quote, read};
use crate::crdt::fingerprint::NameHash;
use crate::crdt::{Class, ColumnId, Name, TableInfo};
use crate::types::Value;

/// The prefix of this node's own tables, which no user may read or write.
pub const INTERNAL_PREFIX: &str = "__tribune_";

/// A number that stands for a table's name on this node.
pub type TableId = u32;

/// A replicated table as SQLite has it.
#[derive(Debug)]
pub struct Table {
    pub id: TableId,
    /// The name under which it travels.
    pub wire: Name,
    pub info: Arc<TableInfo>,
    pub class: Class,
    /// In the order of [`TableInfo::columns`].
    pub columns: Vec<Column>,
    /// The place in `columns` of each column that has a number; `None`: it is not in this table, or
    /// it is of the key, which no cell may stand for.
    pub places: Vec<Option<usize>>,
    pub sql: RowSql,
}

/// A replicated column.
#[derive(Debug)]
pub struct Column {
    pub id: ColumnId,
    /// The name under which it travels.
    pub wire: Name,
    /// Its place in the table, generated columns counted.
    pub cid: usize,
    pub affinity: Affinity,
    pub default: Value,
    pub is_key: bool,
}

/// The statements that read and write one row, whole or in parts.
#[derive(Debug)]
pub struct RowSql {
    /// By the key, in the key's order.
    pub select: String,
    /// All columns, in the order of the table.
    pub insert: String,
    /// The beginning of an update: `UPDATE t`.
    pub update: String,
    /// The middle of an update, for each column: `c = ?`.
    pub set: Vec<String>,
    /// The end of an update: ` WHERE k = ? AND l = ?`, in the key's order.
    pub by_key: String,
    /// By the key, in the key's order.
    pub delete: String,
}

impl Table {
    /// Returns the key's values out of a whole row, in the key's order.
    pub fn key_of<'a>(
        &'a self,
        row: &'a [Value],
    ) -> impl ExactSizeIterator<Item = &'a Value> + Clone {
        self.info.key.iter().map(|&place| &row[place])
    }

    /// Returns the place in [`Table::columns`] of a column's number.
    pub fn place(&self, column: ColumnId) -> Option<usize> {
        self.places.get(usize::from(column.0)).copied().flatten()
    }

    /// Lists the numbers of the non-key columns.
    pub fn cell_ids(&self) -> impl Iterator<Item = ColumnId> + '_ {
        self.columns.iter().filter(|column| !column.is_key).map(|column| column.id)
    }

    /// Finds a column by its name.
    pub fn place_of(&self, name: &str) -> Option<usize> {
        self.info.columns.iter().position(|column| **column == *name)
    }

    /// Tells whether these values can be a row's key: of the right number, and such that SQLite
    /// and the packed key agree on which keys are the same.
    pub fn check_key<'a>(
        &self,
        key: impl IntoIterator<Item = &'a Value, IntoIter: ExactSizeIterator>,
    ) -> Result<(), String> {
        let key = key.into_iter();
        if key.len() != self.info.key.len() {
            let (found, wanted) = (key.len(), self.info.key.len());
            return Err(format!("its key has {found} columns, the table's has {wanted}"));
        }
        for (&place, value) in self.info.key.iter().zip(key) {
            let (column, name) = (&self.columns[place], &self.info.columns[place]);
            match value {
                Value::Null => return Err(format!("key column {name} is NULL")),
                // To SQLite 1.0 and 1 are one key; only a column without a type can hold both.
                Value::Real(_) if column.affinity == Affinity::Blob => {
                    return Err(format!("key column {name} holds a real number; declare it REAL"));
                }
                value if !column.affinity.keeps(value) => {
                    return Err(format!("key column {name} would store {value} as another value"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Tells whether SQLite stores the row as it is, and may replicate it.
    pub fn keeps(&self, row: &[Value]) -> bool {
        let mut cells = self.columns.iter().zip(row);
        cells.all(|(column, value)| column.affinity.keeps(value) && check(value).is_ok())
    }

    /// Makes a row of a key and defaults.
    pub fn blank(&self, key: &[Value]) -> Vec<Value> {
        let mut row: Vec<Value> =
            self.columns.iter().map(|column| column.default.clone()).collect();
        for (&place, value) in self.info.key.iter().zip(key) {
            row[place] = value.clone();
        }
        row
    }

    /// Reads one row by its key; `None`: there is none.
    ///
    /// # Errors
    /// SQLite fails, or a foreign program put something into the row that is no value of ours.
    pub fn read_row(
        &self,
        conn: &Connection,
        key: &[Value],
    ) -> rusqlite::Result<Option<Vec<Value>>> {
        let mut statement = conn.prepare_cached(&self.sql.select)?;
        let params = rusqlite::params_from_iter(key.iter().map(Bound));
        statement.query_row(params, |row| self.collect(row)).optional()
    }

    /// Writes a row that is not there yet.
    pub fn insert_row(&self, conn: &Connection, row: &[Value]) -> rusqlite::Result<()> {
        conn.prepare_cached(&self.sql.insert)?
            .execute(rusqlite::params_from_iter(row.iter().map(Bound)))?;
        Ok(())
    }

    /// Writes what differs of a row, whose key stays. An index is touched only where one of its
    /// columns differs.
    pub fn update_row(
        &self,
        conn: &Connection,
        before: &[Value],
        after: &[Value],
    ) -> rusqlite::Result<()> {
        let mut sql = self.sql.update.clone();
        let mut params = Vec::with_capacity(after.len());
        for (place, (old, new)) in before.iter().zip(after).enumerate() {
            if old != new {
                sql.push_str(if params.is_empty() { " SET " } else { ", " });
                sql.push_str(&self.sql.set[place]);
                params.push(Bound(new));
            }
        }
        if params.is_empty() {
            return Ok(());
        }
        sql.push_str(&self.sql.by_key);
        params.extend(self.key_of(after).map(Bound));
        conn.prepare_cached(&sql)?.execute(rusqlite::params_from_iter(params))?;
        Ok(())
    }

    /// Deletes a row by its key.
    pub fn delete_row(&self, conn: &Connection, key: &[Value]) -> rusqlite::Result<()> {
        conn.prepare_cached(&self.sql.delete)?
            .execute(rusqlite::params_from_iter(key.iter().map(Bound)))?;
        Ok(())
    }

    /// Collects a row that a statement over all columns returns.
    pub fn collect(&self, row: &rusqlite::Row<'_>) -> rusqlite::Result<Vec<Value>> {
        (0..self.columns.len()).map(|index| read_at(row, index)).collect()
    }
}

/// Reads a column of a row that SQLite returned.
pub fn read_at(row: &rusqlite::Row<'_>, index: usize) -> rusqlite::Result<Value> {
    read(row.get_ref(index)?).map_err(|bad| unreadable(index, bad))
}

fn unreadable(index: usize, bad: BadValue) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(bad))
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name under which the table travels.
    pub name: Name,
    /// The hash of that.
    pub hash: NameHash,
    /// The names under which its columns travel, by number.
    pub columns: Vec<Name>,
    /// The hashes of these.
    pub hashes: Vec<NameHash>,
    /// Whether the table was dropped: nothing of it counts any more.
    pub is_dropped: bool,
    /// The columns that were dropped: nothing of them counts any more.
    pub dropped: BTreeSet<ColumnId>,
    /// Whether schema changes made the table, and so may make it another one.
    pub is_managed: bool,
    /// `None`: this node's schema does not have the table.
    pub table: Option<Arc<Table>>,
}

/// All tables by number and by name.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    entries: Vec<Entry>,
    by_wire_name: BTreeMap<Name, TableId>,
    /// The tables that SQLite has.
    by_name: BTreeMap<Name, TableId>,
    names: Names,
}

const SELECT_TABLE_NAMES: &str = "SELECT id, name FROM __tribune_tables ORDER BY id";
const SELECT_COLUMN_NAMES: &str = "SELECT tbl, name FROM __tribune_columns ORDER BY tbl, id";
const INSERT_TABLE_NAME: &str = "INSERT INTO __tribune_tables (id, name) VALUES (?1, ?2)";
const INSERT_COLUMN_NAME: &str =
    "INSERT INTO __tribune_columns (tbl, id, name) VALUES (?1, ?2, ?3)";
const SELECT_REPLICATED: &str = "SELECT name FROM pragma_table_list
    WHERE schema = 'main' AND type = 'table'
      AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE '\\_\\_tribune\\_%' ESCAPE '\\'
    ORDER BY name";

/// Reads the shape of one of this node's own tables, which has no number and is not replicated.
pub fn read_local(conn: &Connection, name: &str) -> rusqlite::Result<Option<Table>> {
    let columns = columns_of(conn, name)?.into_iter().map(|column| column.name.into()).collect();
    let entry = Entry { columns, ..Entry::new(name.into()) };
    read_table(conn, &DefaultProbe::new()?, &Names::default(), (TableId::MAX, name, &entry))
}

impl Tables {
    /// Reads names and shapes. Tables and columns that have no number yet stay without a shape:
    /// see [`Tables::number_all`].
    pub fn read(conn: &Connection) -> rusqlite::Result<Self> {
        let mut tables = Self { names: Names::read(conn)?, ..Self::default() };
        let mut statement = conn.prepare(SELECT_TABLE_NAMES)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let name: String = row.get(1)?;
            tables.push(name.into());
        }
        let mut statement = conn.prepare(SELECT_COLUMN_NAMES)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let name: String = row.get(1)?;
            let id: TableId = row.get(0)?;
            tables.entries[id as usize].push(&tables.names, name.into());
        }
        let probe = DefaultProbe::new()?;
        for name in replicated(conn)? {
            if let Some(id) = tables.id_of(&tables.names.wire_table(&name)) {
                let entry = &tables.entries[id as usize];
                let table = read_table(conn, &probe, &tables.names, (id, &name, entry))?;
                tables.entries[id as usize].table = table.map(Arc::new);
                tables.by_name.insert(name.into(), id);
            }
        }
        Ok(tables)
    }

    /// Tells whether every table that SQLite has is here with its shape.
    pub fn is_complete(&self, conn: &Connection) -> rusqlite::Result<bool> {
        Ok(replicated(conn)?.iter().all(|name| self.get(name).is_some()))
    }

    /// Returns how many names have a number. It grows with each, and nothing else changes between
    /// two changes of the schema.
    pub fn name_count(&self) -> usize {
        self.entries.iter().map(|entry| 1 + entry.columns.len()).sum()
    }

    /// Lists the tables that are known by name only.
    pub fn without_shape(&self) -> impl Iterator<Item = TableId> + '_ {
        (0..).zip(&self.entries).filter(|(_, entry)| entry.table.is_none()).map(|(id, _)| id)
    }

    /// Gives a number to every table and column that SQLite has, and reads them again.
    pub fn number_all(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        let names = Names::read(conn)?;
        for name in replicated(conn)? {
            let wire_table = names.wire_table(&name);
            let id = self.number_table(conn, &wire_table)?;
            for column in columns_of(conn, &name)? {
                let wire_column = names.wire_column(&wire_table, &column.name);
                self.number_column(conn, id, &wire_column.into())?;
            }
        }
        *self = Self::read(conn)?;
        Ok(())
    }

    /// Returns the table's number; an unheard-of name gets the next one.
    pub fn number_table(&mut self, conn: &Connection, name: &str) -> rusqlite::Result<TableId> {
        if let Some(id) = self.id_of(name) {
            return Ok(id);
        }
        let id = self.push(name.into());
        conn.prepare_cached(INSERT_TABLE_NAME)?.execute((id, name))?;
        Ok(id)
    }

    /// Returns the column's number; an unheard-of name gets the table's next one.
    ///
    /// `None`: all numbers are taken, as many as a [`ColumnId`] can be.
    pub fn number_column(
        &mut self,
        conn: &Connection,
        table: TableId,
        name: &Name,
    ) -> rusqlite::Result<Option<ColumnId>> {
        let entry = &mut self.entries[table as usize];
        let columns = &entry.columns;
        if let Some(id) = columns.iter().position(|held| held == name) {
            return Ok(u16::try_from(id).ok().map(ColumnId));
        }
        let Ok(id) = u16::try_from(columns.len()).map(ColumnId) else { return Ok(None) };
        entry.push(&self.names, Arc::clone(name));
        conn.prepare_cached(INSERT_COLUMN_NAME)?.execute((table, id.0, &**name))?;
        Ok(Some(id))
    }

    /// Finds a table that SQLite has.
    pub fn get(&self, name: &str) -> Option<&Arc<Table>> {
        self.entries[*self.by_name.get(name)? as usize].table.as_ref()
    }

    /// Tells which names were dropped.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Returns what a number stands for.
    pub fn entry(&self, id: TableId) -> &Entry {
        &self.entries[id as usize]
    }

    /// Returns what a number stands for that was read from a record; `None`: that is damaged.
    pub fn get_entry(&self, id: TableId) -> Option<&Entry> {
        self.entries.get(id as usize)
    }

    /// Lists all names, in the order of their numbers.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Finds the number of a table's name on the wire.
    pub fn id_of(&self, name: &str) -> Option<TableId> {
        self.by_wire_name.get(name).copied()
    }

    fn push(&mut self, name: Name) -> TableId {
        let id = as_id(self.entries.len());
        self.by_wire_name.insert(Arc::clone(&name), id);
        let is_dropped = self.names.is_table_dropped(&name);
        let is_managed = self.names.is_managed(&name);
        self.entries.push(Entry { is_dropped, is_managed, ..Entry::new(name) });
        id
    }
}

impl Entry {
    fn new(name: Name) -> Self {
        Self {
            hash: NameHash::of(&name),
            name,
            columns: Vec::new(),
            hashes: Vec::new(),
            is_dropped: false,
            dropped: BTreeSet::new(),
            is_managed: false,
            table: None,
        }
    }

    /// Gives a column the next number. The caller knows that there is one.
    fn push(&mut self, names: &Names, column: Name) {
        let is_dropped = names.is_column_dropped(&self.name, &column);
        if let (true, Ok(id)) = (is_dropped, u16::try_from(self.columns.len())) {
            self.dropped.insert(ColumnId(id));
        }
        self.hashes.push(NameHash::of(&column));
        self.columns.push(column);
    }
}

fn as_id(index: usize) -> u32 {
    u32::try_from(index).expect("a database holds fewer than four thousand million names")
}

/// A column as `PRAGMA table_xinfo` shows it.
#[derive(Clone, PartialEq, Debug)]
pub struct ColumnShape {
    pub name: String,
    pub cid: usize,
    pub declared: String,
    pub is_not_null: bool,
    /// The text of the default expression.
    pub default: Option<String>,
    /// From 1; 0: not of the key.
    pub key_place: usize,
    pub is_generated: bool,
}

/// Lists the replicated tables that SQLite has.
pub fn replicated(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    conn.prepare(SELECT_REPLICATED)?.query_map([], |row| row.get(0))?.collect()
}

/// Lists a table's columns, generated ones too.
pub fn all_columns_of(conn: &Connection, table: &str) -> rusqlite::Result<Vec<ColumnShape>> {
    let sql = "SELECT name, cid, type, \"notnull\", dflt_value, pk, hidden
               FROM pragma_table_xinfo(?1) ORDER BY cid";
    conn.prepare(sql)?
        .query_map([table], |row| {
            Ok(ColumnShape {
                name: row.get(0)?,
                cid: place(row, 1)?,
                declared: row.get(2)?,
                is_not_null: row.get(3)?,
                default: row.get(4)?,
                key_place: place(row, 5)?,
                is_generated: row.get::<_, i64>(6)? != 0,
            })
        })?
        .collect()
}

fn place(row: &rusqlite::Row<'_>, index: usize) -> rusqlite::Result<usize> {
    Ok(row.get::<_, u32>(index)? as usize)
}

/// Lists a table's replicated columns.
pub fn columns_of(conn: &Connection, table: &str) -> rusqlite::Result<Vec<ColumnShape>> {
    let mut columns = all_columns_of(conn, table)?;
    columns.retain(|column| !column.is_generated);
    Ok(columns)
}

/// Tells whether a table is `STRICT`, and whether it is `WITHOUT ROWID`.
pub fn flags_of(conn: &Connection, table: &str) -> rusqlite::Result<(bool, bool)> {
    let sql = "SELECT strict, wr FROM pragma_table_list WHERE schema = 'main' AND name = ?1";
    conn.query_row(sql, [table], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// Reads a table's shape; `None` while a column of it has no number.
fn read_table(
    conn: &Connection,
    probe: &DefaultProbe,
    known: &Names,
    (id, name, entry): (TableId, &str, &Entry),
) -> rusqlite::Result<Option<Table>> {
    let shapes = columns_of(conn, name)?;
    let (is_strict, _) = flags_of(conn, name)?;
    let mut key: Vec<usize> =
        (0..shapes.len()).filter(|&place| shapes[place].key_place > 0).collect();
    key.sort_by_key(|&place| shapes[place].key_place);
    let mut places = vec![None; entry.columns.len()];
    let mut names = Vec::new();
    let mut columns = Vec::new();
    for (place, shape) in shapes.iter().enumerate() {
        let wire = known.wire_column(&entry.name, &shape.name);
        let id = entry.columns.iter().position(|name| **name == *wire);
        let Some(id) = id else { return Ok(None) };
        places[id] = (shape.key_place == 0).then_some(place);
        names.push(shape.name.as_str().into());
        let affinity = Affinity::of(&shape.declared, is_strict);
        columns.push(Column {
            id: ColumnId(u16::try_from(id).expect("number_column gives no greater ones")),
            wire: Arc::clone(&entry.columns[id]),
            cid: shape.cid,
            affinity,
            default: probe.value_of(shape.default.as_deref(), affinity)?,
            is_key: shape.key_place > 0,
        });
    }
    let sql = row_sql(name, &names, &key);
    let info = Arc::new(TableInfo { name: name.into(), columns: names, key });
    let wire = Arc::clone(&entry.name);
    Ok(Some(Table { id, wire, info, class: Class::of(name), columns, places, sql }))
}

fn row_sql(table: &str, columns: &[Name], key: &[usize]) -> RowSql {
    let table = quote(table);
    let columns: Vec<String> = columns.iter().map(|name| quote(name)).collect();
    let names = columns.join(", ");
    let set: Vec<String> = columns.iter().map(|name| format!("{name} = ?")).collect();
    let key: Vec<&str> = key.iter().map(|&place| set[place].as_str()).collect();
    let by_key = format!(" WHERE {}", key.join(" AND "));
    let places = vec!["?"; columns.len()].join(", ");
    RowSql {
        select: format!("SELECT {names} FROM {table}{by_key}"),
        insert: format!("INSERT INTO {table} ({names}) VALUES ({places})"),
        update: format!("UPDATE {table}"),
        delete: format!("DELETE FROM {table}{by_key}"),
        by_key,
        set,
    }
}

/// Computes what a default expression stores, in a database of its own.
pub struct DefaultProbe {
    conn: Connection,
}

impl DefaultProbe {
    pub fn new() -> rusqlite::Result<Self> {
        let mut conn = Connection::open_in_memory()?;
        conn.authorizer(Some(|context: rusqlite::hooks::AuthContext<'_>| {
            use rusqlite::hooks::{AuthAction, Authorization};
            // A default that calls a function would be another value on every node.
            match context.action {
                AuthAction::Function { .. } => Authorization::Deny,
                _ => Authorization::Allow,
            }
        }))?;
        conn.execute_batch(
            "CREATE TABLE probe (BLOB BLOB, TEXT TEXT, NUMERIC NUMERIC, INTEGER INTEGER, REAL REAL)",
        )?;
        Ok(Self { conn })
    }

    /// # Errors
    /// The expression is not constant.
    pub fn value_of(&self, default: Option<&str>, affinity: Affinity) -> rusqlite::Result<Value> {
        let Some(default) = default else { return Ok(Value::Null) };
        let column = affinity.declared();
        let sql = format!("INSERT INTO probe ({column}) SELECT ({default}) RETURNING {column}");
        self.conn.query_row(&sql, [], |row| match row.get_ref(0)? {
            ValueRef::Null => Ok(Value::Null),
            value => read(value).map_err(|bad| unreadable(0, bad)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_what_sqlite_would_store() {
        let probe = DefaultProbe::new().unwrap();
        let value = |text, affinity| probe.value_of(Some(text), affinity).unwrap();
        assert_eq!(value("'x'", Affinity::Text), Value::from("x"));
        assert_eq!(value("5", Affinity::Text), Value::from("5"));
        assert_eq!(value("-5", Affinity::Real), Value::Real(-5.0));
        assert_eq!(value("x''", Affinity::Blob), Value::Blob(vec![]));
        assert_eq!(value("true", Affinity::Integer), Value::Integer(1));
        assert_eq!(value("1 + 1", Affinity::Numeric), Value::Integer(2));
        assert_eq!(probe.value_of(None, Affinity::Blob).unwrap(), Value::Null);
        for text in ["random()", "CURRENT_TIMESTAMP", "datetime('now')", "abc"] {
            probe.value_of(Some(text), Affinity::Blob).unwrap_err();
        }
    }
}
