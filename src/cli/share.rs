//! `lunfs share`: what the system's own file servers are configured with to export the mount.
//!
//! - No server may keep what another door changes: Samba gives no oplocks (block clients do not
//!   break them), nfs-ganesha keeps no attributes.
//! - Handles of NFS clients must mean the same after a restart: a mount has no number of its own
//!   that lasts, so the pool's id names the filesystem.

use super::args::{Common, NfsServer, Share};
use super::{output, server_ask, show};
use crate::control::protocol::Command;
use crate::control::{Message, Result};
use serde_json::{json, Value};
use std::path::Path;

/// Share names that Windows takes: at most so many characters.
const MAX_SHARE_CHARS: usize = 80;
/// What a share is called whose directory's name does not serve.
const PLAIN_NAME: &str = "lunfs";

/// What is exported.
#[derive(Debug)]
struct Exported {
    /// The mount point.
    dir: String,
    /// The pool's id: 32 hexadecimal digits.
    pool_id: String,
}

/// Prints a configuration.
pub fn run(verb: &Share, common: &Common) -> Result<()> {
    let exported = exported(&server_ask(common, Command::Status, false)?)?;
    let dir = &exported.dir;
    match verb {
        Share::Samba { name } => {
            let name = name.clone().unwrap_or_else(|| exported.share_name());
            let text = exported.samba(&name);
            let value = json!({ "mount": dir, "share": name, "smb_conf": text });
            show(&value, common, |_| output::line(text.trim_end()));
        }
        Share::Nfs { server, clients } => {
            let kernel = exported.exports(clients);
            let ganesha = exported.ganesha(clients);
            let value = json!({ "mount": dir, "exports": kernel, "ganesha_conf": ganesha });
            show(&value, common, |_| {
                if *server != Some(NfsServer::Ganesha) {
                    output::line(kernel.trim_end());
                }
                if *server != Some(NfsServer::Kernel) {
                    output::line(ganesha.trim_end());
                }
            });
        }
    }
    Ok(())
}

fn exported(status: &Value) -> Result<Exported> {
    let doors = status.get("doors").and_then(Value::as_array).into_iter().flatten();
    let is = |door: &&Value, key: &str, what: &str| door.get(key).is_some_and(|v| v == what);
    let mut open = doors.filter(|door| is(door, "kind", "mount") && is(door, "state", "open"));
    let dir = open.next().and_then(|door| door.get("address")?.as_str());
    let pool_id = status.get("pool").and_then(|pool| pool.get("id")?.as_str());
    let (Some(dir), Some(pool_id)) = (dir, pool_id) else {
        return Err(Message::new("there is nothing to share")
            .why("the pool is served, but not mounted")
            .todo("serve it with --mount DIR")
            .into());
    };
    Ok(Exported { dir: dir.to_owned(), pool_id: pool_id.to_owned() })
}

impl Exported {
    /// The name of the directory, as far as a share may be called so.
    fn share_name(&self) -> String {
        let name = Path::new(&self.dir).file_name().unwrap_or_default().to_string_lossy();
        let plain = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
        let name: String = name.chars().filter(plain).take(MAX_SHARE_CHARS).collect();
        // These mean something else in smb.conf(5).
        let special = ["global", "homes", "printers"].contains(&name.to_lowercase().as_str());
        if name.is_empty() || special {
            PLAIN_NAME.to_owned()
        } else {
            name
        }
    }

    /// A share for smb.conf(5). Snapshots that are named by their time, by commands or by policies,
    /// are the "Previous Versions" of Windows.
    fn samba(&self, name: &str) -> String {
        let dir = &self.dir;
        format!(
            "\
# A share of lunfs for smb.conf, then: smbcontrol all reload-config
[{name}]
  path = {dir}
  read only = no
  # other doors change what a client would keep
  oplocks = no
  level2 oplocks = no
  kernel oplocks = no
  # Previous Versions: snapshots that are named by their time
  vfs objects = shadow_copy2
  shadow:snapdir = .snapshots/.by-time
  shadow:snapdirseverywhere = yes
  shadow:sort = desc
  shadow:localtime = no
  shadow:format = %Y-%m-%dT%H:%M:%SZ
"
        )
    }

