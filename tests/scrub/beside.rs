//! A scrub beside writers, deletes and consistency points: no false error, nothing new overwritten.
//! The pool is nearly full, so what is freed is soon written again by somebody else.

use super::lab::*;
use lunfs::device::sim::{IoEvent, Rng, SimDevice};
use lunfs::fs::{Error, Fs, NodeId, OpenOptions, Outcome, SystemClock, VolumeId};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;

const FILES: usize = 3;
const BLOCKS: u64 = 200;
/// Changes inside one device call of the scrub: so many write more blocks than are free, with
/// consistency points between them.
const BURST: usize = 120;

/// Files and what is in each of their blocks (0: a hole).
struct Model {
    files: Vec<(NodeId, Vec<u64>)>,
    made: u64,
}

impl Model {
    fn new(fs: &Arc<Fs>) -> Model {
        let mut model = Model { files: Vec::new(), made: 0 };
        (0..FILES).for_each(|_| model.make(fs));
        model
    }

    fn make(&mut self, fs: &Arc<Fs>) {
        self.made += 1;
        let id = make_file(fs, &format!("m{}", self.made), 0, 0);
        self.files.push((id, vec![0; BLOCKS as usize]));
    }

    /// `nested`: inside a call of the same thread, where nothing can be waited for.
    fn change(&mut self, fs: &Arc<Fs>, rng: &mut Rng, nested: bool) {
        let i = rng.index(self.files.len());
        match rng.index(40) {
            0 if nested => {}
            0 => {
                let (id, _) = self.files.remove(i);
                let name = fs
                    .readdir(NodeId::root(VolumeId::TREE), 0, 100)
                    .expect("list")
                    .into_iter()
                    .find(|e| e.id == id)
                    .expect("name");
                fs.unlink(NodeId::root(VolumeId::TREE), &name.name).expect("unlink");
                self.make(fs);
            }
            1..=3 => fs.consistency_point().expect("consistency point"),
            4..=6 if nested => {}
            4..=6 => fs.sync().expect("sync"),
            7..=9 => {
                let (id, blocks) = &mut self.files[i];
                let first = rng.below(BLOCKS);
                let count = 1 + rng.below(BLOCKS - first);
                let file = fs.open_file(*id).expect("open");
                file.punch(first * BLOCK, count * BLOCK).expect("punch");
                blocks[first as usize..(first + count) as usize].fill(0);
            }
            _ => {
                let (id, blocks) = &mut self.files[i];
                let first = rng.below(BLOCKS);
                let count = (1 + rng.below(80)).min(BLOCKS - first);
                let seed = 1 + rng.below(1 << 40);
                let bytes: Vec<u8> =
                    (first..first + count).flat_map(|b| content(seed, b)).collect();
                let file = fs.open_file(*id).expect("open");
                match file.write_at(first * BLOCK, &bytes) {
                    Ok(()) => blocks[first as usize..(first + count) as usize].fill(seed),
                    // A consistency point that would bring space is under way outside.
                    Err(Error::NoSpace) if nested => {}
                    Err(e) => panic!("write: {e}"),
                }
            }
        }
    }

    fn verify(&self, fs: &Arc<Fs>) {
        for (id, blocks) in &self.files {
            let file = fs.open_file(*id).expect("open");
            for (b, seed) in blocks.iter().enumerate() {
                let mut got = vec![0; BLOCK as usize];
                file.read_at(b as u64 * BLOCK, &mut got).expect("read");
                let b = b as u64;
                let right = if *seed == 0 { vec![0; got.len()] } else { content(*seed, b) };
                assert!(got == right, "{id:?}, block {b}");
            }
        }
    }
}

/// Leaves so many blocks free.
fn load_ballast(fs: &Arc<Fs>, free: u64) {
    let blocks = (fs.stats().free_bytes / BLOCK).saturating_sub(free);
    let id = make_file(fs, "ballast", 0, 0);
    let file = fs.open_file(id).expect("open");
    for first in (0..blocks).step_by(256) {
        let n = (blocks - first).min(256);
        let bytes: Vec<u8> = (first..first + n).flat_map(|b| content(77, b)).collect();
        file.write_at(first * BLOCK, &bytes).expect("write");
        fs.consistency_point().expect("consistency point");
    }
}

/// Runs a scrub step inside device calls of others, and changes inside those of the scrub.
struct Nest {
    fs: Mutex<Option<Arc<Fs>>>,
    model: Mutex<Option<Model>>,
    rng: Mutex<Rng>,
    open: AtomicBool,
}

