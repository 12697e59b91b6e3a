//! The replicated tables as files describe them: what they may say, how they differ from what the
//! database has, and the statements that bring it in line. SQLite itself reads the files, in a
//! database of its own in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Batch, Connection};

use super::affinity::Affinity;
use super::limits::COLUMNS_MAX;
use super::tables::{
    ColumnShape, DefaultProbe, INTERNAL_PREFIX, all_columns_of, flags_of, replicated,
};
use super::values::quote;
use crate::types::Value;

/// The tables that every node has.
const FIXED: [(&str, &str); 4] = [
    ("schema/nodes.sql", include_str!("../../schema/nodes.sql")),
    ("schema/services.sql", include_str!("../../schema/services.sql")),
    ("schema/checks.sql", include_str!("../../schema/checks.sql")),
    ("schema/kv.sql", include_str!("../../schema/kv.sql")),
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

/// Reads schema files, and all `*.sql` files of directories in the order of their names; the fixed
/// tables come first.
pub fn read_sources(paths: &[PathBuf]) -> Result<Vec<Source>, SchemaError> {
    let fixed = FIXED.iter();
    let mut sources: Vec<Source> =
        fixed.map(|(file, sql)| Source { file: (*file).into(), sql: (*sql).into() }).collect();
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
    tables: Vec<Object>,
    indexes: Vec<Object>,
}

#[derive(Clone, Debug)]
struct Object {
    file: String,
    name: String,
    table: String,
    sql: String,
}

/// What was done to bring a database in line.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SchemaChange {
    pub tables_added: Vec<String>,
    /// Table and column.
    pub columns_added: Vec<(String, String)>,
    pub indexes_added: Vec<String>,
}

impl SchemaChange {
    pub fn is_empty(&self) -> bool {
        self.tables_added.is_empty()
            && self.columns_added.is_empty()
            && self.indexes_added.is_empty()
    }
}

impl Schema {
    /// Reads the files and holds each table to the rules.
    pub fn parse(sources: &[Source]) -> Result<Self, SchemaError> {
        let denied = Arc::new(Mutex::new(None));
        let conn = scratch(Arc::clone(&denied))?;
        let mut schema = Self { conn, tables: Vec::new(), indexes: Vec::new() };
        for source in sources {
            schema.run(source, &denied)?;
        }
        // The rules ask for pragmas, which the files may not.
        schema.conn.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
        for table in &schema.tables {
            schema.check_table(table)?;
        }
        Ok(schema)
    }

    fn run(&mut self, source: &Source, denied: &Denied) -> Result<(), SchemaError> {
        let mut batch = Batch::new(&self.conn, &source.sql);
        let mut made = Vec::new();
        // Where the statement that is read next begins.
        let mut start = 0;
        loop {
            let before = count_objects(&self.conn)?;
            start = skip_blank(&source.sql, start);
            let fault = |error: &rusqlite::Error| source.fault(start, explain(error, denied));
            let Some(mut statement) = batch.next().map_err(|error| fault(&error))? else { break };
            let text = statement.expanded_sql().unwrap_or_default();
            statement.raw_execute().map_err(|error| fault(&error))?;
            drop(statement);
            if count_objects(&self.conn)? == before {
                let detail = "the statement makes nothing new: its table or index is declared twice, or it is no CREATE TABLE or CREATE INDEX";
                return Err(source.fault(start, detail.to_owned()));
            }
            made.push(newest_objects(&self.conn, before)?);
            start = source.sql[start..]
                .find(text.trim())
                .map_or(start, |at| start + at + text.trim().len());
        }
        for (kind, name, table, sql) in made.into_iter().flatten() {
            let object = Object { file: source.file.clone(), name, table, sql };
            if kind == "table" { self.tables.push(object) } else { self.indexes.push(object) }
        }
        Ok(())
    }

