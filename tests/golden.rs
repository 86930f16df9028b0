//! Pools written by earlier versions must open for ever: each folder of `fs-layout/golden` holds
//! one as a list of its blocks that are not zeros, cut off by a power failure, so that it has a log
//! to replay, and what must be found in it. `v1` is the plain format, `v1-versions` has snapshots,
//! clones, and a deleted version between others, `v1-clones` files that share ranges.
//!
//! `LUNFS_GOLDEN=v1-versions cargo test --test golden` writes the files of one anew: only before a
//! format is released.

use lunfs::device::sim::SimDevice;
use lunfs::device::{Block, BlockDevice, BLOCK_BYTES};
use lunfs::fs::{
    check, CheckOptions, Clock, FormatOptions, Fs, NewNode, NodeId, NodeKind, OpenOptions, Owner,
    Result, Timestamp, VolumeId, XattrMode,
};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

const BLOCKS: u64 = 64 * 256;
/// Zeros in a row that end a run of bytes in the list.
const GAP: usize = 16;

struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp(1_795_219_200_000_000_000)
    }
}

fn golden(image: &str, name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fs-layout/golden").join(image).join(name)
}

fn open(device: &Arc<SimDevice>) -> Result<Arc<Fs>> {
    let options = OpenOptions {
        cache_bytes: 16 << 20,
        clock: Arc::new(Fixed),
        background: false,
        ..OpenOptions::default()
    };
    Fs::open(vec![device.clone()], options)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| if i % 512 < 24 { (i / 512) as u8 ^ seed } else { 0 }).collect()
}

fn empty(pool_id: &[u8; 16]) -> Result<(Arc<SimDevice>, Arc<Fs>)> {
    let device = Arc::new(SimDevice::new(BLOCKS, 1));
    let options = FormatOptions {
        pool_id: *pool_id,
        created: Fixed.now(),
        paths: vec!["golden.pool".into()],
        redundancy: Default::default(),
    };
    Fs::format(&[device.clone() as Arc<dyn BlockDevice>], &options)?;
    let fs = open(&device)?;
    Ok((device, fs))
}

/// Snapshots with shared blocks, a clone, a held one, a bookmark, one that was deleted and stays
/// hidden for its two branches, one that is gone; at the end a snapshot that only the log has.
fn make_versions() -> Result<Arc<SimDevice>> {
    let (device, fs) = empty(b"golden versions.")?;
    let owner = Owner { mode: 0o600, uid: 1000, gid: 100 };
    let lun = fs.volume_create("vm1", owner)?;
    let data = fs.create(NodeId::root(lun), b"data", NewNode::File, owner)?.id;
    let data = fs.open_file(data)?;
    for (n, name) in ["monday", "tuesday", "wednesday", "thursday"].iter().enumerate() {
        for block in n..300 - 40 * n {
            data.write_at(block as u64 * 4096, &[n as u8 + 1; 24])?;
        }
        fs.create(NodeId::root(lun), name.as_bytes(), NewNode::File, owner)?;
        fs.snapshot_create(&[(lun, name), (VolumeId::TREE, name)], n == 1)?;
        fs.consistency_point()?;
    }
    let of = |name| fs.snapshot_lookup(lun, name).map(|s| s.map(|s| s.id).unwrap_or(lun));
    let clone = fs.volume_clone(of("tuesday")?, "vm2")?;
    let cloned = fs.lookup(NodeId::root(clone), b"data")?.id;
    fs.open_file(cloned)?.write_at(0, &pattern(9000, 9))?;
    fs.bookmark_create(lun, "tuesday", "mark")?;
    fs.snapshot_hold(lun, "monday", true, Some(Timestamp(Fixed.now().0 + 1)))?;
    fs.snapshot_delete(lun, "tuesday")?;
    fs.snapshot_delete(lun, "wednesday")?;
    while fs.maintain()? {}
    fs.consistency_point()?;
    // From here on in the log.
    data.punch(0, 10 * 4096)?;
    fs.snapshot_create(&[(lun, "friday")], false)?;
    data.write_at(4096, &pattern(4096, 4))?;
    fs.sync()?;
    device.cut_power();
    drop((data, fs));
    device.crash(1);
    Ok(device)
}

