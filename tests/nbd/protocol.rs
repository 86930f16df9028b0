//! What the protocol promises, checked with the raw client.

use std::time::{Duration, Instant};

use lunfs::lun::{BlockError, BlockIo, MemoryLun};
use lunfs::nbd::wire::{chunk, command, command_flag, export_flag, option_reply};

use crate::client::{Client, Style};
use crate::fixture::{eventually, seed, Random, Served, MIB};

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;
const ESHUTDOWN: u32 = 108;

#[test]
fn every_style_of_client_reads_what_it_wrote() {
    let served = Served::one(16);
    for style in [Style::Old, Style::Simple, Style::Chunks] {
        let mut client = Client::open(served.address, "disk", style);
        assert_eq!(client.size, 16 * MIB);
        assert_ne!(client.flags & export_flag::CAN_MULTI_CONN, 0);
        let df = client.flags & export_flag::SEND_DF != 0;
        assert_eq!(df, style == Style::Chunks);
        for length in [512usize, 4096, 100 * 512, 1 << 20, 3 << 20] {
            let data = Random(length as u64).bytes(length);
            assert_eq!(client.write(512, &data, 0), 0);
            assert!(client.read(512, length as u32).unwrap() == data, "length {length}");
        }
        client.disconnect();
    }
}

#[test]
fn an_export_is_found_by_name_and_the_default_only_where_it_is_alone() {
    let served =
        Served::with(vec![MemoryLun::new("a", MIB, 512), MemoryLun::new("b", 2 * MIB, 4096)]);
    assert_eq!(Client::open(served.address, "b", Style::Chunks).size, 2 * MIB);
    for name in ["", "c", "A"] {
        let refused = Client::try_open(served.address, name, Style::Simple).err();
        assert_eq!(refused, Some(option_reply::ERR_UNKNOWN), "{name:?}");
    }
    assert_eq!(Client::open(Served::one(3).address, "", Style::Simple).size, 3 * MIB);
}

/// Every way to change a disk, at random, beside a byte array that must stay equal.
#[test]
fn a_random_workload_agrees_with_its_model() {
    let served = Served::one(4);
    let mut random = Random(seed());
    for style in [Style::Simple, Style::Chunks] {
        let mut model = vec![0u8; 4 << 20];
        served.lun().unmap(0, 4 * MIB).unwrap();
        let mut client = Client::open(served.address, "disk", style);
        for step in 0..600 {
            // Every third round through the blocking threads.
            let slow = (step / 50 % 3 == 2).then_some(Duration::from_micros(50));
            served.lun().set_blocking(slow);
            let offset = random.below(8000) * 512;
            let length = (1 + random.below(192)) as u32 * 512;
            let range = offset as usize..offset as usize + length as usize;
            let fua = random.below(2) as u16;
            match random.below(5) {
                0 | 1 => {
                    let data = random.bytes(length as usize);
                    model[range].copy_from_slice(&data);
                    assert_eq!(client.write(offset, &data, fua), 0);
                }
                2 => {
                    model[range].fill(0);
                    let hole = random.below(2) as u16 * command_flag::NO_HOLE;
                    let kind = command::WRITE_ZEROES;
                    assert_eq!(client.error_of(kind, fua | hole, offset, length), 0);
                }
                3 => {
                    model[range].fill(0);
                    assert_eq!(client.error_of(command::TRIM, fua, offset, length), 0);
                }
                _ => {
                    assert_eq!(client.error_of(command::CACHE, 0, offset, length), 0);
                    assert!(client.read(offset, length).unwrap() == model[range], "step {step}");
                }
            }
        }
        served.lun().set_blocking(None);
        assert!(client.read(0, 4 << 20).unwrap() == model);
        client.disconnect();
    }
}

#[test]
fn block_status_tells_holes_from_data() {
    let served = Served::one(8);
    let mut client = Client::open(served.address, "disk", Style::Chunks);
    assert_eq!(client.write(65536, &[1; 65536], 0), 0);
    let request = client.request(command::BLOCK_STATUS, 0, 4096, 1 << 20);
    let reply = client.call(request, &[]);
    assert_eq!(reply.kind, Some(chunk::BLOCK_STATUS));
    let words: Vec<u32> =
        reply.data.chunks(4).map(|w| u32::from_be_bytes(w.try_into().unwrap())).collect();
    assert_eq!(words, [1, 61440, 3, 65536, 0, (1 << 20) - 61440 - 65536, 3]);
    let request = client.request(command::BLOCK_STATUS, command_flag::REQ_ONE, 4096, 1 << 20);
    assert_eq!(client.call(request, &[]).data.len(), 12);
    assert_eq!(client.error_of(command::BLOCK_STATUS, 0, 8 * MIB, 512), EINVAL);
    assert_eq!(client.error_of(command::BLOCK_STATUS, 0, 0, 0), EINVAL);
    let mut plain = Client::open(served.address, "disk", Style::Simple);
    assert_eq!(plain.error_of(command::BLOCK_STATUS, 0, 0, 512), EINVAL);
}

