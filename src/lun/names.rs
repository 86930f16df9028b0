//! Names and sizes as users write them.

use super::error::Result;

/// One path component of `A-Z a-z 0-9 . _ -`, at most 64 bytes, not beginning with a dot.
pub fn check_name(_name: &str) -> Result<()> {
    todo!()
}

/// `4096`, `20G`: bytes, or K M G T times 1024. `None`: not a size.
pub fn parse_size(_text: &str) -> Option<u64> {
    todo!()
}
