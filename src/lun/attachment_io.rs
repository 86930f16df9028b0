//! The disk that a session drives: [`BlockIo`] over `data`.

use super::attachment::Attachment;
use super::block_io::{BlockError, BlockIo, CloneSource, Extent, Geometry, Identity, Provisioning};
use super::changes::Change;
use super::kept::SanitizeOrder;
use super::sanitize::SanitizeState;
use crate::fs::{self, ATOMIC_WRITE_BYTES};
use std::sync::atomic::Ordering;
use std::sync::Arc;

type Result<T> = std::result::Result<T, BlockError>;

impl Attachment {
    /// The range must be whole blocks inside the capacity, the session alive.
    fn check(&self, offset: u64, length: u64) -> Result<()> {
        if self.is_gone() {
            return Err(BlockError::Gone);
        }
        if !self.lun.live.sanitize.is_idle() {
            return Err(BlockError::Sanitizing);
        }
        let block = u64::from(self.lun.live.block_bytes.load(Ordering::Acquire).max(1));
        if offset % block != 0 || length % block != 0 {
            return Err(BlockError::Invalid("not a multiple of the block size"));
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.lun.size_bytes() => Ok(()),
            _ => Err(BlockError::OutOfRange),
        }
    }

    /// Runs a write-class command: checks before and behind the wait for the lease, and afterwards
    /// figures, the mount's notification, durability.
    fn write_with(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
        act: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.figures.timed(|| self.write_untimed(offset, length, fua, act))
    }

    fn write_untimed(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
        act: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.check(offset, length)?;
        {
            let _gate = self.enter_write()?;
            self.check(offset, length)?;
            act()?;
        }
        self.wrote(offset, length);
        if fua || self.lun.live.write_through.load(Ordering::Acquire) {
            self.lun.files().data.sync().map_err(|e| self.lun.block_error(e, offset))?;
        }
        Ok(())
    }

    fn wrote(&self, offset_bytes: u64, length_bytes: u64) {
        self.figures.wrote(length_bytes);
        self.lun.judge_threshold(length_bytes);
        if self.lun.live.files_open.load(Ordering::Acquire) > 0 {
            let volume = self.lun.volume();
            self.lun.tell(Change::Written { volume, offset_bytes, length_bytes });
        }
    }

    /// The least of the LUN's quota and the client's.
    fn quota_bytes(&self) -> Option<u64> {
        let of_client = Some(self.quota_bytes.load(Ordering::Acquire)).filter(|quota| *quota != 0);
        self.lun.quota_bytes().into_iter().chain(of_client).min()
    }

