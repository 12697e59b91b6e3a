//! Row operations carried out as statements. What they change is captured like any other change.

use std::sync::Arc;

use rusqlite::Connection;

use super::database::Store;
use super::tables::Table;
use super::values::{Bound, quote};
use crate::crdt::change::owns;
use crate::crdt::storage::StorageError;
use crate::crdt::{Class, Refusal, RowOp};
use crate::types::Value;

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
            let table = find(table)?;
            let Some(row) = find_rows(conn, table, matching, Some(1))?.pop() else {
                return Err(otherwise.clone().into());
            };
            let me = store.now.origin.node;
            if table.class == Class::Owned && owns(me, &row[table.info.key[0]]) {
                store.capture.log(table, Some(row.clone()), Some(row));
            }
            Ok(())
        }
    }
}

/// The table that an operation is on.
pub fn table_of(op: &RowOp) -> &'static str {
    match op {
        RowOp::Put { table, .. }
        | RowOp::Set { table, .. }
        | RowOp::Delete { table, .. }
        | RowOp::Require { table, .. } => table,
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
    store.capture.log(table, held, Some(new));
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
            store.capture.log(table, Some(held), Some(new));
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
