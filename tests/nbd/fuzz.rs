//! Seeded fuzz of everything that reads a client's bytes. `LUNFS_SEED` replays a run.

use std::io::{Read, Write};
use std::time::Duration;

use lunfs::lun::{BlockIo, MemoryLun};
use lunfs::nbd::buffer::Pool;
use lunfs::nbd::handshake::{Description, Handshake, Step};
use lunfs::nbd::inbox::{Inbox, Payload};
use lunfs::nbd::wire::{command, Request, MAX_REQUEST_BYTES};
use lunfs::nbd::Refusal;

use crate::client::{connect, greet, option_bytes, string, Client, Style};
use crate::fixture::{seed, Random, Served};

/// Options as a client might send them, some of them damaged.
fn options(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, random.below(4) as u8];
    for _ in 0..random.below(12) {
        let name = string("disk");
        let data = match random.below(6) {
            0 => [name, vec![0, 1, 0, 3]].concat(),
            1 if random.below(2) == 0 => {
                [name, vec![0, 0, 0, 1], string("lunfs:changed-since:a")].concat()
            }
            1 => [name, vec![0, 0, 0, 1], string("base:allocation")].concat(),
            2 => [name, vec![0xff; 4]].concat(),
            3 => random.bytes(random.0 as usize % 300),
            4 => vec![0; random.0 as usize % 40_000],
            _ => Vec::new(),
        };
        bytes.extend(option_bytes(random.below(13) as u32, &data));
    }
    for _ in 0..random.below(3) {
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
    }
    bytes
}

#[test]
fn the_handshake_takes_anything() {
    let mut random = Random(seed());
    let geometry = MemoryLun::new("disk", 1 << 20, 512).geometry();
    let (mut opened, mut violations) = (0, 0);
    for _ in 0..3000 {
        let bytes = options(&mut random);
        let mut handshake = Handshake::default();
        let (mut held, mut rest) = (Vec::new(), bytes.as_slice());
        loop {
            let Ok((taken, step)) = handshake.advance(&held) else {
                violations += 1;
                break;
            };
            held.drain(..taken);
            assert!(held.len() < 70_000 && handshake.output.len() < 1 << 20);
            let description = Description { name: "disk", description: "", geometry: &geometry };
            match step {
                Step::More if taken > 0 => {}
                Step::More if rest.is_empty() => break,
                Step::More => {
                    let count = rest.len().min(1 + random.below(5000) as usize);
                    held.extend(&rest[..count]);
                    rest = &rest[count..];
                }
                Step::List => handshake.listed(&[]),
                Step::Describe(_) => handshake.described(description),
                Step::Contexts(wish) if wish.export == "disk" => handshake.found(Vec::new()),
                Step::Contexts(wish) => {
                    handshake.refused(Refusal::Unknown(wish.export)).unwrap();
                }
                Step::Open(name) if name == "disk" => {
                    handshake.opened(description);
                    opened += 1;
                    break;
                }
                Step::Open(name) => {
                    if handshake.refused(Refusal::Unknown(name)).is_err() {
                        break;
                    }
                }
                Step::Close | Step::StartTls => break,
            }
        }
    }
    assert!(opened > 100 && violations > 100, "{opened} opened, {violations} violations");
}

#[test]
fn the_inbox_takes_anything_and_holds_little() {
    let mut random = Random(seed());
    let (mut requests, mut violations) = (0, 0);
    for _ in 0..500 {
        let (mut inbox, mut pool) = (Inbox::new(&[]), Pool::default());
        let mut stream = Vec::new();
        for _ in 0..random.below(30) {
            let length = match random.below(8) {
                0 => random.next() as u32,
                1 => random.below(200_000) as u32,
                _ => random.below(9000) as u32,
            };
            let kind = random.below(4) as u16 % 2;
            let request = Request { flags: 0, kind, cookie: 1, offset: random.next(), length };
            stream.extend(request.encode());
            stream.extend(vec![7; request.payload_bytes().min(300_000)]);
        }
        if random.below(2) == 0 && !stream.is_empty() {
            let at = random.below((stream.len() as u64).min(40)) as usize;
            stream[at] ^= 1 << random.below(8);
        }
        let mut rest = stream.as_slice();
        'stream: while !rest.is_empty() {
            loop {
                match inbox.next(&mut pool) {
                    Ok(None) => break,
                    Ok(Some(incoming)) => {
                        requests += 1;
                        if let Payload::InPlace = incoming.payload {
                            assert_eq!(inbox.in_place().len(), incoming.request.payload_bytes());
                        }
                        inbox.release();
                    }
                    Err(_) => {
                        violations += 1;
                        break 'stream;
                    }
                }
            }
            let space = inbox.space();
            assert!(!space.is_empty() && space.len() <= MAX_REQUEST_BYTES as usize);
            let count = space.len().min(rest.len()).min(1 + random.below(100_000) as usize);
            space[..count].copy_from_slice(&rest[..count]);
            inbox.received(count);
            rest = &rest[count..];
        }
    }
    assert!(requests > 500 && violations > 20, "{requests} requests, {violations} violations");
}

/// A live server under the same rain, over real sockets; afterwards it serves as before.
#[test]
fn the_server_survives_damaged_clients() {
    let served = Served::one(8);
    let mut random = Random(seed());
    for round in 0..150 {
        let mut bytes = Vec::new();
        for _ in 0..random.below(40) {
            let request = Request {
                flags: random.below(64) as u16 & random.next() as u16,
                kind: random.below(9) as u16,
                cookie: random.next(),
                offset: random.below(20_000) * 512,
                length: random.below(400) as u32 * 512,
            };
            bytes.extend(request.encode());
            bytes.extend(random.bytes(request.payload_bytes()));
        }
        if let Some(at) = (bytes.len() as u64).checked_sub(1).map(|most| random.below(most + 1)) {
            bytes[at as usize] ^= 1 << random.below(8);
        }
        let style = if round % 2 == 0 { Style::Chunks } else { Style::Simple };
        let mut client = Client::open(served.address, "disk", style);
        let mut reader = client.stream.try_clone().unwrap();
        let sink = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        let _ = client.stream.write_all(&bytes);
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        let _ = sink.join().unwrap();
    }
    for _ in 0..150 {
        let mut stream = connect(served.address);
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        greet(&mut stream);
        let _ = stream.write_all(&options(&mut random));
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let mut client = Client::open(served.address, "disk", Style::Chunks);
    let request = client.request(command::FLUSH, 0, 0, 0);
    assert_eq!(client.call(request, &[]).error, 0);
}
