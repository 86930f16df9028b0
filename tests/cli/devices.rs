//! The devices of a mirror, as a user loses, takes back and replaces them.

use super::lab::Lab;
use serde_json::Value;
use std::fs;

fn mirror() -> Lab {
    let lab = Lab::new();
    lab.good("pool create a b --size 96M --redundancy mirror");
    lab
}

fn states(shown: &Value) -> Vec<String> {
    let devices = shown["devices"].as_array().unwrap();
    devices.iter().map(|d| d["state"].as_str().unwrap().to_string()).collect()
}

fn image(lab: &Lab, name: &str, step: u8) -> Vec<u8> {
    let bytes: Vec<u8> = (0..6u32 << 20).map(|i| (i / 4096) as u8 ^ (i as u8) ^ step).collect();
    fs::write(lab.path(name), &bytes).unwrap();
    bytes
}

#[test]
fn a_device_that_is_lost_is_replaced() {
    let mut lab = mirror();
    let bytes = image(&lab, "image", 1);
    lab.good("lun import vm1 image --pool a");
    fs::remove_file(lab.path("b")).unwrap();
    lab.refused("serve a --nbd 127.0.0.1:0", "--degraded");
    lab.refused("lun list --pool a", "--degraded");
    lab.serve_line("serve a --degraded --nbd 127.0.0.1:0");
    let status = lab.json("status --pool a");
    assert_eq!(status["pool"]["state"], "degraded");
    assert_eq!(states(&status["pool"]), ["normal", "missing"]);
    assert!(status["errors"].to_string().contains("missing"), "{status}");
    lab.refused("pool offline a a", "no device left");
    lab.refused("pool online a b", "no such file");
    let plan = lab.json("pool replace a b c --dry-run");
    assert_eq!(plan["dry_run"], true);
    lab.refused("pool replace a b image", "exists already");
    assert_eq!(states(&lab.json("pool replace a b c")), ["normal", "normal"]);
    lab.good("lun export vm1 back --pool a");
    assert!(fs::read(lab.path("back")).unwrap() == bytes);
    lab.terminate();
    assert_eq!(lab.json("pool check c")["sound"], true);
    // The new one alone has everything.
    fs::remove_file(lab.path("a")).unwrap();
    lab.serve_line("serve c --degraded --nbd 127.0.0.1:0");
    lab.good("lun export vm1 again --pool c");
    assert!(fs::read(lab.path("again")).unwrap() == bytes);
    lab.terminate();
}

#[test]
fn a_device_goes_and_comes_back() {
    let mut lab = mirror();
    image(&lab, "image", 1);
    lab.good("lun import vm1 image --pool a");
    fs::write(lab.path("garbage"), [7; 1 << 16]).unwrap();
    lab.refused("serve b garbage --nbd 127.0.0.1:0", "garbage is not a device of the pool at b");
    lab.refused("serve b none --dry-run", "no such file");
    lab.serve_line("serve b --nbd 127.0.0.1:0");
    let location = lab.json("lun show vm1 --pool a")["location"].clone();
    assert!(location.as_array().unwrap().iter().all(|p| p.as_str().unwrap().starts_with('/')));
    assert_eq!(states(&lab.json("pool offline a b")), ["normal", "missing"]);
    let bytes = image(&lab, "second", 2);
    lab.good("lun import vm1 second --into --pool a");
    fs::rename(lab.path("b"), lab.path("moved")).unwrap();
    assert_eq!(states(&lab.json("pool online a moved")), ["normal", "normal"]);
    lab.refused("pool online a moved", "not missing");
    let gained = lab.good("pool grow moved --size 112M");
    assert!(gained.contains("as before: a mirror gains what two"), "{gained}");
    let would = lab.good("pool grow a --size 128M --dry-run");
    assert!(would.contains("MiB") && !would.contains("bytes"), "{would}");
    lab.terminate();
    fs::remove_file(lab.path("a")).unwrap();
    lab.serve_line("serve moved --degraded --nbd 127.0.0.1:0");
    lab.good("lun export vm1 back --pool moved");
    assert!(fs::read(lab.path("back")).unwrap() == bytes);
    lab.terminate();
}

