//! The seam between the block doors (iSCSI, NBD, NBS) and what stores the bytes.

use super::kept::SanitizeOrder;
use super::sanitize::SanitizeState;
use super::unit::Lun;
use std::fmt;
use std::sync::Arc;

/// What one checksum of [`BlockIo::read_summed`] covers.
pub const SUM_BYTES: usize = 4096;

/// Why a block request failed; each door maps it once (sense, NBD error, NBS status).
#[derive(Debug, Clone, thiserror::Error)]
pub enum BlockError {
    /// The range does not lie inside the capacity.
    #[error("range beyond the end of the LUN")]
    OutOfRange,
    /// `read-only` is set, or the client's rights are read-only.
    #[error("the LUN is read-only")]
    ReadOnly,
    /// The pool has no space for the data or its metadata.
    #[error("no space left in the pool")]
    NoSpace,
    /// A file writer holds the LUN and kept it for longer than a block client may be let wait.
    #[error("the LUN's file is open for writing through the mount")]
    HeldByFile,
    /// A block of the range cannot be read back: its checksum is wrong on every copy.
    /// `offset_bytes` is the first byte that is lost.
    #[error("unreadable data at byte {offset_bytes}")]
    Medium {
        /// First byte of the range that cannot be read.
        offset_bytes: u64,
    },
    /// COMPARE AND WRITE: the first byte that differs, counted from the range's start.
    #[error("miscompare at byte {offset_bytes}")]
    Miscompare {
        /// Offset of the first difference within the compared data.
        offset_bytes: u64,
    },
    /// The request itself makes no sense (length not a multiple of the block size, …).
    #[error("invalid request: {0}")]
    Invalid(&'static str),
    /// A device failed, or a failed write or flush is latched.
    #[error("device error: {0}")]
    Io(String),
    /// A reservation keeps out those who cannot be part of it.
    #[error("a SCSI reservation is held")]
    Reserved,
    /// A device of the pool is away: what is asked for would not reach it.
    #[error("a device of the pool is missing: bring it back or replace it first")]
    DeviceMissing,
    /// The LUN is being sanitized, or that failed.
    #[error("the LUN is being sanitized")]
    Sanitizing,
    /// The LUN was deleted, or the server is stopping.
    #[error("the LUN is gone")]
    Gone,
}

/// What a door needs to know to describe a disk. Changes over its life: ask again, watch
/// `generation`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Capacity in bytes, a multiple of `block_bytes`.
    pub size_bytes: u64,
    /// Logical block size: 512 or 4096.
    pub block_bytes: u32,
    /// log2 of logical blocks in a physical one.
    pub physical_exponent: u8,
    /// Writes are refused with [`BlockError::ReadOnly`].
    pub read_only: bool,
    /// SBC-4 medium rotation rate (1 = solid state).
    pub rotation_rate: u16,
    /// SPC RMB bit.
    pub removable: bool,
    /// A write is durable when answered (no volatile cache).
    pub write_through: bool,
    /// Longest write in bytes that is atomic under a crash.
    pub atomic_max_bytes: u32,
    /// Rises by one at every change of the fields above (and of [`BlockIo::media_changes`]).
    pub generation: u64,
}

/// Who a disk says it is (INQUIRY, VPD 80h and 83h; NBD name).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The LUN's name.
    pub name: String,
    /// T10 vendor, at most 8 ASCII characters.
    pub vendor: String,
    /// Product, at most 16 ASCII characters.
    pub product: String,
    /// Unit serial number: ASCII, at most 32 characters.
    pub serial: String,
    /// NAA-6 identifier for VPD 83h, unique and for ever.
    pub naa: [u8; 16],
}

/// What stands behind a thin disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Provisioning {
    /// Bytes of blocks that the disk has.
    pub used_bytes: u64,
    /// Bytes that the pool could still give it.
    pub available_bytes: u64,
    /// Percent of the capacity in use that is worth a warning; 0: none.
    pub threshold_percent: u8,
}

