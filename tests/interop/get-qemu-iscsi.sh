#!/bin/sh
# Unpacks qemu-img and qemu-io with their iSCSI driver into a directory, without installing anything:
#
#   get-qemu-iscsi.sh DIR        prints the directory of the programs: DIR/usr/bin
#
# The driver is a module that only fits programs of the very same version, so both come from the
# distribution's own packages (qemu-utils, qemu-block-extra), whatever versions are installed beside
# them. Installing these instead may remove newer tools. A second call finds what is there.
# Needs apt-get, dpkg and libiscsi7 (apt-get install libiscsi7).
set -eu

die() { printf '%s\n' "$@" >&2; exit 1; }

# The driver is there if an unreachable target is a failed connection, not an unknown protocol.
works() {
    [ -x "$dir/usr/bin/qemu-img" ] && [ -x "$dir/usr/bin/qemu-io" ] || return 1
    LC_ALL=C "$dir/usr/bin/qemu-img" info iscsi://127.0.0.1:1/iqn.none/0 2>&1 |
        grep -q 'Failed to connect'
}

# Versions that the packages' sources offer.
versions() { apt-cache madison "$1" | awk -F'|' '{ gsub(/ /, "", $2); print $2 }' | sort -u; }

# The newest version that both packages have; the module comes with no other.
common_version() {
    list=$(mktemp)
    versions qemu-utils > "$list"
    newest=
    for candidate in $(versions qemu-block-extra | grep -Fx -f "$list" || :); do
        if [ -z "$newest" ] || dpkg --compare-versions "$candidate" gt "$newest"; then
            newest=$candidate
        fi
    done
    rm -f "$list"
    printf '%s' "$newest"
}

[ $# -eq 1 ] || { echo "usage: get-qemu-iscsi.sh DIR" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)

if ! works; then
    version=$(common_version)
    [ -n "$version" ] || die \
        "No version of qemu-utils and qemu-block-extra is offered by the package sources." \
        "The iSCSI driver only fits programs of its own version." \
        "Run apt-get update, and see apt-cache madison qemu-block-extra."
    new=$dir/unpacking.$$
    trap 'rm -rf "$new"' EXIT
    mkdir "$new"
    # An unprivileged helper user of apt may not write there; it then downloads as the caller.
    (cd "$new" && apt-get download -q "qemu-utils=$version" "qemu-block-extra=$version") >&2
    for package in "$new"/*.deb; do
        dpkg -x "$package" "$dir"
    done
    missing=$(ldd "$dir/usr/bin/qemu-img" "$dir"/usr/lib/*/qemu/block-iscsi.so 2>/dev/null |
        awk '/not found/ { print $1 }' | sort -u | tr '\n' ' ')
    [ -z "$missing" ] || die \
        "The unpacked programs miss libraries: $missing" \
        "They are those of Debian's qemu-utils and qemu-block-extra $version." \
        "For the iSCSI driver: apt-get install libiscsi7."
    works || die \
        "The unpacked qemu-img does not know iscsi://." \
        "It was unpacked from version $version into $dir." \
        "Delete that directory and try again."
fi
echo "$dir/usr/bin"
