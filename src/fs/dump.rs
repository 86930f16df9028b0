//! Any on-disk object as text, without writing: the log is replayed in memory only where asked.

use super::error::{Error, Result};
use super::labels::{read_label, Labelled};
use crate::device::{Block, BlockDevice};
use fs_layout::{
    DirBucket, GroupHead, Inode, Pointer, Root, SegmentMapPage, ROOT_COPIES, ROOT_SLOTS,
};
use std::fmt::Write;
use std::sync::Arc;

/// What to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Labels and roots of every device.
    Overview,
    /// One block of the first device, as what it seems to be or as asked.
    Block(u64, As),
}

/// How to read a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// Whatever its magic says, else hexadecimal.
    Guess,
    /// A tree node.
    Node,
    /// A block of inodes.
    Inodes,
}

/// The text.
pub fn dump(devices: &[Arc<dyn BlockDevice>], what: &What) -> Result<String> {
    let mut out = String::new();
    match what {
        What::Overview => {
            for d in devices {
                let _ = writeln!(out, "device {} ({} blocks)", d.name(), d.block_count());
                match read_label(d) {
                    Ok(Labelled { label, .. }) => {
                        let _ = writeln!(out, "  label {label:#?}");
                    }
                    Err(e) => {
                        let _ = writeln!(out, "  label: {e}");
                    }
                }
                roots(d, &mut out)?;
            }
        }
        What::Block(at, how) => {
            let device = devices.first().ok_or(Error::Invalid("no device given"))?;
            let raw = read(device, *at)?;
            block(&raw, *how, &mut out);
        }
    }
    Ok(out)
}

fn read(device: &Arc<dyn BlockDevice>, at: u64) -> Result<Box<Block>> {
    let mut raw = [Block::zeroed()];
    device.read(at, &mut raw)?;
    let [raw] = raw;
    Ok(raw)
}

fn roots(device: &Arc<dyn BlockDevice>, out: &mut String) -> Result<()> {
    for slot in 0..ROOT_SLOTS {
        for (i, copy) in ROOT_COPIES.into_iter().enumerate() {
            let _ = match Root::decode(&read(device, copy + slot)?.0) {
                Ok((root, _)) => writeln!(out, "  root slot {slot} copy {i}: {root:#?}"),
                Err(e) => writeln!(out, "  root slot {slot} copy {i}: {e}"),
            };
        }
    }
    Ok(())
}

fn block(raw: &Block, how: As, out: &mut String) {
    let b = &raw.0;
    let _ = match (how, &b[..4]) {
        (As::Node, _) => return node(raw, out),
        (As::Inodes, _) => return inodes(raw, out),
        (_, b"LFDB") => writeln!(out, "{:#?}", DirBucket::decode(b)),
        (_, b"LFSM") => writeln!(out, "{:#?}", SegmentMapPage::decode(b)),
        _ if b.starts_with(b"LUNFSROT") => writeln!(out, "{:#?}", Root::decode(b)),
        _ if b.starts_with(b"LUNFSGRP") => {
            // The chain's seed is not known here: the fields are shown unchecked.
            writeln!(out, "{:#?}", GroupHead::decode_unchecked(b))
        }
        _ => {
            for (i, line) in b.chunks(32).enumerate() {
                let _ = write!(out, "{:04x} ", i * 32);
                line.iter().for_each(|v| {
                    let _ = write!(out, "{v:02x}");
                });
                out.push('\n');
            }
            Ok(())
        }
    };
}

fn node(raw: &Block, out: &mut String) {
    for i in 0..fs_layout::POINTERS_PER_NODE {
        match Pointer::in_node(&raw.0, i) {
            Ok(p) if p == Pointer::default() => {}
            Ok(p) => {
                let _ =
                    writeln!(out, "{i:3} block {} birth {} crc {:08x}", p.block, p.birth, p.crc);
            }
            Err(e) => {
                let _ = writeln!(out, "{i:3} {e}");
            }
        }
    }
}

fn inodes(raw: &Block, out: &mut String) {
    for (i, bytes) in raw.0.chunks_exact(fs_layout::INODE_BYTES).enumerate() {
        let _ = writeln!(out, "{i}: {:#?}", Inode::decode(bytes));
    }
}
