//! The rules that every replicated table keeps: without them two nodes could hold the same
//! changes and show different rows.

use rusqlite::Connection;

use super::limits::{DEFINITION_BYTES_MAX, EXCEEDED, INDEXES_MAX, TABLE_BYTES_MAX, exceeds};
use super::shape::{IndexText, Shape, indexes_of, shape_of};
use super::text::{generation_text, mentions};
use super::{FIXED_TABLES, Object, Schema, SchemaError, literal, metadata, probe, pure};
use crate::store::affinity::Affinity;
use crate::store::limits::COLUMNS_MAX;
use crate::store::tables::{ColumnShape, DefaultProbe, INTERNAL_PREFIX, all_columns_of, flags_of};
use crate::types::Value;

/// The beginning of the names that this program keeps for tables of its own that all may read.
const RESERVED_PREFIX: &str = "tribune_";

/// The longest name of a table or a column, in bytes: names travel with each change.
const NAME_BYTES_MAX: usize = 128;

impl Schema {
    pub(super) fn check_table(&self, object: &Object) -> Result<(), SchemaError> {
        let rule = |column: Option<&str>, reason: String| SchemaError::Rule {
            file: object.file.clone(),
            table: object.name.clone(),
            column: column.map(str::to_owned),
            reason,
        };
        let table = &object.name;
        check_name(table).map_err(|reason| rule(None, reason))?;
        if !object.is_fixed && table.to_ascii_lowercase().starts_with(RESERVED_PREFIX) {
            let reason = "names that begin with tribune_ are this program's own";
            return Err(rule(None, reason.to_owned()));
        }
        let columns = all_columns_of(&self.conn, table)?;
        if columns.len() > COLUMNS_MAX {
            return Err(rule(None, format!("it has more than {COLUMNS_MAX} columns")));
        }
        if columns.iter().all(|column| column.key_place == 0) {
            let reason = "it has no primary key, by which rows are told apart";
            return Err(rule(None, reason.to_owned()));
        }
        let (is_strict, _) = flags_of(&self.conn, table)?;
        let defaults = DefaultProbe::new()?;
        for column in &columns {
            check_name(&column.name).map_err(|reason| rule(Some(&column.name), reason))?;
            self.check_column(table, column, is_strict, &defaults)
                .map_err(|reason| rule(Some(&column.name), reason))?;
        }
        if object.reads_rowid {
            let reason =
                "a CHECK or a generated column reads the rowid, which each node numbers for itself";
            return Err(rule(None, reason.to_owned()));
        }
        self.check_indexes(table).map_err(|reason| rule(None, reason))?;
        let indexes = indexes_of(&self.conn, Some(table))?;
        let shape = shape_of(&self.conn, table)?;
        check_sizes(&shape, &indexes)
            .and_then(|()| check_what_is_kept(&shape, &columns, &indexes))
            .map_err(|(column, reason)| rule(column.as_deref(), reason))?;
        if count(&self.conn, "pragma_foreign_key_list", table)? > 0 {
            let reason = "it has a foreign key; rows arrive in any order, so what they refer to may arrive later";
            return Err(rule(None, reason.to_owned()));
        }
        self.check_what_merges_may_write(table, &columns, is_strict, &defaults)
            .map_err(|(column, reason)| rule(column.as_deref(), reason))
    }

    fn check_column(
        &self,
        table: &str,
        column: &ColumnShape,
        is_strict: bool,
        defaults: &DefaultProbe,
    ) -> Result<(), String> {
        if column.is_generated {
            return Ok(());
        }
        let (collation, is_automatic) = metadata(&self.conn, table, &column.name)?;
        if is_automatic {
            return Err("AUTOINCREMENT numbers rows on each node for itself".to_owned());
        }
        let affinity = Affinity::of(&column.declared, is_strict);
        let default = defaults.value_of(column.default.as_deref(), affinity).map_err(|_| {
            "its default is not a constant; each node would compute its own (texts stand in single quotes)".to_owned()
        })?;
        if column.key_place > 0 {
            if !column.is_not_null {
                return Err("a column of the primary key must be NOT NULL".to_owned());
            }
            if collation != "BINARY" {
                return Err(format!(
                    "the key's collation is {collation}; two spellings of one key would be one row here and two elsewhere"
                ));
            }
        } else if column.is_not_null && default == Value::Null {
            return Err("NOT NULL needs a DEFAULT: what a writer's older schema does not know is filled with it".to_owned());
        }
        Ok(())
    }

