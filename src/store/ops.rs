//! Row operations carried out as statements. What they change is captured like any other change.

use std::sync::Arc;

use rusqlite::Connection;

use super::clocks;
use super::database::Store;
use super::tables::Table;
use super::values::{Bound, quote};
use crate::crdt::change::{OWN_ROWS_MAX, owns};
use crate::crdt::storage::StorageError;
use crate::crdt::{Class, Refusal, RowClock, RowOp, pack};
use crate::types::{Epoch, Value};

type Columns<'a> = &'a [(&'static str, Value)];

/// Carries out one operation.
pub fn carry_out(store: &Store, op: &RowOp) -> Result<(), StorageError> {
    let conn = &store.conn;
    let find = |name: &str| {
        let is_local = *store.local.info.name == *name;
        let table = if is_local { Some(&store.local) } else { store.tables.get(name) };
        table.ok_or_else(|| Refusal(format!("there is no table {name}")))
    };
    match op {
        RowOp::Put { table, row, keep } => put(store, find(table)?, row, keep),
        RowOp::Set { table, matching, set } => set_all(store, find(table)?, matching, set),
        RowOp::Delete { table, matching, except } => {
            delete(conn, find(table)?, matching, except.as_ref())
        }
        RowOp::Require { table, matching, otherwise } => {
            let is_there = !find_rows(conn, find(table)?, matching, Some(1))?.is_empty();
            if is_there { Ok(()) } else { Err(otherwise.clone().into()) }
        }
        RowOp::Renew { from } => {
            for (table, row) in own_rows(store, |epoch| epoch == *from).map_err(sort)? {
                store.capture.log_renewal(&table, row);
            }
            Ok(())
        }
        RowOp::Withdraw => {
            let present = store.now.origin.epoch;
            for (table, row) in own_rows(store, |epoch| epoch < present).map_err(sort)? {
                let key: Vec<Value> = table.key_of(&row).cloned().collect();
                table.delete_row(conn, &key).map_err(sort)?;
            }
            Ok(())
        }
    }
}

/// Lists this node's own rows that stand under one of these epochs: at most [`OWN_ROWS_MAX`].
fn own_rows(
    store: &Store,
    is_wanted: impl Fn(Epoch) -> bool,
) -> rusqlite::Result<Vec<(Arc<Table>, Vec<Value>)>> {
    let me = store.now.origin.node;
    let mut found = Vec::new();
    let tables = store.tables.entries().iter().filter_map(|entry| entry.table.as_ref());
    for table in tables.filter(|table| table.class == Class::Owned) {
        let owner = &quote(&table.info.columns[table.info.key[0]]);
        let columns: Vec<String> = table.info.columns.iter().map(|name| quote(name)).collect();
        // An owner's rows begin with its id, which what follows is only told from after a '/'.
        let sql = format!(
            "SELECT {} FROM {} WHERE {owner} >= ?1 AND {owner} < ?1 || '0'",
            columns.join(", "),
            quote(&table.info.name),
        );
        let mut statement = store.conn.prepare_cached(&sql)?;
        let mut rows = statement.query([me.to_string()])?;
        while let Some(row) = rows.next()? {
            let row = table.collect(row)?;
            let epoch = epoch_of(store, table, &row)?;
            if owns(me, &row[table.info.key[0]]) && epoch.is_some_and(&is_wanted) {
                found.push((Arc::clone(table), row));
                if found.len() == OWN_ROWS_MAX {
                    return Ok(found);
                }
            }
        }
    }
    Ok(found)
}

/// Returns the epoch under which an owned row lives; `None`: before this transaction it did not.
fn epoch_of(store: &Store, table: &Table, row: &[Value]) -> rusqlite::Result<Option<Epoch>> {
    let key: Vec<Value> = table.key_of(row).cloned().collect();
    let Ok(key) = pack::pack(&key) else { return Ok(None) };
    let clock = clocks::read(&store.conn, table.id, &key)?;
    Ok(clock.filter(RowClock::is_alive).map(|clock| clock.life().stamp.origin.epoch))
}

/// The table that an operation is on; `None`: all whose rows have owners.
pub fn table_of(op: &RowOp) -> Option<&'static str> {
    match op {
        RowOp::Put { table, .. }
        | RowOp::Set { table, .. }
        | RowOp::Delete { table, .. }
        | RowOp::Require { table, .. } => Some(table),
        RowOp::Renew { .. } | RowOp::Withdraw => None,
    }
}

fn put(
    store: &Store,
    table: &Arc<Table>,
    row: Columns<'_>,
    keep: &[&'static str],
) -> Result<(), StorageError> {
    let mut new: Vec<Value> = table.columns.iter().map(|column| column.default.clone()).collect();
    for &place in &table.info.key {
        new[place] = Value::Null;
    }
    for (column, value) in row {
        new[place_of(table, column)?] = value.clone();
    }
    let key = key_of(table, &new)?;
    let held = table.read_row(&store.conn, &key).map_err(sort)?;
    if let Some(held) = &held {
        for column in keep {
            let place = place_of(table, column)?;
            new[place] = held[place].clone();
        }
    }
    if held.as_ref() != Some(&new) {
        return write(store, table, held, new);
    }
    if table.class == Class::Owned {
        let epoch = epoch_of(store, table, &new).map_err(sort)?;
        if epoch.is_some_and(|epoch| epoch < store.now.origin.epoch) {
            store.capture.log_renewal(table, new);
        }
    }
    Ok(())
}

/// Writes a row in place of the one that is there, if one is.
fn write(
    store: &Store,
    table: &Arc<Table>,
    held: Option<Vec<Value>>,
    new: Vec<Value>,
) -> Result<(), StorageError> {
    // What SQLite stores as it is need not be read back by the hook.
    let is_plain = table.keeps(&new);
    let write = || match &held {
        Some(held) => table.update_row(&store.conn, held, &new),
        None => table.insert_row(&store.conn, &new),
    };
    if !is_plain {
        return write().map_err(sort);
    }
    store.capture.unwatched(write).map_err(sort)?;
    store.capture.log(table, held, Some(new));
    Ok(())
}

fn set_all(
    store: &Store,
    table: &Arc<Table>,
    matching: Columns<'_>,
    set: Columns<'_>,
) -> Result<(), StorageError> {
    for held in find_rows(&store.conn, table, matching, None)? {
        let mut new = held.clone();
        for (column, value) in set {
            new[place_of(table, column)?] = value.clone();
        }
        let key = key_of(table, &new)?;
        if new == held {
            continue;
        }
        if table.key_of(&held).eq(key.iter()) {
            write(store, table, Some(held), new)?;
        } else {
            move_row(&store.conn, table, &held, &new)?;
        }
    }
    Ok(())
}

fn move_row(
    conn: &Connection,
    table: &Table,
    held: &[Value],
    new: &[Value],
) -> Result<(), StorageError> {
    let key: Vec<Value> = table.key_of(new).cloned().collect();
    if table.read_row(conn, &key).map_err(sort)?.is_some() {
        let name = &table.info.name;
        return Err(Refusal(format!("table {name}: there is a row with the new key")).into());
    }
    let sql = format!("{} SET {}{}", table.sql.update, table.sql.set.join(", "), table.sql.by_key);
    let params = new.iter().chain(table.key_of(held)).map(Bound);
    conn.prepare_cached(&sql)
        .and_then(|mut statement| statement.execute(rusqlite::params_from_iter(params)))
        .map_err(sort)?;
    Ok(())
}

fn delete(
    conn: &Connection,
    table: &Table,
    matching: Columns<'_>,
    except: Option<&(&'static str, Vec<Value>)>,
) -> Result<(), StorageError> {
    let except = match except {
        Some((column, values)) => Some((place_of(table, column)?, values)),
        None => None,
    };
    for row in find_rows(conn, table, matching, None)? {
        let is_excepted = except.is_some_and(|(place, values)| values.contains(&row[place]));
        if !is_excepted {
            let key: Vec<Value> = table.key_of(&row).cloned().collect();
            table.delete_row(conn, &key).map_err(sort)?;
        }
    }
    Ok(())
}

/// Finds the rows whose columns equal `matching` (NULL equals NULL), in the order of keys.
fn find_rows(
    conn: &Connection,
    table: &Table,
    matching: Columns<'_>,
    limit: Option<usize>,
) -> Result<Vec<Vec<Value>>, StorageError> {
    let mut terms = Vec::new();
    for (nth, (column, _)) in matching.iter().enumerate() {
        place_of(table, column)?;
        terms.push(format!("{} IS ?{}", quote(column), nth + 1));
    }
    let condition = if terms.is_empty() { "true".to_owned() } else { terms.join(" AND ") };
    let columns: Vec<String> = table.info.columns.iter().map(|name| quote(name)).collect();
    let order: Vec<&str> = table.info.key.iter().map(|&place| columns[place].as_str()).collect();
    let sql = format!(
        "SELECT {} FROM {} WHERE {condition} ORDER BY {}{}",
        columns.join(", "),
        quote(&table.info.name),
        order.join(", "),
        limit.map(|limit| format!(" LIMIT {limit}")).unwrap_or_default(),
    );
    let read = || -> rusqlite::Result<Vec<Vec<Value>>> {
        let mut statement = conn.prepare_cached(&sql)?;
        let params = rusqlite::params_from_iter(matching.iter().map(|(_, value)| Bound(value)));
        statement.query_map(params, |row| table.collect(row))?.collect()
    };
    read().map_err(sort)
}

fn place_of(table: &Table, column: &str) -> Result<usize, Refusal> {
    let name = &table.info.name;
    table.place_of(column).ok_or_else(|| Refusal(format!("table {name} has no column {column}")))
}

fn key_of(table: &Table, row: &[Value]) -> Result<Vec<Value>, Refusal> {
    let key: Vec<Value> = table.key_of(row).cloned().collect();
    if key.contains(&Value::Null) {
        let name = &table.info.name;
        return Err(Refusal(format!("table {name}: a key column must not be NULL")));
    }
    Ok(key)
}

/// Tells a statement that the data does not allow from a database that does not work.
pub fn sort(error: rusqlite::Error) -> StorageError {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig) => {
            Refusal(error.to_string()).into()
        }
        _ => super::database::failed(error),
    }
}
