#!/usr/bin/env bash
# The five-minute demonstration: one disk, seen through every door at once.
# usage: demo.sh LUNFS
#
# It needs root or fusermount3, works in one temporary directory, and takes everything away again.
# environment: DEMO_DIR  where to work (default: a new directory under ${TMPDIR:-/tmp})
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lunfs=$(realpath "${1:?usage: demo.sh LUNFS}")
work=$(mktemp -d "${DEMO_DIR:-${TMPDIR:-/tmp}}/lunfs-demo.XXXXXX")
export LUNFS_POOL=$work/pool.lunfs XDG_RUNTIME_DIR=$work/run
mount=$work/mnt image=$work/disk.img
want_mib=300
server=

bold= plain=
[ ! -t 1 ] || bold=$'\033[1m' plain=$'\033[0m'
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
note() { printf '   %s\n' "$*"; }
fail() { printf '\nThe demo failed: %s\n' "$*" >&2; exit 1; }

cleanup() {
  local code=$?
  trap - EXIT
  if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then
    "$lunfs" stop >/dev/null 2>&1 || kill "$server" 2>/dev/null || true
    for _ in $(seq 100); do kill -0 "$server" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$server" 2>/dev/null || true
  fi
  if grep -q " $mount " /proc/self/mounts; then
    umount -l "$mount" 2>/dev/null || fusermount3 -uz "$mount" || true
  fi
  if [ "$code" != 0 ] && [ -s "$work/server.log" ]; then
    echo "The server's last words:" >&2
    tail -20 "$work/server.log" >&2
  fi
  rm -rf "$work"
  exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

port() {
  /usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])'
}

# A tree of real files of this machine, at least $want_mib MiB, as an ext4 disk image.
make_image() {
  local tree=$work/tree from mib=0
  mkdir "$tree"
  for from in /usr/share /usr/lib/python3* /usr/include /usr/lib/gcc /usr/bin /usr/lib; do
    [ -d "$from" ] || continue
    mkdir -p "$tree$from"
    (cd "$from" && find . -xdev -type f -size -4096k -print0 2>/dev/null | head -z -n 20000 |
      tar -c --null -T - --ignore-failed-read 2>/dev/null) | tar -x -C "$tree$from" || true
    mib=$(du -sm "$tree" | cut -f1)
    [ "$mib" -lt $((want_mib + 20)) ] || break
  done
  [ "$mib" -ge "$want_mib" ] || fail "only $mib MiB of files were found for the image"
  truncate -s $((mib * 5 / 4 + 128))M "$image"
  mke2fs -q -F -t ext4 -d "$tree" "$image"
  files=$(find "$tree" -type f | wc -l)
  rm -rf "$tree"
  image_mib=$mib
}

wait_ready() {
  for _ in $(seq 300); do
    grep -qi '^ready' "$work/server.log" && return
    kill -0 "$server" 2>/dev/null || fail "the server ended"
    sleep 0.1
  done
  fail "the server was not ready within 30 s"
}

mkdir -p "$mount" "$XDG_RUNTIME_DIR"
chmod 700 "$XDG_RUNTIME_DIR"
started=$SECONDS

say "1. A disk image to play with"
make_image
note "ext4 with $files real files, $image_mib MiB, made by mke2fs"

say "2. A pool in one file, served"
"$lunfs" pool create "$LUNFS_POOL" --size 4G >/dev/null
iscsi_port=$(port) nbd_port=$(port)
"$lunfs" serve "$LUNFS_POOL" --mount "$mount" --iscsi "127.0.0.1:$iscsi_port" \
  --nbd "127.0.0.1:$nbd_port" >"$work/server.log" 2>&1 &
server=$!
wait_ready
note "mounted on $mount, iSCSI on port $iscsi_port, NBD on port $nbd_port"

say "3. The image becomes a LUN"
"$lunfs" lun import vm1 "$image"
note "ls $mount/vm1: $(ls "$mount/vm1" | tr '\n' ' ')"
cmp "$image" "$mount/vm1/data"
note "as a file: \`data\` in the mount is the image, byte for byte (cmp)"

say "4. The same bytes as a disk"
iscsi=iscsi://127.0.0.1:$iscsi_port/iqn.2026-11.local.lunfs:vm1/0
nbd=nbd://127.0.0.1:$nbd_port/vm1
qemu=$("$here/interop/get-qemu-iscsi.sh")
product=$(iscsi-inq "$iscsi" | sed -n 's/^Product: *\(.*[^ ]\) *$/\1/p')
capacity=$(iscsi-readcapacity16 "$iscsi" | sed -n 's/^Total size: *//p')
note "iSCSI: libiscsi finds a $product of $capacity bytes"
"$qemu/qemu-img" convert -f raw -O raw "$iscsi" "$work/by-iscsi.img"
cmp "$image" "$work/by-iscsi.img"
note "iSCSI: QEMU read all of it: identical"
rm "$work/by-iscsi.img"
nbdcopy "$nbd" "$work/by-nbd.img"
cmp "$image" "$work/by-nbd.img"
note "NBD:   nbdcopy read all of it: identical"
rm "$work/by-nbd.img"
e2fsck -fn "$mount/vm1/data" >"$work/fsck.log" 2>&1 || { cat "$work/fsck.log"; fail "e2fsck"; }
note "file:  e2fsck finds a clean ext4 in \`data\`"

say "5. A write through one door is there in the other at once"
"$qemu/qemu-io" -f raw -c 'write -q -P 0x42 0 512' "$iscsi"
found=$(head -c 512 "$mount/vm1/data" | tr -d 'B' | wc -c)
[ "$found" = 0 ] || fail "the write over iSCSI was not seen in the mounted file"
note "QEMU wrote a boot sector of 'B' over iSCSI; the very next read of \`data\` gives it"

say "6. Stopped, checked, gone"
"$lunfs" stop >/dev/null
for _ in $(seq 300); do kill -0 "$server" 2>/dev/null || break; sleep 0.1; done
wait "$server" || fail "the server ended with an error"
server=
"$lunfs" pool check "$LUNFS_POOL" >/dev/null || fail "pool check"
note "the pool was checked offline: nothing to complain about"
printf '\nDone in %d s. One disk was a file, an iSCSI LUN and an NBD export at once.\n' \
  $((SECONDS - started))
