//! The record of a scrub, in the root from byte 256 on, 72 bytes. Zeros: there never was one.
//!
//! state u8 0 (0 idle, 1 running), phase u8 1, entered u8 2, result of the last one u8 3 (0 none, 1
//! done, 2 cancelled), cursor: volume u32 4, inode u64 8, block u64 16; started i64 24, finished
//! i64 32, blocks examined u64 40, blocks in all u64 48, copies healed u64 56, blocks bad u64 64.

use crate::bytes::{put_u32, put_u64, u32_at, u64_at};

/// Bytes of the record.
pub const SCRUB_RECORD_BYTES: usize = 72;

/// How the last scrub ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum ScrubResult {
    /// It has not, or there was none.
    #[default]
    None = 0,
    /// It came to its end.
    Done = 1,
    /// Its user ended it.
    Cancelled = 2,
}

/// How far a scrub is, and what the last one found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubRecord {
    /// One is running.
    pub running: bool,
    /// Which part of the pool it is in, as the program that runs it numbers them.
    pub phase: u8,
    /// The inodes' block at the cursor has been looked at.
    pub entered: bool,
    /// How the last one ended.
    pub result: ScrubResult,
    /// Cursor: volume.
    pub volume: u32,
    /// Cursor: inode.
    pub ino: u64,
    /// Cursor: block of the file.
    pub block: u64,
    /// Nanoseconds since 1970; 0: never.
    pub started: i64,
    /// Nanoseconds since 1970; 0: never.
    pub finished: i64,
    /// Blocks looked at.
    pub examined_blocks: u64,
    /// How many there were to look at, about.
    pub total_blocks: u64,
    /// Copies rewritten.
    pub healed: u64,
    /// Blocks of which a copy stayed bad.
    pub bad: u64,
}

impl ScrubRecord {
    /// Writes the record into the first bytes of `out`.
    pub fn encode(&self, out: &mut [u8]) {
        out[0] = u8::from(self.running);
        out[1] = self.phase;
        out[2] = u8::from(self.entered);
        out[3] = self.result as u8;
        put_u32(out, 4, self.volume);
        put_u64(out, 8, self.ino);
        put_u64(out, 16, self.block);
        put_u64(out, 24, self.started as u64);
        put_u64(out, 32, self.finished as u64);
        put_u64(out, 40, self.examined_blocks);
        put_u64(out, 48, self.total_blocks);
        put_u64(out, 56, self.healed);
        put_u64(out, 64, self.bad);
    }

    /// Reads the record. What is not known is taken for idle: a scrub is no reason to refuse a
    /// pool.
    pub fn decode(b: &[u8]) -> ScrubRecord {
        let result = match b[3] {
            1 => ScrubResult::Done,
            2 => ScrubResult::Cancelled,
            _ => ScrubResult::None,
        };
        ScrubRecord {
            running: b[0] == 1,
            phase: b[1],
            entered: b[2] != 0,
            result,
            volume: u32_at(b, 4),
            ino: u64_at(b, 8),
            block: u64_at(b, 16),
            started: u64_at(b, 24) as i64,
            finished: u64_at(b, 32) as i64,
            examined_blocks: u64_at(b, 40),
            total_blocks: u64_at(b, 48),
            healed: u64_at(b, 56),
            bad: u64_at(b, 64),
        }
    }
}
