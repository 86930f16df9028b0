//! A LUN's `log`: append-only JSON lines, cut at a limit with the older half kept as `log.1`.

/// `log` is cut when it would grow beyond this many bytes.
pub const LOG_LIMIT_BYTES: u64 = 1 << 20;

/// A line of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// The line as it stands, without its newline.
    pub text: String,
}
