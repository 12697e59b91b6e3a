//! What wins when two writes meet: changes, the merge order, and the life and death of a row.
//! Nothing here knows how changes are stored on disk or travel between nodes.

pub mod change;
pub mod content;
pub mod definition;
mod draft;
pub mod fingerprint;
mod mending;
pub mod merge;
pub mod pack;
pub mod record;
pub mod row;
mod sheet;
pub mod storage;
#[doc(hidden)]
pub mod suite;
pub mod table;

pub use change::{
    Batch, CellChange, Changeset, Class, Commit, Key, Life, Name, Piece, Refusal, RowChange,
    RowEvent, RowEvents, RowOp, Stamp, TableChanges, TableEvents, TableInfo,
};
pub use definition::Definition;
pub use row::{ColumnId, Fate, Incoming, Merged, RowClock, RowTold};
pub use storage::{
    Begun, Bookmark, Collected, Extract, Floor, Inspected, Part, Settled, Staging, Storage,
    StorageError,
};
pub use table::Table;
