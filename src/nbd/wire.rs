//! Numbers and fixed layouts of the NBD protocol. All integers are big-endian (proto, "Protocol
//! phases").

/// First eight bytes of the server: `NBDMAGIC`.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Begins the newstyle negotiation and every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Begins every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Begins every request of the transmission phase.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Begins a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Bytes of a request header.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply header.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a chunk header.
pub const CHUNK_BYTES: usize = 20;
/// Bytes of an option header.
pub const OPTION_BYTES: usize = 16;

/// Longest read or write: what QEMU and the kernel never exceed, and what the proto names as the
/// default maximum payload.
pub const MAX_REQUEST_BYTES: u32 = 32 << 20;
/// Longest string of the protocol, export names among them (proto, "Terms and definitions").
pub const MAX_STRING_BYTES: usize = 4096;
/// What clients should align and size their requests to: the pool's block.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;

/// Handshake flags, server and client alike.
pub mod handshake_flag {
    /// Fixed newstyle.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// No 124 zeros after the answer to EXPORT_NAME.
    pub const NO_ZEROES: u16 = 2;
}

/// Options of the haggling phase.
pub mod option {
    /// Opens an export, without any way to answer an error.
    pub const EXPORT_NAME: u32 = 1;
    /// Ends the session.
    pub const ABORT: u32 = 2;
    /// Lists exports.
    pub const LIST: u32 = 3;
    /// Goes over to TLS.
    pub const STARTTLS: u32 = 5;
    /// Describes an export.
    pub const INFO: u32 = 6;
    /// Opens an export.
    pub const GO: u32 = 7;
    /// Asks for structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Lists metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Selects metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Replies to options.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is not known here.
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    /// Refused by policy.
    pub const ERR_POLICY: u32 = 0x8000_0002;
    /// The option's data is malformed.
    pub const ERR_INVALID: u32 = 0x8000_0003;
    /// Nothing else before STARTTLS.
    pub const ERR_TLS_REQD: u32 = 0x8000_0005;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    /// The server is going down.
    pub const ERR_SHUTDOWN: u32 = 0x8000_0007;
    /// The option's data is too long.
    pub const ERR_TOO_BIG: u32 = 0x8000_0009;
}

/// Kinds of information in INFO replies.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The export's own name.
    pub const NAME: u16 = 1;
    /// A description for people.
    pub const DESCRIPTION: u16 = 2;
    /// Block sizes.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export.
pub mod export_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is there.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA is there.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Behaves like a rotating disk.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// TRIM is there.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is there.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag is there.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers writes answered on every other.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE is there.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// FAST_ZERO is there.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands.
pub mod command {
    /// Reads.
    pub const READ: u16 = 0;
    /// Writes the payload that follows.
    pub const WRITE: u16 = 1;
    /// Ends the session.
    pub const DISCONNECT: u16 = 2;
    /// Makes durable.
    pub const FLUSH: u16 = 3;
    /// Unmaps.
    pub const TRIM: u16 = 4;
    /// Reads ahead.
    pub const CACHE: u16 = 5;
    /// Writes zeros.
    pub const WRITE_ZEROES: u16 = 6;
    /// Asks for extents.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a command.
pub mod command_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1;
    /// WRITE_ZEROES must leave blocks behind it.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ must answer in one chunk.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS must answer one extent, inside the range.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES must fail rather than be slow.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Chunks of a structured reply.
pub mod chunk {
    /// Nothing but the flag `DONE`.
    pub const NONE: u16 = 0;
    /// Data of a read.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeros of a read.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// An error.
    pub const ERROR: u16 = 0x8001;
    /// An error at an offset.
    pub const ERROR_OFFSET: u16 = 0x8002;
    /// Flag: the last chunk of its reply.
    pub const FLAG_DONE: u16 = 1;
}

/// The metadata context that tells data from holes.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Its number on every connection.
pub const BASE_ALLOCATION_ID: u32 = 1;
/// Number of the first context that tells changes.
pub const FIRST_CHANGES_ID: u32 = 2;
/// State of an extent that changed.
pub const STATE_CHANGED: u32 = 1;
/// State of an extent without blocks behind it: a hole (1) that reads as zeros (2).
pub const STATE_HOLE_ZERO: u32 = 3;

/// Reads integers and strings off the front of a byte string.
#[derive(Debug, Clone)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `count` bytes, or `None` where fewer are left.
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    /// Big-endian, two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Big-endian, four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Big-endian, eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string after its 32-bit length: UTF-8, at most [`MAX_STRING_BYTES`].
    pub fn string(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        if length > MAX_STRING_BYTES {
            return None;
        }
        std::str::from_utf8(self.bytes(length)?).ok()
    }

    /// Whether all was read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A request header as it came; its meaning is checked in [`super::transmission`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Command flags.
    pub flags: u16,
    /// Command.
    pub kind: u16,
    /// Whatever the client chose; comes back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl Request {
    /// Parses one header. `None`: the magic is wrong, or fewer than [`REQUEST_BYTES`] bytes are
    /// there.
    pub fn parse(header: &[u8]) -> Option<Request> {
        let mut reader = Reader(header);
        if reader.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Request {
            flags: reader.u16()?,
            kind: reader.u16()?,
            cookie: reader.u64()?,
            offset: reader.u64()?,
            length: reader.u32()?,
        })
    }

    /// The header's bytes: what a client sends.
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut out = [0; REQUEST_BYTES];
        let fields: [&[u8]; 6] = [
            &REQUEST_MAGIC.to_be_bytes(),
            &self.flags.to_be_bytes(),
            &self.kind.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.length.to_be_bytes(),
        ];
        out.iter_mut().zip(fields.into_iter().flatten()).for_each(|(to, from)| *to = *from);
        out
    }

    /// Bytes of payload that follow the header.
    pub fn payload_bytes(&self) -> usize {
        if self.kind == command::WRITE {
            self.length as usize
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_wire() {
        let request = Request { flags: 1, kind: 6, cookie: 7 << 40, offset: 5 << 33, length: 9 };
        assert_eq!(Request::parse(&request.encode()), Some(request));
        assert_eq!(Request::parse(&[0; REQUEST_BYTES]), None);
        assert_eq!(Request::parse(&request.encode()[..27]), None);
    }

    #[test]
    fn strings_are_bounded() {
        let mut long = 4097u32.to_be_bytes().to_vec();
        long.extend([b'x'; 4097]);
        assert_eq!(Reader(&long).string(), None);
        assert_eq!(Reader(&[0, 0, 0, 2, b'o', b'k', 9]).string(), Some("ok"));
        assert_eq!(Reader(&[0, 0, 0, 9, b'o']).string(), None);
        assert_eq!(Reader(&[0, 0, 0, 1, 0xff]).string(), None);
    }
}
