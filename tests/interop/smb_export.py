"""Samba over the mount, with what `lunfs share samba` prints: a tree goes in and out while a block
client writes a LUN in it; locks; Previous Versions."""

import os
import re
import shutil
import subprocess

from blockclients import Iscsi
from harness import IQN, KIB, MIB, check, equal, need, run, tool
from shares import BlockWriter, Samba, alone, make_tree, stop_leftovers, sums_of

TREE_BYTES = int(os.environ.get("TREE_BYTES", 8 * MIB))
# smbtorture's tests of byte-range locks that smbd passes on ext4 too.
LOCKS = ("lock", "rw-none", "rw-shared", "rw-exclusive", "auto-unlock", "unlock", "stacking",
         "contend", "range", "overlap", "truncate")


def serve(lab):
    lab.size = "4G"
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "64M")
    lab.serve(mount=True, iscsi=True)
    stop_leftovers()
    return Samba(lab)


def tree(lab):
    """a tree in, renamed, compared and out again, while a LUN beside it is written over iSCSI"""
    samba = serve(lab)
    session = Iscsi(lab.iscsi_port, IQN + "vm1")
    session.clear_attention()
    writer = BlockWriter(session, 1024)
    source, back = lab.path("source"), lab.path("back")
    os.mkdir(source)
    os.mkdir(back)
    sums = make_tree(source, TREE_BYTES)
    recurse = ("recurse", "prompt")
    samba.client("mkdir in", "cd in", *recurse, f"lcd {source}", "mput *")
    equal("what Samba wrote is in the mount", sums_of(f"{lab.mount}/in"), sums)
    samba.client("rename in out", "mkdir out/new", "rename out/d0 out/new/d0")
    sums = {re.sub("^d0/", "new/d0/", path): digest for path, digest in sums.items()}
    equal("so is what it renamed", sums_of(f"{lab.mount}/out"), sums)
    samba.client(*recurse, f"lcd {back}", "cd out", "mget *")
    equal("and comes back whole", sums_of(back), sums)
    writer.end()
    check(f"{writer.turns} writes over iSCSI beside it", writer.wrong is None, writer.wrong)
    samba.client(f"get vm1/data {back}/data")
    with open(f"{back}/data", "rb") as data:
        want = writer.expected()
        equal("the LUN is read as it was written", data.read(len(want)) == want, True)
    refused = samba.client(f"put {source}/../smb/smb.conf vm1/data", good=False)
    check("who writes a LUN that a block client has is refused", refused.returncode != 0,
          refused.text)
    samba.client("deltree out")
    check("nothing is left", not os.path.exists(f"{lab.mount}/out"))
    session.close()
    samba.close()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def locks(lab):
    """smbtorture's byte-range locks"""
    samba = serve(lab)
    for name in LOCKS:
        done = tool("smbtorture", "-s", samba.conf, "//127.0.0.1/luns", "-U%", "-N",
                    f"smb2.lock.{name}", good=False)
        check(f"smbtorture smb2.lock.{name}", done.returncode == 0, done.text[-600:])
    samba.close()
    check("an orderly stop", lab.stop())


def previous_versions(lab):
    """snapshots are Previous Versions, of files and of LUNs, by commands and by policies"""
    samba = serve(lab)
    m = lab.mount
    os.mkdir(f"{m}/dir")
    for path, text in ((f"{m}/dir/file", "first"), (f"{m}/vm1/data", "FIRST")):
        with open(path, "r+" if path.endswith("data") else "w") as out:
            out.write(text)
    os.mkdir(f"{m}/.snapshots/2026-11-20T21:00:00Z")
    os.mkdir(f"{m}/vm1/.snapshots/2026-11-20T22:00:00Z")
    os.mkdir(f"{m}/.snapshots/before-upgrade")
    with open(f"{m}/dir/file", "w") as out:
        out.write("second")
    lab.do("policy", "set", "/", "--every", "1s", "--keep", "3")
    need("a policy makes one", eventually(lambda: any(
        name.startswith("auto-") for name in os.listdir(f"{m}/.snapshots"))))
    lab.do("policy", "clear", "/")
    automatic = next(n for n in os.listdir(f"{m}/.snapshots") if n.startswith("auto-"))
    gmt = "@GMT-" + re.sub(r"auto-(\d+)-(\d+)-(\d+)T(\d+):(\d+):(\d+)(\.\d+)?Z",
                           r"\1.\2.\3-\4.\5.\6", automatic)
    shown = samba.client("allinfo dir/file").text
    check("a file's versions are shown", "@GMT-2026.11.20-21.00.00" in shown, shown)
    check("so are a policy's", gmt in shown, f"{automatic}: {shown}")
    equal("and no others", shown.count("@GMT-"), 1 + sum(
        n.startswith("auto-") for n in os.listdir(f"{m}/.snapshots")))
    shown = samba.client("allinfo vm1/data").text
    check("a LUN's too", "@GMT-2026.11.20-22.00.00" in shown, shown)
    for path, want in (("dir/@GMT-2026.11.20-21.00.00/file", "first"),
                       (f"dir/{gmt}/file", "second"),
                       ("vm1/@GMT-2026.11.20-22.00.00/data", "FIRST")):
        samba.client(f"get {path} {lab.path('old')}")
        with open(lab.path("old")) as old:
            equal(f"{path} is as it was", old.read(len(want)), want)
    samba.close()
    check("an orderly stop", lab.stop())


def eventually(good, seconds=10):
    import time
    deadline = time.monotonic() + seconds
    while not good() and time.monotonic() < deadline:
        time.sleep(0.1)
    return good()


def configuration(lab):
    """testparm accepts it; there is none without a mount"""
    lab.make_pool()
    lab.serve(nbd=True)
    lab.refused("a share without a mount", "not mounted", "share", "samba")
    check("an orderly stop", lab.stop())
    lab.refused("a share without a server", "", "share", "samba")
    lab.serve(mount=True)
    path = lab.path("smb.conf")
    with open(path, "w") as out:
        out.write(lab.do("share", "samba"))
    done = subprocess.run(["testparm", "-s", path], capture_output=True, text=True)
    shown = done.stdout + done.stderr
    check("testparm has nothing against it", done.returncode == 0 and "gnor" not in shown
          and f"path = {lab.mount}" in shown, shown)
    asked = lab.ask("share", "samba")
    equal("the same in JSON", (asked["mount"], asked["share"]), (lab.mount, "mnt"))
    check("an orderly stop", lab.stop())


alone()
need("testparm is there", shutil.which("testparm"))
run([configuration, tree, locks, previous_versions])
