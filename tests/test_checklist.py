"""docs/CHECKLIST.md: every file, command and test that it names is there, and the test runs the command."""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.test_promises import functions
from tests.test_readme import complaint

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "CHECKLIST.md"
NAMES = (
    "saga",
    "CQRS",
    "correlation",
    "request/response",
    "gateway",
    "deploy and pipeline",
    "circuit breaker",
    "autoscale",
    "zero downtime",
    "config map and volume",
    "polyglot persistence",
    "self-healing",
)
RUNS = {
    "saga": 'mesh.run("demo")',
    "CQRS": 'mesh.run("rebuild-history")',
    "correlation": '"examples.correlation"',
    "request/response": '"examples/grpcurl.sh"',
    "gateway": '"examples/curl.sh"',
    "deploy and pipeline": 'roll_out(tmp_path, "prod")',
    "zero downtime": "rolling(mesh, rounds=1",
    "polyglot persistence": "DEPOSIT_DATABASE_URL=postgres.fresh",
}
"""How the test runs the command, by what stands in it or in a fixture that it asks for. Elsewhere the command
runs the test."""


@dataclass(frozen=True)
class Row:
    name: str
    what: str
    where: tuple[str, ...]
    command: str
    tests: tuple[str, ...]
    """Relative to tests/."""

    @property
    def words(self) -> list[str]:
        return shlex.split(self.command)


def rows() -> list[Row]:
    found = []
    for line in PAGE.read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| name "):
            name, what, where, command, tests = (cell.strip() for cell in line.strip("|").split(" | "))
            files = tuple(re.findall(r"\]\(\.\./([^)]+)\)", where))
            found.append(Row(name, what, files, command.strip("`"), tuple(re.findall(r"`([^`]+)`", tests))))
    return found


ROWS = {row.name: row for row in rows()}
each = pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))


def collected(*arguments: str) -> set[str]:
    """What pytest would run, by names relative to tests/; everything that is asked for must be there."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r"^tests/(\S+)", done.stdout, re.MULTILINE))


@functools.cache
def source(test: str) -> str:
    """Of the test and of the fixtures of its file that it asks for, directly or through others."""
    file, _, function = test.partition("[")[0].partition("::")
    text = (ROOT / "tests" / file).read_text()
    known = {
        node.name: node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    wanted, seen = [function], ""
    while wanted:
        node = known.pop(wanted.pop(), None)
        if node is not None:
            seen += ast.get_source_segment(text, node) or ""
            wanted += [argument.arg for argument in node.args.args]
    return seen


def test_the_twelve_names_are_there_once_each_and_say_what_they_mean() -> None:
    assert [row.name for row in rows()] == list(NAMES)
    assert all(len(row.what) > 20 and row.where and row.tests for row in rows())


@each
def test_what_does_it_is_there(row: Row) -> None:
    assert [one for one in row.where if not (ROOT / one).exists()] == []


@each
def test_the_command_is_one_that_can_be_given(row: Row) -> None:
    program = ROOT / row.words[0]
    if program.is_file():
        assert os.access(program, os.X_OK)
    else:
        assert not complaint(row.command), complaint(row.command)
    if row.words[0] == "make":  # all that it would run can be made
        subprocess.run([*row.words, "--dry-run"], cwd=ROOT, capture_output=True, timeout=60, check=True)


def test_every_test_can_be_run_and_each_name_has_one_that_needs_no_go() -> None:
    named = [f"tests/{test}" for row in rows() for test in row.tests]
    found = collected(*named)
    for row in rows():
        for test in row.tests:
            assert any(one == test or one.startswith(f"{test}[") for one in found), test
        assert any(Path(test.partition("::")[0]).name.startswith("test_") for test in row.tests), row.name


@each
def test_the_test_runs_the_command_or_the_command_the_test(row: Row) -> None:
    if row.name in RUNS:
        assert RUNS[row.name] in source(row.tests[0])
    elif row.command == "make cluster-truth":
        file, _, function = row.tests[0].partition("::")
        assert function in functions(ROOT / "tests" / file)
        assert re.search(rf"^cluster-truth:.*\n\t.*pytest .*\btests/{file}$", makefile(), re.MULTILINE)
    else:
        (argument,) = (word.partition("=")[2] for word in row.words if word.startswith("ARGS="))
        assert row.words[:2] == ["make", "test"]
        assert f"tests/{row.tests[0]}".partition("[")[0] in (argument, f"{argument}::{_function(row)}")


def _function(row: Row) -> str:
    return row.tests[0].partition("[")[0].rpartition("::")[2]


def makefile() -> str:
    return (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("name", ["saga", "polyglot persistence"])
def test_a_test_that_does_not_run_the_command_would_be_noticed(name: str) -> None:
    assert RUNS[name] not in source("local_mesh/test_commands.py::test_up_again_changes_nothing")
