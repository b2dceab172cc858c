"""What every call meets before and after the servicer's method."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from jwt.utils import base64url_encode

from dinemesh.history.v1 import history_service_pb2 as pb
from dinemesh.history.v1 import history_service_pb2_grpc as pb_grpc
from dinemesh.kit import call, telemetry
from dinemesh.kit.interceptors import MESSAGE_SECONDS, SYSTEM_STREAMS, Chain, Limit
from dinemesh.kit.refusal import Refusal, Violation, invalid, invalid_all
from dinemesh.kit.store_errors import CommitInDoubt, StoreUnavailable
from tests.kit.serving import ACCESS, LIST, WATCH, Servicer, answer, one_message, serving, until
from tests.support.mesh import Keys
from tests.support.refusals import refused

SECRET = "postgresql://user:password@host/db"


def raising(error: Exception) -> Servicer:
    async def fail(_request: Any, _context: Any) -> Any:
        raise error

    async def fail_at_once(_request: Any, _context: Any) -> AsyncIterator[Any]:
        raise error
        yield

    return Servicer(fail, fail_at_once)


def watched(stub: Any, **options: Any) -> Any:
    async def read() -> list[Any]:
        return [
            message async for message in stub.WatchTimeline(pb.WatchTimelineRequest(), timeout=10, **options)
        ]

    return read()


async def eventually(attempt: Callable[[], Awaitable[Any]], seconds: float = 10) -> Any:
    """Repeats until it is no longer refused."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await attempt()
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.01)


async def test_a_call_with_the_right_token_is_answered_and_told_its_correlation_id(tmp_path: Path) -> None:
    seen: list[call.Call] = []

    async def look(request: Any, context: Any) -> Any:
        seen.append(call.current.get())
        return await answer(request, context)

    async with serving(tmp_path, Servicer(look)) as server:
        running = server.stub.ListTimelineEntries(
            pb.ListTimelineEntriesRequest(),
            metadata=(*server.token(), ("x-correlation-id", "order-7"), ("traceparent", "rubbish")),
            timeout=10,
        )
        await running
        assert dict(await running.trailing_metadata())["x-correlation-id"] == "order-7"
        assert "x-correlation-id" not in dict(await running.initial_metadata())
    assert seen[0].correlation_id == "order-7"
    assert seen[0].identity == call.Identity("alice", "customer")
    assert seen[0].method == LIST
    assert seen[0].deadline is not None
    assert len(seen[0].traceparent) == 55


@pytest.mark.parametrize("sent", ["", "x" * 129, 'a"b', "a b", "a;b"])
async def test_a_correlation_id_that_is_no_token_is_replaced(tmp_path: Path, sent: str) -> None:
    async with serving(tmp_path) as server:
        running = server.stub.ListTimelineEntries(
            pb.ListTimelineEntriesRequest(),
            metadata=(*server.token(), ("x-correlation-id", sent)),
            timeout=10,
        )
        await running
        given = dict(await running.trailing_metadata())["x-correlation-id"]
    assert given != sent
    assert len(given) == 36


