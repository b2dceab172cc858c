"""What the contracts promise and forbid of a request, phrase by phrase, with inputs to be taken and refused.

PHRASES holds for each field whose comment has the words; ROWS for one field, message or RPC. `test_phrases`
beside this file finds words that promise something and have no inputs, and `tests/edge/test_phrases.py` sends
the inputs over gRPC and JSON.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.date_pb2 import Date
from google.type.money_pb2 import Money
from google.type.timeofday_pb2 import TimeOfDay

from dinemesh.error.v1 import reason_pb2
from dinemesh.restaurant.v1 import restaurant_pb2
from protos.generate import SOURCES, descriptor_set
from protos.openapi.contracts import Contracts, Field, read
from tests.edge.rpcs import RPCS
from tests.mesh import test_bad_requests as bad_requests
from tests.mesh.people import Place, new_id, timestamp


@dataclass(frozen=True)
class Standing(bad_requests.Standing):
    """What there is before the inputs come. The restaurant has slots at any second, `coarse` each half
    hour."""

    coarse: Place


@dataclass(frozen=True)
class Value:
    """A value of the field that a phrase speaks of; None leaves the field out, a callable is given
    what was there."""

    name: str
    value: Any
    taken: bool


def taken(**values: Any) -> list[Value]:
    return [Value(name.replace("_", " "), value, True) for name, value in values.items()]


def refused(**values: Any) -> list[Value]:
    return [Value(name.replace("_", " "), value, False) for name, value in values.items()]


Found = re.Match[str]


@dataclass(frozen=True)
class Phrase:
    """Words of a field's comment, the types that they are said of, and what they mean for values."""

    words: str
    kinds: frozenset[str]
    values: Callable[[Found], Iterable[Value]]


def phrase(words: str, kinds: str, values: Callable[[Found], Iterable[Value]] | Iterable[Value]) -> Phrase:
    fixed = values if callable(values) else None
    return Phrase(words, frozenset(kinds.split()), fixed or (lambda _: values))  # type: ignore[arg-type,return-value]


ALL = "string int32 int64 bool repeated message"
INT32 = 2**31 - 1
CONTROLS = {f"U+{ord(one):04X}": one for one in "\0\x07\x0b\x0c\x1b\x1f\x7f\x85\x9f"}
BREAKS = {"LF": "\n", "CR LF": "\r\n", "CR": "\r", "tab": "\t"}


def characters(lowest: int, highest: int) -> list[Value]:
    """Of any script: a letter that takes two bytes, and one that takes four, are one character each."""
    return [
        Value(f"{lowest} characters", "é" * lowest, True),
        Value(f"{highest} characters", "é" * highest, True),
        Value(f"{highest} characters of four bytes", "\U0001f942" * highest, True),
        Value(f"{highest + 1} characters", "n" * (highest + 1), False),
        *([Value(f"{lowest - 1} characters", "n" * (lowest - 1), False)] if lowest else []),
    ]


def numbers(lowest: int, highest: int) -> list[Value]:
    inside, outside = (lowest, highest), {lowest - 1, highest + 1, -INT32 - 1, INT32} - {lowest, highest}
    return [
        *(Value(str(one), one, True) for one in inside),
        *(Value(str(one), one, False) for one in sorted(outside)),
    ]


def days(found: Found) -> list[Value]:
    first, last = int(found[1]), int(found[2])
    return [
        *(Value(day, day, True) for day in (f"{first}-01-01", f"{last}-12-31")),
        *(Value(day, day, False) for day in (f"{first - 1}-12-31", f"{last + 1}-01-01", "0000-01-01")),
    ]


def time_of_day(one: dt.time) -> TimeOfDay:
    return TimeOfDay(hours=one.hour, minutes=one.minute, seconds=one.second)


def euros(units: int = 0, nanos: int = 0) -> Money:
    return Money(currency_code="EUR", units=units, nanos=nanos)


MADE_UP = {
    "words": "junk!",
    "base64 of nothing known": "AAAA",
    "JSON": '{"time":0}',
    "of the version before": "eyJ0aW1lIjowfQ",
}

