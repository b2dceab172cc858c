"""Tokens for people and services of the mesh on this machine."""

from __future__ import annotations

import time
import uuid
from typing import Any

from local_mesh import keys
from local_mesh.failure import Failure
from local_mesh.places import Places

ROLES = ("customer", "staff", "operator")
PERSON_SECONDS = 12 * 3600
"""A working day of trying things out."""
SERVICE_SECONDS = 365 * 24 * 3600
"""Written anew at each `make up`, and re-read by the service when it changes."""


def person(places: Places, subject: str, role: str, restaurant_id: str = "") -> str:
    """A token for a person. Raises Failure where the services would refuse it."""
    if role not in ROLES:
        raise Failure(f"ROLE must be one of {', '.join(ROLES)}, not {role!r}.")
    if not subject or not subject.isprintable() or len(subject) > 128:
        raise Failure(
            "SUB must be a name of 1 to 128 printable characters: make token SUB=alice ROLE=customer"
        )
    if role == "staff" and not restaurant_id:
        raise Failure(
            "Staff belong to a restaurant: make token SUB=bob ROLE=staff RESTAURANT=<restaurant id>"
        )
    if role != "staff" and restaurant_id:
        raise Failure(f"RESTAURANT goes with ROLE=staff, not with ROLE={role}.")
    return _sign(places, subject, role, PERSON_SECONDS, _restaurant(restaurant_id) if restaurant_id else "")


def _restaurant(given: str) -> str:
    """In lower case, as the services compare it."""
    try:
        canonical = str(uuid.UUID(given))
    except ValueError:
        canonical = ""
    if given.lower() != canonical:
        raise Failure(
            f"RESTAURANT must be the id of a restaurant, a UUID, not {given!r}: GET /v1/restaurants of the"
            " edge lists them."
        )
    return canonical


def write_for_services(places: Places) -> None:
    """The token file of the one service that calls another."""
    token = _sign(places, "reservation", "service", SERVICE_SECONDS)
    keys.write_service_token(places.service_token("reservation"), token)


def _sign(places: Places, subject: str, role: str, seconds: int, restaurant_id: str = "") -> str:
    places.make()
    keys.make_keys(places)
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": "dinemesh",
        "aud": "dinemesh",
        "sub": subject,
        "role": role,
        "iat": now,
        "exp": now + seconds,
    }
    if restaurant_id:
        claims["restaurant_id"] = restaurant_id
    return keys.sign(places, claims)
