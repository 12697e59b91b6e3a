//! What users' SQL may do, and for how long: SQLite's authorizer and its progress handler, with
//! the rules that the writer and the readers share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

use super::limits::{DEADLINE_STEPS, YIELD_GRACE};
use super::schema::SCHEMA_TABLE;
use super::tables::INTERNAL_PREFIX;
use super::waiting::Waiting;
use crate::telemetry::pulse::Echo;

/// Functions that reach out of the database, or into its internals, or that take hours for two
/// values of megabytes without looking at a deadline.
const FUNCTIONS_DENIED: [&str; 8] = [
    "load_extension",
    "fts3_tokenizer",
    "json_patch",
    "jsonb_patch",
    "sqlite_compileoption_get",
    "sqlite_compileoption_used",
    "sqlite_log",
    "sqlite_offset",
];

/// Functions that make large values out of nothing. Only who may write may call them.
const FUNCTIONS_OF_WRITERS: [&str; 2] = ["randomblob", "zeroblob"];

/// Every how many looks of SQLite at the clock a heartbeat: about every millisecond of small steps.
const LOOKS_A_BEAT: u64 = 500;

/// Tables that SQLite provides by itself, and that show its internals.
const TABLES_DENIED: [&str; 4] = ["dbstat", "fts3tokenize", "sqlite_dbpage", "sqlite_stmt"];

/// Where the schema is changed instead.
const OF_THE_SCHEMA: &str = "changing the schema is not allowed in a statement; use tribune schema apply, or POST /v1/schema";
const OF_THE_SCHEMA_TABLE: &str = "tribune_schema is written by changes of the schema only: use \
    tribune schema apply, or POST /v1/schema";

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
            Some(OF_THE_SCHEMA.to_owned())
        }
        (true, None) if table.eq_ignore_ascii_case(SCHEMA_TABLE) => {
            Some(OF_THE_SCHEMA_TABLE.to_owned())
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
            Some(OF_THE_SCHEMA.to_owned())
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

/// Why guarded work was ended before it was through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Its deadline passed.
    Late,
    /// Others had waited for [`YIELD_GRACE`].
    Yielded,
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
    /// Who may wait for this connection; unset: nobody ever does.
    waiting: OnceLock<Arc<Waiting>>,
    ended: Mutex<Option<Ended>>,
    /// Who is told, from within the store's own statements, that they get on.
    echo: OnceLock<Echo>,
    looks: AtomicU64,
}

impl Gate {
    /// Sets up a connection. From then on everything is allowed, but under [`Gate::guarded`].
    pub fn set_up(conn: &mut Connection, writes: bool) -> rusqlite::Result<Self> {
        let shared = Arc::new(Shared {
            is_guarded: AtomicBool::new(false),
            denied: Mutex::default(),
            start: Instant::now(),
            deadline: AtomicU64::new(u64::MAX),
            waiting: OnceLock::new(),
            ended: Mutex::default(),
            echo: OnceLock::new(),
            looks: AtomicU64::new(0),
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
        shared.set_ended(None);
        shared.deadline.store(micros, Ordering::Relaxed);
        shared.is_guarded.store(true, Ordering::Relaxed);
        let result = work();
        shared.is_guarded.store(false, Ordering::Relaxed);
        shared.deadline.store(u64::MAX, Ordering::Relaxed);
        result
    }

    /// Tells whether anybody waits for this connection.
    pub fn is_waited_for(&self) -> bool {
        self.shared.waiting.get().is_some_and(|waiting| waiting.is_over(Duration::ZERO))
    }

    /// Returns why the last guarded work was refused, if it was.
    pub fn take_denied(&self) -> Option<String> {
        self.shared.denied.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns why the last guarded work was ended, if it was.
    pub fn ended(&self) -> Option<Ended> {
        *self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether work under this deadline has to end now. SQLite asks by itself while a
    /// statement runs, but not between statements, nor in one of a few steps.
    pub fn is_over(&self, deadline: Option<Instant>) -> Option<Ended> {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Some(Ended::Late);
        }
        self.shared.is_waited_for().then_some(Ended::Yielded)
    }

    /// From now on guarded work ends when somebody has waited for [`YIELD_GRACE`]. Said once.
    pub fn yield_to(&self, waiting: Arc<Waiting>) {
        // A second one would be a second writer thread's; there is one.
        let _ = self.shared.waiting.set(waiting);
    }

    /// From now on statements of the store's own, a table that is built anew or an index, tell the
    /// watchdog that they get on. Said once.
    pub fn echo_to(&self, echo: Echo) {
        // As above.
        let _ = self.shared.echo.set(echo);
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
        // The store's own statements run to their end.
        if !self.is_guarded.load(Ordering::Relaxed) {
            let looks = self.looks.fetch_add(1, Ordering::Relaxed);
            if looks.is_multiple_of(LOOKS_A_BEAT)
                && let Some(echo) = self.echo.get()
            {
                echo.beat();
            }
            return false;
        }
        let deadline = self.deadline.load(Ordering::Relaxed);
        let is_late =
            deadline != u64::MAX && self.start.elapsed().as_micros() >= u128::from(deadline);
        let ended = match (is_late, self.is_waited_for()) {
            (true, _) => Ended::Late,
            (false, true) => Ended::Yielded,
            (false, false) => return false,
        };
        self.set_ended(Some(ended));
        true
    }

    fn is_waited_for(&self) -> bool {
        self.waiting.get().is_some_and(|waiting| waiting.is_over(YIELD_GRACE))
    }

    fn set_ended(&self, ended: Option<Ended>) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = ended;
    }
}
