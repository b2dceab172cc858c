"""What all tests share: real databases, a real broker and a real browser."""

from __future__ import annotations

import datetime as dt
import logging
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

pytest_plugins = [
    "tests.support.postgres",
    "tests.support.broker",
    "tests.support.broker_cluster",
    "tests.support.chromium",
]


# What Hypothesis makes up is the same at every run. `--hypothesis-profile=anew` makes up something else, and
# tells how to repeat what it finds.
settings.register_profile("anew", print_blob=True)
settings.register_profile("same", derandomize=True, print_blob=True)
settings.load_profile("same")


QUICK = (
    "tests/budgets",
    "tests/contracts",
    "tests/deposit",
    "tests/history",
    "tests/kit",
    "tests/reservation",
    "tests/restaurant",
    "tests/test_any_order",
    "tests/test_architecture",
    "tests/test_checklist",
    "tests/test_promises",
    "tests/test_readme",
)
"""Where `--quick` looks (`make quick`)."""
NOT_QUICK = frozenset(
    [
        "broker",
        "broker_cluster",
        "chromium",
        "history_process",
        "office",
        "own_broker",
        "postgres",
        "running",
        "sandbox",
    ]
)
"""Fixtures that start a process. Without `postgres`, both engines become SQLite alone."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="only what needs no broker, no PostgreSQL and no Envoy"
    )


def pytest_configure() -> None:
    """A run that is told to end clears up like one that is interrupted: PostgreSQL would outlive us."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # One that was started in the background ignores Ctrl-C, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"day: {dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}, which tests that speak of tomorrow go by"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How to repeat what was made up out of a seed and of the day, whatever became of it."""
    lines = {
        str(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "repeat"
    }
    if lines:
        terminalreporter.section("made up out of a seed and a day; to repeat it")
        for line in sorted(lines):
            terminalreporter.line(line)


LONGEST = ("tests/crash/test_crash_points", "tests/torture/", "tests/mesh/", "tests/edge/test_traps")
"""What takes longest begins first, so that no worker is left alone with it at the end."""


def _is_quick(item: pytest.Item) -> bool:
    starts_nothing = NOT_QUICK.isdisjoint(getattr(item, "fixturenames", ()))
    return item.nodeid.startswith(QUICK) and starts_nothing and "postgresql" not in item.nodeid


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("quick"):
        config.hook.pytest_deselected(items=[item for item in items if not _is_quick(item)])
        items[:] = filter(_is_quick, items)

    def place(item: pytest.Item) -> int:
        return next((n for n, long in enumerate(LONGEST) if item.nodeid.startswith(long)), len(LONGEST))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Which tests stay together when several workers share them (`make test`): those of one file, and all
    stories of tests/mesh, since the audit after them looks at what they left behind."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "tests/mesh" if path.startswith("tests/mesh/") else path

    return Together(config, log)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A test that runs a service's `main` here leaves no log of that service to the tests after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
