//! What one client may take: memory, places, turns.

use std::time::Duration;

use lunfs::access::Limits;
use lunfs::iscsi::pdu::{Header, NO_TAG};
use lunfs::iscsi::Options;

use super::initiator::{read10, write10, Door, Initiator};
use super::MIB;

const NAME: &str = "iqn.2026-11.local.test:one";
const TASK_SET_FULL: u8 = 0x28;
/// Long PDUs and bursts.
const KEYS: &str = "MaxRecvDataSegmentLength=262144\0MaxBurstLength=16776704\0";

fn limited(memory_bytes: u64) -> Door {
    let limits = Limits { memory_bytes, ..Limits::default() };
    Door::with_limits(64 * MIB, 0, Options::default(), limits)
}

fn login(door: &Door, isid: u8) -> Initiator {
    let mut one = door.connect();
    (one.isid, one.segment) = (isid, 256 << 10);
    one.login(NAME, KEYS).unwrap();
    one.settle();
    one
}

/// The tag of the task that the next R2T is for.
fn r2t(one: &mut Initiator) -> (u32, Header) {
    let (header, _) = one.receive().unwrap();
    assert_eq!(header.opcode(), 0x31);
    (header.tag(), header)
}

#[test]
fn the_sessions_of_an_initiator_share_its_memory() {
    let door = limited(16 * MIB);
    let (mut one, mut two) = (login(&door, 1), login(&door, 2));
    let data = vec![7; 12 * MIB as usize];
    let (cdb, length) = (write10(0, data.len()), data.len() as u32);
    let first = one.command(&cdb, 0xA0, length, &[]);
    let (tag, asked) = r2t(&mut one);
    assert_eq!(tag, first);
    let second = two.command(&cdb, 0xA0, length, &[]);
    assert_eq!(two.finish(second, &data).unwrap().status, TASK_SET_FULL);
    let read = two.read(0, 16384);
    assert_eq!(read.status, TASK_SET_FULL);
    let (at, bytes) = (asked.word(40) as usize, asked.word(44) as usize);
    one.data_out(first, asked.transfer_tag(), &data[at..at + bytes], at);
    assert_eq!(one.finish(first, &data).unwrap().status, 0);
    let second = two.command(&cdb, 0xA0, length, &[]);
    assert_eq!(two.finish(second, &data).unwrap().status, 0);
    assert_eq!(two.read(0, 16384).status, 0);
}

#[test]
fn reads_that_waited_for_an_ordered_command_begin_as_their_answers_leave() {
    let door = limited(32 * MIB);
    let mut one = login(&door, 1);
    let ordered = one.command(&write10(0, 512), 0xA2, 512, &[]);
    let (_, asked) = r2t(&mut one);
    let reads: Vec<u32> =
        (0..30).map(|_| one.command(&read10(0, 8192), 0xC1, 4 << 20, &[])).collect();
    one.data_out(ordered, asked.transfer_tag(), &[7; 512], 0);
    assert_eq!(one.finish(ordered, &[]).unwrap().status, 0);
    for tag in reads {
        let read = one.finish(tag, &[]).unwrap();
        assert_eq!((read.status, read.data.len()), (0, 4 << 20));
    }
}

#[test]
fn writes_are_asked_for_their_data_in_their_order() {
    let door = Door::open(64 * MIB);
    let mut one = login(&door, 1);
    let long = vec![7; 30 * MIB as usize];
    let write = |one: &mut Initiator, bytes: usize, attribute: u8| {
        one.command(&write10(0, bytes), 0xA0 | attribute, bytes as u32, &[])
    };
    let first = write(&mut one, long.len(), 1);
    let (_, asked) = r2t(&mut one);
    let ordered = write(&mut one, 16 << 20, 2);
    let small = write(&mut one, 1 << 20, 1);
    let bytes = asked.word(44) as usize;
    one.data_out(first, asked.transfer_tag(), &long[..bytes], 0);
    let (tag, asked) = r2t(&mut one);
    assert_eq!(tag, first, "one behind the ORDERED one took of the budget");
    one.data_out(first, asked.transfer_tag(), &long[bytes..], bytes);
    let mut open = vec![first, ordered, small];
    while !open.is_empty() {
        let (header, _) = one.receive().unwrap();
        match header.opcode() {
            0x31 => {
                let (at, bytes) = (header.word(40) as usize, header.word(44) as usize);
                let (tag, transfer) = (header.tag(), header.transfer_tag());
                one.data_out(tag, transfer, &long[at..at + bytes], at);
            }
            _ => assert_eq!((header.tag(), header.0[3]), (open.remove(0), 0)),
        }
    }
}

#[test]
fn discovery_sessions_keep_their_place_among_the_half_open() {
    let options = Options { half_open_per_source: 3, ..Options::default() };
    let door = Door::with(MIB, 0, options);
    let text = format!("InitiatorName={NAME}\0SessionType=Discovery\0");
    let held: Vec<Initiator> = (0..3)
        .map(|_| {
            let mut one = door.connect();
            one.login_text(&text).unwrap();
            one
        })
        .collect();
    assert!(door.connect().is_closed());
    drop(held);
    std::thread::sleep(Duration::from_millis(200));
    for isid in 0..4 {
        std::mem::forget(login(&door, isid)); // sessions are bounded by their initiator's limit
    }
}

#[test]
fn task_management_has_its_place_in_the_window() {
    let door = Door::open(MIB);
    let mut one = login(&door, 1);
    door.disk.set_blocking(Some(Duration::from_secs(3)));
    for lba in 0..3 {
        one.command(&write10(lba, 512), 0xA0, 512, &[7; 512]);
    }
    // one that has not begun when it is aborted is waited for by nobody
    std::thread::sleep(Duration::from_millis(300));
    // ABORT TASK SET, which waits for the writes; and a ping, whose answer tells MaxCmdSN
    for tag in 100..120 {
        for (opcode, flags) in [(0x02, 0x82), (0x40, 0x80)] {
            let mut header = Header::reply(opcode, flags, tag);
            header.set_word(20, NO_TAG);
            header.set_word(24, one.cmd_sn);
            one.cmd_sn += u32::from(opcode == 0x02);
            one.send(header, &[]);
        }
    }
    let answers = std::iter::from_fn(|| one.receive()).map(|answer| answer.0);
    let pings = answers.filter(|header| header.opcode() == 0x20).take(20);
    let told: Vec<u32> = pings.map(|ping| ping.word(32)).collect();
    assert_eq!(told, [told[0]; 20], "what waits takes its place");
    door.disk.set_blocking(None);
}
