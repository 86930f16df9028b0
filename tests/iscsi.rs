//! The iSCSI door over TCP: with libiscsi's tools as they are, and with an initiator that
//! misbehaves.

#[path = "iscsi/bounds.rs"]
mod bounds;
#[path = "iscsi/initiator.rs"]
mod initiator;
#[path = "iscsi/sessions.rs"]
mod sessions;

use std::process::Command;
use std::time::{Duration, Instant};

use initiator::{cdb10, read10, write10, Door, Initiator, Random, TARGET};
use lunfs::iscsi::connection::Connection;
use lunfs::iscsi::pdu::{digest, Header};
use lunfs::iscsi::Options;
use lunfs::lun::BlockError;

const MIB: u64 = 1 << 20;

/// Output of a libiscsi tool; `None` where it is not installed.
fn tool(name: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new("timeout").arg("30").arg(name).args(arguments).output().ok()?;
    if output.status.code() == Some(127) {
        eprintln!("{name} is not installed (Debian: libiscsi-bin): not tried");
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{name} {arguments:?}: {text}");
    Some(text)
}

#[test]
fn libiscsi_finds_and_describes_the_disk() {
    let door = Door::open(64 * MIB);
    if let Some(text) = tool("iscsi-inq", &[&door.url()]) {
        assert!(text.contains("DIRECT_ACCESS"), "{text}");
    }
    if let Some(text) = tool("iscsi-readcapacity16", &[&door.url()]) {
        assert!(text.contains("Total size:67108864"), "{text}");
    }
    if let Some(text) = tool("iscsi-ls", &["-s", &format!("iscsi://{}", door.address)]) {
        assert!(text.contains(TARGET), "{text}");
    }
    for page in ["0", "128", "131", "176", "177", "178"] {
        tool("iscsi-inq", &["-e", "1", "-c", page, &door.url()]);
    }
}

#[test]
fn libiscsi_reads_with_many_in_flight() {
    let door = Door::open(64 * MIB);
    let url = door.url();
    let arguments = ["-m", "32", "-b", "8", "-r", "-t", "1", &url];
    let Some(text) = tool("iscsi-perf", &arguments) else {
        return;
    };
    assert!(text.contains("iops average"), "{text}");
}

#[test]
fn a_long_list_of_targets_comes_in_parts() {
    let door = Door::with(MIB, 1000, Options::default());
    if let Some(text) = tool("iscsi-ls", &[&format!("iscsi://{}", door.address)]) {
        assert_eq!(text.lines().filter(|line| line.contains("Portal:")).count(), 1001);
    }
}

#[test]
fn written_data_is_read_back_by_every_way_it_can_come() {
    let door = Door::open(64 * MIB);
    let keys = "InitialR2T=No\0ImmediateData=Yes\0FirstBurstLength=65536\0MaxBurstLength=262144\0\
                MaxRecvDataSegmentLength=65536\0HeaderDigest=CRC32C\0DataDigest=CRC32C\0";
    let mut random = Random(7);
    let data = random.bytes(1 << 20);
    let mut one = door.connect();
    one.login("iqn.2026-11.local.test:one", keys).unwrap();
    one.settle();
    // immediate data, then solicited
    let tag = one.command(&write10(0, data.len()), 0xA0, data.len() as u32, &data[..4096]);
    assert_eq!(one.finish(tag, &data).unwrap().status, 0);
    // immediate, unsolicited, then solicited
    let tag = one.command(&write10(4096, data.len()), 0x20, data.len() as u32, &data[..8192]);
    one.data_out(tag, 0xFFFF_FFFF, &data[8192..65536], 8192);
    assert_eq!(one.finish(tag, &data).unwrap().status, 0);
    // solicited only, in PDUs of a size that is no multiple of anything
    one.segment = 100_001;
    assert_eq!(one.write(8192, &data).status, 0);
    for lba in [0, 4096, 8192] {
        let read = one.read(lba, 2048);
        assert_eq!((read.status, read.residual), (0, 0));
        assert!(read.data == data, "at {lba}");
    }
    let session = &door.service.sessions()[0];
    assert_eq!((session.read_bytes, session.written_bytes), (3 * MIB, 3 * MIB));
    assert_eq!(session.target, TARGET);
}

#[test]
fn a_write_reaches_the_disk_as_one_however_it_comes() {
    let door = Door::open(64 * MIB);
    let keys = "InitialR2T=No\0ImmediateData=Yes\0FirstBurstLength=65536\0MaxBurstLength=131072\0\
                MaxOutstandingR2T=4\0";
    let mut one = door.connect();
    one.login("iqn.2026-11.local.test:one", keys).unwrap();
    one.settle();
    let data = Random(9).bytes(2 << 20);
    let length = data.len() as u32;
    let mut atomic = [0x9C, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0];
    atomic[12..14].copy_from_slice(&((data.len() / 512) as u16).to_be_bytes());
    for slow in [None, Some(Duration::ZERO)] {
        door.disk.set_blocking(slow);
        for cdb in [&write10(1, data.len())[..], &atomic] {
            let before = door.disk.write_count();
            // immediate, unsolicited, then sixteen R2Ts
            let tag = one.command(cdb, 0x20, length, &data[..8192]);
            one.data_out(tag, 0xFFFF_FFFF, &data[8192..65536], 8192);
            assert_eq!(one.finish(tag, &data).unwrap().status, 0);
            assert_eq!(door.disk.write_count(), before + 1);
        }
    }
    assert!(one.read(3, 4096).data == data);
}

#[test]
fn a_disk_that_has_to_wait_answers_all_the_same() {
    let door = Door::open(8 * MIB);
    door.disk.set_blocking(Some(Duration::from_millis(20)));
    let mut one = door.login();
    one.settle();
    let data = Random(1).bytes(65536);
    assert_eq!(one.write(16, &data).status, 0);
    assert!(one.read(16, 128).data == data);
    // 32 reads at once take the time of a few
    let began = Instant::now();
    for _ in 0..32 {
        one.command(&read10(16, 8), 0xC0, 4096, &[]);
    }
    for _ in 0..32 {
        let (header, segment) = one.receive().unwrap();
        assert_eq!((header.opcode(), segment == data[..4096]), (0x25, true));
    }
    assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
}

#[test]
fn errors_of_the_disk_become_their_sense() {
    let door = Door::open(8 * MIB);
    let mut one = door.login();
    one.settle();
    let block = [7u8; 512];
    assert_eq!(one.read(16384, 1).code(), (5, 0x21, 0));
    door.disk.set_space(0);
    assert_eq!(one.write(0, &block).code(), (7, 0x27, 7));
    door.disk.set_space(u64::MAX);
    assert_eq!(one.write(0, &block).status, 0);
    door.disk.set_bad(0..4096);
    let read = one.read(0, 8);
    assert_eq!(read.code(), (3, 0x11, 0));
    assert_eq!((read.sense[0], &read.sense[3..7]), (0xF0, &[0, 0, 0, 0][..]));
    assert_eq!((read.data.len(), read.residual), (0, -4096), "nothing was moved");
    // a block of which a part is kept: what is not written is not said to be
    let write = one.write(1, &block);
    assert_eq!((write.code(), write.sense[0]), ((3, 0x0C, 0), 0x70));
    door.disk.set_failing(Some(BlockError::HeldByFile));
    assert_eq!(one.write(8, &block).code(), (2, 0x04, 7));
    door.disk.set_failing(None);
    door.disk.set_read_only(true);
    assert_eq!(one.test_unit_ready().code(), (6, 0x2A, 1));
    assert_eq!(one.write(8, &block).code(), (7, 0x27, 0));
}

#[test]
fn a_resize_is_told_once_to_every_session() {
    let door = Door::open(8 * MIB);
    let (mut one, mut two) = (door.login(), door.connect());
    two.login("iqn.2026-11.local.test:two", "").unwrap();
    for session in [&mut one, &mut two] {
        assert_eq!(session.test_unit_ready().code(), (6, 0x29, 0));
        session.settle();
    }
    door.disk.resize(16 * MIB);
    for session in [&mut one, &mut two] {
        assert_eq!(session.test_unit_ready().code(), (6, 0x2A, 9));
        assert_eq!(session.test_unit_ready().status, 0);
        let tag = session.command(&cdb10(0x25, 0, 0), 0xC0, 8, &[]);
        let capacity = session.finish(tag, &[]).unwrap();
        assert_eq!(capacity.data[..4], 32767u32.to_be_bytes());
    }
}

#[test]
fn a_session_is_reinstated_dropped_and_listed() {
    let door = Door::open(MIB);
    let mut old = door.login();
    let mut new = door.login();
    assert!(old.is_closed());
    assert_eq!(door.service.sessions().len(), 1);
    new.settle();
    let mut other = door.connect();
    other.isid = 2;
    other.login("iqn.2026-11.local.test:one", "").unwrap();
    let sessions = door.service.sessions();
    assert_eq!(sessions.len(), 2);
    assert!(door.service.drop_session(sessions[0].id));
    assert!(new.is_closed());
    assert!(!door.service.drop_session(4711));
    other.settle();
}

#[test]
fn logins_that_cannot_be_are_told_why() {
    let door = Door::open(MIB);
    let refused = |text: &str| door.connect().login_text(text).unwrap_err();
    let name = "InitiatorName=iqn.a\0";
    assert_eq!(refused(&format!("{name}TargetName=iqn.none\0")), 0x0203);
    assert_eq!(refused(&format!("InitiatorName=forbidden\0TargetName={TARGET}\0")), 0x0202);
    assert_eq!(refused(name), 0x0207);
    assert_eq!(refused(&format!("{name}SessionType=Odd\0")), 0x0209);
    assert!(door.service.sessions().is_empty());
}

#[test]
fn a_half_open_login_is_closed_in_time() {
    let login_timeout = Duration::from_millis(300);
    let door = Door::with(MIB, 0, Options { login_timeout, ..Options::default() });
    let mut silent = door.connect();
    let began = Instant::now();
    assert!(silent.is_closed());
    assert!(began.elapsed() >= login_timeout && began.elapsed() < Duration::from_secs(5));
    let mut session = door.login();
    std::thread::sleep(login_timeout * 2);
    session.settle();
}

#[test]
fn absurd_lengths_end_only_the_connection_that_sent_them() {
    let door = Door::open(MIB);
    let mut good = door.connect();
    good.login("iqn.2026-11.local.test:good", "").unwrap();
    let mut bad = door.connect();
    let mut header = Header::reply(0x43, 0x87, 0);
    header.set_data_bytes(0x00FF_FFFF);
    std::io::Write::write_all(&mut bad.stream, &header.0).unwrap();
    assert!(bad.is_closed());
    let mut bad = door.login();
    let mut header = Header::reply(0x00, 0x80, 5);
    header.set_data_bytes(0x00FF_FFFF);
    std::io::Write::write_all(&mut bad.stream, &header.0).unwrap();
    assert_eq!(bad.receive().unwrap().0.opcode(), 0x3F);
    assert!(bad.is_closed());
    good.settle();
}

#[test]
fn what_is_unknown_is_rejected_and_the_session_goes_on() {
    let door = Door::open(MIB);
    let mut one = door.login();
    one.send(Header::reply(0x5C, 0x80, 9), &[]);
    let (header, data) = one.receive().unwrap();
    assert_eq!((header.opcode(), header.0[2], data.len()), (0x3F, 0x05, 48));
    one.send(Header::reply(0x50, 0x80, 9), &[]); // SNACK
    assert_eq!(one.receive().unwrap().0 .0[2], 0x03);
    one.settle();
    let tag = one.command(&[0xC0; 10], 0x80, 0, &[]);
    assert_eq!(one.finish(tag, &[]).unwrap().code(), (5, 0x20, 0));
}

#[test]
fn commands_outside_the_window_are_ignored() {
    let door = Door::open(MIB);
    let mut one = door.login();
    one.settle();
    let right = one.cmd_sn;
    for wrong in [right.wrapping_sub(1), right + 5000] {
        one.cmd_sn = wrong;
        one.command(&[0; 6], 0x80, 0, &[]);
    }
    one.cmd_sn = right;
    assert_eq!(one.test_unit_ready().status, 0);
}

#[test]
fn a_ping_is_echoed_with_its_data() {
    let door = Door::open(MIB);
    let mut one = door.login();
    one.settle();
    let data = Random(3).bytes(5001);
    let mut header = Header::reply(0x40, 0x80, 77);
    header.set_word(20, 0xFFFF_FFFF);
    header.set_word(24, one.cmd_sn);
    one.send(header, &data);
    let (header, echo) = one.receive().unwrap();
    assert_eq!((header.opcode(), header.tag()), (0x20, 77));
    assert!(echo == data);
}

#[test]
fn lost_data_ends_the_command_and_not_the_session() {
    let door = Door::open(MIB);
    let mut one = door.login();
    one.settle();
    let tag = one.command(&write10(0, 512), 0xA0, 512, &[]);
    let (r2t, _) = one.receive().unwrap();
    let mut header = Header::reply(0x05, 0x80, tag);
    header.set_word(20, r2t.transfer_tag());
    header.set_word(36, 27); // DataSN
    one.send(header, &[1; 512]);
    assert_eq!(one.finish(tag, &[]).unwrap().code(), (0xB, 0x4B, 0));
    assert_eq!(one.read(0, 1).data, [0; 512]);
    // data that nobody asked for is a protocol error
    let tag = one.command(&write10(0, 512), 0xA0, 512, &[]);
    one.receive().unwrap();
    one.data_out(tag, 0x1234, &[1; 512], 0);
    assert_eq!(one.receive().unwrap().0.opcode(), 0x3F);
    assert!(one.is_closed());
}

#[test]
fn a_short_expected_length_is_a_residual() {
    let door = Door::open(MIB);
    let mut one = door.login();
    one.settle();
    let tag = one.command(&read10(0, 2), 0xC0, 512, &[]);
    let read = one.finish(tag, &[]).unwrap();
    assert_eq!((read.status, read.data.len(), read.residual), (0, 512, 512));
    let tag = one.command(&read10(0, 1), 0xC0, 10000, &[]);
    let read = one.finish(tag, &[]).unwrap();
    assert_eq!((read.status, read.data.len(), read.residual), (0, 512, -9488));
    let tag = one.command(&read10(0, 1), 0x80, 0, &[]);
    assert_eq!(one.finish(tag, &[]).unwrap().residual, 512);
}

/// As `manage`, past answers to commands.
///
/// Asks for task management, and reads up to its answer: the answer, and the tags of what came
/// before it.
fn manage_until(one: &mut Initiator, function: u8, task: u32) -> (u8, Vec<u32>) {
    let mut before = Vec::new();
    one.tag += 1;
    let mut header = Header::reply(0x42, 0x80 | function, one.tag);
    header.set_word(20, task);
    header.set_word(24, one.cmd_sn);
    one.send(header, &[]);
    loop {
        let (header, _) = one.receive().unwrap();
        if header.opcode() == 0x22 {
            return (header.0[2], before);
        }
        before.push(header.tag());
    }
}

fn manage(one: &mut Initiator, function: u8, task: u32) -> u8 {
    one.tag += 1;
    let mut header = Header::reply(0x42, 0x80 | function, one.tag);
    header.set_word(20, task);
    header.set_word(24, one.cmd_sn);
    one.send(header, &[]);
    let (header, _) = one.receive().unwrap();
    assert_eq!((header.opcode(), header.tag()), (0x22, one.tag));
    header.0[2]
}

#[test]
fn tasks_are_aborted_and_units_reset() {
    let door = Door::open(MIB);
    let mut one = door.login();
    let mut two = door.connect();
    two.login("iqn.2026-11.local.test:two", "").unwrap();
    one.settle();
    two.settle();
    assert_eq!(manage(&mut one, 1, 4711), 1, "no such task");
    let tag = one.command(&write10(0, 512), 0xA0, 512, &[]);
    one.receive().unwrap();
    assert_eq!(manage(&mut one, 1, tag), 0);
    // the data that was under way is dropped
    one.data_out(tag, 1, &[9; 512], 0);
    assert_eq!(one.test_unit_ready().status, 0);
    door.disk.set_blocking(Some(Duration::from_millis(200)));
    let tag = one.command(&read10(0, 8), 0xC0, 4096, &[]);
    assert_eq!(manage(&mut one, 1, tag), 0, "answered when the read ended, which is not");
    door.disk.set_blocking(None);
    let tag = two.command(&write10(0, 512), 0xA0, 512, &[]);
    two.receive().unwrap();
    assert_eq!(manage(&mut one, 5, 0xFFFF_FFFF), 0);
    for session in [&mut one, &mut two] {
        assert_eq!(session.test_unit_ready().code(), (6, 0x29, 3), "after {tag}");
        assert_eq!(session.test_unit_ready().status, 0);
    }
    assert_eq!(manage(&mut one, 8, 1), 4);
}

#[test]
fn a_client_that_does_not_read_harms_only_itself() {
    let door = Door::open(64 * MIB);
    let mut greedy = door.login();
    greedy.settle();
    greedy.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    for _ in 0..120 {
        greedy.command(&read10(0, 16384), 0xC0, 8 << 20, &[]); // 960 MiB of answers
    }
    let mut good = door.connect();
    good.login("iqn.2026-11.local.test:good", "").unwrap();
    good.settle();
    assert_eq!(good.read(0, 128).status, 0);
    let read = door.service.sessions()[0].read_bytes;
    assert!(read <= 32 * MIB, "{read} bytes were read for nobody");
}

#[test]
fn more_connections_than_allowed_are_closed() {
    let door = Door::with(MIB, 0, Options { max_connections: 2, ..Options::default() });
    let (_one, _two) = (door.connect(), door.connect());
    std::thread::sleep(Duration::from_millis(100));
    assert!(door.connect().is_closed());
}

#[test]
fn fuzz_noise_never_brings_the_door_down() {
    let login_timeout = Duration::from_millis(300);
    let door = Door::with(MIB, 0, Options { login_timeout, ..Options::default() });
    let first = seed();
    for seed in first..first + 300 {
        let mut random = Random(seed);
        let mut noisy = door.connect();
        noisy.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        noisy.stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        if seed % 4 != 0 {
            noisy.stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            noisy.login("iqn.2026-11.local.test:noise", "InitialR2T=No\0").unwrap();
            noisy.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        }
        for _ in 0..20 {
            let mut header = Header(random.bytes(48).try_into().unwrap());
            header.0[0] = (random.next() % 8) as u8 | if random.next() % 2 == 0 { 0x40 } else { 0 };
            header.0[4] = if random.next() % 8 == 0 { header.0[4] } else { 0 };
            header.0[8..16].fill(0);
            header.set_word(16, (random.next() % 4) as u32);
            header.set_word(20, (random.next() % 8192) as u32);
            header.set_word(24, noisy.cmd_sn);
            header.0[32] =
                [0x28, 0x2A, 0x12, 0x5F, 0x42, 0x93, 0x89, 0xA3][random.next() as usize % 8];
            noisy.cmd_sn += u32::from(header.0[0] & 0x40 == 0 && header.opcode() != 5);
            let length = (random.next() % 3000) as usize;
            noisy.send(header, &random.bytes(length));
        }
    }
    let mut good = door.login();
    good.settle();
    assert_eq!(good.read(0, 8).status, 0);
}

/// The first seed of this run: `LUNFS_SEED`, or a fixed one.
fn seed() -> u64 {
    let seed = std::env::var("LUNFS_SEED").ok().and_then(|text| text.parse::<u32>().ok());
    let first = u64::from(seed.unwrap_or(0)) << 20;
    println!("LUNFS_SEED={}", first >> 20);
    first
}

/// Login text in any state of damage: answered, refused or dropped, never a panic.
#[test]
fn fuzz_login_text() {
    let door = Door::open(MIB);
    let first = seed();
    let (mut logged_in, mut ended) = (0, 0);
    for seed in first..first + 3000 {
        let mut random = Random(seed);
        let peer = "127.0.0.1:1".parse().unwrap();
        let end = tokio_util::sync::CancellationToken::new();
        let portals = vec![("127.0.0.1:3260".to_owned(), 1)];
        let mut core = Connection::new(door.service.clone(), portals, peer, end);
        for _ in 0..1 + random.next() % 3 {
            let mut text = login_text(&mut random);
            for _ in 0..random.next() % 3 {
                let at = random.next() as usize % text.len();
                text[at] = [0, b'=', b',', 0xFF, b'9'][random.next() as usize % 5];
            }
            let flags = [0x87, 0x87, 0x81, 0x04, 0x40, random.next() as u8];
            let flags = flags[random.next() as usize % flags.len()];
            let mut login = Header::reply(0x43, flags, 0);
            login.0[8] = [0x80, 0, 0x40, random.next() as u8][random.next() as usize % 4];
            feed(&mut core, &pdu(login, &text, false), &mut random);
        }
        logged_in += u32::from(core.is_logged_in());
        ended += u32::from(core.is_closing());
    }
    assert!(logged_in > 100 && ended > 100, "{logged_in} logged in, {ended} were ended");
}

/// Keys as an initiator sends them, with values that fit and that do not.
fn login_text(random: &mut Random) -> Vec<u8> {
    let mut text = format!("InitiatorName=iqn.x\0TargetName={TARGET}\0").into_bytes();
    let keys = [
        "SessionType",
        "AuthMethod",
        "HeaderDigest",
        "DataDigest",
        "MaxConnections",
        "InitialR2T",
        "ImmediateData",
        "MaxRecvDataSegmentLength",
        "MaxBurstLength",
        "FirstBurstLength",
        "DefaultTime2Wait",
        "MaxOutstandingR2T",
        "ErrorRecoveryLevel",
        "X-com.example",
        "CHAP_A",
    ];
    let values = [
        "Yes",
        "No",
        "None",
        "CRC32C,None",
        "0",
        "1",
        "16777215",
        "99999999999999999999",
        "-1",
        "0x1000",
        "Discovery",
        "Normal",
        "CHAP",
        "",
        "512",
    ];
    for _ in 0..random.next() % 8 {
        let key = keys[random.next() as usize % keys.len()];
        let value = values[random.next() as usize % values.len()];
        text.extend(format!("{key}={value}\0").into_bytes());
    }
    if random.next() % 16 == 0 {
        text.extend(vec![b'k'; random.next() as usize % 9000]);
    }
    text
}

/// The protocol core alone, without sockets: a panic anywhere fails the test. Environment:
/// `LUNFS_FUZZ_ROUNDS` for more seeds.
#[test]
fn fuzz_the_core_takes_any_bytes() {
    let door = Door::open(MIB);
    let rounds = std::env::var("LUNFS_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok());
    let first = seed();
    for seed in first..first + rounds.unwrap_or(2000) {
        let mut random = Random(seed);
        let peer = "127.0.0.1:1".parse().unwrap();
        let end = tokio_util::sync::CancellationToken::new();
        let portals = vec![("127.0.0.1:3260".to_owned(), 1)];
        let mut core = Connection::new(door.service.clone(), portals, peer, end);
        let digests = if seed % 3 == 0 { "HeaderDigest=CRC32C\0DataDigest=CRC32C\0" } else { "" };
        let keys = format!("InitiatorName=a\0TargetName={TARGET}\0InitialR2T=No\0{digests}");
        let mut login = Header::reply(0x43, 0x87, 0);
        login.0[8] = 0x80;
        feed(&mut core, &pdu(login, keys.as_bytes(), false), &mut random);
        assert!(core.is_logged_in());
        for sn in 0..40u32 {
            let header = random_header(&mut random, sn);
            let length = (random.next() % 5) * (random.next() % 9000);
            let data = random.bytes(length as usize);
            feed(&mut core, &pdu(header, &data, !digests.is_empty()), &mut random);
        }
        assert!(core.outgoing().is_empty());
    }
}

fn random_header(random: &mut Random, sn: u32) -> Header {
    let mut header = Header(random.bytes(48).try_into().unwrap());
    let opcodes = [0, 1, 1, 1, 1, 2, 4, 5, 5, 5, 6, 0x10];
    header.0[0] = opcodes[random.next() as usize % opcodes.len()] | 0x40;
    header.0[4] = 0;
    header.0[8..16].fill(0);
    header.set_word(16, (random.next() % 6) as u32);
    if header.opcode() == 5 {
        header.set_word(20, [0xFFFF_FFFF, 1, 2, 3][random.next() as usize % 4]);
        header.set_word(36, (random.next() % 2) as u32);
        header.set_word(40, (random.next() % 2) as u32 * 8192);
    } else {
        header.set_word(20, (random.next() % 65536) as u32);
        header.0[32..48].fill(0);
        let cdbs = [0x28, 0x2A, 0x12, 0x5F, 0x42, 0x93, 0x89, 0xA3, 0x8A, 0x2E, 0x15, 0x8B];
        header.0[32] = cdbs[random.next() as usize % cdbs.len()];
        header.0[40] = (random.next() % 24) as u8;
        header.0[45] = (random.next() % 24) as u8;
    }
    header.set_word(24, sn);
    header
}

fn pdu(mut header: Header, data: &[u8], digests: bool) -> Vec<u8> {
    header.set_data_bytes(data.len());
    let mut bytes = header.0.to_vec();
    if digests {
        bytes.extend_from_slice(&digest(&[&header.0]));
    }
    let start = bytes.len();
    bytes.extend_from_slice(data);
    bytes.resize(start + data.len().next_multiple_of(4), 0);
    if digests && !data.is_empty() {
        let sum = digest(&[&bytes[start..]]);
        bytes.extend_from_slice(&sum);
    }
    bytes
}

/// Gives the core its bytes in random pieces and does all it asks for.
fn feed(core: &mut Connection, mut bytes: &[u8], random: &mut Random) {
    while !bytes.is_empty() && !core.is_closing() {
        let space = core.space();
        assert!(!space.is_empty());
        let piece = bytes.len().min(space.len()).min(1 + random.next() as usize % 6000);
        space[..piece].copy_from_slice(&bytes[..piece]);
        core.received(piece);
        bytes = &bytes[piece..];
        loop {
            core.process();
            let queued = core.outgoing().queued_bytes();
            core.outgoing().advance(queued);
            let Some(job) = core.next_job() else { break };
            core.completed(job.run());
        }
    }
    let queued = core.outgoing().queued_bytes();
    core.outgoing().advance(queued);
}
