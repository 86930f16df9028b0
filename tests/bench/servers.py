"""The servers that are measured side by side, each over an equal backing file, and what the machine
says of their processes.

A server is a name in SERVERS: `url` for lunbench, `cmd` that stays in the foreground, `setup`
commands that follow, `conf` files. In all of them {port} is a free TCP port, {ctl} a small number,
{img} the backing file, {dir} the server's own directory, {size} the LUN's bytes. Those of lunfs
share one process and one LUN. A server whose program is missing is left out, by name.
"""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
LUNFS = os.environ.get("LUNFS", "lunfs")
TICKS = os.sysconf("SC_CLK_TCK")
READY_SECONDS = 15

IQN = "iqn.2026-11.local.bench:lun"
ISCSI = "iscsi://127.0.0.1:{port}/" + IQN
NBD = "nbd://127.0.0.1:{port}/lun"
TGT = [
    "tgtadm -C {ctl} --lld iscsi --op new --mode target --tid 1 -T " + IQN,
    "tgtadm -C {ctl} --lld iscsi --op new --mode logicalunit --tid 1 --lun 1 -b {img} --bstype ",
    "tgtadm -C {ctl} --lld iscsi --op bind --mode target --tid 1 -I ALL",
]
ISTGT = """[Global]
  NodeBase "iqn.2026-11.local.bench"
  PidFile {dir}/istgt.pid
  AuthFile {dir}/auth.conf
  MediaDirectory {dir}
  LogFacility "local7"
  MaxSessions 16
  MaxConnections 4
  MaxR2T 32
  FirstBurstLength 262144
  MaxBurstLength 1048576
  MaxRecvDataSegmentLength 262144
  InitialR2T Yes
  ImmediateData Yes
[UnitControl]
  AuthMethod None
  Portal UC1 127.0.0.1:{control}
  Netmask 127.0.0.1
[PortalGroup1]
  Portal DA1 127.0.0.1:{port}
[InitiatorGroup1]
  InitiatorName "ALL"
  Netmask 127.0.0.1/32
[LogicalUnit1]
  TargetName "lun"
  Mapping PortalGroup1 InitiatorGroup1
  AuthMethod Auto
  UseDigest Auto
  UnitType Disk
  QueueDepth 64
  LUN0 Storage {img} Auto
"""
NBD_SERVER = """[generic]
listenaddr = 127.0.0.1
port = {port}
[lun]
exportname = {img}
flush = true
fua = true
"""
QSD = "qemu-storage-daemon --blockdev file,node-name=f,filename={{img}},aio={aio} {more}"
QSD_NBD = (
    " --nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port={{port}}"
    " --export nbd,id=e,node-name={node},name=lun,writable=on"
)
QCOW2 = "--blockdev qcow2,node-name=q,file=f"


def tgt(backing):
    setup = [line + backing if line.endswith("--bstype ") else line for line in TGT]
    command = "tgtd -f -C {ctl} --iscsi portal=127.0.0.1:{port}"
    return dict(door="iscsi", url=ISCSI + "/1", cmd=command, setup=setup)


def qsd(aio, **more):
    command = (QSD + QSD_NBD).format(aio=aio, more="", node="f")
    return dict(door="nbd", url=NBD, cmd=command, **more)


