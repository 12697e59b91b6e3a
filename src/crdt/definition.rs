//! A replicated table as a storage is told of it: columns, defaults and the key.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::change::{Name, Refusal, TableInfo};
use super::pack::KEY_COLUMNS_MAX;
use crate::types::Value;

/// The most columns a table may have: as many as SQLite's own limit.
pub const COLUMNS_MAX: usize = 2_000;

/// A table's shape and the defaults of its columns.
///
/// Names are compared exactly, here and wherever changes meet tables: a change of `Services` is
/// none of `services`, and is parked until a table of that very name comes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Definition {
    // Private: the key lies within the columns, no column is there twice, and there is a default
    // for each (NULL for key columns).
    info: Arc<TableInfo>,
    defaults: Vec<Value>,
}

impl Definition {
    /// Makes a definition of columns with their defaults, in the order of the table, and the names
    /// of the key columns in the order of the key.
    pub fn new(name: &str, columns: &[(&str, Value)], key: &[&str]) -> Result<Self, Refusal> {
        let names: BTreeSet<&str> = columns.iter().map(|(column, _)| *column).collect();
        if names.len() != columns.len() || columns.len() > COLUMNS_MAX {
            return Err(Refusal(format!(
                "table {name}: needs different names for its columns, at most {COLUMNS_MAX}"
            )));
        }
        let key_names: BTreeSet<&str> = key.iter().copied().collect();
        if key_names.len() != key.len() || key.is_empty() || key.len() > KEY_COLUMNS_MAX {
            return Err(Refusal(format!(
                "table {name}: needs a primary key of 1 to {KEY_COLUMNS_MAX} different columns"
            )));
        }
        let place_of = |part: &&str| columns.iter().position(|(column, _)| column == part);
        let key: Option<Vec<usize>> = key.iter().map(place_of).collect();
        let key = key.ok_or_else(|| Refusal(format!("table {name}: a key column is missing")))?;
        let info = TableInfo {
            name: name.into(),
            columns: columns.iter().map(|(column, _)| Name::from(*column)).collect(),
            key,
        };
        let default_of = |(place, (_, default)): (usize, &(&str, Value))| {
            if info.key.contains(&place) { Value::Null } else { default.clone() }
        };
        let defaults = columns.iter().enumerate().map(default_of).collect();
        Ok(Self { info: Arc::new(info), defaults })
    }

    pub fn info(&self) -> &Arc<TableInfo> {
        &self.info
    }

    /// Returns the default of each column, in the order of the table.
    pub fn defaults(&self) -> &[Value] {
        &self.defaults
    }

    /// Returns where a column stands in the table.
    pub fn place(&self, column: &str) -> Option<usize> {
        self.info.columns.iter().position(|name| &**name == column)
    }

    /// Returns a row's key out of the row.
    pub fn key_of(&self, row: &[Value]) -> Vec<Value> {
        self.info.key.iter().map(|place| row[*place].clone()).collect()
    }

    /// Refuses to become `later` unless that has the same key and every column of this one.
    pub fn check_growth(&self, later: &Self) -> Result<(), Refusal> {
        let (old, new) = (&self.info, &later.info);
        let key_names = |info: &TableInfo| -> Vec<Name> {
            info.key.iter().map(|place| Arc::clone(&info.columns[*place])).collect()
        };
        if key_names(old) != key_names(new) {
            return Err(Refusal(format!("table {}: its primary key cannot change", old.name)));
        }
        match old.columns.iter().find(|column| !new.columns.contains(column)) {
            Some(column) => Err(Refusal(format!("table {}: column {column} cannot go", old.name))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn define(columns: &[&str], key: &[&str]) -> Result<Definition, Refusal> {
        let columns: Vec<(&str, Value)> =
            columns.iter().map(|name| (*name, Value::from("d"))).collect();
        Definition::new("t", &columns, key)
    }

    #[test]
    fn a_definition_knows_its_key_and_its_defaults() {
        let t = define(&["v", "a", "b"], &["b", "a"]).unwrap();
        assert_eq!(t.info().key, [2, 1]);
        assert_eq!(t.defaults(), [Value::from("d"), Value::Null, Value::Null]);
        let row = [Value::from(1), Value::from(2), Value::from(3)];
        assert_eq!(t.key_of(&row), [Value::from(3), Value::from(2)]);
    }

    #[test]
    fn impossible_tables_are_refused() {
        for (columns, key) in
            [(&["a", "a"][..], &["a"][..]), (&["a"], &[]), (&["a"], &["b"]), (&["a"], &["a", "a"])]
        {
            assert!(define(columns, key).is_err(), "{columns:?} {key:?}");
        }
    }

    #[test]
    fn a_table_may_only_grow() {
        let old = define(&["a", "v"], &["a"]).unwrap();
        old.check_growth(&define(&["a", "w", "v"], &["a"]).unwrap()).unwrap();
        old.check_growth(&define(&["a", "w"], &["a"]).unwrap()).unwrap_err();
        old.check_growth(&define(&["a", "v"], &["v"]).unwrap()).unwrap_err();
    }
}
