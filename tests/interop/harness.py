"""What every script of this folder stands on: a pool in a temporary directory, a server over it,
checks that are counted, and a clean end whatever happens.

A script is a list of cases; each case is a function that takes a Lab. `run(cases)` gives each a
fresh Lab, goes on after a failed check, and ends with one line and the exit status.

Environment: LUNFS is the program under test (default: `lunfs` on PATH); KEEP=1 leaves the
directories behind; ONLY=word runs the cases whose names contain it.
"""

import ctypes
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

LUNFS = os.environ.get("LUNFS", "lunfs")
IQN = "iqn.2026-11.local.lunfs:"
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
READY_SECONDS = 60
STOP_SECONDS = 60
COMMAND_SECONDS = 300

passed = 0
failed = []
quiet = False  # true: only failures are shown


class Need(Exception):
    """A check without which the rest of the case makes no sense."""


def check(text, good, detail=""):
    """Counts one check, prints it, and says whether it was good."""
    global passed
    if good:
        passed += 1
        if not quiet:
            print(f"  ok    {text}")
    else:
        failed.append(text)
        print(f"  FAIL  {text}{': ' + str(detail)[:2000] if detail != '' else ''}")
    sys.stdout.flush()
    return bool(good)


def equal(text, got, want):
    """A check that two things are the same, which shows both when they are not."""
    return check(text, got == want, f"got {got!r}, not {want!r}")


def need(text, good, detail=""):
    """A check that ends the case when it fails."""
    if not check(text, good, detail):
        raise Need(text)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def die_with_parent():
    """Linux PR_SET_PDEATHSIG (1): no server outlives a test that was killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def tool(*args, good=True, seconds=COMMAND_SECONDS, **more):
    """Runs a client. Its failure is a failed check unless `good` is False."""
    done = subprocess.run([str(a) for a in args], capture_output=True, timeout=seconds, **more)
    done.text = (done.stdout + done.stderr).decode(errors="replace").strip()
    if good:
        name = " ".join(os.path.basename(str(a)) if i == 0 else str(a) for i, a in enumerate(args))
        need(name[:160], done.returncode == 0, f"exit {done.returncode}: {done.text}")
    return done


def require(*programs):
    """Ends the script when a program is not installed: a proof is never skipped quietly."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [p for p in programs if not shutil.which(p, path=path)]
    if missing:
        sys.exit(f"not installed: {' '.join(missing)}\n`make setup` installs what the tests need")
    os.environ["PATH"] = path


def find(value, key):
    """The first value of `key` anywhere in a JSON document."""
    if isinstance(value, dict):
        if key in value:
            return value[key]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            got = find(inner, key)
            if got is not None:
                return got
    return None


