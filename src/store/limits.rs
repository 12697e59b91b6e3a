//! What a transaction, a statement and an answer may take. Each limit says what happens beyond it.

use std::time::Duration;

use rusqlite::Connection;
use rusqlite::limits::Limit;

/// The largest single text or blob, in bytes. Beyond it a local statement fails; what arrives from
/// another node is set aside in `__tribune_parked`.
pub const VALUE_BYTES_MAX: usize = 4 << 20;

/// The longest packed primary key, in bytes: keys are copied into two trees of metadata.
pub const KEY_BYTES_MAX: usize = 1 << 10;

/// The most cells that a local transaction may change and still travel whole, which bounds what every
/// node must hold in memory at once. Beyond it a transaction of users' tables is large: it goes over
/// the disk and travels in parts. Of the catalog's tables it fails.
pub const TRANSACTION_CELLS_MAX: usize = 50_000;

/// The most bytes of changed values in a local transaction that travels whole. Beyond it a transaction
/// of users' tables is large, as above. It is also the most that one row may change in one.
pub const TRANSACTION_BYTES_MAX: usize = 8 << 20;

/// The most bytes of rows, before and after, that a local transaction may touch that is held in memory
/// whole. Above [`TRANSACTION_BYTES_MAX`] since an update of one cell shows its row.
pub const TOUCHED_BYTES_MAX: usize = 64 << 20;

/// How many bytes of touched rows are held in memory while statements run; what is more goes to a file.
/// Nearly all that travels whole fits.
pub const HELD_BYTES_MAX: usize = 16 << 20;

/// How often a large transaction may change rows, and how many bytes of rows it may touch, before and
/// after; beyond it the transaction fails. What a transaction writes is in the log, the database and, on
/// other nodes, among what waits to be applied, all at once.
pub const LARGE_CHANGES_MAX: u64 = 10_000_000;
pub const LARGE_TOUCHED_BYTES_MAX: usize = 4 << 30;

/// How many rows of users' tables a commit lists for those who watch them, and how many bytes of
/// values. Beyond it the commit says which tables changed, and whoever watches reads them again.
pub const EVENT_ROWS_MAX: usize = 50_000;
pub const EVENT_BYTES_MAX: usize = 16 << 20;

/// The most bytes that `RETURNING` and `SELECT` may hand back in one transaction.
pub const RETURNED_BYTES_MAX: usize = 8 << 20;

/// The longest SQL text, in bytes.
pub const SQL_BYTES_MAX: usize = 64 << 10;

/// The most terms that a text may unfold to while SQLite prepares it, which no deadline ends: at
/// about a microsecond and 150 bytes a term, a tenth of a second and 15 MB. No text of
/// [`SQL_BYTES_MAX`] that names each of its sub-queries once comes near it.
pub const UNFOLDED_TERMS_MAX: u64 = 100_000;

/// The most parameters of one statement.
pub const PARAMETERS_MAX: usize = 1_000;

/// The most columns of one table or one answer.
pub const COLUMNS_MAX: usize = 200;

/// The largest row, and the largest text or blob that a statement may make on its way, in bytes.
/// Rows are merged cell by cell, so a row may grow larger than any transaction that wrote to it;
/// beyond this the merged row is set aside.
pub const ROW_BYTES_MAX: usize = 16 << 20;

/// The longest text that `instr`, `replace`, `trim` and `unhex` look for, in bytes: what they cost is
/// this times the length of what they look in, and no deadline ends them.
pub const PATTERN_BYTES_MAX: usize = 1_000;

/// The longest pattern of `LIKE` and `GLOB`, in bytes, for the same reason: with this one the
/// largest text takes some seconds.
pub const LIKE_PATTERN_BYTES_MAX: usize = 100;

/// Every how many steps of SQLite's virtual machine a deadline is looked at: about 2 µs of small
/// steps. A step may also be a function of a value of megabytes.
pub const DEADLINE_STEPS: std::ffi::c_int = 200;

/// How long a user's transaction may go on once somebody else waits for the writer: remote changes
/// and verdicts of checks must not be late by more than a person would notice, and what takes
/// longer than this (some 10,000 rows) can be split. Beyond it the transaction is undone.
pub const YIELD_GRACE: Duration = Duration::from_millis(250);

const _: () = assert!(VALUE_BYTES_MAX <= TRANSACTION_BYTES_MAX);
const _: () = assert!(TRANSACTION_BYTES_MAX < ROW_BYTES_MAX);
const _: () = assert!(ROW_BYTES_MAX < TOUCHED_BYTES_MAX);
const _: () = assert!(HELD_BYTES_MAX < TOUCHED_BYTES_MAX);
const _: () = assert!(TOUCHED_BYTES_MAX < LARGE_TOUCHED_BYTES_MAX);

/// Sets what a connection that runs users' SQL may use.
pub fn limit(conn: &Connection) -> rusqlite::Result<()> {
    let limits = [
        (Limit::SQLITE_LIMIT_LENGTH, ROW_BYTES_MAX),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, SQL_BYTES_MAX),
        (Limit::SQLITE_LIMIT_COLUMN, COLUMNS_MAX),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, 100),
        (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 20),
        (Limit::SQLITE_LIMIT_VDBE_OP, 250_000),
        (Limit::SQLITE_LIMIT_FUNCTION_ARG, 32),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, LIKE_PATTERN_BYTES_MAX),
        (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, PARAMETERS_MAX),
        (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 10),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ];
    for (limit, value) in limits {
        conn.set_limit(limit, i32::try_from(value).expect("every limit above is small"))?;
    }
    Ok(())
}