#[test]
fn a_device_that_is_cut_beneath_a_server_loses_nothing() {
    let mut lab = mirror();
    let bytes = image(&lab, "image", 1);
    lab.serve_line("serve a b --nbd 127.0.0.1:0");
    lab.good("lun import vm1 image --pool a");
    let file = fs::OpenOptions::new().write(true).open(lab.path("b")).unwrap();
    file.set_len(3 << 20).unwrap();
    lab.good("lun import vm2 image --pool a");
    for lun in ["vm1", "vm2"] {
        lab.good(&format!("lun export {lun} back --force --pool a"));
        assert!(fs::read(lab.path("back")).unwrap() == bytes, "{lun}");
    }
    // A flush has seen it: the other one knows, and goes on alone without a word more.
    let status = lab.json("status --pool a");
    assert_eq!(states(&status["pool"]), ["normal", "missing"]);
    assert!(status["errors"].to_string().contains("truncated"), "{status}");
    lab.terminate();
    file.set_len(3 << 20).unwrap();
    lab.serve_line("serve a --nbd 127.0.0.1:0");
    lab.refused("pool online a b", "truncated");
    fs::remove_file(lab.path("b")).unwrap();
    assert_eq!(states(&lab.json("pool replace a b b")), ["normal", "normal"]);
    lab.good("lun export vm2 back --force --pool a");
    assert!(fs::read(lab.path("back")).unwrap() == bytes);
    lab.terminate();
    assert_eq!(lab.json("pool check b")["sound"], true);
}

/// Either device's file is deleted while LUNs are being written.
#[test]
fn a_device_that_is_deleted_under_load_loses_nothing() {
    for (gone, left) in [("a", "b"), ("b", "a")] {
        let mut lab = mirror();
        let bytes = image(&lab, "image", 1);
        lab.serve_line("serve a b --nbd 127.0.0.1:0");
        lab.good(&format!("lun import vm0 image --pool {left}"));
        std::thread::scope(|scope| {
            let lab = &lab;
            let load = scope.spawn(move || {
                for n in 1..4 {
                    lab.good(&format!("lun import vm{n} image --pool {left}"));
                }
            });
            std::thread::sleep(std::time::Duration::from_millis(30));
            fs::remove_file(lab.path(gone)).unwrap();
            load.join().unwrap();
        });
        let states = states(&lab.json(&format!("status --pool {left}"))["pool"]);
        assert_eq!(states.iter().filter(|s| **s == "missing").count(), 1, "{gone}: {states:?}");
        lab.good(&format!("pool replace {left} {gone} new"));
        for n in 0..4 {
            lab.good(&format!("lun export vm{n} back --force --pool {left}"));
            assert!(fs::read(lab.path("back")).unwrap() == bytes, "vm{n} without {gone}");
        }
        lab.terminate();
        assert_eq!(lab.json("pool check new")["sound"], true);
    }
}

#[test]
fn two_histories_are_told_apart() {
    let mut lab = mirror();
    fs::create_dir(lab.path("away")).unwrap();
    for (gone, left) in [("b", "a"), ("a", "b")] {
        fs::rename(lab.path(gone), lab.path("away/x")).unwrap();
        lab.serve_line(&format!("serve {left} --degraded --nbd 127.0.0.1:0"));
        lab.good(&format!("lun create on-{left} --size 1M --pool {left}"));
        lab.terminate();
        fs::rename(lab.path("away/x"), lab.path(gone)).unwrap();
    }
    lab.refused("serve a b --nbd 127.0.0.1:0", "without each other");
    lab.refused("serve a --nbd 127.0.0.1:0", "without each other");
    lab.refused("serve a b --degraded --nbd 127.0.0.1:0", "without each other");
    lab.serve_line("serve a --degraded --nbd 127.0.0.1:0");
    assert_eq!(lab.json("lun list --pool a")[0]["name"], "on-a");
    lab.refused("pool online a b", "without the others");
    fs::remove_file(lab.path("b")).unwrap();
    lab.good("pool replace a b b");
    lab.terminate();
    assert_eq!(states(&lab.json("pool show b")), ["normal", "normal"]);
}

#[test]
fn a_device_is_replaced_without_a_server() {
    let lab = mirror();
    image(&lab, "image", 1);
    lab.good("lun import vm1 image --pool a");
    assert_eq!(states(&lab.json("pool replace b a c")), ["normal", "normal"]);
    let shown = lab.json("pool show c");
    let paths: Vec<&str> =
        shown["devices"].as_array().unwrap().iter().map(|d| d["path"].as_str().unwrap()).collect();
    assert!(paths.iter().all(|p| !p.ends_with("/a")), "{paths:?}");
    lab.refused("pool show a", "not a pool");
    assert_eq!(lab.json("pool check c")["sound"], true);
}
