#!/usr/bin/env bash
# The Linux kernel's own initiator and NBD client against lunfs: in the guest, each LUN gets a file
# system, is filled, checked after a remount, and let go. Then the same images are mounted read-only
# from the mount's `data` on this host: every file must have the checksum that the guest computed.
# usage: attach.sh LUNFS
#
# Needs root for the loop mounts. The first time about 300 MB of packages are downloaded (`run`).
set -euo pipefail
lunfs=$(realpath "${1:?usage: attach.sh LUNFS}")
source "$(dirname "${BASH_SOURCE[0]}")/lab.sh"
mount=$work/mnt

before_cleanup() { ! grep -q " $work/loop " /proc/self/mounts || umount "$work/loop"; }

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

mkdir -p "$mount" "$work/loop" "$work/out"
read -r iscsi_port nbd_port <<<"$(ports 2)"
"$lunfs" pool create "$LUNFS_POOL" --size 4G >/dev/null
for lun in iscsi-ext4 iscsi-xfs nbd-ext4 nbd-xfs; do
  "$lunfs" lun create "$lun" --size 384M >/dev/null
done
serve --mount "$mount" --iscsi "127.0.0.1:$iscsi_port" --nbd "127.0.0.1:$nbd_port" \
  --advertise "10.0.2.2:$iscsi_port"
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
finish
say "$passed checks passed"
