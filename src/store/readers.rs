//! Connections that can only read, for users' queries: as many as there are CPUs to use, each
//! held to rules, limits and a deadline for the whole statement.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Connection, ErrorCode};

use super::bind::{BindError, bind};
use super::database::CHECKS_TABLE;
use super::gate::{Ended, Gate, refusal};
use super::narrow::Narrow;
use super::open::open_reader;
use super::sql::Statement;
use super::tables::{Tables, read_at};
use super::unfolding;
use super::values::{quote, show};
use super::waiting::Waiting;
use crate::crdt::TableInfo;
use crate::types::Value;

/// How many queries run at once unless told otherwise; further ones wait for their deadline.
pub const READERS_DEFAULT: usize = 4;

/// The longest that any query may hold its snapshot: the write-ahead log grows meanwhile.
pub const QUERY_MAX: Duration = Duration::from_secs(60);

/// How long between two looks whether the log is emptied: that takes a second, and is rare.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A pool of read-only connections. Any thread may use it; calls block.
#[derive(Debug)]
pub struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Reader>>,
    returned: Condvar,
    /// What the queries make way for.
    yields_to: OnceLock<Arc<Waiting>>,
}

#[derive(Debug)]
struct Reader {
    conn: Connection,
    gate: Gate,
    /// The version of SQLite's schema that the kept statements were prepared for.
    schema: i64,
}

/// Whether a statement stays prepared. One whose text will not come again would take the place of
/// another's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    Yes,
    No,
}

/// What a query says, in order: its columns once, then its rows.
#[derive(Debug)]
pub enum QueryEvent<'a> {
    Columns(&'a [String]),
    Row(Vec<Value>),
}

/// Why a query did not come to its end. Rows that were handed out before stay valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The statement is wrong: nothing was run.
    #[error("{0}")]
    Prepare(String),
    /// The statement would write, or do what users may not: nothing was run.
    #[error("{0}")]
    Forbidden(String),
    /// The parameters do not fit: nothing was run.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The statement failed while it ran.
    #[error("{0}")]
    Run(String),
    /// The deadline passed, before a connection was free or while the statement ran.
    #[error("interrupted: the query took longer than its time limit")]
    TimedOut,
    /// The write-ahead log had to be emptied, and the query was using it.
    #[error(
        "interrupted: the query kept the write-ahead log from being emptied; ask for less at a time"
    )]
    Yielded,
    /// The disk or the database is at fault.
    #[error("the database failed: {0}")]
    Failed(String),
}

/// How a query ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QueryEnd {
    pub rows: u64,
    /// Whether the reader of the rows stopped it.
    pub is_stopped: bool,
    /// From the first step to the last.
    pub took: Duration,
}

/// What can be known of a statement before it is run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Described {
    /// The columns of its rows.
    pub columns: Vec<DescribedColumn>,
    pub parameter_count: usize,
    /// Table and column of everything that it may read, in `ON`, `WHERE` and sub-queries too. A
    /// table of which it reads no column (`count(*)`) stands here with an empty column.
    pub reads: BTreeSet<(String, String)>,
    /// The functions it calls, in lower case.
    pub functions: BTreeSet<String>,
}

/// A column of a statement's rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DescribedColumn {
    pub name: String,
    /// Table and column that it shows unchanged; `None`: it is computed.
    pub origin: Option<(String, String)>,
}

impl Described {
    /// Tells whether the statement says the same as long as the tables do: whether it calls no
    /// function of the time, of chance or of the connection.
    pub fn is_deterministic(&self) -> bool {
        const CHANGING: [&str; 14] = [
            "random",
            "randomblob",
            "changes",
            "total_changes",
            "last_insert_rowid",
            "current_timestamp",
            "current_date",
            "current_time",
            // With no argument, or with 'now', these tell the time; their arguments are not seen
            // here.
            "datetime",
            "date",
            "time",
            "julianday",
            "unixepoch",
            "timediff",
        ];
        !self.functions.iter().any(|name| CHANGING.contains(&&**name) || name == "strftime")
    }

