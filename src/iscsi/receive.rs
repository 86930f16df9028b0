//! Where received bytes go: a staging buffer in which short PDUs are read in place, and long data
//! segments that are received straight into their destination.

use super::pdu::{padded, Header, DIGEST_BYTES};
use super::pool::Buffer;

/// Bytes taken from the socket at a time; also the room for one PDU that is read in place.
const STAGING_BYTES: usize = 128 << 10;
/// Longest data segment that is waited for in the staging buffer. Longer ones that are not there
/// wholly yet go straight to their destination.
pub const IN_PLACE_BYTES: usize = 16 << 10;
/// Shorter rests go through the staging buffer: the next PDU comes with the same system call.
const DIRECT_BYTES: usize = 8 << 10;

/// Where a long data segment goes.
#[derive(Debug)]
pub enum Destination {
    /// A write command's buffer, from this offset. What is beyond its end is dropped.
    Task(Buffer, usize),
    /// A buffer of its own (text, NOP-Out).
    Own(Vec<u8>),
    /// Nowhere.
    Discard,
}

/// A long data segment being received.
#[derive(Debug)]
pub struct Bulk {
    /// The PDU's header.
    pub header: Header,
    /// Where its data goes.
    pub to: Destination,
    data: usize,
    got: usize,
    /// Padding and digest, after the data.
    tail: [u8; 3 + DIGEST_BYTES],
    tail_bytes: usize,
    tail_got: usize,
    digest: bool,
    /// Running CRC32C of what has no buffer to be computed from afterwards.
    crc: u32,
}

impl Bulk {
    /// A segment announced by `header`.
    pub fn new(header: Header, to: Destination, digest: bool) -> Bulk {
        let data = header.data_bytes();
        let tail_bytes = padded(data) - data + if digest { DIGEST_BYTES } else { 0 };
        let tail = [0; 3 + DIGEST_BYTES];
        Bulk { header, to, data, got: 0, tail, tail_bytes, tail_got: 0, digest, crc: 0 }
    }

    /// Room for the rest of the data at its destination.
    fn room(&mut self) -> &mut [u8] {
        let rest = self.data - self.got;
        match &mut self.to {
            Destination::Task(buffer, at) => {
                let start = (*at + self.got).min(buffer.len());
                let end = (start + rest).min(buffer.len());
                buffer.get_mut(start..end).unwrap_or_default()
            }
            Destination::Own(memory) => {
                memory.get_mut(self.got..self.got + rest).unwrap_or_default()
            }
            Destination::Discard => Default::default(),
        }
    }

    /// Takes what it needs from `bytes`; returns how much that was.
    fn feed(&mut self, bytes: &[u8]) -> usize {
        let data = bytes.len().min(self.data - self.got);
        let (segment, rest) = bytes.split_at(data);
        let room = self.room();
        let kept = room.len().min(data);
        if let (Some(to), Some(from)) = (room.get_mut(..kept), segment.get(..kept)) {
            to.copy_from_slice(from);
        }
        self.took(segment);
        let tail = rest.len().min(self.tail_bytes - self.tail_got);
        if let Some(to) = self.tail.get_mut(self.tail_got..self.tail_got + tail) {
            to.copy_from_slice(rest.get(..tail).unwrap_or_default());
        }
        self.tail_got += tail;
        data + tail
    }

    fn took(&mut self, segment: &[u8]) {
        self.got += segment.len();
        if self.digest {
            self.crc = crc32c::crc32c_append(self.crc, segment);
        }
    }

    fn is_complete(&self) -> bool {
        self.got == self.data && self.tail_got == self.tail_bytes
    }

    /// Does the data agree with its digest?
    pub fn digest_is_right(&self) -> bool {
        let pad = padded(self.data) - self.data;
        let crc = crc32c::crc32c_append(self.crc, self.tail.get(..pad).unwrap_or_default());
        let found = self.tail.get(pad..pad + DIGEST_BYTES);
        !self.digest || found == Some(&crc.to_le_bytes()[..])
    }
}

/// The receiving half of a connection.
#[derive(Debug)]
pub struct Receiver {
    staging: Vec<u8>,
    start: usize,
    end: usize,
    bulk: Option<Bulk>,
    direct: bool,
}

impl Receiver {
    /// An empty one.
    pub fn new() -> Receiver {
        Receiver { staging: vec![0; STAGING_BYTES], start: 0, end: 0, bulk: None, direct: false }
    }

    /// Where the next received bytes go; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        self.direct = false;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if let Some(bulk) = &mut self.bulk {
                if bulk.room().len() >= DIRECT_BYTES {
                    self.direct = true;
                    return bulk.room();
                }
            }
        } else if self.staging.len() - self.end < STAGING_BYTES / 4 {
            self.staging.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.staging.get_mut(self.end..).unwrap_or_default()
    }

    /// `bytes` were put into the last [`Receiver::space`].
    pub fn received(&mut self, bytes: usize) {
        match &mut self.bulk {
            Some(bulk) if self.direct => {
                if bulk.digest {
                    let crc = bulk.crc;
                    let data = bulk.room().get(..bytes).unwrap_or_default();
                    bulk.crc = crc32c::crc32c_append(crc, data);
                }
                bulk.got = (bulk.got + bytes).min(bulk.data);
            }
            _ => self.end = (self.end + bytes).min(self.staging.len()),
        }
    }

    /// Lends the staging buffer and what of it is unread; give it back with [`Receiver::put_back`].
    pub fn lend(&mut self) -> (Vec<u8>, usize, usize) {
        (std::mem::take(&mut self.staging), self.start, self.end)
    }

    /// Takes the staging buffer back, read up to `start`.
    pub fn put_back(&mut self, staging: Vec<u8>, start: usize) {
        self.staging = staging;
        self.start = start;
    }

    /// From here on a long segment is received.
    pub fn begin_bulk(&mut self, bulk: Bulk) {
        self.bulk = Some(bulk);
    }

    /// Is a long segment being received?
    pub fn in_bulk(&self) -> bool {
        self.bulk.is_some()
    }

    /// Is nothing half received, or received and not taken?
    pub fn is_drained(&self) -> bool {
        self.start == self.end && self.bulk.is_none()
    }

    /// Feeds a long segment; returns what it took, and the segment where it is complete.
    pub fn feed_bulk(&mut self, bytes: &[u8]) -> (usize, Option<Bulk>) {
        let Some(bulk) = &mut self.bulk else {
            return (0, None);
        };
        let took = bulk.feed(bytes);
        let complete = bulk.is_complete();
        (took, if complete { self.bulk.take() } else { None })
    }
}
