//! Hostile SQL over every path on which a client can send some: it is refused in a sentence, in
//! bounded time, and the node works on.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::support::{Agent, Cluster, tribune};

/// The ways for a client's SQL into a node.
const PATHS: [Path; 5] =
    [Path::Transactions, Path::Queries, Path::Subscriptions, Path::Exec, Path::Query];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Path {
    Transactions,
    Queries,
    Subscriptions,
    Exec,
    Query,
}

impl Path {
    fn may_write(self) -> bool {
        matches!(self, Self::Transactions | Self::Exec)
    }

    /// Sends a statement and returns what the client is told.
    async fn send(self, node: &Agent, sql: &str) -> String {
        let url = node.url("");
        let cli = |command: &str| {
            let output = tribune(&[command, "--timeout", "1", "--http-addr", &url, sql]);
            let all = [output.stdout, output.stderr].concat();
            let ok = if output.status.success() { "\nsucceeded" } else { "\nfailed: \"error\"" };
            String::from_utf8_lossy(&all).into_owned() + ok
        };
        match self {
            Self::Transactions => {
                node.send("POST", "/v1/transactions?timeout=1", &json!([sql]).to_string()).await.1
            }
            Self::Queries => {
                node.send("POST", "/v1/queries?timeout=1", &json!(sql).to_string()).await.1
            }
            Self::Subscriptions => first_word(node, sql).await,
            Self::Exec => cli("exec"),
            Self::Query => cli("query"),
        }
    }
}

/// Subscribes, and reads until an error or the end of the first rows.
async fn first_word(node: &Agent, sql: &str) -> String {
    let request = node.http.post(node.url("/v1/subscriptions")).json(&sql);
    let mut response = request.send().await.expect("an answer");
    let mut told = String::new();
    while let Some(chunk) = response.chunk().await.expect("a stream") {
        told.push_str(&String::from_utf8_lossy(&chunk));
        if told.contains("\"error\"") || told.contains("\"eoq\"") {
            break;
        }
    }
    told
}

