//! Requests out of a stream of bytes, however the bytes were cut on their way. Sans-I/O.
//!
//! Bytes are received into [`Inbox::space`]. Small requests lie in one buffer of [`RECEIVE_BYTES`],
//! many of them after one receive, and are handed out in place. A payload of [`BULK_BYTES`] or more
//! that has not come whole gets a buffer of its own, into which the rest of it is received
//! directly.
//!
//! Invariant: while a bulk payload is being received `received` is empty.

use super::buffer::{Buffer, Pool};
use super::errors::Error;
use super::wire::{Request, MAX_REQUEST_BYTES, REQUEST_BYTES};

/// Bytes of the receive buffer: 32 writes of 4 KiB come in one receive.
pub const RECEIVE_BYTES: usize = 256 << 10;
/// Payloads of this size and more are received into buffers of their own.
pub const BULK_BYTES: usize = 32 << 10;
/// What is received at once between bulk payloads, so that little of the next one has to be moved.
const BETWEEN_BULK_BYTES: usize = 4 << 10;

/// A complete request.
#[derive(Debug)]
pub struct Incoming {
    /// Its header.
    pub request: Request,
    /// Its payload.
    pub payload: Payload,
}

/// Where the payload is.
#[derive(Debug)]
pub enum Payload {
    /// None, or the payload was refused for its length and skipped.
    None,
    /// In the receive buffer: [`Inbox::in_place`], until [`Inbox::release`].
    InPlace,
    /// In a buffer of its own.
    Owned(Buffer),
}

#[derive(Debug)]
enum State {
    Small,
    Bulk { request: Request, payload: Buffer },
    Skip { request: Request, left: usize },
}

/// The receiving side of one connection.
#[derive(Debug)]
pub struct Inbox {
    received: Buffer,
    state: State,
    after_bulk: bool,
    in_place_bytes: usize,
}

impl Inbox {
    /// An inbox that begins with what was received after the handshake's last byte.
    pub fn new(leftover: &[u8]) -> Inbox {
        let mut received = Buffer::new(RECEIVE_BYTES.max(leftover.len()));
        received.append(leftover);
        Inbox { received, state: State::Small, after_bulk: false, in_place_bytes: 0 }
    }

    /// Where to receive to; never empty once [`Inbox::next`] has answered `None`.
    pub fn space(&mut self) -> &mut [u8] {
        let most = if self.after_bulk { BETWEEN_BULK_BYTES } else { RECEIVE_BYTES };
        match &mut self.state {
            State::Bulk { request, payload } => {
                let missing = request.payload_bytes() - payload.filled().len();
                payload.space(missing)
            }
            State::Small | State::Skip { .. } => self.received.space(most),
        }
    }

    /// Counts bytes received into [`Inbox::space`].
    pub fn received(&mut self, count: usize) {
        match &mut self.state {
            State::Bulk { payload, .. } => payload.commit(count),
            State::Small | State::Skip { .. } => self.received.commit(count),
        }
    }

    /// Whether part of a request is held.
    pub fn is_midway(&self) -> bool {
        !matches!(self.state, State::Small) || !self.received.filled().is_empty()
    }

    /// Whether nothing at all is held, an unreleased payload aside.
    pub fn is_drained(&self) -> bool {
        matches!(self.state, State::Small) && self.received.filled().len() == self.in_place_bytes
    }

    /// The next complete request, or `None` where more bytes are needed.
    pub fn next(&mut self, pool: &mut Pool) -> Result<Option<Incoming>, Error> {
        match &mut self.state {
            State::Small => self.next_small(pool),
            State::Bulk { request, payload } => {
                if payload.filled().len() < request.payload_bytes() {
                    return Ok(None);
                }
                let (request, payload) = (*request, std::mem::take(payload));
                self.state = State::Small;
                Ok(Some(Incoming { request, payload: Payload::Owned(payload) }))
            }
            State::Skip { .. } => Ok(self.next_skipped()),
        }
    }

    fn next_small(&mut self, pool: &mut Pool) -> Result<Option<Incoming>, Error> {
        let filled = self.received.filled();
        let Some((header, rest)) = filled.split_at_checked(REQUEST_BYTES) else {
            self.make_room();
            return Ok(None);
        };
        let request = Request::parse(header).ok_or(Error::Protocol("a request without magic"))?;
        let (wanted, there) = (request.payload_bytes(), rest.len());
        self.after_bulk = wanted >= BULK_BYTES;
        if wanted > MAX_REQUEST_BYTES as usize {
            self.received.consume(REQUEST_BYTES);
            self.state = State::Skip { request, left: wanted };
            return Ok(self.next_skipped());
        }
        if wanted <= there {
            self.received.consume(REQUEST_BYTES);
            self.in_place_bytes = wanted;
            let payload = if wanted == 0 { Payload::None } else { Payload::InPlace };
            return Ok(Some(Incoming { request, payload }));
        }
        if wanted < BULK_BYTES {
            self.make_room();
            return Ok(None);
        }
        self.begin_bulk(request, pool);
        Ok(None)
    }

