"""Values cross the wire unchanged, and what is wrong is refused by the name of its field."""

from __future__ import annotations

import datetime as dt

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.date_pb2 import Date
from google.type.money_pb2 import Money
from google.type.timeofday_pb2 import TimeOfDay
from hypothesis import given
from hypothesis import strategies as st

from dinemesh.kit import wire
from dinemesh.kit.refusal import Refusal

instants = st.datetimes(timezones=st.just(dt.UTC))


@given(instants)
def test_an_instant_comes_back_to_the_microsecond(instant: dt.datetime) -> None:
    assert wire.from_timestamp(wire.to_timestamp(instant), "t") == instant


@given(st.integers(-(10**15), 10**15), st.sampled_from(["EUR", "JPY", "KWD", "USD", "CLF", "EUE", "XXX"]))
def test_money_comes_back_to_the_smallest_unit(minor: int, currency: str) -> None:
    assert wire.from_money(wire.to_money(minor, currency), "m") == (minor, currency)


@given(st.timedeltas(dt.timedelta(days=-3000), dt.timedelta(days=3000)))
def test_a_duration_comes_back(delta: dt.timedelta) -> None:
    assert wire.from_duration(wire.to_duration(delta), "d") == delta


@given(st.dates(), st.times().map(lambda time: time.replace(microsecond=0)))
def test_days_and_times_come_back(day: dt.date, time: dt.time) -> None:
    assert wire.from_date(wire.to_date(day), "d") == day
    assert wire.from_time_of_day(wire.to_time_of_day(time), "t") == time


def test_money_stands_in_units_and_nanos() -> None:
    assert wire.to_money(1050, "EUR") == Money(currency_code="EUR", units=10, nanos=500_000_000)
    assert wire.to_money(1050, "JPY") == Money(currency_code="JPY", units=1050)


@pytest.mark.parametrize(
    "money",
    [
        Money(currency_code="EUR", units=1, nanos=1),
        Money(currency_code="EUR", units=1, nanos=-10_000_000),
        Money(currency_code="JPY", units=1, nanos=500_000_000),
        Money(currency_code="EUR", units=2**63 - 1),
        Money(currency_code="EUR", nanos=2_000_000_000),
    ],
)
def test_impossible_money_is_refused(money: Money) -> None:
    assert field_of(lambda: wire.from_money(money, "amount")) == "amount"


@pytest.mark.parametrize("code", ["", "eur", "EURO", "ÄÖÜ"])
def test_an_impossible_currency_is_refused(code: str) -> None:
    assert (
        field_of(lambda: wire.from_money(Money(currency_code=code, units=1), "amount"))
        == "amount.currency_code"
    )


def test_impossible_times_are_refused() -> None:
    for stamp in (
        Timestamp(seconds=2**62),
        Timestamp(seconds=-(2**62)),
        Timestamp(nanos=-1),
        Timestamp(nanos=2**31 - 1),
    ):
        assert field_of(lambda stamp=stamp: wire.from_timestamp(stamp, "dine_time")) == "dine_time"
    for duration in (Duration(seconds=2**62), Duration(seconds=1, nanos=-1), Duration(nanos=2**31 - 1)):
        assert field_of(lambda duration=duration: wire.from_duration(duration, "window")) == "window"
    for date in (
        Date(),
        Date(year=2026, month=2, day=30),
        Date(year=2026, month=5),
        Date(year=10_000, month=1, day=1),
    ):
        assert field_of(lambda date=date: wire.from_date(date, "date")) == "date"
    for time in (TimeOfDay(hours=24), TimeOfDay(hours=-1), TimeOfDay(seconds=60), TimeOfDay(nanos=1)):
        assert field_of(lambda time=time: wire.from_time_of_day(time, "from")) == "from"


def test_text_is_short_and_has_no_control_characters() -> None:
    assert wire.text("note", "Fenster, bitte 🪟", 500) == "Fenster, bitte 🪟"
    assert wire.text("note", "", 500, optional=True) == ""
    for line_break in ("\n", "\r\n", "\r"):
        lines = f"a{line_break}\tb"
        assert wire.text("note", lines, 500, lines=True) == lines
    for bad in ("", "x" * 501, "a\x00b", "a\nb", "a\r\nb", "a\x1bb", "a\x85b"):
        assert field_of(lambda bad=bad: wire.text("note", bad, 500)) == "note"
    for bad in ("a\x00b", "a\x0bb", "a\x0cb", "a\x85b"):
        assert field_of(lambda bad=bad: wire.text("note", bad, 500, lines=True)) == "note"


@pytest.mark.parametrize(
    "blank",
    [
        " ",
        "\u00a0\u2003\u3000",  # spaces
        "\u200b\u200c\u200d\u2060\ufeff",  # of no width
        "\u200e\u200f\u202a\u202e\u2066\u2069\u061c",  # controls of direction
        "\u115f\u1160\u3164\uffa0",  # fillers of Hangul
        "\u2800",  # the empty Braille cell
        "\u180e\u17b4\u034f\ufe0f",  # marks and selectors on nothing
        "\u0301",
        "\u00ad",
        "\U000e0041",  # a tag
        "\ue000\ufffe",  # of private use, and no character
    ],
)
def test_a_text_without_a_visible_character_is_blank(blank: str) -> None:
    assert field_of(lambda: wire.text("name", blank, 200)) == "name"
    assert wire.text("note", blank, 200, optional=True) == blank
    assert wire.text("name", f"{blank}Café", 200) == f"{blank}Café"


@pytest.mark.parametrize("name", ["A", "7", "…", "寿司", "مطعم", "ก๋วยเตี๋ยว", "🍣", "👨\u200d🍳", "€", "한식"])
def test_a_name_may_be_in_any_script(name: str) -> None:
    assert wire.text("name", name, 200) == name


def test_an_id_is_a_uuid_with_one_spelling() -> None:
    lower = "0197b3c2-1111-7222-8333-944455556666"
    assert wire.uuid_field("request_id", lower.upper()) == lower
    for bad in (
        "",
        "x",
        lower[:-1],
        f"{{{lower}}}",
        f"urn:uuid:{lower}",
        lower.replace("-", ""),
        lower + "'--",
    ):
        assert field_of(lambda bad=bad: wire.uuid_field("request_id", bad)) == "request_id"


def test_numbers_lie_in_their_range() -> None:
    assert wire.between("party_size", 1, 1, 20) == 1
    for bad in (0, 21, -(2**31)):
        assert field_of(lambda bad=bad: wire.between("party_size", bad, 1, 20)) == "party_size"


def field_of(check: object) -> str:
    """The field that a refusal names."""
    assert callable(check)
    with pytest.raises(Refusal) as refused:
        check()
    assert refused.value.reason == "INVALID_ARGUMENT"
    return refused.value.violations[0].field
