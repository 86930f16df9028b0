"""A Unix socket that leads to a port of this machine: relay.py SOCKET PORT, till it is killed."""

import select
import socket
import sys

door = socket.socket(socket.AF_UNIX)
door.bind(sys.argv[1])
door.listen(4)
while True:
    near, _ = door.accept()
    far = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
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
