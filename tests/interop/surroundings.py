"""What happens around the server: it is told to stop while it works, its clients are killed, the
disk under its pool is full, it has no more file descriptors, a client never reads, a mount is left
dead."""

import contextlib
import errno
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import nbd

from blockclients import Iscsi, ScsiError, nbd_connect
from harness import IQN, MIB, check, die_with_parent, equal, need, run

BLOCK = 4096
REGION = 16 * MIB
STOP_SECONDS = 25
ENDED = (ConnectionError, nbd.Error, OSError, ScsiError)


class Writer(threading.Thread):
    """Writes one block after the other, flushes now and then, and knows what was acknowledged."""

    def __init__(self, name, write, flush):
        super().__init__(daemon=True)
        self.name, self.write, self.flush = name, write, flush
        self.dice = random.Random(name)
        self.asked, self.durable, self.error = {}, {}, None

    def run(self):
        number = 0
        try:
            while True:
                at = self.dice.randrange(REGION // BLOCK) * BLOCK
                data = f"{self.name} {number} ".encode().ljust(BLOCK, b".")
                self.asked.setdefault(at, []).append(data)
                self.write(at, data)
                number += 1
                if number % 20 == 0:
                    before = {at: wrote[-1] for at, wrote in self.asked.items()}
                    self.flush()
                    self.durable = before
        except ENDED as e:
            self.error = e

    def lost(self, read):
        """Blocks that hold neither what was flushed nor anything asked for later."""
        bad = []
        for at, flushed in self.durable.items():
            newer = self.asked[at][self.asked[at].index(flushed):]
            if read(at) not in newer:
                bad.append(at)
        return bad


def by_nbd(lab, name):
    client = nbd_connect(lab.nbd_port, name)
    return lambda at, data: client.pwrite(data, at), client.flush


def by_iscsi(lab, name):
    session = Iscsi(lab.iscsi_port, IQN + name)
    session.clear_attention()
    return session.write, session.flush


def by_file(path):
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    return lambda at, data: os.pwrite(fd, data, at), lambda: os.fsync(fd)


def mounted_reader(path):
    fd = os.open(path, os.O_RDONLY)
    return lambda at: os.pread(fd, BLOCK, at)


def make(lab, *names, size="32M"):
    lab.make_pool()
    for name in names:
        lab.do("lun", "create", name, "--size", size)


def told_to_stop(lab):
    """SIGTERM under load: it ends in time with 0, and what was flushed is there"""
    make(lab, "n", "s", "m")
    lab.serve(mount=True, iscsi=True, nbd=True, extra=["--cache", "64M"])
    # a file client is a process of its own: it must not hang when the mount goes
    script = ("import os,sys\nfd=os.open(sys.argv[1],os.O_RDWR|os.O_CREAT)\nn=0\n"
              "while True:\n os.pwrite(fd,b'%08d'%n*512,n%400*4096)\n n+=1\n"
              " if n%50==0:\n  os.fsync(fd)\n  print(n,flush=True)\n")
    path = os.path.join(lab.mount, "file")
    with open(lab.path("file.out"), "wb") as out:
        child = subprocess.Popen([sys.executable, "-c", script, path], stdout=out,
                                 stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)
    writers = [Writer("n", *by_nbd(lab, "n")), Writer("s", *by_iscsi(lab, "s"))]
    for writer in writers:
        writer.start()
    time.sleep(1.5)
    check("nobody failed before", not any(w.error for w in writers) and child.poll() is None)
    began = time.monotonic()
    lab.server.send_signal(signal.SIGTERM)
    try:
        code = lab.server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        code = "none"
    equal(f"exit code after {time.monotonic() - began:.1f} s", code, 0)
    lab.server = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(10)
    check("the file client ended", child.poll() is not None)
    child.kill()
    check("nothing is mounted", not lab.mounted())
    for writer in writers:
        writer.join(10)
    lab.verify_pool()
    lab.serve(mount=True)
    for writer in writers:
        check(f"{writer.name}: it flushed", len(writer.durable) > 10, len(writer.durable))
        equal(f"{writer.name}: lost", writer.lost(mounted_reader(lab.data(writer.name))), [])
    with open(lab.path("file.out")) as out:
        count = int((out.read().split() or ["0"])[-1])
    read = mounted_reader(path)
    old = [n for n in range(max(0, count - 400), count)
           if int(read(n % 400 * BLOCK)[:8]) < n]
    equal(f"the file: lost of {count} writes", old, [])
    check("an orderly stop", lab.stop())


def killed_clients(lab):
    """SIGKILL of clients of the mount: the server goes on, what they held is free again"""
    make(lab, "vm1")
    lab.serve(mount=True, nbd=True)
    script = ("import os,sys\nfd=os.open(sys.argv[1],os.O_RDWR|os.O_CREAT)\nb=bytes(1<<20)\n"
              "print('go',flush=True)\n"
              "while True:\n for i in range(16):\n  os.pwrite(fd,b,i<<20)\n"
              "  os.pread(fd,1<<20,i<<20)\n")
    for turn in range(4):
        children = []
        for path in (lab.data("vm1"), os.path.join(lab.mount, "file")):
            child = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE,
                                     preexec_fn=die_with_parent)
            child.stdout.readline()
            children.append(child)
        time.sleep(0.1 + 0.1 * turn)
        for child in children:
            child.kill()
        for child in children:
            child.wait(20)
        client = nbd_connect(lab.nbd_port, "vm1")
        deadline = time.monotonic() + 10
        why = "never tried"
        while time.monotonic() < deadline and why:
            try:
                client.pwrite(b"x" * BLOCK, 0)
                why = None
            except nbd.Error as e:
                why = e
        check(f"the lease is free again, turn {turn}", why is None, why)
        client.shutdown()
        time.sleep(0.1)
    shown = lab.ask("lun", "show", "vm1")
    equal("no file is open", shown["open_files"], 0)
    check("the server serves", os.path.exists(lab.data("vm1")))
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def full_disk(lab):
    """the disk under a sparse pool file fills: refused in clear words, nothing flushed is lost"""
    small = lab.path("small")
    os.mkdir(small)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96M", "tmpfs", small])
    need("a small file system", done.returncode == 0)
    try:
        fill_the_disk(lab, small)
    finally:
        lab.kill()
        subprocess.run(["umount", "-l", small], capture_output=True)