/// One run of a LUN as to whether blocks stand behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte of the run.
    pub offset_bytes: u64,
    /// Length in bytes, never zero.
    pub length_bytes: u64,
    /// True: data; false: a hole, which reads as zeros.
    pub mapped: bool,
}

/// One run of a disk as to whether it changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeRun {
    /// Length in bytes, never zero.
    pub length_bytes: u64,
    /// It may hold other bytes than it held.
    pub is_changed: bool,
}

/// What changed of a disk since an earlier state of it.
pub trait ChangeMap: Send + Sync + fmt::Debug {
    /// Of which disk: its [`Identity::naa`].
    fn naa(&self) -> [u8; 16];

    /// Runs from `offset` on, one behind the other, at least one and at most `max`, which may end
    /// before `offset + length`. Whatever returned before the call is in the answer. `length` is
    /// not zero.
    fn runs(&self, offset: u64, length: u64, max: usize) -> Result<Vec<ChangeRun>, BlockError>;
}

/// A disk whose blocks another one can share.
#[derive(Debug, Clone)]
pub struct CloneSource(pub(super) Arc<Lun>);

/// A disk as a block door sees it: an NVMe-like contract. Requests that overlap in time have no
/// order; a request that began after another returned sees it. Only `flush` (or `write` with `fua`)
/// makes durable, and it covers every write, of any connection, that returned before it began.
/// All offsets and lengths are bytes and must be multiples of `block_bytes`, inside the capacity:
/// implementations check it and answer [`BlockError`], never panic.
///
/// Every call is synchronous. The `try_` forms never block and answer `None` where the blocking
/// form would have to wait (for a device, space, a lease): a door tries them on the thread that
/// received the request, and hands the request to a blocking thread only on `None`. A `None` has
/// changed nothing.
pub trait BlockIo: Send + Sync + fmt::Debug {
    /// Size, block sizes and flags at this moment.
    fn geometry(&self) -> Geometry;
    /// The generation alone: cheap, asked for each command.
    fn generation(&self) -> u64;
    /// Names.
    fn identity(&self) -> Identity;
    /// Rises by one, and `generation` with it, whenever the contents may have changed behind the
    /// block clients (a file writer closed, an import): a unit attention, MEDIUM MAY HAVE CHANGED.
    fn media_changes(&self) -> u64 {
        0
    }

    /// Rises by one, and `generation` with it, when the use of a thin disk comes to its threshold.
    fn threshold_events(&self) -> u64 {
        0
    }

    /// What stands behind it.
    fn provisioning(&self) -> Provisioning {
        Provisioning::default()
    }

    /// The client says that it leaves: the drop that follows is a logout. Without it the connection
    /// was lost, and the client may come back to what it held.
    fn leaving(&self) {}

    /// How many commands of this client the door has not answered: for figures, told when it
    /// changes.
    fn outstanding(&self, _commands: usize) {}

    /// May this client change what others see: the medium's state, modes? Not where its own right
    /// is to read; a LUN that is read-only for everybody has modes all the same.
    fn may_change(&self) -> bool {
        true
    }

    /// The door refused a write because of [`Geometry::read_only`], without asking for it here.
    fn write_refused(&self) {}

    /// A request may have to wait for seconds at this moment: writes are paused, or all of them
    /// take the way over a network.
    fn may_wait_long(&self) -> bool {
        false
    }

    /// Fills `out` from `offset`.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), BlockError>;
    /// As `read`, from memory alone.
    fn try_read(&self, offset: u64, out: &mut [u8]) -> Option<Result<(), BlockError>>;