/// What must be said to a statement.
#[derive(Clone, Copy)]
enum Told {
    /// On every path, with this in it.
    Refused(&'static str),
    /// The first to who may write, the second to who may only read.
    Either(&'static str, &'static str),
    /// It never ends by itself: on every path a limit ends it.
    Ended,
}

/// The longest that anything may take: a live query's first rows have half a minute.
const BOUND: Duration = Duration::from_secs(45);

fn statements() -> Vec<(String, Told)> {
    use Told::{Either, Ended, Refused};

    let n = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)";
    let big = "printf('%.*c', 16000000, 'a')";
    let nested = format!("SELECT {}1{}", "abs(".repeat(1_000), ")".repeat(1_000));
    let selects = format!("{}1{}", "SELECT (".repeat(1_000), ")".repeat(1_000));
    let deep = format!("SELECT 1{}", " + 1".repeat(1_000));
    let schema = "changing the schema is not allowed";
    let readonly = "statement is not readonly";
    let transaction = "BEGIN, COMMIT, ROLLBACK and SAVEPOINT are not allowed";
    let table: Vec<(&str, Told)> = vec![
        ("PRAGMA journal_mode = DELETE", Refused("PRAGMA journal_mode is not allowed")),
        ("PRAGMA writable_schema = ON", Refused("PRAGMA writable_schema is not allowed")),
        ("PRAGMA wal_checkpoint(TRUNCATE)", Refused("PRAGMA wal_checkpoint is not allowed")),
        ("PRAGMA query_only = 0", Refused("PRAGMA query_only is not allowed")),
        ("PRAGMA main.table_info('services')", Refused("PRAGMA table_info is not allowed")),
        ("EXPLAIN PRAGMA user_version = 3", Refused("PRAGMA user_version is not allowed")),
        ("SELECT * FROM pragma_table_info('services')", Refused("pragma_table_info is internal")),
        ("SELECT * FROM main.pragma_database_list", Refused("is internal")),
        ("SELECT * FROM pragma_function_list AS f, kv", Refused("is internal")),
        ("ATTACH ':memory:' AS z", Refused("ATTACH")),
        ("ATTACH '/etc/passwd' AS z", Refused("ATTACH")),
        ("DETACH main", Refused("ATTACH")),
        ("VACUUM", Either("", "")),
        ("VACUUM INTO '/tmp/tribune-hostile-copy'", Either("VACUUM", "")),
        ("SELECT load_extension('/tmp/x.so')", Refused("load_extension is not allowed")),
        ("SELECT writefile('/tmp/x', 'x')", Refused("no such function")),
        ("SELECT readfile('/etc/passwd')", Refused("no such function")),
        ("SELECT fts3_tokenizer('simple')", Refused("fts3_tokenizer")),
        ("UPDATE sqlite_schema SET sql = ''", Either("may not be modified", "may not be modified")),
        ("DELETE FROM sqlite_master", Either("may not be modified", "may not be modified")),
        ("SELECT * FROM sqlite_dbpage", Refused("sqlite_dbpage")),
        ("SELECT * FROM dbstat", Refused("dbstat")),
        ("SELECT * FROM sqlite_stmt", Refused("sqlite_stmt")),
        ("SELECT * FROM sqlite_sequence", Refused("no such table: sqlite_sequence")),
        ("SELECT * FROM \"__tribune_node\"", Refused("is internal")),
        ("SELECT * FROM [__TRIBUNE_rows] AS harmless", Refused("is internal")),
        ("SELECT kv.key FROM kv JOIN main.`__tribune_origins` AS kw", Refused("is internal")),
        ("WITH v AS (SELECT * FROM __tribune_checks) SELECT * FROM v", Refused("is internal")),
        ("SELECT (SELECT definition FROM __tribune_checks LIMIT 1)", Refused("is internal")),
        ("SELECT key FROM kv UNION SELECT id FROM __tribune_checks", Refused("is internal")),
        ("INSERT INTO kv (key) SELECT id FROM __tribune_checks", Either("is internal", readonly)),
        ("DELETE FROM __tribune_rows", Either("is internal", readonly)),
        (
            "DELETE FROM kv WHERE key IN (SELECT id FROM __tribune_checks)",
            Either("is internal", readonly),
        ),
        ("CREATE TABLE x (a)", Either(schema, readonly)),
        ("CREATE TEMP TABLE x (a)", Either(schema, readonly)),
        ("CREATE VIEW x AS SELECT * FROM __tribune_node", Either(schema, readonly)),
        ("CREATE TEMP VIEW x AS SELECT * FROM __tribune_node", Either(schema, readonly)),
        ("CREATE TRIGGER x AFTER INSERT ON kv BEGIN DELETE FROM kv; END", Either(schema, readonly)),
        ("CREATE VIRTUAL TABLE x USING fts5(a)", Either(schema, readonly)),
        ("CREATE VIRTUAL TABLE x USING rtree(a, b, c)", Either(schema, readonly)),
        ("CREATE INDEX x ON kv (value)", Either(schema, readonly)),
        ("DROP TABLE services", Either(schema, readonly)),
        ("DROP TRIGGER __tribune_guard_insert_kv", Either(schema, readonly)),
        ("ALTER TABLE kv ADD COLUMN x", Either(schema, readonly)),
        ("ALTER TABLE kv RENAME TO x", Either(schema, readonly)),
        ("REINDEX", Either(schema, readonly)),
        ("ANALYZE", Either(schema, readonly)),
        ("BEGIN", Refused(transaction)),
        ("BEGIN EXCLUSIVE", Refused(transaction)),
        ("COMMIT", Refused(transaction)),
        ("ROLLBACK", Refused(transaction)),
        ("SAVEPOINT caller", Refused(transaction)),
        ("RELEASE caller", Refused(transaction)),
        ("SELECT 1; SELECT 2", Refused("Multiple statements")),
        ("SELECT 1; DROP TABLE services", Either(schema, readonly)),
        ("SELECT * FROM generate_series(1, 1000000000)", Refused("no such table: generate_series")),
        ("SELECT length(randomblob(1000000000))", Either("too big", "randomblob is not allowed")),
        ("SELECT length(zeroblob(1000000000))", Either("too big", "zeroblob is not allowed")),
        ("SELECT length(printf('%1000000000d', 1))", Refused("too big")),
        ("SELECT json_patch('{}', '{}')", Refused("json_patch is not allowed")),
    ];
    let mut all: Vec<(String, Told)> =
        table.into_iter().map(|(sql, told)| (sql.to_owned(), told)).collect();
    all.push((nested, Refused("")));
    all.push((selects, Refused("")));
    all.push((deep, Refused("Expression tree is too large")));
    all.push((format!("SELECT {}", vec!["1"; 3_000].join(",")), Refused("too many columns")));
    all.push((format!("SELECT 1 -- {}", "x".repeat(70_000)), Refused("")));
    all.push((format!("SELECT length(replace({big}, 'a', 'aa'))"), Refused("too big")));
    for call in [
        format!("instr({big}, printf('%.*c', 8000000, 'a') || 'b')"),
        format!("replace({big}, printf('%.*c', 8000000, 'a') || 'b', '')"),
        format!("trim({big}, printf('%.*c', 8000000, 'b') || 'a')"),
    ] {
        all.push((format!("SELECT {call}"), Refused("longer than 1000 bytes")));
    }
    let pattern = format!("'%{}b'", "a".repeat(900));
    all.push((format!("SELECT {big} LIKE {pattern}"), Refused("pattern too complex")));
    // A few hundred bytes that SQLite unfolds to millions of terms before the first step.
    let unfolds = Refused("would unfold");
    for sql in unfolding() {
        all.push((sql, unfolds));
    }
    all.push((format!("{n} SELECT count(*) FROM n"), Ended));
    all.push((format!("{n} SELECT max(i) FROM n AS a, n AS b"), Ended));
    all.push((format!("{n} SELECT sum(length({big})) FROM n"), Ended));
    all
}

