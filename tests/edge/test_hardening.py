"""What strangers can do to the edge: take its memory, its places and its calls from others, or steer it.

Like the traps (test_traps.py): each check passes on the edge as it is, and fails, in the way that is named,
on one without the measure against it. Both are a real Envoy.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from tests.edge.conftest import lasting
from tests.edge.stand_in import StandIn
from tests.edge.test_traps import (
    RESERVATION,
    SECONDS,
    Client,
    _calls,
    _filter,
    _filters,
    _manager,
    _routes,
    client_of,
)
from tests.support.edge import Config, RunningEdge
from tests.support.json_refusals import json_refusal

REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
SCRIPT = "/docs/swagger-ui-bundle.js"
"""The largest document: 1.5 MB."""
MANY = 12
"""Calls at once, where three are let in and one more every ten seconds."""

FEW_OF_AN_ADDRESS: dict[str, Any] = {"address_rate_per_second": 1, "address_rate_burst": 3}
AS_ON_ONE_MACHINE = {"document_rate_per_second": 2, "document_rate_burst": 20}
LITTLE_MEMORY = {"most_heap_bytes": 150_000_000}
QUICK_REFLECTION = {"reflection_idle_seconds": 0.5, "longest_reflection_seconds": 1.5}


# --- what must hold


async def at_once(
    http: httpx.AsyncClient, path: str, headers: dict[str, str], count: int = MANY
) -> list[int]:
    answers = await asyncio.gather(*(http.get(path, headers=headers) for _ in range(count)))
    return [answer.status_code for answer in answers]


async def one_address_does_not_lock_out_another(client: Client) -> None:
    assert 429 in await at_once(client.http, "/v1/restaurants", {})
    elsewhere = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
    async with httpx.AsyncClient(base_url=client.edge.url, transport=elsewhere, timeout=SECONDS) as http:
        answer = await http.get("/v1/reservations", headers=client.bearer())
    assert answer.status_code == 200, f"alice is refused: {answer.text}"


async def an_address_cannot_be_made_up(client: Client) -> None:
    headers = [{"x-forwarded-for": f"203.0.113.{number}"} for number in range(MANY)]
    answers = await asyncio.gather(*(client.http.get("/v1/restaurants", headers=one) for one in headers))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused, "each made-up address has a bucket"
    said = json_refusal(refused[0])
    assert said.reason == "RATE_LIMITED"


async def what_does_not_exist_is_limited_too(client: Client) -> None:
    for path in ("/nothing", "/v1/nothing"):
        statuses = await at_once(client.http, path, {})
        assert 429 in statuses, f"{path}: all of them went through"


async def a_stranger_does_not_take_the_memory_by_documents(client: Client) -> None:
    grown = await memory_taken(client.edge)
    assert grown < 120, f"it grew by {grown:.0f} MB"


async def memory_is_bounded(client: Client) -> None:
    grown = await memory_taken(client.edge)
    assert grown < 350, f"it grew by {grown:.0f} MB"
    # And it comes back to work once the greedy are gone.
    end = time.monotonic() + SECONDS
    while (await client.http.get("/v1/restaurants")).status_code != 200:
        assert time.monotonic() < end, "it does not recover"
        await asyncio.sleep(0.1)


async def tools_do_not_take_the_places_of_customers(client: Client) -> None:
    call: Any = client.channel.stream_stream(REFLECTION)
    talks = [call(timeout=SECONDS) for _ in range(70)]

    async def begins(talk: Any) -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await talk.write(b"question")
            return bool(await talk.read() == b"question")
        return False

    begun = await asyncio.gather(*map(begins, talks))
    try:
        assert begun.count(True) == 64
        answer = await client.list()
        assert answer.status_code == 200, f"the customer is refused: {answer.text}"
    finally:
        for talk in talks:
            talk.cancel()


async def a_conversation_of_tools_ends(client: Client) -> None:
    """One that is silent soon, one that is not after a while."""
    call: Any = client.channel.stream_stream(REFLECTION)
    for silent in (True, False):
        talk = call(timeout=SECONDS)
        await talk.write(b"question")
        assert await talk.read() == b"question"
        end = time.monotonic() + 4
        while not talk.done():
            assert time.monotonic() < end, "it goes on"
            await asyncio.sleep(0.1)
            if not silent:
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await talk.write(b"question")
        assert await talk.code() is not grpc.StatusCode.OK


async def health_cannot_be_watched(client: Client) -> None:
    said = await client.refused("/grpc.health.v1.Health/Watch", {})
    assert (said.code, said.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NO_SUCH_METHOD")
    assert await client.native("/grpc.health.v1.Health/Check", {}) == b"\x08\x01"


async def what_never_comes_whole_is_ended(client: Client) -> None:
    """Within two seconds; a conversation that has begun goes on meanwhile."""
    talk: Any = client.channel.stream_stream(REFLECTION)(timeout=SECONDS)
    await talk.write(b"question")
    assert await talk.read() == b"question"
    begun = time.monotonic()
    waiting = [
        *(client.unfinished(path, kind, body) for path, kind, body in UNFINISHED),
        client.headers_alone(f"{RESERVATION}/ListReservations"),
    ]
    try:
        async with asyncio.timeout(3.5):
            answers = await asyncio.gather(*waiting)
    except TimeoutError:
        raise AssertionError("it is still waited for") from None
    assert time.monotonic() - begun > 1.5, "that is too quick"
    for answer in answers:
        assert "the request did not arrive whole in time" in answer
    await talk.write(b"another question")
    assert await talk.read() == b"another question"
    talk.cancel()


UNFINISHED = (
    (f"{RESERVATION}/ListReservations", "application/grpc-web+proto", b"\0\0"),
    ("/v1/reservations", "application/json", b'{"party_size": '),
    ("/v1/reservations", "application/json", b""),
)
"""Path, kind of content, and the beginning of a body of which more is announced."""

IDENTITY = {
    "cookie": "session=alice",
    "forwarded": "for=6.6.6.6",
    "x-forwarded-for": "6.6.6.6",
    "x-forwarded-host": "evil.example",
    "x-forwarded-proto": "https",
    "x-forwarded-user": "operator",
    "x-forwarded-client-cert": "Subject=operator",
    "x-real-ip": "6.6.6.6",
    "x-client-ip": "6.6.6.6",
    "x-user": "operator",
    "x-user-id": "operator",
    "x-remote-user": "operator",
    "remote-user": "operator",
    "x-auth-request-user": "operator",
}


async def nobody_says_who_he_is_but_by_token(client: Client) -> None:
    assert (await client.list(**IDENTITY)).status_code == 200
    arrived = client.behind.calls("ListReservations")[-1].metadata
    told = {name: arrived[name] for name in IDENTITY if arrived.get(name) == IDENTITY[name]}
    told |= {name: value for name, value in arrived.items() if "6.6.6.6" in value}
    assert not told, f"arrived: {told}"
    # What pages send for gRPC-Web stays.
    await client.list(**{"x-user-agent": "grpc-web-javascript/0.1"})
    assert client.behind.calls("ListReservations")[-1].metadata["x-user-agent"] == "grpc-web-javascript/0.1"


async def a_line_of_the_access_log_is_short(client: Client) -> None:
    """Also of what is refused before any filter, and of signs that JSON writes as several."""
    long = {"x-correlation-id": "i" * 4000, "user-agent": "a" * 1000, "referer": "r" * 1000}
    paths = [f"/v1/{4000 * sign}" for sign in ("x", '"', "\\", "\xfc", "?")] + ["/v1%2f" + 4000 * "x"]
    for path in paths:
        await client.bare(path, long)
    await client.bare("/v1/restaurants", long, verb="V" * 4000)
    answer = await client.get("/v1/restaurants")
    client.edge.logged(correlation_id=answer.headers["x-correlation-id"])
    lines = [one for one in client.edge.log.read_bytes().splitlines() if b'"message":"access"' in one]
    assert len(lines) > len(paths)
    for line in lines:
        assert len(line) <= 1024, f"the whole path is written: {line[:300]!r}"


async def a_page_cannot_stop_the_edge(client: Client) -> None:
    """A browser posts to any port of its machine, without asking, for any page."""
    page = {"origin": "https://evil.example", "content-type": "text/plain"}
    async with httpx.AsyncClient(base_url=client.edge.admin, timeout=SECONDS) as admin:
        for verb, path in (
            ("POST", "/quitquitquit"),
            ("POST", "/logging?level=trace"),
            ("POST", "/runtime_modify?a=b"),
            ("GET", "/config_dump"),
            ("GET", "/certs"),
            ("GET", "/clusters"),
        ):
            answer = await admin.request(verb, path, headers=page)
            assert answer.status_code == 403, f"{path} is answered: {answer.status_code}"
        assert client.edge.running
        for path in ("/ready", "/stats?filter=^http.edge"):
            assert (await admin.get(path)).status_code == 200, path


# --- tools


def envoy_of(edge: RunningEdge) -> int:
    """Its process: the one started, or its child."""
    children = Path(f"/proc/{edge.pid}/task/{edge.pid}/children").read_text().split()
    return int(children[0]) if children else edge.pid


def resident(edge: RunningEdge) -> float:
    """Memory of Envoy in MB."""
    status = Path(f"/proc/{envoy_of(edge)}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1000


async def memory_taken(edge: RunningEdge) -> float:
    """By how many MB Envoy grows when asked for 600 MB of the largest document, in eight connections one
    after the other, that read nothing."""
    before = most = resident(edge)
    greedy: list[asyncio.StreamWriter] = []
    try:
        for _ in range(8):
            greedy.append(await unread(edge, SCRIPT, 50))
            end = time.monotonic() + 0.4
            while time.monotonic() < end:
                most = max(most, resident(edge))
                await asyncio.sleep(0.05)
    finally:
        for writer in greedy:
            writer.close()
    return most - before


async def unread(edge: RunningEdge, path: str, count: int) -> asyncio.StreamWriter:
    """A connection of HTTP/2 with so many GETs, whose window stays closed."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return (
            struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
        )

    def literal(name: str, value: str) -> bytes:
        return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()

    _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    no_window = struct.pack(">HI", 4, 0)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, no_window) + frame(4, 1, 0, b""))
    headers = {":method": "GET", ":scheme": "http", ":path": path, ":authority": "x"}
    block = b"".join(literal(*one) for one in headers.items())
    for number in range(count):
        writer.write(frame(1, 5, 2 * number + 1, block))
    await writer.drain()
    return writer


