//! Queries of which each row comes of one row of one table, and of nothing else. Those can be asked
//! of a few rows alone: when rows change, the others of the result stay what they were.
//!
//! Whether a query is one of them is not read from its text. SQLite says which tables it reads, how
//! it plans to go through them, and by which steps; a query that is not known to be one is none.
//!
//! It is asked of a few rows by a `WITH` that bears the table's name and holds only those. In
//! SQLite such a name hides the table. It is materialized: the rows are found by their key, whatever
//! index the query's own conditions could use.

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::readers::Described;
use super::schema::text::tokens;
use super::values::quote;
use crate::types::Value;

/// Of how many rows a query is asked at a time.
pub const KEYS_MAX: usize = 200;

/// How long the text may become: SQLite is given 64 KiB at most.
const TEXT_BYTES_MAX: usize = 48 * 1024;

/// The steps of SQLite's machine that look at one row of the table and at what was bound. Not among
/// them: those that count or add up, that remember rows, leave some out or stop early.
/// <https://sqlite.org/opcode.html>
const STEPS: [&str; 88] = [
    "Add",
    "Affinity",
    "And",
    "BitAnd",
    "BitNot",
    "BitOr",
    "Blob",
    "Cast",
    "CollSeq",
    "Column",
    "Concat",
    "Copy",
    "CursorHint",
    "DeferredSeek",
    "Divide",
    "ElseEq",
    "Eq",
    "Explain",
    "FinishSeek",
    "Function",
    "Ge",
    "Goto",
    "Gt",
    "Halt",
    "HaltIfNull",
    "IdxGE",
    "IdxGT",
    "IdxLE",
    "IdxLT",
    "IdxRowid",
    "If",
    "IfNot",
    "IfNullRow",
    "Init",
    "Int64",
    "Integer",
    "IsNull",
    "IsTrue",
    "IsType",
    "Last",
    "Le",
    "Lt",
    "MakeRecord",
    "Move",
    "Multiply",
    "MustBeInt",
    "Ne",
    "Next",
    "Noop",
    "Not",
    "NotExists",
    "NotNull",
    "Null",
    "Once",
    "OpenPseudo",
    "OpenRead",
    "Or",
    "Prev",
    "PureFunc",
    "Real",
    "RealAffinity",
    "ReleaseReg",
    "Remainder",
    "ResultRow",
    "Rewind",
    "Rowid",
    "SCopy",
    "SeekGE",
    "SeekGT",
    "SeekLE",
    "SeekLT",
    "SeekRowid",
    "Sequence",
    "ShiftLeft",
    "ShiftRight",
    "Sort",
    "SorterData",
    "SorterInsert",
    "SorterNext",
    "SorterOpen",
    "SorterSort",
    "String",
    "String8",
    "Subtract",
    "TableLock",
    "Transaction",
    "Variable",
    "ZeroOrNull",
];

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Narrow {
    table: String,
    /// The columns of the table's primary key, in the key's order.
    key: Vec<String>,
    sql: String,
}

impl Narrow {
    /// Returns how to ask `sql` of a few rows, if that can be done. `key` is the primary key of the
    /// table that it reads. The connection is used for nothing else, and has no authorizer.
    pub(super) fn of(
        conn: &Connection,
        sql: &str,
        described: &Described,
        key: &[String],
    ) -> rusqlite::Result<Option<Self>> {
        let tables = described.tables();
        let mut all = tables.iter();
        let (Some(table), None) = (all.next(), all.next()) else { return Ok(None) };
        let begins = tokens(sql).first().is_some_and(|first| first.eq_ignore_ascii_case("select"));
        if key.is_empty() || !begins || !is_row_by_row(conn, sql)? {
            return Ok(None);
        }
        let narrow = Self { table: (*table).to_owned(), key: key.to_vec(), sql: sql.to_owned() };
        // What a table has and a `WITH` has not, as a rowid, is no text in double quotes.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
        let nulls = vec![Value::Null; key.len()];
        let Ok(plan) = plan_of(conn, &narrow.text(&[nulls])) else { return Ok(None) };
        // Where the query says `main.t`, the `WITH` is of no use.
        let is_used = plan.iter().any(|detail| detail.starts_with("MATERIALIZE "));
        Ok(is_used.then_some(narrow))
    }

