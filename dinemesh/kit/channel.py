"""Calls to other services: with a deadline, our own token, and the correlation id of the call we work on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TypeVar

import grpc

from dinemesh.kit.call import CORRELATION_KEY, TRACEPARENT_KEY, current, time_left

log = logging.getLogger(__name__)

Req = TypeVar("Req")
Res = TypeVar("Res")

_OPTIONS: list[tuple[str, int | str]] = [
    # Who may repeat a call is decided where its meaning is known, never by the library.
    ("grpc.enable_retries", 0),
    # The library waits up to two minutes between attempts to connect; after an outage calls must work again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Finds a peer that hangs or is cut off while calls wait for it. The server allows a ping every 10 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Timeouts and retries are set here, not by a TXT record of the DNS.
    ("grpc.service_config_disable_resolution", 1),
    # Two channels to one address in one process (tests) must not share a broken connection.
    ("grpc.use_local_subchannel_pool", 1),
]
# Over several instances: in turn, to those that say of themselves that they are ready. On a watch of their
# health they say NOT_SERVING well before their door closes: a planned stop fails no call, with no repetition.
_IN_TURN = json.dumps(
    {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
)


class ServiceToken:
    """This service's own token, from a file that whoever issues tokens may replace at any time."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if there is no such file."""
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._token = ""
        self._read()

    def current(self) -> str:
        """The token, read anew if the file has changed; the last one if the file is gone."""
        try:
            self._read()
        except OSError as error:
            log.warning("the token file cannot be read, the last token is used: %s", error)
        return self._token

    def _read(self) -> None:
        found = self._path.stat()
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp != self._seen:
            self._token = self._path.read_text().strip()
            self._seen = stamp


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel to `host:port`, or over several instances, `ip:port,ip:port`, to those that are ready.

    It connects when it is used; close it with `await channel.close()`. Behind a single address there may be a
    proxy, which chooses by itself: the health of one instance would be taken for that of all.
    """
    if "," not in address:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    family = "ipv6" if address.startswith("[") else "ipv4"
    options = [*_OPTIONS, ("grpc.service_config", _IN_TURN)]
    return grpc.aio.insecure_channel(f"{family}:{address}", options=options)


def travelling() -> list[tuple[str, str]]:
    """What goes with every call that we make on behalf of another: its correlation id and trace."""
    working = current.get()
    metadata: list[tuple[str, str]] = []
    if working.correlation_id:
        metadata.append((CORRELATION_KEY, working.correlation_id))
    if working.traceparent:
        metadata.append((TRACEPARENT_KEY, working.traceparent))
    return metadata


async def call(
    method: grpc.aio.UnaryUnaryMultiCallable[Req, Res],
    request: Req,
    *,
    timeout: float,
    token: ServiceToken | None = None,
) -> Res:
    """One attempt of a unary call, for `timeout` seconds or what the current caller has left if that is less.

    Raises grpc.aio.AioRpcError; `errors.from_call` tells what the other side said. After a deadline or a lost
    connection it may well have happened.
    """
    metadata = travelling()
    if token is not None:
        metadata.append(("authorization", f"Bearer {token.current()}"))
    left = time_left()
    # Set in the call: timeouts of a service config fire one to two seconds early in this library.
    deadline = timeout if left is None else min(timeout, left)
    return await method(request, timeout=deadline, metadata=grpc.aio.Metadata(*metadata))
