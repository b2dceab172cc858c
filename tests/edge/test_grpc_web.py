"""gRPC-Web through the edge, as a browser's library speaks it."""

from __future__ import annotations

import base64

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2

from dinemesh.reservation.v1 import reservation_pb2, reservation_service_pb2
from dinemesh.watch.v1 import watch_pb2
from tests.edge.rpcs import RPCS
from tests.mesh.people import City
from tests.support import grpc_web
from tests.support.mesh import RunningMesh

ORIGIN = "http://localhost:5173"
pb = reservation_service_pb2


def authorization(mesh: RunningMesh, sub: str, role: str = "customer") -> dict[str, str]:
    return {"authorization": f"Bearer {mesh.token(sub, role)}"}


def reason(answer: grpc_web.Answer) -> str:
    encoded = answer.trailers["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(base64.b64decode(encoded + "=" * (-len(encoded) % 4)))
    assert status.code == answer.status
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info) and info.domain == "dinemesh"
    return info.reason


async def test_a_table_is_booked(city: City, http: httpx.AsyncClient, mesh: RunningMesh) -> None:
    place, alice = await city.place(), city.customer()
    answer = await grpc_web.call(
        http,
        RPCS["CreateReservation"].path,
        alice.wish(place).SerializeToString(),
        authorization(mesh, alice.name) | {"origin": ORIGIN},
    )
    assert answer.status == 0
    (message,) = answer.messages
    booked = pb.CreateReservationResponse.FromString(message).reservation
    assert (booked.customer_id, booked.restaurant_id) == (alice.name, place.id)
    # And the page may read it.
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "grpc-status" in answer.headers["access-control-expose-headers"]


async def test_a_watch_has_all_its_messages_and_its_end(
    city: City, http: httpx.AsyncClient, mesh: RunningMesh
) -> None:
    alice = city.customer()
    booked = await alice.book(await city.place())
    await alice.cancel(booked)
    answer = await grpc_web.call(
        http,
        RPCS["WatchReservation"].path,
        pb.WatchReservationRequest(reservation_id=booked.reservation_id).SerializeToString(),
        authorization(mesh, alice.name),
    )
    said = [pb.WatchReservationResponse.FromString(message) for message in answer.messages]
    assert answer.status == 0
    assert said[-2].reservation.state == reservation_pb2.RESERVATION_STATE_CANCELLED
    assert said[-1].end.reason == watch_pb2.END_REASON_FINISHED


async def test_the_text_form_works_too(http: httpx.AsyncClient, mesh: RunningMesh) -> None:
    """For libraries that stream with the means of old browsers."""
    answer = await http.post(
        RPCS["ListReservations"].path,
        content=base64.b64encode(grpc_web.frame(b"")),
        headers={
            "content-type": "application/grpc-web-text",
            "accept": "application/grpc-web-text",
            **authorization(mesh, "alice"),
        },
    )
    assert answer.headers["content-type"].startswith("application/grpc-web-text")
    whole = b"".join(base64.b64decode(part) for part in _padded(answer.text))
    messages, trailers = grpc_web.frames(whole)
    assert len(messages) == 1 and trailers["grpc-status"] == "0"


def _padded(text: str) -> list[str]:
    """Each piece of the stream is base64 of its own."""
    return [text[at : at + 4] for at in range(0, len(text), 4)]


@pytest.mark.parametrize(
    ("rpc", "role", "code", "expected"),
    [
        ("ListReservations", None, grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING"),
        ("ListReservations", "service", grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
        ("ListReservations", "staff", grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
        ("GetReservation", "customer", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ("CreateDeposit", "customer", grpc.StatusCode.UNIMPLEMENTED, "NO_SUCH_METHOD"),
        ("RetryRefund", "operator", grpc.StatusCode.UNIMPLEMENTED, "NO_SUCH_METHOD"),
        ("WatchTimeline", None, grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING"),
    ],
)
async def test_a_refusal_is_one_of_grpc_whoever_refuses(
    http: httpx.AsyncClient,
    mesh: RunningMesh,
    rpc: str,
    role: str | None,
    code: grpc.StatusCode,
    expected: str,
) -> None:
    headers = {"origin": ORIGIN} | ({} if role is None else authorization(mesh, "alice", role))
    if role == "staff":
        headers["authorization"] = f"Bearer {mesh.token('alice', role, 'somewhere')}"
    answer = await grpc_web.call(http, RPCS[rpc].path, b"", headers)
    assert (answer.http_status, answer.messages) == (200, [])
    assert answer.headers["content-type"].startswith("application/grpc-web")
    assert (answer.status, reason(answer)) == (code.value[0], expected)
    assert "access-control-allow-origin" in answer.headers
    assert answer.trailers["grpc-message"]
