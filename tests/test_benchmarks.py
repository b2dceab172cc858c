"""The benchmark of the edge in its smallest size: it starts, every call succeeds, and nothing stays."""

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


def test_the_benchmark_of_the_edge_runs(tmp_path: Path, broker: RunningBroker) -> None:
    state = tmp_path / "state"
    given = {"STATE_DIR": str(state), "AMQP_URL": broker.fresh_url()}
    names = list(settings.build(given).ports)
    given |= {name: str(port) for name, port in zip(names, free_ports(len(names)), strict=True)}
    arguments = [one for name, value in given.items() for one in ("--setting", f"{name}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.edge", "--tiny", "--rounds", "1", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = dict(re.findall(r"^outcomes, (.+): (\{.*\})$", done.stdout, re.MULTILINE))
    assert set(outcomes) == {"gRPC", "gRPC, edge", "JSON, edge"}
    for way, counted in outcomes.items():
        assert re.fullmatch(r"\{'OK': \d+\}", counted), f"{way}: {counted}"
    for call in ("GetReservation", "CreateReservation"):
        assert call in done.stdout
    rates = re.findall(r"^  calls/s, 4 in flight +(\d+) +(\d+) +(\d+)$", done.stdout, re.MULTILINE)
    assert len(rates) == 2
    assert all(int(rate) > 0 for columns in rates for rate in columns)
    assert machine.processes_of(state) == []
    assert not state.exists()
