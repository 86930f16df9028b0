#!/usr/bin/env bash
# The snapshot manager where the application runs: the guest's ext4 on an iSCSI LUN is frozen,
# snapped over NBS and thawed while it is written, and the snapshot is clean on this host. And the
# kernel's NBD client with two connections to one export, ext4 under fio verify on it.
# usage: nbs.sh LUNFS
set -euo pipefail
lunfs=$(realpath "${1:?usage: nbs.sh LUNFS}")
source "$(dirname "${BASH_SOURCE[0]}")/lab.sh"

before_cleanup() { ! grep -q " $work/loop " /proc/self/mounts || umount "$work/loop"; }

mount=$work/mnt
mkdir -p "$work/out" "$work/loop" "$mount" "$work/in"
strip -o "$work/in/lunfs" "$lunfs" 2>/dev/null || cp "$lunfs" "$work/in/lunfs"
read -r iscsi_port nbd_port nbs_port closed_port <<<"$(ports 4)"
"$lunfs" pool create "$LUNFS_POOL" --size 2G >/dev/null
for lun in app multi; do "$lunfs" lun create "$lun" --size 256M >/dev/null; done
(umask 077; echo a-secret-of-the-guest >"$work/in/secret")
"$lunfs" initiator add iqn.2026-11.local.test:guest --chap-user guest \
  --chap-secret-file "$work/in/secret" --allow app >/dev/null
"$lunfs" initiator add iqn.2026-11.local.test:nobody --allow app:ro >/dev/null
serve --mount "$mount" --iscsi "127.0.0.1:$iscsi_port" --nbs "127.0.0.1:$nbs_port" \
  --advertise "10.0.2.2:$iscsi_port"
"$here/run" -t "$guest_seconds" -o "$work/out" -i "$work/in" "$here/guest-nbs.sh" \
  snap "$iscsi_port" "$nbs_port" "$closed_port" || fail "the guest's script ended with $?"
ok "the guest snapped its own filesystem over NBS, twice, and went on writing"

for name in one two; do
  [ "$("$lunfs" snapshot show "app@$name" --json | json 'it["consistency"], it["hook"]')" = \
    "application fsfreeze" ] || fail "app@$name does not say that the guest was at rest"
  cp --sparse=always "$mount/app/.snapshots/$name/data" "$work/image"
  e2fsck -fn "$work/image" >"$work/fsck.log" 2>&1 || { cat "$work/fsck.log"; fail "e2fsck"; }
  ! grep -qi recover "$work/fsck.log" || { cat "$work/fsck.log"; fail "a journal to be replayed"; }
  ok "app@$name: e2fsck finds nothing, and no journal to be replayed"
  mount -t ext4 -o ro,loop,noload "$work/image" "$work/loop"
  (cd "$work/loop/kept" && sha256sum --quiet -c "$work/out/kept.sum") || fail "files differ"
  ok "app@$name: $(wc -l <"$work/out/kept.sum") files of then, equal checksums"
  umount "$work/loop"
done
finish

# Nobody is defined any more: the NBD door is open to this host.
for name in guest nobody; do
  "$lunfs" initiator remove "iqn.2026-11.local.test:$name" >/dev/null
done
serve --nbd "127.0.0.1:$nbd_port"
"$here/run" -t "$guest_seconds" -o "$work/out" "$here/guest-nbs.sh" multi "$nbd_port" ||
  fail "the guest's script ended with $?"
ok "ext4 under fio verify over two connections of the kernel's NBD client"
logins=$("$lunfs" lun log multi --json | json 'sum(e["event"] == "login" for e in it)')
[ "$logins" = 4 ] || fail "$logins connections, not twice two"
ok "there were two connections each time"
"$lunfs" lun export multi "$work/multi" >/dev/null
e2fsck -fn "$work/multi" >"$work/fsck.log" 2>&1 || { cat "$work/fsck.log"; fail "e2fsck of multi"; }
ok "e2fsck of the export finds nothing"
finish
say "$passed checks passed"
