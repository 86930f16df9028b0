//! The SCSI device server over LUNs of a pool, with the rights of those who use them.

use crate::pool::*;
use lunfs::access::{Book, Edit, Seen};
use lunfs::fs::SystemClock;
use lunfs::lun::{Attachment, BlockError, BlockIo, Holder, Lun};
use lunfs::scsi::{Answer, LogicalUnit, Nexus, Plan, PortNames, Status};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::Duration;

const READER: &str = "iqn.2026-11.local.test:reader";
const WRITER: &str = "iqn.2026-11.local.test:writer";

fn nexus(unit: &Arc<LogicalUnit>, disk: Arc<Attachment>, name: &str) -> Nexus {
    let ports = PortNames {
        initiator: name.to_owned(),
        device: "iqn.d".to_owned(),
        port: "iqn.d,t,0x0001".to_owned(),
        relative_port: 1,
        port_count: 1,
        port_group: 1,
        protocol: 5,
    };
    let nexus = Nexus::new(Arc::clone(unit), disk, ports);
    assert_ne!(run(&nexus, &[0], &[]).status, Status::Good, "its power on");
    nexus
}

fn run(nexus: &Nexus, cdb: &[u8], out: &[u8]) -> Answer {
    let mut padded = [0; 16];
    padded[..cdb.len()].copy_from_slice(cdb);
    match nexus.begin(0, &padded) {
        Plan::Done(answer) => answer,
        Plan::Run(task) => {
            let mut into = vec![0; task.data_in_bytes];
            nexus.run(&task, out, into.as_mut_slice().into(), &AtomicBool::new(false))
        }
    }
}

fn code(answer: &Answer) -> (u8, u8, u8) {
    match answer.sense.as_slice() {
        [] => (0, 0, 0),
        sense => (sense[2], sense[12], sense[13]),
    }
}

fn come_in(book: &Book, lun: &Arc<Lun>, name: &str) -> Arc<Attachment> {
    let session = login(lun, name);
    let seen = Seen { name: Some(name), proof: None, local: true, address: None };
    book.admit(&seen, &session).unwrap();
    session
}

