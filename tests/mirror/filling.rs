//! Devices that come back or are new are filled beside writers, whatever happens meanwhile.

use crate::lab::*;
use lunfs::device::sim::SimDevice;
use lunfs::device::{Block, BlockDevice};
use lunfs::fs::planted::{plant, Mutation};
use lunfs::fs::{
    check, dump, CheckOptions, DumpAs, DumpWhat, Fs, NewNode, NodeId, Owner, Redundancy, Result,
    VolumeId,
};
use std::sync::Arc;

fn dynamic(sim: &Arc<SimDevice>) -> Arc<dyn BlockDevice> {
    sim.clone()
}

/// The second device lacks the steps from 5 on.
fn left_behind(sims: &Sims) -> Arc<Fs> {
    let fs = open(sims).expect("open");
    assert!(steps(&fs, 1, 4).1.is_none());
    fs.offline(1).expect("offline");
    assert!(steps(&fs, 5, 8).1.is_none());
    fs
}

#[test]
fn a_device_that_was_offline_comes_back() {
    let sims = mirror();
    let fs = open(&sims).expect("open");
    assert!(steps(&fs, 1, 4).1.is_none());
    fs.offline(1).expect("offline");
    assert!(fs.offline(0).is_err(), "the only copy");
    assert!(fs.offline(1).is_err(), "missing already");
    assert!(steps(&fs, 5, 8).1.is_none());
    assert!(fs.online(&dynamic(&sims[0])).is_err(), "not missing");
    assert_eq!(fs.online(&dynamic(&sims[1])).expect("online"), 1);
    assert_eq!(states(&fs), ["normal", "merging"]);
    assert!(fs.regenerate_step(1).expect("step"));
    assert!(steps(&fs, 9, STEPS).1.is_none());
    settle(&fs).expect("merge");
    assert_eq!(states(&fs), ["normal", "normal"]);
    assert_eq!(fs.scrub_status().bad, 0);
    drop(fs);
    expect_sound(&sims, "after");
    expect_each_alone(&sims, STEPS, "after");
}

#[test]
fn only_what_changed_is_brought_to_a_device_that_was_away() {
    let sims = mirror();
    let fs = open(&sims).expect("open");
    let file = file(&fs).expect("file");
    for i in 0..16 {
        file.write_at(i << 20, &vec![i as u8 + 1; 1 << 20]).expect("write");
    }
    fs.offline(1).expect("offline");
    assert!(step(&fs, 1).is_ok());
    fs.online(&dynamic(&sims[1])).expect("online");
    let before = sims[1].counters();
    while fs.regenerate_step(100).expect("step") {}
    let after = sims[1].counters();
    assert!(after.blocks_read - before.blocks_read < 300, "{before:?} {after:?}");
    assert_eq!(states(&fs), ["normal", "normal"]);
}

#[test]
fn a_device_is_replaced() {
    for missing in [false, true] {
        let sims = mirror();
        let new = devices(3)[2].clone();
        let fs = open(&sims).expect("open");
        assert!(steps(&fs, 1, 4).1.is_none());
        if missing {
            sims[0].vanish(true);
        }
        assert!(step(&fs, 5).is_ok());
        assert!(fs.replace(0, &dynamic(&sims[1]), "b").is_err(), "one of the pool");
        let small: Arc<dyn BlockDevice> = Arc::new(SimDevice::new(16_384, 1));
        assert!(fs.replace(0, &small, "s").is_err(), "too small");
        assert_eq!(fs.replace(0, &dynamic(&new), "/dev/c").expect("replace"), 2);
        assert_eq!(
            states(&fs),
            [["replace", "missing"][usize::from(missing)], "normal", "regenerating"]
        );
        assert!(fs.regenerate_step(1).expect("step"));
        assert!(steps(&fs, 6, STEPS).1.is_none());
        settle(&fs).expect("regenerate");
        assert_eq!(states(&fs), ["normal", "normal"]);
        assert_eq!(fs.devices()[1].path, "c");
        drop(fs);
        let now = vec![sims[1].clone(), new];
        expect_sound(&now, "replaced");
        sims[0].vanish(false);
        if !missing {
            assert!(open(&sims[..1]).is_err(), "what was replaced is no pool any more");
        }
        expect_each_alone(&now, 12, "replaced");
    }
}

#[test]
fn without_redundancy_a_device_that_works_is_replaced() {
    let sims = pool_of(2, Redundancy::None);
    let new = devices(3)[2].clone();
    let fs = open(&sims).expect("open");
    assert!(steps(&fs, 1, 4).1.is_none());
    fs.replace(1, &dynamic(&new), "/dev/c").expect("replace");
    assert!(steps(&fs, 5, 8).1.is_none());
    settle(&fs).expect("regenerate");
    drop(fs);
    let now = vec![new, sims[0].clone()];
    expect_sound(&now, "replaced");
    let fs = open(&now).expect("open");
    expect_state(&fs, 8, 8, "replaced");
    assert!(open(&sims).is_err());
}