/// Queries whose parts use one another twice, or ninety times, over and over.
fn unfolding() -> Vec<String> {
    let chain = |body: &str| {
        let table =
            |i: usize| format!(", c{i}(x) AS {}", body.replace("$P", &format!("c{}", i - 1)));
        let tables: String = (1..=24).map(table).collect();
        format!("WITH c0(x) AS (SELECT 1){tables} SELECT * FROM c24")
    };
    let nested = |count: usize, column: &str| {
        let wrap = |inner: String, _| format!("SELECT {column} AS x FROM ({inner})");
        (0..count).fold("SELECT value AS x FROM kv".to_owned(), wrap)
    };
    let twice = "(SELECT 1 FROM $P, $P)";
    vec![
        chain(twice),
        chain("MATERIALIZED (SELECT 1 FROM $P AS a, $P AS b)"),
        chain("(SELECT 1 FROM \"$P\" JOIN [$P])"),
        chain("(SELECT x FROM $P UNION ALL SELECT x FROM $P)"),
        chain("(SELECT x + x FROM $P)"),
        chain(twice).replace("WITH", "WITH RECURSIVE"),
        chain(twice).replace("FROM c", "from C"),
        format!("SELECT (SELECT count(*) FROM ({})) FROM kv", chain(twice)),
        nested(24, "x + x"),
        nested(12, "CASE WHEN x THEN x ELSE x END"),
        nested(4, &["x"; 90].join("+")),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_sql_is_refused_on_every_path_and_the_node_works_on() {
    let cluster = Cluster::new(73);
    let n1 = cluster.start(1).await;
    n1.register("web", "web", 1).await;
    let statements = statements();
    assert!(statements.len() > 60);
    let mut faults = Vec::new();
    for (sql, told) in &statements {
        for path in PATHS {
            let shown: String = sql.chars().take(100).collect();
            // A text of 64 KiB is no argument of a process, and what waits for a limit waits for it
            // once on each path.
            let is_left_out = match path {
                Path::Exec | Path::Query => sql.len() > 10_000 || matches!(told, Told::Ended),
                Path::Subscriptions => matches!(told, Told::Ended) && !sql.contains("count(*)"),
                Path::Transactions | Path::Queries => false,
            };
            if is_left_out {
                continue;
            }
            let begun = Instant::now();
            let answer = path.send(&n1, sql).await;
            let reason = match told {
                Told::Refused(reason) => reason,
                Told::Either(writing, _) if path.may_write() => writing,
                Told::Either(_, reading) => reading,
                Told::Ended => "",
            };
            let is_refused = answer.contains("\"error\"") && answer.contains(reason);
            if !is_refused {
                let answer: String = answer.chars().take(300).collect();
                faults.push(format!("{path:?}: {shown}: expected {reason:?}: {answer}"));
            }
            if begun.elapsed() > BOUND {
                faults.push(format!("{path:?}: {shown}: took {:?}", begun.elapsed()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let write = json!(["INSERT INTO kv (key) VALUES ('still here')"]).to_string();
    let (status, body) = n1.send("POST", "/v1/transactions", &write).await;
    assert_eq!(status, 200, "{body}");
    let (_, rows) = n1.send("POST", "/v1/queries", &json!("SELECT key FROM kv").to_string()).await;
    assert!(rows.contains("still here") && rows.lines().count() == 3, "{rows}");
    assert_eq!(n1.dig("web.internal"), [n1.ip.to_string()]);
    let services: Json = n1.get("/v1/agent/services").await;
    assert!(services.get("web").is_some(), "{services}");
    assert!(n1.is_running());
}
