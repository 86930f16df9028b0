//! `lunfs serve`: flags and config file become what the server is asked to do.

use super::args::{Common, Serve};
use super::parse::{self, Size, ISCSI_PORT, NBD_PORT, NBS_PORT};
use crate::control::find::find_devices;
use crate::control::pool::lock_devices;
use crate::control::report;
use crate::control::{Error, Message, Result};
use crate::device::file::OpenMode;
use crate::server::{self, ServeConfig};
use serde::Deserialize;
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Memory for blocks where `--cache` does not say.
const DEFAULT_CACHE_BYTES: u64 = 256 << 20;
/// Less does not hold what one consistency point needs beside the data.
const MIN_CACHE_BYTES: u64 = 16 << 20;
/// Longest config file: a few lines are enough.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The config file. Unknown keys are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    #[serde(default)]
    path: OneOrMany,
    mount: Option<PathBuf>,
    iscsi: Option<Addresses>,
    nbd: Option<Addresses>,
    nbs: Option<Addresses>,
    tls: Option<PathBuf>,
    advertise: Option<String>,
    cache: Option<Size>,
    #[serde(default)]
    degraded: bool,
    #[serde(default)]
    insecure: bool,
}

/// `"/p"` or `["/p", "/q"]`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        OneOrMany::Many(Vec::new())
    }
}

impl OneOrMany {
    fn into_vec(self) -> Vec<PathBuf> {
        match self {
            OneOrMany::One(path) => vec![path],
            OneOrMany::Many(paths) => paths,
        }
    }
}

/// `true` (the usual address), `"ADDR"` or `["ADDR", …]`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Addresses {
    Switch(bool),
    One(String),
    Many(Vec<String>),
}

impl Addresses {
    fn into_vec(self) -> Vec<String> {
        match self {
            Addresses::Switch(true) => vec![String::new()],
            Addresses::Switch(false) => Vec::new(),
            Addresses::One(address) => vec![address],
            Addresses::Many(addresses) => addresses,
        }
    }
}

fn read_config(path: &Path) -> Result<ConfigFile> {
    let unreadable =
        |e| Error::io(format!("the config file {} cannot be read", path.display()), &e);
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    file.take(MAX_CONFIG_BYTES).read_to_string(&mut text).map_err(unreadable)?;
    toml::from_str(&text).map_err(|e| config_error(path, &text, &e))
}

fn config_error(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    Message::new(format!("{}: line {line} is not understood", path.display()))
        .why(error.message().lines().next().unwrap_or_default())
        .todo("keys: path mount iscsi nbd nbs tls advertise cache degraded insecure")
        .into()
}

/// Flags stand before the config file; with no door at all iSCSI and NBD open on loopback.
fn merge(serve: &Serve, pool: Option<&PathBuf>, file: ConfigFile) -> Result<ServeConfig> {
    let first_of = |flags: &[String], file: Option<Addresses>| match flags {
        [] => file.map(Addresses::into_vec).unwrap_or_default(),
        flags => flags.to_vec(),
    };
    let mut iscsi = first_of(&serve.iscsi, file.iscsi);
    let mut nbd = first_of(&serve.nbd, file.nbd);
    let nbs = first_of(&serve.nbs, file.nbs);
    let mount = serve.mount.clone().or(file.mount);
    if iscsi.is_empty() && nbd.is_empty() && nbs.is_empty() && mount.is_none() {
        iscsi.push(String::new());
        nbd.push(String::new());
    }
    let mut paths = serve.paths.clone();
    if paths.is_empty() {
        paths = file.path.into_vec();
    }
    if paths.is_empty() {
        paths.extend(pool.cloned());
    }
    let iscsi = addresses("iscsi", &iscsi, |text| parse::tcp(text, ISCSI_PORT))?;
    let advertise = serve.advertise.clone().or(file.advertise);
    Ok(ServeConfig {
        paths,
        mount,
        advertise: advertise.map(advertised).transpose()?,
        iscsi,
        nbd: addresses("nbd", &nbd, |text| parse::tcp_or_unix(text, NBD_PORT))?,
        tls: serve.tls.clone().or(file.tls),
        nbs: addresses("nbs", &nbs, |text| parse::tcp(text, NBS_PORT))?,
        cache_bytes: serve.cache.or(file.cache).map_or(DEFAULT_CACHE_BYTES, |size| size.0),
        degraded: serve.degraded || file.degraded,
        insecure: serve.insecure || file.insecure,
        until_unmounted: serve.until_unmounted,
        notes_access: !serve.noatime,
    })
}

fn addresses<T: PartialEq>(
    door: &str,
    texts: &[String],
    parse: impl Fn(&str) -> std::result::Result<T, String>,
) -> Result<Vec<T>> {
    let mut all = Vec::with_capacity(texts.len());
    for text in texts {
        let refuse = |why: String| Error::Usage(Message::new(format!("--{door}: {why}")));
        let address = parse(text).map_err(refuse)?;
        if !all.contains(&address) {
            all.push(address);
        }
    }
    Ok(all)
}

/// It is checked now and completed with a port when the door is open.
fn advertised(text: String) -> Result<String> {
    let refuse = |why| Error::Usage(Message::new(format!("--advertise: {why}")));
    parse::advertised(&text).map_err(refuse)?;
    Ok(text)
}

