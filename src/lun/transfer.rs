//! Import and export of raw images: large I/O, holes stay holes, memory bounded.
//!
//! A file is cut into chunks that a few workers move; a pipe is read or written by one thread while
//! others do the other side. Memory: a chunk for each worker, as many between a pipe and the
//! workers, and one more: 9 MiB.

use super::attributes::{Settings, Wanted};
use super::catalog::{Catalog, CreateLun, DeleteOptions};
use super::data_file::DataFile;
use super::error::{Error, Result};
use super::transfer_job::{pieces_of_data, Chunks, Job, Pool, CHUNK_BYTES, MAX_WORKERS};
use super::unit::Lun;
use crate::fs;
use parking_lot::Mutex;
use rustix::fs::SeekFrom as Seek;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::Arc;

/// Shared at once: the largest subtree of a file that is not a rarity.
const CLONE_BYTES: u64 = 64 << 30;
const BLOCK: u64 = crate::device::BLOCK_BYTES as u64;

/// Where an image comes from.
pub enum Source {
    /// A regular file or block device: its holes are skipped.
    File(File),
    /// A file of the pool: its blocks are shared.
    Pool(fs::File),
    /// A pipe.
    Stream(Box<dyn Read + Send>),
}

/// Where an image goes to.
pub enum Target {
    /// A regular file (emptied first; holes stay holes) or a block device (wholly written).
    File(File),
    /// A pipe.
    Stream(Box<dyn Write + Send>),
}

/// Told from time to time how far it is: (bytes of the image done, bytes of the image). `false`
/// stops.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) -> bool + Sync);

/// What was moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes of the image.
    pub size_bytes: u64,
    /// Bytes that were not zeros and were written.
    pub data_bytes: u64,
}

/// Makes a LUN from an image. A stream needs `request.size_bytes`, the LUN's size, and may be
/// shorter; with a file 0 means the file's size (rounded up to whole blocks). Block writes of
/// clients wait or are refused until it is done. On failure the LUN is deleted again. Durable on
/// return.
pub fn import_new(
    catalog: &Catalog,
    name: &str,
    request: &CreateLun,
    source: Source,
    progress: Progress,
) -> Result<(Arc<Lun>, Moved)> {
    let source = source.settled()?;
    let size_bytes = match (request.size_bytes, source.size_bytes()?) {
        (0, None) => return Err(size_is_missing()),
        (0, Some(size)) => size.max(1).next_multiple_of(block_bytes(request)),
        (given, _) => given,
    };
    let lun = catalog.create(name, &CreateLun { size_bytes, ..request.clone() })?;
    let moved = DataFile::open_by_force(&lun).and_then(|file| import(&file, source, progress));
    match moved {
        Ok(moved) => Ok((lun, moved)),
        Err(error) => {
            let _ = catalog.delete(name, DeleteOptions { recursive: true, force: true });
            Err(error)
        }
    }
}

/// Replaces the contents of a LUN; what lies behind the image's end becomes a hole. `Busy` while a
/// door has it open unless `force`. Block writes of clients wait or are refused until it is done,
/// then they get a unit attention. Durable on return.
pub fn import_into(
    lun: &Arc<Lun>,
    source: Source,
    force: bool,
    progress: Progress,
) -> Result<Moved> {
    if !force {
        lun.check_unused("an import into the contents", "close them, or add --force")?;
    }
    if lun.live.read_only.load(Ordering::Acquire) {
        return Err(Error::ReadOnly(lun.name()));
    }
    let source = source.settled()?;
    check_fits(lun, &source)?;
    let file = DataFile::open_by_force(lun)?;
    file.punch(0, lun.size_bytes())?;
    import(&file, source, progress)
}

/// What was exported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exported {
    /// How much.
    pub moved: Moved,
    /// Bytes that could not be read: zeros stand for them.
    pub bad_bytes: u64,
    /// Where they are: (offset, length), ascending, at most [`MAX_BAD_RANGES`].
    pub bad: Vec<(u64, u64)>,
}

/// Ranges that an export lists; more are counted only.
pub const MAX_BAD_RANGES: usize = 1000;

/// What an export that goes on could not read.
#[derive(Default)]
struct Unread {
    bytes: AtomicU64,
    blocks: Mutex<BTreeSet<u64>>,
}

impl Unread {
    fn note(&self, offset: u64, length: u64) {
        self.bytes.fetch_add(length, Ordering::Relaxed);
        let mut blocks = self.blocks.lock();
        if blocks.len() < MAX_BAD_RANGES {
            blocks.insert(offset);
        }
    }

    fn ranges(&self, size_bytes: u64) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for at in self.blocks.lock().iter() {
            let length = BLOCK.min(size_bytes.saturating_sub(*at));
            match ranges.last_mut() {
                Some((first, so_far)) if *first + *so_far == *at => *so_far += length,
                _ => ranges.push((*at, length)),
            }
        }
        ranges
    }
}

