//! Data digests made of the checksums that the store keeps beside its blocks: what the initiator
//! verifies is then what was verified when the block was read, or computed when it was written,
//! and a byte that changed in between is found out.

use crate::lun::SUM_BYTES;
use std::ops::Range;
use std::sync::LazyLock;

/// What `SUM_BYTES` zeros do to a CRC-32C, for each value of each of its four bytes.
static BLOCK_OF_ZEROS: LazyLock<[[u32; 256]; 4]> = LazyLock::new(|| {
    let shifted = |crc| crc32c::crc32c_combine(crc, 0, SUM_BYTES);
    let mut table = [[0; 256]; 4];
    for (at, row) in table.iter_mut().enumerate() {
        for (byte, cell) in row.iter_mut().enumerate() {
            *cell = shifted((byte as u32) << (8 * at));
        }
    }
    table
});

/// The CRC-32C of blocks after each other.
fn combined(sums: &[u32]) -> u32 {
    let table = &*BLOCK_OF_ZEROS;
    sums.iter().fold(0u32, |crc, sum| {
        let bytes = crc.to_le_bytes();
        let cells = table.iter().zip(bytes).map(|(row, byte)| row[usize::from(byte)]);
        cells.fold(*sum, |crc, cell| crc ^ cell)
    })
}

/// The CRC-32C of `range` of the bytes that `sums` are of; `None` where it is not of whole blocks.
pub fn sum_of(sums: &[u32], range: Range<usize>) -> Option<u32> {
    if range.is_empty() || range.start % SUM_BYTES != 0 || range.end % SUM_BYTES != 0 {
        return None;
    }
    sums.get(range.start / SUM_BYTES..range.end / SUM_BYTES).map(combined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_blocks_give_the_sum_of_their_bytes() {
        let bytes: Vec<u8> = (0..5 * SUM_BYTES).map(|n| ((n * n) >> 7) as u8).collect();
        let sums: Vec<u32> = bytes.chunks(SUM_BYTES).map(crc32c::crc32c).collect();
        for first in 0..5 {
            for end in first + 1..=5 {
                let range = first * SUM_BYTES..end * SUM_BYTES;
                assert_eq!(sum_of(&sums, range.clone()), Some(crc32c::crc32c(&bytes[range])));
            }
        }
        assert_eq!(sum_of(&sums, 512..SUM_BYTES), None);
        assert_eq!(sum_of(&sums, 0..SUM_BYTES + 4), None);
        assert_eq!(sum_of(&[], 0..SUM_BYTES), None);
        assert_eq!(sum_of(&sums, 0..0), None);
    }
}