/// What a run does to the pool while power fails; it goes on where the last one was cut.
type Scenario = fn(&Arc<Fs>, &Sims) -> Result<()>;

fn bring_back(fs: &Arc<Fs>, sims: &Sims) -> Result<()> {
    let away = fs.devices().iter().position(|d| d.state == "missing");
    if let Some(slot) = away {
        fs.online(&dynamic(&sims[slot]))?;
    }
    settle(fs)
}

fn put_new(fs: &Arc<Fs>, sims: &Sims) -> Result<()> {
    if fs.devices().len() == 2 && fs.devices().iter().any(|d| d.path.ends_with('b')) {
        fs.replace(1, &dynamic(&sims[2]), "/dev/c")?;
    } else if let Some(d) = fs.devices().iter().find(|d| d.state == "missing") {
        let back = sims.iter().find(|s| d.path.ends_with(&s.name()));
        // The new one may have no label yet, and the old one be left out for good by now.
        if back.is_some_and(|s| fs.online(&dynamic(s)).is_err()) && d.path.ends_with('c') {
            fs.replace(1, &dynamic(&sims[2]), "/dev/c")?;
        }
    }
    settle(fs)
}

/// Power fails at call `cut` of a scenario, and `again` calls into what follows.
fn cut_once(base: &Sims, from: u64, run: Scenario, cut: u64, what: &str) -> bool {
    let what = format!("{what}, power cut at call {cut}");
    let sims = crashed(base, 1);
    let fs = open(&sims).expect("open");
    let all = sims.clone();
    at_call(&sims, cut, move || all.iter().for_each(|s| s.cut_power()));
    let mut acknowledged = from;
    let mut work = || -> Result<()> {
        step(&fs, from + 1)?;
        acknowledged = from + 1;
        run(&fs, &sims)?;
        step(&fs, from + 2)?;
        acknowledged = from + 2;
        Ok(())
    };
    let failed = work().is_err();
    drop(fs);
    sims.iter().for_each(|s| s.on_io(None));
    for seed in [3, 4] {
        let after = crashed(&sims, seed);
        let fs = open(&after).unwrap_or_else(|e| panic!("{what}: {e}"));
        let found = expect_state(&fs, acknowledged, acknowledged + 1, &what);
        run(&fs, &after).unwrap_or_else(|e| panic!("{what}: going on: {e}"));
        assert!(fs.is_whole(), "{what}: {:?}", fs.devices());
        let names: Vec<String> = fs.devices().iter().map(|d| d.path.clone()).collect();
        drop(fs);
        let now: Sims = after.into_iter().filter(|s| names.contains(&s.name())).collect();
        assert_eq!(now.len(), 2, "{what}: {names:?}");
        expect_sound(&now, &what);
        expect_each_alone(&now, found, &what);
    }
    failed
}

fn cut_everywhere(base: &Sims, from: u64, run: Scenario, stride: u64, what: &str) {
    let mut cut = 1;
    while cut_once(base, from, run, cut, what) {
        cut += stride;
    }
    assert!(cut > 100, "{what}: {cut}");
}

#[test]
fn power_may_fail_while_a_device_comes_back() {
    let sims = mirror();
    let fs = left_behind(&sims);
    drop(fs);
    cut_everywhere(&crashed(&sims, 1), 8, bring_back, 7, "coming back");
}

#[test]
fn power_may_fail_while_a_device_is_replaced() {
    let mut sims = mirror();
    let fs = open(&sims).expect("open");
    assert!(steps(&fs, 1, 8).1.is_none());
    drop(fs);
    sims.push(devices(3)[2].clone());
    cut_everywhere(&crashed(&sims, 1), 8, put_new, 11, "replacing");
}

#[test]
fn the_good_device_fails_while_the_other_one_is_filled() {
    let sims = mirror();
    let fs = left_behind(&sims);
    fs.online(&dynamic(&sims[1])).expect("online");
    sims[0].vanish(true);
    assert!(step(&fs, 9).is_err(), "nobody left who can be believed");
    drop(fs);
    sims[0].vanish(false);
    let sims = crashed(&sims, 1);
    assert!(open(&sims[1..]).is_err());
    let fs = open(&sims).expect("open");
    expect_state(&fs, 8, 9, "after");
    settle(&fs).expect("merge");
    assert_eq!(states(&fs), ["normal", "normal"]);
}

