"""The edge as istiod configures it, in a real Envoy: JSON, tokens, roles, tries, and who may not pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from tests.edge.stand_in import StandIn
from tests.istio.gateway import RunningGateway, filters

ID = "5f0f2a8e-7c1c-4a0e-9d51-3a0b8f3f2b11"
CANCEL = f"/v1/reservations/{ID}:cancel"
GRPC_CANCEL = "/dinemesh.reservation.v1.ReservationService/CancelReservation"
BODY: dict[str, dict[str, Any]] = {"GET": {}, "POST": {"json": {}}}
GRPC_LIST = "/dinemesh.restaurant.v1.RestaurantService/ListRestaurants"


class Edge(RunningGateway):
    """With one stand-in behind it that is all four services."""

    def __init__(self, folder: Path, behind: StandIn, mutate: Any = None) -> None:
        super().__init__(behind, folder, mutate=mutate)
        self.keys = behind.keys
        self.behind = behind
        self.start()

    def json(self, verb: str, path: str, role: str = "", **more: Any) -> httpx.Response:
        headers = {"x-do": more.pop("do", "")} | more.pop("headers", {})
        if role:
            headers["authorization"] = f"Bearer {self.keys.token('alice', role, ID)}"
        return httpx.request(verb, self.url + path, headers=headers, timeout=15, **more)

    def grpc(self, method: str, role: str = "", do: str = "") -> grpc.StatusCode:
        metadata = [("x-do", do)]
        if role:
            metadata.append(("authorization", f"Bearer {self.keys.token('alice', role, ID)}"))
        with grpc.insecure_channel(self.address) as channel:
            call: Any = channel.unary_unary(method)
            try:
                call(b"", metadata=metadata, timeout=15)
            except grpc.RpcError as error:
                assert isinstance(error, grpc.Call)
                return error.code()
        return grpc.StatusCode.OK


@pytest.fixture(scope="module")
def edge_of_module(tmp_path_factory: pytest.TempPathFactory, behind: StandIn) -> Iterator[Edge]:
    edge = Edge(tmp_path_factory.mktemp("edge"), behind)
    yield edge
    edge.stop()


@pytest.fixture
def edge(edge_of_module: Edge) -> Edge:
    edge_of_module.behind.seen.clear()
    return edge_of_module


def test_json_without_a_token_cancels_nothing(edge: Edge) -> None:
    answer = edge.json("POST", CANCEL, json={})
    assert answer.status_code == 401
    assert answer.json()["details"][0]["reason"] == "TOKEN_MISSING"
    assert edge.grpc(GRPC_CANCEL) == grpc.StatusCode.UNAUTHENTICATED
    assert not edge.behind.seen


def test_json_with_a_token_cancels_what_it_names(edge: Edge) -> None:
    assert edge.json("POST", CANCEL, "customer", json={}).status_code == 200
    assert edge.grpc(GRPC_CANCEL, "customer") == grpc.StatusCode.OK
    assert [one.method for one in edge.behind.seen] == [GRPC_CANCEL] * 2
    # The service checks the token again.
    assert all("authorization" in one.metadata for one in edge.behind.seen)


@pytest.mark.parametrize("path", [CANCEL, "/v1/restaurants"])
def test_a_service_may_not_call_through_the_edge(edge: Edge, path: str) -> None:
    verb = "POST" if path == CANCEL else "GET"
    answer = edge.json(verb, path, "service", **BODY[verb])
    assert answer.status_code == 403
    assert edge.grpc(GRPC_LIST, "service") == grpc.StatusCode.PERMISSION_DENIED
    assert not edge.behind.seen


@pytest.mark.parametrize("path", [CANCEL, "/v1/restaurants"])
def test_a_token_that_is_not_valid_is_refused_where_none_would_do(edge: Edge, path: str) -> None:
    verb = "POST" if path == CANCEL else "GET"
    # Istio has patience of a minute with the clocks of others; the services have none.
    expired = edge.keys.token("alice", "customer", seconds=-90)
    for word in ("nonsense", expired):
        answer = edge.json(
            verb,
            path,
            headers={"authorization": f"Bearer {word}"},
            **BODY[verb],
        )
        assert answer.status_code == 401, word
    assert not edge.behind.seen


@pytest.mark.parametrize("role", ["", "customer", "staff", "operator"])
def test_anyone_may_see_restaurants(edge: Edge, role: str) -> None:
    assert edge.json("GET", "/v1/restaurants", role).status_code == 200
    assert edge.grpc(GRPC_LIST, role) == grpc.StatusCode.OK


@pytest.mark.parametrize("rpc", ["CreateDeposit", "RetryRefund"])
def test_what_has_no_route_does_not_exist_for_anybody(edge: Edge, rpc: str) -> None:
    method = f"/dinemesh.deposit.v1.DepositService/{rpc}"
    assert edge.grpc(method, "operator") == grpc.StatusCode.UNIMPLEMENTED
    assert edge.json("POST", method, "operator", json={}).status_code in (404, 405, 415)
    assert not edge.behind.seen


@pytest.mark.parametrize(
    ("verb", "path", "status", "more"),
    [
        ("GET", "/v1/nothing", 404, {}),
        ("POST", "/nothing", 404, {"json": {}}),
        ("PUT", "/v1/reservations", 405, {"json": {}}),
        ("POST", CANCEL, 415, {"content": "{}", "headers": {"content-type": "text/plain"}}),
        ("POST", f"{CANCEL}?reservation_id=another", 400, {"json": {}}),
        ("POST", "/v1/reservations", 413, {"json": {"note": "x" * 70_000}}),
        ("GET", "/v1/restaurants?frobnicate=1", 400, {}),
    ],
)
def test_the_traps_of_json_are_closed_here_too(
    edge: Edge, verb: str, path: str, status: int, more: dict[str, Any]
) -> None:
    assert edge.json(verb, path, "customer", **more).status_code == status
    assert not edge.behind.seen


def test_a_page_of_this_machine_may_ask_first(edge: Edge) -> None:
    asked = {"origin": "http://localhost:8000", "access-control-request-method": "POST"}
    answer = edge.json("OPTIONS", CANCEL, headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "http://localhost:8000"


def test_every_call_has_a_correlation_id_and_a_deadline(edge: Edge) -> None:
    answer = edge.json("GET", "/v1/restaurants")
    (seen,) = edge.behind.seen
    assert answer.headers["x-correlation-id"] == seen.metadata["x-correlation-id"]
    assert seen.seconds_left is not None
    assert 9 < seen.seconds_left <= 10


@pytest.mark.parametrize(("asked", "given"), [("2S", 2), ("20S", 20), ("100S", 30)])
def test_a_client_may_ask_for_less_time_or_for_more(edge: Edge, asked: str, given: float) -> None:
    assert edge.json("POST", CANCEL, "customer", json={}, headers={"grpc-timeout": asked}).status_code == 200
    (seen,) = edge.behind.seen
    assert seen.seconds_left is not None
    assert given - 1 < seen.seconds_left <= given


def test_reads_are_tried_three_times_and_changes_once(edge: Edge) -> None:
    assert edge.json("GET", "/v1/restaurants", do="refuse UNAVAILABLE").status_code == 503
    assert len(edge.behind.calls("ListRestaurants")) == 3
    assert edge.json("POST", CANCEL, "customer", json={}, do="refuse UNAVAILABLE").status_code == 503
    assert len(edge.behind.calls("CancelReservation")) == 1


def test_a_refusal_of_a_service_comes_through_with_its_retry_time(edge: Edge) -> None:
    answer = edge.json("GET", "/v1/restaurants", do="refuse TRY_AGAIN_LATER")
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "2"
    assert answer.json()["details"][0]["reason"] == "TRY_AGAIN_LATER"


def test_translation_behind_istios_own_filters_lets_nothing_through(tmp_path: Path, behind: StandIn) -> None:
    def moved(made: Any) -> None:
        there = filters(made)
        (translation,) = (one for one in there if one["name"].endswith("grpc_json_transcoder"))
        there.remove(translation)
        there.insert(-1, translation)

    behind.seen.clear()
    edge = Edge(tmp_path, behind, moved)
    try:
        for role in ("", "customer"):
            assert edge.json("POST", CANCEL, role, json={}).status_code in (401, 403)
        assert not behind.seen
    finally:
        edge.stop()


def test_without_the_roles_a_cancel_needs_no_token_and_this_suite_would_notice(
    tmp_path: Path, behind: StandIn
) -> None:
    def without(made: Any) -> None:
        there = filters(made)
        there[:] = [one for one in there if one["name"] not in ("envoy.filters.http.rbac", "roles")]

    behind.seen.clear()
    edge = Edge(tmp_path, behind, without)
    try:
        assert edge.json("POST", CANCEL, json={}).status_code == 200
        assert behind.seen
    finally:
        edge.stop()
