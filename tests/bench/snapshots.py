"""What snapshots cost a client, each figure beside its own control in interleaved rounds:

  writes   random 4 KiB writes (depth 32, NBD) while a snapshot is made every second, beside none
  reads    random 4 KiB reads of a LUN with SNAPSHOTS others behind it, each with a change of its
           own, beside a LUN of the same contents without any
  pause    the longest of 4 KiB write+flush pairs (depth 1) that ran while a snapshot was made,
           beside the longest of as many that did not

Figures, no proof: rates by the median of rounds, their spread beside them.

Environment: LUNFS the program; SECONDS of each round (default 4); ROUNDS (5); SIZE_MIB of the LUN
(1024); SNAPSHOTS behind the one that is read (1000); DIR where the pool lies. FILL=no leaves the
LUNs thin and measures writes alone, for sizes that the machine has no room for.
"""

import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "interop"))

import harness  # noqa: E402
from blockclients import nbd_connect  # noqa: E402
from harness import Lab, require, tool  # noqa: E402

SECONDS = float(os.environ.get("SECONDS", "4"))
ROUNDS = int(os.environ.get("ROUNDS", "5"))
SIZE_MIB = int(os.environ.get("SIZE_MIB", "1024"))
FILL = os.environ.get("FILL", "yes") != "no"
SNAPSHOTS = int(os.environ.get("SNAPSHOTS", "1000"))
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


def fill(lab, lun):
    tool("fio", "--name=fill", "--rw=write", "--bs=1M", f"--size={SIZE_MIB}M", "--ioengine=nbd",
         f"--uri={lab.nbd_url(lun)}", cwd=lab.dir)


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
    with_them, without = [], []
    for _ in range(ROUNDS):
        without.append(fio(lab, "plain", "randread"))
        with_them.append(fio(lab, "disk", "randread"))
    told("reads", with_them, without)


def pause(lab):
    client = nbd_connect(lab.nbd_port, "plain")
    pairs, end = [], time.monotonic() + ROUNDS * SECONDS
    with Ticker(lambda: snapshot(lab, "plain")) as ticker:
        while time.monotonic() < end:
            began = time.monotonic()
            client.pwrite(os.urandom(BLOCK), random.randrange(SIZE_MIB << 8) * BLOCK)
            client.flush()
            pairs.append((began, time.monotonic()))
    client.shutdown()
    spans = ticker.spans
    beside, alone = [], []
    for began, ended in pairs:
        hit = any(began < b and a < ended for a, b in spans)
        (beside if hit else alone).append(1000 * (ended - began))
    alone = [max(random.sample(alone, min(len(beside), len(alone)))) for _ in range(101)]
    print(f"pause    longest write+flush beside {len(spans)} snapshots {max(beside):.1f} ms, "
          f"without {statistics.median(alone):.1f} ms (median of {len(beside)} each)", flush=True)


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
        lab.serve(nbd=True, extra=["--cache", f"{min(3 * SIZE_MIB, 4096)}M"])
        for lun in ("disk", "plain") if FILL else ():
            fill(lab, lun)
        writes(lab)
        if FILL:
            reads(lab)
        pause(lab)
    finally:
        lab.close()


main()
