//! Permissions: other users, set-user-id, set-group-id, sticky directories, access control lists.

use crate::pool::Pool;
use rustix::fs::XattrFlags;
use std::fs::{self, File};
use std::os::unix::fs::{chown, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Somebody.
const USER: u32 = 54_321;
const GROUP: u32 = 54_322;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Runs a shell command as somebody in the mount's root; whether it succeeded.
fn as_user(pool: &Pool, command: &str) -> bool {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).current_dir("/").env("M", pool.path(""));
    shell.stdout(Stdio::null()).stderr(Stdio::null()).gid(GROUP).uid(USER);
    shell.status().unwrap().success()
}

/// A pool that everybody may enter and write.
fn open_pool() -> Option<Pool> {
    let pool = Pool::new()?;
    // The temporary directory below the mount is the tester's own.
    chmod(&pool.path(""), 0o777);
    Some(pool)
}

#[test]
fn permissions_bind_other_users() {
    let Some(pool) = open_pool() else { return };
    fs::write(pool.path("secret"), b"s").unwrap();
    chmod(&pool.path("secret"), 0o600);
    assert!(!as_user(&pool, "cat $M/secret"));
    assert!(as_user(&pool, "umask 027; echo mine > $M/mine; mkdir $M/dir"));
    let mine = fs::metadata(pool.path("mine")).unwrap();
    assert_eq!((mine.uid(), mine.gid(), mine.mode() & 0o7777), (USER, GROUP, 0o640));
    assert_eq!(mode(&pool.path("dir")), 0o750);
    chmod(&pool.path(""), 0o1777);
    assert!(!as_user(&pool, "rm -f $M/secret"));
    assert!(as_user(&pool, "rm -f $M/mine"));
    assert!(!as_user(&pool, "chown 0 $M/dir"));
}

#[test]
fn a_write_by_others_ends_set_user_id() {
    let Some(pool) = open_pool() else { return };
    let path = pool.path("f");
    fs::write(&path, b"x").unwrap();
    for command in ["echo y >> $M/f", "echo y > $M/f", "truncate -s 9 $M/f"] {
        chmod(&path, 0o6777);
        assert!(as_user(&pool, command));
        assert_eq!(mode(&path), 0o777, "{command}");
    }
    // Where the group may not execute, its members keep the bit, others do not; the superuser keeps
    // what there is.
    chmod(&path, 0o2767);
    assert!(as_user(&pool, "echo y >> $M/f"));
    assert_eq!(mode(&path), 0o767);
    chown(&path, None, Some(GROUP)).unwrap();
    chmod(&path, 0o2767);
    assert!(as_user(&pool, "echo y >> $M/f"));
    assert_eq!(mode(&path), 0o2767);
    chmod(&path, 0o6777);
    fs::write(&path, b"by root").unwrap();
    assert_eq!(mode(&path), 0o6777);
    chown(&path, Some(USER), Some(GROUP)).unwrap();
    assert_eq!(mode(&path), 0o777);
}

#[test]
fn a_write_ends_file_capabilities() {
    let Some(pool) = open_pool() else { return };
    let path = pool.path("f");
    File::create(&path).unwrap();
    let file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    // vfs_ns_cap_data revision 2, cap_net_raw permitted and effective.
    let mut capability = 0x0200_0001u32.to_le_bytes().to_vec();
    capability.extend([0, 0x20, 0, 0].iter().chain(&[0; 12]));
    let name = "security.capability";
    rustix::fs::setxattr(&path, name, &capability, XattrFlags::empty()).unwrap();
    let mut back = [0; 64];
    assert_eq!(rustix::fs::getxattr(&path, name, &mut back[..]), Ok(20));
    std::io::Write::write_all(&mut &file, b"x").unwrap();
    let gone = rustix::fs::getxattr(&path, name, &mut back[..]);
    assert_eq!(gone, Err(rustix::io::Errno::NODATA));
}

#[test]
fn set_group_id_directories_hand_down_their_group() {
    let Some(pool) = open_pool() else { return };
    let dir = pool.path("dir");
    fs::create_dir(&dir).unwrap();
    chown(&dir, None, Some(777)).unwrap();
    chmod(&dir, 0o2777);
    assert!(as_user(&pool, "echo x > $M/dir/f; mkdir $M/dir/d; ln -s x $M/dir/s"));
    for name in ["f", "d", "s"] {
        assert_eq!(fs::symlink_metadata(dir.join(name)).unwrap().gid(), 777, "{name}");
    }
    assert_eq!(mode(&dir.join("d")) & 0o2000, 0o2000);
    assert_eq!(mode(&dir.join("f")) & 0o2000, 0);
}

/// An access list as Linux stores it; entries are (tag, permissions, id).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const NOBODY: u32 = u32::MAX;

#[test]
fn access_lists_are_enforced_and_follow_the_mode() {
    let Some(pool) = open_pool() else { return };
    let path = pool.path("f");
    fs::write(&path, b"x").unwrap();
    chmod(&path, 0o600);
    assert!(!as_user(&pool, "cat $M/f"));
    let list =
        acl(&[(1, 6, NOBODY), (2, 4, USER), (4, 0, NOBODY), (0x10, 4, NOBODY), (0x20, 0, NOBODY)]);
    let name = "system.posix_acl_access";
    rustix::fs::setxattr(&path, name, &list, XattrFlags::empty()).unwrap();
    assert!(as_user(&pool, "cat $M/f"));
    assert_eq!(mode(&path), 0o640);
    chmod(&path, 0o600);
    assert!(!as_user(&pool, "cat $M/f"));
    let mut back = [0; 256];
    let count = rustix::fs::getxattr(&path, name, &mut back[..]).unwrap();
    let masked =
        acl(&[(1, 6, NOBODY), (2, 4, USER), (4, 0, NOBODY), (0x10, 0, NOBODY), (0x20, 0, NOBODY)]);
    assert_eq!(back[..count], masked);
}

#[test]
fn default_lists_are_handed_down_in_place_of_the_umask() {
    let Some(pool) = open_pool() else { return };
    let dir = pool.path("dir");
    fs::create_dir(&dir).unwrap();
    chmod(&dir, 0o777);
    let list =
        acl(&[(1, 7, NOBODY), (2, 6, 1234), (4, 5, NOBODY), (0x10, 7, NOBODY), (0x20, 4, NOBODY)]);
    let name = "system.posix_acl_default";
    rustix::fs::setxattr(&dir, name, &list, XattrFlags::empty()).unwrap();
    assert!(as_user(&pool, "umask 077; echo x > $M/dir/f; mkdir $M/dir/d"));
    assert_eq!(mode(&dir.join("f")), 0o664);
    assert_eq!(mode(&dir.join("d")), 0o774);
    let mut back = [0; 256];
    let count = rustix::fs::getxattr(dir.join("d"), name, &mut back[..]).unwrap();
    assert_eq!(back[..count], list);
    let count = rustix::fs::getxattr(dir.join("f"), "system.posix_acl_access", &mut back[..]);
    assert!(count.is_ok());
    assert!(rustix::fs::getxattr(dir.join("f"), name, &mut back[..]).is_err());
}
