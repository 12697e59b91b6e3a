//! Brings SQLite's tables in line with the rows of the schema, within the transaction that wrote
//! the rows. Whatever the rows say, this fails only if the database does: what cannot be carried
//! out is kept aside, and no value that was not dropped is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rusqlite::{Connection, ErrorCode};

use super::rows::{Kind, RowKey, SCHEMA_TABLE, SchemaRows, read_rows};
use super::rules::{check_name, is_own};
use super::shape::{IndexText, Shape, indexes_of, shape_of};
use super::wanted::{Aside, WantedTable, wanted};
use crate::crdt::Key;
use crate::store::names::{Known, Names, wire};
use crate::store::origins::Origins;
use crate::store::tables::{TableId, Tables, all_columns_of, columns_of, replicated};
use crate::store::values::quote;
use crate::store::{clocks, parked};

/// The name under which a table is built that takes another's place.
const NEW_TABLE: &str = "__tribune_new";

/// How many rows are parked at a time.
const ROWS_AT_ONCE: i64 = 1_000;

const SELECT_KEYS: &str = "SELECT key, clock FROM __tribune_rows
    WHERE tbl = ?1 AND key > ?2 ORDER BY key LIMIT ?3";
const DELETE_ASIDES: &str = "DELETE FROM __tribune_asides";
const INSERT_ASIDE: &str =
    "INSERT OR REPLACE INTO __tribune_asides (kind, tbl, name, reason) VALUES (?1, ?2, ?3, ?4)";
const SELECT_ASIDES: &str = "SELECT kind, tbl, name, reason FROM __tribune_asides ORDER BY 1, 2, 3";

/// What was done.
#[derive(Debug, Default)]
pub struct Carried {
    /// The tables, by their names in SQLite, whose rows must all be shown anew.
    pub whole: BTreeSet<String>,
    /// Those of them that were here before: to who watches, their rows are as they were.
    pub rebuilt: BTreeSet<String>,
    pub asides: Vec<Aside>,
}

/// A table as it is here.
#[derive(Debug)]
struct Held {
    shape: Shape,
    generation: u64,
    /// The generation of each column.
    generations: Vec<u64>,
}

/// See the module. `tables` are as they were before.
pub fn carry_out(
    conn: &Connection,
    tables: &Tables,
    origins: &Origins,
) -> rusqlite::Result<Carried> {
    let rows = read_rows(conn, tables, origins)?;
    let before = Names::read(conn)?;
    let held = held_tables(conn, &rows, &before)?;
    let (wanted, mut asides) = wanted(&rows);
    let mut carried = Carried::default();
    let indexes = indexes_of(conn, None)?;
    let mut done: Vec<WantedTable> = Vec::new();
    for table in wanted {
        let now = held.get(&table.shape.name);
        let is_as_it_is = now.is_some_and(|held| held.is(&table)) && has(&indexes, &table);
        let table = if is_as_it_is { Some(table) } else { table.accepted(&mut asides) };
        done.extend(table);
    }
    drop_indexes(conn, &held, &indexes, &done)?;
    let mut conveyor = Conveyor { conn, tables, origins, rows: &rows, carried: &mut carried };
    for (name, held) in &held {
        let is_kept = done
            .iter()
            .any(|table| table.shape.name == *name && table.generation == held.generation);
        if !is_kept {
            conveyor.remove(held)?;
        }
    }
    let mut here = Vec::new();
    for table in done {
        let now = held.get(&table.shape.name).filter(|held| held.generation == table.generation);
        match conveyor.make(now, &table)? {
            Ok(()) => here.push(table),
            Err(reason) => {
                asides.push(Aside {
                    kind: Kind::Table,
                    table: table.shape.name.clone(),
                    name: String::new(),
                    reason,
                });
                // What was here stays as it was.
                here.extend(now.map(Held::as_wanted));
            }
        }
    }
    make_indexes(conn, &here, &mut asides)?;
    names_of(&rows, &here).write(conn)?;
    asides.sort();
    asides.dedup();
    write_asides(conn, &asides)?;
    carried.asides = asides;
    Ok(carried)
}

/// Reads what is kept aside.
pub fn asides(conn: &Connection) -> rusqlite::Result<Vec<(String, String, String, String)>> {
    conn.prepare_cached(SELECT_ASIDES)?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect()
}

