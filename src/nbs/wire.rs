//! The packet header and the numbers of NBS (the protocol is specified in README.md beside this
//! file). All integers are big-endian. Sans-I/O; used by the server and by the client.

use crate::lun::BlockError;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 128;
/// Longest data of one packet, and `xferSize`.
pub const MAX_DATA_BYTES: u32 = 1 << 20;
/// Longest XML body of a request.
pub const MAX_BODY_BYTES: u32 = 64 << 10;
/// Bytes of a checksum behind data, where that was agreed on.
pub const TRAILER_BYTES: usize = 4;
/// `NBS`, a zero; the revision; zero.
const MAGIC: [u8; 12] = *b"NBS\0\0\0\0\x01\0\0\0\0";

/// What names an object and the instance of a connection.
pub type Handle = [u8; 16];

/// What a packet asks for, or answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum OpCode {
    /// Data of a range.
    Read = 0x00,
    /// Data to a range.
    Write = 0x01,
    /// Lists objects, or opens one.
    Info = 0x03,
    /// Asks for a sign of life.
    NoOp = 0x04,
    /// All writes of an object wait.
    Pause = 0x05,
    /// They go on.
    Resume = 0x06,
    /// Snapshots.
    Snap = 0x07,
    /// The opaque data of an object.
    ReadOpaque = 0x08,
    /// Replaces it.
    WriteOpaque = 0x09,
    /// Authentication.
    Auth = 0x0a,
    /// A message.
    Msg = 0x0b,
}

impl OpCode {
    /// The operation that a request's number stands for.
    pub const fn of_request(number: u32) -> Option<OpCode> {
        Some(match number {
            0x00 => OpCode::Read,
            0x01 => OpCode::Write,
            0x03 => OpCode::Info,
            0x04 => OpCode::NoOp,
            0x05 => OpCode::Pause,
            0x06 => OpCode::Resume,
            0x07 => OpCode::Snap,
            0x08 => OpCode::ReadOpaque,
            0x09 => OpCode::WriteOpaque,
            0x0a => OpCode::Auth,
            0x0b => OpCode::Msg,
            _ => return None,
        })
    }

    /// A request's number.
    pub const fn request(self) -> u32 {
        self as u32
    }

    /// A reply's number: the first four have their own.
    pub const fn reply(self) -> u32 {
        match self {
            OpCode::Read | OpCode::Write | OpCode::Info | OpCode::NoOp => self as u32 | 0x40,
            _ => self as u32,
        }
    }

    /// It changes something and must not be done twice.
    pub const fn is_once(self) -> bool {
        matches!(
            self,
            OpCode::Snap | OpCode::WriteOpaque | OpCode::Pause | OpCode::Resume | OpCode::Msg
        )
    }
}

/// Sub-commands of INFO.
pub mod info {
    /// All objects.
    pub const LIST: u32 = 1;
    /// One object, and a handle for it.
    pub const INFO: u32 = 2;
}

/// Sub-commands of SNAP.
pub mod snap {
    /// Makes a snapshot.
    pub const CREATE: u32 = 1;
    /// Deletes one.
    pub const DELETE: u32 = 2;
    /// Makes the object what a snapshot is.
    pub const RESTORE: u32 = 3;
    /// Makes a snapshot anew, under its name.
    pub const REFRESH: u32 = 4;
    /// All of an object.
    pub const LIST: u32 = 5;
}

/// The result of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u32)]
pub enum Status {
    /// Done.
    #[error("done")]
    Ok = 0,
    /// It makes no sense.
    #[error("the request is invalid")]
    Invalid = 1,
    /// No memory for it now.
    #[error("the server has no room for it")]
    NoMemory = 2,
    /// Not now.
    #[error("the object is busy")]
    Busy = 3,
    /// The object is paused by another client.
    #[error("the object is paused")]
    Frozen = 4,
    /// Data did not match its checksum.
    #[error("the data came corrupted")]
    CrcError = 5,
    /// There is no such object or snapshot.
    #[error("there is no such object")]
    NoSuchObject = 6,
    /// Not for this client.
    #[error("access is denied")]
    AccessDenied = 7,
    /// The object, or the client's right, is read-only.
    #[error("the object is read-only")]
    ReadOnly = 8,
    /// Beyond the end.
    #[error("the range lies beyond the end of the object")]
    OutOfRange = 9,
    /// A device failed, or data cannot be read back.
    #[error("an input or output error")]
    IoError = 10,
    /// The pool is full.
    #[error("no space is left")]
    NoSpace = 11,
    /// The handle or the connection's generation is of the past.
    #[error("the connection was replaced by a newer one")]
    Stale = 12,
    /// Not known here.
    #[error("not supported")]
    Unsupported = 13,
    /// The name is taken.
    #[error("the name exists already")]
    Exists = 14,
}

impl Status {
    const ALL: [Status; 15] = [
        Status::Ok,
        Status::Invalid,
        Status::NoMemory,
        Status::Busy,
        Status::Frozen,
        Status::CrcError,
        Status::NoSuchObject,
        Status::AccessDenied,
        Status::ReadOnly,
        Status::OutOfRange,
        Status::IoError,
        Status::NoSpace,
        Status::Stale,
        Status::Unsupported,
        Status::Exists,
    ];

    /// By its number; an unknown one is an error of input or output.
    pub fn of(number: u32) -> Status {
        Status::ALL.get(number as usize).copied().unwrap_or(Status::IoError)
    }

