//! What doors are told of changes that came from elsewhere.

use crate::fs::VolumeId;
use parking_lot::RwLock;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// A change of the catalog. Delivered on the thread that made it, after it took effect; a
/// subscriber must only note it (in its own bounded queue) and return; it must not subscribe or
/// unsubscribe there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A LUN was made.
    Created {
        /// Its volume.
        volume: VolumeId,
        /// Its name.
        name: String,
    },
    /// A LUN was deleted.
    Removed {
        /// Its volume.
        volume: VolumeId,
        /// The name it had.
        name: String,
    },
    /// A LUN was renamed.
    Renamed {
        /// Its volume.
        volume: VolumeId,
        /// Old name.
        from: String,
        /// New name.
        to: String,
    },
    /// A LUN was rolled back: it has another volume and other files.
    RolledBack {
        /// The volume it had.
        from: VolumeId,
        /// The volume it has.
        volume: VolumeId,
        /// Its name.
        name: String,
    },
    /// A snapshot of a LUN (or of the ordinary tree) was made, renamed, refreshed or deleted.
    Snapshots {
        /// The volume it was made of.
        volume: VolumeId,
        /// Names that now lead elsewhere than before.
        names: Vec<String>,
    },
    /// The capacity changed (by any door or command).
    Resized {
        /// Its volume.
        volume: VolumeId,
        /// New capacity in bytes.
        size_bytes: u64,
    },
    /// A setting changed.
    Settings {
        /// Its volume.
        volume: VolumeId,
    },
    /// A block door changed bytes of `data` while files of the LUN are open ([`super::DataFile`]);
    /// not sent while none is.
    Written {
        /// Its volume.
        volume: VolumeId,
        /// First byte.
        offset_bytes: u64,
        /// How many.
        length_bytes: u64,
    },
}

type Listener = Arc<dyn Fn(&Change) + Send + Sync>;

/// The listeners.
#[derive(Default)]
pub(super) struct Hub {
    listeners: RwLock<Vec<(u64, Listener)>>,
    next: AtomicU64,
}

impl Hub {
    pub(super) fn subscribe(self: &Arc<Self>, listener: Listener) -> Subscription {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.listeners.write().push((id, listener));
        Subscription { hub: Arc::downgrade(self), id }
    }

    pub(super) fn tell(&self, change: &Change) {
        for (_, listener) in self.listeners.read().iter() {
            listener(change);
        }
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hub({} listeners)", self.listeners.read().len())
    }
}

/// Keeps a subscription alive; dropping it ends it: no call is running when drop returns.
#[must_use]
#[derive(Debug)]
pub struct Subscription {
    hub: Weak<Hub>,
    id: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.listeners.write().retain(|(id, _)| *id != self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn told_until_dropped() {
        let hub = Arc::new(Hub::default());
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let subscription = hub.subscribe(Arc::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        let change = Change::Settings { volume: VolumeId(17) };
        hub.tell(&change);
        hub.tell(&change);
        drop(subscription);
        hub.tell(&change);
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
