//! A raw client: blocking, one thread, every byte in the test's hand.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lunfs::nbd::wire::{self, chunk, command, option, option_reply, Request};

/// What a client asks for in the handshake.
#[derive(Clone, Copy, PartialEq)]
pub enum Style {
    /// EXPORT_NAME and simple replies.
    Old,
    /// GO and simple replies.
    Simple,
    /// GO, structured replies, base:allocation.
    Chunks,
}

pub struct Client {
    pub stream: TcpStream,
    pub size: u64,
    pub flags: u16,
    pub style: Style,
    cookie: u64,
}

/// A reply, of either kind.
#[derive(Debug, PartialEq)]
pub struct Reply {
    pub cookie: u64,
    pub error: u32,
    /// Kind of the chunk; `None` for a simple reply.
    pub kind: Option<u16>,
    /// Data of a read, or the chunk's payload.
    pub data: Vec<u8>,
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

pub fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = wire::OPTION_MAGIC.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

pub fn take<const N: usize>(stream: &mut impl Read) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Kind and data of the next reply to an option.
pub fn option_answer(stream: &mut impl Read) -> (u32, Vec<u8>) {
    assert_eq!(u64::from_be_bytes(take(stream)), wire::OPTION_REPLY_MAGIC);
    let _option: [u8; 4] = take(stream);
    let kind = u32::from_be_bytes(take(stream));
    let mut data = vec![0; u32::from_be_bytes(take(stream)) as usize];
    stream.read_exact(&mut data).unwrap();
    (kind, data)
}

pub fn greet(stream: &mut (impl Read + Write)) {
    let greeting: [u8; 18] = take(stream);
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    stream.write_all(&[0, 0, 0, 3]).unwrap();
}

impl Client {
    pub fn open(address: SocketAddr, export: &str, style: Style) -> Client {
        Client::try_open(address, export, style).expect("the export is there")
    }

    /// The kind of the error reply where the export is refused.
    pub fn try_open(address: SocketAddr, export: &str, style: Style) -> Result<Client, u32> {
        let mut stream = connect(address);
        greet(&mut stream);
        if style == Style::Chunks {
            stream.write_all(&option_bytes(option::STRUCTURED_REPLY, &[])).unwrap();
            assert_eq!(option_answer(&mut stream).0, option_reply::ACK);
            let query = [string(export), vec![0, 0, 0, 1], string(wire::BASE_ALLOCATION)].concat();
            stream.write_all(&option_bytes(option::SET_META_CONTEXT, &query)).unwrap();
            assert_eq!(option_answer(&mut stream).0, option_reply::META_CONTEXT);
            assert_eq!(option_answer(&mut stream).0, option_reply::ACK);
        }
        if style == Style::Old {
            stream.write_all(&option_bytes(option::EXPORT_NAME, export.as_bytes())).unwrap();
            let size = u64::from_be_bytes(take(&mut stream));
            let flags = u16::from_be_bytes(take(&mut stream));
            return Ok(Client { stream, size, flags, style, cookie: 0 });
        }
        let data = [string(export), vec![0, 0]].concat();
        stream.write_all(&option_bytes(option::GO, &data)).unwrap();
        let (mut size, mut flags) = (0, 0);
        loop {
            match option_answer(&mut stream) {
                (option_reply::ACK, _) => break,
                (option_reply::INFO, data) if data[..2] == [0, 0] => {
                    size = u64::from_be_bytes(data[2..10].try_into().unwrap());
                    flags = u16::from_be_bytes(data[10..12].try_into().unwrap());
                }
                (option_reply::INFO, _) => {}
                (error, _) => return Err(error),
            }
        }
        Ok(Client { stream, size, flags, style, cookie: 0 })
    }

    /// A request with a fresh cookie.
    pub fn request(&mut self, kind: u16, flags: u16, offset: u64, length: u32) -> Request {
        self.cookie += 1;
        Request { flags, kind, cookie: self.cookie, offset, length }
    }

    pub fn send(&mut self, request: &Request, payload: &[u8]) {
        self.stream.write_all(&[&request.encode()[..], payload].concat()).unwrap();
    }

    /// The next reply; `length_of` tells a simple read's length from its cookie.
    pub fn receive(&mut self, length_of: impl Fn(u64) -> usize) -> Reply {
        let magic = u32::from_be_bytes(take(&mut self.stream));
        if magic == wire::SIMPLE_REPLY_MAGIC {
            let error = u32::from_be_bytes(take(&mut self.stream));
            let cookie = u64::from_be_bytes(take(&mut self.stream));
            let mut data = vec![0; if error == 0 { length_of(cookie) } else { 0 }];
            self.stream.read_exact(&mut data).unwrap();
            return Reply { cookie, error, kind: None, data };
        }
        assert_eq!(magic, wire::CHUNK_MAGIC);
        assert_eq!(u16::from_be_bytes(take(&mut self.stream)), chunk::FLAG_DONE);
        let kind = u16::from_be_bytes(take(&mut self.stream));
        let cookie = u64::from_be_bytes(take(&mut self.stream));
        let mut data = vec![0; u32::from_be_bytes(take(&mut self.stream)) as usize];
        self.stream.read_exact(&mut data).unwrap();
        let error = match kind & 0x8000 {
            0 => 0,
            _ => u32::from_be_bytes(data[..4].try_into().unwrap()),
        };
        let data = match kind {
            chunk::OFFSET_DATA => data.split_off(8),
            chunk::OFFSET_HOLE => {
                vec![0; u32::from_be_bytes(data[8..12].try_into().unwrap()) as usize]
            }
            _ => data,
        };
        Reply { cookie, error, kind: Some(kind), data }
    }

    /// One request and its reply.
    pub fn call(&mut self, request: Request, payload: &[u8]) -> Reply {
        self.send(&request, payload);
        let simple_read = request.kind == command::READ && self.style != Style::Chunks;
        let reply = self.receive(|_| if simple_read { request.length as usize } else { 0 });
        assert_eq!(reply.cookie, request.cookie);
        reply
    }

    /// The error of one request without payload.
    pub fn error_of(&mut self, kind: u16, flags: u16, offset: u64, length: u32) -> u32 {
        let request = self.request(kind, flags, offset, length);
        self.call(request, &[]).error
    }

    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        let request = self.request(command::READ, 0, offset, length);
        let reply = self.call(request, &[]);
        match reply.error {
            0 => Ok(reply.data),
            error => Err(error),
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8], flags: u16) -> u32 {
        let request = self.request(command::WRITE, flags, offset, data.len() as u32);
        self.call(request, data).error
    }

    /// Ends the session in order and sees the server close.
    pub fn disconnect(mut self) {
        let request = self.request(command::DISCONNECT, 0, 0, 0);
        self.send(&request, &[]);
        assert_eq!(self.stream.read(&mut [0; 1]).unwrap(), 0);
    }
}
