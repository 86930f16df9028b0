//! Where control sockets are: `/run/lunfs/POOL-ID.sock`, or `$XDG_RUNTIME_DIR/lunfs/` for a user.
//!
//! A socket file says nothing by itself: a killed server leaves it behind. Only a connection tells
//! that a pool is served; only the lock on the pool's devices decides who may open it.

use super::error::{Error, Message, Result};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Of the system's server.
const SYSTEM_DIR: &str = "/run/lunfs";
/// Sockets looked at to find the served pools: more than a host will ever run.
const MAX_SOCKETS: usize = 1024;
pub(super) const SUFFIX: &str = "sock";

/// A pool's id as people and file names write it.
pub fn id_text(pool_id: &[u8; 16]) -> String {
    pool_id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The directories of control sockets: the first is this process's own, the others are searched
/// too.
#[derive(Debug, Clone)]
pub struct RunDirs(Vec<PathBuf>);

impl RunDirs {
    /// Those of this process's user.
    pub fn of_process() -> RunDirs {
        let system = PathBuf::from(SYSTEM_DIR);
        if rustix::process::geteuid().is_root() {
            return RunDirs(vec![system]);
        }
        let user = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        let uid = rustix::process::geteuid().as_raw();
        let user = user.map_or_else(|| PathBuf::from(format!("/run/user/{uid}")), PathBuf::from);
        RunDirs(vec![user.join("lunfs"), system])
    }

    /// These, for tests.
    pub fn of(dirs: Vec<PathBuf>) -> RunDirs {
        RunDirs(dirs)
    }

    /// Makes the own directory and binds the socket of a pool in it, mode 0600. The caller holds
    /// the pool's lock, so a socket that is there is a dead server's.
    pub fn bind(&self, pool_id: &[u8; 16]) -> Result<(UnixListener, PathBuf)> {
        let dir = self.0.first().cloned().unwrap_or_else(|| PathBuf::from(SYSTEM_DIR));
        let path = socket_path(&dir, pool_id);
        let listener = bind_in(&dir, &path).map_err(|e| {
            let what = format!("the control socket {} cannot be made", path.display());
            Message::new(what).why(e).todo("look at XDG_RUNTIME_DIR and the directory's rights")
        })?;
        Ok((listener, path))
    }

    /// Connects to the server of a pool; `None`: no socket of it answers.
    pub fn connect(&self, pool_id: &[u8; 16]) -> Result<Option<UnixStream>> {
        for dir in &self.0 {
            if let Some(stream) = connect(&socket_path(dir, pool_id))? {
                return Ok(Some(stream));
            }
        }
        Ok(None)
    }

    /// Connects to every server there is: the pool's id and the connection.
    pub fn connect_all(&self) -> Result<Vec<(String, UnixStream)>> {
        let mut found = Vec::new();
        for path in self.0.iter().flat_map(|dir| sockets_in(dir)) {
            let Some(id) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
            if let Ok(Some(stream)) = connect(&path) {
                found.push((id.to_string(), stream));
            }
        }
        Ok(found)
    }
}

fn socket_path(dir: &Path, pool_id: &[u8; 16]) -> PathBuf {
    dir.join(id_text(pool_id)).with_extension(SUFFIX)
}

fn bind_in(dir: &Path, path: &Path) -> io::Result<UnixListener> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // Under another name until its mode is right: nobody meets it open to all.
    let early = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&early);
    let listener = UnixListener::bind(&early)?;
    fs::set_permissions(&early, Permissions::from_mode(0o600))?;
    fs::rename(&early, path)?;
    Ok(listener)
}

fn connect(path: &Path) -> Result<Option<UnixStream>> {
    match UnixStream::connect(path) {
        Ok(stream) => Ok(Some(stream)),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let what = "the pool is served by another user";
            let why = format!("{}: permission denied", path.display());
            Err(Message::new(what).why(why).todo("run the command as that user").into())
        }
        Err(e) if is_dead(&e) => Ok(None),
        Err(e) => Err(Error::io(format!("{} cannot be connected", path.display()), &e)),
    }
}

fn is_dead(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory
    )
}

fn sockets_in(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|suffix| suffix == SUFFIX))
        .take(MAX_SOCKETS)
        .collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_served_pool_is_found_and_a_dead_socket_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = RunDirs::of(vec![dir.path().join("run"), dir.path().join("other")]);
        let id = [7u8; 16];
        assert!(dirs.connect(&id).unwrap().is_none());
        let (listener, path) = dirs.bind(&id).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(dirs.connect(&id).unwrap().is_some());
        let all = dirs.connect_all().unwrap();
        assert_eq!(all.first().unwrap().0, "07".repeat(16));
        drop(listener);
        assert!(path.exists());
        assert!(dirs.connect(&id).unwrap().is_none());
        dirs.bind(&id).unwrap();
    }
}
