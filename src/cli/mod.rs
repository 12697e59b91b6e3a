//! The command line: one file a subcommand. Nothing here knows how a node works inside.

use std::process::ExitCode;

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    ExitCode::SUCCESS
}
