//! A temporary directory with a pool in it, the program, and its server.

use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// What came of a command.
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// A place to try things.
pub struct Lab {
    dir: TempDir,
    server: Option<Child>,
    has_pool: bool,
}

/// A number of bytes as JSON has it.
pub fn bytes(count: u64) -> Value {
    count.into()
}

impl Lab {
    /// Without a pool.
    pub fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        Lab { dir, server: None, has_pool: false }
    }

    /// With one, which commands are about unless they name another.
    pub fn with_pool() -> Lab {
        let mut lab = Lab::new();
        lab.good("pool create pool --size 128M");
        lab.has_pool = true;
        lab
    }

    /// As `with_pool`, on two devices: `pool` and `q`.
    pub fn with_mirror() -> Lab {
        let mut lab = Lab::new();
        lab.good("pool create pool q --size 128M --redundancy mirror");
        lab.has_pool = true;
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lunfs"));
        command.args(line.split(' ').filter(|word| !word.is_empty()));
        command.current_dir(self.dir.path()).env_remove("LUNFS_POOL");
        command.env("XDG_RUNTIME_DIR", self.dir.path());
        if self.has_pool {
            command.env("LUNFS_POOL", self.path("pool"));
        }
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command.
    pub fn run(&self, line: &str) -> Done {
        let Output { status, stdout, stderr } = self.command(line).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Done { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
    }

    /// Runs a command that must work; what it printed.
    pub fn good(&self, line: &str) -> String {
        let done = self.run(line);
        assert_eq!(done.code, 0, "{line}: {}", done.err);
        done.out
    }

    /// The same with `--json`.
    pub fn json(&self, line: &str) -> Value {
        let out = self.good(&format!("{line} --json"));
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{line}: {e}: {out}"))
    }

    /// Runs a command that must be refused in at most three lines, one of which has the word.
    pub fn refused(&self, line: &str, word: &str) {
        let done = self.run(line);
        assert_eq!(done.code, 1, "{line}: {}{}", done.out, done.err);
        let lines = done.err.lines().count();
        assert!((1..=3).contains(&lines), "{line}: {}", done.err);
        assert!(done.err.to_lowercase().contains(&word.to_lowercase()), "{line}: {}", done.err);
    }

    /// Runs a command with bytes at its standard input; what came out.
    pub fn piped(&self, line: &str, input: &[u8]) -> Vec<u8> {
        let mut command = self.command(line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let feeding = std::thread::spawn(move || stdin.write_all(&input));
        let done = child.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{line}: {err}");
        feeding.join().unwrap().unwrap();
        done.stdout
    }

    /// Begins an import from a pipe that brings half of it, then interrupts the command.
    pub fn interrupted_import(&self, lun: &str) {
        let mut command = self.command(&format!("lun import {lun} - --size 64M"));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&vec![7; 8 << 20]).unwrap();
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let done = child.wait_with_output().unwrap();
        assert!(!done.status.success());
        drop(stdin);
    }

    /// Waits until the server has undone what a command that went away had begun.
    pub fn until_no_luns(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.json("lun list") != Value::Array(vec![]) {
            assert!(Instant::now() < deadline, "a half imported LUN is left");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Serves the pool; what the server said up to the word.
    pub fn serve(&mut self, doors: &str) -> String {
        self.serve_line(&format!("serve pool {doors}"))
    }

    /// The same with the whole line.
    pub fn serve_line(&mut self, line: &str) -> String {
        let mut command = self.command(line);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        self.server = Some(child);
        let (told, hear) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = told.send(line);
            }
        });
        let mut said = String::new();
        loop {
            let line = hear.recv_timeout(PATIENCE).expect("the server does not get ready");
            if line == "ready" {
                return said;
            }
            said += &line;
            said.push('\n');
        }
    }

    fn wait(&mut self) -> i32 {
        let mut server = self.server.take().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = server.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = server.kill();
        let _ = server.wait();
        panic!("the server does not end");
    }

    /// `lunfs stop`: the pool is free when it returns.
    pub fn stop(&mut self) {
        self.good("stop");
        self.good("lun list");
        assert_eq!(self.wait(), 0);
    }

    /// SIGTERM.
    pub fn terminate(&mut self) {
        let id = self.server.as_ref().unwrap().id();
        let done = Command::new("kill").arg(id.to_string()).status().unwrap();
        assert!(done.success());
        assert_eq!(self.wait(), 0);
    }

    /// Sends the server a signal: its name. The server's process id.
    pub fn signal(&self, name: &str) -> u32 {
        let id = self.server.as_ref().unwrap().id();
        let done = Command::new("kill").args([&format!("-{name}"), &id.to_string()]).status();
        assert!(done.unwrap().success());
        id
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.server.as_mut().unwrap().kill().unwrap();
        self.wait();
    }

    /// Random bytes at the front and the end, a hole between.
    pub fn sparse_image(&self, name: &str, size_bytes: u64) {
        let mut noise = vec![0u8; 1 << 20];
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        for byte in &mut noise {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = (state >> 32) as u8;
        }
        let file = fs::File::create(self.path(name)).unwrap();
        file.set_len(size_bytes).unwrap();
        file.write_all_at(&noise, 0).unwrap();
        file.write_all_at(&noise, size_bytes - noise.len() as u64).unwrap();
    }

    pub fn allocated_bytes(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).unwrap().blocks() * 512
    }

    /// Half images that were left behind.
    pub fn partial_files(&self) -> usize {
        let names = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().ends_with(".partial")).count()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
