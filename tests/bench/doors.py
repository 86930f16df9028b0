"""A short table of speeds: each door, 4 KiB at random and 1 MiB in a row, cached reads.

Figures, no proof: compare only within one run, and the server's CPU time for each request before
the rates, which move with whatever else the machine does. Clients: fio (NBD, files) and qemu-img
bench (iSCSI, sequential only).

Environment: LUNFS the program; SECONDS for each row (default 3); DIR where the pool lies.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "interop"))

import harness  # noqa: E402
from harness import Lab, require, tool  # noqa: E402

SECONDS = os.environ.get("SECONDS", "3")
SIZE_MIB = 256
TICKS = os.sysconf("SC_CLK_TCK")
ROWS = [
    ("4k random read, depth 1", "randread", "4k", 1),
    ("4k random read, depth 32", "randread", "4k", 32),
    ("4k random write, depth 1", "randwrite", "4k", 1),
    ("4k random write, depth 32", "randwrite", "4k", 32),
    ("1M read, depth 4", "read", "1M", 4),
    ("1M write, depth 4", "write", "1M", 4),
]


def cpu_seconds(lab):
    """User and system time of the server so far (proc(5), fields 14 and 15 of stat)."""
    with open(f"/proc/{lab.server.pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def show(door, label, requests, size, seconds, cpu):
    rate, mib = requests / seconds, requests * size / seconds / (1 << 20)
    each_us = cpu / max(requests, 1) * 1e6
    print(f"{door:6} {label:28} {rate:10.0f} /s {mib:8.0f} MiB/s {each_us:8.1f}", flush=True)


def fio(lab, door, engine):
    for label, pattern, size, depth in ROWS:
        before = cpu_seconds(lab)
        done = tool("fio", "--name=x", "--output-format=json", f"--size={SIZE_MIB}M", *engine,
                    f"--rw={pattern}", f"--bs={size}", f"--iodepth={depth}", "--time_based",
                    f"--runtime={SECONDS}", "--norandommap", cwd=lab.dir)
        text = done.stdout.decode()
        job = json.loads(text[text.index("{"):])["jobs"][0]
        side = job["read" if "read" in pattern else "write"]
        show(door, label, side["total_ios"], 4096 if size == "4k" else 1 << 20,
             side["runtime"] / 1000, cpu_seconds(lab) - before)


def iscsi(lab):
    got = subprocess.run([os.path.join(HERE, "../interop/get-qemu-iscsi.sh")], capture_output=True)
    program = os.path.join(got.stdout.decode().strip(), "qemu-img")
    for write in (False, True):
        for size, depth, count in ((4096, 1, 20000), (4096, 32, 60000), (1 << 20, 4, 1000)):
            before, started = cpu_seconds(lab), time.monotonic()
            tool(program, "bench", "-f", "raw", "-t", "none", "-c", count, "-d", depth, "-s", size,
                 *(["-w"] if write else []), lab.iscsi_url("disk"))
            unit = "4k" if size == 4096 else "1M"
            label = f"{unit} {'write' if write else 'read'} in a row, depth {depth}"
            show("iscsi", label, count, size, time.monotonic() - started, cpu_seconds(lab) - before)


def main():
    require("fio")
    harness.quiet = True
    if os.environ.get("DIR"):
        tempfile.tempdir = os.environ["DIR"]
    lab = Lab("4G")
    try:
        lab.make_pool()
        lab.do("lun", "create", "disk", "--size", f"{SIZE_MIB}M")
        lab.serve(mount=True, iscsi=True, nbd=True, extra=["--cache", "1G"])
        print(f"{'door':6} {'what':28} {'requests':>13} {'':14} {'CPU us each':>8}")
        nbd = ["--ioengine=nbd", f"--uri={lab.nbd_url('disk')}"]
        fill = ["fio", "--name=fill", "--rw=write", "--bs=1M", f"--size={SIZE_MIB}M"]
        tool(*fill, *nbd, cwd=lab.dir)
        fio(lab, "nbd", nbd)
        iscsi(lab)
        fio(lab, "file", ["--ioengine=libaio", "--direct=1", f"--filename={lab.mount}/file"])
    finally:
        lab.close()


main()
