"""The operator's commands, on the mesh of this machine: they are told where everything is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

from local_mesh import parts
from local_mesh.commands import Mesh, say
from local_mesh.failure import Failure
from local_mesh.settings import PREFIX, ROOT

PUBLISHERS = ("reservation", "deposit", "restaurant")


def audit(mesh: Mesh) -> int:
    """Hold the books of all services against each other. Changes nothing."""
    started = _running(mesh)
    databases = [f"--{name}-db={started[name][PREFIX + 'DATABASE_URL']}" for name in (*PUBLISHERS, "history")]
    provider = f"--provider={mesh.settings.address('sandbox')}"
    return _operations("audit", [*databases, provider, f"--amqp={mesh.settings.broker_url}"], mesh)


def dead_letters(mesh: Mesh) -> int:
    """List what a subscriber could not take."""
    _running(mesh)
    return _operations("dead-letters", [f"--amqp={mesh.settings.broker_url}", *_queue(mesh)], mesh)


def redrive(mesh: Mesh) -> int:
    """Give it to the subscriber again."""
    _running(mesh)
    return _operations("redrive", [f"--amqp={mesh.settings.broker_url}", *_queue(mesh)], mesh)


def replay(mesh: Mesh) -> int:
    """Publish the events of one service again, or of all."""
    started = _running(mesh)
    names = [mesh.word("SERVICE")] if mesh.word("SERVICE") else list(PUBLISHERS)
    if not set(names) <= set(PUBLISHERS):
        raise Failure(f"SERVICE must be one of {', '.join(PUBLISHERS)}: the others publish nothing.")
    return _operations(
        "replay", [f"--{name}-db={started[name][PREFIX + 'DATABASE_URL']}" for name in names], mesh
    )


def rebuild_history(mesh: Mesh) -> int:
    """Stop history, make its view again from the log of events, and start it again."""
    environment = _running(mesh)["history"]
    mesh.stop_part("history")
    try:
        return _run([sys.executable, "-m", "history_svc.main", "rebuild"], environment)
    finally:
        mesh.start_part("history")
        say("history is back.")


def _running(mesh: Mesh) -> dict[str, Mapping[str, str]]:
    """The environment of each service of the running mesh."""
    supervisor = mesh.supervisor
    if supervisor is None:
        raise Failure("The mesh is not running. Start it with: make up")
    supervisor.close()
    return {part.name: part.environment for part in parts.build(mesh.settings, mesh.places, None)}


def _queue(mesh: Mesh) -> list[str]:
    return [f"--queue={mesh.word('QUEUE')}"] if mesh.word("QUEUE") else []


def _operations(command: str, arguments: Sequence[str], mesh: Mesh) -> int:
    environment = parts.plain_environment(mesh.settings)
    return _run([sys.executable, "-m", "operations", command, *arguments], environment)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    return subprocess.run(command, env=dict(environment), cwd=ROOT, check=False).returncode
