"""nfs-ganesha over the mount, with what `lunfs share nfs` prints: a tree goes in and out while a
block client writes a LUN in it; locks; handles over restarts."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import time

from blockclients import Iscsi
from harness import IQN, MIB, check, equal, need, run
from shares import (F_LOCK, F_TLOCK, F_ULOCK, BlockWriter, Ganesha, Nfs, alone, make_tree,
                    stop_leftovers, sums_of)

TREE_BYTES = int(os.environ.get("TREE_BYTES", 8 * MIB))
# What libnfs makes of NFS3ERR_STALE.
STALE = errno.EFAULT


def serve(lab):
    lab.size = "4G"
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "64M")
    lab.serve(mount=True, iscsi=True)
    stop_leftovers()
    return Ganesha(lab)


def raises(text, code, call, *args):
    try:
        call(*args)
        check(text, False, "it worked")
    except OSError as e:
        check(text, e.errno == code, f"{e}, not {errno.errorcode[code]}")


def drop_caches():
    with open("/proc/sys/vm/drop_caches", "w") as out:
        out.write("3")


def tree(lab):
    """a tree in, renamed, compared and out again, while a LUN beside it is written over iSCSI"""
    ganesha = serve(lab)
    session = Iscsi(lab.iscsi_port, IQN + "vm1")
    session.clear_attention()
    writer = BlockWriter(session, 1024)
    source = lab.path("source")
    os.mkdir(source)
    sums = make_tree(source, TREE_BYTES)
    nfs = Nfs(lab.mount)
    nfs.do("mkdir", "/in")
    for folder in sorted({os.path.dirname(path) for path in sums}):
        if not os.path.isdir(f"{lab.mount}/in/{os.path.dirname(folder)}"):
            nfs.do("mkdir", f"/in/{os.path.dirname(folder)}")
        nfs.do("mkdir", f"/in/{folder}")
    for path in sums:
        handle = nfs.create(f"/in/{path}")
        with open(os.path.join(source, path), "rb") as data:
            nfs.write(handle, 0, data.read())
        nfs.shut(handle)
    equal("what NFS wrote is in the mount", sums_of(f"{lab.mount}/in"), sums)
    nfs.do("rename", "/in", "/out")
    nfs.do("rename", "/out/d0", "/out/d1/d0")
    moved = {path.replace("d0/", "d1/d0/", 1) if path.startswith("d0/") else path: digest
             for path, digest in sums.items()}
    equal("so is what it renamed", sums_of(f"{lab.mount}/out"), moved)
    drop_caches()
    back = {}
    for path in moved:
        handle = nfs.open(f"/out/{path}")
        back[path] = hashlib.sha256(nfs.read(handle, 0, nfs.size(handle))).hexdigest()
        nfs.shut(handle)
    equal("and comes back whole", back, moved)
    writer.end()
    check(f"{writer.turns} writes over iSCSI beside it", writer.wrong is None, writer.wrong)
    handle = nfs.open("/vm1/data")
    want = writer.expected()
    equal("the LUN is read as it was written", nfs.read(handle, 0, len(want)) == want, True)
    check("who writes a LUN that a block client has is refused", not writes(nfs, "/vm1/data"))
    nfs.shut(handle)
    nfs.close()
    session.close()
    shutil.rmtree(f"{lab.mount}/out")
    ganesha.close()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def writes(nfs, path):
    try:
        handle = nfs.open(path, os.O_RDWR)
        nfs.write(handle, 0, bytes(4096))
        return True
    except OSError:
        return False


def locks(lab):
    """a lock of an NFS client keeps another one out, and programs of this host, and theirs keep it
    out"""
    ganesha = serve(lab)
    nfs = Nfs("/mnt", 4)
    nfs.shut(nfs.create("/file"))
    handle = nfs.open("/file", os.O_RDWR)
    with open(f"{lab.mount}/file", "r+") as local:
        how = fcntl.LOCK_EX | fcntl.LOCK_NB
        nfs.lock(handle, F_LOCK, 100)
        check("another client's lock is refused", not another_locks_it())
        raises("so is one here", errno.EAGAIN, fcntl.lockf, local, how, 10)
        fcntl.lockf(local, how, 10, 200)
        nfs.lock(handle, F_ULOCK, 100)
        check("afterwards it is not", another_locks_it())
        fcntl.lockf(local, how, 10)
        check("a lock here keeps NFS clients out", not another_locks_it())
        fcntl.lockf(local, fcntl.LOCK_UN)
        check("until it ends", another_locks_it())
    nfs.close()
    ganesha.close()
    check("an orderly stop", lab.stop())


def another_locks_it():
    """A client that comes for this: one whose lock was refused gets no other (libnfs 4.0)."""
    nfs = Nfs("/mnt", 4)
    handle = nfs.open("/file", os.O_RDWR)
    try:
        nfs.lock(handle, F_TLOCK, 100)
        nfs.lock(handle, F_ULOCK, 100)
        return True
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):  # nor does it close in order
            nfs.shut(handle)
        nfs.close()


def handles(lab):
    """what an NFS client has open is there after caches are dropped, and after both servers were
    restarted; a deleted file is stale, and a new one of its name another"""
    ganesha = serve(lab)
    nfs = Nfs(lab.mount)
    os.makedirs(f"{lab.mount}/a/b")
    for name in ("kept", "gone"):
        with open(f"{lab.mount}/a/b/{name}", "w") as out:
            out.write(f"{name} {os.getpid()}")
    os.mkdir(f"{lab.mount}/.snapshots/then")
    paths = {"/a/b/kept": f"kept {os.getpid()}", "/.snapshots/then/a/b/gone": f"gone {os.getpid()}",
             "/vm1/log": '{"'}
    opened = {path: nfs.open(path) for path in [*paths, "/a/b/gone"]}

    def compare(when):
        for path, want in paths.items():
            got = nfs.read(opened[path], 0, len(want)).decode()
            equal(f"{when}: {path}", got, want)
    compare("at once")
    drop_caches()
    compare("without caches")
    os.unlink(f"{lab.mount}/a/b/gone")
    with open(f"{lab.mount}/a/b/gone", "w") as out:
        out.write("another")
    drop_caches()
    raises("a deleted file is stale", STALE, nfs.read, opened["/a/b/gone"], 0, 1)
    device = os.stat(lab.mount).st_dev
    ganesha.end()
    check("an orderly stop", lab.stop())
    serve_as(lab, device)
    ganesha.run()
    compare("after a restart")
    raises("what was deleted is stale", STALE, nfs.read, opened["/a/b/gone"], 0, 1)
    ganesha.close()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def serve_as(lab, device):
    """Serves with the mount's former device number, by which nfs-ganesha knows it. The kernel gives
    the lowest that is free, and other tests mount too: lower ones are taken meanwhile."""
    for turn in range(60):
        taken = []
        while not taken or os.stat(taken[-1]).st_dev < device:
            taken.append(lab.path(f"taken{turn}.{len(taken)}"))
            os.mkdir(taken[-1])
            subprocess.run(["mount", "-t", "tmpfs", "none", taken[-1]], check=True)
        is_free = os.stat(taken[-1]).st_dev == device
        subprocess.run(["umount", taken[-1]], check=True)
        if is_free:
            lab.serve(mount=True, iscsi=True)
        for path in taken[:-1]:
            subprocess.run(["umount", path], check=True)
        if is_free and os.stat(lab.mount).st_dev == device:
            return
        need("an orderly stop", lab.stop())
        time.sleep(0.5)
    need("the mount has its number again", False)


def configuration(lab):
    """one line for the kernel's server, one block for nfs-ganesha"""
    lab.make_pool()
    lab.serve(nbd=True)
    lab.refused("an export without a mount", "not mounted", "share", "nfs")
    check("an orderly stop", lab.stop())
    lab.serve(mount=True)
    both = lab.do("share", "nfs", "--clients", "10.0.0.0/8", "--clients", "host.example")
    lines = [line for line in both.splitlines() if not line.startswith("#")]
    check("a line for exports(5)", lines[0].startswith(f"{lab.mount} 10.0.0.0/8(rw,"), lines[0])
    check("with a number of its own", lines[0].count("fsid=") == 2, lines[0])
    one = lab.do("share", "nfs", "--server", "kernel")
    check("each alone", "EXPORT" not in one and "EXPORT" in both, one)
    lab.refused("a client that is none", "not a host", "share", "nfs", "--clients", "a b", code=2)
    check("an orderly stop", lab.stop())


alone()
run([configuration, tree, locks, handles])
