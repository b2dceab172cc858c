"""How cases are found: in every run of a story, in some, or never."""

from __future__ import annotations

from tests.crash.cases import Case, Found, all_points
from tests.crash.stories import cancel_late, reserve

SOMEWHERE, ELSEWHERE = "store.commit.before Work", "store.commit.after Work"


def passed(*lines: str) -> dict[str, frozenset[str]]:
    return {"deposit": frozenset(lines)}


def test_a_case_belongs_to_the_first_story_that_passes_it_every_time() -> None:
    found = Found(
        {
            reserve: [passed(SOMEWHERE, ELSEWHERE), passed(SOMEWHERE)],
            cancel_late: [passed(SOMEWHERE), passed(SOMEWHERE, ELSEWHERE)],
        }
    )
    assert found.cases() == {Case("deposit", SOMEWHERE): reserve}
    assert found.sometimes() == {Case("deposit", ELSEWHERE): cancel_late}


def test_a_point_that_no_story_passes_is_named() -> None:
    found = Found({reserve: [passed(SOMEWHERE)]})
    assert set(found.never()) == set(all_points()) - {"store.commit.before"}
    assert "store.commit.after" in found.never()
