//! One byte stream, over TCP or a Unix socket.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::directory::{Peer, PeerAddress};

/// A silent TCP peer is asked for a sign of life after this long, …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// … again after each of these, …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// … and is gone after so many without an answer: a lost host frees its export in two minutes.
const KEEPALIVE_PROBES: u32 = 6;

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
}

impl Stream {
    /// Takes over a TCP connection, on the runtime it is called on: no delay for small replies,
    /// keepalive for lost hosts.
    pub fn tcp(stream: std::net::TcpStream) -> io::Result<Stream> {
        let stream = TcpStream::from_std(stream)?;
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_PROBES)?;
        Ok(Stream::Tcp(stream))
    }

    /// Takes over a Unix connection, on the runtime it is called on.
    pub fn unix(stream: std::os::unix::net::UnixStream) -> io::Result<Stream> {
        Ok(Stream::Unix(UnixStream::from_std(stream)?))
    }

    /// Who is at the other end.
    pub fn peer(&self) -> io::Result<Peer> {
        let address = match self {
            Stream::Tcp(stream) => PeerAddress::Tcp(stream.peer_addr()?),
            Stream::Unix(stream) => {
                let credentials = stream.peer_cred()?;
                PeerAddress::Unix { uid: credentials.uid(), pid: credentials.pid() }
            }
        };
        Ok(Peer { address, certificate_name: None })
    }

    /// Receives, or arranges to be woken. A receive that came short costs no second system call:
    /// the runtime then knows that nothing is left.
    pub fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        space: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(space);
        let polled = match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(context, &mut buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(context, &mut buffer),
        };
        polled.map_ok(|()| buffer.filled().len())
    }

    /// Receives what is there now; `None` where nothing is. Asks the host, whatever the runtime
    /// knows.
    pub fn receive_now(&self, space: &mut [u8]) -> io::Result<Option<usize>> {
        let received = match self {
            Stream::Tcp(stream) => rustix::io::read(stream, space),
            Stream::Unix(stream) => rustix::io::read(stream, space),
        };
        match received {
            Ok(count) => Ok(Some(count)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Ready when more can be sent.
    pub fn poll_sendable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => stream.poll_write_ready(context),
            Stream::Unix(stream) => stream.poll_write_ready(context),
        }
    }

    /// Sends what fits now; 0 where nothing does.
    pub fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let sent = match (self, pieces) {
            (Stream::Tcp(stream), [only]) => stream.try_write(only),
            (Stream::Unix(stream), [only]) => stream.try_write(only),
            (Stream::Tcp(stream), _) => stream.try_write_vectored(pieces),
            (Stream::Unix(stream), _) => stream.try_write_vectored(pieces),
        };
        match sent {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            sent => sent,
        }
    }

    /// Receives some bytes behind `held`; an error at the end of the stream.
    pub async fn receive_more(&mut self, held: &mut Vec<u8>) -> io::Result<()> {
        let count = match self {
            Stream::Tcp(stream) => stream.read_buf(held).await?,
            Stream::Unix(stream) => stream.read_buf(held).await?,
        };
        match count {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Sends all of it.
    pub async fn send_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.write_all(bytes).await,
            Stream::Unix(stream) => stream.write_all(bytes).await,
        }
    }
}
