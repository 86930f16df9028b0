//! The device server over a disk in memory, command by command.

use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use super::*;
use crate::lun::{BlockIo, MemoryLun, SanitizeState};

#[path = "tests_fence.rs"]
mod fence;
#[path = "tests_state.rs"]
mod state;

const BLOCK: usize = 512;

struct Bench {
    disk: Arc<MemoryLun>,
    unit: Arc<LogicalUnit>,
}

impl Bench {
    fn new() -> Bench {
        Bench::named("t")
    }

    fn named(name: &str) -> Bench {
        let disk = Arc::new(MemoryLun::new(name, 1 << 20, BLOCK as u32));
        Bench { disk, unit: LogicalUnit::new() }
    }

    /// A nexus that has heard of its power on.
    fn nexus(&self, initiator: &str) -> Nexus {
        let ports = PortNames {
            initiator: initiator.to_owned(),
            device: "iqn.d".to_owned(),
            port: "iqn.d,t,0x0001".to_owned(),
            relative_port: 1,
            port_count: 2,
            port_group: 1,
            protocol: 5,
        };
        let disk = Arc::clone(&self.disk) as Arc<dyn BlockIo>;
        let nexus = Nexus::new(Arc::clone(&self.unit), disk, ports);
        assert_eq!(code(&run(&nexus, &[0], &[])), (6, 0x29, 0));
        nexus
    }
}

/// Runs a command with its data-out; media data-in comes as the answer's data.
fn run(nexus: &Nexus, cdb: &[u8], out: &[u8]) -> Answer {
    let mut padded = [0; 16];
    padded[..cdb.len()].copy_from_slice(cdb);
    let mut task = match nexus.begin(0, &padded) {
        Plan::Done(answer) => return answer,
        Plan::Run(task) => task,
    };
    if task.takes_data() {
        if let Err(sense) = task.fit(out.len()) {
            return nexus.check(sense);
        }
    }
    let mut into = vec![0; task.data_in_bytes];
    let out = &out[..task.data_out_bytes];
    let mut answer = match nexus.try_run(&task, out, into.as_mut_slice().into()) {
        Some(answer) => answer,
        None => nexus.run(&task, out, into.as_mut_slice().into(), &AtomicBool::new(false)),
    };
    if answer.status == Status::Good && !into.is_empty() {
        answer.data = into;
    }
    answer
}

fn code(answer: &Answer) -> (u8, u8, u8) {
    match answer.sense.as_slice() {
        [0x72, key, asc, ascq, ..] => (*key, *asc, *ascq),
        [] => (0, 0, 0),
        sense => (sense[2], sense[12], sense[13]),
    }
}

fn write(nexus: &Nexus, lba: u8, byte: u8) -> Answer {
    run(nexus, &[0x2A, 0, 0, 0, 0, lba, 0, 0, 1, 0], &[byte; BLOCK])
}

fn read(nexus: &Nexus, lba: u8) -> Vec<u8> {
    run(nexus, &[0x28, 0, 0, 0, 0, lba, 0, 0, 1, 0], &[]).data
}

#[test]
fn every_listed_page_is_there_and_as_long_as_it_says() {
    let bench = Bench::new();
    let nexus = bench.nexus("a");
    let list = run(&nexus, &[0x12, 1, 0, 1, 0, 0], &[]).data;
    assert_eq!(usize::from(list[3]), list.len() - 4);
    for &page in &list[4..] {
        let data = run(&nexus, &[0x12, 1, page, 1, 0, 0], &[]).data;
        assert_eq!(data[1], page);
        let length = usize::from(u16::from_be_bytes([data[2], data[3]]));
        assert_eq!(data.len(), (4 + length).min(256), "{page:#x}");
    }
    let limits = run(&nexus, &[0x12, 1, 0xB0, 1, 0, 0], &[]).data;
    assert_eq!(limits.len(), 64);
    assert_eq!(code(&run(&nexus, &[0x12, 1, 0x90, 1, 0, 0], &[])), (5, 0x24, 0));
    assert_eq!(code(&run(&nexus, &[0x12, 0, 0x83, 1, 0, 0], &[])), (5, 0x24, 0));
    assert_eq!(run(&nexus, &[0x12, 0, 0, 0, 36, 0], &[]).data.len(), 36);
}

#[test]
fn another_unit_number_is_absent() {
    let bench = Bench::new();
    let nexus = bench.nexus("a");
    let mut inquiry = [0; 16];
    inquiry[0] = 0x12;
    inquiry[4] = 36;
    let Plan::Done(answer) = nexus.begin(1 << 48, &inquiry) else { panic!() };
    assert_eq!(answer.data[0], 0x7F);
    let Plan::Done(answer) = nexus.begin(1 << 48, &[0; 16]) else { panic!() };
    assert_eq!(code(&answer), (5, 0x25, 0));
}

