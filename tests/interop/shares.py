"""The system's file servers over a mount, and clients of theirs: smbd with libsmbclient's Python
binding, nfs-ganesha with libnfs (through ctypes).

Both servers want ports of their own and rpcbind, so a script that uses them runs in a network
namespace of its own (`alone`). They are configured with what `lunfs share` prints.
"""

import ctypes as c
import hashlib
import os
import random
import subprocess
import sys
import threading
import time

from harness import KIB, MIB, Need, die_with_parent, require, tool

START_SECONDS = 30
running = []
INSIDE = "LUNFS_TEST_NAMESPACE"
# Its processes end with it: rpcbind outlives its parent otherwise.
NAMESPACES = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]

lib = c.CDLL("libnfs.so.13")
lib.nfs_init_context.restype = c.c_void_p
lib.nfs_get_error.restype = c.c_char_p
POSITIONED = [c.c_void_p, c.c_void_p, c.c_uint64, c.c_uint64, c.c_void_p]
lib.nfs_pread.argtypes = lib.nfs_pwrite.argtypes = POSITIONED
lib.nfs_lockf.argtypes = [c.c_void_p, c.c_void_p, c.c_int, c.c_uint64]
lib.nfs_ftruncate.argtypes = [c.c_void_p, c.c_void_p, c.c_uint64]
# libnfs's own numbers.
F_LOCK, F_TLOCK, F_ULOCK = 0, 1, 2


def alone():
    """Goes on where all ports are free, loopback is all there is, and nobody else's /run."""
    require("unshare", "ip", "smbd", "ganesha.nfsd", "rpcbind", "smbclient", "smbtorture")
    if os.environ.get(INSIDE):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        leave_mounts_of_others()
        subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
        return
    os.environ[INSIDE] = "1"
    os.execvp("unshare", ["unshare", *NAMESPACES, sys.executable, *sys.argv])


def leave_mounts_of_others():
    """A mount that also stands in this namespace would not end where it belongs."""
    with open("/proc/self/mounts") as mounts:
        fuse = [line.split()[1] for line in mounts if line.split()[2].startswith("fuse")]
    for path in reversed(fuse):
        subprocess.run(["umount", "-l", path], check=True)


def start(log, *args):
    """A server in a session of its own: smbd ends with all of its group."""
    with open(log, "ab") as out:
        server = subprocess.Popen([str(a) for a in args], stdout=out, stderr=out,
                                  stdin=subprocess.DEVNULL, preexec_fn=die_with_parent,
                                  start_new_session=True)
    running.append(server)
    return server


def stop_leftovers():
    """Servers of a case that failed."""
    while running:
        stop(running[-1])


