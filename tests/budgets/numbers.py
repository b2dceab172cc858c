"""Every number of docs/BUDGETS.md, read from where it takes effect. Times in seconds."""

from __future__ import annotations

from tests.budgets import edge, mesh, services, stopping
from tests.budgets.sources import Numbers


def numbers() -> Numbers:
    """By the names of docs/BUDGETS.md."""
    return (
        edge.numbers()
        | edge.in_a_cluster()
        | services.numbers()
        | mesh.on_one_machine()
        | mesh.machine_alone()
        | mesh.istio_alone()
        | stopping.numbers()
    )