    /// `quota`: may the range get blocks that it has not?
    fn check_quota(&self, offset: u64, length: u64) -> Result<()> {
        let Some(quota) = self.quota_bytes() else {
            return Ok(());
        };
        match self.lun.fits(quota, offset, length) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.log("refused", self.lun.note_over_quota(quota));
                Err(BlockError::NoSpace)
            }
            Err(error) => Err(self.lun.block_error(error, offset)),
        }
    }

    fn write_pieces(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut at = offset;
        for piece in data.chunks(ATOMIC_WRITE_BYTES) {
            self.lun.files().data.write_at(at, piece).map_err(|e| self.lun.block_error(e, at))?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn update(
        &self,
        offset: u64,
        length: usize,
        change: impl FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        if length > ATOMIC_WRITE_BYTES {
            return Err(BlockError::Invalid("longer than an atomic write"));
        }
        self.write_with(offset, length as u64, false, || {
            self.check_quota(offset, length as u64)?;
            let updated = self.lun.files().data.update_at(offset, length, change);
            updated.map_err(|e| self.lun.block_error(e, offset))?
        })
    }

    fn read_into(
        &self,
        offset: u64,
        out: &mut [u8],
        mut sums: Option<&mut Vec<u32>>,
    ) -> Result<()> {
        self.check(offset, out.len() as u64)?;
        let mut read = |data: &fs::File| {
            if let Some(sums) = sums.as_deref_mut() {
                sums.clear(); // of a file that was replaced meanwhile
            }
            data.read_summed_at(offset, out, sums.as_deref_mut())
        };
        let read = self.figures.timed(|| self.lun.on_data(&mut read));
        self.whole(read, offset, out.len())
    }

    fn try_read_into(
        &self,
        offset: u64,
        out: &mut [u8],
        sums: Option<&mut Vec<u32>>,
    ) -> Option<Result<()>> {
        if let Err(error) = self.check(offset, out.len() as u64) {
            return Some(Err(error));
        }
        let read = self.figures.sampled(|| self.lun.try_read_data(offset, out, sums))?;
        Some(self.whole(read, offset, out.len()))
    }

    fn whole(&self, read: fs::Result<usize>, offset: u64, length: usize) -> Result<()> {
        match read {
            Ok(n) if n == length => {
                self.figures.read(length);
                Ok(())
            }
            Ok(_) => Err(BlockError::OutOfRange),
            Err(error) => Err(self.lun.block_error(error, offset)),
        }
    }
}

impl BlockIo for Attachment {
    fn geometry(&self) -> Geometry {
        // The generations first: whoever sees them has seen what they stand for.
        let rights = self.rights_generation.load(Ordering::Acquire);
        let geometry = self.lun.geometry();
        let generation = geometry.generation + rights;
        let read_only = geometry.read_only || !self.is_writable();
        Geometry { read_only, generation, ..geometry }
    }

    fn generation(&self) -> u64 {
        let rights = self.rights_generation.load(Ordering::Acquire);
        self.lun.live.generation.load(Ordering::Acquire) + rights
    }

    fn may_wait_long(&self) -> bool {
        self.lun.is_paused()
    }

    fn may_change(&self) -> bool {
        self.is_writable() || self.lun.is_snapshot()
    }

    fn outstanding(&self, commands: usize) {
        let commands = u32::try_from(commands).unwrap_or(u32::MAX);
        self.figures.outstanding.store(commands, Ordering::Relaxed);
    }

    fn write_refused(&self) {
        self.note_refused_write();
    }

    fn identity(&self) -> Identity {
        self.lun.identity()
    }

    fn media_changes(&self) -> u64 {
        self.lun.live.media_changes.load(Ordering::Acquire)
    }

    fn threshold_events(&self) -> u64 {
        self.lun.live.threshold_events.load(Ordering::Acquire)
    }

    fn provisioning(&self) -> Provisioning {
        Provisioning {
            used_bytes: self.lun.data_used_bytes().unwrap_or(0),
            available_bytes: self.lun.shared.fs.stats().free_bytes,
            threshold_percent: self.lun.settings().threshold_percent,
        }
    }

    fn leaving(&self) {
        self.lost.store(false, Ordering::Release);
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.read_into(offset, out, None)
    }

    fn try_read(&self, offset: u64, out: &mut [u8]) -> Option<Result<()>> {
        self.try_read_into(offset, out, None)
    }

    fn read_summed(&self, offset: u64, out: &mut [u8], sums: &mut Vec<u32>) -> Result<()> {
        self.read_into(offset, out, Some(sums))
    }

    fn try_read_summed(
        &self,
        offset: u64,
        out: &mut [u8],
        sums: &mut Vec<u32>,
    ) -> Option<Result<()>> {
        self.try_read_into(offset, out, Some(sums))
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<()> {
        self.write_with(offset, data.len() as u64, fua, || {
            self.check_quota(offset, data.len() as u64)?;
            self.write_pieces(offset, data)
        })
    }

    fn try_write(&self, offset: u64, data: &[u8]) -> Option<Result<()>> {
        let live = &self.lun.live;
        let must_wait = live.write_through.load(Ordering::Acquire)
            || self.quota_bytes().is_some()
            || data.len() > ATOMIC_WRITE_BYTES;
        if must_wait {
            return None;
        }
        let gate = match self.try_enter_write()? {
            Ok(gate) => gate,
            Err(error) => return Some(Err(error)),
        };
        if let Err(error) = self.check(offset, data.len() as u64) {
            return Some(Err(error));
        }
        let written = self.figures.sampled(|| self.lun.files().data.try_write_at(offset, data))?;
        drop(gate);
        Some(match written {
            Ok(()) => {
                self.wrote(offset, data.len() as u64);
                Ok(())
            }
            Err(error) => Err(self.lun.block_error(error, offset)),
        })
    }

    fn flush(&self) -> Result<()> {
        if self.is_gone() {
            return Err(BlockError::Gone);
        }
        let synced = self.figures.timed(|| self.lun.files().data.sync());
        synced.map_err(|e| self.lun.block_error(e, 0))?;
        self.figures.flush_ops.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn unmap(&self, offset: u64, length: u64) -> Result<()> {
        self.write_with(offset, length, false, || {
            self.lun.files().data.punch(offset, length).map_err(|e| self.lun.block_error(e, offset))
        })
    }

    fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> Result<()> {
        if may_unmap {
            return self.unmap(offset, length);
        }
        self.write_with(offset, length, false, || {
            self.check_quota(offset, length)?;
            let (mut at, end) = (offset, offset + length);
            while at < end {
                let piece = (end - at).min(ATOMIC_WRITE_BYTES as u64);
                let zeroed = self.lun.files().data.allocate_zeros(at, piece, true);
                zeroed.map_err(|e| self.lun.block_error(e, at))?;
                at += piece;
            }
            Ok(())
        })
    }

    fn compare_and_write(&self, offset: u64, expect: &[u8], data: &[u8]) -> Result<()> {
        if expect.len() != data.len() {
            return Err(BlockError::Invalid("compare and write data differ in length"));
        }
        self.update(offset, data.len(), |range| {
            match range.iter().zip(expect).position(|(is, wanted)| is != wanted) {
                Some(at) => Err(BlockError::Miscompare { offset_bytes: at as u64 }),
                None => {
                    range.copy_from_slice(data);
                    Ok(())
                }
            }
        })
    }

    fn or_write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.update(offset, data.len(), |range| {
            range.iter_mut().zip(data).for_each(|(to, from)| *to |= from);
            Ok(())
        })
    }

    fn claim(&self) -> Result<()> {
        self.enter_write().map(drop)
    }

    fn reservations(&self) -> String {
        self.knows_reservations.store(true, Ordering::Release);
        self.lun.state.now().reservations
    }

    fn keep_reservations(&self, record: Option<&str>, held: bool) -> Result<()> {
        let kept = self.lun.state.change(|kept| {
            kept.reservations = record.unwrap_or_default().to_owned();
            kept.reserved = held && record.is_some();
        });
        kept.map_err(|error| self.lun.block_error(error, 0))?;
        self.lun.live.reserved.store(held, Ordering::Release);
        if held {
            drop(self.lun.gate.write()); // writes of others that came in before have ended
        }
        self.lun.follow_pins();
        Ok(())
    }

    fn saved_mode(&self) -> u32 {
        self.lun.state.now().mode
    }

    fn save_mode(&self, flags: u32) -> Result<()> {
        let kept = self.lun.state.change(|kept| kept.mode = flags);
        kept.map_err(|error| self.lun.block_error(error, 0))
    }

    fn sanitize(&self, order: &SanitizeOrder) -> Result<()> {
        drop(self.enter_write()?);
        self.lun.begin_sanitize(order.clone())
    }

    fn sanitize_state(&self) -> SanitizeState {
        self.lun.sanitize_state()
    }

    fn exit_sanitize_failure(&self) -> Result<bool> {
        self.lun.exit_sanitize_failure()
    }

    fn clone_source(&self) -> Option<CloneSource> {
        Some(CloneSource(Arc::clone(&self.lun)))
    }

    fn clone_range(
        &self,
        source: &CloneSource,
        from: u64,
        to: u64,
        length: u64,
    ) -> Option<Result<()>> {
        Some(self.write_with(to, length, false, || {
            self.check_quota(to, length)?;
            let files = self.lun.files();
            let cloned = source.0.on_data(|data| data.clone_range(from, &files.data, to, length));
            match cloned.map_err(|e| self.lun.block_error(e, to))? {
                n if n == length => Ok(()),
                _ => Err(BlockError::OutOfRange),
            }
        }))
    }

    fn extents(&self, offset: u64, length: u64, max: usize) -> Result<Vec<Extent>> {
        self.check(offset, length)?;
        let end = offset + length;
        let block = u64::from(self.lun.live.block_bytes.load(Ordering::Acquire).max(1));
        let failed = |error| self.lun.block_error(error, offset);
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < max {
            let data = self.lun.on_data(|data| data.seek_data(at)).map_err(failed)?;
            let data = data.unwrap_or(end).min(end);
            let (until, mapped) = if data > at {
                (data, false)
            } else {
                // A hole made between the two questions: call one block data, and go on.
                let hole = self.lun.on_data(|data| data.seek_hole(at)).map_err(failed)?;
                (hole.max(at + block).min(end), true)
            };
            extents.push(Extent { offset_bytes: at, length_bytes: until - at, mapped });
            at = until;
        }
        Ok(extents)
    }
}
