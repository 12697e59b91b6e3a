//! The replicated tables: as files describe them, and as rows that travel like any other. SQLite
//! itself reads the files, in a database of its own in memory; the node's tables are written by
//! `grow` (those that every node has) and `carry` (those that the rows describe) alone.

mod carry;
mod change;
mod grow;
mod limits;
mod probe;
mod pure;
mod rows;
mod rules;
mod shape;
mod show;
pub(super) mod text;
mod wanted;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Batch, Connection};

pub use carry::{asides, carry_out, is_schema};
pub use change::Mode;
pub use grow::literal;
pub use rows::{RowWrite, SCHEMA_TABLE, read_rows, write_rows};
pub use show::{Shown, ShownAside, ShownTable, show};

use self::limits::{LENGTH_MAX, STEPS_AT_ONCE, STEPS_MAX, TEXT_BYTES_MAX};
use self::text::{DropStatement, take_drops};
use super::origins::Origins;
use super::tables::Tables;
use super::{functions, limits as writer};

/// The tables that every node has.
const FIXED: [(&str, &str); 11] = [
    ("schema/nodes.sql", include_str!("../../../schema/nodes.sql")),
    ("schema/services.sql", include_str!("../../../schema/services.sql")),
    ("schema/checks.sql", include_str!("../../../schema/checks.sql")),
    ("schema/kv.sql", include_str!("../../../schema/kv.sql")),
    ("schema/external_nodes.sql", include_str!("../../../schema/external_nodes.sql")),
    ("schema/external_services.sql", include_str!("../../../schema/external_services.sql")),
    ("schema/external_checks.sql", include_str!("../../../schema/external_checks.sql")),
    ("schema/tag_overrides.sql", include_str!("../../../schema/tag_overrides.sql")),
    ("schema/prepared_queries.sql", include_str!("../../../schema/prepared_queries.sql")),
    ("schema/events.sql", include_str!("../../../schema/events.sql")),
    ("schema/tribune_schema.sql", include_str!("../../../schema/tribune_schema.sql")),
];

/// Their names: no schema change may name them.
const FIXED_TABLES: [&str; 11] = [
    "nodes",
    "services",
    "checks",
    "kv",
    "external_nodes",
    "external_services",
    "external_checks",
    "tag_overrides",
    "prepared_queries",
    "events",
    SCHEMA_TABLE,
];

/// Why the schema was not applied. The database is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error("cannot read the schema file {path}: {detail}")]
    Unreadable { path: String, detail: String },
    /// The text is no SQL that may stand in a schema file.
    #[error("{file}, line {line}: {detail}")]
    Syntax { file: String, line: usize, detail: String },
    /// A table breaks a rule that every replicated table keeps.
    #[error("{file}: table {table}{}: {reason}", column_part(.column))]
    Rule { file: String, table: String, column: Option<String>, reason: String },
    /// The file and the database differ in a way that would lose data.
    #[error("{file}: table {table}{}: {reason}", column_part(.column))]
    Destructive { file: String, table: String, column: Option<String>, reason: String },
    #[error("cannot change the schema: {0}")]
    Failed(String),
}

impl SchemaError {
    /// Returns what is wrong, without where.
    fn reason(&self) -> String {
        match self {
            Self::Syntax { detail, .. } => detail.clone(),
            Self::Rule { reason, .. } | Self::Destructive { reason, .. } => reason.clone(),
            Self::Unreadable { .. } | Self::Failed(_) => self.to_string(),
        }
    }
}

fn column_part(column: &Option<String>) -> String {
    column.as_ref().map(|name| format!(", column {name}")).unwrap_or_default()
}

impl From<rusqlite::Error> for SchemaError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// One schema file: where it is from, and its text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    pub file: String,
    pub sql: String,
}

/// Returns the tables that every node has.
pub fn fixed_sources() -> Vec<Source> {
    let fixed = FIXED.iter();
    fixed.map(|(file, sql)| Source { file: (*file).into(), sql: (*sql).into() }).collect()
}

/// Reads schema files, and all `*.sql` files of directories in the order of their names.
pub fn read_sources(paths: &[PathBuf]) -> Result<Vec<Source>, SchemaError> {
    let mut sources = Vec::new();
    for path in paths {
        for file in files_of(path)? {
            let sql = fs::read_to_string(&file).map_err(|error| unreadable(&file, &error))?;
            sources.push(Source { file: file.display().to_string(), sql });
        }
    }
    Ok(sources)
}

