"""A mesh under its supervisor, as `make` starts it, and what a test asks of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from local_mesh import machine, parts, settings
from local_mesh.places import Places
from local_mesh.supervision import Seen, Supervisor
from tests.support.ports import free_ports


class LocalMesh:
    """Runs `python -m local_mesh <command>` for one folder and set of ports."""

    def __init__(self, state: Path, **given: str) -> None:
        names = list(settings.build({}).ports)
        chosen = {name: str(port) for name, port in zip(names, free_ports(len(names)), strict=True)}
        self.given = {"STATE_DIR": str(state), **chosen, **given}
        self.settings = settings.build(self.given)
        self.places = Places(self.settings.state_dir)

    def run(self, command: str, seconds: float = 240, **more: str) -> subprocess.CompletedProcess[str]:
        process = self.spawn(command, **more)
        try:
            said, complained = process.communicate(timeout=seconds)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, said, complained)

    def spawn(self, command: str, **more: str) -> subprocess.Popen[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("DINEMESH_")}
        given = {f"DINEMESH_{name}": value for name, value in self.given.items()}
        return subprocess.Popen(
            [sys.executable, "-m", "local_mesh", command],
            env={**clean, "MAKEFLAGS": "", **given, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def up(self) -> str:
        done = self.run("up")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def down(self) -> str:
        done = self.run("down")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def part(self, name: str) -> Seen:
        supervisor = Supervisor(self.places.socket)
        try:
            return supervisor.parts()[name]
        finally:
            supervisor.close()

    def is_ready(self, name: str) -> bool:
        return parts.is_well(self.settings, name, "ready")

    def get(self, path: str) -> int:
        """The status that the edge answers with."""
        return httpx.get(f"http://{self.settings.address('edge')}{path}", timeout=5).status_code

    def calls_in_the_edge(self) -> int:
        name = "http.edge.downstream_rq_active"
        admin = f"http://127.0.0.1:{self.settings.edge_admin_port}"
        return int(httpx.get(f"{admin}/stats?filter=^{name}$", timeout=5).text.split()[-1])

    def envoy(self) -> int:
        """The process of Envoy itself, below the part that the supervisor knows."""
        (child,) = machine.children_of(self.part("edge").pid)
        return child


def restaurants(mesh: LocalMesh) -> list[dict[str, str]]:
    answer = httpx.get(f"http://{mesh.settings.address('edge')}/v1/restaurants", timeout=5)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, str]] = answer.json()["restaurants"]
    return found


def free_table(mesh: LocalMesh) -> dict[str, str]:
    """Where and when there is one and on which terms, as soon as reservation has heard of it."""
    restaurant_id = next(one["restaurantId"] for one in restaurants(mesh) if one["name"] == "Trattoria Lume")
    day = datetime.now(UTC).date() + timedelta(days=3)
    path = f"/v1/restaurants/{restaurant_id}/availableSlots?date={day}&party_size=2"
    found: list[dict[str, str]] = []

    def heard() -> bool:
        answer = httpx.get(f"http://{mesh.settings.address('edge')}{path}", timeout=5).json()
        found.extend(
            {"dineTime": one["dineTime"], "policyEtag": answer["policyEtag"]}
            for one in answer.get("slots", [])
            if one["available"]
        )
        return bool(found)

    wait_until(heard, "reservation offers a table")
    return {"restaurantId": restaurant_id, **found[0]}


def wait_until(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)
