#!/usr/bin/env bash
# CHAP between the Linux kernel's own initiator and lunfs: one-way, mutual, with wrong secrets.
# usage: chap.sh LUNFS
# environment: ALGORITHMS  those to try (default "MD5 SHA256")
#
# The first time about 300 MB of packages are downloaded (`run`).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lunfs=$(realpath "${1:?usage: chap.sh LUNFS}")
work=$(mktemp -d "${TMPDIR:-/tmp}/lunfs-chap.XXXXXX")
export LUNFS_POOL=$work/pool.lunfs XDG_RUNTIME_DIR=$work/run
initiator=iqn.2026-11.local.test:vm
server=

fail() { echo "vm: FAILED: $*" >&2; [ ! -s "$work/log" ] || tail -5 "$work/log" >&2; exit 1; }

cleanup() {
  local code=$?
  trap - EXIT
  [ -z "$server" ] || { "$lunfs" stop || kill "$server"; } >/dev/null 2>&1 || true
  rm -rf "$work"
  exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -m 700 "$XDG_RUNTIME_DIR"
(umask 077 && openssl rand -hex 16 >"$work/user" && openssl rand -hex 16 >"$work/target")
"$here/run" --build
port=$(/usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
"$lunfs" pool create "$LUNFS_POOL" --size 1G >/dev/null
"$lunfs" lun create disk --size 64M >/dev/null
"$lunfs" initiator add "$initiator" --allow disk --chap-user vm --chap-secret-file "$work/user" \
  --mutual-user lunfs --mutual-secret-file "$work/target" >/dev/null
"$lunfs" serve "$LUNFS_POOL" --iscsi "127.0.0.1:$port" --advertise "10.0.2.2:$port" \
  >"$work/log" 2>&1 &
server=$!
for _ in $(seq 300); do
  ! grep -qi '^ready' "$work/log" || break
  kill -0 "$server" 2>/dev/null || fail "the server ended"
  sleep 0.1
done
for algorithm in ${ALGORITHMS:-MD5 SHA256}; do
  "$here/run" -t 300 "$here/guest-chap.sh" "$port" "$algorithm" vm "$(cat "$work/user")" \
    lunfs "$(cat "$work/target")" || fail "$algorithm: the guest's script ended with $?"
done
"$lunfs" status | head -3
echo "vm: CHAP as it should be"
