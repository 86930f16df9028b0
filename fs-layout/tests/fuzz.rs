//! Every decoder under random bytes, and under valid structures with bytes changed and their
//! checksum made right again: none panics, none takes more memory than its input explains, and what
//! is accepted means the same when it is written and read again.

use fs_layout::*;
use std::panic::{catch_unwind, AssertUnwindSafe};

const ROUNDS: u64 = 20_000;
const HASH_AT: usize = BLOCK_BYTES - 32;
const CHAIN: std::ops::Range<usize> = 64..96;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound.max(1) as u64) as usize
    }

    /// Small, huge, or anything.
    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.bits() % 10,
            1 => u64::MAX - self.bits() % 10,
            2 => 1 << self.below(64),
            _ => self.bits(),
        }
    }

    fn fill(&mut self, out: &mut [u8]) {
        out.chunks_mut(8).for_each(|c| c.copy_from_slice(&self.bits().to_le_bytes()[..c.len()]));
    }

    fn block(&mut self) -> RawBlock {
        let mut out = [0; BLOCK_BYTES];
        self.fill(&mut out);
        out
    }

    /// Changes a few fields at any place.
    fn mutate(&mut self, bytes: &mut [u8]) {
        for _ in 0..1 + self.below(6) {
            let at = if self.below(2) == 0 { self.below(bytes.len()) } else { self.below(128) };
            let width = [1, 2, 4, 8][self.below(4)];
            let value = self.number().to_le_bytes();
            for (byte, new) in bytes.iter_mut().skip(at).take(width).zip(value) {
                *byte = new;
            }
        }
    }
}

