"""The Secrets of a cluster that is tried out (k8s/overlays/dev): `python -m local_mesh.cluster [NAME ...]`.

Prints them as YAML, for `kubectl create`: passwords made up here and kept nowhere else, reservation's own
token signed by the keys of this machine. Writes the public keys to where that overlay takes them from. In
prod whoever keeps the databases and issues tokens makes Secrets of the same names and keys.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping, Sequence

import yaml

from local_mesh import broker_users, settings, tokens
from local_mesh.places import Places
from local_mesh.settings import BEHIND_THE_EDGE, PREFIX, ROOT

NAMESPACE = "dinemesh"
JWKS = ROOT / "k8s" / "overlays" / "dev" / "keys" / "jwks.json"
AMQP_URL = f"{PREFIX}AMQP_URL"
DEFINITIONS = "definitions.json"
ENDPOINTS = (f"{PREFIX}DATABASE_URL", AMQP_URL)
"""Where a service's data lives, and with which password."""

SECRETS: Mapping[str, tuple[str, ...]] = {
    **{f"{service}-endpoints": ENDPOINTS for service in BEHIND_THE_EDGE},
    "reservation-token": ("token",),
    # In dev alone:
    "postgres": ("POSTGRES_PASSWORD", *(f"{service.upper()}_PASSWORD" for service in BEHIND_THE_EDGE)),
    "rabbitmq": (DEFINITIONS,),
    # Of no pod: for the operator's commands.
    "operator-endpoints": (AMQP_URL,),
}
"""Every Secret that k8s/ refers to or its README names, with its keys."""


def values(token: str) -> dict[str, dict[str, str]]:
    """By Secret, what is in it. Other passwords each time."""
    passwords = {service: secrets.token_urlsafe(24) for service in ("postgres", *BEHIND_THE_EDGE)}
    of_the_broker = {user: secrets.token_urlsafe(24) for user in broker_users.USERS}
    amqp = {user: broker_users.url(user, word, "rabbitmq:5672") for user, word in of_the_broker.items()}
    found = {
        f"{service}-endpoints": {
            f"{PREFIX}DATABASE_URL": (
                f"postgresql+psycopg://{service}:{passwords[service]}@postgres:5432/{service}"
            ),
            AMQP_URL: amqp[service],
        }
        for service in BEHIND_THE_EDGE
    }
    return found | {
        "reservation-token": {"token": token},
        "postgres": {
            "POSTGRES_PASSWORD": passwords["postgres"],
            **{f"{service.upper()}_PASSWORD": passwords[service] for service in BEHIND_THE_EDGE},
        },
        "rabbitmq": {DEFINITIONS: broker_users.text(broker_users.definitions(of_the_broker))},
        "operator-endpoints": {AMQP_URL: amqp[broker_users.OPERATOR]},
    }


def manifests(made: Mapping[str, Mapping[str, str]]) -> str:
    """Returns one YAML document for each Secret, with its values as plain text (`stringData`)."""
    return yaml.safe_dump_all(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "labels": {"app.kubernetes.io/part-of": NAMESPACE},
            },
            "type": "Opaque",
            "stringData": dict(held),
        }
        for name, held in made.items()
    )


def main(names: Sequence[str]) -> None:
    """`names`: of the Secrets that are printed; all of them without any."""
    if unknown := set(names) - set(SECRETS):
        sys.exit(f"There is no Secret {', '.join(sorted(unknown))}; these there are: {', '.join(SECRETS)}")
    places = Places(settings.MeshSettings.state_dir)
    tokens.write_for_services(places)
    JWKS.write_text(places.jwks.read_text())
    token = places.service_token("reservation").read_text()
    made = values(token)
    sys.stdout.write(manifests({name: made[name] for name in names or made}))


if __name__ == "__main__":
    main(sys.argv[1:])
