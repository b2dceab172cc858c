"""The services themselves with Istio's Envoy between them: two deposits on one PostgreSQL, real charges."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from dinemesh.deposit.v1 import deposit_pb2
from local_mesh.broker import RunningBroker
from tests.istio.proxy import DEPOSIT, Proxy
from tests.mesh.people import City, kept, patiently, until
from tests.policy.ways import ISTIO_LISTENER
from tests.support.mesh import Part, RunningMesh
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer
from tests.support.refusals import Refused, refusal, refused

DEADLINE = 10.0
MANY = 140
"""More than the 128 calls that a pod's proxy lets through at once."""
"""What a caller gives each attempt."""
AT_THE_DOOR = 0.25
"""A refusal while deposit is known to be sick comes in less than this, seconds."""

AS_SHIPPED = {
    # The times of the services that this policy is made for, and not those that make other tests short.
    "reservation": {
        "DEPOSIT_DEADLINE_MS": "4000",
        "ATTEMPT_DEADLINE_SECONDS": "10",
        "HOLD_EXPIRE_SECONDS": "120",
    },
    "deposit": {"CHARGE_TIMEOUT_MS": "7000", "PENDING_SETTLE_SECONDS": "12", "PROVIDER_TIMEOUT_MS": "2000"},
}


@dataclass
class Whole:
    mesh: RunningMesh
    deposits: list[Part]
    proxy: Proxy


def reached_by_address(made: Any) -> None:
    """Reservation dials its Envoy here by an address, and not the name of deposit."""
    (host,) = (
        host
        for config in made["routes"]
        for host in config["virtualHosts"]
        if host["name"].startswith("deposit.")
    )
    host["domains"].append("127.0.0.1")


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, broker: RunningBroker, postgres: PostgresServer
) -> Iterator[Whole]:
    folder = tmp_path_factory.mktemp("mesh-and-istio")
    mesh = RunningMesh(
        folder,
        broker.fresh_url(),
        databases={"deposit": postgres.fresh("deposit_svc")},
        settings=AS_SHIPPED,
    )
    second = _second(mesh, folder)
    deposits = [mesh["deposit"], second]
    proxy = Proxy(
        "reservation",
        folder / "proxy",
        {DEPOSIT: [one.address for one in deposits]},
        listener=ISTIO_LISTENER,
        mutate=reached_by_address,
    )
    mesh["reservation"].environment["DEPOSIT_ADDRESS"] = proxy.address
    mesh.parts["deposit-2"] = second
    proxy.start()
    mesh.start()
    yield Whole(mesh, deposits, proxy)
    mesh.stop()
    proxy.stop()


def _second(mesh: RunningMesh, folder: Path) -> Part:
    port, metrics_port = free_ports(2)
    environment = mesh["deposit"].environment | {"PORT": str(port), "METRICS_PORT": str(metrics_port)}
    return Part("deposit-2", "deposit_svc.main", port, environment, folder / "deposit-2.log")


@pytest.fixture
async def city(whole: Whole) -> AsyncIterator[City]:
    city = City(whole.mesh)
    yield city
    await city.close()


async def test_more_reservations_at_once_than_the_mesh_lets_through_are_all_served(
    whole: Whole, city: City, record_property: Callable[[str, object], None]
) -> None:
    place = await city.place(capacity=1000)
    await city.customer().book(place)
    known = set(await city.provider.charges())
    visitors = [city.customer() for _ in range(MANY)]
    wishes = [one.wish(place) for one in visitors]

    async def attempt(n: int) -> Refused | None:
        try:
            await visitors[n].send(wishes[n], timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            return refusal(error)
        return None

    begin = time.monotonic()
    answers = await asyncio.gather(*(attempt(n) for n in range(MANY)))
    took = time.monotonic() - begin
    served = sum(one is None for one in answers)
    assert took < DEADLINE
    # More than Envoy lets through at once: reservation has them wait for their turn, so that none is refused.
    assert served == MANY, Counter(one and one.message for one in answers)
    assert whole.proxy.stat("upstream_rq_active_overflow") == 0

    # Money: one charge that counts for each that was served, none for the others.
    async def paid() -> list[int]:
        charges = await city.provider.charges()
        return [kept(one) for key, one in charges.items() if key not in known and kept(one)]

    price = 2 * 1000
    assert await until(paid, lambda found: len(found) == served) == [price] * served
    for n, one in enumerate(answers):
        if one is None:
            (deposit,) = await visitors[n].deposits()
            assert deposit.state == deposit_pb2.DEPOSIT_STATE_CAPTURED
    record_property("answers", f"{MANY} at once: {served} served, {MANY - served} refused, {took:.1f} s")


def _kill(one: Part) -> None:
    one.kill()


def _hang(one: Part) -> None:
    one.pause()


def _revive(one: Part) -> None:
    if one.hangs:
        one.resume()
    else:
        one.start()


@pytest.mark.parametrize(("fault", "longest"), [(_kill, 1.0), (_hang, 3.5)])
async def test_with_both_deposits_sick_clients_are_refused_fast_and_told_when_to_come_back(
    whole: Whole,
    city: City,
    fault: Callable[[Part], None],
    longest: float,
    record_property: Callable[[str, object], None],
) -> None:
    place = await city.place(capacity=1000)
    for one in whole.deposits:
        fault(one)
    times: list[float] = []
    try:
        for _ in range(12):
            begin = time.monotonic()
            customer = city.customer()
            said = await refused(customer.send(customer.wish(place), timeout=DEADLINE))
            times.append(time.monotonic() - begin)
            assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TRY_AGAIN_LATER")
            assert said.retry_after is not None
    finally:
        for one in whole.deposits:
            _revive(one)
    # Cut off by the route (3 s), not by reservation's own deadline (4 s); then not even asked.
    assert max(times) < longest + 0.4
    assert sorted(times)[len(times) // 2 - 1] < AT_THE_DOOR, times
    visitor = city.customer()
    wish = visitor.wish(place)
    await patiently(lambda: visitor.send(wish, timeout=DEADLINE), seconds=60)
    record_property("seconds", " ".join(f"{one:.2f}" for one in times))
