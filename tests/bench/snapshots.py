"""What snapshots cost a client, each figure beside its own control in interleaved rounds:

  writes   random 4 KiB writes (depth 32, NBD) while a snapshot is made every second, beside none
  reads    random 4 KiB reads of a LUN with SNAPSHOTS others behind it, each with a change of its
           own, beside a LUN of the same contents without any
  pause    4 KiB writes, each with a flush behind it (depth 1), while another client writes too:
           in rounds beside nothing, beside a consistency point a second and beside a snapshot a
           second, which are asked for over the control socket, without a process for each. Behind
           each the longest write and flush of a quarter of a second count: their median tells a
           pause from what the machine does besides
  waits    how long the server itself made all writes wait in these rounds (it began with them):
           for a snapshot, for a consistency point, for a flush's cut; and how long the device's own
           flushes took

Figures, no proof: rates by the median of rounds, their spread beside them.

Environment: LUNFS the program; SECONDS of each round (default 4); ROUNDS (5); SIZE_MIB of the LUN
(1024); SNAPSHOTS behind the one that is read (1000); DIR where the pool lies. FILL=no leaves the
LUNs thin and measures writes and pauses alone, for sizes that the machine has no room for. LOAD
(2000) is how many writes a second go on beside the pauses. ONLY=pause leaves the rest out.
"""

import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "interop"))

import harness  # noqa: E402
from blockclients import nbd_connect  # noqa: E402
from harness import Lab, need, require, tool  # noqa: E402

SECONDS = float(os.environ.get("SECONDS", "4"))
ROUNDS = int(os.environ.get("ROUNDS", "5"))
SIZE_MIB = int(os.environ.get("SIZE_MIB", "1024"))
FILL = os.environ.get("FILL", "yes") != "no"
SNAPSHOTS = int(os.environ.get("SNAPSHOTS", "1000"))
LOAD = int(os.environ.get("LOAD", "2000"))
ONLY = os.environ.get("ONLY", "")
BLOCK = 4096


class Ticker:
    """Calls `act` once a second until it is left; `spans` has when each call began and ended."""

    def __init__(self, act):
        self.act, self.spans, self.end = act, [], threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def run(self):
        while not self.end.wait(1):
            began = time.monotonic()
            self.act()
            self.spans.append((began, time.monotonic()))

    def __exit__(self, *_):
        self.end.set()
        self.thread.join()


def fio(lab, lun, pattern):
    done = tool("fio", "--name=x", "--output-format=json", f"--size={SIZE_MIB}M", "--ioengine=nbd",
                f"--uri={lab.nbd_url(lun)}", f"--rw={pattern}", "--bs=4k", "--iodepth=32",
                "--time_based", f"--runtime={SECONDS}", "--norandommap",
                f"--randseed={random.getrandbits(32)}", cwd=lab.dir)
    text = done.stdout.decode()
    job = json.loads(text[text.index("{"):])["jobs"][0]
    return job["read" if "read" in pattern else "write"]["iops"]


def through(lab, lun, pattern):
    """All of a LUN, once."""
    tool("fio", "--name=through", f"--rw={pattern}", "--bs=1M", f"--size={SIZE_MIB}M",
         "--ioengine=nbd", f"--uri={lab.nbd_url(lun)}", cwd=lab.dir)


def told(what, with_them, without):
    ratios = [a / b for a, b in zip(with_them, without)]
    rates = [statistics.median(rates) for rates in (with_them, without)]
    print(f"{what:8} {rates[0]:9.0f} /s with, {rates[1]:9.0f} /s without: "
          f"{100 * statistics.median(ratios):.0f}% "
          f"(rounds {', '.join(f'{ratio:.2f}' for ratio in ratios)})", flush=True)


def snapshot(lab, lun):
    lab.do("snapshot", "create", lun)


def writes(lab):
    with_them, without = [], []
    for _ in range(ROUNDS):
        without.append(fio(lab, "disk", "randwrite"))
        with Ticker(lambda: snapshot(lab, "disk")):
            with_them.append(fio(lab, "disk", "randwrite"))
        for one in lab.ask("snapshot", "list", "disk"):
            lab.do("snapshot", "delete", f"disk@{one['name']}")
    told("writes", with_them, without)


def reads(lab):
    client = nbd_connect(lab.nbd_port, "disk")
    for n in range(SNAPSHOTS):
        client.pwrite(random.Random(n).randbytes(BLOCK), random.Random(-n).randrange(
            SIZE_MIB << 8) * BLOCK)
        snapshot(lab, f"disk@s{n}")
    client.shutdown()
    for lun in ("disk", "plain"):
        through(lab, lun, "read")  # both in the cache, as far as it goes
    with_them, without = [], []
    for _ in range(ROUNDS):
        without.append(fio(lab, "plain", "randread"))
        with_them.append(fio(lab, "disk", "randread"))
    told("reads", with_them, without)


