//! `mount -t lunfs POOL DIR`, also from fstab and systemd: this program under the name of a helper
//! of mount(8), `mount.lunfs` or `mount.fuse.lunfs`. It starts a server in a session of its own,
//! which ends when it is unmounted, and returns when the mount stands.

use super::output;
use rustix::mount::{mount_bind, mount_remount, MountFlags};
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Names under which mount(8) calls a helper: `mount.TYPE`.
const NAMES: [&str; 2] = ["mount.lunfs", "mount.fuse.lunfs"];
/// mount(8): incorrect invocation.
const EXIT_USAGE: u8 = 1;
/// mount(8): mount failure.
const EXIT_FAILURE: u8 = 32;
/// Type of the mount in the kernel's table.
const KIND: &str = "fuse.lunfs";
/// What `serve` prints last when the mount stands.
const READY: &str = "ready";

/// Options that become flags of `serve`, with a value or without.
const SERVE_OPTIONS: [&str; 9] =
    ["config", "iscsi", "nbd", "nbs", "tls", "advertise", "cache", "degraded", "insecure"];
/// Options of mount(8), fstab(5) and systemd.mount(5) that ask nothing of a helper, and those that
/// the kernel shows of a FUSE mount, which come back with a remount.
const IGNORED: &str =
    "defaults auto noauto user nouser users owner group _netdev nofail rw suid dev \
     exec async atime diratime norelatime nostrictatime symfollow loud silent nomand noiversion \
     nolazytime fd rootmode user_id group_id allow_other default_permissions subtype";
/// `MS_NOSYMFOLLOW` of mount(2).
const MS_NOSYMFOLLOW: u32 = 0x100;
/// Options that the kernel keeps for a mount.
const FLAGS: [(&str, MountFlags); 9] = [
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("nosymfollow", MountFlags::from_bits_retain(MS_NOSYMFOLLOW)),
];

/// What mount(8) asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Request {
    pool: PathBuf,
    dir: PathBuf,
    serve: Vec<OsString>,
    flags: u32,
    remount: bool,
    fake: bool,
}

/// Mounts, if this process was started to do that.
pub fn helper() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    let called = PathBuf::from(args.next()?);
    let name = called.file_name()?.to_str()?;
    NAMES.contains(&name).then(|| {
        let said = match parse(args) {
            Ok(request) => perform(&request).map_err(|why| (EXIT_FAILURE, why)),
            Err(why) => Err((EXIT_USAGE, why)),
        };
        match said {
            Ok(()) => ExitCode::SUCCESS,
            Err((code, why)) => {
                output::error_line(&format!("{name}: {why}"));
                ExitCode::from(code)
            }
        }
    })
}

/// `SPEC DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]` (mount(8), "EXTERNAL HELPERS").
fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Request, String> {
    let mut request = Request::default();
    let mut places = Vec::new();
    let mut sloppy = false;
    let mut options = Vec::new();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        match text.strip_prefix('-') {
            Some("o") => options.extend(args.next()),
            Some("N" | "t") => drop(args.next()),
            Some(letters) if letters.bytes().all(|b| b"sfnvwr".contains(&b)) => {
                sloppy |= letters.contains('s');
                request.fake |= letters.contains('f');
                options.extend(letters.contains('r').then(|| "ro".into()));
            }
            Some(_) => return Err(format!("the option {text} is not known")),
            None => places.push(PathBuf::from(arg)),
        }
    }
    for list in &options {
        request.take_options(&list.to_string_lossy(), sloppy)?;
    }
    let [pool, dir] = <[PathBuf; 2]>::try_from(places)
        .map_err(|_| "usage: mount -t lunfs POOL DIR [-o OPTIONS]".to_owned())?;
    (request.pool, request.dir) = (pool, dir);
    Ok(request)
}

impl Request {
    fn take_options(&mut self, list: &str, sloppy: bool) -> Result<(), String> {
        for option in list.split(',').filter(|option| !option.is_empty()) {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            if let Some((_, flag)) = FLAGS.iter().find(|(known, _)| *known == name) {
                self.flags |= flag.bits();
            } else if name == "remount" {
                self.remount = true;
            } else if SERVE_OPTIONS.contains(&name) {
                let value = value.map_or_else(String::new, |value| format!("={value}"));
                self.serve.push(format!("--{name}{value}").into());
            } else if !is_ignored(name) && !sloppy {
                let known = SERVE_OPTIONS.join(" ");
                return Err(format!(
                    "the mount option {name} is not known\n  beside those of mount(8): {known}"
                ));
            }
        }
        Ok(())
    }
}

