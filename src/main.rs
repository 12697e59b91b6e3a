//! The `tribune` command.

// Here and not in the library: who uses that has an allocator of his own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    tribune::cli::run()
}
