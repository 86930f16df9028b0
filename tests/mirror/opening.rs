//! Which devices a pool may be opened with.

use crate::lab::*;
use lunfs::device::{Block, BlockDevice};
use lunfs::fs::{Fs, Redundancy};

fn used() -> Sims {
    let sims = mirror();
    let fs = open(&sims).expect("open");
    assert!(steps(&fs, 1, STEPS).1.is_none());
    fs.close().expect("close");
    sims
}

fn refused(sims: &Sims, word: &str) {
    let e = open(sims).map(|_| ()).expect_err(word).to_string();
    assert!(e.contains(word), "{e}");
}

#[test]
fn a_device_that_is_missing_needs_a_word() {
    for there in 0..2 {
        let sims = crashed(&used(), 1);
        let one = vec![sims[there].clone()];
        refused(&one, "--degraded");
        let e = open(&one).map(|_| ()).expect_err("refused").to_string();
        assert!(e.contains(["/dev/b", "/dev/a"][there]), "{e}");
        let fs = Fs::open(handles(&one), degraded(1)).expect("degraded");
        assert_eq!(states(&fs)[1 - there], "missing");
        assert!(!fs.is_whole());
        assert!(step(&fs, 1).is_ok());
        drop(fs);
        // From now on it is known.
        let fs = open(&one).expect("open without a word");
        assert!(steps(&fs, 2, STEPS).1.is_none());
        drop(fs);
        // The one that was away is behind, and nobody believes it.
        let fs = open(&sims).expect("both");
        expect_state(&fs, STEPS, STEPS, "both");
        assert_eq!(states(&fs)[1 - there], "missing");
    }
}

#[test]
fn two_histories_are_never_merged() {
    let sims = crashed(&used(), 1);
    for (there, sim) in sims.iter().enumerate() {
        let one = vec![sim.clone()];
        let fs = Fs::open(handles(&one), degraded(there as u64)).expect("degraded");
        assert!(steps(&fs, 1, 3 + there as u64).1.is_none());
    }
    refused(&sims, "without each other");
    for one in &sims {
        let fs = open(std::slice::from_ref(one)).expect("one side alone");
        assert!(read(&fs).is_ok());
    }
    // The other side's device can be put in its own place, as a new one.
    let fs = open(&sims[1..]).expect("one side");
    let other = sims[0].clone() as std::sync::Arc<dyn BlockDevice>;
    assert!(fs.online(&other).is_err(), "its history is another one");
    fs.replace(0, &other, "/dev/a").expect("replace");
    settle(&fs).expect("regenerate");
    drop(fs);
    let fs = open(&sims).expect("both again");
    assert_eq!(states(&fs), ["normal", "normal"]);
    drop(fs);
    expect_sound(&sims, "one history");
}

#[test]
fn a_device_without_its_labels_is_missing() {
    let sims = crashed(&used(), 1);
    for at in [0, 8] {
        sims[0].write(at, &[&Block::zeroed()]).expect("write");
    }
    sims[0].flush().expect("flush");
    refused(&sims, "--degraded");
    let fs = Fs::open(handles(&sims), degraded(1)).expect("degraded");
    expect_state(&fs, STEPS, STEPS, "without labels");
    assert_eq!(states(&fs), ["missing", "normal"]);
}

#[test]
fn one_torn_label_is_mended() {
    let sims = crashed(&used(), 1);
    sims[0].write(8, &[&Block::zeroed()]).expect("write");
    sims[0].flush().expect("flush");
    drop(open(&sims).expect("open"));
    sims[0].write(0, &[&Block::zeroed()]).expect("write");
    sims[0].flush().expect("flush");
    drop(open(&sims).expect("the other copy was written anew"));
}

#[test]
fn without_redundancy_every_device_is_needed() {
    let sims = pool_of(2, Redundancy::None);
    refused(&sims[..1].to_vec(), "missing");
    let e = Fs::open(handles(&sims[..1]), degraded(1)).map(|_| ()).expect_err("no other copy");
    assert!(e.to_string().contains("missing"), "{e}");
    assert!(open(&sims).is_ok());
}

#[test]
fn a_copied_device_is_no_second_one() {
    let sims = used();
    let copy = crashed(&sims[..1], 1);
    refused(&vec![sims[0].clone(), copy[0].clone()], "same device");
}
