//! The keys of a LUN's `attributes` file.

use crate::fs::{Timestamp, VolumeId};

/// Longest text accepted for an `attributes` file, in bytes.
pub const MAX_ATTRIBUTES_TEXT_BYTES: usize = 65_536;

/// Whether file writers and block writers exclude each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// One sort at a time: the lease.
    Exclusive,
    /// Both at once: the user runs a cluster-aware application.
    Shared,
}

/// The settable keys but for `size`, which is the length of `data`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `block-size`: 512 or 4096.
    pub block_bytes: u32,
    /// `physical-exponent`: log2 of logical blocks in a physical one.
    pub physical_exponent: u8,
    /// `access`.
    pub access: Access,
    /// `serial`: empty means one derived from pool and volume.
    pub serial: String,
    /// `vendor`: at most 8 characters.
    pub vendor: String,
    /// `product`: at most 16 characters.
    pub product: String,
    /// `removable`.
    pub removable: bool,
    /// `read-only`.
    pub read_only: bool,
    /// `rotation-rate`: SBC-4 medium rotation rate, 1 is solid state.
    pub rotation_rate: u16,
    /// `nbs-block-size`: 512, 4096 or 8192.
    pub nbs_block_bytes: u32,
    /// `write-through`.
    pub write_through: bool,
    /// `threshold`: percent of the capacity in use that is worth a warning; 0 is none.
    pub threshold_percent: u8,
    /// `quota`: most bytes the LUN may use; 0 is none.
    pub quota_bytes: u64,
}

/// What `attributes` shows at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// The LUN's name.
    pub name: String,
    /// Its volume.
    pub volume: VolumeId,
    /// `size`: the length of `data`.
    pub size_bytes: u64,
    /// The other settable keys (`serial` filled in).
    pub settings: Settings,
    /// `used`: bytes that stand behind the LUN's files.
    pub used_bytes: u64,
    /// `free`: bytes free in the pool.
    pub free_bytes: u64,
    /// `location`: where the pool is.
    pub location: Vec<String>,
    /// `redundancy`: `none` or `mirror`.
    pub redundancy: String,
    /// `created`.
    pub created: Timestamp,
    /// `users`: who may attach it; empty while everybody may.
    pub users: Vec<String>,
}
