//! Clients that mean harm, or are merely broken: they harm only themselves.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lunfs::lun::{BlockError, BlockIo, Extent, Geometry, Identity, MemoryLun};
use lunfs::nbd::wire::{self, command, command_flag, option, Request};
use lunfs::nbd::Export;

use crate::client::{connect, greet, option_bytes, Client, Style};
use crate::fixture::{eventually, Served};

/// The server closed, or reset, this connection.
fn is_closed(stream: &mut impl Read) -> bool {
    let mut sink = [0; 65536];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

fn still_serves(served: &Served) {
    let mut client = Client::open(served.address, "disk", Style::Chunks);
    assert_eq!(client.write(0, &[3; 4096], 0), 0);
    assert_eq!(client.read(0, 4096), Ok(vec![3; 4096]));
    client.disconnect();
}

#[test]
fn violations_of_the_handshake_end_it() {
    let served = Served::one(8);
    let absurd = |option: u32| {
        let mut bytes = option_bytes(option, &[]);
        bytes[12..].copy_from_slice(&u32::MAX.to_be_bytes());
        bytes
    };
    let name = vec![b'x'; 5000];
    for bytes in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        absurd(option::GO),
        absurd(option::EXPORT_NAME),
        absurd(4711),
        option_bytes(option::EXPORT_NAME, b"nobody"),
        option_bytes(option::EXPORT_NAME, &name),
        option_bytes(option::EXPORT_NAME, &[0xff]),
    ] {
        let mut stream = connect(served.address);
        greet(&mut stream);
        stream.write_all(&bytes).unwrap();
        assert!(is_closed(&mut stream));
    }
    let mut stream = connect(served.address);
    stream.write_all(&[0xff; 4]).unwrap();
    assert!(is_closed(&mut stream));
    still_serves(&served);
}

#[test]
fn a_request_without_its_magic_ends_the_session() {
    let served = Served::one(8);
    let mut client = Client::open(served.address, "disk", Style::Chunks);
    client.stream.write_all(&[0x55; 64]).unwrap();
    assert!(is_closed(&mut client.stream));
    eventually("no session", || served.server.sessions().is_empty());
    still_serves(&served);
}

#[test]
fn a_write_longer_than_allowed_is_refused_and_skipped() {
    let served = Served::one(8);
    let mut client = Client::open(served.address, "disk", Style::Simple);
    let length = wire::MAX_REQUEST_BYTES + 512;
    let request = client.request(command::WRITE, 0, 0, length);
    client.send(&request, &vec![1; length as usize]);
    assert_eq!(client.receive(|_| 0).error, 22);
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
}

#[test]
fn half_a_request_and_silence_hold_up_nobody() {
    let served = Served::one(8);
    let silent: Vec<_> = (0..20).map(|_| connect(served.address)).collect();
    let mut half = Client::open(served.address, "disk", Style::Chunks);
    let request = half.request(command::WRITE, 0, 0, 32 << 20);
    half.send(&request, &[1; 1000]);
    still_serves(&served);
    drop(half);
    eventually("no session", || served.server.sessions().is_empty());
    let since = Instant::now();
    assert!(served.shutdown());
    assert!(since.elapsed() < Duration::from_secs(3));
    drop(silent);
}

#[test]
fn more_connections_than_allowed_are_turned_away() {
    let served = Served::one(8);
    let most = lunfs::nbd::server::MAX_CONNECTIONS as usize;
    let held: Vec<_> = (0..most).map(|_| connect(served.address)).collect();
    eventually("the door is full", || is_closed(&mut connect(served.address)));
    drop(held);
    eventually("room again", || {
        let mut stream = connect(served.address);
        stream.read_exact(&mut [0; 18]).is_ok()
    });
    still_serves(&served);
}

/// Asks for a lot, reads nothing: after a few MiB the server stops to work for it, and to listen.
#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    let served = Served::one(64);
    let mut fill = Client::open(served.address, "disk", Style::Simple);
    assert_eq!(fill.write(0, &vec![1; 1 << 20], 0), 0);
    fill.disconnect();
    for (kind, length) in [(command::READ, 1 << 20), (command::WRITE, 512)] {
        let mut greedy = Client::open(served.address, "disk", Style::Chunks);
        greedy.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let request = Request { kind, flags: 0, cookie: 1, offset: 0, length };
        let one = [request.encode().to_vec(), vec![2; request.payload_bytes()]].concat();
        let burst = one.repeat((1 << 20) / one.len());
        let mut sent = 0;
        let stopped = loop {
            match greedy.stream.write(&burst) {
                Ok(count) => sent += count,
                Err(error) => break error.kind(),
            }
            assert!(sent < 1 << 30, "the server goes on listening");
        };
        assert!(matches!(stopped, ErrorKind::WouldBlock | ErrorKind::TimedOut));
        let session = served.server.sessions().pop().unwrap();
        assert!(session.read_bytes < 64 << 20, "{} bytes read", session.read_bytes);
        still_serves(&served);
        drop(greedy);
        eventually("no session", || served.server.sessions().is_empty());
    }
}

