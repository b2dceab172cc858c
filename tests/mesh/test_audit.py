"""After all stories: ledger, provider, seats, bookings and events agree. Runs last (see conftest)."""

from __future__ import annotations

from operations.audit import audit
from operations.snapshot import Sources
from tests.mesh.conftest import on_both_engines
from tests.mesh.people import City, until
from tests.support.mesh import RunningMesh

QUIET_SECONDS = 60.0
"""How long the last stories may take to come to rest: above the lease of an event that a kill -9 caught."""


def sources(mesh: RunningMesh) -> Sources:
    return Sources(
        reservation_db=mesh.databases["reservation"],
        deposit_db=mesh.databases["deposit"],
        restaurant_db=mesh.databases["restaurant"],
        history_db=mesh.databases["history"],
        provider=mesh["sandbox"].address,
        amqp=mesh.operators_amqp_url,
    )


@on_both_engines
async def test_after_all_stories_the_books_agree(city: City, mesh: RunningMesh) -> None:
    # At least this one, where the audit runs alone.
    alice = city.customer()
    await alice.cancel(await alice.book(await city.place()))

    report = await until(
        lambda: audit(sources(mesh), patience_seconds=0.5),
        # One story closed a slot after it had sold seats of it, and one cut a capacity.
        lambda found: found.clean and {one.state for one in found.pending} <= {"OVER CAPACITY"},
        QUIET_SECONDS,
    )
    print(report)  # noqa: T201 - shown by `pytest -rP`, and when it fails
    assert not report.skipped
