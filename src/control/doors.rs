//! The doors as status and LUN reports see them: which were asked for, where they are, whether they
//! are open, and what a client pastes to reach a LUN.

use crate::lun::split_snapshot;
use parking_lot::RwLock;
use serde::Serialize;
use serde_json::{json, Value};

/// What stands before a LUN's name in its target's name.
pub const TARGET_PREFIX: &str = "iqn.2026-11.local.lunfs:";

/// The iSCSI target of a LUN.
pub fn target_name(lun: &str) -> String {
    format!("{TARGET_PREFIX}{}", lun.to_ascii_lowercase())
}

/// The iSCSI target of a snapshot.
pub fn snapshot_target_name(lun: &str, snapshot: &str) -> String {
    format!("{TARGET_PREFIX}{lun}:{snapshot}").to_ascii_lowercase()
}

/// A sort of door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DoorKind {
    /// The FUSE mount.
    Mount,
    /// iSCSI over TCP.
    Iscsi,
    /// NBD over TCP or a Unix socket.
    Nbd,
    /// NBS over TCP.
    Nbs,
}

/// A door that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// Which.
    pub kind: DoorKind,
    /// `127.0.0.1:3260`, `unix:/path`, or the mount point.
    pub address: String,
    /// What clients are told instead of the address.
    pub advertise: Option<String>,
    /// Why it is not open.
    pub failure: Option<String>,
}

impl Door {
    fn to_json(&self) -> Value {
        json!({
            "kind": self.kind,
            "address": self.address,
            "advertise": self.advertise,
            "state": if self.failure.is_none() { "open" } else { "failed" },
            "failure": self.failure,
        })
    }

    /// What a client pastes to reach a LUN, or `NAME@SNAP`, through this door.
    fn line_for(&self, disk: &str) -> String {
        let host = self.advertise.as_deref().unwrap_or(&self.address);
        let (lun, snapshot) = split_snapshot(disk);
        let target = snapshot.map_or_else(|| target_name(lun), |s| snapshot_target_name(lun, s));
        let within = snapshot.map_or_else(String::new, |s| format!(".snapshots/{s}/"));
        match (self.kind, self.address.strip_prefix("unix:")) {
            (DoorKind::Mount, _) => {
                format!("{}/{lun}/{within}data", self.address.trim_end_matches('/'))
            }
            (DoorKind::Iscsi, _) => format!("iscsi://{host}/{target}/0"),
            (DoorKind::Nbd, Some(path)) => format!("nbd+unix:///{disk}?socket={path}"),
            (DoorKind::Nbs, _) => format!("nbs://{host}/{disk}"),
            (DoorKind::Nbd, None) => format!("nbd://{host}/{disk}"),
        }
    }
}

/// All doors of this server.
#[derive(Debug, Default)]
pub struct Doors(RwLock<Vec<Door>>);

impl Doors {
    /// Adds a door.
    pub fn add(&self, door: Door) {
        self.0.write().push(door);
    }

    /// Notes that a door closed by itself.
    pub fn failed(&self, kind: DoorKind, address: &str, why: &str) {
        let mut doors = self.0.write();
        for door in doors.iter_mut().filter(|d| d.kind == kind && d.address == address) {
            door.failure = Some(why.to_string());
        }
    }

    /// Each door with its state.
    pub fn to_json(&self) -> Value {
        self.0.read().iter().map(Door::to_json).collect()
    }

    /// Whether every door that was asked for is open.
    pub fn all_open(&self) -> bool {
        self.0.read().iter().all(|door| door.failure.is_none())
    }

    /// What is wrong with doors, a line each.
    pub fn failures(&self) -> Vec<String> {
        let line = |door: &Door| {
            door.failure.as_ref().map(|why| format!("the door at {} is shut: {why}", door.address))
        };
        self.0.read().iter().filter_map(line).collect()
    }

    /// What a client pastes to reach a LUN, for each open door of a kind.
    pub fn lines(&self, kind: DoorKind, lun: &str) -> Vec<String> {
        let doors = self.0.read();
        let open = doors.iter().filter(|door| door.kind == kind && door.failure.is_none());
        open.map(|door| door.line_for(lun)).collect()
    }

    /// Where the pool is mounted.
    pub fn mounts(&self) -> Vec<String> {
        let doors = self.0.read();
        let open = doors.iter().filter(|d| d.kind == DoorKind::Mount && d.failure.is_none());
        open.map(|door| door.address.clone()).collect()
    }

    /// How a LUN is reached, or a snapshot by `NAME@SNAP`.
    pub fn reach(&self, name: &str) -> Value {
        let (lun, snapshot) = split_snapshot(name);
        let target = snapshot.map_or_else(|| target_name(lun), |s| snapshot_target_name(lun, s));
        json!({
            "target": { "iqn": target, "lun": 0 },
            "nbd_export": name,
            "nbs_name": name,
            "iscsi_urls": self.lines(DoorKind::Iscsi, name),
            "nbd_uris": self.lines(DoorKind::Nbd, name),
            "nbs_urls": self.lines(DoorKind::Nbs, name),
            "paths": self.lines(DoorKind::Mount, name),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(kind: DoorKind, address: &str) -> Door {
        Door { kind, address: address.into(), advertise: None, failure: None }
    }

    #[test]
    fn lines_to_paste() {
        let doors = Doors::default();
        doors.add(door(DoorKind::Iscsi, "127.0.0.1:3260"));
        doors.add(door(DoorKind::Nbd, "[::1]:10809"));
        doors.add(door(DoorKind::Nbd, "unix:/tmp/n.sock"));
        doors.add(door(DoorKind::Mount, "/mnt/"));
        let iscsi = doors.lines(DoorKind::Iscsi, "VM1");
        assert_eq!(iscsi, ["iscsi://127.0.0.1:3260/iqn.2026-11.local.lunfs:vm1/0"]);
        let nbd = doors.lines(DoorKind::Nbd, "VM1");
        assert_eq!(nbd, ["nbd://[::1]:10809/VM1", "nbd+unix:///VM1?socket=/tmp/n.sock"]);
        assert_eq!(doors.lines(DoorKind::Mount, "VM1"), ["/mnt/VM1/data"]);
        let snapshot = doors.lines(DoorKind::Iscsi, "VM1@2026-11-20T21:00:00Z");
        let target = "iqn.2026-11.local.lunfs:vm1:2026-11-20t21:00:00z";
        assert_eq!(snapshot, [format!("iscsi://127.0.0.1:3260/{target}/0")]);
        assert_eq!(doors.lines(DoorKind::Nbd, "VM1@a")[0], "nbd://[::1]:10809/VM1@a");
        assert_eq!(doors.lines(DoorKind::Mount, "VM1@a"), ["/mnt/VM1/.snapshots/a/data"]);
        assert!(doors.all_open());
        doors.failed(DoorKind::Nbd, "[::1]:10809", "gone");
        assert!(!doors.all_open());
        assert_eq!(doors.failures().len(), 1);
    }
}
