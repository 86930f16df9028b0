"""Readers on every door against a writer on every door: read(2), O_DIRECT and mmap in the mount,
Samba, NFS, iSCSI, NBD and NBS find no stale byte and no stale size."""

import mmap
import os
import threading
import time

import nbswire
from blockclients import Iscsi, nbd_connect
from harness import IQN, KIB, MIB, check, equal, free_port, need, run
from shares import Ganesha, Nfs, Samba, alone, stop_leftovers

BLOCK = 4 * KIB
ROUNDS = int(os.environ.get("ROUNDS", 20))
STORM_SECONDS = float(os.environ.get("STORM_SECONDS", 4))
# Mapped pages follow by notices from another thread: within this they have.
MAPPED_SECONDS = 1.0
SHARE_ALL, OPEN_EXISTING = 7, 1
READ_WRITE_ACCESS = 0x0012019F


class File:
    """`data` in the mount."""

    def __init__(self, lab):
        self.path = lab.data("vm1")
        self.fd = os.open(self.path, os.O_RDWR)

    def read(self, offset, length):
        return os.pread(self.fd, length, offset)

    def write(self, offset, data):
        os.pwrite(self.fd, data, offset)

    def size(self):
        return os.stat(self.path).st_size

    def close(self):
        os.close(self.fd)


class Direct(File):
    """The same with O_DIRECT."""

    def __init__(self, lab):
        super().__init__(lab)
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)

    def read(self, offset, length):
        with mmap.mmap(-1, length) as page:
            os.preadv(self.fd, [page], offset)
            return bytes(page)

    def write(self, offset, data):
        with mmap.mmap(-1, len(data)) as page:
            page[:] = data
            os.pwritev(self.fd, [page], offset)

    def size(self):
        return os.fstat(self.fd).st_size


class Mapped(File):
    """The same as memory."""

    def __init__(self, lab):
        super().__init__(lab)
        self.map = mmap.mmap(self.fd, 8 * MIB)

    def read(self, offset, length):
        return self.map[offset:offset + length]

    def write(self, offset, data):
        self.map[offset:offset + len(data)] = data
        self.map.flush(offset, len(data))


class SmbFile:
    """Through Samba, by a handle that stays open."""

    def __init__(self, samba):
        self.conn = samba.connect()
        self.file = self.conn.create("vm1\\data", DesiredAccess=READ_WRITE_ACCESS,
                                     ShareAccess=SHARE_ALL, CreateDisposition=OPEN_EXISTING)

    def read(self, offset, length):
        return self.conn.read(self.file, offset, length)

    def write(self, offset, data):
        self.conn.write(self.file, data, offset)

    def size(self):
        listed = {entry["name"]: entry["size"] for entry in self.conn.list("vm1")}
        return listed["data"]

    def close(self):
        self.conn.close(self.file)


class NfsFile:
    """Through nfs-ganesha, by a handle that stays open."""

    def __init__(self, lab):
        self.client = Nfs(lab.mount)
        self.file = self.client.open("/vm1/data", os.O_RDWR)

    def read(self, offset, length):
        return self.client.read(self.file, offset, length)

    def write(self, offset, data):
        self.client.write(self.file, offset, data)

    def size(self):
        return self.client.size(self.file)

    def close(self):
        self.client.shut(self.file)
        self.client.close()


class NbdDisk:
    def __init__(self, lab):
        self.lab = lab
        self.disk = nbd_connect(lab.nbd_port, "vm1")

    def read(self, offset, length):
        return bytes(self.disk.pread(length, offset))

    def write(self, offset, data):
        self.disk.pwrite(data, offset)

    def size(self):
        """A client learns a new size when it connects."""
        other = nbd_connect(self.lab.nbd_port, "vm1")
        try:
            return other.get_size()
        finally:
            other.shutdown()

    def close(self):
        self.disk.shutdown()


class NbsObject:
    def __init__(self, lab):
        self.lab = lab
        self.client = nbswire.Client(lab.nbs_port)
        self.client.open("vm1", client=f"reader{id(self)}")
        self.read, self.write, self.close = self.client.read, self.client.write, self.client.close

    def size(self):
        return int(self.client.list()["vm1"]["numBlks"]) * 512


class IscsiDisk:
    def __init__(self, lab, name="a"):
        self.disk = Iscsi(lab.iscsi_port, IQN + "vm1", f"iqn.2026-11.local.test:{name}")
        self.disk.clear_attention()
        self.read, self.write, self.close = self.disk.read, self.disk.write, self.disk.close

    def size(self):
        self.disk.clear_attention()
        return self.disk.capacity_bytes()


