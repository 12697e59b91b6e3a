//! Brings this node's own tables to the version this program knows. Migrations are added, never
//! edited: `user_version` counts those that were run.

use rusqlite::{Connection, TransactionBehavior};

use super::open::OpenError;

/// "Trib": tells this program's databases from all others.
pub const APPLICATION_ID: i32 = 0x5472_6962;

/// All migrations, oldest first.
const MIGRATIONS: [&str; 11] = [
    include_str!("../../migrations/0001_node.sql"),
    include_str!("../../migrations/0002_rows.sql"),
    include_str!("../../migrations/0003_parked.sql"),
    include_str!("../../migrations/0004_checks.sql"),
    include_str!("../../migrations/0005_schema.sql"),
    include_str!("../../migrations/0006_staged.sql"),
    include_str!("../../migrations/0007_tombstones.sql"),
    include_str!("../../migrations/0008_retirement.sql"),
    include_str!("../../migrations/0009_told_lives.sql"),
    include_str!("../../migrations/0010_forgotten.sql"),
    include_str!("../../migrations/0011_told_cells.sql"),
];

/// The version that the first migration makes. Smaller ones were never released.
const FIRST: i32 = 18;

/// The version of the tables that this program makes and reads.
pub const VERSION: i32 = FIRST + MIGRATIONS.len() as i32 - 1;

/// Says whether a database is one that this program may change, and how many migrations it has
/// seen.
///
/// # Errors
/// It belongs to another program, or to a newer one of ours.
pub fn check(conn: &Connection, path: &str) -> Result<i32, OpenError> {
    let failed = |error| OpenError::of(path, error);
    let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let application_id = pragma("application_id").map_err(failed)?;
    let version = pragma("user_version").map_err(failed)?;
    let tables: i64 = conn
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(failed)?;
    let is_fresh = application_id == 0 && version == 0 && tables == 0;
    if application_id != APPLICATION_ID && !is_fresh {
        return Err(OpenError::Foreign { path: path.to_owned(), application_id });
    }
    if version > VERSION {
        return Err(OpenError::Newer { path: path.to_owned(), found: version, known: VERSION });
    }
    if !is_fresh && version < FIRST {
        return Err(OpenError::Unreleased { path: path.to_owned(), found: version });
    }
    Ok(version)
}

/// Runs the migrations that a database lacks.
///
/// # Errors
/// See [`check`]; nothing was written.
pub fn migrate(conn: &mut Connection, path: &str) -> Result<(), OpenError> {
    let version = check(conn, path)?;
    run(conn, version).map_err(|error| OpenError::of(path, error))
}

fn run(conn: &mut Connection, held: i32) -> rusqlite::Result<()> {
    if held == VERSION {
        return Ok(());
    }
    let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = usize::try_from(held + 1 - FIRST).unwrap_or(0);
    for migration in &MIGRATIONS[done..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_brought_up_once_and_keeps_its_version() {
        let mut conn = Connection::open_in_memory().unwrap();
        migrate(&mut conn, "memory").unwrap();
        migrate(&mut conn, "memory").unwrap();
        let version: i32 = conn.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, VERSION);
    }

    #[test]
    fn a_database_of_another_program_or_a_newer_one_is_left_alone() {
        let mut conn = Connection::open_in_memory().unwrap();
        conn.execute_batch("CREATE TABLE t (a); PRAGMA user_version = 3;").unwrap();
        let error = migrate(&mut conn, "x.db").unwrap_err();
        assert!(matches!(error, OpenError::Foreign { application_id: 0, .. }), "{error}");

        let mut conn = Connection::open_in_memory().unwrap();
        migrate(&mut conn, "memory").unwrap();
        conn.pragma_update(None, "user_version", VERSION + 1).unwrap();
        let error = migrate(&mut conn, "x.db").unwrap_err();
        assert!(error.to_string().contains("newer"), "{error}");
        conn.pragma_update(None, "user_version", FIRST - 1).unwrap();
        let error = migrate(&mut conn, "x.db").unwrap_err();
        assert!(error.to_string().contains("before the first release"), "{error}");
        conn.pragma_update(None, "application_id", 7).unwrap();
        let error = migrate(&mut conn, "x.db").unwrap_err();
        assert!(matches!(error, OpenError::Foreign { application_id: 7, .. }), "{error}");
    }
}
