"""libnbd's tools and its binding: what an NBD client sees and moves."""

import errno
import json
import os
import socket
import time

import nbd

from blockclients import nbd_connect
from harness import KIB, MIB, check, equal, require, run, tool

require("nbdinfo", "nbdcopy", "cmp")


def tools(lab):
    """nbdinfo and nbdcopy"""
    lab.make_pool()
    for name in ("one", "two"):
        lab.do("lun", "create", name, "--size", "64M")
    lab.serve(nbd=True, unix=True)
    url = lab.nbd_url("one")
    info = json.loads(tool("nbdinfo", "--json", url).stdout)["exports"][0]
    equal("the size", info["export-size"], 64 * MIB)
    for able in ("can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"):
        check(f"nbdinfo: {able}", info.get(able), info)
    check("nbdinfo: not read-only", not info["is_read_only"])
    listed = json.loads(tool("nbdinfo", "--list", "--json", lab.nbd_url("")).stdout)
    names = sorted(e["export-name"] for e in listed["exports"])
    equal("the exports listed", names, ["one", "two"])
    source, back = lab.path("source"), lab.path("back")
    with open(source, "wb") as f:
        f.write(os.urandom(20 * MIB))
        f.truncate(64 * MIB)
    unix = f"nbd+unix:///two?socket={lab.unix()}"
    tool("nbdcopy", "--flush", "--destination-is-zero", source, url)
    tool("nbdcopy", url, unix)
    tool("nbdcopy", "--connections=4", "--requests=64", unix, back)
    tool("cmp", source, back)
    extents = json.loads(tool("nbdinfo", "--map", "--json", unix).stdout)
    mapped = sum(e["length"] for e in extents if e["type"] == 0)
    check("the map shows the data and not much more", 20 * MIB <= mapped <= 21 * MIB, extents)
    wrong = tool("nbdinfo", lab.nbd_url("none"), good=False)
    check("an unknown export is refused", wrong.returncode != 0)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def refused(text, call, *codes):
    """A request that must fail with one of the codes and leave the connection alive."""
    try:
        call()
        check(text, False, "it was accepted")
    except nbd.Error as e:
        check(text, e.errnum in codes, f"{e} ({e.errnum})")


def requests(lab):
    """every request of the protocol, and those it must refuse"""
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "64M")
    lab.serve(nbd=True)
    h = nbd_connect(lab.nbd_port, "disk")
    h.set_strict_mode(0)
    noise = os.urandom(MIB)
    h.pwrite(noise, 12 * KIB)
    equal("read what was written", h.pread(MIB, 12 * KIB) == noise, True)
    h.pwrite(noise[:512], 512, nbd.CMD_FLAG_FUA)
    equal("a block of 512 with FUA", h.pread(512, 512) == noise[:512], True)
    h.zero(64 * KIB, 16 * KIB)
    equal("write zeroes", h.pread(64 * KIB, 16 * KIB), bytes(64 * KIB))
    h.zero(64 * KIB, 128 * KIB, nbd.CMD_FLAG_NO_HOLE)
    equal("write zeroes without a hole", h.pread(64 * KIB, 128 * KIB), bytes(64 * KIB))
    h.trim(256 * KIB, 256 * KIB)
    equal("trim reads as zeros", h.pread(256 * KIB, 256 * KIB), bytes(256 * KIB))
    h.flush()
    end = 64 * MIB
    refused("a read beyond the end", lambda: h.pread(4096, end), errno.EINVAL)
    refused("a write beyond the end", lambda: h.pwrite(bytes(4096), end), errno.ENOSPC,
            errno.EINVAL)
    refused("a trim across the end", lambda: h.trim(8192, end - 4096), errno.EINVAL)
    refused("a read of 3 GiB", lambda: h.pread(1 << 26, 0) if h.get_size() < 1 << 26
            else h.pread(1 << 26, end - 4096), errno.EINVAL, errno.ERANGE, errno.EOVERFLOW)
    equal("the connection still works", h.pread(MIB, 12 * KIB)[:4096] == noise[:4096], True)
    h.shutdown()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def one_flush_for_all(lab):
    """Multi-conn: a flush on one connection covers what was answered on all others"""
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "64M")
    lab.do("lun", "create", "other", "--size", "64M")
    marks = [os.urandom(4 * KIB) for _ in range(24)]
    for turn in range(3):
        lab.serve(nbd=True)
        every = [nbd_connect(lab.nbd_port, "disk") for _ in marks]
        check("the export says so", every[0].can_multi_conn())
        for number, (one, mark) in enumerate(zip(every, marks)):
            one.pwrite(mark, (turn * 100 + number) * 64 * KIB)
        flusher = nbd_connect(lab.nbd_port, "disk")
        flusher.flush()
        every[0].pwrite(b"later" + bytes(507), 63 * MIB)
        lab.kill()
        lab.serve(nbd=True)
        after = nbd_connect(lab.nbd_port, "disk")
        kept = [bytes(after.pread(4 * KIB, (turn * 100 + n) * 64 * KIB)) == mark
                for n, mark in enumerate(marks)]
        check("all of it is there after kill -9", all(kept), kept)
        after.shutdown()
        check("an orderly stop", lab.stop())
    lab.verify_pool()


def dropped(lab):
    """session drop ends one connection, also where several of one process share a Unix socket"""
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "64M")
    lab.serve(nbd=True, unix=True)
    uri = f"nbd+unix:///disk?socket={lab.unix()}"
    first, second = nbd.NBD(), nbd.NBD()
    first.connect_uri(uri)
    second.connect_uri(uri)
    first.pwrite(b"a" * 512, 0)
    second.pread(512, 0)
    sessions = lab.ask("session", "list")
    equal("two sessions", len(sessions), 2)
    writer = [s["id"] for s in sessions if s["written_bytes"]]
    lab.do("session", "drop", *writer)
    refused("the one is gone", lambda: first.pread(512, 0), errno.ESHUTDOWN, errno.ENOTCONN,
            errno.EPIPE, errno.ECONNRESET, 0)
    equal("the other goes on", bytes(second.pread(512, 0)), b"a" * 512)
    second.shutdown()


def counted(lab):
    """Writes to a read-only export, unknown exports and floods are counted, writes logged"""
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "64M")
    lab.do("lun", "create", "ro", "--size", "64M", "read-only=true")
    lab.serve(nbd=True)
    h = nbd_connect(lab.nbd_port, "ro")
    h.set_strict_mode(0)
    for text, call in (("a write", lambda: h.pwrite(bytes(512), 0)),
                       ("a trim", lambda: h.trim(512, 0)), ("zeroes", lambda: h.zero(512, 0))):
        refused(f"{text} to a read-only export", call, errno.EPERM)
    h.shutdown()
    equal("they are counted", lab.ask("status")["refused"]["read_only"], 3)
    text = str(lab.ask("lun", "log", "ro"))
    check("and logged", "a write" in text and "read-only" in text, text[-500:])
    wrong = tool("nbdinfo", lab.nbd_url("none"), good=False)
    check("an unknown export", wrong.returncode != 0)
    check("is counted", lab.ask("status")["refused"]["no_such_lun"] >= 1)
    flood = [socket.create_connection(("127.0.0.1", lab.nbd_port), 5) for _ in range(100)]
    deadline, seen = time.monotonic() + 10, 0
    while seen < 30 and time.monotonic() < deadline:
        seen = lab.ask("status")["refused"]["flood"]
    check("a flood is counted", 30 <= seen <= 100, seen)
    for one in flood:
        one.close()


run([tools, requests, one_flush_for_all, dropped, counted])
