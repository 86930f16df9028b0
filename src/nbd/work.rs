//! What may have to wait for a device, done on a blocking thread: one request, from plan to reply.

use std::sync::Arc;

use super::buffer::Buffer;
use super::errors::{wire_error, WireError};
use super::handshake::Terms;
use super::transmission::{self, Command};
use super::wire::Request;
use crate::lun::{BlockError, BlockIo, Extent};

/// Bytes read at once to warm the cache.
const CACHE_STEP_BYTES: usize = 256 << 10;

/// Transfers above this size are not short.
const SHORT_BYTES: u32 = 256 << 10;

/// A request on its way to a blocking thread, with all the memory it needs.
#[derive(Debug)]
pub struct Job {
    /// The disk.
    pub io: Arc<dyn BlockIo>,
    /// What was agreed on.
    pub terms: Terms,
    /// The request.
    pub request: Request,
    /// What it means.
    pub command: Command,
    /// Data to write, or scratch memory.
    pub payload: Buffer,
    /// Room for the reply.
    pub reply: Buffer,
}

/// A request that is done.
#[derive(Debug)]
pub struct Done {
    /// The whole reply.
    pub reply: Buffer,
    /// Comes back to the pool.
    pub payload: Buffer,
    /// What the job counted as in flight.
    pub held_bytes: usize,
}

/// Room that the reply and the scratch memory of a command need.
pub fn reply_room(command: Command, request: &Request, terms: &Terms) -> usize {
    let room = match command {
        Command::Read => transmission::read_head_bytes(terms) + request.length as usize,
        Command::BlockStatus { max_extents } => transmission::status_bytes(terms, max_extents),
        _ => 0,
    };
    room.max(transmission::MAX_STATUS_BYTES)
}

/// Scratch memory of a command.
pub fn scratch_room(command: Command, request: &Request) -> usize {
    match command {
        Command::Cache => CACHE_STEP_BYTES.min(request.length as usize),
        _ => 0,
    }
}

impl Job {
    /// Memory it keeps while it is in flight.
    pub fn held_bytes(&self) -> usize {
        self.payload.capacity() + self.reply.capacity()
    }

    /// Whether it is over when the device has answered once.
    pub fn is_short(&self) -> bool {
        match self.command {
            Command::Read | Command::Write { .. } => self.request.length <= SHORT_BYTES,
            Command::WriteZeroes { may_unmap, .. } => may_unmap,
            Command::Cache | Command::BlockStatus { .. } => false,
            _ => true,
        }
    }

    /// Does it.
    pub fn run(mut self) -> Done {
        let held_bytes = self.held_bytes();
        if let Err(error) = self.act() {
            self.reply.clear();
            put_block_error(&mut self.reply, &self.request, &self.terms, self.command, &error);
        }
        Done { reply: self.reply, payload: self.payload, held_bytes }
    }

    fn act(&mut self) -> Result<(), BlockError> {
        let (offset, length) = (self.request.offset, u64::from(self.request.length));
        match self.command {
            Command::Read => return self.read(),
            Command::BlockStatus { max_extents } => return self.block_status(max_extents),
            Command::Write { fua } => self.io.write(offset, self.payload.filled(), fua)?,
            Command::Flush => self.io.flush()?,
            Command::Cache => self.cache(offset, length)?,
            Command::Trim { fua } => {
                self.io.unmap(offset, length)?;
                self.flush_if(fua)?;
            }
            Command::WriteZeroes { may_unmap, fua } => {
                self.io.write_zeroes(offset, length, may_unmap)?;
                self.flush_if(fua)?;
            }
            Command::Disconnect => {}
        }
        transmission::put_done(&mut self.reply, &self.request);
        Ok(())
    }

    fn flush_if(&self, fua: bool) -> Result<(), BlockError> {
        if fua {
            self.io.flush()
        } else {
            Ok(())
        }
    }

    fn read(&mut self) -> Result<(), BlockError> {
        let head = transmission::read_head_bytes(&self.terms);
        let space = self.reply.space(head + self.request.length as usize);
        let data = space.get_mut(head..).unwrap_or_default();
        self.io.read(self.request.offset, data)?;
        let length = transmission::finish_read(space, &self.request, &self.terms);
        self.reply.commit(length);
        Ok(())
    }

    fn cache(&mut self, offset: u64, length: u64) -> Result<(), BlockError> {
        let mut done = 0;
        while done < length {
            let step = (length - done).min(CACHE_STEP_BYTES as u64);
            self.io.read(offset + done, self.payload.space(step as usize))?;
            done += step;
        }
        Ok(())
    }

    fn block_status(&mut self, max_extents: usize) -> Result<(), BlockError> {
        let (offset, length) = (self.request.offset, u64::from(self.request.length));
        let mut left = self.terms.changes.len();
        if self.terms.allocation {
            let extents = self.io.extents(offset, length, max_extents)?;
            let extents = extents.get(..max_extents).unwrap_or(&extents);
            check_extents(offset, length, extents)?;
            transmission::put_extents(&mut self.reply, &self.request, extents, left > 0);
        }
        for (context, map) in self.terms.changes.numbered() {
            left -= 1;
            let runs = map.runs(offset, length, max_extents)?;
            let runs = runs.get(..max_extents).unwrap_or(&runs);
            transmission::put_changes(&mut self.reply, &self.request, context, runs, left > 0);
        }
        Ok(())
    }
}

/// The reply promises runs without gaps from the start of the range, and never none.
fn check_extents(offset: u64, length: u64, extents: &[Extent]) -> Result<(), BlockError> {
    let mut at = offset;
    for extent in extents {
        let inside = extent.length_bytes <= length - (at - offset);
        if extent.offset_bytes != at || extent.length_bytes == 0 || !inside {
            return Err(BlockError::Io("the extents do not follow each other".into()));
        }
        at += extent.length_bytes;
    }
    if at == offset {
        return Err(BlockError::Io("no extents".into()));
    }
    Ok(())
}

/// The reply to a request that the LUN refused or failed.
pub fn put_block_error(
    out: &mut Buffer,
    request: &Request,
    terms: &Terms,
    command: Command,
    error: &BlockError,
) {
    let lost_at = match error {
        BlockError::Medium { offset_bytes } if command == Command::Read => Some(*offset_bytes),
        _ => None,
    };
    let code: WireError = wire_error(error, command.puts_data());
    transmission::put_error(out, request, terms, code, &error.to_string(), lost_at);
}