/// Files that share ranges by clones, some of them changed or gone since, beside a snapshot; the
/// last clones in the log only.
fn make_clones() -> Result<Arc<SimDevice>> {
    let (device, fs) = empty(b"golden clones v1")?;
    let owner = Owner { mode: 0o600, uid: 1000, gid: 100 };
    let root = NodeId::root(VolumeId::TREE);
    let file =
        |name: &str| fs.open_file(fs.create(root, name.as_bytes(), NewNode::File, owner)?.id);
    let source = file("source")?;
    for block in 0..600u64 {
        source.write_at(block * 4096, &[block as u8 | 1; 20])?;
    }
    let lun = fs.volume_create("vm1", owner)?;
    let data = fs.create(NodeId::root(lun), b"data", NewNode::File, owner)?.id;
    let data = fs.open_file(data)?;
    fs.clone_range(&source, 0, &data, 0, 600 * 4096)?;
    fs.snapshot_create(&[(lun, "monday")], false)?;
    data.write_at(4096, &pattern(9000, 7))?;
    let (part, gone) = (file("part")?, file("gone")?);
    fs.clone_range(&source, 300 * 4096, &part, 5 * 4096, 100 * 4096)?;
    fs.clone_range(&source, 0, &gone, 0, 600 * 4096)?;
    fs.consistency_point()?;
    drop(gone);
    fs.unlink(root, b"gone")?;
    source.punch(0, 256 * 4096)?;
    while fs.maintain()? {}
    fs.consistency_point()?;
    // From here on in the log.
    fs.clone_range(&data, 0, &file("late")?, 0, 300 * 4096)?;
    data.write_at(0, &pattern(4096, 8))?;
    fs.sync()?;
    device.cut_power();
    drop((source, data, part, fs));
    device.crash(1);
    Ok(device)
}

/// A pool with something of everything; its last changes are in the log only.
fn make() -> Result<Arc<SimDevice>> {
    let (device, fs) = empty(b"golden image v1.")?;
    let owner = |mode| Owner { mode, uid: 1000, gid: 100 };
    let root = NodeId::root(VolumeId::TREE);
    let dir = fs.create(root, b"directory", NewNode::Directory, owner(0o2755))?.id;
    for n in 0..70 {
        fs.create(dir, format!("file-{n:02}").as_bytes(), NewNode::File, owner(0o600))?;
    }
    let small = fs.create(root, b"small", NewNode::File, owner(0o644))?.id;
    fs.open_file(small)?.write_at(100, &pattern(5000, 1))?;
    fs.link(small, dir, b"second name of small")?;
    fs.xattr_set(small, b"user.note", b"kept", XattrMode::Any)?;
    fs.create(root, b"link", NewNode::Symlink(b"directory/file-00"), owner(0o777))?;
    fs.create(root, b"pipe", NewNode::Special(NodeKind::Fifo, 0), owner(0o600))?;
    let lun = fs.volume_create("vm1", owner(0o755))?;
    let data = fs.create(NodeId::root(lun), b"data", NewNode::File, owner(0o600))?.id;
    let data = fs.open_file(data)?;
    data.set_size(1 << 40)?;
    data.write_at(0, &pattern(9000, 2))?;
    data.write_at((1 << 39) + 512, &pattern(4096, 3))?;
    fs.consistency_point()?;
    // From here on in the log.
    data.write_at(4096, &pattern(4096, 4))?;
    data.punch(0, 4096)?;
    fs.unlink(dir, b"file-07")?;
    fs.create(root, b"late", NewNode::File, owner(0o640))?;
    fs.volume_rename("vm1", "vm2")?;
    fs.sync()?;
    device.cut_power();
    drop((data, fs));
    device.crash(1);
    Ok(device)
}

/// Lists what a pool holds, one line a name.
fn dump(fs: &Arc<Fs>) -> Result<String> {
    let mut out = String::new();
    dump_below(fs, NodeId::root(VolumeId::TREE), "", &mut out)?;
    for (name, volume) in fs.volume_list()? {
        dump_below(fs, NodeId::root(volume), &format!("{name}:"), &mut out)?;
    }
    let volumes = fs.volume_list()?.into_iter().chain([("/".to_string(), VolumeId::TREE)]);
    for (name, volume) in volumes {
        for s in fs.snapshot_list(volume)? {
            let _ = writeln!(
                out,
                "{name}@{} epoch {} held {} until {:?} consistent {}",
                s.name,
                s.epoch,
                s.held,
                s.hold_until,
                s.consistency.is_application()
            );
            dump_below(fs, NodeId::root(s.id), &format!("{name}@{}:", s.name), &mut out)?;
        }
        for b in fs.bookmark_list(volume)? {
            let _ = writeln!(out, "{name}#{} epoch {} of {}", b.name, b.epoch, b.of.0);
        }
    }
    Ok(out)
}

