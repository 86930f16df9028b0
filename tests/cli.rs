//! The built program, driven as a user drives it: temporary pools, ports that are free, servers
//! that are stopped by their process.

#[path = "cli/devices.rs"]
mod devices;
#[path = "cli/lab.rs"]
mod lab;

use lab::{bytes, Lab};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

#[test]
fn words_that_make_no_sense_are_usage_errors() {
    let lab = Lab::new();
    for line in [
        "",
        "paint",
        "lun",
        "lun create vm1",
        "lun create vm1 --size 5X",
        "lun create vm1 --size=-1",
        "lun create vm1 --size 1G novalue",
        "serve --cache 1K /none",
        "serve /none --iscsi 127.0.0.1:99999",
        "serve /none --nbd unix:",
        "serve",
    ] {
        let done = lab.run(line);
        assert_eq!(done.code, 2, "{line}: {}", done.err);
        assert!((1..=3).contains(&done.err.lines().count()), "{line}: {}", done.err);
        assert_eq!(done.out, "", "{line}");
    }
}

#[test]
fn help_has_examples_and_completions_have_words() {
    let lab = Lab::new();
    for line in ["--help", "serve --help", "pool create --help", "lun import --help"] {
        assert!(lab.good(line).contains("Examples:"), "{line}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(lab.good(&format!("completion {shell}")).contains("lunfs"), "{shell}");
    }
    assert!(lab.good("--version").starts_with("lunfs "));
}

#[test]
fn what_is_no_pool_is_refused_shortly_and_left_alone() {
    let lab = Lab::new();
    lab.refused("lun list --pool none", "no such file");
    lab.refused("serve none --nbd 127.0.0.1:0", "no such file");
    lab.refused("pool check none", "no such file");
    let contents = [("text", b"hello".to_vec()), ("zeros", vec![0; 1 << 20]), ("empty", vec![])];
    for (name, content) in contents {
        fs::write(lab.path(name), &content).unwrap();
        lab.refused(&format!("serve {name} --nbd 127.0.0.1:0"), "not a pool");
        lab.refused(&format!("pool show {name}"), "not a pool");
        assert_eq!(fs::read(lab.path(name)).unwrap(), content);
    }
    lab.refused("serve . --nbd 127.0.0.1:0", "neither a regular file");
}

#[test]
fn a_pool_is_made_with_care() {
    let lab = Lab::new();
    lab.refused("pool create p", "needs a size");
    lab.refused("pool create p --size 1M", "at least 64 MiB");
    lab.refused("pool create p --size 1M", "1.0 MiB is too small");
    lab.refused("pool create p p --size 64M", "twice");
    lab.refused("pool create p sub/../p --size 64M", "twice");
    lab.refused("pool create /dev/no-such-disk --size 64M", "no device /dev/no-such-disk");
    lab.refused("pool create none/p --size 64M", "no such file");
    lab.refused("pool create p --size 64M --redundancy mirror", "at least two devices");
    fs::write(lab.path("there"), b"precious").unwrap();
    lab.refused("pool create there --size 64M", "exists already");
    let plan = lab.json("pool create p q --size 64M --dry-run");
    assert_eq!(plan["dry_run"], true);
    assert!(plan["would"].as_str().unwrap().contains("MiB"), "{plan}");
    assert!(!lab.path("p").exists() && !lab.path("q").exists());
    assert_eq!(fs::read(lab.path("there")).unwrap(), b"precious");
}

#[test]
fn a_mirror_has_the_size_of_one_device() {
    let lab = Lab::new();
    let plan = lab.json("pool create p q --size 128M --redundancy mirror --dry-run");
    assert!(plan["would"].as_str().unwrap().contains("a pool of 126.0 MiB"), "{plan}");
    assert_eq!(lab.json("pool create p q --size 128M --redundancy mirror")["redundancy"], "mirror");
    let shown = lab.json("pool show q");
    assert_eq!(shown["redundancy"], "mirror");
    let size = shown["size_bytes"].as_u64().unwrap();
    assert!(size > 120 << 20 && size <= 126 << 20, "{size}");
    lab.json("lun create vm1 --size 16M --pool p");
    assert_eq!(lab.json("lun show vm1 --pool q")["redundancy"], "mirror");
    assert_eq!(lab.json("pool check p")["sound"], true);
}

/// Fills a LUN, makes the pool larger and smaller while it is served and while it is not, and reads
/// the LUN back.
#[test]
fn devices_come_and_go() {
    let mut lab = Lab::with_mirror();
    let image: Vec<u8> =
        (0..8 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(lab.path("image"), &image).unwrap();
    lab.good("lun import vm1 image --pool pool");
    let size = |lab: &Lab| lab.json("pool show pool")["size_bytes"].as_u64().unwrap();
    let small = size(&lab);
    let plan = lab.json("pool add pool r --size 128M --dry-run");
    assert!(plan["moved_segments"].as_u64().unwrap() > 20, "{plan}");
    assert!(!lab.path("r").exists());
    lab.refused("pool remove pool q", "a mirror needs two devices");
    lab.refused("pool remove pool r", "not a device of this pool");
    lab.refused("pool add pool q --size 128M", "exists already");
    lab.good("pool add pool r --size 128M");
    let large = size(&lab);
    assert!(large > small * 14 / 10, "{large} of {small}");
    lab.serve("--nbd 127.0.0.1:0");
    lab.good("pool add pool s --size 64M");
    assert!(size(&lab) > large);
    lab.good("pool remove pool q");
    let shown = lab.json("pool show pool");
    let paths: Vec<String> =
        shown["devices"].as_array().unwrap().iter().map(|d| d["path"].to_string()).collect();
    assert_eq!(paths.len(), 3, "{paths:?}");
    assert!(paths.iter().all(|path| !path.contains("/q")), "{paths:?}");
    fs::remove_file(lab.path("q")).unwrap();
    lab.good("pool grow s --size 128M");
    assert!(shown["devices"][1]["mapped_bytes"].as_u64().unwrap() > 0, "{shown}");
    lab.stop();
    lab.good("pool remove r s");
    lab.good("pool check pool");
    // But for the places of pages in regions that it had for a while.
    assert!(size(&lab).abs_diff(small) < 100_000);
    lab.good("lun export vm1 back --pool r");
    assert!(fs::read(lab.path("back")).unwrap() == image);
    // The pool is what it was: two devices of 128 MiB.
    let plan = lab.json("pool grow pool --dry-run");
    assert_eq!(plan["moved_segments"], 0);
}

#[test]
fn a_device_does_not_leave_with_what_has_no_other_place() {
    let lab = Lab::new();
    lab.good("pool create pool q r --size 64M --redundancy mirror");
    fs::write(lab.path("image"), vec![7; 60 << 20]).unwrap();
    lab.good("lun import vm1 image --pool pool");
    let before = lab.json("pool show pool")["devices"].clone();
    lab.refused("pool remove pool q", "need another place");
    assert_eq!(lab.json("pool show pool")["devices"], before);
    lab.good("pool check pool");
}

#[test]
fn a_pool_beyond_its_first_device() {
    let lab = Lab::new();
    let made = lab.json("pool create p q --size 64M");
    assert_eq!(made["devices"].as_array().unwrap().len(), 2);
    assert_eq!(fs::metadata(lab.path("q")).unwrap().len(), 64 << 20);
    let shown = lab.json("pool show q");
    assert_eq!(shown["id"], made["id"]);
    assert_eq!(shown["state"], "online");
    fs::rename(lab.path("q"), lab.path("moved")).unwrap();
    assert_eq!(lab.json("pool show p")["id"], made["id"]);
    fs::rename(lab.path("moved"), lab.path("sub/moved")).unwrap();
    lab.refused("pool show p", "missing");
    let both = "serve p sub/moved --nbd 127.0.0.1:0 --dry-run";
    assert_eq!(lab.json(both)["dry_run"], true);
}

#[test]
fn a_truncated_pool_is_refused() {
    let lab = Lab::with_pool();
    let file = fs::OpenOptions::new().write(true).open(lab.path("pool")).unwrap();
    file.set_len(32 << 20).unwrap();
    lab.refused("serve pool --nbd 127.0.0.1:0", "truncated");
    lab.refused("lun list", "truncated");
}

#[test]
fn the_life_of_a_lun_without_and_with_a_server() {
    let mut lab = Lab::with_pool();
    life_of_a_lun(&lab);
    lab.serve("--nbd 127.0.0.1:0 --iscsi 127.0.0.1:0");
    life_of_a_lun(&lab);
    lab.stop();
    lab.good("pool check pool");
}

fn life_of_a_lun(lab: &Lab) {
    let plan = lab.json("lun create vm1 --size 64M --dry-run");
    assert_eq!(plan["dry_run"], true);
    assert_eq!(lab.json("lun list"), Value::Array(vec![]));
    let made = lab.json("lun create vm1 --size 64M block-size=4096 vendor=ACME");
    assert_eq!((&made["size_bytes"], &made["block_size_bytes"]), (&bytes(64 << 20), &bytes(4096)));
    assert_eq!(made["target"]["iqn"], "iqn.2026-11.local.lunfs:vm1");
    assert!(made["created"].as_str().unwrap().ends_with('Z'));
    for (line, word) in [
        ("lun create VM1 --size 1M", "taken"),
        ("lun create x --size 1000", "size"),
        ("lun create x --size 0", "size"),
        ("lun create .x --size 1M", "name"),
        ("lun create x --size 1M colour=blue", "colour"),
        ("lun show vm9", "no LUN"),
        ("lun delete vm9", "no LUN"),
        ("lun set vm1 colour=blue", "colour"),
        ("lun set vm1 colour=blue --dry-run", "colour"),
        ("lun resize vm1 --size 1000", "size"),
        ("lun resize vm1 --size 1000 --dry-run", "size"),
        ("lun rename vm1 .x --dry-run", "name"),
    ] {
        lab.refused(line, word);
    }
    lab.good("lun set vm1 product=WIDGET --dry-run");
    lab.good("lun resize vm1 --size 128M --dry-run");
    lab.good("lun rename vm1 vm2 --dry-run");
    lab.good("lun delete vm1 --dry-run");
    let shown = lab.json("lun show vm1");
    assert_eq!((&shown["product"] != "WIDGET", &shown["size_bytes"]), (true, &bytes(64 << 20)));
    assert_eq!(lab.json("lun set vm1 product=WIDGET")["product"], "WIDGET");
    assert_eq!(lab.json("lun resize vm1 --size 128M")["size_bytes"], bytes(128 << 20));
    assert_eq!(lab.json("lun rename vm1 vm2")["name"], "vm2");
    let log = lab.json("lun log vm2");
    assert!(log.as_array().unwrap().iter().any(|line| line["event"] == "resize"), "{log}");
    assert!(lab.good("lun log vm2").lines().all(|line| line.starts_with('{')));
    lab.good("lun show vm2");
    lab.good("lun list");
    lab.good("lun delete vm2");
    assert_eq!(lab.json("lun list"), Value::Array(vec![]));
}

#[test]
fn images_in_and_out() {
    let mut lab = Lab::with_pool();
    lab.sparse_image("image", 48 << 20);
    images(&lab);
    lab.serve("--nbd 127.0.0.1:0");
    images(&lab);
    lab.stop();
    lab.good("pool check pool");
}

/// An image that lies in the pool, by its path in the pool and by that in the mount.
#[test]
fn an_import_from_the_pool_shares_blocks() {
    let mut lab = Lab::with_pool();
    lab.sparse_image("image", 48 << 20);
    lab.good("lun import vm1 image");
    let used = |lab: &Lab| lab.json("pool show pool")["used_bytes"].as_u64().unwrap();
    let before = used(&lab);
    let made = lab.json("lun import vm2 pool:vm1/data");
    assert_eq!(made["image_bytes"], bytes(48 << 20));
    assert!(used(&lab) < before + (1 << 20), "{before} and {}", used(&lab));
    let image = fs::read(lab.path("image")).unwrap();
    assert!(lab.piped("lun export vm2 -", &[]) == image);
    lab.refused("lun import vm3 pool:none", "no such");
    lab.good("lun import vm1 pool:/vm2/data --into");
    fs::create_dir(lab.path("mnt")).unwrap();
    if !std::path::Path::new("/dev/fuse").exists() {
        return;
    }
    lab.serve("--mount mnt");
    lab.good("lun import vm3 mnt/vm1/data");
    lab.good("lun import vm4 pool:vm1/data --size 64M");
    assert!(used(&lab) < before + (2 << 20), "{before} and {}", used(&lab));
    lab.good("lun delete vm1 --force");
    assert!(lab.piped("lun export vm3 -", &[]) == image);
    lab.stop();
    lab.good("pool check pool");
}

fn images(lab: &Lab) {
    let image = fs::read(lab.path("image")).unwrap();
    lab.good("lun import vm1 image --dry-run");
    assert_eq!(lab.json("lun list"), Value::Array(vec![]));
    let made = lab.json("lun import vm1 image");
    assert_eq!(made["image_bytes"], bytes(48 << 20));
    assert!(made["used_bytes"].as_u64().unwrap() < 8 << 20, "{made}");
    lab.good("lun export vm1 back");
    assert_eq!(fs::read(lab.path("back")).unwrap(), image);
    assert!(lab.allocated_bytes("back") < 8 << 20);
    lab.refused("lun export vm1 back", "exists");
    lab.good("lun export vm1 back --force");
    let piped = lab.piped("lun export vm1 -", &[]);
    assert!(piped == image, "an export to a pipe is the image");
    lab.piped("lun import vm2 - --size 48M", &image);
    assert!(lab.piped("lun export vm2 -", &[]) == image, "an import from a pipe is the image");
    lab.good("lun import vm2 image --into");
    lab.refused("lun import vm2 image", "taken");
    lab.refused("lun import vm3 none", "no such file");
    lab.refused("lun import vm3 sub", "directory");
    lab.refused("lun import vm9 image --into", "no LUN");
    lab.good("lun resize vm2 --size 1M");
    lab.refused("lun import vm2 image --into", "image");
    assert_eq!(lab.run("lun import vm3 -").code, 2);
    lab.good("lun delete vm1");
    lab.good("lun delete vm2");
    fs::remove_file(lab.path("back")).unwrap();
    assert_eq!(lab.partial_files(), 0);
}

#[test]
fn a_server_says_what_it_is() {
    let mut lab = Lab::with_pool();
    lab.refused("status", "not served");
    lab.refused("stop", "not served");
    lab.refused("session list", "not served");
    lab.refused("lun log vm1 -f", "not served");
    lab.good("lun create vm1 --size 64M");
    let said = lab.serve("--nbd 127.0.0.1:0 --nbd unix:n.sock --iscsi 127.0.0.1:0");
    for word in ["nbd://127.0.0.1:", "nbd+unix:///vm1?socket=/", "iscsi://127.0.0.1:"] {
        assert!(said.contains(word), "{said}");
    }
    let status = lab.json("status");
    assert_eq!(status["pool"]["id"], lab.json("pool show pool")["id"]);
    assert_eq!(status["scrub"]["state"], "idle");
    for key in ["size_bytes", "free_bytes", "used_bytes"] {
        assert!(status["pool"][key].is_u64(), "{key}");
    }
    for key in ["luns", "sessions", "errors", "doors"] {
        assert!(status[key].is_array(), "{key}");
    }
    assert_eq!(status["doors"].as_array().unwrap().len(), 3);
    assert!(lab.good("status").contains("vm1"));
    let pools = lab.json("pool list");
    assert!(pools.as_array().unwrap().iter().any(|pool| pool["id"] == status["pool"]["id"]));
    lab.refused("session show 77", "no session");
    lab.refused("session drop x", "not the id");
    lab.refused("pool check pool", "in use");
    lab.refused("serve pool --nbd 127.0.0.1:0", "in use");
    let plan = lab.json("stop --dry-run");
    assert_eq!(plan["dry_run"], true);
    lab.stop();
    assert!(!lab.path("n.sock").exists());
    lab.refused("status", "not served");
}

#[test]
fn doors_that_cannot_be_opened() {
    let lab = Lab::with_pool();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    lab.refused(&format!("serve pool --nbd {taken}"), "another program");
    lab.refused(&format!("serve pool --iscsi {taken}"), "another program");
    lab.refused("serve pool --iscsi 0.0.0.0:0", "--insecure");
    lab.refused("serve pool --nbd [::]:0", "--insecure");
    lab.refused("serve pool --mount none", "no such directory");
    lab.refused("serve pool --mount pool", "not a directory");
    fs::write(lab.path("config"), "path = \"pool\"\nport = 1\n").unwrap();
    lab.refused("serve --config config", "line 2");
    lab.refused("serve --config none", "cannot be read");
    lab.good("serve pool --nbd 127.0.0.1:0 --dry-run");
    // Nobody holds the pool after all that.
    lab.good("lun list");
}

/// Nobody waits for ever for a server that says nothing: two silences of 5 s.
#[test]
fn a_server_that_hangs_is_told_of() {
    let mut lab = Lab::with_pool();
    lab.serve("--nbd 127.0.0.1:0");
    let id = lab.signal("STOP");
    let began = Instant::now();
    let done = lab.run("lun list");
    lab.signal("CONT");
    assert_ne!(done.code, 0, "{}", done.out);
    let told = format!("the server (process {id}) does not answer");
    assert!(done.err.contains(&told), "{}", done.err);
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    lab.good("lun list");
    lab.stop();
}

#[test]
fn a_signal_stops_in_order_and_a_killed_server_leaves_nothing_in_the_way() {
    let mut lab = Lab::with_pool();
    lab.serve("--nbd 127.0.0.1:0");
    lab.good("lun create vm1 --size 64M");
    lab.terminate();
    assert_eq!(lab.json("lun list")[0]["name"], "vm1");
    lab.serve("--nbd 127.0.0.1:0");
    lab.good("lun create vm2 --size 64M");
    lab.kill();
    assert_eq!(lab.json("lun list").as_array().unwrap().len(), 2);
    fs::write(lab.path("config"), "path = \"pool\"\nnbd = \"127.0.0.1:0\"\n").unwrap();
    lab.serve_line("serve --config config");
    assert_eq!(lab.json("status")["doors"].as_array().unwrap().len(), 1);
    lab.stop();
    lab.good("pool check pool");
}

#[test]
fn a_pool_grows_without_and_with_a_server() {
    let mut lab = Lab::with_pool();
    let size = |lab: &Lab| lab.json("pool show pool")["size_bytes"].as_u64().unwrap();
    let first = size(&lab);
    lab.good("pool grow pool --size 256M --dry-run");
    assert_eq!(size(&lab), first);
    lab.refused("pool grow pool --size 64M", "shrunk");
    lab.good("pool grow pool --size 256M");
    let second = size(&lab);
    assert!(second > first);
    lab.serve("--nbd 127.0.0.1:0");
    lab.good("pool grow pool --size 512M");
    assert!(size(&lab) > second);
    lab.stop();
    lab.good("pool check pool");
}

#[test]
fn commands_take_turns_where_nobody_serves() {
    let lab = Lab::with_pool();
    std::thread::scope(|scope| {
        for n in 0..6 {
            let lab = &lab;
            scope.spawn(move || lab.good(&format!("lun create vm{n} --size 1M")));
        }
    });
    assert_eq!(lab.json("lun list").as_array().unwrap().len(), 6);
}

#[test]
fn an_interrupted_import_leaves_no_lun() {
    let mut lab = Lab::with_pool();
    lab.interrupted_import("vm1");
    assert_eq!(lab.json("lun list"), Value::Array(vec![]));
    lab.serve("--nbd 127.0.0.1:0");
    lab.interrupted_import("vm1");
    lab.until_no_luns();
    lab.stop();
    lab.good("pool check pool");
}

/// Changes every block of a pool's file that holds one of these pieces of 4 KiB; how many.
fn rot(path: &std::path::Path, pieces: &[u8]) -> usize {
    let mut bytes = fs::read(path).unwrap();
    let wanted: std::collections::HashSet<&[u8]> = pieces.chunks(4096).collect();
    let mut changed = 0;
    for block in bytes.chunks_mut(4096).skip(512) {
        if wanted.contains(&block[..]) {
            block[100] ^= 1;
            changed += 1;
        }
    }
    fs::write(path, bytes).unwrap();
    changed
}

#[test]
fn a_scrub_heals_a_mirror_and_names_what_is_lost() {
    let lab = Lab::new();
    lab.good("pool create a b --size 64M --redundancy mirror");
    let image: Vec<u8> = (0..100u32 * 1024).flat_map(|i| (i * 7 + 1).to_le_bytes()).collect();
    fs::write(lab.path("image"), &image).unwrap();
    lab.good("lun import vm1 image --pool a");
    assert_eq!(lab.json("pool scrub a --dry-run")["dry_run"], true);
    assert_eq!(rot(&lab.path("b"), &image), 100);
    let found = lab.run("pool check a");
    assert!(found.code == 1 && found.out.contains("a copy is bad"), "{}", found.out);
    let done = lab.json("pool scrub a");
    assert_eq!((done["healed"].as_u64(), done["bad"].as_u64()), (Some(100), Some(0)), "{done}");
    assert_eq!(done["state"], "idle");
    lab.good("pool check a");
    assert_eq!(lab.json("pool scrub b")["healed"], 0);
    // Both copies of one block.
    assert_eq!(rot(&lab.path("a"), &image[8192..12_288]), 1);
    assert_eq!(rot(&lab.path("b"), &image[8192..12_288]), 1);
    let failed = lab.run("pool scrub a");
    assert_eq!(failed.code, 1);
    assert!(failed.err.contains("vm1/data: 4096 bytes at 8192"), "{}", failed.err);
    let failed = lab.run("pool scrub a --json");
    assert_eq!(failed.code, 1);
    let value: Value = serde_json::from_str(&failed.out).unwrap();
    assert_eq!((&value["places"][0]["lun"], &value["bad"]), (&"vm1".into(), &1.into()));
    let failed = lab.run("pool check a --repair");
    assert_eq!(failed.code, 1, "{}", failed.out);
    assert!(failed.out.contains("nothing that can be repaired"), "{}", failed.out);
    assert!(failed.out.contains("vm1/data: 4096 bytes at 8192: block"), "{}", failed.out);
    assert_eq!(lab.json("pool show a")["scrub"]["bad"], 1);
    dumps(&lab);
    bad_places_outlive_a_restart(lab, &image);
}

/// Found by a scrub before: `status` and the log say so, an export can go on past it.
fn bad_places_outlive_a_restart(mut lab: Lab, image: &[u8]) {
    lab.serve_line("serve a --nbd 127.0.0.1:0");
    let status = lab.json("status --pool a");
    assert!(status["errors"].to_string().contains("vm1/data: 4096 bytes at 8192"), "{status}");
    assert!(lab.good("status --pool a").contains("last scrub: done"));
    assert!(lab.good("lun log vm1 --pool a").contains("\"offset_bytes\":8192"));
    lab.refused("lun export vm1 out --pool a", "4096 bytes at 8192");
    let past = lab.run("lun export vm1 out --past-bad --pool a");
    assert!(past.code == 1 && past.err.contains("4096 at 8192"), "{}", past.err);
    let mut wanted = image.to_vec();
    wanted[8192..12_288].fill(0);
    assert!(fs::read(lab.path("out")).unwrap() == wanted);
    lab.terminate();
}

fn dumps(lab: &Lab) {
    for object in [
        "",
        "versions",
        "space",
        "log",
        "volumes",
        "dead",
        "volume:16",
        "block:1024",
        "device:0:16",
    ] {
        assert!(lab.good(&format!("pool dump a {object}")).contains(": "), "{object}");
    }
    let file = lab.json("pool dump a name:vm1/data");
    assert_eq!(file["fields"]["size"], 100 * 4096);
    assert!(file["fields"]["btime"].as_str().unwrap().ends_with('Z'), "{file}");
    let label = lab.json("pool dump a")["parts"][0]["parts"][0].clone();
    assert_eq!(label["name"], "label copy 0");
    let fields = &label["parts"][0]["fields"];
    assert_eq!(fields["redundancy"], "mirror");
    assert!(fields["ancestors"].is_array() && fields["created"].is_string(), "{label}");
    for (object, why) in [
        ("block:99999999", "the pool has"),
        ("block:16", "no block of the pool's data"),
        ("volume:99", "there is no volume 99"),
        ("node:1024", "is no node"),
    ] {
        lab.refused(&format!("pool dump a {object}"), why);
    }
}

#[test]
fn a_served_pool_is_scrubbed_beside_its_doors() {
    let mut lab = Lab::with_pool();
    lab.good("lun create vm1 --size 8M");
    lab.serve("--nbd unix:nbd.sock");
    let before = lab.json("status");
    assert_eq!(
        (&before["scrub"]["state"], &before["scrub"]["started"]),
        (&"idle".into(), &Value::Null)
    );
    let begun = lab.json("pool scrub --background");
    assert!(begun["started"].is_string());
    let done = lab.json("pool scrub");
    assert_eq!((&done["state"], &done["bad"]), (&"idle".into(), &0.into()));
    assert_eq!(lab.json("pool show")["devices"][0]["healed_copies"], 0);
    assert!(done["examined_bytes"].as_u64().unwrap() > 4096);
    assert!(lab.json("status")["scrub"]["finished"].is_string());
    lab.good("stop");
}
