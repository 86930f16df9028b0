"""A file exerciser: random operations on one file through the mount, against a model in memory.

Every operation's result is compared at once: reads and writes of any alignment, truncation, punched
and zeroed ranges, shared maps, fsync, closing and opening again. SEED repeats a run; OPERATIONS
says how many. On a LUN's `data` the size stays (a LUN is resized by growing only).
"""

import ctypes
import mmap
import os
import random
import time

from harness import KIB, MIB, check, equal, run

SEED = int(os.environ.get("SEED", str(int(time.time()))))
OPERATIONS = int(os.environ.get("OPERATIONS", "4000"))
MOST_BYTES = 96 * KIB
FILE_BYTES = 2 * MIB
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]


class Exerciser:
    """The file, and what it must hold."""

    def __init__(self, path, seed, fixed_size):
        self.path, self.dice, self.fixed = path, random.Random(seed), fixed_size
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.model = bytearray(os.fstat(self.fd).st_size)
        self.trail = []

    def close(self):
        os.close(self.fd)

    def place(self, end=FILE_BYTES):
        """An offset and a length within `end`, aligned or not."""
        length = self.dice.choice([1, 7, 512, 4096, 4097, self.dice.randrange(1, MOST_BYTES)])
        length = min(length, end)
        offset = self.dice.randrange(end - length + 1)
        if self.dice.random() < 0.5:
            offset &= ~4095
        return offset, length

    def step(self):
        """One operation; the first thing that differs is raised with what led there."""
        moves = [self.write, self.write, self.write, self.read, self.read, self.punch, self.zero,
                 self.mapped_read, self.mapped_write, self.sync, self.reopen]
        if not self.fixed:
            moves += [self.truncate, self.truncate]
        move = self.dice.choice(moves)
        move()

    def note(self, *what):
        self.trail = self.trail[-19:] + [what]

    def same(self, got, offset, what):
        want = bytes(self.model[offset:offset + len(got)])
        if got != want:
            first = next(i for i in range(len(got)) if got[i:i + 1] != want[i:i + 1])
            raise AssertionError(f"{what}: byte {offset + first} differs, after {self.trail}")

    def grow(self, size):
        if size > len(self.model):
            self.model.extend(bytes(size - len(self.model)))

    def write(self):
        offset, length = self.place()
        data = self.dice.randbytes(length)
        self.note("write", offset, length)
        if os.pwrite(self.fd, data, offset) != length:
            raise AssertionError(f"short write at {offset}")
        self.grow(offset + length)
        self.model[offset:offset + length] = data

    def read(self):
        offset, length = self.place()
        got = os.pread(self.fd, length, offset)
        want = max(0, min(length, len(self.model) - offset))
        if len(got) != want:
            raise AssertionError(f"read of {len(got)}, not {want}, at {offset} after {self.trail}")
        self.same(got, offset, "read")

    def punch(self):
        self.allocate(PUNCH_HOLE | KEEP_SIZE, "punch")

    def zero(self):
        self.allocate(ZERO_RANGE | KEEP_SIZE, "zero")

    def allocate(self, mode, what):
        offset, length = self.place()
        self.note(what, offset, length)
        if libc.fallocate(self.fd, mode, offset, length) != 0:
            raise AssertionError(f"{what}: {os.strerror(ctypes.get_errno())}")
        end = min(offset + length, len(self.model))
        if end > offset:
            self.model[offset:end] = bytes(end - offset)

    def mapped_read(self):
        self.mapped(False)

    def mapped_write(self):
        self.mapped(True)

    def mapped(self, write):
        if len(self.model) < 1:
            return
        offset, length = self.place(len(self.model))
        with mmap.mmap(self.fd, len(self.model)) as shared:
            self.same(shared[offset:offset + length], offset, "mapped read")
            if write:
                data = self.dice.randbytes(length)
                self.note("mapped write", offset, length)
                shared[offset:offset + length] = data
                shared.flush()
                self.model[offset:offset + length] = data

    def truncate(self):
        size = self.dice.randrange(FILE_BYTES)
        self.note("truncate", size)
        os.ftruncate(self.fd, size)
        del self.model[size:]
        self.grow(size)

    def sync(self):
        os.fsync(self.fd)

    def reopen(self):
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)
        size = os.fstat(self.fd).st_size
        if size != len(self.model):
            raise AssertionError(f"size {size}, not {len(self.model)}, after {self.trail}")

    def whole(self):
        with open(self.path, "rb") as f:
            return f.read() == self.model


def exercise(lab, path, seed, fixed_size):
    exerciser = Exerciser(path, seed, fixed_size)
    why = ""
    done = 0
    try:
        while done < OPERATIONS and not why:
            exerciser.step()
            done += 1
    except (AssertionError, OSError) as e:
        why = repr(e)
    check(f"{done} operations on {os.path.relpath(path, lab.mount)}, seed {seed}", not why, why)
    exerciser.close()
    check("the whole file at the end", exerciser.whole())
    return exerciser


def files(lab):
    """an ordinary file and a LUN's data, and both again after a restart"""
    print(f"  seed {SEED}")
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", str(FILE_BYTES))
    lab.serve(mount=True, extra=["--cache", "64M"])
    left = [exercise(lab, lab.mount + "/plain", SEED, False),
            exercise(lab, lab.data("vm1"), SEED + 1, True)]
    check("an orderly stop", lab.stop())
    lab.verify_pool()
    lab.serve(mount=True)
    equal("both as they were, after a restart", [x.whole() for x in left], [True, True])
    check("an orderly stop", lab.stop())


run([files])
