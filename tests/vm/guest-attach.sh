#!/bin/bash
# In the guest: attaches the LUNs of attach.sh by the kernel's own clients and works on them.
# usage: guest-attach.sh ISCSI-PORT NBD-PORT
set -u
iscsi_port=$1 nbd_port=$2
host=10.0.2.2
iqn=iqn.2026-11.local.lunfs

die() { echo "guest: FAILED: $*"; dmesg | tail -15; exit 1; }
say() { echo "guest: $*"; }

# use LUN DEVICE TYPE: make, fill, remount, verify, trim, check.
use() {
  local lun=$1 device=$2 type=$3 at=/mnt/$1
  mkdir -p "$at"
  if [ "$type" = ext4 ]; then mkfs.ext4 -q -F "$device"; else mkfs.xfs -q -f "$device"; fi ||
    die "$lun: mkfs.$type"
  mount -t "$type" "$device" "$at" || die "$lun: mount"
  mkdir "$at/tree" && cp -a /usr/share/perl5 /usr/lib/python3.11/json /etc "$at/tree/" 2>/dev/null
  dd if=/dev/urandom of="$at/random" bs=1M count=12 conv=fsync status=none || die "$lun: dd"
  cp --sparse=always /bin/busybox "$at/busybox" || die "$lun: cp"
  sync -f "$at"
  (cd "$at" && find . -type f -print0 | sort -z | xargs -0 sha256sum) >"/out/$lun.sum"
  umount "$at" || die "$lun: umount"
  echo 3 >/proc/sys/vm/drop_caches
  mount -t "$type" "$device" "$at" || die "$lun: second mount"
  (cd "$at" && sha256sum --quiet -c "/out/$lun.sum") || die "$lun: checksums after the remount"
  rm "$at/busybox" && sed -i '/busybox$/d' "/out/$lun.sum"
  fstrim -v "$at" || die "$lun: fstrim"
  umount "$at" || die "$lun: second umount"
  if [ "$type" = ext4 ]; then e2fsck -fn "$device" >/tmp/fsck 2>&1
  else xfs_repair -n "$device" >/tmp/fsck 2>&1; fi || { cat /tmp/fsck; die "$lun: fsck"; }
  say "$lun: $(wc -l <"/out/$lun.sum") files on $type at $device: all well"
}

start_iscsi() {
  modprobe iscsi_tcp || die "no initiator in this kernel"
  mkdir -p /run/lock/iscsi
  iscsid || die "iscsid"
  iscsiadm -m discovery -t sendtargets -p "$host:$iscsi_port" >/tmp/targets || die "discovery"
  cat /tmp/targets
}

# attach_iscsi LUN: logs in and sets `device`.
attach_iscsi() {
  local target=$iqn:$1
  iscsiadm -m node -T "$target" -p "$host:$iscsi_port" --login >/dev/null || die "$1: login"
  udevadm settle -t 20
  device=
  for _ in $(seq 100); do
    for link in /dev/disk/by-path/*"iscsi-$target-lun-0"; do [ -b "$link" ] && device=$link; done
    [ -z "$device" ] || break
    sleep 0.1
  done
  [ -n "$device" ] || die "$1: no disk appeared"
  device=$(readlink -f "$device")
  sg_inq "$device" | sed -n 's/^ *\(Vendor\|Product\) identification/guest:   \1/p'
  sg_vpd -p bl "$device" >/dev/null && sg_vpd -p lbpv "$device" >/dev/null || die "$1: VPD pages"
  # kernels since 6.11 take the limit of atomic writes from VPD B0h
  local limit=/sys/block/${device##*/}/queue/atomic_write_unit_max_bytes
  [ ! -r "$limit" ] || say "  atomic writes up to $(cat "$limit") bytes"
}

attach_nbd() {
  device=/dev/nbd$2
  nbd-client -N "$1" "$host" "$nbd_port" "$device" >/tmp/nbd.log 2>&1 ||
    { cat /tmp/nbd.log; die "$1: nbd-client"; }
}

start_iscsi
for type in ext4 xfs; do
  attach_iscsi "iscsi-$type"
  use "iscsi-$type" "$device" "$type"
done
iscsiadm -m node --logoutall=all >/dev/null || die "logout"
say "logged out"

modprobe nbd nbds_max=4 || die "no NBD in this kernel"
number=0
for type in ext4 xfs; do
  attach_nbd "nbd-$type" "$number"
  use "nbd-$type" "$device" "$type"
  nbd-client -d "$device" >/dev/null || die "nbd-$type: disconnect"
  number=$((number + 1))
done
exit 0
