"""docs/RUNBOOK.md: its commands, and a mesh in the trouble that it is about."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

from dinemesh.kit.bus import dead_letter_queue
from local_mesh import parts, tokens
from local_mesh.broker_users import OPERATOR
from operations.broker import connected
from tests.local_mesh.running import LocalMesh, free_table, wait_until
from tests.test_readme import ROOT, blocks, commands

TEXT = (ROOT / "docs" / "RUNBOOK.md").read_text()
QUEUE = "deposit.instructions"
PART = "deposit"
UNTIL = "2026-01-01T00:00:00Z"
SECONDS = 60
"""More than any command takes."""
LOOKING = frozenset({"make pending", "make audit", "make dead-letters"})
"""These fail when there is something to see."""
FOLLOWING = "make logs "
"""Goes on until somebody ends it."""
_ERROR = "] Error 1"
"""What make says when a command has found something wrong."""


def told(text: str) -> list[str]:
    """Every command of a page, each once: first those of its blocks, then those in its sentences."""
    shown = [one for language, content in blocks(text) if language == "sh" for one in commands(content)]
    sentences = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`((?:make|\.venv/bin/python) [^`]+)`", sentences)
    return list(dict.fromkeys(command.split("  #")[0].strip() for command in [*shown, *inline]))


COMMANDS = told(TEXT)


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    command: str
    code: int
    output: str

    @property
    def is_right(self) -> bool:
        """Whether it did what it is for: one that looks may have found something."""
        return self.code == 0 or (self.command in LOOKING and _ERROR in self.output)


class Trouble:
    """A running mesh with a refund that the provider refuses, and a dead letter."""

    def __init__(self, mesh: LocalMesh) -> None:
        self.mesh = mesh
        self.deposit_id = self._refused_refund()

    async def lay_dead(self) -> None:
        """An event of reservation, among those that deposit could not take."""
        with sqlite3.connect(self.mesh.places.data / "reservation.sqlite") as books:
            event_id, envelope = books.execute("SELECT event_id, envelope FROM outbox LIMIT 1").fetchone()
        async with connected(parts.broker_url(self.mesh.settings, self.mesh.places, OPERATOR)) as bus:
            await bus.publish_to_queue(envelope, dead_letter_queue(QUEUE), event_id=event_id)

    def shows(self) -> dict[str, Sequence[str]]:
        """By command of the page, what it says in this trouble."""
        retry = f"make retry-refund DEPOSIT={self.deposit_id}"
        return {
            "make pending": [retry, f"make redrive QUEUE={QUEUE}", _ERROR],
            "make audit": [retry, f"WRONG  dead letters  {QUEUE}", _ERROR],
            "make retry-refund DEPOSIT=$DEPOSIT": ["given back after 2 tries"],
            "make dead-letters": [QUEUE, _ERROR],
            "make redrive QUEUE=$QUEUE": [f"{QUEUE}: 1 sent back"],
            "make let-lapse UNTIL=$UNTIL": ["is held back"],
            "make rebuild-history": ["the same as before"],
        }

    def run(self, command: str) -> Said:
        """A command as the page has it, but for its variables, the settings of this mesh, and its Python."""
        running = subprocess.Popen(
            ["bash", "-c", f"{self._prelude}\n{command.replace('.venv/bin/python', sys.executable)}"],
            env=self._environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert running.stdout is not None
        if command.startswith(FOLLOWING):
            found = next((line for line in running.stdout if line.startswith('{"')), "")
            os.killpg(running.pid, signal.SIGINT)
            running.communicate(timeout=SECONDS)
            return Said(command, 0 if found else 1, found)
        try:
            output, _ = running.communicate(timeout=SECONDS)
        finally:
            running.kill()
        return Said(command, running.returncode, output)

    @property
    def _prelude(self) -> str:
        """`make` runs what stands in the Makefile with the Python of this test, and installs nothing."""
        words = {"QUEUE": QUEUE, "PART": PART, "DEPOSIT": self.deposit_id, "UNTIL": UNTIL}
        set_words = [f"{name}={word}" for name, word in words.items()]
        return "\n".join(['make() { command make -e -o runtime "$@"; }', *set_words])

    @property
    def _environment(self) -> Mapping[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("DINEMESH_")}
        given = {f"DINEMESH_{name}": value for name, value in self.mesh.given.items()}
        return {**clean, **given, "MAKEFLAGS": "", "MESH": f"{sys.executable} -m local_mesh"}

    def _refused_refund(self) -> str:
        """The id of the deposit that stays."""
        headers = {"authorization": f"Bearer {tokens.person(self.mesh.places, 'alice', 'customer')}"}
        wish = {"requestId": str(uuid.uuid4()), "partySize": 2, "paymentToken": "tok_refundFail"}
        address = f"http://{self.mesh.settings.address('edge')}/v1"
        with httpx.Client(headers=headers, timeout=10) as alice:
            booked = alice.post(f"{address}/reservations", json=wish | free_table(self.mesh))
            assert booked.status_code == 200, booked.text
            reservation_id = booked.json()["reservation"]["reservationId"]
            cancelled = alice.post(f"{address}/reservations/{reservation_id}:cancel")
            assert cancelled.status_code == 200, cancelled.text

            def deposit() -> dict[str, str]:
                found = alice.get(f"{address}/deposits", params={"reservation_id": reservation_id}).json()
                one: dict[str, str] = found["deposits"][0]
                return one

            wait_until(lambda: deposit()["state"] == "DEPOSIT_STATE_REFUND_FAILED", "the refund is refused")
            return deposit()["depositId"]
