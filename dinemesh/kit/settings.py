"""Settings come from DINEMESH_* variables only; a bad or unknown one stops the start and is named."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "DINEMESH_"

Port = Annotated[int, Field(ge=0, le=65535)]
MOST_DAYS = 3650


def _whole_days(value: object) -> object:
    text = str(value)
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_DAYS):
        raise PydanticCustomError("days", f"must be whole days, from 1 to {MOST_DAYS}, such as 30")
    return int(text)


Days = Annotated[int, BeforeValidator(_whole_days)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]


class ServiceSettings(BaseSettings):
    """What every service needs to know. A service adds its own in a subclass.

    The variable of a setting is DINEMESH_ and its name in capitals: `database_url` is DINEMESH_DATABASE_URL.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    host: str = "127.0.0.1"
    """Address to listen on, for calls and for metrics."""
    port: Port
    """Port for gRPC; 0 lets the system choose."""
    metrics_port: Port
    """Port for Prometheus; 0 lets the system choose."""
    database_url: str = Field(repr=False)
    """SQLAlchemy URL; the scheme decides between SQLite and PostgreSQL."""
    amqp_url: str = Field(repr=False)
    """URL of RabbitMQ; of several nodes with commas between. Its user is this service's own."""
    jwks_file: Path
    """File with the public keys (JWKS) that tokens are checked against; re-read when it changes."""
    token_file: Path | None = None
    """File with this service's own token, for calls to others; re-read when it changes."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The least severe lines that are logged."""
    migrate_on_start: bool = True
    """Bring the schema up to date before serving. Off where a separate job does it."""
    group_commit: bool = True
    """Commit what waits together. Off only to measure what it is worth."""
    store_queue_limit: int = Field(default=2000, ge=1)
    """Changes that may wait for the writer before sheddable ones are refused: about 2 s of work."""
    reader_threads: int = Field(default=2, ge=1, le=64)
    """Reads of the database at once; each has a connection of its own."""
    in_flight_limit: int = Field(default=1000, ge=1)
    """Unary calls at once; more are refused before any work, so that those inside finish in time."""
    streams_per_subject: int = Field(default=20, ge=1)
    """Streams that one person may have open at this process, else a few would hold those of everybody."""
    drain_seconds: Seconds = 5
    """From NOT_SERVING to closing the door: longer than a proxy's check interval times its threshold."""
    stop_grace_seconds: Seconds = 10
    """What calls still running get, before they are cancelled."""
    heartbeat_seconds: Seconds = Field(default=15, gt=0)
    """Silence on a watch after which a heartbeat is sent; below a proxy's idle timeout."""
    watch_poll_ms: int = Field(default=500, ge=10, le=60_000)
    """How often a watch looks for changes that another process made."""
    canary_seconds: float = Field(default=10, gt=0, le=15)
    """How often a publisher lets its subscribers see that they are still bound; a loss is found within twice
    this."""
    events_in_message: int = Field(default=100, ge=1, le=1000)
    """How many events of one kind may share a message of the broker: some kB each. 1 while services run that
    are older than such messages."""
    retention_days: Days = 30
    """How long events that were sent, records of events that were taken and request ids are kept, in whole
    days; request ids at least until what they led to can change no more. Books and bookings are kept for
    ever."""
    watch_max_seconds: Seconds = Field(default=3600, gt=0)
    """A watch is told to start anew after this, so that streams spread over pods again."""


S = TypeVar("S", bound=BaseSettings)


def load(cls: type[S]) -> S:
    """The settings from the environment; else prints every problem with its variable, and exits with 2."""
    known = {PREFIX + name.upper() for name in cls.model_fields}
    problems = [
        f"{name}: unknown setting"
        for name in sorted(os.environ)
        if name.upper().startswith(PREFIX) and name.upper() not in known
    ]
    settings: S | None = None
    try:
        build: Any = cls  # the fields come from the environment, not from arguments
        settings = build()
    except ValidationError as error:
        problems += [_told(one) for one in error.errors(include_url=False, include_input=False)]
    if problems or settings is None:
        _refuse(problems)
    return settings


def _told(problem: ErrorDetails) -> str:
    message = "is required and not set" if problem["type"] == "missing" else problem["msg"]
    # A rule about several settings belongs to none of them, and names them itself.
    names = ".".join(str(part) for part in problem["loc"])
    return f"{PREFIX}{names.upper()}: {message}" if names else message


def _refuse(problems: list[str]) -> NoReturn:
    print("These settings must be put right before the service can start:", file=sys.stderr)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    raise SystemExit(2)
