"""What a check is: it looks at one part after the other, and says at the end what it found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Set
from typing import ClassVar, TypeVar

from operations.limits import Limits
from operations.report import Finding, Pending, Violation
from operations.snapshot import About, Snapshot

T = TypeVar("T")

MOST_KEPT = 10_000
"""Of one kind, one by one; more are counted. A person reads fewer, and memory has an end."""


class Check(ABC):
    """One reading of one check. `needs` are the sources without which it has nothing to say, `about` the
    parts that it looks at."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    about: ClassVar[Set[About]]

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._violations: dict[Violation, None] = {}
        self._pending: dict[Pending, None] = {}
        self._noted: dict[Pending, None] = {}
        self._more = 0

    @abstractmethod
    def look(self, part: Snapshot) -> None:
        """Take in a part, or a whole snapshot."""

    @abstractmethod
    def looked_at(self) -> str:
        """What there was, and how much of it."""

    def at_last(self) -> Iterable[Violation | Pending]:
        """What can be said only when all parts were looked at."""
        return ()

    def add(self, found: Iterable[Violation | Pending]) -> None:
        """The same thing may be seen from two parts."""
        for one in found:
            if not isinstance(one, Violation):
                _keep(self._pending, one)
            elif not _keep(self._violations, one):
                self._more += 1

    def note(self, found: Iterable[Pending]) -> None:
        """What is allowed and stays as it is."""
        for one in found:
            _keep(self._noted, one)

    def finding(self) -> Finding:
        """Adds what `at_last` says; to be called once, after the last part."""
        self.add(self.at_last())
        return Finding(
            self.name,
            self.looked_at(),
            tuple(self._violations),
            tuple(self._pending),
            tuple(self._noted),
            self._more,
        )


def _keep(kept: dict[T, None], one: T) -> bool:
    if one not in kept and len(kept) >= MOST_KEPT:
        return False
    kept[one] = None
    return True