#[test]
fn zeros_travel_as_a_hole() {
    let served = Served::one(8);
    let mut client = Client::open(served.address, "disk", Style::Chunks);
    let request = client.request(command::READ, command_flag::DF, 0, 1 << 20);
    let reply = client.call(request, &[]);
    assert_eq!((reply.kind, reply.data.len()), (Some(chunk::OFFSET_HOLE), 1 << 20));
    assert_eq!(client.write(512, &[1; 512], 0), 0);
    let request = client.request(command::READ, 0, 0, 4096);
    assert_eq!(client.call(request, &[]).kind, Some(chunk::OFFSET_DATA));
}

#[test]
fn errors_are_those_of_the_protocol() {
    let served = Served::one(8);
    let lun = served.lun();
    for style in [Style::Simple, Style::Chunks] {
        let mut client = Client::open(served.address, "disk", style);
        assert_eq!(client.read(8 * MIB, 512), Err(EINVAL));
        assert_eq!(client.read(u64::MAX - 511, 512), Err(EINVAL));
        assert_eq!(client.read(100, 512), Err(EINVAL));
        assert_eq!(client.write(8 * MIB, &[0; 512], 0), ENOSPC);
        assert_eq!(client.error_of(command::WRITE_ZEROES, 0, 8 * MIB, 512), ENOSPC);
        assert_eq!(client.error_of(command::TRIM, 0, 8 * MIB, 512), EINVAL);
        let fast = command_flag::NO_HOLE | command_flag::FAST_ZERO;
        assert_eq!(client.error_of(command::WRITE_ZEROES, fast, 0, 512), ENOTSUP);
        assert_eq!(client.error_of(99, 0, 0, 0), EINVAL);
        assert_eq!(client.error_of(command::FLUSH, 1 << 9, 0, 0), EINVAL);
        assert_eq!(client.read(0, 33 << 20), Err(EINVAL));
        for (error, wire) in [
            (BlockError::NoSpace, ENOSPC),
            (BlockError::HeldByFile, EIO),
            (BlockError::Io("broken".into()), EIO),
            (BlockError::Gone, ESHUTDOWN),
        ] {
            lun.set_failing(Some(error));
            assert_eq!(client.write(0, &[1; 512], 0), wire);
            assert_eq!(client.write(0, &[1; 512], command_flag::FUA), wire);
            assert_eq!(client.error_of(command::FLUSH, 0, 0, 0), wire);
        }
        lun.set_failing(None);
        assert_eq!(client.read(0, 512).map(|data| data.len()), Ok(512));
    }
}

#[test]
fn a_lost_block_is_named() {
    let served = Served::one(8);
    served.lun().set_bad(MIB + 8192..MIB + 8193);
    let mut client = Client::open(served.address, "disk", Style::Chunks);
    for slow in [None, Some(Duration::from_millis(1))] {
        served.lun().set_blocking(slow);
        let request = client.request(command::READ, 0, MIB, 65536);
        let reply = client.call(request, &[]);
        assert_eq!((reply.error, reply.kind), (EIO, Some(chunk::ERROR_OFFSET)));
        assert_eq!(reply.data[reply.data.len() - 8..], (MIB + 8192).to_be_bytes());
        assert!(String::from_utf8_lossy(&reply.data).contains("unreadable data"));
    }
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let served = Served::one(8);
    served.lun().set_read_only(true);
    let mut client = Client::open(served.address, "disk", Style::Chunks);
    assert_ne!(client.flags & export_flag::READ_ONLY, 0);
    assert_eq!(client.write(0, &[1; 4096], 0), EPERM);
    assert_eq!(client.write(0, &vec![1; 1 << 20], 0), EPERM);
    assert_eq!(client.error_of(command::TRIM, 0, 0, 512), EPERM);
    assert_eq!(client.error_of(command::WRITE_ZEROES, 0, 0, 512), EPERM);
    assert_eq!(client.error_of(command::FLUSH, 0, 0, 0), 0);
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    served.lun().set_read_only(false);
    let mut writer = Client::open(served.address, "disk", Style::Chunks);
    served.lun().set_read_only(true);
    assert_eq!(writer.write(0, &[1; 4096], 0), EPERM);
}

#[test]
fn a_resize_is_seen_by_clients_that_are_connected() {
    let served = Served::one(8);
    let mut client = Client::open(served.address, "disk", Style::Chunks);
    served.lun().resize(4 * MIB);
    assert_eq!(client.read(4 * MIB, 512), Err(EINVAL));
    served.lun().resize(16 * MIB);
    assert_eq!(client.read(12 * MIB, 512), Ok(vec![0; 512]));
    assert_eq!(Client::open(served.address, "disk", Style::Chunks).size, 16 * MIB);
}