#[test]
fn software_write_protect_holds_and_is_told_to_the_others() {
    let bench = Bench::new();
    let (one, two) = (bench.nexus("a"), bench.nexus("b"));
    let page = run(&one, &[0x1A, 8, 0x0A, 0, 255, 0], &[]).data;
    let mut list = page.clone();
    list[0] = 0;
    list[4 + 4] |= 0x08; // SWP
    let select = [0x15, 0x10, 0, 0, list.len() as u8, 0];
    assert_eq!(run(&one, &select, &list).status, Status::Good);
    assert_eq!(code(&write(&one, 0, 1)), (7, 0x27, 0));
    assert_eq!(code(&run(&two, &[0], &[])), (6, 0x2A, 1));
    assert_eq!(run(&one, &[0x1A, 8, 0x0A, 0, 255, 0], &[]).data[2] & 0x80, 0x80);
    list[4 + 3] = 0; // reordering is not changeable
    assert_eq!(code(&run(&one, &select, &list)), (5, 0x26, 0));
    bench.unit.reset();
    assert_eq!(code(&run(&one, &[0], &[])), (6, 0x29, 3));
    assert_eq!(write(&one, 0, 1).status, Status::Good);
}

#[test]
fn descriptor_sense_and_write_cache_follow_their_pages() {
    let bench = Bench::new();
    let nexus = bench.nexus("a");
    let select = |page: &[u8]| {
        let list = [&[0, 0, 0, 0], page].concat();
        run(&nexus, &[0x15, 0x10, 0, 0, list.len() as u8, 0], &list).status
    };
    assert_eq!(select(&[0x0A, 0x0A, 0x26, 0x10, 0, 0, 0, 0, 0, 0, 0, 0]), Status::Good);
    let answer = run(&nexus, &[0x28, 0, 0xFF, 0, 0, 0, 0, 0, 1, 0], &[]);
    assert_eq!((answer.sense[0], code(&answer)), (0x72, (5, 0x21, 0)));
    let flushed = bench.disk.flush_count();
    write(&nexus, 0, 1);
    assert_eq!(bench.disk.flush_count(), flushed);
    let mut caching = [0u8; 20];
    caching[..2].copy_from_slice(&[0x08, 0x12]);
    assert_eq!(select(&caching), Status::Good);
    write(&nexus, 0, 1);
    assert!(bench.disk.flush_count() > flushed, "with WCE = 0 every write is durable");
}

#[test]
fn unmapped_blocks_read_as_zeros_and_say_so() {
    let bench = Bench::new();
    let nexus = bench.nexus("a");
    for lba in 0..16 {
        write(&nexus, lba, 0xEE);
    }
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 0]); // 8..17
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0];
    assert_eq!(run(&nexus, &unmap, &list).status, Status::Good);
    assert_eq!((read(&nexus, 7)[0], read(&nexus, 8)[0], read(&nexus, 15)[0]), (0xEE, 0, 0));
    let mut status = [0u8; 16];
    status[..2].copy_from_slice(&[0x9E, 0x12]);
    status[13] = 40;
    let data = run(&nexus, &status, &[]).data;
    assert_eq!(data.len(), 40);
    assert_eq!((data[20], data[24 + 7], data[24 + 12]), (0, 8, 1));
    assert_eq!(run(&nexus, &[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]).status, Status::Good);
    list[8] = 0xFF;
    assert_eq!(code(&run(&nexus, &unmap, &list)), (5, 0x21, 0));
}

#[test]
fn write_same_writes_its_block_or_makes_holes() {
    let bench = Bench::new();
    let nexus = bench.nexus("a");
    let same = |flags, out: &[u8]| run(&nexus, &[0x41, flags, 0, 0, 0, 4, 0, 0, 3, 0], out);
    assert_eq!(same(0, &[0x33; BLOCK]).status, Status::Good);
    assert_eq!((read(&nexus, 3)[0], read(&nexus, 4)[0], read(&nexus, 6)[511]), (0, 0x33, 0x33));
    assert_eq!(same(8, &[0; BLOCK]).status, Status::Good);
    assert_eq!(read(&nexus, 4)[0], 0);
    assert_eq!(code(&same(0x10, &[0; BLOCK])), (5, 0x24, 0), "ANCHOR");
    assert_eq!(code(&same(0, &[0; 2 * BLOCK])), (5, 0x0E, 3));
    let mut no_data = [0u8; 16];
    no_data[..2].copy_from_slice(&[0x93, 0x01]);
    no_data[13] = 8;
    assert_eq!(run(&nexus, &no_data, &[]).status, Status::Good);
}

