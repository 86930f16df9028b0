"""`.snapshots` as backup programs use it: what they copy is what was there at the instant, whole
and with nothing of the present; a disk in it is a disk."""

import os
import subprocess
import sysconfig

from harness import KIB, MIB, check, equal, need, require, run, tool

require("cp", "rsync", "tar", "restic", "mke2fs", "e2fsck", "losetup", "diff")


def serve(lab):
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "64M")
    lab.serve(mount=True)
    return lab.mount


def fill(where):
    """A tree with what backup programs take care to keep."""
    source = os.path.join(os.path.dirname(sysconfig.__file__), "json")
    tool("cp", "-a", source, f"{where}/json")
    with open(f"{where}/sparse", "wb") as f:
        f.truncate(32 * MIB)
        f.seek(16 * MIB)
        f.write(os.urandom(64 * KIB))
    os.link(f"{where}/sparse", f"{where}/json/linked")
    os.symlink("sparse", f"{where}/link")
    os.setxattr(f"{where}/sparse", "user.colour", b"blue")
    os.utime(f"{where}/sparse", ns=(1_000_000_001, 2_000_000_002))


def same(a, b):
    """What rsync would still have to do to make b like a."""
    return tool("rsync", "-aHAXni", "--delete", "--checksum", f"{a}/", f"{b}/").text


def trees(lab):
    """cp, rsync, tar and restic of a snapshot of the tree, while the tree is another"""
    m = serve(lab)
    fill(m)
    truth = lab.path("truth")
    tool("rsync", "-aHAX", "--exclude=vm1", f"{m}/", f"{truth}/")
    os.mkdir(f"{m}/.snapshots/then")
    tool("rm", "-r", f"{m}/json", f"{m}/link")
    with open(f"{m}/sparse", "r+b") as f:
        f.write(b"later" * 10000)
    then = f"{m}/.snapshots/then"
    equal("the tree then", sorted(os.listdir(then)), ["json", "link", "sparse"])
    equal("it is what the tree was", same(then, truth), "")
    cp = ["cp", "-a", "--sparse=always", "-T"]
    for name, copy in [("rsync", ["rsync", "-aHAX"]), ("cp", cp)]:
        tool(*copy, f"{then}/", lab.path(name))
        equal(f"{name} copies it whole", same(then, lab.path(name)), "")
    tool("tar", "-C", then, "--sparse", "--xattrs", "-cf", lab.path("then.tar"), ".")
    tool("tar", "-C", then, "--xattrs", "-df", lab.path("then.tar"))
    check("tar knows the holes", os.stat(lab.path("then.tar")).st_size < 8 * MIB)
    backup(lab, then)
    equal("rsync of the root takes no snapshots along",
          "snapshots" in tool("rsync", "-an", "--list-only", "-r", f"{m}/").text, False)
    os.rmdir(then)
    equal("rmdir deletes it", os.listdir(f"{m}/.snapshots"), [])
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def backup(lab, then):
    """restic keeps a snapshot and gives it back."""
    env = dict(os.environ, RESTIC_PASSWORD="x", RESTIC_REPOSITORY=lab.path("restic"),
               RESTIC_CACHE_DIR=lab.path("restic-cache"), GOMAXPROCS="2")
    tool("restic", "init", env=env)
    tool("restic", "backup", "--quiet", ".", cwd=then, env=env)
    tool("restic", "restore", "--quiet", "latest", "--target", lab.path("restored"), env=env)
    # It keeps the whole path of what it was given, and no ACLs of links.
    restored = lab.path("restored") + then if os.path.isdir(lab.path("restored") + then) \
        else lab.path("restored")
    done = tool("diff", "-r", "--no-dereference", then, restored, good=False)
    equal("restic restores it", done.text, "")


def disks(lab):
    """a filesystem on a LUN, as it was: checked, mounted by a loop device, copied sparse"""
    m = serve(lab)
    source = lab.path("source")
    os.mkdir(source)
    fill(source)
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-d", source, f"{m}/vm1/data")
    os.mkdir(f"{m}/vm1/.snapshots/then")
    with open(f"{m}/vm1/data", "r+b") as data:
        for at in range(0, 64 * MIB, MIB):
            os.pwrite(data.fileno(), b"\xff" * 4096, at)
    then = f"{m}/vm1/.snapshots/then/data"
    tool("cp", "--sparse=always", then, lab.path("image"))
    tool("e2fsck", "-fn", lab.path("image"))
    check("the copy is sparse", os.stat(lab.path("image")).st_blocks * 512 < 32 * MIB)
    tool("cmp", then, lab.path("image"))
    tool("e2fsck", "-fn", then)
    if os.getuid() == 0 and os.path.exists("/dev/loop-control"):
        looped(lab, then, source)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def looped(lab, image, source):
    at = lab.path("at")
    os.mkdir(at)
    device = tool("losetup", "-r", "-f", "--show", image).text
    try:
        tool("mount", "-t", "ext4", "-o", "ro,noload", device, at)
        try:
            left = tool("rsync", "-aHXni", "--checksum", f"{source}/", f"{at}/").text
            need("the filesystem in the snapshot has the files of then",
                 [line for line in left.splitlines() if not line.endswith(" ./")] == [], left)
        finally:
            subprocess.run(["umount", at], check=False)
    finally:
        subprocess.run(["losetup", "-d", device], check=False)


run([trees, disks])
