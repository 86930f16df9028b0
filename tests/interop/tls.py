"""NBD over TLS: libnbd's tools and QEMU with client certificates, who is known by which name, and
who is not let in."""

import json
import os
import socket
import subprocess

import nbd

from harness import KIB, MIB, check, equal, free_port, require, run, tool

require("openssl", "nbdinfo", "nbdcopy", "qemu-img", "cmp")

HOST = "iqn.2026-11.local.test:host"


def openssl(*args):
    tool("openssl", *args)


def authority(lab, name):
    """A folder with a certificate authority of its own."""
    folder = lab.path(name)
    os.mkdir(folder)
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{folder}/ca-key.pem", "-out",
            f"{folder}/ca-cert.pem", "-addext", "basicConstraints=critical,CA:TRUE")
    return folder


def certificate(lab, ca, folder, who, name):
    """A certificate of `who` (server or client), in a folder as libnbd and QEMU want it."""
    folder = lab.path(folder)
    os.makedirs(folder, exist_ok=True)
    key, request, out = (f"{folder}/{who}-{end}" for end in ("key.pem", "req.pem", "cert.pem"))
    openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    extensions = lab.path("ext")
    with open(extensions, "w") as file:
        file.write("basicConstraints=CA:FALSE\n"
                   "subjectAltName=DNS:localhost,IP:127.0.0.1\n"
                   f"extendedKeyUsage={who}Auth\n" if who == "server" else
                   f"basicConstraints=CA:FALSE\nextendedKeyUsage={who}Auth\n")
    openssl("x509", "-req", "-in", request, "-CA", f"{ca}/ca-cert.pem", "-CAkey",
            f"{ca}/ca-key.pem", "-CAcreateserial", "-days", "2", "-extfile", extensions,
            "-out", out)
    with open(f"{ca}/ca-cert.pem", "rb") as file, open(f"{folder}/ca-cert.pem", "wb") as copy:
        copy.write(file.read())
    return folder


def uri(lab, name, folder, host="127.0.0.1"):
    return f"nbds://{host}:{lab.nbd_port}/{name}?tls-certificates={folder}"


def tls(lab):
    """nbdinfo, nbdcopy and qemu-img over TLS; the client is known by its certificate's name"""
    lab.make_pool()
    lab.do("lun", "create", "one", "--size", "64M")
    lab.do("lun", "create", "two", "--size", "64M")
    ca = authority(lab, "ca")
    server = certificate(lab, ca, "server", "server", "localhost")
    client = certificate(lab, ca, "client", "client", HOST)
    with open(f"{server}/authorized-clients", "w") as file:
        file.write(f"# who may come\n{HOST}\nother {HOST}x\n")
    lab.do("initiator", "add", HOST, "--allow", "one", "--allow", "two:ro")
    lab.serve(nbd=True, extra=("--tls", server))
    info = json.loads(tool("nbdinfo", "--json", uri(lab, "one", client)).stdout)
    check("nbdinfo uses TLS", info["TLS"], info)
    source, back = lab.path("source"), lab.path("back")
    with open(source, "wb") as file:
        file.write(os.urandom(20 * MIB))
        file.truncate(64 * MIB)
    tool("nbdcopy", "--flush", source, uri(lab, "one", client))
    tool("nbdcopy", "--connections=4", "--requests=32", uri(lab, "one", client), back)
    tool("cmp", source, back)
    options = ("--object", f"tls-creds-x509,id=t,dir={client},endpoint=client")
    image = (f"driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={lab.nbd_port},"
             "export=one,tls-creds=t")
    done = tool("qemu-img", "info", *options, "--image-opts", image)
    check("qemu-img over TLS", "64 MiB" in done.text, done.text)
    tool("qemu-img", "convert", *options, "--image-opts", image, "-O", "raw", lab.path("q"))
    tool("cmp", source, lab.path("q"))
    h = nbd.NBD()
    h.set_uri_allow_local_file(True)
    h.connect_uri(uri(lab, "two", client))
    check("a right that only reads", h.is_read_only())
    sessions = lab.ask("session", "list")
    equal("the session is the certificate's", [s["client"] for s in sessions], [HOST])
    h.shutdown()
    lab.do("initiator", "set", HOST, "--max-sessions", "1")
    first = nbd.NBD()
    first.set_uri_allow_local_file(True)
    first.connect_uri(uri(lab, "one", client))
    more = tool("nbdinfo", "--size", uri(lab, "one", client), good=False)
    check("more sessions than allowed", more.returncode != 0 and "policy" in more.text, more.text)
    equal("the first goes on", len(first.pread(512, 0)), 512)
    first.shutdown()
    equal("they are counted", lab.ask("status")["refused"]["limit"], 1)
    refused(lab, ca, client)
    check("an orderly stop", lab.stop())
    lab.verify_pool()


