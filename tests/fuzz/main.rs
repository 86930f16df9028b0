//! Fuzzers of what others may have written: a whole pool, and texts that people edit. `make fuzz`
//! runs every test whose name has "fuzz" in it; each prints its seed, and `LUNFS_SEED` repeats it.

mod image;
mod memory;
mod nbs;
mod pool;
mod scsi;
mod texts;
mod walk;

use lunfs::device::sim::Rng;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// The seed of this run: `LUNFS_SEED`, or a fixed one.
fn seed() -> u64 {
    let seed = std::env::var("LUNFS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("LUNFS_SEED={seed}");
    seed
}

/// Small, huge, or anything.
fn number(rng: &mut Rng) -> u64 {
    match rng.below(4) {
        0 => rng.below(10),
        1 => u64::MAX - rng.below(10),
        2 => 1 << rng.below(64),
        _ => rng.bits(),
    }
}
