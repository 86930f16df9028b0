//! Import and export: the client's open file on one side, a LUN on the other.
//!
//! A pipe may stand still for ever, so it is only read and written when it is ready, and between
//! the client and a stop of the server are looked at: neither waits for the pipe.

use super::engine::{creation, Session};
use super::error::{Error, Message, Result};
use super::protocol::{KeyValue, Reply};
use super::{report, wire};
use crate::fs::{NodeId, VolumeId};
use crate::lun::transfer::{self as images, Source, Target};
use crate::lun::Lun;
use parking_lot::Mutex;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use serde_json::{json, Value};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the client is told how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// How often a waiting pipe looks whether the client or the server has gone.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// A pipe that is ready takes so much without waiting (PIPE_BUF).
const PIPE_ATOMIC_BYTES: usize = 4096;

/// What an import was asked for.
pub(super) struct Import {
    pub(super) lun: String,
    pub(super) size_bytes: Option<u64>,
    pub(super) keys: Vec<KeyValue>,
    pub(super) into: bool,
    pub(super) force: bool,
}

impl Session<'_> {
    pub(super) fn import(&self, wanted: Import, file: File) -> Result<Value> {
        let image_bytes = image_bytes(&file)?;
        if image_bytes.is_none() && wanted.size_bytes.is_none() {
            let what = "a pipe does not say how long it is";
            return Err(Error::Usage(Message::new(what).todo("add --size SIZE")));
        }
        if self.dry_run {
            return self.would_import(&wanted, image_bytes);
        }
        let source = match (image_bytes, self.in_pool(&file)) {
            (_, Some(own)) => Source::Pool(own),
            (Some(_), None) => Source::File(file),
            (None, None) => Source::Stream(Box::new(self.pipe(file)?)),
        };
        self.import_source(wanted, source)
    }

    /// An image that lies in the pool, by its path in the mount.
    pub(super) fn import_from_pool(&self, wanted: Import, path: &str) -> Result<Value> {
        let file = self.open_in_pool(path)?;
        if self.dry_run {
            return self.would_import(&wanted, Some(file.size_bytes()));
        }
        self.import_source(wanted, Source::Pool(file))
    }

    fn open_in_pool(&self, path: &str) -> Result<crate::fs::File> {
        let fs = self.engine.pool.catalog.fs();
        let mut at = NodeId::root(VolumeId::TREE);
        let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
        let failed = |e| Error::fs(format!("{path} in the pool cannot be read"), &e);
        if let Some(name) = names.peek() {
            if let Some(volume) = fs.volume_lookup(name).map_err(failed)? {
                at = NodeId::root(volume);
                names.next();
            }
        }
        for name in names {
            at = fs.lookup(at, name.as_bytes()).map_err(failed)?.id;
        }
        fs.open_file(at).map_err(failed)
    }

    /// The file itself, where it was opened through this pool's mount.
    fn in_pool(&self, file: &File) -> Option<crate::fs::File> {
        let found = file.metadata().ok().filter(|found| found.is_file())?;
        let mounts = self.engine.doors.mounts();
        let is_ours = |at: &String| std::fs::metadata(at).is_ok_and(|m| m.dev() == found.dev());
        mounts.iter().find(|at| is_ours(at))?;
        // What the kernel still has of it comes to us first.
        file.sync_all().ok()?;
        self.engine.pool.catalog.fs().open_file(NodeId::from_number(found.ino())).ok()
    }

    fn import_source(&self, wanted: Import, source: Source) -> Result<Value> {
        let (lun, moved) = self.run_import(wanted, source)?;
        self.durable()?;
        let mut shown = self.show(&lun)?;
        shown["image_bytes"] = moved.size_bytes.into();
        shown["data_bytes"] = moved.data_bytes.into();
        Ok(shown)
    }

    fn run_import(&self, wanted: Import, source: Source) -> Result<(Arc<Lun>, images::Moved)> {
        let progress = Progress::new(self);
        let report = |done: u64, size: u64| progress.report(done, size);
        let outcome = if wanted.into {
            let lun = self.lun(&wanted.lun)?;
            images::import_into(&lun, source, wanted.force, &report).map(|moved| (lun, moved))
        } else {
            let request = creation(wanted.size_bytes.unwrap_or(0), wanted.keys);
            images::import_new(&self.engine.pool.catalog, &wanted.lun, &request, source, &report)
        };
        outcome.map_err(|e| progress.explain(e.into()))
    }

    fn would_import(&self, wanted: &Import, image_bytes: Option<u64>) -> Result<Value> {
        let size_bytes = wanted.size_bytes.or(image_bytes).unwrap_or(0);
        let name = &wanted.lun;
        if wanted.into {
            let lun = self.lun(name)?;
            let room_bytes = lun.geometry().size_bytes;
            if image_bytes.unwrap_or(size_bytes) > room_bytes {
                let what = format!("the image is larger than {name}");
                let why = format!("it has {size_bytes} bytes, the LUN {room_bytes}");
                let todo = format!("`lunfs lun resize {name} --size {size_bytes}`");
                return Err(Message::new(what).why(why).todo(todo).into());
            }
            refuse_open(&lun, wanted.force)?;
            return Ok(report::would(format!("replace the contents of {name}")));
        }
        let rounded_bytes = size_bytes.div_ceil(512).saturating_mul(512);
        let request = creation(rounded_bytes, wanted.keys.clone());
        self.engine.pool.catalog.check_create(name, &request)?;
        Ok(report::would(format!("make the LUN {name} of {rounded_bytes} bytes and fill it")))
    }

    pub(super) fn export(&self, name: &str, past_bad: bool, file: File) -> Result<Value> {
        let lun = self.engine.pool.catalog.disk(name)?;
        let target = match image_bytes(&file)? {
            Some(_) => Target::File(file),
            None => Target::Stream(Box::new(self.pipe(file)?)),
        };
        let progress = Progress::new(self);
        let report = |done: u64, size: u64| progress.report(done, size);
        let done = images::export(&lun, target, past_bad, &report);
        let done = done.map_err(|e| progress.explain(e.into()))?;
        Ok(json!({
            "name": lun.name(),
            "image_bytes": done.moved.size_bytes,
            "data_bytes": done.moved.data_bytes,
            "bad_bytes": done.bad_bytes,
            "bad": done.bad.iter().map(range_json).collect::<Value>(),
        }))
    }

    fn pipe(&self, file: File) -> Result<Pipe> {
        let client = self.stream.try_clone().map_err(|e| Error::Connection(e.to_string()))?;
        let stop = self.engine.stop.clone();
        Ok(Pipe { file, client, stopping: Box::new(move || is_stopping(stop.as_deref())) })
    }
}