fn check(config: &ServeConfig) -> Result<()> {
    if config.paths.is_empty() {
        let todo = "give it: `lunfs serve PATH`, or `path = ...` in the config file";
        return Err(Error::Usage(Message::new("no path of a pool was given").todo(todo)));
    }
    if config.cache_bytes < MIN_CACHE_BYTES {
        let what = format!("--cache {} is too small", config.cache_bytes);
        let todo = format!("give at least {}M", MIN_CACHE_BYTES >> 20);
        return Err(Error::Usage(Message::new(what).todo(todo)));
    }
    config.check_nbd_reach()
}

/// Serves until stopped. `None`: it has said everything itself.
pub fn run(serve: &Serve, common: &Common) -> Result<Option<Value>> {
    let file = serve.config.as_deref().map(read_config).transpose()?.unwrap_or_default();
    let config = merge(serve, common.pool.as_ref(), file)?;
    check(&config)?;
    if serve.change.dry_run {
        return would_serve(&config).map(Some);
    }
    let leaves = config.until_unmounted;
    if leaves {
        let _ = rustix::process::setsid();
    }
    server::serve(config, &mut |ready| {
        super::output::ready(ready, common.json);
        if leaves {
            leave();
        }
    })?;
    Ok(None)
}

/// Lets go of what whoever started this process may wait for: its output and its directory.
fn leave() {
    if let Ok(nothing) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&nothing);
        let _ = rustix::stdio::dup2_stderr(&nothing);
    }
    let _ = std::env::set_current_dir("/");
}

/// Everything but opening: the devices are found, locked and let go again.
fn would_serve(config: &ServeConfig) -> Result<Value> {
    let found = find_devices(&config.paths, config.degraded)?;
    lock_devices(&found.paths, OpenMode { read_only: true, ..OpenMode::default() })?;
    server::check_doors(config)?;
    let mut doors: Vec<String> = config.iscsi.iter().map(|a| format!("iSCSI on {a}")).collect();
    doors.extend(config.nbd.iter().map(|listen| format!("NBD on {listen}")));
    doors.extend(config.nbs.iter().map(|address| format!("NBS on {address}")));
    doors.extend(config.mount.iter().map(|dir| format!("the mount on {}", dir.display())));
    Ok(report::would(format!(
        "serve {} with {}",
        crate::control::pool::names(&found.paths),
        doors.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Listen;

    fn merged(serve: Serve, config: &str) -> Result<ServeConfig> {
        let file = toml::from_str(config).map_err(|e| config_error(Path::new("c"), config, &e))?;
        merge(&serve, None, file)
    }

    fn with_paths() -> Serve {
        Serve { paths: vec!["p".into()], ..Serve::default() }
    }

    #[test]
    fn no_door_means_loopback() {
        let config = merged(with_paths(), "").unwrap();
        assert_eq!(config.iscsi, ["127.0.0.1:3260".parse().unwrap()]);
        assert_eq!(config.nbd, [Listen::Tcp("127.0.0.1:10809".parse().unwrap())]);
        assert_eq!(config.cache_bytes, DEFAULT_CACHE_BYTES);
        assert!(check(&config).is_ok());
    }

    #[test]
    fn with_a_mount_alone_nothing_listens() {
        let serve = Serve { mount: Some("/m".into()), ..with_paths() };
        let config = merged(serve, "").unwrap();
        assert!(config.iscsi.is_empty() && config.nbd.is_empty());
    }

    #[test]
    fn the_file_has_the_same_names_and_flags_win() {
        let text = "path = \"/q\"\niscsi = true\nnbd = [\"unix:/n\", \":7\"]\ncache = \"1G\"\n\
                    insecure = true\nadvertise = \"san\"\nmount = \"/m\"\ndegraded = false\n";
        let config = merged(Serve::default(), text).unwrap();
        assert_eq!(config.paths, [PathBuf::from("/q")]);
        assert_eq!(config.iscsi, ["127.0.0.1:3260".parse().unwrap()]);
        assert_eq!(config.nbd.len(), 2);
        assert_eq!((config.cache_bytes, config.insecure), (1 << 30, true));
        assert_eq!(config.advertise.as_deref(), Some("san"));
        let flags = Serve { iscsi: vec![":9".into()], cache: Some(Size(1 << 25)), ..with_paths() };
        let config = merged(flags, text).unwrap();
        assert_eq!(config.paths, [PathBuf::from("p")]);
        assert_eq!(config.iscsi, ["127.0.0.1:9".parse().unwrap()]);
        assert_eq!(config.cache_bytes, 1 << 25);
    }

    #[test]
    fn mistakes_are_named() {
        let unknown = merged(Serve::default(), "mount = \"/m\"\nport = 1\n").unwrap_err();
        assert!(unknown.to_string().contains("line 2"), "{unknown}");
        assert!(merged(Serve::default(), "cache = \"lots\"").is_err());
        assert!(merged(Serve::default(), "iscsi = 3260").is_err());
        let bad = Serve { nbd: vec!["unix:".into()], ..with_paths() };
        assert_eq!(merged(bad, "").unwrap_err().exit_code(), 2);
        let small = Serve { cache: Some(Size(4096)), ..with_paths() };
        assert_eq!(check(&merged(small, "").unwrap()).unwrap_err().exit_code(), 2);
        let open = Serve { nbd: vec!["0.0.0.0".into()], ..with_paths() };
        assert_eq!(check(&merged(open, "").unwrap()).unwrap_err().exit_code(), 1);
        assert!(check(&merged(Serve::default(), "").unwrap()).is_err());
    }
}
