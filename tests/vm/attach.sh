#!/usr/bin/env bash
# The Linux kernel's own initiator and NBD client against lunfs: in the guest, each LUN gets a file
# system, is filled, checked after a remount, and let go. Then the same images are mounted read-only
# from the mount's `data` on this host: every file must have the checksum that the guest computed.
# usage: attach.sh LUNFS
#
# Needs root for the loop mounts. The first time about 300 MB of packages are downloaded (`run`).
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lunfs=$(realpath "${1:?usage: attach.sh LUNFS}")
work=$(mktemp -d "${TMPDIR:-/tmp}/lunfs-vm.XXXXXX")
export LUNFS_POOL=$work/pool.lunfs XDG_RUNTIME_DIR=$work/run
mount=$work/mnt
guest_seconds=${GUEST_SECONDS:-900}
server=
passed=0

say() { echo "vm: $*"; }
fail() { echo "vm: FAILED: $*" >&2; exit 1; }
ok() { passed=$((passed + 1)); echo "  ok    $*"; }
is_mounted() { grep -q " $1 " /proc/self/mounts; }

cleanup() {
  local code=$?
  trap - EXIT
  ! is_mounted "$work/loop" || umount "$work/loop"
  [ -z "$server" ] || { "$lunfs" stop || kill "$server"; } >/dev/null 2>&1 || true
  [ -z "$server" ] || wait "$server" || true
  ! is_mounted "$mount" || umount -l "$mount"
  [ "$code" = 0 ] || [ ! -s "$work/server.log" ] || tail -30 "$work/server.log" >&2
  [ -n "${KEEP:-}" ] && say "kept $work" || rm -rf "$work"
  exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

port() {
  /usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])'
}

# check_from_host LUN TYPE: the image as a file of the mount, against the guest's checksums.
check_from_host() {
  local lun=$1 type=$2 options=ro,loop,noload
  [ "$type" = ext4 ] || options=ro,loop,norecovery
  mount -t "$type" -o "$options" "$mount/$lun/data" "$work/loop" ||
    fail "$lun: $type does not mount from the file"
  (cd "$work/loop" && sha256sum --quiet -c "$work/out/$lun.sum") ||
    fail "$lun: files differ from what the guest wrote"
  ok "$lun: $(wc -l <"$work/out/$lun.sum") files of $type mounted from \`data\`, equal checksums"
  umount "$work/loop"
}

mkdir -p "$mount" "$work/loop" "$work/out" "$XDG_RUNTIME_DIR"
chmod 700 "$XDG_RUNTIME_DIR"
"$here/run" --build
iscsi_port=$(port) nbd_port=$(port)
"$lunfs" pool create "$LUNFS_POOL" --size 4G >/dev/null
for lun in iscsi-ext4 iscsi-xfs nbd-ext4 nbd-xfs; do
  "$lunfs" lun create "$lun" --size 384M >/dev/null
done
"$lunfs" serve "$LUNFS_POOL" --mount "$mount" --iscsi "127.0.0.1:$iscsi_port" \
  --nbd "127.0.0.1:$nbd_port" --advertise "10.0.2.2:$iscsi_port" >"$work/server.log" 2>&1 &
server=$!
for _ in $(seq 300); do
  ! grep -qi '^ready' "$work/server.log" || break
  kill -0 "$server" 2>/dev/null || fail "the server ended"
  sleep 0.1
done

"$here/run" -t "$guest_seconds" -o "$work/out" "$here/guest-attach.sh" "$iscsi_port" "$nbd_port" ||
  fail "the guest's script ended with $?"
ok "the guest made, filled, remounted and checked four file systems"
for door in iscsi nbd; do
  check_from_host "$door-ext4" ext4
  e2fsck -fn "$mount/$door-ext4/data" >"$work/fsck.log" 2>&1 ||
    { cat "$work/fsck.log"; fail "e2fsck of $door-ext4"; }
  ok "$door-ext4: e2fsck of the file finds nothing"
  check_from_host "$door-xfs" xfs
done
"$lunfs" stop >/dev/null
wait "$server" || fail "the server ended with $?"
server=
"$lunfs" pool check "$LUNFS_POOL" >/dev/null || fail "pool check"
ok "pool check finds nothing"
say "$passed checks passed"
