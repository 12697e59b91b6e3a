//! What local statements changed: a log of rows before and after, filled by the pre-update hook,
//! and the net effect of a transaction, row by row.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use super::hook::{self, RowAction, RowChanging};
use super::limits::{KEY_BYTES_MAX, TOUCHED_BYTES_MAX};
use super::tables::{Table, TableId, Tables};
use super::values::BadValue;
use crate::crdt::change::owns;
use crate::crdt::{Class, Key, Name, pack};
use crate::types::{NodeId, Value};

/// A row as it was and as it became, each in the order of the table's columns.
#[derive(Debug)]
struct Event {
    table: Arc<Table>,
    old: Option<Vec<Value>>,
    new: Option<Vec<Value>>,
}

/// What one row's changes in a transaction come to.
#[derive(Debug)]
pub struct Net {
    pub table: Arc<Table>,
    pub key: Key,
    /// `None`: it was not there.
    pub before: Option<Vec<Value>>,
    /// `None`: it is not there now.
    pub after: Option<Vec<Value>>,
    /// The key under which the row began this transaction, where that is another one.
    pub moved_from: Option<Key>,
}

/// The log. The hook writes to it, the store reads it: the same thread, one after the other.
#[derive(Debug, Default)]
pub struct Log {
    is_on: bool,
    me: NodeId,
    tables: BTreeMap<Name, Arc<Table>>,
    /// The one that was written last: the next row is mostly of the same.
    last: Option<Arc<Table>>,
    events: Vec<Event>,
    bytes: usize,
    fault: Option<String>,
}

/// A log that the hook and the store share.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    log: Arc<Mutex<Log>>,
}

impl Capture {
    /// Begins to watch a connection. Nothing is logged before [`Capture::start`].
    pub fn watch(conn: &Connection) -> rusqlite::Result<Self> {
        let capture = Self::default();
        let ours = capture.clone();
        hook::watch(conn, move |row| ours.lock().on_row(row))?;
        Ok(capture)
    }

    /// Says which tables are replicated, and who writes.
    pub fn set_tables(&self, me: NodeId, tables: &Tables) {
        let mut log = self.lock();
        log.me = me;
        let known = tables.entries().iter().filter_map(|entry| entry.table.clone());
        log.tables = known.map(|table| (Arc::clone(&table.info.name), table)).collect();
        log.last = None;
    }

    /// Logs from now on, into an empty log.
    pub fn start(&self) {
        let mut log = self.lock();
        log.clear();
        log.is_on = true;
    }

    /// Stops, and forgets what was logged.
    pub fn stop(&self) {
        self.lock().clear();
    }

    /// Lets `work` write rows that the hook does not log: whoever writes them logs them.
    pub fn unwatched<T>(&self, work: impl FnOnce() -> T) -> T {
        let was_on = std::mem::replace(&mut self.lock().is_on, false);
        let result = work();
        self.lock().is_on = was_on;
        result
    }

    /// Logs a row as the hook would. A table that is not replicated is left out.
    pub fn log(&self, table: &Arc<Table>, old: Option<Vec<Value>>, new: Option<Vec<Value>>) {
        let mut log = self.lock();
        if !log.is_on || log.fault.is_some() || !log.tables.contains_key(&table.info.name) {
            return;
        }
        let checked = old.iter().chain(&new).try_for_each(|row| log.check_side(table, row));
        match checked {
            Ok(()) => log.events.push(Event { table: Arc::clone(table), old, new }),
            Err(fault) => log.fault = Some(format!("table {}: {fault}", table.info.name)),
        }
    }

    /// Says what makes the transaction impossible, if anything does.
    pub fn fault(&self) -> Option<String> {
        self.lock().fault.clone()
    }

