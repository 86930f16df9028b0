//! The QEMU guest agent: lines of JSON over a Unix socket (docs/interop/qemu-ga of QEMU).
//!
//! Each conversation begins with `guest-sync-delimited`: what an earlier client left unread is
//! skipped up to the byte FFh before the answer. While a guest is frozen its agent answers only
//! that, the status and the thaw.

use super::drivers::Failure;
use serde_json::{json, Value};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest answer that is taken.
const MAX_ANSWER_BYTES: usize = 1 << 16;
/// Stands before the answer to `guest-sync-delimited`.
const SENTINEL: u8 = 0xff;

/// The agent of one guest.
pub struct Guest {
    socket: PathBuf,
    syncs: u32,
}

impl Guest {
    /// Nothing is asked yet.
    pub fn new(socket: &Path) -> Guest {
        Guest { socket: socket.to_path_buf(), syncs: std::process::id() & 0xffff }
    }

    /// Freezes all filesystems of the guest. Refused where somebody else has frozen them.
    pub fn freeze(&mut self, limit: Duration) -> Result<(), Failure> {
        let mut talk = self.connect(limit)?;
        let status = talk.ask("guest-fsfreeze-status", Value::Null)?;
        if status != "thawed" {
            return Err(Failure::Refused(format!("the guest's filesystems are {status} already")));
        }
        let count = talk.ask("guest-fsfreeze-freeze", Value::Null)?;
        if count.as_u64().is_none_or(|count| count == 0) {
            let _ = talk.ask("guest-fsfreeze-thaw", Value::Null);
            return Err(Failure::Refused("the guest froze no filesystem".to_owned()));
        }
        Ok(())
    }

    /// Thaws them. Asks again where the first answer was that nothing was frozen.
    pub fn thaw(&mut self, limit: Duration) -> Result<(), Failure> {
        let mut talk = self.connect(limit)?;
        talk.ask("guest-fsfreeze-thaw", Value::Null)?;
        match talk.ask("guest-fsfreeze-status", Value::Null)? {
            status if status == "thawed" => Ok(()),
            status => Err(Failure::Refused(format!("the guest's filesystems are still {status}"))),
        }
    }

    fn connect(&mut self, limit: Duration) -> Result<Talk, Failure> {
        let shown = self.socket.display().to_string();
        let stream = UnixStream::connect(&self.socket);
        let stream = stream.map_err(|error| Failure::Refused(format!("{shown}: {error}")))?;
        let mut talk = Talk { stream, deadline: Instant::now() + limit, unread: Vec::new() };
        self.syncs = self.syncs.wrapping_add(1);
        let id = u64::from(self.syncs);
        talk.send(&[SENTINEL])?;
        talk.tell("guest-sync-delimited", json!({ "id": id }))?;
        loop {
            // Answers to an earlier client's questions may come first.
            let line = talk.line()?;
            let Some(at) = line.iter().rposition(|&byte| byte == SENTINEL) else { continue };
            let answer: Option<Value> =
                serde_json::from_slice(line.get(at + 1..).unwrap_or(&[])).ok();
            if answer.and_then(|answer| answer.get("return")?.as_u64()) == Some(id) {
                return Ok(talk);
            }
        }
    }
}

struct Talk {
    stream: UnixStream,
    deadline: Instant,
    unread: Vec<u8>,
}

impl Talk {
    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, Failure> {
        self.tell(command, arguments)?;
        let line = self.line()?;
        let answer: Value = serde_json::from_slice(&line)
            .map_err(|_| Failure::Refused(format!("{command}: an answer that is no JSON")))?;
        if let Some(value) = answer.get("return") {
            return Ok(value.clone());
        }
        let why = answer.pointer("/error/desc").and_then(Value::as_str);
        Err(Failure::Refused(format!("{command}: {}", why.unwrap_or("refused without a reason"))))
    }

    fn tell(&mut self, command: &str, arguments: Value) -> Result<(), Failure> {
        let mut question = json!({ "execute": command });
        if let (Some(fields), false) = (question.as_object_mut(), arguments.is_null()) {
            fields.insert("arguments".to_owned(), arguments);
        }
        self.send(format!("{question}\n").as_bytes())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stream.set_write_timeout(Some(self.rest()?)).map_err(|e| failed(&e))?;
        self.stream.write_all(bytes).map_err(|e| failed(&e))
    }

