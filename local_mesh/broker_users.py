"""Who may do what on the broker, and how long it keeps the log: on one machine, in compose and a cluster.

RabbitMQ reads it as a file of definitions when it starts (`load_definitions`). Each service has a user of its
name, which says only what begins with that name and touches only queues and exchanges that do.

    python -m local_mesh.broker_users definitions [DAYS] < passwords.json
        the file for a broker, out of {"reservation": "its password", ..., "operator": "..."}; the log is kept
        for so many days (30)
    python -m local_mesh.broker_users log-policy [DAYS]
        rabbitmqctl's command that limits the log of a broker which is there already
    python -m local_mesh.broker_users compose
        docker-compose.rabbitmq.json, whose passwords are the names
    python -m local_mesh.broker_users subscriber marketing
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


LOG_DAYS = 30
"""As the services' RETENTION_DAYS."""
LOG_SEGMENT_BYTES = 20_000_000
"""Of a file of the log. RabbitMQ deletes whole files, and looks for old ones when it begins a new one, so
that the log goes back for as long as it should and for one file more. By itself it makes files of 500 MB,
which a small mesh would fill in years."""
_LOG_POLICY = "dinemesh-log"
_LOG_PATTERN = r"^dinemesh\.log$"


@dataclass(frozen=True)
class Permissions:
    """Regular expressions, as RabbitMQ takes them: names of what may be declared and deleted, written to
    and bound, read and bound from; and the routing keys that may be published on `dinemesh.events`."""

    configure: str
    write: str
    read: str
    says: str


def permissions(user: str) -> Permissions:
    """Of a service of the mesh or of a subscriber; of the operator's commands, if it is that name."""
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


def log_limits(days: int) -> dict[str, Any]:
    """The log of events goes back so many days. A policy, and no argument of the stream: it can be changed,
    and takes hold of a log that an earlier version declared, though with files of the size that it had."""
    return {"max-age": f"{days}D", "stream-max-segment-size-bytes": LOG_SEGMENT_BYTES}


def definitions(
    passwords: Mapping[str, str],
    virtual_host: str = VIRTUAL_HOST,
    salt: bytes | None = None,
    log_days: int = LOG_DAYS,
) -> dict[str, Any]:
    """What a broker is to know, as its `load_definitions` reads it: these users, with passwords as hashes
    (each with a salt of its own, unless one is given), and how long the log is kept. A new broker with such a
    file makes no user `guest`.
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
        "policies": [
            {
                "name": _LOG_POLICY,
                "vhost": virtual_host,
                "pattern": _LOG_PATTERN,
                "apply-to": "queues",
                "priority": 0,
                "definition": log_limits(log_days),
            }
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


def policy_command(days: int) -> str:
    """rabbitmqctl's, for a broker that a definitions file does not tell how long to keep the log."""
    return (
        f"rabbitmqctl set_policy {_LOG_POLICY} '{_LOG_PATTERN}' '{json.dumps(log_limits(days))}'"
        " --apply-to queues\n"
    )


def _days(words: Sequence[str]) -> int:
    """Raises ValueError."""
    if not words:
        return LOG_DAYS
    if len(words) == 1 and words[0].isascii() and words[0].isdigit() and int(words[0]) >= 1:
        return int(words[0])
    raise ValueError(f"{' '.join(words)!r} is no number of days: a whole one, 1 or more")


def text(found: Mapping[str, Any]) -> str:
    """Returns indented JSON with a line break at the end."""
    return json.dumps(found, indent=2) + "\n"


def main(words: Sequence[str]) -> int:
    """Prints what the module's docstring promises and returns 0; returns 2 for words that it cannot take."""
    match list(words):
        case ["compose"]:
            sys.stdout.write(text(compose()))
        case ["definitions" | "log-policy", *given]:
            try:
                days = _days(given)
            except ValueError as error:
                sys.stderr.write(f"{error}\n")
                return 2
            if words[0] == "log-policy":
                sys.stdout.write(policy_command(days))
            else:
                sys.stdout.write(text(definitions(json.load(sys.stdin), log_days=days)))
        case ["subscriber" | "guest", user] if user.isidentifier() and user not in (*USERS, "dinemesh"):
            sys.stdout.write(commands(user))
        case _:
            sys.stderr.write(__doc__ or "")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