SERVERS = {
    "raw": dict(door="file", url="file:{img}"),
    "raw-direct": dict(door="file", url="file:{img}", client="-D"),
    "tgt-rdwr": tgt("rdwr"),
    "tgt-aio": tgt("aio"),
    "istgt": dict(
        door="iscsi", url="iscsi://127.0.0.1:{port}/iqn.2026-11.local.bench:lun/0",
        cmd="istgt -D -c {dir}/istgt.conf", conf={"istgt.conf": ISTGT, "auth.conf": ""},
    ),
    "lunfs-iscsi": dict(
        door="iscsi", url="iscsi://127.0.0.1:{iscsi}/iqn.2026-11.local.lunfs:lun/0"
    ),
    "nbdkit-memory": dict(
        door="nbd", url=NBD, cmd="nbdkit -f -i 127.0.0.1 -p {port} -e lun memory {size}"
    ),
    "nbdkit-file": dict(
        door="nbd", url=NBD, cmd="nbdkit -f -i 127.0.0.1 -p {port} -e lun file file={img}"
    ),
    "nbd-server": dict(
        door="nbd", url=NBD, conf={"nbd.conf": NBD_SERVER},
        cmd="nbd-server -C {dir}/nbd.conf -p {dir}/pid", pidfile="{dir}/pid",
    ),
    "qemu-nbd": dict(
        door="nbd", url=NBD,
        cmd="qemu-nbd -t -e 8 -b 127.0.0.1 -p {port} -x lun -f raw --cache=writeback {img}",
    ),
    "qsd": qsd("threads"),
    "qsd-uring": qsd("io_uring"),
    "qsd-qcow2": dict(
        door="nbd", url=NBD, format="qcow2",
        cmd=(QSD + QSD_NBD).format(aio="threads", more=QCOW2, node="q"),
    ),
    "lunfs-nbd": dict(door="nbd", url="nbd://127.0.0.1:{nbd}/lun"),
    # the same mode as the data file of a LUN: nothing of it is cached by the kernel
    "fuse-passthrough": dict(
        door="fuse", url="file:{dir}/mnt/img", mount="{dir}/mnt",
        cmd="{passthrough} -f -o cache=never,source={dir} {dir}/mnt",
    ),
    "lunfs-fuse": dict(door="fuse", url="file:{mnt}/lun/data"),
}
PASSTHROUGH = "/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def find(program):
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    found = program if "/" in program else shutil.which(program, path=path)
    if not found or not os.path.exists(found):
        raise FileNotFoundError(f"{program} is not installed")
    return found


def build(source, base, *libraries):
    """A C program of this folder, or of a package."""
    out = os.path.join(base, os.path.basename(source).removesuffix(".c"))
    path = source if "/" in source else os.path.join(HERE, source)
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-w", "-o", out, path, *libraries], check=True)
    return out


def build_passthrough(base):
    """libfuse's own example of a filesystem that hands everything on."""
    if not os.path.exists(PASSTHROUGH):
        raise FileNotFoundError(f"{PASSTHROUGH} is not installed (libfuse3-dev)")
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=True,
                           capture_output=True, text=True).stdout.split()
    return build(PASSTHROUGH, base, *flags)


