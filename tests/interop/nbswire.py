"""NBS written from its page alone (src/nbs/README.md): packets, authentication, a client that
sends whatever a test wants, and a server in memory for clients under test. Nothing of lunfs is used
here."""

import hashlib
import re
import secrets
import socket
import struct
import threading
import xml.etree.ElementTree as xml

HEADER = 128
FORMAT = ">6I16s3I12s2I52sI"
MAGIC = bytes.fromhex("4e425300 00000001 00000000")
READ, WRITE, INFO, NOOP, PAUSE, RESUME, SNAP = 0, 1, 3, 4, 5, 6, 7
READ_OPAQUE, WRITE_OPAQUE, AUTH, MSG = 8, 9, 10, 11
REPLY = {READ: 0x40, WRITE: 0x41, INFO: 0x43, NOOP: 0x44}
LIST, OPEN = 1, 2
CREATE, DELETE, RESTORE, REFRESH, SNAPS = 1, 2, 3, 4, 5
(OK, INVALID, NO_MEMORY, BUSY, FROZEN, CRC_ERROR, NO_SUCH_OBJECT, ACCESS_DENIED, READ_ONLY,
 OUT_OF_RANGE, IO_ERROR, NO_SPACE, STALE, UNSUPPORTED, EXISTS) = range(15)
NONE = bytes(16)


def table():
    made = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        made.append(n)
    return made


TABLE = table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C


class Packet:
    """A packet: fields by name."""

    def __init__(self, op, data=b"", **fields):
        self.op, self.data = op, data
        self.packet = self.status = self.seq = self.gen = self.sub = self.offset = 0
        self.handle, self.magic, self.trailer = NONE, MAGIC, False
        self.data_len = self.pdu_len = self.crc = None
        self.reserved, self.padding = (0, 0), bytes(52)
        self.__dict__.update(fields)

    def bytes(self):
        data = self.data
        if self.trailer and data:
            data += struct.pack(">I", crc32c(self.data))
        data_len = len(self.data) if self.data_len is None else self.data_len
        pdu_len = HEADER + len(data) if self.pdu_len is None else self.pdu_len
        head = struct.pack(FORMAT, self.op, pdu_len, self.packet, self.status, self.seq, self.gen,
                           self.handle, *self.reserved, data_len, self.magic, self.sub, self.offset,
                           self.padding, 0)[:-4]
        crc = crc32c(head) if self.crc is None else self.crc
        return head + struct.pack(">I", crc) + data

    @classmethod
    def head(cls, raw):
        (op, pdu_len, packet, status, seq, gen, handle, r1, r2, data_len, magic, sub, offset,
         padding, crc) = struct.unpack(FORMAT, raw)
        if crc != crc32c(raw[:-4]):
            raise ValueError("a header with a wrong CRC")
        return cls(op, packet=packet, status=status, seq=seq, gen=gen, handle=handle, magic=magic,
                   sub=sub, offset=offset, data_len=data_len, pdu_len=pdu_len,
                   reserved=(r1, r2), padding=padding, crc=crc)

    def element(self):
        return xml.fromstring(self.data.decode())


def take(stream, count):
    data = bytearray()
    while len(data) < count:
        more = stream.recv(min(count - len(data), 1 << 20))
        if not more:
            raise ConnectionError(f"closed after {len(data)} of {count} bytes")
        data += more
    return bytes(data)


def receive(stream, trailer=False):
    """One packet, with everything the page promises of any packet checked."""
    raw = take(stream, HEADER)
    got = Packet.head(raw)
    assert got.magic == MAGIC and got.reserved == (0, 0) and got.padding == bytes(52), raw
    got.data = take(stream, got.pdu_len - HEADER)
    if trailer and got.data:
        body, crc = got.data[:-4], struct.unpack(">I", got.data[-4:])[0]
        assert crc == crc32c(body), "data with a wrong checksum"
        got.data, got.trailer = body, True
    got.raw = raw
    return got


class Refused(Exception):
    def __init__(self, status, data=b""):
        super().__init__(f"status {status}")
        self.status, self.data = status, data


