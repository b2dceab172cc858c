"""Each command of docs/RUNBOOK.md is run, in the order of the page, on a mesh that is in trouble; afterwards
it is not. Each metric that an alarm names is one that a service of that mesh shows."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from dinemesh.kit.bus import dead_letter_queue
from local_mesh import machine, tokens
from operations.broker import connected
from tests.local_mesh.test_commands import LocalMesh, free_table, wait_until
from tests.test_readme import MAKEFILE, ROOT, blocks, commands, targets

TEXT = (ROOT / "docs" / "RUNBOOK.md").read_text()
QUEUE = "deposit.instructions"
PART = "deposit"
SECONDS = 60
"""More than any command takes."""
LOOKING = {"make pending", "make audit", "make dead-letters"}
"""These fail when there is something to see, and there is."""
FOLLOWING = "make logs "
"""Goes on until somebody ends it."""


def told(text: str) -> list[str]:
    """Every command of a page, in its order, each once: those of its blocks and those in its sentences."""
    shown = [
        command for language, content in blocks(text) if language == "sh" for command in commands(content)
    ]
    inline = re.findall(
        r"`((?:make|\.venv/bin/python) [^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    )
    return list(dict.fromkeys(command.split("  #")[0].strip() for command in [*shown, *inline]))


COMMANDS = told(TEXT)


class Trouble:
    """A mesh with a refund that the provider refuses, and a dead letter."""

    def __init__(self, mesh: LocalMesh) -> None:
        self.mesh = mesh
        self.deposit_id = self._refused_refund()

    async def lay_dead(self) -> None:
        """An event of reservation, in the queue of those that deposit could not take."""
        with sqlite3.connect(self.mesh.places.data / "reservation.sqlite") as books:
            event_id, envelope = books.execute("SELECT event_id, envelope FROM outbox LIMIT 1").fetchone()
        async with connected(self.mesh.settings.broker_url) as bus:
            await bus.publish_to_queue(envelope, dead_letter_queue(QUEUE), event_id=event_id)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """A command of the page as it stands there, but for its variables and the settings of this mesh."""
        return subprocess.run(
            ["bash", "-c", f"{self._prelude}\n{command}"],
            env=self._environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def follow(self, command: str) -> None:
        """One that goes on for ever, until it has shown a line of a log."""
        following = subprocess.Popen(
            ["bash", "-c", f"{self._prelude}\n{command}"],
            env=self._environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert following.stdout is not None
        try:
            assert any(line.startswith('{"') for line in following.stdout), f"{command} shows no log"
        finally:
            os.killpg(following.pid, signal.SIGINT)
            following.communicate(timeout=SECONDS)

    @property
    def _prelude(self) -> str:
        """`make` and python are those that run this test; nothing is installed by the way."""
        words = {"QUEUE": QUEUE, "PART": PART, "DEPOSIT": self.deposit_id}
        return "\n".join(
            [
                'make() { command make -e -o runtime "$@"; }',
                *(f"{name}={word}" for name, word in words.items()),
            ]
        )

    @property
    def _environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("DINEMESH_")}
        given = {f"DINEMESH_{name}": value for name, value in self.mesh.given.items()}
        return {**clean, **given, "MAKEFLAGS": "", "MESH": f"{sys.executable} -m local_mesh"}

    def _refused_refund(self) -> str:
        headers = {"authorization": f"Bearer {tokens.person(self.mesh.places, 'alice', 'customer')}"}
        wish = {
            "requestId": "5f7ad7f1-6a3a-4dc4-9a3e-6a9ae86d8c11",
            "partySize": 2,
            "paymentToken": "tok_refundFail",
            **free_table(self.mesh),
        }
        address = f"http://{self.mesh.settings.address('edge')}/v1"
        with httpx.Client(headers=headers, timeout=10) as alice:
            booked = alice.post(f"{address}/reservations", json=wish)
            assert booked.status_code == 200, booked.text
            reservation_id = booked.json()["reservation"]["reservationId"]
            assert alice.post(f"{address}/reservations/{reservation_id}:cancel").status_code == 200

            def deposit() -> dict[str, str]:
                found = alice.get(f"{address}/deposits", params={"reservation_id": reservation_id}).json()
                one: dict[str, str] = found["deposits"][0]
                return one

            wait_until(lambda: deposit()["state"] == "DEPOSIT_STATE_REFUND_FAILED", "the refund is refused")
            return deposit()["depositId"]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMesh]:
    """With a broker of its own, as a machine has it."""
    whole = LocalMesh(tmp_path_factory.mktemp("runbook") / "state")
    try:
        whole.up()
        yield whole
    finally:
        whole.down()
    assert machine.processes_of(whole.settings.state_dir) == []


def test_the_page_is_short_and_its_make_commands_are_targets() -> None:
    assert len(TEXT.splitlines()) <= 100
    assert {"make pending", "make retry-refund DEPOSIT=$DEPOSIT"} <= set(COMMANDS)
    for command in COMMANDS:
        if command.startswith("make "):
            assert command.split()[1] in targets(MAKEFILE), command


def test_each_link_of_the_page_leads_to_a_heading_of_it() -> None:
    headings = {line[3:].lower().replace(" ", "-") for line in TEXT.splitlines() if line.startswith("## ")}
    links = set(re.findall(r"\]\(#([^)]+)\)", TEXT))
    assert links and links <= headings


def test_commands_are_found_in_blocks_and_in_sentences() -> None:
    page = (
        "`make status`.\n```sh\nmake pending  # what\n```\n`make pending`, `.venv/bin/python -m x`, `make`\n"
    )
    assert told(page) == ["make pending", "make status", ".venv/bin/python -m x"]


async def test_every_command_of_the_page_runs_and_the_mesh_is_well_afterwards(mesh: LocalMesh) -> None:
    trouble = Trouble(mesh)
    await trouble.lay_dead()
    shows = {
        "make pending": [f"make retry-refund DEPOSIT={trouble.deposit_id}", f"make redrive QUEUE={QUEUE}"],
        "make audit": [f"WRONG  dead letters  {QUEUE}", f"make retry-refund DEPOSIT={trouble.deposit_id}"],
        "make retry-refund DEPOSIT=$DEPOSIT": ["given back after 2 tries"],
        "make dead-letters": [QUEUE],
        "make redrive QUEUE=$QUEUE": [f"{QUEUE}: 1 sent back"],
        "make rebuild-history": ["the same as before"],
    }
    for command in COMMANDS:
        if command.startswith(FOLLOWING):
            trouble.follow(command)
            continue
        said = trouble.run(command.replace(".venv/bin/python", sys.executable))
        shown = f"{command}\n{said.stdout}{said.stderr}"
        assert (said.returncode == 0) != (command in LOOKING and "Error 1" in said.stderr), shown
        for words in shows.pop(command, []):
            assert words in said.stdout, shown
    assert not shows, "the page does not have these any more"

    wait_until(lambda: trouble.run("make pending").returncode == 0, "nothing is late any more")
    audit = trouble.run("make audit")
    assert audit.returncode == 0, audit.stdout


def test_each_metric_that_the_page_names_is_shown(mesh: LocalMesh) -> None:
    named = set(re.findall(r"\bdinemesh_\w+", TEXT))
    assert len(named) >= 8

    def missing() -> set[str]:
        shown: set[str] = set()
        for service in ("reservation", "deposit", "restaurant", "history"):
            port = mesh.settings.ports[f"{service.upper()}_METRICS_PORT"]
            shown |= set(
                re.findall(r"^# TYPE (\w+)", httpx.get(f"http://127.0.0.1:{port}/metrics").text, re.M)
            )
        return {name for name in named if name not in shown and name.removesuffix("_total") not in shown}

    wait_until(lambda: not missing(), f"these metrics: {missing()}")