    /// Stops, and returns the net effect of what was logged: the rows in the order in which they
    /// were first touched, those that ended as they began left out.
    pub fn finish(&self) -> Result<Vec<Net>, String> {
        let mut log = self.lock();
        let events = std::mem::take(&mut log.events);
        let fault = log.fault.take();
        log.clear();
        drop(log);
        match fault {
            Some(fault) => Err(fault),
            None => net_of(events),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        // Nothing panics while it holds the lock; a poisoned one would be as good.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn clear(&mut self) {
        self.is_on = false;
        self.events.clear();
        self.bytes = 0;
        self.fault = None;
    }

    fn on_row(&mut self, row: &RowChanging<'_>) {
        if !self.is_on || self.fault.is_some() {
            return;
        }
        let last = self.last.take().filter(|last| *last.info.name == *row.table);
        let Some(table) = last.or_else(|| self.tables.get(row.table).cloned()) else { return };
        if let Err(fault) = self.log_row(row, &table) {
            self.fault = Some(format!("table {}: {fault}", table.info.name));
        }
        self.last = Some(table);
    }

    fn log_row(&mut self, row: &RowChanging<'_>, table: &Arc<Table>) -> Result<(), String> {
        let old = match row.action {
            RowAction::Insert => None,
            RowAction::Update | RowAction::Delete => Some(self.side(table, |cid| row.before(cid))?),
        };
        let new = match row.action {
            RowAction::Delete => None,
            RowAction::Insert | RowAction::Update => Some(self.side(table, |cid| row.after(cid))?),
        };
        self.events.push(Event { table: Arc::clone(table), old, new });
        Ok(())
    }

    fn side(
        &mut self,
        table: &Table,
        read: impl Fn(usize) -> Result<Value, BadValue>,
    ) -> Result<Vec<Value>, String> {
        let mut values = Vec::with_capacity(table.columns.len());
        for (column, name) in table.columns.iter().zip(&table.info.columns) {
            let value = read(column.cid).map_err(|bad| format!("column {name}: {bad}"))?;
            values.push(column.affinity.seen(value));
        }
        self.check_side(table, &values)?;
        Ok(values)
    }

    fn check_side(&mut self, table: &Table, values: &[Value]) -> Result<(), String> {
        self.bytes += values.iter().map(|value| value.bytes() + 16).sum::<usize>();
        if self.bytes > TOUCHED_BYTES_MAX {
            return Err(format!(
                "the transaction touches rows of more than {TOUCHED_BYTES_MAX} bytes in all; write in smaller transactions"
            ));
        }
        if table.class == Class::Owned && !owns(self.me, &values[table.info.key[0]]) {
            let (column, value) =
                (&table.info.columns[table.info.key[0]], &values[table.info.key[0]]);
            return Err(format!(
                "the row with {column} = {value} belongs to another node; only that node may write it"
            ));
        }
        Ok(())
    }
}

/// Folds events into one record a row.
fn net_of(events: Vec<Event>) -> Result<Vec<Net>, String> {
    let mut rows = Rows::default();
    for Event { table, old, new } in events {
        let old = old.map(|row| keyed(&table, row)).transpose()?;
        let new = new.map(|row| keyed(&table, row)).transpose()?;
        match (old, new) {
            (Some((key, old)), Some((new_key, new))) if key == new_key => {
                rows.of(&table, key, Some(old)).after = Some(new);
            }
            (Some((key, old)), Some((new_key, new))) => {
                rows.of(&table, Arc::clone(&key), Some(old)).after = None;
                let moved_from = rows.began_as(&table, &key);
                let row = rows.of(&table, new_key, None);
                row.after = Some(new);
                row.moved_from = moved_from;
            }
            (Some((key, old)), None) => rows.of(&table, key, Some(old)).after = None,
            (None, Some((key, new))) => {
                let row = rows.of(&table, key, None);
                row.after = Some(new);
                row.moved_from = None;
            }
            (None, None) => {}
        }
    }
    let is_touched = |row: &Net| row.table.class == Class::Owned && row.after.is_some();
    rows.list.retain(|row| row.before != row.after || is_touched(row));
    Ok(rows.list)
}

#[derive(Default)]
struct Rows {
    list: Vec<Net>,
    places: HashMap<(TableId, Key), usize>,
}

impl Rows {
    /// Returns the row's record. The first event of a row says what it was `before`.
    fn of(&mut self, table: &Arc<Table>, key: Key, before: Option<Vec<Value>>) -> &mut Net {
        let place = *self.places.entry((table.id, Arc::clone(&key))).or_insert_with(|| {
            let table = Arc::clone(table);
            self.list.push(Net { table, key, before, after: None, moved_from: None });
            self.list.len() - 1
        });
        &mut self.list[place]
    }

