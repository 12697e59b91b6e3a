//! Who waits for what: the one feed from which everybody on this node learns of a commit.
//! What the answers look like is the business of the faces.

pub mod feed;

pub use feed::Feed;
