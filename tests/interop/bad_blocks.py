"""Blocks that rot in a pool of one device: an error for just those, in each door's words, named in
`log` and `status`, gone when they are written again; everything else is served."""

import errno
import hashlib
import os
import re

import nbd

from blockclients import MEDIUM_ERROR, Iscsi, ScsiError, nbd_connect
from harness import IQN, check, equal, need, run

BLOCK = 4096
BLOCKS = 512  # of each file: two leaves of its tree
UNRECOVERED_READ_ERROR = 0x1100
BAD = [3, 100, 101, 300]


def noise(name, n):
    return hashlib.shake_128(f"{name} {n}".encode()).digest(BLOCK)


def rot(lab, *wanted):
    """Changes a byte in every place of the pool that holds one of these blocks' beginnings."""
    left = {data[:64]: data for data in wanted}
    with open(lab.pool, "r+b") as pool:
        image = pool.read()
        for start in left:
            at = image.find(start)
            need("the block is in the pool", at >= 0, start[:16])
            while at >= 0:
                pool.seek(at + 40)
                pool.write(bytes([image[at + 40] ^ 0x10]))
                at = image.find(start, at + 1)


def prepare(lab):
    """A LUN and an ordinary file of blocks that no other place has; the server is stopped."""
    lab.size = "256M"
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "16M", "serial=ROTTEN1")
    lab.do("lun", "create", "other", "--size", "16M", "serial=ROTTEN2")
    lab.serve(mount=True, nbd=True)
    for name in ("vm1", "other"):
        client = nbd_connect(lab.nbd_port, name)
        client.pwrite(b"".join(noise(name, n) for n in range(BLOCKS)), 0)
        client.flush()
        client.shutdown()
    with open(os.path.join(lab.mount, "file"), "wb") as f:
        f.write(b"".join(noise("file", n) for n in range(BLOCKS)))
        f.flush()
        os.fsync(f.fileno())
    check("an orderly stop", lab.stop())


def sense_of(session, lba, blocks):
    """Key, code and INFORMATION of a READ(16) that fails, in either format."""
    try:
        session.read(lba * 512, blocks * 512)
        return None
    except ScsiError as e:
        if e.raw[0] & 0x7F == 0x72:
            valid = e.raw[8:11] == bytes([0, 10, 0x80])
            return e.raw[1], e.raw[2] << 8 | e.raw[3], valid and int.from_bytes(e.raw[12:20], "big")
        valid = e.raw[0] == 0xF0
        return e.key, e.ascq, valid and int.from_bytes(e.raw[3:7], "big")


def descriptor_sense(session):
    """Asks for sense data in descriptor format: D_SENSE of the control mode page."""
    page = bytearray(session.cdb(bytes([0x1A, 8, 0x0A, 0, 255, 0]), 255)[4:])
    page[2] |= 4
    data = bytes(4) + bytes(page)
    session.cdb(bytes([0x15, 0x10, 0, 0, len(data), 0]), data=data)


def lost(lba):
    return MEDIUM_ERROR, UNRECOVERED_READ_ERROR, lba


def by_iscsi(lab):
    """MEDIUM ERROR, UNRECOVERED READ ERROR for just the bad blocks"""
    session = Iscsi(lab.iscsi_port, IQN + "vm1")
    session.clear_attention()
    good = [n for n in range(BLOCKS) if n not in BAD]
    wrong = [n for n in good if session.read(n * BLOCK, BLOCK) != noise("vm1", n)]
    equal("every other block is served", wrong, [])
    for n in BAD:
        equal(f"block {n}", sense_of(session, n * 8, 8), lost(n * 8))
    equal("a read over all of it", sense_of(session, 0, BLOCKS * 8), lost(BAD[0] * 8))
    equal("a read from there on", sense_of(session, 200, BLOCKS * 4), lost(BAD[1] * 8))
    equal("a read within a bad block", sense_of(session, BAD[3] * 8 + 5, 2), lost(BAD[3] * 8 + 5))
    descriptor_sense(session)
    equal("in descriptor format", sense_of(session, 200, BLOCKS * 4), lost(BAD[1] * 8))
    equal("the next block is served", session.read(4 * BLOCK, BLOCK) == noise("vm1", 4), True)
    return session


def by_nbd(lab):
    """EIO for just those requests"""
    client = nbd_connect(lab.nbd_port, "vm1")
    for n in BAD:
        try:
            client.pread(BLOCK, n * BLOCK)
            check(f"NBD: block {n} is EIO", False)
        except nbd.Error as e:
            equal(f"NBD: block {n}", e.errnum, errno.EIO)
    told = []

    def chunk(data, offset, status, error):
        if status == nbd.READ_ERROR:
            told.append(offset)
        return 0
    try:
        client.pread_structured(16 * BLOCK, 96 * BLOCK, chunk)
    except nbd.Error:
        pass
    equal("NBD: the error chunk names the first bad byte", told, [100 * BLOCK])
    both = bytes(client.pread(2 * BLOCK, 102 * BLOCK))
    equal("NBD: its neighbours", both, noise("vm1", 102) + noise("vm1", 103))
    return client


def by_file(lab):
    """EIO in `data` and in an ordinary file"""
    for path, name in ((lab.data("vm1"), "vm1"), (os.path.join(lab.mount, "file"), "file")):
        fd = os.open(path, os.O_RDONLY)
        bad = []
        for n in range(BLOCKS):
            try:
                data = os.pread(fd, BLOCK, n * BLOCK)
                check(f"{name}: block {n}", data == noise(name, n)) if data != noise(name, n) else 0
            except OSError as e:
                equal(f"{name}: block {n}", e.errno, errno.EIO)
                bad.append(n)
        os.close(fd)
        equal(f"{name}: the others are served", bad, BAD)


