//! The transmission phase without any I/O: what a request means, and the bytes of its reply.
//!
//! Ranges and alignment are not judged here: the LUN knows its capacity at this moment.

use super::buffer::Buffer;
use super::errors::WireError;
use super::handshake::Terms;
use super::wire::{self, chunk, command, command_flag, Request};
use crate::lun::{ChangeRun, Extent};

/// Extents in one BLOCK_STATUS reply: 8 KiB of them.
pub const MAX_EXTENTS: usize = 1024;
/// Longest text that goes with an error.
const MAX_ERROR_TEXT_BYTES: usize = 256;
/// Bytes of a chunk header with the offset that data and holes begin with.
const DATA_CHUNK_BYTES: usize = wire::CHUNK_BYTES + 8;
/// Bytes of a whole hole chunk.
const HOLE_CHUNK_BYTES: usize = DATA_CHUNK_BYTES + 4;
/// Room for the largest reply that carries no data.
pub const MAX_STATUS_BYTES: usize = wire::CHUNK_BYTES + 14 + MAX_ERROR_TEXT_BYTES;

/// A request that makes sense on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read,
    /// Write the payload.
    Write {
        /// Durable before the reply.
        fua: bool,
    },
    /// Make durable.
    Flush,
    /// Unmap.
    Trim {
        /// Durable before the reply.
        fua: bool,
    },
    /// Read ahead.
    Cache,
    /// Write zeros.
    WriteZeroes {
        /// Holes are welcome.
        may_unmap: bool,
        /// Durable before the reply.
        fua: bool,
    },
    /// Tell extents, at most so many.
    BlockStatus {
        /// At most so many.
        max_extents: usize,
    },
    /// The client leaves: what is under way ends first.
    Disconnect,
}

impl Command {
    /// Whether an end of the disk counts as a lack of space.
    pub fn puts_data(self) -> bool {
        matches!(self, Command::Write { .. } | Command::WriteZeroes { .. })
    }
}

/// What a request asks for, or why it is refused.
pub fn plan(request: &Request, terms: &Terms) -> Result<Command, WireError> {
    let fua = request.flags & command_flag::FUA != 0;
    if request.flags & !allowed_flags(request.kind, terms) != 0 {
        return Err(WireError::Invalid);
    }
    let command = match request.kind {
        command::READ | command::WRITE if request.length > wire::MAX_REQUEST_BYTES => {
            return Err(WireError::Invalid);
        }
        command::READ => Command::Read,
        command::WRITE => Command::Write { fua },
        command::DISCONNECT => Command::Disconnect,
        command::FLUSH => Command::Flush,
        command::TRIM => Command::Trim { fua },
        command::CACHE => Command::Cache,
        command::WRITE_ZEROES => return plan_zeroes(request, terms, fua),
        command::BLOCK_STATUS if contexts(terms) > 0 && request.length > 0 => {
            let one = request.flags & command_flag::REQ_ONE != 0;
            Command::BlockStatus { max_extents: if one { 1 } else { MAX_EXTENTS } }
        }
        _ => return Err(WireError::Invalid),
    };
    let changes = matches!(command, Command::Write { .. } | Command::Trim { .. });
    if changes && terms.read_only {
        return Err(WireError::NotPermitted);
    }
    Ok(command)
}

/// A hole is made in no time; blocks of zeros are as slow as writing them.
fn plan_zeroes(request: &Request, terms: &Terms, fua: bool) -> Result<Command, WireError> {
    let may_unmap = request.flags & command_flag::NO_HOLE == 0;
    if terms.read_only {
        return Err(WireError::NotPermitted);
    }
    if !may_unmap && request.flags & command_flag::FAST_ZERO != 0 {
        return Err(WireError::NotSupported);
    }
    Ok(Command::WriteZeroes { may_unmap, fua })
}

/// FUA may stand on every command and means something for those that write (proto, "Command
/// flags").
fn allowed_flags(kind: u16, terms: &Terms) -> u16 {
    let own = match kind {
        command::READ if terms.structured => command_flag::DF,
        command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
        command::BLOCK_STATUS => command_flag::REQ_ONE,
        _ => 0,
    };
    own | command_flag::FUA
}

/// Contexts that were selected.
fn contexts(terms: &Terms) -> usize {
    usize::from(terms.allocation) + terms.changes.len()
}

/// Bytes that come before the data of a read's reply.
pub fn read_head_bytes(terms: &Terms) -> usize {
    if terms.structured {
        DATA_CHUNK_BYTES
    } else {
        wire::SIMPLE_REPLY_BYTES
    }
}

