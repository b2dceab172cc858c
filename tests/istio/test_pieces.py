"""Each piece that istio/edge/filters.yaml brings to the gateway does something: without it, a check is red.

Checks of what both edges have are those of tests/edge; the rest are here. A piece without a check is named
with the reason, so that none is forgotten.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from istio import generate
from tests.edge.stand_in import StandIn
from tests.edge.test_hardening import (
    FEW_OF_AN_ADDRESS,
    an_address_cannot_be_made_up,
    nobody_says_who_he_is_but_by_token,
    one_address_does_not_lock_out_another,
    what_does_not_exist_is_limited_too,
)
from tests.edge.test_identity_at_the_edge import signed
from tests.edge.test_traps import (
    FEW_OF_ALL,
    FEW_OF_ONE,
    Client,
    a_body_of_another_shape_is_refused,
    a_large_body_is_refused,
    a_page_calls_by_grpc_web,
    a_page_may_read_answers,
    a_refusal_of_the_edge_has_the_one_shape,
    client_of,
    everybody_together_is_limited,
    one_customer_is_limited,
    too_many_calls_are_resource_exhausted_in_grpc,
)
from tests.istio import shipped
from tests.istio.gateway import RunningGateway, filters, lasting, manager
from tests.policy.ways import in_camel_case
from tests.support.json_refusals import json_refusal

Check = Callable[[Client], Awaitable[None]]
Change = Callable[[Any], object]


# --- what must hold


async def an_answer_tells_its_correlation_id(client: Client) -> None:
    answer = await client.list()
    seen = client.behind.calls("ListReservations")[-1].metadata
    assert answer.headers.get("x-correlation-id") == seen.get("x-correlation-id") is not None


async def an_answer_belongs_into_no_cache(client: Client) -> None:
    assert (await client.list()).headers.get("cache-control") == "no-store"


async def nonsense_about_compression_changes_nothing(client: Client) -> None:
    assert (await client.list(**{"grpc-encoding": "nonsense"})).status_code == 200


async def json_reaches_the_service(client: Client) -> None:
    answer = await client.http.post("/v1/reservations/x:cancel", json={}, headers=client.bearer())
    assert answer.status_code == 200, answer.text
    assert client.behind.calls("CancelReservation")


async def a_refusal_in_json_keeps_its_grpc_status(client: Client) -> None:
    answer = await client.list(**{"x-do": "refuse ETAG_MISMATCH"})
    assert (answer.status_code, answer.headers.get("grpc-status")) == (409, "10")


async def the_case_of_the_scheme_does_not_count(client: Client) -> None:
    sent = client.bearer()["authorization"].replace("Bearer", "bearer")
    answer = await client.get("/v1/reservations", authorization=sent)
    assert answer.status_code == 200, answer.text


async def a_token_has_an_end(client: Client) -> None:
    token = signed(client.behind.keys, lambda claims, _header: claims.pop("exp") and None)
    said = json_refusal(await client.get("/v1/restaurants", authorization=f"Bearer {token}"))
    assert (said.status, said.reason) == (401, "TOKEN_INVALID")


async def a_list_of_roles_is_none(client: Client) -> None:
    token = signed(client.behind.keys, lambda claims, _header: claims.update(role=["customer"]))
    said = json_refusal(await client.get("/v1/reservations", authorization=f"Bearer {token}"))
    assert (said.status, said.reason) == (403, "PERMISSION_DENIED")


async def what_envoys_tell_each_other_stays_inside(client: Client) -> None:
    told = [name for name in (await client.list()).headers if name.startswith("x-envoy-")]
    assert not told, told


async def the_server_has_our_name(client: Client) -> None:
    assert (await client.list()).headers.get("server") == "dinemesh"


async def a_doubled_slash_is_one(client: Client) -> None:
    answer = await client.http.send(written(client, "GET", "/v1//restaurants"))
    assert answer.status_code == 200, answer.text


async def dots_lead_where_they_say(client: Client) -> None:
    answer = await over_the_wire(client, b"GET /v1/x/../restaurants HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 "), answer


async def a_call_by_another_verb_is_none(client: Client) -> None:
    request = written(client, "GET", METHOD, headers={"content-type": "application/grpc", "te": "trailers"})
    answer = await client.http.send(request)
    assert (answer.status_code, answer.headers.get("grpc-status")) == (200, "12"), answer.headers
    assert not client.behind.seen, client.behind.seen


async def what_nobody_has_is_so_for_everybody(client: Client) -> None:
    for headers in ({}, client.bearer(), client.bearer("reservation", "service")):
        said = await client.refused("/dinemesh.deposit.v1.DepositService/RetryRefund", headers)
        assert (said.code.name, said.reason) == ("UNIMPLEMENTED", "NO_SUCH_METHOD")


def refuses(verb: str, path: str, status: int, **more: Any) -> Check:
    """With this status, in the one shape; and nothing arrives."""

    async def check(client: Client) -> None:
        said = json_refusal(await client.http.send(written(client, verb, path, **more)))
        assert said.status == status, said
        assert not client.behind.seen, client.behind.seen

    return check


def written(
    client: Client, verb: str, path: str, headers: dict[str, str] | None = None, **body: Any
) -> httpx.Request:
    """With the path as it stands, and not as a client would tidy it up."""
    request = client.http.build_request(verb, "/", headers=client.bearer() | (headers or {}), **body)
    request.url = request.url.copy_with(raw_path=path.encode())
    return request


async def a_watch_is_told_by_events_to_who_asks_for_them(client: Client) -> None:
    headers = client.bearer() | {"accept": "text/event-stream"}
    answer = await client.http.get("/v1/reservations/x:watch", headers=headers)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.text.startswith("data:")


async def a_connection_has_so_many_streams(client: Client) -> None:
    assert (await http2_settings(client))[3] == 100


async def a_stream_has_so_much_room(client: Client) -> None:
    assert (await http2_settings(client))[4] == 65536


async def who_dribbles_headers_is_sent_away(client: Client) -> None:
    answer = await over_the_wire(client, b"GET /v1/restaurants HTTP/1.1\r\n", 2)
    assert answer.startswith(b"HTTP/1.1 408 "), answer


async def who_dribbles_a_body_is_sent_away(client: Client) -> None:
    head = (
        f"POST /v1/reservations HTTP/1.1\r\nhost: x\r\nauthorization: {client.bearer()['authorization']}\r\n"
        "content-type: application/json\r\ncontent-length: 9\r\n\r\n{"
    )
    answer = await over_the_wire(client, head.encode(), 6)
    assert answer.startswith(b"HTTP/1.1 408 "), answer


async def an_upgrade_is_passed_over(client: Client) -> None:
    sent = b"GET /v1/restaurants HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: TLS/1.2\r\n\r\n"
    answer = await over_the_wire(client, sent)
    assert answer.startswith(b"HTTP/1.1 200 "), answer


async def old_clients_are_answered(client: Client) -> None:
    answer = await over_the_wire(client, b"GET /v1/restaurants HTTP/1.0\r\nhost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 200 "), answer


async def old_clients_need_no_host(client: Client) -> None:
    answer = await over_the_wire(client, b"GET /v1/restaurants HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 200 "), answer


async def a_call_without_trailers_is_told_so(client: Client) -> None:
    request = written(client, "POST", METHOD, headers={"content-type": "application/grpc"}, content=b"\0" * 5)
    answer = await client.http.send(request)
    assert (answer.status_code, answer.headers.get("grpc-status")) == (200, "3"), answer.headers
    assert "retry-after" not in answer.headers


async def over_the_wire(client: Client, sent: bytes, seconds: float = 3) -> bytes:
    """The first of what comes back; nothing if nothing does."""
    host, _, port = client.edge.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(sent)
        return await asyncio.wait_for(reader.read(65536), seconds)
    except TimeoutError:
        return b""
    finally:
        writer.close()


async def http2_settings(client: Client) -> dict[int, int]:
    """What the edge says of a connection of HTTP/2 when it begins."""
    answer = await over_the_wire(client, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    assert answer[3] == 4, "these are no SETTINGS"
    return dict(struct.iter_unpack(">HI", answer[9 : 9 + int.from_bytes(answer[:3])]))


# --- the pieces


@dataclass(frozen=True)
class Piece:
    check: Check
    shows: str
    """What the check says where the piece is missing, as a regular expression."""
    rates: dict[str, Any] = field(default_factory=dict)


NOT_REFUSED = "^(200|502|503|504|401|403|404|405|415) |status=|Seen\\("
"""Or refused by somebody else, later, for another reason."""

FILTERS = {
    "envoy.filters.http.header_mutation": Piece(an_answer_tells_its_correlation_id, "assert None"),
    "answers": Piece(an_answer_belongs_into_no_cache, "assert None == 'no-store'"),
    "compression": Piece(nonsense_about_compression_changes_nothing, r"assert \d+ == 200"),
    "envoy.filters.http.cors": Piece(a_page_may_read_answers, "assert None == 'http://localhost"),
    "envoy.filters.http.grpc_web": Piece(a_page_calls_by_grpc_web, "the body ends within a frame"),
    "limit of one address": Piece(
        what_does_not_exist_is_limited_too, "all of them went through", FEW_OF_AN_ADDRESS
    ),
    "envoy.filters.http.buffer": Piece(a_large_body_is_refused, "^200 "),
    "shape of bodies": Piece(a_body_of_another_shape_is_refused, "it reached the service"),
    "envoy.filters.http.grpc_json_transcoder": Piece(json_reaches_the_service, "assert 403 == 200"),
    "grpc status": Piece(a_refusal_in_json_keeps_its_grpc_status, "== \\(409, '10'\\)"),
    "limit of all": Piece(everybody_together_is_limited, r"assert 429 in \[200, 200", FEW_OF_ALL),
    "read the scheme": Piece(the_case_of_the_scheme_does_not_count, "assert 401 == 200"),
    "write the scheme": Piece(the_case_of_the_scheme_does_not_count, "assert 401 == 200"),
    "tokens end": Piece(a_token_has_an_end, "^200 "),
    "roles": Piece(a_list_of_roles_is_none, "^200 "),
    "limit of one": Piece(one_customer_is_limited, "^200 ", FEW_OF_ONE),
}

MANY_HEADERS = {f"x-padding-{n}": "y" for n in range(70)}
SETTINGS = {
    "serverName": Piece(the_server_has_our_name, "== 'dinemesh'"),
    "earlyHeaderMutationExtensions": Piece(nobody_says_who_he_is_but_by_token, "arrived: "),
    "normalizePath": Piece(dots_lead_where_they_say, "^b'HTTP/1.1 404 "),
    "mergeSlashes": Piece(a_doubled_slash_is_one, "assert 404 == 200"),
    "pathWithEscapedSlashesAction": Piece(refuses("GET", "/v1/reservations%2Fx", 400), NOT_REFUSED),
    "commonHttpProtocolOptions.headersWithUnderscoresAction": Piece(
        refuses("GET", "/v1/restaurants", 400, headers={"x_y": "z"}), NOT_REFUSED
    ),
    "commonHttpProtocolOptions.maxHeadersCount": Piece(
        refuses("GET", "/v1/restaurants", 431, headers=MANY_HEADERS), NOT_REFUSED
    ),
    "httpProtocolOptions.acceptHttp10": Piece(old_clients_are_answered, "^b"),
    "httpProtocolOptions.defaultHostForHttp10": Piece(old_clients_need_no_host, "^b"),
    "httpProtocolOptions.ignoreHttp11Upgrade": Piece(an_upgrade_is_passed_over, "^b"),
    "maxRequestHeadersKb": Piece(
        refuses("GET", "/v1/restaurants", 431, headers={"x-padding": "y" * 13_000}), NOT_REFUSED
    ),
    "http2ProtocolOptions.maxConcurrentStreams": Piece(a_connection_has_so_many_streams, "== 100|KeyError"),
    "http2ProtocolOptions.initialStreamWindowSize": Piece(a_stream_has_so_much_room, "== 65536"),
    "requestHeadersTimeout": Piece(who_dribbles_headers_is_sent_away, "^b''"),
    "requestTimeout": Piece(who_dribbles_a_body_is_sent_away, "^b''"),
    "localReplyConfig": Piece(a_refusal_of_the_edge_has_the_one_shape, "'content-type': 'text/plain'"),
}
QUICK = {"requestHeadersTimeout": "0.5s", "requestTimeout": "3s"}
"""In place of 2 s each. One is over long before the other, which would be told by the same answer."""

JSON: dict[str, Any] = {"json": {}}
NEARLY_GRPC: dict[str, Any] = {"content": "{}", "headers": {"content-type": "application/grpcfoo"}}
METHOD = "/dinemesh.restaurant.v1.RestaurantService/ListRestaurants"
ROUTES = {
    "preflight": Piece(a_page_may_read_answers, r"assert '\*' == 'http://localhost"),
    "no calls": Piece(a_call_by_another_verb_is_none, "== \\(200, '12'\\)|^Headers"),
    "gRPC without trailers": Piece(a_call_without_trailers_is_told_so, "== \\(200, '3'\\)"),
    "verbs of reservations and restaurants": Piece(
        refuses("PUT", "/v1/reservations", 405, **JSON), NOT_REFUSED
    ),
    "verbs of one of them": Piece(refuses("DELETE", "/v1/reservations/x", 405), NOT_REFUSED),
    "verbs of deposits and timeline": Piece(refuses("POST", "/v1/deposits", 405, **JSON), NOT_REFUSED),
    "verbs of a restaurant": Piece(refuses("POST", "/v1/restaurants/x/bookings", 405, **JSON), NOT_REFUSED),
    "verbs of watches": Piece(refuses("POST", "/v1/timeline:watch", 405, **JSON), NOT_REFUSED),
    "verbs of cancel": Piece(refuses("GET", "/v1/reservations/x:cancel", 405), NOT_REFUSED),
    "verbs of slots": Piece(refuses("GET", "/v1/restaurants/x/slots:open", 405), NOT_REFUSED),
    "verbs of bookings": Piece(refuses("GET", "/v1/restaurants/x/bookings/x:accept", 405), NOT_REFUSED),
    "not JSON": Piece(refuses("POST", "/v1/reservations/x:cancel", 415, **NEARLY_GRPC), NOT_REFUSED),
    "a query with a name in disguise": Piece(
        refuses("GET", "/v1/reservations/x?%72eservation_id=y", 400), NOT_REFUSED
    ),
    "an id twice": Piece(refuses("GET", "/v1/reservations/x?reservation_id=y", 400), NOT_REFUSED),
    "a change with a query": Piece(refuses("POST", "/v1/reservations?note=y", 400, **JSON), NOT_REFUSED),
    "a change in JSON": Piece(a_body_of_another_shape_is_refused, "it reached the service"),
    "server-sent events": Piece(a_watch_is_told_by_events_to_who_asks_for_them, "== 'text/event-stream'"),
    "nothing": Piece(what_nobody_has_is_so_for_everybody, "(UNAUTHENTICATED|PERMISSION_DENIED)"),
}
ROUTER = Piece(what_envoys_tell_each_other_stays_inside, "x-envoy-")

NOT_SHOWN = {
    "route again": "Istio's check of tokens has the route read again by itself",
    "JSON": "what has no other route has `nothing` until it is translated, which is as good",
    "commonHttpProtocolOptions.idleTimeout": "ten seconds",
    "http2ProtocolOptions.initialConnectionWindowSize": "what a connection holds back, and not what it does",
    "http2ProtocolOptions.connectionKeepalive": "half a minute",
    "streamIdleTimeout": "a minute",
    "accessLog": "as on one machine, where tests/edge/test_hardening.py looks at its lines",
    "delayedCloseTimeout": "a second more or less at the end of a connection",
}
"""That these are there is held by the hashes of the goldens."""


# --- all of them are there


def patches(kind: str) -> list[Any]:
    return [
        one["patch"]["value"]
        for one in shipped.document("EnvoyFilter", "dinemesh")["spec"]["configPatches"]
        if one["applyTo"] == kind
    ]


def test_every_piece_has_its_check_or_is_named_with_the_reason() -> None:
    assert {one["name"] for one in patches("HTTP_FILTER")} == {*FILTERS, generate.ROUTER, "route again"}
    # The others are merged into routes of the VirtualService, by their names.
    assert {one["name"] for one in patches("HTTP_ROUTE") if "name" in one} == {*ROUTES, "JSON"}
    (connection,) = patches("NETWORK_FILTER")
    settings = set()
    for name, value in connection["typed_config"].items():
        several = name.endswith("http_protocol_options") or name == "http2_protocol_options"
        names = [f"{name}.{one}" for one in value] if several else [name]
        settings |= {".".join(map(in_camel_case, one.split("."))) for one in names}
    assert settings - {"@type"} == {*SETTINGS, *NOT_SHOWN} - {"route again", "JSON"}


# --- with and without


def without_filter(name: str) -> Change:
    return lambda made: take(filters(made), name)


def without_route(name: str) -> Change:
    return lambda made: take(routes(made), name)


def without_setting(name: str) -> Change:
    def change(made: Any) -> None:
        place = manager(made)
        *way, last = name.split(".")
        for step in way:
            place = place[step]
        del place[last]

    return change


def telling_clients(made: Any) -> None:
    (router,) = (one for one in filters(made) if one["name"] == generate.ROUTER)
    del router["typedConfig"]["suppressEnvoyHeaders"]


def routes(made: Any) -> list[Any]:
    (host,) = (one for config in made["routes"] for one in config["virtualHosts"])
    found: list[Any] = host["routes"]
    return found


def take(found: list[Any], name: str) -> None:
    """Istio has one more filter for CORS, which comes later."""
    found.remove(next(one for one in found if one["name"] == name))


def quick(made: Any) -> None:
    lasting(made)
    assert set(QUICK) <= set(manager(made))
    manager(made).update(QUICK)


MUTANTS: list[tuple[str, Piece, Change]] = [
    *((name, piece, without_filter(name)) for name, piece in FILTERS.items()),
    *((name, piece, without_route(name)) for name, piece in ROUTES.items()),
    *((name, piece, without_setting(name)) for name, piece in SETTINGS.items()),
    (generate.ROUTER, ROUTER, telling_clients),
]


@asynccontextmanager
async def client_before(
    behind: StandIn, folder: Path, change: Change, rates: dict[str, Any]
) -> AsyncIterator[Client]:
    edge = RunningGateway(behind, folder, mutate=change, **rates)
    edge.start()
    try:
        async with client_of(edge, behind) as client:
            yield client
    finally:
        edge.kill()


@pytest.mark.parametrize(
    ("piece", "change"), [(piece, change) for _, piece, change in MUTANTS], ids=[name for name, *_ in MUTANTS]
)
async def test_without_the_piece_its_check_turns_red(
    piece: Piece, change: Change, behind: StandIn, tmp_path: Path
) -> None:
    def mistaken(made: Any) -> None:
        quick(made)
        change(made)

    async with client_before(behind, tmp_path / "with", quick, piece.rates) as client:
        await piece.check(client)
    async with client_before(behind, tmp_path / "without", mistaken, piece.rates) as client:
        with pytest.raises(AssertionError, match=piece.shows or None):
            await piece.check(client)


@pytest.mark.parametrize(
    ("check", "rates"),
    [
        (one_address_does_not_lock_out_another, FEW_OF_AN_ADDRESS),
        (an_address_cannot_be_made_up, FEW_OF_AN_ADDRESS),
        (too_many_calls_are_resource_exhausted_in_grpc, FEW_OF_ONE),
        (too_many_calls_are_resource_exhausted_in_grpc, FEW_OF_ALL),
        (too_many_calls_are_resource_exhausted_in_grpc, FEW_OF_AN_ADDRESS),
    ],
)
async def test_limits_hold_as_on_one_machine(
    check: Check, rates: dict[str, Any], behind: StandIn, tmp_path: Path
) -> None:
    async with client_before(behind, tmp_path, lasting, rates) as client:
        await check(client)


async def a_service_without_a_name_is_not_nobody(client: Client) -> None:
    def change(claims: dict[str, Any], _header: dict[str, Any]) -> None:
        claims["role"] = "service"
        del claims["sub"]

    said = json_refusal(
        await client.get("/v1/restaurants", authorization=f"Bearer {signed(client.behind.keys, change)}")
    )
    assert (said.status, said.reason) == (403, "PERMISSION_DENIED")
    assert not client.behind.seen


def known_by_their_name(made: Any) -> None:
    """As `notRequestPrincipals` would have it: nobody is who has no `sub`."""
    without_filter("roles")(made)
    (rbac,) = (one for one in filters(made) if one["name"] == generate.ROLES)
    policies = rbac["typedConfig"]["rules"]["policies"]
    (principal,) = next(one for name, one in policies.items() if name.endswith("rule[0]"))["principals"]
    text = json.dumps(principal)
    assert text.count('{"key": "iss"}') == 1
    principal.update(json.loads(text.replace('{"key": "iss"}', '{"key": "sub"}')))


async def test_who_has_a_token_is_somebody_by_the_policy_and_by_the_roles(
    behind: StandIn, tmp_path: Path
) -> None:
    """Either would do."""
    for name, change in (("both", quick), ("the policy", without_filter("roles"))):
        async with client_before(behind, tmp_path / name, change, {}) as client:
            await a_service_without_a_name_is_not_nobody(client)
    async with client_before(behind, tmp_path / "neither", known_by_their_name, {}) as client:
        with pytest.raises(AssertionError, match=r"^200 "):
            await a_service_without_a_name_is_not_nobody(client)