fn range_json((offset, length): &(u64, u64)) -> Value {
    json!({ "offset_bytes": offset, "length_bytes": length })
}

fn is_stopping(stop: Option<&super::stop::StopSignal>) -> bool {
    stop.is_some_and(super::stop::StopSignal::is_requested)
}

/// Refuses what a door's open LUN does not allow unless forced.
pub(super) fn refuse_open(lun: &Lun, force: bool) -> Result<()> {
    let (sessions, files) = (lun.sessions().len(), lun.open_files());
    if force || sessions + files == 0 {
        return Ok(());
    }
    let why = format!("{sessions} sessions and {files} files have it open");
    let message = Message::new(format!("{} is in use", lun.name())).why(why);
    Err(message.todo("let the clients log out, or add --force").into())
}

/// Length of a regular file or block device; `None`: a pipe.
fn image_bytes(mut file: &File) -> Result<Option<u64>> {
    let failed = |e: io::Error| Error::io("the image cannot be used", &e);
    let kind = file.metadata().map_err(failed)?.file_type();
    if kind.is_dir() {
        return Err(Message::new("the image is a directory").into());
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Ok(None);
    }
    io::Seek::seek(&mut file, io::SeekFrom::End(0)).map(Some).map_err(failed)
}

/// Tells the client how far it is; notes why it was stopped.
pub(super) struct Progress<'a> {
    session: &'a Session<'a>,
    last: Mutex<Option<Instant>>,
    stopped: Mutex<Option<&'static str>>,
}