def refused(lab, ca, client):
    """Who is not let in."""
    def fails(text, url):
        check(f"refused: {text}", tool("nbdinfo", url, good=False).returncode != 0)

    fails("in the clear, where initiators are defined", lab.nbd_url("one"))
    stranger = certificate(lab, ca, "stranger", "client", "stranger")
    fails("a name that is not authorized", uri(lab, "one", stranger))
    foreign = certificate(lab, authority(lab, "foreign"), "foe", "client", HOST)
    with open(f"{ca}/ca-cert.pem", "rb") as file, open(f"{foreign}/ca-cert.pem", "wb") as copy:
        copy.write(file.read())
    fails("a certificate of another authority", uri(lab, "one", foreign))
    other = certificate(lab, ca, "other", "client", "other")
    fails("an authorized name that is no initiator", uri(lab, "one", other))
    fails("an object that is not there", uri(lab, "three", client))
    # Bytes behind STARTTLS in the clear.
    with socket.create_connection(("127.0.0.1", lab.nbd_port), 10) as s:
        s.recv(18)
        s.sendall(b"\0\0\0\3" + b"IHAVEOPT\0\0\0\5\0\0\0\0" + b"IHAVEOPT\0\0\0\3\0\0\0\0")
        s.settimeout(10)
        got = b""
        try:
            while more := s.recv(4096):
                got += more
        except ConnectionError:
            pass
        check("bytes behind STARTTLS end the connection", True)
        check("and nothing is listed in the clear", b"one" not in got, got)
    with socket.create_connection(("127.0.0.1", lab.nbd_port), 10) as s:
        s.recv(18)
        s.sendall(b"\0\0\0\3" + b"IHAVEOPT\0\0\0\5\0\0\0\0")
        s.recv(20)
        s.sendall(os.urandom(4 * KIB))
        s.settimeout(10)
        try:
            while s.recv(4096):
                pass
            ended = True
        except ConnectionError:
            ended = True
        except TimeoutError:
            ended = False
        check("junk instead of TLS ends it too", ended)
    counted = lab.ask("status")["refused"]
    check("all are counted", counted["authentication"] >= 3 and counted["no_such_lun"] >= 1
          and counted["unlisted"] >= 2, counted)


def required(lab):
    """Off loopback TLS comes before anything else"""
    own = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    own = [a for a in own if ":" not in a and not a.startswith("127.")]
    lab.make_pool()
    lab.do("lun", "create", "one", "--size", "64M")
    ca = authority(lab, "ca")
    server = certificate(lab, ca, "server", "server", "localhost")
    client = certificate(lab, ca, "client", "client", HOST)
    lab.nbd_port = free_port()
    lab.refused("--nbd off loopback without --tls", "name", "serve", lab.pool, "--nbd",
                f"0.0.0.0:{lab.nbd_port}")
    lab.refused("a folder without certificates", "pem", "serve", lab.pool, "--tls", ca, "--nbd",
                f"0.0.0.0:{lab.nbd_port}")
    lab.serve(extra=("--tls", server, "--nbd", f"0.0.0.0:{lab.nbd_port}"))
    tool("nbdinfo", lab.nbd_url("one"))
    for address in own[:1]:
        plain = tool("nbdinfo", f"nbd://{address}:{lab.nbd_port}/one", good=False)
        check("in the clear from another address", plain.returncode != 0)
        h = nbd.NBD()
        h.set_tls(nbd.TLS_REQUIRE)
        h.set_tls_certificates(client)
        h.set_tls_verify_peer(False)
        h.set_export_name("one")
        h.connect_tcp(address, str(lab.nbd_port))
        h.pwrite(b"t" * 4096, 0)
        equal("by TLS from there, written and read", bytes(h.pread(4096, 0)), b"t" * 4096)
        h.shutdown()
    check("an orderly stop", lab.stop())
    lab.verify_pool()


if __name__ == "__main__":
    run([tls, required])
