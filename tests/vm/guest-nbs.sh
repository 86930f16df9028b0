#!/bin/bash
# In the guest: see nbs.sh.
# usage: guest-nbs.sh snap ISCSI-PORT NBS-PORT CLOSED-PORT
#        guest-nbs.sh multi NBD-PORT
set -u
host=10.0.2.2

die() { echo "guest: FAILED: $*"; dmesg | tail -15; exit 1; }
say() { echo "guest: $*"; }

start_iscsi() {
  modprobe iscsi_tcp || die "no initiator in this kernel"
  mkdir -p /run/lock/iscsi /etc/iscsi
  echo "InitiatorName=iqn.2026-11.local.test:guest" >/etc/iscsi/initiatorname.iscsi
  cat >/etc/iscsi/iscsid.conf <<'CONF'
node.startup = manual
node.session.auth.authmethod = CHAP
node.session.auth.username = guest
node.session.auth.password = a-secret-of-the-guest
discovery.sendtargets.auth.authmethod = CHAP
discovery.sendtargets.auth.username = guest
discovery.sendtargets.auth.password = a-secret-of-the-guest
CONF
  iscsid || die "iscsid"
  iscsiadm -m discovery -t sendtargets -p "$host:$1" >/tmp/targets 2>&1 ||
    { cat /tmp/targets; die "discovery"; }
  iscsiadm -m node --login >/tmp/login 2>&1 || { cat /tmp/login; die "login"; }
  udevadm settle -t 20
  device=
  for _ in $(seq 100); do
    for link in /dev/disk/by-path/*iscsi*:app-lun-0; do [ -b "$link" ] && device=$link; done
    [ -z "$device" ] || break
    sleep 0.1
  done
  [ -n "$device" ] || die "no disk appeared"
}

# Files that nobody asks to be durable.
write_on() {
  local n=0
  while [ ! -e /tmp/stop ]; do
    n=$((n + 1))
    dd if=/dev/urandom of="$1/busy/$((n % 40))" bs=64k count=$((n % 9)) status=none
    [ $((n % 7)) != 0 ] || mv "$1/busy/$((n % 40))" "$1/busy/moved-$n"
    [ $((n % 13)) != 0 ] || rm -f "$1"/busy/moved-*
    echo "$n" >/tmp/number
  done
}

snap() {
  local iscsi_port=$1 nbs_port=$2 closed_port=$3 at=/mnt/app
  start_iscsi "$iscsi_port"
  mkfs.ext4 -q -F "$device" || die "mkfs.ext4"
  mkdir -p "$at" && mount "$device" "$at" || die "mount"
  mkdir "$at/kept" "$at/busy"
  cp -a /usr/lib/python3.11/json /etc "$at/kept/" 2>/dev/null
  (cd "$at/kept" && find . -type f -print0 | sort -z | xargs -0 sha256sum) >/out/kept.sum
  cp /in/in/lunfs /tmp/lunfs && cp /in/in/secret /tmp/secret || die "no program in the guest"
  chmod 700 /tmp/lunfs && chmod 600 /tmp/secret
  local login=(--user guest --secret-file /tmp/secret) good=$host:$nbs_port name server
  /tmp/lunfs nbs list --server "$good" "${login[@]}" || die "nbs list"
  write_on "$at" &
  sleep 2
  # The second time the first address of the list is closed.
  for name in one two; do
    server=$good
    [ "$name" = one ] || server=$host:$closed_port,$good
    /tmp/lunfs nbs snap create "app@$name" --server "$server" "${login[@]}" \
      --quiesce "fsfreeze:$at" || die "the snapshot $name"
    before=$(cat /tmp/number)
    sleep 3
    [ "$(cat /tmp/number)" -gt "$before" ] || die "it stays frozen"
  done
  ! /tmp/lunfs nbs snap create "app@three" --server "$good" --quiesce "fsfreeze:$at" \
    2>/tmp/refused || die "a snapshot without a secret"
  grep -qi denied /tmp/refused || { cat /tmp/refused; die "another refusal"; }
  touch /tmp/stop
  wait %1
  umount "$at" || die "umount"
  iscsiadm -m node --logoutall=all >/dev/null || die "logout"
}

attach() {
  nbd-client -C 2 -N multi "$host" "$1" /dev/nbd0 >/tmp/nbd.log 2>&1 ||
    { cat /tmp/nbd.log; die nbd-client; }
}

multi() {
  local at=/mnt/multi
  modprobe nbd nbds_max=1 || die "no NBD in this kernel"
  attach "$1"
  mkfs.ext4 -q -F /dev/nbd0 || die "mkfs.ext4"
  mkdir -p "$at" && mount /dev/nbd0 "$at" || die "mount"
  job=(--directory="$at" --name=v --numjobs=2 --rw=randwrite --bs=4k-64k --size=24M --iodepth=8
    --ioengine=libaio --direct=1 --fsync=32 --verify=crc32c --verify_fatal=1 --randseed=7)
  fio "${job[@]}" --do_verify=1 >/tmp/fio 2>&1 || { tail -30 /tmp/fio; die fio; }
  umount "$at" || die "umount"
  nbd-client -d /dev/nbd0 >/dev/null || die "disconnect"
  sleep 1
  attach "$1"
  mount /dev/nbd0 "$at" || die "second mount"
  fio "${job[@]}" --verify_only >/tmp/fio 2>&1 || { tail -30 /tmp/fio; die "fio, once more"; }
  umount "$at" && e2fsck -fn /dev/nbd0 >/tmp/fsck 2>&1 || { cat /tmp/fsck; die "e2fsck"; }
  nbd-client -d /dev/nbd0 >/dev/null || die "second disconnect"
}

case $1 in
  snap) shift; snap "$@" ;;
  multi) shift; multi "$@" ;;
  *) die "usage" ;;
esac
say "done"
exit 0
