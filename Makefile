# The only entry point. `make demo` shows it, `make test` proves it; both work on a fresh machine.
#
#   setup    install what is missing (Debian or Ubuntu, as root or with sudo)
#   build    the release program: target/release/lunfs
#   check    formatting and lints, nothing is run
#   demo     a pool, a LUN, a real disk image, read and written through every door
#   test     everything that has to hold, within 20 minutes on 2 cores
#   crash    kill -9 of a busy server, ROUNDS=500 times
#   sim      the simulator: a million operations and thousands of crashes over fresh seeds, on all
#            processors; or SEED=n alone, of STEPS=m steps
#   fuzz     the parsers under random bytes, for DURATION=300 seconds
#   interop  the clients of others alone (ONLY=word picks)
#   conformance  libiscsi's conformance suite over LUNs of several kinds (PROFILE=word picks)
#   bench    lunfs beside other servers on this machine, and what snapshots cost
#   vm       the Linux kernel's own iSCSI and NBD clients, multipath and CHAP, in a small guest
#   clean    remove what was built

SHELL := /bin/bash
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
LUNFS := $(TARGET)/release/lunfs
ROUNDS ?= 500
DURATION ?= 300

.PHONY: all setup build check demo test crash sim fuzz interop conformance bench vm clean
all: build

setup:
	@tests/setup.sh

build:
	$(CARGO) build --release --locked

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

demo: setup build
	@tests/demo.sh $(LUNFS)

test: setup check
	@tests/run

crash: setup build
	LUNFS=$(abspath $(LUNFS)) ROUNDS=$(ROUNDS) $(if $(SEED),SEED=$(SEED)) \
		/usr/bin/python3 tests/kill9.py

sim: setup
	@$(if $(SEED),LUNFS_SIM_SEED=$(SEED)) $(if $(SEEDS),LUNFS_SIM_SEEDS=$(SEEDS)) \
		$(if $(STEPS),LUNFS_SIM_STEPS=$(STEPS)) $(CARGO) test -q --release --locked --test sim

fuzz: setup
	@end=$$((SECONDS + $(DURATION))); seed=$(or $(SEED),$$RANDOM); \
	while [ $$SECONDS -lt $$end ]; do \
		echo "LUNFS_SEED=$$seed"; \
		LUNFS_SEED=$$seed $(CARGO) test -q --release --locked --workspace fuzz || exit 1; \
		seed=$$((seed + 1)); \
	done

interop: setup
	ONLY=$(ONLY) $(CARGO) test --locked --test interop -- --nocapture --test-threads 1

conformance: setup build
	@LUNFS=$(abspath $(LUNFS)) /usr/bin/python3 tests/conformance.py

bench: setup build
	@tests/bench/setup.sh
	@LUNFS=$(abspath $(LUNFS)) /usr/bin/python3 tests/bench/matrix.py --pin same $(BENCH)
	@LUNFS=$(abspath $(LUNFS)) /usr/bin/python3 tests/bench/snapshots.py
	@LUNFS=$(abspath $(LUNFS)) /usr/bin/python3 tests/bench/snapcost.py

vm: setup build
	@set -e; for script in attach paths chap rest nbs; do \
		tests/vm/$$script.sh $(abspath $(LUNFS)); done

clean:
	$(CARGO) clean
