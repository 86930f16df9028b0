"""What changed since a snapshot, over NBD: `lunfs:changed-since:NAME` by nbdinfo, libnbd and QEMU,
and backups that copy only that."""

import json
import os
import random
import socket
import struct
import threading

import nbd

from blockclients import nbd_connect
from harness import GIB, KIB, MIB, check, equal, require, run, tool

require("nbdinfo", "nbdcopy", "qemu-img", "cmp")

PREFIX = "lunfs:changed-since:"
BLOCK = 4 * KIB


def context(name):
    return PREFIX + name


def made(lab, size="64M"):
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", size)
    lab.serve(nbd=True)


def connect(lab, export, *contexts):
    handle = nbd.NBD()
    for one in contexts:
        handle.add_meta_context(one)
    handle.connect_uri(lab.nbd_url(export))
    return handle


def status(handle, name, offset=0, length=None, flags=0):
    """Ranges (start, end) whose bit 0 is set in one answer, and where the answer ends."""
    found, end = [], [offset]

    def take(context_name, at, entries, _error):
        if context_name != name:
            return 0
        for n, state in zip(entries[::2], entries[1::2]):
            if state & 1:
                found.append((at, at + n))
            at += n
        end[0] = at
        return 0

    length = handle.get_size() - offset if length is None else length
    handle.block_status(length, offset, take, flags)
    return found, end[0]


def changed(handle, name):
    """All changed ranges, by as many requests as it takes."""
    at, size, all_found = 0, handle.get_size(), []
    while at < size:
        found, end = status(handle, name, at, min(size - at, GIB))
        if end <= at:
            raise ValueError("an answer without an extent")
        all_found += found
        at = end
    joined = []
    for start, end in all_found:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def by_nbdinfo(lab, export, name):
    told = tool("nbdinfo", f"--map={context(name)}", "--json", lab.nbd_url(export)).stdout
    return [(e["offset"], e["offset"] + e["length"]) for e in json.loads(told) if e["type"] & 1]


def by_qemu(lab, export, name):
    """QEMU shows bit 0 as `data: false`."""
    image = (f"driver=raw,file.driver=nbd,file.host=127.0.0.1,file.port={lab.nbd_port},"
             f"file.export={export},file.x-dirty-bitmap={context(name)}")
    told = tool("qemu-img", "map", "--output=json", "--image-opts", image).stdout
    ranges = [(e["start"], e["start"] + e["length"]) for e in json.loads(told) if not e["data"]]
    return ranges


def clients(lab):
    """nbdinfo, qemu-img and libnbd tell the same changes, of a LUN and of its snapshots"""
    made(lab)
    h = nbd_connect(lab.nbd_port, "disk")
    h.pwrite(os.urandom(8 * MIB), 0)
    lab.do("snapshot", "create", "disk@one")
    h.pwrite(os.urandom(64 * KIB), 3 * MIB)
    h.pwrite(b"x" * 512, 40 * MIB + 512)
    h.trim(MIB, 6 * MIB)
    want = [(3 * MIB, 3 * MIB + 64 * KIB), (6 * MIB, 7 * MIB), (40 * MIB, 40 * MIB + BLOCK)]
    equal("by nbdinfo --map", by_nbdinfo(lab, "disk", "one"), want)
    equal("by qemu-img map with x-dirty-bitmap", by_qemu(lab, "disk", "one"), want)
    equal("by libnbd", changed(connect(lab, "disk", context("one")), context("one")), want)
    lab.do("snapshot", "create", "disk@two:2026-11-20T21:00:00Z")
    h.pwrite(b"y" * BLOCK, 50 * MIB)
    name = "two:2026-11-20T21:00:00Z"
    equal("between two snapshots", by_nbdinfo(lab, f"disk@{name}", "one"), want)
    equal("the same by QEMU", by_qemu(lab, f"disk@{name}", "one"), want)
    equal("since the later one", by_nbdinfo(lab, "disk", name), [(50 * MIB, 50 * MIB + BLOCK)])
    equal("of a snapshot since itself", by_nbdinfo(lab, "disk@one", "one"), [])
    want.append((50 * MIB, 50 * MIB + BLOCK))
    equal("in another spelling", by_nbdinfo(lab, "disk", "ONE"), want)
    unknown = tool("nbdinfo", f"--map={context('none')}", lab.nbd_url("disk"), good=False)
    check("a snapshot that is not there is no context", unknown.returncode != 0, unknown.text)
    h.shutdown()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def list_contexts(lab, *queries):
    lister, names = nbd.NBD(), []
    lister.set_opt_mode(True)
    for query in queries:
        lister.add_meta_context(query)
    lister.connect_uri(lab.nbd_url("disk"))
    try:
        lister.opt_list_meta_context(lambda name: names.append(name) or 0)
    finally:
        lister.opt_abort()
    return sorted(names)


