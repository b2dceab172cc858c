"""What an edge like this one falls into, and that it would be noticed.

Each trap is a change of the configuration that looks harmless and that Envoy accepts, and a check. The check
passes on the edge as it is, and fails on one that has fallen into the trap: both are tested, on a real Envoy.
Behind it stands a stand-in of the services, since all of this is about Envoy alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import descriptor_pb2

from tests.edge.conftest import lasting, put_in_place
from tests.edge.stand_in import StandIn
from tests.support import grpc_web
from tests.support.edge import Config, RunningEdge
from tests.support.json_refusals import json_refusal, the_service_was_first
from tests.support.mesh import Keys
from tests.support.refusals import Refused, refusal

RESERVATION = "/dinemesh.reservation.v1.ReservationService"
SECONDS = 10.0
"""For an answer; the stand-in's are immediate."""


class Client:
    """Calls the edge, and sees what arrives behind it."""

    def __init__(self, edge: Any, behind: StandIn, http: httpx.AsyncClient) -> None:
        """`edge`: a RunningEdge, or a RunningGateway for what Istio's has too."""
        self.edge = edge
        self.behind = behind
        self.http = http
        self.channel = grpc.aio.insecure_channel(edge.address)

    def bearer(self, sub: str = "alice", role: str = "customer", **claims: Any) -> dict[str, str]:
        return {"authorization": f"Bearer {self.behind.keys.token(sub, role, **claims)}"}

    async def get(self, path: str, **headers: str) -> httpx.Response:
        return await self.http.get(path, headers=headers)

    async def list(self, **headers: str) -> httpx.Response:
        """A read of a customer, in JSON."""
        return await self.http.get("/v1/reservations", headers=self.bearer() | headers)

    async def native(self, method: str, headers: dict[str, str], body: bytes = b"") -> bytes:
        """A unary call of native gRPC."""
        call: Any = self.channel.unary_unary(method)
        answer: bytes = await call(body, metadata=tuple(headers.items()), timeout=SECONDS)
        return answer

    async def refused(self, method: str, headers: dict[str, str], body: bytes = b"") -> Refused:
        try:
            answer = await self.native(method, headers, body)
        except grpc.aio.AioRpcError as error:
            return refusal(error)
        raise AssertionError(f"this should have been refused, and was answered: {answer!r}")

    async def headers_alone(self, method: str) -> str:
        """How a call in gRPC ends that sends its headers and nothing else."""
        call: Any = self.channel.stream_stream(method)
        running = call(metadata=tuple(self.bearer().items()), timeout=SECONDS)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await running.read()
        return str(await running.details())

    async def bare(self, path: str, headers: dict[str, str], verb: str = "GET") -> bytes:
        """What a request in HTTP/1.1 is answered that no library would send; each sign of it is a byte."""
        lines = [f"{verb} {path} HTTP/1.1", "host: edge", "connection: close"]
        lines += [*(f"{name}: {value}" for name, value in headers.items()), "", ""]
        reader, writer = await asyncio.open_connection("127.0.0.1", self.edge.port)
        try:
            writer.write("\r\n".join(lines).encode("latin-1"))
            return await reader.read()
        finally:
            writer.close()

    async def unfinished(self, path: str, kind: str, body: bytes) -> str:
        """How a request in HTTP/1.1 ends of whose 100 bytes of body only the beginning comes."""
        headers = {"host": "edge", "content-type": kind, "content-length": "100"} | self.bearer()
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        reader, writer = await asyncio.open_connection("127.0.0.1", self.edge.port)
        try:
            writer.write("\r\n".join(lines).encode() + body)
            return (await reader.read()).decode()  # all of it: the connection is closed behind the answer
        finally:
            writer.close()

    def nothing_arrived(self, rpc: str) -> None:
        assert self.behind.calls(rpc) == [], "it reached the service"


# --- what must hold


async def no_token_no_cancel(client: Client) -> None:
    answer = await client.http.post("/v1/reservations/x:cancel", json={})
    client.nothing_arrived("CancelReservation")
    assert json_refusal(answer).reason == "TOKEN_MISSING"


async def anyone_lists_restaurants(client: Client) -> None:
    assert (await client.get("/v1/restaurants")).status_code == 200


async def everybody_together_is_limited(client: Client) -> None:
    statuses = [(await client.get("/v1/restaurants")).status_code for _ in range(8)]
    assert 429 in statuses, statuses


