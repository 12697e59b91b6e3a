//! The rules, and what a schema may become, on whole files.

use proptest::prelude::*;

use super::*;
use crate::crdt::storage::Storage;
use crate::store::trial::{ME, NOW, Trial, events, in_memory, run};
use crate::store::values::quote;
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

/// Holds each refusal to its exact words. `K` stands for a column that is the key.
#[test]
fn each_rule_names_the_file_the_table_and_the_column() {
    let cases = [
        ("CREATE TABLE a (x)", "table a: it has no primary key, by which rows are told apart"),
        (
            "CREATE TABLE a (x TEXT PRIMARY KEY)",
            "table a, column x: a column of the primary key must be NOT NULL",
        ),
        (
            "CREATE TABLE a (x INTEGER PRIMARY KEY)",
            "table a, column x: a column of the primary key must be NOT NULL",
        ),
        (
            "CREATE TABLE a (x INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT)",
            "table a, column x: AUTOINCREMENT numbers rows on each node for itself",
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL COLLATE NOCASE PRIMARY KEY)",
            "table a, column x: the key's collation is NOCASE; two spellings of one key would be one row here and two elsewhere",
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL, PRIMARY KEY (x COLLATE RTRIM))",
            "table a: the primary key has a collation other than BINARY; two spellings of one key would be one row here and two elsewhere",
        ),
        (
            "CREATE TABLE a (K, y UNIQUE)",
            "table a: it has a UNIQUE constraint beside the primary key; two nodes can each insert a row, and both rows stay",
        ),
        (
            "CREATE TABLE a (K, y); CREATE UNIQUE INDEX i ON a (y)",
            "table a: the index i is UNIQUE; two nodes can each insert a row, and both rows stay",
        ),
        (
            "CREATE TABLE a (K REFERENCES b (y))",
            "table a: it has a foreign key; rows arrive in any order, so what they refer to may arrive later",
        ),
        (
            "CREATE TABLE a (K, y, FOREIGN KEY (y) REFERENCES b)",
            "table a: it has a foreign key; rows arrive in any order, so what they refer to may arrive later",
        ),
        (
            "CREATE TABLE a (K, y NOT NULL)",
            "table a, column y: NOT NULL needs a DEFAULT: what a writer's older schema does not know is filled with it",
        ),
        (
            "CREATE TABLE a (K, y NOT NULL DEFAULT NULL)",
            "table a, column y: NOT NULL needs a DEFAULT: what a writer's older schema does not know is filled with it",
        ),
        (
            "CREATE TABLE a (K, y DEFAULT (lower('A')))",
            "table a, column y: its default is not a constant; each node would compute its own (texts stand in single quotes)",
        ),
        (
            "CREATE TABLE a (K, y DEFAULT (1 + length('a')))",
            "table a, column y: its default is not a constant; each node would compute its own (texts stand in single quotes)",
        ),
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY ON CONFLICT IGNORE)",
            "table a: it says ON CONFLICT; what a merge writes must be stored or refused, nothing else",
        ),
        (
            "CREATE TABLE a (x INTEGER NOT NULL PRIMARY KEY ON CONFLICT REPLACE)",
            "table a: it says ON CONFLICT; what a merge writes must be stored or refused, nothing else",
        ),
        (
            "CREATE TABLE a (K, y NOT NULL ON CONFLICT REPLACE DEFAULT 1)",
            "table a: it says ON CONFLICT; what a merge writes must be stored or refused, nothing else",
        ),
        (
            "CREATE TABLE a (K, lo, hi, CHECK (lo <= hi))",
            "table a: the CHECK lo <= hi reads several columns (lo, hi); a merge may bring values together that no node wrote together, and then the row is refused",
        ),
        (
            "CREATE TABLE a (K, y CONSTRAINT pair CHECK (y > 1 AND y <> x))",
            "table a: the CHECK pair reads several columns (x, y); a merge may bring values together that no node wrote together, and then the row is refused",
        ),
        (
            "CREATE TABLE a (K, y, z, g AS (y + z), CHECK (g > 1))",
            "table a: the CHECK g > 1 reads several columns (y, z); a merge may bring values together that no node wrote together, and then the row is refused",
        ),
        (
            "CREATE TABLE a (K, y, z, g AS (y + z) NOT NULL)",
            "table a, column g: it is NOT NULL and computed of several columns (y, z); a merge may bring values together that no node wrote together, and then the row is refused",
        ),
        (
            "CREATE TABLE a (K, y INT, z INT, g TEXT AS (y + z)) STRICT",
            "table a, column g: it is of a strict type and computed of several columns (y, z); a merge may bring values together that no node wrote together, and then the row is refused",
        ),
        (
            "CREATE TABLE a (K, y CHECK (rowid < 5))",
            "table a: a CHECK or a generated column reads the rowid, which each node numbers for itself",
        ),
        (
            "CREATE TABLE a (K, y INT DEFAULT 1 CHECK (y > 5))",
            "table a, column y: its DEFAULT does not pass the CHECK; a row whose writer does not know the column could not be stored",
        ),
        (
            "CREATE TABLE a (K, g AS (date('now')))",
            "table a: non-deterministic use of date() in a generated column",
        ),
        (
            "CREATE TABLE __tribune_a (K)",
            "table __tribune_a: names that begin with __tribune_ are this program's own",
        ),
        (
            "CREATE TABLE a (K); CREATE INDEX __Tribune_i ON a (x)",
            "table a: the index __Tribune_i: names that begin with __tribune_ are this program's own",
        ),
        (
            "CREATE TABLE Tribune_a (K)",
            "table Tribune_a: names that begin with tribune_ are this program's own",
        ),
    ];
    for (sql, message) in cases {
        let sql = sql.replace("(K", "(x TEXT NOT NULL PRIMARY KEY");
        let error = Schema::parse(&[source(&sql)]).expect_err(&sql).to_string();
        assert_eq!(error, format!("app.sql: {message}"), "{sql}");
    }
}

