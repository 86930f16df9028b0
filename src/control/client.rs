//! The command's side: to the server of a pool, or to an engine in this very process.

use super::doors::Doors;
use super::engine::{converse, Engine};
use super::error::{Error, Message, Result};
use super::label::read_label;
use super::pool::{LockedPool, OpenPool, MOMENT_WAIT};
use super::protocol::{Command, Reply, Request, PROTOCOL_VERSION};
use super::run_dir::{id_text, RunDirs};
use super::silence;
use super::wire;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{pidfd_open, PidfdFlags};
use serde_json::Value;
use std::io::BufReader;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Builder;
use tokio::signal::unix::{signal, SignalKind};

/// Cache of a command that opens a pool for a moment: imports are sequential and need no more.
const MOMENT_CACHE_BYTES: u64 = 128 << 20;
/// How long a server that said it is done may take to end.
const EXIT_WAIT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// How long a server that is alive may take to answer what only looks.
const QUICK_WAIT: Duration = Duration::from_secs(60);

/// Whoever carries a command out.
pub enum Client {
    /// The pool's server.
    Server(UnixStream),
    /// This process, which has the pool open until [`Client::call`] returns.
    Here(Box<OpenPool>),
}

/// Which pool a command is about.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Any device of the pool; absent: the one pool that is served.
    pub pool: Option<PathBuf>,
    /// Where sockets are.
    pub dirs: Option<RunDirs>,
    /// The command is about a device that may be missing: that is no reason to refuse it.
    pub degraded: bool,
}

impl Selection {
    fn dirs(&self) -> RunDirs {
        self.dirs.clone().unwrap_or_else(RunDirs::of_process)
    }

    /// The server of the pool.
    pub fn server(&self) -> Result<UnixStream> {
        let Some(path) = &self.pool else { return self.only_server() };
        let pool_id = read_label(path)?.pool_id;
        self.dirs().connect(&pool_id)?.ok_or_else(|| {
            Message::new(format!("the pool at {} is not served", path.display()))
                .why(format!("no server answers for the pool {}", id_text(&pool_id)))
                .todo(format!("`lunfs serve {}`", path.display()))
                .into()
        })
    }

    /// The server of the pool, or the pool itself where it has none.
    pub fn client(&self) -> Result<Client> {
        let Some(path) = &self.pool else { return self.only_server().map(Client::Server) };
        let (pool_id, dirs) = (read_label(path)?.pool_id, self.dirs());
        if let Some(stream) = dirs.connect(&pool_id)? {
            return Ok(Client::Server(stream));
        }
        let mut server = None;
        let locked = LockedPool::lock_patiently(
            std::slice::from_ref(path),
            self.degraded,
            MOMENT_WAIT,
            || {
                server = dirs.connect(&pool_id).ok().flatten();
                server.is_some()
            },
        );
        match (locked, server) {
            (Ok(locked), _) => Ok(Client::Here(Box::new(locked.open(MOMENT_CACHE_BYTES)?))),
            // A server has begun meanwhile.
            (Err(Error::InUse(_)), Some(stream)) => Ok(Client::Server(stream)),
            (Err(e), _) => Err(e),
        }
    }

    /// Of all served pools the only one.
    fn only_server(&self) -> Result<UnixStream> {
        let mut all = self.dirs().connect_all()?;
        match (all.pop(), all.len()) {
            (Some((_, stream)), 0) => Ok(stream),
            (None, _) => Err(Message::new("no pool was named, and none is served")
                .todo("add --pool PATH or set LUNFS_POOL; or start `lunfs serve PATH`")
                .into()),
            (Some(_), others) => Err(Message::new("no pool was named")
                .why(format!("{} pools are served here", others + 1))
                .todo("add --pool PATH or set LUNFS_POOL; `lunfs pool list` shows the pools")
                .into()),
        }
    }
}