    /// Of what a LUN answered. `Gone` is for the caller to tell apart.
    pub fn of_block_error(error: &BlockError) -> Status {
        match error {
            BlockError::OutOfRange => Status::OutOfRange,
            BlockError::ReadOnly => Status::ReadOnly,
            BlockError::NoSpace => Status::NoSpace,
            BlockError::HeldByFile
            | BlockError::Reserved
            | BlockError::Sanitizing
            | BlockError::DeviceMissing => Status::Busy,
            BlockError::Invalid(_) => Status::Invalid,
            BlockError::Gone => Status::NoSuchObject,
            BlockError::Medium { .. } | BlockError::Miscompare { .. } | BlockError::Io(_) => {
                Status::IoError
            }
        }
    }

    /// What a client makes of it for those who use it as a disk.
    pub fn to_block_error(self) -> BlockError {
        match self {
            Status::OutOfRange => BlockError::OutOfRange,
            Status::ReadOnly | Status::AccessDenied => BlockError::ReadOnly,
            Status::NoSpace => BlockError::NoSpace,
            Status::NoSuchObject => BlockError::Gone,
            Status::Busy | Status::Frozen => BlockError::HeldByFile,
            Status::Invalid => BlockError::Invalid("the NBS server refused it"),
            other => BlockError::Io(other.to_string()),
        }
    }
}

/// A header as it stands on the wire, without magic and CRC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Number of the operation; requests and replies have partly different ones.
    pub op: u32,
    /// Bytes of the whole packet.
    pub pdu_bytes: u32,
    /// Chosen by the client, and comes back.
    pub packet: u32,
    /// Of a reply.
    pub status: u32,
    /// Number of the request.
    pub seq: u32,
    /// Generation of the client's connection.
    pub generation: u32,
    /// The object.
    pub handle: Handle,
    /// Bytes asked for or carried.
    pub data_bytes: u32,
    /// Sub-command.
    pub sub: u32,
    /// First block.
    pub offset: u32,
}

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadHeader {
    /// Nothing in it can be trusted: the connection is dropped.
    Crc,
    /// It is whole, but of another protocol: it is answered, and the connection closed.
    Magic(Header),
}

impl Header {
    /// The bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let words = [
            (0, self.op),
            (4, self.pdu_bytes),
            (8, self.packet),
            (12, self.status),
            (16, self.seq),
            (20, self.generation),
            (48, self.data_bytes),
            (64, self.sub),
            (68, self.offset),
        ];
        for (at, word) in words {
            put(&mut out, at, &word.to_be_bytes());
        }
        put(&mut out, 24, &self.handle);
        put(&mut out, 52, &MAGIC);
        let crc = crc32c::crc32c(out.get(..124).unwrap_or_default());
        put(&mut out, 124, &crc.to_be_bytes());
        out
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, BadHeader> {
        let word = |at: usize| {
            let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
            u32::from_be_bytes(field.unwrap_or_default())
        };
        if crc32c::crc32c(bytes.get(..124).unwrap_or_default()) != word(124) {
            return Err(BadHeader::Crc);
        }
        let handle = bytes.get(24..40).and_then(|field| field.try_into().ok());
        let header = Header {
            op: word(0),
            pdu_bytes: word(4),
            packet: word(8),
            status: word(12),
            seq: word(16),
            generation: word(20),
            handle: handle.unwrap_or_default(),
            data_bytes: word(48),
            sub: word(64),
            offset: word(68),
        };
        match bytes.get(52..64) == Some(&MAGIC[..]) {
            true => Ok(header),
            false => Err(BadHeader::Magic(header)),
        }
    }

    /// The header of a reply: what the client chose comes back.
    pub fn reply(&self, status: Status) -> Header {
        let op = OpCode::of_request(self.op).map_or(self.op, OpCode::reply);
        Header { op, status: status as u32, offset: 0, data_bytes: 0, pdu_bytes: 0, ..*self }
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(space) = out.get_mut(at..at + bytes.len()) {
        space.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by hand from the specification; the CRC by a table-driven CRC-32C in Python.
    #[test]
    fn a_worked_example() {
        let header = Header {
            op: 1,
            pdu_bytes: 128 + 512,
            packet: 7,
            status: 0,
            seq: 9,
            generation: 2,
            handle: *b"0123456789abcdef",
            data_bytes: 512,
            sub: 0,
            offset: 0x0102_0304,
        };
        let bytes = header.encode();
        assert_eq!(bytes[..8], [0, 0, 0, 1, 0, 0, 2, 128]);
        assert_eq!(bytes[24..40], *b"0123456789abcdef");
        assert_eq!(bytes[40..48], [0; 8]);
        assert_eq!(bytes[52..64], *b"NBS\0\0\0\0\x01\0\0\0\0");
        assert_eq!(bytes[68..72], [1, 2, 3, 4]);
        assert_eq!(bytes[72..124], [0; 52]);
        assert_eq!(Header::decode(&bytes), Ok(header));
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        let header = Header { op: 4, pdu_bytes: 128, packet: 3, ..Header::default() };
        let mut bytes = header.encode();
        bytes[60] ^= 1;
        assert_eq!(Header::decode(&bytes), Err(BadHeader::Crc));
        bytes[60] ^= 1;
        bytes[59] = 2;
        let crc = crc32c::crc32c(&bytes[..124]);
        bytes[124..].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(Header::decode(&bytes), Err(BadHeader::Magic(header)));
    }

    #[test]
    fn numbers_of_replies() {
        let numbers: Vec<u32> = (0..12).filter_map(OpCode::of_request).map(OpCode::reply).collect();
        assert_eq!(numbers, [0x40, 0x41, 0x43, 0x44, 5, 6, 7, 8, 9, 10, 11]);
        for (number, status) in Status::ALL.iter().enumerate() {
            assert_eq!(*status as usize, number);
            assert_eq!(Status::of(number as u32), *status);
        }
        assert_eq!(Status::of(99), Status::IoError);
    }
}