def told_to(lab, name, **arguments):
    """A command over the control socket from here: no process is started for it."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(lab.control)
        request = {"version": 1, "command": {"name": name, "arguments": arguments}}
        server.sendall(json.dumps(request).encode() + b"\n")
        reply = server.makefile().readline()
    need(f"{name} over the control socket", "result" in json.loads(reply), reply)


def write_and_flush(client):
    """4 KiB write+flush pairs, one after the other, for a round: when each began, how many
    milliseconds the write took, and the flush."""
    took, end = [], time.monotonic() + SECONDS
    while time.monotonic() < end:
        place, data = random.randrange(SIZE_MIB << 8) * BLOCK, os.urandom(BLOCK)
        began = time.monotonic()
        client.pwrite(data, place)
        written = time.monotonic()
        client.flush()
        took.append((began, 1000 * (written - began), 1000 * (time.monotonic() - written)))
    return took


def behind(spans, took):
    """The longest write and the longest flush in the quarter of a second behind each beginning."""
    for began, _ in spans:
        near = [one for one in took if began - 0.02 <= one[0] < began + 0.25]
        if near:
            yield [max(one[part] for one in near) for part in (1, 2)]


def load(lab):
    """Another client's writes all the while, so that there is always something dirty."""
    return subprocess.Popen(
        ["fio", "--name=load", "--ioengine=nbd", f"--uri={lab.nbd_url('disk')}", "--rw=randwrite",
         f"--size={SIZE_MIB}M", "--bs=4k", "--iodepth=8", f"--rate_iops={LOAD}", "--norandommap",
         "--time_based", "--runtime=3600", "--thread"], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, cwd=lab.dir)


def pause(lab):
    name = f"lunfs/{lab.ask('status')['pool']['id']}.sock"
    sockets = [os.path.join(directory, name) for directory in ("/run", lab.runtime)]
    lab.control = next(path for path in sockets if os.path.exists(path))
    told_to(lab, "snapshot_create", snapshots=["plain@base"])
    acts = {
        "nothing": lambda: None,
        # A list of snapshots counts what they hold behind a consistency point of its own.
        "points": lambda: told_to(lab, "snapshot_list", lun="plain"),
        "snapshots": lambda: told_to(lab, "snapshot_create", snapshots=["plain"]),
    }
    all_of, near = {name: [] for name in acts}, {name: [] for name in acts}
    client = nbd_connect(lab.nbd_port, "plain")
    other = load(lab) if LOAD else None
    try:
        for _ in range(ROUNDS):
            for name, act in acts.items():
                with Ticker(act) as ticker:
                    took = write_and_flush(client)
                all_of[name] += took
                near[name] += behind(ticker.spans, took)
    finally:
        if other:
            other.kill()
            other.wait()
    client.shutdown()
    for part, which in (("write", 1), ("flush", 2)):
        for name, took in all_of.items():
            each = [one[which] for one in took]
            behind_each = statistics.median(one[which - 1] for one in near[name])
            print(f"pause    {part} beside {name + ',':10} ms: "
                  f"median {statistics.median(each):6.2f}, "
                  f"longest behind each of {len(near[name])} (median) {behind_each:6.2f}, "
                  f"longest of {len(each)} {max(each):6.2f}", flush=True)
    for name, took in lab.ask("status")["pool"].get("waits", {}).items():
        print(f"waits    {name:18} {took['count']:6} times, mean {took['mean_us'] / 1000:8.3f} ms, "
              f"longest {took['longest_us'] / 1000:8.3f} ms", flush=True)


def main():
    require("fio")
    harness.quiet = True
    if os.environ.get("DIR"):
        tempfile.tempdir = os.environ["DIR"]
    lab = Lab(f"{4 * SIZE_MIB + 4096}M" if FILL else "24G")
    try:
        lab.make_pool()
        for lun in ("disk", "plain"):
            lab.do("lun", "create", lun, "--size", f"{SIZE_MIB}M")
        extra = ["--cache", f"{min(3 * SIZE_MIB, 4096)}M"]
        lab.serve(nbd=True, extra=extra)
        for lun in ("disk", "plain") if FILL else ():
            through(lab, lun, "write")
        if ONLY != "pause":
            writes(lab)
            if FILL:
                reads(lab)
        lab.stop()
        lab.serve(nbd=True, extra=extra)
        pause(lab)
    finally:
        lab.close()


main()
