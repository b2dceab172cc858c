"""Ports for the servers that a test starts."""

from __future__ import annotations

import random
import socket

from local_mesh.machine import is_free

_BLOCK = 50
_claimed: list[socket.socket] = []
_left: list[int] = []


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody holds, and that no other process of tests will be given.

    A port is free until its server starts: without a claim, two workers may be given the same one, and a test
    would talk to the servers of another. They lie below the range out of which the kernel gives ports to
    clients, so that a server that a test stops finds its port free again when the test starts it.
    """
    ports: list[int] = []
    while len(ports) < count:
        if not _left:
            _left.extend(_claim_block())
        port = _left.pop()
        if is_free(port):
            ports.append(port)
    return ports


def _claim_block() -> list[int]:
    """The ports of a block that is ours until this process ends, in no order.

    A claim is the name of a socket, which the kernel gives to one process in a network, and takes back.
    """
    firsts = list(range(20000, 32000, _BLOCK))
    random.shuffle(firsts)
    for first in firsts:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0dinemesh tests, ports from {first}")
        except OSError:
            claim.close()
            continue
        _claimed.append(claim)
        block = list(range(first, first + _BLOCK))
        random.shuffle(block)
        return block
    raise RuntimeError("all ports of the tests are claimed, by these and by other processes of tests")
