"""When silence kills: three deadlines missed in a row, and never while a part is still starting."""

from __future__ import annotations

from local_mesh.commands import HEALTHY_SECONDS
from local_mesh.liveness import MISSES, START_SECONDS, Watch


def test_a_part_that_falls_silent_is_killed_at_the_third_miss() -> None:
    watch = Watch()
    assert not watch.saw(1, 10, answered=True)
    assert [watch.saw(1, 20, answered=False) for _ in range(MISSES)] == [False] * (MISSES - 1) + [True]


def test_an_answer_in_between_starts_the_count_anew() -> None:
    watch = Watch()
    watch.saw(1, 10, answered=True)
    for _ in range(MISSES - 1):
        assert not watch.saw(1, 20, answered=False)
    watch.saw(1, 20, answered=True)
    assert not watch.saw(1, 20, answered=False)


def test_a_part_that_is_starting_may_be_silent_for_a_while_but_not_for_ever() -> None:
    watch = Watch()
    for _ in range(2 * MISSES):
        assert not watch.saw(1, START_SECONDS - 1, answered=False)
    assert [watch.saw(1, START_SECONDS + 1, answered=False) for _ in range(MISSES)][-1]


def test_nothing_is_killed_for_a_slow_start_while_make_up_still_waits() -> None:
    assert START_SECONDS > HEALTHY_SECONDS


def test_a_new_process_does_not_inherit_the_misses_of_the_old_one() -> None:
    watch = Watch()
    watch.saw(1, 10, answered=True)
    watch.saw(1, 20, answered=False)
    watch.forget_all_but({2})
    assert not watch.saw(2, 1, answered=False)
    assert not watch.saw(1, 1, answered=False)