    /// Returns the columns of the table's primary key, in the key's order.
    pub fn key(&self) -> &[String] {
        &self.key
    }

    /// Returns the query of those rows alone that have these keys; `None`: there are too many, or
    /// one cannot be written so that SQLite is sure to read the same.
    pub fn at(&self, keys: &[Vec<Value>]) -> Option<String> {
        let is_exact = |value: &Value| match value {
            Value::Integer(_) | Value::Blob(_) => true,
            Value::Text(text) => !text.contains('\0'),
            Value::Null | Value::Real(_) => false,
        };
        let all_exact = keys.iter().flatten().all(is_exact);
        let may_ask = all_exact && !keys.is_empty() && keys.len() <= KEYS_MAX;
        may_ask.then(|| self.text(keys)).filter(|text| text.len() <= TEXT_BYTES_MAX)
    }

    fn text(&self, keys: &[Vec<Value>]) -> String {
        let table = quote(&self.table);
        // With the table's name: a column that is gone is a mistake then, and no text.
        let column = |column: &String| format!("main.{table}.{}", quote(column));
        let columns: Vec<String> = self.key.iter().map(column).collect();
        let is = |key: &Vec<Value>| {
            let pairs = columns.iter().zip(key);
            let terms: Vec<String> =
                pairs.map(|(column, value)| format!("{column} = {value}")).collect();
            terms.join(" AND ")
        };
        let rows = any_of(keys.iter().map(is).collect());
        let sql = &self.sql;
        format!("WITH {table} AS MATERIALIZED (SELECT * FROM main.{table} WHERE {rows}) {sql}")
    }
}

/// Writes that one of the terms holds. SQLite bounds how deep terms are nested: here as deep as a
/// balanced tree.
fn any_of(mut terms: Vec<String>) -> String {
    while terms.len() > 1 {
        let pairs = terms.chunks(2).map(|pair| match pair {
            [one, other] => format!("({one} OR {other})"),
            _ => pair.concat(),
        });
        terms = pairs.collect();
    }
    terms.concat()
}

/// Tells whether SQLite goes through one table, once, and looks at each of its rows alone.
fn is_row_by_row(conn: &Connection, sql: &str) -> rusqlite::Result<bool> {
    let details = plan_of(conn, sql)?;
    let goes_through =
        |detail: &&String| detail.starts_with("SCAN ") || detail.starts_with("SEARCH ");
    let ways = details.iter().filter(goes_through).count();
    let is_plain =
        |detail: &String| goes_through(&detail) || detail == "USE TEMP B-TREE FOR ORDER BY";
    if ways != 1 || !details.iter().all(is_plain) {
        return Ok(false);
    }
    let steps = column_of(conn, &format!("EXPLAIN {sql}"), "opcode")?;
    Ok(steps.iter().all(|step| STEPS.contains(&&**step)))
}

fn plan_of(conn: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    column_of(conn, &format!("EXPLAIN QUERY PLAN {sql}"), "detail")
}