    fn check_table(&self, object: &Object) -> Result<(), SchemaError> {
        let rule = |column: Option<&str>, reason: &str| SchemaError::Rule {
            file: object.file.clone(),
            table: object.name.clone(),
            column: column.map(str::to_owned),
            reason: reason.to_owned(),
        };
        let table = &object.name;
        if table.to_ascii_lowercase().starts_with(INTERNAL_PREFIX) {
            return Err(rule(None, "names that begin with __tribune_ are this program's own"));
        }
        if has_words(&object.sql, ["on", "conflict"]) {
            let reason =
                "it says ON CONFLICT; what a merge writes must be stored or refused, nothing else";
            return Err(rule(None, reason));
        }
        let columns = all_columns_of(&self.conn, table)?;
        if columns.len() > COLUMNS_MAX {
            return Err(rule(None, &format!("it has more than {COLUMNS_MAX} columns")));
        }
        if columns.iter().all(|column| column.key_place == 0) {
            return Err(rule(None, "it has no primary key, by which rows are told apart"));
        }
        let (is_strict, _) = flags_of(&self.conn, table)?;
        let probe = DefaultProbe::new()?;
        for column in &columns {
            self.check_column(table, column, is_strict, &probe)
                .map_err(|reason| rule(Some(&column.name), &reason))?;
        }
        self.check_indexes(table).map_err(|reason| rule(None, &reason))?;
        if count(&self.conn, "pragma_foreign_key_list", table)? > 0 {
            let reason = "it has a foreign key; rows arrive in any order, so what they refer to may arrive later";
            return Err(rule(None, reason));
        }
        Ok(())
    }

    fn check_column(
        &self,
        table: &str,
        column: &ColumnShape,
        is_strict: bool,
        probe: &DefaultProbe,
    ) -> Result<(), String> {
        if column.is_generated {
            return Ok(());
        }
        let (collation, is_automatic) = metadata(&self.conn, table, &column.name)?;
        if is_automatic {
            return Err("AUTOINCREMENT numbers rows on each node for itself".to_owned());
        }
        let affinity = Affinity::of(&column.declared, is_strict);
        let default = probe.value_of(column.default.as_deref(), affinity).map_err(|_| {
            "its default is not a constant; each node would compute its own (texts stand in single quotes)".to_owned()
        })?;
        if column.key_place > 0 {
            if !column.is_not_null {
                return Err("a column of the primary key must be NOT NULL".to_owned());
            }
            if collation != "BINARY" {
                return Err(format!(
                    "the key's collation is {collation}; two spellings of one key would be one row here and two elsewhere"
                ));
            }
        } else if column.is_not_null && default == Value::Null {
            return Err("NOT NULL needs a DEFAULT: what a writer's older schema does not know is filled with it".to_owned());
        }
        Ok(())
    }

    fn check_indexes(&self, table: &str) -> Result<(), String> {
        let sql = "SELECT list.name, list.origin, list.\"unique\",
                          coalesce(max(info.coll <> 'BINARY'), 0)
                   FROM pragma_index_list(?1) AS list
                   LEFT JOIN pragma_index_xinfo(list.name) AS info ON info.key = 1
                   GROUP BY list.name";
        let mut statement = self.conn.prepare(sql).map_err(|error| error.to_string())?;
        let mut rows = statement.query([table]).map_err(|error| error.to_string())?;
        while let Some(row) = rows.next().map_err(|error| error.to_string())? {
            let read = |row: &rusqlite::Row<'_>| -> rusqlite::Result<(String, String, bool, bool)> {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            };
            let (name, origin, is_unique, has_collation) =
                read(row).map_err(|error| error.to_string())?;
            if origin == "u" {
                return Err("it has a UNIQUE constraint beside the primary key; two nodes can each insert a row, and both rows stay".to_owned());
            }
            if origin == "c" && is_unique {
                return Err(format!(
                    "the index {name} is UNIQUE; two nodes can each insert a row, and both rows stay"
                ));
            }
            if origin == "pk" && has_collation {
                return Err("the primary key has a collation other than BINARY; two spellings of one key would be one row here and two elsewhere".to_owned());
            }
        }
        Ok(())
    }

    /// Makes the tables, columns and indexes that the database lacks. Call it in a transaction.
    ///
    /// # Errors
    /// A table differs in a way that would lose data: the transaction must be rolled back.
    pub fn apply(&self, conn: &Connection) -> Result<SchemaChange, SchemaError> {
        let held = replicated(conn)?;
        let mut change = SchemaChange::default();
        for object in &self.tables {
            match held.iter().find(|name| name.eq_ignore_ascii_case(&object.name)) {
                None => {
                    conn.execute_batch(&object.sql)?;
                    change.tables_added.push(object.name.clone());
                }
                Some(name) if *name != object.name => {
                    let reason = format!(
                        "the database spells it {name}; a name's letters cannot be changed"
                    );
                    return Err(object.destructive(None, reason));
                }
                Some(_) => self.alter(conn, object, &mut change)?,
            }
        }
        for object in &self.indexes {
            apply_index(conn, object, &mut change)?;
        }
        Ok(change)
    }

