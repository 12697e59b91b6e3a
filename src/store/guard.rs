//! Keeps other programs from writing to replicated tables: what they wrote would have no clocks,
//! reach no other node, and be undone by the next merge.
//!
//! Each table has triggers that name a function which nobody has, and this program's connections
//! run no triggers at all. An `sqlite3` shell that inserts, updates or deletes is told so before
//! anything happens, while the node runs and while it does not: "no such function: only tribune
//! writes here, use tribune exec". Reading and backups are not touched. Whoever drops
//! the triggers by hand means it; the next start says so in the log, and makes them again.

use std::collections::BTreeSet;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::tables::{INTERNAL_PREFIX, replicated};
use super::values::quote;

/// What a foreign program is told.
const REFUSAL: &str = "only tribune writes here, use tribune exec";

const KINDS: [&str; 3] = ["INSERT", "UPDATE", "DELETE"];

/// Makes a connection one of those that may write. It costs nothing: SQLite does not even look
/// whether a table has triggers.
pub fn admit(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).map(drop)
}

/// Guards every replicated table. Returns those whose guard somebody has removed. Call it in a
/// transaction; `added` are the tables that it made.
pub fn set_up(conn: &Connection, added: &[String]) -> rusqlite::Result<Vec<String>> {
    let held: BTreeSet<String> = conn
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'trigger'")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let is_first = !held.iter().any(|name| name.starts_with(&prefix("INSERT")));
    let mut removed = Vec::new();
    for table in replicated(conn)? {
        let missing = |kind: &&&str| !held.contains(&format!("{}{table}", prefix(kind)));
        let missing: Vec<&str> = KINDS.iter().filter(missing).copied().collect();
        if missing.is_empty() {
            continue;
        }
        for kind in missing {
            conn.execute_batch(&format!(
                "CREATE TRIGGER {} BEFORE {kind} ON {} BEGIN SELECT {}(); END",
                quote(&format!("{}{table}", prefix(kind))),
                quote(&table),
                quote(REFUSAL),
            ))?;
        }
        if !is_first && !added.contains(&table) {
            removed.push(table);
        }
    }
    Ok(removed)
}

/// Lists the replicated tables that other programs could write to.
pub fn unguarded(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut held =
        conn.prepare("SELECT 1 FROM sqlite_schema WHERE type = 'trigger' AND name = ?1")?;
    let mut found = Vec::new();
    for table in replicated(conn)? {
        for kind in KINDS {
            if !held.exists([format!("{}{table}", prefix(kind))])? {
                found.push(table);
                break;
            }
        }
    }
    Ok(found)
}

fn prefix(kind: &str) -> String {
    format!("{INTERNAL_PREFIX}guard_{}_", kind.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crdt::storage::Storage;
    use crate::store::trial::{T, Trial};

    fn shell(trial: &Trial) -> Connection {
        Connection::open(trial.store.path().unwrap()).unwrap()
    }

    #[test]
    fn a_foreign_program_can_read_and_cannot_write_and_is_told_what_to_do() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id, v) VALUES (1, 'a')"]);
        let shell = shell(&trial);
        for sql in [
            "INSERT INTO t (id) VALUES (2)",
            "INSERT OR REPLACE INTO t (id) VALUES (1)",
            "INSERT INTO t (id) VALUES (1) ON CONFLICT DO UPDATE SET v = 'b'",
            "UPDATE t SET v = 'b'",
            "DELETE FROM t",
            "DELETE FROM services",
            "UPDATE nodes SET name = 'x'",
        ] {
            let error = shell.execute(sql, []).unwrap_err().to_string();
            assert!(error.contains("only tribune writes here, use tribune exec"), "{sql}: {error}");
        }
        let held: String = shell.query_row("SELECT v FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(held, "a");
        // A copy for a look is whole, too.
        shell.execute("VACUUM INTO ?1", [trial.dir.path().join("copy").to_str()]).unwrap();
        // A write looks whether somebody else has committed.
        trial.write(&["UPDATE t SET v = 'b'", "DELETE FROM t"]);
        assert_eq!(trial.store.foreign_commits(), 0);
    }

    #[test]
    fn a_guard_that_was_removed_is_missed_and_put_back() {
        let trial = Trial::new(T);
        let shell = shell(&trial);
        shell.execute_batch("DROP TRIGGER __tribune_guard_update_t").unwrap();
        shell.execute("UPDATE t SET v = 1", []).unwrap();
        assert_eq!(set_up(&trial.store.conn, &[]).unwrap(), ["t"]);
        assert_eq!(set_up(&trial.store.conn, &[]).unwrap(), Vec::<String>::new());
        shell.execute("UPDATE t SET v = 1", []).unwrap_err();
    }

    #[test]
    fn what_was_written_past_a_removed_guard_is_counted_at_the_next_start() {
        let mut trial = Trial::new(T);
        trial.write(&["INSERT INTO t (id, v) VALUES (1, 'a'), (2, 'b')"]);
        let before = trial.store.fingerprint().unwrap();
        let shell = shell(&trial);
        shell.execute_batch("DROP TRIGGER __tribune_guard_update_t").unwrap();
        shell.execute("UPDATE t SET v = 'c' WHERE id = 1", []).unwrap();
        drop(shell);
        let mut trial = trial.reopen();
        let counted = trial.store.fingerprint().unwrap();
        assert_ne!(counted, before);
        trial.write(&["UPDATE t SET v = 'a' WHERE id = 1", "DELETE FROM t"]);
        assert_eq!(trial.store.fingerprint().unwrap(), 0, "no row is left");
        assert_eq!(trial.reopen().store.fingerprint().unwrap(), 0);
    }

    #[test]
    fn a_table_that_grows_stays_guarded() {
        let mut trial = Trial::new(T);
        let grown = T.replace("w DEFAULT 'dw'", "w DEFAULT 'dw', x")
            + "CREATE TABLE u (a NOT NULL PRIMARY KEY);";
        let sources = [crate::store::trial::source(&grown)];
        trial.store.apply_schema(crate::store::trial::NOW, &sources).unwrap();
        trial.write(&["INSERT INTO u VALUES (1)", "INSERT INTO t (id, x) VALUES (1, 2)"]);
        for table in ["t", "u"] {
            shell(&trial).execute(&format!("DELETE FROM {table}"), []).unwrap_err();
        }
    }
}
