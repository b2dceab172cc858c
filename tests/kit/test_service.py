"""The start in order, and the stop that fails no call."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import threading
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from dinemesh.history.v1 import history_service_pb2 as pb
from dinemesh.history.v1 import history_service_pb2_grpc as pb_grpc
from dinemesh.kit import bus as kit_bus
from dinemesh.kit import service as kit_service
from dinemesh.kit.service import Service
from dinemesh.kit.store_errors import StoreUnavailable
from dinemesh.kit.watch import End, tail
from dinemesh.watch.v1 import watch_pb2
from tests.kit.serving import Servicer, answer, serving, settings_for, until
from tests.kit.test_health import NOT_SERVING, asking
from tests.support.mesh import Keys
from tests.support.refusals import refused


@pytest.mark.parametrize("which", ["port", "metrics_port"])
async def test_a_port_that_is_taken_is_named_and_ends_with_3(
    tmp_path: Path, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Keys(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        service = Service("history", settings_for(tmp_path, **{which: taken}))
        closed = asyncio.Event()

        async def close() -> None:
            closed.set()

        service.on_close(close)
        with pytest.raises(SystemExit) as ended:
            await service.run()
    assert ended.value.code == 3
    told = capsys.readouterr().err
    assert str(taken) in told
    assert f"DINEMESH_{which.upper()}" in told
    assert closed.is_set()


async def test_a_second_service_on_the_port_of_a_running_one_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        second = Service("history", settings_for(tmp_path, port=server.service.port))
        with pytest.raises(SystemExit) as ended:
            await second.run()
    assert ended.value.code == 3


def test_a_key_file_that_cannot_be_used_is_named_and_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        Service("history", settings_for(tmp_path))
    assert ended.value.code == 2
    assert "DINEMESH_JWKS_FILE" in capsys.readouterr().err


async def test_until_the_schema_is_there_calls_are_refused_and_the_service_is_alive_not_ready(
    tmp_path: Path,
) -> None:
    database_up, asked, worked = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def schema() -> None:
        asked.set()
        if not database_up.is_set():
            raise StoreUnavailable("down")

    class Work:
        async def run(self) -> None:
            worked.set()
            await asyncio.Event().wait()

    def arrange(service: Service) -> None:
        service.before_work("schema", schema)
        service.add_worker(Work(), "work")

    async with serving(tmp_path, arrange=arrange, ready=False) as server:
        await asked.wait()
        said = await refused(server.list())
        assert said.reason == "TRY_AGAIN_LATER"
        assert said.retry_after is not None and 1 <= said.retry_after <= 1.25
        health = asking(server.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
        assert (await health.Check(health_pb2.HealthCheckRequest(service="live"))).status != NOT_SERVING
        assert not worked.is_set()
        database_up.set()
        await until(lambda: server.service.health.ready)
        await until(worked.is_set)
        await server.list()


async def test_readiness_follows_a_check_and_liveness_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit_service, "CHECK_SECONDS", 0.01)
    up = True

    async def check() -> None:
        if not up:
            raise StoreUnavailable("down")

    async with serving(tmp_path, arrange=lambda service: service.add_check("database", check)) as server:
        up = False
        await until(lambda: not server.service.health.ready)
        live = await asking(server.channel).Check(health_pb2.HealthCheckRequest(service="live"))
        assert live.status != NOT_SERVING
        up = True
        await until(lambda: server.service.health.ready)


async def test_a_service_is_not_ready_while_its_database_takes_no_changes(tmp_path: Path) -> None:
    def arrange(service: Service) -> None:
        service.open_store("history_svc")

    async with serving(tmp_path, arrange=arrange) as server:
        with closing(sqlite3.connect(tmp_path / "test.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # it can still be read
            await until(lambda: not server.service.health.ready, seconds=4)
            live = await asking(server.channel).Check(health_pb2.HealthCheckRequest(service="live"))
            assert live.status != NOT_SERVING
            other.execute("ROLLBACK")
        await until(lambda: server.service.health.ready)


async def test_an_orderly_stop_serves_late_calls_finishes_running_ones_and_closes_in_reverse(
    tmp_path: Path,
) -> None:
    go, begun, order = asyncio.Event(), asyncio.Event(), list[str]()

    async def slow(request: Any, context: Any) -> Any:
        begun.set()
        await go.wait()
        order.append("call")
        return await answer(request, context)

    class Work:
        def __init__(self, name: str) -> None:
            self.name = name

        async def run(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                order.append(self.name)

    def closing(name: str) -> Any:
        async def close() -> None:
            order.append(name)

        return close

    def arrange(service: Service) -> None:
        for name in ("first", "second"):
            service.add_worker(Work(f"{name} worker"), name)
            service.on_close(closing(f"{name} closer"))

    async def task_of_a_call() -> None:
        await go.wait()
        order.append("background")

    servicer = Servicer(slow)
    async with serving(tmp_path, servicer, arrange=arrange, drain_seconds=0.5) as server:
        server.service.background.start(task_of_a_call(), "background")
        running = asyncio.ensure_future(server.list())
        await begun.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: not server.service.health.ready)
        servicer.listing = answer
        await server.list()  # a proxy that has not yet noticed still gets its answer
        assert not server.task.done()
        await until(lambda: server.service.changes.stopping)
        go.set()
        await running
        await server.task
    assert set(order[:2]) == {"call", "background"}
    assert order[2:] == ["second worker", "first worker", "second closer", "first closer"]


async def test_what_is_under_way_at_the_stop_is_finished_before_anything_is_closed(tmp_path: Path) -> None:
    begun, answer_it, finish, order = asyncio.Event(), asyncio.Event(), asyncio.Event(), list[str]()

    async def slow(request: Any, context: Any) -> Any:
        begun.set()
        await answer_it.wait()
        order.append("call")
        return await answer(request, context)

    async def work_without_a_caller() -> None:
        await finish.wait()
        order.append("work")

    async def close() -> None:
        order.append("closed")

    async def refuses_new_calls() -> None:
        async with asyncio.timeout(10), grpc.aio.insecure_channel(f"127.0.0.1:{server.service.port}") as new:
            stub: Any = pb_grpc.HistoryServiceStub(new)
            servicer.listing = answer
            while True:
                try:
                    await stub.ListTimelineEntries(
                        pb.ListTimelineEntriesRequest(), metadata=server.token(), timeout=10
                    )
                except grpc.aio.AioRpcError as error:
                    # A call that comes at the very moment is cancelled; there is no drain here.
                    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                    return

    servicer = Servicer(slow)
    async with serving(tmp_path, servicer, arrange=lambda service: service.on_close(close)) as server:
        work = server.service.background.start(work_without_a_caller(), "work")
        running = asyncio.ensure_future(server.list())
        await begun.wait()
        server.service.stop()
        await refuses_new_calls()
        await asyncio.wait((running, work), timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
        assert not running.done(), "the call was cut off"
        answer_it.set()
        await running
        await asyncio.wait((work,), timeout=0.2)
        assert not work.done(), "the work was cut off"
        finish.set()
        await asyncio.wait_for(server.task, 10)
    assert order == ["call", "work", "closed"]


async def test_a_second_signal_leaves_out_the_waiting(tmp_path: Path) -> None:
    async with serving(tmp_path, drain_seconds=600) as server:
        server.service.stop()
        await until(lambda: not server.service.health.ready)
        server.service.stop()
        await asyncio.wait_for(server.task, 10)


async def test_a_watch_is_told_that_the_server_stops(tmp_path: Path) -> None:
    async with serving(tmp_path, stop_grace_seconds=60) as server:

        async def nothing() -> list[str]:
            return []

        async def watching(_request: Any, _context: Any) -> AsyncIterator[pb.WatchTimelineResponse]:
            service = server.service
            async for item in tail(nothing, service.changes, "alice", service.pace):
                if isinstance(item, End):
                    yield pb.WatchTimelineResponse(end=item.message())

        server.servicer.watching = watching
        watch = server.stub.WatchTimeline(pb.WatchTimelineRequest(), timeout=30)
        first = asyncio.ensure_future(watch.read())
        await until(lambda: bool(server.service.changes._waiting))
        server.service.stop()
        assert (await first).end.reason == watch_pb2.END_REASON_SERVER_STOPPING
        assert await watch.read() is grpc.aio.EOF
        await asyncio.wait_for(server.task, 20)


class FakeBus(kit_bus.Bus):
    """A broker that is there or not."""

    def __init__(self, *, there: bool) -> None:
        self.there = there

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def wait_connected(self, seconds: float) -> bool:
        return self.there


class FakeConsumer:
    def __init__(self) -> None:
        self.caught_up = asyncio.Event()

        class Subscription:
            queue = "history.timeline"

        self.subscription = Subscription()

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def measure(self) -> None: ...


async def test_readiness_waits_until_a_subscription_has_caught_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit_service, "BROKER_SECONDS", 0.05)
    consumer: Any = FakeConsumer()

    def arrange(service: Service) -> None:
        service.add_worker(FakeBus(there=True), "bus")
        service.add_consumer(consumer)

    async with serving(tmp_path, arrange=arrange, ready=False) as server:
        await server.list()  # taken, although not yet ready
        assert not server.service.health.ready
        consumer.caught_up.set()
        await until(lambda: server.service.health.ready)


async def test_without_a_broker_the_service_becomes_ready_all_the_same(tmp_path: Path) -> None:
    def arrange(service: Service) -> None:
        service.add_worker(FakeBus(there=False), "bus")
        consumer: Any = FakeConsumer()
        service.add_consumer(consumer)

    async with serving(tmp_path, arrange=arrange) as server:
        assert server.service.health.ready


async def test_metrics_are_served_from_a_thread_of_their_own(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.list()
        url = f"http://127.0.0.1:{server.service.metrics_port}/metrics"
        text: list[str] = []

        def fetch() -> None:
            with urllib.request.urlopen(url, timeout=10) as reply:
                text.append(reply.read().decode())

        thread = threading.Thread(target=fetch)
        thread.start()
        thread.join(10)  # the event loop stands still meanwhile
        assert time.monotonic()
    assert "dinemesh_calls_total" in text[0]
    assert "dinemesh_store_queue_changes" in text[0]


@pytest.mark.parametrize(("pause_seconds", "sent_away"), [(0.15, False), (0.0, True)])
async def test_a_proxy_may_ping_a_connection_that_rests_but_not_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause_seconds: float, sent_away: bool
) -> None:
    """HTTP/2 by hand: no client library pings as soon as this."""
    monkeypatch.setattr(kit_service, "PING_INTERVAL_MS", 100)
    settings, ping, goaway = 4, 6, 7

    def frame(kind: int, payload: bytes = b"") -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + bytes(4) + payload

    async def answer_to_a_ping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        writer.write(frame(ping, bytes(8)))
        while True:
            head = await asyncio.wait_for(reader.readexactly(9), 10)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] in (ping, goaway):
                return head[3]

    async with serving(tmp_path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.service.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(settings))
        answers = [ping]
        while answers[-1] == ping and len(answers) <= 6:  # it is patient with the first three
            answers.append(await answer_to_a_ping(reader, writer))
            await asyncio.sleep(pause_seconds)
        writer.close()
    assert (answers[-1] == goaway) == sent_away, answers


async def test_a_service_that_drains_does_not_call_itself_ready_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kit_service, "CHECK_SECONDS", 0.01)
    checks = 0

    async def check() -> None:
        nonlocal checks
        checks += 1

    async with serving(tmp_path, arrange=lambda s: s.add_check("all", check), drain_seconds=600) as server:
        server.service.stop()
        at = checks
        await until(lambda: checks > at + 2)
        server.service.stop()
        await asyncio.wait_for(server.task, 20)
    told = capsys.readouterr().out
    assert (told.count('"message": "ready"'), told.count('"message": "stopping"')) == (1, 1)
