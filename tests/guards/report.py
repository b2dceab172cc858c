"""A pytest plugin: what became of each phase of each test, one JSON object a line, into GUARD_REPORT."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "GUARD_REPORT"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    _write(
        {
            "test": item.nodeid,
            "phase": report.when,
            "outcome": report.outcome,
            "says": _complaint(item, call.excinfo) if call.excinfo is not None else "",
        }
    )


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be imported is no test that failed."""
    if report.failed:
        _write({"test": report.nodeid, "phase": "import", "outcome": "failed", "says": str(report.longrepr)})


def _complaint(item: pytest.Item, error: pytest.ExceptionInfo[BaseException]) -> str:
    """The line of the test that failed, and the error, on one line: many errors say little without it."""
    line = next(
        (str(entry.statement).strip() for entry in reversed(error.traceback) if entry.path == item.path), ""
    )
    told = " -> ".join(filter(None, [line, error.exconly(tryshort=False)]))
    return " ".join(told.split())


def _write(told: dict[str, Any]) -> None:
    with Path(os.environ[VARIABLE]).open("a") as report:
        report.write(f"{json.dumps(told)}\n")