async def test_without_a_valid_token_a_call_is_unauthenticated(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        stranger_folder = tmp_path / "stranger"
        stranger_folder.mkdir()
        stranger, keys = Keys(stranger_folder), server.keys
        claims = jwt.decode(keys.token("alice", "customer"), options={"verify_signature": False})
        headers = {"kid": keys.kid}
        public = (tmp_path / "jwks.json").read_text()
        none = jwt.encode(claims, "", algorithm="none", headers=headers)
        unsigned = b".".join(
            base64url_encode(json.dumps(part).encode()) for part in ({"alg": "HS256", **headers}, claims)
        )
        signature = hmac.digest(public.encode(), unsigned, "sha256")
        symmetric = (unsigned + b"." + base64url_encode(signature)).decode()
        stranger.kid = keys.kid
        tokens = {
            "TOKEN_EXPIRED": [keys.token("alice", "customer", seconds=-1)],
            "TOKEN_INVALID": [
                "rubbish",
                "a.b.c",
                "x" * 10_000,
                none,
                symmetric,
                stranger.token("alice", "customer"),
                jwt.encode(claims, keys.private, algorithm="ES256"),
                jwt.encode({**claims, "aud": "else"}, keys.private, algorithm="ES256", headers=headers),
                jwt.encode({**claims, "iss": "else"}, keys.private, algorithm="ES256", headers=headers),
                jwt.encode({**claims, "exp": None}, keys.private, algorithm="ES256", headers=headers),
                jwt.encode(
                    {k: v for k, v in claims.items() if k != "exp"},
                    keys.private,
                    algorithm="ES256",
                    headers=headers,
                ),
                keys.token("alice", "king"),
                keys.token("alice", "staff"),
                keys.token("", "customer"),
                keys.token("a\nb", "customer"),
            ],
        }
        for reason, refused_tokens in tokens.items():
            for token in refused_tokens:
                said = await refused(
                    server.stub.ListTimelineEntries(
                        pb.ListTimelineEntriesRequest(), metadata=(("authorization", f"Bearer {token}"),)
                    )
                )
                assert (said.code, said.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason), token
        missing = await refused(server.stub.ListTimelineEntries(pb.ListTimelineEntriesRequest()))
        assert (missing.code, missing.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
        basic = await refused(
            server.stub.ListTimelineEntries(
                pb.ListTimelineEntriesRequest(), metadata=(("authorization", "Basic abc"),)
            )
        )
        assert basic.reason == "TOKEN_INVALID"


async def test_a_method_for_anyone_needs_no_token_but_refuses_a_broken_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert len(await watched(server.stub)) == 1
        said = await refused(watched(server.stub, metadata=(("authorization", "Bearer rubbish"),)))
        assert said.reason == "TOKEN_INVALID"


async def test_a_role_that_is_not_in_the_table_is_denied(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        staff = server.token("staff", restaurant_id="r1")
        said = await refused(server.stub.ListTimelineEntries(pb.ListTimelineEntriesRequest(), metadata=staff))
    assert (said.code, said.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")


async def test_a_method_that_no_table_names_is_closed(tmp_path: Path) -> None:
    keys = Keys(tmp_path)

    class Nobody:
        def verify(self, token: str) -> call.Identity:
            return call.Identity("alice", "customer")

    chain = Chain(Nobody(), in_flight_limit=10, streams_per_subject=10)
    server = grpc.aio.server(interceptors=[chain])
    pb_grpc.add_HistoryServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = pb_grpc.HistoryServiceStub(channel)
        said = await refused(
            stub.ListTimelineEntries(
                pb.ListTimelineEntriesRequest(),
                metadata=(("authorization", f"Bearer {keys.token('alice', 'customer')}"),),
            )
        )
    await server.stop(None)
    assert said.code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_table_that_differs_from_the_contract_stops_the_start(tmp_path: Path) -> None:
    def add_again(service: Any) -> None:
        service.add_servicer(
            lambda *_: None, Servicer(), "dinemesh.history.v1.HistoryService", {LIST: ACCESS[LIST]}
        )

    with pytest.raises(ValueError, match="WatchTimeline"):
        async with serving(tmp_path, arrange=add_again):
            pass


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unhandled_exception_tells_the_client_nothing_but_an_error_id(
    tmp_path: Path, stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path, raising(RuntimeError(SECRET))) as server:
        said = await refused(watched(server.stub) if stream else server.list())
    assert (said.code, said.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert SECRET not in said.everything
    assert "RuntimeError" not in said.everything
    logged = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [line for line in logged if line.get("error_id") == said.info["error_id"]]
    assert SECRET in told[0]["exc_info"]
    assert told[0]["correlation_id"] == said.trailing["x-correlation-id"]


async def test_a_refusal_with_a_reason_outside_the_contract_is_internal(tmp_path: Path) -> None:
    async with serving(tmp_path, raising(Refusal("NO_SUCH_REASON", SECRET))) as server:
        said = await refused(server.list())
    assert said.code is grpc.StatusCode.INTERNAL
    assert SECRET not in said.everything


async def test_an_answer_of_the_wrong_type_leaks_nothing(tmp_path: Path) -> None:
    async def wrong(_request: Any, _context: Any) -> Any:
        return SECRET

    async with serving(tmp_path, Servicer(wrong)) as server:
        said = await refused(server.list())
    assert said.code is grpc.StatusCode.INTERNAL
    assert SECRET not in said.everything


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x0a\x02\xc3\x28"], ids=["corrupt", "invalid UTF-8"])
async def test_bytes_that_are_no_message_are_an_invalid_argument(tmp_path: Path, garbage: bytes) -> None:
    async with serving(tmp_path) as server:
        channel: Any = server.channel
        for method, metadata in ((LIST, server.token()), ("/grpc.health.v1.Health/Check", ())):
            said = await refused(channel.unary_unary(method)(garbage, metadata=metadata, timeout=10))
            assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"), method
        stranger = await refused(channel.unary_unary(LIST)(garbage, timeout=10))
        assert stranger.reason == "TOKEN_MISSING"
        reflecting = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")

        async def reflect() -> None:
            async for _ in reflecting(iter([b"\xff\xff"]), timeout=10):
                pass

        assert (await refused(reflect())).code is grpc.StatusCode.INVALID_ARGUMENT


HEALTH_CHECK, HEALTH_WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


def without_a_message(server: Any, method: str, *metadata: tuple[str, str]) -> Any:
    """A call of which only the headers are sent."""
    return server.channel.stream_stream(method)(metadata=metadata or server.token(), timeout=30)


async def said_of(running: Any) -> Any:
    """How a call is refused that gets no answer."""

    async def read() -> None:
        assert await running.read() is grpc.aio.EOF
        raise AssertionError("it ended well")

    return await refused(read())


@pytest.mark.parametrize("method", [LIST, WATCH, HEALTH_CHECK, HEALTH_WATCH])
async def test_a_call_that_ends_without_its_message_is_refused_at_once(tmp_path: Path, method: str) -> None:
    counted = telemetry.CALLS.labels(method, "INVALID_ARGUMENT")._value
    async with serving(tmp_path) as server:
        before, begun = counted.get(), time.monotonic()
        running = without_a_message(server, method)
        await running.done_writing()
        said = await said_of(running)
        assert time.monotonic() - begun < MESSAGE_SECONDS / 2
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert "without its message" in said.message
    assert counted.get() == before + 1


async def test_a_call_whose_message_never_comes_holds_a_place_and_is_ended(tmp_path: Path) -> None:
    """Each method in its own place: of people, of streams, of health and reflection."""
    async with serving(tmp_path, limits={LIST: Limit(1)}) as server:
        begun = time.monotonic()
        methods = (LIST, WATCH, HEALTH_CHECK, HEALTH_WATCH, REFLECTION)
        silent = [without_a_message(server, method) for method in methods]
        gauges = [telemetry.CALLS_IN_FLIGHT.labels(method)._value for method in methods]
        await until(lambda: all(gauge.get() for gauge in gauges), MESSAGE_SECONDS / 2)
        assert (await refused(server.list())).reason == "TRY_AGAIN_LATER", "it is not counted"
        for said in await asyncio.gather(*map(said_of, silent)):
            assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
            assert "no message of the call" in said.message
        assert MESSAGE_SECONDS / 2 < time.monotonic() - begun < MESSAGE_SECONDS + 1
        assert not any(gauge.get() for gauge in gauges)
        await server.list()


async def test_who_asks_is_known_before_the_message_is_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        begun = time.monotonic()
        (staff,) = server.token("staff", restaurant_id="r1")
        for metadata, reason in (
            (("x-nothing", "at all"), "TOKEN_MISSING"),
            (("authorization", "Bearer rubbish"), "TOKEN_INVALID"),
            (staff, "PERMISSION_DENIED"),
        ):
            assert (await said_of(without_a_message(server, LIST, metadata))).reason == reason
        assert time.monotonic() - begun < MESSAGE_SECONDS / 2


async def test_a_client_that_leaves_before_its_message_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gauge = telemetry.CALLS_IN_FLIGHT.labels(LIST)._value
    async with serving(tmp_path) as server:
        running = without_a_message(server, LIST)
        await until(lambda: bool(gauge.get()))
        running.cancel()
        await until(lambda: not gauge.get(), MESSAGE_SECONDS / 2)
        await server.list()
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not [line for line in lines if line["level"] in ("WARNING", "ERROR")]


async def test_a_message_in_time_is_read_after_a_pause_of_the_process(tmp_path: Path) -> None:
    gauge = telemetry.CALLS_IN_FLIGHT.labels(LIST)._value
    async with serving(tmp_path) as server:
        running = without_a_message(server, LIST)
        await until(lambda: bool(gauge.get()))
        sending = asyncio.ensure_future(running.write(pb.ListTimelineEntriesRequest().SerializeToString()))
        await asyncio.sleep(0)  # it is on its way
        time.sleep(MESSAGE_SECONDS + 0.5)  # noqa: ASYNC251  server and client stand still, as one process
        await sending
        assert pb.ListTimelineEntriesResponse.FromString(await running.read()).next_page_token == "answered"


async def test_an_unknown_method_is_unimplemented(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        channel: Any = server.channel
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary("/dinemesh.history.v1.HistoryService/Drop")(b"", timeout=10)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_arrives_whole_and_in_trailing_metadata_only(tmp_path: Path, stream: bool) -> None:
    refusal = Refusal(
        "TRY_AGAIN_LATER",
        "busy",
        retry_after=1.25,
        metadata={"a": "b"},
        violations=[Violation("party_size", "too many")],
    )
    async with serving(tmp_path, raising(refusal)) as server:
        try:
            await (watched(server.stub) if stream else server.list())
            raise AssertionError("not refused")
        except grpc.aio.AioRpcError as error:
            assert not [key for key, _ in error.initial_metadata() or () if not key.startswith("grpc")]
        many = [await refused(watched(server.stub) if stream else server.list()) for _ in range(6)]
    said, told = many[0], {one.retry_after for one in many}
    assert (said.code, said.reason, said.domain) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TRY_AGAIN_LATER",
        "dinemesh",
    )
    assert (said.message, said.info, said.fields) == ("busy", {"a": "b"}, ("party_size",))
    # Up to a quarter later than meant, each time another time, so that not all come back at once.
    assert said.retry_after is not None and 1.25 <= said.retry_after <= 1.5625
    assert said.trailing["retry-after"] == "2"
    assert said.trailing["grpc-retry-pushback-ms"] == str(round(said.retry_after * 1000))
    assert len(told) > 1


async def test_a_refusal_with_hundreds_of_violations_still_arrives(tmp_path: Path) -> None:
    many = invalid_all(Violation(f"slots[{n}].capacity", "wrong " * 100) for n in range(300))
    async with serving(tmp_path, raising(many)) as server:
        said = await refused(server.list())
    assert said.reason == "INVALID_ARGUMENT"
    assert said.fields[0] == "slots[0].capacity"
    details = said.trailing["grpc-status-details-bin"]
    assert len(details) < 4096


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StoreUnavailable(SECRET), "UNAVAILABLE"),
        (CommitInDoubt(SECRET), "OUTCOME_UNKNOWN"),
        (invalid("note", "bad"), "INVALID_ARGUMENT"),
    ],
)
async def test_failures_of_the_store_are_refusals(tmp_path: Path, error: Exception, reason: str) -> None:
    async with serving(tmp_path, raising(error)) as server:
        said = await refused(server.list())
    assert said.reason == reason
    assert SECRET not in said.everything
    assert (said.retry_after is not None) == (reason != "INVALID_ARGUMENT")


async def test_beyond_its_limit_a_method_refuses_before_any_work(tmp_path: Path) -> None:
    go, begun = asyncio.Event(), 0

    async def slow(request: Any, context: Any) -> Any:
        nonlocal begun
        begun += 1
        await go.wait()
        return await answer(request, context)

    limits = {LIST: Limit(2, "DEPOSIT_OVERLOADED", retry_after=3)}
    async with serving(tmp_path, Servicer(slow), limits=limits) as server:
        working = [asyncio.ensure_future(server.list()) for _ in range(2)]
        await until(lambda: begun == 2)
        said = await refused(server.list())
        assert (said.reason, begun) == ("DEPOSIT_OVERLOADED", 2)
        assert said.retry_after is not None and 3 <= said.retry_after <= 3.75
        go.set()
        await asyncio.gather(*working)
        await server.list()


async def test_beyond_the_total_limit_a_method_keeps_its_own_reason(tmp_path: Path) -> None:
    go, begun = asyncio.Event(), asyncio.Event()

    async def slow(request: Any, context: Any) -> Any:
        begun.set()
        await go.wait()
        return await answer(request, context)

    limits = {LIST: Limit(5, "DEPOSIT_OVERLOADED", retry_after=3)}
    async with serving(tmp_path, Servicer(slow), limits=limits, in_flight_limit=1) as server:
        working = asyncio.ensure_future(server.list())
        await begun.wait()
        assert (await refused(server.list())).reason == "DEPOSIT_OVERLOADED"
        assert len(await watched(server.stub)) == 1, "streams are counted apart"
        go.set()
        await working


async def held(_request: Any, _context: Any) -> AsyncIterator[Any]:
    """One message, and then silence until the client leaves."""
    yield pb.WatchTimelineResponse()
    await asyncio.Event().wait()


async def test_one_person_holds_only_so_many_streams_and_nobody_else_is_touched(tmp_path: Path) -> None:
    async with serving(tmp_path, Servicer(watching=held), streams_per_subject=2) as server:

        async def opened(sub: str, role: str = "customer", **claims: Any) -> Any:
            token = server.keys.token(sub, role, **claims)
            stream = server.stub.WatchTimeline(
                pb.WatchTimelineRequest(), metadata=(("authorization", f"Bearer {token}"),), timeout=30
            )
            assert await stream.read() is not grpc.aio.EOF
            return stream

        streams = [await opened("alice") for _ in range(2)]
        # A second token of the same person is the same person.
        said = await refused(opened("alice", seconds=1800))
        assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TRY_AGAIN_LATER")
        assert said.retry_after is not None and said.retry_after > 0
        assert said.trailing["retry-after"]

        streams += [await opened("bob") for _ in range(2)]
        streams += [await opened("reservation", "service") for _ in range(3)]
        nobody = [server.stub.WatchTimeline(pb.WatchTimelineRequest(), timeout=30) for _ in range(3)]
        for stream in nobody:
            assert await stream.read() is not grpc.aio.EOF, "who has no name is counted with all others"
        await asyncio.gather(*(server.list() for _ in range(5)))

        # One that is given back can be had again, and a refused one took none.
        streams[0].cancel()
        streams.append(await eventually(lambda: opened("alice")))
        assert (await refused(opened("alice"))).reason == "TRY_AGAIN_LATER"
        for stream in [*streams, *nobody]:
            stream.cancel()


async def test_streams_of_health_and_reflection_are_few_and_health_is_told_all_the_same(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, Servicer(watching=held)) as server:
        health: Any = health_pb2_grpc.HealthStub(server.channel)
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(server.channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")

        async def watched_health() -> Any:
            stream = health.Watch(health_pb2.HealthCheckRequest(), timeout=30)
            assert (await stream.read()).status == health_pb2.HealthCheckResponse.SERVING
            return stream

        async def talked() -> Any:
            talk = reflection.ServerReflectionInfo(timeout=30)
            await talk.write(question)  # and it stays open
            assert (await talk.read()).list_services_response.service
            return talk

        streams = [await (talked() if number % 2 else watched_health()) for number in range(SYSTEM_STREAMS)]
        for opening in (watched_health, talked):
            said = await refused(opening())
            assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TRY_AGAIN_LATER")
            assert said.retry_after is not None and said.retry_after > 0

        # Probes are answered, and people's calls and watches are counted apart.
        checks = (health.Check(health_pb2.HealthCheckRequest(), timeout=10) for _ in range(100))
        assert {one.status for one in await asyncio.gather(*checks)} == {
            health_pb2.HealthCheckResponse.SERVING
        }
        await server.list()
        stream = server.stub.WatchTimeline(pb.WatchTimelineRequest(), timeout=30)
        assert await stream.read() is not grpc.aio.EOF
        stream.cancel()

        streams.pop().cancel()
        streams.append(await eventually(talked))
        for one in streams:
            one.cancel()


async def test_the_callers_deadline_cancels_the_handler_and_shielded_work_goes_on(tmp_path: Path) -> None:
    go, recorded, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
    left: list[float | None] = []

    async with serving(tmp_path) as server:

        async def record() -> None:
            left.append(call.time_left())
            await go.wait()
            recorded.set()

        async def charge(_request: Any, _context: Any) -> Any:
            try:
                await server.service.background.finish(record())
            except asyncio.CancelledError:
                cancelled.set()
                raise

        server.servicer.listing = charge
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.stub.ListTimelineEntries(
                pb.ListTimelineEntriesRequest(), metadata=server.token(), timeout=0.3
            )
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(cancelled.wait(), 10)
        assert not recorded.is_set()
        go.set()
        await asyncio.wait_for(recorded.wait(), 10)
        assert left[0] is not None
        assert 0 < left[0] <= 0.3


async def test_a_client_that_leaves_a_stream_is_forgotten_at_once(tmp_path: Path) -> None:
    async def endless(_request: Any, _context: Any) -> AsyncIterator[Any]:
        while True:
            yield pb.WatchTimelineResponse()
            await asyncio.sleep(0.01)

    gauge = telemetry.CALLS_IN_FLIGHT.labels(WATCH)
    async with serving(tmp_path, Servicer(watching=endless)) as server:
        stream = server.stub.WatchTimeline(pb.WatchTimelineRequest())
        await stream.read()
        assert gauge._value.get() == 1
        stream.cancel()
        await until(lambda: gauge._value.get() == 0)


async def test_calls_are_counted_by_method_and_status(tmp_path: Path) -> None:
    def count(code: str) -> float:
        return float(telemetry.CALLS.labels(LIST, code)._value.get())

    before = count("OK"), count("UNAUTHENTICATED")
    async with serving(tmp_path) as server:
        await server.list()
        await refused(server.stub.ListTimelineEntries(pb.ListTimelineEntriesRequest()))
    assert (count("OK"), count("UNAUTHENTICATED")) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_line_of_a_call_tells_what_the_caller_had_left(
    tmp_path: Path, stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def lines_of(correlation: str) -> list[dict[str, Any]]:
        lines = map(json.loads, capsys.readouterr().out.splitlines())
        return [line for line in lines if line["message"] == "call" and line["correlation_id"] == correlation]

    async def ask(server: Any, correlation: str, timeout: float | None) -> None:
        metadata = (*server.token(), ("x-correlation-id", correlation))
        if stream:
            running = server.stub.WatchTimeline(pb.WatchTimelineRequest(), metadata=metadata, timeout=timeout)
            assert [message async for message in running]
        else:
            await server.stub.ListTimelineEntries(
                pb.ListTimelineEntriesRequest(), metadata=metadata, timeout=timeout
            )

    async with serving(tmp_path) as server:
        capsys.readouterr()
        await ask(server, "hurried", 7)
        (hurried,) = lines_of("hurried")
        assert 6_000 < hurried["deadline_ms"] <= 7_100, "the library rounds it up a little on the wire"
        await ask(server, "patient", None)
        (patient,) = lines_of("patient")
        assert "deadline_ms" not in patient


async def test_a_stream_that_breaks_after_a_message_ends_with_its_refusal(tmp_path: Path) -> None:
    async def breaks(request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in one_message(request, context):
            yield message
        raise StoreUnavailable

    async with serving(tmp_path, Servicer(watching=breaks)) as server:
        stream = server.stub.WatchTimeline(pb.WatchTimelineRequest(), timeout=10)
        await stream.read()
        said = await refused(stream.read())
    assert said.reason == "UNAVAILABLE"
