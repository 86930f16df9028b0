"""A LUN that grows while it is attached: every door knows at once, and the initiator is told."""

import os

from blockclients import CAPACITY_DATA_HAS_CHANGED, Iscsi, nbd_connect
from harness import IQN, MIB, check, equal, run


def attached(lab):
    """resize by the command, with a session on it"""
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "64M")
    lab.serve(mount=True, iscsi=True, nbd=True)
    sessions = [Iscsi(lab.iscsi_port, IQN + "disk", f"iqn.2026-11.local.test:{n}") for n in "ab"]
    for session in sessions:
        session.clear_attention()
    sessions[0].write(0, b"A" * 4096)
    lab.do("lun", "resize", "disk", "--size", "96M")
    equal("the file is as long", os.stat(lab.data("disk")).st_size, 96 * MIB)
    for session in sessions:
        codes = session.clear_attention()
        equal("CAPACITY DATA HAS CHANGED on each session", codes, [CAPACITY_DATA_HAS_CHANGED])
        equal("READ CAPACITY (16)", session.capacity_bytes(), 96 * MIB)
    sessions[0].write(95 * MIB, b"Z" * 4096)
    equal("the new space is usable", sessions[1].read(95 * MIB, 4096), b"Z" * 4096)
    handle = nbd_connect(lab.nbd_port, "disk")
    equal("a new NBD client", handle.get_size(), 96 * MIB)
    handle.shutdown()
    lab.refused("shrinking while attached", "attach|open|in use|session|busy",
                "lun", "resize", "disk", "--size", "32M")
    equal("nothing changed", sessions[0].capacity_bytes(), 96 * MIB)
    lab.do("lun", "resize", "disk", "--size", "32M", "--force")
    equal("with --force it is done", sessions[0].clear_attention(), [CAPACITY_DATA_HAS_CHANGED])
    equal("and seen", sessions[0].capacity_bytes(), 32 * MIB)
    for session in sessions:
        session.close()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def by_file(lab):
    """resize by truncate(1) on `data`"""
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "64M")
    lab.serve(mount=True, iscsi=True)
    session = Iscsi(lab.iscsi_port, IQN + "disk")
    session.clear_attention()
    fd = os.open(lab.data("disk"), os.O_WRONLY)
    os.ftruncate(fd, 80 * MIB)
    os.close(fd)
    codes = session.clear_attention()
    check("the session is told", CAPACITY_DATA_HAS_CHANGED in codes, [hex(c) for c in codes])
    equal("READ CAPACITY (16)", session.capacity_bytes(), 80 * MIB)
    shown = lab.ask("lun", "show", "disk")
    check("and so does the command", str(80 * MIB) in str(shown), shown)
    session.close()
    check("an orderly stop", lab.stop())
    lab.do("lun", "resize", "disk", "--size", "16M")
    lab.serve(iscsi=True)
    session = Iscsi(lab.iscsi_port, IQN + "disk")
    session.clear_attention()
    equal("resized with no server running", session.capacity_bytes(), 16 * MIB)
    session.close()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


run([attached, by_file])
