//! A device's label, read beside the server that may have the pool open: it takes no lock.

use super::error::{Message, Result};
use fs_layout::{Label, LayoutError, RawBlock, BLOCK_BYTES, LABEL_PLACES};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

const MAKE_ONE: &str = "give a pool's path, or make one: `lunfs pool create PATH --size SIZE`";

/// Reads the label of a file or block device. The file must be as long as the label says.
pub fn read_label(path: &Path) -> Result<Label> {
    let file = open(path)?;
    let label = first_whole_copy(&file, path)?;
    check_length(&file, path, &label)?;
    Ok(label)
}

fn open(path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path).map_err(|e| unreadable(path, &e))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let what = format!("{} is not a pool", path.display());
        let why = "it is neither a regular file nor a block device";
        return Err(Message::new(what).why(why).todo(MAKE_ONE).into());
    }
    File::open(path).map_err(|e| unreadable(path, &e).into())
}

fn unreadable(path: &Path, error: &io::Error) -> Message {
    match error.kind() {
        io::ErrorKind::NotFound => Message::new(format!("there is no pool at {}", path.display()))
            .why("no such file or device")
            .todo(MAKE_ONE),
        io::ErrorKind::PermissionDenied => {
            Message::new(format!("{} cannot be opened", path.display()))
                .why("permission denied")
                .todo("run the command as the owner of the pool")
        }
        _ => Message::new(format!("{} cannot be opened", path.display())).why(error),
    }
}

fn first_whole_copy(file: &File, path: &Path) -> Result<Label> {
    let (mut worst, mut is_blank) = (None, true);
    for place in LABEL_PLACES {
        let mut block: RawBlock = [0; BLOCK_BYTES];
        match file.read_exact_at(&mut block, place * BLOCK_BYTES as u64) {
            Ok(()) => match Label::decode(&block) {
                Ok(label) => return Ok(label),
                Err(e) => {
                    is_blank &= block.iter().all(|byte| *byte == 0);
                    worst = Some(worse(worst, e));
                }
            },
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(e) => return Err(unreadable(path, &e).into()),
        }
    }
    Err(no_label(path, worst, is_blank).into())
}

/// A damaged label says more than a missing one.
fn worse(so_far: Option<LayoutError>, new: LayoutError) -> LayoutError {
    match so_far {
        Some(old) if matches!(new, LayoutError::Magic(_)) => old,
        _ => new,
    }
}

fn no_label(path: &Path, error: Option<LayoutError>, is_blank: bool) -> Message {
    let name = path.display();
    match error {
        None => Message::new(format!("{name} is not a pool"))
            .why("the file is shorter than a pool's label")
            .todo(MAKE_ONE),
        Some(LayoutError::Magic(_)) if is_blank => Message::new(format!("{name} is not a pool"))
            .why("there is no lunfs label: it is blank, or was taken out of a pool")
            .todo(MAKE_ONE),
        Some(LayoutError::Magic(_)) => Message::new(format!("{name} is not a pool"))
            .why("it does not begin with a lunfs label: it holds something else")
            .todo(MAKE_ONE),
        Some(e @ LayoutError::Version { .. }) => Message::new(format!("{name} cannot be read"))
            .why(e)
            .todo("use the version of lunfs that made it"),
        Some(e) => Message::new(format!("the label of {name} is damaged"))
            .why(e)
            .todo("restore the file from a backup; `lunfs pool check PATH` says more"),
    }
}

fn check_length(mut file: &File, path: &Path, label: &Label) -> Result<()> {
    let length_bytes = file.seek(SeekFrom::End(0)).map_err(|e| unreadable(path, &e))?;
    if length_bytes / (BLOCK_BYTES as u64) < label.device_blocks {
        let due_bytes = label.device_blocks.saturating_mul(BLOCK_BYTES as u64);
        let why = format!("it has {length_bytes} bytes, its label says {due_bytes}");
        let what = format!("{} is truncated", path.display());
        return Err(Message::new(what).why(why).todo("restore the file from a backup").into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_layout::DeviceEntry;

    fn said(path: &Path) -> String {
        read_label(path).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_pool_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        assert!(said(&path).contains("no such file"));
        assert!(said(dir.path()).contains("neither"));
        std::fs::write(&path, b"short").unwrap();
        assert!(said(&path).contains("shorter"));
        std::fs::write(&path, vec![1u8; 64 << 10]).unwrap();
        assert!(said(&path).contains("something else"));
    }

    #[test]
    fn either_copy_counts_and_the_length_must_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let label = Label {
            pool_id: [5; 16],
            index: 0,
            device_blocks: 16,
            created: 1,
            devices: vec![DeviceEntry { id: [6; 16], path: "p".into(), ..Default::default() }],
            ..Label::default()
        };
        let mut block = [0u8; BLOCK_BYTES];
        label.encode(&mut block).unwrap();
        let file = File::create(&path).unwrap();
        file.set_len(16 * BLOCK_BYTES as u64).unwrap();
        file.write_all_at(&block, LABEL_PLACES[1] * BLOCK_BYTES as u64).unwrap();
        assert_eq!(read_label(&path).unwrap(), label);
        file.set_len(15 * BLOCK_BYTES as u64).unwrap();
        assert!(said(&path).contains("truncated"));
        file.write_all_at(&[9], LABEL_PLACES[1] * BLOCK_BYTES as u64 + 100).unwrap();
        assert!(said(&path).contains("damaged"));
    }
}
