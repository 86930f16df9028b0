//! The clients of others against a real server: one test for each script of `interop/`, and the
//! crash test by `kill -9`. The scripts say what they check; here they are only started, so that
//! one runner sums everything up. A script's output is shown when it fails (`--nocapture` shows it
//! always).

use std::path::{Path, PathBuf};
use std::process::Command;

/// The distribution's own interpreter: its binding of libnbd is not in any other.
const PYTHON: &str = "/usr/bin/python3";

fn run(script: &str) {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let path: PathBuf = tests.join(script);
    let output = Command::new(PYTHON)
        .arg(&path)
        .env("LUNFS", env!("CARGO_BIN_EXE_lunfs"))
        .env("PYTHONUNBUFFERED", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output();
    let output = output.unwrap_or_else(|e| panic!("{PYTHON} (`make setup` installs it): {e}"));
    println!("{}", String::from_utf8_lossy(&output.stdout));
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}: {}", output.status);
}

macro_rules! scripts {
    ($($name:ident => $path:literal),* $(,)?) => {
        $(#[test] fn $name() { run($path) })*

        /// A script that nobody starts proves nothing.
        #[test]
        fn every_script_is_listed() {
            let listed = [$($path),*];
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
            let entries = std::fs::read_dir(folder).expect("tests/interop is readable");
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let libraries = ["harness.py", "blockclients.py", "nbswire.py", "shares.py"];
                let library = libraries.contains(&name.as_str());
                let wanted = format!("interop/{name}");
                assert!(!name.ends_with(".py") || library || listed.contains(&wanted.as_str()),
                    "{wanted} is not listed in tests/interop.rs");
            }
        }
    };
}

scripts! {
    access => "interop/access.py",
    bad_blocks => "interop/bad_blocks.py",
    changes => "interop/changes.py",
    coherence => "interop/coherence.py",
    commands => "interop/commands.py",
    errors => "interop/errors.py",
    exerciser => "interop/exerciser.py",
    file_door => "interop/file_door.py",
    fio => "interop/fio.py",
    full_pool => "interop/full_pool.py",
    kill9 => "kill9.py",
    lease => "interop/lease.py",
    libiscsi => "interop/libiscsi.py",
    libnbd => "interop/libnbd.py",
    memory => "interop/memory.py",
    nbs => "interop/nbs.py",
    nbs_client => "interop/nbs_client.py",
    nfs_export => "interop/nfs_export.py",
    past => "interop/past.py",
    quiesce => "interop/quiesce.py",
    qemu => "interop/qemu.py",
    resize => "interop/resize.py",
    service => "interop/service.py",
    smb_export => "interop/smb_export.py",
    snapshots => "interop/snapshots.py",
    surroundings => "interop/surroundings.py",
    thin => "interop/thin.py",
    tls => "interop/tls.py",
}
