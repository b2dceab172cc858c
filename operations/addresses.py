"""Under which names the environment has what the operator's commands look at."""

from __future__ import annotations

AMQP = "DINEMESH_AMQP_URL"
PROVIDER = "DINEMESH_SANDBOX_ADDRESS"
TOKEN = "DINEMESH_OPERATOR_TOKEN"
"""Nowhere else: a command line is seen by everybody on the machine."""

RETENTION_DAYS = "DINEMESH_RETENTION_DAYS"
"""The same as the services are told."""


def database(service: str) -> str:
    """Names the variable with the URL of a service's database, such as DINEMESH_DEPOSIT_DATABASE_URL."""
    return f"DINEMESH_{service.upper()}_DATABASE_URL"