# --- without the measure


def one_bucket_for_all_addresses(config: Config) -> None:
    limit = _filter(config, "limit of one address")["typed_config"]
    del limit["rate_limits"]
    (descriptor,) = limit.pop("descriptors")
    limit["token_bucket"] = descriptor["token_bucket"]


def forwarded_addresses_believed(config: Config) -> None:
    """Behind a proxy of one's own that is right; here everybody could write it."""
    manager = _manager(config)
    manager["xff_num_trusted_hops"] = 1
    del manager["early_header_mutation_extensions"]


def limit_of_addresses_behind_the_transcoder(config: Config) -> None:
    limit = _filter(config, "limit of one address")
    _filters(config).remove(limit)
    _filters(config).insert(_filters(config).index(_filter(config, "limit of all")), limit)


def documents_without_a_limit(config: Config) -> None:
    for route in _routes(config):
        if route["match"].get("path", "").startswith("/docs"):
            del route["typed_per_filter_config"]["limit of all"]


def memory_not_looked_at(config: Config) -> None:
    manager = config["overload_manager"]
    del manager["actions"]
    manager["resource_monitors"] = [
        one for one in manager["resource_monitors"] if "fixed_heap" not in one["name"]
    ]


def tools_among_customers(config: Config) -> None:
    for route in _calls(config):
        if route["name"].startswith("reflection"):
            route["route"]["cluster"] = "reservation"
    clusters = {one["name"]: one for one in config["static_resources"]["clusters"]}
    clusters["reservation"]["circuit_breakers"] = clusters["reflection"]["circuit_breakers"]  # not 4,096


