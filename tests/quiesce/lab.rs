//! A hook that records what it is asked, and a filesystem in a file.

use lunfs::quiesce::Hook;
use rustix::process::{kill_process, test_kill_process, Pid, Signal};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// Where the hook and its record are.
#[derive(Clone)]
pub struct Lab {
    dir: PathBuf,
    /// Another hook than the recording one.
    freezes: Option<PathBuf>,
    _kept: Option<Arc<TempDir>>,
}

impl Lab {
    /// A hook that records its word and then runs this.
    pub fn new(freeze: &str, thaw: &str) -> Lab {
        let kept = Arc::new(tempfile::tempdir().unwrap());
        let dir = kept.path().to_path_buf();
        let script = format!(
            "echo $PPID >{dir}/agent\necho $1 >>{dir}/record\n\
             case $1 in freeze) {freeze};; thaw) {thaw};; esac\n",
            dir = dir.display(),
            freeze = if freeze.is_empty() { ":" } else { freeze },
            thaw = if thaw.is_empty() { ":" } else { thaw },
        );
        fs::write(dir.join("hook"), script).unwrap();
        fs::write(dir.join("record"), "").unwrap();
        Lab { dir, freezes: None, _kept: Some(kept) }
    }

    /// The hook that freezes a filesystem.
    pub fn freezing(at: &Path) -> Lab {
        let lab = Lab::new("", "");
        fs::write(lab.dir.join("freezes"), at.as_os_str().as_encoded_bytes()).unwrap();
        Lab { freezes: Some(at.to_path_buf()), ..lab }
    }

    pub fn hook(&self) -> Hook {
        match &self.freezes {
            Some(path) => Hook::Fsfreeze(path.clone()),
            // In the shell's place: its parent is the agent.
            None => Hook::Exec(format!("exec sh {}/hook", self.dir.display())),
        }
    }

    pub fn record(&self, word: &str) {
        let mut file = OpenOptions::new().append(true).open(self.dir.join("record")).unwrap();
        writeln!(file, "{word}").unwrap();
    }

    pub fn recorded(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("record")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    pub fn wait_for(&self, word: &str) {
        self.wait_until(word, || self.recorded().iter().any(|had| had == word));
    }

    pub fn wait_until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.recorded());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The agent that called the hook last.
    pub fn agent(&self) -> Pid {
        let text = fs::read_to_string(self.dir.join("agent")).unwrap();
        Pid::from_raw(text.trim().parse().unwrap()).unwrap()
    }

    pub fn kill_agent(&self) {
        kill_process(self.agent(), Signal::KILL).unwrap();
    }

    /// The same of an agent whose hook leaves no trace: it is the one with the hook in its words.
    pub fn kill_agent_by_hook(&self) {
        let hook = self.hook().to_string();
        let of_hook = |pid: &i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|byte| *byte == 0).any(|word| word == hook.as_bytes())
        };
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let found: Vec<i32> = pids.filter(of_hook).collect();
        assert_eq!(found.len(), 1);
        kill_process(Pid::from_raw(found[0]).unwrap(), Signal::KILL).unwrap();
    }

    /// This program again as the command: it runs the ignored test `name` over this lab.
    pub fn command(&self, name: &str) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--ignored"]).env("LUNFS_CHILD", &self.dir);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The lab that such a child was given.
    pub fn of_child() -> Option<Lab> {
        let dir = PathBuf::from(std::env::var_os("LUNFS_CHILD")?);
        let freezes = fs::read_to_string(dir.join("freezes")).ok().map(PathBuf::from);
        Some(Lab { dir, freezes, _kept: None })
    }
}

pub fn alive(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
}

/// An ext4 filesystem in a file, mounted.
pub struct Loop {
    pub dir: PathBuf,
    _kept: TempDir,
}

impl Loop {
    /// `None`, and a word about it, where nothing can be mounted by a loop device.
    pub fn new() -> Option<Loop> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            eprintln!("skipped: needs root and loop devices");
            return None;
        }
        let kept = tempfile::tempdir().unwrap();
        let (image, dir) = (kept.path().join("image"), kept.path().join("at"));
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        fs::create_dir(&dir).unwrap();
        let run = |program: &str, args: &[&Path]| {
            let done = Command::new(program).args(args).output().unwrap();
            assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
        };
        run("mke2fs", &[Path::new("-qFt"), Path::new("ext4"), &image]);
        run("mount", &[Path::new("-o"), Path::new("loop"), &image, &dir]);
        Some(Loop { dir, _kept: kept })
    }

    /// A process that writes.
    pub fn writer(&self) -> Child {
        Command::new("touch").arg(self.dir.join("file")).spawn().unwrap()
    }

    pub fn write_works(&self) {
        let mut writer = self.writer();
        let deadline = Instant::now() + PATIENCE;
        while writer.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it is frozen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Where a test failed it may be frozen.
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.dir).output();
        let _ = Command::new("umount").arg("-l").arg(&self.dir).output();
    }
}
