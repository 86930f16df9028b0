//! Clients that we did not write.

use std::process::{Command, Output};

use lunfs::lun::{BlockIo, MemoryLun};

use crate::fixture::{seed, Random, Served, MIB};

/// Runs a tool for at most two minutes. A missing one is a failure that says what to install.
fn run(tool: &str, package: &str, arguments: &[&str]) -> Output {
    let there = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()));
    assert!(there, "{tool} is not installed: apt-get install {package}");
    Command::new("timeout").arg("120").arg(tool).args(arguments).output().unwrap()
}

/// The same, and it must succeed; returns what it printed.
fn good(tool: &str, package: &str, arguments: &[&str]) -> String {
    let output = run(tool, package, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?}: {text}{complaints}");
    text
}

fn libnbd(tool: &str, arguments: &[&str]) -> String {
    good(tool, "libnbd-bin", arguments)
}

fn qemu(tool: &str, arguments: &[&str]) -> String {
    good(tool, "qemu-utils", arguments)
}

/// An image of so many MiB: some random, some zeros, the most a hole.
fn image(served: &Served, mib: u64) -> (String, Vec<u8>) {
    let mut random = Random(seed());
    let mut bytes = vec![0; (mib * MIB) as usize];
    for _ in 0..mib {
        let at = random.below((mib - 1) * MIB / 512) as usize * 512;
        let length = (512 * (1 + random.below(1000))).min(MIB) as usize;
        let part = random.bytes(length);
        bytes[at..at + part.len()].copy_from_slice(&part);
    }
    let path = served.path("image.raw");
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

#[test]
fn nbdinfo_describes_the_export() {
    let served = Served::with(vec![
        MemoryLun::new("disk", 64 * MIB, 512),
        MemoryLun::new("big-blocks", 8 * MIB, 4096),
    ]);
    for uri in [served.tcp("disk"), served.unix("disk")] {
        let told: serde_json::Value =
            serde_json::from_str(&libnbd("nbdinfo", &["--json", &uri])).unwrap();
        let export = &told["exports"][0];
        assert_eq!(export["export-size"], 64 * MIB);
        assert_eq!(export["contexts"][0], "base:allocation");
        assert_eq!(export["block_size_minimum"], 512);
        assert_eq!(export["block_size_preferred"], 4096);
        assert_eq!(export["block_size_maximum"], 32 * MIB);
        for able in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
            assert_eq!(export[format!("can_{able}")], true, "{able}");
        }
        assert_eq!(export["is_read_only"], false);
    }
    let list = libnbd("nbdinfo", &["--list", &served.tcp("")]);
    assert!(list.contains("disk") && list.contains("big-blocks"), "{list}");
    let refused = run("nbdinfo", "libnbd-bin", &[&served.tcp("nobody")]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("nobody"), "{text}");
}

#[test]
fn nbdcopy_brings_an_image_there_and_back() {
    let served = Served::one(64);
    let (path, bytes) = image(&served, 64);
    for uri in [served.tcp("disk"), served.unix("disk")] {
        served.lun().unmap(0, 64 * MIB).unwrap();
        libnbd("nbdcopy", &["--flush", &path, &uri]);
        let mut held = vec![0; bytes.len()];
        served.lun().read(0, &mut held).unwrap();
        assert!(held == bytes);
        assert!(served.lun().mapped_bytes() < 64 * MIB, "the holes were kept");
        assert!(served.lun().flush_count() > 0);
        for extra in [&["--synchronous"][..], &["--connections=4", "--requests=64"], &[]] {
            let back = served.path("back.raw");
            libnbd("nbdcopy", &[extra, &[&uri, &back]].concat());
            assert!(std::fs::read(&back).unwrap() == bytes, "{extra:?}");
            std::fs::remove_file(&back).unwrap();
        }
    }
}

