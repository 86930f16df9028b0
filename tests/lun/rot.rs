//! A block that rots is an error of its range, told and counted, and harms nothing else.

use crate::pool::*;
use lunfs::device::sim::SimDevice;
use lunfs::device::{Block, BlockDevice};
use lunfs::fs::{FormatOptions, Fs, OpenOptions, SystemClock, Timestamp};
use lunfs::lun::{BlockError, BlockIo, Catalog};
use std::sync::Arc;

fn open_sim(device: Arc<dyn BlockDevice>) -> Arc<Catalog> {
    let clock = Arc::new(SystemClock);
    let options =
        OpenOptions { cache_bytes: 16 * MIB, clock, background: false, ..OpenOptions::default() };
    open_catalog(Fs::open(vec![device], options).unwrap())
}

/// A device with a LUN whose block at 8192 is wrong on the medium.
fn rotten() -> Arc<SimDevice> {
    let device = Arc::new(SimDevice::new(32_768, 1));
    let devices: [Arc<dyn BlockDevice>; 1] = [device.clone()];
    let options =
        FormatOptions { pool_id: [9; 16], created: Timestamp(1), paths: vec!["sim".into()] };
    Fs::format(&devices, &options).unwrap();
    let catalog = open_sim(device.clone());
    let lun = catalog.create("vm1", &sized(16 * MIB)).unwrap();
    let disk = login(&lun, "a");
    disk.write(0, &noise(1, 65_536), true).unwrap();
    catalog.fs().close().unwrap();
    let wanted = &noise(1, 65_536)[8192..12_288];
    let holds = |at: &u64| {
        let mut out = [Block::zeroed()];
        device.read(*at, &mut out).unwrap();
        out[0].0[..] == *wanted
    };
    let at = device.stored_blocks().into_iter().find(holds).unwrap();
    device.flip_bit(at, 12_345);
    device
}

#[test]
fn the_range_is_told_counted_and_logged() {
    let catalog = open_sim(rotten());
    let lun = catalog.get("vm1").unwrap();
    let disk = login(&lun, "a");
    let mut out = vec![0; 65_536];
    let failed = disk.read(0, &mut out);
    assert!(matches!(failed, Err(BlockError::Medium { offset_bytes: 8192 })), "{failed:?}");
    let failed = disk.read(8704, &mut out[..512]);
    assert!(matches!(failed, Err(BlockError::Medium { offset_bytes: 8704 })), "{failed:?}");
    assert!(open(&lun, READ).read_at(8192, &mut out[..4096]).is_err());
    assert_eq!(lun.medium_errors(), 3);
    assert!(logged(&lun, "error", "\"offset_bytes\":8192"));
    disk.read(0, &mut out[..8192]).unwrap();
    disk.read(12_288, &mut out[12_288..]).unwrap();
    assert!(out[12_288..] == noise(1, 65_536)[12_288..]);
    disk.write(8192, &[1; 4096], true).unwrap();
    disk.read(0, &mut out).unwrap();
    assert_eq!(out[8192..12_288], [1; 4096]);
}
