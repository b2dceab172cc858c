"""What a container of docker-compose.yml does besides serving: `python -m local_mesh.containers <command>`.

There the network is the containers' own, names stand for addresses, and each container sees only the volumes
that it needs: private keys are seen by those who sign, and by nobody who serves.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from local_mesh import dialogue, parts, samples, settings, tokens
from local_mesh.commands import Mesh
from local_mesh.envoy import edge, policy, process
from local_mesh.failure import Failure
from local_mesh.places import Places
from local_mesh.settings import BEHIND_THE_EDGE

ADMIN_PORT = 8090


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the command's exit code, or 1 for a Failure; argparse exits with 2 for a wrong command line."""
    given = parser().parse_args(arguments)
    try:
        code: int = given.run(given)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    return code


def _keys(given: argparse.Namespace) -> int:
    """Makes what is missing, and hands out the public half and reservation's token."""
    places = Places(given.private)
    tokens.write_for_services(places)
    for source, target in (
        (places.jwks, given.public / "jwks.json"),
        (places.service_token("reservation"), given.token),
    ):
        # Whole or not at all: the services read them again whenever they change.
        partial = target.with_suffix(".partial")
        shutil.copy(source, partial)
        partial.replace(target)
    return 0


def _token(given: argparse.Namespace) -> int:
    print(tokens.person(Places(given.private), given.subject, given.role, given.restaurant))
    return 0


def _samples(given: argparse.Namespace) -> int:
    mesh = Mesh({"STATE_DIR": str(given.private), "EDGE_PORT": str(given.edge_port)})
    dialogue.wait_for_the_edge(mesh.settings, given.patience)
    samples.refresh(mesh, through_the_edge=True)
    return 0


def edge_config(given: argparse.Namespace) -> Path:
    """The edge of these containers: what it was told on the command line, in a file."""
    return edge.write(
        edge.EdgeValues(
            host="0.0.0.0",
            port=given.port,
            admin_port=ADMIN_PORT,
            jwks_file=given.jwks,
            descriptor_file=given.work / "contracts.binpb",
            **{name: getattr(given, name) for name in BEHIND_THE_EDGE},
        ),
        given.work / "envoy.yaml",
    )


def _edge(given: argparse.Namespace) -> int:
    return process.run(edge_config(given), f"127.0.0.1:{ADMIN_PORT}", process.DRAIN_SECONDS)


def policy_config(given: argparse.Namespace) -> Path:
    """The proxy before deposit of these containers, in a file."""
    values = policy.PolicyValues(
        host="0.0.0.0", port=given.port, admin_port=ADMIN_PORT, deposit=given.deposit
    )
    return policy.write(values, given.work / "envoy.yaml")


def _policy(given: argparse.Namespace) -> int:
    config = policy_config(given)
    return process.run(config, f"127.0.0.1:{ADMIN_PORT}", parts.POLICY_DRAIN_SECONDS, "policy")


def parser() -> argparse.ArgumentParser:
    """Each command sets `run`, a function from the parsed arguments to an exit code."""
    whole = argparse.ArgumentParser(prog="python -m local_mesh.containers", description=__doc__)
    commands = whole.add_subparsers(required=True)

    command = commands.add_parser("keys", help="make keys and reservation's token, if there are none")
    _add_private(command)
    command.add_argument("--public", type=Path, required=True, help="folder for jwks.json")
    command.add_argument("--token", type=Path, required=True, help="file for reservation's token")
    command.set_defaults(run=_keys)

    command = commands.add_parser("token", help="print a token")
    _add_private(command)
    command.add_argument("subject")
    command.add_argument("role", choices=tokens.ROLES)
    command.add_argument("restaurant", nargs="?", default="", help="of a member of staff")
    command.set_defaults(run=_token)

    command = commands.add_parser("samples", help="make sample restaurants through the edge of this machine")
    _add_private(command)
    command.add_argument("--edge-port", type=int, default=settings.MeshSettings.edge_port)
    command.add_argument(
        "--patience", type=float, default=60, metavar="SECONDS", help="until the edge answers (%(default)s)"
    )
    command.set_defaults(run=_samples)

    command = commands.add_parser("edge", help="run Envoy in front of the services")
    command.add_argument("--port", type=int, default=settings.MeshSettings.edge_port)
    command.add_argument("--jwks", type=Path, required=True, help="file of public keys")
    command.add_argument("--work", type=Path, required=True, help="folder for its configuration")
    for name in BEHIND_THE_EDGE:
        command.add_argument(
            f"--{name}", action="append", required=True, metavar="HOST:PORT", help="may be repeated"
        )
    command.set_defaults(run=_edge)

    command = commands.add_parser("policy", help="run Envoy between reservation and deposit")
    command.add_argument("--port", type=int, default=settings.MeshSettings.policy_port)
    command.add_argument("--work", type=Path, required=True, help="folder for its configuration")
    command.add_argument(
        "--deposit", action="append", required=True, metavar="HOST:PORT", help="may be repeated"
    )
    command.set_defaults(run=_policy)
    return whole


def _add_private(command: argparse.ArgumentParser) -> None:
    command.add_argument("--private", type=Path, required=True, help="folder of the private keys")


if __name__ == "__main__":
    sys.exit(main())
