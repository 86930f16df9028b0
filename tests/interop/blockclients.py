"""Block clients that this project did not write, driven from Python: libiscsi (through ctypes) and
libnbd (through its own binding). Any CDB can be sent, and status and sense come back.

Sources: SPC-5 and SBC-4 for the CDBs; libiscsi's scsi-lowlevel.h for the two structures.
"""

import ctypes as c
import struct

import nbd

GOOD, CHECK_CONDITION, RESERVATION_CONFLICT = 0x00, 0x02, 0x18
NOT_READY, MEDIUM_ERROR, ILLEGAL_REQUEST, UNIT_ATTENTION, DATA_PROTECT = 2, 3, 5, 6, 7
CAPACITY_DATA_HAS_CHANGED = 0x2A09
SPACE_ALLOCATION_FAILED = 0x2707
XFER_NONE, XFER_READ, XFER_WRITE = 0, 1, 2
SESSION_NORMAL = 2
TIMEOUT_S = 60


class Sense(c.Structure):
    _fields_ = [("error_type", c.c_ubyte), ("key", c.c_int), ("ascq", c.c_int)]


class Data(c.Structure):
    _fields_ = [("size", c.c_int), ("data", c.POINTER(c.c_ubyte))]


class TaskHead(c.Structure):
    """The head of struct scsi_task."""
    _fields_ = [("status", c.c_int), ("cdb_size", c.c_int), ("xfer_dir", c.c_int),
                ("expxferlen", c.c_int), ("cdb", c.c_ubyte * 16), ("residual_status", c.c_int),
                ("residual", c.c_size_t), ("sense", Sense)]


class WriteData(c.Structure):
    _fields_ = [("size", c.c_size_t), ("data", c.c_char_p)]


# struct scsi_sense begins at 48 and is 16 bytes: three words, then bit fields, a byte and a 16-bit
# field in the fourth. struct scsi_data follows it.
DATAIN_OFFSET = 64

lib = c.CDLL("libiscsi.so.7")
lib.iscsi_create_context.restype = c.c_void_p
lib.iscsi_get_error.restype = c.c_char_p
lib.scsi_create_task.restype = c.c_void_p
lib.iscsi_scsi_command_sync.restype = c.c_void_p


class ScsiError(Exception):
    """A command that did not end with GOOD; `key` and `ascq` are the sense, `raw` its bytes."""

    def __init__(self, status, key, ascq, text, raw=b""):
        sense = f"{key:x}/{ascq >> 8:02x}/{ascq & 255:02x}"
        super().__init__(f"status {status:#x}, sense {sense}: {text}")
        self.status, self.key, self.ascq, self.raw = status, key, ascq, raw


class Iscsi:
    """One session of libiscsi to LUN 0 of a target. It never reconnects by itself."""

    def __init__(self, port, target, initiator="iqn.2026-11.local.test:a", block_bytes=512):
        self.block_bytes = block_bytes
        self.context = c.c_void_p(lib.iscsi_create_context(initiator.encode()))
        lib.iscsi_set_targetname(self.context, target.encode())
        lib.iscsi_set_session_type(self.context, SESSION_NORMAL)
        lib.iscsi_set_timeout(self.context, TIMEOUT_S)
        lib.iscsi_set_noautoreconnect(self.context, 1)
        portal = f"127.0.0.1:{port}".encode()
        if lib.iscsi_full_connect_sync(self.context, portal, 0) != 0:
            raise ConnectionError(f"login to {target}: {self.error()}")

    def error(self):
        return lib.iscsi_get_error(self.context).decode(errors="replace")

    def cdb(self, cdb, read_bytes=0, data=None):
        """Sends one command; gives what it read, or raises ScsiError or ConnectionError."""
        direction = XFER_WRITE if data is not None else XFER_READ if read_bytes else XFER_NONE
        length = len(data) if data is not None else read_bytes
        raw = (c.c_ubyte * 16)(*cdb)
        task = c.c_void_p(lib.scsi_create_task(len(cdb), raw, direction, length))
        out = WriteData(len(data), data) if data is not None else None
        sent = lib.iscsi_scsi_command_sync(self.context, 0, task, c.byref(out) if out else None)
        if not sent:
            raise ConnectionError(self.error())
        try:
            return self._answer(task.value)
        finally:
            lib.scsi_free_scsi_task(task)

    def _answer(self, address):
        head = TaskHead.from_address(address)
        got = Data.from_address(address + DATAIN_OFFSET)
        data = c.string_at(got.data, got.size) if got.size > 0 else b""
        if head.status == GOOD:
            return data
        if head.status not in (CHECK_CONDITION, RESERVATION_CONFLICT, 0x08, 0x28):
            raise ConnectionError(f"status {head.status:#x}: {self.error()}")
        # sense data comes behind its length
        raise ScsiError(head.status, head.sense.key, head.sense.ascq, self.error(), data[2:])

    def test_unit_ready(self):
        self.cdb(bytes(6))

    def clear_attention(self, most=8):
        """Takes what unit attentions wait; gives their codes."""
        seen = []
        for _ in range(most):
            try:
                self.test_unit_ready()
                return seen
            except ScsiError as e:
                if e.key != UNIT_ATTENTION:
                    raise
                seen.append(e.ascq)
        return seen

    def capacity_bytes(self):
        data = self.cdb(struct.pack(">BBQIBB", 0x9E, 0x10, 0, 32, 0, 0), 32)
        last, size = struct.unpack(">QI", data[:12])
        return (last + 1) * size

    def read(self, offset, length):
        lba, count = offset // self.block_bytes, length // self.block_bytes
        return self.cdb(struct.pack(">BBQIBB", 0x88, 0, lba, count, 0, 0), length)

    def write(self, offset, data, fua=False):
        lba, count = offset // self.block_bytes, len(data) // self.block_bytes
        self.cdb(struct.pack(">BBQIBB", 0x8A, 8 if fua else 0, lba, count, 0, 0), data=data)

    def flush(self):
        self.cdb(struct.pack(">BBQIBB", 0x91, 0, 0, 0, 0, 0))

    def unmap(self, *ranges):
        """UNMAP of (first LBA, blocks) descriptors."""
        body = b"".join(struct.pack(">QII", lba, count, 0) for lba, count in ranges)
        data = struct.pack(">HHI", len(body) + 6, len(body), 0) + body
        self.cdb(struct.pack(">BBIBHB", 0x42, 0, 0, 0, len(data), 0), data=data)

    def unmap_limits(self):
        """(most LBAs, most descriptors) of one UNMAP, from VPD page B0h."""
        page = self.cdb(struct.pack(">BBBHB", 0x12, 1, 0xB0, 64, 0), 64)
        return struct.unpack(">II", page[20:28])

    def close(self, logout=True):
        if self.context:
            if logout:
                lib.iscsi_logout_sync(self.context)
            lib.iscsi_disconnect(self.context)
            lib.iscsi_destroy_context(self.context)
            self.context = None


def nbd_connect(port, export):
    """A libnbd handle on an export over TCP."""
    handle = nbd.NBD()
    handle.connect_uri(f"nbd://127.0.0.1:{port}/{export}")
    return handle
