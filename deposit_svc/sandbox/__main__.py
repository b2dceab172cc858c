"""The sandbox as a process: `python -m deposit_svc.sandbox`, told what it needs by DINEMESH_* variables."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import Literal

import grpc
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from deposit_svc.sandbox import records
from deposit_svc.sandbox.calls import CallLog
from deposit_svc.sandbox.servicer import Sandbox
from dinemesh.kit import log as logs
from dinemesh.kit import reflection, service
from dinemesh.kit.health import Health
from dinemesh.kit.settings import PREFIX, Port, Seconds, load
from dinemesh.kit.store import Store
from dinemesh.kit.telemetry import MetricsServer
from dinemesh.kit.workers import Background
from dinemesh.sandbox.v1 import sandbox_pb2, sandbox_pb2_grpc

log = logging.getLogger(__name__)


class Settings(BaseSettings):
    """What the sandbox needs to know. It takes part in nothing but calls from deposit."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8085
    """Port for gRPC; 0 lets the system choose."""
    metrics_port: Port | None = None
    """Port for Prometheus; left out: none."""
    database_url: str = Field(repr=False, pattern="^sqlite:///.")
    """The sandbox's own SQLite file."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The least severe lines that are logged."""
    stop_grace_seconds: Seconds = 1
    """What calls still running get at a stop; replies that are lost on purpose would keep it forever."""


async def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    records.create_tables(settings.database_url)
    store = Store.open(settings.database_url)
    background = Background()
    metrics = None if settings.metrics_port is None else MetricsServer(settings.host, settings.metrics_port)
    # Without SO_REUSEPORT a second sandbox on the port is refused, instead of taking half of the calls.
    server = grpc.aio.server(interceptors=[CallLog()], options=[("grpc.so_reuseport", 0)])
    health = Health()
    health.add_to(server)
    sandbox_pb2_grpc.add_SandboxServiceServicer_to_server(Sandbox(store, background), server)
    reflection.add_to(
        server, [sandbox_pb2.DESCRIPTOR.services_by_name["SandboxService"].full_name], others=False
    )
    try:
        port = server.add_insecure_port(f"{settings.host}:{settings.port}")
    except RuntimeError:
        sys.exit(f"sandbox: {settings.host}:{settings.port} is taken; set DINEMESH_PORT to a free port")
    await server.start()
    health.set_ready(True)
    log.info("listening", extra={"port": port})
    await stop.wait()
    health.stop()
    await server.stop(settings.stop_grace_seconds)
    await background.drain(settings.stop_grace_seconds)
    await store.close()
    if metrics is not None:
        metrics.close()


def main() -> None:
    """Serves with the settings of the environment; a wrong one ends the process."""
    settings = load(Settings)
    logs.setup("sandbox", settings.log_level)
    service.main(lambda: run(settings))


if __name__ == "__main__":
    main()
