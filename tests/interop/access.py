"""Who gets in: initiators and their rights, CHAP with libiscsi and QEMU, refusals and their codes,
changes that act on sessions, and clients that guess, flood and wait."""

import hashlib
import os
import re
import secrets
import socket
import struct
import time

import nbd

from blockclients import DATA_PROTECT, SPACE_ALLOCATION_FAILED, Iscsi, ScsiError
from harness import (IQN, KIB, MIB, check, define, equal, require, run, secret_file, tool)

require("iscsi-ls", "iscsi-inq", "iscsi-test-cu")

A, B, C = (f"iqn.2026-11.local.test:{x}" for x in "abc")
SUITE = "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test"
AUTHENTICATION, FORBIDDEN, NOT_FOUND, NO_RESOURCES = 0x0201, 0x0202, 0x0203, 0x0302
MODE_PARAMETERS_CHANGED = 0x2A01
WRITE_PROTECTED = 0x2700


class Refused(Exception):
    """A login that ended with another status than 0."""

    def __init__(self, status):
        super().__init__(f"login status {status:#06x}")
        self.status = status


class Login:
    """The login phase of RFC 7143, step by step, with whatever keys a test wants to send."""

    def __init__(self, port, name, target=None):
        self.stream = socket.create_connection(("127.0.0.1", port), 20)
        self.names = [("InitiatorName", name)]
        self.names += [("TargetName", IQN + target)] if target else [("SessionType", "Discovery")]
        self.first = True
        self.sn = 1

    def step(self, keys, flags=0x81):
        pairs = (self.names if self.first else []) + list(keys)
        self.first = False
        data = b"".join(f"{k}={v}".encode() + b"\0" for k, v in pairs)
        head = struct.pack(">BBBB I 6sH I HH II", 0x43, flags, 0, 0, len(data),
                           b"\x80\0\0\0\0\1", 0, 1, 0, 0, self.sn, 0) + bytes(16)
        self.stream.sendall(head + data + bytes(-len(data) % 4))
        head = self.take(48)
        length = int.from_bytes(head[5:8], "big")
        body = self.take(length + (-length % 4))[:length]
        status = int.from_bytes(head[36:38], "big")
        if status:
            raise Refused(status)
        return dict(p.split("=", 1) for p in body.decode().split("\0") if p)

    def take(self, count):
        data = b""
        while len(data) < count:
            more = self.stream.recv(count - len(data))
            if not more:
                raise ConnectionError("the target closed the connection")
            data += more
        return data

    def challenge(self, algorithm="5"):
        """Up to the target's challenge: (identifier, bytes)."""
        equal("CHAP is chosen", self.step([("AuthMethod", "CHAP,None")])["AuthMethod"], "CHAP")
        got = self.step([("CHAP_A", algorithm)])
        return int(got["CHAP_I"]), bytes.fromhex(got["CHAP_C"][2:])

    def chap(self, user, secret, algorithm="5", more=()):
        number, challenge = self.challenge(algorithm)
        digest = hashlib.md5 if algorithm == "5" else hashlib.sha256
        answer = digest(bytes([number]) + secret.encode() + challenge).hexdigest()
        return self.step([("CHAP_N", user), ("CHAP_R", "0x" + answer), *more])

    def finish(self):
        return self.step([], 0x87)

    def close(self):
        self.stream.close()


def status_of(act):
    """The login status that an act ends with; 0 when it works."""
    try:
        act()
    except Refused as refused:
        return refused.status
    return 0


def refused(lab, kind):
    return lab.ask("status")["refused"][kind]


