"""Pods show the counters of what the policy does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.istio import shipped
from tests.istio.proxy import DEPOSIT, Proxy
from tests.policy.ways import Way

WANTED = (
    "outlier_detection.ejections_active",
    "circuit_breakers.default.rq_open",
    "upstream_rq_retry",
    "upstream_rq_active_overflow",
    "upstream_rq_timeout",
)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What reservation's Envoy counts of deposit, once an instance was ejected."""
    way = Way("istio", Path(tmp_path_factory.mktemp("counters")))
    try:
        way.backends[0].state = "unavailable"
        way.eject()
        assert isinstance(way.proxy, Proxy)
        return [one for one in way.proxy.names_of_stats() if DEPOSIT in one]
    finally:
        way.close()


@pytest.mark.parametrize("wanted", WANTED)
def test_pods_show_the_counters_of_ejections_limits_and_repetitions(names: list[str], wanted: str) -> None:
    (pods,) = shipped.read(shipped.ROOT / "k8s" / "base" / "every_service.yaml")
    annotation = pods["spec"]["template"]["metadata"]["annotations"]["proxy.istio.io/config"]
    shown = yaml.safe_load(annotation)["proxyStatsMatcher"]["inclusionRegexps"]
    counted = [one for one in names if one.endswith(wanted)]
    assert counted, f"Envoy has no {wanted}"
    assert any(re.fullmatch(pattern, name) for pattern in shown for name in counted)
