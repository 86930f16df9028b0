"""Kills a busy server with SIGKILL, again and again, and checks what is left.

Workers write through every door at once: NBD (libnbd), iSCSI (libiscsi), an ordinary file and a
LUN's `data` through the mount, and names (create, rename, unlink). Each worker does one thing after
the other and remembers it before it asks for it. What a flush, FUA or fsync acknowledged must be
there after the restart; of what came later a prefix, each command whole, and nothing else. The
state found after a restart is the durable one from then on. Before each restart `lunfs pool check`
looks at the pool as the crash left it; some restarts are killed themselves, while they recover.

Environment: LUNFS the program, ROUNDS (default 55), SEED (default: the time), KEEP=1.
A seed repeats the workload, not the run: the moment of a kill is the machine's.
"""

import contextlib
import os
import random
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "interop"))

import nbd  # noqa: E402

from blockclients import Iscsi, ScsiError, nbd_connect  # noqa: E402
from harness import IQN, LUNFS, MIB, check, die_with_parent, equal, run  # noqa: E402

ROUNDS = int(os.environ.get("ROUNDS", "55"))
SEED = int(os.environ.get("SEED", str(int(time.time()))))
REGION = 8 * MIB
SECTOR = 512
FLUSH_ONE_IN = 12
SIZES = [1, 1, 2, 7, 8, 8, 8, 16, 64, 128]
LARGE = 4096  # 2 MiB, the announced atomic limit
ENDED = (ConnectionError, nbd.Error, OSError, ScsiError)


class Region:
    """A range of bytes that one worker writes: the durable image, and what was asked for since."""

    def __init__(self, name):
        self.name = name
        self.durable = bytearray(REGION)
        self.pending = []

    def ask(self, offset, data):
        self.pending.append((offset, data))

    def all_durable(self):
        for offset, data in self.pending:
            self.durable[offset:offset + len(data)] = data
        self.pending = []

    def accept(self, found):
        """Whether `found` is the durable image and a prefix of what came later; takes it over."""
        image, good = bytearray(self.durable), False
        for step in [(0, b"")] + self.pending:
            image[step[0]:step[0] + len(step[1])] = step[1]
            if image == found:
                good = True
                break
        if not good:
            self.explain(found)
        self.durable, self.pending = bytearray(found), []
        return good

    def explain(self, found):
        """Says in sectors what differs from the last acknowledged state and from the newest one."""
        if len(found) != REGION:
            print(f"    {self.name}: {len(found)} bytes instead of {REGION}")
            return
        newest = bytearray(self.durable)
        for offset, data in self.pending:
            newest[offset:offset + len(data)] = data
        for label, image in (("the acknowledged", self.durable), ("the newest", newest)):
            bad = [s for s in range(0, REGION, SECTOR)
                   if image[s:s + SECTOR] != found[s:s + SECTOR]]
            print(f"    {self.name}: {len(bad)} sectors differ from {label} state, "
                  f"from {bad[0] if bad else '-'} to {bad[-1] if bad else '-'}")
        for offset, data in self.pending[-30:]:
            there = "there" if found[offset:offset + len(data)] == data else "not as asked"
            print(f"    {self.name}: {len(data)} bytes at {offset}: {there}")


class Names:
    """A directory that one worker changes: name to content, and the steps asked for since."""

    def __init__(self):
        self.name = "names"
        self.durable = {}
        self.pending = []

    @staticmethod
    def apply(state, step):
        kind, name, value = step
        if kind == "set":
            state[name] = value
        elif kind == "rename":
            state[value] = state.pop(name)
        else:
            state.pop(name)

    def all_durable(self):
        for step in self.pending:
            self.apply(self.durable, step)
        self.pending = []

    def now(self):
        state = dict(self.durable)
        for step in self.pending:
            self.apply(state, step)
        return state

    def accept(self, found):
        state, good = dict(self.durable), self.durable == found
        for step in self.pending:
            self.apply(state, step)
            good = good or state == found
        if not good:
            print(f"    names: acknowledged {summary(self.durable)}, found {summary(found)}, "
                  f"asked {[(s[0], s[1]) for s in self.pending]}")
        self.durable, self.pending = dict(found), []
        return good


def summary(state):
    return {name: len(content) for name, content in sorted(state.items())}


def stamp(dice, sectors):
    """Bytes that no other write has."""
    return dice.randbytes(sectors * SECTOR)