def contexts(lab):
    """lists of contexts, several at once, one extent only, and what cannot be selected"""
    made(lab)
    h = nbd_connect(lab.nbd_port, "disk")
    h.pwrite(b"a" * MIB, 0)
    for number in range(20):
        lab.do("snapshot", "create", f"disk@s{number}")
    h.pwrite(b"b" * BLOCK, 0)
    h.pwrite(b"b" * BLOCK, MIB)
    h.pwrite(b"b" * BLOCK, 5 * MIB)

    def listed(*queries):
        return list_contexts(lab, *queries)

    own = sorted(context(f"s{n}") for n in range(20))
    equal("all contexts", listed(), sorted(own + ["base:allocation"]))
    equal("those of lunfs", listed("lunfs:"), own)
    equal("those of changes", listed(PREFIX), own)
    equal("one", listed(context("s3")), [context("s3")])
    equal("none", listed(context("x"), "qemu:", "lunfs:other:"), [])
    both = connect(lab, "disk", "base:allocation", context("s0"), context("s19"), context("none"))
    check("both are there", both.can_meta_context("base:allocation")
          and both.can_meta_context(context("s0")) and both.can_meta_context(context("s19")))
    check("one that is not there is not", not both.can_meta_context(context("none")))
    seen = {}
    both.block_status(8 * MIB, 0, lambda name, _at, runs, _err: seen.update({name: runs}) or 0)
    equal("three answers to one question", sorted(seen),
          sorted(["base:allocation", context("s0"), context("s19")]))
    change = [BLOCK, 1, MIB - BLOCK, 0, BLOCK, 1, 4 * MIB - BLOCK, 0, BLOCK, 1]
    equal("the changes", seen[context("s0")][:10], change)
    equal("the same of the other", seen[context("s19")][:10], change)
    found, end = status(both, context("s0"), flags=nbd.CMD_FLAG_REQ_ONE)
    equal("one extent, where one is asked for", (found, end), ([(0, BLOCK)], BLOCK))
    many = connect(lab, "disk", *(context(f"s{n}") for n in range(16)))
    equal("sixteen at once", sum(many.can_meta_context(context(f"s{n}")) for n in range(16)), 16)
    more = connect(lab, "disk", *(context(f"s{n}") for n in range(20)))
    check("more are refused, and none is selected",
          not any(more.can_meta_context(context(f"s{n}")) for n in range(20)))
    equal("which leaves a connection that reads", bytes(more.pread(512, 0)), b"b" * 512)
    for bad in (lambda: both.block_status(8 * MIB, 60 * MIB, lambda *a: 0),
                lambda: both.block_status(BLOCK, 1 << 62, lambda *a: 0)):
        try:
            both.set_strict_mode(0)
            bad()
            check("a range beyond the end is refused", False)
        except nbd.Error as e:
            check("a range beyond the end is refused", e.errnum in (22, 28), e)
    for one in (both, many, more, h):
        one.shutdown()


def lives_on(lab):
    """a snapshot that is deleted, a bookmark, a rollback and a resize under a client that asks"""
    made(lab)
    h = nbd_connect(lab.nbd_port, "disk")
    h.pwrite(b"a" * MIB, 0)
    lab.do("snapshot", "create", "disk@one")
    h.pwrite(b"b" * BLOCK, 8 * BLOCK)
    want = [(8 * BLOCK, 9 * BLOCK)]
    asker = connect(lab, "disk", context("one"))
    equal("before the deletion", changed(asker, context("one")), want)
    lab.do("snapshot", "delete", "disk@one", "--keep-bookmark")
    h.pwrite(b"b" * BLOCK, 10 * BLOCK)
    want.append((10 * BLOCK, 11 * BLOCK))
    equal("a deleted snapshot stays for who asked before", changed(asker, context("one")), want)
    equal("its bookmark tells the same", by_nbdinfo(lab, "disk", "one"), want)
    asker.shutdown()
    marked = connect(lab, "disk", context("one"))
    lab.do("snapshot", "create", "disk@two")
    h.pwrite(b"c" * BLOCK, 20 * BLOCK)
    equal("the bookmark, up to a snapshot", by_nbdinfo(lab, "disk@two", "one"), want)
    lab.do("lun", "resize", "disk", "--size", "96M")
    h.pwrite(b"d" * BLOCK, 30 * BLOCK)
    larger = connect(lab, "disk", context("two"))
    equal("a disk that grew", changed(larger, context("two")),
          [(20 * BLOCK, 21 * BLOCK), (30 * BLOCK, 31 * BLOCK)])
    larger.shutdown()
    h.shutdown()
    lab.do("snapshot", "rollback", "disk@two", "--force")
    after = connect(lab, "disk", context("two"))
    equal("a rollback took everything back", changed(after, context("two")), [])
    try:
        whole = changed(marked, context("one"))
        check("a bookmark of what was rolled back calls everything changed",
              whole == [(0, 64 * MIB)], whole)
    except nbd.Error as e:
        check("or that client's session was ended by the rollback", True, e)
    gone = tool("nbdinfo", f"--map={context('one')}", lab.nbd_url("disk"), good=False)
    check("such a bookmark is no context any more", gone.returncode != 0, gone.text)
    after.shutdown()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def copy_changes(lab, export, since, copy):
    """An incremental backup: what changed goes onto the older copy; how much that was."""
    source = connect(lab, export, context(since))
    moved = 0
    with open(copy, "r+b") as out:
        out.truncate(source.get_size())
        for start, end in changed(source, context(since)):
            for at in range(start, end, MIB):
                count = min(MIB, end - at)
                out.seek(at)
                out.write(source.pread(count, at))
                moved += count
    source.shutdown()
    return moved