def told(lab):
    """`log` and `status` name each place once"""
    lines = [line for line in lab.ask("lun", "log", "vm1") if "medium" in str(line)]
    equal("one line of the log for each", len(lines), len(BAD))
    check("it names the LBA", any(re.search(r"lba\W+24\b", str(line)) for line in lines), lines[:1])
    errors = lab.ask("status")["errors"]
    mine = [e for e in errors if e.get("lun") == "vm1" and e.get("file") == "data"]
    equal("status: LBAs of the LUN", sorted(e["lba"] for e in mine), [n * 8 for n in BAD])
    equal("status: offsets", sorted(e["offset_bytes"] for e in mine), [n * BLOCK for n in BAD])
    equal("status: lengths", {e["length_bytes"] for e in mine}, {BLOCK})
    inode = os.stat(os.path.join(lab.mount, "file")).st_ino
    files = [e["offset_bytes"] for e in errors if e.get("inode") == inode]
    # the kernel reads ahead: at least what was asked for is there
    equal("status: the ordinary file", sorted(files), [n * BLOCK for n in BAD])
    text = lab.do("status")
    check("status as text", re.search(r"! vm1/data: .*LBA 24 to 31.* cannot be read", text), text)
    check("no error of the other LUN", not any(e.get("lun") == "other" for e in errors), errors)


def written_again(lab, session, client):
    """a write of the whole block clears it, a part of it is refused"""
    try:
        session.write(BAD[0] * BLOCK + 512, b"x" * 512)
        check("a part of a bad block cannot be written", False)
    except ScsiError as e:
        equal("a part of a bad block cannot be written", e.key, MEDIUM_ERROR)
    session.write(BAD[0] * BLOCK, b"y" * BLOCK)
    client.zero(BLOCK, BAD[1] * BLOCK)
    client.trim(BLOCK, BAD[2] * BLOCK)
    client.flush()
    equal("written", session.read(BAD[0] * BLOCK, BLOCK), b"y" * BLOCK)
    equal("zeroed and trimmed", session.read(BAD[1] * BLOCK, 2 * BLOCK), bytes(2 * BLOCK))
    errors = [e.get("lba") for e in lab.ask("status")["errors"] if e.get("lun") == "vm1"]
    equal("status lists what is left", errors, [BAD[3] * 8])
    path = os.path.join(lab.mount, "file")
    with open(path, "r+b") as f:
        for n in BAD:
            f.seek(n * BLOCK)
            f.write(noise("new", n))
    os.sync()
    errors = [e for e in lab.ask("status")["errors"] if e["source"] == "file"]
    equal("and none of the file's", errors, [])
    os.unlink(path)


def data_blocks(lab):
    """blocks of a LUN and of a file rot"""
    prepare(lab)
    rot(lab, *[noise(name, n) for name in ("vm1", "file") for n in BAD])
    found = lab.lunfs("pool", "check", lab.pool)
    check("pool check finds them", found.returncode == 1, found.out + found.err)
    lab.serve(mount=True, iscsi=True, nbd=True)
    session = by_iscsi(lab)
    client = by_nbd(lab)
    by_file(lab)
    told(lab)
    written_again(lab, session, client)
    session.close()
    client.shutdown()
    other = nbd_connect(lab.nbd_port, "other")
    whole = bytes(other.pread(BLOCKS * BLOCK, 0))
    equal("the other LUN", whole == b"".join(noise("other", n) for n in range(BLOCKS)), True)
    out = lab.path("out.raw")
    done = lab.lunfs("lun", "export", "vm1", out)
    check("an export says where it stops", done.returncode == 1, done.err)
    lab.do("lun", "export", "other", lab.path("other.raw"))
    check("an orderly stop", lab.stop())


def log_and_attributes(lab):
    """blocks of `log` and `attributes` rot: the LUN is served read-only, the log goes on"""
    prepare(lab)
    with open(lab.pool, "rb") as pool:
        image = pool.read()
    texts = [m.start() // BLOCK * BLOCK for m in re.finditer(rb'serial = "ROTTEN1"', image)]
    logs = [at for at in range(0, len(image), BLOCK)
            if image[at:at + 20].startswith(b'{"time":"') and b'"vm1"' in image[at:at + BLOCK]]
    need("both are in the pool", texts and logs)
    with open(lab.pool, "r+b") as pool:
        for at in texts + logs:
            pool.seek(at + 1)
            pool.write(b"\xee")
    lab.serve(mount=True, nbd=True)
    client = nbd_connect(lab.nbd_port, "vm1")
    equal("the LUN is read-only", client.is_read_only(), True)
    equal("its data is served", bytes(client.pread(BLOCK, BLOCK)), noise("vm1", 1))
    client.shutdown()
    lines = lab.ask("lun", "log", "vm1")
    check("the log goes on", "login" in str(lines), lines)
    errors = lab.ask("status")["errors"]
    named = {e.get("file") for e in errors if e.get("lun") == "vm1"}
    check("status names `attributes`", "attributes" in named, errors)
    lab.do("lun", "set", "vm1", "read-only=false")
    client = nbd_connect(lab.nbd_port, "vm1")
    client.pwrite(b"z" * BLOCK, 0)
    client.flush()
    client.shutdown()
    errors = [e for e in lab.ask("status")["errors"] if e.get("file") == "attributes"]
    equal("after `lun set` it is well again", errors, [])
    check("an orderly stop", lab.stop())
    lab.serve(nbd=True)
    client = nbd_connect(lab.nbd_port, "vm1")
    equal("also after a restart", client.is_read_only(), False)
    client.shutdown()
    check("an orderly stop", lab.stop())


run([data_blocks, log_and_attributes])
