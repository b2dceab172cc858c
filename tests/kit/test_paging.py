"""Page tokens lead back to their place, and whatever else a client sends is one refusal."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinemesh.kit import paging
from dinemesh.kit.paging import INSTANT, NUMBER, UUID, OrNone, Text, Tokens
from dinemesh.kit.refusal import Refusal


class Place(NamedTuple):
    time: datetime
    key: str
    name: str
    position: int
    last: int | None


ID = "0b5c0a8e-9c3e-4c39-8f5a-3f0a7d2c1b4e"
LIST = Tokens("ListGuests", Place, INSTANT, UUID, Text(200), NUMBER, OrNone(NUMBER))
WATCH = Tokens("WatchGuests", Place, INSTANT, UUID, Text(200), NUMBER, OrNone(NUMBER), field="resume_token")
SCOPE = ("alice", 3)
PLACE = Place(datetime(2026, 3, 1, 12, 0, 0, 7, UTC), ID, "Zum Anker", 5, None)
TOKEN = LIST.encode(PLACE, *SCOPE)

printable = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=200)
places = st.builds(
    Place,
    st.integers(0, 253402300800 * 10**6 - 1).map(INSTANT.unpack),
    st.uuids().map(str),
    printable,
    st.integers(0, 2**63 - 1),
    st.none() | st.integers(0, 2**63 - 1),
)


def packed(text: str | bytes) -> str:
    raw = text if isinstance(text, bytes) else text.encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def contents(token: str = TOKEN) -> str:
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()


def refused(token: str, *scope: str | int, tokens: Tokens[Place] = LIST) -> str:
    """What is said of the field."""
    with pytest.raises(Refusal) as told:
        tokens.decode(token, *(scope or SCOPE))
    assert told.value.reason == "INVALID_ARGUMENT"
    ((field, said),) = ((one.field, one.description) for one in told.value.violations)
    assert said.startswith("is not a token of this ")
    assert "\ud800" not in said
    return field


@settings(max_examples=200)
@given(places)
def test_a_place_comes_back_in_a_token_of_modest_length(place: Place) -> None:
    token = LIST.encode(place, *SCOPE)
    assert LIST.decode(token, *SCOPE) == place
    assert len(token) <= 1300


def test_no_token_is_the_first_page() -> None:
    assert LIST.decode("", *SCOPE) is None


@settings(max_examples=200)
@given(
    st.text(min_size=1, max_size=50)
    | st.binary(min_size=1, max_size=50).map(packed)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9) | st.just(ID),
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ).map(lambda value: packed(json.dumps([*json.loads(contents())[:1], value])))
)
def test_junk_is_refused_and_nothing_else_happens(junk: str) -> None:
    assert refused(junk) == "page_token"


@pytest.mark.parametrize(
    ("index", "value"),
    [
        *((index, value) for index in range(1, 6) for value in (True, 1.0, [], {}, [1], {"a": 1})),
        *((index, None) for index in range(1, 5)),
        *((index, str(number)) for index in (1, 4, 5) for number in (5, "")),
        *((index, number) for index in (4, 5) for number in (-1, 2**63, -(2**63), 2**64, 10**1000)),
        *((1, micros) for micros in (-1, 253402300800 * 10**6, 2**63 - 1, 2**63, 10**1000)),
        *((2, key) for key in (5, "", ID.upper(), ID[:-1], ID + " ", f"{{{ID}}}", ID.replace("-", ""), "\0")),
        *((2, key) for key in ("'; DROP TABLE reservations; --", ID.replace("0", "\uff10"))),
        *((3, name) for name in (5, "", "n" * 201, "\0", "a\0b", "\n", "\x7f", "\x85", "\x9f")),
    ],
)
def test_a_value_of_another_type_or_range_is_refused(index: int, value: Any) -> None:
    values = json.loads(contents())
    values[index] = value
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    assert refused(packed(text)) == "page_token"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(",", ", ", 1),
        lambda text: text + " ",
        lambda text: text.replace("Zum", "\\u005aum"),
        lambda text: text.replace("Zum", "\\ud800"),
        lambda text: text.replace("Zum", "Z\\u0000m"),
        lambda text: text.replace("null", "NaN"),
        lambda text: text.replace("null", "Infinity"),
        lambda text: text.replace("null", "05"),
        lambda text: text.replace("null", "5e0"),
        lambda text: text.replace("null", "-0"),
        lambda text: text.replace("null", "1" * 1300),
        lambda text: text.replace("null", "[" * 700 + "]" * 700),
        lambda text: text[:-1] + ",1]",
        lambda text: text[:-6] + "]",
        lambda text: text[:-1],
        lambda text: f'{{"a":{text},"a":1}}',
        lambda text: f"[{text}]",
        lambda text: '{"time":0}',
        lambda text: "[]",
        lambda text: "null",
        lambda text: "\ufeff" + text,
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("Zum", "\ud800").encode("utf-8", "surrogatepass"),
        lambda text: text.replace("Zum", "Z").encode() + b"\xff",
    ],
)
def test_what_reads_almost_alike_is_refused(change: Any) -> None:
    assert refused(packed(change(contents()))) == "page_token"


@pytest.mark.parametrize(
    "token",
    [
        TOKEN + "=",
        TOKEN + "==",
        TOKEN + "\n",
        " " + TOKEN,
        TOKEN[:9] + "\n" + TOKEN[9:],
        TOKEN[:9] + "\0" + TOKEN[9:],
        TOKEN[:-1],
        TOKEN + "A",
        TOKEN + "AAAA",
        "é" * 9,
        "\ud800",
        "\U0001f942" * 4,
        "a" * 3000,
        "A" * 1_000_000,
        # Of the version before: a list is begun anew.
        packed('{"id":"' + ID + '","time":1772366400000000}'),
        packed('{"time":0}'),
    ],
)
def test_what_is_spelt_otherwise_is_refused(token: str) -> None:
    assert refused(token) == "page_token"


def test_the_other_alphabet_of_base64_is_refused() -> None:
    token = LIST.encode(PLACE._replace(name="???>>>"), *SCOPE)
    assert set(token) & set("-_"), "void: the alphabets do not differ here"
    assert refused(token.replace("-", "+").replace("_", "/")) == "page_token"


@pytest.mark.parametrize("scope", [("bob", 3), ("alice", 4), ("alice", "3"), ("alice",), ("alice", 3, "")])
def test_a_token_belongs_to_one_list_and_one_request(scope: tuple[str | int, ...]) -> None:
    assert refused(TOKEN, *scope) == "page_token"


def test_a_token_belongs_to_one_rpc_and_its_field_is_named() -> None:
    assert refused(TOKEN, tokens=WATCH) == "resume_token"
    assert refused(WATCH.encode(PLACE, *SCOPE)) == "page_token"


def test_a_narrower_range_holds() -> None:
    first = datetime(2026, 1, 1, tzinfo=UTC)
    kind = paging.Instant(first, first + timedelta(days=1))
    assert kind.unpack(kind.pack(first)) == first
    for beyond in (first - timedelta.resolution, first + timedelta(days=1) + timedelta.resolution):
        with pytest.raises(ValueError, match="out of range"):
            kind.unpack(kind.pack(beyond))
    assert paging.Number(1, 3).unpack(3) == 3
    with pytest.raises(ValueError, match="out of range"):
        paging.Number(1, 3).unpack(4)


def test_a_page_has_a_default_and_a_greatest_size() -> None:
    assert [paging.page_size(asked, 50, 200) for asked in (0, 1, 200, 1000)] == [50, 1, 200, 200]
    with pytest.raises(Refusal):
        paging.page_size(-1, 50, 200)
