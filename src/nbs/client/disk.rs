//! A disk of an NBS object, for a door of this host.
//!
//! Invariant: what does not begin and end at whole blocks of the object is read, changed and
//! written with `whole` held alone, so that no other write of this disk falls between.

use super::super::wire::Status;
use super::super::xml::Element;
use super::carrier::{wait, NbsClient, Waiter};
use super::core::{ClientError, ObjectInfo, Request};
use crate::lun::{BlockError, BlockIo, Extent, Geometry, Identity};
use bytes::{Bytes, BytesMut};
use parking_lot::RwLock;

/// Unit of requests: parts of the object's blocks are read and written by whole ones.
const SECTOR_BYTES: u32 = 512;

type Result<T> = std::result::Result<T, BlockError>;

/// The disk.
#[derive(Debug)]
pub struct NbsDisk {
    client: NbsClient,
    name: String,
    /// As it was opened; a change of size needs a new one.
    info: ObjectInfo,
    whole: RwLock<()>,
}

/// A range in whole blocks of the object.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
}

impl NbsDisk {
    /// A disk of what the client has open.
    pub fn new(client: NbsClient, name: String, info: ObjectInfo) -> NbsDisk {
        NbsDisk { client, name, info, whole: RwLock::new(()) }
    }

    fn check(&self, offset: u64, length: u64) -> Result<()> {
        let sector = u64::from(SECTOR_BYTES);
        if offset % sector != 0 || length % sector != 0 {
            return Err(BlockError::Invalid("not a multiple of 512"));
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.info.size_bytes() => Ok(()),
            _ => Err(BlockError::OutOfRange),
        }
    }

    fn span(&self, offset: u64, length: u64) -> Span {
        let block = u64::from(self.info.block_bytes);
        let (start, end) = (offset / block * block, (offset + length).next_multiple_of(block));
        Span { start, end }
    }

    fn is_whole(&self, offset: u64, length: u64) -> bool {
        let block = u64::from(self.info.block_bytes);
        offset % block == 0 && length % block == 0
    }

    /// First byte and length of each request that a span takes.
    fn pieces(&self, span: Span) -> impl Iterator<Item = (u64, u64)> {
        let step = u64::from(self.info.transfer_bytes);
        let count = (span.end - span.start).div_ceil(step);
        (0..count).map(move |number| {
            let start = span.start + number * step;
            (start, step.min(span.end - start))
        })
    }

    /// All of them are under way before the first is waited for.
    fn read_span(&self, span: Span) -> Result<BytesMut> {
        let ask = |(offset, length): (u64, u64)| {
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            self.client.begin(Request::Read { offset, length })
        };
        let asked: Vec<Waiter> = self.pieces(span).map(ask).collect();
        let mut all = BytesMut::with_capacity((span.end - span.start) as usize);
        for waiter in &asked {
            all.extend_from_slice(&wait(waiter).map_err(failed)?);
        }
        Ok(all)
    }

    fn write_span(&self, span: Span, data: &Bytes) -> Result<()> {
        let ask = |(offset, length): (u64, u64)| {
            let at = (offset - span.start) as usize;
            let piece = data.slice(at..at + length as usize);
            self.client.begin(Request::Write { offset, data: piece })
        };
        let asked: Vec<Waiter> = self.pieces(span).map(ask).collect();
        asked.iter().try_for_each(|waiter| wait(waiter).map(drop).map_err(failed))
    }

    /// Reads the blocks around, changes them and writes them.
    fn write_part(&self, offset: u64, data: &[u8]) -> Result<()> {
        let _alone = self.whole.write();
        let span = self.span(offset, data.len() as u64);
        let mut all = self.read_span(span)?;
        let at = (offset - span.start) as usize;
        let part = all.get_mut(at..at + data.len()).ok_or(BlockError::OutOfRange)?;
        part.copy_from_slice(data);
        self.write_span(span, &all.freeze())
    }
}

fn failed(error: ClientError) -> BlockError {
    match error {
        ClientError::Status(Status::NoSuchObject) => BlockError::Gone,
        ClientError::Status(status) => status.to_block_error(),
        other => BlockError::Io(other.to_string()),
    }
}

impl BlockIo for NbsDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.info.size_bytes(),
            block_bytes: SECTOR_BYTES,
            physical_exponent: 3,
            read_only: !self.info.writable,
            rotation_rate: 1,
            removable: false,
            write_through: self.info.write_through,
            atomic_max_bytes: self.info.transfer_bytes,
            generation: 1,
        }
    }

    fn generation(&self) -> u64 {
        1
    }

    fn identity(&self) -> Identity {
        Identity {
            name: self.name.clone(),
            vendor: "lunfs".to_owned(),
            product: "NBS object".to_owned(),
            serial: String::new(),
            naa: [0; 16],
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check(offset, out.len() as u64)?;
        let span = self.span(offset, out.len() as u64);
        let all = self.read_span(span)?;
        let at = (offset - span.start) as usize;
        let found = all.get(at..at + out.len()).ok_or(BlockError::OutOfRange)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn try_read(&self, _offset: u64, _out: &mut [u8]) -> Option<Result<()>> {
        None
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<()> {
        self.check(offset, data.len() as u64)?;
        if self.is_whole(offset, data.len() as u64) {
            let _shared = self.whole.read();
            let span = self.span(offset, data.len() as u64);
            self.write_span(span, &Bytes::copy_from_slice(data))?;
        } else {
            self.write_part(offset, data)?;
        }
        match fua {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn try_write(&self, _offset: u64, _data: &[u8]) -> Option<Result<()>> {
        None
    }

    fn may_wait_long(&self) -> bool {
        true
    }

    fn flush(&self) -> Result<()> {
        match self.info.write_through {
            true => Ok(()),
            false => self.client.message("flush").map(drop).map_err(failed),
        }
    }

    fn unmap(&self, offset: u64, length: u64) -> Result<()> {
        self.check(offset, length)?;
        let message = Element::new("nbsMsg").with("name", "unmap");
        let message = message.with("offset", offset).with("length", length);
        let _shared = self.whole.read();
        self.client.call(Request::Message(message)).map(drop).map_err(failed)
    }

    fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> Result<()> {
        if may_unmap {
            return self.unmap(offset, length);
        }
        self.check(offset, length)?;
        let step = u64::from(self.info.transfer_bytes);
        let zeros = vec![0; step.min(length) as usize];
        let (mut at, end) = (offset, offset + length);
        while at < end {
            // The first piece ends at a boundary, so that only it and the last are parts.
            let piece = (step - at % step).min(end - at);
            self.write(at, zeros.get(..piece as usize).unwrap_or_default(), false)?;
            at += piece;
        }
        Ok(())
    }

    fn compare_and_write(&self, _offset: u64, _expect: &[u8], _data: &[u8]) -> Result<()> {
        Err(BlockError::Invalid("not over NBS"))
    }

    fn or_write(&self, _offset: u64, _data: &[u8]) -> Result<()> {
        Err(BlockError::Invalid("not over NBS"))
    }

    /// NBS does not tell: all may be data.
    fn extents(&self, offset: u64, length: u64, _max: usize) -> Result<Vec<Extent>> {
        self.check(offset, length)?;
        Ok(vec![Extent { offset_bytes: offset, length_bytes: length, mapped: true }])
    }
}
