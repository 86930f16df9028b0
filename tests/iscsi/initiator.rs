//! A small initiator of our own, for what well-behaved ones do not send; and a door to try it on.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use lunfs::access::Limits;
use lunfs::iscsi::pdu::{digest, Header};
use lunfs::iscsi::{portal, Client, Demand, Options, Refusal, Service, TargetDirectory};
use lunfs::lun::{BlockIo, MemoryLun};
use tokio_util::sync::CancellationToken;

pub const TARGET: &str = "iqn.2026-11.local.lunfs:ram";

/// A directory of one disk and `extra` names that cannot be opened.
pub struct One {
    pub disk: Arc<MemoryLun>,
    pub extra: usize,
    pub limits: Limits,
    /// Nobody may use the disk any more.
    pub closed: Arc<AtomicBool>,
}

impl TargetDirectory for One {
    fn demand(&self, _client: &Client) -> Result<Demand, Refusal> {
        Ok(Demand { limits: self.limits, ..Demand::default() })
    }

    fn judge(&self, _client: &Client, _target: &str) -> Result<(), Refusal> {
        match self.closed.load(Ordering::Relaxed) {
            true => Err(Refusal::Forbidden),
            false => Ok(()),
        }
    }

    fn list(&self, _client: &Client) -> Vec<String> {
        let extra = (0..self.extra).map(|n| format!("iqn.2026-11.local.lunfs:extra-{n:05}"));
        std::iter::once(TARGET.to_owned()).chain(extra).collect()
    }

    fn open(&self, client: &Client, target: &str) -> Result<Arc<dyn BlockIo>, Refusal> {
        match target {
            _ if client.initiator.ends_with("forbidden") => Err(Refusal::Forbidden),
            TARGET => Ok(Arc::clone(&self.disk) as Arc<dyn BlockIo>),
            _ => Err(Refusal::NotFound),
        }
    }
}

/// A door on a free port of loopback; its drop closes it.
pub struct Door {
    pub address: SocketAddr,
    pub service: Arc<Service>,
    pub disk: Arc<MemoryLun>,
    pub closed: Arc<AtomicBool>,
    stop: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Door {
    pub fn open(size_bytes: u64) -> Door {
        Door::with(size_bytes, 0, Options::default())
    }

    pub fn with(size_bytes: u64, extra: usize, options: Options) -> Door {
        Door::with_limits(size_bytes, extra, options, Limits::default())
    }

    /// Initiators may take so much of it.
    pub fn with_limits(size_bytes: u64, extra: usize, options: Options, limits: Limits) -> Door {
        let disk = Arc::new(MemoryLun::new("ram", size_bytes, 512));
        let closed = Arc::new(AtomicBool::new(false));
        let one = One { disk: Arc::clone(&disk), extra, limits, closed: Arc::clone(&closed) };
        let directory = Arc::new(one);
        let service = Service::new(directory, options).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let stop = CancellationToken::new();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let group = service.add_portal(address);
        runtime.spawn(portal::serve(Arc::clone(&service), (listener, group), stop.clone()));
        Door { address, service, disk, closed, stop, runtime: Some(runtime) }
    }

    /// One more address of the door.
    pub fn add_portal(&self, address: &str) -> Option<SocketAddr> {
        let runtime = self.runtime.as_ref()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).ok()?;
        let address = listener.local_addr().ok()?;
        let portal = (listener, self.service.add_portal(address));
        runtime.spawn(portal::serve(Arc::clone(&self.service), portal, self.stop.clone()));
        Some(address)
    }

    pub fn url(&self) -> String {
        format!("iscsi://{}/{TARGET}/0", self.address)
    }

    pub fn connect(&self) -> Initiator {
        Initiator::connect(self.address)
    }

    pub fn login(&self) -> Initiator {
        let mut initiator = self.connect();
        initiator.login("iqn.2026-11.local.test:one", "").unwrap();
        initiator
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

/// What a command came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: u8,
    pub data: Vec<u8>,
    pub sense: Vec<u8>,
    pub residual: i64,
}

impl Outcome {
    /// Key, code, qualifier of fixed format sense data.
    pub fn code(&self) -> (u8, u8, u8) {
        match self.sense.as_slice() {
            [] => (0, 0, 0),
            sense => (sense[2], sense[12], sense[13]),
        }
    }
}

/// A connection that keeps its sequence numbers itself.
pub struct Initiator {
    pub stream: TcpStream,
    pub cmd_sn: u32,
    pub tag: u32,
    pub isid: u8,
    /// TSIH and CID that a login tells; the first becomes that of the session.
    pub place: (u16, u16),
    header_digest: bool,
    data_digest: bool,
    pub segment: usize,
}

impl Initiator {
    pub fn connect(address: SocketAddr) -> Initiator {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_nodelay(true).unwrap();
        Initiator {
            stream,
            cmd_sn: 1,
            tag: 1,
            isid: 1,
            place: (0, 0),
            header_digest: false,
            data_digest: false,
            segment: 8192,
        }
    }

    /// One-step login with more `keys`; the error is status class and detail.
    pub fn login(&mut self, name: &str, keys: &str) -> Result<String, u16> {
        let text = format!("InitiatorName={name}\0TargetName={TARGET}\0{keys}");
        self.login_text(&text)
    }