fn is_ignored(name: &str) -> bool {
    let is_comment = name.starts_with("x-") || name.starts_with("X-") || name == "comment";
    is_comment || IGNORED.split_whitespace().any(|known| known == name)
}

fn perform(request: &Request) -> Result<(), String> {
    if request.fake {
        return Ok(());
    }
    let flags = MountFlags::from_bits_retain(request.flags);
    if request.remount {
        return remount(&request.dir, flags);
    }
    match mounted_elsewhere(request) {
        // As of a disk: one filesystem at two places.
        Some(there) => mount_bind(&there, &request.dir).map_err(|e| e.to_string())?,
        None => start_server(request)?,
    }
    if flags.is_empty() {
        return Ok(());
    }
    remount(&request.dir, flags | MountFlags::BIND)
}

/// Where the same pool is mounted already, and answers.
fn mounted_elsewhere(request: &Request) -> Option<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let pool = request.pool.to_str()?;
    let ours = table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (source, dir, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == KIND && source == pool && !dir.contains('\\')).then(|| PathBuf::from(dir))
    });
    ours.into_iter().find(|dir| std::fs::metadata(dir).is_ok())
}

fn remount(dir: &Path, flags: MountFlags) -> Result<(), String> {
    mount_remount(dir, flags, "").map_err(|e| format!("{}: {e}", dir.display()))
}

/// Starts the server and waits until it is ready. What it says before goes on to standard error.
fn start_server(request: &Request) -> Result<(), String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: io::Error| format!("{what}: {e}")
    };
    let program = std::env::current_exe().map_err(failed("this program is not found"))?;
    let (ours, theirs) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| e.to_string())?;
    let copy = theirs.try_clone().map_err(failed("no pipe"))?;
    let mut command = Command::new(program);
    command.arg("serve").args(&request.serve).arg("--until-unmounted");
    if request.flags & (MountFlags::RDONLY | MountFlags::NOATIME).bits() != 0 {
        command.arg("--noatime");
    }
    command.arg("--mount").arg(&request.dir).arg("--").arg(&request.pool);
    command.stdin(Stdio::null()).stdout(theirs).stderr(copy);
    let mut server = command.spawn().map_err(failed("the server does not start"))?;
    // The command holds the writing ends: what is left is the server's own.
    drop(command);
    let mut said = Vec::new();
    for line in BufReader::new(std::fs::File::from(ours)).lines() {
        let line = line.map_err(failed("the server is not heard"))?;
        if line == READY {
            let warnings = said.iter().filter(|line: &&String| line.starts_with("warning: "));
            warnings.for_each(|line| output::error_line(line));
            return Ok(());
        }
        said.push(line);
    }
    let _ = server.wait();
    let said = said.join("\n");
    Err(said.strip_prefix("lunfs: ").unwrap_or(&said).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Request, String> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn a_line_of_fstab() {
        let options = "rw,nosuid,noatime,_netdev,x-systemd.automount,iscsi,nbd=:7,cache=1G";
        let request = parsed(&format!("/srv/p.lunfs /mnt/x -n -o {options}")).unwrap();
        assert_eq!((request.pool, request.dir), ("/srv/p.lunfs".into(), "/mnt/x".into()));
        assert_eq!(request.serve, ["--iscsi", "--nbd=:7", "--cache=1G"]);
        assert_eq!(request.flags, (MountFlags::NOSUID | MountFlags::NOATIME).bits());
        assert!(!request.remount && !request.fake);
    }

    #[test]
    fn other_ways_to_be_called() {
        let shown = "rw,relatime,user_id=0,group_id=0,default_permissions,allow_other";
        assert!(parsed(&format!("p d -o {shown},remount,ro")).unwrap().remount);
        assert!(parsed("p d -fv").unwrap().fake);
        assert_eq!(parsed("p d -t fuse.lunfs -r").unwrap().flags, MountFlags::RDONLY.bits());
        assert!(parsed("p d -s -o nonsense").is_ok());
    }

    #[test]
    fn mistakes_are_named() {
        assert!(parsed("p d -o nonsense=1").unwrap_err().contains("nonsense"));
        assert!(parsed("p").unwrap_err().contains("usage"));
        assert!(parsed("p d -z").is_err());
    }
}