fn files_of(path: &Path) -> Result<Vec<PathBuf>, SchemaError> {
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| unreadable(path, &error))? {
        let file = entry.map_err(|error| unreadable(path, &error))?.path();
        if file.extension().is_some_and(|extension| extension == "sql") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn unreadable(path: &Path, error: &std::io::Error) -> SchemaError {
    SchemaError::Unreadable { path: path.display().to_string(), detail: error.to_string() }
}

/// What a set of files describes.
#[derive(Debug)]
pub struct Schema {
    conn: Connection,
    /// What SQLite has done for the statement or the table that is looked at.
    steps: Steps,
    tables: Vec<Object>,
    indexes: Vec<Object>,
    /// What is to be dropped, and the file that says so.
    drops: Vec<(String, DropStatement)>,
}

#[derive(Clone, Debug)]
struct Object {
    file: String,
    name: String,
    table: String,
    sql: String,
    /// One of the tables that every node has.
    is_fixed: bool,
    /// Whether an expression of the table reads the row's number.
    reads_rowid: bool,
}

/// What was done to bring a database in line.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SchemaChange {
    pub tables_added: Vec<String>,
    /// Table and column.
    pub columns_added: Vec<(String, String)>,
    /// Indexes that are new, or other than they were.
    pub indexes_added: Vec<String>,
    pub tables_dropped: Vec<String>,
    /// Table and column.
    pub columns_dropped: Vec<(String, String)>,
    pub indexes_dropped: Vec<String>,
    /// What was left as it is although the files say otherwise, a sentence each.
    pub notes: Vec<String>,
}

impl SchemaChange {
    pub fn is_empty(&self) -> bool {
        *self == Self { notes: self.notes.clone(), ..Self::default() }
    }
}

/// A change of the schema that somebody asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SchemaRequest {
    pub sources: Vec<Source>,
    pub mode: Mode,
    /// Only says what would be done.
    pub dry_run: bool,
}

/// Says which rows of the schema a request changes, and what comes of it.
pub fn plan(
    request: &SchemaRequest,
    conn: &Connection,
    tables: &Tables,
    origins: &Origins,
) -> Result<(Vec<RowWrite>, SchemaChange), SchemaError> {
    let declared = Schema::parse(&request.sources)?;
    let rows = read_rows(conn, tables, origins)?;
    let plan = change::plan(&declared, (conn, tables, rows), request.mode)?;
    Ok((plan.writes, plan.change))
}

impl Schema {
    /// Reads the files and holds each table to the rules.
    pub fn parse(sources: &[Source]) -> Result<Self, SchemaError> {
        let mut left = Vec::with_capacity(sources.len());
        let mut drops = Vec::new();
        for source in sources {
            let (sql, dropped) = take_drops(&source.sql);
            drops.extend(dropped.into_iter().map(|drop| (source.file.clone(), drop)));
            let is_fixed =
                FIXED.iter().any(|(file, sql)| source.file == *file && source.sql == *sql);
            left.push((Source { file: source.file.clone(), sql }, is_fixed));
        }
        Ok(Self { drops, ..Self::parse_made(&left)? })
    }

    /// The same for texts in which no DROP may stand, each with whether it is one of those that
    /// every node has.
    fn parse_made(sources: &[(Source, bool)]) -> Result<Self, SchemaError> {
        let seen = Seen::default();
        let steps = Steps::default();
        let conn = scratch(Arc::clone(&seen), Arc::clone(&steps))?;
        let mut schema =
            Self { conn, steps, tables: Vec::new(), indexes: Vec::new(), drops: Vec::new() };
        for (source, is_fixed) in sources {
            schema.run(source, *is_fixed, &seen)?;
        }
        if schema.tables.len() > limits::TABLES_MAX {
            let file = sources.last().map(|(source, _)| source.file.clone()).unwrap_or_default();
            let table = schema.tables[limits::TABLES_MAX].name.clone();
            let reason = format!("there may be {} tables at most", limits::TABLES_MAX);
            return Err(SchemaError::Rule { file, table, column: None, reason });
        }
        // The rules ask for pragmas, which the files may not.
        schema.conn.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
        for table in &schema.tables {
            schema.steps.store(0, Ordering::Relaxed);
            schema.check_table(table)?;
        }
        // What is asked of it from here on is this program's own, and as long as the schema is.
        schema.conn.progress_handler(0, None::<fn() -> bool>)?;
        Ok(schema)
    }

