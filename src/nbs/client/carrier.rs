//! The client's thread: one socket at a time, and those who wait for answers.

use super::super::auth::hex;
use super::super::xml::Element;
use super::core::{Answer, ClientError, Core, ObjectInfo, Options, Request};
use bytes::BytesMut;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::mpsc as std_mpsc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout, Instant};

const CONNECT_TIME: Duration = Duration::from_secs(3);
/// How long a client that closes waits for the server to hear it.
const FAREWELL_TIME: Duration = Duration::from_secs(2);
const RECEIVE_BYTES: usize = 64 << 10;
const MAX_PIECES: usize = 32;

/// Whoever waits for an answer.
pub type Waiter = std_mpsc::Receiver<Answer>;

enum Command {
    Ask(Request, std_mpsc::SyncSender<Answer>),
    Open(std_mpsc::SyncSender<Answer>),
    Close,
}

/// A client of one object. Its drop leaves the server in order.
#[derive(Debug)]
pub struct NbsClient {
    commands: mpsc::UnboundedSender<Command>,
    info: Arc<Mutex<Option<ObjectInfo>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl NbsClient {
    /// A random name for [`Options::instance`].
    pub fn fresh_instance() -> io::Result<String> {
        let mut bytes = [0; 8];
        let filled = getrandom::fill(&mut bytes);
        filled.map_err(|_| io::Error::other("the system has no random numbers"))?;
        Ok(hex(&bytes))
    }

    /// Starts its thread, which connects and goes on connecting.
    pub fn start(options: Options) -> io::Result<NbsClient> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (commands, asked) = mpsc::unbounded_channel();
        let info = Arc::default();
        let carrier = Carrier {
            core: Core::new(options),
            stream: None,
            received: BytesMut::new(),
            waiting: HashMap::new(),
            info: Arc::clone(&info),
            origin: Instant::now(),
            closing: None,
        };
        let run = move || runtime.block_on(carrier.run(asked));
        let thread = std::thread::Builder::new().name("nbs-client".into()).spawn(run)?;
        Ok(NbsClient { commands, info, thread: Some(thread) })
    }

    /// Waits until the object was opened once.
    pub fn open(&self) -> Result<ObjectInfo, ClientError> {
        let (answer, waiter) = std_mpsc::sync_channel(1);
        let _ = self.commands.send(Command::Open(answer));
        wait(&waiter)?;
        self.info().ok_or(ClientError::Closed)
    }

    /// What INFO told last.
    pub fn info(&self) -> Option<ObjectInfo> {
        self.info.lock().clone()
    }

    /// Asks for something.
    pub fn begin(&self, request: Request) -> Waiter {
        let (answer, waiter) = std_mpsc::sync_channel(1);
        let _ = self.commands.send(Command::Ask(request, answer));
        waiter
    }

    /// Asks, and waits for the answer.
    pub fn call(&self, request: Request) -> Answer {
        wait(&self.begin(request))
    }

    /// A message without content.
    pub fn message(&self, name: &str) -> Answer {
        self.call(Request::Message(Element::new("nbsMsg").with("name", name)))
    }
}

/// The answer, when it is there.
pub fn wait(waiter: &Waiter) -> Answer {
    waiter.recv().unwrap_or(Err(ClientError::Closed))
}

impl Drop for NbsClient {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Close);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Carrier {
    core: Core,
    stream: Option<TcpStream>,
    received: BytesMut,
    waiting: HashMap<u64, std_mpsc::SyncSender<Answer>>,
    info: Arc<Mutex<Option<ObjectInfo>>>,
    origin: Instant,
    /// It ends when everything is answered, or then.
    closing: Option<Instant>,
}

/// What woke the client.
enum Woken {
    Asked(Option<Command>),
    Received(io::Result<usize>),
    Other,
}

