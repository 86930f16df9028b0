//! What is mounted where: `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// A mount as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Device numbers `major:minor`: they name the filesystem for as long as it is mounted.
    pub device: String,
    /// Type, such as `ext4` or `fuse.lunfs`.
    pub kind: String,
    /// What is mounted.
    pub source: OsString,
}

impl Mounted {
    /// Whether it is served through FUSE.
    pub fn is_fuse(&self) -> bool {
        self.kind == "fuse" || self.kind == "fuseblk" || self.kind.starts_with("fuse.")
    }
}

/// What is mounted exactly at `dir` (an absolute path without links): the topmost, if several are.
pub fn mounted_at(dir: &Path) -> io::Result<Option<Mounted>> {
    Ok(topmost(&std::fs::read("/proc/self/mountinfo")?, dir.as_os_str()))
}

fn topmost(table: &[u8], dir: &OsStr) -> Option<Mounted> {
    let lines = table.split(|&b| b == b'\n').rev();
    lines.filter_map(parse).find(|(at, _)| at == dir).map(|(_, mounted)| mounted)
}

/// `36 35 98:0 /root /mount/point options optional-fields... - type source super-options`
fn parse(line: &[u8]) -> Option<(OsString, Mounted)> {
    let mut fields = line.split(|&b| b == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let at = unescape(fields.nth(1)?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8(rest.next()?.to_vec()).ok()?;
    let source = unescape(rest.next()?);
    Some((at, Mounted { device, kind, source }))
}

/// Space, tab, newline and backslash stand as `\` and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(octal);
        out.push(octal.unwrap_or(first));
        rest = match octal {
            Some(_) => after.get(3..).unwrap_or_default(),
            None => after,
        };
    }
    OsString::from_vec(out)
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(OsStr::from_bytes(digits).to_str()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
40 22 0:45 / /mnt/a\\040b rw,nosuid - fuse.sshfs host:/x rw,user_id=0
41 40 0:46 / /mnt/a\\040b rw shared:7 master:2 - fuse.lunfs lunfs rw,user_id=0,allow_other
";

    #[test]
    fn the_topmost_mount_counts() {
        let found = topmost(TABLE, OsStr::new("/mnt/a b")).unwrap();
        assert_eq!((found.device.as_str(), found.kind.as_str()), ("0:46", "fuse.lunfs"));
        assert_eq!(found.source, "lunfs");
        assert!(found.is_fuse());
        assert!(!topmost(TABLE, OsStr::new("/")).unwrap().is_fuse());
        assert_eq!(topmost(TABLE, OsStr::new("/mnt")), None);
    }

    #[test]
    fn odd_lines_are_passed_over() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 2 3"), None);
        assert_eq!(parse(b"1 2 0:1 / /x rw"), None);
        assert_eq!(unescape(b"a\\"), "a\\");
        assert_eq!(unescape(b"a\\09"), "a\\09");
        assert_eq!(unescape(b"\\134"), "\\");
    }
}
