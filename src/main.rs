//! The one binary: parse, then [`lunfs::cli::run`].

/// Blocks are 4 KiB and aligned so; glibc's allocator takes twice that for each and keeps what many
/// threads freed, which would break the memory bound that `--cache` states.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    lunfs::cli::run()
}
