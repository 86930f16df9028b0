#!/bin/bash
# In the guest: a filesystem that is written all the time, and the agent that freezes it.
# usage: guest-rest.sh NBD-PORT AGENT-PORT
set -u
nbd_port=$1 agent_port=$2
host=10.0.2.2 at=/mnt/rest

die() { echo "guest: FAILED: $*"; dmesg | tail -15; exit 1; }
say() { echo "guest: $*"; }

modprobe nbd nbds_max=1 || die "no NBD in this kernel"
nbd-client -N rest "$host" "$nbd_port" /dev/nbd0 >/tmp/nbd.log 2>&1 ||
  { cat /tmp/nbd.log; die nbd-client; }
mkfs.ext4 -q -F /dev/nbd0 || die "mkfs.ext4"
mkdir -p "$at" && mount /dev/nbd0 "$at" || die "mount"
mkdir "$at/kept" "$at/busy"
cp -a /usr/lib/python3.11/json /etc "$at/kept/" 2>/dev/null
(cd "$at/kept" && find . -type f -print0 | sort -z | xargs -0 sha256sum) >/out/kept.sum
# Not one of these files is asked to be durable: the freeze alone writes them out.
(n=0
while [ ! -e /tmp/stop ]; do
  n=$((n + 1))
  dd if=/dev/urandom of="$at/busy/$((n % 40))" bs=64k count=$((n % 9)) status=none
  [ $((n % 7)) != 0 ] || mv "$at/busy/$((n % 40))" "$at/busy/moved-$n"
  [ $((n % 13)) != 0 ] || rm -f "$at"/busy/moved-*
  echo "$n" >/tmp/number
done) &
qemu-ga -m unix-listen -p /run/agent.sock -t /run >/tmp/agent.log 2>&1 &
for _ in $(seq 100); do [ -S /run/agent.sock ] && break; sleep 0.1; done
[ -S /run/agent.sock ] || { cat /tmp/agent.log; die "the agent"; }
sleep 1
# Each connection is one of the agent's; a line `quit` ends it.
python3 - "$agent_port" <<'PYTHON' || die "the relay"
import select, socket, sys
door = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("guest: writing", flush=True)
while True:
    near, _ = door.accept()
    first = near.recv(1 << 16)
    if first == b"quit\n":
        break
    if not first:
        continue
    far = socket.socket(socket.AF_UNIX)
    far.connect("/run/agent.sock")
    far.sendall(first)
    other = {near: far, far: near}
    while other:
        for ready in select.select(list(other), [], [])[0]:
            data = ready.recv(1 << 16)
            if not data:
                other = {}
                break
            other[ready].sendall(data)
    near.close()
    far.close()
PYTHON
before=$(cat /tmp/number)
sleep 2
[ "$(cat /tmp/number)" -gt "$before" ] || die "it stays frozen"
echo later >"$at/after"
touch /tmp/stop
wait %1
umount "$at" || die "umount"
nbd-client -d /dev/nbd0 >/dev/null
say "done"
exit 0
