//! What doors are told of changes that came from elsewhere.

use crate::fs::VolumeId;

/// A change of the catalog. Delivered on the thread that made it, after it took effect; a subscriber
/// must only note it (in its own bounded queue) and return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A LUN was made.
    Created {
        /// Its volume.
        volume: VolumeId,
        /// Its name.
        name: String,
    },
    /// A LUN was deleted.
    Removed {
        /// Its volume.
        volume: VolumeId,
        /// The name it had.
        name: String,
    },
    /// A LUN was renamed.
    Renamed {
        /// Its volume.
        volume: VolumeId,
        /// Old name.
        from: String,
        /// New name.
        to: String,
    },
    /// The capacity changed (by any door or command).
    Resized {
        /// Its volume.
        volume: VolumeId,
        /// New capacity in bytes.
        size_bytes: u64,
    },
    /// A setting changed.
    Settings {
        /// Its volume.
        volume: VolumeId,
    },
    /// A block door changed bytes of `data` while files of the LUN are open ([`super::DataFile`]);
    /// not sent while none is.
    Written {
        /// Its volume.
        volume: VolumeId,
        /// First byte.
        offset_bytes: u64,
        /// How many.
        length_bytes: u64,
    },
}

/// Keeps a subscription alive; dropping it ends it.
#[must_use]
pub struct Subscription {
    _p: (),
}