def command_line(lab):
    """add, set, remove, list, show: with a server and without; secrets never come out"""
    lab.make_pool()
    for lun in ("one", "two"):
        lab.do("lun", "create", lun, "--size", "64M")
    path, secret = secret_file(lab, "s")
    chap = ("--chap-user", "alice", "--chap-secret-file", path)
    for served in (False, True):
        if served:
            lab.serve(iscsi=True, mount=True)
        said = lab.ask("initiator", "add", A.upper(), *chap, "--allow", "one", "--allow", "two:ro",
                       "--quota", "one=1M", "--dry-run")
        check("a dry run says what it would do", said.get("dry_run"), said)
        equal("and does nothing", lab.ask("initiator", "list"), [])
        made = lab.ask("initiator", "add", A.upper(), *chap, "--allow", "one", "--allow", "two:ro",
                       "--quota", "one=1M", "--max-sessions", "3")
        equal("its name is in lower case", made["name"], A)
        luns = {right["lun"]: (right["access"], right["quota_bytes"]) for right in made["luns"]}
        equal("its rights", luns, {"one": ("rw", MIB), "two": ("ro", 0)})
        equal("its limit", made["max_sessions"], 3)
        equal("how it proves itself", (made["authentication"], made["chap_user"]),
              ("chap", "alice"))
        lab.refused("a second one of its name", "defined already", "initiator", "add", A)
        changed = lab.ask("initiator", "set", A, "--deny", "two", "--allow", "one:ro")
        equal("changed rights", [(r["lun"], r["access"]) for r in changed["luns"]], [("one", "ro")])
        users = lab.ask("lun", "show", "one")["users"]
        equal("attributes name the user", users, [f"{A} ro quota={MIB}"])
        everything = "".join(lab.do(*words) for words in (
            ["initiator", "list"], ["initiator", "show", A], ["initiator", "list", "--json"],
            *([["status", "--json"], ["lun", "log", "one"]] if served else [])))
        check("no answer holds the secret", secret not in everything)
        if served:
            with open(f"/proc/{lab.server.pid}/cmdline") as words:
                check("nor do the server's words", secret not in words.read())
            with open(lab.log_path) as log:
                check("nor does its log", secret not in log.read())
            shown = os.listdir(lab.mount)
            check("the mount does not show where they are kept",
                  sorted(n for n in shown if not n.startswith("lost")) == ["one", "two"], shown)
            equal("nor can it be named", os.path.exists(lab.mount + "/.lunfs"), False)
        gone = lab.ask("initiator", "remove", A)
        equal("the last one leaves the door open to this host", gone["open_to_this_host"], True)
        lab.refused("one that is not there", "no initiator", "initiator", "show", A)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def mistakes(lab):
    """secrets that others read, or are too short; names and limits that cannot be"""
    lab.make_pool()
    lab.do("lun", "create", "one", "--size", "64M")
    path, _ = secret_file(lab, "s")
    user = ("--chap-user", "alice", "--chap-secret-file")
    for mode in (0o640, 0o604, 0o660):
        os.chmod(path, mode)
        lab.refused(f"mode {mode:o}", r"others can read.*chmod 600", "initiator", "add", A, *user,
                    path)
    for text in ("elevenbytes", "x" * 256):
        short, _ = secret_file(lab, "t", text)
        lab.refused(f"{len(text)} bytes", "96 bits", "initiator", "add", A, *user, short)
    os.chmod(path, 0o600)
    lab.refused("the same secret both ways", "are the same", "initiator", "add", A, *user, path,
                "--mutual-user", "t", "--mutual-secret-file", path)
    lab.refused("mutual alone", "proves itself only", "initiator", "add", A, "--mutual-user", "t",
                "--mutual-secret-file", path)
    lab.refused("no iSCSI name", "not the name of an initiator", "initiator", "add", "host")
    lab.refused("no such LUN", "no LUN", "initiator", "add", A, "--allow", "none")
    lab.refused("a limit of nothing", "max-commands", "initiator", "add", A, "--max-commands", "0")
    lab.refused("a quota without a right", "may not use", "initiator", "add", A,
                "--quota", "one=1M")
    lab.refused("a user without a secret", "secret-file", "initiator", "add", A, "--chap-user", "u",
                code=2)
    lab.refused("a right that is none", "NAME:ro", "initiator", "add", A, "--allow", "one:x",
                code=2)
    equal("none of it was done", lab.ask("initiator", "list"), [])
    lab.refused("other hosts without initiators", "no initiator is defined", "serve", lab.pool,
                "--iscsi", "0.0.0.0:0")
    lab.refused("NBD for other hosts", "no name", "serve", lab.pool, "--nbd", "0.0.0.0:0")