    fn check_indexes(&self, table: &str) -> Result<(), String> {
        let sql = "SELECT list.name, list.origin, list.\"unique\",
                          coalesce(max(info.coll <> 'BINARY'), 0)
                   FROM pragma_index_list(?1) AS list
                   LEFT JOIN pragma_index_xinfo(list.name) AS info ON info.key = 1
                   GROUP BY list.name";
        let mut statement = self.conn.prepare(sql).map_err(|error| error.to_string())?;
        let mut rows = statement.query([table]).map_err(|error| error.to_string())?;
        while let Some(row) = rows.next().map_err(|error| error.to_string())? {
            let read = |row: &rusqlite::Row<'_>| -> rusqlite::Result<(String, String, bool, bool)> {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            };
            let (name, origin, is_unique, has_collation) =
                read(row).map_err(|error| error.to_string())?;
            if origin == "u" {
                return Err("it has a UNIQUE constraint beside the primary key; two nodes can each insert a row, and both rows stay".to_owned());
            }
            if origin == "c" && is_unique {
                return Err(format!(
                    "the index {name} is UNIQUE; two nodes can each insert a row, and both rows stay"
                ));
            }
            if origin == "pk" && has_collation {
                return Err("the primary key has a collation other than BINARY; two spellings of one key would be one row here and two elsewhere".to_owned());
            }
        }
        Ok(())
    }

    /// A merge writes cells together that no node wrote together, and defaults where the writer
    /// knew no column. Whatever each cell alone may be, the row must be.
    fn check_what_merges_may_write(
        &self,
        table: &str,
        columns: &[ColumnShape],
        is_strict: bool,
        defaults: &DefaultProbe,
    ) -> Result<(), Fault> {
        let of_table = |reason: String| (None, reason);
        let failed = |error: rusqlite::Error| {
            let reason = if exceeds(&error) { EXCEEDED.to_owned() } else { error.to_string() };
            (None, reason)
        };
        if probe::resolves_conflicts(&self.conn, table, columns).map_err(failed)? {
            return Err(of_table(
                "it says ON CONFLICT; what a merge writes must be stored or refused, nothing else"
                    .to_owned(),
            ));
        }
        if let Some((check, read)) =
            probe::check_of_several(&self.conn, table, columns).map_err(failed)?
        {
            return Err(of_table(format!(
                "the CHECK {check} reads several columns ({}); a merge may bring values together that no node wrote together, and then the row is refused",
                read.join(", ")
            )));
        }
        for column in columns.iter().filter(|column| column.is_generated) {
            let is_typed = is_strict && !column.declared.eq_ignore_ascii_case("ANY");
            if !is_typed && !column.is_not_null {
                continue;
            }
            let read = probe::read_by(&self.conn, table, columns, &column.name).map_err(failed)?;
            if read.len() > 1 {
                let what = if column.is_not_null { "NOT NULL" } else { "of a strict type" };
                return Err((
                    Some(column.name.clone()),
                    format!(
                        "it is {what} and computed of several columns ({}); a merge may bring values together that no node wrote together, and then the row is refused",
                        read.join(", ")
                    ),
                ));
            }
        }
        let literals: Vec<(&ColumnShape, String)> = columns
            .iter()
            .filter(|column| !column.is_generated)
            .map(|column| {
                let affinity = Affinity::of(&column.declared, is_strict);
                let value = defaults.value_of(column.default.as_deref(), affinity)?;
                Ok((column, literal(&value)))
            })
            .collect::<rusqlite::Result<_>>()
            .map_err(failed)?;
        match probe::blank_row(&self.conn, table, &literals, is_strict).map_err(failed)? {
            None => Ok(()),
            Some(fault) => Err(fault),
        }
    }
}