/// Writes a LUN's contents to an image. What clients write meanwhile may be in it or not. Bad
/// blocks end it, unless `past_bad`: then zeros stand for them.
pub fn export(
    lun: &Arc<Lun>,
    target: Target,
    past_bad: bool,
    progress: Progress,
) -> Result<Exported> {
    let unread = Unread::default();
    let past = past_bad.then_some(&unread);
    let size_bytes = lun.size_bytes();
    let job = Job::new(size_bytes);
    let ran = match target {
        Target::Stream(writer) => export_stream(lun, writer, &job, past, progress),
        Target::File(file) => export_file(lun, &file, &job, past, progress),
    };
    let moved = Moved { size_bytes, data_bytes: job.data_bytes() };
    ran.map_err(|error| explained("the export", lun, error))?;
    let bad_bytes = unread.bytes.load(Ordering::Relaxed);
    let told = json!({
        "size_bytes": size_bytes, "data_bytes": moved.data_bytes, "bad_bytes": bad_bytes
    });
    lun.log.event("export", told);
    Ok(Exported { moved, bad_bytes, bad: unread.ranges(size_bytes) })
}

fn import(file: &DataFile, source: Source, progress: Progress) -> Result<Moved> {
    let lun = file.lun();
    check_fits(lun, &source)?;
    let job = Job::new(source.size_bytes()?.unwrap_or(lun.size_bytes()));
    let ran = match source {
        Source::File(image) => import_file(file, &image, &job, progress),
        Source::Pool(image) => import_pool(file, &image, &job, progress),
        Source::Stream(reader) => import_stream(file, reader, &job, progress),
    };
    ran.and_then(|()| file.sync()).map_err(|error| explained("the import", lun, error))?;
    let moved = Moved { size_bytes: job.done_bytes(), data_bytes: job.data_bytes() };
    let (size_bytes, data_bytes) = (moved.size_bytes, moved.data_bytes);
    lun.log.event("import", json!({"size_bytes": size_bytes, "data_bytes": data_bytes}));
    Ok(moved)
}

fn import_file(file: &DataFile, image: &File, job: &Job, progress: Progress) -> Result<()> {
    let chunks = Mutex::new(Chunks::new(job.size_bytes, |from| data_extent(image, from)));
    let work = || {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Some((offset, length)) = job.next_of(&chunks)? {
            let Some(chunk) = buffer.get_mut(..length) else {
                break;
            };
            image.read_exact_at(chunk, offset).map_err(|e| far_end("the image", &e))?;
            put(file, offset, chunk, job)?;
            job.add_done(length as u64);
        }
        Ok(())
    };
    job.run(progress, (0..MAX_WORKERS).map(|_| work))
}

/// In parts, so that it can be stopped.
fn import_pool(file: &DataFile, image: &fs::File, job: &Job, progress: Progress) -> Result<()> {
    let blocks = image.attr()?.blocks;
    let work = || {
        let mut at = 0;
        while at < job.size_bytes && !job.stopped() {
            let part = (job.size_bytes - at).min(CLONE_BYTES);
            let cloned = file.take_range(image, at, at, part)?;
            if cloned == 0 {
                break; // It was cut short meanwhile.
            }
            at += cloned;
            job.add_done(cloned);
        }
        job.add_data(blocks.saturating_mul(BLOCK).min(job.size_bytes));
        Ok(())
    };
    job.run(progress, [work])
}

type Chunk = (u64, Vec<u8>);
type Worker<'a> = Box<dyn FnOnce() -> Result<()> + Send + 'a>;

fn import_stream(
    file: &DataFile,
    reader: Box<dyn Read + Send>,
    job: &Job,
    progress: Progress,
) -> Result<()> {
    let pool = Pool::default();
    let (sender, receiver) = sync_channel::<Chunk>(MAX_WORKERS);
    let receiver = Arc::new(Mutex::new(receiver));
    let mut workers: Vec<Worker> = Vec::new();
    for _ in 0..MAX_WORKERS {
        let (receiver, pool) = (Arc::clone(&receiver), &pool);
        workers.push(Box::new(move || {
            while let Some((offset, chunk)) = receive(&receiver) {
                put(file, offset, &chunk, job)?;
                job.add_done(chunk.len() as u64);
                pool.give(chunk);
            }
            Ok(())
        }));
    }
    drop(receiver);
    let pool = &pool;
    workers.push(Box::new(move || read_stream(reader, &sender, pool, job)));
    job.run(progress, workers)
}