fn write_asides(conn: &Connection, asides: &[Aside]) -> rusqlite::Result<()> {
    conn.prepare_cached(DELETE_ASIDES)?.execute([])?;
    let mut statement = conn.prepare_cached(INSERT_ASIDE)?;
    for aside in asides {
        let Aside { kind, table, name, reason } = aside;
        statement.execute((kind.as_str(), table, name, reason))?;
    }
    Ok(())
}

/// Lists the tables that schema changes made, as SQLite has them.
fn held_tables(
    conn: &Connection,
    rows: &SchemaRows,
    names: &Names,
) -> rusqlite::Result<BTreeMap<String, Held>> {
    let mut held = BTreeMap::new();
    for name in replicated(conn)? {
        if is_own(&name) || !rows.contains_key(&RowKey::table(&name)) {
            continue;
        }
        let shape = shape_of(conn, &name)?;
        let generation = names.held_table(&name);
        let wire_table = wire(&name, generation);
        let columns = shape.columns.iter();
        let generations =
            columns.map(|column| names.held_column(&wire_table, &column.name)).collect();
        held.insert(name, Held { shape, generation, generations });
    }
    Ok(held)
}

fn has(indexes: &[IndexText], table: &WantedTable) -> bool {
    table.indexes.iter().all(|index| indexes.contains(index))
}

/// Drops the indexes that are not to be, and those of tables that change: an index holds no data.
fn drop_indexes(
    conn: &Connection,
    held: &BTreeMap<String, Held>,
    indexes: &[IndexText],
    wanted: &[WantedTable],
) -> rusqlite::Result<()> {
    for index in indexes.iter().filter(|index| held.contains_key(&index.table)) {
        let is_kept = wanted.iter().any(|table| table.indexes.contains(index));
        if !is_kept {
            conn.execute(&format!("DROP INDEX {}", quote(&index.name)), [])?;
        }
    }
    Ok(())
}

fn make_indexes(
    conn: &Connection,
    tables: &[WantedTable],
    asides: &mut Vec<Aside>,
) -> rusqlite::Result<()> {
    let held = indexes_of(conn, None)?;
    for index in tables.iter().flat_map(|table| &table.indexes) {
        if held.contains(index) {
            continue;
        }
        if let Err(reason) = attempt(conn, || conn.execute(&index.create(), []).map(drop))? {
            asides.push(Aside {
                kind: Kind::Index,
                table: index.table.clone(),
                name: index.name.clone(),
                reason,
            });
        }
    }
    Ok(())
}

/// Notes what the rows say of each name, and what of it is here now.
fn names_of(rows: &SchemaRows, here: &[WantedTable]) -> Names {
    let mut names = Names::default();
    // Whatever a row says of them, this program's own tables stay as they are.
    let is_named = |key: &RowKey| !is_own(&key.table) && check_name(&key.table).is_ok();
    for (key, row) in rows.iter().filter(|(key, _)| is_named(key)) {
        let known = Known { length: row.length, held: 0 };
        match key.kind {
            Kind::Table => drop(names.tables.insert(key.table.clone(), known)),
            Kind::Column if check_name(&key.name).is_ok() => {
                let table = wire(&key.table, key.generation);
                names.columns.insert((table, key.name.clone()), known);
            }
            Kind::Column | Kind::Index => {}
        }
    }
    for table in here {
        let name = &table.shape.name;
        let columns = table.shape.columns.iter().map(|column| column.name.clone());
        let columns = columns.zip(table.generations.iter().copied());
        let wire_table = wire(name, table.generation);
        if let Some(known) = names.tables.get_mut(name) {
            known.held = table.generation;
        }
        for (column, generation) in columns {
            if let Some(known) = names.columns.get_mut(&(wire_table.clone(), column)) {
                known.held = generation;
            }
        }
    }
    names
}

impl Held {
    /// Says the table as it is, without its indexes.
    fn as_wanted(&self) -> WantedTable {
        WantedTable {
            generation: self.generation,
            shape: self.shape.clone(),
            generations: self.generations.clone(),
            indexes: Vec::new(),
        }
    }

