//! Import and export.

use crate::pool::*;
use lunfs::lun::transfer::{export, import_into, import_new, Source, Target};
use lunfs::lun::{AttachRequest, BlockError, BlockIo, CreateLun, Error, Lun};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const QUIET: &(dyn Fn(u64, u64) -> bool + Sync) = &|_, _| true;

/// A sparse image with data here and there; its bytes.
fn image(path: &Path, size: u64) -> Vec<u8> {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut model = vec![0; size as usize];
    for (i, (offset, length)) in
        [(0, 4096), (3 * MIB + 512, 300_000), (10 * MIB, 5 << 20), (size - 700, 700)]
            .iter()
            .enumerate()
    {
        let data = noise(i as u64, *length);
        file.write_all_at(&data, *offset).unwrap();
        model[*offset as usize..][..*length].copy_from_slice(&data);
    }
    model
}

fn contents(lun: &Arc<Lun>) -> Vec<u8> {
    let disk = lun.attach(AttachRequest { writable: false, ..request("reader") }).unwrap();
    let mut out = vec![1; disk.geometry().size_bytes as usize];
    disk.read(0, &mut out).unwrap();
    out
}

fn stream(bytes: Vec<u8>) -> Source {
    Source::Stream(Box::new(std::io::Cursor::new(bytes)))
}

#[test]
fn an_image_goes_in_and_out_sparse() {
    let pool = Pool::new();
    let (path, size) = (pool.scratch("in.img"), 40 * MIB + 100);
    let mut model = image(&path, size);
    let source = Source::File(File::open(&path).unwrap());
    let last = AtomicU64::new(0);
    let progress = |done: u64, total: u64| {
        assert!(total == size && done <= total);
        last.store(done, Ordering::Relaxed);
        true
    };
    let (lun, moved) =
        import_new(&pool.catalog, "vm1", &CreateLun::default(), source, &progress).unwrap();
    assert_eq!((moved.size_bytes, last.into_inner()), (size, size));
    assert!(moved.data_bytes < 6 * MIB, "{moved:?}");
    model.resize(40 * MIB as usize + 512, 0);
    assert!(contents(&lun) == model);
    assert!(lun.attributes().unwrap().used_bytes < 6 * MIB);

    let out = pool.scratch("out.img");
    let target = Target::File(File::create(&out).unwrap());
    let moved = export(&lun, target, false, QUIET).unwrap().moved;
    assert_eq!(moved.size_bytes, model.len() as u64);
    assert!(std::fs::read(&out).unwrap() == model);
    assert!(std::fs::metadata(&out).unwrap().blocks() * 512 < 7 * MIB, "sparse");
    assert!(logged(&lun, "import", "") && logged(&lun, "export", ""));
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn pipes_work_both_ways() {
    let pool = Pool::new();
    let model = image(&pool.scratch("in.img"), 17 * MIB);
    let request = CreateLun { size_bytes: 20 * MIB, ..CreateLun::default() };
    let (lun, moved) =
        import_new(&pool.catalog, "vm1", &request, stream(model.clone()), QUIET).unwrap();
    assert_eq!(moved.size_bytes, 17 * MIB);
    let sink = Sink::default();
    export(&lun, Target::Stream(Box::new(sink.clone())), false, QUIET).unwrap();
    let out = sink.0.lock().unwrap();
    assert!(out.len() == 20 * MIB as usize && out[..model.len()] == model);
    assert!(out[model.len()..].iter().all(|byte| *byte == 0));
}

#[test]
fn what_cannot_be_imported_leaves_nothing() {
    let pool = Pool::sized(128 * MIB);
    let none = CreateLun::default();
    let catalog = &pool.catalog;
    let refused = import_new(catalog, "vm1", &none, stream(vec![1; 10]), QUIET);
    assert!(matches!(refused, Err(Error::BadSize { .. })), "a pipe needs a size");
    let refused = import_new(catalog, "vm1", &sized(MIB), stream(vec![1; 2 << 20]), QUIET);
    assert!(matches!(refused, Err(Error::BadSize { .. })), "longer than said");
    image(&pool.scratch("in.img"), 20 * MIB);
    let file = || Source::File(File::open(pool.scratch("in.img")).unwrap());
    let refused = import_new(catalog, "vm1", &sized(MIB), file(), QUIET);
    assert!(matches!(refused, Err(Error::BadSize { .. })), "larger than said");
    let refused = import_new(catalog, "vm1", &none, file(), &|_, _| false);
    assert!(refused.is_ok() || matches!(refused, Err(Error::Transfer { .. })));
    if refused.is_ok() {
        catalog.delete("vm1", <_>::default()).unwrap();
    }
    let directory = Source::File(File::open("/").unwrap());
    assert!(import_new(catalog, "vm1", &none, directory, QUIET).is_err());
    let too_much = Source::Stream(Box::new(std::io::Read::take(Noise(1), 300 * MIB)));
    let full = import_new(catalog, "vm1", &sized(300 * MIB), too_much, QUIET).unwrap_err();
    assert!(full.to_string().contains("no space"), "{full}");
    assert!(catalog.list().is_empty());
    pool.lun("vm1", MIB);
}

/// Endless bytes that cannot be left out.
struct Noise(u64);

impl std::io::Read for Noise {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.0 += 1;
        out.copy_from_slice(&noise(self.0, out.len()));
        Ok(out.len())
    }
}

#[test]
fn import_into_replaces_all_and_asks_first() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", 32 * MIB);
    let disk = login(&lun, "iqn.a");
    disk.write(0, &noise(9, 1 << 20), false).unwrap();
    disk.write(31 * MIB, &noise(9, 1 << 20), false).unwrap();
    let mut model = image(&pool.scratch("in.img"), 17 * MIB);
    let file = || Source::File(File::open(pool.scratch("in.img")).unwrap());
    let refused = import_into(&lun, file(), false, QUIET);
    assert!(matches!(refused, Err(Error::Busy { .. })));
    let media = disk.media_changes();
    let during = |_, _| {
        let refused = disk.write(0, &[1; 512], false);
        assert!(refused.is_ok() || matches!(refused, Err(BlockError::HeldByFile)));
        true
    };
    import_into(&lun, file(), true, QUIET).unwrap();
    assert!(disk.media_changes() > media, "a unit attention");
    model.resize(32 * MIB as usize, 0);
    assert!(contents(&lun) == model);
    disk.write(0, &model[..512], false).unwrap();
    import_into(&lun, file(), true, &during).unwrap();
    disk.logout();
    import_into(&lun, stream(vec![7; 1000]), false, QUIET).unwrap();
    assert!(
        contents(&lun)[..1000] == [7; 1000] && contents(&lun)[1000..] == vec![0; (32 << 20) - 1000]
    );
}