#[test]
fn who_may_only_read_changes_nothing_for_the_others() {
    let pool = Pool::new();
    let lun = pool.lun("one", MIB);
    lun.set(&[("removable".to_owned(), "true".to_owned())]).unwrap();
    let book = Book::open(pool.catalog.clone(), Arc::new(SystemClock));
    for (name, writable) in [(READER, false), (WRITER, true)] {
        let edit = Edit { allow: vec![(lun.volume(), writable)], ..Edit::default() };
        book.add(name, edit, false).unwrap();
    }
    let unit = LogicalUnit::new();
    let reader = nexus(&unit, come_in(&book, &lun, READER), READER);
    let writer = nexus(&unit, come_in(&book, &lun, WRITER), WRITER);
    let protect = [0, 0, 0, 0, 0x0A, 0x0A, 0x22, 0x10, 8, 0, 0, 0, 0, 0, 0, 0];
    let as_it_is = [0, 0, 0, 0, 0x0A, 0x0A, 0x22, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
    let key = |action: u8, key: u8, new: u8| {
        let mut list = [0; 24];
        (list[7], list[15]) = (key, new);
        ([0x5F, action, 1, 0, 0, 0, 0, 0, 24, 0], list)
    };
    let reserve = |nexus: &Nexus, order: ([u8; 10], [u8; 24])| run(nexus, &order.0, &order.1);
    assert_eq!(run(&reader, &[0x15, 0x10, 0, 0, 16, 0], &as_it_is).status, Status::Good);
    assert_eq!(reserve(&reader, key(0, 0, 1)).status, Status::Good, "reading it may be fenced");
    assert_eq!(reserve(&writer, key(0, 0, 2)).status, Status::Good);
    for refused in [
        run(&reader, &[0x15, 0x10, 0, 0, 16, 0], &protect),
        run(&reader, &[0x15, 0x11, 0, 0, 16, 0], &as_it_is),
        run(&reader, &[0x1B, 0, 0, 0, 2, 0], &[]),
        reserve(&reader, key(1, 1, 0)),
        reserve(&reader, key(3, 1, 0)),
        reserve(&reader, key(5, 1, 2)),
    ] {
        assert_eq!(code(&refused), (7, 0x27, 0));
    }
    assert_eq!(reserve(&writer, key(1, 2, 0)).status, Status::Good, "it is still registered");
    assert_eq!(run(&writer, &[0x15, 0x10, 0, 0, 16, 0], &protect).status, Status::Good);
    assert_eq!(run(&writer, &[0x1B, 0, 0, 0, 2, 0], &[]).status, Status::Good);
    drop((reader, writer));
}

#[test]
fn orwrite_takes_as_much_as_is_announced() {
    let pool = Pool::new();
    let lun = pool.lun("one", 64 * MIB);
    let (disk, unit) = (login(&lun, "a"), LogicalUnit::new());
    let nexus = nexus(&unit, disk.clone(), "a");
    let data = noise(1, 4 << 20);
    for _ in 0..2 {
        let cdb = [0x8B, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0];
        assert_eq!(run(&nexus, &cdb, &data).status, Status::Good);
    }
    let mut out = vec![0; data.len()];
    disk.read(0, &mut out).unwrap();
    assert!(out == data);
    drop((nexus, disk));
}

#[test]
fn a_write_that_waited_for_a_pause_is_judged_again() {
    let pool = Pool::new();
    let lun = pool.lun("one", MIB);
    let (disk, other) = (login(&lun, "a"), login(&lun, "b"));
    other.reservations(); // it judges by them itself
    let late = |change: &dyn Fn()| {
        let pause = lun.pause(Duration::from_secs(10), "a test").unwrap();
        std::thread::scope(|scope| {
            let write = scope.spawn(|| disk.write(0, &[7; 512], false));
            std::thread::sleep(Duration::from_millis(100));
            change();
            pause.resume();
            write.join().unwrap()
        })
    };
    let read_only = |on: &str| lun.set(&[("read-only".to_owned(), on.to_owned())]).unwrap();
    assert!(matches!(late(&|| read_only("true")), Err(BlockError::ReadOnly)));
    read_only("false");
    let reserve = || other.keep_reservations(Some("a record"), true).unwrap();
    assert!(matches!(late(&reserve), Err(BlockError::Reserved)));
    other.keep_reservations(None, false).unwrap();
    let mut out = [1; 512];
    disk.read(0, &mut out).unwrap();
    assert_eq!(out, [0; 512]);
    assert!(late(&|| ()).is_ok());
    drop((disk, other));
}

#[test]
fn a_copy_leaves_the_grace_of_its_client_alone() {
    let pool = Pool::new();
    let lun = pool.lun("one", MIB);
    let disk = login(&lun, "a");
    disk.write(0, &[1; 512], false).unwrap();
    disk.lost();
    drop(disk);
    let lost = Holder::Block(vec!["iscsi a (connection lost)".into()]);
    assert_eq!(lun.lease_holder(), lost);
    let request = lunfs::lun::AttachRequest {
        door: "iscsi",
        client: "a".to_owned(),
        peer: "127.0.0.1:1".to_owned(),
        writable: true,
    };
    let beside = lun.attach_beside(request).unwrap();
    beside.read(0, &mut [0; 512]).unwrap();
    beside.leaving();
    drop(beside);
    assert_eq!(lun.lease_holder(), lost);
}

#[test]
fn a_host_is_told_what_the_attributes_say() {
    let pool = Pool::new();
    let lun = pool.lun("one", MIB);
    let set = |key: &str, value: &str| lun.set(&[(key.to_owned(), value.to_owned())]).unwrap();
    for (key, value) in [
        ("vendor", "ACME"),
        ("product", "Rocket"),
        ("serial", "S-77"),
        ("rotation-rate", "7200"),
        ("physical-exponent", "2"),
        ("removable", "true"),
        ("read-only", "true"),
    ] {
        set(key, value);
    }
    let unit = LogicalUnit::new();
    let nexus = nexus(&unit, login(&lun, "a"), "a");
    let inquiry = run(&nexus, &[0x12, 0, 0, 0, 96, 0], &[]).data;
    assert_eq!(inquiry[1] & 0x80, 0x80, "RMB");
    assert_eq!(&inquiry[8..32], b"ACME    Rocket          ");
    let page = |page: u8| run(&nexus, &[0x12, 1, page, 0, 255, 0], &[]).data;
    assert_eq!(&page(0x80)[4..], b"S-77");
    assert_eq!(page(0xB1)[4..6], 7200u16.to_be_bytes());
    let capacity = run(&nexus, &[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[]);
    assert_eq!(capacity.data[13] & 0x0F, 2);
    let modes = |nexus: &Nexus| run(nexus, &[0x1A, 8, 0x3F, 0, 255, 0], &[]).data[2] & 0x80;
    assert_eq!(modes(&nexus), 0x80, "WP");
    set("read-only", "false");
    assert_eq!(code(&run(&nexus, &[0], &[])), (6, 0x2A, 1));
    assert_eq!(modes(&nexus), 0);
}
