#!/usr/bin/env bash
# The Linux kernel's initiator over two portals: SCSI reservations by sg_persist, dm-multipath whose
# paths are dropped under a verifying fio, a resize seen after a rescan, and fstrim that gives the
# pool its space back. The guest says when it wants something of the server; this script does it.
# usage: paths.sh LUNFS
set -euo pipefail
lunfs=$(realpath "${1:?usage: paths.sh LUNFS}")
# the small kernel has no handler of ALUA, which the LUN announces
export LUNFS_VM_FLAVOUR=${LUNFS_VM_FLAVOUR:-amd64}
source "$(dirname "${BASH_SOURCE[0]}")/lab.sh"

used_bytes() { "$lunfs" lun show disk --json | json 'it.get("lun", it)["used_bytes"]'; }

# What the guest asks for.
serve_guest() {
  local word id before=0 after turn=0
  while read -r line; do
    echo "$line"
    read -r _ word _ <<<"$line" || continue
    case $word in
      DROP) # one session or the other; the initiator logs in again by itself
        id=$("$lunfs" session list --json |
          json "sorted(s['id'] for s in (it if type(it) is list else it['sessions']))[$turn % 2]")
        turn=$((turn + 1))
        "$lunfs" session drop "$id" >/dev/null && say "session $id dropped" ;;
      RESIZE) "$lunfs" lun resize disk --size 320M >/dev/null && say "resized" ;;
      FILLED) before=$(used_bytes) ;;
      TRIMMED)
        after=$(used_bytes)
        say "used: $before bytes, then $after"
        [ $((before - after)) -gt $((48 << 20)) ] || fail "fstrim gave nothing back" ;;
    esac
  done
}

read -r one two <<<"$(ports 2)"
"$lunfs" pool create "$LUNFS_POOL" --size 2G >/dev/null
"$lunfs" lun create disk --size 256M >/dev/null
serve --iscsi "127.0.0.1:$one" --iscsi "127.0.0.1:$two" --advertise 10.0.2.2
"$here/run" -t "$guest_seconds" "$here/guest-paths.sh" "$one" "$two" | serve_guest ||
  fail "the guest's script failed"
ok "reservations, multipath under fio with paths dropped, a resize, fstrim"
finish
say "$passed checks passed"
