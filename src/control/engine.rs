//! Commands carried out on an open pool: by the server for its clients, or by a command itself on a
//! pool that nobody serves. Both talk to it over a socket, so there is one way to do everything.
//!
//! Invariant: a command that returned Ok has made its change, and it is there on every door.

use super::doors::Doors;
use super::error::{Error, Message, Result};
use super::pool::OpenPool;
use super::protocol::{Command, KeyValue, Reply, Request, PROTOCOL_VERSION};
use super::report::bytes_text;
use super::stop::StopSignal;
use super::{report, transfer, wire};
use crate::lun::{CreateLun, DeleteOptions, Lun, SessionId};
use serde_json::{json, Value};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// A client sends its request at once; one that does not is no lunfs.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// A client that does not take its answer for so long is given up.
const REPLY_WAIT: Duration = Duration::from_secs(60);

/// A pool and its doors, as commands see them.
pub struct Engine {
    /// The pool.
    pub pool: OpenPool,
    /// The doors that were asked for; none where a command opened the pool for itself.
    pub doors: Arc<Doors>,
    /// How the server is stopped; `None` where a command opened the pool for itself.
    pub stop: Option<Arc<StopSignal>>,
}

/// Answers the one request of a connection. Every failure is told to the client; nobody else wants
/// it. The engine is let go before a `stop` is waited for: the pool closes meanwhile.
pub fn converse(engine: Arc<Engine>, stream: UnixStream) {
    let answer = match hear(&stream) {
        Ok(Some((request, file))) => obey(engine, &stream, request, file),
        Ok(None) => return,
        Err(e) => Err(e),
    };
    let reply = match answer {
        Ok(value) => Reply::Result(value),
        Err(e) => Reply::Error(e.message()),
    };
    // The client may have gone; there is nobody left to tell.
    let _ = wire::write_line(&mut &stream, &reply);
}

fn hear(stream: &UnixStream) -> Result<Option<(Request, Option<OwnedFd>)>> {
    let limits = stream
        .set_read_timeout(Some(REQUEST_WAIT))
        .and_then(|()| stream.set_write_timeout(Some(REPLY_WAIT)));
    limits.map_err(|e| Error::Connection(e.to_string()))?;
    wire::receive_request(stream)
}

fn obey(
    engine: Arc<Engine>,
    stream: &UnixStream,
    request: Request,
    file: Option<OwnedFd>,
) -> Result<Value> {
    if request.version != PROTOCOL_VERSION {
        let what = "the server is of another version than this command";
        let todo = "restart the server, or use the command of its version";
        return Err(Message::new(what).todo(todo).into());
    }
    if request.command == Command::Stop {
        return stop(engine, request.dry_run);
    }
    let session = Session { engine: &engine, stream, dry_run: request.dry_run };
    session.run(request.command, file)
}

fn stop(engine: Arc<Engine>, dry_run: bool) -> Result<Value> {
    let signal = engine.stop.clone().ok_or_else(|| Message::new("the pool is not served"))?;
    let mut answer = json!({ "stopped": true, "process_id": std::process::id() });
    if dry_run {
        let count = engine.pool.catalog.sessions().len();
        return Ok(report::would(format!("end {count} sessions and stop the server")));
    }
    drop(engine);
    if let Err(why) = signal.request_and_wait() {
        answer["stopped"] = false.into();
        return Err(Message::new("the server did not stop in order").why(why).into());
    }
    Ok(answer)
}

/// One request being carried out.
pub(super) struct Session<'a> {
    pub(super) engine: &'a Engine,
    pub(super) stream: &'a UnixStream,
    pub(super) dry_run: bool,
}

