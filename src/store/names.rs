//! Under which names tables and columns travel. A name that was dropped and is used again is
//! another one on the wire, so that what was written for the first never meets the second.

use std::collections::BTreeMap;

use rusqlite::Connection;

const SELECT: &str = "SELECT tbl, col, length, held FROM __tribune_names";
const DELETE_ALL: &str = "DELETE FROM __tribune_names";
const INSERT: &str = "INSERT INTO __tribune_names (tbl, col, length, held) VALUES (?1, ?2, ?3, ?4)";

/// Stands between a name and its generation on the wire: no name in SQL can have it.
const MARK: char = '\0';

/// What is known of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// The life of its row in `tribune_schema`: odd, it is there; even, it was dropped.
    pub length: u64,
    /// Which generation SQLite has here, from 1; 0: none.
    pub held: u64,
}

/// All names that a schema change ever made. In the database the column of a table's own entry is
/// empty, as no column's name is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    pub tables: BTreeMap<String, Known>,
    /// By the table's name on the wire, and the column's in SQL.
    pub columns: BTreeMap<(String, String), Known>,
}

impl Names {
    pub fn read(conn: &Connection) -> rusqlite::Result<Self> {
        let mut statement = conn.prepare_cached(SELECT)?;
        let mut names = Self::default();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let [length, held] = [row.get::<_, i64>(2)?, row.get(3)?].map(i64::cast_unsigned);
            let (table, column, known) = (row.get(0)?, row.get(1)?, Known { length, held });
            let column: String = column;
            if column.is_empty() {
                names.tables.insert(table, known);
            } else {
                names.columns.insert((table, column), known);
            }
        }
        Ok(names)
    }

    /// Writes all names in place of those that are there.
    pub fn write(&self, conn: &Connection) -> rusqlite::Result<()> {
        conn.prepare_cached(DELETE_ALL)?.execute([])?;
        let mut statement = conn.prepare_cached(INSERT)?;
        let tables = self.tables.iter().map(|(table, known)| (table, "", known));
        let columns = self.columns.iter();
        let columns = columns.map(|((table, column), known)| (table, column.as_str(), known));
        for (table, column, known) in tables.chain(columns) {
            let [length, held] = [known.length, known.held].map(u64::cast_signed);
            statement.execute((table, column, length, held))?;
        }
        Ok(())
    }

    /// Returns the name under which SQLite's table travels.
    pub fn wire_table(&self, name: &str) -> String {
        wire(name, self.held_table(name))
    }

    /// Returns the name under which a column of SQLite's table travels.
    pub fn wire_column(&self, wire_table: &str, name: &str) -> String {
        wire(name, self.held_column(wire_table, name))
    }

    /// Tells whether the schema knows a table of this name, alive or dropped.
    pub fn is_managed(&self, wire_table: &str) -> bool {
        self.tables.contains_key(split(wire_table).0)
    }

    /// Tells whether what travels under a table's name was dropped.
    pub fn is_table_dropped(&self, wire_table: &str) -> bool {
        let (name, generation) = split(wire_table);
        self.tables.get(name).is_some_and(|known| known.is_past(generation))
    }

    /// Tells whether what travels under a column's name was dropped.
    pub fn is_column_dropped(&self, wire_table: &str, wire_column: &str) -> bool {
        let (name, generation) = split(wire_column);
        let known = self.columns.get(&(wire_table.to_owned(), name.to_owned()));
        known.is_some_and(|known| known.is_past(generation))
    }

    /// Returns which generation of a table SQLite has, from 1.
    pub fn held_table(&self, name: &str) -> u64 {
        self.tables.get(name).map_or(1, |known| known.held.max(1))
    }

    /// Returns which generation of a column SQLite's table has, from 1.
    pub fn held_column(&self, wire_table: &str, name: &str) -> u64 {
        let known = self.columns.get(&(wire_table.to_owned(), name.to_owned()));
        known.map_or(1, |known| known.held.max(1))
    }
}

impl Known {
    fn is_past(&self, generation: u64) -> bool {
        self.length / 2 >= generation
    }
}

/// Returns the generation that a row's life is, or was last: lives 1 and 2 are the first.
pub fn generation_of(length: u64) -> u64 {
    length.div_ceil(2)
}

/// Returns the name on the wire of a generation. The first travels under the name itself.
pub fn wire(name: &str, generation: u64) -> String {
    if generation <= 1 { name.to_owned() } else { format!("{name}{MARK}{generation}") }
}

/// Takes a name on the wire apart. What nobody would write is a name of its own.
fn split(wire: &str) -> (&str, u64) {
    let parts = wire.rsplit_once(MARK);
    let number = |text: &str| text.parse().ok().filter(|number| *number > 1);
    match parts.and_then(|(name, text)| Some((name, number(text)?))) {
        Some((name, generation)) => (name, generation),
        None => (wire, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_past_once_its_life_is_over() {
        let mut names = Names::default();
        let key = ("t".to_owned(), "v".to_owned());
        let is_dropped = |names: &Names| {
            [1, 2, 3].map(|generation| names.is_column_dropped("t", &wire("v", generation)))
        };
        assert_eq!(is_dropped(&names), [false; 3]);
        for (length, expected) in [
            (1, [false; 3]),
            (2, [true, false, false]),
            (3, [true, false, false]),
            (4, [true, true, false]),
        ] {
            names.columns.insert(key.clone(), Known { length, held: 0 });
            assert_eq!(is_dropped(&names), expected, "{length}");
            assert_eq!(generation_of(length), length.div_ceil(2));
        }
        assert_eq!(split("v\x007"), ("v", 7));
        assert_eq!(split("v\0x"), ("v\0x", 1));
    }
}