/// Cuts a stream into chunks until it ends. The receivers' end is noticed by the send.
fn read_stream(
    mut reader: Box<dyn Read + Send>,
    sender: &SyncSender<Chunk>,
    pool: &Pool,
    job: &Job,
) -> Result<()> {
    let mut offset = 0;
    while !job.stopped() {
        let mut chunk = pool.take();
        let room = (job.size_bytes - offset).min(CHUNK_BYTES as u64);
        let read = (&mut reader).take(room).read_to_end(&mut chunk);
        read.map_err(|e| far_end("the stream", &e))?;
        let length = chunk.len() as u64;
        if length == 0 {
            break;
        }
        if sender.send((offset, chunk)).is_err() {
            return Ok(());
        }
        offset += length;
    }
    let mut more = [0];
    match reader.read(&mut more) {
        Ok(1..) if offset == job.size_bytes => Err(too_long(job.size_bytes)),
        _ => Ok(()),
    }
}

fn receive(receiver: &Mutex<Receiver<Chunk>>) -> Option<Chunk> {
    receiver.lock().recv().ok()
}

/// Writes what is not zero of a chunk.
fn put(file: &DataFile, offset: u64, chunk: &[u8], job: &Job) -> Result<()> {
    for (at, piece) in pieces_of_data(chunk) {
        file.write_at(offset + at as u64, piece)?;
        job.add_data(piece.len() as u64);
    }
    Ok(())
}

fn export_file(
    lun: &Arc<Lun>,
    file: &File,
    job: &Job,
    past: Option<&Unread>,
    progress: Progress,
) -> Result<()> {
    let failed = |e: io::Error| far_end("the target file", &e);
    let is_device = file.metadata().map_err(failed)?.file_type().is_block_device();
    if !is_device {
        file.set_len(0).and_then(|()| file.set_len(job.size_bytes)).map_err(failed)?;
    }
    let chunks = Mutex::new(Chunks::new(job.size_bytes, |from| match is_device {
        // What a device held before must go: holes are written as zeros.
        true => Ok(Some((from, job.size_bytes))),
        false => lun_extent(lun, from),
    }));
    let work = || {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Some((offset, length)) = job.next_of(&chunks)? {
            let Some(chunk) = buffer.get_mut(..length) else {
                break;
            };
            get(lun, offset, chunk, past)?;
            if is_device {
                file.write_all_at(chunk, offset).map_err(failed)?;
                job.add_data(length as u64);
            } else {
                for (at, piece) in pieces_of_data(chunk) {
                    file.write_all_at(piece, offset + at as u64).map_err(failed)?;
                    job.add_data(piece.len() as u64);
                }
            }
            job.add_done(length as u64);
        }
        Ok(())
    };
    job.run(progress, (0..MAX_WORKERS).map(|_| work))?;
    file.sync_all().map_err(failed)
}

fn export_stream(
    lun: &Arc<Lun>,
    mut writer: Box<dyn Write + Send>,
    job: &Job,
    past: Option<&Unread>,
    progress: Progress,
) -> Result<()> {
    let pool = Pool::default();
    let pool = &pool;
    let (sender, receiver) = sync_channel::<Chunk>(MAX_WORKERS);
    let read = move || {
        let mut chunks = Chunks::new(job.size_bytes, |from| Ok(Some((from, job.size_bytes))));
        while let Some((offset, length)) = chunks.next(job)? {
            let mut chunk = pool.take();
            chunk.resize(length, 0);
            get(lun, offset, &mut chunk, past)?;
            if job.stopped() || sender.send((offset, chunk)).is_err() {
                break;
            }
        }
        Ok(())
    };
    let write = move || {
        let failed = |e: io::Error| far_end("the stream", &e);
        for (_, chunk) in receiver {
            writer.write_all(&chunk).map_err(failed)?;
            job.add_done(chunk.len() as u64);
            job.add_data(chunk.len() as u64);
            pool.give(chunk);
        }
        writer.flush().map_err(failed)
    };
    let workers: [Worker; 2] = [Box::new(read), Box::new(write)];
    job.run(progress, workers)
}

/// Reads all of a chunk; zeros stand for what a shrinking LUN has not any more, and for blocks that
/// are bad where it is to go on.
fn get(lun: &Lun, offset: u64, chunk: &mut [u8], past: Option<&Unread>) -> Result<()> {
    let past = match (read_chunk(lun, offset, chunk), past) {
        (Err(Error::Fs(crate::fs::Error::Corrupt { .. })), Some(past)) => past,
        (read, _) => return read,
    };
    let mut at = offset;
    for piece in chunk.chunks_mut(BLOCK as usize) {
        match read_chunk(lun, at, piece) {
            Err(Error::Fs(crate::fs::Error::Corrupt { .. })) => {
                piece.fill(0);
                past.note(at, piece.len() as u64);
            }
            read => read?,
        }
        at += piece.len() as u64;
    }
    Ok(())
}

