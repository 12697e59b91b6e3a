//! Errors of libraries, in the words that help.

use std::error::Error;

/// Returns what an error says that has no cause of its own. Libraries of HTTP wrap it in sentences that name
/// only what was tried.
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
