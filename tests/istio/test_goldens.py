"""The goldens are of the files that are shipped, and say what the policy promises."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from deposit_svc.settings import DepositSettings
from istio import generate
from reservation_svc.clients.deposit import HEALTH_SECONDS
from reservation_svc.settings import ReservationSettings
from tests.istio import shipped
from tests.istio.proxy import DEPOSIT, cluster_of

PORTS = {"reservation": 8081, "deposit": 8082, "history": 8083, "restaurant": 8084}


def test_the_goldens_are_of_these_files() -> None:
    assert shipped.HASH.read_text().strip() == shipped.sources(), (
        "istio/, or what istiod sees of k8s/, has changed: `make mesh-goldens`, and look at what it changed"
    )


def test_the_edge_in_istio_is_made_of_the_edge_on_one_machine() -> None:
    for file, text in generate.files().items():
        assert file.read_text() == text, f"{file.name}: python -m istio.generate"


def named(proxy: str, name: str) -> Any:
    """A route of a proxy; its action."""
    found = [
        route["route"]
        for config in shipped.golden(proxy)["routes"]
        for host in config["virtualHosts"]
        for route in host["routes"]
        if route.get("name") == name
    ]
    assert found, f"{proxy} has no route {name}"
    assert all(one == found[0] for one in found)
    return found[0]


def cluster(proxy: str, name: str) -> Any:
    (found,) = (one for one in shipped.golden(proxy)["clusters"] if one["name"] == name)
    return found


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def setting(settings: type, name: str) -> Any:
    return settings.model_fields[name].default  # type: ignore[attr-defined]


def test_nobody_repeats_a_charge() -> None:
    assert "retryPolicy" not in named("reservation", "charge")


def test_the_times_of_a_charge_fit_into_each_other() -> None:
    route = seconds(named("reservation", "charge")["timeout"])
    deadline = setting(ReservationSettings, "deposit_deadline_ms") / 1000
    # Envoy has to notice before reservation gives up, and hands its own time on as deposit's deadline.
    assert route <= deadline - 0.5
    assert seconds(named("reservation", "charge")["maxGrpcTimeout"]) == route
    # Nobody takes a charge for abandoned while its caller may still wait.
    assert route < setting(DepositSettings, "charge_timeout_ms") / 1000
    assert deadline < setting(DepositSettings, "pending_settle_seconds")


@pytest.mark.parametrize(("name", "caller"), [("reads", None), ("health", HEALTH_SECONDS)])
def test_three_tries_of_a_read_fit_into_its_time(name: str, caller: float | None) -> None:
    route = named("reservation", name)
    policy = route["retryPolicy"]
    assert policy["numRetries"] == 2
    assert {"gateway-error", "deadline-exceeded", "unavailable"} <= set(policy["retryOn"].split(","))
    assert 3 * seconds(policy["perTryTimeout"]) < seconds(route["timeout"])
    assert caller is None or seconds(route["timeout"]) < caller


def test_ejection_is_possible_and_only_for_broken_instances() -> None:
    policy = cluster("reservation", DEPOSIT)
    outlier = policy["outlierDetection"]
    assert outlier["consecutiveGatewayFailure"] == 5
    assert outlier["enforcingConsecutiveGatewayFailure"] == 100
    assert outlier["consecutive5xx"] == outlier["enforcingConsecutive5xx"] == 0
    assert outlier["enforcingSuccessRate"] == 0
    # Of two, one; and a second one that is sick stays.
    assert outlier["maxEjectionPercent"] == 50
    assert seconds(outlier["interval"]) <= 5
    assert policy["commonLbConfig"]["healthyPanicThreshold"] == {}, "zero: never to those who were ejected"
    assert "localityWeightedLbConfig" not in policy["commonLbConfig"]


def test_the_limit_of_a_pod_lies_below_what_deposit_lets_in() -> None:
    (limits,) = cluster("reservation", DEPOSIT)["circuitBreakers"]["thresholds"]
    assert limits["maxRequests"] == 32
    assert limits["maxRequests"] < setting(DepositSettings, "charges_in_flight_limit")
    assert limits["maxRequests"] < setting(ReservationSettings, "attempts_limit")
    # What waits for the first connection must not be what is refused.
    assert limits["maxPendingRequests"] > setting(ReservationSettings, "attempts_limit")


@pytest.mark.parametrize("service", PORTS)
def test_a_client_of_the_edge_ejects_nobody(service: str) -> None:
    policy = cluster("edge", cluster_of(service, PORTS[service]))
    assert "outlierDetection" not in policy
    (limits,) = policy["circuitBreakers"]["thresholds"]
    (ours,) = (one for one in _edge_clusters() if one["name"] == service)
    (there,) = ours["circuit_breakers"]["thresholds"]
    assert limits == {
        "maxConnections": there["max_connections"],
        "maxPendingRequests": there["max_pending_requests"],
        "maxRequests": there["max_requests"],
        "maxRetries": there["max_retries"],
    }


@pytest.mark.parametrize("service", PORTS)
def test_every_service_has_two_instances_behind_the_edge_and_on_its_own_port(service: str) -> None:
    (found,) = (
        one
        for one in shipped.golden("edge")["endpoints"]
        if one["clusterName"] == cluster_of(service, PORTS[service])
    )
    hosts = [host["endpoint"] for place in found["endpoints"] for host in place["lbEndpoints"]]
    assert [host["address"]["socketAddress"]["portValue"] for host in hosts] == [PORTS[service]] * 2


def test_at_the_edge_translation_comes_before_every_decision() -> None:
    (heard,) = shipped.golden("edge")["listeners"]
    names = [one["name"] for one in heard["filterChains"][0]["filters"][0]["typedConfig"]["httpFilters"]]
    there = names.index
    assert there("envoy.filters.http.grpc_json_transcoder") < there("envoy.filters.http.jwt_authn")
    assert there("envoy.filters.http.jwt_authn") < there("envoy.filters.http.rbac") < there("limit of one")
    assert there("envoy.filters.http.buffer") < there("envoy.filters.http.grpc_json_transcoder")


def test_the_edge_repeats_reads_and_nothing_that_reached_a_service() -> None:
    every = [route["name"] for route in shipped.document("VirtualService", "dinemesh")["spec"]["http"]]
    for name in every:
        policy = named("edge", name)["retryPolicy"]
        again = set(policy["retryOn"].split(","))
        if name.startswith(("Get", "List")) or name == "health":
            assert again >= {"unavailable", "gateway-error", "deadline-exceeded"}, name
            assert 3 * seconds(policy["perTryTimeout"]) < seconds(named("edge", name)["timeout"]), name
        else:
            assert again == {"connect-failure", "refused-stream"}, name


def _edge_clusters() -> list[Any]:
    text = (shipped.ROOT / "envoy" / "edge" / "clusters.yaml").read_text()

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!value", lambda _loader, node: node.value)
    found: list[Any] = yaml.load(text, Loader=Loader)
    return found
