"""Ports for the servers that a test starts."""

from __future__ import annotations

import random

from local_mesh.machine import is_free

_handed_out: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody holds.

    They lie below the range out of which the kernel gives ports to clients, so that a server that a test
    stops finds its port free again when the test starts it.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.randint(20000, 32000)
        if port not in _handed_out and is_free(port):
            _handed_out.add(port)
            ports.append(port)
    return ports