    /// As `read`; where the CRC-32C of each [`SUM_BYTES`] of `out` is kept beside the data, they
    /// are put to `sums`, which is empty before: whoever sends them on need not compute them.
    fn read_summed(
        &self,
        offset: u64,
        out: &mut [u8],
        sums: &mut Vec<u32>,
    ) -> Result<(), BlockError> {
        let _ = sums;
        self.read(offset, out)
    }
    /// As `read_summed`, from memory alone.
    fn try_read_summed(
        &self,
        offset: u64,
        out: &mut [u8],
        sums: &mut Vec<u32>,
    ) -> Option<Result<(), BlockError>> {
        let _ = sums;
        self.try_read(offset, out)
    }

    /// Writes `data` at `offset`, wholly or not at all up to `atomic_max_bytes` (larger ones in
    /// pieces of that size). With `fua` it is durable on return.
    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), BlockError>;
    /// As `write` without `fua`, in memory alone.
    fn try_write(&self, offset: u64, data: &[u8]) -> Option<Result<(), BlockError>>;

    /// Makes durable all that returned before.
    fn flush(&self) -> Result<(), BlockError>;

    /// Makes the range a hole: it reads as zeros and takes no space. Any length, at once.
    fn unmap(&self, offset: u64, length: u64) -> Result<(), BlockError>;
    /// The range reads as zeros; `may_unmap` allows a hole, else blocks are kept or made.
    fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> Result<(), BlockError>;

    /// Writes `data` if the range holds `expect` (equal lengths), as one atomic step.
    fn compare_and_write(&self, offset: u64, expect: &[u8], data: &[u8]) -> Result<(), BlockError>;
    /// ORs `data` into the range, as one atomic step.
    fn or_write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError>;

    /// Runs covering the range from `offset`, in order, at most `max`, the last may end early.
    fn extents(&self, offset: u64, length: u64, max: usize) -> Result<Vec<Extent>, BlockError>;

    /// Its contents, for [`BlockIo::clone_range`] of this disk or another. `None`: it stands in no
    /// pool.
    fn clone_source(&self) -> Option<CloneSource> {
        None
    }

    /// Takes over `length` bytes at `from` of a disk of the pool without moving them. `None`: it
    /// cannot, and they are to be read and written.
    fn clone_range(
        &self,
        source: &CloneSource,
        from: u64,
        to: u64,
        length: u64,
    ) -> Option<Result<(), BlockError>> {
        let _ = (source, from, to, length);
        None
    }

    /// A reservation: keeps the file door out as a first write does, without writing. May wait as a
    /// write does.
    fn claim(&self) -> Result<(), BlockError> {
        Ok(())
    }

    /// The record of reservations that [`BlockIo::keep_reservations`] kept; empty: none. Who asks
    /// judges by reservations itself: they do not bind this session any more.
    fn reservations(&self) -> String {
        String::new()
    }

    /// Keeps a record of reservations with the LUN, durable on return; `None`: of none. `held`: one
    /// of them keeps writers out, also those of other doors and of files.
    fn keep_reservations(&self, record: Option<&str>, held: bool) -> Result<(), BlockError> {
        let _ = (record, held);
        Ok(())
    }

    /// Mode settings that [`BlockIo::save_mode`] saved, as the SCSI layer means them; 0: none.
    fn saved_mode(&self) -> u32 {
        0
    }

    /// Saves mode settings with the LUN; durable on return.
    fn save_mode(&self, flags: u32) -> Result<(), BlockError> {
        let _ = flags;
        Ok(())
    }

    /// Begins to sanitize the disk in the background; it goes on whatever becomes of the session.
    fn sanitize(&self, order: &SanitizeOrder) -> Result<(), BlockError> {
        let _ = order;
        Err(BlockError::Invalid("this disk cannot be sanitized"))
    }

    /// Whether it is being sanitized: cheap, asked for each command.
    fn sanitize_state(&self) -> SanitizeState {
        SanitizeState::Idle
    }

    /// Leaves the state after a failed sanitize; false where that may not be left.
    fn exit_sanitize_failure(&self) -> Result<bool, BlockError> {
        Ok(true)
    }
}
