"""Page tokens lead back to their place, and junk leads nowhere."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinemesh.kit import paging
from dinemesh.kit.refusal import Refusal

values = st.dictionaries(st.text(max_size=5), st.integers(0, 10**18) | st.text(max_size=20), max_size=3)


@settings(max_examples=50)
@given(values)
def test_a_position_comes_back(position: dict[str, object]) -> None:
    assert paging.decode_token(paging.encode_token(position)) == position


@settings(max_examples=50)
@given(
    st.text(min_size=1, max_size=50)
    | st.binary(min_size=1, max_size=50).map(lambda raw: base64.urlsafe_b64encode(raw).decode())
)
def test_junk_is_refused_and_nothing_else_happens(junk: str) -> None:
    try:
        assert paging.encode_token(paging.decode_token(junk)) == junk
    except Refusal as refusal:
        assert refusal.violations[0].field == "page_token"


@pytest.mark.parametrize(
    "junk", ["a" * 3000, base64.urlsafe_b64encode(b"[" * 900).decode().rstrip("="), "W10", "bnVsbA", "é"]
)
def test_known_junk_is_refused(junk: str) -> None:
    with pytest.raises(Refusal):
        paging.decode_token(junk)


def test_a_position_has_its_fields_and_types() -> None:
    token = paging.encode_token({"after": 5, "id": "x"})
    assert paging.position("", after=int, id=str) is None
    assert paging.position(token, after=int, id=str) == {"after": 5, "id": "x"}
    for wrong in (
        {"after": "5", "id": "x"},
        {"after": True, "id": "x"},
        {"after": 5},
        {"after": 5, "id": "x", "more": 1},
    ):
        with pytest.raises(Refusal):
            paging.position(paging.encode_token(wrong), after=int, id=str)


def test_a_page_has_a_default_and_a_greatest_size() -> None:
    assert [paging.page_size(asked, 50, 200) for asked in (0, 1, 200, 1000)] == [50, 1, 200, 200]
    with pytest.raises(Refusal):
        paging.page_size(-1, 50, 200)
