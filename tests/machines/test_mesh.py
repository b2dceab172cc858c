"""All services together keep their promises."""

from __future__ import annotations

from tests.machines.mesh import Mesh
from tests.machines.play import play


def test_whatever_happens_in_whatever_order_money_seats_and_events_are_conserved() -> None:
    play(Mesh, examples=40)
