//! A crash at any moment of making, renaming and deleting leaves whole LUNs.

use crate::pool::*;
use lunfs::device::sim::SimDevice;
use lunfs::device::BlockDevice;
use lunfs::fs::{FormatOptions, Fs, OpenOptions, SystemClock, Timestamp};
use lunfs::lun::{BlockIo, Catalog, Lun};
use std::sync::Arc;

const BLOCKS: u64 = 32_768;

fn open(device: Arc<dyn BlockDevice>) -> Option<Arc<Catalog>> {
    let clock = Arc::new(SystemClock);
    let options = OpenOptions { cache_bytes: 16 * MIB, clock, background: false };
    Some(open_catalog(Fs::open(vec![device], options).ok()?))
}

fn formatted() -> SimDevice {
    let device: Arc<SimDevice> = Arc::new(SimDevice::new(BLOCKS, 1));
    let options =
        FormatOptions { pool_id: [9; 16], created: Timestamp(1), paths: vec!["sim".into()] };
    let devices: [Arc<dyn BlockDevice>; 1] = [device.clone()];
    Fs::format(&devices, &options).unwrap();
    device.after_crash(1)
}

/// Makes, fills, renames and deletes; how many steps were acknowledged.
fn work(catalog: &Catalog) -> usize {
    let steps: [&dyn Fn() -> bool; 5] = [
        &|| catalog.create("vm1", &sized(16 * MIB)).is_ok(),
        &|| fill(&catalog.get("vm1").unwrap()),
        &|| catalog.get("vm1").unwrap().resize(32 * MIB, false).is_ok(),
        &|| catalog.rename("vm1", "vm2").is_ok(),
        &|| catalog.delete("vm2", <_>::default()).is_ok(),
    ];
    steps.iter().take_while(|step| step()).count()
}

fn fill(lun: &Arc<Lun>) -> bool {
    lun.attach(request("a")).is_ok_and(|disk| disk.write(4096, &[7; 4096], true).is_ok())
}

fn check(catalog: &Catalog, acknowledged: usize, at: u64) {
    let luns = catalog.list();
    assert!(luns.len() <= 1, "crash at call {at}");
    let Some(lun) = luns.first() else {
        assert!(acknowledged == 0 || acknowledged >= 4, "crash at call {at}: the LUN is lost");
        return;
    };
    assert!(acknowledged < 5, "crash at call {at}: the LUN is back");
    assert!(lun.name() == "vm1" || acknowledged >= 3, "crash at call {at}");
    assert!(lun.name() == "vm2" || acknowledged <= 3, "crash at call {at}");
    let size = lun.size_bytes();
    let expected = if acknowledged >= 3 { 32 * MIB } else { 16 * MIB };
    assert!(size == expected || (acknowledged == 2 && size == 32 * MIB), "crash at call {at}");
    let mut out = [0; 4096];
    lun.attach(request("b")).unwrap().read(4096, &mut out).unwrap();
    assert!(out == [7; 4096] || (acknowledged < 2 && out == [0; 4096]), "crash at call {at}");
    assert!(!lun.settings().read_only, "crash at call {at}: the attributes are damaged");
    catalog.delete(&lun.name(), <_>::default()).unwrap();
}

#[test]
fn whole_luns_after_a_crash_at_any_call() {
    let base = formatted();
    let calls = {
        let device = Arc::new(base.after_crash(2));
        let catalog = open(device.clone()).unwrap();
        assert_eq!(work(&catalog), 5);
        device.calls()
    };
    let step = (calls / 150).max(1) as usize;
    for at in (1..=calls).step_by(step) {
        let device = Arc::new(base.after_crash(2));
        device.power_fails_at(Some(at));
        let acknowledged = open(device.clone()).map_or(0, |catalog| work(&catalog));
        let after: Arc<dyn BlockDevice> = Arc::new(device.after_crash(at));
        let catalog = open(after.clone()).unwrap_or_else(|| panic!("call {at}: does not open"));
        check(&catalog, acknowledged, at);
        assert!(catalog.fs().volume_list().unwrap().is_empty(), "call {at}: a volume is left");
        catalog.fs().close().unwrap();
        sound(after);
    }
}
