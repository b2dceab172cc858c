"""Two real deposits on one PostgreSQL behind the proxy, as `make up DEPOSITS=2` has them.

What clients see while one is killed, stopped or hangs, while both do, and while too many come at once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from local_mesh import parts
from local_mesh.broker import RunningBroker
from operations.audit import audit
from tests.mesh.people import CONFIRMED, City, Customer, Place, Reservation, bearer, kept, patiently, until
from tests.mesh.test_audit import QUIET_SECONDS, sources
from tests.support.mesh import Part, RunningMesh
from tests.support.policy import RunningPolicy
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer
from tests.support.refusals import Refused, refusal

figures = logging.getLogger("figures")

SETTINGS = {
    # As on one machine, but reservation has no limits of its own: here only the proxy is looked at.
    "reservation": {
        "CHARGES_AT_ONCE": "250",
        "CUSTOMER_ATTEMPTS_LIMIT": "250",
        "CUSTOMER_HELD_SEATS_LIMIT": "500",
        "UNPAID_ATTEMPTS_FREE": "40",
        "DEPOSIT_DEADLINE_MS": "4000",
        "ATTEMPT_DEADLINE_SECONDS": "10",
        "HOLD_EXPIRE_SECONDS": "30",
        "RETRY_AFTER_SECONDS": "1",
    },
    "deposit": {
        "DRAIN_SECONDS": str(parts.TWO_DRAIN_SECONDS),
        "STOP_GRACE_SECONDS": "10",
        "PROVIDER_TIMEOUT_MS": "2000",
        "CHARGE_TIMEOUT_MS": "7000",
        "PENDING_SETTLE_SECONDS": "12",
        "SETTLE_LEASE_SECONDS": "15",
    },
}
DEADLINE = 5.0
"""What a client gives an attempt, seconds."""
ROUTE_SECONDS = 3.0
ERRORS_IN_A_ROW = 5
AT_ONCE = 128
OVERFLOW = "upstream_rq_active_overflow"
MANY = 200


@dataclass
class Scene:
    mesh: RunningMesh
    policy: RunningPolicy
    one: Part
    other: Part

    @property
    def well(self) -> int:
        """Instances that the proxy sends to."""
        return self.policy.stat("membership_healthy")

    async def sees(self, well: int, seconds: float = 30) -> float:
        """Waits until the proxy sends to so many; how long that took."""
        begin = time.monotonic()
        await until(lambda: asyncio.to_thread(lambda: self.well), lambda seen: seen == well, seconds)
        return time.monotonic() - begin


@pytest.fixture(scope="module")
def scene(
    tmp_path_factory: pytest.TempPathFactory, broker: RunningBroker, postgres: PostgresServer
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("two-deposits")
    databases = {"deposit": postgres.fresh("deposit_svc")}
    mesh = RunningMesh(folder, broker.fresh_url(), databases=databases, settings=SETTINGS)
    port, metrics_port = free_ports(2)
    one = mesh["deposit"]
    there = one.environment | {"PORT": str(port), "METRICS_PORT": str(metrics_port)}
    other = Part("deposit-2", "deposit_svc.main", port, there, folder / "deposit-2.log")
    policy = RunningPolicy(folder, [one.address, other.address])
    mesh["reservation"].environment["DEPOSIT_ADDRESS"] = policy.address
    mesh.parts["deposit-2"] = other
    try:
        mesh.start()
        policy.start()
        yield Scene(mesh, policy, one, other)
    finally:
        mesh.stop()
        policy.stop()


@pytest.fixture
async def city(scene: Scene) -> AsyncIterator[City]:
    """With both deposits well, whatever the test before did to them."""
    for part in (scene.one, scene.other):
        if part.hangs:
            part.resume()
        if not part.running:
            part.start()
    await scene.sees(2, 60)
    found = City(scene.mesh)
    visitor, place = found.customer(), await found.place(capacity=10)
    await patiently(lambda: visitor.send(visitor.wish(place)))  # reservation's breaker is closed
    yield found
    await found.close()


async def attempt(customer: Customer, place: Place, card: str = "tok_visa") -> Reservation | Refused:
    try:
        return await customer.send(customer.wish(place, card=card), timeout=DEADLINE)
    except grpc.aio.AioRpcError as error:
        return refusal(error)


async def timed(what: Awaitable[Reservation | Refused]) -> tuple[Reservation | Refused, float]:
    begin = time.monotonic()
    return await what, time.monotonic() - begin


def refusals(said: list[Reservation | Refused]) -> list[Refused]:
    """Each with a retry time: nobody is left alone."""
    found = [one for one in said if isinstance(one, Refused)]
    for one in found:
        assert (one.code, one.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TRY_AGAIN_LATER"), one
        assert one.retry_after is not None and one.retry_after > 0
    return found


async def test_while_one_is_killed_a_few_are_refused_and_then_nobody_notices(
    scene: Scene, city: City
) -> None:
    place, alice = await city.place(capacity=1000), city.customer()
    scene.other.kill()
    said: list[Reservation | Refused] = []
    while scene.well > 1:
        said += await asyncio.gather(*(attempt(alice, place) for _ in range(4)))
        assert len(said) < 200
    # Errors in a row, and those that were on their way at that moment; or the checks were quicker.
    failed = refusals(said)
    assert len(failed) <= 2 * ERRORS_IN_A_ROW
    await patiently(lambda: alice.send(alice.wish(place)))
    assert not refusals([await attempt(alice, place) for _ in range(30)])
    begin = time.monotonic()
    scene.other.spawn()
    await scene.sees(2, 60)
    figures.info(
        "one of two killed: out after %s calls, %s refused, then 30 of 30 booked; back %.1f s after a start",
        *(len(said), len(failed), time.monotonic() - begin),
    )


async def test_while_one_hangs_nobody_waits_longer_than_the_route_and_then_nobody_notices(
    scene: Scene, city: City
) -> None:
    place, alice = await city.place(capacity=1000), city.customer()
    scene.other.pause()
    said = await asyncio.gather(*(timed(attempt(alice, place)) for _ in range(2 * ERRORS_IN_A_ROW)))
    failed = refusals([one for one, _ in said])
    assert 1 <= len(failed) < len(said), "void: the one that hangs got no call, or all"
    assert ROUTE_SECONDS - 0.2 < max(seconds for _, seconds in said) < ROUTE_SECONDS + 1
    await scene.sees(1, 5)
    await patiently(lambda: alice.send(alice.wish(place)))
    later = [await timed(attempt(alice, place)) for _ in range(30)]
    assert not refusals([one for one, _ in later])
    assert max(seconds for _, seconds in later) < ROUTE_SECONDS / 2
    assert scene.other.hangs
    scene.other.resume()
    back = await scene.sees(2)
    figures.info(
        "one of two hangs: %s of %s refused, the last after %.2f s, then 30 of 30 booked; back after %.1f s",
        *(len(failed), len(said), max(seconds for _, seconds in said), back),
    )


async def test_while_both_hang_all_are_refused_with_a_retry_time_and_soon_at_once(
    scene: Scene, city: City
) -> None:
    place, alice = await city.place(capacity=1000), city.customer()
    for part in (scene.one, scene.other):
        part.pause()
    # Several see it: of one alone the breaker would ask deposit's health first.
    first = await asyncio.gather(*(timed(attempt(city.customer(), place)) for _ in range(10)))
    assert len(refusals([one for one, _ in first])) == 10
    assert max(seconds for _, seconds in first) < ROUTE_SECONDS + 1
    later = [await timed(attempt(alice, place)) for _ in range(20)]
    assert len(refusals([one for one, _ in later])) == 20
    slowest = max(seconds for _, seconds in later)
    assert slowest < 0.5
    assert scene.policy.stat("lb_healthy_panic") == 0
    for part in (scene.one, scene.other):
        part.resume()
    begin = time.monotonic()
    booked = await patiently(lambda: alice.send(alice.wish(place), timeout=DEADLINE))
    await alice.sees(booked, CONFIRMED)
    figures.info(
        "both hang: 10 of 10 refused after at most %.2f s, 20 of 20 later ones after at most %.3f s; "
        "the first booking %.1f s after they go on",
        *(max(seconds for _, seconds in first), slowest, time.monotonic() - begin),
    )


async def test_of_two_hundred_at_once_as_many_as_may_are_served_and_the_rest_refused_at_once(
    scene: Scene, city: City
) -> None:
    place, alice = await city.place(capacity=1000), city.customer()
    before = set(await city.provider.charges())
    overflown = scene.policy.stat(OVERFLOW)
    wishes = [alice.wish(place, card="tok_slow_1000") for _ in range(MANY)]
    waited: list[float] = []

    async def send(number: int) -> Reservation | Refused:
        try:
            return await alice.send(wishes[number], timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            return refusal(error)
        finally:
            waited.append(time.monotonic() - begin)

    begin = time.monotonic()
    said = list(await asyncio.gather(*(send(number) for number in range(MANY))))
    failed = refusals(said)
    served = [one for one in said if not isinstance(one, Refused)]
    assert len(waited) == MANY and max(waited) < DEADLINE
    assert AT_ONCE <= len(served) < MANY
    assert scene.policy.stat(OVERFLOW) > overflown, "void: the limit was not reached"
    assert scene.policy.stat("outlier_detection.ejections_active") == 0, (
        "too many calls are no fault of an instance"
    )

    async def charged() -> dict[str, Any]:
        return {key: one for key, one in (await city.provider.charges()).items() if key not in before}

    new = await charged()
    assert sorted(kept(one) for one in new.values() if kept(one)) == [2000] * len(served)
    figures.info(
        "%s reserves at once against a limit of %s: %s served, %s refused TRY_AGAIN_LATER, the last answer "
        "after %.2f s, %s cards charged",
        *(MANY, AT_ONCE, len(served), len(failed), max(waited), len(new)),
    )
    # Those who come again as they were asked to are charged once, and those who were served not again.
    again = await asyncio.gather(
        *(alice.send(wish) for wish, one in zip(wishes, said, strict=True) if one in served)
    )
    assert {one.reservation_id for one in again} == {one.reservation_id for one in served}
    late = [wish for wish, one in zip(wishes, said, strict=True) if one not in served][:20]
    for wish in late:
        await patiently(lambda wish=wish: alice.send(wish, timeout=DEADLINE))  # type: ignore[misc]
    money = sorted(kept(one) for one in (await charged()).values() if kept(one))
    assert money == [2000] * (len(served) + len(late))


async def test_a_planned_stop_of_one_fails_no_booking(scene: Scene, city: City) -> None:
    place = await city.place(capacity=1000)
    said: list[Reservation | Refused] = []
    stopping = False

    async def guest() -> None:
        alice = city.customer()
        while not stopping:
            said.append(await attempt(alice, place, "tok_slow_50"))

    async with asyncio.TaskGroup() as guests:
        for _ in range(4):
            guests.create_task(guest())
        await until(lambda: asyncio.sleep(0, len(said)), lambda count: count > 20)
        scene.other.tell(signal.SIGTERM)
        assert await asyncio.to_thread(scene.other.wait_for_exit, 20) == 0
        count = len(said)
        await until(lambda: asyncio.sleep(0, len(said)), lambda seen: seen > count + 20)
        stopping = True
    assert not refusals(said)
    figures.info("a planned stop of one of two: %s bookings, 0 refused", len(said))


@pytest.mark.parametrize(
    ("method", "body", "says"),
    [
        ("CreateDeposit", b"\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        ("CreateDeposit", b"", grpc.StatusCode.INVALID_ARGUMENT),
        ("GetDeposit", b"\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        ("EatDeposit", b"", grpc.StatusCode.UNIMPLEMENTED),
    ],
)
async def test_calls_that_nobody_can_serve_eject_nobody(
    scene: Scene, city: City, method: str, body: bytes, says: grpc.StatusCode
) -> None:
    role = "customer" if method.startswith("Get") else "service"
    metadata = bearer(scene.mesh.token("reservation", role))
    said: Counter[grpc.StatusCode] = Counter()
    async with grpc.aio.insecure_channel(scene.policy.address) as channel:
        path = f"/dinemesh.deposit.v1.DepositService/{method}"
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        for _ in range(4 * ERRORS_IN_A_ROW):
            try:
                await call(body, metadata=metadata, timeout=DEADLINE)
            except grpc.aio.AioRpcError as error:
                said[error.code()] += 1
    assert said == {says: 4 * ERRORS_IN_A_ROW}
    assert scene.policy.stat("outlier_detection.ejections_active") == 0
    assert scene.well == 2


async def test_guests_who_give_up_early_eject_nobody(scene: Scene, city: City) -> None:
    place, alice = await city.place(capacity=1000), city.customer()
    detected = "outlier_detection.ejections_detected_consecutive_gateway_failure"
    before = scene.policy.stat(detected)
    for _ in range(3):
        calls = [alice.send(alice.wish(place, card="tok_slow_2500"), timeout=0.8) for _ in range(4)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert not any(isinstance(one, Reservation) for one in ends)
    assert scene.policy.stat(detected) == before
    assert scene.well == 2


async def test_after_all_that_the_books_agree(scene: Scene, city: City) -> None:
    await until(
        lambda: audit(sources(scene.mesh), patience_seconds=0.5), lambda found: found.clean, QUIET_SECONDS
    )
