//! The schema on several nodes at once: what one is told all come to, in any order.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::crdt::storage::Storage;
use crate::crdt::suite::catch_up;
use crate::crdt::{Batch, Commit, Piece};
use crate::store::trial::{NOW, Trial, changes, events, rows, run, source};
use crate::store::{OpenConfig, Store};
use crate::types::{NodeId, Origin, Version};

fn node(number: u8) -> Store {
    let config = OpenConfig { node: Some(NodeId([number; 16])), ..OpenConfig::default() };
    Store::in_memory(&config, &fixed_sources()).unwrap()
}

fn request(sql: &str, allow_drop: bool) -> SchemaRequest {
    SchemaRequest { sources: vec![source(sql)], mode: Mode::Apply { allow_drop }, dry_run: false }
}

fn change(
    store: &mut Store,
    request: &SchemaRequest,
) -> Result<(SchemaChange, Option<Commit>), SchemaError> {
    let mut group = store.group(NOW);
    let change = group.schema(request)?;
    Ok((change, group.commit().unwrap().pop().map(|commit| (*commit).clone())))
}

fn grow(store: &mut Store, sql: &str) -> Commit {
    change(store, &request(sql, false)).unwrap().1.expect("it changes something")
}

fn shrink(store: &mut Store, sql: &str) -> Commit {
    change(store, &request(sql, true)).unwrap().1.expect("it changes something")
}

fn say(store: &mut Store, sql: &str) -> Commit {
    run(store, &[sql]).unwrap().1.expect("it changes something")
}

fn hear(store: &mut Store, commit: &Commit) -> Vec<String> {
    let piece = Piece::of(commit.changeset.clone().expect("a local commit"));
    events(&store.apply(NOW, &Batch { pieces: vec![piece] }).unwrap())
}

/// Brings `to` to what `from` holds, one piece an origin, in an order of the caller's.
fn pull(from: &Store, to: &mut Store, bytes_max: usize, order: u64) -> bool {
    let mut heads = from.heads().unwrap();
    let count = heads.len().max(1);
    heads.rotate_left(usize::try_from(order).unwrap() % count);
    let mut is_news = false;
    for (origin, _) in heads {
        is_news |= catch_up(to, from, origin, bytes_max).is_some();
    }
    is_news
}

fn head(store: &Store, origin: Origin) -> Version {
    let heads = store.heads().unwrap();
    heads.iter().find(|(held, _)| *held == origin).map_or(Version(0), |(_, head)| *head)
}

/// Exchanges until nobody has news for anybody.
fn settle(stores: &mut [Store]) {
    loop {
        let mut is_news = false;
        for from in 0..stores.len() {
            for to in (0..stores.len()).filter(|to| *to != from) {
                let (one, other) = pair(stores, from, to);
                is_news |= pull(one, other, usize::MAX, 0);
            }
        }
        if !is_news {
            return;
        }
    }
}

fn pair(stores: &mut [Store], from: usize, to: usize) -> (&Store, &mut Store) {
    if from < to {
        let (left, right) = stores.split_at_mut(to);
        (&left[from], &mut right[0])
    } else {
        let (left, right) = stores.split_at_mut(from);
        (&right[0], &mut left[to])
    }
}

/// All that SQLite says of the tables that schema changes made: columns, keys, indexes.
fn shapes(store: &Store) -> Vec<String> {
    let mut shown = Vec::new();
    for name in crate::store::tables::replicated(&store.conn).unwrap() {
        if FIXED_TABLES.contains(&&*name) {
            continue;
        }
        let shape = shape::shape_of(&store.conn, &name).unwrap();
        shown.push(shape.create(&name));
        for column in crate::store::tables::all_columns_of(&store.conn, &name).unwrap() {
            shown.push(format!("{column:?}"));
        }
        let indexes = shape::indexes_of(&store.conn, Some(&name)).unwrap();
        shown.extend(indexes.iter().map(shape::IndexText::create));
    }
    shown
}

/// All rows of the tables that schema changes made.
fn shown(store: &Store) -> Vec<String> {
    let mut lines = Vec::new();
    for name in crate::store::tables::replicated(&store.conn).unwrap() {
        let table = store.tables.get(&name).unwrap();
        if FIXED_TABLES.contains(&&*name) {
            continue;
        }
        let columns: Vec<String> =
            table.info.columns.iter().map(|name| crate::store::values::quote(name)).collect();
        let sql = format!(
            "SELECT {0} FROM {1} ORDER BY {0}",
            columns.join(", "),
            crate::store::values::quote(&name)
        );
        lines.extend(rows(store, &sql).iter().map(|row| format!("{name}: {row}")));
    }
    lines
}

