//! Bugs planted on purpose, each named: the simulator must find every one, or it shows nothing.
//!
//! Only test builds have them (the cargo feature `planted`, which only the package's own tests
//! enable). Without the feature [`planted`] is the constant `false` and nothing of a bug is
//! compiled. A bug is planted for the calling thread alone, so that tests may run beside each
//! other.

macro_rules! mutations {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A planted bug.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutation {
            $($(#[doc = $doc])+ $name,)+
        }

        #[cfg(feature = "planted")]
        impl Mutation {
            /// All of them.
            pub const ALL: &[Mutation] = &[$(Mutation::$name,)+];
        }
    };
}

mutations! {
    /// The root is written before what it names is flushed.
    NoFlushBeforeRoot,
    /// Both copies of a root are written before either is flushed.
    NoFlushBetweenRootCopies,
    /// A freed block may be written before the root that frees it, and is the next to be taken.
    ReuseBeforeRoot,
    /// A freed block may be written while a reader has its address, and is the next to be taken.
    ReuseWhilePinned,
    /// A sync returns without a device flush.
    AcknowledgeBeforeFlush,
    /// A failed device call is reported, and the next ones go on as if nothing were.
    LatchForgotten,
    /// Replay does not apply holes.
    ReplaySkipsHoles,
    /// Replay does not apply records of inodes that were freed.
    ReplaySkipsFrees,
    /// Replay does not count inode numbers that were given away.
    ReplayReusesNumbers,
    /// Replay goes on behind a group that is not whole.
    ReplayPastTornGroup,
    /// The data of groups that may be torn is not read back.
    TornDataTrusted,
    /// A group says that it is durable itself.
    DurableMarkTooHigh,
    /// Blocks that the log names are not marked before recovery allocates.
    LogNotMarked,
    /// Recovery answers requests before its consistency point.
    RecoveryWithoutRoot,
    /// Data is not compared with its checksum when it is read.
    ChecksumIgnored,
    /// A bitmap page holds allocations of the epoch after its own.
    BitmapOfNextEpoch,
    /// A bitmap page is written over in its place.
    PageInPlace,
    /// The reclaim list on disk keeps what the walker has freed.
    WalkNotCommitted,
    /// An unlinked file that is open is not entered among the orphans.
    OrphanForgotten,
    /// The upper half of a directory's split bucket is lost.
    SplitLosesHalf,
    /// A merged block is linked though another came between.
    MergeNotChecked,
    /// Settling a group replaces what was linked after its cut.
    SettleUnchecked,
    /// A seal leaves a file's changes to the next group.
    SealMissesFile,
    /// A later hole does not win over an earlier link of the same group.
    HoleLosesToLink,
    /// Truncation leaves the tail of the last block.
    TruncateLeavesTail,
    /// Nothing is kept back for deletes.
    NoReserve,
    /// An epoch of the lost log begins again: two files get one identity.
    EpochAgain,
    /// Of a mirror's two copies only the first is written.
    SecondCopyNotWritten,
    /// A failed write returns before the labels of the others say that the device is stale.
    AcknowledgeBeforeStaleRecord,
    /// The copy that was read last counts as good, whatever its checksum, when a mirror is healed.
    HealsFromAnyCopy,
    /// A device that was filled is normal before a root is durable that names nothing else.
    FilledBeforeRoot,
    /// A block that a live version has no more is freed, though its snapshot has it.
    SharedBlockFreed,
    /// Where a snapshot goes, all that its heir has no more is freed, though older ones have it.
    DeadListJoinedWrong,
    /// A range clone does not count what it shares.
    CloneNotCounted,
    /// The walk that fills a device passes a snapshot that is not written yet.
    FreshSnapshotNotFilled,
    /// The walk that fills a device does not come again to a file that got range clones.
    CloneNotFilledAgain,
    /// A device that was filled is told that it is normal before the others are.
    FilledOneKnowsFirst,
}

#[cfg(feature = "planted")]
thread_local!(static NOW: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) });

/// Plants a bug for this thread, or (`None`) takes it out.
#[cfg(feature = "planted")]
pub fn plant(mutation: Option<Mutation>) {
    NOW.with(|now| now.set(mutation));
}

/// Is this bug planted?
#[cfg(feature = "planted")]
pub(crate) fn planted(mutation: Mutation) -> bool {
    NOW.with(|now| now.get() == Some(mutation))
}

/// Is this bug planted? No.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub(crate) const fn planted(_: Mutation) -> bool {
    false
}

/// Locks that nobody holds. A call made inside a device call, on the same thread, would wait for
/// itself on any other.
#[cfg(feature = "planted")]
#[derive(Debug, Clone, Copy)]
pub struct FreeLocks {
    /// The allocator's.
    pub space: bool,
    /// The log's, and that of flushes.
    pub log: bool,
    /// That of consistency points.
    pub cp: bool,
    /// That under which labels change.
    pub members: bool,
}

#[cfg(feature = "planted")]
impl super::Fs {
    /// Which of the pool's locks are free.
    pub fn free_locks(&self) -> FreeLocks {
        let core = self.core();
        let log = core.log.try_lock().is_some() && core.store.is_flush_free();
        let members = core.store.members.change.try_lock().is_some();
        let cp = core.cp.try_lock().is_some();
        FreeLocks { space: core.space.is_free(), log, cp, members }
    }

    /// Could names of this volume (`None`: names of volumes) be changed without waiting?
    pub fn names_are_free(&self, volume: Option<super::VolumeId>) -> bool {
        let id = volume.unwrap_or(super::core::TABLE);
        self.core().volumes.get(&id).is_none_or(|v| v.names.try_lock().is_some())
    }
}
