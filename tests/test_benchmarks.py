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
        [sys.executable, "-m", "benchmarks.pods", "--pods", "2", "--seconds", "9"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ((rate, refused),) = re.findall(r"^2 +(\d+) .* (\S+)$", done.stdout, re.MULTILINE)
    assert int(rate) > 0 and refused == "none"
    rates = [int(one) for one in done.stdout.splitlines()[-1].split()]
    # It was stopped from the third second to the sixth; what it had locked was free again a second later.
    assert len(rates) == 9 and all(rates[5:]), rates
