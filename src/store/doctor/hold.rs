//! What a look must not do to the node beside it. While the snapshot is held the node's log cannot
//! be emptied, so whatever SQLite does meanwhile ends before the log is a trouble to the node.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::super::copy::{Doing, Log, Progress, Strain};

/// Every how many steps of SQLite's virtual machine, or pages of its check, it asks whether to end.
const STEPS: c_int = 1_000;

/// How often the log and the disk are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A snapshot that is held, from before it is taken.
pub(super) struct Hold {
    log: Log,
    is_cancelled: Arc<AtomicBool>,
    strain: OnceLock<Strain>,
}

impl Hold {
    pub fn begin(log: Log, is_cancelled: &Arc<AtomicBool>) -> Arc<Self> {
        Arc::new(Self { log, is_cancelled: Arc::clone(is_cancelled), strain: OnceLock::new() })
    }

    /// Ends the connection's statements once the snapshot may not be held any longer.
    pub fn watch(self: &Arc<Self>, conn: &mut Connection) -> rusqlite::Result<()> {
        let hold = Arc::clone(self);
        let mut looked: Option<Instant> = None;
        conn.progress_handler(
            STEPS,
            Some(move || {
                if looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
                    return false;
                }
                looked = Some(Instant::now());
                hold.is_over()
            }),
        )
    }

    /// Returns why the snapshot may not be held any longer. `None`: somebody asked for the end.
    pub fn strain(&self) -> Option<Strain> {
        self.strain.get().copied()
    }

    fn is_over(&self) -> bool {
        if let Some(strain) = self.log.strain_of_reading() {
            // The first reason stands.
            let _ = self.strain.set(strain);
        }
        self.strain.get().is_some() || self.is_cancelled.load(Ordering::Relaxed)
    }
}

/// A look under way.
pub(super) struct Look<'a> {
    pub progress: &'a mut dyn FnMut(Progress),
    pub hold: Arc<Hold>,
}

impl Look<'_> {
    /// Tells how far it is. The error: it is to end here.
    pub fn at(&mut self, doing: Doing, done: u64, total: u64) -> rusqlite::Result<()> {
        (self.progress)(Progress { doing, done, total });
        if self.hold.is_over() { Err(interrupted()) } else { Ok(()) }
    }
}

pub(super) fn interrupted() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_INTERRUPT), None)
}

pub(super) fn is_interrupted(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted)
}