impl Nest {
    fn on_io(&self) {
        if !self.open.swap(false, SeqCst) {
            return;
        }
        let mut rng = self.rng.lock().fork();
        let fs = self.fs.lock().clone();
        if let Some(fs) = fs.filter(|_| rng.chance(1, 12)) {
            // Not while a change is under way: then the model is out.
            let model = self.model.lock().take();
            match model {
                Some(mut model) => {
                    let burst = if rng.chance(1, 8) { BURST } else { 1 };
                    (0..burst).for_each(|_| model.change(&fs, &mut rng, true));
                    *self.model.lock() = Some(model);
                }
                None => {
                    fs.scrub_step(1 + rng.below(20)).expect("step");
                }
            }
        }
        self.open.store(true, SeqCst);
    }
}

fn one_thread(seed: u64, devices: &[Arc<SimDevice>], rots: bool) {
    let fs = open(devices);
    load_ballast(&fs, 2 * FILES as u64 * BLOCKS);
    let mut rng = Rng::new(seed);
    let nest = Arc::new(Nest {
        model: Mutex::new(Some(Model::new(&fs))),
        fs: Mutex::new(Some(fs.clone())),
        rng: Mutex::new(rng.fork()),
        open: AtomicBool::new(true),
    });
    for device in devices {
        let nest = nest.clone();
        device.on_io(Some(Arc::new(move |_: &IoEvent| nest.on_io())));
    }
    let mut before = Vec::new();
    for _ in 0..250 {
        if rng.chance(1, 2) {
            let mut model = nest.model.lock().take().expect("model");
            model.change(&fs, &mut rng, false);
            *nest.model.lock() = Some(model);
        } else if !fs.scrub_status().running {
            before.extend(fs.scrub_status().places);
            fs.scrub_start().expect("start");
        } else {
            fs.scrub_step(1 + rng.below(300)).expect("step");
        }
        if rots && rng.chance(1, 10) {
            devices[1].rot(rng.bits(), 5, 512);
        }
    }
    devices.iter().for_each(|d| d.on_io(None));
    before.extend(fs.scrub_status().places);
    if rots {
        before.retain(|p| p.outcome != Outcome::Healed);
    }
    assert_eq!(before, [], "seed {seed}");
    *nest.fs.lock() = None;
    let model = nest.model.lock().take().expect("model");
    model.verify(&fs);
    while fs.scrub_step(1000).expect("step") {}
    fs.consistency_point().expect("consistency point");
    assert_eq!(scrub(&fs, 1000).bad, 0);
    fs.close().expect("close");
    drop(fs);
    if rots {
        ruin(&devices[0], 512);
    }
    model.verify(&open(devices));
    if !rots {
        assert_sound(devices);
    }
}

#[test]
fn interleaved_in_one_thread() {
    for seed in 0..2 {
        one_thread(seed, &plain(1), false);
        one_thread(seed, &mirrored(), true);
    }
}

#[test]
fn beside_threads() {
    let devices = mirrored();
    let options = OpenOptions {
        cache_bytes: 4 << 20,
        clock: Arc::new(SystemClock),
        background: true,
        ..OpenOptions::default()
    };
    let fs = Fs::open(dyns(&devices), options).expect("open");
    load_ballast(&fs, 4000);
    let models: Vec<Model> = (0..2).map(|_| Model { files: Vec::new(), made: 0 }).collect();
    let done = AtomicBool::new(false);
    let models = std::thread::scope(|s| {
        let workers: Vec<_> = models
            .into_iter()
            .enumerate()
            .map(|(i, mut model)| {
                let fs = &fs;
                s.spawn(move || {
                    let mut rng = Rng::new(i as u64 + 40);
                    model.made = i as u64 * 1_000_000;
                    (0..2).for_each(|_| model.make(fs));
                    (0..1500).for_each(|_| model.change(fs, &mut rng, false));
                    model
                })
            })
            .collect();
        let scrubber = s.spawn(|| {
            let mut rounds = 0;
            while !done.load(SeqCst) {
                fs.scrub_start().expect("start");
                while fs.scrub_step(200).expect("step") {}
                let status = fs.scrub_status();
                assert_eq!(status.bad, 0, "{:?}", status.places);
                rounds += 1;
                devices[1].rot(rounds, 20, 512);
            }
            rounds
        });
        let models: Vec<Model> = workers.into_iter().map(|w| w.join().expect("a worker")).collect();
        done.store(true, SeqCst);
        assert!(scrubber.join().expect("the scrubber") > 1);
        models
    });
    models.iter().for_each(|m| m.verify(&fs));
    fs.consistency_point().expect("consistency point");
    assert_eq!(scrub(&fs, 10_000).bad, 0);
    fs.close().expect("close");
    ruin(&devices[0], 512);
    let fs = open(&devices);
    models.iter().for_each(|m| m.verify(&fs));
}
