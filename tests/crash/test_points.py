"""The points as they stand in the code: off unless a test asks, and gone under `python -O`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dis import get_instructions
from pathlib import Path
from types import CodeType

from dinemesh.kit import crash
from local_mesh.parts import MODULES, build
from local_mesh.places import Places
from local_mesh.settings import build as settings
from tests.crash.cases import PACKAGES, all_points, modules, points_in
from tests.support.mesh import ROOT

POINT = (
    "from dinemesh.kit import crash\nif __debug__:\n    crash.point('somewhere', 'quiet')\nprint('alive')\n"
)


def run(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def points_left(source: str, optimize: int) -> list[str]:
    """The instructions of a module's byte code that have to do with a point, apart from the import."""
    names = {"crash", *points_in(source)}
    return [
        f"{instruction.opname} {instruction.argval}"
        for code in codes(compile(source, "module", "exec", optimize=optimize, dont_inherit=True))
        for instruction in get_instructions(code)
        if instruction.opname.startswith("LOAD") and str(instruction.argval) in names
    ]


def test_every_point_has_a_name_of_its_own() -> None:
    assert not [name for name, count in Counter(all_points()).items() if count > 1]
    assert len(all_points()) > 40


def test_optimized_byte_code_holds_no_point() -> None:
    sources = {path: path.read_text() for path in modules()}
    with_points = {path for path, source in sources.items() if points_left(source, optimize=0)}
    assert {path.stem for path in with_points} >= {
        "store",
        "outbox",
        "inbox",
        "service",
        "reserve",
        "usecases",
    }
    assert {path.relative_to(ROOT).parts[0] for path in sources} == {name.split("/")[0] for name in PACKAGES}
    assert not {path: left for path, source in sources.items() if (left := points_left(source, optimize=1))}


def test_the_one_machine_starts_its_services_without_points(tmp_path: Path) -> None:
    parts = build(settings({"AMQP_URL": "amqp://nobody/"}), Places(tmp_path), None)
    services = [part.arguments for part in parts if part.name in MODULES]
    assert len(services) == len(MODULES)
    assert all(arguments[arguments.index(sys.executable) + 1] == "-O" for arguments in services)


def test_a_point_does_nothing_unless_a_test_asks(tmp_path: Path) -> None:
    (tmp_path / "armed").write_text("somewhere quiet")
    assert run(POINT).stdout == "alive\n"
    assert (tmp_path / "armed").exists()


def test_an_armed_process_dies_at_its_point_and_only_there(tmp_path: Path) -> None:
    (tmp_path / "armed").write_text("somewhere else")
    assert run(POINT, CRASH_POINTS=str(tmp_path)).stdout == "alive\n"
    (tmp_path / "armed").write_text("somewhere quiet")
    died = run(POINT, CRASH_POINTS=str(tmp_path))
    assert (died.returncode, died.stdout) == (crash.EXIT_CODE, "")
    passed = (tmp_path / "passed").read_text().splitlines()
    assert passed == ["somewhere quiet", "somewhere quiet", f"{crash.DIED}somewhere quiet"]
    # Once: what is started again lives.
    assert run(POINT, CRASH_POINTS=str(tmp_path)).stdout == "alive\n"


def test_an_optimized_process_does_not_die(tmp_path: Path) -> None:
    (tmp_path / "armed").write_text("somewhere quiet")
    assert run(POINT, "-O", CRASH_POINTS=str(tmp_path)).stdout == "alive\n"
    assert not (tmp_path / "passed").exists()