def stat(pid):
    """Fields of stat(5) behind the name: 0 is the state, 1 the parent, 11 to 14 times."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()


def tree(pid):
    """A process and its living descendants."""
    children = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            children.setdefault(int(stat(name)[1]), []).append(int(name))
        except OSError:
            pass  # it ended
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def cpu_seconds(pid):
    """User and system time of the tree so far, that of ended children included."""
    total = 0
    for one in tree(pid):
        try:
            total += sum(int(field) for field in stat(one)[11:15])
        except OSError:
            pass
    return total / TICKS


def peak_mib(pid):
    """Most resident memory so far, summed over the tree."""
    total = 0
    for one in tree(pid):
        try:
            with open(f"/proc/{one}/status") as file:
                lines = [line.split() for line in file if line.startswith("VmHWM")]
            total += sum(int(line[1]) for line in lines)
        except OSError:
            pass
    return total / 1024


class Daemon:
    """A server that put itself into the background, by its process id."""

    def __init__(self, pid):
        self.pid = pid

    def poll(self):
        try:
            return 0 if stat(self.pid)[0] == "Z" else None
        except OSError:
            return 0

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("daemon", seconds)
            time.sleep(0.05)


class Server:
    """One of SERVERS, started and stopped."""

    def __init__(self, name, base, size, core=None):
        self.name, self.spec, self.core = name, SERVERS[name], core
        self.process, self.owner = None, False
        self.dir = os.path.join(base, name)
        os.makedirs(self.dir, exist_ok=True)
        self.values = dict(
            port=free_port(), control=free_port(), ctl=free_port() % 30000 + 100,
            dir=self.dir, size=size, img=os.path.join(self.dir, "img"),
            passthrough=os.path.join(base, "passthrough_ll"),
        )

    def text(self, template):
        return template.format(**self.values)

    @property
    def url(self):
        return self.text(self.spec["url"])

    def start(self):
        self.make_image()
        for name, text in self.spec.get("conf", {}).items():
            with open(os.path.join(self.dir, name), "w") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(self.text(text))
        if self.spec.get("mount"):
            os.makedirs(self.text(self.spec["mount"]), exist_ok=True)
        if self.spec.get("cmd"):
            self.spawn(shlex.split(self.text(self.spec["cmd"])))
            self.wait_ready()
        for line in self.spec.get("setup", []):
            command = shlex.split(self.text(line))
            subprocess.run([find(command[0]), *command[1:]], check=True, capture_output=True,
                           timeout=READY_SECONDS)

    def make_image(self):
        image, size = self.values["img"], self.values["size"]
        if self.spec.get("format"):
            make = ["qemu-img", "create", "-q", "-f", self.spec["format"], image, str(size)]
            subprocess.run(make, check=True)
        else:
            with open(image, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)

    def spawn(self, command):
        pin = (lambda: os.sched_setaffinity(0, {self.core})) if self.core is not None else None
        with open(self.dir + "/log", "w") as log:
            self.process = subprocess.Popen(
                [find(command[0]), *command[1:]], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, preexec_fn=pin, start_new_session=True,
            )
        self.owner = True
        if self.spec.get("pidfile"):
            self.process.wait(READY_SECONDS)
            with open(self.text(self.spec["pidfile"])) as file:
                self.process = Daemon(int(file.read()))

    def is_ready(self):
        if self.spec.get("mount"):
            return os.path.ismount(self.text(self.spec["mount"]))
        try:
            socket.create_connection(("127.0.0.1", self.values["port"]), 1).close()
            return True
        except OSError:
            return False

    def wait_ready(self):
        end = time.monotonic() + READY_SECONDS
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > end:
                with open(self.dir + "/log") as log:
                    raise RuntimeError("it did not start: " + log.read()[-300:].strip())
            time.sleep(0.05)

    def stop(self):
        if not self.owner or self.process.poll() is not None:
            return
        for number, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
            for one in tree(self.process.pid):
                os.kill(one, number)
            try:
                self.process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                continue
        if self.spec.get("mount"):
            subprocess.run(["fusermount3", "-u", "-z", self.text(self.spec["mount"])],
                           capture_output=True)


class Lunfs(Server):
    """The three doors of one lunfs, over one LUN; `first` is the one that started it."""

    def __init__(self, name, base, size, core=None, first=None):
        super().__init__(name, base, size, core)
        self.first = first
        if first:
            self.values = first.values
        else:
            more = dict(iscsi=free_port(), nbd=free_port(), mnt=os.path.join(self.dir, "mnt"))
            self.values.update(more)

    def start(self):
        if self.first:
            self.process = self.first.process
            return
        pool, mount, size = self.dir + "/pool.lunfs", self.values["mnt"], self.values["size"]
        os.makedirs(mount, exist_ok=True)
        os.environ["XDG_RUNTIME_DIR"] = self.dir
        room = size * 4 + (1 << 30)
        for command in (["pool", "create", pool, "--size", str(room)],
                        ["lun", "create", "lun", "--size", str(size), "--pool", pool]):
            subprocess.run([find(LUNFS), *command], check=True, capture_output=True)
        doors = [f"--{door}=127.0.0.1:{self.values[door]}" for door in ("iscsi", "nbd")]
        self.spawn([LUNFS, "serve", pool, *doors, f"--mount={mount}"])
        self.wait_ready()

    def is_ready(self):
        try:
            for door in ("iscsi", "nbd"):
                socket.create_connection(("127.0.0.1", self.values[door]), 1).close()
            return os.path.exists(self.values["mnt"] + "/lun/data")
        except OSError:
            return False


def start_all(names, base, size, core, complain):
    """Those that start."""
    started, first = [], None
    for name in names:
        if name.startswith("lunfs"):
            server = Lunfs(name, base, size, core, first)
        else:
            server = Server(name, base, size, core)
        try:
            server.start()
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            complain(f"{name} is left out: {error}")
            server.stop()
            continue
        if name.startswith("lunfs"):
            first = first or server
        started.append(server)
    return started