#[track_caller]
fn check_alike(stores: &[Store]) {
    for store in &stores[1..] {
        assert_eq!(shapes(store), shapes(&stores[0]));
        assert_eq!(shown(store), shown(&stores[0]));
        assert_eq!(store.fingerprint().unwrap(), stores[0].fingerprint().unwrap());
    }
}

const T: &str = "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, v TEXT DEFAULT 'dv')";
const KEY_ONLY: &str = "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY)";

/// Two nodes, of which one has made a table and the other has heard of it.
fn two_with(sql: &str) -> [Store; 2] {
    let mut stores = [node(1), node(2)];
    let made = grow(&mut stores[0], sql);
    hear(&mut stores[1], &made);
    stores
}

#[test]
fn a_table_that_one_node_makes_all_have() {
    let (mut a, mut b) = (node(1), node(2));
    let made = grow(&mut a, &format!("{T}; CREATE INDEX t_by_v ON t (v)"));
    assert_eq!(
        changes(&made),
        [
            "tribune_schema['column','t',1,'id']@1 definition:1='INTEGER NOT NULL' place:1=0",
            "tribune_schema['column','t',1,'v']@1 definition:1='TEXT DEFAULT ''dv''' place:1=1",
            "tribune_schema['index','t',1,'t_by_v']@1 definition:1='( v )' place:1=0",
            "tribune_schema['table','t',0,'']@1 definition:1='{\"key\":[\"id\"],\"strict\":false,\"without_rowid\":false}' place:1=0",
        ]
    );
    hear(&mut b, &made);
    let row = say(&mut b, "INSERT INTO t (id) VALUES (1)");
    assert_eq!(hear(&mut a, &row), ["+t 1 'dv'"]);
    check_alike(&[a, b]);
}