    fn alter(
        &self,
        conn: &Connection,
        object: &Object,
        change: &mut SchemaChange,
    ) -> Result<(), SchemaError> {
        let table = &object.name;
        let held_sql: String = conn.query_row(
            "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1",
            [table],
            |row| row.get(0),
        )?;
        if held_sql == object.sql {
            return Ok(());
        }
        if flags_of(conn, table)? != flags_of(&self.conn, table)? {
            return Err(
                object.destructive(None, "STRICT and WITHOUT ROWID cannot be changed".into())
            );
        }
        if words(&held_sql, "check") != words(&object.sql, "check") {
            return Err(
                object.destructive(None, "CHECK constraints cannot be added or removed".into())
            );
        }
        let held = all_columns_of(conn, table)?;
        let wanted = all_columns_of(&self.conn, table)?;
        for column in &held {
            let Some(new) = wanted.iter().find(|new| new.name == column.name) else {
                let reason = "it is in the database but not in the file; dropping a column is not possible yet, so put it back".to_owned();
                return Err(object.destructive(Some(&column.name), reason));
            };
            self.check_same(conn, object, column, new)?;
        }
        for column in &wanted {
            if !held.iter().any(|old| old.name == column.name) {
                self.add_column(conn, object, column)?;
                change.columns_added.push((table.clone(), column.name.clone()));
            }
        }
        Ok(())
    }

    fn check_same(
        &self,
        conn: &Connection,
        object: &Object,
        held: &ColumnShape,
        wanted: &ColumnShape,
    ) -> Result<(), SchemaError> {
        let differs = |what: &str, from: String, to: String| {
            let reason = format!("its {what} cannot be changed from {from} to {to}");
            Err(object.destructive(Some(&held.name), reason))
        };
        if !held.declared.eq_ignore_ascii_case(&wanted.declared) {
            return differs("type", shown(&held.declared), shown(&wanted.declared));
        }
        if held.is_not_null != wanted.is_not_null {
            let word = |is_not_null: bool| if is_not_null { "NOT NULL" } else { "NULL" };
            let (from, to) = (word(held.is_not_null), word(wanted.is_not_null));
            return differs("constraint", from.into(), to.into());
        }
        if held.key_place != wanted.key_place || held.is_generated != wanted.is_generated {
            let reason = "its place in the primary key, or what generates it, cannot be changed";
            return Err(object.destructive(Some(&held.name), reason.into()));
        }
        if held.is_generated {
            return Ok(());
        }
        let collation = |conn| metadata(conn, &object.name, &held.name).map(|(name, _)| name);
        let (from, to) = (collation(conn), collation(&self.conn));
        if from != to {
            return differs("collation", from.unwrap_or_default(), to.unwrap_or_default());
        }
        let probe = DefaultProbe::new()?;
        let affinity = Affinity::of(&held.declared, flags_of(conn, &object.name)?.0);
        let from = probe.value_of(held.default.as_deref(), affinity)?;
        let to = probe.value_of(wanted.default.as_deref(), affinity)?;
        if from != to {
            return differs("default", from.to_string(), to.to_string());
        }
        Ok(())
    }

    fn add_column(
        &self,
        conn: &Connection,
        object: &Object,
        column: &ColumnShape,
    ) -> Result<(), SchemaError> {
        if column.key_place > 0 || column.is_generated {
            let reason = "columns of the key and generated columns cannot be added to a table that is there already";
            return Err(object.destructive(Some(&column.name), reason.into()));
        }
        let affinity = Affinity::of(&column.declared, flags_of(conn, &object.name)?.0);
        let default = DefaultProbe::new()?.value_of(column.default.as_deref(), affinity)?;
        let (collation, _) =
            metadata(&self.conn, &object.name, &column.name).map_err(SchemaError::Failed)?;
        let sql = format!(
            "ALTER TABLE {} ADD COLUMN {} {} {} DEFAULT {} COLLATE {}",
            quote(&object.name),
            quote(&column.name),
            column.declared,
            if column.is_not_null { "NOT NULL" } else { "" },
            literal(&default),
            quote(&collation),
        );
        // The default applies to every row by itself: nothing is written, nothing is sent.
        conn.execute_batch(&sql)?;
        Ok(())
    }
}

impl Object {
    fn destructive(&self, column: Option<&str>, reason: String) -> SchemaError {
        SchemaError::Destructive {
            file: self.file.clone(),
            table: self.name.clone(),
            column: column.map(str::to_owned),
            reason,
        }
    }
}