/// Completes the reply to a read whose data stands in `space` behind [`read_head_bytes`]; returns
/// the reply's length. Where chunks were agreed on, nothing but zeros goes as a hole: a hole is
/// content too, so that this also holds for a read that must not be fragmented.
pub fn finish_read(space: &mut [u8], request: &Request, terms: &Terms) -> usize {
    let head = read_head_bytes(terms);
    let length = request.length as usize;
    if !terms.structured {
        put(space, &simple_head(request.cookie, 0));
        return head + length;
    }
    let data = space.get(head..head + length).unwrap_or_default();
    if length == 0 {
        put(space, &chunk_head(request.cookie, chunk::NONE, 0));
        return wire::CHUNK_BYTES;
    }
    if all_zero(data) && length >= wire::CHUNK_BYTES {
        put(space, &chunk_head(request.cookie, chunk::OFFSET_HOLE, 12));
        put_at(space, wire::CHUNK_BYTES, &request.offset.to_be_bytes());
        put_at(space, DATA_CHUNK_BYTES, &request.length.to_be_bytes());
        return HOLE_CHUNK_BYTES;
    }
    put(space, &chunk_head(request.cookie, chunk::OFFSET_DATA, request.length + 8));
    put_at(space, wire::CHUNK_BYTES, &request.offset.to_be_bytes());
    head + length
}

/// The reply to a command that is done and has nothing to tell.
pub fn put_done(out: &mut Buffer, request: &Request) {
    out.append(&simple_head(request.cookie, 0));
}

/// The reply to a command that failed. `lost_at` is the first unreadable byte of a read.
pub fn put_error(
    out: &mut Buffer,
    request: &Request,
    terms: &Terms,
    error: WireError,
    text: &str,
    lost_at: Option<u64>,
) {
    if !terms.structured {
        out.append(&simple_head(request.cookie, error as u32));
        return;
    }
    let text = text.as_bytes();
    let text = text.get(..MAX_ERROR_TEXT_BYTES).unwrap_or(text);
    let kind = if lost_at.is_some() { chunk::ERROR_OFFSET } else { chunk::ERROR };
    let offset_bytes = if lost_at.is_some() { 8 } else { 0 };
    let length = 6 + text.len() as u32 + offset_bytes;
    out.append(&chunk_head(request.cookie, kind, length));
    out.append(&(error as u32).to_be_bytes());
    out.append(&(text.len() as u16).to_be_bytes());
    out.append(text);
    if let Some(offset) = lost_at {
        out.append(&offset.to_be_bytes());
    }
}

/// Bytes of a BLOCK_STATUS reply with so many extents of each context.
pub fn status_bytes(terms: &Terms, extents: usize) -> usize {
    contexts(terms) * (wire::CHUNK_BYTES + 4 + 8 * extents)
}

/// A context's part of the reply to BLOCK_STATUS. The runs (length in bytes, state) cover the range
/// from its start without a gap.
fn put_runs(
    out: &mut Buffer,
    request: &Request,
    (context, flags): (u32, u16),
    runs: impl ExactSizeIterator<Item = (u64, u32)>,
) {
    let length = 4 + 8 * runs.len();
    out.append(&flagged_head(request.cookie, chunk::BLOCK_STATUS, flags, length as u32));
    out.append(&context.to_be_bytes());
    for (length, state) in runs {
        let length = u32::try_from(length).unwrap_or(!0xfff);
        out.append(&length.to_be_bytes());
        out.append(&state.to_be_bytes());
    }
}

/// Where data and holes are; `more`: other contexts follow.
pub fn put_extents(out: &mut Buffer, request: &Request, extents: &[Extent], more: bool) {
    let flags = if more { 0 } else { chunk::FLAG_DONE };
    let state = |extent: &Extent| if extent.mapped { 0 } else { wire::STATE_HOLE_ZERO };
    let runs = extents.iter().map(|extent| (extent.length_bytes, state(extent)));
    put_runs(out, request, (wire::BASE_ALLOCATION_ID, flags), runs);
}

/// What changed; `more`: other contexts follow.
pub fn put_changes(
    out: &mut Buffer,
    request: &Request,
    context: u32,
    runs: &[ChangeRun],
    more: bool,
) {
    let flags = if more { 0 } else { chunk::FLAG_DONE };
    let state = |run: &ChangeRun| if run.is_changed { wire::STATE_CHANGED } else { 0 };
    let runs = runs.iter().map(|run| (run.length_bytes, state(run)));
    put_runs(out, request, (context, flags), runs);
}

