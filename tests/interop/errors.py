"""Everything that goes wrong by a user's hand: a short error that says what to do, and no harm."""

import os
import re
import socket

from blockclients import nbd_connect
from harness import KIB, LUNFS, MIB, Lab, check, equal, free_port, run, tool

SERVE_SECONDS = 30


def serve_refused(lab, text, pattern, *args):
    """A `serve` that must end by itself with a short error."""
    return lab.refused(text, pattern, "serve", *args, seconds=SERVE_SECONDS)


def pool_files(lab):
    """missing, foreign, truncated, and one that is there already"""
    serve_refused(lab, "a missing pool file", "no such file|not found|does not exist",
                  lab.path("none"), "--nbd", f"127.0.0.1:{free_port()}")
    lab.refused("a check of a missing pool file", "no such file|not found|does not exist",
                "pool", "check", lab.path("none"))
    for name, content in (("zeros", bytes(64 * MIB)), ("text", b"hello\n"), ("empty", b""),
                          ("random", os.urandom(MIB) * 64)):
        with open(lab.path(name), "wb") as f:
            f.write(content)
        serve_refused(lab, f"a file of {name}", "pool", lab.path(name), "--nbd",
                      f"127.0.0.1:{free_port()}")
        equal(f"{name} is unharmed", open(lab.path(name), "rb").read() == content, True)
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "64M")
    lab.refused("pool create over a pool", "exist|pool", "pool", "create", lab.pool, "--size", "1G")
    equal("the pool is unharmed", [x["name"] for x in lab.ask("lun", "list")], ["vm1"])
    cut = lab.path("cut")
    tool("cp", "--sparse=always", lab.pool, cut)
    os.truncate(cut, os.stat(cut).st_size // 2)
    serve_refused(lab, "a truncated pool file", "short|truncat|smaller|size|bytes|end", cut,
                  "--nbd", f"127.0.0.1:{free_port()}")
    os.truncate(cut, 10 * KIB)
    serve_refused(lab, "a pool file cut to 10 KiB", ".", cut, "--nbd", f"127.0.0.1:{free_port()}")
    lab.refused("a pool that is too small", "64|small|at least", "pool", "create",
                lab.path("small"), "--size", "1M", code=small_code(lab))
    check("and leaves no file", not os.path.exists(lab.path("small")))
    lab.verify_pool()


def small_code(lab):
    """A size that parses but is too small may count as usage or as refused."""
    done = lab.lunfs("pool", "create", lab.path("small"), "--size", "1M")
    return done.returncode if done.returncode in (1, 2) else 1


def doors_in_use(lab):
    """a port, a mount point and a pool that somebody else has"""
    lab.make_pool()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for door in ("--nbd", "--iscsi"):
            serve_refused(lab, f"{door} on a port in use", "in use|listens|taken", lab.pool, door,
                          f"127.0.0.1:{port}")
    serve_refused(lab, "a mount point that is not there", "no such|not found|does not exist",
                  lab.pool, "--mount", lab.path("nowhere"))
    with open(lab.path("file"), "w"):
        serve_refused(lab, "a mount point that is a file", "director", lab.pool, "--mount",
                      lab.path("file"))
    lab.serve(mount=True, nbd=True)
    serve_refused(lab, "a second server of the pool", "already|in use|serve|lock", lab.pool,
                  "--nbd", f"127.0.0.1:{free_port()}")
    other = Lab()
    other.make_pool()
    serve_refused(other, "a mount point in use", "in use|mounted|busy", other.pool, "--mount",
                  lab.mount)
    other.close()
    lab.refused("a check of a pool that is served", "serve|in use|lock", "pool", "check", lab.pool)
    check("the first server still works", lab.lunfs("status").returncode == 0)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def sizes_and_names(lab):
    """bad sizes, bad names, names that are taken"""
    lab.make_pool()
    for size in ("12Q", "abc", "-5", "", "1.5.2G", "99999999999999999999"):
        lab.refused(f"size {size!r}", "size|invalid|value", "lun", "create", "x", f"--size={size}",
                    code=2)
    done = lab.lunfs("lun", "create", "x", "--size", "0")
    check("size 0", done.returncode in (1, 2) and done.err, done.err)
    done = lab.lunfs("lun", "create", "x", "--size", "1000")
    check("a size that is no multiple of a block", done.returncode in (1, 2) and done.err, done.err)
    for name in (".hidden", "a/b", "n" * 65, "", "with space", "ümlaut", "a:b"):
        done = lab.lunfs("lun", "create", "--size", "1M", "--", name)
        check(f"name {name[:20]!r}", done.returncode in (1, 2) and re.search("name", done.err),
              f"{done.returncode} {done.err}")
    equal("nothing was made", lab.ask("lun", "list"), [])
    lab.do("lun", "create", "Vm1", "--size", "1M")
    lab.refused("a name that is taken", "exist|taken", "lun", "create", "vm1", "--size", "1M")
    lab.refused("a LUN that is not there", "no LUN|not found|no such|does not exist",
                "lun", "show", "vm9")
    lab.refused("a delete of one that is not there", "no LUN|not found|no such|does not exist",
                "lun", "delete", "vm9")
    lab.refused("an unknown key", "colour", "lun", "set", "vm1", "colour=blue", code=key_code(lab))
    lab.refused("an unknown command", "unrecognized|unexpected|invalid|usage", "lun", "paint",
                code=2)


def key_code(lab):
    done = lab.lunfs("lun", "set", "vm1", "colour=blue")
    return done.returncode if done.returncode in (1, 2) else 1


def in_use(lab):
    """what is refused while a door has the LUN open"""
    lab.make_pool()
    lab.do("lun", "create", "vm1", "--size", "64M")
    lab.serve(nbd=True, mount=True)
    handle = nbd_connect(lab.nbd_port, "vm1")
    handle.pwrite(b"x" * 4096, 0)
    busy = "attach|open|in use|session|busy|connect"
    lab.refused("delete", busy, "lun", "delete", "vm1")
    lab.refused("rename", busy, "lun", "rename", "vm1", "vm2")
    lab.refused("shrink", busy, "lun", "resize", "vm1", "--size", "1M")
    with open(lab.path("img"), "wb") as f:
        f.truncate(64 * MIB)
    lab.refused("import --into", busy, "lun", "import", "--into", "vm1", lab.path("img"))
    equal("nothing happened", bytes(handle.pread(4096, 0)), b"x" * 4096)
    handle.shutdown()
    with open(lab.path("there"), "wb") as f:
        f.write(b"precious")
    lab.refused("export over a file", "exist|force", "lun", "export", "vm1", lab.path("there"))
    equal("the file is unharmed", open(lab.path("there"), "rb").read(), b"precious")
    lab.refused("import of a missing file", "no such file|not found", "lun", "import", "n", "/none")
    lab.refused("import of a pipe without --size", "size", "lun", "import", "n", "-",
                code=pipe_code(lab), stdin=-3)
    os.mkdir(lab.mount + "/plain")
    lab.refused("a LUN named like a directory", "exist|taken|name", "lun", "create", "plain",
                "--size", "1M")
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def pipe_code(lab):
    done = lab.lunfs("lun", "import", "n", "-", stdin=-3)
    return done.returncode if done.returncode in (1, 2) else 1


def no_daemon(lab):
    """commands that need a server say so"""
    lab.make_pool()
    check("status of a pool nobody serves is not 0", lab.lunfs("status").returncode != 0)
    lab.refused("stop with no server", "serve|running|no ", "stop")
    check(f"{os.path.basename(LUNFS)} with nothing is a usage error",
          lab.lunfs().returncode == 2)


run([pool_files, doors_in_use, sizes_and_names, in_use, no_daemon])