def rights(lab):
    """nobody is asked before the first initiator; then each sees and does what it may"""
    lab.make_pool()
    for lun in ("one", "two", "three"):
        lab.do("lun", "create", lun, "--size", "64M")
    lab.serve(iscsi=True, nbd=True, mount=True)
    before = Iscsi(lab.iscsi_port, IQN + "one", C)
    before.clear_attention()
    early = nbd.NBD()
    early.connect_uri(lab.nbd_url("one"))
    define(lab, A, "--allow", "one", "--allow", "two:ro")
    check("the first initiator ends the sessions of others", eventually(lambda: gone(before)))
    check("NBD clients have no name", eventually(lambda: nbd_gone(early)))
    late = nbd.NBD()
    try:
        late.connect_uri(lab.nbd_url("one"))
        check("an NBD client is refused", False)
    except nbd.Error as e:
        check("an NBD client is refused", "policy" in str(e).lower() or "initiators" in str(e), e)
    define(lab, B, "--allow", "three")
    for name, sees in ((A, ["one", "two"]), (B, ["three"])):
        text = tool("iscsi-ls", "-i", name, f"iscsi://127.0.0.1:{lab.iscsi_port}").text
        equal(f"discovery shows {name} what it may use",
              sorted(re.findall(rf"{re.escape(IQN)}(\w+)", text)), sees)
    for text, name, target, code in (
            ("an unlisted initiator", C, "one", FORBIDDEN),
            ("a LUN that is not allowed", A, "three", FORBIDDEN),
            ("a LUN that is not there", A, "four", NOT_FOUND),
            ("an unlisted initiator's discovery", C, None, FORBIDDEN)):
        login = Login(lab.iscsi_port, name, target)
        equal(text, status_of(lambda: login.step([], 0x87)), code)
        login.close()
    check("they are counted", refused(lab, "unlisted") >= 2 and refused(lab, "not_allowed") == 1
          and refused(lab, "no_such_lun") == 1, lab.ask("status")["refused"])
    define(lab, C, "--allow", "one", "--address", "10.1.0.0/16")
    for target in ("one", None):
        login = Login(lab.iscsi_port, C, target)
        equal("an address that is not allowed", status_of(lambda: login.step([], 0x87)), FORBIDDEN)
        login.close()
    check("is counted too", eventually(lambda: refused(lab, "address") == 2))
    lab.do("initiator", "remove", C)
    log = lab.do("lun", "log", "three", "--json")
    check("the log of the LUN has the refusal", A in log and "refused" in log, log)
    one, two = Iscsi(lab.iscsi_port, IQN + "one", A), Iscsi(lab.iscsi_port, IQN + "two", A)
    one.clear_attention()
    two.clear_attention()
    one.write(0, b"x" * 4096)
    equal("a name is the same in upper case",
          status_of(lambda: Login(lab.iscsi_port, A.upper(), "one").step([], 0x87)), 0)
    protected = [disk.cdb(b"\x1a\0\x3f\0\xff\0", 255)[2] >> 7 for disk in (one, two)]
    equal("the write-protect bit of one that may write, and of one that may not", protected, [0, 1])
    denied(two, WRITE_PROTECTED, "a write by one that may only read")
    equal("it is counted", refused(lab, "read_only"), 1)
    check("and logged", "may only read" in lab.do("lun", "log", "two"))
    with open(lab.data("two"), "r+b") as file:
        file.write(b"file")
    check("the mount goes by the rights of files", True)
    # a changed right acts on the session that stands
    lab.do("initiator", "set", A, "--allow", "one:ro", "--allow", "two")
    attentions(one, "one", [MODE_PARAMETERS_CHANGED])
    denied(one, WRITE_PROTECTED, "a write after the right to write was taken")
    attentions(two, "two", [MODE_PARAMETERS_CHANGED, 0x2800])
    two.write(0, b"y" * 4096)
    check("a write after the right to write was given", True)
    lab.do("initiator", "set", A, "--deny", "two")
    check("a right that is taken ends the session", eventually(lambda: gone(two)))
    equal("and the next login", status_of(lambda: Login(lab.iscsi_port, A, "two").step([], 0x87)),
          FORBIDDEN)
    lab.do("lun", "set", "one", "read-only=true")
    lab.do("initiator", "set", A, "--allow", "one")
    one.clear_attention()
    denied(one, WRITE_PROTECTED, "a write to a LUN that is read-only")
    lab.do("initiator", "remove", A)
    check("an initiator that is removed is thrown out", eventually(lambda: gone(one)))
    lab.do("initiator", "remove", B)
    last = Iscsi(lab.iscsi_port, IQN + "two", C)
    check("with the last one gone this host comes in again", last.clear_attention() is not None)
    last.close()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def attentions(session, name, may_be):
    seen = session.clear_attention()
    check(f"{name} is told", seen and all(code in may_be for code in seen)
          and MODE_PARAMETERS_CHANGED in seen, [hex(code) for code in seen])


