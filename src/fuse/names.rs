//! Making and moving names: create, mknod, mkdir, symlink, link, rename.
//!
//! The kernel has checked permissions (`default_permissions`); what it leaves to the filesystem is
//! who owns a new node, what of its mode a default ACL or the umask takes away, and set-group-id
//! directories.

use super::acl::{self, Acl};
use super::attr::S_ISGID;
use super::errno::{of_fs, OrErrno, Result};
use super::handles::TOO_LONG;
use super::notify;
use super::tree::{Part, Place, Tree};
use crate::fs::{Attr, Error, NewNode, NodeId, NodeKind, Owner, RenameMode, XattrMode};
use crate::lun::{Lun, TreeNameGuard, MAX_ATTRIBUTES_TEXT_BYTES};
use fuser::{Errno, RenameFlags};

/// Who asks, and how: what a new node's owner and mode are made of.
#[derive(Debug, Clone, Copy)]
pub struct Maker {
    /// Filesystem user id of the caller.
    pub uid: u32,
    /// Filesystem group id of the caller.
    pub gid: u32,
    /// Mode as the caller gave it (07777).
    pub mode: u32,
    /// The caller's umask: a default ACL takes its place.
    pub umask: u32,
}

impl Tree {
    /// Makes a node in a directory of the ordinary tree.
    pub fn make(&self, dir: &Place, name: &[u8], node: NewNode<'_>, maker: Maker) -> Result<Attr> {
        let id = dir.changeable()?;
        if self.is_snapshots(dir, name) {
            return Err(Errno::EEXIST);
        }
        let _name_is_free = self.reserve(dir, name)?;
        let above = self.fs().getattr(id).or_errno()?;
        let is_directory = matches!(node, NewNode::Directory);
        let is_link = matches!(node, NewNode::Symlink(_));
        let default = if is_link { None } else { self.acl(id, acl::DEFAULT)? };
        let mut owner = owner(&above, is_directory, maker);
        let mut access = None;
        match &default {
            Some(list) => {
                let inherited = list.inherit(owner.mode);
                owner.mode = owner.mode & !0o777 | inherited.mode;
                access = inherited.access;
            }
            None if is_link => owner.mode = 0o777,
            None => owner.mode &= !maker.umask,
        }
        let made = self.fs().create(id, name, node, owner).or_errno()?;
        self.hand_down(made.id, access, default.filter(|_| is_directory))?;
        Ok(made)
    }

    fn hand_down(&self, id: NodeId, access: Option<Acl>, default: Option<Acl>) -> Result<()> {
        for (name, list) in [(acl::ACCESS, access), (acl::DEFAULT, default)] {
            if let Some(list) = list {
                self.fs().xattr_set(id, name, &list.to_bytes(), XattrMode::Any).or_errno()?;
            }
        }
        Ok(())
    }

    /// The list that an inode has under `name`.
    pub fn acl(&self, id: NodeId, name: &[u8]) -> Result<Option<Acl>> {
        match self.fs().xattr_get(id, name) {
            Ok(bytes) => Acl::parse(&bytes).map(Some),
            Err(Error::NoAttribute) => Ok(None),
            Err(error) => Err(of_fs(&error)),
        }
    }