impl Session<'_> {
    fn run(&self, command: Command, file: Option<OwnedFd>) -> Result<Value> {
        match command {
            Command::Status => report::status(&self.engine.pool, &self.engine.doors),
            Command::Stop => Err(Message::new("stop is not a command of a pool").into()),
            Command::PoolShow => Ok(report::pool_with_scrub(&self.engine.pool)),
            Command::Ping => Ok(json!({})),
            Command::PoolGrow { path, size_bytes } => self.pool_grow(&path, size_bytes),
            Command::PoolOffline { path } => self.pool_offline(&path),
            Command::PoolOnline { path } => self.pool_online(&path),
            Command::PoolReplace { path, new } => self.pool_replace(&path, &new),
            Command::PoolAdd { path, size_bytes } => self.pool_add(&path, size_bytes),
            Command::PoolRemove { path } => self.pool_remove(&path),
            Command::PoolScrub { background, cancel } => self.pool_scrub(background, cancel),
            Command::LunList => self.lun_list(),
            Command::LunShow { lun } => self.lun_show(&lun),
            Command::LunCreate { lun, size_bytes, keys } => self.lun_create(&lun, size_bytes, keys),
            Command::LunResize { lun, size_bytes, force } => {
                self.lun_resize(&lun, size_bytes, force)
            }
            Command::LunRename { lun, new } => self.lun_rename(&lun, &new),
            Command::LunDelete { lun, recursive, force } => {
                self.lun_delete(&lun, DeleteOptions { recursive, force })
            }
            Command::LunSet { lun, keys } => self.lun_set(&lun, &keys),
            Command::LunLog { lun, follow } => self.lun_log(&lun, follow),
            Command::LunImport { lun, size_bytes, keys, into, force, from_pool } => {
                let wanted = transfer::Import { lun, size_bytes, keys, into, force };
                match from_pool {
                    Some(path) => self.import_from_pool(wanted, &path),
                    None => self.import(wanted, needed(file)?),
                }
            }
            Command::LunExport { lun, past_bad } => self.export(&lun, past_bad, needed(file)?),
            Command::InitiatorAdd { initiator, change } => self.initiator_add(&initiator, change),
            Command::InitiatorSet { initiator, change } => self.initiator_set(&initiator, change),
            Command::InitiatorRemove { initiator } => self.initiator_remove(&initiator),
            Command::InitiatorList => self.initiator_list(),
            Command::InitiatorShow { initiator } => self.initiator_show(&initiator),
            Command::SessionList => Ok(self.sessions()),
            Command::SessionShow { id } => self.session_show(&id),
            Command::SessionDrop { id } => self.session_drop(&id),
            of_snapshots => self.snapshot_command(of_snapshots),
        }
    }

    pub(super) fn lun(&self, name: &str) -> Result<Arc<Lun>> {
        Ok(self.engine.pool.catalog.get(name)?)
    }

    pub(super) fn show(&self, lun: &Lun) -> Result<Value> {
        report::lun(&self.engine.pool.catalog, lun, &self.engine.doors)
    }

    fn lun_show(&self, name: &str) -> Result<Value> {
        let mut shown = self.show(&*self.lun(name)?)?;
        self.add_snapshots_bytes(&mut shown)?;
        Ok(shown)
    }

    fn lun_list(&self) -> Result<Value> {
        let mut shown = report::luns(&self.engine.pool.catalog, &self.engine.doors)?;
        for lun in shown.as_array_mut().into_iter().flatten() {
            self.add_snapshots_bytes(lun)?;
        }
        Ok(shown)
    }

    fn lun_create(&self, name: &str, size_bytes: u64, settings: Vec<KeyValue>) -> Result<Value> {
        let catalog = &self.engine.pool.catalog;
        let request = creation(size_bytes, settings);
        if self.dry_run {
            catalog.check_create(name, &request)?;
            return Ok(report::would(format!("make the LUN {name} of {}", bytes_text(size_bytes))));
        }
        let lun = catalog.create(name, &request)?;
        self.durable()?;
        self.show(&lun)
    }

    fn lun_resize(&self, name: &str, size_bytes: u64, force: bool) -> Result<Value> {
        let lun = self.lun(name)?;
        if self.dry_run {
            lun.check_resize(size_bytes, force)?;
            let before = lun.geometry().size_bytes;
            let (before, after) = (bytes_text(before), bytes_text(size_bytes));
            let text = format!("resize {name} from {before} to {after}");
            return Ok(report::would(text));
        }
        lun.resize(size_bytes, force)?;
        self.durable()?;
        self.show(&lun)
    }

    fn lun_rename(&self, name: &str, new: &str) -> Result<Value> {
        let catalog = &self.engine.pool.catalog;
        if self.dry_run {
            catalog.check_rename(name, new)?;
            return Ok(report::would(format!("rename {name} to {new}")));
        }
        catalog.rename(name, new)?;
        self.durable()?;
        self.show(&*self.lun(new)?)
    }

    fn lun_delete(&self, name: &str, options: DeleteOptions) -> Result<Value> {
        let catalog = &self.engine.pool.catalog;
        catalog.check_delete(name, options)?;
        let used_bytes = self.lun(name)?.attributes()?.used_bytes;
        if self.dry_run {
            return Ok(report::would(format!(
                "delete {name}, which uses {}",
                bytes_text(used_bytes)
            )));
        }
        catalog.delete(name, options)?;
        self.durable()?;
        Ok(json!({ "deleted": name, "used_bytes": used_bytes }))
    }

    fn lun_set(&self, name: &str, keys: &[KeyValue]) -> Result<Value> {
        let lun = self.lun(name)?;
        if self.dry_run {
            lun.check_set(keys)?;
            let pairs: Vec<String> =
                keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            return Ok(report::would(format!("set {} of {name}", pairs.join(" "))));
        }
        lun.set(keys)?;
        self.durable()?;
        self.show(&lun)
    }

    fn sessions(&self) -> Value {
        self.engine.pool.catalog.sessions().iter().map(report::session).collect()
    }

    fn session_show(&self, id: &str) -> Result<Value> {
        let session = self.engine.pool.catalog.session(session_id(id)?)?;
        Ok(report::session(&session))
    }

    fn session_drop(&self, id: &str) -> Result<Value> {
        let catalog = &self.engine.pool.catalog;
        let session = catalog.session(session_id(id)?)?;
        let told = format!("{} of {} on {}", session.id.0, session.client, session.lun);
        if self.dry_run {
            return Ok(report::would(format!("end the session {told}")));
        }
        catalog.drop_session(session.id)?;
        Ok(json!({ "dropped": session.id.0, "session": report::session(&session) }))
    }

    /// What a command changed outlives a crash once the command returned.
    pub(super) fn durable(&self) -> Result<()> {
        let what = "the change is made but not yet durable";
        self.engine.pool.fs.sync().map_err(|e| Error::fs(what, &e))
    }
}

/// A LUN to be made by whoever runs this process.
pub(super) fn creation(size_bytes: u64, settings: Vec<KeyValue>) -> CreateLun {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    CreateLun { size_bytes, settings, uid: uid.as_raw(), gid: gid.as_raw() }
}

fn session_id(text: &str) -> Result<SessionId> {
    text.parse().map(SessionId).map_err(|_| {
        let message = Message::new(format!("'{text}' is not the id of a session"));
        Error::Refused(message.todo("`lunfs session list` shows them"))
    })
}

fn needed(file: Option<OwnedFd>) -> Result<std::fs::File> {
    file.map(Into::into).ok_or_else(|| Error::Connection("the request came without a file".into()))
}
