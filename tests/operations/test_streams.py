"""Rows that belong together come together, whatever else there is, and few are held at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from operations.streams import Database, Sorted, Unreadable, in_step
from tests.support.postgres import FreshDatabase

KEYS = st.lists(st.text("abc", max_size=2), max_size=12).map(sorted)


def keyed(keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((key, key) for key in keys)


@given(st.dictionaries(st.sampled_from("xyz"), KEYS), st.integers(1, 5))
def test_what_has_one_key_comes_in_one_part_and_nothing_is_left_out(
    streams: dict[str, list[str]], size: int
) -> None:
    parts = list(in_step({name: keyed(keys) for name, keys in streams.items()}, size))
    for name, keys in streams.items():
        assert [key for part in parts for key in part[name]] == keys
    seen = [{key for keys in part.values() for key in keys} for part in parts]
    assert all(seen)
    assert all(not one & other for one, other in itertools.combinations(seen, 2))


def test_a_part_is_small_however_long_the_streams_are() -> None:
    pulled = 0

    def counted() -> Iterator[tuple[int, int]]:
        nonlocal pulled
        for number in range(10_000):
            pulled += 1
            yield number // 2, number

    taken = 0
    for part in in_step({"long": counted(), "short": keyed_numbers(3)}, 10):
        taken += len(part["long"])
        assert len(part["long"]) <= 10
        assert pulled - taken <= 10
    assert taken == 10_000


def keyed_numbers(count: int) -> Iterator[tuple[int, int]]:
    return ((number, number) for number in range(count))


def test_what_is_sorted_on_disk_comes_in_order() -> None:
    spool = Sorted()
    for key in ("b", "a-", "Z", "a", "ä"):
        spool.add([(key, key.encode())])
    assert [key for key, _ in spool] == sorted(("b", "a-", "Z", "a", "ä"))
    spool.close()


@dataclass(frozen=True)
class Name:
    name: str


def test_text_is_ordered_by_code_points(fresh_database: FreshDatabase) -> None:
    """However the database was made: two of them are read side by side."""
    url = fresh_database("")
    names = ["b", "a-", "Z", "a", "ä", "-a", "A"]
    writer = create_engine(url)
    with writer.begin() as connection:
        connection.execute(text("CREATE TABLE names (name TEXT)"))
        connection.execute(text("INSERT INTO names VALUES (:name)"), [{"name": name} for name in names])
    writer.dispose()
    database = Database(url, ["names"])
    try:
        assert [key for key, _ in database.ordered(Name, "names AS t", "t.name")] == sorted(names)
    finally:
        database.close()
    with pytest.raises(Unreadable, match="no_such"):
        Database(url, ["no_such"])
