"""Snapshots as users and clients of others meet them: commands with and without a server, NAME@SNAP
over NBD and iSCSI, one instant under load, rollback under a session, policies."""

import json
import os
import threading
import time

import nbd

from blockclients import (CAPACITY_DATA_HAS_CHANGED, DATA_PROTECT, Iscsi, ScsiError, nbd_connect)
from harness import IQN, KIB, MIB, Need, check, equal, need, require, run, tool

require("qemu-img", "nbdinfo", "nbdcopy", "iscsi-ls", "cmp")
MEDIUM_MAY_HAVE_CHANGED = 0x2800
WRITE_PROTECTED = 0x2700
ME = "iqn.2026-11.local.test:a"


def names(lab, *of):
    return sorted(f"{s['lun']}@{s['name']}" for s in lab.ask("snapshot", "list", *of))


def image(lab, name, seed, size=8 * MIB):
    """A raw image with data at both ends and a hole between."""
    path = lab.path(name)
    with open(path, "wb") as f:
        f.write(bytes([seed]) * (64 * KIB))
        f.truncate(size)
        f.seek(size - MIB)
        f.write(os.urandom(MIB))
    return path


def commands(lab, served):
    """The same story, whoever carries the commands out."""
    first, second = image(lab, "first", 1), image(lab, "second", 2)
    lab.do("lun", "import", "vm1", first)
    lab.do("lun", "create", "vm2", "--size", "1M")
    would = lab.ask("snapshot", "create", "vm1@a", "vm2@a", "/@a", "--dry-run")
    check("a dry run says what it would make", "vm1@a" in would["would"], would)
    equal("and makes nothing", names(lab), [])
    made = lab.ask("snapshot", "create", "vm1@a", "vm2@a", "/@a")
    equal("three snapshots of one epoch", len({s["epoch"] for s in made}), 1)
    equal("all are listed", names(lab), ["/@a", "vm1@a", "vm2@a"])
    lab.refused("a name that is taken", "already", "snapshot", "create", "vm1@A")
    lab.refused("a LUN that is not there", "no LUN", "snapshot", "create", "vm9@a")
    lab.refused("a bad name", "cannot be a snapshot", "snapshot", "create", "vm1@.a")
    lab.refused("half a group", "already", "snapshot", "create", "vm2@b", "vm1@a")
    equal("of which nothing was made", names(lab, "vm2"), ["vm2@a"])
    lab.do("lun", "import", "vm1", second, "--into")
    named = lab.ask("snapshot", "create", "vm1")[0]["name"]
    check("without a name it is the time", named.startswith("20") and named.endswith("Z"), named)
    lab.do("snapshot", "rename", f"vm1@{named}", "b")
    rows = {s["name"]: s for s in lab.ask("snapshot", "list", "vm1")}
    check("what it alone holds is told", rows["a"]["alone_bytes"] >= MIB, rows["a"])
    equal("one of what the LUN still has: next to nothing", rows["b"]["alone_bytes"] < MIB, True)
    shown = lab.ask("snapshot", "show", "vm1@b")
    equal("its target", shown["target"]["iqn"], IQN + "vm1:b")
    equal("its export", shown["nbd_export"], "vm1@b")
    shown = lab.ask("lun", "show", "vm1")
    equal("the LUN counts them", shown["snapshots"], 2)
    check("and says what only they hold", MIB <= shown["snapshots_used_bytes"] < 4 * MIB, shown)
    lab.do("lun", "export", "vm1@a", lab.path("a.raw"))
    tool("cmp", first, lab.path("a.raw"))
    diff = lab.ask("snapshot", "diff", "vm1@a", "vm1@b")["extents"]
    check("a difference begins where they differ", diff and diff[0]["offset_bytes"] == 0, diff)
    kinds = {e["kind"] for e in diff}
    check("and is told as data and holes", kinds <= {"data", "hole"} and "data" in kinds, kinds)
    equal("nothing changed since b", lab.ask("snapshot", "diff", "vm1@b")["extents"], [])
    text = lab.do("snapshot", "diff", "vm1@a", "vm1@b")
    equal("as text: a line each", len(text.splitlines()), len(diff))
    lab.do("snapshot", "hold", "vm1@a")
    lab.refused("deletion of what is held", "held", "snapshot", "delete", "vm1@a")
    lab.do("snapshot", "release", "vm1@a")
    lab.do("snapshot", "hold", "vm2@a", "--until", "6s")
    held_at = time.monotonic()
    lab.refused("a release before the time", "nobody", "snapshot", "release", "vm2@a")
    lab.refused("a LUN with a held snapshot", "held", "lun", "delete", "vm2", "--recursive")
    clone = lab.ask("clone", "create", "vm1@a", "vm3")
    equal("a clone is a LUN of its own", (clone["name"], clone["size_bytes"]), ("vm3", 8 * MIB))
    check("with a serial number of its own",
          clone["serial"] != lab.ask("lun", "show", "vm1")["serial"], clone)
    lab.refused("a clone under a name that is taken", "taken", "clone", "create", "vm1@a", "vm2")
    lab.do("lun", "export", "vm3", lab.path("vm3.raw"))
    tool("cmp", first, lab.path("vm3.raw"))
    kept = lab.ask("snapshot", "rollback", "vm1@a")["kept"]["name"]
    lab.do("lun", "export", "vm1", lab.path("back.raw"))
    tool("cmp", first, lab.path("back.raw"))
    equal("newer ones stay, and what was", names(lab, "vm1"), ["vm1@a", "vm1@b", f"vm1@{kept}"])
    lab.do("snapshot", "refresh", "vm1@b")
    equal("a refreshed one is what the LUN is", lab.ask("snapshot", "diff", "vm1@b")["extents"], [])
    lab.do("snapshot", "delete", "vm1@a", "--keep-bookmark")
    kinds = {s["name"]: s["kind"] for s in lab.ask("snapshot", "list", "vm1")}
    equal("a bookmark is left", kinds["a"], "bookmark")
    lab.do("snapshot", "delete", "vm1@a")
    lab.refused("a LUN with snapshots", "snapshot", "lun", "delete", "vm1")
    lab.refused("a word that names none", "NAME@SNAP", "snapshot", "show", "vm1", code=2)
    lab.do("snapshot", "delete", "/@a")
    time.sleep(max(0, held_at + 6.1 - time.monotonic()))
    for name in ("vm1", "vm2", "vm3"):
        lab.do("lun", "delete", name, "--recursive")
    equal("nothing is left", (names(lab), lab.ask("lun", "list")), ([], []))
    if served:
        check("an orderly stop", lab.stop())
    lab.verify_pool()


