//! What SQLite itself makes of a table's constraints, asked by looking at the programs it compiles
//! for statements on the table, and by running a few on an empty one. Nothing here reads SQL text.

use rusqlite::Connection;

use super::limits::exceeds;
use crate::store::affinity::Affinity;
use crate::store::tables::ColumnShape;
use crate::store::values::quote;

/// A constraint that a probe adds, and takes away again.
const PROBE: &str = "__tribune_probe";

/// SQLite's extended result code of a CHECK that fails.
const CHECK_FAILED: i32 = 275;

/// Tells whether a constraint says what to do on a conflict: then SQLite compiles another program
/// for an insert than for one that says `OR ABORT` itself, which is what constraints mean by
/// themselves.
pub(super) fn resolves_conflicts(
    conn: &Connection,
    table: &str,
    columns: &[ColumnShape],
) -> rusqlite::Result<bool> {
    let names: Vec<String> = plain(columns).map(quote).collect();
    let places = vec!["?"; names.len()].join(", ");
    let rest = format!("INTO {} ({}) VALUES ({places})", quote(table), names.join(", "));
    let program = |verb: &str| -> rusqlite::Result<Vec<Vec<rusqlite::types::Value>>> {
        let mut statement = conn.prepare(&format!("EXPLAIN {verb} {rest}"))?;
        let rows = statement.raw_query().mapped(|row| (1..7).map(|at| row.get(at)).collect());
        rows.collect()
    };
    Ok(program("INSERT")? != program("INSERT OR ABORT")?)
}

/// Finds a CHECK that reads several columns: its name or text, and the columns.
///
/// SQLite leaves out of an update's program every CHECK that reads none of the columns that are
/// set. So where each reads one column at most, the updates of single columns have, together, as
/// many as the update of all. A generated column counts as what it is computed of.
pub(super) fn check_of_several(
    conn: &Connection,
    table: &str,
    columns: &[ColumnShape],
) -> rusqlite::Result<Option<(String, Vec<String>)>> {
    let all: Vec<&str> = plain(columns).collect();
    let in_all = checks_of(conn, table, &all)?;
    let mut in_each = Vec::new();
    for column in &all {
        let checks = checks_of(conn, table, &[column])?;
        in_each.extend(checks.into_iter().map(|check| (check, *column)));
    }
    if in_each.len() == in_all.len() {
        return Ok(None);
    }
    let readers_of = |check: &String| -> Vec<String> {
        let readers = in_each.iter().filter(|(other, _)| other == check);
        readers.map(|(_, column)| (*column).to_owned()).collect()
    };
    Ok(in_all
        .iter()
        .map(|check| (check.clone(), readers_of(check)))
        .max_by_key(|(_, columns)| columns.len()))
}

/// Lists the columns that a generated column is computed of.
pub(super) fn read_by(
    conn: &Connection,
    table: &str,
    columns: &[ColumnShape],
    generated: &str,
) -> rusqlite::Result<Vec<String>> {
    undone(conn, || {
        conn.execute_batch(&format!(
            "ALTER TABLE {} ADD COLUMN {PROBE} ANY CONSTRAINT {PROBE} CHECK ({} IS NOT 0)",
            quote(table),
            quote(generated)
        ))?;
        let mut read = Vec::new();
        for column in plain(columns) {
            if checks_of(conn, table, &[column])?.iter().any(|check| check == PROBE) {
                read.push(column.to_owned());
            }
        }
        Ok(read)
    })
}

/// Writes a row of defaults, as a merge does for cells that nobody wrote, and reads it back.
/// Returns what is wrong with it, and with which column.
pub(super) fn blank_row(
    conn: &Connection,
    table: &str,
    literals: &[(&ColumnShape, String)],
    is_strict: bool,
) -> rusqlite::Result<Option<(Option<String>, String)>> {
    let key: Vec<_> = literals.iter().filter(|(column, _)| column.key_place > 0).collect();
    let names: Vec<String> = key.iter().map(|(column, _)| quote(&column.name)).collect();
    let values: Vec<&str> = key
        .iter()
        .map(|(column, _)| match Affinity::of(&column.declared, is_strict) {
            Affinity::Blob => "x''",
            Affinity::Text => "''",
            Affinity::Numeric | Affinity::Integer => "0",
            Affinity::Real => "0.0",
        })
        .collect();
    let table = quote(table);
    undone(conn, || {
        // The key is made up, so a CHECK of its own may refuse it.
        conn.pragma_update(None, "ignore_check_constraints", true)?;
        let insert =
            format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), values.join(", "));
        let inserted = conn.execute_batch(&insert);
        conn.pragma_update(None, "ignore_check_constraints", false)?;
        let read = inserted.and_then(|()| {
            let mut statement = conn.prepare(&format!("SELECT * FROM {table}"))?;
            statement.query([])?.next().map(drop)
        });
        if let Err(error) = read {
            if exceeds(&error) {
                return Err(error);
            }
            let reason = error.to_string();
            // Any other failure may be the made-up key's.
            return Ok(reason.contains("non-deterministic").then_some((None, reason)));
        }
        for (column, literal) in literals.iter().filter(|(column, _)| column.key_place == 0) {
            let update = format!("UPDATE {table} SET {} = {literal}", quote(&column.name));
            let Err(error) = conn.execute_batch(&update) else { continue };
            if exceeds(&error) {
                return Err(error);
            }
            if error.sqlite_error().is_some_and(|error| error.extended_code == CHECK_FAILED) {
                let reason = "its DEFAULT does not pass the CHECK; a row whose writer does not know the column could not be stored";
                return Ok(Some((Some(column.name.clone()), reason.to_owned())));
            }
        }
        Ok(None)
    })
}

/// Lists the CHECKs that an update of some columns runs, by name, or by text where they have none.
fn checks_of(conn: &Connection, table: &str, columns: &[&str]) -> rusqlite::Result<Vec<String>> {
    let set: Vec<String> = columns.iter().map(|name| format!("{} = ?", quote(name))).collect();
    let sql = format!("EXPLAIN UPDATE {} SET {}", quote(table), set.join(", "));
    let mut statement = conn.prepare(&sql)?;
    let mut rows = statement.raw_query();
    let mut checks = Vec::new();
    while let Some(row) = rows.next()? {
        let (opcode, code): (String, i32) = (row.get(1)?, row.get(2)?);
        if opcode == "Halt" && code == CHECK_FAILED {
            checks.push(row.get::<_, Option<String>>(5)?.unwrap_or_default());
        }
    }
    Ok(checks)
}

fn plain(columns: &[ColumnShape]) -> impl Iterator<Item = &str> {
    columns.iter().filter(|column| !column.is_generated).map(|column| column.name.as_str())
}

/// Does some work and takes back what it did to the database.
fn undone<T>(conn: &Connection, work: impl FnOnce() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    conn.execute_batch("SAVEPOINT probe")?;
    let result = work();
    conn.execute_batch("ROLLBACK TO probe; RELEASE probe")?;
    result
}
