//! `lunfs nbs`: the client of the network block services protocol.

use super::args::{Change, Common};
use super::initiator::read_secret;
use super::nbs_args::{LoginArgs, Nbs, Server, Snap};
use super::parse::{self, NBS_PORT};
use super::{output, rows, show};
use crate::control::report;
use crate::control::{Error, Message, Result};
use crate::fs::HookOutcome;
use crate::lun::BlockIo;
use crate::nbs::client::{ClientError, Login, NbsClient, NbsDisk, ObjectInfo, Options, Request};
use crate::nbs::wire::snap;
use crate::nbs::xml::{self, Element};
use crate::quiesce::{self, Hook, Limits};
use crate::server::{self, AttachConfig};
use bytes::Bytes;
use serde_json::{json, Value};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Bytes moved at once.
const COPY_BYTES: usize = 8 << 20;
/// This very program, also where its file was replaced since.
const OURSELVES: &str = "/proc/self/exe";
/// Unit of what is read and written.
const SECTOR_BYTES: u64 = 512;

/// Carries a verb out.
pub fn run(verb: &Nbs, common: &Common) -> Result<()> {
    match verb {
        Nbs::List(server) => list(server, common),
        Nbs::Info { name, server } => {
            let (_, info) = open(server, name)?;
            show(&info_json(name, &info), common, output::facts);
            Ok(())
        }
        Nbs::Read { name, file, offset, length, server } => {
            read(server, name, file, offset.0, length.map(|length| length.0))
        }
        Nbs::Write { name, file, offset, server, change } => {
            write(server, name, file, offset.0, *change, common)
        }
        Nbs::Attach { object, nbd, login, patience } => {
            attach(object, nbd, login, *patience, common)
        }
        Nbs::Snap(verb) => snapshot(verb, common),
    }
}

fn addresses(text: &str) -> Result<Vec<SocketAddr>> {
    let one = |text: &str| {
        let refuse = |why: String| Error::Usage(Message::new(format!("--server: {why}")));
        parse::tcp(text, NBS_PORT).map_err(refuse)
    };
    text.split(',').map(one).collect()
}

fn login(args: &LoginArgs) -> Result<Option<Login>> {
    let (Some(user), Some(file)) = (&args.user, &args.secret_file) else {
        return Ok(None);
    };
    let secret = read_secret(file)?.into_secret()?;
    Ok(Some(Login { user: user.clone(), secret: Arc::new(secret) }))
}

fn options(
    addresses: Vec<SocketAddr>,
    args: &LoginArgs,
    object: Option<&str>,
    seconds: u64,
) -> Result<Options> {
    let instance = NbsClient::fresh_instance();
    Ok(Options {
        addresses,
        login: login(args)?,
        object: object.map(str::to_owned),
        instance: instance.map_err(|e| Error::io("no name can be made for this client", &e))?,
        patience: Duration::from_secs(seconds),
    })
}

fn start(server: &Server, object: Option<&str>) -> Result<NbsClient> {
    let options = options(addresses(&server.server)?, &server.login, object, server.patience)?;
    NbsClient::start(options).map_err(|e| Error::io("the client has no thread", &e))
}

fn open(server: &Server, name: &str) -> Result<(NbsClient, ObjectInfo)> {
    let client = start(server, Some(name))?;
    let info = client.open().map_err(|error| failed(name, &error))?;
    Ok((client, info))
}

fn failed(what: &str, error: &ClientError) -> Error {
    let message = Message::new(format!("{what}: the NBS server did not do it")).why(error);
    match error {
        ClientError::NeedsBlockSize(bytes) => {
            message.todo(format!("on the server: lunfs lun set {what} nbs-block-size={bytes}"))
        }
        ClientError::NoAnswer(_) => message.todo("look whether it is served there, with --nbs"),
        _ => message.todo("`lunfs nbs list` shows what this client may use"),
    }
    .into()
}

fn broken() -> ClientError {
    ClientError::Status(crate::nbs::Status::Invalid)
}

fn element(reply: &Bytes) -> std::result::Result<Element, ClientError> {
    xml::parse(reply).ok_or_else(broken)
}

const LIST_COLUMNS: &[&str] =
    &["name", "size_bytes", "block_size_bytes", "writable", "shared", "write_through"];

fn list(server: &Server, common: &Common) -> Result<()> {
    let client = start(server, None)?;
    let reply = client.call(Request::List).and_then(|reply| element(&reply));
    let reply = reply.map_err(|error| failed(&server.server, &error))?;
    let object = |item: &Element| {
        let block: u64 = item.number("blkSize").unwrap_or(0);
        let blocks: u64 = item.number("numBlks").unwrap_or(0);
        json!({
            "name": item.get("name"),
            "size_bytes": block.saturating_mul(blocks),
            "block_size_bytes": block,
            "writable": item.flag("rw"),
            "shared": item.flag("share"),
            "snapable": item.flag("snapable"),
            "replicated": item.flag("dr"),
            "write_through": item.flag("tws"),
        })
    };
    let all: Value = reply.items.iter().map(object).collect();
    show(&all, common, |all| output::table(rows(all), LIST_COLUMNS, "no objects"));
    Ok(())
}

