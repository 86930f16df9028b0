//! What people and programs say in words: requests on the control socket, `attributes`, names and
//! sizes. A real pool in a file stands behind them and is sound afterwards.

use crate::{number, seed};
use lunfs::control::doors::Doors;
use lunfs::control::engine::{converse, Engine};
use lunfs::control::pool::{create, LockedPool, NewPool};
use lunfs::device::sim::Rng;
use lunfs::fs::{NewNode, NodeId, Owner, RenameMode, VolumeId};
use lunfs::lun::{check_name, parse_size, CreateLun};
use serde_json::{json, Value};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// A pool of its own, and what answers requests on it.
fn engine(dir: &tempfile::TempDir) -> Arc<Engine> {
    let paths = vec![dir.path().join("pool")];
    let redundancy = Default::default();
    create(&NewPool { paths: paths.clone(), size_bytes: Some(128 << 20), redundancy }).unwrap();
    let pool = LockedPool::lock(&paths, false).unwrap().open(16 << 20).unwrap();
    Arc::new(Engine { pool, doors: Arc::new(Doors::default()), stop: None })
}

fn word(rng: &mut Rng) -> String {
    let known = ["vm1", "VM2", "", ".", "..", "a/b", "vm1@s", "size", "read-only", "block-size"];
    match rng.below(6) {
        0 => "x".repeat(rng.index(300)),
        1 => (0..rng.index(20))
            .map(|_| char::from_u32(rng.bits() as u32 % 0x3000).unwrap())
            .collect(),
        2 => number(rng).to_string() + ["", "K", "T", "q", "-"][rng.index(5)],
        _ => known[rng.index(known.len())].to_owned(),
    }
}

/// Any JSON, not too deep.
fn value(rng: &mut Rng, depth: usize) -> Value {
    match rng.below(if depth > 3 { 5 } else { 7 }) {
        0 => Value::Null,
        1 => (rng.below(2) == 0).into(),
        2 => number(rng).into(),
        3 | 4 => word(rng).into(),
        5 => (0..rng.below(4)).map(|_| value(rng, depth + 1)).collect(),
        _ => Value::Object((0..rng.below(4)).map(|_| (word(rng), value(rng, depth + 1))).collect()),
    }
}

fn request(rng: &mut Rng) -> Vec<u8> {
    let names = [
        "status",
        "pool_show",
        "pool_grow",
        "lun_create",
        "lun_list",
        "lun_show",
        "lun_resize",
        "lun_rename",
        "lun_delete",
        "lun_set",
        "lun_log",
        "lun_import",
        "lun_export",
        "session_list",
        "session_show",
        "session_drop",
        "stop",
        "nothing",
    ];
    let lun = if rng.below(3) > 0 { "vm1".to_owned() } else { word(rng) };
    let mut arguments = json!({
        "lun": lun, "new": word(rng), "size_bytes": rng.below(1 << 24), "path": word(rng),
        "keys": [[word(rng), word(rng)]], "force": rng.below(2) == 0, "into": rng.below(2) == 0,
        "recursive": false, "follow": false, "id": word(rng),
    });
    for field in ["lun", "size_bytes", "keys", "path"] {
        if rng.below(6) == 0 {
            arguments[field] = value(rng, 0);
        }
    }
    let name = names[rng.index(names.len())];
    let mut command = json!({"name": name, "arguments": arguments});
    let bare = ["status", "pool_show", "lun_list", "session_list", "stop"];
    if bare.contains(&name) && rng.below(4) > 0 {
        command = json!({"name": name});
    }
    let version = if rng.below(20) == 0 { value(rng, 2) } else { 1.into() };
    let whole = json!({"version": version, "dry_run": rng.below(4) == 0, "command": command});
    let mut line = serde_json::to_vec(&whole).unwrap();
    if rng.below(4) == 0 {
        for _ in 0..1 + rng.below(4) {
            let at = rng.index(line.len());
            line[at] = rng.bits() as u8;
        }
    }
    if rng.below(20) == 0 {
        line = b"[".repeat(rng.index(3000));
    }
    if rng.below(10) > 0 {
        line.push(b'\n');
    }
    line
}

#[test]
fn fuzz_control_requests() {
    let mut rng = Rng::new(seed());
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(&dir);
    let mut done = 0;
    for _ in 0..1500 {
        let one = CreateLun { size_bytes: 1 << 20, ..CreateLun::default() };
        let _ = engine.pool.catalog.create("vm1", &one);
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(&request(&mut rng)).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        converse(engine.clone(), server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.len() < 1 << 20);
        let lines: Vec<Value> = answer.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        if std::env::var_os("LUNFS_SHOW").is_some() {
            println!("{answer}");
        }
        done += usize::from(lines.last().is_some_and(|last| last.get("result").is_some()));
    }
    assert!(done > 100, "{done} requests were carried out");
    engine.pool.close().unwrap();
}

#[test]
fn fuzz_attributes() {
    let mut rng = Rng::new(seed());
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(&dir);
    let request = CreateLun { size_bytes: 1 << 20, ..CreateLun::default() };
    let lun = engine.pool.catalog.create("vm1", &request).unwrap();
    let mut applied = 0;
    for _ in 0..1500 {
        let mut text = lun.attributes_toml().unwrap().into_bytes();
        for _ in 0..rng.below(4) {
            let at = rng.index(text.len());
            match rng.below(5) {
                0 => text[at] = rng.bits() as u8,
                1 => drop(text.drain(at..(at + rng.index(40)).min(text.len()))),
                2 => drop(text.splice(at..at, word(&mut rng).into_bytes())),
                3 => drop(text.splice(at..at, b"\nsize = 99999999999999999999\n".to_vec())),
                _ => drop(text.splice(at..at, b"[".repeat(rng.index(2000)))),
            }
            if text.is_empty() {
                break;
            }
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        if lun.apply_attributes(text.as_bytes()).is_ok() {
            applied += 1;
        }
        assert!(lun.geometry().block_bytes == 512 || lun.geometry().block_bytes == 4096);
    }
    assert!(applied > 100, "{applied} texts were taken");
    drop(lun);
    engine.pool.close().unwrap();
}

#[test]
fn fuzz_names() {
    let mut rng = Rng::new(seed());
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(&dir);
    let (catalog, fs) = (&engine.pool.catalog, &engine.pool.fs);
    let root = NodeId::root(VolumeId::TREE);
    let owner = Owner { mode: 0o700, uid: 1, gid: 1 };
    for _ in 0..3000 {
        let text = word(&mut rng);
        let _ = (check_name(&text), parse_size(&text));
        let mut name = vec![0; rng.index(300)];
        rng.fill(&mut name);
        if rng.below(2) == 0 {
            name = text.clone().into_bytes();
        }
        let bad = name.is_empty() || name.len() > 255 || name.contains(&0) || name.contains(&b'/');
        let made = fs.create(root, &name, NewNode::File, owner);
        assert!(made.is_err() || !bad, "{name:?} was made");
        let _ = fs.rename(root, &name, root, text.as_bytes(), RenameMode::Replace);
        let _ = fs.unlink(root, &name);
        let _ = fs.volume_lookup(&text);
        if catalog.create(&text, &CreateLun { size_bytes: 512, ..<_>::default() }).is_ok() {
            catalog.delete(&text, <_>::default()).unwrap();
        }
    }
    engine.pool.close().unwrap();
}
