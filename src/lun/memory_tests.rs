//! Tests of the LUN in memory.

use super::*;

const KIB: u64 = 1024;

fn lun() -> MemoryLun {
    MemoryLun::new("test", 64 * KIB, 512)
}

fn bytes(lun: &MemoryLun, offset: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0xee; length];
    lun.read(offset, &mut out).unwrap();
    out
}

#[test]
fn holds_what_was_written_and_zeros_elsewhere() {
    let lun = lun();
    lun.write(3584, &[7; 1024], false).unwrap();
    assert_eq!(bytes(&lun, 3584, 1024), vec![7; 1024]);
    assert_eq!(bytes(&lun, 3072, 512), vec![0; 512]);
    assert_eq!(lun.mapped_bytes(), 8192);
    let mut out = [1; 512];
    lun.try_read(4096, &mut out).unwrap().unwrap();
    assert_eq!(out, [7; 512]);
}

#[test]
fn refuses_what_lies_outside_or_is_not_whole_blocks() {
    let lun = lun();
    assert!(matches!(lun.write(0, &[0; 100], false), Err(BlockError::Invalid(_))));
    assert!(matches!(lun.read(64 * KIB, &mut [0; 512]), Err(BlockError::OutOfRange)));
    let last = u64::MAX - 511;
    assert!(matches!(lun.read(last, &mut [0; 512]), Err(BlockError::OutOfRange)));
    assert!(matches!(lun.unmap(512, u64::MAX - 511), Err(BlockError::OutOfRange)));
    lun.read(64 * KIB, &mut []).unwrap();
}

#[test]
fn unmap_frees_whole_blocks_and_zeros_the_edges() {
    let lun = lun();
    lun.write(0, &[9; 16384], false).unwrap();
    lun.unmap(512, 16384 - 1024).unwrap();
    assert_eq!(lun.mapped_bytes(), 8192);
    assert_eq!(bytes(&lun, 0, 512), vec![9; 512]);
    assert_eq!(bytes(&lun, 512, 15360), vec![0; 15360]);
    assert_eq!(bytes(&lun, 15872, 512), vec![9; 512]);
    lun.unmap(512, 512).unwrap();
    assert_eq!(lun.mapped_bytes(), 8192);
}

#[test]
fn extents_alternate_and_are_cut_to_the_range() {
    let lun = lun();
    lun.write(4096, &[1; 8192], false).unwrap();
    let runs = lun.extents(512, 16384, 10).unwrap();
    let shown: Vec<_> = runs.iter().map(|e| (e.offset_bytes, e.length_bytes, e.mapped)).collect();
    assert_eq!(shown, [(512, 3584, false), (4096, 8192, true), (12288, 4608, false)]);
    assert_eq!(lun.extents(512, 16384, 2).unwrap(), &runs[..2]);
    assert!(lun.extents(0, 0, 10).unwrap().is_empty());
}

#[test]
fn write_zeroes_keeps_or_drops_blocks() {
    let lun = lun();
    lun.write_zeroes(0, 8192, false).unwrap();
    assert_eq!(lun.mapped_bytes(), 8192);
    lun.write(0, &[5; 8192], false).unwrap();
    lun.write_zeroes(512, 4096, false).unwrap();
    assert_eq!(bytes(&lun, 512, 4096), vec![0; 4096]);
    assert_eq!(bytes(&lun, 4608, 512), vec![5; 512]);
    lun.write_zeroes(0, 8192, true).unwrap();
    assert_eq!(lun.mapped_bytes(), 0);
}

#[test]
fn compare_and_write_is_all_or_nothing() {
    let lun = lun();
    lun.write(512, &[1; 512], false).unwrap();
    let mut expect = [1; 512];
    lun.compare_and_write(512, &expect, &[2; 512]).unwrap();
    expect = [2; 512];
    expect[17] = 3;
    let answer = lun.compare_and_write(512, &expect, &[4; 512]);
    assert!(matches!(answer, Err(BlockError::Miscompare { offset_bytes: 17 })));
    assert_eq!(bytes(&lun, 512, 512), vec![2; 512]);
    lun.or_write(512, &[5; 512]).unwrap();
    assert_eq!(bytes(&lun, 512, 512), vec![7; 512]);
}

#[test]
fn resizing_raises_the_generation_and_forgets_the_tail() {
    let lun = lun();
    lun.write(0, &[1; 65536], false).unwrap();
    let before = lun.generation();
    lun.resize(10 * KIB + 100);
    assert!(lun.generation() > before);
    assert_eq!(lun.geometry().size_bytes, 10 * KIB);
    lun.resize(64 * KIB);
    assert_eq!(bytes(&lun, 9 * KIB, 1024), vec![1; 1024]);
    assert_eq!(bytes(&lun, 10 * KIB, 54 * 1024), vec![0; 54 * 1024]);
    assert_eq!(lun.geometry().generation, lun.generation());
}

#[test]
fn faults_answer_as_a_pool_would() {
    let lun = lun();
    lun.set_bad(5000..5001);
    let answer = lun.read(0, &mut [0; 16384]);
    assert!(matches!(answer, Err(BlockError::Medium { offset_bytes: 4096 })));
    assert!(matches!(lun.write(4608, &[1; 512], false), Err(BlockError::Medium { .. })));
    lun.write(4096, &[1; 4096], false).unwrap();
    assert_eq!(bytes(&lun, 4096, 4096), vec![1; 4096]);
    lun.set_space(8192);
    lun.write(0, &[1; 8192], false).unwrap();
    assert!(matches!(lun.write(4096, &[2; 8192], false), Err(BlockError::NoSpace)));
    assert_eq!(bytes(&lun, 4096, 512), vec![1; 512]);
    lun.set_read_only(true);
    assert!(matches!(lun.unmap(0, 512), Err(BlockError::ReadOnly)));
    lun.set_failing(Some(BlockError::Gone));
    assert!(matches!(lun.flush(), Err(BlockError::Gone)));
}

#[test]
fn a_slow_device_makes_try_answer_none() {
    let lun = lun();
    lun.set_blocking(Some(Duration::from_millis(1)));
    assert!(lun.try_read(0, &mut [0; 512]).is_none());
    assert!(lun.try_write(0, &[1; 512]).is_none());
    lun.write(0, &[1; 512], true).unwrap();
    assert_eq!(lun.flush_count(), 1);
}
