"""Pages of a list (AIP-158) and places in a watch: an opaque token says where to go on.

A token comes back from a client, so it may be made up. Each list and each watch declares what its tokens
hold (`Tokens`), and only what was declared comes out: values of their types, in their ranges, of this list
with this request. Anything else is one refusal that names the field.

Tokens are not signed. A place in a list is no secret and gives no right (whose rows are read never stands in
the token), and a key that all pods of a service share, over rollouts, would have to be made, kept and changed
for it. So the fields are checked one by one, and what is read from any place on is bounded by the page.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, Protocol, TypeAlias, TypeVar

from dinemesh.kit import wire
from dinemesh.kit.instants import EPOCH, from_micros, to_micros
from dinemesh.kit.refusal import Refusal, invalid

P = TypeVar("P", bound=tuple[Any, ...])
Scalar: TypeAlias = str | int | None

_MAX_TOKEN = 2048  # the longest that is made here, a name of 200 characters outside of Latin, has 1,200
_LAST = dt.datetime.max.replace(tzinfo=dt.UTC)
_BIGINT = 2**63 - 1


def page_size(asked: int, default: int, maximum: int, field: str = "page_size") -> int:
    """How many to return: the default for 0, never more than the maximum."""
    if asked < 0:
        raise invalid(field, "must not be negative")
    return min(asked or default, maximum)


class Kind(Protocol):
    """What one field of a place holds, and how it is written in JSON."""

    def pack(self, value: Any) -> Scalar:
        """The value as a string, a whole number or null."""
        ...

    def unpack(self, packed: object) -> Any:
        """The value, of its type and in its range. Raises ValueError or Refusal for anything else."""
        ...


class _Uuid:
    def pack(self, value: str) -> str:
        return value

    def unpack(self, packed: object) -> str:
        return wire.uuid_field("", _a(str, packed))


@dataclass(frozen=True, slots=True)
class Text:
    """1 to `longest` characters, without control characters and halves of surrogate pairs."""

    longest: int

    def pack(self, value: str) -> str:
        return value

    def unpack(self, packed: object) -> str:
        value = _a(str, packed)
        if not 0 < len(value) <= self.longest:
            raise ValueError("too long, or empty")
        # PostgreSQL takes no NUL, and neither driver takes half of a pair.
        if any(unicodedata.category(one) in ("Cc", "Cs") for one in value):
            raise ValueError("not printable")
        return value


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number, both bounds included. A BIGINT holds no more, and beyond it the engines differ."""

    lowest: int = 0
    highest: int = _BIGINT

    def pack(self, value: int) -> int:
        return value

    def unpack(self, packed: object) -> int:
        value = _a(int, packed)
        if not self.lowest <= value <= self.highest:
            raise ValueError("out of range")
        return value


@dataclass(frozen=True, slots=True)
class Instant:
    """An aware UTC datetime to the microsecond, both bounds included; written as microseconds since 1970."""

    first: dt.datetime = EPOCH
    last: dt.datetime = _LAST

    def pack(self, value: dt.datetime) -> int:
        return to_micros(value)

    def unpack(self, packed: object) -> dt.datetime:
        micros = _a(int, packed)
        if not self.pack(self.first) <= micros <= self.pack(self.last):
            raise ValueError("out of range")
        return from_micros(micros)


@dataclass(frozen=True, slots=True)
class OrNone:
    """What the other kind holds, or None."""

    kind: Kind

    def pack(self, value: Any) -> Scalar:
        return None if value is None else self.kind.pack(value)

    def unpack(self, packed: object) -> Any:
        return None if packed is None else self.kind.unpack(packed)


UUID: Final[Kind] = _Uuid()
INSTANT: Final[Kind] = Instant()
NUMBER: Final[Kind] = Number()


class Tokens(Generic[P]):
    """The tokens of one list or watch, to be built once.

    `name` is the RPC; `place` is a NamedTuple, made of one value for each of `kinds`. A token belongs to the
    name and to a scope (strings, numbers), which is all of the request and of the caller that decides on the
    rows and their order: with another scope it is refused.
    """

    def __init__(
        self,
        name: str,
        place: Callable[..., P],
        *kinds: Kind,
        field: Literal["page_token", "resume_token"] = "page_token",
    ) -> None:
        self._name = name
        self._place = place
        self._kinds = kinds
        self._field = field

    def encode(self, place: P, *scope: Scalar) -> str:
        """The place as a token of the list with this scope."""
        values = [kind.pack(value) for kind, value in zip(self._kinds, place, strict=True)]
        text = json.dumps([self._mark(scope), *values], ensure_ascii=False, separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def decode(self, token: str, *scope: Scalar) -> P | None:
        """The place in a token, None for the empty token; anything that `encode` did not make is refused."""
        if not token:
            return None
        try:
            if len(token) > _MAX_TOKEN:
                raise ValueError("too long")
            packed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            _, *values = _a(list, json.loads(packed.decode()))
            place = self._place(
                *(kind.unpack(value) for kind, value in zip(self._kinds, values, strict=True))
            )
            # A place of one list has one spelling: no other mark, no other alphabet, no spaces, no capitals.
            if self.encode(place, *scope) != token:
                raise ValueError("not as it is written here")
        except (ValueError, binascii.Error, RecursionError, Refusal):
            raise self.refusal() from None
        return place

    def _mark(self, scope: tuple[Scalar, ...]) -> str:
        # Tells tokens apart that were mixed up. It need not withstand somebody who makes one up: 48 bits do.
        return hashlib.sha256(json.dumps([self._name, *scope]).encode()).hexdigest()[:12]

    def refusal(self) -> Refusal:
        """Of a token that is none of these."""
        what = "list" if self._field == "page_token" else "watch"
        return invalid(
            self._field, f"is not a token of this {what} with this request; leave it out to begin anew"
        )


T = TypeVar("T")


def _a(kind: type[T], value: object) -> T:
    """The value, if it is of just this type: True is an int to Python, and no number here."""
    if type(value) is not kind:
        raise ValueError(f"no {kind.__name__}")
    return value