    fn run(&mut self, source: &Source, is_fixed: bool, seen: &Seen) -> Result<(), SchemaError> {
        if source.sql.len() > TEXT_BYTES_MAX {
            let detail = format!("the text is longer than {TEXT_BYTES_MAX} bytes");
            return Err(source.fault(0, detail));
        }
        if let Some(reason) = super::unfolding::refusal(&source.sql) {
            return Err(source.fault(0, reason));
        }
        let mut batch = Batch::new(&self.conn, &source.sql);
        let mut made = Vec::new();
        // Where the statement that is read next begins.
        let mut start = 0;
        loop {
            let before = count_objects(&self.conn)?;
            start = skip_blank(&source.sql, start);
            let fault = |error: &rusqlite::Error| source.fault(start, explain(error, seen));
            *look(seen) = Statement::default();
            self.steps.store(0, Ordering::Relaxed);
            let Some(mut statement) = batch.next().map_err(|error| fault(&error))? else { break };
            let text = statement.expanded_sql().unwrap_or_default();
            statement.raw_execute().map_err(|error| fault(&error))?;
            drop(statement);
            if count_objects(&self.conn)? == before {
                let detail = "the statement makes nothing new: its table or index is declared twice, or it is no CREATE TABLE or CREATE INDEX";
                return Err(source.fault(start, detail.to_owned()));
            }
            let reads_rowid = look(seen).reads_rowid;
            let newest = newest_objects(&self.conn, before)?;
            made.extend(newest.into_iter().map(|object| (object, reads_rowid)));
            start = source.sql[start..]
                .find(text.trim())
                .map_or(start, |at| start + at + text.trim().len());
        }
        for ((kind, name, table, sql), reads_rowid) in made {
            let file = source.file.clone();
            let object = Object { file, name, table, sql, is_fixed, reads_rowid };
            if kind == "table" { self.tables.push(object) } else { self.indexes.push(object) }
        }
        Ok(())
    }
}

/// What SQLite's authorizer saw of one statement.
#[derive(Debug, Default)]
struct Statement {
    /// Why it was refused.
    denied: Option<String>,
    /// The table that it makes.
    table: Option<String>,
    reads_rowid: bool,
}

type Seen = Arc<Mutex<Statement>>;

/// Counts the steps of SQLite's virtual machine, in parts of [`STEPS_AT_ONCE`].
type Steps = Arc<AtomicU64>;

fn look(seen: &Seen) -> MutexGuard<'_, Statement> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the database in which the files are read: it knows tables and indexes, and nothing else.
/// What a text may cost is counted in steps and bytes, never in time: all nodes refuse the same.
fn scratch(seen: Seen, steps: Steps) -> Result<Connection, SchemaError> {
    use rusqlite::config::DbConfig;
    use rusqlite::limits::Limit;
    let mut conn = Connection::open_in_memory()?;
    writer::limit(&conn)?;
    functions::bound(&conn)?;
    let as_limit = |bytes: usize| i32::try_from(bytes).expect("the limits are small");
    conn.set_limit(Limit::SQLITE_LIMIT_LENGTH, as_limit(LENGTH_MAX))?;
    conn.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, as_limit(TEXT_BYTES_MAX))?;
    // One more than a table may have: a probe adds one.
    conn.set_limit(Limit::SQLITE_LIMIT_COLUMN, as_limit(writer::COLUMNS_MAX + 1))?;
    conn.progress_handler(
        STEPS_AT_ONCE,
        Some(move || {
            let at_once = STEPS_AT_ONCE.unsigned_abs().into();
            steps.fetch_add(at_once, Ordering::Relaxed) >= STEPS_MAX
        }),
    )?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    conn.pragma_update(None, "foreign_keys", false)?;
    conn.authorizer(Some(move |context: AuthContext<'_>| {
        match context.action {
            AuthAction::CreateTable { table_name } => {
                look(&seen).table = Some(table_name.to_owned());
            }
            AuthAction::Read { column_name: "ROWID", table_name } => {
                let mut seen = look(&seen);
                seen.reads_rowid |= seen.table.as_deref() == Some(table_name);
            }
            _ => {}
        }
        let Some(what) = refused(&context) else { return Authorization::Allow };
        let mut seen = look(&seen);
        let of_table = |table: &String| format!("table {table}: {what}");
        let is_function = matches!(context.action, AuthAction::Function { .. });
        let table = seen.table.as_ref().filter(|_| is_function);
        seen.denied = Some(table.map_or_else(|| what.clone(), of_table));
        Authorization::Deny
    }))?;
    Ok(conn)
}

