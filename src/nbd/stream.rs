//! One byte stream, over TCP or a Unix socket, in the clear or by TLS.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::directory::{Peer, PeerAddress};
use super::errors::Error;
use super::tls::{Session, Tls, RECORD_BYTES};

/// A silent TCP peer is asked for a sign of life after this long, …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// … again after each of these, …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// … and is gone after so many without an answer: a lost host frees its export in two minutes.
const KEEPALIVE_PROBES: u32 = 6;

/// A connected socket.
#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    tls: Option<Box<Session>>,
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
        Ok(Stream { socket: Socket::Tcp(stream), tls: None })
    }

    /// Takes over a Unix connection, on the runtime it is called on.
    pub fn unix(stream: std::os::unix::net::UnixStream) -> io::Result<Stream> {
        Ok(Stream { socket: Socket::Unix(UnixStream::from_std(stream)?), tls: None })
    }

    /// Who is at the other end.
    pub fn peer(&self) -> io::Result<Peer> {
        let address = match &self.socket {
            Socket::Tcp(stream) => PeerAddress::Tcp(stream.peer_addr()?),
            Socket::Unix(stream) => {
                let credentials = stream.peer_cred()?;
                PeerAddress::Unix { uid: credentials.uid(), pid: credentials.pid() }
            }
        };
        Ok(Peer { address, certificate_name: None })
    }

    /// Goes over to TLS, with the client's certificate checked; the name in it.
    pub async fn start_tls(&mut self, tls: &Tls) -> Result<Option<String>, Error> {
        let mut session = tls.session()?;
        let agreed = self.agree(&mut session).await;
        // What went wrong is told to the client too, as far as it listens.
        let socket = &self.socket;
        let _ = session.flush(&mut |bytes| socket.send(&[IoSlice::new(bytes)]));
        agreed.map_err(|error| Error::Tls(error.to_string()))?;
        let name = session.certificate_name();
        self.tls = Some(Box::new(session));
        Ok(name)
    }

    async fn agree(&mut self, session: &mut Session) -> io::Result<()> {
        loop {
            let socket = &self.socket;
            session.flush(&mut |bytes| socket.send(&[IoSlice::new(bytes)]))?;
            if session.has_unsent() {
                poll_fn(|context| self.socket.poll_sendable(context)).await?;
            } else if session.is_handshaking() {
                if self.socket.read_buf(session.raw()).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                session.take()?;
            } else {
                return Ok(());
            }
        }
    }

    /// Receives, or arranges to be woken. A receive that came short costs no second system call:
    /// the runtime then knows that nothing is left.
    pub fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        space: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Some(tls) = &mut self.tls else {
            return self.socket.poll_receive(context, space);
        };
        loop {
            if let Some(count) = tls.read(space)? {
                return Poll::Ready(Ok(count));
            }
            let mut record = [0; RECORD_BYTES];
            match self.socket.poll_receive(context, &mut record) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(0)) => tls.end()?,
                Poll::Ready(Ok(count)) => {
                    tls.raw().extend_from_slice(record.get(..count).unwrap_or_default());
                }
            }
        }
    }

    /// Receives what is there now; `None` where nothing is. Asks the host, whatever the runtime
    /// knows.
    pub fn receive_now(&mut self, space: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(tls) = &mut self.tls else {
            return self.socket.receive_now(space);
        };
        loop {
            if let Some(count) = tls.read(space)? {
                return Ok(Some(count));
            }
            let mut record = [0; RECORD_BYTES];
            match self.socket.receive_now(&mut record)? {
                None => return Ok(None),
                Some(0) => tls.end()?,
                Some(count) => {
                    tls.raw().extend_from_slice(record.get(..count).unwrap_or_default());
                }
            }
        }
    }

    /// Ready when more can be sent.
    pub fn poll_sendable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_sendable(context)
    }

    /// Whether something that was taken by [`Stream::send`] has not left yet: to be sent on by
    /// [`Stream::flush`].
    pub fn has_unsent(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.has_unsent())
    }

    /// Sends on, as far as that goes now.
    pub fn flush(&mut self) -> io::Result<()> {
        let socket = &self.socket;
        match &mut self.tls {
            Some(tls) => tls.flush(&mut |bytes| socket.send(&[IoSlice::new(bytes)])),
            None => Ok(()),
        }
    }

    /// Tells the other side that nothing more comes, as far as that goes now.
    pub fn close(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.close();
            let _ = self.flush();
        }
    }

    /// Sends what fits now; 0 where nothing does.
    pub fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.flush()?;
        match &mut self.tls {
            None => self.socket.send(pieces),
            Some(tls) if tls.has_unsent() => Ok(0),
            Some(tls) => {
                let count = tls.write(pieces)?;
                self.flush()?;
                Ok(count)
            }
        }
    }

    /// Receives some bytes behind `held`; an error at the end of the stream.
    pub async fn receive_more(&mut self, held: &mut Vec<u8>) -> io::Result<()> {
        let mut space = [0; 4096];
        let count = poll_fn(|context| self.poll_receive(context, &mut space)).await?;
        held.extend_from_slice(space.get(..count).unwrap_or_default());
        match count {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Sends all of it.
    pub async fn send_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() || self.has_unsent() {
            let sent = self.send(&[IoSlice::new(bytes)])?;
            bytes = bytes.get(sent..).unwrap_or_default();
            if sent == 0 && (!bytes.is_empty() || self.has_unsent()) {
                poll_fn(|context| self.poll_sendable(context)).await?;
            }
        }
        Ok(())
    }
}

impl Socket {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        space: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(space);
        let polled = match self {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(context, &mut buffer),
            Socket::Unix(stream) => Pin::new(stream).poll_read(context, &mut buffer),
        };
        polled.map_ok(|()| buffer.filled().len())
    }

    fn receive_now(&self, space: &mut [u8]) -> io::Result<Option<usize>> {
        let received = match self {
            Socket::Tcp(stream) => rustix::io::read(stream, space),
            Socket::Unix(stream) => rustix::io::read(stream, space),
        };
        match received {
            Ok(count) => Ok(Some(count)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn poll_sendable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Tcp(stream) => stream.poll_write_ready(context),
            Socket::Unix(stream) => stream.poll_write_ready(context),
        }
    }

    /// Sends what fits now; 0 where nothing does.
    fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let sent = match (self, pieces) {
            (Socket::Tcp(stream), [only]) => stream.try_write(only),
            (Socket::Unix(stream), [only]) => stream.try_write(only),
            (Socket::Tcp(stream), _) => stream.try_write_vectored(pieces),
            (Socket::Unix(stream), _) => stream.try_write_vectored(pieces),
        };
        match sent {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            sent => sent,
        }
    }

    async fn read_buf(&mut self, held: &mut BytesMut) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read_buf(held).await,
            Socket::Unix(stream) => stream.read_buf(held).await,
        }
    }
}
