//! JSON lines on a Unix stream socket, every length checked before memory is taken. The request
//! line may carry one file descriptor: the image of an import or export. It may hold a secret: what
//! it went through is wiped.

use super::error::{Error, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::Serialize;
use std::io::{self, BufRead, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use zeroize::Zeroizing;

/// Longest request line: a command with all its attributes is far below.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Longest reply line: some hundred bytes for each of very many LUNs.
pub const MAX_REPLY_BYTES: usize = 64 << 20;
/// Bytes of a request taken at once.
const CHUNK_BYTES: usize = 4096;

/// Reads one JSON line of at most `limit` bytes. `None` at the end of the stream.
pub fn read_line<T: DeserializeOwned>(from: &mut impl BufRead, limit: usize) -> Result<Option<T>> {
    let mut line = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let count = from.take(most).read_until(b'\n', &mut line).map_err(|e| lost(&e))?;
    if count == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        let why = if count > limit { "a line is too long" } else { "a line is cut short" };
        return Err(Error::Connection(why.into()));
    }
    parse(&line).map(Some)
}

/// Writes one JSON line and flushes.
pub fn write_line(to: &mut impl Write, value: &impl Serialize) -> Result<()> {
    let line = encode(value)?;
    to.write_all(&line).and_then(|()| to.flush()).map_err(|e| lost(&e))
}

/// Sends a request; `file` goes along with its first byte.
pub fn send_request(
    mut to: &UnixStream,
    value: &impl Serialize,
    file: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let line = Zeroizing::new(encode(value)?);
    if line.len() > MAX_REQUEST_BYTES {
        return Err(Error::Connection("the request is too long".into()));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(Error::Connection("the file cannot be passed on".into()));
    }
    let sent =
        rustix::net::sendmsg(to.as_fd(), &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL);
    let sent = sent.map_err(|e| lost(&e.into()))?;
    to.write_all(line.get(sent..).unwrap_or_default()).map_err(|e| lost(&e))
}

/// Receives a request and the file that came with it. `None`: the client went away without a word.
pub fn receive_request<T: DeserializeOwned>(
    from: &UnixStream,
) -> Result<Option<(T, Option<OwnedFd>)>> {
    let (mut line, mut file) = (Zeroizing::new(Vec::new()), None);
    loop {
        let count = receive_chunk(from, &mut line, &mut file).map_err(|e| lost(&e))?;
        if count == 0 && line.is_empty() {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            return parse(&line).map(|value| Some((value, file)));
        }
        if count == 0 || line.len() > MAX_REQUEST_BYTES {
            return Err(Error::Connection("the request is cut short or too long".into()));
        }
    }
}

/// Appends what one receive brings; 0 at the end of the stream. Files beyond the first are closed.
fn receive_chunk(
    from: &UnixStream,
    line: &mut Vec<u8>,
    file: &mut Option<OwnedFd>,
) -> io::Result<usize> {
    let mut chunk = Zeroizing::new([0u8; CHUNK_BYTES]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut *chunk)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let count = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(from.as_fd(), &mut buffers, &mut control, flags)
    })?
    .bytes;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            for passed in files {
                file.get_or_insert(passed);
            }
        }
    }
    line.extend_from_slice(chunk.get(..count).unwrap_or_default());
    Ok(count)
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).map_err(|e| Error::Connection(e.to_string()))?;
    line.push(b'\n');
    Ok(line)
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T> {
    let not_understood = |e: serde_json::Error| {
        Error::Connection(format!("not understood, perhaps another version of lunfs: {e}"))
    };
    serde_json::from_slice(line).map_err(not_understood)
}

fn lost(error: &io::Error) -> Error {
    let why = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the other side went away".to_string(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "the other side is silent".into(),
        _ => error.to_string(),
    };
    Error::Connection(why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[test]
    fn lengths_are_checked_before_memory_is_taken() {
        let long = vec![b' '; 100];
        assert!(read_line::<u32>(&mut long.as_slice(), 10).is_err());
        assert!(read_line::<u32>(&mut &b"17"[..], 10).is_err());
        assert_eq!(read_line::<u32>(&mut &b"17\n"[..], 10).unwrap(), Some(17));
        assert_eq!(read_line::<u32>(&mut &b""[..], 10).unwrap(), None);
    }

    #[test]
    fn a_request_brings_its_file() {
        let (client, server) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"image", 0).unwrap();
        let text = "x".repeat(3 * CHUNK_BYTES);
        send_request(&client, &text, Some(file.as_fd())).unwrap();
        let (got, passed) = receive_request::<String>(&server).unwrap().unwrap();
        assert_eq!(got, text);
        let mut bytes = [0; 5];
        File::from(passed.unwrap()).read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"image");
    }

    #[test]
    fn a_request_that_is_too_long_is_refused_by_both_sides() {
        let (client, server) = UnixStream::pair().unwrap();
        let text = "x".repeat(MAX_REQUEST_BYTES);
        assert!(send_request(&client, &text, None).is_err());
        let flood = std::thread::spawn(move || (&client).write_all(&vec![b'x'; 2 << 20]));
        assert!(receive_request::<String>(&server).is_err());
        drop(server);
        assert!(flood.join().unwrap().is_err());
    }
}
