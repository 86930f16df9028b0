#!/usr/bin/env bash
# Installs what building and testing need, from the one list below, and only what is missing.
# It asks the package system only when something is missing, so it costs nothing the second time.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin

# package            a program, header or module that says it is there
list="
build-essential      cc
ca-certificates      /etc/ssl/certs/ca-certificates.crt
fuse3                fusermount3
e2fsprogs            mke2fs
xfsprogs             mkfs.xfs
jq                   jq
python3              /usr/bin/python3
python3-libnbd       python:nbd
libnbd-bin           nbdcopy
libiscsi-bin         iscsi-inq
qemu-utils           qemu-img
fio                  fio
attr                 setfattr
rsync                rsync
postgresql           /usr/lib/postgresql/*/bin/initdb
restic               restic
util-linux           flock
procps               ps
iproute2             ip
samba                smbd
smbclient            smbclient
samba-testsuite      smbtorture
samba-vfs-modules    /usr/lib/*/samba/vfs/shadow_copy2.so
python3-samba        python:samba.samba3.libsmb_samba_internal
nfs-ganesha          ganesha.nfsd
nfs-ganesha-vfs      /usr/lib/*/ganesha/libfsalvfs.so
libnfs13             /usr/lib/*/libnfs.so.13
rpcbind              rpcbind
systemd              systemd-analyze
"

present() {
  case $1 in
    /*) compgen -G "$1" >/dev/null ;;
    python:*) /usr/bin/python3 -c "import ${1#python:}" 2>/dev/null ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

missing=()
while read -r package proof; do
  [ -z "$package" ] || present "$proof" || missing+=("$package")
done <<<"$list"

if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null ||
    { echo "setup: no apt-get here: install what corresponds to: ${missing[*]}" >&2; exit 1; }
  as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null ||
      { echo "setup: run as root, or install: ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
  fi
  echo "setup: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  "${as_root[@]}" apt-get update -q >/dev/null || echo "setup: apt-get update failed; going on" >&2
  "${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
fi

# The compiler: the distribution's where it is new enough, else the user's own.
need=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml" | head -1)
have=$(cargo --version 2>/dev/null | awk '{ print $2 }')
if [ "$(printf '%s\n' "$need" "${have:-0}" | sort -V | head -1)" != "$need" ]; then
  echo "setup: Rust $need or newer is needed, found ${have:-none}; install it with rustup" >&2
  exit 1
fi
[ -e /dev/fuse ] || echo "setup: no /dev/fuse: the mount cannot be tested on this machine" >&2