async def one_customer_is_limited(client: Client) -> None:
    me = client.bearer("greedy")
    answers = [await client.http.get("/v1/reservations", headers=me) for _ in range(8)]
    assert json_refusal(answers[-1]).reason == "RATE_LIMITED"
    other = await client.http.get("/v1/reservations", headers=client.bearer(f"modest-{time.monotonic()}"))
    assert other.status_code == 200


async def many_customers_do_not_lift_the_limit_of_one(client: Client) -> None:
    greedy = client.bearer("greedy")

    async def calls(count: int) -> list[int]:
        return [(await client.http.get("/v1/reservations", headers=greedy)).status_code for _ in range(count)]

    assert 429 in await calls(25)
    for number in range(25):
        assert (
            await client.http.get("/v1/reservations", headers=client.bearer(f"other-{number}"))
        ).status_code == 200
    # Its bucket has had a token or two since; a new one would have twenty.
    assert 429 in await calls(12)


async def a_call_in_json_has_a_deadline(client: Client) -> None:
    assert (await client.list()).status_code == 200
    left = client.behind.calls("ListReservations")[-1].seconds_left
    assert left is not None and 5 < left <= 10.5, left


async def a_service_that_takes_too_long_is_not_waited_for(client: Client) -> None:
    for _ in range(10):
        answer = await client.list(**{"x-do": "sleep 1.5"})
        if not the_service_was_first(answer):
            break
    told = json_refusal(answer)
    assert (told.status, told.reason, told.retry_after) == (504, "DEADLINE_EXCEEDED", 1)
    assert told.message == "the service did not answer in time"
    said = await client.refused(f"{RESERVATION}/ListReservations", client.bearer() | {"x-do": "sleep 1.5"})
    assert said.code == grpc.StatusCode.DEADLINE_EXCEEDED


async def a_longer_deadline_is_cut(client: Client) -> None:
    await client.list(**{"grpc-timeout": "1H"})
    left = client.behind.calls("ListReservations")[-1].seconds_left
    assert left is not None and left <= 31, left


async def a_refusal_of_a_service_is_json(client: Client) -> None:
    said = json_refusal(await client.list(**{"x-do": "refuse TRY_AGAIN_LATER"}))
    assert (said.status, said.reason, said.retry_after) == (429, "TRY_AGAIN_LATER", 2)


async def a_page_may_read_when_to_come_back(client: Client) -> None:
    answer = await client.list(**{"x-do": "refuse TRY_AGAIN_LATER", "origin": "http://localhost:3000"})
    assert answer.headers["retry-after"] == "2"
    assert "retry-after" in answer.headers.get("access-control-expose-headers", "")


async def a_page_may_read_answers(client: Client) -> None:
    origin = "http://localhost:3000"
    asked = await client.http.options(
        "/v1/reservations",
        headers={"origin": origin, "access-control-request-method": "POST"},
    )
    assert asked.headers.get("access-control-allow-origin") == origin
    answer = await client.list(origin=origin)
    assert answer.headers.get("access-control-allow-origin") == origin


async def an_unknown_path_does_not_exist(client: Client) -> None:
    said = json_refusal(await client.http.get("/v1/nonsense", headers=client.bearer()))
    assert (said.status, said.reason) == (404, "NO_SUCH_METHOD")


async def an_unknown_verb_of_ours_is_no_read(client: Client) -> None:
    answer = await client.http.get("/v1/reservations/x:frobnicate", headers=client.bearer())
    client.nothing_arrived("GetReservation")
    assert json_refusal(answer).reason == "NO_SUCH_METHOD"


async def a_misspelt_parameter_is_refused(client: Client) -> None:
    answer = await client.http.get("/v1/deposits?reservatoin=1", headers=client.bearer())
    client.nothing_arrived("ListDeposits")
    assert json_refusal(answer).reason == "INVALID_ARGUMENT"


async def the_path_says_which_one(client: Client) -> None:
    """And not the body, which would win."""
    answer = await client.http.post(
        "/v1/reservations/mine:cancel", headers=client.bearer(), json={"reservation_id": "other"}
    )
    client.nothing_arrived("CancelReservation")
    assert json_refusal(answer).reason == "INVALID_ARGUMENT"


