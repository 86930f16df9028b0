"""QEMU's own tools, as a hypervisor uses them: qemu-img and qemu-io over nbd:// and iscsi://."""

import json
import os
import subprocess

from harness import MIB, check, equal, need, require, run, tool

require("qemu-img", "qemu-io", "cmp")
HERE = os.path.dirname(os.path.abspath(__file__))


def with_iscsi():
    """The folder of QEMU tools that speak iSCSI."""
    got = subprocess.run([os.path.join(HERE, "get-qemu-iscsi.sh")], capture_output=True, text=True)
    need("qemu tools with an iSCSI driver are there", got.returncode == 0, got.stderr)
    return got.stdout.strip()


def noise(lab, name, size):
    """A file of random bytes with a hole in its middle."""
    path = lab.path(name)
    with open(path, "wb") as f:
        f.write(os.urandom(size // 3))
        f.seek(2 * size // 3)
        f.write(os.urandom(size - 2 * size // 3))
    return path


def qemu_io(program, url, *commands):
    args = [program, "-f", "raw"]
    for command in commands:
        args += ["-c", command]
    done = tool(*args, url)
    check(f"patterns as written: {commands[-1]}", "verification failed" not in done.text, done.text)
    return done.text


def exercise(lab, img, io, url, source):
    """The same work over one door."""
    info = json.loads(tool(img, "info", "--output=json", url).stdout)
    equal("qemu-img info tells the capacity", info["virtual-size"], os.path.getsize(source))
    tool(img, "convert", "-n", "-f", "raw", "-O", "raw", source, url)
    tool(img, "compare", "-f", "raw", "-F", "raw", source, url)
    back = lab.path("back.img")
    tool(img, "convert", "-f", "raw", "-O", "raw", url, back)
    tool("cmp", source, back)
    qemu_io(io, url, "write -P 0xa5 512 1536", "write -P 0x5a -f 1M 2M", "flush",
            "read -P 0xa5 512 1536", "read -P 0x5a 1M 2M")
    qemu_io(io, url, "write -P 1 8M 64k", "write -z 8M 32k", "read -P 0 8M 32k",
            "read -P 1 8224k 32k")
    qemu_io(io, url, "write -P 7 4M 3M", "discard 4M 2M", "flush", "read -P 0 4M 2M",
            "read -P 7 6M 1M")
    qemu_io(io, url, "aio_write -P 2 12M 1M", "aio_write -P 3 13M 1M", "aio_write -P 4 14M 1M",
            "aio_flush", "read -P 2 12M 1M", "read -P 3 13M 1M", "read -P 4 14M 1M")


def over_nbd(lab):
    """qemu-img and qemu-io over nbd://, TCP and Unix socket"""
    source = noise(lab, "source.img", 48 * MIB)
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "48M")
    lab.serve(mount=True, nbd=True, unix=True)
    exercise(lab, "qemu-img", "qemu-io", lab.nbd_url("disk"), source)
    unix = f"nbd+unix:///disk?socket={lab.unix()}"
    qemu_io("qemu-io", unix, "read -P 0xa5 512 1536", "write -P 9 0 4k", "read -P 9 0 4k")
    maps = json.loads(tool("qemu-img", "map", "--output=json", "-f", "raw", unix).stdout)
    check("qemu-img map sees the discarded range as a hole",
          any(not m["data"] and m["start"] <= 4 * MIB and m["start"] + m["length"] >= 6 * MIB
              for m in maps), maps)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def over_iscsi(lab):
    """qemu-img and qemu-io over iscsi://"""
    folder = with_iscsi()
    source = noise(lab, "source.img", 48 * MIB)
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "48M")
    lab.serve(mount=True, iscsi=True)
    exercise(lab, f"{folder}/qemu-img", f"{folder}/qemu-io", lab.iscsi_url("disk"), source)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def one_disk_three_doors(lab):
    """What one door wrote, the others read at once"""
    folder = with_iscsi()
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "64M")
    lab.serve(mount=True, iscsi=True, nbd=True)
    iscsi, nbd = lab.iscsi_url("disk"), lab.nbd_url("disk")
    for turn in range(1, 6):
        offset = turn * 3 * MIB + turn * 512
        qemu_io(f"{folder}/qemu-io", iscsi, f"write -P {turn} {offset} 128k")
        with open(lab.data("disk"), "rb") as data:
            data.seek(offset)
            equal("the mount reads what iSCSI wrote", data.read(131072), bytes([turn]) * 131072)
        qemu_io("qemu-io", nbd, f"read -P {turn} {offset} 128k",
                f"write -P {turn + 100} {offset} 4k")
        qemu_io(f"{folder}/qemu-io", iscsi, f"read -P {turn + 100} {offset} 4k")
    tool("qemu-img", "compare", "-f", "raw", "-F", "raw", lab.data("disk"), nbd)
    tool(f"{folder}/qemu-img", "compare", "-U", "-f", "raw", "-F", "raw", lab.data("disk"), iscsi)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


run([over_nbd, over_iscsi, one_disk_three_doors])