/// Runs `round` for many seeds; a panic names its seed.
fn rounds(mut round: impl FnMut(&mut Rng)) {
    let first: u64 = std::env::var("LUNFS_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    println!("LUNFS_SEED={first}");
    for n in 0..ROUNDS {
        let seed = first.wrapping_mul(ROUNDS).wrapping_add(n);
        let mut rng = Rng(seed);
        let run = catch_unwind(AssertUnwindSafe(|| round(&mut rng)));
        assert!(run.is_ok(), "seed {seed}");
    }
}

fn inode(rng: &mut Rng) -> Inode {
    let pointer = Pointer {
        block: 1 + rng.bits() % MAX_BLOCK,
        birth: rng.bits() >> 16,
        crc: rng.bits() as u32,
        cloned: rng.below(2) == 0,
    };
    let version = VersionPart {
        next_ino: rng.number(),
        parent: rng.number(),
        epoch: rng.number(),
        hook: std::array::from_fn(|_| rng.bits() as u8),
        hook_outcome: rng.bits() as u8,
        ..VersionPart::default()
    };
    Inode {
        height: rng.below(6) as u8,
        mode: rng.bits() as u32,
        size: rng.number(),
        mtime: rng.number() as i64,
        root: pointer,
        entries: rng.number(),
        depth: rng.below(41) as u8,
        version,
        ..Inode::empty([InodeKind::File, InodeKind::Directory, InodeKind::Version][rng.below(3)])
    }
}

fn root(rng: &mut Rng) -> Root {
    Root {
        incompatible: [0, FEATURE_MEMBERS, FEATURE_VERSIONS][rng.below(3)],
        pool_id: [rng.bits() as u8; 16],
        epoch: rng.number(),
        lineage: rng.bits(),
        previous: [rng.bits() as u8; 32],
        time: rng.bits() as i64,
        blocks: rng.number(),
        next_group_block: rng.number(),
        next_group: rng.number(),
        group_seed: [rng.bits() as u8; 32],
        space: SpaceEntry { written: true, second: rng.below(2) == 0, crc: 7, free: rng.number() },
        segment_map: std::array::from_fn(|i| (i as u32, [0, 1, 255][rng.below(3)])),
        scrub: scrub(rng),
        volume_table: inode(rng),
    }
}

fn scrub(rng: &mut Rng) -> ScrubRecord {
    ScrubRecord {
        running: rng.below(2) == 0,
        phase: rng.below(6) as u8,
        entered: rng.below(2) == 0,
        result: [ScrubResult::None, ScrubResult::Done, ScrubResult::Cancelled][rng.below(3)],
        volume: rng.bits() as u32,
        ino: rng.number(),
        block: rng.number(),
        started: rng.bits() as i64,
        finished: rng.bits() as i64,
        examined_blocks: rng.number(),
        total_blocks: rng.number(),
        healed: rng.number(),
        bad: rng.number(),
    }
}

fn put_hash(block: &mut RawBlock) {
    let hash = *blake3::hash(&block[..HASH_AT]).as_bytes();
    block[HASH_AT..].copy_from_slice(&hash);
}

#[test]
fn fuzz_roots() {
    rounds(|rng| {
        let (mut block, root) = ([0; BLOCK_BYTES], root(rng));
        let hash = root.encode(&mut block);
        assert_eq!(Root::decode(&block), Ok((root, hash)));
        rng.mutate(&mut block);
        put_hash(&mut block);
        if let Ok((read, _)) = Root::decode(&block) {
            let mut again = [0; BLOCK_BYTES];
            read.encode(&mut again);
            assert_eq!(Root::decode(&again).map(|r| r.0), Ok(read));
        }
        block[rng.below(BLOCK_BYTES)] ^= 1 << rng.below(8);
        assert!(Root::decode(&block).is_err(), "one bit is always found");
        assert!(Root::decode(&rng.block()).is_err());
    });
}

fn member(rng: &mut Rng) -> MemberRecord {
    use MemberState::*;
    MemberRecord {
        state: [Normal, Missing, Merging, Regenerating, Removing, Absent][rng.below(6)],
        replaces: [None, Some(rng.below(12) as u16)][rng.below(2)],
        segments: rng.bits() as u32,
        good_epoch: rng.number(),
        lineage: rng.bits(),
    }
}

#[test]
fn fuzz_labels() {
    rounds(|rng| {
        let device = |rng: &mut Rng| DeviceEntry {
            id: [rng.bits() as u8; 16],
            path: "/x".repeat(rng.below(80)),
            member: member(rng),
        };
        let devices: Vec<_> = (0..1 + rng.below(MAX_DEVICES)).map(|_| device(rng)).collect();
        let label = Label {
            pool_id: [3; 16],
            index: rng.below(devices.len()) as u16,
            device_blocks: rng.number(),
            created: rng.bits() as i64,
            redundancy: rng.below(2) as u8,
            generation: rng.number(),
            lineage: rng.bits(),
            ancestors: std::array::from_fn(|_| rng.bits()),
            devices,
        };
        let mut block = [0; BLOCK_BYTES];
        assert_eq!(label.encode(&mut block), Ok(()));
        assert_eq!(Label::decode(&block), Ok(label));
        rng.mutate(&mut block);
        put_hash(&mut block);
        if let Ok(read) = Label::decode(&block) {
            assert!(read.devices.len() <= MAX_DEVICES);
        }
        assert!(Label::decode(&rng.block()).is_err());
    });
}

/// Paths could once reach further: what they overwrite says nothing.
#[test]
fn a_long_path_of_an_earlier_label_is_no_membership() {
    let entry = DeviceEntry { path: "x".repeat(3646), ..DeviceEntry::default() };
    let label = Label { devices: vec![entry], ..Label::default() };
    let mut block = [0; BLOCK_BYTES];
    assert_eq!(label.encode(&mut block), Ok(()));
    block[64..66].copy_from_slice(&3990u16.to_le_bytes());
    block[66..66 + 3990].fill(b'y');
    put_hash(&mut block);
    let read = Label::decode(&block).unwrap();
    assert_eq!((read.generation, read.lineage, read.redundancy), (0, 0, 0));
    assert_eq!(read.devices[0].member, MemberRecord::default());
}

#[test]
fn fuzz_labels_too_long_are_refused() {
    let mut entry = DeviceEntry { path: "x".repeat(3646), ..DeviceEntry::default() };
    let mut label = Label { devices: vec![entry.clone()], ..Label::default() };
    assert_eq!(label.encode(&mut [0; BLOCK_BYTES]), Ok(()));
    entry.path.push('x');
    label.devices = vec![entry];
    assert!(label.encode(&mut [0; BLOCK_BYTES]).is_err());
    label.devices = vec![DeviceEntry::default(); MAX_DEVICES + 1];
    assert!(label.encode(&mut [0; BLOCK_BYTES]).is_err());
}

#[test]
fn fuzz_inodes_and_pointers() {
    rounds(|rng| {
        let inode = inode(rng);
        let mut bytes = inode.encode();
        assert_eq!(Inode::decode(&bytes), Ok(inode));
        rng.mutate(&mut bytes);
        if let Ok(read) = Inode::decode(&bytes) {
            assert_eq!(Inode::decode(&read.encode()), Ok(read));
        }
        assert!(Inode::decode(&bytes[..rng.below(INODE_BYTES)]).is_err());
        let node = rng.block();
        for index in 0..POINTERS_PER_NODE {
            let Ok(pointer) = Pointer::in_node(&node, index) else { continue };
            let mut again = [0; POINTER_BYTES];
            pointer.encode(&mut again);
            assert_eq!(again[..], node[index * POINTER_BYTES..][..POINTER_BYTES]);
        }
    });
}

fn put_chain(block: &mut RawBlock, seed: &[u8; 32]) {
    block[CHAIN].fill(0);
    let mut hasher = blake3::Hasher::new();
    hasher.update(seed).update(block);
    block[CHAIN].copy_from_slice(hasher.finalize().as_bytes());
}

#[test]
fn fuzz_group_heads() {
    rounds(|rng| {
        let mut payload = vec![0; if rng.below(2) == 0 { rng.below(4000) } else { 50_000 }];
        rng.fill(&mut payload);
        let mut left = GroupHead::continuation_blocks(payload.len());
        let mut extents = Vec::new();
        while left > 0 {
            let count = (1 + rng.below(4) as u64).min(left);
            extents.push((1 + rng.bits() % MAX_BLOCK, count));
            left -= count;
        }
        let head = GroupHead {
            number: rng.number(),
            epoch: rng.number(),
            durable_mark: rng.number(),
            next_block: rng.number(),
            payload_bytes: payload.len() as u32,
            payload_crc: crc32c::crc32c(&payload),
            extents,
        };
        let seed = [rng.bits() as u8; 32];
        let mut block = [0; BLOCK_BYTES];
        let chain = head.encode(&payload, &seed, &mut block);
        assert_eq!(GroupHead::decode(&block, &seed), Ok((head, chain)));
        let other = [seed[0].wrapping_add(1); 32];
        assert!(GroupHead::decode(&block, &other).is_err(), "a chain has one order");
        rng.mutate(&mut block);
        assert!(GroupHead::decode(&rng.block(), &seed).is_err());
        put_chain(&mut block, &seed);
        if let Ok((read, _)) = GroupHead::decode(&block, &seed) {
            let blocks: u64 = read.extents.iter().map(|e| e.1).sum();
            assert!(blocks <= GROUP_MAX_CONT && read.extents.len() <= GROUP_EXTENTS_MAX);
            let _ = read.inline_payload(&block);
        }
    });
}

fn record(rng: &mut Rng) -> FileRecord {
    let start = rng.bits() % (1 << 40);
    let mut links: Vec<Link> = (0..rng.below(40) as u64)
        .map(|n| Link {
            file_block: start + n + rng.bits() % 2 * 50,
            disk_block: 1 + rng.bits() % (1 << 40),
            crc: rng.bits() as u32,
        })
        .collect();
    links.sort_by_key(|link| link.file_block);
    links.dedup_by_key(|link| link.file_block);
    let clones = rng.below(2) as u32;
    let range = |rng: &mut Rng| match rng.below(2) as u32 & clones {
        0 => FileRange::Hole(rng.number() & ((1 << 56) - 1), rng.number()),
        _ => {
            let height = rng.below(6) as u8;
            FileRange::Clone(CloneLink {
                first: rng.bits() % 1000 * 256u64.pow(height.into()),
                height,
                block: 1 + rng.bits() % MAX_BLOCK,
                crc: rng.bits() as u32,
                data_blocks: rng.number(),
            })
        }
    };
    let ranges = (0..rng.below(5)).map(|_| range(rng)).collect();
    let inode = (rng.below(2) == 0).then(|| inode(rng));
    FileRecord { volume: rng.bits() as u32, ino: rng.bits() >> 24, ranges, links, inode }
}

fn read_payload(bytes: &[u8]) -> Result<Vec<FileRecord>> {
    let mut reader = PayloadReader::new(bytes);
    let mut records = Vec::new();
    while let Some(record) = reader.next_record()? {
        assert!(record.links.len() * 4 <= bytes.len() && record.ranges.len() * 16 <= bytes.len());
        records.push(record);
    }
    Ok(records)
}

#[test]
fn fuzz_group_payloads() {
    rounds(|rng| {
        let records: Vec<_> = (0..rng.below(6)).map(|_| record(rng)).collect();
        let mut writer = PayloadWriter::default();
        records.iter().for_each(|record| writer.file(record));
        let mut bytes = writer.finish();
        assert_eq!(read_payload(&bytes), Ok(records));
        let cut = rng.below(bytes.len() + 1);
        let _ = read_payload(&bytes[..cut]);
        if !bytes.is_empty() {
            rng.mutate(&mut bytes);
        }
        let _ = read_payload(&bytes);
        let mut garbage = vec![0; rng.below(3000)];
        rng.fill(&mut garbage);
        if let Some(tag) = garbage.first_mut() {
            *tag = 1;
        }
        let _ = read_payload(&garbage);
    });
}

#[test]
fn fuzz_buckets() {
    rounds(|rng| {
        let mut bucket = DirBucket { depth: rng.below(41) as u8, entries: Vec::new() };
        let wanted = rng.below(120);
        while bucket.entries.len() < wanted {
            let longest = if rng.below(4) == 0 { 255 } else { 20 };
            let mut name = vec![0; 1 + rng.below(longest)];
            rng.fill(&mut name);
            if !bucket.fits(name.len()) {
                break;
            }
            let (cookie, ino) = (rng.bits() >> 1, rng.bits() >> 24);
            bucket.entries.push(BucketEntry { cookie, ino, kind: rng.below(8) as u8, name });
        }
        let mut block = [0; BLOCK_BYTES];
        bucket.encode(&mut block);
        assert!(bucket.encoded_len() <= BLOCK_BYTES);
        assert_eq!(DirBucket::decode(&block).as_ref(), Ok(&bucket));
        for e in &bucket.entries {
            let found = DirBucket::find(&block, e.cookie >> 8, &e.name);
            assert!(found.is_ok_and(|found| found.is_some()));
        }
        rng.mutate(&mut block);
        if let Ok(read) = DirBucket::decode(&block) {
            assert!(read.entries.len() <= BLOCK_BYTES / 18);
        }
        let _ = DirBucket::find(&block, rng.bits(), b"name");
        assert!(DirBucket::decode(&rng.block()).is_err());
    });
}

#[test]
fn fuzz_segment_maps() {
    rounds(|rng| {
        let run = |rng: &mut Rng| SegmentRun {
            logical: 1 + rng.bits() % (1 << 30),
            count: 1 + rng.bits() % (1 << 30),
            class: rng.below(2) as u8,
            members: (0..1 + rng.below(MAX_MEMBERS)).map(|n| (n as u16, rng.number())).collect(),
        };
        let page =
            SegmentMapPage { runs: (0..rng.below(RUNS_PER_PAGE + 1)).map(|_| run(rng)).collect() };
        let mut block = [0; BLOCK_BYTES];
        page.encode(&mut block);
        assert_eq!(SegmentMapPage::decode(&block), Ok(page));
        rng.mutate(&mut block);
        if let Ok(read) = SegmentMapPage::decode(&block) {
            assert!(read.runs.len() <= RUNS_PER_PAGE);
        }
        assert!(SegmentMapPage::decode(&rng.block()).is_err());
    });
}

#[test]
fn fuzz_dead_and_space_entries() {
    rounds(|rng| {
        let mut bytes = [0; DEAD_ENTRY_BYTES];
        rng.fill(&mut bytes);
        if rng.below(2) == 0 {
            (bytes[16], bytes[17]) = (rng.below(6) as u8, rng.below(2) as u8);
            bytes[5] &= 0x0F;
        }
        if let Ok(entry) = DeadEntry::decode(&bytes) {
            assert_eq!(DeadEntry::decode(&entry.encode()), Ok(entry));
        }
        let mut bytes = [0; 16];
        rng.fill(&mut bytes);
        bytes[4..8].copy_from_slice(&(rng.below(6) as u32).to_le_bytes());
        if let Ok(entry) = SpaceEntry::decode(&bytes) {
            let mut again = [0; 16];
            entry.encode(&mut again);
            assert_eq!(again, bytes);
        }
    });
}