class Lab:
    """A temporary directory with one pool in it, and the server that serves it."""

    def __init__(self, size="2G"):
        self.dir = tempfile.mkdtemp(prefix="lunfs-test-")
        self.pool = os.path.join(self.dir, "pool.lunfs")
        self.mount = os.path.join(self.dir, "mnt")
        self.runtime = os.path.join(self.dir, "run")
        self.log_path = os.path.join(self.dir, "server.log")
        os.mkdir(self.mount)
        os.mkdir(self.runtime, 0o700)
        self.size = size
        self.server = None
        self.iscsi_port = self.nbd_port = None
        self.env = dict(os.environ, XDG_RUNTIME_DIR=self.runtime, LUNFS_POOL=self.pool)

    # The command line.

    def lunfs(self, *args, seconds=COMMAND_SECONDS, **more):
        """Runs a command as it is and gives what came of it."""
        done = subprocess.run([LUNFS] + [str(a) for a in args], capture_output=True, env=self.env,
                              timeout=seconds, **more)
        done.err = done.stderr.decode(errors="replace").strip()
        done.out = done.stdout.decode(errors="replace").strip()
        return done

    def do(self, *args, **more):
        """Runs a command that must work."""
        done = self.lunfs(*args, **more)
        need("lunfs " + " ".join(str(a) for a in args), done.returncode == 0,
             f"exit {done.returncode}: {done.err}")
        return done.out

    def ask(self, *args):
        """Runs a command with --json that must work, and gives its answer."""
        out = self.do(*args, "--json")
        try:
            return json.loads(out) if out else None
        except ValueError:
            raise Need(f"lunfs {args} --json printed no JSON: {out[:200]}") from None

    def refused(self, text, pattern, *args, code=1, **more):
        """A command that must be refused: its code, and at most three lines that say why."""
        done = self.lunfs(*args, **more)
        short = code == 2 or 1 <= len(done.err.splitlines()) <= 3
        right = done.returncode == code and short and re.search(pattern, done.err, re.I | re.S)
        return check(f"refused: {text}", right, f"exit {done.returncode}, said: {done.err!r}")

    def make_pool(self):
        self.do("pool", "create", self.pool, "--size", self.size)

    # The server.

    def serve(self, mount=False, iscsi=False, nbd=False, unix=False, extra=()):
        """Starts a server on free ports and waits until it says that it is ready."""
        args = [LUNFS, "serve", self.pool, *extra]
        if mount:
            args += ["--mount", self.mount]
        if iscsi:
            self.iscsi_port = self.iscsi_port or free_port()
            args += ["--iscsi", f"127.0.0.1:{self.iscsi_port}"]
        if nbd:
            self.nbd_port = self.nbd_port or free_port()
            args += ["--nbd", f"127.0.0.1:{self.nbd_port}"]
        if unix:
            args += ["--nbd", f"unix:{self.unix()}"]
        with open(self.log_path, "ab") as log:
            mark = log.tell()
            self.server = subprocess.Popen(args, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                           env=self.env, preexec_fn=die_with_parent)
        self.wait_ready(mark)

    def wait_ready(self, mark):
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            text = self.log_since(mark)
            if re.search(r"^ready\b", text, re.M | re.I):
                return
            if self.server.poll() is not None:
                raise Need(f"the server ended with {self.server.returncode}: {text[-2000:]}")
            time.sleep(0.02)
        raise Need(f"the server was not ready in {READY_SECONDS} s: {self.log_since(mark)[-2000:]}")

    def log_since(self, mark):
        with open(self.log_path, "rb") as log:
            log.seek(mark)
            return log.read().decode(errors="replace")

    def unix(self):
        return os.path.join(self.dir, "nbd.sock")

    def stop(self):
        """An orderly end by the command; False when it did not work."""
        if not self.server:
            return True
        self.lunfs("stop", "--pool", self.pool)
        try:
            code = self.server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        self.server = None
        return code == 0

    def kill(self):
        """kill -9, and the mount that is left behind taken away."""
        if self.server:
            self.server.kill()
            self.server.wait()
            self.server = None
        self.unmount()

    def unmount(self):
        if self.mounted():
            subprocess.run(["umount", "-l", self.mount], capture_output=True)
        if self.mounted():
            subprocess.run(["fusermount3", "-uz", self.mount], capture_output=True)

    def mounted(self):
        with open("/proc/self/mounts") as mounts:
            return any(line.split()[1] == self.mount for line in mounts)

    def verify_pool(self, text="pool check finds nothing"):
        """The offline check, with the server gone."""
        done = self.lunfs("pool", "check", self.pool)
        return check(text, done.returncode == 0, f"exit {done.returncode}: {done.out} {done.err}")

    def close(self):
        self.kill()
        if not os.environ.get("KEEP"):
            shutil.rmtree(self.dir, ignore_errors=True)

    # Where clients find it.

    def nbd_url(self, name):
        return f"nbd://127.0.0.1:{self.nbd_port}/{name}"

    def iscsi_url(self, name):
        return f"iscsi://127.0.0.1:{self.iscsi_port}/{IQN}{name.lower()}/0"

    def data(self, name):
        return os.path.join(self.mount, name, "data")

    def path(self, name):
        return os.path.join(self.dir, name)

    def vm_hwm_bytes(self):
        with open(f"/proc/{self.server.pid}/status") as status:
            return int(re.search(r"VmHWM:\s+(\d+) kB", status.read()).group(1)) * KIB


def secret_file(lab, name, text=None):
    text = text or secrets.token_hex(16)
    path = lab.path(name)
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as out:
        out.write(text + "\n")
    return path, text


def define(lab, name, *args, chap=None, mutual=None, verb="add"):
    """Defines an initiator; gives its secrets."""
    made = []
    for flag, user in (("chap", chap), ("mutual", mutual)):
        if user:
            path, text = secret_file(lab, f"{flag}.secret")
            args += (f"--{flag}-user", user, f"--{flag}-secret-file", path)
            made.append(text)
    lab.do("initiator", verb, name, *args)
    return made


def run_case(case):
    print(f"{case.__name__}: {(case.__doc__ or '').strip().splitlines()[0]}", flush=True)
    lab = Lab()
    try:
        case(lab)
    except Need as why:
        if not failed or failed[-1] != str(why):
            check(case.__name__, False, why)
    except Exception:
        check(case.__name__, False, traceback.format_exc())
    finally:
        before = len(failed)
        if lab.server and lab.server.poll() is not None:
            check("the server is still alive at the end of the case", False,
                  lab.log_since(0)[-2000:])
        lab.close()
    return len(failed) == before


def run(cases):
    """Runs the cases and ends the program: 0 when every check was good."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    only = os.environ.get("ONLY", "")
    for case in cases:
        if only in case.__name__:
            run_case(case)
    name = os.path.basename(sys.argv[0])
    seconds = time.monotonic() - started
    print(f"{name}: {passed} checks passed, {len(failed)} failed in {seconds:.0f} s")
    for text in failed:
        print(f"  failed: {text[:200]}")
    sys.exit(1 if failed or not passed else 0)
