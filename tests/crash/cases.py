"""Which points there are, read from the code; which of them a story passes, heard from the processes."""

from __future__ import annotations

import ast
import functools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinemesh.kit import crash
from tests.crash.stories import Story
from tests.support.mesh import ROOT

PACKAGES = ("dinemesh/kit", "reservation_svc", "deposit_svc", "restaurant_svc", "history_svc")

Lines = Mapping[str, frozenset[str]]
"""By service, the points that it passed, each with what it was working on."""


@dataclass(frozen=True, order=True)
class Case:
    """A process that dies at a point, and the story in which it does."""

    service: str
    line: str

    @property
    def point(self) -> str:
        return self.line.partition(" ")[0]

    def __str__(self) -> str:
        return f"{self.service}: {self.line}"


def modules() -> Iterator[Path]:
    """Every module of the product in which a point can stand."""
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def points_in(source: str) -> Iterator[str]:
    """The names of the points in a module's source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _is_point(node.func):
            name = node.args[0]
            assert isinstance(name, ast.Constant), f"line {node.lineno}: a point has a literal name"
            yield str(name.value)


@functools.cache
def all_points() -> tuple[str, ...]:
    """Of the whole product. A name that stands twice is there twice."""
    return tuple(
        name for module in modules() if module.name != "crash.py" for name in points_in(module.read_text())
    )


def _is_point(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "crash"
        and function.attr in (crash.point.__name__, crash.points.__name__)
    )


Cases = Mapping[Case, Story]
Group = Sequence[tuple[Case, Story]]
"""Cases one of which is enough."""


def each(cases: Cases) -> list[Group]:
    """All of them."""
    return [[one] for one in cases.items()]


def one_of_each_point(cases: Cases, seed: int, most: int | None = None) -> list[Group]:
    """A death at each point, or at `most` of them, in whichever service and at whatever work; the seed says
    which are tried first."""
    chance = random.Random(seed)
    points: dict[str, list[tuple[Case, Story]]] = {}
    for case, story in sorted(cases.items(), key=lambda one: one[0]):
        points.setdefault(case.point, []).append((case, story))
    groups: list[Group] = []
    for group in points.values():
        chance.shuffle(group)
        groups.append(group)
    chance.shuffle(groups)
    return groups[:most]


@dataclass
class Found:
    """What the discovery runs of the stories passed."""

    runs: dict[Story, list[Lines]]

    def cases(self) -> dict[Case, Story]:
        """Each with the first story that passes it every time."""
        found: dict[Case, Story] = {}
        for story, runs in self.runs.items():
            for service in runs[0]:
                always = frozenset.intersection(*(run[service] for run in runs))
                for line in sorted(always):
                    found.setdefault(Case(service, line), story)
        return found

    def sometimes(self) -> dict[Case, Story]:
        """What no story passes every time, the other order of a race; each with a story that did."""
        sure = self.cases()
        return {
            Case(service, line): story
            for story, runs in self.runs.items()
            for run in runs
            for service, lines in run.items()
            for line in sorted(lines)
            if Case(service, line) not in sure
        }

    def stories(self, case: Case) -> list[Story]:
        """All that passed it, at least sometimes."""
        return [
            story
            for story, runs in self.runs.items()
            if any(case.line in run.get(case.service, ()) for run in runs)
        ]

    def never(self) -> list[str]:
        """Points of the code that no story passes."""
        passed = {line.partition(" ")[0] for run in self._all() for lines in run.values() for line in lines}
        return sorted(set(all_points()) - passed)

    def _all(self) -> Iterable[Lines]:
        return (run for runs in self.runs.values() for run in runs)