    /// Keeps LUNs from taking a name of the root while an entry is made under it.
    fn reserve(&self, dir: &Place, name: &[u8]) -> Result<Option<TreeNameGuard<'_>>> {
        dir.is_root().then(|| self.catalog().check_tree_name(name).or_errno()).transpose()
    }

    /// Gives a node of the ordinary tree one more name.
    pub fn link(&self, node: &Place, dir: &Place, name: &[u8]) -> Result<Attr> {
        let target = dir.changeable()?;
        match node {
            Place::Tree(_) if self.is_snapshots(dir, name) => Err(Errno::EEXIST),
            Place::Tree(id) => {
                let _name_is_free = self.reserve(dir, name)?;
                self.fs().link(*id, target, name).or_errno()
            }
            _ => Err(Errno::EXDEV),
        }
    }

    /// Renames an entry, or a LUN.
    pub fn rename(
        &self,
        dir: &Place,
        name: &[u8],
        to_dir: &Place,
        to_name: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        let mode = rename_mode(flags)?;
        if let Place::Snapshots(volume) = dir {
            return self.rename_snapshot(*volume, name, to_dir, to_name, mode);
        }
        if self.is_snapshots(dir, name) || self.is_snapshots(to_dir, to_name) {
            return Err(Errno::EPERM);
        }
        if let Some(lun) = dir.is_root().then(|| self.lun_named(name)).flatten() {
            return self.rename_lun(&lun, to_dir, to_name, mode);
        }
        let from = dir.changeable()?;
        if let (Place::LunDirectory(lun), RenameMode::Replace) = (to_dir, mode) {
            return self.replace_attributes(lun, from, name, to_name);
        }
        let to = to_dir.changeable()?;
        if to_dir.is_root() && self.lun_named(to_name).is_some() {
            let refusal =
                if mode == RenameMode::Replace { Errno::ENOTEMPTY } else { Errno::EEXIST };
            return Err(refusal);
        }
        let _name_is_free = self.reserve(to_dir, to_name)?;
        self.fs().rename(from, name, to, to_name, mode).or_errno()
    }

    fn rename_lun(&self, lun: &Lun, to_dir: &Place, to: &[u8], mode: RenameMode) -> Result<()> {
        if !to_dir.is_root() || mode == RenameMode::Exchange {
            return Err(Errno::EPERM);
        }
        let to = std::str::from_utf8(to).map_err(|_| Errno::EINVAL)?;
        notify::own_change(|| self.catalog().rename(&lun.name(), to).or_errno())
    }

    /// An editor wrote its text elsewhere and puts it in the place of `attributes`: the text is
    /// applied, the file that held it goes.
    fn replace_attributes(
        &self,
        lun: &Lun,
        from: NodeId,
        name: &[u8],
        to_name: &[u8],
    ) -> Result<()> {
        let target = self.fs().lookup(NodeId::root(lun.volume()), to_name).or_errno();
        if !matches!(
            self.place_of(target.map_err(|_| Errno::EPERM)?.id)?,
            Place::LunFile(_, Part::Attributes, _)
        ) {
            return Err(Errno::EPERM);
        }
        let source = self.fs().lookup(from, name).or_errno()?;
        if source.kind != NodeKind::File {
            lun.note_refused_attributes("what was renamed to it is no file");
            return Err(Errno::EPERM);
        }
        if source.size_bytes > MAX_ATTRIBUTES_TEXT_BYTES as u64 {
            lun.note_refused_attributes(TOO_LONG);
            return Err(Errno::EFBIG);
        }
        let mut text = vec![0; source.size_bytes as usize];
        let count = self.fs().open_file(source.id).or_errno()?.read_at(0, &mut text).or_errno()?;
        text.truncate(count);
        lun.apply_attributes(&text).or_errno()?;
        self.fs().unlink(from, name).or_errno()
    }
}

/// Who owns a new node below `above`: a set-group-id directory hands its group down, and to
/// directories that property too (mkdir(2)). `mode` is without ACL and umask yet.
fn owner(above: &Attr, is_directory: bool, maker: Maker) -> Owner {
    let mode = maker.mode & 0o7777;
    if above.mode & S_ISGID == 0 {
        return Owner { mode, uid: maker.uid, gid: maker.gid };
    }
    let inherited = if is_directory { S_ISGID } else { 0 };
    Owner { mode: mode | inherited, uid: maker.uid, gid: above.gid }
}

fn rename_mode(flags: RenameFlags) -> Result<RenameMode> {
    if flags.is_empty() {
        Ok(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameMode::Exchange)
    } else {
        Err(Errno::EINVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Timestamp, VolumeId};

    fn directory(mode: u32) -> Attr {
        let zero = Timestamp(0);
        Attr {
            id: NodeId::root(VolumeId::TREE),
            generation: 1,
            kind: NodeKind::Directory,
            mode,
            uid: 1,
            gid: 50,
            nlink: 2,
            rdev: 0,
            size_bytes: 0,
            blocks: 0,
            atime: zero,
            mtime: zero,
            ctime: zero,
            btime: zero,
        }
    }

    #[test]
    fn set_group_id_directories_hand_their_group_down() {
        let maker = Maker { uid: 7, gid: 8, mode: 0o755, umask: 0 };
        let plain = owner(&directory(0o755), true, maker);
        assert_eq!((plain.uid, plain.gid, plain.mode), (7, 8, 0o755));
        let file = owner(&directory(0o2755), false, maker);
        assert_eq!((file.gid, file.mode), (50, 0o755));
        let below = owner(&directory(0o2755), true, maker);
        assert_eq!((below.gid, below.mode), (50, 0o2755));
    }

    #[test]
    fn rename_flags_come_one_at_a_time() {
        assert_eq!(rename_mode(RenameFlags::empty()), Ok(RenameMode::Replace));
        assert_eq!(rename_mode(RenameFlags::RENAME_EXCHANGE), Ok(RenameMode::Exchange));
        assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT), Err(Errno::EINVAL));
        assert_eq!(rename_mode(RenameFlags::all()), Err(Errno::EINVAL));
    }
}