    /// Lists the tables that it may read.
    pub fn tables(&self) -> BTreeSet<&str> {
        self.reads.iter().map(|(table, _)| table.as_str()).collect()
    }
}

impl Readers {
    /// Opens `count` connections, at least one, to a database that a
    /// [`Store`](super::Store) has open.
    pub fn open(database: &Path, count: usize) -> Result<Self, QueryError> {
        let mut idle = Vec::with_capacity(count.max(1));
        for _ in 0..count.max(1) {
            idle.push(Reader::open(database).map_err(failed)?);
        }
        let path = database.to_owned();
        let yields_to = OnceLock::new();
        Ok(Self { path, idle: Mutex::new(idle), returned: Condvar::new(), yields_to })
    }

    /// From now on a query ends when somebody has waited for
    /// [`YIELD_GRACE`](super::limits::YIELD_GRACE). Said once, before the first query.
    pub fn yield_to(&self, waiting: &Arc<Waiting>) {
        for reader in &*self.lock() {
            reader.gate.yield_to(Arc::clone(waiting));
        }
        // Said once: there is one writer.
        let _ = self.yields_to.set(Arc::clone(waiting));
    }

    /// Runs one statement and hands its columns and rows to `on_event`, which may stop it.
    ///
    /// All rows are of one snapshot. The deadline is for the whole of it: waiting for a free
    /// connection, preparing, and every row; it is at most [`QUERY_MAX`] away. It is looked at
    /// between rows; while `on_event` blocks, nothing can end the query.
    pub fn query(
        &self,
        statement: &Statement,
        deadline: Option<Instant>,
        on_event: &mut dyn FnMut(QueryEvent<'_>) -> ControlFlow<()>,
    ) -> Result<QueryEnd, QueryError> {
        self.query_kept((statement, Kept::Yes), deadline, on_event)
    }

    /// As [`Readers::query`], where the statement may be one that does not stay prepared.
    pub fn query_kept(
        &self,
        (statement, kept): (&Statement, Kept),
        deadline: Option<Instant>,
        on_event: &mut dyn FnMut(QueryEvent<'_>) -> ControlFlow<()>,
    ) -> Result<QueryEnd, QueryError> {
        let limit = Instant::now() + QUERY_MAX;
        let deadline = deadline.map_or(limit, |deadline| deadline.min(limit));
        self.with_reader(deadline, |reader| reader.query((statement, kept), deadline, on_event))
    }

    /// Returns how to ask a statement of a few rows alone, if that can be done. `described` is what
    /// [`Readers::describe`] says of it, and `key` the primary key of the table that it reads.
    /// Whatever goes wrong, it can be asked of all rows.
    pub fn narrow(&self, sql: &str, described: &Described, key: &[String]) -> Option<Narrow> {
        let conn = open_reader(&self.path).ok()?;
        Narrow::of(&conn, sql, described, key).ok()?
    }

    /// Says what a statement reads and returns, without running it.
    pub fn describe(&self, sql: &str) -> Result<Described, QueryError> {
        // A connection of its own: recording what is read needs another authorizer, and changing
        // a pooled connection's would make it prepare all its statements anew.
        let mut conn = open_reader(&self.path).map_err(failed)?;
        describe(&mut conn, sql)
    }

    /// Returns the definitions of this node's checks as the database has them, by check id:
    /// the check, the instance it belongs to, and the JSON.
    pub fn check_definitions(&self) -> Result<Vec<(String, String, String)>, QueryError> {
        let sql = format!("SELECT id, service_id, definition FROM {CHECKS_TABLE} ORDER BY id");
        self.with_reader(Instant::now() + QUERY_MAX, |reader| {
            let read = || -> rusqlite::Result<_> {
                let mut statement = reader.conn.prepare_cached(&sql)?;
                let rows =
                    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
                rows.collect()
            };
            read().map_err(failed)
        })
    }

    /// Returns a replicated table's shape and all its rows, in the order of its key; `None`: there
    /// is no such table.
    pub fn rows_of(&self, table: &str) -> Result<Option<TableRows>, QueryError> {
        self.with_reader(Instant::now() + QUERY_MAX, |reader| reader.rows_of(table).map_err(failed))
    }

    /// Returns the schema as it is here.
    pub fn schema(&self) -> Result<super::schema::Shown, QueryError> {
        self.with_reader(Instant::now() + QUERY_MAX, |reader| {
            super::schema::show(&reader.conn).map_err(failed)
        })
    }

    /// Returns the columns of a replicated table's primary key, in the key's order; none for any
    /// other table.
    pub fn key_of(&self, table: &str) -> Result<Vec<String>, QueryError> {
        self.with_reader(Instant::now() + QUERY_MAX, |reader| {
            let tables = Tables::read(&reader.conn).map_err(failed)?;
            let key = tables.get(table).map(|table| {
                let name = |place: &usize| table.info.columns[*place].to_string();
                table.info.key.iter().map(name).collect()
            });
            Ok(key.unwrap_or_default())
        })
    }

    fn with_reader<T>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&mut Reader) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        let mut lease = Lease { pool: self, reader: Some(self.take(deadline)?) };
        work(lease.reader.as_mut().expect("a lease holds its reader until it ends"))
    }