#[test]
fn nbdinfo_maps_holes_and_data() {
    let served = Served::one(64);
    served.lun().write(MIB, &[1; 65536], false).unwrap();
    let map = libnbd("nbdinfo", &["--map", "--json", &served.tcp("disk")]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let runs: Vec<(u64, u64)> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|run| (run["length"].as_u64().unwrap(), run["type"].as_u64().unwrap()))
        .collect();
    assert_eq!(runs, [(MIB, 3), (65536, 0), (63 * MIB - 65536, 3)]);
}

#[test]
fn qemu_img_converts_and_compares() {
    let served = Served::one(64);
    let (path, _) = image(&served, 64);
    for uri in [served.tcp("disk"), served.unix("disk")] {
        served.lun().unmap(0, 64 * MIB).unwrap();
        let onto = ["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", &path, &uri];
        qemu("qemu-img", &onto);
        qemu("qemu-img", &["compare", "-f", "raw", "-F", "raw", &path, &uri]);
        let cow = served.path("copy.qcow2");
        qemu("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, &cow]);
        qemu("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &path, &cow]);
    }
}

#[test]
fn qemu_io_does_every_command() {
    let served = Served::one(64);
    for uri in [served.tcp("disk"), served.unix("disk")] {
        let before = served.lun().flush_count();
        qemu(
            "qemu-io",
            &[
                "-f",
                "raw",
                "-t",
                "none",
                "-c",
                "write -P 0x51 1M 256k",
                "-c",
                "read -P 0x51 1M 256k",
                "-c",
                "write -f -P 0x52 1M 4k",
                "-c",
                "flush",
                "-c",
                "read -P 0x52 1M 4k",
                "-c",
                "write -z 1M 4k",
                "-c",
                "read -P 0 1M 4k",
                "-c",
                "write -z -u 1052672 64k",
                "-c",
                "read -P 0 1052672 64k",
                "-c",
                "discard 1M 256k",
                "-c",
                "read -P 0 1M 256k",
                "-c",
                "write -P 0x53 -q 33553920 512",
                "-c",
                "read -P 0x53 33553920 512",
                &uri,
            ],
        );
        assert!(served.lun().flush_count() > before + 1);
    }
    served.lun().set_read_only(true);
    let uri = served.tcp("disk");
    let refused = run("qemu-io", "qemu-utils", &["-f", "raw", "-c", "write 0 4k", &uri]);
    assert!(!refused.status.success());
    qemu("qemu-io", &["-r", "-f", "raw", "-c", "read 0 4k", &uri]);
}

#[test]
fn qemu_io_is_told_about_a_full_pool_and_a_lost_block() {
    let served = Served::one(64);
    let uri = served.tcp("disk");
    served.lun().set_space(0);
    let full = run("qemu-io", "qemu-utils", &["-f", "raw", "-c", "write 0 4k", &uri]);
    let text =
        String::from_utf8_lossy(&full.stdout).into_owned() + &String::from_utf8_lossy(&full.stderr);
    assert!(text.contains("No space left"), "{text}");
    served.lun().set_bad(0..1);
    let lost = run("qemu-io", "qemu-utils", &["-f", "raw", "-c", "read 0 4k", &uri]);
    let text =
        String::from_utf8_lossy(&lost.stdout).into_owned() + &String::from_utf8_lossy(&lost.stderr);
    assert!(text.contains("Input/output error"), "{text}");
}

/// fio writes at random and reads back what it wrote, with checksums, through its nbd engine.
#[test]
fn fio_verifies_a_random_workload() {
    let engines = good("fio", "fio", &["--enghelp"]);
    assert!(
        engines.contains("nbd"),
        "this fio has no nbd engine: apt-get install fio (3.33 has it)"
    );
    let served = Served::one(64);
    for (uri, slow) in [(served.tcp("disk"), false), (served.unix("disk"), true)] {
        let delay = slow.then_some(std::time::Duration::from_micros(20));
        served.lun().set_blocking(delay);
        good(
            "fio",
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                "--rw=randwrite",
                "--bsrange=512-128k",
                "--iodepth=16",
                "--size=16M",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--do_verify=1",
                "--verify_state_save=0",
                "--trim_percentage=5",
                &format!("--uri={uri}"),
            ],
        );
    }
}
