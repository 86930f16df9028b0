"""Service manners: the helper of mount(8) and lines of fstab, systemd's units and its notices, what
df, du, stat and mount say, and mounts that are busy or dead."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

from harness import LUNFS, MIB, check, equal, require, run, tool
from shares import leave_mounts_of_others

require("mount", "umount", "findmnt", "df", "du", "unshare", "systemd-analyze")
EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../examples")
INSIDE = "LUNFS_TEST_NAMESPACE"
END_SECONDS = 20


def alone():
    """Goes on with a file system of its own over /sbin, where mount(8) looks for helpers."""
    if not os.environ.get(INSIDE):
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])
    leave_mounts_of_others()
    sbin = os.path.realpath("/sbin")
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    for name in ("upper", "work"):
        os.mkdir(f"/run/{name}")
    layers = f"lowerdir={sbin},upperdir=/run/upper,workdir=/run/work"
    subprocess.run(["mount", "-t", "overlay", "none", sbin, "-o", layers], check=True)
    for name in ("mount.lunfs", "mount.fuse.lunfs"):
        if os.path.lexists(f"{sbin}/{name}"):
            os.unlink(f"{sbin}/{name}")
        os.symlink(os.path.abspath(shutil.which(LUNFS)), f"{sbin}/{name}")


def servers(lab):
    """Processes that have this pool open."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as line:
                args = line.read().split("\0")
        except OSError:
            continue
        if "serve" in args and lab.pool in args:
            found.append(int(pid))
    return found


def ended(lab):
    deadline = time.monotonic() + END_SECONDS
    while servers(lab) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not servers(lab)


def source_and_options(path):
    shown = tool("findmnt", "-n", "-o", "SOURCE,FSTYPE,OPTIONS", path).text.split()
    return shown[0], shown[1], shown[2].split(",")


def helper(lab):
    """mount -t lunfs, a line of fstab, remount, umount, and again at once"""
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "64M")
    tool("mount", "-t", "lunfs", lab.pool, lab.mount, "-o", "nosuid,nodev,cache=64M")
    source, kind, options = source_and_options(lab.mount)
    equal("findmnt shows what it is", (source, kind), (lab.pool, "fuse.lunfs"))
    check("with the options", {"rw", "nosuid", "nodev"} <= set(options), options)
    with open(f"{lab.mount}/file", "w") as out:
        out.write("text")
    tool("mount", "-o", "remount,ro", lab.mount)
    refused = tool("touch", f"{lab.mount}/other", good=False)
    check("remounted for reading", "Read-only" in refused.text, refused.text)
    tool("mount", "-o", "remount,rw", lab.mount)
    os.unlink(f"{lab.mount}/file")
    second = lab.path("second")
    os.mkdir(second)
    tool("mount", "-t", "lunfs", lab.pool, second)
    equal("a second place is the same mount", os.stat(second).st_dev, os.stat(lab.mount).st_dev)
    tool("umount", lab.mount)
    check("which stands without the first", os.path.exists(f"{second}/vm1/data"))
    tool("umount", second)
    tool("mount", "-t", "lunfs", lab.pool, lab.mount)
    for turn in range(3):
        tool("umount", lab.mount)
        tool("mount", "-t", "lunfs", lab.pool, lab.mount)
    tool("umount", lab.mount)
    check("the server ends with the mount", ended(lab))
    fstab = lab.path("fstab")
    with open(f"{EXAMPLES}/fstab") as example, open(fstab, "w") as out:
        text = example.read().replace("/srv/pool.lunfs", lab.pool)
        out.write(text.replace("/mnt/luns", lab.mount).replace(",iscsi", ""))
    tool("mount", "-a", "-T", fstab)
    tool("mount", "-a", "-T", fstab)
    equal("a line of fstab is mounted once", len(servers(lab)), 1)
    check("and it is the pool", os.path.exists(f"{lab.mount}/vm1/data"))
    tool("umount", lab.mount)
    check("the server ends", ended(lab))
    with open(lab.path("f"), "w") as out:
        out.write("no pool")
    refused = tool("mount", "-t", "lunfs", lab.path("f"), lab.mount, good=False)
    check("what is no pool is refused in words",
          refused.returncode == 32 and "no pool" in refused.text.replace("not a", "no"),
          f"{refused.returncode}: {refused.text}")
    refused = tool("mount", "-t", "lunfs", lab.pool, lab.mount, "-o", "nonsense", good=False)
    check("so is an option that is none", refused.returncode == 1 and "nonsense" in refused.text,
          f"{refused.returncode}: {refused.text}")
    lab.verify_pool()


