#!/usr/bin/env bash
# A backup of a disk that the Linux kernel is writing: the guest's filesystem comes to rest through
# the real QEMU guest agent (`--quiesce qga:`), and the copy of the snapshot needs no repair.
# usage: rest.sh LUNFS
set -euo pipefail
lunfs=$(realpath "${1:?usage: rest.sh LUNFS}")
export LUNFS_VM_EXTRA="${LUNFS_VM_EXTRA:-} qemu-guest-agent"
source "$(dirname "${BASH_SOURCE[0]}")/lab.sh"

read -r nbd_port agent_port < <(ports 2)
mount=$work/mnt
mkdir -p "$work/out" "$work/loop" "$mount"
"$lunfs" pool create "$LUNFS_POOL" --size 2G >/dev/null
"$lunfs" lun create rest --size 256M >/dev/null
serve --mount "$mount" --nbd "127.0.0.1:$nbd_port"

relay= guest=
before_cleanup() {
  local pid
  for pid in $relay $guest; do kill "$pid" 2>/dev/null && wait "$pid" || true; done
  ! grep -q " $work/loop " /proc/self/mounts || umount "$work/loop"
}

# The agent's socket in the guest, as a socket here.
/usr/bin/python3 "$here/relay.py" "$work/agent.sock" "$agent_port" &
relay=$!
"$here/run" -t "$guest_seconds" -o "$work/out" \
  -f "$agent_port:7000" "$here/guest-rest.sh" "$nbd_port" 7000 >"$work/guest.log" 2>&1 &
guest=$!
until grep -q 'guest: writing' "$work/guest.log"; do
  kill -0 "$guest" 2>/dev/null || { cat "$work/guest.log"; fail "the guest ended"; }
  sleep 0.2
done
"$lunfs" snapshot create rest@night --quiesce "qga:$work/agent.sock" >"$work/made" 2>&1 ||
  { cat "$work/made" "$work/guest.log"; fail "the snapshot"; }
[ "$("$lunfs" snapshot show rest@night --json | json 'it["consistency"], it["hook"]')" = \
  "application qga" ] || fail "the snapshot does not say that the guest was at rest"
ok "the guest's agent froze and thawed it; the snapshot says so"
exec 4<>"/dev/tcp/127.0.0.1/$agent_port" && echo quit >&4
wait "$guest" || { cat "$work/guest.log"; fail "the guest's script ended with $?"; }
guest=
ok "the guest went on writing afterwards"

cp --sparse=always "$mount/rest/.snapshots/night/data" "$work/image"
e2fsck -fn "$work/image" >"$work/fsck.log" 2>&1 || { cat "$work/fsck.log"; fail "e2fsck"; }
! grep -qi recover "$work/fsck.log" || { cat "$work/fsck.log"; fail "a journal to be replayed"; }
ok "e2fsck of the copy finds nothing, and no journal to be replayed"
mount -t ext4 -o ro,loop,noload "$work/image" "$work/loop"
(cd "$work/loop/kept" && sha256sum --quiet -c "$work/out/kept.sum") || fail "files differ"
[ ! -e "$work/loop/after" ] || fail "a file of later"
ok "$(wc -l <"$work/out/kept.sum") files of then, equal checksums"
umount "$work/loop"
finish
say "$passed checks passed"
