//! Users' statements in a transaction: prepared under the authorizer, run under the deadline.
//!
//! A `SELECT` is allowed and hands back its rows, as `RETURNING` does: it reads what the
//! statements before it wrote. (Corrosion refuses it.)

use std::time::Instant;

use rusqlite::{Connection, ErrorCode};

use super::bind::bind;
use super::capture::Capture;
use super::database::{Store, fault_text};
use super::gate::{Ended, Gate};
use super::limits::{RETURNED_BYTES_MAX, YIELD_GRACE};
use super::sql::{Outcome, Statement};
use super::unfolding;
use super::values::show;
use crate::types::Value;

/// How many SQL texts are remembered as vetted. Beyond it all are vetted again.
const VETTED_MAX: usize = 1_024;

/// Why a transaction of users' statements did not happen. Nothing of it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SqlError {
    /// A statement failed, or may not be run here: its place in the list, and why.
    #[error("{message}")]
    Statement { index: usize, message: String },
    /// The deadline passed.
    #[error("interrupted: the transaction took longer than its time limit")]
    TimedOut,
    /// It had run for a while, and others waited for the writer.
    #[error(
        "interrupted: other writes had waited for {} ms; nothing was written: try again, or write in smaller transactions",
        YIELD_GRACE.as_millis()
    )]
    Yielded,
    /// The disk or the database is at fault. The same call may be repeated.
    #[error("the database failed: {0}")]
    Failed(String),
}

/// Runs statements one after the other, up to the first that fails.
pub(super) fn run(
    store: &mut Store,
    statements: &[Statement],
    deadline: Option<Instant>,
) -> Result<Vec<Outcome>, SqlError> {
    let mut outcomes = Vec::with_capacity(statements.len());
    let mut returned_bytes = 0;
    while let Some(first) = statements.get(outcomes.len()) {
        // What is said again and again is prepared once.
        let run = statements[outcomes.len()..].iter().take_while(|next| next.sql == first.sql);
        let run = &statements[outcomes.len()..][..run.count()];
        let gate = store.gate.clone();
        if let Some(ended) = gate.is_over(deadline) {
            return Err(ended.into());
        }
        let is_vetted = store.vetted.contains(&first.sql);
        let watched = Watched { gate: &gate, capture: &store.capture, deadline };
        let result = gate.guarded(deadline, || {
            run_alike(&store.conn, run, is_vetted, &watched, (&mut returned_bytes, &mut outcomes))
        });
        result.map_err(|fault| {
            if let Some(ended) = gate.ended() {
                return ended.into();
            }
            match fault {
                Fault::Database(message) => SqlError::Failed(message),
                Fault::Statement(message) => {
                    let message = gate.take_denied().unwrap_or(message);
                    SqlError::Statement { index: outcomes.len(), message }
                }
                Fault::Ended(ended) => ended.into(),
            }
        })?;
        if !is_vetted {
            if store.vetted.len() >= VETTED_MAX {
                store.vetted.clear();
            }
            store.vetted.insert(first.sql.clone());
        }
    }
    Ok(outcomes)
}

/// What may end a transaction between two statements.
struct Watched<'a> {
    gate: &'a Gate,
    capture: &'a Capture,
    deadline: Option<Instant>,
}

impl From<Ended> for SqlError {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Late => Self::TimedOut,
            Ended::Yielded => Self::Yielded,
        }
    }
}

enum Fault {
    Statement(String),
    Database(String),
    Ended(Ended),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(
                ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::DiskFull
                | ErrorCode::OutOfMemory
                | ErrorCode::ReadOnly
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked,
            ) => Self::Database(fault_text(&error)),
            _ => Self::Statement(error.to_string()),
        }
    }
}

/// Runs statements of one text, and adds their outcomes up to the first that fails.
fn run_alike(
    conn: &Connection,
    statements: &[Statement],
    is_vetted: bool,
    watched: &Watched<'_>,
    (returned_bytes, outcomes): (&mut usize, &mut Vec<Outcome>),
) -> Result<(), Fault> {
    let sql = &*statements[0].sql;
    let mut start = Instant::now();
    // The cache also holds statements of the store itself, which no user may run: only a text
    // that was prepared under the authorizer before is looked up there.
    let (mut cached, mut fresh);
    let prepared: &mut rusqlite::Statement<'_> = if is_vetted {
        cached = conn.prepare_cached(sql)?;
        &mut cached
    } else {
        if let Some(reason) = unfolding::refusal(sql) {
            return Err(Fault::Statement(reason));
        }
        fresh = conn.prepare(sql)?;
        if fresh.expanded_sql().is_none() {
            return Err(Fault::Statement("the statement is empty".to_owned()));
        }
        &mut fresh
    };
    for (nth, statement) in statements.iter().enumerate() {
        if nth > 0
            && let Some(ended) = watched.gate.is_over(watched.deadline)
        {
            return Err(Fault::Ended(ended));
        }
        let mut outcome = execute(prepared, conn, statement, returned_bytes)?;
        if let Some(message) = watched.capture.fault() {
            return Err(Fault::Statement(message));
        }
        let end = Instant::now();
        outcome.took = end - start;
        start = end;
        outcomes.push(outcome);
    }
    Ok(())
}

