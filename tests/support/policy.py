"""The real proxy between reservation and deposit, as it is started on one machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from local_mesh.envoy import configuration
from local_mesh.envoy.policy import POLICY, PolicyValues
from local_mesh.envoy.process import command
from tests.support.ports import free_ports
from tests.support.process import NotHealthy, Process

START_SECONDS = 30
Config = dict[str, Any]


class RunningPolicy(Process):
    """The proxy in front of these instances of deposit (host:port)."""

    def __init__(
        self,
        folder: Path,
        deposit: Sequence[str],
        *,
        mutate: Callable[[Config], object] | None = None,
        **values: Any,
    ) -> None:
        """`mutate` changes the configuration; `values`: fields of PolicyValues not to be as usual."""
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__("the proxy before deposit", folder / "policy.log")
        self.port, admin_port = free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        self.admin = f"http://127.0.0.1:{admin_port}"
        self.values = PolicyValues(port=self.port, admin_port=admin_port, deposit=deposit, **values)
        # Through JSON: what the files share by an anchor is changed in one place only.
        config = json.loads(json.dumps(configuration.load(POLICY, self.values.as_mapping())))
        if mutate is not None:
            mutate(config)
        self.config = folder / "policy.json"
        self.config.write_text(json.dumps(config))

    def start(self) -> None:
        """Starts it and waits until it sends calls to one instance at least."""
        self.run(command(self.config))
        end = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if not self.running or time.monotonic() > end:
                raise NotHealthy(f"{self.name} does not start.\n{self.last_words()}")
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"http://{self.address}/healthz", timeout=1).status_code == 200
        except httpx.TransportError:
            return False

    def stat(self, name: str) -> int:
        """A counter or gauge of the cluster; 0 if it was never touched."""
        found = httpx.get(
            f"{self.admin}/stats",
            params={"format": "json", "filter": rf"^cluster\.deposit\.{name}$"},
            timeout=5,
        )
        return sum(one["value"] for one in found.json()["stats"] if "name" in one)
