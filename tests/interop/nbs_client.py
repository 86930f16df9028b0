"""The NBS client: its bytes against a server written from the protocol's page alone, and `attach`
under nbdcopy, fio and qemu-img, with servers that die and addresses that fail over."""

import json
import os
import signal
import socket
import subprocess
import threading
import time

import nbd

import nbswire as w
from harness import (LUNFS, MIB, Need, check, define, die_with_parent, equal, free_port, need,
                     require, run, secret_file, tool)
from nbswire import Fake

require("nbdcopy", "nbdinfo", "fio", "qemu-img", "cmp")


class Attached:
    """`lunfs nbs attach` of an object, stopped at the end."""

    def __init__(self, lab, servers, name, *more):
        self.socket = lab.path(f"attach-{len(os.listdir(lab.dir))}.sock")
        self.uri = f"nbd+unix:///{name}?socket={self.socket}"
        args = [LUNFS, "nbs", "attach", f"{servers}/{name}", "--nbd", f"unix:{self.socket}", *more]
        self.process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        env=lab.env, preexec_fn=die_with_parent, text=True)
        lines = []
        for line in self.process.stdout:
            lines.append(line.strip())
            if line.strip() == "ready":
                break
        need(f"attach of {name} is ready", lines and lines[-1] == "ready", lines)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = "killed"
        return check("attach ends in order", code == 0, f"{code}: {self.process.stdout.read()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def serve(lab, **more):
    lab.nbs_port = getattr(lab, "nbs_port", None) or free_port()
    lab.serve(extra=("--nbs", f"127.0.0.1:{lab.nbs_port}"), **more)


def pattern(path, size, holes=True):
    with open(path, "wb") as out:
        for at in range(0, size, MIB):
            if holes and at // MIB % 4 == 3:
                out.seek(MIB, os.SEEK_CUR)
            else:
                out.write(os.urandom(MIB))
        out.truncate(size)


def bytes_of_the_client(lab):
    """What the client sends is what the page says, and it understands what the page allows"""
    secret, text = secret_file(lab, "secret")
    fake = Fake(auth=("alice", text))
    server = ("--server", f"127.0.0.1:{fake.port}", "--user", "alice", "--secret-file", secret)
    got = lab.ask("nbs", "list", *server)
    equal("list", [(o["name"], o["size_bytes"], o["block_size_bytes"], o["writable"]) for o in got],
          [("disk", 8 * MIB, 512, True)])
    equal("its packets", [(p.op, p.sub) for p in fake.seen],
          [(w.AUTH, 0)] * 3 + [(w.INFO, w.LIST)])
    tags = [p.element().tag for p in fake.seen]
    equal("its bodies", tags, ["nbsAuthMethodRqst", "nbsAuthARqst", "nbsAuthRRqst", "nbsLstRqst"])
    for p in fake.seen:
        again = w.Packet(p.op, p.data, packet=p.packet, seq=p.seq, gen=p.gen, sub=p.sub,
                         handle=p.handle, offset=p.offset).bytes()
        check(f"byte for byte: {p.element().tag}", again[:128] == p.raw, p.raw)
    equal("info", lab.ask("nbs", "info", "disk", *server)["size_bytes"], 8 * MIB)
    source, back = lab.path("source"), lab.path("back")
    pattern(source, 3 * MIB)
    fake.seen.clear()
    lab.do("nbs", "write", "disk", source, "--offset", "1M", *server)
    with open(source, "rb") as f:
        check("write", bytes(fake.data[MIB:4 * MIB]) == f.read())
    writes = [p for p in fake.seen if p.op == w.WRITE]
    check("no packet is longer than xferSize", max(len(p.data) for p in writes) == 65536)
    flushes = [p.element().get("name") for p in fake.seen if p.op == w.MSG]
    check("it flushes, and leaves in order", flushes == ["flush", "logout"], flushes)
    check("PktSeq rises, ConnGen stays", len({p.seq for p in writes}) == len(writes)
          and {p.gen for p in writes} == {1})
    lab.do("nbs", "read", "disk", back, "--offset", "1M", "--length", "3M", *server)
    tool("cmp", source, back)
    lab.refused("a file that is there", "exists", "nbs", "read", "disk", back, *server)
    lab.refused("beyond the end", "ends at", "nbs", "read", "disk", "--offset", "9M", *server)
    lab.refused("an unknown object", "no such object", "nbs", "info", "none", *server)
    wrong, _ = secret_file(lab, "wrong")
    lab.refused("a wrong secret", "denied", "nbs", "list", "--server", f"127.0.0.1:{fake.port}",
                "--user", "alice", "--secret-file", wrong)
    lab.refused("no secret", "denied", "nbs", "list", "--server", f"127.0.0.1:{fake.port}")
    lab.refused("nobody there", "no server answered", "nbs", "list", "--server",
                f"127.0.0.1:{free_port()}", "--patience", "1")
    fake.close()


def misbehaving_servers(lab):
    """Dropped connections, lost replies, corrupted requests, busy answers: nothing is done twice"""
    def once(op, what):
        """Does `what` with the first request of this operation."""
        left = [what]
        return lambda fake, got: left.pop() if left and got.op == op else None

    for text, behave in (
        ("dropped before it was done", once(w.SNAP, "drop")),
        ("corrupted", once(w.SNAP, w.CRC_ERROR)),
        ("busy", once(w.SNAP, w.BUSY)),
        ("stale", once(w.SNAP, w.STALE)),
        ("dropped at INFO", once(w.INFO, "drop")),
        ("dropped at AUTH", once(w.AUTH, "drop")),
    ):
        fake = Fake(behave=behave)
        server = ("--server", f"127.0.0.1:{fake.port}")
        made = lab.ask("nbs", "snap", "create", "disk@s", *server)
        equal(f"a snapshot, {text}", made["snapshot"], "s")
        equal("  made once", len(fake.done), 1)
        seqs = {p.seq for p in fake.seen if p.op == w.SNAP}
        equal("  asked for under one PktSeq", len(seqs), 1)
        fake.close()

    # Done, but the answer was lost: the same number on a newer connection.
    class Loser(Fake):
        def obey(self, got, state):
            reply = super().obey(got, state)
            if got.op == w.SNAP and not getattr(self, "lost", False):
                self.lost = True
                raise ConnectionError
            return reply

    fake = Loser()
    lab.do("nbs", "snap", "create", "disk@s", "--server", f"127.0.0.1:{fake.port}")
    snaps = [p for p in fake.seen if p.op == w.SNAP]
    equal("a lost answer: asked twice, done once", (len(snaps), len(fake.done)), (2, 1))
    check("with a higher ConnGen", snaps[1].gen > snaps[0].gen and snaps[1].seq == snaps[0].seq)
    fake.close()

    # The first address fails, the second serves.
    fake = Fake()
    since = time.monotonic()
    two = f"127.0.0.1:{free_port()},127.0.0.1:{fake.port}"
    equal("the second address", lab.ask("nbs", "list", "--server", two)[0]["name"], "disk")
    check("is found soon", time.monotonic() - since < 5)
    fake.close()

    # A server that says nothing any more.
    mute = Fake(behave=lambda fake, got: "silent" if got.op in (w.READ, w.NOOP) else None)
    fake = Fake()
    two = f"127.0.0.1:{mute.port},127.0.0.1:{fake.port}"
    since = time.monotonic()
    lab.do("nbs", "read", "disk", lab.path("r"), "--length", "64K",
           "--server", two, "--patience", "90")
    check("a mute server is left for the next address", 5 < time.monotonic() - since < 60)
    mute.close()
    fake.close()

    # Junk instead of packets.
    for junk in (b"", b"\0" * 4096, os.urandom(4096), b"HTTP/1.1 400 Bad\r\n\r\n" * 50,
                 w.Packet(w.AUTH, pdu_len=1 << 31, packet=1).bytes(),
                 w.Packet(w.AUTH, b"<a>" * 1000, packet=1).bytes()):
        listener = socket.create_server(("127.0.0.1", 0))
        stop = threading.Event()

        def answer(junk=junk, listener=listener):
            while not stop.is_set():
                try:
                    stream, _ = listener.accept()
                    stream.sendall(junk)
                    stream.recv(4096)
                    stream.close()
                except OSError:
                    return

        threading.Thread(target=answer, daemon=True).start()
        lab.refused(f"junk {junk[:8]!r}", "server", "nbs", "list", "--server",
                    f"127.0.0.1:{listener.getsockname()[1]}", "--patience", "2")
        stop.set()
        listener.close()


def replay(lab):
    """What was answered but not durable is written again to another run of the server"""
    first, second = Fake(), Fake()
    with Attached(lab, f"127.0.0.1:{first.port},127.0.0.1:{second.port}", "disk") as a:
        h = nbd.NBD()
        h.connect_uri(a.uri)
        h.pwrite(b"a" * 4096, 0)
        h.flush()
        h.pwrite(b"b" * 4096, 4096)
        h.pwrite(b"c" * 1024, 4096 + 512)
        h.zero(4096, 65536)
        second.data[0:4096] = first.data[0:4096]
        first.close()
        equal("the next request finds the second server", bytes(h.pread(4096, 0)), b"a" * 4096)
        want = b"b" * 512 + b"c" * 1024 + b"b" * 2560
        equal("which has what was not flushed", bytes(second.data[4096:8192]), want)
        kinds = [p.op for p in second.seen if p.op in (w.WRITE, w.READ, w.MSG)]
        equal("written before anything else", kinds[:4], [w.WRITE, w.WRITE, w.MSG, w.READ])
        h.flush()
        h.shutdown()
    second.close()


def another_block_size(lab):
    """A server whose object has other blocks than before gets nothing that was made for the old"""
    first, second = Fake(), Fake(block=8192)
    third = Fake()
    servers = ",".join(f"127.0.0.1:{fake.port}" for fake in (first, second, third))
    with Attached(lab, servers, "disk") as a:
        h = nbd.NBD()
        h.connect_uri(a.uri)
        h.pwrite(b"a" * 4096, 3 * 512)
        first.close()
        h.pwrite(b"b" * 4096, 5 * 512)
        writes = [p for p in second.seen if p.op == w.WRITE]
        equal("nothing was written to blocks of another size", (writes, any(second.data)),
              ([], False))
        equal("the next address has it", bytes(third.data[3 * 512:6 * 512 - 512]),
              b"a" * 1024)
        h.shutdown()
    second.close()
    third.close()


def attach_tools(lab):
    """nbdcopy, nbdinfo, qemu-img and fio verify over attach, CHAP between"""
    lab.make_pool()
    for name, keys in (("one", ()), ("two", ("nbs-block-size=4096",)),
                       ("three", ("write-through=true", "nbs-block-size=512"))):
        lab.do("lun", "create", name, "--size", "64M", *keys)
    user = "iqn.2026-11.local.test:host"
    lab.nbs_port = free_port()
    [_] = define(lab, user, "--allow", "one", "--allow", "two", "--allow", "three", chap="host")
    serve(lab)
    server = f"127.0.0.1:{lab.nbs_port}"
    login = ("--user", "host", "--secret-file", lab.path("chap.secret"))
    names = [o["name"] for o in lab.ask("nbs", "list", "--server", server, *login)]
    equal("list over CHAP", sorted(names), ["one", "three", "two"])
    source, back = lab.path("source"), lab.path("back")
    pattern(source, 64 * MIB)
    with Attached(lab, server, "one", *login) as one, Attached(lab, server, "two", *login) as two, \
            Attached(lab, server, "three", *login) as three:
        info = json.loads(tool("nbdinfo", "--json", one.uri).stdout)["exports"][0]
        equal("nbdinfo's size", info["export-size"], 64 * MIB)
        tool("nbdcopy", "--flush", source, one.uri)
        tool("nbdcopy", "--connections=4", "--requests=32", one.uri, two.uri)
        tool("nbdcopy", two.uri, back)
        tool("cmp", source, back)
        tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, three.uri)
        tool("qemu-img", "compare", "-f", "raw", "-F", "raw", source, three.uri)
        tool("qemu-img", "bench", "-f", "raw", "-c", "200", "-d", "16", "-w", two.uri)
        for at in (one, two, three):
            tool("fio", "--name=v", "--ioengine=nbd", f"--uri={at.uri}", "--rw=randwrite",
                 "--bs=512-64k", "--bs_unaligned=0", "--size=16M", "--iodepth=16", "--fsync=64",
                 "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", cwd=lab.dir)
        sessions = {s["client"] for s in lab.ask("session", "list") if s["door"] == "nbs"}
        equal("sessions are the initiator's", sessions, {user})
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def killed_under_load(lab):
    """kill -9 and restart under fio verify; a second address takes over: nothing lost or doubled"""
    lab.make_pool()
    lab.do("lun", "create", "vol", "--size", "64M", "nbs-block-size=4096")
    second = free_port()
    lab.nbs_port = free_port()
    both = ("--nbs", f"127.0.0.1:{lab.nbs_port}", "--nbs", f"127.0.0.1:{second}")
    lab.serve(extra=both)
    servers = f"127.0.0.1:{lab.nbs_port},127.0.0.1:{second}"
    with Attached(lab, servers, "vol") as a:
        fio = subprocess.Popen(
            ["fio", "--name=v", "--ioengine=nbd", f"--uri={a.uri}", "--rw=randwrite", "--bs=4k-32k",
             "--size=48M", "--iodepth=8", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
             "--rate=4M", "--loops=1"], cwd=lab.dir, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
        for turn in range(3):
            time.sleep(1.5)
            if fio.poll() is not None:
                raise Need("fio was over too soon")
            lab.kill()
            # Now the first address alone, now the second alone.
            port = second if turn % 2 == 0 else lab.nbs_port
            lab.serve(extra=("--nbs", f"127.0.0.1:{port}"))
        out = fio.communicate(timeout=240)[0].decode(errors="replace")
        check("fio finds all it wrote, through three kills", fio.returncode == 0, out[-1500:])
        back, again = lab.path("back"), lab.path("again")
        tool("nbdcopy", a.uri, back)
    lab.stop()
    lab.do("lun", "export", "vol", again)
    tool("cmp", back, again)
    lab.verify_pool()


if __name__ == "__main__":
    run([bytes_of_the_client, misbehaving_servers, replay, another_block_size, attach_tools,
         killed_under_load])
