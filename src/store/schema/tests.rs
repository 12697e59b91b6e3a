//! The rules, and what a schema may become, on whole files.

use super::*;
use crate::crdt::storage::Storage;
use crate::store::trial::{ME, NOW, Trial, events, in_memory, run};
use crate::types::NodeId;

fn source(sql: &str) -> Source {
    Source { file: "app.sql".to_owned(), sql: sql.to_owned() }
}

#[track_caller]
fn check_refused(sql: &str, parts: &[&str]) {
    let error = Schema::parse(&[source(sql)]).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "{sql}: {error}");
    }
    assert!(error.contains("app.sql"), "{error}");
}

#[test]
fn each_rule_names_the_file_the_table_and_the_column() {
    let cases: [(&str, &[&str]); 22] = [
        ("CREATE TABLE a (x)", &["table a", "no primary key"]),
        ("CREATE TABLE a (x TEXT PRIMARY KEY)", &["table a, column x", "must be NOT NULL"]),
        ("CREATE TABLE a (x INTEGER PRIMARY KEY)", &["column x", "must be NOT NULL"]),
        (
            "CREATE TABLE a (x INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT)",
            &["column x", "AUTOINCREMENT"],
        ),
        ("CREATE TABLE a (x TEXT NOT NULL COLLATE NOCASE PRIMARY KEY)", &["column x", "NOCASE"]),
        ("CREATE TABLE a (x TEXT NOT NULL, PRIMARY KEY (x COLLATE RTRIM))", &["BINARY"]),
        ("CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y UNIQUE)", &["table a", "UNIQUE"]),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y); CREATE UNIQUE INDEX i ON a (y)",
            &["index i is UNIQUE"],
        ),
        ("CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY REFERENCES b (y))", &["foreign key"]),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y NOT NULL)",
            &["column y", "NOT NULL needs a DEFAULT"],
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y NOT NULL DEFAULT NULL)",
            &["column y", "NOT NULL needs"],
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y DEFAULT (random()))",
            &["column y", "not a constant"],
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y DEFAULT CURRENT_TIMESTAMP)",
            &["column y", "not a constant"],
        ),
        ("CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY ON CONFLICT IGNORE)", &["ON CONFLICT"]),
        ("CREATE TABLE __tribune_a (x TEXT NOT NULL PRIMARY KEY)", &["__tribune_"]),
        ("CREATE TABLE sqlite_a (x TEXT NOT NULL PRIMARY KEY)", &["line 1", "reserved"]),
        ("CREATE TEMP TABLE a (x TEXT NOT NULL PRIMARY KEY)", &["a temporary table"]),
        ("\n\nCREATE VIEW a AS SELECT 1", &["line 3", "a view"]),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY);\nINSERT INTO a VALUES (1)",
            &["line 2", "a write to a table"],
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY);\n-- one\n/* a\nb */ CREATE TABEL b (x)",
            &["line 4", "syntax error"],
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY);\nCREATE TABLE IF NOT EXISTS a (x)",
            &["line 2", "declared twice"],
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY);\nPRAGMA user_version = 3",
            &["line 2", "a PRAGMA"],
        ),
    ];
    for (sql, parts) in cases {
        check_refused(sql, parts);
    }
    for sql in [
        "CREATE TRIGGER x AFTER INSERT ON a BEGIN SELECT 1; END",
        "CREATE VIRTUAL TABLE x USING fts5(a)",
        "DROP TABLE a",
        "ALTER TABLE a ADD COLUMN y",
        "BEGIN",
        "ATTACH ':memory:' AS z",
        "SELECT 1",
        "VACUUM",
    ] {
        check_refused(
            &format!("CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY);\n{sql}"),
            &["line 2"],
        );
    }
}

#[test]
fn what_the_rules_allow_is_made() {
    let sql = "-- a comment
        CREATE TABLE IF NOT EXISTS a (x TEXT NOT NULL, y INT NOT NULL DEFAULT 5 CHECK (y > 0),
            g INT AS (y + 1), z ANY DEFAULT (-1.5), PRIMARY KEY (x)) STRICT, WITHOUT ROWID;
        CREATE INDEX a_by_y ON a (y) WHERE y > 3;
        CREATE INDEX a_by_j ON a (lower(x));";
    let trial = Trial::new(sql);
    let names = trial.rows(
        "SELECT name FROM sqlite_schema WHERE tbl_name = 'a' AND type <> 'trigger' ORDER BY name",
    );
    assert_eq!(names, ["'a'", "'a_by_j'", "'a_by_y'"]);
    let fixed = trial.rows(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '!_!_%' ESCAPE '!' ORDER BY 1",
    );
    assert_eq!(fixed, ["'a'", "'checks'", "'kv'", "'nodes'", "'services'"]);
}

