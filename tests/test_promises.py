"""docs/PROMISES.md: each promise is there, what it names exists, and its tables are those of the guards."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from tests.guards.catalogue import GUARDS
from tests.guards.promises import PROMISES
from tests.guards.table import table
from tests.support.process import ROOT

TEXT = (ROOT / "docs" / "PROMISES.md").read_text()


@functools.cache
def functions(file: Path) -> frozenset[str]:
    return frozenset(
        node.name
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def exists(test: str) -> bool:
    """A folder, a file, or a test in it, with or without the name of a case."""
    file, _, function = test.partition("[")[0].partition("::")
    return (ROOT / file).exists() and (not function or function in functions(ROOT / file))


def test_each_of_the_promises_is_there_and_has_guards() -> None:
    assert [promise.number for promise in PROMISES] == list(range(1, len(PROMISES) + 1))
    for promise in PROMISES:
        assert f"## {promise.number}. {promise.text}\n" in TEXT
        assert any(guard.promises[0] == promise.number for guard in GUARDS.values()), promise.number
        assert promise.held_by, promise.number


def test_every_test_that_is_named_exists() -> None:
    named = {test for promise in PROMISES for test in promise.held_by}
    named |= {witness.test for guard in GUARDS.values() for witness in guard.red}
    assert not sorted(test for test in named if not exists(test))


def test_the_tables_are_those_of_the_guards() -> None:
    assert TEXT.endswith(f"\n{table()}"), "python -m tests.guards --write makes docs/PROMISES.md anew"


def test_whatever_the_introduction_names_exists() -> None:
    introduction = TEXT.partition("## 1.")[0]
    for file in re.findall(r"`((?:tests|docs|dinemesh)/[\w/.]+)`", introduction):
        assert (ROOT / file).exists(), file
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)", introduction):
        assert re.search(rf"^{target}:", targets, re.M), target