fn dump_below(fs: &Arc<Fs>, id: NodeId, path: &str, out: &mut String) -> Result<()> {
    let a = fs.getattr(id)?;
    let size = if a.kind == NodeKind::Directory { 0 } else { a.size_bytes };
    let _ = write!(
        out,
        "{path}/ {:?} ino {} mode {:o} owner {}:{} links {} size {size} mtime {}",
        a.kind, id.ino, a.mode, a.uid, a.gid, a.nlink, a.mtime.0
    );
    for name in fs.xattr_list(id)? {
        let value = fs.xattr_get(id, &name)?;
        let _ = write!(out, " {}={}", name.escape_ascii(), value.escape_ascii());
    }
    match a.kind {
        NodeKind::Symlink => {
            let _ = writeln!(out, " -> {}", fs.readlink(id)?.escape_ascii());
        }
        NodeKind::File => dump_data(fs, id, out)?,
        _ => out.push('\n'),
    }
    if a.kind == NodeKind::Directory {
        let mut entries = fs.readdir(id, 0, usize::MAX)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            let below = format!("{path}/{}", entry.name.escape_ascii());
            dump_below(fs, entry.id, &below, out)?;
        }
    }
    Ok(())
}

fn dump_data(fs: &Arc<Fs>, id: NodeId, out: &mut String) -> Result<()> {
    let file = fs.open_file(id)?;
    let mut at = 0;
    while let Some(start) = file.seek_data(at)? {
        at = file.seek_hole(start)?;
        let mut bytes = vec![0; (at - start) as usize];
        file.read_at(start, &mut bytes)?;
        let hash = blake3::hash(&bytes).to_hex();
        let _ = write!(out, " [{start}+{} {}]", at - start, &hash[..16]);
    }
    out.push('\n');
    Ok(())
}

/// One line for each run of bytes: block, offset in it, bytes.
fn list_blocks(device: &SimDevice) -> Result<String> {
    let mut out = String::new();
    for at in device.stored_blocks() {
        let mut block = [Block::zeroed()];
        device.read(at, &mut block)?;
        let bytes = &block[0].0;
        let mut start = 0;
        while let Some(first) = (start..BLOCK_BYTES).find(|&i| bytes[i] != 0) {
            let gap = |i: &usize| bytes[*i..].iter().take(GAP).all(|&b| b == 0);
            let end = (first..BLOCK_BYTES).find(gap).unwrap_or(BLOCK_BYTES);
            let _ = write!(out, "{at} {first} ");
            bytes[first..end].iter().for_each(|byte| {
                let _ = write!(out, "{byte:02x}");
            });
            out.push('\n');
            start = end;
        }
    }
    Ok(out)
}

fn read_list(text: &str) -> Option<Arc<SimDevice>> {
    let device = SimDevice::new(BLOCKS, 1);
    for line in text.lines() {
        let mut words = line.split(' ');
        let (at, start) = (words.next()?.parse().ok()?, words.next()?.parse::<usize>().ok()?);
        let hex = words.next()?;
        let mut block = [Block::zeroed()];
        device.read(at, &mut block).ok()?;
        let [mut block] = block;
        for (n, slot) in block.0.get_mut(start..start + hex.len() / 2)?.iter_mut().enumerate() {
            *slot = u8::from_str_radix(hex.get(2 * n..2 * n + 2)?, 16).ok()?;
        }
        device.write(at, &[&block]).ok()?;
    }
    device.flush().ok()?;
    Some(Arc::new(device))
}

fn opens(image: &str, make: impl Fn() -> Result<Arc<SimDevice>>) {
    if std::env::var("LUNFS_GOLDEN").is_ok_and(|what| what == image) {
        let device = make().unwrap();
        std::fs::create_dir_all(golden(image, "")).unwrap();
        std::fs::write(golden(image, "image.txt"), list_blocks(&device).unwrap()).unwrap();
        let fs = open(&device).unwrap();
        std::fs::write(golden(image, "contents.txt"), dump(&fs).unwrap()).unwrap();
    }
    let blocks = std::fs::read_to_string(golden(image, "image.txt")).unwrap();
    let device = read_list(&blocks).unwrap();
    let wanted = std::fs::read_to_string(golden(image, "contents.txt")).unwrap();
    for _ in 0..2 {
        let found = check(&[device.clone() as Arc<dyn BlockDevice>], CheckOptions { data: true });
        assert_eq!(found.unwrap().errors, Vec::<String>::new());
        let fs = open(&device).unwrap();
        assert_eq!(dump(&fs).unwrap(), wanted);
        fs.close().unwrap();
    }
}

#[test]
fn pools_of_version_1_open() {
    opens("v1", make);
}

#[test]
fn pools_with_clones_open() {
    opens("v1-clones", make_clones);
}

#[test]
fn pools_with_versions_open() {
    opens("v1-versions", make_versions);
}