impl Carrier {
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    async fn run(mut self, mut asked: mpsc::UnboundedReceiver<Command>) {
        loop {
            self.keep_connected().await;
            self.send();
            self.tell();
            let over = |until: Instant| self.core.is_idle() || Instant::now() >= until;
            if self.closing.is_some_and(over) {
                return;
            }
            match self.woken(&mut asked).await {
                Woken::Asked(Some(command)) => {
                    self.obey(command);
                    // Whatever else was asked for goes out in the same write.
                    while let Ok(command) = asked.try_recv() {
                        self.obey(command);
                    }
                }
                Woken::Asked(None) => self.obey(Command::Close),
                Woken::Received(Ok(0)) => self.lost("the server closed the connection"),
                Woken::Received(Ok(_)) => self.receive(),
                Woken::Received(Err(error)) => self.lost(&error.to_string()),
                Woken::Other => {}
            }
        }
    }

    async fn keep_connected(&mut self) {
        let now = self.now();
        if !self.core.tick(now) {
            self.lost("the server does not answer");
        }
        let now = self.now();
        let Some(address) = self.core.connect_to(now) else { return };
        match timeout(CONNECT_TIME, connect(address)).await {
            Ok(Ok(stream)) => {
                self.stream = Some(stream);
                self.received.clear();
                self.core.connected(self.now());
            }
            Ok(Err(error)) => self.lost(&format!("{address}: {error}")),
            Err(_late) => self.lost(&format!("{address} does not answer")),
        }
    }

    fn lost(&mut self, why: &str) {
        self.stream = None;
        let now = self.now();
        self.core.lost(why, now);
    }

    fn receive(&mut self) {
        let now = self.now();
        if let Err(why) = self.core.receive(&mut self.received, now) {
            self.lost(&why);
        }
    }

    fn obey(&mut self, command: Command) {
        let now = self.now();
        match command {
            Command::Ask(request, answer) => {
                let ticket = self.core.submit(request, now);
                self.waiting.insert(ticket, answer);
            }
            Command::Open(answer) => {
                let ticket = self.core.submit_open(now);
                self.waiting.insert(ticket, answer);
            }
            Command::Close if self.closing.is_none() => {
                self.closing = Some(Instant::now() + FAREWELL_TIME);
                if self.core.info().is_some() {
                    let logout = Element::new("nbsMsg").with("name", "logout");
                    self.core.submit(Request::Message(logout), now);
                }
            }
            Command::Close => {}
        }
    }

    /// Answers those who wait.
    fn tell(&mut self) {
        for (ticket, answer) in self.core.take_done() {
            let mut info = self.info.lock();
            if info.as_ref() != self.core.info() {
                *info = self.core.info().cloned();
            }
            drop(info);
            if let Some(waiter) = self.waiting.remove(&ticket) {
                let _ = waiter.try_send(answer);
            }
        }
    }

    fn send(&mut self) {
        while let Some(stream) = self.stream.as_ref().filter(|_| !self.core.unsent().is_empty()) {
            let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
            let mut count = 0;
            for (piece, bytes) in pieces.iter_mut().zip(self.core.unsent()) {
                *piece = IoSlice::new(bytes);
                count += 1;
            }
            match stream.try_write_vectored(pieces.get(..count).unwrap_or_default()) {
                Ok(sent) if sent > 0 => self.core.was_sent(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(_) => return self.lost("the server takes nothing"),
                Err(error) => return self.lost(&error.to_string()),
            }
        }
    }

    async fn woken(&mut self, asked: &mut mpsc::UnboundedReceiver<Command>) -> Woken {
        let until = self.origin + self.core.wake_at(self.now());
        let unsent = !self.core.unsent().is_empty();
        self.received.reserve(RECEIVE_BYTES / 2);
        let closing = self.closing.is_some();
        let Some(stream) = &mut self.stream else {
            return tokio::select! {
                command = asked.recv(), if !closing => Woken::Asked(command),
                () = sleep_until(until) => Woken::Other,
            };
        };
        let (mut reader, writer) = stream.split();
        tokio::select! {
            command = asked.recv(), if !closing => Woken::Asked(command),
            count = reader.read_buf(&mut self.received) => Woken::Received(count),
            _ = writer.ready(Interest::WRITABLE), if unsent => Woken::Other,
            () = sleep_until(until) => Woken::Other,
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
