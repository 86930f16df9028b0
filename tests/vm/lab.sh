# Sourced by the scripts beside it: a place to work in, a server, and the guest. They set `lunfs` to
# the program first. KEEP=1 leaves the place behind, GUEST_SECONDS bounds each guest.
# Calls `before_cleanup` first, if there is one.
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/lunfs-vm.XXXXXX")
export LUNFS_POOL=$work/pool.lunfs XDG_RUNTIME_DIR=$work/run
guest_seconds=${GUEST_SECONDS:-900}
server=
passed=0

say() { echo "vm: $*"; }
fail() { echo "vm: FAILED: $*" >&2; exit 1; }
ok() { passed=$((passed + 1)); echo "  ok    $*"; }

cleanup() {
  local code=$?
  trap - EXIT
  ! declare -F before_cleanup >/dev/null || before_cleanup
  [ -z "$server" ] || { "$lunfs" stop || kill "$server"; } >/dev/null 2>&1 || true
  [ -z "$server" ] || wait "$server" || true
  ! grep -q " $work/mnt " /proc/self/mounts || umount -l "$work/mnt"
  [ "$code" = 0 ] || [ ! -s "$work/server.log" ] || tail -30 "$work/server.log" >&2
  [ -n "${KEEP:-}" ] && say "kept $work" || rm -rf "$work"
  exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# ports COUNT: that many free ones.
ports() {
  /usr/bin/python3 -c 'import socket, sys
s = [socket.socket() for _ in range(int(sys.argv[1]))]
[x.bind(("127.0.0.1", 0)) for x in s]
print(*(x.getsockname()[1] for x in s))' "$1"
}

# json EXPRESSION: of the answer on stdin, called `it`.
json() { /usr/bin/python3 -c "import json, sys; it = json.load(sys.stdin); print($1)"; }

# serve ARG...: starts the server and waits for its word.
serve() {
  "$lunfs" serve "$LUNFS_POOL" "$@" >"$work/server.log" 2>&1 &
  server=$!
  for _ in $(seq 300); do
    ! grep -qi '^ready' "$work/server.log" || return 0
    kill -0 "$server" 2>/dev/null || fail "the server ended"
    sleep 0.1
  done
  fail "the server is not ready"
}

# finish: an orderly stop, and a check of the pool.
finish() {
  "$lunfs" stop >/dev/null
  wait "$server" || fail "the server ended with $?"
  server=
  "$lunfs" pool check "$LUNFS_POOL" >/dev/null || fail "pool check"
  ok "pool check finds nothing"
}

mkdir -m 700 "$XDG_RUNTIME_DIR"
"$here/run" --build