def fill_the_disk(lab, small):
    lab.pool = os.path.join(small, "pool.lunfs")
    lab.env["LUNFS_POOL"] = lab.pool
    lab.size = "1G"
    make(lab, "vm1", size="512M")
    lab.serve(iscsi=True, nbd=True, extra=["--cache", "32M"])
    client = nbd_connect(lab.nbd_port, "vm1")
    durable, failed = 0, None
    for n in range(512):
        try:
            client.pwrite(random.Random(n).randbytes(MIB), n * MIB)
            client.flush()
            durable = n + 1
        except nbd.Error as e:
            failed = e
            break
    check(f"it is refused, after {durable} MiB", failed is not None and durable > 20, failed)
    wrong = [n for n in range(durable)
             if bytes(client.pread(MIB, n * MIB)) != random.Random(n).randbytes(MIB)]
    equal("what was flushed is read", wrong, [])
    status = lab.ask("status")
    text = str(status["errors"])
    check("status says why", "No space left" in text or "read-only" in text or "full" in text, text)
    try:
        client.pwrite(b"x" * BLOCK, 0)
        client.flush()
        check("and goes on to refuse", False)
    except nbd.Error as e:
        refusals = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EPERM)
        check("and goes on to refuse", e.errnum in refusals, e)
    lab.stop()
    subprocess.run(["mount", "-o", "remount,size=400M", small], check=True)
    lab.verify_pool()
    lab.serve(iscsi=True, nbd=True)
    client = nbd_connect(lab.nbd_port, "vm1")
    wrong = [n for n in range(durable)
             if bytes(client.pread(MIB, n * MIB)) != random.Random(n).randbytes(MIB)]
    equal("with space again all of it is there", wrong, [])
    client.pwrite(b"y" * MIB, 0)
    client.flush()
    client.shutdown()
    check("and it is written to", lab.stop())