PHRASES: tuple[Phrase, ...] = (
    phrase(r"\bRequired\b", ALL, refused(left_out=None)),
    phrase(
        r"^UUID\b",
        "string",
        [
            Value("in capitals", lambda was: (was or new_id()).upper(), True),
            Value("1", "1", False),
            Value("in braces", lambda was: f"{{{was or new_id()}}}", False),
            Value("a URN", lambda was: f"urn:uuid:{was or new_id()}", False),
            Value("without hyphens", lambda was: (was or new_id()).replace("-", ""), False),
            Value("with a space behind it", lambda was: f"{was or new_id()} ", False),
            Value("with a digit too many", lambda was: f"{was or new_id()}0", False),
        ],
    ),
    phrase(
        r"\b(\d+) to (\d+) characters\b",
        "string",
        lambda found: characters(int(found[1]), int(found[2])),
    ),
    phrase(r"(?<!to )\bat most (\d+) characters\b", "string", lambda found: characters(0, int(found[1]))),
    phrase(
        r"\bno control characters\b(?! but)",
        "string",
        [Value(name, f"a{one}b", False) for name, one in (CONTROLS | BREAKS).items()],
    ),
    phrase(
        r"\bno control characters but line breaks and tabs\b",
        "string",
        [
            *(Value(name, f"a{one}b", True) for name, one in BREAKS.items()),
            *(Value(name, f"a{one}b", False) for name, one in CONTROLS.items()),
        ],
    ),
    phrase(
        r"\bnot blank\b",
        "string",
        [
            Value("a letter among spaces", "  é ", True),
            Value("a space", " ", False),
            Value("spaces of other widths", "\u00a0\u2003\u3000", False),
            Value("of no width", "\u200b\ufeff", False),
            Value("a filler", "\u3164", False),
        ],
    ),
    phrase(r"\bmay be empty\b", "string", taken(empty="")),
    phrase(r"\b[Ee]mpty(:| for the first page)", "string", taken(empty="")),
    phrase(r"\bEmpty: all\b", "repeated", taken(empty=None)),
    phrase(r"\bUnset: no bound\b", "message", taken(unset=None)),
    phrase(
        r"\b(\d+) to (\d+)\b(?! characters)",
        "int32 int64",
        lambda found: numbers(int(found[1]), int(found[2])),
    ),
    phrase(
        r"\b(\d+) or more\b",
        "int32",
        lambda found: [
            *(Value(str(one), one, True) for one in (int(found[1]), INT32)),
            *(Value(str(one), one, False) for one in (int(found[1]) - 1, -1, -INT32 - 1)),
        ],
    ),
    phrase(
        r"\b0: (\d+); at most (\d+), more counts as \2\b",
        "int32",
        lambda found: [Value(str(one), one, True) for one in (0, 1, int(found[2]), int(found[2]) + 1, INT32)],
    ),
    phrase(
        r"\bnegative: INVALID_ARGUMENT\b",
        "int32",
        [Value(str(one), one, False) for one in (-1, -INT32 - 1)],
    ),
    phrase(
        r"\bOpaque: one of another (list|watch), caller or request, made up, or made by another version of"
        r" the service, is INVALID_ARGUMENT\b",
        "string",
        [Value(name, token, False) for name, token in MADE_UP.items()],
    ),
    phrase(
        r'"YYYY-MM-DD"',
        "string",
        [
            *(Value(day, day, True) for day in ("2027-05-01", "2028-02-29")),
            *(
                Value(day, day, False)
                for day in (
                    "2027-02-29",
                    "2027-5-1",
                    "20270501",
                    "2027-W18-6",
                    "2027-121",
                    "2027-05-01T00:00:00Z",
                    "01/05/2027",
                    " 2027-05-01",
                    "٢٠٢٧-05-01",
                    "tomorrow",
                )
            ),
        ],
    ),
    phrase(r"\bof the years (\d+) to (\d+)\b", "string", days),
    phrase(
        r"\bin whole seconds\b",
        "google.protobuf.Timestamp",
        [
            Value(f"{nanos} ns", lambda was, nanos=nanos: Timestamp(seconds=was.seconds, nanos=nanos), False)
            for nanos in (1, 500_000_000, 999_999_999)
        ],
    ),
    phrase(
        r"\bAt most (\d+) entries\b",
        "repeated",
        lambda found: [
            Value(f"{count} entries", lambda was, count=count: [*was, 1][:1] * count, count == int(found[1]))
            for count in (int(found[1]), int(found[1]) + 1)
        ],
    ),
    phrase(r"\bAt least one\.", "repeated", refused(none=[])),
    phrase(
        r"\b00:00:00 to 23:59:59\b",
        "repeated",
        [
            *(Value(str(one), [time_of_day(one)], True) for one in (dt.time(), dt.time(23, 59, 59))),
            *(
                Value(str(one).replace("\n", " "), [one], False)
                for one in (
                    TimeOfDay(hours=24),
                    TimeOfDay(hours=-1),
                    TimeOfDay(hours=18, minutes=60),
                    TimeOfDay(hours=18, seconds=60),
                )
            ),
        ],
    ),
    phrase(
        r"\bwithout fractions of a second\b",
        "repeated",
        [
            Value(f"{nanos} ns", [TimeOfDay(hours=18, nanos=nanos)], False)
            for nanos in (1, 500_000_000, 999_999_999)
        ],
    ),
    phrase(
        r"\ba whole date\b",
        "google.type.Date",
        refused(
            no_day=Date(year=2027, month=5),
            no_month=Date(year=2027, day=1),
            no_year=Date(month=5, day=1),
            the_30th_of_February=Date(year=2027, month=2, day=30),
            the_year_10000=Date(year=10_000, month=1, day=1),
        ),
    ),
    phrase(r"\b[Gg]reater than zero\b", "google.type.Money", refused(zero=euros(), less=euros(-1))),
    phrase(
        r"\bno finer than (its|the) minor unit\b",
        "google.type.Money",
        [
            *(
                Value(f"{code} {nanos} ns", Money(currency_code=code, units=units, nanos=nanos), True)
                for code, units, nanos in (("EUR", 0, 10_000_000), ("JPY", 1, 0), ("KWD", 0, 1_000_000))
            ),
            *(
                Value(f"{code} {nanos} ns", Money(currency_code=code, units=1, nanos=nanos), False)
                for code, nanos in (
                    ("EUR", 1),
                    ("EUR", 1_000_000),
                    ("EUR", 15_000_000),
                    ("JPY", 10_000_000),
                    ("KWD", 100_000),
                )
            ),
        ],
    ),
)