#[test]
fn a_schema_is_applied_once_and_grows() {
    let mut trial = Trial::new("CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY);");
    trial.write(&["INSERT INTO a VALUES ('one')"]);
    let grown = "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y TEXT NOT NULL DEFAULT 'it''s',
        \"z z\" REAL DEFAULT (1 + 1));
        CREATE TABLE b (k INTEGER NOT NULL PRIMARY KEY); CREATE INDEX a_by_y ON a (y);";
    let (change, commit) = trial.store.apply_schema(NOW, &[source(grown)]).unwrap();
    assert_eq!(change.tables_added, ["b"]);
    let added = change.columns_added.iter().map(|(_, column)| column.as_str());
    assert_eq!(added.collect::<Vec<_>>(), ["y", "z z"]);
    assert_eq!(change.indexes_added, ["a_by_y"]);
    assert_eq!(commit, None, "a new column writes nothing");
    assert_eq!(trial.rows("SELECT * FROM a"), ["'one' 'it''s' 2.0"]);
    assert_eq!(trial.store.heads().unwrap()[0].1.0, 1);

    let (change, _) = trial.store.apply_schema(NOW, &[source(grown)]).unwrap();
    assert!(change.is_empty(), "{change:?}");
    let commit = trial.write(&["UPDATE a SET \"z z\" = 3"]);
    assert_eq!(crate::store::trial::changes(&commit), ["a['one']@1 z z:1=3.0"]);

    let other_index = grown.replace("ON a (y)", "ON a (y, x)");
    let (change, _) = trial.store.apply_schema(NOW, &[source(&other_index)]).unwrap();
    assert_eq!(change.indexes_added, ["a_by_y"]);
    std::fs::write(trial.dir.path().join("schema.sql"), other_index).unwrap();
    let trial = trial.reopen();
    assert_eq!(trial.rows("SELECT * FROM a"), ["'one' 'it''s' 3.0"]);
}

#[test]
fn what_would_lose_data_is_refused_and_nothing_changes() {
    let held = "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y INT DEFAULT 5, z);";
    let cases: [(&str, &[&str]); 8] = [
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y INT DEFAULT 5)",
            &["column z", "put it back"],
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y TEXT DEFAULT 5, z)",
            &["column y", "from INT to TEXT"],
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y INT DEFAULT 6, z)",
            &["column y", "from 5 to 6"],
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y INT NOT NULL DEFAULT 5, z)",
            &["column y", "from NULL to NOT NULL"],
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL, y INT NOT NULL DEFAULT 5, z, PRIMARY KEY (x, y))",
            &["column y"],
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y INT DEFAULT 5, z COLLATE NOCASE)",
            &["column z", "NOCASE"],
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y INT DEFAULT 5, z) WITHOUT ROWID",
            &["WITHOUT ROWID"],
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y INT DEFAULT 5 CHECK (y > 1), z)",
            &["CHECK"],
        ),
    ];
    for (sql, parts) in cases {
        let mut store = in_memory(ME, held);
        let with_new = format!("CREATE TABLE b (k TEXT NOT NULL PRIMARY KEY); {sql}");
        let error = store.apply_schema(NOW, &[source(&with_new)]).unwrap_err();
        assert!(matches!(error, SchemaError::Destructive { .. }), "{error}");
        for part in parts {
            assert!(error.to_string().contains(part), "{sql}: {error}");
        }
        run(&mut store, &["INSERT INTO b VALUES ('x')"]).expect_err("b was not made");
        run(&mut store, &["INSERT INTO a VALUES ('x', 1, 2)"]).unwrap();
    }
}

#[test]
fn what_was_parked_is_shown_when_its_table_comes() {
    let full = "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y DEFAULT 'd', z DEFAULT 'e');
        CREATE TABLE k (x TEXT NOT NULL PRIMARY KEY);";
    let mut writer = in_memory(NodeId([0x22; 16]), full);
    let mut reader = in_memory(ME, "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, z DEFAULT 'e');");
    for sql in [
        "INSERT INTO a VALUES ('one', 1, 2)",
        "INSERT INTO a VALUES ('two', 1, 2)",
        "DELETE FROM a WHERE x = 'two'",
        "INSERT INTO k VALUES ('only'), ('gone')",
        "DELETE FROM k WHERE x = 'gone'",
    ] {
        let (_, commit) = run(&mut writer, &[sql]).unwrap();
        let piece = crate::crdt::Piece::of(commit.unwrap().changeset.unwrap());
        reader.apply(NOW, &crate::crdt::Batch { pieces: vec![piece] }).unwrap();
    }
    assert_eq!(reader.fingerprint().unwrap(), writer.fingerprint().unwrap());
    assert_eq!(reader.stats().unwrap().parked_rows, 1);
    let (_, commit) = reader.apply_schema(NOW, &[source(full)]).unwrap();
    assert_eq!(events(&commit.unwrap()), ["=a 'one' 2 1", "+k 'only'"]);
    assert_eq!(reader.stats().unwrap().parked_rows, 0);
    assert_eq!(reader.fingerprint().unwrap(), writer.fingerprint().unwrap());
}

#[test]
fn schema_files_are_found_in_directories_in_order() {
    let dir = tempfile::tempdir().unwrap();
    for (name, sql) in [("2.sql", "two"), ("1.sql", "one"), ("readme.md", "no")] {
        std::fs::write(dir.path().join(name), sql).unwrap();
    }
    let sources = read_sources(&[dir.path().to_owned()]).unwrap();
    let texts: Vec<&str> = sources[FIXED.len()..].iter().map(|source| &*source.sql).collect();
    assert_eq!(texts, ["one", "two"]);
    let missing = read_sources(&[dir.path().join("nope")]).unwrap_err();
    assert!(missing.to_string().contains("nope"), "{missing}");
}
