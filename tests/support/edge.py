"""A real Envoy in front of the services of a test, started as on one machine."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import httpx

from local_mesh.envoy import configuration, contracts, edge
from local_mesh.envoy.process import command
from tests.support.mesh import SERVICES, Keys
from tests.support.ports import free_ports
from tests.support.process import NotHealthy, Process

START_SECONDS = 30
Config = dict[str, Any]


class Addressed(Protocol):
    address: str


class Behind(Protocol):
    """What an edge stands in front of: a RunningMesh, or what stands in for one."""

    keys: Keys

    def __getitem__(self, service: str) -> Addressed: ...


class RunningEdge(Process):
    """The edge over a mesh, or over anything that stands at `addresses`. The process is the runner; Envoy
    is its child and goes with it."""

    def __init__(
        self,
        mesh: Behind,
        folder: Path,
        *,
        addresses: Mapping[str, str] | None = None,
        drain_seconds: float = 5,
        mutate: Callable[[Config], object] | None = None,
        **values: Any,
    ) -> None:
        """`addresses`: other addresses than the mesh's, by service. `mutate` changes the configuration.
        `values`: fields of EdgeValues that are not to be as usual."""
        self._prepare(folder, drain_seconds)
        at = {name: mesh[name].address for name in SERVICES} | dict(addresses or {})
        chosen: dict[str, Any] = {
            "port": self.port,
            "admin_port": self.admin_port,
            "jwks_file": mesh.keys.jwks_file,
            "descriptor_file": folder / "contracts.binpb",
            # Tests are quicker than people; those about limits set their own.
            "address_rate_per_second": 100_000,
            "address_rate_burst": 100_000,
            "document_rate_per_second": 100_000,
            "document_rate_burst": 100_000,
            "rate_per_second": 100_000,
            "rate_burst": 100_000,
            "customer_rate_per_second": 100_000,
            "customer_rate_burst": 100_000,
        }
        chosen |= {name: [address] for name, address in at.items()} | values
        self.values = edge.EdgeValues(**chosen)
        self.values.descriptor_file.write_bytes(contracts.descriptor_set())
        # Through JSON: what the files share by an anchor is changed in one place only, as in what Envoy gets.
        config = json.loads(json.dumps(configuration.load(edge.EDGE, self.values.as_mapping())))
        self._write(config, mutate)

    def mutant(self, folder: Path, mutate: Callable[[Config], object]) -> RunningEdge:
        """An edge like this one, with its own ports and a changed configuration. It runs without its runner,
        so that it starts and ends in a moment and without draining."""
        edge = object.__new__(RunningEdge)
        edge._prepare(folder, self._drain_seconds)
        edge._bare = True
        edge.values = self.values
        # A name that both would listen on.
        config = json.loads(
            json.dumps(self.parsed).replace(
                f"@dinemesh-edge-{self.admin_port}", f"@dinemesh-edge-{edge.admin_port}"
            )
        )
        config["admin"]["address"]["socket_address"]["port_value"] = edge.admin_port
        for listener in config["static_resources"]["listeners"]:
            if listener["name"] == "edge":
                listener["address"]["socket_address"]["port_value"] = edge.port
        edge._write(config, mutate)
        return edge

    def _prepare(self, folder: Path, drain_seconds: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        Process.__init__(self, "the edge", folder / "edge.log")
        self.folder = folder
        self.port, self.admin_port = free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        self.admin = f"http://127.0.0.1:{self.admin_port}"
        self._drain_seconds = drain_seconds
        self._bare = False

    def _write(self, config: Config, mutate: Callable[[Config], object] | None) -> None:
        self.parsed = config
        if mutate is not None:
            mutate(config)
        self.config = self.folder / "edge.json"
        self.config.write_text(json.dumps(config))

    def start(self) -> None:
        """Start it and wait until it answers. It does not wait for the services."""
        self.spawn()
        end = time.monotonic() + START_SECONDS
        while not self.is_live():
            if not self.running:
                raise NotHealthy(f"the edge ended instead of starting.\n{self.last_words()}")
            if time.monotonic() > end:
                raise NotHealthy(f"the edge does not answer after {START_SECONDS} s.\n{self.last_words()}")
            time.sleep(0.02)

    def spawn(self) -> None:
        runner = [
            *("setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "local_mesh.envoy.process"),
            *(str(self.config), "--admin", f"127.0.0.1:{self.admin_port}"),
            *("--drain-seconds", str(self._drain_seconds)),
        ]
        self.run(command(self.config) if self._bare else runner)

    def is_live(self) -> bool:
        try:
            return httpx.get(f"{self.url}/livez", timeout=1).status_code == 200
        except httpx.TransportError:
            return False

    def wait_until_healthy(self, seconds: float = START_SECONDS) -> None:
        """Until the edge says that all four services are well."""
        end = time.monotonic() + seconds
        while (status := httpx.get(f"{self.url}/healthz", timeout=2).status_code) != 200:
            if time.monotonic() > end:
                raise NotHealthy(f"/healthz says {status} for {seconds} s.\n{self.last_words()}")
            time.sleep(0.02)

    def ask_to_stop(self) -> None:
        """SIGTERM, without waiting for the end."""
        os.kill(self.pid, signal.SIGTERM)

    def stats(self, prefix: str) -> dict[str, int]:
        """Envoy's counters and gauges whose names start so."""
        found = httpx.get(f"{self.admin}/stats", params={"format": "json", "filter": f"^{prefix}"}, timeout=5)
        return {one["name"]: one["value"] for one in found.json()["stats"] if "name" in one}

    def access_log(self) -> list[dict[str, Any]]:
        """What was written so far, flushed first. A line appears when its call has ended."""
        httpx.post(f"{self.admin}/reopen_logs", timeout=5)
        found = []
        for line in self.log.read_text().splitlines():
            if line.startswith("{") and line.endswith("}"):
                found.append(json.loads(line))
        return found

    def logged(self, *, seconds: float = 10, **fields: object) -> dict[str, Any]:
        """Waits for the one line of the access log with these fields."""
        end = time.monotonic() + seconds
        while True:
            lines = self.access_log()
            found = [one for one in lines if all(one.get(key) == value for key, value in fields.items())]
            if found:
                assert len(found) == 1, found
                return found[0]
            assert time.monotonic() < end, f"no line with {fields}; the last ones:\n{lines[-5:]}"
            time.sleep(0.05)
