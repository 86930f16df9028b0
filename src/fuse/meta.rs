//! Attributes and extended attributes.

use super::acl::{self, Acl};
use super::attr::{self, without_privileges, S_ISGID, S_ISUID};
use super::door::{Caller, Door};
use super::errno::{of_fs, OrErrno, Result};
use super::handles::Handle;
use super::tree::{Entry, Part, Place};
use crate::fs::{Attr, Error, NodeId, NodeKind, SetAttr, XattrMode};
use crate::lun::OpenIntent;
use fuser::{Errno, FileHandle, INodeNo};

/// File capabilities (capabilities(7)): gone when the file is written or changes hands.
pub const CAPABILITY: &[u8] = b"security.capability";

impl Door {
    /// stat(2), fstat(2).
    pub fn getattr(&self, number: INodeNo, handle: Option<FileHandle>) -> Result<Entry> {
        let place = self.tree.place(number)?;
        let open = handle.and_then(|handle| self.handles.get(handle).ok());
        match open.as_deref() {
            Some(Handle::File(open)) => {
                self.tree.describe_as(&place, &open.file.attr().or_errno()?)
            }
            Some(Handle::Data(data)) => {
                self.tree.describe_as(&place, &data.file.attr().or_errno()?)
            }
            Some(Handle::Attributes(open)) => {
                let mut entry = self.tree.describe(&place)?;
                entry.attr.size = open.size_bytes();
                Ok(entry)
            }
            _ => self.tree.describe(&place),
        }
    }

    /// chmod, chown, truncate, utimensat and their f-forms.
    pub fn setattr(
        &self,
        caller: Caller,
        number: INodeNo,
        handle: Option<FileHandle>,
        mut change: SetAttr,
    ) -> Result<Entry> {
        let place = self.tree.place(number)?;
        let id = place.attributes_of()?;
        if let Place::LunFile(..) = place {
            if let Some(size) = change.size_bytes.take() {
                self.resize(&place, handle, size)?;
                if !attr::is_change(&change) {
                    return self.getattr(number, handle);
                }
            }
        }
        self.drop_privileges_with(caller, id, &mut change)?;
        let changed = self.tree.fs().setattr(id, &change).or_errno()?;
        if let Some(mode) = change.mode {
            self.follow_mode(&changed, mode)?;
        }
        self.tree.describe_as(&place, &changed)
    }

    /// Truncates a file of a LUN: `data` is resized, `attributes` cleared; others refuse.
    fn resize(&self, place: &Place, handle: Option<FileHandle>, size: u64) -> Result<()> {
        let open = handle.and_then(|handle| self.handles.get(handle).ok());
        match (place, open.as_deref()) {
            (_, Some(Handle::Data(data))) => data.file.set_size(size).or_errno(),
            (_, Some(Handle::Attributes(open))) => open.set_size(size),
            (Place::LunFile(lun, Part::Data, _), _) => {
                let intent = OpenIntent { read: false, write: true, truncate: false };
                let data = lun.open_file(intent).or_errno()?;
                let done = data.set_size(size).or_errno();
                data.flush();
                done
            }
            // Before it is written anew; what is written is the whole.
            (Place::LunFile(_, Part::Attributes, _), _) if size == 0 => Ok(()),
            _ => Err(Errno::EPERM),
        }
    }

    /// A change of owner takes set-user-id, set-group-id and capabilities from all but directories;
    /// so does a change of size by somebody without the right to keep them (FUSE_HANDLE_KILLPRIV_V2
    /// leaves both to the filesystem). chown(2) without an owner arrives as a change of nothing.
    fn drop_privileges_with(&self, caller: Caller, id: NodeId, change: &mut SetAttr) -> Result<()> {
        let owner = change.uid.is_some() || change.gid.is_some() || !attr::is_change(change);
        if change.mode.is_some() && !owner {
            self.handles.privileges_gained();
            return Ok(());
        }
        if !owner && change.size_bytes.is_none() {
            return Ok(());
        }
        let known = self.tree.fs().getattr(id).or_errno()?;
        if known.kind == NodeKind::Directory {
            return Ok(());
        }
        self.remove_capability(id)?;
        if owner || !caller.may_keep_privileges() {
            let mode = change.mode.unwrap_or(known.mode);
            let kept = without_privileges(mode, caller.is_in_group(known.gid));
            if kept != mode {
                change.mode = Some(kept);
            }
        }
        Ok(())
    }

    /// Takes privileges from a file that is written: capabilities always, set-user-id and
    /// set-group-id if `by` is given: a caller who may not keep them.
    pub fn drop_privileges(&self, id: NodeId, by: Option<Caller>) -> Result<()> {
        self.remove_capability(id)?;
        let Some(caller) = by else { return Ok(()) };
        let known = self.tree.fs().getattr(id).or_errno()?;
        let kept = without_privileges(known.mode, caller.is_in_group(known.gid));
        if kept != known.mode {
            let change = SetAttr { mode: Some(kept), ..SetAttr::default() };
            self.tree.fs().setattr(id, &change).or_errno()?;
        }
        Ok(())
    }

