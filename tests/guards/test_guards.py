"""A quick half of the guards, those without a broker and processes; `make guards` runs all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.guards import catalogue, switch
from tests.guards.catalogue import GUARDS
from tests.guards.guard import DoesNotFit, Edit, Guard, Witness
from tests.guards.promises import PROMISES
from tests.guards.run import Phase, Verdict, conclude, judge
from tests.support.mesh import launch
from tests.support.process import ROOT

KEY = Guard(
    "key",
    (1,),
    "A key.",
    (Edit("deposit_svc.domain", "return self.refund_id", "return 'another key'"),),
    (Witness("tests/some.py::test_some", "assert 1 == 2"),),
)


def phases(*outcomes: str, says: str = "assert a == b -> AssertionError: assert 1 == 2") -> list[Phase]:
    """ "setup passed", "call failed" ..., of one case of the test."""
    split = [outcome.split() for outcome in outcomes]
    return [
        Phase("tests/some.py::test_some[sqlite]", phase, outcome, says if outcome == "failed" else "")
        for phase, outcome in split
    ]


def test_a_test_that_fails_as_announced_is_red() -> None:
    found = conclude(KEY, phases("setup passed", "call failed", "teardown failed"))
    assert (found.verdict, found.says) == (
        Verdict.RED,
        ("assert a == b -> AssertionError: assert 1 == 2",),
    )


def test_a_test_that_does_not_notice_is_green() -> None:
    assert conclude(KEY, phases("setup passed", "call passed", "teardown passed")).verdict is Verdict.GREEN
    assert conclude(KEY, phases("setup passed", "call passed", "teardown failed")).verdict is Verdict.GREEN


@pytest.mark.parametrize(
    "seen",
    [
        phases("setup failed", "teardown passed"),
        phases("call failed", says="await until(hears()) -> NameError: name 'taken' is not defined"),
        [Phase("tests/some.py", "import", "failed", "ImportError")],
        [Phase("", "start", "failed", "Segmentation fault")],
    ],
    ids=["set-up", "another complaint", "import", "start"],
)
def test_a_run_that_fails_elsewhere_says_nothing(seen: list[Phase]) -> None:
    assert conclude(KEY, seen).verdict is Verdict.VOID


def test_a_test_that_fails_with_every_mechanism_on_says_nothing(tmp_path: Path) -> None:
    nowhere = Guard("nowhere", (1,), "", KEY.off, (Witness("tests/guards/no_such_file.py::test_it", ""),))
    ((found),) = judge([nowhere])
    assert found.verdict is Verdict.VOID
    assert "does not run" in found.says[0]


def test_an_edit_that_does_not_fit_any_more_is_told() -> None:
    with pytest.raises(DoesNotFit, match="0 times"):
        Edit("deposit_svc.domain", "no such line", "").apply("source")
    with pytest.raises(DoesNotFit, match="2 times"):
        Edit("deposit_svc.domain", "a", "b").apply("aa")


def test_every_switch_off_fits_the_code_and_leaves_code_that_compiles() -> None:
    for guard in GUARDS.values():
        for module in guard.modules:
            file = next(edit.file for edit in guard.off if edit.module == module)
            compile(guard.edited(module, file.read_text()), str(file), "exec")
        for edit in guard.off:
            assert not edit.place.endswith(": "), guard.name


def test_each_guard_has_a_name_of_its_own_a_promise_and_a_test() -> None:
    names = [guard.name for room in catalogue.ROOMS for guard in room.GUARDS]
    assert not [name for name, count in Counter(names).items() if count > 1]
    for guard in GUARDS.values():
        assert guard.promises and guard.red and guard.mechanism.endswith("."), guard.name
        assert all(witness.says for witness in guard.red), f"{guard.name}: what does the test complain of?"


def test_a_switch_off_reaches_the_processes_that_a_test_starts(tmp_path: Path) -> None:
    said = {
        off: subprocess.run(
            [sys.executable, "-m", "tests.guards.start", "tests.guards.shown"],
            env={**os.environ, switch.VARIABLE: off},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for off in ("", "refund-retry-key")
    }
    assert said == {"": "refund/1\n", "refund-retry-key": "refund\n"}
    child = launch(
        "tests.guards.shown", {**os.environ, switch.VARIABLE: "refund-retry-key"}, tmp_path / "log"
    )
    assert child.wait(60) == 0
    assert (tmp_path / "log").read_text() == "refund\n"


@pytest.mark.timeout(600)
def test_each_mechanism_that_is_switched_off_makes_its_test_red() -> None:
    quick = [guard for guard in GUARDS.values() if guard.quick]
    assert {number for guard in quick for number in guard.promises} == {one.number for one in PROMISES}
    found = list(judge(quick))
    assert len(found) == len(quick)
    wrong = [f"{one.guard.name} {one.verdict}: {' '.join(one.says)}" for one in found]
    assert not [line for line, one in zip(wrong, found, strict=True) if one.verdict is not Verdict.RED]
