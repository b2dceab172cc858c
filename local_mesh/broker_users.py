"""Who may do what on the broker: one table, for one machine, docker compose and a cluster.

RabbitMQ reads it as a file of definitions when it starts (`load_definitions`). Each service has a user of its
name, which says only what begins with that name and touches only queues and exchanges that do.

    python -m local_mesh.broker_users definitions < passwords.json
        the file for a broker, out of {"reservation": "its password", ..., "operator": "..."}
    python -m local_mesh.broker_users compose
        docker-compose.rabbitmq.json, whose passwords are the names
    python -m local_mesh.broker_users guest marketing
        rabbitmqctl's commands for a subscriber that is not of the mesh
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from local_mesh.settings import BEHIND_THE_EDGE

EXCHANGE = "dinemesh.events"
OPERATOR = "operator"
USERS = (*BEHIND_THE_EDGE, OPERATOR)
VIRTUAL_HOST = "/"

_SHARED = r"dinemesh\.(events|log)"
"""Everybody declares the exchange and the log: who finds them missing makes them again."""


@dataclass(frozen=True)
class Permissions:
    """Regular expressions, as RabbitMQ takes them: names of what may be declared and deleted, written to
    and bound, read and bound from; and the routing keys that may be published on `dinemesh.events`."""

    configure: str
    write: str
    read: str
    says: str


def permissions(user: str) -> Permissions:
    """Of a service, in the mesh or a guest; of the operator's commands, if it is that name."""
    if user == OPERATOR:
        return Permissions(
            configure=f"^{_SHARED}$",
            # The default exchange reaches any queue: a dead letter goes back to the one it came from.
            write=rf"^(amq\.default|{_SHARED})$",
            read=rf"^({_SHARED}|.*\.dead)$",
            says=rf"^{OPERATOR}\.",
        )
    own = rf"^({_SHARED}|{user}\..+)$"
    return Permissions(configure=own, write=own, read=own, says=rf"^{user}\.")


def definitions(
    passwords: Mapping[str, str], virtual_host: str = VIRTUAL_HOST, salt: bytes | None = None
) -> dict[str, Any]:
    """What a broker is to know, as its `load_definitions` reads it: these users, with passwords as hashes
    (each with a salt of its own, unless one is given). A new broker with such a file makes no user `guest`.
    """
    held = {user: permissions(user) for user in passwords}
    return {
        "vhosts": [{"name": virtual_host}],
        "users": [
            {
                "name": user,
                "password_hash": hashed(password, salt or secrets.token_bytes(4)),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "",
            }
            for user, password in passwords.items()
        ],
        "permissions": [
            {
                "user": user,
                "vhost": virtual_host,
                "configure": one.configure,
                "write": one.write,
                "read": one.read,
            }
            for user, one in held.items()
        ],
        "topic_permissions": [
            {"user": user, "vhost": virtual_host, "exchange": EXCHANGE, "write": one.says, "read": ".*"}
            for user, one in held.items()
        ],
    }


def hashed(password: str, salt: bytes) -> str:
    """As rabbit_password_hashing_sha256 keeps it: four bytes of salt, then SHA-256 of salt and password."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def passwords(file: Path, users: Iterable[str] = USERS) -> dict[str, str]:
    """Those kept in a file that only its owner reads; made up and added for users that have none."""
    held: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    missing = [user for user in users if user not in held]
    if missing:
        held |= {user: secrets.token_urlsafe(24) for user in missing}
        write_privately(file, json.dumps(held, indent=2))
    return held


def write_privately(file: Path, text: str) -> None:
    """The whole file or nothing, for our user only."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(text)
    partial.replace(file)


def url(user: str, password: str, host: str) -> str:
    """`host`: name and port."""
    return f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@{host}/"


def compose() -> dict[str, Any]:
    """For docker compose, where nobody from outside reaches the broker: the name is the password."""
    return definitions({user: user for user in USERS}, salt=b"mesh")


def commands(user: str) -> str:
    """rabbitmqctl's, for a user that a definitions file does not name. It asks for the password."""
    one = permissions(user)
    return (
        f"rabbitmqctl add_user {user}\n"
        f"rabbitmqctl set_permissions {user} '{one.configure}' '{one.write}' '{one.read}'\n"
        f"rabbitmqctl set_topic_permissions {user} {EXCHANGE} '{one.says}' '.*'\n"
    )


def text(found: Mapping[str, Any]) -> str:
    return json.dumps(found, indent=2) + "\n"


def main(words: Sequence[str]) -> int:
    match list(words):
        case ["compose"]:
            sys.stdout.write(text(compose()))
        case ["definitions"]:
            sys.stdout.write(text(definitions(json.load(sys.stdin))))
        case ["guest", user] if user.isidentifier() and user not in (*USERS, "dinemesh"):
            sys.stdout.write(commands(user))
        case _:
            sys.stderr.write(__doc__ or "")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
