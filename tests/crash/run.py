"""Runs every case: a process dies at its point in the middle of a story, is started again, and afterwards
everything must be as if nothing had happened."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.cases import Case, Cases, Found, Group, Lines, all_points, each
from tests.crash.stories import STORIES, Story
from tests.crash.world import PAUSE, SETTINGS, World
from tests.support.mesh import SERVICES, Launch, RunningMesh

DISCOVERIES = 2
"""Runs of each story: what it passes only sometimes depends on who is faster."""
TRIES = 4
"""A story may take another way than it took before; then its case is tried again."""
LATER_SECONDS = 4.0
"""A point may be passed so long after a story has ended."""

Databases = Callable[[str], str]
"""Gives the URL of a new database, with the schema of a package."""


@dataclass
class Outcome:
    """Of one case. `deaths`: how often the process died at its point, witnessed by exit code and last line.
    `sure`: its story passes the point every time; of a race, the other order may win in all tries."""

    case: Case
    story: str
    sure: bool
    deaths: int = 0
    tries: int = 0
    wrong: str = ""

    @property
    def is_void(self) -> bool:
        return self.sure and not self.deaths and not self.wrong


@dataclass
class Result:
    """Of a run. `never`: points of the code that no story passes."""

    engine: str
    outcomes: list[Outcome] = field(default_factory=list)
    never: list[str] = field(default_factory=list)
    dead_letters: int = 0
    differs: list[str] = field(default_factory=list)
    """Of each world whose timeline was another one after it was built anew from the log of events."""
    seconds: float = 0.0
    discovery_seconds: float = 0.0
    """The start of the meshes among it."""
    cases: Cases = field(default_factory=dict)
    """All that are known, exercised or not."""

    @property
    def wrong(self) -> list[Outcome]:
        return [one for one in self.outcomes if one.wrong]

    @property
    def void(self) -> list[Outcome]:
        return [one for one in self.outcomes if one.is_void]

    @property
    def is_good(self) -> bool:
        return bool(self.outcomes) and not (
            self.wrong or self.void or self.never or self.dead_letters or self.differs
        )

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(result: Result) -> list[str]:
    deaths = sum(one.deaths for one in result.outcomes)
    missed = [one for one in result.outcomes if not (one.deaths or one.wrong or one.sure)]
    lines = [
        f"crash points on {result.engine}: {len(all_points())} points, {len(result.outcomes)} cases, "
        f"{deaths} deaths, {len(result.wrong)} violations, {len(result.void)} void, "
        f"{result.seconds:.0f} s, {result.discovery_seconds:.0f} s of them until {len(result.cases)} cases "
        "were known",
    ]
    for service in SERVICES:
        mine = [one for one in result.outcomes if one.case.service == service]
        points = {one.case.point for one in mine}
        deaths = sum(one.deaths for one in mine)
        lines.append(f"  {service:<12} {len(points):>3} points  {len(mine):>4} cases  {deaths:>4} deaths")
    lines.append(f"  dead letters: {result.dead_letters}")
    lines.append(f"  orders of a race that did not come up in {TRIES} tries: {len(missed)}")
    lines += [f"HISTORY  differs from its rebuild: {said}" for said in result.differs]
    lines += [f"NEVER PASSED  {name}" for name in result.never]
    lines += [f"VOID  {one.case} (in {one.story}, {one.tries} tries)" for one in result.void]
    lines += [f"WRONG  {one.case} (in {one.story})\n{one.wrong}" for one in result.wrong]
    return lines


async def discover(worlds: Sequence[World], stories: Sequence[Story], *, twice: bool = True) -> Found:
    """Every story as it goes when nobody dies: the control run, too. Not `twice`: once is enough if every
    point was passed; those that belong to one order of a race may not have been."""
    found = Found({story: [] for story in stories})
    for _ in range(DISCOVERIES):
        if twice or found.never():
            await _tell_all(worlds, stories, found)
    return found


async def _tell_all(worlds: Sequence[World], stories: Sequence[Story], found: Found) -> None:
    waiting = deque(stories)

    async def work(world: World) -> None:
        await world.come_to_rest()
        while waiting:
            story = waiting.pop()  # the longest are the last
            found.runs[story].append(await _passed_in(world, story))

    await asyncio.gather(*map(work, worlds))


async def _passed_in(world: World, story: Story) -> Lines:
    before = {service: len(world.passed(service)) for service in SERVICES}
    await story(world)
    await world.come_to_rest()
    return {service: frozenset(world.passed(service)[before[service] :]) for service in SERVICES}


async def exercise(
    world: World,
    case: Case,
    story: Story,
    *,
    sure: bool = True,
    times: int = 1,
    tries: int = TRIES,
    later_seconds: float = LATER_SECONDS,
) -> Outcome:
    """One case, until it has died or often enough not. With `times` above one it may die there again, when it
    has come back and passes the same point."""
    outcome = Outcome(case, story.__name__, sure)
    try:
        while not outcome.deaths and outcome.tries < tries:
            outcome.tries += 1
            outcome.deaths = await _die_in(world, case, story, times, later_seconds)
    except Exception as error:
        outcome.wrong = f"{type(error).__name__}: {error}"
    return outcome


async def exercise_one_of(world: World, group: Group, *, times: int = 1) -> Outcome:
    """The first case of several that dies; void if none of some does."""
    for case, story in itertools.islice(itertools.cycle(group), TRIES):
        outcome = await exercise(world, case, story, times=times, tries=1)
        if outcome.deaths or outcome.wrong:
            break
    return outcome


async def _die_in(world: World, case: Case, story: Story, times: int, later_seconds: float) -> int:
    """How often it died."""
    deaths = 0
    over = False

    async def die() -> None:
        nonlocal deaths
        while deaths < times and not over:
            world.arm(case.service, case.line)
            await world.death(case.service, case.line)
            deaths += 1

    dying = asyncio.create_task(die())
    try:
        await asyncio.sleep(0)
        assert world.is_armed(case.service)
        await story(world)
        end = time.monotonic() + later_seconds
        while not (deaths or dying.done() or time.monotonic() > end):  # noqa: ASYNC110 - the other end polls, too
            await asyncio.sleep(PAUSE)
        over = True
        if world.disarm(case.service):
            dying.cancel()
        else:
            await dying
        await world.come_to_rest()
    except Exception as error:
        if dying.done() and not dying.cancelled() and (first := dying.exception()) is not None:
            raise first from error  # nobody started it again: what followed is no wonder
        raise
    finally:
        world.disarm(case.service)
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
    return deaths


class Yard:
    """Where the worlds of a run stand: each a mesh of its own on the same broker."""

    def __init__(self, folder: Path, launch: Launch, vhost: Callable[[], str], database: Databases) -> None:
        self._folder = folder
        self._launch = launch
        self._vhost = vhost
        self._database = database
        self._count = 0

    async def world(self) -> World:
        self._count += 1
        folder = self._folder / f"mesh-{self._count}"
        folder.mkdir(parents=True)
        databases = {service: self._database(f"{service}_svc") for service in SERVICES}
        mesh = RunningMesh(folder, self._vhost(), databases=databases, settings=SETTINGS, launch=self._launch)
        for part in mesh.parts.values():
            part.spawn()
        for part in mesh.parts.values():
            await asyncio.to_thread(part.wait_until_ready)
        world = World(mesh)
        await world.furnish()
        return world


async def run(
    engine: str,
    yard: Yard,
    *,
    side_by_side: int,
    times: int = 1,
    cases: Cases | None = None,
    choose: Callable[[Cases], Sequence[Group]] = each,
    twice: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Exercises what `choose` leaves, on so many meshes side by side. The cases are discovered first, unless
    they are given."""
    begun = time.monotonic()
    result = Result(engine, cases=cases or {})
    worlds = [await yard.world() for _ in range(side_by_side)]
    found = Found({})
    sure: Cases = result.cases
    if cases is None:
        found = await discover(worlds, STORIES, twice=twice)
        result.never = found.never()
        sure = found.cases()
        result.cases = sure | found.sometimes()
        say(f"discovered in {time.monotonic() - begun:.0f} s: {len(sure)} cases")
    result.discovery_seconds = time.monotonic() - begun
    waiting = deque(choose(result.cases))

    async def exercise_alone(world: World, case: Case, story: Story) -> Outcome:
        outcome = await exercise(world, case, story, sure=case in sure, times=times)
        for other in found.stories(case):
            # On a machine that is busier than before, its story may take another way.
            if outcome.is_void and other is not story:
                outcome = await exercise(world, case, other, times=times)
        return outcome

    async def work(world: World) -> None:
        while waiting:
            group = waiting.pop()
            if len(group) > 1:
                outcome = await exercise_one_of(world, group, times=times)
            else:
                outcome = await exercise_alone(world, *group[0])
            result.outcomes.append(outcome)
            if outcome.wrong or outcome.is_void or len(waiting) % 50 == 0:
                say(f"{len(waiting)} left; {outcome}")
            if outcome.wrong:
                # What is wrong there would be found wrong in every case that follows.
                await world.close()
                world = await yard.world()
        result.dead_letters += await world.dead_letters()
        if differs := await world.history_differs():
            result.differs.append(differs)
        await world.close()

    await asyncio.gather(*map(work, worlds))
    result.seconds = time.monotonic() - begun
    return result


__all__ = ["Outcome", "Result", "Yard", "discover", "exercise", "run"]
