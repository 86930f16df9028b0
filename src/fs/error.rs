//! The one errors enum of the filesystem layer.

use std::io;
use std::sync::Arc;

/// Why the filesystem refused or failed. Doors map it once (errno, [`crate::lun::BlockError`]).
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// ENOENT.
    #[error("no such file or directory")]
    NotFound,
    /// EEXIST.
    #[error("it exists already")]
    Exists,
    /// ENOTDIR.
    #[error("not a directory")]
    NotDirectory,
    /// EISDIR.
    #[error("is a directory")]
    IsDirectory,
    /// ENOTEMPTY.
    #[error("the directory is not empty")]
    NotEmpty,
    /// ENAMETOOLONG: a name above 255 bytes.
    #[error("the name is longer than 255 bytes")]
    NameTooLong,
    /// EINVAL.
    #[error("{0}")]
    Invalid(&'static str),
    /// EFBIG: beyond [`super::MAX_FILE_BYTES`].
    #[error("the file would be larger than the format allows")]
    TooBig,
    /// EMLINK.
    #[error("too many links")]
    TooManyLinks,
    /// EXDEV: links and renames do not cross volumes.
    #[error("source and target lie in different volumes")]
    CrossVolume,
    /// ENOSPC.
    #[error("no space left in the pool")]
    NoSpace,
    /// ENOSPC: a device cannot be emptied.
    #[error("{needed_bytes} bytes need another place, and there is one for {free_bytes} only")]
    NoRoomElsewhere {
        /// In segments that have a copy on the device.
        needed_bytes: u64,
        /// For so much there is another place.
        free_bytes: u64,
    },
    /// ENODATA: no such extended attribute.
    #[error("no such extended attribute")]
    NoAttribute,
    /// E2BIG / ENOSPC for extended attributes.
    #[error("the extended attributes would be larger than 64 KiB")]
    AttributesTooBig,
    /// ESTALE: the inode does not exist (any more), or its generation differs.
    #[error("stale handle")]
    Stale,
    /// EBUSY.
    #[error("busy")]
    Busy,
    /// EROFS: a snapshot is never changed.
    #[error("a snapshot is read-only")]
    ReadOnly,
    /// A block cannot be read back as it was written: an unhealable medium error.
    /// `file_offset_bytes` is set where it is known to lie in a file's data.
    #[error("block {block} does not match its checksum")]
    Corrupt {
        /// Disk block.
        block: u64,
        /// Offset in the file it belongs to.
        file_offset_bytes: Option<u64>,
    },
    /// A device failed.
    #[error("device error: {0}")]
    Io(Arc<io::Error>),
    /// A write or flush failed earlier; since then nothing is accepted.
    #[error("the pool stopped accepting writes after a device error: {0}")]
    Latched(String),
    /// What is on disk is not a pool of a version this program reads, or belongs to another pool.
    #[error("{0}")]
    Format(String),
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        Error::Io(Arc::new(e))
    }
}

/// Result of the filesystem layer.
pub type Result<T> = std::result::Result<T, Error>;
