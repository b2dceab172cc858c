"""Headers that HTTP allows and gRPC does not never reach a service, whose gRPC would answer INTERNAL.

Found by fuzzing: a header named `b8'` gave 500.
"""

from __future__ import annotations

import grpc
import httpx
import pytest

from dinemesh.reservation.v1 import reservation_service_pb2
from tests.edge.conftest import CALL_SECONDS
from tests.mesh.people import City, Doors, bearer
from tests.support.edge import RunningEdge
from tests.support.mesh import RunningMesh


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("b8'", "x"),
        ("|x", "x"),
        ("a*b", "x"),
        ("x-bin", "!!!"),
        ("x-foo-bin", b"\xff\xfe"),
        ("grpc-trace-bin", "zz"),
        ("grpc-tags-bin", "$$"),
        ("endpoint-load-metrics-bin", "zz"),
        ("grpc-previous-rpc-attempts", "x"),
        ("grpc-internal-encoding-request", "x"),
        ("grpc-encoding", "gzip"),
        ("grpc-encoding", "nonsense"),
        ("grpc-accept-encoding", "nonsense"),
        ("grpc-status", "5"),
        ("grpc-message", "hello"),
        ("content-encoding", "gzip"),
        ("te", "nonsense"),
        ("user-agent", b"\xff"),
        ("x-other", b"\xff\x80"),
    ],
)
async def test_a_header_that_grpc_does_not_understand_changes_nothing(
    http: httpx.AsyncClient, mesh: RunningMesh, name: str, value: str | bytes
) -> None:
    headers = httpx.Headers({"authorization": f"Bearer {mesh.token('alice', 'customer')}"})
    raw = [*headers.raw, (name.encode(), value if isinstance(value, bytes) else value.encode())]
    answer = await http.get("/v1/reservations", headers=raw)
    assert (answer.status_code, set(answer.json())) == (200, {"reservations", "nextPageToken"}), answer.text


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_a_grpc_client_may_compress(
    city: City, mesh: RunningMesh, edge: RunningEdge, doors: Doors, compression: grpc.Compression
) -> None:
    """So grpc-encoding is taken away from JSON only."""
    answer = await doors.reservation.ListReservations(
        reservation_service_pb2.ListReservationsRequest(page_token="", page_size=3),
        metadata=bearer(mesh.token("alice", "customer")),
        timeout=CALL_SECONDS,
        compression=compression,
    )
    assert list(answer.reservations) == []