def without_a_server(lab):
    """each command opens the pool itself"""
    lab.make_pool()
    commands(lab, False)


def with_a_server(lab):
    """each command asks the server"""
    lab.make_pool()
    lab.serve(nbd=True)
    commands(lab, True)


def as_disks(lab):
    """NAME@SNAP over NBD and iSCSI: only read, without a copy, each with its own identity"""
    first = image(lab, "first", 1)
    lab.make_pool()
    lab.do("lun", "import", "Vm1", first)
    lab.serve(iscsi=True, nbd=True)
    lab.do("snapshot", "create", "vm1@Old:1")
    used = lab.ask("pool", "show")["used_bytes"]
    h = nbd_connect(lab.nbd_port, "vm1")
    h.pwrite(b"\xAA" * MIB, 0)
    h.shutdown()
    lab.do("lun", "resize", "vm1", "--size", "16M")
    url = lab.nbd_url("Vm1@Old:1")
    tool("qemu-img", "compare", "-f", "raw", "-F", "raw", first, url)
    tool("nbdcopy", url, lab.path("copy"))
    tool("cmp", first, lab.path("copy"))
    info = json.loads(tool("nbdinfo", "--json", url).stdout)["exports"][0]
    check("the NBD export is read-only", info["is_read_only"], info)
    listed = json.loads(tool("nbdinfo", "--list", "--json", lab.nbd_url("")).stdout)
    equal("NBD lists both", sorted(e["export-name"] for e in listed["exports"]),
          ["Vm1", "Vm1@Old:1"])
    targets = tool("iscsi-ls", f"iscsi://127.0.0.1:{lab.iscsi_port}").text
    check("discovery lists both", f"{IQN}vm1:old:1" in targets and f"{IQN}vm1 " in targets + " ",
          targets)
    snapshot = Iscsi(lab.iscsi_port, f"{IQN}vm1:old:1")
    snapshot.clear_attention()
    live = Iscsi(lab.iscsi_port, f"{IQN}vm1", "iqn.2026-11.local.test:b")
    live.clear_attention()
    equal("its capacity is that of then", snapshot.capacity_bytes(), 8 * MIB)
    equal("the LUN's is that of now", live.capacity_bytes(), 16 * MIB)
    equal("it reads as it was", snapshot.read(0, 64 * KIB), b"\x01" * (64 * KIB))
    equal("while the LUN is written", live.read(0, 4096), b"\xAA" * 4096)
    try:
        snapshot.write(0, bytes(512))
        check("a write over iSCSI is refused", False)
    except ScsiError as e:
        equal("a write is refused: DATA PROTECT", (e.key, e.ascq), (DATA_PROTECT, WRITE_PROTECTED))
    pages = {}
    for name, session in (("snapshot", snapshot), ("live", live)):
        pages[name] = [session.cdb(bytes([0x12, 1, page, 0, 255, 0]), 255) for page in (0x80, 0x83)]
    check("serial and NAA are its own", all(a != b for a, b in zip(*pages.values())), pages)
    sessions = {s["lun"]: s for s in lab.ask("session", "list")}
    check("session list shows it, not writable",
          sessions.get("Vm1@Old:1", {}).get("writable") is False, sessions)
    grown = lab.ask("pool", "show")["used_bytes"] - used
    check("nothing was copied", grown < 2 * MIB, grown)
    # Deleted while it is open: it goes at the last close.
    answer = lab.ask("snapshot", "delete", "vm1@old:1")
    check("a deletion while it is open is put off", answer["at_last_close"], answer)
    equal("its name is free at once", names(lab), [])
    lab.do("snapshot", "create", "vm1@old:1")
    equal("the session reads on", snapshot.read(0, 4096), b"\x01" * 4096)
    refused = tool("nbdinfo", lab.nbd_url("vm1@gone"), good=False)
    check("an unknown one is refused", refused.returncode != 0)
    snapshot.close()
    again = Iscsi(lab.iscsi_port, f"{IQN}vm1:old:1")
    again.clear_attention()
    equal("the new one of its name is another", again.read(0, 4096), b"\xAA" * 4096)
    (dropped,) = [s["id"] for s in lab.ask("session", "list") if s["lun"] == "Vm1@old:1"]
    lab.do("session", "drop", dropped)
    try:
        again.read(0, 512)
        check("a dropped session ends", False)
    except ConnectionError:
        check("a dropped session ends", True)
    live.close()
    # Rights are the LUN's.
    lab.do("initiator", "add", ME, "--allow", "vm1")
    mine = tool("iscsi-ls", "-i", ME, f"iscsi://127.0.0.1:{lab.iscsi_port}").text
    check("who may use the LUN sees its snapshots", f"{IQN}vm1:old:1" in mine, mine)
    lab.do("initiator", "set", ME, "--deny", "vm1")
    for target in ("vm1", "vm1:old:1"):
        try:
            Iscsi(lab.iscsi_port, IQN + target, ME)
            check(f"who may not use the LUN: {target} is refused", False)
        except ConnectionError:
            check(f"who may not use the LUN: {target} is refused", True)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def value(data):
    return int.from_bytes(data[:8], "big")


