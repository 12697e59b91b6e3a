//! What users' SQL may do, and for how long: SQLite's authorizer and its progress handler, with
//! the rules that the writer and the readers share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rusqlite::Connection;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

use super::limits::DEADLINE_STEPS;
use super::tables::INTERNAL_PREFIX;

/// Functions that reach out of the database, or into its internals.
const FUNCTIONS_DENIED: [&str; 6] = [
    "load_extension",
    "fts3_tokenizer",
    "sqlite_compileoption_get",
    "sqlite_compileoption_used",
    "sqlite_log",
    "sqlite_offset",
];

/// Functions that make large values out of nothing. Only who may write may call them.
const FUNCTIONS_OF_WRITERS: [&str; 2] = ["randomblob", "zeroblob"];

/// Tables that SQLite provides by itself, and that show its internals.
const TABLES_DENIED: [&str; 4] = ["dbstat", "fts3tokenize", "sqlite_dbpage", "sqlite_stmt"];

/// Says why users' SQL may not do something; `None`: it may.
///
/// Allowed are reading tables and calling functions. With `writes`, also inserting into, updating
/// and deleting from users' tables.
pub fn refusal(action: &AuthAction<'_>, writes: bool) -> Option<String> {
    let write = |table: &str| match (writes, hidden(table)) {
        (false, _) => Some("statement is not readonly".to_owned()),
        (true, Some(reason)) => Some(reason),
        // SQLite calls its catalog by this name.
        (true, None) if table.eq_ignore_ascii_case("sqlite_master") => {
            Some("changing the schema is not allowed in a statement; use a schema file".to_owned())
        }
        (true, None) => None,
    };
    match *action {
        AuthAction::Select | AuthAction::Recursive => None,
        AuthAction::Read { table_name, .. } => hidden(table_name),
        AuthAction::Function { function_name } => {
            let among = |list: &[&str]| list.iter().any(|name| function_name.eq_ignore_ascii_case(name));
            let is_denied = among(&FUNCTIONS_DENIED) || (!writes && among(&FUNCTIONS_OF_WRITERS));
            is_denied.then(|| format!("the function {function_name} is not allowed"))
        }
        AuthAction::Insert { table_name } | AuthAction::Delete { table_name } => write(table_name),
        AuthAction::Update { table_name, .. } => write(table_name),
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => {
            Some("BEGIN, COMMIT, ROLLBACK and SAVEPOINT are not allowed: each request is one transaction".to_owned())
        }
        AuthAction::Pragma { pragma_name, .. } => {
            Some(format!("PRAGMA {pragma_name} is not allowed"))
        }
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => {
            Some("ATTACH, DETACH and VACUUM INTO are not allowed".to_owned())
        }
        _ if writes => {
            Some("changing the schema is not allowed in a statement; use a schema file".to_owned())
        }
        _ => Some("statement is not readonly".to_owned()),
    }
}

fn hidden(table: &str) -> Option<String> {
    let lower = table.to_ascii_lowercase();
    let is_hidden = lower.starts_with(INTERNAL_PREFIX)
        || lower.starts_with("pragma_")
        || TABLES_DENIED.contains(&&*lower);
    is_hidden.then(|| format!("the table {table} is internal"))
}

/// Watches over one connection: whose SQL it prepares now, and until when a statement may run.
#[derive(Clone, Debug)]
pub struct Gate {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    is_guarded: AtomicBool,
    denied: Mutex<Option<String>>,
    start: Instant,
    /// Microseconds after `start`; [`u64::MAX`]: no deadline.
    deadline: AtomicU64,
    is_late: AtomicBool,
}

impl Gate {
    /// Sets up a connection. From then on everything is allowed, but under [`Gate::guarded`].
    pub fn set_up(conn: &mut Connection, writes: bool) -> rusqlite::Result<Self> {
        let shared = Arc::new(Shared {
            is_guarded: AtomicBool::new(false),
            denied: Mutex::default(),
            start: Instant::now(),
            deadline: AtomicU64::new(u64::MAX),
            is_late: AtomicBool::new(false),
        });
        // Set once and switched from within: SQLite prepares every statement anew when the
        // authorizer itself is exchanged.
        let ours = Arc::clone(&shared);
        conn.authorizer(Some(move |context: AuthContext<'_>| ours.authorize(&context, writes)))?;
        let ours = Arc::clone(&shared);
        conn.progress_handler(DEADLINE_STEPS, Some(move || ours.is_over()))?;
        Ok(Self { shared })
    }

    /// Prepares or runs a user's SQL: `work` is held to the rules and to the deadline.
    pub fn guarded<T>(&self, deadline: Option<Instant>, work: impl FnOnce() -> T) -> T {
        let shared = &self.shared;
        let micros = deadline.map_or(u64::MAX, |deadline| {
            let left = deadline.saturating_duration_since(shared.start).as_micros();
            u64::try_from(left).unwrap_or(u64::MAX)
        });
        self.take_denied();
        shared.is_late.store(false, Ordering::Relaxed);
        shared.deadline.store(micros, Ordering::Relaxed);
        shared.is_guarded.store(true, Ordering::Relaxed);
        let result = work();
        shared.is_guarded.store(false, Ordering::Relaxed);
        shared.deadline.store(u64::MAX, Ordering::Relaxed);
        result
    }

    /// Returns why the last guarded work was refused, if it was.
    pub fn take_denied(&self) -> Option<String> {
        self.shared.denied.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Tells whether the last guarded work was ended by its deadline.
    pub fn is_late(&self) -> bool {
        self.shared.is_late.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn authorize(&self, context: &AuthContext<'_>, writes: bool) -> Authorization {
        if !self.is_guarded.load(Ordering::Relaxed) {
            return Authorization::Allow;
        }
        let Some(reason) = refusal(&context.action, writes) else { return Authorization::Allow };
        *self.denied.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        Authorization::Deny
    }

    fn is_over(&self) -> bool {
        let deadline = self.deadline.load(Ordering::Relaxed);
        if deadline == u64::MAX || self.start.elapsed().as_micros() < u128::from(deadline) {
            return false;
        }
        self.is_late.store(true, Ordering::Relaxed);
        true
    }
}