def stop(server):
    running.remove(server)
    server.terminate()
    try:
        server.wait(START_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def until(what, good):
    deadline = time.monotonic() + START_SECONDS
    while not good():
        if time.monotonic() > deadline:
            raise Need(what)
        time.sleep(0.05)


class Samba:
    """smbd with the share that `lunfs share samba` prints. Guests are root."""

    def __init__(self, lab):
        base = lab.path("smb")
        for name in ("", "private", "lock", "state", "cache", "pid", "ncalrpc"):
            os.makedirs(os.path.join(base, name), exist_ok=True)
        share = lab.do("share", "samba", "--name", "luns")
        self.conf, self.log = os.path.join(base, "smb.conf"), os.path.join(base, "log")
        with open(self.conf, "w") as out:
            out.write(f"""[global]
  server role = standalone server
  map to guest = Bad User
  guest account = root
  bind interfaces only = yes
  interfaces = lo
  disable netbios = yes
  private dir = {base}/private
  lock directory = {base}/lock
  state directory = {base}/state
  cache directory = {base}/cache
  pid directory = {base}/pid
  ncalrpc dir = {base}/ncalrpc
  load printers = no
  printcap name = /dev/null
  disable spoolss = yes
{share}
  guest ok = yes
  force user = root
""")
        self.server = start(self.log, "smbd", "-F", "--no-process-group", "--debug-stdout",
                            "-s", self.conf)
        until("smbd answers", lambda: self.client("ls", good=False).returncode == 0)

    def client(self, *commands, good=True):
        """smbclient with these commands."""
        return tool("smbclient", "-s", self.conf, "-N", "//127.0.0.1/luns", "-c",
                    "; ".join(commands), good=good)

    def connect(self):
        """A client of libsmbclient: its handles stay open."""
        from samba import credentials
        from samba.samba3 import libsmb_samba_internal as libsmb
        from samba.samba3 import param
        settings = param.get_context()
        settings.load(self.conf)
        guest = credentials.Credentials()
        guest.set_anonymous()
        return libsmb.Conn("127.0.0.1", "luns", settings, guest)

    def close(self):
        stop(self.server)


class Ganesha:
    """nfs-ganesha with the export that `lunfs share nfs` prints, and rpcbind. Root is root."""

    def __init__(self, lab):
        base = lab.path("nfs")
        os.makedirs(os.path.join(base, "recovery"), exist_ok=True)
        self.base, self.path = base, lab.mount
        export = lab.do("share", "nfs", "--server", "ganesha", "--clients", "127.0.0.1")
        with open(os.path.join(base, "conf"), "w") as out:
            out.write(f"""NFS_CORE_PARAM {{ Enable_RQUOTA = false; }}
NFSv4 {{
  Only_Numeric_Owners = true; Allow_Numeric_Owners = true; Graceless = true;
  RecoveryRoot = "{base}/recovery"; RecoveryBackend = fs;
}}
{export.replace("Root_Squash", "No_Root_Squash")}
""")
        self.rpcbind = start(os.path.join(base, "rpcbind.log"), "rpcbind", "-f")
        self.run()

    def run(self):
        self.server = start(os.path.join(self.base, "out"), "ganesha.nfsd", "-F", "-L",
                            os.path.join(self.base, "log"), "-f", os.path.join(self.base, "conf"),
                            "-p", os.path.join(self.base, "pid"), "-N", "NIV_EVENT")

        def answers():
            try:
                Nfs(self.path).close()
                return True
            except OSError:
                return False
        until("nfs-ganesha answers", answers)

    def end(self):
        stop(self.server)

    def close(self):
        self.end()
        stop(self.rpcbind)


class Nfs:
    """A client of libnfs, root there; errors are OSError."""

    def __init__(self, path, version=3):
        self.context = c.c_void_p(lib.nfs_init_context())
        lib.nfs_set_version(self.context, version)
        # NFS 4 knows clients by these.
        lib.nfs4_set_client_name(self.context, f"client {id(self)}".encode())
        lib.nfs4_set_verifier(self.context, id(self).to_bytes(8, "little"))
        lib.nfs_set_uid(self.context, 0)
        lib.nfs_set_gid(self.context, 0)
        self.check(lib.nfs_mount(self.context, b"127.0.0.1", path.encode()))

    def check(self, result):
        if result < 0:
            text = lib.nfs_get_error(self.context).decode(errors="replace")
            raise OSError(-result, f"{os.strerror(-result)}: {text}")
        return result

    def do(self, name, *paths):
        """nfs_NAME of paths: mkdir, rmdir, unlink, rename, link, symlink."""
        self.check(getattr(lib, f"nfs_{name}")(self.context, *[p.encode() for p in paths]))

    def open(self, path, flags=os.O_RDONLY):
        handle = c.c_void_p()
        name = path.encode()
        self.check(lib.nfs_open(self.context, name, flags, c.byref(handle)))
        return handle

    def create(self, path, mode=0o644):
        handle = c.c_void_p()
        self.check(lib.nfs_creat(self.context, path.encode(), mode, c.byref(handle)))
        return handle

    def shut(self, handle):
        self.check(lib.nfs_close(self.context, handle))

    def read(self, handle, offset, length):
        out = c.create_string_buffer(length)
        done = 0
        while done < length:
            count = min(length - done, MIB)
            at = c.byref(out, done)
            got = self.check(lib.nfs_pread(self.context, handle, offset + done, count, at))
            if got == 0:
                break
            done += got
        return out.raw[:done]

    def write(self, handle, offset, data):
        for at in range(0, len(data), 256 * KIB):
            piece = data[at:at + 256 * KIB]
            got = self.check(lib.nfs_pwrite(self.context, handle, offset + at, len(piece), piece))
            if got != len(piece):
                raise OSError(5, f"{got} bytes of {len(piece)} were written")

    def size(self, handle):
        words = (c.c_uint64 * 32)()
        self.check(lib.nfs_fstat64(self.context, handle, words))
        return words[7]

    def lock(self, handle, how, length):
        """nfs_lockf from offset 0 on."""
        return self.check(lib.nfs_lockf(self.context, handle, how, length))

    def close(self):
        lib.nfs_destroy_context(self.context)


def make_tree(top, total_bytes, seed=1):
    """Files of mixed sizes in nested directories under `top`; gives path -> SHA-256."""
    rng = random.Random(seed)
    sums, left, number = {}, total_bytes, 0
    while left > 0:
        size = min(left, rng.choice([0, 1, 4095, 4096, 70_000, MIB + 17, total_bytes // 8]))
        size = max(size, 1) if number > 8 else size
        path = f"d{number % 3}/e{number % 5}/file {number} ä"
        os.makedirs(os.path.join(top, os.path.dirname(path)), exist_ok=True)
        data = rng.randbytes(size)
        with open(os.path.join(top, path), "wb") as out:
            out.write(data)
        sums[path] = hashlib.sha256(data).hexdigest()
        left, number = left - size, number + 1
    return sums


def sums_of(top):
    """The same of a tree that is there."""
    found = {}
    for folder, _, files in os.walk(top):
        for name in files:
            path = os.path.join(folder, name)
            with open(path, "rb") as data:
                digest = hashlib.file_digest(data, "sha256").hexdigest()
            found[os.path.relpath(path, top)] = digest
    return found


class BlockWriter(threading.Thread):
    """Writes a LUN over iSCSI, each block of 4 KiB its own turn's pattern, until it is ended."""

    def __init__(self, session, blocks):
        super().__init__(daemon=True)
        self.session, self.blocks = session, blocks
        self.turns, self.wrong, self.over = 0, None, False
        self.start()

    def pattern(self, turn):
        return turn.to_bytes(8, "little") * (4 * KIB // 8)

    def run(self):
        try:
            while not self.over:
                offset = self.turns % self.blocks * 4 * KIB
                self.session.write(offset, self.pattern(self.turns))
                self.turns += 1
        except Exception as error:
            self.wrong = error

    def end(self):
        self.over = True
        self.join()

    def expected(self):
        """All blocks after `end`."""
        last = [max(range(block, self.turns, self.blocks), default=None)
                for block in range(min(self.blocks, self.turns))]
        return b"".join(self.pattern(turn) for turn in last)
