"""What `make bench` measures: kinds of meshes, how much of each, and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks import floor
from benchmarks.floor import Floor
from benchmarks.loads import Load
from benchmarks.meters import GENERATOR, POSTGRESQL


@dataclass(frozen=True)
class Kind:
    """What a mesh keeps its data in, and whether several changes share a transaction."""

    engine: str
    group: bool

    def __str__(self) -> str:
        return f"{self.engine}, {self.mode}"

    @property
    def mode(self) -> str:
        return "group" if self.group else "single"


KINDS = {
    str(kind): kind
    for kind in (Kind(engine, group) for engine in ("SQLite", POSTGRESQL) for group in (True, False))
}


@dataclass(frozen=True)
class Size:
    """How much is measured in a round."""

    seconds: float = 10.0
    """Of each load."""
    in_flight: int = floor.IN_FLIGHT
    alone: int = 100
    """Reservations, one at a time."""
    quiet_seconds: float = 10.0
    floor_seconds: float = floor.SECONDS


TINY = Size(seconds=0.5, in_flight=4, alone=3, quiet_seconds=0.5, floor_seconds=0.3)
"""Shows that everything works, and measures nothing."""


@dataclass
class Booked:
    """Reservations that were made in one phase."""

    load: Load
    confirmed: int
    """Rows that became CONFIRMED, in the database of reservation."""

    @property
    def per_second(self) -> float:
        return self.confirmed / self.load.seconds

    def processor_milliseconds(self) -> dict[str, float]:
        """Of each part, for one that was confirmed."""
        return {part: 1000 * seconds / self.confirmed for part, seconds in self.load.processor.items()}

    def parts_milliseconds(self) -> dict[str, float]:
        """The same without the load generator."""
        return {part: spent for part, spent in self.processor_milliseconds().items() if part != GENERATOR}


Done = Mapping[str, float | None]
"""What was done for one that was confirmed, by the names of Counts; None where it cannot be seen."""


@dataclass
class Measured:
    """One mesh in one round. Times in seconds."""

    quiet: dict[str, float]
    """Of a processor, by part, while nobody calls."""
    alone: Booked
    reserve: list[float]
    to_confirmed: list[float]
    """From the call."""
    done_alone: Done
    loaded: Booked
    done: Done
    edge: Booked
    memory: dict[str, float]
    """Megabytes by part, after the loads."""


@dataclass
class Round:
    echo: Floor
    hops: Floor
    meshes: dict[str, Measured] = field(default_factory=dict)