    fn is(&self, wanted: &WantedTable) -> bool {
        self.generation == wanted.generation
            && self.generations == wanted.generations
            && self.shape == wanted.shape
    }
}

struct Conveyor<'a> {
    conn: &'a Connection,
    tables: &'a Tables,
    origins: &'a Origins,
    rows: &'a SchemaRows,
    carried: &'a mut Carried,
}

impl Conveyor<'_> {
    /// Removes a table. Unless it was dropped, its values are parked.
    fn remove(&mut self, held: &Held) -> rusqlite::Result<()> {
        let row = self.rows.get(&RowKey::table(&held.shape.name));
        let is_dropped = row.is_some_and(|row| row.length / 2 >= held.generation);
        if !is_dropped {
            self.park_all(&held.shape.name)?;
        }
        self.conn.execute(&format!("DROP TABLE {}", quote(&held.shape.name)), [])?;
        Ok(())
    }

    /// Makes a table, or makes one of what is held. Says why SQLite refuses it.
    fn make(
        &mut self,
        held: Option<&Held>,
        wanted: &WantedTable,
    ) -> rusqlite::Result<Result<(), String>> {
        let conn = self.conn;
        let name = &wanted.shape.name;
        let Some(held) = held else {
            self.carried.whole.insert(name.clone());
            return attempt(conn, || conn.execute(&wanted.shape.create(name), []).map(drop));
        };
        if held.is(wanted) {
            return Ok(Ok(()));
        }
        if held.shape.has_frame_of(&wanted.shape) {
            if attempt(conn, || self.add_columns(held, wanted))?.is_ok() {
                return Ok(Ok(()));
            }
            let loses = self.loses_generated(held, wanted)?;
            if attempt(conn, || self.copy(held, wanted))?.is_ok() {
                if loses {
                    self.carried.whole.insert(name.clone());
                }
                return Ok(Ok(()));
            }
        }
        // Nothing goes before it is known that what takes its place can be made.
        let made = attempt(conn, || {
            conn.execute(&wanted.shape.create(NEW_TABLE), [])?;
            self.park_all(name)?;
            conn.execute(&format!("DROP TABLE {}", quote(name)), [])?;
            conn.execute(&format!("ALTER TABLE {NEW_TABLE} RENAME TO {}", quote(name)), [])?;
            Ok(())
        })?;
        if made.is_err() {
            return Ok(made);
        }
        self.carried.whole.insert(name.clone());
        self.carried.rebuilt.insert(name.clone());
        Ok(Ok(()))
    }

    /// Adds columns at the end: the default applies to every row by itself, nothing is written.
    fn add_columns(&self, held: &Held, wanted: &WantedTable) -> rusqlite::Result<()> {
        let count = held.shape.columns.len();
        let is_prefix = wanted.shape.columns.get(..count) == Some(&held.shape.columns[..])
            && wanted.generations[..count] == held.generations[..];
        if !is_prefix {
            return Err(rusqlite::Error::InvalidQuery);
        }
        for column in &wanted.shape.columns[count..] {
            let table = quote(&held.shape.name);
            self.conn.execute(&format!("ALTER TABLE {table} ADD COLUMN {}", column.sql()), [])?;
        }
        Ok(())
    }

    /// Builds the table anew and copies what stays of each row. It is given up where a column
    /// becomes another one, or goes without having been dropped: values have to be looked at.
    fn copy(&self, held: &Held, wanted: &WantedTable) -> rusqlite::Result<()> {
        let conn = self.conn;
        let is_same = |at: usize, to: usize| {
            held.shape.columns[at].name == wanted.shape.columns[to].name
                && held.generations[at] == wanted.generations[to]
        };
        let mut stays = Vec::new();
        for (at, column) in held.shape.columns.iter().enumerate() {
            match (0..wanted.shape.columns.len()).find(|to| is_same(at, *to)) {
                Some(to) if wanted.shape.columns[to] == *column => stays.push(column.name.clone()),
                Some(_) => return Err(rusqlite::Error::InvalidQuery),
                None if self.is_dropped(held, at) => {}
                None => return Err(rusqlite::Error::InvalidQuery),
            }
        }
        conn.execute(&wanted.shape.create(NEW_TABLE), [])?;
        let plain: BTreeSet<String> =
            columns_of(conn, NEW_TABLE)?.into_iter().map(|column| column.name).collect();
        let names: Vec<String> =
            stays.iter().filter(|name| plain.contains(*name)).map(|name| quote(name)).collect();
        let (names, table) = (names.join(", "), quote(&held.shape.name));
        conn.execute(
            &format!("INSERT INTO {NEW_TABLE} ({names}) SELECT {names} FROM {table}"),
            [],
        )?;
        conn.execute(&format!("DROP TABLE {table}"), [])?;
        conn.execute(&format!("ALTER TABLE {NEW_TABLE} RENAME TO {table}"), [])?;
        Ok(())
    }

    /// Tells whether a generated column goes. It may have kept rows from being shown that have no
    /// value of their own by which they are found.
    fn loses_generated(&self, held: &Held, wanted: &WantedTable) -> rusqlite::Result<bool> {
        let columns = all_columns_of(self.conn, &held.shape.name)?;
        let stays = |name: &str| wanted.shape.columns.iter().any(|column| column.name == name);
        Ok(columns.iter().any(|column| column.is_generated && !stays(&column.name)))
    }

    fn is_dropped(&self, held: &Held, at: usize) -> bool {
        let name = &held.shape.columns[at].name;
        let row = self.rows.get(&RowKey::column(&held.shape.name, held.generation, name));
        row.is_some_and(|row| row.length / 2 >= held.generations[at])
    }

    /// Puts every value of a table aside, from where it is shown again as far as it fits.
    fn park_all(&self, name: &str) -> rusqlite::Result<()> {
        let Some(table) = self.tables.get(name) else { return Ok(()) };
        let mut from: Key = Key::from([]);
        loop {
            let rows = keys_after(self.conn, self.origins, table.id, &from)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            from = last.clone();
            for (key, clock) in rows {
                let values = crate::crdt::pack::unpack(&key).unwrap_or_default();
                if !clock.is_alive() || table.check_key(&values).is_err() {
                    continue;
                }
                let Some(row) = table.read_row(self.conn, &values)? else { continue };
                let mut aside = parked::read(self.conn, table.id, &key)?;
                for (id, _) in clock.cells() {
                    if let Some(place) = table.place(id) {
                        aside.entry(id).or_insert_with(|| row[place].clone());
                    }
                }
                let aside = aside.iter().map(|(id, value)| (*id, value, None));
                parked::write(self.conn, (table.id, &key), aside)?;
            }
        }
    }
}