    /// Returns the key that the row now leaving `key` had when the transaction began; `None`: there
    /// was no such row then.
    fn began_as(&self, table: &Arc<Table>, key: &Key) -> Option<Key> {
        let place = *self.places.get(&(table.id, Arc::clone(key)))?;
        let row = &self.list[place];
        row.moved_from.clone().or_else(|| row.before.is_some().then(|| Arc::clone(key)))
    }
}

fn keyed(table: &Table, row: Vec<Value>) -> Result<(Key, Vec<Value>), String> {
    let values = table.key_of(&row);
    let said = |reason: String| format!("table {}: {reason}", table.info.name);
    table.check_key(values.clone()).map_err(said)?;
    let key = pack::pack_all(values).map_err(|error| said(error.to_string()))?;
    if key.len() > KEY_BYTES_MAX {
        return Err(format!(
            "table {}: a primary key has {} bytes; the longest allowed has {KEY_BYTES_MAX}",
            table.info.name,
            key.len(),
        ));
    }
    Ok((key, row))
}

#[cfg(test)]
mod tests {
    use crate::crdt::storage::Storage;
    use crate::crdt::{Batch, Piece};
    use crate::store::trial::{ME, T, Trial, changes, events, in_memory, run};
    use crate::types::{NodeId, Value};
    use proptest::prelude::*;

    /// Runs `setup`, then `sql` as one transaction, and compares what it tells others.
    #[track_caller]
    fn check(setup: &[&str], sql: &[&str], expected: &[&str]) {
        let mut store = in_memory(
            ME,
            &format!(
                "{T} CREATE TABLE r (k REAL NOT NULL, s TEXT NOT NULL, n REAL, PRIMARY KEY (k, s)) WITHOUT ROWID;"
            ),
        );
        for statement in setup {
            run(&mut store, &[statement]).unwrap();
        }
        let (transacted, commit) = run(&mut store, sql).unwrap();
        let told = commit.as_ref().map(changes).unwrap_or_default();
        assert_eq!(told, expected, "{sql:?}");
        assert_eq!(transacted.version.is_some(), !expected.is_empty());
    }

    const ONE: &str = "INSERT INTO t VALUES (1, 'a', 'b')";

    #[test]
    fn an_insert_tells_all_columns_with_their_defaults() {
        check(&[], &["INSERT INTO t (id, v) VALUES (1, x'00')"], &["t[1]@1 v:1=x'00' w:1='dw'"]);
    }

    #[test]
    fn an_update_tells_what_differs() {
        check(&[ONE], &["UPDATE t SET v = 'c', w = 'b'"], &["t[1]@1 v:2='c'"]);
    }

    #[test]
    fn what_ends_as_it_began_is_nothing() {
        check(&[ONE], &["UPDATE t SET v = 'a'"], &[]);
        check(&[ONE], &["UPDATE t SET v = 'x'", "UPDATE t SET v = 'a'"], &[]);
        check(&[ONE], &["DELETE FROM t", ONE], &[]);
        check(&[], &[ONE, "DELETE FROM t"], &[]);
        check(&[ONE], &["UPDATE t SET id = 2", "UPDATE t SET id = 1"], &[]);
    }

    #[test]
    fn replace_is_an_update_of_what_differs() {
        check(&[ONE], &["REPLACE INTO t (id, v, w) VALUES (1, 'a', 'c')"], &["t[1]@1 w:2='c'"]);
        check(
            &[ONE],
            &["DELETE FROM t", "INSERT INTO t VALUES (1, 'x', 'b')"],
            &["t[1]@1 v:2='x'"],
        );
    }

    #[test]
    fn an_upsert_tells_what_differs() {
        let upsert = "INSERT INTO t VALUES (1, 'n', 'n'), (2, 'n', 'n')
            ON CONFLICT (id) DO UPDATE SET v = excluded.v";
        check(&[ONE], &[upsert], &["t[1]@1 v:2='n'", "t[2]@1 v:1='n' w:1='n'"]);
    }

    #[test]
    fn a_delete_without_where_tells_every_row() {
        check(&[ONE, "INSERT INTO t (id) VALUES (2)"], &["DELETE FROM t"], &["t[1]@2 ", "t[2]@2 "]);
    }

