"""The command line as a contract: the same commands with and without a server, JSON, dry runs."""

import json
import os

from blockclients import nbd_connect
from harness import LUNFS, MIB, Lab, check, equal, find, need, run, tool

SHELLS = ["bash", "zsh", "fish"]


def life_of_a_lun(lab):
    """create, list, show, set, resize, rename, delete: unserved and served"""
    lab.make_pool()
    life(lab, "unserved")
    lab.serve(mount=True, nbd=True, iscsi=True)
    life(lab, "served")
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def life(lab, how):
    create = ["lun", "create", "vm1", "--size", "64M", "vendor=ACME", "rotation-rate=7200"]
    lab.do(*create, "--dry-run")
    equal(f"{how}: a dry run makes nothing", lab.ask("lun", "list"), [])
    lab.do(*create)
    listed = lab.ask("lun", "list")
    equal(f"{how}: list", [(x["name"], x["size_bytes"]) for x in listed], [("vm1", 64 * MIB)])
    shown = lab.ask("lun", "show", "vm1")
    check(f"{how}: show has what was set", "ACME" in str(shown) and "7200" in str(shown), shown)
    human = lab.do("lun", "show", "vm1")
    check(f"{how}: show prints the target", "iqn.2026-11.local.lunfs:vm1" in human, human)
    lab.do("lun", "set", "vm1", "product=WIDGET")
    check(f"{how}: set", "WIDGET" in str(lab.ask("lun", "show", "vm1")))
    lab.do("lun", "resize", "vm1", "--size", "128M")
    equal(f"{how}: resize", lab.ask("lun", "show", "vm1")["size_bytes"], 128 * MIB)
    lab.do("lun", "rename", "vm1", "vm2")
    equal(f"{how}: rename", [x["name"] for x in lab.ask("lun", "list")], ["vm2"])
    log = lab.do("lun", "log", "vm2")
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    check(f"{how}: the log is JSON lines with its life", len(events) >= 3 and "resize" in log, log)
    lab.do("lun", "delete", "vm2", "--dry-run")
    equal(f"{how}: a dry run deletes nothing", len(lab.ask("lun", "list")), 1)
    lab.do("lun", "delete", "vm2")
    equal(f"{how}: delete", lab.ask("lun", "list"), [])


def import_export(lab):
    """images in and out: sparse kept, pipes, --into, --force"""
    image, back = lab.path("image"), lab.path("back")
    with open(image, "wb") as f:
        f.write(os.urandom(3 * MIB))
        f.seek(40 * MIB)
        f.write(os.urandom(MIB))
        f.truncate(48 * MIB)
    lab.make_pool()
    for how in ("unserved", "served"):
        if how == "served":
            lab.serve(mount=True)
        lab.do("lun", "import", "vm1", image)
        used = find(lab.ask("lun", "show", "vm1"), "used_bytes")
        check(f"{how}: holes stay holes", used is not None and used <= 5 * MIB, used)
        lab.do("lun", "export", "vm1", back)
        tool("cmp", image, back)
        check(f"{how}: the exported file is sparse", os.stat(back).st_blocks * 512 <= 6 * MIB)
        lab.do("lun", "export", "vm1", back, "--force")
        piped = lab.lunfs("lun", "export", "vm1", "-")
        equal(f"{how}: export to a pipe", piped.stdout == open(image, "rb").read(), True)
        lab.do("lun", "import", "vm2", "-", "--size", "48M", input=open(image, "rb").read())
        equal(f"{how}: import from a pipe",
              lab.lunfs("lun", "export", "vm2", "-").stdout == piped.stdout, True)
        lab.do("lun", "import", "--into", "vm2", image)
        for name in ("vm1", "vm2"):
            lab.do("lun", "delete", name)
        os.unlink(back)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def status_and_sessions(lab):
    """status, sessions, pool show, stop"""
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "64M")
    lab.serve(mount=True, nbd=True, iscsi=True)
    status = lab.ask("status")
    for key in ("pool", "luns", "sessions", "errors"):
        check(f"status has {key}", key in status, list(status))
    pool = status.get("pool", {})
    for key in ("id", "state", "size_bytes", "free_bytes", "used_bytes"):
        check(f"status.pool has {key}", key in pool, pool)
    check("figures are integers", all(isinstance(v, int) for k, v in pool.items()
                                      if k.endswith("_bytes")), pool)
    handle = nbd_connect(lab.nbd_port, "vm1")
    handle.pwrite(b"x" * 4096, 0)
    sessions = lab.ask("session", "list")
    need("the NBD client is a session", sessions and "vm1" in str(sessions), sessions)
    number = find(sessions, "id")
    lab.do("session", "show", str(number))
    lab.do("session", "drop", str(number))
    equal("and gone when dropped", lab.ask("session", "list"), [])
    equal("the id is the pool's", find(lab.ask("pool", "show", lab.pool), "id"), pool["id"])
    check("pool list finds it", pool["id"] in str(lab.ask("pool", "list")))
    check("the server stops at a word", lab.stop())
    check("its mount is gone", not lab.mounted())
    equal("pool show of an unserved pool",
          find(lab.ask("pool", "show", lab.pool), "id"), pool["id"])
    lab.verify_pool()


def grow(lab):
    """a pool that grows"""
    lab.size = "128M"
    lab.make_pool()
    before = find(lab.ask("pool", "show", lab.pool), "size_bytes")
    lab.do("pool", "grow", lab.pool, "--size", "256M")
    after = find(lab.ask("pool", "show", lab.pool), "size_bytes")
    check("it is larger", after > before, (before, after))
    lab.do("lun", "create", "vm1", "--size", "1G")
    lab.serve(nbd=True)
    lab.do("pool", "grow", lab.pool, "--size", "512M")
    handle = nbd_connect(lab.nbd_port, "vm1")
    for n in range(300):
        handle.pwrite(bytes([n % 255 + 1]) * MIB, n * MIB)
    handle.flush()
    bad = [n for n in range(300)
           if bytes(handle.pread(4096, n * MIB)) != bytes([n % 255 + 1]) * 4096]
    equal("the new space is usable while served", bad, [])
    handle.shutdown()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def completions(lab):
    """shell completions, version, help"""
    for shell in SHELLS:
        check(f"completion {shell}", "lunfs" in lab.do("completion", shell))
    for args in (["--version"], ["--help"], ["lun", "--help"], ["serve", "--help"]):
        lab.do(*args)
    check("one program", os.path.basename(LUNFS) == "lunfs")


run([life_of_a_lun, import_export, status_and_sessions, grow, completions])