/// Tells whether a table is this program's own: no schema change may name it.
pub fn is_own(table: &str) -> bool {
    let lower = table.to_ascii_lowercase();
    let prefixes = [RESERVED_PREFIX, INTERNAL_PREFIX, "sqlite_"];
    FIXED_TABLES.contains(&&*lower) || prefixes.iter().any(|prefix| lower.starts_with(prefix))
}

/// The column, if it is one, and what is wrong.
type Fault = (Option<String>, String);

/// Says which definition is too long, or of what there are too many.
fn check_sizes(shape: &Shape, indexes: &[IndexText]) -> Result<(), Fault> {
    let long = |bytes: usize| bytes > DEFINITION_BYTES_MAX;
    if let Some(column) = shape.columns.iter().find(|column| long(column.definition.len())) {
        let reason = format!("its definition is longer than {DEFINITION_BYTES_MAX} bytes");
        return Err((Some(column.name.clone()), reason));
    }
    if shape.bytes() > TABLE_BYTES_MAX {
        let reason = format!("its columns take more than {TABLE_BYTES_MAX} bytes to define");
        return Err((None, reason));
    }
    if indexes.len() > INDEXES_MAX {
        return Err((None, format!("it has more than {INDEXES_MAX} indexes")));
    }
    for index in indexes {
        let name = &index.name;
        check_name(name).map_err(|reason| (None, format!("the index {name}: {reason}")))?;
        if long(index.definition.len()) {
            let reason = format!(
                "the definition of index {name} is longer than {DEFINITION_BYTES_MAX} bytes"
            );
            return Err((None, reason));
        }
    }
    Ok(())
}

/// An expression that fails on a row would keep an index from being made where the row is
/// already, and the row from being written where the index is.
fn check_what_is_kept(
    shape: &Shape,
    columns: &[ColumnShape],
    indexes: &[IndexText],
) -> Result<(), Fault> {
    for index in indexes {
        if let Some(what) = pure::fallible(&index.definition) {
            let reason = format!(
                "the index {}: {what} can fail on a value, and then the index could be made on one node and not on another; an index may use columns, literals, comparisons and functions such as lower, length and coalesce",
                index.name
            );
            return Err((None, reason));
        }
    }
    let generated: Vec<(&str, &str)> = columns
        .iter()
        .zip(&shape.columns)
        .filter(|(column, _)| column.is_generated)
        .map(|(column, text)| (column.name.as_str(), text.definition.as_str()))
        .collect();
    // What is kept is computed of others, perhaps.
    let mut kept: Vec<bool> = generated
        .iter()
        .map(|(name, definition)| {
            mentions(definition, "STORED")
                || indexes.iter().any(|index| mentions(&index.definition, name))
        })
        .collect();
    loop {
        let found = (0..generated.len()).find(|at| {
            let mut readers = generated.iter().zip(&kept).filter(|(_, kept)| **kept);
            !kept[*at] && readers.any(|((_, text), _)| mentions(text, generated[*at].0))
        });
        let Some(at) = found else { break };
        kept[at] = true;
    }
    for ((name, definition), _) in generated.iter().zip(&kept).filter(|(_, kept)| **kept) {
        if let Some(what) = pure::fallible(&generation_text(definition)) {
            let reason = format!(
                "it is STORED or in an index, and {what} can fail on a value; such a column may use columns, literals, comparisons and functions such as lower, length and coalesce"
            );
            return Err((Some((*name).to_owned()), reason));
        }
    }
    Ok(())
}

/// Says what is wrong with the name of a table, a column or an index.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    // The wire knows no empty names, and marks generations with NUL.
    if name.is_empty() || name.contains('\0') {
        return Err("its name is empty, or no text that SQL can write".to_owned());
    }
    if name.to_ascii_lowercase().starts_with(INTERNAL_PREFIX) {
        return Err("names that begin with __tribune_ are this program's own".to_owned());
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("its name has more than {NAME_BYTES_MAX} bytes"));
    }
    Ok(())
}

fn count(conn: &Connection, pragma: &str, table: &str) -> rusqlite::Result<i64> {
    conn.query_row(&format!("SELECT count(*) FROM {pragma}(?1)"), [table], |row| row.get(0))
}