def no_descriptors(lab):
    """no file descriptor is left: who is there goes on, and the doors recover"""
    make(lab, "vm1")
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (96, old[1]))
    try:
        lab.serve(mount=True, iscsi=True, nbd=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
    session = Iscsi(lab.iscsi_port, IQN + "vm1")
    session.clear_attention()
    crowd = []
    for port in (lab.nbd_port, lab.iscsi_port):
        for _ in range(100):
            s = socket.socket()
            s.settimeout(5)
            with contextlib.suppress(OSError):
                s.connect(("127.0.0.1", port))
                crowd.append(s)
    time.sleep(0.5)
    session.write(0, b"a" * BLOCK)
    session.flush()
    equal("the session goes on", session.read(0, BLOCK), b"a" * BLOCK)
    before = cpu_seconds(lab.server.pid)
    time.sleep(1.5)
    used = cpu_seconds(lab.server.pid) - before
    check(f"nobody spins: {used:.2f} s of processor in 1.5 s", used < 0.5)
    with open(os.path.join(lab.mount, "vm1", "data"), "rb") as f:
        equal("the mount goes on", f.read(4), b"aaaa")
    for s in crowd:
        s.close()
    client = in_time(lambda: nbd_connect(lab.nbd_port, "vm1"), nbd.Error)
    check("NBD takes clients again", client is not None)
    equal("and serves them", bytes(client.pread(512, 0)) if client else None, b"a" * 512)
    name = "iqn.2026-11.local.test:b"
    another = in_time(lambda: Iscsi(lab.iscsi_port, IQN + "vm1", name), ConnectionError)
    check("iSCSI takes initiators again", another is not None)
    another.clear_attention()
    equal("iSCSI too", another.read(0, BLOCK), b"a" * BLOCK)
    check("commands too", lab.ask("status")["luns"][0]["name"] == "vm1")
    session.close()
    another.close()
    if client:
        client.shutdown()
    check("an orderly stop", lab.stop())


def in_time(connect, error):
    """What `connect` gives, once those who left are let go of; None after a quarter of a minute."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            return connect()
        except error:
            time.sleep(0.05)
    return None


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid):
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def nbd_raw(port, export):
    """A socket in the transmission phase of the simple protocol."""
    s = socket.create_connection(("127.0.0.1", port), 10)
    s.recv(18, socket.MSG_WAITALL)
    name = export.encode()
    s.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, len(name)) + name)
    s.recv(10, socket.MSG_WAITALL)
    return s


def request(kind, offset, length, cookie=1):
    return struct.pack(">IHHQQI", 0x25609513, 0, kind, cookie, offset, length)


def stuck_clients(lab):
    """clients that never read, and that send half a write: bounded memory, others go on"""
    make(lab, "a", "b", "n")
    lab.serve(iscsi=True, nbd=True, extra=["--cache", "32M"])
    for name in ("a", "n"):
        client = nbd_connect(lab.nbd_port, name)
        client.pwrite(os.urandom(16 * MIB), 0)
        client.flush()
        client.shutdown()
    before = resident_bytes(lab.server.pid)
    greedy = []
    for _ in range(8):
        s = nbd_raw(lab.nbd_port, "a")
        s.settimeout(0.5)
        with contextlib.suppress(OSError):
            for n in range(200):
                s.sendall(request(0, 0, 16 * MIB, n))
        greedy.append(s)
    half = [nbd_raw(lab.nbd_port, "b") for _ in range(8)]
    for s in half:
        s.sendall(request(1, 0, 8 * MIB) + b"z" * 100_000)
    time.sleep(1)
    grown = resident_bytes(lab.server.pid) - before
    check(f"bounded memory: {grown // MIB} MiB more for 8 that ask 3 GiB each", grown < 600 * MIB)
    began = time.monotonic()
    good = nbd_connect(lab.nbd_port, "n")
    session = Iscsi(lab.iscsi_port, IQN + "b")
    session.clear_attention()
    for turn in range(20):
        good.pwrite(b"g" * BLOCK, turn * BLOCK)
        good.flush()
        session.write(turn * BLOCK, b"i" * BLOCK)
        session.flush()
    took = time.monotonic() - began
    check(f"others write and flush 20 times in {took:.1f} s", took < 10)
    equal("nothing of half a write is there", session.read(8 * BLOCK, BLOCK), b"i" * BLOCK)
    equal("nor behind it", session.read(24 * BLOCK, BLOCK), bytes(BLOCK))
    for s in greedy + half:
        s.close()
    time.sleep(0.5)
    session.close()
    good.shutdown()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def stuck_while_stopping(lab):
    """clients that neither read nor leave do not keep the server from ending"""
    make(lab, "a")
    lab.serve(iscsi=True, nbd=True)
    client = nbd_connect(lab.nbd_port, "a")
    client.pwrite(os.urandom(16 * MIB), 0)
    client.flush()
    stuck = [nbd_raw(lab.nbd_port, "a") for _ in range(3)]
    for s in stuck[:2]:
        for n in range(20):
            s.sendall(request(0, 0, 16 * MIB, n))
    stuck[2].sendall(request(1, 0, 8 * MIB) + b"z" * 100_000)
    stuck.append(socket.create_connection(("127.0.0.1", lab.iscsi_port)))
    time.sleep(0.3)
    began = time.monotonic()
    check(f"an orderly stop, in {time.monotonic() - began:.1f} s", lab.stop())
    check("within the bound", time.monotonic() - began < STOP_SECONDS)
    lab.verify_pool()


def dead_mount(lab):
    """the mount that a killed server leaves is cleared by the next one"""
    make(lab, "vm1")
    lab.serve(mount=True)
    with open(lab.data("vm1"), "r+b") as f:
        f.write(b"kept")
        f.flush()
        os.fsync(f.fileno())
    lab.server.kill()
    lab.server.wait()
    try:
        os.listdir(lab.mount)
        dead = None
    except OSError as e:
        dead = e.errno
    equal("what is left is dead", dead, errno.ENOTCONN)
    lab.serve(mount=True)
    with open(lab.data("vm1"), "rb") as f:
        equal("the next server's mount stands there", f.read(4), b"kept")
    with open("/proc/self/mounts") as mounts:
        count = sum(line.split()[1] == lab.mount for line in mounts)
    equal("once", count, 1)
    check("an orderly stop", lab.stop())
    check("nothing is left", not lab.mounted())


run([told_to_stop, killed_clients, full_disk, no_descriptors, stuck_clients, stuck_while_stopping,
     dead_mount])
