"""Memory stays bounded: a LUN larger than the cache, written and read at random by many clients."""

import hashlib
import random
import threading

from blockclients import nbd_connect
from harness import MIB, check, equal, run

CACHE_MIB = 64
BASE_MIB = 96  # the stated base of README.md: program, threads, connections, tables
LUN_MIB = 640
PIECE = 64 << 10
CLIENTS = 4
READS = 1500


def block(n):
    return hashlib.shake_128(n.to_bytes(8, "little")).digest(PIECE)


def client(port, number, errors):
    """Writes its quarter in random order, then reads at random in all of that quarter."""
    try:
        handle = nbd_connect(port, "disk")
        mine = list(range(number, LUN_MIB * MIB // PIECE, CLIENTS))
        dice = random.Random(number)
        dice.shuffle(mine)
        for n in mine:
            handle.pwrite(block(n), n * PIECE)
        handle.flush()
        for _ in range(READS):
            n = dice.choice(mine)
            if bytes(handle.pread(PIECE, n * PIECE)) != block(n):
                errors.append(f"piece {n} is wrong")
        handle.shutdown()
    except Exception as e:  # whatever it is, the check shows it
        errors.append(repr(e))


def bounded(lab):
    """640 MiB through a cache of 64 MiB"""
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", f"{LUN_MIB}M")
    lab.serve(nbd=True, mount=True, extra=["--cache", f"{CACHE_MIB}M"])
    idle = lab.vm_hwm_bytes() // MIB
    errors = []
    threads = [threading.Thread(target=client, args=(lab.nbd_port, n, errors))
               for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal("every byte as written", errors[:3], [])
    with open(lab.data("disk"), "rb") as data:
        while data.read(MIB):
            pass
    peak = lab.vm_hwm_bytes() // MIB
    check(f"peak {peak} MiB (idle {idle}) within {CACHE_MIB} MiB cache and {BASE_MIB} MiB base",
          peak <= CACHE_MIB + BASE_MIB)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


run([bounded])
