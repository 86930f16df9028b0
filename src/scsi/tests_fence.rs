//! What is kept from taking effect: tasks of a nexus that was aborted, requests of clients that may
//! only read.

use std::time::Duration;

use super::*;

const BLOCKING: Duration = Duration::from_millis(200);

fn reserve_out(nexus: &Nexus, action: u8, key: u8, new: u8) -> Status {
    let mut list = [0u8; 24];
    (list[7], list[15]) = (key, new);
    run(nexus, &[0x5F, action, 1, 0, 0, 0, 0, 0, 24, 0], &list).status
}

/// A write of block `lba` that has begun and does not run yet.
fn begun(nexus: &Nexus, lba: u8) -> Task {
    let mut cdb = [0; 16];
    (cdb[0], cdb[5], cdb[8]) = (0x2A, lba, 1);
    match nexus.begin(0, &cdb) {
        Plan::Run(task) => task,
        Plan::Done(answer) => panic!("{answer:?}"),
    }
}

/// Neither what waits nor what runs writes after `abort` has returned.
fn nothing_is_written_after(abort: impl Fn(&Bench, &Nexus)) {
    let bench = Bench::new();
    let (one, two) = (bench.nexus("a"), bench.nexus("b"));
    assert_eq!(reserve_out(&one, 0, 0, 1), Status::Good);
    assert_eq!(reserve_out(&two, 0, 0, 2), Status::Good);
    let waits = begun(&two, 0);
    bench.disk.set_blocking(Some(BLOCKING));
    std::thread::scope(|scope| {
        let runs = scope.spawn(|| write(&two, 1, 7));
        std::thread::sleep(BLOCKING / 4);
        abort(&bench, &one);
        let before = bench.disk.write_count();
        assert!(runs.join().is_ok());
        assert_eq!(bench.disk.write_count(), before, "it ended later");
    });
    bench.disk.set_blocking(None);
    assert!(two.try_run(&waits, &[9; BLOCK], DataIn::default()).is_none());
    let answer = two.run(&waits, &[9; BLOCK], DataIn::default(), &AtomicBool::new(false));
    assert_eq!(code(&answer), (0xB, 0, 0));
    while run(&one, &[0], &[]).status != Status::Good {}
    assert_eq!(read(&one, 0)[0], 0);
    while run(&two, &[0], &[]).status != Status::Good {}
    assert_eq!(write(&two, 0, 3).status, Status::Good, "what begins later is another matter");
}

#[test]
fn preempt_and_abort_keeps_stale_writes_out() {
    nothing_is_written_after(|_, one| {
        assert_eq!(reserve_out(one, 5, 1, 2), Status::Good);
    });
}

#[test]
fn a_reset_keeps_stale_writes_out() {
    nothing_is_written_after(|bench, _| {
        bench.unit.reset();
        bench.unit.settle();
    });
}

#[test]
fn two_that_preempt_each_other_do_not_wait_for_each_other() {
    let bench = Bench::new();
    let (one, two) = (bench.nexus("a"), bench.nexus("b"));
    let fight = |own: &Nexus, key: u8, other: u8| {
        for _ in 0..200 {
            reserve_out(own, 6, 0, key);
            reserve_out(own, 5, key, other);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| fight(&one, 1, 2));
        scope.spawn(|| fight(&two, 2, 1));
    });
}

#[test]
fn a_medium_leaves_with_what_was_written_to_it() {
    let bench = Bench::new();
    bench.disk.change_geometry(|geometry| geometry.removable = true);
    let nexus = bench.nexus("a");
    write(&nexus, 0, 1);
    let flushes = bench.disk.flush_count();
    let eject = [0x1B, 0, 0, 0, 2, 0];
    bench.disk.set_failing(Some(crate::lun::BlockError::Io("dead".into())));
    assert_eq!(code(&run(&nexus, &eject, &[])), (3, 0x0C, 0));
    assert_eq!(run(&nexus, &[0], &[]).status, Status::Good, "it is still there");
    bench.disk.set_failing(None);
    assert_eq!(run(&nexus, &eject, &[]).status, Status::Good);
    assert_eq!(bench.disk.flush_count(), flushes + 1);
    assert_eq!(code(&run(&nexus, &[0], &[])), (2, 0x3A, 0));
}

#[test]
fn one_block_is_compared_with_a_range_of_bounded_length() {
    let disk = Arc::new(MemoryLun::new("t", 1 << 30, BLOCK as u32));
    let bench = Bench { disk, unit: LogicalUnit::new() };
    let nexus = bench.nexus("a");
    let mut cdb = [0x8F, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]; // 128 MiB
    assert_eq!(run(&nexus, &cdb, &[0; BLOCK]).status, Status::Good);
    cdb[13] = 1;
    assert_eq!(code(&run(&nexus, &cdb, &[0; BLOCK])), (5, 0x24, 0));
}