impl<'a> Progress<'a> {
    pub(super) fn new(session: &'a Session<'a>) -> Progress<'a> {
        Progress { session, last: Mutex::new(None), stopped: Mutex::new(None) }
    }

    pub(super) fn report(&self, done_bytes: u64, size_bytes: u64) -> bool {
        if is_stopping(self.session.engine.stop.as_deref()) {
            return self.stop("the server is stopping");
        }
        let mut last = self.last.lock();
        if last.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) && done_bytes < size_bytes {
            return true;
        }
        *last = Some(Instant::now());
        let reply = Reply::Progress { done_bytes, size_bytes };
        let told = wire::write_line(&mut &*self.session.stream, &reply);
        told.is_ok() || self.stop("the command was ended")
    }

    fn stop(&self, why: &'static str) -> bool {
        *self.stopped.lock() = Some(why);
        false
    }

    /// What was stopped ended for that reason, whatever it says itself.
    pub(super) fn explain(&self, error: Error) -> Error {
        match *self.stopped.lock() {
            Some(why) => Message::new("the command was stopped").why(why).into(),
            None => error,
        }
    }
}

/// A pipe of the client that does not make anybody wait who wants to leave.
struct Pipe {
    file: File,
    client: UnixStream,
    stopping: Box<dyn Fn() -> bool + Send>,
}

impl Pipe {
    fn wait(&self, ready: PollFlags) -> io::Result<()> {
        loop {
            let gone = PollFlags::HUP | PollFlags::RDHUP;
            let mut fds = [
                PollFd::from_borrowed_fd(self.file.as_fd(), ready),
                PollFd::from_borrowed_fd(self.client.as_fd(), gone),
            ];
            match poll(&mut fds, Some(&LOOK_EVERY)) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            let [pipe, client] = fds;
            if client.revents().intersects(gone) || (self.stopping)() {
                return Err(io::Error::other("the command was ended, or the server is stopping"));
            }
            if !pipe.revents().is_empty() {
                return Ok(());
            }
        }
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait(PollFlags::IN)?;
        self.file.read(buffer)
    }
}

impl Write for Pipe {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.wait(PollFlags::OUT)?;
        self.file.write(buffer.get(..PIPE_ATOMIC_BYTES).unwrap_or(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe_of(file: File, stopping: bool) -> (Pipe, UnixStream) {
        let (client, other) = UnixStream::pair().unwrap();
        (Pipe { file, client, stopping: Box::new(move || stopping) }, other)
    }

    #[test]
    fn a_silent_pipe_does_not_hold_a_stop_or_outlive_its_client() {
        let (reader, _writer) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(reader));
        let (mut pipe, other) = pipe_of(file.try_clone().unwrap(), true);
        assert!(pipe.read(&mut [0; 8]).is_err());
        drop(other);
        let (mut pipe, other) = pipe_of(file, false);
        drop(other);
        assert!(pipe.read(&mut [0; 8]).is_err());
    }

    #[test]
    fn bytes_go_through_a_pipe() {
        let (reader, writer) = io::pipe().unwrap();
        let (mut to, _a) = pipe_of(File::from(std::os::fd::OwnedFd::from(writer)), false);
        let (mut from, _b) = pipe_of(File::from(std::os::fd::OwnedFd::from(reader)), false);
        let sent = vec![3u8; 40_000];
        let sending = std::thread::spawn(move || to.write_all(&sent));
        let mut got = Vec::new();
        from.read_to_end(&mut got).unwrap();
        sending.join().unwrap().unwrap();
        assert_eq!(got, vec![3u8; 40_000]);
    }
}