fn execute(
    prepared: &mut rusqlite::Statement<'_>,
    conn: &Connection,
    statement: &Statement,
    returned_bytes: &mut usize,
) -> Result<Outcome, Fault> {
    bind(prepared, &statement.params).map_err(|error| Fault::Statement(error.to_string()))?;
    let is_reading = prepared.readonly();
    let columns: Vec<String> = prepared.column_names().map(str::to_owned).collect();
    let width = columns.len();
    let mut returned = Vec::new();
    let mut rows = prepared.raw_query();
    while let Some(row) = rows.next()? {
        let mut values = Vec::with_capacity(width);
        for index in 0..width {
            let value = show(row.get_ref(index)?);
            *returned_bytes += value.bytes() + size_of::<Value>();
            values.push(value);
        }
        if *returned_bytes > RETURNED_BYTES_MAX {
            let limit = format!("the statements return more than {RETURNED_BYTES_MAX} bytes");
            return Err(Fault::Statement(limit));
        }
        returned.push(values);
    }
    drop(rows);
    let changes = if is_reading { 0 } else { conn.changes() };
    Ok(Outcome {
        rows_affected: usize::try_from(changes).unwrap_or(usize::MAX),
        returned: (width > 0).then_some((columns, returned)),
        ..Outcome::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::Params;
    use crate::store::trial::{ME, NOW, T, Trial, plain};

    #[track_caller]
    fn check_refused(trial: &mut Trial, sql: &str, reason: &str) {
        let error = trial.refuse(&[sql]);
        assert!(error.contains(reason), "{sql}: {error}");
        // The second time the text could come from the cache.
        assert_eq!(trial.refuse(&[sql]), error);
    }

    #[test]
    fn only_rows_of_users_tables_can_be_written() {
        let mut trial = Trial::new(T);
        let cases = [
            ("CREATE TABLE x (a)", "changing the schema"),
            ("CREATE TEMP TABLE x (a)", "changing the schema"),
            ("CREATE INDEX x ON t (v)", "changing the schema"),
            ("CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END", "changing the schema"),
            ("CREATE VIEW x AS SELECT 1", "changing the schema"),
            ("CREATE VIRTUAL TABLE x USING fts5(a)", "changing the schema"),
            ("DROP TABLE t", "changing the schema"),
            ("ALTER TABLE t ADD COLUMN x", "changing the schema"),
            ("UPDATE sqlite_schema SET sql = ''", "may not be modified"),
            ("REINDEX", "changing the schema"),
            ("ANALYZE", "changing the schema"),
            ("PRAGMA user_version = 9", "PRAGMA user_version is not allowed"),
            ("PRAGMA journal_mode", "PRAGMA journal_mode is not allowed"),
            ("SELECT * FROM pragma_table_info('t')", "internal"),
            ("ATTACH ':memory:' AS z", "ATTACH"),
            ("DETACH main", "ATTACH"),
            ("VACUUM INTO '/tmp/x'", "VACUUM"),
            ("BEGIN", "each request is one transaction"),
            ("COMMIT", "each request is one transaction"),
            ("ROLLBACK", "each request is one transaction"),
            ("SAVEPOINT caller", "each request is one transaction"),
            ("RELEASE caller", "each request is one transaction"),
            ("ROLLBACK TO caller", "each request is one transaction"),
            ("DELETE FROM __tribune_rows", "internal"),
            ("SELECT count(*) FROM __tribune_node", "internal"),
            ("INSERT INTO t SELECT 1, id, 1 FROM __TRIBUNE_node", "internal"),
            ("SELECT load_extension('x')", "load_extension"),
            ("INSERT INTO t (id) VALUES (1); DELETE FROM t", "Multiple statements provided"),
            ("", "empty"),
            ("-- nothing", "empty"),
            ("selec", "near \"selec\": syntax error"),
            ("INSERT INTO nope VALUES (1)", "no such table: nope"),
        ];
        for (sql, reason) in cases {
            check_refused(&mut trial, sql, reason);
        }
        assert_eq!(trial.rows("SELECT count(*) FROM t"), ["0"]);
    }

    #[test]
    fn a_statement_of_the_stores_own_is_refused_even_when_it_is_cached() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id) VALUES (1)"]);
        let own = "DELETE FROM __tribune_parked WHERE tbl = ?1 AND key = ?2";
        drop(trial.store.conn.prepare_cached(own).unwrap());
        check_refused(&mut trial, own, "internal");
        check_refused(&mut trial, "BEGIN IMMEDIATE", "each request is one transaction");
        check_refused(&mut trial, "COMMIT", "each request is one transaction");
    }

    #[test]
    fn rows_of_other_nodes_cannot_be_written() {
        let mut trial = Trial::new("");
        let other = "22222222-2222-2222-2222-222222222222";
        let mine = ME.to_string();
        let insert =
            |node: &str| format!("INSERT INTO services (node_id, id) VALUES ('{node}', 'web')");
        check_refused(&mut trial, &insert(other), "belongs to another node");
        trial.write(&[&insert(&mine)]);
        trial.write(&[&insert(&format!("{mine}/router"))]);
        let steal = format!("UPDATE services SET node_id = '{other}' WHERE node_id = '{mine}'");
        check_refused(&mut trial, &steal, "belongs to another node");
        // Refused although nothing of it would be left.
        let error = trial.refuse(&[&insert(other), "DELETE FROM services"]);
        assert!(error.contains("belongs to another node"), "{error}");
    }

    #[test]
    fn rows_are_counted_and_returned() {
        let mut trial = Trial::new(T);
        let (transacted, _) = trial
            .sql(&[
                "INSERT INTO t (id, v) VALUES (1, 'a'), (2, 'b') RETURNING id, v AS x",
                "UPDATE t SET v = v",
                "SELECT count(*) FROM t",
                "DELETE FROM t WHERE id = 5",
            ])
            .unwrap();
        let counts: Vec<usize> =
            transacted.outcomes.iter().map(|done| done.rows_affected).collect();
        assert_eq!(counts, [2, 2, 0, 0]);
        let returned: Vec<_> = transacted.outcomes.into_iter().map(|done| done.returned).collect();
        let rows = vec![vec![1.into(), "a".into()], vec![2.into(), "b".into()]];
        assert_eq!(returned[0], Some((vec!["id".to_owned(), "x".to_owned()], rows)));
        assert_eq!(returned[1], None);
        assert_eq!(returned[2], Some((vec!["count(*)".to_owned()], vec![vec![2.into()]])));
        assert_eq!(returned[3], None);
        let error = trial.refuse(&["SELECT zeroblob(3000000) FROM t, t AS u"]);
        assert!(error.contains("return more than 8388608 bytes"), "{error}");
    }

    #[test]
    fn parameters_must_fit() {
        let mut trial = Trial::new(T);
        let mut run = |sql: &str, params: Params| {
            let mut group = trial.store.group(NOW);
            let statement = Statement { sql: sql.to_owned(), params };
            let result = group.sql(&[statement], None).map_err(|error| error.to_string());
            group.commit().unwrap();
            result.map(|done| done.outcomes[0].returned.clone().unwrap_or_default().1)
        };
        let positional = |values: &[Value]| Params::Positional(values.to_vec());
        let named = |names: &[&str]| {
            Params::Named(names.iter().map(|name| ((*name).to_owned(), 1.into())).collect())
        };
        let both = "SELECT ?, ?";
        assert_eq!(
            run(both, positional(&[1.into(), Value::Null])),
            Ok(vec![vec![1.into(), Value::Null]])
        );
        assert_eq!(
            run(both, positional(&[1.into()])),
            Err("Wrong number of parameters passed to query. Got 1, needed 2".to_owned())
        );
        assert_eq!(
            run(both, Params::None),
            Err("Wrong number of parameters passed to query. Got 0, needed 2".to_owned())
        );
        let names = "SELECT :a, @b, $c, :a";
        let ones = vec![vec![1.into(), 1.into(), 1.into(), 1.into()]];
        assert_eq!(run(names, named(&[":a", "@b", "$c"])), Ok(ones));
        assert_eq!(run(names, named(&[":a", "@b"])), Err("parameter $c has no value".to_owned()));
        assert_eq!(
            run(names, named(&[":a", "@b", "$c", ":d"])),
            Err("Invalid parameter name: :d".to_owned())
        );
        assert_eq!(run("SELECT 'x'", named(&[])), Ok(vec![vec!["x".into()]]));
    }

    #[test]
    fn a_statement_that_fails_half_way_leaves_nothing_behind() {
        let mut trial =
            Trial::new("CREATE TABLE c (id INTEGER NOT NULL PRIMARY KEY, n CHECK (n < 3));");
        let mut group = trial.store.group(NOW);
        let half = [plain("INSERT INTO c VALUES (1, 1), (2, 2), (3, 3)")];
        group.sql(&half, None).unwrap_err();
        let ignoring = [plain("INSERT OR IGNORE INTO c VALUES (1, 1), (2, 3), (3, 2)")];
        assert_eq!(group.sql(&ignoring, None).unwrap().outcomes[0].rows_affected, 2);
        let commits = group.commit().unwrap();
        assert_eq!(crate::store::trial::changes(&commits[0]), ["c[1]@1 n:1=1", "c[3]@1 n:1=2"]);
    }
}
