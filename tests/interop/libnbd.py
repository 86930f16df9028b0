"""libnbd's tools and its binding: what an NBD client sees and moves."""

import errno
import json
import os

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


run([tools, requests])