#[test]
fn what_is_no_table_and_no_index_is_refused_with_its_line() {
    let cases: [(&str, &[&str]); 9] = [
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, g AS (random()))",
            &["line 1", "table a: the function random may not stand in a schema"],
        ),
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
        (
            "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, y);\nCREATE INDEX i ON a (random())",
            &["line 2", "the function random may not stand in a schema"],
        ),
    ];
    for (sql, parts) in cases {
        check_refused(sql, parts);
    }
    for sql in [
        "CREATE TRIGGER x AFTER INSERT ON a BEGIN SELECT 1; END",
        "CREATE VIRTUAL TABLE x USING fts5(a)",
        "DROP VIEW a",
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
        CREATE INDEX a_by_j ON a (lower(x));
        CREATE TABLE c (\"on\" TEXT NOT NULL PRIMARY KEY, conflict DEFAULT 'on conflict', -- on conflict
            n INT CHECK (n < 5) CHECK (n <> 3) CONSTRAINT x CHECK (typeof(n) <> 'text'), m CONSTRAINT x CHECK (m > 1),
            k AS (n + m) STORED CHECK (1), CHECK (length(\"on\") < 9));";
    let trial = Trial::new(sql);
    let names = trial.rows(
        "SELECT name FROM sqlite_schema WHERE tbl_name = 'a' AND type <> 'trigger' ORDER BY name",
    );
    assert_eq!(names, ["'a'", "'a_by_j'", "'a_by_y'"]);
    let fixed = trial.rows(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '!_!_%' ESCAPE '!' ORDER BY 1",
    );
    assert_eq!(
        fixed,
        [
            "'a'",
            "'c'",
            "'checks'",
            "'events'",
            "'external_checks'",
            "'external_nodes'",
            "'external_services'",
            "'kv'",
            "'nodes'",
            "'prepared_queries'",
            "'services'",
            "'tag_overrides'",
            "'tribune_schema'"
        ]
    );
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
    let texts: Vec<&str> = sources.iter().map(|source| &*source.sql).collect();
    assert_eq!(texts, ["one", "two"]);
    let missing = read_sources(&[dir.path().join("nope")]).unwrap_err();
    assert!(missing.to_string().contains("nope"), "{missing}");
}

/// Names as nobody should choose them and everybody may.
fn odd_name() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "select",
        "TABLE",
        "check",
        "primary",
        "rowid",
        "oid",
        "a b",
        "a-b",
        "a\"b",
        "a'b",
        "a`b",
        "[a]",
        "a;b",
        "--",
        "/* a",
        "a.b",
        "1",
        "-1",
        "?1",
        ":a",
        "$x",
        "@x",
        "ö",
        "Ö",
        "名",
        "\u{1f98a}",
        "a\nb",
        "\t",
        " ",
        "on conflict",
        "main",
        "temp.t",
        "excluded",
        "x'00'",
        "%",
        "\\",
        "\u{1}",
        "constraint",
        "generated",
        "t",
        "T",
    ]);
    prop_oneof![known.prop_map(str::to_owned), "[^\u{0}]{1,12}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_legal_name_is_made_written_replicated_and_read_back(
        names in prop::collection::vec(odd_name(), 6),
        value in any::<i64>(),
    ) {
        let [table, k, l, v, w, index] = &names[..] else { unreachable!("six were asked for") };
        let lower: std::collections::BTreeSet<String> =
            [k, l, v, w].iter().map(|name| name.to_ascii_lowercase()).collect();
        let is_kept = |name: &str| {
            let name = name.to_ascii_lowercase();
            name.starts_with("sqlite_") || name.starts_with("tribune_") || name.starts_with("__tribune_")
        };
        prop_assume!(lower.len() == 4 && !is_kept(table) && !is_kept(index));
        prop_assume!(!table.eq_ignore_ascii_case(index));
        let [t, k, l, v, w, i] = [table, k, l, v, w, index].map(|name| quote(name));
        let sql = format!(
            "CREATE TABLE {t} ({l} TEXT NOT NULL, {v} INT DEFAULT 3 CHECK ({v} IS NOT 7), {k} INT NOT NULL,
                {w} DEFAULT 'it''s', PRIMARY KEY ({k}, {l})); CREATE INDEX {i} ON {t} ({v});"
        );
        let mut writer = in_memory(NodeId([0x22; 16]), &sql);
        let mut reader = in_memory(ME, &sql);
        let statements = [
            format!("INSERT INTO {t} ({k}, {l}) VALUES (1, 'a'), (2, 'b'), (3, 'c')"),
            format!("UPDATE {t} SET {v} = {value}, {l} = 'd' WHERE {k} = 2 AND {value} <> 7"),
            format!("DELETE FROM {t} WHERE {k} = 3"),
        ];
        for statement in &statements {
            let Some(commit) = run(&mut writer, &[statement]).unwrap().1 else { continue };
            let piece = crate::crdt::Piece::of(commit.changeset.unwrap());
            reader.apply(NOW, &crate::crdt::Batch { pieces: vec![piece] }).unwrap();
        }
        let read = |store: &crate::store::Store| -> Vec<(i64, String, i64, String)> {
            let sql = format!("SELECT {k}, {l}, {v}, {w} FROM {t} INDEXED BY {i} ORDER BY {v}, {k}");
            let mut statement = store.conn.prepare(&sql).unwrap();
            let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
            statement.query_map([], row).unwrap().map(Result::unwrap).collect()
        };
        let rows = read(&reader);
        prop_assert_eq!(rows.len(), 2);
        prop_assert!(rows.contains(&(1, "a".to_owned(), 3, "it's".to_owned())));
        prop_assert_eq!(&rows, &read(&writer));
        prop_assert_eq!(reader.fingerprint().unwrap(), writer.fingerprint().unwrap());
    }
}