@dataclass(frozen=True)
class Input:
    """A request of an RPC that is right but for `change`."""

    name: str
    rpc: str
    change: Callable[[Standing, Any], object]
    taken: bool
    fields: tuple[str, ...] = ()
    """Fields of which a refusal must name one."""
    shown: Callable[[Any], object] | None = None
    """What the answer has to show, where it is taken."""


@dataclass(frozen=True)
class Row:
    """Words of the comment of one place, and the inputs that they speak of; or the tests that hold them."""

    place: str
    """A message, `Message.field` or an RPC."""
    words: tuple[str, ...]
    inputs: tuple[Input, ...] = ()
    held_by: str = ""
    """Where it cannot be seen in one request: `tests/file.py::test`."""


def row(place: str, *words: str, inputs: Iterable[Input] = (), held_by: str = "") -> Row:
    return Row(place, words, tuple(inputs), held_by)


def inputs(
    rpcs: str,
    fields: str,
    /,
    *,
    takes: Mapping[str, Any] | None = None,
    refuses: Mapping[str, Any] | None = None,
) -> Iterator[Input]:
    for rpc in rpcs.split():
        for good, changes in ((True, takes or {}), (False, refuses or {})):
            for name, change in changes.items():
                yield Input(name, rpc, change, good, tuple(fields.split()))


def local_day(place: Place, offset: int) -> Date:
    day = dt.datetime.now(place.zone).date() + dt.timedelta(days=offset)
    return Date(year=day.year, month=day.month, day=day.day)


def on_days(first: int, last: int | None = None, times: int = 1) -> Callable[[Standing, Any], None]:
    """Slots from `first` to `last`, counted from today."""

    def change(standing: Standing, request: Any) -> None:
        request.first_date.CopyFrom(local_day(standing.place, first))
        request.last_date.CopyFrom(local_day(standing.place, first if last is None else last))
        del request.times[:]
        request.times.extend(TimeOfDay(hours=18, minutes=number) for number in range(times))

    return change


def at(
    *clock: dt.time, day: Callable[[Place], Date] | None = None, all_times: bool = False
) -> Callable[[Standing, Any], None]:
    """Slots of the restaurant with the coarse grid."""

    def change(standing: Standing, request: Any) -> None:
        request.restaurant_id = standing.coarse.id
        del request.times[:]
        request.times.extend(map(time_of_day, clock))
        if all_times:
            request.all_times = True
        if day is not None:
            for field in (request.first_date, request.last_date):
                field.CopyFrom(day(standing.coarse))

    return change


