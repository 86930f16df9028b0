//! A crash at any moment of making, renaming and deleting leaves whole LUNs.

use crate::pool::*;
use lunfs::device::sim::SimDevice;
use lunfs::device::BlockDevice;
use lunfs::fs::{FormatOptions, Fs, OpenOptions, SystemClock, Timestamp};
use lunfs::lun::{BlockIo, Catalog, Lun};
use std::sync::Arc;

const BLOCKS: u64 = 32_768;
/// Ways in which the cache's writes are lost or torn, for each crash.
const OUTCOMES: u64 = 4;

fn open(device: Arc<dyn BlockDevice>) -> Option<Arc<Catalog>> {
    let clock = Arc::new(SystemClock);
    let options =
        OpenOptions { cache_bytes: 16 * MIB, clock, background: false, ..OpenOptions::default() };
    Some(open_catalog(Fs::open(vec![device], options).ok()?))
}

pub fn formatted() -> SimDevice {
    let device: Arc<SimDevice> = Arc::new(SimDevice::new(BLOCKS, 1));
    let options = FormatOptions {
        pool_id: [9; 16],
        created: Timestamp(1),
        paths: vec!["sim".into()],
        redundancy: Default::default(),
    };
    let devices: [Arc<dyn BlockDevice>; 1] = [device.clone()];
    Fs::format(&devices, &options).unwrap();
    device.after_crash(1)
}

/// Makes, fills, sets, resizes, renames and deletes; how many steps were acknowledged. A
/// consistency point comes in between, which may fail unnoticed.
fn work(catalog: &Catalog) -> usize {
    let steps: [&dyn Fn() -> bool; 5] = [
        &|| catalog.create("vm1", &sized(16 * MIB)).is_ok(),
        &|| fill(&catalog.get("vm1").unwrap()),
        &|| {
            let _ = catalog.fs().consistency_point();
            let changes = [("size".into(), "32M".into()), ("vendor".into(), "ACME".into())];
            catalog.get("vm1").unwrap().set(&changes).is_ok()
        },
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
    let vendor = lun.settings().vendor;
    assert!(vendor == "ACME" || acknowledged < 3, "crash at call {at}: a setting is lost");
    assert!(!lun.settings().read_only, "crash at call {at}: the attributes are damaged");
    catalog.delete(&lun.name(), <_>::default()).unwrap();
}

/// Runs `work` with the power failing at each call in turn, several outcomes of each; `judge` looks
/// at what is there afterwards and at what `work` returned.
pub fn at_every_call<R: Default>(
    base: &SimDevice,
    work: impl Fn(&Catalog) -> R,
    judge: impl Fn(&Catalog, R, u64),
) {
    let device = Arc::new(base.after_crash(2));
    work(&open(device.clone()).unwrap());
    let calls = device.calls();
    for (at, seed) in (1..=calls).flat_map(|at| (0..OUTCOMES).map(move |seed| (at, seed))) {
        let device = Arc::new(base.after_crash(2));
        device.power_fails_at(Some(at));
        let result = open(device.clone()).map_or_else(R::default, |catalog| work(&catalog));
        let after: Arc<dyn BlockDevice> = Arc::new(device.after_crash(at * OUTCOMES + seed));
        let catalog = open(after.clone()).unwrap_or_else(|| panic!("call {at}: does not open"));
        judge(&catalog, result, at);
        catalog.fs().close().unwrap();
        sound(after);
    }
}

#[test]
fn whole_luns_after_a_crash_at_any_call() {
    let judge = |catalog: &Catalog, acknowledged, at| {
        check(catalog, acknowledged, at);
        assert!(catalog.fs().volume_list().unwrap().is_empty(), "call {at}: a volume is left");
    };
    at_every_call(&formatted(), work, judge);
}

#[test]
fn whole_lines_after_a_crash_at_any_call() {
    let base = {
        let device = Arc::new(formatted());
        let catalog = open(device.clone()).unwrap();
        let lun = catalog.create("vm1", &sized(MIB)).unwrap();
        let fields = serde_json::json!({"filler": "x".repeat(2000)});
        for i in 0..500 {
            lun.append_log(&format!("e{i}"), fields.clone()).unwrap();
        }
        catalog.fs().close().unwrap();
        device.after_crash(1)
    };
    let cut = |catalog: &Catalog| {
        let Ok(lun) = catalog.get("vm1") else { return 0 };
        let fields = serde_json::json!({"filler": "y".repeat(100_000)});
        let lines = (0..4).take_while(|i| {
            lun.append_log(&format!("new{i}"), fields.clone()).is_ok()
                && catalog.fs().sync().is_ok()
        });
        lines.count()
    };
    let judge = |catalog: &Catalog, acknowledged, at| {
        let kinds: Vec<String> = events(&catalog.get("vm1").unwrap())
            .iter()
            .map(|event| event["event"].as_str().unwrap().to_owned())
            .collect();
        for i in 300..500 {
            assert!(kinds.contains(&format!("e{i}")), "crash at call {at}: e{i} is lost");
        }
        for i in 0..acknowledged {
            assert!(kinds.contains(&format!("new{i}")), "crash at call {at}: new{i} is lost");
        }
    };
    at_every_call(&base, cut, judge);
}