fn apply_index(
    conn: &Connection,
    object: &Object,
    change: &mut SchemaChange,
) -> Result<(), SchemaError> {
    let sql = "SELECT tbl_name, sql FROM sqlite_schema WHERE type = 'index' AND name = ?1";
    let held: Option<(String, Option<String>)> = rusqlite::OptionalExtension::optional(
        conn.query_row(sql, [&object.name], |row| Ok((row.get(0)?, row.get(1)?))),
    )?;
    match held {
        Some((_, Some(sql))) if sql == object.sql => return Ok(()),
        Some((table, _)) if table != object.table => {
            let reason = format!("the index {} belongs to table {table} already", object.name);
            return Err(SchemaError::Destructive {
                file: object.file.clone(),
                table: object.table.clone(),
                column: None,
                reason,
            });
        }
        // An index holds no data of its own: a changed one is built anew.
        Some(_) => conn.execute_batch(&format!("DROP INDEX {}", quote(&object.name)))?,
        None => {}
    }
    conn.execute_batch(&object.sql)?;
    change.indexes_added.push(object.name.clone());
    Ok(())
}

type Denied = Arc<Mutex<Option<String>>>;

/// Opens the database in which the files are read: it knows tables and indexes, and nothing else.
fn scratch(denied: Denied) -> Result<Connection, SchemaError> {
    use rusqlite::config::DbConfig;
    let mut conn = Connection::open_in_memory()?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    conn.pragma_update(None, "foreign_keys", false)?;
    let ours = Arc::clone(&denied);
    conn.authorizer(Some(move |context: AuthContext<'_>| {
        let Some(what) = refused(&context) else { return Authorization::Allow };
        *ours.lock().expect("nothing panics while it holds this lock") = Some(what);
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
        | AuthAction::Reindex { .. }
        | AuthAction::Function { .. } => return None,
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

fn count(conn: &Connection, pragma: &str, table: &str) -> rusqlite::Result<i64> {
    conn.query_row(&format!("SELECT count(*) FROM {pragma}(?1)"), [table], |row| row.get(0))
}

/// Returns a column's collation, and whether SQLite numbers it.
fn metadata(conn: &Connection, table: &str, column: &str) -> Result<(String, bool), String> {
    let (_, collation, _, _, is_automatic) =
        conn.column_metadata(Some("main"), table, column).map_err(|error| error.to_string())?;
    let collation = collation.map_or("BINARY".into(), |name| name.to_string_lossy());
    Ok((collation.to_ascii_uppercase(), is_automatic))
}

impl Source {
    fn fault(&self, offset: usize, detail: String) -> SchemaError {
        let before = self.sql.bytes().take(offset);
        let line = before.filter(|byte| *byte == b'\n').count() + 1;
        SchemaError::Syntax { file: self.file.clone(), line, detail }
    }
}

fn explain(error: &rusqlite::Error, denied: &Denied) -> String {
    let denied = denied.lock().expect("nothing panics while it holds this lock").take();
    denied.unwrap_or_else(|| match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    })
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

/// Counts a word, whatever its case, standing alone.
fn words(text: &str, word: &str) -> usize {
    split_words(text).filter(|part| part.eq_ignore_ascii_case(word)).count()
}

/// Tells whether two words follow each other.
fn has_words(text: &str, [first, second]: [&str; 2]) -> bool {
    let mut words = split_words(text).skip(1);
    split_words(text).any(|word| {
        let next = words.next().unwrap_or_default();
        word.eq_ignore_ascii_case(first) && next.eq_ignore_ascii_case(second)
    })
}

fn split_words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

fn shown(declared: &str) -> String {
    if declared.is_empty() { "none".to_owned() } else { declared.to_owned() }
}

/// Writes a value as SQL reads it.
pub fn literal(value: &Value) -> String {
    match value {
        Value::Real(number) if number.is_infinite() => {
            if *number > 0.0 {
                "9e999".into()
            } else {
                "-9e999".into()
            }
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
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
            (
                "CREATE TABLE a (x TEXT NOT NULL COLLATE NOCASE PRIMARY KEY)",
                &["column x", "NOCASE"],
            ),
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
        let names = trial.rows("SELECT name FROM sqlite_schema WHERE tbl_name = 'a' ORDER BY name");
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
        let mut reader =
            in_memory(ME, "CREATE TABLE a (x TEXT NOT NULL PRIMARY KEY, z DEFAULT 'e');");
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
}
