//! Disks in the model, and what calls make of them.

use super::model::{Chunk, BLOCK};
use super::ops::Data;
use lunfs::fs::ATOMIC_WRITE_BYTES;
use std::collections::BTreeMap;

/// A disk. Blocks that are not there read as zeros.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Disk {
    pub size: u64,
    pub vendor: String,
    pub blocks: BTreeMap<u64, Chunk>,
}

pub type Disks = BTreeMap<String, Disk>;

impl Disk {
    pub fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut out = vec![0; len as usize];
        for (number, chunk) in self.blocks.range(offset / BLOCK..(offset + len).div_ceil(BLOCK)) {
            let at = number * BLOCK;
            let (from, to) = (offset.max(at), (offset + len).min(at + BLOCK));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&chunk.bytes()[(from - at) as usize..(to - at) as usize]);
        }
        out
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        for number in offset / BLOCK..end.div_ceil(BLOCK) {
            let at = number * BLOCK;
            let mut whole = self.read(at, BLOCK);
            let (from, to) = (offset.max(at), end.min(at + BLOCK));
            whole[(from - at) as usize..(to - at) as usize]
                .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
            match whole.iter().all(|byte| *byte == 0) {
                true => self.blocks.remove(&number),
                false => self.blocks.insert(number, Chunk::new(&whole)),
            };
        }
    }

    /// Zeros from `offset` to `end`.
    pub fn clear(&mut self, offset: u64, end: u64) {
        let numbers: Vec<u64> =
            self.blocks.range(offset / BLOCK..end.div_ceil(BLOCK)).map(|(n, _)| *n).collect();
        for number in numbers {
            let (from, to) = (offset.max(number * BLOCK), end.min(number * BLOCK + BLOCK));
            self.write(from, &vec![0; (to - from) as usize]);
        }
    }

    pub fn resize(&mut self, size: u64) {
        self.clear(size.min(self.size), self.size);
        self.size = size;
    }
}

/// A call on a disk.
#[derive(Debug, Clone)]
pub enum Call {
    Write {
        at: u64,
        data: Data,
        fua: bool,
    },
    Unmap {
        at: u64,
        len: u64,
    },
    Zeroes {
        at: u64,
        len: u64,
        may_unmap: bool,
    },
    Swap {
        at: u64,
        data: Data,
        hits: bool,
    },
    Or {
        at: u64,
        data: Data,
    },
    /// As a file of the mount, while no block client is there.
    File {
        at: u64,
        data: Data,
    },
    FilePunch {
        at: u64,
        len: u64,
    },
}

impl Call {
    /// What it makes of a disk: the states it may be found in, the last when it is done.
    pub fn outcomes(&self, disk: &Disk) -> Vec<Disk> {
        let mut done = disk.clone();
        match self {
            Call::Write { at, data, .. } | Call::File { at, data } => {
                let step = ATOMIC_WRITE_BYTES;
                let parts = data.bytes();
                let piece = |(n, part): (usize, &[u8])| {
                    done.write(at + (n * step) as u64, part);
                    done.clone()
                };
                return parts.chunks(step).enumerate().map(piece).collect();
            }
            Call::Unmap { at, len } | Call::FilePunch { at, len } => done.clear(*at, at + len),
            Call::Zeroes { at, len, .. } => {
                // Space is allocated in steps, which end at multiples of the longest.
                let step = ATOMIC_WRITE_BYTES as u64;
                let (mut from, mut all) = (*at, Vec::new());
                while from < at + len {
                    let end = ((from / step + 1) * step).min(at + len);
                    done.clear(from, end);
                    all.push(done.clone());
                    from = end;
                }
                return all;
            }
            Call::Swap { at, data, hits: true } => done.write(*at, &data.bytes()),
            Call::Swap { hits: false, .. } => {}
            Call::Or { at, data } => {
                let mut there = done.read(*at, data.len as u64);
                there.iter_mut().zip(data.bytes()).for_each(|(a, b)| *a |= b);
                done.write(*at, &there);
            }
        }
        vec![done]
    }

    pub fn is_of_files(&self) -> bool {
        matches!(self, Call::File { .. } | Call::FilePunch { .. })
    }
}

/// The first thing in which they differ.
pub fn difference(wanted: &Disks, seen: &Disks) -> String {
    for (name, disk) in wanted {
        let Some(other) = seen.get(name) else { return format!("{name} is missing") };
        if (disk.size, &disk.vendor) != (other.size, &other.vendor) {
            return format!(
                "{name}: {} {}, seen {} {}",
                disk.size, disk.vendor, other.size, other.vendor
            );
        }
        let numbers = disk.blocks.keys().chain(other.blocks.keys());
        let mut differ = numbers.filter(|n| disk.blocks.get(n) != other.blocks.get(n));
        if let Some(first) = differ.next() {
            return format!("{name}: {} blocks, the first {first}", 1 + differ.count());
        }
    }
    format!("disks {:?}", seen.keys())
}
