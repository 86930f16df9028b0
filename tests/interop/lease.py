"""One LUN, several doors: who may open, read and write while another door has it."""

import errno
import os
import time

from blockclients import NOT_READY, Iscsi, ScsiError, nbd_connect
from harness import IQN, check, equal, run

GRACE_SECONDS = 30
WAIT_SECONDS = 1


def opens(text, path, flags, code=0):
    """Opens and closes; the errno must be `code` (0: it works)."""
    try:
        os.close(os.open(path, flags))
        got = 0
    except OSError as e:
        got = e.errno
    check(text, got == code, f"errno {got} ({os.strerror(got)}), not {code}")


def serve(lab, *keys):
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "64M", *keys)
    lab.serve(mount=True, iscsi=True, nbd=True)
    session = Iscsi(lab.iscsi_port, IQN + "vm1")
    session.clear_attention()
    return session


def eventually(text, good, seconds=5):
    """A thing that comes true a moment later, such as the end of a lease after a logout."""
    deadline = time.monotonic() + seconds
    came_true = good()  # Asked once a turn: asking may consume what it asks for.
    while not came_true and time.monotonic() < deadline:
        time.sleep(0.05)
        came_true = good()
    return check(text, came_true)


def can_open(path, flags=os.O_RDWR):
    try:
        os.close(os.open(path, flags))
        return True
    except OSError:
        return False


def block_holds(lab):
    """a block client that writes keeps file writers out, and readers see its writes"""
    session = serve(lab)
    path = lab.data("vm1")
    opens("idle: opened for writing", path, os.O_RDWR)
    session.clear_attention()
    session.write(0, b"B" * 4096)
    opens("O_RDWR is EBUSY", path, os.O_RDWR, errno.EBUSY)
    opens("O_TRUNC is EBUSY", path, os.O_WRONLY | os.O_TRUNC, errno.EBUSY)
    log = open(os.path.join(lab.mount, "vm1", "log")).read()
    check("the log names the holder", "local.test:a" in log and "lease" in log, log[-500:])
    with open(path, "rb", buffering=0) as data:
        for turn in range(50):
            session.write(8192, bytes([turn]) * 512)
            data.seek(8192)
            if data.read(512) != bytes([turn]) * 512:
                check(f"a reader sees write {turn} at its next read", False)
                break
        else:
            check("a reader sees each of 50 writes at its next read", True)
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, b"no")
        check("a write through O_WRONLY is refused", False, "it worked")
    except OSError as e:
        check("a write through O_WRONLY is refused", e.errno == errno.EBUSY, e)
    os.ftruncate(fd, 96 << 20)
    os.close(fd)
    equal("a growing ftruncate resized it", os.stat(path).st_size, 96 << 20)
    check("mv is EBUSY", errno_of(os.rename, lab.mount + "/vm1", lab.mount + "/x") == errno.EBUSY)
    check("rmdir is EBUSY", errno_of(os.rmdir, lab.mount + "/vm1") == errno.EBUSY)
    session.close()
    eventually("after the logout it opens for writing", lambda: can_open(path))
    equal("what was written is there", open(path, "rb").read(4096), b"B" * 4096)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def errno_of(call, *args):
    try:
        call(*args)
        return 0
    except OSError as e:
        return e.errno


def file_holds(lab):
    """a file writer makes media writes wait, then NOT READY; a unit attention when it closes"""
    session = serve(lab)
    with open(lab.data("vm1"), "r+b", buffering=0) as data:
        data.write(b"F" * 4096)
        second = Iscsi(lab.iscsi_port, IQN + "vm1", "iqn.2026-11.local.test:second")
        check("login works meanwhile", True)
        second.clear_attention()
        equal("reads work meanwhile", second.read(0, 4096), b"F" * 4096)
        second.close()
        session.clear_attention()
        started = time.monotonic()
        key = sense_key(session.write, 0, b"B" * 4096)
        waited = time.monotonic() - started
        check("a write answers NOT READY", key == NOT_READY, key)
        check("after a wait of about a second", 0.5 <= waited <= WAIT_SECONDS + 3, waited)
        equal("and changed nothing", session.read(0, 4096), b"F" * 4096)
    eventually("a unit attention when the file closes", lambda: attention(session), 3)
    session.write(0, b"B" * 4096)
    equal("then the write works", session.read(0, 4096), b"B" * 4096)
    session.close()
    check("an orderly stop", lab.stop())


def attention(session):
    return bool(session.clear_attention())


def sense_key(call, *args):
    try:
        call(*args)
        return None
    except ScsiError as e:
        return e.key


def doors_share(lab):
    """NBD and iSCSI writers hold one lease together"""
    session = serve(lab)
    handle = nbd_connect(lab.nbd_port, "vm1")
    handle.pwrite(b"N" * 4096, 0)
    session.clear_attention()
    session.write(4096, b"I" * 4096)
    equal("NBD reads what iSCSI wrote", bytes(handle.pread(4096, 4096)), b"I" * 4096)
    equal("iSCSI reads what NBD wrote", session.read(0, 4096), b"N" * 4096)
    session.close()
    opens("held still by NBD", lab.data("vm1"), os.O_RDWR, errno.EBUSY)
    handle.shutdown()
    eventually("free after the last one left", lambda: can_open(lab.data("vm1")))
    check("an orderly stop", lab.stop())


def lost_connection(lab):
    """a lost connection keeps the lease for 30 s"""
    session = serve(lab)
    lab.do("lun", "create", "vm2", "--size", "64M")
    handle = nbd_connect(lab.nbd_port, "vm2")
    session.write(0, b"B" * 4096)
    handle.pwrite(b"N" * 4096, 0)
    session.close(logout=False)
    del handle  # without NBD_CMD_DISC
    lost = time.monotonic()
    time.sleep(1)
    for name in ("vm1", "vm2"):
        opens(f"{name} held a second after the loss", lab.data(name), os.O_RDWR, errno.EBUSY)
    for name in ("vm1", "vm2"):
        eventually(f"{name} free in the end", lambda: can_open(lab.data(name)), GRACE_SECONDS + 15)
        waited = time.monotonic() - lost
        check(f"{name} after {waited:.0f} s", GRACE_SECONDS - 3 <= waited <= GRACE_SECONDS + 10)
    check("an orderly stop", lab.stop())


def shared_access(lab):
    """access=shared keeps nobody out"""
    session = serve(lab, "access=shared")
    session.write(0, b"B" * 4096)
    with open(lab.data("vm1"), "r+b", buffering=0) as data:
        data.write(b"F" * 512)
        session.clear_attention()
        session.write(512, b"C" * 512)
        data.seek(0)
        equal("both wrote", data.read(1536), b"F" * 512 + b"C" * 512 + b"B" * 512)
    session.close()
    check("an orderly stop", lab.stop())


run([block_holds, file_holds, doors_share, shared_access, lost_connection])