def serve(lab):
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "64M", "access=shared", "nbs-block-size=512")
    lab.nbs_port = free_port()
    lab.serve(mount=True, iscsi=True, nbd=True, extra=("--nbs", f"127.0.0.1:{lab.nbs_port}"))
    stop_leftovers()
    return Samba(lab), Ganesha(lab)


def doors(lab, samba):
    return {"read(2)": File(lab), "O_DIRECT": Direct(lab), "mmap": Mapped(lab),
            "Samba": SmbFile(samba), "NFS": NfsFile(lab), "iSCSI": IscsiDisk(lab),
            "NBD": NbdDisk(lab), "NBS": NbsObject(lab)}


def stamp(turn):
    return turn.to_bytes(8, "little") * (BLOCK // 8)


def sees(name, door, offset, want):
    deadline = time.monotonic() + (MAPPED_SECONDS if name == "mmap" else 0)
    while (got := door.read(offset, BLOCK)) != want and time.monotonic() < deadline:
        pass
    return got == want


def turns(lab):
    """each door writes in turn; every other one reads that at once, and the new size"""
    samba, ganesha = serve(lab)
    all_doors = doors(lab, samba)
    turn, stale = 0, {}
    for _ in range(ROUNDS):
        for writer, to in all_doors.items():
            turn += 1
            offset = turn % 64 * BLOCK
            to.write(offset, stamp(turn))
            for reader, of in all_doors.items():
                if not sees(reader, of, offset, stamp(turn)):
                    stale[f"{writer} -> {reader}"] = stale.get(f"{writer} -> {reader}", 0) + 1
    equal(f"{turn} writes, each read through {len(all_doors)} doors: none is stale", stale, {})
    size = 64 * MIB
    for step in ("command", "truncate", "command", "truncate"):
        size += 8 * MIB
        if step == "command":
            lab.do("lun", "resize", "vm1", "--size", size)
        else:
            os.truncate(lab.data("vm1"), size)
        equal(f"all see the size after a {step}",
              {name: door.size() for name, door in all_doors.items()},
              {name: size for name in all_doors})
    for door in all_doors.values():
        door.close()
    end(lab, samba, ganesha)


def storm(lab):
    """one door writes as fast as it can, all others read: never older than what was complete"""
    samba, ganesha = serve(lab)
    makers = {"read(2)": lambda: File(lab), "O_DIRECT": lambda: Direct(lab),
              "Samba": lambda: SmbFile(samba), "NFS": lambda: NfsFile(lab),
              "iSCSI": lambda: IscsiDisk(lab, "r"), "NBD": lambda: NbdDisk(lab),
              "NBS": lambda: NbsObject(lab)}
    for name in ("iSCSI", "NBD", "NBS", "read(2)", "Samba", "NFS"):
        one_storm(name, makers)
    end(lab, samba, ganesha)


def one_storm(name, makers):
    writer = makers[name]()
    blocks = 16
    over = threading.Event()
    begun, done = [0] * blocks, [0] * blocks
    for block in range(blocks):
        writer.write(block * BLOCK, stamp(0))
    counts, wrong = {}, []

    def reads(reader):
        try:
            door, block = makers[reader](), 0
            while not over.is_set():
                block = (block + 1) % blocks
                least = done[block]
                got = door.read(block * BLOCK, BLOCK)
                most = begun[block]
                value = int.from_bytes(got[:8], "little")
                if not least <= value <= most or got != stamp(value):
                    wrong.append(f"{reader}: block {block}: {value}, not {least} to {most}")
                counts[reader] = counts.get(reader, 0) + 1
            door.close()
        except Exception as error:
            wrong.append(f"{reader}: {error!r}")

    threads = [threading.Thread(target=reads, args=(reader,)) for reader in makers]
    for thread in threads:
        thread.start()
    deadline, turn = time.monotonic() + STORM_SECONDS / 6, 1
    while time.monotonic() < deadline or len(counts) < len(makers) and not wrong:
        block = turn % blocks
        begun[block] = turn
        writer.write(block * BLOCK, stamp(turn))
        done[block] = turn
        turn += 1
    over.set()
    for thread in threads:
        thread.join()
    writer.close()
    check(f"{turn} writes by {name} beside {sum(counts.values())} reads", not wrong, wrong[:5])
    need("every door read", len(counts) == len(makers), counts)


def end(lab, samba, ganesha):
    ganesha.close()
    samba.close()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


alone()
run([turns, storm])
