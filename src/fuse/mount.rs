//! Mounting and unmounting.
//!
//! As root the mount is made here, with mount(2) on a descriptor of `/dev/fuse`: that gives plain
//! error codes, and a mount that is known again by its device number, so that nothing is ever
//! unmounted but it. Others need the helper fusermount3, which fuser calls.
//!
//! Invariants: when [`Mount::stop`] returned, nothing is mounted at the directory by this server;
//! if the mount was in use, those who use it keep what they have open until they close it or the
//! process ends.

use super::door::Door;
use super::guarded::Guarded;
use super::mountinfo::{mounted_at, Mounted};
use super::notify::Invalidations;
use super::tree::Tree;
use crate::fs::Clock;
use crate::lun::{Catalog, Subscription};
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Type of the mount as mount(8) shows it.
const KIND: &str = "fuse.lunfs";
/// Its subtype, and its source unless one is given.
const NAME: &str = "lunfs";
/// Where requests come from.
const DEVICE: &str = "/dev/fuse";
/// How long [`Mount::stop`] waits for requests under way.
const STOP_WAIT: Duration = Duration::from_secs(2);
/// Dead mounts of former servers that are cleared, one over the other; more would be a mistake.
const MAX_DEAD: usize = 8;

/// How to mount.
#[derive(Clone)]
pub struct MountOptions {
    /// Threads that serve requests, at least one.
    pub threads: usize,
    /// For time stamps that the mount makes itself.
    pub clock: Arc<dyn Clock>,
    /// What mount(8) and df(1) show as the source; without commas.
    pub source: String,
    /// Whether reads move access times (as `relatime` of mount(8) has it), or never (`noatime`).
    pub notes_access: bool,
}

impl MountOptions {
    /// Four threads: enough for requests that wait beside those that do not, on two cores. The
    /// source is `lunfs`.
    pub fn new(clock: Arc<dyn Clock>) -> MountOptions {
        MountOptions { threads: 4, clock, source: NAME.into(), notes_access: true }
    }
}

impl std::fmt::Debug for MountOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MountOptions").field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// There is no mount, or no end of it. Shown as three lines: what, why, what to do.
#[derive(Debug)]
pub struct MountError {
    /// The directory.
    pub dir: PathBuf,
    /// Why.
    pub why: Refusal,
}

/// Why a directory was not mounted.
#[derive(Debug)]
pub enum Refusal {
    /// It does not exist.
    NoDirectory,
    /// It is something else.
    NotDirectory,
    /// A FUSE filesystem of this type is mounted there.
    InUse(String),
    /// One of this type is, has lost its server, and is not ours to clear.
    Dead(String),
    /// No FUSE in this kernel.
    NoDevice,
    /// Neither root nor a helper that is.
    NotPermitted(String),
    /// Anything else.
    Failed(io::Error),
}

impl std::fmt::Display for MountError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dir = self.dir.display();
        writeln!(f, "cannot mount at {dir}")?;
        match &self.why {
            Refusal::NoDirectory => {
                write!(f, "there is no such directory\nmake it with: mkdir -p {dir}")
            }
            Refusal::NotDirectory => write!(f, "it is not a directory\nname an empty directory"),
            Refusal::InUse(kind) => write!(
                f,
                "a filesystem of type {kind} is mounted there\n\
                 unmount it with: umount {dir}, or name another directory"
            ),
            Refusal::Dead(kind) => write!(
                f,
                "a filesystem of type {kind} is mounted there and its server is gone\n\
                 clear it with: umount -l {dir}"
            ),
            Refusal::NoDevice => {
                write!(f, "{DEVICE} does not exist\nload the kernel module with: modprobe fuse")
            }
            Refusal::NotPermitted(why) => {
                write!(f, "{why}\nrun it as root, or install fuse3 and own the directory")
            }
            Refusal::Failed(why) => write!(f, "{why}\ncheck the directory and {DEVICE}"),
        }
    }
}

impl std::error::Error for MountError {}

impl MountError {
    fn new(dir: &Path, why: Refusal) -> MountError {
        MountError { dir: dir.to_path_buf(), why }
    }

    fn failed(dir: &Path) -> impl Fn(io::Error) -> MountError + use<> {
        let dir = dir.to_path_buf();
        move |error| MountError::new(&dir, Refusal::Failed(error))
    }
}

/// How a mount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Nobody uses it any more.
    Clean,
    /// It was in use: it is gone from the directory, and from its users when the process ends.
    Busy,
}

/// A standing mount. Dropping it stops it.
#[derive(Debug)]
pub struct Mount {
    dir: PathBuf,
    hides_entries: bool,
    /// `major:minor`; `None` where a helper mounted.
    device: Option<String>,
    invalidations: Arc<Invalidations>,
    standing: Option<Standing>,
}

