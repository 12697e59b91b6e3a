//! Commands to rows.

use crate::catalog::command::Command;
use crate::catalog::model::NodeKey;
use crate::crdt::RowOp;

/// placeholder
pub fn plan(_node: &NodeKey, _command: &Command) -> Vec<RowOp> {
    Vec::new()
}
