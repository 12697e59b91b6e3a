//! `tribune tls`: a cluster's certificates.

use super::Failure;

#[derive(clap::Subcommand)]
pub(super) enum Command {}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {}
}