#[test]
fn a_column_that_is_added_writes_nothing_but_its_row() {
    let (mut a, mut b) = (node(1), node(2));
    for commit in [grow(&mut a, T), say(&mut a, "INSERT INTO t (id) VALUES (1), (2), (3)")] {
        hear(&mut b, &commit);
    }
    let clocks = |store: &Store| -> Vec<Vec<u8>> {
        let sql = "SELECT clock FROM __tribune_rows WHERE tbl = (SELECT id FROM __tribune_tables WHERE name = 't')";
        let mut statement = store.conn.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let before = clocks(&a);
    let written: i64 = a.conn.query_row("SELECT total_changes()", [], |row| row.get(0)).unwrap();
    let wide = T.replace(")", ", w INT NOT NULL DEFAULT 7)");
    let added = grow(&mut a, &wide);
    assert_eq!(
        changes(&added),
        ["tribune_schema['column','t',1,'w']@1 definition:1='INT NOT NULL DEFAULT 7' place:1=2"]
    );
    assert_eq!(events(&added), ["+tribune_schema 'column' 't' 1 'w' 'INT NOT NULL DEFAULT 7' 2"]);
    assert_eq!(clocks(&a), before);
    let after: i64 = a.conn.query_row("SELECT total_changes()", [], |row| row.get(0)).unwrap();
    assert!(after - written < 20, "{} rows were written", after - written);
    assert_eq!(hear(&mut b, &added), events(&added));
    assert_eq!(clocks(&b), before);
    assert_eq!(shown(&b), ["t: 1 'dv' 7", "t: 2 'dv' 7", "t: 3 'dv' 7"]);
    let told = say(&mut b, "UPDATE t SET w = 8 WHERE id = 2");
    assert_eq!(changes(&told), ["t[2]@1 w:1=8"]);
    hear(&mut a, &told);
    check_alike(&[a, b]);
}

#[test]
fn values_wait_for_their_column_and_their_table_in_any_order() {
    let (mut a, mut b) = (node(1), node(2));
    let made = grow(&mut a, T);
    let row = say(&mut a, "INSERT INTO t VALUES (1, 'x')");
    hear(&mut b, &made);
    hear(&mut b, &row);
    // B adds a column and writes it; C hears B's rows first, then everything else, twice.
    let wide = grow(&mut b, &T.replace(")", ", w)"));
    let wrote = say(&mut b, "UPDATE t SET w = 5");
    let mut c = node(3);
    for commit in [&wide, &wrote, &wrote, &wide] {
        hear(&mut c, commit);
    }
    assert_eq!(shapes(&c), Vec::<String>::new());
    assert_eq!(c.schema_asides().load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(hear(&mut c, &made).last().unwrap(), "+t 1 'dv' 5");
    assert_eq!(hear(&mut c, &row), ["=t 1 'x' 5"]);
    assert_eq!(hear(&mut c, &row), Vec::<String>::new());
    for commit in [&wide, &wrote] {
        hear(&mut a, commit);
    }
    assert_eq!(c.stats().unwrap().parked_rows, 0);
    check_alike(&[a, b, c]);
}

#[test]
fn columns_that_two_nodes_add_at_once_both_stay_in_one_order() {
    let mut stores = two_with(T);
    grow(&mut stores[0], &T.replace(")", ", x DEFAULT 1)"));
    grow(&mut stores[1], &T.replace(")", ", a DEFAULT 2)"));
    say(&mut stores[0], "INSERT INTO t VALUES (1, 'p', 'x')");
    say(&mut stores[1], "INSERT INTO t VALUES (1, 'q', 'a')");
    settle(&mut stores);
    check_alike(&stores);
    assert_eq!(shown(&stores[0]), ["t: 1 'q' 'a' 'x'"]);
}

#[test]
fn two_definitions_of_one_column_become_one_and_no_value_is_lost() {
    let mut stores = two_with(T);
    grow(&mut stores[0], &T.replace(")", ", w INT NOT NULL DEFAULT 1 CHECK (w < 9))"));
    grow(&mut stores[1], &T.replace(")", ", w TEXT DEFAULT 'z')"));
    say(&mut stores[0], "INSERT INTO t (id, w) VALUES (1, 5), (3, 6)");
    say(&mut stores[1], "INSERT INTO t (id, w) VALUES (2, 'text'), (4, 'u')");
    settle(&mut stores);
    check_alike(&stores);
    // TEXT is the greater text, so it won. An integer is no text: those rows are kept aside.
    assert_eq!(shown(&stores[0]), ["t: 2 'dv' 'text'", "t: 4 'dv' 'u'"]);
    assert_eq!(stores[1].stats().unwrap().quarantined_rows, 2);
    say(&mut stores[1], "INSERT INTO t VALUES (1, 'again', 'five')");
    settle(&mut stores);
    check_alike(&stores);
    assert_eq!(shown(&stores[0])[0], "t: 1 'again' 'five'");
}

#[test]
fn two_tables_of_one_name_become_one() {
    let mut stores = [node(1), node(2)];
    grow(&mut stores[0], "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, v DEFAULT 1)");
    grow(
        &mut stores[1],
        "CREATE TABLE t (k TEXT NOT NULL, l INT NOT NULL, w, PRIMARY KEY (k, l)) STRICT"
            .replace("w,", "w ANY,")
            .as_str(),
    );
    say(&mut stores[0], "INSERT INTO t VALUES (1, 'a')");
    say(&mut stores[1], "INSERT INTO t VALUES ('k', 1, 'b')");
    settle(&mut stores);
    check_alike(&stores);
    let asides = asides(&stores[0].conn).unwrap();
    assert!(!asides.is_empty());
    // What does not fit waits, and goes where its definition goes.
    shrink(&mut stores[0], "DROP TABLE t");
    settle(&mut stores);
    check_alike(&stores);
    assert_eq!(shapes(&stores[0]), Vec::<String>::new());
    assert_eq!(stores[1].stats().unwrap().parked_rows, 0);
}

#[test]
fn what_was_dropped_does_not_come_back() {
    let mut stores = [node(1), node(2), node(3)];
    let wide = T.replace(")", ", w DEFAULT 0)");
    grow(&mut stores[0], &wide);
    say(&mut stores[0], "INSERT INTO t VALUES (1, 'a', 'b')");
    settle(&mut stores);
    let error = change(&mut stores[0], &request(T, false)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "test.sql: table t, column w: it is in the database but not in the file; put it back, or drop it with its values on every node: --allow-drop"
    );
    shrink(&mut stores[0], T);
    assert_eq!(shown(&stores[0]), ["t: 1 'a'"]);
    // B does not know yet, and writes the old shape; C hears it before and after the drop.
    let late = say(&mut stores[1], "UPDATE t SET w = 'late', v = 'c'");
    let later = say(&mut stores[1], "INSERT INTO t VALUES (2, 'd', 'later')");
    hear(&mut stores[2], &late);
    hear(&mut stores[0], &late);
    hear(&mut stores[0], &later);
    settle(&mut stores);
    check_alike(&stores);
    assert_eq!(shown(&stores[2]), ["t: 1 'c'", "t: 2 'd'"]);
    let mut new = node(4);
    pull(&stores[1], &mut new, usize::MAX, 0);
    pull(&stores[1], &mut new, usize::MAX, 0);
    assert_eq!(new.fingerprint().unwrap(), stores[0].fingerprint().unwrap());

    // The name is used again, under another one on the wire: what is still under way stays away.
    grow(&mut stores[2], &wide);
    let fresh = say(&mut stores[2], "UPDATE t SET w = 'new' WHERE id = 2");
    assert_eq!(changes(&fresh), [format!("t[2]@1 w{}2:1='new'", '\0')]);
    let late = say(&mut stores[1], "UPDATE t SET v = 'e' WHERE id = 1");
    hear(&mut stores[2], &late);
    settle(&mut stores);
    check_alike(&stores);
    assert_eq!(shown(&stores[0]), ["t: 1 'e' 0", "t: 2 'd' 'new'"]);
}

#[test]
fn a_table_that_is_dropped_and_made_again_begins_empty() {
    let mut stores = [node(1), node(2)];
    grow(&mut stores[0], &format!("{T}; CREATE INDEX i ON t (v)"));
    say(&mut stores[0], "INSERT INTO t VALUES (1, 'old')");
    settle(&mut stores);
    let refused = change(&mut stores[0], &request("DROP TABLE t", false)).unwrap_err();
    assert!(refused.to_string().contains("--allow-drop"), "{refused}");
    let both = change(&mut stores[0], &request(&format!("DROP TABLE t; {T}"), true)).unwrap_err();
    assert!(both.to_string().contains("make two of it"), "{both}");
    shrink(&mut stores[0], "DROP TABLE t");
    say(&mut stores[1], "INSERT INTO t VALUES (2, 'late')");
    grow(&mut stores[0], "CREATE TABLE t (id TEXT NOT NULL PRIMARY KEY, v)");
    say(&mut stores[0], "INSERT INTO t VALUES ('new', 5)");
    settle(&mut stores);
    check_alike(&stores);
    assert_eq!(shown(&stores[1]), ["t: 'new' 5"]);
    assert_eq!(stores[1].stats().unwrap().parked_rows, 0);
    // A file of before makes nothing again by itself.
    let old = SchemaRequest { mode: Mode::Start, ..request(T, false) };
    shrink(&mut stores[0], "DROP TABLE t");
    let (change, commit) = change(&mut stores[0], &old).unwrap();
    assert_eq!((change.is_empty(), change.notes.len(), commit), (true, 1, None));
}

#[test]
fn an_index_and_a_column_that_do_not_go_together_are_refused_here_and_kept_aside_there() {
    let mut stores = two_with(T);
    grow(&mut stores[0], &format!("{T}; CREATE INDEX i ON t (v)"));
    let error = change(&mut stores[0], &request(KEY_ONLY, true)).unwrap_err();
    assert!(error.to_string().contains("index i: no such column: v"), "{error}");
    check_alike(&stores[..1]);
    // B does not know of the index, so it may.
    shrink(&mut stores[1], KEY_ONLY);
    settle(&mut stores);
    check_alike(&stores);
    assert_eq!(asides(&stores[0].conn).unwrap().len(), 1);
    change(&mut stores[1], &request("DROP INDEX i", false)).unwrap();
    settle(&mut stores);
    assert_eq!(asides(&stores[0].conn).unwrap(), []);
}

#[test]
fn a_dry_run_tells_and_changes_nothing() {
    let mut a = node(1);
    let dry = SchemaRequest { dry_run: true, ..request(T, false) };
    let (told, commit) = change(&mut a, &dry).unwrap();
    assert_eq!((told.tables_added, commit), (vec!["t".to_owned()], None));
    assert_eq!(shapes(&a), Vec::<String>::new());
    run(&mut a, &["INSERT INTO t VALUES (1)"]).unwrap_err();
    grow(&mut a, T);
    say(&mut a, "INSERT INTO t VALUES (1, 'x')");
    let dry = SchemaRequest { dry_run: true, ..request("DROP TABLE t", true) };
    assert_eq!(change(&mut a, &dry).unwrap().0.tables_dropped, ["t"]);
    say(&mut a, "UPDATE t SET v = 'y'");
    assert_eq!(shown(&a), ["t: 1 'y'"]);
}

#[test]
fn nobody_writes_the_schema_by_statements() {
    let mut a = node(1);
    grow(&mut a, T);
    for sql in ["DELETE FROM tribune_schema", "UPDATE Tribune_Schema SET place = 1"] {
        let error = run(&mut a, &[sql]).unwrap_err().to_string();
        assert!(error.contains("tribune schema apply"), "{error}");
    }
    run(&mut a, &["SELECT * FROM tribune_schema"]).unwrap();
}

#[test]
fn definitions_that_make_no_sense_stop_nobody() {
    let (mut a, mut b) = (node(1), node(2));
    grow(&mut a, T);
    // As a newer program, or a broken one, could write them.
    let odd = [
        "('table', 'x', 0, '', 'no json', 0)",
        "('table', 'nodes', 0, '', '{\"key\":[\"id\"],\"strict\":false,\"without_rowid\":false}', 0)",
        "('table', 'y', 0, '', '{\"key\":[\"id\"],\"strict\":false,\"without_rowid\":false}', 0)",
        "('column', 't', 1, 'bad', 'INT); DROP TABLE nodes; --', 5)",
        "('column', 't', 1, 'worse', 'INT DEFAULT (random())', 6)",
        "('column', 't', 1, 'V', 'INT', 7)",
        "('column', 't', 1, 'good', 'INT', 8)",
        "('view', 't', 1, 'z', 'SELECT 1', 0)",
        "('index', 't', 1, 'j', '( good ); DROP TABLE nodes', 0)",
    ];
    let before = a.origins.head(a.origin());
    for values in odd {
        let sql = format!("INSERT INTO tribune_schema VALUES {values}");
        let mut group = a.group(NOW);
        group.forge(&sql);
        group.commit().unwrap();
    }
    assert!(a.origins.head(a.origin()) > before);
    pull(&a, &mut b, usize::MAX, 0);
    let told = asides(&b.conn).unwrap();
    assert_eq!(told.len(), 7, "{told:?}");
    assert_eq!(told, asides(&a.conn).unwrap());
    assert_eq!(b.schema_asides().load(std::sync::atomic::Ordering::Relaxed), 7);
    let row = say(&mut a, "INSERT INTO t (id, good) VALUES (1, 2)");
    assert_eq!(hear(&mut b, &row), ["+t 1 'dv' 2"]);
    assert!(b.tables.get("nodes").is_some());
    check_alike(&[a, b]);
}

#[test]
fn a_store_keeps_its_schema_and_its_files_only_add() {
    let mut trial = Trial::new("");
    let file = trial.dir.path().join("app.sql");
    std::fs::write(&file, T).unwrap();
    trial.config.schema = vec![file.clone()];
    let mut trial = trial.reopen();
    let version = head(&trial.store, trial.store.origin());
    assert_eq!(version, Version(1));
    grow(&mut trial.store, &T.replace(")", ", w)"));
    shrink(&mut trial.store, &T.replace("v TEXT DEFAULT 'dv'", "w"));
    trial.write(&["INSERT INTO t VALUES (1, 2)"]);
    let fingerprint = trial.store.fingerprint().unwrap();
    // The file still has `v` and lacks `w`.
    let trial = trial.reopen();
    assert_eq!(trial.rows("SELECT * FROM t"), ["1 2"]);
    assert_eq!(trial.store.fingerprint().unwrap(), fingerprint);
}

#[test]
fn a_million_rows_are_not_touched_when_a_column_comes() {
    add_column_to(20_000);
}

/// Prints how long the writer is held. Run it with `--ignored --nocapture`.
#[test]
#[ignore = "takes a minute; prints a measurement"]
fn a_column_is_added_to_a_million_rows() {
    add_column_to(1_000_000);
}

fn add_column_to(rows: u64) {
    let mut trial = Trial::new("");
    grow(&mut trial.store, T);
    let mut left = rows;
    while left > 0 {
        let from = rows - left;
        trial.write(&[&format!(
            "WITH RECURSIVE n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n LIMIT 20000)
             INSERT INTO t SELECT i, 'value ' || i FROM n"
        )]);
        trial.store.maintain().unwrap();
        left = left.saturating_sub(20_000);
    }
    let begun = std::time::Instant::now();
    let added = grow(&mut trial.store, &T.replace(")", ", w INT NOT NULL DEFAULT 7)"));
    let took = begun.elapsed();
    assert_eq!(changes(&added).len(), 1);
    assert_eq!(trial.rows("SELECT count(*), sum(w) FROM t"), [format!("{rows} {}", rows * 7)]);
    assert!(took < std::time::Duration::from_secs(1), "it took {took:?}");
    let begun = std::time::Instant::now();
    shrink(&mut trial.store, &T.replace("v TEXT DEFAULT 'dv'", "w INT NOT NULL DEFAULT 7"));
    let dropped = begun.elapsed();
    let _ = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("{rows} rows: a column added in {took:?}, another dropped in {dropped:?}\n")
            .as_bytes(),
    );
}

/// One thing that happens in a random history.
#[derive(Clone, Debug)]
enum Step {
    Grow(usize, usize),
    Shrink(usize, usize),
    Write(usize, String),
    /// From, to, bytes, order. Applied twice when the last is odd.
    Pull(usize, usize, usize, u64),
}

const FILES: [&str; 10] = [
    "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, v DEFAULT 'dv')",
    "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, v DEFAULT 'dv', w INT DEFAULT 3)",
    "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, v DEFAULT 'dv', w TEXT NOT NULL DEFAULT 'x')",
    "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, a, v DEFAULT 'dv'); CREATE INDEX i ON t (a)",
    "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, w INT DEFAULT 3, W2 INT CHECK (W2 < 5), g AS (w + 1))",
    "CREATE TABLE t (id NOT NULL, k INT NOT NULL, v, PRIMARY KEY (k, id)) WITHOUT ROWID",
    "CREATE TABLE u (id INTEGER NOT NULL PRIMARY KEY, v); CREATE INDEX i ON u (v)",
    "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY)",
    "DROP TABLE IF EXISTS t",
    "DROP TABLE IF EXISTS u; DROP INDEX IF EXISTS i",
];

fn step() -> impl Strategy<Value = Step> {
    let store = 0..3_usize;
    let value = prop::sample::select(vec!["NULL", "'a'", "'5'", "1", "2.5", "7"]);
    let column = prop::sample::select(vec!["v", "w", "a", "W2"]);
    let write = (store.clone(), 0..8_u8, 1..4_i64, column, value).prop_map(
        |(store, kind, id, column, value)| {
            let sql = match kind {
                0 | 1 => format!("INSERT OR REPLACE INTO t (id, {column}) VALUES ({id}, {value})"),
                2 => format!("INSERT OR IGNORE INTO t (id, k, v) VALUES ({id}, 1, {value})"),
                3 | 4 => format!("UPDATE t SET {column} = {value} WHERE id = {id}"),
                5 => format!("DELETE FROM t WHERE id = {id}"),
                6 => format!("INSERT OR REPLACE INTO u VALUES ({id}, {value})"),
                _ => format!("UPDATE t SET id = id + 1 WHERE id = {id}"),
            };
            Step::Write(store, sql)
        },
    );
    prop_oneof![
        2 => (store.clone(), 0..FILES.len()).prop_map(|(store, file)| Step::Grow(store, file)),
        2 => (store.clone(), 0..FILES.len()).prop_map(|(store, file)| Step::Shrink(store, file)),
        6 => write,
        4 => (store.clone(), store, prop::sample::select(vec![1, 80, usize::MAX]), any::<u64>())
            .prop_map(|(from, to, bytes, order)| Step::Pull(from, to, bytes, order)),
    ]
}

fn play(steps: &[Step]) -> Vec<Store> {
    let mut stores = vec![node(1), node(2), node(3)];
    for step in steps {
        match step {
            // Refusals are part of the story: the schema is then as it was.
            Step::Grow(store, file) => {
                let _ = change(&mut stores[*store], &request(FILES[*file], false));
            }
            Step::Shrink(store, file) => {
                let _ = change(&mut stores[*store], &request(FILES[*file], true));
            }
            Step::Write(store, sql) => {
                let _ = run(&mut stores[*store], &[sql]);
            }
            Step::Pull(from, to, bytes, order) if from != to => {
                let (one, other) = pair(&mut stores, *from, *to);
                pull(one, other, *bytes, *order);
                if order % 2 == 1 {
                    pull(one, other, *bytes, *order / 2);
                }
            }
            Step::Pull(..) => {}
        }
    }
    settle(&mut stores);
    stores
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Nodes make, change and drop tables and write rows, and hear of each other in parts, late and
    /// twice. In the end all are alike, and so is one that heard everything at once.
    #[test]
    fn whatever_happens_to_the_schema_all_end_alike(steps in prop::collection::vec(step(), 0..60)) {
        let mut stores = play(&steps);
        let mut late = node(9);
        while pull(&stores[0], &mut late, 300, 1) {}
        stores.push(late);
        let mut seen = BTreeMap::new();
        for store in &stores {
            let state = (shapes(store), shown(store), store.fingerprint().unwrap(), asides(&store.conn).unwrap());
            seen.entry(format!("{state:#?}")).or_insert(store.origin().node);
            // What the tables show is what the clocks and the parked values say.
            prop_assert_eq!(store.tables.without_shape().filter(|id| {
                let entry = store.tables.entry(*id);
                !entry.is_dropped && &*entry.name == "nodes"
            }).count(), 0);
        }
        prop_assert_eq!(seen.len(), 1, "{:?}", seen.keys().collect::<Vec<_>>());
    }
}

#[test]
fn a_group_that_begins_again_makes_the_same_schema() {
    let mut a = node(1);
    let soon = Some(std::time::Instant::now() + std::time::Duration::from_millis(300));
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n, n AS m";
    let mut group = a.group(NOW);
    group.schema(&request(T, false)).unwrap();
    group.sql(&[crate::store::trial::plain("INSERT INTO t VALUES (1, 'x')")], None).unwrap();
    group.schema(&request(&T.replace(")", ", w DEFAULT 2)"), false)).unwrap();
    let write = "INSERT INTO t VALUES (2, 'y', 3)";
    let both = [write, endless].map(crate::store::trial::plain);
    group.sql(&both, soon).unwrap_err();
    group.schema(&request("DROP TABLE t; CREATE TABLE bad (x)", true)).unwrap_err();
    group.sql(&[crate::store::trial::plain(write)], None).unwrap();
    assert_eq!(group.commit().unwrap().len(), 4);
    assert_eq!(shown(&a), ["t: 1 'x' 2", "t: 2 'y' 3"]);
    let mut b = node(2);
    pull(&a, &mut b, usize::MAX, 0);
    check_alike(&[a, b]);
}

fn forge(store: &mut Store, values: &str) {
    let mut group = store.group(NOW);
    group.forge(&format!("INSERT INTO tribune_schema VALUES {values}"));
    group.commit().unwrap();
}

#[test]
fn definitions_of_a_hostile_node_are_kept_aside_and_stop_nobody() {
    let (mut a, mut b) = (node(1), node(2));
    grow(&mut a, T);
    let frame = "'{\"key\":[\"id\"],\"strict\":false,\"without_rowid\":false}'";
    let costly = "INT CHECK (instr(hex(zeroblob(50000000)), ''x'') = 0)";
    let long = "x".repeat(20_000);
    for values in [
        "('index', 't', 1, 'i', '( id ); DROP TABLE [\u{e9}', 0)".to_owned(),
        format!("('column', 't', 1, 'costly', '{costly}', 5)"),
        format!("('table', '', 0, '', {frame}, 0)"),
        "('column', 't', 1, '', 'INT', 6)".to_owned(),
        "('column', 't', 1, 'blob', x'00', 7)".to_owned(),
        "('column', 't', 1, 'real', 'INT', 7.5)".to_owned(),
        format!("('column', 't', 1, 'long', 'DEFAULT ''{long}''', 8)"),
        "('index', 't', 1, 'j', '( json_extract ( v , ''$'' ) )', 0)".to_owned(),
        "('column', 't', 1, 'n', 'INT CHECK (changes() = 0)', 9)".to_owned(),
    ] {
        forge(&mut a, &values);
    }
    pull(&a, &mut b, usize::MAX, 0);
    let told = asides(&b.conn).unwrap();
    assert_eq!(told, asides(&a.conn).unwrap());
    assert_eq!(told.len(), 9, "{told:#?}");
    // The log says each once; what was not committed is not said.
    assert_eq!(b.told_asides, told.iter().cloned().collect());
    let index = format!("{}; CREATE INDEX i ON t (v)", T.replace(")", ", y)"));
    let dry = SchemaRequest { dry_run: true, ..request(&index, true) };
    let _ = change(&mut b, &dry);
    assert_eq!(b.told_asides.len(), 9);
    // The whole origin still travels, and rows of the table do.
    say(&mut a, "INSERT INTO t VALUES (1, 'x')");
    pull(&a, &mut b, usize::MAX, 0);
    assert_eq!(head(&b, a.origin()), head(&a, a.origin()));
    assert_eq!(shown(&b), ["t: 1 'x'"]);
    check_alike(&[a, b]);
}

#[test]
fn lives_of_any_length_are_no_reason_not_to_serve_a_pull() {
    let mut trial = Trial::new("");
    let mut loader = crate::store::changes::Loader::open(trial.store.path().unwrap()).unwrap();
    grow(&mut trial.store, T);
    let made = i64::MAX - 1;
    trial.store.conn.execute("UPDATE __tribune_names SET length = ?1", [made]).unwrap();
    let me = trial.store.origin();
    loader.load(me, Version(0), 10_000).unwrap();
}

#[test]
fn the_tables_too_many_are_the_last_by_name_on_every_node() {
    let mut rows = rows::SchemaRows::new();
    let frame = "{\"key\":[\"id\"],\"strict\":false,\"without_rowid\":false}";
    let row = |definition: &str| rows::SchemaRow {
        length: 1,
        definition: definition.to_owned(),
        place: 0,
        is_readable: true,
    };
    for n in 0..1_005 {
        rows.insert(rows::RowKey::table(&format!("t{n:04}")), row(frame));
    }
    for n in 0..250 {
        rows.insert(rows::RowKey::column("t0000", 1, &format!("c{n:03}")), row("INT"));
    }
    for n in 0..70 {
        rows.insert(rows::RowKey::index("t0000", 1, &format!("i{n:02}")), row("( id )"));
    }
    let (tables, asides) = wanted::wanted(&rows);
    assert_eq!(tables.len(), 1_000);
    assert_eq!((tables[0].shape.columns.len(), tables[0].indexes.len()), (200, 64));
    assert_eq!(asides.len(), 5 + 50 + 6);
    assert!(asides.iter().any(|aside| aside.table == "t1004"));
}

#[test]
fn a_dry_run_that_would_empty_what_is_parked_leaves_merges_whole() {
    let [mut a, mut b] = two_with(T);
    // Two definitions of one column: the rows of the one that lost are kept aside.
    grow(&mut a, &T.replace(")", ", w INT NOT NULL DEFAULT 1)"));
    grow(&mut b, &T.replace(")", ", w TEXT DEFAULT 'z')"));
    say(&mut a, "INSERT INTO t VALUES (1, 'a', 5)");
    let mut stores = [a, b];
    settle(&mut stores);
    assert_eq!(stores[1].stats().unwrap().quarantined_rows, 1);
    let dry = SchemaRequest { dry_run: true, ..request(T, true) };
    change(&mut stores[1], &dry).unwrap();
    let parked = stores[1].has_parked.clone();
    assert_eq!(parked.len(), 1);
    // A refused one, too.
    change(&mut stores[1], &request(&format!("{T}; CREATE INDEX i ON t (nothing)"), true))
        .unwrap_err();
    assert_eq!(stores[1].has_parked, parked);
    // A remote write of one cell keeps the others.
    let mut fixed = node(3);
    while pull(&stores[0], &mut fixed, usize::MAX, 0) {}
    say(&mut stores[0], "INSERT OR REPLACE INTO t VALUES (1, 'again', 'text')");
    let told = say(&mut stores[0], "UPDATE t SET v = 'b' WHERE id = 1");
    drop(told);
    settle(&mut stores);
    check_alike(&stores);
    assert_eq!(shown(&stores[1]), ["t: 1 'b' 'text'"]);
}

#[test]
fn a_row_comes_back_to_sight_when_the_column_that_kept_it_aside_is_dropped() {
    let mut stores = two_with(KEY_ONLY);
    let wide = |column: &str| KEY_ONLY.replace(")", &format!(", {column})"));
    grow(&mut stores[0], &wide("w INT NOT NULL DEFAULT 1"));
    grow(&mut stores[1], &wide("w TEXT DEFAULT 'z'"));
    say(&mut stores[0], "INSERT INTO t VALUES (1, 5)");
    settle(&mut stores);
    assert_eq!(shown(&stores[0]), Vec::<String>::new());
    shrink(&mut stores[0], KEY_ONLY);
    assert_eq!(shown(&stores[0]), ["t: 1"]);
    settle(&mut stores);
    check_alike(&stores);
    assert_eq!(stores[1].stats().unwrap().parked_rows, 0);
}

#[test]
fn an_old_file_of_a_node_that_starts_only_adds() {
    let mut a = node(1);
    let start = |sql: &str| SchemaRequest { mode: Mode::Start, ..request(sql, false) };
    let wide = format!("{}; CREATE INDEX i ON t (v)", T.replace(")", ", old)"));
    grow(&mut a, &wide);
    shrink(&mut a, "DROP TABLE T");
    grow(&mut a, &format!("{T}; CREATE INDEX j ON t (v)"));
    let before = shapes(&a);
    for (file, notes) in [
        ("CREATE TABLE t (id TEXT NOT NULL PRIMARY KEY, v TEXT DEFAULT 'dv')", 1),
        ("CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, v INT)", 1),
        ("CREATE TABLE T (id INTEGER NOT NULL PRIMARY KEY, v TEXT)", 1),
        (&*T.replace(")", ") STRICT"), 1),
        (&*wide, 2),
        (&*format!("{T}; CREATE INDEX j ON t (id, v)"), 1),
        ("CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY)", 1),
        ("DROP TABLE t", 1),
        // It goes with no index that the cluster has.
        ("CREATE TABLE j (id INTEGER NOT NULL PRIMARY KEY)", 1),
    ] {
        let (told, commit) = change(&mut a, &start(file)).unwrap();
        assert_eq!((told.notes.len(), commit), (notes, None), "{file}: {told:?}");
        assert!(told.is_empty(), "{file}: {told:?}");
        assert_eq!(shapes(&a), before);
    }
    let (told, _) = change(&mut a, &start(&T.replace(")", ", new)"))).unwrap();
    assert_eq!(told.columns_added.len(), 1);
}

#[test]
fn a_default_that_nobody_wrote_is_not_kept_aside_as_a_value() {
    let mut stores = two_with(KEY_ONLY);
    let wide = |column: &str| KEY_ONLY.replace(")", &format!(", {column})"));
    grow(&mut stores[0], &wide("w INT NOT NULL DEFAULT 1"));
    grow(&mut stores[1], &wide("w TEXT DEFAULT 'z', q DEFAULT 'nobody'"));
    say(&mut stores[0], "INSERT INTO t VALUES (1, 5)");
    settle(&mut stores);
    for store in &stores {
        let sql = "SELECT count(*) FROM __tribune_parked";
        let count: i64 = store.conn.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(count, 1);
    }
}