    #[test]
    fn a_key_that_changes_takes_its_counts_along() {
        check(
            &[ONE, "UPDATE t SET v = 'c'"],
            &["UPDATE t SET id = 2"],
            &["t[1]@2 ", "t[2]@1 v:3='c' w:2='b'"],
        );
        let chain = ["UPDATE t SET id = 2", "UPDATE t SET id = 3, v = 'x'"];
        check(&[ONE], &chain, &["t[1]@2 ", "t[3]@1 v:2='x' w:2='b'"]);
        check(
            &["INSERT INTO r VALUES (1, 'a', 5)"],
            &["UPDATE r SET s = 'b'"],
            &["r[1.0,'a']@2 ", "r[1.0,'b']@1 n:2=5.0"],
        );
    }

    #[test]
    fn rows_that_swap_their_keys_are_updated() {
        let setup = [ONE, "INSERT INTO t VALUES (2, 'x', 'b')"];
        let swap = [
            "UPDATE t SET id = 3 WHERE id = 1",
            "UPDATE t SET id = 1 WHERE id = 2",
            "UPDATE t SET id = 2 WHERE id = 3",
        ];
        check(&setup, &swap, &["t[1]@1 v:2='x'", "t[2]@1 v:2='a'"]);
    }

    #[test]
    fn a_real_column_tells_reals() {
        let insert = "INSERT INTO r VALUES (1, 'a', 5)";
        check(&[], &[insert], &["r[1.0,'a']@1 n:1=5.0"]);
        check(&[insert], &["UPDATE r SET n = 6"], &["r[1.0,'a']@1 n:2=6.0"]);
        check(&[insert], &["UPDATE r SET n = 5"], &[]);
        check(&[insert], &["UPDATE r SET k = 2"], &["r[1.0,'a']@2 ", "r[2.0,'a']@1 n:2=5.0"]);
    }

    #[test]
    fn generated_columns_do_not_travel() {
        let table =
            "CREATE TABLE g (a AS (k || '!'), k TEXT NOT NULL PRIMARY KEY, b AS (c) STORED, c);";
        let mut store = in_memory(ME, table);
        let (_, commit) = run(&mut store, &["INSERT INTO g (k, c) VALUES ('x', 1)"]).unwrap();
        let commit = commit.unwrap();
        assert_eq!(changes(&commit), ["g['x']@1 c:1=1"]);
        assert_eq!(events(&commit), ["+g 'x' 1"]);
    }

    #[test]
    fn any_name_works() {
        let table = "CREATE TABLE \"a \"\"b-c\" (\"select\" TEXT NOT NULL, [-1] NOT NULL, \"ö'x\", PRIMARY KEY ([-1], \"select\"));";
        let mut store = in_memory(ME, table);
        let insert = "INSERT INTO \"a \"\"b-c\" VALUES ('s', 7, 'v')";
        let (_, commit) = run(&mut store, &[insert]).unwrap();
        let commit = commit.unwrap();
        assert_eq!(changes(&commit), ["a \"b-c[7,'s']@1 ö'x:1='v'"]);
        let mut other = in_memory(NodeId([0x22; 16]), table);
        let piece = Piece::of(commit.changeset.unwrap());
        let heard = other.apply(crate::store::trial::NOW, &Batch { pieces: vec![piece] }).unwrap();
        assert_eq!(events(&heard), ["+a \"b-c 's' 7 'v'"]);
    }