/// Says what is wrong with an action of a schema file; `None`: nothing.
fn refused(context: &AuthContext<'_>) -> Option<String> {
    let is_catalog = |table: &str| table == "sqlite_master" || table == "sqlite_schema";
    let what = match context.action {
        AuthAction::CreateTable { .. }
        | AuthAction::CreateIndex { .. }
        | AuthAction::Reindex { .. } => return None,
        AuthAction::Function { function_name } if pure::is_pure(function_name) => return None,
        AuthAction::Function { function_name } => {
            return Some(format!(
                "the function {function_name} may not stand in a schema: it is none of those that come to the same on every node"
            ));
        }
        AuthAction::Insert { table_name }
        | AuthAction::Delete { table_name }
        | AuthAction::Update { table_name, .. }
        | AuthAction::Read { table_name, .. }
            if is_catalog(table_name) =>
        {
            return None;
        }
        // CREATE INDEX reads the table it is on, which is empty here.
        AuthAction::Read { .. } => return None,
        // Our own look at the catalog between two statements.
        AuthAction::Select => return None,
        AuthAction::CreateTempTable { .. } | AuthAction::CreateTempIndex { .. } => {
            "a temporary table"
        }
        AuthAction::Insert { table_name } if table_name.starts_with("sqlite_temp_") => {
            "a temporary table"
        }
        AuthAction::CreateView { .. } | AuthAction::CreateTempView { .. } => "a view",
        AuthAction::CreateTrigger { .. } | AuthAction::CreateTempTrigger { .. } => "a trigger",
        AuthAction::CreateVtable { .. } => "a virtual table",
        AuthAction::Insert { .. } | AuthAction::Update { .. } | AuthAction::Delete { .. } => {
            "a write to a table"
        }
        AuthAction::Pragma { .. } => "a PRAGMA",
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => "transaction control",
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => "another database",
        _ => "this statement",
    };
    Some(format!("{what} cannot stand in a schema file: only CREATE TABLE and CREATE INDEX can"))
}

type ObjectRow = (String, String, String, String);

fn count_objects(conn: &Connection) -> rusqlite::Result<i64> {
    conn.query_row("SELECT coalesce(max(rowid), 0) FROM sqlite_schema", [], |row| row.get(0))
}

/// Lists what was made after the object of row `after`, but for the indexes that SQLite makes for
/// itself.
fn newest_objects(conn: &Connection, after: i64) -> rusqlite::Result<Vec<ObjectRow>> {
    conn.prepare(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema
         WHERE rowid > ?1 AND sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
    )?
    .query_map([after], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
    .collect()
}

impl Source {
    fn fault(&self, offset: usize, detail: String) -> SchemaError {
        let before = self.sql.bytes().take(offset);
        let line = before.filter(|byte| *byte == b'\n').count() + 1;
        SchemaError::Syntax { file: self.file.clone(), line, detail }
    }
}

fn explain(error: &rusqlite::Error, seen: &Seen) -> String {
    let seen = std::mem::take(&mut *look(seen));
    if let Some(denied) = seen.denied {
        return denied;
    }
    let message = match error {
        error if limits::exceeds(error) => limits::EXCEEDED.to_owned(),
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    };
    match seen.table {
        Some(table) => format!("table {table}: {message}"),
        None => message,
    }
}

/// Returns where the next statement begins: after blanks, semicolons and comments. This is for the
/// line in a message only.
fn skip_blank(text: &str, mut at: usize) -> usize {
    loop {
        let rest = &text[at..];
        let trimmed = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
        at += rest.len() - trimmed.len();
        let comment = if trimmed.starts_with("--") {
            trimmed.find('\n')
        } else if trimmed.starts_with("/*") {
            trimmed.find("*/").map(|end| end + 2)
        } else {
            return at;
        };
        at = comment.map_or(text.len(), |length| at + length);
    }
}

/// Returns a column's collation, and whether SQLite numbers it.
fn metadata(conn: &Connection, table: &str, column: &str) -> Result<(String, bool), String> {
    let (_, collation, _, _, is_automatic) =
        conn.column_metadata(Some("main"), table, column).map_err(|error| error.to_string())?;
    let collation = collation.map_or("BINARY".into(), |name| name.to_string_lossy());
    Ok((collation.to_ascii_uppercase(), is_automatic))
}

#[cfg(test)]
mod fleet;
#[cfg(test)]
mod tests;