#[test]
fn comparing_commands_name_the_first_difference() {
    let bench = Bench::new();
    let nexus = bench.nexus("a");
    write(&nexus, 0, 5);
    let mut cdb = [0u8; 16];
    cdb[0] = 0x89;
    cdb[13] = 1;
    let mut expect = [5u8; 2 * BLOCK];
    expect[100] = 6;
    expect[BLOCK..].fill(9);
    let answer = run(&nexus, &cdb, &expect);
    assert_eq!((code(&answer), answer.sense[6]), ((0xE, 0x1D, 0), 100));
    expect[100] = 5;
    assert_eq!(run(&nexus, &cdb, &expect).status, Status::Good);
    assert_eq!(read(&nexus, 0), [9; BLOCK]);
    cdb[13] = 129;
    assert_eq!(code(&run(&nexus, &cdb, &expect)), (5, 0x24, 0));
    let verify = |check: u8, out: &[u8]| run(&nexus, &[0x2F, check, 0, 0, 0, 0, 0, 0, 1, 0], out);
    assert_eq!(verify(2, &[9; BLOCK]).status, Status::Good);
    assert_eq!(code(&verify(2, &[8; BLOCK])), (0xE, 0x1D, 0));
    assert_eq!(verify(0, &[]).status, Status::Good);
    assert_eq!(code(&verify(4, &[])), (5, 0x24, 0));
    bench.disk.set_bad(0..1);
    assert_eq!(code(&verify(0, &[])), (3, 0x11, 0));
}

#[test]
fn or_write_and_short_writes_merge() {
    let bench = Bench::new();
    let nexus = bench.nexus("a");
    write(&nexus, 0, 0x0F);
    let mut or = [0u8; 16];
    or[0] = 0x8B;
    or[13] = 1;
    assert_eq!(run(&nexus, &or, &[0xF0; BLOCK]).status, Status::Good);
    assert_eq!(read(&nexus, 0), [0xFF; BLOCK]);
    let two = [0x2A, 0, 0, 0, 0, 0, 0, 0, 2, 0];
    assert_eq!(run(&nexus, &two, &[0; 100]).status, Status::Good);
    let data = read(&nexus, 0);
    assert_eq!((data[99], data[100]), (0, 0xFF));
}

#[test]
fn an_ejected_medium_is_not_there_until_it_is_loaded() {
    let bench = Bench::new();
    bench.disk.change_geometry(|geometry| geometry.removable = true);
    let nexus = bench.nexus("a");
    let other = bench.nexus("b");
    run(&other, &[0x1E, 0, 0, 0, 1, 0], &[]);
    let eject = [0x1B, 0, 0, 0, 2, 0];
    assert_eq!(code(&run(&nexus, &eject, &[])), (5, 0x53, 2));
    drop(other);
    assert_eq!(run(&nexus, &eject, &[]).status, Status::Good);
    assert_eq!(code(&write(&nexus, 0, 1)), (2, 0x3A, 0));
    assert_eq!(run(&nexus, &[0x1B, 0, 0, 0, 3, 0], &[]).status, Status::Good);
    assert_eq!(write(&nexus, 0, 1).status, Status::Good);
}

#[test]
fn reservations_reach_the_command_path() {
    let bench = Bench::new();
    let (one, two) = (bench.nexus("a"), bench.nexus("b"));
    let out = |nexus: &Nexus, action, kind, key: u8, new: u8| {
        let mut list = [0u8; 24];
        (list[7], list[15]) = (key, new);
        run(nexus, &[0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0], &list).status
    };
    assert_eq!(out(&one, 0, 0, 0, 1), Status::Good);
    assert_eq!(out(&two, 0, 0, 0, 2), Status::Good);
    assert_eq!(out(&one, 1, 1, 1, 0), Status::Good);
    assert_eq!(write(&two, 0, 1).status, Status::ReservationConflict);
    assert_eq!(read(&two, 0).len(), BLOCK);
    assert_eq!(write(&one, 0, 1).status, Status::Good);
    assert_eq!(out(&two, 4, 1, 2, 1), Status::Good, "preempt");
    assert_eq!(code(&run(&one, &[0], &[])), (6, 0x2A, 5));
    assert_eq!(write(&one, 0, 1).status, Status::ReservationConflict);
    let keys = run(&one, &[0x5E, 0, 0, 0, 0, 0, 0, 0, 255, 0], &[]).data;
    assert_eq!((keys[7], keys[15]), (8, 2));
}

#[test]
fn a_resize_is_seen_with_the_next_command() {
    let bench = Bench::new();
    let nexus = bench.nexus("a");
    bench.disk.resize(2 << 20);
    assert_eq!(code(&write(&nexus, 0, 1)), (6, 0x2A, 9));
    assert_eq!(write(&nexus, 0, 1).status, Status::Good);
    let capacity = run(&nexus, &[0x25], &[]).data;
    assert_eq!(capacity, [0, 0, 0x0F, 0xFF, 0, 0, 2, 0]);
}