class Writer(threading.Thread):
    """Writes a number to A, and when that was answered to B, then the next one. Each number is
    answered on A before it is sent to B: a snapshot of one instant never has B ahead of A."""

    def __init__(self, offset, put_a, put_b, flush):
        super().__init__(daemon=True)
        self.offset, self.puts, self.flush = offset, (put_a, put_b), flush
        self.answered = [0, 0]
        self.stopping = False
        self.failure = None

    def run(self):
        try:
            number = 0
            while not self.stopping:
                number += 1
                for i, put in enumerate(self.puts):
                    put(self.offset, number.to_bytes(8, "big") * 64)
                    self.answered[i] = number
                if number % 16 == 0:
                    self.flush()
        except Exception as why:
            self.failure = why


def one_instant(lab):
    """group snapshots beside clients that write: one instant, with all that was answered"""
    lab.make_pool()
    for name in ("a", "b"):
        lab.do("lun", "create", name, "--size", "64M")
    lab.serve(iscsi=True, nbd=True)
    clients, writers = [], []
    for i in range(3):
        h = {n: nbd_connect(lab.nbd_port, n) for n in "ab"}
        s = {n: Iscsi(lab.iscsi_port, IQN + n, f"iqn.2026-11.local.test:{i}{n}") for n in "ab"}
        for session in s.values():
            session.clear_attention()
        clients += [*h.values(), *s.values()]
        by_nbd = {n: (lambda at, data, h=h[n]: h.pwrite(data, at)) for n in "ab"}
        by_iscsi = {n: s[n].write for n in "ab"}
        put_a, put_b = [(by_nbd, by_iscsi), (by_iscsi, by_nbd), (by_nbd, by_nbd)][i]
        writers.append(Writer(i * MIB, put_a["a"], put_b["b"], h["a"].flush))
    for writer in writers:
        writer.start()
    rounds, seen = 25, []
    for i in range(rounds):
        before = [list(w.answered) for w in writers]
        lab.do("snapshot", "create", f"a@s{i}", f"b@s{i}")
        seen.append((before, [list(w.answered) for w in writers]))
    counts = [w.answered[1] for w in writers]
    for writer in writers:
        writer.stopping = True
    for writer in writers:
        writer.join(60)
        need("a writer ended well", writer.failure is None and not writer.is_alive(),
             repr(writer.failure))
    print(f"  {counts} numbers were written while {rounds} snapshots were made")
    check("writers went on meanwhile", min(counts) >= rounds, counts)
    wrong, late, future = [], [], []
    for i, (before, after) in enumerate(seen):
        a, b = (nbd_connect(lab.nbd_port, f"{n}@s{i}") for n in "ab")
        for j, writer in enumerate(writers):
            x, y = (value(h.pread(512, writer.offset)) for h in (a, b))
            if not (x == y or x == y + 1):
                wrong.append((i, j, x, y))
            if x < before[j][0] or y < before[j][1]:
                late.append((i, j, x, y, before[j]))
            if x > after[j][0] + 1 or y > after[j][1] + 1:
                future.append((i, j, x, y, after[j]))
        a.shutdown()
        b.shutdown()
    equal("both LUNs are of one instant in each", wrong, [])
    equal("what was answered before is in", late, [])
    equal("what began afterwards is not", future, [])
    for client in clients:
        client.shutdown() if isinstance(client, nbd.NBD) else client.close()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def one_flush(lab):
    """a snapshot is one flush, whatever waits"""
    lab.make_pool()
    for name in "abc":
        lab.do("lun", "create", name, "--size", "1G")
    lab.serve(nbd=True)
    h = nbd_connect(lab.nbd_port, "a")
    lab.do("snapshot", "create", "a@warm")
    costs = []
    for i in range(8):
        for at in range(0, 256 * MIB, 4 * MIB):
            h.pwrite(os.urandom(4096), at + i * 8192)
        before = lab.ask("pool", "show")
        lab.do("snapshot", "create", f"a@{i}", f"b@{i}", f"c@{i}")
        after = lab.ask("pool", "show")
        if before["consistency_points"] == after["consistency_points"]:
            costs.append(after["device_flushes"] - before["device_flushes"])
    need("some rounds had no consistency point beside", costs)
    equal("flushes of each", set(costs), {1})
    h.shutdown()
    check("an orderly stop", lab.stop())