#[test]
fn slow_requests_run_beside_each_other() {
    let served = Served::one(8);
    served.lun().write(0, &[5; 65536], false).unwrap();
    served.lun().set_blocking(Some(Duration::from_millis(50)));
    let mut client = Client::open(served.address, "disk", Style::Chunks);
    let since = Instant::now();
    for index in 0..64 {
        let request = client.request(command::READ, 0, index % 16 * 4096, 4096);
        client.send(&request, &[]);
    }
    let mut cookies: Vec<u64> = Vec::new();
    for _ in 0..64 {
        let reply = client.receive(|_| 0);
        assert_eq!(reply.data, [5; 4096]);
        cookies.push(reply.cookie);
    }
    cookies.sort_unstable();
    assert!(cookies.into_iter().eq(1..=64));
    assert!(since.elapsed() < Duration::from_millis(1600), "one after the other would take 3.2 s");
}

/// More is asked for at once than the server holds unsent: it stops in between and goes on.
#[test]
fn a_burst_larger_than_every_buffer_is_answered_whole() {
    let served = Served::one(8);
    let data = Random(7).bytes(256 << 10);
    served.lun().write(0, &data, false).unwrap();
    for style in [Style::Simple, Style::Chunks] {
        let mut client = Client::open(served.address, "disk", style);
        let requests: Vec<u8> = (0..200)
            .flat_map(|_| client.request(command::READ, 0, 0, 256 << 10).encode())
            .collect();
        std::io::Write::write_all(&mut client.stream, &requests).unwrap();
        for index in 0..200 {
            if index % 40 == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(client.receive(|_| 256 << 10).data == data);
        }
    }
}

#[test]
fn sessions_are_listed_and_dropped_and_let_go_of_the_lun() {
    let served = Served::one(8);
    let idle = std::sync::Arc::strong_count(&served.luns[0]);
    let mut first = Client::open(served.address, "disk", Style::Chunks);
    let second = Client::open(served.address, "", Style::Simple);
    assert_eq!(first.write(0, &[1; 8192], 0), 0);
    assert_eq!(first.read(0, 4096).map(|data| data.len()), Ok(4096));
    eventually("the figures", || {
        let listed = served.server.sessions();
        listed.len() == 2
            && listed.iter().all(|session| session.export == "disk")
            && (listed[0].operations, listed[0].written_bytes) == (2, 8192)
            && listed[0].read_bytes == 4096
            && listed[0].peer.is_local()
    });
    let id = served.server.sessions()[0].id;
    assert!(served.server.drop_session(id));
    eventually("one session", || served.server.sessions().len() == 1);
    assert!(!served.server.drop_session(id));
    second.disconnect();
    eventually("no session", || served.server.sessions().is_empty());
    eventually("the LUN is let go", || std::sync::Arc::strong_count(&served.luns[0]) == idle);
}

#[test]
fn a_shutdown_answers_what_was_begun() {
    let served = Served::one(8);
    served.lun().set_blocking(Some(Duration::from_millis(200)));
    let mut client = Client::open(served.address, "disk", Style::Chunks);
    let request = client.request(command::WRITE, 0, 0, 512);
    client.send(&request, &[7; 512]);
    eventually("the request is taken", || {
        served.server.sessions().first().is_some_and(|session| session.operations == 1)
    });
    assert!(served.shutdown());
    assert_eq!(client.receive(|_| 0).error, 0);
    assert!(std::net::TcpStream::connect(served.address).is_err());
    assert!(!served.socket.exists());
    served.lun().set_blocking(None);
    let mut out = [0; 512];
    served.lun().read(0, &mut out).unwrap();
    assert_eq!(out, [7; 512]);
}

#[test]
fn leaving_with_requests_under_way_loses_none() {
    let served = Served::one(8);
    served.lun().set_blocking(Some(Duration::from_millis(30)));
    let mut client = Client::open(served.address, "disk", Style::Simple);
    for index in 0..20u64 {
        let request = client.request(command::WRITE, 0, index * 512, 512);
        client.send(&request, &[9; 512]);
    }
    let request = client.request(command::DISCONNECT, 0, 0, 0);
    client.send(&request, &[]);
    for _ in 0..20 {
        assert_eq!(client.receive(|_| 0).error, 0);
    }
    served.lun().set_blocking(None);
    let mut out = [0; 10240];
    served.lun().read(0, &mut out).unwrap();
    assert_eq!(out, [9; 10240]);
}

#[test]
fn a_write_reaches_the_disk_as_one() {
    let served = Served::one(64);
    let data = Random(3).bytes(32 << 20);
    for style in [Style::Simple, Style::Chunks] {
        for (slow, length) in [(None, 2 << 20), (Some(Duration::ZERO), 2 << 20), (None, 32 << 20)] {
            served.lun().set_blocking(slow);
            let mut client = Client::open(served.address, "disk", style);
            let before = served.lun().write_count();
            assert_eq!(client.write(512, &data[..length], 0), 0);
            assert_eq!(served.lun().write_count(), before + 1, "{length} bytes");
        }
    }
    let mut out = vec![0; 32 << 20];
    served.lun().read(512, &mut out).unwrap();
    assert!(out == data);
}