    fn take(&self, deadline: Instant) -> Result<Reader, QueryError> {
        // Who begins while the log is emptied would only be ended.
        while self.yields_to.get().is_some_and(|waiting| waiting.is_over(Duration::ZERO)) {
            if Instant::now() >= deadline {
                return Err(QueryError::TimedOut);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        let mut idle = self.lock();
        loop {
            if let Some(reader) = idle.pop() {
                return Ok(reader);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(QueryError::TimedOut);
            }
            let waited = self.returned.wait_timeout(idle, left);
            idle = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Reader>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader that goes back to its pool, even when whoever reads its rows panics.
struct Lease<'a> {
    pool: &'a Readers,
    reader: Option<Reader>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let Some(mut reader) = self.reader.take() else { return };
        // A connection that is left in a transaction would show its old snapshot for ever.
        if !reader.conn.is_autocommit() {
            match Reader::open(&self.pool.path) {
                Ok(fresh) => {
                    if let Some(waiting) = self.pool.yields_to.get() {
                        fresh.gate.yield_to(Arc::clone(waiting));
                    }
                    reader = fresh;
                }
                Err(_) => drop(reader.conn.execute_batch("ROLLBACK")),
            }
        }
        self.pool.lock().push(reader);
        self.pool.returned.notify_one();
    }
}

/// A table's shape and all its rows, each in the order of [`TableInfo::columns`].
pub type TableRows = (Arc<TableInfo>, Vec<Vec<Value>>);

impl Reader {
    fn open(database: &Path) -> rusqlite::Result<Self> {
        let mut conn = open_reader(database)?;
        let gate = Gate::set_up(&mut conn, false)?;
        Ok(Self { conn, gate, schema: 0 })
    }

    fn query(
        &mut self,
        (statement, kept): (&Statement, Kept),
        deadline: Instant,
        on_event: &mut dyn FnMut(QueryEvent<'_>) -> ControlFlow<()>,
    ) -> Result<QueryEnd, QueryError> {
        let Self { conn, gate, schema } = self;
        // The columns are told before the first row is read. A statement that was prepared for an
        // older schema would tell those of then; within the snapshot the schema stays.
        let snapshot = conn.unchecked_transaction().map_err(failed)?;
        let now = snapshot
            .pragma_query_value(None, "schema_version", |row| row.get(0))
            .map_err(failed)?;
        if std::mem::replace(schema, now) != now {
            snapshot.flush_prepared_statement_cache();
            // SQLite looks whether the schema it knows is the one of now when a statement runs,
            // not when it is prepared.
            snapshot.execute_batch("SELECT 1 FROM sqlite_schema LIMIT 1").map_err(failed)?;
        }
        let work = || run((&snapshot, gate), (statement, kept), deadline, on_event);
        let result = gate.guarded(Some(deadline), work);
        drop(snapshot);
        match (result, gate.take_denied()) {
            (Err(error), denied) => Err(match (gate.ended(), denied) {
                (Some(ended), _) => ended.into(),
                (None, Some(denied)) => QueryError::Forbidden(denied),
                (None, None) => error,
            }),
            (Ok(end), _) => Ok(end),
        }
    }

    fn rows_of(&self, table: &str) -> rusqlite::Result<Option<TableRows>> {
        let transaction = self.conn.unchecked_transaction()?;
        let tables = Tables::read(&transaction)?;
        let Some(table) = tables.get(table) else { return Ok(None) };
        let names: Vec<String> = table.info.columns.iter().map(|name| quote(name)).collect();
        let order: Vec<&str> = table.info.key.iter().map(|&place| names[place].as_str()).collect();
        let sql = format!(
            "SELECT {} FROM {} ORDER BY {}",
            names.join(", "),
            quote(&table.info.name),
            order.join(", ")
        );
        let mut statement = transaction.prepare(&sql)?;
        let mut rows = statement.query([])?;
        let mut collected = Vec::new();
        while let Some(row) = rows.next()? {
            let values = (0..names.len()).map(|index| read_at(row, index));
            collected.push(values.collect::<rusqlite::Result<Vec<Value>>>()?);
        }
        Ok(Some((Arc::clone(&table.info), collected)))
    }
}

fn run(
    (conn, gate): (&Connection, &Gate),
    (statement, kept): (&Statement, Kept),
    deadline: Instant,
    on_event: &mut dyn FnMut(QueryEvent<'_>) -> ControlFlow<()>,
) -> Result<QueryEnd, QueryError> {
    // Every text of this connection that a user can name is vetted: the few of the pool's own are
    // on internal tables, and are prepared under the authorizer as well when a user sends them,
    // since the cache is asked only for texts that hold no internal name.
    if let Some(reason) = unfolding::refusal(&statement.sql) {
        return Err(QueryError::Prepare(reason));
    }
    let names_internal = statement.sql.contains(super::tables::INTERNAL_PREFIX);
    let mut prepared = if names_internal || kept == Kept::No {
        conn.prepare(&statement.sql).map(Prepared::Fresh)
    } else {
        conn.prepare_cached(&statement.sql).map(Prepared::Kept)
    }
    .map_err(|error| QueryError::Prepare(error.to_string()))?;
    let prepared = prepared.get();
    // SQLite has no statement for a text without one.
    if statement.sql.trim().is_empty() || prepared.expanded_sql().is_none() {
        return Err(QueryError::Prepare("the statement is empty".to_owned()));
    }
    if !prepared.readonly() {
        return Err(QueryError::Forbidden("statement is not readonly".to_owned()));
    }
    bind(prepared, &statement.params)?;
    let columns: Vec<String> = prepared.column_names().map(str::to_owned).collect();
    let mut end = QueryEnd::default();
    if on_event(QueryEvent::Columns(&columns)).is_break() {
        end.is_stopped = true;
        return Ok(end);
    }
    let start = Instant::now();
    let mut rows = prepared.raw_query();
    while let Some(row) = rows.next().map_err(in_run)? {
        let mut values = Vec::with_capacity(columns.len());
        for index in 0..columns.len() {
            values.push(show(row.get_ref(index).map_err(in_run)?));
        }
        end.rows += 1;
        if on_event(QueryEvent::Row(values)).is_break() {
            end.is_stopped = true;
            break;
        }
        // Whoever takes the rows may be slow; SQLite looks at the clock only while it works.
        if let Some(ended) = gate.is_over(Some(deadline)) {
            return Err(ended.into());
        }
    }
    end.took = start.elapsed();
    Ok(end)
}

impl From<Ended> for QueryError {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Late => Self::TimedOut,
            Ended::Yielded => Self::Yielded,
        }
    }
}

enum Prepared<'a> {
    Fresh(rusqlite::Statement<'a>),
    Kept(rusqlite::CachedStatement<'a>),
}

impl<'a> Prepared<'a> {
    fn get(&mut self) -> &mut rusqlite::Statement<'a> {
        match self {
            Self::Fresh(statement) => statement,
            Self::Kept(statement) => statement,
        }
    }
}

fn describe(conn: &mut Connection, sql: &str) -> Result<Described, QueryError> {
    if let Some(reason) = unfolding::refusal(sql) {
        return Err(QueryError::Prepare(reason));
    }
    let seen = Arc::new(Mutex::new((Described::default(), None)));
    let ours = Arc::clone(&seen);
    let watch = move |context: AuthContext<'_>| {
        let mut seen = ours.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = refusal(&context.action, false) {
            seen.1 = Some(reason);
            return Authorization::Deny;
        }
        match context.action {
            AuthAction::Read { table_name, column_name } => {
                seen.0.reads.insert((table_name.to_owned(), column_name.to_owned()));
            }
            AuthAction::Function { function_name } => {
                seen.0.functions.insert(function_name.to_ascii_lowercase());
            }
            _ => {}
        }
        Authorization::Allow
    };
    conn.authorizer(Some(watch)).map_err(failed)?;
    let prepared = conn.prepare(sql);
    let (mut described, denied) =
        std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    if let Some(denied) = denied {
        return Err(QueryError::Forbidden(denied));
    }
    let prepared = prepared.map_err(|error| QueryError::Prepare(error.to_string()))?;
    if !prepared.readonly() {
        return Err(QueryError::Forbidden("statement is not readonly".to_owned()));
    }
    described.parameter_count = prepared.parameter_count();
    let columns = prepared.columns_with_metadata().map(|column| DescribedColumn {
        name: column.name().to_owned(),
        origin: match (column.table_name(), column.origin_name()) {
            (Some(table), Some(origin)) => Some((table.to_owned(), origin.to_owned())),
            (None, _) | (_, None) => None,
        },
    });
    described.columns = columns.collect();
    Ok(described)
}

fn in_run(error: rusqlite::Error) -> QueryError {
    match error.sqlite_error_code() {
        Some(ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt | ErrorCode::OutOfMemory) => {
            failed(error)
        }
        _ => QueryError::Run(error.to_string()),
    }
}

fn failed(error: rusqlite::Error) -> QueryError {
    QueryError::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::Params;
    use crate::store::trial::{T, Trial, plain};

    const ENDLESS: &str =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_millis(50))
    }

