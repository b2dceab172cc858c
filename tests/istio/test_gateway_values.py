"""What Istio's chart is told of the gateway fits to what the edge promises."""

from __future__ import annotations

import re

import yaml

from istio import generate
from local_mesh.envoy.edge import EdgeValues
from tests.budgets.sources import seconds
from tests.istio import shipped

VALUES = yaml.safe_load((shipped.FOLDER / "edge" / "gateway-values.yaml").read_text())
PROXY = yaml.safe_load(VALUES["podAnnotations"]["proxy.istio.io/config"])


def test_a_gateway_that_goes_lets_its_calls_come_to_their_end() -> None:
    drain = seconds(PROXY["terminationDrainDuration"])
    usual = {
        seconds(one["route"]["max_stream_duration"]["max_stream_duration"])
        for one in generate.on_one_machine()["routes"]
        if "idle_timeout" not in one.get("route", {"idle_timeout": ""})
        and "max_stream_duration" in one["route"]
    }
    assert drain > max(usual)
    assert VALUES["terminationGracePeriodSeconds"] > drain
    # One goes at a time, and another one is there.
    assert VALUES["podDisruptionBudget"] == {"maxUnavailable": 1}
    assert VALUES["autoscaling"]["minReplicas"] > 1


def test_it_shows_what_it_refuses_by_itself() -> None:
    (shown,) = PROXY["proxyStatsMatcher"]["inclusionRegexps"]
    for name in (
        "limit_of_one.http_local_rate_limit.rate_limited",
        "limit_of_all.http_local_rate_limit.rate_limited",
        "cluster.outbound|8081||reservation.dinemesh.svc.cluster.local.circuit_breakers.default.rq_open",
        "cluster.outbound|8081||reservation.dinemesh.svc.cluster.local.upstream_rq_timeout",
    ):
        assert re.fullmatch(shown, name), name
    assert not re.fullmatch(shown, "http.inbound.downstream_rq_2xx")


def test_it_trusts_as_many_proxies_as_the_edge_on_one_machine() -> None:
    assert PROXY["gatewayTopology"]["numTrustedProxies"] == EdgeValues.trusted_hops


def test_the_chart_is_given_these_values() -> None:
    readme = (shipped.ROOT / "k8s" / "README.md").read_text()
    assert "-f istio/edge/gateway-values.yaml" in readme


def test_the_edge_logs_in_its_own_words_and_the_mesh_in_istios() -> None:
    """Istio's own lines are as long as what a stranger sends."""
    (inside,) = shipped.document("Telemetry", "dinemesh")["spec"]["accessLogging"]
    assert "response.grpc_status != 0" in inside["filter"]["expression"]
    assert shipped.document("Telemetry", "dinemesh-edge")["spec"]["accessLogging"] == [{"disabled": True}]
    (connection,) = (
        one["patch"]["value"]["typed_config"]
        for one in shipped.document("EnvoyFilter", "dinemesh")["spec"]["configPatches"]
        if one["applyTo"] == "NETWORK_FILTER"
    )
    (log,) = connection["access_log"]
    assert log["typed_config"]["log_format"]["json_format"]["path"] == "%PATH(NQ:ORIG_OR_PATH):120%"
