"""The operator's commands, on the mesh of this machine: they are told where everything is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

from local_mesh import parts, tokens
from local_mesh.broker_users import OPERATOR
from local_mesh.commands import Mesh, say
from local_mesh.failure import Failure
from local_mesh.settings import PREFIX, ROOT
from operations.addresses import AMQP, PROVIDER, RETENTION_DAYS, TOKEN, database

PUBLISHERS = ("reservation", "deposit", "restaurant")
DATABASES = (*PUBLISHERS, "history")
ALL = "all"


def audit(mesh: Mesh) -> int:
    """Hold the books of all services against each other. Changes nothing."""
    started = _running(mesh)
    sources = _databases(started, *DATABASES) | _provider(mesh) | _broker(mesh)
    return _operations("audit", [], mesh, sources | _retention(started))


def pending(mesh: Mesh) -> int:
    """List what waits longer than it may. Changes nothing."""
    started = _running(mesh)
    sources = _databases(started, *DATABASES) | _broker(mesh)
    return _operations("pending", [], mesh, sources | _retention(started))


def retry_refund(mesh: Mesh) -> int:
    """Let deposit try the refused refunds of a deposit again."""
    started = _running(mesh)
    deposit = mesh.word("DEPOSIT")
    if not deposit:
        raise Failure("Whose refund? `make pending` lists those refused: make retry-refund DEPOSIT=<id>")
    # gRPC takes the first that answers.
    instances = [mesh.settings.address(part) for part in mesh.settings.instances("deposit")]
    address = f"ipv4:{','.join(instances)}"
    arguments = [f"--deposit-address={address}", f"--deposit={deposit}"]
    token = {TOKEN: tokens.person(mesh.places, "operator", "operator")}
    return _operations("retry-refund", arguments, mesh, _databases(started, "deposit") | token)


def lift_refund_block(mesh: Mesh) -> int:
    """The sandbox's switch: it refunds again what it refused to refund."""
    deposit = _named(mesh, "DEPOSIT", "Of which deposit?")
    _running(mesh)
    charge = "--all" if deposit == ALL else f"--charge={deposit}"
    return _operations("lift-refund-block", [charge], mesh, _provider(mesh))


def let_lapse(mesh: Mesh) -> int:
    """An operator's word that the clock is right: bookings that were held back may end."""
    until = mesh.word("UNTIL")
    if not until:
        raise Failure("Those due by when? `make pending` names the time: make let-lapse UNTIL=<time>")
    started = _running(mesh)
    return _operations("let-lapse", [f"--until={until}"], mesh, _databases(started, "reservation"))


def dead_letters(mesh: Mesh) -> int:
    """List what a subscriber could not take."""
    _running(mesh)
    return _operations("dead-letters", _queue(mesh), mesh, _broker(mesh))


def redrive(mesh: Mesh) -> int:
    """Give it to the subscriber again."""
    queue = _named(mesh, "QUEUE", "Which queue? `make dead-letters` lists what lies where.")
    _running(mesh)
    return _operations("redrive", ["--all" if queue == ALL else f"--queue={queue}"], mesh, _broker(mesh))


def replay(mesh: Mesh) -> int:
    """Publish the events of one service again, or of all."""
    service = _named(mesh, "SERVICE", "The events of which service?")
    names = list(PUBLISHERS) if service == ALL else [service]
    if not set(names) <= set(PUBLISHERS):
        raise Failure(f"SERVICE must be one of {', '.join(PUBLISHERS)}: the others publish nothing.")
    started = _running(mesh)
    return _operations("replay", [], mesh, _databases(started, *names))


def rebuild_history(mesh: Mesh) -> int:
    """Stop history, make its view anew from the events that it has kept and the log, and start it again."""
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


def _named(mesh: Mesh, word: str, question: str) -> str:
    """What a command that changes something is to change. Nothing said is not everything: that has a word
    too."""
    if not mesh.word(word):
        raise Failure(f"{question} {word}=<name>, or {word}={ALL}")
    return mesh.word(word)


def _queue(mesh: Mesh) -> list[str]:
    return [f"--queue={mesh.word('QUEUE')}"] if mesh.word("QUEUE") not in ("", ALL) else []


def _databases(started: Mapping[str, Mapping[str, str]], *services: str) -> dict[str, str]:
    return {database(name): started[name][PREFIX + "DATABASE_URL"] for name in services}


def _retention(started: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """As the services were told, if they were."""
    told = started["reservation"].get(RETENTION_DAYS)
    return {} if told is None else {RETENTION_DAYS: told}


def _broker(mesh: Mesh) -> dict[str, str]:
    return {AMQP: parts.broker_url(mesh.settings, mesh.places, OPERATOR)}


def _provider(mesh: Mesh) -> dict[str, str]:
    return {PROVIDER: mesh.settings.address("sandbox")}


def _operations(command: str, arguments: Sequence[str], mesh: Mesh, told: Mapping[str, str]) -> int:
    environment = parts.plain_environment(mesh.settings) | dict(told)
    return _run([sys.executable, "-m", "operations", command, *arguments], environment)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    return subprocess.run(command, env=dict(environment), cwd=ROOT, check=False).returncode