fn info_json(name: &str, info: &ObjectInfo) -> Value {
    json!({
        "name": name,
        "size_bytes": info.size_bytes(),
        "block_size_bytes": info.block_bytes,
        "transfer_bytes": info.transfer_bytes,
        "writable": info.writable,
        "write_through": info.write_through,
    })
}

fn disk(server: &Server, name: &str) -> Result<(NbsDisk, u64)> {
    let (client, info) = open(server, name)?;
    let size_bytes = info.size_bytes();
    Ok((NbsDisk::new(client, name.to_owned(), info), size_bytes))
}

fn check_sectors(offset: u64, length: u64, size_bytes: u64) -> Result<()> {
    let why = match offset.checked_add(length) {
        Some(end) if end <= size_bytes => "it is not a multiple of 512 bytes".to_owned(),
        _ => format!("the object ends at {size_bytes}"),
    };
    let whole = offset % SECTOR_BYTES == 0 && length % SECTOR_BYTES == 0;
    match whole && why.starts_with("it is not") {
        true => Ok(()),
        false => Err(Message::new(format!("the range {offset}+{length} was refused"))
            .why(why)
            .todo("give another --offset or --length")
            .into()),
    }
}

fn read(server: &Server, name: &str, file: &Path, offset: u64, length: Option<u64>) -> Result<()> {
    let (disk, size_bytes) = disk(server, name)?;
    let length = length.unwrap_or(size_bytes.saturating_sub(offset));
    check_sectors(offset, length, size_bytes)?;
    let unwritable = |e: io::Error| Error::io(format!("{} cannot be written", file.display()), &e);
    let mut out: Box<dyn Write> = match file.as_os_str() == "-" {
        true => Box::new(io::stdout().lock()),
        false => {
            let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
            Box::new(made.map_err(unwritable)?)
        }
    };
    let mut bytes = vec![0; COPY_BYTES.min(length as usize)];
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let count = (end - at).min(bytes.len() as u64) as usize;
        let part = bytes.get_mut(..count).unwrap_or_default();
        disk.read(at, part).map_err(|error| block_failed(name, &error))?;
        out.write_all(part).map_err(unwritable)?;
        at += count as u64;
    }
    out.flush().map_err(unwritable)
}

fn block_failed(name: &str, error: &crate::lun::BlockError) -> Error {
    Message::new(format!("{name}: the NBS server did not do it")).why(error).into()
}

fn write(
    server: &Server,
    name: &str,
    file: &Path,
    offset: u64,
    change: Change,
    common: &Common,
) -> Result<()> {
    let unreadable = |e: io::Error| Error::io(format!("{} cannot be read", file.display()), &e);
    let mut input: Box<dyn Read> = match file.as_os_str() == "-" {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(file).map_err(unreadable)?),
    };
    let (disk, size_bytes) = disk(server, name)?;
    check_sectors(offset, 0, size_bytes)?;
    if change.dry_run {
        let text = format!("write {} to {name} from byte {offset}", file.display());
        show(&report::would(text), common, |_| {});
        return Ok(());
    }
    let mut at = offset;
    loop {
        let mut bytes = Vec::with_capacity(COPY_BYTES);
        let taken = (&mut input).take(COPY_BYTES as u64).read_to_end(&mut bytes);
        let count = taken.map_err(unreadable)?;
        if count == 0 {
            break;
        }
        check_sectors(at, count as u64, size_bytes)?;
        disk.write(at, &bytes, false).map_err(|error| block_failed(name, &error))?;
        at += count as u64;
    }
    disk.flush().map_err(|error| block_failed(name, &error))?;
    let value = json!({ "name": name, "offset_bytes": offset, "written_bytes": at - offset });
    show(&value, common, |_| output::line(&format!("wrote {} bytes", at - offset)));
    Ok(())
}

fn attach(object: &str, nbd: &str, args: &LoginArgs, seconds: u64, common: &Common) -> Result<()> {
    let usage = |what: &str, todo: &str| super::usage_error(what, todo);
    let (servers, name) = object
        .rsplit_once('/')
        .filter(|(servers, name)| !servers.is_empty() && !name.is_empty())
        .ok_or_else(|| usage("the object has no server", "give ADDR[,ADDR]/NAME"))?;
    let path = nbd.strip_prefix("unix:").filter(|path| !path.is_empty());
    let path = path.ok_or_else(|| usage("--nbd is no Unix socket", "give unix:PATH"))?;
    let options = options(addresses(servers)?, args, Some(name), seconds)?;
    let client = NbsClient::start(options);
    let client = client.map_err(|e| Error::io("the client has no thread", &e))?;
    let info = client.open().map_err(|error| failed(name, &error))?;
    let value = info_json(name, &info);
    let config = AttachConfig {
        name: name.to_owned(),
        disk: Arc::new(NbsDisk::new(client, name.to_owned(), info)),
        socket: path.into(),
    };
    server::attach(config, &mut |uri| {
        if common.json {
            let mut ready = value.clone();
            ready["state"] = "ready".into();
            ready["nbd_uri"] = uri.into();
            output::line(&ready.to_string());
        } else {
            output::line(&format!("{name}: {uri}"));
            output::line("ready");
        }
    })
}

