"""No words of a contract that promise or forbid something of a request are without inputs that show it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from protos.generate import SOURCES
from tests.contracts import phrases
from tests.contracts.phrases import OTHERWISE, PHRASES, PROMISE, ROWS, comments, fields_of, said_of
from tests.edge.rpcs import RPCS

REPOSITORY = SOURCES.parent


def unclaimed(place: str) -> str:
    """What is left of a comment without the words that have inputs, or are known to promise nothing."""
    text = comments()[place]
    for each in ROWS:
        if each.place == place:
            for words in each.words:
                text = text.replace(words, " ")
    for _, at, field in (one for rpc in RPCS for one in fields_of(rpc)):
        if at == place:
            for said, _found in said_of(field):
                text = re.sub(said.words, " ", text, count=1)
            break
    for words, _why in OTHERWISE:
        text = re.sub(words, " ", text)
    return text


def test_every_word_of_a_request_that_promises_something_has_inputs() -> None:
    left = []
    for place, text in comments().items():
        if place in RPCS:
            # Of the others what an RPC does is told; this sentence tells what it refuses.
            named = re.search(r"INVALID_ARGUMENT also .+", unclaimed(place))
            left += [f"{place}: {named[0]}"] if named else []
        elif found := PROMISE.search(unclaimed(place)):
            left.append(f"{place}: {found[0]!r} in {' '.join(unclaimed(place).split())!r} of {text!r}")
    assert not left, "\n".join(left)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("GetReservationRequest.reservation_id", "UUID of the reservation. Required. At most 3 a minute."),
        ("CreateReservationRequest.note", "Words to the restaurant; must not be rude."),
        ("CreateReservation", "Reserves. Reasons: NOT_FOUND; INVALID_ARGUMENT also on Mondays."),
    ],
)
def test_a_new_promise_is_found(monkeypatch: pytest.MonkeyPatch, place: str, said: str) -> None:
    changed = dict(comments()) | {place: said}
    monkeypatch.setattr("tests.contracts.test_phrases.comments", lambda: changed)
    with pytest.raises(AssertionError, match=place):
        test_every_word_of_a_request_that_promises_something_has_inputs()


def test_each_row_quotes_the_contract() -> None:
    """A row whose words have gone shows nothing any more."""
    wrong = [
        f"{each.place}: {words!r}"
        for each in ROWS
        for words in each.words
        if words not in comments().get(each.place, "")
    ]
    assert not wrong, "\n".join(wrong)


def test_each_phrase_is_used_and_other_tests_that_are_named_exist() -> None:
    used = {said.words for rpc in RPCS for _, _, field in fields_of(rpc) for said, _ in said_of(field)}
    assert {one.words for one in PHRASES} == used
    for words, _ in OTHERWISE:
        assert any(re.search(words, text) for text in comments().values()), words
    for each in ROWS:
        assert bool(each.inputs) != bool(each.held_by), each.place
        if each.held_by:
            file, _, name = each.held_by.partition("::")
            assert f"def {name}(" in (REPOSITORY / file).read_text(), each


def refusals() -> Iterator[tuple[str, str, bool]]:
    """Where a refusal is made whose reason is written there, the reason, and whether a time comes with it."""
    for folder in ("reservation_svc", "deposit_svc", "restaurant_svc", "history_svc", "dinemesh/kit"):
        for file in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                match node:
                    case ast.Call(func=ast.Name("Refusal"), args=[ast.Constant(str(reason)), *_]):
                        where = f"{file.relative_to(REPOSITORY)}:{node.lineno}"
                        yield where, reason, any(one.arg == "retry_after" for one in node.keywords)


def test_a_refusal_says_when_to_come_back_where_its_reason_says_so() -> None:
    reasons = phrases.contracts().enums["dinemesh.error.v1.Reason"].values
    said = {one.name.removeprefix("REASON_"): " ".join(one.comment.split()) for one in reasons}
    found = list(refusals())
    assert len(found) >= 40
    wrong = [
        f"{where}: {reason} {'with' if retries else 'without'} RetryInfo"
        for where, reason, retries in found
        if (retries and "RetryInfo" not in said[reason])
        or (not retries and "Comes with RetryInfo" in said[reason])
    ]
    assert not wrong, "\n".join(wrong)


def test_there_are_inputs_of_both_kinds() -> None:
    every = list(phrases.every_input())
    assert len({(place, words) for place, words, _ in every}) >= 150
    assert {one.rpc for _, _, one in every} == RPCS.keys()
    assert {one.taken for _, _, one in every} == {True, False}
