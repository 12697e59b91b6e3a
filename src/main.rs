//! The `tribune` command.

fn main() -> std::process::ExitCode {
    tribune::cli::run()
}
