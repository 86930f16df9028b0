//! What outlives commands: sanitize, reservations that last, saved mode pages; and the log pages.

use super::*;

const OVERWRITE: [u8; 10] = [0x48, 0x81, 0, 0, 0, 0, 0, 0, 6, 0];

#[test]
fn a_sanitize_goes_on_behind_its_command() {
    let bench = Bench::new();
    let nexus = bench.nexus("a");
    write(&nexus, 0, 7);
    for (at, byte) in [(1, 0xC1u8), (2, 1), (6, 1), (8, 4), (7, 3)] {
        let mut cdb = OVERWRITE;
        cdb[at] = byte;
        let list = vec![1u8; usize::from(u16::from_be_bytes([cdb[7], cdb[8]]))];
        assert_eq!(code(&run(&nexus, &cdb, &list)), (5, 0x24, 0), "byte {at}");
    }
    for list in [[0, 0, 0, 2, 1, 2], [1, 0, 0, 3, 1, 2], [1, 0, 0, 0, 1, 2], [0x61, 0, 0, 2, 1, 2]]
    {
        assert_eq!(code(&run(&nexus, &OVERWRITE, &list)), (5, 0x26, 0), "{list:?}");
    }
    assert_eq!(run(&nexus, &OVERWRITE, &[1, 0, 0, 2, 1, 2]).status, Status::Good);
    let answer = run(&nexus, &[0], &[]);
    assert_eq!((code(&answer), &answer.sense[15..18]), ((2, 4, 0x1B), &[0x80, 0x80, 0][..]));
    assert_eq!(code(&run(&nexus, &[0x1B, 0, 0, 0, 1, 0], &[])), (2, 4, 0x1B));
    assert_eq!(code(&run(&nexus, &OVERWRITE, &[1, 0, 0, 2, 1, 2])), (2, 4, 0x1B));
    assert_eq!(run(&nexus, &[0x12, 0, 0, 0, 36, 0], &[]).status, Status::Good);
    assert_eq!(run(&nexus, &[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[]).status, Status::Good);
    assert_eq!(run(&nexus, &[0x03, 0, 0, 0, 18, 0], &[]).data[12..14], [4, 0x1B]);
    bench.unit.reset();
    assert_eq!(code(&run(&nexus, &[0], &[])), (6, 0x29, 3));
    assert_eq!(code(&run(&nexus, &[0], &[])), (2, 4, 0x1B));
    bench.disk.end_sanitize(SanitizeState::Idle);
    assert_eq!(read(&nexus, 0)[..4], [1, 2, 1, 2]);
}

#[test]
fn a_failed_sanitize_is_left_only_as_it_allowed() {
    let bench = Bench::new();
    let nexus = bench.nexus("a");
    let exit = [0x48, 0x1F, 0, 0, 0, 0, 0, 0, 0, 0];
    for (may_exit, wanted) in [(false, (5, 0x24, 0)), (true, (0, 0, 0))] {
        bench.disk.end_sanitize(SanitizeState::Failed { may_exit });
        assert_eq!(code(&run(&nexus, &[0], &[])), (3, 0x31, 3));
        assert_eq!(code(&run(&nexus, &exit, &[])), wanted);
    }
    assert_eq!(run(&nexus, &[0], &[]).status, Status::Good);
}

#[test]
fn reservations_with_aptpl_outlive_the_unit() {
    let mut bench = Bench::new();
    let out = |nexus: &Nexus, action, kind, key: u8, new: u8, flags: u8| {
        let mut list = [0u8; 24];
        (list[7], list[15], list[20]) = (key, new, flags);
        run(nexus, &[0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0], &list).status
    };
    for lasting in [1, 0] {
        let one = bench.nexus("a");
        assert_eq!(out(&one, 6, 0, 0, 9, lasting), Status::Good);
        assert_eq!(out(&one, 1, 3, 9, 0, 0), Status::Good);
        drop(one);
        bench.unit = LogicalUnit::new();
        let two = bench.nexus("b");
        let wanted = if lasting == 1 { Status::ReservationConflict } else { Status::Good };
        assert_eq!(write(&two, 0, 1).status, wanted);
    }
    assert_eq!(bench.disk.reservations(), "");
}

#[test]
fn saved_mode_pages_come_back_with_a_reset() {
    let bench = Bench::new();
    let nexus = bench.nexus("a");
    let select = |sp: u8, swp: u8| {
        let list = [0, 0, 0, 0, 0x0A, 0x0A, 0x22, 0x10, swp, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(run(&nexus, &[0x15, 0x10 | sp, 0, 0, 16, 0], &list).status, Status::Good);
    };
    let swp = |control: u8| run(&nexus, &[0x1A, 8, control | 0x0A, 0, 255, 0], &[]).data[8] & 8;
    select(1, 8);
    select(0, 0);
    assert_eq!((swp(0), swp(0x80), swp(0xC0)), (0, 0, 8));
    bench.unit.reset();
    assert_eq!(code(&run(&nexus, &[0], &[])), (6, 0x29, 3));
    assert_eq!(swp(0), 8);
}

#[test]
fn log_pages_are_listed_and_there() {
    let bench = Bench::new();
    let nexus = bench.nexus("a");
    let log = |page: u8| run(&nexus, &[0x4D, 0, 0x40 | page, 0, 0, 0, 0, 0, 255, 0], &[]);
    let pages = log(0).data;
    assert_eq!(usize::from(pages[3]), pages.len() - 4);
    for page in &pages[4..] {
        let data = log(*page).data;
        assert_eq!((data[0], usize::from(data[3])), (*page, data.len() - 4));
    }
    assert_eq!(code(&log(0x3E)), (5, 0x24, 0));
    let all = run(&nexus, &[0x1A, 8, 0x3F, 0xFF, 255, 0], &[]).data;
    assert_eq!(usize::from(all[0]) + 1, all.len());
    assert!(all.windows(4).any(|bytes| bytes == [0x5C, 2, 0, 12]));
}

/// One other disk, and who may have it.
#[derive(Debug)]
struct Beside(Arc<LogicalUnit>, Arc<MemoryLun>);

impl CopyTargets for Beside {
    fn find(&self, naa: &[u8; 16]) -> Option<CopyTarget> {
        let disk = Arc::clone(&self.1) as Arc<dyn BlockIo>;
        (disk.identity().naa == *naa).then(|| CopyTarget::new(Arc::clone(&self.0), disk))
    }
}

/// A parameter list that copies blocks 0..4 of one disk to 8..12 of another.
fn copy_list(from: &MemoryLun, to: &MemoryLun) -> Vec<u8> {
    let mut list = vec![7, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
    for disk in [from, to] {
        list.extend_from_slice(&[0xE4, 0, 0, 0, 1, 3, 0, 16]);
        list.extend_from_slice(&disk.identity().naa);
        list.extend_from_slice(&[0, 0, 0, 0, 0, 0, 2, 0]);
    }
    list.extend_from_slice(&[2, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0, 4]);
    list.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8]);
    list
}

#[test]
fn a_copy_reaches_another_unit_as_its_initiator_may() {
    let (here, there) = (Bench::new(), Bench::named("u"));
    let beside = Arc::new(Beside(Arc::clone(&there.unit), Arc::clone(&there.disk)));
    let (nexus, holder) = (here.nexus("a").with_copy_targets(beside), there.nexus("b"));
    for lba in 0..4 {
        write(&nexus, lba, lba);
    }
    let copy = |list: &[u8]| {
        let mut cdb = [0u8; 16];
        (cdb[0], cdb[13]) = (0x83, list.len() as u8);
        code(&run(&nexus, &cdb, list))
    };
    let list = copy_list(&here.disk, &there.disk);
    assert_eq!(copy(&list), (0, 0, 0));
    assert_eq!((read(&holder, 8)[0], read(&holder, 9)[0], read(&holder, 11)[0]), (0, 1, 3));
    there.disk.set_read_only(true);
    assert_eq!(copy(&list), (0xA, 0x0D, 1));
    assert_eq!(copy(&copy_list(&there.disk, &here.disk)), (0, 0, 0), "it may be read");
    there.disk.set_read_only(false);
    while run(&holder, &[0], &[]).status != Status::Good {}
    assert_eq!(run(&holder, &[0x16, 0, 0, 0, 0, 0], &[]).status, Status::Good);
    assert_eq!(copy(&copy_list(&there.disk, &here.disk)), (0xA, 0x0D, 1), "reserved");
    let mut unknown = list;
    unknown[16 + 32 + 8] ^= 1;
    assert_eq!(copy(&unknown), (0xA, 0x0D, 2));
}

#[test]
fn a_copy_is_as_durable_as_either_unit_promises() {
    let (here, there) = (Bench::new(), Bench::named("u"));
    let beside = Arc::new(Beside(Arc::clone(&there.unit), Arc::clone(&there.disk)));
    let (nexus, holder) = (here.nexus("a").with_copy_targets(beside), there.nexus("b"));
    let list = copy_list(&here.disk, &there.disk);
    let mut cdb = [0u8; 16];
    (cdb[0], cdb[13]) = (0x83, list.len() as u8);
    let flushes = |own: &Nexus| {
        let before = there.disk.flush_count();
        assert_eq!(run(own, &cdb, &list).status, Status::Good);
        there.disk.flush_count() - before
    };
    assert_eq!(flushes(&nexus), 0);
    for (unit, byte) in [(&holder, 1), (&nexus, 0)] {
        let mut page = run(unit, &[0x1A, 8, 0x08, 0, 255, 0], &[]).data;
        (page[0], page[6]) = (0, page[6] & !4);
        let select = [0x15, 0x10, 0, 0, page.len() as u8, 0];
        assert_eq!(run(unit, &select, &page).status, Status::Good);
        write(&nexus, 0, byte); // at last the copy is all zeros
        assert_eq!(flushes(&nexus), 1, "WCE of {byte}");
        page[6] |= 4;
        assert_eq!(run(unit, &select, &page).status, Status::Good);
    }
}

#[test]
fn who_preempts_waits_for_a_copy_that_comes_by_another_unit() {
    let (here, there) = (Bench::new(), Bench::named("u"));
    let beside = Arc::new(Beside(Arc::clone(&there.unit), Arc::clone(&there.disk)));
    let (nexus, holder) = (here.nexus("a").with_copy_targets(beside), there.nexus("b"));
    write(&nexus, 0, 1);
    let list = copy_list(&here.disk, &there.disk);
    let mut cdb = [0u8; 16];
    (cdb[0], cdb[13]) = (0x83, list.len() as u8);
    let out = |action, key: u8, new: u8| {
        let mut order = [0u8; 24];
        (order[7], order[15]) = (key, new);
        run(&holder, &[0x5F, action, 1, 0, 0, 0, 0, 0, 24, 0], &order).status
    };
    assert_eq!(out(0, 0, 2), Status::Good);
    let delay = std::time::Duration::from_millis(200);
    there.disk.set_blocking(Some(delay));
    std::thread::scope(|scope| {
        let copy = scope.spawn(|| run(&nexus, &cdb, &list).status);
        std::thread::sleep(delay / 4);
        assert_eq!(out(5, 2, 2), Status::Good);
        assert_eq!(there.disk.write_count(), 1, "it came first, and is over");
        assert_eq!(copy.join().unwrap(), Status::Good);
    });
}
