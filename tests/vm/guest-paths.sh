#!/bin/bash
# In the guest: two paths to the LUN of paths.sh. Lines with a word in capitals ask that script for
# something.
# usage: guest-paths.sh PORT PORT
set -u
host=10.0.2.2
target=iqn.2026-11.local.lunfs:disk

die() { echo "guest: FAILED: $*"; dmesg | tail -15; exit 1; }
say() { echo "guest: $*"; }

# clear DEVICE: the unit attentions that wait for it.
clear() { for _ in 1 2 3 4; do sg_turs "$1" >/dev/null 2>&1 && return; done; }

# refused DEVICE: a write of one block must meet the reservation.
refused() { ! sg_dd if=/dev/zero of="$1" bs=512 count=1 blk_sgio=1 >/tmp/dd 2>&1; }

modprobe iscsi_tcp || die "no initiator in this kernel"
modprobe -a dm_multipath scsi_dh_alua || die "no multipath in this kernel"
mkdir -p /run/lock/iscsi
echo "node.conn[0].iscsi.HeaderDigest = CRC32C" >>/etc/iscsi/iscsid.conf
echo "node.conn[0].iscsi.DataDigest = CRC32C" >>/etc/iscsi/iscsid.conf
iscsid || die "iscsid"
iscsiadm -m discovery -t sendtargets -p "$host:$1" >/tmp/targets || die "discovery"
grep -q "$host:$1,1" /tmp/targets && grep -q "$host:$2,2" /tmp/targets ||
  die "discovery names not both portals: $(cat /tmp/targets)"
iscsiadm -m node -T "$target" --login >/dev/null || die "login"
udevadm settle -t 20
a= b=
for _ in $(seq 100); do
  a=$(readlink -f "/dev/disk/by-path/ip-$host:$1-iscsi-$target-lun-0")
  b=$(readlink -f "/dev/disk/by-path/ip-$host:$2-iscsi-$target-lun-0")
  [ -b "$a" ] && [ -b "$b" ] && break
  sleep 0.1
done
[ -b "$a" ] && [ -b "$b" ] || die "not two disks: '$a' '$b'"
[ "$(iscsiadm -m session -P 2 | grep -ci 'Digest: CRC32C')" = 4 ] || die "no digests"
say "two paths: $a $b"
sg_rtpg -d "$a" >/tmp/rtpg 2>&1 && grep -q "active/optimized" /tmp/rtpg || die "$(cat /tmp/rtpg)"
sg_logs -p 0xc "$a" >/dev/null || die "log page 0Ch"

persist() { sg_persist --no-inquiry "$@" >/tmp/persist 2>&1; }
clear "$a"; clear "$b"
persist --out --register --param-sark=0xa1 "$a" || die "register: $(cat /tmp/persist)"
persist --out --register --param-sark=0xb2 "$b" || die "second register: $(cat /tmp/persist)"
persist --out --reserve --param-rk=0xa1 --prout-type=1 "$a" || die "reserve: $(cat /tmp/persist)"
persist --in --read-full-status "$b" && [ "$(grep -c 'Key=0x' /tmp/persist)" = 2 ] ||
  die "full status: $(cat /tmp/persist)"
refused "$b" || die "a write past the reservation of another path"
sg_dd if=/dev/zero of="$a" bs=512 count=1 blk_sgio=1 >/dev/null 2>&1 || die "the holder's write"
persist --out --preempt-abort --param-rk=0xb2 --param-sark=0xa1 --prout-type=3 "$b" ||
  die "preempt: $(cat /tmp/persist)"
clear "$a"
refused "$a" || die "a write past the reservation that preempted it"
persist --out --clear --param-rk=0xb2 "$b" || die "clear: $(cat /tmp/persist)"
clear "$a"; clear "$b"
say "reservations: register, reserve, conflict, preempt, clear"

cat >/etc/multipath.conf <<'C'
defaults {
  find_multipaths no
  user_friendly_names yes
  polling_interval 1
  no_path_retry 60
}
blacklist {
  devnode "^vd"
}
C
multipathd || die "multipathd"
map=
for _ in $(seq 200); do
  map=$(ls /dev/mapper/mpath* 2>/dev/null | head -1)
  [ -n "$map" ] && [ "$(multipath -ll | grep -c 'active ready')" = 2 ] && break
  sleep 0.2
done
[ -n "$map" ] || die "no map: $(multipath -v3 2>&1 | tail -5)"
multipath -ll
fio --name=paths --filename="$map" --size=24m --rw=randwrite --bs=16k --direct=1 --iodepth=8 \
  --ioengine=libaio --verify=crc32c --verify_fatal=1 --do_verify=1 --time_based --runtime=25 \
  >/tmp/fio 2>&1 &
fio=$!
for _ in 1 2 3; do
  sleep 6
  echo "guest: DROP a session"
done
wait "$fio" || { tail -20 /tmp/fio; die "fio while paths were dropped"; }
say "fio verified all, with sessions dropped under it"
for _ in $(seq 150); do
  [ "$(multipath -ll | grep -c 'active ready')" = 2 ] && break
  sleep 0.2
done
[ "$(multipath -ll | grep -c 'active ready')" = 2 ] || die "the paths did not come back"

echo "guest: RESIZE it"
wanted=$((320 << 20))
for _ in $(seq 100); do
  iscsiadm -m session --rescan >/dev/null 2>&1
  [ "$(blockdev --getsize64 "$a")" = $wanted ] && [ "$(blockdev --getsize64 "$b")" = $wanted ] &&
    break
  sleep 0.2
done
[ "$(blockdev --getsize64 "$a")" = $wanted ] || die "the rescan shows no new size"
multipathd resize map "${map##*/}" >/dev/null || die "the map does not grow"
[ "$(blockdev --getsize64 "$map")" = $wanted ] || die "the map has not grown"
say "resized after a rescan"

mkfs.ext4 -q -F "$map" && mkdir -p /mnt/paths && mount "$map" /mnt/paths || die "ext4"
dd if=/dev/urandom of=/mnt/paths/big bs=1M count=64 conv=fsync status=none || die "dd"
echo "guest: FILLED"
sleep 2
rm /mnt/paths/big && sync -f /mnt/paths && fstrim /mnt/paths || die "fstrim"
sleep 1
echo "guest: TRIMMED"
umount /mnt/paths || die "umount"
multipath -F
iscsiadm -m node --logoutall=all >/dev/null || die "logout"
exit 0
