"""`python -m local_mesh <command>`: what the make targets call."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from local_mesh import settings, tokens
from local_mesh.commands import Mesh, show_edge_config, show_policy_config, show_settings
from local_mesh.failure import Failure


def main() -> int:
    """Returns 2 for an unknown command, 1 for a Failure, 130 for Ctrl-C, else the command's own exit code."""
    command = sys.argv[1] if len(sys.argv) == 2 else ""
    if command not in COMMANDS:
        print(f"Usage: python -m local_mesh <{'|'.join(COMMANDS)}>", file=sys.stderr)
        return 2
    try:
        return COMMANDS[command](Mesh(settings.given_values(os.environ)))
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _up(mesh: Mesh) -> int:
    mesh.up()
    if mesh.settings.samples:
        _call("local_mesh.samples", "refresh", mesh)
    return 0


def _demo(mesh: Mesh) -> int:
    _up(mesh)
    return _call("local_mesh.demo", "tell", mesh)


def _down(mesh: Mesh) -> int:
    mesh.down()
    return 0


def _status(mesh: Mesh) -> int:
    return 0 if mesh.status() else 1


def _logs(mesh: Mesh) -> int:
    mesh.logs(mesh.word("SERVICE"))
    return 0


def _start(mesh: Mesh) -> int:
    mesh.start_part(mesh.word("SERVICE"))
    return 0


def _stop(mesh: Mesh) -> int:
    mesh.stop_part(mesh.word("SERVICE"))
    return 0


def _settings(mesh: Mesh) -> int:
    show_settings(mesh)
    return 0


def _address(mesh: Mesh) -> int:
    print(mesh.address(mesh.word("SERVICE") or "edge"))
    return 0


def _edge_config(mesh: Mesh) -> int:
    show_edge_config(mesh)
    return 0


def _policy_config(mesh: Mesh) -> int:
    show_policy_config(mesh)
    return 0


def _token(mesh: Mesh) -> int:
    print(
        tokens.person(mesh.places, mesh.word("SUB"), mesh.word("ROLE") or "customer", mesh.word("RESTAURANT"))
    )
    return 0


def _call(module: str, function: str, mesh: Mesh) -> int:
    """Import late: most commands do without the generated contracts."""
    return int(getattr(importlib.import_module(module), function)(mesh) or 0)


COMMANDS: dict[str, Callable[[Mesh], int]] = {
    "up": _up,
    "down": _down,
    "demo": _demo,
    "status": _status,
    "logs": _logs,
    "start": _start,
    "stop": _stop,
    "settings": _settings,
    "address": _address,
    "page": lambda mesh: _call("local_mesh.page", "serve", mesh),
    "edge-config": _edge_config,
    "policy-config": _policy_config,
    "token": _token,
    "audit": lambda mesh: _call("local_mesh.operate", "audit", mesh),
    "pending": lambda mesh: _call("local_mesh.operate", "pending", mesh),
    "retry-refund": lambda mesh: _call("local_mesh.operate", "retry_refund", mesh),
    "lift-refund-block": lambda mesh: _call("local_mesh.operate", "lift_refund_block", mesh),
    "let-lapse": lambda mesh: _call("local_mesh.operate", "let_lapse", mesh),
    "dead-letters": lambda mesh: _call("local_mesh.operate", "dead_letters", mesh),
    "redrive": lambda mesh: _call("local_mesh.operate", "redrive", mesh),
    "replay": lambda mesh: _call("local_mesh.operate", "replay", mesh),
    "rebuild-history": lambda mesh: _call("local_mesh.operate", "rebuild_history", mesh),
}

if __name__ == "__main__":
    code = main()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
