#!/usr/bin/env bash
# The Linux kernel's initiator over two portals: SCSI reservations by sg_persist, dm-multipath whose
# paths are dropped under a verifying fio, a resize seen after a rescan, and fstrim that gives the
# pool its space back. The guest says when it wants something of the server; this script does it.
# usage: paths.sh LUNFS
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lunfs=$(realpath "${1:?usage: paths.sh LUNFS}")
work=$(mktemp -d "${TMPDIR:-/tmp}/lunfs-vm.XXXXXX")
export LUNFS_POOL=$work/pool.lunfs XDG_RUNTIME_DIR=$work/run
# the small kernel has no handler of ALUA, which the LUN announces
export LUNFS_VM_FLAVOUR=${LUNFS_VM_FLAVOUR:-amd64}
guest_seconds=${GUEST_SECONDS:-900}
server=

say() { echo "vm: $*"; }
fail() { echo "vm: FAILED: $*" >&2; exit 1; }

cleanup() {
  local code=$?
  trap - EXIT
  [ -z "$server" ] || { "$lunfs" stop || kill "$server"; } >/dev/null 2>&1 || true
  [ -z "$server" ] || wait "$server" || true
  [ "$code" = 0 ] || [ ! -s "$work/server.log" ] || tail -30 "$work/server.log" >&2
  [ -n "${KEEP:-}" ] && say "kept $work" || rm -rf "$work"
  exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

ports() {
  /usr/bin/python3 -c 'import socket
s = [socket.socket() for _ in range(2)]
[x.bind(("127.0.0.1", 0)) for x in s]
print(*(x.getsockname()[1] for x in s))'
}

# json EXPRESSION: of the answer on stdin, called `it`.
json() { /usr/bin/python3 -c "import json, sys; it = json.load(sys.stdin); print($1)"; }

used_bytes() { "$lunfs" lun show disk --json | json 'it.get("lun", it)["used_bytes"]'; }

# What the guest asks for.
serve_guest() {
  local word id before=0 after turn=0
  while read -r line; do
    echo "$line"
    read -r _ word _ <<<"$line" || continue
    case $word in
      DROP) # one session or the other; the initiator logs in again by itself
        id=$("$lunfs" session list --json |
          json "sorted(s['id'] for s in (it if type(it) is list else it['sessions']))[$turn % 2]")
        turn=$((turn + 1))
        "$lunfs" session drop "$id" >/dev/null && say "session $id dropped" ;;
      RESIZE) "$lunfs" lun resize disk --size 320M >/dev/null && say "resized" ;;
      FILLED) before=$(used_bytes) ;;
      TRIMMED)
        after=$(used_bytes)
        say "used: $before bytes, then $after"
        [ $((before - after)) -gt $((48 << 20)) ] || fail "fstrim gave nothing back" ;;
    esac
  done
}

mkdir -m 700 -p "$XDG_RUNTIME_DIR"
"$here/run" --build
read -r one two <<<"$(ports)"
"$lunfs" pool create "$LUNFS_POOL" --size 2G >/dev/null
"$lunfs" lun create disk --size 256M >/dev/null
"$lunfs" serve "$LUNFS_POOL" --iscsi "127.0.0.1:$one" --iscsi "127.0.0.1:$two" \
  --advertise 10.0.2.2 >"$work/server.log" 2>&1 &
server=$!
for _ in $(seq 300); do
  ! grep -qi '^ready' "$work/server.log" || break
  kill -0 "$server" 2>/dev/null || fail "the server ended"
  sleep 0.1
done
"$here/run" -t "$guest_seconds" "$here/guest-paths.sh" "$one" "$two" | serve_guest ||
  fail "the guest's script failed"
"$lunfs" stop >/dev/null
wait "$server" || fail "the server ended with $?"
server=
"$lunfs" pool check "$LUNFS_POOL" >/dev/null || fail "pool check"
say "all well"