#[test]
fn a_device_that_fails_while_it_is_filled_is_missing_again() {
    let sims = mirror();
    let fs = open(&sims).expect("open");
    fs.offline(1).expect("offline");
    assert!(steps(&fs, 1, 8).1.is_none());
    fs.online(&dynamic(&sims[1])).expect("online");
    sims[1].vanish(true);
    assert!(steps(&fs, 9, 10).1.is_none());
    assert_eq!(states(&fs), ["normal", "missing"]);
    settle(&fs).expect("nothing to fill");
    sims[1].vanish(false);
    fs.online(&dynamic(&sims[1])).expect("online again");
    settle(&fs).expect("merge");
    drop(fs);
    expect_each_alone(&sims, 10, "after");
}

/// What memory has given up is not walked, but a crash leads back to it for as long as the durable
/// root names it: it was bad on a device that was normal by then.
fn fill_under_overwrites() -> Sims {
    let sims = mirror();
    let fs = left_behind(&sims);
    fs.online(&dynamic(&sims[1])).expect("online");
    // A scrub that runs already begins no consistency point when the device is filled.
    assert!(fs.scrub_start().expect("scrub"));
    assert!(fs.regenerate_step(1).expect("step"));
    // Over all that was missed, in memory alone.
    for s in 5..=8 {
        overwrite(&fs, s).expect("overwrite");
    }
    while fs.regenerate_step(10).expect("step") {}
    assert_eq!(states(&fs), ["normal", "normal"]);
    crashed(&sims, 1)
}

#[test]
fn a_device_is_normal_only_when_all_is_there_that_a_crash_leads_back_to() {
    expect_sound(&fill_under_overwrites(), "after a power cut");
    plant(Some(Mutation::FilledBeforeRoot));
    let after = fill_under_overwrites();
    plant(None);
    let errors = check(&handles(&after), CheckOptions { data: true }).expect("check").errors;
    assert!(!errors.is_empty(), "the planted bug is not seen");
}

/// The new device has a lower slot than the one that it replaces, which comes back meanwhile.
#[test]
fn what_is_replaced_leaves_though_it_was_filled_too() {
    let mut sims = mirror();
    sims.extend(devices(4).split_off(2));
    let fs = open(&sims[..2]).expect("open");
    fs.replace(0, &dynamic(&sims[2]), "c").expect("replace");
    settle(&fs).expect("regenerate");
    assert!(steps(&fs, 1, 4).1.is_none());
    fs.offline(1).expect("offline");
    assert!(steps(&fs, 5, 6).1.is_none());
    assert_eq!(fs.replace(1, &dynamic(&sims[3]), "d").expect("replace"), 0);
    fs.online(&dynamic(&sims[1])).expect("online");
    settle(&fs).expect("regenerate");
    assert!(steps(&fs, 7, STEPS).1.is_none());
    let now: Vec<String> = fs.devices().iter().map(|d| format!("{} {}", d.path, d.state)).collect();
    assert_eq!(now, ["d normal", "c normal"]);
    drop(fs);
    let sims = vec![sims[2].clone(), sims[3].clone()];
    expect_sound(&sims, "replaced");
    expect_each_alone(&sims, STEPS, "replaced");
}

/// The number behind a word of a dump.
fn number(sims: &Sims, what: DumpWhat, line: &str, word: &str) -> u64 {
    let shown = dump(&handles(sims), &what).expect("dump").to_string();
    let line = shown.lines().find(|l| l.trim().starts_with(line)).expect(line).to_string();
    let found = line.split([',', ':']).find_map(|field| field.trim().strip_prefix(word));
    found.and_then(|n| n.trim().parse().ok()).expect(word)
}

/// What could not be read was not copied: the device is not in order before it was tried again.
#[test]
fn a_read_that_fails_for_a_while_is_tried_again() {
    let sims = mirror();
    let fs = left_behind(&sims);
    fs.online(&dynamic(&sims[1])).expect("online");
    fs.close().expect("close");
    drop(fs);
    let node = number(&sims, DumpWhat::Name("/f".into()), "node of height", "block ");
    let copy = number(&sims, DumpWhat::Block(node, DumpAs::Guess), "copy: device 0", "block ");
    let mut raw = [Block::zeroed()];
    sims[0].read(copy, &mut raw).expect("read");
    sims[0].make_unreadable(copy);
    let fs = open(&sims).expect("open");
    assert_eq!(states(&fs), ["normal", "merging"]);
    let (mut so_far, mut again) = (0, false);
    while fs.regenerate_step(8).expect("step") {
        let now = fs.devices()[1].progress.map_or(0, |p| p.0);
        if now < so_far && !again {
            again = true;
            sims[0].write(copy, &[&raw[0]]).expect("it passes");
        }
        so_far = now;
    }
    assert!(again && states(&fs) == ["normal", "normal"]);
    drop(fs);
    expect_sound(&sims, "tried again");
    expect_each_alone(&sims, 8, "tried again");
}

