"""What a snapshot costs lunfs and others: the time to take it, and random 4 KiB writes at depth 32
before it, in the first window after it (when what is shared is replaced), and in the fourth.

    snapcost.py [--mib MIB] [--seconds S] [--rounds N]

qcow2 by qemu-storage-daemon, over a Unix socket, with an external and an internal snapshot; btrfs
and xfs on a loop device, by a reflink of the file (as root); lunfs over NBD. CPU time is that of
the server, or of the client where the kernel serves: what the kernel does in threads of its own is
not in it. Figures, no proof. Environment: LUNFS the program; DIR where everything lies.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import servers

MIB = 1 << 20
WINDOW = "-b 4096 -w w -a rand -q 32"
WINDOWS_AFTER = 4


class Monitor:
    """QEMU's monitor: one command at a time."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.lines = self.socket.makefile("rw")
        self.lines.readline()
        self.do("qmp_capabilities")

    def do(self, command, **arguments):
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.lines.flush()
        while True:
            answer = json.loads(self.lines.readline())
            if "error" in answer:
                raise RuntimeError(answer["error"]["desc"])
            if "return" in answer:
                return answer["return"]


class Bench:
    """One peer after the other, each in a directory of its own."""

    def __init__(self, given, base):
        self.given, self.base = given, base
        self.client = servers.build("lunbench.c", base, "-liscsi", "-lnbd", "-lpthread")

    def window(self, url, pid=None, more=()):
        """Writes for one window: (rate, CPU microseconds each, 99th percentile in microseconds)."""
        before = servers.cpu_seconds(pid) if pid else 0
        command = [self.client, "-u", url, *WINDOW.split(), "-t", str(self.given.seconds), *more]
        got = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        own = got["client_user"] + got["client_sys"]
        spent = servers.cpu_seconds(pid) - before if pid else own
        return got["iops"], spent * 1e6 / max(got["ops"], 1), got["p99_us"]

    def fill(self, url):
        command = [self.client, "-u", url, *"-b 1048576 -w w -a seq -q 8 -t 200".split()]
        subprocess.run([*command, "-n", str(self.given.mib)], check=True, capture_output=True)

    def around(self, url, take, pid=None, more=()):
        """Fills, writes, takes the snapshot, writes: (seconds, before, first, later)."""
        before = self.window(url, pid, more)
        began = time.monotonic()
        take()
        took = time.monotonic() - began
        after = [self.window(url, pid, more) for _ in range(WINDOWS_AFTER)]
        return took, before, after[0], after[-1]

    def lunfs(self, directory):
        size = self.given.mib * MIB
        server = servers.Lunfs("lunfs-nbd", directory, size)
        try:
            server.start()
            url = server.text("nbd://127.0.0.1:{nbd}/lun")
            self.fill(url)
            take = [servers.find(servers.LUNFS), "snapshot", "create", "lun", "--pool",
                    server.dir + "/pool.lunfs"]
            return self.around(url, lambda: subprocess.run(take, check=True, capture_output=True),
                               server.process.pid)
        finally:
            server.stop()

    def qcow2(self, directory, internal):
        image, nbd, monitor = (f"{directory}/{name}" for name in ("a.qcow2", "nbd", "qmp"))
        make = ["qemu-img", "create", "-q", "-f", "qcow2", image, f"{self.given.mib}M"]
        subprocess.run(make, check=True)
        command = [
            "qemu-storage-daemon", "--blockdev",
            f"file,node-name=f,filename={image},discard=unmap",
            "--blockdev", "qcow2,node-name=q,file=f",
            "--chardev", f"socket,id=m,path={monitor},server=on,wait=off", "--monitor", "m",
            "--nbd-server", f"addr.type=unix,addr.path={nbd}",
            "--export", "nbd,id=e,node-name=q,name=lun,writable=on",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            for _ in range(100):
                if os.path.exists(nbd) and os.path.exists(monitor):
                    break
                time.sleep(0.05)
            time.sleep(0.2)
            url, talk = f"nbd+unix:///lun?socket={nbd}", Monitor(monitor)
            self.fill(url)
            outside = {"node-name": "q", "snapshot-file": f"{directory}/b.qcow2",
                       "snapshot-node-name": "q2", "format": "qcow2"}

            def take():
                if internal:
                    talk.do("blockdev-snapshot-internal-sync", device="q", name="s1")
                else:
                    talk.do("blockdev-snapshot-sync", **outside)

            return self.around(url, take, process.pid)
        finally:
            process.terminate()
            process.wait(10)

    def reflink(self, directory, kind):
        image, mount = f"{directory}/image", f"{directory}/mnt"
        with open(image, "wb") as file:
            file.truncate(self.given.mib * MIB * 3 + 512 * MIB)
        make = servers.find(f"mkfs.{kind}")
        subprocess.run([make, "-q", "-f", image], check=True, capture_output=True)
        os.mkdir(mount)
        mounted = subprocess.run(["mount", "-o", "loop", image, mount], capture_output=True)
        if mounted.returncode:
            raise RuntimeError(mounted.stderr.decode().strip())
        try:
            path = f"{mount}/a"
            with open(path, "wb") as file:
                file.truncate(self.given.mib * MIB)
            self.fill("file:" + path)
            os.sync()
            take = ["cp", "--reflink=always", path, f"{mount}/b"]
            return self.around("file:" + path, lambda: subprocess.run(take, check=True),
                               more=["-D"])
        finally:
            subprocess.run(["umount", mount], capture_output=True)


PEERS = {
    "lunfs": lambda bench, where: bench.lunfs(where),
    "qcow2-external": lambda bench, where: bench.qcow2(where, False),
    "qcow2-internal": lambda bench, where: bench.qcow2(where, True),
    "btrfs-reflink": lambda bench, where: bench.reflink(where, "btrfs"),
    "xfs-reflink": lambda bench, where: bench.reflink(where, "xfs"),
}


def tell(name, rounds):
    median = statistics.median
    took = median(one[0] for one in rounds)
    before, first, later = ([median(one[i][k] for one in rounds) for k in range(3)]
                            for i in (1, 2, 3))
    each = " / ".join(f"{one[1]:.1f}" for one in (before, first, later))
    slow = " / ".join(f"{one[2]:.0f}" for one in (before, first, later))
    print(f"{name:<16}{took * 1e3:>9.1f}{before[0]:>10.0f}{first[0]:>10.0f}"
          f"{first[0] / before[0]:>6.2f}{later[0]:>10.0f}{later[0] / before[0]:>6.2f}"
          f"{each:>24}{slow:>24}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    base = tempfile.mkdtemp(prefix="lunfs-snapcost-", dir=os.environ.get("DIR", "/dev/shm"))
    print(f"{given.mib} MiB, windows of {given.seconds} s, random 4 KiB writes at depth 32")
    print(f"{'':<16}{'taken ms':>9}{'before':>10}{'first':>10}{'x':>6}{'later':>10}{'x':>6}"
          f"{'CPU us each':>24}{'p99 us':>24}")
    try:
        bench = Bench(given, base)
        for name, run in PEERS.items():
            rounds = []
            for number in range(given.rounds):
                where = f"{base}/{name}-{number}"
                os.mkdir(where)
                try:
                    rounds.append(run(bench, where))
                except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                    print(f"# {name} is left out: {error}", file=sys.stderr)
                    break
                finally:
                    shutil.rmtree(where, ignore_errors=True)
            if rounds:
                tell(name, rounds)
    finally:
        shutil.rmtree(base, ignore_errors=True)


main()