struct Standing {
    session: BackgroundSession,
    notices: JoinHandle<()>,
    _changes: Subscription,
}

impl std::fmt::Debug for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Standing").finish_non_exhaustive()
    }
}

impl Mount {
    /// Mounts the pool's tree at `dir`. A mount that a former server left there without its server
    /// is cleared first. When this returns, requests are served.
    pub fn start(
        catalog: Arc<Catalog>,
        dir: &Path,
        options: &MountOptions,
    ) -> Result<Mount, MountError> {
        let dir = prepare(dir)?;
        let hides_entries =
            std::fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some());
        let tree = Arc::new(Tree::new(catalog));
        let invalidations =
            Arc::new(Invalidations::new(Arc::clone(&tree), Arc::clone(&options.clock)));
        let changes = {
            let noted = Arc::clone(&invalidations);
            tree.catalog().subscribe(Arc::new(move |change| noted.note(change)))
        };
        let mut door = Door::new(tree, Arc::clone(&invalidations), Arc::clone(&options.clock));
        door.notes_access = options.notes_access;
        let session = open_session(Guarded(door), &dir, options)?;
        let failed = MountError::failed(&dir);
        let session = session.spawn().map_err(&failed)?;
        let notices = {
            let (queue, kernel) = (Arc::clone(&invalidations), session.notifier());
            let thread = std::thread::Builder::new().name("fuse-notify".into());
            thread.spawn(move || queue.run(&kernel)).map_err(&failed)?
        };
        let device = mounted_at(&dir).map_err(&failed)?.filter(is_ours).map(|m| m.device);
        let device = device.filter(|_| is_root());
        let standing = Some(Standing { session, notices, _changes: changes });
        Ok(Mount { dir, hides_entries, device, invalidations, standing })
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the directory held entries that the mount hides: worth a warning.
    pub fn hides_entries(&self) -> bool {
        self.hides_entries
    }

    /// Whether it still stands: somebody else may have unmounted it.
    pub fn is_standing(&self) -> bool {
        self.standing.as_ref().is_some_and(|standing| !standing.session.guard.is_finished())
    }

    /// Unmounts. Requests under way are given a moment to end.
    pub fn stop(&mut self) -> Result<Stopped, MountError> {
        let Some(standing) = self.standing.take() else {
            return Ok(Stopped::Clean);
        };
        self.invalidations.close();
        let unmounted = self.unmount();
        let deadline = Instant::now() + STOP_WAIT;
        while !standing.session.guard.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !standing.session.guard.is_finished() {
            // Its threads end with the last user, or with the process.
            return unmounted.map(|_| Stopped::Busy);
        }
        let _ = standing.session.join();
        let _ = standing.notices.join();
        unmounted
    }

    fn unmount(&self) -> Result<Stopped, MountError> {
        let failed = MountError::failed(&self.dir);
        match (&self.device, mounted_at(&self.dir).map_err(&failed)?) {
            (Some(ours), Some(there)) if there.device == *ours => {}
            // Unmounted by somebody else.
            (Some(_), _) | (None, None) => return Ok(Stopped::Clean),
            (None, Some(_)) => return self.unmount_by_helper(),
        }
        match rustix::mount::unmount(&self.dir, UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(Stopped::Clean),
            Err(rustix::io::Errno::BUSY) => {
                let how = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
                rustix::mount::unmount(&self.dir, how).map_err(|e| failed(e.into()))?;
                Ok(Stopped::Busy)
            }
            Err(error) => Err(failed(error.into())),
        }
    }

