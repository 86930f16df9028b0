//! Packets out of a stream of bytes, however they were cut on their way, and into it. Sans-I/O: the
//! buffer is the caller's.
//!
//! Invariant: memory for a packet is asked for only after its header was found whole and its length
//! within bounds.

use super::wire::{BadHeader, Handle, Header, Status, HEADER_BYTES, TRAILER_BYTES};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use tokio_util::codec::Decoder;

/// So many bytes of what waits in `out` were sent.
pub(super) fn forget_sent(out: &mut VecDeque<Bytes>, mut count: usize) {
    while let Some(first) = out.front_mut() {
        if count < first.len() {
            drop(first.split_to(count));
            return;
        }
        count -= first.len();
        out.pop_front();
    }
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A packet.
    Packet(Packet),
    /// A packet whose data do not match their checksum.
    Corrupt(Header),
    /// A header that is whole but makes no sense: it is answered, and nothing behind it can be
    /// found.
    Refused(Header),
}

/// A header and what it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The header.
    pub header: Header,
    /// Data or an XML body, without the checksum behind it.
    pub data: Bytes,
}

/// Why nothing more can be read.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A header does not match its CRC.
    #[error("a packet header came corrupted")]
    Header,
    /// The socket.
    #[error("{0}")]
    Socket(#[from] std::io::Error),
}

/// The receiving side of a connection.
#[derive(Debug, Clone, Copy)]
pub struct PacketCodec {
    /// Longest data that is taken.
    pub max_data_bytes: u32,
    /// A checksum stands behind data.
    pub trailer: bool,
}

impl Decoder for PacketCodec {
    type Item = Frame;
    type Error = StreamError;

    fn decode(&mut self, received: &mut BytesMut) -> Result<Option<Frame>, StreamError> {
        let Some(bytes) = received.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = match Header::decode(bytes) {
            Ok(header) => header,
            Err(BadHeader::Crc) => return Err(StreamError::Header),
            Err(BadHeader::Magic(header)) => return Ok(Some(Frame::Refused(header))),
        };
        let most = self.max_data_bytes as usize + self.trailer_bytes(1);
        let behind = (header.pdu_bytes as usize).checked_sub(HEADER_BYTES);
        let Some(behind) = behind.filter(|behind| *behind <= most) else {
            return Ok(Some(Frame::Refused(header)));
        };
        let missing = (HEADER_BYTES + behind).saturating_sub(received.len());
        if missing > 0 {
            received.reserve(missing);
            return Ok(None);
        }
        received.advance(HEADER_BYTES);
        Ok(Some(self.cut(header, received.split_to(behind).freeze())))
    }
}

impl PacketCodec {
    fn trailer_bytes(&self, data_bytes: usize) -> usize {
        if self.trailer && data_bytes > 0 {
            TRAILER_BYTES
        } else {
            0
        }
    }

    fn cut(&self, header: Header, mut data: Bytes) -> Frame {
        if self.trailer_bytes(data.len()) == 0 {
            return Frame::Packet(Packet { header, data });
        }
        let Some(at) = data.len().checked_sub(TRAILER_BYTES) else {
            return Frame::Corrupt(header);
        };
        let trailer = data.split_off(at);
        match trailer == crc32c::crc32c(&data).to_be_bytes()[..] {
            true => Frame::Packet(Packet { header, data }),
            false => Frame::Corrupt(header),
        }
    }

    /// Completes a header whose `data_bytes` are carried, and encodes it; the checksum that goes
    /// behind the data, if any.
    pub fn encode(&self, header: &Header, data: &[u8]) -> (Bytes, Option<Bytes>) {
        let trailer = self.trailer_bytes(data.len());
        let length = HEADER_BYTES + data.len() + trailer;
        let header = Header { pdu_bytes: u32::try_from(length).unwrap_or(u32::MAX), ..*header };
        let crc = || Bytes::copy_from_slice(&crc32c::crc32c(data).to_be_bytes());
        (Bytes::copy_from_slice(&header.encode()), (trailer > 0).then(crc))
    }

    /// The pieces of a packet that carries `data`.
    pub fn packet(&self, header: &Header, data: Bytes) -> impl Iterator<Item = Bytes> {
        let carried = Header { data_bytes: data.len() as u32, ..*header };
        let (head, trailer) = self.encode(&carried, &data);
        let data = (!data.is_empty()).then_some(data);
        std::iter::once(head).chain(data).chain(trailer)
    }

    /// The pieces of a reply.
    pub fn reply(
        &self,
        request: &Header,
        status: Status,
        handle: Option<Handle>,
        data: Bytes,
    ) -> impl Iterator<Item = Bytes> {
        let reply = request.reply(status);
        self.packet(&Header { handle: handle.unwrap_or(reply.handle), ..reply }, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codec(trailer: bool) -> PacketCodec {
        PacketCodec { max_data_bytes: 4096, trailer }
    }

    fn stream(codec: PacketCodec, lengths: &[usize]) -> Vec<u8> {
        let packet = |(number, length): (u32, &usize)| {
            let header = Header { op: 1, packet: number, ..Header::default() };
            let data = vec![number as u8; *length];
            codec.packet(&header, data.into()).flatten().collect::<Vec<u8>>()
        };
        (0..).zip(lengths).flat_map(packet).collect()
    }

    #[test]
    fn however_it_is_cut_the_packets_are_the_same() {
        let lengths = [0, 1, 512, 4096, 0, 77];
        for codec in [codec(false), codec(true)] {
            let stream = stream(codec, &lengths);
            for piece in [1, 7, 128, 1000, usize::MAX] {
                let (mut codec, mut held, mut found) = (codec, BytesMut::new(), Vec::new());
                for piece in stream.chunks(piece.min(stream.len())) {
                    held.extend_from_slice(piece);
                    while let Some(frame) = codec.decode(&mut held).unwrap() {
                        let Frame::Packet(packet) = frame else { panic!("{frame:?}") };
                        assert_eq!(packet.header.data_bytes as usize, packet.data.len());
                        assert!(packet.data.iter().all(|b| *b == packet.header.packet as u8));
                        found.push(packet.data.len());
                    }
                }
                assert_eq!(found, lengths);
                assert!(held.is_empty());
            }
        }
    }

    #[test]
    fn lengths_are_judged_before_memory_is_taken() {
        for pdu_bytes in [0, 127, 128 + 4097, u32::MAX] {
            let header = Header { op: 1, pdu_bytes, ..Header::default() };
            let mut held = BytesMut::from(&header.encode()[..]);
            let frame = codec(false).decode(&mut held).unwrap();
            assert_eq!(frame, Some(Frame::Refused(header)));
            assert!(held.capacity() < 1024);
        }
        let mut held = BytesMut::from(&[0; HEADER_BYTES][..]);
        assert!(codec(false).decode(&mut held).is_err());
    }

    #[test]
    fn corrupted_data_are_seen() {
        let mut bytes = stream(codec(true), &[512, 3]);
        bytes[200] ^= 1;
        let mut held = BytesMut::from(&bytes[..]);
        assert!(matches!(codec(true).decode(&mut held), Ok(Some(Frame::Corrupt(_)))));
        assert!(matches!(codec(true).decode(&mut held), Ok(Some(Frame::Packet(_)))));
    }
}
