//! Hooks as the command line names them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Who is asked to come to rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hook {
    /// `fsfreeze:PATH`: the filesystem mounted at or above PATH on this machine.
    Fsfreeze(PathBuf),
    /// `qga:SOCKET`: the filesystems of a guest, by the QEMU guest agent behind this Unix socket.
    GuestAgent(PathBuf),
    /// `postgres:URL`: a PostgreSQL cluster, by a connection string as psql(1) takes it.
    Postgres(String),
    /// `exec:CMD`: any program, called as `CMD freeze` and `CMD thaw` by the shell.
    Exec(String),
}

/// A text that names no hook.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no hook: fsfreeze:PATH, qga:SOCKET, postgres:URL or exec:CMD")]
pub struct HookError(String);

impl Hook {
    /// Its kind, which is kept with the snapshot.
    pub fn kind(&self) -> &'static str {
        match self {
            Hook::Fsfreeze(_) => "fsfreeze",
            Hook::GuestAgent(_) => "qga",
            Hook::Postgres(_) => "postgres",
            Hook::Exec(_) => "exec",
        }
    }
}

impl FromStr for Hook {
    type Err = HookError;

    fn from_str(text: &str) -> Result<Hook, HookError> {
        let whole = text.split_once(':').filter(|(_, rest)| !rest.is_empty());
        match whole {
            Some(("fsfreeze", path)) => Ok(Hook::Fsfreeze(path.into())),
            Some(("qga", path)) => Ok(Hook::GuestAgent(path.into())),
            // The scheme is PostgreSQL's own too: `postgres://host/base` is meant as it stands.
            Some(("postgres", url)) if url.starts_with("//") => {
                Ok(Hook::Postgres(format!("postgres:{url}")))
            }
            Some(("postgres", url)) => Ok(Hook::Postgres(url.to_owned())),
            Some(("exec", command)) => Ok(Hook::Exec(command.to_owned())),
            _ => Err(HookError(text.escape_debug().to_string())),
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Hook::Fsfreeze(path) | Hook::GuestAgent(path) => write!(f, "{kind}:{}", path.display()),
            Hook::Postgres(url) => f.write_str(
                url.strip_prefix("postgres:")
                    .map_or(format!("{kind}:{url}").as_str(), |_| url.as_str()),
            ),
            Hook::Exec(command) => write!(f, "{kind}:{command}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for text in [
            "fsfreeze:/srv/data",
            "qga:/run/vm1.sock",
            "postgres:host=/run/postgresql dbname=postgres",
            "postgres://user@host:5433/base",
            "postgres:postgresql://host/base",
            "exec:/usr/local/bin/hook vm1",
        ] {
            let hook: Hook = text.parse().unwrap();
            assert_eq!(hook.to_string(), text);
            assert_eq!(hook.to_string().parse(), Ok(hook));
        }
        for bad in ["", "exec", "exec:", "zfs:/x", "/srv/data", ":x"] {
            assert!(bad.parse::<Hook>().is_err(), "{bad}");
        }
    }
}
