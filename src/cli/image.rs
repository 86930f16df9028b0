//! `lunfs lun import` and `export`: the command opens the image with its user's rights and passes
//! it to whoever has the pool open.
//!
//! Invariant: an export that failed leaves no half image under the name that was asked for, and
//! what stood there before stays.

use super::args::{Change, Common, Import};
use super::{lun, output, rows, selection, show, usage_error};
use crate::control::protocol::{Command, Reply};
use crate::control::{Error, Message, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const BAR: &str =
    "{msg} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
/// An image may hold what only its owner may read.
const IMAGE_MODE: u32 = 0o600;

/// A bar on standard error where that is a terminal.
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new(what: String) -> Bar {
        let bar = ProgressBar::no_length().with_message(what);
        if let Ok(style) = ProgressStyle::with_template(BAR) {
            bar.set_style(style);
        }
        Bar(bar)
    }

    pub(super) fn hear(&self, reply: &Reply) {
        if let Reply::Progress { done_bytes, size_bytes } = reply {
            // What has just begun does not know yet.
            if *size_bytes > 0 {
                self.0.set_length(*size_bytes);
                self.0.set_position(*done_bytes);
            }
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn call(
    common: &Common,
    command: Command,
    dry_run: bool,
    what: String,
    image: Option<BorrowedFd<'_>>,
) -> Result<Value> {
    let client = selection(common).client()?;
    let bar = Bar::new(what);
    client.call(command, dry_run, image, &mut |reply| bar.hear(&reply))
}

/// `lunfs lun import`.
pub fn import(wanted: &Import, common: &Common) -> Result<()> {
    let from_pool = wanted.file.to_str().and_then(|path| path.strip_prefix("pool:"));
    let image = match from_pool {
        Some(_) => None,
        None if is_dash(&wanted.file) => Some(standard(&io::stdin())?),
        None => Some(open(&wanted.file)?),
    };
    let is_pipe = image.as_ref().map_or(Ok(false), |image| holds_bytes(image).map(|is| !is))?;
    if is_pipe && wanted.size.is_none() {
        let what =
            format!("{} is a pipe, which does not say how long it is", wanted.file.display());
        return Err(usage_error(&what, "add --size SIZE"));
    }
    let command = Command::LunImport {
        lun: wanted.name.clone(),
        size_bytes: wanted.size.map(|size| size.0),
        keys: wanted.keys.clone(),
        into: wanted.into,
        force: wanted.force,
        from_pool: from_pool.map(str::to_owned),
    };
    let what = format!("importing {}", wanted.name);
    let image = image.as_ref().map(AsFd::as_fd);
    let value = call(common, command, wanted.change.dry_run, what, image)?;
    show(&value, common, |value| {
        if wanted.into {
            output::line(&format!("replaced the contents of {}", wanted.name));
        } else {
            lun::made(value);
        }
        moved(value);
    });
    Ok(())
}

fn moved(value: &Value) {
    let text =
        |key| value.get(key).map_or_else(String::new, |field| output::value_text(key, field));
    output::line(&format!("{} of {} are data", text("data_bytes"), text("image_bytes")));
}

fn is_dash(path: &Path) -> bool {
    path == Path::new("-")
}

fn standard(stream: &impl AsFd) -> Result<File> {
    let own = stream.as_fd().try_clone_to_owned();
    own.map(File::from).map_err(|e| Error::io("standard input or output cannot be used", &e))
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| {
        let message = Message::new(format!("the image {} cannot be read", path.display()));
        message.why(e).todo("give the path of a raw image, or - for a pipe").into()
    })
}

/// A regular file or block device: it has a length. Directories are refused.
fn holds_bytes(file: &File) -> Result<bool> {
    let kind = file.metadata().map_err(|e| Error::io("the image cannot be used", &e))?.file_type();
    if kind.is_dir() {
        return Err(Message::new("the image is a directory").todo("give a raw image").into());
    }
    Ok(kind.is_file() || kind.is_block_device())
}

/// `lunfs lun export`.
pub fn export(
    name: &str,
    file: &Path,
    force: bool,
    past_bad: bool,
    change: Change,
    common: &Common,
) -> Result<()> {
    let place = if is_dash(file) { Place::Standard } else { Place::of(file, force)? };
    if change.dry_run {
        return would_export(name, file, common);
    }
    let image = place.open()?;
    let command = Command::LunExport { lun: name.to_string(), past_bad };
    let value = call(common, command, false, format!("exporting {name}"), Some(image.as_fd()));
    let value = match value.and_then(|value| place.finish(&image).map(|()| value)) {
        Ok(value) => value,
        Err(e) => {
            place.give_up();
            return Err(e);
        }
    };
    if !is_dash(file) {
        show(&value, common, |value| {
            output::line(&format!("exported {name} to {}", file.display()));
            moved(value);
        });
    }
    past(name, &value)
}

/// Ranges of bad blocks that are named; JSON has all that are kept.
const SHOWN_RANGES: usize = 10;

/// An export that went on past bad blocks is done, and not whole.
fn past(name: &str, value: &Value) -> Result<()> {
    let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
    let bad_bytes = number(value, "bad_bytes");
    if bad_bytes == 0 {
        return Ok(());
    }
    let ranges = value.get("bad").map_or(&[][..], rows);
    let text =
        |r: &Value| format!("{} at {}", number(r, "length_bytes"), number(r, "offset_bytes"));
    let shown: Vec<String> = ranges.iter().take(SHOWN_RANGES).map(text).collect();
    let more = if ranges.len() > shown.len() { ", and more" } else { "" };
    let what = format!("{bad_bytes} bytes of {name} cannot be read: zeros stand for them");
    Err(Message::new(what).why(format!("bytes {}{more}", shown.join(", "))).into())
}

fn would_export(name: &str, file: &Path, common: &Common) -> Result<()> {
    let command = match name.contains('@') {
        true => Command::SnapshotShow { snapshot: name.to_string() },
        false => Command::LunShow { lun: name.to_string() },
    };
    super::ask(common, command, false)?;
    let text = format!("export {name} to {}", file.display());
    show(&crate::control::report::would(text), common, output::facts);
    Ok(())
}

/// Where an image goes.
enum Place {
    Standard,
    /// A block device or pipe that exists: written in place.
    Existing(PathBuf),
    /// A file: written beside, then renamed.
    File {
        path: PathBuf,
        early: PathBuf,
        replace: bool,
    },
}

impl Place {
    fn of(path: &Path, force: bool) -> Result<Place> {
        let exists = match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                return Err(Message::new(format!("{} is a directory", path.display())).into());
            }
            Ok(found) if found.file_type().is_block_device() || !found.is_file() => {
                let harmless = !found.file_type().is_block_device();
                return (force || harmless)
                    .then(|| Place::Existing(path.to_path_buf()))
                    .ok_or_else(|| overwrite(path));
            }
            Ok(_) => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(unwritable(path, &e)),
        };
        if exists && !force {
            return Err(overwrite(path));
        }
        // Through a link the file it names is replaced, not the link.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let early = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        Ok(Place::File { path, early, replace: exists })
    }

    fn open(&self) -> Result<File> {
        match self {
            Place::Standard if io::stdout().is_terminal() => {
                let what = "an image is not written to a terminal";
                Err(usage_error(what, "name a file, or lead standard output elsewhere"))
            }
            Place::Standard => standard(&io::stdout()),
            Place::Existing(path) => {
                let opened = OpenOptions::new().read(true).write(true).open(path);
                opened.map_err(|e| unwritable(path, &e))
            }
            Place::File { path, early, .. } => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create_new(true).mode(IMAGE_MODE);
                options.open(early).map_err(|e| unwritable(path, &e))
            }
        }
    }

    /// Durable first, then under its name.
    fn finish(&self, image: &File) -> Result<()> {
        match self {
            Place::Standard => Ok(()),
            Place::Existing(path) => match image.sync_all() {
                Err(e) if e.kind() != io::ErrorKind::InvalidInput => Err(unwritable(path, &e)),
                _ => Ok(()),
            },
            Place::File { path, early, replace } => {
                let flags = match replace {
                    true => rustix::fs::RenameFlags::empty(),
                    false => rustix::fs::RenameFlags::NOREPLACE,
                };
                let here = rustix::fs::CWD;
                let done = image
                    .sync_all()
                    .and_then(|()| Ok(rustix::fs::renameat_with(here, early, here, path, flags)?));
                done.map_err(|e| unwritable(path, &e))
            }
        }
    }

    fn give_up(&self) {
        if let Place::File { early, .. } = self {
            // The export's own failure is what is told.
            let _ = std::fs::remove_file(early);
        }
    }
}

fn overwrite(path: &Path) -> Error {
    Message::new(format!("{} exists already", path.display()))
        .why("an export overwrites nothing by itself")
        .todo("add --force, or choose another path")
        .into()
}

fn unwritable(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::AlreadyExists => overwrite(path),
        _ => Error::io(format!("{} cannot be written", path.display()), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn an_image_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let place = Place::of(&path, false).unwrap();
        let image = place.open().unwrap();
        assert!(!path.exists());
        image.write_all_at(b"new", 0).unwrap();
        place.finish(&image).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert!(Place::of(&path, false).is_err());
        let place = Place::of(&path, true).unwrap();
        drop(place.open().unwrap());
        place.give_up();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_came_meanwhile_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let place = Place::of(&path, false).unwrap();
        let image = place.open().unwrap();
        std::fs::write(&path, b"other").unwrap();
        assert!(place.finish(&image).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"other");
    }
}