impl Client {
    /// Carries out one command; `file` is the image of an import or export. `hear` is told what
    /// comes on the way.
    pub fn call(
        self,
        command: Command,
        dry_run: bool,
        file: Option<BorrowedFd<'_>>,
        hear: &mut dyn FnMut(Reply),
    ) -> Result<Value> {
        let goes_on = matches!(
            command,
            Command::PoolAdd { .. } | Command::PoolRemove { .. } | Command::PoolGrow { .. }
        );
        let request = Request { version: PROTOCOL_VERSION, dry_run, command };
        match self {
            Client::Server(stream) => ask(&stream, &request, file, hear),
            Client::Here(pool) => {
                let (near, far) = UnixStream::pair().map_err(|e| Error::io("no socket", &e))?;
                let interrupted = heed_interrupts(&near)?;
                let working = work_here(*pool, far);
                let answer = ask(&near, &request, file, hear);
                drop(near);
                let closed = working.join();
                let broken = || Error::Connection("the command broke down".into());
                let closed = closed.map_err(|_| broken())?;
                match answer {
                    Err(_) if interrupted.load(Ordering::Acquire) => {
                        let what = "the command was interrupted";
                        let why = match goes_on {
                            true => "what it had begun goes on when the pool is opened again",
                            false => "what it had begun was undone",
                        };
                        Err(Message::new(what).why(why).into())
                    }
                    answer => answer.and_then(|value| closed.map(|()| value)),
                }
            }
        }
    }
}

/// SIGINT, SIGTERM and SIGHUP hang up on the engine, which then undoes what is half done (a LUN
/// that is being imported) and closes the pool.
fn heed_interrupts(near: &UnixStream) -> Result<Arc<AtomicBool>> {
    let failed = |e| Error::io("signals cannot be heard", &e);
    let near = near.try_clone().map_err(failed)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let told = interrupted.clone();
    let runtime = Builder::new_current_thread().enable_io().build().map_err(failed)?;
    std::thread::spawn(move || {
        // Without signals a command is ended at once, as any other program.
        if runtime.block_on(any_signal()).is_ok() {
            told.store(true, Ordering::Release);
            let _ = near.shutdown(Shutdown::Both);
        }
    });
    Ok(interrupted)
}

async fn any_signal() -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

fn work_here(pool: OpenPool, far: UnixStream) -> JoinHandle<Result<()>> {
    std::thread::spawn(move || {
        let engine = Arc::new(Engine { pool, doors: Arc::new(Doors::default()), stop: None });
        converse(engine.clone(), far);
        engine.pool.close()
    })
}

fn ask(
    stream: &UnixStream,
    request: &Request,
    file: Option<BorrowedFd<'_>>,
    hear: &mut dyn FnMut(Reply),
) -> Result<Value> {
    wire::send_request(stream, request, file)?;
    let mut from = BufReader::new(stream);
    let deadline = request.command.is_quick().then(|| Instant::now() + QUICK_WAIT);
    loop {
        if from.buffer().is_empty() {
            silence::await_answer(stream, silence::SILENCE, deadline)?;
        }
        match wire::read_line(&mut from, wire::MAX_REPLY_BYTES)? {
            None => return Err(Error::Connection("the server went away".into())),
            Some(Reply::Result(value)) => return Ok(value),
            Some(Reply::Error(message)) => return Err(message.into()),
            Some(on_the_way) => hear(on_the_way),
        }
    }
}

/// Asks the server to stop and waits until its process has ended.
pub fn stop(stream: UnixStream, dry_run: bool) -> Result<Value> {
    let peer = rustix::net::sockopt::socket_peercred(stream.as_fd()).ok();
    let process = peer.and_then(|peer| pidfd_open(peer.pid, PidfdFlags::empty()).ok());
    let answer = Client::Server(stream).call(Command::Stop, dry_run, None, &mut |_| {})?;
    if let Some(process) = process.filter(|_| !dry_run) {
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        // The pool is closed already; a process that lingers does not change that.
        let _ = poll(&mut fds, Some(&EXIT_WAIT));
    }
    Ok(answer)
}