/// Fragments of SQL and characters of several bytes, one after the other.
fn scrap() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "CREATE TABLE ",
        "CREATE INDEX ",
        "DROP TABLE ",
        "DROP INDEX IF EXISTS ",
        "[",
        "]",
        "\"",
        "'",
        "`",
        "(",
        ")",
        ",",
        ";",
        "PRIMARY KEY ",
        "CONSTRAINT ",
        "ON CONFLICT ",
        "CHECK ",
        "AS ",
        "STORED ",
        "--",
        "/*",
        "*/",
        "\n",
        "\0",
        "x'",
        "0x",
        "1e",
        ".",
        "id ",
        "t ",
        "INT ",
        "NOT NULL ",
        "DEFAULT ",
        "\u{e9}",
        "\u{1f980}",
        "WITHOUT ROWID",
        "lower",
        "->>",
        "WHERE ",
    ]);
    let part = prop_oneof![4 => known.prop_map(str::to_owned), 1 => "\\PC{0,4}"];
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_text_makes_the_reader_panic(text in scrap()) {
        for sql in [text.clone(), format!("CREATE TABLE t (id INT NOT NULL PRIMARY KEY, {text}")] {
            let _ = Schema::parse(&[source(&sql)]);
        }
        for text in [text.clone(), format!("( {text} )"), format!("( id ); {text}")] {
            wanted::check_never_panics(&text);
        }
    }
}

#[test]
fn a_drop_whose_quote_is_open_is_refused() {
    for sql in ["DROP TABLE [\u{e9}", "DROP TABLE \"\u{e9}", "DROP INDEX `\u{e9}"] {
        assert!(matches!(Schema::parse(&[source(sql)]), Err(SchemaError::Syntax { .. })), "{sql}");
    }
}

