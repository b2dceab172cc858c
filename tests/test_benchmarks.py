"""Benchmarks in their smallest size: they start, every call succeeds, and nothing stays."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from local_mesh import machine, settings
from local_mesh.broker import RunningBroker
from tests.support.mesh import ROOT
from tests.support.ports import free_ports

SECONDS = 180
MOST_MEGABYTES = 200
"""Of which the imports take 115, and a part of each table the rest, however many bookings there are."""


def run(tmp_path: Path, broker: RunningBroker, benchmark: str, *arguments: str) -> str:
    """What a benchmark prints, on a mesh of its own that is gone afterwards."""
    state = tmp_path / "state"
    given = {"STATE_DIR": str(state), "AMQP_URL": broker.fresh_url()}
    names = list(settings.build(given).ports)
    given |= {name: str(port) for name, port in zip(names, free_ports(len(names)), strict=True)}
    mesh = [one for name, value in given.items() for one in ("--setting", f"{name}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", benchmark, "--tiny", *arguments, *mesh],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert machine.processes_of(state) == []
    assert not state.exists()
    return done.stdout


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
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pods", "--pods", "2", "--seconds", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ((rate, refused),) = re.findall(r"^2 +(\d+) .* (\S+)$", done.stdout, re.MULTILINE)
    assert int(rate) > 0 and refused == "none"
    second_by_second = done.stdout.splitlines()[-1].split()
    assert len(second_by_second) == 3 and all(int(one) > 0 for one in second_by_second)


def test_the_benchmark_of_growth_runs_and_nothing_is_wrong_with_what_it_makes(tmp_path: Path) -> None:
    bookings, databases = 5000, tmp_path / "databases"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", "--bookings", str(bookings), "--folder", str(databases)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "audit: nothing wrong" in done.stdout
    assert re.search(r"^captures +ok +5000 reservations; ", done.stdout, re.MULTILINE)
    stories = re.findall(r"^ +(\d+) (.+)$", done.stdout, re.MULTILINE)
    assert sum(int(count) for count, _ in stories) == bookings and len(stories) == 7
    # All of them wait whose meal is to come, and no one else.
    ahead = sum(int(count) for count, name in stories if name in ("confirmed", "modified"))
    assert f"pending: late: nothing; {ahead} wait within their time" in done.stdout
    ((tables, indexes),) = re.findall(r"^all +(\d+) +(\d+) ", done.stdout, re.MULTILINE)
    on_disk = sum(one.stat().st_size for one in databases.iterdir() if one.stem != "sandbox")
    assert 0.9 * on_disk < bookings * (int(tables) + int(indexes)) <= on_disk
    peaks = re.findall(
        r"^(audit|pending) +[\d.]+ s, [\d.]+ s of processor, (\d+) MB", done.stdout, re.MULTILINE
    )
    assert [name for name, _ in peaks] == ["audit", "pending"]
    assert all(int(megabytes) < MOST_MEGABYTES for _, megabytes in peaks)