def denied(session, ascq, text):
    try:
        session.write(0, b"z" * 4096)
        check(text, False, "it was written")
    except ScsiError as e:
        equal(text, (e.key, e.ascq), (DATA_PROTECT, ascq))


def gone(session):
    try:
        session.test_unit_ready()
        return False
    except ScsiError:
        return False
    except ConnectionError:
        return True


def nbd_gone(client):
    try:
        client.pread(512, 0)
        return False
    except nbd.Error:
        return True


def eventually(holds, seconds=10):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


def chap(lab):
    """CHAP one-way and mutual, step by step: what is right gets in, nothing else does"""
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "64M")
    (secret,) = define(lab, A, "--allow", "disk", chap="0xabcd")
    mine, theirs = define(lab, B, "--allow", "disk", chap="bob", mutual="target")
    lab.serve(iscsi=True)
    for algorithm in ("5", "7"):
        for target in ("disk", None):
            login = Login(lab.iscsi_port, A, target)
            login.chap("0xabcd", secret, algorithm)
            equal(f"algorithm {algorithm}, {target or 'discovery'}", status_of(login.finish), 0)
            login.close()
    challenge = secrets.token_bytes(24)
    login = Login(lab.iscsi_port, B, "disk")
    got = login.chap("bob", mine, "7", [("CHAP_I", 77), ("CHAP_C", "0x" + challenge.hex())])
    proof = hashlib.sha256(bytes([77]) + theirs.encode() + challenge).hexdigest()
    equal("the target proves itself", (got["CHAP_N"], got["CHAP_R"]), ("target", "0x" + proof))
    equal("mutual", status_of(login.finish), 0)
    login.close()

    def reflected():
        login = Login(lab.iscsi_port, B, "disk")
        number, sent = login.challenge()
        answer = hashlib.md5(bytes([number]) + mine.encode() + sent).hexdigest()
        login.step([("CHAP_N", "bob"), ("CHAP_R", "0x" + answer), ("CHAP_I", number),
                    ("CHAP_C", "0x" + sent.hex())])

    def renamed():
        login = Login(lab.iscsi_port, B, "disk")
        login.chap("bob", mine)
        login.step([("InitiatorName", A)], 0x87)

    def skipped():
        Login(lab.iscsi_port, A, "disk").step([], 0x87)

    for text, code, act in (
            ("a challenge that comes back", AUTHENTICATION, reflected),
            ("a proved name that is changed", 0x0200, renamed),
            ("no proof at all", AUTHENTICATION, skipped),
            ("AuthMethod=None alone", AUTHENTICATION,
             lambda: Login(lab.iscsi_port, A, "disk").step([("AuthMethod", "None")])),
            ("no algorithm in common", AUTHENTICATION,
             lambda: Login(lab.iscsi_port, A, "disk").challenge("6,8")),
            ("the other one's secret", AUTHENTICATION,
             lambda: Login(lab.iscsi_port, A, "disk").chap("0xabcd", mine)),
            ("the other one's user", AUTHENTICATION,
             lambda: Login(lab.iscsi_port, A, "disk").chap("bob", secret))):
        equal(text, status_of(act), code)
    equal("each is counted", refused(lab, "authentication"), 6)
    check("and in the LUN's log", "did not prove" in lab.do("lun", "log", "disk"))
    # a new secret ends the session that the old one opened
    login = Login(lab.iscsi_port, A, "disk")
    login.chap("0xabcd", secret)
    login.finish()
    equal("one session", len(lab.ask("session", "list")), 1)
    define(lab, A, chap="0xabcd", verb="set")
    check("a new secret ends it", eventually(lambda: lab.ask("session", "list") == []))
    equal("the old secret is worth nothing now",
          status_of(lambda: Login(lab.iscsi_port, A, "disk").chap("0xabcd", secret)),
          AUTHENTICATION)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def tools(lab):
    """libiscsi's tools and QEMU: with the right secret and with a wrong one"""
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "64M")
    lab.serve(iscsi=True)
    for user in ("alice", "0xabcd", "0bYWJj"):
        (secret,) = define(lab, SUITE, "--allow", "disk", chap=user)
        url = f"iscsi://{user}%{secret}@127.0.0.1:{lab.iscsi_port}/{IQN}disk/0"
        done = tool("iscsi-test-cu", "--dataloss", "-t", "ALL.TestUnitReady", url, good=False)
        asserts = re.search(r"asserts\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)", done.text)
        good = asserts and asserts.group(4) == "0" and int(asserts.group(3))
        check(f"a test of libiscsi's suite as {user}", good, done.text)
        # wrong ones are answered late: once is enough
        wrong = [(user, secret[::-1]), ("eve", secret)] if user == "alice" else []
        for name, said in ((user, secret), *wrong):
            url = f"iscsi://{name}%{said}@127.0.0.1:{lab.iscsi_port}/{IQN}disk/0"
            right = (name, said) == (user, secret)
            got = tool("iscsi-inq", "-i", SUITE, url, good=False)
            word = "right" if right else "wrong"
            equal(f"iscsi-inq as {name}, {word}", got.returncode == 0, right)
            got = tool("iscsi-ls", "-s", "-i", SUITE, url.split("/iqn")[0], good=False)
            equal("discovery likewise", f"{IQN}disk" in got.text, right)
        lab.do("initiator", "remove", SUITE)
    folder = os.path.dirname(os.path.abspath(__file__))
    qemu = tool(os.path.join(folder, "get-qemu-iscsi.sh"), seconds=600).stdout.decode().strip()
    (secret,) = define(lab, A, "--allow", "disk", chap="vm")
    path, _ = secret_file(lab, "qemu.secret", secret)
    with open(path, "w") as out:
        out.write(secret)  # QEMU takes the line's end for a part of it
    for good in (True, False):
        if not good:
            with open(path, "w") as out:
                out.write(secret[::-1])
        args = ["--object", f"secret,id=s,file={path}", "--image-opts",
                f"driver=iscsi,transport=tcp,portal=127.0.0.1:{lab.iscsi_port},target={IQN}disk,"
                f"lun=0,user=vm,password-secret=s,initiator-name={A}"]
        done = tool(os.path.join(qemu, "qemu-img"), "info", *args, good=False)
        equal(f"QEMU with a {'right' if good else 'wrong'} secret", done.returncode == 0, good)
    check("an orderly stop", lab.stop())