async def a_body_of_another_shape_is_refused(client: Client) -> None:
    bodies: dict[str, list[dict[str, Any]]] = {
        # The first of these has closed a month.
        "/v1/restaurants/x/slots:close": [{"times": [[None, None]]}, {"times": [[]]}, {"times": [None]}],
        "/v1/reservations": [{"notes": "no nuts"}, {"dineTime": {"seconds": 5}}],
        "/v1/reservations/x:cancel": [{"reservationId": "y"}],
    }
    for path, several in bodies.items():
        for body in several:
            answer = await client.http.post(path, headers=client.bearer(), json=body)
            assert not client.behind.seen, f"{REACHED}: {body}"
            assert json_refusal(answer).reason == "INVALID_ARGUMENT"


async def only_json_is_held_against_shapes(client: Client) -> None:
    try:
        await client.native(f"{RESERVATION}/CreateReservation", client.bearer())
    except grpc.aio.AioRpcError as error:
        raise AssertionError(f"gRPC was refused: {refusal(error)}") from None


async def a_large_body_is_refused(client: Client) -> None:
    answer = await client.http.post("/v1/reservations", headers=client.bearer(), json={"note": "x" * 70_000})
    assert json_refusal(answer).reason == "BODY_TOO_LARGE"
    said = await client.refused(f"{RESERVATION}/CreateReservation", client.bearer(), b"x" * 70_000)
    client.nothing_arrived("CreateReservation")
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BODY_TOO_LARGE")


async def a_long_answer_arrives(client: Client) -> None:
    answer = await client.list(**{"x-do": "answer 1500"})
    assert answer.status_code == 200, answer.text[:300]
    assert len(answer.json()["reservations"]) == 1500


async def too_many_calls_are_resource_exhausted_in_grpc(client: Client) -> None:
    me = client.bearer("greedy")
    for _ in range(8):
        try:
            await client.native(f"{RESERVATION}/ListReservations", me)
        except grpc.aio.AioRpcError as error:
            said = refusal(error)
            assert said.code == grpc.StatusCode.RESOURCE_EXHAUSTED, said
            assert said.trailing["retry-after"] in ("1", "2", "3")
            return
    raise AssertionError("no call was refused")


async def a_refusal_of_the_edge_has_the_one_shape(client: Client) -> None:
    assert json_refusal(await client.get("/v1/reservations")).reason == "TOKEN_MISSING"


