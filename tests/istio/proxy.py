"""A real Envoy with the configuration that istiod made, and nothing else: no cluster, no istiod.

Taken as they are: routes, filters, limits, outlier detection, repetitions. Changed: where it listens, where
the back ends are, and that between them there is no TLS (that is shown in tests/mesh_truth).
"""

from __future__ import annotations

import base64
import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from local_mesh.envoy.contracts import descriptor_set
from local_mesh.envoy.process import command
from tests.istio import shipped
from tests.support.ports import free_ports
from tests.support.process import NotHealthy, Process

START_SECONDS = 30
CONTRACTS = "@contracts"
"""Stands in the goldens for the contracts that JSON is translated by."""
ONLY_ISTIO_HAS = ("istio.stats",)
"""Filters that Envoy without Istio's additions lacks; they count."""

Config = dict[str, Any]
Mutate = Callable[[Any], object]


def cluster_of(service: str, port: int) -> str:
    return f"outbound|{port}||{service}.dinemesh.svc.cluster.local"


DEPOSIT = cluster_of("deposit", 8082)


class Proxy(Process):
    """The outbound side of one proxy. `backends`: addresses by cluster. `mutate` changes the golden."""

    def __init__(
        self,
        name: str,
        folder: Path,
        backends: Mapping[str, Sequence[str]],
        *,
        listener: str,
        mutate: Mutate | None = None,
        keys: str | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(f"the Envoy of {name}", folder / "envoy.log")
        self.port, admin = free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        self.admin = f"http://127.0.0.1:{admin}"
        made = shipped.golden(name)
        if mutate is not None:
            mutate(made)
        self.file = folder / "envoy.json"
        self.file.write_text(json.dumps(_static(made, listener, self.port, admin, backends, keys)))

    def start(self) -> None:
        self.run(command(self.file))
        end = time.monotonic() + START_SECONDS
        while not self._is_live():
            if not self.running or time.monotonic() > end:
                raise NotHealthy(f"{self.name} does not start.\n{self.last_words()}")
            time.sleep(0.02)

    def _is_live(self) -> bool:
        try:
            return httpx.get(f"{self.admin}/ready", timeout=1).status_code == 200
        except httpx.TransportError:
            return False

    def stat(self, name: str, cluster: str = DEPOSIT) -> int:
        """A counter or gauge of a cluster; 0 if it was never touched."""
        found = httpx.get(f"{self.admin}/stats", params={"format": "json", "filter": f"{name}$"}, timeout=5)
        # Istio names the cluster with a semicolon at its end.
        names = (f"cluster.{cluster};.{name}", f"cluster.{cluster}.{name}")
        return sum(one["value"] for one in found.json()["stats"] if one.get("name") in names)

    def names_of_stats(self) -> list[str]:
        found = httpx.get(f"{self.admin}/stats", params={"format": "json"}, timeout=5)
        return [one["name"] for one in found.json()["stats"] if "name" in one]


def _static(
    made: Any, listener: str, port: int, admin: int, backends: Mapping[str, Sequence[str]], keys: str | None
) -> Config:
    routes = {one["name"]: _without(one, "validateClusters") for one in made["routes"]}
    (heard,) = (one for one in made["listeners"] if one["name"] == listener)
    config: Config = {
        "node": {"id": "test", "cluster": "test"},
        "admin": {"address": _socket("127.0.0.1", admin)},
        "static_resources": {
            "listeners": [_listener(heard, port, routes)],
            "clusters": [
                *(
                    _cluster(one, backends.get(one["name"], ()))
                    for one in made["clusters"]
                    if one["name"].startswith("outbound|")
                ),
                *({"name": name, "type": "STATIC"} for name in ("PassthroughCluster", "BlackHoleCluster")),
            ],
        },
    }
    text = json.dumps(config).replace(CONTRACTS, contracts())
    config = json.loads(text)
    if keys is not None:
        _trust(config, keys)
    return config


def _listener(heard: Config, port: int, routes: Mapping[str, Config]) -> Config:
    made: Config = copy.deepcopy(_without(heard, "bindToPort", "defaultFilterChain"))
    made["address"] = _socket("127.0.0.1", port)
    for chain in made["filterChains"]:
        for one in chain["filters"]:
            manager = one["typedConfig"]
            if "rds" in manager:
                manager["routeConfig"] = routes[manager.pop("rds")["routeConfigName"]]
            manager["httpFilters"] = [
                each for each in manager["httpFilters"] if each["name"] not in ONLY_ISTIO_HAS
            ]
    return made


def _cluster(one: Config, addresses: Sequence[str]) -> Config:
    made = _without(one, "edsClusterConfig", "transportSocketMatches", "transportSocket")
    hosts = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        hosts.append({"endpoint": {"address": _socket(host, int(port))}})
    return made | {
        "type": "STATIC",
        "loadAssignment": {"clusterName": one["name"], "endpoints": [{"lbEndpoints": hosts}]},
    }


def _trust(config: Any, keys: str) -> None:
    """Puts other public keys into every check of tokens."""
    if isinstance(config, list):
        for one in config:
            _trust(one, keys)
    elif isinstance(config, dict):
        if "localJwks" in config:
            config["localJwks"] = {"inlineString": keys}
        for one in config.values():
            _trust(one, keys)


def contracts() -> str:
    return base64.b64encode(descriptor_set()).decode()


def _socket(host: str, port: int) -> Config:
    return {"socket_address": {"address": host, "port_value": port}}


def _without(one: Config, *names: str) -> Config:
    return {name: value for name, value in one.items() if name not in names}
