//! Who waits for what: the one feed from which everybody on this node learns of a commit, and live
//! queries. What the answers look like is the business of the faces.

pub mod feed;
pub mod query;
pub mod rows;
pub mod versions;

pub use feed::{Distances, Feed};
pub use query::{Queries, Subscription};
pub use versions::Versions;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// No code panics while it holds one of this room's locks, and a half-made state cannot be seen: a
/// poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
