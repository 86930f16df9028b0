//! Import and export of raw images: large I/O, holes stay holes, memory bounded.

use super::catalog::{Catalog, CreateLun};
use super::error::Result;
use super::lun::Lun;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;

/// Where an image comes from.
pub enum Source {
    /// A regular file or block device: its holes are skipped.
    File(File),
    /// A pipe.
    Stream(Box<dyn Read + Send>),
}

/// Where an image goes to.
pub enum Target {
    /// A regular file or block device, already made by the caller and empty (holes stay holes).
    File(File),
    /// A pipe.
    Stream(Box<dyn Write + Send>),
}

/// Told from time to time how far it is: (bytes of the image done, bytes of the image). `false` stops.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) -> bool + Sync);

/// What was moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes of the image.
    pub size_bytes: u64,
    /// Bytes that were not zeros and were written.
    pub data_bytes: u64,
}

/// Makes a LUN from an image. A stream needs `request.size_bytes`; with a file 0 means the file's size
/// (rounded up to whole blocks). On failure the LUN is deleted again.
#[allow(unused_variables)]
pub fn import_new(
    catalog: &Catalog,
    name: &str,
    request: &CreateLun,
    source: Source,
    progress: Progress,
) -> Result<(Arc<Lun>, Moved)> {
    todo!()
}

/// Replaces the contents of a LUN. `Busy` while a door has it open unless `force`.
/// `size_bytes` is how much a stream holds.
#[allow(unused_variables)]
pub fn import_into(
    lun: &Arc<Lun>,
    source: Source,
    size_bytes: Option<u64>,
    force: bool,
    progress: Progress,
) -> Result<Moved> {
    todo!()
}

/// Writes a LUN's contents to an image.
#[allow(unused_variables)]
pub fn export(lun: &Arc<Lun>, target: Target, progress: Progress) -> Result<Moved> {
    todo!()
}
