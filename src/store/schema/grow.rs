//! How files and database differ, and the statements that bring the database in line. Tables only
//! grow: what would lose data is refused.

use rusqlite::{Connection, OptionalExtension};

use super::text::tokens;
use super::{Object, Schema, SchemaChange, SchemaError, metadata};
use crate::store::affinity::Affinity;
use crate::store::tables::{ColumnShape, DefaultProbe, all_columns_of, flags_of, replicated};
use crate::store::values::quote;
use crate::types::Value;

impl Schema {
    /// Makes the tables, columns and indexes that the database lacks. Call it in a transaction.
    ///
    /// # Errors
    /// A table differs in a way that would lose data: the transaction must be rolled back.
    pub fn apply(&self, conn: &Connection) -> Result<SchemaChange, SchemaError> {
        let held = replicated(conn)?;
        let mut change = SchemaChange::default();
        for object in &self.tables {
            match held.iter().find(|name| name.eq_ignore_ascii_case(&object.name)) {
                None => {
                    conn.execute_batch(&object.sql)?;
                    change.tables_added.push(object.name.clone());
                }
                Some(name) if *name != object.name => {
                    let reason = format!(
                        "the database spells it {name}; a name's letters cannot be changed"
                    );
                    return Err(object.destructive(None, reason));
                }
                Some(_) => self.alter(conn, object, &mut change)?,
            }
        }
        for object in &self.indexes {
            apply_index(conn, object, &mut change)?;
        }
        Ok(change)
    }

    fn alter(
        &self,
        conn: &Connection,
        object: &Object,
        change: &mut SchemaChange,
    ) -> Result<(), SchemaError> {
        let table = &object.name;
        let held_sql: String = conn.query_row(
            "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1",
            [table],
            |row| row.get(0),
        )?;
        if held_sql == object.sql {
            return Ok(());
        }
        if flags_of(conn, table)? != flags_of(&self.conn, table)? {
            return Err(
                object.destructive(None, "STRICT and WITHOUT ROWID cannot be changed".into())
            );
        }
        if checks(&held_sql) != checks(&object.sql) {
            return Err(
                object.destructive(None, "CHECK constraints cannot be added or removed".into())
            );
        }
        let held = all_columns_of(conn, table)?;
        let wanted = all_columns_of(&self.conn, table)?;
        for column in &held {
            let Some(new) = wanted.iter().find(|new| new.name == column.name) else {
                let reason = "it is in the database but not in the file; dropping a column is not possible yet, so put it back".to_owned();
                return Err(object.destructive(Some(&column.name), reason));
            };
            self.check_same(conn, object, column, new)?;
        }
        for column in &wanted {
            if !held.iter().any(|old| old.name == column.name) {
                self.add_column(conn, object, column)?;
                change.columns_added.push((table.clone(), column.name.clone()));
            }
        }
        Ok(())
    }

    pub(super) fn check_same(
        &self,
        conn: &Connection,
        object: &Object,
        held: &ColumnShape,
        wanted: &ColumnShape,
    ) -> Result<(), SchemaError> {
        let differs = |what: &str, from: String, to: String| {
            let reason = format!("its {what} cannot be changed from {from} to {to}");
            Err(object.destructive(Some(&held.name), reason))
        };
        if !held.declared.eq_ignore_ascii_case(&wanted.declared) {
            return differs("type", shown(&held.declared), shown(&wanted.declared));
        }
        if held.is_not_null != wanted.is_not_null {
            let word = |is_not_null: bool| if is_not_null { "NOT NULL" } else { "NULL" };
            let (from, to) = (word(held.is_not_null), word(wanted.is_not_null));
            return differs("constraint", from.into(), to.into());
        }
        if held.key_place != wanted.key_place || held.is_generated != wanted.is_generated {
            let reason = "its place in the primary key, or what generates it, cannot be changed";
            return Err(object.destructive(Some(&held.name), reason.into()));
        }
        if held.is_generated {
            return Ok(());
        }
        let collation = |conn| metadata(conn, &object.name, &held.name).map(|(name, _)| name);
        let (from, to) = (collation(conn), collation(&self.conn));
        if from != to {
            return differs("collation", from.unwrap_or_default(), to.unwrap_or_default());
        }
        let probe = DefaultProbe::new()?;
        let affinity = Affinity::of(&held.declared, flags_of(conn, &object.name)?.0);
        let from = probe.value_of(held.default.as_deref(), affinity)?;
        let to = probe.value_of(wanted.default.as_deref(), affinity)?;
        if from != to {
            return differs("default", from.to_string(), to.to_string());
        }
        Ok(())
    }

    fn add_column(
        &self,
        conn: &Connection,
        object: &Object,
        column: &ColumnShape,
    ) -> Result<(), SchemaError> {
        if column.key_place > 0 || column.is_generated {
            let reason = "columns of the key and generated columns cannot be added to a table that is there already";
            return Err(object.destructive(Some(&column.name), reason.into()));
        }
        let affinity = Affinity::of(&column.declared, flags_of(conn, &object.name)?.0);
        let default = DefaultProbe::new()?.value_of(column.default.as_deref(), affinity)?;
        let (collation, _) =
            metadata(&self.conn, &object.name, &column.name).map_err(SchemaError::Failed)?;
        let sql = format!(
            "ALTER TABLE {} ADD COLUMN {} {} {} DEFAULT {} COLLATE {}",
            quote(&object.name),
            quote(&column.name),
            column.declared,
            if column.is_not_null { "NOT NULL" } else { "" },
            literal(&default),
            quote(&collation),
        );
        // The default applies to every row by itself: nothing is written, nothing is sent.
        conn.execute_batch(&sql)?;
        Ok(())
    }
}

impl Object {
    pub(super) fn destructive(&self, column: Option<&str>, reason: String) -> SchemaError {
        SchemaError::Destructive {
            file: self.file.clone(),
            table: self.name.clone(),
            column: column.map(str::to_owned),
            reason,
        }
    }
}

fn apply_index(
    conn: &Connection,
    object: &Object,
    change: &mut SchemaChange,
) -> Result<(), SchemaError> {
    let sql = "SELECT tbl_name, sql FROM sqlite_schema WHERE type = 'index' AND name = ?1";
    let held: Option<(String, Option<String>)> =
        conn.query_row(sql, [&object.name], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    match held {
        Some((_, Some(sql))) if sql == object.sql => return Ok(()),
        Some((table, _)) if table != object.table => {
            let reason = format!("the index {} belongs to table {table} already", object.name);
            return Err(SchemaError::Destructive {
                file: object.file.clone(),
                table: object.table.clone(),
                column: None,
                reason,
            });
        }
        // An index holds no data of its own: a changed one is built anew.
        Some(_) => conn.execute_batch(&format!("DROP INDEX {}", quote(&object.name)))?,
        None => {}
    }
    conn.execute_batch(&object.sql)?;
    change.indexes_added.push(object.name.clone());
    Ok(())
}

/// Counts the CHECKs of a statement.
fn checks(sql: &str) -> usize {
    tokens(sql).into_iter().filter(|token| token.eq_ignore_ascii_case("check")).count()
}

fn shown(declared: &str) -> String {
    if declared.is_empty() { "none".to_owned() } else { declared.to_owned() }
}

/// Writes a value as SQL reads it.
pub fn literal(value: &Value) -> String {
    match value {
        Value::Real(number) if number.is_infinite() => {
            if *number > 0.0 {
                "9e999".into()
            } else {
                "-9e999".into()
            }
        }
        other => other.to_string(),
    }
}