    /// Whether a write has anything to take away.
    pub fn is_privileged(&self, id: NodeId) -> Result<bool> {
        let known = self.tree.fs().getattr(id).or_errno()?;
        if known.mode & (S_ISUID | S_ISGID) != 0 {
            return Ok(true);
        }
        match self.tree.fs().xattr_get(id, CAPABILITY) {
            Ok(_) => Ok(true),
            Err(Error::NoAttribute) => Ok(false),
            Err(error) => Err(of_fs(&error)),
        }
    }

    fn remove_capability(&self, id: NodeId) -> Result<()> {
        match self.tree.fs().xattr_remove(id, CAPABILITY) {
            Ok(()) | Err(Error::NoAttribute) => Ok(()),
            Err(error) => Err(of_fs(&error)),
        }
    }

    /// After chmod an access list says the same as the bits.
    fn follow_mode(&self, changed: &Attr, mode: u32) -> Result<()> {
        if changed.kind == NodeKind::Symlink {
            return Ok(());
        }
        let Some(list) = self.tree.acl(changed.id, acl::ACCESS)? else {
            return Ok(());
        };
        let bytes = list.with_mode(mode).to_bytes();
        self.tree.fs().xattr_set(changed.id, acl::ACCESS, &bytes, XattrMode::Any).or_errno()
    }

    /// getxattr(2).
    pub fn getxattr(&self, number: INodeNo, name: &[u8]) -> Result<Vec<u8>> {
        is_supported(name)?;
        let id = self.tree.place(number)?.inode().ok_or(Errno::ENODATA)?;
        self.tree.fs().xattr_get(id, name).or_errno()
    }

    /// listxattr(2): names with a zero byte behind each. `trusted.` is for administrators only.
    pub fn listxattr(&self, caller: Caller, number: INodeNo) -> Result<Vec<u8>> {
        let Some(id) = self.tree.place(number)?.inode() else {
            return Ok(Vec::new());
        };
        let names = self.tree.fs().xattr_list(id).or_errno()?;
        let shown = names.iter().filter(|name| caller.uid == 0 || !name.starts_with(b"trusted."));
        Ok(shown.flat_map(|name| name.iter().copied().chain([0])).collect())
    }

    /// setxattr(2).
    pub fn setxattr(
        &self,
        caller: Caller,
        number: INodeNo,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        is_supported(name)?;
        let id = self.tree.place(number)?.attributes_of()?;
        if name == acl::ACCESS || name == acl::DEFAULT {
            return self.set_acl(caller, id, name, Acl::parse(value)?);
        }
        let mode = match flags {
            0 => XattrMode::Any,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return Err(Errno::EINVAL),
        };
        if name == CAPABILITY {
            self.handles.privileges_gained();
        }
        self.tree.fs().xattr_set(id, name, value, mode).or_errno()
    }

    /// Sets a list. An access list that says no more than permission bits becomes those; a caller
    /// outside the file's group loses it set-group-id (acl(5), as for chmod).
    fn set_acl(&self, caller: Caller, id: NodeId, name: &[u8], list: Acl) -> Result<()> {
        let fs = self.tree.fs();
        let known = fs.getattr(id).or_errno()?;
        if name == acl::DEFAULT && known.kind != NodeKind::Directory {
            return Err(Errno::EACCES);
        }
        if list.is_empty() || name == acl::ACCESS && list.is_minimal() {
            self.remove_acl(id, name)?;
        } else {
            fs.xattr_set(id, name, &list.to_bytes(), XattrMode::Any).or_errno()?;
        }
        if name == acl::ACCESS && !list.is_empty() {
            let mut mode = known.mode & !0o777 | list.mode();
            if mode & S_ISGID != 0 && !caller.is_in_group(known.gid) {
                mode &= !S_ISGID;
            }
            let change = SetAttr { mode: Some(mode), ..SetAttr::default() };
            fs.setattr(id, &change).or_errno()?;
        }
        Ok(())
    }

    fn remove_acl(&self, id: NodeId, name: &[u8]) -> Result<()> {
        match self.tree.fs().xattr_remove(id, name) {
            Ok(()) | Err(Error::NoAttribute) => Ok(()),
            Err(error) => Err(of_fs(&error)),
        }
    }

    /// removexattr(2). A list that is not there was removed with success (acl_delete_def_file(3)).
    pub fn removexattr(&self, number: INodeNo, name: &[u8]) -> Result<()> {
        is_supported(name)?;
        let id = self.tree.place(number)?.attributes_of()?;
        if name == acl::ACCESS || name == acl::DEFAULT {
            return self.remove_acl(id, name);
        }
        self.tree.fs().xattr_remove(id, name).or_errno()
    }
}

/// The name spaces of xattr(7), and of `system.` the two lists.
fn is_supported(name: &[u8]) -> Result<()> {
    let spaces: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    let known = spaces.iter().any(|space| name.starts_with(space) && name.len() > space.len());
    if known || name == acl::ACCESS || name == acl::DEFAULT {
        Ok(())
    } else {
        Err(Errno::EOPNOTSUPP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_spaces() {
        assert!(is_supported(b"user.DOSATTRIB").is_ok());
        assert!(is_supported(acl::DEFAULT).is_ok());
        assert_eq!(is_supported(b"user."), Err(Errno::EOPNOTSUPP));
        assert_eq!(is_supported(b"system.other"), Err(Errno::EOPNOTSUPP));
        assert_eq!(is_supported(b"plain"), Err(Errno::EOPNOTSUPP));
    }
}