def quota(lab):
    """a client's quota: SPACE ALLOCATION FAILED beyond it, other clients are not meant"""
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "64M")
    define(lab, A, "--allow", "disk", "--quota", "disk=1M")
    define(lab, B, "--allow", "disk")
    lab.serve(iscsi=True)
    a, b = Iscsi(lab.iscsi_port, IQN + "disk", A), Iscsi(lab.iscsi_port, IQN + "disk", B)
    a.clear_attention()
    b.clear_attention()
    a.write(0, b"a" * (MIB - 64 * KIB))
    try:
        a.write(8 * MIB, b"a" * (128 * KIB))
        check("beyond the quota", False, "it was written")
    except ScsiError as e:
        equal("beyond the quota", (e.key, e.ascq), (DATA_PROTECT, SPACE_ALLOCATION_FAILED))
    a.write(0, b"A" * (128 * KIB))
    check("what has its blocks may be overwritten", True)
    b.write(8 * MIB, b"b" * (128 * KIB))
    check("the other client has no quota", True)
    equal("it is counted", refused(lab, "quota"), 1)
    lab.do("initiator", "set", A, "--quota", "disk=0")
    a.write(16 * MIB, b"a" * (128 * KIB))
    check("a quota that is ended binds no more", True)
    a.close()
    b.close()
    check("an orderly stop", lab.stop())


