"""A request that is read field by field, so that everything wrong with it is told at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from dinemesh.kit.refusal import Refusal, Violation, invalid_all

P = ParamSpec("P")
V = TypeVar("V")


class Form:
    """Collects what is wrong with the fields of a request; `close` refuses it if there is anything."""

    def __init__(self) -> None:
        self._wrong: list[Violation] = []

    def read(self, check: Callable[P, V], *args: P.args, **kwargs: P.kwargs) -> V:
        """What `check` makes of a field (one of dinemesh.kit.wire, or like them). Of a field that it refuses
        nothing comes, which nobody may use before `close`. Raises a Refusal that is about no field."""
        try:
            return check(*args, **kwargs)
        except Refusal as refusal:
            if not refusal.violations:
                raise
            self._wrong.extend(refusal.violations)
            return cast(V, None)

    def wrong(self, field: str, description: str) -> None:
        """Adds what the caller found wrong itself."""
        self._wrong.append(Violation(field, description))

    def close(self) -> None:
        """Raises INVALID_ARGUMENT with every field that is wrong, if one is."""
        if self._wrong:
            raise invalid_all(self._wrong)
