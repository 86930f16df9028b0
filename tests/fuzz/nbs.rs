//! NBS: streams of packets, right, changed and made up, at the server's core and at the client's.
//! Nothing panics, memory stays bounded, every whole packet is answered or ends the connection, and
//! what was cut anywhere means the same.

use crate::{number, seed};
use bytes::{Bytes, BytesMut};
use lunfs::access::Reason;
use lunfs::device::sim::Rng;
use lunfs::fs::VolumeId;
use lunfs::lun::{BlockIo, MemoryLun, OnceBook, OnceClient};
use lunfs::nbs::client::core::{Core, Options, Request};
use lunfs::nbs::codec::PacketCodec;
use lunfs::nbs::connection::{Connection, House};
use lunfs::nbs::wire::{Header, HEADER_BYTES};
use lunfs::nbs::{
    xml, Candidate, Client, Facts, Kick, Messages, Object, ObjectDirectory, SnapFacts, SnapOrder,
    Status,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const SIZE_BYTES: u64 = 1 << 20;

#[derive(Debug)]
struct RamObject {
    io: Arc<dyn BlockIo>,
    client: OnceClient,
}

impl Object for RamObject {
    fn facts(&self) -> Facts {
        Facts {
            name: "ram".into(),
            block_bytes: 512,
            blocks: SIZE_BYTES / 512,
            writable: true,
            shared: false,
            snapable: true,
            replicated: false,
            write_through: false,
        }
    }

    fn io(&self) -> &Arc<dyn BlockIo> {
        &self.io
    }

    fn once_client(&self) -> &OnceClient {
        &self.client
    }

    fn is_superseded(&self) -> bool {
        false
    }

    fn pause(&self, _limit: Duration) -> Result<(), Status> {
        Ok(())
    }

    fn resume(&self) -> bool {
        true
    }

    fn fresh_snap_name(&self) -> String {
        "now".into()
    }

    fn snaps(&self) -> Result<Vec<SnapFacts>, Status> {
        Ok(vec![])
    }

    fn snap(&self, _order: &SnapOrder) -> Result<SnapFacts, Status> {
        Ok(SnapFacts { name: "s".into(), time: "t".into() })
    }

    fn note_snap(
        &self,
        _name: Option<&str>,
        _hook: &str,
        _outcome: &str,
        _why: &str,
    ) -> Result<(), Status> {
        Ok(())
    }

    fn read_opaque(&self) -> Result<Vec<u8>, Status> {
        Ok(vec![1, 2, 3])
    }

    fn write_opaque(&self, _bytes: &[u8]) -> Result<(), Status> {
        Ok(())
    }
}

struct Ram(Arc<dyn BlockIo>, OnceBook);

impl ObjectDirectory for Ram {
    fn check_address(&self, _peer: SocketAddr) -> Result<(), Status> {
        Ok(())
    }

    fn admits_nameless(&self, _peer: SocketAddr) -> bool {
        true
    }

    fn candidates(&self, _user: &str, _peer: SocketAddr) -> Vec<Candidate> {
        vec![]
    }

    fn refused(&self, _user: &str, _peer: SocketAddr, _reason: Reason) {}

    fn list(&self, _client: &Client) -> Vec<Facts> {
        vec![]
    }

    fn open(
        &self,
        client: &Client,
        name: &str,
        instance: &str,
        _generation: u32,
        _kick: Kick,
    ) -> Result<Arc<dyn Object>, Status> {
        match name {
            "ram" => Ok(Arc::new(RamObject {
                io: Arc::clone(&self.0),
                client: OnceClient::new(VolumeId(7), &client.label(), instance),
            })),
            _ => Err(Status::NoSuchObject),
        }
    }

    fn once(&self) -> &OnceBook {
        &self.1
    }
}

fn house() -> Arc<House> {
    let disk = Arc::new(MemoryLun::new("ram", SIZE_BYTES, 512));
    let directory = Arc::new(Ram(disk, OnceBook::in_memory()));
    let shares = Default::default();
    Arc::new(House { directory, messages: Messages::new(), instance: "i".into(), shares })
}

fn connection(house: &Arc<House>) -> Connection {
    let peer = "127.0.0.1:1".parse().unwrap();
    Connection::new(Arc::clone(house), peer, Arc::new(|| ()), *b"12345678")
}

/// Gives `stream` to a connection in pieces; all that it answers, and whether it stayed.
fn served(house: &Arc<House>, stream: &[u8], rng: &mut Rng) -> (Vec<u8>, bool) {
    let (mut core, mut held, mut out) = (connection(house), BytesMut::new(), Vec::new());
    let mut rest = stream;
    let mut good = true;
    while good && !rest.is_empty() && core.end().is_none() {
        let (piece, behind) = rest.split_at(1 + rng.index(rest.len().min(5000)));
        rest = behind;
        held.extend_from_slice(piece);
        loop {
            good = core.receive(&mut held).is_ok();
            let jobs = core.take_jobs();
            let none = jobs.is_empty();
            jobs.into_iter().for_each(|job| core.done(job.run()));
            let pieces: Vec<Bytes> = core.unsent().iter().cloned().collect();
            let count = pieces.iter().map(|piece| piece.len()).sum();
            out.extend(pieces.into_iter().flatten());
            core.sent(count);
            if none || !good {
                break;
            }
        }
    }
    assert_eq!(core.in_flight(), 0);
    (out, good)
}

const CODEC: PacketCodec = PacketCodec { max_data_bytes: 1 << 20, trailer: false };
const AUTH: &str = "<nbsAuthMethodRqst><nbsAuthMethod name=\"None\"/></nbsAuthMethodRqst>";

fn body(rng: &mut Rng) -> Bytes {
    let bodies = [
        AUTH,
        "<nbsLstRqst/>",
        "<nbsInfoRqst nbsId=\"ram\" client=\"c\"/>",
        "<nbsSnapRqst nbsId=\"ram\" snapId=\"s\"/>",
        "<nbsPauseRqst seconds=\"99999999999999999999\"/>",
        "<nbsMsg name=\"flush\"/>",
        "<nbsMsg name=\"unmap\" offset=\"18446744073709551104\" length=\"1024\"/>",
        "<nbsAuthARqst CHAP_A=\"7,5\"/>",
        "",
    ];
    let mut body = bodies[rng.index(bodies.len())].as_bytes().to_vec();
    if rng.below(4) == 0 {
        for _ in 0..1 + rng.below(3) {
            let at = rng.index(body.len() + 1);
            body.insert(at, b"<>&;\"'/ \0x\xff="[rng.index(12)]);
        }
    }
    if rng.below(30) == 0 {
        body = vec![rng.bits() as u8; rng.index(100_000)];
    }
    body.into()
}

fn packet(rng: &mut Rng, handle: [u8; 16]) -> Vec<u8> {
    let data = if rng.below(3) == 0 { vec![7; 512 * rng.index(9)].into() } else { body(rng) };
    let small = |rng: &mut Rng| if rng.below(5) == 0 { number(rng) as u32 } else { 1 };
    let header = Header {
        op: rng.below(13) as u32,
        packet: rng.bits() as u32,
        status: small(rng),
        seq: rng.below(4) as u32,
        generation: small(rng),
        handle: if rng.below(6) == 0 { [rng.bits() as u8; 16] } else { handle },
        sub: rng.below(7) as u32,
        offset: if rng.below(3) == 0 { number(rng) as u32 } else { rng.below(2048) as u32 },
        ..Header::default()
    };
    let mut bytes: Vec<u8> = CODEC.packet(&header, data).flatten().collect();
    if rng.below(8) == 0 {
        // DataLen or PduLen of its own, under a right CRC.
        let raw: &[u8; HEADER_BYTES] = bytes[..HEADER_BYTES].try_into().unwrap();
        let mut changed = Header::decode(raw).unwrap();
        match rng.below(3) {
            0 => changed.pdu_bytes = number(rng) as u32,
            _ => changed.data_bytes = number(rng) as u32,
        }
        bytes[..HEADER_BYTES].copy_from_slice(&changed.encode());
    }
    if rng.below(40) == 0 {
        let at = rng.index(bytes.len());
        bytes[at] ^= 1 << rng.below(8);
    }
    bytes
}

fn hello() -> Vec<u8> {
    let auth = Header { op: 0x0a, ..Header::default() };
    let open = Header { op: 3, sub: 2, generation: 1, packet: 1, ..Header::default() };
    let info = "<nbsInfoRqst nbsId=\"ram\" client=\"c\"/>";
    let first = CODEC.packet(&auth, AUTH.into());
    first.chain(CODEC.packet(&open, info.into())).flatten().collect()
}

#[test]
fn fuzz_nbs_server() {
    let mut rng = Rng::new(seed());
    let house = house();
    let (greeting, _) = served(&house, &hello(), &mut rng);
    let info = &greeting[greeting.len() - 400..];
    assert!(String::from_utf8_lossy(info).contains("NumBlks=\"2048\""));
    let mut handle = [0; 16];
    handle[..8].copy_from_slice(b"12345678");
    for _ in 0..1500 {
        let mut stream = hello();
        for _ in 0..rng.index(12) {
            stream.extend(packet(&mut rng, handle));
        }
        let (one, stayed) = served(&house, &stream, &mut rng);
        assert!(one.len() >= HEADER_BYTES, "the greeting is answered");
        let (mut held, mut codec) = (BytesMut::from(&one[..]), CODEC);
        while let Ok(Some(_)) = tokio_util::codec::Decoder::decode(&mut codec, &mut held) {}
        assert!(held.is_empty(), "replies are whole packets; stayed: {stayed}");
    }
}

fn options() -> Options {
    Options {
        addresses: vec!["127.0.0.1:1".parse().unwrap(), "127.0.0.2:1".parse().unwrap()],
        login: None,
        object: Some("ram".into()),
        instance: "c".into(),
        patience: Duration::from_secs(5000),
    }
}

/// A client against the real server's core, over a connection that is cut at any byte, and whose
/// bytes are changed now and then. Everything that was asked for is answered in the end, and the
/// disk holds what was answered.
#[test]
fn fuzz_nbs_client_over_bad_connections() {
    let mut rng = Rng::new(seed());
    for _ in 0..60 {
        let house = house();
        let mut client = Core::new(options());
        let mut now = Duration::ZERO;
        let mut model = vec![0u8; SIZE_BYTES as usize];
        let mut asked = 0;
        let mut answered = 0;
        let mut left = 40;
        let mut server = None;
        let [mut inbound, mut outbound, mut held] = [(); 3].map(|()| BytesMut::new());
        while answered < 40 {
            now += Duration::from_millis(rng.below(200));
            if asked == answered && left > 0 {
                left -= 1;
                asked += 1;
                let block = rng.below(64);
                let data = vec![1 + rng.bits() as u8 % 255; 512 * (1 + rng.index(8))];
                let at = (block * 512) as usize;
                model[at..at + data.len()].copy_from_slice(&data);
                client.submit(Request::Write { offset: block * 512, data: data.into() }, now);
            }
            if client.connect_to(now).is_some() {
                server = Some(connection(&house));
                [inbound, outbound, held] = [(); 3].map(|()| BytesMut::new());
                client.connected(now);
            }
            let mut cut = !client.tick(now) || (left > 0 && rng.below(12) == 0);
            let sent: Vec<Bytes> = client.unsent().iter().cloned().collect();
            client.was_sent(sent.iter().map(|piece| piece.len()).sum());
            inbound.extend(sent.into_iter().flatten());
            if let Some(server) = server.as_mut() {
                if rng.below(40) == 0 && left > 0 && !inbound.is_empty() {
                    let at = rng.index(inbound.len().min(HEADER_BYTES));
                    inbound[at] ^= 1;
                }
                cut |= server.receive(&mut inbound).is_err() || server.end().is_some();
                server.take_jobs().into_iter().for_each(|job| server.done(job.run()));
                let out: Vec<Bytes> = server.unsent().iter().cloned().collect();
                server.sent(out.iter().map(|piece| piece.len()).sum());
                outbound.extend(out.into_iter().flatten());
            }
            held.extend_from_slice(&outbound.split_to(rng.index(outbound.len() + 1)));
            cut |= client.receive(&mut held, now).is_err();
            if cut && server.is_some() {
                server = None;
                client.lost("cut", now);
            }
            for (_, answer) in client.take_done() {
                assert!(answer.is_ok(), "{answer:?} at {now:?}: {client:?}");
                answered += 1;
            }
        }
        let mut disk = vec![0; SIZE_BYTES as usize];
        let peer = Client::nameless("127.0.0.1:1".parse().unwrap());
        let object = house.directory.open(&peer, "ram", "", 1, Arc::new(|| ())).unwrap();
        object.io().read(0, &mut disk).unwrap();
        assert!(disk == model, "the disk holds what was answered");
    }
}

/// Whatever a server sends, the client neither panics nor takes more memory than it may.
#[test]
fn fuzz_nbs_client() {
    let mut rng = Rng::new(seed());
    for _ in 0..2000 {
        let mut client = Core::new(options());
        client.submit(Request::Read { offset: 0, length: 512 }, Duration::ZERO);
        let _ = client.connect_to(Duration::ZERO);
        client.connected(Duration::ZERO);
        let mut stream = Vec::new();
        let replies = [
            "<nbsAuthMethodRply name=\"None\"/>",
            "<nbsAuthMethodRply name=\"CHAP\"/>",
            "<nbsInfoRply BlkSize=512 NumBlks=9 xferSize=4096 rw=1/>",
            "<nbsInfoRply BlkSize=0 NumBlks=18446744073709551615 xferSize=0/>",
            "<nbsInfoRply BlkSize=4294967295 NumBlks=18446744073709551615 xferSize=9/>",
        ];
        for turn in 0..rng.index(8) {
            let text = if turn < 2 && rng.below(2) == 0 {
                Bytes::from_static(replies[[0, 2][turn]].as_bytes())
            } else if rng.below(2) == 0 {
                Bytes::from_static(replies[rng.index(replies.len())].as_bytes())
            } else {
                body(&mut rng)
            };
            let header = Header {
                op: [0x0a, 0x43, 0x40][turn.min(2)],
                packet: turn as u32 + 1,
                status: if rng.below(3) == 0 { rng.below(20) as u32 } else { 0 },
                ..Header::default()
            };
            stream.extend(CODEC.packet(&header, text).flatten());
        }
        if rng.below(4) == 0 && !stream.is_empty() {
            let at = rng.index(stream.len());
            stream[at] ^= 1;
        }
        let mut received = BytesMut::from(&stream[..]);
        let _ = client.receive(&mut received, Duration::ZERO);
        client.tick(Duration::from_secs(number(&mut rng) % 100));
        client.take_done();
    }
}

#[test]
fn fuzz_nbs_bodies() {
    let mut rng = Rng::new(seed());
    for _ in 0..20_000 {
        if let Some(element) = xml::parse(&body(&mut rng)) {
            let text = element.to_xml();
            assert_eq!(xml::parse(text.as_bytes()).as_ref(), Some(&element), "{text}");
        }
    }
}
