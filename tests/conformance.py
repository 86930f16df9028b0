"""libiscsi's conformance suite (iscsi-test-cu) against LUNs of several kinds: each test in a
process of its own with a time limit, several LUNs beside each other. Prints a table, and fails on
anything that is not known to be the suite's own fault.

Environment: LUNFS is the program under test; ISCSI_TEST_CU another iscsi-test-cu; PROFILE=word
takes the profiles whose names contain it; FILTER=regex the tests; LOGS=dir keeps a log of each.

The suite prints "passed" for a test that skipped everything. Here:
  PASS  ran, nothing in it failed or was skipped      PART  nothing failed, some of it was skipped
  SKIP  nothing was asserted                          FAIL  an assertion failed
  HANG  ran past its limit                            DIED  the tester or the server did
"""

import collections
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "interop"))
import harness
from harness import IQN, Lab, Need, die_with_parent, free_port, need, require

CU = os.environ.get("ISCSI_TEST_CU", "iscsi-test-cu")
TEST_SECONDS = 60
# Tests that want a LUN which nobody has written to: this one clears blocks 0 to 255 and then
# expects block 256 to be zero as well.
UNTOUCHED = {"MultipathIO.CompareAndWrite"}
# A sanitize is waited for by polling once a minute.
LONG_SECONDS = {"Sanitize.Reset": 180, "Sanitize.Overwrite": 120}
# LUNs of a profile that are tested beside each other: the suite mostly sleeps and waits.
WORKERS = 4
POOL_BYTES = "640M"
# more than MAXIMUM WRITE SAME LENGTH, which two tests want to exceed
LUN_BYTES = "136M"

Profile = collections.namedtuple("Profile", "name keys portals tests known chap", defaults=[""])
# Verdicts that are not this program's fault, and why.
LBPPBE = "asks for a block amid a physical one, and wants it to begin a descriptor"
UNIT_ATTENTION = "its own PERSISTENT RESERVE IN meets the unit attention that the reset owes it"
RESET = {"iSCSITMF.LUNResetSimpleAsync": UNIT_ATTENTION}
PROFILES = [
    Profile("thin", ["physical-exponent=0"], 2, "", RESET),
    Profile("physical block of 8", ["physical-exponent=3"], 2, "",
            {**RESET, "GetLBAStatus.UnmapSingle": LBPPBE}),
    Profile("removable", ["physical-exponent=0", "removable=true"], 2,
            "^(NoMedia|StartStop|Prevent|TestUnit|Inquiry|Mandatory|ModeSense)", {}),
    Profile("write-protected", ["physical-exponent=0", "read-only=true"], 1,
            "^(ReadOnly|TestUnit|Inquiry|Mandatory|ModeSense|Read|Verify|Prefetch)", {}),
    # names that read as numbers in other places of CHAP are taken as they are in CHAP_N
    *(Profile(f"CHAP as {user}", ["physical-exponent=0"], 2,
              "^(iSCSI|TestUnit|Mandatory|MultipathIO|Reserve6|Prout)", RESET, user)
      for user in ("alice", "0xabcd", "0bYWJj")),
]
# The names under which the suite logs in.
INITIATORS = [f"iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test{n}" for n in ("", "-2")]


class Board:
    """Verdicts as they come in, and the tests that are still to be run."""

    def __init__(self, tests):
        self.tests = queue.Queue()
        # the longest first, so that nothing is left over at the end
        for test in sorted(tests, key=lambda t: (t not in UNTOUCHED, -LONG_SECONDS.get(t, 0))):
            self.tests.put(test)
        self.verdicts = {}
        self.lock = threading.Lock()

    def work(self, urls):
        while True:
            try:
                test = self.tests.get_nowait()
            except queue.Empty:
                return
            verdict = one(test, urls)
            with self.lock:
                self.verdicts[test] = verdict


def one(test, urls):
    """Runs a test: (verdict, first reason, seconds)."""
    args = [CU, "--dataloss", "--allow-sanitize", "-V", "-t", f"ALL.{test}", *urls]
    started = time.monotonic()
    tester = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    try:
        text = tester.communicate(timeout=LONG_SECONDS.get(test, TEST_SECONDS))[0]
        verdict, why = judge(text.decode(errors="replace"), tester.returncode)
    except subprocess.TimeoutExpired:
        tester.kill()
        text = tester.communicate()[0]
        verdict, why = "HANG", ""
    if os.environ.get("LOGS"):
        os.makedirs(os.environ["LOGS"], exist_ok=True)
        with open(os.path.join(os.environ["LOGS"], test + ".log"), "wb") as log:
            log.write(text)
    return verdict, why, time.monotonic() - started


