//! The one binary: parse, then [`lunfs::cli::run`].
fn main() -> std::process::ExitCode {
    lunfs::cli::run()
}