fn column_of(conn: &Connection, sql: &str, column: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = conn.prepare(sql)?;
    let place = statement.column_index(column)?;
    let mut rows = statement.raw_query();
    let mut values = Vec::new();
    while let Some(row) = rows.next()? {
        values.push(row.get(place)?);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ops::ControlFlow;

    use rand::rngs::SmallRng;
    use rand::seq::IteratorRandom;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::store::readers::{Kept, QueryEvent};
    use crate::store::trial::{T, Trial};
    use crate::store::{Params, Readers, Statement};

    fn narrowed(readers: &Readers, sql: &str, described: &Described) -> Option<Narrow> {
        let key = readers.key_of(described.tables().first()?).unwrap();
        readers.narrow(sql, described, &key)
    }

    fn is_narrow(sql: &str) -> bool {
        let two = "CREATE TABLE u (a TEXT NOT NULL, b INTEGER NOT NULL, c, PRIMARY KEY (a, b));";
        let trial = Trial::new(&format!("{T}{two}"));
        let readers = trial.readers();
        let described = readers.describe(sql).unwrap();
        described.is_deterministic() && narrowed(&readers, sql, &described).is_some()
    }

    #[test]
    fn what_looks_at_one_row_at_a_time_is_asked_of_a_few() {
        for sql in [
            "SELECT * FROM t",
            "select id, v || 'x' AS y, CASE w WHEN 1 THEN 2 END FROM t WHERE v > ? AND w LIKE 'a%'",
            "SELECT x.id, x.v FROM t AS x WHERE x.id <> 3 ORDER BY x.v DESC",
            "SELECT id, lower(v) FROM t WHERE id BETWEEN 3 AND ?2 AND v IS NOT NULL",
            "SELECT b, a FROM u WHERE c = 1",
            "SELECT * FROM u WHERE a = ? AND b = ?",
            "SELECT id, json_extract(v, '$.a') FROM t",
        ] {
            assert!(is_narrow(sql), "{sql}");
        }
    }

    #[test]
    fn what_looks_at_several_rows_is_not() {
        for sql in [
            "SELECT count(*) FROM t",
            "SELECT id, max(v) FROM t",
            "SELECT id, v FROM t GROUP BY id",
            "SELECT DISTINCT v FROM t",
            "SELECT * FROM t ORDER BY v LIMIT 3",
            "SELECT * FROM t LIMIT ? OFFSET 2",
            "SELECT id, row_number() OVER (ORDER BY v) FROM t",
            "SELECT id FROM t UNION SELECT b FROM u",
            "SELECT id FROM t UNION ALL SELECT id FROM t",
            "SELECT t.id, b FROM t JOIN u ON t.v = u.a",
            "SELECT x.id, y.id FROM t x, t y",
            "SELECT id FROM t WHERE EXISTS (SELECT 1 FROM u WHERE a = v)",
            "SELECT id FROM t WHERE v = (SELECT max(v) FROM t)",
            "SELECT id, (SELECT count(*) FROM t) FROM t",
            "SELECT id, e.value FROM t, json_each(t.v) AS e",
            "WITH x AS (SELECT * FROM t) SELECT * FROM x",
            "SELECT * FROM (SELECT * FROM t LIMIT 1)",
            "SELECT rowid, * FROM t",
            "SELECT \"rowid\", * FROM t",
            "SELECT id FROM t WHERE \"_rowid_\" = 2",
            "SELECT id, v FROM main.t",
            "SELECT id FROM t WHERE v = timediff('now', w)",
            "SELECT 1",
            "VALUES (1)",
            "SELECT * FROM t INDEXED BY nothing_such",
        ] {
            let refused = std::panic::catch_unwind(|| is_narrow(sql));
            assert!(!refused.unwrap_or(false), "{sql}");
        }
    }

    fn answers(readers: &Readers, sql: String) -> BTreeSet<Vec<Value>> {
        let mut rows = Vec::new();
        let statement = Statement { sql, params: Params::None };
        readers
            .query_kept((&statement, Kept::No), None, &mut |event| {
                if let QueryEvent::Row(row) = event {
                    rows.push(row);
                }
                ControlFlow::Continue(())
            })
            .unwrap_or_else(|error| panic!("{}: {error}", statement.sql));
        rows.into_iter().collect()
    }

    #[test]
    fn of_a_few_rows_it_says_what_it_says_of_all() {
        let tables = "CREATE TABLE a (id INTEGER NOT NULL PRIMARY KEY, n INTEGER, s TEXT COLLATE NOCASE, x);
             CREATE TABLE b (s TEXT NOT NULL, n INTEGER NOT NULL, x, g AS (n * 2), PRIMARY KEY (s, n));
             CREATE TABLE c (k BLOB NOT NULL PRIMARY KEY, n REAL, s TEXT) WITHOUT ROWID;
             CREATE INDEX a_by_n ON a (n, s);
             CREATE INDEX b_by_x ON b (x) WHERE x IS NOT NULL;";
        let mut trial = Trial::new(tables);
        let mut rng = SmallRng::seed_from_u64(7);
        let texts = ["'a'", "'A'", "'b%'", "''", "'o''x'", "NULL", "3", "2.5", "x'00ff'", "-1"];
        for number in 0..250 {
            let mut any = || texts[rng.random_range(0..texts.len())];
            let (x, y, z) = (any(), any(), any());
            let text = format!("'{}{}'", ["k", "K", "it''s "][number % 3], number / 3);
            trial.write(&[
                &format!("INSERT INTO a VALUES ({}, {}, {y}, {z})", number * 7, number % 9),
                &format!("INSERT INTO b (s, n, x) VALUES ({text}, {}, {x})", number % 5),
                &format!("INSERT INTO c VALUES (x'{number:04x}', {}.5, {y})", number % 4),
            ]);
        }
        let readers = trial.readers();
        let keys_of = |table: &str, key: &str| -> Vec<Vec<Value>> {
            answers(&readers, format!("SELECT {key} FROM {table}")).into_iter().collect()
        };
        let of = [
            ("a", "id", ["id", "n", "s", "x"], keys_of("a", "id")),
            ("b", "s, n", ["s", "n", "x", "g"], keys_of("b", "s, n")),
            ("c", "k", ["k", "n", "s", "k"], keys_of("c", "k")),
        ];
        let (mut asked, mut found) = (0, 0);
        for _ in 0..800 {
            let (table, key, columns, keys) = &of[rng.random_range(0..3)];
            let mut column = || columns[rng.random_range(0..4)];
            let (p, q, r) = (column(), column(), column());
            let mut any = || texts[rng.random_range(0..texts.len())];
            let (v, w) = (any(), any());
            let wheres = [
                format!("{p} = {v}"),
                format!("{p} < {v} OR {q} >= {w}"),
                format!("{p} LIKE {v} AND {q} IS NOT {w}"),
                format!("{p} BETWEEN {v} AND {w}"),
                format!("NOT ({p} IS {q}) AND typeof({r}) <> 'null'"),
                format!("{p} || {q} GLOB '*a*'"),
                format!("coalesce({p}, {v}) COLLATE NOCASE > {w}"),
                "1".to_owned(),
            ];
            let condition = &wheres[rng.random_range(0..wheres.len())];
            let order = ["", " ORDER BY 1", " ORDER BY 2 DESC, 1"][rng.random_range(0..3)];
            let sql = format!(
                "SELECT {key}, {p}, {q} || {v}, CASE WHEN {r} > {w} THEN {p} END FROM {table} \
                 WHERE {condition}{order}"
            );
            let described = readers.describe(&sql).unwrap();
            let Some(narrow) = narrowed(&readers, &sql, &described) else { continue };
            let count = if asked % 50 == 0 { KEYS_MAX } else { rng.random_range(1..12) };
            let some: Vec<Vec<Value>> = keys.iter().cloned().sample(&mut rng, count);
            let is_asked = |row: &Vec<Value>| some.iter().any(|key| row.starts_with(key));
            let expected: BTreeSet<_> =
                answers(&readers, sql.clone()).into_iter().filter(is_asked).collect();
            assert_eq!(answers(&readers, narrow.at(&some).unwrap()), expected, "{sql}");
            (asked, found) = (asked + 1, found + expected.len());
        }
        assert!(asked > 500 && found > 1_000, "{asked} queries, {found} rows");
    }

    #[test]
    fn keys_are_written_so_that_they_mean_themselves() {
        let narrow = Narrow {
            table: "a\"b".into(),
            key: vec!["x y".into(), "z".into()],
            sql: "SELECT 1".into(),
        };
        let key = |text: &str| vec![Value::from(text), Value::Integer(-1)];
        assert_eq!(
            narrow.at(&[key("o'x"), key("")]).unwrap(),
            "WITH \"a\"\"b\" AS MATERIALIZED (SELECT * FROM main.\"a\"\"b\" WHERE \
             (main.\"a\"\"b\".\"x y\" = 'o''x' AND main.\"a\"\"b\".\"z\" = -1 OR \
             main.\"a\"\"b\".\"x y\" = '' AND main.\"a\"\"b\".\"z\" = -1)) SELECT 1"
        );
        assert_eq!(narrow.at(&[]), None);
        assert_eq!(narrow.at(&[key("a\0b")]), None);
        assert_eq!(narrow.at(&[vec![Value::Real(0.1), Value::Integer(1)]]), None);
        assert_eq!(narrow.at(&vec![key("a"); KEYS_MAX + 1]), None);
        assert!(narrow.at(&vec![key("a"); KEYS_MAX]).is_some());
        assert_eq!(narrow.at(&vec![key(&"a".repeat(500)); KEYS_MAX]), None, "it is too long");
    }
}