    #[test]
    fn what_cannot_be_replicated_fails_the_transaction() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t VALUES (1, 'a', 'b')"]);
        let cases = [
            ("UPDATE t SET v = CAST(x'ff' AS TEXT)", "column v: a text is not valid UTF-8"),
            ("UPDATE t SET v = zeroblob(4194305)", "column v: a value has 4194305 bytes"),
            (
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 25001)
                 INSERT INTO t SELECT i + 100, i, i FROM n",
                "changes 50004 cells",
            ),
            (
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9)
                 INSERT INTO t SELECT i + 100, zeroblob(1000000), i FROM n",
                "changes 9000",
            ),
            ("INSERT INTO kv (key) VALUES (hex(zeroblob(600)))", "the longest allowed has 1024"),
        ];
        for (sql, reason) in cases {
            let error = trial.refuse(&["INSERT INTO t (id) VALUES (50)", sql]);
            assert!(error.contains(reason), "{sql}: {error}");
            assert_eq!(trial.rows("SELECT * FROM t"), ["1 'a' 'b'"]);
            assert_eq!(trial.rows("SELECT count(*) FROM kv"), ["0"]);
        }
        let (transacted, _) = trial.sql(&["DELETE FROM t"]).unwrap();
        assert_eq!(transacted.version.unwrap().0, 2, "no version was used up");
    }

    #[test]
    fn a_real_number_in_a_key_without_a_type_is_refused() {
        let mut store = in_memory(ME, "CREATE TABLE k (a NOT NULL PRIMARY KEY);");
        run(&mut store, &["INSERT INTO k VALUES (1), ('x'), (x'01')"]).unwrap();
        let error = run(&mut store, &["INSERT INTO k VALUES (2.0)"]).unwrap_err();
        assert!(error.to_string().contains("declare it REAL"), "{error}");
    }

    /// One statement of a random transaction.
    fn statement() -> impl Strategy<Value = String> {
        let id = 1..5_i64;
        let value = prop::sample::select(vec!["NULL", "'a'", "'b'", "1", "1.0", "x'00'"]);
        (0..11_u8, id.clone(), id, value).prop_map(|(kind, id, other, value)| match kind {
            0 => format!("INSERT INTO t (id, v) VALUES ({id}, {value})"),
            1 => format!("INSERT OR IGNORE INTO t VALUES ({id}, {value}, {other})"),
            2 => format!("REPLACE INTO t (id, v) VALUES ({id}, {value})"),
            3 => format!(
                "INSERT INTO t VALUES ({id}, {value}, 'u') ON CONFLICT DO UPDATE SET w = excluded.v"
            ),
            4 => format!("UPDATE t SET v = {value} WHERE id = {id}"),
            5 => format!("UPDATE t SET v = w, w = v WHERE id >= {id}"),
            6 => format!("UPDATE OR REPLACE t SET id = {other} WHERE id = {id}"),
            7 => format!("UPDATE t SET id = {other} WHERE id = {id}"),
            8 => format!("DELETE FROM t WHERE id = {id}"),
            9 => "DELETE FROM t".to_owned(),
            _ => format!("INSERT INTO t SELECT id + {other}, w, v FROM t"),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Two nodes write by SQL and hear of each other; events, rows and clocks must agree.
        #[test]
        fn statements_arrive_as_what_they_did(
            transactions in prop::collection::vec(
                (any::<bool>(), prop::collection::vec(statement(), 1..4)), 1..25),
        ) {
            let nodes = [NodeId([1; 16]), NodeId([2; 16])];
            let mut stores = nodes.map(|node| in_memory(node, T));
            let mut mirror = std::collections::BTreeMap::<Value, Vec<Value>>::new();
            for (side, sql) in transactions {
                let (from, to) = (usize::from(side), usize::from(!side));
                let sql: Vec<&str> = sql.iter().map(String::as_str).collect();
                let Ok((_, Some(commit))) = run(&mut stores[from], &sql) else { continue };
                for event in commit.tables.iter().flat_map(|events| &events.rows) {
                    let before = match &event.row {
                        Some(row) => mirror.insert(event.key[0].clone(), row.clone()),
                        None => mirror.remove(&event.key[0]),
                    };
                    prop_assert_eq!(before.is_some(), event.existed);
                    prop_assert_ne!(before.as_ref(), event.row.as_ref());
                }
                let piece = Piece::of(commit.changeset.clone().unwrap());
                let batch = Batch { pieces: vec![piece] };
                let heard = stores[to].apply(crate::store::trial::NOW, &batch).unwrap();
                prop_assert_eq!(events(&heard).len(), events(&commit).len());
            }
            for store in &stores {
                for id in 1..9_i64 {
                    let row = store.inspect("t", &[id.into()]).unwrap().and_then(|held| held.row);
                    prop_assert_eq!(row.as_ref(), mirror.get(&Value::from(id)));
                }
            }
            let [a, b] = stores.map(|store| store.fingerprint().unwrap());
            prop_assert_eq!(a, b);
        }
    }
}
