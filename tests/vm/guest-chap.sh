#!/bin/bash
# In the guest: the kernel's initiator proves who it is to the LUN of chap.sh, and is refused where
# it does not.
# usage: guest-chap.sh PORT ALGORITHM USER SECRET TARGET-USER TARGET-SECRET
set -u
port=$1 algorithm=$2 user=$3 secret=$4 target_user=$5 target_secret=$6
host=10.0.2.2
target=iqn.2026-11.local.lunfs:disk

die() { echo "guest: FAILED: $*"; exit 1; }
say() { echo "guest: $*"; }

# The secrets of discovery stand in the configuration, those of the session in the node's record.
configure() {
  cat >/etc/iscsi/iscsid.conf <<EOF
node.startup = manual
node.session.auth.authmethod = CHAP
node.session.auth.chap_algs = $algorithm
node.session.auth.username = $1
node.session.auth.password = $2
discovery.sendtargets.auth.authmethod = CHAP
discovery.sendtargets.auth.chap_algs = $algorithm
discovery.sendtargets.auth.username = $1
discovery.sendtargets.auth.password = $2
node.session.initial_login_retry_max = 1
EOF
  [ $# -lt 4 ] || cat >>/etc/iscsi/iscsid.conf <<EOF
node.session.auth.username_in = $3
node.session.auth.password_in = $4
EOF
}

discover() { iscsiadm -m discovery -t sendtargets -p "$host:$port"; }
login() { iscsiadm -m node -T "$target" -p "$host:$port" --login; }

modprobe iscsi_tcp || die "no initiator in this kernel"
mkdir -p /run/lock/iscsi /etc/iscsi
echo "InitiatorName=iqn.2026-11.local.test:vm" >/etc/iscsi/initiatorname.iscsi
configure "$user" "not the secret"
iscsid || die "iscsid"
! discover >/tmp/out 2>&1 || die "discovery with a wrong secret"
say "discovery with a wrong secret is refused"

configure "$user" "$secret"
discover >/tmp/out 2>&1 || { cat /tmp/out; die "discovery"; }
grep -q "$target" /tmp/out || die "discovery does not show the LUN"
login >/tmp/out 2>&1 || { cat /tmp/out; die "login"; }
udevadm settle -t 20
disk=$(readlink -f /dev/disk/by-path/*"iscsi-$target-lun-0") && [ -b "$disk" ] || die "no disk"
dd if=/dev/urandom of="$disk" bs=1M count=8 oflag=direct status=none || die "writing"
iscsiadm -m node --logoutall=all >/dev/null || die "logout"
say "algorithm $algorithm: logged in and wrote"

configure "$user" "$secret" "$target_user" "$target_secret"
discover >/dev/null 2>&1 && login >/tmp/out 2>&1 || { cat /tmp/out; die "mutual login"; }
iscsiadm -m node --logoutall=all >/dev/null || die "logout"
say "algorithm $algorithm: the target proved itself too"

configure "$user" "$secret" "$target_user" "not the target's secret"
discover >/dev/null 2>&1
! login >/tmp/out 2>&1 || die "a target that proved itself by another secret was taken"
say "a target with another secret is not taken"

iscsiadm -m node -T "$target" -p "$host:$port" -o update -n node.session.auth.password \
  -v "not the secret" >/dev/null
! login >/tmp/out 2>&1 || die "login with a wrong secret"
say "login with a wrong secret is refused"
