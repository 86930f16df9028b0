//! Round trips with and without O_DIRECT, locks, sizes, and what is said about what cannot be
//! opened.

use super::*;

const MIB: u64 = 1 << 20;

fn filled(byte: u8) -> Box<Block> {
    let mut block = Block::zeroed();
    block.0.fill(byte);
    block
}

fn bytes_at(device: &FileDevice, first: u64, count: usize) -> Vec<u8> {
    let mut out: Vec<_> = (0..count).map(|_| filled(0xEE)).collect();
    device.read(first, &mut out).unwrap();
    out.iter().map(|block| block.0[4095]).collect()
}

fn round_trip(buffered: bool) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    drop(FileDevice::create(&path, Some(64 * MIB + 5), false).unwrap());
    let mode = OpenMode { buffered, ..OpenMode::default() };
    let device = FileDevice::open(&path, mode).unwrap();
    assert_eq!(device.block_count(), 16 * 1024);
    assert!(!(buffered && device.is_direct()));
    let data: Vec<_> = (0..3000).map(|n| filled(n as u8)).collect();
    let borrowed: Vec<&Block> = data.iter().map(|b| &**b).collect();
    device.write(100, &borrowed).unwrap();
    device.flush().unwrap();
    let expected: Vec<u8> = (0..3000).map(|n| n as u8).collect();
    assert_eq!(bytes_at(&device, 100, 3000), expected);
    device.discard(101, 1).unwrap();
    assert_eq!(bytes_at(&device, 100, 3), [0, 0, 2]);
    let counted = device.counters();
    assert_eq!((counted.blocks_read, counted.blocks_written), (3003, 3000));
    assert_eq!((counted.flushes, counted.blocks_discarded), (1, 1));
    drop(device);
    let again = FileDevice::open(&path, OpenMode { read_only: true, buffered }).unwrap();
    assert_eq!(bytes_at(&again, 3099, 2), [2999u32 as u8, 0]);
    assert!(again.write(0, &[&filled(1)]).is_err());
}

#[test]
fn direct_round_trip() {
    round_trip(false);
}

#[test]
fn buffered_round_trip() {
    round_trip(true);
}

#[test]
fn second_opener_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    let first = FileDevice::create(&path, Some(MIB), false).unwrap();
    let second = FileDevice::open(&path, OpenMode::default()).map(|_| ());
    assert!(matches!(second, Err(OpenError::InUse(_))));
    let reader = OpenMode { read_only: true, ..OpenMode::default() };
    assert!(matches!(FileDevice::open(&path, reader), Err(OpenError::InUse(_))));
    let over = FileDevice::create(&path, Some(MIB), true);
    assert!(matches!(over, Err(OpenError::InUse(_))));
    drop(first);
    let (_a, _b) = (FileDevice::open(&path, reader), FileDevice::open(&path, reader).unwrap());
    assert!(matches!(FileDevice::open(&path, OpenMode::default()), Err(OpenError::InUse(_))));
}

#[test]
fn what_cannot_be_opened_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    let missing = FileDevice::open(&path, OpenMode::default());
    assert!(matches!(missing, Err(OpenError::NotFound(_))));
    let unsized_file = FileDevice::create(&path, None, false);
    assert!(matches!(unsized_file, Err(OpenError::SizeMissing(_))));
    let no_device = FileDevice::open(dir.path(), OpenMode::default());
    assert!(matches!(no_device, Err(OpenError::NotADevice(_))));
    std::fs::write(&path, b"precious").unwrap();
    let exists = FileDevice::create(&path, Some(MIB), false);
    assert!(matches!(exists, Err(OpenError::Exists(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let emptied = FileDevice::create(&path, Some(MIB), true).unwrap();
    assert_eq!(bytes_at(&emptied, 0, 1), [0]);
}

#[test]
fn a_file_too_large_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    assert!(FileDevice::create(&path, Some(u64::MAX), false).is_err());
    assert!(!path.exists());
}

#[test]
fn ends_grow_and_cut_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    let device = FileDevice::create(&path, Some(MIB), false).unwrap();
    let beyond = device.write(256, &[&filled(1)]).unwrap_err();
    assert_eq!(beyond.kind(), io::ErrorKind::InvalidInput);
    assert!(device.read(u64::MAX, &mut [filled(0)]).is_err());
    assert_eq!(device.grow(Some(2 * MIB)).unwrap(), 512);
    device.write(511, &[&filled(1)]).unwrap();
    assert!(device.grow(Some(MIB)).is_err());
    OpenOptions::new().write(true).open(&path).unwrap().set_len(MIB + 100).unwrap();
    let cut = device.read(256, &mut [filled(0)]).unwrap_err();
    assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    assert!(device.grow(None).is_err());
}
