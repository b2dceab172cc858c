"""The edge as istiod configures it, in a real Envoy, and looked at as the edge on one machine is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from istio.generate import PORTS
from tests.istio.proxy import Proxy, cluster_of
from tests.support.edge import Behind

LISTENER = "0.0.0.0_80"
UNREACHED = 100_000
"""Calls a second, and at once, that no test comes near to; those about limits set their own."""

RATES = {
    "limit of one": "customer_rate",
    "limit of one address": "address_rate",
    "limit of all": "rate",
}
"""By filter, how envoy.edge.EdgeValues calls its bucket: <name>_per_second and <name>_burst."""


class RunningGateway(Proxy):
    """The edge of a cluster in front of a mesh, or of what stands in for one."""

    def __init__(
        self,
        mesh: Behind,
        folder: Path,
        *,
        mutate: Callable[[Any], object] | None = None,
        **rates: int,
    ) -> None:
        """`mutate` changes what istiod made. `rates`: by the names of EdgeValues."""
        backends = {cluster_of(name, port): [mesh[name].address] for name, port in PORTS.items()}
        tools = cluster_of("reservation", PORTS["reservation"]).replace("||", "|tools|")
        backends[tools] = [mesh["reservation"].address]

        def change(made: Any) -> None:
            limit(made, rates)
            if mutate is not None:
                mutate(made)

        super().__init__(
            "edge",
            folder,
            backends,
            listener=LISTENER,
            mutate=change,
            keys=mesh.keys.jwks_file.read_text(),
        )

    def wait_until_healthy(self) -> None:
        """A gateway has no such page; what is behind it has been waited for by its tests."""

    def stats(self, prefix: str) -> dict[str, int]:
        """Envoy's counters and gauges whose names start so."""
        found = httpx.get(f"{self.admin}/stats", params={"format": "json", "filter": f"^{prefix}"}, timeout=5)
        return {one["name"]: one["value"] for one in found.json()["stats"] if "name" in one}


def manager(made: Any) -> Any:
    """Of the connections that clients open."""
    (listener,) = (one for one in made["listeners"] if one["name"] == LISTENER)
    return listener["filterChains"][0]["filters"][0]["typedConfig"]


def filters(made: Any) -> list[Any]:
    found: list[Any] = manager(made)["httpFilters"]
    return found


def limit(made: Any, rates: Mapping[str, int]) -> None:
    """Puts other numbers into the buckets; those that are not named get one that nobody reaches."""
    for one in filters(made):
        if one["name"] in RATES:
            name = RATES[one["name"]]
            for bucket in buckets(one["typedConfig"]):
                bucket["maxTokens"] = rates.get(f"{name}_burst", UNREACHED)
                bucket["tokensPerFill"] = rates.get(f"{name}_per_second", UNREACHED)


def lasting(made: Any) -> None:
    """Buckets fill every ten seconds instead of every second, so that a slow machine sees them empty too."""
    for one in filters(made):
        if one["name"] in RATES:
            for bucket in buckets(one["typedConfig"]):
                bucket["fillInterval"] = "10s"


def buckets(limit_: Any) -> list[Any]:
    holders = (limit_, *limit_.get("descriptors", ()))
    return [one["tokenBucket"] for one in holders if "tokenBucket" in one]