    fn begin_bulk(&mut self, request: Request, pool: &mut Pool) {
        self.received.consume(REQUEST_BYTES);
        let mut payload = pool.take(request.payload_bytes());
        payload.append(self.received.filled());
        self.received.clear();
        self.state = State::Bulk { request, payload };
    }

    fn next_skipped(&mut self) -> Option<Incoming> {
        let State::Skip { request, left } = &mut self.state else {
            return None;
        };
        let count = self.received.filled().len().min(*left);
        self.received.consume(count);
        *left -= count;
        if *left > 0 {
            return None;
        }
        let request = *request;
        self.state = State::Small;
        Some(Incoming { request, payload: Payload::None })
    }

    /// Moves the beginning of an incomplete request, less than [`BULK_BYTES`] and a header, to the
    /// front when the buffer is half used: once in many requests.
    fn make_room(&mut self) {
        if self.received.room() < RECEIVE_BYTES / 2 {
            self.received.compact();
        }
    }

    /// The payload handed out as [`Payload::InPlace`].
    pub fn in_place(&self) -> &[u8] {
        self.received.filled().get(..self.in_place_bytes).unwrap_or_default()
    }

    /// Ends the use of [`Inbox::in_place`].
    pub fn release(&mut self) {
        let count = std::mem::take(&mut self.in_place_bytes);
        self.received.consume(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::wire::command;

    fn write(cookie: u64, length: u32) -> Vec<u8> {
        let request = Request { flags: 0, kind: command::WRITE, cookie, offset: 0, length };
        let payload = (0..length).map(|at| (at as u64 * 7 + cookie) as u8);
        request.encode().into_iter().chain(payload).collect()
    }

    /// Feeds `stream` in pieces of `piece` bytes; gives back (cookie, payload) of each request.
    fn taken_apart(stream: &[u8], piece: usize) -> Vec<(u64, Vec<u8>)> {
        let (mut inbox, mut pool) = (Inbox::new(&[]), Pool::default());
        let (mut rest, mut found) = (stream, Vec::new());
        loop {
            while let Some(incoming) = inbox.next(&mut pool).unwrap() {
                let payload = match incoming.payload {
                    Payload::None => Vec::new(),
                    Payload::InPlace => inbox.in_place().to_vec(),
                    Payload::Owned(buffer) => buffer.filled().to_vec(),
                };
                inbox.release();
                found.push((incoming.request.cookie, payload));
            }
            if rest.is_empty() {
                assert!(!inbox.is_midway());
                return found;
            }
            let space = inbox.space();
            assert!(!space.is_empty());
            let count = space.len().min(piece).min(rest.len());
            space[..count].copy_from_slice(&rest[..count]);
            inbox.received(count);
            rest = &rest[count..];
        }
    }

    #[test]
    fn however_it_is_cut_the_requests_are_the_same() {
        let lengths = [0, 1, 512, 4096, 31 << 10, 32 << 10, 100_000, 512, 300_000, 7, 260_000];
        let stream: Vec<u8> =
            (0..).zip(lengths).flat_map(|(cookie, length)| write(cookie, length)).collect();
        for piece in [7, 28, 1000, 4096, 65_537, usize::MAX] {
            let found = taken_apart(&stream, piece);
            assert_eq!(found.len(), lengths.len());
            for ((cookie, payload), length) in found.iter().zip(lengths) {
                assert_eq!(*payload, write(*cookie, length)[REQUEST_BYTES..], "piece {piece}");
            }
        }
    }

    #[test]
    fn an_absurd_payload_is_skipped_and_takes_no_memory() {
        let length = MAX_REQUEST_BYTES + 1;
        let stream = [write(1, length), write(2, 3)].concat();
        let found = taken_apart(&stream, 1 << 16);
        assert_eq!(found, [(1, vec![]), (2, write(2, 3)[REQUEST_BYTES..].to_vec())]);
    }

    #[test]
    fn a_wrong_magic_is_a_violation() {
        let (mut inbox, mut pool) = (Inbox::new(&[0; 28]), Pool::default());
        assert!(inbox.next(&mut pool).is_err());
    }
}
