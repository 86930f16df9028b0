//! The server: it alone knows all layers. It opens the pool, then the doors, then the control
//! socket, and closes them in the opposite order.
//!
//! Invariants: when `ready` is announced every door that was asked for is open; when [`serve`]
//! returns Ok everything that was acknowledged is in the pool, nothing is mounted and nobody is
//! connected.

mod attach;
mod config;
mod disk;
mod doors;
mod entrance;
mod iscsi_targets;
mod nbd_exports;
mod nbs_objects;
mod notify;
mod policies;

pub use attach::{attach, AttachConfig};
pub use config::{Listen, ServeConfig};
pub use doors::check_doors;

use crate::control::doors::{DoorKind, Doors};
use crate::control::engine::Engine;
use crate::control::label::read_label;
use crate::control::listener::{listen, Commands};
use crate::control::pool::{LockedPool, OpenPool, MOMENT_WAIT};
use crate::control::run_dir::RunDirs;
use crate::control::stop::StopSignal;
use crate::control::{report, Error, Result};
use doors::OpenDoors;
use policies::PolicyClock;
use serde_json::{json, Value};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{signal, SignalKind};

/// How long commands under way may take after a stop.
const COMMANDS_WAIT: Duration = Duration::from_secs(10);
/// How long a server that was unmounted may take to close the pool.
const PREDECESSOR_WAIT: Duration = Duration::from_secs(60);
/// How long it may take to notice that it was, and to leave its control socket.
const PREDECESSOR_NOTICES: Duration = Duration::from_secs(2);
/// How long tasks may take to end after everything they use was closed.
const RUNTIME_WAIT: Duration = Duration::from_secs(2);

/// What is said when all doors are open.
pub struct Ready {
    /// The pool.
    pub pool: Value,
    /// The doors.
    pub doors: Value,
    /// For each LUN what a client pastes to reach it.
    pub luns: Vec<(String, Vec<String>)>,
    /// What the administrator may not have meant.
    pub warnings: Vec<String>,
}

impl Ready {
    fn of(engine: &Engine, warnings: Vec<String>) -> Ready {
        let kinds = [DoorKind::Iscsi, DoorKind::Nbd, DoorKind::Nbs, DoorKind::Mount];
        let lines = |name: &str| kinds.iter().flat_map(|k| engine.doors.lines(*k, name)).collect();
        let luns = engine.pool.catalog.list();
        let luns = luns.iter().map(|lun| (lun.name(), lines(&lun.name()))).collect();
        let (pool, doors) = (report::pool(&engine.pool), engine.doors.to_json());
        Ready { pool, doors, luns, warnings }
    }

    /// The same in one object.
    pub fn to_json(&self) -> Value {
        let lun = |(name, lines): &(String, Vec<String>)| json!({ "name": name, "reach": lines });
        json!({
            "state": "ready",
            "pool": self.pool,
            "doors": self.doors,
            "luns": self.luns.iter().map(lun).collect::<Value>(),
            "warnings": self.warnings,
        })
    }
}

/// Serves a pool until a signal or `lunfs stop`.
pub fn serve(config: ServeConfig, announce: &mut dyn FnMut(&Ready)) -> Result<()> {
    config.check_nbd_reach()?;
    let locked = lock(&config)?;
    check_doors(&config)?;
    let runtime = Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::io("the server has no threads", &e))?;
    let stop = StopSignal::new();
    let pool = locked.open(config.cache_bytes)?;
    if let Err(e) = admit_others(&config, &pool) {
        pool.close()?;
        return Err(e);
    }
    pool.catalog.resume();
    let doors = Arc::new(Doors::default());
    let engine = Arc::new(Engine { pool, doors, stop: Some(stop.clone()) });
    let outcome = run(&runtime, &config, engine, &stop, announce);
    runtime.shutdown_timeout(RUNTIME_WAIT);
    outcome
}

