//! `lunfs initiator`. Secrets come from files that only their owner reads, and go nowhere but into
//! the request.

use super::args::{Change, Common, Initiator, InitiatorEdit};
use super::{ask, output, rows, show};
use crate::access::{BareSecret, MAX_SECRET_BYTES};
use crate::control::protocol::{Command, InitiatorChange, Login};
use crate::control::{Error, Message, Result};
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zeroize::{Zeroize, Zeroizing};

/// What a list of initiators shows.
const COLUMNS: &[&str] = &["name", "authentication", "luns", "sessions"];

/// Carries a verb out.
pub fn run(verb: &Initiator, common: &Common) -> Result<()> {
    match verb {
        Initiator::List => {
            let value = ask(common, Command::InitiatorList, false)?;
            let none = "no initiators: every LUN is open to clients of this host";
            show(&value, common, |v| output::table(&short(v), COLUMNS, none));
        }
        Initiator::Show { name } => {
            let value = ask(common, Command::InitiatorShow { initiator: name.clone() }, false)?;
            show(&value, common, output::facts);
        }
        Initiator::Add(edit) => {
            let command =
                Command::InitiatorAdd { initiator: edit.name.clone(), change: change(edit)? };
            tell(common, command, edit.change, "defined", &edit.name)?;
        }
        Initiator::Set(edit) => {
            let command =
                Command::InitiatorSet { initiator: edit.name.clone(), change: change(edit)? };
            tell(common, command, edit.change, "changed", &edit.name)?;
        }
        Initiator::Remove { name, change } => {
            let command = Command::InitiatorRemove { initiator: name.clone() };
            tell(common, command, *change, "removed", name)?;
        }
    }
    Ok(())
}

fn tell(common: &Common, command: Command, change: Change, did: &str, name: &str) -> Result<()> {
    let value = ask(common, command, change.dry_run)?;
    show(&value, common, |value| {
        output::line(&format!("{did} {name}"));
        if value.get("authentication").is_some_and(|how| how == "none") {
            output::line("  it is known by its name alone: from other hosts it may only read");
        }
        if value.get("open_to_this_host").is_some_and(|open| open == true) {
            output::line("  no initiator is left: every LUN is open to clients of this host");
        }
    });
    Ok(())
}

/// `vm1 rw, images ro` in one cell.
fn short(all: &Value) -> Vec<Value> {
    let text = |right: &Value| {
        let field = |key| right.get(key).and_then(Value::as_str).unwrap_or_default();
        Value::from(format!("{} {}", field("lun"), field("access")))
    };
    let one = |one: &Value| {
        let mut row = one.clone();
        row["luns"] = one.get("luns").map_or(&[][..], rows).iter().map(text).collect();
        row
    };
    rows(all).iter().map(one).collect()
}

fn change(edit: &InitiatorEdit) -> Result<InitiatorChange> {
    Ok(InitiatorChange {
        chap: login(edit.chap_user.as_ref(), edit.chap_secret_file.as_ref())?,
        no_chap: edit.no_chap,
        mutual: login(edit.mutual_user.as_ref(), edit.mutual_secret_file.as_ref())?,
        no_mutual: edit.no_mutual,
        allow: edit.allow.clone(),
        deny: edit.deny.clone(),
        quotas: edit.quota.clone(),
        addresses: edit.address.clone(),
        max_sessions: edit.max_sessions,
        max_commands: edit.max_commands,
        max_memory_bytes: edit.max_memory.map(|size| size.0),
    })
}

fn login(user: Option<&String>, file: Option<&PathBuf>) -> Result<Option<Login>> {
    match (user, file) {
        (Some(user), Some(file)) => {
            Ok(Some(Login { user: user.clone(), secret: read_secret(file)? }))
        }
        _ => Ok(None),
    }
}

/// One line of text from a file of mode 0600 (or less) that belongs to us or to root.
pub(super) fn read_secret(path: &Path) -> Result<BareSecret> {
    let what = || format!("the secret file {} was refused", path.display());
    let refuse =
        |why: String, todo: String| -> Error { Message::new(what()).why(why).todo(todo).into() };
    // Without waiting for a writer, should it be a pipe.
    let mut options = File::options();
    let options = options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let file = options.open(path).map_err(|e| Error::io(what(), &e))?;
    let found = file.metadata().map_err(|e| Error::io(what(), &e))?;
    if !found.is_file() {
        return Err(refuse("it is not a file".into(), "give a file of mode 0600".into()));
    }
    let mode = found.mode() & 0o777;
    if mode & 0o077 != 0 {
        let why = format!("its mode is {mode:04o}: others can read or change it");
        return Err(refuse(why, format!("chmod 600 {}", path.display())));
    }
    let own = rustix::process::geteuid().as_raw();
    if found.uid() != own && found.uid() != 0 {
        let why = format!("it belongs to the user {}", found.uid());
        return Err(refuse(why, "give a file of your own".into()));
    }
    // One byte more than may be, and a line's end: a longer file is seen to be too long. The room
    // is taken before: a buffer that grows leaves copies behind.
    let most = MAX_SECRET_BYTES + 3;
    let mut bytes = Zeroizing::new(Vec::with_capacity(most));
    let read = file.take(most as u64).read_to_end(&mut bytes);
    read.map_err(|e| Error::io(what(), &e))?;
    let mut text = String::from_utf8(std::mem::take(&mut *bytes)).map_err(|e| {
        e.into_bytes().zeroize();
        refuse("it is not text".into(), "make one with: openssl rand -hex 16".into())
    })?;
    let line = text.strip_suffix('\n').map_or(text.len(), str::len);
    text.truncate(line);
    Ok(BareSecret::new(Zeroizing::new(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn secret(text: &[u8], mode: u32) -> Result<BareSecret> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        read_secret(&path)
    }

    #[test]
    fn only_the_owner_may_read_it() {
        for mode in [0o600, 0o400] {
            let read = secret(b"a secret of 12\n", mode).unwrap();
            assert_eq!(read.into_secret().unwrap().bytes(), b"a secret of 12");
        }
        for mode in [0o640, 0o604, 0o620, 0o666, 0o601] {
            let refused = secret(b"a secret of 12\n", mode).unwrap_err().to_string();
            assert!(refused.contains("chmod 600") && !refused.contains("a secret of"), "{refused}");
        }
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        assert!(read_secret(Path::new("/dev/null")).is_err());
        assert!(read_secret(Path::new("/nonexistent")).is_err());
        assert!(secret(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 0o600).is_err());
        for text in ["short", "two\nlines of text", &"x".repeat(300)] {
            assert!(secret(text.as_bytes(), 0o600).unwrap().into_secret().is_err(), "{text}");
        }
    }
}
