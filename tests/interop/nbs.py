"""The NBS server, driven by a client written from the protocol's page alone: every operation, who
gets in, once-only execution, pauses, hostile peers."""

import os
import socket
import threading
import time

import nbd

import nbswire as w
from blockclients import Iscsi, nbd_connect
from harness import IQN, MIB, TIB, check, define, equal, free_port, run
from nbswire import Client, Packet, Refused, status_of

A, B = (f"iqn.2026-11.local.test:{x}" for x in "ab")


def serve(lab, **more):
    lab.nbs_port = getattr(lab, "nbs_port", None) or free_port()
    lab.serve(extra=("--nbs", f"127.0.0.1:{lab.nbs_port}"), **more)


def operations(lab):
    """LIST, INFO, READ, WRITE, NO-OP, opaque data, messages: to the byte"""
    lab.make_pool()
    lab.do("lun", "create", "one", "--size", "64M")
    lab.do("lun", "create", "small", "--size", "10000K", "nbs-block-size=512", "write-through=true")
    serve(lab, nbd=True, mount=True)
    equal("lun show names the object", lab.ask("lun", "show", "one")["nbs_name"], "one")
    urls = lab.ask("lun", "show", "one")["nbs_urls"]
    equal("and where it is", urls, [f"nbs://127.0.0.1:{lab.nbs_port}/one"])
    c = Client(lab.nbs_port)
    got = c.ask(w.NOOP)
    want = Packet(0x44, packet=got.packet).bytes()
    equal("a NO-OP's reply, byte for byte", got.raw, want)
    listed = c.list()
    equal("LIST names the objects", sorted(listed), ["one", "small"])
    equal("and describes them", (listed["small"]["blkSize"], listed["small"]["numBlks"],
          listed["small"]["rw"], listed["small"]["tws"], listed["small"]["dr"]),
          ("512", str(10000 * 2), "1", "1", "0"))
    info = c.open("one")
    equal("INFO", (info["BlkSize"], info["NumBlks"], int(info["xferSize"]) >= MIB),
          ("8192", str(64 * MIB // 8192), True))
    data = os.urandom(MIB)
    c.write(3 * MIB, data)
    check("what was written is read", c.read(3 * MIB, MIB) == data)
    equal("a read in the middle", c.read(3 * MIB + 8192, 512), data[8192:8192 + 512])
    disk = nbd_connect(lab.nbd_port, "one")
    check("NBD reads the same", bytes(disk.pread(MIB, 3 * MIB)) == data)
    disk.shutdown()
    with open(lab.data("one"), "rb") as f:
        f.seek(3 * MIB)
        check("and so does the mount", f.read(MIB) == data)
    equal("a range beyond the end", status_of(lambda: c.read(64 * MIB - 8192, 16384)),
          w.OUT_OF_RANGE)
    equal("an offset near 2^32", status_of(lambda: c.ask(
        w.READ, offset=0xFFFFFFFF, data_len=8192)), w.OUT_OF_RANGE)
    equal("a body of more than 64 KiB", status_of(lambda: c.message(
        "flush", f' x="{"y" * 65536}"')), w.INVALID)
    equal("nothing", status_of(lambda: c.read(0, 0)), w.INVALID)
    equal("half a sector", status_of(lambda: c.read(0, 100)), w.INVALID)
    equal("more than xferSize", status_of(lambda: c.read(0, 2 * MIB)), w.INVALID)
    equal("an unknown operation", status_of(lambda: c.ask(0x77)), w.UNSUPPORTED)
    equal("an unknown object", status_of(lambda: c.open("none")), w.NO_SUCH_OBJECT)
    opaque(lab, c)
    equal("flush", c.message("flush", seq=1).tag, "nbsMsgRply")
    c.message("unmap", f' offset="{3 * MIB}" length="{MIB}"', seq=2)
    check("unmapped bytes are zero", c.read(3 * MIB, MIB) == bytes(MIB))
    equal("an unknown message", status_of(lambda: c.message("nonsense", seq=3)), w.UNSUPPORTED)
    small = Client(lab.nbs_port)
    small.open("small")
    small.write(512 * 5, b"x" * 512)
    equal("blocks of 512 bytes", small.read(512 * 4, 1536), bytes(512) + b"x" * 512 + bytes(512))
    sessions = [s for s in lab.ask("session", "list") if s["door"] == "nbs"]
    equal("session list shows them", sorted(s["lun"] for s in sessions), ["one", "small"])
    check("and who writes", all(s["writable"] and s["holds_lease"] for s in sessions), sessions)
    number = [s["id"] for s in sessions if s["lun"] == "small"][0]
    lab.do("session", "drop", number)
    check("a dropped session's connection ends", small.closed())
    for name, size in (("huge", "3T"),):
        lab.do("lun", "create", name, "--size", size, "nbs-block-size=512")
    try:
        c.open("huge")
        check("an object beyond 32 bits is refused", False)
    except Refused as refused:
        equal("an object beyond 32 bits of blocks", refused.status, w.INVALID)
        check("and the block size it needs is named", b'blkSizeNeeded="1024"' in refused.data,
              refused.data)
    lab.do("lun", "set", "huge", "nbs-block-size=8192")
    huge = Client(lab.nbs_port)
    huge.open("huge")
    huge.write(3 * TIB - 8192, b"z" * 8192)
    equal("the last block of 3 TiB", huge.read(3 * TIB - 8192, 8192), b"z" * 8192)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def opaque(lab, c):
    equal("no opaque data at first", c.ask(w.READ_OPAQUE).data, b"")
    value = os.urandom(65513)
    c.ask(w.WRITE_OPAQUE, value, seq=10)
    check("opaque data of the greatest length", c.ask(w.READ_OPAQUE).data == value)
    equal("and one byte more", status_of(lambda: c.ask(w.WRITE_OPAQUE, value + b"x", seq=11)),
          w.INVALID)
    c.ask(w.WRITE_OPAQUE, b"mine", seq=12)
    equal("the mount shows it", os.getxattr(lab.data("one"), "user.lunfs.opaque"), b"mine")
    c.ask(w.WRITE_OPAQUE, b"newer", seq=13)
    c.ask(w.WRITE_OPAQUE, b"mine", seq=12)
    equal("a repetition is not done again", c.ask(w.READ_OPAQUE).data, b"newer")
    c.ask(w.WRITE_OPAQUE, b"", seq=14)
    equal("opaque data that is cleared", c.ask(w.READ_OPAQUE).data, b"")


def generations(lab):
    """A newer connection of a client cuts the older one off; other clients stay"""
    lab.make_pool()
    lab.do("lun", "create", "one", "--size", "64M")
    serve(lab)
    first, other, second = (Client(lab.nbs_port) for _ in range(3))
    first.open("one", gen=1, client="a")
    other.open("one", gen=1, client="b")
    first.write(0, b"1" * 8192)
    second.open("one", gen=2, client="a")
    equal("the older connection is stale", status_of(lambda: first.write(0, b"0" * 8192)), w.STALE)
    equal("its reads too", status_of(lambda: first.read(0, 8192)), w.STALE)
    equal("its orders too", status_of(lambda: first.message("flush", seq=1)), w.STALE)
    equal("another client is not", status_of(lambda: other.write(8192, b"2" * 8192)), w.OK)
    equal("nothing stale was done", second.read(0, 16384), b"1" * 8192 + b"2" * 8192)
    late = Client(lab.nbs_port)
    equal("a late INFO of a lower generation", status_of(
        lambda: late.open("one", gen=1, client="a")), w.STALE)
    equal("a lower generation in a request", status_of(
        lambda: second.read(0, 8192, gen=1)), w.STALE)
    equal("a handle of another connection", status_of(
        lambda: second.read(0, 8192, handle=first.handle)), w.STALE)
    equal("no handle", status_of(lambda: second.read(0, 8192, handle=w.NONE)), w.NO_SUCH_OBJECT)
    handle, again = second.handle, second.open("one", gen=2, client="a")
    equal("INFO again gives the same handle", second.handle, handle)
    equal("and the same run of the server", again["server"], other.info["server"])
    lab.kill()
    serve(lab)
    third = Client(lab.nbs_port)
    info = third.open("one", gen=3, client="a")
    check("after a restart it is another one", info["server"] != other.info["server"])
    check("an orderly stop", lab.stop())


def into_file(path, at, data):
    with open(path, "r+b", buffering=0) as out:
        out.seek(at)
        out.write(data)


def pauses(lab):
    """PAUSE: writes through every door wait, reads do not, and none fails"""
    lab.make_pool()
    lab.do("lun", "create", "one", "--size", "64M")
    lab.do("lun", "set", "one", "access=shared")
    serve(lab, nbd=True, iscsi=True, mount=True)
    initiator = Iscsi(lab.iscsi_port, f"{IQN}one")
    initiator.clear_attention()
    c, other = Client(lab.nbs_port), Client(lab.nbs_port)
    c.open("one", client="a")
    other.open("one", client="b")
    disk = nbd_connect(lab.nbd_port, "one")
    ended = {}

    def writer(name, act):
        def body():
            try:
                act()
                ended[name] = time.monotonic()
            except Exception as error:
                ended[name] = error
        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        return thread

    got = c.body(w.PAUSE, '<nbsPauseRqst seconds="15"/>', seq=1).element()
    equal("a pause", got.get("seconds"), "15")
    threads = [writer("nbd", lambda: disk.pwrite(b"n" * 4096, 0)),
               writer("nbs", lambda: other.write(8192, b"b" * 8192)),
               writer("iscsi", lambda: initiator.write(65536, b"i" * 512)),
               writer("file", lambda: into_file(lab.data("one"), 131072, b"f" * 4096)),
               writer("zero", lambda: nbd_connect(lab.nbd_port, "one").zero(4096, 32768))]
    reader = Client(lab.nbs_port)
    reader.open("one", client="r")
    time.sleep(0.7)
    equal("writes of every door wait", ended, {})
    equal("reads do not", reader.read(0, 16384), bytes(16384))
    equal("another client's pause", status_of(lambda: reader.ask(w.PAUSE, seq=1)), w.FROZEN)
    equal("another client's resume", status_of(lambda: reader.ask(w.RESUME, seq=2)), w.INVALID)
    since = time.monotonic()
    c.ask(w.RESUME, seq=2)
    equal("a repeated resume", status_of(lambda: c.ask(w.RESUME, seq=2)), w.OK)
    for thread in threads:
        thread.join(10)
    check("then they end well", all(isinstance(t, float) and t - since < 5 for t in ended.values())
          and len(ended) == 5, ended)
    equal("also what came by iSCSI and by the mount", (reader.read(65536, 512),
          reader.read(131072, 4096)), (b"i" * 512, b"f" * 4096))
    equal("what waited is written", reader.read(0, 16384), b"n" * 4096 + bytes(4096) + b"b" * 8192)
    # The limit, and the end of the connection.
    ended.clear()
    c.body(w.PAUSE, '<nbsPauseRqst seconds="1"/>', seq=3)
    since = time.monotonic()
    thread = writer("limit", lambda: disk.pwrite(b"l" * 4096, 0))
    thread.join(10)
    took = ended["limit"] - since if isinstance(ended.get("limit"), float) else ended
    check("a pause ends after its time", isinstance(took, float) and 0.8 < took < 4, took)
    equal("and RESUME tells it", status_of(lambda: c.ask(w.RESUME, seq=4)), w.INVALID)
    ended.clear()
    c.ask(w.PAUSE, seq=5)
    thread = writer("lost", lambda: disk.pwrite(b"m" * 4096, 0))
    time.sleep(0.4)
    equal("paused again", ended, {})
    c.close()
    thread.join(10)
    check("a pause ends with its connection", isinstance(ended.get("lost"), float), ended)
    # A newer connection of the client takes the pause away with the old one.
    c = Client(lab.nbs_port)
    c.open("one", gen=7, client="a")
    c.ask(w.PAUSE, seq=6)
    newer = Client(lab.nbs_port)
    newer.open("one", gen=8, client="a")
    equal("a newer connection ends it too", status_of(lambda: newer.write(0, b"o" * 8192)), w.OK)
    log = [line["event"] for line in lab.ask("lun", "log", "one")]
    check("the log tells of pauses", log.count("pause") == 4 and log.count("resume") == 4, log)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def who_gets_in(lab):
    """Wrong secrets, addresses, objects and writes: the right status, logged, counted"""
    lab.make_pool()
    for name in ("one", "two", "three"):
        lab.do("lun", "create", name, "--size", "64M")
    serve(lab)
    equal("without initiators nobody has to prove anything",
          Client(lab.nbs_port, login=False).login(None), "None")
    [secret] = define(lab, A, "--allow", "one", "--allow", "two:ro", chap="alice")
    [far] = define(lab, B, "--allow", "one", "--address", "10.1.0.0/16", chap="bob")
    equal("the addresses are shown", lab.ask("initiator", "show", B)["addresses"], ["10.1.0.0/16"])
    port = lab.nbs_port
    for algorithm in ("7", "5", '"7,5"'):
        c = Client(port, ("alice", secret), algorithm)
        equal(f"CHAP with {algorithm} lists what is allowed",
              {n: f["rw"] for n, f in c.list().items()}, {"one": "1", "two": "0"})
    c.open("one")
    c.write(0, b"a" * 8192)
    equal("an object that is not allowed", status_of(lambda: c.open("three")), w.ACCESS_DENIED)
    equal("one that is not there", status_of(lambda: c.open("none")), w.NO_SUCH_OBJECT)
    reader = Client(port, ("alice", secret))
    equal("read-only is told", reader.open("two")["rw"], "0")
    equal("a write where only reading is allowed", status_of(
        lambda: reader.write(0, b"a" * 8192)), w.READ_ONLY)
    equal("a pause there", status_of(lambda: reader.ask(w.PAUSE, seq=1)), w.ACCESS_DENIED)
    equal("opaque data there", status_of(
        lambda: reader.ask(w.WRITE_OPAQUE, b"x", seq=2)), w.ACCESS_DENIED)
    equal("no proof at all", status_of(lambda: Client(port)), w.ACCESS_DENIED)
    since = time.monotonic()
    equal("a wrong secret", status_of(lambda: Client(port, ("alice", "x" * 20))), w.ACCESS_DENIED)
    check("is answered late", time.monotonic() - since >= 0.2)
    equal("a wrong user", status_of(lambda: Client(port, ("carol", secret))), w.ACCESS_DENIED)
    equal("a right one from a wrong address", status_of(
        lambda: Client(port, ("bob", far))), w.ACCESS_DENIED)
    first = Client(port, login=False)
    equal("anything before AUTH", status_of(lambda: first.ask(w.NOOP)), w.ACCESS_DENIED)
    check("ends the connection", first.closed())
    first = Client(port, login=False)
    equal("AUTH out of turn", status_of(lambda: first.body(
        w.AUTH, '<nbsAuthRRqst CHAP_N="alice" CHAP_R="00"/>')), w.INVALID)
    check("ends it too", first.closed())
    refused = lab.ask("status")["refused"]
    check("all are counted", refused["authentication"] >= 3 and refused["not_allowed"] >= 3
          and refused["no_such_lun"] >= 1 and refused["read_only"] >= 1, refused)
    text = "".join(str(line) for line in lab.ask("lun", "log", "three"))
    check("the LUN's log names who was refused", "refused" in text and A in text, text)
    # The export list: nobody is left who may come from here.
    lab.do("initiator", "set", A, "--address", "10.2.0.0/16")
    check("who may not come from here any more is sent away", c.closed() and reader.closed())
    equal("the export list is asked first", status_of(
        lambda: Client(port, ("alice", secret))), w.ACCESS_DENIED)
    check("and counted", lab.ask("status")["refused"]["address"] >= 1)
    lab.do("initiator", "set", A, "--address", "any", "--max-sessions", "1")
    c = Client(port, ("alice", secret))
    c.open("one")
    equal("more sessions than allowed", status_of(
        lambda: Client(port, ("alice", secret)).open("two")), w.BUSY)
    held, last = [], w.OK
    while last == w.OK and len(held) < 20:
        one = Client(port, ("alice", secret), login=False)
        last = status_of(lambda: one.login(("alice", secret)))
        held.append(one)
    check("connections without a session are bounded too", last == w.BUSY and 4 < len(held) < 10,
          (last, len(held)))
    check("what was there goes on", len(c.read(0, 8192)) == 8192)
    del held, one
    check("an orderly stop", lab.stop())
    off = lab.lunfs("serve", lab.pool, "--nbs", "0.0.0.0:0", "--dry-run")
    equal("off loopback with initiators it may listen", off.returncode, 0)
    lab.do("initiator", "remove", A)
    lab.do("initiator", "remove", B)
    lab.refused("off loopback without", "no initiator", "serve", lab.pool, "--nbs",
                f"0.0.0.0:{free_port()}")


def checksums(lab):
    """dataCrc: corrupted data is not written, and the stream goes on"""
    lab.make_pool()
    lab.do("lun", "create", "one", "--size", "64M")
    serve(lab)
    c = Client(lab.nbs_port, data_crc=True)
    check("it is agreed on", c.trailer)
    c.open("one")
    data = os.urandom(8192)
    c.write(0, data)
    check("data with checksums", c.read(0, 8192) == data)
    bad = bytearray(Packet(w.WRITE, b"q" * 8192, handle=c.handle, gen=c.gen, packet=9,
                           trailer=True).bytes())
    bad[500] ^= 1
    c.stream.sendall(bad)
    equal("corrupted data", c.receive().status, w.CRC_ERROR)
    check("is not written, and the next request works", c.read(0, 8192) == data)
    check("an orderly stop", lab.stop())


def snap_names(lab):
    server = f"127.0.0.1:{lab.nbs_port}"
    return [s["snapshot"] for s in lab.ask("nbs", "snap", "list", "one", "--server", server)]


def snapshots(lab):
    """SNAP: create, list, delete, refresh, restore; a repetition is answered, not done again"""
    lab.make_pool()
    lab.do("lun", "create", "one", "--size", "64M")
    serve(lab)

    def snap(c, sub, name="", seq=1, **fields):
        given = f' snapId="{name}"' if name else ""
        return c.body(w.SNAP, f'<nbsSnapRqst nbsId="one"{given}/>', sub=sub, seq=seq,
                      **fields).element()

    c = Client(lab.nbs_port)
    c.open("one", client="a")
    c.write(0, b"1" * 8192)
    made = snap(c, w.CREATE, "first", 1)
    equal("create", (made.tag, made.get("snapId")), ("nbsSnapRply", "first"))
    equal("the snapshot is there", snap_names(lab), ["first"])
    again = snap(c, w.CREATE, "first", 1)
    equal("the same number again: the same answer", again.attrib, made.attrib)
    equal("another number: it exists", status_of(lambda: snap(c, w.CREATE, "first", 2)), w.EXISTS)
    unnamed = snap(c, w.CREATE, "", 3)
    equal("without a name, twice", snap(c, w.CREATE, "", 3).attrib, unnamed.attrib)
    equal("makes one", len(snap_names(lab)), 2)
    listed = [(s.get("snapId"), s.get("time")) for s in snap(c, w.SNAPS, "", 4)]
    equal("list", listed, [("first", made.get("time")), (unnamed.get("snapId"),
                                                         unnamed.get("time"))])
    # The connection is dropped before the answer is read.
    c.send(w.SNAP, b'<nbsSnapRqst nbsId="one"/>', sub=w.CREATE, seq=5)
    c.close()
    c = Client(lab.nbs_port)
    c.open("one", gen=2, client="a")
    deadline, got = time.monotonic() + 10, w.BUSY
    while got == w.BUSY and time.monotonic() < deadline:
        got = status_of(lambda: snap(c, w.CREATE, "", 5))
    equal("sent again after a dropped connection", (got, len(snap_names(lab))), (w.OK, 3))
    # The server is killed between.
    before = snap(c, w.CREATE, "", 6)
    lab.kill()
    serve(lab)
    c = Client(lab.nbs_port)
    c.open("one", gen=3, client="a")
    equal("after a kill of the server: from memory", snap(c, w.CREATE, "", 6).attrib,
          before.attrib)
    equal("and nothing is made", len(snap_names(lab)), 4)
    other = Client(lab.nbs_port)
    other.open("one", client="b")
    check("another client's number is its own", snap(other, w.CREATE, "", 6).get("snapId")
          not in (None, before.get("snapId")))
    other.message("logout", seq=7)
    other.close()
    c.write(0, b"2" * 8192)
    refreshed = snap(c, w.REFRESH, "first", 7)
    check("refresh", refreshed.get("snapId") == "first"
          and refreshed.get("time") > made.get("time"))
    c.write(0, b"3" * 8192)
    restored = snap(c, w.RESTORE, "first", 8)
    equal("restore", (restored.get("snapId"), c.read(0, 8192)), ("first", b"2" * 8192))
    count = len(snap_names(lab))
    snap(c, w.RESTORE, "first", 8)
    equal("a repeated restore is not done again", len(snap_names(lab)), count)
    c.write(8192, b"4" * 8192)
    equal("the session goes on", c.read(8192, 8192), b"4" * 8192)
    snap(c, w.DELETE, "first", 9)
    equal("delete", ("first" in snap_names(lab), status_of(lambda: snap(c, w.DELETE, "first", 9)),
                     status_of(lambda: snap(c, w.DELETE, "first", 10))),
          (False, w.OK, w.NO_SUCH_OBJECT))
    equal("a name that cannot be", status_of(lambda: snap(c, w.CREATE, "a/b", 11)), w.INVALID)
    equal("an unknown sub-command", status_of(lambda: snap(c, 9, "x", 12)), w.INVALID)
    equal("of another object", status_of(lambda: c.body(
        w.SNAP, '<nbsSnapRqst nbsId="two" snapId="x"/>', sub=w.CREATE, seq=13)), w.INVALID)
    snap(c, w.CREATE, "quiet", 14)
    note = ' snapId="{}" hook="fsfreeze" outcome="{}"'
    c.message("snap-note", note.format("quiet", "at-rest"), seq=18)
    shown = lab.ask("snapshot", "show", "one@quiet")
    check("a client that was at rest says so", "fsfreeze" in str(shown), shown)
    equal("of no snapshot", status_of(lambda: c.message(
        "snap-note", note.format("none", "at-rest"), seq=19)), w.NO_SUCH_OBJECT)
    equal("an unknown outcome", status_of(lambda: c.message(
        "snap-note", note.format("quiet", "well"), seq=20)), w.INVALID)
    c.body(w.PAUSE, "<nbsPauseRqst/>", seq=15)
    equal("a snapshot while paused", status_of(lambda: snap(c, w.CREATE, "paused", 16)), w.OK)
    c.ask(w.RESUME, seq=17)
    server = ("--server", f"127.0.0.1:{lab.nbs_port}")
    equal("by the command line", lab.ask("nbs", "snap", "create", "one@cli", *server)["snapshot"],
          "cli")
    listed = [s["snapshot"] for s in lab.ask("nbs", "snap", "list", "one", *server)]
    check("which lists it", listed[-1] == "cli", listed)
    lab.do("nbs", "snap", "delete", "one@cli", *server)
    words = lab.path("words")
    hook = f"exec:{lab.path('hook')}"
    with open(lab.path("hook"), "w") as out:
        out.write(f"#!/bin/sh\necho $1 >> {words}\n")
    os.chmod(lab.path("hook"), 0o755)
    made = lab.ask("nbs", "snap", "create", "one@rest", *server, "--quiesce", hook)
    with open(words) as said:
        equal("a hook freezes, then thaws", said.read().split(), ["freeze", "thaw"])
    check("the snapshot is the application's", made.get("outcome") == "at-rest", made)
    shown = lab.ask("snapshot", "show", "one@rest")
    check("and says so", "exec" in str(shown), shown)
    count = len(snap_names(lab))
    with open(lab.path("hook"), "w") as out:
        out.write("#!/bin/sh\n[ $1 = thaw ]\n")
    lab.refused("a hook that refuses", "did not come to rest", "nbs", "snap", "create", "one@no",
                *server, "--quiesce", hook)
    equal("makes nothing", len(snap_names(lab)), count)
    lab.refused("one that is there", "exists", "nbs", "snap", "create", "one@quiet", *server)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def interrupted(lab):
    """Killed while snapshots are made: asked for again, each is there once"""
    lab.make_pool()
    lab.do("lun", "create", "one", "--size", "64M")
    for turn in range(4):
        serve(lab)
        c = Client(lab.nbs_port)
        c.open("one", gen=2 * turn + 1, client="a")
        asked = range(100 * turn, 100 * turn + 12)
        for seq in asked:
            c.send(w.SNAP, f'<nbsSnapRqst nbsId="one" snapId="s{seq}"/>'.encode(), sub=w.CREATE,
                   seq=seq)
        time.sleep(0.02 * turn)
        lab.kill()
        serve(lab)
        c = Client(lab.nbs_port)
        c.open("one", gen=2 * turn + 2, client="a")
        got = [status_of(lambda seq=seq: c.body(
            w.SNAP, f'<nbsSnapRqst nbsId="one" snapId="s{seq}"/>', sub=w.CREATE, seq=seq))
            for seq in asked]
        equal("every one is answered with OK", got, [w.OK] * len(asked))
        names = snap_names(lab)
        equal("and is there once", sorted(n for n in names if int(n[1:]) in asked),
              sorted(f"s{seq}" for seq in asked))
        c.close()
        check("an orderly stop", lab.stop())
    lab.verify_pool()


def snapshot_objects(lab):
    """NAME@SNAP: a read-only object, listed by nobody, that stays while it is open"""
    lab.make_pool()
    lab.do("lun", "create", "one", "--size", "64M")
    serve(lab)
    c = Client(lab.nbs_port)
    c.open("one", client="a")
    c.write(0, b"1" * 8192)
    c.ask(w.WRITE_OPAQUE, b"then", seq=1)
    lab.do("snapshot", "create", "one@s")
    c.write(0, b"2" * 8192)
    c.ask(w.WRITE_OPAQUE, b"now", seq=2)
    old = Client(lab.nbs_port)
    info = old.open("one@s", client="a")
    equal("INFO", (info["rw"], info["snapable"], info["NumBlks"]), ("0", "0", str(64 * 128)))
    equal("its data are those of then", old.read(0, 8192), b"1" * 8192)
    equal("its opaque data too", old.ask(w.READ_OPAQUE).data, b"then")
    equal("the same client's LUN goes on", c.read(0, 8192), b"2" * 8192)
    equal("a write", status_of(lambda: old.write(0, b"3" * 8192)), w.READ_ONLY)
    equal("opaque data", status_of(lambda: old.ask(w.WRITE_OPAQUE, b"x", seq=3)), w.READ_ONLY)
    equal("a pause", status_of(lambda: old.ask(w.PAUSE, seq=4)), w.READ_ONLY)
    equal("unmap", status_of(lambda: old.message("unmap", ' offset="0" length="8192"', seq=5)),
          w.READ_ONLY)
    for sub in (w.CREATE, w.DELETE, w.RESTORE, w.REFRESH, w.SNAPS):
        equal(f"SNAP {sub}", status_of(lambda: old.body(
            w.SNAP, '<nbsSnapRqst nbsId="one@s" snapId="s"/>', sub=sub, seq=10 + sub)),
            w.UNSUPPORTED)
    equal("no such snapshot", status_of(lambda: Client(lab.nbs_port).open("one@t")),
          w.NO_SUCH_OBJECT)
    newer = Client(lab.nbs_port)
    newer.open("one@s", gen=2, client="a")
    equal("a newer connection cuts it off", status_of(lambda: old.read(0, 8192)), w.STALE)
    lab.do("snapshot", "delete", "one@s")
    equal("deleted, it stays while it is open", newer.read(0, 8192), b"1" * 8192)
    equal("and is found no more", status_of(lambda: Client(lab.nbs_port).open("one@s")),
          w.NO_SUCH_OBJECT)
    equal("LIST names LUNs", sorted(c.list()), ["one"])
    server = ("--server", f"127.0.0.1:{lab.nbs_port}")
    lab.do("snapshot", "create", "one@t")
    lab.do("nbs", "read", "one@t", lab.path("r"), "--length", "8K", *server)
    with open(lab.path("r"), "rb") as got:
        equal("by the command line", got.read(), b"2" * 8192)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def restore_alone(lab):
    """RESTORE is refused while another program of the same client has the object open"""
    lab.make_pool()
    lab.do("lun", "create", "one", "--size", "64M")
    serve(lab)
    mounted, manager = Client(lab.nbs_port), Client(lab.nbs_port)
    mounted.open("one", client="mounted")
    manager.open("one", client="manager")
    mounted.write(0, b"1" * 8192)
    lab.do("snapshot", "create", "one@s")
    mounted.write(0, b"2" * 8192)
    body = '<nbsSnapRqst nbsId="one" snapId="s"/>'
    equal("restore beside it", status_of(lambda: manager.body(w.SNAP, body, sub=w.RESTORE, seq=1)),
          w.BUSY)
    equal("nothing changed", mounted.read(0, 8192), b"2" * 8192)
    mounted.message("logout", seq=1)
    mounted.close()
    time.sleep(0.3)
    equal("alone", status_of(lambda: manager.body(w.SNAP, body, sub=w.RESTORE, seq=2)), w.OK)
    equal("it is restored", manager.read(0, 8192), b"1" * 8192)


def oddities(lab):
    """Requests that make little sense: each is answered, and the connection goes on"""
    lab.make_pool()
    lab.do("lun", "create", "one", "--size", "64M")
    serve(lab)
    c = Client(lab.nbs_port)
    c.open("one", client="a")
    equal("a READ that carries data", status_of(
        lambda: c.ask(w.READ, b"x" * 512, data_len=512)), w.INVALID)
    equal("a READ_OPAQUE that does", status_of(lambda: c.ask(w.READ_OPAQUE, b"x")), w.INVALID)
    for gen in range(2, 202):
        c.open("one", gen=gen, client="a")
    equal("opened two hundred times on one connection", c.read(0, 8192), bytes(8192))
    # The same INFO twice at once, and writes that wait under it.
    holder, racer = Client(lab.nbs_port), Client(lab.nbs_port)
    holder.open("one", client="holder")
    request = Packet(w.INFO, b'<nbsInfoRqst nbsId="one" client="b"/>', sub=w.OPEN, gen=1)
    for turn in range(20):
        racer = Client(lab.nbs_port)
        request.gen, count = turn + 1, 6
        racer.stream.sendall(b"".join(
            Packet(w.INFO, request.data, sub=w.OPEN, gen=turn + 1, packet=n).bytes()
            for n in range(count)))
        holder.ask(w.PAUSE, seq=2 * turn)
        got = [racer.receive() for _ in range(count)]
        statuses = {p.status for p in got}
        handles = {p.handle for p in got if p.status == w.OK}
        if not (statuses <= {w.OK, w.BUSY} and len(handles) == 1):
            check("one INFO of many opens, the others are answered", False, (statuses, handles))
        racer.handle, racer.gen, racer.block = handles.pop(), turn + 1, 8192
        racer.send(w.WRITE, b"w" * 8192, offset=0)
        racer.stream.sendall(request.bytes())
        racer.stream.settimeout(10)
        time.sleep(0.02)
        holder.ask(w.RESUME, seq=2 * turn + 1)
        racer.receive(), racer.receive()
        racer.write(0, b"v" * 8192)
        racer.close()
    check("one INFO of many opens, the others are answered", True)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def fair(lab):
    """Paused writes on one object keep neither other clients nor other objects waiting"""
    lab.make_pool()
    for name in ("one", "two"):
        lab.do("lun", "create", name, "--size", "64M")
    serve(lab, nbd=True)
    setup = Client(lab.nbs_port)
    setup.open("two", client="setup")
    setup.write(0, os.urandom(MIB))
    holder = Client(lab.nbs_port)
    holder.open("one", client="holder")
    holder.body(w.PAUSE, '<nbsPauseRqst seconds="20"/>', seq=1)
    crowd = []
    for number in range(8):
        c = Client(lab.nbs_port)
        c.open("one", client=f"w{number}")
        request = Packet(w.WRITE, b"w" * 8192, handle=c.handle, gen=c.gen, offset=number)
        c.stream.sendall(request.bytes() * 64)
        crowd.append(c)
    disks = []
    for number in range(20):
        disk = nbd_connect(lab.nbd_port, "one")
        for at in range(32):
            disk.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(4096)), MIB + at * 4096)
        disks.append(disk)
    time.sleep(0.5)
    since = time.monotonic()
    after = Client(lab.nbs_port)
    after.open("two", client="after")
    after.message("flush", seq=1)
    after.write(0, b"t" * 8192)
    took = time.monotonic() - since
    check("another object of NBS is served at once", took < 5, took)
    since = time.monotonic()
    equal("a snapshot while they wait", status_of(lambda: holder.body(
        w.SNAP, '<nbsSnapRqst nbsId="one" snapId="s"/>', sub=w.CREATE, seq=3)), w.OK)
    took = time.monotonic() - since
    check("is made at once", took < 5, took)
    since = time.monotonic()
    other = nbd_connect(lab.nbd_port, "two")
    other.pwrite(b"n" * 4096, 0)
    other.flush()
    took = time.monotonic() - since
    check("another export of NBD too", took < 5, took)
    holder.ask(w.RESUME, seq=2)
    for c in crowd:
        statuses = {c.receive().status for _ in range(64)}
        if statuses != {w.OK}:
            check("every write that waited is done", False, statuses)
    for disk in disks:
        while disk.aio_in_flight():
            disk.poll(1000)
        disk.shutdown()
    check("every write that waited is done", True)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def one_clients_memory(lab):
    """Connections of one client whose writes wait share its memory; others have theirs"""
    lab.make_pool()
    for name in ("one", "two"):
        lab.do("lun", "create", name, "--size", "64M")
    lab.nbs_port = free_port()
    [secret] = define(lab, A, "--allow", "one", "--max-memory", "16M", chap="alice")
    [other] = define(lab, B, "--allow", "one", "--allow", "two", chap="bob")
    serve(lab)
    good = Client(lab.nbs_port, auth=("bob", other))
    good.open("two", client="good")
    holder = Client(lab.nbs_port, auth=("bob", other))
    holder.open("one", client="holder")
    holder.body(w.PAUSE, '<nbsPauseRqst seconds="20"/>', seq=1)
    base = lab.vm_hwm_bytes()
    waiting, count = [], 24
    for number in range(count):
        c = Client(lab.nbs_port, auth=("alice", secret))
        c.open("one", client=f"s{number}")
        request = Packet(w.WRITE, b"w" * MIB, handle=c.handle, gen=c.gen, offset=128 * number)
        c.stream.settimeout(0.1)
        try:
            c.stream.sendall(request.bytes() * 16)
        except TimeoutError:
            pass
        waiting.append(c)
    equal("a good client is served", status_of(lambda: good.write(0, b"h" * 8192)), w.OK)
    grown = lab.vm_hwm_bytes() - base
    check("what waits is bounded", grown < count * 5 * MIB, f"{grown >> 20} MiB more")
    holder.ask(w.RESUME, seq=2)
    for c in waiting:
        c.close()


def hostile(lab):
    """Slow readers, half-open logins, floods, absurd lengths: only who sends them suffers"""
    lab.make_pool()
    lab.do("lun", "create", "one", "--size", "64M")
    serve(lab)
    port = lab.nbs_port
    good = Client(port)
    good.open("one", client="good")
    good.write(0, b"g" * MIB)
    base = lab.vm_hwm_bytes()
    for text, packet, answered in (
        ("a PduLen below a header", Packet(w.NOOP, pdu_len=127), True),
        ("a PduLen of 4 GiB", Packet(w.WRITE, pdu_len=0xFFFFFFFF, data_len=0xFFFFFF00), True),
        ("a PduLen of 1 MiB + 1", Packet(w.WRITE, pdu_len=128 + MIB + 1), True),
        ("another magic", Packet(w.NOOP, magic=b"NBS\0\0\0\0\2\0\0\0\0"), True),
        ("a wrong CRC", Packet(w.NOOP, crc=1), False),
    ):
        c = Client(port)
        c.stream.sendall(packet.bytes())
        if answered:
            equal(text, c.receive().status, w.INVALID)
        check(f"{text}: the connection ends", c.closed())
    c = Client(port, login=False)
    c.stream.sendall(Packet(w.AUTH, pdu_len=128 + (64 << 10) + 1).bytes())
    equal("a long body before authentication", c.receive().status, w.INVALID)
    c = Client(port)
    for text in ("", "<", "<a", "<!DOCTYPE x><nbsInfoRqst/>", "<nbsInfoRqst/>", "<x" + " a='1'" * 99
                 + "/>", "<a>" * 5000, '<nbsInfoRqst nbsId="&lol;"/>', "\0\xff"):
        equal(f"a body that makes no sense: {text[:20]!r}", status_of(
            lambda: c.body(w.INFO, text, sub=w.OPEN)), w.INVALID)
    equal("a DataLen that is not what is carried", status_of(
        lambda: c.ask(w.INFO, b"<nbsLstRqst/>", sub=w.LIST, data_len=1 << 31)), w.INVALID)
    slow = Client(port)
    slow.open("one", client="slow")
    request = Packet(w.READ, handle=slow.handle, gen=slow.gen, data_len=MIB).bytes()
    slow.stream.settimeout(2)
    try:
        slow.stream.sendall(request * 400000)
        check("a client that never reads is not read from", False)
    except TimeoutError:
        check("a client that never reads is not read from", True)
    halves = []
    for _ in range(40):
        h = Client(port)
        h.stream.sendall(Packet(w.WRITE, pdu_len=128 + MIB, data_len=MIB).bytes() + b"x" * 1000)
        halves.append(h)
    silent = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(60)]
    check("half-open logins", len(silent) == 60)
    good.write(8192, b"h" * 8192)
    equal("a good client is served meanwhile", good.read(8192, 8192), b"h" * 8192)
    grown = lab.vm_hwm_bytes() - base
    check("memory stays bounded", grown < 120 * MIB, f"{grown >> 20} MiB more")
    for s in silent:
        s.close()
    flood = []
    for _ in range(800):
        try:
            flood.append(socket.create_connection(("127.0.0.1", port), 5))
        except OSError:
            break
    time.sleep(0.5)
    equal("a good client survives a flood of connections", status_of(
        lambda: good.write(0, b"i" * 8192)), w.OK)
    check("the flood is counted", lab.ask("status")["refused"]["flood"] > 100)
    for s in flood:
        s.close()
    time.sleep(0.5)
    after = Client(port)
    equal("and new clients come in afterwards", after.open("one", client="after")["rw"], "1")
    del halves
    check("an orderly stop", lab.stop())
    lab.verify_pool()


if __name__ == "__main__":
    run([operations, generations, pauses, who_gets_in, checksums, snapshots, snapshot_objects,
         restore_alone, interrupted, oddities, fair, one_clients_memory, hostile])
