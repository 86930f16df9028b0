"""fio with verification: on the NBD door, on the mounted `data`, and on plain files."""

import json

from harness import check, need, require, run, tool

require("fio")


def fio(lab, name, *options):
    """One job; every block it reads back is checked by fio against its checksum."""
    done = tool("fio", f"--name={name}", "--output-format=json", "--size=96M", "--randseed=7",
                "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", *options, good=False,
                cwd=lab.dir)
    text = done.stdout.decode(errors="replace")
    need(f"fio {name}", done.returncode == 0, done.text[-1500:])
    job = json.loads(text[text.index("{"):])["jobs"][0]
    check(f"{name}: no error, {job['write']['total_ios']} writes, {job['read']['total_ios']} reads",
          job["error"] == 0 and job["write"]["total_ios"] > 0 and job["read"]["total_ios"] > 0)


def nbd_door(lab):
    """random and sequential, with verify, over NBD"""
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "128M")
    lab.serve(nbd=True, extra=["--cache", "64M"])
    uri = f"--uri={lab.nbd_url('disk')}"
    fio(lab, "nbd-random", "--ioengine=nbd", uri, "--rw=randwrite", "--bs=4k", "--iodepth=16")
    fio(lab, "nbd-mixed", "--ioengine=nbd", uri, "--rw=randwrite", "--bsrange=512-128k",
        "--blockalign=512", "--iodepth=8", "--fsync=32")
    fio(lab, "nbd-stream", "--ioengine=nbd", uri, "--rw=write", "--bs=1M", "--iodepth=4")
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def file_door(lab):
    """random and sequential, with verify, through the mount"""
    lab.make_pool()
    lab.do("lun", "create", "disk", "--size", "128M")
    lab.serve(mount=True, extra=["--cache", "64M"])
    data, plain = f"--filename={lab.data('disk')}", f"--filename={lab.mount}/plain"
    fio(lab, "data-random", data, "--ioengine=psync", "--rw=randwrite", "--bs=4k", "--fsync=64")
    fio(lab, "data-direct", data, "--ioengine=libaio", "--direct=1", "--rw=randwrite",
        "--bs=8k", "--iodepth=8")
    fio(lab, "file-stream", plain, "--ioengine=psync", "--rw=write", "--bs=256k")
    fio(lab, "file-mmap", plain + "2", "--ioengine=mmap", "--rw=randwrite", "--bs=4k")
    check("an orderly stop", lab.stop())
    lab.verify_pool()


run([nbd_door, file_door])
