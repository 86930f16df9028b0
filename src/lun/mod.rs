//! A LUN is a directory of three files: `attributes`, `data`, `log`. This layer makes and finds
//! LUNs, keeps the lease between the doors, and maps LBAs to bytes of `data`.
//!
//! - [`Catalog`]: all LUNs of a pool; make, find, rename, delete; sessions; changes for the doors.
//!   Snapshots too: of several LUNs at one instant, and of the ordinary tree (`snapshots`).
//! - [`Lun`]: one of them: settings, resize, log.
//! - [`Attachment`]: a block client's session; the [`BlockIo`] that iSCSI and NBD drive.
//! - [`DataFile`]: `data` opened through the mount.
//! - [`Pause`]: all writes of a LUN wait. [`OnceBook`]: what must not be done twice.
//! - [`transfer`]: import and export of raw images.

mod attachment;
mod attachment_io;
mod attributes;
mod block_io;
mod catalog;
mod change;
mod changed;
mod changes;
mod copies;
mod damage;
mod data_file;
mod difference;
mod error;
mod event_log;
mod figures;
mod history;
mod identity;
mod kept;
mod lease;
mod lease_room;
mod memory;
mod names;
mod once;
mod opaque;
mod pause;
mod policies;
mod policy;
mod quota;
mod readers;
mod reserved;
mod sanitize;
mod served;
mod snapshots;
pub mod transfer;
mod transfer_job;
mod unit;

pub use attachment::{AttachRequest, Attachment, Rights, SessionId, SessionInfo};
pub use attributes::{rfc3339, Access, Attributes, Settings, MAX_ATTRIBUTES_TEXT_BYTES};
pub use block_io::{
    BlockError, BlockIo, ChangeMap, ChangeRun, CloneSource, Extent, Geometry, Identity,
    Provisioning, SUM_BYTES,
};
pub use catalog::{Catalog, CatalogOptions, CreateLun, DeleteOptions, TreeNameGuard};
pub use changed::ChangedSince;
pub use changes::{Change, Subscription};
pub use damage::BadPlace;
pub use data_file::{DataFile, OpenIntent};
pub use difference::Difference;
pub use error::{Error, Result};
pub use event_log::{LogLine, LOG_LIMIT_BYTES};
pub use figures::Latency;
pub use kept::SanitizeOrder;
pub use lease::{Holder, LeaseTiming};
pub use memory::MemoryLun;
pub use names::{
    check_name, check_snapshot_name, parse_size, policy_name, policy_time, split_snapshot,
    time_in_name, POLICY_PREFIX, TREE_NAME,
};
pub use once::{Asked, Once, OnceBook, OnceClient, Outcome, DEEDS_KEPT, MAX_DEED_BYTES};
pub use opaque::{MAX_OPAQUE_BYTES, OPAQUE_NAME};
pub use pause::{Pause, MAX_PAUSE};
pub use policies::{PolicyRun, PolicyStatus};
pub use policy::{Policy, PolicyChange};
pub use readers::{OpenSnapshot, SnapshotUse};
pub use reserved::{find_own_file, own_file};
pub use sanitize::SanitizeState;
pub use snapshots::{Bookmark, Hold, Maker, Snapshot, SnapshotWish};
pub use unit::Lun;