    fn rows(readers: &Readers, sql: &str) -> Result<Vec<Vec<Value>>, QueryError> {
        let mut rows = Vec::new();
        readers.query(&plain(sql), None, &mut |event| {
            if let QueryEvent::Row(row) = event {
                rows.push(row);
            }
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    #[test]
    fn a_reader_sees_the_schema_of_now() {
        let mut trial = Trial::new(T);
        let readers = Readers::open(trial.store.path().unwrap(), 1).unwrap();
        let ask = |readers: &Readers| {
            let mut columns = 0;
            readers.query(&plain("SELECT * FROM t"), None, &mut |event| {
                match event {
                    QueryEvent::Columns(names) => columns = names.len(),
                    QueryEvent::Row(row) => assert_eq!(row.len(), columns),
                }
                ControlFlow::Continue(())
            })?;
            Ok::<usize, QueryError>(columns)
        };
        trial.write(&["INSERT INTO t VALUES (1, 'a', 'b')"]);
        assert_eq!(ask(&readers), Ok(3));
        trial.store.conn.execute_batch("ALTER TABLE t ADD COLUMN x DEFAULT 1").unwrap();
        assert_eq!(ask(&readers), Ok(4));
        trial.store.conn.execute_batch("DROP TABLE t").unwrap();
        assert!(matches!(ask(&readers), Err(QueryError::Prepare(_))));
    }

    #[test]
    fn columns_come_first_and_rows_follow_until_somebody_stops() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id) VALUES (1), (2), (3)"]);
        let readers = trial.readers();
        let mut seen = Vec::new();
        let end = readers
            .query(&plain("SELECT id, w AS x FROM t ORDER BY id"), None, &mut |event| {
                match event {
                    QueryEvent::Columns(columns) => seen.push(columns.join(",")),
                    QueryEvent::Row(row) => seen.push(row[0].to_string()),
                }
                if seen.len() < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
            .unwrap();
        assert_eq!(seen, ["id,x", "1", "2"]);
        assert_eq!((end.rows, end.is_stopped), (2, true));
        trial.write(&["DELETE FROM t WHERE id = 1"]);
        assert_eq!(rows(&readers, "SELECT count(*) FROM t").unwrap(), [[Value::Integer(2)]]);
    }

    #[test]
    fn only_reading_is_allowed() {
        let trial = Trial::new(T);
        let readers = trial.readers();
        for (sql, reason) in [
            ("INSERT INTO t (id) VALUES (1)", "statement is not readonly"),
            ("DELETE FROM t RETURNING id", "statement is not readonly"),
            ("CREATE TABLE x (a)", "statement is not readonly"),
            ("CREATE TEMP TABLE x (a)", "statement is not readonly"),
            ("REINDEX", "statement is not readonly"),
            ("BEGIN", "not allowed"),
            ("COMMIT", "not allowed"),
            ("SAVEPOINT x", "not allowed"),
            ("ATTACH ':memory:' AS z", "ATTACH"),
            ("VACUUM", ""),
            ("VACUUM INTO '/tmp/x'", ""),
            ("PRAGMA query_only = 0", "PRAGMA query_only is not allowed"),
            ("PRAGMA user_version", "PRAGMA"),
            ("SELECT * FROM pragma_database_list", "internal"),
            ("SELECT * FROM dbstat", "internal"),
            ("SELECT * FROM __tribune_node", "internal"),
            ("SELECT 1 WHERE EXISTS (SELECT 1 FROM __TRIBUNE_rows)", "internal"),
            ("SELECT id, service_id, definition FROM __tribune_checks ORDER BY id", "internal"),
            ("SELECT load_extension('x')", "load_extension"),
            ("SELECT randomblob(1000000000)", "randomblob"),
            ("SELECT zeroblob(1000)", "zeroblob"),
        ] {
            for _ in 0..2 {
                let error = rows(&readers, sql).unwrap_err();
                assert!(matches!(error, QueryError::Forbidden(_)), "{sql}: {error:?}");
                assert!(error.to_string().contains(reason), "{sql}: {error}");
                readers.check_definitions().unwrap();
            }
        }
        assert_eq!(rows(&readers, "VALUES (1)").unwrap().len(), 1);
        assert_eq!(rows(&readers, "SELECT value FROM json_each('[1,2]')").unwrap().len(), 2);
        assert!(!rows(&readers, "EXPLAIN QUERY PLAN SELECT * FROM t").unwrap().is_empty());
        assert!(!rows(&readers, "SELECT name FROM sqlite_schema").unwrap().is_empty());
    }

    #[test]
    fn faults_before_the_run_are_told_from_faults_in_it() {
        let trial = Trial::new(T);
        let readers = trial.readers();
        let prepare = |sql: &str| match rows(&readers, sql).unwrap_err() {
            QueryError::Prepare(message) => message,
            other => panic!("{sql}: {other:?}"),
        };
        assert_eq!(prepare("selec"), "near \"selec\": syntax error in selec at offset 0");
        assert!(prepare("SELECT * FROM nope").contains("no such table: nope"));
        assert_eq!(prepare("SELECT 1; SELECT 2"), "Multiple statements provided");
        assert_eq!(prepare(""), "the statement is empty");
        let statement = Statement { sql: "SELECT ?".to_owned(), params: Params::None };
        let error =
            readers.query(&statement, None, &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(error, QueryError::Bind(BindError::Count { got: 0, needed: 1 })));
        for sql in [
            "SELECT abs(-9223372036854775808)",
            "SELECT length(printf('%1000000000d', 1))",
            "SELECT length(replace(hex(printf('%5000000d', 1)), '2', 'xxxx'))",
        ] {
            let error = rows(&readers, sql).unwrap_err();
            assert!(matches!(error, QueryError::Run(_)), "{sql}: {error:?}");
        }
    }

    #[test]
    fn the_deadline_is_for_the_whole_query_and_for_waiting() {
        let trial = Trial::new(T);
        let readers = Readers::open(trial.store.path().unwrap(), 1).unwrap();
        let count = plain(&format!("SELECT count(*) FROM ({ENDLESS})"));
        for _ in 0..2 {
            let error = readers.query(&count, soon(), &mut |_| ControlFlow::Continue(()));
            assert_eq!(error, Err(QueryError::TimedOut));
        }
        let mut streamed = 0;
        let error = readers.query(&plain(ENDLESS), soon(), &mut |_| {
            streamed += 1;
            ControlFlow::Continue(())
        });
        assert_eq!(error, Err(QueryError::TimedOut));
        assert!(streamed > 100);
        let mut waited = None;
        let nested = readers.query(&plain("SELECT 1"), None, &mut |_| {
            // The only connection is in use: by this query.
            waited =
                Some(readers.query(&plain("SELECT 2"), soon(), &mut |_| ControlFlow::Continue(())));
            ControlFlow::Break(())
        });
        assert_eq!(waited, Some(Err(QueryError::TimedOut)));
        assert!(nested.unwrap().is_stopped);
        assert_eq!(rows(&readers, "SELECT 1").unwrap().len(), 1);
    }

    #[test]
    fn a_panic_in_the_reader_of_rows_costs_no_connection() {
        let trial = Trial::new(T);
        let readers = Readers::open(trial.store.path().unwrap(), 1).unwrap();
        let panicking = std::panic::AssertUnwindSafe(|| {
            readers.query(&plain("SELECT 1"), None, &mut |_| panic!("the client is gone"))
        });
        assert!(std::panic::catch_unwind(panicking).is_err());
        assert_eq!(rows(&readers, "SELECT 1").unwrap().len(), 1);
    }

    #[test]
    fn a_description_says_what_is_read_and_where_columns_are_from() {
        let trial = Trial::new(T);
        let readers = trial.readers();
        let described = readers
            .describe(
                "SELECT t.id, upper(v) AS big, key FROM t JOIN kv ON kv.flags = t.id WHERE w > ?",
            )
            .unwrap();
        let origins: Vec<_> = described
            .columns
            .iter()
            .map(|column| (column.name.as_str(), column.origin.clone()))
            .collect();
        let of = |table: &str, column: &str| Some((table.to_owned(), column.to_owned()));
        assert_eq!(origins, [("id", of("t", "id")), ("big", None), ("key", of("kv", "key"))]);
        let reads: Vec<String> =
            described.reads.iter().map(|(table, column)| format!("{table}.{column}")).collect();
        assert_eq!(reads, ["kv.flags", "kv.key", "t.id", "t.v", "t.w"]);
        assert_eq!(described.parameter_count, 1);
        assert!(described.is_deterministic());
        assert!(
            !readers.describe("SELECT id FROM t WHERE v > random()").unwrap().is_deterministic()
        );
        assert!(!readers.describe("SELECT CURRENT_TIMESTAMP").unwrap().is_deterministic());
        let count = readers.describe("SELECT count(*) FROM t").unwrap();
        assert_eq!(count.tables(), BTreeSet::from(["t"]));
        assert!(matches!(readers.describe("DELETE FROM t"), Err(QueryError::Forbidden(_))));
        assert!(matches!(readers.describe("SELECT nope"), Err(QueryError::Prepare(_))));
    }

    #[test]
    fn a_tables_rows_come_in_the_order_of_its_columns() {
        let mut trial =
            Trial::new("CREATE TABLE o (b TEXT, g AS (b), a INTEGER NOT NULL PRIMARY KEY);");
        trial.write(&["INSERT INTO o (a, b) VALUES (2, 'x'), (1, 'y')"]);
        let readers = trial.readers();
        let (info, rows) = readers.rows_of("o").unwrap().unwrap();
        assert_eq!(info.columns.iter().map(|name| &**name).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(rows, [vec!["y".into(), 1.into()], vec!["x".into(), 2.into()]]);
        assert!(readers.rows_of("__tribune_node").unwrap().is_none());
        assert!(readers.rows_of("nodes").unwrap().unwrap().1.is_empty());
    }
}