/// A volume with two files, of which the second device has nothing of use yet: it is being filled.
struct Behind {
    sims: Sims,
    volume: VolumeId,
    files: [NodeId; 2],
}

const FILE_BYTES: usize = 64 * BLOCK;

fn behind() -> Behind {
    let sims = mirror();
    let fs = open(&sims).expect("open");
    let owner = Owner { mode: 0o644, uid: 0, gid: 0 };
    let volume = fs.volume_create("v", owner).expect("volume");
    let file = |name: &str| {
        let made = fs.create(NodeId::root(volume), name.as_bytes(), NewNode::File, owner);
        made.expect("create").id
    };
    let files = [file("a"), file("b")];
    fs.consistency_point().expect("consistency point");
    fs.offline(1).expect("offline");
    for (id, byte) in files.into_iter().zip(1..) {
        write_all(&fs, id, byte);
    }
    fs.consistency_point().expect("consistency point");
    fs.online(&dynamic(&sims[1])).expect("online");
    Behind { sims: crashed(&sims, 1), volume, files }
}

fn write_all(fs: &Arc<Fs>, id: NodeId, byte: u8) {
    let file = fs.open_file(id).expect("open file");
    file.write_at(0, &vec![byte; FILE_BYTES]).expect("write");
}

/// Fills the device, and does `change` once, at each place of the walk in turn. What `check` finds
/// afterwards.
fn fill_beside(change: fn(&Arc<Fs>, &Behind)) -> Vec<String> {
    let behind = behind();
    let (mut errors, mut before) = (Vec::new(), 0);
    loop {
        let sims = crashed(&behind.sims, 1);
        let fs = open(&sims).expect("open");
        assert_eq!(states(&fs), ["normal", "merging"]);
        for _ in 0..before {
            fs.regenerate_step(8).expect("step");
        }
        let is_over = states(&fs) == ["normal", "normal"];
        change(&fs, &behind);
        while fs.regenerate_step(8).expect("step") {}
        assert_eq!(states(&fs), ["normal", "normal"]);
        // Without a step of the scrub that follows, which would heal what is bad.
        fs.close().expect("close");
        drop(fs);
        errors.extend(check(&handles(&sims), CheckOptions { data: true }).expect("check").errors);
        if is_over {
            assert!(before > 10, "{before}");
            return errors;
        }
        before += 1;
    }
}

/// A snapshot has blocks that the live version loses before the walk comes there, and is not
/// written yet when the walk comes to its number: it was passed, and its blocks were bad on a
/// device that was normal.
fn snapshot_then_overwrite(fs: &Arc<Fs>, behind: &Behind) {
    fs.snapshot_create(&[(behind.volume, "s")], false).expect("snapshot");
    write_all(fs, behind.files[1], 9);
}

/// Blocks of a file before the walk are cloned to one behind it, and the first file goes.
fn clone_then_unlink(fs: &Arc<Fs>, behind: &Behind) {
    let [to, from] = behind.files.map(|id| fs.open_file(id).expect("open file"));
    fs.clone_range(&from, 0, &to, 0, FILE_BYTES as u64).expect("clone");
    drop((from, to));
    fs.unlink(NodeId::root(behind.volume), b"b").expect("unlink");
}

/// As before; and what was cloned is in a snapshot alone when the walk comes again.
fn clone_then_snapshot(fs: &Arc<Fs>, behind: &Behind) {
    clone_then_unlink(fs, behind);
    fs.snapshot_create(&[(behind.volume, "s")], false).expect("snapshot");
    write_all(fs, behind.files[0], 9);
}

#[test]
fn what_moves_behind_the_walk_is_filled_too() {
    let changes = [snapshot_then_overwrite, clone_then_unlink, clone_then_snapshot];
    for (n, change) in changes.into_iter().enumerate() {
        assert_eq!(fill_beside(change), Vec::<String>::new(), "change {n}");
    }
    let plants = [
        (Mutation::FreshSnapshotNotFilled, snapshot_then_overwrite as fn(&Arc<Fs>, &Behind)),
        (Mutation::CloneNotFilledAgain, clone_then_unlink),
    ];
    for (mutation, change) in plants {
        plant(Some(mutation));
        let errors = fill_beside(change);
        plant(None);
        assert!(!errors.is_empty(), "{mutation:?} is not seen");
    }
}
