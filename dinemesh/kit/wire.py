"""Conversions between protobuf's common types and Python values, and the checks that every request needs.

Each check names the field it speaks of, so that the client sees it in BadRequest.
"""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
import uuid
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.date_pb2 import Date
from google.type.money_pb2 import Money
from google.type.timeofday_pb2 import TimeOfDay

from dinemesh.kit.currency import decimals
from dinemesh.kit.instants import EPOCH, to_micros
from dinemesh.kit.refusal import invalid

_NANOS = 1_000_000_000
# Years 1 to 9999, as google.protobuf.Timestamp promises.
_FIRST_SECOND = int((dt.datetime.min.replace(tzinfo=dt.UTC) - EPOCH).total_seconds())
_LAST_SECOND = int((dt.datetime.max.replace(tzinfo=dt.UTC) - EPOCH).total_seconds())
_MAX_MINOR = 10**15  # far above any amount of money, far below what a BIGINT holds

_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)

# Categories of Unicode with something to see, and those of their characters that show nothing all the same:
# fillers of Hangul, the empty Braille cell, the null notehead.
_VISIBLE = frozenset("LNPS")
_INVISIBLE = frozenset("\u115f\u1160\u3164\uffa0\u2800\U0001d159")

V = TypeVar("V")


def to_timestamp(instant: dt.datetime) -> Timestamp:
    """An aware datetime as Timestamp, to the microsecond."""
    seconds, rest = divmod(to_micros(instant), 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1000)


def from_timestamp(value: Timestamp, field: str) -> dt.datetime:
    """A Timestamp as aware UTC datetime; what is finer than a microsecond is cut off."""
    if not (_FIRST_SECOND <= value.seconds <= _LAST_SECOND and 0 <= value.nanos < _NANOS):
        raise invalid(field, "is not a valid timestamp")
    return EPOCH + dt.timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)


def to_duration(value: dt.timedelta | float) -> Duration:
    """A timedelta, or seconds, as Duration."""
    delta = value if isinstance(value, dt.timedelta) else dt.timedelta(seconds=value)
    result = Duration()
    result.FromTimedelta(delta)
    return result


def from_duration(value: Duration, field: str) -> dt.timedelta:
    """A Duration as timedelta; seconds and nanos must have the same sign."""
    if abs(value.seconds) > 315_576_000_000 or abs(value.nanos) >= _NANOS or value.seconds * value.nanos < 0:
        raise invalid(field, "is not a valid duration")
    try:
        return dt.timedelta(seconds=value.seconds, microseconds=int(value.nanos / 1000))
    except OverflowError:
        raise invalid(field, "is too long") from None


def to_money(minor_units: int, currency: str) -> Money:
    """An amount in the currency's smallest unit (cents) as Money."""
    scale = 10 ** decimals(currency)
    sign = -1 if minor_units < 0 else 1
    units, rest = divmod(abs(minor_units), scale)
    return Money(currency_code=currency, units=sign * units, nanos=sign * rest * (_NANOS // scale))


def from_money(value: Money, field: str) -> tuple[int, str]:
    """(amount in the smallest unit, currency code); refuses fractions of the smallest unit.

    Any three capitals are a code here, since what was agreed in one stays readable; what may be agreed on
    anew is for the rules to say (dinemesh.kit.currency).
    """
    if not _CURRENCY.fullmatch(value.currency_code):
        raise invalid(f"{field}.currency_code", "must be a currency code of three capital letters")
    scale = 10 ** decimals(value.currency_code)
    if abs(value.nanos) >= _NANOS or value.units * value.nanos < 0:
        raise invalid(field, "units and nanos do not fit together")
    nanos_per_minor = _NANOS // scale
    if value.nanos % nanos_per_minor:
        raise invalid(field, "is finer than the smallest unit of its currency")
    minor = value.units * scale + (value.nanos // nanos_per_minor)
    if abs(minor) > _MAX_MINOR:
        raise invalid(field, "is too large")
    return minor, value.currency_code


def to_date(day: dt.date) -> Date:
    """Sets year, month and day, so that `from_date` takes the result back."""
    return Date(year=day.year, month=day.month, day=day.day)


def from_date(value: Date, field: str) -> dt.date:
    """A full date; one without year, month or day is refused."""
    try:
        return dt.date(value.year, value.month, value.day)
    except (ValueError, OverflowError):
        raise invalid(field, "is not a day of the calendar") from None


def to_time_of_day(time: dt.time) -> TimeOfDay:
    """Keeps microseconds, which `from_time_of_day` refuses, and ignores a time zone."""
    return TimeOfDay(hours=time.hour, minutes=time.minute, seconds=time.second, nanos=time.microsecond * 1000)


def from_time_of_day(value: TimeOfDay, field: str) -> dt.time:
    """A time of day in whole seconds, 00:00:00 to 23:59:59."""
    if value.nanos:
        raise invalid(field, "must be in whole seconds")
    try:
        return dt.time(value.hours, value.minutes, value.seconds)
    except (ValueError, OverflowError):
        raise invalid(field, "is not a time between 00:00:00 and 23:59:59") from None


def present(message: Message, field: str, path: str = "") -> None:
    """Refuses a request whose message field `field` is not set; `path` names it if it is nested."""
    if not message.HasField(field):
        raise invalid(path or field, "is required")


def required(field: str, value: V) -> V:
    """The value, unless it is empty: "", 0, an empty list, an unset enum."""
    if not value:
        raise invalid(field, "is required")
    return value


def between(field: str, value: int, lowest: int, highest: int) -> int:
    """The number, if it lies in the range (both ends included)."""
    if not lowest <= value <= highest:
        raise invalid(field, f"must be between {lowest} and {highest}")
    return value


def is_blank(value: str) -> bool:
    """Whether a text shows nothing: empty, or only spaces, zero-width characters, controls of direction,
    fillers, marks without anything to stand on."""
    return not any(
        unicodedata.category(character)[0] in _VISIBLE and character not in _INVISIBLE for character in value
    )


def text(field: str, value: str, max_length: int, *, optional: bool = False, lines: bool = False) -> str:
    """A text of at most `max_length` characters without control characters, with something to see unless it
    is `optional`; `lines` allows tabs and line breaks: LF, CR LF (a form's text area) and CR."""
    if not optional:
        required(field, value)
    if len(value) > max_length:
        raise invalid(field, f"must have at most {max_length} characters")
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs") and not (lines and character in "\n\r\t"):
            raise invalid(field, "must not contain control characters")
    if not optional and is_blank(value):
        raise invalid(field, "must not be blank: it has no visible character")
    return value


def uuid_field(field: str, value: str) -> str:
    """A UUID in its usual form of 36 characters; returned in lower case, so that one id has one spelling."""
    required(field, value)
    try:
        canonical = str(uuid.UUID(value))
    except ValueError:
        raise invalid(field, "must be a UUID") from None
    if value.lower() != canonical:  # uuid.UUID also takes braces, urn: and missing hyphens
        raise invalid(field, "must be a UUID")
    return canonical