async def grpc_clients_get_no_json(client: Client) -> None:
    said = await client.refused(f"{RESERVATION}/ListReservations", {})
    assert (said.code, said.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
    assert said.message == "the call carries no bearer token"


async def a_watch_outlives_the_deadline_of_a_call(client: Client) -> None:
    """And a silence that is shorter than what counts as broken."""
    try:
        answer = await client.http.get(
            "/v1/reservations/x:watch", headers=client.bearer() | {"x-do": "quiet 1.2"}
        )
    except httpx.RemoteProtocolError as error:
        raise AssertionError(f"the stream broke: {error}") from None
    said = [json.loads(line) for line in answer.text.splitlines()]
    assert [next(iter(one)) for one in said] == ["heartbeat", "end"], said


async def details_are_rendered(client: Client) -> None:
    answer = await client.list(**{"x-do": "refuse TRY_AGAIN_LATER"})
    assert json_refusal(answer).reason == "TRY_AGAIN_LATER"


async def nothing_is_an_answer_too(client: Client) -> None:
    assert (await client.list()).json() == {"reservations": [], "nextPageToken": ""}


async def clients_do_not_steer_envoy(client: Client) -> None:
    answer = await client.list(**{"x-envoy-upstream-rq-timeout-ms": "100", "x-do": "sleep 0.5"})
    assert answer.status_code == 200, answer.text


async def services_do_not_come_through_the_edge(client: Client) -> None:
    service = client.bearer("reservation", "service")
    answer = await client.http.get("/v1/reservations", headers=service)
    said = await client.refused(f"{RESERVATION}/ListReservations", service)
    client.nothing_arrived("ListReservations")
    assert json_refusal(answer).reason == "PERMISSION_DENIED"
    assert said.code == grpc.StatusCode.PERMISSION_DENIED


async def internal_calls_do_not_exist(client: Client) -> None:
    for rpc in ("CreateDeposit", "RetryRefund"):
        for role in ("customer", "operator"):
            said = await client.refused(
                f"/dinemesh.deposit.v1.DepositService/{rpc}", client.bearer(role=role)
            )
            assert (said.code, said.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NO_SUCH_METHOD")
        client.nothing_arrived(rpc)


async def a_sick_service_gets_no_calls(client: Client) -> None:
    answer = await client.http.get("/v1/timeline", headers=client.bearer())
    client.nothing_arrived("ListTimelineEntries")
    assert json_refusal(answer).reason == "UNAVAILABLE"


async def the_access_log_tells_what_grpc_said(client: Client) -> None:
    answer = await client.list(**{"x-do": "refuse ETAG_MISMATCH"})
    assert answer.status_code == 409
    line = client.edge.logged(correlation_id=answer.headers["x-correlation-id"])
    assert (line["http_code"], line["grpc_status"]) == (409, "Aborted")


async def a_new_key_needs_no_restart(client: Client) -> None:
    file = client.behind.keys.jwks_file
    before = file.read_text()
    folder = client.edge.folder / "new-keys"
    folder.mkdir()
    new = Keys(folder)
    both = json.loads(before)["keys"] + json.loads(new.jwks_file.read_text())["keys"]
    try:
        put_in_place(file, json.dumps({"keys": both}))
        headers = {"authorization": f"Bearer {new.token('alice', 'customer')}"}
        end = time.monotonic() + 4
        while (await client.http.get("/v1/reservations", headers=headers)).status_code != 200:
            assert time.monotonic() < end, "the new key is not known after 4 s"
            await asyncio.sleep(0.1)
    finally:
        put_in_place(file, before)


async def keys_that_cannot_be_read_leave_those_that_were(client: Client) -> None:
    file = client.behind.keys.jwks_file
    before = file.read_text()
    headers = {"authorization": f"Bearer {client.behind.keys.token('alice', 'customer')}"}
    try:
        put_in_place(file, '{"keys": [')
        end = time.monotonic() + 20
        while not client.edge.stats("http.edge.jwt_authn.jwks_fetch_failed").popitem()[1]:
            answer = await client.http.get("/v1/reservations", headers=headers)
            assert answer.status_code == 200, f"refused for want of keys: {answer.text}"
            assert time.monotonic() < end, "the new file was not looked at"
            await asyncio.sleep(0.1)
        answer = await client.http.get("/v1/reservations", headers=headers)
        assert answer.status_code == 200, f"refused for want of keys: {answer.text}"
    finally:
        put_in_place(file, before)


async def an_expired_token_is_refused(client: Client) -> None:
    answer = await client.http.get("/v1/reservations", headers=client.bearer(seconds=-20))
    client.nothing_arrived("ListReservations")
    assert json_refusal(answer).reason == "TOKEN_EXPIRED"


async def a_token_in_an_address_is_none(client: Client) -> None:
    token = client.behind.keys.token("alice", "customer")
    said = await client.refused(f"{RESERVATION}/ListReservations?access_token={token}", {})
    client.nothing_arrived("ListReservations")
    assert said.reason == "TOKEN_MISSING"


async def a_page_calls_by_grpc_web(client: Client) -> None:
    answer = await grpc_web.call(client.http, f"{RESERVATION}/ListReservations", b"", client.bearer())
    assert (answer.http_status, answer.status, answer.messages) == (200, 0, [b""])


async def a_call_by_grpc_web_has_a_deadline(client: Client) -> None:
    for asked, allowed in ((None, 10), ("2H", 30)):
        timeout = {"grpc-timeout": asked} if asked else {}
        await grpc_web.call(client.http, f"{RESERVATION}/ListReservations", b"", client.bearer() | timeout)
        left = client.behind.calls("ListReservations")[-1].seconds_left
        assert left is not None and left <= allowed + 1, left


async def reflection_is_a_conversation(client: Client) -> None:
    call: Any = client.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    talk = call(timeout=3)
    try:
        await talk.write(b"question")  # and the stream stays open, as that of grpcurl does
        assert await talk.read() == b"question"
    except grpc.aio.AioRpcError as error:
        raise AssertionError(f"no answer: {error.code()}") from None
    finally:
        talk.cancel()


# --- what may happen to a configuration


def _manager(config: Config) -> Config:
    (listener,) = [one for one in config["static_resources"]["listeners"] if one["name"] == "edge"]
    manager: Config = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def _filters(config: Config) -> list[Config]:
    found: list[Config] = _manager(config)["http_filters"]
    return found


def _filter(config: Config, name: str) -> Config:
    (found,) = [one for one in _filters(config) if one["name"] == name]
    return found


def _settings(config: Config, name: str) -> Config:
    found: Config = _filter(config, name)["typed_config"]
    return found


def _routes(config: Config) -> list[Config]:
    (host,) = _manager(config)["route_config"]["virtual_hosts"]
    found: list[Config] = host["routes"]
    return found


def _calls(config: Config) -> list[Config]:
    """The routes that lead to a service."""
    return [one for one in _routes(config) if one.get("route", {}).get("cluster", "nowhere") != "nowhere"]


def _watches(config: Config) -> list[Config]:
    return [one for one in _calls(config) if one["name"].startswith("Watch")]


def _cors(config: Config) -> Config:
    (host,) = _manager(config)["route_config"]["virtual_hosts"]
    found: Config = host["typed_per_filter_config"]["envoy.filters.http.cors"]
    return found


TRANSCODER = "envoy.filters.http.grpc_json_transcoder"
JWT = "envoy.filters.http.jwt_authn"


def _before_the_transcoder(config: Config, name: str) -> None:
    moved = _filter(config, name)
    _filters(config).remove(moved)
    _filters(config).insert(_filters(config).index(_filter(config, TRANSCODER)), moved)


def tokens_before_the_transcoder(config: Config) -> None:
    """With rules for gRPC paths, as examples have them."""
    _before_the_transcoder(config, JWT)
    _settings(config, JWT)["rules"] = [{"match": {"prefix": "/dinemesh."}, "requirement_name": "token"}]


def our_rules_of_tokens_before_the_transcoder(config: Config) -> None:
    _before_the_transcoder(config, JWT)


def limit_of_all_before_the_transcoder(config: Config) -> None:
    """With the bucket on the routes of the calls, as examples have it."""
    _before_the_transcoder(config, "limit of all")
    settings = _settings(config, "limit of all")
    for route in _calls(config):
        route.setdefault("typed_per_filter_config", {})["limit of all"] = copy.deepcopy(settings)
    del settings["token_bucket"]


def limit_of_one_before_the_transcoder(config: Config) -> None:
    _before_the_transcoder(config, "limit of one")


def as_many_buckets_as_by_default(config: Config) -> None:
    del _settings(config, "limit of one")["max_dynamic_descriptors"]


def plain_timeout(config: Config) -> None:
    for route in _calls(config):
        route["route"].pop("max_stream_duration", None)  # two of the routes are one object
        route["route"]["timeout"] = "10s"


def header_max_alone(config: Config) -> None:
    for route in _calls(config):
        route["route"]["max_stream_duration"].pop("max_stream_duration", None)


def no_header_max(config: Config) -> None:
    for route in _calls(config):
        route["route"]["max_stream_duration"]["grpc_timeout_header_max"] = "0s"


def statuses_not_converted(config: Config) -> None:
    del _settings(config, TRANSCODER)["convert_grpc_status"]


def retry_after_not_exposed(config: Config) -> None:
    _cors(config)["expose_headers"] = "x-correlation-id"


def raw_paths_answered_directly(config: Config) -> None:
    """Envoy's CORS passes over routes without a cluster, and the transcoder does not mind."""
    for route in _routes(config):
        if route.get("route", {}).get("cluster") == "nowhere":
            del route["route"]
            route["direct_response"] = {"status": 404}


def unknown_paths_let_through(config: Config) -> None:
    del _settings(config, TRANSCODER)["request_validation_options"]["reject_unknown_method"]


def unknown_verbs_let_through(config: Config) -> None:
    del _settings(config, TRANSCODER)["match_unregistered_custom_verb"]


def unknown_parameters_let_through(config: Config) -> None:
    options = _settings(config, TRANSCODER)["request_validation_options"]
    del options["reject_unknown_query_parameters"]
    _settings(config, TRANSCODER)["ignore_unknown_query_parameters"] = True


def bodies_of_any_shape_let_through(config: Config) -> None:
    _filters(config).remove(_filter(config, "shape of bodies"))


def changes_routed_as_reads(config: Config) -> None:
    _routes(config).remove(next(one for one in _routes(config) if one["name"] == "a change in JSON"))


def every_body_taken_for_json(config: Config) -> None:
    del _filter(config, "shape of bodies")["disabled"]


def bodies_that_contradict_paths_let_through(config: Config) -> None:
    """By both who would refuse them."""
    bodies_of_any_shape_let_through(config)
    del _settings(config, TRANSCODER)["request_validation_options"]["reject_binding_body_field_collisions"]


def limit_of_the_transcoder_instead_of_the_buffer(config: Config) -> None:
    """Which is one for JSON alone."""
    _filters(config).remove(_filter(config, "envoy.filters.http.buffer"))
    _settings(config, TRANSCODER)["max_request_body_size"] = 65536
    for route in _routes(config):
        route.get("typed_per_filter_config", {}).pop("envoy.filters.http.buffer", None)


def answers_as_long_as_by_default(config: Config) -> None:
    del _settings(config, TRANSCODER)["max_response_body_size"]


def limits_as_unavailable(config: Config) -> None:
    for name in ("limit of all", "limit of one"):
        del _settings(config, name)["rate_limited_as_resource_exhausted"]
    # Our replies say the status of a refusal themselves, so both have to go.
    del _manager(config)["local_reply_config"]


def plain_local_replies(config: Config) -> None:
    del _manager(config)["local_reply_config"]


def json_for_everybody(config: Config) -> None:
    replies = _manager(config)["local_reply_config"]
    replies["mappers"] = [
        one for one in replies["mappers"] if "application/grpc" not in json.dumps(one["filter"])
    ]


def watches_like_calls(config: Config) -> None:
    (read,) = [one for one in _calls(config) if one["name"] == "GetReservation"]
    for route in _watches(config):
        route["route"]["max_stream_duration"] = read["route"]["max_stream_duration"]


def watches_with_a_timeout(config: Config) -> None:
    for route in _watches(config):
        del route["route"]["max_stream_duration"]
        route["route"]["timeout"] = "0.5s"


def idle_below_the_heartbeat(config: Config) -> None:
    for route in _watches(config):
        route["route"]["idle_timeout"] = "0.4s"


def details_not_in_the_descriptors(config: Config) -> None:
    settings = _settings(config, TRANSCODER)
    whole = Path(settings["proto_descriptor"])
    files = descriptor_pb2.FileDescriptorSet.FromString(whole.read_bytes())
    kept = [one for one in files.file if one.name != "google/rpc/error_details.proto"]
    poor = whole.with_name("without-details.binpb")
    poor.write_bytes(descriptor_pb2.FileDescriptorSet(file=kept).SerializeToString())
    settings["proto_descriptor"] = str(poor)


def defaults_left_out(config: Config) -> None:
    del _settings(config, TRANSCODER)["print_options"]["always_print_primitive_fields"]


def this_machine_trusted(config: Config) -> None:
    manager = _manager(config)
    manager["internal_address_config"] = {"cidr_ranges": []}  # which means the usual ones
    del manager["early_header_mutation_extensions"]


def roles_not_checked(config: Config) -> None:
    _filters(config).remove(_filter(config, "envoy.filters.http.rbac"))


def a_service_routed_by_its_prefix(config: Config) -> None:
    prefix = "/dinemesh.deposit.v1.DepositService/"
    _routes(config).insert(0, {"match": {"prefix": prefix}, "route": {"cluster": "deposit"}})


def panic_threshold_as_by_default(config: Config) -> None:
    for cluster in config["static_resources"]["clusters"]:
        cluster.pop("common_lb_config", None)


def status_not_kept(config: Config) -> None:
    _filters(config).remove(_filter(config, "grpc status"))


def keys_from_a_file(config: Config) -> None:
    provider = _settings(config, JWT)["providers"]["dinemesh"]
    (keys,) = [one for one in config["static_resources"]["listeners"] if one["name"] == "keys"]
    manager = keys["filter_chains"][0]["filters"][0]["typed_config"]
    body = manager["route_config"]["virtual_hosts"][0]["routes"][0]["direct_response"]["body"]
    del provider["remote_jwks"]
    provider["local_jwks"] = body  # with its watched directory


def keys_fetched_by_calls(config: Config) -> None:
    del _settings(config, JWT)["providers"]["dinemesh"]["remote_jwks"]["async_fetch"]


def clocks_as_far_apart_as_by_default(config: Config) -> None:
    del _settings(config, JWT)["providers"]["dinemesh"]["clock_skew_seconds"]


def tokens_from_anywhere(config: Config) -> None:
    del _settings(config, JWT)["providers"]["dinemesh"]["from_headers"]


def routes_for_grpc_alone(config: Config) -> None:
    """The route is chosen while the type is still that of gRPC-Web."""
    _filters(config).remove(_filter(config, "route again"))
    for route in _calls(config):
        route["match"]["grpc"] = {}


def route_read_once(config: Config) -> None:
    """And with it the deadline, while the request is no gRPC yet."""
    _filters(config).remove(_filter(config, "route again"))


def conversations_buffered(config: Config) -> None:
    for route in _calls(config):
        route.get("typed_per_filter_config", {}).pop("envoy.filters.http.buffer", None)


# --- the table

Check = Callable[[Client], Awaitable[None]]


@dataclass(frozen=True)
class Trap:
    fall: Callable[[Config], None]
    check: Check
    values: dict[str, Any] = field(default_factory=dict)
    """What of the edge the check needs otherwise, such as small limits."""
    shows: str = field(kw_only=True)
    """What the check complains about on the edge that has fallen, as a regular expression: it is this that is
    wrong, and not that the machine was slow or something else is broken."""


FEW_OF_ALL = {"rate_per_second": 1, "rate_burst": 3}
FEW_OF_ONE = {"customer_rate_per_second": 1, "customer_rate_burst": 3}
TWENTY_OF_ONE = {"customer_rate_per_second": 1, "customer_rate_burst": 20}
HURRY = {"default_deadline_seconds": 0.5, "longest_deadline_seconds": 1}

REACHED = "it reached the service"
ANSWERED = "this should have been refused, and was answered"
TAKEN = "^200 "
BROKE = "the stream broke"

TRAPS = [
    Trap(tokens_before_the_transcoder, no_token_no_cancel, shows=REACHED),
    Trap(our_rules_of_tokens_before_the_transcoder, anyone_lists_restaurants, shows="assert 401 == 200"),
    Trap(
        limit_of_all_before_the_transcoder,
        everybody_together_is_limited,
        FEW_OF_ALL,
        shows=r"assert 429 in \[200, 200",
    ),
    Trap(limit_of_one_before_the_transcoder, one_customer_is_limited, FEW_OF_ONE, shows=TAKEN),
    Trap(
        as_many_buckets_as_by_default,
        many_customers_do_not_lift_the_limit_of_one,
        TWENTY_OF_ONE,
        shows=r"assert 429 in \[200, 200",
    ),
    Trap(plain_timeout, a_call_in_json_has_a_deadline, shows="^None"),
    Trap(header_max_alone, a_service_that_takes_too_long_is_not_waited_for, HURRY, shows=TAKEN),
    Trap(no_header_max, a_longer_deadline_is_cut, shows=r"^3[56]\d\d\."),
    Trap(
        statuses_not_converted,
        a_refusal_of_a_service_is_json,
        shows="^429 {'content-type': 'application/grpc'",
    ),
    Trap(
        retry_after_not_exposed,
        a_page_may_read_when_to_come_back,
        shows="assert 'retry-after' in 'x-correlation-id'",
    ),
    Trap(
        raw_paths_answered_directly, a_page_may_read_answers, shows="assert None == 'http://localhost:3000'"
    ),
    Trap(
        unknown_paths_let_through, an_unknown_path_does_not_exist, shows=r"\(503, 'UNAVAILABLE'\) == \(404,"
    ),
    Trap(unknown_verbs_let_through, an_unknown_verb_of_ours_is_no_read, shows=REACHED),
    Trap(unknown_parameters_let_through, a_misspelt_parameter_is_refused, shows=REACHED),
    Trap(bodies_that_contradict_paths_let_through, the_path_says_which_one, shows=REACHED),
    Trap(bodies_of_any_shape_let_through, a_body_of_another_shape_is_refused, shows=REACHED),
    Trap(changes_routed_as_reads, a_body_of_another_shape_is_refused, shows=REACHED),
    Trap(
        every_body_taken_for_json,
        only_json_is_held_against_shapes,
        shows="gRPC was refused: .*NO_SUCH_METHOD",
    ),
    Trap(limit_of_the_transcoder_instead_of_the_buffer, a_large_body_is_refused, shows=ANSWERED),
    Trap(answers_as_long_as_by_default, a_long_answer_arrives, shows="assert 503 == 200"),
    Trap(
        limits_as_unavailable,
        too_many_calls_are_resource_exhausted_in_grpc,
        FEW_OF_ONE,
        shows="StatusCode.UNAVAILABLE.* == <StatusCode.RESOURCE_EXHAUSTED",
    ),
    Trap(
        plain_local_replies,
        a_refusal_of_the_edge_has_the_one_shape,
        shows="^401 .*'content-type': 'text/plain'",
    ),
    Trap(json_for_everybody, grpc_clients_get_no_json, shows="'' != 'TOKEN_MISSING'"),
    Trap(watches_like_calls, a_watch_outlives_the_deadline_of_a_call, HURRY, shows=BROKE),
    Trap(watches_with_a_timeout, a_watch_outlives_the_deadline_of_a_call, HURRY, shows=BROKE),
    Trap(idle_below_the_heartbeat, a_watch_outlives_the_deadline_of_a_call, HURRY, shows=BROKE),
    Trap(
        details_not_in_the_descriptors, details_are_rendered, shows="^429 {'content-type': 'application/grpc'"
    ),
    Trap(defaults_left_out, nothing_is_an_answer_too, shows="assert {} == {"),
    Trap(this_machine_trusted, clients_do_not_steer_envoy, shows="assert 504 == 200"),
    Trap(roles_not_checked, services_do_not_come_through_the_edge, shows=ANSWERED),
    Trap(a_service_routed_by_its_prefix, internal_calls_do_not_exist, shows=ANSWERED),
    Trap(panic_threshold_as_by_default, a_sick_service_gets_no_calls, shows=TAKEN),
    Trap(status_not_kept, the_access_log_tells_what_grpc_said, shows="'Unknown' != 'Aborted'"),
    Trap(
        keys_fetched_by_calls,
        keys_that_cannot_be_read_leave_those_that_were,
        shows="refused for want of keys",
    ),
    Trap(keys_from_a_file, a_new_key_needs_no_restart, shows="the new key is not known"),
    Trap(clocks_as_far_apart_as_by_default, an_expired_token_is_refused, shows=REACHED),
    Trap(tokens_from_anywhere, a_token_in_an_address_is_none, shows=ANSWERED),
    Trap(routes_for_grpc_alone, a_page_calls_by_grpc_web, shows=r"\(200, 12, \[\]\) == \(200, 0,"),
    Trap(route_read_once, a_call_by_grpc_web_has_a_deadline, shows="^None"),
    Trap(
        conversations_buffered, reflection_is_a_conversation, shows="no answer: StatusCode.DEADLINE_EXCEEDED"
    ),
]


@pytest.fixture(scope="module")
def sick(stand_in: StandIn) -> Iterator[StandIn]:
    """Stands where history should be, and says NOT_SERVING."""
    sick = StandIn(stand_in.keys, healthy=False)
    yield sick
    sick.stop()


@asynccontextmanager
async def client_of(edge: Any, behind: StandIn) -> AsyncIterator[Client]:
    behind.seen.clear()
    async with httpx.AsyncClient(base_url=edge.url, timeout=SECONDS) as http:
        client = Client(edge, behind, http)
        yield client
        await client.channel.close()


@pytest.fixture(scope="module")
def edges(
    stand_in: StandIn, sick: StandIn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[dict[str, Any]], RunningEdge]]:
    """The edge as it is configured, one for each set of values."""
    started: dict[str, RunningEdge] = {}

    def edge(values: dict[str, Any]) -> RunningEdge:
        key = json.dumps(values)
        if key not in started:
            started[key] = RunningEdge(
                stand_in,
                tmp_path_factory.mktemp("edge"),
                addresses={"history": sick.address},
                mutate=lasting,
                **values,
            )
            started[key].start()
        return started[key]

    yield edge
    for one in started.values():
        one.stop()


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.fall.__name__)
async def test_the_edge_stands_where_one_in_the_trap_falls(
    trap: Trap,
    stand_in: StandIn,
    sick: StandIn,
    edges: Callable[[dict[str, Any]], RunningEdge],
    tmp_path: Path,
) -> None:
    edge = edges(trap.values)
    sick.seen.clear()
    async with client_of(edge, stand_in) as client:
        await trap.check(client)
    fallen = edge.mutant(tmp_path, trap.fall)
    fallen.start()
    try:
        async with client_of(fallen, stand_in) as client:
            with pytest.raises(AssertionError, match=trap.shows or None):
                await trap.check(client)
    finally:
        fallen.kill()
