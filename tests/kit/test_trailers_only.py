"""A refusal is one HEADERS frame that ends the stream: what proxies take for a failure.

Read from the frames of HTTP/2 themselves, since a gRPC library shows a client no difference.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.serving import LIST, WATCH, Servicer, serving

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, GOAWAY, CONTINUATION = 0, 1, 4, 7, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes((kind, flags)) + struct.pack("!I", stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header field of HPACK without index and without Huffman coding."""
    return b"\0" + b"".join(_length(len(text)) + text.encode() for text in (name, value))


def _length(number: int) -> bytes:
    """An integer with a prefix of seven bits (RFC 7541, 5.1)."""
    if number < 127:
        return bytes((number,))
    number -= 127
    assert number < 128 * 128
    return bytes((127, number & 127 | 128, number >> 7)) if number > 127 else bytes((127, number))


async def frames_of(port: int, path: str, token: str) -> list[tuple[int, bool]]:
    """The frames of the answer to an empty request: (kind, whether it ends the stream)."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test", "te": "trailers"}
    fields |= {"content-type": "application/grpc", "authorization": f"Bearer {token}"}
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(PREFACE + frame(SETTINGS, 0, 0))
    writer.write(frame(HEADERS, END_HEADERS, 1, b"".join(literal(*field) for field in fields.items())))
    writer.write(frame(DATA, END_STREAM, 1, b"\0\0\0\0\0"))
    seen: list[tuple[int, bool]] = []
    async with asyncio.timeout(10):
        while not (seen and seen[-1][1]):
            head = await reader.readexactly(9)
            kind, flags = head[3], head[4]
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            assert kind != GOAWAY
            if kind == SETTINGS and not flags & ACK:
                writer.write(frame(SETTINGS, ACK, 0))
            if int.from_bytes(head[5:], "big") == 1 and kind in (DATA, HEADERS, CONTINUATION):
                seen.append((kind, bool(flags & END_STREAM)))
    writer.close()
    return seen


@pytest.mark.parametrize("method", [LIST, WATCH])
async def test_a_refusal_is_trailers_only(tmp_path: Path, method: str) -> None:
    async def refuse(_request: Any, _context: Any) -> Any:
        raise RuntimeError

    async def refuse_stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        raise RuntimeError
        yield

    async with serving(tmp_path, Servicer(refuse, refuse_stream)) as server:
        token = server.keys.token("alice", "customer")
        assert await frames_of(server.service.port, method, token) == [(HEADERS, True)]
        assert await frames_of(server.service.port, method, "rubbish") == [(HEADERS, True)]


async def test_an_answer_has_headers_a_message_and_trailers(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        token = server.keys.token("alice", "customer")
        seen = await frames_of(server.service.port, LIST, token)
    assert [kind for kind, _ in seen] == [HEADERS, DATA, HEADERS]
