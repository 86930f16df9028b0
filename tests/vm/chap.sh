#!/usr/bin/env bash
# CHAP between the Linux kernel's own initiator and lunfs: one-way, mutual, with wrong secrets.
# usage: chap.sh LUNFS
# environment: ALGORITHMS  those to try (default "MD5 SHA256")
set -euo pipefail
lunfs=$(realpath "${1:?usage: chap.sh LUNFS}")
source "$(dirname "${BASH_SOURCE[0]}")/lab.sh"

(umask 077 && openssl rand -hex 16 >"$work/user" && openssl rand -hex 16 >"$work/target")
port=$(ports 1)
"$lunfs" pool create "$LUNFS_POOL" --size 1G >/dev/null
"$lunfs" lun create disk --size 64M >/dev/null
"$lunfs" initiator add iqn.2026-11.local.test:vm --allow disk --chap-user vm \
  --chap-secret-file "$work/user" --mutual-user lunfs --mutual-secret-file "$work/target" >/dev/null
serve --iscsi "127.0.0.1:$port" --advertise "10.0.2.2:$port"
for algorithm in ${ALGORITHMS:-MD5 SHA256}; do
  "$here/run" -t "$guest_seconds" "$here/guest-chap.sh" "$port" "$algorithm" \
    vm "$(cat "$work/user")" lunfs "$(cat "$work/target")" ||
    fail "$algorithm: the guest's script ended with $?"
  ok "CHAP with $algorithm: one-way, mutual, and refused with wrong secrets"
done
finish
say "$passed checks passed"