fn snapshot(verb: &Snap, common: &Common) -> Result<()> {
    let (of, sub, did) = match verb {
        Snap::Create { of, .. } => (of, snap::CREATE, "made"),
        Snap::Delete(of) => (of, snap::DELETE, "deleted"),
        Snap::Restore(of) => (of, snap::RESTORE, "restored"),
        Snap::Refresh(of) => (of, snap::REFRESH, "refreshed"),
        Snap::List { name, server } => return snap_list(name, server, common),
    };
    let (name, wanted) = of.object.split_once('@').unwrap_or((&of.object, ""));
    if wanted.is_empty() && sub != snap::CREATE {
        return Err(super::usage_error("which snapshot is missing", "give NAME@SNAP"));
    }
    let (client, _) = open(&of.server, name)?;
    if of.change.dry_run {
        let text = format!("have the snapshot {} {did}", of.object);
        show(&report::would(text), common, |_| {});
        return Ok(());
    }
    let value = match verb {
        Snap::Create { quiesce: Some(hook), quiesce_timeout, .. } => {
            quiesced(client, (name, wanted), hook, *quiesce_timeout)?
        }
        _ => snap_now(&client, (name, wanted), sub)?,
    };
    show(&value, common, |value| {
        let made = value.get("snapshot").and_then(Value::as_str).unwrap_or_default();
        output::line(&format!("{did} {name}@{made}"));
    });
    Ok(())
}

fn snap_now(client: &NbsClient, (name, wanted): (&str, &str), sub: u32) -> Result<Value> {
    let reply = client.call(Request::Snap { sub, name: wanted.to_owned() });
    let reply = reply.and_then(|reply| element(&reply));
    let reply = reply.map_err(|error| failed(&format!("{name}@{wanted}"), &error))?;
    let made = reply.get("snapId").unwrap_or(wanted);
    Ok(json!({ "name": name, "snapshot": made, "time": reply.get("time") }))
}

/// The connection stands before anything is frozen; the application stands still for the order over
/// it and no longer.
fn quiesced(
    client: NbsClient,
    (name, wanted): (&str, &str),
    hook: &Hook,
    seconds: u64,
) -> Result<Value> {
    let limits = Limits { freeze: Duration::from_secs(seconds), ..Limits::default() };
    let client = Arc::new(client);
    let (ordering, names) = (Arc::clone(&client), (name.to_owned(), wanted.to_owned()));
    let report = quiesce::run(Path::new(OURSELVES), hook, limits, move || {
        snap_now(&ordering, (&names.0, &names.1), snap::CREATE)
    });
    let kind = hook.kind();
    if let Some(why) = &report.stuck {
        output::error_line(&format!("lunfs: the application may still be frozen ({kind}): {why}"));
    }
    let why = report.why.unwrap_or_default();
    let made = report.made.transpose()?;
    let snapshot = made.as_ref().and_then(|made| made.get("snapshot")?.as_str());
    let outcome = outcome_word(report.outcome);
    let note = Element::new("nbsMsg").with("name", "snap-note").with("hook", kind);
    let note = note.with("outcome", outcome).with("why", &why);
    let note = snapshot.map_or(note.clone(), |snapshot| note.with("snapId", snapshot));
    let noted = client.call(Request::Message(note));
    let why = format!("{kind}: {why}");
    match made {
        Some(mut made) if report.outcome == HookOutcome::AtRest => {
            noted.map_err(|error| failed(name, &error))?;
            (made["outcome"], made["hook"]) = (outcome.into(), kind.into());
            Ok(made)
        }
        Some(_) => Err(Message::new("the snapshot is crash-consistent only")
            .why(why)
            .todo("keep it as that, or delete it and try again")
            .into()),
        None => Err(Message::new("no snapshot was made: the application did not come to rest")
            .why(why)
            .todo("mend that, or make a crash-consistent one without --quiesce")
            .into()),
    }
}

fn outcome_word(outcome: HookOutcome) -> &'static str {
    match outcome {
        HookOutcome::AtRest => "at-rest",
        HookOutcome::TimedOut => "timed-out",
        HookOutcome::WentOn => "went-on",
        HookOutcome::Refused | HookOutcome::NotAsked => "refused",
    }
}

fn snap_list(name: &str, server: &Server, common: &Common) -> Result<()> {
    let (client, _) = open(server, name)?;
    let reply = client.call(Request::Snap { sub: snap::LIST, name: String::new() });
    let reply = reply.and_then(|reply| element(&reply)).map_err(|error| failed(name, &error))?;
    let one = |item: &Element| json!({ "snapshot": item.get("snapId"), "time": item.get("time") });
    let all: Value = reply.items.iter().map(one).collect();
    show(&all, common, |all| output::table(rows(all), &["snapshot", "time"], "no snapshots"));
    Ok(())
}
