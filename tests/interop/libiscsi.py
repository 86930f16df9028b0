"""libiscsi's tools, and those families of its conformance suite that the door claims to support."""

import os
import re
import sys

from blockclients import Iscsi
from harness import IQN, MIB, check, equal, require, run, tool

require("iscsi-ls", "iscsi-inq", "iscsi-readcapacity16", "iscsi-perf", "iscsi-test-cu")

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import conformance as suite

# Of 230; the others need a removable or write-protected LUN, or a larger physical block.
MOST_PASS = 200


def tools(lab):
    """iscsi-ls, iscsi-inq, iscsi-readcapacity16, iscsi-perf"""
    lab.make_pool()
    lab.do("lun", "create", "Disk.1", "--size", "64M", "serial=ABC123")
    lab.do("lun", "create", "big", "--size", "3T")
    lab.serve(iscsi=True)
    portal = f"iscsi://127.0.0.1:{lab.iscsi_port}"
    listed = tool("iscsi-ls", "-s", portal).text
    both = f"{IQN}disk.1" in listed and f"{IQN}big" in listed
    check("discovery lists both targets", both, listed)
    url = lab.iscsi_url("disk.1")
    check("INQUIRY says a disk", re.search(r"DIRECT_ACCESS", tool("iscsi-inq", url).text))
    for page in ["0x00", "0x80", "0x83", "0xb0", "0xb1", "0xb2"]:
        tool("iscsi-inq", "-e", "1", "-c", str(int(page, 16)), url)
    serial = tool("iscsi-inq", "-e", "1", "-c", "128", url).text
    check("VPD 80h has the serial of `attributes`", "ABC123" in serial, serial)
    capacity = tool("iscsi-readcapacity16", url).text
    check("READ CAPACITY (16): last block 131071", "131071" in capacity, capacity)
    capacity = tool("iscsi-readcapacity16", lab.iscsi_url("big")).text
    check("a 3 TiB LUN beyond 2^32 blocks", str((3 << 40) // 512 - 1) in capacity, capacity)
    tool("iscsi-perf", "-t", "2", "-m", "32", "-b", "8", "-r", url)
    check("an unknown target is refused", tool("iscsi-inq", url + "x", good=False).returncode != 0)
    check("an orderly stop", lab.stop())


def conformance(lab):
    """iscsi-test-cu over a thin LUN: nothing fails that is not known (see tests/conformance.py)"""
    verdicts = suite.run_profile(lab, suite.PROFILES[0])
    for test, (verdict, why, _) in suite.surprises(suite.PROFILES[0], verdicts).items():
        check(test, False, f"{verdict}: {why}")
    good = sum(verdict in ("PASS", "PART") for verdict, _, _ in verdicts.values())
    check(f"{good} tests of {len(verdicts)} pass", good >= MOST_PASS, verdicts)


def sessions(lab):
    """several sessions at once see each other's writes and are listed"""
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "64M")
    lab.serve(iscsi=True)
    a = Iscsi(lab.iscsi_port, IQN + "disk", "iqn.2026-11.local.test:a")
    b = Iscsi(lab.iscsi_port, IQN + "disk", "iqn.2026-11.local.test:b")
    for session in (a, b):
        session.clear_attention()
    for turn in range(20):
        block = bytes([turn + 1]) * 65536
        a.write(turn * MIB, block)
        equal(f"b reads what a wrote, turn {turn}", b.read(turn * MIB, 65536) == block, True)
    listed = lab.ask("session", "list")
    text = str(listed)
    check("session list names both", "test:a" in text and "test:b" in text, text[:500])
    a.close()
    b.close(logout=False)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


run([tools, conformance, sessions])
