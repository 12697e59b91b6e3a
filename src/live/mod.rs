//! Who waits for what: the one feed from which everybody on this node learns of a commit, and live
//! queries. What the answers look like is the business of the faces.

pub mod feed;
pub mod query;
pub mod rows;

pub use feed::Feed;
pub use query::{Queries, Subscription};