def access_times(lab):
    """noatime is kept to"""
    lab.make_pool()
    tool("mount", "-t", "lunfs", lab.pool, lab.mount, "-o", "noatime")
    path = f"{lab.mount}/file"
    with open(path, "w") as out:
        out.write("text")
    os.utime(path, ns=(1, 1))
    os.mkdir(f"{lab.mount}/dir")
    os.utime(f"{lab.mount}/dir", ns=(1, 1))
    with open(path) as text:
        text.read()
    os.listdir(f"{lab.mount}/dir")
    times = [os.stat(p).st_atime_ns for p in (path, f"{lab.mount}/dir")]
    equal("reading moves no access time", times, [1, 1])
    tool("umount", lab.mount)
    check("the server ends", ended(lab))


def figures(lab):
    """df, du and stat"""
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "20G")
    lab.serve(mount=True)
    with open(f"{lab.mount}/vm1/data", "r+b") as data:
        data.write(os.urandom(8 * MIB))
        os.fsync(data.fileno())
    shown = tool("df", "-B1", "--output=source,fstype,size,used,avail", lab.mount).text
    source, kind, *numbers = shown.splitlines()[-1].split()
    size, used, free = map(int, numbers)
    equal("df names the pool", (source, kind), (lab.pool, "fuse.lunfs"))
    check("its figures are true", 1900 * MIB < size <= 2048 * MIB and used >= 8 * MIB
          and size * 0.9 < used + free <= size, (size, used, free))
    apparent = int(tool("du", "-B1", "--apparent-size", f"{lab.mount}/vm1/data").text.split()[0])
    taken = int(tool("du", "-B1", f"{lab.mount}/vm1/data").text.split()[0])
    equal("du knows the capacity", apparent, 20 << 30)
    check("and what it takes", 8 * MIB <= taken < 9 * MIB, taken)
    stat = os.statvfs(lab.mount)
    equal("names", stat.f_namemax, 255)
    check("an orderly stop", lab.stop())


def busy_and_dead(lab):
    """a stop while the mount is used; a killed server's mount is cleared by the next one"""
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "64M")
    lab.serve(mount=True)
    user = subprocess.Popen(["sleep", "60"], cwd=lab.mount)
    check("it stops although somebody is in it", lab.stop())
    check("and nothing is mounted", not lab.mounted())
    lab.serve(mount=True)
    user.kill()
    user.wait()
    held = open(f"{lab.mount}/vm1/log")
    lab.server.send_signal(signal.SIGKILL)
    lab.server.wait()
    try:
        os.listdir(lab.mount)
        check("the mount of a killed server is dead", False)
    except OSError as error:
        check("the mount of a killed server is dead", True, error)
    lab.server = None
    lab.serve(mount=True)
    equal("the next one clears it", sorted(os.listdir(lab.mount)), ["vm1"])
    with contextlib.suppress(OSError):  # its mount is gone
        held.close()
    check("an orderly stop", lab.stop())
    check("and nothing is mounted", not lab.mounted())
    lab.verify_pool()


def systemd(lab):
    """the units are verified, and the server tells systemd how far it is"""
    for unit in ("lunfs@.service", "mnt-luns.mount"):
        with open(f"{EXAMPLES}/systemd/{unit}") as example, open(lab.path(unit), "w") as out:
            program = os.path.abspath(shutil.which(LUNFS))
            out.write(example.read().replace("/usr/bin/lunfs", program))
    for unit in ("lunfs@pool.service", "mnt-luns.mount"):
        done = tool("systemd-analyze", "verify", "--man=no", lab.path(unit), good=False)
        ours = [line for line in done.text.splitlines() if "lunfs" in line or "luns" in line]
        check(f"systemd-analyze verify {unit}", done.returncode == 0 and not ours, done.text)
    lab.make_pool()
    config = lab.path("pool.toml")
    with open(f"{EXAMPLES}/lunfs.toml") as example, open(config, "w") as out:
        text = example.read().replace("/srv/pool.lunfs", lab.pool)
        text = text.replace("/mnt/luns", lab.mount).replace("/run/lunfs/nbd", lab.path("nbd"))
        out.write(text.replace("iscsi = true", "iscsi = false").replace('"1G"', '"64M"'))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(lab.path("notify"))
        told.settimeout(END_SECONDS)
        server = subprocess.Popen([LUNFS, "serve", "--config", config], stdout=subprocess.DEVNULL,
                                  env=dict(lab.env, NOTIFY_SOCKET=lab.path("notify")))
        equal("ready is told", told.recv(100), b"READY=1")
        check("and the mount stands", lab.mounted())
        server.terminate()
        equal("so is the end", told.recv(100), b"STOPPING=1")
        equal("which is orderly", server.wait(END_SECONDS), 0)


alone()
run([helper, access_times, figures, busy_and_dead, systemd])
