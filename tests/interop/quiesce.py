"""Applications at rest for a snapshot: a filesystem of the kernel on a LUN, PostgreSQL under load,
a program; and nothing stays at rest when a process is killed in between."""

import glob
import os
import shutil
import subprocess
import threading
import time

from harness import LUNFS, MIB, check, equal, find, need, require, run, tool

require("mke2fs", "e2fsck", "losetup", "fsfreeze", "psql", "runuser")


def hook(lab, freeze="", thaw=""):
    """A program that records what it is asked, and its record."""
    path, record = lab.path("hook"), lab.path("record")
    with open(path, "w") as script:
        script.write(f"echo $1 >>{record}\ncase $1 in freeze) {freeze or ':'};; "
                     f"thaw) {thaw or ':'};; esac\n")
    open(record, "w").close()
    return f"exec:sh {path}"


def recorded(lab, words, seconds=20):
    """The record, when it says this, or after a while."""
    deadline = time.monotonic() + seconds
    while True:
        got = open(lab.path("record")).read().split()
        if got == words or time.monotonic() > deadline:
            return got
        time.sleep(0.02)


def serve(lab):
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "128M")
    lab.serve(mount=True)


def programs(lab):
    """a program as hook: the order, what is kept, what is refused"""
    serve(lab)
    good = hook(lab)
    made = lab.ask("snapshot", "create", "vm1@good", "--quiesce", good)
    equal("it was asked", recorded(lab, ["freeze", "thaw"]), ["freeze", "thaw"])
    equal("the answer says so", find(made, "consistency"), "application")
    shown = lab.ask("snapshot", "show", "vm1@good")
    equal("and the snapshot", (shown["consistency"], shown["hook"]), ("application", "exec"))
    lines = [line for line in lab.do("lun", "log", "vm1").splitlines() if "quiesce" in line]
    check("and the log", len(lines) == 1 and "exec" in lines[0], lines)
    bad = hook(lab, freeze="echo the disk is full; exit 1")
    lab.refused("a hook that says no", "the disk is full", "snapshot", "create", "vm1@bad",
                "--quiesce", bad)
    equal("it is thawed all the same", recorded(lab, ["freeze", "thaw"]), ["freeze", "thaw"])
    names = [one["name"] for one in lab.ask("snapshot", "list", "vm1")]
    equal("nothing was made", names, ["good"])
    late = hook(lab, freeze="sleep 60")
    began = time.monotonic()
    lab.refused("a hook that is late", "did not", "snapshot", "create", "vm1@late", "--quiesce",
                late, "--quiesce-timeout", "1")
    check("it is not waited for", time.monotonic() - began < 20)
    equal("and thawed", recorded(lab, ["freeze", "thaw"]), ["freeze", "thaw"])
    good = hook(lab)
    lab.refused("a name that is taken", "good", "snapshot", "create", "vm1@good", "--quiesce", good)
    equal("nobody was asked for it", recorded(lab, []), [])
    lab.refused("no hook", "hook", "snapshot", "create", "vm1", "--quiesce", "magic", code=2)
    lab.refused("a filesystem that the pool lies on", "pool", "snapshot", "create", "vm1",
                "--quiesce", f"fsfreeze:{lab.dir}")
    lab.refused("the mount itself", "pool", "snapshot", "create", "vm1", "--quiesce",
                f"fsfreeze:{lab.mount}/vm1")
    check("an orderly stop", lab.stop())


def killed(lab):
    """kill -9 of the server, and of the command, between freeze and thaw"""
    serve(lab)
    word = hook(lab, freeze="sleep 1")
    args = [LUNFS, "snapshot", "create", "vm1@s", "--quiesce", word]
    command = subprocess.Popen(args, env=lab.env, stdout=subprocess.DEVNULL)
    equal("it is asked", recorded(lab, ["freeze"]), ["freeze"])
    command.kill()
    command.wait()
    equal("without the command it is thawed", recorded(lab, ["freeze", "thaw"]),
          ["freeze", "thaw"])
    equal("and there is no snapshot", lab.ask("snapshot", "list", "vm1"), [])
    word = hook(lab, freeze=f"kill -9 {lab.server.pid}")
    done = lab.lunfs("snapshot", "create", "vm1@s", "--quiesce", word)
    check("without the server the command fails", done.returncode == 1, done.err)
    equal("and it is thawed", recorded(lab, ["freeze", "thaw"]), ["freeze", "thaw"])
    lab.kill()
    lab.verify_pool()


def busy(stop, at):
    """Makes, fills and removes files until it is told to stop."""
    number = 0
    while not stop.is_set():
        os.makedirs(f"{at}/d{number % 7}", exist_ok=True)
        with open(f"{at}/d{number % 7}/f{number % 50}", "wb") as f:
            f.write(os.urandom(20000))
            if number % 5 == 0:
                os.fsync(f.fileno())
        if number % 11 == 0:
            shutil.rmtree(f"{at}/d{number % 3}", ignore_errors=True)
        number += 1


