"""How cases are found: in every run of a story, in some, or never."""

from __future__ import annotations

from tests.crash.cases import Case, Found, all_points, each, one_of_each_point
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
    assert found.stories(Case("deposit", ELSEWHERE)) == [reserve, cancel_late]
    assert found.stories(Case("history", ELSEWHERE)) == []


def test_a_point_that_no_story_passes_is_named() -> None:
    found = Found({reserve: [passed(SOMEWHERE)]})
    assert set(found.never()) == set(all_points()) - {"store.commit.before"}
    assert "store.commit.after" in found.never()


KNOWN = {
    Case(service, f"{point} {work}"): reserve
    for service in ("deposit", "history")
    for point in ("store.commit.before", "store.commit.after", "inbox.recorded")
    for work in ("Here", "There")
}


def test_a_sample_holds_every_point_once_and_its_seed_says_where() -> None:
    samples = [one_of_each_point(KNOWN, seed) for seed in range(20)]
    for groups in samples:
        assert {case.point for group in groups for case, _ in group} == {case.point for case in KNOWN}
        assert all(len({case.point for case, _ in group}) == 1 for group in groups)
        assert sum(map(len, groups)) == len(KNOWN)
    assert len({groups[0][0][0] for groups in samples}) > 1
    assert one_of_each_point(KNOWN, 7) == one_of_each_point(dict(reversed(KNOWN.items())), 7)
    assert len(one_of_each_point(KNOWN, 7, most=2)) == 2


def test_the_whole_run_holds_every_case_on_its_own() -> None:
    assert each(KNOWN) == [[one] for one in KNOWN.items()]