def sunday_of_march(_: Place) -> Date:
    """The next day on which 02:30 does not exist in Berlin."""
    return _last_sunday(3)


def sunday_of_october(_: Place) -> Date:
    """The next day on which 02:30 comes twice in Berlin."""
    return _last_sunday(10)


def _last_sunday(month: int) -> Date:
    today = dt.datetime.now(dt.UTC).date()
    for year in (today.year, today.year + 1):
        day = max(one for one in range(25, 32) if dt.date(year, month, one).weekday() == 6)
        if dt.date(year, month, day) > today + dt.timedelta(days=1):
            return Date(year=year, month=month, day=day)
    raise AssertionError(f"there is a month {month} in two years")


def dines(seconds: float) -> Callable[[Standing, Any], None]:
    """So far from now."""

    def change(_: Standing, request: Any) -> None:
        moment = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=seconds)
        request.dine_time.CopyFrom(timestamp(moment))

    return change


def off_the_grid(standing: Standing, request: Any) -> None:
    request.restaurant_id, request.policy_etag = standing.coarse.id, standing.coarse.policy_etag
    request.dine_time.CopyFrom(timestamp(standing.coarse.slots[0] + dt.timedelta(minutes=7)))


def too_many_guests(standing: Standing, request: Any) -> None:
    request.restaurant_id, request.policy_etag = standing.coarse.id, standing.coarse.policy_etag
    request.dine_time.CopyFrom(timestamp(standing.coarse.slots[0]))
    request.party_size = standing.coarse.policy.max_party_size + 1


def terms(**change: Any) -> Callable[[Standing, Any], None]:
    def put(_: Standing, request: Any) -> None:
        for name, value in change.items():
            if isinstance(value, Message):
                getattr(request.policy, name).CopyFrom(value)
            else:
                setattr(request.policy, name, value)

    return put


def value(**change: Any) -> Callable[[Standing, Any], None]:
    """Fields of the request; None leaves one out, a list replaces one."""

    def put(_: Standing, request: Any) -> None:
        for name, one in change.items():
            put_value(request, name, one)

    return put


def currency(code: str) -> Callable[[Standing, Any], None]:
    return terms(deposit_per_person=Money(currency_code=code, units=1))


POLICIES = "CreateRestaurant UpdateRestaurant"
MONEY = "policy.deposit_per_person"
SLOTS = "OpenSlots CloseSlots"
AUTO, MANUAL = restaurant_pb2.ACCEPTANCE_MODE_AUTO, restaurant_pb2.ACCEPTANCE_MODE_MANUAL
NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
SECOND = dt.timedelta(seconds=1)
_REFUSED = "test_each_bad_request_is_refused_by_name_and_changes_nothing"
BAD_REQUESTS = f"tests/mesh/test_bad_requests.py::{_REFUSED}"
BAD_HTTP_REQUESTS = f"tests/edge/test_bad_http_requests.py::{_REFUSED}"
LARGEST = 10**12
DAY = 86_400

