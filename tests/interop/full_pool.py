"""A full pool: each door says so in its own words, deletes work, and nothing else is lost."""

import errno
import hashlib
import os

import nbd

from blockclients import DATA_PROTECT, SPACE_ALLOCATION_FAILED, Iscsi, ScsiError, nbd_connect
from harness import IQN, MIB, check, equal, need, run

CHUNK = MIB // 4
POOL_MIB = 256


def noise(n):
    return hashlib.shake_128(n.to_bytes(8, "little")).digest(CHUNK)


def start(lab):
    """A pool of 256 MiB with something in it that must survive."""
    lab.size = f"{POOL_MIB}M"
    lab.make_pool()
    for name in ("keep", "fill"):
        lab.do("lun", "create", name, "--size", "1G")
    lab.serve(mount=True, iscsi=True, nbd=True, extra=["--cache", "64M"])
    keep = nbd_connect(lab.nbd_port, "keep")
    for n in range(32):
        keep.pwrite(noise(n), n * CHUNK)
    keep.flush()
    return keep


def fill(write):
    """Writes until it is refused; how many chunks went in and what the refusal was."""
    for n in range(4 * POOL_MIB + 1):
        try:
            write(noise(1000 + n), n * CHUNK)
        except (ScsiError, nbd.Error, OSError) as e:
            return n, e
    return n, None


def survived(lab, keep, filled, read):
    """What was there before, and what was accepted while it filled up."""
    bad = [n for n in range(32) if bytes(keep.pread(CHUNK, n * CHUNK)) != noise(n)]
    equal("what was there before is unharmed", bad, [])
    bad = [n for n in range(filled) if bytes(read(CHUNK, n * CHUNK)) != noise(1000 + n)]
    equal("every write that was accepted is there", bad, [])


def space_returns(lab, write):
    """After a delete a write works, at once: the writer waits for the space that is coming back."""
    try:
        write(noise(1), 0)
        check("a write works again", True)
    except (ScsiError, nbd.Error, OSError) as e:
        check("a write works again", False, e)


def ends_well(lab):
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def by_iscsi(lab):
    """filled over iSCSI: DATA PROTECT, SPACE ALLOCATION FAILED; then UNMAP works"""
    keep = start(lab)
    session = Iscsi(lab.iscsi_port, IQN + "fill")
    session.clear_attention()
    filled, why = fill(lambda data, at: write_through_attention(session, at, data))
    need("the pool fills up", why is not None)
    got = (getattr(why, "key", None), getattr(why, "ascq", None))
    equal("the sense", got, (DATA_PROTECT, SPACE_ALLOCATION_FAILED))
    check(f"after {filled * CHUNK // MIB} MiB of {POOL_MIB}", filled * CHUNK > POOL_MIB * MIB // 2)
    survived(lab, keep, filled, lambda length, at: session.read(at, length))
    session.flush()
    most, _ = session.unmap_limits()
    step = min(most, (64 * MIB) // 512)
    session.unmap((0, step))
    space_returns(lab, lambda data, at: write_through_attention(session, at, data))
    session.close()
    keep.shutdown()
    ends_well(lab)


def write_through_attention(session, at, data):
    """A thin-provisioning threshold is announced by a unit attention before the end."""
    try:
        session.write(at, data)
    except ScsiError as e:
        if e.key != 6:
            raise
        session.clear_attention()
        session.write(at, data)


def by_nbd(lab):
    """filled over NBD: ENOSPC; then the deletion of a LUN works"""
    keep = start(lab)
    handle = nbd_connect(lab.nbd_port, "fill")
    filled, why = fill(lambda data, at: handle.pwrite(data, at))
    need("the pool fills up", why is not None)
    equal("the error", getattr(why, "errnum", None), errno.ENOSPC)
    survived(lab, keep, filled, handle.pread)
    handle.flush()
    handle.shutdown()
    lab.do("lun", "delete", "fill", "--force")
    space_returns(lab, lambda data, at: keep.pwrite(data, 64 * MIB))
    keep.shutdown()
    ends_well(lab)


def by_file(lab):
    """filled through the mount: ENOSPC; then rm works"""
    keep = start(lab)
    fd = os.open(lab.mount + "/big", os.O_RDWR | os.O_CREAT)
    filled, why = fill(lambda data, at: pwrite_all(fd, data, at))
    need("the pool fills up", why is not None)
    equal("the error", why.errno, errno.ENOSPC)
    survived(lab, keep, filled, lambda length, at: os.pread(fd, length, at))
    lab.refused("an import into a full pool", "space|full", "lun", "import", "more", "--size",
                "64M", "-", input=noise(5) * 256)
    os.fsync(fd)
    os.close(fd)
    os.unlink(lab.mount + "/big")
    space_returns(lab, lambda data, at: keep.pwrite(data, 64 * MIB))
    keep.shutdown()
    ends_well(lab)
    lab.serve(nbd=True)
    again = nbd_connect(lab.nbd_port, "keep")
    bad = [n for n in range(32) if bytes(again.pread(CHUNK, n * CHUNK)) != noise(n)]
    equal("and all of it after a restart", bad, [])
    again.shutdown()


def pwrite_all(fd, data, at):
    done = os.pwrite(fd, data, at)
    if done != len(data):
        os.pwrite(fd, data[done:], at + done)


run([by_iscsi, by_nbd, by_file])