/// Lists keys and clocks of a table, some at a time.
fn keys_after(
    conn: &Connection,
    origins: &Origins,
    table: TableId,
    from: &Key,
) -> rusqlite::Result<Vec<(Key, crate::crdt::RowClock)>> {
    let mut statement = conn.prepare_cached(SELECT_KEYS)?;
    let mut rows = statement.query((table, &**from, ROWS_AT_ONCE))?;
    let mut keys = Vec::new();
    while let Some(row) = rows.next()? {
        let key: Key = row.get_ref(0)?.as_blob()?.into();
        keys.push((key, clocks::decode(origins, row.get_ref(1)?.as_blob()?)?));
    }
    Ok(keys)
}

/// Does some work whole or not at all. Says why it was refused, unless the database itself fails.
fn attempt(
    conn: &Connection,
    work: impl FnOnce() -> rusqlite::Result<()>,
) -> rusqlite::Result<Result<(), String>> {
    conn.execute_batch("SAVEPOINT attempt")?;
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let reason = "it brought this program to a fault of its own; please report it";
        Err(rusqlite::Error::InvalidParameterName(reason.to_owned()))
    });
    match result {
        Ok(()) => {
            conn.execute_batch("RELEASE attempt")?;
            Ok(Ok(()))
        }
        Err(error) if is_fatal(&error) => Err(error),
        Err(error) => {
            conn.execute_batch("ROLLBACK TO attempt; RELEASE attempt")?;
            Ok(Err(error.to_string()))
        }
    }
}

fn is_fatal(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::DiskFull
                | ErrorCode::OutOfMemory
                | ErrorCode::ReadOnly
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::OperationInterrupted
        )
    )
}

/// Tells whether a table is the one that holds the schema.
pub fn is_schema(table: &str) -> bool {
    table == SCHEMA_TABLE
}
