//! How changes travel between nodes, without I/O: told what happened, it says what to do.
//! It never touches a socket, a disk or a clock; the engine and the simulator do that for it.

pub mod config;
pub mod io;

pub use config::Config;
pub use io::{ApplyOutcome, BatchId, Effect, Input, Lane, LoadId};