def rollback_under_a_session(lab):
    """a forced rollback is told to who is there, and the disk stays the same disk"""
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "8M")
    lab.serve(iscsi=True, nbd=True)
    session = Iscsi(lab.iscsi_port, f"{IQN}vm1")
    session.clear_attention()
    session.write(0, b"\x01" * 4096, fua=True)
    lab.do("snapshot", "create", "vm1@s")
    lab.do("lun", "resize", "vm1", "--size", "16M")
    session.clear_attention()
    session.write(0, b"\x02" * 4096, fua=True)
    serial = session.cdb(bytes([0x12, 1, 0x80, 0, 255, 0]), 255)
    lab.refused("a rollback under a session", "open", "snapshot", "rollback", "vm1@s")
    lab.do("snapshot", "rollback", "vm1@s", "--force")
    told = session.clear_attention()
    check("the session is told: capacity and medium",
          CAPACITY_DATA_HAS_CHANGED in told and MEDIUM_MAY_HAVE_CHANGED in told,
          [hex(code) for code in told])
    equal("the capacity is that of then", session.capacity_bytes(), 8 * MIB)
    equal("the contents are those of then", session.read(0, 4096), b"\x01" * 4096)
    equal("the same disk", session.cdb(bytes([0x12, 1, 0x80, 0, 255, 0]), 255), serial)
    session.write(0, b"\x03" * 4096, fua=True)
    session.close()
    lab.kill()
    lab.serve(nbd=True)
    h = nbd_connect(lab.nbd_port, "vm1")
    equal("what was written then outlives a crash", h.pread(4096, 0), b"\x03" * 4096)
    h.shutdown()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def wait(text, good, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if good():
            return check(text, True)
        time.sleep(0.1)
    raise Need(f"{text}: not in {seconds} s")


def policies(lab):
    """policies make and take away snapshots while the pool is served"""
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "8M")
    lab.refused("a policy that does not say how often", "how often", "policy", "set", "vm1",
                "--keep", "3")
    would = lab.ask("policy", "set", "vm1", "--every", "1s", "--keep", "2", "--dry-run")
    check("a dry run sets nothing", would["dry_run"] and lab.ask("policy", "show") == [], would)
    lab.do("policy", "set", "vm1", "--every", "1s", "--keep", "2")
    lab.do("policy", "set", "/", "--every", "1d", "--keep-daily", "3")
    lab.do("snapshot", "create", "vm1@mine")
    lab.refused("a policy's name for one's own", "policies", "snapshot", "create",
                "vm1@auto-2026-11-20T21:00:00Z")
    equal("nothing runs without a server", names(lab), ["vm1@mine"])
    lab.serve(nbd=True)

    def made():
        return [s["name"] for s in lab.ask("snapshot", "list", "vm1") if s["name"] != "mine"]

    wait("the first ones are made", lambda: len(made()) == 2)
    first = made()
    lab.do("snapshot", "hold", f"vm1@{first[1]}")
    lab.do("lun", "rename", "vm1", "vm2")
    time.sleep(1)
    held = f"vm2@{first[1]}"
    wait("old ones go while new ones come", lambda: len(
        [n for n in names(lab, "vm2") if n not in ("vm2@mine", held)
         and n > f"vm2@{first[1]}"]) == 2)
    check("what is held, and what is not a policy's, stays",
          {"vm2@mine", held} <= set(names(lab, "vm2")), names(lab, "vm2"))
    check("never many more than it says", len(names(lab, "vm2")) <= 5, names(lab, "vm2"))
    rows = {p["name"]: p for p in lab.ask("status")["policies"]}
    equal("status shows each policy", sorted(rows), ["/", "vm2"])
    equal("how it ended last", rows["vm2"]["last"]["outcome"], "done")
    check("and what is next", rows["/"]["next"] > rows["vm2"]["next"], rows)
    equal("of the tree one was made", len(names(lab, "/")), 1)
    lab.do("policy", "clear", "vm2")
    time.sleep(1.2)
    left = names(lab, "vm2")
    time.sleep(2)
    equal("a cleared policy makes none", names(lab, "vm2"), left)
    lab.refused("a policy that is not there", "no policy", "policy", "show", "vm2")
    check("an orderly stop", lab.stop())
    lab.do("policy", "set", "/", "--keep", "5")
    row = lab.ask("policy", "show", "/")
    equal("the rest stays as it was", (row["keep"], row["keep_daily"], row["every_seconds"]),
          (5, 3, 86400))
    lab.verify_pool()


run([without_a_server, with_a_server, as_disks, one_instant, one_flush, rollback_under_a_session,
     policies])
