//! What must not be frozen: a filesystem that the pool itself needs. It would stand still with the
//! snapshot that it waits for.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Layers that are followed below a pool's file: an image on an image is rare enough.
const MAX_DEPTH: usize = 8;

/// Why the filesystem at `path` must not be frozen for a snapshot of the pool with these devices;
/// `None` if nothing speaks against it.
pub fn check_place(path: &Path, devices: &[PathBuf]) -> Option<String> {
    let Ok(target) = fs::metadata(path) else {
        return Some(format!("{} is not there", path.display()));
    };
    if is_pool_mount(path) {
        return Some(format!("{} lies in the mount of a pool", path.display()));
    }
    let below = devices.iter().find(|device| stands_on(device, target.dev(), MAX_DEPTH))?;
    Some(format!("the pool's own {} lies on that filesystem", below.display()))
}

/// Whether a path lies in a mount of lunfs: in no case can it be frozen.
fn is_pool_mount(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    // The last mount on the longest way is what is seen there.
    let seen = fields.filter(|(at, _)| path.starts_with(at)).max_by_key(|(at, _)| at.len());
    seen.is_some_and(|(_, kind)| kind == "fuse.lunfs")
}

/// Whether a file or block device is kept by the filesystem `dev`.
fn stands_on(device: &Path, dev: u64, depth: usize) -> bool {
    let Ok(found) = fs::metadata(device) else { return false };
    if found.file_type().is_block_device() {
        return found.rdev() == dev || backing_stands_on(found.rdev(), dev, depth);
    }
    found.dev() == dev || backing_stands_on(found.dev(), dev, depth)
}

/// The same of the file behind a loop device, and of the devices below a mapped one.
fn backing_stands_on(device: u64, dev: u64, depth: usize) -> bool {
    if depth == 0 {
        return false;
    }
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let about = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    if let Ok(backing) = fs::read_to_string(about.join("loop/backing_file")) {
        return stands_on(Path::new(backing.trim_end()), dev, depth - 1);
    }
    let Ok(below) = fs::read_dir(about.join("slaves")) else { return false };
    below
        .flatten()
        .any(|entry| stands_on(&Path::new("/dev").join(entry.file_name()), dev, depth - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_pool_lies_on_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pool = dir.path().join("pool.lunfs");
        fs::write(&pool, b"").unwrap();
        let why = check_place(dir.path(), std::slice::from_ref(&pool)).unwrap();
        assert!(why.contains("pool.lunfs"), "{why}");
        assert_eq!(check_place(Path::new("/proc"), &[pool]), None);
        assert!(check_place(&dir.path().join("nothing"), &[]).unwrap().contains("not there"));
    }
}