fn read_chunk(lun: &Lun, offset: u64, chunk: &mut [u8]) -> Result<()> {
    let read = lun.on_data(|data| data.read_at(offset, chunk)).inspect_err(|error| {
        if let crate::fs::Error::Corrupt { block, file_offset_bytes } = error {
            lun.medium_error(*block, file_offset_bytes.unwrap_or(offset));
        }
    });
    let length = read?;
    chunk.iter_mut().skip(length).for_each(|byte| *byte = 0);
    Ok(())
}

/// The next run of data of a LUN.
fn lun_extent(lun: &Lun, from: u64) -> Result<Option<(u64, u64)>> {
    let Some(start) = lun.on_data(|data| data.seek_data(from))? else {
        return Ok(None);
    };
    Ok(Some((start, lun.on_data(|data| data.seek_hole(start))?)))
}

/// The next run of data of an image. Where the host cannot tell holes, all of it.
fn data_extent(image: &File, from: u64) -> Result<Option<(u64, u64)>> {
    use rustix::io::Errno;
    let start = match rustix::fs::seek(image, Seek::Data(from)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((from, u64::MAX))),
        Err(error) => return Err(far_end("the image", &error.into())),
    };
    let end = rustix::fs::seek(image, Seek::Hole(start));
    Ok(Some((start, end.unwrap_or(u64::MAX))))
}

impl Source {
    /// A path may name a pipe: then it is read as one.
    fn settled(self) -> Result<Source> {
        let Source::File(file) = self else {
            return Ok(self);
        };
        let kind = file.metadata().map_err(|e| far_end("the image", &e))?.file_type();
        if kind.is_dir() {
            return Err(far_end("the image", &io::Error::from(io::ErrorKind::IsADirectory)));
        }
        match kind.is_file() || kind.is_block_device() {
            true => Ok(Source::File(file)),
            false => Ok(Source::Stream(Box::new(file))),
        }
    }

    /// `None`: only its end will tell.
    fn size_bytes(&self) -> Result<Option<u64>> {
        let file = match self {
            Source::File(file) => file,
            Source::Pool(file) => return Ok(Some(file.size_bytes())),
            Source::Stream(_) => return Ok(None),
        };
        let end = rustix::fs::seek(file, Seek::End(0));
        end.map(Some).map_err(|e| far_end("the image", &e.into()))
    }
}

fn block_bytes(request: &CreateLun) -> u64 {
    let mut wanted = Wanted { settings: Settings::default(), size_bytes: 0 };
    for (key, value) in &request.settings {
        // What is wrong with it is said when the LUN is made.
        let _ = wanted.set(key, value);
    }
    u64::from(wanted.settings.block_bytes)
}

fn check_fits(lun: &Lun, source: &Source) -> Result<()> {
    let size_bytes = lun.size_bytes();
    match source.size_bytes()? {
        Some(image) if image > size_bytes => Err(Error::BadSize {
            size_bytes,
            why: format!("the image is larger: {image} bytes"),
            remedy: "make the LUN at least as large".to_owned(),
        }),
        _ => Ok(()),
    }
}

fn size_is_missing() -> Error {
    Error::BadSize {
        size_bytes: 0,
        why: "a pipe does not tell how much it holds".to_owned(),
        remedy: "give the LUN's size with --size".to_owned(),
    }
}

fn too_long(size_bytes: u64) -> Error {
    Error::BadSize {
        size_bytes,
        why: "the stream is longer".to_owned(),
        remedy: "give a larger --size".to_owned(),
    }
}

fn far_end(what: &str, error: &io::Error) -> Error {
    Error::Transfer {
        what: format!("{what} failed"),
        why: error.to_string(),
        remedy: "look at that side and try again".to_owned(),
    }
}

/// Says which LUN it was about where the error does not.
fn explained(what: &str, lun: &Lun, error: Error) -> Error {
    let why = error.to_string();
    let mut lines = why.lines();
    lun.log.event("error", json!({"kind": what, "why": lines.next()}));
    match error {
        Error::Fs(crate::fs::Error::Corrupt { block, file_offset_bytes }) => {
            let at = file_offset_bytes.map_or_else(String::new, |at| {
                format!(": {BLOCK} bytes at {} of its data", at - at % BLOCK)
            });
            Error::Transfer {
                what: format!("{what} of LUN '{}' failed", lun.name()),
                why: format!("bad block {block} of the pool{at}"),
                remedy: "`lunfs status` lists bad places; an export goes on with --past-bad"
                    .to_owned(),
            }
        }
        Error::Fs(error) => Error::Transfer {
            what: format!("{what} of LUN '{}' failed", lun.name()),
            why: error.to_string(),
            remedy: super::error::remedy_of(&error).to_owned(),
        },
        other => other,
    }
}