def reflection_like_a_watch(config: Config) -> None:
    (watch,) = [one for one in _calls(config) if one["name"] == "WatchReservation"]
    for route in _calls(config):
        if route["name"].startswith("reflection"):
            route["route"] = watch["route"] | {"cluster": "reflection"}


def all_of_health(config: Config) -> None:
    for route in _calls(config):
        if route["name"] == "health":
            route["match"] = {"prefix": "/grpc.health.v1.Health/"}


def headers_as_they_come(config: Config) -> None:
    del _manager(config)["early_header_mutation_extensions"]


def patient(config: Config) -> None:
    _manager(config)["request_timeout"] = "15s"
    _manager(config)["request_headers_timeout"] = "5s"


def paths_as_long_as_they_are(config: Config) -> None:
    (log,) = _manager(config)["access_log"]
    fields = log["typed_config"]["log_format"]["json_format"]
    for name, value in fields.items():
        fields[name] = re.sub(r"\):\d+%", ")%", value)


def admin_as_by_default(config: Config) -> None:
    del config["admin"]["allow_paths"]


@dataclass(frozen=True)
class Measure:
    without: Callable[[Config], None]
    check: Callable[[Client], Awaitable[None]]
    fails: str
    """What the check says where the measure is not taken."""
    values: dict[str, Any] = field(default_factory=dict)


