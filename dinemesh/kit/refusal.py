"""A refusal: the named reason why a request was not done.

Standard library only, so that the rules of a service (`domain.py`) may raise it. The kit's interceptors
turn it into a google.rpc.Status; no other place names a status code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request (its path in the proto, such as `slots.capacity`) and what is wrong with it."""

    field: str
    description: str


class Refusal(Exception):
    """The request was understood and is not done.

    `reason` is a value of dinemesh.error.v1.Reason without its REASON_ prefix; `message` is for the client's
    developer and must hold no secret; `retry_after` is in seconds; `metadata` goes into ErrorInfo.metadata.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        violations: Iterable[Violation] = (),
        retry_after: float | None = None,
        metadata: Mapping[str, str] = _NOTHING,
    ) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.metadata = metadata

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def invalid(field: str, description: str) -> Refusal:
    """The refusal of a request because of one field."""
    return invalid_all((Violation(field, description),))


def invalid_all(violations: Iterable[Violation]) -> Refusal:
    """The refusal of a request that names everything wrong with it at once."""
    listed = tuple(violations)
    message = "; ".join(f"{one.field}: {one.description}" for one in listed)
    return Refusal("INVALID_ARGUMENT", message, violations=listed)
