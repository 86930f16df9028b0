//! A LUN's figures as a disk that cannot be used: for a client that only asks what there is. No
//! session begins, nothing is logged.

use crate::lun::{BlockError, BlockIo, Extent, Geometry, Identity, Lun};
use std::sync::Arc;

type Result<T> = std::result::Result<T, BlockError>;

/// Geometry and identity of a LUN; every other request answers `Gone`.
#[derive(Debug)]
pub(super) struct Description(pub(super) Arc<Lun>);

impl BlockIo for Description {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn generation(&self) -> u64 {
        self.0.geometry().generation
    }

    fn identity(&self) -> Identity {
        self.0.identity()
    }

    fn read(&self, _offset: u64, _out: &mut [u8]) -> Result<()> {
        Err(BlockError::Gone)
    }

    fn try_read(&self, _offset: u64, _out: &mut [u8]) -> Option<Result<()>> {
        Some(Err(BlockError::Gone))
    }

    fn write(&self, _offset: u64, _data: &[u8], _fua: bool) -> Result<()> {
        Err(BlockError::Gone)
    }

    fn try_write(&self, _offset: u64, _data: &[u8]) -> Option<Result<()>> {
        Some(Err(BlockError::Gone))
    }

    fn flush(&self) -> Result<()> {
        Err(BlockError::Gone)
    }

    fn unmap(&self, _offset: u64, _length: u64) -> Result<()> {
        Err(BlockError::Gone)
    }

    fn write_zeroes(&self, _offset: u64, _length: u64, _may_unmap: bool) -> Result<()> {
        Err(BlockError::Gone)
    }

    fn compare_and_write(&self, _offset: u64, _expect: &[u8], _data: &[u8]) -> Result<()> {
        Err(BlockError::Gone)
    }

    fn or_write(&self, _offset: u64, _data: &[u8]) -> Result<()> {
        Err(BlockError::Gone)
    }

    fn extents(&self, _offset: u64, _length: u64, _max: usize) -> Result<Vec<Extent>> {
        Err(BlockError::Gone)
    }
}