fn simple_head(cookie: u64, error: u32) -> [u8; wire::SIMPLE_REPLY_BYTES] {
    let mut head = [0; wire::SIMPLE_REPLY_BYTES];
    put(&mut head, &wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
    put_at(&mut head, 4, &error.to_be_bytes());
    put_at(&mut head, 8, &cookie.to_be_bytes());
    head
}

/// Most replies of this server are one chunk, which is the last.
fn chunk_head(cookie: u64, kind: u16, length: u32) -> [u8; wire::CHUNK_BYTES] {
    flagged_head(cookie, kind, chunk::FLAG_DONE, length)
}

fn flagged_head(cookie: u64, kind: u16, flags: u16, length: u32) -> [u8; wire::CHUNK_BYTES] {
    let mut head = [0; wire::CHUNK_BYTES];
    put(&mut head, &wire::CHUNK_MAGIC.to_be_bytes());
    put_at(&mut head, 4, &flags.to_be_bytes());
    put_at(&mut head, 6, &kind.to_be_bytes());
    put_at(&mut head, 8, &cookie.to_be_bytes());
    put_at(&mut head, 16, &length.to_be_bytes());
    head
}

fn put(out: &mut [u8], bytes: &[u8]) {
    put_at(out, 0, bytes);
}

fn put_at(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(space) = out.get_mut(at..at + bytes.len()) {
        space.copy_from_slice(bytes);
    }
}

/// Leaves at the first byte that is not zero; compares the rest with itself, shifted by one.
fn all_zero(data: &[u8]) -> bool {
    match data {
        [] => true,
        [0, .., 0] => data.get(1..) == data.get(..data.len() - 1),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::contexts::Selected;

    const CHUNKS: Terms =
        Terms { structured: true, allocation: true, changes: Selected::NONE, read_only: false };
    const SIMPLE: Terms =
        Terms { structured: false, allocation: false, changes: Selected::NONE, read_only: true };

    fn request(kind: u16, flags: u16) -> Request {
        Request { flags, kind, cookie: 0x0102_0304_0506_0708, offset: 1 << 40, length: 4096 }
    }

    #[test]
    fn flags_and_rights_are_checked() {
        assert_eq!(plan(&request(0, 4), &CHUNKS), Ok(Command::Read));
        assert_eq!(plan(&request(0, 4), &SIMPLE), Err(WireError::Invalid));
        assert_eq!(plan(&request(1, 1), &CHUNKS), Ok(Command::Write { fua: true }));
        for kind in [1, 4, 6] {
            assert_eq!(plan(&request(kind, 0), &SIMPLE), Err(WireError::NotPermitted));
        }
        assert_eq!(plan(&request(3, 0), &SIMPLE), Ok(Command::Flush));
        assert_eq!(plan(&request(6, 18), &CHUNKS), Err(WireError::NotSupported));
        let one = Command::BlockStatus { max_extents: 1 };
        assert_eq!(plan(&request(7, 8), &CHUNKS), Ok(one));
        assert_eq!(plan(&request(7, 0), &SIMPLE), Err(WireError::Invalid));
        assert_eq!(plan(&request(8, 0), &CHUNKS), Err(WireError::Invalid));
        assert_eq!(plan(&request(3, 64), &CHUNKS), Err(WireError::Invalid));
        let long = Request { length: wire::MAX_REQUEST_BYTES + 1, ..request(0, 0) };
        assert_eq!(plan(&long, &CHUNKS), Err(WireError::Invalid));
    }

    #[test]
    fn reads_are_data_holes_or_plain() {
        let mut space = vec![0; 4096 + DATA_CHUNK_BYTES];
        assert_eq!(finish_read(&mut space, &request(0, 0), &CHUNKS), HOLE_CHUNK_BYTES);
        assert_eq!(space[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 2]);
        assert_eq!(space[16..32], [0, 0, 0, 12, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 16, 0]);
        space.fill(0);
        space[DATA_CHUNK_BYTES + 2000] = 1;
        assert_eq!(finish_read(&mut space, &request(0, 0), &CHUNKS), space.len());
        assert_eq!(space[16..28], [0, 0, 16, 8, 0, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(finish_read(&mut space, &request(0, 0), &SIMPLE), 4096 + 16);
        assert_eq!(space[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    }

    #[test]
    fn errors_carry_a_text_where_chunks_were_agreed_on() {
        let mut out = Buffer::new(MAX_STATUS_BYTES);
        let at = Some(1u64 << 40);
        put_error(&mut out, &request(0, 0), &CHUNKS, WireError::Io, "lost", at);
        assert_eq!(out.filled().len(), 20 + 6 + 4 + 8);
        assert_eq!(out.filled()[16..30], *b"\0\0\0\x12\0\0\0\x05\0\x04lost");
        out.clear();
        put_error(&mut out, &request(0, 0), &SIMPLE, WireError::Io, "lost", at);
        assert_eq!(out.filled().len(), 16);
        out.clear();
        let long = "x".repeat(5000);
        put_error(&mut out, &request(0, 0), &CHUNKS, WireError::Io, &long, at);
        assert_eq!(out.filled().len(), MAX_STATUS_BYTES);
    }
}