ROWS: tuple[Row, ...] = (
    row(
        "CreateReservation",
        "INVALID_ARGUMENT also for a dine_time in the past, later than the policy's lead allows, off its"
        " grid, or further ahead than the service takes reservations for (366 days, unless its operator has"
        " set another number), and for a party larger than the policy allows",
        inputs=[
            *inputs(
                "CreateReservation",
                "dine_time",
                refuses={
                    "a second ago": dines(-1),
                    "long ago": dines(-400 * DAY),
                    "a day too far ahead": dines(367 * DAY),
                    "off the grid": off_the_grid,
                },
            ),
            # Of days that can be asked for: only no slot is open.
            *inputs("CreateReservation", "", takes={"366 days ahead": dines(366 * DAY - 60)}),
            *inputs("CreateReservation", "party_size", refuses={"too many guests": too_many_guests}),
        ],
    ),
    row(
        "CreateReservationRequest.party_size",
        "at most the policy's max_party_size",
        inputs=inputs("CreateReservation", "party_size", refuses={"one more": too_many_guests}),
    ),
    row(
        "CreateReservationRequest.note",
        "A line may end with LF, CR LF or CR; it is kept as it came, and each of these characters counts.",
        inputs=[
            Input(
                "all three",
                "CreateReservation",
                value(note="one\ntwo\r\nthree\rfour"),
                True,
                shown=lambda answer: answer.reservation.note == "one\ntwo\r\nthree\rfour",
            ),
            Input("500 with each CR and LF", "CreateReservation", value(note="\r\n" * 250), True),
            *inputs("CreateReservation", "note", refuses={"501 of them": value(note="\r\n" * 250 + "\n")}),
        ],
    ),
    row(
        "ModifyReservationRequest.note",
        "Lines end as in CreateReservationRequest.note.",
        inputs=[
            Input(
                "all three",
                "ModifyReservation",
                value(party_size=None, note="one\ntwo\r\nthree\rfour"),
                True,
                shown=lambda answer: answer.reservation.note == "one\ntwo\r\nthree\rfour",
            )
        ],
    ),
    row(
        "CreateReservationRequest.policy_etag",
        "Nobody is charged, or held to, terms that they never saw: with another policy in force the call is"
        " refused with POLICY_CHANGED",
        held_by=BAD_HTTP_REQUESTS,
    ),
    row(
        "CreateReservationRequest.dine_time",
        "an open slot of the restaurant",
        held_by=BAD_REQUESTS,
    ),
    row(
        "ModifyReservationRequest",
        "at least one of dine_time, party_size and note is needed",
        inputs=[
            *inputs(
                "ModifyReservation",
                "dine_time party_size note",
                refuses={"nothing": value(party_size=None, note=None)},
                takes={"a note": value(party_size=None, note="no nuts")},
            )
        ],
    ),
    row(
        "ModifyReservation",
        "INVALID_ARGUMENT also when nothing is to be changed, and on payment_token when it gets dearer and"
        " there is none",
        inputs=inputs(
            "ModifyReservation", "payment_token", refuses={"dearer": value(party_size=9, payment_token=None)}
        ),
    ),
    row(
        "ModifyReservationRequest.payment_token",
        "Needed only when it gets dearer.",
        inputs=inputs("ModifyReservation", "", takes={"no dearer": value(party_size=2, payment_token=None)}),
    ),
    row(
        "ModifyReservationRequest.party_size",
        "at most the frozen policy's max_party_size",
        held_by=BAD_REQUESTS,
    ),
    row(
        "CreateDepositRequest.amount",
        "at most 10^15 minor units",
        inputs=inputs(
            "CreateDeposit",
            "amount",
            takes={"10^15": value(amount=euros(10**13))},
            refuses={"one more": value(amount=euros(10**13, 10_000_000))},
        ),
    ),
    row(
        "CreateRestaurantRequest.time_zone",
        "IANA time zone",
        inputs=inputs(
            "CreateRestaurant",
            "time_zone",
            takes={
                name: value(time_zone=name)
                for name in ("UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5")
            },
            refuses={
                repr(name): value(time_zone=name)
                for name in ("", "Berlin", "Europe/Atlantis", "+01:00", "../UTC", "localtime", "UTC\0")
            },
        ),
    ),
    row(
        "CreateRestaurantRequest.policy",
        "all of them",
        inputs=inputs(
            "CreateRestaurant",
            "policy",
            refuses={"an empty one": lambda _, request: request.policy.CopyFrom(restaurant_pb2.Policy())},
        ),
    ),
    row(
        "UpdateRestaurantRequest",
        "at least one of name and policy is needed",
        inputs=inputs(
            "UpdateRestaurant",
            "name policy",
            refuses={"neither": value(name=None, policy=None)},
            takes={"a name": value(policy=None), "a policy": value(name=None)},
        ),
    ),
    row(
        "Policy.deposit_per_person",
        "In a currency of ISO 4217 that is paid with (no metal, fund, unit of account, code for tests, or"
        " withdrawn code)",
        inputs=inputs(
            POLICIES,
            f"{MONEY}.currency_code",
            takes={code: currency(code) for code in ("EUR", "JPY", "KWD", "CLP", "USD")},
            refuses={
                code or "none": currency(code)
                for code in ("", "eur", "EURO", "EUE", "XAU", "USN", "XDR", "XTS", "XXX", "DEM")
            },
        ),
    ),
    row(
        "Policy.deposit_per_person",
        ": 0.01 EUR, 1 JPY, 0.001 KWD",
        "for max_party_size it is at most 10^12 minor units",
        inputs=inputs(
            POLICIES,
            MONEY,
            takes={
                "10^12": terms(deposit_per_person=euros(LARGEST // 100_000), max_party_size=1000),
            },
            refuses={
                "a cent more": terms(
                    deposit_per_person=euros(LARGEST // 100_000, 10_000_000), max_party_size=1000
                ),
            },
        ),
    ),
    row(
        "Policy.acceptance_limit_seconds",
        "MANUAL needs at least a second; without meaning for AUTO",
        inputs=inputs(
            POLICIES,
            "policy.acceptance_limit_seconds",
            takes={
                "a second": terms(acceptance=MANUAL, acceptance_limit_seconds=1),
                "none, for AUTO": terms(acceptance=AUTO, acceptance_limit_seconds=0),
            },
            refuses={"none": terms(acceptance=MANUAL, acceptance_limit_seconds=0)},
        ),
    ),
    row(
        "Policy.slot_interval_seconds",
        "A dine_time off the grid is INVALID_ARGUMENT.",
        inputs=inputs("CreateReservation", "dine_time", refuses={"off the grid": off_the_grid}),
    ),
    row(
        "OpenSlots",
        "INVALID_ARGUMENT also for a time off the policy's grid, for a local time that daylight saving skips"
        " on one of the days (an ambiguous one is the first of the two), for more"
        " than 10000 slots in one call",
        inputs=[
            *inputs(
                "OpenSlots",
                "times",
                takes={"on the grid": at(dt.time(18, 30))},
                refuses={
                    "off the grid": at(dt.time(18), dt.time(18, 7)),
                    "skipped": at(dt.time(2, 30), day=sunday_of_march),
                    "10248 slots": on_days(1, 366, times=28),
                },
            ),
            Input(
                "ambiguous",
                "OpenSlots",
                at(dt.time(2, 30), day=sunday_of_october),
                True,
                shown=lambda answer: answer.slots[0].dine_time.ToDatetime().time() == dt.time(0, 30),
            ),
        ],
    ),
    row(
        "OpenSlots",
        "and for a new slot on a day that has 1440 already, closed ones counted",
        held_by="tests/restaurant/test_usecases.py::test_a_day_has_so_many_slots_and_no_more",
    ),
    row(
        "OpenSlotsRequest.times",
        "on the grid of the policy (slot_interval_seconds)",
        "(one a minute); an entry that comes twice counts as one slot. Nothing stands for",
        inputs=[
            Input(
                "twice",
                "OpenSlots",
                at(dt.time(18, 30), dt.time(18, 30)),
                True,
                shown=lambda answer: len(answer.slots) == 1,
            ),
            *inputs("OpenSlots", "times", refuses={"off the grid": at(dt.time(18, 7))}),
        ],
    ),
    row(
        "CloseSlots",
        "Times at which nothing is open are passed over, also those off the policy's grid and those that"
        " daylight saving skips.",
        inputs=[
            Input(name, "CloseSlots", change, True, shown=lambda answer: not answer.slots)
            for name, change in {
                "nothing open": at(dt.time(5)),
                "off the grid": at(dt.time(18, 7)),
                "skipped": at(dt.time(2, 30), day=sunday_of_march),
            }.items()
        ],
    ),
    row(
        "CloseSlots",
        "Exactly one of `times` and `all_times` says which slots are meant.",
        "INVALID_ARGUMENT also for more than 10000 slots",
        inputs=inputs(
            "CloseSlots",
            "times all_times",
            takes={"all": value(times=None, all_times=True)},
            refuses={
                "neither": value(times=None),
                "both": value(all_times=True),
                "10248 slots": on_days(1, 366, times=28),
            },
        ),
    ),
    row(
        "CloseSlotsRequest.times",
        "Empty only with `all_times`",
        inputs=inputs("CloseSlots", "times all_times", refuses={"empty": value(times=None)}),
    ),
    row(
        "CloseSlotsRequest.all_times",
        "Without it, `times` needs at least one; with it, none may be named.",
        inputs=inputs(
            "CloseSlots", "times all_times", refuses={"with a time": at(dt.time(18), all_times=True)}
        ),
    ),
    *(
        row(
            f"{rpc}Request.first_date",
            "yesterday at the earliest",
            inputs=inputs(
                rpc,
                "first_date",
                takes={"yesterday": on_days(-1), "today": on_days(0)},
                refuses={"the day before yesterday": on_days(-2)},
            ),
        )
        for rpc in SLOTS.split()
    ),
    *(
        row(
            f"{rpc}Request.last_date",
            "not before first_date, at most 366 days in all, and at most 732 days from now",
            inputs=inputs(
                rpc,
                "last_date",
                takes={"732 days from now": on_days(732)},
                refuses={
                    "before first_date": on_days(9, 8),
                    "367 days": on_days(1, 367),
                    "733 days from now": on_days(733),
                },
            ),
        )
        for rpc in SLOTS.split()
    ),
    row(
        "CloseSlotsRequest.last_date",
        "at most 366 days in all",
        inputs=inputs("CloseSlots", "", takes={"366 days": on_days(1, 366)}),
    ),
    row("OpenSlotsRequest.capacity", "To close, use CloseSlots.", held_by=BAD_REQUESTS),
    row(
        "ListBookingsRequest.start_time",
        "Only bookings with a dine_time at or after this.",
        held_by="tests/restaurant/test_servicer.py::test_bookings_are_listed_by_time_state_and_page",
    ),
    row(
        "ListBookingsRequest.end_time",
        "Only bookings with a dine_time before this; after start_time, where both are set.",
        inputs=inputs(
            "ListBookings",
            "end_time",
            takes={
                "after it": value(start_time=timestamp(NOW), end_time=timestamp(NOW + SECOND)),
                "alone": value(end_time=timestamp(NOW)),
                "at the end of the calendar": value(end_time=Timestamp(seconds=253402300799)),
                "at its beginning": value(end_time=Timestamp(seconds=-62135596800)),
            },
            refuses={
                "the same": value(start_time=timestamp(NOW), end_time=timestamp(NOW)),
                "before it": value(start_time=timestamp(NOW), end_time=timestamp(NOW - SECOND)),
            },
        ),
    ),
    row(
        "ListBookingsRequest.states",
        "Only bookings in one of these states, each of them a value of the enum but"
        " BOOKING_STATE_UNSPECIFIED.",
        inputs=inputs(
            "ListBookings",
            "states",
            takes={"all of them": value(states=[*range(1, 8)])},
            refuses={"none in particular": value(states=[1, 0]), "unknown": value(states=[1, 8])},
        ),
    ),
)


OTHERWISE: tuple[tuple[str, str], ...] = (
    # What the words say of answers, of what a client had better do, or why.
    (r"UUID chosen by the client, new for each wish, the same for each repetition", "the client's to do"),
    (r"with otherwise the same request \(page_size may differ\)", "test_a_token_of_another_list_..."),
    (r"with otherwise the same request, to go on from there", "test_a_token_of_another_list_..."),
    (r"the same id with the same contents creates once", "idempotence: docs/PROMISES.md"),
    (
        r"It is known for [^.]+(?:the\s+service is told otherwise|can change)",
        "tests/reservation/test_retention.py, tests/restaurant/test_persistence.py",
    ),
    (r"new for each attempt", "the client's to do"),
    (r"nothing is missing, a little may come twice", "of the answers: the watches' own tests"),
    (r"begin anew with an empty one", "advice"),
    (r"cannot be changed later", "there is no field for it"),
    (r"a list that is lost on its way closes nothing", "why"),
    (r"What is left out stays", "of the answers: the use cases' own tests"),
    (r"It is neither logged nor sent on", "test_words"),
    (r"Handed to DepositService only", "of the mesh"),
    (r"since no booking is taken without a deposit", "why"),
    (r"Nothing can be reserved later than that", "the lead, of CreateReservation"),
    (r"Until how long before dine_time", "what it means"),
    (r"0: until dine_time", "what it means"),
    (r"How long (before|after) dine_time", "what it means"),
    (r"at the (latest|earliest), in both modes|can be recorded at the earliest", "what it means"),
    (r"How long a table is used from dine_time on", "what it means"),
    (r"24 hours after its end a confirmed reservation that nobody marked counts as completed", "of time"),
    (r"`next_page_token` of the page before", "what it means"),
    (r"which must be FAILED", "REFUND_NOT_RETRYABLE, a reason of its own"),
    (r"only (deposits|entries) of this reservation", "of the answers"),
    (r"\(a year\)|\(30 days\)", "what it means"),
    (r"Most entries of the answer", "what it means"),
    (r"did not come", "what it means"),
    (r"All durations in whole seconds", "they are integers"),
    (r"a booking must be accepted", "of the restaurant, not of a request"),
    (r"a no-show", "a word of the trade"),
    (r"replaces the old one as a whole", "of the answers"),
)
"""Words that sound like a promise about requests, and what they are."""

PROMISE = re.compile(
    r"\d|\b(must|most|least|only|never|no|not|cannot|none|nothing|required|greater|refused|empty|skips?|whole|without"
    r"|needs?|needed|exactly|earliest|latest|after|before|allowed|may|INVALID_ARGUMENT|passed)\b",
    re.IGNORECASE,
)
"""What sounds like one."""


@cache
def contracts() -> Contracts:
    return read()


@cache
def comments() -> Mapping[str, str]:
    """Of each RPC, request, field of a request (or of a policy), in one line, by the name that rows have."""
    found = {}
    for file in descriptor_set(SOURCES, source_info=True).file:
        said = {tuple(one.path): one.leading_comments for one in file.source_code_info.location}
        for at_service, service in enumerate(file.service):
            for number, method in enumerate(service.method):
                if method.name in RPCS:
                    found[method.name] = " ".join(said.get((6, at_service, 2, number), "").split())
    for name in (*{rpc.request.DESCRIPTOR.full_name for rpc in RPCS.values()}, POLICY):
        message = contracts().messages[name]
        found[message.short_name] = " ".join(message.comment.split())
        for field in message.fields:
            found[f"{message.short_name}.{field.name}"] = " ".join(field.comment.split())
    return found


POLICY = "dinemesh.restaurant.v1.Policy"


def documented(rpc: str) -> frozenset[str]:
    """The reasons that the comment of an RPC names, but those that say that something was wrong with it, or
    that it came too often."""
    named = frozenset(re.findall(r"\b[A-Z][A-Z_]{4,}\b", comments()[rpc]))
    known = {one.removeprefix("REASON_") for one in reason_pb2.Reason.DESCRIPTOR.values_by_name}
    return (named & known) - {"INVALID_ARGUMENT", "TRY_AGAIN_LATER"}


def fields_of(rpc: str) -> Iterator[tuple[str, str, Field]]:
    """Path in the request, place, and the field as the contract has it."""
    request = contracts().messages[RPCS[rpc].request.DESCRIPTOR.full_name]
    for field in request.fields:
        yield field.name, f"{request.short_name}.{field.name}", field
        if field.type == POLICY:
            for inner in contracts().messages[POLICY].fields:
                yield f"{field.name}.{inner.name}", f"Policy.{inner.name}", inner


def kinds(field: Field) -> frozenset[str]:
    if field.repeated:
        return frozenset({"repeated"})
    return frozenset({field.type, "message"} if "." in field.type else {field.type})


def said_of(field: Field) -> Iterator[tuple[Phrase, Found]]:
    for one in PHRASES:
        found = re.search(one.words, " ".join(field.comment.split()))
        if found is not None and (one.kinds & kinds(field)):
            yield one, found


def every_input() -> Iterator[tuple[str, str, Input]]:
    """Place, words, and an input that they speak of."""
    for rpc in RPCS:
        for path, place, field in fields_of(rpc):
            for said, found in said_of(field):
                for one in said.values(found):
                    yield place, found[0], Input(one.name, rpc, _putting(path, one.value), one.taken, (path,))
    for each in ROWS:
        for given in each.inputs:
            yield each.place, each.words[0], given


def _putting(path: str, given: Any) -> Callable[[Standing, Any], None]:
    return lambda _, request: put_value(request, path, given)


def put_value(request: Any, path: str, given: Any) -> None:
    """None leaves the field out, a list replaces it, and a callable is given what was there."""
    *parents, name = path.split(".")
    for parent in parents:
        request = getattr(request, parent)
    was = getattr(request, name)
    new = given(was) if callable(given) else given
    if isinstance(new, Message):
        was.CopyFrom(new)
    elif isinstance(new, list):
        entries = list(new)
        del was[:]
        was.extend(entries)
    elif new is None:
        request.ClearField(name)
    else:
        setattr(request, name, new)