    fn unmount_by_helper(&self) -> Result<Stopped, MountError> {
        let failed = MountError::failed(&self.dir);
        let mut helper = std::process::Command::new("fusermount3");
        let done =
            helper.args(["-u", "-z", "-q", "--"]).arg(&self.dir).status().map_err(&failed)?;
        if done.success() {
            Ok(Stopped::Clean)
        } else {
            Err(failed(io::Error::other("fusermount3 could not unmount it")))
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn is_ours(mounted: &Mounted) -> bool {
    mounted.kind == KIND
}

/// Checks the directory and clears what dead servers left there. Its absolute path.
fn prepare(dir: &Path) -> Result<PathBuf, MountError> {
    for _ in 0..MAX_DEAD {
        let at = resolve(dir)?;
        let failed = MountError::failed(&at);
        let refuse = |why| Err(MountError::new(&at, why));
        let there = mounted_at(&at).map_err(&failed)?;
        match (std::fs::metadata(&at), there) {
            (Ok(found), _) if !found.is_dir() => return refuse(Refusal::NotDirectory),
            (Ok(_), Some(there)) if there.is_fuse() => return refuse(Refusal::InUse(there.kind)),
            (Ok(_), _) => return Ok(at),
            (Err(error), Some(there)) if is_dead(&error) => {
                let how = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
                if !is_ours(&there) || rustix::mount::unmount(&at, how).is_err() {
                    return refuse(Refusal::Dead(there.kind));
                }
            }
            (Err(error), _) => return Err(failed(error)),
        }
    }
    Err(MountError::new(dir, Refusal::Dead(KIND.into())))
}

/// ENOTCONN: a FUSE mount whose server has gone.
fn is_dead(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOTCONN)
}

/// Absolute, without links; also where a dead mount keeps its last component from being looked at.
fn resolve(dir: &Path) -> Result<PathBuf, MountError> {
    let failed = |error: io::Error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound => Refusal::NoDirectory,
            io::ErrorKind::NotADirectory => Refusal::NotDirectory,
            _ => Refusal::Failed(error),
        };
        MountError::new(dir, why)
    };
    match dir.canonicalize() {
        Err(error) if is_dead(&error) => {
            let whole = std::path::absolute(dir).map_err(&failed)?;
            let (Some(above), Some(name)) = (whole.parent(), whole.file_name()) else {
                return Err(failed(error));
            };
            Ok(above.canonicalize().map_err(&failed)?.join(name))
        }
        other => other.map_err(&failed),
    }
}

fn open_session(
    door: Guarded,
    dir: &Path,
    options: &MountOptions,
) -> Result<Session<Guarded>, MountError> {
    let mut config = Config::default();
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = true;
    if !is_root() {
        config.acl = SessionACL::Owner;
        config.mount_options = vec![
            MountOption::FSName(options.source.clone()),
            MountOption::CUSTOM(format!("subtype={NAME}")),
            MountOption::DefaultPermissions,
        ];
        return Session::new(door, dir, &config).map_err(|error| refused(dir, error));
    }
    config.acl = SessionACL::All;
    let kernel = mount_as_root(dir, &options.source)?;
    Session::from_fd(door, kernel, SessionACL::All, config).map_err(|error| {
        let _ = rustix::mount::unmount(dir, UnmountFlags::DETACH);
        MountError::new(dir, Refusal::Failed(error))
    })
}

/// mount(2) for everybody, with devices and set-user-id programs as on a local disk.
fn mount_as_root(dir: &Path, source: &str) -> Result<OwnedFd, MountError> {
    let failed = |error| refused(dir, error);
    let kernel = OpenOptions::new().read(true).write(true).open(DEVICE).map_err(&failed)?;
    let mode = std::fs::metadata(dir).map_err(&failed)?.mode() & libc::S_IFMT;
    let data = format!(
        "fd={},rootmode={mode:o},user_id=0,group_id=0,allow_other,default_permissions,\
         subtype={NAME}",
        kernel.as_raw_fd()
    );
    let data = CString::new(data).map_err(|error| failed(error.into()))?;
    rustix::mount::mount(source, dir, "fuse", MountFlags::empty(), Some(data.as_c_str()))
        .map_err(|error| failed(error.into()))?;
    Ok(kernel.into())
}

fn refused(dir: &Path, error: io::Error) -> MountError {
    let why = match error.kind() {
        io::ErrorKind::NotFound if !Path::new(DEVICE).exists() => Refusal::NoDevice,
        io::ErrorKind::PermissionDenied => Refusal::NotPermitted(error.to_string()),
        _ if !is_root() => Refusal::NotPermitted(error.to_string().trim().replace('\n', " ")),
        _ => Refusal::Failed(error),
    };
    MountError::new(dir, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_must_be_a_directory() {
        let base = tempfile::tempdir().unwrap();
        let missing = base.path().join("missing");
        assert!(matches!(prepare(&missing).unwrap_err().why, Refusal::NoDirectory));
        let file = base.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(matches!(prepare(&file).unwrap_err().why, Refusal::NotDirectory));
        assert_eq!(prepare(base.path()).unwrap(), base.path().canonicalize().unwrap());
    }

    #[test]
    fn errors_say_what_why_and_what_to_do() {
        for why in [
            Refusal::NoDirectory,
            Refusal::NotDirectory,
            Refusal::InUse(KIND.into()),
            Refusal::Dead("fuse.other".into()),
            Refusal::NoDevice,
            Refusal::NotPermitted("Operation not permitted".into()),
            Refusal::Failed(io::Error::from_raw_os_error(libc::EIO)),
        ] {
            let error = MountError::new(Path::new("/mnt/x"), why);
            assert_eq!(error.to_string().lines().count(), 3, "{error}");
        }
    }
}
