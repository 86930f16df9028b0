"""The mount as ordinary programs use it: a real tree, links, attributes, holes, and the rules of a
LUN's directory."""

import errno
import filecmp
import fcntl
import os
import stat
import struct
import sysconfig

from harness import KIB, MIB, check, equal, need, require, run, tool

require("cp", "diff", "tar", "setfattr", "getfattr")
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 1, 2, 16


def fails(text, code, call, *args, **more):
    """A call that must fail with this errno."""
    try:
        call(*args, **more)
        check(text, False, "it worked")
    except OSError as e:
        check(text, e.errno == code, f"{e}, not {errno.errorcode[code]}")


def serve(lab):
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "64M")
    lab.serve(mount=True)
    return lab.mount


def real_tree(lab):
    """a tree of this machine, copied in, compared, and there after a restart"""
    mount = serve(lab)
    source = os.path.dirname(sysconfig.__file__)
    tool("cp", "-a", source, f"{mount}/lib")
    tool("diff", "-r", "--no-dereference", source, f"{mount}/lib")
    tool("tar", "-C", source, "-cf", f"{mount}/lib.tar", ".")
    check("an orderly stop", lab.stop())
    check("the mount is gone", not lab.mounted())
    lab.verify_pool()
    lab.serve(mount=True)
    tool("diff", "-r", "--no-dereference", source, f"{mount}/lib")
    tool("tar", "-C", source, "-df", f"{mount}/lib.tar")
    tool("rm", "-r", f"{mount}/lib", f"{mount}/lib.tar")
    equal("only the LUN is left", os.listdir(mount), ["vm1"])
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def names_and_links(lab):
    """links, rename, permissions, times, extended attributes"""
    m = serve(lab)
    os.mkdir(f"{m}/d", 0o750)
    with open(f"{m}/d/f", "w") as f:
        f.write("hello")
    os.link(f"{m}/d/f", f"{m}/d/g")
    equal("two links", os.stat(f"{m}/d/f").st_nlink, 2)
    os.symlink("d/f", f"{m}/s")
    equal("a symbolic link is followed", open(f"{m}/s").read(), "hello")
    os.rename(f"{m}/d/g", f"{m}/g")
    equal("a rename across directories", open(f"{m}/g").read(), "hello")
    os.chmod(f"{m}/g", 0o4711)
    equal("mode bits", stat.S_IMODE(os.stat(f"{m}/d/f").st_mode), 0o4711)
    os.utime(f"{m}/g", ns=(1_000_000_001, 2_000_000_002))
    equal("times to the nanosecond", os.stat(f"{m}/g").st_mtime_ns, 2_000_000_002)
    if os.getuid() == 0:
        os.chown(f"{m}/g", 123, 456)
        equal("owner", (os.stat(f"{m}/g").st_uid, os.stat(f"{m}/g").st_gid), (123, 456))
        os.mknod(f"{m}/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        equal("a device node", os.stat(f"{m}/null").st_rdev, os.makedev(1, 3))
    os.setxattr(f"{m}/g", "user.colour", b"blue")
    equal("extended attribute", os.getxattr(f"{m}/d/f", "user.colour"), b"blue")
    os.removexattr(f"{m}/g", "user.colour")
    fails("it is removed", errno.ENODATA, os.getxattr, f"{m}/g", "user.colour")
    fails("rmdir of a full directory", errno.ENOTEMPTY, os.rmdir, f"{m}/d")
    fails("a name of 256 bytes", errno.ENAMETOOLONG, os.mkdir, f"{m}/" + "n" * 256)
    os.mkdir(f"{m}/" + "n" * 255)
    for n in range(3000):
        os.mknod(f"{m}/d/file-{n}")
    equal("a directory of 3002 entries", len(os.listdir(f"{m}/d")), 3001)
    statfs = os.statvfs(m)
    check("statfs", 0 < statfs.f_bavail < statfs.f_blocks and statfs.f_namemax == 255)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def holes(lab):
    """sparse files, SEEK_HOLE, fallocate, truncate, an unlinked open file"""
    m = serve(lab)
    fd = os.open(f"{m}/sparse", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"x" * 4096, 64 * MIB)
    equal("size", os.fstat(fd).st_size, 64 * MIB + 4096)
    check("little space", os.fstat(fd).st_blocks * 512 <= 64 * KIB, os.fstat(fd).st_blocks)
    equal("SEEK_DATA", os.lseek(fd, 0, os.SEEK_DATA), 64 * MIB)
    equal("SEEK_HOLE", os.lseek(fd, 0, os.SEEK_HOLE), 0)
    equal("SEEK_HOLE after the data", os.lseek(fd, 64 * MIB, os.SEEK_HOLE), 64 * MIB + 4096)
    fails("SEEK_DATA at the end", errno.ENXIO, os.lseek, fd, 64 * MIB + 4096, os.SEEK_DATA)
    os.pwrite(fd, b"y" * MIB, 0)
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 64 * KIB + 100, 256 * KIB)
    want = b"y" * (64 * KIB + 100) + bytes(256 * KIB) + b"y" * (MIB - 320 * KIB - 100)
    equal("a punched hole", os.pread(fd, MIB, 0) == want, True)
    equal("SEEK_HOLE finds it", os.lseek(fd, 0, os.SEEK_HOLE), 68 * KIB)
    fallocate(fd, FALLOC_FL_ZERO_RANGE, 512 * KIB, 4096)
    equal("a zeroed range", os.pread(fd, 4096, 512 * KIB), bytes(4096))
    os.ftruncate(fd, 100)
    os.ftruncate(fd, 8192)
    equal("truncated and grown", os.pread(fd, 8192, 0), b"y" * 100 + bytes(8092))
    os.unlink(f"{m}/sparse")
    os.pwrite(fd, b"still here", 0)
    equal("an unlinked file works", os.pread(fd, 10, 0), b"still here")
    os.fsync(fd)
    os.close(fd)
    fails("and is gone", errno.ENOENT, os.stat, f"{m}/sparse")
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def fallocate(fd, mode, offset, length):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    args = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
    libc.fallocate.argtypes = args
    if libc.fallocate(fd, mode, offset, length) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def lun_directory(lab):
    """a LUN's directory and its rules"""
    m = serve(lab)
    equal("its files", sorted(f for f in os.listdir(f"{m}/vm1") if f != ".snapshots"),
          ["attributes", "data", "log"])
    equal("data is as long as the LUN", os.stat(f"{m}/vm1/data").st_size, 64 * MIB)
    text = open(f"{m}/vm1/attributes").read()
    check("attributes is TOML that names the size", "size" in text and "=" in text, text)
    check("log has a line for the creation", "create" in open(f"{m}/vm1/log").read())
    fails("a new file inside", errno.EPERM, os.mknod, f"{m}/vm1/extra")
    fails("a new directory inside", errno.EPERM, os.mkdir, f"{m}/vm1/extra")
    fails("data is not unlinked", errno.EPERM, os.unlink, f"{m}/vm1/data")
    fails("data is not renamed", errno.EPERM, os.rename, f"{m}/vm1/data", f"{m}/vm1/x")
    fails("no move out of a LUN", errno.EPERM, os.rename, f"{m}/vm1/log", f"{m}/log")
    with open(f"{m}/vm1/data", "r+b") as data:
        data.write(b"A" * 4096)
    write_attribute(m, lab)
    os.rename(f"{m}/vm1", f"{m}/vm2")
    names = [lun["name"] for lun in lab.ask("lun", "list")]
    equal("mv renames the LUN", names, ["vm2"])
    with open(f"{m}/vm2/data", "rb") as data:
        equal("and keeps its bytes", data.read(4096), b"A" * 4096)
    os.mkdir(f"{m}/plain")
    equal("an ordinary directory is no LUN", len(lab.ask("lun", "list")), 1)
    os.rmdir(f"{m}/vm2")
    equal("rmdir deletes the LUN", lab.ask("lun", "list"), [])
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def write_attribute(m, lab):
    """A settable key changes at once; nonsense is EINVAL."""
    text = open(f"{m}/vm1/attributes").read()
    try:
        with open(f"{m}/vm1/attributes", "w") as f:
            f.write(text.replace("rotation-rate = 1", "rotation-rate = 7200"))
        check("attributes can be written", True)
    except OSError as e:
        check("attributes can be written", False, e)
    shown = str(lab.ask("lun", "show", "vm1"))
    check("and what was written is shown", "7200" in shown, shown)

    def nonsense():
        fd = os.open(f"{m}/vm1/attributes", os.O_WRONLY)
        try:
            os.write(fd, b"this is no TOML [")
            os.fsync(fd)
        finally:
            os.close(fd)
    fails("nonsense in attributes", errno.EINVAL, nonsense)


def locks_and_maps(lab):
    """POSIX locks, flock, append and a shared map"""
    import mmap
    m = serve(lab)
    with open(f"{m}/file", "w+b") as f:
        f.truncate(MIB)
        with mmap.mmap(f.fileno(), MIB) as shared:
            shared[1000:1005] = b"hello"
            shared.flush()
        f.seek(1000)
        equal("a shared map is written back", f.read(5), b"hello")
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10)
        with open(f"{m}/file", "rb") as other:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fds = [os.open(f"{m}/app", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(2)]
    for n in range(200):
        os.write(fds[n % 2], struct.pack("<I", n))
    for fd in fds:
        os.close(fd)
    want = b"".join(struct.pack("<I", n) for n in range(200))
    equal("two appenders", open(f"{m}/app", "rb").read() == want, True)
    need("no difference in a copy", not filecmp.cmp(f"{m}/app", f"{m}/file"))
    check("an orderly stop", lab.stop())
    lab.verify_pool()


run([real_tree, names_and_links, holes, lun_directory, locks_and_maps])