def filesystem(lab):
    """ext4 of this kernel on a LUN, frozen while it is written: the copy needs no repair"""
    serve(lab)
    if os.getuid() != 0 or not os.path.exists("/dev/loop-control"):
        print("  skipped: no loop devices here")
        return
    tool("mke2fs", "-q", "-F", "-t", "ext4", lab.data("vm1"))
    at = lab.path("at")
    os.mkdir(at)
    tool("mount", "-o", "loop", lab.data("vm1"), at)
    stop = threading.Event()
    writer = threading.Thread(target=busy, args=(stop, at))
    try:
        os.mkdir(f"{at}/kept")
        for n in range(20):
            with open(f"{at}/kept/{n}", "wb") as f:
                f.write(os.urandom(100_000 + n))
        sums = tool("sh", "-c", f"cd {at}/kept && sha256sum *").text
        writer.start()
        time.sleep(1)
        lab.do("snapshot", "create", "vm1@rest", "--quiesce", f"fsfreeze:{at}")
        lab.do("snapshot", "create", "vm1@crash")
        time.sleep(0.3)
        with open(f"{at}/after", "w") as f:
            f.write("it goes on")
    finally:
        stop.set()
        if writer.ident:
            writer.join()
        tool("umount", at, good=False)
    image = lab.path("image")
    tool("cp", "--sparse=always", f"{lab.mount}/vm1/.snapshots/rest/data", image)
    said = tool("e2fsck", "-fn", image).text
    check("no journal has to be replayed", "recover" not in said.lower(), said)
    tool("mount", "-o", "ro,loop,noload", image, at)
    try:
        equal("its files are those of then",
              tool("sh", "-c", f"cd {at}/kept && sha256sum *").text, sums)
        check("nothing of later", not os.path.exists(f"{at}/after"))
    finally:
        tool("umount", at, good=False)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


class Cluster:
    """A PostgreSQL cluster in a directory."""

    def __init__(self, lab, data, port):
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
        need("PostgreSQL is installed", found != [])
        self.bin, self.lab, self.data, self.port = os.path.dirname(found[-1]), lab, data, port
        self.sockets = lab.path("sockets")
        os.makedirs(self.sockets, exist_ok=True)
        os.chmod(lab.dir, 0o711)
        shutil.chown(self.sockets, "postgres")

    def run(self, program, *args, **more):
        as_user = ["runuser", "-u", "postgres", "--", f"{self.bin}/{program}", *args]
        return tool(*as_user, cwd="/", **more)

    def start(self):
        options = f"-p {self.port} -k {self.sockets} -c listen_addresses="
        self.run("pg_ctl", "-D", self.data, "-w", "-s", "-t", "60", "-l", f"{self.sockets}/log",
                 "-o", options, "start")

    def stop(self, mode="fast"):
        self.run("pg_ctl", "-D", self.data, "-w", "-s", "-m", mode, "stop", good=False)

    def where(self):
        return ["-h", self.sockets, "-p", str(self.port)]

    def ask(self, question):
        return self.run("psql", *self.where(), "-AtX", "-c", question, "postgres").text

    def transactions(self):
        return int(self.ask("SELECT count(*) FROM pgbench_history"))


def postgres(lab):
    """PostgreSQL under pgbench in the mount: the copy of the snapshot starts, and is whole"""
    lab.make_pool()
    lab.serve(mount=True)
    data, copy = f"{lab.mount}/pg", lab.path("copy")
    os.mkdir(data, 0o700)
    shutil.chown(data, "postgres", "postgres")
    cluster = Cluster(lab, data, 5432)
    # A cluster of few files: what it is made of is copied twice.
    cluster.run("initdb", "-D", data, "-k", "-N", "-A", "trust", "--no-instructions",
                "--wal-segsize=1", "--locale=C", "--encoding=UTF8")
    cluster.start()
    try:
        cluster.run("pgbench", *cluster.where(), "-i", "-q", "-s", "1", "postgres")
        load = subprocess.Popen(["runuser", "-u", "postgres", "--", f"{cluster.bin}/pgbench",
                                 *cluster.where(), "-c", "2", "-T", "120", "postgres"], cwd="/",
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = 0
        for _ in range(300):
            before = cluster.transactions()
            if before >= 100:
                break
            time.sleep(0.05)
        check("it is under load", before >= 100, before)
        url = f"host={cluster.sockets} port=5432 user=postgres dbname=postgres"
        made = lab.ask("snapshot", "create", "/@copy", "--quiesce", f"postgres:{url}")
        equal("it was in backup mode", find(made, "consistency"), "application")
        returned = after = cluster.transactions()
        for _ in range(100):
            if after > returned:
                break
            time.sleep(0.1)
            after = cluster.transactions()
        check("it goes on", after > returned, after)
        load.terminate()
        load.wait()
        bad = f"host={cluster.sockets} port=1 user=postgres"
        lab.refused("a server that is not there", "postgres", "snapshot", "create", "/@bad",
                    "--quiesce", f"postgres:{bad}")
    finally:
        cluster.stop()
    tool("cp", "-a", f"{lab.mount}/.snapshots/copy/pg", copy)
    os.unlink(f"{copy}/postmaster.pid")
    second = Cluster(lab, copy, 5433)
    second.start()
    try:
        count = second.transactions()
        check("it is that instant", before <= count <= returned, (before, count, returned))
        sums = second.ask("SELECT (SELECT sum(abalance) FROM pgbench_accounts) = "
                          "(SELECT sum(delta) FROM pgbench_history)")
        equal("every transaction is in wholly", sums, "t")
        second.run("pg_amcheck", *second.where(), "--install-missing", "--heapallindexed",
                   "postgres")
    finally:
        second.stop()
    second.run("pg_checksums", "--check", "-D", copy)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


run([programs, killed, filesystem, postgres])
