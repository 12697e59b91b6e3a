//! Where the core meets the world: the engine that drives membership and replication, the thread
//! that writes, and the handle through which every face and source works.

pub mod handle;

pub use handle::{Handle, Local, SubmitError, TransactError};