/// Whether clients of other hosts may come, and on what terms.
fn admit_others(config: &ServeConfig, pool: &OpenPool) -> Result<()> {
    if config.insecure {
        pool.book.be_insecure();
    }
    let defined = pool.book.list().map_or(true, |all| !all.is_empty());
    config.check_iscsi_reach(defined)
}

/// A command that has the pool for a moment is waited for, another server is not.
/// One that began because of a mount also waits for its predecessor, which ends when that is gone.
fn lock(config: &ServeConfig) -> Result<LockedPool> {
    let first = config.paths.first();
    let id = first.and_then(|path| read_label(path).ok()).map(|label| label.pool_id);
    let dirs = RunDirs::of_process();
    let (at_most, began) = match config.until_unmounted {
        true => (PREDECESSOR_WAIT, Instant::now() + PREDECESSOR_NOTICES),
        false => (MOMENT_WAIT, Instant::now()),
    };
    LockedPool::lock_patiently(&config.paths, config.degraded, at_most, || {
        let is_served = || id.is_some_and(|id| !matches!(dirs.connect(&id), Ok(None)));
        Instant::now() >= began && is_served()
    })
}

/// Doors and commands, then the pool: it is closed however the rest went.
fn run(
    runtime: &Runtime,
    config: &ServeConfig,
    engine: Arc<Engine>,
    stop: &Arc<StopSignal>,
    announce: &mut dyn FnMut(&Ready),
) -> Result<()> {
    let served = runtime.block_on(serve_until_stopped(config, engine.clone(), stop, announce));
    stop.request();
    let (served, commands) = match served {
        Ok(commands) => (Ok(()), Some(commands)),
        Err(e) => (Err(e), None),
    };
    let closed = engine.pool.close();
    drop(engine);
    stop.finish(closed.as_ref().copied().map_err(|e| e.message().in_one_line()));
    if let Some(commands) = commands {
        runtime.block_on(commands.finish(COMMANDS_WAIT));
    }
    served.and(closed)
}

async fn serve_until_stopped(
    config: &ServeConfig,
    engine: Arc<Engine>,
    stop: &Arc<StopSignal>,
    announce: &mut dyn FnMut(&Ready),
) -> Result<Commands> {
    heed_signals(stop.clone())?;
    let mut doors = OpenDoors::open(config, &engine).await?;
    let outcome = serve_open_doors(config, engine, &doors, stop, announce).await;
    doors.close().await;
    outcome
}

async fn serve_open_doors(
    config: &ServeConfig,
    engine: Arc<Engine>,
    doors: &OpenDoors,
    stop: &Arc<StopSignal>,
    announce: &mut dyn FnMut(&Ready),
) -> Result<Commands> {
    let (listener, path) = RunDirs::of_process().bind(&engine.pool.fs.pool_id())?;
    let commands = tokio::spawn(listen(listener, engine.clone()));
    let clock = PolicyClock::start(engine.pool.catalog.clone());
    let clock = clock.map_err(|e| Error::io("the server has no thread for policies", &e))?;
    announce(&Ready::of(&engine, doors.warnings()));
    notify::ready();
    tokio::select! {
        () = stop.requested() => {}
        () = doors.watch() => {}
        () = doors.unmounted(), if config.until_unmounted => stop.request(),
    }
    notify::stopping();
    tokio::task::block_in_place(|| drop(clock));
    // The name goes before the lock does: a successor's socket is never removed.
    let _ = std::fs::remove_file(path);
    let broken = |_| Error::Connection("the control socket broke down".into());
    commands.await.map_err(broken)?
}

/// The first SIGTERM, SIGINT or SIGHUP stops in order; a second one at once: the pool then recovers
/// when it is opened again.
fn heed_signals(stop: Arc<StopSignal>) -> Result<()> {
    let failed = |e| Error::io("signals cannot be heard", &e);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
            if stop.is_requested() {
                std::process::exit(1);
            }
            stop.request();
        }
    });
    Ok(())
}