/// A device that hangs and a client that goes on writing: the server takes in what it may hold.
#[test]
fn writes_that_wait_are_bounded_in_bytes_and_in_number() {
    for (length, most) in [(1 << 20, 17), (4096, 33)] {
        let served = Served::one(64);
        served.lun().set_blocking(Some(Duration::from_secs(1)));
        let mut client = Client::open(served.address, "disk", Style::Simple);
        let mut writer = client.stream.try_clone().unwrap();
        let request = client.request(command::WRITE, command_flag::FUA, 0, length);
        let one = [request.encode().to_vec(), vec![5; length as usize]].concat();
        let sender = std::thread::spawn(move || writer.write_all(&one.repeat(64)));
        let taken = || served.server.sessions().first().map_or(0, |session| session.operations);
        eventually("the server takes what it may", || taken() >= most - 1);
        std::thread::sleep(Duration::from_millis(100));
        assert!(taken() <= most, "{} requests of {length} bytes", taken());
        served.lun().set_blocking(None);
        for _ in 0..64 {
            assert_eq!(client.receive(|_| 0).error, 0);
        }
        sender.join().unwrap().unwrap();
    }
}

#[test]
fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
    let served = Served::one(8);
    let again = served.runtime.block_on(served.server.listen_unix(&served.socket));
    assert_eq!(again.unwrap_err().kind(), ErrorKind::AddrInUse);
    let stale = served.directory.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    served.runtime.block_on(served.server.listen_unix(&stale)).unwrap();
    let file = served.directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(served.runtime.block_on(served.server.listen_unix(&file)).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

/// A disk with a bug: it panics where the bytes ask for it.
#[derive(Debug)]
struct Cursed(MemoryLun);

impl Cursed {
    fn strike(&self, offset: u64) {
        assert_ne!(offset, 4096, "the curse");
    }
}

impl BlockIo for Cursed {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn generation(&self) -> u64 {
        self.0.generation()
    }
    fn identity(&self) -> Identity {
        self.0.identity()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), BlockError> {
        self.strike(offset);
        self.0.read(offset, out)
    }
    fn try_read(&self, offset: u64, out: &mut [u8]) -> Option<Result<(), BlockError>> {
        self.strike(offset);
        self.0.try_read(offset, out)
    }
    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), BlockError> {
        self.strike(offset);
        self.0.write(offset, data, fua)
    }
    fn try_write(&self, offset: u64, data: &[u8]) -> Option<Result<(), BlockError>> {
        self.0.try_write(offset, data)
    }
    fn flush(&self) -> Result<(), BlockError> {
        self.0.flush()
    }
    fn unmap(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        self.0.unmap(offset, length)
    }
    fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> Result<(), BlockError> {
        self.0.write_zeroes(offset, length, may_unmap)
    }
    fn compare_and_write(&self, offset: u64, old: &[u8], new: &[u8]) -> Result<(), BlockError> {
        self.0.compare_and_write(offset, old, new)
    }
    fn or_write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        self.0.or_write(offset, data)
    }
    fn extents(&self, offset: u64, length: u64, max: usize) -> Result<Vec<Extent>, BlockError> {
        self.0.extents(offset, length, max)
    }
}

#[test]
fn a_bug_below_ends_one_connection_and_no_more() {
    let disk = Arc::new(Cursed(MemoryLun::new("disk", 1 << 20, 512)));
    let export =
        Export { name: "disk".into(), description: String::new(), io: disk.clone(), tag: 0 };
    let served = Served::exports(vec![export], Vec::new());
    let idle = Arc::strong_count(&disk);
    for (kind, flags) in [(command::READ, 0), (command::WRITE, 1)] {
        let mut victim = Client::open(served.address, "disk", Style::Simple);
        let mut other = Client::open(served.address, "disk", Style::Simple);
        let request = victim.request(kind, flags, 4096, 512);
        victim.send(&request, &vec![0; request.payload_bytes()]);
        assert!(is_closed(&mut victim.stream));
        assert_eq!(other.write(0, &[1; 512], 1), 0);
        other.disconnect();
        eventually("no session", || served.server.sessions().is_empty());
    }
    eventually("the LUN is let go", || Arc::strong_count(&disk) == idle);
    still_serves(&served);
}
