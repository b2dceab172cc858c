"""A seed chooses everything a run does, and nothing else does."""

from __future__ import annotations

import itertools

import pytest

from tests.torture.plan import DATABASES, LANES, RACES, Fault, Tale, digest, lanes, stories


def test_the_same_seed_makes_the_same_choices() -> None:
    for sequence in (stories, *LANES):
        first, again = (list(itertools.islice(sequence(7), 500)) for _ in range(2))
        assert first == again
    assert digest(7) == digest(7)


def test_another_seed_makes_other_choices() -> None:
    assert len({digest(seed) for seed in range(20)}) == 20


def test_one_round_holds_every_tale_and_both_sides_of_every_race() -> None:
    some = list(itertools.islice(stories(1), 60))
    assert {one.tale for one in some} == set(Tale)
    for race in RACES:
        assert {one.early for one in some if one.tale is race} == {True, False}


def test_one_round_holds_every_fault() -> None:
    blows = [blow for lane in LANES for blow in itertools.islice(lane(1), 20)]
    assert {one.fault for one in blows} == set(Fault)


@pytest.mark.parametrize("fault", Fault)
def test_a_run_can_be_held_to_one_fault(fault: Fault) -> None:
    (lane,) = lanes(1, {fault})
    assert {one.fault for one in itertools.islice(lane, 20)} == {fault}


def test_in_time_every_database_meets_every_fault() -> None:
    for fault in (Fault.READ_ONLY, Fault.FULL_DISK, Fault.HELD_LOCK):
        (lane,) = lanes(1, {fault})
        assert {one.target for one in itertools.islice(lane, 40)} == set(DATABASES)


def test_every_story_has_a_customer_of_its_own() -> None:
    some = list(itertools.islice(stories(3), 1000))
    assert len({one.customer for one in some}) == 1000
