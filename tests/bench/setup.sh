#!/usr/bin/env bash
# Installs the servers that lunfs is measured beside, and what building the client needs.
set -euo pipefail
packages=(tgt istgt nbdkit nbd-server qemu-utils btrfs-progs xfsprogs pkg-config libfuse3-dev
  libiscsi-dev libnbd-dev)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
    missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
echo "bench: installing ${missing[*]}"
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -q >/dev/null || echo "bench: apt-get update failed; going on" >&2
"${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