def pick(dice, most=LARGE):
    """Where and how much: small and misaligned mostly, now and then large."""
    sectors = most if dice.random() < 0.03 else dice.choice(SIZES)
    return dice.randrange(REGION // SECTOR - sectors) * SECTOR, sectors


class Worker(threading.Thread):
    """One client: works until its server dies under it."""

    def __init__(self, lab, model, seed):
        super().__init__(daemon=True)
        self.lab, self.model, self.dice = lab, model, random.Random(seed)
        self.done, self.error = 0, None
        self.ending = threading.Event()

    def run(self):
        try:
            self.work()
        except ENDED as e:
            self.error = e
        finally:
            self.close()

    def close(self):
        """Lets go of the connection, whatever state it is in."""

    def work(self):
        self.connect()
        while not self.ending.is_set():
            self.step()
            self.done += 1
            if self.dice.randrange(FLUSH_ONE_IN) == 0:
                self.flush()
                self.model.all_durable()

    def step(self):
        offset, sectors = pick(self.dice, self.most)
        if self.dice.random() < 0.08:
            self.model.ask(offset, bytes(sectors * SECTOR))
            return self.erase(offset, sectors)
        data = stamp(self.dice, sectors)
        self.model.ask(offset, data)
        fua = self.dice.random() < 0.05
        self.write(offset, data, fua)
        if fua:  # a prefix survives, so all before it is durable too
            self.model.all_durable()

    most = LARGE


class NbdWorker(Worker):
    def connect(self):
        self.client = nbd_connect(self.lab.nbd_port, self.model.name)

    def write(self, offset, data, fua):
        self.client.pwrite(data, offset, nbd.CMD_FLAG_FUA if fua else 0)

    def erase(self, offset, sectors):
        self.dice.choice([self.client.trim, self.client.zero])(sectors * SECTOR, offset)

    def flush(self):
        self.client.flush()

    def read_all(self):
        return b"".join(bytes(self.client.pread(MIB, at)) for at in range(0, REGION, MIB))


class IscsiWorker(Worker):
    client = None

    def close(self):
        if self.client:
            self.client.close(logout=False)

    def connect(self):
        self.client = Iscsi(self.lab.iscsi_port, IQN + self.model.name)
        self.client.clear_attention()

    def write(self, offset, data, fua):
        self.client.write(offset, data, fua)

    def erase(self, offset, sectors):
        self.client.unmap((offset // SECTOR, sectors))

    def flush(self):
        self.client.flush()

    def read_all(self):
        return b"".join(self.client.read(at, MIB) for at in range(0, REGION, MIB))


class FileWorker(Worker):
    most = 128  # one FUSE request each
    fd = None

    def close(self):
        if self.fd is not None:
            with contextlib.suppress(OSError):  # the mount may be dead
                os.close(self.fd)

    def connect(self):
        path = os.path.join(self.lab.mount, self.model.name)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def write(self, offset, data, fua):
        if os.pwrite(self.fd, data, offset) != len(data):
            raise OSError("short write")
        if fua:
            os.fsync(self.fd)

    def erase(self, offset, sectors):
        self.write(offset, bytes(sectors * SECTOR), False)

    def flush(self):
        os.fsync(self.fd)

    def read_all(self):
        return os.pread(self.fd, REGION, 0)


class NameWorker(Worker):
    def connect(self):
        self.folder = os.path.join(self.lab.mount, "names")
        os.makedirs(self.folder, exist_ok=True)
        self.number = 0

    def ask(self, kind, name, value, call):
        self.model.pending.append((kind, name, value))
        call()

    def step(self):
        state = sorted(self.model.now())
        self.number += 1
        fresh = f"n{self.dice.randrange(1 << 32)}-{self.number}"
        path = os.path.join(self.folder, fresh)
        if state and self.dice.random() < 0.5:
            old = self.dice.choice(state)
            old_path = os.path.join(self.folder, old)
            if self.dice.random() < 0.5 or len(state) > 200:
                self.ask("unlink", old, None, lambda: os.unlink(old_path))
            else:
                self.ask("rename", old, fresh, lambda: os.rename(old_path, path))
            return
        self.model.pending.append(("set", fresh, b""))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            data = stamp(self.dice, self.dice.choice(SIZES))
            self.ask("set", fresh, data, lambda: os.write(fd, data))
        finally:
            os.close(fd)

    def flush(self):
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def read_all(self):
        found = {}
        for name in os.listdir(self.folder):
            with open(os.path.join(self.folder, name), "rb") as f:
                found[name] = f.read()
        return found


KINDS = [(NbdWorker, Region, ["nbd0", "nbd1"]), (IscsiWorker, Region, ["scsi0", "scsi1"]),
         (FileWorker, Region, ["file", "lun/data"]), (NameWorker, lambda _: Names(), ["names"])]


def prepare(lab):
    """The pool, its LUNs, and a file of the right length; gives each worker's class and model."""
    lab.make_pool()
    for name in ("nbd0", "nbd1", "scsi0", "scsi1", "lun"):
        lab.do("lun", "create", name, "--size", str(REGION))
    lab.serve(mount=True, iscsi=True, nbd=True, extra=["--cache", "64M"])
    fd = os.open(os.path.join(lab.mount, "file"), os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, REGION)
    os.fsync(fd)
    os.close(fd)
    os.mkdir(os.path.join(lab.mount, "names"))
    os.sync()
    flush = nbd_connect(lab.nbd_port, "nbd0")
    flush.flush()
    flush.shutdown()
    return [(kind, model(name)) for kind, model, names in KINDS for name in names]


def kill_while_recovering(lab, dice):
    """Starts a server and kills it before it is ready, most likely."""
    args = [LUNFS, "serve", lab.pool, "--nbd", f"127.0.0.1:{lab.nbd_port}"]
    early = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             env=lab.env, preexec_fn=die_with_parent)
    time.sleep(dice.random() * 0.1)
    early.kill()
    early.wait()


def one_round(lab, plan, dice, number):
    """Work, kill, check, restart, compare. Gives the operations done and whether all was well."""
    workers = [kind(lab, model, dice.random()) for kind, model in plan]
    for worker in workers:
        worker.start()
    time.sleep(0.1 + dice.random() * 0.9)
    dead = [f"{w.model.name}: {w.error!r}" for w in workers if w.error]
    lab.server.kill()
    lab.server.wait()
    for worker in workers:
        worker.ending.set()
    lab.kill()
    for worker in workers:
        worker.join(60)
    good = not dead or check(f"round {number}: no client failed before the kill", False, dead)
    good &= check_quietly(lab, number)
    if dice.random() < 0.25:
        kill_while_recovering(lab, dice)
    lab.serve(mount=True, iscsi=True, nbd=True, extra=["--cache", "64M"])
    for kind, model in plan:
        good &= compare(lab, kind, model, number)
    return sum(worker.done for worker in workers), good


def check_quietly(lab, number):
    done = lab.lunfs("pool", "check", lab.pool)
    text = f"round {number}: pool check finds nothing"
    return done.returncode == 0 or check(text, False, f"{done.out} {done.err}")


def compare(lab, kind, model, number):
    reader = kind(lab, model, 0)
    try:
        reader.connect()
        good = model.accept(reader.read_all())
    except ENDED as e:
        return check(f"round {number}: {model.name} can be read", False, repr(e))
    finally:
        reader.close()
    text = f"round {number}: {model.name} holds what was acknowledged and a prefix of the rest"
    return good or check(text, False)


def killed_again_and_again(lab):
    """kill -9 under a checked workload on every door"""
    print(f"  seed {SEED}, {ROUNDS} rounds")
    dice = random.Random(SEED)
    plan = prepare(lab)
    total = whole = 0
    slowest = 0.0
    for number in range(1, ROUNDS + 1):
        started = time.monotonic()
        operations, good = one_round(lab, plan, dice, number)
        slowest = max(slowest, time.monotonic() - started)
        total += operations
        whole += good
    equal(f"{ROUNDS} kills, {total} operations, slowest round {slowest:.1f} s: rounds without loss",
          whole, ROUNDS)
    check("work was done", total > ROUNDS * 20, total)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def the_checker_sees(lab):
    """a lost, a torn and a reordered write are found, a prefix is accepted"""
    one, two = b"1" * 1024, b"2" * 1024

    def verdict(*there):
        region = Region("model")
        region.ask(0, b"0" * SECTOR)
        region.all_durable()
        region.ask(4096, one)
        region.ask(8192, two)
        image = bytearray(REGION)
        for offset, data in there:
            image[offset:offset + len(data)] = data
        return region.accept(bytes(image))
    first = (0, b"0" * SECTOR)
    equal("nothing of the rest", verdict(first), True)
    equal("the first of the rest", verdict(first, (4096, one)), True)
    equal("all of it", verdict(first, (4096, one), (8192, two)), True)
    equal("the acknowledged one lost", verdict(), False)
    equal("torn", verdict(first, (4096, one[:SECTOR])), False)
    equal("the second without the first", verdict(first, (8192, two)), False)
    names = Names()
    names.durable = {"a": b"x"}
    names.pending = [("rename", "a", "b"), ("unlink", "b", None)]
    equal("a rename half done", names.accept({"a": b"x", "b": b"x"}), False)


run([the_checker_sees, killed_again_and_again])