MEASURES = [
    Measure(
        one_bucket_for_all_addresses,
        one_address_does_not_lock_out_another,
        "alice is refused",
        FEW_OF_AN_ADDRESS,
    ),
    Measure(
        forwarded_addresses_believed,
        an_address_cannot_be_made_up,
        "each made-up address has a bucket",
        FEW_OF_AN_ADDRESS,
    ),
    Measure(
        limit_of_addresses_behind_the_transcoder,
        what_does_not_exist_is_limited_too,
        "all of them went through",
        FEW_OF_AN_ADDRESS,
    ),
    Measure(
        documents_without_a_limit,
        a_stranger_does_not_take_the_memory_by_documents,
        "it grew by",
        AS_ON_ONE_MACHINE,
    ),
    Measure(memory_not_looked_at, memory_is_bounded, "it grew by", LITTLE_MEMORY),
    Measure(tools_among_customers, tools_do_not_take_the_places_of_customers, "the customer is refused"),
    Measure(reflection_like_a_watch, a_conversation_of_tools_ends, "it goes on", QUICK_REFLECTION),
    Measure(all_of_health, health_cannot_be_watched, "this should have been refused"),
    Measure(headers_as_they_come, nobody_says_who_he_is_but_by_token, "arrived: "),
    Measure(patient, what_never_comes_whole_is_ended, "it is still waited for"),
    Measure(paths_as_long_as_they_are, a_line_of_the_access_log_is_short, "the whole path is written"),
    Measure(admin_as_by_default, a_page_cannot_stop_the_edge, "/quitquitquit is answered: 200"),
]


@contextmanager
def started(edge: RunningEdge) -> Iterator[RunningEdge]:
    edge.start()
    try:
        yield edge
    finally:
        edge.kill()


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.without.__name__)
async def test_the_edge_stands_where_one_without_the_measure_falls(
    measure: Measure, stand_in: StandIn, tmp_path: Path
) -> None:
    edge = RunningEdge(stand_in, tmp_path / "edge", mutate=lasting, **measure.values)
    with started(edge):
        async with client_of(edge, stand_in) as client:
            await measure.check(client)
    with started(edge.mutant(tmp_path / "without", measure.without)) as without:
        async with client_of(without, stand_in) as client:
            with pytest.raises(AssertionError, match=re.escape(measure.fails)):
                await measure.check(client)


