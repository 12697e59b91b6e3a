//! A store to try things on, for the tests of this room.

use std::collections::BTreeMap;

use tempfile::TempDir;

use super::schema::Source;
use super::sql::{Params, Statement};
use super::statements::SqlError;
use super::{OpenConfig, Readers, Store, Transacted};
use crate::crdt::Commit;
use crate::types::{NodeId, Value, Wall};

/// The node that the store of a trial belongs to.
pub const ME: NodeId = NodeId([0x11; 16]);
/// Any moment.
pub const NOW: Wall = Wall(1_700_000_000_000_000);

/// A user's table, beside the fixed ones.
pub const T: &str = "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, v, w DEFAULT 'dw');";

/// A store in a directory of its own.
pub struct Trial {
    pub store: Store,
    pub dir: TempDir,
    pub config: OpenConfig,
}

impl Trial {
    /// Opens a store with the fixed tables and those of `sql`, which no row of the schema tells of.
    pub fn new(sql: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = OpenConfig {
            data_dir: dir.path().join("data"),
            node: Some(ME),
            name: "trial".to_owned(),
            ..OpenConfig::default()
        };
        let mut store = Store::open(&config).unwrap();
        store.apply_schema(NOW, &[source(sql)]).unwrap();
        Self { store, dir, config }
    }

    /// Closes the store and opens it again.
    pub fn reopen(self) -> Self {
        let Self { store, dir, config } = self;
        drop(store);
        Self { store: Store::open(&config).unwrap(), dir, config }
    }

    /// Runs one transaction of statements without parameters.
    pub fn sql(&mut self, statements: &[&str]) -> Result<(Transacted, Option<Commit>), SqlError> {
        run(&mut self.store, statements)
    }

    /// Runs statements that must work, and returns the commit that they made.
    pub fn write(&mut self, statements: &[&str]) -> Commit {
        self.sql(statements).unwrap().1.expect("it changes something")
    }

    /// Runs statements that must fail, and returns why.
    pub fn refuse(&mut self, statements: &[&str]) -> String {
        self.sql(statements).expect_err("it should have been refused").to_string()
    }

    /// Shows all rows of a query on the writer's connection, a line each.
    pub fn rows(&self, sql: &str) -> Vec<String> {
        rows(&self.store, sql)
    }

    pub fn readers(&self) -> Readers {
        Readers::open(self.store.path().unwrap(), 2).unwrap()
    }
}

/// Runs one transaction of statements without parameters.
pub fn run(
    store: &mut Store,
    statements: &[&str],
) -> Result<(Transacted, Option<Commit>), SqlError> {
    let statements: Vec<Statement> = statements.iter().map(|sql| plain(sql)).collect();
    let mut group = store.group(NOW);
    let transacted = group.sql(&statements, None)?;
    let commit = group.commit().unwrap().pop().map(|commit| (*commit).clone());
    Ok((transacted, commit))
}

/// Shows all rows of a query on the writer's connection, a line each.
pub fn rows(store: &Store, sql: &str) -> Vec<String> {
    let mut statement = store.conn.prepare(sql).unwrap();
    let width = statement.column_count();
    let rows = statement.query_map([], |row| {
        let values = (0..width).map(|at| super::values::show(row.get_ref(at).unwrap()));
        Ok(values.map(|value| value.to_string()).collect::<Vec<_>>().join(" "))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// A statement without parameters.
pub fn plain(sql: &str) -> Statement {
    Statement { sql: sql.to_owned(), params: Params::None }
}

/// A store in memory with the tables of `sql` alone.
pub fn in_memory(node: NodeId, sql: &str) -> Store {
    let config = OpenConfig { node: Some(node), ..OpenConfig::default() };
    Store::in_memory(&config, &[source(sql)]).unwrap()
}

/// A schema file.
pub fn source(sql: &str) -> Source {
    Source { file: "test.sql".to_owned(), sql: sql.to_owned() }
}

/// Shows a commit's events: table, key, and the row after it.
pub fn events(commit: &Commit) -> Vec<String> {
    let words =
        |values: &[Value]| values.iter().map(Value::to_string).collect::<Vec<_>>().join(" ");
    let mut shown = Vec::new();
    for events in &commit.tables {
        for event in &events.rows {
            let sign = match (event.existed, &event.row) {
                (false, Some(_)) => "+",
                (true, Some(_)) => "=",
                (_, None) => "-",
            };
            let after = event.row.as_ref().map_or(words(&event.key), |row| words(row));
            shown.push(format!("{sign}{} {after}", events.table.name));
        }
    }
    shown
}

/// Shows what a commit tells other nodes: life, and cells with their counts.
pub fn changes(commit: &Commit) -> Vec<String> {
    let changeset = commit.changeset.as_ref().expect("a local commit has a changeset");
    let mut shown = Vec::new();
    for table in &changeset.tables {
        for row in &table.rows {
            let key = crate::crdt::pack::unpack(&row.key).unwrap();
            let cells: BTreeMap<_, _> = row
                .cells
                .iter()
                .map(|cell| (&table.columns[usize::from(cell.column)], cell))
                .collect();
            let cells: Vec<String> = cells
                .iter()
                .map(|(column, cell)| format!("{column}:{}={}", cell.count, cell.value))
                .collect();
            let key = key.iter().map(Value::to_string).collect::<Vec<_>>().join(",");
            shown.push(format!("{}[{key}]@{} {}", table.table, row.life.length, cells.join(" ")));
        }
    }
    shown
}
