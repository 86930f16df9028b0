//! POSIX access control lists as extended attributes: with `FUSE_POSIX_ACL` the kernel enforces
//! them, the filesystem keeps mode bits and lists in step and hands default lists down (posix_acl.c
//! of Linux, POSIX 1003.1e draft 17).
//!
//! The attribute's bytes: version 2 as u32, then for each entry tag u16, permissions u16, id u32,
//! all little-endian (linux/posix_acl_xattr.h).

use super::errno::Result;
use fuser::Errno;

/// Name of the attribute that holds a node's own list.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of the attribute that holds the list a directory hands down.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// `POSIX_ACL_XATTR_VERSION`.
const VERSION: u32 = 2;
/// Bytes of the version.
const HEADER_BYTES: usize = 4;
/// Bytes of an entry.
const ENTRY_BYTES: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// An access control list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

/// What a new node gets from its directory's default list.
#[derive(Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Its permission bits (0777).
    pub mode: u32,
    /// Its own list, where the bits alone do not say it all.
    pub access: Option<Acl>,
}

impl Acl {
    /// Reads an attribute's bytes; EINVAL if they are no list, EOPNOTSUPP for another version.
    pub fn parse(bytes: &[u8]) -> Result<Acl> {
        let (version, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(Errno::EINVAL)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Errno::EOPNOTSUPP);
        }
        let chunks = rest.chunks_exact(ENTRY_BYTES);
        let odd = chunks.remainder();
        let entries: Vec<Entry> = chunks.filter_map(entry).collect();
        let known = |e: &Entry| matches!(e.tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER);
        if !odd.is_empty() || !entries.iter().all(|e| known(e) && e.perm <= 7) {
            return Err(Errno::EINVAL);
        }
        let acl = Acl(entries);
        let whole = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|&tag| acl.find(tag).is_some());
        if acl.0.is_empty() || whole {
            Ok(acl)
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// The attribute's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for e in &self.0 {
            out.extend_from_slice(&e.tag.to_le_bytes());
            out.extend_from_slice(&e.perm.to_le_bytes());
            out.extend_from_slice(&e.id.to_le_bytes());
        }
        out
    }

    /// Whether it says nothing: setting it takes the attribute away.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether permission bits alone say the same.
    pub fn is_minimal(&self) -> bool {
        !self.0.iter().any(|e| matches!(e.tag, USER | GROUP | MASK))
    }

    /// The permission bits (0777) that stand for this list: the group's are the mask's, if it has
    /// one.
    pub fn mode(&self) -> u32 {
        let perm = |tag| self.find(tag).map_or(0, |e| u32::from(e.perm));
        let group = if self.find(MASK).is_some() { MASK } else { GROUP_OBJ };
        perm(USER_OBJ) << 6 | perm(group) << 3 | perm(OTHER)
    }

    /// The list after chmod to `mode`.
    pub fn with_mode(mut self, mode: u32) -> Acl {
        self.set(USER_OBJ, mode >> 6);
        let group = if self.find(MASK).is_some() { MASK } else { GROUP_OBJ };
        self.set(group, mode >> 3);
        self.set(OTHER, mode);
        self
    }

    /// What a node created with `mode` gets from this default list: both limit each other.
    pub fn inherit(&self, mode: u32) -> Inherited {
        let mode = self.mode() & mode & 0o777;
        let access = (!self.is_minimal()).then(|| self.clone().with_mode(mode));
        Inherited { mode, access }
    }

    fn find(&self, tag: u16) -> Option<&Entry> {
        self.0.iter().find(|e| e.tag == tag)
    }

    fn set(&mut self, tag: u16, perm: u32) {
        if let Some(e) = self.0.iter_mut().find(|e| e.tag == tag) {
            e.perm = (perm & 7) as u16;
        }
    }
}

fn entry(bytes: &[u8]) -> Option<Entry> {
    let [t0, t1, p0, p1, i0, i1, i2, i3] = *<&[u8; ENTRY_BYTES]>::try_from(bytes).ok()?;
    Some(Entry {
        tag: u16::from_le_bytes([t0, t1]),
        perm: u16::from_le_bytes([p0, p1]),
        id: u32::from_le_bytes([i0, i1, i2, i3]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl(entries.iter().map(|&(tag, perm, id)| Entry { tag, perm, id }).collect())
    }

    fn extended() -> Acl {
        let none = u32::MAX;
        acl(&[
            (USER_OBJ, 7, none),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, none),
            (MASK, 7, none),
            (OTHER, 4, none),
        ])
    }

    #[test]
    fn bytes_round_trip() {
        assert_eq!(Acl::parse(&extended().to_bytes()).unwrap(), extended());
    }

    #[test]
    fn damaged_bytes_are_refused() {
        let good = extended().to_bytes();
        assert_eq!(Acl::parse(&[]).unwrap_err(), Errno::EINVAL);
        assert_eq!(Acl::parse(&good[..good.len() - 1]).unwrap_err(), Errno::EINVAL);
        let mut version = good.clone();
        version[0] = 3;
        assert_eq!(Acl::parse(&version).unwrap_err(), Errno::EOPNOTSUPP);
        let mut tag = good.clone();
        tag[HEADER_BYTES] = 3;
        assert_eq!(Acl::parse(&tag).unwrap_err(), Errno::EINVAL);
        let without_owner = acl(&[(GROUP_OBJ, 5, 0), (OTHER, 4, 0)]).to_bytes();
        assert_eq!(Acl::parse(&without_owner).unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn the_mask_stands_for_the_group() {
        assert_eq!(extended().mode(), 0o774);
        assert_eq!(extended().with_mode(0o640).mode(), 0o640);
        assert_eq!(extended().with_mode(0o640).find(GROUP_OBJ).unwrap().perm, 5);
    }

    #[test]
    fn a_new_node_gets_no_more_than_asked_for() {
        let inherited = extended().inherit(0o666);
        assert_eq!(inherited.mode, 0o664);
        assert_eq!(inherited.access.unwrap().mode(), 0o664);
        let minimal = acl(&[(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 0, 0)]);
        assert_eq!(minimal.inherit(0o666), Inherited { mode: 0o640, access: None });
    }
}
