//! A block that rots is an error of its range, told and counted, and harms nothing else.

use crate::pool::*;
use lunfs::device::sim::SimDevice;
use lunfs::device::{Block, BlockDevice};
use lunfs::fs::{FormatOptions, Fs, OpenOptions, SystemClock, Timestamp};
use lunfs::lun::transfer::{export, Target};
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
    let options = FormatOptions {
        pool_id: [9; 16],
        created: Timestamp(1),
        paths: vec!["sim".into()],
        redundancy: Default::default(),
    };
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
    let told: Vec<_> = events(&lun).into_iter().filter(|event| event["event"] == "error").collect();
    assert_eq!(told.len(), 1, "once for each place: {told:?}");
    for (key, value) in [("lba", 16), ("blocks", 8), ("offset_bytes", 8192), ("length_bytes", 4096)]
    {
        assert_eq!(told[0][key], value, "{key}");
    }
    assert_eq!((&told[0]["lun"], &told[0]["file"]), (&"vm1".into(), &"data".into()));
    let (places, unlisted) = catalog.bad_places();
    assert_eq!((places.len(), unlisted), (1, 0));
    assert_eq!((places[0].node, places[0].offset_bytes), (lun.data_node(), Some(8192)));
    assert_eq!(told[0]["block"], places[0].block);
    disk.read(0, &mut out[..8192]).unwrap();
    disk.read(12_288, &mut out[12_288..]).unwrap();
    assert!(out[12_288..] == noise(1, 65_536)[12_288..]);
    disk.write(8192, &[1; 4096], true).unwrap();
    disk.read(0, &mut out).unwrap();
    assert_eq!(out[8192..12_288], [1; 4096]);
    assert_eq!(catalog.bad_places().0, [], "what was written again is not bad any more");
}

/// What nobody has read but the scrub is told in the same way; and a restart forgets nothing that
/// is bad still.
#[test]
fn what_a_scrub_finds_is_told_and_outlives_a_restart() {
    let device = rotten();
    let catalog = open_sim(device.clone());
    let lun = catalog.get("vm1").unwrap();
    assert_eq!(catalog.bad_places().0, []);
    assert!(catalog.fs().scrub_start().unwrap());
    while catalog.fs().scrub_step(1000).unwrap() {}
    let told = |lun| events(lun).into_iter().filter(|event| event["event"] == "error").count();
    assert_eq!(told(&lun), 1);
    assert_eq!(events(&lun).last().unwrap()["offset_bytes"], 8192);
    let found = catalog.bad_places().0;
    assert_eq!((found.len(), found[0].offset_bytes), (1, Some(8192)));
    let file = tempfile::tempfile().unwrap();
    let quiet = &|_, _| true;
    let refused = export(&lun, Target::File(file.try_clone().unwrap()), false, quiet);
    assert!(refused.unwrap_err().to_string().contains("4096 bytes at 8192"));
    let done = export(&lun, Target::File(file), true, quiet).unwrap();
    assert_eq!((done.bad_bytes, done.bad), (4096, vec![(8192, 4096)]));
    catalog.fs().close().unwrap();
    drop((lun, catalog));

    let catalog = open_sim(device.clone());
    let lun = catalog.get("vm1").unwrap();
    assert_eq!(catalog.bad_places().0, found, "as it was found first");
    let disk = login(&lun, "a");
    disk.write(8192, &[1; 4096], true).unwrap();
    assert_eq!(catalog.bad_places().0, []);
    drop(disk);
    catalog.fs().close().unwrap();
    drop((lun, catalog));
    assert_eq!(open_sim(device).bad_places().0, []);
}