    /// The next line that is not empty, without its end.
    fn line(&mut self) -> Result<Vec<u8>, Failure> {
        loop {
            if let Some(at) = self.unread.iter().position(|&byte| byte == b'\n') {
                let mut line: Vec<u8> = self.unread.drain(..=at).collect();
                line.truncate(at);
                if !line.trim_ascii().is_empty() {
                    return Ok(line);
                }
                continue;
            }
            if self.unread.len() > MAX_ANSWER_BYTES {
                return Err(Failure::Refused("an answer that is too long".to_owned()));
            }
            self.stream.set_read_timeout(Some(self.rest()?)).map_err(|e| failed(&e))?;
            let mut some = [0; 4096];
            match self.stream.read(&mut some).map_err(|e| failed(&e))? {
                0 => return Err(Failure::Refused("the agent hung up".to_owned())),
                count => self.unread.extend_from_slice(some.get(..count).unwrap_or_default()),
            }
        }
    }

    fn rest(&self) -> Result<Duration, Failure> {
        let rest = self.deadline.saturating_duration_since(Instant::now());
        (!rest.is_zero()).then_some(rest).ok_or_else(late)
    }
}

fn late() -> Failure {
    Failure::TimedOut("the guest's agent did not answer in time".to_owned())
}

fn failed(error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => late(),
        _ => Failure::Refused(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    /// An agent that answers as `answer` says; what it was asked.
    fn agent(
        answer: impl Fn(&str, &Value) -> Option<Vec<u8>> + Send + 'static,
        clients: usize,
    ) -> (tempfile::TempDir, Guest, JoinHandle<Vec<String>>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qga.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for _ in 0..clients {
                let (mut stream, _) = listener.accept().unwrap();
                let reader = BufReader::new(stream.try_clone().unwrap());
                for line in reader.split(b'\n').map_while(|line| line.ok()) {
                    let start = line.iter().rposition(|&b| b == SENTINEL).map_or(0, |at| at + 1);
                    let question: Value = serde_json::from_slice(&line[start..]).unwrap();
                    let name = question["execute"].as_str().unwrap().to_owned();
                    let Some(bytes) = answer(&name, &question["arguments"]) else { continue };
                    asked.push(name);
                    stream.write_all(&bytes).unwrap();
                }
            }
            asked
        });
        (dir, Guest::new(&path), thread)
    }

    fn usual(name: &str, arguments: &Value, status: &str) -> Option<Vec<u8>> {
        let value = match name {
            "guest-sync-delimited" => {
                let mut bytes = b"{\"return\": 12}\n".to_vec(); // Left from before.
                bytes.push(SENTINEL);
                bytes.extend(format!("{{\"return\": {}}}\n", arguments["id"]).bytes());
                return Some(bytes);
            }
            "guest-fsfreeze-status" => json!({ "return": status }),
            _ => json!({ "return": 2 }),
        };
        Some(format!("{value}\n").into_bytes())
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_is_synchronized_asked_and_frozen() {
        let (_dir, mut guest, asked) = agent(|name, args| usual(name, args, "thawed"), 2);
        guest.freeze(10 * SECOND).unwrap();
        guest.thaw(10 * SECOND).unwrap();
        let freeze = ["guest-sync-delimited", "guest-fsfreeze-status", "guest-fsfreeze-freeze"];
        let thaw = ["guest-sync-delimited", "guest-fsfreeze-thaw", "guest-fsfreeze-status"];
        assert_eq!(asked.join().unwrap(), [freeze, thaw].concat());
    }

    #[test]
    fn what_somebody_else_froze_is_left_alone() {
        let (_dir, mut guest, asked) = agent(|name, args| usual(name, args, "frozen"), 1);
        let froze = guest.freeze(10 * SECOND);
        assert!(matches!(froze, Err(Failure::Refused(why)) if why.contains("frozen")));
        assert!(!asked.join().unwrap().contains(&"guest-fsfreeze-freeze".to_owned()));
    }

    #[test]
    fn a_mute_a_broken_and_a_lost_agent_are_told_apart() {
        let (_dir, mut guest, _mute) = agent(|_, _| None, 1);
        assert_eq!(guest.freeze(Duration::from_millis(50)), Err(late()));
        let error = br#"{"error": {"class": "GenericError", "desc": "no such command"}}"#;
        let (_dir, mut guest, _broken) = agent(
            move |name, args| match name {
                "guest-sync-delimited" => usual(name, args, ""),
                _ => Some([error.as_slice(), b"\n"].concat()),
            },
            1,
        );
        let refused = guest.freeze(10 * SECOND).unwrap_err();
        assert!(refused.why().contains("no such command"), "{refused:?}");
        let mut lost = Guest::new(Path::new("/nonexistent/qga.sock"));
        assert!(matches!(lost.thaw(SECOND), Err(Failure::Refused(_))));
    }
}