async def test_behind_proxies_of_ones_own_each_client_has_a_bucket(stand_in: StandIn, tmp_path: Path) -> None:
    """By the address that the outermost of them has seen, and not by what the client says before it."""

    def forwarded(made_up: int, seen: int) -> dict[str, str]:
        return {"x-forwarded-for": f"203.0.113.{made_up}, 198.51.100.{seen}, 127.0.0.1"}

    edge = RunningEdge(stand_in, tmp_path, mutate=lasting, trusted_hops=2, **FEW_OF_AN_ADDRESS)
    with started(edge):
        async with client_of(edge, stand_in) as client:
            different = [await client.get("/v1/restaurants", **forwarded(0, n)) for n in range(MANY)]
            assert {one.status_code for one in different} == {200}
            same = [await client.get("/v1/restaurants", **forwarded(n, 200)) for n in range(MANY)]
            assert 429 in [one.status_code for one in same], "each made-up address has a bucket"
        arrived = stand_in.calls("ListRestaurants")[0].metadata
        assert arrived["x-forwarded-for"] == "198.51.100.0"
        assert edge.access_log()[0]["client"] == "198.51.100.0"


def test_an_edge_that_may_not_drain_says_so(stand_in: StandIn, tmp_path: Path) -> None:
    """And does not pass for one that had nothing to finish."""

    def nothing_but_stats(config: Config) -> None:
        config["admin"]["allow_paths"] = [{"prefix": "/stats"}, {"exact": "/ready"}]

    edge = RunningEdge(stand_in, tmp_path, mutate=nothing_but_stats)
    edge.start()
    edge.stop()
    assert "the edge ends without draining: /healthcheck/fail: 403" in edge.log.read_text()


async def test_a_document_has_a_bucket_of_its_own(stand_in: StandIn, tmp_path: Path) -> None:
    few: dict[str, Any] = {"document_rate_per_second": 1, "document_rate_burst": 3}
    with started(RunningEdge(stand_in, tmp_path, **few)) as edge:
        async with client_of(edge, stand_in) as client:
            assert 429 in await at_once(client.http, SCRIPT, {})
            assert (await client.get("/docs")).status_code == 200
            assert (await client.list()).status_code == 200
            said = json_refusal(
                next(one for one in [await client.get(SCRIPT) for _ in range(8)] if one.status_code == 429)
            )
            assert said.reason == "RATE_LIMITED"


async def test_the_limit_of_an_address_is_told_to_grpc_as_such(stand_in: StandIn, tmp_path: Path) -> None:
    with started(RunningEdge(stand_in, tmp_path, mutate=lasting, **FEW_OF_AN_ADDRESS)) as edge:
        async with client_of(edge, stand_in) as client:
            await at_once(client.http, "/v1/restaurants", {})
            said = await client.refused(f"{RESERVATION}/ListReservations", client.bearer())
            assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
            assert said.trailing["retry-after"] in ("1", "2", "3")


async def test_an_edge_without_memory_says_that_nothing_was_changed(
    stand_in: StandIn, tmp_path: Path
) -> None:
    edge = RunningEdge(stand_in, tmp_path, most_heap_bytes=1_000_000)
    edge.spawn()
    try:
        async with client_of(edge, stand_in) as client:
            end = time.monotonic() + SECONDS
            while not await full(client):
                assert time.monotonic() < end, "it does not start, or lets calls in"
                await asyncio.sleep(0.05)
            said = json_refusal(await client.list())
            assert (said.status, said.reason) == (503, "UNAVAILABLE")
            assert "nothing was changed" in said.message
            over_grpc = await client.refused(f"{RESERVATION}/ListReservations", client.bearer())
            assert (over_grpc.code, over_grpc.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
            # It lives, and its supervisor leaves it alone: killed, it would take all watches with it.
            assert (await client.get(f"{edge.admin}/ready")).status_code == 200
    finally:
        edge.kill()


async def full(client: Client) -> bool:
    try:
        return (await client.get("/livez")).status_code == 503
    except httpx.TransportError:
        return False