#[test]
fn what_an_expression_may_cost_is_counted() {
    // A CHECK that one blank row would hold the writer with.
    for check in [
        "instr(hex(zeroblob(50000000)), 'x') = 0",
        "length(printf('%.*c', 100000000, 'x')) > v",
        "instr(hex(zeroblob(100000)), hex(zeroblob(100000))) IS NOT v",
    ] {
        let sql = format!("CREATE TABLE a (x INT NOT NULL PRIMARY KEY, v INT CHECK ({check}))");
        let begun = std::time::Instant::now();
        let refused = Schema::parse(&[source(&sql)]);
        assert!(begun.elapsed() < std::time::Duration::from_secs(10));
        // A failure that any row would meet is one of the rows; only what is unbounded is refused.
        if check.starts_with("length") || check.contains("50000000") {
            refused.unwrap_err();
        }
    }
}

#[test]
fn what_nodes_may_see_differently_is_refused() {
    let table = |column: &str| format!("CREATE TABLE a (x INT NOT NULL PRIMARY KEY, v, {column})");
    for function in [
        "random()",
        "changes()",
        "total_changes()",
        "last_insert_rowid()",
        "sqlite_version()",
        "randomblob(1)",
        "sqlite_source_id()",
    ] {
        let name = function.split('(').next().unwrap();
        check_refused(&table(&format!("w CHECK ({function} IS NOT w)")), &[name, "every node"]);
        check_refused(&table(&format!("w DEFAULT ({function})")), &[name, "every node"]);
    }
    for (rest, part) in [
        ("w); CREATE INDEX i ON a (json_extract(v, '$.x'))", "json_extract can fail"),
        ("w); CREATE INDEX i ON a (v) WHERE abs(w) > 1", "abs can fail"),
        ("w); CREATE INDEX i ON a (v ->> 'x')", "->> can fail"),
        ("g AS (abs(v))); CREATE INDEX i ON a (g)", "column g"),
        ("g AS (abs(v)), h AS (lower(g))); CREATE INDEX i ON a (h)", "column g"),
        ("g AS (json_extract(v, '$.x')) STORED)", "column g"),
    ] {
        let sql = format!("CREATE TABLE a (x INT NOT NULL PRIMARY KEY, v, {rest}");
        check_refused(&sql, &[part]);
    }
    for rest in [
        "w); CREATE INDEX i ON a (lower(v) DESC, coalesce(w, 0)) WHERE v IN ('a', 'b') AND w IS NOT NULL",
        "g AS (abs(v)))",
        "g AS (lower(v)) STORED); CREATE INDEX i ON a (g)",
    ] {
        let sql = format!("CREATE TABLE a (x INT NOT NULL PRIMARY KEY, v, {rest}");
        Schema::parse(&[source(&sql)]).unwrap();
    }
}

#[test]
fn empty_names_and_sizes_beyond_the_limits_are_refused() {
    check_refused("CREATE TABLE \"\" (x INT NOT NULL PRIMARY KEY, v)", &["its name is empty"]);
    check_refused("CREATE TABLE a (x INT NOT NULL PRIMARY KEY, \"\" INT)", &["its name is empty"]);
    let indexes: Vec<String> = (0..65).map(|n| format!("CREATE INDEX i{n} ON a (x)")).collect();
    let a = "CREATE TABLE a (x INT NOT NULL PRIMARY KEY, v)";
    check_refused(&format!("{a}; {}", indexes.join(";")), &["64 indexes"]);
    let long = "x".repeat(17 << 10);
    check_refused(&a.replace("v)", &format!("v DEFAULT '{long}')")), &["column v", "16384 bytes"]);
    check_refused(&format!("{a}; CREATE INDEX i ON a (v) WHERE v IS NOT '{long}'"), &["index i"]);
    let half = "x".repeat(12 << 10);
    let wide = format!("v DEFAULT '{half}', w DEFAULT '{half}', y DEFAULT '{half}')");
    check_refused(&a.replace("v)", &wide), &["32768 bytes"]);
    let many: Vec<String> =
        (0..1_001).map(|n| format!("CREATE TABLE a{n} (x INT NOT NULL PRIMARY KEY)")).collect();
    check_refused(&many.join(";"), &["1000 tables"]);
}

#[test]
fn steps_are_counted_and_end_what_takes_too_many() {
    let steps = Steps::default();
    let mut conn = scratch(Seen::default(), std::sync::Arc::clone(&steps)).unwrap();
    conn.authorizer(None::<fn(AuthContext<'_>) -> Authorization>).unwrap();
    let endless =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    for _ in 0..2 {
        steps.store(0, std::sync::atomic::Ordering::Relaxed);
        let error = conn.query_row(endless, [], |_| Ok(())).unwrap_err();
        assert!(limits::exceeds(&error), "{error}");
        let counted = steps.load(std::sync::atomic::Ordering::Relaxed);
        assert!(counted.abs_diff(limits::STEPS_MAX) <= 1_000, "{counted}");
    }
}