    /// A line for exports(5).
    fn exports(&self, clients: &[String]) -> String {
        let dir = escaped(&self.dir);
        let id = uuid(&self.pool_id);
        let option = format!("(rw,sync,no_subtree_check,fsid={id})");
        let list: Vec<String> = clients.iter().map(|who| format!("{who}{option}")).collect();
        format!(
            "# The kernel's NFS server: a line for /etc/exports, then: exportfs -ra\n{dir} {}\n",
            list.join(" ")
        )
    }

    /// A block for nfs-ganesha's configuration (ganesha-export-config(8)).
    fn ganesha(&self, clients: &[String]) -> String {
        let dir = quoted(&self.dir);
        let (major, minor) = (self.number(0..15), self.number(16..31));
        // Of 1 to 65,535; the same pool has the same one, so that two on one host seldom meet.
        let export = self.number(28..32) % 65_535 + 1;
        let clients = clients.join(", ");
        let pseudo = quoted(&format!("/{}", self.share_name()));
        format!(
            "\
# nfs-ganesha: a block for /etc/ganesha/ganesha.conf, then: systemctl reload nfs-ganesha
EXPORT {{
  Export_Id = {export};
  Path = {dir};
  Pseudo = {pseudo};
  Filesystem_Id = {major}.{minor};
  Access_Type = RW;
  Squash = Root_Squash;
  SecType = sys;
  Protocols = 3, 4;
  Transports = TCP;
  # other doors change what the server would keep
  Attr_Expiration_Time = 0;
  FSAL {{ Name = VFS; }}
  CLIENT {{ Clients = {clients}; Access_Type = RW; }}
}}
"
        )
    }

    /// Some of the pool id's digits as a number.
    fn number(&self, digits: std::ops::Range<usize>) -> u64 {
        let digits = self.pool_id.get(digits).unwrap_or_default();
        u64::from_str_radix(digits, 16).unwrap_or(1)
    }
}

/// `8-4-4-4-12`.
fn uuid(id: &str) -> String {
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    parts.map(|range| id.get(range).unwrap_or_default().to_owned()).join("-")
}

/// exports(5): what a path may not hold stands as `\` and three octal digits.
fn escaped(path: &str) -> String {
    let one = |c: char| match c {
        ' ' | '\t' | '\n' | '"' | '#' | '\\' => format!("\\{:03o}", u32::from(c)),
        c => c.to_string(),
    };
    path.chars().map(one).collect()
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(dir: &str) -> Exported {
        Exported { dir: dir.into(), pool_id: "0123456789abcdef0123456789abcdef".into() }
    }

    #[test]
    fn the_pool_must_be_mounted() {
        let door =
            |kind: &str, state: &str| json!({ "kind": kind, "address": "/m", "state": state });
        let status = |doors: Value| json!({ "doors": doors, "pool": { "id": "00" } });
        assert!(exported(&status(json!([door("nbd", "open"), door("mount", "failed")]))).is_err());
        let found = exported(&status(json!([door("nbd", "open"), door("mount", "open")])));
        assert_eq!(found.unwrap().dir, "/m");
    }

    #[test]
    fn shares_are_called_as_their_directory() {
        assert_eq!(at("/mnt/luns").share_name(), "luns");
        assert_eq!(at("/mnt/a [b]").share_name(), "ab");
        assert_eq!(at("/mnt/Homes").share_name(), "lunfs");
        assert_eq!(at("/").share_name(), "lunfs");
    }

    #[test]
    fn odd_paths_are_escaped() {
        let line = at("/mnt/a b").exports(&["10.0.0.0/8".into(), "host".into()]);
        let options = "(rw,sync,no_subtree_check,fsid=01234567-89ab-cdef-0123-456789abcdef)";
        assert!(line.ends_with(&format!("/mnt/a\\040b 10.0.0.0/8{options} host{options}\n")));
        assert!(at("/a\"b").ganesha(&["*".into()]).contains("Path = \"/a\\\"b\";"));
    }

    #[test]
    fn ganeshas_numbers_are_in_range() {
        let block = at("/m").ganesha(&["*".into()]);
        assert!(block.contains("Export_Id = 52720;"), "{block}");
        assert!(block.contains("Filesystem_Id = 5124095576030430.5124095576030430;"), "{block}");
    }
}
