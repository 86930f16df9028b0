"""Thin provisioning at its end: 16 TiB on a pool of 1 GiB, and the cost of giving it all back."""

import hashlib
import time

from blockclients import Iscsi, nbd_connect
from harness import GIB, IQN, MIB, TIB, check, equal, find, need, run

LUN_BYTES = 16 * TIB
HANDFUL_BLOCKS = 64
WALK_SECONDS = 30


def written(lab):
    """Blocks of 4 KiB written to the device since the pool was opened."""
    pool = lab.ask("status")["pool"]
    got = pool.get("written_bytes")
    need("status counts what is written to the devices", got is not None, pool)
    return got // 4096


def creation(lab):
    """making it writes a handful of blocks"""
    lab.size = "1G"
    lab.make_pool()
    lab.serve(mount=True, iscsi=True, nbd=True)
    before = written(lab)
    lab.do("lun", "create", "huge", "--size", "16T")
    cost = written(lab) - before
    check(f"16 TiB made with {cost} device blocks", cost <= HANDFUL_BLOCKS, cost)
    session = Iscsi(lab.iscsi_port, IQN + "huge")
    session.clear_attention()
    equal("READ CAPACITY (16)", session.capacity_bytes(), LUN_BYTES)
    for offset in (0, LUN_BYTES // 2, LUN_BYTES - 4096):
        session.write(offset, b"H" * 4096)
        equal(f"a block at {offset // GIB} GiB", session.read(offset, 4096), b"H" * 4096)
    session.close()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def unmap_all(lab):
    """UNMAP of all of it writes a handful of blocks, however much was mapped"""
    lab.size = "1G"
    lab.make_pool()
    lab.do("lun", "create", "huge", "--size", "16T")
    lab.serve(iscsi=True, nbd=True, extra=["--cache", "64M"])
    costs = [unmap_once(lab, mapped) for mapped in (8 * MIB, 256 * MIB)]
    check(f"costs of UNMAP for 8 MiB and 256 MiB mapped: {costs} blocks",
          max(costs) <= HANDFUL_BLOCKS, costs)
    pool = lab.ask("pool", "show")
    check("an orderly stop", lab.stop())
    lab.verify_pool()
    lab.serve(nbd=True)
    used = used_in_the_end(lab)
    check("no space is used any more", used <= MIB, (used, pool))
    check("an orderly stop", lab.stop())


def settle(lab):
    """Waits until nothing of the writing itself is left to be written."""
    deadline = time.monotonic() + WALK_SECONDS
    while lab.ask("status")["pool"]["dirty_bytes"] > 0 and time.monotonic() < deadline:
        time.sleep(0.5)


def used_in_the_end(lab):
    """Space comes back in the background; WALK_SECONDS is enough for so little."""
    deadline = time.monotonic() + WALK_SECONDS
    while True:
        used = find(lab.ask("lun", "show", "huge"), "used_bytes")
        if used <= MIB or time.monotonic() > deadline:
            return used
        time.sleep(0.5)


def unmap_once(lab, mapped_bytes):
    """Maps so much, scattered over the LUN, then unmaps everything; the blocks that took."""
    handle = nbd_connect(lab.nbd_port, "huge")
    piece = 64 << 10
    count = mapped_bytes // piece
    for n in range(count):
        data = hashlib.shake_128(n.to_bytes(8, "little")).digest(piece)
        handle.pwrite(data, n * (LUN_BYTES // count) // 4096 * 4096)
    handle.flush()
    handle.shutdown()
    session = Iscsi(lab.iscsi_port, IQN + "huge")
    session.clear_attention()
    most_blocks, most_ranges = session.unmap_limits()
    step = min(most_blocks, 0xFFFFFFFF) or 1
    ranges = [(lba, min(step, LUN_BYTES // 512 - lba)) for lba in range(0, LUN_BYTES // 512, step)]
    batch = max(1, min(most_ranges, 256))
    if most_blocks < 0xFFFFFFFF:  # the limit may be one of the whole command
        batch = 1
    settle(lab)
    before = written(lab)
    for first in range(0, len(ranges), batch):
        session.unmap(*ranges[first:first + batch])
    session.flush()
    cost = written(lab) - before
    equal("it reads as zeros", session.read(LUN_BYTES // count * 3, 4096), bytes(4096))
    session.close()
    return cost


run([creation, unmap_all])