class Client:
    """A connection; `auth` is None, or (user, secret)."""

    def __init__(self, port, auth=None, algorithm="7", data_crc=False, login=True, seconds=30,
                 host="127.0.0.1"):
        self.stream = socket.create_connection((host, port), seconds)
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number, self.trailer = secrets.randbelow(1 << 31), False
        self.handle, self.gen = NONE, 0
        if login:
            self.login(auth, algorithm, data_crc)

    def send(self, op, data=b"", **fields):
        self.number = (self.number + 1) % (1 << 32)
        base = dict(packet=self.number, handle=self.handle, gen=self.gen, trailer=self.trailer)
        base.update(fields)
        packet = Packet(op, data, **base)
        self.stream.sendall(packet.bytes())
        return packet

    def receive(self):
        return receive(self.stream, self.trailer)

    def ask(self, op, data=b"", **fields):
        """One request and its reply, whose echoes are checked; a status raises Refused."""
        sent = self.send(op, data, **fields)
        got = self.receive()
        assert got.op == REPLY.get(op, op), (op, got.op)
        assert (got.packet, got.seq, got.gen, got.sub, got.offset) == (
            sent.packet, sent.seq, sent.gen, sent.sub, 0), got.__dict__
        assert got.data_len == len(got.data), got.__dict__
        if got.status:
            raise Refused(got.status, got.data)
        return got

    def body(self, op, text, **fields):
        return self.ask(op, text.encode(), **fields)

    def login(self, auth, algorithm="7", data_crc=False):
        names = "".join(f'<nbsAuthMethod name="{name}" />' for name in
                        (["CHAP", "None"] if auth else ["None"]))
        crc = ' dataCrc="1"' if data_crc else ""
        got = self.body(AUTH, f"<nbsAuthMethodRqst{crc}>{names}</nbsAuthMethodRqst>").element()
        assert got.tag == "nbsAuthMethodRply"
        if got.get("name") == "CHAP":
            self.prove(auth, algorithm)
        self.trailer = got.get("dataCrc") == "1"
        return got.get("name")

    def prove(self, auth, algorithm):
        got = self.body(AUTH, f"<nbsAuthARqst CHAP_A={algorithm} />").element()
        assert got.tag == "nbsAuthARply"
        digest = {"5": hashlib.md5, "7": hashlib.sha256}[got.get("CHAP_A")]
        number, challenge = int(got.get("CHAP_I"), 16), bytes.fromhex(got.get("CHAP_C"))
        user, secret = auth
        answer = digest(bytes([number]) + secret.encode() + challenge).hexdigest()
        got = self.body(AUTH, f'<nbsAuthRRqst CHAP_N="{user}" CHAP_R="{answer}" />').element()
        assert got.tag == "nbsAuthRRply" and not got.attrib

    def list(self):
        got = self.body(INFO, "<nbsLstRqst/>", sub=LIST, handle=NONE).element()
        assert got.tag == "nbsLstRply"
        return {item.get("name"): item.attrib for item in got}

    def open(self, name, gen=1, client=None):
        more = f' client="{client}"' if client is not None else ""
        got = self.body(INFO, f'<nbsInfoRqst nbsId="{name}"{more}/>', sub=OPEN, gen=gen,
                        handle=NONE)
        assert got.element().tag == "nbsInfoRply" and got.handle != NONE
        self.handle, self.gen = got.handle, gen
        self.info = got.element().attrib
        self.block = int(self.info["BlkSize"])
        return self.info

    def read(self, offset, length, **fields):
        got = self.ask(READ, offset=offset // self.block, data_len=length, **fields)
        assert len(got.data) == length
        return got.data

    def write(self, offset, data, **fields):
        self.ask(WRITE, data, offset=offset // self.block, **fields)

    def message(self, name, text="", **fields):
        return self.body(MSG, f'<nbsMsg name="{name}"{text}/>', **fields).element()

    def closed(self, seconds=15):
        """Whether the server ends the connection, whatever it still says."""
        self.stream.settimeout(seconds)
        try:
            while self.stream.recv(1 << 16):
                pass
            return True
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def close(self):
        self.stream.close()


def status_of(act):
    """The status that an act ends with; 0 when it works, None where the connection ends."""
    try:
        act()
    except Refused as refused:
        return refused.status
    except ConnectionError:
        return None
    return OK


class Fake:
    """A server in memory, one object named `disk`, that misbehaves as a test tells it: `behave`
    is called with each request and may return "drop", "silent", a status, or None."""

    def __init__(self, size=8 << 20, block=512, auth=None, behave=None, tws="0"):
        self.data, self.block, self.auth, self.tws = bytearray(size), block, auth, tws
        self.behave = behave or (lambda fake, got: None)
        self.seen, self.done, self.lock = [], [], threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.instance = secrets.token_hex(4)
        self.streams = set()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                stream, _ = self.listener.accept()
            except OSError:
                return
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.streams.add(stream)
            threading.Thread(target=self.serve, args=(stream,), daemon=True).start()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)  # a close alone would not end the accept
        self.listener.close()
        for stream in list(self.streams):
            self.cut(stream)

    def cut(self, stream):
        self.streams.discard(stream)
        try:
            stream.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        stream.close()

    def serve(self, stream):
        state = {}
        try:
            while True:
                got = receive(stream)
                with self.lock:
                    self.seen.append(got)
                    told = self.behave(self, got)
                if told == "drop":
                    return self.cut(stream)
                if told == "silent":
                    continue
                status, handle, data = (told, got.handle, b"") if told else self.obey(got, state)
                reply = Packet(REPLY.get(got.op, got.op), data, packet=got.packet, seq=got.seq,
                               gen=got.gen, sub=got.sub, handle=handle, status=status)
                stream.sendall(reply.bytes())
                if status == ACCESS_DENIED:
                    return self.cut(stream)
        except (ConnectionError, OSError):
            self.cut(stream)

    def obey(self, got, state):
        if got.op == AUTH:
            return self.authenticate(got.element(), state)
        assert state.get("in"), "a request before authentication"
        handle = got.handle
        if got.op == NOOP:
            return OK, handle, b""
        if got.op == INFO:
            return self.info(got)
        assert handle == b"h" * 12 + struct.pack(">I", got.gen), "a handle of another connection"
        at = got.offset * self.block
        if got.op == READ:
            assert got.pdu_len == HEADER and not got.data
            return OK, handle, bytes(self.data[at:at + got.data_len])
        assert got.data_len == len(got.data)
        if got.op == WRITE:
            with self.lock:
                self.data[at:at + len(got.data)] = got.data
            return OK, handle, b""
        if got.op == SNAP:
            key = (got.seq, got.sub, got.data)
            if key not in [k for k, _ in self.done]:
                name = got.element().get("snapId") or "t"
                reply = f'<nbsSnapRply snapId="{name}" time="2026-01-01T00:00:00Z"/>'
                self.done.append((key, reply))
            return OK, handle, dict(self.done)[key].encode()
        if got.op == MSG:
            element = got.element()
            if element.get("name") == "unmap":
                start, length = int(element.get("offset")), int(element.get("length"))
                self.data[start:start + length] = bytes(length)
            return OK, handle, f'<nbsMsgRply name="{element.get("name")}"/>'.encode()
        return UNSUPPORTED, handle, b""

    def info(self, got):
        blocks = len(self.data) // self.block
        facts = f'rw=1 share=0 snapable=1 dr=0 tws={self.tws}'
        if got.sub == LIST:
            item = f'<nbs name="disk" blkSize={self.block} numBlks={blocks} {facts} />'
            return OK, NONE, f"<nbsLstRply>\n{item}\n</nbsLstRply>".encode()
        if got.element().get("nbsId") != "disk":
            return NO_SUCH_OBJECT, NONE, b""
        handle = b"h" * 12 + struct.pack(">I", got.gen)
        reply = (f'<nbsInfoRply BlkSize={self.block} NumBlks={blocks} xferSize=65536 {facts} '
                 f'server="{self.instance}" />')
        return OK, handle, reply.encode()

    def authenticate(self, element, state):
        def answer(text):
            return OK, NONE, text.encode()

        if element.tag == "nbsAuthMethodRqst":
            names = [item.get("name") for item in element]
            want = "CHAP" if self.auth else "None"
            if want not in names:
                return ACCESS_DENIED, NONE, b""
            state["in"] = not self.auth
            return answer(f'<nbsAuthMethodRply name="{want}" />')
        if element.tag == "nbsAuthARqst":
            offered = re.split(",", element.get("CHAP_A"))
            state["a"] = "7" if "7" in offered else "5"
            state["i"], state["c"] = secrets.randbelow(256), secrets.token_bytes(24)
            return answer(f'<nbsAuthARply CHAP_A={state["a"]} CHAP_I={state["i"]:x} '
                          f'CHAP_C="{state["c"].hex()}" />')
        user, secret = self.auth
        digest = {"5": hashlib.md5, "7": hashlib.sha256}[state["a"]]
        right = digest(bytes([state["i"]]) + secret.encode() + state["c"]).hexdigest()
        if (element.get("CHAP_N"), element.get("CHAP_R").lower()) != (user, right):
            return ACCESS_DENIED, NONE, b""
        state["in"] = True
        return answer("<nbsAuthRRply/>")