def backups(lab):
    """a chain of incremental backups under load, each equal to its snapshot"""
    made(lab, "256M")
    h = nbd_connect(lab.nbd_port, "disk")
    for at in range(0, 100 * MIB, 20 * MIB):
        h.pwrite(os.urandom(4 * MIB), at)
    lab.do("snapshot", "create", "disk@b0")
    copy = lab.path("copy")
    tool("nbdcopy", lab.nbd_url("disk@b0"), copy)
    stop, noise = threading.Event(), os.urandom(MIB)

    def load():
        own, rng = nbd_connect(lab.nbd_port, "disk"), random.Random(5)
        while not stop.is_set():
            at = rng.randrange(0, 200 * MIB // BLOCK) * BLOCK
            kind = rng.randrange(10)
            if kind < 8:
                own.pwrite(noise[:rng.randrange(1, 16) * BLOCK], at)
            else:
                own.trim(64 * BLOCK, at)
            stop.wait(0.002)
        own.shutdown()

    writer = threading.Thread(target=load)
    writer.start()
    try:
        for number in range(1, 5):
            stop.wait(0.4)
            lab.do("snapshot", "create", f"disk@b{number}")
            if number == 3:
                lab.do("snapshot", "delete", "disk@b2", "--keep-bookmark")
            moved = copy_changes(lab, f"disk@b{number}", f"b{number - 1}", copy)
            check(f"backup {number} moved something, not everything", 0 < moved < 60 * MIB, moved)
            tool("qemu-img", "compare", "-f", "raw", "-F", "raw", copy,
                 lab.nbd_url(f"disk@b{number}"))
    finally:
        stop.set()
        writer.join()
    # Without a snapshot at its end: nobody writes any more.
    copy_changes(lab, "disk", "b4", copy)
    full = lab.path("full")
    tool("nbdcopy", lab.nbd_url("disk"), full)
    tool("cmp", copy, full)
    h.shutdown()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def no_rights(lab):
    """who may not open a disk learns nothing of its snapshots"""
    made(lab)
    lab.do("snapshot", "create", "disk@one")
    lab.do("initiator", "add", "iqn.2026-11.local.test:somebody", "--allow", "disk")
    told = tool("nbdinfo", f"--map={context('one')}", lab.nbd_url("disk"), good=False)
    check("refused", told.returncode != 0, told.text)
    try:
        equal("nothing is listed", list_contexts(lab, PREFIX), [])
    except nbd.Error as e:
        check("a list is refused", True, e)


def option(stream, number, data=b""):
    """Sends one option; the kinds of its replies up to the last."""
    stream.sendall(struct.pack(">QII", 0x49484156454F5054, number, len(data)) + data)
    kinds = []
    while not kinds or kinds[-1] in (2, 3, 4):
        head = b""
        while len(head) < 20:
            more = stream.recv(20 - len(head))
            if not more:
                return kinds + [None]
            head += more
        kinds.append(struct.unpack(">QIII", head)[2])
        left = struct.unpack(">QIII", head)[3]
        while left:
            left -= len(stream.recv(left))
    return kinds


def another_disk(lab):
    """Contexts of one disk are not used on another that got its name in between"""
    made(lab)
    lab.do("lun", "create", "other", "--size", "64M")
    lab.do("snapshot", "create", "disk@one")

    def string(text):
        return struct.pack(">I", len(text)) + text.encode()

    for swap in (False, True):
        stream = socket.create_connection(("127.0.0.1", lab.nbd_port), 10)
        stream.recv(18)
        stream.sendall(struct.pack(">I", 3))
        option(stream, 8)
        wish = string("disk") + struct.pack(">I", 1) + string(context("one"))
        equal("the context is there", option(stream, 10, wish), [4, 1])
        if swap:
            lab.do("lun", "rename", "disk", "was")
            lab.do("lun", "rename", "other", "disk")
        kinds = option(stream, 7, string("disk") + struct.pack(">H", 0))
        equal("the export opens" if not swap else "another disk does not", kinds[-1],
              None if swap else 1)
        stream.close()


run([clients, contexts, lives_on, backups, no_rights, another_disk])
