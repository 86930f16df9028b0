"""Speed beside others: the same work through the same client, in interleaved rounds.

    matrix.py [--quick] [--servers a,b] [--work a,b] [--pin same] [--json FILE] [--svg FILE]

Figures, no proof. Compare the server's CPU time for each operation first (its least over rounds:
other work on the machine only adds), measured with `--pin same`, client and server on one core:
there are no wake-ups across cores in it, which cost more than the work. Rates are medians over
rounds; compare them only within one run, and only where they differ by more than the spread that is
told beside them. CPU time is that of the server's process tree: what the kernel does for it in
threads of its own is not in it. Every 4 KiB that is read is checked.

lunbench.c is the client: libiscsi, libnbd, or the system calls of a file. limits.c measures what
the machine can do at most. Environment: LUNFS the program; DIR where everything lies (default: a
temporary directory in /dev/shm; one on a disk measures the disk too).
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import plot
import servers

MIB = 1 << 20
# what: arguments of lunbench, bytes of an operation
WORK = {
    "seq write 1M d8": ("-w w -a seq -b 1048576 -q 8", MIB),
    "seq read 1M d8": ("-w r -a seq -b 1048576 -q 8 -V", MIB),
    "seq write 128k d8": ("-w w -a seq -b 131072 -q 8", MIB >> 3),
    "seq read 128k d8": ("-w r -a seq -b 131072 -q 8 -V", MIB >> 3),
    "rnd read 4k d1": ("-w r -a rand -b 4096 -q 1 -V", 4096),
    "rnd read 4k d32": ("-w r -a rand -b 4096 -q 32 -V", 4096),
    "rnd write 4k d1": ("-w w -a rand -b 4096 -q 1", 4096),
    "rnd write 4k d32": ("-w w -a rand -b 4096 -q 32", 4096),
    "seq write 4k d32": ("-w w -a seq -b 4096 -q 32", 4096),
    "write+flush 4k d1": ("-w w -a rand -b 4096 -q 1 -f", 4096),
    "write+flush 4k d32": ("-w w -a rand -b 4096 -q 32 -f", 4096),
    "write FUA 4k d1": ("-w w -a rand -b 4096 -q 1 -F", 4096),
}
FILL = "-w w -a seq -b 1048576 -q 8"
# Their flush does not reach the disk (no fsync in a trace of them): no measure where it should.
NOT_DURABLE = {"tgt-aio", "istgt", "nbdkit-memory"}


def complain(text):
    print("# " + text, file=sys.stderr, flush=True)


def options():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short rounds over a small LUN")
    parser.add_argument("--servers", help="names, with commas between")
    parser.add_argument("--work", help="the same; a part of a name stands for all that hold it")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--mib", type=int, help="size of the LUN")
    parser.add_argument("--pin", choices=("none", "same", "split"), default="none",
                        help="server and client on one core, or each on one of its own")
    parser.add_argument("--json", help="a file for all figures")
    parser.add_argument("--svg", help="a file for a plot")
    given = parser.parse_args()
    given.rounds = given.rounds or 3
    given.seconds = given.seconds or (0.35 if given.quick else 1)
    given.mib = given.mib or (128 if given.quick else 512)
    return given


def chosen(wanted, all_of_them):
    if not wanted:
        return list(all_of_them)
    words = wanted.split(",")
    return [name for name in all_of_them if any(word in name for word in words)]


def cores(pin):
    mine = sorted(os.sched_getaffinity(0))
    return {"none": (None, None), "same": (mine[0], mine[0]), "split": (mine[0], mine[-1])}[pin]


def drive(client, server, arguments, seconds, core=None, more=()):
    """One run: lunbench's figures, with the server's CPU time for each operation."""
    command = [client, "-u", server.url, *arguments.split(), "-t", str(seconds), *more]
    command += server.spec.get("client", "").split()
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
    before = servers.cpu_seconds(server.process.pid) if server.process else 0
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * 8 + 120,
                          preexec_fn=pin)
    if done.returncode not in (0, 3):
        raise RuntimeError(done.stderr.strip()[-200:])
    got = json.loads(done.stdout)
    got["client_us"] = (got["client_user"] + got["client_sys"]) * 1e6 / max(got["ops"], 1)
    got["server_us"], got["rss_mib"] = got["client_us"], 0.0
    if server.process:
        spent = servers.cpu_seconds(server.process.pid) - before
        got["server_us"] = spent * 1e6 / max(got["ops"], 1)
        got["rss_mib"] = servers.peak_mib(server.process.pid)
    return got


def filled(client, server, given):
    """Writes all of the LUN, so that what is read can be checked. False: it cannot be used."""
    try:
        drive(client, server, FILL, 60, more=["-n", str(given.mib)])
        return True
    except (RuntimeError, subprocess.SubprocessError) as error:
        complain(f"{server.name} is left out: {error}")
        return False


def measure(given, client, started, work):
    """All runs by (what, server): each round begins with another server."""
    runs, core = {}, cores(given.pin)[1]
    for number in range(given.rounds):
        turn = number % max(len(started), 1)
        for what in work:
            for server in started[turn:] + started[:turn]:
                try:
                    got = drive(client, server, WORK[what][0], given.seconds, core)
                    runs.setdefault((what, server.name), []).append(got)
                except (RuntimeError, subprocess.SubprocessError) as error:
                    complain(f"{server.name}, {what}: {error}")
    return runs


def summary(what, runs):
    """The runs of one row in a line: medians, and what the table tells."""
    key = "iops" if WORK[what][1] == 4096 else "mibs"
    line = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    rates = [run[key] for run in runs]
    line["rate"], line["unit"] = line[key], "/s" if key == "iops" else "MiB/s"
    line["spread"] = (max(rates) - min(rates)) / 2 / max(line["rate"], 1e-9)
    line["server_us_least"] = min(run["server_us"] for run in runs)
    line["bad"] = sum(run["bad"] for run in runs)
    return line


def table(lines):
    for what, by_server in lines.items():
        unit = next(iter(by_server.values()))["unit"]
        print(f"\n{what:<20}{unit:>9} {'spread':>7}  {'server us':>9} {'least':>7}  "
              f"{'client us':>9} {'p50 us':>8} {'p99 us':>9}  {'RSS MiB':>7}")
        for name, line in by_server.items():
            note = " (not durable)" if "flush" in what and name in NOT_DURABLE else ""
            note += f" {int(line['bad'])} BAD BLOCKS" if line["bad"] else ""
            print(f"{name:<20}{line['rate']:>9.0f} {100 * line['spread']:>6.0f}%"
                  f"  {line['server_us']:>9.1f} {line['server_us_least']:>7.1f}"
                  f"  {line['client_us']:>9.1f} {line['p50_us']:>8.1f} {line['p99_us']:>9.0f}"
                  f"  {line['rss_mib']:>7.0f}{note}")


def limits(base, given):
    """What the machine can do at most, by name: (value, unit)."""
    program = servers.build("limits.c", base, "-lpthread")
    done = subprocess.run([program, base, str(min(given.seconds, 0.5))], check=True,
                          capture_output=True, text=True)
    rows = [line.split(None, 2) for line in done.stdout.splitlines()]
    return {name: [float(value), unit] for name, value, unit in rows}


def machine():
    with open("/proc/cpuinfo") as file:
        models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    commit = subprocess.run(["git", "-C", servers.HERE, "rev-parse", "--short", "HEAD"],
                            capture_output=True, text=True).stdout.strip()
    return {
        "cpu": f"{len(models)} x {models[0]}" if models else platform.machine(),
        "kernel": platform.release(), "commit": commit or "?",
        "date": datetime.date.today().isoformat(), "load": round(os.getloadavg()[0], 1),
    }


def run(given, base):
    client = servers.build("lunbench.c", base, "-liscsi", "-lnbd", "-lpthread")
    names, work = chosen(given.servers, servers.SERVERS), chosen(given.work, WORK)
    try:
        servers.build_passthrough(base)
    except (OSError, subprocess.SubprocessError) as error:
        complain(str(error))
        names = [name for name in names if name != "fuse-passthrough"]
    floor, size = limits(base, given), given.mib * MIB
    everyone = servers.start_all(names, base, size, cores(given.pin)[0], complain)
    started = everyone
    try:
        started = [server for server in started if filled(client, server, given)]
        os.sync()
        runs = measure(given, client, started, work)
    finally:
        for server in reversed(everyone):
            server.stop()
    lines = {}
    for what in work:
        for server in started:
            if (what, server.name) in runs:
                line = summary(what, runs[what, server.name])
                lines.setdefault(what, {})[server.name] = line
    return {"machine": machine(), "limits": floor, "lines": lines,
            "run": {"rounds": given.rounds, "seconds": given.seconds, "mib": given.mib,
                    "pin": given.pin, "where": base}}


def main():
    given = options()
    base = tempfile.mkdtemp(prefix="lunfs-bench-", dir=os.environ.get("DIR", "/dev/shm"))
    began = time.monotonic()
    try:
        result = run(given, base)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    about = result["machine"]
    print(f"{about['cpu']}, Linux {about['kernel']}, commit {about['commit']}, {about['date']}, "
          f"load {about['load']}; LUN {given.mib} MiB, {given.rounds} rounds of {given.seconds} s, "
          f"pin {given.pin}; {time.monotonic() - began:.0f} s in all")
    for name, (value, unit) in result["limits"].items():
        print(f"  limit {name:<28} {value:>10g} {unit}")
    table(result["lines"])
    if given.json:
        with open(given.json, "w") as file:
            json.dump(result, file, indent=1)
    if given.svg:
        with open(given.svg, "w") as file:
            file.write(plot.svg(result))
    bad = any(line["bad"] for rows in result["lines"].values() for line in rows.values())
    sys.exit(1 if bad else 0)


main()
