//! A volume's snapshots as a directory: what a mount shows of them.

use super::core::{Core, TABLE};
use super::error::{Error, Result};
use super::inode::attr_of;
use super::pool::Fs;
use super::types::*;

impl Fs {
    /// Some of a volume's snapshots after `cookie`, in the order of their cookies, which stay what
    /// they are while others come and go. `id` is the root directory of the snapshot. None: there
    /// are no more.
    pub fn snapshot_page(
        &self,
        volume: VolumeId,
        cookie: u64,
        max: usize,
    ) -> Result<Vec<DirEntry>> {
        self.core().snapshot_page(volume, cookie, max)
    }

    /// The directory of a volume's snapshots itself, for its times; `None` while it never had one.
    pub fn snapshot_dir(&self, volume: VolumeId) -> Result<Option<Attr>> {
        let core = self.core();
        let live = core.live_version(volume)?;
        core.snapshots_of(&live)?.map(|dir| attr_of(&dir)).transpose()
    }

    /// Whether a volume is a snapshot; `Stale` for one that is not there or was deleted.
    pub fn is_snapshot(&self, volume: VolumeId) -> Result<bool> {
        if volume == TABLE {
            return Err(Error::Stale);
        }
        Ok(self.core().volume(volume)?.is_frozen)
    }
}

impl Core {
    fn snapshot_page(
        &self,
        volume: VolumeId,
        mut cookie: u64,
        max: usize,
    ) -> Result<Vec<DirEntry>> {
        let live = self.live_version(volume)?;
        let Some(dir) = self.snapshots_of(&live)? else { return Ok(Vec::new()) };
        loop {
            let mut page = self.dir_list(&dir, cookie, max)?;
            let Some(last) = page.last() else { return Ok(page) };
            cookie = last.cookie;
            // Bookmarks stand among them.
            page.retain(|entry| entry.kind == NodeKind::Directory);
            for entry in &mut page {
                entry.id = NodeId::root(VolumeId(entry.id.ino as u32));
            }
            if !page.is_empty() {
                return Ok(page);
            }
        }
    }
}
