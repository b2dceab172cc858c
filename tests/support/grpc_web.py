"""gRPC-Web by hand: what a browser's library does, in the few lines that a test needs."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

PROTO = "application/grpc-web+proto"
_TRAILERS = 0x80


@dataclass(frozen=True)
class Answer:
    """Of a whole call."""

    http_status: int
    headers: Mapping[str, str]
    messages: list[bytes]
    trailers: dict[str, str]
    """With `grpc-status`, wherever it stood."""

    @property
    def status(self) -> int:
        return int(self.trailers["grpc-status"])


def frame(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


def frames(body: bytes) -> tuple[list[bytes], dict[str, str]]:
    """The messages and the trailers of a body. Fails where it is cut off."""
    messages: list[bytes] = []
    trailers: dict[str, str] = {}
    while body:
        kind, length = struct.unpack(">BI", body[:5])
        content, body = body[5 : 5 + length], body[5 + length :]
        assert len(content) == length, "the body ends within a frame"
        if kind & _TRAILERS:
            lines = (line.partition(":") for line in content.decode().split("\r\n") if line)
            trailers |= {name.strip().lower(): value.strip() for name, _, value in lines}
        else:
            messages.append(content)
    return messages, trailers


async def call(
    http: httpx.AsyncClient, method: str, request: bytes, headers: Mapping[str, str] | None = None
) -> Answer:
    """One call of a method ("/package.Service/Method")."""
    sent = {"content-type": PROTO, "accept": PROTO, "x-grpc-web": "1", **(headers or {})}
    answer = await http.post(method, content=frame(request), headers=sent)
    messages, trailers = frames(answer.content)
    if "grpc-status" in answer.headers:
        trailers = {name: value for name, value in answer.headers.items() if name.startswith("grpc-")}
    return Answer(answer.status_code, answer.headers, messages, trailers)
