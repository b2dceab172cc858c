"""Benchmarks in their smallest size: they start, every call succeeds, and nothing stays. And what the docs
say of the table that was measured last."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import meters, page
from benchmarks.loads import OK
from benchmarks.own_mesh import Restaurant
from benchmarks.ways import Json
from local_mesh import machine, settings
from local_mesh.broker import RunningBroker
from tests.support.mesh import ROOT
from tests.support.ports import free_ports

SECONDS = 180
MOST_MEGABYTES = 200
"""Of which the imports take 115, and a part of each table the rest, however many bookings there are."""


def printed(benchmark: str, *arguments: str) -> str:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, "-m", benchmark, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(tmp_path: Path, broker: RunningBroker | None, benchmark: str, *arguments: str) -> str:
    """What a benchmark prints, on a mesh of its own that is gone afterwards. None: with its own broker."""
    state = tmp_path / "state"
    given = {"STATE_DIR": str(state)} | ({"AMQP_URL": broker.fresh_url()} if broker else {})
    names = list(settings.build(given).ports)
    given |= {name: str(port) for name, port in zip(names, free_ports(len(names)), strict=True)}
    mesh = [one for name, value in given.items() for one in ("--setting", f"{name}={value}")]
    said = printed(benchmark, "--tiny", *arguments, *mesh)
    assert machine.processes_of(state) == []
    assert not state.exists()
    return said


def test_one_table_has_the_floors_and_the_mesh_with_every_part_of_it(tmp_path: Path) -> None:
    kind = "PostgreSQL, single"
    said = run(tmp_path, None, "benchmarks.mesh", "--rounds", "1", "--kinds", kind)
    figures = page.Figures(said)
    hops, column = "two hops", "PostgreSQL single"
    rate = "answered or confirmed/s"
    for floor in ("echo", hops):
        assert figures.number(page.UNDER_LOAD, rate, floor) > 0
    assert 0 < figures.number(page.UNDER_LOAD, "of two hops", column) < 1
    parts = {*meters.PARTS.values(), meters.SUPERVISOR, meters.POSTGRESQL, meters.GENERATOR}
    each = [figures.number(page.UNDER_LOAD, part, column) for part in parts]
    whole = figures.number(page.UNDER_LOAD, "processor for one", column)
    assert sum(each) == pytest.approx(whole, abs=0.01 * len(parts))
    for part in ("reservation", "deposit", "RabbitMQ", meters.POSTGRESQL):
        assert figures.number(page.UNDER_LOAD, part, column) > 0, part
    assert figures.number(page.ALONE, "commits for one", column) >= 4  # the least: one in each service
    assert figures.number(page.UNDER_LOAD, "AMQP messages published for one", column) > 0
    for row in ("write-ahead log, for one", "log of events grows by, for one"):
        assert figures.number(page.UNDER_LOAD, row, column) > 1, row
    assert figures.number(page.EDGE, "confirmed/s", column) > 0
    ((confirmed, answers),) = re.findall(
        rf"^{kind}: ([\d,]+) confirmed in the database, answers (.*)$", said, re.M
    )
    assert answers == f"{{'OK': {confirmed.replace(',', '')}}}"


def test_a_database_is_as_large_as_its_file(tmp_path: Path) -> None:
    file = tmp_path / "some.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE lines AS SELECT randomblob(100000)")
    assert meters.bytes_in(f"sqlite:///{file}") == file.stat().st_size > 100_000


@pytest.mark.parametrize(
    ("file", "made"), [(page.README, page.in_readme), (page.SCALE, page.in_scale)], ids=["README", "SCALE"]
)
def test_the_docs_say_what_was_measured_last(file: Path, made: Callable[[page.Figures], str]) -> None:
    text, figures = file.read_text(), page.Figures(page.table_in(page.PAGE.read_text()))
    assert page.with_figures(text, made(figures)) == text, "`python -m benchmarks.page` writes them anew"


def test_what_is_in_the_way_of_scale_stands_where_the_page_says() -> None:
    named = re.findall(r"`([a-z0-9_/-]+\.(?:py|yaml|proto)): ([^`]+)`", page.SCALE.read_text())
    assert len(named) >= 10
    for file, said in named:
        assert said in (ROOT / file).read_text(), f"{file}: {said}"


def test_each_benchmark_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"python -m (benchmarks\.\w+)", page.PAGE.read_text()))
    assert len(named) >= 5
    for module in named:
        assert importlib.util.find_spec(module), module


def test_a_table_without_a_row_that_is_asked_for_says_so() -> None:
    printed = "\n".join([page.line("", "", "SQLite"), page.line("4 calls in flight", "echo", "group"), ""])
    printed += page.line("  answered or confirmed/s", "9,876", "12")
    figures = page.Figures(printed)
    assert figures.number(page.UNDER_LOAD, "answered or confirmed/s", "echo") == 9876
    assert figures.cell(page.UNDER_LOAD, "answered or confirmed/s", "SQLite group") == "12"
    with pytest.raises(LookupError, match="no row 'processor' in 'no calls'"):
        figures.cell(page.QUIET, "processor", "echo")


async def test_a_connection_that_the_edge_has_closed_is_not_used_again() -> None:
    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    way = Json(f"127.0.0.1:{port}", "token", Restaurant("one", [], "etag"))
    for _ in range(2):
        assert await way.livez() == OK
        ((reader, _writer),) = way._idle
        async with asyncio.timeout(10):
            while not reader.at_eof():  # noqa: ASYNC110  # it has no event for that
                await asyncio.sleep(0)
    await way.close()
    server.close()
    await server.wait_closed()


def test_the_benchmark_of_the_edge_runs(tmp_path: Path, broker: RunningBroker) -> None:
    said = run(tmp_path, broker, "benchmarks.edge", "--rounds", "1")
    outcomes = dict(re.findall(r"^outcomes, (.+): (\{.*\})$", said, re.MULTILINE))
    assert set(outcomes) == {"gRPC", "gRPC, edge", "JSON, edge"}
    for way, counted in outcomes.items():
        assert re.fullmatch(r"\{'OK': \d+\}", counted), f"{way}: {counted}"
    for call in ("GetReservation", "CreateReservation"):
        assert call in said
    rates = re.findall(r"^  calls/s, 4 in flight +(\d+) +(\d+) +(\d+)$", said, re.MULTILINE)
    assert len(rates) == 2
    assert all(int(rate) > 0 for columns in rates for rate in columns)


def test_the_benchmark_of_overload_runs_and_one_customer_costs_the_others_nothing(
    tmp_path: Path, broker: RunningBroker
) -> None:
    said = run(tmp_path, broker, "benchmarks.overload")
    (booked,) = re.findall(r"^round 1, tok_slow_50, 4 +([\d.]+) ", said, re.MULTILINE)
    assert float(booked) > 0
    rows = re.findall(r"^round 1, (nothing|declined cards, 19/s) +([\d.]+) +(\d+) ", said, re.MULTILINE)
    assert [name for name, _, _ in rows] == ["nothing", "declined cards, 19/s"]
    for _, rate, refused in rows:
        assert float(rate) > 0 and refused == "0"
    assert re.search(r"the customer got: .*TRY_AGAIN_LATER", said)


def test_the_benchmark_of_several_pods_runs_and_a_stopped_one_stops_no_other() -> None:
    said = printed("benchmarks.pods", "--pods", "2", "--seconds", "9")
    ((rate, refused),) = re.findall(r"^2 +(\d+) .* (\S+)$", said, re.MULTILINE)
    assert int(rate) > 0 and refused == "none"
    *_, by_second, deadlocks = said.splitlines()
    assert deadlocks.endswith(": 0")
    rates = [int(one) for one in by_second.split()]
    # It was stopped from the third second to the sixth; what it had locked was free again a second later.
    assert len(rates) == 9 and all(rates[5:]), rates


def test_the_benchmark_of_growth_runs_and_nothing_is_wrong_with_what_it_makes(tmp_path: Path) -> None:
    bookings, databases = 5000, tmp_path / "databases"
    said = printed("benchmarks.growth", "--bookings", str(bookings), "--folder", str(databases))
    assert "audit: nothing wrong" in said
    assert re.search(r"^captures +ok +5000 reservations; ", said, re.MULTILINE)
    stories = re.findall(r"^ +(\d+) (.+)$", said, re.MULTILINE)
    assert sum(int(count) for count, _ in stories) == bookings and len(stories) == 7
    # All of them wait whose meal is to come, and no one else.
    ahead = sum(int(count) for count, name in stories if name in ("confirmed", "modified"))
    assert f"pending: late: nothing; {ahead} wait within their time" in said
    ((tables, indexes),) = re.findall(r"^all +(\d+) +(\d+) ", said, re.MULTILINE)
    on_disk = sum(one.stat().st_size for one in databases.iterdir() if one.stem != "sandbox")
    assert 0.9 * on_disk < bookings * (int(tables) + int(indexes)) <= on_disk
    peaks = re.findall(r"^(audit|pending) +[\d.]+ s, [\d.]+ s of processor, (\d+) MB", said, re.MULTILINE)
    assert [name for name, _ in peaks] == ["audit", "pending"]
    assert all(int(megabytes) < MOST_MEGABYTES for _, megabytes in peaks)
