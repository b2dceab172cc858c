"""Runs guards: their tests with the mechanism on, which must pass, and off, which must fail as announced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.guards import forks
from tests.guards.forks import Run
from tests.guards.guard import Guard, Witness
from tests.support.process import ROOT


class Verdict(StrEnum):
    RED = "RED"
    """The tests noticed."""
    GREEN = "GREEN"
    """A test did not notice that its mechanism was off: it holds nothing."""
    VOID = "VOID"
    """The run says nothing: a test failed with the mechanism on, or elsewhere than announced."""


@dataclass(frozen=True)
class Finding:
    guard: Guard
    verdict: Verdict
    says: tuple[str, ...]
    """What each test complained of; of a run that is void, why."""


@dataclass(frozen=True)
class Phase:
    """One phase of one test (or of a file, `import`), as pytest saw it."""

    test: str
    phase: str
    outcome: str
    says: str


def run(
    runs: Sequence[tuple[Sequence[str], Guard | None]], at_once: int
) -> Iterator[tuple[int, list[Phase]]]:
    """Runs these tests, each time without a guard's mechanism or with all, in processes of their own. Gives
    the number of a run and what pytest saw, in the order in which they end."""
    with tempfile.TemporaryDirectory(prefix="dinemesh-guards-") as folder:
        asked: list[Run] = []
        for number, (tests, off) in enumerate(runs):
            own = Path(folder) / str(number)
            own.mkdir()
            asked.append(Run(tuple(tests), off.name if off else "", str(own)))
        with subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", forks.__name__, str(at_once)],
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as forking:
            assert forking.stdin is not None and forking.stdout is not None
            forking.stdin.write("".join(f"{one.as_json()}\n" for one in asked))
            forking.stdin.close()
            for line in forking.stdout:
                number = int(line)
                yield number, _phases(asked[number])
        if forking.returncode != 0:
            raise RuntimeError(f"{forks.__name__} ended with {forking.returncode}")


def _phases(done: Run) -> list[Phase]:
    told = done.told.read_text().splitlines() if done.told.exists() else []
    phases = [Phase(**json.loads(line)) for line in told]
    return phases or [Phase("", "start", "failed", done.output.read_text()[-2000:])]


def judge(guards: Sequence[Guard], at_once: int = 2) -> Iterator[Finding]:
    """First the tests of all these guards with every mechanism on, then those of each without its own."""
    controls = control(guards)
    sound: list[Guard] = []
    for guard in guards:
        failed = [f"{one.test} {controls[one.test]}" for one in guard.red if one.test in controls]
        if failed:
            yield Finding(guard, Verdict.VOID, tuple(failed))
        else:
            sound.append(guard)
    runs = [([witness.test for witness in guard.red], guard) for guard in sound]
    for number, phases in run(runs, at_once):
        yield conclude(sound[number], phases)


def control(guards: Iterable[Guard]) -> Mapping[str, str]:
    """Why the tests of these guards do not pass with everything on, by test; empty if they do."""
    tests = list(dict.fromkeys(witness.test for guard in guards for witness in guard.red))
    ((_, phases),) = run([(tests, None)], 1)
    wrong: dict[str, str] = {}
    for test in tests:
        seen = [phase for phase in phases if _is_of(phase, test)]
        failed = [phase for phase in seen if phase.outcome != "passed"]
        if failed:
            wrong[test] = f"fails with the mechanism on ({failed[0].phase}): {failed[0].says}"
        elif not any(phase.phase == "call" for phase in seen):
            elsewhere = next((phase.says for phase in phases if phase.outcome == "failed"), "no such test")
            wrong[test] = f"does not run: {elsewhere}"
    return wrong


def conclude(guard: Guard, phases: Sequence[Phase]) -> Finding:
    """What the phases of its tests, run without the mechanism, say of a guard."""
    for phase in phases:
        # What the end of a test finds besides does not count, and does not spoil either.
        if phase.outcome != "passed" and phase.phase not in ("call", "teardown"):
            return Finding(guard, Verdict.VOID, (f"{phase.test} failed in {phase.phase}: {phase.says}",))
    complaints = [_complaint(witness, phases) for witness in guard.red]
    if silent := [witness.test for witness, said in zip(guard.red, complaints, strict=True) if not said]:
        return Finding(guard, Verdict.GREEN, tuple(f"{test} stays green" for test in silent))
    for witness, said in zip(guard.red, complaints, strict=True):
        if not any(witness.says in one for one in said):
            why = f"{witness.test} complains of something else than {witness.says!r}: {said[0]}"
            return Finding(guard, Verdict.VOID, (why,))
    announced = [
        next(one for one in said if witness.says in one)
        for witness, said in zip(guard.red, complaints, strict=True)
    ]
    return Finding(guard, Verdict.RED, tuple(announced))


def _complaint(witness: Witness, phases: Iterable[Phase]) -> list[str]:
    return [
        phase.says
        for phase in phases
        if phase.phase == "call" and phase.outcome == "failed" and _is_of(phase, witness.test)
    ]


def _is_of(phase: Phase, test: str) -> bool:
    """Whether it is the test, or a case of it."""
    return phase.test == test or phase.test.startswith(f"{test}[")