#[test]
fn a_copy_within_the_unit_may_overlap_itself() {
    let bench = Bench::new();
    let nexus = bench.nexus("a");
    for lba in 0..8 {
        write(&nexus, lba, lba + 1);
    }
    let naa = bench.disk.identity().naa;
    let mut list = vec![7, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
    list.extend_from_slice(&[0xE4, 0, 0, 0, 1, 3, 0, 16]);
    list.extend_from_slice(&naa);
    list.extend_from_slice(&[0, 0, 0, 0, 0, 0, 2, 0]);
    list.extend_from_slice(&[2, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 8]);
    list.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    let mut cdb = [0u8; 16];
    (cdb[0], cdb[13]) = (0x83, list.len() as u8);
    assert_eq!(run(&nexus, &cdb, &list).status, Status::Good);
    assert_eq!((read(&nexus, 1)[0], read(&nexus, 2)[0], read(&nexus, 9)[0]), (2, 1, 8));
    let mut status = [0u8; 16];
    (status[0], status[2], status[13]) = (0x84, 7, 64);
    assert_eq!(run(&nexus, &status, &[]).data, [0, 0, 0, 8, 1, 0, 1, 1, 0, 0, 0, 4]);
    status[2] = 8;
    assert_eq!(code(&run(&nexus, &status, &[])), (5, 0x24, 0));
    list[24] ^= 1;
    assert_eq!(code(&run(&nexus, &cdb, &list)), (0xA, 0x0D, 2));
}

/// WRITE ATOMIC(16): the CDB with its LBA, boundary and length.
fn atomic(lba: u64, boundary: u16, blocks: u16) -> Vec<u8> {
    let mut cdb = vec![0x9C, 0];
    cdb.extend(lba.to_be_bytes());
    cdb.extend(boundary.to_be_bytes());
    cdb.extend(blocks.to_be_bytes());
    cdb.extend([0, 0]);
    cdb
}

#[test]
fn atomic_writes_go_as_far_as_the_page_says_and_never_in_part() {
    let bench = Bench::new();
    bench.disk.resize(8 << 20);
    let nexus = bench.nexus("a");
    while run(&nexus, &[0], &[]).status != Status::Good {}
    let page = run(&nexus, &[0x12, 1, 0xB0, 0, 64, 0], &[]).data;
    let fields: Vec<u32> = (44..64)
        .step_by(4)
        .map(|at| u32::from_be_bytes(page[at..at + 4].try_into().unwrap()))
        .collect();
    assert_eq!(fields, [4096, 0, 0, 4096, 4096]);
    let data = vec![7; 4097 * BLOCK];
    for (boundary, blocks) in [(0, 4096), (8, 4096), (4096, 1), (0, 0)] {
        let out = &data[..usize::from(blocks) * BLOCK];
        let done = run(&nexus, &atomic(1, boundary, blocks), out);
        assert_eq!(done.status, Status::Good, "{boundary} {blocks}");
    }
    for (lba, boundary, blocks, sense) in [
        (1, 0, 4097, (5, 0x24, 0)),
        (1, 4097, 8, (5, 0x24, 0)),
        (16_380, 0, 8, (5, 0x21, 0)),
        (u64::MAX, 0, 1, (5, 0x21, 0)),
    ] {
        let out = &data[..usize::from(blocks) * BLOCK];
        assert_eq!(code(&run(&nexus, &atomic(lba, boundary, blocks), out)), sense, "{lba}");
    }
    let written = bench.disk.write_count();
    let short = run(&nexus, &atomic(1, 0, 8), &[9; 5 * BLOCK]);
    assert_eq!((code(&short), bench.disk.write_count()), ((5, 0x0E, 3), written));
    assert_eq!(read(&nexus, 1), [7; BLOCK]);
    let mut fua = atomic(1, 0, 1);
    fua[1] = 0x18;
    let flushes = bench.disk.flush_count();
    assert_eq!(run(&nexus, &fua, &data[..BLOCK]).status, Status::Good);
    assert_eq!(bench.disk.flush_count(), flushes + 1);
    let ask = [0xA3, 0x0C, 1, 0x9C, 0, 0, 0, 0, 0, 64, 0, 0];
    assert_eq!(run(&nexus, &ask, &[]).data[1] & 7, 3, "REPORT SUPPORTED OPERATION CODES");
    bench.disk.set_read_only(true);
    while code(&run(&nexus, &[0], &[])).0 == 6 {}
    assert_eq!(code(&run(&nexus, &atomic(1, 0, 1), &data[..BLOCK])), (7, 0x27, 0));
}
