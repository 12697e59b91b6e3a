//! Users' statements in a transaction: prepared under the authorizer, run under the deadline.
//!
//! A `SELECT` is allowed and hands back its rows, as `RETURNING` does: it reads what the
//! statements before it wrote. (Corrosion refuses it.)

use std::time::Instant;

use rusqlite::{Connection, ErrorCode};

use super::bind::bind;
use super::limits::RETURNED_BYTES_MAX;
use super::sql::{Outcome, Statement};
use super::store::Store;
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
    for (index, statement) in statements.iter().enumerate() {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(SqlError::TimedOut);
        }
        let gate = store.gate.clone();
        let is_vetted = store.vetted.contains(&statement.sql);
        let result = gate.guarded(deadline, || {
            run_one(&store.conn, statement, is_vetted, &mut returned_bytes)
        });
        let outcome = result.map_err(|fault| {
            if gate.is_late() {
                return SqlError::TimedOut;
            }
            match fault {
                Fault::Database(message) => SqlError::Failed(message),
                Fault::Statement(message) => {
                    let message = gate.take_denied().unwrap_or(message);
                    SqlError::Statement { index, message }
                }
            }
        })?;
        if let Some(message) = store.capture.fault() {
            return Err(SqlError::Statement { index, message });
        }
        if !is_vetted {
            if store.vetted.len() >= VETTED_MAX {
                store.vetted.clear();
            }
            store.vetted.insert(statement.sql.clone());
        }
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

enum Fault {
    Statement(String),
    Database(String),
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
            ) => Self::Database(error.to_string()),
            _ => Self::Statement(error.to_string()),
        }
    }
}

fn run_one(
    conn: &Connection,
    statement: &Statement,
    is_vetted: bool,
    returned_bytes: &mut usize,
) -> Result<Outcome, Fault> {
    let start = Instant::now();
    // The cache also holds statements of the store itself, which no user may run: only a text
    // that was prepared under the authorizer before is looked up there.
    let mut outcome = if is_vetted {
        execute(&mut *conn.prepare_cached(&statement.sql)?, conn, statement, returned_bytes)?
    } else {
        let mut prepared = conn.prepare(&statement.sql)?;
        if prepared.expanded_sql().is_none() {
            return Err(Fault::Statement("the statement is empty".to_owned()));
        }
        execute(&mut prepared, conn, statement, returned_bytes)?
    };
    outcome.took = start.elapsed();
    Ok(outcome)
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