def sessions(lab):
    """session list, show and drop: who, what, how much, how fast; limits on sessions"""
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "64M")
    define(lab, A, "--allow", "disk", "--max-sessions", "2")
    lab.serve(iscsi=True)
    a = Iscsi(lab.iscsi_port, IQN + "disk", A)
    a.clear_attention()
    for turn in range(64):
        a.write(turn * 64 * KIB, bytes([turn]) * 64 * KIB)
        a.read(turn * 64 * KIB, 64 * KIB)
    a.flush()
    (seen,) = lab.ask("session", "list")
    equal("who and what", (seen["client"], seen["lun"], seen["door"]), (A, "disk", "iscsi"))
    check("from where, since when", seen["peer"].startswith("127.0.0.1:") and seen["since"], seen)
    equal("bytes", (seen["written_bytes"], seen["read_bytes"]), (4 * MIB, 4 * MIB))
    check("latency", 0 < seen["latency_mean_us"] < 1e6 and 0 < seen["latency_p99_us"] < 1e7, seen)
    check("operations a second", eventually(lambda: lab.ask("session", "list")[0]["iops"] == 0)
          and seen["iops"] > 0, seen)
    equal("nothing is outstanding", seen["outstanding"], 0)
    b = Login(lab.iscsi_port, A, "disk")
    equal("a session replaces none of another port", status_of(lambda: b.step([], 0x87)), 0)
    try:
        Iscsi(lab.iscsi_port, IQN + "disk", A)
        check("a third session is one too many", False)
    except ConnectionError:
        check("a third session is one too many", refused(lab, "limit") >= 1)
    b.close()
    check("its place is free again", eventually(lambda: len(lab.ask("session", "list")) == 1))
    lab.ask("session", "drop", str(seen["id"]))
    check("a dropped session is gone", eventually(lambda: gone(a)))
    check("an orderly stop", lab.stop())


def hostile(lab):
    """guessing is slowed down, floods and half-open logins are bounded; others go on meanwhile"""
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "64M")
    (secret,) = define(lab, A, "--allow", "disk", chap="alice")
    lab.serve(iscsi=True)
    good = Login(lab.iscsi_port, A, "disk")
    good.chap("alice", secret)
    good.finish()
    began = time.monotonic()
    for _ in range(3):
        bad = Login(lab.iscsi_port, A, "disk")
        equal("a wrong secret", status_of(lambda: bad.chap("alice", "x" * 16)), AUTHENTICATION)
    spent = time.monotonic() - began
    check(f"three of them take their time ({spent:.1f} s)", spent > 1.5)
    began = time.monotonic()
    right = Login(lab.iscsi_port, A, None)
    right.chap("alice", secret)
    equal("the right one does not", status_of(right.finish), 0)
    check("at once", time.monotonic() - began < 1)
    flood = [socket.create_connection(("127.0.0.1", lab.iscsi_port)) for _ in range(100)]
    check("a flood is bounded", eventually(lambda: refused(lab, "flood") >= 30),
          lab.ask("status")["refused"])
    good.stream.sendall(struct.pack(">BBHI8sIIII", 0x40, 0x80, 0, 0, bytes(8), 7, 0xFFFFFFFF, 1, 0)
                        + bytes(16))
    equal("a session goes on beside it", good.take(48)[0], 0x20)
    for stream in flood:
        stream.close()

    def again():
        login = Login(lab.iscsi_port, A, "disk")
        login.chap("alice", secret)
        return login.finish()

    def comes_in():
        try:
            return again() is not None
        except (Refused, ConnectionError, OSError):
            return False

    check("afterwards everybody comes in again", eventually(comes_in))
    for junk in (b"\xff" * 4096, b"\x43\x87" + b"\xff" * 46, b"GET / HTTP/1.0\r\n\r\n", bytes(48)):
        with socket.create_connection(("127.0.0.1", lab.iscsi_port)) as stream:
            stream.sendall(junk)
    check("and after junk", eventually(comes_in))
    check("an orderly stop", lab.stop())


run([command_line, mistakes, rights, chap, tools, quota, sessions, hostile])
