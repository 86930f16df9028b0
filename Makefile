# The only entry point. `make demo` shows it, `make test` proves it; both work on a fresh machine.
#
#   setup    install what is missing (Debian or Ubuntu, as root or with sudo)
#   build    the release program: target/release/lunfs
#   check    formatting and lints, nothing is run
#   demo     a pool, a LUN, a real disk image, read and written through every door
#   test     everything that has to hold, within 20 minutes on 2 cores
#   crash    kill -9 of a busy server, ROUNDS=500 times
#   sim      crashes of the simulated device, SEEDS=2000 of them from SEED on
#   fuzz     the parsers under random bytes, for SECONDS=300
#   interop  the clients of others alone (ONLY=word picks)
#   bench    a short table of speeds on this machine
#   vm       the Linux kernel's own iSCSI and NBD clients, in a small virtual machine
#   clean    remove what was built

SHELL := /bin/bash
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
LUNFS := $(TARGET)/release/lunfs
ROUNDS ?= 500
SEEDS ?= 2000
SEED ?= 1
SECONDS ?= 300

.PHONY: all setup build check demo test crash sim fuzz interop bench vm clean
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
	LUNFS=$(abspath $(LUNFS)) ROUNDS=$(ROUNDS) SEED=$(SEED) /usr/bin/python3 tests/kill9.py

sim: setup
	LUNFS_SIM_SEEDS=$(SEEDS) LUNFS_SIM_SEED=$(SEED) \
		$(CARGO) test --release --locked --test sim -- --nocapture

fuzz: setup
	LUNFS_FUZZ_SECONDS=$(SECONDS) $(CARGO) test --release --locked fuzz -- --nocapture

interop: setup
	ONLY=$(ONLY) $(CARGO) test --locked --test interop -- --nocapture --test-threads 1

bench: setup build
	@LUNFS=$(abspath $(LUNFS)) /usr/bin/python3 tests/bench/doors.py

vm: setup build
	@tests/vm/attach.sh $(abspath $(LUNFS))

clean:
	$(CARGO) clean
