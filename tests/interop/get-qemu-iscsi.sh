#!/usr/bin/env bash
# Prints the folder of a qemu-img and qemu-io that speak iscsi://. Where the ones on PATH do not,
# the distribution's packages are downloaded and unpacked into a cache; nothing is installed, as
# installing QEMU's iSCSI driver can take another version of its tools off the machine.
#
# usage: get-qemu-iscsi.sh [CACHE]
# environment: LUNFS_QEMU_CACHE  the cache (default ${TMPDIR:-/tmp}/lunfs-qemu)
set -euo pipefail
cache=${1:-${LUNFS_QEMU_CACHE:-${TMPDIR:-/tmp}/lunfs-qemu}}

# A client that knows the protocol tries to connect and says that it failed; others know no iscsi.
speaks_iscsi() {
  command -v "$1" >/dev/null || return 1
  { timeout 20 "$1" info iscsi://127.0.0.1:1/iqn.none:none/0 2>&1 || true; } |
    grep -qi 'failed to connect'
}

# The newest version that both packages have: a module goes with no other version of the tools.
common_version() {
  local version newest=
  versions() { apt-cache madison "$1" | awk -F'|' '{ gsub(/ /, "", $2); print $2 }' | sort -u; }
  for version in $(comm -12 <(versions qemu-utils) <(versions qemu-block-extra)); do
    [ -n "$newest" ] && dpkg --compare-versions "$version" lt "$newest" || newest=$version
  done
  printf '%s' "$newest"
}

mkdir -p "$cache"
cache=$(cd "$cache" && pwd) bin=$cache/usr/bin
exec 9>"$cache/lock"
flock 9
if speaks_iscsi qemu-img && command -v qemu-io >/dev/null; then
  dirname "$(command -v qemu-img)"
  exit
fi
if ! speaks_iscsi "$bin/qemu-img"; then
  cd "$cache"
  version=$(common_version)
  [ -n "$version" ] ||
    { echo "no package qemu-block-extra in the apt sources: run apt-get update" >&2; exit 1; }
  apt-get download -q "qemu-utils=$version" "qemu-block-extra=$version" >download.log 2>&1 ||
    { cat download.log >&2; exit 1; }
  for package in ./*.deb; do dpkg -x "$package" .; done
  rm -f ./*.deb
fi
# The driver is a module: outside its usual place it is found through QEMU_MODULE_DIR.
modules=$(find "$cache" -name 'block-iscsi.so' -printf '%h\n' -quit)
for tool in qemu-img qemu-io; do
  [ -e "$bin/$tool.real" ] && continue
  mv "$bin/$tool" "$bin/$tool.real"
  printf '#!/bin/sh\nQEMU_MODULE_DIR=%s exec %s "$@"\n' "$modules" "$bin/$tool.real" >"$bin/$tool"
  chmod 755 "$bin/$tool"
done
speaks_iscsi "$bin/qemu-img" || { echo "the unpacked qemu-img does not speak iSCSI" >&2; exit 1; }
echo "$bin"
