//! The rules that every replicated table keeps: without them two nodes could hold the same
//! changes and show different rows.

use rusqlite::Connection;

use super::{Object, Schema, SchemaError, metadata, split_words};
use crate::store::affinity::Affinity;
use crate::store::limits::COLUMNS_MAX;
use crate::store::tables::{ColumnShape, DefaultProbe, INTERNAL_PREFIX, all_columns_of, flags_of};
use crate::types::Value;

impl Schema {
    pub(super) fn check_table(&self, object: &Object) -> Result<(), SchemaError> {
        let rule = |column: Option<&str>, reason: &str| SchemaError::Rule {
            file: object.file.clone(),
            table: object.name.clone(),
            column: column.map(str::to_owned),
            reason: reason.to_owned(),
        };
        let table = &object.name;
        if table.to_ascii_lowercase().starts_with(INTERNAL_PREFIX) {
            return Err(rule(None, "names that begin with __tribune_ are this program's own"));
        }
        if has_words(&object.sql, ["on", "conflict"]) {
            let reason =
                "it says ON CONFLICT; what a merge writes must be stored or refused, nothing else";
            return Err(rule(None, reason));
        }
        let columns = all_columns_of(&self.conn, table)?;
        if columns.len() > COLUMNS_MAX {
            return Err(rule(None, &format!("it has more than {COLUMNS_MAX} columns")));
        }
        if columns.iter().all(|column| column.key_place == 0) {
            return Err(rule(None, "it has no primary key, by which rows are told apart"));
        }
        let (is_strict, _) = flags_of(&self.conn, table)?;
        let probe = DefaultProbe::new()?;
        for column in &columns {
            self.check_column(table, column, is_strict, &probe)
                .map_err(|reason| rule(Some(&column.name), &reason))?;
        }
        self.check_indexes(table).map_err(|reason| rule(None, &reason))?;
        if count(&self.conn, "pragma_foreign_key_list", table)? > 0 {
            let reason = "it has a foreign key; rows arrive in any order, so what they refer to may arrive later";
            return Err(rule(None, reason));
        }
        Ok(())
    }

    fn check_column(
        &self,
        table: &str,
        column: &ColumnShape,
        is_strict: bool,
        probe: &DefaultProbe,
    ) -> Result<(), String> {
        if column.is_generated {
            return Ok(());
        }
        let (collation, is_automatic) = metadata(&self.conn, table, &column.name)?;
        if is_automatic {
            return Err("AUTOINCREMENT numbers rows on each node for itself".to_owned());
        }
        let affinity = Affinity::of(&column.declared, is_strict);
        let default = probe.value_of(column.default.as_deref(), affinity).map_err(|_| {
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
}

fn count(conn: &Connection, pragma: &str, table: &str) -> rusqlite::Result<i64> {
    conn.query_row(&format!("SELECT count(*) FROM {pragma}(?1)"), [table], |row| row.get(0))
}

/// Tells whether two words follow each other.
fn has_words(text: &str, [first, second]: [&str; 2]) -> bool {
    let mut words = split_words(text).skip(1);
    split_words(text).any(|word| {
        let next = words.next().unwrap_or_default();
        word.eq_ignore_ascii_case(first) && next.eq_ignore_ascii_case(second)
    })
}