def judge(text, code):
    asserts = re.search(r"^ *asserts +\S+ +(\d+) +\d+ +(\d+)", text, re.M)
    tests = re.search(r"^ *tests +\d+ +\d+ +\d+ +(\d+)", text, re.M)
    if not asserts:
        return "DIED", f"tester's exit {code}"
    skips = re.findall(r".*\[SKIPPED\].*", text)
    if asserts.group(2) != "0" or (tests and tests.group(1) != "0"):
        failed = re.search(r".*\[FAIL(?:ED)?\].*|^ +1\. .*", text, re.M)
        return "FAIL", failed.group(0).strip() if failed else ""
    if not skips:
        return "PASS", ""
    return ("SKIP" if int(asserts.group(1)) <= len(skips) else "PART"), skips[0].strip()


def all_tests():
    listed = subprocess.run([CU, "--list"], capture_output=True).stdout.decode()
    return re.findall(r"^ALL\.([^.\s]+\.[^.\s]+)$", listed, re.M)


def run_profile(lab, profile, only=""):
    """Serves LUNs of a profile and gives the verdicts of its tests."""
    lab.size = POOL_BYTES
    lab.make_pool()
    for worker in range(WORKERS):
        lab.do("lun", "create", f"suite{worker}", "--size", LUN_BYTES, *profile.keys)
    proof = f"{profile.chap}%{define(lab, profile.chap)}@" if profile.chap else ""
    ports = [free_port() for _ in range(profile.portals)]
    lab.iscsi_port = ports[0]
    more = [arg for port in ports[1:] for arg in ("--iscsi", f"127.0.0.1:{port}")]
    lab.serve(iscsi=True, extra=more)
    tests = [t for t in all_tests() if re.search(profile.tests, t) and re.search(only, t)]
    board = Board(tests)
    threads = []
    for worker in range(WORKERS):
        urls = [f"iscsi://{proof}127.0.0.1:{port}/{IQN}suite{worker}/0" for port in ports]
        threads.append(threading.Thread(target=board.work, args=(urls,), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()
    need("the server is still there, and stops in order", lab.stop())
    lab.verify_pool()
    return board.verdicts


def define(lab, user):
    """Lets the suite in with CHAP only; gives the secret."""
    secret = os.urandom(8).hex()
    path = os.path.join(lab.dir, "secret")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
        f.write(secret)
    allowed = [arg for worker in range(WORKERS) for arg in ("--allow", f"suite{worker}")]
    for initiator in INITIATORS:
        lab.do("initiator", "add", initiator, "--chap-user", user, "--chap-secret-file", path,
               *allowed)
    return secret


def surprises(profile, verdicts):
    """What failed and was not known to."""
    bad = {test: v for test, v in verdicts.items() if v[0] in ("FAIL", "HANG", "DIED")}
    return {test: v for test, v in bad.items() if test not in profile.known}


def main():
    require(CU)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    harness.quiet = True
    table, bad = [], 0
    for profile in PROFILES:
        if os.environ.get("PROFILE", "") not in profile.name:
            continue
        started, lab = time.monotonic(), Lab()
        try:
            verdicts = run_profile(lab, profile, os.environ.get("FILTER", ""))
        except Need as why:
            sys.exit(f"{profile.name}: {why}")
        finally:
            lab.close()
        for test, (verdict, why, seconds) in sorted(verdicts.items()):
            if verdict != "PASS":
                why = profile.known.get(test, why)
                print(f"{profile.name}: {test:44} {verdict} {seconds:5.1f} s  {why[:120]}")
        bad += len(surprises(profile, verdicts))
        count = collections.Counter(verdict for verdict, _, _ in verdicts.values())
        failed = count["FAIL"] + count["HANG"] + count["DIED"]
        table.append((profile.name, count["PASS"], failed, count["SKIP"], count["PART"],
                      f"{time.monotonic() - started:.0f} s"))
    print("\n| LUN | passed | failed | skipped | in part | time |\n|---|---|---|---|---|---|")
    for row in table:
        print("| " + " | ".join(map(str, row)) + " |")
    bad += len(harness.failed)
    print(f"{bad} unexpected" if bad else "nothing unexpected")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