    pub fn login_text(&mut self, text: &str) -> Result<String, u16> {
        let mut header = Header::reply(0x43, 0x87, 0);
        header.0[8..14].copy_from_slice(&[0x80, 0, 0, 0, 0, self.isid]);
        header.0[14..16].copy_from_slice(&self.place.0.to_be_bytes());
        header.0[20..22].copy_from_slice(&self.place.1.to_be_bytes());
        header.set_word(24, self.cmd_sn);
        self.send(header, text.as_bytes());
        let (header, data) = self.receive().ok_or(0xFFFFu16)?;
        assert_eq!(header.opcode(), 0x23);
        self.place.0 = u16::from_be_bytes([header.0[14], header.0[15]]);
        match u16::from_be_bytes([header.0[36], header.0[37]]) {
            0 => {
                self.header_digest = text.contains("HeaderDigest=CRC32C");
                self.data_digest = text.contains("DataDigest=CRC32C");
                Ok(String::from_utf8(data).unwrap())
            }
            status => Err(status),
        }
    }

    pub fn send(&mut self, mut header: Header, data: &[u8]) {
        header.set_data_bytes(data.len());
        let mut bytes = header.0.to_vec();
        if self.header_digest {
            bytes.extend_from_slice(&digest(&[&header.0]));
        }
        let start = bytes.len();
        bytes.extend_from_slice(data);
        bytes.resize(start + data.len().next_multiple_of(4), 0);
        if self.data_digest && !data.is_empty() {
            let sum = digest(&[&bytes[start..]]);
            bytes.extend_from_slice(&sum);
        }
        let _ = self.stream.write_all(&bytes);
    }

    /// The next PDU; `None` at the end of the stream.
    pub fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut bytes = [0; 48];
        self.stream.read_exact(&mut bytes).ok()?;
        let header = Header(bytes);
        if self.header_digest {
            let mut sum = [0; 4];
            self.stream.read_exact(&mut sum).ok()?;
            assert_eq!(sum, digest(&[&bytes]), "header digest");
        }
        let mut data = vec![0; header.data_bytes().next_multiple_of(4)];
        self.stream.read_exact(&mut data).ok()?;
        if self.data_digest && !data.is_empty() {
            let mut sum = [0; 4];
            self.stream.read_exact(&mut sum).ok()?;
            assert_eq!(sum, digest(&[&data]), "data digest");
        }
        data.truncate(header.data_bytes());
        Some((header, data))
    }

    /// Sends a SCSI command PDU and returns its tag.
    pub fn command(&mut self, cdb: &[u8], flags: u8, expected: u32, data: &[u8]) -> u32 {
        self.tag += 1;
        let mut header = Header::reply(0x01, flags, self.tag);
        header.set_word(20, expected);
        header.set_word(24, self.cmd_sn);
        header.0[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.send(header, data);
        self.tag
    }

    /// Collects Data-In and status of `tag`, answering R2Ts from `out`.
    pub fn finish(&mut self, tag: u32, out: &[u8]) -> Option<Outcome> {
        let mut data = Vec::new();
        loop {
            let (header, segment) = self.receive()?;
            assert_eq!(header.tag(), tag, "opcode {:#x}", header.opcode());
            match header.opcode() {
                0x25 => {
                    assert_eq!(header.word(40) as usize, data.len(), "buffer offset");
                    data.extend_from_slice(&segment);
                    if header.flags() & 1 != 0 {
                        return Some(outcome(&header, data, &[]));
                    }
                }
                0x31 => self.answer_r2t(&header, out),
                0x21 => return Some(outcome(&header, data, &segment)),
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    fn answer_r2t(&mut self, r2t: &Header, out: &[u8]) {
        let (at, length) = (r2t.word(40) as usize, r2t.word(44) as usize);
        self.data_out(r2t.tag(), r2t.transfer_tag(), &out[at..at + length], at);
    }

    /// One sequence of Data-Out PDUs.
    pub fn data_out(&mut self, tag: u32, transfer_tag: u32, data: &[u8], at: usize) {
        let count = data.len().div_ceil(self.segment);
        for (sn, piece) in data.chunks(self.segment).enumerate() {
            let flags = if sn + 1 == count { 0x80 } else { 0 };
            let mut header = Header::reply(0x05, flags, tag);
            header.set_word(20, transfer_tag);
            header.set_word(36, sn as u32);
            header.set_word(40, (at + sn * self.segment) as u32);
            self.send(header, piece);
        }
    }

    pub fn read(&mut self, lba: u32, blocks: u16) -> Outcome {
        let tag = self.command(&read10(lba, blocks), 0xC0, u32::from(blocks) * 512, &[]);
        self.finish(tag, &[]).unwrap()
    }

    /// A write whose data all waits for R2T.
    pub fn write(&mut self, lba: u32, data: &[u8]) -> Outcome {
        let tag = self.command(&write10(lba, data.len()), 0xA0, data.len() as u32, &[]);
        self.finish(tag, data).unwrap()
    }

    pub fn test_unit_ready(&mut self) -> Outcome {
        let tag = self.command(&[0; 6], 0x80, 0, &[]);
        self.finish(tag, &[]).unwrap()
    }

    /// TEST UNIT READY until no attention waits.
    pub fn settle(&mut self) {
        while self.test_unit_ready().status != 0 {}
    }

    /// The connection was closed by the other side.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn outcome(header: &Header, data: Vec<u8>, segment: &[u8]) -> Outcome {
    let residual = i64::from(header.word(44));
    let residual = match header.flags() & 6 {
        4 => residual,
        2 => -residual,
        _ => 0,
    };
    let sense = segment.get(2..).unwrap_or_default().to_vec();
    Outcome { status: header.0[3], data, sense, residual }
}

pub fn read10(lba: u32, blocks: u16) -> [u8; 10] {
    cdb10(0x28, lba, blocks)
}

pub fn write10(lba: u32, bytes: usize) -> [u8; 10] {
    cdb10(0x2A, lba, (bytes / 512) as u16)
}

pub fn cdb10(opcode: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let [a, b, c, d] = lba.to_be_bytes();
    let [e, f] = blocks.to_be_bytes();
    [opcode, 0, a, b, c, d, 0, e, f, 0]
}

/// Numbers from a seed: SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}
